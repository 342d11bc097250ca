"""Controls: as large as the attack in every norm, aimed at nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from course_utils.core.runtime import generator
from course_utils.methods import controls


def pair(seed, share=1.0, side=7, count=5):
    """Images of a digit's kind (many pixels at 0 and 1), and changed ones; ``share`` of the pixels change."""
    draw = generator(seed)
    x = (3 * torch.rand(count, 1, side, side, generator=draw) - 1).clamp(0, 1)
    other = torch.rand(x.shape, generator=draw)
    return x, torch.where(torch.rand(x.shape, generator=draw) < share, other, x)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_moved_keeps_every_size(seed, share):
    x, x_adv = pair(seed, share)
    control = controls.moved(x, x_adv, seed=seed)
    assert 0 <= control.min() <= control.max() <= 1
    sizes = [(other - x).abs().flatten(1).sort(1).values for other in (control, x_adv)]
    assert_close(sizes[0], sizes[1], atol=1e-6, rtol=0)


def test_moved_finds_the_one_place_with_room():
    x = torch.full((1, 1, 2, 3), 0.5)
    x[0, 0, 1, 2] = 0.0
    x_adv = x.clone()
    x_adv[0, 0, 1, 2] = 0.9  # more than any other pixel has room for
    assert_close(controls.moved(x, x_adv), x_adv)


def test_moved_places_are_random_and_differ_from_image_to_image():
    x = torch.zeros(400, 1, 3, 3)
    x_adv = x.clone()
    x_adv[:, 0, 0, 0] = 1.0
    there = controls.moved(x, x_adv).flatten(1)
    counts = there.sum(0)
    assert (there.sum(1) == 1).all() and counts.min() > 20 and counts.max() < 80
    assert torch.equal(controls.moved(x, x_adv, seed=0).flatten(1), there)
    assert not torch.equal(controls.moved(x, x_adv, seed=1).flatten(1), there)


def test_turned_turns_the_pattern():
    x = torch.tensor([[[[0.0, 0.2], [0.6, 1.0]]]])
    x_adv = torch.tensor([[[[0.3, 0.2], [0.6, 1.0]]]])
    assert_close(controls.turned(x, x_adv), torch.tensor([[[[0.0, 0.2], [0.6, 0.7]]]]))


def test_sizes_are_those_of_the_changes():
    x = torch.zeros(2, 1, 1, 2)
    loud = torch.tensor([0.6, 0.8]).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    assert controls.sizes(x, {"none": x, "attack": loud}).splitlines() == [
        "none    mean |δ| 0.0000   L2 0.000   largest 0.000",
        "attack  mean |δ| 0.7000   L2 1.000   largest 0.800",
    ]


@pytest.mark.parametrize("function", [controls.moved, controls.turned])
def test_bad_images_are_named(function):
    x, x_adv = pair(0)
    with pytest.raises(ValueError, match="x_adv is .*shape"):
        function(x, x_adv[:2])
    with pytest.raises(ValueError, match="x reaches from .*scale images"):
        function(x + 1, x_adv)
    assert not len(function(x[:0], x_adv[:0]))
