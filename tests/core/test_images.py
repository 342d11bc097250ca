"""Labelled images."""

import hashlib
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.core import runtime
from course_utils.core.images import Images


def images(n=6, seed=0, **changes) -> Images:
    x = torch.rand(n, 1, 4, 4, generator=runtime.generator(seed))
    parts = {"x": x, "y": torch.arange(n) % 3, "classes": ("a", "b", "c"), "source": "test"}
    return Images(**(parts | changes))


def test_indexing_keeps_a_batch():
    some = images()
    mask = some.y == 1
    assert len(some) == len(list(some)) == 6
    assert torch.equal(some[mask].x, some.x[mask])
    assert torch.equal(some[1:3].y, some.y[1:3])
    assert torch.equal(some[torch.tensor([4, 0])].x, some.x[[4, 0]])
    for one in (some[2], some[torch.tensor(2)], some[np.int64(2)], some[-4]):
        assert torch.equal(one.x, some.x[2:3]) and torch.equal(one.y, some.y[2:3])
    assert len(some[some.y == 9]) == 0
    assert some[:2].classes == some.classes and some[:2].source == "test"
    assert repr(some) == "Images(6 of 1×4×4, 3 classes, test, cpu)"


def filled(*shape, value=0, **options):
    return torch.full(shape, value, **options)


# fmt: off
@pytest.mark.parametrize("part, value, words", [
    ("x", torch.rand(6, 4, 4), ["x is float32 (6, 4, 4)", "a float32 tensor (N, C, H, W)"]),
    ("x", filled(6, 1, 4, 4, dtype=torch.uint8), ["x is uint8", "/ 255"]),
    ("x", np.zeros((6, 1, 4, 4), dtype=np.float32), ["x is a ndarray", "tensor"]),
    ("x", filled(6, 1, 4, 4, value=255.0), ["x has values from 255 to 255", "/ 255"]),
    ("x", filled(6, 1, 4, 4, value=-0.1), ["x has values from -0.1"]),
    ("x", filled(6, 1, 4, 4, value=float("nan")), ["nan"]),
    ("y", torch.zeros(6), ["y is float32", "an int64 tensor (N,)", ".long()"]),
    ("y", [0] * 6, ["y is a list"]),
    ("y", filled(6, 3), ["y is int64 (6, 3)"]),
    ("y", filled(5), ["(6, 1, 4, 4)", "(5,)", "one label per image"]),
    ("y", filled(6, device="meta"), ["on meta", "on one device"]),
    ("y", filled(6, value=3), ["y is from 3 to 3", "3 names"]),
    ("y", filled(6, value=-1), ["y is from -1"]),
])
# fmt: on
def test_images_say_what_is_wrong(part, value, words):
    with pytest.raises(ValueError) as caught:
        images(**{part: value})
    assert all(word in str(caught.value) for word in words), caught.value


@given(n=st.integers(1, 19), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_split_parts_the_images(n, seed):
    x = torch.arange(20.0).view(20, 1, 1, 1) / 20
    some = Images(x, torch.zeros(20, dtype=torch.int64), ("a",), "test")
    rest, held_out = some.split(n, seed)
    assert len(held_out) == n
    assert sorted(torch.cat([rest.x, held_out.x]).flatten().tolist()) == x.flatten().tolist()
    assert torch.equal(some.split(n, seed)[1].x, held_out.x)


def test_split_depends_on_the_seed_and_refuses_nonsense():
    some = images(50)
    assert not torch.equal(some.split(20, 0)[1].x, some.split(20, 1)[1].x)
    for n in (0, 50, -1):
        with pytest.raises(ValueError, match=f"n is {n}; hold out between 1 and 49 of these 50"):
            some.split(n, 0)


def test_fingerprint_follows_content_only():
    some = images()
    pixel = some.x.clone()
    pixel[5, 0, 3, 3] = 1 - pixel[5, 0, 3, 3]
    strided = some.x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous() and images(x=strided).fingerprint == some.fingerprint
    assert images(source="other").fingerprint == some.to("cpu").fingerprint == some.fingerprint
    reshaped = images(x=some.x.view(6, 1, 2, 8))
    others = [images(x=pixel), images(y=some.y.flip(0)), reshaped, some[:5], some[:0]]
    prints = {some.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 6 and all(len(print) == 12 for print in prints)


def test_fingerprint_costs_little_more_than_reading_the_pixels_once():
    """0.1 s for MNIST; measured against one plain hash, as machines and their load differ."""
    pixels = torch.zeros(20_000, 1, 28, 28)
    plain, ours = [], []
    for _ in range(3):
        start = time.process_time()
        hashlib.sha256(pixels.numpy()).hexdigest()
        plain.append(time.process_time() - start)
        some = Images(pixels, torch.zeros(20_000, dtype=torch.int64), ("a",), "test")
        start = time.process_time()
        assert some.fingerprint == some.fingerprint
        ours.append(time.process_time() - start)
    assert min(ours) < 1.8 * min(plain)
