"""Comparisons that a claim rests on: how large a difference is, its interval, and its test.

Each function returns a ``Comparison``, which is true where the difference is clear: its two-sided
p-value is below 1 % and its 99 % interval lies above zero, so that without any difference fewer
than one in a hundred comparisons is called clear. Few samples are never clear.

Values are one number or truth value per image (``paired``, ``unpaired``, ``above``), or one number
per training (``over_seeds``). Where several values come from one image or one random start they are
no independent samples: ``groups`` says which belong together, and a group counts once.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

LEVEL = 0.99  # of every interval; a p-value must be below the rest
FEWEST_SEEDS = 5
FEWEST_GROUPS = 8  # with fewer, no assignment of signs is rarer than 1 %
MANY = 30  # samples from which on a mean is close enough to normal

Values = Tensor | np.ndarray | Sequence[float] | Sequence[bool]


@dataclass(frozen=True)
class Comparison:
    """A difference, what was measured beside it, and the test that judged it.

    ``difference`` is what was asked about (first minus second, or value minus bound) and
    ``low``, ``high`` its 99 % interval. ``n`` counts values, ``groups`` what is independent among
    them. ``p`` is two-sided. With a ``margin`` the question is whether the interval lies within it.
    """

    test: str
    n: int
    groups: int
    difference: float
    low: float
    high: float
    p: float
    enough: bool = True
    margin: float | None = None

    def __bool__(self) -> bool:
        if self.margin is not None:
            return bool(self.enough and -self.margin < self.low and self.high < self.margin)
        return bool(self.enough and self.p < 1 - LEVEL and self.low > 0)

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Test, n, groups, difference with its interval, and p, to be shown."""
        size = f"{self.difference:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"
        if not self.enough:
            size += ", too few"
        if self.margin is not None:  # p is that of another question
            test, p = f"{self.test}, within ±{self.margin:g}", ""
        else:
            test, p = self.test, "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        return test, f"{self.n:,}", f"{self.groups:,}", size, p

    def within(self, margin: float) -> "Comparison":
        """Asks the opposite: does the whole interval lie within ± ``margin``?

        Two one-sided tests at 0.5 % each (equivalence).
        """
        if not margin > 0:
            raise ValueError(
                f"margin is {margin}; give the largest difference that does not count."
            )
        return replace(self, margin=margin)


def paired(first: Values, second: Values, groups: Values | None = None) -> Comparison:
    """Whether ``first`` exceeds ``second``, both measured on the same images.

    Truth values without groups: exact McNemar test, which looks only at the images that the two
    judge differently; the interval is that of Agresti and Min (2005), Wald's with half an image
    more in each cell of the table. Both assume independent images.

    Numbers, or groups: the mean difference of each group (of each image) is one sample. Fewer than
    30: sign-flip permutation test, which assumes that without an effect a difference is as likely
    as its negative; from 30 on: t-test, which assumes a nearly normal mean. The interval is
    Student's.

    Raises:
        ValueError: different lengths, no values, or values that are not finite.
    """
    a, b = column("first", first), column("second", second)
    check_length("second", b, len(a))
    difference = a - b
    if groups is None and are_truth_values(first, second):
        return mcnemar(difference)
    return sign_flips(difference, groups)


