"""Computes the seeds or table rows of a full-scale lecture side by side: ``each``, ``each_seed``.

The rest is how a task runs on a worker of Dask, a whole lecture (``command/cluster.py``) as well as
one item: in a process of its own, from bytes to bytes. So a worker imports neither PyTorch nor
Jupyter, a task finds the settings of its run and leaves none behind, and its memory goes back.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from course_utils.core import files

T = TypeVar("T")
R = TypeVar("R")
Weights = dict[str, bytes]  # files of the weight cache, by name

POLL_SECONDS = 0.2
FINISHED = ".safetensors"  # files of the weight cache that never change


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]``; at full scale under a scheduler, items in parallel.

    There, ``COURSE_SCHEDULER`` names the scheduler, and each item is a task in a process of its
    own. Numbers are the same either way if ``function(item)`` depends on ``item`` and on constants
    only: it draws random numbers inside ``runtime.seeded`` or from a generator of its own, reads
    nothing that an earlier item left, and returns what it found, since changes to variables stay
    in its process. What it reads of the notebook travels with it: keep that small, and load data
    sets inside. What it prints is shown in the order of ``items``. Weights that it trained come
    into this process's cache.

    Raises:
        Exception: what ``function`` raises, for the first item that fails.
        RuntimeError: the process of an item was killed.
    """
    from course_utils.core import runtime

    address = os.environ.get("COURSE_SCHEDULER")
    if not address or runtime.scale() != "full":
        return [function(item) for item in items]
    import cloudpickle
    import dask
    from distributed import Client

    variables = settings(os.environ, folders=not os.environ.get("COURSE_RUN"))
    found = []
    with dask.config.set(QUIET), Client(address) as client:
        # one task holds the function: sent once to each worker, made again if its worker dies
        shared = client.submit(same, cloudpickle.dumps(function), pure=False)
        packed = [cloudpickle.dumps(item) for item in items]
        tasks = [client.submit(run_task, shared, item, variables, pure=False) for item in packed]
        for task in tasks:
            answer = task.result()
            if answer.printed:
                files.say(answer.printed.removesuffix("\n"))
            keep_in(files.cache_dir(), answer.weights)
            found.append(answer.value())
    return found


def each_seed(
    function: Callable[[T, int], R], rows: Iterable[T], seeds: Iterable[int]
) -> dict[T, list[R]]:
    """``{row: [function(row, seed) for seed in seeds]}``, all of them as items of ``each``."""
    rows, seeds = list(rows), list(seeds)
    found = each(lambda item: function(*item), [(row, seed) for row in rows for seed in seeds])
    return {row: found[i * len(seeds) : (i + 1) * len(seeds)] for i, row in enumerate(rows)}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
QUIET = {"distributed.admin.large-graph-warning-threshold": "1TB"}  # notebooks and data travel


def settings(environment: Mapping[str, str], *, folders: bool) -> dict[str, str]:
    """The course's variables in an environment; without those of folders for another machine."""
    found = {name: value for name, value in environment.items() if name.startswith("COURSE_")}
    found |= {name: environment[name] for name in ONE_THREAD if name in environment}
    return {name: value for name, value in found.items() if folders or name not in files.FOLDERS}


# --- on a worker of Dask


@dataclass
class Answer:
    """What comes back from a task."""

    result: bytes  # pickled: (True, value), or (False, error)
    printed: str
    weights: Weights = field(default_factory=dict)  # new ones, unless the cache is shared

    def value(self):
        """What the function returned; raises what it raised."""
        import cloudpickle

        good, value = cloudpickle.loads(self.result)
        if not good:
            raise value
        return value


def same(value: bytes) -> bytes:
    return value


