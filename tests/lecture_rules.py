"""What every lecture owes as a file: rules (path, notebook) -> complaints, which ``test_lectures.py`` applies and breaks."""

import ast
import functools
import itertools
import re
import sys

from course_utils.command.notebooks import WIDGET_VIEW, claims, code_cells, source_hash
from course_utils.core.files import ROOT
from course_utils.lesson.result_tables import verbatim

FRAME = ["Play", "Measure", "Doubt", "Your turn", "Claims", "Recap and references"]
PROMISES = ["Promise", "You will be able to", "You need", "Time", "Source", "Threat model"]
SLIDE_TYPES = ("slide", "subslide", "fragment", "notes", "skip")
IMPORTS = {"course_utils", "torch", "matplotlib", "IPython", "ipywidgets", *sys.stdlib_module_names}
PLAY = {
    "widgets.explorer",
    "widgets.digit_pad",
    "photo_widgets.photo_attack",
    "photo_widgets.patch_board",
}
WIDGETS = {*PLAY, "check.predict"}  # what makes a widget
FEWEST = 5  # exercises
MOST_LINES = 40
MOST_WORDS = 75  # on a slide: 60, and some for names and formulas
MOST_BYTES = 1_500_000
# Where folders of one machine begin
MACHINE_PATH = re.compile(
    rf"(?<![\w.])(/(?:home|root|Users|tmp|var|private)/|[A-Z]:\\)|{re.escape(str(ROOT))}|site-packages"
)
RULES = []


def rule(find):
    """``find(path, nb)`` yields complaints: text, or (cell, text)."""

    @functools.wraps(find)
    def complaints(path, nb) -> list[str]:
        found = [one if isinstance(one, tuple) else (None, one) for one in find(path, nb)]
        return [f"{head(cell)}: {text}" if cell else text for cell, text in found]

    RULES.append(complaints)
    return complaints


def cell_rule(find):
    """``find(cell)`` yields what is wrong with one code cell."""

    @rule
    @functools.wraps(find)
    def complaints(path, nb):
        return [(cell, text) for cell in code_cells(nb) for text in find(cell)]

    return complaints


def number(path) -> str:
    return path.name[:2]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def tagged(nb, tag) -> list:
    return [cell for cell in nb.cells if tag in tags(cell)]


def head(cell) -> str:
    return repr(next(iter(cell.source.splitlines()), "")[:60])


def texts(cell) -> list[tuple[str, str]]:
    """(stream or MIME type, text) of all outputs that are read."""
    outputs = cell.get("outputs", [])
    streams = [(out.name, out.text) for out in outputs if out.output_type == "stream"]
    shown = [item for out in outputs for item in out.get("data", {}).items()]
    return streams + [(kind, str(text)) for kind, text in shown if kind.startswith("text/")]


def lines(cell) -> list[str]:
    return [line for _, text in texts(cell) for line in text.splitlines()]


