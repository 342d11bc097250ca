"""Tests keep their hands off the user's trained weights and progress, also where pytest is called without make."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# 60 examples of each property; COURSE_EXAMPLES=1000 tries more
settings.register_profile(
    "course",
    deadline=None,
    max_examples=int(os.environ.get("COURSE_EXAMPLES", 60)),
    derandomize=True,
)
settings.load_profile("course")


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """An empty ``COURSE_CACHE`` and ``COURSE_STATE`` for the whole run, unless they are set (``make test`` sets them)."""
    ours = [name for name in ("COURSE_CACHE", "COURSE_STATE") if not os.environ.get(name)]
    for name in ours:
        os.environ[name] = str(tmp_path_factory.mktemp(name.lower()))
    yield
    for name in ours:
        del os.environ[name]


# --- how much memory the run takes


def read(path: str) -> str:
    """A file of Linux about a process; empty once the process has ended."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def family(process: int | str) -> Iterator[int | str]:
    """A process and all below it: here pytest, Jupyter's servers, kernels and the browser."""
    yield process
    for thread in Path(f"/proc/{process}/task").glob("*"):
        for child in read(f"{thread}/children").split():
            yield from family(child)


def memory_of(process: int | str) -> int:
    """Bytes of a process; what several processes share is divided among them."""
    sizes = re.findall(r"^Pss:\s+(\d+) kB", read(f"/proc/{process}/smaps_rollup"), re.MULTILINE)
    return 1024 * sum(map(int, sizes))


class PeakMemory:
    """Looks once a second at the memory of the whole run; tells the peak at the end. Linux only."""

    def __init__(self):
        self.peak = 0
        self.ended = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while not self.ended.wait(1):
            self.peak = max(self.peak, sum(map(memory_of, family(os.getpid()))))

    def pytest_terminal_summary(self, terminalreporter) -> None:
        self.ended.set()
        terminalreporter.write_line(f"Peak memory of all processes: {self.peak / 1e9:.1f} GB")


def pytest_configure(config) -> None:
    one_of_several = hasattr(config, "workerinput")
    if Path("/proc/self/smaps_rollup").exists() and not one_of_several:
        config.pluginmanager.register(PeakMemory())


# --- several workers (pytest-xdist)


def pytest_collection_modifyitems(items) -> None:
    """Lectures first, then the browser, then the short tests, so that no worker waits at the end.

    A lecture that nbval has run leaves its networks in the shared cache for the browser.
    """

    def place(item) -> int:
        if item.get_closest_marker("browser"):
            return 1
        return 0 if item.originalname == "test_nbval" else 2

    items.sort(key=place)
