"""Pages to read: executed lectures as HTML that needs no network, with an index, and as PDF.

The templates and the style are in ``page_templates/course``, in the form that nbconvert asks for.
"""

import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

from jinja2 import pass_context
from latex2mathml.converter import convert_to_element
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode
from traitlets.config import Config

from course_utils.command import notebooks
from course_utils.core import files

TEMPLATES = Path(__file__).with_name("page_templates")
SHOWN = ["image/png", "text/markdown", "text/html", "text/plain"]  # the first that there is
DOCUMENTS = {  # files of results/, their pages and what the index calls them
    "README.md": ("results.html", "Reproduced tables: the papers' numbers and ours"),
    "claims.md": ("claims.html", "Claims, each with its test"),
}
# What the converter to MathML sets otherwise, before and after the conversion
SPELLED = {r"\\(log|ln)(?![a-zA-Z])\s*(?=[a-zA-Z\\])": r"\\\1\\, "}
LIMITS = {r"\\(min|max)_": r"\\\1\\limits_"}  # TeX sets them below in a display only
LITERAL = {r"\arg": "arg", r"\|": "‖", r"\Vert": "‖", r"\lVert": "‖", r"\rVert": "‖"}
BRACES = {"⏟", "⏞"}
SPACES = {"max": "0.167em", "min": "0.167em", "|": "0em"}
SCRIPTED = {"msub", "msup", "msubsup"}
UNFOLDING = re.compile(r"&lt;(/?(?:details|summary))&gt;")
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
PDF_SECONDS = 120


# --- text


def mathml(tex: str, display: str = "inline") -> str:
    """A formula as MathML; one that cannot be converted stays as code."""
    spelled = tex.strip()
    for pattern, other in (SPELLED | (LIMITS if display == "block" else {})).items():
        spelled = re.sub(pattern, other, spelled)
    try:
        formula = convert_to_element(spelled, display=display)
    except Exception:  # the converter has no error of its own
        return f"<code>{html.escape(tex)}</code>"
    mend(formula)
    if display == "block":
        formula.set("tabindex", "0")  # a wide one is moved with the arrow keys
    return ElementTree.tostring(formula, encoding="unicode")


def mend(element: ElementTree.Element) -> None:
    """Sets right, in an element and all within, what the converter leaves to the browser."""
    # signs come as references, which are escaped when written: text never becomes markup
    text = html.unescape(element.text or "")
    element.text = text = LITERAL.get(text, text)
    if element.tag == "mo":
        if text in BRACES:
            element.set("stretchy", "true")
        elif text in SPACES:
            element.attrib |= {"lspace": SPACES[text], "rspace": SPACES[text]}
        elif text == "‖" and "minsize" not in element.attrib:
            element.attrib.setdefault("stretchy", "false")  # as tall as a letter
    for at, child in enumerate(element):
        mend(child)
        if at == 0 and element.tag in SCRIPTED and "minsize" in child.attrib:
            # a large fence with an index takes its size in a row of its own only
            element[0] = ElementTree.Element("mrow")
            element[0].append(child)
    if element.tag == "msup" and set(element[1].text or "") == {"′"}:
        element.tag = "mrow"  # this sign is small and raised by itself
        element[1].tag = "mo"
        element[1].attrib |= {"lspace": "0em", "rspace": "0em"}


class Renderer(IPythonRenderer):
    """Markdown as HTML: formulas as MathML, links within the folder, no markup from data."""

    def __init__(self, pages: set[str], folder: str = ""):
        super().__init__(escape=True, embed_images=True, path=folder)
        self.pages = pages

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def block_html(self, html: str) -> str:
        return self.inline_html(html)

    def inline_html(self, html: str) -> str:
        """Keeps what a table of ours unfolds with; all else is shown as it is written."""
        return UNFOLDING.sub(r"<\1>", self.escape_html(html))

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link to another page of the folder or to the network; other files are named only."""
        file, _, anchor = url.partition("#")
        if not file or url.startswith(("https://", "http://")):
            return super().link(text, url, title)
        name = Path(file).name
        page = DOCUMENTS.get(name, (f"{Path(name).stem}.html",))[0]
        if page in self.pages:
            return super().link(text, page + (f"#{anchor}" if anchor else ""), title)
        if name in DOCUMENTS or name.endswith(".ipynb") or text.startswith("<code>"):
            return text
        return f"<code>{text}</code>"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture that lies beside the text, within the page; of others only their text."""
        if not self.path or not (Path(self.path) / url).is_file():
            return text
        shown = super().image(text, url, title)
        return shown if 'src="data:image/' in shown else text

    def table(self, text: str) -> str:
        return f'<div class="wide" tabindex="0"><table>{text}</table></div>\n'


