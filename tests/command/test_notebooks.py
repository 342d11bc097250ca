"""The lectures as files, without a kernel."""

import json
import os

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from course_utils.command import notebooks
from course_utils.core import files


def test_find(lecture, tmp_path):
    def numbers(*asked):
        return [path.name[:2] for path in notebooks.find(asked)]

    with pytest.raises(ValueError, match="no lectures in .*; clone the whole course, or set"):
        notebooks.find([])
    for number in ("10", "03", "00"):
        lecture(number)
    (tmp_path / "lectures" / "notes.ipynb").write_text("{}")
    assert numbers() == ["00", "03", "10"] and numbers("10", "3") == ["10", "03"]
    with pytest.raises(ValueError, match="no lecture 07, x1; the lectures are 00, 03, 10[.]"):
        notebooks.find(["3", "7", "x1"])


@pytest.mark.parametrize("source", ["# 03 · Tiny\nmore", ["# 03 · Tiny\n", "more"]])
def test_a_title_is_stored_as_text_or_as_lines(tmp_path, source):
    path = tmp_path / "03_tiny.ipynb"
    path.write_text(json.dumps({"cells": [{"source": source}]}), encoding="utf-8")
    assert notebooks.title(path) == "03 · Tiny"


def test_claims_are_lines_that_begin_with_a_mark_on_standard_output():
    outputs = [
        new_output("stream", text="✔ one\nno ✔ claim\n✘ two\n✔alone\n"),
        new_output("stream", name="stderr", text="✘ a warning\n"),
        new_output("display_data", {"text/plain": "✔ a picture"}),
    ]
    notebook = new_notebook(cells=[new_code_cell(outputs=outputs)])
    assert notebooks.claims(notebook) == ["✔ one", "✘ two"]


def test_the_page_of_claims_holds_each_lecture_s_table(lecture):
    path = lecture("03", "claim('A', True)", "evidence_table()")
    notebook = notebooks.read(path)
    cell = notebook.cells[2]
    cell.metadata["tags"] = ["evidence"]
    cell.outputs = [new_output("display_data", {"text/markdown": "| claim |\n|:--|\n| A |"})]
    notebooks.write(notebook, path)
    page = notebooks.claims_page()
    assert page.startswith("# Claims\n")
    assert page.endswith("\n\n## 03 · Tiny\n\n| claim |\n|:--|\n| A |\n")


def test_the_page_of_claims_in_the_repository_is_fresh():
    page = files.ROOT / "results" / "claims.md"
    assert page.read_text(encoding="utf-8") == notebooks.claims_page(), "run `course results`"


def test_the_environment_of_a_kernel(monkeypatch):
    monkeypatch.setenv("COURSE_RECORD", "1")
    monkeypatch.setenv("PYTHONPATH", "theirs")
    env = notebooks.kernel_environment("own", COURSE_SCALE="full")
    assert env["PYTHONPATH"] == f"{files.ROOT}{os.pathsep}theirs"
    assert (env["COURSE_STATE"], env["COURSE_SCALE"]) == (os.path.abspath("own"), "full")
    assert "COURSE_RECORD" not in env and os.environ["COURSE_RECORD"] == "1"
    assert notebooks.kernel_environment("own", COURSE_RECORD="1")["COURSE_RECORD"] == "1"
    monkeypatch.setenv("COURSE_DATA", "mine")
    env = notebooks.kernel_environment("own", COURSE_CACHE="theirs")
    assert [env[f"COURSE_{name}"] for name in ("DATA", "CACHE")] == [
        os.path.abspath(name) for name in ("mine", "theirs")
    ]
    monkeypatch.delenv("PYTHONPATH")
    assert notebooks.kernel_environment("own")["PYTHONPATH"] == str(files.ROOT)


def test_jupyter_needs_a_folder(monkeypatch, tmp_path):
    place = tmp_path / "new" / "runtime"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(place))
    notebooks.check_jupyter()
    assert place.is_dir() and not list(place.iterdir())
    assert place.stat().st_mode & 0o777 == 0o700 or os.name != "posix"
    for wrong in ("/dev/null", "/dev/null/runtime"):
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", wrong)
        with pytest.raises(ValueError, match=f"^{wrong} cannot be.*Set HOME to a folder of your"):
            notebooks.check_jupyter()
