"""One's own photograph is attacked and a patch is moved, in a browser, with a cheap attack and a cheap judge."""

import time

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.command import notebooks
from course_utils.core import photos
from course_utils.core.pictures import png_of

pytestmark = pytest.mark.browser

SETUP = """\
import io
import time
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from course_utils.core.pictures import png_of
from course_utils.lesson.photo_widgets import patch_board, photo_attack

def read(content):
    try:
        with Image.open(io.BytesIO(content)) as file:
            pixels = np.asarray(file.convert("RGB").resize((224, 224))).copy()
    except OSError as error:
        raise ValueError("The file is no image; save it as JPEG or PNG.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255

def picture(*colours):
    grid = torch.tensor(colours).T.reshape(3, 2, 2)
    return interpolate(grid[None], size=(224, 224), mode="bilinear")[0]

names = [f"class {i}" for i in range(997)] + ["toaster", "gibbon", "siamang"]
photos = {
    "sky": picture([.2, .4, .9], [.3, .5, .9], [.3, .6, .3], [.2, .5, .2]),
    "sand": picture([.9, .8, .5], [.9, .7, .4], [.7, .6, .4], [.8, .6, .3]),
}
"""

ATTACK = """\
def attack(x, target):
    time.sleep(1)
    return png_of((x[0] + .05).clamp(0, 1)), f"mean {float(x.mean()):.2f}, seen as {names[target]}"

photo_attack(attack, photos, names, target=998, read=read)
"""

BOARD = """\
patches = {"noise": torch.rand(3, 50, 50, generator=torch.Generator().manual_seed(0)), "red": torch.tensor([1., 0, 0]).reshape(3, 1, 1).expand(3, 80, 60)}

times = 0

def judge(photo, patch, row, column):
    global times
    times += 1
    return f"{patch} on {photo}: {row}, {column}\\ncall {times}"

patch_board(judge, photos, patches)
"""

CAMERA = """
const canvas = document.createElement("canvas");
canvas.width = 64; canvas.height = 48;
const paint = () => { const c = canvas.getContext("2d"); c.fillStyle = "rgb(0, 128, 255)"; c.fillRect(0, 0, 64, 48); };
setInterval(paint, 50); paint();
navigator.mediaDevices.getUserMedia = async () => (window.stream = canvas.captureStream());
"""
NO_CAMERA = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def root(tmp_path):
    """A course with one lecture: the set-up and both widgets, each on a slide."""
    slide, skip = ({"slideshow": {"slide_type": kind}} for kind in ("slide", "skip"))
    cells = [
        new_markdown_cell("# Photographs", metadata=slide),
        new_code_cell(SETUP, metadata=skip),
        new_markdown_cell("## Attack", metadata=slide),
        new_code_cell(ATTACK, metadata={"jupyter": {"source_hidden": True}}),
        new_markdown_cell("## Patch", metadata=slide),
        new_code_cell(BOARD, metadata={"jupyter": {"source_hidden": True}}),
    ]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), tmp_path / "14_widgets.ipynb")
    return tmp_path


@pytest.fixture
def opened(lab, root):
    return lab(root / "14_widgets.ipynb").run_all()


def part(page, inside: str):
    """The output of the widget that holds ``inside``."""
    return page.locator(f".jp-OutputArea:has({inside})").first


def upload(page, file) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(".widget-upload").click()
    chooser.value.set_files(file)


def test_an_uploaded_photograph_and_a_typed_target_change_picture_and_label(opened, tmp_path):
    page = opened.page
    attacked = part(page, ".widget-upload")
    assert attacked.get_by_text("seen as gibbon").is_visible()
    own, text = tmp_path / "own.png", tmp_path / "text.png"
    own.write_bytes(png_of(torch.linspace(0.5, 1, 300).expand(3, 200, 300)))
    text.write_text("no image")
    start = time.monotonic()
    with opened.picture_changes(page.locator(".widget-upload")):
        upload(page, own)
        attacked.get_by_text("working …").wait_for()
    attacked.get_by_text("mean 0.75, seen as gibbon").wait_for()
    field = page.get_by_label("Target class")
    field.click()
    page.keyboard.type("toast")
    page.keyboard.press("Enter")
    attacked.get_by_text("mean 0.75, seen as toaster").wait_for()
    assert time.monotonic() - start < 5
    page.wait_for_function(
        "field => field.placeholder.includes('now toaster')", arg=field.element_handle()
    )
    assert field.input_value() == ""
    opened.screenshot("attack", of=attacked)
    upload(page, text)
    attacked.get_by_text("The file is no image; save it as JPEG or PNG.").wait_for()
    attacked.locator("img.widget-image").wait_for(state="hidden")
    attacked.get_by_label("Photograph").select_option("sand")
    attacked.get_by_text("seen as toaster").wait_for()
    attacked.locator("img.widget-image").wait_for(state="visible")


@pytest.fixture
def with_the_network(lab, tmp_path):
    """The set-up of lecture 14 and its attack on one's own photograph."""
    cells = notebooks.code_cells(notebooks.read(notebooks.find(["14"])[0]))
    chosen = [cell for cell in cells if cell.id in ("14-setup", "14-photo-attack")]
    nbformat.write(new_notebook(cells=chosen, metadata=KERNEL), tmp_path / "14_attack.ipynb")
    return lab(tmp_path / "14_attack.ipynb").run_all()


