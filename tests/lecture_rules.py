"""What every lecture owes as a file. Each rule is a function (path, notebook) -> list of complaints; ``test_lectures.py`` applies and breaks them all."""

import ast
import re
import sys

from course_utils.notebooks import WIDGET_VIEW, claims, code_cells, source_hash
from course_utils.runtime import ROOT

FRAME = ["Play", "Measure", "Doubt", "Your turn", "Claims", "Recap and references"]
PROMISES = ["Promise", "You will be able to", "You need", "Time", "Source", "Threat model"]
SLIDE_TYPES = ("slide", "subslide", "fragment", "notes", "skip")
IMPORTS = {"course_utils", "torch", "matplotlib", "IPython", "ipywidgets", *sys.stdlib_module_names}
WIDGETS = ("explorer", "digit_pad")  # the functions of course_utils.widgets whose result is a widget
MOST_LINES = 40
MOST_BYTES = 1_500_000
# Where a machine's own folders begin; an output or source that holds one reads badly everywhere else
MACHINE_PATH = re.compile(rf"(?<![\w.])(/(?:home|root|Users|tmp|var|private)/|[A-Z]:\\)|{re.escape(str(ROOT))}|site-packages")


def number(path) -> str:
    return path.name[:2]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def tagged(notebook, tag) -> list:
    return [cell for cell in notebook.cells if tag in tags(cell)]


def head(cell) -> str:
    """The first line of a cell, for messages."""
    return repr(next(iter(cell.source.splitlines()), "")[:60])


def text_outputs(cell) -> list[tuple[str, str]]:
    """(stream or MIME type, text) of all outputs that are read."""
    streams = [(output.name, output.text) for output in cell.outputs if output.output_type == "stream"]
    shown = [output.data.items() for output in cell.outputs if "data" in output]
    return streams + [(kind, str(text)) for items in shown for kind, text in items if kind.startswith("text/")]


