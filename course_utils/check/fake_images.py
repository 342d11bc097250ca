"""Exercises of lecture 02: ``descent_step`` and ``roughness``."""

import torch

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
from course_utils.methods import attacks


@exercise(
    "02",
    "One step of gradient descent on the image",
    hints=(
        "The weights stay fixed; the image is what the gradient is taken of. "
        "x.clone().requires_grad_() makes it a variable.",
        "loss = F.cross_entropy(model(x), target, reduction='sum'); "
        "g = torch.autograd.grad(loss, x)[0].",
        "Return (x - step_size * g).detach(). Minus, because the loss of the target must fall.",
    ),
    inputs=lambda: [(small_model(), small_images(), torch.arange(6), 0.5)],
    otherwise=("the step is not x − step_size · ∂loss/∂x of the cross-entropy with the target."),
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


def neighbours(across, down):
    """A wrong roughness: the sum of ``across`` and ``down`` of the differences, (N,)."""
    return lambda x: across(x.diff(dim=-1)) + down(x.diff(dim=-2))


def total(differences):
    return differences.square().flatten(1).sum(1)


def total_absolute(differences):
    return differences.abs().flatten(1).sum(1)


def mean(differences):
    return differences.square().flatten(1).mean(1)


@exercise(
    "02",
    "Roughness of an image",
    hints=(
        "Two neighbouring pixels differ by x[..., 1:] - x[..., :-1]; and the same for rows.",
        "x.diff(dim=-1).square().flatten(1).sum(1) is the horizontal part, one number per image. "
        "Add the vertical one.",
    ),
    inputs=lambda: [(small_images(3, seed=1),)],
    otherwise=lambda case, got, want: (
        f"for the first test image you return {got[0]:.4g} and not {want[0]:.4g}."
    ),
    mistakes={
        "only one direction is there; neighbours lie beside and below.": [
            lambda x: total(x.diff(dim=-1)),
            lambda x: total(x.diff(dim=-2)),
        ],
        "those are absolute differences; this penalty squares them.": [
            neighbours(total_absolute, total_absolute)
        ],
        "that is the mean over the pixels; this penalty sums them.": [neighbours(mean, mean)],
        "that is the square root; this penalty leaves it out.": [
            lambda x: attacks.roughness(x).sqrt()
        ],
        "torch.roll wraps around: the left edge is no neighbour of the right one. "
        "Use diff, or slices.": [lambda x: total(x - x.roll(1, -1)) + total(x - x.roll(1, -2))],
    },
)
def roughness(x):
    return attacks.roughness(x)
