"""``course doctor``, on machines with one thing wrong each."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from course_utils.command import doctor
from course_utils.core import download, files, runtime

FACTS = {"pair": "torch 2 with torchvision 0", "cuda build": None}
DEVICE = {"chosen": "cpu", "warnings": [], "gpu": "", "mps": False}


@pytest.fixture
def healthy(lecture, env, tmp_path):
    """A machine with nothing wrong and no data."""
    lecture("03")
    env(**{name: tmp_path / name for name in ("DATA", "CACHE", "STATE")})


@pytest.fixture
def probed(monkeypatch):
    """``probed(scale="full", …)`` takes the place of the slow child process."""

    def answers(**changed):
        usual = {"torch": FACTS, "device": DEVICE, "scale": "quick", "sets": [], "photos": ""}
        good = {name: (answer, "") for name, answer in (usual | changed).items()}
        monkeypatch.setattr(doctor, "start_probe", functools.cache(lambda: None))
        monkeypatch.setattr(doctor, "run_probe", functools.cache(lambda: good))

    answers()
    return answers


def problems(told):
    return re.findall(r"^PROBLEM  (\w+): (.*)$", told, re.M)


@pytest.mark.slow
def test_doctor_finds_nothing(healthy, course):
    told = course("doctor")
    assert told.endswith("Everything is in order\n") and not problems(told)
    for name in doctor.CHECKS:
        assert re.search(rf"^ok +{name}: \S", told, re.M)
    assert torch.__version__ in told and "embedded digits stand in" in told


def test_doctor_says_what_is_missing_for_photographs(healthy, probed, course):
    probed(photos="Photographs need timm, which this Python lacks.")
    told = course("doctor")  # lecture 14 alone needs it: no problem
    assert "ok       Photographs: Photographs need timm" in told


def test_doctor_s_report_in_a_lecture_names_no_folder(healthy, probed, capsys, tmp_path):
    assert doctor.report() is None  # a cell would show a number
    told = capsys.readouterr().out
    assert "Everything is in order" in told
    assert str(tmp_path) not in told and sys.prefix not in told


def setting(*target):
    return lambda patch: patch.setattr(*target)


def variable(name, value):
    return lambda patch: patch.setenv(name, value)


def version(name):
    return "7.7" if name == "ipywidgets" else "99"


# fmt: off
PROBLEMS = {
    "Python": (setting(sys, "version_info", (3, 10, 4)), "is too old. Install 3.11"),
    "Packages": (
        setting(doctor.importlib.metadata, "version", version),
        "ipywidgets is 7.7, and the course needs >=8.1. Cure: pip install",
    ),
    "Widgets": (lambda patch: patch.setitem(sys.modules, "anywidget", None), "anywidget"),
    "Folders": (variable("COURSE_STATE", "/dev/null/state"), "cannot be written"),
    "Disk": (setting(shutil, "disk_usage", lambda _: SimpleNamespace(free=2e8)), "0.2 GB are free"),
    "Lectures": (variable("COURSE_LECTURES", "/nowhere"), "there are no lectures in"),
}
# fmt: on


@pytest.mark.parametrize("name", PROBLEMS)
def test_doctor_names_the_problem_and_the_cure(name, healthy, probed, course, monkeypatch):
    spoil, words = PROBLEMS[name]
    spoil(monkeypatch)
    told = course("doctor", status=1)
    ((found, text),) = problems(told)
    assert found == name and words in text and "1 problem found" in told


def test_doctor_misses_jupyterlab_without_importing_it(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="no module jupyterlab"):
        doctor.widgets()


@pytest.mark.slow
def test_doctor_imports_little(healthy):
    """Processor time, as a busy machine has little to give; 2.5 s are usual, most of it torch's."""
    resource = pytest.importorskip("resource", reason="Windows measures otherwise")

    def seconds(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=files.ROOT, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    doctors = ("-m", "course_utils.command.cli", "doctor")
    assert min(seconds(*doctors) for _ in range(2)) < 1.8 * seconds("-c", "import torch")


def test_torchvision_of_another_build_is_imported_as_a_whole(tmp_path):
    """And it says itself what is wrong."""
    (tmp_path / "torchvision").mkdir()
    source = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    code = "from course_utils.command import doctor; doctor.import_torchvision()"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("operator torchvision::nms does not exist")


@pytest.mark.parametrize("variable", ["COURSE_DATA", "COURSE_CACHE", "COURSE_STATE"])
@pytest.mark.parametrize("value", ["'mine'", "mine\r", "$HOME/mine"])
def test_doctor_names_a_wrong_folder_and_goes_on(
    variable, value, healthy, probed, course, monkeypatch
):
    monkeypatch.setenv(variable, value)
    told = course("doctor", status=1)
    wrong = dict(problems(told))
    assert wrong["Folders"].startswith(f"{variable} is {value!r}; leave out")
    assert "pip install" not in told and "ok       Widgets" in told and "ok       Lectures" in told


def test_doctor_names_all_folders_that_a_user_without_home_needs(
    healthy, probed, course, monkeypatch, tmp_path
):
    pwd = pytest.importorskip("pwd", reason="Windows knows a home by other means")

    def unknown(uid):
        raise KeyError(uid)

    for name in ("COURSE_DATA", "COURSE_CACHE", "COURSE_STATE"):
        monkeypatch.delenv(name)
    for name in ("HOME", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    found = dict(problems(course("doctor", status=1)))
    assert list(found) == ["Disk", "Data", "Folders"]
    for name in ("COURSE_DATA", "COURSE_CACHE", "COURSE_STATE"):
        assert f"{name} is not set" in found["Folders"]
    assert "which Jupyter needs; set HOME to" in found["Folders"]
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    assert "Jupyter" not in course("doctor", status=1).split("Folders")[1]


def test_doctor_gives_no_cure_that_is_none():
    told = doctor.in_words(PermissionError(13, "Permission denied", "/data"))
    assert "/data" in told and "pip" not in told
    assert "Cure: pip install" in doctor.in_words(UnicodeDecodeError("utf-8", b"", 0, 1, "bad"))
    assert doctor.in_words(ValueError("do that")) == "do that"


@pytest.mark.slow
def test_doctor_names_a_wrong_device_and_scale(healthy, course, env):
    env(DEVICE="abacus", SCALE="medium")
    told = course("doctor", status=1)
    (device, scale) = problems(told)
    assert told.endswith("2 problems found\n")
    assert device[0] == "Device" and device[1].startswith("COURSE_DEVICE is 'abacus'")
    assert scale[0] == "Scale" and scale[1].startswith("COURSE_SCALE is 'medium'; set it to one of")


BROKEN = {  # what `import torch` does -> the reason that is shown
    "raise RuntimeError('operator torchvision::nms does not exist')": "torchvision::nms does not",
    "raise ModuleNotFoundError(\"No module named 'torch'\")": "No module named 'torch'",
    "import os; os.abort()": "exit status -6",
}


@pytest.mark.skipif(sys.platform == "win32", reason="another exit status")
@pytest.mark.parametrize("source", BROKEN)
def test_doctor_runs_where_torch_and_rich_do_not(healthy, tmp_path, source):
    for name, text in (("torch", source), ("rich", "raise ImportError('rich')")):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text(text)
    command = [sys.executable, "-m", "course_utils.command.cli", "doctor"]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "broken")}
    done = subprocess.run(command, cwd=files.ROOT, env=env, capture_output=True, text=True)
    pair, *others = problems(done.stdout)
    assert done.returncode == 1 and not done.stderr
    cure = "Each torchvision belongs to one torch. Cure: pip install --upgrade"
    assert pair[0] == "PyTorch"
    assert all(text in pair[1] for text in ("do not work together (", BROKEN[source], cure))
    assert others == [
        (name, "unknown until PyTorch works.")
        for name in ("Device", "Scale", "Data", "Photographs")
    ]


