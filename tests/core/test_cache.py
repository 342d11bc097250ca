"""The cache: what its key depends on, and what happens to files that are damaged or cannot be kept."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from course_utils.core import cache
from course_utils.core.data import Images


class Own(nn.Module):
    def forward(self, x):
        return x


def half(x):
    return x / 2


X = torch.linspace(0, 1, 16).reshape(4, 1, 2, 2)
IMAGES = Images(X, torch.tensor([0, 1, 0, 1]), ("a", "b"), "line")
INGREDIENTS = [
    *(1, 1.5, "text", None, (1, 2), [1, [2]], {"a": 1, "b": 2}, {"a": 1, "b": half}),
    *(X, X[:2], X.double(), X.flip(0), X.reshape(2, 2, 2, 2), IMAGES, IMAGES[:2]),
    *(half, partial(half), partial(half, 1), partial(half, x=1), partial(half, x=X)),
    *(nn.ReLU(), nn.Tanh(), Own(), nn.Linear(2, 1), nn.BatchNorm1d(2), torch.optim.SGD),
]


def test_every_ingredient_has_a_key_of_its_own_and_the_same_one_again():
    keys = [cache.key(value=value) for value in INGREDIENTS]
    assert len(set(keys)) == len(keys)
    assert keys == [cache.key(value=value) for value in INGREDIENTS]
    assert cache.key(value=1) != cache.key(other=1)
    assert cache.key(a=1, b=2) == cache.key(b=2, a=1)
    assert cache.key(value={"a": 1, "b": 2}) == cache.key(value={"b": 2, "a": 1})


def test_weights_and_buffers_of_a_model_count():
    model = nn.BatchNorm1d(2)
    before = cache.key(model=model)
    model.running_mean[0] = 1
    assert cache.key(model=model) != before


def test_what_pytorch_is_set_to_counts():
    before = cache.key(value=1)
    torch.set_default_dtype(torch.float64)
    try:
        assert cache.key(value=1) != before
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu"):
        assert cache.key(value=1) != before
    assert cache.key(value=1) == before


@pytest.mark.parametrize("folder", ["core", "methods"])
def test_changed_code_has_another_key(folder, tmp_path, monkeypatch):
    for name in ("core", "methods", "lesson"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("a = 1\n")
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)

    def key():
        cache.code.cache_clear()
        return cache.key(value=1)

    try:
        before = key()
        (tmp_path / "lesson" / "module.py").write_text("a = 2\n")
        assert key() == before
        (tmp_path / folder / "module.py").write_text("a = 2\n")
        assert key() != before
    finally:
        cache.code.cache_clear()


def test_weights_come_back_with_their_metadata(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    cache.keep_weights(tmp_path / "w.safetensors", model, eps="0.3")
    assert cache.read_weights(tmp_path / "w.safetensors", other) == {"eps": "0.3"}
    assert torch.equal(model.weight, other.weight)
    assert cache.read_weights(tmp_path / "absent.safetensors", other) is None


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def with_buffer(value):
    model = nn.Linear(2, 2)
    model.register_buffer("extra", value)
    return model


KEPT = {
    "tied": tied,
    "number": lambda: with_buffer(torch.tensor(3)),
    "transposed": lambda: with_buffer(torch.rand(2, 3).T),
    "view of a parameter": lambda: with_buffer(torch.rand(4)[1:3]),
    "channels last": lambda: nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last),
    "expanded": lambda: with_buffer(torch.tensor(0.5).expand(1, 3, 1, 1)),
    "bfloat16": lambda: nn.Linear(2, 2).bfloat16(),
    "complex": lambda: with_buffer(torch.rand(2, dtype=torch.complex64)),
    "empty": lambda: with_buffer(torch.rand(0, 3)),
}


@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_weights_of_any_kind_come_back(build, tmp_path):
    model = build()
    other = build()
    cache.keep_weights(tmp_path / "w.safetensors", model)
    assert cache.read_weights(tmp_path / "w.safetensors", other) == {}
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_tied_weights_stay_tied(tmp_path):
    other = tied()
    cache.keep_weights(tmp_path / "w.safetensors", tied())
    cache.read_weights(tmp_path / "w.safetensors", other)
    assert other[0].weight is other[1].weight


NOT_KEPT = {
    "extra state": lambda: Extra(2, 2),
    "lazy": lambda: nn.LazyLinear(2),
    "sparse": lambda: with_buffer(torch.eye(2).to_sparse()),
    "complex of 128 bits": lambda: with_buffer(torch.rand(2, dtype=torch.complex128)),
    "meta": lambda: nn.Linear(2, 2, device="meta"),
}


@pytest.mark.parametrize("build", NOT_KEPT.values(), ids=NOT_KEPT)
def test_weights_that_cannot_be_kept_cost_a_message(build, tmp_path, capsys):
    cache.keep_weights(tmp_path / "w.safetensors", build())
    assert "could not be kept" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    cache.keep_state(tmp_path / "state.pt", {"lock": threading.Lock()})
    assert "could not be kept" in capsys.readouterr().out


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    path = tmp_path / "w.safetensors"
    cache.keep_weights(path, model)
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert cache.read_weights(path, other) is None
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    fitting = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    bias = fitting[0].bias.clone()
    assert cache.read_weights(path, fitting, lambda metadata: metadata["history"]) is None
    assert torch.equal(fitting[0].bias, bias)
    assert capsys.readouterr().out.count("are damaged") == 2


def test_a_damaged_file_is_said_and_passed_over(tmp_path, capsys):
    for name in ("w.safetensors", "state.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    assert cache.read_weights(tmp_path / "w.safetensors", nn.Linear(3, 2)) is None
    assert cache.read_state(tmp_path / "state.pt") is None
    said = capsys.readouterr().out
    assert "w.safetensors are damaged" in said and "state.pt is damaged" in said


def test_a_state_comes_back_and_a_closed_folder_costs_a_message(tmp_path, capsys):
    cache.keep_state(tmp_path / "state.pt", {"x": X, "n": 3})
    state = cache.read_state(tmp_path / "state.pt")
    assert torch.equal(state["x"], X) and state["n"] == 3
    (tmp_path / "file").write_text("")
    cache.keep_state(tmp_path / "file" / "state.pt", {})
    assert "could not be kept" in capsys.readouterr().out


def at_once(*functions):
    """Calls functions in threads of their own, at the same time; what they returned."""
    with ThreadPoolExecutor() as pool:
        return [task.result() for task in [pool.submit(function) for function in functions]]


def test_one_at_a_time_works_on_a_file(tmp_path):
    inside = []

    def work():
        with cache.alone(tmp_path / "weights" / "w.safetensors"):
            inside.append("in")
            time.sleep(0.2)
            inside.append("out")

    at_once(work, work)
    assert inside == ["in", "out", "in", "out"]
    with cache.alone(tmp_path / "weights" / "w"), cache.alone(tmp_path / "weights" / "another"):
        pass


def test_a_long_wait_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.1)

    def work():
        with cache.alone(tmp_path / "weights" / "w.safetensors"):
            time.sleep(0.5)

    at_once(work, work)
    assert "Another process has been making w.safetensors" in capsys.readouterr().out


def test_without_locks_nobody_waits(tmp_path, capsys):
    (tmp_path / "locks").write_text("a file where the folder belongs")
    with cache.alone(tmp_path / "weights" / "w"), cache.alone(tmp_path / "weights" / "w"):
        pass
    assert capsys.readouterr().out == ""
