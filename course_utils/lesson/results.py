"""The paper's number, the recorded full run's and yours, side by side.

``results/papers.json`` holds what the sources print, each with its place; ``results/<table>.json``
a recorded run with its provenance; ``results/README.md`` is the page made of both.
"""

import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from course_utils.core import files, runtime
from course_utils.core.images import Images
from course_utils.lesson import result_tables
from course_utils.lesson.result_tables import Value, mean, record_command

__all__ = ["mean", "page", "picture", "record_command", "recorded", "table", "tables"]

PAPERS = files.ROOT / "results" / "papers.json"

Values = dict[str, Value]


def tables() -> dict[str, dict]:
    """Returns all tables of ``papers.json`` by id, each with title, source, unit and rows.

    A row has key, label, the paper's value and where it stands.
    """
    return json.loads(PAPERS.read_text(encoding="utf-8"))


def recorded(table_id: str) -> dict | None:
    """Returns the recorded full run, ``{"values": …, "provenance": …}``, or None without one.

    Values are flat, one for each row of the table, also where the file nests them.
    """
    path = files.results_dir() / f"{table_id}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found | {"values": result_tables.flatten(found["values"])}


@dataclass
class Table:
    """One table of a lecture: ``yours`` is this run, ``data`` the name of its data set.

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
        found = recorded(self.table_id) or {"values": {}}
        name = f"your run ({runtime.scale()}, {result_tables.verbatim(self.data)})"
        yours = result_tables.Source(name, "yours", self.yours)
        spec = tables()[self.table_id]
        lines = result_tables.lecture_lines(self.table_id, spec, yours, found["values"])
        return "\n".join(lines).rstrip()


@dataclass(frozen=True)
class Run:
    """How the numbers of a table were measured; None where a question does not apply.

    ``seeds`` is None where no seeds are named.
    """

    data: Images | str
    images: int | None
    examples: int | None
    epochs: int | None
    seeds: Sequence[int] | None

    def __post_init__(self):
        if not isinstance(self.data, Images | str):
            raise ValueError(
                f"data is a {type(self.data).__name__}; give the Images that were judged, "
                "or the name of what was."
            )
        for name in ("images", "examples", "epochs"):
            count = getattr(self, name)
            if count is not None and not (isinstance(count, int) and count > 0):
                raise ValueError(f"{name} is {count!r}; give how many, 1 or more, or leave it out.")
        if self.seeds is not None:
            if not isinstance(self.seeds, Sequence) or isinstance(self.seeds, str):
                raise ValueError(
                    f"seeds is {self.seeds!r}; give the seeds themselves, such as range(3)."
                )

    @property
    def source(self) -> str:
        return self.data if isinstance(self.data, str) else self.data.source


def table(
    table_id: str,
    yours: Values,
    data: Images | str,
    *,
    images: int | None = None,
    examples: int | None = None,
    epochs: int | None = None,
    seeds: Sequence[int] | None = None,
) -> Table:
    """Returns a table with the paper's numbers, the recorded full run's and ``yours``.

    Under ``course run --record`` it also stores them, with what the other arguments say.

    Args:
        table_id: Such as ``"07-table1"``, from ``papers.json``.
        yours: A number for each row, or a list of one per seed. Rows may be missing.
        data: The test images that were judged, or only the name of what was.
        images: How many images (or pairs, or samples) each value was measured on.
        examples: How many training examples there were.
        epochs: Of the training.
        seeds: Which seeds; None names none, and only the longest row's values are counted.

    Raises:
        ValueError: a table or a row that ``papers.json`` lacks, a value that is no plain number,
            or one of the other arguments makes no sense.
    """
    known = tables()
    if table_id not in known:
        raise ValueError(f"table_id is {table_id!r}; papers.json knows {', '.join(known)}.")
    check_values(table_id, yours, known[table_id])
    run = Run(data, images, examples, epochs, seeds)
    seconds = lap()
    if os.environ.get("COURSE_RECORD") and runtime.scale() == "full":
        record(table_id, result_tables.nest(yours, known[table_id]), run, seconds)
    return Table(table_id, yours, run.source)


def check_values(table_id: str, yours: Values, spec: dict) -> None:
    """Refuses unknown rows and what is no plain number.

    At every scale, so that no full run ends in numbers that cannot be stored.
    """
    extra = set(yours) - {row["key"] for row in spec["rows"]}
    if extra:
        raise ValueError(
            f"yours has rows {sorted(extra)} that table {table_id!r} in papers.json lacks; "
            "add them there."
        )
    for key, value in yours.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(
                f"yours[{key!r}] is {value!r}; give a number or a list of one per seed: "
                ".item() or .tolist() of a tensor."
            )


# --- recording


laps = [0.0]  # runtime.elapsed() at each table of this process


def lap() -> float:
    """Returns the seconds since the last call, at first since the course was imported."""
    laps.append(runtime.elapsed())
    return laps[-1] - laps[-2]


def record(table_id: str, values: dict, run: Run, seconds: float) -> None:
    """Stores a full run with its provenance. ``values`` are nested where there are matrices."""
    found = provenance(table_id, values, run, seconds)
    text = json.dumps({"values": values, "provenance": found}, indent=1, ensure_ascii=False)
    path = files.results_dir() / f"{table_id}.json"
    try:
        files.write_atomic(path, text + "\n")
    except OSError as error:  # counted as a claim that fails; hours of computing are not lost
        files.say(f"✘ {path} could not be written ({error}). It should hold\n{text}")


def provenance(table_id: str, values: dict, run: Run, seconds: float) -> dict:
    """Returns where a table comes from. None says that a question does not apply."""
    flat = result_tables.flatten(values).values()
    return {
        "command": os.environ.get("COURSE_COMMAND") or record_command(table_id),
        "scale": runtime.scale(),
        "seeds": None if run.seeds is None else [int(seed) for seed in run.seeds],
        "values": max((len(value) for value in flat if isinstance(value, list)), default=1),
        "images": run.images,
        "examples": run.examples,
        "epochs": run.epochs,
        "data": run.source,
        "checksum": None if isinstance(run.data, str) else checksum(run.data),
        "device": runtime.device_name(),
        "threads": torch.get_num_threads(),
        "table_seconds": round(seconds),
        "seconds": round(runtime.elapsed()),
        "date": datetime.date.today().isoformat(),
        **runtime.versions(),
        "commit": os.environ.get("COURSE_COMMIT") or commit(),
    }


def checksum(images: Images) -> str:
    """Returns sixteen hex digits that change with the grey level of any pixel and any label."""
    levels = (images.x.detach().cpu() * 255).round().to(torch.uint8)
    digest = hashlib.sha256(levels.contiguous().numpy().tobytes())
    digest.update(images.y.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


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


# --- the page


def records() -> dict[str, dict | None]:
    """Returns the recorded run of every table."""
    return {table_id: recorded(table_id) for table_id in tables()}


def page() -> str:
    """Returns Markdown of all tables, which ``course results`` writes to ``results/README.md``."""
    from course_utils.lesson import results_page  # scipy is slow to import

    return results_page.page(tables(), records())


def picture() -> bytes:
    """Returns the page's picture as SVG: ``course results`` writes ``results/summary.svg``."""
    from course_utils.lesson import results_picture

    return results_picture.picture(tables(), records())
