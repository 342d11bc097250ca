"""Claims: one line each, whatever happens."""

import pytest
import torch

from course_utils.claims import claim, clearly_more


@pytest.mark.parametrize(
    ("holds", "recorded", "line"),
    [
        (True, False, "✔ A beats B\n"),
        (False, False, "✘ A beats B\n"),
        (True, True, "✔ A beats B (recorded)\n"),
        (False, True, "✘ A beats B (recorded)\n"),
        (torch.tensor(True), False, "✔ A beats B\n"),
        (torch.tensor(0.3) > 0.5, False, "✘ A beats B\n"),
    ],
)
def test_a_claim_prints_one_line(holds, recorded, line, capsys):
    assert claim("A beats B", holds, recorded=recorded) is None
    assert capsys.readouterr().out == line


def test_clearly_more_asks_for_three_standard_errors():
    error = (0.5 * 0.5 * 2 / 100) ** 0.5  # near a half, on 100 images: 7 %
    assert clearly_more(0.5 + 1.6 * error, 0.5 - 1.6 * error, 100)
    assert not clearly_more(0.5 + 1.4 * error, 0.5 - 1.4 * error, 100)
    assert not clearly_more(0.1, 0.9, 100)
    assert not clearly_more(0.5, 0.5, 10**9)
    assert clearly_more(0.52, 0.5, 100_000)
    assert not clearly_more(0.52, 0.5, 1_000)
    assert clearly_more(1.0, 0.0, 1) is True
