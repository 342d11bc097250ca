"""Networks that come with the course: kept, found again, and named when they are damaged."""

import pytest
import torch

from course_utils.core import models, stored


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    return tmp_path


def test_a_kept_network_comes_back_with_its_facts(folder):
    model = models.logistic(4, 3)
    path = stored.save("small", "MNIST", model, eps="0.3")
    assert path == folder / "small-mnist.safetensors"
    back = models.logistic(4, 3).train()
    assert stored.load("small", "MNIST", back) == {"eps": "0.3"}
    assert torch.equal(back.output.weight, model.output.weight) and not back.training


def test_all_but_mnist_share_a_file(folder):
    assert stored.save("small", "anything", models.logistic(4)).name == "small-digits.safetensors"
    assert stored.load("small", "embedded digits", models.logistic(4)) == {}


def test_a_file_that_is_missing_damaged_or_of_another_network_is_named(folder, capsys):
    message = "(?s)small-mnist.safetensors is missing or damaged .*install the course again"
    path = stored.save("small", "MNIST", models.logistic(4))
    whole = path.read_bytes()
    for damage in (
        path.unlink,
        lambda: path.write_bytes(whole[:-9]),
        lambda: stored.save("small", "MNIST", models.logistic(5)),
    ):
        damage()
        with pytest.raises(RuntimeError, match=message):
            stored.load("small", "MNIST", models.logistic(4))
    assert capsys.readouterr().out == ""
