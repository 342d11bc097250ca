"""Images to attack: MNIST, CIFAR-10, SVHN, a folder of your own, and digits that need no network.

``train, test = load()`` is all a lecture needs. It looks in the data directory, then downloads (through torchvision,
in a bounded time); if neither gives MNIST, it says so in a frame and hands out the **embedded digits**, so that a
lecture always runs.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import affine_grid, grid_sample

from course_utils import runtime

SOCKET_SECONDS = 10  # longest silence of a server
RETRY_SECONDS = 600  # after a failed download, nothing is tried again for so long
DIGITS = tuple("0123456789")


class DataUnavailable(RuntimeError):
    """A data set is neither on this machine nor to be had; the message says where it was looked for, and the cure."""


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Labelled images, checked once when made.

    ``x``: (N, C, H, W) float32 in [0, 1]; ``y``: (N,) int64, the index of the class; ``classes``: their names;
    ``source``: where the images come from, for captions.
    """

    x: torch.Tensor
    y: torch.Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self):
        if not isinstance(self.x, torch.Tensor) or self.x.ndim != 4 or self.x.dtype != torch.float32:
            raise ValueError(f"x is {_what(self.x)}; give a float32 tensor (N, C, H, W), such as pixels.float() / 255.")
        if not isinstance(self.y, torch.Tensor) or self.y.ndim != 1 or self.y.dtype != torch.int64:
            raise ValueError(f"y is {_what(self.y)}; give an int64 tensor (N,) of classes, such as labels.long().")
        if len(self.x) != len(self.y) or self.x.device != self.y.device:
            raise ValueError(f"x is {_what(self.x)} and y is {_what(self.y)}; give one label per image, on one device.")
        if self.x.numel():
            low, high = (bound.item() for bound in self.x.aminmax())
            if not (low >= 0 and high <= 1):  # written so that NaN fails too
                raise ValueError(f"x has values from {low:g} to {high:g}; bring them into [0, 1], such as by x / 255.")
            low, high = (bound.item() for bound in self.y.aminmax())
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"y is from {low} to {high}, but classes has {len(self.classes)} names; give 0 to K-1.")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        size = "×".join(str(side) for side in self.x.shape[1:])
        return f"Images({len(self)} of {size}, {len(self.classes)} classes, {self.source}, {self.x.device})"

    def __getitem__(self, index) -> "Images":
        """The chosen images: ``index`` is a slice, an int (one image, still a batch), ints, or a bool mask (N,)."""
        x, y = self.x[index], self.y[index]
        return replace(self, x=x, y=y) if y.ndim else replace(self, x=x[None], y=y[None])

    def to(self, device: torch.device | str) -> "Images":
        """The same images on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def split(self, n: int, seed: int) -> tuple["Images", "Images"]:
        """``(rest, held_out)``: ``n`` images drawn without replacement by ``seed`` are held out."""
        if not 0 < n < len(self):
            raise ValueError(f"n is {n}; hold out between 1 and {len(self) - 1} of these {len(self)} images.")
        order = torch.randperm(len(self), generator=runtime.generator(seed)).to(self.x.device)
        return self[order[n:]], self[order[:n]]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any pixel, label or shape: the key of what is trained on these images."""
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        for tensor in (self.x, self.y):
            digest.update(memoryview(tensor.detach().cpu().contiguous().numpy()).cast("B") if tensor.numel() else b"")
        return digest.hexdigest()[:12]


