"""Every exercise: the right answer passes, and each mistake gets its own advice."""

import json
import re
import socket
import time

import nbformat
import pytest
import torch

from course_utils import check
from course_utils.check import answers
from course_utils.check.exercise import Exercise, exercise
from course_utils.core.files import ROOT

torch.set_num_threads(1)
EXERCISES = check.EXERCISES.values()
every_exercise = pytest.mark.parametrize("item", EXERCISES, ids=lambda item: item.name)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """No student's own progress is touched."""
    monkeypatch.setenv("COURSE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def say(capsys):
    """Runs a check and returns what it prints."""

    def run(item, fn):
        item(fn)
        return capsys.readouterr().out

    return run


# ------------------------------------------------------------------------------ all exercises


@every_exercise
def test_the_right_answer_passes_and_is_remembered(item, say):
    assert say(item, item.right).startswith(f"● {item.name}: right. {item.title}")
    assert set(check.solved()) == {item.name}


MISTAKES = [
    pytest.param(item, advice, mistake, id=f"{item.name}-{advice[:60]}-{i}")
    for item in EXERCISES
    for advice, mistakes in item.mistakes.items()
    for i, mistake in enumerate(mistakes)
]


@pytest.mark.parametrize(("item", "advice", "mistake"), MISTAKES)
def test_a_mistake_gets_its_own_advice(item, advice, mistake, say):
    said = say(item, mistake)
    assert said.startswith(f"○ {item.name}: ") and advice in said
    assert check.solved() == {}


def cells(tag):
    for path in sorted((ROOT / "lectures").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if tag in cell.metadata.get("tags", []):
                yield path.name[:2], cell.source


def test_the_notebooks_solutions_are_right(capsys):
    """Every exercise has one, in its own lecture; it does not count as the student's progress."""
    found = []
    for number, source in cells("solution"):
        space = {name: __import__(name) for name in ("copy", "math", "torch")}
        space |= {"F": torch.nn.functional, "cross_entropy": torch.nn.functional.cross_entropy}
        space["check"] = check
        exec(source, space)  # noqa: S102
        for name in re.findall(r"^check\.(\w+)\(", source, re.MULTILINE):
            assert check.EXERCISES[name].lecture == number
            found.append(name)
    said = capsys.readouterr().out
    assert sorted(found) == sorted(check.EXERCISES)
    assert "○" not in said and said.count("● ") == len(found)
    assert check.solved() == {}


@every_exercise
def test_stub_none_and_errors(item, say):
    def stub(*_):
        raise NotImplementedError

    def broken(*_):
        raise KeyError("oops")

    assert "not attempted yet" in say(item, stub)
    assert "returns None. Is the `return` missing?" in say(item, lambda *_: None)
    assert "your function raises KeyError: 'oops'" in say(item, broken)
    assert "takes 0 positional arguments" in say(item, lambda: None)
    assert "give the function itself" in say(item, None)
    assert "give the function itself" in say(item, torch.zeros(2))


STRANGE = [0, 0.75, 0.98, 0.4, True, float("nan"), "text", [], {}]
STRANGE += [torch.zeros(()), torch.tensor([]), torch.zeros(3), torch.ones(4)]


@every_exercise
def test_constants_and_other_types_are_wrong(item, say):
    for value in STRANGE:
        assert say(item, lambda *_, value=value: value).startswith("○ ")
    assert say(item, lambda *arguments: arguments[0]).startswith("○ ")


@every_exercise
def test_nan_is_wrong(item, say):
    def spoiled(*arguments):
        answer = item.right(*arguments)
        if isinstance(answer, dict):
            return {name: value * float("nan") for name, value in answer.items()}
        return answer * float("nan")

    assert say(item, spoiled).startswith("○ ")


@every_exercise
def test_quick_offline_and_without_a_trace(item, say, monkeypatch):
    def refuse(*_):
        raise AssertionError("a check needs no network")

    def random_and_right(*arguments):
        torch.manual_seed(1)
        torch.rand(3)
        return item.right(*arguments)

    monkeypatch.setattr(socket, "socket", refuse)
    before = torch.get_rng_state()
    started = time.thread_time()  # of this thread, whatever else the machine is doing
    assert say(item, random_and_right).startswith("● ")
    assert time.thread_time() - started < 1
    assert torch.equal(torch.get_rng_state(), before)


SPOIL = {
    "train mode": (lambda model, x: model.train(), "now in train mode"),
    "weights": (lambda model, x: model[1].bias.data.add_(1), "weights have changed"),
    "grad": (lambda model, x: model(x).sum().backward(), ".grad"),
    "input": (lambda model, x: x.data.mul_(0.5), "changed its input"),
    "flag": (lambda model, x: x.requires_grad_(), "switched requires_grad on"),
}
WITH_A_MODEL = [item for item in EXERCISES if isinstance(item.inputs()[0][0], torch.nn.Module)]


@pytest.mark.parametrize("item", WITH_A_MODEL, ids=lambda item: item.name)
@pytest.mark.parametrize("what", SPOIL)
def test_model_and_input_are_left_as_found(item, what, say):
    spoil, phrase = SPOIL[what]
    if what == "flag" and "x_poisoned" in item.learns:
        pytest.skip("its images carry a graph already")

    def spoiling(model, x, *rest):
        answer = item.right(model, x, *rest)
        spoil(model, x)
        return answer

    assert phrase in say(item, spoiling)


def test_model_exercises_are_known():
    names = "descent_step fgsm pgd tangent_rise blind pgd_training_loss gradient_penalty lwa_rep_loss uae_criterion"
    known = {*names.split(), "pseudo_update", "generator_step", "min_min_step", "targeted_attack"}
    known |= {"noise_alone", "believes_noise", "by_the_batch", "additive_share"}
    assert {item.name for item in WITH_A_MODEL} == known


@every_exercise
def test_a_lost_gradient_is_seen(item, say):
    """What the exercise learns from must be reached."""

    def cut_off(*arguments):
        answer = item.right(*arguments)
        if isinstance(answer, dict):
            return {name: value.detach() for name, value in answer.items()}
        return answer.detach()

    if item.learns:
        assert "but no gradient reaches" in say(item, cut_off)


@every_exercise
def test_hints_and_sizes(item):
    assert item.hints and all(text.strip() for text in item.hints)
    assert item.mistakes and all(item.mistakes.values())


def test_a_lecture_has_its_file():
    """An exercise stands in the file that is named like its lecture."""
    names = [path.stem[3:] for path in sorted((ROOT / "lectures").glob("*.ipynb"))]
    assert list(check.LECTURES) == names
    for item in EXERCISES:
        assert item.right.__module__ == f"course_utils.check.{names[int(item.lecture)]}"


def test_files_are_short():
    for path in (ROOT / "course_utils" / "check").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path.name


# -------------------------------------------------------------------------------- the machinery


def toy(**changes) -> Exercise:
    """An exercise of one line: twice the input."""
    settings = dict(
        hints=("Multiply.",),
        inputs=lambda: [(torch.tensor([1.0, 2.0, -3.0]),), (torch.tensor([0.5, 0.0, 4.0]),)],
        mistakes={"that is the square.": [lambda x: x * x], "a minus.": [lambda x: -2 * x]},
    )

    @exercise("00", "Twice", **(settings | changes))
    def double(x):
        return 2 * x

    return double


def test_the_first_case_that_differs_decides(say):
    both = toy(mistakes={"only up to 3.": [lambda x: (2 * x).clamp(max=4)]})
    assert "only up to 3." in say(both, lambda x: (2 * x).clamp(max=4))
    assert "that is the square." in say(toy(), lambda x: x * x)


def test_an_unknown_mistake_is_shown_in_numbers_or_words(say):
    assert "in place 2 of the test input the result is -6; you return -9." in say(
        toy(), lambda x: 3 * x
    )
    assert "Think again." in say(toy(otherwise="Think again."), lambda x: 3 * x)
    words = toy(otherwise=lambda case, got, want: f"{case[0][0]:.0f}, {got[0]:.0f}, {want[0]:.0f}")
    assert "1, 3, 2" in say(words, lambda x: 3 * x)


def test_the_gradient_counts_where_it_is_asked_for(say):
    def halfway(x):
        return x + x.detach()

    assert say(toy(), halfway).startswith("● ")
    learns = toy(learns=("x",))
    assert "its gradient is not" in say(learns, halfway)
    named = toy(learns=("x",), mistakes={"half of it is detached.": [halfway]})
    assert "half of it is detached." in say(named, halfway)
    assert "x. Is there a no_grad" in say(learns, lambda x: (2 * x).detach())


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x.max(0) / 2,
        lambda x: -x[None].sort(1),
        lambda x: x[None].max(1)[:, None],
        lambda x: x[None].topk(2).abs(),
    ],
)
def test_a_pair_of_values_and_indices_is_explained(say, answer):
    assert "give a pair, values and indices: take .values" in say(toy(), answer)


