"""The paper's number, the recorded full run's and yours, side by side.

``papers.json`` holds what the sources print, each with its place; ``results/<table>.json`` holds the recorded runs with their provenance;
``results/README.md`` is the page made of both.
"""

import datetime
import json
import math
import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from course_utils import runtime

Values = dict[str, float | list[float]]  # a list holds one number per seed

PAPERS = Path(__file__).with_name("papers.json")


def tables() -> dict[str, dict]:
    """All tables of ``papers.json``: id -> title, source, unit, and rows with key, label, the paper's value and where it stands."""
    return json.loads(PAPERS.read_text(encoding="utf-8"))


def _results_dir() -> Path:
    return Path(os.environ.get("COURSE_RESULTS") or runtime.ROOT / "results")


def recorded(table_id: str) -> dict | None:
    """The recorded full run: ``{"values": …, "provenance": …}``, or None when there is none."""
    path = _results_dir() / f"{table_id}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@dataclass
class Table:
    """One table of a lecture. ``full`` is what a claim about full scale is judged on; ``is_recorded`` says whether that is the recorded run."""

    table_id: str
    yours: Values
    data: str

    @property
    def is_recorded(self) -> bool:
        return runtime.scale() != "full"

    @property
    def full(self) -> Values:
        if not self.is_recorded:
            return self.yours
        found = recorded(self.table_id)
        if found is None:
            raise LookupError(
                f"There is no recorded full run of table {self.table_id!r}; make one with `course run --scale full --record {self.table_id[:2]}`."
            )
        return found["values"]

    def _repr_markdown_(self) -> str:
        spec, found = tables()[self.table_id], recorded(self.table_id)
        lines = [f"**{spec['title']}** ({spec['source']})", ""]
        lines += [f"| | paper | recorded full run | your run ({runtime.scale()}, {self.data}) |", "|:--|--:|--:|--:|"]
        for row in spec["rows"]:
            cells = (row.get("paper"), found and found["values"].get(row["key"]), self.yours.get(row["key"]))
            lines.append(f"| {row['label']} | " + " | ".join(show_value(cell, spec) for cell in cells) + " |")
        if found is None:
            lines += ["", f"*No recorded run yet: `course run --scale full --record {self.table_id[:2]}` makes one.*"]
        return "\n".join(lines)


def show_value(value: float | list[float] | str | None, spec: dict) -> str:
    """A table cell: mean ± standard deviation for a list (the number of seeds is in the table's title), – where there is nothing.

    Runs without a finite value (an attack that never succeeds needs infinitely many steps) have no mean; they are counted.
    """
    digits, unit = spec.get("digits", 2), spec.get("unit", "")
    unit = f" {unit}" if unit else ""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    numbers = value if isinstance(value, list) else [value]
    if lost := [number for number in numbers if not math.isfinite(number)]:
        word = "nan" if any(map(math.isnan, lost)) else "∞"
        return word if len(lost) == len(numbers) else f"{word} in {len(lost)} of {len(numbers)}"
    if len(numbers) > 1:
        return f"{statistics.mean(value):.{digits}f} ± {statistics.stdev(value):.{digits}f}{unit}"
    return f"{mean(value):.{digits}f}{unit}"


def mean(value: float | list[float]) -> float:
    """The number itself, or the mean over seeds."""
    return statistics.mean(value) if isinstance(value, list) else value


def table(table_id: str, yours: Values, data: str) -> Table:
    """The three columns of table ``table_id``; ``data`` names the data set of this run. Under ``course run --record`` it also stores them.

    Raises:
        ValueError: a table or a row that ``papers.json`` does not know, or a value that is no plain number.
    """
    known = tables()
    if table_id not in known:
        raise ValueError(f"table_id is {table_id!r}; papers.json knows {', '.join(known)}.")
    extra = set(yours) - {row["key"] for row in known[table_id]["rows"]}
    if extra:
        raise ValueError(f"yours has rows {sorted(extra)} that table {table_id!r} in papers.json lacks; add them there.")
    for key, value in yours.items():  # seen at quick scale, so that no full run ends in numbers that cannot be stored
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"yours[{key!r}] is {value!r}; give a number or a list of one per seed: .item() or .tolist() of a tensor.")
    if os.environ.get("COURSE_RECORD") and runtime.scale() == "full":
        _record(table_id, yours, data)
    return Table(table_id, yours, data)


def _record(table_id: str, values: Values, data: str) -> None:
    provenance = {
        "scale": runtime.scale(),
        "data": data,
        "device": runtime.device_name(),
        "seconds": round(runtime.elapsed()),
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("COURSE_COMMIT") or _commit(),
        **runtime.versions(),
    }
    text = json.dumps({"values": values, "provenance": provenance}, indent=1, ensure_ascii=False)
    runtime.write_atomic(_results_dir() / f"{table_id}.json", text + "\n")


def _commit() -> str:
    """The commit of the clone, ``unknown`` outside one; ``-dirty`` where tracked files other than ``results/``, which a run writes, were changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=runtime.ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def page() -> str:
    """Markdown of all tables: paper, recorded, gap, why. ``course results`` writes it to ``results/README.md``."""
    lines = [
        "# Reproduced tables",
        "",
        "Made by `course results` from `course_utils/papers.json` and the JSON files beside this page; not edited by hand.",
    ]
    lines += ["A gap is recorded minus paper; ± is one standard deviation over seeds.", ""]
    for table_id, spec in tables().items():
        found = recorded(table_id)
        lines += [f"## {table_id}: {spec['title']}", "", f"Source: {spec['source']}.", ""]
        lines += ["| | paper | recorded | gap | why |", "|:--|--:|--:|--:|:--|"]
        for row in spec["rows"]:
            paper, value = row.get("paper"), found and found["values"].get(row["key"])
            both = isinstance(paper, int | float) and value is not None and math.isfinite(mean(value))
            gap = f"{mean(value) - paper:+.{spec.get('digits', 2)}f}" if both else "–"
            lines.append(f"| {row['label']} | {show_value(paper, spec)} | {show_value(value, spec)} | {gap} | {row.get('why', '')} |")
        if found:
            p = found["provenance"]
            lines += [
                "",
                f"{p['scale']} scale on {p['data']}; {p['device']}; {p['seconds']} s for the lecture so far; Python {p['python']}, ",
            ]
            lines[-1] += f"PyTorch {p['torch']}; commit {p['commit']}; {p['date']}."
        lines.append("")
    return "\n".join(lines)
