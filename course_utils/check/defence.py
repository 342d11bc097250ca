"""Exercises of lecture 13: a squeeze, three poisons, and the right side of the inequality."""

from functools import partial

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime

AGAINST = "turns the gradients against each other. 1 − cos."
APART = (
    "a cosine for each tensor, so that a small bias counts as much as a large layer. "
    "Join all tensors into one vector first."
)
COMPARED = "tensor is compared; all parameters count. Join them into one vector."
UNSCALED = "⟨a, b⟩ is not divided by ‖a‖ ‖b‖: a longer gradient alone would make the loss fall."
SIGN = "rewards the opposite direction as much as the right one; the sign of the cosine counts."
cosine = partial(F.cosine_similarity, dim=0)


def gradient_inputs():
    """Two similar gradients as tuples, and two opposite ones as lists."""
    draw = partial(torch.randn, generator=runtime.generator(2), dtype=torch.float64)
    a = [0.5 * draw(5, 2, 3), 2 * draw(5), draw(4, 5), 3 * draw(4)]
    b = [0.8 * a[0] + draw(5, 2, 3), draw(5) - 0.2 * a[1], a[2] + draw(4, 5), 0.3 * a[3] + draw(4)]
    return [(tuple(a), tuple(b)), ([2 * v for v in a[1:]], [-w for w in b[1:]])]


def row(tensors):
    return torch.cat([v.flatten() for v in tensors])


def joined(value):
    """A wrong loss: ``value(u, v)`` of the joined vectors."""
    return lambda a, b: value(row(a), row(b))


def of_cosine(value):
    """A wrong loss: ``value(c)`` of their cosine."""
    return joined(lambda u, v: value(cosine(u, v)))


def tensorwise(value):
    """A wrong loss: ``value(cosines)``, one cosine for each tensor."""

    def wrong(a, b):
        return value(torch.stack([joined(cosine)([p], [q]) for p, q in zip(a, b, strict=True)]))

    return wrong


@exercise(
    "13",
    "Gradients that point the same way",
    level="hard",
    hints=(
        "All parameters together have one gradient, one long vector: flatten each tensor and join "
        "them. How do two vectors compare in direction?",
        "The cosine is ⟨a, b⟩ / (‖a‖ ‖b‖): 1 in the same direction, −1 in the opposite one. "
        "A loss should be smallest where it is largest.",
        "a = torch.cat([g.flatten() for g in g_poison]), b likewise; "
        "return 1 - F.cosine_similarity(a, b, dim=0).",
    ),
    inputs=gradient_inputs,
    learns=("g_poison",),
    otherwise=lambda case, got, want: (
        f"for the test gradients, given as {type(case[0]).__name__}s, "
        f"1 − cos is {want.item():.4g}; you return {got.item():.4g}."
    ),
    mistakes={
        f"that is the cosine itself: minimising it {AGAINST}": [joined(cosine)],
        "the direction is right, the number is not: 1 − cos is 0 where the gradients agree.": [
            of_cosine(torch.neg)
        ],
        # This one comes before 1 + cos, which is the same for the opposite gradients.
        f"the absolute value {SIGN}": [of_cosine(lambda c: 1 - c.abs())],
        f"the sign is turned: minimising cos − 1 {AGAINST}": [of_cosine(lambda c: c - 1)],
        f"the sign is turned: minimising 1 + cos {AGAINST}": [of_cosine(lambda c: 1 + c)],
        APART: [
            tensorwise(lambda each: 1 - each.mean()),
            tensorwise(lambda each: (1 - each).sum()),
            tensorwise(lambda each: 1 - each.sum()),
        ],
        f"only the first {COMPARED}": [tensorwise(lambda each: 1 - each[0])],
        "that is a distance, and depends on the lengths; "
        "only the direction counts here: 1 − cos.": [
            joined(lambda u, v: (u - v).square().sum()),
            joined(torch.dist),
        ],
        UNSCALED: [joined(lambda u, v: 1 - u @ v)],
        f"{UNSCALED} And 1 − cos.": [joined(torch.dot), joined(lambda u, v: -u @ v)],
        "the number is right, but its gradient is not: numerator and norm must both move with "
        "g_poison. Is something detached?": [
            joined(lambda u, v: 1 - u @ v / (u.norm().detach() * v.norm()))
        ],
    },
)
def matching_loss(g_poison, g_target):
    return 1 - joined(cosine)(g_poison, g_target)


IMAGE = "that is the image; return the noise alone: subtract x again."


def noise_inputs():
    x = answers.small_images()
    draw = torch.rand(x.shape, generator=runtime.generator(1), dtype=torch.float64)
    return [(answers.small_model(), x, fits(x, 0.4 * draw - 0.2, 0.1), torch.arange(6), 0.1, 0.03)]


def fits(x, delta, eps):
    return (x + delta.clamp(-eps, eps)).clamp(0, 1) - x


def descended(x, delta, step, eps):
    return fits(x, delta - step, eps)


