"""Models that people bring: a verdict is never wrong in the dangerous direction, and no image of the caller changes."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attack_cases import BALLS, BY_GRADIENT, CASES, batch, build, run
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_utils.core import training
from course_utils.core.geometry import norm
from course_utils.core.images import Images
from course_utils.core.runtime import seeded
from course_utils.methods import (
    attacks,
    autoattack,
    autoencoders,
    boundary,
    confuse,
    linear,
    minimum_norm,
    minmax,
    mutual_information,
    objectives,
    poisons,
    victims,
)
from course_utils.methods.attacks import robust_accuracy, succeeded, withstood

CLASSES = ("a", "b", "c", "d")


class Wrapped(nn.Module):
    """A model between two functions: one of its images, one of its logits."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class InPlace(nn.Module):
    """Normalises its images where they lie, as many published models do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x -= 0.5
        x /= 0.25
        return self.net(x)


def sure(net, x):
    """What the model's own argmax says of each image."""
    with torch.no_grad(), training.eval_mode(net):
        return net(x.clone()).argmax(1)


def images(n=12):
    x, y = batch(n)
    return Images(x, y, CLASSES, "test")


# --- verdicts

logits_that_people_make = st.one_of(
    st.floats(-1e8, 1e8).map(lambda offset: lambda z: z + offset),
    st.sampled_from([-math.inf, -1e9, -1e4, -torch.finfo(torch.float32).max]).map(
        lambda low: lambda z: F.pad(z, (0, 3), value=low)
    ),
    st.floats(-30, 6).map(lambda power: lambda z: z * 10**power),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float64]).map(
        lambda kind: lambda z: z.to(kind)
    ),
    st.integers(0, 3).map(lambda k: lambda z: z.index_fill(1, torch.tensor(k), -math.inf)),
    st.just(lambda z: z * 0),
    st.integers(-4, 4).map(lambda digits: lambda z: (z * 10**digits).round() / 10**digits),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*undecided", "ignore:The model's outputs")
@given(
    after=logits_that_people_make,
    seed=st.integers(0, 9),
    eps=st.sampled_from([0.0, 0.02, 0.1, 0.4]),
)
def test_no_verdict_is_wrong_in_the_dangerous_direction(after, seed, eps):
    model = Wrapped(build(), after=after)
    x, y = batch(8, seed)
    target = (y + 1) % 4
    for x_adv in (
        x,
        attacks.pgd(model, x, y, eps=eps, steps=3),
        attacks.fgsm(model, x, y, eps=eps),
    ):
        seen = sure(model, x_adv)
        assert not (withstood(model, x_adv, y) & (seen != y)).any()
        assert not (succeeded(model, x_adv, y) & (seen == y)).any()
        assert not (succeeded(model, x_adv, target=target) & (seen != target)).any()
        assert not (withstood(model, x_adv, y) & succeeded(model, x_adv, y)).any()
        assert robust_accuracy(model, x_adv, y) <= (seen == y).double().mean() + 1e-6
    found = minimum_norm.minimal_eps(model, x, y)
    seen = sure(model, attacks.pgd(model, x, y, eps=0.4, steps=3))
    assert not (found.isinf() & (seen != y)).any()


@pytest.mark.parametrize("low", [-math.inf, -1e9, -1e30])
def test_masked_classes_change_no_verdict(low):
    plain, masked = build(), Wrapped(build(), after=lambda z: F.pad(z, (0, 3), value=low))
    x, y = batch(12)
    pair = [attacks.pgd(model, x, y, eps=0.3) for model in (plain, masked)]
    assert succeeded(plain, pair[0], y).any()
    assert torch.equal(
        *(succeeded(model, x_adv, y) for model, x_adv in zip((plain, masked), pair, strict=True))
    )
    pair = [minimum_norm.minimal_eps(model, x, y) for model in (plain, masked)]
    assert pair[0].isfinite().any()
    torch.testing.assert_close(*pair)
    pair = [minmax.misclassified(model, y)(x, torch.arange(12)) for model in (plain, masked)]
    torch.testing.assert_close(*pair)
    assert torch.equal(
        *(succeeded(model, boundary.deepfool(model, x, y), y) for model in (plain, masked))
    )


