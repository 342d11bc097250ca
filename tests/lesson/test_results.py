"""Tables: paper, recorded full run, this run; and the page made of all of them."""

import json
import re
import subprocess
from importlib.metadata import version
from math import inf, nan, sqrt

import pytest
import torch

from course_utils.core import files, runtime
from course_utils.core.images import DIGITS, Images
from course_utils.lesson import result_tables, results, verdicts

CLEAN = dict(key="clean", label="clean", paper=99.5, where="table 1", why="another network")
SIZE = dict(key="size", label="size", paper="big", where="page 2")
TOY = dict(title="A toy table", source="Nobody, *Nothing*, table 1", unit="%", digits=1)
TOY |= {"rows": [CLEAN, dict(key="robust", label="robust"), SIZE]}
PLAIN = dict(title="Another", source="Nobody")
PLAIN |= {"rows": [dict(key="p", label="p", paper=0, where="page 3")]}
GRID = dict(title="A grid", source="Nobody", unit="%", digits=1, unrecorded="it takes a week")
GRID["matrix"] = {"rows": {"a": "first", "b": "second"}, "columns": {"x": "X", "y_z": "Y and Z"}}
GRID["rows"] = [
    dict(key="a_x", label="first, X", paper=40.0, where="page 4", why="known"),
    dict(key="a_y_z", label="first, Y and Z"),
    dict(key="b_x", label="second, X"),  # b_y_z is absent
    dict(key="alone", label="in no matrix"),
]
PAPERS = {"01-toy": TOY, "02-plain": PLAIN, "03-grid": GRID}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Papers and a results folder of the test's own."""
    (tmp_path / "papers.json").write_text(json.dumps(PAPERS))
    monkeypatch.setattr(results, "PAPERS", tmp_path / "papers.json")
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "results"))
    for name in ("COURSE_SCALE", "COURSE_RECORD", "COURSE_COMMIT", "COURSE_COMMAND"):
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


def store(folder, table_id: str, values: dict, **provenance) -> None:
    """Writes a record as it was before it named seeds, images and so on."""
    old = dict(scale="full", data="MNIST", device="cpu, 1 threads", seconds=25, date="2026-11-20")
    old |= dict(commit="0f65e98", python="3.11.7", torch="2.15.0") | provenance
    folder.mkdir(exist_ok=True)
    (folder / f"{table_id}.json").write_text(json.dumps({"values": values, "provenance": old}))


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
        "size|big|–|3.0 %",
    ]
    assert "About the gaps:\n\n- clean: another network.\n" in text
    assert text.startswith("**A toy table** (Nobody, *Nothing*, table 1)\n\n|")
    assert "No recorded run yet: `course run --scale full --record 01`" in text


def test_three_columns_with_a_recorded_run(record, env):
    toy(clean=[98.0, 99.0], robust=[50.0])
    env("quick")
    text = toy(clean=97.25)._repr_markdown_()
    assert rows(text)[2:4] == ["clean|99.5 %|98.0 to 99.0 %|97.2 %", "robust|–|50.0 %|–"]
    assert "No recorded run" not in text and "<details>" not in text


def test_rows_that_nobody_has_measured_are_folded(record, env):
    toy(clean=99.0)
    env("quick")
    text = toy(size=3)._repr_markdown_()
    assert [row.partition("|")[0] for row in rows(text)[2:]] == ["clean", "size"]
    because = "not recorded, because no full run has been recorded yet"
    folded = text.partition("<details>")[2]
    assert f"<summary>{because}</summary>\n\n`course run --scale full --record 01`" in folded
    assert folded.count("\n- ") == 1 and "- robust\n" in folded and folded.endswith("</details>")


# fmt: off
@pytest.mark.parametrize("value, cell", [
    (None, "–"), ("small", "small"), (0, "0.00"), (0.996, "1.00"), ([0.5], "0.50"),
    ([1.0, 2.0, 3.0], "2.00 ± 1.00"), ([1, 2], "1.00 to 2.00"), (inf, "∞"), ([inf, inf], "∞"),
    ([3.0, inf, 5.0], "∞ in 1 of 3"), ([3.0, nan], "nan in 1 of 2"),
])
# fmt: on
def test_a_cell(value, cell):
    assert result_tables.show_value(value, {}) == cell


def test_a_cell_with_digits_and_unit():
    cells = [result_tables.show_value(value, TOY) for value in (1, [2.0, 3.0], inf, "few", None)]
    assert cells == ["1.0 %", "2.0 to 3.0 %", "∞", "few", "–"]


