"""Data sets: what is read, what happens when it cannot be had, and that nothing is lost on the way.

No test leaves this machine. MNIST, CIFAR-10 and SVHN are files of a few images made here; torchvision's tables of
names and checksums are changed to match them. ``inline`` runs the download in this process, where a process of its own
is not the point.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import runpy
import socket
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST, SVHN

from course_utils import data, runtime
from course_utils.data import DataUnavailable, Images

NOWHERE = "http://127.0.0.1:9/"  # nothing listens there: connections are refused at once
NAMES = [name for name, _ in MNIST.resources]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """``array`` (uint8) in MNIST's file format."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape) + array.tobytes()


def images(n=6, seed=0, **changes) -> Images:
    generator = runtime.generator(seed)
    parts = {"x": torch.rand(n, 1, 4, 4, generator=generator), "y": torch.arange(n) % 3, "classes": ("a", "b", "c")}
    return Images(**({**parts, "source": "test"} | changes))


# --- a tiny MNIST, and places to get it from


class Tiny:
    """A data directory for a MNIST of 30 + 10 images, and what its files should hold."""

    def __init__(self, root: Path):
        rng = np.random.default_rng(0)
        arrays = [array for n in (30, 10) for array in (rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n))]
        self.pixels, self.labels = arrays[0], arrays[1]
        self.plain = dict(zip((n[:-3] for n in NAMES), (idx(a.astype(np.uint8)) for a in arrays), strict=True))
        self.packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in self.plain.items()}
        self.resources = [(name, md5(content)) for name, content in self.packed.items()]
        self.unpacked = tuple(md5(content) for content in self.plain.values())
        self.root, self.raw = root, root / "MNIST" / "raw"

    def put(self, contents: dict[str, bytes], folder: Path | None = None):
        folder = folder or self.raw
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    def holds(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}

    def assert_complete(self):
        assert {name: (self.raw / name).read_bytes() for name in self.plain} == self.plain

    def assert_loads(self):
        train, test = data.load()
        assert (train.source, len(train), len(test)) == ("MNIST", 30, 10)
        assert torch.equal(train.x, torch.tensor(self.pixels, dtype=torch.float32)[:, None] / 255)
        assert torch.equal(train.y, torch.tensor(self.labels))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nobody's own data is touched, no proxy stands between a test and its server, and nothing is downloaded."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(data, "_failures", {})


@pytest.fixture
def tiny(own_folders, monkeypatch):
    tiny = Tiny(runtime.data_dir())
    monkeypatch.setattr(MNIST, "resources", tiny.resources)
    monkeypatch.setattr(data, "_UNPACKED_MNIST", tiny.unpacked)
    return tiny


@pytest.fixture
def inline(monkeypatch, tmp_path):
    """The child's code in this process; gives the list of its jobs, one for each attempt."""
    jobs, script = [], tmp_path / "child.py"
    script.write_text(data._CHILD)

    def run(job, seconds):
        jobs.append(job)
        said = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            patch.setattr(sys, "argv", ["child", json.dumps(job)])
            try:
                runpy.run_path(str(script))
            except SystemExit:
                return said.getvalue().strip()
            finally:
                socket.setdefaulttimeout(None)
        return ""

    monkeypatch.setattr(data, "_run_child", run)
    return jobs


