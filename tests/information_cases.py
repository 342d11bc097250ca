"""Tiny networks, images, critics and estimators for the tests of information and its attacks."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from course_utils.core import runtime
from course_utils.methods import minmax
from course_utils.methods.mutual_information import (
    MLP,
    Affine,
    Estimator,
    PublishedCritic,
    feature_maps,
    projections,
)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, equal_nan=True)


def build(kind="plain", dtype=torch.float64):
    """A random network for four classes on 1×6×6 images, whose first layers give 6 maps of 4×4.

    "mixed" has every layer that train mode changes.
    """
    mixed = kind == "mixed"
    with runtime.seeded(1):
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(1, 6, 3))
        if mixed:
            model.add_module("norm", nn.BatchNorm2d(6))
            model.norm.running_mean.normal_()
        model.add_module("relu1", nn.ReLU())
        if mixed:
            model.add_module("dropout", nn.Dropout(0.5))
        model.add_module("flat", nn.Flatten())
        model.add_module("dense", nn.Linear(96, 4))
    if mixed:
        model.train()
        model.relu1.eval()
    model.dense.weight.data *= 4
    return model.to(dtype)


def batch(n=5, seed=0, dtype=torch.float64, model=None):
    """Images with pixels at 0 and 1 among them, and the classes that ``model`` sees in them."""
    x = torch.rand(n, 1, 6, 6, generator=runtime.generator(seed), dtype=torch.float64)
    x = (1.3 * x - 0.15).clamp(0, 1).to(dtype)
    return x, (model or build(dtype=dtype)).eval()(x).argmax(1)


def critic(kind, d, dtype=torch.float64):
    builders = {
        "affine": lambda: Affine(d),
        "mlp": lambda: MLP(2 * d, 12, 7),
        "published": lambda: PublishedCritic(d),
        "published, no maps": lambda: PublishedCritic(d, maps=False),
    }
    with runtime.seeded(0):
        return builders[kind]().to(dtype)


def estimator(kind, model):
    """The ways to measure similarity that the tests of ``minmax`` go through."""
    dtype = next(model.parameters()).dtype
    if kind == "maps":
        return Estimator(feature_maps(model), critic("affine", 16, dtype), lr=0.02)
    if kind == "projections":
        return Estimator(projections(9, 8), critic("mlp", 8, dtype), steps=2, lr=0.02)
    return minmax.closeness


every_critic = pytest.mark.parametrize("kind", ["maps", "projections"])
every_estimator = pytest.mark.parametrize("kind", ["maps", "projections", "l2"])


def drawn(kind, model, x, x_adv, generator):
    """Samples of one image and the order of its shuffle, as the docstrings say."""
    if kind == "maps":
        u, v = (model.relu1(model.conv1(z[None]))[0].reshape(6, 16) for z in (x, x_adv))
    else:
        m = torch.randn(36, 72, generator=generator).double() / math.sqrt(8)
        u, v = ((z.flatten() @ m).view(9, 8) for z in (x, x_adv))
        u, v = (
            (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            for z in (u, v)
        )
    return u, v, torch.randperm(len(u), generator=generator)


def plain_bound(critic, u, v, order, pairs=False):
    """The bound of one image by its definition."""
    if pairs:
        every = range(len(u))
        shuffled = torch.cat([critic(u[a][None], v[b][None]) for a in every for b in every])
    else:
        shuffled = critic(u, v[order])
    return critic(u, v).mean() - shuffled.exp().mean().log()


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def everything(*modules):
    """All that a call could change in modules, and the random states."""
    named = [q for module in modules for q in module.parameters()]
    flags = [part.training for module in modules for part in module.modules()]
    return {
        "tensors": [value.clone() for module in modules for value in module.state_dict().values()],
        "gradients": [None if q.grad is None else q.grad.clone() for q in named],
        "flags": flags + [q.requires_grad for q in named],
        "random": random_states(),
    }


def assert_as_found(before, *modules):
    after = everything(*modules)
    assert (before["flags"], before["random"]) == (after["flags"], after["random"])
    for kind in ("tensors", "gradients"):
        for a, b in zip(before[kind], after[kind], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
