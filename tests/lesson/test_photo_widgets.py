"""Widgets for photographs without a browser, which tests/browser/ has."""

import base64
import io
import shutil
import subprocess
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from course_utils.core.pictures import png_of
from course_utils.lesson import photo_widgets
from course_utils.lesson.photo_widgets import (
    OWN,
    Camera,
    PatchBoard,
    data_url,
    find_class,
    patch_board,
    photo_attack,
    unlike,
)

PNG = b"\x89PNG "  # nobody looks inside
NAMES = ["tabby cat", "gibbon", "toaster", "tiger cat", "crane", "crane"]
PHOTOS = {"black": torch.zeros(3, 4, 6), "white": torch.ones(3, 4, 6)}


def read(content: bytes) -> torch.Tensor:
    assert isinstance(content, bytes)
    if content == b"no image":
        raise ValueError("The file is no <image>; save it as JPEG or PNG.")
    return torch.full((1, 3, 4, 6), len(content) / 10)


@pytest.fixture
def played():
    """A ``photo_attack`` in its parts, and what its attack was called with."""
    calls = []

    def attack(x, target):
        """A photograph, attacked."""
        assert x.shape == (1, 3, 4, 6)
        calls.append((round(float(x.mean()), 3), target))
        return PNG + str(len(calls)).encode(), f"seen as {NAMES[target]}"

    box = photo_attack(attack, PHOTOS, NAMES, target=1, read=read)
    source, search, picture = box.children
    return source, search, picture, calls


def upload(content: bytes) -> dict:
    """As the browser sends a file."""
    file = {"name": "a", "type": "", "size": 1, "last_modified": 0, "content": memoryview(content)}
    return {"value": [file]}


def test_the_attack_is_drawn_at_once_and_after_every_choice(played):
    source, search, picture, calls = played
    assert calls == [(0, 1)] and bytes(picture.image.value) == PNG + b"1"
    source.titles.value = "white"
    search.value = "toaster"
    assert calls == [(0, 1), (1, 1), (1, 2)]
    assert picture.caption.value == "seen as toaster"


def test_a_file_or_a_photograph_of_the_camera_is_attacked(played):
    source, _, picture, calls = played
    source.upload.set_state(upload(b"12345"))
    assert source.titles.value == OWN and calls[-1] == (0.5, 1)
    source.upload.set_state(upload(b"123"))
    assert calls[-1] == (0.3, 1)
    source.camera.set_state({"photo": memoryview(b"12")})
    assert calls[-1] == (0.2, 1) and len(calls) == 4
    source.titles.value = "black"
    source.titles.value = OWN  # it is kept
    assert calls[-2:] == [(0, 1), (0.2, 1)]
    source.upload.set_state(upload(b"no image"))
    assert "The file is no &lt;image&gt;; save it as" in picture.error.value
    assert picture.image.layout.display == "none"
    source.upload.set_state(upload(b"1"))
    assert picture.image.layout.display is None and picture.error.value == ""


def test_without_a_photograph_of_ones_own_the_cure_is_shown(played):
    source, _, picture, calls = played
    source.titles.value = OWN
    assert "no photograph of your own yet; upload one" in picture.error.value
    assert len(calls) == 1


def test_the_field_is_empty_for_the_next_search_and_says_what_holds(played):
    source, search, picture, calls = played
    assert search.placeholder.startswith("now gibbon;")
    search.value = " TOAST "
    assert calls[-1] == (0, 2) and search.value == ""
    assert search.placeholder.startswith("now toaster;")
    search.value = "cat"
    assert "part of tabby cat, tiger cat; type one" in picture.error.value
    assert picture.image.layout.display == "none" and search.value == ""
    source.titles.value = "white"  # goes on with the last class that was one
    assert calls[-1] == (1, 2) and picture.image.layout.display is None


def test_working_is_shown_meanwhile(played):
    source, _, picture, calls = played
    during = []

    def attack(*_):
        layout = picture.caption.layout
        during.append((picture.caption.value, layout.display, picture.error.layout.display))
        return PNG, "done"

    picture.draw = attack
    source.titles.value = "white"
    assert during == [("working …", None, "none")] and picture.caption.value == "done"


def test_own_photographs_are_read_as_the_classifier_takes_them(monkeypatch):
    monkeypatch.setattr(photo_widgets, "read_photo", lambda content: torch.zeros(1, 3, 2, 2))
    shapes = []
    box = photo_attack(lambda x, k: shapes.append(x.shape) or PNG, PHOTOS, NAMES, target=1)
    box.children[0].upload.set_state(upload(b"1"))
    assert shapes == [(1, 3, 4, 6), (1, 3, 2, 2)]


def test_several_classes_of_one_name_are_told_apart():
    names = unlike(NAMES)
    assert names[-2:] == ["crane (4)", "crane (5)"] and names[:4] == NAMES[:4]
    assert [find_class(name, names) for name in names] == [*range(6)]


@pytest.mark.parametrize(
    ("text", "words"),
    [("dragon", "No class is called 'dragon'"), ("a", "tabby cat, toaster, tiger cat, crane")],
)
def test_what_is_no_class_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        find_class(text, NAMES)


