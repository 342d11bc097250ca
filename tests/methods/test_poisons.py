"""Poisons: what all of them keep, and that each does what its paper says."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.core import data, models, runtime, training
from course_utils.core.data import Images
from course_utils.methods import attacks, poisons, shortcuts
from course_utils.methods.poisons import ClassWise, SampleWise, next_class, perturbed

torch.set_num_threads(1)
EPS = 0.2
BUILD = partial(models.mlp, 32)


def trained(images, epochs, seed=0):
    """A network and the history of its training."""
    with runtime.seeded(seed):
        model = BUILD()
    history = training.fit(model, images, epochs=epochs, batch_size=50, verbose=False)
    model.zero_grad()
    return model, history


@pytest.fixture(scope="module")
def halves():
    return data.load("digits")


@pytest.fixture(scope="module")
def digits(halves):
    """Off the grid k/255, as the embedded digits are."""
    return halves[0][:150]


@pytest.fixture(scope="module")
def model(halves):
    """Trained, but not to the end."""
    return trained(halves[0][:600], 8)[0]


def on_grid(n=40, classes=3, seed=0, channels=2):
    draw = runtime.generator(seed)
    x = torch.randint(256, (n, channels, 5, 5), generator=draw) / 255
    y = torch.randint(classes, (n,), generator=draw)
    return Images(x, y, tuple("abcdefgh")[:classes], "noise")


def to_next(model, images, make, **settings):
    return make(model, images, target=next_class(images.y, 10), **settings)


FIXED = {  # fitted to a model without any drawing
    "adversarial": partial(poisons.adversarial_poison, steps=4),
    "next class": partial(to_next, make=poisons.adversarial_poison, steps=4),
    "universal": partial(to_next, make=poisons.universal_poison, steps=4),
    "tensorclog": partial(poisons.tensorclog, steps=4),
}
unlearnable = partial(poisons.error_minimising, BUILD, batch_size=30, rounds=2)
DRAWN = {
    "uniform": poisons.uniform_noise,
    "class": poisons.class_noise,
    "separable": shortcuts.separable_noise,
    "error-minimising": partial(unlearnable, steps=3, step_size=0.1),
    "error-minimising, class-wise": partial(unlearnable, class_wise=True, step_size=0.15),
}
NEED_MODEL = [*FIXED, "alignment"]
ALL = [*NEED_MODEL, *DRAWN]
every_poison = pytest.mark.parametrize("name", ALL)


def make(name, model, images, seed=0, eps=EPS):
    if name in FIXED:
        return FIXED[name](model, images, eps=eps)
    if name in DRAWN:
        return DRAWN[name](images, eps=eps, seed=seed)
    return poisons.gradient_alignment(model, images, eps=eps, steps=3, batch_size=40, seed=seed)


def state(model):
    assert all(p.grad is None for p in model.parameters())
    tensors = [tensor.tolist() for tensor in model.state_dict().values()]
    return tensors, [module.training for module in model.modules()]


# --- rules of every poison


@every_poison
def test_rules_of_every_poison(name, digits, model):
    before, random, inside = digits.x.clone(), torch.get_rng_state(), state(model)
    poison = make(name, model, digits)
    poisoned = poison(digits)
    assert torch.equal(digits.x, before) and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(poisoned.y, digits.y)
    assert (poisoned.classes, poisoned.source) == (digits.classes, digits.source)
    assert state(model) == inside

    assert poison.noise.abs().max() <= EPS + 1e-6
    delta = poisoned.x - digits.x
    assert delta.abs().max() <= EPS + 1e-6 and delta.abs().max() > EPS - 1.5 / 255
    order = torch.randperm(len(digits), generator=runtime.generator(3))
    assert torch.equal(poison(digits[order]).x, poisoned.x[order])
    assert torch.equal(poison(digits[7:40:3]).x, poisoned.x[7:40:3])

    for levels in ((poisoned.x * 255).round(), poisoned.x * 255):  # files that round or cut
        assert torch.equal(levels.byte() / 255, poisoned.x)
    room = (digits.x > EPS) & (digits.x < 1 - EPS)
    assert (delta[room] > 0.04).sum() > 100 and (delta[room] < -0.04).sum() > 100


@every_poison
def test_a_seed_reproduces_a_poison_and_another_does_not(name, digits, model):
    first, again, other = (make(name, model, digits, seed)(digits).x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in FIXED)


@pytest.mark.parametrize("name", NEED_MODEL)
def test_poisons_judge_in_eval_mode_and_also_without_gradients(name, digits):
    images = digits[:30]
    with runtime.seeded(0):
        first = nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20)
        model = nn.Sequential(*first, nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10))
        model(digits.x)  # running statistics of some sense
    wanted = make(name, model.eval(), images)(images).x
    model.train()[4].eval()
    model[1].weight.requires_grad_(False)
    inside, random = state(model), torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(make(name, model, images)(images).x, wanted)
    assert state(model) == inside and torch.equal(torch.get_rng_state(), random)
    assert [p.requires_grad for p in model.parameters()] == [False] + 5 * [True]


@pytest.mark.parametrize("name", ["adversarial", "next class", "tensorclog"])
def test_what_happens_to_an_image_does_not_depend_on_the_others(name, digits, model):
    few = digits[20:30]
    alone, together = (make(name, model, images)(few).x for images in (few, digits))
    assert (alone - together).abs().max() < 0.01


@pytest.mark.parametrize("eps", [-0.1, 1.1, float("nan")])
def test_eps_is_checked_everywhere(eps, digits, model):
    none = torch.zeros_like(digits.x)
    applied = (
        lambda: perturbed(digits, none, eps),
        lambda: ClassWise(none[:10], eps),
        lambda: SampleWise(digits, none, eps),
    )
    for call in (*applied, *(partial(make, name, model, digits, eps=eps) for name in ALL)):
        with pytest.raises(ValueError, match=f"eps is {eps}; give a bound between 0 and 1"):
            call()


# --- perturbed


@pytest.mark.parametrize("eps", [0, 1e-3, 1 / 255, 0.0313, 8 / 255, 0.1, 0.3, 1])
@pytest.mark.parametrize("grid", [True, False])
def test_within_eps_in_the_box_and_on_the_grid(eps, grid, digits):
    images = on_grid() if grid else digits
    noise = 3 * eps * torch.randn(images.x.shape, generator=runtime.generator(0))
    result = perturbed(images, noise, eps).x
    assert (result.double() - images.x.double()).abs().max() <= eps + 1e-6
    assert result.min() >= 0 and result.max() <= 1
    assert result.dtype == torch.float32
    kept, levels = result == images.x, (result * 255).round()
    assert ((result * 255 - levels).abs()[~kept] < 1e-4).all()
    if eps >= 1 / 255 + 1e-6:
        assert (result == levels / 255).all()
    if eps == 0 or (grid and eps < 1 / 255):
        assert kept.all()


def row(levels) -> Images:
    """An image of one row with these grey levels."""
    x = (torch.as_tensor(levels) / 255).view(1, 1, 1, -1)
    return Images(x, torch.tensor([0]), ("a",), "row")


def test_the_nearest_grey_level_by_hand():
    images = row([100, 100, 100, 100, 0, 255, 100.4, 100.4, 100.5, 100])
    noise = torch.tensor([[[[2.4, 2.6, -2.6, -9, -2, 2, 0, 0.2, 9, 3.4]]]]) / 255
    levels, tight = (perturbed(images, noise, eps / 255).x.flatten() * 255 for eps in (4, 0.45))
    assert levels.round().tolist() == [102, 103, 97, 96, 0, 255, 100, 101, 104, 103]
    # no grey level within 0.45, so it stays as it is; and a single one
    assert tight[8] == pytest.approx(100.5, abs=1e-4) and tight[6] == pytest.approx(100, abs=1e-4)
    assert tight[0] == 100


@pytest.mark.parametrize("sign", [1, -1])
def test_bounds_that_are_grey_levels_are_reached(sign):
    """k/255 away on the grid is allowed, however float32 rounds the sum."""
    for k in range(1, 100):
        levels = torch.arange(k, 256 - k)
        images = row(levels)
        reached = perturbed(images, torch.full_like(images.x, sign), k / 255).x
        assert torch.equal((reached * 255).round().flatten().long(), levels + k * sign)


def test_many_images_are_worked_through_in_chunks():
    images = on_grid(1200, channels=1)
    noise = torch.rand(images.x.shape, generator=runtime.generator(1)) - 0.5
    whole = perturbed(images, noise, 0.4).x
    for rows in torch.arange(1200).split(100):
        assert torch.equal(perturbed(images[rows], noise[rows], 0.4).x, whole[rows])


def test_perturbed_refuses_other_shapes_and_nan():
    images = on_grid(4)
    message = r"noise has shape \(3, 2, 5, 5\); give one noise per image, \(4, 2, 5, 5\)"
    with pytest.raises(ValueError, match=message):
        perturbed(images, torch.zeros(3, 2, 5, 5), 0.1)
    with pytest.raises(ValueError, match="noise holds NaN.*smaller step"):
        perturbed(images, torch.full_like(images.x, torch.nan), 0.1)


# --- class-wise, sample-wise


def test_class_wise_adds_the_noise_of_the_class():
    images = on_grid()
    noise = (torch.randint(-20, 21, (3, 2, 5, 5), generator=runtime.generator(1))) / 255
    added = torch.stack([noise[y] for y in images.y.tolist()])
    by_hand = ((images.x + added).clamp(0, 1) * 255).round() / 255
    assert torch.equal(ClassWise(noise, 0.1)(images).x, by_hand)
    with pytest.raises(ValueError, match="images have 4 classes, but there is noise for 3"):
        ClassWise(noise, 0.1)(on_grid(classes=4))


def test_noise_travels_with_its_sample():
    images = on_grid(30)
    noise = torch.randint(-20, 21, images.x.shape, generator=runtime.generator(1)) / 255
    poison = SampleWise(images, noise, 0.1)
    whole = perturbed(images, noise, 0.1).x
    for index in (slice(None), [3, 3, 1], torch.arange(29, -1, -1), 5, images.y == 1, slice(0, 0)):
        assert torch.equal(poison(images[index]).x, whole[index].reshape(-1, 2, 5, 5))


def test_images_are_known_by_pixels_and_label():
    images = on_grid(3, seed=5)
    x = torch.cat([images.x, images.x[:1], images.x[:1]])
    y = torch.tensor([0, 1, 2, 0, 1])
    twins = Images(x, y, images.classes, "twins")
    noise = torch.arange(5).view(5, 1, 1, 1).expand_as(x) * 4 / 255
    poison = SampleWise(twins, noise, 0.2)
    expected = perturbed(twins, noise[[0, 1, 2, 0, 4]], 0.2).x
    assert torch.equal(poison(twins).x, expected)
    assert torch.equal(poison(twins[[4, 3]]).x, expected[[4, 3]])


def test_an_image_that_it_was_not_fitted_to_is_refused():
    images = on_grid(6)
    poison = SampleWise(images[:4], torch.zeros(4, 2, 5, 5), 0.1)
    message = "images has 2 of 6 that this poison was not fitted to .the first is number 4.; fit it to all"
    with pytest.raises(ValueError, match=message):
        poison(images)
    relabelled = Images(images.x[:1], (images.y[:1] + 1) % 3, images.classes, "other label")
    with pytest.raises(ValueError, match="1 of 1"):
        poison(relabelled)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2, 5, 5\)"):
        SampleWise(images, torch.zeros(1, 2, 5, 5), 0.1)


# --- drawn noise


def test_uniform_noise_is_uniform_and_independent(digits):
    noise = poisons.uniform_noise(digits, eps=0.3).noise
    assert noise.min() < -0.299 and noise.max() > 0.299 and noise.abs().max() <= 0.3
    assert noise.mean().abs() < 0.003 and noise.var().item() == pytest.approx(0.09 / 3, rel=0.02)
    assert torch.corrcoef(noise[:20].flatten(1)).fill_diagonal_(0).abs().max() < 0.2


def test_class_noise_has_a_pattern_of_signs_per_class(digits):
    noise = poisons.class_noise(digits, eps=0.3).noise
    assert noise.shape == (10, 1, 28, 28)
    assert torch.equal(noise.abs(), torch.full_like(noise, 0.3))
    assert (noise > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.2


def test_poisons_hurt_their_victims_more_than_uniform_noise(halves):
    images, test = halves[0][:800], halves[1]
    model, _ = trained(images, 12, seed=5)
    control, *hurt = (
        training.accuracy(trained(poison(images), 12, seed=1)[0], test)
        for poison in (
            poisons.uniform_noise(images, eps=0.3),
            poisons.class_noise(images, eps=0.3),
            to_next(model, images, poisons.adversarial_poison, eps=0.3),
        )
    )
    assert control > 0.6 and max(hurt) < control - 0.1


# --- adversarial poison


def loss(model, images: Images, y=None) -> float:
    return F.cross_entropy(training.predict(model, images.x), images.y if y is None else y).item()


def test_adversarial_poison_raises_the_loss_or_reaches_the_target(digits, model):
    up = poisons.adversarial_poison(model, digits, eps=EPS)(digits)
    assert loss(model, up) > loss(model, digits) + 1 and training.accuracy(model, up) < 0.05
    target = next_class(digits.y, 10)
    towards = poisons.adversarial_poison(model, digits, eps=EPS, target=target)(digits)
    assert (training.predict(model, towards.x).argmax(1) == target).float().mean() > 0.7
    assert loss(model, towards, target) < loss(model, digits, target) - 1
    assert torch.equal(towards.y, digits.y)
    # hypocritical
    kind = poisons.adversarial_poison(model, digits, eps=EPS, target=digits.y)(digits)
    assert loss(model, kind) < loss(model, digits) / 2 and training.accuracy(model, kind) > 0.99


def test_settings_of_the_adversarial_poison_reach_pgd(digits, model):
    settings = dict(steps=3, step_size=0.02, random_start=True)
    x_adv = attacks.pgd(model, digits.x, digits.y, eps=EPS, **settings)
    fitted = poisons.adversarial_poison(model, digits, eps=EPS, **settings)
    assert torch.equal(fitted.noise, x_adv - digits.x)


def test_universal_poison_moves_a_whole_class_with_one_noise(digits, model):
    target = next_class(digits.y, 10)
    towards = poisons.universal_poison(model, digits, eps=EPS, target=target)
    assert isinstance(towards, ClassWise) and towards.noise.abs().max() <= EPS + 1e-6
    drawn = poisons.class_noise(digits, eps=EPS)
    after = loss(model, towards(digits), target)
    assert after < min(loss(model, digits, target), loss(model, drawn(digits), target)) / 2
    kind = poisons.universal_poison(model, digits, eps=EPS, target=digits.y)  # P4
    assert loss(model, kind(digits)) < loss(model, digits) / 2
    away = poisons.universal_poison(model, digits, eps=EPS)
    assert loss(model, away(digits)) > loss(model, digits) + 1


def test_a_universal_step_is_the_sign_of_the_class_s_mean_gradient(digits, model):
    rows = digits.y == 3
    x = digits.x[rows].requires_grad_()
    slope = torch.autograd.grad(F.cross_entropy(model.eval()(x), digits.y[rows]), x)[0].sum(0)
    step = poisons.universal_poison(model, digits, eps=EPS, steps=1, step_size=0.05).noise[3]
    assert torch.equal(step[slope != 0], 0.05 * slope[slope != 0].sign())


def test_next_class():
    assert next_class(torch.arange(3), 3).tolist() == [1, 2, 0]


# --- error-minimising


@pytest.mark.parametrize("class_wise", [False, True])
def test_error_minimising_leaves_little_to_learn(class_wise, digits):
    seen = []
    settings = dict(eps=0.3, class_wise=class_wise, batch_size=50, rounds=10, stop=0.03)
    poison = poisons.error_minimising(
        BUILD, digits, **settings, on_round=lambda *now: seen.append(now)
    )
    assert isinstance(poison, ClassWise if class_wise else SampleWise)
    rounds, errors = zip(*seen, strict=True)
    assert rounds == tuple(range(1, len(rounds) + 1))
    assert len(rounds) < 10  # it stopped by the error
    assert errors[-1] <= 0.03 and min(errors[:-1], default=1) > 0.03
    little, usual = (  # another network finds less loss in it, too
        trained(applied(digits), 10, seed=9)[1].loss[-1]
        for applied in (poison, poisons.uniform_noise(digits, eps=0.3))
    )
    assert little < 0.6 * usual


def one_pass(images, batch_size, seed=0):
    """A fresh network after one pass over the images, by hand."""
    with runtime.seeded(seed):
        model = BUILD()
    learner = training.rmsprop(model.parameters())
    for rows in torch.randperm(len(images), generator=runtime.generator(seed)).split(batch_size):
        learner.zero_grad()
        F.cross_entropy(model(images.x[rows]), images.y[rows]).backward()
        learner.step()
    return model


def test_error_minimising_alternates_as_published(digits):
    """One round by hand: training on clean batches, then sign steps of eps/10 down every image's loss."""
    images, seen = digits[:50], []
    settings = dict(eps=EPS, batches=3, batch_size=20, steps=2, rounds=1, seed=7)
    poison = poisons.error_minimising(
        BUILD, images, **settings, on_round=lambda *now: seen.append(now)
    )
    model = one_pass(images, 20, seed=7)
    now = images.x
    for _ in range(2):
        now = (now - EPS / 10 * attacks.loss_gradient(model, now, images.y).sign()).clamp(0, 1)
    assert (poison.noise - (now - images.x)).abs().max() < 1e-6
    accuracy = training.accuracy(model, Images(now, images.y, images.classes, ""))
    assert seen == [(1, pytest.approx(1 - accuracy))]


