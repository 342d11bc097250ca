"""Property tests of the three functions that every attack and defence stands on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from course_utils.geometry import dual_norm, norm, project, steepest

NORMS = [1, 2, "inf", math.inf]
every_norm = pytest.mark.parametrize("p", NORMS)
settings.register_profile("course", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("course")

entries = st.one_of(st.just(0.0), st.sampled_from([-1.0, 1.0, 1e-14, -1e-30, 3.0]), st.floats(-10, 10, width=32))


@st.composite
def batches(draw, dtype=torch.float64):
    """A batch of 1 to 4 samples of 1 to 6 numbers: zeros, ties and tiny entries included."""
    n, d = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(entries, min_size=d, max_size=d), min_size=n, max_size=n))
    return torch.tensor(rows, dtype=dtype)


radii = st.one_of(st.just(0.0), st.floats(1e-3, 20))


def plain_norm(v, p):
    """‖v‖_p by PyTorch, in float64."""
    return torch.linalg.vector_norm(v.double().flatten(1), math.inf if p == "inf" else p, dim=1)


def inner(a, b):
    return (a.double() * b.double()).flatten(1).sum(1)


# ------------------------------------------------------------------------------------------ norm, dual_norm, steepest


@every_norm
@given(v=batches())
def test_norm_is_the_norm(p, v):
    torch.testing.assert_close(norm(v, p), plain_norm(v, p))


@every_norm
@given(g=batches())
def test_steepest_reaches_the_dual_norm_within_the_unit_ball(p, g):
    r = steepest(g, p)
    assert r.shape == g.shape and r.dtype == g.dtype
    assert (plain_norm(r, p) <= 1 + 1e-12).all()
    torch.testing.assert_close(inner(g, r), dual_norm(g, p))


@every_norm
@given(g=batches(), seed=st.integers(0, 1000))
def test_no_other_direction_gains_more(p, g, seed):
    others = torch.randn(50, *g.shape, generator=torch.Generator().manual_seed(seed), dtype=g.dtype)
    for r in others:
        r = r / plain_norm(r, p)[:, None]
        assert (inner(g, r) <= dual_norm(g, p) * (1 + 1e-12)).all()  # Hölder's inequality


@every_norm
@pytest.mark.parametrize("size", [1e30, 1.0, 1e-14, 1e-30])
def test_the_length_of_the_gradient_does_not_matter_in_float32(p, size):
    g = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(steepest(g * size, p), steepest(g, p))
    torch.testing.assert_close(dual_norm(g * size, p) / size, dual_norm(g, p))


@every_norm
def test_zero_gives_zero_and_leaves_its_neighbours_alone(p):
    g = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    g[1] = 0
    assert torch.equal(steepest(g, p)[1], torch.zeros(4))
    assert dual_norm(g, p)[1] == 0
    assert dual_norm(g, p)[0] > 0


def test_a_tie_in_l1_goes_to_the_first_coordinate():
    assert torch.equal(steepest(torch.tensor([[1.0, -2.0, 2.0, -2.0]]), 1), torch.tensor([[0.0, -1.0, 0.0, 0.0]]))


@every_norm
def test_the_gradient_of_the_dual_norm_is_the_steepest_direction(p):
    g = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(dual_norm(g, p).sum(), g)
    torch.testing.assert_close(gradient, steepest(g.detach(), p))


# ------------------------------------------------------------------------------------------------------------- project


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
def test_projection_lies_in_the_ball(p, delta, eps):
    assert (plain_norm(project(delta, eps, p), p) <= eps + 1e-9).all()


@every_norm
@given(delta=batches(torch.float32), eps=radii)
def test_projection_lies_in_the_ball_in_float32_too(p, delta, eps):
    assert (plain_norm(project(delta, eps, p), p) <= eps + 1e-6 * max(eps, 1)).all()


@every_norm
@given(delta=batches(), eps=radii)
def test_projection_leaves_the_inside_unchanged(p, delta, eps):
    inside = (plain_norm(delta, p) <= eps * (1 - 1e-12)) | (plain_norm(delta, p) == 0)
    assert torch.equal(project(delta, eps, p)[inside], delta[inside])


@every_norm
@given(delta=batches(), eps=radii)
def test_projecting_twice_changes_nothing_more(p, delta, eps):
    once = project(delta, eps, p)
    torch.testing.assert_close(project(once, eps, p), once, atol=1e-12, rtol=1e-12)


@given(delta=batches(), eps=radii)
def test_l1_projection_agrees_with_bisection(delta, eps):
    slow = torch.stack([slow_projection_on_l1(row, eps) for row in delta])
    torch.testing.assert_close(project(delta, eps, 1), slow, atol=1e-9, rtol=1e-9)


@every_norm
@given(delta=batches(), eps=radii, seed=st.integers(0, 1000))
def test_no_other_point_of_the_ball_is_nearer(p, delta, eps, seed):
    best = (project(delta, eps, p) - delta).square().sum(1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(50):
        other = torch.randn(delta.shape, generator=generator, dtype=delta.dtype)
        other = other / plain_norm(other, p)[:, None] * eps * torch.rand(len(delta), 1, generator=generator)
        assert (best <= (other - delta).square().sum(1) + 1e-9).all()


def solved_projection(v, eps, p):
    """By scipy; v = up − down with 0 ≤ up, down ≤ eps makes every constraint smooth."""
    room = {1: lambda z: eps - z.sum(), 2: lambda z: eps**2 - ((z[:5] - z[5:]) ** 2).sum(), "inf": lambda z: 1.0}[p]
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
    delta = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
    theirs = torch.stack([solved_projection(row, 1.5, p) for row in delta])
    torch.testing.assert_close(project(delta, 1.5, p), theirs, atol=1e-4, rtol=0)


@every_norm
def test_large_samples_in_float32_stay_in_the_ball(p):
    delta = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for eps in (0.0, 0.1, 5.0, 100.0):
        assert (plain_norm(project(delta, eps, p), p) <= eps * (1 + 1e-6)).all()


@every_norm
def test_every_sample_may_have_its_own_radius(p):
    delta = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    eps = torch.tensor([0.0, 0.1, 1.0, 100.0], dtype=torch.float64)
    one_by_one = torch.cat([project(delta[i : i + 1], float(eps[i]), p) for i in range(4)])
    torch.testing.assert_close(project(delta, eps, p), one_by_one, rtol=1e-12, atol=1e-12)
    assert torch.equal(project(delta, eps, p)[0], torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(project(delta, eps, p)[3], delta[3])


@every_norm
@pytest.mark.parametrize("function", [norm, dual_norm, steepest, lambda v, p: project(v, 0.7, p)])
def test_a_sample_does_not_depend_on_its_batch(p, function):
    v = torch.randn(6, 10, generator=torch.Generator().manual_seed(5)) * torch.logspace(-20, 3, 6)[:, None]
    alone = torch.cat([function(v[i : i + 1], p) for i in range(6)])
    torch.testing.assert_close(function(v, p), alone, rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------------------------ refusals


@every_norm
@pytest.mark.parametrize("eps", [-0.1, torch.tensor([0.1, -0.2]), math.nan])
def test_a_radius_that_is_negative_or_no_number_is_refused(p, eps):
    with pytest.raises(ValueError, match=r"eps is (-0\.\d|nan).*0 or more"):
        project(torch.ones(2, 3), eps, p)


@pytest.mark.parametrize("bad", [3, 0, -1, "2", "l2", "Inf", None, math.nan])
@pytest.mark.parametrize("function", [norm, dual_norm, steepest, lambda v, p: project(v, 1.0, p)])
def test_an_unknown_norm_is_refused_with_the_cure(function, bad):
    with pytest.raises(ValueError, match=r'norm is .*; use 1, 2 or "inf"'):
        function(torch.ones(2, 3), bad)
