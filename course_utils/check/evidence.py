"""Exercises of lecture 12: ``next_label`` and ``share_poisoned``."""

import math

import torch

from course_utils.check import answers
from course_utils.check.answers import NotYet
from course_utils.check.exercise import exercise
from course_utils.core import runtime

WHOLE_NUMBERS = "F.cross_entropy wants whole numbers, int64, as y is."


def label_inputs():
    return [
        (torch.tensor([3, 9, 0, 4, 9, 7, 8]), 10),
        (torch.tensor([3, 0, 2, 1, 3, 3]), 4),
        (torch.tensor([0, 1, 1, 0]), 4),
        (torch.tensor([1, 0, 1]), 2),
    ]


def has_whole_numbers(answer):
    got = answer(*label_inputs()[0])
    if got.dtype != torch.int64:
        kind = str(got.dtype).removeprefix("torch.")
        raise NotYet(f"the labels are {kind}. {WHOLE_NUMBERS}")


def first_wrong_label(case, got, want):
    y, classes = case
    i = answers.first_difference(got, want)
    right = f"with {classes} classes, label {y[i]} becomes {want[i]:g}"
    return f"{right}; you return {got[i]:.3g}."


@exercise(
    "12",
    "The next class",
    hints=(
        "η sends every class to the one after it. And the last class? The labels are a circle.",
        "The remainder closes the circle: % classes. Mind the brackets: in y + 1 % classes the "
        "remainder is taken first, of 1 alone.",
        "return (y + 1) % classes.",
    ),
    inputs=label_inputs,
    properties=has_whole_numbers,
    otherwise=first_wrong_label,
    mistakes={
        WHOLE_NUMBERS: [lambda y, classes: (y + 1.0) % classes],
        "nothing changed: every class keeps its own label.": [lambda y, classes: y],
        "that counts ten classes, and here there are 4: use the argument.": [
            lambda y, classes: (y + 1) % 10
        ],
        "there is no class 10: after the last comes 0, (y + 1) % classes. "
        "Look at the brackets too.": [lambda y, classes: y + 1],
        "the last class keeps its label. The labels are a circle: after the last comes 0.": [
            lambda y, classes: (y + 1).clamp(max=classes - 1)
        ],
        "that is the class before; η goes to the one after it, y + 1.": [
            lambda y, classes: (y - 1) % classes
        ],
        "that is the class before; η goes to the one after it, y + 1, and from the last to 0.": [
            lambda y, classes: y - 1
        ],
        "that is the mirror image, first and last class exchanged; η goes one on.": [
            lambda y, classes: classes - 1 - y
        ],
        "that moves the labels along the batch; each label itself goes one on: y + 1.": [
            lambda y, classes: y.roll(1),
            lambda y, classes: y.roll(-1),
        ],
        "the remainder is of classes − 1, so that no image gets the last class. Take % classes.": [
            lambda y, classes: (y + 1) % (classes - 1)
        ],
        "the number of classes is guessed from the labels of this batch, and the last class need "
        "not be in it: use the argument.": [lambda y, classes: (y + 1) % (y.max() + 1)],
    },
)
def next_label(y, classes):
    return (y + 1) % classes


MOVED = (
    "the images are whole, but not each is at its place: "
    "row i is x[i] or x_poisoned[i], for y[i] is its label."
)
MIXED = "Choose whole images; no pixel is mixed."
NONE = "no image is poisoned; 0.38 of 20 images are 7.6, so 8."
ALL = "all images are poisoned; 0.38 of 20 images are 7.6, so 8."
OTHER_WAY = "12 images are poisoned and 8 are clean; it is the other way round."
CUT_OFF = "0.38 of 20 images are 7.6: round to 8, where int() and // cut off."
COIN = "a coin for each image hits the share on average. Draw exactly 8."
TWICE = "a place is drawn twice. randperm draws without replacement, randint with it."
SORTED = "Where data are sorted, those are of one class: draw at random."
FIXED = (
    "the same images are chosen whatever the generator. "
    "Hand it on as it is: torch.randperm(len(x), generator=generator)."
)
ELSEWHERE = (
    "two generators with the same seed choose different images: the chance comes from elsewhere. "
    "torch.randperm(len(x), generator=generator)."
)
SEED_ONLY = (
    "called twice with one generator you choose the same images: only its seed is read. "
    "Let randperm draw from it."
)
SIDE_BY_SIDE = (
    "the chosen images always lie side by side: only the beginning is drawn. "
    "Draw every place: randperm."
)
SAME_CHANCE = "Every place has the same chance: randperm(len(x))."


def share_inputs(share, generator):
    return answers.small_images(20), answers.small_images(20, seed=1), share, generator


def equal(a, b):
    return (a - b).abs().flatten(-3).amax(-1) < 1e-6


def chosen(answer, share, generator):
    """For every row whether it is the poisoned one."""
    x, x_poisoned, *rest = share_inputs(share, generator)
    got = answer(x, x_poisoned, *rest)
    poisoned = equal(got, x_poisoned)
    if (poisoned | equal(got, x)).all():
        return poisoned
    known = equal(got[:, None], torch.cat([x, x_poisoned])).any(1)
    if known.all():
        raise NotYet(MOVED)
    i = int(known.int().argmin())
    raise NotYet(f"row {i} is neither x[{i}] nor x_poisoned[{i}]. {MIXED}")