def text_page(source: str, pages: set[str], folder: str = "") -> str:
    """Markdown as HTML."""
    return MarkdownWithMath(renderer=Renderer(pages, folder)).render(source)


# --- lectures


def is_widget(output: NotebookNode) -> bool:
    """Whether an output is a widget, which a page would show as nothing; a figure follows it."""
    return notebooks.WIDGET_VIEW in output.get("data", {})


def solves(source: str) -> str:
    """The name of the exercise that a cell solves: what its first function is called."""
    found = re.search(r"^def (\w+?)(?:_solution)?\(", source, re.MULTILINE)
    return found[1] if found else ""


class Prepare(Preprocessor):
    """Leaves out what a page has no use for, and decides what is folded."""

    def preprocess(self, notebook: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        cells = notebook.cells
        notebook.cells = [cell for cell in cells if notebooks.slide_type(cell) != "notes"]
        for cell in notebooks.code_cells(notebook):
            cell.outputs = [output for output in cell.outputs if not is_widget(output)]
            cell.metadata["page"] = {
                "solution": "solution" in cell.metadata.get("tags", []),
                "solves": solves(cell.source),
                "folded": notebooks.shows_result(cell),
            }
        return notebook, resources


class PageExporter(HTMLExporter):
    """Lectures as pages. ``pages`` are the names in the folder that may be linked to."""

    def __init__(self, pages: set[str]):
        self.pages = pages
        super().__init__(
            config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}),
            template_name="course",
            extra_template_basedirs=[str(TEMPLATES)],
            preprocessors=[Prepare],
        )

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return text_page(source, self.pages)

    def page(self, template: str, **values) -> str:
        """A page from one of the other templates."""
        css = self._init_resources({})["include_css"]("style.css")
        return self.environment.get_template(template).render(css=css, **values)


def page_of(path: Path) -> str:
    return f"{path.stem}.html"


def around(path: Path, pages: set[str]) -> dict:
    """The title of a lecture, and its neighbours in the folder: address and title of each."""
    known = [one for one in notebooks.lectures() if page_of(one) in pages or one.name == path.name]
    at = [one.name for one in known].index(path.name)
    named = [(page_of(one), notebooks.title(one)) for one in known]
    return {
        "title": notebooks.title(path),
        "before": named[at - 1] if at else None,
        "after": named[at + 1] if at + 1 < len(named) else None,
    }


def export(notebook: NotebookNode, path: Path, out: Path, together: Sequence[Path] = ()) -> None:
    """Writes the executed notebook and its page into ``out``, both named like ``path``.

    The page links to those that lie there, and to those of the lectures ``together``.
    """
    notebooks.write(notebook, out / path.name)
    pages = linked(out) | {page_of(one) for one in together}
    files.write_atomic(out / page_of(path), lecture_page(notebook, path, pages))


def lecture_page(notebook: NotebookNode, path: Path, pages: set[str]) -> str:
    """The page of an executed lecture, with links to ``pages``."""
    resources = {"page": around(path, pages)}
    return PageExporter(pages).from_notebook_node(notebook, resources=resources)[0]


def linked(out: Path) -> set[str]:
    """The pages that lie in ``out``, and those that the index adds."""
    found = {path.name for path in out.glob("*.html")}
    return found | {page for _, page, _ in documents()} | {"index.html"}


# --- the index


def documents() -> list[tuple[Path, str, str]]:
    """The texts of results/ that there are: file, page and what the index calls it."""
    known = [(files.results_dir() / name, *rest) for name, rest in DOCUMENTS.items()]
    return [one for one in known if one[0].exists()]


