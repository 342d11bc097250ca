"""Checks for the exercises: ``check.fgsm(fgsm)``, ``check.hint("fgsm")``, ``check.progress()``.

A check prints ● where the function is right, else ○ and what to look at, and never raises. Each
lecture has a file of its exercises here. A function whose name ends in ``_solution`` is checked
like any other but is no progress of the student's. ``check.predict`` asks before a run, and
``check.outcome`` answers.
"""

from importlib import import_module

from course_utils.check.exercise import Exercise
from course_utils.check.prediction import outcome, predict  # noqa: F401
from course_utils.check.progress_file import solved
from course_utils.core import files

LECTURES = (
    "start_here cnn fake_images untargeted targeted linear defences "
    "lwa mine minmax uae confuse evidence defence photographs"
).split()
EXERCISES: dict[str, Exercise] = {}
for lecture in LECTURES:
    values = vars(import_module(f"course_utils.check.{lecture}")).values()
    EXERCISES |= {value.name: value for value in values if isinstance(value, Exercise)}
globals().update(EXERCISES)


def hint(name: str, level: int = 1) -> None:
    """Prints hint 1, or with ``level`` a stronger one.

    Raises:
        ValueError: an exercise that does not exist.
    """
    if name not in EXERCISES:
        raise ValueError(f"name is {name!r}; the exercises are {', '.join(EXERCISES)}.")
    hints = EXERCISES[name].hints
    level = max(1, min(level, len(hints)))
    more = "  That was the last hint; the solution is below the check."
    if level < len(hints):
        more = f'  More: check.hint("{name}", {level + 1}).'
    files.say(f"Hint {level} of {len(hints)}: {hints[level - 1]}{more}")


def progress() -> None:
    """Prints the ladder of all exercises, and how far you are."""
    done = {}
    try:
        done = solved()
    except (OSError, ValueError) as error:  # ValueError: no folder is named
        files.say(f"(Your progress cannot be read: {error}.)")
    width = max(map(len, EXERCISES))
    for name, item in EXERCISES.items():
        mark = "●" if name in done else "○"
        files.say(f"{mark} {item.lecture}  {name:{width}} {item.level:4}  {item.title}")
    files.say(f"{len(done.keys() & EXERCISES.keys())} of {len(EXERCISES)} solved")
