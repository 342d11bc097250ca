"""Victims that are not neural networks, and both modes of batch norm at test time."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from course_utils.core import data, runtime, training
from course_utils.core.data import Images
from course_utils.methods import victims
from course_utils.methods.victims import accuracy_in_mode

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def halves() -> tuple[Images, Images]:
    train, test = data.load("digits")
    return train[:400], test


def normalised(n: int = 30) -> tuple[nn.Sequential, Images]:
    """A network with batch norm and dropout; its running statistics are far from the images'."""
    draw = runtime.generator(0)
    x = torch.rand(n, 2, 4, 4, generator=draw)
    y = torch.randint(5, (n,), generator=draw)
    images = Images(x, y, tuple("abcde"), "noise")
    with runtime.seeded(0):
        first = (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
        second = (nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        model = nn.Sequential(*first, *second, nn.Linear(8, 5))
        for _ in range(3):
            model(4 * images.x - 2)
    return model, images


def state(model):
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    return tensors, [vars(m).get("track_running_stats") for m in model.modules()]


def flat(images):
    return images.x.flatten(1).numpy()


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1] == b[1]


# --- fitted on pixels


def test_random_forest_is_sklearns_and_reproducible(halves):
    from sklearn.ensemble import RandomForestClassifier

    train, test = halves
    before, random = train.x.clone(), torch.get_rng_state()
    predict = victims.random_forest(train, trees=20, seed=3)
    forest = RandomForestClassifier(20, random_state=3).fit(flat(train), train.y.numpy())
    guesses = predict(test.x)
    assert guesses.dtype == torch.int64
    assert guesses.tolist() == forest.predict(flat(test)).tolist()
    assert guesses.tolist() == victims.random_forest(train, trees=20, seed=3)(test.x).tolist()
    assert guesses.tolist() != victims.random_forest(train, trees=20, seed=4)(test.x).tolist()
    assert victims.accuracy_of(predict, test) > 0.7
    assert torch.equal(train.x, before) and torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ValueError, match="trees is 0"):
        victims.random_forest(train, trees=0)


def test_forest_importance_finds_the_pixel_that_tells_the_class(halves):
    train, _ = halves
    marked = train.x.clone()
    marked[:, 0, 2, 5] = train.y / 9
    found = victims.forest_importance(replace(train, x=marked), trees=20)
    assert found.shape == train.x.shape[1:] and abs(found.sum().item() - 1) < 1e-4
    assert found.argmax() == 2 * train.x.shape[3] + 5
    with pytest.raises(ValueError, match="trees is 0"):
        victims.forest_importance(train, trees=0)


def test_the_default_forest_has_300_trees(halves, monkeypatch):
    import sklearn.ensemble

    asked = {}
    forest = sklearn.ensemble.RandomForestClassifier

    def watch(**settings):
        asked.update(settings)
        return forest(**{**settings, "n_estimators": 2})

    monkeypatch.setattr(sklearn.ensemble, "RandomForestClassifier", watch)
    victims.random_forest(halves[0][:20])
    assert asked == {"n_estimators": 300, "random_state": 0}


def test_svm_has_the_authors_settings(halves):
    from sklearn.svm import SVC

    train, test = halves
    machine = SVC(kernel="rbf", gamma=0.01, C=200).fit(flat(train), train.y.numpy())
    predict = victims.svm(train)
    assert predict(test.x).tolist() == machine.predict(flat(test)).tolist()
    assert predict(test.x).dtype == torch.int64
    assert victims.accuracy_of(predict, test) > 0.8
    assert predict(test.x).tolist() != victims.svm(train, gamma=5.0)(test.x).tolist()
    assert predict(test.x).tolist() != victims.svm(train, C=1e-4)(test.x).tolist()


def test_linear_svm_is_a_model_with_sklearns_planes(halves):
    from sklearn.svm import LinearSVC

    train, test = halves
    random = torch.get_rng_state()
    model = victims.linear_svm(train, C=0.02)
    assert torch.equal(torch.get_rng_state(), random) and not model.training
    machine = LinearSVC(C=0.02, dual=False).fit(flat(train), train.y.numpy())
    planes = torch.from_numpy(machine.decision_function(flat(test))).float()
    assert torch.allclose(training.predict(model, test.x), planes, atol=1e-4)
    assert training.accuracy(model, test) > 0.8
    assert model.output.weight.view(10, 1, 28, 28).shape == (10, 1, 28, 28)


def test_linear_svm_of_two_classes(halves):
    train, test = (
        Images(images.x[images.y < 2], images.y[images.y < 2], ("0", "1"), "digits")
        for images in halves
    )
    model = victims.linear_svm(train)
    assert model.output.weight.shape == (2, 784)
    sums = training.predict(model, test.x).sum(1)
    assert torch.allclose(sums, torch.zeros(1), atol=1e-5), "two sides of one plane"
    assert training.accuracy(model, test) > 0.95


