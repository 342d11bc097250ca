"""Imports inside ``course_utils`` point down only, and the light modules stay light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from course_utils.runtime import ROOT

LAYERS = (  # from the top; a module may import from its own layer and from those below
    "cli doctor notebooks jupyter",
    "widgets pictures check claims plots results",
    "confuse",
    "poisons victims objectives mutual_information autoencoders",
    "attacks linear peers",
    "training models",
    "geometry data second_order runtime",
)
# runtime.setup is the first line of every lecture and sets the plot style as well; it imports when it is called
EXCEPTIONS = {("runtime", "plots")}
LIGHT = "attacks autoencoders check claims cli confuse data doctor geometry linear models mutual_information objectives pictures plots poisons results runtime second_order training victims".split()
HEAVY = "sklearn scipy ipywidgets anywidget torchvision IPython jupyterlab nbclient".split()

DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer.split()}
FILES = {path.stem: path for path in (ROOT / "course_utils").glob("*.py") if path.stem != "__init__"}


def imported(source: str) -> set[str]:
    """The modules of ``course_utils`` that this source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("course_utils.")}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "course_utils":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("course_utils."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def upward(module: str, source: str) -> set[str]:
    return {other for other in imported(source) if DEPTH[other] < DEPTH[module] and (module, other) not in EXCEPTIONS}


def test_every_module_has_its_layer():
    assert FILES.keys() <= DEPTH.keys(), "name the new module in LAYERS, and in DESIGN's picture of the layers in CONTRIBUTING.md"


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module):
    assert not upward(module, FILES[module].read_text(encoding="utf-8"))


def test_no_module_imports_itself_through_others():
    graph = {module: imported(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
    graph = {module: {other for other in others if (module, other) not in EXCEPTIONS} for module, others in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    "line",
    [
        "import course_utils.widgets",
        "from course_utils import data, widgets",
        "from course_utils.widgets import explorer",
        "from . import widgets",
    ],
)
def test_an_upward_import_is_seen(line):
    assert upward("data", f"def load():\n    {line}\n") == {"widgets"}


def test_light_modules_import_nothing_heavy():
    """Each module is imported after those before it, so that the first to blame is named."""
    code = (
        "import importlib, sys\n"
        f"for module in ['course_utils', *('course_utils.' + name for name in {LIGHT})]:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not heavy, f'{module} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_the_command_starts_without_torch():
    code = "import sys, course_utils.cli, course_utils.doctor; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "False"
