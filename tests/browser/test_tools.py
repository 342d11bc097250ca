"""Widgets and commands in a browser, on a small notebook."""

import signal
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = pytest.mark.browser

EXPLORER = '''\
import io
import ipywidgets
from matplotlib.figure import Figure
from course_utils.lesson.widgets import digit_pad, explorer

def draw(power, colour):
    """A curve."""
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([(x / 50) ** power for x in range(51)], color=colour)
    axes.set_title(f"x to the {power}")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue(), f"The curve of x to the {power}"

explorer(draw, power=ipywidgets.IntSlider(2, 1, 5, description="Power of x, a long label"),
         colour=ipywidgets.Dropdown(options=["navy", "orange"], description="Colour"))
'''

PAD = """\
import torch

def classify(x):
    figure = Figure(figsize=(3, 3), layout="constrained")
    figure.subplots().imshow(x[0, 0], cmap="gray", vmin=0, vmax=1)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=93)
    rows = x[0, 0].any(1).nonzero()
    return file.getvalue(), f"This is {int(rows[-1] - rows[0]) + 1 if len(rows) else 0} pixels high"

images = torch.zeros(2, 1, 28, 28)
images[1, 0, 8:20, 12:16] = 1
digit_pad(classify, images)
"""

BROKEN = """\
def fail(eps):
    raise ValueError(f"eps is {eps}; give at most <0.1>.")

explorer(fail, eps=ipywidgets.FloatSlider(0.3))
"""


def slide(source, kind=None, make=new_markdown_cell):
    return make(source, metadata={"slideshow": {"slide_type": kind}} if kind else {})


@pytest.fixture
def root(tmp_path):
    """A course with one lecture, of every slide type."""
    cells = [
        slide("# A lecture about nothing\n\nand a promise", "slide"),
        slide("Welcome everybody (2 min).", "notes"),
        slide("print('only in the notebook')", "skip", new_code_cell),
        slide("## Play\n\nMove the slider.", "slide"),
        slide(EXPLORER, make=new_code_cell),
        slide("Let them guess first (3 min).", "notes"),
        slide("An insight", "fragment"),
        slide("## Draw", "subslide"),
        slide(PAD, "-", new_code_cell),
        slide("## Broken", "slide"),
        slide(BROKEN, make=new_code_cell),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "07_nothing.ipynb")
    return tmp_path


def test_explorer_and_pad_in_jupyterlab(lab, root):
    notebook = lab(root / "07_nothing.ipynb").run_all()
    page = notebook.page
    notebook.move_slider("Power of x, a long label")
    assert page.get_by_text("The curve of x to the 3").is_visible()
    page.get_by_label("Colour").select_option("orange")
    notebook.settle()
    notebook.screenshot("explorer", of=page.locator(".jp-OutputArea:has(.widget-hslider)").first)
    notebook.draw_digit([(0.1, 0.2), (0.5, 0.2), (0.3, 0.75)])  # a seven, too far to the left
    assert page.get_by_text("This is 20 pixels high").is_visible()
    notebook.screenshot("pad", of=page.locator(".jp-OutputArea:has(.digit-pad)").first)
    canvas, pixels = page.locator(".digit-pad canvas"), "canvas => canvas.toDataURL()"
    drawn = canvas.evaluate(pixels)
    page.get_by_role("button", name="Clear the drawing pad").focus()
    page.keyboard.press("Enter")  # JupyterLab's own shortcut for Enter must not take it
    notebook.settle()
    assert canvas.evaluate(pixels) != drawn
    assert page.locator(".widget-html:visible", has_text="pixels high").count() == 0
    slider = page.get_by_role("slider", name="or take test image")  # for those who cannot draw
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("This is 12 pixels high").wait_for()
    assert page.get_by_text("This picture could not be drawn. ValueError: eps is 0.3").is_visible()
    notebook.screenshot("page")


def heading(page, name):
    return page.get_by_role("heading", name=name)


