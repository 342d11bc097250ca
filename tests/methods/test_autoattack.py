"""AutoAttack as the course calls it: on our models, in our ball, and the model left as found."""

import sys

import pytest
import torch

from course_utils.core import data, models, training
from course_utils.methods import attacks, autoattack


@pytest.fixture(scope="module")
def victim():
    torch.manual_seed(0)
    train, test = data.load("digits")
    model = models.mlp(30)
    training.fit(model, train[:2000], epochs=3, verbose=False)
    return model, (test.x[:12], test.y[:12])


@pytest.mark.slow
def test_autoattack_finds_what_pgd_finds(victim):
    model, (x, y) = victim
    before = torch.get_rng_state()
    state = {name: p.clone() for name, p in model.state_dict().items()}
    model.train()
    x_adv = autoattack.autoattack(model, x, y, eps=0.1, batch_size=7)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    ours = attacks.succeeded(model, attacks.pgd(model, x, y, eps=0.1), y)
    assert attacks.succeeded(model, x_adv, y).sum() >= ours.sum() - 1
    assert ours.any()


@pytest.mark.slow
def test_in_l2_it_stays_in_the_ball_and_finds_what_pgd_finds(victim):
    model, (x, y) = victim
    x_adv = autoattack.autoattack(model, x, y, eps=1.0, norm=2)
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= 1.0 + 1e-4
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    ours = attacks.succeeded(model, attacks.pgd(model, x, y, eps=1.0, norm=2), y)
    assert attacks.succeeded(model, x_adv, y).sum() >= ours.sum() - 1


def test_l1_is_refused(victim):
    model, (x, y) = victim
    with pytest.raises(ValueError, match='norm is 1; AutoAttack takes 2 or "inf"'):
        autoattack.autoattack(model, x, y, eps=1.0, norm=1)


def test_without_torchattacks_the_cure_is_named(victim, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    model, (x, y) = victim
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks"):
        autoattack.autoattack(model, x, y, eps=0.1)
