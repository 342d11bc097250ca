"""Attacks at test time: plain functions ``attack(model, x, …) -> x_adv``.

What all of them keep (``tests/test_attacks.py`` holds them to it):

- ``x`` is a batch of images in [0,1], shape (N, …), and so is the result; ``y`` and ``target`` are integer labels, shape (N,).
- The model is judged in eval mode and left as found: parameters, ``.grad``, train/eval flags, batch-norm statistics. Gradients are taken
  with respect to the images only. Random numbers come from ``generator`` (by default a fresh one with seed 0), never from the global state.
- What happens to one image does not depend on the others in its batch, and a large batch is worked through in chunks.
- ``on_step(step, x_adv)`` is called after every step (1, 2, …) with a copy of the whole batch.

Bad input is a ``ValueError`` that names the argument, what it got and the cure.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_utils import runtime
from course_utils.geometry import Norm, check_norm, dual_norm, per_sample, project, steepest
from course_utils.geometry import norm as size_of
from course_utils.training import eval_mode, predict

Images = Float[Tensor, "n c h w"]
Labels = Int[Tensor, "n"]
OnStep = Callable[[int, Tensor], None]
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (N, K), labels (N,)) -> one loss per image (N,)

CHUNK = {"cpu": 512}  # images worked on at once; other devices take more
CHUNK_ELSEWHERE = 4096


# --------------------------------------------------------------------------------------------------------------- losses


def cross_entropy(logits: Float[Tensor, "n k"], y: Labels) -> Float[Tensor, "n"]:
    """−log p_y of every image."""
    return F.cross_entropy(logits, y, reduction="none")


def swapped_bce(logits: Float[Tensor, "n k"], y: Labels) -> Float[Tensor, "n"]:
    """The loss that Wang's slides really minimise: Keras' binary cross-entropy with prediction and target swapped.

    Keras clips its second argument, here the one-hot target, to [1e-7, 1 − 1e-7]; the logarithms become two constants and what is left is
    linear in the probabilities: for ten classes 3.206·(1 − p_y), flat wherever p_y is near 0 or 1.
    """
    p = logits.softmax(1)
    clipped = F.one_hot(y, logits.shape[1]).to(torch.float32).clamp(1e-7, 1 - 1e-7).to(p)  # float32, as Keras computes it
    return -(p * clipped.log() + (1 - p) * (1 - clipped).log()).mean(1)


def margin(logits: Float[Tensor, "n k"], y: Labels) -> Float[Tensor, "n"]:
    """log Σ_{j≠y} exp z_j − z_y: positive once the other classes together outweigh y.

    Cross-entropy is log(1 + exp(margin)), so both have their gradients in the same direction; but the gradient of the margin does not
    vanish when the model is confident, where float32 turns the softmax into exact zeros and ones. Every attack that uses only the direction
    climbs the margin.
    """
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _fooled(logits: Float[Tensor, "n k"], labels: Labels, sign: int, times: int = 1) -> Bool[Tensor, "n"]:
    """Whether another class than the label leads (sign 1), or the label leads (sign −1), by more than float32 could blur, ``times`` over."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    best_other = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf).amax(1)
    return sign * (best_other - own) > times * 1e-5 * (1 + logits.abs().amax(1))


# --------------------------------------------------------------------------------------------------- what attacks share


def _check_images(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() not in (2, 4) or not x.is_floating_point():
        got = f"{x.dtype}, shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} is {got}; give a batch of float images, shape (N, C, H, W); one image is x[None].")
    if len(x) and not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails too
        found = f"{name} reaches from {x.min():.4g} to {x.max():.4g}"
        raise ValueError(f"{found}; scale images to [0,1] (a normalisation belongs inside the model).")


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number, {least} or more.")


