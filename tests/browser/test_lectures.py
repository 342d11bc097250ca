"""The lectures in a browser: what one can play with answers.

nbval runs all cells of all lectures; here two lectures run whole, the others as far as their widgets.
"""

import re

import pytest

from course_utils.command import notebooks

# a lecture is run as a whole, on a machine that may be busy
pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
SEVEN = [(0.3, 0.24), (0.7, 0.24), (0.48, 0.78)]


def lecture(number: str):
    return notebooks.find([number])[0]


def widget(page, what: str):
    return page.locator(f".jp-OutputArea:has({what})").first


WHOLE = ("00", "03")


@pytest.mark.parametrize("number", "00 02 03 04 05 06 07 08 09 10 11 12 13 14".split())
def test_a_slider_moves_the_picture(lab, number):
    notebook = lab(lecture(number))
    notebook.run_all() if number in WHOLE else notebook.run_to_widget()
    notebook.move_slider()
    notebook.screenshot("widget", of=widget(notebook.page, ".widget-hslider"))


def test_01_a_drawn_digit_is_classified(lab):
    notebook = lab(lecture("01")).run_to_widget()
    notebook.draw_digit(SEVEN)
    pad = widget(notebook.page, ".digit-pad")
    notebook.screenshot("widget", of=pad)
    captions = ".digit-pad + * .widget-html:visible, :scope .widget-html:visible"
    says = pad.locator(captions).last.inner_text()
    assert re.search(r"\b\d\b", says), f"the caption names no digit: {says!r}"


def test_slides_with_a_live_widget(present):
    notebook = present("02").ready()
    *_, step = notebook.walk(until=".widget-hslider")
    assert step["overflow"] == 0
    notebook.move_slider()
    notebook.screenshot("widget")
    assert notebook.step()["overflow"] == 0