def test_unknown_tables_and_rows_are_refused():
    with pytest.raises(ValueError, match="table_id is '03-x'; papers.json knows 01-toy, 02-plain, 03"):
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


# --- matrices


def grid(**yours):
    return results.table("03-grid", yours, "MNIST")


def test_a_matrix_holds_yours_with_the_recorded_and_the_papers_value_beside(record, env):
    grid(a_x=[40.0, 42.0], alone=1.0)
    env("quick")
    text = grid(a_x=39.0, a_y_z=7, b_x=[1.0, 3.0])._repr_markdown_()
    head = "Each cell: your run (quick, MNIST), in %; in brackets the recorded full run and "
    assert f"\n{head}the paper's value.\n\n|" in text
    assert rows(text) == [
        "|X|Y and Z",
        ":--|--:|--:",
        "first|39.0 (full 40.0 to 42.0, paper 40.0)|7.0",
        "second|1.0 to 3.0|–",
        "|paper|recorded full run|your run (quick, MNIST)",
        ":--|--:|--:|--:",
        "in no matrix|–|1.0 %|–",
    ]
    assert text.endswith("\n\n- first, X: known.")
    assert not re.search("<(?!/?details>|/?summary>)", text)


def test_a_matrix_leaves_out_rows_columns_and_sources_without_a_number(env):
    text = grid()._repr_markdown_()
    assert rows(text) == ["|X", ":--|--:", "first|40.0"]
    assert "Each cell: the paper's value, in %.\n" in text
    assert "No recorded run yet, because it takes a week: `course run --scale full" in text
    assert text.count("\n- ") == 4  # one reason, three rows that nobody has measured


def test_several_matrices_have_titles():
    one = {"title": "One", "rows": {"a": "A"}, "columns": {"x": "X"}}
    spec = {"matrix": [one, one | {"title": "Two", "columns": {"y": "Y"}}], "unit": "%"}
    sources = [result_tables.Source("ours", "ours", {"a_x": 1.0, "a_y": 2.0})]
    lines = [result_tables.matrix_lines(matrix, spec, sources) for matrix in spec["matrix"]]
    assert lines[0][0] == "*One.* Each cell: ours, in %."
    assert lines[1][2:] == ["| | Y |", "|:--|--:|", "| A | 2.00 |", ""]


def test_a_matrix_is_stored_nested_and_read_flat(record, own):
    values = {"alone": 1.0, "a_x": [1.0, 2.0], "a_y_z": 3, "b_x": 4.0}
    assert grid(**values).full == values
    stored = json.loads((own / "03-grid.json").read_text())
    nested = {"alone": 1.0, "a": {"x": [1.0, 2.0], "y_z": 3}, "b": {"x": 4.0}}
    assert stored["values"] == nested and stored["provenance"]["values"] == 2
    assert results.recorded("03-grid")["values"] == values


def test_an_old_flat_record_of_a_matrix_still_counts(own, env):
    store(own, "03-grid", {"a_x": 41.0})
    assert grid().full == {"a_x": 41.0}
    assert "first|41.0 (paper 40.0)" in rows(grid()._repr_markdown_())


def test_many_rows_with_one_reason_are_counted():
    text = result_tables.reasons({"label": name, "why": "so"} for name in "abcdefg")[2]
    assert text == "- a; b; c and 4 more: so."


# --- recording


@pytest.mark.parametrize(
    "scale, wanted, stored",
    [("quick", "", []), ("quick", "1", []), ("full", "", []), ("full", "1", ["01-toy.json"])],
)
def test_only_a_full_run_is_recorded_and_only_when_asked(scale, wanted, stored, own, env):
    env(scale, wanted)
    toy(clean=99.0)
    assert [path.name for path in own.glob("*")] == stored


PROVENANCE = "command scale seeds values images examples epochs data checksum device threads "
PROVENANCE += "table_seconds seconds date python torch commit"


def judged() -> Images:
    x = torch.linspace(0, 1, 2 * 9).mul(255).round().div(255).reshape(2, 1, 3, 3)
    return Images(x, torch.tensor([3, 4]), DIGITS, "toy digits")