def document_page(source: Path, title: str, pages: set[str]) -> str:
    """The page of a text of results/, with links to ``pages``."""
    body = text_page(source.read_text(encoding="utf-8"), pages, str(source.parent))
    facts = {"title": title, "before": None, "after": None}
    return PageExporter(pages).page("document.html.j2", page=facts, html=body)


def write_index(out: Path, failed: Collection[str] = ()) -> None:
    """Writes the index of the lectures in ``out``, and the pages of recorded results and claims.

    ``failed`` names lectures by their stems: what lies there of them may be of an earlier run.
    """
    pages = linked(out)
    for source, page, title in documents():
        files.write_atomic(out / page, document_page(source, title, pages))
    names = {path.name for path in out.glob("[0-9][0-9]_*.ipynb") if page_of(path) in pages}
    names |= {f"{stem}.ipynb" for stem in failed}
    lectures = [entry(out / name, Path(name).stem in failed) for name in sorted(names)]
    named = [(page, title) for _, page, title in documents()]
    overview = PageExporter(pages).page("overview.html.j2", lectures=lectures, documents=named)
    files.write_atomic(out / "index.html", overview)


def entry(path: Path, failed: bool = False) -> dict[str, str | bool]:
    """What the index says about an executed notebook, or about one that left no page."""
    there = path.exists() and path.with_suffix(".html").exists()
    if not there:
        path = files.lectures_dir() / path.name
    notebook = notebooks.read(path)
    facts = [paragraph(notebook, "Time")]
    run = notebook.metadata.get("course", {}) if there else {}
    if there:
        told = notebooks.claims(notebook)
        kept = sum(line.startswith("✔") for line in told)
        facts.insert(0, f"{kept} of {len(told)} claims hold")
    if "seconds" in run:
        facts.insert(1, f"ran in {run['seconds']:.0f} s")
    return {
        "page": page_of(path) if there else "",
        "title": notebooks.title(path),
        "promise": paragraph(notebook, "Promise"),
        "failed": failed or bool(run.get("error")),
        "broken": there and kept < len(told),
        "facts": " · ".join(filter(None, facts)),
    }


def paragraph(notebook: NotebookNode, name: str) -> str:
    """The paragraph of the title cell that begins with ``**name**``."""
    found = re.search(rf"\*\*{name}\*\* (.+)", notebook.cells[0].source)
    return found[1] if found else ""


# --- PDF


def browser() -> str:
    """The program that prints; ``ValueError`` where there is none."""
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    raise ValueError(
        "--pdf prints with Chromium or Chrome, and none is installed. Install one, or leave out "
        "--pdf and print the pages from your own browser: they are made for it."
    )


def print_all(out: Path, paths: Sequence[Path]) -> None:
    """Prints the pages of these lectures in ``out`` that there are, and those of results/.

    They are printed without links to each other: these would name folders of this machine.
    """
    for path in paths:
        if (out / path.name).exists():
            text = lecture_page(notebooks.read(out / path.name), path, set())
            print_pdf(text, out / f"{path.stem}.pdf")
    for source, page, title in documents():
        print_pdf(document_page(source, title, set()), (out / page).with_suffix(".pdf"))


def print_pdf(page: str, pdf: Path) -> None:
    """Writes a page as PDF. Raises ``OSError`` if the browser does not."""
    # beside the result: a browser in a sandbox of its own may not see the usual folder
    with tempfile.TemporaryDirectory(
        dir=pdf.parent, prefix="printing-", ignore_cleanup_errors=True
    ) as own:
        source, printed = Path(own).resolve() / "page.html", Path(own).resolve() / "page.pdf"
        source.write_text(page, encoding="utf-8")
        command = [browser(), "--headless", "--disable-gpu", "--no-pdf-header-footer"]
        command += [f"--user-data-dir={own}/profile", "--disable-background-networking"]
        command += [f"--print-to-pdf={printed}", source.as_uri()]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # the browser refuses a sandbox for root
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PDF_SECONDS)
            reason = (done.stderr.strip().splitlines() or ["the browser says nothing"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"the browser takes longer than {PDF_SECONDS} s"
        if not printed.exists():
            raise OSError(f"{pdf.name} could not be printed: {reason}")
        files.write_atomic(pdf, printed.read_bytes())
