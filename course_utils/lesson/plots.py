"""Drawing: one style, readable from the last row, safe for colour-blind eyes, with a text.

``subplots`` makes a figure, ``show(fig, alt, data)`` shows it. Pyplot and its global state are not
used.
"""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.ticker
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from PIL import Image
from torch import Tensor

# Okabe and Ito's palette: the colours differ for every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT = COLOURS[0]
WRONG = COLOURS[1]
PAD = 0.04  # inches around an image in a grid
LAYOUTS: dict[tuple, list] = {}  # by form: the places of axes and texts
MOST_LAYOUTS = 200
LONGEST_NAME = 24  # letters of a class name beside an axis
PLAIN = {"parse_math": False}  # for text from data: a class may be called "$y_{$"


def style() -> None:
    """Sets the course's matplotlib style. Called by ``lecture.setup``."""
    matplotlib.rcParams.update(
        {
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.labelsize": 13,
            "legend.fontsize": 12,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "lines.linewidth": 2.2,
            "lines.markersize": 6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "axes.prop_cycle": matplotlib.cycler(color=COLOURS, marker=MARKERS),
            "figure.dpi": 100,
            "savefig.dpi": 100,
        }
    )


def subplots(rows: int = 1, columns: int = 1, *, width: float = 9, height: float = 4, **keywords):
    """Returns a figure of ``width`` × ``height`` inches and its axes; no label is cut.

    ``keywords`` as in ``Figure.subplots``.
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **keywords)


def to_png(fig: Figure) -> bytes:
    """Returns the figure as PNG, for widgets, which draw figures of one form again and again.

    The layout takes nearly half of the time, so it is found once for each form.
    """
    form = form_of(fig)
    known = LAYOUTS.get(form)
    if known:
        fig.set_layout_engine("none")
        for part, place in zip([*fig.axes, *fig.texts], known, strict=True):
            part.set_position(place)
    png = drawn(fig)
    if not known and len(LAYOUTS) < MOST_LAYOUTS:
        LAYOUTS[form] = [ax.get_position(original=True) for ax in fig.axes]
        LAYOUTS[form] += [text.get_position() for text in fig.texts]
    return png


def form_of(fig: Figure) -> tuple:
    """What the layout depends on: texts by their lengths, axes by limits and fixed tick labels."""
    form = [tuple(fig.get_size_inches()), *(lengths(text) for text in fig.texts)]
    for ax in fig.axes:
        form += [ax.get_xlim(), ax.get_ylim(), ax.get_position(original=True).bounds]
        form += [lengths(text) for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
        for axis in (ax.xaxis, ax.yaxis):
            form.append(tuple(getattr(axis.get_major_formatter(), "seq", ())))
    return tuple(form)


def lengths(text: Text) -> tuple[int, ...]:
    return tuple(map(len, text.get_text().split("\n")))


def drawn(fig: Figure, *, colours: int = 0) -> bytes:
    """Returns the figure as PNG. Draws once, where ``savefig`` draws twice.

    A figure with colour photographs is reduced to ``colours``, where given: a notebook keeps
    it, and all colours take three times the space.
    """
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    buffer = io.BytesIO()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    if colours and any(is_photo(shown) for ax in fig.axes for shown in ax.images):
        image = image.convert("RGB").quantize(colours)
    image.save(buffer, format="png", compress_level=4)
    return buffer.getvalue()


def is_photo(shown: AxesImage) -> bool:
    """Whether an image of an axes has colours and more pixels than those of CIFAR-10."""
    shape = shown.get_array().shape
    return len(shape) == 3 and min(shape[:2]) > 32


def show(fig: Figure, alt: str, data: str) -> None:
    """Shows ``fig`` in the notebook, with the name of the data set below it.

    ``alt`` is the alternative text: what one sees in the figure.
    """
    from IPython.display import Image as Shown
    from IPython.display import display

    fig.set_figheight(fig.get_figheight() + 0.25)  # a line of its own for the name
    fig.supxlabel(f"data: {data}", x=0.995, ha="right", fontsize=11, color="0.35", **PLAIN)
    fig.draw_without_rendering()  # the first of two layout passes cuts titles of three lines
    display(Shown(data=drawn(fig, colours=256), format="png", alt=f"{alt} Data: {data}."))


def check_some(name: str, value: Tensor | Sequence | Mapping) -> None:
    """Refuses what is empty."""
    size = value.numel() if isinstance(value, Tensor) else len(value)
    if not size:
        raise ValueError(f"{name} is empty, so nothing can be drawn; give one or more.")


def draw_image(
    ax,
    image: Tensor,
    title: str = "",
    *,
    signed: bool = False,
    limit: float | None = None,
    colour: str = "black",
) -> None:
    """Draws one image (C, H, W) in [0,1] without axes.

    ``signed`` draws a perturbation: blue for down, red for up, white for zero; the colours end at
    ±``limit`` (default: the largest change).
    """
    check_some("image", image)
    image = image.detach().cpu().float().numpy()
    if signed:
        limit = limit or float(abs(image).max()) or 1.0
        ax.imshow(image.mean(0), cmap="RdBu_r", vmin=-limit, vmax=limit)
    elif image.shape[0] == 3:
        ax.imshow(image.clip(0, 1).transpose(1, 2, 0))
    else:
        ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, color=colour, **PLAIN)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def text_width(text: str, size: str) -> float:
    """Returns the inches of the longest line of ``text`` in the font size of an rcParam."""
    font = FontProperties(size=matplotlib.rcParams[size])
    lines = [line for line in text.split("\n") if line.strip()]
    with matplotlib.rc_context({"text.parse_math": False}):
        widths = [TextPath((0, 0), line, prop=font).get_extents().width / 72 for line in lines]
    return max(widths, default=0)


def images(
    x: Tensor,
    titles: Sequence[str] = (),
    *,
    columns: int = 10,
    title: str = "",
    signed: bool = False,
    colours: Sequence[str] = (),
    size: float = 1.15,
) -> Figure:
    """Returns a grid of images (N, C, H, W), each ``size`` inches wide and under its title.

    ``signed`` is for perturbations, all on one scale. ``titles`` and ``colours`` (of the titles)
    may be fewer than the images. Raises ``ValueError`` without images.
    """
    check_some("x", x)
    columns = min(columns, len(x))
    rows = math.ceil(len(x) / columns)
    # no title is cut, nor does it run into the next
    cell = max([size, *(text_width(text, "axes.titlesize") for text in titles)]) + 2 * PAD
    row = size * x.shape[2] / x.shape[3] + title_height(titles) + 2 * PAD
    width = max(columns * cell, 4, text_width(title, "figure.titlesize") + 0.3)
    height = rows * row + (0.35 if title else 0)
    fig, axes = subplots(rows, columns, width=width, height=height, squeeze=False)
    fig.get_layout_engine().set(w_pad=PAD, h_pad=PAD, wspace=0, hspace=0)
    limit = float(x.detach().float().abs().max()) or 1.0
    for i, ax in enumerate(axes.flat):
        if i >= len(x):
            ax.set_axis_off()
            continue
        text = titles[i] if i < len(titles) else ""
        colour = colours[i] if i < len(colours) else "black"
        draw_image(ax, x[i], text, signed=signed, limit=limit, colour=colour)
    if title:
        fig.suptitle(title, **PLAIN)
    return fig


def title_height(titles: Sequence[str]) -> float:
    """Returns the inches that the title with most lines needs."""
    lines = max((text.count("\n") + 1 for text in titles), default=0)
    if lines == 0:
        return 0
    font = FontProperties(size=matplotlib.rcParams["axes.titlesize"])
    return lines * (font.get_size_in_points() * 1.4 / 72) + 0.03


def short(name: str) -> str:
    """Returns a class name that leaves room for the picture: the name of a folder may be long."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def probabilities(
    ax, p: Tensor, classes: Sequence[str], *, mark: int | None = None, title: str = ""
) -> None:
    """Draws one probability vector (K,) as bars, the largest in blue.

    The name of class ``mark``, such as the true one, is orange: its bar may be too low to see.
    """
    check_some("p", p)
    p = p.detach().cpu().float().numpy()
    bars = ax.bar(range(len(p)), p, color=["0.7"] * len(p))
    bars[int(p.argmax())].set_color(RIGHT)
    # in the title, because a label beside the axis would cover a picture to its left
    label = f"probability\n{title}" if title else "probability"
    ax.set(xticks=range(len(p)), ylim=(0, 1.05))
    ax.set_title(label, **PLAIN)
    classes = list(map(short, classes))
    if max(map(len, classes)) < 3:
        ax.set_xticklabels(classes, **PLAIN)
    else:
        ax.set_xticklabels(classes, rotation=60, ha="right", rotation_mode="anchor", **PLAIN)
    if mark is not None:
        ax.get_xticklabels()[mark].set(color=WRONG, fontweight="bold")
    ax.grid(axis="x", visible=False)


def curves(
    ax,
    x: Sequence[float],
    lines: Mapping[str, Sequence],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    percent: bool = False,
) -> None:
    """Draws named curves over ``x``.

    A curve of shape (seeds, points) becomes its mean with a band of one standard deviation.
    The axes' labels and the title may hold mathematics, as in "$r_I$"; names are shown as they are.
    """
    middles = []
    for name, values in lines.items():
        values = torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()
        middle = values if values.ndim == 1 else values.mean(0)
        every = max(1, len(middle) // 15)  # more markers would hide the line
        (line,) = ax.plot(x, middle, label=name, markevery=every)
        middles.append(line)
        if values.ndim == 2 and len(values) > 1:
            spread = values.std(0, ddof=1)
            band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
            ax.fill_between(x, middle - spread, middle + spread, **band)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if percent:
        ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    if len(lines) > 1:
        # named afterwards: matplotlib leaves out names such as "_a"
        legend = ax.legend(middles, ["name"] * len(lines))
        for text, name in zip(legend.get_texts(), lines, strict=True):
            text.set(text=name, **PLAIN)
