"""Mutual information: the bound and the truths on tables and Gaussians, the critics against a plain loop, and what the attacks built on it owe."""

import copy
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from course_utils import autoencoders, runtime
from course_utils import mutual_information as mi
from course_utils.attacks import succeeded
from course_utils.mutual_information import (
    MLP,
    Affine,
    Critics,
    Found,
    Mine,
    Published,
    collapsed,
    dv_bound,
    estimate,
    feature_maps,
    gaussian_information,
    held_out,
    mine,
    minmax,
    misclassified,
    penalty,
    projected_information,
    projections,
    reconstructed,
    ssim,
    table_information,
)

pytestmark = pytest.mark.filterwarnings("error")
exactly = dict(atol=1e-9, rtol=1e-9)


def build(kind="plain", dtype=torch.float64):
    """A random network for four classes on 1×6×6 images, whose first layers give 6 maps of 4×4; "mixed" has all that train mode changes."""
    with runtime.seeded(1):
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(1, 6, 3))
        if kind == "mixed":
            model.add_module("norm", nn.BatchNorm2d(6))
            model.norm.running_mean.normal_()
        model.add_module("relu1", nn.ReLU())
        if kind == "mixed":
            model.add_module("dropout", nn.Dropout(0.5))
        model.add_module("flat", nn.Flatten())
        model.add_module("dense", nn.Linear(96, 4))
    if kind == "mixed":
        model.train()
        model.relu1.eval()
    model.dense.weight.data *= 4
    return model.to(dtype)


def batch(n=5, seed=0, dtype=torch.float64, model=None):
    """Images with pixels at 0 and 1 among them, and the classes that ``model`` sees in them."""
    x = (1.3 * torch.rand(n, 1, 6, 6, generator=runtime.generator(seed), dtype=torch.float64) - 0.15).clamp(0, 1).to(dtype)
    return x, (model or build(dtype=dtype)).eval()(x).argmax(1)


def critic(kind, d, dtype=torch.float64, seed=0):
    with runtime.seeded(seed):
        return {
            "affine": lambda: Affine(d),
            "mlp": lambda: MLP(2 * d, 12, 7),
            "published": lambda: Published(d),
            "published, no maps": lambda: Published(d, maps=False),
        }[kind]().to(dtype)


def autoencoder(dtype=torch.float64):
    with runtime.seeded(2):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 36), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6))).to(
            dtype
        )


def estimator(kind, model):
    """The ways to measure similarity that the tests of ``minmax`` go through."""
    dtype = next(model.parameters()).dtype
    return {
        "maps": lambda: Mine(feature_maps(model), critic("affine", 16, dtype), lr=0.02),
        "projections": lambda: Mine(projections(9, 8), critic("mlp", 8, dtype), steps=2, lr=0.02),
        "l2": lambda: None,
    }[kind]()


every_estimator = pytest.mark.parametrize("kind", ["maps", "projections", "l2"])
every_mine = pytest.mark.parametrize("kind", ["maps", "projections"])


def attack(kind, model, x, y, **changes):
    settings = dict(steps=12, step_size=0.1, beta=0.5, eps=0.4, mine=estimator(kind, model)) | changes
    return minmax(model, settings.pop("criterion", misclassified(model, y)), x, **settings)


def wild(x_adv, rows):
    """A criterion that jumps from iterate to iterate: rows 0 and 1 always above 0, 2 and 3 always below, the others on either side."""
    shift = torch.zeros(100).index_fill(0, torch.tensor([0, 1]), 1.5).index_fill(0, torch.tensor([2, 3]), -1.5)
    return (997 * x_adv.detach().flatten(1).sum(1)).sin() + shift[rows]


def same(a, b, **tolerance):
    for name in ("x_adv", "information", "success"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), equal_nan=True, **(tolerance or exactly))


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


# ------------------------------------------------------------------------------------------------ the bound and the truth


def test_the_bound_by_hand():
    joint, marginal = torch.tensor([1.0, 2, 6]), torch.tensor([0.0, math.log(3)])
    assert dv_bound(joint, marginal).item() == pytest.approx(3 - math.log(2))
    assert dv_bound(torch.full((4,), 7.0), torch.full((9,), 7.0)).item() == pytest.approx(0, abs=1e-6)
    stacked = dv_bound(torch.stack([joint, joint + 1]).expand(2, 2, 3), torch.stack([marginal, marginal]).expand(2, 2, 2))
    torch.testing.assert_close(stacked, torch.tensor([3.0, 4.0]).expand(2, 2) - math.log(2))


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_the_bound_is_stable_and_knows_no_constant(shift):
    joint, marginal = torch.tensor([1.0, 2, 6]).double(), torch.tensor([0.0, 3]).double()
    torch.testing.assert_close(dv_bound(joint + shift, marginal + shift), dv_bound(joint, marginal))
    assert dv_bound(torch.tensor([shift]), torch.tensor([-shift])).item() == pytest.approx(2 * shift)


def exact_samples(counts):
    """Row and column of samples that hold a table's joint probabilities, and the product of its marginals, without any error."""
    cells = [(a, b) for a in range(counts.shape[0]) for b in range(counts.shape[1]) for _ in range(int(counts[a, b]))]
    a, b = torch.tensor(cells).T
    return (a, b), (a.repeat_interleave(len(a)), b.repeat(len(b)))


def test_no_critic_exceeds_the_information_and_the_log_ratio_attains_it():
    generator = runtime.generator(0)
    for _ in range(20):
        counts = torch.randint(0, 4, (3, 4), generator=generator) + torch.eye(3, 4).long()
        p = counts.double() / counts.sum()
        true = table_information(p)
        joint, marginal = exact_samples(counts)
        critics = torch.randn(200, 3, 4, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 200)[:, None, None]
        values = dv_bound(critics[:, *joint], critics[:, *marginal])
        assert (values <= true + 1e-12).all()
        ratio = (p / (p.sum(1, keepdim=True) * p.sum(0))).log()
        assert dv_bound(ratio[joint], ratio[marginal]).item() == pytest.approx(true, abs=1e-12)
        near = ratio[None] + 1e-3 * critics[:100]
        assert dv_bound(near[:, *joint], near[:, *marginal]).max() > true - 1e-2  # so the bound is tight, not merely low


INDEPENDENT, IDENTICAL = torch.full((2, 2), 0.25), torch.eye(2) / 2


def test_the_information_of_tables():
    assert table_information(INDEPENDENT) == pytest.approx(0, abs=1e-12)
    assert table_information(IDENTICAL) == pytest.approx(math.log(2))
    assert table_information(torch.eye(5).double() / 5) == pytest.approx(math.log(5))
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.125, 0.375, 0.5]).double()
    assert table_information(p[:, None] * q) == pytest.approx(0, abs=1e-12)
    skew = torch.tensor([[0.5, 0.25], [0.0, 0.25]]).double()
    by_hand = 0.5 * math.log(0.5 / (0.75 * 0.5)) + 0.25 * math.log(0.25 / (0.75 * 0.5)) + 0.25 * math.log(0.25 / (0.25 * 0.5))
    assert table_information(skew) == pytest.approx(by_hand, abs=1e-12)
    assert table_information(skew.T) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (INDEPENDENT * 2, r"sum 2; give a table of probabilities"),
        (torch.tensor([[1.25, -0.25]]), r"entries from -0.25"),
        (torch.tensor([0.5, 0.5]), r"p has shape \(2,\)"),
    ],
)
def test_what_is_no_table_of_probabilities_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        table_information(table)


