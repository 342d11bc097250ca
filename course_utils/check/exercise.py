"""An exercise is data: its inputs, the right answer, and typical mistakes with their advice.

``Exercise.judge`` is the one driver. It calls the student's function and the right one on the same
inputs, compares values and gradients, and looks among the mistakes for one that gives the same.
"""

import datetime
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_utils.check import answers
from course_utils.check.answers import NotYet
from course_utils.check.progress_file import remember
from course_utils.core import files, runtime

PAIR = (
    "max, min, median, sort and topk along a dimension give a pair, values and indices: "
    "take .values; amax and amin give the values alone."
)
# Part of an error -> what usually stands behind it.
CURES = {
    "SystemExit": "Leave out exit(), quit() and sys.exit(): a function ends with return.",
    "not require grad": (
        "The image must ask for a gradient before the model sees it: "
        "x = x.clone().requires_grad_()."
    ),
    "not have been used in the graph": (
        "The loss must be computed from the very tensor whose gradient you ask for."
    ),
    "in-place operation": (
        "Write x = x + …, which makes a new tensor, in place of x += …; x.clone() copies."
    ),
    "torch.return_types.": PAIR,
    "tuple indices must be integers": PAIR,  # max(1)[:, None]
    "must match the size of tensor": (
        "One number per image, v of shape (N,), fits rows of pixels as v[:, None], "
        "images as v[:, None, None, None]."
    ),
}
NO_GRADIENT = "is right, but no gradient reaches {}. Is there a no_grad or a detach() too many?"
USED_UP = (
    "is right, but autograd.grad has used up its graph, and the gradient of the result needs it: "
    "create_graph=True."
)
WRONG_GRADIENT = "is right, but its gradient is not. Is something detached?"