def test_the_lecture_s_own_attack_answers_within_five_seconds(with_the_network, tmp_path):
    pytest.importorskip("timm")
    page, own = with_the_network.page, tmp_path / "own.png"
    attacked = part(page, ".widget-upload")
    attacked.get_by_text("then as gibbon").wait_for()
    own.write_bytes(png_of(photos.load_photos().x[4]))
    start = time.monotonic()
    with with_the_network.picture_changes(page.locator(".widget-upload")):
        upload(page, own)
        attacked.get_by_text("working …").wait_for()
    attacked.get_by_text("then as gibbon").wait_for()
    assert time.monotonic() - start < 5
    page.get_by_label("Target class").click()
    page.keyboard.type("toaster")
    start = time.monotonic()
    page.keyboard.press("Enter")
    attacked.get_by_text("then as toaster").wait_for()
    assert time.monotonic() - start < 5
    with_the_network.screenshot("own photograph", of=attacked)


def test_a_photograph_is_taken_with_the_camera(page, lab, root):
    page.add_init_script(CAMERA)
    notebook = lab(root / "14_widgets.ipynb").run_all()
    use = page.get_by_role("button", name="Use the camera")
    take = page.get_by_role("button", name="Take the photograph")
    use.click()
    take.wait_for()
    notebook.screenshot("camera", of=part(page, ".widget-upload"))
    page.get_by_role("button", name="Cancel").click()
    use.wait_for()
    assert page.evaluate("stream.getTracks()[0].readyState") == "ended"
    use.focus()
    page.keyboard.press("Enter")  # JupyterLab's own shortcut for Enter must not take it
    take.wait_for()
    page.keyboard.press("Enter")
    page.get_by_text("mean 0.50, seen as gibbon").wait_for()
    assert page.evaluate("stream.getTracks()[0].readyState") == "ended"
    assert page.locator(".photo-camera video:visible").count() == 0


def test_the_patch_is_moved_by_mouse_and_by_keyboard(opened):
    page, mouse, press = opened.page, opened.page.mouse, opened.page.keyboard.press
    board = page.locator(".patch-board")
    photo, patch = (
        board.locator(".patch-board-photo"),
        page.get_by_role("slider", name="Patch: drag"),
    )
    caption = board.locator("[aria-live=polite]")
    caption.get_by_text("noise on sky: 87, 87").wait_for()
    board.scroll_into_view_if_needed()
    box = patch.bounding_box()
    assert photo.bounding_box()["width"] == 448 and box["width"] == 100  # twice its size
    start, calls = time.monotonic(), int(caption.inner_text().split()[-1])
    mouse.move(box["x"] + 10, box["y"] + 20)
    mouse.down()
    for _ in range(15):
        mouse.move(box["x"] + 50, box["y"] - 40, steps=5)
        mouse.move(box["x"] + 90, box["y"] + 120, steps=5)
        page.wait_for_timeout(100)
    assert patch.bounding_box()["x"] == pytest.approx(box["x"] + 80, abs=1)  # follows at once
    seconds = time.monotonic() - start
    mouse.up()
    caption.get_by_text("noise on sky: 137, 127").wait_for()
    told = int(caption.inner_text().split()[-1]) - calls
    assert 3 <= told <= 5 * seconds + 2  # while it is dragged, and not too often
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight"):
        press(key)
    caption.get_by_text("noise on sky: 129, 120").wait_for()
    opened.screenshot("board", of=part(page, ".patch-board"))
    for _ in range(9):
        press("ArrowDown")
    caption.get_by_text("noise on sky: 174, 120").wait_for()  # and no further
    assert page.evaluate("document.activeElement.role") == "slider"


def test_photograph_and_patch_are_chosen_and_the_patch_comes_to_a_click(opened):
    page = opened.page
    played = part(page, ".patch-board")
    caption, photo = played.locator("[aria-live=polite]"), played.locator(".patch-board-photo")
    played.get_by_label("Photograph").select_option("sand")
    caption.get_by_text("noise on sand: 87, 87").wait_for()
    played.get_by_label("Patch", exact=True).select_option("red")
    caption.get_by_text("red on sand: 87, 87").wait_for()
    assert photo.get_attribute("alt") == "sand"
    photo.click(position={"x": 100, "y": 120})  # twice as large as the photograph
    caption.get_by_text("red on sand: 20, 20").wait_for()
    photo.click(position={"x": 446, "y": 2})
    caption.get_by_text("red on sand: 0, 164").wait_for()
    opened.screenshot("board at the edge", of=played)
    page.wait_for_timeout(600)  # names come when the page has been quiet for a moment
    faults = pytest.importorskip("axe_playwright_python.sync_playwright").Axe().run(page)
    grave = [f for f in faults.response["violations"] if f["impact"] in ("serious", "critical")]
    assert not grave


def test_both_play_on_a_slide_and_a_browser_without_camera_says_so(page, present, root):
    page.add_init_script(NO_CAMERA)
    notebook = present("14", COURSE_LECTURES=str(root)).ready()
    *_, step = notebook.walk(until=".widget-upload")
    assert step["overflow"] <= 0
    assert page.get_by_text("This browser gives no camera here.").is_visible()
    assert page.locator(".photo-camera button:visible").count() == 0
    notebook.screenshot("attack")
    *_, step = notebook.walk(until=".patch-board")
    assert step["overflow"] <= 0
    page.get_by_role("slider", name="Patch: drag it").focus()
    page.keyboard.press("ArrowRight")  # goes to the patch, not to the next slide
    page.get_by_text("noise on sky: 87, 95").wait_for()
    assert notebook.step()["at"] == step["at"]
    notebook.screenshot("board")
