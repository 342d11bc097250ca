"""The ``course`` command, on nbclient, nbconvert, nbval and Jupyter.

Each command imports what it needs itself: ``course doctor`` must run where packages are broken or
missing, and ``course --help`` and ``course list`` must be quick.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from course_utils.command import notebooks
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
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (open_lab, present):
        parser.error(f"unknown: {' '.join(rest)}")
    options.rest = [argument for argument in rest if argument != "--"]
    try:
        return options.command(options)
    except BrokenPipeError:  # the reader, such as head, has all that it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        say(f"course: {error}", error=True)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        say("\nstopped", error=True)
        return 130


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
    add_numbers(add("refresh", refresh, text))
    sub = add("results", write_results, "write results/README.md from the recorded runs")
    sub.add_argument("--check", action="store_true", help="only say whether it is up to date")
    text = "nbval on CUDA, lecture by lecture: quick, then full; COURSE_SCALE=quick leaves out full"
    sub = add("test-gpu", test_gpu, text)
    add_numbers(sub)
    text = "store the tables of the full runs under results/"
    sub.add_argument("--record", action="store_true", help=text)
    return parser


def add_numbers(parser: argparse.ArgumentParser) -> None:
    text = "numbers of lectures, such as 00 03; all if none is given"
    parser.add_argument("lectures", nargs="*", metavar="NN", help=text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_numbers(parser)
    text = "quick (minutes) or full (the papers' own sizes); default: COURSE_SCALE, else quick"
    parser.add_argument("--scale", choices=tuple(notebooks.CELL_SECONDS), help=text)
    text = "store the tables under results/; needs the full scale"
    parser.add_argument("--record", action="store_true", help=text)
    text = "folder for the executed notebooks and pages; default: build/lectures"
    parser.add_argument("--out", metavar="DIR", help=text)


# --- running the lectures


def run(options: Options) -> int:
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

    def store(notebook, path: Path, outcome) -> None:
        notebooks.export(notebook, path, out)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        environment = run_environment(state, scale, options.record)
        outcomes = run_all(paths, environment, scale, store)
    status = report(outcomes, f"{scale} scale; notebooks and pages to read in {out}")
    if options.record:
        write_page()
    return status


def run_environment(state: str, scale: str, record: bool, **variables: str) -> dict[str, str]:
    """The environment of a run at this scale; ``record`` stores the tables of the full scale.

    Raises ``ValueError`` where kernels or tables have no folder: before hours of computing.
    """
    notebooks.jupyter_dir()
    if record:
        files.check_writable("COURSE_RESULTS", files.results_dir())
    if record and scale == "full":
        variables["COURSE_RECORD"] = "1"
    return notebooks.kernel_environment(state, COURSE_SCALE=scale, **variables)


def refresh(options: Options) -> int:
    from course_utils.core import data

    paths = notebooks.find(options.lectures)
    folder = files.lectures_dir()
    files.check_writable("COURSE_LECTURES", folder)
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
        outcomes = run_all(paths, environment, "quick", store)
    return report(outcomes, f"good lectures were written to {folder}; the others are unchanged")


def run_all(paths: list[Path], environment: dict[str, str], scale: str, store: Callable) -> list:
    """Runs the lectures, says how each went, and returns their outcomes.

    Calls ``store(notebook, path, outcome)`` after each.
    """
    from course_utils.command import runner, screen

    outcomes = []
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
        try:
            store(notebook, path, outcome)
        except Exception as error:  # such as a full disk; the other lectures still run
            reason = str(error).partition("\n")[0]
            outcome.error = f"{outcome.error}\nit could not be stored: {reason}".lstrip()
        if outcome.error:
            error = outcome.error.replace("\n", "\n  ")
            say(f"{path.stem}: FAILED, {outcome.seconds:.0f} s\n  {error}")
        else:
            say(f"{path.stem}: ran, {outcome.seconds:.0f} s")
        outcomes.append(outcome)
    return outcomes


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
    say(f"Running on {where}")
    rows = []
    failed = set()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        for scale, path in product(scales, paths):
            name = f"{path.stem}, {scale}"
            if path in failed:  # at the quick scale; the full one would take hours
                rows.append((name, "–", "left out"))
                continue
            say(f"\n{name} scale")
            environment = run_environment(state, scale, options.record, COURSE_DEVICE=device)
            started = time.monotonic()
            seconds = notebooks.CELL_SECONDS[scale]
            done = notebooks.nbval(path, environment=environment, seconds=seconds)
            result = "passed"
            if done.returncode:
                failed.add(path)
                result = "FAILED"
            rows.append((name, f"{time.monotonic() - started:.0f} s", result))
    screen.show_table(("lecture", "time", "nbval"), rows)
    say(f"{len(failed)} of {len(paths)} lectures failed on {where}")
    if options.record:
        write_page()
    return int(bool(failed))


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
    from course_utils.lesson import results

    if not options.check:
        write_page()
        return 0
    path = page_path()
    if path.exists() and path.read_text(encoding="utf-8") == results.page():
        say(f"{path} is up to date")
        return 0
    say(f"{path} is stale; run `course results`")
    return 1


def page_path() -> Path:
    return files.results_dir() / "README.md"


def write_page() -> None:
    from course_utils.lesson import results

    files.write_atomic(page_path(), results.page())
    say(f"wrote {page_path()}")


def check_setup(options: Options) -> int:
    from course_utils.command import doctor

    problems = doctor.report(where=True, say=say)
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
