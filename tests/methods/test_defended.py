"""The networks of lecture 06: trained by four recipes, kept, and as they are shipped."""

from functools import partial

import pytest
import torch

from course_utils.core import data, stored
from course_utils.methods import attacks, defended


def test_four_networks_are_trained_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    monkeypatch.setattr(defended, "LEAST", 0)
    monkeypatch.setattr(defended, "EPOCHS", 3)
    train, _ = data.load("digits")
    nets = defended.trained(train[:40])
    assert list(nets) == list(defended.RECIPES)
    weights = [net.dense2.weight for net in nets.values()]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])
    defended.save(nets, "MNIST")
    back = defended.shipped("MNIST")
    for name, net in nets.items():
        assert torch.equal(back[name].dense2.weight, net.dense2.weight)
    assert not any(module.training for module in back.modules())


@pytest.mark.slow
def test_the_shipped_networks_are_what_the_lecture_says():
    """On the embedded digits: A defeats one step alone, B many as well."""
    _, test = data.load("digits")
    few = test[:150]
    nets = defended.shipped("embedded digits")

    def left(name, attack):
        x_adv = attack(nets[name], few.x, few.y, eps=defended.EPS)
        return attacks.robust_accuracy(nets[name], x_adv, few.y)

    many_steps = partial(attacks.pgd, early_stop=True)
    assert left("A", attacks.fgsm) > 0.8 and left("A", many_steps) < 0.05
    assert left("B", many_steps) > 0.5 and left("standard", attacks.fgsm) < 0.3
