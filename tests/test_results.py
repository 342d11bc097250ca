"""Tables: paper, recorded full run, this run; and the page made of all of them."""

import json
import math
import re
import subprocess

import pytest
import torch

from course_utils import results, runtime

PAPERS = {
    "01-toy": {
        "title": "A toy table",
        "source": "Nobody, *Nothing*, table 1",
        "unit": "%",
        "digits": 1,
        "rows": [
            {"key": "clean", "label": "clean", "paper": 99.5, "where": "table 1", "why": "another network"},
            {"key": "robust", "label": "robust"},
            {"key": "size", "label": "size", "paper": "big", "where": "page 2"},
        ],
    },
    "02-plain": {"title": "Another", "source": "Nobody", "rows": [{"key": "p", "label": "p", "paper": 0, "where": "page 3"}]},
}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Papers and results of the test's own; nothing recorded yet."""
    (tmp_path / "papers.json").write_text(json.dumps(PAPERS))
    monkeypatch.setattr(results, "PAPERS", tmp_path / "papers.json")
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    for name in ("COURSE_SCALE", "COURSE_RECORD", "COURSE_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "results"


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", "full")


@pytest.fixture
def record(full, monkeypatch):
    monkeypatch.setenv("COURSE_RECORD", "1")


def rows(table) -> list[list[str]]:
    """The cells of a Markdown table."""
    text = table if isinstance(table, str) else table._repr_markdown_()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


# ------------------------------------------------------------------------------------------------------------ one table


def test_three_columns_before_anything_is_recorded():
    table = results.table("01-toy", {"clean": [98.0, 99.0, 100.0], "size": 3}, "embedded digits")
    assert rows(table) == [
        ["", "paper", "recorded full run", "your run (quick, embedded digits)"],
        [":--", "--:", "--:", "--:"],
        ["clean", "99.5 %", "–", "99.0 ± 1.0 %"],
        ["robust", "–", "–", "–"],
        ["size", "big", "–", "3.0 %"],
    ]
    text = table._repr_markdown_()
    assert text.startswith("**A toy table** (Nobody, *Nothing*, table 1)\n\n|")
    assert "No recorded run yet: `course run --scale full --record 01`" in text


def test_three_columns_with_a_recorded_run(record, monkeypatch):
    results.table("01-toy", {"clean": [98.0, 99.0], "robust": [50.0]}, "MNIST")
    monkeypatch.delenv("COURSE_RECORD")
    monkeypatch.setenv("COURSE_SCALE", "quick")
    table = results.table("01-toy", {"clean": 97.25}, "MNIST")
    assert rows(table)[2:4] == [["clean", "99.5 %", "98.5 ± 0.7 %", "97.2 %"], ["robust", "–", "50.0 %", "–"]]
    assert "No recorded run" not in table._repr_markdown_()


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "–"),
        ("small", "small"),
        (0, "0.00"),
        (0.996, "1.00"),
        ([0.5], "0.50"),
        ([1.0, 2.0, 3.0], "2.00 ± 1.00"),
        ([1, 2], "1.50 ± 0.71"),
        (math.inf, "∞"),
        ([math.inf, math.inf], "∞"),
        ([3.0, math.inf, 5.0], "∞ in 1 of 3"),
        ([3.0, math.nan], "nan in 1 of 2"),
    ],
)
def test_a_cell(value, cell):
    assert results.show_value(value, {}) == cell


def test_unknown_tables_and_rows_are_refused():
    with pytest.raises(ValueError, match="table_id is '03-x'; papers.json knows 01-toy, 02-plain"):
        results.table("03-x", {}, "MNIST")
    with pytest.raises(ValueError, match=r"yours has rows \['a', 'b'\] that table '01-toy' .*add them there"):
        results.table("01-toy", {"b": 1.0, "clean": 2.0, "a": 3.0}, "MNIST")


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(2), [torch.tensor(1.0)], [], "99", None, (1.0, 2.0)])
def test_a_value_that_could_not_be_recorded_is_refused_at_once(value, own):
    with pytest.raises(ValueError, match=r"yours\['clean'\] is .*\.item\(\) or \.tolist\(\)"):
        results.table("01-toy", {"clean": value}, "MNIST")


# ------------------------------------------------------------------------------------------------------------ recording


@pytest.mark.parametrize(
    ("scale", "wanted", "stored"), [("quick", "", []), ("quick", "1", []), ("full", "", []), ("full", "1", ["01-toy.json"])]
)
def test_only_a_full_run_is_recorded_and_only_when_asked(scale, wanted, stored, own, monkeypatch):
    monkeypatch.setenv("COURSE_SCALE", scale)
    monkeypatch.setenv("COURSE_RECORD", wanted)
    results.table("01-toy", {"clean": 99.0}, "MNIST")
    assert [path.name for path in own.glob("*")] == stored


