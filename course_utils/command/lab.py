"""JupyterLab on a student's own copy of the lectures.

The repository stays as it is: students work in ``working_copy()``. The user's own Jupyter
configuration is read but never written; the course's settings are in a folder that is deleted when
the server ends.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import nbformat

from course_utils.command import notebooks
from course_utils.core import files

# A classroom has thirty machines and one slow network: no news, no search for updates
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # an open lecture holds more than a gigabyte
    "@jupyterlab/notebook-extension:tracker": {"kernelShutdown": True},
}
EXTENSIONS = Path(__file__).with_name("labextensions")

# Of each file in the working copy: its digests when the course wrote it
Origins = dict[str, dict[str, str]]


# --- the working copy


def digests(content: str) -> dict[str, str] | None:
    """Hashes of a notebook's cells: their ``source``, and their ``work`` with the outputs.

    Returns None if the notebook cannot be read. JupyterLab changes other parts when it opens a
    notebook; they do not count.
    """
    try:
        cells = nbformat.reads(content, as_version=4).cells
    except Exception:  # a damaged file fails in many ways
        return None

    def digest(*keys: str) -> str:
        chosen = [[cell.get(key) for key in keys] for cell in cells]
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()

    return {
        "source": digest("cell_type", "source"),
        "work": digest("cell_type", "source", "outputs"),
    }


def working_copy() -> Path:
    """The folder with the student's copies of the lectures, brought up to date.

    A copy that the student has changed is never overwritten. A newer lecture is then written next
    to it, and a line says so.
    """
    folder = files.state_dir() / "lectures"
    files.check_writable("COURSE_STATE", folder)
    record = folder / ".origins.json"
    origins = read_origins(record)
    for lecture in notebooks.lectures():
        update(folder / lecture.name, for_students(lecture), origins)
    files.write_atomic(record, json.dumps(origins, indent=1))
    return folder


def for_students(lecture: Path) -> str:
    """The text of a lecture's file without the notes for the speaker."""
    notebook = json.loads(lecture.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    notebook["cells"] = [cell for cell in cells if notebooks.slide_type(cell) != "notes"]
    return json.dumps(notebook, indent=1, ensure_ascii=False)


def read_origins(record: Path) -> Origins:
    """The recorded origins. Without a readable record every difference counts as the student's."""
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def update(copy: Path, content: str, origins: Origins) -> None:
    """Writes a lecture's ``content`` to ``copy``, or next to it if the student changed ``copy``."""
    new = digests(content)
    origin = origins.get(copy.name)
    if not copy.exists():
        files.write_atomic(copy, content)
    elif text_of(copy) != content:
        if not changed(copy, origins):
            files.write_atomic(copy, content)
        elif origin and origin["source"] == new["source"]:
            return  # only outputs of the lecture differ from what the copy was made from
        else:
            write_beside(copy, content, origins)
    origins[copy.name] = new


def text_of(copy: Path) -> str:
    return copy.read_text(encoding="utf-8", errors="replace")


def changed(copy: Path, origins: Origins) -> bool:
    """Whether the student changed ``copy``; in doubt, yes."""
    now = digests(text_of(copy))
    then = origins.get(copy.name)
    return now is None or then is None or now["work"] != then["work"]


def write_beside(copy: Path, content: str, origins: Origins) -> None:
    """Writes ``content`` as a new version next to ``copy``; replaces an unchanged new version."""
    beside = copy.with_stem(f"{copy.stem} (new version)")
    number = 2
    while beside.exists() and changed(beside, origins):
        beside = copy.with_stem(f"{copy.stem} (new version {number})")
        number += 1
    files.write_atomic(beside, content)
    origins[beside.name] = digests(content)
    files.say(
        f"{copy.name} has a new version, and you have changed yours: "
        f"yours is kept, the new one is '{beside.name}'."
    )


# --- the server


@contextmanager
def server(
    root: Path, settings: dict, *arguments: str, output: TextIO | None = None
) -> Iterator[subprocess.Popen]:
    """JupyterLab as a child process in the folder ``root``; it ends with the block.

    ``settings`` are defaults: the user's own come first. The server writes to ``output``, or to the
    terminal.
    """
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}"]
    command += ["--ServerApp.answer_yes=True"]
    command += [f"--LabApp.extra_labextensions_path={EXTENSIONS / 'lab'}", *arguments]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # usual in a container; only this machine can connect
    notebooks.check_jupyter()
    with tempfile.TemporaryDirectory(prefix="course-lab-") as folder:
        overrides = Path(folder) / "labconfig" / "default_setting_overrides.json"
        files.write_atomic(overrides, json.dumps(settings))
        environment = files.environment(
            JUPYTER_CONFIG_PATH=notebooks.put_first(folder, "JUPYTER_CONFIG_PATH"),
            JUPYTER_PREFER_ENV_PATH="1",  # this environment's kernel before a user's "python3"
        )
        exit_on_signals()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            wait(process)


def exit_on_signals() -> None:
    """Makes a closed terminal end this process in order, so that no server stays behind."""

    def leave(number, frame):
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, leave)


def wait(process: subprocess.Popen) -> int:
    """Waits for the server's end; returns its exit status.

    Ctrl-C ends the server, which then stops its kernels. In a terminal the server hears it as well,
    under a supervisor it does not.
    """
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            files.say("\nstopped")
            process.terminate()


def lab(extra_args: Sequence[str] = ()) -> int:
    """Opens the working copy in JupyterLab and waits; returns the server's exit status.

    ``extra_args`` go to ``jupyter lab``.
    """
    root = working_copy()
    # a workspace of its own keeps the tabs of the course apart from the student's other work
    workspaces = files.state_dir() / "workspaces"
    start = "/lab"
    if not workspaces.exists():
        start = f"/lab/tree/{notebooks.find([])[0].name}"
    files.say(f"Your copy of the lectures: {root}\nStop with Ctrl-C.")
    arguments = [f"--LabApp.workspaces_dir={workspaces}", f"--LabApp.default_url={start}"]
    with server(root, LAB_SETTINGS, *arguments, *extra_args) as process:
        return wait(process)
