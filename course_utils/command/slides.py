"""A lecture as live slides, in JupyterLab.

The slides show the stored outputs at once, while the extension in ``labextensions/presenting`` runs
all cells behind them, so that widgets answer. A presentation has its own copy of the lecture.
"""

import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_server.serverapp import list_running_servers
from nbformat import NotebookNode

from course_utils.command import lab, notebooks
from course_utils.core.files import say, state_dir, write_atomic

EXTENSION = lab.EXTENSIONS / "presenting"
TRACKER = "@jupyterlab/notebook-extension:tracker"
SETTINGS = lab.LAB_SETTINGS | {
    TRACKER: lab.LAB_SETTINGS[TRACKER]
    | {
        "windowingMode": "none",  # else cells out of sight have no size
        "codeCellConfig": {"lineWrap": True},  # long lines are not cut at the right
    }
}
HELP = """\
→ ← next and previous; so do space, PageDown, PageUp and a clicker. Home and End: first, last.
b: a black screen. F11: the whole screen. Shift-Enter runs the cell that is shown.
Code is folded where its figure or table is the point; click "code" to see it.
Escape gives the keys back to the slides; once more, it leaves them. Reload the page to return.
Stop with Ctrl-C here."""


def fold(notebook: NotebookNode) -> None:
    """Folds the code of cells whose result is the point."""
    for cell in notebooks.code_cells(notebook):
        if notebooks.shows_result(cell):
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
        if "evidence" in cell.metadata.get("tags", []):  # a page of intervals: to read, not to show
            cell.metadata["slideshow"] = {"slide_type": "skip"}


def speaker_notes(notebook: NotebookNode) -> str:
    """The notes under their slides' headings, for the terminal: the slides do not show them."""
    lines = []
    heading = ""
    printed = None
    for cell in notebook.cells:
        kind = notebooks.slide_type(cell)
        if kind == "notes":
            if heading != printed:
                lines.append(f"\n{heading}")
                printed = heading
            note = cell.source.removeprefix("**For the speaker.** ")
            lines.append("   " + note.strip().replace("\n", "\n   "))
        elif kind != "skip" and cell.cell_type == "markdown":
            title = re.search(r"^#+\s*(.+)", cell.source, re.MULTILINE)
            if title:
                heading = title[1]
    return "\n".join(lines)


def wait_for_server(
    process: subprocess.Popen, root: Path, log: Path, *, patience: float = 60
) -> tuple[str, str]:
    """Waits until the server of the folder ``root`` answers; returns its address and token.

    The address ends with a slash. Raises ``SystemExit`` if the server ends, or does not answer
    within ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process.poll() is not None:
            said = log.read_text(errors="replace")
            raise SystemExit(f"{said}\nJupyterLab ended with status {process.returncode}.")
        # by folder, because on Windows the process started here is not the server itself
        for info in list_running_servers():
            if Path(info["root_dir"]) == root:
                try:
                    urllib.request.urlopen(info["url"] + "api", timeout=5).close()
                    return info["url"], info["token"]
                except OSError:
                    pass
        time.sleep(0.2)
    raise SystemExit(f"JupyterLab did not answer within {patience:.0f} s; try `course doctor`.")


def present(lecture: str, extra_args: Sequence[str] = ()) -> int:
    """Shows the working copy's lecture as slides and waits; returns the server's exit status.

    ``lecture`` is a number such as "03". ``extra_args`` go to ``jupyter lab``; with
    ``--no-browser`` the address is only printed.
    """
    path = notebooks.find([lecture])[0]
    name = path.name
    notes = speaker_notes(notebooks.read(path))  # the working copy has none
    notebook = notebooks.read(lab.working_copy() / name)
    original = lab.digests(nbformat.writes(notebook))
    folder = new_folder()
    write_slides(notebook, folder / name)
    arguments = [
        f"--LabApp.extra_labextensions_path={EXTENSION}",
        f"--LabApp.workspaces_dir={folder / '.workspaces'}",
        *extra_args,
        "--no-browser",  # it is opened when the server answers
    ]
    log = folder / ".jupyter.log"  # the terminal is for the speaker
    try:
        with (
            log.open("w") as output,
            lab.server(folder, SETTINGS, *arguments, output=output) as process,
        ):
            url, token = wait_for_server(process, folder, log)
            address = f"{url}lab/tree/{urllib.parse.quote(name)}?token={token}"
            say(f"{notes}\n\nSlides: {address}\n{HELP}")
            if "--no-browser" not in extra_args:
                webbrowser.open(address)
            return lab.wait(process)
    finally:
        clean_up(folder / name, original)


def new_folder() -> Path:
    """A folder for one presentation."""
    stage = state_dir() / "presented"
    stage.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d "), dir=stage)).resolve()


def write_slides(notebook: NotebookNode, path: Path) -> None:
    """Writes the slides to ``path``."""
    fold(notebook)
    write_atomic(path, nbformat.writes(notebook))


def clean_up(copy: Path, original: dict[str, str]) -> None:
    """Deletes the presentation's folder, unless cells were edited in it."""
    if copy.exists():
        now = lab.digests(copy.read_text(encoding="utf-8"))
        if now is None or now["source"] != original["source"]:
            say(f"You edited cells while presenting; they are kept in {copy}")
            return
    shutil.rmtree(copy.parent, ignore_errors=True)