def tree(cell) -> ast.Module:
    """The cell's syntax; empty where it has none (see ``plain_python``)."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def called(cell) -> list[str]:
    """``check.fgsm(f)`` gives ``check.fgsm``."""
    return [ast.unparse(call.func) for call in ast.walk(tree(cell)) if isinstance(call, ast.Call)]


def names(node) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def functions(cell) -> list[ast.FunctionDef]:
    return [node for node in tree(cell).body if isinstance(node, ast.FunctionDef)]


# --- the text


@rule
def title(path, nb):
    first, begin = nb.cells[0], f"# {number(path)} · "
    if first.cell_type != "markdown" or not first.source.startswith(begin):
        yield f"the first cell begins with {head(first)}, not with {begin!r}"
    elif number(path) != "00":
        for word in PROMISES:
            if not re.search(rf"^\*\*{word}\*\*", first.source, re.M):
                yield f"the first cell has no line beginning **{word}**"


@rule
def frame(path, nb):
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    sections = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    wanted = FRAME[-3:] if number(path) == "00" else FRAME
    last = sections[-len(wanted) :]
    if last != wanted:
        yield f"the last sections are {last}, not {wanted}"
    elif sections == wanted == FRAME:
        yield "there is no story before the frame"
    for section in set(sections):
        if sections.count(section) > 1:
            yield f"section {section!r} appears twice"


@rule
def slide_types(path, nb):
    for cell in nb.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind not in SLIDE_TYPES:
            yield cell, f"slide_type is {kind!r}; choose one of {SLIDE_TYPES}"


def words(source: str) -> int:
    """Words that are read out: no formulas, no tables."""
    for pattern in (r"\$\$.*?\$\$", r"\$[^$]*\$", r"^\|.*$", r"\]\([^)]*\)"):
        source = re.sub(pattern, " ", source, flags=re.S | re.M if "^" in pattern else re.S)
    return len(re.findall(r"\w[\w'’-]*", source))


def slides(nb) -> list[list]:
    """The cells of each slide: those that begin one, with their fragments."""
    found = []
    for cell in nb.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind in ("slide", "subslide"):
            found.append([])
        if kind in ("slide", "subslide", "fragment") and found:
            found[-1].append(cell)
    return found


@rule
def short_slides(path, nb):
    """At most one figure and few words; the title and the recap may have more."""
    if number(path) == "00":
        return
    shown = slides(nb)[1:]
    recap = [i for i, cells in enumerate(shown) if "## Recap" in cells[0].source]
    for cells in shown[: recap[0] if recap else None]:
        count = sum(words(cell.source) for cell in cells if cell.cell_type == "markdown")
        figures = sum(
            called(cell).count("plots.show") for cell in cells if cell.cell_type == "code"
        )
        if count > MOST_WORDS or figures > 1:
            yield cells[0], f"its slide has {count} words and {figures} figures"


# --- the code


@cell_rule
def plain_python(cell):
    try:
        if not ast.parse(cell.source).body:
            yield "the code cell is empty"
    except SyntaxError as error:
        yield f"not plain Python: {error}"


@rule
def set_up(path, nb):
    found = [index for index, cell in enumerate(code_cells(nb)) if "setup" in tags(cell)]
    if found != [0]:
        yield f"tagged setup are code cells {found}; it must be the first code cell, and only that"


@cell_rule
def short_cells(cell):
    count = len(cell.source.splitlines())
    if count > MOST_LINES:
        yield f"{count} lines, more than {MOST_LINES}"


@cell_rule
def no_semicolons(cell):
    for line in cell.source.splitlines():
        if line.rstrip().endswith(";"):
            yield f"a line ends in a semicolon, which nbval does not honour: {line.strip()}"


@cell_rule
def imports(cell):
    for node in ast.walk(tree(cell)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in modules:
            if name.partition(".")[0] not in IMPORTS:
                yield f"imports {name}"


# --- the claims


@rule
def claim_cells(path, nb):
    if not tagged(nb, "claims"):
        yield "no cell is tagged claims"
    for cell in code_cells(nb):
        makes = bool({"claim", "claims.claim"} & set(called(cell)))
        if {"claims" in tags(cell), "nbval-check-output" in tags(cell)} != {makes}:
            yield cell, "where claim is called, and nowhere else: tags claims, nbval-check-output"
        elif makes and not (lines(cell) and all(line.startswith("✔ ") for line in lines(cell))):
            yield cell, f"a claim cell prints claims that hold and no more, not {lines(cell)}"


@rule
def claims_hold(path, nb):
    for line in claims(nb):
        if line.startswith("✘"):
            yield f"a stored claim is broken: {line}"


@rule
def evidence_cell(path, nb):
    """The last claims are followed by the table of what they rest on."""
    found = [cell for cell in code_cells(nb) if "evidence" in tags(cell)]
    if [cell.source for cell in found] != ["evidence_table()"]:
        yield "one cell is tagged evidence; it holds evidence_table() and no more"
        return
    if "evidence" not in tags(code_cells(nb)[-1]):
        yield found[0], "the evidence cell comes after all claims, as the last code cell"
    table = dict(texts(found[0])).get("text/markdown", "")
    for line in claims(nb):
        text = verbatim(line[2:].removesuffix(" (recorded)"))
        if f"| {text} |" not in table:
            yield found[0], f"its stored table lacks the claim {text!r}"


QUESTION = "**Question.**"


def assigned(cell) -> set[str]:
    """Names that the cell's own statements assign, also in its loops and with-blocks."""
    inner = [node for node in tree(cell).body if not isinstance(node, ast.FunctionDef)]
    found = (name for node in inner for name in ast.walk(node) if isinstance(name, ast.Name))
    return {name.id for name in found if isinstance(name.ctx, ast.Store)} - {
        "fig",
        "ax",
        "axes",
        "alt",
    }


@rule
def figures_are_claims_or_questions(path, nb):
    """A cell with a figure computes what a claim reads, or the text beside it asks the reader."""
    claimed = set().union(*(names(tree(cell)) for cell in tagged(nb, "claims")))
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or "plots.show" not in called(cell):
            continue
        beside = nb.cells[max(index - 1, 0) : index + 2]
        asks = any(QUESTION in other.source for other in beside if other.cell_type == "markdown")
        if not asks and not assigned(cell) & claimed:
            yield cell, f"assigns nothing that a claim reads, and no {QUESTION} stands beside it"


# --- the widgets


@rule
def widget_cells(path, nb):
    if not any(PLAY & {*called(cell)} for cell in code_cells(nb)) and number(path) != "00":
        yield "nothing to play with: no explorer, no pad"
    for cell in code_cells(nb):
        makes = bool(WIDGETS & {*called(cell)})
        if makes != ("widget" in tags(cell)) or (makes and "nbval-ignore-output" not in tags(cell)):
            yield cell, "tagged widget is what makes one, and that nbval-ignore-output too"