def test_a_name_that_is_part_of_another_is_found():
    assert find_class("Wolf", ["wolf spider", "wolf"]) == 1
    with pytest.raises(ValueError, match="wolf 3, wolf 4 and 3 more"):
        find_class("wolf", [f"wolf {i}" for i in range(8)])


def test_photo_attack_refuses_bad_input():
    for target in (6, -1, "gibbon"):
        with pytest.raises(ValueError, match="target is .*; give a class, 0 to 5"):
            photo_attack(lambda x, k: PNG, PHOTOS, NAMES, target=target)
    for photos, words in (
        ({}, "photos is empty"),
        ({"a": torch.zeros(1, 3, 4, 4)}, r"photos\['a'\] is \(1, 3, 4, 4\)"),
        ({"a": torch.zeros(1, 4, 4)}, r"give a colour image"),
        ({"a": torch.full((3, 4, 4), 255.0)}, r"photos\['a'\] reaches from 255"),
        ({"a": "cat.png"}, "is str; give"),
    ):
        with pytest.raises(ValueError, match=words):
            photo_attack(lambda x, k: PNG, photos, NAMES, target=1)
        with pytest.raises(ValueError, match=words.replace("photos", "patches")):
            patch_board(lambda *place: "", PHOTOS, photos)


# --- the patch

SMALL, LARGE = torch.rand(3, 2, 2), torch.rand(3, 4, 5)


def test_a_png_holds_the_rounded_image():
    image = torch.rand(3, 4, 6)
    prefix, text = data_url(image).split(",")
    assert prefix == "data:image/png;base64" and base64.b64decode(text) == png_of(image)
    with Image.open(io.BytesIO(png_of(image))) as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy())
    assert torch.equal(pixels.permute(2, 0, 1), (image * 255).round().byte())


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_the_patch_stays_inside(row, column):
    board = PatchBoard()
    board.lay(PHOTOS["black"], SMALL)
    board.row, board.column = row, column
    assert (board.row, board.column) == (max(0, min(row, 2)), max(0, min(column, 4)))
    board.set_state({"row": row, "column": column})  # as the browser sends it
    assert 0 <= board.row <= 2 and 0 <= board.column <= 4
    board.lay(PHOTOS["black"], LARGE)
    assert board.row == 0 and 0 <= board.column <= 1


def test_the_patch_is_no_larger_than_the_photograph():
    with pytest.raises(ValueError, match="patch has 5 × 2 pixels and the photograph 4 × 6; give"):
        PatchBoard().lay(PHOTOS["black"], torch.zeros(3, 5, 2))


def test_the_board_asks_once_for_every_place_and_choice():
    calls = []

    def judge(*place):
        calls.append(place)
        return f"toaster {len(calls)}"

    box = patch_board(judge, PHOTOS, {"small": SMALL, "large": LARGE})
    (photo, patch), board = box.children[0].children, box.children[1]
    assert calls == [("black", "small", 1, 2)] and board.caption == "toaster 1"
    assert board.patch == data_url(SMALL) and board.patch_size == (2, 2)
    board.set_state({"row": 2, "column": 4})  # a diagonal move
    assert calls[1:] == [("black", "small", 2, 4)] and board.caption == "toaster 2"
    photo.value = "white"
    assert board.photo == data_url(PHOTOS["white"]) and board.title == "white"
    patch.value = "large"  # is moved inside
    assert calls[2:] == [("white", "small", 2, 4), ("white", "large", 0, 1)]
    assert board.caption == "toaster 4"


def test_an_error_of_the_judge_is_shown_in_place():
    def judge(photo, patch, row, column):
        if row == 0:
            raise ValueError("no <row> 0")
        return "fine"

    board = patch_board(judge, PHOTOS, {"small": SMALL}).children[1]
    assert board.caption == "fine"
    board.row = 0
    assert board.caption == "ValueError: no <row> 0"
    board.row = 1
    assert board.caption == "fine"


# --- the parts for the browser, which tests/browser drives

FOLDER = Path(photo_widgets.__file__).parent
SHEET = FOLDER / "photo_widgets.css"
SCRIPTS = {PatchBoard: FOLDER / "patch_board.js", Camera: FOLDER / "camera.js"}


@pytest.mark.parametrize("widget", SCRIPTS, ids=lambda widget: widget.__name__)
def test_script_is_a_module_and_belongs_to_its_widget(widget, tmp_path):
    made = widget()
    assert str(made._esm) == SCRIPTS[widget].read_text(encoding="utf-8")
    assert str(made._css) == SHEET.read_text(encoding="utf-8")
    if not shutil.which("node"):
        pytest.skip("no node here")
    module = tmp_path / "script.mjs"  # by this name node knows a module
    shutil.copyfile(SCRIPTS[widget], module)
    done = subprocess.run(["node", "--check", module], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_and_style_pass_a_linter():
    if not shutil.which("biome"):
        pytest.skip("no biome here")
    command = ["biome", "lint", "--error-on-warnings", *SCRIPTS.values(), SHEET]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
