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
import psutil
import pytest

from course_utils.command import cli, cluster, lab, notebooks, runner, slides
from course_utils.core import data, files, runtime
from course_utils.lesson import results

CLAIM = "from course_utils.lesson.lecture import claim\n"
GOOD = ['print("hello")', f'{CLAIM}claim("One", True)\nclaim("Two", True, recorded=True)']
COMMAND = [sys.executable, "-m", "course_utils.command.cli"]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows stops otherwise")


def has_row(told, *cells):
    return re.search(f"^{' +'.join(cells)}$", told, re.M)


def stored_text(path):
    return notebooks.read(path).cells[1].outputs[0].text


def cli_in_child(*arguments, encoding=None, **environment):
    options = {"cwd": files.ROOT, "capture_output": True, "text": True, "encoding": encoding}
    return subprocess.run([*COMMAND, *arguments], env=os.environ | environment, **options)


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Lectures run in turn, in this process; test_cluster.py has those that run side by side."""
    monkeypatch.setattr(cluster, "cores", lambda: 1)


@pytest.fixture
def good(lecture):
    """A lecture 03 without fault."""
    return lecture("03", *GOOD)


@pytest.fixture
def tables(tmp_path, monkeypatch, env):
    """A papers.json with one table, and an empty results folder."""
    row = {"key": "a", "label": "A", "paper": 1.0}
    spec = {"03-one": {"title": "A table", "source": "A paper", "rows": [row]}}
    (tmp_path / "papers.json").write_text(json.dumps(spec))
    monkeypatch.setattr(results, "PAPERS", tmp_path / "papers.json")
    env(RESULTS=tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def mnist(monkeypatch):
    monkeypatch.setattr(data, "load", lambda name: [SimpleNamespace(source="MNIST")])


# --- run


@pytest.mark.slow
def test_run_executes_counts_claims_and_writes_pages(good, lecture, course, tmp_path):
    before = good.read_bytes()
    beginning, inside = "✔ at the beginning of ✘ a line counts", "x ✔ nothing here"
    lecture("04", f"print({beginning!r})\nprint({inside!r})", f'{CLAIM}claim("Three", 1 == 1)')
    told = course("run")
    assert has_row(told, "lecture", "time", "claims")
    for stem, kept in (("03_tiny", "2 of 2"), ("04_tiny", "2 of 2"), ("all", "4 of 4")):
        assert has_row(told, stem, r"\d+ s", f"{kept} kept")
    out = tmp_path / "out"
    assert told.endswith(f"\nquick scale; notebooks and pages to read: {out / 'index.html'}\n")
    assert 'href="03_tiny.html"' in (out / "index.html").read_text(encoding="utf-8")
    assert "hello" in (out / "03_tiny.html").read_text(encoding="utf-8")
    assert stored_text(out / "03_tiny.ipynb") == "hello\n"
    assert good.read_bytes() == before


@pytest.mark.slow
def test_run_takes_numbers(good, lecture, course, tmp_path):
    lecture("04", *GOOD)
    told = course("run", "4")
    assert "04_tiny" in told and "03_tiny" not in told
    assert not (tmp_path / "out" / "03_tiny.ipynb").exists()


@pytest.mark.slow
def test_run_goes_on_after_a_failing_cell_and_says_where_it_was(lecture, course, tmp_path):
    lecture("03", "x = 1", "# first line\ny = [][x]\n", 'print("never")')
    lecture("04", *GOOD)
    told = course("run", status=1)
    error = "IndexError: list index out of range\n"
    assert "03_tiny: FAILED, " in told and "\n04_tiny: ran, " in told
    assert "\n  code cell 2 of 3 fails:\n      | # first line\n" in told
    assert f"\n      {error}" in told and f"\n03_tiny FAILED: {error}" in told
    assert has_row(told, "03_tiny", ".* 0 of 0 kept, FAILED")
    assert has_row(told, "04_tiny", ".* 2 of 2 kept")
    (error,) = notebooks.read(tmp_path / "out" / "03_tiny.ipynb").cells[2].outputs
    assert error.ename == "IndexError"


@pytest.mark.slow
def test_run_fails_on_a_broken_claim(lecture, course):
    lecture("03", f'{CLAIM}claim("One", True)\nclaim("The moon is [red]cheese[/] :moon:", False)')
    told = course("run", status=1)
    assert "1 of 2 kept" in told
    assert "\n✘ The moon is [red]cheese[/] :moon:  (03_tiny)\n" in told


def test_run_shows_no_stored_outputs_of_cells_that_did_not_run(lecture, course):
    path = lecture("03", "1 / 0", f'{CLAIM}claim("One", True)')
    stored = notebooks.read(path)
    stored.cells[2].outputs = [nbformat.v4.new_output("stream", text="✔ One\n")]
    nbformat.write(stored, path)
    assert "0 of 0 kept, FAILED" in course("run", status=1)


@pytest.mark.slow
def test_run_fails_on_an_error_inside_a_widget(lecture, course):
    source = "import ipywidgets\nfrom course_utils.lesson.widgets import explorer\n"
    lecture("04", f"{source}explorer(lambda a: 1 / 0, a=ipywidgets.IntSlider())")
    shown = "This picture could not be drawn. ZeroDivisionError: division by zero"
    assert f"04_tiny FAILED: a widget shows: {shown}" in course("run", status=1)


def test_run_uses_this_interpreter_and_the_lectures_folder(lecture, course, tmp_path, monkeypatch):
    """Also where the user has registered another Python under the same name."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "Another"}
    (kernel / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("COURSE_RECORD", "1")  # recording is asked for by --record alone
    names = ("COURSE_SCALE", "COURSE_RECORD", "COURSE_STATE")
    values = f"[sys.executable, os.getcwd(), *map(os.environ.get, {names})]"
    lecture("03", f"import os, sys\nprint({values})")
    course("run")
    told = eval(stored_text(tmp_path / "out" / "03_tiny.ipynb"))
    assert told[:4] == [sys.executable, str(tmp_path / "lectures"), "quick", None]
    assert told[4] != os.environ["COURSE_STATE"]  # a student's progress is not touched


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "command", ["run --jobs=1 --out={out}", "run --jobs=2 --out={out}", "test-gpu --jobs=1"]
)
def test_ctrl_c_stops_the_whole_run(lecture, tmp_path, env, command, times):
    """Pressed again, it does not disturb the clean-up."""
    env(SCALE="quick", DEVICE="cpu")
    body = f"import os, time\nopen('{tmp_path}/{{}}', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    kernels = [tmp_path / "03", tmp_path / "04"]
    for kernel in kernels:
        lecture(kernel.name, body.format(kernel.name))
    awaited = kernels if "jobs=2" in command else kernels[:1]
    options = {"cwd": files.ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    arguments = command.format(out=tmp_path / "out").split()
    child = subprocess.Popen([*COMMAND, *arguments], start_new_session=True, **options)
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in awaited):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.1)
    for _ in range(times):
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.3)
    assert child.communicate(timeout=30)[1].decode() == "\nstopped\n"
    assert child.returncode == 130
    assert [path for path in kernels if path.exists()] == awaited
    deadline = time.monotonic() + 15
    while any(psutil.pid_exists(int(path.read_text())) for path in awaited):
        assert time.monotonic() < deadline  # a kernel of --jobs looks for its parent once a second
        time.sleep(0.1)


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("arguments", [["doctor"], ["run", "--out={out}"], ["results", "--check"]])
def test_ctrl_c_while_pytorch_is_imported(good, tmp_path, arguments):
    """That an import is interrupted makes PyTorch abort."""
    arguments = [argument.format(out=tmp_path) for argument in arguments]
    options = {"cwd": files.ROOT, "stderr": subprocess.PIPE, "start_new_session": True}
    child = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, **options)
    time.sleep(0.7)
    for _ in range(2):
        os.killpg(child.pid, signal.SIGINT)
        time.sleep(0.1)
    assert child.communicate(timeout=30)[1].decode() == "\nstopped\n"
    assert child.returncode == 130