def _what(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"


def load(name: str = "mnist", *, device: torch.device | str | None = None) -> tuple[Images, Images]:
    """``(train, test)`` of a data set, on ``device`` (default: the CPU).

    - ``"mnist"``: 60,000 + 10,000 digits 1×28×28 (LeCun et al. 1998). Taken from the data directory, else downloaded,
      else replaced by the embedded digits under a notice; ``train.source`` tells which.
    - ``"cifar10"``: 50,000 + 10,000 photos 3×32×32 (Krizhevsky 2009); ``"svhn"``: 73,257 + 26,032 house numbers
      3×32×32 (Netzer et al. 2011). Data directory or download; nothing stands in for them.
    - ``"digits"``: the embedded digits, 10,059 + 360 of 1×28×28, made from the 1,797 that ship with scikit-learn.

    Raises ``ValueError`` for another name and ``DataUnavailable`` if CIFAR-10 or SVHN is not to be had.
    """
    if name not in (*DOWNLOAD_SECONDS, "digits"):
        raise ValueError(f"name is {name!r}; choose mnist, cifar10, svhn or digits, or load_folder(path) for your own.")
    try:
        halves = _digits() if name == "digits" else _official(name)
    except DataUnavailable as why:
        if name != "mnist":
            raise
        _notice(str(why))
        halves = _digits()
    return halves if device is None else (halves[0].to(device), halves[1].to(device))


def load_folder(path: str | Path, *, size: int | tuple[int, int] | None = None, grayscale: bool = False) -> Images:
    """Your own images: ``path/<class>/*.png`` (or jpg, bmp, ...), one folder per class.

    ``size`` resizes to ``size``×``size`` or (height, width) pixels; without it all images must have the same size.
    Gives x (N, 3, H, W), or (N, 1, H, W) with ``grayscale``. Raises ``ValueError`` naming folder or file and the cure.
    """
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    path = Path(path).expanduser().resolve()
    height, width = size if isinstance(size, tuple) else (size, size)
    if size is not None and not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise ValueError(f"size is {size!r}; give the side in pixels, such as size=28, or (height, width).")
    if not path.is_dir():
        raise ValueError(f"path is {path}, which is no folder; give one that holds a folder of images per class.")

    class Visible(ImageFolder):  # Jupyter leaves .ipynb_checkpoints in any folder: no class
        def find_classes(self, directory):
            names = sorted(p.name for p in Path(directory).iterdir() if p.is_dir() and not p.name.startswith("."))
            return names, {name: index for index, name in enumerate(names)}

    try:
        folder = Visible(path)
    except (FileNotFoundError, ValueError) as error:  # a class without images; no class at all
        raise ValueError(
            f"path is {path}, but images must lie in one folder per class, such as {path / 'cat' / '1.png'}, "
            f"and every class needs at least one. Make those folders, or give the folder above them. ({error})"
        ) from error
    tensors = []
    for file, _ in folder.samples:
        try:
            with Image.open(file) as image:
                image = image.convert("L" if grayscale else "RGB")
                tensors.append(pil_to_tensor(image.resize((width, height)) if size else image))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
            raise ValueError(f"{file} cannot be read as an image ({error}); replace or remove it.") from error
        if tensors[-1].shape != tensors[0].shape:
            (_, h, w), (_, h0, w0) = tensors[-1].shape, tensors[0].shape
            raise ValueError(f"{file} is {h}×{w}, but the first image is {h0}×{w0}; choose one size, as in size=32.")
    x, y = torch.stack(tensors).float() / 255, torch.tensor(folder.targets)
    return Images(x, y, tuple(folder.classes), f"folder {path.name}")


# --- data sets that torchvision knows


@dataclass(frozen=True)
class _Set:
    """What there is to know about a data set; paths are relative to the data directory."""

    name: str
    title: str
    kind: type  # torchvision's class
    halves: tuple[dict, dict]  # its arguments for the training and the test set
    settings: tuple[str, ...]  # its attributes that say what is fetched from where
    archives: dict[str, str]  # what is downloaded: path -> MD5
    files: dict[str, str]  # what is read: path -> MD5
    spots: tuple[str, ...] = ("", "*", "*/*")  # where else people put the files

    @property
    def all(self) -> dict[str, str]:
        return {**self.archives, **self.files}


# A download that takes longer is stopped. 12, 170 and 246 MB.
DOWNLOAD_SECONDS = {"mnist": 300, "cifar10": 1800, "svhn": 1800}

# torchvision checks the archives of MNIST but not what it unpacks from them: MD5 sums of the official files, unpacked.
_UNPACKED_MNIST = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)