def first_words(nb, function) -> list[str]:
    """The first argument of every call of ``function``, in the order of the cells."""
    calls = [
        call
        for cell in code_cells(nb)
        for call in ast.walk(tree(cell))
        if isinstance(call, ast.Call)
    ]
    return [ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == function]


@rule
def predictions(path, nb):
    """What is asked is answered further down, and the text above asks it too, for slides and pages."""
    asked, answered = first_words(nb, "check.predict"), first_words(nb, "check.outcome")
    if asked != answered:
        yield f"check.predict asks {asked}; check.outcome answers {answered}"
    for before, cell in itertools.pairwise(nb.cells):
        if (
            cell.cell_type == "code"
            and "check.predict" in called(cell)
            and "**Predict.**" not in before.source
        ):
            yield cell, "the text above it has no **Predict.**"


@rule
def no_widget_state(path, nb):
    if "widgets" in nb.metadata:
        yield "metadata.widgets is stored"
    for cell in code_cells(nb):
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            yield cell, "a widget is stored as output, which is an error message without its kernel"


# --- the exercises


@rule
def exercises(path, nb):
    """Stub, check right under it, collapsed solution under another name with its own check."""
    from course_utils.check import EXERCISES

    starts = [index for index, cell in enumerate(nb.cells) if "exercise" in tags(cell)]
    least, checked = 1 if number(path) == "00" else FEWEST, []
    if len(starts) < least:
        yield f"there are {len(starts)} exercises; at least {least}"
    for start, stop in zip(starts, [*starts[1:], None], strict=False):
        stub, *following = nb.cells[start:stop]
        here = functions(stub)
        if len(here) != 1 or "NotImplementedError" not in names(here[0]):
            yield stub, "the stub is one function that raises NotImplementedError"
            continue
        name, check = here[0].name, following[0] if following else stub
        calls = called(check)
        if "check" not in tags(check) or not {f"check.{one}" for one in EXERCISES} & set(calls):
            yield stub, "the cell right under it is no check of the course with the tag check"
            continue
        short = [one.removeprefix("check.") for one in calls]
        checked += [one for one in short if one in EXERCISES]
        if name not in names(tree(check)):
            yield stub, f"its check does not check {name}"
        shown = "\n".join(lines(check))
        if not shown.startswith("○") or "not attempted yet" not in shown:
            yield stub, "its check does not show '○ … not attempted yet'"
        solutions = [cell for cell in following if "solution" in tags(cell)]
        if len(solutions) != 1:
            yield stub, f"{len(solutions)} solutions follow, not one"
            continue
        (solution,) = solutions
        if not solution.metadata.get("jupyter", {}).get("source_hidden"):
            yield stub, "the solution is not collapsed: metadata.jupyter.source_hidden"
        if not any(node.name.endswith("_solution") for node in functions(solution)):
            yield stub, "no function of the solution ends in _solution: it counts as the student's"
        marks = {line[:1] for line in lines(solution)}
        if "●" not in marks or "○" in marks:
            yield stub, f"the solution's own check does not show ●, but {lines(solution)}"
        for cell in code_cells(nb):
            if name in names(tree(cell)) and "check" not in tags(cell):
                yield cell, f"uses the stub {name}, which raises until it is written"
    ours = sorted(name for name, item in EXERCISES.items() if item.lecture == number(path))
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    for item in EXERCISES.values():
        if (
            item.lecture == number(path)
            and item.level
            and f"| `{item.name}` | {item.level} |" not in text
        ):
            yield f"its text lists no line | `{item.name}` | {item.level} |"
    if sorted(checked) != ours:
        yield f"the exercises checked are {sorted(checked)}; course_utils.check has {ours}"


# --- what is stored


@rule
def executed_in_order(path, nb):
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}; run `course refresh {number(path)}`"


@cell_rule
def no_errors(cell):
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"stores {output.ename}: {output.evalue}"


@cell_rule
def no_stderr(cell):
    for kind, text in texts(cell):
        if kind == "stderr":
            yield f"a warning is stored: {text.strip()[:100]}"


@rule
def no_machine_paths(path, nb):
    for cell in nb.cells:
        for text in [cell.source, *(text for _, text in texts(cell))]:
            if found := MACHINE_PATH.search(text):
                yield cell, f"names a folder of one machine: {found[0]}"


@cell_rule
def alt_texts(cell):
    for output in cell.outputs:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        if "image/png" in output.get("data", {}) and not alt.strip():
            yield "a figure has no alternative text; show it with plots.show"


@rule
def size(path, nb):
    stored = path.stat().st_size
    if stored > MOST_BYTES:
        yield f"{stored:,} bytes, more than {MOST_BYTES:,}"


@rule
def fresh(path, nb):
    if nb.metadata.get("course", {}).get("hash") != source_hash(nb):
        yield f"the sources changed after the notebook was executed; run `course refresh {number(path)}`"
