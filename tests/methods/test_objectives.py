"""The objectives against what one would write by hand, on tiny models in float64."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from course_utils.core import by_value, models, runtime, training
from course_utils.core.data import Images
from course_utils.core.geometry import dual_norm, norm
from course_utils.core.training import cross_entropy, fit, trained
from course_utils.methods import objectives
from course_utils.methods.attacks import adv_loss, fgsm, pgd
from course_utils.methods.boundary import adv_alpha
from course_utils.methods.linear import worst_margins

SIZES = {"inf": 0.1, 2: 0.4, 1: 0.8}
f64 = torch.float64
quick = {"epochs": 2, "batch_size": 16, "verbose": False}


def bound(objective, names, *values, **more):
    """The objective with its settings, as a lecture binds them."""
    return partial(objective, **dict(zip(names, values, strict=False)), **more)


adversarial = partial(bound, objectives.adversarial, ["attack"])
goodfellow = partial(bound, objectives.goodfellow, ["c"])
lwa = partial(bound, objectives.lwa, ["c", "attack"])
lwa_rep = partial(bound, objectives.lwa_rep, ["layer", "c", "norm", "relative"])
gradient_penalty = partial(bound, objectives.gradient_penalty, ["lam", "norm"])
robust_logistic = partial(bound, objectives.robust_logistic, ["eps", "norm"])
every_norm = pytest.mark.parametrize("p", SIZES)


def build(dropout=0.0, classes=3, dtype=f64, seed=0):
    with runtime.seeded(seed):
        layers = models.mlp(6, 5, dropout=dropout, pixels=9, classes=classes)
        for i, layer in enumerate(layers):  # smooth, for finite differences
            layers[i] = nn.Tanh() if isinstance(layer, nn.ReLU) else layer
        return layers.to(dtype)


def batch(n=12, classes=3):
    x = torch.rand(n, 1, 3, 3, dtype=f64, generator=runtime.generator(1))
    return x, torch.arange(n) % classes


def gradients(model, loss, **settings):
    return torch.autograd.grad(loss, list(model.parameters()), **settings)


def assert_same(model, loss, expected):
    assert_close(loss, expected)
    assert loss.shape == () and loss.item() > 0
    assert_close(gradients(model, loss), gradients(model, expected))


def plain(model, x, y):
    """Mean cross-entropy, written out."""
    z = model(x)
    return sum(z[i].exp().sum().log() - z[i, y[i]] for i in range(len(x))) / len(x)


def input_gradient(model, x, y):
    """∂ℓ/∂x of every image by itself."""

    def of_one(v, label):
        return torch.autograd.functional.jacobian(lambda v: plain(model, v[None], label[None]), v)

    return torch.stack([of_one(*image) for image in zip(x, y, strict=True)])


# --- adversarial


@pytest.mark.parametrize("clean", [0.0, 0.3, 1.0])
@every_norm
def test_adversarial_is_the_loss_on_the_attacked_images_which_are_held_fixed(p, clean):
    model, (x, y) = build(), batch()
    for attack, settings in ((pgd, {"steps": 4}), (fgsm, {}), (adv_loss, {}), (adv_alpha, {})):
        settings |= {"eps": SIZES[p], "norm": p}
        x_adv = attack(model, x, y, **settings)
        expected = (1 - clean) * plain(model, x_adv.detach(), y) + clean * plain(model, x, y)
        loss = adversarial(attack, clean=clean, **settings)(model, x, y)
        assert_same(model, loss, expected)
        assert clean == 1 or loss > plain(model, x, y) + 0.01 * (1 - clean)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_gradient_flows_through_an_attack_that_keeps_its_graph():
    model, (x, y) = build(), batch()

    def one_step(model, x, y):  # as a student may write it
        v = x.clone().requires_grad_()
        return x + 0.2 * torch.autograd.grad(plain(model, v, y), v, create_graph=True)[0]

    x_adv = one_step(model, x, y)
    assert x_adv.requires_grad
    assert_same(model, adversarial(one_step)(model, x, y), plain(model, x_adv.detach(), y))


def test_the_attack_sees_eval_mode_and_the_loss_train_mode():
    model = build(dropout=0.5).train()
    x, y = batch()
    seen = []

    def spy(model, x, y):
        x_adv = pgd(model, x, y, eps=0.1, steps=2)
        seen.append(torch.equal(x_adv, pgd(copy.deepcopy(model).eval(), x, y, eps=0.1, steps=2)))
        return x_adv

    with runtime.seeded(0):
        losses = [adversarial(spy)(model, x, y).item() for _ in range(2)]
    assert seen == [True, True] and losses[0] != losses[1]  # dropout
    assert all(module.training for module in model.modules())


def images(n=48):
    """Two classes that anyone can tell apart."""
    y = torch.arange(n) % 2
    x = 0.4 * torch.rand(n, 1, 3, 3, generator=runtime.generator(0))
    return Images((x + 0.5 * y.view(-1, 1, 1, 1)).clamp(0, 1), y, ("dark", "bright"), "halves")


def test_every_batch_has_random_starts_of_its_own_which_the_seed_fixes():
    draws = []

    def spy(model, x, y, generator=None):
        draws.append(torch.rand(1, generator=generator).item())
        return x

    def run(seed):
        draws.clear()
        fit(build(dtype=torch.float32), images(), objective=adversarial(spy), seed=seed, **quick)
        return list(draws)

    first = run(0)
    assert len(set(first)) == 6
    torch.rand(3)  # where the global state stands does not matter
    assert run(0) == first
    assert not set(run(1)) & set(first)


def test_random_starts_make_a_training_that_can_be_repeated():
    objective = adversarial(pgd, eps=0.2, steps=2, random_start=True)

    def run(seed):
        model = build(dtype=torch.float32)
        fit(model, images(), objective=objective, seed=seed, **quick)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    model, (x, y) = build(), batch()
    objective = adversarial(pgd, eps=0.2, steps=1, step_size=0.0, random_start=True)
    with runtime.seeded(0):
        assert len({objective(model, x, y).item() for _ in range(5)}) == 5


@pytest.mark.parametrize("clean", [-0.1, 1.1, float("nan")])
def test_the_share_of_the_clean_loss_is_a_share(clean):
    with pytest.raises(ValueError, match=f"clean is {clean}; give the share .* between 0 and 1"):
        adversarial(pgd, clean=clean, eps=0.1)(build(), *batch())


# --- Learning with Adversary


@pytest.mark.parametrize("c", [0.3, 2.0])
def test_lwa_is_the_loss_a_step_of_length_c_up_the_gradient(c):
    model, (x, y) = build(), batch()
    g = input_gradient(model, x, y)
    step = c * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert c < 1 or (x + step).max() > 1  # not clipped
    assert_same(model, lwa(c)(model, x, y), plain(model, x + step, y))
    sign = c * g.sign() / 3  # nine pixels
    assert_same(
        model, goodfellow(c)(model, x, y), (plain(model, x, y) + plain(model, x + sign, y)) / 2
    )
    towards = adv_alpha(model, x, y, eps=c, box=False)
    assert_same(model, lwa(c, adv_alpha)(model, x, y), plain(model, towards, y))


@pytest.mark.parametrize("layer", ["flat", "relu1", "dense2", "output"])
@every_norm
def test_lwa_rep_perturbs_the_representation_and_trains_both_parts(p, layer):
    model, (x, y) = build(), batch()
    cut = [name for name, _ in model.named_children()].index(layer) + 1
    body, head = model[:cut], model[cut:]
    representation = body(x)
    g = input_gradient(head, representation.detach(), y)
    unit = {
        "inf": g.sign(),
        2: g / g.norm(dim=1, keepdim=True),
        1: F.one_hot(g.abs().argmax(1), g.shape[1]) * g.sign(),
    }[p]
    assert torch.allclose(norm(unit, p), torch.ones(12, dtype=f64))
    loss = lwa_rep(layer, SIZES[p], p)(model, x, y)
    assert loss > plain(model, x, y)
    assert all(gradient.any() for gradient in gradients(model, loss, retain_graph=True))
    assert_same(model, loss, plain(head, representation + SIZES[p] * unit, y))


def test_a_relative_step_is_a_share_of_each_representation_held_fixed():
    model, (x, y) = build(), batch()
    cut = [name for name, _ in model.named_children()].index("relu1") + 1
    representation, head = model[:cut](x), model[cut:]
    g = input_gradient(head, representation.detach(), y)
    size = representation.detach().norm(dim=1, keepdim=True)
    r = 0.25 * size * g / g.norm(dim=1, keepdim=True)
    loss = lwa_rep("relu1", 0.25, 2, True)(model, x, y)
    assert_same(model, loss, plain(head, representation + r, y))


def test_lwa_rep_of_the_pixels_is_lwa():
    model, (x, y) = build(), batch()
    assert_same(model, lwa_rep("flat", 0.7)(model, x, y), lwa(0.7)(model, x, y))


def test_lwa_rep_needs_a_layer_of_the_model_and_a_norm():
    layers = "'flat', 'dense1', 'relu1', 'dense2', 'relu2', 'output'"
    with pytest.raises(ValueError, match=f"layer is 'conv9'; use one of {layers}"):
        lwa_rep("conv9", 1.0)(build(), *batch())
    with pytest.raises(ValueError, match='norm is 3; use 1, 2 or "inf"'):
        lwa_rep("flat", 1.0, 3)(build(), *batch())


# --- gradient penalty


def test_the_gradient_penalty_is_the_mean_of_each_images_squared_gradient():
    model, (x, y) = build(), batch()
    g = input_gradient(model, x, y)
    squares, loss = g.square().sum((1, 2, 3)), plain(model, x, y)
    for lam in (0.5, 3.0):
        assert_close(gradient_penalty(lam)(model, x, y), loss + lam * squares.mean())
    assert_same(model, gradient_penalty(0.0)(model, x, y), loss)
    alone = x[:1], y[:1]  # the same whatever its batch mates
    assert_close(gradient_penalty(1.0)(model, *alone), plain(model, *alone) + squares[0])
    assert not x.requires_grad


@every_norm
def test_with_a_norm_the_penalty_is_what_the_tangent_gains_within_it(p):
    model, (x, y) = build(), batch()
    rise = dual_norm(input_gradient(model, x, y), p).mean()
    assert_close(gradient_penalty(0.3, p)(model, x, y), plain(model, x, y) + 0.3 * rise)


@pytest.mark.parametrize("p", [None, "inf", 2])
def test_the_gradient_of_the_gradient_penalty_by_finite_differences(p):
    model = build()
    x, y = batch(6)
    objective = gradient_penalty(2.0, p)
    exact = gradients(model, objective(model, x, y))
    without = gradients(model, plain(model, x, y))
    for parameter, gradient, other in zip(model.parameters(), exact, without, strict=True):
        direction = torch.randn(parameter.shape, dtype=f64, generator=runtime.generator(2))
        values = []
        for step in (1e-5, -1e-5):
            parameter.data += step * direction
            values.append(objective(model, x, y).item())
            parameter.data -= step * direction
        slope = (gradient * direction).sum().item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)
        assert abs(slope - (other * direction).sum().item()) > 1e-4  # the penalty counts in it


# --- linear models


@every_norm
def test_robust_logistic_of_two_classes_is_the_slides_formula(p):
    x, y = batch(classes=2)
    with runtime.seeded(0):
        binary = models.binary_logistic(9).double()
        two = models.logistic(9, 2).double()
    two.output.weight.data = torch.cat([torch.zeros(1, 9).double(), binary.output.weight.data])
    two.output.bias.data = torch.cat([torch.zeros(1).double(), binary.output.bias.data])
    w, b, sign = binary.output.weight, binary.output.bias, 2 * y - 1
    dual = {"inf": w.abs().sum(), 2: w.square().sum().sqrt(), 1: w.abs().max()}[p]
    psi = torch.log1p(torch.exp(-(sign * ((x.flatten(1) @ w.T).squeeze(1) + b) - SIZES[p] * dual)))
    assert_same(binary, robust_logistic(SIZES[p], p)(binary, x, y), psi.mean())
    assert_close(robust_logistic(SIZES[p], p)(two, x, y), psi.mean())
    # the worst case is attained
    attacked = adversarial(pgd, eps=SIZES[p], norm=p, box=False)(binary, x, y)
    assert_close(attacked, psi.mean(), atol=1e-6, rtol=0)


@every_norm
def test_robust_logistic_of_ten_classes_is_an_upper_bound_and_exact_at_eps_zero(p):
    x, y = batch(40, classes=10)
    with runtime.seeded(0):
        model = models.logistic(9, 10).double()
    assert_same(model, robust_logistic(0.0, p)(model, x, y), plain(model, x, y))
    bound = robust_logistic(SIZES[p], p)(model, x, y)
    worst = adversarial(pgd, eps=SIZES[p], norm=p, box=False)(model, x, y)
    assert plain(model, x, y) < worst < bound
    by_hand = worst_margins(model, x, y, SIZES[p], p).exp().sum(1).log1p().mean()
    assert_same(model, bound, by_hand)
    bound = robust_logistic(SIZES[p], p)(model, x, y)
    assert all(gradient.isfinite().all() for gradient in gradients(model, bound))


def test_robust_logistic_refuses_what_is_not_linear():
    with pytest.raises(ValueError, match=r"model has the layers .*models.logistic\(\)"):
        robust_logistic(0.1)(build(), *batch())
    with pytest.raises(ValueError, match='norm is 3; use 1, 2 or "inf"'):
        robust_logistic(0.1, 3)(linear(), *batch())


# --- in fit and trained

mlp = partial(models.mlp, 8, dropout=0.2, pixels=9, classes=2)
linear = partial(models.binary_logistic, 9)
partly_clean = partial(adversarial, fgsm, eps=0.1)
PAIRS = {  # two objectives of each kind that differ in one setting
    "adversarial": (mlp, adversarial(pgd, eps=0.1, steps=2), adversarial(pgd, eps=0.2, steps=2)),
    "adversarial's norm": (mlp, adversarial(fgsm, eps=0.1), adversarial(fgsm, eps=0.1, norm=2)),
    "adversarial's attack": (mlp, adversarial(fgsm, eps=0.15), adversarial(pgd, eps=0.15)),
    "adversarial's clean share": (mlp, partly_clean(clean=0.5), partly_clean(clean=0.4)),
    "goodfellow": (mlp, goodfellow(0.5), goodfellow(0.6)),
    "lwa": (mlp, lwa(0.5), lwa(0.6)),
    "lwa's attack": (mlp, lwa(0.7), lwa(0.7, adv_alpha)),
    "lwa_rep": (mlp, lwa_rep("relu1", 0.5), lwa_rep("relu1", 0.6)),
    "lwa_rep's layer": (mlp, lwa_rep("dense1", 0.5), lwa_rep("flat", 0.5)),
    "lwa_rep's norm": (mlp, lwa_rep("dense1", 0.1), lwa_rep("dense1", 0.1, "inf")),
    "lwa_rep's relative": (mlp, lwa_rep("dense1", 0.3), lwa_rep("dense1", 0.3, 2, True)),
    "gradient_penalty": (mlp, gradient_penalty(0.1), gradient_penalty(0.2)),
    "gradient_penalty's norm": (mlp, gradient_penalty(0.3), gradient_penalty(0.3, "inf")),
    "robust_logistic": (linear, robust_logistic(0.05), robust_logistic(0.1)),
    "robust_logistic's norm": (linear, robust_logistic(0.02), robust_logistic(0.02, 2)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_fit_learns_by_every_objective_in_train_mode(kind):
    build, objective, _ = PAIRS[kind]
    modes = []

    def watching(model, x, y):
        loss = objective(model, x, y)
        modes.append(all(module.training for module in model.modules()))
        return loss

    with runtime.seeded(0):
        model = build()
    adam = partial(torch.optim.Adam, lr=0.05)
    history = fit(model, images(), objective=watching, optimizer=adam, **quick | {"epochs": 12})
    assert history.loss[-1] < history.loss[0]
    assert history.train[-1] > 0.9
    assert all(modes) and not model.training
    assert all(p.grad is not None for p in model.parameters())


def test_each_objective_has_a_key_of_its_own_and_the_same_one_again(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    count, once = 0, quick | {"epochs": 1}
    for build, *pair in PAIRS.values():
        for objective in pair:
            trained(build, images(16), objective=objective, **once)
            count += 1
            assert len(list(tmp_path.rglob("*.safetensors"))) == count
            # An address of memory: no other process would find the weights.
            assert b"0x" not in by_value.described("objective", objective)
    refuse = lambda *_, **__: pytest.fail("this should have come from the cache")  # noqa: E731
    monkeypatch.setattr(training, "fit", refuse)
    again = [partial(objectives.adversarial, attack=pgd, eps=eps, steps=2) for eps in (0.1, 0.2)]
    for objective in (*again, lwa(0.7, adv_alpha), lwa_rep("dense1", 0.1, "inf")):
        trained(mlp, images(16), objective=objective, **once)


def test_the_plain_objective_is_cross_entropy():
    model, (x, y) = build(), batch()
    assert_same(model, cross_entropy(model, x, y), plain(model, x, y))
