"""Lectures side by side on two local workers, and on a worker that shares nothing but the code."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from course_utils.command import cluster, notebooks
from course_utils.core import files

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows stops otherwise")
COMMAND = [sys.executable, "-m", "course_utils.command.cli"]

GOOD = 'import random\nrandom.seed(4)\nprint(random.random())\nprint("✔ One")'
KILLS_ITS_WORKER = """\
import os, signal
try:
    open("{marker}", "x").close()
except FileExistsError:
    print("✔ Taken over")
else:
    import psutil
    task = psutil.Process().parent()
    os.kill(task.ppid(), signal.SIGKILL)
    while True:
        pass"""


def write_lecture(folder, number, *sources):
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}_tiny.ipynb"
    nbformat.write(new_notebook(cells=[*map(new_code_cell, sources)]), path)
    return path


def outputs(path):
    return [cell.outputs for cell in notebooks.code_cells(notebooks.read(path))]


def in_child(place, *arguments, **environment):
    """Runs the command with lectures in ``place``; its exit status and all that it printed."""
    variables = {"COURSE_LECTURES": str(place / "lectures"), "OMP_NUM_THREADS": "1"}
    options = {"cwd": files.ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = os.environ | variables | environment
    done = subprocess.run([*COMMAND, *arguments], env=environment, text=True, **options)
    return done.returncode, done.stdout


@pytest.fixture(autouse=True)
def code_as_it_is():
    """Somebody may edit the code while tests run."""
    cluster.code_here.cache_clear()


# --- how many jobs, and for how long


@pytest.fixture
def machine(monkeypatch):
    """Eight cores and ten gigabytes of memory."""
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    memory = SimpleNamespace(available=10e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return memory


def test_the_default_is_what_cores_memory_and_lectures_allow(machine, monkeypatch):
    def jobs(lectures, device="cpu"):
        return cluster.choose(None, None, lectures, device, print)

    assert jobs(14) == cluster.Engine(6) and jobs(14).parallel
    assert jobs(3) == cluster.Engine(3)
    assert jobs(1) == jobs(14, "cuda:0") == cluster.Engine(1) and not jobs(1).parallel
    machine.available = 1e9
    assert jobs(14) == cluster.Engine(1)
    machine.available = 1e12
    assert jobs(14) == cluster.Engine(8)


def test_what_makes_no_sense_is_refused(lecture, course, env):
    lecture("03", GOOD)
    env(DEVICE="cpu", SCALE="quick")
    for command in ("run", "refresh", "test-gpu"):
        assert "--jobs is 0; give 1 or more" in course(command, "--jobs", "0", status=2)
        both = ("--jobs", "2", "--scheduler", "tcp://127.0.0.1:1")
        assert "give one of the two" in course(command, *both, status=2)


def test_without_dask_lectures_run_in_turn_and_a_wish_for_more_is_refused(
    lecture, course, machine, monkeypatch
):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    lecture("03", GOOD)
    lecture("04", GOOD)
    told = course("run")
    assert told.startswith(
        "One lecture after another; for 2 at once: pip install -e '.[cluster]'\n"
    )
    assert "04_tiny: ran" in told and "projection" not in told
    for wish in ("--jobs=2", "--scheduler=tcp://127.0.0.1:1"):
        told = course("run", wish, status=2)
        assert "needs Dask, which is not installed: pip install -e '.[cluster]'" in told


def test_the_projection_takes_the_longest_first():
    assert cluster.makespan([2, 3, 4, 3, 3], 2) == 8  # by hand: 4 + 3 (+ 2 after 3 + 3)
    assert cluster.makespan([5], 16) == 5 and cluster.makespan([1] * 32, 16) == 2
    told = cluster.summary([100, 50, 30], 95)
    assert told.startswith("95 s in all, where the lectures' own times add up to 180 s")
    assert "on 16 cores: about 100 s (a projection" in told


def test_what_others_need_comes_first_then_the_long_ones():
    paths = [Path(f"{stem}.ipynb") for stem in ("00_a", "01_b", "02_c", "13_d")]
    assert [path.stem for path in cluster.in_order(paths)] == ["01_b", "13_d", "02_c", "00_a"]


def test_each_thread_of_a_worker_has_a_place_for_one_lecture():
    assert cluster.free_places({"a": 2, "b": 1}, []) == ["a", "a", "b"]
    assert cluster.free_places({"a": 2, "b": 1}, ["a", "a"]) == ["b"]
    assert cluster.free_places({"a": 1}, ["a"]) == cluster.free_places({}, []) == []


# --- on this machine


@pytest.fixture(scope="module")
def on_two_workers(tmp_path_factory):
    """A run with a good lecture, one that kills its worker once, and one that fails."""
    place = tmp_path_factory.mktemp("local")
    folder = place / "lectures"
    marker = place / "killed"
    write_lecture(folder, "03", GOOD)
    write_lecture(folder, "04", KILLS_ITS_WORKER.format(marker=marker))
    write_lecture(folder, "05", "print('before')", "1 / 0", "print('never')")
    status, told = in_child(place, "run", "--jobs", "2", "--out", str(place / "two"))
    assert marker.exists()
    return SimpleNamespace(place=place, out=place / "two", status=status, told=told)


@posix_only
def test_a_lecture_that_fails_and_a_worker_that_is_killed_cost_no_other(on_two_workers):
    told, out = on_two_workers.told, on_two_workers.out
    assert on_two_workers.status == 1 and "Traceback" not in told, told
    rows = [line for line in told.splitlines() if re.match(r"(\d\d_tiny|all) +\d+ s  ", line)]
    assert [row.split()[0] for row in rows] == ["03_tiny", "04_tiny", "05_tiny", "all"]
    assert [row.rpartition(" s ")[2].strip() for row in rows] == [
        *("1 of 1 kept", "1 of 1 kept", "0 of 0 kept, FAILED", "2 of 2 kept")
    ]
    assert "code cell 2 of 3 fails" in told
    assert "\n05_tiny FAILED: ZeroDivisionError: division by zero\n" in told
    assert re.search(r"\n\d+ s in all, where .* add up to \d+ s; on 16 cores: about \d+ s", told)
    assert outputs(out / "04_tiny.ipynb")[0][0].text == "✔ Taken over\n"
    assert outputs(out / "05_tiny.ipynb")[0][0].text == "before\n"
    assert (out / "03_tiny.html").exists()


@posix_only
def test_one_job_gives_the_same_and_needs_nothing_of_dask(on_two_workers):
    place = on_two_workers.place
    arguments = ["run", "03", "05", "--jobs", "1", "--out", str(place / "one")]
    code = f"import sys\nfrom course_utils.command import cli\nstatus = cli.main({arguments})\n"
    code += "print(status, {'dask', 'distributed'} & sys.modules.keys())"
    variables = {"COURSE_LECTURES": str(place / "lectures"), "OMP_NUM_THREADS": "1"}
    options = {"env": os.environ | variables, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], cwd=files.ROOT, **options)
    assert done.stdout.splitlines()[-1] == "1 set()", done.stderr
    for name in ("03_tiny.ipynb", "05_tiny.ipynb"):
        assert outputs(place / "one" / name) == outputs(place / "two" / name)


@posix_only
def test_ctrl_c_ends_all_that_runs_side_by_side(tmp_path):
    body = "import os, time\nopen('{}', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    kernels = [tmp_path / "one", tmp_path / "two"]
    for number, kernel in zip(("03", "04"), kernels, strict=True):
        write_lecture(tmp_path / "lectures", number, body.format(kernel))
    command = [*COMMAND, "run", "--jobs", "2", "--out", str(tmp_path / "out")]
    environment = os.environ | {"COURSE_LECTURES": str(tmp_path / "lectures")}
    options = {"cwd": files.ROOT, "env": environment, "start_new_session": True}
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.read_text() for path in kernels):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    told = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and told.strip().endswith("stopped"), told
    deadline = time.monotonic() + 15
    while any(psutil.pid_exists(int(path.read_text())) for path in kernels):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_nbval_side_by_side(tmp_path):
    tagged = {"metadata": {"tags": ["nbval-check-output"]}}
    for number, stored in (("03", "✔ One\n"), ("04", "✔ Two\n")):
        path = write_lecture(tmp_path / "lectures", number, 'print("✔ One")')
        notebook = notebooks.read(path)
        output = new_output("stream", text=stored)
        notebook.cells[0].update(execution_count=1, outputs=[output], **tagged)
        nbformat.write(notebook, path)
    variables = {"COURSE_SCALE": "quick", "COURSE_DEVICE": "cpu"}
    status, told = in_child(tmp_path, "test-gpu", "--jobs", "2", **variables)
    assert status == 1, told
    assert re.search(r"^03_tiny, quick +\d+ s +passed$", told, re.M)
    assert re.search(r"^04_tiny, quick +\d+ s +FAILED$", told, re.M)
    first, second = sorted(re.split(r"\n(?=0[34]_tiny, quick scale\n)", told)[1:])
    assert "1 passed" in first and "1 failed" in second  # each in one piece


# --- on a worker that shares nothing but the code


def test_two_runs_at_once_print_no_warning(recwarn):
    with socket.socket() as dasks_usual_port:
        with suppress(OSError):  # another test may hold it
            dasks_usual_port.bind(("127.0.0.1", 8787))
            dasks_usual_port.listen()
        with cluster.connected(cluster.Engine(1)):
            pass
    assert not [str(warning.message) for warning in recwarn if "8787" in str(warning.message)]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler with one worker of one thread, and with folders of its own."""
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("elsewhere")
    for name in ("COURSE_CACHE", "COURSE_RESULTS", "COURSE_STATE"):
        patch.setenv(name, str(place / name))
    patch.setenv("COURSE_SCALE", "quick")
    options = {"memory_limit": 0, "dashboard_address": None, "silence_logs": 50}
    options["local_directory"] = str(place / "scratch")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **options) as workers:
        patch.undo()
        yield SimpleNamespace(address=workers.scheduler_address, place=place)


