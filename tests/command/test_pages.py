"""Pages to read, made of the committed lectures; tests/browser/ opens them."""

import functools
import os
import re
import shutil
import sys
from copy import deepcopy

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.command import notebooks, pages
from course_utils.command.notebooks import WIDGET_VIEW

LECTURES = notebooks.lectures()
STEMS = [path.stem for path in LECTURES]
NAMES = [f"{stem}.html" for stem in STEMS] + ["index.html", "results.html", "claims.html"]
FORMULA = re.compile(r"\$\$.+?\$\$|(?<!\$)\$[^$]+\$(?!\$)", re.DOTALL)


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """The pages of all committed lectures."""
    folder = tmp_path_factory.mktemp("pages")
    for path in LECTURES:
        notebook = notebooks.read(path)
        notebook.metadata["course"] |= {"seconds": 7.2, "error": ""}
        pages.export(notebook, path, folder, LECTURES)
    pages.write_index(folder)
    return folder


@functools.cache
def soup(out, name):
    return BeautifulSoup((out / name).read_text(encoding="utf-8"), "html.parser")


def markdown(path) -> list[str]:
    """What of a lecture is Markdown: cells and outputs."""
    found = []
    for cell in notebooks.read(path).cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if cell.cell_type == "markdown" and kind != "notes":
            found.append(cell.source)
        found += [
            o.data["text/markdown"]
            for o in cell.get("outputs", [])
            if "text/markdown" in o.get("data", {})
        ]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_page_asks_for_nothing_outside_and_its_links_lead_somewhere(out, name):
    page = soup(out, name)
    for element in page.find_all(src=True):
        assert element["src"].startswith("data:")
    assert not page.find_all(["script", "link", "iframe", "object", "embed"])
    assert "@import" not in str(page.style) and "url(" not in str(page.style)
    for link in page.find_all("a", href=True):
        file, _, anchor = link["href"].partition("#")
        if link["href"].startswith("https://"):
            continue
        assert not file or (out / file).exists(), link
        assert not anchor or soup(out, file or name).find(id=anchor), link
    assert page.html["lang"] == "en" and page.title.text.strip() and page.main


@pytest.mark.parametrize("path", LECTURES, ids=STEMS)
def test_a_page_has_the_texts_of_its_figures(out, path):
    stored = [
        output.metadata["image/png"]["alt"]
        for cell in notebooks.code_cells(notebooks.read(path))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert [image["alt"] for image in soup(out, f"{path.stem}.html").find_all("img")] == stored


@pytest.mark.parametrize("path", LECTURES, ids=STEMS)
def test_formulas_are_mathml(out, path):
    page = soup(out, f"{path.stem}.html")
    # what is code in Markdown is no formula
    texts = [re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL) for text in markdown(path)]
    wanted = sum(len(FORMULA.findall(text)) for text in texts)
    formulas = page.find_all("math")
    assert len(formulas) == wanted
    assert not [formula for formula in formulas if "\\" in formula.text]
    plain = page.find_all(string=lambda text: not text.find_parents(["pre", "code"]))
    assert not FORMULA.search("".join(text for text in plain if text.find_parent("main")))


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\arg\max_x f", "argmaxxf"),
        (r"\|x\|_p \le \Big\|y\Big\|", "‖x‖p≤‖y‖"),
        (r"\lVert x\rVert = \big\lVert y\big\rVert", "‖x‖=‖y‖"),
        (r"\log p + \log(1+e)", "logp+log(1+e)"),
        (r"\text{a <b}", "a\xa0<b"),
    ],
)
def test_what_the_converter_does_not_know_is_set_right(tex, text):
    assert formula(tex).text == text


def formula(tex, display="inline"):
    return BeautifulSoup(pages.mathml(tex, display), "html.parser")


def test_fences_and_braces_are_as_large_as_what_they_hold():
    large = formula(r"\Big\|x\Big\|_p").find_all("mo", minsize=True)
    assert len(large) == 2
    assert large[1].parent.name == "mrow" and large[1].parent.parent.name == "msub"
    assert formula(r"\lVert x\rVert").find("mo")["stretchy"] == "false"
    assert formula(r"\underbrace{a+b}_c").find("mo", string="⏟")["stretchy"] == "true"
    prime = formula(r"f_{\theta'}").find(string="′").parent
    assert prime.name == "mo" and prime.parent.name == "mrow"  # raised once, not twice


def test_limits_stand_below_in_a_display_only():
    assert formula(r"\max_x f", "block").find("munder") and not formula(r"\max_x f").find("munder")


def test_a_formula_that_cannot_be_converted_stays_readable():
    assert pages.mathml(r"a < \left(") == r"<code>a &lt; \left(</code>"


