"""JupyterLab on a student's own copy of the lectures, and lectures as live slides.

The repository stays as it is: students work in ``working_copy()``, and a presentation gets a copy of its own. The user's own Jupyter
configuration is read but never written; what the course wants otherwise goes into a folder that lives as long as the server.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.serverapp import list_running_servers
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.sign import NotebookNotary

from course_utils import notebooks
from course_utils.runtime import state_dir, write_atomic

# A classroom has thirty machines and one slow network: no news, no search for updates
LAB_SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
# Slides start by themselves. jupyterlab-slideshow hears keys only where a cell has the focus, and at first nothing has.
_KEYS = {"ArrowRight": ["forward"], "ArrowLeft": ["back"], "ArrowDown": ["down"], "ArrowUp": ["up"], "Space": ["down", "forward"]}
SLIDE_SETTINGS = LAB_SETTINGS | {
    "jupyterlab-slideshow:plugin": {"active": True},
    "@jupyterlab/shortcuts-extension:shortcuts": {
        "shortcuts": [
            {
                "command": "deck:go",
                "args": {"direction": ways[0], "alternate": ways[-1]},
                "keys": [key],
                "selector": "body[data-jp-deck-mode='presenting']:not(:focus-within)",
            }
            for key, ways in _KEYS.items()
        ]
    },
}
# Readable from the last row. JupyterLab takes these from the user's settings only, so a presentation has its own.
SLIDE_FONTS = {"overrides": {"content-font-size1": "20px", "code-font-size": "16px", "ui-font-size1": "16px"}}


# ----------------------------------------------------------------------------------------------------- the working copy


def _digests(content: str) -> dict[str, str] | None:
    """What makes one notebook differ from another: its cells' ``source``, and its ``work``, the outputs included. None if it cannot be read.

    JupyterLab writes other things too as soon as a notebook is opened; those are nobody's work.
    """
    try:
        cells = nbformat.reads(content, as_version=4).cells
    except Exception:  # a damaged file fails in many ways
        return None

    def digest(*keys: str) -> str:
        chosen = [[cell.get(key) for key in keys] for cell in cells]
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()

    return {"source": digest("cell_type", "source"), "work": digest("cell_type", "source", "outputs")}


def working_copy() -> Path:
    """The folder with the student's copies of the lectures, brought up to date.

    A copy that the student has changed is never overwritten: a newer lecture then comes to lie beside it, and a line says so.
    """
    folder = state_dir() / "lectures"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / ".origins.json"  # what each file was when the course wrote it
    try:
        origins = dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):  # none yet, or damaged: then every difference counts as the student's
        origins = {}

    def changed(copy: Path) -> bool:
        """Whether the student changed ``copy``; when in doubt, yes."""
        now, then = _digests(copy.read_text(encoding="utf-8", errors="replace")), origins.get(copy.name)
        return now is None or then is None or now["work"] != then["work"]

    for lecture in notebooks.lectures():
        content = lecture.read_text(encoding="utf-8")
        copy, digests = folder / lecture.name, _digests(content)
        if copy.exists() and copy.read_text(encoding="utf-8", errors="replace") == content:
            pass
        elif not copy.exists() or not changed(copy):
            write_atomic(copy, content)
        elif copy.name in origins and origins[copy.name]["source"] == digests["source"]:
            continue  # the course still has what this copy was made from, but for outputs
        else:
            beside = copy.with_stem(f"{copy.stem} (new version)")
            number = 2
            while beside.exists() and changed(beside):
                beside = copy.with_stem(f"{copy.stem} (new version {number})")
                number += 1
            write_atomic(beside, content)
            origins[beside.name] = digests
            print(f"{copy.name} has a new version, and you have changed yours: yours is kept, the new one is '{beside.name}'.")
        origins[copy.name] = digests
    write_atomic(record, json.dumps(origins, indent=1))
    return folder


# ----------------------------------------------------------------------------------------------------------- the server


@contextmanager
def _server(root: Path, settings: dict, *arguments: str, log: Path | None = None) -> Iterator[subprocess.Popen]:
    """JupyterLab as a child process with ``settings`` as defaults, below the user's own. It talks to the terminal, or else into ``log``."""
    with tempfile.TemporaryDirectory(prefix="course-lab-") as folder:
        write_atomic(Path(folder) / "labconfig" / "default_setting_overrides.json", json.dumps(settings))
        environment = os.environ | {
            "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_CONFIG_PATH")])),
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, also where the user has another "python3"
        }
        command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", "--ServerApp.answer_yes=True", *arguments]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-root")  # in a container everybody is root, and the server answers this machine only
        for name in ("SIGTERM", "SIGHUP"):  # a closed terminal must not leave a server with its kernels behind
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda number, _frame: sys.exit(128 + number))
        with open(log, "w") if log else nullcontext() as output:
            server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                yield server
            finally:
                if server.poll() is None:
                    server.terminate()
                _wait(server)


