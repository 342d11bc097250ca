"""Mutual information: the bound and the truths on tables and Gaussians, critics against a loop."""

import copy
import math

import pytest
import torch
from information_cases import (
    assert_as_found,
    batch,
    build,
    close,
    critic,
    drawn,
    estimator,
    every_critic,
    everything,
    plain_bound,
    random_states,
)

from course_utils.core import runtime
from course_utils.methods import mutual_information as mi
from course_utils.methods.mutual_information import (
    MLP,
    Critics,
    PublishedCritic,
    collapsed,
    dv_bound,
    estimate,
    feature_maps,
    gaussian_information,
    held_out,
    projected_information,
    projections,
    table_information,
    train_critic,
)

pytestmark = pytest.mark.filterwarnings("error")


# --- the bound and the truth


def test_the_bound_by_hand():
    joint, marginal = torch.tensor([1.0, 2, 6]), torch.tensor([0.0, math.log(3)])
    assert dv_bound(joint, marginal).item() == pytest.approx(3 - math.log(2))
    constant = dv_bound(torch.full((4,), 7.0), torch.full((9,), 7.0))
    assert constant.item() == pytest.approx(0, abs=1e-6)
    joints = torch.stack([joint, joint + 1]).expand(2, 2, 3)
    stacked = dv_bound(joints, marginal.expand(2, 2, 2))
    close(stacked, torch.tensor([3.0, 4.0]).expand(2, 2) - math.log(2), 1e-6)


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_the_bound_is_stable_and_knows_no_constant(shift):
    joint, marginal = torch.tensor([1.0, 2, 6]).double(), torch.tensor([0.0, 3]).double()
    close(dv_bound(joint + shift, marginal + shift), dv_bound(joint, marginal))
    assert dv_bound(torch.tensor([shift]), torch.tensor([-shift])).item() == 2 * shift


def exact_samples(counts):
    """Samples that hold a table's joint probabilities exactly, and the product of its marginals."""
    rows, columns = counts.nonzero().T
    times = counts[rows, columns]
    a, b = rows.repeat_interleave(times), columns.repeat_interleave(times)
    return (a, b), (a.repeat_interleave(len(a)), b.repeat(len(b)))


def test_no_critic_exceeds_the_information_and_the_log_ratio_attains_it():
    generator = runtime.generator(0)
    for _ in range(20):
        counts = torch.randint(0, 4, (3, 4), generator=generator) + torch.eye(3, 4).long()
        p = counts.double() / counts.sum()
        true = table_information(p)
        joint, marginal = exact_samples(counts)
        critics = torch.randn(200, 3, 4, generator=generator, dtype=torch.float64)
        critics *= torch.logspace(-2, 2, 200)[:, None, None]
        values = dv_bound(critics[:, *joint], critics[:, *marginal])
        assert (values <= true + 1e-12).all()
        ratio = (p / (p.sum(1, keepdim=True) * p.sum(0))).log()
        assert dv_bound(ratio[joint], ratio[marginal]).item() == pytest.approx(true, abs=1e-12)
        near = ratio[None] + 1e-3 * critics[:100]  # the bound is tight, not merely low
        assert dv_bound(near[:, *joint], near[:, *marginal]).max() > true - 1e-2


INDEPENDENT, IDENTICAL = torch.full((2, 2), 0.25), torch.eye(2) / 2


def test_the_information_of_tables():
    assert table_information(INDEPENDENT) == pytest.approx(0, abs=1e-12)
    assert table_information(IDENTICAL) == pytest.approx(math.log(2))
    assert table_information(torch.eye(5).double() / 5) == pytest.approx(math.log(5))
    assert table_information(torch.tensor([[0.5, 0.5], [0.0, 0.0]])) == 0  # a row never seen
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.125, 0.375, 0.5]).double()
    assert table_information(p[:, None] * q) == pytest.approx(0, abs=1e-12)
    skew = torch.tensor([[0.5, 0.25], [0.0, 0.25]]).double()
    by_hand = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
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
    log_q = -(u * u + v * v) / 2 - math.log(2 * math.pi)
    for rho in (-0.8, 0.0, 0.5, 0.9):
        size = math.log(2 * math.pi * math.sqrt(1 - rho**2))
        log_p = -(u * u - 2 * rho * u * v + v * v) / (2 * (1 - rho**2)) - size
        integral = (log_p.exp() * (log_p - log_q)).sum().item() * (t[1] - t[0]).item() ** 2
        assert gaussian_information(rho).item() == pytest.approx(integral, abs=1e-8)
        covariance = torch.eye(6).double()
        covariance[:3, 3:] = covariance[3:, :3] = rho * torch.eye(3)
        by_determinant = -torch.logdet(covariance).item() / 2
        assert gaussian_information(rho, 3).item() == pytest.approx(by_determinant)
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
            # of the 8 coordinates, only own pairs depend on each other
            across = torch.corrcoef(torch.cat([u[i], v[i]], 1).T)
            own = torch.eye(8).repeat(2, 2).bool()
            assert across[~own].abs().max() < 0.08


