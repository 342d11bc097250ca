"""Unsupervised adversarial examples: unlike their originals, and no harder for the model.

The seminar slides make them with MinMax and one sign turned: ``minmax.minmax(similar=False)``.
``walk_out`` is ours and goes much farther.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.inputs import Pixels, check_count, check_images
from course_utils.core.training import eval_mode, gradients_on
from course_utils.methods.attacks import gradient
from course_utils.methods.minmax import (
    AttackResult,
    Criterion,
    Similarity,
    check_sizes,
    closeness,
    joined,
    parts,
    speckle,
)
from course_utils.methods.mutual_information import PerImage

BACK = 1.5  # times the Newton step, as that ends on the surface, where rounding decides

Direction = Float[Tensor, "n c h w"]
Column = Float[Tensor, "n 1 1 1"]


def unseen(delta: Float[Tensor, "n d"], weight: Float[Tensor, "h d"]) -> Float[Tensor, "n d"]:
    """The part of each ``delta`` that a linear layer does not see: ``weight`` · unseen = 0.

    δ − W⁺Wδ, the nearest point of the null space, which has d − rank W dimensions.
    """
    w = weight.detach().cpu().double()  # some devices have no float64
    seen = (torch.linalg.pinv(w) @ w).to(delta)
    return delta - delta @ seen.T


def column(values: Float[Tensor, "n"]) -> Column:
    return values[:, None, None, None]


def dot(a: Direction, b: Direction) -> Column:
    return column((a * b).flatten(1).sum(1))


def tangent(away: Direction, slope: Direction) -> Direction:
    """``away`` less its part along ``slope``, where a step along it would raise what has the slope.

    To first order, the rest of each image's ``away`` leaves that value as it is or lowers it.
    """
    uphill = dot(away, slope).clamp(min=0)
    return away - uphill / dot(slope, slope).clamp(min=1e-24) * slope


def movable(step: Direction, x_adv: Pixels) -> Direction:
    """``step`` without the pixels that it would push out of [0,1]."""
    return step * torch.where(step > 0, x_adv < 1, x_adv > 0)


@gradients_on()
def walk_out(
    model: nn.Module,
    criterion: Criterion,
    x: Pixels,
    *,
    similarity: Similarity = closeness,
    steps: int = 50,
    length: float = 0.4,
    start: float = 0.086,
    seed: int = 0,
) -> AttackResult:
    """Walks away from ``x`` along the surface on which the model loses nothing.

    A step has two parts. Outward: this L2 ``length``, which shrinks to 0 at the end, along the
    gradient that lowers ``similarity``, less its part that raises the criterion f. Back, where
    f > 0: ``BACK`` times the Newton step along the gradient of f. All stay in [0,1]. Keeps the
    least similar iterate with f ≤ 0 of each image; the first is x + noise within ±``start``.

    ``model``, by which ``criterion`` judges, is held in eval mode.

    Raises:
        ValueError: images outside [0,1], negative steps, length or start.
    """
    check_images("x", x)
    check_count("steps", steps, 0)
    check_sizes(length=length, start=start)
    with eval_mode(model):
        noise = speckle(x, runtime.generator(seed))
        x = x.detach()
        found = []
        for rows in parts(x):
            first = (x[rows] + start * noise).clamp(0, 1)
            goal = partial(criterion, rows=rows)
            likeness = partial(similarity, x[rows])
            found.append(walk(first, goal, likeness, steps, length))
    return joined(found)


def walk(
    x_adv: Pixels,
    criterion: Callable[[Pixels], PerImage],
    similarity: Callable[[Pixels], PerImage],
    steps: int,
    length: float,
) -> AttackResult:
    """``walk_out`` on a chunk of the batch, from ``x_adv``."""
    best = AttackResult.none(x_adv)
    least = torch.full_like(best.information, torch.inf)  # f of the iterate closest to success
    for left in range(steps, -1, -1):
        slope, f = gradient(criterion, x_adv)
        closer, likeness = gradient(similarity, x_adv)
        best.keep(AttackResult(x_adv, likeness, f <= 0), sign=-1, closer=f < least)
        least = torch.minimum(least, f)
        back = movable(-slope, x_adv)
        away = tangent(movable(-closer, x_adv), -back)
        away = length * left / max(steps, 1) * away / dot(away, away).sqrt().clamp(min=1e-12)
        back = BACK * column(f.relu()) / dot(back, back).clamp(min=1e-24) * back
        x_adv = (x_adv + away + back).clamp(0, 1)
    return best
