"""Image files as people have them: from phones, scanners, screenshots and drawing programs."""

import io
import os
import stat
import warnings
from numbers import Integral
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from course_utils.core import files
from course_utils.core.download import is_hidden

# What Pillow reads by itself, without another program; HEIF is for those who installed a plugin
FORMATS = "PNG JPEG MPO GIF BMP DIB TIFF WEBP PPM JPEG2000 AVIF HEIF ICO TGA PCX QOI SGI".split()
LONGEST_SIDE = 10_000  # pixels, of what ``size`` asks for


def height_and_width(size) -> tuple[int, int] | None:
    """The (height, width) that ``size`` asks for; see ``data.load_folder``."""
    if size is None:
        return None
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or not all(is_side(side) for side in sides):
        raise ValueError(
            f"size is {size!r}; give the side in pixels, such as size=28, or (height, width), "
            f"each from 1 to {LONGEST_SIDE:,}."
        )
    height, width = sides
    return int(height), int(width)


def is_side(value) -> bool:
    """Whether ``value`` is a number of pixels; True and False are none."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and 0 < value <= LONGEST_SIDE


# --- finding


def folder_of(path: str | Path) -> Path:
    """The full path of a folder that can be read; ``~`` is the user's home."""
    try:
        folder = Path(path).expanduser().resolve()
        found = folder.is_dir() and os.listdir(folder)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"path is {path!r}, which cannot be opened ({error}); give a folder that can be read."
        ) from error
    if found is False:
        raise ValueError(
            f"path is {folder}, which is no folder; "
            "give one that holds a folder of images per class."
        )
    return folder


def find(path: Path) -> tuple[list[str], list[tuple[Path, int]], list[Path]]:
    """Returns the classes in ``path``, each image as ``(file, label)``, and the other files.

    Classes and files are sorted by name. What is hidden is left out. ValueError: see
    ``data.load_folder``.
    """
    folders, others = class_folders(path)
    samples = []
    for label, folder in enumerate(folders):
        images, more = files_below(folder)
        others += more
        if not images:
            raise no_classes(path, f"{folder} has no image that can be read.{listed(more)}")
        samples += [(image, label) for image in images]
    if not folders:
        raise no_classes(path, f"There is no folder in it.{listed(others)}")
    return [printable(folder.name) for folder in folders], samples, others