def test_gaussian_information_is_what_integration_and_determinants_give():
    t = torch.linspace(-9, 9, 721, dtype=torch.float64)
    u, v = torch.meshgrid(t, t, indexing="ij")
    for rho in (-0.8, 0.0, 0.5, 0.9):
        log_p = -(u * u - 2 * rho * u * v + v * v) / (2 * (1 - rho**2)) - math.log(2 * math.pi * math.sqrt(1 - rho**2))
        log_q = -(u * u + v * v) / 2 - math.log(2 * math.pi)
        integral = (log_p.exp() * (log_p - log_q)).sum().item() * (t[1] - t[0]).item() ** 2
        assert gaussian_information(rho).item() == pytest.approx(integral, abs=1e-8)
        covariance = torch.eye(6).double()
        covariance[:3, 3:] = covariance[3:, :3] = rho * torch.eye(3)
        assert gaussian_information(rho, 3).item() == pytest.approx(-torch.logdet(covariance).item() / 2)
    assert gaussian_information(torch.tensor([0.0, 1.0, -1.0])).tolist() == [0, math.inf, math.inf]


def test_the_truth_for_projections_is_that_of_gaussians_with_their_correlation():
    x, _ = batch(6)
    others = (0.7 * x + 0.3 * batch(6, seed=1)[0].flip(0), batch(6, seed=2)[0])
    for x_adv in others:
        u, v = projections(4000, 8, standardise=False)(x, x_adv, runtime.generator(0))
        for i, true in enumerate(projected_information(x, x_adv, 8)):
            both = torch.stack([u[i].flatten(), v[i].flatten()])
            rho = (both[0] @ both[1] / both[0].norm() / both[1].norm()).item()
            assert true.item() == pytest.approx(gaussian_information(rho, 8).item(), rel=0.04)
            across = torch.corrcoef(torch.cat([u[i], v[i]], 1).T)  # of the 8 coordinates: only own pairs hang together
            own = torch.eye(8).repeat(2, 2).bool()
            assert across[~own].abs().max() < 0.08


def test_the_truth_for_projections_knows_only_the_angle():
    x, x_adv = batch(6)[0], batch(6, seed=1)[0]
    value = projected_information(x, x_adv)
    rotation = torch.linalg.qr(torch.randn(36, 36, generator=runtime.generator(0), dtype=torch.float64))[0]
    torch.testing.assert_close(projected_information(3 * x, 0.1 * x_adv), value)
    torch.testing.assert_close(projected_information(x_adv, x), value)
    turned = [(z.flatten(1) @ rotation).view_as(z) for z in (x, x_adv)]
    torch.testing.assert_close(projected_information(*turned), value)
    torch.testing.assert_close(projected_information(x, x_adv, 32), value / 4)
    for factor in (1, 0.1, 3, -1):
        assert projected_information(x, factor * x).isinf().all()
    assert projected_information(x.float(), 2 * x.float()).isinf().all()
    near = x + 1e-4 * x_adv  # float32 can tell these apart
    assert projected_information(x, near).isfinite().all()
    left, right = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    left[..., :3], right[..., 3:] = 1, 1
    assert projected_information(left, right).item() == 0


# ------------------------------------------------------------------------------------------------------- MINE on fresh pairs


def gaussians(rho, d=1):
    def draw(count, generator):
        u, w = torch.randn(2, count, d, generator=generator)
        return u, rho * u + math.sqrt(1 - rho**2) * w

    return draw


def tosses(table):
    def draw(count, generator):
        cell = torch.multinomial(table.flatten(), count, replacement=True, generator=generator)
        return (cell // 2)[:, None].float(), (cell % 2)[:, None].float()

    return draw


def narrow(inputs, *widths):
    with runtime.seeded(0):
        return MLP(inputs, *widths)


@pytest.mark.parametrize("table", [INDEPENDENT, IDENTICAL], ids=["independent", "identical"])
def test_mine_finds_the_information_of_a_table(table):
    learned = mine(tosses(table), narrow(2, 32), steps=300, batch=256, lr=1e-2)
    assert held_out(learned, tosses(table)) == pytest.approx(table_information(table), abs=0.03)


def test_mine_finds_the_information_of_gaussians():
    draw, true = gaussians(0.9), gaussian_information(0.9).item()
    found = held_out(mine(draw, narrow(2, 64, 64), steps=400, batch=512, lr=3e-3), draw)
    assert found == pytest.approx(true, abs=0.1 * true + 0.03)


def test_mine_is_reproducible_and_leaves_critic_and_random_state_alone():
    start = narrow(2, 8)
    given, before = copy.deepcopy(start.state_dict()), random_states()
    first, again, other = (mine(gaussians(0.5), start, steps=5, batch=32, seed=seed) for seed in (3, 3, 4))
    assert random_states() == before
    assert all(torch.equal(value, given[name]) for name, value in start.state_dict().items())
    assert start.training and not first.training and all(p.grad is None for p in start.parameters())
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.hidden[0].weight, other.hidden[0].weight)
    values = [held_out(first, gaussians(0.5), count=50, seed=seed) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2] and random_states() == before


def test_mine_divides_the_gradient_by_a_running_mean():
    """Belghazi et al., section 3.2: each step by hand."""
    start, decay = narrow(2, 8).double(), 0.8
    draw = lambda count, generator: [z.double() for z in gaussians(0.7)(count, generator)]  # noqa: E731
    learned = mine(draw, start, steps=6, batch=16, lr=0.01, decay=decay, seed=5)
    plain, generator, mean = copy.deepcopy(start), runtime.generator(5), None
    adam = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(6):
        u, v = draw(16, generator)
        exponentials = plain(u, v[torch.randperm(16, generator=generator)]).exp().mean()
        mean = exponentials.item() if mean is None else decay * mean + (1 - decay) * exponentials.item()
        adam.zero_grad()
        (exponentials / mean - plain(u, v).mean()).backward()
        adam.step()
    for name, value in learned.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], **exactly)


