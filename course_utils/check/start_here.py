"""Exercise of lecture 00: ``linf_size``."""

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise


def perturbations():
    rows = [[0.1, -0.5, 0.2, 0.0], [0.3, 0.1, -0.2, 0.25], [0.0, 0.0, 0.0, 0.0]]
    return [(torch.tensor(rows).reshape(3, 2, 1, 2),)]


def show_pixels(case, got, want):
    i = answers.first_difference(got, want)
    pixels = ", ".join(f"{value:.3g}" for value in case[0][i].flatten().tolist())
    return f"for a perturbation with pixels {pixels} you return {got[i]:.3g} and not {want[i]:.3g}."


@exercise(
    "00",
    "Size of a perturbation",
    level="easy",
    hints=(
        "The L∞ norm of one image's perturbation is its largest absolute pixel.",
        "delta.flatten(1) has shape (N, pixels): one row per image. Then take absolute values, "
        "and the maximum over dimension 1.",
    ),
    inputs=perturbations,
    otherwise=show_pixels,
    mistakes={
        "the sign got in the way: a pixel that moved by −0.5 moved further than one that moved "
        "by 0.2.": [lambda delta: delta.flatten(1).amax(1)],
        "that is the mean absolute change; L∞ is the largest.": [
            lambda delta: delta.flatten(1).abs().mean(1)
        ],
        "that is the L2 norm, the root of the sum of squares; L∞ is the largest absolute pixel.": [
            lambda delta: delta.flatten(1).norm(dim=1)
        ],
    },
)
def linf_size(delta):
    return delta.flatten(1).abs().amax(1)
