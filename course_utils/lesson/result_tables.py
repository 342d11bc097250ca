"""Markdown of one table: matrices, plain rows, reasons of gaps, and what nobody has measured.

A ``spec`` is one table of ``papers.json``. Its ``matrix`` (one, or a list of them) says which rows
stand in a matrix: ``{"rows": {key: label}, "columns": {key: label}, "title": …}``, where the cell
in row ``r`` and column ``c`` is the row ``r_c`` of the table.
"""

import html
import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Value = float | list[float]  # a list holds one number per seed
MOST_NAMES = 4  # of rows that share a reason
MARKUP = r"[\\`*_\[\]|~$]"  # what Markdown, tables and mathematics are made with


@dataclass(frozen=True)
class Source:
    """Where numbers come from: its name in words, its name inside a cell, its values by row."""

    name: str
    short: str
    values: Mapping[str, Value | str]


def verbatim(text: str) -> str:
    """Returns Markdown that shows ``text`` from data as it is, on one line: no markup, no maths."""

    def entity(match: re.Match) -> str:
        coded = f"&#{ord(match[0])};"
        # in an element of its own, as MathJax looks for $…$ and \(…\) in what is shown
        return f"<span>{coded}</span>" if match[0] in "$\\" else coded

    return re.sub(MARKUP, entity, html.escape(" ".join(text.split()), quote=False))


def record_command(table_id: str) -> str:
    """Returns the command that records the lecture of a table."""
    return f"course run --scale full --record {table_id[:2]}"


def mean(value: Value) -> float:
    """Returns the number itself, or the mean over seeds."""
    return statistics.mean(value) if isinstance(value, list) else value


def show_value(value: Value | str | None, spec: dict, *, unit: bool = True) -> str:
    """Returns a table cell: a number, or mean ± standard deviation over seeds; – for None.

    Two values have no deviation worth the name; both are shown.

    Runs without a finite value (an attack that never succeeds needs infinitely many steps) have no
    mean; they are counted. ``unit=False`` leaves out the unit.
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    numbers = value if isinstance(value, list) else [value]
    lost = [number for number in numbers if not math.isfinite(number)]
    if lost:
        word = "nan" if any(map(math.isnan, lost)) else "∞"
        return word if len(lost) == len(numbers) else f"{word} in {len(lost)} of {len(numbers)}"
    digits = spec.get("digits", 2)
    text = f"{mean(value):.{digits}f}"
    if len(numbers) == 2:
        low, high = (f"{number:.{digits}f}" for number in sorted(numbers))
        text = low if low == high else f"{low} to {high}"
    elif len(numbers) > 2:
        text += f" ± {statistics.stdev(numbers):.{digits}f}"
    return f"{text} {spec.get('unit', '')}".rstrip() if unit else text


def paper(spec: dict) -> Source:
    """Returns the paper's own values."""
    values = {row["key"]: row["paper"] for row in spec["rows"] if "paper" in row}
    return Source("the paper's value", "paper", values)


# --- flat and nested values


def matrices(spec: dict) -> list[dict]:
    """Returns the matrices of a table, none where all its rows stand alone."""
    found = spec.get("matrix", [])
    return found if isinstance(found, list) else [found]


def places(spec: dict) -> dict[str, tuple[str, str]]:
    """Returns the row and the column of every possible cell by its key, over all matrices."""
    return {
        f"{row}_{column}": (row, column)
        for matrix in matrices(spec)
        for row in matrix["rows"]
        for column in matrix["columns"]
    }


def nest(values: Mapping[str, Value], spec: dict) -> dict:
    """Returns ``{row: {column: value}}`` for the cells of matrices, other values as they are."""
    where = places(spec)
    nested = {}
    for key, value in values.items():
        if key in where:
            row, column = where[key]
            nested.setdefault(row, {})[column] = value
        else:
            nested[key] = value
    return nested


