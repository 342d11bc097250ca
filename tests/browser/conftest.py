"""A real browser on a real JupyterLab, both with nothing of the user's: ``lab(path)`` gives a ``Notebook`` to run, click and look at.

Screenshots go to ``build/screenshots/``. Without Chromium or Chrome these tests are skipped on a laptop and fail in CI.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from course_utils.command import slides
from course_utils.command.lab import EXTENSIONS
from course_utils.command.pages import BROWSERS
from course_utils.core.files import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"
LECTURE_MINUTES = 20  # a lecture takes a few on an idle machine
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
CONTENT = "() => window.jupyterapp.shell.currentWidget.content."
KERNEL = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel."
OUTPUT_AREA = "xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea ')][1]"
CHANGED = "([image, before]) => image.src !== before && image.naturalWidth > 0"


@pytest.fixture(scope="session")
def browser():
    """Chromium through Playwright; never one that Playwright would download."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        cure = f"none of {', '.join(BROWSERS)} is installed; on Debian or Ubuntu: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"The browser tests are part of CI, but {cure}.")
        pytest.skip(cure)
    if not os.environ.get("CI"):
        pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=QUIET.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def jupyter_environment(tmp_path_factory) -> dict[str, str]:
    """Jupyter finds none of the user's files and writes none."""
    home = tmp_path_factory.mktemp("jupyter")
    folders = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR IPYTHONDIR MPLCONFIGDIR COURSE_STATE"
    own = {name: str(home / name.lower()) for name in folders.split()}
    overrides = home / "jupyter_config_dir" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(slides.SETTINGS))  # with all cells in the page
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | own | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": path}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the browser showed when a test failed."""
    report = yield
    if report.failed and report.when == "call" and "page" in item.funcargs:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        item.funcargs["page"].screenshot(path=SCREENSHOTS / f"FAILED {item.name}.png")
    return report


