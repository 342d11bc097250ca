"""``course doctor``: names what is wrong with this machine's set-up, and the cure.

Imports nothing at the top that may be missing or broken: telling so is its job.
"""

import functools
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FREE_GB = 1.0  # MNIST, weights and outputs take a third of it
REINSTALL = "pip install -e . -c constraints.txt (in the folder of the course)"


class Problem(Exception):
    """What is wrong, and the cure."""


# torchvision that does not belong to torch fails on import, sometimes with a crash: so it is tried in another process.
_TORCH = """
import json, torch
told = {"torch": torch.__version__, "cuda": torch.cuda.is_available(), "built": torch.version.cuda}
told["gpu"] = torch.cuda.get_device_name() if told["cuda"] else ""
told["mps"] = torch.backends.mps.is_available()
import torchvision
from torchvision.ops import nms
nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(json.dumps(told | {"torchvision": torchvision.__version__}))
"""


# Each check gives what it found and where (folders, which no committed notebook may show), or raises Problem.
Found = tuple[str, str]


def python() -> Found:
    if sys.version_info < (3, 11):  # noqa: UP036  (pip and make refuse it, but PYTHON=... and plain copies do not)
        raise Problem(f"Python {platform.python_version()} is too old. Install 3.11 or newer, and make the environment anew with it.")
    return platform.python_version(), sys.executable


def packages() -> Found:
    import tomllib

    from packaging.requirements import Requirement

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wrong = []
    for requirement in map(Requirement, wanted):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, and the course needs {requirement.specifier}")
    if wrong:
        raise Problem(f"{'; '.join(wrong)}. Cure: {REINSTALL}")
    return f"all {len(wanted)} are there, in versions that fit", ""


@functools.cache
def _torch() -> dict:
    try:
        done = subprocess.run([sys.executable, "-P", "-c", _TORCH], capture_output=True, text=True, errors="replace", timeout=180)
    except subprocess.TimeoutExpired:
        raise Problem("importing torch took more than three minutes. Is the disk very slow? Try once more.") from None
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    versions = []
    for name in ("torch", "torchvision"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    cure = "pip install --upgrade --force-reinstall torch torchvision -c constraints.txt"
    raise Problem(f"{' and '.join(versions)} do not work together ({said}). Each torchvision belongs to one torch. Cure: {cure}")


def torch_pair() -> Found:
    told = _torch()
    return f"torch {told['torch']} with torchvision {told['torchvision']}", ""


def gpu() -> Found:
    from course_utils import runtime

    try:
        told = _torch()
    except Problem:
        raise Problem("cannot be told before PyTorch works.") from None
    try:
        chosen = runtime.device()
    except ValueError as error:
        raise Problem(str(error)) from error
    if told["cuda"]:
        return f"{chosen}; this machine has CUDA ({told['gpu']})", ""
    if told["mps"]:
        return f"{chosen}; this machine has Apple's MPS", ""
    if shutil.which("nvidia-smi"):
        why = f"built for CUDA {told['built']}; a newer driver may cure it" if told["built"] else "a build without CUDA"
        return f"{chosen}; there is an NVIDIA driver, but this PyTorch ({why}) cannot use it", ""
    return f"{chosen}; no GPU, which is fine for the quick scale", ""


def scale() -> Found:
    from course_utils import runtime

    try:
        return runtime.scale(), ""
    except ValueError as error:
        raise Problem(str(error)) from error


def _sets() -> list[str]:
    """Titles of the data sets that need no download: complete and undamaged, or as complete archives."""
    from course_utils import data, runtime

    root, sets = runtime.data_dir(), map(data._describe, data.DOWNLOAD_SECONDS)
    return [about.title for about in sets if any(len(data._good(root, files)) == len(files) for files in (about.files, about.archives))]


def data() -> Found:
    from course_utils import runtime

    found = _sets()
    missing = (
        "" if "MNIST" in found else "; MNIST is downloaded when first needed (12 MB), and without network the embedded digits stand in"
    )
    return f"{', '.join(found) or 'no data set yet'}{missing}", str(runtime.data_dir())


def widgets() -> Found:
    import anywidget
    import ipywidgets
    import jupyterlab

    return f"ipywidgets {ipywidgets.__version__}, anywidget {anywidget.__version__}, JupyterLab {jupyterlab.__version__}", ""


def folders() -> Found:
    from course_utils import runtime

    lines = []
    for variable, place in (
        ("COURSE_DATA", runtime.data_dir()),
        ("COURSE_CACHE", runtime.cache_dir()),
        ("COURSE_STATE", runtime.state_dir()),
    ):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            if variable == "COURSE_DATA" and "MNIST" in _sets():
                continue  # a classroom's folder, complete and read-only
            raise Problem(f"{place} cannot be written ({error}). Set {variable} to a folder of your own.") from error
        lines.append(f"{variable} is {place}")
    return "data, cache and progress can be written", ", ".join(lines)


def disk() -> Found:
    from course_utils import runtime

    place = next(place for place in (runtime.cache_dir(), *runtime.cache_dir().parents) if place.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < FREE_GB:
        raise Problem(
            f"{free:.1f} GB are free at {place}; the course needs {FREE_GB:g} GB. Make room, or set COURSE_CACHE and COURSE_DATA elsewhere."
        )
    return f"{free:.0f} GB free", str(place)


def lectures() -> Found:
    from course_utils import notebooks

    try:
        return str(len(notebooks.find([]))), str(notebooks.folder())
    except ValueError as error:
        raise Problem(str(error)) from error


CHECKS: dict[str, Callable[[], Found]] = {
    "Python": python,
    "Packages": packages,
    "PyTorch": torch_pair,
    "Device": gpu,
    "Scale": scale,
    "Data": data,
    "Widgets": widgets,
    "Folders": folders,
    "Disk": disk,
    "Lectures": lectures,
}


def report(*, where: bool = False) -> int:
    """Prints one line per check, with ``where`` the folders too; gives the number of problems."""
    problems = 0
    for name, check in CHECKS.items():
        try:
            text, place = check()
            print(f"ok       {name}: {text}{f' ({place})' if where and place else ''}", flush=True)
            continue
        except Problem as problem:
            text = str(problem)
        except Exception as error:  # whatever is broken, the other checks still have something to say
            text = f"{type(error).__name__}: {error}. Cure: {REINSTALL}"
        problems += 1
        print(f"PROBLEM  {name}: {text}", flush=True)
    print(f"{problems} problem{'s' * (problems != 1)} found" if problems else "Everything is in order")
    return problems
