"""Folders from the environment, and files that are whole or not there."""

import io
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.core import files

settings.register_profile("course", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("course")

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


def test_what_a_killed_write_left_is_swept_at_the_next_one(tmp_path):
    """Only what this file's own writes left, and not what another process writes just now."""
    path = tmp_path / "a[1].json"
    code = (
        "import os, sys; from course_utils.core import files; os.replace = lambda *_: os._exit(9)"
    )
    code += "; files.write_atomic(sys.argv[1], 'half')"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=files.ROOT)
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".a[1].json.mine", ".a1.json.abcdefgh", "a[1].json.old")]
    for other in others:
        other.write_text("")
    for place in (left, *others):
        os.utime(place, (1, 1))
    fresh = tmp_path / f"{left.name[:-1]}x"
    fresh.write_text("being written")
    files.write_atomic(path, "new")
    assert {*tmp_path.iterdir()} == {path, fresh, *others}


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


# --- values of the variables

letters = st.text("abcxyzÄéλ漢.-_ ()'&+=#~0", min_size=1, max_size=12)
names = letters.map(lambda text: text.strip(" '~.") or "x")
relative = st.lists(names, min_size=1, max_size=3).map("/".join)


@contextmanager
def world(tmp_path, **variables):
    """Starts in ``tmp_path``, which is the home, too; knows these variables alone."""
    before = os.getcwd()
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", home | variables)
        os.chdir(tmp_path)
        yield patch
    os.chdir(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place").resolve()


@given(variable=st.sampled_from(sorted(FOLDERS)), name=relative)
def test_a_child_elsewhere_finds_the_same_folder(variable, name, place):
    home = {"HOME": str(place), "USERPROFILE": str(place)}
    for value in (name, f"./{name}", f"~/{name}", f"{place}/{name}", f"x/../{name}/"):
        with world(place, **{variable: value}):
            found = FOLDERS[variable]()
            inherited = files.environment(OTHER="1")
        assert found == place / name and inherited["OTHER"] == "1"
        with world(Path("/"), **inherited | home):
            assert FOLDERS[variable]() == found


@given(variable=st.sampled_from(sorted(FOLDERS)), name=relative, data=st.data())
def test_what_a_shell_left_in_a_value_is_refused(variable, name, data, place):
    blanks = st.sampled_from([" ", "\t", "\r", "\n", "\r\n", "\xa0", "  "])
    quote = data.draw(st.sampled_from(["'", '"', "`", "“"]))
    blank = data.draw(blanks)
    unread = data.draw(st.sampled_from(["$HOME", "${HOME}", "$(pwd)", "%USERPROFILE%", "%x%"]))
    value = data.draw(
        st.sampled_from(
            [
                *(f"{quote}{name}{quote}", f"{quote}{name}", f"{name}{quote}"),
                *(f"{blank}{name}", f"{name}{blank}", blank, f"~/{name}{blank}"),
                *(f"{unread}/{name}", f"{name}/{unread}", f"{name}\0", f'{name}"/"{name}'),
            ]
        )
    )
    with world(place, **{variable: value}):
        for ask in (FOLDERS[variable], files.environment):
            with pytest.raises(ValueError) as caught:
                ask()
            told = str(caught.value)
            assert told.startswith(f"{variable} is {value!r}; leave out quotes, and blanks")


@pytest.mark.parametrize("name", ["a$", "$", "50%", "100% of 5%", "a%20b%20c", "it's", "$5", "!x!"])
def test_a_rare_name_is_a_name(name, place):
    with world(place, COURSE_DATA=name):
        assert files.data_dir() == place / name


@pytest.mark.parametrize("variable", FOLDERS)
def test_empty_counts_as_unset(variable, place):
    with world(place):
        unset = FOLDERS[variable]()
    with world(place, **{variable: ""}):
        assert FOLDERS[variable]() == unset
        assert not files.environment()[variable]


@pytest.mark.parametrize("value", ["~nobody-of-this-name/data", "~"])
def test_a_home_that_is_not_there_is_named(value, place, nameless):
    with nameless(COURSE_DATA=value), pytest.raises(ValueError) as caught:
        files.data_dir()
    assert str(caught.value).startswith(f"COURSE_DATA is {value!r}, which names no folder here")


def test_a_folder_that_is_gone_is_no_starting_point(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    with world(gone, COURSE_DATA="mine"):
        gone.rmdir()
        with pytest.raises(ValueError, match="COURSE_DATA is 'mine'.* give its full path"):
            files.data_dir()
        os.chdir(tmp_path)


@pytest.fixture
def nameless(tmp_path):
    """A user without name and home, as in a container: ``with nameless(COURSE_DATA=…)``."""
    pwd = pytest.importorskip("pwd", reason="Windows knows a home by other means")

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    @contextmanager
    def start(**variables):
        with world(tmp_path, **variables) as patch:
            patch.setattr(pwd, "getpwuid", unknown)
            patch.setattr(pwd, "getpwnam", unknown)
            del os.environ["HOME"]
            yield

    return start


@pytest.mark.parametrize("variable", ["COURSE_DATA", "COURSE_CACHE", "COURSE_STATE"])
def test_without_a_home_the_variable_is_the_cure(variable, nameless, tmp_path):
    with nameless(), pytest.raises(ValueError, match=f"^{variable} is not set.*no home folder"):
        FOLDERS[variable]()
    with nameless(**{variable: str(tmp_path / "mine")}):
        assert FOLDERS[variable]() == (tmp_path / "mine").resolve()
    with nameless():
        assert files.results_dir() == files.ROOT / "results"
        assert files.environment() == os.environ


def test_a_named_folder_needs_no_default(monkeypatch, env, tmp_path):
    def broken():
        raise AssertionError("asked for")

    monkeypatch.setattr(files, "user_dirs", broken)
    for variable, folder in FOLDERS.items():
        env(variable, str(tmp_path))
        assert folder() == tmp_path.resolve()


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    files.check_writable("--out", tmp_path / "new" / "folder")
    assert not os.listdir(tmp_path / "new" / "folder")


def test_a_folder_that_cannot_be_written_is_named_with_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError) as caught:
            files.check_writable("COURSE_CACHE", place)
        told = str(caught.value)
        assert told.startswith(f"{place} cannot be written (") and "Set COURSE_CACHE to" in told


@pytest.mark.parametrize(
    "number, cure", [(28, "Make room there, or set COURSE_CACHE to"), (5, "Set COURSE_CACHE to")]
)
def test_a_full_disk_is_found_before_it_is_needed(number, cure, tmp_path, monkeypatch):
    """It takes an empty file, and has no room for what is in it."""

    def full(descriptor):
        assert os.fstat(descriptor).st_size == files.TRIAL_BYTES
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=cure):
        files.check_writable("COURSE_CACHE", tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "number, cure", [(28, "Make room there"), (13, "Give yourself the right"), (2, "")]
)
def test_an_error_is_told_with_its_cure(number, cure):
    told = files.in_words(OSError(number, "No", "/there"))
    assert told.startswith(f"[Errno {number}] No: '/there'") and cure in told
    assert bool(cure) == told.endswith("folder.") or "of your own." in told