def test_held_out_is_the_bound_on_a_seeds_pairs():
    critic_, generator = narrow(2, 8), runtime.generator(7)
    u, v = gaussians(0.5)(100, generator)
    order = torch.randperm(100, generator=generator)
    by_hand = critic_(u, v).mean() - critic_(u, v[order]).exp().mean().log()
    assert held_out(critic_, gaussians(0.5), count=100, seed=7) == pytest.approx(by_hand.item(), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------------ critics


def samples(n=3, k=5, d=16, seed=0):
    generator = runtime.generator(seed)
    u, w = torch.randn(2, n, k, d, generator=generator, dtype=torch.float64)
    return u, 0.8 * u + 0.6 * w


@pytest.mark.parametrize("pairs", [False, True], ids=["shuffled", "all pairs"])
@pytest.mark.parametrize("kind", ["affine", "mlp", "published", "published, no maps"])
def test_critics_learn_side_by_side_as_they_learn_one_by_one(kind, pairs):
    u, v = samples()
    first = critic(kind, 16)
    given = copy.deepcopy(first.state_dict())
    critics, generator = Critics(first, 3, lr=0.01), runtime.generator(1)
    orders = [torch.randperm(5, generator=generator) for _ in range(21)]
    bounds = [critics.learn(u, v, None if pairs else order) for order in orders[:20]]
    with torch.no_grad():
        bounds.append(critics.bound(u, v, None if pairs else orders[20]))
    assert all(torch.equal(value, given[name]) for name, value in first.state_dict().items())
    assert all(p.grad is None for p in first.parameters())
    for i in range(3):
        plain = copy.deepcopy(first)
        adam = torch.optim.Adam(plain.parameters(), lr=0.01)
        for step, order in enumerate(orders):
            if pairs:
                shuffled = torch.stack([plain(u[i, a][None], v[i, b][None])[0] for a in range(5) for b in range(5)])
            else:
                shuffled = plain(u[i], v[i, order])
            bound = plain(u[i], v[i]).mean() - shuffled.exp().mean().log()
            assert bounds[step][i].item() == pytest.approx(bound.item(), abs=1e-8)
            adam.zero_grad()
            (-bound).backward()
            if step < 20:
                adam.step()
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(critics.weights[name][i], parameter, atol=1e-8, rtol=0)
    assert not pairs or (bounds[20] > bounds[0]).all()


def test_all_pairs_never_exceed_log_k():
    u, v = samples(4, 6, 3)
    critics = Critics(critic("mlp", 3), 4, lr=0.1)
    for scale in (1, 30, 1000):
        for weight in critics.weights.values():
            weight.data *= scale
        with torch.no_grad():
            assert (critics.bound(u, v) <= math.log(6) + 1e-12).all()
    critics = Critics(critic("mlp", 3), 4, lr=0.05)
    for _ in range(200):
        bounds = critics.learn(u, v)
        assert (bounds <= math.log(6) + 1e-12).all()
    assert (bounds > 0.9 * math.log(6)).all()  # six samples are learned by heart
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    for _ in range(200):
        critics.learn(u, v, order)
    assert (critics.bound(u, v, order) > math.log(6)).all()  # which the shuffled bound does not notice


def test_critics_see_only_their_own_image():
    u, v = samples(4)
    order, learned = torch.arange(4, -1, -1), []
    for rows in (slice(0, 4), slice(2, 3)):
        critics = Critics(critic("affine", 16), len(u[rows]), lr=0.05)
        learned.append([critics.learn(u[rows], v[rows], order) for _ in range(5)][-1])
    torch.testing.assert_close(learned[0][2:3], learned[1], **exactly)


def test_critics_learn_where_gradients_are_off_and_pass_none_to_the_samples():
    u, v = (z.requires_grad_() for z in samples())
    with torch.no_grad():
        critics = Critics(critic("affine", 16), 3, lr=0.05)
        values = [critics.learn(u, v) for _ in range(2)]
    assert (values[1] > values[0]).all() and u.grad is None and v.grad is None
    assert not values[0].requires_grad


def test_the_mlp_and_the_affine_critic_are_their_formulas():
    u, v = samples(1, 7, 4)
    for shape in ((7, 4), (1, 7, 4)):
        a, b = u.view(shape), v.view(shape)
        net = critic("mlp", 4)
        h = torch.cat([a, b], -1)
        for layer in net.hidden:
            h = (h @ layer.weight.T + layer.bias).clamp(min=0)
        torch.testing.assert_close(net(a, b), h @ net.out.weight[0] + net.out.bias)
        net = critic("affine", 4)
        hidden = a @ net.left.weight.T + b @ net.right.weight.T + net.left.bias
        torch.testing.assert_close(net(a, b), hidden.clamp(min=0) @ net.out.weight[0])
    assert sum(p.numel() for p in MLP(8).parameters()) == 9


@pytest.mark.parametrize(("maps", "d"), [(True, 16), (True, 4), (True, 49), (False, 16), (False, 7)])
def test_the_collapsed_critic_computes_what_the_published_one_does(maps, d):
    u, v = samples(2, 9, d)
    full = critic("published" if maps else "published, no maps", d)
    small = collapsed(full, d)
    torch.testing.assert_close(small(u, v), full(u, v), atol=1e-12, rtol=0)
    assert (full(u, v) != 0).any() and full(u, v).std() > 1e-3
    assert sum(p.numel() for p in small.parameters()) == 20 * d + 20
    assert sum(p.numel() for p in full.parameters()) > 20 * sum(p.numel() for p in small.parameters())


def test_the_published_critic_has_the_published_size():
    with torch.device("meta"):
        sizes = {side: sum(p.numel() for p in Published(side * side).parameters()) for side in (26, 28, 30)}
        random_mode = sum(p.numel() for p in Published(128, maps=False).parameters())
    assert {side: round(size / 1e6, 2) for side, size in sizes.items()} == {26: 10.25, 28: 11.96, 30: 13.79}
    assert round(random_mode / 1e3) == 142
    for d in (15, 1):
        with pytest.raises(ValueError, match=f"d is {d}; feature maps must be square, 2×2 or larger"):
            Published(d)


# ------------------------------------------------------------------------------------------------------------------ samplers


def test_feature_maps_are_the_layers_output():
    model = build("mixed").eval()
    x, x_adv = batch(3)[0], batch(3, seed=1)[0]
    for layer, front in {"conv1": model[:1], "relu1": model[:3]}.items():
        u, v = feature_maps(model, layer)(x, x_adv, runtime.generator(0))
        assert u.shape == v.shape == (3, 6, 16)
        torch.testing.assert_close(u, front(x).view(3, 6, 16))
        torch.testing.assert_close(v, front(x_adv).view(3, 6, 16))
    assert torch.equal(u, feature_maps(model)(x, x_adv, runtime.generator(9))[0])  # relu1 is the default, nothing is drawn


def test_feature_maps_of_a_model_in_train_mode_are_those_of_eval_mode():
    model = build("mixed")
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    x, _ = batch(3)
    u, _ = feature_maps(model)(x, x, runtime.generator(0))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(u, feature_maps(model.eval())(x, x, runtime.generator(0))[0])


def test_a_layer_that_gives_no_maps_is_refused():
    with pytest.raises(ValueError, match="layer is 'relu2'; the model's layers are conv1, relu1, flat, dense"):
        feature_maps(build(), "relu2")
    x, _ = batch(3)
    with pytest.raises(ValueError, match=r"layer 'flat' gives shape \(3, 96\); samples need feature maps"):
        feature_maps(build(), "flat")(x, x, runtime.generator(0))


def test_projections_have_the_law_of_gaussian_ones():
    x, x_adv = batch(3)[0], batch(3, seed=1)[0]
    x[1] = x[0]
    u, v = projections(3000, 10, standardise=False)(x, x_adv, runtime.generator(0))
    assert u.shape == v.shape == (3, 3000, 10) and u.dtype == torch.float64
    size = x.flatten(1).square().sum(1) / 10  # ‖x‖²/size
    for z, variance in ((u, size), (v, x_adv.flatten(1).square().sum(1) / 10)):
        torch.testing.assert_close(z.flatten(1).square().mean(1), variance, rtol=0.04, atol=0)
        assert (z.flatten(1).mean(1).abs() < 5 * (variance / 30_000).sqrt()).all()
    normal = u[0].flatten() / size[0].sqrt()
    for threshold in (-1.0, 0.0, 1.5):
        expected = 0.5 * (1 + math.erf(threshold / math.sqrt(2)))
        assert (normal < threshold).double().mean().item() == pytest.approx(expected, abs=0.015)
    assert torch.corrcoef(u[0].T).fill_diagonal_(0).abs().max() < 0.1  # the numbers of a sample are independent
    assert torch.equal(u[0], u[1])  # the same draw for every image


def test_projections_are_linear_with_one_draw_for_both_images_and_a_fresh_one_each_time():
    x, x_adv = batch(3)[0], batch(3, seed=1)[0]
    for standardise in (False, True):
        sample = projections(7, 5, standardise=standardise)
        generator = runtime.generator(0)
        u, v = sample(x, x_adv, generator)
        assert torch.equal(*sample(x, x, runtime.generator(0))) and torch.equal(sample(x, x, runtime.generator(0))[0], u)
        torch.testing.assert_close(sample(x_adv, x, runtime.generator(0))[1], u)
        assert not torch.allclose(sample(x, x_adv, generator)[0], u)
        alone = sample(x[2:], x_adv[2:], runtime.generator(0))
        torch.testing.assert_close(alone[1], v[2:])
    whole = projections(7, 5, standardise=False)
    u, v = whole(x, x_adv, runtime.generator(0))
    torch.testing.assert_close(whole(2 * x - x_adv, x, runtime.generator(0))[0], 2 * u - v)
    assert projections()(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2), runtime.generator(0))[0].shape == (1, 500, 128)


