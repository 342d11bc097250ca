"""Exercises of lecture 12: what a victim has learned, and how one finds out."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from course_utils.check import answers
from course_utils.check.answers import NotYet
from course_utils.check.exercise import exercise
from course_utils.core import runtime

CLASSES = 4
COUNT = "that is a number of images; divide by how many there are: mean(), not sum()."
EACH_CLASS = "one answer for each class: shape (classes,)."


def normalised_model() -> nn.Module:
    """A small network with batch norm whose running statistics are not those of its images."""
    with runtime.seeded(1):
        layers = [nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)]
        model = nn.Sequential(nn.Flatten(), *layers).double()
    with torch.no_grad():
        model(answers.small_images(32, seed=3) ** 2)  # sets the running statistics
    return model.eval()


def conflicts() -> tuple:
    """Images, their classes, noise, and the classes of the noise: a quarter are the same."""
    x = answers.small_images(60)
    draw = runtime.generator(20)  # one at which every mistake gives another share
    noise = 0.5 * torch.randn(x.shape, generator=draw, dtype=torch.float64).sign()
    y, noise_y = (torch.randint(CLASSES, (60,), generator=draw) for _ in range(2))
    return x, y, noise, noise_y


def alone_inputs():
    x, y, noise, _ = conflicts()
    return [(normalised_model(), x, x + noise, y)]


def share_of(seen: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (seen == y).double().mean()


def sees(model, images):
    return model(images).argmax(1)


def alone_if(change: Callable) -> Callable:
    """A wrong answer to ``noise_alone``: the share right on ``change(x, x_poisoned)``."""
    return lambda model, x, x_poisoned, y: share_of(sees(model, change(x, x_poisoned)), y)


@exercise(
    "12",
    "Noise alone",
    level="easy",
    hints=(
        "The noise is what the attacker added. Get it back from the two sets of images, and show "
        "the model nothing else.",
        "x_poisoned - x is the noise; model(…).argmax(1) is the class that the model sees in it.",
        "return (model(x_poisoned - x).argmax(1) == y).double().mean().",
    ),
    inputs=alone_inputs,
    otherwise="it is not the share of the images whose class the model sees in x_poisoned − x.",
    mistakes={
        "those are the poisoned images, with the digit under the noise. Subtract x.": [
            alone_if(lambda x, x_poisoned: x_poisoned)
        ],
        "those are the clean images; the model shall see the noise, x_poisoned − x.": [
            alone_if(lambda x, x_poisoned: x)
        ],
        "the sign is turned: the noise is x_poisoned − x.": [
            alone_if(lambda x, x_poisoned: x - x_poisoned)
        ],
        "noise has both signs, and the model takes them: do not cut it to [0,1].": [
            alone_if(lambda x, x_poisoned: (x_poisoned - x).clamp(0, 1))
        ],
        "that is the noise without its sign. Feed it as it was added: x_poisoned − x.": [
            alone_if(lambda x, x_poisoned: (x_poisoned - x).abs())
        ],
        COUNT: [lambda *given: len(given[1]) * noise_alone.right(*given)],
        "that is the share it misses; the share it tells is asked for.": [
            lambda *given: 1 - noise_alone.right(*given)
        ],
    },
)
def noise_alone(model, x, x_poisoned, y):
    return share_of(sees(model, x_poisoned - x), y)


def believed_if(model, x, y, noise, noise_y, *, cut=True, digit=True, rows=None, label=None):
    """The share of some rows that is seen as ``label``, by default the class of the noise."""
    shown = x + noise if digit else noise
    seen = sees(model, shown.clamp(0, 1) if cut else shown)
    rows = y != noise_y if rows is None else rows
    return share_of(seen[rows], (noise_y if label is None else label)[rows])


def against_all(model, x, y, noise, noise_y):
    """Counts over all images where only those in conflict can be right."""
    hits = (sees(model, (x + noise).clamp(0, 1)) == noise_y) & (y != noise_y)
    return hits.double().mean()


@exercise(
    "12",
    "Noise against digit",
    level="core",
    hints=(
        "Put the noise on the image, cut to [0,1], and look what the model sees. Where both have "
        "the same class there is no conflict: those rows do not count.",
        "rows = y != noise_y chooses the rows that count, in the images and in the classes.",
        "seen = model((x + noise).clamp(0, 1)).argmax(1); rows = y != noise_y; "
        "return (seen[rows] == noise_y[rows]).double().mean().",
    ),
    inputs=lambda: [(normalised_model(), *conflicts())],
    otherwise="it is not the share, among the images with y ≠ noise_y, that is seen as noise_y.",
    mistakes={
        "rows whose noise has the image's own class are in it. There is no conflict: they would "
        "count for the noise and for the digit.": [
            lambda *given: believed_if(*given, rows=torch.ones_like(given[2], dtype=torch.bool))
        ],
        "the rows without a conflict are left out above and not below: divide by the number of "
        "rows with y ≠ noise_y.": [against_all],
        "x + noise leaves [0,1]; the attacker's images are images: clamp(0, 1).": [
            partial(believed_if, cut=False)
        ],
        "that is the share that believes the digit; the share that believes the noise is asked "
        "for.": [lambda *given: believed_if(*given, label=given[2])],
        "that is the noise without a digit: there is nothing that it could win against.": [
            partial(believed_if, digit=False),
            partial(believed_if, digit=False, cut=False),
        ],
        "that is the share that does not believe the noise.": [
            lambda *given: 1 - believed_if(*given)
        ],
        COUNT: [lambda *given: (given[2] != given[4]).sum() * believed_if(*given)],
    },
)
def believes_noise(model, x, y, noise, noise_y):
    return believed_if(model, x, y, noise, noise_y)


KEPT = "those are the running statistics of the training: the model is still in eval mode."


def leaves_statistics(answer):
    """Says which part of a model has changed, before the driver says that something has."""
    model = normalised_model()
    before = copy.deepcopy(model.state_dict())
    try:
        answer(model, answers.small_images())
    except NotYet:
        after = model.state_dict()
        if not torch.equal(after["2.running_mean"], before["2.running_mean"]):
            raise NotYet(
                "the running statistics have changed: in train mode every forward pass moves "
                "them. Work on a copy of the model: copy.deepcopy(model)."
            ) from None
        raise


def in_train_mode(model, x):
    return copy.deepcopy(model).train()(x)


@exercise(
    "12",
    "By the statistics of the batch",
    level="core",
    hints=(
        "In train mode batch norm takes mean and variance from the batch that it sees. And it "
        "also moves its running statistics: whose model may that happen to?",
        "copy.deepcopy(model) is a model of its own; its train mode and its statistics are no "
        "one else's business.",
        "return copy.deepcopy(model).train()(x).",
    ),
    inputs=lambda: [(normalised_model(), answers.small_images(12))],
    properties=leaves_statistics,
    otherwise="those are not the logits by the mean and variance of this batch.",
    mistakes={
        KEPT: [lambda model, x: model(x), lambda model, x: copy.deepcopy(model).eval()(x)],
        "those are probabilities; return the logits.": [
            lambda model, x: in_train_mode(model, x).softmax(1)
        ],
        "each half of the batch has statistics of its own here; show the model the whole batch.": [
            lambda model, x: torch.cat([in_train_mode(model, part) for part in x.chunk(2)])
        ],
        "the logits themselves are normalised; batch norm stands inside the model.": [
            lambda model, x: (model(x) - model(x).mean(0)) / model(x).std(0)
        ],
        "the images are normalised; batch norm stands inside the model.": [
            lambda model, x: model((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt())
        ],
    },
)
def by_the_batch(model, x):
    return in_train_mode(model, x)


def answers_given():
    y = torch.tensor([0] * 9 + [1] * 8 + [2] * 8 + [3] * 7)
    seen = [0, 0, 0, 0, 1, 1, 3, 3, 3] + [2, 2, 2, 0, 1, 1, 1, 1] + [1, 1, 1, 1, 1, 0, 2, 2]
    seen = torch.tensor(seen + [2, 2, 1, 1, 1, 3, 0])
    order = torch.randperm(len(y), generator=runtime.generator(0))
    return [(seen[order], y[order], CLASSES)]


def counted(seen, y, classes):
    """Row: true class; column: what is seen."""
    table = torch.zeros(classes, classes, dtype=torch.int64)
    return table.index_put_((y, seen), torch.ones_like(y), accumulate=True)


def without_diagonal(seen, y, classes):
    return counted(seen, y, classes).fill_diagonal_(0)


@exercise(
    "12",
    "The favourite mistake",
    level="easy",
    hints=(
        "For each true class count what is seen instead of it. The right answers are no mistakes: "
        "leave them out before you look for the largest.",
        "A table of counts, row y and column seen: table[y, seen] += 1 would lose repeats; "
        "table.index_put_((y, seen), torch.ones_like(y), accumulate=True) counts them.",
        "table.fill_diagonal_(0) takes out the right answers; return table.argmax(1).",
    ),
    inputs=answers_given,
    otherwise=lambda case, got, want: (
        f"for class {(i := answers.first_difference(got, want))} the commonest wrong answer is "
        f"{want[i]:.0f}; you return {got[i]:.0f}."
    ),
    mistakes={
        "the right answers are in it. A mistake is an answer other than the class itself.": [
            lambda *given: counted(*given).argmax(1)
        ],
        "rows and columns are exchanged: that is, for each answer, the class it is most often "
        "given to.": [lambda *given: without_diagonal(*given).argmax(0)],
        "that is how often the favourite mistake is made; which one it is, is asked for.": [
            lambda *given: without_diagonal(*given).amax(1)
        ],
        "that is the class that the noise aims at, whatever the victim sees; count its answers.": [
            lambda seen, y, classes: (torch.arange(classes) + 1) % classes
        ],
        "that is one class for all, the commonest wrong answer over the whole set. " + EACH_CLASS: [
            lambda *given: without_diagonal(*given).sum(0).argmax().repeat(given[2])
        ],
        "that is the rarest answer; the commonest wrong one is asked for: argmax.": [
            lambda *given: counted(*given).argmin(1)
        ],
        "each pair is counted once, however often it comes: a plain += with indices loses "
        "repeats. index_put_(…, accumulate=True) counts them.": [
            lambda *given: without_diagonal(*given).clamp(max=1).argmax(1)
        ],
    },
)
def favourite_mistakes(seen, y, classes):
    return without_diagonal(seen, y, classes).argmax(1)


def additivity(f, x, noise, *, origin=True, centre=0, square=True):
    """1 − rest / spread, with what a mistake leaves out."""
    together = f(x + noise)
    rest = together - f(x) - f(noise)
    if origin:
        rest = rest + f(torch.zeros_like(x))
    spread = together if centre is None else together - together.mean(centre, keepdim=True)
    if square:
        return 1 - rest.square().sum() / spread.square().sum()
    return 1 - rest.abs().sum() / spread.abs().sum()


def additive_inputs():
    x, _, noise, _ = conflicts()
    return [(answers.small_model(), 0.6 * x[:12], 0.4 * noise[:12])]


@exercise(
    "12",
    "How additive is a network?",
    level="hard",
    hints=(
        "If f were linear plus a constant, f(x + g) would be f(x) + f(g) − f(0). What is left of "
        "the difference, squared and summed, is the rest.",
        "The spread is what there is to explain: f(x + g) minus its mean over the images, class "
        "by class, squared and summed.",
        "rest = f(x + noise) - f(x) - f(noise) + f(0); spread = f(x + noise) - its mean(0); "
        "return 1 - rest.square().sum() / spread.square().sum().",
    ),
    inputs=additive_inputs,
    otherwise="it is not 1 − Σ rest² / Σ spread².",
    mistakes={
        "f(0) is missing. A constant stands once in f(x + g), and twice in f(x) + f(g).": [
            partial(additivity, origin=False)
        ],
        "the spread is taken around zero. A constant needs no explanation: subtract the mean over "
        "the images.": [partial(additivity, centre=None)],
        "the mean is over the classes of an image; take it over the images, mean(0).": [
            partial(additivity, centre=1)
        ],
        "one mean for all classes; each logit has its own, mean(0).": [
            partial(additivity, centre=(0, 1))
        ],
        "square the differences before you sum.": [partial(additivity, square=False)],
        "that is the share that is left; subtract it from 1.": [
            lambda *given: 1 - additivity(*given)
        ],
        "the root is taken; the shares are of squares.": [
            lambda *given: 1 - (1 - additivity(*given)).sqrt()
        ],
    },
)
def additive_share(f, x, noise):
    return additivity(f, x, noise)
