"""Predict before you run: ``check.predict`` asks, ``check.outcome`` says what the run gave.

A prediction is kept in a file beside the progress; the first one counts. It does not matter which
of the two cells runs first: the verdict appears once there are a prediction and an outcome.
"""

import ipywidgets

from course_utils.check import progress_file
from course_utils.core import files

OUTCOMES: dict[str, str] = {}  # of this kernel
ASKED: dict[str, "Prediction"] = {}


class Prediction(ipywidgets.VBox):
    """The choices of one prediction, above a line that says what became of it."""

    def __init__(self, name: str, choices: tuple[str, ...]):
        self.name = name
        self.choices = ipywidgets.RadioButtons(options=choices, index=None)
        self.choices.layout.width = "auto"
        self.verdict = ipywidgets.Label()
        super().__init__([self.choices, self.verdict])
        mine = guess(name)
        if mine in choices:
            self.choices.value = mine
            self.show()
        self.choices.observe(self.chosen, "value")

    def chosen(self, change: dict) -> None:
        """Keeps the first choice, which counts."""
        self.unkept = progress_file.remember(
            self.name, change["new"], progress_file.guesses_file()
        ) or ("" if guess(self.name) == change["new"] else f" Your first was: {guess(self.name)}.")
        self.show()

    def show(self) -> None:
        """Says what became of the prediction, as far as is known."""
        found = OUTCOMES.get(self.name)
        said = "Kept. Run the next cells." if found is None else verdict(self.choices.value, found)
        self.verdict.value = said + getattr(self, "unkept", "")


def guess(name: str) -> str | None:
    """The prediction kept under ``name``, or None."""
    try:
        return progress_file.kept(progress_file.guesses_file()).get(name)
    except (OSError, ValueError):  # ValueError: no folder is named
        return None


def verdict(mine: str, found: str) -> str:
    return f"{'As predicted' if mine == found else 'Not as predicted'}: in this run, {found}."


def predict(name: str, *choices: str) -> Prediction:
    """Choices to click on, before the run. ``name`` belongs to one prediction of the course.

    Raises:
        ValueError: fewer than two choices, or the same one twice.
    """
    if len(set(choices)) != len(choices) or len(choices) < 2:
        raise ValueError(f"choices are {choices}; give two or more, each once.")
    ASKED[name] = Prediction(name, choices)
    return ASKED[name]


def outcome(name: str, found: str) -> None:
    """Prints which of the choices the run gave, beside the prediction if there is one.

    Raises:
        ValueError: ``predict`` did not ask this, or does not offer this choice.
    """
    asked = ASKED.get(name)
    offered = asked.choices.options if asked else ()
    if found not in offered:
        raise ValueError(f"found is {found!r}; check.predict({name!r}, …) offers {offered}.")
    OUTCOMES[name] = found
    if asked.choices.value is None:
        files.say(f"In this run: {found}. (You have not predicted; click above.)")
        return
    asked.show()
    files.say(verdict(asked.choices.value, found))
