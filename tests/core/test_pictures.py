"""``load_folder`` on what phones, scanners, screenshot tools and classes of students produce."""

import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from course_utils.core import data, download, pictures


@pytest.fixture
def cat(tmp_path):
    """The one class of a folder, without images."""
    folder = tmp_path / ".cache" / "x" / "zoo" / "cat"  # a hidden part above it is nothing to hide
    folder.mkdir(parents=True)
    return folder


def put(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content.save(file)


def greys(cat, name, content) -> list[float]:
    """The pixels of the one image in ``cat``, as grey levels from 0 to 255."""
    put(cat / name, content)
    x = data.load_folder(cat.parent, grayscale=True).x
    (cat / name).unlink()
    return (255 * x).flatten().tolist()


def png(bits, kind, rows, *chunks) -> bytes:
    """A PNG file, as Pillow cannot write all that others do; ``kind`` 0 is grey, 2 RGB, 3 palette."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    width = 8 * len(rows[0]) // (bits * samples)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")):
        checksum = zlib.crc32(name + part)
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", checksum)
    return content


def tiff(values, bits, photometric=1, sample=1) -> bytes:
    """A TIFF file of grey values in little-endian order."""
    height, width = values.shape
    body = values.tobytes() + b"\0" * (values.nbytes % 2)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, values.nbytes), (339, sample)]
    listing = struct.pack("<H", len(tags))
    for tag, value in tags:
        listing += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + listing + bytes(4)


def refused(cat, *words, **settings) -> None:
    with pytest.raises(ValueError) as caught:
        data.load_folder(cat.parent, **settings)
    missing = [word for word in words if str(word) not in str(caught.value)]
    assert not missing, caught.value


# --- depth

DEEP = np.array([[0, 1000, 32768, 65535]], np.uint16)
TRUE = (DEEP / 65535 * 255).ravel().tolist()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_grey_of_16_bits_keeps_its_values(cat, suffix):
    assert greys(cat, f"a.{suffix}", Image.fromarray(DEEP)) == pytest.approx(TRUE, abs=0.01)


def test_the_depth_of_a_tiff_is_that_of_the_file(cat):
    values = DEEP.astype("<u2")
    assert greys(cat, "a.tif", tiff(values, 16)) == pytest.approx(TRUE, abs=0.01)
    negative = greys(cat, "a.tif", tiff(values, 16, photometric=0))  # 0 is white
    assert negative == pytest.approx([255 - grey for grey in TRUE], abs=0.01)
    floats = (DEEP / 65535).astype("<f4")
    assert greys(cat, "a.tif", tiff(floats, 32, sample=3)) == pytest.approx(TRUE, abs=0.01)


@pytest.mark.parametrize(
    "content",
    [
        tiff(DEEP.astype("<u4"), 32),
        tiff(DEEP.astype("<i2"), 16, sample=2),
        tiff(np.array([[0, -1]], np.int8), 8, sample=2),
        tiff(DEEP.astype("<f4"), 32, sample=3),
        tiff(np.array([[0, np.nan]], "<f4"), 32, sample=3),
        tiff(np.array([[-0.5, 0.5]], "<f4"), 32, sample=3),
    ],
)
def test_values_that_do_not_say_what_is_white_are_refused(cat, content):
    put(cat / "a.tif", content)
    refused(cat, cat / "a.tif", "8-bit JPEG or PNG")


def test_few_bits_and_bits_of_colours(cat):
    assert greys(cat, "a.png", png(2, 0, [bytes([0b00011011])])) == [0, 85, 170, 255]
    assert greys(cat, "a.png", png(4, 0, [bytes([0x0F])])) == [0, 255]
    assert greys(cat, "a.png", png(1, 0, [bytes([0b01000000])]))[:3] == [0, 255, 0]
    put(cat / "a.png", png(16, 2, [struct.pack(">3H", 65535, 32768, 0)]))
    assert (data.load_folder(cat.parent).x.flatten() * 255).tolist() == [255, 128, 0]


def test_a_resized_deep_image_stays_in_range(cat):
    put(cat / "a.png", Image.fromarray(np.tile(DEEP, (4, 1))))
    x = data.load_folder(cat.parent, size=(9, 31)).x
    assert x.shape == (1, 3, 9, 31)
    assert torch.equal(x[:, 0], x[:, 2])


# --- transparency


@given(
    mode=st.sampled_from(["LA", "RGBA", "P"]),
    alpha=st.integers(0, 255),
    ink=st.integers(0, 255),
    suffix=st.sampled_from(["png", "webp", "tif"]),
)
def test_transparent_ink_lies_on_white(mode, alpha, ink, suffix):
    drawn = Image.new("RGBA", (2, 2), (ink, ink, ink, alpha))
    image = drawn.convert(mode) if mode != "P" else drawn.quantize(4)
    with tempfile.TemporaryDirectory() as folder:
        lossless = {"lossless": True, "exact": True} if suffix == "webp" else {}
        name = Path(folder, "zoo", "cat", f"a.{'png' if mode == 'P' else suffix}")
        name.parent.mkdir(parents=True)
        image.save(name, **(lossless if name.suffix == ".webp" else {}))
        x = data.load_folder(Path(folder, "zoo")).x
    share = alpha / 255
    if mode != "P" or alpha in (0, 255):  # a palette may round
        assert torch.allclose(x * 255, torch.tensor(share * ink + (1 - share) * 255.0), atol=2.1)
    if alpha == 0:
        assert (x == 1).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(8, 0, [b"\0\1"], (b"tRNS", b"\0\0")), [255, 1]),
        (png(16, 0, [struct.pack(">2H", 0, 257)], (b"tRNS", b"\0\0")), [255, 1]),
        (png(2, 0, [bytes([0b00011011])], (b"tRNS", b"\0\1")), [0, 255, 170, 255]),
        (png(4, 0, [bytes([0x12])], (b"tRNS", b"\0\1")), [255, 34]),
        (png(8, 2, [bytes([0, 0, 0, 9, 9, 9])], (b"tRNS", bytes(6))), [255, 9]),
        (png(16, 2, [struct.pack(">6H", *[514] * 3, *[0] * 3)], (b"tRNS", struct.pack(">3H", *[514] * 3))), [255, 0]),
        (png(8, 3, [b"\0\1"], (b"PLTE", bytes(6)), (b"tRNS", b"\0\xff")), [255, 0]),
        (png(8, 4, [b"\0\0\0\xff"]), [255, 0]),
        (png(16, 6, [bytes(8)]), [255]),
    ],
)  # fmt: skip
def test_the_transparent_colour_of_a_png(cat, content, expected):
    assert greys(cat, "a.png", content) == pytest.approx(expected, abs=0.01)


def test_premultiplied_and_palette_alpha():
    for image in (Image.new("RGBa", (2, 2)), Image.new("PA", (2, 2)), Image.new("LA", (2, 2))):
        found = pictures.on_white(image).convert("L")
        assert found.getextrema() == (255, 255), image.mode


# --- colours


def test_other_colour_spaces_become_rgb(cat):
    for name, image, rgb in (
        ("a.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255)), (0, 0, 0)),
        ("a.tif", Image.new("CMYK", (2, 2), (255, 0, 0, 0)), (0, 255, 255)),
        ("a.tif", Image.new("LAB", (2, 2), (255, 128, 128)), (255, 255, 255)),
        ("a.tif", Image.new("YCbCr", (2, 2), (100, 128, 128)), (100, 100, 100)),
    ):
        put(cat / name, image)
        x = data.load_folder(cat.parent).x[0, :, 0, 0] * 255
        (cat / name).unlink()
        assert torch.allclose(x, torch.tensor(rgb).float(), atol=2), image.mode
    hsv = pictures.on_white(Image.new("HSV", (1, 1), (0, 255, 255)))
    assert hsv.getpixel((0, 0)) == (255, 0, 0)


# --- orientation

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("turn", TURNED)
def test_photos_are_turned_before_they_are_resized(cat, turn, suffix):
    if suffix == "avif" and "AVIF" not in Image.OPEN:
        pytest.skip("this Pillow reads no AVIF")
    stored = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(stored).convert("RGB").save(cat / f"a.{suffix}", exif=exif)
    wanted = TURNED[turn](stored)
    x = data.load_folder(cat.parent).x[0, 0]
    assert x.shape == wanted.shape
    assert np.abs(255 * x.numpy() - wanted).mean() < 6
    small = data.load_folder(cat.parent, size=(2, 4)).x
    assert small.shape == (1, 3, 2, 4)


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_scans_on_their_side_keep_every_pixel(cat, mode, turn, compression):
    stored = np.array([[0, 10, 20], [30, 40, 50]], np.uint8)
    image = Image.fromarray(stored)
    if mode == "I;16":
        image = Image.fromarray(stored.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(stored.astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[274] = turn
    image.save(cat / "a.tif", exif=exif, compression=compression)
    found = 255 * data.load_folder(cat.parent, grayscale=True).x[0, 0].numpy()
    assert found == pytest.approx(TURNED[turn](stored), abs=0.01)


# --- what is no image

HIDDEN = [".DS_Store", "Thumbs.db", "._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a.png"]


@given(
    names=st.lists(st.sampled_from(HIDDEN), max_size=3),
    places=st.lists(st.sampled_from(["", "cat", "cat/deep", "cat/deep/er"]), max_size=3),
)
def test_hidden_parts_do_not_count_on_any_level(names, places):
    with tempfile.TemporaryDirectory(prefix=".hidden") as folder:
        root = Path(folder, "zoo")
        put(root / "cat" / "deep" / "a.png", Image.new("L", (2, 2), 7))
        for name in names:
            for place in places:
                put(root / place / name, b"nothing")
        some = data.load_folder(root)
    assert (len(some), some.classes) == (1, ("cat",))


def test_hidden_parts_do_not_count_for_data_sets_either(tmp_path):
    source = download.Source("mnist", "MNIST", object, (), (), {}, {"raw/a.gz": ""})
    put(tmp_path / "MNIST" / ".ipynb_checkpoints" / "a.gz", b"x")
    put(tmp_path / "__MACOSX" / "a.gz", b"x")
    assert download.found_elsewhere(source, tmp_path, "a.gz") is None
    put(tmp_path / "MNIST" / "more" / "a.gz", b"x")
    assert download.found_elsewhere(source, tmp_path, "a.gz").parent.name == "more"


def test_what_is_not_read_is_named_once(cat, capsys):
    for suffix in ("PNG", "Jpg", "jfif", "gif", "bmp", "tif", "webp", "ppm"):
        put(cat / f"a.{suffix}", Image.new("RGB", (2, 2)))
    data.load_folder(cat.parent)
    assert capsys.readouterr().out == ""
    for name in ("IMG_1.HEIC", "notes.txt", "deep/none"):
        put(cat / name, b"")
    put(cat.parent / "loose.png", b"")
    assert len(data.load_folder(cat.parent)) == 8
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for words in ("cat/IMG_1.HEIC", "cat/notes.txt", "deep/none", "zoo/loose.png", "export HEIC"):
        assert words in said
    for number in range(20):
        put(cat / f"{number}.txt", b"")
    data.load_folder(cat.parent)
    assert "and 14 more" in capsys.readouterr().out


def test_of_several_frames_the_first_is_read_and_it_is_said(cat, capsys):
    frames = [Image.new("L", (2, 2), grey) for grey in (0, 200)]
    for suffix in ("gif", "tif", "png", "webp"):
        more = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(cat / f"a.{suffix}", save_all=True, append_images=frames[1:], **more)
    assert not data.load_folder(cat.parent).x.any()
    assert (
        "the first is read: cat/a.gif, cat/a.png, cat/a.tif, cat/a.webp" in capsys.readouterr().out
    )


# --- what cannot be read


def test_files_that_cannot_be_read_are_named_with_a_cure(cat):
    whole = io.BytesIO()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(whole, "PNG")
    for content in (b"", b"no image at all" * 99, whole.getvalue()[:-40], b"\xff\xd8\xff\xe0"):
        put(cat / "a.png", content)
        refused(cat, cat / "a.png", "cannot be read", "remove it", size=4)
    (cat / "a.png").unlink()
    (cat / "a.png").symlink_to("/nowhere.png")
    refused(cat, cat / "a.png", "cannot be read")
    (cat / "a.png").unlink()
    (cat / "a.png").mkdir()
    refused(cat, cat / "a.png", "a folder with the name of an image", "remove it")
    (cat / "a.png").rmdir()
    os.mkfifo(cat / "a.png")  # opening it would wait for ever
    refused(cat, cat / "a.png", "it is no file")


@pytest.mark.parametrize("content", [b"", b"no image at all" * 99, b"\xff\xd8\xff\xe0"])
def test_no_message_holds_an_address_of_memory(content, tmp_path):
    put(tmp_path / "a.png", content)
    for source, name in ((content, "This file"), (tmp_path / "a.png", str(tmp_path / "a.png"))):
        with pytest.raises(ValueError) as error:
            pictures.read(source, None, grayscale=False)
        message = str(error.value)
        assert message.startswith(f"{name} cannot be read as an image (")
        assert not any(word in message for word in ("0x", "<_io", "object at"))


@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
    grayscale=st.booleans(),
    shape=st.sampled_from([None, (3, 4)]),
)
def test_bytes_are_read_as_their_file_is(form, grayscale, shape):
    """An upload of a widget is bytes."""
    levels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2
    content = io.BytesIO()
    Image.fromarray(levels).save(content, form)
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder) / "a", content.getvalue())
        expected, several = pictures.read(Path(folder) / "a", shape, grayscale)
    x, also_several = pictures.read(content.getvalue(), shape, grayscale)
    assert torch.equal(x, expected) and also_several is several is False
    assert x.shape == (1 if grayscale else 3, *(shape or (6, 5)))
    if form in ("PNG", "BMP", "TIFF") and not grayscale and not shape:
        assert torch.equal((255 * x).round().byte(), torch.tensor(levels).permute(2, 0, 1))


def test_bytes_tell_whether_there_are_more_images():
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    x, several = pictures.read(content.getvalue(), None, grayscale=True)
    assert several and (255 * x).round().unique().tolist() == [10]


@pytest.mark.parametrize("sides", [(10_000, 9_000), (20_000, 10_000)])  # a warning, an error
def test_huge_images_are_refused_before_they_are_read(cat, sides):
    width, height = sides
    content = png(1, 0, [bytes(1)])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    checked = header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    put(cat / "a.png", content[:16] + checked + content[33:])
    refused(cat, cat / "a.png", "at most 89 megapixels", size=8)


def test_what_may_not_be_opened_is_named(cat, monkeypatch):
    """Tests may run as root, whom no permission stops: the answer is given here."""
    put(cat / "a.png", Image.new("L", (2, 2)))

    def forbid(file, *_, **__):
        raise PermissionError(13, "Permission denied", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", forbid)
        refused(cat, cat / "a.png", "Permission denied", "readable")
    scandir = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "scandir", lambda path: forbid(path) if path == str(cat) else scandir(path)
        )
        refused(cat, cat, "Permission denied", "readable")
    (cat.parent / "dog").symlink_to(cat)  # into a folder that may not be entered
    look = Path.stat

    def only_others(place, **settings):
        return forbid(place) if place.name == "dog" else look(place, **settings)

    monkeypatch.setattr(Path, "stat", only_others)
    refused(cat, cat.parent / "dog", "Permission denied", "readable")


def test_links_are_followed_once(cat):
    put(cat / "a.png", Image.new("L", (2, 2)))
    (cat.parent / "dog").symlink_to(cat)
    some = data.load_folder(cat.parent)
    assert (some.classes, some.y.tolist()) == (("cat", "dog"), [0, 1])
    (cat / "up").symlink_to(cat.parent)
    refused(cat, cat / "up", "a link to a folder that it lies in")
    (cat / "up").unlink()
    (cat.parent / "owl").symlink_to("/nowhere")
    refused(cat, cat.parent / "owl", "mend it if it is a link")


def test_two_links_that_lead_to_each_other_are_refused(cat):
    dog = cat.parent / "dog"
    for folder in (cat, dog):
        put(folder / "a.png", Image.new("L", (2, 2)))
    (cat / "x").symlink_to(dog)
    (dog / "y").symlink_to(cat)
    refused(cat, cat / "x" / "y", "a link to a folder that it lies in")


@pytest.mark.parametrize("path", [None, 3, "\0", "no such folder", "~nobody_here/x"])
def test_a_path_that_is_no_folder(path):
    with pytest.raises(ValueError, match="^path is .*give"):
        data.load_folder(path)


def test_classes_without_images(cat):
    refused(cat, cat, "one folder per class")
    put(cat / "a.HEIC", b"")
    refused(cat, cat, "cat/a.HEIC", "export HEIC")
    with pytest.raises(ValueError, match="one folder per class"):
        data.load_folder(cat)


# --- sizes, names and order


@given(size=st.integers(1, 40), kind=st.sampled_from([int, np.int64, np.uint8]))
def test_any_whole_number_is_a_size(size, kind):
    assert pictures.height_and_width(kind(size)) == (size, size)
    assert pictures.height_and_width((kind(size), 3)) == (size, 3)


@pytest.mark.parametrize(
    "size",
    [True, False, 0, -1, "3", 3.0, np.float64(3), np.bool_(True), (3,), (3, 3, 3), (3, True), [3, 3], 10_001],
)  # fmt: skip
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="size is .*size=28"):
        pictures.height_and_width(size)


names = st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=8)


@given(
    classes=st.sets(names.filter(lambda name: not download.is_hidden(name)), min_size=1, max_size=4)
)
def test_names_of_classes_may_be_odd_and_are_sorted(classes):
    with tempfile.TemporaryDirectory() as folder:
        for name in classes:
            put(Path(folder, "zoo", name, "a.png"), Image.new("L", (1, 1)))
        some = data.load_folder(Path(folder, "zoo"))
    assert some.classes == tuple(sorted(classes))
    assert some.y.tolist() == list(range(len(classes)))


def test_a_name_that_is_no_text_is_made_printable(cat):
    put(Path(os.fsdecode(os.fsencode(cat.parent) + b"/\xff")) / "a.png", Image.new("L", (1, 1)))
    put(cat / "a.png", Image.new("L", (1, 1)))
    assert data.load_folder(cat.parent).classes == ("cat", "�")
    root = cat.parent.rename(os.fsdecode(os.fsencode(cat.parent.parent) + b"/\xff"))
    assert data.load_folder(root).source == "folder �"


def test_the_order_is_that_of_the_paths(cat):
    for number, name in enumerate(["a.png", "b.png", "in-a/a.png", "in/a.png", "in/b/a.png"]):
        put(cat / name, Image.new("L", (1, 1), 10 * number))
    found = (255 * data.load_folder(cat.parent).x[:, 0]).round().flatten().tolist()
    assert found == [0, 10, 30, 20, 40]


def test_import_is_quick():
    code = "import sys, course_utils.core.pictures as p; print({'torchvision', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
