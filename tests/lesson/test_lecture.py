"""A lecture's first line and its claims: one line of text each."""

import io
import re
import sys

import numpy as np
import pytest
import torch

from course_utils.lesson import plots
from course_utils.lesson.lecture import claim, clearly_more, setup


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


def test_clearly_more_asks_for_three_standard_errors():
    error = (0.5 * 0.5 * 2 / 100) ** 0.5  # near a half, on 100 images: 7 %
    assert clearly_more(0.5 + 1.6 * error, 0.5 - 1.6 * error, 100)
    assert not clearly_more(0.5 + 1.4 * error, 0.5 - 1.4 * error, 100)
    assert not clearly_more(0.1, 0.9, 100) and not clearly_more(0.5, 0.5, 10**9)
    assert clearly_more(0.52, 0.5, 100_000) and not clearly_more(0.52, 0.5, 1_000)
    assert clearly_more(1.0, 0.0, 1) is True
