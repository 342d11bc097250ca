"""The committed lectures: nbval runs each, every rule of ``lecture_rules.py`` holds, and both can fail."""

import inspect
import subprocess
import tempfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from lecture_rules import MOST_BYTES, PROMISES, RULES, tagged
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils import check
from course_utils.command import cli, notebooks
from course_utils.core import data
from course_utils.core.files import ROOT

LECTURES = sorted((ROOT / "lectures").glob("*.ipynb"))


def nbval(path: Path) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as state:
        options = {"environment": notebooks.kernel_environment(state), "seconds": 1200}
        return notebooks.nbval(
            path, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_nbval(path):
    done = nbval(path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_rule(path, rule):
    assert rule(path, notebooks.read(path)) == []


def test_lectures_are_numbered_in_order():
    assert [path.name[:2] for path in LECTURES] == [f"{n:02d}" for n in range(len(LECTURES))]


# --- a small lecture that keeps all rules


def markdown(source, kind="slide"):
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})


def code(source, *tags, kind="fragment", **metadata):
    metadata |= {"slideshow": {"slide_type": kind}, "tags": list(tags)}
    return new_code_cell(source, metadata=metadata)


def exercise(item):
    name, arguments = item.name, ", ".join(inspect.signature(item.right).parameters)
    solution = f"check.EXERCISES[{name!r}].right({arguments})"
    own = f"def {name}_solution({arguments}):\n    return {solution}\n\n\ncheck.{name}({name}_solution)"
    return [
        code(f"def {name}({arguments}):\n    raise NotImplementedError", "exercise"),
        code(f"check.{name}({name})", "check"),
        markdown("A hint.", "notes"),
        code(own, "solution", jupyter={"source_hidden": True}),
    ]


