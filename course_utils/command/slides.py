"""A lecture as live slides, in JupyterLab with jupyterlab-slideshow.

Everything is run once beforehand, in the kernel that the slides then use, so that the first widget
answers at once. A presentation has its own copy of the lecture and its own settings.
"""

import asyncio
import json
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
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.serverapp import list_running_servers
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from nbformat.sign import NotebookNotary

from course_utils.command import lab, notebooks, screen
from course_utils.core.files import say, state_dir, write_atomic

KEYS = {
    "ArrowRight": ["forward"],
    "ArrowLeft": ["back"],
    "ArrowDown": ["down"],
    "ArrowUp": ["up"],
    "Space": ["down", "forward"],
}
# Slides start by themselves. jupyterlab-slideshow hears a key only if a cell has the focus, and at
# the start none has.
SETTINGS = lab.LAB_SETTINGS | {
    "jupyterlab-slideshow:plugin": {"active": True},
    "@jupyterlab/shortcuts-extension:shortcuts": {
        "shortcuts": [
            {
                "command": "deck:go",
                "args": {"direction": ways[0], "alternate": ways[-1]},
                "keys": [key],
                "selector": "body[data-jp-deck-mode='presenting']:not(:focus-within)",
            }
            for key, ways in KEYS.items()
        ]
    },
}
# Readable from the last row. JupyterLab reads fonts from the user's settings only.
FONTS = {
    "overrides": {"content-font-size1": "20px", "code-font-size": "16px", "ui-font-size1": "16px"}
}
HELP = """\
→ ← next and previous, ↓ ↑ within a topic, space for the next of both; Shift-Enter runs a cell.
A widget's code is folded; click the dots to see it.
Click beside a widget to give the arrow keys back to the slides.
Escape leaves the slides. Stop with Ctrl-C here."""


def fit_to_slides(notebook: NotebookNode) -> None:
    """Changes an executed notebook to what jupyterlab-slideshow 0.3 can show.

    It hides cells of type "-", so the type goes. It shows notes as a blank slide that no key
    leaves, so they are skipped. The code of a widget is folded: both rarely fit on one slide.
    """
    for cell in notebook.cells:
        slideshow = cell.metadata.get("slideshow", {})
        if slideshow.get("slide_type") in ("-", ""):
            del slideshow["slide_type"]
        elif slideshow.get("slide_type") == "notes":
            slideshow["slide_type"] = "skip"
        for output in cell.get("outputs", []):
            if notebooks.WIDGET_VIEW in output.get("data", {}):
                cell.metadata.setdefault("jupyter", {})["source_hidden"] = True


def speaker_notes(notebook: NotebookNode) -> str:
    """The notes under their slides' headings, for the terminal: the slides do not show them."""
    lines = []
    heading = ""
    printed = None
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind == "notes":
            if heading != printed:
                lines.append(f"\n{heading}")
                printed = heading
            lines.append("   " + cell.source.strip().replace("\n", "\n   "))
        elif kind != "skip" and cell.cell_type == "markdown":
            title = re.search(r"^#+\s*(.+)", cell.source, re.MULTILINE)
            if title:
                heading = title[1]
    return "\n".join(lines)


# --- the server's kernel


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


def start_kernel(path: str, url: str, token: str) -> str:
    """Starts the kernel that JupyterLab will use for ``path``; returns its connection file."""
    body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + "api/sessions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return str(Path(jupyter_runtime_dir()) / f"kernel-{json.load(reply)['kernel']['id']}.json")


async def run_all(notebook: NotebookNode, name: str, connection_file: str) -> None:
    """Runs all cells in a running kernel. A cell that fails is named and does not stop the rest."""
    runner = NotebookClient(notebook, record_timing=False)
    runner.kc = AsyncKernelClient(connection_file=connection_file)
    runner.kc.load_connection_file()
    # seconds without a sign of life; a busy laptop may need more than the usual one
    runner.kc.hb_channel.time_to_dead = 10.0
    runner.kc.start_channels()
    try:
        await runner.kc.wait_for_ready(timeout=60)
        with screen.progress(name) as on_cell:
            for number, cell in enumerate(notebook.cells, start=1):
                on_cell(number, len(notebook.cells))
                try:
                    await runner.async_execute_cell(cell, number - 1)
                except CellExecutionError as error:
                    screen.say(f"✘ cell {number} fails: {error.ename}: {error.evalue}")
    finally:
        runner.kc.stop_channels()


# --- the presentation


def present(lecture: str, extra_args: Sequence[str] = ()) -> int:
    """Shows the working copy's lecture as slides and waits; returns the server's exit status.

    ``lecture`` is a number such as "03". ``extra_args`` go to ``jupyter lab``; with
    ``--no-browser`` the address is only printed.
    """
    name = notebooks.find([lecture])[0].name
    notebook = notebooks.read(lab.working_copy() / name)
    original = lab.digests(nbformat.writes(notebook))
    folder = new_folder()
    arguments = [
        f"--LabApp.user_settings_dir={folder / '.settings'}",
        f"--LabApp.workspaces_dir={folder / '.workspaces'}",
        *extra_args,
        "--no-browser",  # it is opened when the slides are ready
    ]
    log = folder / ".jupyter.log"  # the terminal is for the speaker
    try:
        with (
            log.open("w") as output,
            lab.server(folder, SETTINGS, *arguments, output=output) as process,
        ):
            url, token = wait_for_server(process, folder, log)
            say(f"Preparing {name}: a presentation starts with everything run.")
            asyncio.run(run_all(notebook, name, start_kernel(name, url, token)))
            write_slides(notebook, folder / name)
            address = f"{url}lab/tree/{urllib.parse.quote(name)}?token={token}"
            say(f"\nSlides: {address}\n{HELP}")
            if "--no-browser" not in extra_args:
                webbrowser.open(address)
            return lab.wait(process)
    except KeyboardInterrupt:  # during the preparation
        return 130
    except DeadKernelError:
        raise SystemExit(
            "\nThe kernel died while the lecture was run; the usual cause is too little memory."
        ) from None
    finally:
        clean_up(folder / name, original)


def new_folder() -> Path:
    """A folder for one presentation, with its settings.

    In the user's own settings the extension would switch slides on for ``course lab`` as well.
    """
    stage = state_dir() / "presented"
    stage.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d "), dir=stage)).resolve()
    themes = ".settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    write_atomic(folder / themes, json.dumps(FONTS))
    return folder


def write_slides(notebook: NotebookNode, path: Path) -> None:
    """Writes the slides to ``path`` and prints the speaker notes."""
    notes = speaker_notes(notebook)
    fit_to_slides(notebook)
    NotebookNotary().sign(notebook)  # else JupyterLab does not trust the outputs: no widgets
    write_atomic(path, nbformat.writes(notebook))
    if notes:
        say(f"\nSpeaker notes\n{notes}")


def clean_up(copy: Path, original: dict[str, str]) -> None:
    """Deletes the presentation's folder, unless cells were edited in it."""
    if copy.exists():
        now = lab.digests(copy.read_text(encoding="utf-8"))
        if now is None or now["source"] != original["source"]:
            say(f"You edited cells while presenting; they are kept in {copy}")
            return
    shutil.rmtree(copy.parent, ignore_errors=True)
