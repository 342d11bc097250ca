"""Getting MNIST, CIFAR-10 and SVHN: a clear message where that fails, and no file lost.

``inline`` runs the download in this process, where a process of its own is not the point.
"""

import contextlib
import functools
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from tiny_sets import NAMES, isolate, md5, tiny_cifar, tiny_mnist, tiny_svhn
from torchvision.datasets import CIFAR10, MNIST

from course_utils.core import data, digits, download, files
from course_utils.core.download import DataUnavailable

made_once = functools.cache(digits.embedded)  # it takes a second


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(digits, "embedded", made_once)


@pytest.fixture
def tiny(own_folders, monkeypatch):
    return tiny_mnist(monkeypatch)


@pytest.fixture
def inline(monkeypatch):
    """The child's code in this process; gives the list of its jobs, one for each attempt."""
    jobs = []

    def run(job, seconds):
        jobs.append(job)
        with (
            monkeypatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(printed),
        ):
            patch.setattr(sys, "argv", ["child", json.dumps(job)])
            try:
                exec(download.CHILD, {})
            except SystemExit:
                return printed.getvalue().strip()
            finally:
                socket.setdefaulttimeout(None)
        return ""

    monkeypatch.setattr(download, "run_child", run)
    return jobs


@pytest.fixture
def server(tiny):
    """An address that serves the tiny archives slowly, so that two downloads overlap; requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path[1:])
            time.sleep(0.1)
            body = tiny.packed[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            # torchvision opens each address once only to follow redirects
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/", requests
        httpd.shutdown()


@pytest.fixture
def falls_back(tiny, capsys):
    """Asserts that MNIST is replaced under the notice; gives the notice as one line."""

    def notice_given() -> str:
        capsys.readouterr()
        train, test = data.load()
        printed = capsys.readouterr().out
        assert train.source == test.source == "embedded digits"
        _, *lines, _ = printed[printed.index("=" * 104) :].strip().splitlines()
        notice = " ".join(line[2:] for line in lines if len(line) > 2)
        assert notice.startswith("NOT MNIST") and str(files.data_dir()) in notice
        assert "COURSE_DATA" in notice or "move it there" in notice  # the cure
        return notice

    return notice_given


def no_space(*_, **__):
    raise OSError(28, "No space left on device")


def read(folder, names) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def listed(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_imports_without_torch(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    code = f"""
import sys, pathlib
sys.modules['torch'] = sys.modules['torchvision'] = None
from course_utils.core import download
download.forget_failed_downloads()
expected = {{'file': {md5(b"content")!r}, 'none': ''}}
print(download.intact(pathlib.Path({str(tmp_path)!r}), expected))"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['file']"


def test_intact_names_files_that_pass_their_checksum(tmp_path):
    content = os.urandom(300_000)
    for name in ("right", "wrong", "inner/right"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    names = ("right", "missing", "inner", "inner/right")
    expected = dict.fromkeys(names, md5(content)) | {"wrong": md5(b"other")}
    assert download.intact(tmp_path, expected) == ["right", "inner/right"]
    assert download.intact(tmp_path / "nowhere", expected) == []


@pytest.mark.parametrize("name", download.DOWNLOAD_SECONDS)
def test_sources_are_those_of_torchvision(name):
    source = download.describe(name)
    assert source.name == name and source.kind == source.title.replace("-", "")
    assert all(len(sum) == 32 for sum in source.all_files.values())
    assert {"mnist": 4, "cifar10": 1, "svhn": 2}[name] == len(source.archives)
    if name == "mnist":
        assert source.archives == {f"MNIST/raw/{file}": md5 for file, md5 in MNIST.resources}
    assert {"mnist": 4, "cifar10": 7, "svhn": 2}[name] == len(source.files)


# --- where all is well


def test_archives_are_unpacked_without_network(tiny, inline):
    """Also where a process was killed."""
    tiny.put({NAMES[0]: b"half"}, tiny.root / ".mnist-killed" / "MNIST" / "raw")
    tiny.put(tiny.packed)
    (tiny.root / ".mnist.lock").touch()
    tiny.assert_loads()
    tiny.assert_complete()
    assert read(tiny.raw, tiny.packed) == tiny.packed
    assert not (tiny.root / ".mnist-killed").exists()


@pytest.mark.slow
def test_two_at_once_download_once(tiny, server, monkeypatch, capsys):
    """Two threads, as the lock keeps them apart like two processes, which take longer to start."""
    address, requests = server
    monkeypatch.setattr(MNIST, "mirrors", [address])
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(data.load) for _ in range(2)]
    first, second = (load.result() for load in loads)
    assert first[0].source == "MNIST"
    assert [half.fingerprint for half in first] == [half.fingerprint for half in second]
    assert capsys.readouterr().out.count("downloading") == 1
    assert set(requests) == set(NAMES)
    assert max(requests.count(name) for name in NAMES) <= 2  # redirect check, then body
    tiny.assert_complete()
    tiny.assert_loads()
    assert set(listed(tiny.root)) <= {"MNIST", ".mnist.lock"}  # nothing is left lying about