@pytest.fixture
def server(tiny):
    """An address that serves the tiny archives slowly enough for two downloads to overlap, and the list of requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path[1:])
            time.sleep(0.1)
            body = tiny.packed[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # torchvision opens each address once only to follow redirects
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/", requests
        httpd.shutdown()


def falls_back(capsys) -> str:
    """Asserts that MNIST is replaced under the notice; gives the notice as one line."""
    capsys.readouterr()
    train, test = data.load()
    printed = capsys.readouterr().out
    assert train.source == test.source == "embedded digits"
    frame = printed[printed.index("=" * 50) :].strip().splitlines()
    assert set(frame[0]) == set(frame[-1]) == {"="} and all(line.startswith("| ") for line in frame[1:-1])
    notice = " ".join(line[2:] for line in frame[1:-1] if len(line) > 2)
    assert notice.startswith("NOT MNIST") and str(runtime.data_dir()) in notice
    assert "COURSE_DATA" in notice or "move it there" in notice  # the cure
    return notice


# --- Images


def test_images_indexing_keeps_a_batch():
    some = images()
    mask = some.y == 1
    assert len(some) == 6 and torch.equal(some[mask].x, some.x[mask]) and torch.equal(some[1:3].y, some.y[1:3])
    assert torch.equal(some[torch.tensor([4, 0])].x, some.x[[4, 0]])
    for one in (some[2], some[torch.tensor(2)], some[np.int64(2)], some[-4]):
        assert torch.equal(one.x, some.x[2:3]) and torch.equal(one.y, some.y[2:3])
    assert len(some[some.y == 9]) == 0 and some[:2].classes == some.classes and some[:2].source == "test"
    assert len(list(some)) == 6
    assert repr(some) == "Images(6 of 1×4×4, 3 classes, test, cpu)"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"x": torch.rand(6, 4, 4)}, ["x is float32 (6, 4, 4)", "(N, C, H, W)"]),
        ({"x": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)}, ["x is uint8", "/ 255"]),
        ({"x": np.zeros((6, 1, 4, 4), dtype=np.float32)}, ["x is a ndarray", "tensor"]),
        ({"x": torch.full((6, 1, 4, 4), 255.0)}, ["x has values from 255 to 255", "/ 255"]),
        ({"x": torch.full((6, 1, 4, 4), -0.1)}, ["x has values from -0.1"]),
        ({"x": torch.full((6, 1, 4, 4), float("nan"))}, ["nan"]),
        ({"y": torch.zeros(6)}, ["y is float32", ".long()"]),
        ({"y": torch.zeros(6, 3, dtype=torch.int64)}, ["y is int64 (6, 3)"]),
        ({"y": torch.zeros(5, dtype=torch.int64)}, ["(6, 1, 4, 4)", "(5,)", "one label per image"]),
        ({"y": torch.full((6,), 3)}, ["y is from 3 to 3", "3 names"]),
        ({"y": torch.full((6,), -1)}, ["y is from -1"]),
    ],
)
def test_images_say_what_is_wrong(changes, words):
    with pytest.raises(ValueError) as caught:
        images(**changes)
    assert all(word in str(caught.value) for word in words), caught.value


@given(n=st.integers(1, 19), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_split_parts_the_images(n, seed):
    some = Images(torch.arange(20.0).view(20, 1, 1, 1) / 20, torch.zeros(20, dtype=torch.int64), ("a",), "test")
    rest, held_out = some.split(n, seed)
    assert len(held_out) == n
    assert sorted(torch.cat([rest.x, held_out.x]).flatten().tolist()) == some.x.flatten().tolist()
    assert torch.equal(some.split(n, seed)[1].x, held_out.x)


def test_split_depends_on_the_seed_and_refuses_nonsense():
    some = images(50)
    assert not torch.equal(some.split(20, 0)[1].x, some.split(20, 1)[1].x)
    for n in (0, 50, -1):
        with pytest.raises(ValueError, match=f"n is {n}; hold out between 1 and 49"):
            some.split(n, 0)


def test_fingerprint_follows_content_only():
    some = images()
    pixel = some.x.clone()
    pixel[5, 0, 3, 3] += 1e-3 if pixel[5, 0, 3, 3] < 0.5 else -1e-3
    strided = some.x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous() and images(x=strided).fingerprint == some.fingerprint
    assert images(source="other").fingerprint == some.to("cpu").fingerprint == some.fingerprint
    others = [images(x=pixel), images(y=some.y.flip(0)), images(x=some.x.view(6, 1, 2, 8)), some[:5], some[:0]]
    assert len({some.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_fingerprint_costs_little_more_than_reading_the_pixels_once():
    """0.1 s for MNIST, so far from 0.3 s; measured against one plain hash, as machines and their load differ."""
    pixels = torch.zeros(20_000, 1, 28, 28)
    plain, ours = [], []
    for _ in range(3):
        start = time.process_time()
        hashlib.sha256(pixels.numpy()).hexdigest()
        plain.append(time.process_time() - start)
        some = Images(pixels, torch.zeros(20_000, dtype=torch.int64), ("a",), "test")
        start = time.process_time()
        assert some.fingerprint == some.fingerprint
        ours.append(time.process_time() - start)
    assert min(ours) < 1.8 * min(plain)


# --- the embedded digits


def test_digits_are_what_they_say():
    train, test = data.load("digits")
    assert train.x.shape == (7 * 1437, 1, 28, 28) and test.x.shape == (360, 1, 28, 28)
    assert train.source == test.source == "embedded digits" and train.classes == tuple("0123456789")
    assert test.y.bincount().tolist() == [36] * 10
    assert test.x[:, :, :3].max() == test.x[..., -3:].max() == 0 and test.x.max() == 1  # bright on black, with a border
    # labels fit the images: the nearest class mean gets most test digits right
    means = torch.stack([train.x[train.y == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test.x.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test.y).float().mean() > 0.8


def test_no_test_digit_has_a_sibling_in_training(monkeypatch):
    """Every original becomes a plain grey that tells its number, which is read back from the middle of each image."""
    grey = 0.3 + 0.4 * np.arange(1797) / 1796
    _, labels = sklearn.datasets.load_digits(return_X_y=True)
    fake = (np.repeat(16 * grey[:, None], 64, axis=1), labels)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: fake)
    train, test = (((half.x[:, 0, 14, 14] + 0.5) / 2 - 0.3) / 0.4 * 1796 for half in data.load("digits"))
    train, test = train.round().long(), test.round().long()
    assert not set(train.tolist()) & set(test.tolist())
    assert sorted(set(train.tolist()) | set(test.tolist())) == list(range(1797))
    assert train.bincount(minlength=1797).unique().tolist() == [0, 7]


def test_split_of_originals_is_stratified_and_complete():
    y = torch.arange(1797) % 10
    train, test = data._split_originals(y)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(1797)) and len(test) == 360
    assert y[test].bincount().tolist() == [36] * 10


def test_digits_repeat_and_leave_the_random_state_alone():
    random_states = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: E731
    torch.manual_seed(1)
    before = random_states()
    train, test = data.load("digits")
    assert random_states() == before
    torch.manual_seed(2)
    again = data.load("digits")
    assert (again[0].fingerprint, again[1].fingerprint) == (train.fingerprint, test.fingerprint)


def test_digits_are_moved_as_described():
    small = torch.rand(1, 1, 8, 8, generator=runtime.generator(0))
    none = torch.zeros(1)
    plain = data._place(small, none, none, none, none + 1)
    right = data._place(small, none, none + 2, none, none + 1)
    down = data._place(small, none, none, none + 1, none + 1)
    assert torch.allclose(right[..., 2:], plain[..., :-2], atol=1e-5)
    assert torch.allclose(down[:, :, 1:], plain[:, :, :-1], atol=1e-5)
    upside_down = data._place(small, none + torch.pi, none, none, none + 1)
    assert torch.allclose(upside_down, plain.flip(2, 3), atol=1e-4)
    area = [(data._place(torch.ones(1, 1, 8, 8), none, none, none, none + s) > 0.5).sum().item() for s in (0.7, 1.4)]
    assert area[1] == pytest.approx(4 * area[0], rel=0.1)


def test_import_is_quick():
    code = "import sys, course_utils.data; print({'torchvision', 'sklearn', 'scipy', 'filelock'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=runtime.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- MNIST where all is well


def test_complete_files_are_read_and_nothing_is_written(tiny, monkeypatch):
    monkeypatch.setattr(data, "_complete", lambda *_: pytest.fail("nothing is missing"))
    tiny.put(tiny.plain)
    before = tiny.holds()
    tiny.assert_loads()
    assert tiny.holds() == before


def test_device_is_respected(tiny, monkeypatch):
    tiny.put(tiny.plain)
    monkeypatch.setattr(Images, "to", lambda self, device: f"{self.source} on {device}")
    assert data.load(device="there") == ("MNIST on there",) * 2
    assert data.load("digits", device="there") == ("embedded digits on there",) * 2


def test_archives_are_unpacked_without_network(tiny, inline):
    tiny.put(tiny.packed)
    tiny.assert_loads()
    tiny.assert_complete()
    assert {name: (tiny.raw / name).read_bytes() for name in tiny.packed} == tiny.packed


def _load_in_process(tiny, mirror, log):
    """One of two processes: waits for the other, then loads; gives what it got."""
    MNIST.resources, MNIST.mirrors, data._UNPACKED_MNIST = tiny.resources, [mirror], tiny.unpacked
    run = data._run_child

    def counted(*arguments):
        with open(log, "a") as file:
            file.write("download\n")
        return run(*arguments)

    data._run_child = counted
    together.wait(120)
    train, test = data.load()
    return train.source, train.fingerprint, test.fingerprint


def _meet(barrier):
    global together
    together = barrier


def test_two_processes_at_once_download_once(tiny, server, tmp_path):
    address, requests = server
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    with ProcessPoolExecutor(2, mp_context=context, initializer=_meet, initargs=(context.Barrier(2),)) as pool:
        first, second = pool.map(_load_in_process, [tiny] * 2, [address] * 2, [str(log)] * 2)
    assert first == second and first[0] == "MNIST"
    assert log.read_text().splitlines() == ["download"]
    assert set(requests) == set(NAMES) and max(requests.count(name) for name in NAMES) <= 2  # redirect check, then body
    tiny.assert_complete()
    tiny.assert_loads()
    assert {p.name for p in tiny.root.iterdir()} <= {"MNIST", ".mnist.lock"}  # nothing is left lying about


# --- MNIST where something is wrong: a clear message, nothing lost


def test_no_network(tiny, inline, capsys):
    notice = falls_back(capsys)
    assert "refused" in notice and "MNIST/raw/train-images-idx3-ubyte.gz" in notice and "course doctor" in notice
    assert len(inline) == 1


def test_network_that_hangs(tiny, monkeypatch, capsys):
    """A server that accepts and never answers; without the limit on silence the reason would be the limit of 60 s."""
    monkeypatch.setattr(data, "SOCKET_SECONDS", 0.3)
    monkeypatch.setattr(data, "DOWNLOAD_SECONDS", {"mnist": 60})
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        assert "timed out" in falls_back(capsys)


def test_download_that_never_ends_is_stopped(tiny, monkeypatch, capsys):
    monkeypatch.setattr(data, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(data, "DOWNLOAD_SECONDS", {"mnist": 0.5})
    start = time.monotonic()
    assert "not finished after 0.5 seconds" in falls_back(capsys)
    assert time.monotonic() - start < 30


def test_child_that_breaks_says_why(tiny, monkeypatch, capsys):
    monkeypatch.setattr(data, "_CHILD", "import no_such_module")
    assert "No module named 'no_such_module'" in falls_back(capsys)


def test_failed_download_is_remembered_and_forgotten(tiny, inline, capsys):
    falls_back(capsys)
    assert "refused" in falls_back(capsys) and len(inline) == 1
    note = tiny.root / ".mnist.failed"
    old = time.time() - data.RETRY_SECONDS - 1
    os.utime(note, (old, old))
    falls_back(capsys)
    assert len(inline) == 2
    falls_back(capsys)
    data.forget_failed_downloads()
    assert not note.exists()
    falls_back(capsys)
    assert len(inline) == 3


def test_failed_download_is_remembered_where_no_note_can_be_written(tiny, inline, monkeypatch, capsys):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(runtime, "write_atomic", full)
    falls_back(capsys)
    falls_back(capsys)
    assert len(inline) == 1
    data.forget_failed_downloads()
    falls_back(capsys)
    assert len(inline) == 2


def test_archives_put_there_after_a_failure_are_used_at_once(tiny, inline, capsys):
    falls_back(capsys)
    tiny.put(tiny.packed)
    tiny.assert_loads()


def test_half_written_file_is_kept_aside_and_unpacked_again(tiny, inline):
    name = NAMES[0][:-3]
    half = tiny.plain[name][:1000]
    tiny.put({**tiny.plain, **tiny.packed, name: half})
    tiny.assert_loads()
    tiny.assert_complete()
    assert (tiny.raw / f"{name}.damaged").read_bytes() == half


def test_file_of_the_right_size_with_wrong_content_is_noticed(tiny, inline):
    name = NAMES[1][:-3]
    wrong = tiny.plain[name][:-5] + bytes(5)
    tiny.put({**tiny.plain, **tiny.packed, name: wrong})
    tiny.assert_loads()
    assert (tiny.raw / f"{name}.damaged").read_bytes() == wrong


def test_damaged_files_never_overwrite_each_other(tiny, inline):
    name = NAMES[0][:-3]
    for attempt in range(3):
        tiny.put({**tiny.plain, **tiny.packed, name: bytes([attempt])})
        tiny.assert_loads()
    kept = [(tiny.raw / f"{name}.damaged{number}").read_bytes() for number in ("", "2", "3")]
    assert kept == [b"\0", b"\1", b"\2"]


def test_corrupt_archive_is_kept_aside_and_only_it_is_downloaded_again(tiny, server, inline, monkeypatch):
    address, requests = server
    monkeypatch.setattr(MNIST, "mirrors", [address])
    corrupt = tiny.packed[NAMES[2]][:-7] + b"garbage"
    tiny.put({**tiny.packed, NAMES[2]: corrupt})
    tiny.assert_loads()
    assert set(requests) == {NAMES[2]}
    assert (tiny.raw / f"{NAMES[2]}.damaged").read_bytes() == corrupt
    assert (tiny.raw / NAMES[2]).read_bytes() == tiny.packed[NAMES[2]]


def test_corrupt_archive_without_network_is_named(tiny, inline, capsys):
    corrupt = b"not a gz"
    tiny.put({**tiny.packed, NAMES[2]: corrupt})
    notice = falls_back(capsys)
    assert f"{NAMES[2]} was damaged; it is kept as {NAMES[2]}.damaged" in notice
    left = {name: (tiny.raw / name).read_bytes() for name in [*NAMES[:2], NAMES[3], f"{NAMES[2]}.damaged"]}
    assert left == {**{name: tiny.packed[name] for name in left if name in NAMES}, f"{NAMES[2]}.damaged": corrupt}


def test_corrupt_download_is_refused(tiny, server, inline, monkeypatch, capsys):
    """What comes must pass its checksum; what came well before it is kept."""
    monkeypatch.setattr(MNIST, "mirrors", [server[0]])
    monkeypatch.setitem(tiny.packed, NAMES[1], b"a login page")
    assert NAMES[1] in falls_back(capsys)
    assert sorted(p.name for p in tiny.raw.iterdir()) == [NAMES[0][:-3], NAMES[0]]


def test_traces_of_a_killed_process_do_no_harm(tiny, inline):
    tiny.put({NAMES[0]: b"half"}, tiny.root / ".mnist-killed" / "MNIST" / "raw")
    tiny.put(tiny.packed)
    (tiny.root / ".mnist.lock").touch()
    tiny.assert_loads()
    assert not (tiny.root / ".mnist-killed").exists()


def test_lock_that_is_never_released(tiny, monkeypatch, capsys):
    from filelock import FileLock

    monkeypatch.setattr(data, "DOWNLOAD_SECONDS", {"mnist": -59.8})  # a wait of 0.2 s
    tiny.root.mkdir()
    with FileLock(tiny.root / ".mnist.lock"):
        assert "mnist.lock" in falls_back(capsys)


def test_full_disk(tiny, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    assert "No space left on device" in falls_back(capsys)


def test_data_directory_that_is_a_file(tiny, capsys):
    tiny.root.write_text("not a folder")
    falls_back(capsys)
    assert tiny.root.read_text() == "not a folder"


# --- a data directory that cannot be written


@pytest.fixture
def read_only(tiny, monkeypatch):
    """Tests may run as root, whom no permission stops: the answer is given here; the tests see that no file changed."""
    writable = data._writable
    monkeypatch.setattr(data, "_writable", lambda folder: folder != tiny.root and writable(folder))
    return tiny


def test_writable(tmp_path, monkeypatch):
    assert data._writable(tmp_path / "not" / "there" / "yet")
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert not data._writable(tmp_path) and not data._writable(tmp_path / "not" / "there" / "yet")


def test_read_only_with_archives_unpacks_into_the_cache(read_only, inline, monkeypatch):
    read_only.put(read_only.packed)
    before = read_only.holds()
    read_only.assert_loads()
    read_only.assert_loads()
    assert read_only.holds() == before and len(inline) == 1
    assert sorted(p.name for p in (runtime.cache_dir() / "unpacked/MNIST/raw").iterdir()) == sorted(read_only.plain)


@pytest.mark.parametrize("names", [[], NAMES[:2], NAMES])
def test_read_only_and_incomplete(read_only, inline, capsys, names):
    read_only.put({name: read_only.packed[name] for name in names} | {NAMES[0]: b"damaged"} if names else {})
    before = read_only.holds()
    notice = falls_back(capsys)
    assert "cannot be written" in notice
    assert not names or f"{read_only.raw / NAMES[0]} is damaged" in notice
    assert read_only.holds() == before and not inline


# --- files in the wrong place


@pytest.mark.parametrize("spot", ["", "raw", "MNIST", "mnist", "mnist/raw", "MNIST/MNIST/raw", "data/MNIST/raw"])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_wrong_layout_is_named(tiny, inline, capsys, spot, kind):
    contents = getattr(tiny, kind)
    tiny.put(contents, tiny.root / spot)
    before = tiny.holds()
    notice = falls_back(capsys).replace(" ", "")
    for name in contents:
        assert f"{tiny.root / spot / name}belongsat{tiny.raw / name}" in notice
    assert not inline and tiny.holds() == before


def test_names_with_a_dot_are_named(tiny, inline, capsys):
    tiny.put({name.replace("-idx", ".idx"): content for name, content in tiny.plain.items()})
    notice = falls_back(capsys)
    assert f"train-images.idx3-ubyte belongs at {tiny.raw / 'train-images-idx3-ubyte'}" in notice.replace("  ", " ")


def test_fashion_mnist_is_not_taken_for_mnist(tiny, inline, capsys):
    tiny.put(tiny.packed, tiny.root / "FashionMNIST" / "raw")
    assert "belongs" not in falls_back(capsys)


# --- CIFAR-10 and SVHN


def tiny_cifar(monkeypatch) -> tuple[dict[str, bytes], bytes, np.ndarray]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 4, 3 * 32 * 32), dtype=np.uint8)
    batches = [pickle.dumps({"data": p, "labels": [i, 1, 2, 9]}) for i, p in enumerate(pixels)]
    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    files = dict(zip(names, batches, strict=True)) | {"batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    sums = [[name, md5(content)] for name, content in files.items()]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:6])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[6][1]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed.getvalue()))
    monkeypatch.setattr(CIFAR10, "url", NOWHERE + CIFAR10.filename)
    return files, packed.getvalue(), pixels


@pytest.mark.parametrize("start", ["files", "archive", "damaged file"])
def test_cifar10(monkeypatch, inline, start):
    files, archive, pixels = tiny_cifar(monkeypatch)
    root = runtime.data_dir()
    (root / "cifar-10-batches-py").mkdir(parents=True)
    if start != "files":
        (root / CIFAR10.filename).write_bytes(archive)
    if start != "archive":
        for name, content in files.items():
            (root / "cifar-10-batches-py" / name).write_bytes(content)
    (root / ".cifar10-killed").mkdir()
    (root / ".cifar10-killed" / "data_batch_1").write_bytes(b"of a process that was killed: not a misplaced file")
    if start == "damaged file":
        (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"half")
    train, test = data.load("cifar10")
    assert (train.source, train.classes, len(train), len(test)) == ("CIFAR-10", tuple("abcdefghij"), 20, 4)
    assert torch.equal(train.x, torch.tensor(pixels[:5]).view(20, 3, 32, 32) / 255)
    assert torch.equal(test.x, torch.tensor(pixels[5]).view(4, 3, 32, 32) / 255)
    assert train.y[::4].tolist() == [0, 1, 2, 3, 4] and test.y.tolist() == [5, 1, 2, 9]
    assert len(inline) == (start != "files")


def tiny_svhn(monkeypatch) -> dict[str, tuple[bytes, np.ndarray]]:
    from scipy.io import savemat

    rng, made, table = np.random.default_rng(2), {}, {}
    for half, n in (("train", 5), ("test", 3)):
        pixels, file = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), io.BytesIO()
        savemat(file, {"X": pixels, "y": np.arange(10, 10 - n, -1, dtype=np.uint8)[:, None]})
        made[f"{half}_32x32.mat"] = file.getvalue(), pixels
        table[half] = [f"{NOWHERE}{half}_32x32.mat", f"{half}_32x32.mat", md5(file.getvalue())]
    monkeypatch.setattr(SVHN, "split_list", table)
    return made


def test_svhn(monkeypatch):
    made = tiny_svhn(monkeypatch)
    runtime.data_dir().mkdir()
    for name, (content, _) in made.items():
        (runtime.data_dir() / name).write_bytes(content)
    train, test = data.load("svhn")
    assert (train.source, train.classes, len(train), len(test)) == ("SVHN", tuple("0123456789"), 5, 3)
    assert torch.equal(train.x, torch.tensor(made["train_32x32.mat"][1]).permute(3, 2, 0, 1) / 255)
    assert train.y.tolist() == [0, 9, 8, 7, 6]  # SVHN writes 10 for the digit 0


def test_svhn_without_scipy(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(DataUnavailable, match="pip install scipy"):
        data.load("svhn")


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_nothing_stands_in_for_the_others(monkeypatch, inline, name):
    tiny_cifar(monkeypatch)
    tiny_svhn(monkeypatch)
    for _ in range(2):
        with pytest.raises(DataUnavailable) as caught:
            data.load(name)
        wanted = {"cifar10": "cifar-10-python.tar.gz", "svhn": "train_32x32.mat, test_32x32.mat"}[name]
        for words in (str(runtime.data_dir()), wanted, "refused", "COURSE_DATA", "load_folder"):
            assert words in str(caught.value)
    assert len(inline) == 1


def test_cifar10_in_the_wrong_place_is_named(monkeypatch, inline):
    _, archive, _ = tiny_cifar(monkeypatch)
    there = runtime.data_dir() / "cifar" / CIFAR10.filename
    there.parent.mkdir(parents=True)
    there.write_bytes(archive)
    with pytest.raises(DataUnavailable) as caught:
        data.load("cifar10")
    assert str(caught.value) == f"{there} belongs at {runtime.data_dir() / CIFAR10.filename}: move it there."


@pytest.mark.parametrize("name", ["MNIST", "fashion", "", None])
def test_wrong_name(name):
    with pytest.raises(ValueError, match=rf"name is {name!r}; choose mnist, cifar10, svhn or digits.*load_folder"):
        data.load(name)


# --- folders of images


@pytest.fixture
def zoo(tmp_path):
    """Two classes; pixels tell class and number."""
    for (label, kind), number in itertools.product(enumerate(("cat", "dog")), range(3)):
        file = tmp_path / "zoo" / kind / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (100 * label, 10 * number, 255)).save(file)
    return tmp_path / "zoo"


def test_load_folder(zoo):
    (zoo / ".ipynb_checkpoints").mkdir()
    (zoo / "readme.txt").write_text("not an image")
    some = data.load_folder(zoo)
    assert (some.source, some.classes, some.y.tolist()) == ("folder zoo", ("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert some.x.shape == (6, 3, 4, 6) and torch.equal(some.x[:, 2], torch.ones(6, 4, 6))
    assert torch.equal(some.x[:, 0, 0, 0] * 255, torch.tensor([0.0, 0, 0, 100, 100, 100]))


@pytest.mark.parametrize("arguments, shape", [({"size": 5}, (3, 5, 5)), ({"size": (2, 3), "grayscale": True}, (1, 2, 3))])
def test_load_folder_resizes(zoo, arguments, shape):
    Image.new("L", (9, 9)).save(zoo / "cat" / "other.png")
    assert data.load_folder(str(zoo), **arguments).x.shape == (7, *shape)


def test_load_folder_says_what_is_wrong(zoo, tmp_path):
    def refuses(path, *words, **arguments):
        with pytest.raises(ValueError) as caught:
            data.load_folder(path, **arguments)
        assert all(str(word) in str(caught.value) for word in words), caught.value

    refuses(tmp_path / "none", "path is", tmp_path / "none", "no folder")
    refuses(zoo / "cat", zoo / "cat", "one folder per class")  # images, but no class folders
    refuses(zoo, "size is 0", "size=28", size=0)
    refuses(zoo, "size is '28'", size="28")
    Image.new("RGB", (9, 9)).save(zoo / "dog" / "z.png")
    refuses(zoo, zoo / "dog" / "z.png", "9×9", "4×6", "size=32")
    (zoo / "cat" / "broken.png").write_bytes((zoo / "cat" / "0.png").read_bytes()[:40])
    refuses(zoo, zoo / "cat" / "broken.png", "cannot be read", "remove it", size=5)
    (zoo / "empty").mkdir()
    refuses(zoo, "empty", "at least one")
