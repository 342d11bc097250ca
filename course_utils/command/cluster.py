"""Lectures side by side, as tasks on Dask: in processes of this machine, or on other machines.

``choose`` says how a command runs, ``finished`` runs the lectures. Workers on other machines need
no shared disk: notebooks, records and weights travel. Imports Dask only for parallel runs.
"""

import functools
import hashlib
import heapq
import logging
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from course_utils.command import notebooks, stopping
from course_utils.core import download, files
from course_utils.lesson import parallel

LECTURE_BYTES = 1.5e9  # memory that a lecture takes at quick scale
CONNECT_SECONDS = 20  # longest wait for a scheduler to answer
WORKER_SECONDS = 60  # longest wait for a worker to join
POLL_SECONDS = 0.3
COLLECT_SECONDS = 30  # between two looks for new weights on other machines
MOST_BYTES = 1_000_000_000  # of weights that go to the workers of another machine
PIECE = 32_000_000  # bytes of weights in one message
FETCH_SECONDS = 60  # longest wait for the result of a task that is done
MOST_DEATHS = 3  # of a lecture's workers
MANY_CORES = 16  # of the projection
# Else each worker shows a traceback at Ctrl-C
DEAF = "from course_utils.command import stopping; stopping.leave_to_parent()"
CURE = "pip install -e '.[cluster]'"


# --- how many


@dataclass(frozen=True)
class Engine:
    """How lectures run: one by one, in processes of this machine, or by a scheduler's workers."""

    jobs: int = 1
    scheduler: str = ""  # its address

    @property
    def parallel(self) -> bool:
        return self.jobs > 1 or bool(self.scheduler)


def choose(
    jobs: int | None, scheduler: str | None, lectures: int, device: str, say: Callable[[str], None]
) -> Engine:
    """The engine for ``--jobs`` and ``--scheduler``.

    Without both: a job per lecture, as far as cores and memory go; a single one on a GPU, and a
    single lecture has all cores for itself.

    Raises ``ValueError`` for both at once, less than one job, and parallel runs without Dask.
    """
    if jobs is not None and scheduler:
        raise ValueError(
            f"--jobs {jobs} starts workers on this machine, and --scheduler {scheduler} uses those "
            "that it has; give one of the two."
        )
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is {jobs}; give 1 or more.")
    if scheduler or jobs is not None:
        engine = Engine(jobs or 1, scheduler or "")
        if engine.parallel and not has_dask():
            wanted = f"--scheduler {scheduler}" if scheduler else f"--jobs {jobs}"
            raise ValueError(f"{wanted} needs Dask, which is not installed: {CURE}")
        return engine
    most = min(lectures, cores()) if device.startswith("cpu") else 1
    if most > 1 and not has_dask():
        say(f"One lecture after another; for {most} at once: {CURE}")
        return Engine()
    return Engine(min(most, fitting()) if most > 1 else 1)


def has_dask() -> bool:
    return find_spec("distributed") is not None


def fitting() -> int:
    """How many lectures the free memory holds, at least one."""
    import psutil

    return max(1, int(psutil.virtual_memory().available / LECTURE_BYTES))


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of some tasks ends if each worker always takes the longest that is left."""
    ends = [0.0] * workers
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def summary(seconds: Sequence[float], wall: float) -> str:
    """What a parallel run gained, and a projection for more cores from the lectures' own times."""
    many = makespan(seconds, MANY_CORES)
    return (
        f"{wall:.0f} s in all, where the lectures' own times add up to {sum(seconds):.0f} s; "
        f"on {MANY_CORES} cores: about {many:.0f} s "
        "(a projection: these times, the longest lectures first)"
    )


# --- what travels


@dataclass(frozen=True)
class Lecture:
    """A lecture on its way to a worker. ``code`` and ``data`` are checked on other machines."""

    stem: str
    text: str  # the notebook
    seconds: float  # limit of a cell
    records: dict[str, bytes]  # the files of results/, by name
    code: str = ""
    data: str = ""


@dataclass(frozen=True)
class Done:
    """A lecture on its way back: a ``runner.Outcome``, the notebook as executed, new records."""

    outcome: Any
    text: str
    records: dict[str, bytes]