def test_doctor_gives_up_on_a_torch_that_never_loads(healthy, course, monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)
    assert "importing torch took more than" in dict(problems(course("doctor", status=1)))["PyTorch"]


@pytest.mark.parametrize(
    "facts, build, driver, words",
    [
        ({"gpu": "A GPU"}, None, True, "cpu; this machine has CUDA (A GPU)"),
        ({"mps": True}, None, False, "cpu; this machine has Apple's MPS"),
        ({}, None, False, "cpu; no GPU, which is fine for the quick scale"),
        ({}, None, True, "this PyTorch (a build without CUDA) cannot use it"),
        ({}, "13.2", True, "(built for CUDA 13.2; a newer driver may cure it)"),
        ({"warnings": ["It is too old."]}, "13.2", True, "cpu; It is too old."),
    ],
)
def test_doctor_explains_the_device(probed, monkeypatch, facts, build, driver, words):
    probed(device=DEVICE | facts, torch=FACTS | {"cuda build": build})
    monkeypatch.setattr(shutil, "which", lambda name: driver or None)
    assert words in doctor.device()[0]


@pytest.mark.parametrize("name, kind", [("cuda", torch.cuda), ("mps", torch.backends.mps)])
def test_doctor_tries_the_device(monkeypatch, name, kind):
    """As where a GPU is too old for this PyTorch: listed, and the first kernel fails."""
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    for other in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(other, "is_available", lambda there=other is kind: there)
    monkeypatch.setattr(runtime, "trouble", {"cuda": "no kernel image", "mps": "too old"}.get)
    facts = doctor.device_facts()
    assert (facts["chosen"], facts["gpu"], facts["mps"]) == ("cpu", "", False)
    (told,) = facts["warnings"]
    assert f"has {name}" in told and runtime.trouble(name) in told


def test_a_set_is_complete_with_all_files_or_all_archives(monkeypatch, tmp_path, env):
    env(DATA=tmp_path)
    (tmp_path / "here").write_text("here")
    here, damaged = ({"here": hashlib.md5(text).hexdigest()} for text in (b"here", b"other"))
    partly = here | {"missing": "0"}
    sources = {"mnist": (here, damaged), "cifar10": (partly, here), "svhn": (damaged, damaged)}

    def describe(name):
        wanted, archives = sources[name]
        return SimpleNamespace(title=name.upper(), files=wanted, archives=archives)

    monkeypatch.setattr(download, "describe", describe)
    assert doctor.complete_sets() == ["MNIST", "CIFAR10"]


def test_doctor_sees_the_data(healthy, probed):
    probed(sets=["MNIST", "SVHN"])
    assert doctor.data() == ("MNIST, SVHN", str(files.data_dir()))


def test_a_data_folder_may_be_read_only_where_it_has_mnist(healthy, probed, env):
    env(DATA="/dev/null/data")
    probed(sets=["MNIST"])
    assert "COURSE_DATA" not in doctor.folders()[1]
    probed(sets=["SVHN"])
    with pytest.raises(ValueError, match="Set COURSE_DATA to a folder of your own"):
        doctor.folders()


def test_doctor_lets_the_next_download_be_tried(healthy, probed, course, monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(download, "forget_failed_downloads", lambda: asked.append(True))
    course("doctor")
    assert asked
