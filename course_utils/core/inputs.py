"""The one place that refuses bad input: what functions of images, labels and counts accept.

Every message names the argument, what it got and the cure.
"""

import inspect
import math
import warnings
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.core.geometry import Norm, check_norm
from course_utils.core.training import at_once, predict

Pixels = Float[Tensor, "n c h w"]
Labels = Int[Tensor, "n"]

CHUNK = {"cpu": 512}  # digits worked on at once, and fewer larger images; other devices take more
CHUNK_ELSEWHERE = 4096
PACKAGE = str(Path(__file__).resolve().parents[1])


def check_images(name: str, x: Tensor) -> None:
    """Refuses what is no batch of float images in [0,1], shape (N, C, H, W) or (N, pixels)."""
    if not isinstance(x, Tensor) or x.dim() not in (2, 4) or not x.is_floating_point():
        raise ValueError(
            f"{name} is {described(x)}; "
            "give a batch of float images, shape (N, C, H, W); one image is x[None]."
        )
    check_precision(name, x)
    if len(x) and not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails too
        raise ValueError(
            f"{name} reaches from {x.min():.4g} to {x.max():.4g}; "
            "scale images to [0,1] (a normalisation belongs inside the model)."
        )


def check_precision(name: str, x: Tensor) -> None:
    """Refuses half precision, in which x + δ can be rounded out of the ball around x."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} is {x.dtype}, too coarse to keep a perturbation within eps; give "
            f"{name}.float(). A model in half precision converts inside its forward: "
            "self.net(x.half()).float()."
        )


def check_like(name: str, value: Tensor, x: Tensor) -> Tensor:
    """Returns ``value``; refuses images without the shape, type and device of ``x``."""
    check_images(name, value)
    if (value.shape, value.dtype, value.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"{name} is {described(value)}, on {value.device}; "
            f"give one {name} per image, like x: {described(x)}, on {x.device}."
        )
    return value


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Returns ``value``; refuses what is none of the ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(repr, choices))}.")
    return value


def check_labels(name: str, labels: Tensor, x: Tensor) -> None:
    """Refuses what is not one int64 label per image on the device of ``x``."""
    wrong_shape = not isinstance(labels, Tensor) or labels.shape != x.shape[:1]
    if wrong_shape or labels.dtype != torch.int64:
        got = described(labels) if isinstance(labels, Tensor) else repr(labels)
        raise ValueError(
            f"{name} is {got}; give one integer label per image, "
            f"a tensor of shape ({len(x)},), int64 as by .long()."
        )
    if labels.device != x.device:
        raise ValueError(f"{name} is on {labels.device} and x on {x.device}; move one of them.")


def check_count(name: str, value: int, least: int) -> None:
    """Refuses what is not a whole number of ``least`` or more."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number, {least} or more.")


def between(value, low: float, high: float) -> bool:
    """Whether ``value`` is a number in [low, high]; NaN is none."""
    try:
        return bool(low <= value <= high)
    except (TypeError, ValueError, RuntimeError):
        return False


def check_eps(eps: float) -> None:
    """Refuses a bound outside [0, 1]."""
    if not between(eps, 0, 1):
        raise ValueError(f"eps is {eps!r}; give a bound between 0 and 1, in pixels of [0,1].")


def check_share(name: str, value: float, what: str) -> None:
    """Refuses a share outside [0, 1]; ``what`` says the share of what."""
    if not between(value, 0, 1):
        raise ValueError(f"{name} is {value!r}; give the share of {what}, between 0 and 1.")


def check_size(name: str, value: float | Tensor, x: Tensor) -> None:
    """Refuses what is not a finite number of 0 or more, or one such number per image."""
    try:
        size = torch.as_tensor(value)
        fits = bool((size >= 0).all() and size.isfinite().all())
    except (TypeError, ValueError, RuntimeError):  # no number at all
        fits = False
    if not fits or size.shape not in ((), x.shape[:1]):
        got = value.tolist() if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{name} is {got}; give a finite number of 0 or more (eps may hold one per image)."
        )


def check_ball(norm: Norm, eps: float | Tensor) -> None:
    """Refuses an unknown norm; warns of an L∞ ball that holds every image."""
    radii = torch.as_tensor(eps)
    if check_norm(norm) == math.inf and (radii > 1).any():
        warnings.warn(
            f"eps is {radii.max():g}: with pixels in [0,1] such a ball in L∞ holds every image. "
            "Grey levels are divided by 255, such as eps=8/255.",
            stacklevel=caller_level(),
        )


