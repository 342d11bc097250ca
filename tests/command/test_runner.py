"""Headless runs that fail; good ones are in test_cli.py."""

import sys

import pytest

from course_utils.command import notebooks, runner


@pytest.fixture
def execute(lecture, tmp_path):
    """``execute(source, …)`` gives the outcome and the cells that began."""

    def run(*sources, seconds=60):
        path, begun = lecture("03", *sources), []
        options = dict(environment=notebooks.kernel_environment(tmp_path), seconds=seconds)
        options["on_cell"] = lambda *cell: begun.append(cell)
        return runner.execute(notebooks.read(path), path, **options), begun

    return run


def test_a_dead_kernel(execute):
    outcome, begun = execute("import os", "os._exit(3)")
    assert not outcome.good and begun == [(1, 2), (2, 2)]
    head, *_, reason = outcome.error.splitlines()
    assert head == "code cell 2 of 2 fails:" and reason.startswith("    the kernel died")


@pytest.mark.slow
def test_a_cell_that_hangs(execute):
    outcome, _ = execute("import time\ntime.sleep(60)", seconds=3)
    assert outcome.error.endswith("    the cell was stopped after 3 seconds")
    assert 3 < outcome.seconds < 60


@pytest.mark.parametrize("command", [["/nowhere/python"], [sys.executable, "-c", "1 / 0"]])
def test_a_kernel_that_does_not_start(execute, monkeypatch, command):
    monkeypatch.setattr(runner, "get_kernel_dict", lambda: {"argv": command})
    outcome, begun = execute("1 + 1")
    assert not begun and outcome.error.startswith("no kernel could be started: ")


@pytest.mark.parametrize("source", ["import sys\nsys.exit(3)", "raise SystemExit('enough')"])
def test_a_cell_that_ends_the_program_is_an_error(execute, source):
    assert execute(source)[0].error.splitlines()[-1].strip().startswith("SystemExit: ")


def test_an_error_shows_the_first_lines_of_its_cell(execute):
    outcome, _ = execute("raise ValueError('first\\nsecond')\n2\n3\n4\n5\n6\n7\n8")
    shown = [f"    | {line}" for line in ("raise ValueError('first\\nsecond')", *"23456", "…")]
    assert outcome.error.splitlines()[1:] == [*shown, "    ValueError: first"]
    assert runner.excerpt("1\n2\n3\n4\n5\n6")[-1] == "    | 6"


def test_an_error_inside_an_output_widget_counts():
    """On the stored state: nbclient can hang when such a widget changes while a cell runs."""
    error = {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero"}
    shown = "<b>This picture could not be drawn.</b> ValueError: eps is 2 &lt;img&gt;"
    assert runner.widget_errors({"c": {"value": shown}}) == [
        "a widget shows: This picture could not be drawn. ValueError: eps is 2 <img>"
    ]
    states = {"a": {"outputs": [{"output_type": "stream"}, error]}, "b": {"value": 3}}
    assert runner.widget_errors(states) == ["a widget shows: ZeroDivisionError: division by zero"]