def test_the_record_holds_values_and_provenance(record, own, monkeypatch):
    monkeypatch.setenv("COURSE_COMMIT", "abc1234")
    values = {"clean": [98.5, 99.0], "robust": 1 / 3, "size": [4.0, math.inf]}
    results.table("01-toy", values, "MNIST")
    text = (own / "01-toy.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text)["values"] == values  # every digit
    provenance = results.recorded("01-toy")["provenance"]
    assert provenance.keys() >= {"scale", "data", "device", "seconds", "date", "commit", "python", "torch"}
    assert (provenance["scale"], provenance["data"], provenance["commit"]) == ("full", "MNIST", "abc1234")
    assert provenance["device"] == runtime.device_name()
    assert provenance["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", provenance["date"])
    assert provenance["seconds"] >= 0


def git(folder, *arguments):
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_the_clone(tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    (clone / "results").mkdir(parents=True)
    (clone / "code.py").write_text("1")
    (clone / "results" / "01-toy.json").write_text("{}")
    git(tmp_path, "init", "-q", "clone")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "first")
    git(clone, "tag", "v1")
    monkeypatch.setattr(runtime, "ROOT", clone)
    head = git(clone, "rev-parse", "HEAD")
    assert len(results._commit()) >= 7
    assert head.startswith(results._commit())
    (clone / "results" / "01-toy.json").write_text("new")  # what a recording run writes itself
    (clone / "untracked.txt").write_text("")
    assert head.startswith(results._commit())
    (clone / "code.py").write_text("2")
    assert results._commit().endswith("-dirty")


def test_commit_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results._commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert results._commit() == "unknown"


# ---------------------------------------------------------------------------------------------------- full or recorded?


def test_at_full_scale_a_claim_is_judged_on_its_own_run(full):
    table = results.table("01-toy", {"clean": 99.0}, "MNIST")
    assert table.full == {"clean": 99.0}
    assert not table.is_recorded


def test_at_quick_scale_a_claim_is_judged_on_the_recorded_run(record, monkeypatch):
    results.table("01-toy", {"clean": 99.0}, "MNIST")
    monkeypatch.setenv("COURSE_SCALE", "quick")
    table = results.table("01-toy", {"clean": 90.0}, "MNIST")
    assert table.full == {"clean": 99.0}
    assert table.yours == {"clean": 90.0}
    assert table.is_recorded


def test_without_a_recorded_run_the_cure_is_named():
    table = results.table("01-toy", {"clean": 90.0}, "MNIST")
    with pytest.raises(LookupError, match="no recorded full run of table '01-toy'; make one with `course run --scale full --record 01`"):
        _ = table.full


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_shows_every_table_with_its_gaps(record, monkeypatch):
    monkeypatch.setenv("COURSE_COMMIT", "abc1234")
    results.table("01-toy", {"clean": [98.0, 99.0], "robust": 50.0}, "MNIST")
    page = results.page()
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## 01-toy: A toy table", "## 02-plain: Another"]
    assert rows(page) == [
        ["", "paper", "recorded", "gap", "why"],
        [":--", "--:", "--:", "--:", ":--"],
        ["clean", "99.5 %", "98.5 ± 0.7 %", "-1.0", "another network"],
        ["robust", "–", "50.0 %", "–", ""],
        ["size", "big", "–", "–", ""],
        ["", "paper", "recorded", "gap", "why"],
        [":--", "--:", "--:", "--:", ":--"],
        ["p", "0.00", "–", "–", ""],
    ]
    assert "full scale on MNIST; " in page
    assert "commit abc1234" in page
    assert results.page() == page


def test_the_page_stands_a_run_without_a_finite_value(record):
    results.table("02-plain", {"p": [1.0, math.inf]}, "MNIST")
    assert rows(results.page())[-1] == ["p", "0.00", "∞ in 1 of 2", "–", ""]


# ----------------------------------------------------------------------------------------- what the repository holds


@pytest.fixture
def real(monkeypatch):
    """The repository's own papers and results."""
    monkeypatch.undo()
    monkeypatch.delenv("COURSE_RESULTS", raising=False)


def test_the_page_in_the_repository_is_fresh(real):
    page = runtime.ROOT / "results" / "README.md"
    assert page.exists(), "run `course results`"
    assert page.read_text(encoding="utf-8") == results.page(), "run `course results`"


def test_every_recorded_run_belongs_to_a_table(real):
    known = results.tables()
    for path in (runtime.ROOT / "results").glob("*.json"):
        assert path.stem in known
        found = results.recorded(path.stem)
        assert found["values"].keys() <= {row["key"] for row in known[path.stem]["rows"]}
        assert found["provenance"]["scale"] == "full"
        assert found["provenance"]["commit"] != "unknown"


def test_papers_schema(real):
    def once(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"twice: {keys}"
        return dict(pairs)

    tables = json.loads(results.PAPERS.read_text(encoding="utf-8"), object_pairs_hook=once)
    assert tables == results.tables()
    assert list(tables) == sorted(tables, key=lambda table_id: table_id[:2])  # in the order of the lectures
    for table_id, spec in tables.items():
        assert re.fullmatch(r"\d\d-[a-z0-9-]+", table_id)
        assert spec.keys() <= {"title", "source", "unit", "digits", "series", "rows"}
        assert len({len(values) for values in spec.get("series", {}).values()}) <= 1  # the curves of a figure, point by point
        assert spec["title"]
        assert spec["source"]
        assert isinstance(spec.get("digits", 2), int)
        keys = [row["key"] for row in spec["rows"]]
        assert keys
        assert len(set(keys)) == len(keys)
        for row in spec["rows"]:
            assert row.keys() <= {"key", "label", "paper", "where", "why"}
            assert row["label"]
            assert "|" not in row["label"] + row.get("why", "")  # it would end a cell
            assert isinstance(row.get("paper", 0), int | float | str)
            assert not ("paper" in row and not row.get("where")), f"{table_id} {row['key']}: where does the paper's number stand?"
