"""``each``: the same on workers as in turn."""

import os
import signal
import sys
from pathlib import Path

import pytest

from course_utils.core import files, runtime
from course_utils.lesson import parallel

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One worker with a single thread, which has folders of its own."""
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("worker")
    for name in ("COURSE_CACHE", "COURSE_RESULTS"):
        patch.setenv(name, str(place / name))
    options = {"memory_limit": 0, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        patch.undo()
        yield cluster


@pytest.fixture
def kernel(cluster, tmp_path, monkeypatch):
    """This process takes the part of a lecture's kernel at full scale."""
    monkeypatch.setenv("COURSE_SCALE", "full")
    monkeypatch.setenv("COURSE_SCHEDULER", cluster.scheduler_address)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def process(item):
    return os.getpid()


@pytest.mark.parametrize("missing", ["COURSE_SCHEDULER", "COURSE_SCALE"])
def test_items_are_computed_here_in_turn_unless_a_full_run_has_workers(
    kernel, monkeypatch, missing
):
    monkeypatch.delenv(missing)
    assert parallel.each(process, range(2)) == [os.getpid()] * 2
    assert parallel.each(process, []) == []


def test_rows_and_seeds_come_back_as_a_table(kernel):
    def place(row, seed):
        return row, seed, os.getpid()

    found = parallel.each_seed(place, ["a", "b"], range(3))
    cells = {row: [cell[:2] for cell in cells] for row, cells in found.items()}
    assert cells == {row: [(row, seed) for seed in range(3)] for row in "ab"}
    assert len({cell[2] for cells in found.values() for cell in cells}) == 6
    assert parallel.each_seed(place, ["a"], []) == {"a": []}


def test_a_training_gives_the_same_numbers_in_turn_and_on_workers(
    kernel, tmp_path, monkeypatch, capsys
):
    """And its weights come back from a worker that has a cache of its own."""
    size = 16

    def train(seed):
        import torch

        from course_utils.core import images, models, training

        with runtime.seeded(seed):
            x = torch.rand(40, 1, 4, 4)
        school = images.Images(x, (x.mean((1, 2, 3)) > 0.5).long(), ("dark", "light"), "noise")
        build = lambda: models.logistic(size, 2)  # noqa: E731
        model, history = training.trained(build, school, seed=seed, epochs=2, verbose=False)
        print("seed", seed)
        return history.loss, model(x).sum().item(), os.getpid()

    weights = tmp_path / "cache" / "weights"
    monkeypatch.setenv("COURSE_RUN", "a-run")
    on_workers = parallel.each(train, [3, 1])
    assert capsys.readouterr().out == "seed 3\nseed 1\n"
    assert len(list(weights.glob("*.safetensors"))) == 2
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "another"))
    monkeypatch.delenv("COURSE_SCHEDULER")
    in_turn = parallel.each(train, [3, 1])
    assert [found[:2] for found in on_workers] == [found[:2] for found in in_turn]
    assert len({pid for *_, pid in on_workers} | {os.getpid()}) == 3


def test_an_item_finds_the_settings_of_the_run(kernel, tmp_path, monkeypatch):
    def settings(item):
        names = ("COURSE_SCALE", "COURSE_CACHE", "OMP_NUM_THREADS", "COURSE_SCHEDULER")
        return [os.environ.get(name) for name in names]

    assert parallel.each(settings, [1]) == [["full", str(tmp_path / "cache"), "1", None]]
    monkeypatch.setenv("COURSE_RUN", "a-run")
    ((scale, cache, threads, scheduler),) = parallel.each(settings, [1])
    assert (scale, threads, scheduler) == ("full", "1", None)
    assert Path(cache).name == "course-a-run"
    assert parallel.each(lambda item: os.environ.get(item), ["MALLOC_TRIM_THRESHOLD_"]) == [None]


def test_the_error_of_the_first_item_that_fails_is_raised(kernel):
    class Odd(Exception):
        def __init__(self, one, two):  # pickle cannot make it again
            super().__init__(f"{one} and {two}")

    def fail(item):
        if item:
            raise item
        raise Odd(1, 2)

    with pytest.raises(KeyError, match="first"):
        parallel.each(fail, [KeyError("first"), ValueError("second")])
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        parallel.each(fail, [None])


def test_an_item_whose_process_is_killed_is_an_error_with_a_cure(kernel):
    def die(item):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="status -9; the usual cause is too little memory"):
        parallel.each(die, [1])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills otherwise")
def test_a_worker_that_is_killed_costs_no_item(kernel, tmp_path):
    marker = str(tmp_path / "killed")

    def kill_once(item):
        if item == 1 and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
        return item

    assert parallel.each(kill_once, range(3)) == [0, 1, 2] and os.path.exists(marker)


def test_files_of_a_cache_are_newer_once(tmp_path):
    for name in ("a.safetensors", "b.pt", ".part"):
        files.write_atomic(tmp_path / "weights" / name, name)
    weights, stamps = parallel.newer(tmp_path, {}, 100)
    assert weights == {"a.safetensors": b"a.safetensors", "b.pt": b"b.pt"}
    assert parallel.newer(tmp_path, stamps, 100) == ({}, {})
    older = dict.fromkeys(stamps, 0)
    assert parallel.newer(tmp_path, older, 100)[0] == {"b.pt": b"b.pt"}  # weights are final
    assert len(parallel.newer(tmp_path, {}, 1)[0]) == 1