def test_a_masked_label_is_no_robust_one():
    model = Wrapped(build(), after=lambda z: z.index_fill(1, torch.tensor(0), -math.inf))
    x, y = batch(8)[0], torch.zeros(8, dtype=torch.long)
    assert succeeded(model, x, y).all() and not withstood(model, x, y).any()


@pytest.mark.parametrize("offset", [1e6, -1e6, 1e7])
def test_an_offset_is_undecided_and_never_robust(offset):
    model = Wrapped(build(), after=lambda z: z + offset)
    x, y = batch(12)
    x_adv = attacks.pgd(model, x, y, eps=0.3)
    wrong = sure(model, x_adv) != y
    assert wrong.double().mean() > 0.5
    with pytest.warns(UserWarning, match="of 12 images are undecided: .*less than"):
        assert not (succeeded(model, x_adv, y) & ~wrong).any()
    assert robust_accuracy(model, x_adv, y) <= (~wrong).double().mean() + 1e-6
    found = minimum_norm.minimal_eps(model, x, y)
    assert found[wrong].isfinite().all()
    if abs(offset) == 1e6:
        right = minimum_norm.minimal_eps(build(), x, y)
        assert ((found - right).abs()[wrong] < 0.05).all()


def test_equal_logits_are_undecided():
    model = Wrapped(build(), after=lambda z: z * 0)
    x, y = batch(6)
    with pytest.warns(UserWarning, match="6 of 6 images are undecided"):
        assert not succeeded(model, x, y).any()
    assert robust_accuracy(model, x, y) == 0


def test_robust_accuracy_of_the_images_is_the_accuracy():
    data = images(40)
    other = Images(data.x, (data.y + torch.arange(40) % 2) % 4, CLASSES, "test")
    for some in (data, other):
        assert robust_accuracy(build(), some.x, some.y) == training.accuracy(build(), some)


@pytest.mark.filterwarnings("error")
def test_a_usual_model_causes_no_warning():
    for scale in (1e-3, 1, 1e3):
        x, y = batch(30)
        succeeded(build(scale=scale), boundary.deepfool(build(scale=scale), x, y), y)


# --- everything that hands images to a model


def drawn_pairs():
    estimator = mutual_information.Estimator(
        mutual_information.projections(4, 6), mutual_information.MLP(12, 4)
    )
    return dict(estimator=estimator, steps=2, eps=0.2)


def autoencoder_of(model):
    """As many numbers as pixels, through the model."""
    return Wrapped(model, after=lambda z: z.repeat(1, 4).view(-1, 1, 4, 4).sigmoid())


def by_gradients(objective, model, data, **settings):
    """The weights' gradient of an objective."""
    loss = objective(model, data.x, data.y, **settings)
    weights = list(model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def generator():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Unflatten(1, (1, 4, 4)))


def fitted(model, data):
    training.fit(model, data, epochs=1, batch_size=5, verbose=False)
    return torch.cat([weight.flatten() for weight in model.parameters()])


def learned(model, data):
    with seeded(0):
        poison, _ = confuse.learn(
            data,
            data,
            build=lambda: copy.deepcopy(model),
            eps=0.2,
            trials=1,
            steps=2,
            generator=generator,
        )
    return poison(data).x


def head_started(model, data):
    with seeded(0), torch.inference_mode(False):
        net = generator()
    return training.predict(
        confuse.head_start(net, [model], data, identity, eps=0.2, steps=2, batch_size=4), data.x
    )


def identity(y):
    return y


