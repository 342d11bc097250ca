"""What checks need of an answer: that it comes, in the right form, and leaves its inputs alone."""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.core import models, runtime

SOFTMAX_TWICE = "F.cross_entropy applies the softmax itself: give it the logits, model(x)."
IN_PLACE = (
    "your function changed its input in place. "
    "Work on a copy: x.clone(); or x + delta, which makes a new tensor."
)


class NotYet(Exception):
    """What is wrong with an answer, and what to look at."""


# ------------------------------------------------------------------------- inputs for exercises


def small_images(n: int = 6, seed: int = 0) -> Tensor:
    """Images (N, 1, 8, 8) in float64, with pixels at both ends of [0,1] as on MNIST."""
    draw = torch.rand(n, 1, 8, 8, generator=runtime.generator(seed), dtype=torch.float64)
    return (draw * 1.6 - 0.3).clamp(0, 1)


def small_model() -> nn.Module:
    """A small network for them, in eval mode; its gradient turns within an exercise's ball."""
    with runtime.seeded(0):
        model = models.mlp(16, pixels=64).double().eval()
    with torch.no_grad():
        model.dense1.weight *= 3
        model.output.weight *= 3
    return model


def image_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Callable | None = None) -> Tensor:
    """Gradient with respect to the images of each image's cross-entropy, or of another ``loss``."""
    x = x.detach().clone().requires_grad_()
    loss = loss or F.cross_entropy
    with torch.enable_grad():
        return torch.autograd.grad(loss(model(x), y, reduction="sum"), x)[0]