@pytest.fixture
def client_folders(tmp_path, monkeypatch):
    """The client's own cache and results, with one file each."""
    for name in ("CACHE", "RESULTS"):
        monkeypatch.setenv(f"COURSE_{name}", str(tmp_path / name.lower()))
    files.write_atomic(tmp_path / "cache" / "weights" / "old.safetensors", "old weights")
    files.write_atomic(tmp_path / "results" / "03-old.json", "{}")
    return tmp_path


EACH = """\
import os
from course_utils.core import files
from course_utils.lesson.parallel import each

def part(item):
    files.write_atomic(files.cache_dir() / "weights" / f"item{item}.safetensors", "of an item")
    return item, os.getpid()

weights = files.cache_dir() / "weights"
found = [path.read_text() for path in (weights / "old.safetensors", files.results_dir() / "03-old.json")]
parts = each(part, [2, 1])
there = sorted(path.name for path in weights.glob("item*"))
files.write_atomic(weights / "new.safetensors", "new weights")
files.write_atomic(files.results_dir() / "03-new.json", os.environ["COURSE_COMMIT"])
print(found, [item for item, _ in parts], len({pid for _, pid in parts} | {os.getpid()}), there)"""


def test_notebook_records_and_weights_travel_and_items_fit_a_single_worker(
    client_folders, lecture, course, scheduler, monkeypatch
):
    lecture("03", EACH)
    monkeypatch.setenv("COURSE_COMMIT", "of the client")
    told = course("run", "--scale", "full", "--scheduler", scheduler.address)
    assert "03_tiny: ran" in told
    ((output,),) = outputs(client_folders / "out" / "03_tiny.ipynb")
    items = ["item1.safetensors", "item2.safetensors"]
    assert output.text == f"{['old weights', '{}']} [2, 1] 3 {items}\n"
    weights = client_folders / "cache" / "weights"
    assert {*items, "new.safetensors", "old.safetensors"} == {
        path.name for path in weights.iterdir()
    }
    assert (weights / "new.safetensors").read_text() == "new weights"
    assert (client_folders / "results" / "03-new.json").read_text() == "of the client"
    assert not (scheduler.place / "COURSE_RESULTS").exists()
    assert not list(scheduler.place.rglob("*.safetensors"))  # the worker is left as it was