def test_error_minimising_trains_on_what_it_has_made(digits):
    """The network trains on x + δ, in train mode."""
    images, modes = digits[:40], []

    class Watch(nn.Module):
        def forward(self, x):
            modes.append((self.training, x.detach().clone()))
            return x

    def build():
        return nn.Sequential(Watch(), *BUILD()).eval()

    poison = poisons.error_minimising(
        build, images, eps=EPS, batches=1, batch_size=40, steps=2, rounds=2, stop=0
    )
    # the second round goes on where the first ended
    assert poison.noise.abs().max() > 3.5 * EPS / 10
    trained = [x for training, x in modes if training]
    assert len(trained) == 2
    sorted_clean = images.x.flatten(1).sum(1).sort().values
    assert torch.allclose(trained[0].flatten(1).sum(1).sort().values, sorted_clean)
    assert not torch.allclose(trained[1].flatten(1).sum(1).sort().values, sorted_clean)
    assert all(x.min() >= 0 and x.max() <= 1 for _, x in modes)
    assert sum(not training for training, _ in modes) == 2 * 3  # two steps and one look per round


def test_class_wise_noise_follows_the_majority(digits):
    images = digits[:60]
    poison = poisons.error_minimising(
        BUILD, images, eps=EPS, class_wise=True, batches=2, batch_size=30, rounds=1
    )
    model = one_pass(images, 30)
    uphill = attacks.loss_gradient(model, images.x, images.y).sign()
    step = (images.x - EPS / 10 * uphill).clamp(0, 1) - images.x
    for k in range(10):
        expected = EPS / 10 * step[images.y == k].sign().sum(0).sign()
        equal = (poison.noise[k] - expected).abs() < 1e-6
        assert equal.float().mean() > 0.99  # a sign of a tiny gradient may turn


