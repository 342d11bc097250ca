"""Things to play with: sliders that redraw a picture, and a pad to draw digits on.

A lecture gives a plain function that takes values and returns a picture; everything about Jupyter stays here. Pictures go through
``widgets.Image``, which neither flickers nor depends on where a cell's output goes, and the plain function can be tested without a notebook.
"""

import html
from collections.abc import Callable

import anywidget
import ipywidgets
import torch
import traitlets
from torch import Tensor

SIDE = 28  # the pad speaks MNIST
Drawing = bytes | tuple[bytes, str]


class Picture(ipywidgets.VBox):
    """A picture made by a plain function, with a caption above it; if the function fails, the reason is shown instead.

    ``draw`` returns PNG bytes, or PNG bytes and a caption in plain text. ``widgets.Image`` has no alternative text (and ipywidgets 8 breaks
    on one with a tooltip), so the caption stands in for it; without one, a screen reader gets the first line of ``draw``'s docstring.
    """

    def __init__(self, draw: Callable[..., Drawing]):
        self.draw = draw
        self.error = ipywidgets.HTML()
        self.caption = ipywidgets.HTML()
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%", "max_height": "75vh"})  # fits on a slide
        super().__init__([self.error, self.caption, self.image], layout={"overflow": "hidden", "align_items": "flex-start"})

    def show(self, *args, **values) -> None:
        """Draws anew. An exception in a widget's callback vanishes into the server's log, so it is caught and shown here."""
        failure = caption = ""
        try:
            drawn = self.draw(*args, **values)
            png, caption = drawn if isinstance(drawn, tuple) else (drawn, "")
            self.image.value = png
        except Exception as error:  # whatever it is, the student shall see it
            failure = f"{type(error).__name__}: {error}"
        self.error.value = f"<b>This picture could not be drawn.</b> {html.escape(failure)}" if failure else ""
        self.caption.value = html.escape(caption) or self._described()
        _visible(self.error, bool(failure))
        _visible(self.caption, not failure)
        _visible(self.image, not failure)  # an outdated picture would look like an answer

    def _described(self) -> str:
        text = html.escape((self.draw.__doc__ or "").strip().partition("\n")[0])
        return f'<span style="position: absolute; clip-path: inset(50%)">{text}</span>'  # out of sight, but read aloud


def _visible(widget: ipywidgets.DOMWidget, yes: bool) -> None:
    widget.layout.display = None if yes else "none"


def explorer(draw: Callable[..., Drawing], **controls: ipywidgets.ValueWidget) -> ipywidgets.VBox:
    """Controls above a picture that follows them: ``explorer(draw, eps=FloatSlider(...), norm=Dropdown(...))``.

    ``draw(eps=..., norm=...)`` is called once now and again whenever a control changes; it returns PNG bytes, or PNG bytes and a caption.
    Labels come from the controls' ``description`` (else from the keyword). The result has the ``Picture`` as its last child.
    """
    picture = Picture(draw)

    def update(_change=None) -> None:
        picture.show(**{name: control.value for name, control in controls.items()})

    for name, control in controls.items():
        if not isinstance(control, ipywidgets.Widget) or not control.has_trait("value"):
            raise TypeError(f"{name} is {type(control).__name__}; give a control with a value, such as ipywidgets.IntSlider().")
        if control.has_trait("description"):
            control.description = control.description or name.replace("_", " ")
            # the default width cuts labels of more than a dozen letters
            control.style.description_width = "initial"
            control.layout.width = control.layout.width or f"calc(16em + {len(control.description)}ch)"
        control.layout.margin = control.layout.margin or "2px 16px 2px 2px"
        control.observe(update, "value")
    update()
    row = ipywidgets.Box(list(controls.values()), layout={"flex_flow": "row wrap", "align_items": "center"})
    return ipywidgets.VBox([row, picture])


