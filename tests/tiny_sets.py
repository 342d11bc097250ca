"""MNIST, CIFAR-10 and SVHN of a few images, so that no test leaves this machine.

torchvision's tables of names and checksums are changed to match these files.
"""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, MNIST, SVHN

from course_utils.core import data, download, files

NOWHERE = "http://127.0.0.1:9/"  # nothing listens there: connections are refused at once
NAMES = [name for name, _ in MNIST.resources]


def isolate(tmp_path: Path, patch) -> None:
    """The user's data, proxies and the net are left alone."""
    env = {"COURSE_DATA": tmp_path / "data", "COURSE_CACHE": tmp_path / "cache"}
    for name, value in (env | {"NO_PROXY": "*", "no_proxy": "*"}).items():
        patch.setenv(name, str(value))
    patch.setattr(MNIST, "mirrors", [NOWHERE])
    patch.setattr(download, "unwritten", {})


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """``array`` (uint8) in MNIST's file format."""
    sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.astype(np.uint8).tobytes()


class TinyMnist:
    """A folder for a MNIST of 30 + 10 images, and what its files should hold."""

    def __init__(self, root: Path):
        rng = np.random.default_rng(0)
        arrays = []
        for n in (30, 10):
            arrays += [rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)]
        self.pixels, self.labels = arrays[:2]
        names = [name.removesuffix(".gz") for name in NAMES]
        self.plain = dict(zip(names, map(idx, arrays), strict=True))
        self.packed = {f"{n}.gz": gzip.compress(c, mtime=0) for n, c in self.plain.items()}
        self.resources = [(name, md5(content)) for name, content in self.packed.items()]
        self.root, self.raw = root, root / "MNIST" / "raw"

    def put(self, contents: dict[str, bytes], folder: Path | None = None):
        folder = folder or self.raw
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    def holds(self) -> dict[str, bytes]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def assert_complete(self):
        assert {name: (self.raw / name).read_bytes() for name in self.plain} == self.plain

    def assert_loads(self):
        train, test = data.load()
        assert (train.source, len(train), len(test)) == ("MNIST", 30, 10)
        assert torch.equal(train.x, torch.tensor(self.pixels, dtype=torch.float32)[:, None] / 255)
        assert torch.equal(train.y, torch.tensor(self.labels))


def tiny_mnist(patch) -> TinyMnist:
    tiny = TinyMnist(files.data_dir())
    patch.setattr(MNIST, "resources", tiny.resources)
    sums = [(md5(tiny.packed[f"{name}.gz"]), md5(plain)) for name, plain in tiny.plain.items()]
    patch.setattr(download, "MNIST_FILES", dict(zip(tiny.plain, sums, strict=True)))
    return tiny


def tiny_cifar(patch) -> tuple[dict[str, bytes], bytes, np.ndarray]:
    """Files by name, the archive of them, and the pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4, 3 * 32 * 32), dtype=np.uint8)
    contents = {}
    for i, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        contents[name] = pickle.dumps({"data": pixels[i], "labels": [i, 1, 2, 9]})
    contents["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    sums = [[name, md5(content)] for name, content in contents.items()]
    meta = {**CIFAR10.meta, "md5": sums[6][1]}
    table = {"train_list": sums[:5], "test_list": sums[5:6], "meta": meta}
    table |= {"tgz_md5": md5(packed.getvalue()), "url": NOWHERE + CIFAR10.filename}
    for name, value in table.items():
        patch.setattr(CIFAR10, name, value)
    return contents, packed.getvalue(), pixels


def tiny_svhn(patch) -> dict[str, tuple[bytes, np.ndarray]]:
    """Files by name, each with its pixels."""
    from scipy.io import savemat

    rng, made, table = np.random.default_rng(2), {}, {}
    for half, n in (("train", 5), ("test", 3)):
        pixels, file = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), io.BytesIO()
        savemat(file, {"X": pixels, "y": np.arange(10, 10 - n, -1, dtype=np.uint8)[:, None]})
        name = f"{half}_32x32.mat"
        made[name] = file.getvalue(), pixels
        table[half] = [NOWHERE + name, name, md5(file.getvalue())]
    patch.setattr(SVHN, "split_list", table)
    return made