COUNT = "give a whole number, 1 or more"
SHARE = "give the share"


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("batches", 0, COUNT),
        ("steps", 0, COUNT),
        ("rounds", 0, COUNT),
        ("rounds", 1.5, COUNT),
        ("batch_size", 0, COUNT),
        ("step_size", -0.1, "give"),
        ("stop", 1.5, SHARE),
        ("stop", float("nan"), SHARE),
    ],
)
def test_error_minimising_refuses(name, value, cure, digits):
    with pytest.raises(ValueError, match=f"{name} is {value}; {cure}"):
        poisons.error_minimising(BUILD, digits, eps=0.1, **{name: value})


# --- tensorclog


def norms_by_autograd(model, x, y, layer: str) -> torch.Tensor:
    parameters = [p for name, p in model.named_parameters() if name.startswith(layer)]
    norms = []
    for image, label in zip(x, y, strict=True):
        value = F.cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(value, parameters)
        norms.append(sum(g.square().sum() for g in gradients).sqrt())
    return torch.stack(norms)


def small_cnn(bias=True, scale=1):
    """A network for ``on_grid``; with a large ``scale`` it is sure of what it sees."""
    with runtime.seeded(2):
        first = nn.Conv2d(2, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 6)
        model = nn.Sequential(*first, nn.Tanh(), nn.Linear(6, 3, bias=bias))
    model[6].weight.data *= scale
    return model.double()


