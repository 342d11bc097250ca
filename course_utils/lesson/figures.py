"""Figures that lectures show once and their widgets draw again; each function returns a figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from course_utils.core.geometry import Norm, dual_norm, steepest
from course_utils.core.geometry import norm as size_of
from course_utils.core.images import Images
from course_utils.core.training import predict
from course_utils.lesson import plots
from course_utils.methods import linear
from course_utils.methods.diagnosis import Diagnosis

SUBSCRIPT = {"inf": "∞", 2: "₂", 1: "₁"}  # of a norm


def seen_as(p: Tensor, classes: Sequence[str]) -> str:
    """Returns the most probable class with its probability, as a caption."""
    return f"seen as {plots.short(classes[p.argmax()])}, {p.max():.0%}"


def class_probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the probabilities (K,) of one image (1, C, H, W), on the CPU."""
    plots.check_some("x", x)
    return predict(model, x).softmax(1)[0].cpu()


def before_and_after(
    pictures: Sequence[tuple[Tensor, str, dict]],
    p: Tensor,
    classes: Sequence[str],
    mark: int,
    meaning: str,
    title: str,
) -> Figure:
    """Returns three pictures in a row, and the probabilities ``p``, class ``mark`` named in orange.

    A picture is an image (C, H, W), its caption and keywords of ``plots.draw_image``.
    """
    fig, axes = plots.subplots(1, 4, width=10, height=2.9, width_ratios=[1, 1, 1, 1.7])
    for ax, (image, caption, keywords) in zip(axes[:3], pictures, strict=True):
        plots.draw_image(ax, image, caption, **keywords)
    plots.probabilities(axes[3], p, classes, mark=mark, title=f"orange: {meaning}")
    if title:
        fig.suptitle(title, **plots.PLAIN)
    return fig


def attacked(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: int, classes: Sequence[str], title: str = ""
) -> Figure:
    """Draws one image (1, C, H, W) before and after an attack.

    It shows the original, the perturbation, the result, and the probabilities of the result.
    """
    before = class_probabilities(model, x)
    after = class_probabilities(model, x_adv)
    delta = (x_adv - x)[0]
    colour = "black" if int(after.argmax()) == y else plots.WRONG
    pictures = [
        (x[0], f"original\n{seen_as(before, classes)}", {}),
        (delta, f"perturbation\nlargest {delta.abs().max():.3f}", {"signed": True}),
        (x_adv[0], f"result\n{seen_as(after, classes)}", {"colour": colour}),
    ]
    return before_and_after(pictures, after, classes, y, "true class", title)


def fake(
    model: nn.Module, start: Tensor, x: Tensor, target: int, classes: Sequence[str], title: str = ""
) -> Figure:
    """Draws a fake image (1, C, H, W) in the making.

    It shows the start, the image now, the change, and the probabilities now.
    """
    p = class_probabilities(model, x)
    change = (x - start)[0]
    colour = plots.RIGHT if int(p.argmax()) == target else "black"
    pictures = [
        (start[0], "start\n", {}),
        (x[0], f"now\n{seen_as(p, classes)}", {"colour": colour}),
        (change, f"change\nlargest {change.abs().max():.2f}", {"signed": True}),
    ]
    return before_and_after(pictures, p, classes, target, "target", title)


def digit(model: nn.Module, x: Tensor, classes: Sequence[str]) -> Figure:
    """Draws one image (1, C, H, W) and the probabilities that ``model`` gives it."""
    p = class_probabilities(model, x)
    fig, axes = plots.subplots(1, 2, width=7, height=2.9, width_ratios=[1, 1.9])
    plots.draw_image(axes[0], x[0], seen_as(p, classes))
    plots.probabilities(axes[1], p, classes)
    return fig