@dataclass
class Tested:
    """What nbval said about a lecture."""

    seconds: float
    returncode: int
    text: str


def executed(lecture: Lecture) -> Done:
    """Executes a lecture in the working folder, which is empty: this runs in a task's process."""
    import nbformat

    from course_utils.command import runner

    path, environment = unpacked(lecture)
    notebook = notebooks.read(path)
    options = {"environment": environment, "seconds": lecture.seconds}
    outcome = runner.execute(notebook, path, on_cell=lambda number, total: None, **options)
    return Done(outcome, nbformat.writes(notebook), new_records(lecture, environment))


def tested(lecture: Lecture) -> Done:
    """Runs a lecture under nbval, like ``executed``."""
    path, environment = unpacked(lecture)
    started = time.monotonic()
    options = {"environment": environment, "seconds": lecture.seconds}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = notebooks.nbval(path, **options, **pipes, encoding="utf-8", errors="replace")
    outcome = Tested(time.monotonic() - started, done.returncode, done.stdout)
    return Done(outcome, "", new_records(lecture, environment))


def unpacked(lecture: Lecture) -> tuple[Path, dict[str, str]]:
    """Writes a lecture and the records into the working folder; the path and the environment.

    Raises ``ValueError`` on a worker that has other code or other data than the client.
    """
    if lecture.code and lecture.code != code_here():
        raise ValueError(
            "this worker has another version of the course or of Python: install the same there."
        )
    if lecture.data and lecture.data != data_here():
        raise ValueError(
            f"this worker has {data_here()}, and you have {lecture.data}: set COURSE_DATA there to "
            "a folder with MNIST, or connect it to the network."
        )
    place = Path.cwd()
    path = place / "lectures" / f"{lecture.stem}.ipynb"
    files.write_atomic(path, lecture.text)
    for name, content in lecture.records.items():
        files.write_atomic(place / "results" / name, content)
    folders = {"COURSE_RESULTS": str(place / "results"), "COURSE_STATE": str(place / "state")}
    return path, files.environment(**folders)


def records_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.json")}


def new_records(lecture: Lecture, environment: dict[str, str]) -> dict[str, bytes]:
    """The records that the lecture made or changed."""
    found = records_in(Path(environment["COURSE_RESULTS"]))
    return {name: text for name, text in found.items() if lecture.records.get(name) != text}


