"""Runs a lecture headless, in a kernel of its own, and reports how it went."""

import asyncio
import html
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course_utils.command import notebooks, stopping

SHOWN_LINES = 6  # of a cell that fails


class ThisPython(AsyncKernelManager):
    """Starts kernels in this interpreter; the kernel registered as python3 may be another one."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    async def start_kernel(self, **options) -> None:
        restore_signals()
        await super().start_kernel(**options)


@dataclass
class Outcome:
    """The result of a lecture's run; ``error`` is empty if all cells ran."""

    lecture: str
    seconds: float
    claims: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def broken(self) -> list[str]:
        """The claims that do not hold."""
        return [line for line in self.claims if line.startswith("✘")]

    @property
    def good(self) -> bool:
        return not self.error and not self.broken

    @property
    def row(self) -> tuple[str, str, str]:
        """The row of the closing table: lecture, time, claims."""
        kept = f"{len(self.claims) - len(self.broken)} of {len(self.claims)} kept"
        if self.error:
            kept += ", FAILED"
        return self.lecture, f"{self.seconds:.0f} s", kept


def execute(
    notebook: NotebookNode,
    path: Path,
    *,
    environment: dict[str, str],
    seconds: float,
    on_cell: Callable[[int, int], None],
) -> Outcome:
    """Runs ``notebook`` in place, in a new kernel with ``environment``, in the folder of ``path``.

    Calls ``on_cell(number, total)`` before each code cell. A cell that runs longer than ``seconds``
    is an error. An error is returned, not raised; ``notebook`` holds the outputs made before it.
    """
    cells = notebooks.code_cells(notebook)
    for cell in cells:  # a run that fails half-way must not show outputs of an earlier one
        cell.outputs = []
        cell.execution_count = None
    begun = []

    def begin(cell, cell_index):
        begun.append(cell)
        on_cell(len(begun), len(cells))

    client = NotebookClient(
        notebook,
        timeout=seconds,
        record_timing=False,
        coalesce_streams=True,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=begin,
    )
    started = time.monotonic()
    error = failure(client, environment)
    if error and begun:
        lines = [f"code cell {len(begun)} of {len(cells)} fails:", *excerpt(begun[-1].source)]
        error = "\n".join([*lines, f"    {error}"])
    elif not error:
        error = "\n".join(widget_errors(client.widget_state))
    duration = time.monotonic() - started
    return Outcome(path.stem, duration, notebooks.claims(notebook), error)


def failure(client: NotebookClient, environment: dict[str, str]) -> str:
    """Runs all cells; returns why the run stopped, or an empty string."""
    try:
        # stderr is the kernel's own log; what a lecture writes to stderr is an output
        client.execute(env=environment, stderr=subprocess.DEVNULL)
    except CellExecutionError as error:  # the notebook holds the traceback
        return f"{error.ename}: {error.evalue}".splitlines()[0]
    except CellTimeoutError:
        return f"the cell was stopped after {client.timeout:g} seconds"
    except DeadKernelError:
        return "the kernel died; the usual cause is too little memory"
    except (OSError, RuntimeError) as error:
        client.create_kernel_manager()  # nbclient's clean-up at exit fails without one
        return f"no kernel could be started: {error}"
    return ""


def excerpt(source: str) -> list[str]:
    """The first lines of a cell, indented."""
    lines = source.splitlines()
    if len(lines) > SHOWN_LINES:
        lines[SHOWN_LINES:] = ["…"]
    return [f"    | {line}" for line in lines]


def restore_signals() -> None:
    """Removes nbclient's signal handlers, so that Ctrl-C stops the whole run.

    With them Ctrl-C ends the kernel only, which looks like a lecture that fails.
    """
    if sys.platform == "win32":  # where nbclient has none
        return
    loop = asyncio.get_running_loop()
    loop.remove_signal_handler(signal.SIGINT)
    loop.remove_signal_handler(signal.SIGTERM)
    stopping.answer_ctrl_c()


def widget_errors(states: dict[str, dict]) -> list[str]:
    """Errors in widgets' callbacks, which stop no cell.

    An Output widget stores its error; ``widgets.Picture`` shows a line instead of the picture.
    """
    errors = []
    for state in states.values():
        for output in state.get("outputs", []):
            if output["output_type"] == "error":
                errors.append(f"a widget shows: {output['ename']}: {output['evalue']}")
        value = str(state.get("value", ""))
        if "could not be drawn." in value:
            errors.append("a widget shows: " + html.unescape(re.sub("<.*?>", "", value)))
    return errors