def class_folders(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the folders in ``path`` and what else lies there, both sorted."""
    inside = [path / name for name in sorted(os.listdir(path)) if not is_hidden(name)]
    for place in inside:
        try:
            place.stat()
        except OSError as error:
            refuse_folder(error)
    folders = [place for place in inside if place.is_dir()]
    return folders, [place for place in inside if not place.is_dir()]


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the images below ``folder``, by their suffix, and the other files, both sorted."""
    suffixes = image_suffixes()
    images = []
    others = []
    for place, inner, names in os.walk(folder, followlinks=True, onerror=refuse_folder):
        inner[:] = [name for name in inner if not is_hidden(name)]
        for name in inner:
            check_folder(Path(place), name, suffixes)
        for name in names:
            file = Path(place, name)
            if not is_hidden(name):
                kind = images if file.suffix.lower() in suffixes else others
                kind.append(file)
    return sorted(images, key=order), sorted(others, key=order)


def order(file: Path) -> tuple[str, str]:
    """What files are sorted by, on every system alike."""
    return file.parent.as_posix(), file.name


def check_folder(place: Path, name: str, suffixes: set[str]) -> None:
    """Refuses a folder that has the name of an image, or that is a link to one around it."""
    inner = place / name
    if inner.suffix.lower() in suffixes:
        raise ValueError(f"{inner} is a folder with the name of an image; rename or remove it.")
    target = inner.resolve()
    around = (place, *place.parents)  # two links can lead to each other
    if any(folder.resolve().is_relative_to(target) for folder in around):
        raise ValueError(f"{inner} is a link to a folder that it lies in; remove it.")


def refuse_folder(error: OSError) -> None:
    raise ValueError(
        f"{error.filename} cannot be opened ({error.strerror}); "
        "make it readable, mend it if it is a link, or remove it."
    ) from error


def image_suffixes() -> set[str]:
    """The suffixes of the formats that are read, in lower case with a dot."""
    from PIL import Image

    known = Image.registered_extensions()
    return {suffix for suffix, form in known.items() if form in FORMATS}


def no_classes(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"path is {path}, but images must lie in one folder per class, "
        f"such as {path / 'cat' / '1.png'}, and every class needs at least one. "
        f"Make those folders, or give the folder above them. {reason}"
    )


def listed(others: list[Path]) -> str:
    """A sentence that names files which are not read, with the cure; empty for none."""
    if not others:
        return ""
    return (
        f" Not read: {names_of(others)}. Images in one folder per class are read, with the suffix "
        "of a format that load_folder names; export HEIC, PSD, raw or vector files as JPEG or PNG."
    )


def names_of(some: list[Path]) -> str:
    """The first ten files, each as ``folder/name``, and how many more there are."""
    names = [f"{file.parent.name}/{file.name}" for file in some[:10]]
    more = len(some) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def printable(name: str) -> str:
    """The name of a folder; bytes that are no UTF-8 become �."""
    return os.fsencode(name).decode("utf-8", "replace")


# --- reading


def read(
    file: Path | bytes, shape: tuple[int, int] | None, grayscale: bool
) -> tuple[torch.Tensor, bool]:
    """Returns an image file as float32 (C, H, W) in [0,1], and whether it holds more images.

    ``file`` is a path, or what the file holds. ``shape`` is (height, width) to resize to, or None.
    ValueError: see ``data.load_folder``.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image_suffixes()  # loads Pillow's readers
        if not isinstance(file, bytes) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is no file")  # opening a pipe would wait for ever
        known = [name for name in FORMATS if name in Image.OPEN]
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Given a path, Pillow scrambles an uncompressed TIFF that lies on its side
            with contents(file) as content, Image.open(content, formats=known) as image:
                several = getattr(image, "n_frames", 1) > 1
                scale_transparent_colour(image)
                white = white_level(image)
                upright = ImageOps.exif_transpose(image)
                return pixels(upright, white, shape, grayscale), several
    except Exception as error:  # Pillow raises many kinds on damaged files
        name = "This file" if isinstance(file, bytes) else file
        # Pillow's own words for it hold an address of memory
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is not known" if unknown else error
        raise ValueError(
            f"{name} cannot be read as an image ({reason}); make it readable, save it anew "
            "as an 8-bit JPEG or PNG of at most 89 megapixels, or remove it."
        ) from error


def contents(file: Path | bytes) -> BinaryIO:
    """The file, opened to read bytes."""
    return io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")


def scale_transparent_colour(image) -> None:
    """Brings a PNG's transparent colour to the 8 bits of its pixels, which Pillow leaves out."""
    colour = image.info.get("transparency")
    raw = image.tile[0][3] if image.format == "PNG" and image.tile else None
    if raw in ("L;2", "L;4") and colour is not None:
        image.info["transparency"] = colour * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B" and colour is not None:
        image.info["transparency"] = tuple(part >> 8 for part in colour)


def white_level(image) -> float:
    """The value of white where a pixel is no byte; negative where 0 is white. 255 for bytes."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if 2 in tags.get(339, ()):  # SampleFormat
        raise ValueError("its whole numbers have a sign and do not say which one is white")
    if image.mode[0] not in "IF":
        return 255
    if image.mode == "F":
        white = 1
    elif image.mode.startswith("I;16"):
        white = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample
    elif image.format in ("PNG", "PPM"):
        white = 65_535  # Pillow brings them to 16 bits
    else:
        raise ValueError("its whole numbers of 32 bits do not say which one is white")
    return -white if tags.get(262) == 0 else white  # PhotometricInterpretation: WhiteIsZero


def pixels(image, white: float, shape: tuple[int, int] | None, grayscale: bool) -> torch.Tensor:
    """An upright image of Pillow as float32 (C, H, W) in [0,1], resized to ``shape`` if given."""
    from torchvision.transforms.functional import pil_to_tensor

    if image.mode[0] in "IF":
        image = deep_grey(image, white)
    else:
        image = on_white(image).convert("L" if grayscale else "RGB")
    if shape:
        height, width = shape
        image = image.resize((width, height))
    if image.mode != "F":
        return pil_to_tensor(image).float() / 255
    grey = torch.from_numpy(np.array(image))[None].clamp(0, 1)  # resizing may overshoot
    return grey if grayscale else grey.repeat(3, 1, 1)


def deep_grey(image, white: float):
    """Grey of more than 8 bits in mode F, in [0,1]; a transparent value becomes white."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    clear = values == image.info.get("transparency")
    values = 1 + values / white if white < 0 else values / white
    values[clear] = 1
    low = values.min()
    high = values.max()
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"its values run from {low:g} to {high:g}, but 0 is black and 1 white")
    return Image.fromarray(values.astype(np.float32))


def on_white(image):
    """The image in mode 1, L, P or RGB, laid on white where it is transparent."""
    from PIL import Image, ImageCms

    if image.mode == "LAB":
        standard = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), standard, outputMode="RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("1", "L", "P", "RGB"):
        return image
    return image.convert("RGB")


def png_of(image: torch.Tensor) -> bytes:
    """Returns an image (3, H, W) in [0,1], rounded to grey levels, as the bytes of a PNG file."""
    from PIL import Image

    levels = (image.detach() * 255).round().byte().cpu().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG")
    return file.getvalue()


def report(others: list[Path], several: list[Path]) -> None:
    """Prints which files were not read, and of which only the first image was."""
    if others:
        files.say(f"load_folder:{listed(others)}")
    if several:
        files.say(f"load_folder: these hold several images; the first is read: {names_of(several)}")