def test_properties_come_first_and_see_the_checked_answer(say):
    def positive(answer):
        if answer(torch.tensor([1.0])) < 0:
            raise answers.NotYet("upside down.")

    assert "upside down." in say(toy(properties=positive), lambda x: -2 * x)
    assert "should have (1,)" in say(toy(properties=positive), lambda x: x[:0])


def test_a_list_keeps_its_length_and_its_entries(say):
    @exercise("00", "Count", hints=("len",), inputs=lambda: [([1.0, 2.0],)], mistakes={})
    def count(values):
        return len(values)

    assert "changed the length" in say(count, lambda values: values.append(1))
    assert "changed its input" in say(count, lambda values: values.sort(reverse=True) or 2)


def test_a_check_gives_the_same_verdict_under_any_global_seed(say):
    for seed in range(3):
        torch.manual_seed(seed)
        assert say(check.EXERCISES["pgd"], check.EXERCISES["pgd"].right).startswith("● ")


# -------------------------------------------------------------------------- progress and hints

FGSM, PGD = check.EXERCISES["fgsm"], check.EXERCISES["pgd"]


def test_a_solution_does_not_count_as_progress(say, state):
    def fgsm_solution(*arguments):
        return FGSM.right(*arguments)

    assert say(FGSM, fgsm_solution) == f"● the solution of fgsm is right. {FGSM.title}.\n"
    assert check.solved() == {}
    assert not state.exists()