def _check(model: nn.Module, x: Tensor, labels: Tensor, name: str, steps: int = 0, **sizes: float | Tensor) -> Tensor:
    """Refuses bad input by name, value and cure; warns of a model that seems to give probabilities. Returns ``x`` without its graph."""
    _check_images("x", x)
    if not isinstance(labels, Tensor) or labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        got = f"{labels.dtype}, shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
        raise ValueError(f"{name} is {got}; give one integer label per image, a tensor of shape ({len(x)},), int64 as by .long().")
    if labels.device != x.device:
        raise ValueError(f"{name} is on {labels.device} and x on {x.device}; move one of them.")
    _check_count("steps", steps, 0)
    for argument, value in sizes.items():
        value = torch.as_tensor(value)
        if not (torch.isfinite(value).all() and (value >= 0).all()) or value.dim() > 1 or (value.dim() and len(value) != len(x)):
            raise ValueError(f"{argument} is {value.tolist()}; give a finite number of 0 or more (eps may hold one per image).")
    if not len(x):
        return x.detach()
    logits = predict(model, x[:8])
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"model gives shape {tuple(logits.shape)} for {len(x[:8])} images; it must give logits of two or more classes, (N, K)."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"{name} reaches from {labels.min()} to {labels.max()}; the model knows classes 0 to {logits.shape[1] - 1}.")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        warnings.warn(
            "The model's outputs are positive and sum to 1: they look like probabilities. Attacks need logits, the values before softmax; "
            "with probabilities gradients vanish and the model looks more robust than it is. Leave out the last softmax.",
            stacklevel=1 + next(level for level, frame in enumerate(inspect.stack(0)) if frame.filename != __file__),
        )
    return x.detach()


def _gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of ``value(x)`` (one number per image) with respect to ``x`` alone, and the values.

    The numbers are summed, not averaged: each image gets the gradient of its own value, whatever the batch.
    """
    with torch.enable_grad():  # the caller may have switched gradients off
        x = x.detach().requires_grad_()
        values = value(x)
        return torch.autograd.grad(values.sum(), x)[0], values.detach()


def loss_gradient(model: nn.Module, x: Float[Tensor, "n ..."], y: Labels) -> Tensor:
    """The gradient of ``margin`` with respect to ``x``, in the model's present mode: the direction in which cross-entropy grows most."""
    return _gradient(lambda v: margin(model(v), y), x)[0]


def _direction(value: Callable[[Tensor], Tensor], x: Tensor, p: Norm, box: bool) -> Tensor:
    """The steepest direction in which ``value(x)`` grows."""
    g, _ = _gradient(value, x)
    return steepest(_with_room(g, x, p, box), p)


def _with_room(g: Tensor, x: Tensor, p: Norm, box: bool) -> Tensor:
    """In L1, where a step is one pixel, a pixel at the end of the box passes its turn."""
    return g.masked_fill((x >= 1) & (g > 0) | (x <= 0) & (g < 0), 0) if p == 1 and box else g


def _goal(y: Tensor | None, target: Tensor | None) -> tuple[Tensor | None, int, str]:
    """Up (1) the loss of ``y``, or down (−1) the loss of ``target``: the labels, the sign, and the argument's name."""
    if y is None and target is None:
        raise ValueError("y and target are both missing; give y to leave a class, or target to reach one.")
    return (y, 1, "y") if target is None else (target, -1, "target")


def _clip(x_adv: Tensor, box: bool) -> Tensor:
    return x_adv.clamp(0, 1) if box else x_adv


def _one_each(value: float | Tensor, x: Tensor) -> Tensor:
    """``value`` for every image, shape (N,), in the precision of the images."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(CHUNK.get(rows.device.type, CHUNK_ELSEWHERE)) if len(rows) else ()


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _walk(
    model: nn.Module,
    x_adv: Tensor,
    steps: int,
    move: Callable[[int, Tensor, Tensor], Tensor],
    on_step: OnStep | None = None,
    finished: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The loop of every attack: ``steps`` times, ``move(step, rows, x_adv[rows])`` gives the next images of a chunk; in place.

    All chunks take a step before any takes the next, so that ``on_step`` sees the whole batch while no more than the batch and one chunk's
    work is held. With ``finished(rows) -> mask``, images that are done take no further step.
    """
    rows = _rows(x_adv)
    with eval_mode(model):
        for step in range(1, steps + 1):
            if finished is not None and len(rows):
                rows = rows[~finished(rows)]
            for chunk in _chunks(rows):
                x_adv[chunk] = move(step, chunk, x_adv[chunk])
            if on_step is not None:
                on_step(step, x_adv.clone())
    return x_adv


def succeeded(model: nn.Module, x_adv: Images, y: Labels | None = None, target: Labels | None = None) -> Bool[Tensor, "n"]:
    """Whether each image is classified as ``target`` or, without one, as anything but ``y``; in eval mode.

    The lead must exceed what rounding in float32 could change, so that the verdict stands in any batch and in float64.
    """
    labels, sign, _ = _goal(y, target)
    return _fooled(predict(model, x_adv), labels, sign)


# -------------------------------------------------------------------------------------------------------------- attacks


