"""How long a widget takes from a key to its picture, in a real browser on the lecture's slides."""

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from course_utils.command import notebooks, pages
from course_utils.core import files

REDRAWS = 60
# To the right and back in turns; a slider at its right end goes left first.
REDRAW = """async ([handle, image, turn]) => {
    const full = Number(handle.ariaValueNow) >= Number(handle.ariaValueMax);
    const key = turn % 2 || full ? "ArrowLeft" : "ArrowRight";
    const drawn = new Promise((done) =>
        new MutationObserver(done).observe(image, { attributeFilter: ["src"] }));
    const started = performance.now();
    handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    await drawn;
    await image.decode();
    return performance.now() - started;
}"""


@contextmanager
def presented(lecture: str) -> Iterator[str]:
    """The address of a lecture's slides, with kernels of one thread."""
    command = [sys.executable, "-m", "course_utils.command.cli", "present", lecture, "--no-browser"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--expose-app-in-browser"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        lines = (line for line in process.stdout if line.startswith("Slides: "))
        yield next(lines).split()[1]
    finally:
        process.terminate()
        process.wait(30)


def redraws(page, cell: int) -> list[float]:
    """Milliseconds of each redraw of the widget in this cell."""
    at = f"window.courseSlides.steps.findIndex((groups) => groups.flat().includes({cell}))"
    page.evaluate(f"window.courseSlides.go({at})")
    node = page.locator(".course-shown:has(.noUi-handle)").last
    handle = node.locator(".noUi-handle").first.element_handle()
    image = node.locator("img.widget-image").first.element_handle()
    if node.locator(".digit-pad").count():
        handle.press("ArrowRight")  # an empty pad has no picture
        page.wait_for_timeout(2000)
    taken = [page.evaluate(REDRAW, [handle, image, turn]) for turn in range(REDRAWS + 5)]
    return taken[5:]


def measured(lectures: list[str]) -> Iterator[tuple[str, float, float, float]]:
    """For each widget: lecture and cell; median, 95th percentile and maximum in milliseconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=pages.browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        for lecture in lectures:
            with presented(lecture) as address:
                page = chromium.new_page(viewport={"width": 1280, "height": 720})
                page.goto(address)
                ready = "document.body.dataset.courseSlides === 'ready'"
                page.wait_for_function(ready, timeout=1_200_000)
                page.wait_for_timeout(1500)
                tags = page.evaluate(
                    "window.courseSlides.notebook.widgets.map((c) => c.model.getMetadata('tags'))"
                )
                for cell, own in enumerate(tags):
                    if "widget" in (own or []):
                        times = sorted(redraws(page, cell))
                        late = times[math.ceil(0.95 * len(times)) - 1]
                        yield f"{lecture}, cell {cell}", statistics.median(times), late, times[-1]
                page.close()


def lectures() -> list[str]:
    return [path.name[:2] for path in notebooks.lectures()]


if __name__ == "__main__":
    for what, median, late, most in measured(sys.argv[1:] or lectures()):
        files.say(f"{what}: median {median:.0f}, 95th percentile {late:.0f}, most {most:.0f} ms")
