"""Colours and a live line on a terminal; plain and whole lines elsewhere."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from course_utils.command import screen
from course_utils.core import files

LONG = "04_" + "a_very_long_name_" * 10
SETTINGS = "COLUMNS FORCE_COLOR NO_COLOR TTY_COMPATIBLE TTY_INTERACTIVE".split()


def on_a_terminal(code, **variables):
    pty = pytest.importorskip("pty", reason="no terminals to be made on Windows")
    reader, writer = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    env |= {"TERM": "xterm"} | variables
    code = f"import time\nfrom course_utils.command import screen\n{code}"
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(command, cwd=files.ROOT, env=env, stdout=writer)
    os.close(writer)
    printed = b""
    with suppress(OSError):  # the child has ended
        while chunk := os.read(reader, 4096):
            printed += chunk
    os.close(reader)
    assert child.wait() == 0
    return printed.decode().replace("\r\n", "\n")


def test_nothing_is_cut_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    said = f"✘ [b]{LONG}[/b] :x: {LONG}"
    screen.say(said)
    screen.show_table(("lecture", "claims"), [("03", "✔"), (LONG, "12 of 12 kept")])
    text, empty, head, rule, first, second = capsys.readouterr().out.splitlines()
    assert (text, empty) == (said, "")
    assert head.split() == ["lecture", "claims"] and set(rule) == {"─"}
    assert first.split() == ["03", "✔"] and second.split(maxsplit=1) == [LONG, "12 of 12 kept"]


def test_a_terminal_shows_colours_unless_they_are_refused():
    code = f"screen.say('PROBLEM  Data: {LONG}')\n"
    code += "screen.show_table(('lecture', 'claims'), [('03', '1 of 2 kept, FAILED')])"
    printed = on_a_terminal(code)
    assert f"\033[31mPROBLEM\033[0m  Data: {LONG}\n" in printed
    assert "1 of 2 kept, \033[31mFAILED\033[0m\n" in printed
    printed = on_a_terminal(code, NO_COLOR="1")
    assert f"PROBLEM  Data: {LONG}\n" in printed and "1 of 2 kept, FAILED\n" in printed


CELLS = "with screen.progress('03_tiny') as on_cell:\n    on_cell(2, 7)\n    time.sleep(1)\n"


def test_progress_on_a_terminal_is_one_line_that_disappears():
    printed = on_a_terminal(f"{CELLS}    screen.say('✘ a cell fails')\nscreen.say('done')")
    assert re.search(r"03_tiny: cell 2 of 7, \d s", printed)
    clear, show_cursor = re.escape("\033[2K"), re.escape("\033[?25h")
    assert re.search(clear + "[^\n]*✘[^\n]* a cell fails\n", printed)  # above the line
    assert re.search(f"{show_cursor}.*{clear}done\n$", printed) and printed.count("\n") == 3


@pytest.mark.parametrize("variable", ["TERM=dumb", "FORCE_COLOR=1"])
def test_progress_elsewhere_is_a_plain_line_now_and_then(capsys, monkeypatch, variable):
    monkeypatch.setenv(*variable.split("="))  # many CI systems ask for colour
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0.2)
    with screen.progress("03_tiny") as on_cell:
        time.sleep(0.3)
        on_cell(2, 7)
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "03_tiny: starting, 0 s"
    assert "03_tiny: cell 2 of 7, 0 s" in lines and 2 <= len(lines) <= 3


def test_progress_on_a_terminal_without_cursor_is_plain_too():
    printed = on_a_terminal(f"screen.PLAIN_SECONDS = 0.4\n{CELLS}", TERM="dumb")
    assert set(printed.splitlines()) <= {f"03_tiny: cell 2 of 7, {n} s" for n in (0, 1)}
    assert len(printed.splitlines()) >= 2