@pytest.mark.parametrize("bias", [True, False])
def test_closed_form_and_vmap_equal_autograd_image_by_image(bias):
    model, images = small_cnn(bias), on_grid(8)
    x, y = images.x.double(), images.y
    for layers, start in ((None, "6."), (["6"], "6."), (["0", "4", "6"], "")):
        norms = poisons.log_gradient_norm(model, x, y, layers).exp()
        assert torch.allclose(norms, norms_by_autograd(model, x, y, start), rtol=1e-10)


@pytest.mark.parametrize("layers", [None, ["0", "6"]])
def test_gradient_norm_is_differentiable_in_the_image(layers):
    model, images = small_cnn(), on_grid(3)
    x = images.x.double().requires_grad_()
    norm = partial(poisons.log_gradient_norm, model, y=images.y, layers=layers)
    assert torch.autograd.gradcheck(norm, x)


@pytest.mark.parametrize("layers", [None, ["4", "6"]])
def test_gradient_norm_stands_where_float32_has_no_gradient(layers):
    model, x = small_cnn(scale=3000).float(), on_grid(6).x
    y = model(x).argmax(1)
    assert (norms_by_autograd(model, x, y, "6.") == 0).any()
    x.requires_grad_()
    value = poisons.log_gradient_norm(model, x, y, layers)
    gradient = torch.autograd.grad(value.sum(), x)[0]
    assert value.isfinite().all() and value.min() < -100
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("settings", [{}, {"layers": ["dense1", "output"]}, {"lam": 0.001}])
def test_tensorclog_clogs(settings, digits, model):
    images = digits[:40]
    poisoned = poisons.tensorclog(model, images, eps=EPS, **settings)(images)
    layers = settings.get("layers")
    before, after = (
        poisons.log_gradient_norm(model, x, images.y, layers) for x in (images.x, poisoned.x)
    )
    assert (after < before).float().mean() > 0.95 and (before - after).mean() > 1


