"""The ``course`` command, on nbclient, nbconvert, nbval and Jupyter.

Each command imports what it needs itself: ``course doctor`` must run where packages are broken or
missing, and ``course --help`` and ``course list`` must be quick.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from course_utils.command import notebooks, stopping
from course_utils.core import files

Options = argparse.Namespace
NBVAL_NEEDS = "pytest nbval ipykernel matplotlib jaxtyping safetensors anywidget rich".split()


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0: all is well; 1: a lecture, claim, check or write failed; 2: the command makes no sense; 130:
    it was stopped by Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")  # a pipe on Windows may not know ✔
    stopping.answer_ctrl_c()
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (open_lab, present):
        parser.error(f"unknown: {' '.join(rest)}")
    options.rest = [argument for argument in rest if argument != "--"]
    try:
        if options.command in (run, refresh, test_gpu, write_results):
            import_torch()
        return options.command(options)
    except BrokenPipeError:  # the reader, such as head, has all that it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        say(f"course: {error}", error=True)
        return 2
    except OSError as error:
        say(f"course: {files.in_words(error)}", error=True)
        return 1
    except KeyboardInterrupt:
        say("\nstopped", error=True)
        return 130


def import_torch() -> None:
    """Imports PyTorch, which aborts where Ctrl-C comes in the midst of it."""
    with stopping.held(), suppress(Exception):  # the command says what is wrong
        import torch  # noqa: F401


def say(text: str, *, error: bool = False) -> None:
    """Prints ``text``, in colour on a terminal; plainly where rich is missing."""
    try:
        from course_utils.command import screen
    except ImportError:  # `course doctor` names the cure
        files.say(text, error=error)
    else:
        screen.say(text, error=error)


# --- the arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course", description="A hands-on course on adversarial machine learning."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[Options], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    text = "execute lectures headless; exit status 0 only when all ran and every claim holds"
    add_run_arguments(add("run", run, text))
    add("doctor", check_setup, "say what is wrong with this machine's set-up, and the cure")
    text = "JupyterLab on your own copy of the lectures; further arguments go to jupyter lab"
    add("lab", open_lab, text)
    text = "a lecture as live slides; further arguments go to jupyter lab"
    number = "number of the lecture, such as 03"
    add("present", present, text).add_argument("lecture", metavar="NN", help=number)
    add("list", list_lectures, "the lectures and their titles")
    text = "execute the committed notebooks in place (quick scale, MNIST, CPU)"
    sub = add("refresh", refresh, text)
    add_numbers(sub)
    add_engine(sub)
    sub = add("results", write_results, "write the pages of results/: tables and claims")
    sub.add_argument("--check", action="store_true", help="only say whether it is up to date")
    text = "nbval on CUDA, lecture by lecture: quick, then full; COURSE_SCALE=quick leaves out full"
    sub = add("test-gpu", test_gpu, text)
    add_numbers(sub)
    add_engine(sub)
    text = "store the tables of the full runs under results/"
    sub.add_argument("--record", action="store_true", help=text)
    return parser


def add_numbers(parser: argparse.ArgumentParser) -> None:
    text = "numbers of lectures, such as 00 03; all if none is given"
    parser.add_argument("lectures", nargs="*", metavar="NN", help=text)


def add_engine(parser: argparse.ArgumentParser) -> None:
    text = "lectures at once, one thread each; default: as many as cores and memory allow"
    parser.add_argument("--jobs", type=int, metavar="N", help=text)
    text = "run them on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786"
    parser.add_argument("--scheduler", metavar="ADDRESS", help=text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_numbers(parser)
    add_engine(parser)
    text = "quick (minutes) or full (the papers' own sizes); default: COURSE_SCALE, else quick"
    parser.add_argument("--scale", choices=tuple(notebooks.CELL_SECONDS), help=text)
    text = "store the tables under results/; needs the full scale"
    parser.add_argument("--record", action="store_true", help=text)
    text = "folder for the executed notebooks and pages; default: build/lectures"
    parser.add_argument("--out", metavar="DIR", help=text)
    text = "print the pages as PDF too; needs Chromium or Chrome"
    parser.add_argument("--pdf", action="store_true", help=text)


# --- running the lectures


def run(options: Options) -> int:
    from course_utils.command import pages
    from course_utils.core import runtime

    scale = options.scale or runtime.scale()
    if options.record and scale != "full":
        raise ValueError(
            f"--record stores what the full scale shows, and the scale is {scale}. "
            "Add --scale full, or leave out --record."
        )
    paths = notebooks.find(options.lectures)
    out = files.ROOT / "build" / "lectures"
    if options.out:
        out = files.folder("--out", options.out)
    files.check_writable("--out", out)
    if options.pdf:
        pages.browser()  # else it would be missed after the run
    engine = choose_engine(options, paths, str(runtime.device()))

    def store(notebook, path: Path, outcome) -> None:
        facts = {"seconds": outcome.seconds, "error": outcome.error}
        notebook.metadata.setdefault("course", {}).update(facts)
        pages.export(notebook, path, out, paths)

    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        environment = run_environment(state, scale, options.record)
        outcomes = run_all(paths, environment, scale, store, engine)
    remarks = [f"{scale} scale; notebooks and pages to read: {out / 'index.html'}"]
    if engine.parallel:
        from course_utils.command import cluster

        seconds = [outcome.seconds for outcome in outcomes]
        remarks.insert(0, cluster.summary(seconds, time.monotonic() - started))
    status = report(outcomes, "\n".join(remarks))
    pages.write_index(out, [outcome.lecture for outcome in outcomes if outcome.error])
    if options.pdf:
        pages.print_all(out, paths)
    if options.record:
        write_page()
    return status


def choose_engine(options: Options, paths: list[Path], device: str):
    """How the lectures run: one by one, in several processes, or on a cluster."""
    from course_utils.command import cluster

    return cluster.choose(options.jobs, options.scheduler, len(paths), device, say)


def run_environment(state: str, scale: str, record: bool, **variables: str) -> dict[str, str]:
    """The environment of a run at this scale; ``record`` stores the tables of the full scale.

    Raises ``ValueError`` where kernels or tables have no folder: before hours of computing.
    """
    notebooks.check_jupyter()
    if "COURSE_CACHE" not in variables:
        warn_of_cache()
    if record:
        files.check_writable("COURSE_RESULTS", files.results_dir())
    if record and scale == "full":
        variables["COURSE_RECORD"] = "1"
    return notebooks.kernel_environment(state, COURSE_SCALE=scale, **variables)


def warn_of_cache() -> None:
    """Says that trained weights cannot be kept; a classroom's cache may be for reading only."""
    place = files.cache_dir()
    try:
        files.check_writable("COURSE_CACHE", place)
    except ValueError as error:
        say(f"{error} Until then every lecture trains what it does not find there.")


