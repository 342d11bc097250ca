"""Parts of a batch that fit into memory. What is refused: ``tests/methods/test_attack_input.py``."""

import pytest
import torch

from course_utils.core import inputs
from course_utils.core.inputs import chunks, rows_of
from course_utils.core.training import at_once


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 224, 224)])
def test_chunks_hold_every_row_once_and_no_more_than_fit(shape, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", {"cpu": 500})
    x = torch.zeros(1).expand(1200, *shape)
    rows = rows_of(x)[torch.arange(1200) % 3 > 0]
    parts = chunks(rows, x)
    assert torch.equal(torch.cat(parts), rows)
    sizes = [len(part) for part in parts]
    assert set(sizes[:-1]) == {at_once(x, 500)} and 0 < sizes[-1] <= sizes[0]


def test_digits_come_in_hundreds_and_photographs_in_few():
    """On the CPU, where a gradient of ten photographs takes a gigabyte."""
    rows = torch.arange(600)
    digits, photographs = (
        torch.zeros(1).expand(600, *shape) for shape in ((1, 28, 28), (3, 224, 224))
    )
    assert len(chunks(rows, digits)[0]) == 512
    assert len(chunks(rows, photographs)[0]) <= 10


def test_an_empty_batch_has_no_chunk():
    assert chunks(torch.arange(0), torch.zeros(0, 1, 4, 4)) == ()
    assert chunks(torch.arange(0), torch.zeros(5, 1, 4, 4)) == ()
