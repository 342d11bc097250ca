"""The lectures as files: finds them, reads them, checks them with nbval, writes them.

Imports nbformat only where it is used: it takes a second.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.command import stopping
from course_utils.core import files

if TYPE_CHECKING:
    from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
RESULTS = {"image/png", "text/markdown", WIDGET_VIEW}
RESULT_TAGS = {"setup", "widget", "claims", "evidence"}
TABLE_LINES = 6  # a print of so many lines is a table
SLIDE_LINES = 30  # that can be read from the last row
CELL_SECONDS = {"quick": 1800, "full": 24 * 3600}  # a cell that takes longer hangs


def lectures() -> list[Path]:
    """All lectures, in order."""
    return sorted(files.lectures_dir().glob("[0-9][0-9]_*.ipynb"))


def find(numbers: list[str]) -> list[Path]:
    """The lectures with these numbers ("3" is "03"); all of them if ``numbers`` is empty.

    Raises ``ValueError`` if there is no such lecture.
    """
    known = {path.name[:2]: path for path in lectures()}
    if not known:
        raise ValueError(
            f"there are no lectures in {files.lectures_dir()}; "
            "clone the whole course, or set COURSE_LECTURES."
        )
    wanted = [number.zfill(2) for number in numbers]
    unknown = [number for number in wanted if number not in known]
    if unknown:
        raise ValueError(
            f"there is no lecture {', '.join(unknown)}; the lectures are {', '.join(known)}."
        )
    return [known[number] for number in wanted or known]


def title(path: Path) -> str:
    """The first line of a lecture, without the marks of a heading."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    return "".join(first["source"]).splitlines()[0].lstrip("# ")  # stored as lines or as one text


def read(path: Path) -> "NotebookNode":
    """The notebook in ``path``."""
    import nbformat

    return nbformat.read(path, as_version=4)


def write(notebook: "NotebookNode", path: Path) -> None:
    """Writes ``notebook`` to ``path``."""
    import nbformat

    files.write_atomic(path, nbformat.writes(notebook) + "\n")


def code_cells(notebook: "NotebookNode") -> list["NotebookNode"]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def slide_type(cell: dict) -> str:
    """What a cell is in a presentation; "notes" are for the speaker alone."""
    return cell["metadata"].get("slideshow", {}).get("slide_type", "")


def shows_result(cell: "NotebookNode") -> bool:
    """Whether the point of a code cell is what it shows, so that slides and pages fold its code."""
    shown = {kind for output in cell.outputs for kind in output.get("data", {})}
    if RESULT_TAGS & set(cell.metadata.get("tags", [])) or RESULTS & shown:
        return True
    printed = sum(output.get("text", "").count("\n") for output in cell.outputs)
    return printed >= TABLE_LINES and printed + cell.source.count("\n") > SLIDE_LINES


def source_hash(notebook: "NotebookNode") -> str:
    """Sixteen hex digits that change with any cell's source.

    ``course refresh`` stores them, and a test compares.
    """
    sources = [[cell.cell_type, cell.source] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def claims(notebook: "NotebookNode") -> list[str]:
    """The lines that ``lecture.claim`` printed: ✔ or ✘, then the claim."""
    lines = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                lines += output.text.splitlines()
    return [line for line in lines if line.startswith(("✔ ", "✘ "))]


def claims_page() -> str:
    """Markdown of every claim in the committed lectures, with the test that it rests on."""
    parts = [
        "# Claims",
        "Made by `course results` from the committed lectures; not edited by hand. A claim holds "
        "where its two-sided p-value is below 1 % and the 99 % interval of its difference lies "
        "above zero (`course_utils/lesson/evidence.py` says more). `groups` counts what is "
        "independent: images, starts or trainings. `read off` means that the claim says what is so "
        "in this run or in the recorded one, without a test.",
    ]
    for path in lectures():
        outputs = [
            output.data["text/markdown"]
            for cell in code_cells(read(path))
            if "evidence" in cell.metadata.get("tags", [])
            for output in cell.outputs
            if "text/markdown" in output.get("data", {})
        ]
        parts += [f"## {title(path)}", *outputs]
    return "\n\n".join(parts) + "\n"


def put_first(folder: str | Path, variable: str) -> str:
    """The search path in an environment variable, with ``folder`` before all others."""
    others = os.environ.get(variable)
    if not others:
        return str(folder)
    return f"{folder}{os.pathsep}{others}"


def kernel_environment(state: str | Path, **variables: str) -> dict[str, str]:
    """The environment of a headless run: ours and ``variables``, with the course importable.

    ``COURSE_STATE`` is ``state``, so that a student's progress is not touched. ``COURSE_RECORD``
    is set only through ``variables``: nothing is recorded by accident.
    """
    variables["COURSE_STATE"] = str(state)
    variables["PYTHONPATH"] = put_first(files.ROOT, "PYTHONPATH")
    environment = files.environment(**variables)
    if "COURSE_RECORD" not in variables:
        environment.pop("COURSE_RECORD", None)
    return environment


def jupyter_dir() -> Path:
    """The folder for files of Jupyter's servers; ``ValueError`` where Jupyter finds no home."""
    from jupyter_core.paths import jupyter_runtime_dir

    try:
        return Path(jupyter_runtime_dir())
    except RuntimeError as error:
        raise ValueError(
            "this user has no home folder, which Jupyter needs; set HOME to a folder of your own."
        ) from error


def check_jupyter() -> None:
    """Refuses to start a server where it cannot write."""
    files.check_writable("HOME", jupyter_dir(), 0o700)  # as Jupyter makes it: it holds keys


def nbval(
    path: Path, *, environment: dict[str, str], seconds: float, **options
) -> subprocess.CompletedProcess:
    """Runs a notebook under nbval, which compares the cells tagged nbval-check-output: the claims.

    ``seconds`` limits each cell; ``options`` go to ``subprocess.Popen``. Neither other pytest
    plugins nor the project's pytest settings apply, because their time limit is meant for tests.
    """
    arguments = ["-p", "nbval.plugin", "-p", "no:cacheprovider", "-o", "addopts="]
    arguments += ["-p", stopping.__name__]
    arguments += ["-W", "ignore::pytest.PytestConfigWarning", "--nbval-lax", "--nbval-current-env"]
    arguments += [f"--nbval-cell-timeout={seconds}"]
    arguments += [f"--nbval-sanitize-with={files.ROOT / 'tests' / 'nbval_sanitize.cfg'}"]
    command = [sys.executable, "-m", "pytest", *arguments, str(path)]
    environment = environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    child = subprocess.Popen(command, cwd=files.ROOT, env=environment, **options)
    try:
        told = child.communicate()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)  # a terminal has done so, a supervisor may not
        child.wait()  # until it has ended its kernel
        raise
    return subprocess.CompletedProcess(command, child.returncode, *told)


def tidy(notebook: "NotebookNode") -> None:
    """Removes what changes from run to run, and stores the hash of the sources."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {
        "name": "python",
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "pygments_lexer": "ipython3",
    }
    notebook.metadata["course"] = {"hash": source_hash(notebook)}
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        # a widget without its state shows an error, and a static figure follows it
        cell.outputs = [
            output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})
        ]
