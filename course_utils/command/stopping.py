"""Ctrl-C: the first one stops a command, and more of them do not disturb its clean-up.

Also a plugin of pytest, for nbval. Imports nothing heavy.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def answer_ctrl_c() -> None:
    """Takes over from Python's own handler; leaves others, and a Ctrl-C that is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGINT, stop_once)


def stop_once(number, frame) -> None:
    """Raises ``KeyboardInterrupt`` and has this process ignore Ctrl-C from then on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def pytest_configure() -> None:
    """Called by pytest when it starts."""
    answer_ctrl_c()


@contextmanager
def held() -> Iterator[None]:
    """Context that Ctrl-C waits for; processes that are started in it wait for ever."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def leave_to_parent() -> None:
    """Has this process do nothing at Ctrl-C, as another ends it; its own children do something."""
    signal.signal(signal.SIGINT, lambda number, frame: None)  # SIG_IGN would be inherited
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