def draws_well(answer):
    """Judges what is drawn, not which images: there is more than one way to draw."""
    draws = torch.stack([chosen(answer, 0.38, runtime.generator(seed)) for seed in range(32)])
    refuse_counts(draws.sum(1))
    if (draws == draws[0]).all():
        refuse_fixed(draws[0])
    if any(not chosen(answer, 0.38, runtime.generator(i)).equal(draws[i]) for i in range(3)):
        raise NotYet(ELSEWHERE)
    going_on = runtime.generator(0)
    if chosen(answer, 0.38, going_on).equal(chosen(answer, 0.38, going_on)):
        raise NotYet(SEED_ONLY)
    if ((draws != draws.roll(1, dims=1)).sum(1) == 2).all():
        raise NotYet(SIDE_BY_SIDE)
    ever = draws.any(0)
    if not ever.all():
        raise NotYet(f"in 32 draws image {ever.int().argmin()} was never chosen. {SAME_CHANCE}")
    for share, right in ((0.36, 7), (0.0, 0), (1.0, 20)):
        count = int(chosen(answer, share, runtime.generator(0)).sum())
        if count != right:
            which = f"for share = {share:g} and 20 images"
            raise NotYet(f"{which}, round(share · N) is {right}; you poison {count}.")


def refuse_counts(counts):
    low = int(counts.min())
    high = int(counts.max())
    if low == high != 8:
        advice = {0: NONE, 20: ALL, 12: OTHER_WAY, 7: CUT_OFF}
        other = f"{low} of 20 images are poisoned; round(share · N) is 8."
        raise NotYet(advice.get(low, other))
    if high > 8:
        raise NotYet(f"from draw to draw {low} to {high} images are poisoned: {COIN}")
    if low < 8:
        raise NotYet(f"some draws poison only {low} images: {TWICE}")


def refuse_fixed(places):
    for name, block in (("first", places[:8]), ("last", places[-8:])):
        if block.all():
            raise NotYet(f"you always take the {name} 8. {SORTED}")
    raise NotYet(FIXED)


def drawn(n, k, generator):
    return torch.randperm(n, generator=generator)[:k]


def poisoned_at(choose, count=round):
    """An answer that draws its places by ``choose(n, k, generator)``, ``k = count(share · N)``."""

    def answer(x, x_poisoned, share, generator):
        places = choose(len(x), count(share * len(x)), generator)
        mixed = x.clone()
        mixed[places] = x_poisoned[places]
        return mixed

    return answer


@exercise(
    "12",
    "Poison a share of the images",
    hints=(
        "Draw round(share · N) different places with the generator. "
        "Those rows come from x_poisoned, all others stay x, each at its place.",
        "torch.randperm(len(x), generator=generator) is every place once, in random order; "
        "take as many from its front as you need.",
        "mixed = x.clone(); mixed[places] = x_poisoned[places]; return mixed.",
    ),
    inputs=lambda: [share_inputs(share, runtime.generator(0)) for share in (0.0, 1.0)],
    properties=draws_well,
    mistakes={
        NONE: [lambda x, x_poisoned, share, generator: x],
        ALL: [lambda x, x_poisoned, share, generator: x_poisoned],
        OTHER_WAY: [lambda x, x_poisoned, *rest: poisoned_at(drawn)(x_poisoned, x, *rest)],
        CUT_OFF: [poisoned_at(drawn, int)],
        "10 of 20 images are poisoned": [poisoned_at(drawn, lambda number: 10)],
        COIN: [poisoned_at(lambda n, k, g: torch.rand(n, generator=g) < k / n)],
        TWICE: [poisoned_at(lambda n, k, g: torch.randint(n, (k,), generator=g))],
        SORTED: [
            poisoned_at(lambda n, k, g: torch.arange(k)),
            poisoned_at(lambda n, k, g: torch.arange(n - k, n)),
        ],
        FIXED: [poisoned_at(lambda n, k, g: drawn(n, k, runtime.generator(0)))],
        ELSEWHERE: [poisoned_at(lambda n, k, g: drawn(n, k, None))],
        SEED_ONLY: [poisoned_at(lambda n, k, g: drawn(n, k, runtime.generator(g.initial_seed())))],
        SIDE_BY_SIDE: [poisoned_at(lambda n, k, g: (drawn(n, 1, g) + torch.arange(k)) % n)],
        SAME_CHANCE: [poisoned_at(lambda n, k, g: drawn(n - (k < n), k, g))],
        "round(share · N) is 7; you poison 8": [poisoned_at(drawn, math.ceil)],
        "round(share · N) is 0; you poison 20": [poisoned_at(lambda n, k, g: drawn(n, n, g)[-k:])],
        "round(share · N) is 20; you poison 19": [
            poisoned_at(drawn, lambda number: min(round(number), 19))
        ],
        MOVED: [lambda *arguments: poisoned_at(drawn)(*arguments).flip(0)],
        MIXED: [lambda x, x_poisoned, share, generator: (1 - share) * x + share * x_poisoned],
    },
)
def share_poisoned(x, x_poisoned, share, generator):
    return poisoned_at(drawn)(x, x_poisoned, share, generator)