def test_slides_are_live(present, root):
    notebook = present("07", COURSE_LECTURES=str(root))
    page = notebook.page
    assert heading(page, "A lecture about nothing").is_visible()
    notebook.screenshot("title")
    assert "Let them guess first (3 min)." in notebook.told
    assert page.locator(":text('Welcome everybody'):visible").count() == 0
    notebook.ready()
    page.keyboard.press("ArrowRight")  # no click before: the slides hear the keys at once
    assert heading(page, "Play").is_visible()
    notebook.move_slider()
    notebook.screenshot("play")
    assert heading(page, "Play").is_visible()  # the arrow key went to the slider
    *_, step = notebook.walk(until=".digit-pad")
    assert heading(page, "Draw").is_visible() and step["overflow"] == 0
    notebook.draw_digit([(0.3, 0.2), (0.7, 0.2), (0.5, 0.75)])
    notebook.screenshot("draw")
    *_, last = notebook.walk()
    assert heading(page, "Broken").is_visible() and last["at"] == 4
    notebook.screenshot("broken")
    page.keyboard.press("Escape")
    page.locator("#jp-menu-panel").wait_for()  # out of the slides: an ordinary JupyterLab


def test_keys_of_the_slides(present, root):
    notebook = present("07", COURSE_LECTURES=str(root))
    page, press = notebook.page, notebook.page.keyboard.press
    at = [notebook.step()["at"]]
    for key in "ArrowRight PageDown Space ArrowDown PageDown".split():
        press(key)
        at.append(notebook.step()["at"])
    assert at == [0, 1, 2, 3, 4, 4]  # and no further
    at = []
    for key in "PageUp ArrowLeft Shift+Space ArrowUp PageUp End Home".split():
        press(key)
        at.append(notebook.step()["at"])
    assert at == [3, 2, 1, 0, 0, 4, 0]
    before = notebook.cells()
    for key in "abcdfhijklmnopqrstuvwxyz0123456789":  # JupyterLab's keys to edit a notebook
        press(key)
        press(f"Shift+{key}")
    press("Delete")
    press("Backspace")
    press("Enter")
    sources = [[cell["cell_type"], cell["source"]] for cell in notebook.cells()]
    assert sources == [[cell["cell_type"], cell["source"]] for cell in before]
    press("b")
    dark = "getComputedStyle(document.body, '::after').backgroundColor === 'rgb(0, 0, 0)'"
    assert page.evaluate(dark)
    press("b")
    assert not page.evaluate(dark)


def test_a_cell_can_be_edited_and_run_on_a_slide(present, root):
    notebook = present("07", COURSE_LECTURES=str(root)).ready()
    page = notebook.page
    *_, step = notebook.walk(until=".widget-hslider")
    page.locator(".course-shown.jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.type("print('b is', 6 * 7)")
    page.keyboard.press("Shift+Enter")
    page.locator(".course-shown .jp-OutputArea-output", has_text="b is 42").wait_for()
    assert notebook.step()["at"] == step["at"]
    page.keyboard.press("PageDown")  # a clicker turns the page, wherever the focus is
    assert notebook.step()["at"] == step["at"] + 1


def test_lab_opens_the_first_lecture_of_the_working_copy(course_lab, root, tmp_path):
    notebook = course_lab(COURSE_LECTURES=str(root), COURSE_STATE=str(tmp_path / "state"))
    page, copy = notebook.page, tmp_path / "state" / "lectures" / "07_nothing.ipynb"
    notebook.settle()
    notebook.screenshot("opened")
    assert page.get_by_text("official Jupyter news").count() == 0
    app = "() => window.jupyterapp."
    cell = "shell.currentWidget.content.model.sharedModel.cells[0]"
    page.evaluate(f"{app}{cell}.setSource('my own words')")
    page.evaluate(app + "commands.execute('docmanager:save')")
    assert "my own words" in copy.read_text(encoding="utf-8")
    assert "my own words" not in (root / "07_nothing.ipynb").read_text(encoding="utf-8")
    kernels = "() => fetch('/api/kernels?token=t').then((answer) => answer.json())"
    assert len(page.evaluate(kernels)) == 1
    page.evaluate(app + "shell.currentWidget.close()")  # a lecture holds more than a gigabyte
    page.wait_for_timeout(2000)
    assert page.evaluate(kernels) == []


@pytest.mark.parametrize("arguments", [("lab",), ("present", "07")], ids=lambda words: words[0])
def test_ctrl_c_ends_the_server_and_says_so(course, root, tmp_path, arguments):
    process = course(
        *arguments,
        "--no-browser",
        COURSE_LECTURES=str(root),
        COURSE_STATE=str(tmp_path / "state"),
    )
    last = "Stop with Ctrl-C"
    assert any(last in line for line in process.stdout)
    time.sleep(3)  # the server is on its way up, or up
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert told.strip().splitlines()[-1] == "stopped" and "Traceback" not in told
