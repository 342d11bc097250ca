"""Checks for the exercises: ``check.fgsm(fgsm)`` right under the stub, ``check.hint("fgsm")``, ``check.progress()``.

A check looks at properties, in an order that teaches: not attempted yet, raises, wrong shape, a typical mistake by name, right. It never
raises into the notebook. ● is right, ○ is not there yet. The solution of a lecture is checked under a name ending in ``_solution`` and does
not count as the student's progress.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass

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
        with torch.random.fork_rng():
            try:
                self.test(fn)
            except NotImplementedError:
                print(f'○ {self.name}: not attempted yet. Write the function above, then run both cells; check.hint("{self.name}") helps.')
            except NotYet as advice:
                print(f"○ {self.name}: {advice}")
            except Exception as error:  # a student's function may raise anything, and a check must not stop the notebook
                print(f"○ {self.name}: your function raises {type(error).__name__}: {error}")
            else:
                print(f"● {self.name}: right. {self.title}.")
                if not getattr(fn, "__name__", "").endswith("_solution"):
                    _remember(self.name)


EXERCISES: dict[str, Exercise] = {}


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
    more = f'  More: check.hint("{name}", {level + 1}).' if level < len(hints) else "  That was the last hint; the solution is below the check."
    print(f"Hint {level} of {len(hints)}: {hints[level - 1]}{more}")


def _progress_file():
    return runtime.state_dir() / "progress.json"


def solved() -> dict[str, str]:
    """Name of every exercise solved so far, with the day; empty when nothing is kept or the file is damaged."""
    try:
        return json.loads(_progress_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


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


def _model(seed: int = 0) -> nn.Module:
    """A small network in eval mode; float64."""
    torch.manual_seed(seed)
    return models.mlp(16, pixels=64).double().eval()


def _expect(value, shape: tuple[int, ...], name: str = "the result") -> Tensor:
    if value is None:
        raise NotYet("your function returns None. Is the `return` missing?")
    if not isinstance(value, Tensor):
        raise NotYet(f"{name} is a {type(value).__name__}; return a tensor of shape {shape}.")
    if tuple(value.shape) != shape:
        raise NotYet(f"{name} has shape {tuple(value.shape)} and should have {shape}.")
    if not torch.isfinite(value).all():
        raise NotYet(f"{name} holds nan or inf. What is divided by zero?")
    return value.detach()


def _near(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((a.double() - b.double()).abs().max() <= tolerance)


def _attacked(fn: Callable, model: nn.Module, x: Tensor, *arguments) -> Tensor:
    """Runs a student's attack and holds it to what every attack owes to the model and to the input."""
    before, kept = {name: p.clone() for name, p in model.state_dict().items()}, x.clone()
    x_adv = _expect(fn(model, x, *arguments), tuple(x.shape), "x_adv")
    if not torch.equal(x, kept):
        raise NotYet("your function changed its input x. Work on a copy: x.clone(), or x.detach() + delta.")
    if model.training:
        raise NotYet("the model was in eval mode and is now in train mode; dropout and batch norm would behave differently. Leave the mode alone.")
    if any(not torch.equal(p, before[name]) for name, p in model.state_dict().items()):
        raise NotYet("the model's weights have changed. An attack moves the image; the weights stay fixed.")
    if any(p.grad is not None for p in model.parameters()):
        raise NotYet("the weights' .grad is filled: loss.backward() reaches them too. torch.autograd.grad(loss, x)[0] asks for the image's alone.")
    if torch.equal(x_adv, x):
        raise NotYet("x_adv equals x. Is the step added, and is the gradient taken at the input?")
    return x_adv


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none").detach()


# ------------------------------------------------------------------------------------------------------- the exercises


