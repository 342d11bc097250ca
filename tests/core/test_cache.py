"""The cache: what its key depends on, and what happens to files that are damaged or cannot be kept."""

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


def test_a_function_without_a_telling_name_needs_a_key():
    unnamed = lambda x: x  # noqa: E731
    with pytest.raises(ValueError, match="schedule is .*lambda.*give it a `key`"):
        cache.key(schedule=unnamed)
    unnamed.key = "identity"
    assert cache.key(schedule=unnamed) != cache.key(schedule=half)


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
