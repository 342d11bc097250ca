"""Lectures made into slides. The presentation itself is tested in tests/browser/."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.command import lab, slides
from course_utils.command.notebooks import WIDGET_VIEW


@pytest.fixture
def presented(lecture, env, tmp_path):
    """A lecture 01, and the folder of the presentations."""
    lecture("01", "1 + 1")
    env(STATE=tmp_path / "state")
    return tmp_path / "state" / "presented"


def test_an_unknown_lecture_is_refused_with_the_known_ones(presented):
    with pytest.raises(ValueError, match="no lecture 17; the lectures are 01"):
        slides.present("17")


def test_a_server_that_does_not_start_ends_the_command(presented):
    with pytest.raises(SystemExit, match=r"(?s)port.*JupyterLab ended with status"):
        slides.present("01", ["--no-browser", "--ServerApp.port=none"])
    assert not list(presented.iterdir())


@pytest.mark.parametrize("edited", [None, ("Tiny", "Mine"), ("{", "damaged")])
def test_a_presentation_s_folder_goes_unless_cells_were_edited(presented, capsys, edited):
    copy = slides.new_folder() / "01_tiny.ipynb"
    text = (lab.working_copy() / copy.name).read_text(encoding="utf-8")
    copy.write_text(text.replace(*edited) if edited else text, encoding="utf-8")
    slides.clean_up(copy, lab.digests(text))
    kept = f"You edited cells while presenting; they are kept in {copy}\n"
    assert capsys.readouterr().out == (kept if edited else "")
    assert copy.parent.exists() == bool(edited)


def slide(source, kind, make=new_markdown_cell, **keywords):
    metadata = {} if kind is None else {"slideshow": {"slide_type": kind}}
    return make(source, metadata=metadata, **keywords)


@pytest.mark.parametrize(
    ("folded", "tags", "source", "outputs"),
    [
        (False, [], "1 + 1", []),
        (True, ["widget"], "explorer()", []),
        (True, ["claims"], "claim('a', True)", []),
        (True, [], "show()", [new_output("display_data", data={"image/png": ""})]),
        (True, [], "table()", [new_output("execute_result", data={"text/markdown": ""})]),
        (True, [], "show()", [new_output("display_data", data={WIDGET_VIEW: {}})]),
        (False, [], "1 + 1", [new_output("execute_result", data={"text/plain": "2"})]),
        (False, [], "a()\n" * 10, [new_output("stream", text="b\n" * 10)]),
        (True, [], "a()\n" * 25, [new_output("stream", text="b\n" * 10)]),
        (False, [], "a()\n" * 35, [new_output("stream", text="b\n" * 2)]),
    ],
)
def test_code_is_folded_where_its_result_is_the_point(folded, tags, source, outputs):
    cell = new_code_cell(source, metadata={"tags": tags}, outputs=outputs)
    slides.fold(new_notebook(cells=[cell]))
    assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == folded


def test_the_page_of_evidence_is_no_slide():
    cell = slide("evidence_table()", "fragment", new_code_cell)
    cell.metadata["tags"] = ["evidence"]
    slides.fold(new_notebook(cells=[cell]))
    assert cell.metadata["slideshow"]["slide_type"] == "skip"


def test_speaker_notes_come_with_their_slides():
    cells = [
        slide("# Title\n\nand more", "slide"),
        slide("**For the speaker.** Wait for quiet.", "notes"),
        slide("no heading", "fragment"),
        slide("Five minutes.\nThen on.", "notes"),
        slide("## Hidden", "skip"),
        slide("### Next", "subslide"),
        slide("Ask the room.", "notes"),
    ]
    assert slides.speaker_notes(new_notebook(cells=cells)) == (
        "\nTitle\n   Wait for quiet.\n   Five minutes.\n   Then on.\n\nNext\n   Ask the room."
    )