def _describe(name: str) -> _Set:
    from torchvision.datasets import CIFAR10, MNIST, SVHN

    flags = {"train": True}, {"train": False}
    if name == "mnist":
        archives = {f"MNIST/raw/{file}": md5 for file, md5 in MNIST.resources}
        files = dict(zip((path.removesuffix(".gz") for path in archives), _UNPACKED_MNIST, strict=True))
        # spelt out, because Fashion-MNIST and others have files of the same names in folders of their own
        spots = ("", "raw", "MNIST", "MNIST/raw", "mnist", "mnist/raw", "MNIST/MNIST/raw", "data/MNIST/raw")
        return _Set(name, "MNIST", MNIST, flags, ("mirrors", "resources"), archives, files, spots)
    if name == "cifar10":
        batches = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
        files = {f"{CIFAR10.base_folder}/{batch}": md5 for batch, md5 in batches}
        settings = ("url", "filename", "tgz_md5", "train_list", "test_list", "meta")
        return _Set(name, "CIFAR-10", CIFAR10, flags, settings, {CIFAR10.filename: CIFAR10.tgz_md5}, files)
    files = {file: md5 for _, file, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])}
    return _Set(name, "SVHN", SVHN, ({"split": "train"}, {"split": "test"}), ("split_list",), files, files)


def _good(root: Path, expected: dict[str, str]) -> list[str]:
    """Those of the expected files that are there and pass their checksum."""
    from torchvision.datasets.utils import check_integrity

    return [path for path, md5 in expected.items() if check_integrity(root / path, md5)]


def _damaged(root: Path, about: _Set) -> list[Path]:
    good = _good(root, about.all)
    return [root / path for path in about.all if path not in good and (root / path).exists()]


def _read(about: _Set, root: Path) -> tuple[Images, Images]:
    def images(half) -> Images:
        x, y = torch.as_tensor(half.data), torch.as_tensor(half.labels if about.name == "svhn" else half.targets)
        if about.name == "mnist":
            x = x[:, None]  # from (N, H, W)
        elif about.name == "cifar10":
            x = x.permute(0, 3, 1, 2)  # from (N, H, W, C)
        classes = tuple(half.classes) if about.name == "cifar10" else DIGITS
        return Images(x.contiguous().float().div_(255), y, classes, about.title)

    train, test = (images(about.kind(root, **arguments)) for arguments in about.halves)
    return train, test


def _official(name: str) -> tuple[Images, Images]:
    if name == "svhn" and find_spec("scipy") is None:
        raise DataUnavailable("SVHN's files are read with scipy, which is missing. Install it: pip install scipy")
    about = _describe(name)
    return _read(about, _prepare(about))


def _prepare(about: _Set) -> Path:
    """The folder in which all files of the set lie, complete and checked; gets them if need be."""
    root = runtime.data_dir()
    try:
        if len(_good(root, about.files)) == len(about.files):
            return root
        if moves := _misplaced(root, about):
            raise DataUnavailable("\n".join(f"{there} belongs at {here}: move it there." for there, here in moves))
        if _writable(root):
            return _complete(about, root, root)
        if len(_good(root, about.archives)) == len(about.archives):
            return _complete(about, root, runtime.cache_dir() / "unpacked")
    except OSError as error:  # disk full, a file where a folder should be, a lock never released, ...
        why = f"{about.title} could not be put into {root}: {error}. Cure that, or set COURSE_DATA to another folder."
        raise DataUnavailable(why) from error
    raise DataUnavailable(
        f"{about.title} is not complete in {root}, and that folder cannot be written.\n"
        + "".join(f"{path} is damaged.\n" for path in _damaged(root, about))
        + f"Have its owner put {', '.join(about.archives)} there, or set COURSE_DATA to a folder of your own."
    )