def test_lam_keeps_the_noise_small(digits, model):
    sizes = [
        poisons.tensorclog(model, digits[:20], eps=EPS, steps=20, lam=lam).noise.square().mean()
        for lam in (0, 0.05, 100)
    ]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < sizes[0] / 20


def test_tensorclog_says_what_it_needs(digits, model):
    with pytest.raises(ValueError, match="does not end in a linear layer; name the layers"):
        poisons.tensorclog(nn.Sequential(*model, nn.ReLU()), digits, eps=0.1)
    for layers in (["dense7"], [], ["relu1"]):
        with pytest.raises(ValueError, match="name some of dense1, output"):
            poisons.tensorclog(model, digits, eps=0.1, layers=layers)
    with pytest.raises(ValueError, match="lam is -1"):
        poisons.tensorclog(model, digits, eps=0.1, lam=-1.0)


# --- gradient alignment


def flat_gradient(model, value) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def cosine(a, b) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def test_gradients_point_where_plain_autograd_does():
    model, images = small_cnn(), on_grid(8)
    x, y = images.x.double(), images.y
    plain = flat_gradient(model, F.cross_entropy(model(x), y))
    p = model(x).softmax(1).gather(1, y[:, None])
    reverse = flat_gradient(model, -(1 - p).log().mean())
    ours = poisons.parameter_gradient(model, x, y)
    wanted = poisons.parameter_gradient(model, x, y, reverse=True)
    close = partial(pytest.approx, abs=1e-12)
    assert cosine(plain, ours) == close(1) and cosine(reverse, wanted) == close(1)
    alignment = partial(poisons.alignment_loss, model, x, y)
    for aim, expected in ((wanted, reverse), (7 * wanted, reverse), (ours, plain)):
        assert alignment(aim).item() == close(1 - cosine(plain, expected))
    assert not wanted.requires_grad


