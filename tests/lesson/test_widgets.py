"""Widgets without a browser, which tests/browser/ has."""

import gc
import shutil
import subprocess
from pathlib import Path

import hypothesis.strategies as st
import ipywidgets
import pytest
import torch
from hypothesis import given
from ipywidgets import IntSlider

from course_utils.lesson import widgets
from course_utils.lesson.widgets import DigitPad, Picture, centre, digit_pad, explorer

PNG = b"\x89PNG "  # nobody looks inside


def picture_of(box: ipywidgets.VBox) -> Picture:
    """The picture in an ``explorer`` or a ``digit_pad``."""
    while not isinstance(box, Picture):
        box = box.children[-1]
    return box


def test_explorer_draws_once_and_on_every_change():
    calls = []

    def draw(step, target):
        """A digit being made."""
        calls.append((step, target))
        return PNG + f"{step} {target}".encode()

    slider = IntSlider(3)
    dropdown = ipywidgets.Dropdown(options=[0, 1], description="Digit to imitate")
    picture = picture_of(explorer(draw, step=slider, target=dropdown))
    assert calls == [(3, 0)]
    slider.value, dropdown.value = 4, 1
    assert calls == [(3, 0), (4, 0), (4, 1)]
    assert bytes(picture.image.value) == PNG + b"4 1"
    # for screen readers
    assert "clip-path" in picture.caption.value and "A digit being made." in picture.caption.value
    assert (slider.description, dropdown.description) == ("step", "Digit to imitate")


def test_caption_is_shown():
    box = explorer(lambda step: (PNG, f"after {step} steps: 7 < 9"), step=IntSlider(3))
    picture = picture_of(box)
    assert picture.caption.value == "after 3 steps: 7 &lt; 9"
    assert picture.caption.layout.display is None


def test_an_error_is_shown_in_place_of_the_picture_and_goes_away():
    def draw(eps):
        if eps > 1:
            raise ValueError("eps is 2; give at most <1>.")
        return PNG

    slider = ipywidgets.FloatSlider(0.5, max=3)
    picture = picture_of(explorer(draw, eps=slider))

    def displays():
        return picture.error.layout.display, picture.image.layout.display

    assert displays() == ("none", None)
    slider.value = 2
    assert "ValueError: eps is 2; give at most &lt;1&gt;." in picture.error.value
    assert displays() == (None, "none")
    slider.value = 1
    assert displays() == ("none", None) and picture.error.value == ""


def test_a_picture_that_ends_the_program_ends_only_itself():
    def draw(error):
        raise error

    for error, text in ((SystemExit("enough"), "SystemExit: enough"), (OSError("x"), "OSError: x")):
        picture = Picture(draw)
        picture.show(error)
        assert text in picture.error.value
    with pytest.raises(KeyboardInterrupt):
        Picture(draw).show(KeyboardInterrupt())


def test_explorer_refuses_what_has_no_value():
    for eps, words in ((0.3, "float; give a control"), (ipywidgets.Layout(), "Layout")):
        with pytest.raises(TypeError, match=f"eps is {words}"):
            explorer(lambda eps: PNG, eps=eps)


def ink(image: torch.Tensor) -> list[int]:
    """What the pad would send."""
    return (image * 255).round().int().flatten().tolist()


def blob(top: int, left: int, height: int, width: int) -> torch.Tensor:
    image = torch.zeros(28, 28)
    window = image[top : top + height, left : left + width]
    window.copy_(torch.linspace(0.2, 1, window.numel()).reshape(window.shape))
    return image


@given(st.integers(0, 27), st.integers(0, 27), st.integers(1, 28), st.integers(1, 28))
def test_centre_moves_the_ink_and_keeps_it(top, left, height, width):
    image = blob(top, left, height, width)
    centred = centre(image)
    # the same ink in the same order: a shift
    assert torch.equal(centred[centred > 0], image[image > 0])
    assert torch.equal(centre(centred), centred)
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    for index, occupied in ((rows, centred.any(1)), (columns, centred.any(0))):
        off = float((centred * index).sum() / centred.sum()) - 14
        at_the_edge = occupied[0] if off > 0 else occupied[-1]
        assert abs(off) <= 0.501 or at_the_edge


