"""Predict before you run: ``check.predict`` asks, ``check.outcome`` says what the run gave.

A prediction is kept in a file beside the progress; the first one counts. It does not matter which
of the two cells runs first: the verdict appears once there are a prediction and an outcome.
"""

from course_utils.check.progress_file import guesses_file, kept, remember
from course_utils.core import files

ASKED: dict[str, tuple] = {}  # name -> choices and their widget
OUTCOMES: dict[str, str] = {}


def predict(name: str, *choices: str):
    """Returns choices to click on, before the run. ``name`` is that of one prediction.

    Raises:
        ValueError: fewer than two choices, or the same one twice.
    """
    from course_utils.lesson.widgets import Choices  # imports Jupyter's half

    if len(set(choices)) != len(choices) or len(choices) < 2:
        raise ValueError(f"choices are {choices}; give two or more, each once.")

    def chosen(choice: str) -> None:
        unkept = remember(name, choice, guesses_file)
        view.say((unkept or so_far(name, choice)).strip())

    mine = guess(name)
    view = Choices(choices, mine, chosen)
    view.say(so_far(name, mine) if mine in choices else "")
    ASKED[name] = choices, view
    return view


def outcome(name: str, found: str) -> None:
    """Prints which of the choices the run gave, beside the prediction if there is one.

    Raises:
        ValueError: ``predict`` did not ask this, or does not offer this choice.
    """
    choices, view = ASKED.get(name, ((), None))
    if found not in choices:
        raise ValueError(f"found is {found!r}; check.predict({name!r}, …) offers {choices}.")
    OUTCOMES[name] = found
    mine = guess(name)
    if mine not in choices:
        files.say(f"In this run: {found}. (No prediction of yours is kept.)")
        return
    view.say(so_far(name, mine))
    files.say(so_far(name, mine))


def so_far(name: str, choice: str) -> str:
    """What is known of a prediction: the first one counts, also where ``choice`` is another."""
    mine = guess(name) or choice
    first = "" if mine == choice else f" (Your first prediction counts: {mine}.)"
    if name not in OUTCOMES:
        return f"Kept; now run the next cells.{first}"
    right = "As you predicted" if mine == OUTCOMES[name] else "Not as you predicted"
    return f"{right}. In this run: {OUTCOMES[name]}.{first}"


def guess(name: str) -> str | None:
    """The prediction kept under ``name``, or None."""
    try:
        return kept(guesses_file()).get(name)
    except (OSError, ValueError):  # ValueError: no folder is named
        return None