def refresh(options: Options) -> int:
    from course_utils.core import data

    paths = notebooks.find(options.lectures)
    folder = files.lectures_dir()
    files.check_writable("COURSE_LECTURES", folder)
    engine = choose_engine(options, paths, "cpu")
    source = data.load("mnist")[0].source
    if source != "MNIST":
        raise ValueError(
            f"the committed notebooks show MNIST, and there is only {source}. "
            "Connect to the network, or set COURSE_DATA."
        )

    def store(notebook, path: Path, outcome) -> None:
        if outcome.good:
            notebooks.tidy(notebook)
            notebooks.write(notebook, path)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        # an empty cache, so that a reader sees the networks being trained
        variables = {"COURSE_CACHE": f"{own}/cache", "COURSE_DEVICE": "cpu"}
        environment = run_environment(f"{own}/state", "quick", False, **variables)
        outcomes = run_all(paths, environment, "quick", store, engine)
    return report(outcomes, f"good lectures were written to {folder}; the others are unchanged")


def run_all(
    paths: list[Path], environment: dict[str, str], scale: str, store: Callable, engine
) -> list:
    """Runs the lectures, says how each went, and returns their outcomes in the order of ``paths``.

    Calls ``store(notebook, path, outcome)`` after each that ran or began to.
    """
    outcomes = {}
    executed = executed_together if engine.parallel else executed_in_turn
    for path, notebook, outcome in executed(paths, environment, scale, engine):
        try:
            if notebook is not None:
                store(notebook, path, outcome)
        except Exception as error:  # such as a full disk; the other lectures still run
            reason = files.in_words(error) if isinstance(error, OSError) else str(error)
            reason = reason.partition("\n")[0]
            outcome.error = f"{outcome.error}\nit could not be stored: {reason}".lstrip()
        if outcome.error:
            error = outcome.error.replace("\n", "\n  ")
            say(f"{path.stem}: FAILED, {outcome.seconds:.0f} s\n  {error}")
        else:
            say(f"{path.stem}: ran, {outcome.seconds:.0f} s")
        outcomes[path] = outcome
    return [outcomes[path] for path in paths]


