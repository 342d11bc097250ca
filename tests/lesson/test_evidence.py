"""Comparisons: right against scipy and by hand, silent without an effect, never clear on few samples."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from course_utils.lesson.evidence import above, over_seeds, paired, unpaired

DRAWS = 2000


def shares(rng, groups, size, spread):
    """Truth values, ``size`` per group, whose groups differ as images do."""
    return rng.random((groups, size)) < rng.beta(1 / spread, 1 / spread, (groups, 1))


def grouped(rng, groups, size):
    a, b = shares(rng, groups, size, 2), shares(rng, groups, size, 2)
    return paired(a.ravel(), b.ravel(), np.repeat(np.arange(groups), size))


def grouped_above(rng):
    values = shares(rng, 60, 9, 1)
    return above(values.ravel(), 0.5, np.repeat(np.arange(60), 9))


NULL = {  # how data without an effect are drawn
    "McNemar": lambda rng: paired(rng.random(200) < 0.3, rng.random(200) < 0.3),
    "numbers of images": lambda rng: paired(rng.exponential(size=50), rng.exponential(size=50)),
    "nine images, five targets": lambda rng: grouped(rng, 9, 5),
    "forty images, five starts": lambda rng: grouped(rng, 40, 5),
    "equal shares": lambda rng: paired(rng.random(200) < 0.4, rng.random(200) < 0.3).within(0.1),
    "share against a bound": lambda rng: above(rng.random(100) < 0.75, 0.75),
    "grouped share against a bound": grouped_above,
    "other images": lambda rng: unpaired(rng.normal(size=80), 3 * rng.normal(size=300)),
    "few other images": lambda rng: unpaired(rng.exponential(size=6), rng.exponential(size=4)),
    "same seeds": lambda rng: over_seeds(rng.normal(size=5), rng.normal(size=5)),
    "other seeds": lambda rng: over_seeds(
        rng.normal(size=5), 5 * rng.normal(size=7), same_seeds=False
    ),
    "seeds against a bound": lambda rng: over_seeds(rng.normal(3, 1, size=6), 3.0),
    "equivalence": lambda rng: paired(rng.normal(0.5, 1, 60), rng.normal(0, 1, 60)).within(0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("draw", NULL.values(), ids=NULL)
def test_without_an_effect_at_most_one_in_a_hundred_is_clear(draw):
    rng = np.random.default_rng(0)
    assert sum(bool(draw(rng)) for _ in range(DRAWS)) <= DRAWS / 100


ONES, ZEROS = [1.0] * 4, [0.0] * 4


@pytest.mark.parametrize(
    "found",
    [
        paired([True], [False]),
        paired([True] * 7, [False] * 7),
        paired([0.9] * 7, [0.1] * 7),
        paired([True] * 90, [False] * 90, np.repeat(np.arange(7), 90)[:90]),
        above([True] * 3, 0.5),
        above([0.9, 0.8, 0.85] * 9, 0.1),
        unpaired(ONES[:2], ZEROS),
        over_seeds(ONES, ZEROS),
        over_seeds(ONES, 0.0),
        over_seeds([5.0, 6, 7, 8, 9], ZEROS, same_seeds=False),
    ],
)
def test_few_samples_are_never_clear(found):
    assert not found and found.difference > 0


@pytest.mark.parametrize(
    "more, less",
    [
        (paired([True] * 9, [False] * 9), paired([False] * 9, [True] * 9)),
        (paired(torch.rand(40) + 1, torch.rand(40)), paired(torch.rand(40), torch.rand(40) + 1)),
        (above([True] * 20, 0.6), above([False] * 20, 0.6)),
        (unpaired([3.0, 4, 5] * 3, [0.0, 1, 2] * 3), unpaired([0.0, 1, 2] * 3, [3.0, 4, 5] * 3)),
        (over_seeds([5.0, 6, 7, 8, 9], 1.0), over_seeds([5.0, 6, 7, 8, 9], 20.0)),
        (over_seeds(ONES + ONES, ZEROS + ZEROS), over_seeds(ZEROS + ZEROS, ONES + ONES)),
    ],
)
def test_a_large_effect_is_clear_in_its_direction_alone(more, less):
    assert more and not less
    assert more.low > 0 > less.high


def test_mcnemar_by_hand():
    """20 images: the first alone is right on 9, the second alone on 1."""
    first = [True] * 9 + [False] + [True] * 10
    second = [False] * 9 + [True] + [True] * 10
    found = paired(first, second)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)  # 0 or 1 of ten, on either side
    assert found.difference == pytest.approx(8 / 20)
    assert (found.test, found.n, found.groups) == ("exact McNemar", 20, 20)
    table = np.array([9, 1, 10, 0]) + 0.5  # first alone, second alone, both, none
    share = table / table.sum()
    variance = (share[0] + share[1] - (share[0] - share[1]) ** 2) / table.sum()
    half = 2.5758293 * math.sqrt(variance)
    middle = share[0] - share[1]
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_sign_flips_by_hand():
    """Every assignment of signs to eight images is tried."""
    differences = np.array([3.0, 1, 2, -0.5, 4, 1.5, 2.5, 0.2])
    flipped = [np.mean(differences * signs) for signs in product((1, -1), repeat=8)]
    found = paired(differences, 0 * differences)
    one_side = np.mean(np.array(flipped) >= differences.mean() - 1e-9)
    assert found.p == pytest.approx(2 * one_side)
    assert found.test == "sign flips"


def test_a_group_counts_once():
    """Nine copies of ten images say no more than the images."""
    rng = np.random.default_rng(1)
    a, b = rng.random(10), rng.random(10)
    plain = paired(a, b)
    groups = torch.arange(10).repeat_interleave(9)
    copies = paired(a.repeat(9), b.repeat(9), groups)
    assert (copies.p, copies.low, copies.high) == pytest.approx((plain.p, plain.low, plain.high))
    assert (copies.n, copies.groups) == (90, 10)
    shuffled = rng.permutation(90)
    again = paired(a.repeat(9)[shuffled], b.repeat(9)[shuffled], groups[shuffled])
    assert again.p == pytest.approx(copies.p)


def test_welch_and_paired_t_are_those_of_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 3, 40)
    expected = stats.ttest_ind(a, b, equal_var=False)
    for found in (unpaired(a, b), over_seeds(a, b, same_seeds=False)):
        assert found.p == pytest.approx(expected.pvalue)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.99)))
    expected = stats.ttest_rel(a, b)
    for found in (paired(a, b), over_seeds(a, b)):
        assert found.p == pytest.approx(expected.pvalue)
        assert found.difference == pytest.approx(a.mean() - b.mean())


def test_within_asks_for_the_whole_interval():
    found = paired(np.linspace(-1, 1, 100) + 0.1, np.zeros(100))
    assert found.low < -0.03 and 0.25 < found.high < 0.26
    assert found.within(0.26) and not found.within(0.25)
    assert not paired(np.zeros(100), np.linspace(-1, 1, 100) + 0.1).within(0.25)
    assert found.within(0.26).difference == pytest.approx(0.1)
    with pytest.raises(ValueError, match="margin is 0"):
        found.within(0)


def test_no_image_is_judged_differently():
    found = paired([True] * 98, [True] * 98)
    assert not found and found.p == 1 and found.difference == 0
    assert found.within(0.03) and not found.within(0.02)  # 2.58 of 100 images may hide


@pytest.mark.filterwarnings("error")
def test_one_side_may_have_no_spread():
    assert unpaired([1.0] * 40, np.linspace(0, 0.9, 40)) and unpaired([1.0] * 9, [0.0] * 9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: paired([1, 2], [1]), "second has 1 values and there should be 2"),
        (lambda: paired([1, 2], [1, 2], [0]), "groups has 1 values"),
        (lambda: paired([], []), "first has 0 values; give 1 or more"),
        (lambda: unpaired([1.0], [1.0, 2.0]), "first has 1 values; give 2 or more"),
        (lambda: above([math.nan, 1.0], 0), "values holds nan or inf"),
        (lambda: over_seeds([1.0, 2.0], [1.0]), "second has 1 values and there should be 2"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_cells_say_what_was_measured():
    assert paired([True] * 9 + [False], [False] * 10).cells == (
        *("exact McNemar", "10", "10", "+0.9 [+0.363, +1]", "0.004"),
    )
    few = over_seeds([1.0, 2.0], [0.0, 1.5]).cells
    assert few[3].endswith(", too few") and few[:3] == ("paired t over seeds", "2", "2")
    assert paired(torch.rand(99), torch.rand(99)).within(1).cells[4] == ""