@functools.cache
def code_here() -> str:
    """Changes with Python's version and with any module of the course."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    package = files.ROOT / "course_utils"
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def data_here() -> str:
    """The data that lectures find on this machine; downloads MNIST where that can be done."""
    try:
        source = download.describe("mnist")
        download.prepare(source)
    except download.DataUnavailable:
        return "the embedded digits"
    return source.title


# --- a run


def finished(
    function: Callable[[Lecture], Done],
    paths: Sequence[Path],
    environment: dict[str, str],
    seconds: float,
    engine: Engine,
) -> Iterator[tuple[Path, Done | Exception]]:
    """Runs lectures as tasks: yields each as soon as it is done, or the error that ended it.

    Records and weights are stored before. Raises ``OSError`` where no scheduler answers.
    """
    from course_utils.command import screen

    by_stem = {path.stem: path for path in paths}
    results = files.results_dir()
    settings = {"seconds": seconds, "records": records_in(results)}
    if engine.scheduler:
        settings |= {"code": code_here(), "data": data_here()}
    lectures = []
    for path in in_order(by_stem.values()):
        lectures.append(Lecture(path.stem, path.read_text(encoding="utf-8"), **settings))
    with connected(engine) as client, screen.several() as running:
        run = Run(client, engine, environment)
        for lecture, done in run.tasks(function, lectures, running):
            if isinstance(done, Done):
                try:
                    for name, content in done.records.items():
                        files.write_atomic(results / name, content)
                except OSError as error:  # hours of computing are not lost, nor other lectures
                    files.say(f"{results / name} should hold\n{content.decode()}")
                    done = OSError(f"its records could not be stored: {files.in_words(error)}")
            yield by_stem[lecture.stem], done
        run.forget()


def in_order(paths: Iterable[Path]) -> list[Path]:
    """01 first: 00 and 02–04 use the network that it trains. Then from the end: long ones first."""
    return sorted(paths, key=lambda path: (path.stem.startswith("01"), path.stem), reverse=True)


@contextmanager
def connected(engine: Engine) -> Iterator:
    """A client of the scheduler, or of one with worker processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(parallel.QUIET))
        stack.enter_context(quiet_log())
        if not engine.scheduler:
            folder = tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True)
            options = dict(
                n_workers=engine.jobs,
                threads_per_worker=1,
                host="127.0.0.1",
                memory_limit=0,  # it would count the worker alone, not the task's process
                dashboard_address=None,
                # at a free port: on its usual one a second run would warn that it is taken
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                local_directory=stack.enter_context(folder),
                preload=DEAF,
                silence_logs=logging.CRITICAL,
            )
            if os.name == "posix":
                resource_tracker.ensure_running()  # in the block it would let Ctrl-C through
            with stopping.held():
                client = Client(stack.enter_context(LocalCluster(**options)))
            yield stack.enter_context(client)
            return
        try:
            client = Client(engine.scheduler, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise OSError(
                f"no scheduler answers at {engine.scheduler}. Start one with `dask scheduler`, "
                "give the address that it prints, and start workers with `dask worker ADDRESS`."
            ) from error
        yield stack.enter_context(client)


@contextmanager
def quiet_log() -> Iterator[None]:
    """Dask's own messages about lost connections would hide ours, which name the cure."""
    log = logging.getLogger("distributed")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@dataclass
class Run:
    """The tasks of one command on the workers of ``client``, and the weights between them."""

    client: Any
    engine: Engine
    environment: dict[str, str]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    given: set[str] = field(default_factory=set)  # workers that have our weights
    known: dict[str, int] = field(default_factory=dict)  # weights that we have, with stamps
    waiting: list[Lecture] = field(default_factory=list)
    places: dict[Any, tuple[Lecture, str]] = field(default_factory=dict)  # of tasks on workers
    deaths: dict[str, int] = field(default_factory=dict)  # of a lecture's workers
    seen: float = field(default_factory=time.monotonic)  # when there was a worker
    collected: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.cache = Path(self.environment.get("COURSE_CACHE") or files.cache_dir())
        self.variables = self.environment | parallel.ONE_THREAD
        if self.engine.scheduler:
            from course_utils.lesson import results

            # a stamp of 0: a worker's state of a training that is not over counts as newer
            self.known = dict.fromkeys(parallel.stamps(self.cache), 0)
            self.variables = parallel.settings(self.variables, folders=False)
            self.variables.setdefault("COURSE_COMMIT", results.commit())
            self.variables["COURSE_RUN"] = self.name

    def tasks(self, function: Callable, lectures: Sequence[Lecture], running: Callable) -> Iterator:
        """Runs ``function`` on each; yields ``(lecture, Done or error)`` as they end."""
        import cloudpickle

        code = cloudpickle.dumps(function)
        self.waiting = list(lectures)
        while self.waiting or self.places:
            try:
                workers = self.workers()
                given_up = self.give_up(workers)
                for worker in free_places(workers, [place for _, place in self.places.values()]):
                    if self.waiting:
                        self.give(workers)
                        lecture = self.waiting.pop(0)
                        self.places[self.submit(code, lecture, worker)] = (lecture, worker)
                ended = [task for task in self.places if task.done()]
                self.collect(now=bool(ended))
            except OSError as error:
                unfinished = [lecture for lecture, _ in self.places.values()] + self.waiting
                yield from ((lecture, lost(self.engine, error)) for lecture in unfinished)
                return
            yield from given_up
            for task in ended:
                found = result_of(task)
                if found is not None:
                    yield self.places.pop(task)[0], found
            running([lecture.stem for lecture, _ in self.places.values()])
            time.sleep(POLL_SECONDS)

    def workers(self) -> dict[str, int]:
        """The workers and their threads. Raises ``OSError`` if there is none for long."""
        found = self.client.nthreads()
        if found:
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > WORKER_SECONDS:
            raise OSError(f"no worker for {WORKER_SECONDS} s; start `dask worker ADDRESS`")
        return found

    def give_up(self, workers: dict[str, int]) -> list[tuple[Lecture, Exception]]:
        """Takes lectures back from workers that died; an error for those that died often."""
        errors = []
        for task, (lecture, place) in list(self.places.items()):
            if place in workers:
                continue
            task.cancel()
            del self.places[task]
            self.deaths[lecture.stem] = self.deaths.get(lecture.stem, 0) + 1
            if self.deaths[lecture.stem] < MOST_DEATHS:
                self.waiting.insert(0, lecture)
            else:
                told = f"its worker died {MOST_DEATHS} times; the usual cause is too little memory"
                errors.append(
                    (lecture, RuntimeError(f"{told}: take fewer jobs, or larger workers."))
                )
        return errors

    def submit(self, code: bytes, lecture: Lecture, worker: str):
        """The task of a lecture on a worker that has a place, and on no other."""
        import cloudpickle

        key = f"{lecture.stem}-{uuid.uuid4().hex}"
        arguments = (code, cloudpickle.dumps(lecture), self.variables)
        options = {"key": key, "workers": [worker], "pure": False}
        return self.client.submit(parallel.run_task, *arguments, lecture=True, **options)

    def give(self, workers: dict[str, int]) -> None:
        """Sends our weights, the newest first, to workers of other machines that lack them."""
        fresh = set(workers) - self.given
        self.given |= fresh
        if not self.engine.scheduler or not fresh:
            return
        for weights in pieces(self.cache / "weights"):
            options = {"workers": list(fresh), "on_error": "ignore"}
            self.client.run(parallel.give, self.name, weights, **options)

    def collect(self, *, now: bool) -> None:
        """Stores what workers of other machines have trained: ``now``, or when it is time."""
        due = now or time.monotonic() - self.collected > COLLECT_SECONDS
        while self.engine.scheduler and due:
            arguments = (self.name, self.known, PIECE)
            found = self.client.run(parallel.take, *arguments, on_error="ignore")
            for weights, stamps in found.values():
                parallel.keep_in(self.cache, weights)
                self.known |= stamps
            due = any(weights for weights, _ in found.values())
            self.collected = time.monotonic()

    def forget(self) -> None:
        """Removes this run's weights from the workers."""
        if self.engine.scheduler:
            with suppress(OSError):  # the scheduler is gone
                self.client.run(parallel.forget, self.name, on_error="ignore")


def free_places(workers: dict[str, int], taken: list[str]) -> list[str]:
    """A worker for each thread without a lecture, beginning with those that have the most."""
    free = {worker: threads - taken.count(worker) for worker, threads in workers.items()}
    places = []
    while any(count > 0 for count in free.values()):
        worker = max(free, key=free.get)
        places.append(worker)
        free[worker] -= 1
    return places


def pieces(folder: Path) -> Iterator[parallel.Weights]:
    """The weights in a folder, newest first, in pieces that fit a message."""
    paths = sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    piece = {}
    total = 0
    for path in paths:
        total += path.stat().st_size
        if total > MOST_BYTES:
            break
        piece[path.name] = path.read_bytes()
        if sum(map(len, piece.values())) > PIECE:
            yield piece
            piece = {}
    if piece:
        yield piece


def result_of(task) -> Done | Exception | None:
    """What a task gave back, or its error; None if its worker died before that was fetched."""
    from distributed import TimeoutError as TooLate

    try:
        answer = task.result(timeout=FETCH_SECONDS)
    except TooLate:
        return None
    except Exception as error:
        return error
    try:
        return answer.value()
    except Exception as error:
        return error


def lost(engine: Engine, error: OSError) -> Exception:
    """The error of a lecture whose workers are gone."""
    where = engine.scheduler or "this machine"
    reason = str(error).partition("\n")[0]
    return OSError(f"the workers at {where} are gone ({reason}); run it again to go on.")