def _writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, or the folder itself where it is not there yet."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return os.access(existing, os.W_OK)


def _misplaced(root: Path, about: _Set) -> list[tuple[Path, Path]]:
    """Files that are missing where they belong and lie in another likely place: ``(there, here)``."""
    found = []
    for here in (root / path for path in about.all if not (root / path).exists()):
        names = (here.name, here.name.replace("-idx", ".idx"))  # some copies of MNIST write a dot
        there = [p for spot in about.spots for name in names for p in root.glob(f"{spot}/{name}".lstrip("/"))]
        found += [(p, here) for p in there if p.is_file() and not p.relative_to(root).parts[0].startswith(".")][:1]
    return found


def _complete(about: _Set, source: Path, root: Path) -> Path:
    """Makes ``root`` complete from the archives in ``source``, and by download where they are missing.

    One process at a time: the others wait, then find the files there or the note of the failure. Files come into
    place whole, and none is ever deleted: what fails its checksum is kept as ``NAME.damaged``.
    """
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{about.name}.lock", timeout=DOWNLOAD_SECONDS[about.name] + 60):
        if len(_good(root, about.files)) == len(about.files):
            return root
        damage = "".join(f"\n{p} was damaged; it is kept as {_set_aside(p).name}." for p in _damaged(root, about))
        at_hand = _good(source, about.archives)
        offline = len(at_hand) == len(about.archives)  # only unpacking is left to do
        reason = None if offline else _recent_failure(about, root)
        if reason is None:
            print(f"{about.title}: {'unpacking' if offline else 'downloading'} into {root} ...{damage}", flush=True)
            reason = _fetch(about, source, root, at_hand)
            if len(_good(root, about.files)) == len(about.files):
                return root
            if not offline:
                _remember_failure(about, root, reason)
    raise DataUnavailable(
        f"{about.title} is not complete in {root}, and {'unpacking' if offline else 'the download'} failed: "
        f"{reason or 'what came does not match its checksum'}.{damage}\n"
        f"After a failed download none is tried for {RETRY_SECONDS // 60} minutes, unless you run `course doctor`.\n"
        f"Cure: connect to the network; or put {', '.join(about.archives)} into {root}; "
        "or set COURSE_DATA to a folder that has them"
        + ("." if about.name == "mnist" else "; or use images of your own: load_folder(path).")
    )


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")).exists():
        number += 1
    os.replace(path, aside)
    return aside


def _fetch(about: _Set, source: Path, root: Path, at_hand: list[str]) -> str:
    """torchvision completes the set in a folder beside the target; what passes its checksum is moved into place.

    Gives the reason of a failure, or ``""``.
    """
    for leftover in root.glob(f".{about.name}-*"):  # of a process that was killed; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{about.name}-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        for path in at_hand:  # torchvision does not download what is there
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, work / path)
        settings = {key: getattr(about.kind, key) for key in about.settings}
        job = {"kind": about.kind.__name__, "settings": settings, "halves": about.halves, "root": folder}
        reason = _run_child(job | {"silence": SOCKET_SECONDS}, DOWNLOAD_SECONDS[about.name])
        for path in _good(work, about.all if source == root else about.files):
            if not (root / path).exists():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / path, root / path)
    return reason