def test_centre_keeps_an_empty_image_and_wants_one_image():
    assert not centre(torch.zeros(28, 28)).any()
    with pytest.raises(ValueError, match=r"image has shape \(1, 1, 28, 28\); give one image"):
        centre(torch.zeros(1, 1, 28, 28))


def test_pad_gives_a_centred_image():
    pad = DigitPad()
    assert pad.image.shape == (1, 1, 28, 28) and not pad.image.any()
    pad.pixels = ink(blob(0, 0, 4, 4))
    assert pad.image.max() == 1
    assert pad.image[0, 0, 12:16, 12:16].all() and not pad.image[0, 0, :4].any()


@pytest.mark.parametrize("pixels", [[0] * 783, [256] * 784, [-1] * 784, [0.5] * 784])
def test_pad_refuses_other_pixels(pixels):
    with pytest.raises(Exception, match="pixels"):
        DigitPad().pixels = pixels


def test_digit_pad_classifies_what_is_drawn():
    seen = []

    def classify(x):
        seen.append(x)
        return PNG + str(len(seen)).encode(), "This is a 1"

    box = digit_pad(classify)
    pad, picture = box.children[1].children
    assert picture.layout.display == "none" and not seen  # nothing drawn yet
    pad.pixels = ink(blob(4, 12, 20, 3))
    assert len(seen) == 1 and seen[-1].shape == (1, 1, 28, 28)
    assert bytes(picture.image.value) == PNG + b"1"
    assert picture.layout.display is None and "This is a 1" in picture.caption.value
    pad.pixels = [0] * 784
    assert picture.layout.display == "none" and len(seen) == 1


def test_a_slider_puts_a_test_image_on_the_pad():
    seen = []
    examples = torch.stack([centre(blob(4, 9, 20, k + 3))[None] for k in range(3)])
    box = digit_pad(lambda x: seen.append(x) or PNG, examples)
    _, slider, row = box.children
    slider.value = 2
    assert row.children[0].pixels == ink(examples[2, 0])
    assert torch.allclose(seen[-1], examples[2:], atol=1 / 255)


def test_no_garbage_is_collected_while_a_picture_is_drawn():
    collecting = []
    box = explorer(lambda a: collecting.append(gc.isenabled()) or PNG, a=ipywidgets.IntSlider())
    box.children[0].children[0].value = 5
    assert collecting == [False, False] and gc.isenabled()
    box.children[1].draw = lambda a: 1 / 0
    box.children[0].children[0].value = 6
    assert gc.isenabled()


# --- the pad's part for the browser, which tests/browser drives

SCRIPT, SHEET = (Path(widgets.__file__).with_name(f"digit_pad.{kind}") for kind in ("js", "css"))


def test_pad_takes_script_and_style_from_their_files():
    pad = DigitPad()
    assert str(pad._esm) == SCRIPT.read_text(encoding="utf-8")
    assert str(pad._css) == SHEET.read_text(encoding="utf-8")
    assert f"const CELLS = {widgets.SIDE};" in str(pad._esm)


def checked(*command) -> str:
    """What a checker of JavaScript or CSS complains about."""
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} here")
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    return done.stdout + done.stderr if done.returncode else ""


def test_script_is_a_module(tmp_path):
    module = tmp_path / "digit_pad.mjs"  # by this name node knows a module
    shutil.copyfile(SCRIPT, module)
    assert not checked("node", "--check", module)
    module.write_text("export default 1; let let = 2;")
    assert "SyntaxError" in checked("node", "--check", module)


def test_script_and_style_pass_a_linter():
    assert not checked("biome", "lint", "--error-on-warnings", SCRIPT, SHEET)
