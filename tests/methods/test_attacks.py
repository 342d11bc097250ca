"""What every attack owes (DESIGN.md), asked of every attack: tiny models, no data, exact references."""

import copy
import random

import numpy as np
import pytest
import torch
from attack_cases import (
    BALLS,
    CASES,
    SIZES,
    STEPPED,
    batch,
    build,
    every_attack,
    every_ball,
    every_norm,
    f64,
    linear,
    network_and_batch,
    one_by_one,
    run,
    same_pixels,
    won,
)
from torch.testing import assert_close

from course_utils.core import inputs, models
from course_utils.core.geometry import dual_norm, norm
from course_utils.core.runtime import generator
from course_utils.methods import attacks
from course_utils.methods.attacks import fgsm, margin, neg_log_likelihood, pgd, succeeded
from course_utils.methods.minimum_norm import minimal_eps

pytestmark = pytest.mark.filterwarnings("error", "ignore:eps is .* holds every image")
every_stepped = pytest.mark.parametrize("case", STEPPED)
every_early_stop = pytest.mark.parametrize("case", [name for name in CASES if "early" in name])
either_linear = pytest.mark.parametrize("kind", ["binary", "two classes"])
to_target_or_not = pytest.mark.parametrize("to_target", [False, True])


# --- nothing is left changed


def flags(model):
    return [module.training for module in model.modules()]


def state_of(model):
    """All that an attack could change, as lists that compare."""
    tensors = [(name, t.dtype, t.tolist()) for name, t in model.state_dict().items()]
    grads = [None if q.grad is None else q.grad.tolist() for q in model.parameters()]
    return tensors, grads, [q.requires_grad for q in model.parameters()], flags(model)


@every_attack
def test_the_model_and_the_images_are_left_as_found(case):
    model, x, y = network_and_batch(kind="mixed")
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 3.0) if i % 2 else None
    model[0].weight.requires_grad_(False)
    before, images, labels = state_of(model), x.clone(), y.clone()
    result = run(case, model, x, y)
    assert before == state_of(model)
    assert torch.equal(x, images) and torch.equal(y, labels)
    assert not x.requires_grad and x.grad is None and not result.requires_grad
    assert result.data_ptr() != x.data_ptr()


@every_attack
def test_the_model_is_judged_in_eval_mode(case):
    model, x, y = network_and_batch(kind="mixed")
    assert torch.equal(run(case, model, x, y), run(case, copy.deepcopy(model).eval(), x, y))


@every_attack
def test_the_global_random_state_is_untouched(case):
    x, y = batch()
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = run(case, build("mixed"), x, y)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate() and (before[2] == np.random.get_state()[1]).all()
    torch.manual_seed(6)
    assert torch.equal(first, run(case, build("mixed"), x, y))


@every_attack
def test_images_with_a_graph_and_callers_without_gradients_are_welcome(case):
    model, x, y = network_and_batch()
    expected = run(case, model, x, y)
    with torch.no_grad():
        assert torch.equal(run(case, model, x, y), expected)
    x.requires_grad_()
    result = run(case, model, x, y)
    assert torch.equal(result, expected)
    assert x.grad is None and not result.requires_grad


# --- where it ends


@every_ball
def test_eps_zero_returns_x(case):
    model, x, y = network_and_batch()
    assert torch.equal(run(case, model, x, y, eps=0), x)
    some = run(case, model, x, y, eps=torch.arange(8.0) % 2 * 0.1)
    assert torch.equal(some[::2], x[::2]) and (some[1::2] != x[1::2]).flatten(1).any(1).all()


@every_stepped
def test_no_steps_returns_x(case):
    model, x, y = network_and_batch()
    assert torch.equal(run(case, model, x, y, steps=0), x)


@every_attack
def test_the_result_lies_in_the_box_and_in_the_ball(case):
    (model, x, y), usual = network_and_batch(64), CASES[case][1]
    for factor in (0.1, 1, 10):
        eps = {"eps": factor * usual["eps"]} if case in BALLS else {}
        result = run(case, model, x, y, **eps)
        assert result.shape == x.shape and result.dtype == x.dtype
        assert result.min() >= 0 and result.max() <= 1
        if eps:
            lengths = norm(result.double() - x.double(), usual.get("norm", 2))
            assert (lengths <= eps["eps"] + 1e-6).all()


@every_norm
def test_large_images_stay_in_the_ball(p):
    x, y = torch.rand(6, 3, 32, 32, generator=generator(0)), torch.zeros(6, dtype=torch.long)
    model = models.logistic(3 * 32 * 32, 4)
    for eps in (0.1, 3.0, 30.0):
        result = pgd(model, x, y, eps=eps, norm=p, steps=3, random_start=True)
        assert (norm(result.double() - x.double(), p) <= eps + 1e-6).all()


