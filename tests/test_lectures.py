"""The lectures as they are committed: nbval runs each, and every rule of ``lecture_rules.py`` holds. Both are shown to fail where they should."""

import subprocess
import tempfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from lecture_rules import MOST_BYTES, RULES, code_cells, tagged
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils import cli, data, notebooks
from course_utils.runtime import ROOT

LECTURES = sorted((ROOT / "lectures").glob("*.ipynb"))


def nbval(path: Path) -> subprocess.CompletedProcess:
    """Runs the notebook's cells and compares the claims with the stored ones."""
    with tempfile.TemporaryDirectory() as state:
        return notebooks.nbval(path, environment=notebooks.kernel_environment(state), seconds=600, capture_output=True, text=True)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_nbval(path):
    done = nbval(path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_rule(path, rule):
    assert rule(path, notebooks.read(path)) == []


def test_lectures_are_numbered_in_order():
    assert [path.name[:2] for path in LECTURES] == [f"{number:02d}" for number in range(len(LECTURES))]


# ------------------------------------------------------------------------------- a small lecture that keeps all rules


def markdown(source, kind="slide"):
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})


def code(source, *tags, kind="fragment", **metadata):
    return new_code_cell(source, metadata={"slideshow": {"slide_type": kind}, "tags": list(tags), **metadata})


def exercise(name, arguments, solution):
    return [
        code(f"def {name}({arguments}):\n    raise NotImplementedError", "exercise"),
        code(f"check.{name}({name})", "check"),
        markdown("A hint.", "notes"),
        code(
            f"def {name}_solution({arguments}):\n    return {solution}\n\n\ncheck.{name}({name}_solution)",
            "solution",
            jupyter={"source_hidden": True},
        ),
    ]


