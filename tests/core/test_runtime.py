"""Scale, device and seeds."""

import os
import warnings
from types import SimpleNamespace

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


def test_device_can_be_chosen_and_is_put_in_words(env, monkeypatch):
    env("COURSE_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")
    for threads, words in [(1, "cpu, 1 thread"), (2, "cpu, 2 threads")]:
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert runtime.device_name() == words


@pytest.mark.parametrize("value", ["gpu", "cuda:99", "cpu cuda", "meta", "hpu", "cpu\r", " ", "\0"])
def test_a_device_that_is_not_there_is_named(value, monkeypatch):
    monkeypatch.setattr(os, "environ", {"COURSE_DEVICE": value})
    with pytest.raises(ValueError) as caught:
        runtime.device()
    told = str(caught.value)
    assert told.startswith(f"COURSE_DEVICE is {value!r}, which") and "unset it" in told


@pytest.fixture
def machine(monkeypatch):
    """``machine("cuda", "mps", broken=…)`` has these devices; a device's first kernel may fail.

    Gives the list of devices on which a kernel was tried.
    """
    tried = []

    class Broken(torch.Tensor):
        def sum(self):
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with …")

    class Wrong(torch.Tensor):
        def sum(self):
            return torch.tensor(0.0)

    def make(*names, broken=(), wrong=()):
        plain = torch.ones

        def ones(size, device):
            tried.append(device)
            kind = device.partition(":")[0]
            if kind in broken:
                return plain(size).as_subclass(Broken)
            return plain(size).as_subclass(Wrong) if kind in wrong else plain(size)

        def empty(size, device):
            return SimpleNamespace(device=torch.device(device))

        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(torch, "empty", empty)
        for name, kind in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
            monkeypatch.setattr(kind, "is_available", lambda there=name in names: there)
        return tried

    runtime.trouble.cache_clear()
    yield make
    runtime.trouble.cache_clear()


@pytest.mark.parametrize("names, kind", [(["cuda", "mps"], "cuda"), (["mps"], "mps"), ([], "cpu")])
def test_without_a_wish_the_best_device_is_taken(names, kind, machine):
    machine(*names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime.device().type == kind


@pytest.mark.parametrize(
    "names, broken, kind",
    [
        (["cuda"], ["cuda"], "cpu"),
        (["mps"], ["mps"], "cpu"),
        (["cuda", "mps"], ["cuda"], "mps"),
        (["cuda", "mps"], ["cuda", "mps"], "cpu"),
    ],
)
def test_a_gpu_that_runs_nothing_is_passed_over_with_a_warning(names, broken, kind, machine):
    tried = machine(*names, broken=broken)
    for _ in range(3):
        with pytest.warns(UserWarning) as told:
            assert runtime.device().type == kind
        said = [str(warning.message) for warning in told]
        assert len(said) == len(broken)
        for name, text in zip(broken, said, strict=True):
            assert f"has {name}" in text and "(CUDA error: no kernel image is available)" in text
    assert len(tried) == len(set(tried)), "one kernel for each device"


def test_a_device_that_computes_wrongly_cannot_be_used(machine):
    machine("mps", wrong=["mps"])
    with pytest.warns(UserWarning, match=r"1 \+ 1 is 0 there"):
        assert runtime.device() == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1", "mps"])
def test_a_wish_that_runs_nothing_is_an_error(wanted, machine, env):
    machine("cuda", "mps", broken=["cuda", "mps"])
    env("COURSE_DEVICE", wanted)
    with pytest.raises(ValueError, match=f"COURSE_DEVICE is '{wanted}'.*no kernel image.*unset"):
        runtime.device()
    env("COURSE_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")


def test_seeds_leave_a_gpu_that_runs_nothing_alone(machine, monkeypatch):
    """As where its driver fails: then even the state of its random numbers cannot be read."""
    machine("cuda", broken=["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with runtime.seeded(0):
        first = torch.rand(3)
    with runtime.seeded(0):
        assert torch.equal(torch.rand(3), first)


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
