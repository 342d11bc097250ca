"""Scale, device, seeds, folders and files."""

import os
import stat

import pytest
import torch

from course_utils import runtime


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("SCALE", "DEVICE", "DATA", "CACHE", "STATE"):
        monkeypatch.delenv(f"COURSE_{name}", raising=False)


@pytest.mark.parametrize(("value", "scale", "epochs"), [(None, "quick", 3), ("", "quick", 3), ("quick", "quick", 3), ("full", "full", 10)])
def test_scale_picks_the_number(value, scale, epochs, monkeypatch):
    if value is not None:
        monkeypatch.setenv("COURSE_SCALE", value)
    assert runtime.scale() == scale
    assert runtime.pick(quick=3, full=10) == epochs


@pytest.mark.parametrize("value", ["Full", "fast", "1"])
def test_an_unknown_scale_names_the_choices(value, monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", value)
    for ask in (runtime.scale, lambda: runtime.pick(quick=1, full=2)):
        with pytest.raises(ValueError, match=f"COURSE_SCALE is '{value}'.*quick, full.*unset"):
            ask()


def test_pick_has_no_order_to_confuse():
    with pytest.raises(TypeError):
        runtime.pick(3, 10)


def test_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")


@pytest.mark.parametrize("value", ["gpu", "cuda:99", "cpu cuda"])
def test_a_device_that_is_not_there_is_named(value, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", value)
    with pytest.raises(ValueError, match=f"COURSE_DEVICE is '{value}'.*unset it"):
        runtime.device()


@pytest.mark.parametrize(("cuda", "mps", "kind"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_without_a_wish_the_best_device_is_taken(cuda, mps, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert runtime.device().type == kind


def test_a_generator_is_its_seed():
    draw = lambda seed: torch.rand(5, generator=runtime.generator(seed))  # noqa: E731
    before = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_gives_the_random_state_back():
    def draw(seed):
        with runtime.seeded(seed):
            return torch.rand(5)

    before = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    with pytest.raises(KeyError), runtime.seeded(0):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


FOLDERS = {"COURSE_DATA": runtime.data_dir, "COURSE_CACHE": runtime.cache_dir, "COURSE_STATE": runtime.state_dir}


@pytest.mark.parametrize(("variable", "folder"), FOLDERS.items())
def test_folders_from_the_environment(variable, folder, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, str(tmp_path / "a" / ".." / "b"))
    assert folder() == tmp_path.resolve() / "b"
    assert not folder().exists()  # asking makes nothing
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "here")
    assert folder() == tmp_path.resolve() / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(variable, "~/mine")
    assert folder() == tmp_path.resolve() / "mine"


def test_folders_of_the_user_otherwise():
    found = [folder() for folder in FOLDERS.values()]
    assert len(set(found)) == 3
    assert all(folder.is_absolute() and "adversarial-course" in str(folder) for folder in found)
    assert not runtime.state_dir().is_relative_to(runtime.cache_dir())  # emptying the cache loses no progress


# -------------------------------------------------------------------------------------------------------- write_atomic


@pytest.mark.parametrize(("content", "found"), [("ε = 0.3\n", "ε = 0.3\n".encode()), (b"\x00\xff\r\n", b"\x00\xff\r\n"), ("", b"")])
def test_write_makes_folders_and_replaces(content, found, tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    for _ in range(2):
        runtime.write_atomic(path, content)
        assert path.read_bytes() == found
    runtime.write_atomic(str(path), b"other")
    assert path.read_bytes() == b"other"
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["replace", "chmod", "fdopen"])
def test_a_crash_leaves_the_old_file_and_nothing_else(call, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def crash(*_):
        raise error

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(type(error)):
        runtime.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_of_a_wrong_type_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError):
        runtime.write_atomic(path, {"a": 1})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        runtime.write_atomic(tmp_path / "file", "x")
        assert os.umask(mask) == mask  # left as found
    finally:
        os.umask(before)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


# --------------------------------------------------------------------------------------------------------------- setup


def test_setup_says_where_it_runs_and_seeds(capsys, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    with torch.random.fork_rng(devices=[]):
        assert runtime.setup() == torch.device("cpu")
        first = torch.rand(3)
        runtime.setup()
        assert torch.equal(torch.rand(3), first)
    line, _ = capsys.readouterr().out.splitlines()
    assert line.startswith("quick scale on cpu, ")
    assert torch.__version__ in line


def test_versions_and_time():
    assert {"python", "torch"} <= runtime.versions().keys()
    assert 0 < runtime.elapsed() < runtime.elapsed()
    assert (runtime.ROOT / "course_utils" / "runtime.py").exists()
