"""Learning to Confuse: the second-order step, the trials, the poison and what is kept."""

import copy
import threading
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from course_utils.core import models, runtime, stored, training
from course_utils.core.data import Images, load_folder
from course_utils.core.generators import UNet, digit_generator, noise_autoencoder
from course_utils.methods import confuse
from course_utils.methods.confuse import Generated, bounded, confusion_gradient, pseudo_update
from course_utils.methods.poisons import next_class

torch.set_num_threads(1)
DIGITS = tuple("0123456789")
LOCK = threading.Lock()  # has no content that a key could describe


def images(n=24, size=8, seed=0, channels=1, classes=3):
    """Noise with a bright column that names the class."""
    draws = runtime.generator(seed)
    x = torch.rand(n, channels, size, size, generator=draws)
    y = torch.randint(classes, (n,), generator=draws)
    x[torch.arange(n), :, :, y] = 1
    return Images(x, y, DIGITS[:classes], "noise")


class Exact(Images):
    """In float64, which ``Images`` refuse."""

    def __post_init__(self):
        pass


def exact(n=24):
    one = images(n)
    return Exact(one.x.double(), one.y, one.classes, one.source)


def network(batch_norm=True):
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    if batch_norm:
        layers.insert(1, nn.BatchNorm2d(4))
        layers.append(nn.BatchNorm1d(3))
    return nn.Sequential(*layers)


def small(widths=4):
    return noise_autoencoder(widths, size=8)


def seeded(build, *given, seed=0, **more):
    with runtime.seeded(seed):
        return build(*given, **more)


def leaves(model):
    return {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}


