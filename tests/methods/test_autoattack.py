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


def test_without_torchattacks_the_cure_is_named(victim, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    model, (x, y) = victim
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks"):
        autoattack.autoattack(model, x, y, eps=0.1)
