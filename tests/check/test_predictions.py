"""A prediction is kept, the first one counts, and the outcome may come before or after it."""

import json

import pytest

from course_utils import check
from course_utils.check import prediction


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_STATE", str(tmp_path))
    monkeypatch.setattr(prediction, "ASKED", {})
    monkeypatch.setattr(prediction, "OUTCOMES", {})
    return tmp_path / "predictions.json"


def test_the_choice_is_kept_and_compared_with_the_outcome(state, capsys):
    view = check.predict("x", "few", "many")
    assert view.buttons.value is None and view.line.value == ""
    view.buttons.value = "few"
    assert json.loads(state.read_text()) == {"x": "few"}
    assert view.line.value == "Kept; now run the next cells."
    check.outcome("x", "many")
    assert capsys.readouterr().out == "Not as you predicted. In this run: many.\n"
    assert view.line.value.startswith("Not as you predicted")


def test_the_outcome_may_come_first(capsys):
    view = check.predict("x", "few", "many")
    check.outcome("x", "many")
    assert "In this run: many. (No prediction of yours" in capsys.readouterr().out
    view.buttons.value = "many"
    assert view.line.value == "As you predicted. In this run: many."


def test_the_first_prediction_counts_in_a_later_session_too(capsys):
    check.predict("x", "few", "many").buttons.value = "few"
    again = check.predict("x", "few", "many")
    assert again.buttons.value == "few"
    again.buttons.value = "many"
    assert "Your first prediction counts: few." in again.line.value
    check.outcome("x", "many")
    assert capsys.readouterr().out.startswith("Not as you predicted")


def test_what_cannot_be_kept_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_STATE", '"quoted"')
    view = check.predict("x", "few", "many")
    view.buttons.value = "few"
    assert "could not be kept" in view.line.value


def test_bad_choices_and_outcomes_are_named():
    with pytest.raises(ValueError, match="give two or more, each once"):
        check.predict("x", "few", "few")
    with pytest.raises(ValueError, match="found is 'few'.*offers"):
        check.outcome("x", "few")
    check.predict("x", "few", "many")
    with pytest.raises(ValueError, match="found is 'all'"):
        check.outcome("x", "all")