# Runs in a process of its own, which can be stopped whatever it waits for. torchvision downloads, checks and unpacks.
_CHILD = """
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


def _run_child(job: dict, seconds: float) -> str:
    """Runs the download; after ``seconds`` it is killed. Gives the reason of a failure, or ``""``."""
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(job)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it was not finished after {seconds:g} seconds"
    said = done.stdout.strip() or done.stderr.strip()[-300:] or f"exit status {done.returncode}"
    return textwrap.shorten(said, 500) if done.returncode else ""


_failures: dict[Path, tuple[float, str]] = {}  # note -> (time, reason), where no note could be written


def _note(name: str, root: Path) -> Path:
    return root / f".{name}.failed"


def _remember_failure(about: _Set, root: Path, reason: str) -> None:
    note = _note(about.name, root)
    try:
        runtime.write_atomic(note, reason)
    except OSError:
        _failures[note] = time.time(), reason


def _recent_failure(about: _Set, root: Path) -> str | None:
    note = _note(about.name, root)
    try:
        when, reason = note.stat().st_mtime, note.read_text("utf-8", "replace")
    except OSError:
        when, reason = _failures.get(note, (0.0, ""))
    age = time.time() - when
    return f"{reason} ({age / 60:.0f} minutes ago)" if 0 <= age < RETRY_SECONDS else None


def forget_failed_downloads() -> None:
    """Lets the next ``load`` try the network again at once."""
    _failures.clear()
    for name in DOWNLOAD_SECONDS:
        with suppress(OSError):
            _note(name, runtime.data_dir()).unlink(missing_ok=True)


def _notice(why: str) -> None:
    title = "NOT MNIST: this run uses the EMBEDDED DIGITS, 1,797 real handwritten digits that ship with scikit-learn."
    end = "The lecture works all the same. Its numbers differ from those on MNIST; its figures name the data they show."
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False).wrap
    lines = [f"| {line}" for part in (title, "", *why.splitlines(), "", end) for line in wrap(part) or [""]]
    print("\n".join(["=" * 104, *lines, "=" * 104]), flush=True)


# --- the embedded digits

COPIES = 7  # of each training original
TEST_PER_CLASS = 36
_SEED = 1797


def _digits() -> tuple[Images, Images]:
    """The 8×8 digits of scikit-learn (Alpaydin & Kaynak 1998) at 28×28: 10,059 spread ones and 360 plain ones."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    small, y = pixels.float().view(-1, 1, 8, 8) / 16, labels.long()
    train, test = _split_originals(y)
    copies = train.repeat(COPIES)
    # per copy and uniform: turn by up to 10°, shift by up to 2 pixels each way, scale by 0.9 to 1.1
    turn, right, down, scale = torch.rand(4, len(copies), generator=runtime.generator(_SEED)) * 2 - 1
    spread = _place(small[copies], math.radians(10) * turn, 2 * right, 2 * down, 1 + 0.1 * scale)
    none = torch.zeros(len(test))
    plain = _place(small[test], none, none, none, none + 1)
    return Images(spread, y[copies], DIGITS, "embedded digits"), Images(plain, y[test], DIGITS, "embedded digits")


def _split_originals(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(train, test)`` indices of originals: 36 of each class to test, all others to train.

    Copies are made after this split, so that no test digit has a sibling in training.
    """
    order = torch.randperm(len(y), generator=runtime.generator(_SEED))
    test = torch.cat([order[y[order] == label][:TEST_PER_CLASS] for label in range(10)])
    return order[~torch.isin(order, test)], test


def _place(small, turn, right, down, scale) -> torch.Tensor:
    """(N, 1, 8, 8) -> (N, 1, 28, 28), each digit 20 pixels high as in MNIST, turned, shifted and scaled.

    ``turn`` (radians), ``right``, ``down`` (pixels) and ``scale`` are (N,).
    """
    zoom = 28 / (20 * scale)  # affine_grid wants the way back from large to small; both reach from -1 to 1
    cos, sin, right, down = zoom * turn.cos(), zoom * turn.sin(), right / 14, down / 14
    rows = torch.stack([cos, sin, -cos * right - sin * down, -sin, cos, sin * right - cos * down], dim=1)
    grid = affine_grid(rows.view(-1, 2, 3), [len(small), 1, 28, 28], align_corners=False)
    large = grid_sample(small, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return (2 * large - 0.5).clamp(0, 1)  # contrast: as few grey pixels as MNIST has (one in eight)