@every_norm
@to_target_or_not
def test_one_full_step_of_pgd_is_fgsm(p, to_target):
    model, x, y = network_and_batch(32)
    eps = torch.linspace(0.01, 1, 32)
    settings = {"target": (y + 1) % 4} if to_target else {"y": y}
    settings |= {"eps": eps, "norm": p}
    one = pgd(model, x, **settings, steps=1, step_size=eps)
    assert_close(one, fgsm(model, x, **settings), atol=1e-6, rtol=0)


# --- random starts and restarts


def starts(x, y, seed=0, **settings):
    """Where random runs begin: one step of length 0."""
    usual = dict(eps=0.1, steps=1, step_size=0.0, random_start=True, generator=generator(seed))
    return pgd(build(), x, y, **(usual | settings))


@every_norm
def test_a_random_start_is_the_images_own(p, monkeypatch):
    x, y = batch(7)
    first = starts(x, y, norm=p)
    changed = x.clone()
    changed[1:] = changed[1:].flip(0)
    assert torch.equal(starts(changed, y, norm=p)[0], first[0])
    assert torch.equal(starts(x[:3], y[:3], norm=p), first[:3])
    monkeypatch.setattr(inputs, "CHUNK", {"cpu": 3})
    assert torch.equal(starts(x, y, norm=p), first)
    assert not torch.equal(starts(x, y, seed=1, norm=p), first)
    same = torch.full_like(x, 0.5)
    assert len(starts(same, y, norm=p).flatten(1).unique(dim=0)) == 7  # no two images start alike
    assert torch.equal(starts(x, y, norm=p, random_start=False), x)


@pytest.mark.parametrize("random_start", [False, True])
@every_norm
def test_more_restarts_never_do_worse_on_any_image(p, random_start):
    model, x, y = network_and_batch(64)
    success, height = torch.zeros(64, dtype=torch.bool), torch.full((64,), -torch.inf)
    settings = dict(eps=SIZES[p] * 0.8, norm=p, steps=3, random_start=random_start)
    for restarts in (1, 2, 3, 5):
        x_adv = pgd(model, x, y, restarts=restarts, **settings)
        now, higher = succeeded(model, x_adv, y), margin(attacks.predict(model, x_adv), y)
        assert (now >= success).all()
        assert (higher >= height - 1e-6)[now == success].all()
        success, height = now, higher
    assert 0 < success.sum() < 64  # else the test could not tell


# --- batch independence


@pytest.mark.parametrize("scale", [1, 1e2, 1e4])
@every_attack
def test_what_happens_to_an_image_does_not_depend_on_its_batch(case, scale, monkeypatch):
    model, x, y = network_and_batch(20, scale=scale)
    if scale > 1:
        # the premise: cross-entropy tells float32 next to nothing about most of these images
        v = x.clone().requires_grad_()
        sizes = norm(torch.autograd.grad(neg_log_likelihood(model(v), y).sum(), v)[0], 2)
        assert (sizes < 1e-13).double().mean() > (0.3 if scale == 1e2 else 0.9)
    together = run(case, model, x, y)
    results = []
    if "random" not in case and "early" not in case:
        # else no: an image alone is number 0, which has another random start
        results.append(one_by_one(lambda x, y: run(case, model, x, y), x, y))
    results.append(run(case, model, torch.cat([x, 1 - x]), torch.cat([y, y]))[:20])
    monkeypatch.setattr(inputs, "CHUNK", {"cpu": 3})
    results.append(run(case, model, x, y))
    for other in results:
        assert torch.equal(won(case, model, other, y), won(case, model, together, y))
        same_pixels(other, together, share=0.95)


# --- confidence is not robustness; closed forms


UNTARGETED = [name for name in CASES if "to a" not in name]
ALONG_THE_MARGIN = ("untargeted", "fgsm", "pgd", "adv_loss")


@pytest.mark.parametrize("case", [name for name in UNTARGETED if name.startswith(ALONG_THE_MARGIN)])
def test_scaling_the_logits_of_a_binary_model_changes_no_pixel(case):
    # With two classes the margin is a difference of logits, and powers of two are exact in float32.
    model, x, y = network_and_batch(32, classes=2)
    expected = run(case, model, x, y)
    assert (expected != x).any()
    for exponent in (-60, 7, 40):
        if "early" in case and exponent < 0:  # so small a lead counts as none, and nobody rests
            continue
        assert torch.equal(run(case, build(classes=2, scale=2.0**exponent), x, y), expected)


@pytest.mark.parametrize("case", ["untargeted", *[name for name in UNTARGETED if name in BALLS]])
def test_a_confident_model_falls_in_float32_as_it_does_in_float64(case):
    model, x, y = network_and_batch(200, scale=1000)
    exact = build(scale=1000, dtype=f64)
    verdicts = succeeded(exact, run(case, exact, x.double(), y), y)
    assert 0.05 < verdicts.double().mean() < 0.98
    same = succeeded(model, run(case, model, x, y), y) == verdicts
    assert same.double().mean() >= 0.99


def gain(model, result, x, y):
    """How far the margin rose."""
    return (margin(model(result), y) - margin(model(x), y)).detach()


