"""Copies unlike their originals: the null space, the tangent and the walk."""

import pytest
import torch

from course_utils.core import runtime
from course_utils.methods import autoencoders, minmax, unsupervised


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 8, 8, generator=runtime.generator(0))


@pytest.fixture(scope="module")
def model(images):
    return autoencoders.train("dense", images, epochs=60, batch_size=3, hidden=16)


def distance(x, x_adv):
    return (x_adv - x).flatten(1).norm(dim=1)


def test_the_layer_does_not_see_what_is_unseen(model):
    delta = torch.randn(5, 64, generator=runtime.generator(1))
    rest = unsupervised.unseen(delta, model.dense1.weight)
    assert (rest @ model.dense1.weight.T).abs().max() < 1e-5
    assert torch.allclose(unsupervised.unseen(rest, model.dense1.weight), rest, atol=1e-5)
    seen = delta - rest
    assert (seen * rest).sum(1).abs().max() < 1e-4  # the nearest point: at a right angle
    assert rest.norm() > 0.5 * delta.norm()


def test_a_layer_of_full_rank_sees_all():
    delta = torch.randn(3, 4, generator=runtime.generator(1))
    assert unsupervised.unseen(delta, 2 * torch.eye(4)).abs().max() < 1e-6


def test_the_tangent_raises_nothing_and_keeps_what_lowers():
    away, slope = torch.randn(2, 8, 1, 4, 4, generator=runtime.generator(2))
    rest = unsupervised.tangent(away, slope)
    rise, rise_before = (unsupervised.dot(a, slope).flatten() for a in (rest, away))
    assert (rise < 1e-5).all()
    assert torch.equal(rest[rise_before <= 0], away[rise_before <= 0])
    assert torch.allclose(rise[rise_before <= 0], rise_before[rise_before <= 0], atol=1e-5)


def test_the_walk_ends_far_away_where_the_model_loses_nothing(model, images):
    goal = minmax.reconstructed(model, images)
    found = unsupervised.walk_out(model, goal, images, steps=40, length=0.3)
    assert found.success.all()
    assert (goal(found.x_adv, torch.arange(6)) <= 0).all()
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    started = distance(images, unsupervised.walk_out(model, goal, images, steps=0).x_adv)
    assert (distance(images, found.x_adv) > 3 * started).all()
    assert torch.allclose(found.information, -distance(images, found.x_adv).square(), atol=1e-4)
    # MinMax with the same similarity and as many steps comes nowhere near
    rival = minmax.minmax(model, goal, images, estimator=minmax.closeness, similar=False, steps=40)
    assert (distance(images, found.x_adv) > 1.5 * distance(images, rival.x_adv)).all()


def test_the_walk_lowers_the_similarity_that_is_given(model, images):
    goal = minmax.reconstructed(model, images)

    def cosine(x, x_adv):
        return torch.cosine_similarity(x.flatten(1), x_adv.flatten(1))

    by_angle = unsupervised.walk_out(model, goal, images, similarity=cosine, steps=40)
    by_length = unsupervised.walk_out(model, goal, images, steps=40)
    assert by_angle.success.all()
    assert torch.allclose(by_angle.information, cosine(images, by_angle.x_adv))
    assert by_angle.information.mean() < cosine(images, by_length.x_adv).mean()


def test_chunks_change_nothing(model, images, monkeypatch):
    goal = minmax.reconstructed(model, images)
    whole = unsupervised.walk_out(model, goal, images, steps=5)
    monkeypatch.setattr(unsupervised, "parts", lambda x: torch.arange(len(x)).split(4))
    parts = unsupervised.walk_out(model, goal, images, steps=5)
    assert torch.allclose(whole.x_adv, parts.x_adv, atol=1e-5)
    assert torch.equal(whole.success, parts.success)


def test_where_nothing_succeeds_the_closest_iterate_is_kept(model, images):
    def never(x_adv, rows):
        return 1 + distance(images[rows], x_adv)

    found = unsupervised.walk_out(model, never, images, steps=10, start=0.1)
    assert not found.success.any() and found.information.isnan().all()
    first = unsupervised.walk_out(model, never, images, steps=0, start=0.1)
    assert (distance(images, found.x_adv) <= distance(images, first.x_adv)).all()


def test_no_images(model):
    none = torch.rand(0, 1, 8, 8)
    found = unsupervised.walk_out(model, minmax.reconstructed(model, none), none)
    assert found.x_adv.shape == none.shape


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"length": -0.1}, {"start": float("nan")}])
def test_bad_sizes(model, images, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        unsupervised.walk_out(model, minmax.reconstructed(model, images), images, **wrong)


def test_the_model_is_left_as_it_was(model, images):
    model.train().zero_grad()
    unsupervised.walk_out(model, minmax.reconstructed(model, images), images, steps=2)
    assert model.training
    model.eval()
    assert all(weight.grad is None for weight in model.parameters())
