"""Carlini and Wagner's attack: the exact distance of linear models, the lead it owes, its search, and foolbox.

What every attack owes is asked in ``test_attacks.py``.
"""

import copy

import pytest
import torch
from attack_cases import (
    batch,
    build,
    f64,
    linear,
    network_and_batch,
    one_by_one,
    same_pixels,
    trained_on_digits,
)

from course_utils.core import inputs, models
from course_utils.core.geometry import norm
from course_utils.core.runtime import generator
from course_utils.core.training import predict
from course_utils.methods.attacks import fooled, lead, succeeded
from course_utils.methods.carlini_wagner import carlini_wagner

either_goal = pytest.mark.parametrize("to_target", [False, True], ids=["untargeted", "targeted"])
kinds = ("DeprecationWarning", "FutureWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*:{kind}") for kind in kinds]


def goal_of(y, to_target, classes=4):
    return {"target": (y + 1) % classes} if to_target else {"y": y}


def leads(model, x, y=None, target=None):
    """By how much the target leads all others, or the best other class leads y."""
    logits = predict(model, x)
    return lead(logits, y)[0] if target is None else -lead(logits, target)[0]


def far_from(x, x_adv):
    return norm(x_adv.double() - x.double(), 2)


# --- the exact distance


@pytest.mark.parametrize(
    ("kind", "scale", "to_target"),
    [
        ("binary", 0.1, False),
        ("binary", 100, True),
        ("two classes", 1, False),
        ("two classes", 1, True),
    ],
)
def test_a_linear_model_is_left_at_its_distance(kind, scale, to_target):
    model, w = linear(kind)
    w = scale * w
    model.output.weight.data *= scale
    model.output.bias.data = -0.5 * model.output.weight.data.sum(1)  # zero at 0.5
    ways = torch.tensor([-0.5, -0.3, 0.2, 0.4], dtype=f64).repeat(2)
    kappa = torch.tensor([0, 0.1 * scale], dtype=f64).repeat_interleave(4)
    x = 0.5 + ways.view(-1, 1, 1, 1) * (w / w.norm()).view(1, 1, 4, 4)
    y = (ways > 0).long()
    assert torch.equal(predict(model, x).argmax(1), y)
    x_adv = carlini_wagner(model, x, **goal_of(y, to_target, 2), kappa=kappa, steps=200)
    ratio = far_from(x, x_adv) / (ways.abs() + kappa / w.norm())
    assert (ratio > 0.9999).all() and (ratio < 1.01).all()


def test_the_ends_of_the_box_are_kept_and_the_rest_pays():
    """Two pixels matter equally, and one is at its end: the other goes the whole way."""
    model = models.logistic(2, 2).double()
    model.output.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=f64)
    model.output.bias.data = torch.tensor([1.5, 0.0], dtype=f64)
    x = torch.tensor([1.0, 0.2], dtype=f64).view(1, 1, 1, 2)
    x_adv = carlini_wagner(model, x, torch.tensor([0]))
    assert x_adv.max() <= 1
    assert torch.allclose(x_adv.flatten(), torch.tensor([1.0, 0.5], dtype=f64), atol=3e-3)


# --- what is promised of a success


@either_goal
@pytest.mark.parametrize("kappa", [0.0, 0.5, 2.0])
def test_each_image_has_its_lead_or_is_unchanged(kappa, to_target):
    model, x, y = network_and_batch(100)
    goal = goal_of(y, to_target)
    x_adv = carlini_wagner(model, x, **goal, kappa=kappa, steps=40, rounds=5, first_constant=0.1)
    changed = (x_adv != x).flatten(1).any(1)
    assert changed.sum() > 20
    exact = copy.deepcopy(model).double()
    for now in (leads(model, x_adv, **goal), leads(exact, x_adv.double(), **goal)):
        assert (now[changed] > kappa).all()
    alone = one_by_one(
        lambda x, label: leads(model, x, **{next(iter(goal)): label}), x_adv, *goal.values()
    )
    assert (alone[changed] > kappa).all()
    labels, sign = next(iter(goal.values())), -1 if to_target else 1
    assert fooled(predict(model, x_adv), labels, sign)[changed].all()
    # and no lead is bought beyond it: the last stretch is shorter than a step
    assert (leads(model, x_adv, **goal)[changed] - kappa).median() < 0.05


@either_goal
def test_what_has_the_lead_already_and_what_never_gets_it_comes_back_unchanged(to_target):
    model, x, y = network_and_batch(20)
    other = (y + 1) % 4
    goal = {"target": y} if to_target else {"y": other}
    assert torch.equal(carlini_wagner(model, x, **goal), x)
    far = carlini_wagner(model, x, **goal_of(y, to_target), kappa=1e6, steps=5, rounds=2)
    assert torch.equal(far, x)
    assert not succeeded(model, far, **goal_of(y, to_target)).any()


