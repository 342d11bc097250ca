"""Checks for the exercises: ``check.fgsm(fgsm)`` right under the stub, ``check.hint("fgsm")``, ``check.progress()``.

A check looks at properties, in an order that teaches: not attempted yet, raises, wrong shape, a typical mistake by name, right. It never
raises into the notebook. ● is right, ○ is not there yet. The solution of a lecture is checked under a name ending in ``_solution`` and does
not count as the student's progress.
"""

import datetime
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import attacks, models, runtime


class NotYet(Exception):
    """Raised inside a check: what is wrong, and what to look at."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: call it with the student's function."""

    name: str
    lecture: str
    title: str
    hints: tuple[str, ...]
    test: Callable[[Callable], None]

    def __call__(self, fn: Callable) -> None:
        if not callable(fn):
            print(f"○ {self.name}: give the function itself, without parentheses after its name: check.{self.name}({self.name}).")
            return
        with runtime.seeded(0):
            try:
                self.test(fn)
            except NotImplementedError:
                print(f'○ {self.name}: not attempted yet. Write the function above, then run both cells; check.hint("{self.name}") helps.')
            except NotYet as advice:
                print(f"○ {self.name}: {advice}")
            except Exception as error:  # a student's function may raise anything, and a check must not stop the notebook
                print(f"○ {self.name}: your function raises {type(error).__name__}: {error}{_cure(error)}")
            else:
                print(f"● {self.name}: right. {self.title}.")
                if not getattr(fn, "__name__", "").endswith("_solution"):
                    _remember(self.name)


EXERCISES: dict[str, Exercise] = {}

# Part of PyTorch's message -> what usually stands behind it.
CURES = {
    "not require grad": "The image must ask for a gradient before the model sees it: x = x.clone().requires_grad_().",
    "not have been used in the graph": "The loss must be computed from the very tensor whose gradient you ask for.",
    "in-place operation": "Write x = x + …, which makes a new tensor, in place of x += ….",
    "must match the size of tensor": "One number per image, v of shape (N,), fits rows of pixels as v[:, None], images as v[:, None, None, None].",
}


def _cure(error: Exception) -> str:
    return "".join(f"\n  {cure}" for sign, cure in CURES.items() if sign in str(error))


def exercise(lecture: str, title: str, *hints: str) -> Callable[[Callable], Exercise]:
    """Registers the decorated test as the check of an exercise; raising ``NotYet`` (or anything) inside means not right yet."""

    def register(test: Callable) -> Exercise:
        EXERCISES[test.__name__] = Exercise(test.__name__, lecture, title, hints, test)
        return EXERCISES[test.__name__]

    return register


def hint(name: str, level: int = 1) -> None:
    """Prints hint 1, or with ``level`` a stronger one."""
    if name not in EXERCISES:
        raise ValueError(f"name is {name!r}; the exercises are {', '.join(EXERCISES)}.")
    hints = EXERCISES[name].hints
    level = max(1, min(level, len(hints)))
    more = (
        f'  More: check.hint("{name}", {level + 1}).'
        if level < len(hints)
        else "  That was the last hint; the solution is below the check."
    )
    print(f"Hint {level} of {len(hints)}: {hints[level - 1]}{more}")


def _progress_file():
    return runtime.state_dir() / "progress.json"


def solved() -> dict[str, str]:
    """Name of every exercise solved so far, with the day; empty when nothing is kept or the file is damaged."""
    try:
        done = json.loads(_progress_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) else {}


def _remember(name: str) -> None:
    done = {name: datetime.date.today().isoformat(), **solved()}
    try:
        runtime.write_atomic(_progress_file(), json.dumps(done, indent=1))
    except OSError as error:
        print(f"  (Your progress could not be kept: {error}. Set COURSE_STATE to a folder that can be written.)")


def progress() -> None:
    """Prints the ladder of all exercises, and how far you are."""
    done = solved()
    for name, item in EXERCISES.items():
        print(f"{'●' if name in done else '○'} {item.lecture}  {name:20} {item.title}")
    print(f"{len(done.keys() & EXERCISES.keys())} of {len(EXERCISES)} solved")


# ----------------------------------------------------------------------------------------------------- what checks share


def _images(n: int = 6, seed: int = 0) -> Tensor:
    """Small images with pixels at the ends of [0,1], as on MNIST, in float64 so that no verdict hangs on rounding."""
    return (torch.rand(n, 1, 8, 8, generator=runtime.generator(seed), dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)


def _model() -> nn.Module:
    """A small network in eval mode; float64, and with weights large enough that its gradient turns within the ball of an exercise."""
    with runtime.seeded(0):
        model = models.mlp(16, pixels=64).double().eval()
    with torch.no_grad():
        for layer in (model.dense1, model.output):
            layer.weight *= 3
    return model


def _flat(arguments: Iterable) -> Iterator:
    """The arguments, with lists and tuples taken apart."""
    for a in arguments:
        yield from _flat(a) if isinstance(a, list | tuple) else (a,)


def _call(fn: Callable, *arguments):
    """What the student's function returns; refuses one that changes its arguments."""
    kept = [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in _flat(arguments)]
    got = fn(*arguments)
    left = list(_flat(arguments))
    if len(left) != len(kept):
        raise NotYet("your function changed the length of a list that it was given. Work on a copy: list(…).")
    for now, before in zip(left, kept, strict=True):
        if not torch.equal(now, before) if isinstance(now, Tensor) else now != before:
            raise NotYet("your function changed its input in place. Work on a copy: x.clone(); or x + delta, which makes a new tensor.")
        if isinstance(now, Tensor) and now.requires_grad and not before.requires_grad:
            raise NotYet("your function switched requires_grad on in its input, and the caller keeps it. Write x.clone().requires_grad_().")
    if got is None:
        raise NotYet("your function returns None. Is the `return` missing?")
    return got


def _expect(value, shape: tuple[int, ...], name: str = "the result") -> Tensor:
    if isinstance(value, tuple) and hasattr(value, "values"):
        raise NotYet("max(…) along a dimension gives a pair, values and indices: take .values, or use amax.")
    if shape[1:] == () and (isinstance(value, int | float) or isinstance(value, Tensor) and value.dim() == 0):
        raise NotYet(
            "you return one number for the whole batch; each image has its own, so return shape (N,). flatten(1) keeps the images apart."
        )
    if not isinstance(value, Tensor):
        raise NotYet(f"{name} is a {type(value).__name__}; return a tensor of shape {shape}.")
    if tuple(value.shape) != shape:
        raise NotYet(f"{name} has shape {tuple(value.shape)} and should have {shape}.")
    if not torch.isfinite(value).all():
        raise NotYet(f"{name} holds nan or inf. What is divided by zero?")
    return value.detach()


def _number(value) -> float:
    """A plain number, or a tensor that holds one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float):
        raise NotYet(f"return one number between 0 and 1, not {type(value).__name__}.")
    return value


def _near(a: Tensor | float, b: Tensor | float, tolerance: float = 1e-6) -> bool:
    return bool((torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs().max() <= tolerance)


def _gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(value(x).sum(), x)[0]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in model.state_dict().items()}


def _as_found(
    model: nn.Module,
    before: dict[str, Tensor],
    weights: str = "An attack moves the image and a loss only measures; the weights stay fixed.",
    grads: str = "torch.autograd.grad(loss, x)[0] asks for the image's alone.",
) -> None:
    if model.training:
        raise NotYet(
            "the model was in eval mode and is now in train mode; dropout and batch norm would behave differently. Leave the mode alone."
        )
    if any(not torch.equal(p, before[name]) for name, p in model.state_dict().items()):
        raise NotYet(f"the model's weights have changed. {weights}")
    if any(p.grad is not None for p in model.parameters()):
        raise NotYet(f"the weights' .grad is filled: loss.backward() reaches them too. {grads}")


def _attacked(fn: Callable, model: nn.Module, x: Tensor, *arguments) -> Tensor:
    """Runs a student's attack and holds it to what every attack owes to the model and to the input."""
    before = _state(model)
    x_adv = _expect(_call(partial(fn, model), x, *arguments), tuple(x.shape), "x_adv")
    _as_found(model, before)
    if torch.equal(x_adv, x):
        raise NotYet("x_adv equals x. Is the step added, and is the gradient taken at the input?")
    return x_adv


def _scalar(value) -> Tensor:
    """A loss to train with: one finite number, with its graph."""
    if isinstance(value, int | float):
        raise NotYet("you return a plain number, and no weight can learn from that. Return the tensor, without .item() or float(…).")
    if not isinstance(value, Tensor):
        raise NotYet(f"return the loss, a tensor of shape (), not {type(value).__name__}.")
    if value.numel() != 1:
        raise NotYet(f"the loss has shape {tuple(value.shape)} and should be one number: the mean over the images.")
    if not torch.isfinite(value).all():
        raise NotYet(f"the loss is {value.item()}. What is divided by zero, or too large for exp?")
    return value.reshape(())


def _objective(fn: Callable, model: nn.Module, x: Tensor, *arguments) -> Tensor:
    """Runs a student's training loss and holds it to what every loss owes to the model and to the input; keeps the graph."""
    before = _state(model)
    loss = _scalar(_call(partial(fn, model), x, *arguments))
    _as_found(model, before)
    return loss


def _slopes(loss: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of a loss with respect to all weights, in one row."""
    if not loss.requires_grad:
        raise NotYet("the number is right, but no gradient reaches the weights. Is there a no_grad or a detach() too many?")
    try:
        slopes = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise NotYet("the number is right, but autograd.grad has used up its graph, and training needs it: create_graph=True.") from error
    return torch.cat([g.flatten() for g in slopes])


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two gradients agree, up to what float32 could blur."""
    return _near(a, b, 1e-5 * (1 + b.abs().max().item()))


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _reaching(values: Tensor, leaf: Tensor, name: str) -> Tensor:
    """The gradient of one number per image with respect to ``leaf``, which an attack will ask for."""
    if values.requires_grad:
        g = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)[0]
        if g.any():
            return g
    raise NotYet(f"the numbers are right, but no gradient reaches {name}. Is there a no_grad or a detach() too many?")


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none").detach()


# ------------------------------------------------------------------------------------------------------- the exercises

SOFTMAX_TWICE = "F.cross_entropy applies the softmax itself: give it the logits, model(x)."


@exercise(
    "00",
    "Size of a perturbation",
    "The L∞ norm of one image's perturbation is its largest absolute pixel.",
    "delta.flatten(1) has shape (N, pixels): one row per image. Then take absolute values, and the maximum over dimension 1.",
)
def linf_size(fn):
    delta = torch.tensor([[0.1, -0.5, 0.2, 0.0], [0.3, 0.1, -0.2, 0.25], [0.0, 0.0, 0.0, 0.0]]).reshape(3, 2, 1, 2)
    got = _expect(_call(fn, delta), (3,))
    rows = delta.flatten(1)
    right = rows.abs().amax(1)
    for wrong, advice in (
        (rows.amax(1), "the sign got in the way: a pixel that moved by −0.5 moved further than one that moved by 0.2."),
        (rows.abs().mean(1), "that is the mean absolute change; L∞ is the largest."),
        (rows.norm(dim=1), "that is the L2 norm, the root of the sum of squares; L∞ is the largest absolute pixel."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    for row, mine, yours in zip(rows.tolist(), right, got, strict=True):
        if not _near(mine, yours):
            raise NotYet(f"for a perturbation with pixels {', '.join(f'{v:.3g}' for v in row)} you return {yours:.3g} and not {mine:.3g}.")


@exercise(
    "01",
    "Accuracy from logits",
    "The predicted class is where the logits are largest: argmax over the classes, which are dimension 1.",
    "(logits.argmax(1) == y) is a tensor of True and False; .float().mean() counts the share of True.",
)
def accuracy(fn):
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.1], [0.0, 3.0, 1.0, 0.3], [5.0, 4.0, 6.0, 0.2], [1.0, 0.5, 0.2, 0.1]])
    y = torch.tensor([0, 1, 0, 0])
    got = _number(_call(fn, logits, y))
    for wrong, advice in (
        (3, "that is the number of hits; divide by the number of images."),
        (75, "that is a percentage; the course gives accuracies in [0,1]."),
        (0.25, "that is the error rate; accuracy is the share that is right."),
        (0.0, "not one image counts as right. Is argmax over the classes, dimension 1, and compared image by image?"),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, 0.75):
        raise NotYet(f"three of the four images are right, so 0.75; you return {got:.3g}. Is argmax over the classes, dimension 1?")
    again = _number(_call(fn, logits, logits.argmax(1)))
    if not _near(again, 1):
        raise NotYet(f"when every image is right the accuracy is 1; you return {again:.3g}.")


