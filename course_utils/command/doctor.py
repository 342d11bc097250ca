"""``course doctor``: says what is wrong with this machine's set-up, and the cure.

Imports at the top only what comes with Python, since everything else may be missing or broken.
"""

import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec

from course_utils.command import notebooks
from course_utils.core import files

FREE_GB = 1.0  # MNIST, weights and outputs take a third of it
PROBE_SECONDS = 180
REINSTALL = "pip install -e . -c constraints.txt (in the folder of the course)"
REINSTALL_TORCH = "pip install --upgrade --force-reinstall torch torchvision -c constraints.txt"

# What a check found, and where: folders, which no committed notebook may show.
Found = tuple[str, str]


# --- what needs PyTorch, in a process of its own


def torch_facts() -> dict:
    """Versions; fails, perhaps with a crash, if torch and torchvision do not fit."""
    import torch

    import_torchvision()
    from torchvision.version import __version__ as torchvision_version

    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return {
        "pair": f"torch {torch.__version__} with torchvision {torchvision_version}",
        "cuda build": torch.version.cuda,
    }


def import_torchvision() -> None:
    """Imports what the course needs of torchvision, its operators and data sets.

    Leaves out its ``__init__``, which takes more than a second for its networks.
    """
    try:
        sys.modules["torchvision"] = module_from_spec(find_spec("torchvision"))
        from torchvision import datasets, extension  # noqa: F401
    except Exception:  # of another release, or broken: then this says how
        del sys.modules["torchvision"]
        import torchvision  # noqa: F401


def device_facts() -> dict:
    """The device that the course takes, what PyTorch warns of, and the GPUs that can compute."""
    import torch

    from course_utils.core import runtime

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        chosen = runtime.device()
    gpu = ""
    if not runtime.trouble("cuda"):
        gpu = torch.cuda.get_device_name()
    return {
        "chosen": str(chosen),
        "warnings": [str(warning.message) for warning in told],
        "gpu": gpu,
        "mps": not runtime.trouble("mps"),
    }


def complete_sets() -> list[str]:
    """Titles of the data sets that need no download: all files or all archives are intact."""
    from course_utils.core import download

    root = files.data_dir()
    sources = map(download.describe, download.DOWNLOAD_SECONDS)
    return [
        source.title
        for source in sources
        if download.has_all(root, source.files) or download.has_all(root, source.archives)
    ]


def in_words(error: Exception) -> str:
    """What is wrong, and the cure. A ValueError of the course itself says both."""
    if type(error) is ValueError:
        return str(error)
    cure = REINSTALL
    if isinstance(error, PermissionError):
        cure = "give yourself the right to use it"
    return f"{type(error).__name__}: {error}. Cure: {cure}"


def probe() -> None:
    """Prints name -> (answer, problem) as JSON. The child process calls this."""
    answers = {"torch": (torch_facts(), "")}
    from course_utils.core import photos, runtime

    questions = {
        "device": device_facts,
        "scale": runtime.scale,
        "sets": complete_sets,
        "photos": photos.missing,
    }
    for name, ask in questions.items():
        try:
            answers[name] = (ask(), "")
        except Exception as error:
            answers[name] = (None, in_words(error))
    print(json.dumps(answers, default=str))


@functools.cache
def start_probe() -> subprocess.Popen:
    """The child process. Started early, it imports PyTorch while other checks run."""
    code = "from course_utils.command import doctor; doctor.probe()"
    environment = os.environ | {"PYTHONPATH": notebooks.put_first(files.ROOT, "PYTHONPATH")}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


@functools.cache
def run_probe() -> dict:
    """The answers of the child process."""
    child = start_probe()
    try:
        stdout, stderr = child.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        problem = (
            f"importing torch took more than {PROBE_SECONDS // 60} minutes. "
            "Is the disk very slow? Try once more."
        )
        return {"torch": (None, problem)}
    if child.returncode == 0:
        return json.loads(stdout.splitlines()[-1])
    reason = f"exit status {child.returncode}"
    if stderr.strip():
        reason = stderr.strip().splitlines()[-1]
    problem = (
        f"{installed('torch')} and {installed('torchvision')} do not work together ({reason}). "
        f"Each torchvision belongs to one torch. Cure: {REINSTALL_TORCH}"
    )
    return {"torch": (None, problem)}


def installed(name: str) -> str:
    """A package's name and version."""
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"


def answer(name: str):
    """One answer of the child process. Raises ``ValueError`` if there is none."""
    value, problem = run_probe().get(name, (None, "unknown until PyTorch works."))
    if problem:
        raise ValueError(problem)
    return value


# --- checks


def python() -> Found:
    # pip and make refuse an older Python, but a plain copy of the course does not
    if sys.version_info < (3, 11):  # noqa: UP036
        raise ValueError(
            f"Python {platform.python_version()} is too old. "
            "Install 3.11 or newer, and make the environment anew with it."
        )
    return platform.python_version(), sys.executable