def executed_in_turn(
    paths: list[Path], environment: dict[str, str], scale: str, engine
) -> Iterator[tuple]:
    """Executes one lecture after another; yields path, notebook and outcome of each."""
    from course_utils.command import runner, screen

    for path in paths:
        notebook = notebooks.read(path)
        with screen.progress(path.stem) as on_cell:
            outcome = runner.execute(
                notebook,
                path,
                environment=environment,
                seconds=notebooks.CELL_SECONDS[scale],
                on_cell=on_cell,
            )
        yield path, notebook, outcome


def executed_together(
    paths: list[Path], environment: dict[str, str], scale: str, engine
) -> Iterator[tuple]:
    """Executes lectures side by side; yields each as soon as it is done.

    Where there is no executed notebook, since its task was lost, it is None.
    """
    import nbformat

    from course_utils.command import cluster, runner

    seconds = notebooks.CELL_SECONDS[scale]
    for path, done in cluster.finished(cluster.executed, paths, environment, seconds, engine):
        if isinstance(done, Exception):
            yield path, None, runner.Outcome(path.stem, 0.0, error=str(done) or repr(done))
        else:
            yield path, nbformat.reads(done.text, as_version=4), done.outcome


def report(outcomes: list, remark: str) -> int:
    """Prints the closing table, what is wrong, and a remark; returns the exit status."""
    from course_utils.command import runner, screen

    total = runner.Outcome("all", 0.0)
    for outcome in outcomes:
        total.seconds += outcome.seconds
        total.claims += outcome.claims
    rows = [outcome.row for outcome in [*outcomes, total]]
    screen.show_table(("lecture", "time", "claims"), rows)
    for outcome in outcomes:
        for line in outcome.broken:
            say(f"{line}  ({outcome.lecture})")
        if outcome.error:
            say(f"{outcome.lecture} FAILED: {outcome.error.splitlines()[-1].strip()}")
    say(remark)
    return int(not all(outcome.good for outcome in outcomes))


# --- test-gpu


def test_gpu(options: Options) -> int:
    from course_utils.command import screen

    device, where = device_to_test()
    scales = scales_to_test(options.record)
    paths = notebooks.find(options.lectures)
    engine = choose_engine(options, paths, device)
    say(f"Running on {where}")
    rows = []
    failed = set()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        for scale in scales:
            variables = {"COURSE_DEVICE": device, "COURSE_COMMAND": "course test-gpu --record"}
            environment = run_environment(state, scale, options.record, **variables)
            todo = [path for path in paths if path not in failed]
            tested = tested_together if engine.parallel else tested_in_turn
            done = {path: cells for path, *cells in tested(todo, environment, scale, engine)}
            for path in paths:
                # at full scale it would take hours to fail again
                time_and_result = done.get(path, ("–", "left out"))
                rows.append((f"{path.stem}, {scale}", *time_and_result))
            failed |= {path for path, (_, result) in done.items() if result == "FAILED"}
    screen.show_table(("lecture", "time", "nbval"), rows)
    say(f"{len(failed)} of {len(paths)} lectures failed on {where}")
    if options.record:
        write_page()
    return int(bool(failed))


def tested_in_turn(
    paths: list[Path], environment: dict[str, str], scale: str, engine
) -> Iterator[tuple]:
    """Runs one lecture after another under nbval; yields path, time and result of each."""
    for path in paths:
        say(f"\n{path.stem}, {scale} scale")
        started = time.monotonic()
        seconds = notebooks.CELL_SECONDS[scale]
        done = notebooks.nbval(path, environment=environment, seconds=seconds)
        yield path, f"{time.monotonic() - started:.0f} s", verdict(done.returncode)


