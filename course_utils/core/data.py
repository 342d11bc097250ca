"""Images to attack: MNIST, CIFAR-10, SVHN, a folder of your own, and digits without a network.

A lecture needs ``train, test = load()`` alone. It looks in the data directory, then downloads
through torchvision, in a bounded time. If neither gives MNIST, it prints a notice and returns the
**embedded digits**, so that a lecture always runs.
"""

import textwrap
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from course_utils.core import digits, download, files, pictures
from course_utils.core.download import DataUnavailable, Source, forget_failed_downloads
from course_utils.core.images import DIGITS, Images

__all__ = ["DataUnavailable", "Images", "forget_failed_downloads", "load", "load_folder"]


def load(name: str = "mnist", *, device: torch.device | str | None = None) -> tuple[Images, Images]:
    """Returns ``(train, test)`` of a data set, on ``device`` (default: the CPU).

    - ``"mnist"``: 60,000 + 10,000 digits 1×28×28 (LeCun et al. 1998), from the data directory or by
      download, else the embedded digits under a notice; ``train.source`` says which.
    - ``"cifar10"``: 50,000 + 10,000 photos 3×32×32 (Krizhevsky 2009). Where its files are missing
      and the data directory holds ``cifar10-jpeg/train`` and ``cifar10-jpeg/test``, a folder per
      class in each, that copy; ``train.source`` says so, as JPEG changes pixels.
    - ``"svhn"``: 73,257 + 26,032 house numbers 3×32×32 (Netzer et al. 2011).
    - ``"digits"``: the embedded digits, 10,059 + 360 of 1×28×28, made from the 1,797 of
      scikit-learn.

    Raises:
        ValueError: another name.
        DataUnavailable: CIFAR-10 or SVHN is missing and cannot be downloaded.
    """
    if name not in (*download.DOWNLOAD_SECONDS, "digits"):
        raise ValueError(
            f"name is {name!r}; choose mnist, cifar10, svhn or digits, "
            "or load_folder(path) for your own."
        )
    try:
        train, test = digits.embedded() if name == "digits" else official(name)
    except DataUnavailable as error:
        if name != "mnist":
            raise
        print_notice(str(error))
        train, test = digits.embedded()
    if device is None:
        return train, test
    return train.to(device), test.to(device)


def official(name: str) -> tuple[Images, Images]:
    """Returns ``(train, test)`` of MNIST, CIFAR-10 or SVHN."""
    if name == "svhn" and find_spec("scipy") is None:
        raise DataUnavailable(
            "SVHN's files are read with scipy, which is missing. Install it: pip install scipy"
        )
    source = download.describe(name)
    if name == "cifar10" and (copy := jpeg_copy(source)):
        return copy
    root = download.prepare(source)
    if name == "mnist":
        return read_mnist(root, "train"), read_mnist(root, "t10k")
    from torchvision import datasets

    kind = getattr(datasets, source.kind)
    train, test = (read(source, kind(root, **half)) for half in source.halves)
    return train, test


def jpeg_copy(source: Source) -> tuple[Images, Images] | None:
    """Returns ``(train, test)`` of CIFAR-10 as JPEG; None without it, or with official files."""
    root = files.data_dir()
    folder = root / "cifar10-jpeg"
    if not folder.is_dir() or any((root / file).exists() for file in source.all_files):
        return None
    train, test = (load_folder(folder / half) for half in ("train", "test"))
    title = f"{source.title} as JPEG"
    return replace(train, source=title), replace(test, source=title)


def read_mnist(root: Path, half: str) -> Images:
    """Returns a half of MNIST from its files, whose checksums are right."""
    start = f"{root}/MNIST/raw/{half}"
    pixels = np.fromfile(f"{start}-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(f"{start}-labels-idx1-ubyte", np.uint8, offset=8)
    x = torch.from_numpy(pixels).view(-1, 1, 28, 28).float().div_(255)
    return Images(x, torch.from_numpy(labels).long(), DIGITS, "MNIST")


def read(source: Source, half) -> Images:
    """Returns one of torchvision's data sets of photos as images."""
    x = torch.as_tensor(half.data)
    y = torch.as_tensor(half.labels if source.name == "svhn" else half.targets)
    classes = DIGITS
    if source.name == "cifar10":
        x = x.permute(0, 3, 1, 2)  # from (N, H, W, C)
        classes = tuple(half.classes)
    return Images(x.contiguous().float().div_(255), y, classes, source.title)


def print_notice(reason: str) -> None:
    """Prints in a frame that the embedded digits replace MNIST, and why."""
    title = (
        "NOT MNIST: this run uses the EMBEDDED DIGITS, "
        "1,797 real handwritten digits that ship with scikit-learn."
    )
    end = (
        "The lecture works all the same. Its numbers differ from those on MNIST; "
        "its figures name the data they show."
    )
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False).wrap
    lines = ["=" * 104]
    for part in (title, "", *reason.splitlines(), "", end):
        lines += [f"| {line}" for line in wrap(part) or [""]]
    files.say("\n".join([*lines, "=" * 104]))


def load_folder(
    path: str | Path, *, size: int | tuple[int, int] | None = None, grayscale: bool = False
) -> Images:
    """Returns your own images: ``path/<class>/…/*.png`` (or jpg, …), one folder per class.

    Labels are the indices of the sorted names of the folders; images are sorted by their paths.
    x is (N, 3, H, W), or (N, 1, H, W) with ``grayscale``.

    - ``size`` resizes to ``size``×``size`` or (height, width) pixels, each from 1 to 10,000;
      without it all images must have the same size. An image file has at most 89 megapixels
      (``PIL.Image.MAX_IMAGE_PIXELS``).
    - Read are PNG, JPEG, GIF, BMP, TIFF, WebP, PPM, JPEG 2000, AVIF, ICO, TGA, PCX, QOI and SGI. Of
      several frames or pages the first is read. A printed line names these files, and those that
      are no images. Hidden files and folders (``.…``, ``__MACOSX``, ``Thumbs.db``) do not count.
    - Photos are turned upright as their EXIF data says. What is transparent becomes white. Grey of
      16 bits is divided by its own white; floats must be in [0,1]; colours of 16 bits are read as
      8. CMYK, LAB, HSV and YCbCr become RGB; colour profiles are not applied.

    Raises:
        ValueError: names the folder or the file, and the cure.
    """
    shape = pictures.height_and_width(size)
    path = pictures.folder_of(path)
    classes, samples, others = pictures.find(path)
    tensors = []
    several = []
    for file, _ in samples:
        image, more = pictures.read(file, shape, grayscale)
        tensors.append(image)
        if more:
            several.append(file)
        if image.shape != tensors[0].shape:
            _, h, w = image.shape
            _, h0, w0 = tensors[0].shape
            raise ValueError(
                f"{file} is {h}×{w}, but the first image is {h0}×{w0}; "
                "choose one size, as in size=32."
            )
    pictures.report(others, several)
    y = torch.tensor([label for _, label in samples])
    return Images(
        torch.stack(tensors), y, tuple(classes), f"folder {pictures.printable(path.name)}"
    )
