"""Small lectures made for the purpose, and the ``course`` command to try on them."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.command import cli


@pytest.fixture
def env(monkeypatch):
    """``env(SCALE="full")`` sets COURSE_SCALE."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"COURSE_{name}", str(value))

    return change


@pytest.fixture
def lecture(tmp_path, monkeypatch):
    """``lecture("03", source, …)`` writes a lecture with these code cells."""
    folder = tmp_path / "lectures"
    folder.mkdir()
    monkeypatch.setenv("COURSE_LECTURES", str(folder))
    for name in ("COURSE_SCALE", "COURSE_DEVICE", "COURSE_RECORD"):
        monkeypatch.delenv(name, raising=False)

    def make(number, *sources):
        path = folder / f"{number}_tiny.ipynb"
        cells = [new_markdown_cell(f"# {number} · Tiny"), *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells), path)
        return path

    return make


@pytest.fixture
def course(tmp_path, capsys):
    """``course("run", "03", status=1)`` asserts the exit status and gives what was printed."""

    def call(*arguments, status=0):
        if arguments[0] == "run":
            arguments += ("--out", str(tmp_path / "out"))
        try:
            found = cli.main(list(arguments))
        except SystemExit as leave:  # argparse
            found = leave.code
        told = "".join(capsys.readouterr())
        assert found == status, told
        return told

    return call
