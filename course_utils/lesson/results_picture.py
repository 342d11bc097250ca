"""The picture of ``results/README.md``: our numbers against the papers'."""

import io
import math
import statistics
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from course_utils.lesson import plots, verdicts
from course_utils.lesson.result_tables import Value, mean
from course_utils.lesson.results_page import plotted

LOOKS = {  # verdict -> colour and marker
    verdicts.REPRODUCED: (plots.COLOURS[0], "o"),
    verdicts.NOISE: (plots.COLOURS[4], "s"),
    verdicts.FAILED: (plots.COLOURS[1], "X"),
}
COLUMNS = 4
SIDE = 3.2  # inches of a panel
WIDE = 100  # largest to smallest number from which on an axis is logarithmic


def picture(specs: dict[str, dict], records: dict[str, dict | None]) -> bytes:
    """Returns SVG with a panel for each lecture and unit, the same bytes each time.

    Different releases of matplotlib may draw other bytes.
    """
    groups = grouped(plotted(verdicts.rows(specs, records)))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the caller or the user's own settings say
        plots.style()
        matplotlib.rcParams["svg.hashsalt"] = "results"
        fig = draw(groups)
        buffer = io.BytesIO()
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def grouped(rows: list[verdicts.Row]) -> dict[str, list[verdicts.Row]]:
    """Returns the rows of each panel by its title: a lecture, and what it measures in."""
    groups = {}
    for row in rows:
        title = f"Lecture {row.table_id[:2]}"
        if row.spec.get("unit"):
            title += f", {row.spec['unit']}"
        groups.setdefault(title, []).append(row)
    return groups


def draw(groups: dict[str, list[verdicts.Row]]) -> Figure:
    """Returns the figure: small multiples and one legend above them."""
    lines = max(1, math.ceil(len(groups) / COLUMNS))
    fig, axes = plots.subplots(
        lines, COLUMNS, width=COLUMNS * SIDE, height=lines * SIDE + 0.7, squeeze=False
    )
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    for ax, (title, rows) in zip(axes.flat, groups.items(), strict=False):
        draw_panel(ax, title, rows)
    fig.supxlabel("the paper's number")
    fig.supylabel("ours")
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, marker=marker, linestyle="", label=verdict)
        for verdict, (colour, marker) in LOOKS.items()
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(LOOKS), frameon=False)
    return fig


def draw_panel(ax, title: str, rows: Sequence[verdicts.Row]) -> None:
    """Draws one panel: a point for each row, and the diagonal on which both agree."""
    numbers = [number for row in rows for number in (row.paper, mean(row.ours))]
    low, high = limits(numbers)
    scale = "log" if min(numbers) > 0 and max(numbers) > WIDE * min(numbers) else "linear"
    ax.set(xscale=scale, yscale=scale, xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.plot([low, high], [low, high], color="0.6", linewidth=1, marker="")
    for verdict, (colour, marker) in LOOKS.items():
        some = [row for row in rows if row.verdict == verdict]
        ax.errorbar(
            [row.paper for row in some],
            [mean(row.ours) for row in some],
            [spread(row.ours) for row in some],
            color=colour,
            marker=marker,
            linestyle="",
            elinewidth=1,
            alpha=0.7,
        )
    if scale == "linear":
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    count = f"{len(rows)} rows" if len(rows) > 1 else "1 row"
    ax.set_title(f"{title} ({count})", **plots.PLAIN)


def limits(numbers: list[float]) -> tuple[float, float]:
    """Returns limits of an axis with a margin around all numbers."""
    low, high = min(numbers), max(numbers)
    if low > 0 and high > WIDE * low:
        return low / 2, high * 2
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def spread(ours: Value) -> float:
    """Returns the standard deviation over seeds, 0 for a single value."""
    return statistics.stdev(ours) if isinstance(ours, list) and len(ours) > 1 else 0.0
