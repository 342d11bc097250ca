"""The embedded digits."""

import random

import numpy as np
import pytest
import sklearn.datasets
import torch

from course_utils.core import digits, runtime


def test_digits_are_what_they_say():
    train, test = digits.embedded()
    assert train.x.shape == (7 * 1437, 1, 28, 28) and test.x.shape == (360, 1, 28, 28)
    assert train.source == test.source == "embedded digits"
    assert train.classes == test.classes == tuple("0123456789")
    assert test.y.bincount().tolist() == [36] * 10
    assert test.x[:, :, :3].max() == test.x[..., -3:].max() == 0  # a black border
    assert test.x.max() == 1
    # labels fit the images: the nearest class mean gets most test digits right
    means = torch.stack([train.x[train.y == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test.x.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test.y).float().mean() > 0.8


def test_the_digits_never_change():
    """Recorded numbers and shipped weights depend on them; other processors round differently."""
    train, test = digits.embedded()
    means = [half.x.double().mean().item() for half in (train, test)]
    assert means == pytest.approx([0.158583863, 0.159220975], abs=1e-6)
    assert train.y[:10].tolist() == [1, 1, 1, 1, 5, 7, 6, 5, 5, 5]


def test_no_test_digit_has_a_sibling_in_training(monkeypatch):
    """Every original becomes a plain grey that tells its number, read back from each image."""
    grey = 0.3 + 0.4 * np.arange(1797) / 1796
    _, labels = sklearn.datasets.load_digits(return_X_y=True)
    fake = (np.repeat(16 * grey[:, None], 64, axis=1), labels)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: fake)
    middles = [(half.x[:, 0, 14, 14] + 0.5) / 2 for half in digits.embedded()]
    train, test = (((middle - 0.3) / 0.4 * 1796).round().long() for middle in middles)
    assert not set(train.tolist()) & set(test.tolist())
    assert sorted(set(train.tolist()) | set(test.tolist())) == list(range(1797))
    assert train.bincount(minlength=1797).unique().tolist() == [0, 7]


def test_split_of_originals_is_stratified_and_complete():
    y = torch.arange(1797) % 10
    train, test = digits.split_originals(y)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(1797)) and len(test) == 360
    assert y[test].bincount().tolist() == [36] * 10


def test_digits_repeat_and_leave_the_random_state_alone():
    def random_states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = random_states()
        made.append([half.fingerprint for half in digits.embedded()])
        assert random_states() == before
    assert made[0] == made[1]


def test_digits_are_moved_as_described():
    small = torch.rand(1, 1, 8, 8, generator=runtime.generator(0))

    def place(angle=0.0, right=0.0, down=0.0, scale=1.0, image=small):
        return digits.place(image, *torch.tensor([angle, right, down, scale])[:, None])

    plain = place()
    assert torch.allclose(place(right=2.0)[..., 2:], plain[..., :-2], atol=1e-5)
    assert torch.allclose(place(down=1.0)[:, :, 1:], plain[:, :, :-1], atol=1e-5)
    assert torch.allclose(place(torch.pi), plain.flip(2, 3), atol=1e-4)
    square = torch.ones(1, 1, 8, 8)
    less, more = ((place(scale=s, image=square) > 0.5).sum().item() for s in (0.7, 1.4))
    assert more == pytest.approx(4 * less, rel=0.1)
