"""What the command prints: colours and a live line on a terminal, plain lines elsewhere."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from course_utils.core import files

PLAIN_SECONDS = 10  # without a terminal: seconds between two lines of progress
PIPE_COLUMNS = 10_000  # a pipe or file has no width, so nothing is cut


class Marks(RegexHighlighter):
    """Colours the words that say whether something is good. The groups' names are rich's styles."""

    highlights = ["(?P<green>^ok |✔)", "(?P<red>^(course:|PROBLEM)|FAILED|✘)"]


def is_terminal(stream) -> bool:
    """Whether a stream, which may be missing, is a terminal."""
    return hasattr(stream, "isatty") and stream.isatty()


def console(*, error: bool = False) -> Console:
    """A console on standard output, or on standard error, that prints text as it is."""
    width = None if is_terminal(sys.stderr if error else sys.stdout) else PIPE_COLUMNS
    return Console(stderr=error, width=width, highlighter=Marks(), markup=False, emoji=False)


def show(*parts, error: bool = False, **options) -> None:
    """Prints through ``files.say`` what rich makes of ``parts``."""
    screen = console(error=error)
    with screen.capture() as capture:
        screen.print(*parts, **options)
    files.say(capture.get().removesuffix("\n"), error=error)


def say(text: str, *, error: bool = False) -> None:
    """Prints ``text``. Long lines are not broken, so that they can be copied."""
    show(text, error=error, soft_wrap=True)


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, highlight=True)
    table.add_column(head[0], overflow="fold")
    for title in head[1:]:
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    show("", table, sep="\n")


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Shows which cell of the lecture ``name`` is running, and the seconds so far.

    Yields ``cell(number, total)``, to be called before each cell. A terminal shows one line that
    disappears at the end; elsewhere a line is printed every ``PLAIN_SECONDS``.
    """
    with live_lines() as bars:
        task_id = bars.add_task(f"{name}: starting", total=None)

        def cell(number: int, total: int) -> None:
            description = f"{name}: cell {number} of {total}"
            bars.update(task_id, description=description, completed=number - 1, total=total)

        yield cell


@contextmanager
def several() -> Iterator[Callable[[Sequence[str]], None]]:
    """Shows which lectures are running side by side, each with its seconds so far.

    Yields ``running(names)``, to be called whenever that changes. A terminal shows a line for each;
    elsewhere one line for all is printed every ``PLAIN_SECONDS``.
    """
    with live_lines() as bars:
        shown = {}

        def running(names: Sequence[str]) -> None:
            for name in shown.keys() - set(names):
                bars.remove_task(shown.pop(name))
            for name in names:
                if name not in shown:
                    shown[name] = bars.add_task(name, total=None)

        yield running


@contextmanager
def live_lines() -> Iterator[Progress]:
    """A line for each task that is added: live on a terminal, else printed now and then."""
    screen = console()
    # asked twice, since FORCE_COLOR makes no terminal of a log
    live = screen.is_interactive and is_terminal(sys.stdout)
    text = TextColumn("{task.description}, {task.elapsed:.0f} s", markup=False)
    columns = (SpinnerColumn(), BarColumn(bar_width=20), text)
    with Progress(
        *columns, console=screen, transient=True, refresh_per_second=4, disable=not live
    ) as bars:
        if live:
            yield bars
        else:
            with plain_lines(bars):
                yield bars


@contextmanager
def plain_lines(bars: Progress) -> Iterator[None]:
    """Prints a line about the tasks of ``bars`` every ``PLAIN_SECONDS``."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(PLAIN_SECONDS):
            parts = [f"{task.description}, {task.elapsed:.0f} s" for task in bars.tasks]
            if parts:
                say("; ".join(parts))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
