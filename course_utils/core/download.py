"""Gets the data sets that torchvision knows: MNIST, CIFAR-10 and SVHN.

Imports neither PyTorch nor torchvision at its top, so that ``course doctor`` runs without them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from course_utils.core import files

SOCKET_SECONDS = 10  # longest silence of a server
RETRY_SECONDS = 600  # pause after a failed download
DOWNLOAD_SECONDS = {"mnist": 300, "cifar10": 1800, "svhn": 1800}  # limits for 12, 170 and 246 MB

# MNIST's files: MD5 of the archive, as torchvision has it, and of what is unpacked from it, which
# torchvision does not check
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "6bbc9ace898e44ae57da46a324031adb",
    ),
    "train-labels-idx1-ubyte": (
        "d53e105ee54ea40749a09fcbcd1e9432",
        "a25bea736e30d166cdddb491f175f624",
    ),
    "t10k-images-idx3-ubyte": (
        "9fb629c4189551a2d022fa330f9573f3",
        "2646ac647ad5339dbf082846283269ea",
    ),
    "t10k-labels-idx1-ubyte": (
        "ec29112dd5afa0611ce80d1b7f02629c",
        "27ae3e4e09519cfbb04c329615203637",
    ),
}
# spelt out, because Fashion-MNIST has files of the same names in a folder of its own
MNIST_SPOTS = (
    "",
    "raw",
    "MNIST",
    "MNIST/raw",
    "mnist",
    "mnist/raw",
    "MNIST/MNIST/raw",
    "data/MNIST/raw",
)

LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # systems leave these


class DataUnavailable(RuntimeError):
    """A data set is missing and cannot be downloaded; the message names the folder and the cure."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from; paths are relative to the data directory."""

    name: str
    title: str
    kind: str  # torchvision's class
    halves: tuple[dict, dict]  # its arguments for the training and the test set
    settings: tuple[str, ...]  # its attributes that say what is fetched from where
    archives: dict[str, str]  # what is downloaded: path -> MD5
    files: dict[str, str]  # what is read: path -> MD5
    spots: tuple[str, ...] = ("", "*", "*/*")  # where else people put the files

    @property
    def all_files(self) -> dict[str, str]:
        return {**self.archives, **self.files}


def describe(name: str) -> Source:
    """Returns the source of ``"mnist"``, ``"cifar10"`` or ``"svhn"``.

    Only the last two import torchvision, with which a kernel takes 160 MB more.
    """
    halves = ({"train": True}, {"train": False})
    if name == "mnist":
        settings = ("mirrors", "resources")
        archives = {f"MNIST/raw/{file}.gz": md5 for file, (md5, _) in MNIST_FILES.items()}
        read = {f"MNIST/raw/{file}": md5 for file, (_, md5) in MNIST_FILES.items()}
        return Source(name, "MNIST", "MNIST", halves, settings, archives, read, MNIST_SPOTS)
    from torchvision.datasets import CIFAR10, SVHN

    if name == "cifar10":
        settings = ("url", "filename", "tgz_md5", "train_list", "test_list", "meta")
        archives = {CIFAR10.filename: CIFAR10.tgz_md5}
        meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
        batches = [*CIFAR10.train_list, *CIFAR10.test_list, meta]
        read = {f"{CIFAR10.base_folder}/{batch}": md5 for batch, md5 in batches}
        return Source(name, "CIFAR-10", "CIFAR10", halves, settings, archives, read)
    halves = ({"split": "train"}, {"split": "test"})
    read = {file: md5 for _, file, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])}
    return Source(name, "SVHN", "SVHN", halves, ("split_list",), read, read)


def intact(root: Path, expected: dict[str, str]) -> list[str]:
    """Returns the expected files (path -> MD5) that are in ``root`` and pass their checksum."""
    return [path for path, md5 in expected.items() if md5_of(root / path) == md5]


def md5_of(path: Path) -> str | None:
    """Returns the MD5 sum of a file in hex digits, ``None`` where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def has_all(root: Path, expected: dict[str, str]) -> bool:
    """Returns whether all expected files are in ``root`` and pass their checksum."""
    return len(intact(root, expected)) == len(expected)


def damaged(source: Source, root: Path) -> list[Path]:
    good = intact(root, source.all_files)
    return [root / path for path in source.all_files if path not in good and (root / path).exists()]


def prepare(source: Source) -> Path:
    """Returns the folder that has all files of the data set, complete and checked.

    Unpacks or downloads what is missing. Raises ``DataUnavailable`` where that fails.
    """
    root = files.data_dir()
    try:
        if has_all(root, source.files):
            return root
        refuse_misplaced(source, root)
        if writable(root):
            return complete(source, root, root)
        if has_all(root, source.archives):
            return complete(source, root, files.cache_dir() / "unpacked")
    except OSError as error:  # disk full, a file where a folder belongs, a lock never released, ...
        raise DataUnavailable(
            f"{source.title} could not be put into {root}: {error}. "
            "Cure that, or set COURSE_DATA to another folder."
        ) from error
    damage = "".join(f"{path} is damaged.\n" for path in damaged(source, root))
    raise DataUnavailable(
        f"{source.title} is not complete in {root}, and that folder cannot be written.\n{damage}"
        f"Have its owner put {', '.join(source.archives)} there, "
        "or set COURSE_DATA to a folder of your own."
    )


def writable(folder: Path) -> bool:
    """Returns whether files can be made in ``folder``, which need not exist yet."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return os.access(existing, os.W_OK)


