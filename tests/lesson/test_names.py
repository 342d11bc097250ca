"""Names from data, such as a folder's or a class's, are shown as they are: no markup, no mathematics."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from markdown_it import MarkdownIt
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from course_utils.core.images import Images
from course_utils.lesson import lecture, plots, result_tables, results, widgets

HOSTILE = [
    "fo<img src=x onerror=alert(1)>|lder",
    "$y_{$",
    "$$x$$ and $y$",
    r"\(x\) \[y\] \begin{equation}z\end{equation} \| a\\b",
    "a*b*c __d__ _e_ ~~f~~",
    "`code` | [a](http://b) ![c](d)",
    "&lt;b&gt; &amp; <b>bold</b> <!-- gone -->",
    "</details><script>alert(1)</script>",
    "two\nlines\n\n# heading\n| a | b |",
    'it\'s "quoted"',
]
RENDERERS = {
    "commonmark": MarkdownIt("commonmark", {"html": True}).enable("table").render,
    "nbconvert": markdown2html_mistune,
}
every_name = pytest.mark.parametrize("name", HOSTILE)
every_renderer = pytest.mark.parametrize("render", RENDERERS.values(), ids=[*RENDERERS])


class Page(HTMLParser):
    """The tags and the texts of an HTML page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)

    def check(self, name, tags):
        """Shows the name, on one line; has no tags but these, and nothing for MathJax."""
        assert " ".join(name.split()) in "".join(self.texts)
        assert {*self.tags} <= {*tags.split(), "span"}
        for text in self.texts:
            assert text == "$" or "$" not in text, "MathJax looks for pairs within an element"
            assert text == "\\" or "\\" not in text


@every_name
@every_renderer
def test_a_name_in_markdown(name, render):
    Page(render(f"before {result_tables.verbatim(name)} after")).check(name, "p")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """``table(name)`` is a table of images from the source ``name``, recorded at full scale."""
    rows = [{"key": "a", "label": "A", "paper": 1.0}]
    spec = {"03-one": {"title": "A table", "source": "A paper", "rows": rows}}
    (tmp_path / "papers.json").write_text(json.dumps(spec))
    monkeypatch.setattr(results, "PAPERS", tmp_path / "papers.json")
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("COURSE_SCALE", "full")
    monkeypatch.setenv("COURSE_RECORD", "1")

    def make(name):
        image = Images(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), ("a",), name)
        return results.table("03-one", {"a": 1.0}, image)

    return make


TABLE = "p strong table thead tbody tr th td"


@every_name
@every_renderer
def test_the_source_of_a_table(name, render, table):
    page = Page(render(table(name)._repr_markdown_()))
    page.check(name, TABLE)
    assert (page.tags.count("th"), page.tags.count("td")) == (4, 4)


@every_name
@every_renderer
def test_the_page_of_results(name, render, table):
    table(name)
    told = results.page()
    (line,) = [line for line in told.splitlines() if "full scale on" in line]
    Page(render(line)).check(name, "p code")
    assert not re.search("<(img|script|b)", told)


@every_name
@every_renderer
def test_the_table_of_evidence(name, render, monkeypatch):
    monkeypatch.setattr(lecture, "CLAIMS", {})
    lecture.claim(name, True)
    page = Page(render(lecture.evidence_table().data))
    page.check(name, TABLE)
    assert (page.tags.count("th"), page.tags.count("td")) == (6, 6)


@every_name
def test_captions_and_errors_of_pictures(name):
    def draw(fails):
        if fails:
            raise ValueError(name)
        return b"", name

    picture = widgets.Picture(draw)
    for fails, place in ((False, picture.caption), (True, picture.error)):
        picture.show(fails)
        page = Page(place.value)
        assert "".join(page.texts).endswith(name) and {*page.tags} <= {"b"}


@every_name
def test_texts_of_figures(name):
    """As they are, and drawn without an error of mathematics."""
    fig, (left, right) = plots.subplots(1, 2)
    plots.probabilities(left, torch.tensor([0.5, 0.5]), [name, "b"], title=name)
    plots.curves(right, [1, 2], {name: [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y")
    assert plots.to_png(fig)
    texts = [*left.get_xticklabels(), left.title, *right.get_legend().get_texts()]
    assert sum(name in text.get_text() for text in texts[1:]) == 2
    assert texts[0].get_text() == plots.short(name)  # beside an axis there is less room
    assert plots.to_png(plots.images(torch.zeros(1, 1, 4, 4), [name], title=name))
