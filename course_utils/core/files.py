"""Folders and files of the course. Imports nothing heavy, so that the command starts at once.

One environment variable names each folder: ``COURSE_DATA``, ``COURSE_CACHE``, ``COURSE_STATE``.
"""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the clone: lectures/ and results/ lie here


def folder(variable: str, default: str | Path) -> Path:
    """The folder that an environment variable names, or the default."""
    return Path(os.environ.get(variable) or default).expanduser().resolve()


def user_dirs():
    """The user's own folders, as the operating system names them."""
    import platformdirs  # here, so that `course doctor` can report it missing

    return platformdirs.PlatformDirs("adversarial-course", appauthor=False)


def data_dir() -> Path:
    """Data sets (``COURSE_DATA``, else the user's cache folder)."""
    return folder("COURSE_DATA", user_dirs().user_cache_dir + "/data")


def cache_dir() -> Path:
    """Trained weights (``COURSE_CACHE``, else the user's cache folder). Safe to delete."""
    return folder("COURSE_CACHE", user_dirs().user_cache_dir)


def state_dir() -> Path:
    """A student's copies and progress (``COURSE_STATE``, else the user's data folder).

    Never safe to delete.
    """
    return folder("COURSE_STATE", user_dirs().user_data_dir)


def lectures_dir() -> Path:
    """The notebooks (``COURSE_LECTURES``, else ``lectures/`` of the clone)."""
    return folder("COURSE_LECTURES", ROOT / "lectures")


def results_dir() -> Path:
    """Recorded runs (``COURSE_RESULTS``, else ``results/`` of the clone)."""
    return folder("COURSE_RESULTS", ROOT / "results")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes ``content`` so that another process sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files private; a shared cache is not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