def refuse_misplaced(source: Source, root: Path) -> None:
    """Raises ``DataUnavailable`` where missing files lie in another likely place."""
    moves = []
    for path in source.all_files:
        here = root / path
        there = None if here.exists() else found_elsewhere(source, root, here.name)
        if there is not None:
            moves.append(f"{there} belongs at {here}: move it there.")
    if moves:
        raise DataUnavailable("\n".join(moves))


def found_elsewhere(source: Source, root: Path, name: str) -> Path | None:
    """Returns the first file of this name in one of the likely places, else ``None``."""
    for spot in source.spots:
        for spelling in (name, name.replace("-idx", ".idx")):  # some copies of MNIST write a dot
            for place in root.glob(f"{spot}/{spelling}".lstrip("/")):
                hidden = [part for part in place.relative_to(root).parts if is_hidden(part)]
                if place.is_file() and not hidden:
                    return place
    return None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: a dot file, or a system's."""
    return name.startswith(".") or name.lower() in LITTER


def complete(source: Source, origin: Path, root: Path) -> Path:
    """Makes ``root`` complete from the archives in ``origin``; downloads those that are missing.

    Works in one process at a time; the others wait, then find the files or the note of the failure.
    Files appear whole. None is deleted: one that fails its checksum is kept as ``NAME.damaged``.
    """
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{source.name}.lock", timeout=DOWNLOAD_SECONDS[source.name] + 60):
        if has_all(root, source.files):
            return root
        damage = set_aside_damaged(source, root)
        offline = has_all(origin, source.archives)  # only unpacking is left to do
        task = "unpacking" if offline else "downloading"
        reason = None if offline else recent_failure(source, root)
        if reason is None:
            files.say(f"{source.title}: {task} into {root} ...{damage}")
            reason = fetch(source, origin, root)
            if has_all(root, source.files):
                return root
            if not offline:
                remember_failure(source, root, reason)
    cure = "." if source.name == "mnist" else "; or use images of your own: load_folder(path)."
    raise DataUnavailable(
        f"{source.title} is not complete in {root}, and {task} failed: "
        f"{reason or 'what came does not match its checksum'}.{damage}\n"
        f"After a failed download none is tried for {RETRY_SECONDS // 60} minutes, "
        "unless you run `course doctor`.\n"
        f"Cure: connect to the network; or put {', '.join(source.archives)} into {root}; "
        f"or set COURSE_DATA to a folder that has them{cure}"
    )


def set_aside_damaged(source: Source, root: Path) -> str:
    """Renames damaged files to the first free ``NAME.damaged``; returns a line about each."""
    lines = []
    for path in damaged(source, root):
        aside = path.with_name(f"{path.name}.damaged")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.damaged{number}")
        os.replace(path, aside)
        lines.append(f"\n{path} was damaged; it is kept as {aside.name}.")
    return "".join(lines)


def fetch(source: Source, origin: Path, root: Path) -> str:
    """Lets torchvision complete the set in a folder inside ``root``; moves the intact files up.

    Returns the reason of a failure, or ``""``.
    """
    from torchvision import datasets

    kind = getattr(datasets, source.kind)
    for leftover in root.glob(f".{source.name}-*"):  # of a killed process: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        dir=root, prefix=f".{source.name}-", ignore_cleanup_errors=True
    ) as folder:
        work = Path(folder)
        for path in intact(origin, source.archives):  # torchvision does not download what is there
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / path, work / path)
        job = {
            "kind": source.kind,
            "settings": {key: getattr(kind, key) for key in source.settings},
            "halves": source.halves,
            "root": folder,
            "silence": SOCKET_SECONDS,
        }
        reason = run_child(job, DOWNLOAD_SECONDS[source.name])
        wanted = source.all_files if origin == root else source.files
        for path in intact(work, wanted):
            if not (root / path).exists():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / path, root / path)
    return reason


# Runs in a process of its own, which can be stopped at any time.
CHILD = """
import json, socket, sys
job = json.loads(sys.argv[1])
socket.setdefaulttimeout(job["silence"])
from torchvision import datasets
kind = getattr(datasets, job["kind"])
for name, value in job["settings"].items():
    setattr(kind, name, value)
try:
    for arguments in job["halves"]:
        kind(job["root"], download=True, **arguments)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(1)
"""


def run_child(job: dict, seconds: float) -> str:
    """Runs the download, for at most ``seconds``. Returns the reason of a failure, or ``""``."""
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(job)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"it was not finished after {seconds:g} seconds"
    if done.returncode == 0:
        return ""
    printed = done.stdout.strip() or done.stderr.strip()[-300:] or f"exit status {done.returncode}"
    return textwrap.shorten(printed, 500)


unwritten: dict[Path, tuple[float, str]] = {}  # note -> (time, reason), where the disk took no note


def note_of(name: str, root: Path) -> Path:
    """Returns the path of the note about a failed download."""
    return root / f".{name}.failed"


def remember_failure(source: Source, root: Path, reason: str) -> None:
    note = note_of(source.name, root)
    try:
        files.write_atomic(note, reason)
    except OSError:
        unwritten[note] = (time.time(), reason)


def recent_failure(source: Source, root: Path) -> str | None:
    """Returns why a download failed in the last ten minutes, ``None`` where none did."""
    note = note_of(source.name, root)
    try:
        when = note.stat().st_mtime
        reason = note.read_text("utf-8", "replace")
    except OSError:
        when, reason = unwritten.get(note, (0.0, ""))
    age = time.time() - when
    if 0 <= age < RETRY_SECONDS:
        return f"{reason} ({age / 60:.0f} minutes ago)"
    return None


def forget_failed_downloads() -> None:
    """Lets the next ``load`` try the network again at once."""
    unwritten.clear()
    for name in DOWNLOAD_SECONDS:
        with suppress(OSError):
            note_of(name, files.data_dir()).unlink(missing_ok=True)
