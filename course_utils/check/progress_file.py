"""The files of what a student did: exercises solved, predictions made.

A file is read before it is written, and never lost.
"""

import json
from collections.abc import Callable
from pathlib import Path

from course_utils.core import files


def progress_file() -> Path:
    return files.state_dir() / "progress.json"


def guesses_file() -> Path:
    return files.state_dir() / "predictions.json"


def solved() -> dict[str, str]:
    """Name of every exercise solved so far, with the day; see ``kept``."""
    return kept(progress_file())


def kept(path: Path) -> dict[str, str]:
    """What the file holds, by name. Sets a damaged file aside.

    Raises:
        OSError: the file cannot be read, or not be set aside.
    """
    try:
        done = json.loads(path.read_bytes())  # bytes may begin with the mark of an editor
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        done = None
    if isinstance(done, dict):
        return done
    aside = free_name(path)
    path.rename(aside)
    files.say(f"(Your file {path.name} was damaged. It is kept as {aside}; a new one is begun.)")
    return {}


def free_name(path: Path) -> Path:
    """Where a damaged file is kept: beside it, in the place of no earlier one."""
    number = 1
    aside = path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    return aside


def remember(name: str, value: str, place: Callable[[], Path] = progress_file) -> str:
    """Adds ``name`` to the file at ``place()``, unless it is there; returns why not, or "".

    Reads right before it writes, for another process may have added one. A file that cannot be
    read is not replaced.
    """
    try:
        path = place()
        files.write_atomic(path, json.dumps({name: value, **kept(path)}, indent=1))
    except (OSError, ValueError) as error:  # ValueError: no folder is named
        return (
            f"\n  (This could not be kept: {error}. "
            "Set COURSE_STATE to a folder that can be read and written.)"
        )
    return ""