def state(model):
    """All weights and buffers as one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def weights(model):
    """All weights as one vector; none has a gradient."""
    assert all(p.grad is None for p in model.parameters())
    return parameters_to_vector(model.parameters()).detach()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))


both = pytest.mark.parametrize("batch_norm", [True, False])


def test_bounded_noise_can_always_move():
    raw = torch.tensor([-50.0, -2.0, -0.1, 0.0, 0.1, 2.0, 50.0]).double().requires_grad_()
    noise = bounded(raw, 0.3)
    assert (noise.abs() <= 0.3).all() and noise[3] == 0
    assert noise[-1].item() == pytest.approx(0.3) and noise[0].item() == pytest.approx(-0.3)
    assert (noise.diff() > 0).all()
    (slope,) = torch.autograd.grad(noise[1:-1].sum(), raw)
    assert (slope[1:-1] > 0).all() and slope[3].item() == pytest.approx(0.3)
    assert torch.autograd.gradcheck(lambda r: bounded(r, 0.3), raw[1:-1].detach().requires_grad_())


# --- the second-order step


@both
def test_the_pseudo_update_is_a_step_of_sgd_and_leaves_the_model_alone(batch_norm):
    model, data = seeded(network, batch_norm).double(), exact()
    twin, theta, before = copy.deepcopy(model), leaves(model), weights(model)
    moved = pseudo_update(model, theta, data.x, data.y, 0.3)
    F.cross_entropy(twin(data.x), data.y).backward()
    torch.optim.SGD(twin.parameters(), lr=0.3).step()
    assert moved.keys() == theta.keys()
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(moved[name], weight, rtol=0, atol=1e-12)
    assert torch.equal(weights(model), before)
    assert all(weight.grad is None for weight in theta.values())


def test_the_pseudo_update_is_differentiable_in_images_and_weights():
    model, data = seeded(network).double(), exact(4)
    theta, x = leaves(model), data.x.clone().requires_grad_()

    def moved(x, *values):
        given = dict(zip(theta, values, strict=True))
        return tuple(pseudo_update(model, given, x, data.y, 0.1).values())

    assert torch.autograd.gradcheck(moved, (x, *theta.values()), fast_mode=True)


def outcome_of(model, theta, x, y, poisoned, goal, lr):
    """L(f_θ′(x), goal) with the whole graph."""
    moved = pseudo_update(model, theta, poisoned, y, lr)
    return F.cross_entropy(functional_call(model, moved, (x,)), goal)


def straight(model, theta, x, y, poisoned, *rest):
    """The confusion gradient without any thought: autograd through everything."""
    poisoned = poisoned.detach().clone().requires_grad_()
    outcome = outcome_of(model, theta, x, y, poisoned, *rest)
    return torch.autograd.grad(outcome, poisoned)[0], outcome.detach()


@both
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_confusion_gradient_is_that_of_autograd(batch_norm, targeted, mode):
    model, data = seeded(network, batch_norm).double(), exact()
    getattr(model, mode)()
    goal = next_class(data.y, 3) if targeted else data.y
    poisoned = (data.x + seeded(torch.randn, data.x.shape).double() / 10).clamp(0, 1)
    before, kept = weights(model), poisoned.clone()
    given = data.x, data.y, poisoned, goal, 0.3
    gradient, outcome = confusion_gradient(model, leaves(model), *given)
    expected, loss = straight(model, leaves(model), *given)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(outcome, loss, rtol=1e-10, atol=0)
    assert not gradient.requires_grad and not outcome.requires_grad
    assert torch.equal(weights(model), before)
    assert torch.equal(poisoned, kept) and not poisoned.requires_grad


def test_the_confusion_gradient_of_the_papers_network():
    """Every layer of it: the first derivative of each has its own second one."""
    model = seeded(models.confused_cnn, 4, 8, size=16).double()
    x, y = seeded(torch.rand, 12, 1, 16, 16).double(), torch.arange(12) % 10
    poisoned = (x + seeded(torch.randn, x.shape, seed=1).double() / 10).clamp(0, 1)
    given = model, leaves(model), x, y, poisoned, y, 0.1
    expected = straight(*given)[0]
    assert (confusion_gradient(*given)[0] - expected).abs().max() <= 1e-10 * expected.abs().max()


# --- the trials


def follows(y):
    return next_class(y, 3)


def generator_and_adam():
    generator = seeded(small).double()
    return generator, torch.optim.Adam(generator.parameters(), lr=0.01)


def play(target=None, batch_norm=True, trials=3, steps=4, store=False):
    """The generator after every trial and the outcomes, by ``run_trial``, in float64."""
    generator, adam = generator_and_adam()
    settings = dict(eps=0.3, steps=steps, target=target, batch_size=8, lr=0.3, store=store)
    states, outcomes = [], []
    for trial in range(trials):
        with runtime.seeded(trial):
            model = network(batch_norm).double()
            outcomes.append(confuse.run_trial(generator, adam, model, exact(), **settings))
        states.append(state(generator))
    return torch.stack(states), outcomes


def by_hand(target, batch_norm):
    """Algorithm 2 line by line: ``backward`` through everything, PyTorch's optimisers."""
    data = exact()
    generator, adam = generator_and_adam()
    states, outcomes = [], []
    for trial in range(3):
        with runtime.seeded(trial):
            classifier = network(batch_norm).double()
            order = torch.cat([torch.randperm(24) for _ in range(2)])
        frozen = copy.deepcopy(generator).eval()  # the classifier learns from this one
        sgd, losses = torch.optim.SGD(classifier.parameters(), lr=0.3), []
        for rows in order[:32].split(8):
            x, y = data.x[rows], data.y[rows]
            poisoned = (x + 0.3 * torch.tanh(generator.train()(x))).clamp(0, 1)
            theta, goal = dict(classifier.named_parameters()), target(y) if target else y
            loss = outcome_of(classifier, theta, x, y, poisoned, goal, 0.3)
            adam.zero_grad()
            (loss if target else -loss).backward()
            adam.step()
            losses.append(loss.item())
            with torch.no_grad():
                poisoned = (x + 0.3 * torch.tanh(frozen(x))).clamp(0, 1)
            sgd.zero_grad()
            F.cross_entropy(classifier(poisoned), y).backward()
            sgd.step()
        states.append(state(generator))
        outcomes.append(sum(losses) / 4)
    return torch.stack(states), outcomes


