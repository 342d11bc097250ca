"""``diagnose``: each check speaks on a model or an attack that is broken in its way, none on healthy ones."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.core import data, models
from course_utils.core.training import fit, predict
from course_utils.methods import attacks, objectives
from course_utils.methods.diagnosis import CHECKS, diagnose
from course_utils.methods.transforms import bit_depth
from course_utils.methods.wrappers import Through


@pytest.fixture(scope="module")
def images():
    return data.load("digits")


def trained(train, **settings):
    torch.manual_seed(0)
    model = models.slides_cnn()
    fit(model, train, verbose=False, **settings)
    return model


@pytest.fixture(scope="module")
def usual(images):
    """The slides' CNN after a short training on the embedded digits."""
    return trained(images[0][:6000], epochs=3)


@pytest.fixture(scope="module")
def some(images, usual):
    few = images[1][:40]
    return few[predict(usual, few.x).argmax(1) == few.y]


class Changed(nn.Module):
    """``change(logits, calls)`` of a model's logits."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change, self.calls = model, change, 0

    def forward(self, x):
        self.calls += 1
        return self.change(self.model(x), self.calls)


def found(model, some, **settings):
    return diagnose(model, some.x, some.y, **{"eps": 0.15, "queries": 20, **settings})


def walking(model, x, y, *, eps, on_step=None, **settings):
    return attacks.pgd(model, x, y, eps=eps, on_step=on_step, **settings)


def climbing_the_loss(model, x, y, *, eps):
    """PGD on the cross-entropy itself, whose gradient is zero where float32 says p = 1."""
    x_adv = x
    for _ in range(15):
        leaf = x_adv.detach().requires_grad_()
        g = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]
        x_adv = (x + (leaf + eps / 6 * g.sign() - x).clamp(-eps, eps)).clamp(0, 1).detach()
    return x_adv


def there_and_back(model, x, y, *, eps, on_step=None):
    """The way passes through adversarial examples, and the image comes back."""
    if on_step:
        on_step(1, attacks.pgd(model, x, y, eps=eps, steps=10))
    return x


# --- silent on what is healthy


@pytest.mark.parametrize("attack", [None, climbing_the_loss])
def test_a_usual_network_under_many_steps_has_no_findings(usual, some, attack):
    assert found(usual, some, attack=attack).bad == {}


@pytest.mark.slow
def test_a_robust_network_has_no_findings_even_beside_another_one(images, usual, some):
    inner = {"attack": attacks.pgd, "eps": 0.15, "steps": 5, "random_start": True}
    objective = partial(objectives.adversarial, **inner)
    adam = partial(torch.optim.Adam, lr=2e-3)
    robust = trained(images[0][:6000], epochs=4, objective=objective, optimizer=adam)
    seen = found(robust, some, eps=0.1, others={"usual": usual})
    assert seen.bad == {}
    own, transfer = seen.right["the attack"], seen.right["transfer: usual"]
    assert 0.3 < own.float().mean() < transfer.float().mean()


def test_other_norms(usual, some):
    for norm, eps in ((2, 1.0), (1, 8.0)):
        seen = found(usual, some, eps=eps, norm=norm)
        assert seen.bad == {}
        assert "20 queries" not in seen.right  # the Square Attack is for L∞


# --- one broken model or attack for each check

CASES = {
    "random answers": (lambda model: Changed(model, lambda z, _: z + torch.randn_like(z)), None),
    "memory": (lambda model: Changed(model, lambda z, calls: z * (1 + 0.1 * calls)), None),
    "saturated outputs": (lambda model: Changed(model, lambda z, _: 100 * z), climbing_the_loss),
    "no gradient": (lambda model: Through(model, partial(bit_depth, bits=1)), None),
    "wrong gradient": (
        lambda model: Through(model, partial(bit_depth, bits=1), approximate=True),
        None,
    ),
    "loss does not rise": (lambda model: model, lambda model, x, y, *, eps: x.clone()),
    "best iterate lost": (lambda model: model, there_and_back),
    "not converged": (lambda model: model, partial(walking, steps=8, step_size=0.003)),
    "another judge does better": (
        lambda model: model,
        lambda model, x, y, *, eps: attacks.fgsm(model, x, y, eps=eps / 3),
    ),
    "robust where nothing can be": (
        lambda model: Through(model, partial(bit_depth, bits=1)),
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_check_speaks_where_that_is_broken(usual, some, name):
    build, attack = CASES[name]
    seen = found(build(usual).eval(), some, attack=attack)
    assert name in seen.bad
    finding = seen.bad[name]
    assert finding.share > 0.05 and finding.evidence and finding.cure


def test_there_is_a_broken_case_for_every_check(usual, some):
    assert [finding.name for finding in found(usual, some).findings] == list(CASES)
    assert len(CHECKS) == len(CASES)


def test_an_answer_that_depends_on_the_batch_is_memory(usual, some):
    centred = Changed(usual, lambda z, _: z - z.mean(0)).eval()
    assert "memory" in found(centred, some).bad


def test_probabilities_for_logits_are_saturated_outputs(usual, some):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # check_input warns too
        seen = found(Changed(usual, lambda z, _: z.softmax(1)).eval(), some)
    assert "saturated outputs" in seen.bad


def test_an_attack_that_loses_what_it_found(usual, some):
    seen = found(usual, some, attack=there_and_back)
    assert {"best iterate lost", "loss does not rise", "another judge does better"} <= set(seen.bad)
    own = seen.right["the attack"]
    assert own.all()
    passed = attacks.pgd(usual, some.x, some.y, eps=0.15, steps=10)
    lost = 1 - attacks.robust_accuracy(usual, passed, some.y)
    assert 0 < lost and seen.bad["best iterate lost"].share == pytest.approx(lost)


def test_examples_of_another_network_reveal_a_gradient_that_is_gone(usual, some):
    """Transfer fools a network whose own gradient is zero."""
    rounded = Through(usual, partial(bit_depth, bits=2)).eval()
    seen = found(rounded, some, others={"usual": usual}, eps=0.3)
    assert "transfer: usual" in seen.bad["another judge does better"].evidence
    assert seen.right["the attack"].all()


# --- its form


def test_the_margins_are_those_of_the_way(usual, some):
    seen = found(usual, some, attack=partial(walking, steps=5))
    assert seen.margins.shape == (5 + 2, len(some))
    assert torch.equal(seen.margins[0], attacks.margin(predict(usual, some.x), some.y))
    assert torch.equal(seen.margins[-1], seen.margins[-2])
    assert (seen.margins[-1] > seen.margins[0]).all()


def test_both_names_of_the_norm_mean_the_same(usual, some):
    by_name, by_number = (found(usual, some, norm=norm) for norm in ("inf", float("inf")))
    assert by_name.findings == by_number.findings and list(by_name.right) == list(by_number.right)


def test_images_that_are_wrong_as_they_are_do_not_count(usual, some):
    labels = some.y.clone()
    labels[0] = (labels[0] + 1) % 10
    seen = diagnose(usual, some.x, labels, eps=0.15, queries=10)
    assert seen.margins.shape[1] == len(some) - 1


def test_the_table_shows_all_checks(usual, some):
    table = found(usual, some, attack=partial(walking, steps=8, step_size=0.003))._repr_markdown_()
    lines = table.splitlines()
    assert len(lines) == 2 + len(CHECKS)
    bad = [line for line in lines if line.startswith("| **doubt** | not converged")]
    assert len(bad) == 1 and "more steps" in bad[0]
    assert not any("attack the mean" in line for line in lines)  # a cure stands where it is needed


def test_the_model_is_left_as_found(usual, some):
    usual.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in usual.state_dict().items()}
    usual.train()
    found(usual, some)
    assert usual.training
    usual.eval()
    assert all(torch.equal(before[name], value) for name, value in usual.state_dict().items())
    assert all(parameter.grad is None for parameter in usual.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1}, "eps is -1"),
        ({"norm": 3}, "norm is 3"),
        ({"y": torch.zeros(3)}, "y is"),
        ({"x": torch.full((4, 1, 28, 28), 2.0)}, "x reaches"),
    ],
)
def test_bad_input(usual, some, change, message):
    given = {"x": some.x[:4], "y": some.y[:4], "eps": 0.1} | change
    with pytest.raises(ValueError, match=message):
        diagnose(usual, **given)


def test_a_model_that_is_right_on_nothing(usual, some):
    with pytest.raises(ValueError, match="right on none of the"):
        diagnose(usual, some.x, (some.y + 1) % 10, eps=0.1)


def test_an_attack_that_fails_for_another_reason_says_so(usual, some):
    def broken(model, x, y, *, eps):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        found(usual, some, attack=broken)
