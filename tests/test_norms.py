"""Batch norm with a cheap second derivative gives what PyTorch's own gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from course_utils import confuse, models, norms, runtime
from course_utils.norms import quick_second_derivatives


def problem(shape, layer):
    with runtime.seeded(1):
        norm = layer(shape[1]).double().train()
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x = (3 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
        pulls = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    return norm, x, pulls


def derivatives(norm, x, pulls):
    """Values, first derivatives in x, weight and bias, and the derivative in x of a mixture of these."""
    y = norm(x)
    first = torch.autograd.grad((y.tanh() * pulls[0]).sum(), [x, norm.weight, norm.bias], create_graph=True)
    mixture = (first[0] * pulls[1]).sum() + (first[1].sin() * 2).sum() + first[2].square().sum()
    return y, *first, torch.autograd.grad(mixture, x)[0]


@pytest.mark.parametrize(("shape", "layer"), [((6, 4), nn.BatchNorm1d), ((5, 3, 4, 2), nn.BatchNorm2d)])
def test_all_derivatives_are_those_of_pytorch(shape, layer):
    norm, x, pulls = problem(shape, layer)
    usual = derivatives(norm, x, pulls)
    with quick_second_derivatives():
        quick = derivatives(norm, x, pulls)
    for ours, theirs in zip(quick, usual, strict=True):
        assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()


def test_it_is_ours_that_runs_and_the_running_statistics_stay(monkeypatch):
    norm, x, _ = problem((5, 3, 4, 2), nn.BatchNorm2d)
    before = norm.running_mean.clone()
    with quick_second_derivatives():
        assert "_Norm" in type(norm(x).grad_fn).__name__
        assert "_Norm" not in type(norm.eval()(x).grad_fn).__name__  # in eval mode there is nothing to gain
    assert torch.equal(norm.running_mean, before)
    assert "_Norm" not in type(norm.train()(x).grad_fn).__name__  # outside
    used = []
    apply = norms._Norm.apply
    monkeypatch.setattr(norms._Norm, "apply", lambda *args: used.append(1) or apply(*args))
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


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_confusion_gradient_is_that_through_the_pseudo_update(batch_norm):
    with runtime.seeded(0):
        f = models.confused_cnn(4, 20, batch_norm, size=20).double().train()
        x, y = torch.rand(16, 1, 20, 20, dtype=torch.float64), torch.randint(10, (16,))
        poisoned = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    weights = {name: weight.detach().requires_grad_() for name, weight in f.named_parameters()}
    moved = confuse.pseudo_update(f, weights, poisoned, y, 0.05)
    slow = torch.autograd.grad(F.cross_entropy(functional_call(f, moved, (x,)), y), poisoned)[0]
    quick, _ = confuse.confusion_gradient(f, weights, x, y, poisoned, y, 0.05)
    assert (quick - slow).abs().max() < 1e-12 * slow.abs().max()