def test_standardised_samples_have_mean_0_and_deviation_1():
    x, x_adv = batch(3)[0], batch(3, seed=1)[0]
    raw = projections(50, 16, standardise=False)(x, x_adv, runtime.generator(0))
    for z, r in zip(projections(50, 16)(x, x_adv, runtime.generator(0)), raw, strict=True):
        torch.testing.assert_close(z.mean(-1), torch.zeros(3, 50).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(z.std(-1, correction=0), torch.ones(3, 50).double(), atol=1e-3, rtol=0)
        torch.testing.assert_close(z, (r - r.mean(-1, keepdim=True)) / r.std(-1, correction=0, keepdim=True), atol=1e-3, rtol=1e-3)


# ----------------------------------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("pairs", [False, True])
@every_mine
def test_an_estimate_is_the_images_own(kind, pairs, monkeypatch):
    x, x_adv = batch(5)[0], batch(5, seed=1)[0]
    how = estimator(kind, build())
    settings = dict(steps=15, pairs=pairs, seed=3)
    together = estimate(x, x_adv, how, **settings)
    assert together.shape == (5,) and len(together.unique()) == 5 and not together.requires_grad
    alone = torch.cat([estimate(x[i : i + 1], x_adv[i : i + 1], how, **settings) for i in range(5)])
    torch.testing.assert_close(alone, together, **exactly)
    monkeypatch.setattr(mi, "MEMORY", 1)
    assert [len(rows) for rows in how.chunks(x)] == [len(rows) for rows in how.chunks(x, pairs=True)] == [1] * 5
    torch.testing.assert_close(estimate(x, x_adv, how, **settings), together, **exactly)
    monkeypatch.setattr(mi, "MEMORY", 64_000)
    assert len(list(how.chunks(x, pairs=True))) > len(list(how.chunks(x)))  # K² pairs take more room than K samples
    assert not torch.allclose(estimate(x, x_adv, how, **settings | {"seed": 4}), together) or (kind == "maps" and pairs)


def test_an_estimate_is_what_a_plain_loop_reaches():
    x, x_adv = batch(2)[0], batch(2, seed=1)[0]
    model = build()
    for kind in ("maps", "projections"):
        for pairs in (False, True):
            how, order = estimator(kind, model), None
            found = estimate(x, x_adv, how, steps=4, pairs=pairs, seed=5)
            for i in range(2):
                generator, plain = runtime.generator(5), copy.deepcopy(how.critic)
                adam = torch.optim.Adam(plain.parameters(), lr=how.lr)
                for step in range(5):
                    u, v, order = drawn(kind, model, x[i], x_adv[i], generator)
                    bound = plain_bound(plain, u.detach(), v.detach(), order, pairs)
                    adam.zero_grad()
                    (-bound).backward()
                    if step < 4:
                        adam.step()
                assert found[i].item() == pytest.approx(bound.item(), abs=1e-9)


def test_an_estimate_over_all_pairs_never_exceeds_log_k_as_one_over_shuffles_does():
    x, _ = batch(3)
    how = Mine(feature_maps(build()), critic("mlp", 16), lr=0.01)
    settings = [dict(pairs=pairs, seed=seed) for pairs in (True, False) for seed in range(2)]
    with_pairs, without = torch.stack([estimate(x, x, how, steps=100, **changes) for changes in settings]).view(2, 6)
    assert (with_pairs <= math.log(6) + 1e-12).all() and (with_pairs > 0.5 * math.log(6)).all()
    assert (without > math.log(6)).any()


@every_mine
def test_an_estimate_leaves_everything_as_found(kind):
    model = build("mixed")
    x, x_adv = batch(4)[0], batch(4, seed=1)[0]
    how = estimator(kind, model)
    before, states, images = everything(model, how.critic), random_states(), (x.clone(), x_adv.clone())
    value = estimate(x, x_adv, how, steps=3)
    assert_as_found(before, everything(model, how.critic))
    assert random_states() == states and torch.equal(x, images[0]) and torch.equal(x_adv, images[1])
    with torch.no_grad():
        assert torch.equal(estimate(x, x_adv, how, steps=3), value)


@every_mine
def test_the_callers_critic_keeps_its_precision(kind):
    model = build()
    how = estimator(kind, model)
    how.critic.float()
    x, y = batch(2)
    estimate(x, x, how, steps=1)
    attack(kind, model, x, y, mine=how, steps=1)
    assert {p.dtype for p in how.critic.parameters()} == {torch.float32}


def everything(*modules):
    named = [q for module in modules for q in module.parameters()]
    return {
        "tensors": [tensor.clone() for module in modules for tensor in module.state_dict().values()],
        "gradients": [None if q.grad is None else q.grad.clone() for q in named],
        "flags": [part.training for module in modules for part in module.modules()] + [q.requires_grad for q in named],
    }


def assert_as_found(before, after):
    assert before["flags"] == after["flags"]
    for kind in ("tensors", "gradients"):
        for a, b in zip(before[kind], after[kind], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


# ------------------------------------------------------------------------------------------------------------------ criteria


@pytest.mark.parametrize("kappa", [0.0, 0.7])
@pytest.mark.parametrize("to_target", [False, True])
def test_misclassified_is_its_formula_and_agrees_with_succeeded(to_target, kappa):
    model = build()
    model.dense.bias.data -= 30  # all logits negative
    x, y = batch(60, model=model)
    labels = (y + torch.arange(60) % 3) % 4  # of every third image its class, of the others another one
    criterion = misclassified(model, **({"target": labels} if to_target else {"y": labels}), kappa=kappa)
    rows = torch.arange(59, -1, -1)
    f = criterion(x[rows], rows).detach()
    for row, value in zip(rows.tolist(), f.tolist(), strict=True):
        z = model(x[row : row + 1])[0].tolist()
        others = max(z[j] for j in range(4) if j != labels[row])
        by_hand = (others - z[labels[row]] if to_target else z[labels[row]] - others) + kappa
        assert value == pytest.approx(by_hand + 1.1e-5 * (1 + max(map(abs, z))), abs=1e-12)
    if not kappa:
        verdict = succeeded(model, x[rows], **({"target": labels[rows]} if to_target else {"y": labels[rows]}))
        assert torch.equal(f <= 0, verdict) and 0 < verdict.sum() < 60


@pytest.mark.parametrize("to_target", [False, True])
def test_a_lead_that_rounding_could_turn_is_no_success(to_target):
    logits = nn.Flatten()
    share = torch.tensor([-1, 0, 0.5, 1.05, 1.2, 5]).double()
    x = torch.tensor([0.5, 0.25]).double().repeat(6, 1)
    x[:, 1] = 0.5 + share * 1.5e-5
    x = x[:, None, None, :]
    labels = {"target": torch.ones(6).long()} if to_target else {"y": torch.zeros(6).long()}
    f = misclassified(logits, **labels)(x, torch.arange(6))
    assert (f <= 0).tolist() == [False] * 4 + [True] * 2
    assert (succeeded(logits, x, **labels) >= (f <= 0)).all()


def test_misclassified_needs_a_label():
    with pytest.raises(ValueError, match="y and target are both missing"):
        misclassified(build())


def test_reconstructed_is_its_formula():
    net = autoencoder()
    x, x_adv = batch(6)[0], batch(6, seed=1)[0]
    rows = torch.tensor([4, 0, 3])
    f = reconstructed(net, x)(x_adv[rows], rows)
    for row, value in zip(rows.tolist(), f.tolist(), strict=True):
        given, changed = (x[row] - net(z[row : row + 1])[0] for z in (x, x_adv))
        by_hand = sum(v * v for v in changed.flatten().tolist()) - sum(v * v for v in given.flatten().tolist())
        assert value == pytest.approx(by_hand, abs=1e-12)
    torch.testing.assert_close(reconstructed(net, x)(x, torch.arange(6)), torch.zeros(6).double(), atol=1e-12, rtol=0)


def test_reconstructed_judges_in_eval_mode_and_leaves_the_network_as_found():
    net = nn.Sequential(autoencoder(), nn.BatchNorm2d(1).double(), nn.Dropout(0.5)).train()
    x, _ = batch(6)
    before, states = everything(net), random_states()
    criterion = reconstructed(net, x)
    assert_as_found(before, everything(net))
    assert random_states() == states
    net.eval()
    torch.testing.assert_close(criterion(x, torch.arange(6)), torch.zeros(6).double(), atol=1e-12, rtol=0)


# -------------------------------------------------------------------------------------------------- minmax, step by step


def drawn(kind, model, x, x_adv, generator):
    """Samples of one image and the order of its shuffle, as the docstrings say."""
    if kind == "maps":
        u, v = (model.relu1(model.conv1(z[None]))[0].reshape(6, 16) for z in (x, x_adv))
    else:
        m = torch.randn(36, 72, generator=generator).double() / math.sqrt(8)
        u, v = ((z.flatten() @ m).view(9, 8) for z in (x, x_adv))
        u, v = ((z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for z in (u, v))
    return u, v, torch.randperm(len(u), generator=generator)


def plain_bound(critic_, u, v, order, pairs=False):
    if pairs:
        k = len(u)
        shuffled = torch.cat([critic_(u[a][None], v[b][None]) for a in range(k) for b in range(k)])
    else:
        shuffled = critic_(u, v[order])
    return critic_(u, v).mean() - shuffled.exp().mean().log()


def by_hand(kind, model, f, x, how, *, steps, step_size, beta, eps, c=None, similar=True, start=0.086, seed=0):
    """Algorithm 1 for one image, line by line: what every step recorded."""
    generator, records = runtime.generator(seed), []
    plain = how and copy.deepcopy(how.critic)
    adam = how and torch.optim.Adam(plain.parameters(), lr=how.lr)

    def box(z):
        return (x + (z - x).clamp(-eps, eps)).clamp(0, 1)

    def similarity(z):
        return plain_bound(plain, *drawn(kind, model, x, z, generator)) if how else -(z - x).square().sum()

    dual = 0.0 if c is None else c
    z = box(x + start * (2 * torch.rand(x.shape, generator=generator).double() - 1))
    for t in range(1, steps + 1):
        z = z.detach().requires_grad_()
        objective = dual * f(z).clamp(min=0) + (-1 if similar else 1) * similarity(z)
        z = box((z - step_size * torch.autograd.grad(objective, z)[0]).detach())
        for _ in range(how.steps if how else 0):
            adam.zero_grad()
            (-plain_bound(plain, *drawn(kind, model, x, z, generator))).backward()
            adam.step()
        value, now = f(z).item(), similarity(z).item()
        if c is None:
            dual = (1 - beta / t ** (1 / 4)) * dual + beta * max(value, 0)
        records.append(SimpleNamespace(x_adv=z, information=now, criterion=value, c=dual))
    return records


@pytest.mark.parametrize("settings", [{}, dict(similar=False), dict(c=2.0), dict(eps=0.05), dict(seed=3, start=0.3)], ids=str)
@every_estimator
def test_every_step_is_that_of_algorithm_1(kind, settings):
    model = build()
    x, y = batch(3)
    how, seen = estimator(kind, model), []
    chosen = dict(steps=5, step_size=0.1, beta=0.5, eps=0.4) | settings
    minmax(model, misclassified(model, y), x, mine=how, on_step=seen.append, **chosen)
    assert [step.step for step in seen] == [1, 2, 3, 4, 5]
    for i in range(3):

        def f(z, i=i):
            logits = model(z[None])[0]
            others = torch.cat([logits[: y[i]], logits[y[i] + 1 :]]).max()
            return logits[y[i]] - others + 1.1e-5 * (1 + logits.detach().abs().max())

        for step, expected in zip(seen, by_hand(kind, model, f, x[i], how, **chosen), strict=True):
            torch.testing.assert_close(step.x_adv[i], expected.x_adv, **exactly)
            for name in ("information", "criterion", "c"):
                assert getattr(step, name)[i].item() == pytest.approx(getattr(expected, name), abs=1e-8)
    assert (seen[-1].x_adv != seen[0].x_adv).flatten(1).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_estimator
def test_every_iterate_lies_in_the_ball_and_in_the_box_and_c_is_never_negative(kind, dtype):
    model = build(dtype=dtype)
    x, y = batch(12, dtype=dtype)
    for eps, beta in ((0.05, 1.0), (0.3, 0.1), (1.0, 0.0)):
        seen = []
        found = attack(kind, model, x, y, eps=eps, beta=beta, step_size=0.5, start=0.5, on_step=seen.append)
        c = torch.zeros(12, dtype=dtype)
        for step in seen:
            assert step.x_adv.min() >= 0 and step.x_adv.max() <= 1 and step.x_adv.dtype == dtype
            assert ((step.x_adv.double() - x.double()).abs() <= eps + 1e-6).all()
            assert (step.c >= 0).all()
            c = (1 - beta / step.step**0.25) * c + beta * step.criterion.clamp(min=0)
            torch.testing.assert_close(step.c, c)
        assert any(((step.x_adv - x).abs() > eps - 1e-6).any() for step in seen) or eps > 0.1
        assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and ((found.x_adv.double() - x.double()).abs() <= eps + 1e-6).all()


def expected_best(seen, similar, positive):
    """The iterate that Algorithm 1 returns, from what ``on_step`` saw: per image (which step, its information, success)."""
    chosen = []
    for i in range(len(seen[0].rows)):
        steps = [(step.information[i].item(), step.criterion[i].item(), k) for k, step in enumerate(seen)]
        valid = [(value, k) for value, f, k in steps if f <= 0 and (value > 0 or not positive)]
        if valid:
            value = (max if similar else min)(value for value, _ in valid)
            chosen.append((next(k for v, k in valid if v == value), value, True))
        else:
            smallest = min(f for _, f, _ in steps)
            chosen.append((next(k for _, f, k in steps if f == smallest), math.nan, False))
    return chosen


@pytest.mark.parametrize("similar", [True, False])
@every_estimator
def test_the_best_iterate_is_kept_exactly(kind, similar):
    model = build()
    x, y = batch(10)
    positions, signs = set(), set()
    for seed in range(3):
        for criterion, lr in ((wild, 1e-4), (wild, 0.02), (misclassified(model, y), 0.02)):  # a slow critic's information is often negative
            seen, how = [], estimator(kind, model)
            how = how and replace(how, lr=lr)
            found = attack(kind, model, x, y, mine=how, criterion=criterion, similar=similar, seed=seed, on_step=seen.append)
            chosen = expected_best(seen, similar, positive=not similar and kind != "l2")
            for i, (step, information, success) in enumerate(chosen):
                assert torch.equal(found.x_adv[i], seen[step].x_adv[i])
                assert found.success[i] == success
                assert found.information[i].item() == information or (not success and found.information[i].isnan())
                positions.add((step, success))
            if criterion is wild:
                assert not found.success[:2].any() and (found.success[2:4].all() or kind != "l2")
                values = torch.stack([step.information for step in seen])[:, 2:]
                signs |= {bool(sign) for sign in (values > 0).flatten()}
    assert len(signs) == 2 or kind == "l2"  # else the test could not tell
    assert len({step for step, won in positions if won}) > 3 and len({step for step, won in positions if not won}) > 3


@every_estimator
def test_eps_zero_and_no_steps_return_x(kind):
    model = build()
    x, y = batch()
    found = attack(kind, model, x, y, eps=0)
    assert torch.equal(found.x_adv, x)
    wrong = attack(kind, model, x, (y + 1) % 4, eps=0)
    assert torch.equal(wrong.x_adv, x) and wrong.success.all() and not found.success.any()
    idle = attack(kind, model, x, y, steps=0)
    assert torch.equal(idle.x_adv, x) and not idle.success.any() and idle.information.isnan().all()
    assert idle.x_adv.data_ptr() != x.data_ptr() != found.x_adv.data_ptr()


@every_estimator
def test_an_empty_batch_gives_an_empty_batch(kind):
    model = build()
    x, y = batch()
    for found in (
        attack(kind, model, x[:0], y[:0]),
        penalty(model, misclassified(model, y[:0]), x[:0], mine=estimator(kind, model), steps=2),
    ):
        assert found.x_adv.shape == (0, 1, 6, 6)
        assert found.information.shape == found.success.shape == (0,) and found.success.dtype == torch.bool
    if kind != "l2":
        assert estimate(x[:0], x[:0], estimator(kind, model), steps=2).shape == (0,)


@every_estimator
def test_another_seed_gives_another_start_and_the_same_seed_the_same(kind):
    model = build()
    x, y = batch()
    starts = [attack(kind, model, 0.2 + 0.6 * x, y, steps=1, step_size=0.0, seed=seed).x_adv - (0.2 + 0.6 * x) for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1]) and not torch.allclose(starts[0], starts[2])
    assert 0.07 < starts[0].abs().max() <= 0.086 + 1e-9 and starts[0].min() < 0 < starts[0].max()
    torch.testing.assert_close(starts[0], starts[0][:1].expand_as(x), atol=1e-12, rtol=0)  # the same for every image
    assert torch.equal(attack(kind, model, x, y, steps=1, step_size=0.0, start=0).x_adv, x)
    runs = [attack(kind, model, x, y, seed=seed) for seed in (0, 0, 1)]
    same(runs[0], runs[1], atol=0, rtol=0)
    assert not torch.allclose(runs[0].x_adv, runs[2].x_adv)


@every_estimator
def test_what_happens_to_an_image_does_not_depend_on_its_batch(kind, monkeypatch):
    model = build()
    x, y = batch(6)
    for changes in ({}, {"similar": False}, {"c": torch.linspace(0, 3, 6)}):
        together = attack(kind, model, x, y, **changes)
        for i in range(6):
            own = changes | ({"c": changes["c"][i].item()} if "c" in changes else {})
            alone = attack(kind, model, x[i : i + 1], y[i : i + 1], **own)
            same(
                alone, Found(together.x_adv[i : i + 1], together.information[i : i + 1], together.success[i : i + 1]), atol=1e-6, rtol=1e-6
            )
        turned = dict(changes) | ({"c": changes["c"].flip(0)} if "c" in changes else {})
        other = attack(kind, model, x.flip(0), y.flip(0), **turned)
        same(Found(other.x_adv.flip(0), other.information.flip(0), other.success.flip(0)), together, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["maps", "projections"])
def test_a_batch_in_chunks_is_a_batch(kind, monkeypatch):
    model = build()
    x, y = batch(7)
    given = {"c": torch.linspace(0, 3, 7)}
    whole = [attack(kind, model, x, y, **changes) for changes in ({}, given)]
    numbers = 4 * sum(p.numel() for p in estimator(kind, model).critic.parameters()) + 24 * (96 if kind == "maps" else 72)
    for memory, chunks in ((1, [[i] for i in range(7)]), (3 * 4 * numbers, [[0, 1, 2], [3, 4, 5], [6]])):
        monkeypatch.setattr(mi, "MEMORY", memory)
        seen = []
        same(attack(kind, model, x, y, on_step=seen.append), whole[0], atol=1e-6, rtol=1e-6)
        assert [step.rows.tolist() for step in seen[::12]] == chunks and [step.step for step in seen] == list(range(1, 13)) * len(chunks)
        same(attack(kind, model, x, y, **given), whole[1], atol=1e-6, rtol=1e-6)


@every_estimator
def test_everything_is_left_as_found(kind):
    model = build("mixed")
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 3.0) if i % 2 else None
    model.conv1.weight.requires_grad_(False)
    x, y = batch(model=build("mixed"))
    how, images = estimator(kind, model), x.clone()
    modules = (model, *([how.critic] if how else []))
    before, states = everything(*modules), random_states()
    found = attack(kind, model, x, y, mine=how)
    result = penalty(model, misclassified(model, y), x, mine=how, steps=2, rounds=2)
    assert_as_found(before, everything(*modules))
    assert random_states() == states
    assert torch.equal(x, images) and not x.requires_grad
    for value in (*vars(found).values(), *vars(result).values()):
        assert not value.requires_grad
    in_eval = build("mixed").eval()
    same(attack(kind, in_eval, x, y), found, atol=0, rtol=0)  # judged in eval mode
    torch.manual_seed(99)
    same(attack(kind, in_eval, x, y), found, atol=0, rtol=0)
    with torch.no_grad():
        same(attack(kind, model, x, y, mine=how), found, atol=0, rtol=0)
    with_graph = x.clone().requires_grad_()
    of_graph = attack(kind, model, with_graph, y, mine=how)
    same(of_graph, found, atol=0, rtol=0)
    assert with_graph.grad is None and not of_graph.x_adv.requires_grad


@every_estimator
def test_a_watcher_sees_copies_and_may_fail(kind):
    model = build("mixed")
    flags = [module.training for module in model.modules()]
    x, y = batch()
    plain = attack(kind, model, x, y)

    def watch(step):
        assert step.x_adv.shape == x.shape and step.rows.tolist() == [0, 1, 2, 3, 4]
        for value in (step.x_adv, step.information, step.criterion, step.c):
            assert len(value) == 5 and not value.requires_grad
        step.x_adv.fill_(7)

    same(attack(kind, model, x, y, on_step=watch), plain, atol=0, rtol=0)

    def fail(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(kind, model, x, y, on_step=fail)
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("to_target", [False, True])
@every_estimator
def test_a_reported_success_is_one_alone_and_in_float64(kind, to_target):
    model = build(dtype=torch.float32)
    x, y = batch(40, dtype=torch.float32)
    labels = {"target": (y + 1) % 4} if to_target else {"y": y}
    dual = dict(c=10.0, eps=0.15 if to_target else 0.05) if kind == "l2" else {}
    found = attack(kind, model, x, y, criterion=misclassified(model, **labels), steps=15, **dual)
    assert 0 < found.success.sum() < 40
    for i in found.success.nonzero().flatten().tolist():
        alone = {name: value[i : i + 1] for name, value in labels.items()}
        assert succeeded(model, found.x_adv[i : i + 1], **alone).item()
        seen = build()(found.x_adv[i : i + 1].double()).argmax(1)
        assert seen == labels["target"][i] if to_target else seen != y[i]
    assert torch.equal(found.information.isnan(), ~found.success)


@every_estimator
def test_a_targeted_attack_reaches_its_target(kind):
    model = build()
    x, y = batch(8)
    target = (y + 1) % 4
    settings = dict(eps=1.0, steps=60) | (dict(c=10.0) if kind == "l2" else dict(step_size=0.3))
    found = attack(kind, model, x, y, criterion=misclassified(model, target=target), **settings)
    assert found.success.all()
    assert torch.equal(model(found.x_adv).argmax(1), target)
    if kind == "l2":
        torch.testing.assert_close(found.information, -(found.x_adv - x).square().sum((1, 2, 3)), **exactly)
    sure = attack(kind, model, x, y, criterion=misclassified(model, target=target, kappa=1.0), **settings)
    logits = model(sure.x_adv[sure.success]).detach()
    wanted = target[sure.success, None]
    lead = logits.gather(1, wanted).squeeze(1) - logits.scatter(1, wanted, -torch.inf).amax(1)
    assert sure.success.sum() > 4 and (lead >= 1).all()


def test_unsupervised_examples_are_less_similar_and_reconstructed_no_worse():
    net = autoencoder()
    x, _ = batch(8)
    how = Mine(projections(20, 8), critic("affine", 8), steps=3, lr=0.02)
    criterion = reconstructed(net, x)
    settings = dict(mine=how, eps=1.0, steps=40, step_size=0.2)
    far, near = (minmax(net, criterion, x, similar=similar, **settings) for similar in (False, True))
    assert far.success.all() and (far.information > 0).all()
    errors = [(x - net(z)).square().sum((1, 2, 3)) for z in (far.x_adv, x)]
    assert (errors[0] <= errors[1] + 1e-9).all()
    both = far.success & near.success
    assert both.any() and (far.information < near.information)[both].all()


@pytest.mark.parametrize("c", [0, 1.5, torch.linspace(0, 3, 5), torch.tensor(2.0, dtype=torch.float32)], ids=["0", "1.5", "each", "tensor"])
@every_estimator
def test_a_given_c_stays_fixed(kind, c):
    model = build()
    x, y = batch()
    seen = []
    attack(kind, model, x, y, c=c, on_step=seen.append)
    for step in seen:
        torch.testing.assert_close(step.c, torch.as_tensor(c).double().expand(5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(x=batch()[0] * 255), r"x reaches from 0 to 255; scale images to \[0,1\]"),
        (dict(x=(batch()[0] * 255).byte()), "x is torch.uint8, .*float images"),
        (dict(x=batch()[0][0]), r"x is .*shape \(1, 6, 6\).*one image is x\[None\]"),
        (dict(steps=-1), "steps is -1; give a whole number, 0 or more"),
        (dict(steps=1.5), "steps is 1.5; give a whole number, 0 or more"),
        (dict(eps=-0.1), "eps is -0.1; give a finite number of 0 or more"),
        (dict(eps=math.nan), "eps is nan; give a finite number"),
        (dict(step_size=math.inf), "step_size is inf; give a finite number"),
        (dict(start=-1.0), "start is -1.0; give a finite number of 0 or more"),
        (dict(beta=1.5), r"beta is 1.5; give a finite number of 0 or more \(beta at most 1\)"),
        (dict(beta=-0.1), "beta is -0.1"),
        (dict(c=-1.0), "c is -1.0; give a finite number of 0 or more, or one for each of the 5 images"),
        (dict(c=torch.ones(3)), r"c is \[1.0, 1.0, 1.0\]; .*each of the 5 images"),
        (dict(c=math.inf), "c is inf; give a finite number"),
    ],
)
def test_bad_input_is_refused_by_name_value_and_cure(wrong, message):
    model = build()
    x, y = batch()
    images, settings = wrong.get("x", x), {name: value for name, value in wrong.items() if name != "x"}
    with pytest.raises(ValueError, match=message):
        attack("l2", model, images, y, **settings)
    if "c" not in wrong:
        with pytest.raises(ValueError, match=message):
            penalty(model, misclassified(model, y), images, mine=None, **settings)
        with pytest.raises(ValueError, match="rounds is 0; give a whole number, 1 or more"):
            penalty(model, misclassified(model, y), x, mine=None, rounds=0)


# ------------------------------------------------------------------------------------------------------- penalty baseline


def scripted(thresholds, x, calls, informations=None):
    """Stands in for ``minmax``: image i succeeds where c reaches its threshold, with information that depends on c."""

    def run(model, criterion, images, *, c, **settings):
        calls.append((c.clone(), settings))
        success = c >= thresholds
        information = torch.where(success, -(c.log10() - 0.3).abs(), torch.nan)
        return Found(c.view(-1, 1, 1, 1).expand_as(x).clone(), information, success)

    return run


@pytest.mark.parametrize("similar", [True, False])
def test_penalty_searches_c_tenfold_and_then_by_halves_for_every_image(monkeypatch, similar):
    x, _ = batch(5)
    thresholds, calls = torch.tensor([0.0005, 0.05, 7.0, 3.3, torch.inf]).double(), []
    monkeypatch.setattr(mi, "minmax", scripted(thresholds, x, calls))
    found = penalty(None, None, x, rounds=9, c=1e-3, mine=None, steps=3, similar=similar)
    assert len(calls) == 9 and all(settings == dict(mine=None, steps=3, similar=similar) for _, settings in calls)
    tried = torch.stack([c for c, _ in calls], 1)
    for i, threshold in enumerate(thresholds.tolist()):
        lower, upper, c, best = 0.0, None, 1e-3, None
        for k in range(9):
            assert tried[i, k].item() == pytest.approx(c, rel=1e-12)
            if c >= threshold:
                upper = c
                information = -abs(math.log10(c) - 0.3)
                best = (max if similar else min)(best or (information, c), (information, c))
            else:
                lower = c
            c = 10 * c if upper is None else (lower + upper) / 2
        assert found.success[i] == (best is not None)
        if best:
            assert found.information[i].item() == pytest.approx(best[0]) and found.x_adv[i].unique().item() == pytest.approx(best[1])
    torch.testing.assert_close(tried[4], 10.0 ** torch.arange(-3, 6).double())
    assert not found.success[4] and found.information[4].isnan()
    assert torch.equal(found.x_adv[4], torch.full_like(x[4], 1e-3))  # an image that never fell holds what the first round found


@every_estimator
def test_penalty_is_minmax_with_each_c_that_it_tried(kind):
    model = build()
    x, y = batch(6)
    criterion = misclassified(model, y)
    settings = dict(mine=estimator(kind, model), steps=6, step_size=0.1, eps=0.4)
    seen = []
    found = penalty(model, criterion, x, rounds=5, c=0.02, on_step=seen.append, **settings)
    tried = torch.stack([step.c for step in seen[::6]])
    assert len(seen) == 30 and all(torch.equal(step.c, tried[k // 6]) for k, step in enumerate(seen))
    runs = [minmax(model, criterion, x, c=c, **settings) for c in tried]
    torch.testing.assert_close(tried[0], torch.full((6,), 0.02).double())
    for i in range(6):
        upper = lower = None
        for k, run in enumerate(runs[:-1]):
            lower, upper = (lower, tried[k, i]) if run.success[i] else (tried[k, i], upper)
            following = 10 * tried[k, i] if upper is None else ((lower or 0) + upper) / 2
            torch.testing.assert_close(tried[k + 1, i], following)
        won = [(run.information[i].item(), run.x_adv[i]) for run in runs if run.success[i]]
        assert found.success[i] == bool(won)
        if won:
            best = max(won, key=lambda pair: pair[0])
            assert found.information[i].item() == best[0] and torch.equal(found.x_adv[i], best[1])
    assert 0 < found.success.sum() and len(tried[-1].unique()) > 1


def test_penalty_without_any_success_says_so():
    model = build()
    x, y = batch(3)
    found = penalty(model, lambda x_adv, rows: 1 + x_adv.flatten(1).sum(1), x, mine=None, steps=2, rounds=3)
    assert not found.success.any() and found.information.isnan().all() and found.x_adv.shape == x.shape


# ------------------------------------------------------------------------------------------------------------------- ssim


def test_ssim_is_1_for_equal_images_symmetric_and_falls_with_noise():
    x = torch.rand(4, 3, 16, 14, generator=runtime.generator(0), dtype=torch.float64)
    noise = torch.randn(x.shape, generator=runtime.generator(1), dtype=torch.float64)
    torch.testing.assert_close(ssim(x, x), torch.ones(4).double())
    values = [ssim(x, x + share * noise) for share in (0.01, 0.05, 0.2, 1.0)]
    for before, after in zip([ssim(x, x), *values], values, strict=False):
        assert (after < before).all()
    torch.testing.assert_close(ssim(x, noise), ssim(noise, x))
    assert (ssim(x, 1 - x) < 0).all()
    torch.testing.assert_close(ssim(x[1:2], noise[1:2]), ssim(x, noise)[1:2])


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (0.0, 1.0), (0.5, 0.5)])
def test_ssim_of_two_constant_images(a, b):
    images = (torch.full((2, 1, 12, 12), value, dtype=torch.float64) for value in (a, b))
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    torch.testing.assert_close(ssim(*images), torch.full((2,), expected, dtype=torch.float64), atol=1e-10, rtol=0)


def test_ssim_is_what_a_slow_double_loop_finds():
    a, b = torch.rand(2, 2, 13, 12, generator=runtime.generator(2), dtype=torch.float64).numpy()
    weight = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)])
    weight /= weight.sum()
    values = []
    for channel in range(2):
        for i in range(3):
            for j in range(2):
                p, q = (z[channel, i : i + 11, j : j + 11] for z in (a, b))
                m, n = (weight * p).sum(), (weight * q).sum()
                v, w, c = (weight * (p - m) ** 2).sum(), (weight * (q - n) ** 2).sum(), (weight * (p - m) * (q - n)).sum()
                values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4)))
    found = ssim(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    assert found.item() == pytest.approx(np.mean(values), abs=1e-12)


# ----------------------------------------------------------------------------------------------- photos, as SVHN has them


@pytest.mark.parametrize("kind", ["convolutional", "dense"])
def test_unsupervised_examples_of_colour_images(kind):
    x = torch.rand(6, 3, 32, 32, generator=runtime.generator(0))
    model = autoencoders.train(kind, x, epochs=1, batch_size=3)
    maps = kind == "convolutional"
    how = mi.Mine(mi.feature_maps(model) if maps else mi.projections(5, 8), mi.Affine(32 * 32 if maps else 8), lr=1e-2)
    found = minmax(model, mi.reconstructed(model, x), x, mine=how, eps=0.1, steps=3, step_size=0.1, similar=False)
    assert found.x_adv.shape == x.shape and 0 <= found.x_adv.min() and found.x_adv.max() <= 1
    assert 0 < (found.x_adv - x).abs().max() <= 0.1 + 1e-6
