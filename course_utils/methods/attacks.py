"""Attacks at test time: plain functions ``attack(model, x, …) -> x_adv``.

What all of them keep (``tests/methods/test_attacks.py`` holds them to it):

- ``x`` is a batch of images in [0,1], shape (N, …), and so is the result; ``y`` and ``target`` are
  integer labels, shape (N,).
- The model is judged in eval mode and left as found: parameters, ``.grad``, train/eval flags,
  batch-norm statistics. Gradients are taken with respect to the images only. Random numbers come
  from ``generator`` (by default a fresh one with seed 0), never from the global state.
- What happens to one image does not depend on the others in its batch. A large batch is worked
  through in chunks.
- ``on_step(step, x_adv)`` is called after every step (1, 2, …) with a copy of the whole batch.

Bad input is a ``ValueError`` that names the argument, what it got and the cure.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_utils.core.geometry import Norm, per_sample, project, steepest
from course_utils.core.geometry import norm as size_of
from course_utils.core.inputs import (
    Labels,
    Pixels,
    caller_level,
    check_choice,
    check_classes,
    check_input,
    check_labels,
    check_like,
    chunks,
    goal,
    one_each,
    rows_of,
)
from course_utils.core.training import (
    NO_GRADIENT,
    eval_mode,
    gradients_on,
    outputs,
    predict,
    share,
)

OnStep = Callable[[int, Tensor], None]
PerImageLoss = Callable[[Tensor, Tensor], Tensor]  # (logits (N, K), labels (N,)) -> losses (N,)


# --------------------------------------------------------------------------------------- losses


def neg_log_likelihood(logits: Float[Tensor, "n k"], y: Labels) -> Float[Tensor, "n"]:
    """−log p_y of every image."""
    return F.cross_entropy(logits, y, reduction="none")


def swapped_bce(logits: Float[Tensor, "n k"], y: Labels) -> Float[Tensor, "n"]:
    """The loss that Wang's slides minimise: Keras' binary cross-entropy with swapped arguments.

    Keras clips its second argument, here the one-hot target, to [1e-7, 1 − 1e-7]. The logarithms
    become two constants, and what is left is linear in the probabilities: for ten classes
    3.206·(1 − p_y), flat wherever p_y is near 0 or 1.
    """
    check_labels("y", y, logits)
    p = logits.softmax(1)
    one_hot = F.one_hot(y, logits.shape[1]).to(torch.float32)  # float32, as Keras computes it
    clipped = one_hot.clamp(1e-7, 1 - 1e-7).to(p)
    return -(p * clipped.log() + (1 - p) * (1 - clipped).log()).mean(1)


def margin(logits: Float[Tensor, "n k"], y: Labels) -> Float[Tensor, "n"]:
    """log Σ_{j≠y} exp z_j − z_y: positive once the other classes together outweigh y.

    Cross-entropy is log(1 + exp(margin)), so both have gradients in the same direction. The
    gradient of the margin does not vanish when the model is confident, where float32 turns the
    softmax into exact zeros and ones. Every attack that uses only the direction climbs the margin.
    """
    check_labels("y", y, logits)
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def lead(
    logits: Float[Tensor, "n k"], labels: Labels
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """By how much the best other class leads over the label, and what rounding can blur of it.

    The blur is 1e-5 of these two logits, or the precision of a coarser type than float32. The other
    logits, such as those of masked classes, do not count.
    """
    check_labels("labels", labels, logits)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    best = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    size = torch.maximum(own.abs(), best.abs())
    blur = max(1e-5, torch.finfo(logits.dtype).eps) * (1 + size.masked_fill(size.isinf(), 0))
    return best - own, blur.detach()


def fooled(logits: Float[Tensor, "n k"], labels: Labels, sign: int, times: int = 1):
    """Whether another class than the label leads (sign 1), or the label leads (sign −1).

    The lead must exceed ``times`` what rounding can blur.
    """
    ahead, blur = lead(logits, labels)
    return sign * ahead > times * blur


def warn_of_undecided(ahead: Tensor, blur: Tensor) -> None:
    """Warns of images that cannot be judged since the logits are equal, or too large to compare.

    An image just at the boundary of a usual model causes no warning.
    """
    undecided = (ahead.abs() <= blur) & ((ahead == 0) | (blur > 1e-3))
    if undecided.any():
        warnings.warn(
            f"{undecided.sum()} of {len(ahead)} images are undecided: the logits of the label and "
            f"of the best other class differ by less than {blur[undecided].max():.2g}, which "
            "rounding can blur. Does the model add a large number to all logits? Leave it out, or "
            "judge in float64.",
            stacklevel=caller_level(),
        )


# --------------------------------------------------------------------------- what attacks share


def gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of ``value(x)`` (one number per image) with respect to ``x`` alone, and the values.

    The numbers are summed, not averaged, so each image gets the gradient of its own value.

    Raises:
        ValueError: see ``slope_of``.
    """
    with gradients_on():
        x = leaf(x)
        values = value(x)
        return slope_of(values, x), values.detach()