def flatten(values: Mapping) -> dict[str, Value]:
    """Undoes ``nest``; flat values stay as they are."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{column}": one for column, one in value.items()}
        else:
            flat[key] = value
    return flat


# --- parts of a table


def split_rows(spec: dict, sources: Iterable[Source]) -> tuple[list[dict], list[dict]]:
    """Returns the rows for which a source has a value, and those for which none has."""
    known = set().union(*(source.values for source in sources))
    have = [row for row in spec["rows"] if row["key"] in known]
    lack = [row for row in spec["rows"] if row["key"] not in known]
    return have, lack


def grid(heads: Iterable[str], rows: Iterable[Iterable[str]], align: str = "") -> list[str]:
    """Returns the lines of a Markdown table and an empty one; the first column has no head.

    ``align`` is that of the other columns, such as ``--:|:--|`` (default: all on the right).
    """
    heads = list(heads)
    lines = [f"| | {' | '.join(heads)} |", f"|:--|{align or '--:|' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""]


def matrix_lines(matrix: dict, spec: dict, sources: Iterable[Source]) -> list[str]:
    """Returns a matrix: the first source's values, those of the others beside them in brackets.

    A row, column or source without any value is left out, and so is a matrix without any.
    """
    keys = {f"{row}_{column}" for row in matrix["rows"] for column in matrix["columns"]}
    sources = [source for source in sources if keys & source.values.keys()]
    known = set().union(*(source.values for source in sources))
    rows = {
        row: label
        for row, label in matrix["rows"].items()
        if any(f"{row}_{column}" in known for column in matrix["columns"])
    }
    columns = {
        column: label
        for column, label in matrix["columns"].items()
        if any(f"{row}_{column}" in known for row in rows)
    }
    if not rows:
        return []
    body = [
        [label, *(matrix_cell(f"{row}_{column}", spec, sources) for column in columns)]
        for row, label in rows.items()
    ]
    lines = grid(columns.values(), body)
    return [matrix_head(matrix, spec, sources), "", *lines]


def matrix_head(matrix: dict, spec: dict, sources: list[Source]) -> str:
    """Returns the line above a matrix, which says what a cell holds."""
    text = f"*{matrix['title']}.* " if "title" in matrix else ""
    text += f"Each cell: {sources[0].name}"
    if spec.get("unit"):
        text += f", in {spec['unit']}"
    names = [source.name for source in sources[1:]]
    return f"{text}; in brackets {' and '.join(names)}." if names else f"{text}."


def matrix_cell(key: str, spec: dict, sources: list[Source]) -> str:
    """Returns one cell, such as ``41.2 ± 0.3 (paper 40.0)``."""
    text = show_value(sources[0].values.get(key), spec, unit=False)
    beside = [
        f"{source.short} {show_value(source.values[key], spec, unit=False)}"
        for source in sources[1:]
        if key in source.values
    ]
    return f"{text} ({', '.join(beside)})" if beside else text


def reasons(rows: Iterable[dict]) -> list[str]:
    """Returns a list of why numbers differ, each reason once with the rows that it is about."""
    about = {}
    for row in rows:
        if row.get("why"):
            about.setdefault(row["why"], []).append(row["label"])
    if not about:
        return []
    lines = [f"- {names(labels)}: {why}." for why, labels in about.items()]
    return ["About the gaps:", "", *lines, ""]


def names(labels: list[str]) -> str:
    """Returns labels in words; of many, three and the number of the others."""
    if len(labels) <= MOST_NAMES:
        return "; ".join(labels)
    return f"{'; '.join(labels[: MOST_NAMES - 1])} and {len(labels) - MOST_NAMES + 1} more"


def why_unrecorded(spec: dict) -> str:
    """Returns why numbers of ours are missing."""
    return spec.get("unrecorded", "no full run has been recorded yet")


def folded(rows: list[dict], table_id: str, spec: dict) -> list[str]:
    """Returns rows that nobody has a number for, as a list to be unfolded."""
    if not rows:
        return []
    return [
        f"<details><summary>not recorded, because {why_unrecorded(spec)}</summary>",
        "",
        f"`{record_command(table_id)}` would record:",
        "",
        *(f"- {row['label']}" for row in rows),
        "",
        "</details>",
        "",
    ]


# --- the table of a lecture


def lecture_lines(table_id: str, spec: dict, yours: Source, known: Mapping) -> list[str]:
    """Returns a table as a lecture shows it: ``yours``, the recorded values, the paper's."""
    full = Source("the recorded full run", "full", known)
    sources = [yours, full, paper(spec)]
    have, lack = split_rows(spec, sources)
    lines = [f"**{spec['title']}** ({spec['source']})", ""]
    for matrix in matrices(spec):
        lines += matrix_lines(matrix, spec, sources)
    where = places(spec)
    columns = [source.values for source in reversed(sources)]
    plain = [
        [row["label"], *(show_value(values.get(row["key"]), spec) for values in columns)]
        for row in have
        if row["key"] not in where
    ]
    if plain:
        lines += grid(["paper", "recorded full run", yours.name], plain)
    lines += reasons(have)
    if have and not known:
        because = f", because {spec['unrecorded']}" if "unrecorded" in spec else ""
        lines += [f"*No recorded run yet{because}: `{record_command(table_id)}` makes one.*", ""]
    return lines + folded(lack, table_id, spec)