@either_linear
@pytest.mark.parametrize("label", [0, 1])
@to_target_or_not
@every_norm
def test_a_linear_model_is_attacked_to_the_closed_form(kind, p, label, to_target):
    model, w = linear(kind)
    x = 0.5 + 0.05 * torch.rand(5, 1, 4, 4, dtype=f64, generator=generator(4))
    eps = torch.tensor([0, 0.01, 0.1, 0.2, 0.3], dtype=f64)
    y = torch.full((5,), label)
    settings = {"target": 1 - y} if to_target else {"y": y}
    settings |= {"eps": eps, "norm": p}
    for result in (fgsm(model, x, **settings), pgd(model, x, **settings, steps=10)):
        assert_close(gain(model, result, x, y), eps * dual_norm(w[None], p))


@either_linear
def test_linf_reaches_the_closed_form_at_the_edge_of_the_box_too(kind):
    model, w = linear(kind)
    x, _ = batch(30, dtype=f64)
    y = torch.zeros(30, dtype=torch.long)
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1)).clamp(max=0.2)
    assert (room == 0).any() and (room == 0.2).any()
    for attack, settings in ((fgsm, {}), (pgd, dict(steps=7, random_start=True))):
        result = attack(model, x, y, eps=0.2, **settings)
        assert_close(gain(model, result, x, y), (room * w.abs()).sum(1))


@every_norm
def test_minimal_eps_is_the_distance_to_a_linear_boundary(p):
    model, w = linear("binary")
    direction = (w / w.norm()).view(1, 1, 4, 4)
    x = 0.5 + torch.linspace(-0.1, 0.1, 8, dtype=f64).view(-1, 1, 1, 1) * direction
    model.output.bias.data = -x.mean(0, keepdim=True).flatten() @ w[:, None]
    z = model(x)[:, 1].detach()
    found = minimal_eps(model, x, (z > 0).long(), norm=p, steps=200 if p == 1 else 40)
    exact = z.abs() / dual_norm(w[None], p)
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= exact * 1.01).all()
    wrong = minimal_eps(model, x, (z < 0).long(), norm=p)
    assert torch.equal(wrong, torch.zeros_like(wrong))


def test_minimal_eps_of_a_model_without_slope_is_infinite():
    model, _ = linear("binary")
    model.output.weight.data.zero_()
    model.output.bias.data = torch.full((1,), 2.0, dtype=f64)
    x, _ = batch(3, dtype=f64)
    assert minimal_eps(model, x, model(x).argmax(1)).isinf().all()


# --- truth about success, watching


def one_run(case):
    return {"restarts": 1} if case in BALLS else {}


@every_early_stop
def test_a_reported_success_is_one_alone_and_in_float64(case):
    model, x, y = network_and_batch(200)
    x_adv = run(case, model, x, y)
    verdict = succeeded(model, x_adv, y)
    assert 0 < verdict.sum() < 200
    assert torch.equal(verdict, one_by_one(lambda x, y: succeeded(model, x, y), x_adv, y))
    full = run(case, model, x, y, early_stop=False, **one_run(case))
    assert (verdict >= succeeded(model, full, y)).all()  # resting early loses nothing
    exact = model.double()(x_adv.double())
    assert (exact.argmax(1) != y)[verdict].all()


@every_early_stop
def test_an_image_that_succeeded_rests(case):
    frames = []
    model, x, y = network_and_batch(64)
    run(case, model, x, y, on_step=lambda _, now: frames.append(now), **one_run(case))
    for before, after in zip([x, *frames], frames, strict=False):
        rested = succeeded(model, before, y)
        assert torch.equal(before[rested], after[rested])
    assert (before != after)[~rested].any()  # the others go on


@pytest.mark.parametrize("chunk", [3, 512])
@every_stepped
def test_on_step_sees_every_step_of_the_whole_batch_as_a_copy(case, chunk, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", {"cpu": chunk})
    model, x, y = network_and_batch()
    seen = []

    def watch(step, x_adv):
        seen.append((step, x_adv.clone()))
        assert x_adv.shape == x.shape and not x_adv.requires_grad
        x_adv.fill_(7)

    result = run(case, model, x, y, on_step=watch)
    settings = CASES[case][1]
    runs = 2 if case.startswith("fmn") and "to_target" not in settings else 1
    steps = settings["steps"] * settings.get("restarts", runs) * settings.get("rounds", 1)
    assert [step for step, _ in seen] == list(range(1, steps + 1))
    assert torch.equal(result, run(case, model, x, y))
    goes_on = case.startswith(("targeted", "deepfool", "fmn", "carlini"))  # after its last step
    if "restarts" not in settings and not goes_on:
        assert torch.equal(seen[-1][1], result)


@every_stepped
def test_a_watcher_that_fails_leaves_the_model_as_found(case):
    model = build("mixed")
    before = flags(model)

    def fail(step, x_adv):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(case, model, *batch(), on_step=fail)
    assert flags(model) == before
