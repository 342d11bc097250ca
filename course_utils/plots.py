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

    fig.supxlabel(f"data: {data}", x=0.995, ha="right", fontsize=9, color="0.35")
    display(Image(data=to_png(fig), format="png", alt=f"{alt} Data: {data}."))


def draw_image(ax, image: Tensor, title: str = "", *, signed: bool = False, limit: float | None = None, colour: str = "black") -> None:
    """One image (C, H, W) without axes. Grey for [0,1]; ``signed`` shows a perturbation, blue down and red up, white is zero."""
    image = image.detach().cpu()
    if signed:
        limit = limit or float(image.abs().max()) or 1.0
        ax.imshow(image.mean(0), cmap="RdBu_r", vmin=-limit, vmax=limit)
    elif image.shape[0] == 3:
        ax.imshow(image.clamp(0, 1).permute(1, 2, 0))
    else:
        ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, color=colour)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def images(
    x: Tensor, titles: Sequence[str] = (), *, columns: int = 10, title: str = "", signed: bool = False, colours: Sequence[str] = (), size: float = 1.15
) -> Figure:
    """A grid of images (N, C, H, W), each with its title; ``signed`` for perturbations, on one common scale."""
    columns = min(columns, len(x))
    rows = math.ceil(len(x) / columns)
    lines = max((text.count("\n") + 1 for text in titles), default=0)
    height = rows * (size + 0.27 * lines) + (0.45 if title else 0.1) + 0.25
    fig, axes = subplots(rows, columns, width=max(columns * size, 4), height=height, squeeze=False)
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
    p = p.detach().cpu()
    bars = ax.bar(range(len(p)), p, color=["0.7"] * len(p))
    bars[int(p.argmax())].set_color(RIGHT)
    if mark is not None:
        bars[mark].set_edgecolor(WRONG)
        bars[mark].set_linewidth(3)
    ax.set(xticks=range(len(p)), ylim=(0, 1.05), ylabel="probability", title=title)
    ax.set_xticklabels(classes, rotation=0 if max(map(len, classes)) < 3 else 60)
    ax.grid(axis="x", visible=False)


def curves(ax, x: Sequence[float], lines: Mapping[str, Sequence], *, xlabel: str, ylabel: str, title: str = "", percent: bool = False) -> None:
    """Named curves over ``x``; a curve of shape (seeds, points) is drawn as its mean with a band of one standard deviation."""
    for name, values in lines.items():
        values = torch.as_tensor(values, dtype=torch.float64)
        middle = values if values.dim() == 1 else values.mean(0)
        (line,) = ax.plot(x, middle, label=name)
        if values.dim() == 2 and len(values) > 1:
            spread = values.std(0)
            ax.fill_between(x, middle - spread, middle + spread, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if percent:
        ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    if len(lines) > 1:
        ax.legend()