def noise(change, at=torch.add, loss=F.cross_entropy, take=torch.sign):
    """A wrong step: ``change(x, delta, step, eps)``; its gradient is taken at ``at(x, delta)``."""

    def wrong(model, x, delta, y, eps, step_size):
        g = answers.image_gradient(model, at(x, delta), y, loss)
        return change(x, delta, step_size * take(g), eps)

    return wrong


minimised = noise(descended)


def leaves_bounds(case, got, want):
    _, x, _, _, eps, _ = case
    image = x.flatten() + got
    if got.abs().max() > eps + 1e-6:
        return f"the noise reaches {got.abs().max():.3g}, and eps is {eps}: clamp delta to ±eps."
    if image.min() < -1e-6 or image.max() > 1 + 1e-6:
        reach = f"x + delta reaches from {image.min():.3g} to {image.max():.3g}"
        return f"{reach}; that is no image. Clip to [0,1]."
    right = "delta − step_size · sign of the gradient at x + delta, clamped."
    return f"the noise stays in its bounds, but it is not {right}"


@exercise(
    "13",
    "One step of error-minimising noise",
    level="core",
    hints=(
        "It is a PGD step the other way: the noise makes the training loss SMALLER, so that the "
        "victim finds nothing left to learn.",
        "Gradient of the cross-entropy at x + delta, with respect to the image; "
        "delta - step_size * g.sign(), clamped to ±eps.",
        "delta = (delta - step_size * g.sign()).clamp(-eps, eps); "
        "return (x + delta).clamp(0, 1) - x. The noise, not the image.",
    ),
    inputs=noise_inputs,
    otherwise=leaves_bounds,
    mistakes={
        "delta comes back as it went in. Is the step subtracted, and is the result returned?": [
            noise(lambda x, d, s, eps: d)
        ],
        "the step goes up: that is the noise of an adversary. "
        "Error-MINIMISING noise subtracts step · sign of the gradient.": [
            noise(lambda x, d, s, eps: fits(x, d + s, eps)),
            noise(lambda x, d, s, eps: (d + s).clamp(-eps, eps)),
            noise(lambda x, d, s, eps: d + s),
        ],
        "nothing brings delta back: clamp it to ±eps, and x + delta to [0,1].": [
            noise(lambda x, d, s, eps: d - s)
        ],
        "x + delta leaves [0,1]; such pixels do not exist, and a file would cut them off. "
        "delta = (x + delta).clamp(0, 1) - x.": [
            noise(lambda x, d, s, eps: (d - s).clamp(-eps, eps))
        ],
        IMAGE: [noise(lambda x, *rest: x + descended(x, *rest))],
        "the noise so far is forgotten: the step starts from delta, not from 0.": [
            noise(lambda x, d, s, eps: fits(x, -s, eps))
        ],
        "that is the step alone; add it to delta, then clamp.": [noise(lambda x, d, s, eps: -s)],
        "the gradient is taken at x; take it where the victim looks, at x + delta.": [
            noise(descended, at=lambda x, delta: x)
        ],
        "the gradient is taken at delta alone; the model sees x + delta.": [
            noise(descended, at=lambda x, delta: delta)
        ],
        "that is the gradient itself; the step goes along its sign.": [
            noise(descended, take=torch.clone)
        ],
        "step_size is missing: every pixel jumps to the bound.": [
            noise(lambda x, d, s, eps: fits(x, d - s.sign(), eps))
        ],
        "eps and step_size are exchanged.": [
            lambda model, x, d, y, eps, step_size: minimised(model, x, d, y, step_size, eps)
        ],
        answers.SOFTMAX_TWICE: [noise(descended, loss=answers.softmax_twice)],
    },
)
def min_min_step(model, x, delta, y, eps, step_size):
    return minimised(model, x, delta, y, eps, step_size)


def grey_inputs():
    """Pixels in no order, with both ends of [0,1] and none halfway between two levels."""
    return [(answers.small_images(seed=levels), levels) for levels in (2, 4, 9)]


@exercise(
    "13",
    "A squeeze to a few grey values",
    level="easy",
    hints=(
        "With two values a pixel becomes 0 or 1, whichever is nearer. With three, 0, 0.5 or 1. "
        "How far apart are the values in general?",
        "There are levels − 1 gaps between 0 and 1. Stretch x so that the values become the whole "
        "numbers from 0 to levels − 1; what brings a pixel to the nearest?",
        "steps = levels - 1; return (x * steps).round() / steps.",
    ),
    inputs=grey_inputs,
    otherwise="the result is not the nearest of the values 0, 1/(levels − 1), …, 1.",
    mistakes={
        "levels values have one gap fewer: divide [0,1] into levels − 1 parts.": [
            lambda x, levels: (x * levels).round() / levels
        ],
        "that rounds down; take the nearest value.": [
            lambda x, levels: (x * (levels - 1)).floor() / (levels - 1),
            lambda x, levels: (x * levels).floor() / levels,
        ],
        "the values are whole numbers; bring them back to [0,1].": [
            lambda x, levels: (x * (levels - 1)).round()
        ],
    },
)
def quantise(x, levels):
    return (x * (levels - 1)).round() / (levels - 1)


