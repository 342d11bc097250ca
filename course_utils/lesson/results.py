"""The paper's number, the recorded full run's and yours, side by side.

``results/papers.json`` holds what the sources print, each with its place; ``results/<table>.json``
a recorded run with its provenance; ``results/README.md`` is the page made of both.
"""

import datetime
import json
import math
import os
import statistics
import subprocess
from dataclasses import dataclass

from course_utils.core import files, runtime

PAPERS = files.ROOT / "results" / "papers.json"

Values = dict[str, float | list[float]]  # a list holds one number per seed


def tables() -> dict[str, dict]:
    """Returns all tables of ``papers.json`` by id, each with title, source, unit and rows.

    A row has key, label, the paper's value and where it stands.
    """
    return json.loads(PAPERS.read_text(encoding="utf-8"))


def recorded(table_id: str) -> dict | None:
    """Returns the recorded full run, ``{"values": …, "provenance": …}``, or None without one."""
    path = files.results_dir() / f"{table_id}.json"
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Table:
    """One table of a lecture: ``yours`` is this run.

    A claim about full scale is judged on ``full``; ``is_recorded`` says whether that is the
    recorded run.
    """

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
                f"There is no recorded full run of table {self.table_id!r}; "
                f"make one with `{record_command(self.table_id)}`."
            )
        return found["values"]

    def _repr_markdown_(self) -> str:
        spec = tables()[self.table_id]
        found = recorded(self.table_id)
        known = found["values"] if found else {}
        lines = [
            f"**{spec['title']}** ({spec['source']})",
            "",
            f"| | paper | recorded full run | your run ({runtime.scale()}, {self.data}) |",
            "|:--|--:|--:|--:|",
        ]
        for row in spec["rows"]:
            values = (row.get("paper"), known.get(row["key"]), self.yours.get(row["key"]))
            cells = [row["label"], *(show_value(value, spec) for value in values)]
            lines.append(f"| {' | '.join(cells)} |")
        if found is None:
            lines += ["", f"*No recorded run yet: `{record_command(self.table_id)}` makes one.*"]
        return "\n".join(lines)


def record_command(table_id: str) -> str:
    """Returns the command that records the lecture of a table."""
    return f"course run --scale full --record {table_id[:2]}"


def show_value(value: float | list[float] | str | None, spec: dict) -> str:
    """Returns a table cell: a number, or mean ± standard deviation over seeds; – for None.

    Runs without a finite value (an attack that never succeeds needs infinitely many steps) have no
    mean; they are counted. The number of seeds is in the table's title.
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
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):.{digits}f}"
    return f"{text} {spec.get('unit', '')}".rstrip()


def mean(value: float | list[float]) -> float:
    """Returns the number itself, or the mean over seeds."""
    return statistics.mean(value) if isinstance(value, list) else value


def table(table_id: str, yours: Values, data: str) -> Table:
    """Returns the three columns of a table; ``data`` names the data set of this run.

    Under ``course run --record`` it also stores them.

    Raises:
        ValueError: a table or a row that ``papers.json`` lacks, or a value that is no plain number.
    """
    known = tables()
    if table_id not in known:
        raise ValueError(f"table_id is {table_id!r}; papers.json knows {', '.join(known)}.")
    extra = set(yours) - {row["key"] for row in known[table_id]["rows"]}
    if extra:
        raise ValueError(
            f"yours has rows {sorted(extra)} that table {table_id!r} in papers.json lacks; "
            "add them there."
        )
    # at every scale, so that no full run ends in numbers that cannot be stored
    for key, value in yours.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(
                f"yours[{key!r}] is {value!r}; give a number or a list of one per seed: "
                ".item() or .tolist() of a tensor."
            )
    if os.environ.get("COURSE_RECORD") and runtime.scale() == "full":
        record(table_id, yours, data)
    return Table(table_id, yours, data)


def record(table_id: str, values: Values, data: str) -> None:
    """Stores a full run with its provenance."""
    provenance = {
        "scale": runtime.scale(),
        "data": data,
        "device": runtime.device_name(),
        "seconds": round(runtime.elapsed()),
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("COURSE_COMMIT") or commit(),
        **runtime.versions(),
    }
    text = json.dumps({"values": values, "provenance": provenance}, indent=1, ensure_ascii=False)
    path = files.results_dir() / f"{table_id}.json"
    try:
        files.write_atomic(path, text + "\n")
    except OSError as error:  # counted as a claim that fails; hours of computing are not lost
        files.say(f"✘ {path} could not be written ({error}). It should hold\n{text}")


def commit() -> str:
    """Returns the commit of the clone, ``unknown`` outside one.

    It ends in ``-dirty`` where tracked files were changed, other than ``results/``, which a run
    writes.
    """
    try:
        elsewhere = ("--", ".", ":(exclude)results")
        changed = git("status", "--porcelain", "--untracked-files=no", *elsewhere)
        head = git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def git(*arguments: str) -> str:
    """Returns what a git command prints in the clone."""
    done = subprocess.run(
        ["git", *arguments], cwd=files.ROOT, capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def page() -> str:
    """Returns Markdown of all tables, which ``course results`` writes to ``results/README.md``."""
    lines = [
        "# Reproduced tables",
        "",
        "Made by `course results` from `papers.json` and the JSON files beside this page; "
        "not edited by hand.",
        "A gap is recorded minus paper; ± is one standard deviation over seeds.",
        "",
    ]
    for table_id, spec in tables().items():
        lines += page_section(table_id, spec)
    return "\n".join(lines)


def page_section(table_id: str, spec: dict) -> list[str]:
    """Returns the lines of one table on the page: paper, recorded, gap, why."""
    found = recorded(table_id)
    values = found["values"] if found else {}
    lines = [
        f"## {table_id}: {spec['title']}",
        "",
        f"Source: {spec['source']}.",
        "",
        "| | paper | recorded | gap | why |",
        "|:--|--:|--:|--:|:--|",
    ]
    for row in spec["rows"]:
        paper = row.get("paper")
        value = values.get(row["key"])
        cells = [
            row["label"],
            show_value(paper, spec),
            show_value(value, spec),
            gap(value, paper, spec),
            row.get("why", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if found:
        p = found["provenance"]
        lines += [
            "",
            f"{p['scale']} scale on {p['data']}; {p['device']}; {p['seconds']} s for the lecture "
            f"so far; Python {p['python']}, PyTorch {p['torch']}; commit {p['commit']}; "
            f"{p['date']}.",
        ]
    return [*lines, ""]


def gap(value: float | list[float] | None, paper: float | str | None, spec: dict) -> str:
    """Returns recorded minus paper, – where one of them is missing or not finite."""
    if not isinstance(paper, int | float) or value is None or not math.isfinite(mean(value)):
        return "–"
    return f"{mean(value) - paper:+.{spec.get('digits', 2)}f}"
