"""Things to play with: controls that redraw a picture, and a pad to draw digits on.

A lecture gives a plain function from values to a picture, which can be tested without a notebook.
All that concerns Jupyter stays here. Pictures are shown by ``widgets.Image``: it does not flicker,
and it works wherever the output of a cell goes.
"""

import gc
import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anywidget
import ipywidgets
import torch
import traitlets
from torch import Tensor

SIDE = 28  # pixels, as in MNIST
Drawing = bytes | tuple[bytes, str]


@contextmanager
def collect_afterwards() -> Iterator[None]:
    """Keeps garbage collection out of a drawing: it takes up to a third of a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Picture(ipywidgets.VBox):
    """A picture made by a plain function, under its caption; an error is shown in its place.

    ``draw`` returns PNG bytes, or PNG bytes and a caption in plain text. ``widgets.Image`` has no
    alternative text (and ipywidgets 8 breaks on one with a tooltip), so that screen readers get the
    caption or else the first line of ``draw``'s docstring.
    """

    def __init__(self, draw: Callable[..., Drawing]):
        self.draw = draw
        self.error = ipywidgets.HTML()
        self.caption = ipywidgets.HTML()
        fits_on_a_slide = {"max_width": "100%", "max_height": "75vh"}
        self.image = ipywidgets.Image(format="png", layout=fits_on_a_slide)
        super().__init__(
            [self.error, self.caption, self.image],
            layout={"overflow": "hidden", "align_items": "flex-start"},
        )

    def show(self, *args, **values) -> None:
        """Draws anew. Jupyter hides exceptions of callbacks in a log, so they are shown here."""
        failure = ""
        caption = ""
        try:
            with collect_afterwards():
                drawn = self.draw(*args, **values)
                png, caption = drawn if isinstance(drawn, tuple) else (drawn, "")
                self.image.value = png
        except (Exception, SystemExit) as error:  # of any type: students must see it
            failure = html.escape(f"{type(error).__name__}: {error}")
            failure = f"<b>This picture could not be drawn.</b> {failure}"
        self.error.value = failure
        self.caption.value = html.escape(caption) or self.hidden_description()
        set_visible(self.error, bool(failure))
        set_visible(self.caption, not failure)
        set_visible(self.image, not failure)  # an old picture would look like an answer

    def hidden_description(self) -> str:
        """Returns the first line of ``draw``'s docstring, for screen readers only."""
        text = html.escape((self.draw.__doc__ or "").strip().partition("\n")[0])
        return f'<span style="position: absolute; clip-path: inset(50%)">{text}</span>'


def set_visible(widget: ipywidgets.DOMWidget, visible: bool) -> None:
    widget.layout.display = None if visible else "none"


class Choices(ipywidgets.VBox):
    """Choices to click on, above a line of text: ``say`` shows it. ``chosen(choice)`` is called."""

    def __init__(self, choices: tuple[str, ...], first: str | None, chosen: Callable[[str], None]):
        self.buttons = ipywidgets.RadioButtons(options=choices, layout={"width": "auto"})
        self.buttons.index = choices.index(first) if first in choices else None
        self.line = ipywidgets.Label()
        super().__init__([self.buttons, self.line])
        self.buttons.observe(lambda change: chosen(change["new"]), "value")

    def say(self, text: str) -> None:
        self.line.value = text


def explorer(draw: Callable[..., Drawing], **controls: ipywidgets.ValueWidget) -> ipywidgets.VBox:
    """Returns controls above a picture that follows them: ``explorer(draw, eps=FloatSlider(…))``.

    ``draw(eps=…)`` is called at once and whenever a control changes; it returns PNG bytes, or PNG
    bytes and a caption. Labels are the controls' ``description``, else the keywords. The result has
    the ``Picture`` as its last child.
    """
    picture = Picture(draw)

    def update(_change=None) -> None:
        picture.show(**{name: control.value for name, control in controls.items()})

    for name, control in controls.items():
        if not isinstance(control, ipywidgets.Widget) or not control.has_trait("value"):
            raise TypeError(
                f"{name} is {type(control).__name__}; "
                "give a control with a value, such as ipywidgets.IntSlider()."
            )
        lay_out(name, control)
        control.observe(update, "value")
    update()
    # what is there now is left out of collections to come: they are then three times as quick
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    row = ipywidgets.Box(
        list(controls.values()), layout={"flex_flow": "row wrap", "align_items": "center"}
    )
    return ipywidgets.VBox([row, picture])


