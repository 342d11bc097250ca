"""Figures: one style, readable from the last row, colour-blind safe, with alternative text.

A figure is made by ``subplots``, filled, and shown by ``show(fig, alt, data)``; nothing depends on pyplot's global state.
"""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.ticker
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import Tensor

# Okabe and Ito's palette: told apart with every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG = COLOURS[0], COLOURS[1]


def style() -> None:
    """Sets the course's matplotlib style. Called by ``runtime.setup``."""
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
    """A figure of ``width`` × ``height`` inches and its axes, laid out so that no label is cut; ``keywords`` as in ``Figure.subplots``."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **keywords)


def to_png(fig: Figure) -> bytes:
    """The figure as PNG, for widgets."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def show(fig: Figure, alt: str, data: str) -> None:
    """Shows ``fig`` in the notebook with alternative text ``alt`` (what one sees in it) and the name of the data set below it."""
    from IPython.display import Image, display

    fig.set_figheight(fig.get_figheight() + 0.25)  # a line of its own, so that the name takes nothing from the figure
    fig.supxlabel(f"data: {data}", x=0.995, ha="right", fontsize=11, color="0.35")
    fig.draw_without_rendering()  # the layout settles in its second pass; after one, titles of three lines are cut
    display(Image(data=to_png(fig), format="png", alt=f"{alt} Data: {data}."))


def draw_image(ax, image: Tensor, title: str = "", *, signed: bool = False, limit: float | None = None, colour: str = "black") -> None:
    """One image (C, H, W) without axes. Grey for [0,1]; ``signed`` shows a perturbation, blue down and red up, white is zero."""
    image = image.detach().cpu().numpy()
    if signed:
        limit = limit or float(abs(image).max()) or 1.0
        ax.imshow(image.mean(0), cmap="RdBu_r", vmin=-limit, vmax=limit)
    elif image.shape[0] == 3:
        ax.imshow(image.clip(0, 1).transpose(1, 2, 0))
    else:
        ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, color=colour)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _inches(text: str, size: str) -> float:
    """Width of the longest line of ``text`` in the font size of the rcParam ``size``."""
    font = FontProperties(size=matplotlib.rcParams[size])
    return max((TextPath((0, 0), line, prop=font).get_extents().width / 72 for line in text.split("\n") if line.strip()), default=0)


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
    """A grid of images (N, C, H, W), each ``size`` inches wide and under its title; ``signed`` for perturbations, on one common scale."""
    columns = min(columns, len(x))
    rows = math.ceil(len(x) / columns)
    lines = max((text.count("\n") + 1 for text in titles), default=0)
    pad, line = 0.04, FontProperties(size=matplotlib.rcParams["axes.titlesize"]).get_size_in_points() * 1.4 / 72
    cell = max([size, *(_inches(text, "axes.titlesize") for text in titles)]) + 2 * pad  # no title is cut or runs into the next
    row = size * x.shape[2] / x.shape[3] + (lines * line + 0.03 if lines else 0) + 2 * pad
    width, height = max(columns * cell, 4, _inches(title, "figure.titlesize") + 0.3), rows * row + (0.35 if title else 0)
    fig, axes = subplots(rows, columns, width=width, height=height, squeeze=False)
    fig.get_layout_engine().set(w_pad=pad, h_pad=pad, wspace=0, hspace=0)
    limit = float(x.abs().max()) or 1.0
    for i, ax in enumerate(axes.flat):
        if i >= len(x):
            ax.set_axis_off()
            continue
        text, colour = (titles[i] if i < len(titles) else ""), (colours[i] if i < len(colours) else "black")
        draw_image(ax, x[i], text, signed=signed, limit=limit, colour=colour)
    if title:
        fig.suptitle(title)
    return fig


def probabilities(ax, p: Tensor, classes: Sequence[str], *, mark: int | None = None, title: str = "") -> None:
    """Bars of one probability vector (K,); the largest in blue, class ``mark`` (the true one, say) outlined in orange."""
    p = p.detach().cpu().numpy()
    bars = ax.bar(range(len(p)), p, color=["0.7"] * len(p))
    bars[int(p.argmax())].set_color(RIGHT)
    if mark is not None:
        bars[mark].set_edgecolor(WRONG)
        bars[mark].set_linewidth(3)
    # above, not beside: a label beside the axis comes to lie on a picture to its left
    ax.set(xticks=range(len(p)), ylim=(0, 1.05), title=f"probability\n{title}" if title else "probability")
    if max(map(len, classes)) < 3:
        ax.set_xticklabels(classes)
    else:
        ax.set_xticklabels(classes, rotation=60, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)


def curves(
    ax, x: Sequence[float], lines: Mapping[str, Sequence], *, xlabel: str, ylabel: str, title: str = "", percent: bool = False
) -> None:
    """Named curves over ``x``; a curve of shape (seeds, points) is drawn as its mean with a band of one standard deviation."""
    for name, values in lines.items():
        values = torch.as_tensor(values, dtype=torch.float64).cpu().numpy()
        middle = values if values.ndim == 1 else values.mean(0)
        (line,) = ax.plot(x, middle, label=name, markevery=max(1, len(middle) // 15))  # more markers would hide the line
        if values.ndim == 2 and len(values) > 1:
            spread = values.std(0, ddof=1)
            ax.fill_between(x, middle - spread, middle + spread, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if percent:
        ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    if len(lines) > 1:
        ax.legend()