def test_the_record_holds_values_and_provenance(record, own):
    values = {"clean": [98.5, 99.0], "robust": 1 / 3, "size": [4.0, inf]}
    told = dict(images=2, examples=100, epochs=5, seeds=range(2))
    assert results.table("01-toy", values, judged(), **told).data == "toy digits"
    text = (own / "01-toy.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text)["values"] == values  # every digit
    found = results.recorded("01-toy")["provenance"]
    assert list(found) == PROVENANCE.split()
    known = {"scale": "full", "data": "toy digits", "commit": "abc1234"} | told | {"seeds": [0, 1]}
    known |= {"values": 2, "checksum": results.checksum(judged()), "torch": torch.__version__}
    known |= {"threads": torch.get_num_threads(), "device": runtime.device_name()}
    assert known.items() <= found.items()
    assert found["command"] == "course run --scale full --record 01"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_a_name_instead_of_images_has_no_checksum_and_the_command_may_be_told(record, monkeypatch):
    monkeypatch.setenv("COURSE_COMMAND", "course run --jobs 2 01")
    toy(clean=99.0)
    found = results.recorded("01-toy")["provenance"]
    for key in ("checksum", "seeds", "images", "examples", "epochs"):
        assert found[key] is None
    assert (found["data"], found["command"]) == ("MNIST", "course run --jobs 2 01")


def test_each_table_has_the_time_since_the_one_before(record, monkeypatch):
    now = runtime.elapsed()
    times = []
    for later in (100, 130, 190):
        monkeypatch.setattr(runtime, "elapsed", lambda later=later: now + later)
        toy(clean=99.0)
        times.append(results.recorded("01-toy")["provenance"]["table_seconds"])
    assert times[1:] == [30, 60]


def test_the_checksum_changes_with_one_pixel_and_with_one_label():
    images = judged()
    seen = {results.checksum(images)}
    assert results.checksum(judged()) in seen and len(*seen) == 16
    x = images.x.clone()
    x[1, 0, 2, 0] += 1 / 255
    seen.add(results.checksum(Images(x, images.y, DIGITS, "toy digits")))
    seen.add(results.checksum(Images(images.x, images.y + 1, DIGITS, "toy digits")))
    assert len(seen) == 3


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(images=0), "images is 0; give how many, 1 or more"),
        (dict(examples=1.5), "examples is 1.5; give how many"),
        (dict(epochs=-1), "epochs is -1; give how many"),
        (dict(seeds=3), r"seeds is 3; give the seeds themselves, such as range\(3\)"),
        (dict(seeds="3"), "seeds is '3'; give the seeds"),
        (dict(data=None), "data is a NoneType; give the Images that were judged"),
    ],
)
def test_what_makes_no_sense_about_a_run_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        results.table("01-toy", {"clean": 99.0}, **({"data": "MNIST"} | wrong))


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


def sections(page: str) -> dict[str, str]:
    """The parts of the page by their headings."""
    return dict(part.split("\n", 1) for part in re.split("^## ", page, flags=re.M)[1:])


def test_the_page_shows_every_table_with_its_gaps(record):
    toy(clean=[98.0, 99.0], robust=50.0)
    parts = sections(results.page())
    assert list(parts) == ["Summary", "01-toy: A toy table", "02-plain: Another", "03-grid: A grid"]
    head = ["|paper|recorded|gap|why", ":--|--:|--:|--:|:--"]
    clean = "clean|99.5 %|98.0 to 99.0 %|-1.0|another network"
    toy_page = parts["01-toy: A toy table"]
    assert rows(toy_page) == [*head, clean, "robust|–|50.0 %|–|", "size|big|–|–|"]
    assert "Source: Nobody, *Nothing*, table 1." in toy_page
    assert rows(parts["02-plain: Another"]) == [*head, "p|0.00|–|–|"]
    assert results.page() == results.page()


def test_the_page_stands_a_run_without_a_finite_value(record):
    results.table("02-plain", {"p": [1.0, inf]}, "MNIST")
    page = results.page()
    assert rows(sections(page)["02-plain: Another"])[-1] == "p|0.00|∞ in 1 of 2|–|"
    assert "**02-plain** p|0.00|∞ in 1 of 2|not reproduced: why is not known" in rows(page)
    assert "summary.svg" not in page  # there is no point to draw


def test_the_page_says_where_a_table_comes_from(record):
    told = dict(images=2, examples=60_000, epochs=5, seeds=(3, 7))
    results.table("01-toy", {"clean": [98.0, 99.0]}, judged(), **told)
    results.table("03-grid", {"b_x": [1.0, 2.0, 3.0]}, "MNIST")
    parts = sections(results.page())
    start = "`course run --scale full --record 01`; full scale on toy digits; checksum "
    size = "2 images, 60,000 training examples, 5 epochs; seeds 3, 7; cpu, "
    assert f"\n{start}{results.checksum(judged())}; {size}" in parts["01-toy: A toy table"]
    assert f"PyTorch {torch.__version__}; commit abc1234; " in parts["01-toy: A toy table"]
    assert "full scale on MNIST; up to 3 values a row; cpu, " in parts["03-grid: A grid"]
    assert not any("\nNot recorded: " in part for part in parts.values())


