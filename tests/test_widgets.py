"""Widgets without a browser: their callbacks are called directly. The browser's part is in tests/browser/."""

import hypothesis.strategies as st
import ipywidgets
import pytest
import torch
from hypothesis import given

from course_utils.widgets import DigitPad, Picture, centre, digit_pad, explorer

PNG = b"\x89PNG "  # nobody looks inside


def picture_of(box: ipywidgets.VBox) -> Picture:
    """The picture in an ``explorer`` or a ``digit_pad``."""
    if isinstance(box, Picture):
        return box
    for child in reversed(getattr(box, "children", ())):
        if found := picture_of(child):
            return found
    return None


def test_explorer_draws_once_and_on_every_change():
    calls = []

    def draw(step, target):
        """A digit being made."""
        calls.append((step, target))
        return PNG + f"{step} {target}".encode()

    slider, dropdown = ipywidgets.IntSlider(3), ipywidgets.Dropdown(options=[0, 1], description="Digit to imitate")
    picture = picture_of(explorer(draw, step=slider, target=dropdown))
    assert calls == [(3, 0)]
    slider.value = 4
    dropdown.value = 1
    assert calls == [(3, 0), (4, 0), (4, 1)]
    assert bytes(picture.image.value) == PNG + b"4 1"
    assert "clip-path" in picture.caption.value and "A digit being made." in picture.caption.value  # for screen readers
    assert (slider.description, dropdown.description) == ("step", "Digit to imitate")


def test_caption_is_shown():
    slider = ipywidgets.IntSlider(3)
    picture = picture_of(explorer(lambda step: (PNG, f"after {step} steps: 7 < 9"), step=slider))
    assert picture.caption.value == "after 3 steps: 7 &lt; 9"
    assert picture.caption.layout.display is None


def test_an_error_is_shown_in_place_of_the_picture_and_goes_away():
    def draw(eps):
        if eps > 1:
            raise ValueError("eps is 2; give at most <1>.")
        return PNG

    slider = ipywidgets.FloatSlider(0.5, max=3)
    picture = picture_of(explorer(draw, eps=slider))
    assert picture.error.layout.display == "none"
    slider.value = 2
    assert "ValueError: eps is 2; give at most &lt;1&gt;." in picture.error.value
    assert (picture.error.layout.display, picture.image.layout.display) == (None, "none")
    slider.value = 1
    assert (picture.error.layout.display, picture.image.layout.display) == ("none", None)


def test_explorer_refuses_what_has_no_value():
    with pytest.raises(TypeError, match="eps is float; give a control"):
        explorer(lambda eps: PNG, eps=0.3)
    with pytest.raises(TypeError, match="eps is Layout"):
        explorer(lambda eps: PNG, eps=ipywidgets.Layout())


def blob(top: int, left: int, height: int, width: int) -> torch.Tensor:
    image = torch.zeros(28, 28)
    window = image[top : top + height, left : left + width]
    window.copy_(torch.linspace(0.2, 1, window.numel()).reshape(window.shape))
    return image


@given(st.integers(0, 27), st.integers(0, 27), st.integers(1, 28), st.integers(1, 28))
def test_centre_moves_the_ink_and_keeps_it(top, left, height, width):
    image = blob(top, left, height, width)
    centred = centre(image)
    assert torch.equal(centred[centred > 0], image[image > 0])  # the same ink in the same order: a shift
    assert torch.equal(centre(centred), centred)
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    for index, occupied in ((rows, centred.any(1)), (columns, centred.any(0))):
        mass = (centred * index).sum() / centred.sum()
        off = float(mass) - 14
        at_the_edge = occupied[0] if off > 0 else occupied[-1]
        assert abs(off) <= 0.501 or at_the_edge


def test_centre_keeps_an_empty_image_and_wants_one_image():
    assert torch.equal(centre(torch.zeros(28, 28)), torch.zeros(28, 28))
    with pytest.raises(ValueError, match=r"image has shape \(1, 1, 28, 28\); give one image"):
        centre(torch.zeros(1, 1, 28, 28))


def test_pad_gives_a_centred_image():
    pad = DigitPad()
    assert pad.image.shape == (1, 1, 28, 28) and not pad.image.any()
    pad.pixels = (blob(0, 0, 4, 4) * 255).round().int().flatten().tolist()
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
    assert picture.caption.layout.display == "none"  # nothing drawn yet
    pad.pixels = (blob(4, 12, 20, 3) * 255).round().int().flatten().tolist()
    assert len(seen) == 2 and seen[-1].shape == (1, 1, 28, 28)
    assert bytes(picture.image.value) == PNG + b"2"
    assert picture.caption.layout.display is None and "This is a 1" in picture.caption.value
    pad.pixels = [0] * 784
    assert picture.caption.layout.display == "none"
