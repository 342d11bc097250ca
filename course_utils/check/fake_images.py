"""Exercises of lecture 02, from ``descent_step`` to ``swapped_gradient``."""

import torch
import torch.nn.functional as F

from course_utils.check.answers import (
    NOT_MOVED,
    SOFTMAX_TWICE,
    image_gradient,
    small_images,
    small_model,
    softmax_twice,
    step,
)
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods import attacks

C = 3.206  # the swapped loss of ten classes is C · (1 − p)


@exercise(
    "02",
    "One step of gradient descent on the image",
    level="core",
    hints=(
        "The weights stay fixed; the image is what the gradient is taken of. "
        "x.clone().requires_grad_() makes it a variable.",
        "loss = F.cross_entropy(model(x), target, reduction='sum'); "
        "g = torch.autograd.grad(loss, x)[0].",
        "Return (x - step_size * g).detach(). Minus, because the loss of the target must fall.",
    ),
    inputs=lambda: [(small_model(), small_images(), torch.arange(6), 0.5)],
    otherwise="the step is not x − step_size · ∂loss/∂x of the cross-entropy with the target.",
    mistakes={
        NOT_MOVED: [step(lambda x, g, size: x)],
        "you climb: the loss of the target grows. Descent subtracts the gradient.": [
            step(lambda x, g, size: x + size * g)
        ],
        "cross_entropy averages over the batch, so each image's step is N times too short. "
        "Use reduction='sum'.": [step(lambda x, g, size: x - size * g / len(x))],
        "that is a step along the sign; this exercise asks for plain gradient descent.": [
            step(lambda x, g, size: x - size * g.sign())
        ],
        "you clip to [0,1]; a good idea in general, but the slides do not, and this exercise asks "
        "for the plain step.": [step(lambda x, g, size: (x - size * g).clamp(0, 1))],
        "step_size is missing.": [step(lambda x, g, size: x - g)],
        SOFTMAX_TWICE: [
            step(lambda x, g, size: x - size * g, softmax_twice),
            step(lambda x, g, size: x - size * g / len(x), softmax_twice),
        ],
        "that is the step; add it to x.": [step(lambda x, g, size: -size * g)],
    },
)
def descent_step(model, x, target, step_size):
    return x - step_size * image_gradient(model, x, target)


def total(differences):
    return differences.square().flatten(1).sum(1)


def both_ways(size):
    """A wrong roughness: ``size`` of the differences across, and down, (N,)."""
    return lambda x: size(x.diff(dim=-1).flatten(1)) + size(x.diff(dim=-2).flatten(1))


@exercise(
    "02",
    "Roughness of an image",
    level="easy",
    hints=(
        "Two neighbouring pixels differ by x[..., 1:] - x[..., :-1]; and the same for rows.",
        "x.diff(dim=-1).square().flatten(1).sum(1) is the horizontal part, one number per image. "
        "Add the vertical one.",
    ),
    inputs=lambda: [(small_images(3, seed=1),)],
    mistakes={
        "only one direction is there; neighbours lie beside and below.": [
            lambda x, dim=dim: total(x.diff(dim=dim)) for dim in (-1, -2)
        ],
        "those are absolute differences; this penalty squares them.": [
            both_ways(lambda rows: rows.abs().sum(1))
        ],
        "that is the mean over the pixels; this penalty sums them.": [
            both_ways(lambda rows: rows.square().mean(1))
        ],
        "that is the square root; this penalty leaves it out.": [
            lambda x: attacks.roughness(x).sqrt()
        ],
        "torch.roll wraps around: the left edge is no neighbour of the right one. "
        "Use diff, or slices.": [lambda x: total(x - x.roll(1, -1)) + total(x - x.roll(1, -2))],
    },
)
def roughness(x):
    return attacks.roughness(x)


def some_logits(dtype):
    """Logits (6, 10), from an even row to rows that are nearly sure of one class."""
    size = torch.tensor([0.1, 1.0, 2.0, 3.0, 6.0, 6.0], dtype=dtype)[:, None]
    return size * torch.randn(6, 10, generator=runtime.generator(1), dtype=dtype)


def keras(swap=True, weight=1.0):
    """Keras' loss: the logarithms are those of the clipped target, or else of the clipped p."""

    def loss(logits, target, probabilities=lambda logits: logits.softmax(1)):
        p = probabilities(logits)
        one_hot = F.one_hot(target, 10).to(p)
        true, clipped = (p, one_hot) if swap else (one_hot, p)
        clipped = clipped.clamp(1e-7, 1 - 1e-7)
        return -(true * clipped.log() + weight * (1 - true) * (1 - clipped).log()).mean(1)

    return loss