@exercise(
    "00",
    "Size of a perturbation",
    "The L∞ norm of one image's perturbation is its largest absolute pixel.",
    "delta.flatten(1) has shape (N, pixels): one row per image. Then take absolute values, and the maximum over dimension 1.",
)
def linf_size(fn):
    delta = torch.tensor([[[[0.1, -0.5], [0.2, 0.0]]], [[[0.3, 0.1], [-0.2, 0.25]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    got = fn(delta)
    if isinstance(got, float) or (isinstance(got, Tensor) and got.dim() == 0):
        raise NotYet("you return one number for the whole batch; each image has its own norm, so return shape (N,).")
    got = _expect(got, (3,))
    if _near(got, delta.flatten(1).amax(1)):
        raise NotYet("the sign got in the way: a pixel that moved by −0.5 moved further than one that moved by 0.2.")
    if _near(got, delta.abs().flatten(1).mean(1)):
        raise NotYet("that is the mean absolute change; L∞ is the largest.")
    if not _near(got, delta.abs().flatten(1).amax(1)):
        raise NotYet(f"for a perturbation with pixels 0.1, −0.5, 0.2, 0 you return {got[0]:.3g} and not 0.5.")


@exercise(
    "01",
    "Accuracy from logits",
    "The predicted class is where the logits are largest: argmax over the classes, which are dimension 1.",
    "(logits.argmax(1) == y) is a tensor of True and False; .float().mean() counts the share of True.",
)
def accuracy(fn):
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 4.0, 6.0], [1.0, 0.5, 0.2]])
    y = torch.tensor([0, 1, 0, 0])
    got = fn(logits, y)
    got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
    if got is None:
        raise NotYet("your function returns None. Is the `return` missing?")
    if not isinstance(got, int | float):
        raise NotYet(f"return one number between 0 and 1, not {type(got).__name__}.")
    if got == 3:
        raise NotYet("that is the number of hits; divide by the number of images.")
    if got == 75:
        raise NotYet("that is a percentage; the course gives accuracies in [0,1].")
    if abs(got - 0.25) < 1e-6:
        raise NotYet("that is the error rate; accuracy is the share that is right.")
    if abs(got - 0.75) > 1e-6:
        raise NotYet(f"three of the four images are right, so 0.75; you return {got:.3g}. Is argmax over the classes, dimension 1?")


@exercise(
    "01",
    "Choose by validation, report on test",
    "Two lists, one number per epoch. Which epoch would you keep if you were not allowed to look at the test set?",
    "Find the epoch with the highest validation accuracy, and return the test accuracy of that epoch, whatever it is.",
)
def honest_accuracy(fn):
    validation, test = [0.970, 0.985, 0.981, 0.983], [0.972, 0.980, 0.988, 0.983]
    got = fn(validation, test)
    got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
    if got == 0.988:
        raise NotYet("that is the best test accuracy: choosing by it makes the test set part of the training. Choose by validation.")
    if got == 0.985:
        raise NotYet("that is the validation accuracy of the chosen epoch: it was used for choosing, so it flatters. Report test.")
    if got == 0.983:
        raise NotYet("that is the last epoch; the one with the best validation accuracy is the second.")
    if got != 0.980:
        raise NotYet(f"validation chooses the second epoch, whose test accuracy is 0.980; you return {got!r}.")


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
    leaf = x.clone().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(model(leaf), target, reduction="sum"), leaf)[0]
    if _near(got, x + 0.5 * g):
        raise NotYet("you climb: the loss of the target grows. Descent subtracts the gradient.")
    if _near(got, x - 0.5 * g / len(x)):
        raise NotYet("cross_entropy averages over the batch, so each image's step is N times too short. Use reduction='sum'.")
    if _near(got, x - 0.5 * g.sign()):
        raise NotYet("that is a step along the sign; this exercise asks for plain gradient descent.")
    if _near(got, (x - 0.5 * g).clamp(0, 1)):
        raise NotYet("you clip to [0,1]; a good idea in general, but the slides do not, and this exercise asks for the plain step.")
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
    got = _expect(fn(x), (3,))
    right = attacks.roughness(x)
    flat = lambda v: v.flatten(1).sum(1)  # noqa: E731
    if _near(got, flat(x.diff(dim=-1).square())) or _near(got, flat(x.diff(dim=-2).square())):
        raise NotYet("only one direction is there; neighbours lie beside and below.")
    if _near(got, flat(x.diff(dim=-1).abs()) + flat(x.diff(dim=-2).abs())):
        raise NotYet("those are absolute differences; this penalty squares them.")
    if _near(got, flat((x - x.roll(1, -1)).square()) + flat((x - x.roll(1, -2)).square())):
        raise NotYet("torch.roll wraps around: the left edge is no neighbour of the right one. Use diff, or slices.")
    if not _near(got, right):
        raise NotYet(f"for the first test image you return {got[0]:.4g} and not {right[0]:.4g}.")