def tested_together(
    paths: list[Path], environment: dict[str, str], scale: str, engine
) -> Iterator[tuple]:
    """Runs lectures under nbval side by side; prints what it says about each in one piece."""
    from course_utils.command import cluster

    seconds = notebooks.CELL_SECONDS[scale]
    for path, done in cluster.finished(cluster.tested, paths, environment, seconds, engine):
        say(f"\n{path.stem}, {scale} scale")
        if isinstance(done, Exception):
            say(str(done) or repr(done))
            yield path, "–", "FAILED"
        else:
            files.say(done.outcome.text)
            yield path, f"{done.outcome.seconds:.0f} s", verdict(done.outcome.returncode)


def verdict(returncode: int) -> str:
    return "FAILED" if returncode else "passed"


def device_to_test() -> tuple[str, str]:
    """The device to test on, and its name.

    Raises ``ValueError`` if packages are missing, if the device that ``COURSE_DEVICE`` names cannot
    be used, or if only the CPU can and is not asked for.
    """
    missing = [name for name in NBVAL_NEEDS if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{sys.executable} lacks {', '.join(missing)}; "
            "install them there, or leave out PYTHON to use .venv."
        )
    import torch

    from course_utils.core import runtime

    problem = runtime.trouble("cuda")
    device = "cpu" if problem else "cuda"
    if os.environ.get("COURSE_DEVICE"):
        device = str(runtime.device())
    elif problem and os.environ.get("COURSE_SCALE") != "quick":
        raise ValueError(
            f"this machine's PyTorch has no CUDA ({problem}). COURSE_SCALE=quick tries this "
            "command on the CPU; COURSE_DEVICE=cpu runs all of it there."
        )
    if device.startswith("cuda"):
        return device, torch.cuda.get_device_name(device)
    return device, f"{device}, NOT on CUDA"


def scales_to_test(record: bool) -> list[str]:
    """The scale that ``COURSE_SCALE`` names, else both."""
    from course_utils.core import runtime

    if not os.environ.get("COURSE_SCALE"):
        return ["quick", "full"]
    if record and runtime.scale() != "full":
        raise ValueError(
            "--record stores what the full scale shows, and COURSE_SCALE is quick. "
            "Unset it, or leave out --record."
        )
    return [runtime.scale()]


# --- other commands


def write_results(options: Options) -> int:
    if not options.check:
        files.check_writable("COURSE_RESULTS", files.results_dir())
        write_page()
        return 0
    stale = [path for path, content in result_pages().items() if not holds(path, content)]
    for path in stale:
        say(f"{path} is stale; run `course results`")
    if not stale:
        say(f"{files.results_dir() / 'README.md'} is up to date")
    return int(bool(stale))


def result_pages() -> dict[Path, bytes]:
    """What `course results` writes: the page of tables, its picture, the page of claims."""
    from course_utils.lesson import results

    folder = files.results_dir()
    return {
        folder / "README.md": results.page().encode(),
        folder / "summary.svg": results.picture(),
        folder / "claims.md": notebooks.claims_page().encode(),
    }


def holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content, whatever its line ends."""
    return path.exists() and path.read_bytes().replace(b"\r\n", b"\n") == content


def write_page() -> None:
    for path, content in result_pages().items():
        files.write_atomic(path, content)
    say(f"wrote {files.results_dir() / 'README.md'}")


def check_setup(options: Options) -> int:
    from course_utils.command import doctor

    problems = doctor.count_problems(where=True, say=say)
    with suppress(ImportError, OSError, ValueError):  # the report names what is wrong
        from course_utils.core import download

        download.forget_failed_downloads()  # the next lecture tries the network again
    return int(problems > 0)


def open_lab(options: Options) -> int:
    from course_utils.command import lab

    return lab.lab(options.rest)


def present(options: Options) -> int:
    from course_utils.command import slides

    return slides.present(options.lecture, options.rest)


def list_lectures(options: Options) -> int:
    for path in notebooks.find([]):
        files.say(notebooks.title(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