def test_record_needs_the_full_scale(good, course):
    for arguments in (["--record"], ["--record", "--scale", "quick"]):
        told = course("run", *arguments, status=2)
        assert "Add --scale full" in told and "03_tiny" not in told


def test_record_at_full_scale_writes_the_page(lecture, course, tables):
    names = ("COURSE_RECORD", "COURSE_SCALE")
    lecture("03", f'import os\nassert [*map(os.environ.get, {names})] == ["1", "full"]')
    assert "full scale" in course("run", "--scale", "full", "--record")
    assert (tables / "README.md").read_text(encoding="utf-8") == results.page()


def test_what_makes_no_sense_is_refused(lecture, course):
    assert course("run", status=2).startswith("course: there are no lectures in")
    lecture("03", *GOOD)
    for command in ("run", "present"):
        assert "no lecture 07; the lectures are 03" in course(command, "07", status=2)
    for wrong in (["run", "--sclae", "full"], ["run", "--scale", "medium"], ["nothing"]):
        course(*wrong, status=2)


def test_a_stream_that_does_not_know_a_character_gets_another(good):
    done = cli_in_child("run", "✘", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "there is no lecture 0x; the lectures are 03" in done.stderr


# --- folders


def test_the_folders_of_a_run_do_not_move_with_its_kernels(lecture, course, tmp_path, monkeypatch):
    """Kernels start in the lectures' folder; a relative path is meant from here."""
    names = ("COURSE_DATA", "COURSE_CACHE", "COURSE_LECTURES", "COURSE_RESULTS")
    calls = "files.data_dir(), files.cache_dir(), files.lectures_dir(), files.results_dir()"
    lecture("03", f"from course_utils.core import files\nprint(*map(str, ({calls})), sep='|')")
    monkeypatch.chdir(tmp_path)
    for name in names:
        monkeypatch.setenv(name, name.removeprefix("COURSE_").lower())
    course("run")
    told = stored_text(tmp_path / "out" / "03_tiny.ipynb").strip().split("|")
    assert told == [
        str(tmp_path.resolve() / name) for name in "data cache lectures results".split()
    ]


@pytest.fixture
def no_kernel(monkeypatch):
    def start(*arguments, **options):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(runner, "execute", start)
    monkeypatch.setattr(notebooks, "nbval", start)


@pytest.mark.parametrize("variable", ["COURSE_DATA", "COURSE_CACHE", "COURSE_LECTURES"])
@pytest.mark.parametrize("value", ["'mine'", "mine ", "$HOME/mine", "\0"])
def test_a_folder_that_a_shell_has_spoilt_is_refused_at_once(
    good, no_kernel, course, monkeypatch, variable, value
):
    monkeypatch.setattr(os, "environ", os.environ | {variable: value})
    assert course("run", status=2).startswith(f"course: {variable} is {value!r}; leave out")


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/x", "'x'", "x\0", "$OUT"])
def test_an_output_folder_that_cannot_be_written_is_refused_at_once(good, no_kernel, capsys, out):
    assert cli.main(["run", "--out", out]) == 2
    told = capsys.readouterr().err
    assert told.startswith("course: ") and told.count("\n") == 1 and "--out" in told


def test_records_that_cannot_be_written_are_refused_at_once(good, no_kernel, course, env):
    env(RESULTS="/dev/null/results", DEVICE="cpu")
    for command in (["run", "--scale", "full", "--record"], ["test-gpu", "--record"]):
        told = course(*command, status=2)
        assert "/dev/null/results cannot be written" in told and "Set COURSE_RESULTS" in told
    assert "Set COURSE_RESULTS" in course("results", status=2)


def test_a_user_without_a_home_is_told_at_once(
    good, no_kernel, course, env, mnist, monkeypatch, tmp_path
):
    pwd = pytest.importorskip("pwd", reason="Windows knows a home by other means")

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    env(DEVICE="cpu", DATA=tmp_path, CACHE=tmp_path)
    for command in ("run", "refresh", "test-gpu"):
        assert "set HOME to a folder of your own" in course(command, status=2)


def test_refresh_of_a_clone_that_cannot_be_written(good, no_kernel, course, mnist, monkeypatch):
    def temporary_file(dir):
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", temporary_file)
    told = course("refresh", status=2)
    assert told.startswith(f"course: {good.parent} cannot be written (Read-only file system)")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "refresh"])
