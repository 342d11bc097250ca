"""The page ``results/README.md``: one summary of all papers' numbers, then every table."""

import math
from collections import Counter

from course_utils.lesson import result_tables, verdicts
from course_utils.lesson.result_tables import Source, Value, mean, show_value

PICTURE = "summary.svg"
KEYS = {  # of a record's provenance -> in words
    "command": "command",
    "seeds": "seeds",
    "images": "number of images",
    "examples": "number of training examples",
    "epochs": "epochs",
    "checksum": "checksum of the images",
    "threads": "threads",
    "table_seconds": "time of this table",
}


def page(specs: dict[str, dict], records: dict[str, dict | None]) -> str:
    """Returns Markdown of the whole page; ``records`` holds a recorded run or None by table."""
    lines = [
        "# Reproduced tables",
        "",
        "Made by `course results` from `papers.json` and the JSON files beside this page; "
        "not edited by hand.",
        "A gap is recorded minus paper; ± is one standard deviation over seeds.",
        "",
        *summary(verdicts.rows(specs, records)),
    ]
    for table_id, spec in specs.items():
        lines += section(table_id, spec, records[table_id])
    return "\n".join(lines)


# --- summary


def summary(rows: list[verdicts.Row]) -> list[str]:
    """Returns the summary: counts, rule, picture, and one line for each row of a paper."""
    lines = ["## Summary", "", in_words(rows), "", *verdicts.RULE.splitlines(), ""]
    if plotted(rows):
        lines += [f"![{alt(rows)}]({PICTURE})", ""]
    body = [
        [
            f"**{row.table_id}** {row.label}",
            show_value(row.paper, row.spec),
            show_value(row.ours, row.spec),
            row.words,
        ]
        for row in rows
    ]
    heads = ["paper", "ours", "verdict"]
    return [*lines, *result_tables.grid(heads, body, align="--:|--:|:--|")]


def counts(rows: list[verdicts.Row]) -> str:
    """Returns how many rows have which verdict."""
    found = Counter(row.verdict for row in rows)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in verdicts.ORDER if found[verdict])


def in_words(rows: list[verdicts.Row]) -> str:
    return f"The sources print {len(rows)} values of these tables: {counts(rows)}."


def plotted(rows: list[verdicts.Row]) -> list[verdicts.Row]:
    """Returns the rows that a picture can show: both numbers are there and finite."""
    return [
        row
        for row in rows
        if not isinstance(row.paper, str) and row.ours is not None and math.isfinite(mean(row.ours))
    ]


def alt(rows: list[verdicts.Row]) -> str:
    """Returns what one sees in the picture."""
    shown = plotted(rows)
    return (
        "Our numbers (upwards, with one standard deviation over seeds) against the papers' (to "
        f"the right), a panel for each lecture and unit: of {len(shown)} points, {counts(shown)}. "
        "Points on the diagonal agree."
    )


# --- one table


def section(table_id: str, spec: dict, found: dict | None) -> list[str]:
    """Returns the lines of one table: recorded and paper, gaps and why, and where it is from."""
    values = found["values"] if found else {}
    sources = [Source("the recorded run", "ours", values), result_tables.paper(spec)]
    have, lack = result_tables.split_rows(spec, sources)
    lines = [f"## {table_id}: {spec['title']}", "", f"Source: {spec['source']}.", ""]
    for matrix in result_tables.matrices(spec):
        lines += result_tables.matrix_lines(matrix, spec, sources)
    where = result_tables.places(spec)
    plain = [row for row in have if row["key"] not in where]
    lines += plain_lines(plain, values, spec)
    lines += result_tables.reasons(row for row in have if row["key"] in where)
    if any(row["key"] not in values for row in have):
        lines += [f"Not recorded, because {result_tables.why_unrecorded(spec)}.", ""]
    if "tolerance" in spec:
        lines += [f"Tolerance of the verdict: {tolerance_in_words(spec)}.", ""]
    lines += result_tables.folded(lack, table_id, spec)
    if found and not values:
        lines += ["The record holds no value of this table.", ""]
    return lines + (origin(found["provenance"]) if found else [])


def plain_lines(rows: list[dict], values: dict[str, Value], spec: dict) -> list[str]:
    """Returns a table of the rows that stand in no matrix, [] without rows.

    Where the paper has no number there is no gap to show.
    """
    if not rows:
        return []
    shown = [show_value(values.get(row["key"]), spec) for row in rows]
    if not any("paper" in row or "why" in row for row in rows):
        body = [[row["label"], ours] for row, ours in zip(rows, shown, strict=True)]
        return result_tables.grid(["recorded"], body)
    body = []
    for row, ours in zip(rows, shown, strict=True):
        paper = row.get("paper")
        theirs = show_value(paper, spec)
        difference = gap(values.get(row["key"]), paper, spec)
        body.append([row["label"], theirs, ours, difference, row.get("why", "")])
    return result_tables.grid(["paper", "recorded", "gap", "why"], body, "--:|--:|--:|:--|")


def gap(value: Value | None, paper: float | str | None, spec: dict) -> str:
    """Returns recorded minus paper, – where one of them is missing or not finite."""
    if not isinstance(paper, int | float) or value is None or not math.isfinite(mean(value)):
        return "–"
    return f"{mean(value) - paper:+.{spec.get('digits', 2)}f}"


def tolerance_in_words(spec: dict) -> str:
    (kind, size) = next(iter(spec["tolerance"].items()))
    return f"{100 * size:g} % of the paper's number" if kind == "relative" else f"{size:g}"


# --- where a table comes from


def origin(run: dict) -> list[str]:
    """Returns a paragraph on a record's provenance, which says what the record lacks."""
    parts = [
        f"`{run['command']}`" if "command" in run else "",
        f"{run['scale']} scale on {result_tables.verbatim(run['data'])}",
        f"checksum {run['checksum']}" if run.get("checksum") else "",
        sizes(run),
        seeds(run),
        device(run),
        times(run),
        f"Python {run['python']}, PyTorch {run['torch']}",
        f"commit {run['commit']}",
        run["date"],
    ]
    lines = ["; ".join(part for part in parts if part) + "."]
    lacking = [words for key, words in KEYS.items() if key not in run]
    if "thread" in run["device"]:
        lacking = [words for words in lacking if words != "threads"]
    if lacking:
        lines.append(f"Not recorded: {', '.join(lacking)}.")
    return [*lines, ""]


def sizes(run: dict) -> str:
    words = {"images": "images", "examples": "training examples", "epochs": "epochs"}
    return ", ".join(f"{run[key]:,} {word}" for key, word in words.items() if run.get(key))


def seeds(run: dict) -> str:
    """Returns the seeds, or how many values the longest row holds."""
    if run.get("seeds"):
        return f"seeds {', '.join(map(str, run['seeds']))}"
    return f"up to {run['values']} values a row" if run.get("values", 1) > 1 else ""


def device(run: dict) -> str:
    """Returns the device; that of a CPU names its threads."""
    if "threads" not in run or "thread" in run["device"]:
        return run["device"]
    return f"{run['device']}, {run['threads']} CPU threads"


def times(run: dict) -> str:
    lecture = f"{run['seconds']} s for the lecture so far"
    return (
        f"{run['table_seconds']} s for this table, {lecture}" if "table_seconds" in run else lecture
    )
