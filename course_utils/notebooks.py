"""The lectures as files: found, run headless and looked at. Thin over nbformat, nbclient and nbconvert; ``course`` is the command line to it."""

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course_utils.runtime import ROOT, write_atomic

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = {"quick": 1800, "full": 24 * 3600}  # a cell that takes longer hangs


def folder() -> Path:
    """Where the lectures lie (``COURSE_LECTURES``, else ``lectures/`` of the clone)."""
    return Path(os.environ.get("COURSE_LECTURES") or ROOT / "lectures").resolve()


def lectures() -> list[Path]:
    """All lectures, in order."""
    return sorted(folder().glob("[0-9][0-9]_*.ipynb"))


def find(numbers: list[str]) -> list[Path]:
    """The lectures with these numbers ("3" is "03"), all where none is named; ``ValueError`` where there is no such lecture."""
    known = {path.name[:2]: path for path in lectures()}
    if not known:
        raise ValueError(f"there are no lectures in {folder()}; clone the whole course, or set COURSE_LECTURES.")
    if unknown := [number for number in numbers if number.zfill(2) not in known]:
        raise ValueError(f"there is no lecture {', '.join(unknown)}; the lectures are {', '.join(known)}.")
    return [known[number.zfill(2)] for number in numbers] or list(known.values())


def read(path: Path) -> NotebookNode:
    """The notebook in ``path``."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_hash(notebook: NotebookNode) -> str:
    """Sixteen hex digits that change with any source of the notebook. ``course refresh`` stores them; a test compares."""
    sources = [[cell.cell_type, cell.source] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def claims(notebook: NotebookNode) -> list[str]:
    """The lines that ``claims.claim`` printed: ✔ or ✘ and what is claimed."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "stream"]
    return [line for output in outputs if output.name == "stdout" for line in output.text.splitlines() if line.startswith(("✔ ", "✘ "))]


# ------------------------------------------------------------------------------------------------------------- running


class ThisPython(AsyncKernelManager):
    """Starts kernels in this very interpreter; the kernel that a user has registered as python3 may be another Python."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


@dataclass
class Outcome:
    """What a lecture's run showed; ``error`` is empty where all cells ran."""

    lecture: str
    seconds: float
    claims: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def broken(self) -> list[str]:
        return [line for line in self.claims if line.startswith("✘")]

    @property
    def good(self) -> bool:
        return not self.error and not self.broken


def execute(
    notebook: NotebookNode,
    path: Path,
    *,
    environment: dict[str, str],
    seconds: float,
    on_cell: Callable[[int, int], None] = lambda *_: None,
) -> Outcome:
    """Runs ``notebook`` in place, in a kernel of its own that sees ``environment`` and works in the folder of ``path``.

    ``on_cell(number, total)`` is called before each code cell; a cell that runs longer than ``seconds`` is an error. Errors are told
    in the outcome, not raised: the outputs made so far are in ``notebook``.
    """
    cells = code_cells(notebook)
    for cell in cells:
        cell.outputs, cell.execution_count = [], None  # a run that fails half-way must not show another's outputs
    started, number = time.monotonic(), 0

    def start(cell, cell_index):
        nonlocal number
        number += 1
        on_cell(number, len(cells))

    client = NotebookClient(notebook, timeout=seconds, record_timing=False, coalesce_streams=True, kernel_manager_class=ThisPython)
    client.on_notebook_start, client.on_cell_execute = _obey_signals, start
    client.resources = {"metadata": {"path": str(path.parent)}}
    error = ""
    try:
        client.execute(env=environment, stderr=subprocess.DEVNULL)  # the kernel's own log; what a lecture writes to stderr is an output
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}".splitlines()[0]  # the traceback is in the notebook
    except CellTimeoutError:
        error = f"the cell was stopped after {seconds:g} seconds"
    except DeadKernelError:
        error = "the kernel died; the usual cause is too little memory"
    if error:
        head = cells[max(number - 1, 0)].source.splitlines()
        shown = [f"    | {line}" for line in head[:6]] + ["    | …"] * (len(head) > 6)
        error = "\n".join([f"code cell {number} of {len(cells)} fails:", *shown, f"    {error}"])
    else:
        error = "\n".join(_widget_errors(client.widget_state))
    return Outcome(path.stem, time.monotonic() - started, claims(notebook), error)


def _obey_signals(notebook) -> None:
    """nbclient answers Ctrl-C by stopping the kernel, which looks like a lecture that fails; it shall stop the whole run instead."""
    with suppress(NotImplementedError):  # Windows
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)


def _widget_errors(states: dict[str, dict]) -> list[str]:
    """A callback that fails stops no cell: its error stays in an Output widget, or in the line that ``widgets.Picture`` shows instead of a picture."""
    errors = []
    for state in states.values():
        errors += [f"a widget shows: {o['ename']}: {o['evalue']}" for o in state.get("outputs", []) if o["output_type"] == "error"]
        if "could not be drawn." in str(state.get("value", "")):
            errors.append("a widget shows: " + re.sub("<.*?>", "", state["value"]))
    return errors


def kernel_environment(state: str | Path, **variables: str) -> dict[str, str]:
    """The environment of a headless run: ours, with the course importable, and a ``COURSE_STATE`` that is no student's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "COURSE_STATE": str(state)} | variables
    if "COURSE_RECORD" not in variables:
        environment.pop("COURSE_RECORD", None)  # recording is asked for on the command line, never by accident
    return environment


def nbval(path: Path, *, environment: dict[str, str], seconds: float, **options) -> subprocess.CompletedProcess:
    """Runs a notebook under nbval, which compares the cells tagged nbval-check-output: the claim cells. ``options`` go to ``subprocess.run``.

    No other pytest plugin and none of our own pytest settings take part: a test's time limit is no lecture's.
    """
    chosen = ["-p", "nbval.plugin", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore::pytest.PytestConfigWarning"]
    chosen += ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={seconds}"]
    chosen += [f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"]
    environment = environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([sys.executable, "-m", "pytest", *chosen, str(path)], cwd=ROOT, env=environment, **options)


# ------------------------------------------------------------------------------------------------------------- writing


def export(notebook: NotebookNode, path: Path, out: Path) -> None:
    """Writes the executed notebook and a page to read, both named like ``path``, into ``out``."""
    from nbconvert import HTMLExporter

    write_atomic(out / path.name, nbformat.writes(notebook) + "\n")
    html, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    write_atomic(out / f"{path.stem}.html", html)


def tidy(notebook: NotebookNode) -> None:
    """Makes an executed notebook fit to be committed: nothing that changes from run to run, and the hash of what was run."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {
        "name": "python",
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "pygments_lexer": "ipython3",
    }
    notebook.metadata["course"] = {"hash": source_hash(notebook)}
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        # without its state a widget is an error message; a static figure follows it
        cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]