def test_a_disk_that_fills_up_costs_one_lecture(lecture, course, mnist, monkeypatch, command):
    """Written with the real function but for the first lecture."""
    for number in ("03", "04"):
        lecture(number, *GOOD)
    write = files.write_atomic
    stored = []

    def full(path, content):
        if "03_tiny" in str(path):
            raise OSError(28, "No space left on device", str(path))
        stored.append(path.name)
        write(path, content)

    monkeypatch.setattr(files, "write_atomic", full)
    told = course(command, status=1)
    assert has_row(told, "03_tiny", r"\d+ s", "2 of 2 kept, FAILED")
    assert has_row(told, "04_tiny", r"\d+ s", "2 of 2 kept")
    assert "\n03_tiny FAILED: it could not be stored: [Errno 28] No space left" in told
    assert "04_tiny.ipynb" in stored and "Traceback" not in told


@pytest.mark.slow
def test_a_page_that_cannot_be_written_comes_after_the_table(good, course, tables, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "write_page", full)
    told = course("run", "--scale", "full", "--record", status=1)
    assert has_row(told, "03_tiny", r"\d+ s", "2 of 2 kept")
    cure = "Make room there, or name another folder."
    assert told.endswith(f"\ncourse: [Errno 28] No space left on device. {cure}\n")