@exercise(
    "02",
    "The swapped loss by hand",
    level="core",
    hints=(
        "Three tensors: p = logits.softmax(1), the one-hot target, and the target clipped to "
        "[1e-7, 1 − 1e-7]. The logarithms are taken of the clipped target.",
        "F.one_hot(target, 10).float().clamp(1e-7, 1 - 1e-7) is the clipped target, in float32.",
        "−(p · log clipped + (1 − p) · log(1 − clipped)), then .mean(1), over the ten outputs.",
    ),
    inputs=lambda: [(some_logits(torch.float32), torch.arange(6))],
    otherwise=lambda case, got, want: (
        f"the first loss is {want[0]:.5f} and yours {got[0]:.5f}. Is a constant rounded?"
    ),
    mistakes={
        "that is the right order. The slides' code swaps the two.": [keras(swap=False)],
        "that is cross-entropy.": [attacks.neg_log_likelihood],
        "that is the sum over the ten outputs; Keras takes their mean.": [
            lambda logits, target: 10 * keras()(logits, target)
        ],
        "those are logits; the loss takes probabilities: logits.softmax(1).": [
            lambda logits, target: keras()(logits, target, lambda logits: logits)
        ],
        "the term with 1 − p is missing.": [keras(weight=0.0)],
        "both constants are 16.1: you clip in float64. Keras computes in float32, where 1 − 1e-7 "
        "is 0.99999988.": [lambda *case: keras()(case[0].double(), case[1])],
    },
)
def swapped_loss(logits, target):
    return attacks.swapped_bce(logits, target)


LOSSES = (
    lambda p: C * (1 - p),
    lambda p: -p.log(),
    lambda p: -(p.log() + 9 * (1 - (1 - p) / 9).log()) / 10,
)


def printed_run(loss, size):
    """Ten losses of a toy descent, each before a step, and p after the last."""
    z = torch.tensor(-2.5, dtype=torch.float64)  # the target's logit, over the nine others'
    losses = []
    for _ in range(10):
        z.requires_grad_()
        losses.append(loss(z.sigmoid()))
        z = (z - size * torch.autograd.grad(losses[-1], z)[0]).detach()
    return torch.stack(losses).detach(), z.sigmoid()


def printed_runs():
    """Two unseen runs of each loss: losses (6, 10) and final_p (6,)."""
    settings = ((0, 0.7), (1, 0.8), (2, 6.0), (1, 2.5), (0, 0.45), (2, 9.0))
    runs = [printed_run(LOSSES[kind], size) for kind, size in settings]
    return [tuple(map(torch.stack, zip(*runs, strict=True)))]


def nearest(losses, place=-1):
    """The loss whose value at the end is nearest, as a ratio, to the one printed at ``place``."""

    def answer(printed, final_p):
        found = torch.stack([loss(final_p) for loss in losses])
        return (found / printed[:, place]).log().abs().argmin(0)

    return answer


@exercise(
    "02",
    "Which loss printed these?",
    level="core",
    hints=(
        "Work out all three losses at final_p: three candidates for the eleventh number.",
        "The last steps take away a third at most, so the true candidate is the one nearest to "
        "losses[:, -1], as a ratio.",
        "torch.stack the candidates, divide by losses[:, -1], and take .log().abs().argmin(0).",
    ),
    inputs=printed_runs,
    mistakes={
        "you say 0 for every row: do you compare with the first number, or take the largest? "
        "The end of the series decides.": [nearest(LOSSES, 0)],
        "the constant c = 3.206 is missing: the swapped loss is c·(1 − p).": [
            nearest((lambda p: 1 - p, *LOSSES[1:]))
        ],
        "BCE is the mean over the ten outputs, not their sum.": [
            nearest((*LOSSES[:2], lambda p: 10 * LOSSES[2](p)))
        ],
        "you take the smallest. The right one continues the series.": [
            lambda losses, final_p: torch.full((len(losses),), 2)
        ],
    },
)
def which_loss(losses, final_p):
    return nearest(LOSSES)(losses, final_p)


def slope(factor):
    """``factor(p, own, c)`` times p − one-hot, (N, 10); own, (N, 1), is p of the target."""

    def answer(logits, target, c):
        p = logits.softmax(1)
        own = p.gather(1, target[:, None])
        return factor(p, own, c) * (p - F.one_hot(target, 10))

    return answer


@exercise(
    "02",
    "Where the swapped loss is flat",
    level="hard",
    hints=(
        "∂p_t/∂z_j = p_t · (1[j = t] − p_j) for the softmax; the loss is c·(1 − p_t).",
        "c · p_t · (p − one-hot of the target), with p_t = p.gather(1, target[:, None]).",
    ),
    inputs=lambda: [(some_logits(torch.float64), torch.arange(6), C)],
    mistakes={
        "that is the gradient of cross-entropy, which is not flat where p is near 0. "
        "The factor c·p_t is missing.": [slope(lambda p, own, c: 1)],
        "the factor p_t is missing; it makes the loss flat.": [slope(lambda p, own, c: c)],
        "the factor c is missing.": [slope(lambda p, own, c: own)],
        "you return the gradient of c·p_t. The loss is c·(1 − p_t): its sign is the other.": [
            slope(lambda p, own, c: -c * own)
        ],
        "each logit has the factor p_t, not its own p.": [slope(lambda p, own, c: c * p)],
        "that is the gradient in p; the logits go through the softmax first.": [
            lambda logits, target, c: -c * F.one_hot(target, 10).double()
        ],
    },
)
def swapped_gradient(logits, target, c):
    return slope(lambda p, own, c: c * own)(logits, target, c)
