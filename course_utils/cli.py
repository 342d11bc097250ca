"""The ``course`` command: a thin layer over nbclient, nbconvert, nbval and Jupyter.

Imports what a command needs where it needs it: ``course doctor`` must run where PyTorch does not, and ``course --help`` must be quick.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

PLAIN_SECONDS = 10  # where no terminal is watching, one line of progress in so many seconds


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and gives its exit status: 0, 1 where a lecture, claim or check failed, 2 where the command makes no sense."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a Windows console may not know ✔
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (lab, present):
        parser.error(f"unknown: {' '.join(rest)}")
    options.rest = [argument for argument in rest if argument != "--"]
    try:
        return options.command(options)
    except ValueError as error:
        print(f"course: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="course", description="A hands-on course on adversarial machine learning.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name, command, text, numbers="*"):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        if numbers:
            what = "number of the lecture, such as 03" if numbers == 1 else "numbers of lectures, such as 00 03; all where none is given"
            sub.add_argument("lectures", nargs=numbers, metavar="NN", help=what)
        return sub

    sub = add("run", run, "execute lectures headless; exit status 0 only when all ran and every claim holds")
    sub.add_argument(
        "--scale", choices=("quick", "full"), help="quick (minutes) or full (the papers' own sizes); default: COURSE_SCALE, else quick"
    )
    sub.add_argument("--record", action="store_true", help="store the tables under results/; needs the full scale")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where the executed notebooks and pages go; default: build/lectures")
    add("doctor", doctor, "say what is wrong with this machine's set-up, and the cure", None)
    add("lab", lab, "JupyterLab on your own copy of the lectures; further arguments go to jupyter lab", None)
    add("present", present, "a lecture as live slides; further arguments go to jupyter lab", 1)
    add("list", show, "the lectures and their titles", None)
    add("refresh", refresh, "execute the committed notebooks in place (quick scale, MNIST, CPU)")
    sub = add("results", results, "write results/README.md from the recorded runs", None)
    sub.add_argument("--check", action="store_true", help="only say whether it is up to date")
    sub = add("test-gpu", test_gpu, "nbval on CUDA, lecture by lecture: quick, then full; COURSE_SCALE=quick leaves out full")
    sub.add_argument("--record", action="store_true", help="store the tables of the full runs under results/")
    return parser


# ------------------------------------------------------------------------------------------------------------ commands


def run(options) -> int:
    from course_utils import notebooks, runtime

    scale = options.scale or runtime.scale()
    if options.record and scale != "full":
        raise ValueError(f"--record stores what the full scale shows, and the scale is {scale}. Add --scale full, or leave out --record.")
    out = options.out or runtime.ROOT / "build" / "lectures"
    record = {"COURSE_RECORD": "1"} if options.record else {}
    outcomes = []
    with tempfile.TemporaryDirectory() as state:
        environment = notebooks.kernel_environment(state, COURSE_SCALE=scale, **record)
        for path in notebooks.find(options.lectures):
            notebook = notebooks.read(path)
            outcomes.append(_execute(notebook, path, environment, notebooks.CELL_SECONDS[scale]))
            notebooks.export(notebook, path, out)
    if options.record:
        _write_page()
    return _report(outcomes, f"{scale} scale; notebooks and pages to read in {out}")


def refresh(options) -> int:
    import nbformat

    from course_utils import data, notebooks, runtime

    paths = notebooks.find(options.lectures)
    source = data.load("mnist")[0].source
    if source != "MNIST":
        raise ValueError(f"the committed notebooks show MNIST, and there is only {source}. Connect to the network, or set COURSE_DATA.")
    outcomes = []
    with tempfile.TemporaryDirectory() as own:  # an empty cache too: a reader sees the networks being trained
        environment = notebooks.kernel_environment(f"{own}/state", COURSE_CACHE=f"{own}/cache", COURSE_SCALE="quick", COURSE_DEVICE="cpu")
        for path in paths:
            notebook = notebooks.read(path)
            outcomes.append(_execute(notebook, path, environment, notebooks.CELL_SECONDS["quick"]))
            if outcomes[-1].good:
                notebooks.tidy(notebook)
                runtime.write_atomic(path, nbformat.writes(notebook) + "\n")
    return _report(outcomes, f"lectures that are good were written to {notebooks.folder()}; the others are as they were")


def results(options) -> int:
    from course_utils import results

    path, text = _page_path(), results.page()
    fresh = path.exists() and path.read_text(encoding="utf-8") == text
    if options.check:
        print(f"{path} is up to date" if fresh else f"{path} is stale; run `course results`")
        return 0 if fresh else 1
    _write_page()
    return 0


def _page_path() -> Path:
    from course_utils import results

    return results._results_dir() / "README.md"


def _write_page() -> None:
    from course_utils import results, runtime

    runtime.write_atomic(_page_path(), results.page())
    print(f"wrote {_page_path()}")


def test_gpu(options) -> int:
    from course_utils import notebooks, runtime

    missing = [
        name for name in ("pytest", "nbval", "ipykernel", "matplotlib", "jaxtyping", "safetensors", "anywidget") if find_spec(name) is None
    ]
    if missing:
        raise ValueError(f"{sys.executable} lacks {', '.join(missing)}; install them there, or leave out PYTHON to use .venv.")
    chosen, wanted = os.environ.get("COURSE_DEVICE"), os.environ.get("COURSE_SCALE")
    cuda = runtime.torch.cuda.is_available()
    if not cuda and not chosen and wanted != "quick":
        raise ValueError(
            "this machine's PyTorch has no CUDA. COURSE_SCALE=quick tries this command on the CPU; COURSE_DEVICE=cpu runs all of it there."
        )
    device = chosen or ("cuda" if cuda else "cpu")
    scales = [runtime.scale()] if wanted else ["quick", "full"]
    if options.record and "full" not in scales:
        raise ValueError("--record stores what the full scale shows, and COURSE_SCALE is quick. Unset it, or leave out --record.")
    where = runtime.torch.cuda.get_device_name() if cuda and device.startswith("cuda") else f"{device}, NOT on CUDA"
    print(f"Running on {where}", flush=True)
    rows, failed = [], set()
    with tempfile.TemporaryDirectory() as state:
        for scale in scales:
            record = {"COURSE_RECORD": "1"} if options.record and scale == "full" else {}
            environment = notebooks.kernel_environment(state, COURSE_SCALE=scale, COURSE_DEVICE=device, **record)
            for path in notebooks.find(options.lectures):
                if path in failed:  # what fails at the quick scale needs no hours at the full one
                    rows.append((f"{path.stem}, {scale}", "–", "left out"))
                    continue
                print(f"\n{path.stem}, {scale} scale", flush=True)
                started = time.monotonic()
                status = notebooks.nbval(path, environment=environment, seconds=notebooks.CELL_SECONDS[scale]).returncode
                rows.append((f"{path.stem}, {scale}", f"{time.monotonic() - started:.0f} s", "FAILED" if status else "passed"))
                if status:
                    failed.add(path)
    if options.record:
        _write_page()
    _table(("lecture", "time", "nbval"), rows)
    print(f"{len(failed)} of {len({name for name, *_ in rows}) // len(scales)} lectures failed on {where}")
    return 1 if failed else 0


def doctor(options) -> int:
    from course_utils import doctor

    problems = doctor.report(where=True)
    try:
        from course_utils import data
    except Exception:  # without PyTorch, which is reported
        return 1
    data.forget_failed_downloads()  # whoever asks the doctor wants the next lecture to try the network again
    return 1 if problems else 0


def lab(options) -> int:
    from course_utils import jupyter

    return jupyter.lab(options.rest)


def present(options) -> int:
    from course_utils import jupyter

    return jupyter.present(options.lectures[0], options.rest)


def show(options) -> int:
    from course_utils import notebooks

    for path in notebooks.find([]):
        print(notebooks.read(path).cells[0].source.splitlines()[0].lstrip("# "))
    return 0


# ------------------------------------------------------------------------------------------------------ what one sees


class Progress:
    """Which cell of how many is running, and since when: a line that renews itself on a terminal, else a plain line now and then."""

    def __init__(self, name: str):
        self.name, self.text, self.started = name, "starting", time.monotonic()
        self.live = sys.stdout.isatty()
        self.told, self.done = self.started, threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self.ticker.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.ticker.join()
        if self.live:
            print("\r\033[K", end="", flush=True)

    def cell(self, number: int, total: int) -> None:
        self.text = f"cell {number} of {total}"

    def _tick(self):
        while not self.done.wait(0.5 if self.live else PLAIN_SECONDS):
            line = f"{self.name}: {self.text}, {time.monotonic() - self.started:.0f} s"
            print(f"\r\033[K{line}" if self.live else line, end="" if self.live else "\n", flush=True)


def _execute(notebook, path: Path, environment: dict[str, str], seconds: float):
    """The lecture's outcome, with progress before and one line after."""
    from course_utils import notebooks

    with Progress(path.stem) as progress:
        outcome = notebooks.execute(notebook, path, environment=environment, seconds=seconds, on_cell=progress.cell)
    print(f"{path.stem}: {'ran' if not outcome.error else 'FAILED'}, {outcome.seconds:.0f} s", flush=True)
    if outcome.error:
        print("  " + outcome.error.replace("\n", "\n  "), flush=True)
    return outcome


def _report(outcomes: list, remark: str) -> int:
    """The table that ends a run, what is wrong, and the exit status."""
    rows = [
        (o.lecture, f"{o.seconds:.0f} s", f"{len(o.claims) - len(o.broken)} of {len(o.claims)} kept" + (", FAILED" if o.error else ""))
        for o in outcomes
    ]
    total, broken = sum(len(o.claims) for o in outcomes), sum(len(o.broken) for o in outcomes)
    rows.append(("all", f"{sum(o.seconds for o in outcomes):.0f} s", f"{total - broken} of {total} kept"))
    _table(("lecture", "time", "claims"), rows)
    for outcome in outcomes:
        for line in outcome.broken:
            print(f"{line}  ({outcome.lecture})")
        if outcome.error:
            print(f"{outcome.lecture} FAILED: {outcome.error.splitlines()[-1].strip()}")
    print(remark)
    return 0 if all(outcome.good for outcome in outcomes) else 1


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print()
    for first, *others in (head, tuple("-" * width for width in widths), *rows):
        print("  ".join([first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]))


if __name__ == "__main__":
    sys.exit(main())