@both
@pytest.mark.parametrize("target", [None, follows])
def test_both_algorithms_and_one_by_hand_make_the_same_generator(batch_norm, target):
    states, outcomes = by_hand(target, batch_norm)
    assert (states[0] - states[1]).abs().max() > 1e-3  # the trials do something
    for store in (False, True):
        ours = play(target, batch_norm, store=store)
        torch.testing.assert_close(ours[0], states, atol=1e-8, rtol=0)
        assert ours[1] == pytest.approx(outcomes, rel=1e-9)


def test_steps_go_through_all_images_before_any_comes_twice(monkeypatch):
    seen = []

    def watched(model, weights, x, *rest):
        seen.append(x[:, 0, 0, 0].tolist())
        return confusion_gradient(model, weights, x, *rest)

    monkeypatch.setattr(confuse, "confusion_gradient", watched)
    play(trials=1, steps=7)
    assert [len(batch) for batch in seen] == [8] * 7
    everything = sorted(exact().x[:, 0, 0, 0].tolist())
    assert sorted(sum(seen[:3], [])) == everything == sorted(sum(seen[3:6], []))
    assert seen[0] != seen[3]


# --- the poison


def some_poison(eps=0.3):
    generator = seeded(small)
    for _ in range(3):
        generator(images().x)  # running statistics of its own
    with torch.no_grad():
        generator.up1.weight.mul_(20)  # far enough to reach the bound
    return Generated(generator.eval(), eps)


@pytest.mark.parametrize("eps", [0.3, 8 / 255, 0.1])
def test_poisoned_images_are_a_file_of_bytes_within_eps(eps):
    clean, poison = images(40), some_poison(eps)
    kept, x = clean.x.clone(), poison(clean).x
    change = x - clean.x
    assert change.abs().max() <= eps + 1e-6 and x.min() >= 0 and x.max() <= 1
    assert (change > eps / 2).any() and (change < -eps / 2).any()
    assert torch.equal((255 * x).round() / 255, x)
    assert torch.equal(clean.x, kept)
    assert torch.equal(poison(clean).y, clean.y) and poison(clean).classes == clean.classes
    noise = poison.noise(clean.x)
    assert not noise.requires_grad and noise.abs().max() <= eps
    torch.testing.assert_close(noise, eps * torch.tanh(poison.generator.eval()(clean.x)))


def test_noise_depends_on_the_image_alone():
    clean, poison = images(20), some_poison()
    order = torch.randperm(20, generator=runtime.generator(1))
    poison.generator.train()  # as a caller may have left it
    torch.testing.assert_close(poison(clean[order]).x, poison(clean).x[order])
    torch.testing.assert_close(poison.noise(clean.x[3:4]), poison.noise(clean.x)[3:4])
    assert poison.generator.training


# --- learning

HELD_OUT = images(20, seed=1)
QUICK = dict(images=images(), validation=HELD_OUT, build=network, generator=small, eps=0.3)
QUICK |= dict(trials=3, steps=3, batch_size=8, lr_f=0.1, lr_g=0.01)


def learn(**change):
    return confuse.learn(**QUICK | change)


def same(one, other):
    states = (state(poison.generator) for poison, _ in (one, other))
    return torch.equal(*states) and one[1] == other[1]


@pytest.fixture
def no_training(monkeypatch):
    """Called once, makes every further trial an AssertionError."""

    def refuse(*_, **__):
        raise AssertionError("it was learned already")

    return lambda: monkeypatch.setattr(confuse, "run_trial", refuse)


@pytest.mark.parametrize(
    "lows", [[0.5, 0.2, 0.4], [0.1, 0.2, 0.4], [0.3, 0.2, 0.2], [0.2, 0.3, 0.1]]
)
def test_the_best_trial_by_clean_validation_is_returned(monkeypatch, lows):
    scores, watched, states = iter(lows), [], []

    def accuracy(model, data):
        return next(scores) if data is HELD_OUT else 0.99

    def on_trial(trial, poison, log):
        watched.append((trial, len(log.train)))
        states.append(state(poison.generator))

    monkeypatch.setattr(training, "accuracy", accuracy)
    poison, log = learn(on_trial=on_trial)
    assert watched == [(1, 1), (2, 2), (3, 3)]
    assert log.validation == lows and log.train == [0.99] * 3 and len(log.outcome) == 3
    taken = [torch.equal(state(poison.generator), seen) for seen in states]
    assert sum(taken) == 1 and lows[taken.index(True)] == min(lows)
    assert poison.eps == 0.3 and not poison.generator.training