def pen(*lines: Sequence[tuple[float, float]], side: int = 28) -> Tensor:
    """Returns an image (1, 1, side, side) of lines as on the digit pad.

    A line is a list of points (right, down) in pixels, joined in order: bright on black, three
    pixels wide, with soft edges.
    """
    row = torch.arange(side, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(row, row, indexing="xy"), dim=-1)  # (side, side, 2)
    distance = torch.full((side, side), torch.inf)
    for line in lines:
        for a, b in pairwise(torch.tensor(line, dtype=torch.float32)):
            # where on the line each pixel's nearest point is, from 0 to 1
            along = ((pixels - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
            distance = distance.minimum((pixels - a - along[..., None] * (b - a)).norm(dim=-1))
    return (2 - distance).clamp(0, 1)[None, None]


def confusion(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Draws a table of counts (true class, class seen), shape (K, K).

    Mistakes are coloured by their number, right answers are grey, zeros stay blank.
    """
    plots.check_some("counts", counts)
    counts = counts.detach().cpu()
    mistakes = counts - torch.diag(counts.diag())
    most = max(int(mistakes.max()), 1)
    fig, ax = plots.subplots(width=7.5, height=5.6)
    ax.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=most, aspect="auto")
    for i, row in enumerate(counts.tolist()):
        ax.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, color="0.88"))
        for j, count in enumerate(row):
            if count:
                write_cell(ax, i, j, count, light=i != j and count > 0.6 * most)
    ax.set(xlabel="seen as", ylabel="true class")
    names = list(map(plots.short, classes))
    name_cells(ax, names, names)
    return fig


def write_cell(ax, i: int, j: int, text, light: bool) -> None:
    """Writes into row i and column j of a table, in white if ``light``."""
    ax.text(j, i, text, ha="center", va="center", color="white" if light else "black")


def name_cells(ax, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names the rows and columns of a table."""
    ax.set(xticks=range(len(columns)), yticks=range(len(rows)))
    ax.set_xticklabels(columns, **plots.PLAIN)
    ax.set_yticklabels(rows, **plots.PLAIN)
    ax.grid(False)


def labelled_rows(
    rows: Mapping[str, Tensor], columns: Sequence[str] = (), size: float = 0.88
) -> Figure:
    """Draws one row of images (N, C, H, W) per entry: names at the left, columns' on top.

    Rows may differ in length. Raises ``ValueError`` without rows, or if one has no images.
    """
    plots.check_some("rows", rows)
    for name, x in rows.items():
        plots.check_some(f"rows[{name!r}]", x)
    most = max(len(x) for x in rows.values())
    width = most * size + 2.4
    height = len(rows) * size + 0.6
    fig, axes = plots.subplots(len(rows), most, width=width, height=height, squeeze=False)
    for k, (name, x) in enumerate(rows.items()):
        for i, ax in enumerate(axes[k]):
            if i < len(x):
                title = columns[i] if k == 0 and i < len(columns) else ""
                plots.draw_image(ax, x[i], title)
            else:
                ax.set_axis_off()
        look = {"rotation": 0, "ha": "right", "va": "center", "labelpad": 10}
        axes[k, 0].set_ylabel(name, **look, **plots.PLAIN)
    return fig


def shares(rows: Mapping[str, Sequence[float]], columns: Sequence[str]) -> Figure:
    """Draws a table of shares in [0,1], one row per entry: in per cent, darker where larger."""
    plots.check_some("rows", rows)
    plots.check_some("columns", columns)
    values = torch.tensor(list(rows.values()))
    fig, ax = plots.subplots(width=2.1 * len(columns) + 3.2, height=0.5 * len(rows) + 1.1)
    ax.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(values.tolist()):
        for j, share in enumerate(row):
            write_cell(ax, i, j, f"{share:.0%}", light=share > 0.6)
    ax.xaxis.tick_top()
    name_cells(ax, list(rows), columns)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig


def steepest_steps(angle: float, norms: Sequence[Norm] = ("inf", 2, 1)) -> Figure:
    """Draws a gradient g of length 1 at ``angle`` degrees in the plane, and its steepest steps.

    It shows per norm the unit ball, the steepest step r* and the dual norm ⟨g, r*⟩, then the dual
    norm over all angles.
    """
    turn = math.radians(angle)
    g = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    degrees = torch.arange(0, 361, 3, dtype=torch.float64)
    circle = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    ratios = [1] * len(norms) + [1.25]
    width = 3 * len(norms) + 3.9
    fig, axes = plots.subplots(1, len(ratios), width=width, height=3.5, width_ratios=ratios)
    last = axes[-1]
    for ax, norm in zip(axes[:-1], norms, strict=True):
        colour = plots.COLOURS[list(SUBSCRIPT).index(norm)]
        ball = circle / size_of(circle, norm)[:, None]
        value = draw_steepest(ax, g, norm, ball, colour)
        ax.tick_params(labelleft=ax is axes[0])
        name = f"‖r‖{SUBSCRIPT[norm]} ≤ 1"
        last.plot(degrees, dual_norm(circle, norm), color=colour, marker="", label=name)
        last.plot([angle % 360], [value], color=colour, marker="o", markersize=9)
    last.set(
        xlabel="angle of g in degrees",
        xticks=range(0, 361, 90),
        ylim=(0.65, 1.65),
        yticks=(0.8, 1, 1.2, 1.4),
    )
    last.set_title("dual norm ⟨g, r*⟩", fontsize=12)
    last.legend(loc="upper center", ncols=3, fontsize=10, handlelength=1, columnspacing=0.8)
    return fig


def loss_slice(
    heights: Tensor, reach: float, paths: Mapping[str, Tensor], radius: float, title: str = ""
) -> Figure:
    """Draws a loss on a plane through an image, with a ball around the image and paths.

    ``heights``, shape (M, M), holds the loss on a grid from −reach to reach, rows along the second
    axis of the plane; it is 0 at the decision boundary. A path, shape (T, 2), holds points of the
    plane.
    """
    fig, ax = plots.subplots(width=7.4, height=5.6)
    line = torch.linspace(-reach, reach, len(heights)).tolist()
    limit = max(1, math.ceil(heights.abs().max()))
    levels = torch.linspace(-limit, limit, 21).tolist()
    filled = ax.contourf(line, line, heights.tolist(), levels=levels, cmap="RdBu_r")
    fig.colorbar(filled, label="margin of the other classes", ticks=MaxNLocator(7, integer=True))
    if heights.min() < 0 < heights.max():
        ax.contour(line, line, heights.tolist(), levels=[0], colors="black", linewidths=2)
    ax.add_patch(Circle((0, 0), radius, fill=False, linestyle="--", linewidth=1.5))
    styles = zip(paths.items(), ("black", plots.COLOURS[2], plots.COLOURS[1]), "s^o", strict=False)
    for (name, points), colour, marker in styles:
        ax.plot(*points.T.tolist(), color=colour, marker="", linewidth=1.8)
        ax.plot(*points[-1:].T.tolist(), color=colour, marker=marker, markersize=10, label=name)
    ax.legend(loc="lower right", framealpha=0.9)
    ax.set(xlabel="along the gradient", ylabel="along the rest of PGD's way", aspect="equal")
    ax.set_title(title, **plots.PLAIN)
    ax.grid(False)
    return fig


def loops() -> Figure:
    """Draws how victim and generator learn from each other: in turn, and decoupled (one trial).

    After Figure 1 of Feng, Cai and Zhou (NeurIPS 2019). θ are the victim's weights, ξ the
    generator's; grey arrows say whose state enters whose step.
    """
    fig, axes = plots.subplots(1, 2, width=11, height=3.2)
    steps = range(4)
    for ax, decoupled in zip(axes, (False, True), strict=True):
        prime = "′" if decoupled else ""
        victim = [(1.6 * i, 1.2) for i in steps]
        learner = [(1.6 * i, 0.0) for i in steps]
        writer = [(2.4, 2.3)] * len(steps) if decoupled else learner
        for i in steps[:-1]:
            connect(ax, victim[i], victim[i + 1], plots.RIGHT)
            connect(ax, learner[i], learner[i + 1], plots.WRONG)
            connect(ax, writer[i], victim[i + 1], "0.55")
            connect(ax, victim[i], learner[i + 1], "0.55")
        for i in steps:
            name_node(ax, victim[i], f"$θ_{i}$", plots.RIGHT)
            name_node(ax, learner[i], f"$ξ{prime}_{i}$", plots.WRONG)
        if decoupled:
            name_node(ax, writer[0], "ξ stands still", "0.3")
        ax.set_title("decoupled: one trial" if decoupled else "in turn")
        ax.set(xlim=(-0.5, 5.3), ylim=(-0.45, 2.75))
        ax.set_axis_off()
    return fig


def connect(ax, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draws an arrow between two nodes."""
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "shrinkA": 17, "shrinkB": 17}
    ax.annotate("", end, start, arrowprops=look)


def name_node(ax, place: tuple[float, float], text: str, colour: str) -> None:
    """Writes ``text`` into a node."""
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour}
    ax.text(*place, text, ha="center", va="center", color=colour, bbox=box)


def draw_steepest(ax, g: Tensor, norm: Norm, ball: Tensor, colour: str) -> float:
    """Draws the unit ball (points, 2) of a norm, g and r*; returns the dual norm of g."""
    r = steepest(g[None], norm)[0]
    value = float(dual_norm(g[None], norm))
    ax.fill(*ball.T.tolist(), color=colour, alpha=0.18)
    across = torch.stack([-g[1], g[0]])
    supporting = torch.stack([value * g + t * across for t in (-3, 3)])  # all r with ⟨g, r⟩ = value
    ax.plot(*supporting.T.tolist(), color="0.4", linestyle="--", linewidth=1.3, marker="")
    ax.annotate("", g.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "linewidth": 2.2})
    ax.annotate("g", (1.22 * g).tolist(), ha="center", va="center")
    ax.plot(*r[:, None].tolist(), color=colour, marker="o", markersize=9)
    ticks = (-1, 0, 1)
    ax.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), box_aspect=1, xticks=ticks, yticks=ticks)
    step = f"‖r‖{SUBSCRIPT[norm]} ≤ 1: r* = ({r[0]:.2f}, {r[1]:.2f})"
    ax.set_title(f"{step}\n⟨g, r*⟩ = {value:.2f}", fontsize=12)
    return value


def linear_models(
    models: Mapping[str, nn.Module],
    images: Images,
    index: int,
    eps: float,
    *,
    box: bool = False,
    reach: float = 0.3,
) -> tuple[Figure, str]:
    """Draws one row per linear two-class model; returns the figure and a caption.

    A row shows the weights, image ``index`` at its L∞ worst, and all scores before and after. A
    score y(⟨w, x⟩ + b) is divided by ‖w‖₁: it is the ε that the image withstands, and the attack
    lowers it by at most ``eps``. The grey scale reaches from −reach to 1 + reach, so that pixels
    outside [0,1] are visible.
    """
    plots.check_some("models", models)
    x = images.x[index : index + 1]
    y = images.y[index : index + 1]
    plots.check_some("x[index]", x)
    height = 2.6 * len(models)
    fig, axes = plots.subplots(
        len(models), 3, width=10.4, height=height, width_ratios=[1, 1, 2.3], squeeze=False
    )
    before = {}
    after = {}
    for name, model in models.items():
        before[name] = scaled_scores(model, images, 0)
        after[name] = scaled_scores(model, images, eps, box=box)
    low = min(float(scores.min()) for scores in before.values()) - reach
    high = max(float(scores.max()) for scores in before.values())
    lines = []
    for (name, model), (left, middle, right) in zip(models.items(), axes, strict=True):
        w = linear.weights(model)[0].detach()
        plots.draw_image(left, (w[1] - w[0]).view_as(x[0]), f"weights\n{name}", signed=True)
        x_adv = linear.worst_case(model, x, y, eps, box=box)
        seen = int(predict(model, x_adv).argmax())
        colour = "black" if seen == int(y) else plots.WRONG
        grey = (x_adv[0] + reach) / (1 + 2 * reach)
        plots.draw_image(middle, grey, f"x + δ*\nseen as {images.classes[seen]}", colour=colour)
        wrong = draw_scores(right, before[name], after[name], low, high)
        right.tick_params(labelbottom=right is axes[-1, 2])
        lines.append(f"{name}: {wrong[0]:.1%} wrong before, {wrong[1]:.1%} at the worst")
    axes[0, 2].legend(loc="upper left", fontsize=11)
    axes[-1, 2].set_xlabel("score / ‖w‖₁")
    return fig, f"ε = {eps:.2f}; {'; '.join(lines)}."


def scaled_scores(model: nn.Module, images: Images, eps: float, *, box: bool = False) -> Tensor:
    """Returns the worst scores (N,) within ``eps``, divided by ‖w‖₁; positive where right."""
    w = linear.weights(model)[0].detach()
    size = (w[1] - w[0]).abs().sum()
    with torch.no_grad():
        return -linear.worst_margins(model, images.x, images.y, eps, box=box).amax(1) / size


def draw_scores(ax, before: Tensor, after: Tensor, low: float, high: float) -> list[float]:
    """Draws both distributions of scores; returns the shares of wrong images."""
    bins = torch.linspace(low, high, 60).tolist()
    look = {"bins": bins, "histtype": "stepfilled", "alpha": 0.6}
    ax.hist(before.tolist(), color="0.55", label="before", **look)
    ax.hist(after.tolist(), color=plots.COLOURS[0], label="at its worst", **look)
    wrong = [float((scores <= 0).float().mean()) for scores in (before, after)]
    ax.axvline(0, color=plots.WRONG, linewidth=2)
    title = f"{wrong[0]:.1%} → {wrong[1]:.1%} wrong (left of the line)"
    ax.set(title=title, yticks=[], xlim=(low, high))
    return wrong


def diagnosis(found: Diagnosis) -> Figure:
    """The way of the attack, and what each judge leaves right.

    Left the margins over the steps that were seen: the median and the middle eighty per cent of the
    images, positive where the model is wrong. Right one bar for each judge.
    """
    fig, (way, judges) = plots.subplots(1, 2, width=11, height=3.4)
    margins = found.margins.cpu()
    steps = range(len(margins))
    low, middle, high = torch.quantile(margins, torch.tensor([0.1, 0.5, 0.9]), dim=1).tolist()
    way.fill_between(steps, low, high, color=plots.COLOURS[0], alpha=0.25, linewidth=0)
    way.plot(steps, middle, color=plots.COLOURS[0], marker="" if len(margins) > 12 else "o")
    way.axhline(0, color=plots.WRONG, linewidth=2)
    way.set(xlabel="step of the attack", ylabel="margin", title="above the line: wrong")
    shares = [float(right.float().mean()) for right in found.right.values()]
    bars = judges.barh(list(found.right), shares, color=plots.COLOURS[5])
    judges.bar_label(bars, [f"{share:.0%}" for share in shares], padding=4)
    judges.set(xlim=(0, 1.15), xlabel="still right")
    judges.xaxis.set_major_formatter(PercentFormatter(1.0))
    judges.set_xticks([0, 0.25, 0.5, 0.75, 1])
    judges.invert_yaxis()
    return fig
