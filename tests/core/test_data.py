"""``load`` and ``load_folder``."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from tiny_sets import isolate, tiny_cifar, tiny_mnist, tiny_svhn

from course_utils.core import data, download, files
from course_utils.core.data import DataUnavailable, Images


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def tiny(monkeypatch):
    """A complete MNIST."""
    tiny = tiny_mnist(monkeypatch)
    tiny.put(tiny.plain)
    return tiny


def put(contents, folder=""):
    folder = files.data_dir() / folder
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def test_import_is_quick():
    heavy = {"torchvision", "sklearn", "scipy", "filelock"}
    code = f"import sys, course_utils.core.data; print({heavy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_complete_files_are_read_and_nothing_is_written(tiny, monkeypatch):
    monkeypatch.setattr(download, "complete", lambda *_: pytest.fail("nothing is missing"))
    before = tiny.holds()
    tiny.assert_loads()
    assert tiny.holds() == before


def test_device_is_respected(tiny, monkeypatch):
    monkeypatch.setattr(Images, "to", lambda self, device: f"{self.source} on {device}")
    assert data.load(device="there") == ("MNIST on there",) * 2
    assert data.load("digits", device="there") == ("embedded digits on there",) * 2


def test_the_notice_frames_every_line(monkeypatch, capsys):
    def missing(source):
        raise DataUnavailable("MNIST is missing.\n" + "word " * 50)

    monkeypatch.setattr(download, "prepare", missing)
    train, test = data.load()
    assert train.source == test.source == "embedded digits"
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == last == "=" * 104
    assert all(line.startswith("| ") and len(line) <= 104 for line in lines)
    assert lines[0].startswith("| NOT MNIST: this run uses the EMBEDDED DIGITS, 1,797 real")
    assert "| MNIST is missing." in lines
    assert lines[-2].startswith("| The lecture works all the same.")


def test_cifar10_is_read(monkeypatch):
    contents, _, pixels = tiny_cifar(monkeypatch)
    put(contents, "cifar-10-batches-py")
    train, test = data.load("cifar10")
    assert (train.source, train.classes) == ("CIFAR-10", tuple("abcdefghij"))
    assert torch.equal(train.x, torch.tensor(pixels[:5]).view(20, 3, 32, 32) / 255)
    assert torch.equal(test.x, torch.tensor(pixels[5]).view(4, 3, 32, 32) / 255)
    assert train.y[::4].tolist() == [0, 1, 2, 3, 4] and test.y.tolist() == [5, 1, 2, 9]


def jpeg_copy():
    for half, colour in (("train", "red"), ("test", "blue")):
        for name in ("ship", "cat"):
            folder = files.data_dir() / "cifar10-jpeg" / half / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), colour).save(folder / "0000.jpg")


def test_cifar10_as_jpeg_stands_in_and_says_so(monkeypatch):
    monkeypatch.setattr(download, "prepare", lambda _: pytest.fail("a copy is at hand"))
    jpeg_copy()
    train, test = data.load("cifar10")
    assert train.source == test.source == "CIFAR-10 as JPEG"
    assert train.classes == test.classes == ("cat", "ship")
    assert train.y.tolist() == test.y.tolist() == [0, 1]
    assert train.x[:, 0].min() > 0.9 and test.x[:, 2].min() > 0.9


def test_official_cifar10_goes_before_its_jpeg_copy(monkeypatch):
    contents, _, _ = tiny_cifar(monkeypatch)
    put(contents, "cifar-10-batches-py")
    jpeg_copy()
    assert data.load("cifar10")[0].source == "CIFAR-10"


def test_svhn_is_read(monkeypatch):
    made = tiny_svhn(monkeypatch)
    put({name: content for name, (content, _) in made.items()})
    train, test = data.load("svhn")
    assert (train.source, train.classes) == ("SVHN", tuple("0123456789"))
    assert (len(train), len(test)) == (5, 3)
    pixels = torch.tensor(made["train_32x32.mat"][1])
    assert torch.equal(train.x, pixels.permute(3, 2, 0, 1) / 255)
    assert train.y.tolist() == [0, 9, 8, 7, 6]  # SVHN writes 10 for the digit 0


def test_svhn_without_scipy(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(DataUnavailable, match="pip install scipy"):
        data.load("svhn")


@pytest.mark.parametrize("name", ["MNIST", "fashion", "", None])
def test_wrong_name(name):
    choices = "choose mnist, cifar10, svhn or digits, or load_folder"
    with pytest.raises(ValueError, match=f"name is {name!r}; {choices}"):
        data.load(name)


# --- folders of images


@pytest.fixture
def zoo(tmp_path):
    """Two classes; pixels tell class and number."""
    for label, kind in enumerate(("cat", "dog")):
        folder = tmp_path / "zoo" / kind
        folder.mkdir(parents=True)
        for number in range(3):
            colour = (100 * label, 10 * number, 255)
            Image.new("RGB", (6, 4), colour).save(folder / f"{number}.png")
    return tmp_path / "zoo"


def test_load_folder(zoo):
    (zoo / ".ipynb_checkpoints").mkdir()
    (zoo / "readme.txt").write_text("not an image")
    (zoo / "cat" / "notes.txt").write_text("not an image either")
    some = data.load_folder(zoo)
    assert (some.source, some.classes) == ("folder zoo", ("cat", "dog"))
    assert some.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert some.x.shape == (6, 3, 4, 6) and torch.equal(some.x[:, 2], torch.ones(6, 4, 6))
    assert torch.equal(some.x[:, 0, 0, 0] * 255, torch.tensor([0.0, 0, 0, 100, 100, 100]))
    assert (some.x[:, 1, 0, 0] * 255).round().tolist() == [0, 10, 20, 0, 10, 20]


def test_load_folder_resizes(zoo):
    Image.new("L", (9, 9)).save(zoo / "cat" / "other.png")
    assert data.load_folder(str(zoo), size=5).x.shape == (7, 3, 5, 5)
    assert data.load_folder(str(zoo), size=(2, 3), grayscale=True).x.shape == (7, 1, 2, 3)


def test_load_folder_says_what_is_wrong(zoo, tmp_path):
    def refuses(path, *words, **arguments):
        with pytest.raises(ValueError) as caught:
            data.load_folder(path, **arguments)
        assert all(str(word) in str(caught.value) for word in words), caught.value

    cat, dog = zoo / "cat", zoo / "dog"
    refuses(tmp_path / "none", "path is", tmp_path / "none", "no folder")
    refuses(cat, cat, "one folder per class")  # images, but no class folders
    for size in (0, "28", (5, -1), (5, 2.0)):
        refuses(zoo, f"size is {size!r}", "size=28", size=size)
    Image.new("RGB", (9, 9)).save(dog / "z.png")
    refuses(zoo, dog / "z.png", "9×9", "4×6", "size=32")
    (cat / "broken.png").write_bytes((cat / "0.png").read_bytes()[:40])
    refuses(zoo, cat / "broken.png", "cannot be read", "remove it", size=5)
    (zoo / "empty").mkdir()
    refuses(zoo, "empty", "at least one")
