"""Wrapped models: what they compute, and that every attack takes them as it takes the model alone."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attack_cases import batch, build, f64, network_and_batch, run, same_pixels, won
from torch import nn
from torch.testing import assert_close

from course_utils.core.runtime import generator
from course_utils.core.training import predict
from course_utils.methods.attacks import fgsm, pgd, succeeded
from course_utils.methods.transforms import bit_depth, jpeg, posed, random_pose
from course_utils.methods.wrappers import (
    Counted,
    Ensemble,
    Expectation,
    Through,
    straight_through,
)

BITS = {
    "two levels": partial(bit_depth, bits=1),
    "no graph": lambda x: bit_depth(x.detach(), 1),
    "jpeg": partial(jpeg, quality=20),
}
every_defence = pytest.mark.parametrize("name", BITS)


def unchanged(x):
    return x


def at_rest(stream):
    return unchanged


def gradient(function, x):
    """The gradient of ``function(x).sum()``."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


# --- straight through


@every_defence
def test_straight_through_has_the_value_of_the_transform_and_the_gradient_of_the_identity(name):
    x = torch.rand(3, 3, 8, 8, generator=generator(0))
    assert torch.equal(straight_through(BITS[name], x), BITS[name](x))
    there = torch.rand(x.shape, generator=generator(1))
    assert torch.equal(gradient(lambda x: there * straight_through(BITS[name], x), x), there)


@pytest.mark.parametrize("transform", [unchanged, lambda x: x[:], lambda x: 3 * x])
def test_a_transform_s_own_gradient_is_not_added(transform):
    x = torch.rand(2, 1, 4, 4, generator=generator(0))
    assert torch.equal(gradient(partial(straight_through, transform), x), torch.ones_like(x))


@every_defence
def test_through_judges_by_the_transformed_image(name):
    model, x, _ = network_and_batch()
    for approximate in (False, True):
        wrapped = Through(model, BITS[name], approximate=approximate)
        assert torch.equal(predict(wrapped, x), predict(model, BITS[name](x)))


def test_through_takes_the_transform_s_own_gradient_or_that_of_the_identity():
    model, x, _ = network_and_batch(dtype=f64)
    pose = partial(posed, turn=0.3, scale=0.8)
    at_the_view = gradient(model, pose(x))
    assert_close(gradient(Through(model, pose, approximate=True), x), at_the_view)
    assert_close(gradient(Through(model, pose), x), gradient(lambda x: model(pose(x)), x))
    assert not torch.allclose(gradient(Through(model, pose), x), at_the_view)


@pytest.mark.parametrize("name", ["two levels", "jpeg"])
def test_a_defence_without_gradient_stops_the_plain_attack_and_not_the_one_that_knows_it(name):
    model, x, _ = network_and_batch(30)
    defended = Through(model, BITS[name])
    y = predict(defended, x).argmax(1)
    attack = partial(pgd, eps=0.3, steps=10)
    if name == "jpeg":
        with pytest.raises(ValueError, match="No gradient reaches the images"):
            attack(defended, x, y)
    else:
        assert torch.equal(attack(defended, x, y), x)  # it stands still
    knowing = attack(Through(model, BITS[name], approximate=True), x, y)
    assert succeeded(defended, knowing, y).double().mean() > 0.8


# --- the mean over poses, over models

draw = partial(random_pose, turn=0.5, light=0.3)


def views(x, samples, seed, calls=1):
    """What ``Expectation`` shows its model, call by call, drawn by hand."""
    stream = generator(seed)
    return [[draw(stream)(x) for _ in range(samples)] for _ in range(calls)]


def test_expectation_is_the_mean_log_probability_over_new_poses_each_call():
    model, x, _ = network_and_batch()
    wrapped = Expectation(model, draw, samples=3, seed=5)
    seen = [wrapped(x) for _ in range(2)]
    for logits, some in zip(seen, views(x, 3, 5, calls=2), strict=True):
        assert_close(logits, sum(model(view).log_softmax(1) for view in some) / 3)
    assert not torch.allclose(seen[0], seen[1])
    assert torch.equal(Expectation(model, draw, samples=3, seed=5)(x), seen[0])
    assert not torch.allclose(Expectation(model, draw, samples=3, seed=6)(x), seen[0])


