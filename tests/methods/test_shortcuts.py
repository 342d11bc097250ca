"""Shortcuts: what they are made of, what finds them, and what takes them out."""

from dataclasses import replace

import pytest
import torch

from course_utils.core import data, runtime
from course_utils.core.data import Images
from course_utils.methods import poisons, shortcuts, transforms

torch.set_num_threads(1)
EPS = 0.2


@pytest.fixture(scope="module")
def digits() -> Images:
    return data.load("digits")[0][:300]


def coloured(n=24, classes=3) -> Images:
    draw = runtime.generator(0)
    x = torch.rand(n, 3, 6, 8, generator=draw)
    return Images(x, torch.arange(n) % classes, tuple("abcdefgh")[:classes], "noise")


# --- linearly separable noise


@pytest.mark.parametrize("patch", [1, 3, 4, 100])
def test_patches_are_filled_and_follow_their_class(patch):
    images = coloured(300)
    noise = shortcuts.separable_noise(images, eps=EPS, patch=patch).noise
    for row in range(0, 6, patch):
        for column in range(0, 8, patch):
            block = noise[..., row : row + patch, column : column + patch]
            assert (block == block[..., :1, :1]).all()
    corner = noise[:, :, 0, 0]
    for k in range(3):
        own = corner[images.y == k]
        assert own.std(0).min() > 0  # every image has its own
        assert (own.sign() == own.sign().mode(0).values).float().mean() > 0.95  # 2.5 deviations


def test_most_patches_differ_between_classes_and_neighbours():
    noise = shortcuts.separable_noise(coloured(), eps=EPS, patch=1).noise
    signs = torch.stack([noise[k::3].mean(0).sign() for k in range(3)])
    assert 0.3 < (signs[0] != signs[1]).float().mean() < 0.7
    assert 0.3 < (signs[0, :, :, 1:] != signs[0, :, :, :-1]).float().mean() < 0.7


def test_separable_noise_refuses_no_patch(digits):
    with pytest.raises(ValueError, match="patch is 0"):
        shortcuts.separable_noise(digits, eps=EPS, patch=0)


# --- one pixel


def test_one_pixel_finds_the_place_that_changes_most_evenly():
    x = torch.rand(8, 1, 4, 4, generator=runtime.generator(0))
    x[:4, 0, 1, 2] = torch.tensor([0.1, 0.11, 0.1, 0.11])  # class 0: far from white, evenly
    x[:4, 0, 2, 2] = torch.tensor([0.5, 0.52, 0.5, 0.52])  # not as far
    x[4:, 0, 3, 0] = torch.tensor([0.9, 0.95, 0.9, 0.95])  # class 1: far from black
    x[4:, 0, 0, 0] = torch.tensor([1.0, 0.8, 1.0, 1.0])  # further, and less evenly
    images = Images(x, torch.tensor([0] * 4 + [1] * 4), ("a", "b"), "made")
    poison = shortcuts.one_pixel(images)
    assert poison.places.tolist() == [[1, 2], [3, 0]]
    assert poison.colours.tolist() == [[1.0], [0.0]]


def test_one_pixel_changes_one_pixel_and_nothing_else():
    images = replace(coloured(), x=transforms.rounded(coloured().x))
    poison = shortcuts.one_pixel(images)
    before = images.x.clone()
    poisoned = poison(images)
    assert torch.equal(images.x, before) and torch.equal(poisoned.y, images.y)
    changed = (poisoned.x != images.x).any(1)
    assert (changed.sum((1, 2)) <= 1).all()
    assert len({tuple(place) for place in poison.places.tolist()}) == 3
    assert set(poison.colours.unique().tolist()) <= {0.0, 1.0}
    for image, k in zip(poisoned.x, images.y.tolist(), strict=True):
        row, column = poison.places[k]
        assert torch.equal(image[:, row, column], poison.colours[k])