def _wait(server: subprocess.Popen) -> int:
    """Waits for the server's end. Ctrl-C reaches the server as well, which then stops its kernels and ends by itself."""
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            pass


def lab(extra_args: Sequence[str] = ()) -> int:
    """JupyterLab on the working copy, in the foreground, in the browser; gives the server's exit status.

    ``extra_args`` go to ``jupyter lab`` as they are.
    """
    # a workspace folder of its own: the student finds the tabs of the course, and their other work keeps its own
    workspaces = state_dir() / "workspaces"
    start = "/lab" if workspaces.exists() else f"/lab/tree/{notebooks.find([])[0].name}"
    root = working_copy()
    print(f"Your copy of the lectures: {root}\nStop with Ctrl-C.", flush=True)
    arguments = [f"--LabApp.workspaces_dir={workspaces}", f"--LabApp.default_url={start}", *extra_args]
    with _server(root, LAB_SETTINGS, *arguments) as server:
        return _wait(server)


# --------------------------------------------------------------------------------------------------------------- slides


def _slides(notebook: nbformat.NotebookNode) -> None:
    """Fits an executed notebook to slides and to what jupyterlab-slideshow 0.3 can show.

    It takes a literal "-" for an unknown type and hides the cell; and notes for a blank slide that no key leaves, to which Shift-Enter on
    the cell before leads. A cell to skip it passes over properly. Code that makes a widget is folded: both rarely fit on one slide.
    """
    for cell in notebook.cells:
        slideshow = cell.metadata.get("slideshow", {})
        if slideshow.get("slide_type") in ("-", ""):
            del slideshow["slide_type"]
        elif slideshow.get("slide_type") == "notes":
            slideshow["slide_type"] = "skip"
        if any(notebooks.WIDGET_VIEW in output.get("data", {}) for output in cell.get("outputs", [])):
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True


def _speaker_notes(notebook: nbformat.NotebookNode) -> str:
    """The notes of all slides with the headings they belong to, for the terminal: the slides do not show them."""
    lines, heading, last = [], "", None
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind == "notes":
            if heading != last:
                lines.append(f"\n{heading}")
            last = heading
            lines.append("   " + cell.source.strip().replace("\n", "\n   "))
        elif kind != "skip" and cell.cell_type == "markdown" and (title := re.search(r"^#+\s*(.+)", cell.source, re.MULTILINE)):
            heading = title[1]
    return "\n".join(lines)