@exercise(
    "01",
    "Choose by validation, report on test",
    "Two lists, one number per epoch. Which epoch would you keep if you were not allowed to look at the test set?",
    "Find the epoch with the highest validation accuracy, and return the test accuracy of that epoch, whatever it is.",
)
def honest_accuracy(fn):
    validation, test = [0.970, 0.985, 0.981, 0.983], [0.970, 0.980, 0.988, 0.984]
    got = _number(_call(fn, validation, test))
    for wrong, advice in (
        (0.988, "that is the best test accuracy: choosing by it makes the test set part of the training. Choose by validation."),
        (0.985, "that is the validation accuracy of the chosen epoch: it was used for choosing, so it flatters. Report test."),
        (0.981, "you choose by test and report validation; it is the other way round."),
        (0.984, "that is the last epoch; the one with the best validation accuracy is the second."),
        (1, "that is the index of the epoch; return the test accuracy there."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, 0.980):
        raise NotYet(f"validation chooses the second epoch, whose test accuracy is 0.980; you return {got!r}.")
    again = _number(_call(fn, [0.9, 0.8, 0.95], [0.7, 0.99, 0.91]))
    if not _near(again, 0.91):
        raise NotYet(f"for validation 0.9, 0.8, 0.95 and test 0.7, 0.99, 0.91 the answer is 0.91; you return {again!r}.")


@exercise(
    "02",
    "One step of gradient descent on the image",
    "The weights stay fixed; the image is what the gradient is taken of. x.clone().requires_grad_() makes it a variable.",
    "loss = F.cross_entropy(model(x), target, reduction='sum'); g = torch.autograd.grad(loss, x)[0].",
    "Return (x - step_size * g).detach(). Minus, because the loss of the target must fall.",
)
def descent_step(fn):
    model, x, target = _model(), _images(), torch.arange(6)
    got = _attacked(fn, model, x, target, 0.5)
    g = _gradient(lambda v: F.cross_entropy(model(v), target, reduction="none"), x)
    soft = _gradient(lambda v: F.cross_entropy(model(v).softmax(1), target, reduction="none"), x)
    for wrong, advice in (
        (x + 0.5 * g, "you climb: the loss of the target grows. Descent subtracts the gradient."),
        (x - 0.5 * g / len(x), "cross_entropy averages over the batch, so each image's step is N times too short. Use reduction='sum'."),
        (x - 0.5 * g.sign(), "that is a step along the sign; this exercise asks for plain gradient descent."),
        (
            (x - 0.5 * g).clamp(0, 1),
            "you clip to [0,1]; a good idea in general, but the slides do not, and this exercise asks for the plain step.",
        ),
        (x - g, "step_size is missing."),
        (x - 0.5 * soft, SOFTMAX_TWICE),
        (x - 0.5 * soft / len(x), SOFTMAX_TWICE),
        (-0.5 * g, "that is the step; add it to x."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, x - 0.5 * g):
        raise NotYet("the step is not x − step_size · ∂loss/∂x of the cross-entropy with the target.")


@exercise(
    "02",
    "Roughness of an image",
    "Two neighbouring pixels differ by x[..., 1:] - x[..., :-1]; and the same for rows.",
    "x.diff(dim=-1).square().flatten(1).sum(1) is the horizontal part, one number per image. Add the vertical one.",
)
def roughness(fn):
    x = _images(3, seed=1)
    got = _expect(_call(fn, x), (3,))
    total, mean = (lambda v: v.flatten(1).sum(1)), (lambda v: v.flatten(1).mean(1))
    across, down, right = x.diff(dim=-1), x.diff(dim=-2), attacks.roughness(x)
    for wrong, advice in (
        (total(across.square()), "only one direction is there; neighbours lie beside and below."),
        (total(down.square()), "only one direction is there; neighbours lie beside and below."),
        (total(across.abs()) + total(down.abs()), "those are absolute differences; this penalty squares them."),
        (mean(across.square()) + mean(down.square()), "that is the mean over the pixels; this penalty sums them."),
        (right.sqrt(), "that is the square root; this penalty leaves it out."),
        (
            total((x - x.roll(1, -1)).square()) + total((x - x.roll(1, -2)).square()),
            "torch.roll wraps around: the left edge is no neighbour of the right one. Use diff, or slices.",
        ),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, right):
        raise NotYet(f"for the first test image you return {got[0]:.4g} and not {right[0]:.4g}.")


@exercise(
    "03",
    "Normalise by the largest entry",
    "Each image is divided by its own largest absolute entry: g.abs().flatten(1).amax(1), shape (N,), brought to (N, 1, 1, 1).",
    "Where the largest entry is exactly 0, leave the zeros: divide by torch.where(largest > 0, largest, 1). Add nothing to the denominator.",
)
def max_normalised(fn):
    g = torch.randn(4, 1, 5, 5, generator=runtime.generator(0), dtype=torch.float64)
    g *= _per_image(torch.tensor([1.0, 10.0, 1e-14, 0.0]))
    g[0, 0, 2, 2] = -4  # the largest in absolute value is negative
    got = _call(fn, g)
    if isinstance(got, Tensor) and got.shape == g.shape and got[3].isnan().any():
        raise NotYet("an image whose gradient is zero becomes nan (0/0). It should stay zero.")
    got = _expect(got, tuple(g.shape))
    largest = _per_image(g.abs().flatten(1).amax(1))
    if _near(got, g / largest.max()):
        raise NotYet("you divide by the largest entry of the whole batch: what happens to one image then depends on the others.")
    if _near(got[:2], g[:2] / largest[:2], 0.1) and got[2].abs().max() < 0.99:
        raise NotYet("a gradient of size 1e-14 (a confident network) is not scaled to 1. Is something added to the denominator?")
    for wrong, advice in (
        (_per_image(g.flatten(1).amax(1)), "the largest entry is meant in absolute value; a negative one can be larger."),
        (_per_image(g.flatten(1).norm(dim=1)), "that divides by the length (L2); the largest entry should become 1 or −1."),
        (g.abs(), "that is the sign: every entry becomes 1 or −1, and only the largest should."),
    ):
        if _near(got[:3], g[:3] / wrong[:3]):
            raise NotYet(advice)
    if not _near(got[:3], g[:3] / largest[:3]):
        raise NotYet("the result is not g divided by its largest absolute entry, image by image.")
    if got[3].any():
        raise NotYet("an image whose gradient is zero should stay zero.")


@exercise(
    "03",
    "The fast gradient sign method",
    "Take the gradient of the cross-entropy of the true label with respect to the image, and keep only its sign.",
    "g = torch.autograd.grad(F.cross_entropy(model(x), y, reduction='sum'), x)[0], for x that requires a gradient.",
    "x_adv = (x + eps * g.sign()).clamp(0, 1), detached.",
)
def fgsm(fn):
    model, x, y, eps = _model(), _images(), torch.arange(6), 0.1
    x_adv = _attacked(fn, model, x, y, eps)
    step = x_adv - x
    if _near(x_adv, attacks.fgsm(model, x, eps=eps, target=y)) or (_loss(model, x_adv, y) < _loss(model, x, y)).all():
        raise NotYet("the loss of the true label falls: the step goes down. An untargeted attack climbs, so add.")
    if step.abs().max() > eps + 1e-6:
        raise NotYet(f"a pixel moved by {step.abs().max():.3g}, and eps is {eps}. Every pixel may move by eps at most.")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise NotYet(f"x_adv reaches from {x_adv.min():.3g} to {x_adv.max():.3g}; that is no image. Clip to [0,1].")
    inside = (x > eps) & (x < 1 - eps)
    if step.abs()[inside].min() < eps * 0.99:
        raise NotYet("some pixels move by less than eps although there is room: use the sign of the gradient, not the gradient.")
    soft = _gradient(lambda v: F.cross_entropy(model(v).softmax(1), y, reduction="none"), x)
    if _near(x_adv, (x + eps * soft.sign()).clamp(0, 1)):
        raise NotYet(SOFTMAX_TWICE)
    if _near(x_adv, attacks.fgsm(model, x, model(x).argmax(1), eps=eps)):
        raise NotYet("the gradient is that of the predicted label. The attack climbs the loss of the true one, y.")
    if not _near(x_adv, attacks.fgsm(model, x, y, eps=eps)):
        raise NotYet(
            "the signs are not those of the cross-entropy's gradient at x. Is the gradient taken of the right loss, with the right label?"
        )


@exercise(
    "03",
    "Projected gradient descent in L∞",
    "A loop of FGSM steps of step_size; after each, come back into the ball around the ORIGINAL x, then into [0,1].",
    "delta = (x_adv + step_size * g.sign() - x).clamp(-eps, eps); x_adv = (x + delta).clamp(0, 1).",
    "The gradient must be taken anew in each step, at the current x_adv.",
)
def pgd(fn):
    model, x, y, eps, step_size, steps = _model(), _images(), torch.arange(6), 0.1, 0.03, 8
    x_adv = _attacked(fn, model, x, y, eps, step_size, steps)
    if not torch.equal(x_adv, _attacked(fn, model, x, y, eps, step_size, steps)):
        raise NotYet("two runs differ. This exercise starts at x itself, not at a random point.")
    if (_loss(model, x_adv, y) < _loss(model, x, y)).all():
        raise NotYet("the loss of the true label falls: the steps go down. Climb.")
    size = (x_adv - x).abs().max()
    if size > eps + 1e-6:
        if (_attacked(fn, model, x, y, eps, 3 * eps, 1) - x).abs().max() > eps + 1e-6:
            raise NotYet(f"a pixel is {size:.3g} away from x, and eps is {eps}. Nothing brings x_adv back into the ball.")
        raise NotYet(f"a pixel is {size:.3g} away from x, and eps is {eps}. Project onto the ball around x, not around the last iterate.")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise NotYet(f"x_adv reaches from {x_adv.min():.3g} to {x_adv.max():.3g}; clip to [0,1] in every step.")
    once = fn(model, x, y, eps, step_size, 1).detach()
    if torch.equal(once, x):
        raise NotYet("with steps=1 nothing moves: the loop makes one step too few. range(steps) counts from 0.")
    if not _near(once, attacks.fgsm(model, x, y, eps=step_size)):
        raise NotYet("one step of step_size should be FGSM with eps = step_size, and it is not. Is the sign taken, of the gradient for y?")
    if size <= step_size + 1e-6:
        raise NotYet("no pixel moves further than one step. Does each step start from x_adv, and is the `return` behind the loop?")
    g = _gradient(lambda v: F.cross_entropy(model(v), y, reduction="none"), x)
    if _near(x_adv, (x + eps * g.sign()).clamp(0, 1)):
        raise NotYet("every step goes the same way. Take the gradient inside the loop, at the current x_adv.")
    if not _near(x_adv, attacks.pgd(model, x, y, eps=eps, step_size=step_size, steps=steps)):
        raise NotYet("the first step is right and the rest is not. Are gradient (at x_adv), projection and clipping all inside the loop?")


@exercise(
    "04",
    "The targeted objective",
    "Two terms per image: the cross-entropy of the target, and lam times the mean absolute difference.",
    "F.cross_entropy(logits, target, reduction='none') + lam * (x_adv - x).abs().flatten(1).mean(1).",
)
def targeted_loss(fn):
    logits = torch.randn(4, 10, generator=runtime.generator(0), dtype=torch.float64)
    target, x, x_adv, lam = torch.tensor([1, 5, 0, 9]), _images(4), _images(4, seed=1), 30.0
    got = _expect(_call(fn, logits, target, x_adv, x, lam), (4,))
    ce = F.cross_entropy(logits, target, reduction="none")
    change = (x_adv - x).abs().flatten(1)
    distance = change.mean(1)
    for wrong, advice in (
        (ce + distance, "λ is missing: the distance counts lam times."),
        (lam * ce + distance, "λ is at the wrong term: the distance counts lam times, the cross-entropy once."),
        (lam * distance, "the cross-entropy of the target is missing."),
        (ce, "the distance is missing."),
        (ce + lam * change.sum(1), "that is the sum over the pixels; the slides take the mean, and λ = 30 belongs to it."),
        (ce - lam * distance, "the distance has the wrong sign: minimising would drive x_adv away from x."),
        (-ce + lam * distance, "the cross-entropy has the wrong sign: minimising it must make the target likely."),
        (ce + lam * (x_adv - x).flatten(1).mean(1), "without absolute values, pixels that go up and down cancel."),
        (ce + lam * change.square().mean(1), "that is the mean square; this exercise asks for the absolute difference."),
        (ce.mean() + lam * distance, "the cross-entropy is averaged over the batch; reduction='none' keeps one per image."),
        (ce + lam * distance.mean(), "the distance is averaged over the batch too; flatten(1) and mean(1) keep one per image."),
        (F.cross_entropy(logits.softmax(1), target, reduction="none") + lam * distance, SOFTMAX_TWICE),
    ):
        if _near(got, wrong, 1e-5):
            raise NotYet(advice)
    if not _near(got, ce + lam * distance, 1e-5):
        raise NotYet("the value is not cross-entropy of the target + lam · mean |x_adv − x|, image by image.")


@exercise(
    "04",
    "Hit rate of a targeted attack",
    "An image that belongs to the target class was never attacked: leave it out of the count.",
    "attacked = y != target; return the mean of (predicted == target) over the attacked images.",
)
def hit_rate(fn):
    predicted, y, target = torch.tensor([3, 3, 3, 7, 2, 3, 0]), torch.tensor([3, 3, 1, 1, 2, 0, 0]), torch.full((7,), 3)
    got = _number(_call(fn, predicted, y, target))
    for wrong, advice in (
        (4 / 7, "images that are a 3 anyway count as hits of target 3. Leave out those whose true class is the target."),
        (2 / 7, "you divide by all images; divide by those that were attacked, whose true class is not the target."),
        (3 / 5, "that counts every mistake of the network; a targeted attack succeeds only where the target is predicted."),
        (3 / 7, "that is the error rate; a targeted attack succeeds only where the target is predicted."),
        (2, "that is the number of hits; divide by the number of attacked images."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, 2 / 5):
        raise NotYet(f"five images are attacked and two of them reach the target, so 0.4; you return {got:.3g}.")
    again = _number(_call(fn, torch.tensor([1, 2, 5]), torch.tensor([0, 0, 5]), torch.tensor([1, 2, 3])))
    if not _near(again, 2 / 3):
        raise NotYet(f"each image has its own target: two of three hits are 0.667; you return {again:.3g}.")


@exercise(
    "05",
    "The exact adversary of a linear model",
    "The margin y(⟨w, x + δ⟩ + b) falls most when every pixel takes away as much as it can: look at one pixel, with weight w_i.",
    "Pixel i changes the margin by y · w_i · δ_i, and |δ_i| ≤ eps. So δ_i is eps or −eps, whichever makes y · w_i · δ_i negative.",
    "-eps * y[:, None] * w.sign(): shapes (N, 1) and (pixels,) give (N, pixels).",
)
def linear_adversary(fn):
    w = torch.tensor([0.5, -1.5, 2.0, -0.25, 1.0], dtype=torch.float64)
    y, eps = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64), 0.2
    got = _call(fn, w, y, eps)
    if isinstance(got, Tensor) and got.shape == w.shape:
        raise NotYet("you return one perturbation for the whole batch, and the worst one depends on the label: shape (N, pixels).")
    got = _expect(got, (4, 5), "delta")
    labels, sign = y[:, None], w.sign()
    for wrong, advice in (
        (eps * labels * sign, "that helps the model: every margin y(⟨w, x⟩ + b) grows. The adversary lowers it; a minus is missing."),
        (-eps * sign, "all labels get the same perturbation; what harms an image labelled +1 helps one labelled −1. Where is y?"),
        (eps * sign, "all labels get the same perturbation; what harms an image labelled −1 helps one labelled +1. Where is y?"),
        (-labels * sign, "eps is missing: the pixels move by 1."),
        (-eps * labels * w, "that goes along w; in L∞ every pixel may move by eps, also where its weight is small. Take the sign of w."),
        (-eps * labels * w / w.norm(), "that is the worst case in L2. In L∞ every pixel may move by eps: take the sign of w."),
        (-eps * labels * w / w.abs().max(), "only the pixel with the largest weight moves by eps; all of them may. Take the sign of w."),
        (-eps * (2 * labels - 1) * sign, "2y − 1 turns labels 0 and 1 into −1 and +1; y holds −1 and +1 already."),
        (-eps * labels.clamp(min=0) * sign, "images labelled −1 are left alone. y holds −1 and +1, not 0 and 1."),
    ):
        if _near(got, wrong.expand(4, 5)):
            raise NotYet(advice)
    if got.abs().max() > eps + 1e-6:
        raise NotYet(f"a pixel moves by {got.abs().max():.3g}, and eps is {eps}. Every pixel may move by eps at most.")
    for label, drop in zip(y, 0 - y * (got * w).sum(1), strict=True):
        if not _near(drop, eps * w.abs().sum()):
            best = f"the worst perturbation takes {eps * w.abs().sum():.3g}"
            raise NotYet(f"for an image labelled {label:+.0f} the margin y(⟨w, x⟩ + b) falls by {drop:.3g}, and {best}.")


@exercise(
    "05",
    "The robust logistic loss",
    "The worst case lowers every margin y(⟨w, x⟩ + b) by the same amount, eps · ‖w‖₁, whatever the label. Then comes Ψ, then the mean.",
    "log(1 + exp(−z)) overflows where z is very negative. torch.nn.functional.softplus(v) is log(1 + exp(v)), and does not.",
    "margin = y * (x @ w + b) - eps * w.abs().sum(); return softplus(-margin).mean().",
)
def robust_logistic(fn):
    rng = runtime.generator(0)
    w, b = torch.tensor([0.5, -1.5, 2.0, -0.25, 1.0], dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    x, y, eps = torch.rand(6, 5, generator=rng, dtype=torch.float64), torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0]).double(), 0.3
    w.requires_grad_(), b.requires_grad_()
    loss = _scalar(_call(fn, w, b, x, y, eps))
    if w.grad is not None or b.grad is not None:
        raise NotYet("w.grad is filled: leave backward() to the training, and return the loss.")
    score = x @ w + b
    margin, size = y * score, eps * w.abs().sum()
    psi = lambda z: F.softplus(-z)  # noqa: E731
    right = psi(margin - size).mean()
    for wrong, advice in (
        (psi(margin).mean(), "that is the clean loss; the adversary takes eps · ‖w‖₁ from every margin."),
        (psi(margin + size).mean(), "the norm has the wrong sign: the adversary lowers the margin."),
        (psi(margin).mean() + size, "that is L1 regularisation, the norm beside Ψ. The worst case has it inside Ψ, in the margin."),
        (psi(margin - size / eps).mean(), "eps is missing: the margin falls by eps · ‖w‖₁."),
        (
            psi(margin - eps * w.norm()).mean(),
            "that is the L2 norm of w. Pixels that may each move by eps take the sum of all |w_i|: the L1 norm.",
        ),
        (
            psi(margin - eps * w.abs().max()).mean(),
            "that is the L∞ norm of w. The perturbation is bounded in L∞; the weights are measured in the dual norm, L1.",
        ),
        (psi(margin - eps * w.sum()).mean(), "without absolute values, weights of both signs cancel."),
        (psi(margin - eps * w.abs().mean()).mean(), "that is the mean of |w_i|; the L1 norm is their sum."),
        (psi(y * (score - size)).mean(), "y multiplies the norm too, which helps the images labelled −1. Subtract the norm outside y(…)."),
        (psi(margin - size).sum(), "that is the sum over the images; take the mean."),
        (psi(size - margin).mean(), "Ψ(z) is log(1 + exp(−z)), and you have exp(+z): a large margin must cost little."),
        (psi(y * (x @ w) - size).mean(), "b is missing."),
        ((margin - size).mean(), "that is the mean margin in the worst case; Ψ is missing."),
        (psi((2 * y - 1) * score - size).mean(), "2y − 1 turns labels 0 and 1 into −1 and +1; y holds −1 and +1 already."),
        (
            psi(y * score[:, None] - size).mean(),
            "scores of shape (N, 1) times y of shape (N,) pair every image with every label. x @ w has shape (N,).",
        ),
    ):
        if _near(loss, wrong, 1e-5):
            raise NotYet(advice)
    if not _near(loss, right, 1e-5):
        raise NotYet(f"for the test images you return {loss:.4g} and not {right:.4g}.")
    slopes = _slopes(loss, [w, b])
    if _same(slopes, _slopes(psi(margin - size.detach()).mean(), [w, b])):
        raise NotYet("the number is right, but the norm is a constant for the gradient: nothing would make w smaller. Do not detach it.")
    if not _same(slopes, _slopes(right, [w, b])):
        raise NotYet("the number is right, but its gradient does not reach w and b in every place. Is something detached?")
    far = _call(fn, w, b, 2000 * x, -y, eps)
    should = psi(-y * (2000 * x @ w + b) - size).mean()
    if not (isinstance(far, Tensor) and _near(far, should, 1e-3) and _slopes(far, [w, b]).isfinite().all()):
        raise NotYet("for margins like −2000 exp overflows: inf or nan. softplus(−z) is log(1 + exp(−z)) without that.")


@exercise(
    "06",
    "The loss of adversarial training",
    "Let the attack move the images, then take the usual loss there, with the true labels.",
    "x_adv = attack(model, x, y); return F.cross_entropy(model(x_adv), y). The attack's result carries no graph; the loss must.",
)
def adversarial_loss(fn):
    model, x, y = _model(), _images(), torch.arange(6)
    calls = []

    def attack(model, x, y):
        calls.append((x.detach().clone(), y.clone()))
        return attacks.fgsm(model, x, y, eps=0.1)

    loss = _objective(fn, model, x, y, attack)
    x_adv = attacks.fgsm(model, x, y, eps=0.1)
    logits, clean = model(x_adv), F.cross_entropy(model(x), y)
    right = F.cross_entropy(logits, y)
    for wrong, advice in (
        (clean, "that is the clean loss. Give the model what attack(model, x, y) returns."),
        (F.cross_entropy(logits, model(x).argmax(1)), "the label is the model's own prediction; it must learn the true one, y."),
        (F.cross_entropy(logits, logits.argmax(1)), "the label is the model's own prediction; it must learn the true one, y."),
        (len(x) * right, "that is the sum over the images; take the mean."),
        (-right, "the sign is wrong: the attack climbs the loss, the training descends it. Return the loss itself."),
        ((right + clean) / 2, "the clean loss is mixed in. That is a method too (Goodfellow's), but here only the attacked images count."),
        (right + clean, "the clean loss is added. Here only the attacked images count."),
        (F.cross_entropy(logits.softmax(1), y), SOFTMAX_TWICE),
    ):
        if _near(loss, wrong, 1e-5):
            raise NotYet(advice)
    if not calls:
        raise NotYet("the attack is never called. x_adv = attack(model, x, y).")
    if any(not torch.equal(labels, y) for _, labels in calls):
        raise NotYet("the attack gets other labels than y: it then climbs the loss of another class. attack(model, x, y).")
    if any(not _near(images, x) for images, _ in calls):
        raise NotYet("the attack gets other images than x. attack(model, x, y), once.")
    if not _near(loss, right, 1e-5):
        raise NotYet(f"the mean cross-entropy on the attacked images is {right:.4g}; you return {loss:.4g}.")
    weights = list(model.parameters())
    if not _same(_slopes(loss, weights), _slopes(right, weights)):
        raise NotYet("the number is right, but its gradient is not that of the cross-entropy on x_adv. Is something detached?")


@exercise(
    "06",
    "Penalise the gradient of the loss",
    "Each image has its own loss ℓ and its own gradient ∂ℓ/∂x. The penalty is its squared L2 norm, averaged over the images.",
    "x = x.clone().requires_grad_(); losses = F.cross_entropy(model(x), y, reduction='none'); differentiate losses.sum(), not the mean.",
    "torch.autograd.grad(losses.sum(), x, create_graph=True)[0]: only with create_graph can the weights learn from the gradient.",
    "losses.mean() + lam * g.flatten(1).square().sum(1).mean().",
)
def gradient_penalty(fn):
    model, x, y, lam = _model(), _images(), torch.arange(6), 0.3
    weights = list(model.parameters())
    loss = _objective(fn, model, x, y, lam)
    leaf = x.clone().requires_grad_()
    losses = F.cross_entropy(model(leaf), y, reduction="none")
    g = torch.autograd.grad(losses.sum(), leaf, create_graph=True)[0].flatten(1)
    ce, squares, n = losses.mean(), g.square().sum(1), len(x)
    penalty = squares.mean()
    soft = _gradient(lambda v: F.cross_entropy(model(v).softmax(1), y, reduction="none"), x).flatten(1)
    of_weights = _slopes(ce, weights).square().sum()
    of_mean = "the gradient is that of the mean loss: each image's is N times too small, its square N² times. Differentiate losses.sum()."
    images_gradient = "that is the gradient of the weights; the penalty takes the one of the images, ∂ℓ/∂x."
    for wrong, advice in (
        (ce, "the penalty is missing."),
        (lam * penalty, "the cross-entropy itself is missing."),
        (ce + penalty, "λ is missing: the penalty counts lam times."),
        (lam * ce + penalty, "λ is at the wrong term: the penalty counts lam times, the cross-entropy once."),
        (ce - lam * penalty, "the penalty has the wrong sign: minimising would make the gradient large."),
        (ce + lam * g.norm(dim=1).mean(), "the norm is not squared."),
        (ce + lam * penalty / n**2, of_mean),
        (ce + lam * penalty / n, of_mean),  # and summed over the images
        (ce + lam * squares.sum(), "the penalty is the sum over the images; take the mean, as of the cross-entropy."),
        (ce + lam * g.square().mean(), "that is the mean over the pixels too; the squared norm of one image is a sum over its pixels."),
        (ce + lam * g.abs().sum(1).mean(), "that is the L1 norm; the penalty is the squared L2 norm, the sum of squares."),
        (
            ce + lam * g.abs().sum(1).square().mean(),
            "that is the L1 norm, squared; the penalty is the squared L2 norm, the sum of squares.",
        ),
        (ce + lam * g.norm(), "that is one norm over the whole batch, not squared. flatten(1) keeps the images apart."),
        (losses.sum() + lam * penalty, "the cross-entropy is the sum over the images; take the mean."),
        (losses.sum() + lam * squares.sum(), "both terms are sums over the images; take the mean."),
        (ce + lam * of_weights, images_gradient),
        (ce + lam * n**2 * of_weights, images_gradient),
        (F.cross_entropy(model(x).softmax(1), y) + lam * soft.square().sum(1).mean(), SOFTMAX_TWICE),
        (ce + lam * soft.square().sum(1).mean(), SOFTMAX_TWICE),
    ):
        if _near(loss, wrong, 1e-5):
            raise NotYet(advice)
    right = ce + lam * penalty
    if not _near(loss, right, 1e-5):
        raise NotYet(f"for the test images the loss is {right:.4g} ({ce:.4g} + lam · {penalty:.4g}); you return {loss:.4g}.")
    slopes = _slopes(loss, weights)
    if _same(slopes, _slopes(ce, weights)):
        raise NotYet("the number is right, but the weights learn nothing from the penalty: its gradient is a constant. create_graph=True.")
    if not _same(slopes, _slopes(right, weights)):
        raise NotYet("the number is right, but its gradient is not: the weights must learn from both terms. Is something detached?")


@exercise(
    "07",
    "One step of Adv_Alpha",
    "Class j takes over, in the linearised model, at distance (α_y − α_j) / ‖T_j − T_y‖₂. Which j is nearest, and in which direction?",
    "T[rows, y][:, None] with rows = torch.arange(N) is T_y, ready to be subtracted from T. At j = y the distance is 0/0: make it +inf.",
    "I = distance.argmin(1); r = (T − T_y)[rows, I]; return eps * r / r.norm(dim=1, keepdim=True).",
)
def adv_alpha_step(fn):
    rng = runtime.generator(3)
    alpha = (1.5 * torch.randn(6, 5, generator=rng, dtype=torch.float64)).softmax(1)
    T = torch.randn(6, 5, 7, generator=rng, dtype=torch.float64) * torch.tensor([0.3, 1.0, 0.5, 0.2, 0.7], dtype=torch.float64)[:, None]
    T = T - T.mean(1, keepdim=True)  # probabilities sum to 1, so their gradients sum to 0
    y, eps = alpha.argmax(1), 0.7
    rows = torch.arange(len(y))

    def towards(y):
        return T - T[rows, y][:, None]

    def distances(y):
        return ((alpha[rows, y][:, None] - alpha) / towards(y).norm(dim=2)).scatter(1, y[:, None], torch.inf)

    def scaled(r):
        return eps * F.normalize(r, dim=1)

    got = _call(fn, alpha, T, y, eps)
    if isinstance(got, Tensor) and got.shape == (6, 7) and (got.isnan() | (got == 0)).all(1).any():
        raise NotYet("a step is nan or zero: class y itself was chosen, at distance 0/0. Leave it out: distance[rows, y] = torch.inf.")
    got = _expect(got, (6, 7), "r")
    direction, distance = towards(y), distances(y)
    nearest, closest = distance.argmin(1), distance.amin(1)
    r = direction[rows, nearest]
    others = alpha.scatter(1, y[:, None], -1)
    squared = (distance / direction.norm(dim=2)).nan_to_num(torch.inf)
    furthest = distance.scatter(1, y[:, None], -torch.inf).argmax(1)
    for wrong, advice in (
        (-scaled(r), "that is the way back to class y: the direction is T_I − T_y, not T_y − T_I."),
        (scaled(T[rows, nearest]), "that raises α_I; what matters is the difference α_I − α_y, whose gradient is T_I − T_y."),
        (-scaled(T[rows, y]), "that only lowers α_y (it is Adv_Loss). Adv_Alpha goes to one class I: T_I − T_y."),
        (
            scaled(direction[rows, others.argmax(1)]),
            "you go to the most probable other class; the nearest one also depends on ‖T_j − T_y‖₂.",
        ),
        (scaled(direction[rows, furthest]), "that is the class furthest away. Take argmin, and give y itself the distance +inf."),
        (scaled(direction[rows, squared.argmin(1)]), "the distance divides by the norm ‖T_j − T_y‖₂, not by its square."),
        (
            closest[:, None] * F.normalize(r, dim=1),
            "that is the minimal perturbation, which just reaches the boundary; the step has length eps.",
        ),
        (closest[:, None] * r, "divide by ‖T_I − T_y‖₂ and multiply by eps: the step has length eps."),
        (r, "that is T_I − T_y as it is; the step has L2 length eps: divide by its norm."),
        (eps * r, "that is eps times T_I − T_y; divide by its norm, so that the step has L2 length eps."),
        (F.normalize(r, dim=1), "eps is missing: the step has length 1."),
        (eps * r / r.norm(), "one norm over the whole batch: each image's step needs length eps. norm(dim=1, keepdim=True)."),
        (eps * r.sign(), "that is the sign, the step in L∞; this one has L2 length eps."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    length = got.norm(dim=1)
    if not _near(length, eps):
        raise NotYet(f"the steps have lengths {length.min():.3g} to {length.max():.3g}; each should have {eps}.")
    if not _near(got, scaled(r)):
        raise NotYet("the steps have the right length, but not the direction T_I − T_y with I the nearest class.")
    wrong_already = others.argmax(1)  # the same images with another label, which the model does not predict
    got = _expect(_call(fn, alpha, T, wrong_already, eps), (6, 7), "r")
    r = towards(wrong_already)[rows, distances(wrong_already).argmin(1)]
    if _near(got, scaled(direction[rows, nearest])):
        raise NotYet("you take the predicted class for y; where the model is wrong, that is another one.")
    if not _near(got, scaled(r)):
        raise NotYet(
            "an image that is already misclassified has a negative distance. It is the smallest, and the direction stays T_I − T_y."
        )


@exercise(
    "07",
    "Learning with adversary: the loss",
    "Two steps: find the perturbation with the gradient of the loss, then take the loss there, as if it had come from outside.",
    "g = torch.autograd.grad(F.cross_entropy(model(v), y, reduction='sum'), v)[0] for v = x.clone().requires_grad_().",
    "length = g.flatten(1).norm(dim=1)[:, None, None, None]; return F.cross_entropy(model(x + c * g / length), y).",
)
def lwa_loss(fn):
    model, x, y, c = _model(), _images(), torch.arange(6), 0.8
    weights = list(model.parameters())
    loss = _objective(fn, model, x, y, c)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    moving = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf, create_graph=True)[0]
    g = moving.detach()
    own = _gradient(lambda v: F.cross_entropy(model(v), logits.argmax(1), reduction="none"), x)
    soft = _gradient(lambda v: F.cross_entropy(model(v).softmax(1), y, reduction="none"), x)

    def unit(v: Tensor, p: float = 2) -> Tensor:
        return v / _per_image(v.flatten(1).norm(p, dim=1))

    def at(step: Tensor) -> Tensor:
        return F.cross_entropy(model(x + step), y)

    clean, right = F.cross_entropy(logits, y), at(c * unit(g))
    x_adv = x + c * unit(g)
    as_it_is = "g is not divided by its length: where the model is sure, the step nearly vanishes."
    for wrong, advice in (
        (at(-c * unit(g)), "the step goes down: the loss falls. The adversary climbs: x + c · g / ‖g‖₂."),
        (clean, "that is the clean loss; take it at x + c · g / ‖g‖₂."),
        ((clean + right) / 2, "the clean loss is mixed in; LWA trains on the perturbed images alone. (The mix is Goodfellow's method.)"),
        (clean + right, "the clean loss is added; LWA trains on the perturbed images alone."),
        (
            F.cross_entropy(model(x_adv.clamp(0, 1)), y),
            "you clip to [0,1]; a good idea in general, but LWA does not, and c is then no length.",
        ),
        (at(c * g / g.norm()), "one norm over the whole batch: each image's step needs length c. flatten(1) keeps the images apart."),
        (at(c * unit(g.sign())), "that is the sign step, of length c; LWA goes along the gradient itself."),
        (at(c * g.sign()), "that is a sign step in L∞; LWA goes along the gradient itself, with L2 length c."),
        (at(c * g), as_it_is),
        (at(c * g / len(x)), as_it_is),
        (at(unit(g)), "c is missing: the step has length 1."),
        (at(c * unit(g, torch.inf)), "that divides by the largest entry; the step should have L2 length c."),
        (at(c * unit(g, 1)), "that divides by the L1 norm; the step should have L2 length c."),
        (at(c * g / _per_image(g.flatten(1).square().sum(1))), "that divides by the squared norm. Is the root missing?"),
        (len(x) * right, "that is the sum over the images; take the mean."),
        (-right, "the sign is wrong: training minimises what you return. Return the loss itself."),
        (at(c * unit(own)), "the gradient is that of the predicted label; the loss is that of the true one, y."),
        (F.cross_entropy(model(x_adv), logits.argmax(1)), "the label is the model's own prediction; it must learn the true one, y."),
        (at(c * unit(soft)), SOFTMAX_TWICE),
        (F.cross_entropy(model(x_adv).softmax(1), y), SOFTMAX_TWICE),
        (F.cross_entropy(model(x + c * unit(soft)).softmax(1), y), SOFTMAX_TWICE),
        (F.cross_entropy(model(c * unit(g)), y), "that is the loss at the step; add it to x."),
    ):
        if _near(loss, wrong, 1e-5):
            raise NotYet(advice)
    if not _near(loss, right, 1e-5):
        raise NotYet(f"for the test images the loss at x + c · g / ‖g‖₂ is {right:.4g}; you return {loss:.4g}.")
    slopes = _slopes(loss, weights)
    if _same(slopes, _slopes(at(c * unit(moving)), weights)):
        raise NotYet("the number is right, but the gradient of the weights also flows through g. Hold g fixed: detach it, no create_graph.")
    if not _same(slopes, _slopes(right, weights)):
        raise NotYet("the number is right, but its gradient is not that of the loss at a fixed perturbation. Is something detached?")


def _bound(value) -> Tensor:
    if isinstance(value, int | float):
        raise NotYet("you return a plain number, and no critic can learn from that. Return the tensor, without .item() or float(…).")
    if not isinstance(value, Tensor):
        raise NotYet(f"return the bound, a tensor of shape (), not {type(value).__name__}.")
    if value.numel() != 1:
        raise NotYet(f"the bound has shape {tuple(value.shape)} and should be one number: each term is a mean over the K samples.")
    return value.reshape(())


@exercise(
    "08",
    "The Donsker–Varadhan bound",
    "Two terms: the mean of the critic on joint samples, minus the log of the mean of exp of the critic on shuffled ones.",
    "exp(1000) overflows. torch.logsumexp(v, 0) is log of the SUM of exp, and does not; a mean is the sum divided by K.",
    "joint.mean() - (marginal.logsumexp(0) - math.log(len(marginal))).",
)
def dv_bound(fn):
    joint = torch.tensor([1.5, -0.2, 2.3, 0.9, 3.1, 0.4], dtype=torch.float64)
    marginal = torch.tensor([-1.2, 0.7, 0.1, -2.5, 1.6, -0.4], dtype=torch.float64)
    log_k = torch.tensor(6.0).double().log()

    def lme(v):
        return v.logsumexp(0) - torch.tensor(float(len(v))).double().log()

    def dv(joint, marginal):
        return joint.mean() - lme(marginal)

    got = _bound(_call(fn, joint, marginal))
    mean, right, ln2 = joint.mean(), dv(joint, marginal), torch.tensor(2.0).double().log()
    bits = "that counts in bits, with the logarithm to base 2; nats take the natural one, torch.log."
    for wrong, advice in (
        (mean - marginal.logsumexp(0), "that is the log of the SUM of exp. The mean divides by K first: subtract log K from logsumexp."),
        (mean - marginal.logsumexp(0) - log_k, "log K has the wrong sign: log mean exp is logsumexp − log K."),
        (
            mean - marginal.mean(),
            "the log is inside the mean, where it undoes exp: that is mean(marginal). First exp, then the mean, then log.",
        ),
        (mean - marginal.exp().mean(), "the log is missing: log of the mean of exp(marginal)."),
        (
            mean - (marginal - 1).exp().mean(),
            "that is another bound (of the f-divergences). Donsker–Varadhan takes the log of the mean of exp.",
        ),
        (-right, "the sign is turned: that is what an optimiser would descend. The bound itself is mean(joint) − log mean exp(marginal)."),
        (mean + lme(marginal), "the second term is subtracted: a critic that is large everywhere must gain nothing."),
        (dv(marginal, joint), "the arguments are swapped: the plain mean is over joint, exp over marginal."),
        (right / ln2, bits),
        (mean - lme(marginal) / ln2, bits),
        (lme(joint) - lme(marginal), "exp and log are in both terms; the joint one is a plain mean."),
        (joint.sum() - lme(marginal), "the first term is a sum over the samples; take the mean."),
        (mean, "only the joint term is there; the shuffled samples are missing."),
        (-lme(marginal), "only the shuffled term is there; mean(joint) is missing."),
        (
            mean - lme(marginal - marginal.max()),
            "the largest value was subtracted before exp, so that nothing overflows; add it again after log.",
        ),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, right):
        raise NotYet(f"for the test values the bound is {right:.4g} nats; you return {got:.4g}.")
    high, low = 1000 + marginal[:4], marginal[:5] - 1000
    for far in (high, low):
        value = _bound(_call(fn, joint[: len(far)], far))
        if not torch.isfinite(value):
            size = "1000 exp overflows" if far is high else "−1000 every exp is 0, and log 0 is −inf"
            raise NotYet(f"for critic values like {size}. torch.logsumexp knows the way around.")
        if not _near(value, dv(joint[: len(far)], far)):
            raise NotYet(
                f"for {len(far)} samples with critic values around {far[0].round():.0f} the bound is "
                f"{dv(joint[: len(far)], far):.4g}; you return {value:.4g}."
            )
    leaves = [joint.clone().requires_grad_(), marginal.clone().requires_grad_()]
    if not _same(_slopes(_bound(fn(*leaves)), leaves), _slopes(dv(*leaves), leaves)):
        raise NotYet("the number is right, but its gradient is not: the critic learns from both terms. Is something detached?")


@exercise(
    "08",
    "The information of Gaussian projections, in closed form",
    "Each projected coordinate is a pair of Gaussians whose correlation is the cosine between the two images; the coordinates are independent.",
    "One pair of correlation ρ has −½ ln(1 − ρ²) nats, ``size`` independent ones have ``size`` times that.",
    "cosine = torch.cosine_similarity(x.flatten(1), x_adv.flatten(1)); return -size / 2 * torch.log(1 - cosine**2).",
)
def projected_information(fn):
    x, size = _images(5), 16
    x_adv = (x + 0.7 * _images(5, seed=1)).clamp(0, 1)
    a, b = x.flatten(1), x_adv.flatten(1)
    cosine = F.cosine_similarity(a, b)

    def information(rho):
        return -size / 2 * torch.log(1 - rho**2)

    got = _expect(_call(fn, x, x_adv, size), (5,), "the information")
    right = information(cosine)
    centred = F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))
    whole = (a * b).sum() / (a.norm() * b.norm())
    for wrong, advice in (
        (-right, "the sign is turned: the logarithm is negative, and information is not."),
        (right / size, "that is one coordinate; ``size`` independent ones have ``size`` times as much."),
        (2 * right, "one pair of Gaussians has −½ ln(1 − ρ²): the ½ is missing."),
        (-size / 2 * torch.log(1 - cosine), "the correlation enters squared: 1 − ρ²."),
        (right / torch.tensor(2.0).log(), "that counts in bits; nats take the natural logarithm, torch.log."),
        (
            information(centred),
            "that is the correlation of the pixels. The projections keep the mean: take the cosine of the images as they are.",
        ),
        (information(whole).expand(5), "the cosine runs over the whole batch; each image has one of its own: flatten(1)."),
        (x[0].numel() / size * right, "the number of coordinates is ``size``, not the number of pixels."),
    ):
        if _same(got, wrong):
            raise NotYet(advice)
    if not _same(got, right):
        raise NotYet(f"for the first test image it is {right[0]:.4g} nats; you return {got[0]:.4g}.")


