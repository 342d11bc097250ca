"""The files that install the course say one thing; see also ``make`` and ``environment.yml``."""

import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from course_utils.core.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["photos"] + EXTRAS["dev"]]
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*")
# Papers and projects may be linked; an index of packages, or a machine of ours, may not be named.
INDEXES = "|".join(["py" + "pi", "python" + "hosted", "npm" + "js", "ana" + "conda"])
ADDRESSES = [
    r"--[a-z-]+-(?:url|links|host)\b",
    r"[\w.-]+[.]\w+(?::\d+)?(?:/[\w.-]+)*/(?:simple|packages)\b",
    rf"(?i)\b[\w.-]*(?:{INDEXES})[\w-]*[.](?:org|com|net|io)\b",
    r"https?://(?!127[.]0[.]0[.]1)\d+[.]\d+[.]\d+[.]\d+",
]
MACHINE = [r"/root[/]", re.escape(str(ROOT)), r"/home/(?!runner)\w+[/]", r"/Users/\w+[/]"]


def constraints(text: str) -> dict[str, str]:
    """Name -> version; raises on any line that is not plain ``name==version``."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    odd = [line for line in lines if not PLAIN.fullmatch(line)]
    assert not odd, f"not plain name==version: {odd}"
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }


PINNED = constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_has_a_range_and_a_tested_version_in_it(requirement):
    assert requirement.specifier and not any(
        part.operator in ("==", "===") for part in requirement.specifier
    ), "give a range"
    assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_hold_no_platform_s_own_packages():
    assert not [name for name in PINNED if name.startswith(("nvidia", "cuda", "triton"))]
    assert "torchattacks" in PINNED  # which the Makefile installs by name


@pytest.mark.parametrize(
    "line", ["torch==2.15.0+cu132", "torch>=2", "course @ file:///x", "-e .", "--pre", "torch"]
)
def test_a_line_that_is_not_plain_is_seen(line):
    with pytest.raises(AssertionError):
        constraints(f"numpy==2.0\n{line}\n")


def test_conda_installs_the_same_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert "pip" in conda
    (python,) = [line for line in conda if line.startswith("python ")]
    assert SpecifierSet(python.split(" ", 1)[1]) == SpecifierSet(PROJECT["requires-python"])
    assert len(conda) == 2, "what the course needs stands in pyproject.toml alone"
    assert pip == {"pip": ["-c constraints.txt", "-e .[photos]"]}


def test_everything_that_is_imported_is_declared():
    """Names as imported; all others in ``course_utils`` come with Python."""
    called = {"ipython": "IPython", "pillow": "PIL", "scikit-learn": "sklearn"}
    declared = {
        called.get(name, name.replace("-", "_"))
        for extra in (PROJECT["dependencies"], *map(EXTRAS.get, ("cluster", "photos")))
        for name in (canonicalize_name(Requirement(line).name) for line in extra)
    }
    imported = set()
    for path in (ROOT / "course_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    imported.remove("torchattacks")  # autoattack.py asks for it only where somebody compares
    assert imported - set(sys.stdlib_module_names) - {"course_utils"} <= declared


def committed() -> list:
    """Every file that is or would be committed, as text; none outside a clone."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("this is no clone")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def mentions(patterns: list[str], text: str) -> list[str]:
    return [found[0] for pattern in patterns if (found := re.search(pattern, text))]


def test_no_web_address_and_no_folder_of_one_machine_in_any_committed_file():
    found = {}
    for path in committed():
        if hits := mentions(
            ADDRESSES + MACHINE, path.read_bytes().decode("utf-8", errors="replace")
        ):
            found[path.relative_to(ROOT).as_posix()] = hits
    assert not found


PIECES = [  # put together here, as this file is searched too
    *(
        ("--some", "-url x"),
        ("--one-more", "-url=x"),
        ("--some", "-links x"),
        ("--some", "-host x"),
    ),
    *(
        ("https://wheels.example/sim", "ple"),
        ("http:", "//10.0.0.1"),
        ("a-b.example.com/", "packages"),
    ),
    *(("files.py", "thonhosted.org"), ("registry.np", "mjs.org"), ("py", "pi.org")),
    *(("/root", "/.cache"), (str(ROOT), "/data")),
]


@pytest.mark.parametrize("text", ["".join(pieces) for pieces in PIECES])
def test_an_address_is_seen(text):
    assert mentions(ADDRESSES + MACHINE, text)


@pytest.mark.parametrize(
    "text", ["https://arxiv.org/abs/1706.06083", "https://github.com/a/b", "x/simple.py"]
)
def test_a_paper_may_be_linked(text):
    assert not mentions(ADDRESSES + MACHINE, text)


def test_licence_and_citation():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith(f"{PROJECT['license']} License")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["license"], citation["version"]) == (PROJECT["license"], PROJECT["version"])


def test_hosted_ci_is_yaml_and_has_a_leg_on_the_newest_releases():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))[
        "jobs"
    ]
    legs = jobs["test"]["strategy"]["matrix"]["include"]
    assert {leg["constraints"] for leg in legs} == {"constraints.txt", ""}
    assert all(leg["python"] in SpecifierSet(PROJECT["requires-python"]) for leg in legs)


def test_make_explains_itself():
    told = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("lectures", "test", "lab", "present", "refresh", "test-gpu", "bench", "lint"):
        assert re.search(rf"^make {target} +\S", told, re.M)


def plan(*arguments: str, **variables: str) -> str:
    """What ``make`` would do in a fresh clone."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    } | variables
    command = ["make", "--no-print-directory", "-n", "-W", "pyproject.toml", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_given_interpreter_runs_the_gpu_test_as_it_is():
    for told in (plan("test-gpu", PYTHON="/opt/python"), plan("test-gpu", "PYTHON=/opt/python")):
        assert told.split() == ["/opt/python", "-m", "course_utils.command.cli", "test-gpu"]
    assert ".venv/bin/python -m course_utils.command.cli test-gpu" in plan(
        "test-gpu"
    ) and "pip install" in plan("test-gpu")


def test_versions_are_the_tested_ones_or_the_newest():
    assert "-c constraints.txt -e '.[cluster,photos]'" in plan("lectures")
    assert "constraints" not in plan("lectures", "CONSTRAINTS=")


def test_an_old_python_is_refused_with_the_cure(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "--no-print-directory", "-W", "pyproject.toml", f"PYTHON={old}", "lectures"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode
        and "needs Python 3.11 or newer" in done.stdout
        and "Python 3.9.1" in done.stdout
    )
    assert "make PYTHON=python3.12 lectures" in done.stdout
