"""The figures that lectures show once and their widgets draw again; plain functions, each returning a figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from course_utils import linear, plots
from course_utils.data import Images
from course_utils.geometry import Norm, dual_norm, steepest
from course_utils.geometry import norm as size_of
from course_utils.training import predict


def attacked(model: nn.Module, x: Tensor, x_adv: Tensor, y: int, classes: Sequence[str], title: str = "") -> Figure:
    """One image (1, C, H, W) before and after an attack: original, perturbation, result, and the probabilities after it (true class outlined)."""
    before, after = predict(model, x).softmax(1)[0].cpu(), predict(model, x_adv).softmax(1)[0].cpu()
    delta = (x_adv - x)[0]
    fig, axes = plots.subplots(1, 4, width=10, height=2.9, width_ratios=[1, 1, 1, 1.7])
    plots.draw_image(axes[0], x[0], f"original\nseen as {classes[before.argmax()]}, {before.max():.0%}")
    plots.draw_image(axes[1], delta, f"perturbation\nlargest {delta.abs().max():.3f}", signed=True)
    fooled = int(after.argmax()) != y
    plots.draw_image(
        axes[2], x_adv[0], f"result\nseen as {classes[after.argmax()]}, {after.max():.0%}", colour=plots.WRONG if fooled else "black"
    )
    plots.probabilities(axes[3], after, classes, mark=y, title="outlined: true class")
    if title:
        fig.suptitle(title)
    return fig


def digit(model: nn.Module, x: Tensor, classes: Sequence[str]) -> Figure:
    """One image (1, C, H, W) and the probabilities that ``model`` gives it."""
    p = predict(model, x).softmax(1)[0].cpu()
    fig, axes = plots.subplots(1, 2, width=7, height=2.9, width_ratios=[1, 1.9])
    plots.draw_image(axes[0], x[0], f"seen as {classes[p.argmax()]}, {p.max():.0%}")
    plots.probabilities(axes[1], p, classes)
    return fig


def pen(*lines: Sequence[tuple[float, float]], side: int = 28) -> Tensor:
    """Draws lines as a hand would on the digit pad: bright and three pixels wide, with soft edges, on black.

    A line is a list of points (right, down) in pixels, joined in order; the result has shape (1, 1, side, side).
    """
    row = torch.arange(side, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(row, row, indexing="xy"), dim=-1)  # (side, side, 2)
    distance = torch.full((side, side), torch.inf)
    for line in lines:
        for a, b in pairwise(torch.tensor(line, dtype=torch.float32)):
            along = ((pixels - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)  # where on the line each pixel's nearest point is
            distance = distance.minimum((pixels - a - along[..., None] * (b - a)).norm(dim=-1))
    return (2 - distance).clamp(0, 1)[None, None]


def confusion(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Counts (true class, class seen), shape (K, K): mistakes coloured by their number, right answers in grey, zeros left blank."""
    counts = counts.cpu()
    mistakes = counts - torch.diag(counts.diag())
    most = max(int(mistakes.max()), 1)
    fig, ax = plots.subplots(width=7.5, height=5.6)
    ax.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=most, aspect="auto")
    for (i, j), count in zip(torch.cartesian_prod(*[torch.arange(len(classes))] * 2).tolist(), counts.flatten().tolist(), strict=True):
        if i == j:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="0.88"))
        if count:
            ax.text(j, i, count, ha="center", va="center", color="white" if i != j and count > 0.6 * most else "black")
    ax.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="seen as", ylabel="true class")
    ax.set_xticklabels(classes)
    ax.set_yticklabels(classes)
    ax.grid(False)
    return fig


def fake(model: nn.Module, start: Tensor, x: Tensor, target: int, classes: Sequence[str], title: str = "") -> Figure:
    """A fake image (1, C, H, W) on its way: where it started, what it is now, the change, and the probabilities now (target outlined)."""
    p = predict(model, x).softmax(1)[0].cpu()
    seen = int(p.argmax())
    fig, axes = plots.subplots(1, 4, width=10, height=2.9, width_ratios=[1, 1, 1, 1.7])
    plots.draw_image(axes[0], start[0], "start\n")
    colour = plots.RIGHT if seen == target else "black"
    plots.draw_image(axes[1], x[0], f"now\nseen as {classes[seen]}, {p[seen]:.0%}", colour=colour)
    change = (x - start)[0]
    plots.draw_image(axes[2], change, f"change\nlargest {change.abs().max():.2f}", signed=True)
    plots.probabilities(axes[3], p, classes, mark=target, title="outlined: target")
    if title:
        fig.suptitle(title)
    return fig


def labelled_rows(rows: Mapping[str, Tensor], columns: Sequence[str] = (), size: float = 0.88) -> Figure:
    """One row of images (N, C, H, W) under each other per entry: its name at the left, the names of the columns on top."""
    most = max(len(x) for x in rows.values())
    fig, axes = plots.subplots(len(rows), most, width=most * size + 2.4, height=len(rows) * size + 0.6, squeeze=False)
    for k, (name, x) in enumerate(rows.items()):
        for i, ax in enumerate(axes[k]):
            plots.draw_image(ax, x[i], columns[i] if columns and k == 0 else "")
        axes[k, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=10)
    return fig


def shares(rows: Mapping[str, Sequence[float]], columns: Sequence[str]) -> Figure:
    """A table of shares in [0,1], one row per entry: written in per cent, and darker where larger."""
    values = torch.tensor(list(rows.values()))
    fig, ax = plots.subplots(width=2.1 * len(columns) + 3.2, height=0.5 * len(rows) + 1.1)
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, line in enumerate(values.tolist()):
        for j, share in enumerate(line):
            ax.text(j, i, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.6 else "black")
    ax.xaxis.tick_top()
    ax.set(xticks=range(len(columns)), yticks=range(len(rows)))
    ax.set_xticklabels(columns)
    ax.set_yticklabels(list(rows))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return fig