def test_expectation_leaves_the_global_random_state():
    model, x, _ = network_and_batch()
    state = torch.get_rng_state()
    Expectation(model, draw)(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("score", ["log p", "margin"])
def test_the_gradient_over_poses_is_the_mean_of_their_gradients(score):
    """Of a class's log-probability, and of the margin, which the attacks climb."""
    model, x, y = network_and_batch(dtype=f64)
    rows = torch.arange(len(x))

    def value(logits):
        if score == "log p":
            return logits.log_softmax(1)[rows, y]
        return logits[rows, (y + 1) % 4] - logits[rows, y]

    stream = generator(0)
    poses = [draw(stream) for _ in range(4)]
    each = [gradient(lambda x, pose=pose: value(model(pose(x))), x) for pose in poses]
    logits = Expectation(model, draw, samples=4)
    if score == "log p":  # it gives log-probabilities already
        ours = gradient(lambda x: logits(x)[rows, y], x)
    else:
        ours = gradient(lambda x: value(logits(x)), x)
    assert_close(ours, torch.stack(each).mean(0))


def test_an_attack_over_poses_survives_new_poses_better_than_the_plain_one():
    model, x, y = network_and_batch(40)
    target = (y + 1) % 4
    turned = partial(random_pose, turn=1.0, scale=0.3)
    attack = partial(pgd, x=x, target=target, eps=0.25, steps=12, step_size=0.04)
    plain, robust = attack(model), attack(Expectation(model, turned, samples=3))
    stream = generator(99)
    hits = torch.zeros(2)
    for _ in range(20):
        pose = turned(stream)
        seen = predict(model, pose(torch.cat([plain, robust]))).argmax(1).view(2, -1)
        hits += (seen == target).float().mean(1) / 20
    assert hits[1] > hits[0] + 0.1


def test_ensemble_is_the_mean_log_probability_of_its_models():
    x, _ = batch()
    models = [build(), build(scale=3), build("conv").eval()]
    mean = torch.stack([model(x).log_softmax(1) for model in models]).mean(0)
    assert_close(Ensemble(*models)(x), mean)
    assert_close(Ensemble(models[0])(x), F.log_softmax(models[0](x), 1))


def test_counted_counts_images():
    model, x, y = network_and_batch(5)
    counted = Counted(model)
    assert torch.equal(counted(x), model(x))
    assert counted.queries == 5
    counted(x[:2])
    assert counted.queries == 7
    few, many = Counted(model), Counted(model)
    pgd(few, x, y, eps=0.1, steps=3)
    pgd(many, x, y, eps=0.1, steps=4)
    assert many.queries - few.queries == 5  # a step asks once for each image


# --- what every attack accepts

# cases with fewer steps than elsewhere
TAKEN = {
    "fgsm inf": {},
    "pgd 2 to a target": {},
    "targeted l2": {},
    "fmn 2 to a target": {"steps": 4},
    "carlini_wagner": {"steps": 5, "rounds": 2, "first_constant": 1.0},
}
# what changes nothing but the way that the logits take
SAME = {
    "Through": lambda model: Through(model, unchanged),
    "Through, approximate": lambda model: Through(model, unchanged, approximate=True),
    "Expectation": lambda model: Expectation(model, at_rest, samples=2),
    "Ensemble": lambda model: Ensemble(model, model),
    "Counted": Counted,
}


@pytest.mark.parametrize("wrap", SAME)
@pytest.mark.parametrize("case", TAKEN)
def test_an_attack_does_to_a_wrapped_model_what_it_does_to_the_model(case, wrap):
    model, x, y = network_and_batch(4, dtype=f64)
    wrapped = SAME[wrap](model)
    x_adv = run(case, wrapped, x, y, **TAKEN[case])
    same_pixels(x_adv, run(case, model, x, y, **TAKEN[case]))
    assert all(parameter.grad is None for parameter in model.parameters())


CHANGED = {
    "defence": lambda model: Through(model, BITS["jpeg"], approximate=True),
    "pose": lambda model: Through(model, partial(posed, turn=0.3)),
    "all": lambda model: Counted(
        Ensemble(
            Expectation(Through(model, BITS["two levels"], approximate=True), draw),
            build("conv").eval(),
        )
    ),
}


@pytest.mark.parametrize("wrap", CHANGED)
@pytest.mark.parametrize("case", TAKEN)
def test_attacks_take_wrapped_models(case, wrap):
    model, x, _ = network_and_batch(4)
    wrapped = CHANGED[wrap](model)
    y = predict(wrapped, x).argmax(1)
    x_adv = run(case, wrapped, x, y, **TAKEN[case])
    assert x_adv.shape == x.shape and 0 <= x_adv.min() and x_adv.max() <= 1
    assert not x_adv.requires_grad and not torch.equal(x_adv, x)
    if wrap == "pose":
        assert won(case, wrapped, x_adv, y).any()


@pytest.mark.parametrize("wrap", SAME)
def test_flags_of_a_wrapped_model_are_left_as_found(wrap):
    model = build("conv")  # in train mode, with two layers that are not
    wrapped = SAME[wrap](model)
    flags = [module.training for module in wrapped.modules()]
    before = [value.clone() for value in model.state_dict().values()]
    x, y = batch()
    fgsm(wrapped, x, y, eps=0.1)
    assert [module.training for module in wrapped.modules()] == flags
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert isinstance(wrapped, nn.Module)


# --- bad input


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="samples is 0"):
        Expectation(build(), draw, samples=0)
    with pytest.raises(ValueError, match="number of models is 0"):
        Ensemble()
