"""How a lecture runs: scale, device and seeds.

``COURSE_SCALE`` (quick, full) and ``COURSE_DEVICE`` (cpu, cuda, mps) set the first two.
"""

import functools
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

SCALES = ("quick", "full")
T = TypeVar("T")

STARTED = time.monotonic()


def scale() -> str:
    """Returns ``"quick"`` (default: minutes on a laptop) or ``"full"`` (the papers' own sizes)."""
    value = os.environ.get("COURSE_SCALE") or "quick"
    if value not in SCALES:
        raise ValueError(
            f"COURSE_SCALE is {value!r}; set it to one of {', '.join(SCALES)}, "
            "or unset it for quick."
        )
    return value


def pick(*, quick: T, full: T) -> T:
    """Returns the value for the present scale: ``epochs = pick(quick=3, full=10)``."""
    return full if scale() == "full" else quick


@functools.cache
def trouble(name: str) -> str:
    """Returns why a device cannot compute, or "" if it can: runs a small kernel there.

    PyTorch may list a GPU that is too old for it, or whose driver is, and run nothing on it.
    """
    try:
        total = torch.ones(2, device=name).sum().item()
    except Exception as error:  # each kind of device raises its own
        return str(error).partition("\n")[0] or type(error).__name__
    return "" if total == 2 else f"1 + 1 is {total:g} there"


def device() -> torch.device:
    """Returns ``COURSE_DEVICE`` if set, else CUDA, else Apple's MPS, else the CPU.

    Warns of a GPU that cannot compute. Raises ``ValueError`` if it is the one that was asked for.
    """
    wanted = os.environ.get("COURSE_DEVICE")
    if wanted and trouble(wanted):
        raise ValueError(
            f"COURSE_DEVICE is {wanted!r}, which this machine's PyTorch cannot use "
            f"({trouble(wanted)}); unset it to let the course choose."
        )
    if wanted:
        return torch.empty(0, device=wanted).device
    for name, kind in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if kind.is_available():
            if not trouble(name):
                return torch.empty(0, device=name).device
            warnings.warn(
                f"This machine has {name}, and its PyTorch cannot use it ({trouble(name)}); "
                "the course runs on another device. COURSE_DEVICE=cpu hides this warning.",
                stacklevel=1,  # one place, so that it is shown once
            )
    return torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    """Returns a CPU generator: drawn on the CPU, a seed means the same on every device."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch's global random state inside the block and restores it afterwards.

    For what takes no generator: first weights, dropout and the like.
    """
    devices = range(torch.cuda.device_count())  # without it, several GPUs cause a warning
    if devices and trouble("cuda"):
        devices = ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def versions() -> dict[str, str]:
    """Returns the versions that a number depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def device_name() -> str:
    """Returns the device in words, for tables and provenance."""
    chosen = device()
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    threads = torch.get_num_threads()
    return f"{chosen.type}, {threads} thread{'s' if threads > 1 else ''}"


def elapsed() -> float:
    """Returns the seconds since this process imported the course."""
    return time.monotonic() - STARTED