WORDS = ("Promise", "You will be able to", "You need", "Time", "Source", "Threat model")
CELLS = [
    markdown("# 01 · Tiny\n\n" + "\n\n".join(f"**{word}** much." for word in WORDS)),
    code("from course_utils import check, plots, widgets\nfrom course_utils.claims import claim", "setup", kind="skip"),
    markdown("## A story\n\nOnce upon a time."),
    markdown("## Play"),
    code(
        "from ipywidgets import IntSlider\n\n\ndef draw(a):\n    fig, ax = plots.subplots()\n    ax.plot([a, 1])\n    return plots.to_png(fig)\n\n\n"
        "widgets.explorer(draw, a=IntSlider(1))",
        "widget",
        "nbval-ignore-output",
    ),
    code('fig, ax = plots.subplots()\nax.plot([1, 2])\nplots.show(fig, "A line that rises.", "nothing")'),
    markdown("## Measure"),
    markdown("## Doubt"),
    markdown("## Your turn"),
    *exercise("accuracy", "logits, y", "(logits.argmax(1) == y).float().mean()"),
    *exercise("honest_accuracy", "validation, test", "test[validation.index(max(validation))]"),
    markdown("## Claims"),
    code('claim("Two is more than one", 2 > 1)\nclaim("Recorded, too", True, recorded=True)', "claims", "nbval-check-output"),
    markdown("## Recap and references"),
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The path of a small lecture, executed in place by the course's own command."""
    folder = tmp_path_factory.mktemp("lectures")
    path = folder / "01_tiny.ipynb"
    nbformat.write(new_notebook(cells=deepcopy(CELLS)), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_LECTURES", str(folder))
        patch.setattr(data, "load", lambda name: [SimpleNamespace(source="MNIST")])  # the lecture itself needs no data
        assert cli.main(["refresh"]) == 0
    return path


@pytest.fixture
def notebook(tiny):
    return notebooks.read(tiny)


def test_the_small_lecture_keeps_all_rules(tiny, notebook):
    assert {rule.__name__: rule(tiny, notebook) for rule in RULES} == {rule.__name__: [] for rule in RULES}


@pytest.fixture
def claiming(notebook, tmp_path):
    """``claiming()`` runs nbval on a lecture that has but the claim cell of the small one, ``claiming.cell``."""
    set_up, cell = code("from course_utils.claims import claim", "setup"), tagged(notebook, "claims")[0]

    def run() -> subprocess.CompletedProcess:
        nbformat.write(new_notebook(cells=[set_up, cell]), tmp_path / "01_claims.ipynb")
        return nbval(tmp_path / "01_claims.ipynb")

    run.cell = cell
    return run


def test_nbval_passes_where_claims_hold(claiming):
    assert claiming.cell.outputs[0].text == "✔ Two is more than one\n✔ Recorded, too (recorded)\n"
    claiming.cell.outputs[0].text = claiming.cell.outputs[0].text.replace(" (recorded)", "")  # as a full run would print it
    done = claiming()
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_nbval_fails_where_a_claim_is_made_false(claiming):
    claiming.cell.source = claiming.cell.source.replace("2 > 1", "2 < 1")
    done = claiming()
    assert done.returncode == 1 and "1 failed" in done.stdout and "Cell outputs differ" in done.stdout, done.stdout


def test_nbval_fails_where_a_cell_raises(claiming):
    claiming.cell.source += "\n1 / 0"
    done = claiming()
    assert done.returncode == 1 and "ZeroDivisionError" in done.stdout, done.stdout


# --------------------------------------------------------------------------------------------- every rule can fail

BREAKS = []


def breaks(*rules):
    """The decorated function spoils a notebook so that each of these rules complains."""

    def register(spoil):
        BREAKS.extend(pytest.param(rule, spoil, id=f"{rule}-{spoil.__name__}") for rule in rules)
        return spoil

    return register


def cell_with(notebook, text):
    return next(cell for cell in notebook.cells if text in cell.source)


@breaks("title")
def other_number(nb):
    nb.cells[0].source = nb.cells[0].source.replace("# 01", "# 02")


@breaks("title")
def no_threat_model(nb):
    nb.cells[0].source = nb.cells[0].source.replace("**Threat model**", "Threat model:")


@breaks("frame")
def no_doubt(nb):
    cell_with(nb, "## Doubt").source = "No doubt"


@breaks("frame")
def play_comes_last(nb):
    nb.cells.append(markdown("## Play"))


@breaks("frame")
def no_story(nb):
    cell_with(nb, "## A story").source = "Once upon a time."


@breaks("frame")
def section_twice(nb):
    cell_with(nb, "## A story").source += "\n\n## Play"


@breaks("slide_types")
def literal_dash(nb):
    nb.cells[2].metadata["slideshow"]["slide_type"] = "-"


@breaks("slide_types")
def no_slide_type(nb):
    del nb.cells[2].metadata["slideshow"]


@breaks("plain_python")
def magic(nb):
    code_cells(nb)[2].source += "\n%matplotlib inline"


@breaks("plain_python")
def stub_is_no_python(nb):
    tagged(nb, "exercise")[0].source = "def accuracy(logits, y):\n    # write it here"


@breaks("plain_python")
def empty_cell(nb):
    nb.cells.insert(3, code(""))


@breaks("set_up")
def two_set_ups(nb):
    code_cells(nb)[1].metadata["tags"].append("setup")


@breaks("set_up")
def code_before_set_up(nb):
    nb.cells.insert(1, code("1"))


@breaks("short_cells")
def long_cell(nb):
    code_cells(nb)[2].source += "\n" + "a = 1\n" * 40


@breaks("no_semicolons")
def semicolon(nb):
    code_cells(nb)[2].source += ";"


@breaks("imports")
def numpy(nb):
    code_cells(nb)[2].source += "\nimport numpy as np"


@breaks("imports")
def sklearn_in_function(nb):
    code_cells(nb)[2].source += "\ndef f():\n    from sklearn.svm import SVC"


@breaks("claim_cells")
def no_claims(nb):
    nb.cells.remove(tagged(nb, "claims")[0])


@breaks("claim_cells")
def claim_that_nbval_does_not_compare(nb):
    tagged(nb, "claims")[0].metadata["tags"].remove("nbval-check-output")


@breaks("claim_cells")
def claim_elsewhere(nb):
    code_cells(nb)[2].source += '\nclaim("This is compared by nobody", True)'


@breaks("claim_cells")
def compared_without_claim(nb):
    code_cells(nb)[2].metadata["tags"].append("nbval-check-output")


@breaks("claim_cells")
def claim_cell_prints_numbers(nb):
    tagged(nb, "claims")[0].outputs[0].text += "accuracy 0.98\n"


@breaks("claim_cells")
def claim_cell_stores_nothing(nb):
    tagged(nb, "claims")[0].outputs = []


@breaks("claims_hold", "claim_cells")
def broken_claim(nb):
    tagged(nb, "claims")[0].outputs[0].text = "✔ Two is more than one\n✘ Recorded, too\n"


@breaks("widget_cells")
def no_widget(nb):
    nb.cells.remove(tagged(nb, "widget")[0])


@breaks("widget_cells")
def widget_that_nbval_compares(nb):
    tagged(nb, "widget")[0].metadata["tags"].remove("nbval-ignore-output")


@breaks("widget_cells")
def widget_without_tag(nb):
    tagged(nb, "widget")[0].metadata["tags"] = []


@breaks("no_widget_state")
def widget_state(nb):
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


@breaks("no_widget_state")
def widget_view(nb):
    tagged(nb, "widget")[0].outputs = [new_output("display_data", {notebooks.WIDGET_VIEW: {"model_id": "1"}})]


@breaks("exercises")
def one_exercise(nb):
    del tagged(nb, "exercise")[0].metadata["tags"]


@breaks("exercises")
def stub_that_answers(nb):
    tagged(nb, "exercise")[0].source = "def accuracy(logits, y):\n    return 1"


@breaks("exercises")
def check_not_under_the_stub(nb):
    nb.cells.insert(nb.cells.index(tagged(nb, "check")[0]), markdown("Think first."))


@breaks("exercises")
def check_of_something_else(nb):
    tagged(nb, "check")[0].source = "check.accuracy(len)"


@breaks("exercises")
def check_was_solved_when_stored(nb):
    tagged(nb, "check")[0].outputs[0].text = "● accuracy: right.\n"


@breaks("exercises")
def no_solution(nb):
    nb.cells.remove(tagged(nb, "solution")[0])


@breaks("exercises")
def open_solution(nb):
    tagged(nb, "solution")[0].metadata["jupyter"] = {}


@breaks("exercises")
def solution_under_the_stub_s_name(nb):
    tagged(nb, "solution")[0].source = tagged(nb, "solution")[0].source.replace("_solution", "")


@breaks("exercises")
def wrong_solution(nb):
    tagged(nb, "solution")[0].outputs[0].text = "○ accuracy: that is the number of hits.\n"


@breaks("exercises")
def solution_without_check(nb):
    tagged(nb, "solution")[0].outputs = []


@breaks("exercises")
def stub_called_later(nb):
    nb.cells.append(code("accuracy(None, None)"))


@breaks("exercises")
def exercise_of_another_lecture(nb):
    for cell in nb.cells:
        cell.source = cell.source.replace("honest_accuracy", "hit_rate")


@breaks("executed_in_order")
def executed_twice(nb):
    code_cells(nb)[1].execution_count = 99


@breaks("executed_in_order")
def not_executed(nb):
    code_cells(nb)[-1].execution_count = None


@breaks("no_errors")
def stored_error(nb):
    code_cells(nb)[2].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]


@breaks("no_stderr")
def stored_warning(nb):
    code_cells(nb)[2].outputs.append(new_output("stream", name="stderr", text="UserWarning: really?"))


@breaks("no_machine_paths")
def data_folder(nb):
    code_cells(nb)[2].outputs.append(new_output("stream", name="stdout", text="MNIST: unpacking into /tmp/data"))


@breaks("no_machine_paths")
def clone_folder(nb):
    code_cells(nb)[2].outputs.append(new_output("stream", name="stdout", text=f"reading {ROOT}/results"))


@breaks("no_machine_paths")
def windows_folder(nb):
    code_cells(nb)[2].source += '\nfolder = "C:\\\\data"'


@breaks("alt_texts")
def figure_without_alt(nb):
    for cell in code_cells(nb):
        for output in cell.outputs:
            output.get("metadata", {}).pop("image/png", None)


@breaks("fresh")
def prose_edited(nb):
    nb.cells[2].source += " And they lived."


@breaks("fresh")
def never_refreshed(nb):
    del nb.metadata["course"]


@pytest.mark.parametrize("rule, spoil", BREAKS)
def test_rule_complains(rule, spoil, tiny, notebook):
    (apply,) = [one for one in RULES if one.__name__ == rule]
    spoil(notebook)
    assert apply(tiny, notebook)


def test_rule_on_size_complains(tiny, notebook, tmp_path):
    (size,) = [rule for rule in RULES if rule.__name__ == "size"]
    large = tmp_path / tiny.name
    large.write_text(tiny.read_text(encoding="utf-8") + " " * MOST_BYTES, encoding="utf-8")
    assert size(large, notebook)


def test_every_rule_is_broken_once():
    assert {rule.__name__ for rule in RULES} == {param.values[0] for param in BREAKS} | {"size"}


def test_lecture_00_has_a_frame_of_its_own(tmp_path):
    applied = {rule.__name__: rule for rule in RULES}
    path = tmp_path / "00_start.ipynb"
    cells = [markdown("# 00 · Start"), markdown("## Your turn"), markdown("## Claims"), markdown("## Recap and references")]
    assert not applied["title"](path, new_notebook(cells=cells)) and not applied["frame"](path, new_notebook(cells=cells))
    assert applied["frame"](path, new_notebook(cells=cells[:-1]))
