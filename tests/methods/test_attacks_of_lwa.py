"""The attacks of *Learning with Adversary* and DeepFool against exact arithmetic, brute force and closed forms."""

import mpmath
import pytest
import torch
from attack_cases import SIZES, batch, build, every_norm, f64, network_and_batch, one_by_one
from torch.testing import assert_close

from course_utils.core import models
from course_utils.core.geometry import dual_norm, norm, per_sample, steepest
from course_utils.core.runtime import generator, seeded
from course_utils.methods.attacks import adv_loss, adv_loss_sign, fgsm, pgd, predict, succeeded
from course_utils.methods.boundary import adv_alpha, deepfool, nearest_boundary
from course_utils.methods.minimum_norm import minimal_eps

mpmath.mp.dps = 1000  # the softmax of a model that is very sure lies below 1e-400


def jacobian(function, x):
    """d function(x_i) / dx_i for every image, shape (N, K, pixels)."""
    of_one = torch.autograd.functional.jacobian
    return torch.stack([of_one(lambda v: function(v[None])[0], v).flatten(1) for v in x])


def linearised(model, x, softmax=True):
    """α, shape (N, K), and T = ∂α/∂x, shape (N, K, pixels), by autograd; or of the logits."""

    def function(x):
        return model(x).softmax(1) if softmax else model(x)

    return function(x).detach(), jacobian(function, x)


def unit(v):
    """Each row at length 1, however small it is."""
    return steepest(v.flatten(1), 2)


# --- Propositions 2.1 and 2.2, Algorithm 1


@pytest.mark.parametrize("softmax", [True, False])
@every_norm
def test_the_nearest_boundary_is_that_of_the_jacobian(p, softmax):
    model, x, y = network_and_batch(40, f64)
    y = torch.where(torch.arange(40) < 30, y, (y + 1) % 4)  # the last ten are misclassified
    alpha, T = linearised(model, x, softmax)
    direction, distance = nearest_boundary(model, x, y, norm=p, softmax=softmax)
    length = unit if softmax else torch.clone  # of the softmax only the way is known
    chosen = set()
    for i in range(40):
        others = [j for j in range(4) if j != y[i]]
        steps = T[i, others] - T[i, y[i]]
        distances = (alpha[i, y[i]] - alpha[i, others]) / dual_norm(steps, p)
        nearest = int(distances.argmin())
        assert_close(distance[i], distances[nearest])
        assert_close(length(direction[i].view(1, 16)), length(steps[[nearest]]))
        chosen.add(nearest)
    assert (distance[:30] > 0).all() and (distance[30:] < 0).all()
    assert len(chosen) > 1  # else the nearest class could be a fixed one


@every_norm
def test_no_smaller_perturbation_changes_the_class_of_the_linearised_model(p):
    model, x, y = network_and_batch(10, f64)
    alpha, T = linearised(model, x)
    direction, distance = nearest_boundary(model, x, y, norm=p)
    r = per_sample(distance, x) * steepest(direction, p)
    assert_close(norm(r, p), distance)

    def leads(r):
        """By how much the label leads in the linearised softmax; shape as r without its pixels."""
        a = alpha + torch.einsum("nkd,...nd->...nk", T, r.flatten(-3))
        others = a.masked_fill(torch.nn.functional.one_hot(y, 4).bool(), -torch.inf).amax(-1)
        return a.gather(-1, y[:, None].expand(*a.shape[:-1], 1)).squeeze(-1) - others

    assert_close(leads(r), torch.zeros(10, dtype=f64), atol=1e-12, rtol=0)
    noise = torch.randn(2000, *r.shape, dtype=f64, generator=generator(0))
    near = r + 0.5 * r.abs().amax((1, 2, 3), keepdim=True) * noise
    for tries in (noise, near):
        lengths = norm(tries.flatten(0, 1), p).view(2000, 10, 1, 1, 1)
        assert (leads(tries * per_sample((1 - 1e-9) * distance, r) / lengths) > 0).all()


def exactly(model, x, y, p):
    """The directions, at length 1, and the nearest classes, in exact arithmetic."""
    directions, nearest = [], []
    for z, J, label in zip(model(x).tolist(), jacobian(model, x).tolist(), y.tolist(), strict=True):
        e = [mpmath.exp(mpmath.mpf(v) - max(z)) for v in z]
        a = [v / sum(e) for v in e]
        mean = [sum(a[k] * J[k][i] for k in range(4)) for i in range(16)]
        T = [[a[k] * (J[k][i] - mean[i]) for i in range(16)] for k in range(4)]
        best = {}
        for j in range(4):
            if j != label:
                step = [u - v for u, v in zip(T[j], T[label], strict=True)]
                sizes = [abs(v) for v in step]
                root = mpmath.sqrt(sum(v * v for v in step))
                length = {"inf": sum(sizes), 2: root, 1: max(sizes)}[p]
                best[(a[label] - a[j]) / length] = j, [float(v / length) for v in step]
        nearest.append(best[min(best)][0])
        directions.append(best[min(best)][1])
    return unit(torch.tensor(directions, dtype=f64)), torch.tensor(nearest)


