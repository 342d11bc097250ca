"""Linear models: closed forms against brute force and PGD, the robust problem against its proof."""

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from course_utils.core import models, runtime
from course_utils.core.data import Images
from course_utils.core.geometry import norm
from course_utils.methods import linear
from course_utils.methods.attacks import pgd, predict, success_rate
from course_utils.methods.linear import (
    convex_optimum,
    robust_error,
    weights,
    worst_case,
    worst_margins,
)
from course_utils.methods.objectives import robust_logistic

NORMS = {"inf": 0.2, 2: 0.7, 1: 1.5}
every_norm = pytest.mark.parametrize("p", NORMS)
every_kind = pytest.mark.parametrize("kind", ["binary", "two classes", "many classes"])


def problem(kind, pixels=16):
    """A model, images with pixels at both ends of the box, and labels of which some are wrong."""
    with runtime.seeded(3):
        if kind == "binary":
            model = models.binary_logistic(pixels)
        else:
            model = models.logistic(pixels, 2 if kind == "two classes" else 4)
    draws = runtime.generator(1)
    x = 1.3 * torch.rand(30, 1, 1, pixels, dtype=torch.float64, generator=draws) - 0.15
    x = x.clamp(0, 1)
    return model.double(), x, torch.arange(30) % model(x).shape[1]


def margins(model, x, y):
    """z_j − z_y for every class, −inf for y itself."""
    z = model(x).detach()
    return (z - z.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)


def corners(p, pixels):
    """Unit perturbations that hold a linear function's largest value: vertices, or a fine circle."""
    if p == 2:
        angle = torch.linspace(0, 2 * math.pi, 40_001, dtype=torch.float64)[:, None]
        return torch.cat([angle.cos(), angle.sin()], 1)
    if p == 1:
        return torch.cat([torch.eye(pixels), -torch.eye(pixels)]).double()
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=pixels)), dtype=torch.float64)


# --- closed forms