def centre(image: Tensor) -> Tensor:
    """Shifts ``image`` (H, W), bright ink on black, so that its centre of mass lies in the middle, as in MNIST.

    The shift is a whole number of pixels and stops where ink would leave the image: the ink is moved, never changed. An empty image stays.
    In MNIST the centre of mass lies within half a pixel of index (14, 14) (measured on all test images).
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

    ``pixels`` holds what is drawn as 784 whole numbers from 0 to 255, row by row; it arrives about ten times a second while one draws.
    Setting it from Python shows on the pad.
    """

    pixels = traitlets.List(traitlets.Int(min=0, max=255), [0] * SIDE**2, minlen=SIDE**2, maxlen=SIDE**2).tag(sync=True)

    @property
    def image(self) -> Tensor:
        """What is drawn, centred like MNIST: shape (1, 1, 28, 28), values in [0, 1]."""
        return centre(torch.tensor(self.pixels).reshape(SIDE, SIDE) / 255).reshape(1, 1, SIDE, SIDE)

    _css = """
    .digit-pad { display: inline-flex; flex-direction: column; gap: 6px; width: 280px; }
    .digit-pad-square { position: relative; width: 280px; height: 280px; }
    .digit-pad canvas { border-radius: 4px; cursor: crosshair; touch-action: none; display: block; }
    .digit-pad-guide { position: absolute; inset: 40px; border: 1px dashed #999b; pointer-events: none; }
    .digit-pad button { align-self: flex-start; width: auto; padding: 0 16px; }
    """

    # MNIST's digits fill a box of 20 × 20 pixels in the middle of 28 × 28: the dashed guide. Stamps are joined with "lighten", because strokes
    # laid over each other would add up and lose their soft edges.
    _esm = """
    const CELLS = 28, CELL = 10, SIDE = CELLS * CELL, BRUSH = 17, SEND_EVERY = 100;  // canvas pixels; milliseconds

    function brush() {
      const stamp = document.createElement("canvas");
      stamp.width = stamp.height = 2 * BRUSH;
      const context = stamp.getContext("2d");
      const shade = context.createRadialGradient(BRUSH, BRUSH, 0.45 * BRUSH, BRUSH, BRUSH, BRUSH);
      shade.addColorStop(0, "white");
      shade.addColorStop(1, "black");
      context.fillStyle = shade;
      context.fillRect(0, 0, 2 * BRUSH, 2 * BRUSH);
      return stamp;
    }

    function render({ model, el }) {
      const root = document.createElement("div");
      root.className = "digit-pad";
      root.dataset.lmSuppressShortcuts = "true";  // in JupyterLab, Enter on the button would go to the cell's editor instead
      root.innerHTML = `
        <div class="digit-pad-square">
          <canvas width="${SIDE}" height="${SIDE}" role="img" aria-label="Drawing pad: draw a digit with mouse, pen or finger"></canvas>
          <div class="digit-pad-guide"></div>
        </div>
        <button type="button" class="jupyter-button widget-button" aria-label="Clear the drawing pad">Clear</button>`;
      el.append(root);
      const canvas = root.querySelector("canvas");
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const stamp = brush();
      let last = null, timer = null, sent = null;

      function clear() {
        context.globalCompositeOperation = "source-over";
        context.fillStyle = "black";
        context.fillRect(0, 0, SIDE, SIDE);
      }

      function restore() {  // what the model holds: after a reload, in a second view, or set from Python
        const pixels = model.get("pixels");
        if (pixels === sent) return;
        clear();
        pixels.forEach((value, i) => {
          context.fillStyle = `rgb(${value}, ${value}, ${value})`;
          context.fillRect((i % CELLS) * CELL, Math.floor(i / CELLS) * CELL, CELL, CELL);
        });
      }

      function send() {
        clearTimeout(timer);
        timer = null;
        const { data } = context.getImageData(0, 0, SIDE, SIDE);
        const sums = new Array(CELLS * CELLS).fill(0);
        for (let y = 0; y < SIDE; y++)
          for (let x = 0; x < SIDE; x++)
            sums[Math.floor(y / CELL) * CELLS + Math.floor(x / CELL)] += data[4 * (y * SIDE + x)];
        sent = sums.map((sum) => Math.round(sum / (CELL * CELL)));
        model.set("pixels", sent);
        model.save_changes();
      }

      function point(event) {
        const box = canvas.getBoundingClientRect();
        return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
      }

      function stroke(event) {
        const [x, y] = point(event);
        const [x0, y0] = last ?? [x, y];
        const stamps = Math.max(1, Math.ceil(Math.hypot(x - x0, y - y0) / 2));
        context.globalCompositeOperation = "lighten";
        for (let i = 1; i <= stamps; i++)
          context.drawImage(stamp, x0 + ((x - x0) * i) / stamps - BRUSH, y0 + ((y - y0) * i) / stamps - BRUSH);
        last = [x, y];
        timer ??= setTimeout(send, SEND_EVERY);
      }

      canvas.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        event.preventDefault();
        canvas.setPointerCapture(event.pointerId);
        last = null;
        stroke(event);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (last) (event.getCoalescedEvents?.() ?? [event]).forEach(stroke);
      });
      for (const end of ["pointerup", "pointercancel"])
        canvas.addEventListener(end, () => {
          if (last) send();
          last = null;
        });
      root.querySelector("button").addEventListener("click", () => {
        clear();
        send();
      });
      model.on("change:pixels", restore);
      restore();
      return () => {
        clearTimeout(timer);
        model.off("change:pixels", restore);
      };
    }

    export default { render };
    """


def digit_pad(classify: Callable[[Tensor], Drawing]) -> ipywidgets.VBox:
    """A ``DigitPad`` beside the picture that ``classify(x)`` makes of it, x of shape (1, 1, 28, 28) with values in [0, 1].

    ``classify`` returns PNG bytes, or PNG bytes and a caption such as "This is a 7 (98 %)".
    """
    pad, picture = DigitPad(), Picture(classify)
    hint = ipywidgets.HTML("Draw one digit, as large as the dashed square.")

    def update(_change=None) -> None:
        picture.show(pad.image)
        if not any(pad.pixels):  # whatever a network says about an empty square is no answer
            _visible(picture.caption, False)

    pad.observe(update, "pixels")
    update()
    row = ipywidgets.Box([pad, picture], layout={"flex_flow": "row wrap", "align_items": "flex-start", "grid_gap": "16px"})
    return ipywidgets.VBox([hint, row])
