"""MinMax, step by step against Algorithm 1; the penalty baseline; and the criteria and SSIM."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from information_cases import (
    assert_as_found,
    batch,
    build,
    close,
    critic,
    drawn,
    estimator,
    every_critic,
    every_estimator,
    everything,
    plain_bound,
)
from torch import nn

from course_utils.core import runtime
from course_utils.methods import autoencoders
from course_utils.methods import minmax as methods
from course_utils.methods import mutual_information as mi
from course_utils.methods.attacks import succeeded
from course_utils.methods.minmax import (
    AttackResult,
    closeness,
    minmax,
    misclassified,
    nothing,
    penalty,
    reconstructed,
    ssim,
)
from course_utils.methods.mutual_information import Estimator, projections

pytestmark = pytest.mark.filterwarnings("error", "ignore:.* undecided")


@pytest.fixture
def model():
    return build()


def autoencoder():
    with runtime.seeded(2):
        layers = nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 36), nn.Sigmoid()
        return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, (1, 6, 6))).double()


def attack(kind, model, x, y, **changes):
    settings = dict(steps=12, step_size=0.1, beta=0.5, eps=0.4, estimator=estimator(kind, model))
    settings |= changes
    return minmax(model, settings.pop("criterion", misclassified(model, y)), x, **settings)


def wild(x_adv, rows):
    """A criterion that jumps between iterates: rows 0 and 1 always above 0, 2 and 3 below."""
    shift = torch.zeros(100)
    shift[:2], shift[2:4] = 1.5, -1.5
    return (997 * x_adv.detach().flatten(1).sum(1)).sin() + shift[rows]


def same(a, b, tolerance=0):
    for name, value in vars(a).items():
        close(value, getattr(b, name), tolerance)


# --- criteria


def lead(logits, label):
    """By how much the label of one image leads, and 1.1 times what rounding can blur of it."""
    own, other = logits[label], torch.cat([logits[:label], logits[label + 1 :]]).max()
    return own - other, 1.1e-5 * (1 + torch.maximum(own.abs(), other.abs()).detach())


@pytest.mark.parametrize("kappa", [0.0, 0.7])
@pytest.mark.parametrize("goal", ["y", "target"])
def test_misclassified_is_its_formula_and_agrees_with_succeeded(goal, kappa, model):
    model.dense.bias.data -= 30  # all logits negative
    x, y = batch(60, model=model)
    labels = (y + torch.arange(60) % 3) % 4  # right for every third image only
    rows = torch.arange(59, -1, -1)
    f = misclassified(model, **{goal: labels}, kappa=kappa)(x[rows], rows).detach()
    sign = 1 if goal == "y" else -1
    for row, value in zip(rows.tolist(), f.tolist(), strict=True):
        ahead, blur = lead(model(x[row : row + 1])[0], labels[row])
        assert value == pytest.approx((sign * ahead + kappa + blur).item(), abs=1e-12)
    if not kappa:
        verdict = succeeded(model, x[rows], **{goal: labels[rows]})
        assert torch.equal(f <= 0, verdict) and 0 < verdict.sum() < 60


@pytest.mark.parametrize("goal", ["y", "target"])
def test_a_lead_that_rounding_could_turn_is_no_success(goal):
    logits = nn.Flatten()
    share = torch.tensor([-1, 0, 0.5, 1.05, 1.2, 5]).double()
    x = torch.stack([torch.full_like(share, 0.5), 0.5 + share * 1.5e-5], 1)[:, None, None]
    labels = {goal: torch.full((6,), int(goal == "target"))}
    f = misclassified(logits, **labels)(x, torch.arange(6))
    assert (f <= 0).tolist() == [False] * 4 + [True] * 2
    assert (succeeded(logits, x, **labels) >= (f <= 0)).all()


def test_reconstructed_is_its_formula():
    net = autoencoder()
    x, x_adv = batch(6)[0], batch(6, seed=1)[0]
    rows = torch.tensor([4, 0, 3])
    f = reconstructed(net, x)(x_adv[rows], rows)
    for row, value in zip(rows.tolist(), f.tolist(), strict=True):
        given, changed = ((x[row] - net(z[row : row + 1])[0]).square().sum() for z in (x, x_adv))
        assert value == pytest.approx((changed - given).item(), abs=1e-12)
    close(reconstructed(net, x)(x, torch.arange(6)), torch.zeros(6).double(), 1e-12)


def test_reconstructed_judges_in_eval_mode_and_leaves_the_network_as_found():
    net = nn.Sequential(autoencoder(), nn.BatchNorm2d(1).double(), nn.Dropout(0.5)).train()
    x, _ = batch(6)
    before = everything(net)
    criterion = reconstructed(net, x)
    assert_as_found(before, net)
    net.eval()
    close(criterion(x, torch.arange(6)), torch.zeros(6).double(), 1e-12)


# --- minmax, step by step


def by_hand(kind, model, f, x, how, settings):
    """Algorithm 1 for one image, line by line: what every step recorded."""
    given = dict(c=None, similar=True, start=0.086, seed=0) | settings
    given = SimpleNamespace(**given)
    generator, records = runtime.generator(given.seed), []
    learns = isinstance(how, Estimator)
    plain = learns and copy.deepcopy(how.critic)
    adam = learns and torch.optim.Adam(plain.parameters(), lr=how.lr)

    def box(z):
        return (x + (z - x).clamp(-given.eps, given.eps)).clamp(0, 1)

    def similarity(z):
        if not learns:
            return -(z - x).square().sum()
        return plain_bound(plain, *drawn(kind, model, x, z, generator))

    dual = given.c or 0.0
    z = box(x + given.start * (2 * torch.rand(x.shape, generator=generator).double() - 1))
    for t in range(1, given.steps + 1):
        z = z.detach().requires_grad_()
        objective = dual * f(z).clamp(min=0) + (-1 if given.similar else 1) * similarity(z)
        z = box((z - given.step_size * torch.autograd.grad(objective, z)[0]).detach())
        for _ in range(how.steps if learns else 0):
            adam.zero_grad()
            (-plain_bound(plain, *drawn(kind, model, x, z, generator))).backward()
            adam.step()
        value, now = f(z).item(), similarity(z).item()
        if given.c is None:
            dual = (1 - given.beta / t ** (1 / 4)) * dual + given.beta * max(value, 0)
        records.append(SimpleNamespace(x_adv=z, information=now, criterion=value, c=dual))
    return records


@pytest.mark.parametrize(
    "settings",
    [{}, dict(similar=False), dict(c=(0.0, 1.5, 3.0)), dict(eps=0.05), dict(seed=3, start=0.3)],
    ids=str,
)
@every_estimator
def test_every_step_is_that_of_algorithm_1_on_the_image_alone(kind, settings, model):
    x, y = batch(3)
    how, seen = estimator(kind, model), []
    chosen = dict(steps=5, step_size=0.1, beta=0.3, eps=0.4) | settings
    minmax(model, misclassified(model, y), x, estimator=how, on_step=seen.append, **chosen)
    assert [step.step for step in seen] == [1, 2, 3, 4, 5]
    for i in range(3):
        own = chosen | ({"c": settings["c"][i]} if "c" in settings else {})

        def f(z, i=i):
            return sum(lead(model(z[None])[0], y[i]))

        for step, expected in zip(seen, by_hand(kind, model, f, x[i], how, own), strict=True):
            close(step.x_adv[i], expected.x_adv)
            for name in ("information", "criterion", "c"):
                value = getattr(step, name)[i].item()
                assert value == pytest.approx(getattr(expected, name), abs=1e-8)
    assert (seen[-1].x_adv != seen[0].x_adv).flatten(1).any(1).all()


def expected_best(seen, similar, positive):
    """Which iterate Algorithm 1 returns, from what ``on_step`` saw: (step, information, success)."""
    chosen = []
    for i in range(len(seen[0].rows)):
        steps = [(s.information[i].item(), s.criterion[i].item()) for s in seen]
        values = [v if f <= 0 and (v > 0 or not positive) else None for v, f in steps]
        valid = [value for value in values if value is not None]
        if valid:
            best = max(valid) if similar else min(valid)
            chosen.append((values.index(best), best, True))
        else:
            f = [f for _, f in steps]
            chosen.append((f.index(min(f)), math.nan, False))
    return chosen


@pytest.mark.parametrize("similar", [True, False])
@every_estimator
def test_the_best_iterate_is_kept_exactly(kind, similar, model):
    x, y = batch(10)
    positions, signs = set(), set()
    # a slow critic's information is often negative
    runs = [(wild, 1e-4), (wild, 0.02), (misclassified(model, y), 0.02)]
    for seed, (criterion, lr) in [(seed, run) for seed in range(3) for run in runs]:
        seen, how = [], estimator(kind, model)
        how = replace(how, lr=lr) if kind != "l2" else how
        changes = dict(estimator=how, criterion=criterion, similar=similar, seed=seed)
        found = attack(kind, model, x, y, **changes, on_step=seen.append)
        chosen = expected_best(seen, similar, positive=not similar and kind != "l2")
        for i, (step, information, success) in enumerate(chosen):
            assert torch.equal(found.x_adv[i], seen[step].x_adv[i])
            assert found.success[i] == success
            assert found.information[i].item() == pytest.approx(information, 0, 0, nan_ok=True)
            positions.add((step, success))
        if criterion is wild:
            assert not found.success[:2].any() and (found.success[2:4].all() or kind != "l2")
            values = torch.stack([step.information for step in seen])[:, 2:]
            signs |= {bool(sign) for sign in (values > 0).flatten()}
    assert len(signs) == 2 or kind == "l2"  # else the test could not tell
    for success in (True, False):
        assert len([step for step, won in positions if won == success]) > 3


def test_of_two_equal_successes_the_earlier_is_kept():
    yes = torch.tensor([True])
    first, second = (AttackResult(torch.full((1, 1, 1, 1), i), yes * 1.0, yes) for i in (1.0, 2.0))
    first.keep(second, 1, yes)
    assert first.x_adv.item() == 1


@every_estimator
def test_eps_zero_and_no_steps_return_x(kind, model):
    x, y = batch()
    found = attack(kind, model, x, y, eps=0)
    wrong = attack(kind, model, x, (y + 1) % 4, eps=0)
    idle = attack(kind, model, x, y, steps=0)
    for result in (found, wrong, idle):
        assert torch.equal(result.x_adv, x) and result.x_adv.data_ptr() != x.data_ptr()
    assert wrong.success.all() and not found.success.any()
    assert not idle.success.any() and idle.information.isnan().all()


@every_estimator
def test_an_empty_batch_gives_an_empty_batch(kind, model):
    x, y = batch(0)
    how = estimator(kind, model)
    of_penalty = penalty(model, misclassified(model, y), x, estimator=how, steps=2)
    for found in (attack(kind, model, x, y), of_penalty):
        assert found.x_adv.shape == (0, 1, 6, 6) and found.information.shape == (0,)
        assert found.success.shape == (0,) and found.success.dtype == torch.bool


@every_estimator
def test_another_seed_gives_another_start_and_the_same_seed_the_same(kind, model):
    x, y = batch()
    inner = 0.2 + 0.6 * x
    still = dict(steps=1, step_size=0.0)
    starts = [attack(kind, model, inner, y, **still, seed=seed).x_adv - inner for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1]) and not torch.allclose(starts[0], starts[2])
    assert 0.07 < starts[0].abs().max() <= 0.086 + 1e-9 and starts[0].min() < 0 < starts[0].max()
    close(starts[0], starts[0][:1].expand_as(x), 1e-12)  # the same for every image
    assert torch.equal(attack(kind, model, x, y, **still, start=0).x_adv, x)
    runs = [attack(kind, model, x, y, seed=seed) for seed in (0, 0, 1)]
    same(runs[0], runs[1])
    assert not torch.allclose(runs[0].x_adv, runs[2].x_adv)


@every_critic
def test_a_batch_in_chunks_is_a_batch(kind, monkeypatch, model):
    x, y = batch(5)
    changes = dict(c=torch.linspace(0, 3, 5), steps=6)
    whole = attack(kind, model, x, y, **changes)
    weights = sum(p.numel() for p in estimator(kind, model).critic.parameters())
    numbers = 4 * weights + 24 * (96 if kind == "maps" else 72)
    one_by_one = [[0], [1], [2], [3], [4]]
    for memory, chunks in ((1, one_by_one), (2 * 4 * numbers, [[0, 1], [2, 3], [4]])):
        monkeypatch.setattr(mi, "MEMORY", memory)
        seen = []
        same(attack(kind, model, x, y, **changes, on_step=seen.append), whole, 1e-6)
        assert [step.rows.tolist() for step in seen[::6]] == chunks
        assert [step.step for step in seen] == [1, 2, 3, 4, 5, 6] * len(chunks)


@every_estimator
def test_everything_is_left_as_found(kind):
    model = build("mixed")
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 3.0) if i % 2 else None
    model.conv1.weight.requires_grad_(False)
    x, y = batch(model=build("mixed"))
    how, images = estimator(kind, model), x.clone()
    modules = (model, *([] if kind == "l2" else [how.critic]))
    before = everything(*modules)
    found = attack(kind, model, x, y, estimator=how)
    result = penalty(model, misclassified(model, y), x, estimator=how, steps=2, rounds=2)
    assert_as_found(before, *modules)
    assert torch.equal(x, images) and not x.requires_grad
    for value in (*vars(found).values(), *vars(result).values()):
        assert not value.requires_grad
    in_eval = build("mixed").eval()
    same(attack(kind, in_eval, x, y), found)  # judged in eval mode
    torch.manual_seed(99)
    same(attack(kind, in_eval, x, y), found)
    with torch.no_grad():
        same(attack(kind, model, x, y, estimator=how), found)
    with_graph = x.clone().requires_grad_()
    of_graph = attack(kind, model, with_graph, y, estimator=how)
    same(of_graph, found)
    assert with_graph.grad is None and not of_graph.x_adv.requires_grad


@every_critic
def test_the_callers_critic_keeps_its_precision(kind, model):
    how = estimator(kind, model)
    how.critic.float()
    x, y = batch(2)
    mi.estimate(x, x, how, steps=1)
    attack(kind, model, x, y, estimator=how, steps=1)
    assert {p.dtype for p in how.critic.parameters()} == {torch.float32}


@every_estimator
def test_a_watcher_sees_copies_and_may_fail(kind):
    model = build("mixed")
    flags = [module.training for module in model.modules()]
    x, y = batch()
    plain = attack(kind, model, x, y)

    def watch(step):
        assert step.x_adv.shape == x.shape and step.rows.tolist() == [0, 1, 2, 3, 4]
        for value in (step.x_adv, step.information, step.criterion, step.c):
            assert len(value) == 5 and not value.requires_grad
        step.x_adv.fill_(7)

    same(attack(kind, model, x, y, on_step=watch), plain)

    def fail(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(kind, model, x, y, on_step=fail)
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("to_target", [False, True])
@every_estimator
def test_a_reported_success_is_one_alone_and_in_float64(kind, to_target):
    model = build(dtype=torch.float32)
    x, y = batch(40, dtype=torch.float32)
    labels = {"target": (y + 1) % 4} if to_target else {"y": y}
    dual = dict(c=10.0, eps=0.15 if to_target else 0.05) if kind == "l2" else {}
    found = attack(kind, model, x, y, criterion=misclassified(model, **labels), steps=15, **dual)
    assert 0 < found.success.sum() < 40 and found.x_adv.dtype == torch.float32
    for rows in found.success.nonzero():
        alone = {name: value[rows] for name, value in labels.items()}
        assert succeeded(model, found.x_adv[rows], **alone).item()
        seen = build()(found.x_adv[rows].double()).argmax(1)
        assert seen == labels["target"][rows] if to_target else seen != y[rows]
    assert torch.equal(found.information.isnan(), ~found.success)


@every_estimator
def test_a_targeted_attack_reaches_its_target(kind, model):
    x, y = batch(8)
    target = (y + 1) % 4
    settings = dict(eps=1.0, steps=60) | (dict(c=10.0) if kind == "l2" else dict(step_size=0.3))
    criteria = (misclassified(model, target=target, kappa=kappa) for kappa in (0.0, 1.0))
    found, sure = (attack(kind, model, x, y, criterion=f, **settings) for f in criteria)
    assert found.success.all()
    assert torch.equal(model(found.x_adv).argmax(1), target)
    if kind == "l2":
        close(found.information, -(found.x_adv - x).square().sum((1, 2, 3)))
    logits = model(sure.x_adv[sure.success]).detach()
    wanted = target[sure.success, None]
    lead = logits.gather(1, wanted).squeeze(1) - logits.scatter(1, wanted, -torch.inf).amax(1)
    assert sure.success.sum() > 4 and (lead >= 1).all()


def test_unsupervised_examples_are_less_similar_and_reconstructed_no_worse():
    net = autoencoder()
    x, _ = batch(8)
    how = Estimator(projections(20, 8), critic("affine", 8), steps=3, lr=0.02)
    settings = dict(estimator=how, eps=1.0, steps=40, step_size=0.2)
    far, near = (
        minmax(net, reconstructed(net, x), x, similar=similar, **settings)
        for similar in (False, True)
    )
    assert far.success.all() and (far.information > 0).all()
    errors = [(x - net(z)).square().sum((1, 2, 3)) for z in (far.x_adv, x)]
    assert (errors[0] <= errors[1] + 1e-9).all()
    both = far.success & near.success
    assert both.any() and (far.information < near.information)[both].all()


@pytest.mark.parametrize(
    "c",
    [0, 1.5, torch.linspace(0, 3, 5), torch.tensor(2.0, dtype=torch.float32)],
    ids=["0", "1.5", "each", "tensor"],
)
@every_estimator
def test_a_given_c_stays_fixed(kind, c):
    seen = []
    attack(kind, build(), *batch(), c=c, on_step=seen.append)
    for step in seen:
        close(step.c, torch.as_tensor(c).double().expand(5))


FINITE = "give a finite number of 0 or more"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(x=batch()[0] * 255), r"x reaches from 0 to 255; scale images to \[0,1\]"),
        (dict(x=(batch()[0] * 255).byte()), "x is torch.uint8, .*float images"),
        (dict(x=batch()[0][0]), r"x is .*shape \(1, 6, 6\).*one image is x\[None\]"),
        (dict(steps=-1), "steps is -1; give a whole number, 0 or more"),
        (dict(steps=1.5), "steps is 1.5; give a whole number, 0 or more"),
        (dict(eps=-0.1), f"eps is -0.1; {FINITE}"),
        (dict(eps=math.nan), "eps is nan; give a finite number"),
        (dict(step_size=math.inf), "step_size is inf; give a finite number"),
        (dict(start=-1.0), f"start is -1.0; {FINITE}"),
        (dict(beta=1.5), rf"beta is 1.5; {FINITE} \(beta at most 1\)"),
        (dict(beta=-0.1), "beta is -0.1"),
        (dict(c=-1.0), f"c is -1.0; {FINITE}, or one for each of the 5 images"),
        (dict(c=torch.ones(3)), r"c is \[1.0, 1.0, 1.0\]; .*each of the 5 images"),
        (dict(c=math.inf), "c is inf; give a finite number"),
    ],
)
def test_bad_input_is_refused_by_name_value_and_cure(wrong, message, model):
    x, y = batch()
    settings = dict(x=x, estimator=closeness) | wrong
    with pytest.raises(ValueError, match=message):
        minmax(model, misclassified(model, y), **settings)
    if "c" not in wrong:
        with pytest.raises(ValueError, match=message):
            penalty(model, misclassified(model, y), **settings)


def test_penalty_needs_a_round():
    with pytest.raises(ValueError, match="rounds is 0; give a whole number, 1 or more"):
        penalty(build(), wild, batch()[0], estimator=closeness, rounds=0)


def test_without_similarity_the_criterion_alone_moves_and_the_first_success_is_kept(model):
    x, y = batch(4)
    seen = []
    settings = dict(steps=40, step_size=0.1, beta=0.5, eps=1.0, estimator=nothing)
    found = minmax(model, misclassified(model, y), x, on_step=seen.append, **settings)
    assert found.success.any() and (found.information[found.success] == 0).all()
    for i in found.success.nonzero().flatten():
        first = next(step for step in seen if step.criterion[i] <= 0)
        assert torch.equal(found.x_adv[i], first.x_adv[i])
    still = minmax(model, misclassified(model, y), x, **settings | dict(c=0.0, start=0.0))
    assert torch.equal(still.x_adv, x)


# --- the penalty baseline


def scripted(thresholds, x, calls):
    """Stands in for ``minmax``: image i succeeds where c reaches its threshold."""

    def run(*given, c, **settings):
        assert given == ("model", "criterion", x)
        calls.append((c.clone(), settings))
        success = c >= thresholds
        information = torch.where(success, -(c.log10() - 0.3).abs(), torch.nan)
        return AttackResult(c.view(-1, 1, 1, 1).expand_as(x).clone(), information, success)

    return run


@pytest.mark.parametrize("similar", [True, False])
def test_penalty_searches_c_tenfold_and_then_by_halves_for_every_image(monkeypatch, similar):
    x, _ = batch(5)
    thresholds, calls = torch.tensor([0.0005, 0.05, 7.0, 3.3, torch.inf]).double(), []
    monkeypatch.setattr(methods, "minmax", scripted(thresholds, x, calls))
    settings = dict(estimator=closeness, steps=3, similar=similar)
    found = penalty("model", "criterion", x, rounds=9, c=1e-3, **settings)
    assert len(calls) == 9 and all(given == settings for _, given in calls)
    tried = torch.stack([c for c, _ in calls], 1)
    for i, threshold in enumerate(thresholds.tolist()):
        lower, upper, c, best = 0.0, None, 1e-3, None
        for k in range(9):
            assert tried[i, k].item() == pytest.approx(c, rel=1e-12)
            if c >= threshold:
                upper = c
                information = -abs(math.log10(c) - 0.3)
                best = (max if similar else min)(best or (information, c), (information, c))
            else:
                lower = c
            c = 10 * c if upper is None else (lower + upper) / 2
        assert found.success[i] == (best is not None)
        if best:
            assert found.information[i].item() == pytest.approx(best[0])
            assert found.x_adv[i].unique().item() == pytest.approx(best[1])
    close(tried[4], 10.0 ** torch.arange(-3, 6).double())
    # an image that never fell holds what the first round found
    assert not found.success[4] and found.information[4].isnan()
    assert torch.equal(found.x_adv[4], torch.full_like(x[4], 1e-3))


# --- ssim


def test_ssim_is_what_a_slow_loop_finds():
    shape = (2, 3, 2, 13, 12)  # two batches of three images
    a, b = torch.rand(shape, generator=runtime.generator(2), dtype=torch.float64).numpy()
    a[0] = b[0]
    ticks = np.arange(11) - 5
    weight = np.exp(-(ticks[:, None] ** 2 + ticks**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = np.zeros((3, 2, 3, 2))
    for image, channel, i, j in np.ndindex(values.shape):
        p, q = (z[image, channel, i : i + 11, j : j + 11] for z in (a, b))
        m, n = (weight * p).sum(), (weight * q).sum()
        v, w = (weight * (p - m) ** 2).sum(), (weight * (q - n) ** 2).sum()
        c = (weight * (p - m) * (q - n)).sum()
        largest = (m * m + n * n + 1e-4) * (v + w + 9e-4)
        values[image, channel, i, j] = (2 * m * n + 1e-4) * (2 * c + 9e-4) / largest
    found = ssim(torch.from_numpy(a), torch.from_numpy(b))
    assert found.tolist() == pytest.approx(values.mean((1, 2, 3)), abs=1e-12)


# --- photos, as SVHN has them


@pytest.mark.parametrize("kind", ["convolutional", "dense"])
def test_unsupervised_examples_of_colour_images(kind):
    x = torch.rand(6, 3, 32, 32, generator=runtime.generator(0))
    model = autoencoders.train(kind, x, epochs=1, batch_size=3)
    how = Estimator(projections(5, 8), mi.Affine(8))
    if kind == "convolutional":
        how = Estimator(mi.feature_maps(model), mi.Affine(32 * 32))
    settings = dict(eps=0.1, steps=3, step_size=0.1, similar=False)
    found = minmax(model, reconstructed(model, x), x, estimator=how, **settings)
    assert found.x_adv.shape == x.shape and 0 <= found.x_adv.min() and found.x_adv.max() <= 1
    assert 0 < (found.x_adv - x).abs().max() <= 0.1 + 1e-6