def test_a_cache_that_cannot_be_written_is_told_before_the_work(lecture, course, env):
    """It may be a classroom's, with all weights in it."""
    lecture("03", "print('hello')")
    env(CACHE="/dev/null/x")
    told = course("run")
    assert told.startswith("/dev/null/x cannot be written (Not a directory). Set COURSE_CACHE to")
    assert "03_tiny: ran" in told


def as_another_user(clone, home, *arguments):
    """What a user who is not root, and may write in ``home`` only, is told by a command."""
    anywhere = "+dac_read_search"  # root's Python may lie where nobody else looks
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command += [f"--inh-caps={anywhere}", f"--ambient-caps={anywhere}"]
    environment = {name: value for name, value in os.environ.items() if "COURSE" not in name}
    environment |= {"HOME": str(home), "PYTHONPATH": str(clone), "COURSE_DATA": str(home)}
    environment |= {"COURSE_LECTURES": os.environ["COURSE_LECTURES"]}
    options = {"cwd": clone, "env": environment, "capture_output": True, "text": True}
    return subprocess.run([*command, *COMMAND, *arguments], **options)


@pytest.fixture
def read_only(tmp_path):
    """A clone that belongs to root, and the home of another user."""
    if not shutil.which("setpriv") or os.geteuid() != 0:
        pytest.skip("only root can be another user")
    clone, home = tmp_path / "clone", tmp_path / "home"
    for folder in ("course_utils", "results"):
        shutil.copytree(files.ROOT / folder, clone / folder)
    shutil.copy(files.ROOT / "pyproject.toml", clone)
    home.mkdir()
    os.chown(home, 65534, 65534)
    if as_another_user(clone, home, "--help").returncode:
        pytest.skip("this system gives no capability")
    return clone, home


@pytest.mark.slow
@posix_only
def test_a_user_who_is_not_root_in_a_clone_to_be_read_only(good, read_only):
    clone, home = read_only
    assert as_another_user(*read_only, "list").stdout == "03 · Tiny\n"
    for arguments, name in ((["run"], "--out"), (["results"], "COURSE_RESULTS")):
        told = as_another_user(*read_only, *arguments)
        assert told.returncode == 2 and not told.stdout
        assert re.fullmatch(
            f"course: {clone}/.* cannot be written \\(Permission denied\\). "
            f"Set {name} to a folder of your own.\n",
            told.stderr,
        )
    told = as_another_user(*read_only, "run", "--out", str(home / "out"))
    assert told.returncode == 0 and has_row(told.stdout, "03_tiny", r"\d+ s", "2 of 2 kept")
    assert (home / "out" / "03_tiny.html").exists()
    assert as_another_user(*read_only, "doctor").returncode == 0