def test_every_image_may_have_its_own_kappa():
    model, x, y = network_and_batch(10)
    kappa = torch.linspace(0, 2, 10)
    settings = dict(steps=40, rounds=5, first_constant=0.1)
    together = carlini_wagner(model, x, y, kappa=kappa, **settings)
    assert (leads(model, together, y) >= kappa).all()
    same_pixels(together[:1], carlini_wagner(model, x[:1], y[:1], kappa=0.0, **settings))


def test_a_higher_kappa_is_a_longer_way():
    model, x, y = network_and_batch(40)
    settings, lengths = dict(steps=50, rounds=6, first_constant=0.1), []
    for kappa in (0.0, 0.5, 1.0):
        x_adv = carlini_wagner(model, x, y, kappa=kappa, **settings)
        far = far_from(x, x_adv)
        lengths.append(torch.where(far > 0, far, torch.inf))  # inf: no success
    assert lengths[1].isfinite().all() and lengths[2].isfinite().sum() > 30
    assert (lengths[0] < lengths[1]).all() and (lengths[1] < lengths[2]).all()


# --- the search


@either_goal
def test_more_rounds_never_lengthen_any_image(to_target):
    model, x, y = network_and_batch(40)
    goal, before = goal_of(y, to_target), torch.full((40,), torch.inf, dtype=f64)
    for rounds in (1, 2, 4, 7):
        x_adv = carlini_wagner(model, x, **goal, steps=30, rounds=rounds)
        now = torch.where(succeeded(model, x_adv, **goal), far_from(x, x_adv), torch.inf)
        assert (now <= before).all()
        before = now
    assert before.isfinite().sum() > 30


def test_the_first_constant_decides_little():
    model, x, y = network_and_batch(40)
    lengths = [
        far_from(x, carlini_wagner(model, x, y, first_constant=c)) for c in (1e-3, 1.0, 30.0)
    ]
    shortest = torch.stack(lengths).amin(0)
    for length in lengths:
        assert (length / shortest).median() < 1.02 and (length / shortest).max() < 1.3


def test_it_is_shorter_than_steps_of_one_size():
    """The squared length matters: without it the shortest success would be a chance hit."""
    model, x, y = network_and_batch(40)
    found = far_from(x, carlini_wagner(model, x, y))
    hurried = far_from(x, carlini_wagner(model, x, y, rounds=1, first_constant=1e6))
    assert (found <= hurried).double().mean() > 0.9 and found.mean() < 0.9 * hurried.mean()


def test_chunks_and_on_step(monkeypatch):
    model, x, y = network_and_batch(8)
    settings, seen = dict(steps=4, rounds=3), []
    whole = carlini_wagner(model, x, y, **settings)
    monkeypatch.setattr(inputs, "CHUNK", {"cpu": 3})
    parts = carlini_wagner(model, x, y, **settings, on_step=lambda step, now: seen.append(step))
    assert seen == list(range(1, 13))
    same_pixels(whole, parts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(kappa=-1.0), "kappa is -1.0.*0 or more"),
        (dict(rounds=0), "rounds is 0; give a whole number, 1 or more"),
        (dict(steps=1.5), "steps is 1.5; give a whole number"),
        (dict(first_constant=float("nan")), "first_constant is nan"),
        (dict(first_constant=0.0), "first_constant is 0.0; give a number above 0"),
        (dict(step_size=-0.1), "step_size is -0.1"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    x, y = batch(4)
    with pytest.raises(ValueError, match=message):
        carlini_wagner(build(), x, y, **wrong)


# --- the peer


@pytest.fixture(scope="module")
def victim():
    """The slides' CNN after a short training on the embedded digits, and images that it gets right."""
    model, images = trained_on_digits()
    x = images.x[:30]
    return model, 0.98 * x + 0.02 * torch.rand(x.shape, generator=generator(0)), images.y[:30]


@pytest.mark.slow
@either_goal
def test_it_succeeds_as_often_as_foolbox_and_is_not_longer(victim, to_target):
    """With equal steps and rounds. foolbox writes pixels as tanh, and takes the larger steps that this needs."""
    foolbox = pytest.importorskip("foolbox")
    model, x, y = victim
    goal = goal_of(y, to_target, 10)
    kind = (
        foolbox.criteria.TargetedMisclassification
        if to_target
        else foolbox.criteria.Misclassification
    )
    settings = dict(steps=60, stepsize=0.1, initial_const=0.1, abort_early=False)
    peer = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, **settings)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = peer.run(wrapped, x, kind(*goal.values()))
    ours = carlini_wagner(model, x, **goal, steps=60, rounds=6, first_constant=0.1)
    won = [succeeded(model, x_adv, **goal) for x_adv in (ours, theirs)]
    assert won[0].all() and won[1].double().mean() > 0.8
    ours_off, theirs_off = (far_from(x, x_adv)[won[1]].median() for x_adv in (ours, theirs))
    assert 0.6 * theirs_off < ours_off < 1.05 * theirs_off
