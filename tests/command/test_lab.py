"""The working copy. The server is tested in tests/browser/."""

from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.command import lab, slides

LECTURE, BESIDE = "01_first.ipynb", "01_first (new version).ipynb"


def lecture(text="the course's text", *outputs):
    code = new_code_cell("1 + 1", id="b", outputs=list(outputs))
    return nbformat.writes(new_notebook(cells=[new_markdown_cell(text, id="a"), code]))


COMPUTED = lecture("the course's text", new_output("stream", text="two hours of training"))
MINE, BETTER = lecture("my text"), lecture("better text")


@pytest.fixture
def course(tmp_path, env):
    """The course's lecture; the student's copy will lie in another folder."""
    path = tmp_path / "course" / LECTURE
    path.parent.mkdir()
    path.write_text(lecture(), encoding="utf-8")
    env(LECTURES=path.parent, STATE=tmp_path / "state")
    return path


@pytest.fixture
def copy(course):
    return lab.working_copy() / LECTURE


def names(copy):
    return sorted(path.name for path in copy.parent.glob("*.ipynb"))


def test_working_copy_is_made_outside_the_course(course, copy):
    assert course.parent not in copy.parents
    assert copy.read_text() == lecture() and names(copy) == [LECTURE]


def test_notes_for_the_speaker_are_left_out(course):
    notes = new_markdown_cell("Let them guess.", metadata={"slideshow": {"slide_type": "notes"}})
    notebook = nbformat.reads(lecture(), as_version=4)
    notebook.cells.insert(1, notes)
    nbformat.write(notebook, course)
    copy = lab.working_copy() / LECTURE
    assert copy.read_text() == lecture()


def test_an_untouched_copy_follows_the_course(course, copy, capsys):
    course.write_text(BETTER)
    assert lab.working_copy() == copy.parent
    assert copy.read_text() == BETTER
    assert names(copy) == [LECTURE] and capsys.readouterr().out == ""


def test_opening_a_notebook_is_no_change(course, copy):
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # JupyterLab writes it when it saves
    copy.write_text(nbformat.writes(notebook, indent=4))
    course.write_text(BETTER)
    lab.working_copy()
    assert copy.read_text() == BETTER


@pytest.mark.parametrize("official", [lecture(), COMPUTED], ids=["same", "new outputs alone"])
def test_a_changed_copy_is_kept(course, copy, capsys, official):
    copy.write_text(MINE)
    course.write_text(official)
    lab.working_copy()
    assert names(copy) == [LECTURE]
    assert copy.read_text() == MINE and capsys.readouterr().out == ""


def test_where_both_changed_the_new_version_lies_beside(course, copy, capsys):
    beside = copy.with_name(BESIDE)
    copy.write_text(MINE)
    course.write_text(BETTER)
    lab.working_copy()
    assert names(copy) == [BESIDE, LECTURE]
    assert copy.read_text() == MINE and beside.read_text() == BETTER
    assert capsys.readouterr().out == (
        f"{LECTURE} has a new version, and you have changed yours: yours is kept, the new one is '{BESIDE}'.\n"
    )
    lab.working_copy()
    assert capsys.readouterr().out == "", "said once"

    course.write_text(lecture("best text"))
    lab.working_copy()
    assert beside.read_text() == lecture("best text"), "untouched: replaced by a newer one"

    beside.write_text(lecture("my second text"))
    course.write_text(lecture("perfect text"))
    lab.working_copy()
    assert beside.read_text() == lecture("my second text")
    second = copy.with_name("01_first (new version 2).ipynb")
    assert second.read_text() == lecture("perfect text")


BAD = ["", "{half a noteb", "[]", '{"cells": 3}', "\x00\xff"]


@pytest.mark.parametrize("content", [COMPUTED, *BAD])
def test_computed_outputs_and_a_copy_that_cannot_be_read_are_kept(course, copy, content):
    copy.write_text(content)
    course.write_text(BETTER)
    lab.working_copy()
    assert copy.read_text() == content and names(copy) == [BESIDE, LECTURE]


@pytest.mark.parametrize("record", [None, "", "{half a rec", "[]", "{}"])
def test_without_its_record_every_difference_is_the_students(copy, record):
    copy.write_text(MINE)
    origins = copy.with_name(".origins.json")
    origins.unlink() if record is None else origins.write_text(record)
    lab.working_copy()
    assert copy.read_text() == MINE and names(copy) == [BESIDE, LECTURE]


def test_a_deleted_copy_comes_back_fresh(copy):
    copy.unlink()
    lab.working_copy()
    assert copy.read_text() == lecture()


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/state"])
def test_a_copy_that_cannot_be_written_is_refused_with_the_cure(course, env, folder):
    env(STATE=folder)
    for start in (lab.working_copy, lab.lab, lambda: slides.present("01")):
        with pytest.raises(ValueError, match=f"^{folder}/lectures.*Set COURSE_STATE to"):
            start()


def test_the_server_s_kernels_find_the_folders_of_this_command(tmp_path, monkeypatch, env):
    """They start in the working copy."""
    started = []
    monkeypatch.chdir(tmp_path)
    env(DATA="data", CACHE="cache", STATE="state", RESULTS="results")

    def popen(command, env, **options):
        started.append(env)
        return SimpleNamespace(poll=lambda: 0, wait=lambda: 0)

    monkeypatch.setattr(lab.subprocess, "Popen", popen)
    monkeypatch.setattr(lab, "exit_on_signals", lambda: None)
    with lab.server(tmp_path, {}):
        pass
    for name in ("DATA", "CACHE", "STATE", "RESULTS"):
        assert started[0][f"COURSE_{name}"] == str(tmp_path.resolve() / name.lower())


def test_a_server_that_does_not_start_ends_the_command(course):
    assert lab.lab(["--no-browser", "--ServerApp.port=none"]) != 0
