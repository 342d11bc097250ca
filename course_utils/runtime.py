"""Where and how a lecture runs: device, scale, seeds and folders.

Everything here can be steered by one environment variable each, so that a notebook never has to be edited:
``COURSE_SCALE`` (quick, full), ``COURSE_DEVICE`` (cpu, cuda, mps), ``COURSE_DATA``, ``COURSE_CACHE`` and ``COURSE_STATE``.
"""

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import platformdirs
import torch

ROOT = Path(__file__).resolve().parent.parent  # the clone: lectures/ and results/ lie here
SCALES = ("quick", "full")
T = TypeVar("T")

_started = time.monotonic()


def scale() -> str:
    """``"quick"`` (the default: minutes on a laptop) or ``"full"`` (the papers' own sizes), from ``COURSE_SCALE``."""
    value = os.environ.get("COURSE_SCALE") or "quick"
    if value not in SCALES:
        raise ValueError(f"COURSE_SCALE is {value!r}; set it to one of {', '.join(SCALES)}, or unset it for quick.")
    return value


def pick(*, quick: T, full: T) -> T:
    """The value for the present scale. One line picks a number: ``epochs = pick(quick=3, full=10)``."""
    return full if scale() == "full" else quick


def device() -> torch.device:
    """``COURSE_DEVICE`` if set, else CUDA, else Apple's MPS, else the CPU."""
    wanted = os.environ.get("COURSE_DEVICE")
    if wanted:
        try:
            return torch.zeros(1, device=wanted).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"COURSE_DEVICE is {wanted!r}, which this machine's PyTorch cannot use ({error}); unset it to let the course choose."
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    """A CPU generator. Random numbers are always drawn on the CPU, so that a seed means the same on every device."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global random state is seeded inside the block and given back as found: for first weights, dropout and the like."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # named, or several GPUs would draw a warning
        torch.manual_seed(seed)
        yield


def _directory(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


_DIRS = platformdirs.PlatformDirs("adversarial-course", appauthor=False)


def data_dir() -> Path:
    """Data sets (``COURSE_DATA``, else the user's cache folder)."""
    return _directory("COURSE_DATA", _DIRS.user_cache_dir + "/data")


def cache_dir() -> Path:
    """Trained weights (``COURSE_CACHE``, else the user's cache folder). Safe to delete: everything in it can be made again."""
    return _directory("COURSE_CACHE", _DIRS.user_cache_dir)


def state_dir() -> Path:
    """A student's working copy and progress (``COURSE_STATE``, else the user's data folder). Never safe to delete."""
    return _directory("COURSE_STATE", _DIRS.user_data_dir)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes ``content`` so that another process sees the old file or the whole new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files private; a shared cache must stay readable
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """The versions a number depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def device_name() -> str:
    """The device in words, for tables and provenance."""
    chosen = device()
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"{chosen.type}, {torch.get_num_threads()} threads"


def elapsed() -> float:
    """Seconds since this process imported the course: a lecture's wall time so far."""
    return time.monotonic() - _started


def setup() -> torch.device:
    """First line of every lecture: seeds PyTorch, sets the plot style, says scale and device, and returns the device."""
    from course_utils import plots

    torch.manual_seed(0)
    plots.style()
    print(f"{scale()} scale on {device_name()}; Python {platform.python_version()}, PyTorch {torch.__version__}")
    return device()