def leaf(x: Tensor) -> Tensor:
    """``x`` as the start of a graph of its own."""
    return (x.clone() if x.is_inference() else x).detach().requires_grad_()


def slope_of(values: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor:
    """Gradient of the sum of ``values`` with respect to ``x``, the ``leaf`` of their graph.

    Raises:
        ValueError: ``values`` have no gradient in ``x``, or it is NaN.
    """
    slope = None
    if values.requires_grad:
        graph = {"retain_graph": retain_graph, "allow_unused": True}
        slope = torch.autograd.grad(values.sum(), x, **graph)[0]
    if slope is None:
        raise ValueError(NO_GRADIENT)
    if slope.isnan().any():
        raise ValueError(
            "The model's gradient is NaN, so no attack can follow it. "
            "Look for 0/0, or the root of 0, in the model."
        )
    return slope


def loss_gradient(model: nn.Module, x: Float[Tensor, "n ..."], y: Labels) -> Tensor:
    """The gradient of ``margin`` with respect to ``x``, in the model's present mode."""
    check_labels("y", y, x)
    return gradient(lambda v: margin(outputs(model, v), y.clone()), x)[0]


def uphill(value: Callable[[Tensor], Tensor], x: Tensor, p: Norm, box: bool) -> Tensor:
    """The steepest direction in which ``value(x)`` grows."""
    return steepest(with_room(gradient(value, x)[0], x, p, box), p)


def with_room(g: Tensor, x: Tensor, p: Norm, box: bool) -> Tensor:
    """In L1, where a step is one pixel, leaves out pixels that are at the end of the box."""
    if p != 1 or not box:
        return g
    return g.masked_fill((x >= 1) & (g > 0) | (x <= 0) & (g < 0), 0)


def clip(x_adv: Tensor, box: bool) -> Tensor:
    """Clips to [0,1] where ``box`` asks for it."""
    return x_adv.clamp(0, 1) if box else x_adv


def walk(
    model: nn.Module,
    x_adv: Tensor,
    steps: int,
    move: Callable[[int, Tensor, Tensor], Tensor],
    on_step: OnStep | None = None,
    *,
    finished: Callable[[Tensor, Tensor], Tensor] | None = None,
    before: int = 0,
) -> Tensor:
    """The loop of every attack: ``move(step, rows, x_adv[rows])`` gives the next images, in place.

    All chunks take a step before any takes the next, so that ``on_step`` sees the whole batch
    while memory holds no more than the batch and one chunk's work. Images for which
    ``finished(rows, x_adv[rows])`` is true take no further step. ``before`` steps were counted
    already.
    """
    rows = rows_of(x_adv)
    with eval_mode(model):
        for step in range(1, steps + 1):
            if finished is not None and len(rows):
                rows = rows[~finished(rows, x_adv[rows])]
            for chunk in chunks(rows, x_adv):
                x_adv[chunk] = move(step, chunk, x_adv[chunk])
            if on_step is not None:
                on_step(before + step, x_adv.clone())
    return x_adv


def one_step(
    model: nn.Module,
    x: Tensor,
    eps: float | Tensor,
    box: bool,
    direction: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """``x`` after one step of length ``eps`` along ``direction(rows, x[rows])``."""
    radius = one_each(eps, x)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        return clip(now + per_sample(radius[rows], now) * direction(rows, now), box)

    return walk(model, x.clone(), 1, move)


def keep_better(better: Bool[Tensor, "n"], *pairs: tuple[Tensor, Tensor]) -> None:
    """Overwrites in each ``(best, new)`` the rows of best for which new is ``better``."""
    for best, new in pairs:
        best[better] = new[better]


def succeeded(
    model: nn.Module, x_adv: Pixels, y: Labels | None = None, target: Labels | None = None
) -> Bool[Tensor, "n"]:
    """Whether each image is classified as ``target`` or, without one, as anything but ``y``.

    In eval mode. The lead must exceed what rounding could change, so that the verdict stands in any
    batch and in float64. So an image without success need not be robust: see ``withstood``. Warns
    of images that cannot be judged.
    """
    labels, sign, name = goal(y, target)
    ahead, blur = judged(model, x_adv, name, labels)
    warn_of_undecided(ahead, blur)
    return sign * ahead > blur


def judged(model: nn.Module, x_adv: Pixels, name: str, labels: Labels) -> tuple[Tensor, Tensor]:
    """``lead`` of the images, once the labels are checked."""
    check_labels(name, labels, x_adv)
    logits = predict(model, x_adv)
    check_classes(logits, name, labels)
    return lead(logits, labels)


def success_rate(
    model: nn.Module, x_adv: Pixels, y: Labels | None = None, target: Labels | None = None
) -> float:
    """Share of images for which the attack ``succeeded``, in [0,1]."""
    return share(succeeded(model, x_adv, y, target))


def withstood(model: nn.Module, x_adv: Pixels, y: Labels) -> Bool[Tensor, "n"]:
    """Whether each image is classified as ``y``, in eval mode: the logit of y above all others."""
    return judged(model, x_adv, "y", y)[0] < 0


def robust_accuracy(model: nn.Module, x_adv: Pixels, y: Labels) -> float:
    """Share of images that ``model`` still classifies as ``y`` under the attack, in [0,1].

    What the model gets wrong never counts as robust: not an image whose label shares the first
    place with another class, not one on which the attack was too unsure of its success to say so.
    On the images as they are it is the accuracy. It bounds the true robustness from above: a
    better attack can leave less.

    Raises:
        ValueError: no images, labels that do not fit, or a model that gives NaN.
    """
    return share(withstood(model, x_adv, y))


# -------------------------------------------------------------------------------------- attacks


def roughness(x: Pixels) -> Float[Tensor, "n"]:
    """Sum of the squared differences between neighbouring pixels of each image."""
    across = x.diff(dim=-1).square().flatten(1).sum(1)
    down = x.diff(dim=-2).square().flatten(1).sum(1)
    return across + down


def fake_image(
    model: nn.Module,
    x: Pixels,
    target: Labels,
    *,
    steps: int = 10,
    step_size: float = 0.5,
    loss: PerImageLoss = swapped_bce,
    box: bool = False,
    smoothness: float = 0.0,
    on_step: OnStep | None = None,
) -> Pixels:
    """Plain gradient descent on the image until the model sees ``target``; ``x`` is the start.

    As on Wang's slides ("Generate Fake Image"): 10 steps of 0.5 on the slides' loss, and nothing
    keeps the pixels in [0,1]. ``box=True`` clips them after each step; ``smoothness`` is the weight
    of ``roughness`` in the loss.
    """
    sizes = {"step_size": step_size, "smoothness": smoothness}
    x, target, _ = check_input(model, x, target=target, steps=steps, **sizes)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        def objective(v: Tensor) -> Tensor:
            return loss(outputs(model, v), target[rows]) + smoothness * roughness(v)

        return clip(now - step_size * gradient(objective, now)[0], box)

    return walk(model, x.clone(), steps, move, on_step)


def untargeted(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    steps: int = 20,
    step_size: float = 0.05,
    early_stop: bool = False,
    on_step: OnStep | None = None,
) -> Pixels:
    """Ascent on the loss of the true label, each gradient divided by its largest entry, in [0,1].

    From Wang's slides ("Untargeted Attack"): 20 steps of 0.05, so a pixel moves by at most 1. The
    slides' code takes all steps; their formula stops an image when it is misclassified:
    ``early_stop=True``. Dividing by the largest entry makes all losses that grow with
    cross-entropy one attack; here it climbs ``margin``.
    """
    x, y, _ = check_input(model, x, y, steps=steps, step_size=step_size)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        g, _ = gradient(lambda v: margin(outputs(model, v), y[rows]), now)
        largest = size_of(g, "inf")
        scaled = g / per_sample(torch.where(largest > 0, largest, 1), g)
        return (now + step_size * scaled).clamp(0, 1)

    def finished(rows: Tensor, now: Tensor) -> Tensor:
        return succeeded(model, now, y[rows])

    stop = finished if early_stop else None
    return walk(model, x.clone(), steps, move, on_step, finished=stop)


def mean_absolute(delta: Pixels) -> Float[Tensor, "n"]:
    """Mean absolute pixel of every perturbation."""
    return delta.abs().flatten(1).mean(1)


def mean_square(delta: Pixels) -> Float[Tensor, "n"]:
    """Mean squared pixel of every perturbation."""
    return delta.square().flatten(1).mean(1)


DISTANCES = {"l1": mean_absolute, "l2": mean_square}


def targeted(
    model: nn.Module,
    x: Pixels,
    target: Labels,
    *,
    lam: float = 30.0,
    distance: str = "l1",
    steps: int = 100,
    step_size: float = 0.05,
    loss: PerImageLoss = neg_log_likelihood,
    start: Pixels | None = None,
    on_step: OnStep | None = None,
) -> Pixels:
    """Minimises loss(target) + ``lam`` · distance(x_adv, x) by Adam; gives each best iterate.

    From Wang's slides ("Targeted Attack"), which use λ = 30 and the mean absolute difference
    (``"l1"``) or, commented out, the mean square (``"l2"``). They name no optimiser; Adam with
    these defaults reaches all ten targets. ``start`` (default: ``x``) is the first iterate. All
    iterates are in [0,1].
    """
    x, target, _ = check_input(model, x, target=target, steps=steps, lam=lam, step_size=step_size)
    measure = DISTANCES[check_choice("distance", distance, DISTANCES)]
    start = x if start is None else check_like("start", start, x).detach()

    def objective(rows: Tensor, v: Tensor) -> Tensor:
        return loss(outputs(model, v), target[rows]) + lam * measure(v - x[rows])

    best = Lowest(start, objective)
    adam = Adam(x, step_size)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        return (now - adam.stride(step, rows, best.slope(rows, now))).clamp(0, 1)

    x_adv = walk(model, start.clone(), steps, move, on_step)
    with eval_mode(model):
        for rows in chunks(rows_of(x), x):
            best.slope(rows, x_adv[rows])
    return best.x


class Lowest:
    """The images with the lowest ``objective(rows, x[rows])`` so far, for some rows at a time."""

    def __init__(self, x: Tensor, objective: Callable[[Tensor, Tensor], Tensor]):
        self.x = x.clone()
        self.value = torch.full_like(x.flatten(1)[:, 0], torch.inf)
        self.objective = objective

    def slope(self, rows: Tensor, x: Tensor) -> Tensor:
        """The gradient at ``x``; keeps the images whose value is lower than any before."""
        slope, value = gradient(partial(self.objective, rows), x)
        better = value < self.value[rows]
        self.value[rows[better]] = value[better]
        self.x[rows[better]] = x[better]
        return slope


class Adam:
    """Adam with its usual constants, for some rows of a batch at a time."""

    def __init__(self, x: Tensor, step_size: float):
        self.step_size = step_size
        self.mean = torch.zeros_like(x)
        self.square = torch.zeros_like(x)

    def stride(self, step: int, rows: Tensor, slope: Tensor) -> Tensor:
        """How far step number ``step`` (1, 2, …) goes against ``slope``."""
        self.mean[rows] = self.mean[rows].lerp(slope, 0.1)
        self.square[rows] = self.square[rows].lerp(slope.square(), 0.001)
        mean = self.mean[rows] / (1 - 0.9**step)
        return self.step_size * (mean / ((self.square[rows] / (1 - 0.999**step)).sqrt() + 1e-8))


def fgsm(
    model: nn.Module,
    x: Pixels,
    y: Labels | None = None,
    *,
    eps: float | Tensor,
    norm: Norm = "inf",
    target: Labels | None = None,
    box: bool = True,
) -> Pixels:
    """One full step in the steepest direction: x + ε · steepest(∇ loss); ``box`` clips to [0,1].

    Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", section 4, for
    L∞; ``norm`` 2 and 1 follow from the same formula. Up the loss of ``y``, or down that of
    ``target`` when one is given.
    """
    x, labels, sign = check_input(model, x, y, target, eps=eps, norm=norm)

    def direction(rows: Tensor, now: Tensor) -> Tensor:
        return uphill(lambda v: sign * margin(outputs(model, v), labels[rows]), now, norm, box)

    return one_step(model, x, eps, box, direction)


def adv_loss(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float | Tensor,
    norm: Norm = 2,
    box: bool = True,
) -> Pixels:
    """Adv_Loss of *Learning with Adversary*, section 3.1.1: lowers the linearised p_y most.

    Cross-entropy falls as p_y grows, so −T_y (the source forgets the minus) and the gradient of the
    loss point the same way: this is ``fgsm`` in ``norm``. The source does not clip: ``box=False``.
    """
    return fgsm(model, x, y, eps=eps, norm=norm, box=box)


def adv_loss_sign(
    model: nn.Module, x: Pixels, y: Labels, *, eps: float | Tensor, box: bool = True
) -> Pixels:
    """Adv_Loss_Sign of *Learning with Adversary*: ``fgsm`` in L∞, at the **L2** length ``eps``."""
    x, y, _ = check_input(model, x, y, eps=eps)

    def direction(rows: Tensor, now: Tensor) -> Tensor:
        return steepest(uphill(lambda v: margin(outputs(model, v), y[rows]), now, "inf", box), 2)

    return one_step(model, x, eps, box, direction)


def pgd(
    model: nn.Module,
    x: Pixels,
    y: Labels | None = None,
    *,
    eps: float | Tensor,
    norm: Norm = "inf",
    steps: int = 40,
    step_size: float | Tensor | None = None,
    random_start: bool = False,
    restarts: int = 1,
    target: Labels | None = None,
    early_stop: bool = False,
    box: bool = True,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Pixels:
    """Projected gradient ascent in ‖x_adv − x‖ ≤ ``eps``: steepest step, project, clip, repeat.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", section 2.1.
    ``eps`` is a number, or one per image. ``step_size`` is by default 2.5·eps/steps. ``box=False``
    leaves out the clipping to [0,1], as some papers do.
    The first run starts at ``x``, or at a random point with ``random_start=True``. The other
    ``restarts`` start at random, and each image keeps its best run: success first, then the larger
    margin. With ``early_stop=True`` an image rests once the attack has succeeded. Steps are counted
    on through the restarts.
    """
    numbers = {"eps": eps, "step_size": step_size, "steps": steps, "restarts": restarts}
    x, labels, sign = check_input(model, x, y, target, norm=norm, **numbers)
    radius = one_each(eps, x)
    stride = one_each(step_length(step_size, radius, steps), x)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        ascent = uphill(lambda v: sign * margin(outputs(model, v), labels[rows]), now, norm, box)
        delta = now + per_sample(stride[rows], now) * ascent - x[rows]
        return clip(x[rows] + project(delta, radius[rows], norm), box)

    def run(restart: int) -> Tensor:
        random = steps and (random_start or restart)
        start = random_point(x, radius, norm, box, seed, restart) if random else x.clone()
        return walk(model, start, steps, move, on_step, finished=stop, before=restart * steps)

    seed = drawn_seed(generator)
    stop = partial(reached, model, labels, sign) if early_stop else None
    return best_of_runs(map(run, range(restarts if steps else 1)), model, labels, sign)


def reached(model: nn.Module, labels: Labels, sign: int, rows: Tensor, now: Tensor) -> Tensor:
    """Whether the images ``now``, the ``rows`` of a batch, are ``fooled``."""
    return fooled(predict(model, now), labels[rows], sign)


def step_length(step_size, eps, steps: int):
    """``step_size``, by default 2.5·eps/steps."""
    return 2.5 * eps / max(steps, 1) if step_size is None else step_size


def best_of_runs(runs: Iterator[Tensor], model: nn.Module, labels: Labels, sign: int) -> Tensor:
    """For each image the best run: success first, then the larger margin."""

    def verdict(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        logits = predict(model, x_adv)
        return fooled(logits, labels, sign), sign * margin(logits, labels)

    best = next(runs)
    kept = None
    for x_adv in runs:
        kept = kept or verdict(best)
        won, height = verdict(x_adv)
        better = torch.where(won == kept[0], height > kept[1], won)
        keep_better(better, (best, x_adv), (kept[0], won), (kept[1], height))
    return best


def drawn_seed(generator: torch.Generator | None) -> int:
    """A seed drawn from ``generator``, or from a fresh one with seed 0."""
    generator = generator or torch.Generator().manual_seed(0)
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


def random_point(
    x: Tensor, radius: Tensor, norm: Norm, box: bool, seed: int, restart: int
) -> Tensor:
    """A random point of each image's ball: uniform in [−radius, radius], then projected.

    Image i draws from a stream of its own, so its start depends on seed, restart and i alone.
    """
    x_adv = x.clone()
    for rows in chunks(rows_of(x), x):
        streams = [np.random.default_rng((seed, restart, row)) for row in rows.tolist()]
        noise = np.stack([stream.random(x.shape[1:], dtype=np.float32) for stream in streams])
        length = per_sample(radius[rows], x)
        delta = length * (2 * torch.from_numpy(noise).to(x) - 1)
        x_adv[rows] = clip(x[rows] + project(delta, radius[rows], norm), box)
    return x_adv
