"""The working copy, and lectures made into slides. The servers are tested in tests/browser/."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils import jupyter

LECTURE = "01_first.ipynb"


def lecture(text="the course's text", outputs=()):
    return nbformat.writes(new_notebook(cells=[new_markdown_cell(text, id="a"), new_code_cell("1 + 1", id="b", outputs=list(outputs))]))


@pytest.fixture
def course(tmp_path, monkeypatch):
    """The course's folder with one lecture; the student's copies will lie in another."""
    folder = tmp_path / "course"
    folder.mkdir()
    (folder / LECTURE).write_text(lecture(), encoding="utf-8")
    monkeypatch.setenv("COURSE_LECTURES", str(folder))
    monkeypatch.setenv("COURSE_STATE", str(tmp_path / "state"))
    return folder


def names(folder):
    return sorted(path.name for path in folder.glob("*.ipynb"))


def test_working_copy_is_made_outside_the_course(course):
    copies = jupyter.working_copy()
    assert course not in copies.parents
    assert (copies / LECTURE).read_text() == lecture()
    assert names(copies) == [LECTURE]


def test_an_untouched_copy_follows_the_course(course, capsys):
    copies = jupyter.working_copy()
    (course / LECTURE).write_text(lecture("better text"))
    assert (jupyter.working_copy() / LECTURE).read_text() == lecture("better text")
    assert names(copies) == [LECTURE] and capsys.readouterr().out == ""


def test_opening_a_notebook_is_no_change(course):
    copy = jupyter.working_copy() / LECTURE
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # JupyterLab writes it when it saves
    copy.write_text(nbformat.writes(notebook, indent=4))
    (course / LECTURE).write_text(lecture("better text"))
    assert (jupyter.working_copy() / LECTURE).read_text() == lecture("better text")


def test_a_changed_copy_is_kept(course, capsys):
    copy = jupyter.working_copy() / LECTURE
    copy.write_text(lecture("my text"))
    assert names(jupyter.working_copy()) == [LECTURE]
    assert copy.read_text() == lecture("my text") and capsys.readouterr().out == ""


def test_computed_outputs_count_as_a_change(course):
    copy = jupyter.working_copy() / LECTURE
    computed = lecture(outputs=[new_output("stream", text="two hours of training")])
    copy.write_text(computed)
    (course / LECTURE).write_text(lecture("better text"))
    jupyter.working_copy()
    assert copy.read_text() == computed


def test_where_both_changed_the_new_version_lies_beside(course, capsys):
    copies = jupyter.working_copy()
    (copies / LECTURE).write_text(lecture("my text"))
    (course / LECTURE).write_text(lecture("better text"))
    jupyter.working_copy()
    beside = "01_first (new version).ipynb"
    assert names(copies) == [beside, LECTURE]
    assert (copies / LECTURE).read_text() == lecture("my text") and (copies / beside).read_text() == lecture("better text")
    assert capsys.readouterr().out == (
        "01_first.ipynb has a new version, and you have changed yours: yours is kept, the new one is '01_first (new version).ipynb'.\n"
    )
    jupyter.working_copy()
    assert capsys.readouterr().out == "", "said once"

    (course / LECTURE).write_text(lecture("best text"))
    jupyter.working_copy()
    assert (copies / beside).read_text() == lecture("best text"), "an untouched new version is replaced by a newer one"

    (copies / beside).write_text(lecture("my second text"))
    (course / LECTURE).write_text(lecture("perfect text"))
    jupyter.working_copy()
    assert (copies / beside).read_text() == lecture("my second text")
    assert (copies / "01_first (new version 2).ipynb").read_text() == lecture("perfect text")


def test_new_outputs_alone_make_no_new_version_of_a_changed_copy(course, capsys):
    copies = jupyter.working_copy()
    (copies / LECTURE).write_text(lecture("my text"))
    (course / LECTURE).write_text(lecture(outputs=[new_output("stream", text="0.991")]))
    assert names(jupyter.working_copy()) == [LECTURE] and capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", "{half a noteb", "[]", '{"cells": 3}', "\x00\xff"])
def test_a_copy_that_cannot_be_read_is_kept(course, content):
    copies = jupyter.working_copy()
    (copies / LECTURE).write_text(content)
    (course / LECTURE).write_text(lecture("better text"))
    jupyter.working_copy()
    assert (copies / LECTURE).read_text() == content
    assert names(copies) == ["01_first (new version).ipynb", LECTURE]


@pytest.mark.parametrize("record", [None, "", "{half a rec", "[]", "{}"])
def test_without_its_record_every_difference_is_the_students(course, record):
    copies = jupyter.working_copy()
    (copies / LECTURE).write_text(lecture("my text"))
    if record is None:
        (copies / ".origins.json").unlink()
    else:
        (copies / ".origins.json").write_text(record)
    jupyter.working_copy()
    assert (copies / LECTURE).read_text() == lecture("my text")
    assert names(copies) == ["01_first (new version).ipynb", LECTURE]


def test_a_deleted_copy_comes_back_fresh(course):
    copies = jupyter.working_copy()
    (copies / LECTURE).unlink()
    assert (jupyter.working_copy() / LECTURE).read_text() == lecture()


def test_an_unknown_lecture_is_refused_with_the_known_ones(course):
    with pytest.raises(ValueError, match="no lecture 17; the lectures are 01"):
        jupyter.present("17")


def test_slides_of_a_notebook():
    def cell(kind, **keywords):
        return new_code_cell(metadata={"slideshow": {"slide_type": kind}} if kind is not None else {}, **keywords)

    view = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "m"}})
    notebook = new_notebook(cells=[cell("slide"), cell("notes"), cell("-"), cell("skip"), cell(None, outputs=[view]), cell("fragment")])
    jupyter._slides(notebook)
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in notebook.cells]
    assert kinds == ["slide", "skip", None, "skip", None, "fragment"]
    assert [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in notebook.cells] == [False] * 4 + [True, False]


def test_speaker_notes_come_with_their_slides():
    def cell(source, kind):
        return new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})

    notebook = new_notebook(
        cells=[
            cell("# Title\n\nand more", "slide"),
            cell("Wait for quiet.", "notes"),
            cell("no heading", "fragment"),
            cell("Five minutes.\nThen on.", "notes"),
            cell("## Hidden", "skip"),
            cell("### Next", "subslide"),
            cell("Ask the room.", "notes"),
        ]
    )
    assert jupyter._speaker_notes(notebook) == "\nTitle\n   Wait for quiet.\n   Five minutes.\n   Then on.\n\nNext\n   Ask the room."


def test_a_server_that_does_not_start_ends_the_command(course):
    wrong = ["--no-browser", "--ServerApp.port=none"]
    assert jupyter.lab(wrong) != 0
    with pytest.raises(SystemExit, match=r"(?s)port.*JupyterLab ended with status"):
        jupyter.present("01", wrong)
    assert not list((jupyter.state_dir() / "presented").iterdir())