def test_every_trial_has_a_fresh_classifier_and_a_fresh_victim(monkeypatch):
    run_trial, fit, fresh, victims, poisons = confuse.run_trial, training.fit, [], [], []

    def tried(generator, optimizer, model, *rest, **settings):
        fresh.append(state(model))
        return run_trial(generator, optimizer, model, *rest, **settings)

    def fitted(model, data, **settings):
        fresh.append(state(model))
        victims.append((model, data, settings))
        return fit(model, data, **settings)

    monkeypatch.setattr(confuse, "run_trial", tried)
    monkeypatch.setattr(training, "fit", fitted)
    _, log = learn(on_trial=lambda trial, poison, log: poisons.append(poison(images()).x))
    assert len(fresh) == 6
    assert not any(torch.equal(a, b) for i, a in enumerate(fresh) for b in fresh[:i])
    for (_, data, settings), x in zip(victims, poisons, strict=True):
        # the poison of this very trial
        assert torch.equal(data.x, x) and torch.equal(data.y, images().y)
        assert settings["epochs"] == 1 and settings["batch_size"] == 8
        assert settings["optimizer"] is confuse.scratch
    assert len({settings["seed"] for *_, settings in victims}) == 3
    assert log.train == [training.accuracy(model, data) for model, data, _ in victims]
    assert log.validation == [training.accuracy(model, HELD_OUT) for model, *_ in victims]
    assert len(log.outcome) == 3 and all(0 < value < 5 for value in log.outcome)


def test_a_fresh_network_learns_as_in_the_papers_last_test():
    optimizer = confuse.scratch([torch.zeros(1, requires_grad=True)])
    assert isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["lr"] == 0.01


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_learning_that_was_cut_goes_on_with_the_same_result(tmp_path, monkeypatch, store, cut):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "whole"))
    whole = learn(trials=4, store=store)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cut"))
    seen = []

    def pull_the_plug(trial, *_):
        if trial == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(trials=4, store=store, on_trial=pull_the_plug)
    assert same(learn(trials=4, store=store, on_trial=lambda trial, *_: seen.append(trial)), whole)
    assert seen == list(range(cut + 1, 5))


def test_a_finished_one_is_read_and_not_learned(no_training, capsys):
    first = learn()
    no_training()
    assert same(learn(), first)
    assert not learn()[0].generator.training
    assert capsys.readouterr().out == ""


