"""Poisons at training time: a **Poison** is ``poison(images) -> images``.

It changes pixels by at most eps, never labels or order. Some poisons are random, the others are
fitted to the images that they poison. Each holds one noise per class (``ClassWise``) or per image
(``SampleWise``). ``perturbed`` applies it and returns only what a file of bytes can hold.

Models are judged in eval mode and left as found. Random numbers come from ``seed`` alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from course_utils.core import runtime
from course_utils.core.geometry import project, steepest
from course_utils.core.images import Images
from course_utils.core.inputs import (
    Labels,
    Pixels,
    check_count,
    check_eps,
    check_input,
    check_share,
    check_size,
    chunks,
    rows_of,
)
from course_utils.core.training import (
    batches,
    checked_outputs,
    cross_entropy,
    eval_mode,
    gradients_on,
    outputs,
    rmsprop,
)
from course_utils.methods import attacks
from course_utils.methods.attacks import gradient, margin, neg_log_likelihood, step_length

Poison = Callable[[Images], Images]
BLUR = 2e-4  # of a grey level: more than float32 rounds, far less than eyes or models see


# --- applying


def perturbed(images: Images, noise: Pixels, eps: float) -> Images:
    """``images`` + ``noise`` as a file of bytes holds it, with |change| ≤ ``eps``.

    Each pixel goes to the nearest grey level k/255 in [0,1] within ``eps`` of it, so rounding never
    breaks the bound. (Code that turns the noise itself into bytes loses all that is negative.)
    A pixel without such a level stays as it is, and with ``eps`` 0 all do.

    Raises:
        ValueError: ``eps`` outside [0, 1], or ``noise`` of another shape or with NaN.
    """
    check_eps(eps)
    x = images.x
    check_noise(noise, x)
    if noise.isnan().any():
        raise ValueError("noise holds NaN; whatever made it has diverged: use a smaller step.")
    if eps == 0:
        return images
    result = torch.empty_like(x)
    for rows in chunks(rows_of(x), x):
        clean = x[rows]
        level = (255 * (clean + noise[rows].to(clean))).round()
        low = (255 * (clean - eps) - BLUR).ceil().clamp(min=0)
        high = (255 * (clean + eps) + BLUR).floor().clamp(max=255)
        result[rows] = torch.where(low <= high, level.clamp(low, high) / 255, clean)
    return replace(images, x=result)


def check_noise(noise: Tensor, x: Pixels) -> None:
    """Refuses noise that does not have the shape of the images."""
    if noise.shape != x.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; give one noise per image, {tuple(x.shape)}."
        )


@dataclass(frozen=True, eq=False)
class ClassWise:
    """A poison with one noise per class: ``noise`` (K, C, H, W) within [−eps, eps]."""

    noise: Float[Tensor, "k c h w"]
    eps: float

    def __post_init__(self):
        check_eps(self.eps)

    def __call__(self, images: Images) -> Images:
        if len(self.noise) != len(images.classes):
            raise ValueError(
                f"images have {len(images.classes)} classes, but there is noise for "
                f"{len(self.noise)}; give one per class."
            )
        return perturbed(images, self.noise.to(images.x.device)[images.y], self.eps)


class SampleWise:
    """A poison with one noise per image: ``noise`` (N, C, H, W) in [−eps, eps], for ``images``.

    It takes any of these images in any order, known by pixels and label. Equal ones get the noise
    of the first; any other image is a ``ValueError``.
    """

    def __init__(self, images: Images, noise: Pixels, eps: float):
        check_eps(eps)
        check_noise(noise, images.x)
        self.noise = noise
        self.eps = eps
        self.rows = {}
        for row, key in enumerate(image_keys(images)):
            self.rows.setdefault(key, row)

    def __call__(self, images: Images) -> Images:
        rows = [self.rows.get(key, -1) for key in image_keys(images)]
        if -1 in rows:
            raise ValueError(
                f"images has {rows.count(-1)} of {len(rows)} that this poison was not fitted to "
                f"(the first is number {rows.index(-1)}); fit it to all images that it will poison."
            )
        noise = self.noise[torch.tensor(rows, dtype=torch.int64)].to(images.x.device)
        return perturbed(images, noise, self.eps)


def image_keys(images: Images) -> Iterator[tuple[bytes, int]]:
    """For each image a hash of its pixels, and its label."""
    pixels = images.x.detach().cpu().contiguous().numpy()
    for image, label in zip(pixels, images.y.tolist(), strict=True):
        yield hashlib.sha1(image).digest(), label


def next_class(y: Labels, classes: int) -> Labels:
    """(y + 1) mod ``classes``: the target of DeepConfuse, section 5.5, and Fowl et al., 2021."""
    return (y + 1) % classes


def mixed(clean: Images, poison: Poison, share: float, seed: int = 0) -> Images:
    """``clean`` with a random ``share`` (in [0,1], rounded to whole images) poisoned.

    With the same ``seed``, a larger share poisons these images and more.
    """
    rows = drawn_rows(clean, share, seed)
    x = clean.x.clone()
    if len(rows):
        x[rows] = poison(clean[rows]).x
    return replace(clean, x=x)


def flipped(images: Images, share: float, seed: int = 0) -> Images:
    """``images`` in which a random ``share`` has random labels: DeepConfuse's control (Figure 5).

    A random label may be the right one. No poison in the sense above: only labels change.
    """
    rows = drawn_rows(images, share, seed)
    classes = len(images.classes)
    shift = torch.randint(classes, (len(images),), generator=runtime.generator(seed))
    y = images.y.clone()
    y[rows] = (y[rows] + shift.to(rows.device)[rows]) % classes
    return replace(images, y=y)


def drawn_rows(images: Images, share: float, seed: int) -> Labels:
    """The numbers of a random ``share`` of the images."""
    check_share("share", share, "the images")
    order = torch.randperm(len(images), generator=runtime.generator(seed))
    return order.to(images.x.device)[: round(share * len(images))]


# --- random


def uniform_noise(images: Images, *, eps: float, seed: int = 0) -> SampleWise:
    """The control for every poison: each pixel uniform in [−eps, eps], independent of the class."""
    check_eps(eps)
    noise = torch.rand(images.x.shape, generator=runtime.generator(seed)).mul_(2 * eps).sub_(eps)
    return SampleWise(images, noise.to(images.x.device), eps)


def class_noise(images: Images, *, eps: float, seed: int = 0) -> ClassWise:
    """One random pattern of ±eps per class, without any fitting.

    P5 of "Better Safe Than Sorry" (Tao et al., NeurIPS 2021), in L∞.
    """
    check_eps(eps)
    shape = (len(images.classes), *images.x.shape[1:])
    sign = torch.randint(2, shape, generator=runtime.generator(seed)) * 2 - 1
    return ClassWise((eps * sign).to(images.x), eps)


# --- fitted


def descend(
    value: Callable[[Tensor], Tensor],
    x: Pixels,
    start: Pixels,
    eps: float,
    steps: int,
    step_size: float,
) -> Pixels:
    """Takes sign steps from ``start`` down ``value(images)``, within ``eps`` of ``x``."""
    now = start
    for _ in range(steps):
        slope, _ = gradient(value, now)
        delta = now - step_size * steepest(slope, "inf") - x
        now = (x + project(delta, eps, "inf")).clamp(0, 1)
    return now


def adversarial_poison(
    model: nn.Module,
    images: Images,
    *,
    eps: float,
    target: Labels | None = None,
    steps: int = 20,
    **settings,
) -> SampleWise:
    """Adversarial examples of ``model``, trained on clean images, under their true label.

    Fowl et al., "Adversarial Examples Make Strong Poisons" (NeurIPS 2021): up the loss of the true
    class or, stronger and steadier, down that of ``target``, which they choose as
    ``next_class(y, K)``. With ``target=images.y`` it is the "hypocritical" P2 of Tao et al. They
    take 250 steps of 0.05·eps and 8 restarts; ``settings`` go to ``attacks.pgd``.
    """
    check_eps(eps)
    x_adv = attacks.pgd(model, images.x, images.y, eps=eps, target=target, steps=steps, **settings)
    return SampleWise(images, x_adv - images.x, eps)


def universal_poison(
    model: nn.Module,
    images: Images,
    *,
    eps: float,
    target: Labels | None = None,
    steps: int = 20,
    step_size: float | None = None,
) -> ClassWise:
    """``adversarial_poison`` with one noise per class, in L∞.

    P3 (``target=next_class(y, K)``) and P4 (``target=y``) of Tao et al. (NeurIPS 2021). Each sign
    step (2.5·eps/steps) goes up the mean cross-entropy of a class or down that of its target. They
    take 500 steps of eps/5 by batches of 256, in L2.
    """
    check_eps(eps)
    step_size = step_length(step_size, eps, steps)
    x, goal, sign = check_input(model, images.x, images.y, target, steps=steps, step_size=step_size)
    noise = torch.zeros(len(images.classes), *x.shape[1:], device=x.device)

    def loss(rows: Tensor, now: Pixels) -> Tensor:
        # Not the margin: in a sum, images that are at the goal must weigh less than the others.
        return neg_log_likelihood(outputs(model, now), goal[rows])

    with eval_mode(model):
        for _ in range(steps):
            slopes = torch.zeros_like(noise)
            for rows in chunks(rows_of(x), x):
                y = images.y[rows]
                slope, _ = gradient(partial(loss, rows), (x[rows] + noise[y]).clamp(0, 1))
                slopes.index_add_(0, y, slope)
            noise = project(noise + sign * step_size * steepest(slopes, "inf"), eps, "inf")
    return ClassWise(noise, eps)


class ErrorMinimisingNoise:
    """The noise that ``error_minimising`` works on: one per class or one per image."""

    def __init__(self, images: Images, eps: float, class_wise: bool):
        check_eps(eps)
        self.images = images
        self.eps = eps
        self.class_wise = class_wise
        x = images.x
        self.index = images.y if class_wise else rows_of(x)  # which noise each image gets
        count = len(images.classes) if class_wise else len(x)
        self.noise = torch.zeros(count, *x.shape[1:], device=x.device)

    def poisoned(self, rows: Tensor) -> Pixels:
        """The images ``rows`` with their noise."""
        return (self.images.x[rows] + self.noise[self.index[rows]]).clamp(0, 1)

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator) -> None:
        """Trains ``model`` on poisoned batches, given by their rows."""
        for rows in batches:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model, self.poisoned(rows), self.images.y[rows]).backward()
            optimizer.step()

    def descend(self, model: nn.Module, rows: Tensor, steps: int, step_size: float) -> None:
        """Takes sign steps down the loss; class-wise the majority decides."""
        x = self.images.x[rows]
        y = self.images.y[rows]

        def loss(now: Pixels) -> Tensor:
            return margin(outputs(model, now), y)

        if not self.class_wise:
            end = descend(loss, x, self.poisoned(rows), self.eps, steps, step_size)
            self.noise[rows] = end - x
            return
        for _ in range(steps):
            before = self.poisoned(rows)
            moved = descend(loss, x, before, self.eps, 1, step_size) - before
            votes = torch.zeros_like(self.noise).index_add_(0, y, moved.sign())
            self.noise = project(self.noise + step_size * votes.sign(), self.eps, "inf")

    def errors(self, model: nn.Module) -> int:
        """How many poisoned images ``model`` gets wrong, in its present mode."""
        wrong = 0
        for rows in chunks(rows_of(self.images.x), self.images.x):
            with torch.no_grad():
                classes = outputs(model, self.poisoned(rows)).argmax(1)
            wrong += (classes != self.images.y[rows]).sum().item()
        return wrong


@gradients_on()
def error_minimising(
    build: Callable[[], nn.Module],
    images: Images,
    *,
    eps: float,
    class_wise: bool = False,
    batches: int = 10,
    steps: int | None = None,
    step_size: float | None = None,
    stop: float = 0.01,
    rounds: int = 10,
    batch_size: int = 128,
    optimizer: Callable[..., torch.optim.Optimizer] = rmsprop,
    seed: int = 0,
    on_round: Callable[[int, float], None] | None = None,
) -> SampleWise | ClassWise:
    """Noise that leaves nothing to learn: min over θ of the mean of min over δ of ℓ(f(x + δ), y).

    Huang et al., "Unlearnable Examples" (ICLR 2021), Algorithm 1. A round is ``batches`` steps of a
    ``build()`` on x + δ, then ``steps`` (20; class-wise 1) sign steps of eps/10 **down** the loss
    for every δ. Rounds end once the training error on x + δ is ``stop`` or less. Class-wise, every
    image has a vote per pixel and the majority moves the noise; the authors let a fifth of the
    images decide. ``on_round(round, error)`` is called after every round.
    """
    noise = ErrorMinimisingNoise(images, eps, class_wise)
    if steps is None:
        steps = 1 if class_wise else 20
    step_size = eps / 10 if step_size is None else step_size
    counts = {"batches": batches, "steps": steps, "rounds": rounds, "batch_size": batch_size}
    for name, count in counts.items():
        check_count(name, count, 1)
    check_size("step_size", step_size, images.x)
    check_share("stop", stop, "errors")
    with runtime.seeded(seed):
        model = build().to(images.x.device, memory_format=torch.channels_last).train()
        learner = optimizer(model.parameters())
        supply = endless_batches(images.x, batch_size, seed)
        for finished in range(1, rounds + 1):
            noise.train(model, learner, islice(supply, batches))
            with eval_mode(model):
                for rows in chunks(rows_of(images.x), images.x):
                    noise.descend(model, rows, steps, step_size)
                wrong = noise.errors(model)
            if on_round is not None:
                on_round(finished, wrong / len(images))
            if wrong <= stop * len(images):
                break
    return ClassWise(noise.noise, eps) if class_wise else SampleWise(images, noise.noise, eps)


def endless_batches(x: Pixels, batch_size: int, seed: int) -> Iterator[Labels]:
    """Batches of row numbers without end, in a new order after each pass."""
    generator = runtime.generator(seed)
    while True:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        yield from batches(order, batch_size)


def log_gradient_norm(
    model: nn.Module, x: Pixels, y: Labels, layers: Sequence[str] | None = None
) -> Float[Tensor, "n"]:
    """log ‖∂ℓ/∂w‖₂ of each image's cross-entropy ℓ, differentiable in ``x``, in the present mode.

    w are the parameters of ``layers`` (names), by default of the last, linear layer of a
    ``Sequential``. ∂ℓ/∂w = σ(m) ∂m/∂w with the ``margin`` m, so that the logarithm is finite where
    float32 makes the gradient itself zero.
    """
    if layers is None:
        m, square = last_layer_square(model, x, y)
    else:
        m, square = gradient_square(model, x, y, layers)
    return F.logsigmoid(m) + square.clamp(min=torch.finfo(square.dtype).tiny).log() / 2


def last_layer_square(model: nn.Module, x: Pixels, y: Labels) -> tuple[Tensor, Tensor]:
    """The margin m and ‖∂m/∂w‖² for the last layer, as cheap as a step of PGD.

    ∂ℓ/∂w is an outer product, so its norm is ‖p − e_y‖ · ‖(h, 1)‖ with the layer's inputs h and a 1
    for the bias: no second derivative is needed.
    """
    if not isinstance(model, nn.Sequential) or not isinstance(model[-1], nn.Linear):
        raise ValueError(
            "model does not end in a linear layer; name the layers that count, "
            "such as layers=['dense2']."
        )
    h = outputs(model[:-1], x)
    logits = model[-1](h)
    own = F.one_hot(y, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf).softmax(1)
    has_bias = model[-1].bias is not None
    square = (1 + others.square().sum(1)) * (h.square().sum(1) + has_bias)
    return margin(logits, y), square


def gradient_square(
    model: nn.Module, x: Pixels, y: Labels, layers: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """The margin m and ‖∂m/∂w‖² for the parameters of ``layers``, by a gradient per image."""
    known = [
        name
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is not None
    ]
    if not layers or not set(layers) <= set(known):
        raise ValueError(f"layers is {layers!r}; name some of {', '.join(known)}.")
    starts = tuple(f"{layer}." for layer in layers)
    weights = {}
    for name, weight in model.named_parameters():
        if name.startswith(starts):
            weights[name] = weight.detach()

    def margin_of_one(weights: dict, image: Tensor, label: Tensor) -> Tensor:
        # attacks.margin in operations that vmap supports
        logits = functional_call(model, weights, (image.clone()[None],)).squeeze(0)
        own = torch.arange(len(logits), device=x.device) == label
        others = logits.masked_fill(own, -torch.inf).logsumexp(0)
        return others - logits.masked_fill(~own, 0).sum()

    slopes, m = vmap(grad_and_value(margin_of_one), in_dims=(None, 0, 0))(weights, x, y)
    return m, sum(slope.flatten(1).square().sum(1) for slope in slopes.values())


def tensorclog(
    model: nn.Module,
    images: Images,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    lam: float = 0.0,
    layers: Sequence[str] | None = None,
) -> SampleWise:
    """Images whose loss has almost no gradient in the weights: down ‖∂ℓ/∂w‖₂ + ``lam`` · ‖δ‖₂.

    Shen, Zhu and Ma, "TensorClog" (IEEE Access 2019). ``layers`` are those of
    ``log_gradient_norm``, by default the last one, as in the authors' code, which trains nothing
    else. They take 100 plain gradient steps of length 1 with λ = 0.01 in normalised pixels and add
    a norm for weights and one for biases. Here ``eps`` bounds δ already, so λ is 0 and sign steps
    go down the logarithm, which has the same direction.
    """
    check_eps(eps)
    step_size = step_length(step_size, eps, steps)
    x, y, _ = check_input(model, images.x, images.y, steps=steps, step_size=step_size, lam=lam)
    noise = torch.zeros_like(x)

    def clog(rows: Tensor, now: Pixels) -> Tensor:
        norms = log_gradient_norm(model, now, y[rows], layers)
        if not lam:
            return norms
        delta = (now - x[rows]).flatten(1)
        return norms.exp() + lam * torch.linalg.vector_norm(delta, dim=1)

    with eval_mode(model):
        for rows in chunks(rows_of(x), x):
            end = descend(partial(clog, rows), x[rows], x[rows], eps, steps, step_size)
            noise[rows] = end - x[rows]
    return SampleWise(images, noise, eps)


def parameter_gradient(
    model: nn.Module, x: Pixels, y: Labels, *, reverse: bool = False
) -> Float[Tensor, "p"]:
    """The gradient of the batch's cross-entropy −log p_y in all parameters, up to a factor > 0.

    One flat vector, differentiable in ``x``. With ``reverse=True`` that of −log(1 − p_y), which
    falls as the model gets worse (Fowl et al., 2103.02683). Both are log(1 + e^±m) of the
    ``margin`` m. Where all are tiny they are scaled up together, or float32 would make them zero.
    """
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    with gradients_on():
        logits = checked_outputs(functional_call(model, weights, (x.clone(),)), x)
        m = margin(logits, y.clone()) * (-1 if reverse else 1)
        losses = (m - m.detach().max()).exp() if m.max() < -20 else F.softplus(m)
        graph = {"create_graph": x.requires_grad, "materialize_grads": True}
        slopes = torch.autograd.grad(losses.sum(), list(weights.values()), **graph)
        flat = torch.cat([slope.flatten() for slope in slopes])
    return flat / flat.detach().abs().max().clamp(min=torch.finfo(flat.dtype).tiny)


def alignment_loss(
    model: nn.Module, x: Pixels, y: Labels, wanted: Float[Tensor, "p"]
) -> Float[Tensor, ""]:
    """1 − cos of the gradient that training on ``x`` gives and the ``wanted`` one, in [0, 2].

    Fowl et al., 2103.02683.
    """
    return 1 - F.cosine_similarity(parameter_gradient(model, x, y), wanted, dim=0)


@gradients_on()
def gradient_alignment(
    model: nn.Module,
    images: Images,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    batch_size: int = 500,
    seed: int = 0,
) -> SampleWise:
    """A training step on the poison raises the clean loss of ``model``, trained on clean images.

    Fowl et al., "Preventing Unauthorized Use of Proprietary Data" (2021, arXiv 2103.02683): sign
    steps down ``alignment_loss`` to the reverse cross-entropy of the clean images. ``seed`` draws
    the batches, and an image's noise depends on the others in its batch. The authors' numbers of
    steps and restarts are not public.
    """
    check_eps(eps)
    step_size = step_length(step_size, eps, steps)
    x, y, _ = check_input(model, images.x, images.y, steps=steps, step_size=step_size)
    check_count("batch_size", batch_size, 1)
    noise = torch.zeros_like(x)
    supply = endless_batches(x, batch_size, seed)
    count = len(batches(rows_of(x), batch_size))
    with eval_mode(model):
        for rows in islice(supply, count):
            wanted = parameter_gradient(model, x[rows], y[rows], reverse=True)
            loss = partial(alignment_loss, model, y=y[rows], wanted=wanted)
            noise[rows] = descend(loss, x[rows], x[rows], eps, steps, step_size) - x[rows]
    return SampleWise(images, noise, eps)