@posix_only
def test_a_lecture_that_kills_every_worker_is_told_and_the_others_are_kept(
    client_folders, lecture, course, scheduler, monkeypatch
):
    monkeypatch.setattr(cluster, "MOST_DEATHS", 2)
    weights = (
        "import os\nfrom pathlib import Path\nplace = Path(os.environ['COURSE_CACHE'], 'weights')"
    )
    kills = "import psutil\npsutil.Process().parent().parent().kill()\nwhile True:\n    pass"
    lecture("03", kills)
    lecture(
        "04", f"{weights}\nplace.mkdir(exist_ok=True)\n(place / 'x.safetensors').touch()", "1 / 0"
    )
    told = course("run", "--scheduler", scheduler.address, status=1)
    assert "03_tiny: FAILED, 0 s\n  its worker died 2 times; the usual cause is too little" in told
    assert "04_tiny FAILED: ZeroDivisionError" in told
    assert (client_folders / "cache" / "weights" / "x.safetensors").exists()
    assert not (client_folders / "out" / "03_tiny.ipynb").exists()


def test_a_worker_with_other_code_or_data_is_refused(lecture, course, scheduler, monkeypatch):
    lecture("03", GOOD)
    run = ("run", "--scheduler", scheduler.address)
    monkeypatch.setattr(cluster, "code_here", lambda: "")
    monkeypatch.setattr(cluster, "data_here", lambda: "Another")
    assert "and you have Another: set COURSE_DATA there" in course(*run, status=1)
    monkeypatch.setattr(cluster, "code_here", lambda: "another version")
    assert "another version of the course or of Python" in course(*run, status=1)


def test_a_scheduler_that_is_not_there(lecture, course, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    lecture("03", GOOD)
    told = course("run", "--scheduler", "tcp://127.0.0.1:1", status=1)
    assert told.endswith("\n") and "Traceback" not in told
    assert "course: no scheduler answers at tcp://127.0.0.1:1. Start one with `dask sched" in told


def test_a_scheduler_without_workers(lecture, course, monkeypatch):
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 1)
    lecture("03", GOOD)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty:
        told = course("run", "--scheduler", empty.scheduler_address, status=1)
    assert "03_tiny FAILED: the workers at" in told and "start `dask worker ADDRESS`" in told


def test_a_scheduler_that_goes_away_in_mid_run(lecture, course, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
    lecture("03", GOOD)
    options = {"memory_limit": 0, "dashboard_address": None, "silence_logs": 50}
    workers = distributed.LocalCluster(n_workers=1, threads_per_worker=1, **options)
    submit = cluster.Run.submit

    def submit_and_close(*arguments):
        task = submit(*arguments)
        workers.close()
        return task

    monkeypatch.setattr(cluster.Run, "submit", submit_and_close)
    told = course("run", "--scheduler", workers.scheduler_address, status=1)
    assert "03_tiny FAILED: the workers at" in told and "run it again to go on" in told
