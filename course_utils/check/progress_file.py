"""The file of the exercises that are solved. It is read before it is written, and never lost."""

import datetime
import json
from pathlib import Path

from course_utils.core import files


def progress_file() -> Path:
    return files.state_dir() / "progress.json"


def solved() -> dict[str, str]:
    """Name of every exercise solved so far, with the day. Sets a damaged file aside.

    Raises:
        OSError: the file cannot be read, or not be set aside.
    """
    path = progress_file()
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
    files.say(f"(Your progress file was damaged. It is kept as {aside}; progress starts anew.)")
    return {}


def free_name(path: Path) -> Path:
    """Where a damaged file is kept: beside it, in the place of no earlier one."""
    number = 1
    aside = path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    return aside


def remember(name: str) -> str:
    """Adds an exercise to those solved; returns why it could not, or "".

    Reads right before it writes, for another process may have added one. A file that cannot be
    read is not replaced.
    """
    try:
        done = {name: datetime.date.today().isoformat(), **solved()}
        files.write_atomic(progress_file(), json.dumps(done, indent=1))
    except (OSError, ValueError) as error:  # ValueError: no folder is named
        return (
            f"\n  (Your progress could not be kept: {error}. "
            "Set COURSE_STATE to a folder that can be read and written.)"
        )
    return ""