class Notebook:
    """A notebook in JupyterLab, or as slides, once it is ready."""

    def __init__(self, page, name: str, *, wait: bool = True):
        self.page, self.name = page, name
        if not wait:
            return
        page.wait_for_function(
            """() => {  // not async: a promise would count as true
                const panel = window.jupyterapp?.shell.currentWidget;
                return (
                    window.jupyterapp?.commands.hasCommand("notebook:run-all-cells") && panel?.context?.isReady &&
                    panel.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === "idle"
                );
            }""",
            timeout=60_000,
        )

    def run_all(self) -> "Notebook":
        """Runs all cells; an error in one without the tag ``raises-exception`` fails the test."""
        return self._run("run-all-cells", len(self.cells()))

    def run_to_widget(self) -> "Notebook":
        """Runs all cells up to the last widget, as ``run_all`` does."""
        tagged = ["widget" in cell["metadata"].get("tags", []) for cell in self.cells()]
        after = len(tagged) - tagged[::-1].index(True)
        self.page.evaluate(CONTENT + f"activeCellIndex = {after}")
        return self._run("run-all-above", after)

    def cells(self) -> list[dict]:
        return self.page.evaluate(CONTENT + "model.toJSON()")["cells"]

    def _run(self, command: str, count: int) -> "Notebook":
        """Runs a command of JupyterLab's that runs the first ``count`` cells."""
        run = f"() => {{ window.ran = false; window.jupyterapp.commands.execute('notebook:{command}').finally(() => window.ran = true); }}"
        self.page.evaluate(run)
        self.page.wait_for_function("() => window.ran", timeout=LECTURE_MINUTES * 60_000)
        self.settle()
        for cell in self.cells()[:count]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or not source.strip():
                continue
            assert cell["execution_count"], f"{self.name}: not run:\n{source}"
            for output in cell["outputs"]:
                expected = "raises-exception" in cell["metadata"].get("tags", [])
                if output["output_type"] == "error" and not expected:
                    self.screenshot("error")
                    pytest.fail(f"{self.name}: {output['ename']}: {output['evalue']}\n{source}")
        broken = self.page.locator(".jupyter-widgets-error-widget").count()
        assert not broken, f"{self.name}: a widget cannot be displayed"
        return self

    def settle(self) -> None:
        """Until the kernel is idle; a slider calls back once right after it appears."""
        self.page.wait_for_timeout(1500)
        self.page.wait_for_function(KERNEL + "status === 'idle'")

    @contextmanager
    def picture_changes(self, beside):
        """The picture in the same output must change, and stay in sight."""
        image = beside.locator(OUTPUT_AREA).locator("img.widget-image").first
        before = image.get_attribute("src")
        yield
        self.page.wait_for_function(CHANGED, arg=[image.element_handle(), before])
        image.wait_for(state="visible")

    def move_slider(self, label: str | None = None) -> None:
        """Presses the right arrow on the first visible slider, or the one with this label."""
        sliders = self.page.locator(".widget-hslider:visible")
        slider = (sliders.filter(has_text=label) if label else sliders).first
        readout = slider.locator(".widget-readout").first
        value = readout.inner_text()
        with self.picture_changes(slider):
            slider.locator(".noUi-handle").first.focus()
            self.page.keyboard.press("ArrowRight")
        assert readout.inner_text() != value

    def draw_digit(self, points) -> None:
        """Draws through ``points`` (x, y in shares of the pad's side) with the mouse."""
        canvas = self.page.locator(".digit-pad canvas:visible").first
        canvas.scroll_into_view_if_needed()
        box, mouse = canvas.bounding_box(), self.page.mouse
        start, *rest = [
            (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points
        ]
        with self.picture_changes(canvas):
            mouse.move(*start)
            mouse.down()
            for place in rest:
                mouse.move(*place, steps=8)
            mouse.up()
        self.settle()

    # as slides

    def step(self) -> dict:
        """The slide in sight: number, of how many, cells shown, zoom, pixels that do not fit."""
        return self.page.evaluate(
            """() => {
                const slides = window.courseSlides;
                const zoom = Number(slides.notebook.node.style.getPropertyValue("--course-zoom"));
                const screen = Math.min(innerWidth / 1280, innerHeight / 720);
                return { at: slides.at, count: slides.steps.length, shown: slides.shown,
                         zoom: zoom / screen, overflow: slides.overflow() };
            }"""
        )

    def ready(self) -> "Notebook":
        """Waits until all cells have run behind the slides."""
        minutes = LECTURE_MINUTES * 60_000
        ready = "document.body.dataset.courseSlides === 'ready'"
        self.page.wait_for_function(ready, timeout=minutes)
        self.settle()
        return self

    def walk(self, until: str | None = None) -> Iterator[dict]:
        """Slide by slide, from the first to the last, or until this selector is in sight."""
        self.page.keyboard.press("Home")
        while True:
            for _ in range(50):  # sizes are seen after the next frame, on a busy machine much later
                self.page.wait_for_timeout(100)
                step = self.step()
                if step["overflow"] <= 0:
                    break
            yield step
            if (
                until
                and self.page.locator(f".course-shown {until}").locator("visible=true").count()
            ):
                return
            if step["at"] + 1 == step["count"]:
                assert until is None, f"{self.name}: no slide shows {until}"
                return
            self.page.keyboard.press("PageDown")

    def screenshot(self, what: str, of=None) -> None:
        """Of the page or the locator ``of``, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{self.name} {what}.png"
        if of is not None:
            of.scroll_into_view_if_needed()
        (of or self.page).screenshot(path=path)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serve(root: Path, environment: dict[str, str], *extensions: str) -> Iterator[str]:
    """The address of a JupyterLab in the folder ``root``, with these folders of extensions."""
    port = free_port()
    options = (
        f"--no-browser --allow-root --expose-app-in-browser --ServerApp.ip=127.0.0.1 --ServerApp.port={port} --ServerApp.port_retries=0"
        " --IdentityProvider.token=t --LabApp.extension_manager=readonly"
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={root}"]
    command += [f"--LabApp.extra_labextensions_path={EXTENSIONS / name}" for name in extensions]
    log = root.parent / f"jupyterlab-{port}.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
        print(log.read_text())


@pytest.fixture(scope="session")
def _lab_server(tmp_path_factory, jupyter_environment, browser):
    root = tmp_path_factory.mktemp("notebooks")
    with serve(root, jupyter_environment, "lab") as url:
        yield url, root


def _wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("JupyterLab did not start; what it said stands below")


def _ask(url: str, path: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(f"{url}/api/{path}?token=t", method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.fixture
def lab(_lab_server, page):
    """``lab(path)`` opens a copy of this notebook in a fresh page; its kernel ends with the test."""
    url, root = _lab_server

    def start(source: Path) -> Notebook:
        shutil.copy(source, root)
        page.goto(f"{url}/lab/tree/{source.name}?token=t&reset")
        return Notebook(page, source.stem)

    yield start
    for session in json.loads(_ask(url, "sessions")):
        _ask(url, f"sessions/{session['id']}", "DELETE")
    assert json.loads(_ask(url, "kernels")) == []


@pytest.fixture
def course(jupyter_environment):
    """``course("lab", "--no-browser", NAME="value")`` starts the command; it ends with the test."""
    processes = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "course_utils.command.cli", *arguments]
        env = jupyter_environment | environment
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


@pytest.fixture
def present(page, course):
    """``present("03")`` opens what ``course present`` announces, a ``Notebook`` on its first slide."""

    def start(lecture: str, **environment: str) -> Notebook:
        told, options = "", ("--no-browser", "--expose-app-in-browser")
        for line in course("present", lecture, *options, **environment).stdout:
            told += line
            if line.startswith("Slides: "):
                page.goto(line.split()[1])
                page.wait_for_selector(".course-shown h1")
                notebook = Notebook(page, f"{lecture} slides", wait=False)
                notebook.told = told
                return notebook
        pytest.fail(f"present did not come to its slides:\n{told}")

    return start


@pytest.fixture
def course_lab(page, course):
    """``course_lab()`` opens the page that ``course lab`` would open."""

    def start(**environment: str) -> Notebook:
        port = free_port()
        options = f"--no-browser --expose-app-in-browser --IdentityProvider.token=t --ServerApp.port={port}"
        _wait_for(port, course("lab", *options.split(), **environment))
        page.goto(f"http://127.0.0.1:{port}/?token=t")
        return Notebook(page, "lab")

    return start