def test_the_truth_for_projections_knows_only_the_angle():
    x, x_adv = batch(6)[0], batch(6, seed=1)[0]
    value = projected_information(x, x_adv)
    matrix = torch.randn(36, 36, generator=runtime.generator(0), dtype=torch.float64)
    rotation = torch.linalg.qr(matrix)[0]
    turned = [(z.flatten(1) @ rotation).view_as(z) for z in (x, x_adv)]
    for pair in ((3 * x, 0.1 * x_adv), (x_adv, x), turned):
        close(projected_information(*pair), value)
    close(projected_information(x, x_adv, 32), value / 4)
    for factor in (1, 0.1, 3, -1):
        assert projected_information(x, factor * x).isinf().all()
    assert projected_information(x.float(), 2 * x.float()).isinf().all()
    near = x + 1e-4 * x_adv  # float32 sees the difference
    assert projected_information(x, near).isfinite().all()
    left, right = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    left[..., :3], right[..., 3:] = 1, 1
    assert projected_information(left, right).item() == 0


# --- MINE on fresh pairs


def gaussians(rho, d=1):
    def draw(count, generator):
        u, w = torch.randn(2, count, d, generator=generator)
        return u, rho * u + math.sqrt(1 - rho**2) * w

    return draw


def narrow(*widths):
    with runtime.seeded(0):
        return MLP(2, *widths)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_a_trained_critic_finds_the_information_of_gaussians(rho):
    draw, true = gaussians(rho), gaussian_information(rho).item()
    learned = train_critic(draw, narrow(32), steps=300, batch=256, lr=1e-2)
    assert held_out(learned, draw) == pytest.approx(true, abs=0.1 * true + 0.03)


def test_training_is_reproducible_and_leaves_critic_and_random_state_alone():
    start, draw = narrow(8), gaussians(0.5)
    before = everything(start)
    first, again, other = (
        train_critic(draw, start, steps=5, batch=32, seed=seed) for seed in (3, 3, 4)
    )
    assert_as_found(before, start)
    assert start.training and not first.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.hidden[0].weight, other.hidden[0].weight)
    values = [held_out(first, draw, count=50, seed=seed) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2] and random_states() == before["random"]


def test_training_divides_the_gradient_by_a_running_mean():
    """Belghazi et al., section 3.2: each step by hand."""
    start, decay = narrow(8).double(), 0.8

    def draw(count, generator):
        return [z.double() for z in gaussians(0.7)(count, generator)]

    learned = train_critic(draw, start, steps=6, batch=16, lr=0.01, decay=decay, seed=5)
    plain, generator, mean = copy.deepcopy(start), runtime.generator(5), None
    adam = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(6):
        u, v = draw(16, generator)
        places = torch.randint(1, 16, (), generator=generator).item()
        exponentials = plain(u, v.roll(places, 0)).exp().mean()
        now = exponentials.item()
        mean = now if mean is None else decay * mean + (1 - decay) * now
        adam.zero_grad()
        (exponentials / mean - plain(u, v).mean()).backward()
        adam.step()
    for name, value in learned.state_dict().items():
        close(value, plain.state_dict()[name])


def test_held_out_is_the_bound_on_a_seeds_pairs():
    net, generator = narrow(8), runtime.generator(7)
    u, v = gaussians(0.5)(100, generator)
    places = torch.randint(1, 100, (), generator=generator).item()
    by_hand = plain_bound(net, u, v, torch.arange(100).roll(places)).item()
    found = held_out(net, gaussians(0.5), count=100, seed=7)
    assert found == pytest.approx(by_hand, abs=1e-6)