@pytest.mark.parametrize("start", ["archive", "damaged file"])
def test_cifar10_is_unpacked(monkeypatch, inline, start):
    contents, archive, _ = tiny_cifar(monkeypatch)
    root = files.data_dir()
    folder, half = root / "cifar-10-batches-py", b"half"
    killed = root / ".cifar10-killed"  # of a process that was killed: no misplaced files
    for place in (folder, killed):
        place.mkdir(parents=True)
    (root / CIFAR10.filename).write_bytes(archive)
    (killed / "data_batch_1").write_bytes(half)
    if start == "damaged file":
        for name, content in (contents | {"data_batch_3": half}).items():
            (folder / name).write_bytes(content)
    train, test = data.load("cifar10")
    assert (train.source, len(train), len(test)) == ("CIFAR-10", 20, 4)
    assert len(inline) == 1
    assert (folder / "data_batch_3.damaged").exists() == (start == "damaged file")


# --- where something is wrong: a clear message, nothing lost


def test_network_that_hangs(monkeypatch, inline, falls_back):
    """A server that never answers; without the limit on silence this would not end."""
    monkeypatch.setattr(download, "SOCKET_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        assert "timed out" in falls_back()


def test_download_that_never_ends_is_stopped(monkeypatch, falls_back):
    monkeypatch.setattr(download, "CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(download, "DOWNLOAD_SECONDS", {"mnist": 0.5})
    start = time.monotonic()
    assert "not finished after 0.5 seconds" in falls_back()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        ("print('no route to it'); raise SystemExit(1)", "failed: no route to it"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(3)", "exit status 3"),
        ("pass", "what came does not match its checksum"),
    ],
)
def test_child_that_breaks_says_why(child, reason, monkeypatch, falls_back):
    monkeypatch.setattr(download, "CHILD", child)
    assert reason in falls_back()


def test_failed_download_is_remembered_and_forgotten(tiny, inline, falls_back):
    notice = falls_back()
    for words in ("refused", "MNIST/raw/train-images-idx3-ubyte.gz", "course doctor"):
        assert words in notice
    notice = falls_back()
    assert "refused" in notice and "(0 minutes ago)" in notice and len(inline) == 1
    note = tiny.root / ".mnist.failed"
    old = time.time() - download.RETRY_SECONDS - 1
    os.utime(note, (old, old))
    for _ in range(2):
        falls_back()
        assert len(inline) == 2
    data.forget_failed_downloads()
    assert not note.exists()
    falls_back()
    assert len(inline) == 3


def test_failed_download_is_remembered_without_a_note(inline, monkeypatch, falls_back):
    monkeypatch.setattr(files, "write_atomic", no_space)
    falls_back()
    falls_back()
    assert len(inline) == 1
    data.forget_failed_downloads()
    falls_back()
    assert len(inline) == 2


def test_archives_put_there_after_a_failure_are_used_at_once(tiny, inline, falls_back):
    falls_back()
    tiny.put(tiny.packed)
    tiny.assert_loads()


@pytest.mark.parametrize(("i", "zeros"), [(0, 0), (1, 5)])  # the second has the right size
def test_damaged_file_is_kept_aside_and_unpacked_again(i, zeros, tiny, inline, capsys):
    name = NAMES[i].removesuffix(".gz")
    damaged = tiny.plain[name][:-5] + bytes(zeros)
    tiny.put({**tiny.plain, **tiny.packed, name: damaged})
    tiny.assert_loads()
    tiny.assert_complete()
    assert (tiny.raw / f"{name}.damaged").read_bytes() == damaged
    assert f"{name} was damaged; it is kept as {name}.damaged." in capsys.readouterr().out


def test_damaged_files_never_overwrite_each_other(tiny, inline):
    name = NAMES[0][:-3]
    for attempt in range(3):
        tiny.put({**tiny.plain, **tiny.packed, name: bytes([attempt])})
        tiny.assert_loads()
    kept = read(tiny.raw, [f"{name}.damaged{number}" for number in ("", "2", "3")])
    assert list(kept.values()) == [b"\0", b"\1", b"\2"]


def test_corrupt_archive_is_kept_aside_and_only_it_is_downloaded_again(
    tiny, server, inline, monkeypatch, falls_back
):
    (address, requests), name = server, NAMES[2]
    corrupt = tiny.packed[name][:-7] + b"garbage"
    tiny.put(tiny.packed | {name: corrupt})
    assert f"{name} was damaged; it is kept as {name}.damaged" in falls_back()  # no network
    expected = tiny.packed | {f"{name}.damaged": corrupt}
    del expected[name]
    assert read(tiny.raw, expected) == expected
    monkeypatch.setattr(MNIST, "mirrors", [address])
    data.forget_failed_downloads()
    tiny.assert_loads()
    assert set(requests) == {name}
    expected[name] = tiny.packed[name]
    assert read(tiny.raw, expected) == expected


def test_corrupt_download_is_refused(tiny, server, inline, monkeypatch, falls_back):
    """What comes must pass its checksum; what came well before it is kept."""
    monkeypatch.setattr(MNIST, "mirrors", [server[0]])
    monkeypatch.setitem(tiny.packed, NAMES[1], b"a login page")
    assert NAMES[1] in falls_back()
    assert listed(tiny.raw) == [NAMES[0][:-3], NAMES[0]]


def test_lock_that_is_never_released(tiny, monkeypatch, falls_back):
    monkeypatch.setattr(download, "DOWNLOAD_SECONDS", {"mnist": -59.8})  # a wait of 0.2 s
    tiny.root.mkdir()
    with FileLock(tiny.root / ".mnist.lock"):
        assert "mnist.lock" in falls_back()


def test_full_disk(monkeypatch, falls_back):
    monkeypatch.setattr("tempfile.TemporaryDirectory", no_space)
    assert "No space left on device" in falls_back()


def test_data_directory_that_is_a_file(tiny, falls_back):
    tiny.root.write_text("not a folder")
    falls_back()
    assert tiny.root.read_text() == "not a folder"


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_nothing_stands_in_for_the_others(monkeypatch, inline, name):
    tiny_cifar(monkeypatch)
    tiny_svhn(monkeypatch)
    archives = {"cifar10": "cifar-10-python.tar.gz", "svhn": "train_32x32.mat, test_32x32.mat"}
    for _ in range(2):
        with pytest.raises(DataUnavailable) as caught:
            data.load(name)
        wanted = (str(files.data_dir()), archives[name], "refused", "COURSE_DATA", "load_folder")
        assert all(words in str(caught.value) for words in wanted), caught.value
    assert len(inline) == 1


# --- a data directory that cannot be written


@pytest.fixture
def read_only(tiny, monkeypatch):
    """Tests may run as root, whom no permission stops: the answer is given here."""
    writable = download.writable
    answer = lambda folder: folder != tiny.root and writable(folder)  # noqa: E731
    monkeypatch.setattr(download, "writable", answer)
    return tiny


def test_writable(tmp_path, monkeypatch):
    new = tmp_path / "not" / "there" / "yet"
    assert download.writable(new)
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert not download.writable(tmp_path) and not download.writable(new)


def test_read_only_with_archives_unpacks_into_the_cache(read_only, inline, monkeypatch):
    read_only.put(read_only.packed)
    before = read_only.holds()
    read_only.assert_loads()
    read_only.assert_loads()
    assert read_only.holds() == before and len(inline) == 1
    assert listed(files.cache_dir() / "unpacked" / "MNIST" / "raw") == sorted(read_only.plain)


@pytest.mark.parametrize("names", [[], NAMES[:2], NAMES])
def test_read_only_and_incomplete(read_only, inline, falls_back, names):
    contents = {name: read_only.packed[name] for name in names}
    if names:
        contents[NAMES[0]] = b"damaged"
    read_only.put(contents)
    before = read_only.holds()
    notice = falls_back()
    assert "cannot be written" in notice
    assert not names or f"{read_only.raw / NAMES[0]} is damaged" in notice
    assert read_only.holds() == before and not inline


# --- files in the wrong place


@pytest.mark.parametrize(
    "spot", ["", "raw", "MNIST", "mnist", "mnist/raw", "MNIST/MNIST/raw", "data/MNIST/raw"]
)
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_wrong_layout_is_named(tiny, inline, falls_back, spot, kind):
    contents = getattr(tiny, kind)
    tiny.put(contents, tiny.root / spot)
    before = tiny.holds()
    notice = falls_back().replace(" ", "")
    for name in contents:
        assert f"{tiny.root / spot / name}belongsat{tiny.raw / name}" in notice
    assert not inline and tiny.holds() == before


def test_names_with_a_dot_are_named(tiny, inline, falls_back):
    tiny.put({name.replace("-idx", ".idx"): content for name, content in tiny.plain.items()})
    notice = falls_back().replace("  ", " ")
    here = tiny.raw / "train-images-idx3-ubyte"
    assert f"train-images.idx3-ubyte belongs at {here}" in notice


def test_fashion_mnist_is_not_taken_for_mnist(tiny, inline, falls_back):
    tiny.put(tiny.packed, tiny.root / "FashionMNIST" / "raw")
    assert "belongs" not in falls_back()


def test_cifar10_in_the_wrong_place_is_named(monkeypatch, inline):
    _, archive, _ = tiny_cifar(monkeypatch)
    there = files.data_dir() / "cifar" / CIFAR10.filename
    there.parent.mkdir(parents=True)
    there.write_bytes(archive)
    with pytest.raises(DataUnavailable) as caught:
        data.load("cifar10")
    here = files.data_dir() / CIFAR10.filename
    assert str(caught.value) == f"{there} belongs at {here}: move it there."
