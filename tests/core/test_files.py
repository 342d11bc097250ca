"""Folders from the environment, and files that are whole or not there."""

import os
import stat
import subprocess
import sys

import pytest

from course_utils.core import files

FOLDERS = {
    "COURSE_DATA": files.data_dir,
    "COURSE_CACHE": files.cache_dir,
    "COURSE_STATE": files.state_dir,
    "COURSE_LECTURES": files.lectures_dir,
    "COURSE_RESULTS": files.results_dir,
}


@pytest.fixture(autouse=True)
def env(monkeypatch):
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_import_is_light():
    """So that ``course doctor`` starts where packages are missing."""
    code = "import sys, course_utils.core.files; print({'torch', 'platformdirs'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_root_is_the_clone():
    assert (files.ROOT / "course_utils" / "core" / "files.py").samefile(files.__file__)


@pytest.mark.parametrize("variable, folder", FOLDERS.items())
def test_folders_from_the_environment(variable, folder, tmp_path, monkeypatch, env):
    monkeypatch.chdir(tmp_path)
    for home in ("HOME", "USERPROFILE"):
        env(home, str(tmp_path))
    for value in (f"{tmp_path}/a/../mine", "mine", "~/mine"):
        env(variable, value)
        assert folder() == tmp_path.resolve() / "mine"
    assert not folder().exists()  # asking makes nothing


def test_folders_otherwise():
    *own, lectures, results = [folder() for folder in FOLDERS.values()]
    assert len(set(own)) == 3
    for folder in own:
        assert folder.is_absolute() and "adversarial-course" in str(folder)
    assert not own[2].is_relative_to(own[1])  # emptying the cache loses no progress
    assert (lectures, results) == (files.ROOT / "lectures", files.ROOT / "results")


# --- write_atomic


@pytest.mark.parametrize(
    "content, found",
    [("ε = 0.3\n", "ε = 0.3\n".encode()), (b"\x00\xff\r\n", b"\x00\xff\r\n"), ("", b"")],
)
def test_write_makes_folders_and_replaces(content, found, tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    for _ in range(2):
        files.write_atomic(path, content)
        assert path.read_bytes() == found
    files.write_atomic(str(path), b"other")
    assert path.read_bytes() == b"other"
    assert os.listdir(path.parent) == ["file.json"]


@pytest.fixture
def old(tmp_path):
    """A file that a failed write must leave as it is, alone in its folder."""
    path = tmp_path / "file"
    path.write_text("old")
    yield path
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["replace", "chmod", "fdopen"])
def test_a_crash_leaves_the_old_file_and_nothing_else(call, error, old, monkeypatch):
    def crash(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(os, call, crash)
        files.write_atomic(old, "new")


def test_content_of_a_wrong_type_leaves_the_old_file(old):
    with pytest.raises(TypeError):
        files.write_atomic(old, {"a": 1})


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        files.write_atomic(tmp_path / "file", "x")
        assert os.umask(mask) == mask  # left as found
    finally:
        os.umask(before)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
