"""Pages to read: executed lectures as HTML that needs no network, with an index, and as PDF.

The templates and the style are in ``page_templates/course``, in the form that nbconvert asks for.
"""

import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode

from course_utils.command import notebooks
from course_utils.core import files

TEMPLATES = Path(__file__).with_name("page_templates")
RESULTS = {"image/png", "text/markdown"}
FOLDED = {"setup", "widget", "claims", "evidence"}  # cells by their tags
DOCUMENTS = {  # files of results/, their pages and what the index calls them
    "README.md": ("results.html", "Reproduced tables: the papers' numbers and ours"),
    "claims.md": ("claims.html", "Claims, each with its test"),
}
# What the converter to MathML does not know, or sets otherwise
SPELLED = {
    r"\\[bB]igg?[lr]?(?=\\\|)": "",
    r"\\(\||[lr]Vert(?![a-zA-Z]))": r"\\Vert ",
    r"\\arg(?![a-zA-Z])": r"\\operatorname{arg}",
    r"\\(log|ln)(?![a-zA-Z])\s*(?=[a-zA-Z\\])": r"\\\1\\, ",
    r"\\(min|max)_": r"\\\1\\limits_",
}
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
    for pattern, other in SPELLED.items():
        spelled = re.sub(pattern, other, spelled)
    try:
        return convert(spelled, display=display)
    except Exception:  # the converter has no error of its own
        return f"<code>{html.escape(tex)}</code>"


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
        name = Path(file).name
        page = DOCUMENTS.get(name, (f"{Path(name).stem}.html",))[0]
        if not file or "://" in url:
            return super().link(text, url, title)
        if page in self.pages:
            return super().link(text, page + (f"#{anchor}" if anchor else ""), title)
        return text

    def table(self, text: str) -> str:
        return f'<div class="wide" tabindex="0"><table>{text}</table></div>\n'


def text_page(source: str, pages: set[str], folder: str = "") -> str:
    """Markdown as HTML."""
    return MarkdownWithMath(renderer=Renderer(pages, folder)).render(source)


# --- lectures


def is_widget(output: NotebookNode) -> bool:
    """Whether an output is a widget, which a page would show as nothing; a figure follows it."""
    return notebooks.WIDGET_VIEW in output.get("data", {})


class Prepare(Preprocessor):
    """Leaves out what a page has no use for, and decides what is folded."""

    def preprocess(self, notebook: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        notebook.cells = [
            cell
            for cell in notebook.cells
            if cell.metadata.get("slideshow", {}).get("slide_type") != "notes"
        ]
        for cell in notebooks.code_cells(notebook):
            tags = set(cell.metadata.get("tags", []))
            cell.outputs = [
                output
                for output in cell.outputs
                if notebooks.WIDGET_VIEW not in output.get("data", {})
            ]
            shown = {kind for output in cell.outputs for kind in output.get("data", {})}
            cell.metadata["page"] = {
                "solution": "solution" in tags,
                "folded": bool(FOLDED & tags or RESULTS & shown),
            }
        return notebook, resources


class PageExporter(HTMLExporter):
    """Lectures as pages. ``pages`` are the names in the folder that may be linked to."""

    def __init__(self, pages: set[str]):
        self.pages = pages
        super().__init__(
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
    resources = {"page": around(path, pages)}
    text, _ = PageExporter(pages).from_notebook_node(notebook, resources=resources)
    files.write_atomic(out / page_of(path), text)


def linked(out: Path) -> set[str]:
    """The pages that lie in ``out``, and those that the index adds."""
    found = {path.name for path in out.glob("*.html")}
    return found | {page for page, _ in DOCUMENTS.values()} | {"index.html"}


# --- the index


def write_index(out: Path) -> None:
    """Writes the index of the lectures in ``out``, and the pages of recorded results and claims."""
    pages = linked(out)
    exporter = PageExporter(pages)
    documents = []
    for name, (page, text) in DOCUMENTS.items():
        source = files.results_dir() / name
        if source.exists():
            body = text_page(source.read_text(encoding="utf-8"), pages, str(source.parent))
            facts = {"title": text, "before": None, "after": None}
            files.write_atomic(out / page, exporter.page("document.html.j2", page=facts, html=body))
            documents.append((page, text))
    lectures = [entry(path) for path in sorted(out.glob("[0-9][0-9]_*.ipynb"))]
    overview = exporter.page("overview.html.j2", lectures=lectures, documents=documents)
    files.write_atomic(out / "index.html", overview)


def entry(path: Path) -> dict[str, str]:
    """What the index says about an executed notebook."""
    notebook = notebooks.read(path)
    told = notebooks.claims(notebook)
    kept = sum(line.startswith("✔") for line in told)
    facts = [f"{kept} of {len(told)} claims hold"]
    run = notebook.metadata.get("course", {})
    if "seconds" in run:
        facts.append(f"ran in {run['seconds']:.0f} s")
    if run.get("error"):
        facts.insert(0, "FAILED")
    return {
        "page": page_of(path),
        "title": notebooks.title(path),
        "promise": paragraph(notebook, "Promise"),
        "facts": " · ".join([*facts, paragraph(notebook, "Time")]),
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


def print_pdf(page: Path) -> None:
    """Writes ``page`` as PDF beside it. Raises ``OSError`` if the browser does not."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser(), "--headless", "--disable-gpu", "--no-pdf-header-footer"]
        command += [f"--user-data-dir={profile}", "--disable-background-networking"]
        command += [f"--print-to-pdf={page.with_suffix('.pdf')}", page.as_uri()]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # the browser refuses a sandbox for root
        done = subprocess.run(command, capture_output=True, text=True, timeout=PDF_SECONDS)
    if done.returncode or not page.with_suffix(".pdf").exists():
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise OSError(f"{page.name} could not be printed: {reason}")