def softmax_twice(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """The mistake of a cross-entropy of probabilities."""
    return F.cross_entropy(logits.softmax(1), y, reduction=reduction)


def per_image(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), so that it multiplies images."""
    return values[:, None, None, None]


# ------------------------------------------------------------------------ what every answer owes


def flat(arguments) -> Iterator:
    """The arguments, with lists, tuples and dicts taken apart."""
    for value in arguments:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value


def call(fn: Callable, arguments: tuple):
    """What ``fn`` returns; refuses one that changes its arguments or a model, or returns None."""
    kept = [snapshot(value) for value in flat(arguments)]
    answer = fn(*arguments)
    left = list(flat(arguments))
    if len(left) != len(kept):
        raise NotYet(
            "your function changed the length of a list that it was given. Work on a copy: list(…)."
        )
    for now, before in zip(left, kept, strict=True):
        refuse_changes(now, before)
    if answer is None:
        raise NotYet("your function returns None. Is the `return` missing?")
    return answer


def snapshot(value):
    """A copy of what a function might change."""
    if isinstance(value, nn.Module):
        return {name: tensor.clone() for name, tensor in value.state_dict().items()}
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value


def refuse_changes(now, before) -> None:
    """Compares an argument with its ``snapshot``."""
    if isinstance(now, nn.Module):
        refuse_changed_model(now, before)
    elif isinstance(now, Tensor):
        if not torch.equal(now, before):
            raise NotYet(IN_PLACE)
        if now.requires_grad and not before.requires_grad:
            raise NotYet(
                "your function switched requires_grad on in its input, and the caller keeps it. "
                "Write x.clone().requires_grad_()."
            )
        if now.is_leaf and now.grad is not None:
            raise NotYet(
                "your function filled the .grad of its input: backward() stores gradients. "
                "torch.autograd.grad(loss, …) returns them and stores nothing."
            )
    elif not isinstance(now, torch.Generator) and now != before:
        raise NotYet(IN_PLACE)


def refuse_changed_model(model: nn.Module, before: dict[str, Tensor]) -> None:
    """A model must keep its mode, its weights and its empty ``.grad``."""
    if model.training:
        raise NotYet(
            "the model was in eval mode and is now in train mode; "
            "dropout and batch norm would behave differently. Leave the mode alone."
        )
    if any(not torch.equal(now, before[name]) for name, now in model.state_dict().items()):
        raise NotYet(
            "the model's weights have changed. Your function only reads them; "
            "a step is worked out in new tensors."
        )
    if any(p.grad is not None for p in model.parameters()):
        raise NotYet(
            "the weights' .grad is filled: loss.backward() reaches them too. "
            "torch.autograd.grad(loss, …) returns a gradient and stores nothing."
        )


# --------------------------------------------------------------------------- the form of an answer


def expect_like(answer, right, learns: bool) -> None:
    """Refuses an answer of another form than the right one: number, tensor of a shape, dict."""
    if isinstance(right, Mapping):
        expect_dict(answer, right)
    elif isinstance(right, Tensor) and right.dim():
        expect_tensor(answer, tuple(right.shape))
    elif learns:
        expect_loss(answer)
    else:
        expect_number(answer)


def expect_tensor(answer, shape: tuple[int, ...], name: str = "the result") -> None:
    if isinstance(answer, tuple) and hasattr(answer, "values"):
        raise NotYet(
            "max(…) or the like along a dimension gives a pair, values and indices: "
            "take .values, or use amax."
        )
    number = isinstance(answer, int | float) or isinstance(answer, Tensor) and answer.dim() == 0
    if len(shape) == 1 and number and name == "the result":
        raise NotYet(
            "you return one number for the whole batch; each image has its own, "
            "so return shape (N,). flatten(1) keeps the images apart."
        )
    if not isinstance(answer, Tensor):
        raise NotYet(f"{name} is a {type(answer).__name__}; return a tensor of shape {shape}.")
    if tuple(answer.shape) == shape[1:]:
        raise NotYet(
            f"you return one row for the whole batch; each image has its own: shape {shape}."
        )
    if tuple(answer.shape) != shape:
        raise NotYet(f"{name} has shape {tuple(answer.shape)} and should have {shape}.")


def expect_dict(answer, right: Mapping) -> None:
    if not isinstance(answer, Mapping):
        raise NotYet(
            f"you return a {type(answer).__name__}; "
            f"return a dict with the names {', '.join(right)}."
        )
    if set(answer) != set(right):
        names = ", ".join(map(str, answer)) or "none"
        raise NotYet(f"the names should be {', '.join(right)}. You return {names}.")
    for name, value in right.items():
        expect_tensor(answer[name], tuple(value.shape), name)


def expect_loss(answer) -> None:
    """A number with a graph: nothing can learn from a plain one."""
    if isinstance(answer, int | float):
        raise NotYet(
            "you return a plain number, and nothing can learn from that. "
            "Return the tensor, without .item() or float(…)."
        )
    if not isinstance(answer, Tensor):
        raise NotYet(f"return one number, a tensor of shape (), not {type(answer).__name__}.")
    if answer.numel() != 1:
        raise NotYet(
            f"return one number, a tensor of shape (); yours has shape {tuple(answer.shape)}."
        )


def expect_number(answer) -> None:
    one = isinstance(answer, Tensor) and answer.numel() == 1
    if isinstance(answer, bool) or not (one or isinstance(answer, int | float)):
        raise NotYet(f"return one number, not {type(answer).__name__}.")


# --------------------------------------------------------------------------------- comparing


def joined(answer) -> Tensor:
    """An answer of any form as one row of float64 numbers, with its graph."""
    if isinstance(answer, Mapping):
        return torch.cat([answer[name].double().flatten() for name in sorted(answer)])
    return torch.as_tensor(answer).double().flatten()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two rows agree, up to what float32 could blur; nan equals nan."""
    if a.shape != b.shape:
        return False
    finite = b[b.isfinite()]
    size = 1 + (finite.abs().max().item() if len(finite) else 0)
    return torch.allclose(a, b, rtol=0, atol=1e-6 * size, equal_nan=True)


def first_difference(got: Tensor, want: Tensor) -> int:
    """The first place where two rows differ, for messages that show one case."""
    return int(((got - want).abs() > 1e-6).nonzero()[0])


NOT_MOVED = "x_adv equals x. Is the step added, and is the gradient taken at the input?"


def step(change: Callable, loss: Callable | None = None) -> Callable:
    """A wrong step of an image: returns ``change(x, gradient, size)``."""

    def wrong(model, x, y, size):
        return change(x, image_gradient(model, x, y, loss), size)

    return wrong


def one_batch(*more) -> list[tuple]:
    """One case: the small model, six images, the labels 0 to 5, and ``more``."""
    return [(small_model(), small_images(), torch.arange(6), *more)]
