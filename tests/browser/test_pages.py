"""Pages to read, opened from their files with the network cut off."""

import pytest

from course_utils.command import notebooks, pages

from .conftest import SCREENSHOTS
from .test_accessibility import serious

pytestmark = pytest.mark.browser
WIDE = """() => [...document.querySelectorAll("main *")]
    .filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .filter((e) => !e.closest("pre, .source, .wide, math, .skip, details:not([open]) > :not(summary)"))
    .map((e) => e.outerHTML.slice(0, 120))"""
CUT = """() => [...document.querySelectorAll("main pre, main .source, main .wide, main img, main table")]
    .filter((e) => e.checkVisibility({contentVisibilityAuto: true}))
    .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > innerWidth)
    .map((e) => e.outerHTML.slice(0, 120))"""
A4 = {"width": 680, "height": 1000}  # inside the margins, in CSS pixels


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    for path in notebooks.lectures():
        pages.export(notebooks.read(path), path, out, notebooks.lectures())
    pages.write_index(out)
    return out


@pytest.fixture
def offline(browser):
    """``offline(path, **context)`` opens a file in a browser without a network; asks fail the test."""
    contexts, asked = [], []

    def start(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.route(
            "**/*",
            lambda route: (
                route.abort()
                if not route.request.url.startswith(("file:", "data:"))
                else route.continue_()
            ),
        )
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield start
    assert all(url.startswith(("file:", "data:")) for url in asked), asked
    for context in contexts:
        context.close()


NAMES = [f"{path.stem}.html" for path in notebooks.lectures()] + [
    "index.html",
    "results.html",
    "claims.html",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_reads_offline_on_any_screen(offline, folder, name):
    (SCREENSHOTS / "pages").mkdir(parents=True, exist_ok=True)
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
        page = offline(folder / name, viewport={"width": width, "height": 900}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(WIDE) == []
        shot = SCREENSHOTS / "pages" / f"{name.removesuffix('.html')} {width} {scheme}.png"
        page.screenshot(path=shot, full_page=width == 1280 and scheme == "light")
        if width == 1280:
            assert not serious(page), scheme
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<div style=width:2000px>')"
    )
    assert page.evaluate(WIDE)


@pytest.mark.parametrize("name", NAMES)
def test_print_cuts_nothing_and_opens_everything(offline, folder, name):
    page = offline(folder / name, viewport=A4)
    page.emulate_media(media="print")
    assert page.evaluate(CUT) == []
    for code in page.locator("details .highlight").all():
        assert code.is_visible()
    page.emulate_media(media="screen")
    for code in page.locator("details .highlight").all():
        assert not code.is_visible()


def test_pdf_is_printed(folder):
    pages.print_all(folder, notebooks.find(["00"]))
    pdf = (folder / "00_start_here.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and len(pdf) > 100_000
    assert b"file:" not in pdf  # a link to a page of this folder
    assert (folder / "results.pdf").exists()


def test_solutions_unfold_and_links_lead_on(offline, folder):
    page = offline(folder / "03_untargeted.html")
    solution = page.locator("details.solution").first
    assert not solution.locator(".highlight").is_visible()
    solution.locator("summary").click()
    assert solution.locator(".highlight").is_visible()
    page.get_by_role("link", name="04 ·").first.click()
    assert page.title().startswith("04 ·")
    page.get_by_role("link", name="All lectures").first.click()
    page.get_by_role("link", name="00 · Start here").click()
    assert page.get_by_role("heading", name="00 · Start here").is_visible()
