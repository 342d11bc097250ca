"""Poisons at training time: a **Poison** is ``poison(images) -> images``; the pixels change by at most eps, labels and order never.

Some are drawn (``uniform_noise``, ``class_noise``), the others are fitted to the images they will poison; all come out as one noise per class
(``ClassWise``) or one per image (``SampleWise``), so that fitting is done once and applying costs nothing. Everything they change goes
through ``perturbed``, which hands out only what a file of bytes can hold.

Models passed in are judged in eval mode and left as found; random numbers come from ``seed``, never from the global state.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from course_utils import attacks, runtime
from course_utils.attacks import _check, _check_count, _chunks, _goal, _gradient, _rows, margin
from course_utils.data import Images
from course_utils.geometry import project, steepest
from course_utils.training import cross_entropy, eval_mode, rmsprop

Poison = Callable[[Images], Images]
BLUR = 2e-4  # of a grey level: what float32 may blur, far below what eyes or models see


# ------------------------------------------------------------------------------------------------------------- applying


def perturbed(images: Images, noise: Float[Tensor, "n c h w"], eps: float) -> Images:
    """``images`` + ``noise`` as a file of bytes holds it: |change| ≤ ``eps``, in [0,1], and every pixel one of the 256 grey levels k/255.

    The nearest grey level is taken among those within ``eps`` of the pixel, so that rounding never breaks the bound and both signs survive:
    code that turns the noise itself into bytes before adding it loses all that is negative. A pixel with no grey level within ``eps``
    stays as it is, and with ``eps`` 0 all do.

    Raises:
        ValueError: ``eps`` outside [0, 1], or ``noise`` of another shape or not a number.
    """
    _check_eps(eps)
    x = images.x
    if noise.shape != x.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; give one noise per image, {tuple(x.shape)}.")
    if noise.isnan().any():
        raise ValueError("noise holds NaN; whatever made it has diverged: use a smaller step.")
    if eps == 0:
        return images
    result = torch.empty_like(x)
    for rows in _chunks(_rows(x)):
        clean = x[rows]
        level = (255 * (clean + noise[rows].to(clean))).round()
        low, high = (255 * (clean - eps) - BLUR).ceil().clamp(min=0), (255 * (clean + eps) + BLUR).floor().clamp(max=255)
        result[rows] = torch.where(low <= high, level.clamp(low, high) / 255, clean)
    return replace(images, x=result)


@dataclass(frozen=True, eq=False)
class ClassWise:
    """A poison with one noise per class: ``noise`` (K, C, H, W) within [−eps, eps]."""

    noise: Float[Tensor, "k c h w"]
    eps: float

    def __post_init__(self):
        _check_eps(self.eps)

    def __call__(self, images: Images) -> Images:
        if len(self.noise) != len(images.classes):
            raise ValueError(f"images have {len(images.classes)} classes, but there is noise for {len(self.noise)}; give one per class.")
        return perturbed(images, self.noise.to(images.x.device)[images.y], self.eps)


class SampleWise:
    """A poison with one noise per image: ``noise`` (N, C, H, W) within [−eps, eps], fitted to ``images``.

    The noise travels with its image, which is known by its pixels and label: any of the fitted images in any order get each its own. Equal
    images of one class share the noise of the first. An image that it was not fitted to is a ``ValueError``.
    """

    def __init__(self, images: Images, noise: Float[Tensor, "n c h w"], eps: float):
        _check_eps(eps)
        if noise.shape != images.x.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; give one noise per image, {tuple(images.x.shape)}.")
        self.noise, self.eps, self.rows = noise, eps, {}
        for row, key in enumerate(_keys(images)):
            self.rows.setdefault(key, row)

    def __call__(self, images: Images) -> Images:
        rows = [self.rows.get(key, -1) for key in _keys(images)]
        if -1 in rows:
            raise ValueError(
                f"images has {rows.count(-1)} of {len(rows)} that this poison was not fitted to (the first is number {rows.index(-1)}); "
                "fit it to all images that it shall poison."
            )
        return perturbed(images, self.noise[torch.tensor(rows, dtype=torch.int64)].to(images.x.device), self.eps)


def _keys(images: Images) -> Iterator[tuple[bytes, int]]:
    pixels = images.x.detach().cpu().contiguous().numpy()
    return ((hashlib.sha1(image).digest(), label) for image, label in zip(pixels, images.y.tolist(), strict=True))


def _check_eps(eps: float) -> None:
    if not 0 <= eps <= 1:  # written so that NaN fails too
        raise ValueError(f"eps is {eps!r}; give a bound between 0 and 1, in pixels of [0,1].")


def next_class(y: Int[Tensor, "n"], classes: int) -> Int[Tensor, "n"]:
    """(y + 1) mod ``classes``: the class that targeted poisons aim at (DeepConfuse, section 5.5; Fowl et al., NeurIPS 2021)."""
    return (y + 1) % classes


def mixed(clean: Images, poison: Poison, share: float, seed: int = 0) -> Images:
    """``clean`` with the ``share`` (in [0,1], rounded to whole images) that ``seed`` draws poisoned; a larger share poisons these and more."""
    rows = _drawn(clean, share, seed)
    x = clean.x.clone()
    if len(rows):
        x[rows] = poison(clean[rows]).x
    return replace(clean, x=x)


def flipped(images: Images, share: float, seed: int = 0) -> Images:
    """``images`` in which the ``share`` that ``seed`` draws has got a label at random, by chance the right one too: the control of DeepConfuse's Figure 5.

    No poison in the sense above: here the labels change and the pixels stay.
    """
    rows = _drawn(images, share, seed)
    shift = torch.randint(len(images.classes), (len(images),), generator=runtime.generator(seed)).to(rows.device)
    y = images.y.clone()
    y[rows] = (y[rows] + shift[rows]) % len(images.classes)
    return replace(images, y=y)


def _drawn(images: Images, share: float, seed: int) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share!r}; give the share of the images, between 0 and 1.")
    return torch.randperm(len(images), generator=runtime.generator(seed)).to(images.x.device)[: round(share * len(images))]


# ---------------------------------------------------------------------------------------------------------------- drawn


def uniform_noise(images: Images, *, eps: float, seed: int = 0) -> SampleWise:
    """The control that every poison must beat: each pixel of each image uniform in [−eps, eps], nothing about classes in it."""
    _check_eps(eps)
    noise = torch.rand(images.x.shape, generator=runtime.generator(seed)).mul_(2 * eps).sub_(eps)
    return SampleWise(images, noise.to(images.x.device), eps)


def class_noise(images: Images, *, eps: float, seed: int = 0) -> ClassWise:
    """One random pattern of ±eps per class and no fitting at all: P5 of "Better Safe Than Sorry" (Tao et al., NeurIPS 2021), in L∞."""
    sign = torch.randint(2, (len(images.classes), *images.x.shape[1:]), generator=runtime.generator(seed)) * 2 - 1
    return ClassWise((eps * sign).to(images.x), eps)


# --------------------------------------------------------------------------------------------------------------- fitted


def _stride(model: nn.Module, images: Images, eps: float, steps: int, step_size: float | None, **more: float) -> float:
    """Refuses bad input and gives the length of a step, by default that of ``attacks.pgd``."""
    _check_eps(eps)
    step_size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    _check(model, images.x, images.y, "images.y", steps, eps=eps, step_size=step_size, **more)
    return step_size


def _descend(value: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, steps: int, step_size: float) -> Tensor:
    """From ``start``, ``steps`` sign steps down ``value(images)`` (its sum), each projected to within ``eps`` of ``x`` and clipped to [0,1]."""
    now = start
    for _ in range(steps):
        with torch.enable_grad():  # the caller may have switched gradients off
            now = now.detach().requires_grad_()
            gradient = torch.autograd.grad(value(now).sum(), now)[0]
        now = (x + project(now.detach() - step_size * steepest(gradient, "inf") - x, eps, "inf")).clamp(0, 1)
    return now


def adversarial_poison(
    model: nn.Module, images: Images, *, eps: float, target: Int[Tensor, "n"] | None = None, steps: int = 20, **settings
) -> SampleWise:
    """Adversarial examples of ``model``, trained on clean images, as training images under their true label.

    Fowl et al., "Adversarial Examples Make Strong Poisons" (NeurIPS 2021): up the loss of the true class or, stronger and steadier, down
    that of ``target``, which they choose as ``next_class(y, K)``. With ``target=images.y`` it is the "hypocritical" P2 of Tao et al. They
    take 250 steps of 0.05·eps and 8 restarts; ``settings`` (``step_size``, ``restarts``, …) go to ``attacks.pgd``.
    """
    _check_eps(eps)
    x_adv = attacks.pgd(model, images.x, images.y if target is None else None, eps=eps, target=target, steps=steps, **settings)
    return SampleWise(images, x_adv - images.x, eps)


def universal_poison(
    model: nn.Module, images: Images, *, eps: float, target: Int[Tensor, "n"] | None = None, steps: int = 20, step_size: float | None = None
) -> ClassWise:
    """``adversarial_poison`` with one noise per class: P3 (``target=next_class(y, K)``) and P4 (``target=y``) of Tao et al. (NeurIPS 2021), in L∞.

    Up the mean cross-entropy of a class or, with ``target``, down that of the target: sign steps of ``step_size`` (2.5·eps/steps), each by
    all images of the class together. They take 500 steps of eps/5 by batches of 256, in L2.
    """
    x, step_size = images.x, _stride(model, images, eps, steps, step_size)
    goal, sign, name = _goal(images.y, target)
    if target is not None:  # images.y is checked
        _check(model, x, goal, name)
    noise = torch.zeros(len(images.classes), *x.shape[1:], device=x.device)
    with eval_mode(model):
        for _ in range(steps):
            slopes = torch.zeros_like(noise)
            for rows in _chunks(_rows(x)):
                # Not the margin: in a sum the images that are there already must weigh less than those that are not.
                loss = lambda now: F.cross_entropy(model(now), goal[rows], reduction="none")  # noqa: B023, E731 (used up within the loop)
                slopes.index_add_(0, images.y[rows], _gradient(loss, (x[rows] + noise[images.y[rows]]).clamp(0, 1))[0])
            noise = project(noise + sign * step_size * steepest(slopes, "inf"), eps, "inf")
    return ClassWise(noise, eps)


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

    Huang et al., "Unlearnable Examples" (ICLR 2021), Algorithm 1: ``batches`` steps of a fresh ``build()`` on x + δ, then every δ goes
    ``steps`` (20; class-wise 1) sign steps of eps/10 **down** the loss; again until the training error on x + δ is ``stop`` or less, at most
    ``rounds`` times. ``on_round(round, error)`` watches. Class-wise, every image of a batch casts a vote per pixel and the majority moves
    its class; the authors let a fifth of the images decide.
    """
    _check_eps(eps)
    steps = (1 if class_wise else 20) if steps is None else steps
    for name, count in (("batches", batches), ("steps", steps), ("rounds", rounds), ("batch_size", batch_size)):
        _check_count(name, count, 1)
    step_size = eps / 10 if step_size is None else step_size
    if not (0 <= step_size and 0 <= stop <= 1):
        raise ValueError(f"step_size is {step_size!r} and stop {stop!r}; give a step of 0 or more and an error between 0 and 1.")
    x, y = images.x, images.y
    owner = y if class_wise else _rows(x)  # whose noise an image wears
    noise = torch.zeros(len(images.classes) if class_wise else len(x), *x.shape[1:], device=x.device)

    def worn(rows: Tensor) -> Tensor:
        return (x[rows] + noise[owner[rows]]).clamp(0, 1)

    with runtime.seeded(seed), torch.enable_grad():
        model = build().to(x.device, memory_format=torch.channels_last).train()  # as training.fit does
        learner, supply = optimizer(model.parameters()), _batches(x, batch_size, seed)
        for finished in range(1, rounds + 1):
            for rows in islice(supply, batches):
                learner.zero_grad(set_to_none=True)
                cross_entropy(model, worn(rows), y[rows]).backward()
                learner.step()
            wrong = 0
            with eval_mode(model):
                for rows in _chunks(_rows(x)):
                    loss = lambda now: margin(model(now), y[rows])  # noqa: B023, E731 (used up within the loop)
                    if class_wise:
                        for _ in range(steps):
                            moved = _descend(loss, x[rows], worn(rows), eps, 1, step_size) - worn(rows)
                            votes = torch.zeros_like(noise).index_add_(0, y[rows], moved.sign())
                            noise = project(noise + step_size * votes.sign(), eps, "inf")
                    else:
                        noise[rows] = _descend(loss, x[rows], worn(rows), eps, steps, step_size) - x[rows]
                for rows in _chunks(_rows(x)):
                    with torch.no_grad():
                        wrong += (model(worn(rows)).argmax(1) != y[rows]).sum().item()
            if on_round is not None:
                on_round(finished, wrong / len(x))
            if wrong <= stop * len(x):
                break
    return ClassWise(noise, eps) if class_wise else SampleWise(images, noise, eps)


