"""The ``course`` command, on small notebooks made for the purpose."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils import cli, data, doctor, notebooks, results, runtime

CLAIM = "from course_utils.claims import claim\n"
GOOD = ['print("hello")', f'{CLAIM}claim("One", True)\nclaim("Two", True, recorded=True)']


@pytest.fixture
def lecture(tmp_path, monkeypatch):
    """``lecture("03", source, …)`` puts a notebook of these code cells among the lectures; gives its path."""
    monkeypatch.setenv("COURSE_LECTURES", str(tmp_path / "lectures"))
    (tmp_path / "lectures").mkdir()
    for name in ("COURSE_SCALE", "COURSE_DEVICE", "COURSE_RECORD"):
        monkeypatch.delenv(name, raising=False)

    def make(number, *sources):
        path = tmp_path / "lectures" / f"{number}_tiny.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {number} · Tiny"), *map(new_code_cell, sources)]), path)
        return path

    return make


@pytest.fixture
def course(tmp_path, capsys):
    """``course("run", "03")`` gives the exit status and what was printed."""

    def call(*arguments):
        if arguments[0] == "run":
            arguments += ("--out", str(tmp_path / "out"))
        try:
            status = cli.main(list(arguments))
        except SystemExit as leave:  # argparse
            status = leave.code
        told = capsys.readouterr()
        return status, told.out + told.err

    return call


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A papers.json with one table, and an empty results folder."""
    spec = {"03-one": {"title": "A table", "source": "A paper", "rows": [{"key": "a", "label": "A", "paper": 1.0}]}}
    (tmp_path / "papers.json").write_text(json.dumps(spec))
    monkeypatch.setattr(results, "PAPERS", tmp_path / "papers.json")
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


# ----------------------------------------------------------------------------------------------------------------- run


def test_run_executes_counts_claims_and_writes_pages(lecture, course, tmp_path):
    path = lecture("03", *GOOD)
    before = path.read_bytes()
    lecture("04", 'print("✔ in the middle of ✘ a line does not count")\nprint("x ✔ nor here")', f'{CLAIM}claim("Three", 1 == 1)')
    status, told = course("run")
    assert status == 0
    assert re.search(r"^03_tiny +\d+ s +2 of 2 kept$", told, re.M)
    assert re.search(r"^04_tiny +\d+ s +2 of 2 kept$", told, re.M)  # the line that begins with the mark counts
    assert re.search(r"^all +\d+ s +4 of 4 kept$", told, re.M)
    assert "hello" in (tmp_path / "out" / "03_tiny.html").read_text(encoding="utf-8")
    assert notebooks.read(tmp_path / "out" / "03_tiny.ipynb").cells[1].outputs[0].text == "hello\n"
    assert path.read_bytes() == before


def test_run_takes_numbers(lecture, course, tmp_path):
    lecture("03", *GOOD), lecture("04", *GOOD)
    status, told = course("run", "4")
    assert status == 0 and "04_tiny" in told and "03_tiny" not in told
    assert not (tmp_path / "out" / "03_tiny.ipynb").exists()


def test_run_goes_on_after_a_failing_cell_and_says_where_it_was(lecture, course, tmp_path):
    lecture("03", "x = 1", "# first line\ny = [][x]\n", 'print("never")')
    lecture("04", *GOOD)
    status, told = course("run")
    assert status == 1
    assert "code cell 2 of 3 fails" in told and "| # first line" in told and "IndexError: list index out of range" in told
    assert re.search(r"^03_tiny .* 0 of 0 kept, FAILED$", told, re.M) and re.search(r"^04_tiny .* 2 of 2 kept$", told, re.M)
    (error,) = notebooks.read(tmp_path / "out" / "03_tiny.ipynb").cells[2].outputs
    assert error.ename == "IndexError"


def test_run_fails_on_a_broken_claim(lecture, course):
    lecture("03", f'{CLAIM}claim("One", True)\nclaim("The moon is cheese", False)')
    status, told = course("run")
    assert status == 1 and "1 of 2 kept" in told and "✘ The moon is cheese  (03_tiny)" in told


def test_run_shows_no_stored_outputs_of_cells_that_did_not_run(lecture, course, tmp_path):
    path = lecture("03", "1 / 0", f'{CLAIM}claim("One", True)')
    stored = notebooks.read(path)
    stored.cells[2].outputs = [nbformat.v4.new_output("stream", text="✔ One\n")]
    nbformat.write(stored, path)
    status, told = course("run")
    assert status == 1 and "0 of 0 kept, FAILED" in told