def steepest_steps(angle: float, norms: Sequence[Norm] = ("inf", 2, 1)) -> Figure:
    """A gradient g of length 1 at ``angle`` degrees in the plane: per norm the unit ball, the steepest step r*, the dual norm ⟨g, r*⟩; and that over all angles."""
    g = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
    degrees = torch.arange(0, 361, 3, dtype=torch.float64)
    circle = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    signs = {"inf": "∞", 2: "₂", 1: "₁"}
    fig, axes = plots.subplots(1, len(norms) + 1, width=3 * len(norms) + 3.9, height=3.5, width_ratios=[1] * len(norms) + [1.25])
    for ax, norm in zip(axes[:-1], norms, strict=True):
        colour = plots.COLOURS[list(signs).index(norm)]
        r, value = steepest(g[None], norm)[0], float(dual_norm(g[None], norm))
        ball = circle / size_of(circle, norm)[:, None]
        ax.fill(*ball.T.tolist(), color=colour, alpha=0.18)
        along = torch.stack([value * g + t * torch.stack([-g[1], g[0]]) for t in (-3, 3)])  # all r with ⟨g, r⟩ = the dual norm
        ax.plot(*along.T.tolist(), color="0.4", linestyle="--", linewidth=1.3, marker="")
        ax.annotate("", g.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "linewidth": 2.2})
        ax.annotate("g", (1.22 * g).tolist(), ha="center", va="center")
        ax.plot(*r[:, None].tolist(), color=colour, marker="o", markersize=9)
        ax.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), box_aspect=1, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        ax.tick_params(labelleft=ax is axes[0])
        ax.set_title(f"‖r‖{signs[norm]} ≤ 1: r* = ({r[0]:.2f}, {r[1]:.2f})\n⟨g, r*⟩ = {value:.2f}", fontsize=12)
        axes[-1].plot(degrees, dual_norm(circle, norm), color=colour, marker="", label=f"‖r‖{signs[norm]} ≤ 1")
        axes[-1].plot([angle % 360], [value], color=colour, marker="o", markersize=9)
    axes[-1].set(xlabel="angle of g in degrees", xticks=range(0, 361, 90), ylim=(0.65, 1.65), yticks=(0.8, 1, 1.2, 1.4))
    axes[-1].set_title("dual norm ⟨g, r*⟩", fontsize=12)
    axes[-1].legend(loc="upper center", ncols=3, fontsize=10, handlelength=1, columnspacing=0.8)
    return fig


def linear_models(
    models: Mapping[str, nn.Module], images: Images, index: int, eps: float, *, box: bool = False, reach: float = 0.3
) -> tuple[Figure, str]:
    """One row per linear two-class model, and a caption: its weights, image ``index`` at its L∞ worst, and all margins before and after.

    A margin y(⟨w, x⟩ + b) is divided by ‖w‖₁: then it is the ε that the image withstands, and the attack moves it by at most ``eps``. The grey
    scale reaches from −reach to 1 + reach, so that pixels outside [0,1] can be seen.
    """
    fig, axes = plots.subplots(len(models), 3, width=10.4, height=2.6 * len(models), width_ratios=[1, 1, 2.3], squeeze=False)
    x, y, told = images.x[index : index + 1], images.y[index : index + 1], []
    before, after = {}, {}
    for name, model in models.items():
        w = linear.weights(model)[0].detach()
        size = (w[1] - w[0]).abs().sum()
        with torch.no_grad():
            before[name] = -linear.worst_margins(model, images.x, images.y, 0).amax(1) / size
            after[name] = -linear.worst_margins(model, images.x, images.y, eps, box=box).amax(1) / size
    low, high = min(float(m.min()) for m in before.values()) - reach, max(float(m.max()) for m in before.values())
    for k, (name, model) in enumerate(models.items()):
        row, w = axes[k], linear.weights(model)[0].detach()
        plots.draw_image(row[0], (w[1] - w[0]).view_as(x[0]), f"weights\n{name}", signed=True)
        x_adv = linear.worst_case(model, x, y, eps, box=box)
        seen = int(predict(model, x_adv).argmax())
        colour = plots.WRONG if seen != int(y) else "black"
        plots.draw_image(row[1], (x_adv[0] + reach) / (1 + 2 * reach), f"x + δ*\nseen as {images.classes[seen]}", colour=colour)
        for margins, shade, label in ((before[name], "0.55", "before"), (after[name], plots.COLOURS[0], "at its worst")):
            row[2].hist(
                margins.tolist(), bins=torch.linspace(low, high, 60).tolist(), histtype="stepfilled", color=shade, alpha=0.6, label=label
            )
        wrong = [float((margins <= 0).float().mean()) for margins in (before[name], after[name])]
        told.append(f"{name}: {wrong[0]:.1%} wrong before, {wrong[1]:.1%} at the worst")
        row[2].axvline(0, color=plots.WRONG, linewidth=2)
        row[2].set(title=f"{wrong[0]:.1%} → {wrong[1]:.1%} wrong (left of the line)", yticks=[], xlim=(low, high))
        row[2].tick_params(labelbottom=k == len(models) - 1)
    axes[0, 2].legend(loc="upper left", fontsize=11)
    axes[-1, 2].set_xlabel("margin / ‖w‖₁")
    return fig, f"ε = {eps:.2f}; " + "; ".join(told) + "."
