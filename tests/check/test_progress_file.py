"""Progress is never lost, and a check reports whatever a student's function does."""

import io
import json
import subprocess
import sys

import pytest

from course_utils import check
from course_utils.check import progress_file


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    """The progress file, in a folder that exists."""
    monkeypatch.setenv("COURSE_STATE", str(tmp_path))
    return tmp_path / "progress.json"


def right():
    """The right answer of some exercise, under a student's name."""
    return lambda *arguments: check.fgsm.right(*arguments)


OTHERS = {"pgd": "2020-01-01", "an exercise of another year": "2019-01-01"}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_what_an_editor_saved_is_read(path, start, coding):
    path.write_bytes((start if coding == "utf-8" else b"") + json.dumps(OTHERS).encode(coding))
    check.fgsm(right())
    assert check.solved().keys() == {*OTHERS, "fgsm"} and not list(path.parent.glob("*damaged*"))


DAMAGE = [b"", b"{", json.dumps(OTHERS).encode()[:-3], b"[1]", b"3", b"\x00" * 90, b"[" * 10**5]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_file_is_set_aside(path, damage, capsys):
    for number in ("", "2"):
        path.write_bytes(damage)
        check.fgsm(right())
        aside = path.with_name(f"progress.json.damaged{number}")
        assert aside.read_bytes() == damage and str(aside) in capsys.readouterr().out
        assert check.solved().keys() == {"fgsm"}


@pytest.mark.parametrize("error", [PermissionError("no"), OSError(5, "Input/output error")])
def test_nothing_is_written_after_a_failed_read(path, error, monkeypatch, capsys):
    path.write_text(json.dumps(OTHERS))

    def refuse(self):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(progress_file.Path, "read_bytes", refuse)
        check.fgsm(right())
        check.progress()
    said = capsys.readouterr().out
    assert "● fgsm: right" in said and "could not be kept" in said and "cannot be read" in said
    assert check.solved() == OTHERS


def test_odd_values_in_the_file_are_no_obstacle(path, capsys):
    path.write_text('{"fgsm": null, "pgd": [1], "x": {"y": 3}}')
    check.progress()
    check.fgsm(right())
    assert f"2 of {len(check.EXERCISES)} solved" in capsys.readouterr().out
    assert check.solved().keys() == {"fgsm", "pgd", "x"}


def test_a_folder_that_cannot_be_named_is_said(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_STATE", '"quoted"')
    check.fgsm(right())
    check.progress()
    said = capsys.readouterr().out
    assert said.startswith("● fgsm: right") and "COURSE_STATE is" in said


def test_another_process_loses_nothing(path):
    check.fgsm(right())
    path.write_text(json.dumps(check.solved() | OTHERS))
    check.pgd(lambda *arguments: check.pgd.right(*arguments))
    assert check.solved().keys() == {"fgsm", *OTHERS} and check.solved()["pgd"] == "2020-01-01"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_narrow_console_keeps_progress_and_reads_a_message(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    check.fgsm(right())
    check.fgsm(lambda model, x, y, eps: x)
    check.hint("fgsm")
    check.progress()
    sys.stdout.flush()
    said = raw.getvalue().decode(encoding)
    assert "fgsm: right" in said and "fgsm: x_adv equals x" in said and "Hint 1 of" in said
    assert check.solved().keys() == {"fgsm"}


def leaves(*_):
    sys.exit()


def leaves_by_name(*_):
    exit(3)


def leaves_with_words(*_):
    raise SystemExit("done")


@pytest.mark.parametrize("leave", [leaves, leaves_by_name, leaves_with_words])
def test_a_function_that_leaves_is_reported(leave, capsys):
    for item in (check.fgsm, check.max_normalised, check.accuracy):
        item(leave)
        said = capsys.readouterr().out
        assert said.startswith(f"○ {item.name}: your function raises SystemExit")
        assert "Leave out exit()" in said


def test_an_interrupt_passes():
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.fgsm(interrupted)


@pytest.mark.slow
def test_exit_of_jupyter_raises_while_a_check_runs():
    """There ``exit`` asks the shell to end the kernel, and raises nothing."""
    code = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
ended = []
shell.ask_exit = lambda: ended.append(1)
shell.run_cell('''
from course_utils import check
def fgsm(model, x, y, eps):
    exit()
    return x
check.fgsm(fgsm)
''')
print("ended", ended)
shell.run_cell("get_ipython().ask_exit()")
print("after", ended)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "your function raises SystemExit" in run.stdout, run.stdout + run.stderr
    assert "ended []" in run.stdout and "after [1]" in run.stdout