@exercise(
    "09",
    "The criterion of an untargeted attack",
    "How far is the logit of the true class above the best of the OTHERS? Where it is not above, the attack has succeeded: 0.",
    "z_y is logits.gather(1, y[:, None])[:, 0]. For the others, put −inf in the place of z_y: logits.scatter(1, y[:, None], -torch.inf).",
    "other = logits.scatter(1, y[:, None], -torch.inf).amax(1); return (z_y - other).clamp(min=0).",
)
def hinge(fn):
    logits = torch.tensor(
        [[3.2, 1.1, 0.4, -0.6], [0.3, 0.9, 2.1, -1.0], [-2.0, -1.5, 1.4, -0.8], [-0.2, 1.7, -1.3, 1.2], [-3.0, -1.1, -2.2, -0.7]],
        dtype=torch.float64,
    )  # three right, two wrong; in row 2 all others are negative, in row 4 all are
    y = torch.tensor([0, 1, 2, 1, 0])
    got = _call(fn, logits, y)
    if isinstance(got, Tensor) and got.isnan().any():
        raise NotYet("there is nan: 0 · inf, or inf − inf. Put −inf only in the place of z_y, with scatter, where or an index.")
    got = _expect(got, (5,), "f")

    def gap(z, others=-torch.inf):
        return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], others).amax(1)

    own, f = logits.gather(1, y[:, None])[:, 0], gap(logits)
    right, top = f.relu(), logits.topk(2, dim=1).values
    y_itself = "the maximum runs over all classes, y itself among them, so z_y is never above it. Leave y out."
    zero = "z_y was set to 0, not left out, and where all other logits are negative 0 is the maximum. Set it to −inf."
    soft = "those are probabilities, after the softmax. This criterion compares the logits."
    lowest = logits.scatter(1, y[:, None], torch.inf).amin(1)
    mean = (logits.sum(1) - own) / 3
    for wrong, advice in (
        (torch.zeros(5), y_itself),
        (
            f.clamp(max=0),  # z_y − max over all j is the same
            "never positive: either the maximum runs over all classes, y itself among them, or clamp cuts the wrong side. It is clamp(min=0).",
        ),
        (f, "where the attack has succeeded you return a negative number; f⁺ = max(0, f) is 0 there."),
        ((-f).relu(), "the sign is turned: f is positive as long as the true class leads, z_y − max_{j≠y} z_j."),
        (-f, "the sign is turned: f is positive as long as the true class leads, z_y − max_{j≠y} z_j. And f⁺ = max(0, f)."),
        (gap(logits, 0).relu(), zero),
        (gap(logits, 0), zero),
        (gap(logits.softmax(1)).relu(), soft),
        (gap(logits.softmax(1)), soft),
        (
            top[:, 0] - top[:, 1],
            "that is the lead of the predicted class; f is the lead of the true one, y. They differ where the model is wrong.",
        ),
        ((own - lowest).relu(), "that is the smallest of the others; the strongest rival is the largest."),
        ((own - mean).relu(), "that is the mean of the others; the strongest rival is the largest."),
        ((1 - f).relu(), "that is the hinge loss of a training, max(0, 1 − margin). The attack wants the margin itself: max(0, f)."),
        (f.clamp(0, 1), "the lead is cut off at 1; only the side below 0 is clipped: clamp(min=0)."),
        (own.relu(), "that is the logit of y alone; subtract the largest of the others."),
        (own, "that is the logit of y alone; subtract the largest of the others."),
        (right.mean().expand(5), "that is the mean over the batch; every image has its own f⁺."),
        (f.mean().relu().expand(5), "that is the mean over the batch; every image has its own f⁺."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    for i, (mine, yours) in enumerate(zip(right, got, strict=True)):
        if not _near(mine, yours):
            row = ", ".join(f"{v:.3g}" for v in logits[i].tolist())
            raise NotYet(f"for logits {row} and the true class {y[i]} you return {yours:.3g} and not {mine:.3g}.")
    leaf = logits.clone().requires_grad_()
    if not _same(_reaching(fn(leaf, y), leaf, "the logits"), _gradient(lambda z: gap(z).relu(), logits)):
        raise NotYet("the numbers are right, but the gradient is not: z_y and its strongest rival must both move. Is something detached?")


@exercise(
    "09",
    "The update of the dual variable",
    "c forgets a little, (1 − β / t^{1/4}) c, and grows by β f⁺ as long as the attack has not succeeded. It never becomes negative.",
    "f⁺ is f.clamp(min=0); t^{1/4} is t ** 0.25. The second clamp is around the whole sum.",
    "((1 - beta / t**0.25) * c + beta * f.clamp(min=0)).clamp(min=0).",
)
def dual_step(fn):
    c = torch.tensor([0.5, 2.0, 1.5, 0.0, 0.8, 3.0], dtype=torch.float64)
    f = torch.tensor([1.2, -0.7, 0.0, 0.9, -3.0, 0.4], dtype=torch.float64)
    t, beta = 10, 0.3
    plus = f.relu()

    def step(decay, rise=beta * plus):
        return (decay * c + rise).relu()

    got = _expect(_call(fn, c, f, t, beta), (6,), "c")
    slow = 1 - beta / t**0.25
    unclamped = "f is negative where the attack has succeeded, and pulls c below what the decay alone gives. Use f⁺ = max(0, f)."
    for wrong, advice in (
        (c, "nothing changed: c is returned as it came in."),
        (step(1), "c never forgets: the decay (1 − β / t^{1/4}) is missing."),
        (step(1, beta * f), "c never forgets: the decay (1 − β / t^{1/4}) is missing. And f must be clipped: f⁺ = max(0, f)."),
        (c + beta * f, "c never forgets: the decay (1 − β / t^{1/4}) is missing. And f must be clipped: f⁺ = max(0, f)."),
        (step(slow, beta * f), unclamped),
        (slow * c + beta * f, unclamped),
        (step(1 - beta / t), "β / t dies out too fast; the decay has β / t^{1/4}, t ** 0.25."),
        (step(1 - beta), "t is missing in the decay, β / t^{1/4}. (In Python 1 // 4 is 0, and t ** 0 is 1.)"),
        (step(1 - beta / (t**1 // 4)), "Python reads t**1//4 as (t ** 1) // 4, a division. Write t ** 0.25."),
        (step(1 - beta / (t / 4)), "Python reads t**1/4 as (t ** 1) / 4, a division. Write t ** 0.25."),
        (step(1 - beta / t**0.5), "that is the square root of t; the decay takes the fourth root, t ** 0.25."),
        (step(1 - beta / t**4), "that is the fourth power of t; the decay takes the fourth root, t ** 0.25."),
        (step(1 - beta * t**0.25), "t^{1/4} divides β: the decay becomes weaker with time."),
        (step((1 - beta) / t**0.25), "the brackets: 1 − (β / t^{1/4}), not (1 − β) / t^{1/4}."),
        (step((1 - beta / t) ** 0.25), "the power belongs to t alone: β / t ** 0.25."),
        (step(1 - 1 / t**0.25), "β is missing in the decay, 1 − β / t^{1/4}."),
        (step(1 - beta / (t + 1) ** 0.25), "t counts from 1 already; take t, not t + 1."),
        (step(1 + beta / t**0.25), "the decay has the wrong sign: 1 − β / t^{1/4}."),
        (step(slow, plus), "β is missing before f⁺."),
        (step(slow, beta / t**0.25 * plus), "the rise is β f⁺, with the full β; only the decay is divided by t^{1/4}."),
        (slow * (c + beta * plus), "the decay multiplies f⁺ too; it belongs to c alone."),
        (step(slow, -beta * plus), "c falls where the attack has not succeeded; it must grow there: + β f⁺."),
        (step(slow, -beta * f), "c falls where the attack has not succeeded; it must grow there: + β f⁺, with f⁺ = max(0, f)."),
        (slow * c - beta * plus, "c falls where the attack has not succeeded; it must grow there: + β f⁺."),
        (step(slow, 0), "only the decay is there; + β f⁺ is missing."),
        (step(slow, beta * f.abs()), "that is the absolute value of f; f⁺ = max(0, f) is 0 where the attack has succeeded."),
        (step(slow, beta * plus.mean()), "f⁺ is averaged over the batch; each image has its own c and its own f."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    for before, criterion, mine, yours in zip(c, f, step(slow), got, strict=True):
        if not _near(mine, yours):
            given = f"c = {before:.3g}, f = {criterion:.3g}, t = {t} and beta = {beta}"
            raise NotYet(f"for {given} the next c is {mine:.4g}; you return {yours:.4g}.")
    t, beta = 1, 1.5  # here the decay turns negative
    rise, negative = beta * plus, 1 - beta
    right = (negative * c + rise).relu()
    got = _expect(_call(fn, c, f, t, beta), (6,), "c")
    if _near(got, negative * c + rise):
        raise NotYet("for β = 1.5 and t = 1 a c becomes negative: the projection onto c ≥ 0 is missing, max(0, …) around the whole sum.")
    if _near(got, rise):
        raise NotYet("for β = 1.5 you clip the decay at 0. The projection is around the whole sum: max(0, decay · c + β f⁺).")
    if _near(got, (negative * c).abs() + rise) or _near(got, (negative * c + rise).abs()):
        raise NotYet("for β = 1.5 an absolute value turns a negative number into a large c. The projection onto c ≥ 0 is max(0, …).")
    if not _near(got, right):
        mine, yours = (", ".join(f"{v:.3g}" for v in values) for values in (right, got))
        raise NotYet(f"for β = 1.5 and t = 1 the next c is {mine}; you return {yours}.")


@exercise(
    "10",
    "The criterion of an unsupervised adversarial example",
    "Does the autoencoder give the ORIGINAL back from x_adv at least as well as from x itself? The target is x in both terms.",
    "(x - model(x_adv)).square() holds one number per pixel. flatten(1).sum(1) adds those of one image.",
    "Subtract the same with model(x). No detach() and no no_grad around model(x_adv): the attack needs the gradient there.",
)
def uae_criterion(fn):
    with runtime.seeded(0):
        layers = dict(flat=nn.Flatten(), code=nn.Linear(64, 16), relu=nn.ReLU(), output=nn.Linear(16, 64))
        model = nn.Sequential(OrderedDict(**layers, sigmoid=nn.Sigmoid(), image=nn.Unflatten(1, (1, 8, 8)))).double().eval()
    with torch.no_grad():
        model.code.weight *= 4
        model.output.weight *= 4
    x = _images()
    x_adv = (x + 0.6 * _images(seed=1) - 0.3).clamp(0, 1).requires_grad_()
    before = _state(model)
    values = _call(partial(fn, model), x, x_adv)
    _as_found(model, before)
    got = _expect(values, (6,), "f")

    def total(v):
        return v.square().flatten(1).sum(1)

    def criterion(x_adv):
        return total(x - model(x_adv)) - total(x - model(x))

    moved = x_adv.detach()
    with torch.no_grad():
        a, b = model(moved), model(x)
    new, own = total(x - a), total(x - b)
    right = new - own
    original = "the target is x_adv in the first term. What counts is how well the ORIGINAL comes back: ‖x − Φ(x_adv)‖²."
    pixels = "that is the mean over the pixels; the criterion sums the squares."
    for wrong, advice in (
        (total(moved - a) - own, original),
        (total(moved - a) - total(moved - b), "the target is x_adv in both terms; it is the original x in both."),
        (new - total(moved - b), "the target of the second term is x_adv; it is the original x in both."),
        (total(moved - b) - total(moved - a), "x and x_adv are swapped: the target is x in both terms, and Φ(x_adv) comes first."),
        (total(moved - a), "that is how well x_adv comes back. The target is the original x, and ‖x − Φ(x)‖² is subtracted."),
        (-right, "the sign is turned: f is at most 0 where x_adv gives x back at least as well as x does."),
        (right / 64, pixels),
        (-right / 64, pixels + " And the sign is turned."),
        ((total(moved - a) - own) / 64, original + " And the squares are summed over the pixels, not averaged."),
        (new, "the second term is missing: subtract ‖x − Φ(x)‖², how well x itself comes back."),
        (own, "the first term is missing: ‖x − Φ(x_adv)‖²."),
        (new + own, "the terms are added; subtract the second."),
        (right.relu(), "that is f⁺; here the criterion f itself is asked for, negative where the attack has succeeded."),
        (new.sqrt() - own.sqrt(), "those are the norms; the criterion takes their squares, without the root."),
        ((x - a).abs().flatten(1).sum(1) - (x - b).abs().flatten(1).sum(1), "those are absolute differences; the criterion squares them."),
        (total(b - a), "that compares the two reconstructions; each is compared with x, and then they are subtracted."),
        (total(x - moved), "that is the size of the perturbation; the autoencoder is missing."),
        (right.mean().expand(6), "that is the mean over the batch; every image has its own f."),
        (right.sum().expand(6), "that is the sum over the batch; every image has its own f."),
        (new - own.mean(), "the second term is averaged over the batch; every image has its own."),
        (new.mean() - own, "the first term is averaged over the batch; every image has its own."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, right):
        raise NotYet(f"for the first test image ‖x − Φ(x_adv)‖² − ‖x − Φ(x)‖² is {right[0]:.4g}; you return {got[0]:.4g}.")
    if not _same(_reaching(values, x_adv, "x_adv"), _gradient(criterion, moved)):
        raise NotYet("the numbers are right, but the gradient at x_adv is not that of ‖x − Φ(x_adv)‖². Is something detached?")


@exercise(
    "10",
    "Epochs that take as many steps",
    "An epoch has one step per batch, and the last batch may be smaller. Count the steps of the augmented training first.",
    "Steps: epochs · ⌈augmented / batch_size⌉. Divide by the steps of one epoch on the original images, and round up.",
    "steps = epochs * -(-augmented // batch_size); return -(-steps // -(-images // batch_size)).",
)
def matched_epochs(fn):
    def right(images, augmented, epochs, batch_size):
        return math.ceil(epochs * math.ceil(augmented / batch_size) / math.ceil(images / batch_size))

    cases = [(100, 200, 10, 50), (100, 250, 7, 40), (130, 260, 10, 100), (90, 270, 3, 100), (2000, 2000, 20, 100), (150, 160, 5, 50)]
    for case in cases:
        got, want = _call(fn, *case), right(*case)
        if not isinstance(got, int | float) or isinstance(got, bool):
            raise NotYet(f"return a whole number, not {type(got).__name__}.")
        images, augmented, epochs, batch_size = case
        if got == epochs != want:
            raise NotYet("the same number of epochs means more steps on the larger set; the steps are what must match.")
        if got != int(got):
            raise NotYet(f"for {case} you return {got}; epochs are whole numbers: round up, so that no step is missing.")
        if got != want and got == math.ceil(epochs * augmented / images):
            raise NotYet(
                f"for {case} the ratio of the images gives {got}, but the last batch of an epoch is a step too, however small: {want}."
            )
        if got == want - 1:
            raise NotYet(f"for {case} you return {got}, one too few: round up both times, a smaller last batch is a step too.")
        if got != want:
            raise NotYet(f"for {case} it is {want}; you return {got}.")


@exercise(
    "11",
    "Noise that cannot leave the ball",
    "Which smooth function takes any number and gives one between −1 and 1, with both signs? Its result is then scaled to the ball.",
    "torch.tanh runs from −1 to 1 and has a slope everywhere, so the generator learns at every pixel. eps stands outside.",
    "return eps * torch.tanh(raw).",
)
def bounded_noise(fn):
    raw = torch.randn(4, 1, 3, 3, generator=runtime.generator(0), dtype=torch.float64)
    raw[0, 0, 0] = torch.tensor([-4.0, 0.0, 2.5])
    eps = 0.3
    got = _expect(_call(fn, raw, eps), tuple(raw.shape), "the noise")
    cut = "beyond the bound clamp has gradient 0, and a pixel that is cut off never comes back. Use a smooth function."
    outside = "eps stands outside: ε · tanh(raw). Then the bound is ε, whatever raw is."
    for wrong, advice in (
        (raw, "nothing happened: raw is returned as it came in."),
        (raw.clamp(-eps, eps), cut),
        (eps * raw.clamp(-1, 1), cut),
        (raw.tanh().clamp(-eps, eps), cut),
        (eps * raw.sigmoid(), "sigmoid runs from 0 to 1, so pixels could only become brighter. The noise needs both signs: tanh."),
        (raw.sigmoid(), "sigmoid runs from 0 to 1, so pixels could only become brighter, and eps is missing. Use tanh, times eps."),
        (raw.sigmoid() - 0.5, "that stays within ±½, whatever eps is. Use tanh, times eps."),
        (eps * (raw.sigmoid() - 0.5), "that reaches only ε/2 on either side. tanh runs from −1 to 1."),
        (eps * (2 * raw.sigmoid() - 1), "bounded, and with both signs: it is ε · tanh(raw / 2). Here tanh(raw) itself is asked for."),
        (raw.tanh(), "eps is missing: tanh alone reaches ±1, the whole range of a pixel."),
        ((eps * raw).tanh(), outside),
        (eps * (eps * raw).tanh(), "eps is there twice; it stands outside tanh only."),
        (eps * (raw / eps).tanh(), "raw / eps inside makes tanh so steep that it is almost a sign. eps stands outside only."),
        (raw.tanh() / eps, "you divide by eps; multiply."),
        (-eps * raw.tanh(), "the sign is turned: a positive raw makes the pixel brighter."),
        (eps * raw, "that has no bound: where raw is 4 the pixel moves by 4 ε. Put tanh in between."),
        (eps * raw.sign(), "the sign stays in the ball, but it is flat: the generator would get no gradient. Use tanh."),
        (eps * raw / raw.abs().max(), "the largest entry of the batch decides about all images. tanh treats every pixel for itself."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if got.abs().max() > eps + 1e-6:
        raise NotYet(f"a pixel moves by {got.abs().max():.3g}, and eps is {eps}. Every pixel may move by eps at most.")
    for value, mine, yours in zip(raw.flatten(), eps * raw.tanh().flatten(), got.flatten(), strict=True):
        if not _near(mine, yours):
            raise NotYet(f"for raw = {value:.3g} and eps = {eps} you return {yours:.3g} and not {mine:.3g}.")
    row, small = torch.tensor([-1.0, 0.2, 6.0], dtype=torch.float64), 0.05
    if not _near(_expect(_call(fn, row, small), (3,), "the noise"), small * row.tanh()):
        raise NotYet(f"right for eps = {eps}, but not for eps = {small}. Is eps written as a number?")
    leaf = raw.clone().requires_grad_()
    if not _same(_reaching(fn(leaf * 1, eps), leaf, "raw"), _gradient(lambda v: eps * v.tanh(), raw)):
        raise NotYet("the numbers are right, but the gradient is not that of ε · tanh(raw). Is something detached?")


@exercise(
    "11",
    "One step of the victim, kept differentiable",
    "The loss is the mean cross-entropy at x_poisoned. Ask for its gradient with respect to the parameters, and change no parameter.",
    "params = dict(model.named_parameters()); torch.autograd.grad(loss, list(params.values()), create_graph=True) keeps the way back.",
    "return {name: p - lr * g for (name, p), g in zip(params.items(), grads)}.",
)
def pseudo_update(fn):
    model, x, y, lr = _model(), 0.1 + 0.8 * _images(), torch.arange(6), 0.3
    xi = torch.randn(x.shape, generator=runtime.generator(1), dtype=torch.float64).requires_grad_()  # stands for the generator's weights
    x_poisoned = x + 0.1 * xi.tanh()
    before, own = _state(model), dict(model.named_parameters())
    from_the_model = "The step is only worked out: return new tensors, p − lr · g, and leave the model's own as they are."
    try:
        params = _call(partial(fn, model), x_poisoned, y, lr)
    except RuntimeError as error:
        if "not require grad" not in str(error):
            raise
        raise NotYet(
            "no graph leads from the loss to these parameters. state_dict() and detach() cut it off, and no_grad builds none: "
            "take dict(model.named_parameters())."
        ) from error
    stored = "torch.autograd.grad(loss, params, create_graph=True) returns the gradients and stores nothing."
    _as_found(model, before, weights=from_the_model, grads=stored)
    if xi.grad is not None:
        raise NotYet(f"backward() ran on through x_poisoned and filled the generator's .grad too. {stored}")
    if not isinstance(params, Mapping):
        raise NotYet(
            f"you return a {type(params).__name__}; return a dict, name → tensor, with which functional_call(model, params, x) works."
        )
    if set(params) != set(own):
        names = ", ".join(map(str, params)) or "none"
        raise NotYet(f"the names should be those of model.named_parameters(): {', '.join(own)}. You return {names}.")
    for name, p in own.items():
        if not isinstance(params[name], Tensor) or params[name].shape != p.shape:
            what = tuple(params[name].shape) if isinstance(params[name], Tensor) else type(params[name]).__name__
            raise NotYet(f"{name} should be a tensor of shape {tuple(p.shape)}; yours is {what}.")

    def row(tensors) -> Tensor:
        return torch.cat([v.detach().flatten() for v in tensors])

    def slopes(loss) -> Tensor:
        return row(torch.autograd.grad(loss, list(own.values()), retain_graph=True))

    logits = model(x_poisoned)
    grads = torch.autograd.grad(F.cross_entropy(logits, y), list(own.values()), create_graph=True)
    p, g, got = row(own.values()), row(grads), row(params[name] for name in own)
    step = lr * g
    summed = "that is the step on the summed loss, N times too long. Take the mean, as the victim's training does."
    for wrong, advice in (
        (p, "the parameters are still where they were: subtract lr times the gradient."),
        (p + step, "the step goes up: the victim's training descends its loss. Subtract."),
        (p - len(x) * step, summed),
        (p + len(x) * step, summed + " And the sign is wrong: subtract."),
        (p - g, "lr is missing."),
        (p - g / lr, "you divide by lr; multiply."),
        (g, "those are the gradients; return the parameters after the step, p − lr · g."),
        (-step, "that is the step alone; add it to the parameters."),
        (step, "that is the step alone; subtract it from the parameters."),
        (p - lr * g.sign(), "that is a step along the sign; the victim takes a plain step of SGD, lr times the gradient."),
        (p - lr * slopes(F.cross_entropy(logits.softmax(1), y)), SOFTMAX_TWICE),
        (
            p - lr * slopes(F.cross_entropy(logits, logits.argmax(1))),
            "the label is the model's own prediction; the victim learns the labels of the data, y.",
        ),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    for name, v, slope in zip(own, own.values(), grads, strict=True):
        if not _near(params[name].detach(), (v - lr * slope).detach()):
            still = " It has not moved." if _near(params[name].detach(), v.detach()) else ""
            raise NotYet(f"{name} is not p − lr · g after one step on the mean cross-entropy at x_poisoned.{still}")

    def learned(params) -> Tensor:
        """What the generator gets: the gradient of the loss on clean images after the step."""
        loss = F.cross_entropy(torch.func.functional_call(model, params, (x,)), y)
        if not loss.requires_grad:
            return torch.zeros_like(xi)
        return torch.autograd.grad(loss, xi, retain_graph=True, materialize_grads=True)[0]

    try:
        reached = learned(dict(params))
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise NotYet("the numbers are right, but the graph is used up, and the generator needs it: create_graph=True.") from error
    if not reached.any():
        raise NotYet(
            "the numbers are right, but no gradient reaches x_poisoned, so the generator learns nothing. The step needs its own graph: "
            "create_graph=True, and no detach() or no_grad."
        )
    right = learned({name: v - lr * slope for (name, v), slope in zip(own.items(), grads, strict=True)})
    if not _near(reached / right.abs().max(), right / right.abs().max()):
        raise NotYet("the numbers are right, but only part of the gradient reaches x_poisoned. Is one of the parameters detached?")


@exercise(
    "12",
    "The next class",
    "η sends every class to the one after it. And the last class? The labels are a circle.",
    "The remainder closes the circle: % classes. Mind the brackets: in y + 1 % classes the remainder is taken first, of 1 alone.",
    "return (y + 1) % classes.",
)
def next_label(fn):
    for labels, classes in (([3, 9, 0, 4, 9, 7, 8], 10), ([3, 0, 2, 1, 3, 3], 4), ([0, 1, 1, 0], 4), ([1, 0, 1], 2)):
        y = torch.tensor(labels)
        got = _call(fn, y, classes)
        if isinstance(got, Tensor) and got.shape == (len(y), classes):
            raise NotYet("those are one-hot rows. F.cross_entropy takes the numbers of the classes: return shape (N,).")
        got = _expect(got, (len(y),), "the labels")
        right = (y + 1) % classes
        for wrong, advice in (
            (y, "nothing changed: every class keeps its own label."),
            ((y + 1) % 10, f"that counts ten classes, and here there are {classes}: use the argument."),
            (y + 1, f"there is no class {classes}: after the last comes 0, (y + 1) % classes. Look at the brackets too."),
            ((y + 1).clamp(max=classes - 1), "the last class keeps its label. The labels are a circle: after the last comes 0."),
            ((y - 1) % classes, "that is the class before; η goes to the one after it, y + 1."),
            (y - 1, "that is the class before; η goes to the one after it, y + 1, and from the last to 0."),
            (classes - 1 - y, "that is the mirror image, first and last class exchanged; η goes one on."),
            (y.roll(1), "that moves the labels along the batch; each label itself goes one on: y + 1."),
            (y.roll(-1), "that moves the labels along the batch; each label itself goes one on: y + 1."),
            ((y + 1) % (classes - 1), "the remainder is of classes − 1, so that no image gets the last class. Take % classes."),
            (
                (y + 1) % (y.max() + 1),
                "the number of classes is guessed from the labels of this batch, and the last class need not be in it: use the argument.",
            ),
        ):
            if _near(got, wrong) and not torch.equal(wrong, right):
                raise NotYet(advice)
        for before, mine, yours in zip(y, right, got, strict=True):
            if not _near(mine, yours):
                raise NotYet(f"with {classes} classes, label {before} becomes {mine}; you return {yours.item():.3g}.")
        if got.dtype != torch.int64:
            raise NotYet(f"the labels are {str(got.dtype).removeprefix('torch.')}. F.cross_entropy wants whole numbers, int64, as y is.")


@exercise(
    "12",
    "Poison a share of the images",
    "Draw round(share · N) different places with the generator. Those rows come from x_poisoned, all others stay x, each at its place.",
    "torch.randperm(len(x), generator=generator) is every place once, in random order; take as many from its front as you need.",
    "mixed = x.clone(); mixed[places] = x_poisoned[places]; return mixed.",
)
def share_poisoned(fn):
    n, share = 20, 0.38
    x, x_poisoned = _images(n), _images(n, seed=1)
    k = round(share * n)

    def chosen(share: float, generator: torch.Generator) -> Tensor:
        """For every row whether it is the poisoned one."""
        got = _call(fn, x, x_poisoned, share, generator)
        if isinstance(got, Tensor) and got.shape[1:] == x.shape[1:] and len(got) != n:
            raise NotYet(f"{n} images came in and {len(got)} come out. The poisoned ones take the places of their clean versions.")
        got = _expect(got, tuple(x.shape))

        def equal(rows: Tensor, to: Tensor) -> Tensor:
            return (rows - to).abs().flatten(rows.dim() - 3).amax(-1) < 1e-6

        own = equal(got, x_poisoned)
        strange = ~own & ~equal(got, x)
        if strange.any():
            known = equal(got[:, None], x[None]).any(1) | equal(got[:, None], x_poisoned[None]).any(1)
            if known.all():
                raise NotYet("the images are whole, but not each is at its place: row i is x[i] or x_poisoned[i], for y[i] is its label.")
            i = (~known).nonzero()[0].item()
            raise NotYet(f"row {i} is neither x[{i}] nor x_poisoned[{i}]. Choose whole images; no pixel is mixed.")
        return own

    draws = [chosen(share, runtime.generator(seed)) for seed in range(32)]
    counts = {int(places.sum()) for places in draws}
    low, high, first = min(counts), max(counts), draws[0]
    one_size = {
        0: f"no image is poisoned; {share} of {n} images are {share * n:.3g}, so {k}.",
        n: f"all images are poisoned; {share} of {n} images are {share * n:.3g}, so {k}.",
        n - k: f"{n - k} images are poisoned and {k} are clean; it is the other way round.",
        k - 1: f"{share} of {n} images are {share * n:.3g}: round to {k}, where int() and // cut off.",
    }
    if low == high != k:
        raise NotYet(one_size.get(low, f"{low} of {n} images are poisoned; round(share · N) is {k}."))
    if high > k:
        raise NotYet(
            f"from draw to draw {low} to {high} images are poisoned: a coin for each image hits the share on average. Draw exactly {k}."
        )
    if low < k:
        raise NotYet(f"some draws poison only {low} images: a place is drawn twice. randperm draws without replacement, randint with it.")
    if all(torch.equal(places, first) for places in draws):
        if first[:k].all() or first[-k:].all():
            raise NotYet(
                f"you always take the {'first' if first[:k].all() else 'last'} {k}. Where data are sorted, those are of one class: draw at random."
            )
        raise NotYet("the same images are chosen whatever the generator. Hand it on as it is: torch.randperm(len(x), generator=generator).")
    torch.manual_seed(1)
    if any(not torch.equal(chosen(share, runtime.generator(seed)), draws[seed]) for seed in range(3)):
        raise NotYet(
            "two generators with the same seed choose different images: the chance comes from elsewhere. "
            "torch.randperm(len(x), generator=generator)."
        )
    going_on = runtime.generator(0)
    if torch.equal(chosen(share, going_on), chosen(share, going_on)):
        raise NotYet("called twice with one generator you choose the same images: only its seed is read. Let randperm draw from it.")
    if all((places != places.roll(1)).sum() == 2 for places in draws):
        raise NotYet("the chosen images always lie side by side: only the beginning is drawn. Draw every place: randperm.")
    never = ~torch.stack(draws).any(0)
    if never.any():
        raise NotYet(f"in 32 draws image {never.nonzero()[0].item()} was never chosen. Every place has the same chance: randperm(len(x)).")
    for other, right in ((0.36, round(0.36 * n)), (0.0, 0), (1.0, n)):
        count = int(chosen(other, runtime.generator(0)).sum())
        if count != right:
            raise NotYet(f"for share = {other:g} and {n} images, round(share · N) is {right}; you poison {count}.")


@exercise(
    "13",
    "Gradients that point the same way",
    "All parameters together have one gradient, one long vector: flatten each tensor and join them. How do two vectors compare in direction?",
    "The cosine is ⟨a, b⟩ / (‖a‖ ‖b‖): 1 in the same direction, −1 in the opposite one. A loss should be smallest where it is largest.",
    "a = torch.cat([g.flatten() for g in g_poison]), b likewise; return 1 - F.cosine_similarity(a, b, dim=0).",
)
def matching_loss(fn):
    rng = runtime.generator(2)
    shapes = [(5, 2, 3), (5,), (4, 5), (4,)]
    a, noise = (tuple(torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes) for _ in range(2))
    a = tuple(size * v for size, v in zip((0.5, 2.0, 1.0, 3.0), a, strict=True))
    b = tuple(turn * v + w for turn, v, w in zip((0.8, -0.2, 1.0, 0.3), a, noise, strict=True))

    def row(gradients) -> Tensor:
        return torch.cat([v.flatten() for v in gradients])

    def right(g_poison, g_target) -> Tensor:
        return 1 - F.cosine_similarity(row(g_poison), row(g_target), dim=0)

    value = _call(fn, a, b)
    if isinstance(value, list | tuple) or isinstance(value, Tensor) and value.numel() > 1:
        raise NotYet("return one number for all parameters together. They have one gradient in common: join all tensors into one vector.")
    got = _scalar(value)
    u, v = row(a), row(b)
    dot, long, cos = u @ v, u.norm() * v.norm(), F.cosine_similarity(u, v, dim=0)
    pairs = [(p.flatten(), q.flatten()) for p, q in zip(a, b, strict=True)]
    each = torch.stack([F.cosine_similarity(p, q, dim=0) for p, q in pairs])
    norms = torch.stack([torch.stack([p.norm(), q.norm()]) for p, q in pairs])
    apart = "a cosine for each tensor, so that a small bias counts as much as a large layer. Join all tensors into one vector first."
    distance = "that is a distance, and depends on the lengths; only the direction counts here: 1 − cos."
    unscaled = "⟨a, b⟩ is not divided by ‖a‖ ‖b‖: a longer gradient alone would make the loss fall."
    half = "only one of the two vectors is normalised: divide by ‖a‖ and by ‖b‖."
    joined = "the norm of the joined vector is not the sum of the tensors' norms: add the squares, then take the root."
    for wrong, advice in (
        (cos, "that is the cosine itself: minimising it would turn the gradients against each other. 1 − cos."),
        (-cos, "the direction is right, the number is not: 1 − cos is 0 where the gradients agree."),
        (cos - 1, "the sign is turned: minimising cos − 1 turns the gradients against each other. 1 − cos."),
        (1 + cos, "the sign is turned: minimising 1 + cos turns the gradients against each other. 1 − cos."),
        (1 - each.mean(), apart),
        (each.mean(), apart + " And 1 − cos."),
        ((1 - each).sum(), apart),
        (1 - each.sum(), apart),
        (each.sum(), apart + " And 1 − cos."),
        (1 - each[0], "only the first tensor is compared; all parameters count. Join them into one vector."),
        (1 - each[-1], "only the last tensor is compared; all parameters count. Join them into one vector."),
        ((u - v).square().sum(), distance),
        ((u - v).square().mean(), distance),
        ((u - v).norm(), distance),
        ((u - v).abs().sum(), distance),
        (1 - dot, unscaled),
        (-dot, unscaled + " And 1 − cos."),
        (dot, unscaled + " And 1 − cos."),
        (1 - dot / u.norm(), half),
        (1 - dot / v.norm(), half),
        (1 - dot / u.norm() ** 2, half),
        (1 - dot / v.norm() ** 2, half),
        (1 - dot / long**2, "that divides by the squared norms. Is a root missing?"),
        (1 - dot / norms.prod(1).sum(), joined),
        (1 - dot / norms.sum(0).prod(), joined),
        (1 - cos.square(), "the square rewards the opposite direction as much as the right one; the sign of the cosine counts."),
        (cos.acos(), "that is the angle; the loss is 1 − cos."),
        (len(u) * (1 - cos), "that is a sum over the parameters; 1 − cos is one number already."),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if not _near(got, 1 - cos):
        raise NotYet(f"for the test gradients 1 − cos is {1 - cos:.4g}; you return {got:.4g}.")
    for scale, far in ((3.0, 0), (-0.5, 2)):
        p, q = list(a[1:]), [scale * w for w in a[1:]]
        again = _scalar(_call(fn, p, q))
        if scale < 0 and _near(again, 0):
            raise NotYet("the absolute value rewards the opposite direction as much as the right one; the sign of the cosine counts.")
        if not _near(again, far):
            raise NotYet(f"for g_target = {scale:g} · g_poison, given as lists, 1 − cos is {far}; you return {again:.4g}.")
    leaves = [w.clone().requires_grad_() for w in a]
    loss = fn(tuple(leaves), b)
    if not loss.requires_grad:
        raise NotYet("the number is right, but no gradient reaches g_poison, and the noise learns from it. Is there a detach() too many?")
    reached = row(torch.autograd.grad(loss, leaves, materialize_grads=True))
    if not _near(reached, row(torch.autograd.grad(right(leaves, b), leaves))):
        raise NotYet(
            "the number is right, but its gradient is not: numerator and norm must both move with g_poison. Is something detached?"
        )


@exercise(
    "13",
    "One step of error-minimising noise",
    "It is a PGD step the other way: the noise makes the training loss SMALLER, so that the victim finds nothing left to learn.",
    "Gradient of the cross-entropy at x + delta, with respect to the image; delta - step_size * g.sign(), clamped to ±eps.",
    "delta = (delta - step_size * g.sign()).clamp(-eps, eps); return (x + delta).clamp(0, 1) - x. The noise, not the image.",
)
def min_min_step(fn):
    model, x, y, eps, step_size = _model(), _images(), torch.arange(6), 0.1, 0.03
    delta = (x + (0.4 * torch.rand(x.shape, generator=runtime.generator(1), dtype=torch.float64) - 0.2).clamp(-eps, eps)).clamp(0, 1) - x
    before = _state(model)
    got = _expect(_call(partial(fn, model), x, delta, y, eps, step_size), tuple(x.shape), "delta")
    _as_found(model, before)

    def slope(at: Tensor, y: Tensor = y, loss=F.cross_entropy) -> Tensor:
        return _gradient(lambda v: loss(model(v), y), at)

    def boxed(d: Tensor) -> Tensor:
        return (x + d).clamp(0, 1) - x

    g = slope(x + delta)
    step = step_size * g.sign()
    moved = delta - step
    right = boxed(moved.clamp(-eps, eps))
    up = "the step goes up: that is the noise of an adversary. Error-MINIMISING noise subtracts step · sign of the gradient."
    image = "that is the image; return the noise alone: subtract x again."
    softmax = slope(x + delta, loss=lambda z, y: F.cross_entropy(z.softmax(1), y)).sign()
    next_class = slope(x + delta, (y + 1) % 10).sign()
    for wrong, advice in (
        (delta, "delta comes back as it went in. Is the step subtracted, and is the result returned?"),
        (boxed((delta + step).clamp(-eps, eps)), up),
        ((delta + step).clamp(-eps, eps), up),
        (delta + step, up),
        (moved, "nothing brings delta back: clamp it to ±eps, and x + delta to [0,1]."),
        (
            moved.clamp(-eps, eps),
            "x + delta leaves [0,1]; such pixels do not exist, and a file would cut them off. delta = (x + delta).clamp(0, 1) - x.",
        ),
        (x + right, image),
        (x + moved.clamp(-eps, eps), image + " And clamp x + delta to [0,1]."),
        ((x + moved).clamp(0, 1), image + " And clamp delta to ±eps."),
        (x + moved, image + " And clamp, to ±eps and to [0,1]."),
        (boxed((-step).clamp(-eps, eps)), "the noise so far is forgotten: the step starts from delta, not from 0."),
        (-step, "that is the step alone; add it to delta, then clamp."),
        (
            boxed((delta - step_size * slope(x).sign()).clamp(-eps, eps)),
            "the gradient is taken at x; take it where the victim looks, at x + delta.",
        ),
        (
            boxed((delta - step_size * slope(delta).sign()).clamp(-eps, eps)),
            "the gradient is taken at delta alone; the model sees x + delta.",
        ),
        (boxed((delta - step_size * g).clamp(-eps, eps)), "that is the gradient itself; the step goes along its sign."),
        (boxed((delta - step_size * len(x) * g).clamp(-eps, eps)), "that is the gradient itself; the step goes along its sign."),
        (boxed((delta - g.sign()).clamp(-eps, eps)), "step_size is missing: every pixel jumps to the bound."),
        (boxed((delta - eps * g.sign()).clamp(-eps, eps)), "that is a step of eps; step_size is smaller."),
        (boxed((delta - eps * g.sign()).clamp(-step_size, step_size)), "eps and step_size are exchanged."),
        (boxed(moved.clamp(-step_size, step_size)), "delta is clamped to ±step_size; the bound is eps."),
        (
            boxed(moved.clamp(0, eps)),
            "the negative half of the noise is lost: clamp to −eps … eps.",
        ),
        (boxed((delta - step_size * softmax).clamp(-eps, eps)), SOFTMAX_TWICE),
        (
            boxed((delta - step_size * slope(x + delta, model(x + delta).argmax(1)).sign()).clamp(-eps, eps)),
            "the gradient is that of the predicted label; the noise makes the label of the data easy, y.",
        ),
        (
            boxed((delta - step_size * next_class).clamp(-eps, eps)),
            "that pulls towards the next class; error-minimising noise makes the label of the data easy, y itself.",
        ),
    ):
        if _near(got, wrong):
            raise NotYet(advice)
    if got.abs().max() > eps + 1e-6:
        raise NotYet(f"the noise reaches {got.abs().max():.3g}, and eps is {eps}: clamp delta to ±eps.")
    if (x + got).min() < -1e-6 or (x + got).max() > 1 + 1e-6:
        raise NotYet(f"x + delta reaches from {(x + got).min():.3g} to {(x + got).max():.3g}; that is no image. Clip to [0,1].")
    if not _near(got, right):
        raise NotYet("the noise stays in its bounds, but it is not delta − step_size · sign of the gradient at x + delta, clamped.")
