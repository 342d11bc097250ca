"""The training loop and its cache, on forty-eight tiny images."""

import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils import models, runtime, training
from course_utils.data import Images
from course_utils.training import accuracy, eval_mode, fit, predict, trained

torch.set_num_threads(1)


def make_images(n: int = 48, seed: int = 0) -> Images:
    """Two classes that anyone can tell apart: the left half is bright, or the right half is."""
    y = torch.arange(n) % 2
    x = torch.rand(n, 1, 4, 4, generator=runtime.generator(seed)) * 0.4
    x[y == 0, :, :, :2] += 0.5
    x[y == 1, :, :, 2:] += 0.5
    return Images(x, y, ("left", "right"), "halves")


@pytest.fixture
def images() -> Images:
    return make_images()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small() -> nn.Module:
    return models.mlp(8, pixels=16, classes=2)


def noisy() -> nn.Module:
    """A network whose train mode differs from its eval mode, and draws random numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))


def seeded(build, seed: int = 0) -> nn.Module:
    with runtime.seeded(seed):
        return build()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


adam = partial(torch.optim.Adam, lr=0.01)
quick = {"epochs": 2, "batch_size": 16, "verbose": False}


# ----------------------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("build", [small, noisy, lambda: models.logistic(16, 2)])
def test_fit_learns(build, images):
    model = seeded(build)
    history = fit(model, images, epochs=25, batch_size=8, optimizer=adam, validation=make_images(seed=1), verbose=False)
    assert history.train[-1] > 0.95
    assert history.validation[-1] > 0.95
    assert accuracy(model, make_images(seed=2)) > 0.95
    assert history.loss[-1] < history.loss[0]


def test_history_has_one_entry_per_epoch(images, capsys):
    history = fit(seeded(small), images, epochs=3, validation=images)
    assert [len(part) for part in (history.loss, history.train, history.validation, history.seconds)] == [3, 3, 3, 3]
    assert all(0 <= share <= 1 for share in history.train + history.validation)
    assert all(value > 0 for value in history.loss + history.seconds)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(f"epoch 2/3  loss {history.loss[1]:.4f}  train ")
    assert "validation" in lines[1]


def test_without_validation_and_silent(images, capsys):
    history = fit(seeded(small), images, **quick)
    assert history.validation == []
    assert capsys.readouterr().out == ""


def test_loss_is_the_mean_over_images_also_with_a_short_last_batch(images):
    images = Images(images.x, torch.arange(48) // 24, images.classes, images.source)  # half of them wrong, whatever the network says
    model = seeded(small)
    still = partial(torch.optim.SGD, lr=0.0)
    history = fit(model, images, epochs=1, batch_size=32, optimizer=still, verbose=False)
    assert history.loss[0] == pytest.approx(F.cross_entropy(predict(model, images.x), images.y).item(), rel=1e-5)
    assert history.train == [accuracy(model, images)]
    assert 0 < history.train[0] < 1


@pytest.mark.parametrize("build", [small, noisy])
def test_a_seed_is_reproducible_and_another_one_differs(build, images):
    def run(seed):
        model = seeded(build)
        torch.rand(seed + 1)  # where the global state stands does not matter
        return weights(model), fit(model, images, seed=seed, **quick).loss, weights(model)

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first[2], again[2])
    assert first[1] == again[1]
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[2], other[2])


@pytest.mark.parametrize("train", [fit, lambda model, images, **settings: trained(lambda: model, images, **settings)])
def test_the_global_random_state_is_untouched(train, images):
    model = seeded(noisy)
    before = torch.get_rng_state()
    train(model, images, **quick)
    assert torch.equal(torch.get_rng_state(), before)


def test_accuracies_are_measured_in_eval_mode_and_training_is_not(images):
    modes = []

    class Spy(nn.Flatten):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = nn.Sequential(Spy(), nn.Linear(16, 2)).eval()
    fit(model, images, epochs=2, batch_size=24, validation=images, verbose=False)
    assert modes == 2 * [(True, True), (True, True), (False, False), (False, False)]
    assert not any(module.training for module in model.modules())


def test_fit_is_the_plain_loop(images):
    model, plain = seeded(small), seeded(small)
    sgd = partial(torch.optim.SGD, lr=0.1)
    fit(model, images, optimizer=sgd, seed=5, **quick)
    order, steps = runtime.generator(5), sgd(plain.parameters())
    for _ in range(quick["epochs"]):
        for rows in torch.randperm(len(images), generator=order).split(quick["batch_size"]):
            steps.zero_grad()
            F.cross_entropy(plain(images.x[rows]), images.y[rows]).backward()
            steps.step()
    torch.testing.assert_close(weights(model), weights(plain))


def test_every_image_is_seen_once_per_epoch_in_an_order_of_the_seed_alone(images):
    def order(build):
        seen = []

        def watching(model, x, y):
            seen.append(x[:, 0, 0, 0])
            return training.cross_entropy(model, x, y)

        fit(seeded(build), images, objective=watching, epochs=2, batch_size=20, verbose=False)
        assert [len(batch) for batch in seen] == 2 * [20, 20, 8]
        return torch.cat(seen).split(len(images))

    first, second = order(small)
    assert torch.equal(first.sort().values, images.x[:, 0, 0, 0].sort().values)
    assert torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(order(noisy)), torch.cat([first, second]))  # dropout draws from elsewhere


def test_the_objective_decides_what_is_learned(images):
    model = seeded(small)

    def reversed_labels(model, x, y):
        return F.cross_entropy(model(x), 1 - y)

    fit(model, images, objective=reversed_labels, epochs=25, batch_size=8, optimizer=adam, verbose=False)
    assert accuracy(model, images) < 0.05


@pytest.mark.parametrize("schedule", [None, lambda t: 1 - t, training.late_drop, training.triangle])
def test_a_schedule_multiplies_the_learning_rate_of_every_step(schedule, images):
    made, rates = [], []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.3))
        return made[0]

    def watching(model, x, y):
        rates.append(made[0].param_groups[0]["lr"])
        return training.cross_entropy(model, x, y)

    fit(seeded(small), images, objective=watching, optimizer=optimizer, schedule=schedule, epochs=3, batch_size=20, verbose=False)
    assert rates == pytest.approx([0.3 * (schedule(done / 9) if schedule else 1) for done in range(9)])


def test_late_drop_and_triangle():
    assert [training.late_drop(t) for t in (0, 0.5, 0.66, 0.67, 0.99)] == [1, 1, 1, 0.1, 0.1]
    assert [training.triangle(t) for t in (0, 0.1, 0.2, 0.6, 0.9, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0.125, 0])


def test_on_epoch_is_called_after_every_epoch(images):
    model, calls = seeded(small), []
    fit(model, images, on_epoch=lambda epoch, now: calls.append((epoch, now is model)), **quick)
    assert calls == [(1, True), (2, True)]


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("epochs", -1), ("batch_size", 0)])
def test_bad_numbers_are_refused_by_name(name, value, images):
    with pytest.raises(ValueError, match=rf"{name} (is )?{value}.*must be 1 or more"):
        fit(small(), images, **{**quick, name: value})


def test_a_device_mismatch_names_both_and_the_cure(images):
    with pytest.raises(ValueError, match=r"images are on cpu and the model on meta; move one: images.to\('meta'\)"):
        fit(small().to("meta"), images, epochs=1)


def test_rmsprop_has_keras_defaults():
    (group,) = training.rmsprop(small().parameters()).param_groups
    assert (group["lr"], group["alpha"], group["eps"], group["momentum"], group["centered"]) == (1e-3, 0.9, 1e-7, 0, False)


# --------------------------------------------------------------------------------------------------------- checkpoints

lengthy = {  # all that the next epoch could depend on: order, dropout, momentum, batch statistics, learning rate
    "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "schedule": training.triangle,
    "validation": make_images(seed=1),
    "epochs": 6,
    "batch_size": 20,
    "verbose": False,
}
left = {"steps": None}  # how many more steps until the cut


class Cut(Exception):
    """What ends a training too early."""


def cut(model, x, y):
    if left["steps"] == 0:
        raise Cut
    left["steps"] = left["steps"] and left["steps"] - 1
    return training.cross_entropy(model, x, y)


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0)
    left["steps"] = None


def numbers(history):
    return history.loss, history.train, history.validation


@pytest.mark.parametrize("optimizer", [lengthy["optimizer"], training.rmsprop, adam], ids=["momentum", "rmsprop", "adam"])
@pytest.mark.parametrize("cuts", [[0], [4], [7, 5], [16]])  # three steps an epoch
def test_a_training_that_was_cut_goes_on_as_if_nothing_had_been(cuts, optimizer, images, tmp_path, every_epoch):
    whole = seeded(noisy)
    expected = fit(whole, images, **{**lengthy, "optimizer": optimizer})
    settings = {**lengthy, "optimizer": optimizer, "objective": cut, "checkpoint": tmp_path / "state"}
    for steps in cuts:
        left["steps"] = steps
        with pytest.raises(Cut):
            fit(seeded(noisy), images, **settings)
        assert (tmp_path / "state").exists() == (steps >= 3)
    epochs = []
    model, left["steps"] = seeded(noisy), None
    history = fit(model, images, on_epoch=lambda epoch, _: epochs.append(epoch), **settings)
    assert torch.equal(weights(model), weights(whole))
    assert numbers(history) == numbers(expected)
    assert epochs == list(range(1 + sum(steps // 3 for steps in cuts), 7))
    assert len(history.seconds) == 6


def test_the_rates_and_the_random_state_go_on_too(images, tmp_path, every_epoch):
    """Else the test above could pass because nothing depends on them."""
    settings = {**lengthy, "objective": cut, "checkpoint": tmp_path / "state"}
    whole = seeded(noisy)
    fit(whole, images, **lengthy)
    for lost in ("order", "random", "steps", "optimizer"):
        (tmp_path / "state").unlink(missing_ok=True)
        left["steps"] = 10
        with pytest.raises(Cut):
            fit(seeded(noisy), images, **settings)
        state = torch.load(tmp_path / "state", weights_only=True)
        if lost in ("order", "random"):
            state[lost] = runtime.generator(99).get_state()
        elif lost == "steps":
            state[lost] = 0
        else:
            state[lost]["state"] = {}
        torch.save(state, tmp_path / "state")
        left["steps"], model = None, seeded(noisy)
        fit(model, images, **settings)
        assert not torch.equal(weights(model), weights(whole)), lost


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_checkpoint_is_begun_anew_and_said_so(damage, images, tmp_path, every_epoch, capsys):
    path = tmp_path / "state"
    whole = seeded(noisy)
    expected = fit(whole, images, **lengthy)
    left["steps"] = 10
    with pytest.raises(Cut):
        fit(seeded(noisy), images, objective=cut, checkpoint=path, **lengthy)
    path.write_bytes(damage(path.read_bytes()))
    left["steps"], model = None, seeded(noisy)
    history = fit(model, images, objective=cut, checkpoint=path, **lengthy)
    assert "The checkpoint state is damaged" in capsys.readouterr().out
    assert torch.equal(weights(model), weights(whole))
    assert numbers(history) == numbers(expected)


def test_trained_goes_on_at_its_checkpoint_and_removes_it(images, cache, every_epoch, no_training):
    whole, expected = trained(noisy, images, objective=halved, seed=2, **lengthy)  # no cut: nothing but the weights stays
    assert [name.split(".")[1] for name in files(cache)] == ["safetensors"]
    left["steps"] = 10
    with pytest.raises(Cut):
        trained(noisy, images, objective=cut, seed=2, **lengthy)
    assert [name.split(".")[1] for name in files(cache)].count("checkpoint") == 1
    left["steps"] = 9  # as many as are left, and no more
    model, history = trained(noisy, images, objective=cut, seed=2, **lengthy)
    assert left["steps"] == 0
    plain = seeded(noisy, 2)
    assert numbers(fit(plain, images, seed=2, **lengthy)) == numbers(history)
    assert torch.equal(weights(model), weights(plain))
    assert [name.split(".")[1] for name in files(cache)] == ["safetensors", "safetensors"]
    no_training()
    assert torch.equal(weights(trained(noisy, images, objective=cut, seed=2, **lengthy)[0]), weights(plain))


def test_a_short_training_writes_no_checkpoint(images, tmp_path):
    fit(seeded(small), images, checkpoint=tmp_path / "state", **quick)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_costs_only_the_checkpoint(images, tmp_path, every_epoch, capsys):
    (tmp_path / "file").write_text("a file stands where the folder should be")
    history = fit(seeded(small), images, checkpoint=tmp_path / "file" / "state", **quick)
    assert len(history.loss) == 2
    assert "could not be kept" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- predict and eval_mode


@pytest.mark.parametrize("batch_size", [1, 7, 48, 1000])
@pytest.mark.parametrize("training_mode", [True, False])
def test_predict_is_the_model_in_eval_mode_in_any_batch_size(batch_size, training_mode, images):
    model = seeded(noisy)
    fit(model, images, **quick)
    expected = model(images.x)
    state = weights(model)
    model.train(training_mode)
    logits = predict(model, images.x, batch_size)
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad
    assert model.training is training_mode
    assert torch.equal(weights(model), state)  # the statistics of batch norm too


def test_accuracy_is_a_share(images):
    def left(x):
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    class Left(nn.Module):
        forward = staticmethod(left)

    assert accuracy(Left(), images) == 0.5
    assert accuracy(Left(), images[images.y == 0]) == 1.0


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


# --------------------------------------------------------------------------------------------------------------- trained


@pytest.fixture
def no_training(monkeypatch):
    """From the call of this on, nothing may be trained."""

    def refuse(*_, **__):
        raise AssertionError("this should have come from the cache")

    return lambda: monkeypatch.setattr(training, "fit", refuse)


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("build", [small, noisy, lambda: models.slides_cnn(size=16, classes=2)])
def test_the_second_call_loads_the_same_weights_and_history(build, cache, no_training, capsys):
    images = make_images()
    if "conv1" in dict(build().named_children()):
        images = Images(F.interpolate(images.x, size=(16, 16)), images.y, images.classes, images.source)
    model, history = trained(build, images, validation=images, **quick)
    assert len(files(cache)) == 1  # and no temporary file
    assert files(cache)[0].endswith(".safetensors")
    no_training()
    again, same = trained(build, images, validation=images, **quick)
    assert torch.equal(weights(model), weights(again))
    assert same == history
    assert torch.equal(predict(model, images.x), predict(again, images.x))
    assert not model.training
    assert not again.training
    assert capsys.readouterr().out == ""
    trained(build, images, validation=images, **{**quick, "verbose": True})
    assert "weights from the cache; last epoch: epoch 2/2  loss" in capsys.readouterr().out


def test_trained_is_fit_on_a_model_built_under_the_seed(images):
    model, history = trained(small, images, seed=3, **quick)
    plain = seeded(small, 3)
    assert fit(plain, images, seed=3, **quick).loss == history.loss
    assert torch.equal(weights(plain), weights(model))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b[:10], lambda b: b"", lambda b: b"x" * len(b), lambda b: b"\xff" * 8 + b[8:]]
)
def test_a_damaged_file_is_trained_again_with_a_note(damage, images, cache, no_training, capsys):
    model, history = trained(small, images, **quick)
    (path,) = cache.rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    again, same = trained(small, images, **quick)
    assert "are damaged" in capsys.readouterr().out
    assert torch.equal(weights(model), weights(again))
    assert same.loss == history.loss
    no_training()  # the file is whole again
    assert torch.equal(weights(trained(small, images, **quick)[0]), weights(model))


def halved(model, x, y):
    return training.cross_entropy(model, x, y) / 2


def scaled(model, x, y, by=1.0, of=training.cross_entropy):
    return by * of(model, x, y)


def tanh():
    model = small()
    model.relu1 = nn.Tanh()
    return model


CHANGES = {
    "seed": {"seed": 1},
    "activation": {"build": tanh},
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 8},
    "pixels": {"images": make_images(seed=1)},
    "labels": {"images": Images(make_images().x, 1 - make_images().y, ("left", "right"), "halves")},
    "fewer images": {"images": make_images()[:40]},
    "model": {"build": lambda: models.mlp(9, pixels=16, classes=2)},
    "first weights": {"build": lambda: small().apply(lambda m: m.bias.data.zero_() if isinstance(m, nn.Linear) else None)},
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
        trained(**{"build": small, "images": make_images(), **quick, "epochs": 1, **change})
        assert len(files(cache)) == count


def test_the_seed_counts_also_where_the_first_weights_are_fixed(images, cache):
    fixed = seeded(small).state_dict()

    def build():
        model = small()
        model.load_state_dict(fixed)
        return model

    for seed in (0, 1):
        trained(build, images, seed=seed, **quick)
        assert len(files(cache)) == seed + 1


def test_naming_the_defaults_or_another_order_gives_the_same_key(images, no_training):
    trained(small, images, **quick)
    no_training()
    named = {"optimizer": training.rmsprop, "objective": training.cross_entropy, "validation": None, "seed": 0}
    trained(images=make_images(), build=lambda: models.mlp(8, pixels=16, classes=2), **named, **dict(reversed(quick.items())))


def test_the_key_holds_no_address_of_memory(images):
    """Else no other process would find the weights: an objective may be a partial that holds a function."""
    name = training._name("objective", partial(scaled, of=partial(scaled, of=halved)))
    assert "0x" not in name
    assert "halved" in name


def test_an_objective_edited_in_the_notebook_is_trained_anew(images, cache, tmp_path):
    for count, factor in enumerate((1, 2), start=1):
        source = tmp_path / f"cell{factor}.py"
        source.write_text(f"def mine(model, x, y):\n    return {factor} * model(x).square().mean()\n")
        cell = {}
        exec(compile(source.read_text(), source, "exec"), cell)  # noqa: S102  as Jupyter does
        trained(small, images, objective=cell["mine"], **quick)
        assert len(files(cache)) == count


def test_a_layer_of_the_students_own_is_part_of_the_key(images, cache):
    class Layer(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    first = Layer

    class Layer(nn.Linear):
        def forward(self, x):
            return -super().forward(x.flatten(1))

    for kind in (first, Layer):
        trained(lambda kind=kind: nn.Sequential(kind(16, 2)), images, **quick)
    assert len(files(cache)) == 2


def test_a_function_without_a_name_needs_a_key(images, cache):
    for setting in ("objective", "optimizer"):
        for value in (lambda *_: None, partial(lambda *_: None, 1)):
            with pytest.raises(ValueError, match=f"^{setting} is .*give it a `key` attribute"):
                trained(small, images, **{setting: value})
    objective = lambda model, x, y: F.cross_entropy(model(x), y)  # noqa: E731
    objective.key = "plain"
    trained(small, images, objective=objective, **quick)
    objective.key = "plainer"
    trained(small, images, objective=objective, **quick)
    assert len(files(cache)) == 2


def test_on_epoch_is_for_fit(images):
    with pytest.raises(ValueError, match="on_epoch is given.*call fit"):
        trained(small, images, on_epoch=print, **quick)


def test_a_cache_that_cannot_be_written_costs_only_the_cache(images, cache, capsys):
    cache.write_text("a file stands where the folder should be")
    model, history = trained(small, images, **quick)
    said = capsys.readouterr().out
    assert "could not be kept" in said
    assert "COURSE_CACHE" in said
    assert "damaged" not in said
    assert len(history.loss) == 2
    assert not model.training


def test_a_full_disk_leaves_no_half_file(images, cache, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    trained(small, images, **quick)
    assert "No space left" in capsys.readouterr().out
    assert files(cache) == []


def test_the_slides_network_is_shared_by_the_lectures(no_training, monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", "quick")
    images = make_images()
    images = Images(F.interpolate(images.x, size=(16, 16)), images.y, images.classes, images.source)
    model, history = training.slides_network(images, images[:8])
    assert model.dense2.out_features == 2
    assert len(history.validation) == 3
    no_training()
    assert torch.equal(weights(training.slides_network(images, images[:8])[0]), weights(model))