SET_UP = """\
from course_utils import check
from course_utils.lesson import plots, widgets
from course_utils.lesson.lecture import claim, evidence_table"""
WIDGET = """\
from ipywidgets import IntSlider


def draw(a):
    fig, ax = plots.subplots()
    ax.plot([a, 1])
    return plots.to_png(fig)


widgets.explorer(draw, a=IntSlider(1))"""
FIGURE = """\
fig, ax = plots.subplots()
rise = 2 - 1
ax.plot([1, 2])
plots.show(fig, "A line that rises.", "nothing")"""
CLAIMS = 'claim("Two is more than one", rise > 0)\nclaim("Recorded, too", True, recorded=True)'
ITEMS = [check.EXERCISES["accuracy"]]  # the first, which the tests break
ITEMS += [item for item in check.EXERCISES.values() if item.lecture == "01" and item not in ITEMS]
LEVELS = "\n".join(f"| `{item.name}` | {item.level} |" for item in ITEMS)
CELLS = [
    markdown("# 01 · Tiny\n\n" + "\n\n".join(f"**{word}** much." for word in PROMISES)),
    code(SET_UP, "setup", kind="skip"),
    markdown("## A story\n\nOnce upon a time."),
    markdown("## Play"),
    code(WIDGET, "widget", "nbval-ignore-output"),
    code(FIGURE, "figure"),
    *map(markdown, ("## Measure", "## Doubt", f"## Your turn\n\n{LEVELS}")),
    *(cell for item in ITEMS for cell in exercise(item)),
    markdown("**Predict.** One or two?", "subslide"),
    code('check.predict("tiny", "one", "two")', "widget", "nbval-ignore-output"),
    code('check.outcome("tiny", "two")', "outcome"),
    markdown("## Claims"),
    code(CLAIMS, "claims", "nbval-check-output"),
    code("evidence_table()", "evidence"),
    markdown("## Recap and references"),
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The small lecture, executed in place by the course's own command."""
    folder = tmp_path_factory.mktemp("lectures")
    path = folder / "01_tiny.ipynb"
    nbformat.write(new_notebook(cells=deepcopy(CELLS)), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_LECTURES", str(folder))
        patch.setattr(data, "load", lambda name: [SimpleNamespace(source="MNIST")])
        assert cli.main(["refresh"]) == 0
    return path


@pytest.fixture
def notebook(tiny):
    return notebooks.read(tiny)


def test_the_small_lecture_keeps_all_rules(tiny, notebook):
    assert not [complaint for rule in RULES for complaint in rule(tiny, notebook)]


@pytest.fixture
def claiming(notebook, tmp_path):
    """``claiming()`` runs nbval on the small lecture's claim cell alone, ``claiming.cell``."""
    path, set_up = tmp_path / "01_claims.ipynb", code(SET_UP.splitlines()[-1], "setup")

    def run() -> subprocess.CompletedProcess:
        nbformat.write(new_notebook(cells=[set_up, run.cell]), path)
        return nbval(path)

    (run.cell,) = tagged(notebook, "claims")
    run.cell.source = run.cell.source.replace("rise > 0", "2 > 1")
    return run


@pytest.mark.slow
def test_nbval_passes_where_claims_hold(claiming):
    (output,) = claiming.cell.outputs
    assert output.text == "✔ Two is more than one\n✔ Recorded, too (recorded)\n"
    output.text = output.text.replace(" (recorded)", "")  # as a full run would print it
    done = claiming()
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_nbval_fails_where_a_claim_is_made_false(claiming):
    claiming.cell.source = claiming.cell.source.replace("2 > 1", "2 < 1")
    done = claiming()
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout
    assert "Cell outputs differ" in done.stdout


@pytest.mark.slow
def test_nbval_fails_where_a_cell_raises(claiming):
    claiming.cell.source += "\n1 / 0"
    done = claiming()
    assert done.returncode == 1 and "ZeroDivisionError" in done.stdout, done.stdout


# --- every rule can fail


def first(nb, what):
    """The first cell with this tag, or else with this text."""
    return [*tagged(nb, what), *(cell for cell in nb.cells if what in cell.source)][0]


def swap(old, new):
    def spoil(nb):
        cell = first(nb, old)
        cell.source = cell.source.replace(old, new)

    return spoil


def write(what, source):
    return lambda nb: first(nb, what).update(source=source)


def add(what, text):
    return lambda nb: write(what, first(nb, what).source + text)(nb)


def insert(place, cell):
    return lambda nb: nb.cells.insert(place, cell)


def drop(what):
    return lambda nb: nb.cells.remove(first(nb, what))


def tag(what, *tags):
    return lambda nb: first(nb, what).metadata.update(tags=list(tags))


def store(what, *outputs):
    return lambda nb: first(nb, what).update(outputs=list(outputs))


def says(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def exercise_of_another_lecture(nb):
    for cell in nb.cells:
        cell.source = cell.source.replace("honest_accuracy", "hit_rate")


BROKEN_CLAIM = store("claims", says("✔ Two is more than one\n✘ Recorded, too\n"))
BREAKS = {  # rule: what breaks it
    "title": [swap("# 01", "# 02"), swap("**Threat model**", "Threat model:")],
    "frame": [
        swap("## Doubt", "No doubt"),
        insert(99, markdown("## Play")),
        swap("## A story\n\n", ""),
        add("## A story", "\n\n## Play"),
    ],
    "slide_types": [
        lambda nb: nb.cells[2].metadata.slideshow.update(slide_type="-"),
        lambda nb: nb.cells[2].metadata.pop("slideshow"),
    ],
    "plain_python": [
        add("figure", "\n%matplotlib inline"),
        write("exercise", "def accuracy(logits, y):\n    # write it here"),
        insert(3, code("")),
    ],
    "set_up": [tag("widget", "setup"), insert(1, code("1"))],
    "short_cells": [add("figure", "\n" + "a = 1\n" * 40)],
    "no_semicolons": [add("figure", ";")],
    "imports": [
        add("figure", "\nimport numpy as np"),
        add("figure", "\ndef f():\n    from sklearn.svm import SVC"),
    ],
    "claim_cells": [
        drop("claims"),
        tag("claims", "claims"),
        tag("figure", "nbval-check-output"),
        add("figure", '\nclaim("This is compared by nobody", True)'),
        store("claims", says("✔ Two is more than one\naccuracy 0.98\n")),
        store("claims"),
        BROKEN_CLAIM,
    ],
    "claims_hold": [BROKEN_CLAIM],
    "evidence_cell": [
        drop("evidence"),
        add("evidence", "\nprint(1)"),
        insert(99, code("1")),
        store("evidence"),
        store("claims", says("✔ Three is more than one\n")),
    ],
    "figures_are_claims_or_questions": [
        swap("rise = 2 - 1", "fall = 2 - 1"),
        write("claims", 'claim("Two is more than one", 2 > 1)'),
    ],
    "short_slides": [
        add("## A story", " and so on" * 30),
        add("figure", '\nplots.show(fig, "The same line.", "nothing")'),
    ],
    "predictions": [
        drop("outcome"),
        swap('outcome("tiny"', 'outcome("large"'),
        swap("**Predict.**", "**Question.**"),
    ],
    "widget_cells": [drop("widget"), tag("widget", "widget"), tag("widget")],
    "no_widget_state": [
        lambda nb: nb.metadata.update(widgets={}),
        store("widget", new_output("display_data", {notebooks.WIDGET_VIEW: {"model_id": "1"}})),
    ],
    "exercises": [
        tag("exercise"),
        write("exercise", "def accuracy(logits, y):\n    return 1"),
        insert(10, markdown("Think first.")),
        write("check.accuracy", "check.accuracy(len)"),
        store("check.accuracy", says("● accuracy: right.\n")),
        drop("solution"),
        lambda nb: first(nb, "solution").metadata.pop("jupyter"),
        swap("_solution", ""),
        store("solution", says("○ accuracy: that is the number of hits.\n")),
        store("solution"),
        insert(99, code("accuracy(None, None)")),
        swap("| `accuracy` | ", "| `accuracy` | very "),
        exercise_of_another_lecture,
    ],
    "executed_in_order": [
        lambda nb: first(nb, "widget").update(execution_count=99),
        lambda nb: first(nb, "claims").update(execution_count=None),
    ],
    "no_errors": [
        store("figure", new_output("error", ename="ValueError", evalue="no", traceback=[]))
    ],
    "no_stderr": [store("figure", says("UserWarning: really?", "stderr"))],
    "no_machine_paths": [
        store("figure", says("MNIST: unpacking into /tmp/data")),
        store("figure", says(f"reading {ROOT}/results")),
        add("figure", '\nfolder = "C:\\\\data"'),
    ],
    "alt_texts": [lambda nb: first(nb, "figure").outputs[0].metadata.clear()],
    "fresh": [add("## A story", " And they lived."), lambda nb: nb.metadata.pop("course")],
}
APPLY = {rule.__name__: rule for rule in RULES}


@pytest.mark.parametrize(
    ("rule", "spoil"), [(rule, how) for rule in BREAKS for how in BREAKS[rule]]
)
def test_rule_complains(rule, spoil, tiny, notebook):
    spoil(notebook)
    assert APPLY[rule](tiny, notebook)


def test_rule_on_size_complains(tiny, notebook, tmp_path):
    large = tmp_path / tiny.name
    large.write_text(tiny.read_text(encoding="utf-8") + " " * MOST_BYTES, encoding="utf-8")
    assert APPLY["size"](large, notebook)


def test_a_question_beside_a_figure_needs_no_claim(tiny, notebook):
    swap("rise = 2 - 1", "fall = 2 - 1")(notebook)
    ask = markdown("**Question.** Does the line rise?")
    notebook.cells.insert(notebook.cells.index(first(notebook, "fall")) + 1, ask)
    assert not APPLY["figures_are_claims_or_questions"](tiny, notebook)


def test_every_rule_is_broken_once():
    assert APPLY.keys() == BREAKS.keys() | {"size"}


def test_lecture_00_has_a_frame_of_its_own(tmp_path):
    path = tmp_path / "00_start.ipynb"
    sections = ("# 00 · Start", "## Your turn", "## Claims", "## Recap and references")
    whole = new_notebook(cells=list(map(markdown, sections)))
    assert not APPLY["title"](path, whole) and not APPLY["frame"](path, whole)
    assert APPLY["frame"](path, new_notebook(cells=whole.cells[:-1]))
