"""What came of a number of a paper: a rule that compares it with ours.

``RULE`` says the rule to a reader.
"""

import math
import statistics
from dataclasses import dataclass

from course_utils.lesson.result_tables import Value, mean, why_unrecorded

REPRODUCED = "reproduced"
NOISE = "within noise"
FAILED = "not reproduced"
MISSING = "not recorded"
WORDS = "in words"
ORDER = (REPRODUCED, NOISE, FAILED, MISSING, WORDS)
NO_REASON = "why is not known"
LEVEL = 0.99
FEWEST = 3  # values that show how much seeds differ
POINTS = 2  # of tables in %
SHARE = 0.1  # of the paper's number, in other tables

RULE = f"""\
- *{REPRODUCED}*: our mean is within {POINTS} percentage points of the paper's number in tables in
  %, within {100 * SHARE:g} % of it in others. A table with another tolerance says so.
- *{NOISE}*: it is further away, but our seeds differ as much. The paper's number, taken as one
  run, lies in the {100 * LEVEL:g} % prediction interval of one more run of ours (Student's t, at
  least {FEWEST} seeds), which is printed. With three seeds it reaches 11 standard deviations to
  either side: it excludes little, and the verdict says no more than that.
- *{FAILED}*: neither, with the reason as far as it is known.
- *{MISSING}*: there is no number of ours.
- *{WORDS}*: the source has a word and no number."""


@dataclass(frozen=True)
class Row:
    """A row with a paper's value, ours (None without one), and what came of it.

    ``verdict`` is one of the five above, ``words`` what the page says.
    """

    table_id: str
    spec: dict
    label: str
    paper: float | str
    ours: Value | None
    verdict: str
    words: str


def rows(specs: dict[str, dict], records: dict[str, dict | None]) -> list[Row]:
    """Returns all rows with a paper's value, judged."""
    judged = []
    for table_id, spec in specs.items():
        values = (records[table_id] or {"values": {}})["values"]
        for row in spec["rows"]:
            if "paper" in row:
                ours = values.get(row["key"])
                verdict, words = judge(ours, row, spec)
                judged.append(Row(table_id, spec, row["label"], row["paper"], ours, verdict, words))
    return judged


def judge(ours: Value | None, row: dict, spec: dict) -> tuple[str, str]:
    """Returns the verdict on one row, and the verdict in words."""
    why = row.get("why", NO_REASON)
    paper = row["paper"]
    if ours is None:
        return MISSING, f"{MISSING}: {why_unrecorded(spec)}"
    if isinstance(paper, str):
        return WORDS, f"{WORDS}: {why}"
    if abs(mean(ours) - paper) <= tolerance(paper, spec) * (1 + 1e-9):
        return REPRODUCED, REPRODUCED
    low, high = interval(ours)
    if low <= paper <= high:
        digits = spec.get("digits", 2)
        return NOISE, f"{NOISE}: one more run lies in {low:.{digits}f} … {high:.{digits}f}"
    return FAILED, f"{FAILED}: {why}"


def tolerance(paper: float, spec: dict) -> float:
    """Returns how far our mean may be from the paper's number.

    The table's ``tolerance``, ``{"absolute": …}`` or ``{"relative": …}``, counts before the rule.
    """
    default = {"absolute": POINTS} if spec.get("unit") == "%" else {"relative": SHARE}
    found = spec.get("tolerance", default)
    return found["absolute"] if "absolute" in found else found["relative"] * abs(paper)


def interval(ours: Value) -> tuple[float, float]:
    """Returns the prediction interval of one more run; an empty one (nan) where it has no bounds.

    Assumes independent runs with normally distributed results.
    """
    from scipy import stats  # slow to import

    numbers = ours if isinstance(ours, list) else [ours]
    n = len(numbers)
    if n < FEWEST or not all(map(math.isfinite, numbers)):
        return math.nan, math.nan
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * statistics.stdev(numbers) * math.sqrt(1 + 1 / n)
    return mean(numbers) - half, mean(numbers) + half
