"""A real browser on a real JupyterLab, both with nothing of the user's: ``lab.open(path)`` gives a ``Notebook`` to run, click and look at.

Screenshots go to ``build/screenshots/``. Without Chromium or Chrome these tests are skipped on a laptop and fail in CI.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from course_utils.runtime import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"
LECTURE_MINUTES = 10  # a lecture takes under two on an idle machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
ACTIVE_CELL = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"


@pytest.fixture(scope="session")
def browser():
    """Chromium through Playwright; never one that Playwright would download."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        cure = f"none of {', '.join(BROWSERS)} is installed; on Debian or Ubuntu: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"The browser tests are part of CI, but {cure}.")
        pytest.skip(cure)
    sync_api = pytest.importorskip("playwright.sync_api") if not os.environ.get("CI") else __import__("playwright.sync_api").sync_api
    with sync_api.sync_playwright() as playwright:
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
    """An environment in which Jupyter finds none of the user's files and writes none. Data and trained weights stay the test run's own."""
    home = tmp_path_factory.mktemp("jupyter")
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR", "COURSE_STATE")
    own = {name: str(home / name.lower()) for name in folders}
    overrides = home / "jupyter_config_dir" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(
        '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},'
        ' "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}'  # else cells out of sight are not in the page
    )
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
    """A notebook in JupyterLab, or as slides."""

    def __init__(self, page, name: str):
        self.page, self.name = page, name

    def wait_until_ready(self) -> "Notebook":
        self.page.wait_for_function(
            """() => {  // not async: a promise would count as true
                const panel = window.jupyterapp?.shell.currentWidget;
                return (
                    window.jupyterapp?.commands.hasCommand("notebook:run-all-cells") && panel?.context?.isReady &&
                    panel.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === "idle"
                );
            }""",
            timeout=60_000,
        )
        return self

    def run_all(self) -> "Notebook":
        """Runs all cells; an error output that the notebook does not announce (tag ``raises-exception``) fails the test."""
        run = "() => { window.ranAll = false; window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => window.ranAll = true); }"
        self.page.evaluate(run)
        self.page.wait_for_function("() => window.ranAll", timeout=LECTURE_MINUTES * 60_000)
        self.settle()
        content = self.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.toJSON()")
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        for cell in code:
            for output in cell["outputs"]:
                if output["output_type"] == "error" and "raises-exception" not in cell["metadata"].get("tags", []):
                    self.screenshot("error")
                    pytest.fail(f"{self.name}: {output['ename']}: {output['evalue']}\n{''.join(cell['source'])}")
        assert all(cell["execution_count"] for cell in code), f"{self.name}: not all cells were run"
        assert self.page.locator(".jupyter-widgets-error-widget").count() == 0, f"{self.name}: a widget cannot be displayed"
        return self

    def settle(self) -> None:
        """Until the kernel is idle and every picture is drawn; a slider calls back once right after it appears."""
        self.page.wait_for_timeout(1500)
        self.page.wait_for_function("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")

    def move_slider(self, label: str | None = None, key: str = "ArrowRight") -> None:
        """Presses a key on the first visible slider (or the one with this label); its picture must change and stay in sight."""
        sliders = self.page.locator(".widget-hslider:visible")
        slider = (sliders.filter(has_text=label) if label else sliders).first
        area = slider.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea ')][1]")
        image, readout = area.locator("img.widget-image:visible").first, slider.locator(".widget-readout").first
        before, value = image.get_attribute("src"), readout.inner_text()
        slider.locator(".noUi-handle").first.focus()
        self.page.keyboard.press(key)
        handle = image.element_handle()
        self.page.wait_for_function("([image, before]) => image.src !== before && image.naturalWidth > 0", arg=[handle, before])
        assert readout.inner_text() != value
        assert image.is_visible()

    def draw_digit(self, points) -> None:
        """Draws through ``points`` (x, y in shares of the pad's side) with the mouse; the picture beside the pad must change."""
        canvas = self.page.locator(".digit-pad canvas:visible").first
        canvas.scroll_into_view_if_needed()
        area = canvas.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea ')][1]")
        image = area.locator("img.widget-image:visible").first
        before, box = image.get_attribute("src"), canvas.bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=8)
        self.page.mouse.up()
        self.page.wait_for_function("([image, before]) => image.src !== before", arg=[image.element_handle(), before])
        self.settle()

    def walk(self, until: str | None = None) -> None:
        """Slide by slide with the space bar, until this selector is in sight or to the end; fails at a blank slide."""
        self.page.mouse.click(640, self.page.viewport_size["height"] - 5)  # beside everything: the keys are the slides' again
        while not (until and self.page.locator(until).locator("visible=true").count()):
            heights = self.page.locator(".jp-Deck .jp-deck-mod-visible").evaluate_all("cells => cells.map(cell => cell.offsetHeight)")
            assert max(heights, default=0) > 20, f"{self.name}: a blank slide"
            before = self.page.evaluate(ACTIVE_CELL)
            self.page.keyboard.press("Space")
            self.page.wait_for_timeout(300)
            if self.page.evaluate(ACTIVE_CELL) == before:
                assert until is None, f"{self.name}: no slide shows {until}"
                return

    def screenshot(self, what: str, of=None) -> Path:
        """A picture of the page, or of the locator ``of``, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{self.name} {what}.png"
        if of is not None:
            of.scroll_into_view_if_needed()
            of.screenshot(path=path)
        else:
            self.page.screenshot(path=path)
        return path


class Lab:
    """A running JupyterLab whose folder is ``root``."""

    def __init__(self, url: str, root: Path, page=None):
        self.url, self.root, self.page = url, root, page

    def open(self, source: Path) -> Notebook:
        """Opens a copy of the notebook ``source`` in a fresh page."""
        shutil.copy(source, self.root)
        self.page.goto(f"{self.url}/lab/tree/{source.name}?token=t&reset")
        return Notebook(self.page, source.stem).wait_until_ready()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def _lab_server(tmp_path_factory, jupyter_environment, browser):
    root, port = tmp_path_factory.mktemp("notebooks"), free_port()
    options = (
        f"--no-browser --allow-root --expose-app-in-browser --ServerApp.ip=127.0.0.1 --ServerApp.port={port} --ServerApp.port_retries=0"
        " --IdentityProvider.token=t --LabApp.extension_manager=readonly"
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={root}"]
    log = root.parent / "jupyterlab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=jupyter_environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}", root
    finally:
        server.terminate()
        server.wait(30)
        print(log.read_text())


def _wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("JupyterLab did not start; what it said stands below")


@pytest.fixture
def lab(_lab_server, page) -> Lab:
    """JupyterLab with this environment's kernel."""
    return Lab(*_lab_server, page)