def test_an_old_record_shows_and_says_what_it_lacks(own):
    store(own, "01-toy", {"clean": [98.0, 99.0]})
    text = sections(results.page())["01-toy: A toy table"]
    assert "clean|99.5 %|98.0 to 99.0 %|-1.0|another network" in rows(text)
    assert "\nfull scale on MNIST; cpu, 1 threads; 25 s for the lecture so far; Python" in text
    lacks = "command, seeds, number of images, number of training examples, epochs, "
    assert f"Not recorded: {lacks}checksum of the images, time of this table.\n" in text
    store(own, "01-toy", {"clean": 98.0}, device="Some GPU", seeds=None)
    lacks = lacks.replace("seeds, ", "") + "checksum of the images, threads, time"
    assert f"Not recorded: {lacks} of this table.\n" in results.page()


def test_a_matrix_on_the_page_holds_ours_with_the_papers_value_beside(own):
    store(own, "03-grid", {"a_x": [41.0, 42.0], "b_x": 1.0})
    text = sections(results.page())["03-grid: A grid"]
    assert rows(text) == ["|X", ":--|--:", "first|41.0 to 42.0 (paper 40.0)", "second|1.0"]
    assert "not recorded, because it takes a week</summary>" in text
    assert "- in no matrix\n" in text and "- first, Y and Z\n" in text


def test_the_summary_judges_every_row_with_a_papers_value(own):
    store(own, "01-toy", {"clean": 98.0, "robust": 50.0, "size": 3.0})
    store(own, "02-plain", {"p": 0.5})
    summary = sections(results.page())["Summary"]
    assert rows(summary)[2:] == [
        "**01-toy** clean|99.5 %|98.0 %|reproduced",
        "**01-toy** size|big|3.0 %|in words: why is not known",
        "**02-plain** p|0.00|0.50|not reproduced: why is not known",
        "**03-grid** first, X|40.0 %|–|not recorded: it takes a week",
    ]
    assert "print 4 values of these tables: 1 reproduced, 1 not reproduced, 1 not recorded" in summary
    assert verdicts.RULE in summary
    alt = re.search(r"!\[(.*)\]\(summary.svg\)", summary)[1]
    assert "of 2 points, 1 reproduced, 1 not reproduced" in alt


# fmt: off
@pytest.mark.parametrize("paper, ours, spec, verdict", [
    (50, None, {}, "not recorded"), ("big", 3.0, {}, "in words"),
    (50, 45.0, {}, "reproduced"), (50, 44.9, {}, "not reproduced"), (-50, -55.0, {}, "reproduced"),
    (50, 52.0, {"unit": "%"}, "reproduced"), (50, 52.1, {"unit": "%"}, "not reproduced"),
    (4.4, 2.4, {"unit": "%"}, "reproduced"),  # in floats they are further apart
    (50, 52.1, {"unit": "%", "tolerance": {"absolute": 3}}, "reproduced"),
    (50, 51.0, {"unit": "%", "tolerance": {"relative": 0.01}}, "not reproduced"),
    (50, [40.0, 60.0], {}, "reproduced"),
    (20, [30.0, 31.0, 32.0], {}, "within noise"),  # 31 ± 11.46 at 99 %
    (19.4, [30.0, 31.0, 32.0], {}, "not reproduced"), (42.6, [30.0, 31.0, 32.0], {}, "not reproduced"),
    (20, [30.0, 31.0], {}, "not reproduced"),  # two seeds say little about their spread
    (20, [30.0, 31.0, inf], {}, "not reproduced"), (20, [30.0, 30.0, 30.0], {}, "not reproduced"),
    (20, nan, {}, "not reproduced"),
])
# fmt: on
def test_the_verdict(paper, ours, spec, verdict):
    judged, words = verdicts.judge(ours, {"paper": paper, "why": "because"}, spec)
    assert judged == verdict and words.startswith(verdict)
    assert ("because" in words) == (verdict in ("not reproduced", "in words"))