@every_kind
@every_norm
def test_the_closed_form_is_what_brute_force_finds(p, kind):
    pixels = 2 if p == 2 else 5
    model, x, y = problem(kind, pixels)
    deltas = NORMS[p] * corners(p, pixels)[:: 10 if p == 2 else 1, None, None, None]
    tries = torch.stack([margins(model, x + delta, y) for delta in deltas])
    exact = worst_margins(model, x, y, NORMS[p], p)
    torch.testing.assert_close(exact, tries.amax(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(worst_margins(model, x, y, 0, p), margins(model, x, y))


@every_kind
def test_in_the_box_it_is_what_brute_force_finds(kind):
    model, x, y = problem(kind, 5)
    assert (x == 0).any() and (x == 1).any()
    deltas = 0.2 * corners("inf", 5)[:, None, None, None]
    tries = torch.stack([margins(model, (x + delta).clamp(0, 1), y) for delta in deltas])
    exact = worst_margins(model, x, y, 0.2, "inf", box=True)
    torch.testing.assert_close(exact, tries.amax(0))
    assert (exact <= worst_margins(model, x, y, 0.2, "inf") + 1e-12).all()
    inner = 0.3 + 0.4 * x  # where no perturbation meets the end of the box
    torch.testing.assert_close(
        worst_margins(model, inner, y, 0.2, box=True), worst_margins(model, inner, y, 0.2)
    )


@every_kind
@every_norm
def test_pgd_reaches_the_closed_form_and_never_beats_it(p, kind):
    model, x, y = problem(kind)
    exact = worst_margins(model, x, y, NORMS[p], p)
    x_adv = pgd(model, x, y, eps=NORMS[p], norm=p, box=False)
    assert (margins(model, x_adv, y) <= exact + 1e-9).all()
    w, b = (value.detach() for value in weights(model))
    reached = torch.full_like(exact, -torch.inf)
    # class j against the label alone is a linear function, which PGD climbs
    for j, label in itertools.permutations(range(len(w)), 2):
        pair = models.logistic(16, 2).double()
        pair.output.weight.data, pair.output.bias.data = w[[label, j]], b[[label, j]]
        rows = y == label
        zeros = torch.zeros_like(y[rows])
        x_adv = pgd(pair, x[rows], zeros, eps=NORMS[p], norm=p, box=False)
        reached[rows, j] = margins(pair, x_adv, zeros)[:, 1]
        assert (norm(x_adv - x[rows], p) <= NORMS[p] + 1e-9).all()
    torch.testing.assert_close(reached, exact, atol=1e-5, rtol=0)


@every_kind
def test_pgd_in_the_box_reaches_the_closed_form_in_the_box(kind):
    model, x, y = problem(kind)
    exact = worst_margins(model, x, y, 0.2, box=True)
    reached = margins(model, pgd(model, x, y, eps=0.2), y)
    assert (reached <= exact + 1e-9).all()
    if kind != "many classes":
        torch.testing.assert_close(reached, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("p", "box"), [("inf", False), ("inf", True), (2, False), (1, False)])
@every_kind
def test_the_worst_case_attains_the_worst_margin(kind, p, box):
    model, x, y = problem(kind)
    x_adv = worst_case(model, x, y, NORMS[p], p, box=box)
    assert x_adv.shape == x.shape and not x_adv.requires_grad
    assert (norm(x_adv - x, p) <= NORMS[p] + 1e-12).all()
    exact = worst_margins(model, x, y, NORMS[p], p, box=box)
    torch.testing.assert_close(margins(model, x_adv, y).amax(1), exact.amax(1))
    assert not box or (x_adv.min() >= 0 and x_adv.max() <= 1)


def test_two_classes_have_one_worst_perturbation_each():
    model, x, y = problem("binary")
    delta = (worst_case(model, x, y, 0.2) - x).flatten(1)
    for label, sign in ((0, 1), (1, -1)):
        expected = sign * 0.2 * model.output.weight.detach().sign()
        torch.testing.assert_close(delta[y == label], expected.expand(15, -1))


@pytest.mark.parametrize("box", [False, True])
@every_kind
def test_robust_error_is_the_share_of_images_that_can_be_misclassified(kind, box):
    model, x, y = problem(kind)
    model, images = model.float(), Images(x.float(), y, tuple("abcd"), "noise")
    error = robust_error(model, images, 0.05, box=box)
    assert 0 < error < 1
    worst = worst_case(model, images.x, y, 0.05, box=box)
    assert error == pytest.approx(success_rate(model, worst, y))
    wrong = (predict(model, images.x).argmax(1) != y).float().mean().item()
    assert robust_error(model, images, 0) == pytest.approx(wrong)
    assert success_rate(model, pgd(model, images.x, y, eps=0.05, box=box), y) <= error
    for parameter in model.parameters():
        parameter.data.zero_()
    assert robust_error(model, images, 0.05, box=box) == 1  # a tie counts as wrong


def test_the_box_needs_linf_and_the_closed_form_a_linear_model():
    model, x, y = problem("binary")
    for p, function in itertools.product((1, 2), (worst_margins, worst_case)):
        with pytest.raises(ValueError, match=f'is True and norm {p}; .*"inf" only.*attacks.pgd'):
            function(model, x, y, 0.1, p, box=True)
    empty, nested = nn.Sequential(nn.Flatten()), nn.Sequential(model, nn.ReLU())
    for other in (models.mlp(4, pixels=16), empty, nested):
        with pytest.raises(ValueError, match=r"model has the layers .*models.logistic\(\)"):
            worst_margins(other, x, y, 0.1)
    with pytest.raises(ValueError, match='norm is 3; use 1, 2 or "inf"'):
        worst_margins(model, x, y, 0.1, 3)


# --- the robust problem


def two_classes(n=60, noise=0.35, share=0.5, seed=0):
    """Images of 2×2 pixels in two classes that overlap."""
    draws = runtime.generator(seed)
    y = (torch.arange(n) < share * n).long()
    x = 0.35 + 0.3 * y[:, None] * torch.tensor([1.0, 0.5, -0.3, 0.0])
    x += noise * (torch.rand(n, 4, generator=draws) - 0.5)
    return Images(x.clamp(0, 1).view(n, 1, 2, 2), y, ("0", "1"), "noise")


def objective(images, eps, variables):
    """The mean worst-case loss of the weights and bias in ``variables``."""
    x, y = images.x.flatten(1).double().numpy(), 2 * images.y.numpy() - 1
    w, b = variables[:-1], variables[-1]
    return np.logaddexp(0, -(y * (x @ w + b) - eps * np.abs(w).sum())).mean()


PROBLEMS = {
    "usual": ({}, 0.05),
    "unequal classes": (dict(share=0.2), 0.05),
    "separable": (dict(noise=0.1), 0.02),
    "hard": ({}, 0.12),
}


@pytest.mark.parametrize(("kind", "eps"), PROBLEMS.values(), ids=PROBLEMS)
def test_the_optimum_is_certified_and_no_other_optimiser_beats_it(kind, eps):
    images = two_classes(**kind)
    best = convex_optimum(images, eps)
    assert best.bound > 0 or kind == {"noise": 0.1}
    assert -1e-12 <= best.gap <= 1e-4  # but for rounding, 0 or more
    solution = np.append(best.weight, best.bias)
    assert best.objective == pytest.approx(objective(images, eps, solution), abs=1e-12)
    random = np.random.default_rng(0)
    for scale in (0.1, 1, 10):
        start = scale * random.normal(size=5)
        assert best.bound <= objective(images, eps, start)
        options = {"ftol": 1e-10, "xtol": 1e-8}
        loss = partial(objective, images, eps)
        found = minimize(loss, start, method="Powell", options=options)
        assert best.objective <= found.fun + 1e-7
        assert best.bound <= found.fun
        near = solution + 1e-2 * scale * random.normal(size=(50, 5))
        assert min(objective(images, eps, v) for v in near) >= best.objective - 1e-9


@pytest.mark.parametrize("eps", [0.05, 0.12, 2.0])
def test_the_bound_holds_wherever_the_search_ended(eps, monkeypatch):
    """The proof does not need the optimiser: from worse weights it is weaker, never wrong."""
    images = two_classes(share=0.2)
    best = convex_optimum(images, eps)
    x, y = images.x.flatten(1).double().numpy(), 2.0 * images.y.numpy() - 1
    random, bounds = np.random.default_rng(0), []
    for scale in 20 * (0, 0.01, 0.1, 1):
        w, b = best.weight * (1 + scale * random.normal(size=4)), best.bias * (1 - random.uniform())
        p = 1 / (1 + np.exp(y * (x @ w + b) - eps * np.abs(w).sum()))
        result = w, b, objective(images, eps, np.append(w, b)), p
        monkeypatch.setattr(linear, "minimise", lambda *_, result=result: result)
        bounds.append(convex_optimum(images, eps).bound)
    assert max(bounds) <= best.objective + 1e-12
    # at eps = 2 every p lies within the constraints once its classes are balanced
    assert eps < 2 or min(bounds) > 0.1


def test_against_too_strong_an_adversary_only_the_shares_of_the_classes_are_left():
    best = convex_optimum(two_classes(share=0.2), 2.0)
    assert np.abs(best.weight).max() < 1e-6
    assert best.bias == pytest.approx(math.log(0.2 / 0.8), abs=1e-4)
    assert best.objective == pytest.approx(-0.2 * math.log(0.2) - 0.8 * math.log(0.8), abs=1e-8)
    assert -1e-12 <= best.gap <= 1e-4


def test_the_optimum_goes_into_a_model():
    images = two_classes()
    best = convex_optimum(images, 0.05)
    model = best.put_into(models.binary_logistic(4).train())
    assert not model.training
    z = images.x.flatten(1).double().numpy() @ best.weight + best.bias
    torch.testing.assert_close(model(images.x)[:, 1].detach(), torch.from_numpy(z).float())
    random = models.binary_logistic(4)
    loss, other = (robust_logistic(net, images.x, images.y, eps=0.05) for net in (model, random))
    assert loss.item() == pytest.approx(best.objective, abs=1e-5) and other > best.bound


def test_an_optimum_needs_a_positive_eps_and_two_classes():
    images = two_classes()
    for eps in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"eps is {eps}; give a number above 0"):
            convex_optimum(images, eps)
    later = replace(images, y=images.y + 1, classes=tuple("abc"))
    for some, labels in ((images[images.y == 1], r"\[1\]"), (later, r"\[1, 2\]")):
        with pytest.raises(ValueError, match=f"labels {labels}; give two classes labelled 0 and 1"):
            convex_optimum(some, 0.1)