@pytest.mark.parametrize("scale", [100, 1000])
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@every_norm
def test_the_direction_of_a_very_sure_model_in_float32_is_the_exact_one(p, wrong, scale):
    x, y = batch(24)
    y = (y + 1) % 4 if wrong else y
    expected, nearest = exactly(build(scale=scale, dtype=f64), x.double(), y, p)
    model = build(scale=scale)
    confidence = predict(model, x).softmax(1).gather(1, y[:, None])
    sure = confidence == (0 if wrong else 1)  # in float32, where 1 − α and α tell nothing
    assert sure.double().mean() > 0.5
    direction, _ = nearest_boundary(model, x, y, norm=p)
    assert ((unit(direction).double() * expected).sum(1) > 0.9999).all()
    assert len(nearest.unique()) > 1


def test_in_the_box_an_l1_step_goes_to_a_pixel_with_room():
    model, x, y = network_and_batch(200)
    stuck, moves = (nearest_boundary(model, x, y, norm=1, box=box)[0] for box in (False, True))
    blocked = lambda d: ((x + 0.1 * steepest(d, 1)).clamp(0, 1) == x).flatten(1).all(1)  # noqa: E731
    assert blocked(stuck).any() and not blocked(moves).any()
    assert moves[~blocked(stuck)].flatten(1).any(1).all()
    for attack in (adv_alpha, adv_loss):
        assert (attack(model, x, y, eps=0.1, norm=1) != x).flatten(1).any(1).all()
        lengths = norm(attack(model, x, y, eps=0.1, norm=1, box=False) - x, 1)
        assert lengths.allclose(torch.tensor(0.1))


# --- the three one-step attacks


@every_norm
def test_each_attack_is_one_step_in_its_direction(p):
    model, x, y = network_and_batch(30, f64)
    y[20:] = (y[20:] + 1) % 4  # misclassified images are attacked like any other
    _, T = linearised(model, x)
    down = -T[torch.arange(30), y].view_as(x)  # the loss grows as α_y falls
    eps = torch.linspace(0.1, 1, 30, dtype=f64)
    towards, _ = nearest_boundary(model, x, y, norm=p)
    expected = {
        adv_loss: steepest(down, p),
        adv_alpha: steepest(towards, p),
        adv_loss_sign: steepest(down.sign(), 2),
    }
    for attack, step in expected.items():
        settings = {"norm": p} if attack is not adv_loss_sign else {}
        result = attack(model, x, y, eps=eps, box=False, **settings)
        assert_close(result, x + per_sample(eps, x) * step)
        assert_close(norm(result - x, settings.get("norm", 2)), eps)
        assert result.min() < 0 and result.max() > 1
        if p != 1:
            assert_close(attack(model, x, y, eps=eps, **settings), result.clamp(0, 1))


def test_adv_alpha_of_two_classes_is_adv_loss():
    model, x, y = network_and_batch(30, classes=2)
    for p in SIZES:
        assert_close(*(a(model, x, y, eps=0.5, norm=p) for a in (adv_loss, adv_alpha)))


@pytest.mark.parametrize("scale", [1, 100])
@every_norm
def test_a_short_step_of_adv_alpha_fools_no_fewer_images_than_one_of_adv_loss(p, scale):
    model, x, y = network_and_batch(400, scale=scale)
    _, distance = nearest_boundary(model, x, y, norm=p, softmax=False)
    eps = 1.1 * distance  # where the nearest class of the linearised logits takes over
    alpha, loss = (
        succeeded(model, attack(model, x, y, eps=eps, norm=p, box=False), y)
        for attack in (adv_alpha, adv_loss)
    )
    more = 50 if scale == 1 else 0  # a sure model's softmax knows two classes only
    assert alpha.sum() >= loss.sum() + more
    assert alpha.double().mean() > 0.8