# --- streams


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_every_command_prints_into_any_pipe(good, encoding):
    title = "03 · Tiny" if encoding != "ascii" else "03 . Tiny"
    for arguments, expected in ((["list"], title), (["--help"], "usage"), (["run", "x"], "")):
        done = cli_in_child(*arguments, PYTHONIOENCODING=encoding, encoding=encoding)
        assert "Traceback" not in done.stderr and done.stdout.startswith(expected)


@pytest.mark.slow
def test_a_run_s_table_fits_a_stream_without_an_encoding(good, tmp_path, monkeypatch):
    class Stream:
        text = ""

        def write(self, text):
            text.encode("ascii")
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Stream())
    assert cli.main(["run", "--out", str(tmp_path)]) == 0
    assert "03_tiny: ran, " in sys.stdout.text and "2 of 2 kept" in sys.stdout.text


@pytest.mark.slow
def test_commands_run_without_streams(good, tmp_path, monkeypatch):
    """As under pythonw on Windows."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["list"]) == 0
    assert cli.main(["run", "--out", str(tmp_path)]) == 0
    assert cli.main(["run", "99"]) == 2


# --- speed


def test_list(good, lecture, course):
    lecture("00")
    assert course("list") == "00 · Tiny\n03 · Tiny\n"


@posix_only
@pytest.mark.parametrize("argument", ["list", "--help"])
def test_list_and_help_are_quick(argument):
    """Processor time, as a busy machine has little to give; a quarter of a second is usual."""
    import resource

    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        assert cli_in_child(argument).returncode == 0
        seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("argument", ["list", "--help"])
def test_list_and_help_import_nothing_heavy(argument):
    heavy = {"torch", "numpy", "nbclient", "nbconvert", "nbformat", "rich"}
    code = f"""
import sys
from course_utils.command import cli
try:
    cli.main(["{argument}"])
finally:
    print({heavy} & sys.modules.keys())"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=files.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


# --- refresh


@pytest.mark.slow
def test_refresh_stores_outputs_and_hash_and_nothing_that_changes(lecture, course, mnist):
    path = lecture("03", "import ipywidgets\nipywidgets.IntSlider()", *GOOD)
    told = course("refresh")
    assert f"\ngood lectures were written to {path.parent}; the others are unchanged\n" in told
    once = path.read_bytes()
    stored = notebooks.read(path)
    assert stored.metadata["course"]["hash"] == notebooks.source_hash(stored)
    assert "widgets" not in stored.metadata and stored.cells[1].outputs == []
    assert all("execution" not in cell.metadata for cell in stored.cells)
    assert stored.metadata["language_info"].get("version") is None
    assert notebooks.claims(stored) == ["✔ One", "✔ Two (recorded)"]
    course("refresh")
    assert path.read_bytes() == once
    stored.cells[2].source += "\n"
    assert stored.metadata["course"]["hash"] != notebooks.source_hash(stored)


def test_refresh_takes_quick_scale_cpu_and_an_empty_cache(lecture, course, mnist, env):
    env(SCALE="full")
    names = ("COURSE_SCALE", "COURSE_DEVICE")
    empty = "os.path.exists(os.environ['COURSE_CACHE'])"
    path = lecture("03", f"import os\nprint(*map(os.environ.get, {names}), {empty})")
    course("refresh")
    assert stored_text(path) == "quick cpu False\n"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["1 / 0", f'{CLAIM}claim("One", False)'])
def test_refresh_keeps_what_is_committed_when_the_lecture_fails(lecture, course, mnist, source):
    path = lecture("03", source)
    before = path.read_bytes()
    course("refresh", status=1)
    assert path.read_bytes() == before


def test_refresh_refuses_the_embedded_digits(good, course, monkeypatch):
    before = good.read_bytes()
    monkeypatch.setattr(data, "load", lambda name: [SimpleNamespace(source="embedded digits")])
    assert "there is only embedded digits" in course("refresh", status=2)
    assert good.read_bytes() == before


