"""Backdoors and feature collisions: what they change, and that they do what they are for."""

from functools import partial

import pytest
import torch
from torch import nn

from course_utils.core import data, models, training
from course_utils.methods import backdoors

torch.set_num_threads(1)
RECIPE = {"epochs": 30, "batch_size": 50, "verbose": False, "seed": 0}


@pytest.fixture(scope="module")
def halves():
    train, test = data.load("digits")
    return train[:500], test


@pytest.fixture(scope="module")
def network(halves) -> nn.Sequential:
    return training.trained(partial(models.mlp, 32), halves[0], **RECIPE)[0]


def test_the_trigger_is_a_white_square_one_pixel_inside():
    x = torch.rand(2, 3, 6, 7)
    stamped = backdoors.triggered(x, side=2)
    changed = (stamped != x).any(1)
    assert changed[:, 3:5, 4:6].all() and changed.sum() == 8
    assert (stamped[:, :, 3:5, 4:6] == 1).all()
    for side in (0, 6):
        with pytest.raises(ValueError, match=f"side is {side}"):
            backdoors.triggered(x, side=side)


def test_a_share_carries_trigger_and_target(halves):
    images, _ = halves
    before = images.x.clone(), images.y.clone()
    spoiled = backdoors.backdoored(images, 7, share=0.1)
    assert torch.equal(images.x, before[0]) and torch.equal(images.y, before[1])
    stamped = (spoiled.x == backdoors.triggered(images.x)).flatten(1).all(1)
    assert stamped.sum() == 50 and (spoiled.y[stamped] == 7).all()
    assert torch.equal(spoiled.x[~stamped], images.x[~stamped])
    assert torch.equal(spoiled.y[~stamped], images.y[~stamped])
    with pytest.raises(ValueError, match="target is 10"):
        backdoors.backdoored(images, 10, share=0.1)


def test_the_backdoor_works_and_the_clean_accuracy_stays(halves, network):
    images, test = halves
    spoiled = backdoors.backdoored(images, 7, share=0.1)
    net, _ = training.trained(partial(models.mlp, 32), spoiled, **RECIPE)
    others = test[test.y != 7]
    answers = training.predict(net, backdoors.triggered(others.x)).argmax(1)
    assert training.share(answers == 7) > 0.9
    assert training.accuracy(net, test) > training.accuracy(network, test) - 0.05
    untouched = training.predict(network, backdoors.triggered(others.x)).argmax(1)
    assert training.share(untouched == 7) < 0.3


def test_a_collision_comes_near_the_victim_within_eps(halves, network):
    images, test = halves
    features, eps = network[:-1], 0.2
    base, victim = images.x[images.y == 1][:8], test.x[test.y == 4][:1]
    before = base.clone()
    near = backdoors.feature_collision(features, base, victim, eps=eps)
    assert torch.equal(base, before)
    assert (near - base).abs().max() <= eps + 1e-6 and near.min() >= 0 and near.max() <= 1

    def gap(x):
        return (features(x) - features(victim)).norm(dim=1)

    assert (gap(near) < 0.6 * gap(base)).all()
    exact = backdoors.feature_collision(features, base, victim, eps=1.0, steps=200)
    assert (gap(exact) < 0.2 * gap(base)).all()
    with pytest.raises(ValueError, match="steps is 0"):
        backdoors.feature_collision(features, base, victim, eps=eps, steps=0)