CALLS = {
    case: partial(lambda case, model, data: run(case, model, data.x, data.y), case)
    for case in CASES
} | {
    "predict": lambda model, data: training.predict(model, data.x),
    "accuracy": lambda model, data: torch.tensor(training.accuracy(model, data)),
    "fit": fitted,
    "succeeded": lambda model, data: succeeded(model, data.x, data.y),
    "withstood": lambda model, data: withstood(model, data.x, data.y),
    "loss_gradient": lambda model, data: attacks.loss_gradient(model, data.x, data.y),
    "nearest_boundary": lambda model, data: torch.cat(
        [part.flatten() for part in boundary.nearest_boundary(model, data.x, data.y)]
    ),
    "minimal_eps": lambda model, data: minimum_norm.minimal_eps(model, data.x, data.y, steps=3),
    "minmax": lambda model, data: (
        minmax.minmax(model, minmax.misclassified(model, data.y), data.x, **drawn_pairs()).x_adv
    ),
    "penalty": lambda model, data: (
        minmax.penalty(
            model, minmax.misclassified(model, data.y), data.x, rounds=2, **drawn_pairs()
        ).x_adv
    ),
    "misclassified": lambda model, data: minmax.misclassified(model, data.y)(
        data.x, torch.arange(len(data))
    ),
    "reconstructed": lambda model, data: minmax.reconstructed(autoencoder_of(model), data.x)(
        data.x * 0.9, torch.arange(len(data))
    ),
    "predicted": lambda model, data: victims.predicted(model, data),
    "predicted, batch": lambda model, data: victims.predicted(model, data, "batch"),
    "adversarial": partial(
        by_gradients, objectives.adversarial, attack=attacks.pgd, eps=0.1, steps=2, clean=0.5
    ),
    "goodfellow": partial(by_gradients, objectives.goodfellow, c=0.3),
    "lwa": partial(by_gradients, objectives.lwa, c=0.3),
    "lwa_rep": lambda model, data: (
        by_gradients(
            objectives.lwa_rep,
            nn.Sequential(model, nn.Linear(4, 4, bias=False)).requires_grad_(),
            data,
            layer="0",
            c=0.1,
        )
        * 0
    ),
    "gradient_penalty": partial(by_gradients, objectives.gradient_penalty, lam=0.3),
    "adversarial_poison": lambda model, data: (
        poisons.adversarial_poison(model, data, eps=0.2, steps=2)(data).x
    ),
    "universal_poison": lambda model, data: (
        poisons.universal_poison(model, data, eps=0.2, steps=2)(data).x
    ),
    "error_minimising": lambda model, data: (
        poisons.error_minimising(lambda: copy.deepcopy(model), data, eps=0.2, steps=2, rounds=1)(
            data
        ).x
    ),
    "class-wise": lambda model, data: (
        poisons.error_minimising(
            lambda: copy.deepcopy(model), data, eps=0.2, class_wise=True, rounds=1
        )(data).x
    ),
    "gradient_alignment": lambda model, data: (
        poisons.gradient_alignment(model, data, eps=0.2, steps=2)(data).x
    ),
    "parameter_gradient": lambda model, data: poisons.parameter_gradient(model, data.x, data.y),
    "head_start": head_started,
    "learn": learned,
}
every_call = pytest.mark.parametrize("name", CALLS)
first_use = pytest.mark.filterwarnings("ignore:.*undecided", "ignore:The model's outputs")


@first_use
@every_call
def test_a_model_that_writes_into_its_input_changes_no_image(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    data = images()
    before = data.x.clone()
    with seeded(0):
        got = CALLS[name](InPlace(build()), data)
    assert torch.equal(data.x, before)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "other"))
    with seeded(0):
        want = CALLS[name](Wrapped(build(), before=lambda x: (x - 0.5) / 0.25), data)
    torch.testing.assert_close(got, want)