@every_norm
def test_pgd_without_the_box_is_pgd_in_the_interior_and_leaves_it_elsewhere(p):
    model, x, y = network_and_batch(20, f64)
    inner = 0.4 + 0.2 * x
    y_inner = predict(model, inner).argmax(1)
    random = {"steps": 5, "random_start": True, "restarts": 2}
    for attack, settings in ((fgsm, {}), (pgd, {"steps": 5}), (pgd, random)):
        settings = settings | {"norm": p}
        free, boxed = (
            attack(model, inner, y_inner, eps=0.1, box=box, **settings) for box in (False, True)
        )
        assert_close(free, boxed)
        outside = attack(model, x, y, eps=1.0, box=False, **settings)
        assert outside.min() < 0 or outside.max() > 1
        assert (norm(outside - x, p) <= 1 + 1e-9).all()


# --- DeepFool


@pytest.mark.parametrize("classes", [2, 5])
@every_norm
def test_deepfool_finds_the_distance_to_a_linear_boundary(p, classes):
    with seeded(2):
        model = models.logistic(16, classes).double()
    x = 0.45 + 0.1 * torch.rand(60, 1, 4, 4, dtype=f64, generator=generator(4))
    w = model.output.weight.detach()
    model.output.bias.data = -w @ x.flatten(1).mean(0)  # boundaries pass through the middle
    z = model(x).detach()
    y = z.argmax(1)
    leads = z.gather(1, y[:, None]) - z
    between = torch.stack([dual_norm(w - w[k], p) for k in range(classes)])[y]
    nearest = lambda v: v.scatter(1, y[:, None], torch.inf).amin(1)  # noqa: E731
    exact = nearest(leads / between)
    result = deepfool(model, x, y, norm=p, bisections=20)
    found = norm(result - x, p)
    assert (found >= exact).all()
    # the lead that ``succeeded`` asks for
    certain = 1e-5 * (1 + z.abs().amax(1) + 0.1) / nearest(between)
    assert (found <= exact * (1 + 1e-5) + 2 * certain).all()
    assert succeeded(model, result, y).all()


@pytest.mark.filterwarnings("ignore:.*undecided")
@pytest.mark.parametrize("scale", [1, 100, 1e4])
@every_norm
def test_a_success_of_deepfool_is_one_alone_and_in_float64(p, scale):
    model, x, y = network_and_batch(200, scale=scale)
    exact, verdicts = build(scale=scale, dtype=f64), []
    for settings in (dict(steps=1, overshoot=0.0), {}):  # one short step leaves some standing
        result = deepfool(model, x, y, norm=p, **settings)
        verdict = succeeded(model, result, y)
        assert torch.equal(verdict, one_by_one(lambda x, y: succeeded(model, x, y), result, y))
        assert (exact(result.double()).argmax(1) != y)[verdict].all()
        verdicts.append(verdict)
    assert 0 < verdicts[0].sum() < 200 and verdicts[1].all()


@every_norm
def test_deepfool_is_hardly_nearer_than_fmn(p):
    model, x, y = network_and_batch(200)
    ratio = norm(deepfool(model, x, y, norm=p) - x, p) / minimal_eps(model, x, y, norm=p)
    assert 0.9 < ratio.median() < 1.2


@every_norm
def test_misclassified_images_come_back_unchanged(p):
    model, x, y = network_and_batch(20)
    alone = deepfool(model, x[::2], y[::2], norm=p)
    y[1::2] = (y[1::2] + 1) % 4
    assert succeeded(model, x[1::2], y[1::2]).all()
    result = deepfool(model, x, y, norm=p)
    assert torch.equal(result[1::2], x[1::2])
    assert_close(result[::2], alone, atol=1e-5, rtol=0)
    assert torch.equal(deepfool(model, x, y, norm=p, steps=0), x)


@every_norm
def test_the_bisection_ends_at_the_boundary(p):
    model, x, y = network_and_batch(100)
    rough, fine = (deepfool(model, x, y, norm=p, overshoot=0.5, bisections=n) for n in (0, 14))
    assert succeeded(model, rough, y).all() and succeeded(model, fine, y).all()
    assert (norm(fine - x, p) <= norm(rough - x, p) + 1e-6).all()
    assert norm(fine - x, p).median() < 0.9 * norm(rough - x, p).median()
    shorter = x + 0.995 * (fine - x)
    assert not succeeded(model, shorter, y).any()


def test_an_image_whose_gradients_vanish_stays_where_it_is():
    model = build()
    for parameter in model[1].parameters():
        parameter.data.zero_()
    x, y = batch(8, model=model)
    assert torch.equal(adv_loss_sign(model, x, y, eps=0.1), x)
    for p in SIZES:
        assert torch.equal(deepfool(model, x, y, norm=p), x)
        for attack in (adv_alpha, adv_loss):
            assert torch.equal(attack(model, x, y, eps=0.1, norm=p), x)
