"""What every lecture calls: ``setup`` first, ``claim`` and ``evidence_table`` at the end."""

import ctypes
from contextlib import suppress

import torch

from course_utils.core import files, runtime
from course_utils.lesson import plots
from course_utils.lesson.evidence import Comparison
from course_utils.lesson.result_tables import verbatim

CLAIMS: dict[str, list[Comparison]] = {}  # text -> what it rests on, in the order of the lecture


def setup() -> torch.device:
    """Seeds PyTorch, sets the plot style, prints scale and device, and returns the device.

    In a notebook, memory that a cell has freed goes back to the system after the cell.
    """
    from IPython import get_ipython

    torch.manual_seed(0)
    if get_ipython() is not None:
        get_ipython().events.register("post_run_cell", give_memory_back)
    plots.style()
    versions = runtime.versions()
    files.say(
        f"{runtime.scale()} scale on {runtime.device_name()}; "
        f"Python {versions['python']}, PyTorch {versions['torch']}"
    )
    return runtime.device()


def give_memory_back(*_) -> None:
    """Returns freed memory to the system, for the kernels of others; glibc keeps some of it."""
    with suppress(AttributeError, OSError, TypeError):  # no glibc here
        ctypes.CDLL(None).malloc_trim(0)


def claim(text: str, *holds: bool | Comparison, recorded: bool = False) -> None:
    """Prints ``✔ text`` when all of ``holds`` are true, ``✘ text`` when not or not to be judged.

    Give the comparisons of ``lesson/evidence.py`` themselves, not their truth: ``evidence_table``
    shows what each rests on. ``recorded`` says that the claim was judged on the recorded full run.
    It never raises: a lecture runs to its end. ``course run`` counts the marks and nbval compares
    them, so that a false claim still fails the build. The text must not hold numbers that depend on
    hardware, scale or data set.
    """
    mark = "✘"
    remark = " (recorded)" if recorded else ""
    try:
        if not holds:
            raise TypeError("nothing is given that could hold")
        if any(map(callable, holds)):
            raise TypeError("holds is a function; give what it returns")
        if all(holds):
            mark = "✔"
    except (Exception, SystemExit) as error:  # the truth of a value may be code of a student
        remark += f" ({error!r})"
    CLAIMS[text] = [part for part in holds if isinstance(part, Comparison)]
    files.say(f"{mark} {text}{remark}")


def evidence_table():
    """Markdown of every claim so far with test, n, groups, difference, 99 % interval and p.

    A claim without a comparison says what is so on the images at hand; it has no test.
    """
    from IPython.display import Markdown

    lines = [
        "| claim | test | n | groups | difference, 99 % interval | p |",
        "|:--|:--|--:|--:|:--|--:|",
    ]
    for text, comparisons in CLAIMS.items():
        first = verbatim(text)
        for cells in [part.cells for part in comparisons] or [("read off", "", "", "", "")]:
            lines.append(f"| {' | '.join([first, *cells])} |")
            first = ""
    return Markdown("\n".join(lines))
