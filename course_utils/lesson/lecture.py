"""What every lecture calls: ``setup`` first, ``claim`` at the end."""

import ctypes
from contextlib import suppress

import torch

from course_utils.core import files, runtime
from course_utils.lesson import plots


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


def claim(text: str, holds: bool, *, recorded: bool = False) -> None:
    """Prints ``✔ text`` when the claim holds and ``✘ text`` when it does not or cannot be judged.

    ``recorded`` says that it was judged on the recorded full run. It never raises: a lecture runs
    to its end. ``course run`` counts the marks and nbval compares them, so that a false claim still
    fails the build. The text must not hold numbers that depend on hardware, scale or data set.
    """
    mark = "✘"
    remark = " (recorded)" if recorded else ""
    try:
        if callable(holds):
            raise TypeError("holds is a function; give what it returns")
        if holds:
            mark = "✔"
    except (Exception, SystemExit) as error:  # the truth of a value may be code of a student
        remark += f" ({error!r})"
    files.say(f"{mark} {text}{remark}")


def clearly_more(a: float, b: float, n: int) -> bool:
    """Returns whether share ``a`` exceeds ``b`` by three standard errors of their difference.

    Each share was measured on ``n`` images.
    """
    return bool(a - b > 3 * ((a * (1 - a) + b * (1 - b)) / n) ** 0.5)
