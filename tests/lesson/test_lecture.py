"""A lecture's first line and its claims: one line of text each."""

import io
import re
import sys

import numpy as np
import pytest
import torch

from course_utils.lesson import evidence, lecture, plots
from course_utils.lesson.lecture import claim, setup


def test_setup_says_where_it_runs_and_seeds(capsys, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.delenv("COURSE_SCALE", raising=False)
    styled = []
    monkeypatch.setattr(plots, "style", lambda: styled.append(True))
    with torch.random.fork_rng(devices=[]):
        assert setup() == torch.device("cpu")
        first = torch.rand(3)
        setup()
        assert torch.equal(torch.rand(3), first)
    assert styled == [True, True]
    line, again = capsys.readouterr().out.splitlines()
    assert line == again and line.startswith("quick scale on cpu, ")
    assert "; Python 3." in line and line.endswith(f", PyTorch {torch.__version__}")


@pytest.mark.parametrize("recorded, end", [(False, "\n"), (True, " (recorded)\n")])
@pytest.mark.parametrize(
    "holds, mark",
    [(True, "✔"), (False, "✘"), (torch.tensor(True), "✔"), (torch.tensor(0.3) > 0.5, "✘")],
)
def test_a_claim_prints_one_line(holds, mark, recorded, end, capsys):
    assert claim("A beats B", holds, recorded=recorded) is None
    assert capsys.readouterr().out == f"{mark} A beats B{end}"


class Odd:
    """A value whose truth is code of a student."""

    def __init__(self, error):
        self.error = error

    def __bool__(self):
        raise self.error


@pytest.mark.parametrize(
    "holds",
    [
        torch.tensor([True, False]),
        np.array([True, True]),
        Odd(ValueError("two\nlines")),
        Odd(SystemExit(3)),
        lambda: True,
        torch.nn.Linear(1, 1),
    ],
)
def test_a_claim_that_cannot_be_judged_does_not_hold(holds, capsys):
    claim("A beats B", holds)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"✘ A beats B \(\w+\(.*\)\)", line)


def test_a_claim_lets_ctrl_c_pass():
    with pytest.raises(KeyboardInterrupt):
        claim("A beats B", Odd(KeyboardInterrupt()))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_a_claim_reaches_a_stream_that_knows_no_mark(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    claim("ε: A − B", True)
    claim("× ü", False)
    assert stream.buffer.getvalue().decode(encoding).startswith("+ ?: A - B\nx ")


def clear(first, second):
    return evidence.paired([first] * 9, [second] * 9)


def test_a_claim_holds_where_all_its_comparisons_are_clear(capsys):
    claim("one", clear(True, False))
    claim("all", True, clear(True, False), clear(1, 0))
    claim("not all", clear(True, False), clear(False, True))
    claim("nothing")
    assert [line[:3] for line in capsys.readouterr().out.splitlines()] == [
        "✔ o",
        "✔ a",
        "✘ n",
        "✘ n",
    ]


def test_the_table_lists_every_claim_with_what_it_rests_on(monkeypatch):
    monkeypatch.setattr(lecture, "CLAIMS", {})
    claim("|x| is small", True)
    claim("A beats B", clear(True, False), clear(1, 0))
    claim("A beats B", clear(True, False), clear(True, False))  # the cell runs again
    _, _, *rows = lecture.evidence_table().data.splitlines()
    beats = "exact McNemar | 9 | 9 | +1 [+0.438, +1] | 0.004 |"
    assert rows == [
        "| &#124;x&#124; is small | read off |  |  |  |  |",
        f"| A beats B | {beats}",
        f"|  | {beats}",
    ]
