"""The training loop and its cache, on forty-eight tiny images."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.core import models, runtime, training
from course_utils.core.by_value import described
from course_utils.core.cache import keep_weights
from course_utils.core.data import Images
from course_utils.core.training import accuracy, at_once, eval_mode, fit, predict, trained

torch.set_num_threads(1)


def make_images(seed: int = 0, size: int = 4) -> Images:
    """Two classes that anyone can tell apart: the left half is bright, or the right half is."""
    y = torch.arange(48) % 2
    x = torch.rand(48, 1, 4, 4, generator=runtime.generator(seed)) * 0.4
    x[y == 0, :, :, :2] += 0.5
    x[y == 1, :, :, 2:] += 0.5
    return Images(F.interpolate(x, size=(size, size)), y, ("left", "right"), "halves")


IMAGES = make_images()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small() -> nn.Module:
    return models.mlp(8, pixels=16, classes=2)


def noisy() -> nn.Module:
    """A network whose train mode differs from its eval mode, and draws random numbers."""
    body = [nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*body, nn.Linear(16, 2))


def seeded(build, seed: int = 0) -> nn.Module:
    with runtime.seeded(seed):
        return build()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


adam = partial(torch.optim.Adam, lr=0.01)
quick = {"epochs": 2, "batch_size": 16, "verbose": False}
thorough = {"epochs": 25, "batch_size": 8, "optimizer": adam}


def cached(build=small, images=IMAGES, **settings):
    """``trained``, quick and silent unless ``settings`` say otherwise."""
    return trained(build, images, **(quick | settings))


def fitted(build=small, images=IMAGES, seed=0, **settings):
    """What ``cached`` should give, by ``fit``."""
    model = seeded(build, seed)
    return model, fit(model, images, seed=seed, **(quick | settings))


def assert_same(one, other):
    """Two pairs of a model and its history."""
    assert torch.equal(weights(one[0]), weights(other[0]))
    for part in ("loss", "train", "validation"):
        assert getattr(one[1], part) == getattr(other[1], part)


# --- fit


@pytest.mark.parametrize("build", [small, noisy, lambda: models.logistic(16, 2)])
def test_fit_learns(build):
    model, history = fitted(build, validation=make_images(seed=1), **thorough)
    shares = history.train[-1], history.validation[-1], accuracy(model, make_images(seed=2))
    assert min(shares) > 0.95
    assert history.loss[-1] < history.loss[0]


def test_history_has_one_entry_per_epoch(capsys):
    history = fit(seeded(small), IMAGES, epochs=3, validation=IMAGES)
    assert [len(part) for part in vars(history).values()] == [3, 3, 3, 3]
    assert all(0 <= share <= 1 for share in history.train + history.validation)
    assert all(value > 0 for value in history.loss + history.seconds)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(f"epoch 2/3  loss {history.loss[1]:.4f}  train ")
    assert "validation" in lines[1]


def test_without_validation_and_silent(capsys):
    assert fitted()[1].validation == []
    assert capsys.readouterr().out == ""


def test_loss_is_the_mean_over_images_also_with_a_short_last_batch():
    images = replace(IMAGES, y=torch.arange(48) // 24)  # half of them wrong for any network
    still = partial(torch.optim.SGD, lr=0.0)
    model, history = fitted(images=images, epochs=1, batch_size=32, optimizer=still)
    expected = F.cross_entropy(predict(model, images.x), images.y).item()
    assert history.loss[0] == pytest.approx(expected, rel=1e-5)
    assert history.train == [accuracy(model, images)]
    assert 0 < history.train[0] < 1


@pytest.mark.parametrize("build", [small, noisy])
def test_a_seed_is_reproducible_and_another_one_differs(build):
    def run(seed):
        model = seeded(build)
        torch.rand(seed + 1)  # where the global state stands does not matter
        return weights(model), fit(model, IMAGES, seed=seed, **quick).loss, weights(model)

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first[2], again[2])
    assert first[1] == again[1]
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[2], other[2])


@pytest.mark.parametrize("train", [fitted, cached])
def test_the_global_random_state_is_untouched(train):
    before = torch.get_rng_state()
    train(noisy)
    assert torch.equal(torch.get_rng_state(), before)


def test_accuracies_are_measured_in_eval_mode_and_training_is_not():
    modes = []

    class Spy(nn.Flatten):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model, _ = fitted(
        lambda: nn.Sequential(Spy(), nn.Linear(16, 2)).eval(), batch_size=24, validation=IMAGES
    )
    assert modes == 2 * [(True, True), (True, True), (False, False), (False, False)]
    assert not any(module.training for module in model.modules())


def test_fit_is_the_plain_loop():
    sgd, plain = partial(torch.optim.SGD, lr=0.1), seeded(small, 5)
    model, _ = fitted(optimizer=sgd, seed=5)
    order, steps = runtime.generator(5), sgd(plain.parameters())
    for _ in range(quick["epochs"]):
        for rows in torch.randperm(48, generator=order).split(quick["batch_size"]):
            steps.zero_grad()
            F.cross_entropy(plain(IMAGES.x[rows]), IMAGES.y[rows]).backward()
            steps.step()
    torch.testing.assert_close(weights(model), weights(plain))


def test_every_image_is_seen_once_per_epoch_in_an_order_of_the_seed_alone():
    def order(build):
        seen = []

        def watching(model, x, y):
            seen.append(x[:, 0, 0, 0])
            return training.cross_entropy(model, x, y)

        fitted(build, objective=watching, batch_size=20)
        assert [len(batch) for batch in seen] == 2 * [20, 20, 8]
        return torch.cat(seen).split(48)

    first, second = order(small)
    assert torch.equal(first.sort().values, IMAGES.x[:, 0, 0, 0].sort().values)
    assert torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(order(noisy)), torch.cat([first, second]))  # dropout draws apart


def test_the_objective_decides_what_is_learned():
    def reversed_labels(model, x, y):
        return F.cross_entropy(model(x), 1 - y)

    assert accuracy(fitted(objective=reversed_labels, **thorough)[0], IMAGES) < 0.05


@pytest.mark.parametrize("schedule", [None, lambda t: 1 - t, training.late_drop, training.triangle])
def test_a_schedule_multiplies_the_learning_rate_of_every_step(schedule):
    made, rates = [], []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.3))
        return made[0]

    def watching(model, x, y):
        rates.append(made[0].param_groups[0]["lr"])
        return training.cross_entropy(model, x, y)

    fitted(objective=watching, optimizer=optimizer, schedule=schedule, epochs=3, batch_size=20)
    factors = [schedule(done / 9) if schedule else 1 for done in range(9)]
    assert rates == pytest.approx([0.3 * factor for factor in factors])


def test_late_drop_and_triangle():
    assert [training.late_drop(t) for t in (0, 0.5, 0.66, 0.67, 0.99)] == [1, 1, 1, 0.1, 0.1]
    rates = [training.triangle(t) for t in (0, 0.1, 0.2, 0.6, 0.9, 1)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0.125, 0])


def test_on_epoch_is_called_after_every_epoch():
    calls = []
    model, _ = fitted(on_epoch=lambda *call: calls.append(call))
    assert calls == [(1, model), (2, model)]


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("epochs", -1), ("batch_size", 0)])
def test_bad_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} (is )?{value}.*must be 1 or more"):
        fitted(**{name: value})


def test_a_device_mismatch_names_both_and_the_cure():
    message = r"images are on cpu and the model on meta; move one: images.to\('meta'\)"
    with pytest.raises(ValueError, match=message):
        fit(small().to("meta"), IMAGES, epochs=1)


def test_rmsprop_has_keras_defaults():
    (group,) = training.rmsprop(small().parameters()).param_groups
    keras = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7, "momentum": 0, "centered": False}
    assert {name: group[name] for name in keras} == keras


# --- checkpoints

momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
lengthy = {  # all that the next epoch could depend on: order, dropout, momentum, batch statistics, learning rate
    "optimizer": momentum,
    "schedule": training.triangle,
    "validation": make_images(seed=1),
    "epochs": 6,
    "batch_size": 20,
}
left = {"steps": None}  # how many more steps until the cut


class Cut(Exception):
    """What ends a training too early."""


def cut(model, x, y):
    if left["steps"] == 0:
        raise Cut
    left["steps"] = left["steps"] and left["steps"] - 1
    return training.cross_entropy(model, x, y)


cut.key = "cut"  # it reads `left`, which changes


def cut_after(steps, train=fitted, **settings):
    left["steps"] = steps
    with pytest.raises(Cut):
        train(noisy, objective=cut, **settings)
    left["steps"] = None


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0)
    left["steps"] = None


@pytest.fixture
def state(tmp_path, every_epoch):
    """Where a checkpoint is kept after every epoch."""
    return tmp_path / "state"


@pytest.mark.parametrize(
    "optimizer", [momentum, training.rmsprop, adam], ids=["momentum", "rmsprop", "adam"]
)
@pytest.mark.parametrize("cuts", [[0], [4], [7, 5], [16]])  # three steps an epoch
def test_a_training_that_was_cut_goes_on_as_if_nothing_had_been(cuts, optimizer, state):
    settings, epochs = lengthy | {"optimizer": optimizer}, []
    whole = fitted(noisy, **settings)
    for steps in cuts:
        cut_after(steps, checkpoint=state, **settings)
        assert state.exists() == (steps >= 3)
    settings["on_epoch"] = lambda epoch, _: epochs.append(epoch)
    again = fitted(noisy, objective=cut, checkpoint=state, **settings)
    assert_same(again, whole)
    assert epochs == list(range(1 + sum(steps // 3 for steps in cuts), 7))
    assert len(again[1].seconds) == 6


def test_the_rates_and_the_random_state_go_on_too(state):
    """Else the test above could pass because nothing depends on them."""
    whole, _ = fitted(noisy, **lengthy)
    for lost in ("order", "random", "steps", "optimizer"):
        state.unlink(missing_ok=True)
        cut_after(10, checkpoint=state, **lengthy)
        kept = torch.load(state, weights_only=True)
        if lost in ("order", "random"):
            kept[lost] = runtime.generator(99).get_state()
        elif lost == "steps":
            kept[lost] = 0
        else:
            kept[lost]["state"] = {}
        torch.save(kept, state)
        model, _ = fitted(noisy, objective=cut, checkpoint=state, **lengthy)
        assert not torch.equal(weights(model), weights(whole)), lost


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)]
)
def test_a_damaged_checkpoint_is_begun_anew_and_said_so(damage, state, capsys):
    cut_after(10, checkpoint=state, **lengthy)
    state.write_bytes(damage(state.read_bytes()))
    again = fitted(noisy, objective=cut, checkpoint=state, **lengthy)
    assert "The checkpoint state is damaged" in capsys.readouterr().out
    assert_same(again, fitted(noisy, **lengthy))


@pytest.mark.parametrize("change", ["model", "optimizer", "history", None])
def test_a_checkpoint_of_another_training_is_named(change, state):
    cut_after(10, checkpoint=state, **lengthy)
    kept = torch.load(state, weights_only=True)
    if change is None:
        kept = {"something": 1}
    else:
        kept[change] = {"else": torch.zeros(1)}
    torch.save(kept, state)
    with pytest.raises(
        ValueError, match=f"(?s){state} holds the state of another training .*delete"
    ):
        fitted(noisy, checkpoint=state, **lengthy)


def test_trained_goes_on_at_its_checkpoint_and_removes_it(cache, every_epoch, no_training):
    def kinds():
        return [name.split(".")[1] for name in files(cache)]

    settings = {"seed": 2, **lengthy}
    cached(noisy, objective=halved, **settings)  # no cut: nothing but the weights stays
    assert kinds() == ["safetensors"]
    cut_after(10, cached, **settings)
    assert kinds().count("checkpoint") == 1
    left["steps"] = 9  # as many as are left, and no more
    again = cached(noisy, objective=cut, **settings)
    assert left["steps"] == 0
    assert_same(again, fitted(noisy, **settings))
    assert kinds() == ["safetensors", "safetensors"]
    no_training()
    assert_same(cached(noisy, objective=cut, **settings), again)


def test_a_short_training_writes_no_checkpoint(tmp_path):
    fitted(checkpoint=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_costs_only_the_checkpoint(state, capsys):
    state.write_text("a file stands where the folder should be")
    assert len(fitted(checkpoint=state / "state")[1].loss) == 2
    assert "could not be kept" in capsys.readouterr().out


# --- predict and eval_mode


@pytest.mark.parametrize("batch_size", [1, 7, 48, 1000])
@pytest.mark.parametrize("training_mode", [True, False])
def test_predict_is_the_model_in_eval_mode_in_any_batch_size(batch_size, training_mode):
    model, _ = fitted(noisy)
    expected, before = model(IMAGES.x), weights(model)
    model.train(training_mode)
    logits = predict(model, IMAGES.x, batch_size)
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad
    assert model.training is training_mode
    assert torch.equal(weights(model), before)  # the statistics of batch norm too


@pytest.mark.parametrize(
    "shape", [(1, 4, 4), (1, 28, 28), (3, 32, 32), (3, 224, 224), (3, 999, 999)]
)
def test_so_many_images_at_once_that_large_ones_take_no_more_memory(shape):
    x = torch.zeros(1).expand(2, *shape)
    count = at_once(x, 100)
    room, size = 100 * training.SMALL, max(training.SMALL, x[0].numel())
    assert 1 <= count <= 100
    assert count == 1 or count * size <= room
    assert (count + 1) * size > room  # one more would not fit
    assert at_once(x, 1) == 1


def test_photographs_go_through_a_model_in_small_batches():
    class Mean(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x.flatten(2).mean(2)

    sizes = []
    x = torch.rand(7, 3, 64, 64, generator=runtime.generator(0))
    room = 3 * 3 * 64 * 64 // training.SMALL  # that of three such images
    torch.testing.assert_close(predict(Mean(), x, room), x.mean((2, 3)))
    few = at_once(x, room)
    assert 1 < few <= 3
    assert sizes == [few] * (7 // few) + [7 % few] * (7 % few > 0)


def test_accuracy_is_a_share():
    class Left(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    assert accuracy(Left(), IMAGES) == 0.5
    assert accuracy(Left(), IMAGES[IMAGES.y == 0]) == 1.0


@pytest.mark.parametrize("fails", [False, True])
def test_eval_mode_gives_every_flag_back(fails):
    model = noisy().train()
    model[2].eval()  # a frozen batch norm
    before = [module.training for module in model.modules()]
    try:
        with eval_mode(model) as inside:
            assert inside is model
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


# --- trained


@pytest.fixture
def no_training(monkeypatch):
    """From the call of this on, nothing may be trained."""

    def refuse(*_, **__):
        raise AssertionError("this should have come from the cache")

    return lambda: monkeypatch.setattr(training, "fit", refuse)


def files(folder) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(path.name for path in paths)


@pytest.mark.parametrize(
    ("build", "size"), [(small, 4), (noisy, 4), (lambda: models.slides_cnn(size=16, classes=2), 16)]
)
def test_the_second_call_loads_the_same_weights_and_history(
    build, size, cache, no_training, capsys
):
    images = make_images(size=size)
    model, history = cached(build, images, validation=images)
    assert len(files(cache)) == 1  # and no temporary file
    assert files(cache)[0].endswith(".safetensors")
    no_training()
    again, same = cached(build, images, validation=images)
    assert torch.equal(weights(model), weights(again))
    assert same == history
    assert torch.equal(predict(model, images.x), predict(again, images.x))
    assert not model.training and not again.training
    assert capsys.readouterr().out == ""
    cached(build, images, validation=images, verbose=True)
    assert "weights from the cache; last epoch: epoch 2/2  loss" in capsys.readouterr().out


def test_two_that_ask_at_once_get_one_training(cache, monkeypatch):
    started = threading.Event()
    trainings = []

    def slow(*args, **settings):
        trainings.append(1)
        started.set()
        time.sleep(0.5)  # the second call waits for the lock meanwhile
        return fit(*args, **settings)

    monkeypatch.setattr(training, "fit", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(cached)
        assert started.wait(10)
        second = cached()
    assert len(trainings) == 1
    assert_same(first.result(), second)


def test_trained_is_fit_on_a_model_built_under_the_seed():
    assert_same(cached(seed=3), fitted(seed=3))


# fmt: off
@pytest.mark.parametrize("damage", [
    lambda b: b[:-20], lambda b: b[:10], lambda b: b"", lambda b: b"x" * len(b),
    lambda b: b"\xff" * 8 + b[8:],
])
# fmt: on
def test_a_damaged_file_is_trained_again_with_a_note(damage, cache, no_training, capsys):
    first = cached()
    (path,) = cache.rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    assert_same(cached(), first)
    assert "are damaged" in capsys.readouterr().out
    no_training()  # the file is whole again
    assert_same(cached(), first)


def halved(model, x, y):
    return training.cross_entropy(model, x, y) / 2


def scaled(model, x, y, by=1.0, of=training.cross_entropy):
    return by * of(model, x, y)


def tanh():
    model = small()
    model.relu1 = nn.Tanh()
    return model


def unbiased():
    model = small()
    model.output.bias.data.zero_()
    return model


CHANGES = {
    "seed": {"seed": 1},
    "activation": {"build": tanh},
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 8},
    "pixels": {"images": make_images(seed=1)},
    "labels": {"images": replace(IMAGES, y=1 - IMAGES.y)},
    "fewer images": {"images": IMAGES[:40]},
    "model": {"build": lambda: models.mlp(9, pixels=16, classes=2)},
    "first weights": {"build": unbiased},
    "validation": {"validation": make_images(seed=1)},
    "objective": {"objective": halved},
    "objective's keyword": {"objective": partial(scaled, by=2.0)},
    "objective's function": {"objective": partial(scaled, of=halved)},
    "optimizer": {"optimizer": torch.optim.SGD},
    "optimizer's keyword": {"optimizer": adam},
    "schedule": {"schedule": training.late_drop},
    "other schedule": {"schedule": training.triangle},
    "optimizer's other keyword": {"optimizer": partial(torch.optim.Adam, lr=0.02)},
}


def test_the_key_changes_with_everything_the_weights_depend_on(cache):
    for count, change in enumerate([{}, *CHANGES.values()], start=1):
        cached(**({"epochs": 1} | change))
        assert len(files(cache)) == count, change


def test_the_seed_counts_also_where_the_first_weights_are_fixed(cache):
    for seed in (0, 1):
        cached(lambda: seeded(small), seed=seed)
        assert len(files(cache)) == seed + 1


def test_naming_the_defaults_or_another_order_gives_the_same_key(no_training):
    cached()
    no_training()
    named = {"objective": training.cross_entropy, "validation": None, "seed": 0}
    settings = {"optimizer": training.rmsprop, **named, **dict(reversed(quick.items()))}
    trained(
        images=make_images(), build=lambda: models.mlp(8, pixels=16, classes=2), **settings
    )


def test_the_key_holds_no_address_of_memory():
    """Else no other process would find the weights: an objective may be a partial that holds a function."""
    name = described("objective", partial(scaled, of=partial(scaled, of=halved)))
    assert b"0x" not in name
    assert b"halved" in name


def test_an_objective_edited_in_the_notebook_is_trained_anew(cache, tmp_path):
    for count, factor in enumerate((1, 2), start=1):
        source, cell = tmp_path / f"cell{factor}.py", {}
        source.write_text(
            f"def mine(model, x, y):\n    return {factor} * model(x).square().mean()\n"
        )
        exec(compile(source.read_text(), source, "exec"), cell)  # noqa: S102  as Jupyter does
        cached(objective=cell["mine"])
        assert len(files(cache)) == count


def test_a_layer_of_the_students_own_is_part_of_the_key(cache):
    class Layer(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    first = Layer

    class Layer(nn.Linear):
        def forward(self, x):
            return -super().forward(x.flatten(1))

    for kind in (first, Layer):
        cached(lambda kind=kind: nn.Sequential(kind(16, 2)))
    assert len(files(cache)) == 2


def test_lambdas_count_by_what_they_do(cache):
    for factor in (1, 2):
        for _ in range(2):
            cached(objective=lambda *batch, by=factor: by * training.cross_entropy(*batch))
        assert len(files(cache)) == factor


def test_a_global_that_an_objective_reads_is_part_of_the_key(cache, monkeypatch):
    for count, factor in enumerate((1.0, 2.0), start=1):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        cached(objective=by_a_global)
        cached(objective=partial(scaled, of=by_a_global))
        assert len(files(cache)) == 2 * count


FACTOR = 1.0


def by_a_global(model, x, y):
    return FACTOR * training.cross_entropy(model, x, y)


@pytest.mark.parametrize("setting", ["objective", "optimizer", "schedule"])
def test_what_no_key_can_describe_is_refused_before_the_training(setting, cache, no_training):
    no_training()
    lock = threading.Lock()
    with pytest.raises(ValueError, match=f"^{setting}.*lock.*give it a `key` attribute"):
        cached(**{setting: lambda *_: lock})


def test_a_key_stands_for_the_function(cache):
    lock = threading.Lock()

    def objective(model, x, y):
        with lock:
            return training.cross_entropy(model, x, y)

    for count, key in enumerate(("plain", "plainer"), start=1):
        objective.key = key
        cached(objective=objective)
        cached(objective=objective)
        assert len(files(cache)) == count


def shared():
    """Two layers with one weight, as in an autoencoder with tied weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    model[2].weight = model[1].weight
    return model