def test_progress_keeps_the_first_day(say, state):
    state.mkdir()
    (state / "progress.json").write_text('{"fgsm": "2020-01-01"}')
    say(FGSM, FGSM.right)
    say(PGD, PGD.right)
    done = json.loads((state / "progress.json").read_text())
    assert done["fgsm"] == "2020-01-01"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", done["pgd"])


def test_progress_that_cannot_be_kept_is_said(say, state):
    state.write_text("a file stands where the folder should be")
    said = say(FGSM, FGSM.right)
    assert said.startswith("● fgsm") and "could not be kept" in said and "COURSE_STATE" in said
    check.progress()


def test_progress_shows_the_ladder(say, capsys):
    say(FGSM, FGSM.right)
    check.progress()
    *lines, last = capsys.readouterr().out.splitlines()
    assert len({line.index(item.title) for line, item in zip(lines, EXERCISES, strict=True)}) == 1
    assert [line.split()[2] for line in lines] == list(check.EXERCISES)
    assert [line.split()[2] for line in lines if line.startswith("●")] == ["fgsm"]
    assert last == f"1 of {len(check.EXERCISES)} solved"
    lectures = [line.split()[1] for line in lines]
    assert lectures == sorted(lectures)


def test_hints_come_in_levels(capsys):
    count = len(FGSM.hints)
    said = []
    for level in range(count + 2):
        check.hint("fgsm", level)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]  # below the first is the first
    assert said[1].startswith(f"Hint 1 of {count}: ") and 'check.hint("fgsm", 2)' in said[1]
    assert "last hint" in said[count] and said[count] == said[count + 1]
    assert len(set(said[1:-1])) == count


def test_an_unknown_exercise_has_no_hint():
    with pytest.raises(ValueError, match="name is 'nothing'; the exercises are linf_size"):
        check.hint("nothing")
