"""Slides: every step of every lecture fits the screen; keys do what the help says, and no harm.

Contact sheets of all steps go to ``build/screenshots/slides/``.
"""

import io

import pytest
from PIL import Image

from course_utils.command import notebooks, slides

from .conftest import SCREENSHOTS, Notebook, serve

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SCREENS = ((1280, 720), (1920, 1080))
SMALLEST = 0.5  # of the sizes in slides.css: a gallery of twelve rows
SHEET = (4, 480, 270)  # columns, and the size of a step
LECTURES = [path.name[:2] for path in notebooks.lectures()]


@pytest.fixture(scope="session")
def _stage(tmp_path_factory, jupyter_environment, browser):
    """A server with all committed lectures as slides."""
    root = tmp_path_factory.mktemp("slides")
    for path in notebooks.lectures():
        slides.write_slides(notebooks.read(path), root / path.name)
    with serve(root, jupyter_environment, "lab", "presenting") as url:
        yield url


def contact_sheet(pictures: list[bytes]) -> Image.Image:
    columns, width, height = SHEET
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 8), rows * (height + 8)), "grey")
    for i, png in enumerate(pictures):
        small = Image.open(io.BytesIO(png)).convert("RGB").resize((width, height))
        sheet.paste(small, (i % columns * (width + 8), i // columns * (height + 8)))
    return sheet


@pytest.mark.parametrize("number", LECTURES)
def test_every_step_fits_every_screen(_stage, page, number):
    (path,) = notebooks.find([number])
    page.set_viewport_size(dict(zip(("width", "height"), SCREENS[0], strict=True)))
    page.goto(f"{_stage}/lab/tree/{path.name}?token=t&reset")
    page.wait_for_selector(".course-shown h1")
    notebook = Notebook(page, f"{number} slides", wait=False)
    page.evaluate("window.courseSlides.panel.sessionContext.shutdown()")  # looks, runs nothing
    page.wait_for_timeout(1000)
    pictures, wrong = [], []
    for width, height in SCREENS:
        page.set_viewport_size({"width": width, "height": height})
        for step in notebook.walk():
            if step["overflow"] > 0 or step["zoom"] < SMALLEST - 0.01:
                wrong.append(f"{width}×{height}, step {step['at'] + 1}: {step}")
            if (width, height) == SCREENS[0]:
                pictures.append(page.screenshot(type="jpeg"))
    (SCREENSHOTS / "slides").mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures).save(SCREENSHOTS / "slides" / f"{number}.jpg")
    assert not wrong, "\n".join(wrong)
    shown = {
        cell for groups in page.evaluate("window.courseSlides.steps.flat()") for cell in groups
    }
    kinds = page.evaluate("window.courseSlides.types")
    assert shown == {i for i, kind in enumerate(kinds) if kind not in ("skip", "notes")}


def test_a_step_that_does_not_fit_is_seen(_stage, page):
    page.goto(f"{_stage}/lab/tree/{notebooks.find(['00'])[0].name}?token=t&reset")
    page.wait_for_selector(".course-shown h1")
    notebook = Notebook(page, "tall", wait=False)
    page.evaluate("document.querySelector('.course-shown').style.minHeight = '3000px'")
    page.wait_for_timeout(500)
    step = notebook.step()
    assert step["overflow"] > 0 and step["zoom"] < SMALLEST