def lay_out(name: str, control: ipywidgets.ValueWidget) -> None:
    """Gives a control its label, a width that does not cut the label, and a margin."""
    if control.has_trait("description"):
        control.description = control.description or name.replace("_", " ")
        # the default width cuts labels of more than a dozen letters
        control.style.description_width = "initial"
        control.layout.width = control.layout.width or f"calc(16em + {len(control.description)}ch)"
    control.layout.margin = control.layout.margin or "2px 16px 2px 2px"


def centre(image: Tensor) -> Tensor:
    """Shifts ``image`` (H, W), bright ink on black, until its centre of mass is in the middle.

    In MNIST the centre of mass is within half a pixel of index (14, 14), measured on all test
    images. The shift is a whole number of pixels and stops where ink would leave the image. An
    empty image stays as it is.
    """
    if image.dim() != 2:
        raise ValueError(f"image has shape {tuple(image.shape)}; give one image of shape (H, W).")
    if not image.any():
        return image
    for axis, size in enumerate(image.shape):
        ink = image.sum(dim=1 - axis)
        inked = ink.nonzero().flatten()
        mass = (ink * torch.arange(size)).sum() / ink.sum()
        shift = round(size / 2 - float(mass))
        shift = max(-int(inked[0]), min(shift, size - 1 - int(inked[-1])))
        image = image.roll(shift, dims=axis)
    return image


class DigitPad(anywidget.AnyWidget):
    """A black square to draw a digit on, with mouse, pen or finger.

    ``pixels`` holds 784 whole numbers from 0 to 255, row by row. While somebody draws, it changes
    about ten times a second; when it is set from Python, the pad shows it.
    """

    pixels = traitlets.List(
        traitlets.Int(min=0, max=255), [0] * SIDE**2, minlen=SIDE**2, maxlen=SIDE**2
    ).tag(sync=True)

    _esm = Path(__file__).with_name("digit_pad.js")
    _css = Path(__file__).with_name("digit_pad.css")

    @property
    def image(self) -> Tensor:
        """What is drawn, centred like MNIST: (1, 1, 28, 28) in [0, 1]."""
        pixels = torch.tensor(self.pixels).reshape(SIDE, SIDE)
        return centre(pixels / 255).reshape(1, 1, SIDE, SIDE)


def digit_pad(
    classify: Callable[[Tensor], Drawing], examples: Tensor | None = None
) -> ipywidgets.VBox:
    """Returns a ``DigitPad`` beside the picture ``classify(x)``, x (1, 1, 28, 28) in [0, 1].

    ``classify`` returns PNG bytes, or PNG bytes and a caption such as "This is a 7 (98 %)". A
    slider puts one of ``examples`` (N, 1, 28, 28) in [0, 1] on the pad, for those who cannot draw.
    An empty pad has no picture: what a network says about it means nothing.
    """
    pad = DigitPad()
    picture = Picture(classify)
    picture.layout.flex = "1 1 360px"  # beside the pad as long as there is room
    picture.layout.min_width = "0"
    hint = ipywidgets.HTML("Draw one digit, as large as the dashed square.")
    parts = [hint]

    def update(_change=None) -> None:
        set_visible(picture, any(pad.pixels))
        if any(pad.pixels):
            picture.show(pad.image)

    pad.observe(update, "pixels")
    update()
    row = ipywidgets.Box(
        [pad, picture],
        layout={"flex_flow": "row wrap", "align_items": "flex-start", "grid_gap": "16px"},
    )
    if examples is not None:
        parts.append(chooser(pad, examples))
    return ipywidgets.VBox([*parts, row])


def chooser(pad: DigitPad, examples: Tensor) -> ipywidgets.IntSlider:
    """Returns a slider that puts one of ``examples`` (N, 1, 28, 28) in [0, 1] on ``pad``."""
    slider = ipywidgets.IntSlider(0, 0, len(examples) - 1, description="or take test image")
    lay_out("", slider)

    def put(change) -> None:
        pad.pixels = (examples[change["new"]] * 255).round().int().flatten().tolist()

    slider.observe(put, "value")
    return slider