def test_the_interval_is_that_of_one_more_run():
    """t of 4 degrees of freedom at 99 %, two-sided: 4.604."""
    low, high = verdicts.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (high - low) / 2 == pytest.approx(4.604 * sqrt(2.5 * 1.2), rel=1e-4)
    assert (low + high) / 2 == pytest.approx(3)
    words = verdicts.judge([30.0, 31.0, 32.0], {"paper": 20.0}, {"digits": 1})[1]
    assert words == "within noise: one more run lies in 19.5 … 42.5"


def test_the_picture_has_a_panel_for_each_lecture_and_the_same_bytes(own):
    import matplotlib

    store(own, "01-toy", {"clean": [98.0, 99.0]})
    store(own, "02-plain", {"p": 0.5})
    drawn = results.picture()
    assert b"<!-- Lecture 01, % (1 row) -->" in drawn and b"<!-- Lecture 02 (1 row) -->" in drawn
    with matplotlib.rc_context({"axes.linewidth": 5}):
        assert results.picture() == drawn
        assert matplotlib.rcParams["axes.linewidth"] == 5
    store(own, "02-plain", {"p": 0.6})
    assert results.picture() != drawn


# --- what the repository holds


@pytest.fixture
def real(monkeypatch):
    """The repository's own papers and results."""
    monkeypatch.undo()
    monkeypatch.delenv("COURSE_RESULTS", raising=False)


def test_the_page_in_the_repository_is_fresh(real):
    page = files.ROOT / "results" / "README.md"
    assert page.read_text(encoding="utf-8") == results.page(), "run `course results`"


def test_the_picture_in_the_repository_is_fresh(real):
    pinned = re.search("^matplotlib==(.*)", (files.ROOT / "constraints.txt").read_text(), re.M)[1]
    if version("matplotlib") != pinned:
        pytest.skip("another release of matplotlib may draw other bytes")
    stored = (files.ROOT / "results" / "summary.svg").read_bytes().replace(b"\r\n", b"\n")
    assert stored == results.picture(), "run `course results`"


def test_every_recorded_run_belongs_to_a_table(real):
    known = results.tables()
    for path in set((files.ROOT / "results").glob("*.json")) - {results.PAPERS}:
        assert path.stem in known
        found = results.recorded(path.stem)
        assert found["values"].keys() <= {row["key"] for row in known[path.stem]["rows"]}
        run = found["provenance"]
        assert run["scale"] == "full" and run["commit"] != "unknown"


KEYS = set("title source unit digits series rows matrix tolerance unrecorded".split())


def test_matrices_of_the_repository_fit_their_rows(real):
    for spec in results.tables().values():
        keys = {row["key"] for row in spec["rows"]}
        matrices = result_tables.matrices(spec)
        cells = [f"{r}_{c}" for matrix in matrices for r in matrix["rows"] for c in matrix["columns"]]
        assert len(cells) == len(set(cells))  # no key has two places
        lines = {row for matrix in matrices for row in matrix["rows"]}
        assert not lines & (keys - set(cells))  # a nested record keeps them apart
        for matrix in matrices:
            assert matrix.keys() <= {"title", "rows", "columns"}
            for row in matrix["rows"]:
                assert keys & {f"{row}_{column}" for column in matrix["columns"]}
            for column in matrix["columns"]:
                assert keys & {f"{row}_{column}" for row in matrix["rows"]}
            labels = [*matrix["rows"].values(), *matrix["columns"].values()]
            assert all(labels) and "|" not in "".join(labels)
            assert len(matrices) == 1 or matrix["title"]
        values = dict.fromkeys(keys, 1.0)
        assert result_tables.flatten(result_tables.nest(values, spec)) == values


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
        assert spec.keys() <= KEYS
        # the curves of a figure, point by point
        assert len({len(values) for values in spec.get("series", {}).values()}) <= 1
        assert spec["title"] and spec["source"]
        assert isinstance(spec.get("digits", 2), int)
        assert spec.get("tolerance", {"absolute": 1}).keys() in ({"absolute"}, {"relative"})
        assert not re.search(r"[<>`|]|\.$", spec.get("unrecorded", ""))  # it stands in HTML
        keys = [row["key"] for row in spec["rows"]]
        assert keys and len(set(keys)) == len(keys)
        for row in spec["rows"]:
            assert row.keys() <= {"key", "label", "paper", "where", "why"}
            assert row["label"] and "|" not in row["label"] + row.get("why", "")  # it would end a cell
            assert isinstance(row.get("paper", 0), int | float | str)
            assert row.get("where") or "paper" not in row, f"{row}: where does the number stand?"