def test_run_fails_on_an_error_inside_a_widget(lecture, course):
    lecture("04", "import ipywidgets\nfrom course_utils.widgets import explorer\nexplorer(lambda a: 1 / 0, a=ipywidgets.IntSlider())")
    status, told = course("run")
    assert status == 1
    assert "04_tiny FAILED: a widget shows: This picture could not be drawn. ZeroDivisionError: division by zero" in told


def test_an_error_inside_an_output_widget_counts():
    """On the stored state alone: nbclient itself can hang when such a widget changes while a cell runs."""
    state = {"model": {"outputs": [{"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero"}]}}
    assert notebooks._widget_errors(state) == ["a widget shows: ZeroDivisionError: division by zero"]


def test_run_fails_when_the_kernel_dies(lecture, course):
    lecture("03", "import os", "os._exit(3)")
    status, told = course("run")
    assert status == 1 and "code cell 2 of 2 fails" in told and "the kernel died" in told


def test_run_stops_a_cell_that_hangs(lecture, course, monkeypatch):
    lecture("03", "import time\ntime.sleep(60)")
    monkeypatch.setitem(notebooks.CELL_SECONDS, "quick", 3)
    status, told = course("run")
    assert status == 1 and "the cell was stopped after 3 seconds" in told


def test_run_uses_this_interpreter_and_the_lectures_folder(lecture, course, tmp_path, monkeypatch):
    """Also where the user has registered another Python under the same name."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        '{"argv": ["/nowhere/python", "{connection_file}"], "display_name": "Another", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("COURSE_RECORD", "1")  # recording is asked for by --record alone
    names = ("COURSE_SCALE", "COURSE_RECORD", "COURSE_STATE")
    lecture("03", f"import os, sys\nprint([sys.executable, os.getcwd(), *map(os.environ.get, {names})])")
    assert course("run")[0] == 0
    told = eval(notebooks.read(tmp_path / "out" / "03_tiny.ipynb").cells[1].outputs[0].text)
    assert told[:4] == [sys.executable, str(tmp_path / "lectures"), "quick", None]
    assert told[4] != os.environ["COURSE_STATE"]  # a student's progress is not touched


def test_run_shows_progress_in_plain_lines(lecture, course, monkeypatch):
    lecture("03", "import time", "time.sleep(2)")
    monkeypatch.setattr(cli, "PLAIN_SECONDS", 0.5)
    assert re.search(r"^03_tiny: cell 2 of 2, \d+ s$", course("run")[1], re.M)


def test_progress_renews_its_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with cli.Progress("03_tiny") as progress:
        progress.cell(2, 7)
        time.sleep(0.8)
    told = capsys.readouterr().out
    assert told.startswith("\r\033[K03_tiny: cell 2 of 7, ") and told.endswith("\r\033[K") and "\n" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_ctrl_c_stops_the_whole_run(lecture, tmp_path):
    lecture("03", "import time\nopen('started', 'w').close()\ntime.sleep(60)"), lecture("04", "open('next', 'w').close()")
    command = [sys.executable, "-m", "course_utils.cli", "run", "--out", str(tmp_path / "out")]
    child = subprocess.Popen(command, cwd=runtime.ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "lectures" / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=30)[1].strip().endswith("stopped")
    assert child.returncode == 130 and not (tmp_path / "lectures" / "next").exists()


def test_record_needs_the_full_scale(lecture, course, monkeypatch):
    lecture("03", *GOOD)
    for arguments in (["--record"], ["--record", "--scale", "quick"]):
        status, told = course("run", *arguments)
        assert status == 2 and "Add --scale full" in told and "03_tiny" not in told


def test_record_at_full_scale_writes_the_page(lecture, course, tables):
    lecture("03", 'import os\nassert (os.environ["COURSE_RECORD"], os.environ["COURSE_SCALE"]) == ("1", "full")')
    status, told = course("run", "--scale", "full", "--record")
    assert status == 0 and "full scale" in told
    assert (tables / "README.md").read_text(encoding="utf-8") == results.page()


def test_what_makes_no_sense_is_refused(lecture, course, tmp_path):
    status, told = course("run")
    assert status == 2 and "there are no lectures in" in told
    lecture("03", *GOOD)
    status, told = course("run", "07")
    assert status == 2 and "there is no lecture 07; the lectures are 03" in told
    assert course("run", "--sclae", "full")[0] == 2
    assert course("run", "--scale", "medium")[0] == 2
    assert course("nothing")[0] == 2


def test_list(lecture, course):
    lecture("03", *GOOD), lecture("00", *GOOD)
    assert course("list") == (0, "00 · Tiny\n03 · Tiny\n")


# ------------------------------------------------------------------------------------------------------------- refresh


@pytest.fixture
def mnist(monkeypatch):
    monkeypatch.setattr(data, "load", lambda name: [SimpleNamespace(source="MNIST")])


def test_refresh_stores_outputs_and_hash_and_nothing_that_changes(lecture, course, mnist):
    path = lecture("03", "import ipywidgets\nipywidgets.IntSlider()", *GOOD)
    assert course("refresh")[0] == 0
    once = path.read_bytes()
    stored = notebooks.read(path)
    assert stored.metadata["course"]["hash"] == notebooks.source_hash(stored)
    assert "widgets" not in stored.metadata and stored.cells[1].outputs == []
    assert all("execution" not in cell.metadata for cell in stored.cells)
    assert stored.metadata["language_info"].get("version") is None
    assert notebooks.claims(stored) == ["✔ One", "✔ Two (recorded)"]
    assert course("refresh")[0] == 0
    assert path.read_bytes() == once
    stored.cells[2].source += "\n"
    assert stored.metadata["course"]["hash"] != notebooks.source_hash(stored)


def test_refresh_runs_at_quick_scale_on_the_cpu_with_an_empty_cache(lecture, course, mnist, monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", "full")
    names = ("COURSE_SCALE", "COURSE_DEVICE")
    path = lecture("03", f"import os\nprint(*map(os.environ.get, {names}), os.path.exists(os.environ['COURSE_CACHE']))")
    assert course("refresh")[0] == 0
    assert notebooks.read(path).cells[1].outputs[0].text == "quick cpu False\n"


@pytest.mark.parametrize("source", ["1 / 0", f'{CLAIM}claim("One", False)'])
def test_refresh_keeps_what_is_committed_when_the_lecture_fails(lecture, course, mnist, source):
    path = lecture("03", source)
    before = path.read_bytes()
    assert course("refresh")[0] == 1
    assert path.read_bytes() == before


def test_refresh_refuses_the_embedded_digits(lecture, course, monkeypatch):
    path = lecture("03", *GOOD)
    before = path.read_bytes()
    monkeypatch.setattr(data, "load", lambda name: [SimpleNamespace(source="embedded digits")])
    status, told = course("refresh")
    assert status == 2 and "there is only embedded digits" in told and path.read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- results


def test_results_writes_and_checks_the_page(course, tables):
    assert course("results", "--check")[0] == 1
    assert course("results")[0] == 0
    assert course("results", "--check")[0] == 0
    (tables / "README.md").write_text("edited by hand")
    status, told = course("results", "--check")
    assert status == 1 and "is stale; run `course results`" in told


# ------------------------------------------------------------------------------------------------------------ test-gpu


def test_gpu_test_at_quick_scale_on_the_cpu(lecture, course, mnist, monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", "quick")
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    lecture("03", *GOOD), lecture("04", f'{CLAIM}claim("One", True)')
    assert course("refresh")[0] == 0
    status, told = course("test-gpu")
    assert status == 0 and "cpu, NOT on CUDA" in told
    assert re.search(r"^03_tiny, quick +\d+ s +passed$", told, re.M) and ", full" not in told
    path = lecture("04", f'{CLAIM}claim("One", False)')
    stored = notebooks.read(path)
    stored.cells[1].execution_count, stored.cells[1].outputs = 1, [nbformat.v4.new_output("stream", text="✔ One\n")]
    stored.cells[1].metadata["tags"] = ["nbval-check-output"]
    nbformat.write(stored, path)
    status, told = course("test-gpu")
    assert status == 1 and re.search(r"^04_tiny, quick +\d+ s +FAILED$", told, re.M) and re.search(r"^03_tiny.*passed$", told, re.M)


def test_gpu_test_runs_quick_first_then_full(lecture, course, monkeypatch, tables):
    """With nbval replaced by a list of what it was asked to do."""
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    lecture("03", *GOOD), lecture("04", *GOOD)
    asked = []

    def fake(path, environment, seconds):
        asked.append((path.stem, environment["COURSE_SCALE"], environment.get("COURSE_RECORD"), environment["COURSE_DEVICE"]))
        return SimpleNamespace(returncode=int(path.stem == "04_tiny"))

    monkeypatch.setattr(notebooks, "nbval", fake)
    status, told = course("test-gpu", "--record")
    assert asked == [("03_tiny", "quick", None, "cpu"), ("04_tiny", "quick", None, "cpu"), ("03_tiny", "full", "1", "cpu")]
    assert status == 1 and re.search(r"^04_tiny, full +– +left out$", told, re.M)


def test_gpu_test_does_not_pass_on_the_cpu_unasked(lecture, course, monkeypatch):
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: False)
    lecture("03", *GOOD)
    status, told = course("test-gpu")
    assert status == 2 and "has no CUDA" in told and "COURSE_SCALE=quick" in told
    monkeypatch.setenv("COURSE_SCALE", "quick")
    status, told = course("test-gpu", "--record")
    assert status == 2 and "--record" in told


def test_gpu_test_names_what_the_interpreter_lacks(course, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "nbval" else object())
    status, told = course("test-gpu")
    assert status == 2 and f"{sys.executable} lacks nbval; install" in told


# -------------------------------------------------------------------------------------------------------------- doctor


@pytest.fixture
def healthy(lecture, monkeypatch, tmp_path):
    lecture("03", *GOOD)
    for name in ("COURSE_DATA", "COURSE_CACHE", "COURSE_STATE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    forget = doctor._torch.cache_clear
    forget()
    yield
    forget()


def test_doctor_finds_nothing(healthy, course):
    status, told = course("doctor")
    assert status == 0 and told.endswith("Everything is in order\n") and "PROBLEM" not in told
    for name in doctor.CHECKS:
        assert re.search(rf"^ok +{name}: \S", told, re.M)
    assert runtime.torch.__version__ in told and "embedded digits stand in" in told


def test_doctor_s_report_in_a_lecture_names_no_folder(healthy, capsys, tmp_path):
    assert doctor.report() == 0
    told = capsys.readouterr().out
    assert str(tmp_path) not in told and sys.prefix not in told


def _variable(name, value):
    return lambda patch: patch.setenv(name, value)


PROBLEMS = {
    "Python": (lambda patch: patch.setattr(sys, "version_info", (3, 10, 4)), "is too old. Install 3.11"),
    "Packages": (
        lambda patch: patch.setattr(doctor.importlib.metadata, "version", lambda name: "7.7" if name == "ipywidgets" else "99"),
        "ipywidgets is 7.7, and the course needs >=8.1. Cure: pip install",
    ),
    "PyTorch": (
        lambda patch: patch.setattr(doctor, "_TORCH", "raise RuntimeError('operator torchvision::nms does not exist')"),
        "torchvision::nms does not exist). Each torchvision belongs to one torch. Cure: pip install --upgrade",
    ),
    "Device": (_variable("COURSE_DEVICE", "abacus"), "COURSE_DEVICE is 'abacus'"),
    "Scale": (_variable("COURSE_SCALE", "medium"), "COURSE_SCALE is 'medium'; set it to one of"),
    "Widgets": (lambda patch: patch.setitem(sys.modules, "anywidget", None), "anywidget"),
    "Folders": (_variable("COURSE_STATE", "/dev/null/state"), "cannot be written"),
    "Disk": (lambda patch: patch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2e8)), "0.2 GB are free"),
    "Lectures": (_variable("COURSE_LECTURES", "/nowhere"), "there are no lectures in"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_doctor_names_the_problem_and_the_cure(name, healthy, course, monkeypatch):
    spoil, words = PROBLEMS[name]
    spoil(monkeypatch)
    if name != "PyTorch":  # saves half a minute
        monkeypatch.setattr(doctor, "_torch", lambda: {"torch": "2", "torchvision": "0", "cuda": False, "mps": False})
    status, told = course("doctor")
    assert status == 1
    (line,) = [line for line in told.splitlines() if line.startswith(f"PROBLEM  {name}: ")]
    assert words in line


def test_doctor_sees_the_data(healthy, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_sets", lambda: ["MNIST", "SVHN"])
    text, place = doctor.data()
    assert text == "MNIST, SVHN" and place == str(runtime.data_dir())


def test_doctor_lets_the_next_download_be_tried(healthy, course, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {})
    asked = []
    monkeypatch.setattr(data, "forget_failed_downloads", lambda: asked.append(True))
    assert course("doctor")[0] == 0 and asked


# --------------------------------------------------------------------------------------------------- lab and present


def test_lab_and_present_pass_on_what_they_do_not_know(monkeypatch, course):
    from course_utils import jupyter

    asked = []
    monkeypatch.setattr(jupyter, "lab", lambda rest: asked.append(rest) or 0)
    monkeypatch.setattr(jupyter, "present", lambda number, rest: asked.append((number, rest)) or 0)
    assert course("lab", "--no-browser")[0] == 0 and course("present", "03", "--", "--port=1")[0] == 0
    assert asked == [["--no-browser"], ("03", ["--port=1"])]


def test_present_of_no_lecture(course, lecture):
    lecture("03", *GOOD)
    status, told = course("present", "77")
    assert status == 2 and "77" in told