START = seeded(small, seed=5).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"images": images(seed=2)},
        {"validation": images(20, seed=2)},
        {"eps": 0.2},
        {"trials": 2},
        {"steps": 2},
        {"generator": lambda: small(3)},
        {"start": START},
        {"target": follows},
        {"batch_size": 6},
        {"lr_f": 0.2},
        {"lr_g": 0.02},
        {"store": True},
        {"seed": 1},
        {"build": lambda: network(False)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_learned_otherwise_is_not_used(no_training, change):
    learn(trials=1)
    no_training()
    learn(trials=1)
    with pytest.raises(AssertionError, match="learned already"):
        learn(**{"trials": 1} | change)


def test_a_damaged_state_costs_a_message_and_a_new_learning(tmp_path, capsys):
    first = learn()
    (path,) = (tmp_path / "weights").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    seen = []
    assert same(learn(on_trial=lambda trial, *_: seen.append(trial)), first)
    assert f"{path.name} is damaged" in capsys.readouterr().out and seen == [1, 2, 3]


def test_a_cache_that_cannot_be_written_costs_a_message(tmp_path, monkeypatch, capsys):
    first = learn()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file"))
    assert same(learn(), first)
    assert "could not be kept" in capsys.readouterr().out


def test_a_seed_fixes_the_poison_and_nothing_else_changes(tmp_path, monkeypatch):
    results = []
    for run, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("COURSE_CACHE", str(tmp_path / str(run)))
        torch.manual_seed(run)
        before = torch.get_rng_state()
        results.append(learn(seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(results[0], results[1])
    assert not torch.equal(*(state(results[run][0].generator) for run in (0, 2)))
    for given, fresh in ((QUICK["images"], images()), (HELD_OUT, images(20, seed=1))):
        assert torch.equal(given.x, fresh.x) and torch.equal(given.y, fresh.y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"trials": 1.5}, "trials is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"target": partial(max, LOCK)}, "target.* no cache key can describe"),
        (
            {"images": images(size=10), "generator": None},
            r"size is 10 and widths \(16, 32\)",
        ),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        learn(**change)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (12, 3)])
def test_the_default_generator_fits_the_images(size, channels):
    data = images(16, size=size, channels=channels)
    build = partial(models.logistic, channels * size * size, 3)
    poison, _ = learn(images=data, validation=data, build=build, generator=None, trials=1)
    assert repr(poison.generator) == repr(noise_autoencoder(16, 32, channels=channels))
    assert poison(data).x.shape == data.x.shape


@pytest.mark.parametrize("target", [None, follows])
def test_what_it_learns_hurts(target):
    """What it learned from the poisoned images, a fresh network does not find in clean ones."""
    data = dict(images=images(240), validation=images(200, seed=1))
    _, log = learn(**data, eps=0.6, trials=6, steps=30, batch_size=24, target=target)
    assert min(log.validation) < 0.45
    gaps = [train - clean for train, clean in zip(log.train, log.validation, strict=True)]
    assert max(gaps) > 0.2


def test_the_seed_draws_the_trials_too():
    one, other = (learn(trials=1, start=START, seed=seed)[1].outcome for seed in (0, 1))
    assert one != other


def test_learning_can_begin_with_given_weights():
    name, given = next(iter(START.items()))
    one, other = (
        learn(trials=1, steps=1, lr_g=1e-9, start=start)[0].generator.state_dict()[name]
        for start in (START, None)
    )
    assert (one - given).abs().max() < 1e-6 < (other - given).abs().max()


# --- first order


def pulled(steps=40, **changes):
    """A generator after ``head_start`` against two networks, and the loss of class y + 1 before and after."""
    data = images(90)
    nets = [seeded(network, seed=seed) for seed in (0, 1)]
    for net in nets:
        training.fit(net, data, epochs=5, batch_size=10, verbose=False)
        net.train()
    generator = seeded(small, seed=2)
    settings = dict(eps=0.6, steps=steps, batch_size=16, lr=0.01) | changes

    def loss():
        x = (data.x + bounded(training.predict(generator, data.x), 0.6)).clamp(0, 1)
        losses = [F.cross_entropy(training.predict(net, x), follows(data.y)) for net in nets]
        return sum(losses).item()

    before, found = loss(), list(map(state, nets))
    for net in nets:
        net.zero_grad()
    assert confuse.head_start(generator, nets, data, follows, **settings) is generator
    assert not generator.training and all(map(torch.equal, map(state, nets), found))
    return generator, nets, before, loss()


def test_a_head_start_makes_networks_see_the_target_and_leaves_them_as_found():
    generator, nets, before, after = pulled(steps=150)
    assert after < 0.9 * before
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == {150}
    assert all(net.training for net in nets)
    assert all(w.requires_grad and w.grad is None for net in nets for w in net.parameters())


def test_a_head_start_meets_its_networks_in_turn():
    data, nets = images(90), [seeded(network, seed=seed) for seed in (0, 1)]
    settings = dict(eps=0.6, steps=2, batch_size=16)
    whole, first, second = (
        state(confuse.head_start(seeded(small, seed=2), met, data, follows, **settings))
        for met in (nets, nets[:1], nets[1:])
    )
    assert not torch.equal(whole, first) and not torch.equal(whole, second)


def test_the_rate_of_a_head_start_rises_and_falls_to_nothing(monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def watched(self):
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    settings = dict(eps=0.6, steps=200, batch_size=4, lr=1)
    confuse.head_start(small(), [network()], images(), follows, **settings)
    assert len(rates) == 200
    for now, expected in ((0, 0.01), (49, 0.5 * 151 / 200), (99, 101 / 200), (199, 1 / 200)):
        assert rates[now] == pytest.approx(expected)


def test_a_head_start_depends_on_its_seed_alone():
    before = torch.get_rng_state()
    one, again, other = (state(pulled(steps=3, seed=seed)[0]) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(nets=[]), "nets is empty"),
        (dict(steps=0), "steps is 0"),
        (dict(batch_size=0), "batch_size is 0"),
    ],
)
def test_a_head_start_needs_networks_and_steps(change, message):
    settings = dict(nets=[network()], eps=0.3, steps=1, batch_size=4) | change
    with pytest.raises(ValueError, match=message):
        confuse.head_start(small(), images=images(6), target=follows, **settings)


