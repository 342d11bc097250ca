"""Exercises of lecture 05: ``linear_adversary`` and ``robust_logistic``."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime

WEIGHTS = (0.5, -1.5, 2.0, -0.25, 1.0)
ZERO_ONE = "2y − 1 turns labels 0 and 1 into −1 and +1; y holds −1 and +1 already."
SAME = (
    "all labels get the same perturbation; what harms an image labelled {} helps one labelled {}. "
    "Where is y?"
)


def weights_and_labels():
    y = torch.tensor([1, -1, -1, 1], dtype=torch.float64)
    return [(torch.tensor(WEIGHTS, dtype=torch.float64), y, 0.2)]


def along(direction, labels=torch.clone):
    """A wrong adversary: −eps · labels(y) · direction(w)."""
    return lambda w, y, eps: -eps * labels(y)[:, None] * direction(w)


def show_drop(case, got, want):
    w, y, eps = case
    delta = got.view(4, 5)
    if delta.abs().max() > eps + 1e-6:
        return (
            f"a pixel moves by {delta.abs().max():.3g}, and eps is {eps}. "
            "Every pixel may move by eps at most."
        )
    drop = 0 - y * (delta @ w)
    best = eps * w.abs().sum()
    i = answers.first_difference(drop, best)
    return (
        f"for an image labelled {y[i]:+.0f} the margin y(⟨w, x⟩ + b) falls by {drop[i]:.3g}, "
        f"and the worst perturbation takes {best:.3g}."
    )


@exercise(
    "05",
    "The exact adversary of a linear model",
    hints=(
        "The margin y(⟨w, x + δ⟩ + b) falls most when every pixel takes away as much as it can: "
        "look at one pixel, with weight w_i.",
        "Pixel i changes the margin by y · w_i · δ_i, and |δ_i| ≤ eps. "
        "So δ_i is eps or −eps, whichever makes y · w_i · δ_i negative.",
        "-eps * y[:, None] * w.sign(): shapes (N, 1) and (pixels,) give (N, pixels).",
    ),
    inputs=weights_and_labels,
    otherwise=show_drop,
    mistakes={
        "that helps the model: every margin y(⟨w, x⟩ + b) grows. "
        "The adversary lowers it; a minus is missing.": [along(torch.sign, torch.neg)],
        SAME.format("+1", "−1"): [along(torch.sign, torch.ones_like)],
        SAME.format("−1", "+1"): [along(torch.sign, lambda y: -torch.ones_like(y))],
        "eps is missing: the pixels move by 1.": [lambda w, y, eps: -y[:, None] * w.sign()],
        "that goes along w; in L∞ every pixel may move by eps, also where its weight is small. "
        "Take the sign of w.": [along(torch.clone)],
        "that is the worst case in L2. In L∞ every pixel may move by eps: take the sign of w.": [
            along(lambda w: w / w.norm())
        ],
        "only the pixel with the largest weight moves by eps; all of them may. "
        "Take the sign of w.": [along(lambda w: w / w.abs().max())],
        ZERO_ONE: [along(torch.sign, lambda y: 2 * y - 1)],
        "images labelled −1 are left alone. y holds −1 and +1, not 0 and 1.": [
            along(torch.sign, torch.relu)
        ],
    },
)
def linear_adversary(w, y, eps):
    return -eps * y[:, None] * w.sign()


OVERFLOW = (
    "for margins like −2000 exp overflows: inf or nan. "
    "softplus(−z) is log(1 + exp(−z)) without that."
)


def linear_models():
    """Usual images, and some that are far on the wrong side, where exp overflows."""
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    b = torch.tensor(-0.4, dtype=torch.float64)
    x = torch.rand(6, 5, generator=runtime.generator(0), dtype=torch.float64)
    y = torch.tensor([1, -1, -1, 1, -1, 1], dtype=torch.float64)
    return [(w, b, x, y, 0.3), (w.clone(), b.clone(), 2000 * x, -y, 0.3)]


def psi(z):
    return F.softplus(-z)


def l1(w):
    return w.abs().sum()


def of_margins(loss, norm=l1):
    """A wrong loss: ``loss(margins, size)``, where size is eps times ``norm(w)``."""
    return lambda w, b, x, y, eps: loss(y * (x @ w + b), eps * norm(w))


def inside(norm, outer=psi):
    """A wrong loss: the mean Ψ(margin − size), with another norm or ``outer`` for Ψ."""
    return of_margins(lambda m, size: outer(m - size).mean(), norm)


def relabelled(margin):
    """A wrong loss: with ``margin(w, b, x, y, size)`` in the worst case."""
    return lambda w, b, x, y, eps: psi(margin(w, b, x, y, eps * l1(w))).mean()


def show_loss(case, got, want):
    if case[2].max() > 1:
        return OVERFLOW
    return f"for the test images you return {got.item():.4g} and not {want.item():.4g}."


@exercise(
    "05",
    "The robust logistic loss",
    hints=(
        "The worst case lowers every margin y(⟨w, x⟩ + b) by the same amount, eps · ‖w‖₁, "
        "whatever the label. Then comes Ψ, then the mean.",
        "log(1 + exp(−z)) overflows where z is very negative. "
        "torch.nn.functional.softplus(v) is log(1 + exp(v)), and does not.",
        "margin = y * (x @ w + b) - eps * w.abs().sum(); return softplus(-margin).mean().",
    ),
    inputs=linear_models,
    learns=("w", "b"),
    otherwise=show_loss,
    mistakes={
        "that is the clean loss; the adversary takes eps · ‖w‖₁ from every margin.": [
            of_margins(lambda m, size: psi(m).mean())
        ],
        "the norm has the wrong sign: the adversary lowers the margin.": [
            of_margins(lambda m, size: psi(m + size).mean())
        ],
        "that is L1 regularisation, the norm beside Ψ. "
        "The worst case has it inside Ψ, in the margin.": [
            of_margins(lambda m, size: psi(m).mean() + size)
        ],
        "eps is missing: the margin falls by eps · ‖w‖₁.": [
            lambda w, b, x, y, eps: inside(l1)(w, b, x, y, 1)
        ],
        "that is the L2 norm of w. "
        "Pixels that may each move by eps take the sum of all |w_i|: the L1 norm.": [
            inside(torch.norm)
        ],
        "that is the L∞ norm of w. The perturbation is bounded in L∞; "
        "the weights are measured in the dual norm, L1.": [inside(lambda w: w.abs().max())],
        "without absolute values, weights of both signs cancel.": [inside(torch.sum)],
        "that is the mean of |w_i|; the L1 norm is their sum.": [inside(lambda w: w.abs().mean())],
        "y multiplies the norm too, which helps the images labelled −1. "
        "Subtract the norm outside y(…).": [
            relabelled(lambda w, b, x, y, size: y * (x @ w + b - size))
        ],
        "that is the sum over the images; take the mean.": [
            of_margins(lambda m, size: psi(m - size).sum())
        ],
        "Ψ(z) is log(1 + exp(−z)), and you have exp(+z): a large margin must cost little.": [
            inside(l1, F.softplus)
        ],
        "b is missing.": [relabelled(lambda w, b, x, y, size: y * (x @ w) - size)],
        "that is the mean margin in the worst case; Ψ is missing.": [inside(l1, torch.clone)],
        ZERO_ONE: [relabelled(lambda w, b, x, y, size: (2 * y - 1) * (x @ w + b) - size)],
        "scores of shape (N, 1) times y of shape (N,) pair every image with every label. "
        "x @ w has shape (N,).": [
            relabelled(lambda w, b, x, y, size: y * (x @ w + b)[:, None] - size)
        ],
        "the number is right, but the norm is a constant for the gradient: "
        "nothing would make w smaller. Do not detach it.": [inside(lambda w: l1(w.detach()))],
        OVERFLOW: [
            inside(l1, lambda z: (1 + (-z).exp()).log()),
            inside(l1, lambda z: torch.where(z < -30, -z, (-z).exp().log1p())),
        ],
    },
)
def robust_logistic(w, b, x, y, eps):
    return psi(y * (x @ w + b) - eps * l1(w)).mean()