def test_no_pair_stays_together_when_rows_are_rolled():
    for seed in range(20):
        rows = torch.arange(5.0)[:, None]
        moved = mi.rolled(rows, runtime.generator(seed))
        assert (moved != rows).all() and moved.sort(0).values.equal(rows)
    assert mi.rolled(torch.ones(1, 2), runtime.generator(0)).equal(torch.ones(1, 2))


# --- critics


def samples(n=3, k=5, d=16):
    u, w = torch.randn(2, n, k, d, generator=runtime.generator(0), dtype=torch.float64)
    return u, 0.8 * u + 0.6 * w


@pytest.mark.parametrize("pairs", [False, True], ids=["shuffled", "all pairs"])
@pytest.mark.parametrize("kind", ["affine", "mlp", "published", "published, no maps"])
def test_critics_learn_side_by_side_as_they_learn_one_by_one(kind, pairs):
    u, v = samples()
    first = critic(kind, 16)
    before = everything(first)
    critics, generator = Critics(first, 3, lr=0.01), runtime.generator(1)
    orders = [torch.randperm(5, generator=generator) for _ in range(9)]
    bounds = [critics.learn(u, v, None if pairs else order) for order in orders[:8]]
    with torch.no_grad():
        bounds.append(critics.bound(u, v, None if pairs else orders[8]))
    assert_as_found(before, first)
    for i in range(3):
        plain = copy.deepcopy(first)
        adam = torch.optim.Adam(plain.parameters(), lr=0.01)
        for step, order in enumerate(orders):
            bound = plain_bound(plain, u[i], v[i], order, pairs)
            assert bounds[step][i].item() == pytest.approx(bound.item(), abs=1e-8)
            adam.zero_grad()
            (-bound).backward()
            if step < 8:
                adam.step()
        for name, parameter in plain.named_parameters():
            close(critics.weights[name][i], parameter.data, 1e-8)
    assert not pairs or (bounds[8] > bounds[0]).all()


def test_all_pairs_never_exceed_log_k():
    u, v = samples(4, 6, 3)
    critics, order = Critics(critic("mlp", 3), 4, lr=0.05), torch.tensor([1, 2, 3, 4, 5, 0])
    for _ in range(200):
        bounds = critics.learn(u, v)
        assert (bounds <= math.log(6) + 1e-12).all()
    assert (bounds > 0.9 * math.log(6)).all()  # six samples are learned by heart
    for _ in range(200):
        critics.learn(u, v, order)
    assert (critics.bound(u, v, order) > math.log(6)).all()  # a shuffle does not notice


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
        close(net(a, b), h @ net.out.weight[0] + net.out.bias)
        net = critic("affine", 4)
        hidden = a @ net.left.weight.T + b @ net.right.weight.T + net.left.bias
        close(net(a, b), hidden.clamp(min=0) @ net.out.weight[0])
    assert parameters(MLP(8)) == 9


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("maps", "d"), [(True, 16), (True, 4), (True, 49), (False, 16), (False, 7)]
)
def test_the_collapsed_critic_computes_what_the_published_one_does(maps, d):
    u, v = samples(2, 9, d)
    full = critic("published" if maps else "published, no maps", d)
    small = collapsed(full, d)
    close(small(u, v), full(u, v), 1e-12)
    assert full(u, v).std() > 1e-3
    assert parameters(small) == 20 * d + 20
    assert parameters(full) > 20 * parameters(small)


def test_the_published_critic_has_the_published_size():
    with torch.device("meta"):
        sizes = [parameters(PublishedCritic(side * side)) for side in (26, 28, 30)]
        without_maps = parameters(PublishedCritic(128, maps=False))
    assert [round(size / 1e6, 2) for size in sizes] == [10.25, 11.96, 13.79]
    assert round(without_maps / 1e3) == 142
    for d in (15, 1):
        message = f"d is {d}; feature maps must be square, 2×2 or larger"
        with pytest.raises(ValueError, match=message):
            PublishedCritic(d)


# --- samplers