@pytest.mark.parametrize("path", LECTURES, ids=STEMS)
def test_solutions_and_plotting_code_are_folded_and_notes_left_out(out, path):
    page, notebook = soup(out, f"{path.stem}.html"), notebooks.read(path)
    assert not page.find_all("details", open=True)
    solutions = [c.source for c in notebook.cells if "solution" in c.metadata.get("tags", [])]
    folded = page.find_all("details", class_="solution")
    assert [one.find(class_="highlight").get_text().strip() for one in folded] == solutions
    names = [re.search(r"def (\w+)_solution", source)[1] for source in solutions]
    assert [one.summary.text for one in folded] == [f"Solution of {name}" for name in names]
    assert "For the speaker" not in page.text
    sources = page.find_all("div", class_="highlight")
    shown = [one for one in sources if not one.find_parent("details")]
    assert 0 < len(shown) < len(sources)
    for image in page.find_all("img"):
        assert not image.find_parent("details")  # a figure is in view


def test_the_index_names_every_lecture(out):
    index = soup(out, "index.html")
    assert [a["href"] for a in index.select(".lectures a")] == NAMES[: len(STEMS)]
    for path, item in zip(LECTURES, index.select(".lectures li"), strict=True):
        told = notebooks.claims(notebooks.read(path))
        assert notebooks.title(path) in item.text and len(item.p.text) > 40
        assert f"{len(told)} of {len(told)} claims hold · ran in 7 s · " in item.text
    assert [a["href"] for a in index.select("main ul a")] == ["results.html", "claims.html"]
    results = soup(out, "results.html")
    assert results.find("img")["src"].startswith("data:image/svg") and results.find("details")
    ways = [link["href"] for link in soup(out, "03_untargeted.html").nav.find_all("a")]
    assert ways == ["02_fake_images.html", "index.html", "04_targeted.html"]


HOSTILE = "<img src=x onerror=alert(1)>|`$<script>alert(2)</script>"
FORMULA_OF_DATA = r"$\text{<img/src=x/onerror=alert(3)>}$"


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("[a](javascript:alert(1))", "a"),
        ("[a](javascript://x%0aalert(1))", "a"),
        ("[a](data:text/html;://x)", "a"),
        ("[a](//far.org)", "a"),
        ("[a](../course_utils/core/cache.py)", "a"),
        ("[`a`](../Makefile)", "a"),
        ("![a](http://far.org/x.png)", "a"),
        ("![a](attachment:x.png)", "a"),
        ("![a](README.md)", "a"),
        (FORMULA_OF_DATA, "<img/src=x/onerror=alert(3)>"),
    ],
)
def test_text_leads_nowhere_else_and_asks_for_nothing(source, kept):
    page = BeautifulSoup(pages.text_page(source, {"index.html"}), "html.parser")
    assert not page.find_all(["a", "img"]) and page.text.strip() == kept


def test_only_pictures_beside_a_text_are_taken_into_a_page(tmp_path):
    (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "a.txt").write_text("text")
    text = pages.text_page("![a](a.svg) ![b](a.txt) ![c](.)", set(), str(tmp_path))
    images = BeautifulSoup(text, "html.parser").find_all("img")
    assert [image["alt"] for image in images] == ["a"]


def test_links_to_lectures_results_and_references_are_kept():
    text = "[a](03_untargeted.ipynb#x) [b](../results/README.md) [c](https://far.org) [d](#e)"
    page = BeautifulSoup(
        pages.text_page(text, {"03_untargeted.html", "results.html"}), "html.parser"
    )
    wanted = ["03_untargeted.html#x", "results.html", "https://far.org", "#e"]
    assert [link["href"] for link in page.find_all("a")] == wanted


def test_nothing_that_a_lecture_shows_becomes_markup(tmp_path):
    outputs = [
        new_output("stream", text=HOSTILE),
        new_output("execute_result", data={"text/plain": HOSTILE}),
        new_output("display_data", data={"text/markdown": f"| a |\n|--|\n| {HOSTILE} |"}),
        new_output("display_data", data={"text/html": HOSTILE}),
        new_output(
            "display_data",
            data={"image/png": "AA=="},
            metadata={"image/png": {"alt": f'"{HOSTILE}'}},
        ),
        new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE]),
        new_output("display_data", data={WIDGET_VIEW: {"model_id": "m"}, "text/plain": "Box()"}),
    ]
    cells = [
        new_markdown_cell(f"# {HOSTILE}\n\n**Promise** {HOSTILE}\n\n{FORMULA_OF_DATA}"),
        new_code_cell(HOSTILE, outputs=outputs),
    ]
    path = LECTURES[0]
    notebook = new_notebook(cells=cells)
    notebook.metadata["course"] = {"seconds": 1.0, "error": "boom"}
    pages.export(notebook, path, tmp_path)
    pages.write_index(tmp_path)
    for name in (f"{path.stem}.html", "index.html"):
        page = soup(tmp_path, name)
        assert not page.find_all(["script", "iframe"]) and not page.find_all(onerror=True)
        assert all(image["src"].startswith("data:") for image in page.find_all("img"))
    page = soup(tmp_path, f"{path.stem}.html")
    assert page.text.count("alert(1)") >= 6 and "Box()" not in page.text
    assert "Failed · 0 of 0 claims hold" in soup(tmp_path, "index.html").text


