"""The losses and the three attacks of Wang's slides against literal references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_cases import batch, build, f64, linear, network_and_batch
from torch.testing import assert_close

from course_utils.core.runtime import generator
from course_utils.methods import attacks
from course_utils.methods.attacks import (
    fake_image,
    margin,
    neg_log_likelihood,
    swapped_bce,
    targeted,
    untargeted,
)

# --- losses


def test_the_swapped_loss_is_what_keras_computes_with_swapped_arguments():
    logits = 6 * torch.randn(50, 10, generator=generator(0))
    y = torch.arange(50) % 10
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    tiny = np.float32(1e-7)
    output = np.clip(np.eye(10, dtype=np.float32)[y], tiny, np.float32(1) - tiny)
    keras = -(p * np.log(output) + (1 - p) * np.log(1 - output)).mean(1)
    assert_close(swapped_bce(logits, y), torch.from_numpy(keras))
    roughly = torch.from_numpy(3.206 * (1 - p[np.arange(50), y]))
    assert_close(swapped_bce(logits, y), roughly, atol=1e-3, rtol=0)


def test_cross_entropy_is_the_softplus_of_the_margin():
    logits = 10 * torch.randn(50, 5, generator=generator(0), dtype=f64)
    y = torch.arange(50) % 5
    assert_close(neg_log_likelihood(logits, y), F.softplus(margin(logits, y)))


# --- the slides' attacks


@pytest.mark.parametrize("loss", [neg_log_likelihood, swapped_bce])
def test_untargeted_is_max_normalised_ascent_on_either_loss(loss):
    model, x, y = network_and_batch(dtype=f64)
    v = x.clone()
    for _ in range(8):
        v.requires_grad_()
        (g,) = torch.autograd.grad(loss(model(v), y).sum(), v)
        v = (v + 0.05 * g / g.flatten(1).abs().amax(1).view(-1, 1, 1, 1)).clamp(0, 1).detach()
    assert_close(untargeted(model, x, y, steps=8, step_size=0.05), v, atol=1e-9, rtol=0)


def test_fake_image_is_plain_descent_without_a_box():
    model, x, y = network_and_batch(dtype=f64)
    v = x.clone()
    for _ in range(5):
        v.requires_grad_()
        (g,) = torch.autograd.grad(swapped_bce(model(v), (y + 1) % 4).sum(), v)
        v = (v - 0.5 * g).detach()
    assert v.min() < 0
    assert_close(fake_image(model, x, (y + 1) % 4, steps=5), v, atol=1e-9, rtol=0)


def test_fake_image_smooths():
    settings = dict(steps=20, step_size=0.05)
    plain, smooth = (fake_image(build(), *batch(32), **settings, smoothness=s) for s in (0.0, 1.0))
    assert (attacks.roughness(smooth) < attacks.roughness(plain)).all()


def objective(model, v, x, target, lam, distance):
    far = attacks.DISTANCES[distance](v - x)
    return neg_log_likelihood(attacks.predict(model, v), target) + lam * far


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("begin", ["x", "elsewhere"])
def test_targeted_returns_the_best_iterate_the_start_included(distance, begin):
    model, x, y = network_and_batch(32)
    start = x if begin == "x" else 1 - x
    target, frames = torch.zeros_like(y), [start]
    settings = dict(lam=20.0, steps=15, step_size=0.2, distance=distance, start=start)
    result = targeted(model, x, target, **settings, on_step=lambda _, now: frames.append(now))
    values = torch.stack([objective(model, frame, x, target, 20.0, distance) for frame in frames])
    assert_close(objective(model, result, x, target, 20.0, distance), values.amin(0))
    assert (values.argmin(0) < 15).any()  # for some image the last iterate is not the best


def test_targeted_stays_where_it_is_when_it_is_there_already():
    x, y = batch()
    assert torch.equal(targeted(build(scale=100), x, y), x)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_larger_lambda_stays_nearer(distance):
    model, _ = linear("two classes")
    x, _ = batch(16, dtype=f64)
    target = model(x).argmin(1)
    results = [
        targeted(model, x, target, lam=lam, distance=distance, steps=200, step_size=0.01)
        for lam in (0.01, 0.3, 1.0, 100.0)
    ]
    distances = torch.stack([attacks.DISTANCES[distance](result - x) for result in results])
    assert (distances.diff(dim=0) <= 1e-3).all() and (distances[-1] < distances[0] - 1e-2).all()
