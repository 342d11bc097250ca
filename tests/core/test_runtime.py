"""Scale, device and seeds."""

import pytest
import torch

from course_utils.core import runtime


@pytest.fixture(autouse=True)
def env(monkeypatch):
    for name in ("SCALE", "DEVICE"):
        monkeypatch.delenv(f"COURSE_{name}", raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize(
    "value, scale, epochs",
    [(None, "quick", 3), ("", "quick", 3), ("quick", "quick", 3), ("full", "full", 10)],
)
def test_scale_picks_the_number(value, scale, epochs, env):
    if value is not None:
        env("COURSE_SCALE", value)
    assert (runtime.scale(), runtime.pick(quick=3, full=10)) == (scale, epochs)


@pytest.mark.parametrize("value", ["Full", "fast", "1"])
def test_an_unknown_scale_names_the_choices(value, env):
    env("COURSE_SCALE", value)
    for ask in (runtime.scale, lambda: runtime.pick(quick=1, full=2)):
        with pytest.raises(ValueError, match=f"COURSE_SCALE is '{value}'.*quick, full.*unset"):
            ask()


def test_pick_has_no_order_to_confuse():
    with pytest.raises(TypeError):
        runtime.pick(3, 10)


def test_device_can_be_chosen_and_is_put_in_words(env):
    env("COURSE_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")
    assert runtime.device_name() == f"cpu, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("value", ["gpu", "cuda:99", "cpu cuda"])
def test_a_device_that_is_not_there_is_named(value, env):
    env("COURSE_DEVICE", value)
    with pytest.raises(ValueError, match=f"COURSE_DEVICE is '{value}'.*unset it"):
        runtime.device()


@pytest.mark.parametrize("cuda, mps, kind", [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_without_a_wish_the_best_device_is_taken(cuda, mps, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert runtime.device().type == kind


@pytest.fixture
def same_random_state():
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def from_a_generator(seed):
    return torch.rand(5, generator=runtime.generator(seed))


def inside_seeded(seed):
    with runtime.seeded(seed):
        return torch.rand(5)


@pytest.mark.parametrize("draw", [from_a_generator, inside_seeded])
def test_a_seed_repeats_and_leaves_the_random_state_alone(draw, same_random_state):
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_seeded_gives_the_random_state_back_after_an_error(same_random_state):
    with pytest.raises(KeyError), runtime.seeded(0):
        torch.rand(5)
        raise KeyError


def test_versions_and_time():
    assert {"python", "torch"} <= runtime.versions().keys()
    assert 0 < runtime.elapsed() < runtime.elapsed()