@dataclass(frozen=True)
class Exercise:
    """One exercise: call it with the student's function.

    ``inputs`` gives a list of argument tuples, made anew at each call. ``mistakes`` maps advice to
    functions with the student's signature. ``learns`` names the arguments whose gradient counts (a
    model stands for its parameters). ``properties(answer)`` may raise ``NotYet`` before values are
    compared; ``answer(*arguments)`` is what the student's function returns, checked in its form.
    ``otherwise(case, got, want)`` words the advice where no mistake fits. ``level`` is
    easy, core or hard.
    """

    name: str
    lecture: str
    title: str
    hints: Sequence[str]
    inputs: Callable[[], list[tuple]]
    right: Callable
    mistakes: Mapping[str, Sequence[Callable]]
    learns: Sequence[str] = ()
    properties: Callable[[Callable], None] | None = None
    otherwise: Callable | str = ""
    level: str = ""

    def __call__(self, fn: Callable) -> None:
        """Prints ● where ``fn`` is right, else ○ and what to look at. Never raises."""
        trouble = self.trouble(fn)
        if trouble:
            files.say(f"○ {self.name}: {trouble}")
            return
        if getattr(fn, "__name__", "").endswith("_solution"):
            files.say(f"● the solution of {self.name} is right. {self.title}.")
            return
        # before anything is printed, which may fail
        unkept = remember(self.name, datetime.date.today().isoformat())
        files.say(f"● {self.name}: right. {self.title}.{unkept}")

    def trouble(self, fn: Callable) -> str:
        """What to look at in ``fn``; empty where it is right."""
        if not callable(fn):
            return f"give the function itself, without parentheses: check.{self.name}({self.name})."
        try:
            with runtime.seeded(0), exit_raises():
                self.judge(fn)
        except NotImplementedError:
            return (
                "not attempted yet. Write the function above, "
                f'then run both cells; check.hint("{self.name}") helps.'
            )
        except NotYet as advice:
            return str(advice)
        except (Exception, SystemExit) as error:  # a student's function may raise anything
            what = "".join(traceback.format_exception_only(error)).strip()
            cures = "".join(f"\n  {CURES[sign]}" for sign in CURES if sign in what)
            return f"your function raises {what}{cures}"
        return ""

    def judge(self, fn: Callable) -> None:
        """Raises ``NotYet`` with the advice unless ``fn`` is right on all inputs."""
        if self.properties:
            self.properties(lambda *arguments: self.answer(fn, arguments))
        for case in range(len(self.inputs())):
            want, slope = self.outcome(self.right, case)
            got, got_slope = self.outcome(fn, case)
            if answers.same(got, want) and answers.same(got_slope, slope):
                continue
            self.look_for_mistake(case, got, got_slope)
            if not answers.same(got, want):
                self.say_what_differs(case, got, want)
            if not len(got_slope):
                names = " or ".join(self.learns).replace("model", "the weights")
                raise NotYet(f"the result {NO_GRADIENT.format(names)}")
            raise NotYet(f"the result {WRONG_GRADIENT}")

    def answer(self, fn: Callable, arguments: tuple):
        """What ``fn`` returns for ``arguments``, without graph, once its form is right."""
        got = answers.call(fn, arguments)
        answers.expect_like(got, self.right(*arguments), bool(self.learns))
        return got.detach() if isinstance(got, Tensor) else got

    def outcome(self, fn: Callable, case: int) -> tuple[Tensor, Tensor]:
        """What ``fn`` gives for a case, as a row, and its gradient in what ``learns`` names."""
        arguments = self.inputs()[case]
        leaves = self.mark_leaves(arguments)
        got = answers.call(fn, arguments)
        answers.expect_like(got, self.right(*self.inputs()[case]), bool(self.learns))
        row = answers.joined(got)
        return row.detach(), gradient(row, leaves) if leaves else row.new_zeros(0)

    def mark_leaves(self, arguments: tuple) -> list[Tensor]:
        """The tensors that the gradient is taken of; they ask for one from here on."""
        leaves = []
        named = zip(inspect.signature(self.right).parameters, arguments, strict=True)
        for value in answers.flat(value for name, value in named if name in self.learns):
            tensors = value.parameters() if isinstance(value, nn.Module) else [value]
            leaves += [tensor.requires_grad_() for tensor in tensors]
        return leaves

    def look_for_mistake(self, case: int, got: Tensor, slope: Tensor) -> None:
        """Raises the advice of the first mistake that gives what the student's function gives."""
        right = answers.same(got, self.outcome(self.right, case)[0])
        for advice, mistakes in self.mistakes.items():
            for mistake in mistakes:
                try:
                    value, value_slope = self.outcome(mistake, case)
                except Exception:  # a mistake of form, or one that raises: found by other means
                    continue
                if answers.same(got, value) and (not right or answers.same(slope, value_slope)):
                    raise NotYet(advice)

    def say_what_differs(self, case: int, got: Tensor, want: Tensor) -> None:
        """Raises the advice for a wrong value that is no typical mistake."""
        if not got.isfinite().all():
            raise NotYet("the result holds nan or inf. What is divided by zero, or too large?")
        if isinstance(self.otherwise, str) and self.otherwise:
            raise NotYet(self.otherwise)
        if self.otherwise:
            raise NotYet(self.otherwise(self.inputs()[case], got, want))
        i = int((got - want).abs().argmax())
        place = "for the test input" if len(want) == 1 else f"in place {i} of the test input"
        raise NotYet(f"{place} the result is {want[i]:.4g}; you return {got[i]:.4g}.")


def gradient(row: Tensor, leaves: list[Tensor]) -> Tensor:
    """Gradient of a row's weighted sum in all leaves, as one row; empty where none is reached."""
    if not row.requires_grad:
        return row.new_zeros(0)
    weights = torch.linspace(1, 2, len(row), dtype=row.dtype)  # a plain sum may have no gradient
    try:
        slopes = torch.autograd.grad(row @ weights, leaves, materialize_grads=True)
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise NotYet(f"the result {USED_UP}") from error
    slope = torch.cat([slope.double().flatten() for slope in slopes])
    return slope if slope.any() else slope[:0]


def exercise(
    lecture: str,
    title: str,
    *,
    hints: Sequence[str],
    inputs: Callable[[], list[tuple]],
    mistakes: Mapping[str, Sequence[Callable]],
    learns: Sequence[str] = (),
    properties: Callable[[Callable], None] | None = None,
    otherwise: Callable | str = "",
    level: str = "",
) -> Callable[[Callable], Exercise]:
    """Makes the decorated function, the right answer, an ``Exercise`` of the same name."""

    def register(right: Callable) -> Exercise:
        return Exercise(
            right.__name__, lecture, title, hints, inputs, right, mistakes,
            learns, properties, otherwise, level,
        )  # fmt: skip

    return register


@contextmanager
def exit_raises() -> Iterator[None]:
    """Lets ``exit()`` raise ``SystemExit`` in Jupyter too, where it would end the kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if not shell:
        yield
        return
    ask_exit = shell.ask_exit
    shell.ask_exit = sys.exit
    try:
        yield
    finally:
        shell.ask_exit = ask_exit