def patch_inputs():
    signs = torch.randint(2, (3, 2, 2), generator=runtime.generator(0)) * 2.0 - 1
    wide = torch.randint(2, (4, 3, 2), generator=runtime.generator(1)) * 2.0 - 1
    return [
        (torch.tensor([2, 0, 1, 1, 0]), signs, 3, 0.2),
        (torch.tensor([3, 1, 0, 2]), wide, 2, 0.1),
    ]


def filled(signs, patch):
    return signs.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]


@exercise(
    "13",
    "A poison that any linear model can read",
    level="core",
    hints=(
        "Each class has a small picture of signs, such as 7×7. First pick the right one for each "
        "image, then let every sign fill a square of patch × patch pixels.",
        "signs[y] has shape (N, h, w). repeat_interleave(patch, dim) repeats every row or column "
        "patch times in place; do it for both. One channel is still missing.",
        "eps * signs[y].repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None].",
    ),
    inputs=patch_inputs,
    otherwise="the signs of class y[i], each filling patch × patch pixels, times eps, are another "
    "noise.",
    mistakes={
        "eps is missing: the noise is ±1.": [lambda y, signs, patch, eps: filled(signs[y], patch)],
        "the small picture is laid side by side; each sign shall fill a square: "
        "repeat_interleave, not repeat.": [
            lambda y, signs, patch, eps: eps * signs[y].repeat(1, patch, patch)[:, None]
        ],
        "the noise is turned: every sign is exchanged.": [
            lambda y, signs, patch, eps: -eps * filled(signs[y], patch)
        ],
        "the signs are those of class 0, 1, 2, … in the order of the images; use y.": [
            lambda y, signs, patch, eps: (
                eps * filled(signs[torch.arange(len(y)) % len(signs)], patch)
            )
        ],
        "only the rows, or only the columns, are right: the others are in another order.": [
            lambda y, signs, patch, eps: (
                eps * signs[y].repeat_interleave(patch, 1).repeat(1, 1, patch)[:, None]
            ),
            lambda y, signs, patch, eps: (
                eps * signs[y].repeat(1, patch, 1).repeat_interleave(patch, 2)[:, None]
            ),
        ],
    },
)
def separable_patches(y, signs, patch, eps):
    return eps * filled(signs[y], patch)


def pair_inputs():
    """Two classes, labels 0 and 1; some images are wrong as they are, others only in the ball."""
    draw = runtime.generator(4)
    w = torch.randn(6, generator=draw, dtype=torch.float64)
    x = torch.rand(200, 6, generator=draw, dtype=torch.float64)
    b = -(x @ w).median()
    y = (x @ w + b > 0).long() ^ (torch.rand(200, generator=draw) < 0.15).long()
    return [(w, b, x, y, r) for r in (0.02, 0.1)]


def worst(w, b, x, y, taken):
    return (((2 * y - 1) * (x @ w + b) - taken) <= 0).double().mean()


@exercise(
    "13",
    "The right side of the inequality",
    level="core",
    hints=(
        "A change within r takes as much from an image's score as it can. Whoever has a score of 0 "
        "or less after that can be brought to be wrong (lecture 05).",
        "The score is (2y − 1)(⟨w, x⟩ + b), as y is 0 or 1. The worst change takes r · Σ|w|.",
        "scores = (2 * y - 1) * (x_hat @ w + b); "
        "return (scores - r * w.abs().sum() <= 0).double().mean().",
    ),
    inputs=pair_inputs,
    otherwise=lambda case, got, want: (
        f"within r = {case[4]} a share of {want.item():.3f} can be brought to be wrong; "
        f"you return {got.item():.3f}."
    ),
    mistakes={
        "that is the share that is wrong as it is; the attacker moves every image by r.": [
            lambda w, b, x, y, r: worst(w, b, x, y, 0)
        ],
        "the change helps the model: it is taken FROM the score.": [
            lambda w, b, x, y, r: worst(w, b, x, y, -r * w.abs().sum())
        ],
        "r times the largest weight is what an L1 bound allows; every pixel moves by r: Σ|w|.": [
            lambda w, b, x, y, r: worst(w, b, x, y, r * w.abs().max())
        ],
        "r times the L2 norm of w is for a bound in L2; every pixel moves by r: Σ|w|.": [
            lambda w, b, x, y, r: worst(w, b, x, y, r * w.norm())
        ],
        "y is 0 or 1: 2y − 1 gives the sign that the score needs.": [
            lambda w, b, x, y, r: ((y * (x @ w + b) - r * w.abs().sum()) <= 0).double().mean()
        ],
        "that is the share that no change makes wrong; the right side counts the others.": [
            lambda w, b, x, y, r: 1 - worst(w, b, x, y, r * w.abs().sum())
        ],
    },
)
def right_side(w, b, x_hat, y, r):
    return worst(w, b, x_hat, y, r * w.abs().sum())
