"""The plan of the house: folders import downwards, no private name crosses a wall, light stays light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from course_utils.core.files import ROOT

FOLDERS = ("core", "methods", "lesson", "check", "command")  # each imports from those before it
PACKAGE = ROOT / "course_utils"
FILES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
HEAVY = "sklearn scipy ipywidgets anywidget torchvision IPython jupyterlab nbclient".split()
LINES = 40  # of one function, without its docstring and blank lines
COLUMNS = 100


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def folder_of(module: str) -> str:
    """The folder of ``course_utils.<folder>.<module>``; empty for the package itself."""
    return (module.split(".") + [""])[1]


def imported(source: str, package: str = "course_utils") -> set[str]:
    """The modules of ``course_utils`` that this source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level])
            start = f"{base}.{node.module or ''}".strip(".") if node.level else node.module
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "course_utils"}


def upward(folder: str, source: str) -> set[str]:
    depth = FOLDERS.index(folder)
    others = {name: folder_of(name) for name in imported(source, f"course_utils.{folder}")}
    return {name for name, other in others.items() if other not in FOLDERS[: depth + 1]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        assert parts[0] in FOLDERS, "a sixth folder has no place in the order"
        assert not upward(parts[0], path.read_text(encoding="utf-8"))
    else:
        assert not imported(path.read_text(encoding="utf-8"))


def test_no_module_imports_itself_through_others():
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in FILES
    }
    graph = {}
    for module, path in modules.items():
        names = imported(path.read_text(encoding="utf-8"), module.rpartition(".")[0])
        graph[module] = {n if n in modules else n.rpartition(".")[0] for n in names} & set(modules)
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    "line",
    [
        "import course_utils.lesson.widgets",
        "from course_utils.lesson import widgets",
        "from course_utils.lesson.widgets import explorer",
        "from ..lesson import widgets",
        "from course_utils import lesson",
    ],
)
def test_an_upward_import_is_seen(line):
    assert upward("core", f"def load():\n    {line}\n")
    assert not upward("command", "from course_utils.lesson import widgets")


# ------------------------------------------------------------------------------- private names


def private(source: str) -> set[str]:
    """Names with one leading underscore that belong to another module or to an imported class."""
    tree = ast.parse(source)
    modules = set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils"):
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            found |= {name for name in names.values() if is_private(name)}
            modules |= set(names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if isinstance(node.value, ast.Name) and node.value.id in modules:
                found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[0], ast.Name):
            name = node.args[1]
            if node.args[0].id in modules and isinstance(name, ast.Constant):
                if is_private(str(name.value)):  # setattr(module, "_name", …), getattr(…)
                    found.add(f"{node.args[0].id}.{name.value}")
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", FILES + OUTSIDE, ids=name_of)
def test_no_private_name_crosses_a_wall(path):
    assert not private(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "from course_utils.core.models import _flat",
        "from course_utils.core import models\nmodels._flat(1)",
        "from course_utils.core import models as m\nm._flat",
        "from course_utils.core import models\npatch.setattr(models, '_flat', 1)",
    ],
)
def test_a_private_name_is_seen(line):
    assert private(line)
    assert not private(line.replace("_flat", "flat"))


# -------------------------------------------------------------------------------- size and form


def functions(source: str) -> dict[str, int]:
    """Name -> lines of code, without the docstring and blank lines."""
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = set(range(node.lineno, node.end_lineno + 1))
            if ast.get_docstring(node):
                text = node.body[0]
                inside -= set(range(text.lineno, text.end_lineno + 1))
            found[node.name] = sum(1 for i in inside if lines[i - 1].strip())
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_and_lines_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert not {name: size for name, size in functions(source).items() if size > LINES}
    wide = [i for i, line in enumerate(source.splitlines(), 1) if len(line) > COLUMNS]
    assert not wide


def test_a_long_function_is_seen():
    body = "\n".join(f"    x{i} = {i}" for i in range(LINES))
    assert functions(f'def long():\n    """Text."""\n\n{body}\n') == {"long": LINES + 1}


# ---------------------------------------------------------------------------------- light imports


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    return done.stdout.strip()


def test_light_modules_import_nothing_heavy():
    """Each module is imported after those before it, so that the first to blame is named."""
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in FILES
        if path.name
        not in (
            "widgets.py",
            "photo_widgets.py",
            "notebooks.py",
            "runner.py",
            "lab.py",
            "slides.py",
            "pages.py",
        )
    ]
    run(
        "import importlib, sys\n"
        f"for module in {sorted(modules, key=lambda m: FOLDERS.index(folder_of(m)) if folder_of(m) in FOLDERS else -1)}:\n"
        "    importlib.import_module(module.removesuffix('.__init__'))\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not heavy, f'{module} imports {heavy}'\n"
    )


def test_the_command_starts_without_torch():
    code = "import sys, course_utils.command.cli, course_utils.command.doctor\n"
    assert run(code + "print('torch' in sys.modules)") == "False"