def test_linear_svm_wants_every_class(halves):
    with pytest.raises(ValueError, match=r"images show 10 classes, none of \[3\]"):
        victims.linear_svm(halves[0][halves[0].y != 3])


def test_accuracy_of_counts():
    images = Images(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), ("a", "b"), "noise")
    assert victims.accuracy_of(lambda x: torch.tensor([0, 1, 0, 1]), images) == 0.5


# --- the two modes


def test_batch_statistics_use_the_batch_and_nothing_else():
    model, images = normalised()
    model.train()
    model[5].eval()
    before, flags = state(model), [module.training for module in model.modules()]
    with torch.no_grad(), victims.batch_statistics(model) as inside:
        assert inside is model
        out = model(images.x)
        assert torch.equal(out, model(images.x))  # dropout is off
    assert same(before, state(model)) and [module.training for module in model.modules()] == flags

    with torch.no_grad():  # by hand: train mode without dropout
        model.train()
        model[6].eval()
        assert torch.equal(out, model(images.x))
        assert not same(before, state(model))  # and that does move the statistics


def test_batch_statistics_are_left_as_found_after_an_error():
    model, images = normalised()
    model.eval()
    before = state(model)
    with pytest.raises(RuntimeError), victims.batch_statistics(model):
        model(images.x[:, :1])
    assert same(before, state(model)) and not any(module.training for module in model.modules())


def test_accuracy_in_both_modes():
    model, images = normalised(60)
    model.train()
    before, random = state(model), torch.get_rng_state()
    usual = training.accuracy(model, images)
    assert accuracy_in_mode(model, images) == accuracy_in_mode(model, images, "eval") == usual
    classes = training.predict(model, images.x).argmax(1)
    assert torch.equal(victims.predicted(model, images, batch_size=7), classes)
    with torch.no_grad(), victims.batch_statistics(model):
        whole = model(images.x).argmax(1)
    assert torch.equal(victims.predicted(model, images, "batch"), whole)
    share = (whole == images.y).float().mean().item()
    assert accuracy_in_mode(model, images, "batch") == share != usual
    assert same(before, state(model)) and model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_batches_are_shuffled_by_a_seed_and_about_equal():
    model, images = normalised(31)
    sizes, first = [], []

    def watch(_, inputs):
        sizes.append(len(inputs[0]))
        first.append(inputs[0][0].clone())

    hook = model[0].register_forward_pre_hook(watch)
    one = victims.predicted(model, images, "batch", batch_size=10)
    assert sizes == [8, 8, 8, 7] and not torch.equal(first[0], images.x[0])
    assert torch.equal(one, victims.predicted(model, images, "batch", batch_size=10))
    assert torch.equal(first[0], first[4])
    victims.predicted(model, images, "batch", batch_size=10, seed=1)
    assert not torch.equal(first[0], first[8])
    sizes.clear()
    assert 0 <= accuracy_in_mode(model, images, "batch", batch_size=30) <= 1
    assert sizes == [16, 15]  # thirty and one would leave a batch of one, which has no variance
    hook.remove()
    order = torch.randperm(31, generator=runtime.generator(0))
    with torch.no_grad(), victims.batch_statistics(model):
        expected = torch.cat([model(images.x[rows]).argmax(1) for rows in order.tensor_split(4)])
    assert torch.equal(one[order], expected)


def test_hit_rate_counts_the_class_each_class_is_sent_to():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3))
    shown = torch.tensor([1, 2, 0, 0, 1])  # what the model sees
    x, y = torch.eye(3)[shown].view(5, 1, 1, 3), torch.tensor([0, 1, 2, 0, 1])
    images = Images(x, y, tuple("abc"), "hand")
    target = (torch.arange(3) + 1) % 3
    assert victims.hit_rate(model, images, target) == pytest.approx(3 / 5)
    right = victims.hit_rate(model, images, torch.arange(3))
    assert right == accuracy_in_mode(model, images) == pytest.approx(2 / 5)
    for bad in (torch.arange(5), torch.arange(3).float()):
        with pytest.raises(ValueError, match="target is .*give one class per class"):
            victims.hit_rate(model, images, bad)


def test_hit_rate_knows_both_modes():
    model, images = normalised(60)
    rates = []
    for mode in ("eval", "batch"):
        hits = victims.predicted(model, images, mode) == (images.y + 1) % 5
        rates.append(victims.hit_rate(model, images, (torch.arange(5) + 1) % 5, mode))
        assert rates[-1] == hits.float().mean().item()
    assert rates[0] != rates[1]


def test_bad_modes_are_named():
    model, images = normalised(3)
    with pytest.raises(ValueError, match="mode is 'train'; use 'eval', or 'batch'"):
        accuracy_in_mode(model, images, "train")
    with pytest.raises(ValueError, match="batch_size is 0"):
        accuracy_in_mode(model, images, "batch", batch_size=0)
