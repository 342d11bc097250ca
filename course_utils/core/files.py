"""Folders, files and output of the course. Imports nothing heavy: the command starts at once.

One environment variable names each folder. Empty counts as unset; blanks alone are refused.
"""

import codecs
import errno
import glob
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the clone: lectures/ and results/ lie here
FOLDERS = ("COURSE_DATA", "COURSE_CACHE", "COURSE_STATE", "COURSE_LECTURES", "COURSE_RESULTS")
# What a shell would have removed or replaced: blanks and quotes around a value, $NAME, %NAME%
LITERAL = re.compile(
    r"""^['`‘’\s]|['`‘’\s]$|["“”„\x00-\x1f\x7f\ufeff]|\$[A-Za-z_({]|%[A-Za-z_]\w*%"""
)
TRIAL_BYTES = 1_000_000  # a notebook with its figures takes about as much
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
STALE_SECONDS = 3600  # no write takes as long


def folder(name: str, value: str) -> Path:
    """The folder that ``value`` names, as a full path; ``~`` is the user's home.

    Raises:
        ValueError: ``value`` names no folder, or a shell left something in it. ``name`` says whose
            value it is.
    """
    if LITERAL.search(value):
        raise ValueError(
            f"{name} is {value!r}; leave out quotes, and blanks or line ends around the path, "
            "and write out names such as $HOME."
        )
    try:
        return Path(value).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} is {value!r}, which names no folder here ({error}); give its full path."
        ) from error


def named(variable: str, default: Callable[[], str]) -> Path:
    """The folder that an environment variable names, or else what ``default`` gives."""
    value = os.environ.get(variable)
    if value:
        return folder(variable, value)
    try:
        return Path(default()).expanduser().resolve()
    except RuntimeError as error:
        raise ValueError(
            f"{variable} is not set, and this user has no home folder; set it to a folder to use."
        ) from error


def environment(**variables: str) -> dict[str, str]:
    """The environment for a child process: ours and ``variables``, with full paths of folders.

    A child may start elsewhere, where a relative path is another folder.
    """
    found = os.environ | variables
    for variable in FOLDERS:
        if found.get(variable):
            found[variable] = str(folder(variable, found[variable]))
    return found


def check_writable(name: str, place: Path, mode: int = 0o777) -> None:
    """Makes the folder ``place``; refuses one that cannot be written, or whose disk is full.

    ``name`` is the variable or option that names it.
    """
    try:
        place.mkdir(mode, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())  # some file systems look for room no earlier
    except OSError as error:
        room = "Make room there, or set" if error.errno in FULL else "Set"
        raise ValueError(
            f"{place} cannot be written ({error.strerror}). {room} {name} to a folder of your own."
        ) from error


def in_words(error: OSError) -> str:
    """What failed, and the cure where a person has one."""
    if error.errno in FULL:
        return f"{error}. Make room there, or name another folder."
    if error.errno in FORBIDDEN:
        return f"{error}. Give yourself the right to use it, or name a folder of your own."
    return str(error)


def user_dirs():
    """The user's own folders, as the operating system names them."""
    import platformdirs  # here, so that `course doctor` can report it missing

    return platformdirs.PlatformDirs("adversarial-course", appauthor=False)


def data_dir() -> Path:
    """Data sets (``COURSE_DATA``, else the user's cache folder)."""
    return named("COURSE_DATA", lambda: user_dirs().user_cache_dir + "/data")


def cache_dir() -> Path:
    """Trained weights (``COURSE_CACHE``, else the user's cache folder). Safe to delete."""
    return named("COURSE_CACHE", lambda: user_dirs().user_cache_dir)


def state_dir() -> Path:
    """A student's copies and progress (``COURSE_STATE``, else the user's data folder).

    Never safe to delete.
    """
    return named("COURSE_STATE", lambda: user_dirs().user_data_dir)


def lectures_dir() -> Path:
    """The notebooks (``COURSE_LECTURES``, else ``lectures/`` of the clone)."""
    return named("COURSE_LECTURES", lambda: str(ROOT / "lectures"))


def results_dir() -> Path:
    """Recorded runs (``COURSE_RESULTS``, else ``results/`` of the clone)."""
    return named("COURSE_RESULTS", lambda: str(ROOT / "results"))


PLAIN = str.maketrans("●○✔✘−–—→←×·…", "*o+x---><x..")


def plain(error: UnicodeEncodeError) -> tuple[str, int]:
    """Gives ASCII for what a stream cannot encode; the name of this handler is ``plain``."""
    wrong = error.object[error.start : error.end].translate(PLAIN)
    return wrong.encode("ascii", "replace").decode(), error.end


codecs.register_error("plain", plain)


def say(text: str, *, error: bool = False) -> None:
    """Prints ``text`` at once on standard output, or on standard error.

    Characters that the stream cannot encode become plain ones, or ``?``.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "ascii"
    for trial in ("utf-8", encoding, "ascii"):
        with suppress(UnicodeEncodeError, LookupError):  # a stream may name a wrong encoding
            print(text.encode(trial, "plain").decode(trial), file=stream, flush=True)
            return


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes ``content`` so that another process sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
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


def sweep(path: Path) -> None:
    """Removes what killed processes left of earlier writes of ``path``."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{8 * '?'}"):  # as mkstemp names it
        with suppress(OSError):  # another process was faster, or may do what this one may not
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
