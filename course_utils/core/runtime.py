"""How a lecture runs: scale, device and seeds.

``COURSE_SCALE`` (quick, full) and ``COURSE_DEVICE`` (cpu, cuda, mps) set the first two.
"""

import os
import platform
import time
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


def device() -> torch.device:
    """Returns ``COURSE_DEVICE`` if set, else CUDA, else Apple's MPS, else the CPU."""
    wanted = os.environ.get("COURSE_DEVICE")
    if wanted:
        try:
            return torch.zeros(1, device=wanted).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"COURSE_DEVICE is {wanted!r}, which this machine's PyTorch cannot use ({error}); "
                "unset it to let the course choose."
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
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
    return f"{chosen.type}, {torch.get_num_threads()} threads"


def elapsed() -> float:
    """Returns the seconds since this process imported the course."""
    return time.monotonic() - STARTED
