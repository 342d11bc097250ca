"""Property tests of the three functions that every attack and defence stands on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.testing import assert_close

from course_utils.core.geometry import dual_norm, norm, project, steepest
from course_utils.core.runtime import generator

every_norm = pytest.mark.parametrize("p", [1, 2, "inf", math.inf])

entries = st.one_of(
    st.just(0.0), st.sampled_from([-1.0, 1.0, 1e-14, -1e-30, 3.0]), st.floats(-10, 10, width=32)
)
radii = st.one_of(st.just(0.0), st.floats(1e-3, 20))
seeds = st.integers(0, 1000)


@st.composite
def batches(draw, dtype=torch.float64):
    """A batch of 1 to 4 samples of 1 to 6 numbers: zeros, ties and tiny entries included."""
    n, d = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(entries, min_size=d, max_size=d), min_size=n, max_size=n))
    return torch.tensor(rows, dtype=dtype)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def plain_norm(v, p):
    """‖v‖_p by PyTorch, in float64."""
    return torch.linalg.vector_norm(v.double().flatten(1), math.inf if p == "inf" else p, dim=1)


def inner(a, b):
    return (a.double() * b.double()).flatten(1).sum(1)


# --- norm, dual_norm, steepest


@every_norm
@given(v=batches())
def test_norm_is_the_norm(p, v):
    assert_close(norm(v, p), plain_norm(v, p))


@every_norm
@given(g=batches())
def test_steepest_reaches_the_dual_norm_within_the_unit_ball(p, g):
    r = steepest(g, p)
    assert r.shape == g.shape and r.dtype == g.dtype
    assert (plain_norm(r, p) <= 1 + 1e-12).all()
    assert_close(inner(g, r), dual_norm(g, p))


@every_norm
@given(g=batches(), seed=seeds)
def test_no_other_direction_gains_more(p, g, seed):
    for r in randn(50, *g.shape, seed=seed):
        r = r / plain_norm(r, p)[:, None]
        assert (inner(g, r) <= dual_norm(g, p) * (1 + 1e-12)).all()  # Hölder's inequality


@every_norm
@pytest.mark.parametrize("size", [1e30, 1.0, 1e-14, 1e-30])
def test_the_length_of_the_gradient_does_not_matter_in_float32(p, size):
    g = randn(5, 3, 4, dtype=torch.float32)
    assert_close(steepest(g * size, p), steepest(g, p))
    assert_close(dual_norm(g * size, p) / size, dual_norm(g, p))


@every_norm
def test_zero_gives_zero_and_leaves_its_neighbours_alone(p):
    g = randn(3, 4, dtype=torch.float32)
    g[1] = 0
    assert torch.equal(steepest(g, p)[1], torch.zeros(4))
    assert dual_norm(g, p)[1] == 0
    assert dual_norm(g, p)[0] > 0


def test_a_tie_in_l1_goes_to_the_first_coordinate():
    assert steepest(torch.tensor([[1.0, -2.0, 2.0, -2.0]]), 1).tolist() == [[0, -1, 0, 0]]


@every_norm
def test_the_gradient_of_the_dual_norm_is_the_steepest_direction(p):
    g = randn(4, 6, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(dual_norm(g, p).sum(), g)
    assert_close(gradient, steepest(g.detach(), p))


# --- project


def slow_projection_on_l1(v, eps):
    """Bisection for the theta with Σ max(|v_i| − theta, 0) = eps, one sample."""
    if v.abs().sum() <= eps:
        return v
    low, high = 0.0, float(v.abs().max())
    for _ in range(100):
        theta = (low + high) / 2
        if (v.abs() - theta).clamp(min=0).sum() > eps:
            low = theta
        else:
            high = theta
    return v.sign() * (v.abs() - high).clamp(min=0)


@every_norm
@given(delta=batches(), eps=radii)
def test_projection_lies_in_the_ball_once_and_for_all_and_leaves_its_inside_unchanged(
    p, delta, eps
):
    once = project(delta, eps, p)
    assert (plain_norm(once, p) <= eps + 1e-9).all()
    inside = (plain_norm(delta, p) <= eps * (1 - 1e-12)) | (plain_norm(delta, p) == 0)
    assert torch.equal(once[inside], delta[inside])
    assert_close(project(once, eps, p), once, atol=1e-12, rtol=1e-12)


@every_norm
@given(delta=batches(torch.float32), eps=radii)
def test_projection_lies_in_the_ball_in_float32_too(p, delta, eps):
    assert (plain_norm(project(delta, eps, p), p) <= eps + 1e-6 * max(eps, 1)).all()


@given(delta=batches(), eps=radii)
def test_l1_projection_agrees_with_bisection(delta, eps):
    slow = torch.stack([slow_projection_on_l1(row, eps) for row in delta])
    assert_close(project(delta, eps, 1), slow, atol=1e-9, rtol=1e-9)


@every_norm
@given(delta=batches(), eps=radii, seed=seeds)
def test_no_other_point_of_the_ball_is_nearer(p, delta, eps, seed):
    best = (project(delta, eps, p) - delta).square().sum(1)
    draws = generator(seed)
    for _ in range(50):
        other = torch.randn(delta.shape, generator=draws, dtype=delta.dtype)
        lengths = eps * torch.rand(len(delta), 1, generator=draws)
        other *= lengths / plain_norm(other, p)[:, None]
        assert (best <= (other - delta).square().sum(1) + 1e-9).all()


def solved_projection(v, eps, p):
    """By scipy; v = up − down with 0 ≤ up, down ≤ eps makes every constraint smooth."""
    room = {
        1: lambda z: eps - z.sum(),
        2: lambda z: eps**2 - ((z[:5] - z[5:]) ** 2).sum(),
        "inf": lambda z: 1.0,
    }[p]
    solved = minimize(
        lambda z: ((z[:5] - z[5:] - v.numpy()) ** 2).sum(),
        torch.full((10,), 0.1).numpy(),
        bounds=[(0, eps)] * 10,
        constraints={"type": "ineq", "fun": room},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return torch.from_numpy(solved.x[:5] - solved.x[5:])


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_projection_agrees_with_a_general_solver(p):
    delta = randn(6, 5, seed=2) * 2
    theirs = torch.stack([solved_projection(row, 1.5, p) for row in delta])
    assert_close(project(delta, 1.5, p), theirs, atol=1e-4, rtol=0)


@every_norm
def test_large_samples_in_float32_stay_in_the_ball(p):
    delta = randn(4, 3, 64, 64, seed=3, dtype=torch.float32)
    for eps in (0.0, 0.1, 5.0, 100.0):
        assert (plain_norm(project(delta, eps, p), p) <= eps * (1 + 1e-6)).all()


@every_norm
def test_every_sample_may_have_its_own_radius(p):
    delta = randn(4, 2, 3, seed=4)
    eps = torch.tensor([0.0, 0.1, 1.0, 100.0], dtype=torch.float64)
    found = project(delta, eps, p)
    one_by_one = torch.cat([project(delta[i : i + 1], float(eps[i]), p) for i in range(4)])
    assert_close(found, one_by_one, rtol=1e-12, atol=1e-12)
    assert not found[0].any() and torch.equal(found[3], delta[3])


def projected(v, p):
    return project(v, 0.7, p)


every_function = pytest.mark.parametrize("function", [norm, dual_norm, steepest, projected])


@every_norm
@every_function
def test_a_sample_does_not_depend_on_its_batch(p, function):
    v = randn(6, 10, seed=5, dtype=torch.float32) * torch.logspace(-20, 3, 6)[:, None]
    alone = torch.cat([function(v[i : i + 1], p) for i in range(6)])
    assert_close(function(v, p), alone, rtol=1e-6, atol=0)


# --- refusals


@every_norm
@pytest.mark.parametrize("eps", [-0.1, torch.tensor([0.1, -0.2]), math.nan])
def test_a_radius_that_is_negative_or_no_number_is_refused(p, eps):
    with pytest.raises(ValueError, match=r"eps is (-0\.\d|nan).*0 or more"):
        project(torch.ones(2, 3), eps, p)


@pytest.mark.parametrize("bad", [3, 0, -1, "2", "l2", "Inf", None, math.nan])
@every_function
def test_an_unknown_norm_is_refused_with_the_cure(function, bad):
    with pytest.raises(ValueError, match=r'norm is .*; use 1, 2 or "inf"'):
        function(torch.ones(2, 3), bad)