def goal(y: Tensor | None, target: Tensor | None) -> tuple[Tensor, int, str]:
    """Up (1) the loss of ``y``, or down (−1) that of ``target``: labels, sign, argument's name."""
    if y is None and target is None:
        raise ValueError(
            "y and target are both missing; give y to leave a class, or target to reach one."
        )
    return (y, 1, "y") if target is None else (target, -1, "target")


def check_input(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    target: Tensor | None = None,
    *,
    steps: int = 0,
    restarts: int = 1,
    norm: Norm | None = None,
    **sizes: float | Tensor | None,
) -> tuple[Tensor, Tensor, int]:
    """Checks what an attack is given; returns ``x`` without its graph, the labels, and the sign.

    The sign is 1 where the loss of ``y`` is to grow and −1 where that of ``target`` is to fall.
    ``sizes`` are finite numbers of 0 or more; with a ``norm``, ``eps`` is a radius. Warns of a
    model that seems to give probabilities, and of an ``eps`` in grey levels.

    Raises:
        ValueError: what is wrong, by the argument's name, with the cure.
    """
    labels, sign, name = goal(y, target)
    check_images("x", x)
    check_labels(name, labels, x)
    check_count("steps", steps, 0)
    check_count("restarts", restarts, 1)
    for argument, value in sizes.items():
        if value is not None or argument == "eps":  # other sizes have defaults of their own
            check_size(argument, value, x)
    if norm is not None:
        check_ball(norm, sizes["eps"])
    if len(x):
        check_logits(first_outputs(model, x[:8]), name, labels)
    return x.detach(), labels, sign


def first_outputs(model: nn.Module, x: Tensor) -> Tensor:
    """``predict``; what PyTorch does not accept is a ``ValueError`` too."""
    try:
        return predict(model, x)
    except RuntimeError as error:
        raise ValueError(
            f"model cannot take x ({described(x)}): {error}. "
            "Give images of the shape and type that the model was built for."
        ) from error


def check_classes(logits: Tensor, name: str, labels: Tensor) -> None:
    """Refuses outputs that are no logits, (N, K), and labels that are none of the K classes."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"model gives shape {tuple(logits.shape)} for {len(logits)} images; "
            "it must give logits of two or more classes, (N, K)."
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        raise ValueError(
            f"{name} reaches from {labels.min()} to {labels.max()}; "
            f"the model knows classes 0 to {logits.shape[1] - 1}."
        )


def check_logits(logits: Tensor, name: str, labels: Tensor) -> None:
    """``check_classes``; warns of outputs that seem to be probabilities."""
    check_classes(logits, name, labels)
    total = logits.sum(1)
    if (logits >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-4):
        warnings.warn(
            "The model's outputs are positive and sum to 1: they look like probabilities. "
            "Attacks need logits, the values before softmax; with probabilities gradients vanish "
            "and the model looks more robust than it is. Leave out the last softmax.",
            stacklevel=caller_level(),
        )


def caller_level() -> int:
    """The ``stacklevel`` that names the first line outside this package."""
    frames = inspect.stack(0)[1:]
    outside = (i for i, frame in enumerate(frames) if not frame.filename.startswith(PACKAGE))
    return 1 + next(outside, 0)


def described(value) -> str:
    """Type and shape of a value, for messages."""
    if isinstance(value, Tensor):
        return f"{value.dtype}, shape {tuple(value.shape)}"
    return type(value).__name__


def one_each(value: float | Tensor, x: Tensor) -> Float[Tensor, "n"]:
    """``value`` for every image, in the precision of the images."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))


def rows_of(x: Tensor) -> Int[Tensor, "n"]:
    """The numbers of all images of a batch."""
    return torch.arange(len(x), device=x.device)


def chunks(rows: Int[Tensor, "n"], x: Tensor) -> tuple[Int[Tensor, "m"], ...]:
    """``rows`` of images ``x`` in parts that fit into memory; none for an empty batch."""
    if not len(rows):
        return ()
    return rows.split(at_once(x, CHUNK.get(rows.device.type, CHUNK_ELSEWHERE)))
