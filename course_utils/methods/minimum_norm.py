"""The smallest perturbation that succeeds, and its size: ``fmn`` and ``minimal_eps``."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_utils.core.geometry import Norm, check_norm, dual_norm, per_sample, project, steepest
from course_utils.core.geometry import norm as size_of
from course_utils.core.inputs import Labels, Pixels, check_input, chunks, rows_of
from course_utils.core.training import outputs, predict
from course_utils.methods.attacks import (
    OnStep,
    fooled,
    gradient,
    lead,
    margin,
    walk,
    with_room,
)
from course_utils.methods.boundary import nearest_boundary

# Length of the first step, in radii. In L1 a step of one pixel is slow, so the step follows the
# gradient itself, where one of a full radius would leave the ball by far.
FIRST_STRIDE = {1: 0.4, 2: 1.0, math.inf: 1.0}
SECOND_RUN = 0.1  # of these strides: it stays at the boundary at which it starts
LAST_STRIDE = 0.01  # as a share of the first
FIRST_CHANGE = 0.2  # of the radius, per step
LAST_CHANGE = 0.001
GROWTH = 1.2  # of the radius, per step, until the attack succeeds for the first time


def fmn(
    model: nn.Module,
    x: Pixels,
    y: Labels | None = None,
    *,
    norm: Norm = 2,
    target: Labels | None = None,
    steps: int = 40,
    on_step: OnStep | None = None,
) -> Pixels:
    """The shortest perturbation found that makes the model leave ``y``, or see ``target``.

    Fast minimum norm: Pintor et al., "Fast Minimum-norm Adversarial Attacks through Adaptive Norm
    Constraints" (NeurIPS 2021), Algorithm 1, after DDN (Rony et al., CVPR 2019). Each image has a
    ball of its own. It shrinks where the image succeeds and grows where it does not, by less and
    less; in it the image takes a step up the margin and is projected. The paper's step has one
    length for all images and norms; ours is the steepest step of the norm and as long as the ball's
    radius at first, so that 40 steps do for 100. Away from ``y`` a second run of ``steps`` starts
    at the nearest boundary of the linearised model, and each image keeps the shorter result: the
    class with the next logit need not be the nearest.

    An image that succeeds as it is, or never does, comes back unchanged.
    """
    x, labels, sign = check_input(model, x, y, target, steps=steps)

    def won(rows: Tensor, logits: Tensor) -> Tensor:
        return fooled(logits, labels[rows], sign, times=2)  # so that no rounding changes it

    return search(model, x, labels, sign, check_norm(norm), steps, won, on_step)[0]


def minimal_eps(
    model: nn.Module, x: Pixels, y: Labels, *, norm: Norm = "inf", steps: int = 40
) -> Float[Tensor, "n"]:
    """The size of the smallest perturbation found by ``fmn`` at which an image is not withstood.

    An upper bound of the true minimum: 0 for an image that is misclassified as it is, ``inf`` for
    one that is classified as ``y`` wherever the search has been. An undecided image counts as
    misclassified (see ``attacks.withstood``).
    """
    x, y, _ = check_input(model, x, y, steps=steps)

    def won(rows: Tensor, logits: Tensor) -> Tensor:
        return lead(logits, y[rows])[0] >= 0

    return search(model, x, y, 1, check_norm(norm), steps, won)[1]


def search(
    model: nn.Module,
    x: Pixels,
    labels: Labels,
    sign: int,
    p: float,
    steps: int,
    won: Callable[[Tensor, Tensor], Bool[Tensor, "n"]],
    on_step: OnStep | None = None,
) -> tuple[Pixels, Float[Tensor, "n"]]:
    """The shortest perturbed images for which ``won(rows, logits)``, and their distance from x.

    Where none is found the image is unchanged and the distance infinite.
    """
    balls = Balls(x, p)
    x_adv = x.clone()

    def judge(rows: Tensor) -> None:
        balls.keep(rows, x_adv[rows], won(rows, predict(model, x_adv[rows])))

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        verdicts = []

        def height(v: Tensor) -> Tensor:
            logits = outputs(model, v)
            verdicts.append(won(rows, logits.detach()))
            return sign * margin(logits, labels[rows].clone())

        slope, value = gradient(height, now)
        balls.keep(rows, now, verdicts[0])
        share_left = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        balls.resize(rows, verdicts[0], value.abs() / dual_norm(slope, p), share_left)
        return balls.step(rows, now, slope, share_left)

    def finished(rows: Tensor, now: Tensor) -> Tensor:
        return balls.length[rows] == 0

    def run(before: int) -> None:
        walk(model, x_adv, steps, move, on_step, finished=finished, before=before)
        for rows in chunks(rows_of(x)[balls.length > 0], x):
            judge(rows)

    for rows in chunks(rows_of(x), x):
        judge(rows)
    run(0)
    if sign > 0 and steps:
        for rows in chunks(rows_of(x)[balls.length > 0], x):
            ahead = nearest_boundary(model, x[rows], labels[rows], norm=p, softmax=False, box=True)
            x_adv[rows] = balls.start_at(rows, *ahead)
        run(steps)
    return balls.shortest, balls.length


class Balls:
    """A ball around each image, and the shortest perturbation so far that succeeded."""

    def __init__(self, x: Tensor, p: float):
        self.x = x
        self.p = p
        self.stride = 1.0
        self.shortest = x.clone()
        self.largest = size_of(torch.maximum(x, 1 - x), p)  # nothing in [0,1] is further away
        self.length = torch.full_like(self.largest, torch.inf)  # of the shortest
        self.radius = torch.full_like(self.largest, torch.inf)

    def keep(self, rows: Tensor, now: Tensor, won: Tensor) -> None:
        """Keeps those that won with a shorter perturbation than any before."""
        length = size_of(now - self.x[rows], self.p)
        better = won & (length < self.length[rows])
        self.length[rows[better]] = length[better]
        self.shortest[rows[better]] = now[better]

    def start_at(self, rows: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        """The images of a second run, with balls that reach ``distance`` far."""
        self.stride = SECOND_RUN
        farthest = self.largest[rows]
        self.radius[rows] = distance.nan_to_num(torch.inf).to(farthest).minimum(farthest)
        delta = per_sample(self.radius[rows], direction) * steepest(direction, self.p)
        return (self.x[rows] + delta).clamp(0, 1)

    def resize(self, rows: Tensor, won: Tensor, linear: Tensor, share_left: float) -> None:
        """Shrinks the balls of those that won, widens the others; ``linear`` is a first radius."""
        radius, shortest = self.radius[rows], self.length[rows]
        change = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * share_left
        wider = radius * torch.where(shortest.isinf(), GROWTH, 1 + change)
        wider = torch.where(radius.isinf(), linear.nan_to_num(torch.inf).to(radius), wider)
        smaller = torch.minimum(radius, shortest) * (1 - change)
        self.radius[rows] = torch.where(won, smaller, wider).minimum(self.largest[rows])

    def step(self, rows: Tensor, now: Tensor, slope: Tensor, share_left: float) -> Tensor:
        """The next images: a step along ``slope``, then back into the ball and into [0,1]."""
        annealed = LAST_STRIDE + (1 - LAST_STRIDE) * share_left
        stride = self.stride * FIRST_STRIDE[self.p] * annealed
        ascent = steepest(with_room(slope, now, self.p, box=True), max(self.p, 2))
        radius = self.radius[rows]
        delta = now + per_sample(stride * radius, now) * ascent - self.x[rows]
        return (self.x[rows] + project(delta, radius, self.p)).clamp(0, 1)