# --- say


class Strict:
    """A stream with nothing but ``write``, which may name another encoding than its own."""

    def __init__(self, encoding, name=None):
        self.known = encoding
        self.text = ""
        if name:
            self.encoding = name

    def write(self, text):
        text.encode(self.known)
        self.text += text

    def flush(self):
        pass


TEXT = "● ○ ✔ ✘ 1 − 2 – ε ≤ ü"
PLAIN = {
    "utf-8": TEXT,
    "cp1252": "* o + x 1 - 2 – ? ? ü",
    "latin-1": "* o + x 1 - 2 - ? ? ü",
    "ascii": "* o + x 1 - 2 - ? ? ?",
}


@pytest.mark.parametrize("encoding, expected", PLAIN.items())
@pytest.mark.parametrize("error", [False, True])
def test_say_replaces_what_a_stream_does_not_know(encoding, expected, error, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stderr" if error else "stdout", stream)
    files.say(TEXT, error=error)
    assert stream.buffer.getvalue().decode(encoding) == f"{expected}\n"  # flushed


@pytest.mark.parametrize(
    "stream, expected",
    [
        (Strict("utf-8"), TEXT),
        (Strict("ascii"), PLAIN["ascii"]),
        (Strict("cp1252", "cp1252"), PLAIN["cp1252"]),
        (Strict("ascii", "utf-8"), PLAIN["ascii"]),
        (Strict("ascii", "no-such-encoding"), PLAIN["ascii"]),
    ],
)
def test_say_needs_no_more_than_a_write(stream, expected, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    files.say(TEXT)
    assert stream.text == f"{expected}\n"


def test_say_without_any_stream(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    files.say(TEXT)
    files.say(TEXT, error=True)


@given(text=st.text(st.characters(exclude_categories=[])), name=st.sampled_from([*PLAIN]))
def test_say_never_fails_and_keeps_what_is_known(text, name):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=name, newline="\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        files.say(text)
    told = stream.buffer.getvalue().decode(name)
    known = text.encode(name, "ignore").decode(name)
    assert told == f"{text}\n" if known == text else len(told) == len(text) + 1
    assert all(a == b for a, b in zip(text, told, strict=False) if a in known)