@pytest.mark.parametrize("sure", [1, 2000])  # 2000: every image far on the right side
def test_alignment_agrees_with_finite_differences(sure):
    model, images = small_cnn(scale=sure), on_grid(4)
    x = images.x.double().requires_grad_()
    y = model(x).argmax(1) if sure > 1 else images.y
    wanted = poisons.parameter_gradient(model, x.detach(), y, reverse=True)
    assert not wanted.requires_grad
    if sure > 1:
        assert attacks.margin(model(x), y).max() < -20
    value = partial(poisons.alignment_loss, model, y=y, wanted=wanted)
    assert torch.autograd.gradcheck(value, x, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_alignment_stands_where_float32_has_no_gradient():
    model, x = small_cnn(scale=3000).float(), on_grid(6).x
    y = model(x).argmax(1)
    assert not flat_gradient(model, F.softplus(attacks.margin(model(x), y)).sum()).any()
    wanted = poisons.parameter_gradient(model, x, y, reverse=True)
    x.requires_grad_()
    value = poisons.alignment_loss(model, x, y, wanted)
    gradient = torch.autograd.grad(value, x)[0]
    assert 0 <= value <= 2 and gradient.isfinite().all() and gradient.abs().max() > 0


def test_alignment_falls_and_turns_the_gradient(digits, model):
    """The poison's gradient turns, so that a training step along it raises the clean loss."""
    images = digits[:60]
    poisoned = poisons.gradient_alignment(model, images, eps=0.3, batch_size=60)(images)
    wanted = poisons.parameter_gradient(model, images.x, images.y, reverse=True)
    before, after = (
        poisons.alignment_loss(model, x, images.y, wanted).item() for x in (images.x, poisoned.x)
    )
    assert before > 1 and after < before - 0.4
    step = poisons.parameter_gradient(model, poisoned.x, images.y)
    uphill = poisons.parameter_gradient(model, images.x, images.y)
    assert step @ wanted > 0 and cosine(step, uphill) < cosine(uphill, uphill) - 0.4


def test_every_image_of_every_batch_gets_its_noise(digits, model):
    noise = poisons.gradient_alignment(model, digits[:50], eps=EPS, steps=1, batch_size=20).noise
    assert (noise.abs().flatten(1).amax(1) > 0.1).all()
    with pytest.raises(ValueError, match="batch_size is 0"):
        poisons.gradient_alignment(model, digits, eps=EPS, batch_size=0)


@pytest.mark.parametrize(
    "fit",
    [
        poisons.tensorclog,
        poisons.gradient_alignment,
        poisons.adversarial_poison,
        poisons.universal_poison,
    ],
)
def test_fitting_refuses_and_steps_as_attacks_do(fit, digits, model):
    small = models.mlp(5, classes=5)
    for net, setting, message in (
        (model, dict(steps=-1), "steps is -1"),
        (model, dict(step_size=-0.1), "step_size is -0.1"),
        (small, {}, "the model knows classes 0 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(net, digits, eps=0.1, **setting)
    assert not fit(model, digits, eps=0.1, steps=0).noise.any()
    usual, named = (
        fit(model, digits[:10], eps=EPS, steps=10, **size).noise
        for size in ({}, dict(step_size=2.5 * EPS / 10))
    )
    assert torch.equal(usual, named)


# --- mixed and flipped


def test_mixed_poisons_its_share_and_keeps_the_order():
    images = on_grid(40)
    poison = SampleWise(images, 0.2 - 0.4 * (images.x > 0.5).float(), 0.2)
    whole, before, count = poison(images).x, images.x.clone(), {}
    for share in (0, 0.24, 0.5, 1):
        some = poisons.mixed(images, poison, share).x
        hit = (some != images.x).flatten(1).any(1)
        assert hit.sum() == round(40 * share)
        assert torch.equal(some[hit], whole[hit]) and torch.equal(some[~hit], images.x[~hit])
        count[share] = hit
    assert (count[0.5] >= count[0.24]).all() and not count[0.5][:20].all()
    assert torch.equal(images.x, before)
    one, again, other = (poisons.mixed(images, poison, 0.5, seed).x for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"share is {share}; give the share of the images"):
            poisons.mixed(images, poison, share)
        with pytest.raises(ValueError, match=f"share is {share}"):
            poisons.flipped(images, share)


def test_flipped_gives_its_share_labels_at_random():
    images = on_grid(800, classes=4)
    before = images.y.clone()
    for share in (0, 0.25, 1):
        wrong = poisons.flipped(images, share)
        changed = (wrong.y != images.y).sum().item()
        assert abs(changed - 0.75 * share * 800) <= 4 * (0.1875 * share * 800) ** 0.5
        assert torch.equal(wrong.x, images.x)
    assert torch.equal(images.y, before)
    # each class as likely, the right one too
    assert torch.bincount((wrong.y - images.y) % 4, minlength=4).min() > 150
    half, again, other = (poisons.flipped(images, 0.5, seed).y for seed in (0, 0, 1))
    assert torch.equal(half, again) and not torch.equal(half, other)
    assert (half != images.y)[:400].float().mean() < 0.5
