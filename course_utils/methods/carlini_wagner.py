"""Carlini and Wagner's attack: the shortest change with which a class leads by a margin."""

from functools import partial

import torch
from torch import Tensor, nn

from course_utils.core.inputs import (
    Labels,
    Pixels,
    check_count,
    check_input,
    chunks,
    one_each,
    rows_of,
)
from course_utils.core.training import eval_mode, gradients_on, outputs
from course_utils.methods.attacks import Adam, OnStep, gradient, lead, walk


def carlini_wagner(
    model: nn.Module,
    x: Pixels,
    y: Labels | None = None,
    *,
    target: Labels | None = None,
    kappa: float | Tensor = 0.0,
    steps: int = 100,
    rounds: int = 9,
    step_size: float = 0.05,
    first_constant: float = 0.01,
    on_step: OnStep | None = None,
) -> Pixels:
    """Minimises ‖δ‖₂² + c · (what is missing to a lead of ``kappa``), with the smallest such c.

    Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks" (S&P 2017), section
    VI.A. The loss is a difference of logits: it is steep wherever the attack has not succeeded, and
    0 once ``target`` leads every other class by ``kappa`` (without a target: once another class so
    leads ``y``). Each image has its own c: ``first_constant``, ten times as much in every further
    round until one succeeds, then bisected. Each of the ``rounds`` takes ``steps`` steps of Adam
    from ``x``, whose size falls from ``step_size`` to 0; ``on_step`` counts on through the rounds.
    A round counts as a success of its c if one of its later half of steps succeeds: the first steps
    of Adam go too far, and with too small a c the image comes back.

    Each image comes back with its shortest change (L2) of all steps that gave a lead of ``kappa``
    or more, which holds in any batch and in float64. An image that has this lead already comes back
    unchanged, and so does one that never gets it: ``succeeded`` tells the two apart.

    Pixels are clipped to [0,1] after each step. The paper writes them as (tanh w + 1)/2, where a
    black or white pixel has next to no slope: on MNIST, whose pixels are mostly black, that takes
    three times as many steps to a change as short.
    """
    numbers = {"kappa": kappa, "step_size": step_size, "first_constant": first_constant}
    x, labels, sign = check_input(model, x, y, target, steps=steps, **numbers)
    check_count("rounds", rounds, 1)
    if not first_constant > 0:
        raise ValueError(f"first_constant is {first_constant}; give a number above 0.")
    with gradients_on():
        search = Search(model, x, labels, sign, kappa, first_constant)
        for i in range(rounds if steps else 0):
            adam = Adam(x, step_size)

            def move(step: int, rows: Tensor, now: Tensor, adam: Adam = adam) -> Tensor:
                if step == steps // 2 + 1:
                    search.won[rows] = False
                slope, _ = gradient(partial(search.objective, rows), now)
                left = 1 - (step - 1) / steps
                return (now - left * adam.stride(step, rows, slope)).clamp(0, 1)

            begin = i * steps
            last = walk(model, x.clone(), steps, move, on_step, finished=search.done, before=begin)
            search.end_of_round(last)
    return search.best


class Search:
    """The shortest success of each image so far, and its present weight c."""

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, sign: int, kappa, first):
        self.model, self.x, self.labels, self.sign = model, x, labels, sign
        self.kappa = one_each(kappa, x)
        self.best = x.clone()
        self.length = torch.full_like(self.kappa, torch.inf)  # squared
        self.won = torch.zeros_like(labels, dtype=torch.bool)  # with this c
        self.c = one_each(first, x).clone()
        self.low = torch.zeros_like(self.c)
        self.high = torch.full_like(self.c, torch.inf)

    def objective(self, rows: Tensor, v: Tensor) -> Tensor:
        """The objective of the images ``v``, the ``rows`` of the batch; keeps what succeeded."""
        missing = self.missing(rows, outputs(self.model, v))
        length = (v - self.x[rows]).square().flatten(1).sum(1)
        self.keep(rows, v.detach(), length.detach(), missing.detach() == 0)
        return length + self.c[rows] * missing

    def missing(self, rows: Tensor, logits: Tensor) -> Tensor:
        """How much is missing to the lead of ``kappa``, and 2 · blur on top; at least 0."""
        ahead, blur = lead(logits, self.labels[rows])
        return (self.kappa[rows] + 2 * blur - self.sign * ahead).clamp(min=0)

    def keep(self, rows: Tensor, v: Tensor, length: Tensor, won: Tensor) -> None:
        """Keeps those of ``v`` that ``won`` with a shorter change than any before."""
        self.won[rows] |= won
        shorter = won & (length < self.length[rows])
        self.best[rows[shorter]] = v[shorter]
        self.length[rows[shorter]] = length[shorter]

    def done(self, rows: Tensor, now: Tensor) -> Tensor:
        """Whether an image succeeded without a change."""
        return self.length[rows] == 0

    def end_of_round(self, last: Tensor) -> None:
        """Judges the ``last`` images too, and sets the next c of every image."""
        with eval_mode(self.model), torch.no_grad():
            for rows in chunks(rows_of(last), last):
                self.objective(rows, last[rows])
        self.high = torch.where(self.won, self.c, self.high)
        self.low = torch.where(self.won, self.low, self.c)
        middle = (self.low + self.high) / 2
        self.c = torch.where(self.high.isfinite(), middle, 10 * self.c)
        self.won.zero_()