def roughness(x: Images) -> Float[Tensor, "n"]:
    """Sum of the squared differences between neighbouring pixels of each image; small for smooth images."""
    return x.diff(dim=-1).square().flatten(1).sum(1) + x.diff(dim=-2).square().flatten(1).sum(1)


def fake_image(
    model: nn.Module,
    x: Images,
    target: Labels,
    *,
    steps: int = 10,
    step_size: float = 0.5,
    loss: Loss = swapped_bce,
    box: bool = False,
    smoothness: float = 0.0,
    on_step: OnStep | None = None,
) -> Images:
    """Plain gradient descent on the image until the model sees ``target``; ``x`` is where it starts, usually noise.

    As on Wang's slides ("Generate Fake Image"): 10 steps of 0.5 on the slides' loss, and nothing keeps the pixels in [0,1]. ``box=True``
    clips them after each step; ``smoothness`` is the weight of ``roughness`` in the loss.
    """
    x = _check(model, x, target, "target", steps, step_size=step_size, smoothness=smoothness)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        gradient, _ = _gradient(lambda v: loss(model(v), target[rows]) + smoothness * roughness(v), now)
        return _clip(now - step_size * gradient, box)

    return _walk(model, x.clone(), steps, move, on_step)


def untargeted(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    steps: int = 20,
    step_size: float = 0.05,
    early_stop: bool = False,
    on_step: OnStep | None = None,
) -> Images:
    """Ascent on the loss of the true label, each gradient divided by its largest entry, clipped to [0,1].

    From Wang's slides ("Untargeted Attack"): 20 steps of 0.05, so a pixel moves by at most 1. The slides' code always takes all steps,
    their formula stops an image when it is misclassified: ``early_stop=True``. Dividing by the largest entry makes all losses that grow
    with cross-entropy one and the same attack; here it climbs ``margin``.
    """
    x = _check(model, x, y, "y", steps, step_size=step_size)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        gradient, _ = _gradient(lambda v: margin(model(v), y[rows]), now)
        largest = size_of(gradient, "inf")
        scaled = gradient / per_sample(torch.where(largest > 0, largest, 1), gradient)
        return (now + step_size * scaled).clamp(0, 1)

    x_adv = x.clone()
    finished = (lambda rows: succeeded(model, x_adv[rows], y[rows])) if early_stop else None
    return _walk(model, x_adv, steps, move, on_step, finished)


DISTANCES = {
    "l1": lambda delta: delta.abs().flatten(1).mean(1),
    "l2": lambda delta: delta.square().flatten(1).mean(1),
}


def targeted(
    model: nn.Module,
    x: Images,
    target: Labels,
    *,
    lam: float = 30.0,
    distance: str = "l1",
    steps: int = 100,
    step_size: float = 0.05,
    loss: Loss = cross_entropy,
    start: Images | None = None,
    on_step: OnStep | None = None,
) -> Images:
    """Minimises loss(target) + ``lam`` · distance(x_adv, x) by Adam, clipped to [0,1]; gives each image's best iterate, the start included.

    From Wang's slides ("Targeted Attack"), which use λ = 30 and the mean absolute difference (``"l1"``) or, commented out, the mean square
    (``"l2"``). They name no optimiser; Adam with these defaults reaches all ten targets. ``start`` is where it begins (default: ``x``).
    """
    x = _check(model, x, target, "target", steps, lam=lam, step_size=step_size)
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; use one of {', '.join(map(repr, DISTANCES))}.")
    if start is None:
        start = x
    _check_images("start", start)
    if (start.shape, start.dtype, start.device) != (x.shape, x.dtype, x.device):
        found = f"start is {start.dtype}, shape {tuple(start.shape)}, on {start.device}"
        raise ValueError(f"{found}; give one start per image, like x: {x.dtype}, shape {tuple(x.shape)}, on {x.device}.")
    start = start.detach()
    best, lowest = start.clone(), torch.full_like(x.flatten(1)[:, 0], torch.inf)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)

    def judge(rows: Tensor, now: Tensor) -> Tensor:
        """Keeps the images that are better than any before and returns the gradient of the objective."""
        objective = lambda v: loss(model(v), target[rows]) + lam * DISTANCES[distance](v - x[rows])  # noqa: E731
        gradient, value = _gradient(objective, now)
        better = value < lowest[rows]
        lowest[rows[better]], best[rows[better]] = value[better], now[better]
        return gradient

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        gradient = judge(rows, now)
        mean[rows] = mean[rows].lerp(gradient, 0.1)  # Adam, with its usual constants
        square[rows] = square[rows].lerp(gradient.square(), 0.001)
        stride = (mean[rows] / (1 - 0.9**step)) / ((square[rows] / (1 - 0.999**step)).sqrt() + 1e-8)
        return (now - step_size * stride).clamp(0, 1)

    x_adv = _walk(model, start.clone(), steps, move, on_step)
    with eval_mode(model):
        for rows in _chunks(_rows(x)) if steps else ():
            judge(rows, x_adv[rows])
    return best