def tree(cell) -> ast.Module:
    """The cell's syntax; empty where it has none, which ``plain_python`` complains of."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def called(node) -> list[str]:
    """Names of the functions that are called: ``check.fgsm(f)`` gives ``check.fgsm``."""
    return [ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]


def names(node) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def functions(cell) -> list[ast.FunctionDef]:
    return [node for node in tree(cell).body if isinstance(node, ast.FunctionDef)]


# ------------------------------------------------------------------------------------------------------ the text


def title(path, notebook):
    cell = notebook.cells[0]
    if cell.cell_type != "markdown" or not cell.source.startswith(f"# {number(path)} · "):
        return [f"the first cell begins with {head(cell)}, not with '# {number(path)} · '"]
    if number(path) == "00":
        return []
    return [
        f"the first cell has no line beginning **{word}**" for word in PROMISES if not re.search(rf"^\*\*{word}\*\*", cell.source, re.M)
    ]


def frame(path, notebook):
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    sections = [line[3:].strip() for source in markdown for line in source.splitlines() if line.startswith("## ")]
    wanted = FRAME[-3:] if number(path) == "00" else FRAME
    if sections[-len(wanted) :] != wanted:
        return [f"the last sections are {sections[-len(wanted) :]}, not {wanted}"]
    repeated = {section for section in sections if sections.count(section) > 1}
    story = [] if len(sections) > len(wanted) or number(path) == "00" else ["there is no story before the frame"]
    return story + [f"section {section!r} appears twice" for section in repeated]


def slide_types(path, notebook):
    found = [(cell, cell.metadata.get("slideshow", {}).get("slide_type")) for cell in notebook.cells]
    return [f"{head(cell)}: slide_type is {kind!r}; choose one of {SLIDE_TYPES}" for cell, kind in found if kind not in SLIDE_TYPES]


# ------------------------------------------------------------------------------------------------------ the code


def plain_python(path, notebook):
    complaints = []
    for cell in code_cells(notebook):
        try:
            if not ast.parse(cell.source).body:
                complaints.append(f"{head(cell)}: the code cell is empty")
        except SyntaxError as error:
            complaints.append(f"{head(cell)}: not plain Python: {error}")
    return complaints


def set_up(path, notebook):
    found = [index for index, cell in enumerate(code_cells(notebook)) if "setup" in tags(cell)]
    return [] if found == [0] else [f"the cells tagged setup are code cells {found}; it must be the first code cell, and only that"]


def short_cells(path, notebook):
    lengths = [(cell, len(cell.source.splitlines())) for cell in code_cells(notebook)]
    return [f"{head(cell)}: {lines} lines, more than {MOST_LINES}" for cell, lines in lengths if lines > MOST_LINES]


def no_semicolons(path, notebook):
    lines = [(cell, line) for cell in code_cells(notebook) for line in cell.source.splitlines()]
    return [
        f"{head(cell)}: a line ends in a semicolon, which nbval does not honour: {line.strip()}"
        for cell, line in lines
        if line.rstrip().endswith(";")
    ]


def imports(path, notebook):
    complaints = []
    for cell in code_cells(notebook):
        for node in ast.walk(tree(cell)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            complaints += [f"{head(cell)}: imports {name}" for name in modules if name.partition(".")[0] not in IMPORTS]
    return complaints


# ------------------------------------------------------------------------------------------------------ the claims


def claim_cells(path, notebook):
    complaints = [] if tagged(notebook, "claims") else ["no cell is tagged claims"]
    for cell in code_cells(notebook):
        makes = bool({"claim", "claims.claim"} & set(called(tree(cell))))
        if len({makes, "claims" in tags(cell), "nbval-check-output" in tags(cell)}) > 1:
            complaints.append(
                f"{head(cell)}: a cell that calls claim carries the tags claims and nbval-check-output, and no other cell does"
            )
        elif makes:
            lines = [line for _, text in text_outputs(cell) for line in text.splitlines()]
            if not lines or not all(line.startswith("✔ ") for line in lines):
                complaints.append(f"{head(cell)}: a claim cell prints claims that hold and nothing else, but it stores {lines}")
    return complaints


def claims_hold(path, notebook):
    return [f"a stored claim is broken: {line}" for line in claims(notebook) if line.startswith("✘")]


# ------------------------------------------------------------------------------------------------------ the widgets


def widget_cells(path, notebook):
    complaints = [] if tagged(notebook, "widget") or number(path) == "00" else ["no cell is tagged widget"]
    for cell in code_cells(notebook):
        makes = any(name.removeprefix("widgets.") in WIDGETS for name in called(tree(cell)))
        if makes != ("widget" in tags(cell)) or (makes and "nbval-ignore-output" not in tags(cell)):
            complaints.append(
                f"{head(cell)}: a cell that calls {' or '.join(WIDGETS)} is tagged widget and nbval-ignore-output; no other cell is tagged widget"
            )
    return complaints


def no_widget_state(path, notebook):
    complaints = ["metadata.widgets is stored"] if "widgets" in notebook.metadata else []
    shown = [cell for cell in code_cells(notebook) for output in cell.outputs if WIDGET_VIEW in output.get("data", {})]
    return complaints + [f"{head(cell)}: a widget is stored as output, which is an error message without its kernel" for cell in shown]


# ------------------------------------------------------------------------------------------------------ the exercises


def exercises(path, notebook):
    """Stub, check right under it, and before the next stub a collapsed solution under another name, with its own check."""
    from course_utils.check import EXERCISES

    starts = [index for index, cell in enumerate(notebook.cells) if "exercise" in tags(cell)]
    least, complaints, checked = 1 if number(path) == "00" else 2, [], []
    if len(starts) < least:
        complaints.append(f"there are {len(starts)} exercises; at least {least}")
    for start, stop in zip(starts, [*starts[1:], len(notebook.cells)], strict=True):
        stub, following = notebook.cells[start], notebook.cells[start + 1 : stop]
        here = functions(stub)

        def complain(text, stub=stub):
            complaints.append(f"{head(stub)}: {text}")  # noqa: B023  (this one is for all stubs)

        if len(here) != 1 or "NotImplementedError" not in names(here[0]):
            complain("the stub is one function that raises NotImplementedError")
            continue
        name = here[0].name
        if (
            not following
            or "check" not in tags(following[0])
            or not {f"check.{one}" for one in EXERCISES} & set(called(tree(following[0])))
        ):
            complain("the cell right under the stub is no check of the course with the tag check")
            continue
        checked += [one.removeprefix("check.") for one in called(tree(following[0])) if one.removeprefix("check.") in EXERCISES]
        if name not in names(tree(following[0])):
            complain(f"its check does not check {name}")
        if not any(text.startswith("○") and "not attempted yet" in text for _, text in text_outputs(following[0])):
            complain("its check does not show '○ … not attempted yet'")
        solutions = [cell for cell in following if "solution" in tags(cell)]
        if len(solutions) != 1:
            complain(f"{len(solutions)} solutions follow, not one")
            continue
        if not solutions[0].metadata.get("jupyter", {}).get("source_hidden"):
            complain("the solution is not collapsed: metadata.jupyter.source_hidden")
        if not any(node.name.endswith("_solution") for node in functions(solutions[0])):
            complain("the solution's function must have a name ending in _solution, or it counts as the student's")
        shown = [line for _, text in text_outputs(solutions[0]) for line in text.splitlines()]
        if not any(line.startswith("●") for line in shown) or any(line.startswith("○") for line in shown):
            complain(f"the solution's own check does not show ●, but {shown}")
        users = [cell for cell in code_cells(notebook) if name in names(tree(cell)) and "check" not in tags(cell)]
        complaints += [f"{head(cell)}: uses the stub {name}, which raises until it is written" for cell in users]
    ours = sorted(name for name, item in EXERCISES.items() if item.lecture == number(path))
    if sorted(checked) != ours:
        complaints.append(f"the exercises checked are {sorted(checked)}; course_utils.check has {ours} for this lecture")
    return complaints


# ------------------------------------------------------------------------------------------------------ what is stored


def executed_in_order(path, notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}; run `course refresh {number(path)}`"]


def no_errors(path, notebook):
    return [
        f"{head(cell)}: stores {o.ename}: {o.evalue}" for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "error"
    ]


def no_stderr(path, notebook):
    texts = [(cell, text) for cell in code_cells(notebook) for kind, text in text_outputs(cell) if kind == "stderr"]
    return [f"{head(cell)}: a warning is stored: {text.strip()[:100]}" for cell, text in texts]


def no_machine_paths(path, notebook):
    texts = [(cell, cell.source) for cell in notebook.cells]
    texts += [(cell, text) for cell in code_cells(notebook) for _, text in text_outputs(cell)]
    return [f"{head(cell)}: names a folder of one machine: {found[0]}" for cell, text in texts if (found := MACHINE_PATH.search(text))]


def alt_texts(path, notebook):
    outputs = [(cell, output) for cell in code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
    missing = [cell for cell, output in outputs if not output.metadata.get("image/png", {}).get("alt", "").strip()]
    return [f"{head(cell)}: a figure has no alternative text; show it with plots.show" for cell in missing]


def size(path, notebook):
    stored = path.stat().st_size
    return [f"{stored:,} bytes, more than {MOST_BYTES:,}"] if stored > MOST_BYTES else []


def fresh(path, notebook):
    stored = notebook.metadata.get("course", {}).get("hash")
    return (
        []
        if stored == source_hash(notebook)
        else [f"the sources have changed since the notebook was executed; run `course refresh {number(path)}`"]
    )


RULES = [
    title,
    frame,
    slide_types,
    plain_python,
    set_up,
    short_cells,
    no_semicolons,
    imports,
    claim_cells,
    claims_hold,
    widget_cells,
    no_widget_state,
    exercises,
    executed_in_order,
    no_errors,
    no_stderr,
    no_machine_paths,
    alt_texts,
    size,
    fresh,
]
