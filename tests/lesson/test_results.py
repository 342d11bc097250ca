"""Tables: paper, recorded full run, this run; and the page made of all of them."""

import json
import re
import subprocess
from math import inf, nan

import pytest
import torch

from course_utils.core import files, runtime
from course_utils.lesson import results

CLEAN = dict(key="clean", label="clean", paper=99.5, where="table 1", why="another network")
SIZE = dict(key="size", label="size", paper="big", where="page 2")
TOY = dict(title="A toy table", source="Nobody, *Nothing*, table 1", unit="%", digits=1)
TOY |= {"rows": [CLEAN, dict(key="robust", label="robust"), SIZE]}
PLAIN = dict(title="Another", source="Nobody")
PLAIN |= {"rows": [dict(key="p", label="p", paper=0, where="page 3")]}
PAPERS = {"01-toy": TOY, "02-plain": PLAIN}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Papers and a results folder of the test's own."""
    (tmp_path / "papers.json").write_text(json.dumps(PAPERS))
    monkeypatch.setattr(results, "PAPERS", tmp_path / "papers.json")
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    for name in ("COURSE_SCALE", "COURSE_RECORD", "COURSE_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "results"


@pytest.fixture
def env(monkeypatch):
    """``env("full", "1")``: this scale, and whether to record."""

    def change(scale, record=""):
        monkeypatch.setenv("COURSE_SCALE", scale)
        monkeypatch.setenv("COURSE_RECORD", record)

    return change


@pytest.fixture
def record(env, monkeypatch):
    env("full", "1")
    monkeypatch.setenv("COURSE_COMMIT", "abc1234")


def toy(data="MNIST", **yours):
    return results.table("01-toy", yours, data)


def rows(text: str) -> list[str]:
    """The cells of Markdown tables."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return ["|".join(map(str.strip, cells)) for cells in lines]


# --- one table


def test_three_columns_before_anything_is_recorded():
    text = toy("embedded digits", clean=[98.0, 99.0, 100.0], size=3)._repr_markdown_()
    assert rows(text) == [
        "|paper|recorded full run|your run (quick, embedded digits)",
        ":--|--:|--:|--:",
        "clean|99.5 %|–|99.0 ± 1.0 %",
        "robust|–|–|–",
        "size|big|–|3.0 %",
    ]
    assert text.startswith("**A toy table** (Nobody, *Nothing*, table 1)\n\n|")
    assert "No recorded run yet: `course run --scale full --record 01`" in text


def test_three_columns_with_a_recorded_run(record, env):
    toy(clean=[98.0, 99.0], robust=[50.0])
    env("quick")
    text = toy(clean=97.25)._repr_markdown_()
    assert rows(text)[2:4] == ["clean|99.5 %|98.5 ± 0.7 %|97.2 %", "robust|–|50.0 %|–"]
    assert "No recorded run" not in text


# fmt: off
@pytest.mark.parametrize("value, cell", [
    (None, "–"), ("small", "small"), (0, "0.00"), (0.996, "1.00"), ([0.5], "0.50"),
    ([1.0, 2.0, 3.0], "2.00 ± 1.00"), ([1, 2], "1.50 ± 0.71"), (inf, "∞"), ([inf, inf], "∞"),
    ([3.0, inf, 5.0], "∞ in 1 of 3"), ([3.0, nan], "nan in 1 of 2"),
])
# fmt: on
def test_a_cell(value, cell):
    assert results.show_value(value, {}) == cell


def test_a_cell_with_digits_and_unit():
    cells = [results.show_value(value, TOY) for value in (1, [2.0, 3.0], inf, "few", None)]
    assert cells == ["1.0 %", "2.5 ± 0.7 %", "∞", "few", "–"]


def test_unknown_tables_and_rows_are_refused():
    with pytest.raises(ValueError, match="table_id is '03-x'; papers.json knows 01-toy, 02-plain"):
        results.table("03-x", {}, "MNIST")
    words = r"yours has rows \['a', 'b'\] that table '01-toy' .*add them there"
    with pytest.raises(ValueError, match=words):
        toy(b=1.0, clean=2.0, a=3.0)


@pytest.mark.parametrize(
    "value", [torch.tensor(1.0), torch.ones(2), [torch.tensor(1.0)], [], "99", None, (1.0, 2.0)]
)
def test_a_value_that_could_not_be_recorded_is_refused_at_once(value):
    with pytest.raises(ValueError, match=r"yours\['clean'\] is .*\.item\(\) or \.tolist\(\)"):
        toy(clean=value)


# --- recording


@pytest.mark.parametrize(
    "scale, wanted, stored",
    [("quick", "", []), ("quick", "1", []), ("full", "", []), ("full", "1", ["01-toy.json"])],
)
def test_only_a_full_run_is_recorded_and_only_when_asked(scale, wanted, stored, own, env):
    env(scale, wanted)
    toy(clean=99.0)
    assert [path.name for path in own.glob("*")] == stored


def test_the_record_holds_values_and_provenance(record, own):
    values = {"clean": [98.5, 99.0], "robust": 1 / 3, "size": [4.0, inf]}
    toy(**values)
    text = (own / "01-toy.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text)["values"] == values  # every digit
    found = results.recorded("01-toy")["provenance"]
    assert list(found) == "scale data device seconds date commit python torch".split()
    known = {"scale": "full", "data": "MNIST", "commit": "abc1234", "torch": torch.__version__}
    assert known.items() <= found.items() and found["device"] == runtime.device_name()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]) and found["seconds"] >= 0


def test_what_cannot_be_stored_is_printed_and_the_lecture_goes_on(record, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_RESULTS", "/dev/null/results")
    assert toy(clean=[1 / 3]).full == {"clean": [1 / 3]}
    line, *text = capsys.readouterr().out.splitlines()
    assert line.startswith("✘ /dev/null/results/01-toy.json could not be written")
    assert json.loads("\n".join(text))["values"] == {"clean": [1 / 3]}


def test_commit_of_the_clone(tmp_path, monkeypatch):
    def git(*arguments):
        own = "-c user.name=a -c user.email=a@b -c commit.gpgsign=false".split()
        return subprocess.check_output(["git", *own, *arguments], cwd=tmp_path, text=True)

    code, record = tmp_path / "code.py", tmp_path / "results" / "01-toy.json"
    record.parent.mkdir()
    code.write_text("1")
    record.write_text("{}")
    for command in ("init -q", "add .", "commit -qm first", "tag v1"):
        git(*command.split())
    monkeypatch.setattr(files, "ROOT", tmp_path)
    head = git("rev-parse", "HEAD")
    assert head.startswith(results.commit()) and len(results.commit()) >= 7
    record.write_text("new")  # what a recording run writes itself
    (tmp_path / "untracked.txt").write_text("")
    assert head.startswith(results.commit())
    code.write_text("2")
    assert results.commit().endswith("-dirty")


def test_commit_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert results.commit() == "unknown"


# --- full or recorded?


def test_at_full_scale_a_claim_is_judged_on_its_own_run(env):
    env("full")
    table = toy(clean=99.0)
    assert table.full == {"clean": 99.0} and not table.is_recorded


def test_at_quick_scale_a_claim_is_judged_on_the_recorded_run(record, env):
    toy(clean=99.0)
    env("quick", "1")
    table = toy(clean=90.0)
    assert (table.full, table.yours) == ({"clean": 99.0}, {"clean": 90.0}) and table.is_recorded


def test_without_a_recorded_run_the_cure_is_named():
    cure = "make one with `course run --scale full --record 01`"
    with pytest.raises(LookupError, match=f"no recorded full run of table '01-toy'; {cure}"):
        _ = toy(clean=90.0).full


# --- the page


def test_the_page_shows_every_table_with_its_gaps(record):
    toy(clean=[98.0, 99.0], robust=50.0)
    page = results.page()
    assert re.findall("^## .*", page, re.M) == ["## 01-toy: A toy table", "## 02-plain: Another"]
    head = ["|paper|recorded|gap|why", ":--|--:|--:|--:|:--"]
    clean = "clean|99.5 %|98.5 ± 0.7 %|-1.0|another network"
    toy_rows = [clean, "robust|–|50.0 %|–|", "size|big|–|–|"]
    assert rows(page) == [*head, *toy_rows, *head, "p|0.00|–|–|"]
    assert "Source: Nobody, *Nothing*, table 1." in page
    assert "\n\nfull scale on MNIST; " in page
    assert f"PyTorch {torch.__version__}; commit abc1234; " in page
    assert results.page() == page


def test_the_page_stands_a_run_without_a_finite_value(record):
    results.table("02-plain", {"p": [1.0, inf]}, "MNIST")
    assert rows(results.page())[-1] == "p|0.00|∞ in 1 of 2|–|"


# --- what the repository holds


@pytest.fixture
def real(monkeypatch):
    """The repository's own papers and results."""
    monkeypatch.undo()
    monkeypatch.delenv("COURSE_RESULTS", raising=False)


def test_the_page_in_the_repository_is_fresh(real):
    page = files.ROOT / "results" / "README.md"
    assert page.read_text(encoding="utf-8") == results.page(), "run `course results`"


def test_every_recorded_run_belongs_to_a_table(real):
    known = results.tables()
    for path in set((files.ROOT / "results").glob("*.json")) - {results.PAPERS}:
        assert path.stem in known
        found = results.recorded(path.stem)
        assert found["values"].keys() <= {row["key"] for row in known[path.stem]["rows"]}
        run = found["provenance"]
        assert run["scale"] == "full" and run["commit"] != "unknown"


def test_papers_schema(real):
    def once(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"twice: {keys}"
        return dict(pairs)

    tables = json.loads(results.PAPERS.read_text(encoding="utf-8"), object_pairs_hook=once)
    assert tables == results.tables()
    numbers = [name[:2] for name in tables]
    assert numbers == sorted(numbers)  # in the order of the lectures
    for name, spec in tables.items():
        assert re.fullmatch(r"\d\d-[a-z0-9-]+", name)
        assert spec.keys() <= {"title", "source", "unit", "digits", "series", "rows"}
        # the curves of a figure, point by point
        assert len({len(values) for values in spec.get("series", {}).values()}) <= 1
        assert spec["title"] and spec["source"]
        assert isinstance(spec.get("digits", 2), int)
        keys = [row["key"] for row in spec["rows"]]
        assert keys and len(set(keys)) == len(keys)
        for row in spec["rows"]:
            assert row.keys() <= {"key", "label", "paper", "where", "why"}
            assert row["label"] and "|" not in row["label"] + row.get("why", "")  # it would end a cell
            assert isinstance(row.get("paper", 0), int | float | str)
            assert row.get("where") or "paper" not in row, f"{row}: where does the number stand?"