def test_one_lecture_alone_links_to_what_is_there(tmp_path):
    path = notebooks.find(["00"])[0]
    pages.export(notebooks.read(path), path, tmp_path)
    pages.write_index(tmp_path)
    page = soup(tmp_path, f"{path.stem}.html")
    files = {link["href"].partition("#")[0] for link in page.find_all("a", href=True)}
    assert {file for file in files if not file.startswith("https://")} <= {"", "index.html"}
    assert "A CNN on MNIST" in page.text  # the map, without links


def test_the_index_says_what_failed(tmp_path):
    first, second, third = LECTURES[:3]
    for path in (first, second):
        notebook = notebooks.read(path)
        if path is second:
            notebooks.code_cells(notebook)[-1].outputs = [
                new_output("stream", text="✔ one\n✘ two\n")
            ]
        pages.export(notebook, path, tmp_path)
    pages.write_index(tmp_path, [first.stem, third.stem])
    items = BeautifulSoup((tmp_path / "index.html").read_text(encoding="utf-8"), "html.parser")
    told = [item.find(class_="facts").text for item in items.select(".lectures li")]
    assert told[0].startswith("Failed · 6 of 6 claims hold")  # of an earlier run
    assert told[1].startswith("Broken claims · ") and "Failed" not in told[1]
    assert told[2].startswith("Failed, and left no page · ") and len(told) == 3
    links = [link["href"] for link in items.select(".lectures a")]
    assert links == [f"{path.stem}.html" for path in (first, second)]


def test_an_export_leaves_the_notebook_as_it_is(tmp_path):
    path = notebooks.find(["03"])[0]
    notebook = notebooks.read(path)
    before = deepcopy(notebook)
    pages.export(notebook, path, tmp_path)
    assert notebook == before


def test_pdf_needs_a_browser_and_says_so_first(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="--pdf prints with Chromium.*none is installed"):
        pages.browser()


@pytest.fixture
def printer(tmp_path, monkeypatch):
    """``printer(lines)`` has pages printed by a script, which finds the file to write in PDF."""

    def make(lines):
        program = tmp_path / "browser"
        program.write_text(
            f"#!{sys.executable}\nimport sys\n"
            "pdf = next(a for a in sys.argv if a.startswith('--print-to-pdf='))[15:]\n"
            f"page = sys.argv[-1 - ('--no-sandbox' in sys.argv)]\n{lines}\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(pages, "browser", lambda: str(program))

    return make


@pytest.mark.skipif(os.name != "posix", reason="the browser is a script")
def test_a_page_that_cannot_be_printed_leaves_the_earlier_pdf(tmp_path, printer, monkeypatch):
    pdf = tmp_path / "03.pdf"
    pdf.write_text("earlier")
    printer("sys.exit('no display')")
    with pytest.raises(OSError, match="^03.pdf could not be printed: no display$"):
        pages.print_pdf("page", pdf)
    printer("import time; time.sleep(60)")
    monkeypatch.setattr(pages, "PDF_SECONDS", 0.2)
    with pytest.raises(OSError, match="^03.pdf could not be printed: .* longer than 0.2 s$"):
        pages.print_pdf("page", pdf)
    assert pdf.read_text() == "earlier" and not list(tmp_path.glob("printing*"))


@pytest.mark.skipif(os.name != "posix", reason="the browser is a script")
def test_what_is_printed_names_no_folder_of_this_machine(tmp_path, printer):
    printer("import shutil; shutil.copy(page.removeprefix('file://'), pdf)")
    path, other, lost = notebooks.find(["00", "01", "02"])
    for one in (path, other):
        pages.export(notebooks.read(one), one, tmp_path, LECTURES)
    pages.print_all(tmp_path, [path, lost])  # one left no page
    names = {f"{path.stem}.pdf", "results.pdf", "claims.pdf"}
    assert {pdf.name for pdf in tmp_path.glob("*.pdf")} == names
    for name in names:
        links = [link["href"] for link in soup(tmp_path, name).select("main a")]
        assert all(link.startswith(("#", "https://")) for link in links)
