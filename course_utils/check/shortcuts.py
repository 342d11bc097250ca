"""Exercises of lecture 13 on shortcuts: a squeeze, a separable poison, and the inequality."""

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime


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
        "that rounds up; take the nearest value.": [
            lambda x, levels: (x * (levels - 1)).ceil() / (levels - 1)
        ],
        "the values are whole numbers; bring them back to [0,1].": [
            lambda x, levels: (x * (levels - 1)).round()
        ],
        "that cuts at 0.5 for any number of levels.": [lambda x, levels: (x > 0.5).to(x)],
        "levels is taken as a number of bits; it counts the values themselves.": [
            lambda x, levels: (x * (2**levels - 1)).round() / (2**levels - 1)
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
        "every image has the signs of the first one's class; the noise follows y.": [
            lambda y, signs, patch, eps: eps * filled(signs[y[:1].expand(len(y))], patch)
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
        "r is missing: the change is r · Σ|w|.": [
            lambda w, b, x, y, r: worst(w, b, x, y, w.abs().sum())
        ],
        "that is the share that no change makes wrong; the right side counts the others.": [
            lambda w, b, x, y, r: 1 - worst(w, b, x, y, r * w.abs().sum())
        ],
        "that is the number of images; divide by how many there are.": [
            lambda w, b, x, y, r: len(x) * worst(w, b, x, y, r * w.abs().sum())
        ],
    },
)
def right_side(w, b, x_hat, y, r):
    return worst(w, b, x_hat, y, r * w.abs().sum())