def _address(server: subprocess.Popen, root: Path, log: Path, *, patience: float = 60) -> tuple[str, str]:
    """Address (with a final slash) and token of the server of the folder ``root``, as soon as it answers."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"{log.read_text(errors='replace')}\nJupyterLab ended with status {server.returncode}.")
        # by folder, not by process id: on Windows the process started here is not yet the server
        for info in list_running_servers():
            if Path(info["root_dir"]) == root:
                try:
                    urllib.request.urlopen(info["url"] + "api", timeout=5).close()
                    return info["url"], info["token"]
                except OSError:
                    pass
        time.sleep(0.2)
    raise SystemExit(f"JupyterLab did not answer within {patience:.0f} s; try `course doctor`.")


def _start_kernel(path: str, url: str, token: str) -> str:
    """Starts the kernel that JupyterLab will find and use when it opens the notebook ``path``; gives its connection file."""
    body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + "api/sessions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return str(Path(jupyter_runtime_dir()) / f"kernel-{json.load(reply)['kernel']['id']}.json")


async def _run(notebook: nbformat.NotebookNode, connection_file: str) -> None:
    """Runs all cells in a running kernel and puts the outputs into ``notebook``; a failing cell is named and does not stop the rest."""
    runner = NotebookClient(notebook, record_timing=False)
    runner.kc = AsyncKernelClient(connection_file=connection_file)
    runner.kc.load_connection_file()
    runner.kc.hb_channel.time_to_dead = 10.0  # seconds without a sign of life; a busy laptop may need more than the usual one
    runner.kc.start_channels()
    try:
        await runner.kc.wait_for_ready(timeout=60)
        for index, cell in enumerate(notebook.cells):
            print(f"\rRunning cell {index + 1} of {len(notebook.cells)} … ", end="", flush=True)
            try:
                await runner.async_execute_cell(cell, index)
            except CellExecutionError as error:
                print(f"\n✘ cell {index + 1} fails: {error.ename}: {error.evalue}", flush=True)
        print("done.", flush=True)
    finally:
        runner.kc.stop_channels()


def present(lecture: str, extra_args: Sequence[str] = ()) -> int:
    """Shows the lecture with this number as live slides in the browser, in the foreground; gives the server's exit status.

    Presents the working copy's version, in a copy: everything is run once beforehand, in the kernel that the slides then go on with, so
    that the first widget answers at once. ``extra_args`` go to ``jupyter lab`` as they are (``--no-browser``: print the address only).
    """
    name = notebooks.find([lecture])[0].name
    notebook = notebooks.read(working_copy() / name)
    before = _digests(nbformat.writes(notebook))["source"]
    stage = state_dir() / "presented"
    stage.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d "), dir=stage)).resolve()
    # settings of its own also because the deck notes in them that it is running, and the next `course lab` would start as slides
    write_atomic(folder / ".settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings", json.dumps(SLIDE_FONTS))
    arguments = [f"--LabApp.user_settings_dir={folder / '.settings'}", f"--LabApp.workspaces_dir={folder / '.workspaces'}"]
    arguments += [*extra_args, "--no-browser"]  # the browser comes when the slides are ready
    try:
        log = folder / ".jupyter.log"  # the terminal is for the speaker
        with _server(folder, SLIDE_SETTINGS, *arguments, log=log) as server:
            url, token = _address(server, folder, log)
            print(f"Preparing {name}: a presentation starts with everything run.", flush=True)
            asyncio.run(_run(notebook, _start_kernel(name, url, token)))
            notes = _speaker_notes(notebook)
            _slides(notebook)
            NotebookNotary().sign(notebook)  # else JupyterLab takes the outputs for a stranger's and shows no widget
            write_atomic(folder / name, nbformat.writes(notebook))
            address = f"{url}lab/tree/{urllib.parse.quote(name)}?token={token}"
            if notes:
                print(f"\nSpeaker notes\n{notes}")
            print(
                f"\nSlides: {address}\n"
                "→ ← next and previous, ↓ ↑ within a topic, space for whichever comes next; Shift-Enter runs a cell.\n"
                "A widget's code is folded; click the dots to see it. Click beside a widget to give the arrow keys back to the slides.\n"
                "Escape leaves the slides. Stop with Ctrl-C here.",
                flush=True,
            )
            if "--no-browser" not in extra_args:
                webbrowser.open(address)
            return _wait(server)
    except KeyboardInterrupt:  # while it was still preparing
        return 130
    except DeadKernelError:
        raise SystemExit("\nThe kernel died while the lecture was being run; the usual cause is too little memory.") from None
    finally:
        copy = folder / name
        if copy.exists() and (_digests(copy.read_text(encoding="utf-8")) or {}).get("source") != before:
            print(f"You edited cells while presenting; they are kept in {copy}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