@pytest.fixture
def course(jupyter_environment):
    """``course("lab", "--no-browser", NAME="value")`` starts the course's own command and gives its process; it is ended with the test."""
    processes = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "course_utils.cli", *arguments]
        processes.append(subprocess.Popen(command, env=jupyter_environment | environment, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


@pytest.fixture
def present(page, course):
    """``present("03")`` runs the course's own command and opens its address; gives the ``Notebook`` on its first slide."""

    def start(lecture: str, **environment: str) -> Notebook:
        told = ""
        for line in course("present", lecture, "--no-browser", "--expose-app-in-browser", **environment).stdout:
            told += line
            if line.startswith("Slides: "):
                page.goto(line.split()[1])
                notebook = Notebook(page, f"{lecture} slides").wait_until_ready()
                notebook.told = told
                page.wait_for_selector(".jp-Deck .jp-deck-mod-visible")
                notebook.settle()
                return notebook
        pytest.fail(f"present did not come to its slides:\n{told}")

    return start


@pytest.fixture
def course_lab(page, course):
    """``course_lab()`` runs ``course lab`` and opens the page it would open; gives the ``Notebook`` in it."""

    def start(**environment: str) -> Notebook:
        port = free_port()
        options = ["--no-browser", "--expose-app-in-browser", "--IdentityProvider.token=t", f"--ServerApp.port={port}"]
        _wait_for(f"http://127.0.0.1:{port}/api", course("lab", *options, **environment))
        page.goto(f"http://127.0.0.1:{port}/?token=t")
        return Notebook(page, "lab").wait_until_ready()

    return start
