"""Convolution and batch norm with cheap second derivatives give what PyTorch's own give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from course_utils.core import models, runtime
from course_utils.methods import confuse, double_backward
from course_utils.methods.double_backward import quick_second_derivatives


def made_by(y) -> str:
    return type(y.grad_fn).__name__


def problem(shape, layer):
    with runtime.seeded(1):
        norm = layer(shape[1]).double().train()
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x = (3 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
        pulls = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    return norm, x, pulls


def derivatives(norm, x, pulls):
    """Values, first derivatives in x, weight and bias, and that in x of a mixture of these."""
    y = norm(x)
    first = torch.autograd.grad(
        (y.tanh() * pulls[0]).sum(), [x, norm.weight, norm.bias], create_graph=True
    )
    mixture = (first[0] * pulls[1]).sum() + (first[1].sin() * 2).sum() + first[2].square().sum()
    return y, *first, torch.autograd.grad(mixture, x)[0]


@pytest.mark.parametrize(
    ("shape", "layer"), [((6, 4), nn.BatchNorm1d), ((5, 3, 4, 2), nn.BatchNorm2d)]
)
def test_all_derivatives_are_those_of_pytorch(shape, layer):
    norm, x, pulls = problem(shape, layer)
    usual = derivatives(norm, x, pulls)
    with quick_second_derivatives():
        quick = derivatives(norm, x, pulls)
    for ours, theirs in zip(quick, usual, strict=True):
        assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()


def test_our_norm_runs_and_the_running_statistics_stay(monkeypatch):
    norm, x, _ = problem((5, 3, 4, 2), nn.BatchNorm2d)
    before = norm.running_mean.clone()
    with quick_second_derivatives():
        assert made_by(norm(x)).startswith("QuickNorm")
        assert not made_by(norm.eval()(x)).startswith("Quick")  # here there is nothing to gain
    assert torch.equal(norm.running_mean, before)
    assert not made_by(norm.train()(x)).startswith("Quick")  # outside
    used = []
    apply = double_backward.QuickNorm.apply

    def watched(*given):
        used.append(given)
        return apply(*given)

    monkeypatch.setattr(double_backward.QuickNorm, "apply", watched)
    f = models.confused_cnn(2, 8, size=20)
    weights = {name: weight.detach().requires_grad_() for name, weight in f.named_parameters()}
    x, y = torch.rand(8, 1, 20, 20), torch.arange(8)
    confuse.confusion_gradient(f, weights, x, y, x, y, 0.1)
    assert len(used) == 4  # once for each layer of the pass that is differentiated twice


def test_a_layer_without_affine_weights_is_left_alone():
    norm = nn.BatchNorm1d(3, affine=False).double()
    x = torch.rand(5, 3, dtype=torch.float64)
    with quick_second_derivatives():
        assert torch.equal(norm(x), F.batch_norm(x, None, None, training=True))


def confusion_both_ways(f, x, y):
    """The gradient in the poisoned images through the pseudo-update, and by ``confusion_gradient``."""
    poisoned = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    weights = {name: weight.detach().requires_grad_() for name, weight in f.named_parameters()}
    moved = confuse.pseudo_update(f, weights, poisoned, y, 0.05)
    slow = torch.autograd.grad(F.cross_entropy(functional_call(f, moved, (x,)), y), poisoned)[0]
    return slow, confuse.confusion_gradient(f, weights, x, y, poisoned, y, 0.05)[0]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_confusion_gradient_is_that_through_the_pseudo_update(batch_norm):
    with runtime.seeded(0):
        f = models.confused_cnn(4, 20, batch_norm, size=20).double().train()
        x, y = torch.rand(16, 1, 20, 20, dtype=torch.float64), torch.randint(10, (16,))
        slow, quick = confusion_both_ways(f, x, y)
    assert (quick - slow).abs().max() < 1e-12 * slow.abs().max()


class Twice(nn.Module):
    """Two convolutions see the images themselves, and their sum a third."""

    def __init__(self, channels, **how):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 4, 3, **how), nn.Conv2d(channels, 4, 3, **how)
        self.c, self.out = nn.Conv2d(4, 5, 2, bias=False), nn.LazyLinear(3)

    def forward(self, x):
        return self.out(self.c(F.softplus(self.a(x) + self.b(x))).tanh().flatten(1))


HOW = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (0, 2), "dilation": 2},
    {"bias": False},
    {"padding": "same"},
    {"padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize(
    ("channels", "how"),
    [(1, how) for how in HOW]
    + [(4, how) for how in HOW]
    + [(4, {"groups": 2}), (3, {"stride": 3})],
)
def test_convolutions_of_all_kinds(channels, how):
    with runtime.seeded(2):
        x, y = torch.rand(6, channels, 9, 8, dtype=torch.float64), torch.randint(3, (6,))
        f = Twice(channels, **how).double()
        f(x)
        slow, quick = confusion_both_ways(f, x, y)
    assert slow.abs().max() > 0 and (quick - slow).abs().max() < 1e-12 * slow.abs().max()


def test_our_convolution_runs_only_inside():
    net, x = nn.Conv2d(1, 2, 3), torch.rand(2, 1, 5, 5, requires_grad=True)
    with quick_second_derivatives():
        assert made_by(net(x)).startswith("QuickConvolution")
    assert not made_by(net(x)).startswith("Quick")
