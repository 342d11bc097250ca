"""What a screen reader gets, and what axe finds, in JupyterLab, on a slide, on a widget."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from course_utils.command import notebooks

pytestmark = pytest.mark.browser
NAMED = "() => document.querySelectorAll('.jp-RenderedImage img[data-named]').length"


def serious(page) -> list[str]:
    """The serious and critical faults that axe finds, with an example of each."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_timeout(600)  # names come when the page has been quiet for a moment

    return [
        f"{fault['id']}: {fault['help']}: {fault['nodes'][0]['html'][:200]}"
        for fault in Axe().run(page).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.fixture
def opened(lab):
    return lab(notebooks.find(["03"])[0])


def test_figures_have_their_alternative_texts_in_jupyterlab(opened):
    page = opened.page
    stored = [
        output.metadata["image/png"]["alt"]
        for cell in notebooks.code_cells(notebooks.read(notebooks.find(["03"])[0]))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    page.wait_for_function(f"({NAMED})() === {len(stored)}")
    shown = page.locator(".jp-RenderedImage img").evaluate_all("images => images.map((i) => i.alt)")
    assert shown == stored and min(map(len, stored)) > 20


def test_a_widget_that_waits_for_a_run_says_so(opened):
    note = opened.page.locator(".course-waits", has_text="Run All Cells")
    assert note.count() > 1  # predictions and things to play with
    opened.page.evaluate(
        "() => { const cells = window.jupyterapp.shell.currentWidget.content.model.cells;"
        " for (const cell of cells) if (cell.getMetadata('tags')?.includes('widget'))"
        " cell.outputs.add({output_type: 'stream', name: 'stdout', text: 'here'}); }"
    )
    opened.page.wait_for_function("() => !document.querySelector('.course-waits')")


def test_a_widget_of_an_earlier_session_says_that_it_waits(lab, tmp_path):
    view = {notebooks.WIDGET_VIEW: {"model_id": "gone", "version_major": 2, "version_minor": 0}}
    cell = new_code_cell("explorer()", outputs=[new_output("display_data", data=view)])
    path = tmp_path / "reopened.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[cell], metadata=kernel), path)
    page = lab(path).page
    page.evaluate(  # as the notebook of a student is, who has run it
        "() => { window.jupyterapp.shell.currentWidget.content.model.cells.get(0).trusted = true; }"
    )
    page.locator(".course-waits", has_text="Run All Cells").wait_for()
    assert page.get_by_text("model not found").count() == 0


def test_axe_finds_nothing_serious_in_jupyterlab(opened):
    opened.page.wait_for_function(f"({NAMED})() > 0")
    assert not serious(opened.page)


def test_axe_finds_nothing_serious_on_widgets_and_sees_what_is_wrong(lab, tmp_path):
    source = """
import ipywidgets, torch
from course_utils.lesson import plots
from course_utils.lesson.widgets import digit_pad, explorer

def draw(**values):
    \"\"\"Two axes.\"\"\"
    return plots.to_png(plots.subplots()[0])

display(explorer(draw, a=ipywidgets.IntSlider(), b=ipywidgets.Dropdown(options=[1, 2]), c=ipywidgets.Checkbox()))
display(digit_pad(draw, torch.rand(3, 1, 28, 28)))
"""
    path = tmp_path / "widgets.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(source)], metadata=kernel), path)
    page = lab(path).run_all().page
    assert page.get_by_role("slider", name="a", exact=True).count() == 1
    assert page.get_by_role("img", name="Two axes.").count() == 1
    assert not serious(page)
    page.evaluate("document.querySelector('.widget-dropdown select').ariaLabel = ''")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:,>')")
    assert any(fault.startswith("image-alt") for fault in serious(page))


def test_axe_finds_nothing_serious_on_slides(present):
    notebook = present("03")
    for step in notebook.walk():
        if step["at"] % 7 == 0:  # axe takes seconds
            assert not serious(notebook.page), step