@first_use
@every_call
def test_nan_is_an_error(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    model = build()
    model[-1].weight.data *= math.nan
    with pytest.raises(ValueError, match="model gives NaN or infinite numbers"):
        CALLS[name](model, images())


OF_THE_CALLER = (
    "adversarial",
    "goodfellow",
    "lwa",
    "lwa_rep",
    "gradient_penalty",
)  # who differentiates


@pytest.mark.parametrize("name", [name for name in CALLS if name not in OF_THE_CALLER])
def test_switched_off_gradients_do_not_matter(name, tmp_path, monkeypatch):
    """Neither around the call, nor around the making of the images."""
    results = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        monkeypatch.setenv("COURSE_CACHE", str(tmp_path / mode.__name__))
        model = build()
        with seeded(0), mode():
            results.append(CALLS[name](model, images()).clone())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def critic_weights():
    def draw(count, generator):
        return torch.randn(2, count, 1, generator=generator).unbind()

    critic = mutual_information.MLP(2, 4)
    trained = mutual_information.train_critic(draw, critic, steps=2, batch=8)
    return torch.cat([weight.flatten() for weight in trained.parameters()])


def reconstruction(kind):
    x = images().x
    return training.predict(autoencoders.train(kind, x, epochs=1, batch_size=5), x)


MORE_CALLS = {kind: partial(reconstruction, kind) for kind in autoencoders.KINDS} | {
    "train_critic": critic_weights,
    "estimate": lambda: mutual_information.estimate(
        images().x, images().x.flip(0), drawn_pairs()["estimator"], steps=2
    ),
}


@pytest.mark.parametrize("name", MORE_CALLS)
def test_switched_off_gradients_do_not_matter_to_other_calls(name):
    results = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with seeded(0), mode():
            results.append(MORE_CALLS[name]().clone())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_minmax_warns_of_an_offset_under_which_no_attack_can_seem_to_succeed():
    data = images()
    model = Wrapped(build(), after=lambda z: z + 1e8)
    with pytest.warns(UserWarning, match="undecided"):
        minmax.minmax(model, minmax.misclassified(model, data.y), data.x, **drawn_pairs())


class Root(nn.Module):
    """Finite logits whose gradient is 0 · ∞ where a pixel is 0."""

    def forward(self, x):
        return F.pad(((x * 0).sqrt() * 0).flatten(1).sum(1, keepdim=True), (0, 3))


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
def test_a_gradient_of_nan_is_an_error(attack):
    x, y = batch(4)
    with pytest.raises(ValueError, match="The model's gradient is NaN.*0/0"):
        attack(Root(), x, y, eps=0.1)


@pytest.mark.parametrize(
    "after",
    [lambda z: z.detach(), lambda z: torch.zeros_like(z), lambda z: z.round().sign().detach()],
)
@pytest.mark.parametrize("case", BY_GRADIENT)
@first_use
def test_a_model_that_no_gradient_passes_is_named(case, after):
    x, y = batch(4)
    with pytest.raises(ValueError, match="No gradient reaches the images.*no_grad, detach"):
        run(case, Wrapped(build(), after=after), x, y)


# --- forms

FORMS = [
    (lambda z: (z, z), "model gives a tuple; .*logits alone"),
    (lambda z: {"logits": z}, r"model gives a dict; .*result\['logits'\]"),
    (lambda z: z.argmax(1), r"model gives shape \(\d+,\) for \d+ images"),
    (lambda z: z[:1], r"model gives shape \(1, 4\) for \d+ images"),
    (lambda z: z + math.inf, "infinite numbers"),
]


@first_use
@pytest.mark.parametrize("after, message", FORMS)
@every_call
def test_outputs_that_are_no_logits_are_named(name, after, message, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    if name == "reconstructed":
        pytest.skip("takes the model's output apart before the package sees it")
    with pytest.raises(ValueError, match=message):
        CALLS[name](Wrapped(build(), after=after), images())


def test_a_model_that_squeezes_fails_where_it_must():
    x, y = batch(5)
    model = Wrapped(build(), after=torch.squeeze)
    attacks.fgsm(model, x, y, eps=0.1)
    with pytest.raises(ValueError, match=r"shape \(4,\) for 1 images.*also for a single image"):
        attacks.fgsm(model, x[:1], y[:1], eps=0.1)


def test_a_function_is_no_model():
    x, y = batch(4)
    for call in (
        lambda f: training.predict(f, x),
        lambda f: attacks.pgd(f, x, y, eps=0.1),
        lambda f: succeeded(f, x, y),
    ):
        with pytest.raises(ValueError, match="model is a function; give an nn.Module"):
            call(lambda x: x)
    with pytest.raises(ValueError, match="model is a type; give an nn.Module"):
        training.predict(nn.Flatten, x)


@pytest.mark.parametrize("eps", ["8/255", None, [0.1, "a"], 1j])
def test_eps_that_is_no_number_is_named(eps):
    x, y = batch(4)
    for attack in (
        attacks.fgsm,
        attacks.pgd,
        attacks.adv_loss,
        attacks.adv_loss_sign,
        boundary.adv_alpha,
    ):
        with pytest.raises(ValueError, match="eps is .*; give a finite number of 0 or more"):
            attack(build(), x, y, eps=eps)
    data, logistic = images(), training.models.logistic(16, 4)
    aim = minmax.misclassified(build(), y)
    for call in (
        lambda: linear.worst_case(logistic, x, y, eps),
        lambda: linear.robust_error(logistic, data, eps),
        lambda: minmax.minmax(build(), aim, x, estimator=minmax.closeness, eps=eps),
        lambda: poisons.class_noise(data, eps=eps),
        lambda: poisons.adversarial_poison(build(), data, eps=eps),
        lambda: confuse.head_start(generator(), [build()], data, identity, eps=eps, steps=1),
        lambda: confuse.learn(data, data, build=build, eps=eps, trials=1, steps=1),
    ):
        with pytest.raises(ValueError, match="eps is .*; give a"):
            call()


@pytest.mark.parametrize("case", BALLS)
def test_eps_in_grey_levels_is_warned_of(case):
    x, y = batch(4)
    if "inf" in case:
        with pytest.warns(
            UserWarning, match="eps is 8: .*holds every image. .*eps=8/255"
        ) as caught:
            run(case, build(), x, y, eps=8)
        assert caught[0].filename != attacks.__file__
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(case, build(), x, y, eps=8)


def test_eps_in_grey_levels_is_warned_of_elsewhere_too():
    x, y = batch(4)
    aim = minmax.misclassified(build(), y)
    for call in (
        lambda: linear.worst_case(training.models.logistic(16, 4), x, y, 8),
        lambda: minmax.minmax(build(), aim, x, estimator=minmax.closeness, eps=8, steps=1),
        lambda: objectives.adversarial(build(), x, y, attack=attacks.pgd, eps=8.0, steps=1),
    ):
        with pytest.warns(UserWarning, match="eps is 8: "):
            call()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_refused_with_a_cure_that_keeps_the_ball(case, kind):
    x, y = batch(12)
    with pytest.raises(
        ValueError, match=r"x is torch.b?float16, too coarse .*self.net\(x.half\(\)\).float\(\)"
    ):
        run(case, build(dtype=kind), x.to(kind), y)
    model = Wrapped(build(dtype=kind), before=lambda x: x.to(kind), after=lambda z: z.float())
    x_adv = run(case, model, x, y)
    assert x_adv.dtype == torch.float32
    if case in BALLS:
        p, eps = CASES[case][1].get("norm", 2), CASES[case][1]["eps"]
        assert (norm(x_adv.double() - x.double(), p) <= eps + 1e-6).all()


def test_half_precision_is_refused_by_the_exact_attack_too():
    x, y = batch(4)
    for call in (linear.worst_margins, linear.worst_case):
        with pytest.raises(ValueError, match="x is torch.float16, too coarse"):
            call(training.models.logistic(16, 4).half(), x.half(), y, 0.1)


def test_images_of_another_type_or_shape_than_the_model_are_named():
    x, y = batch(4)
    for bad in (x.double(), x[:, :, :3]):
        with pytest.raises(ValueError, match=r"model cannot take x \(torch.float.*shape and type"):
            attacks.fgsm(build(), bad, y, eps=0.1)


# --- labels

LABELLED = {
    "succeeded": lambda y, x: succeeded(build(), x, y),
    "succeeded, target": lambda y, x: succeeded(build(), x, target=y),
    "withstood": lambda y, x: withstood(build(), x, y),
    "robust_accuracy": lambda y, x: robust_accuracy(build(), x, y),
    "success_rate": lambda y, x: attacks.success_rate(build(), x, target=y),
    "margin": lambda y, x: attacks.margin(build()(x), y),
    "swapped_bce": lambda y, x: attacks.swapped_bce(build()(x), y),
    "lead": lambda y, x: attacks.lead(build()(x), y),
    "fooled": lambda y, x: attacks.fooled(build()(x), y, 1),
    "loss_gradient": lambda y, x: attacks.loss_gradient(build(), x, y),
    "nearest_boundary": lambda y, x: boundary.nearest_boundary(build(), x, y),
    "minimal_eps": lambda y, x: minimum_norm.minimal_eps(build(), x, y),
    "worst_margins": lambda y, x: linear.worst_margins(training.models.logistic(16, 4), x, y, 0.1),
    "worst_case": lambda y, x: linear.worst_case(training.models.logistic(16, 4), x, y, 0.1),
    "autoattack": lambda y, x: autoattack.autoattack(build(), x, y, eps=0.1),
}
BAD_LABELS = {
    "one for all": torch.tensor([3]),
    "a number": torch.tensor(3),
    "int32": torch.zeros(12, dtype=torch.int32),
    "one-hot": torch.zeros(12, 4, dtype=torch.long),
    "numpy": torch.zeros(12, dtype=torch.long).numpy(),
    "a list": [0] * 12,
}


@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_not_one_per_image_are_refused(name, kind):
    with pytest.raises(ValueError, match="one integer label per image"):
        LABELLED[name](BAD_LABELS[kind], batch(12)[0])


def test_too_few_labels_of_a_criterion_are_refused():
    x, y = batch(6)
    with pytest.raises(ValueError, match="target has 1 labels; give one per image"):
        minmax.minmax(
            build(),
            minmax.misclassified(build(), target=y[:1]),
            x,
            estimator=minmax.closeness,
            steps=1,
        )


def test_no_images_have_no_share():
    x, y = batch(4)
    empty = images()[:0]
    for call in (
        lambda: training.accuracy(build(), empty),
        lambda: robust_accuracy(build(), x[:0], y[:0]),
        lambda: attacks.success_rate(build(), x[:0], y[:0]),
        lambda: victims.accuracy_in_mode(build(), empty),
        lambda: linear.robust_error(training.models.logistic(16, 4), empty, 0.1),
    ):
        with pytest.raises(ValueError, match="no images|images is empty"):
            call()


# --- training


class Odd(nn.Module):
    """A network with a layer that it never uses, a frozen one, and two that share their weights."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.out = (nn.Linear(16, 16) for _ in range(3))
        self.again.weight = self.first.weight
        self.unused = nn.Linear(3, 3)
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        return self.out(self.again(self.first(x.flatten(1)).tanh()).tanh())[:, :4]


ODD_CALLS = [name for name in CALLS if name not in ("lwa_rep", *OF_THE_CALLER)]


@pytest.mark.parametrize("name", ODD_CALLS)
def test_unused_frozen_and_tied_layers_are_no_obstacle(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with seeded(0):
        model = Odd()
        frozen = model.first.bias.clone()
        data = images()
        result = CALLS[name](model, data)
    assert result.isfinite().all()
    assert torch.equal(model.first.bias, frozen) and not model.first.bias.requires_grad
    assert model.again.weight is model.first.weight


@pytest.mark.parametrize(
    "build_lazy",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
        lambda: nn.Sequential(
            nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4)
        ),
    ],
)
def test_lazy_layers_are_filled(build_lazy, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    data = images(20)
    training.fit(build_lazy(), data, epochs=1, verbose=False)
    one, two = (training.trained(build_lazy, data, epochs=1, verbose=False)[0] for _ in range(2))
    assert torch.equal(training.predict(one, data.x), training.predict(two, data.x))
    attacks.fgsm(build_lazy(), data.x, data.y, eps=0.1)


@pytest.mark.parametrize(
    "model", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).requires_grad_(False)]
)
def test_a_model_without_parameters_cannot_be_trained_but_attacked(model):
    data = images()
    with pytest.raises(ValueError, match="no parameters to train"):
        training.fit(model, data)
    attacks.pgd(model, data.x, data.y, eps=0.1, steps=2)


def confused():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


@pytest.mark.parametrize("n, size", [(9, 4), (9, 8), (12, 8), (5, 2), (2, 8)])
def test_no_batch_of_one_meets_batch_norm(n, size):
    data = images(n)
    history = training.fit(
        confused(), data, epochs=2, batch_size=size, verbose=False, schedule=lambda t: 1 - t
    )
    assert len(history.loss) == 2
    poisons.error_minimising(confused, data, eps=0.1, batch_size=size, rounds=1)
    sizes = [len(rows) for rows in training.batches(torch.arange(n), size)]
    assert sum(sizes) == n and min(sizes) > 1


def test_batches_of_one_that_were_asked_for_are_named():
    for data, size in ((images(4), 1), (images(1), 8)):
        with pytest.raises(
            ValueError, match="A batch has one image, from which batch norm cannot learn"
        ):
            training.fit(confused(), data, batch_size=size)


def test_one_image_has_no_batch_statistics():
    for data, size in ((images(1), 8), (images(5), 1)):
        with pytest.raises(ValueError, match="A batch has one image, which has no statistics"):
            victims.predicted(confused(), data, "batch", size)
    assert len(victims.predicted(confused(), images(5), "batch", 4)) == 5


def test_training_that_diverges_says_so():
    data = images(20)

    def objective(model, x, y):
        return training.cross_entropy(model, x, y) * math.nan

    with pytest.raises(ValueError, match="loss of epoch 1 is NaN: the training has diverged"):
        training.fit(build(), data, objective=objective, verbose=False)
    with pytest.raises(ValueError, match="NaN"):
        training.fit(
            build(), data, epochs=30, optimizer=partial(torch.optim.SGD, lr=1e38), verbose=False
        )


def test_images_that_are_not_square_are_named():
    x = torch.rand(8, 1, 28, 40)
    data = Images(x, torch.arange(8) % 4, CLASSES, "test")
    with pytest.raises(ValueError, match="images are 28×40, but this network takes square ones"):
        training.slides_network(data, data)
    with pytest.raises(ValueError, match="images are 28×40"):
        confuse.learn(data, data, build=build, eps=0.1, trials=1, steps=1)
    for call in (
        lambda: confuse.head_start(
            generator(), [build()], images()[:0], identity, eps=0.1, steps=1
        ),
        lambda: confuse.learn(
            images(),
            images(),
            build=build,
            eps=0.1,
            trials=1,
            steps=1,
            generator=lambda: nn.Sequential(nn.Conv2d(1, 1, 3)),
        ),
    ):
        with pytest.raises(ValueError, match="images is empty|noise of shape"):
            call()


def test_autoattack_takes_the_number_of_classes_from_the_logits():
    x, y = batch(4)
    for classes in (2, 3):
        with pytest.raises(ValueError, match=f"model has {classes} classes; .*four or more"):
            autoattack.autoattack(build(classes=classes), x, y.clamp(max=classes - 1), eps=0.1)


# --- numbers and devices


class Doubtful(torch.Tensor):
    """A tensor of a device without float64: one of that type can only be made on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, cls) and part.dtype == torch.float64:
                raise TypeError("Cannot convert a tensor of this device to float64.")
        return result


def test_float64_is_made_on_the_cpu():
    x, y = batch(12)
    there = x.as_subclass(Doubtful)
    with pytest.raises(TypeError):
        there.double()
    information = mutual_information.projected_information(there, there * 0.5 + 0.1)
    assert information.dtype == torch.float64 and information.isfinite().all()
    assert mutual_information.table_information((torch.ones(2, 2) / 4).as_subclass(Doubtful)) == 0
    rho = torch.tensor([0.0, 0.5]).as_subclass(Doubtful)
    assert mutual_information.gaussian_information(rho)[1].item() == pytest.approx(
        0.143841, abs=1e-6
    )
    data = Images(there, y % 2, ("a", "b"), "test")
    assert linear.convex_optimum(data, 0.1).gap < 1e-3


def test_numbers_that_mean_nothing_are_named():
    for rho in (1.2, -2, math.nan):
        with pytest.raises(ValueError, match="rho is .*between −1 and 1"):
            mutual_information.gaussian_information(rho)
    for shape in ((2, 1, 8, 8), (2, 1, 30, 10)):
        with pytest.raises(ValueError, match="11 pixels or more a side"):
            minmax.ssim(torch.rand(shape), torch.rand(shape))