def fgsm(
    model: nn.Module,
    x: Images,
    y: Labels | None = None,
    *,
    eps: float | Tensor,
    norm: Norm = "inf",
    target: Labels | None = None,
    box: bool = True,
) -> Images:
    """One full step in the steepest direction: x + ε · steepest(∇ loss), clipped to [0,1] unless ``box=False``.

    Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", section 4, for L∞; ``norm`` 2 and 1 follow from the
    same formula. Up the loss of ``y``, or down the loss of ``target`` when one is given (``y`` is then not needed).
    """
    labels, sign, name = _goal(y, target)
    x = _check(model, x, labels, name, eps=eps)
    p, radius = check_norm(norm), _one_each(eps, x)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        direction = _direction(lambda v: sign * margin(model(v), labels[rows]), now, p, box)
        return _clip(now + per_sample(radius[rows], now) * direction, box)

    return _walk(model, x.clone(), 1, move)


def adv_loss(model: nn.Module, x: Images, y: Labels, *, eps: float | Tensor, norm: Norm = 2, box: bool = True) -> Images:
    """Adv_Loss of *Learning with Adversary*, section 3.1.1: the step of length ``eps`` that lowers the linearised p_y most.

    Cross-entropy falls as p_y grows, so −T_y (the source forgets the minus) and the gradient of the loss point the same way: this is
    ``fgsm`` in the norm ``norm``. The source does not clip: ``box=False``.
    """
    return fgsm(model, x, y, eps=eps, norm=norm, box=box)


def adv_loss_sign(model: nn.Module, x: Images, y: Labels, *, eps: float | Tensor, box: bool = True) -> Images:
    """Adv_Loss_Sign of *Learning with Adversary*: the direction of ``fgsm`` in L∞, the sign of the gradient, at the **L2** length ``eps``."""
    x, radius = _check(model, x, y, "y", eps=eps), _one_each(eps, x)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        sign = _direction(lambda v: margin(model(v), y[rows]), now, "inf", box)
        return _clip(now + per_sample(radius[rows], now) * steepest(sign, 2), box)

    return _walk(model, x.clone(), 1, move)


def adv_alpha(model: nn.Module, x: Images, y: Labels, *, eps: float | Tensor, norm: Norm = 2, box: bool = True) -> Images:
    """Adv_Alpha of *Learning with Adversary*, section 3.1.2: a step of length ``eps`` towards the nearest class of the linearised softmax.

    The direction is that of ``nearest_boundary`` (Algorithm 1). The source does not clip: ``box=False``.
    """
    x, p, radius = _check(model, x, y, "y", eps=eps), check_norm(norm), _one_each(eps, x)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        towards, _ = nearest_boundary(model, now, y[rows], norm=p, box=box)
        return _clip(now + per_sample(radius[rows], now) * steepest(towards, p), box)

    return _walk(model, x.clone(), 1, move)