def _batches(x: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of rows without end, in a new order after each pass."""
    generator = runtime.generator(seed)
    while True:
        yield from torch.randperm(len(x), generator=generator).to(x.device).split(batch_size)


def log_gradient_norm(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"], layers: Sequence[str] | None = None
) -> Float[Tensor, "n"]:
    """log ‖∂ℓ/∂w‖₂ of each image's own cross-entropy ℓ, differentiable in ``x``; w are the parameters of ``layers`` (names), in the present mode.

    ∂ℓ/∂w = σ(m) ∂m/∂w with the ``margin`` m, so that the logarithm stands where float32 makes the gradient itself zero. Without ``layers``
    w is the last, linear layer of a ``Sequential``, and the gradient an outer product of p − e_y with its inputs and a 1 for the bias: the
    norm is ‖p − e_y‖ · ‖(h, 1)‖, no second derivative is needed and a step costs no more than one of PGD.
    """
    if layers is None:
        if not isinstance(model, nn.Sequential) or not isinstance(model[-1], nn.Linear):
            raise ValueError("model does not end in a linear layer; name the layers that count, such as layers=['dense2'].")
        h = model[:-1](x)
        logits = model[-1](h)
        m, others = margin(logits, y), logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf).softmax(1)
        square = (1 + others.square().sum(1)) * (h.square().sum(1) + (model[-1].bias is not None))
    else:
        weights = {name: p.detach() for name, p in model.named_parameters() if name.startswith(tuple(f"{layer}." for layer in layers))}
        known = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
        if not layers or not set(layers) <= set(known):
            raise ValueError(f"layers is {layers!r}; name some of {', '.join(known)}.")

        def of_one(weights: dict, image: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(model, weights, (image[None],)).squeeze(0)
            own = torch.arange(len(logits), device=x.device) == label  # attacks.margin in operations that vmap knows
            return logits.masked_fill(own, -torch.inf).logsumexp(0) - logits.masked_fill(~own, 0).sum()

        gradients, m = vmap(grad_and_value(of_one), in_dims=(None, 0, 0))(weights, x, y)
        square = sum(gradient.flatten(1).square().sum(1) for gradient in gradients.values())
    return F.logsigmoid(m) + square.clamp(min=torch.finfo(square.dtype).tiny).log() / 2


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
    """Images whose loss has next to no gradient in the weights: each goes down ‖∂ℓ/∂w‖₂ + ``lam`` · ‖δ‖₂.

    Shen, Zhu and Ma, "TensorClog" (IEEE Access 2019). ``layers`` are those of ``log_gradient_norm``; the default is the last one, as in
    the authors' code, which trains nothing else. They take 100 plain gradient steps of length 1 with λ = 0.01 in normalised pixels and add
    up a norm for weights and one for biases. Here sign steps share the ball of the other poisons, which bounds δ already: hence λ = 0, with
    which the logarithm is descended, whose direction is the same.
    """
    x, step_size = images.x, _stride(model, images, eps, steps, step_size, lam=lam)
    noise = torch.zeros_like(x)
    with eval_mode(model):
        for rows in _chunks(_rows(x)):
            clean, y = x[rows], images.y[rows]

            def clog(now: Tensor, clean=clean, y=y) -> Tensor:
                norms = log_gradient_norm(model, now, y, layers)
                return norms.exp() + lam * torch.linalg.vector_norm((now - clean).flatten(1), dim=1) if lam else norms

            noise[rows] = _descend(clog, clean, clean, eps, steps, step_size) - clean
    return SampleWise(images, noise, eps)


def parameter_gradient(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"], *, reverse: bool = False) -> Float[Tensor, "p"]:
    """The gradient, up to a positive factor, of the batch's cross-entropy −log p_y in all parameters, one flat vector differentiable in ``x``.

    With ``reverse=True`` that of the reverse cross-entropy −log(1 − p_y), which falls as the model gets worse (Fowl et al., 2103.02683). Both
    are log(1 + e^±m) of the ``margin`` m. Where every image is far on the side without loss, all losses are scaled up together, or
    float32 would make them zero.
    """
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    with torch.enable_grad():
        m = margin(functional_call(model, weights, (x,)), y) * (-1 if reverse else 1)
        losses = (m - m.detach().max()).exp() if m.max() < -20 else F.softplus(m)
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), list(weights.values()), create_graph=x.requires_grad)])
    return flat / flat.detach().abs().max().clamp(min=torch.finfo(flat.dtype).tiny)


def alignment_loss(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"], wanted: Float[Tensor, "p"]) -> Float[Tensor, ""]:
    """1 − cos of the gradient that training on ``x`` gives and the ``wanted`` one (Fowl et al., 2103.02683); between 0 and 2."""
    return 1 - F.cosine_similarity(parameter_gradient(model, x, y), wanted, dim=0)


def gradient_alignment(
    model: nn.Module, images: Images, *, eps: float, steps: int = 20, step_size: float | None = None, batch_size: int = 500, seed: int = 0
) -> SampleWise:
    """A step of training on the poison is to move ``model``, trained on clean images, the way that raises its clean loss.

    Fowl et al., "Preventing Unauthorized Use of Proprietary Data" (2021, arXiv 2103.02683): sign steps down ``alignment_loss`` to the reverse
    cross-entropy of the clean images. Second order, over batches drawn by ``seed``: an image's noise depends on its company. The authors'
    numbers of steps and restarts are not public.
    """
    x, y, step_size = images.x, images.y, _stride(model, images, eps, steps, step_size)
    _check_count("batch_size", batch_size, 1)
    noise = torch.zeros_like(x)
    with eval_mode(model):
        for rows in islice(_batches(x, batch_size, seed), math.ceil(len(x) / batch_size)):
            wanted = parameter_gradient(model, x[rows], y[rows], reverse=True)
            loss = lambda now: alignment_loss(model, now, y[rows], wanted)  # noqa: B023, E731 (used up within the loop)
            noise[rows] = _descend(loss, x[rows], x[rows], eps, steps, step_size) - x[rows]
    return SampleWise(images, noise, eps)