@exercise(
    "03",
    "Normalise by the largest entry",
    "Each image is divided by its own largest absolute entry: g.abs().flatten(1).amax(1), shape (N,), brought to (N, 1, 1, 1).",
    "Where the largest entry is exactly 0, leave the zeros: divide by torch.where(largest > 0, largest, 1). Add nothing to the denominator.",
)
def max_normalised(fn):
    g = torch.randn(4, 1, 5, 5, generator=runtime.generator(0), dtype=torch.float64) * torch.tensor([1.0, 10.0, 1e-14, 0.0])[:, None, None, None]
    got = fn(g.clone())
    if isinstance(got, Tensor) and got.shape == g.shape and got[3].isnan().any():
        raise NotYet("an image whose gradient is zero becomes nan (0/0). It should stay zero.")
    got = _expect(got, tuple(g.shape))
    sizes = got.abs().flatten(1).amax(1)
    if _near(got, g / g.abs().max()):
        raise NotYet("you divide by the largest entry of the whole batch: what happens to one image then depends on the others.")
    if sizes[2] < 0.99 and sizes[0] > 0.99:
        raise NotYet("a gradient of size 1e-14 (a confident network) is not scaled to 1. Is something added to the denominator?")
    if _near(got[:3], g[:3] / g[:3].flatten(1).amax(1)[:, None, None, None]):
        raise NotYet("the largest entry is meant in absolute value; a negative one can be larger.")
    if not _near(got[:3], g[:3] / g[:3].abs().flatten(1).amax(1)[:, None, None, None]):
        raise NotYet("the result is not g divided by its largest absolute entry, image by image.")


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
    right = attacks.fgsm(model, x, y, eps=eps)
    down = attacks.fgsm(model, x, eps=eps, target=y)
    if _near(x_adv, down) or (_loss(model, x_adv, y) < _loss(model, x, y)).all():
        raise NotYet("the loss of the true label falls: the step goes down. An untargeted attack climbs, so add.")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise NotYet(f"x_adv reaches from {x_adv.min():.3g} to {x_adv.max():.3g}; that is no image. Clip to [0,1].")
    if (x_adv - x).abs().max() > eps + 1e-6:
        raise NotYet(f"a pixel moved by {(x_adv - x).abs().max():.3g}, and eps is {eps}. Every pixel may move by eps at most.")
    inside = (x > eps) & (x < 1 - eps)
    if (x_adv - x).abs()[inside].min() < eps * 0.99:
        raise NotYet("some pixels move by less than eps although there is room: use the sign of the gradient, not the gradient.")
    if not _near(x_adv, right):
        raise NotYet("the signs are not those of the cross-entropy's gradient at x. Is the gradient taken of the right loss, with the right label?")


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
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise NotYet(f"x_adv reaches from {x_adv.min():.3g} to {x_adv.max():.3g}; clip to [0,1] in every step.")
    size = (x_adv - x).abs().max()
    if size > eps + 1e-6:
        raise NotYet(f"a pixel is {size:.3g} away from x, and eps is {eps}. Project onto the ball around x, not around the last iterate.")
    if (_loss(model, x_adv, y) < _loss(model, x, y)).all():
        raise NotYet("the loss of the true label falls: the steps go down. Climb.")
    if size <= step_size + 1e-6:
        raise NotYet("no pixel moves further than one step. Does the loop start from x_adv each time, or from x again?")
    once = _attacked(fn, model, x, y, eps, step_size, 1)
    if not _near(once, attacks.fgsm(model, x, y, eps=step_size)):
        raise NotYet("one step of step_size should be FGSM with eps = step_size, and it is not. Is the sign taken?")
    right = attacks.pgd(model, x, y, eps=eps, step_size=step_size, steps=steps)
    if not _near(x_adv, right):
        raise NotYet("the first step is right and the rest is not. Is the gradient taken anew at the current x_adv in every step?")


@exercise(
    "04",
    "The targeted objective",
    "Two terms per image: the cross-entropy of the target, and lam times the mean absolute difference.",
    "F.cross_entropy(logits, target, reduction='none') + lam * (x_adv - x).abs().flatten(1).mean(1).",
)
def targeted_loss(fn):
    logits = torch.randn(4, 10, generator=runtime.generator(0))
    target, x, x_adv, lam = torch.tensor([1, 5, 0, 9]), _images(4), _images(4, seed=1), 30.0
    got = fn(logits, target, x_adv, x, lam)
    if isinstance(got, Tensor) and got.dim() == 0:
        raise NotYet("you return one number for the batch; return one per image, shape (N,): reduction='none' and flatten(1).")
    got = _expect(got, (4,)).double()
    ce, change = F.cross_entropy(logits, target, reduction="none").double(), (x_adv - x).abs().flatten(1)
    for wrong, advice in (
        (ce + change.mean(1), "λ is missing: the distance counts lam times."),
        (ce + lam * change.sum(1), "that is the sum over the pixels; the slides take the mean, and λ = 30 belongs to it."),
        (ce - lam * change.mean(1), "the distance has the wrong sign: minimising would drive x_adv away from x."),
        (-ce + lam * change.mean(1), "the cross-entropy has the wrong sign: minimising it must make the target likely."),
        (ce + lam * (x_adv - x).flatten(1).mean(1), "without absolute values, pixels that go up and down cancel."),
        (ce + lam * (x_adv - x).square().flatten(1).mean(1), "that is the mean square; this exercise asks for the absolute difference."),
    ):
        if _near(got, wrong, 1e-5):
            raise NotYet(advice)
    if not _near(got, ce + lam * change.mean(1), 1e-5):
        raise NotYet("the value is not cross-entropy of the target + lam · mean |x_adv − x|, image by image.")


@exercise(
    "04",
    "Hit rate of a targeted attack",
    "An image that belongs to the target class was never attacked: leave it out of the count.",
    "attacked = y != target; return the mean of (predicted == target) over the attacked images.",
)
def hit_rate(fn):
    predicted, y, target = torch.tensor([3, 3, 3, 1, 2, 3]), torch.tensor([3, 3, 1, 1, 2, 0]), torch.full((6,), 3)
    got = fn(predicted, y, target)
    got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
    if not isinstance(got, float):
        raise NotYet(f"return one number between 0 and 1, not {got!r}.")
    if abs(got - 4 / 6) < 1e-6:
        raise NotYet("images that are a 3 anyway count as hits of target 3. Leave out those whose true class is the target.")
    if abs(got - 2 / 6) < 1e-6:
        raise NotYet("you divide by all images; divide by those that were attacked, whose true class is not the target.")
    if abs(got - 1 / 2) > 1e-6:
        raise NotYet(f"four images are attacked and two of them reach the target, so 0.5; you return {got:.3g}.")