def packages() -> Found:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = project["project"]["dependencies"]
    wrong = []
    for requirement in map(Requirement, requirements):
        name = requirement.name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{name} is {version}, and the course needs {requirement.specifier}")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}. Cure: {REINSTALL}")
    return f"all {len(requirements)} are there, in versions that fit", ""


def torch_pair() -> Found:
    return answer("torch")["pair"], ""


def device() -> Found:
    facts = answer("device")
    chosen = "; ".join([facts["chosen"], *facts["warnings"]])
    if facts["warnings"]:
        return chosen, ""
    if facts["gpu"]:
        return f"{chosen}; this machine has CUDA ({facts['gpu']})", ""
    if facts["mps"]:
        return f"{chosen}; this machine has Apple's MPS", ""
    if not shutil.which("nvidia-smi"):
        return f"{chosen}; no GPU, which is fine for the quick scale", ""
    build = "a build without CUDA"
    cuda = answer("torch")["cuda build"]
    if cuda:
        build = f"built for CUDA {cuda}; a newer driver may cure it"
    return f"{chosen}; there is an NVIDIA driver, but this PyTorch ({build}) cannot use it", ""


def scale() -> Found:
    return answer("scale"), ""


def data() -> Found:
    found = answer("sets")
    text = ", ".join(found) or "no data set yet"
    if "MNIST" not in found:
        text += (
            "; MNIST is downloaded when first needed (12 MB), "
            "and without network the embedded digits stand in"
        )
    return text, str(files.data_dir())


def photographs() -> Found:
    absent = answer("photos")
    return absent or "the networks and pictures of lecture 14 are there", ""


def widgets() -> Found:
    import anywidget
    import ipywidgets

    if find_spec("jupyterlab") is None:  # more than a second to import
        raise ImportError("there is no module jupyterlab")
    found = (
        f"ipywidgets {ipywidgets.__version__}, anywidget {anywidget.__version__}, "
        f"JupyterLab {importlib.metadata.version('jupyterlab')}"
    )
    return found, ""


def folders() -> Found:
    places = {
        "COURSE_DATA": files.data_dir,
        "COURSE_CACHE": files.cache_dir,
        "COURSE_STATE": files.state_dir,
    }
    sets, _ = run_probe().get("sets", (None, ""))
    lines = []
    wrong = []
    try:
        notebooks.check_jupyter()
    except ValueError as error:
        wrong.append(str(error))
    for variable, place in places.items():
        try:
            files.check_writable(variable, place())
            lines.append(f"{variable} is {place()}")
        except ValueError as error:
            if variable != "COURSE_DATA" or "MNIST" not in (sets or ()):
                wrong.append(str(error))  # else a classroom's folder, complete and read-only
    if wrong:
        raise ValueError(" ".join(wrong))
    return "data, cache and progress can be written", ", ".join(lines)


def disk() -> Found:
    place = files.cache_dir()
    while not os.path.exists(place):  # False, too, where it may not be looked at
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free < FREE_GB:
        raise ValueError(
            f"{free:.1f} GB are free at {place}; the course needs {FREE_GB:g} GB. "
            "Make room, or set COURSE_CACHE and COURSE_DATA elsewhere."
        )
    return f"{free:.0f} GB free", str(place)


def lectures() -> Found:
    return str(len(notebooks.find([]))), str(files.lectures_dir())


# Those that wait for the child process come last
CHECKS: dict[str, Callable[[], Found]] = {
    "Python": python,
    "Packages": packages,
    "Widgets": widgets,
    "Disk": disk,
    "Lectures": lectures,
    "PyTorch": torch_pair,
    "Device": device,
    "Scale": scale,
    "Data": data,
    "Photographs": photographs,
    "Folders": folders,
}


def examine(check: Callable[[], Found], where: bool) -> tuple[bool, str]:
    """Whether a check passes, and what to say about it."""
    try:
        text, place = check()
    except Exception as error:  # whatever is broken, the other checks still run
        return False, in_words(error)
    if where and place:
        text += f" ({place})"
    return True, text


def report() -> None:
    """Prints one line per check and how many problems there are, for a notebook."""
    count_problems(where=False, say=files.say)


def count_problems(*, where: bool, say: Callable[[str], None]) -> int:
    """Prints one line per check, with ``where`` the folders too; returns the number of problems."""
    for answers in (start_probe, run_probe):
        answers.cache_clear()
    start_probe()
    problems = 0
    for name, check in CHECKS.items():
        good, text = examine(check, where)
        if good:
            say(f"ok       {name}: {text}")
        else:
            problems += 1
            say(f"PROBLEM  {name}: {text}")
    summary = {0: "Everything is in order", 1: "1 problem found"}
    say(summary.get(problems, f"{problems} problems found"))
    return problems