def test_tied_weights_come_from_the_cache_and_stay_tied(no_training):
    first = cached(shared)
    no_training()
    again = cached(shared)
    assert_same(again, first)
    assert again[0][1].weight is again[0][2].weight


class Counting(nn.Linear):
    def get_extra_state(self):
        return {"a dict": "no tensor"}

    def set_extra_state(self, state):
        pass


def test_a_model_that_cannot_be_kept_is_returned(cache, capsys):
    model, history = cached(lambda: nn.Sequential(nn.Flatten(), Counting(16, 2)))
    assert "could not be kept" in capsys.readouterr().out
    assert len(history.loss) == 2
    assert not model.training
    assert files(cache) == []


def test_a_file_without_a_history_is_trained_again_from_the_first_weights(cache, capsys):
    first = cached()
    (path,) = cache.rglob("*.safetensors")
    keep_weights(path, first[0])
    assert_same(cached(), first)
    assert "are damaged" in capsys.readouterr().out


def test_on_epoch_is_for_fit():
    with pytest.raises(ValueError, match="on_epoch is given.*call fit"):
        cached(on_epoch=print)


def test_a_cache_that_cannot_be_written_costs_only_the_cache(cache, capsys):
    cache.write_text("a file stands where the folder should be")
    model, history = cached()
    said = capsys.readouterr().out
    assert "could not be kept" in said
    assert "COURSE_CACHE" in said
    assert "damaged" not in said
    assert len(history.loss) == 2
    assert not model.training


def test_a_full_disk_leaves_no_half_file(cache, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cached()
    assert "No space left" in capsys.readouterr().out
    assert files(cache) == []


def test_the_slides_network_is_shared_by_the_lectures(no_training, monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", "quick")
    images = make_images(size=16)
    model, history = training.slides_network(images, images[:8])
    assert model.dense2.out_features == 2
    assert len(history.validation) == 3
    no_training()
    assert torch.equal(weights(training.slides_network(images, images[:8])[0]), weights(model))