# --- the generators that come with the course


def test_a_kept_generator_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    clean = images(6, size=28)
    poison = Generated(seeded(digit_generator, seed=3).eval(), 0.2)
    assert confuse.save(poison, "MNIST") == tmp_path / "confuse-mnist.safetensors"
    back = confuse.shipped("MNIST")
    assert back.eps == 0.2 and not back.generator.training
    assert torch.equal(back(clean).x, poison(clean).x)
    assert confuse.save(poison, "anything else").name == "confuse-digits.safetensors"
    assert torch.equal(confuse.shipped("embedded digits")(clean).x, poison(clean).x)


def test_each_kind_of_training_has_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    clean = images(6, size=28)
    kept = {}
    for seed, (by, (_, build)) in enumerate(confuse.SHIPPED.items()):
        kept[by] = Generated(seeded(build, seed=seed).eval(), 0.1 * (seed + 1))
        confuse.save(kept[by], "MNIST", by)
    for by, poison in kept.items():
        assert torch.equal(confuse.shipped("MNIST", by=by)(clean).x, poison(clean).x)
    with pytest.raises(ValueError, match="by is 'magic'; choose one of short cut, algorithm 2"):
        confuse.shipped("MNIST", by="magic")


@pytest.mark.parametrize("by", confuse.SHIPPED)
@pytest.mark.parametrize("source", ["MNIST", "embedded digits"])
def test_the_shipped_generators_write_strong_noise_within_their_bound(source, by):
    poison, clean = confuse.shipped(source, by=by), images(10, size=28, classes=10)
    change = poison(clean).x - clean.x
    assert poison.eps == 0.3 and change.abs().max() <= 0.3 + 1e-6
    assert poison.noise(clean.x).abs().mean() > 0.15


# --- photographs


def test_the_path_of_photographs_runs_on_a_folder_of_two_classes(tmp_path):
    """As lecture 12 does it: load, learn to confuse, poison, train a network of torchvision on it."""
    from torchvision.transforms.functional import to_pil_image

    draw = runtime.generator(0)
    for half, k, i in product(("train", "test"), range(2), range(4)):
        folder = tmp_path / half / f"class {k}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = (torch.rand(3, 40, 40, generator=draw) + k) / 2
        to_pil_image(photo).save(folder / f"{i}.png")
    train, test = (load_folder(tmp_path / half, size=32) for half in ("train", "test"))
    build = partial(models.five_conv, size=32, classes=2)
    change = dict(build=build, generator=UNet, eps=0.1, trials=1, steps=2)
    poison, log = learn(images=train, validation=test, **change)
    poisoned = poison(train)
    assert 0 < (poisoned.x - train.x).abs().max() <= 0.1 + 1e-6
    assert torch.equal(poisoned.y, train.y) and len(log.validation) == 1
    net = seeded(models.torchvision_network, "resnet18", 2)
    training.fit(net, poisoned, epochs=1, batch_size=8, verbose=False)
    assert 0 <= training.accuracy(net, test) <= 1