def above(values: Values, bound: float, groups: Values | None = None) -> Comparison:
    """Whether the mean of ``values`` exceeds ``bound``.

    Truth values without groups: exact binomial test, with Clopper and Pearson's interval. It
    assumes independent values. Otherwise the mean of each group is one sample of a t-test, which
    assumes a nearly normal mean; below 30 samples nothing is clear.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    from scipy import stats  # slow to import

    numbers = column("values", values)
    if groups is not None or not are_truth_values(values):
        samples = means(numbers - bound, groups)
        test = f"t{by_group(groups)} against {bound:g}"
        return student(samples, len(numbers), test, len(samples) >= MANY)
    found = stats.binomtest(int(numbers.sum()), len(numbers), bound)
    low, high = found.proportion_ci(LEVEL)
    return Comparison(
        f"exact binomial against {bound:g}", len(numbers), len(numbers),
        numbers.mean() - bound, low - bound, high - bound, found.pvalue,
    )  # fmt: skip


def unpaired(first: Values, second: Values) -> Comparison:
    """Whether the mean of ``first`` exceeds that of ``second``, measured on other images or draws.

    Welch's t-test and interval: independent values, any two variances, nearly normal means. With
    fewer than 30 values on a side, where means need not be normal, a permutation test gives p: it
    assumes that without an effect both sides have one distribution.

    Raises:
        ValueError: fewer than two values on a side, or values that are not finite.
    """
    a, b = column("first", first, fewest=2), column("second", second, fewest=2)
    found = welch(a, b, "Welch", enough=True)
    if min(len(a), len(b)) >= MANY:
        return found
    return replace(found, test="permutation", p=permuted((a, b), "independent"))


def over_seeds(first: Values, second: Values | float, *, same_seeds: bool = True) -> Comparison:
    """Whether trainings that gave ``first`` exceed those that gave ``second``; one value per seed.

    With ``same_seeds`` the i-th values belong together (one network judged twice, or one seed
    trained in two ways): paired t-test. Otherwise Welch's. A number as ``second`` is a fixed bound.
    Both assume values that are nearly normal over seeds. Below five seeds nothing is clear.

    Raises:
        ValueError: no values, values that are not finite, or pairs of different lengths.
    """
    a = column("first", first)
    if isinstance(second, int | float):
        b = np.full(len(a), float(second))
    else:
        b = column("second", second)
    enough = min(len(a), len(b)) >= FEWEST_SEEDS
    if not same_seeds:
        return welch(a, b, "Welch over seeds", enough)
    check_length("second", b, len(a))
    return student(a - b, len(a), "paired t over seeds", enough)


# --- the tests behind them


def mcnemar(difference: np.ndarray) -> Comparison:
    from scipy import stats  # slow to import

    n = len(difference)
    ups, downs = int((difference > 0).sum()), int((difference < 0).sum())
    p = stats.binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
    size = (ups - downs) / (n + 2)  # half an image more in each of the four cells
    spread = math.sqrt(ups + downs + 1 - (ups - downs) ** 2 / (n + 2)) / (n + 2)
    half = stats.norm.ppf((1 + LEVEL) / 2) * spread
    low, high = max(size - half, -1.0), min(size + half, 1.0)
    return Comparison("exact McNemar", n, n, difference.mean(), low, high, float(p))


def sign_flips(difference: np.ndarray, groups: Values | None) -> Comparison:
    """Whether the mean of the groups exceeds zero; without an effect it may have either sign."""
    samples = means(difference, groups)
    enough = len(samples) >= FEWEST_GROUPS
    found = student(samples, len(difference), f"paired t{by_group(groups)}", enough)
    if not enough or len(samples) >= MANY:
        return found
    return replace(found, test=f"sign flips{by_group(groups)}", p=permuted((samples,), "samples"))


def permuted(samples: tuple[np.ndarray, ...], kind: str) -> float:
    """Two-sided p-value of a permutation test: exact, or of 9,999 where there are more."""
    from scipy import stats  # slow to import

    found = stats.permutation_test(
        samples, mean_difference, permutation_type=kind, n_resamples=9999, batch=1000, rng=0
    )
    return float(found.pvalue)


def mean_difference(first: np.ndarray, *second: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(first, axis) - sum(np.mean(other, axis) for other in second)


def student(samples: np.ndarray, n: int, test: str, enough: bool) -> Comparison:
    """Student's t-test of a mean of 0. Samples without any spread lie exactly on their mean."""
    from scipy import stats  # slow to import

    size = float(samples.mean())
    if len(samples) < 2:
        return Comparison(test, n, len(samples), size, -np.inf, np.inf, 1.0, enough=False)
    if np.ptp(samples) == 0:
        return Comparison(test, n, len(samples), size, size, size, float(size == 0), enough)
    found = stats.ttest_1samp(samples, 0.0)
    low, high = found.confidence_interval(LEVEL)
    return Comparison(test, n, len(samples), size, low, high, found.pvalue, enough)


def welch(a: np.ndarray, b: np.ndarray, test: str, enough: bool) -> Comparison:
    from scipy import stats  # slow to import

    n, size = len(a) + len(b), float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Comparison(test, n, n, size, -np.inf, np.inf, 1.0, enough=False)
    if np.ptp(a) == np.ptp(b) == 0:
        return Comparison(test, n, n, size, size, size, float(size == 0), enough)
    with warnings.catch_warnings(action="ignore"):  # of a side without any spread
        found = stats.ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval(LEVEL)
    return Comparison(test, n, n, size, low, high, found.pvalue, enough)


def by_group(groups: Values | None) -> str:
    return "" if groups is None else " by group"


# --- the values


def column(name: str, values: Values, fewest: int = 1) -> np.ndarray:
    """The values as a row of float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    row = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(row) < fewest:
        raise ValueError(f"{name} has {len(row)} values; give {fewest} or more, one per sample.")
    if not np.isfinite(row).all():
        raise ValueError(f"{name} holds nan or inf; leave those samples out, or count them.")
    return row


def are_truth_values(*columns: Values) -> bool:
    """Whether all are truth values; 0.0 and 1.0 count too."""
    return all(np.isin(column("values", values), (0, 1)).all() for values in columns)


def check_length(name: str, values: np.ndarray, length: int) -> None:
    if len(values) != length:
        raise ValueError(
            f"{name} has {len(values)} values and there should be {length}; "
            "give one per sample, in the same order."
        )


def means(values: np.ndarray, groups: Values | None) -> np.ndarray:
    """The mean of each group; the values themselves without groups."""
    if groups is None:
        return values
    names = column("groups", groups)
    check_length("groups", names, len(values))
    _, rows = np.unique(names, return_inverse=True)
    return np.bincount(rows, values) / np.bincount(rows)