def run_task(
    function: bytes, item: bytes, variables: dict[str, str], *, lecture: bool = False
) -> Answer:
    """Computes ``function(item)``, both pickled, in a child process with these variables.

    With ``COURSE_RUN`` among them, the name of a run, the child has the worker's own weight cache
    of that run, else the one that ``COURSE_CACHE`` names. A lecture gives its place on the worker
    away at once, so that its items find one even where there is a single worker.
    """
    from distributed import get_worker, secede

    worker = get_worker()
    key = worker.get_current_task()
    paths = [str(files.ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | variables | {"PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment.pop("COURSE_SCHEDULER", None)
    environment.pop("MALLOC_TRIM_THRESHOLD_", None)  # Dask's: trainings take twice as long
    if lecture:
        secede()
        environment["COURSE_SCHEDULER"] = worker.scheduler.address
    run = variables.get("COURSE_RUN")
    before = {}
    if run:
        environment["COURSE_CACHE"] = str(cache_of(worker, run))
        before = stamps(cache_of(worker, run))

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    options = {"dir": worker.local_directory, "prefix": "task-", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**options) as folder:
        answer = in_child(Path(folder), function, item, environment, wanted)
    if run and not lecture:  # those of a lecture are collected while it runs
        answer.weights = newer(cache_of(worker, run), before, most=sys.maxsize)[0]
    return answer


def in_child(
    folder: Path,
    function: bytes,
    item: bytes,
    environment: dict[str, str],
    wanted: Callable[[], bool],
) -> Answer:
    """Runs this module as a process in ``folder``; kills it when it is no longer ``wanted``.

    Raises ``RuntimeError`` if the process ends without an answer.
    """
    (folder / "function").write_bytes(function)
    (folder / "item").write_bytes(item)
    command = [sys.executable, "-m", "course_utils.lesson.parallel"]
    with open(folder / "printed", "wb") as out:
        options = {"stdin": subprocess.PIPE, "stdout": out, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, cwd=folder, env=environment, **options)
        try:
            while child.poll() is None and wanted():
                time.sleep(POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
    printed = (folder / "printed").read_text(encoding="utf-8", errors="replace")
    answer = folder / "answer"
    if answer.exists():
        return Answer(answer.read_bytes(), printed)
    last = printed.strip().rpartition("\n")[2]
    raise RuntimeError(
        f"the process of a task ended with status {child.returncode} {last}".rstrip()
        + "; the usual cause is too little memory: take fewer jobs."
    )


# --- the weights on a worker without the client's disk


def cache_of(worker, run: str) -> Path:
    """The worker's own weight cache for one run."""
    return Path(worker.local_directory) / f"course-{run}"


def stamps(cache: Path) -> dict[str, int]:
    """The files of a weight cache and when each was written, in nanoseconds."""
    found = {}
    for path in (cache / "weights").glob("[!.]*"):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except OSError:  # a checkpoint disappears when its training is over
            continue
    return found


def newer(cache: Path, known: dict[str, int], most: int) -> tuple[Weights, dict[str, int]]:
    """Files that ``known`` lacks, or has in an older state, and their stamps.

    At most about ``most`` bytes of them: one file more than fits.
    """
    weights = {}
    stamped = {}
    size = 0
    for name, stamp in stamps(cache).items():
        old = known.get(name)
        if size > most or old is not None and (name.endswith(FINISHED) or stamp <= old):
            continue
        try:
            weights[name] = (cache / "weights" / name).read_bytes()
        except OSError:
            continue
        stamped[name] = stamp
        size += len(weights[name])
    return weights, stamped


def keep_in(cache: Path, weights: Weights) -> None:
    """Writes files into a weight cache."""
    for name, content in weights.items():
        files.write_atomic(cache / "weights" / Path(name).name, content)


def give(run: str, weights: Weights, dask_worker=None) -> None:
    """Puts weights into this worker's cache of a run."""
    keep_in(cache_of(dask_worker, run), weights)


def take(run: str, known: dict[str, int], most: int, dask_worker=None):
    """What is ``newer`` in this worker's cache of a run."""
    return newer(cache_of(dask_worker, run), known, most)


def forget(run: str, dask_worker=None) -> None:
    """Removes this worker's cache of a run."""
    shutil.rmtree(cache_of(dask_worker, run), ignore_errors=True)


# --- the child process


def main() -> None:
    """Computes what the files ``function`` and ``item`` hold, and writes the file ``answer``."""
    import cloudpickle

    threading.Thread(target=end_with_worker, daemon=True).start()
    try:
        function = cloudpickle.loads(Path("function").read_bytes())
        item = cloudpickle.loads(Path("item").read_bytes())
        answer = cloudpickle.dumps((True, function(item)))
    except (Exception, SystemExit) as error:
        answer = packed_error(error)
    files.write_atomic(Path("answer"), answer)


def packed_error(error: BaseException) -> bytes:
    """An answer that raises ``error``, or where that cannot travel, one that tells it."""
    import cloudpickle

    try:
        packed = cloudpickle.dumps((False, error))
        cloudpickle.loads(packed)
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        return cloudpickle.dumps((False, told))
    return packed


def end_with_worker() -> None:
    """Ends this process when its worker does: then the pipe on standard input closes."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