def test_ties_at_the_border_are_drawn(digits):
    first, again, other = (shortcuts.one_pixel(digits, seed=seed).places for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for k, (row, column) in enumerate(first.tolist()):  # black to white is as even as can be
        assert digits.x[digits.y == k][..., row, column].max() == 0


def test_one_pixel_refuses_what_it_cannot_do(digits):
    with pytest.raises(ValueError, match=r"none of \[3\]"):
        shortcuts.one_pixel(digits[digits.y != 3])
    tiny = Images(torch.rand(6, 1, 1, 2), torch.arange(6), tuple("abcdef"), "noise")
    with pytest.raises(ValueError, match="6 classes on 2 pixels"):
        shortcuts.one_pixel(tiny)
    with pytest.raises(ValueError, match="images have 3 classes"):
        shortcuts.one_pixel(digits)(coloured())


# --- finding a shortcut


def test_linear_weights_are_those_of_sklearn(digits):
    from sklearn.linear_model import LogisticRegression

    flat = digits.x.flatten(1)[:, ::7]
    weights = shortcuts.linear_weights(flat, digits.y, 10, decay=0.01)
    # ours decays the bias too, so it is given as a feature
    joined = torch.nn.functional.pad(flat, (0, 1), value=1.0)
    theirs = LogisticRegression(
        C=1 / (0.01 * len(flat)), fit_intercept=False, tol=1e-8, max_iter=5000
    ).fit(joined.numpy(), digits.y.numpy())
    assert torch.allclose(weights, torch.from_numpy(theirs.coef_).float(), atol=2e-3)


def test_separable_tells_class_noise_from_noise(digits):
    coins = poisons.class_noise(digits, eps=EPS)
    mean = shortcuts.separable(coins(digits).x - digits.x, digits.y, 10).float().mean()
    assert mean > 0.97
    blank = torch.rand(digits.x.shape, generator=runtime.generator(0)) - 0.5
    hits = shortcuts.separable(blank, digits.y, 10)
    assert len(hits) == len(digits) // 2 and hits.float().mean() < 0.2
    # the noise that was fitted would pass: more pixels than images
    weights = shortcuts.linear_weights(blank, digits.y, 10)
    scores = torch.nn.functional.pad(blank.flatten(1), (0, 1), value=1.0) @ weights.T
    assert (scores.argmax(1) == digits.y).all()


def test_separable_does_not_depend_on_the_size_of_noise(digits):
    noise = shortcuts.separable_noise(digits, eps=EPS).noise
    assert torch.equal(*(shortcuts.separable(s * noise, digits.y, 10) for s in (1, 1 / 64)))
    with pytest.raises(ValueError, match="number of images is 1"):
        shortcuts.separable(noise[:1], digits.y[:1], 10)


# --- taking it out


def test_without_takes_out_exactly_what_the_linear_model_sees(digits):
    poisoned = shortcuts.separable_noise(digits, eps=EPS)(digits)
    directions = shortcuts.linear_directions(poisoned)
    assert torch.allclose(directions.T @ directions, torch.eye(10), atol=1e-5)
    rest = shortcuts.without(directions, poisoned.x)
    assert rest.shape == poisoned.x.shape
    assert (rest.flatten(1) @ directions).abs().max() < 1e-4
    assert torch.allclose(shortcuts.without(directions, rest), rest, atol=1e-5)
    weights = shortcuts.linear_weights(poisoned.x, poisoned.y, 10)[:, :-1]
    assert (rest.flatten(1) @ weights.T).abs().max() < 1e-3
    assert not torch.equal(rest, poisoned.x)


def test_the_projection_hides_a_class_pattern(digits):
    pattern = poisons.class_noise(digits, eps=EPS)
    directions = shortcuts.linear_directions(pattern(digits))
    seen = pattern.noise.flatten(1)
    left = shortcuts.without(directions, pattern.noise).flatten(1)
    assert (left.norm(dim=1) < 0.8 * seen.norm(dim=1)).all()