def test_feature_maps_are_the_layers_output_in_eval_mode():
    model, in_eval = build("mixed"), build("mixed").eval()
    before = everything(model)
    x, x_adv = batch(3)[0], batch(3, seed=1)[0]
    for layer, front in {"conv1": in_eval[:1], "relu1": in_eval[:3]}.items():
        u, v = feature_maps(model, layer)(x, x_adv, runtime.generator(0))
        close(u, front(x).view(3, 6, 16))
        close(v, front(x_adv).view(3, 6, 16))
    # relu1 is the default, and nothing is drawn
    assert torch.equal(u, feature_maps(model)(x, x_adv, runtime.generator(9))[0])
    assert_as_found(before, model)


def test_a_layer_that_gives_no_maps_is_refused():
    message = "layer is 'relu2'; the model's layers are conv1, relu1, flat, dense"
    with pytest.raises(ValueError, match=message):
        feature_maps(build(), "relu2")
    x, _ = batch(3)
    message = r"layer 'flat' gives shape \(3, 96\); samples need feature maps"
    with pytest.raises(ValueError, match=message):
        feature_maps(build(), "flat")(x, x, runtime.generator(0))


@pytest.mark.parametrize("standardise", [False, True])
def test_projections_by_hand(standardise):
    """One draw for both images and a whole batch, a fresh one each time."""
    sample, generator, twin = (
        projections(7, 5, standardise),
        runtime.generator(0),
        runtime.generator(0),
    )
    images = batch(3)[0], batch(3, seed=1)[0]
    for _ in range(2):
        m = torch.randn(36, 35, generator=twin).double() / math.sqrt(5)
        for x, found in zip(images, sample(*images, generator), strict=True):
            by_hand = (x.flatten(1) @ m).view(3, 7, 5)
            if standardise:
                off = by_hand - by_hand.mean(2, keepdim=True)
                by_hand = off / (off.square().mean(2, keepdim=True) + 1e-5).sqrt()
            close(found, by_hand)
    tiny = torch.rand(1, 1, 2, 2)
    assert projections()(tiny, tiny, generator)[0].shape == (1, 500, 128)


# --- estimates


@pytest.mark.parametrize("pairs", [False, True])
@every_critic
def test_an_estimate_in_chunks_is_that_of_the_batch(kind, pairs, monkeypatch):
    x, x_adv = batch(5)[0], batch(5, seed=1)[0]
    how = estimator(kind, build())
    settings = dict(steps=15, pairs=pairs, seed=3)
    together = estimate(x, x_adv, how, **settings)
    assert together.shape == (5,) and len(together.unique()) == 5 and not together.requires_grad
    monkeypatch.setattr(mi, "MEMORY", 1)
    for of_pairs in (False, True):
        assert [len(rows) for rows in how.chunks(x, of_pairs)] == [1] * 5
    close(estimate(x, x_adv, how, **settings), together)
    monkeypatch.setattr(mi, "MEMORY", 64_000)  # K² pairs take more room than K samples
    assert len(list(how.chunks(x, pairs=True))) > len(list(how.chunks(x)))
    other = estimate(x, x_adv, how, **settings | {"seed": 4})
    assert not torch.allclose(other, together) or (kind == "maps" and pairs)


@pytest.mark.parametrize("pairs", [False, True])
@every_critic
def test_an_estimate_is_what_a_plain_loop_reaches(kind, pairs):
    x, x_adv = batch(2)[0], batch(2, seed=1)[0]
    model = build()
    how = estimator(kind, model)
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


@every_critic
def test_an_estimate_leaves_everything_as_found(kind):
    model = build("mixed")
    x, x_adv = batch(4)[0], batch(4, seed=1)[0]
    how = estimator(kind, model)
    before, images = everything(model, how.critic), (x.clone(), x_adv.clone())
    value = estimate(x, x_adv, how, steps=3)
    assert_as_found(before, model, how.critic)
    assert torch.equal(x, images[0]) and torch.equal(x_adv, images[1])
    with torch.no_grad():
        assert torch.equal(estimate(x, x_adv, how, steps=3), value)


@every_critic
def test_an_estimate_of_no_images_is_empty(kind):
    x, _ = batch()
    assert estimate(x[:0], x[:0], estimator(kind, build()), steps=2).shape == (0,)