def nearest_boundary(
    model: nn.Module, x: Images, y: Labels, *, norm: Norm = 2, softmax: bool = True, box: bool = False
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n"]]:
    """The nearest wrong class of the linearised model: its direction, and how far away it is (negative for an image already wrong).

    *Learning with Adversary*, Algorithm 1 with Propositions 2.1 and 2.2: class j takes over at distance (α_y − α_j) / ‖T_j − T_y‖_*, where
    α is the softmax output and T its Jacobian; the nearest j wins, and the direction is T_j − T_y (the source prints ≤ where its solution
    needs ≥). With ``softmax=False`` the logits take the place of α: a step of DeepFool. ``steepest(direction, norm)`` times the distance is
    the minimal perturbation of the linearised model. It needs one backward pass per class, K − 1 times the cost of a loss gradient.
    With ``box=True`` and L1, where one pixel makes the whole step, only pixels count that have room to move in [0,1].
    """
    p = check_norm(norm)
    with torch.enable_grad(), eval_mode(model):
        x = x.detach().requires_grad_()
        logits = model(x)
        lead = logits.gather(1, y[:, None]) - logits  # z_y − z_k
        others = torch.arange(logits.shape[1] - 1, device=x.device).expand(len(x), -1)
        others = others + (others >= y[:, None])  # all classes but y
        leads = lead.gather(1, others)
        slopes = [-torch.autograd.grad(leads[:, k].sum(), x, retain_graph=k + 1 < leads.shape[1])[0] for k in range(leads.shape[1])]
        slopes, leads = torch.stack(slopes, 1).flatten(2), leads.detach()  # D_k = ∇(z_k − z_y), shape (N, K − 1, pixels)
    wrong, sizes = leads < 0, leads.abs().log()
    if softmax:
        # T_k − T_y = Σ_j C_kj D_j with C_kj = (α_y − α_k) α_j, but C_kk = α_k (2 α_y + Σ_{j≠y,k} α_j): nothing in it cancels. In logarithms,
        # each row divided by its largest entry, nothing underflows either, however sure the model is.
        log_alpha = logits.detach().log_softmax(1)
        log_y, log_k = log_alpha.gather(1, y[:, None]), log_alpha.gather(1, others)
        sizes = torch.maximum(log_y, log_k) + (-torch.expm1(-leads.abs())).log()  # log |α_y − α_k|
        self = torch.eye(leads.shape[1], dtype=torch.bool, device=x.device)
        rest = log_k[:, None, :].masked_fill(self, -torch.inf).logsumexp(2)
        own = log_k + torch.logaddexp(log_y + math.log(2), rest)
        log_c = torch.where(self, own[:, :, None], sizes[:, :, None] + log_k[:, None, :])
        largest = log_c.amax(2, keepdim=True)
        sign = torch.where(wrong[:, :, None] & ~self, -1, 1)
        slopes, sizes = (sign * (log_c - largest).exp()) @ slopes, sizes - largest.squeeze(2)
    slopes = _with_room(slopes, x.detach().flatten(1)[:, None], p, box)
    lengths = dual_norm(slopes.flatten(0, 1), p).view_as(leads)
    far = torch.where(lengths > 0, sizes - lengths.log(), torch.inf)  # log |distance|; no slope: a boundary that is nowhere in sight
    order = torch.where(wrong & (lengths > 0), -far, far.masked_fill(wrong.any(1, keepdim=True), torch.inf))
    nearest = order.argmin(1, keepdim=True)
    distance = torch.where(wrong, -far.exp(), far.exp()).gather(1, nearest).squeeze(1)
    return slopes.gather(1, nearest[:, :, None].expand(-1, 1, slopes.shape[2])).view_as(x), distance


def deepfool(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    norm: Norm = 2,
    steps: int = 50,
    overshoot: float = 0.02,
    bisections: int = 12,
    on_step: OnStep | None = None,
) -> Images:
    """A small perturbation that changes the class: step to the nearest boundary of the linearised logits, linearise again, repeat.

    Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool" (CVPR 2016), Algorithm 2; Adv_Alpha on the logits, iterated. Each step goes too far by
    the share ``overshoot`` of the whole way, an image rests once it is misclassified, and at the end its perturbation is shortened by
    ``bisections`` halvings between the image and the point reached. An image that is misclassified as it is comes back unchanged; one that
    withstands all ``steps`` as it was last, which ``succeeded`` tells apart.
    """
    x, p = _check(model, x, y, "y", steps, overshoot=overshoot), check_norm(norm)
    _check_count("bisections", bisections, 0)
    at_rest = succeeded(model, x, y) if len(x) else y.bool()

    def beyond(rows: Tensor, images: Tensor) -> Tensor:
        """Misclassified with a lead to spare: these images end so near the boundary that rounding in another batch would change verdicts."""
        return _fooled(predict(model, images), y[rows], 1, times=2)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        direction, distance = nearest_boundary(model, now, y[rows], norm=p, softmax=False, box=True)
        # Too far by a share of the whole way: where [0,1] cuts a step short, the rest alone would approach the boundary for ever.
        walked = size_of(now - x[rows], p)
        length = (distance.clamp(min=1e-6) + overshoot * (walked + distance.clamp(min=0))).nan_to_num(0, posinf=0)
        return (now + per_sample(length, now) * steepest(direction, p)).clamp(0, 1)

    x_adv = x.clone()
    _walk(model, x_adv, steps, move, on_step, lambda rows: at_rest[rows] | beyond(rows, x_adv[rows]))
    moved = _rows(x)[~at_rest]
    for rows in _chunks(moved[beyond(moved, x_adv[moved])] if len(moved) else moved):
        near, far = torch.zeros(len(rows), dtype=x.dtype, device=x.device), torch.ones(len(rows), dtype=x.dtype, device=x.device)
        delta = x_adv[rows] - x[rows]
        for _ in range(bisections):
            middle = (near + far) / 2
            wrong = beyond(rows, x[rows] + per_sample(middle, delta) * delta)
            far, near = torch.where(wrong, middle, far), torch.where(wrong, near, middle)
        x_adv[rows] = torch.where(per_sample(far, delta) < 1, x[rows] + per_sample(far, delta) * delta, x_adv[rows])
    return x_adv


def pgd(
    model: nn.Module,
    x: Images,
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
) -> Images:
    """Projected gradient ascent in the ball ‖x_adv − x‖ ≤ ``eps`` (a number, or one per image): steepest step, project, clip, repeat.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", section 2.1. ``step_size`` is by default 2.5·eps/steps;
    ``box=False`` leaves out the clipping to [0,1], as some papers do.
    The first run starts at ``x``, or at a random point with ``random_start=True``; the other ``restarts`` always start at random, and each
    image keeps its best run: success first, then the larger margin. With ``early_stop=True`` an image rests once it is misclassified (or
    classified as ``target``). Steps are counted on through the restarts.
    """
    labels, sign, name = _goal(y, target)
    x = _check(model, x, labels, name, steps, eps=eps, step_size=0 if step_size is None else step_size)
    _check_count("restarts", restarts, 1)
    p, radius = check_norm(norm), _one_each(eps, x)
    stride = 2.5 * radius / max(steps, 1) if step_size is None else _one_each(step_size, x)
    generator = generator or runtime.generator(0)
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        origin, direction = x[rows], _direction(lambda v: sign * margin(model(v), labels[rows]), now, p, box)
        delta = now + per_sample(stride[rows], now) * direction - origin
        return _clip(origin + project(delta, radius[rows], p), box)

    best = won = height = None
    for restart in range(restarts if steps else 1):
        x_adv = x.clone()
        if steps and (random_start or restart):
            for rows in _chunks(_rows(x)):
                noise = project(_noise(x[rows], rows, radius[rows], seed, restart), radius[rows], p)
                x_adv[rows] = _clip(x[rows] + noise, box)
        watch = on_step and (lambda step, now, done=restart * steps: on_step(done + step, now))
        finished = (lambda rows, now=x_adv: _fooled(predict(model, now[rows]), labels[rows], sign)) if early_stop else None
        _walk(model, x_adv, steps, move, watch, finished)
        if restarts == 1:
            return x_adv
        logits = predict(model, x_adv)
        new_won, new_height = _fooled(logits, labels, sign), sign * margin(logits, labels)
        if best is None:
            best, won, height = x_adv, new_won, new_height
        else:
            better = torch.where(new_won == won, new_height > height, new_won)
            best[better], won[better], height[better] = x_adv[better], new_won[better], new_height[better]
    return best


def _noise(x: Tensor, rows: Tensor, radius: Tensor, seed: int, restart: int) -> Tensor:
    """Uniform in [−radius, radius]. Image i draws from a stream of its own, so that its start depends on seed, restart and i alone."""
    streams = (np.random.default_rng((seed, restart, row)) for row in rows.tolist())
    noise = np.stack([stream.random(x.shape[1:], dtype=np.float32) for stream in streams])
    return per_sample(radius, x) * (2 * torch.from_numpy(noise).to(x) - 1)


def minimal_eps(
    model: nn.Module, x: Images, y: Labels, *, largest: float, norm: Norm = "inf", rounds: int = 10, **settings
) -> Float[Tensor, "n"]:
    """The smallest ε at which ``pgd`` fools the model on each image, by bisection of [0, largest] in ``rounds`` halvings.

    An upper bound of the true minimal perturbation, never below it: 0 for an image that is misclassified as it is, ``inf`` for one that
    withstands ``largest``. ``settings`` go to ``pgd``.
    """
    lower = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    upper = torch.full_like(lower, largest)
    withstood = ~succeeded(model, pgd(model, x, y, eps=upper, norm=norm, **settings), y)
    for _ in range(rounds):
        middle = (lower + upper) / 2
        wrong = succeeded(model, pgd(model, x, y, eps=middle, norm=norm, **settings), y)
        upper, lower = torch.where(wrong, middle, upper), torch.where(wrong, lower, middle)
    upper[withstood] = torch.inf
    upper[succeeded(model, x, y)] = 0
    return upper