# --- results


def test_results_writes_and_checks_the_page(course, tables):
    course("results", "--check", status=1)
    page = tables / "README.md"
    assert course("results") == f"wrote {page}\n"
    assert course("results", "--check") == f"{page} is up to date\n"
    page.write_text("edited by hand")
    stale = f"{page} is stale; run `course results`\n"
    assert course("results", "--check", status=1) == stale
    assert page.read_text() == "edited by hand"


# --- test-gpu


@pytest.mark.slow
def test_gpu_test_at_quick_scale_on_the_cpu(good, lecture, course, mnist, env):
    env(SCALE="quick", DEVICE="cpu")
    lecture("04", f'{CLAIM}claim("One", True)')
    course("refresh")
    told = course("test-gpu")
    assert "cpu, NOT on CUDA" in told and ", full" not in told
    assert has_row(told, "03_tiny, quick", r"\d+ s", "passed")
    path = lecture("04", f'{CLAIM}claim("One", False)')
    stored = notebooks.read(path)
    outputs = [nbformat.v4.new_output("stream", text="✔ One\n")]
    stored.cells[1].update(execution_count=1, outputs=outputs)
    stored.cells[1].metadata["tags"] = ["nbval-check-output"]
    nbformat.write(stored, path)
    told = course("test-gpu", status=1)
    assert has_row(told, "04_tiny, quick", r"\d+ s", "FAILED")
    assert has_row(told, "03_tiny.*passed")
    assert told.endswith("1 of 2 lectures failed on cpu, NOT on CUDA\n")


def test_gpu_test_runs_quick_first_then_full(good, lecture, course, monkeypatch, tables, env):
    """With nbval replaced by a list of what it was asked to do."""
    env(DEVICE="cpu")
    lecture("04", *GOOD)
    names = ("COURSE_SCALE", "COURSE_RECORD", "COURSE_DEVICE")
    asked = []

    def fake(path, environment, seconds):
        asked.append((path.stem, seconds, *map(environment.get, names)))
        return SimpleNamespace(returncode=int(path.stem == "04_tiny"))

    monkeypatch.setattr(notebooks, "nbval", fake)
    told = course("test-gpu", "--record", status=1)
    quick = [(stem, 1800, "quick", None, "cpu") for stem in ("03_tiny", "04_tiny")]
    assert asked == [*quick, ("03_tiny", 86400, "full", "1", "cpu")]
    assert has_row(told, "04_tiny, full", "–", "left out")
    assert "1 of 2 lectures failed" in told and (tables / "README.md").exists()


def test_gpu_test_does_not_pass_on_the_cpu_unasked(good, course, monkeypatch, env):
    monkeypatch.setattr(runtime, "trouble", lambda name: "no kernel image")
    told = course("test-gpu", status=2)
    assert "has no CUDA (no kernel image)" in told and "COURSE_SCALE=quick" in told
    env(SCALE="quick")
    assert "--record" in course("test-gpu", "--record", status=2)


@pytest.mark.parametrize("name", ["nbval", "rich"])
def test_gpu_test_names_what_the_interpreter_lacks(course, monkeypatch, name):
    monkeypatch.setattr(cli, "find_spec", lambda asked: None if asked == name else object())
    monkeypatch.setitem(sys.modules, "course_utils.command.screen", None)
    assert f"{sys.executable} lacks {name}; install" in course("test-gpu", status=2)


# --- lab and present


def test_lab_and_present_pass_on_what_they_do_not_know(monkeypatch, course):
    asked = []
    monkeypatch.setattr(lab, "lab", lambda rest: asked.append(rest) or 0)
    monkeypatch.setattr(slides, "present", lambda number, rest: asked.append((number, rest)) or 0)
    course("lab", "--no-browser"), course("present", "03", "--", "--port=1")
    assert asked == [["--no-browser"], ("03", ["--port=1"])]


def test_a_reader_that_stops_is_no_error():
    command = [sys.executable, "-m", "course_utils.command.cli", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
