"""Exercises of lecture 04: ``targeted_loss`` and ``hit_rate``."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods.attacks import neg_log_likelihood


def objective_inputs():
    logits = torch.randn(4, 10, generator=runtime.generator(0), dtype=torch.float64)
    x_adv = answers.small_images(4, seed=1)
    return [(logits, torch.tensor([1, 5, 0, 9]), x_adv, answers.small_images(4), 30.0)]


def add_up(join, loss=neg_log_likelihood, size=torch.abs):
    """An objective: ``join(losses, sizes, lam)``, where sizes has one row of pixels per image."""

    def answer(logits, target, x_adv, x, lam):
        return join(loss(logits, target), size(x_adv - x).flatten(1), lam)

    return answer


def as_asked(losses, sizes, lam):
    return losses + lam * sizes.mean(1)


@exercise(
    "04",
    "The targeted objective",
    hints=(
        "Two terms per image: the cross-entropy of the target, "
        "and lam times the mean absolute difference.",
        "F.cross_entropy(logits, target, reduction='none') "
        "+ lam * (x_adv - x).abs().flatten(1).mean(1).",
    ),
    inputs=objective_inputs,
    otherwise=(
        "the value is not cross-entropy of the target + lam · mean |x_adv − x|, image by image."
    ),
    mistakes={
        "λ is missing: the distance counts lam times.": [
            add_up(lambda losses, sizes, lam: losses + sizes.mean(1))
        ],
        "λ is at the wrong term: the distance counts lam times, the cross-entropy once.": [
            add_up(lambda losses, sizes, lam: lam * losses + sizes.mean(1))
        ],
        "the cross-entropy of the target is missing.": [
            add_up(lambda losses, sizes, lam: lam * sizes.mean(1))
        ],
        "the distance is missing.": [add_up(lambda losses, sizes, lam: losses)],
        "that is the sum over the pixels; the slides take the mean, and λ = 30 belongs to it.": [
            add_up(lambda losses, sizes, lam: losses + lam * sizes.sum(1))
        ],
        "the distance has the wrong sign: minimising would drive x_adv away from x.": [
            add_up(lambda losses, sizes, lam: losses - lam * sizes.mean(1))
        ],
        "the cross-entropy has the wrong sign: minimising it must make the target likely.": [
            add_up(lambda losses, sizes, lam: lam * sizes.mean(1) - losses)
        ],
        "without absolute values, pixels that go up and down cancel.": [
            add_up(as_asked, size=torch.clone)
        ],
        "that is the mean square; this exercise asks for the absolute difference.": [
            add_up(as_asked, size=torch.square)
        ],
        "the cross-entropy is averaged over the batch; reduction='none' keeps one per image.": [
            add_up(as_asked, F.cross_entropy)
        ],
        "the distance is averaged over the batch too; flatten(1) and mean(1) keep one per image.": [
            add_up(lambda losses, sizes, lam: losses + lam * sizes.mean())
        ],
        answers.SOFTMAX_TWICE: [
            add_up(as_asked, lambda logits, target: neg_log_likelihood(logits.softmax(1), target))
        ],
    },
)
def targeted_loss(logits, target, x_adv, x, lam):
    return neg_log_likelihood(logits, target) + lam * (x_adv - x).abs().flatten(1).mean(1)


def predictions():
    """Seven images with one target, two of them of its class; three with a target each."""
    predicted = torch.tensor([3, 3, 3, 7, 2, 3, 0])
    y = torch.tensor([3, 3, 1, 1, 2, 0, 0])
    return [
        (predicted, y, torch.full((7,), 3)),
        (torch.tensor([1, 2, 5]), torch.tensor([0, 0, 5]), torch.tensor([1, 2, 3])),
    ]


def count_hits(case, got, want):
    if len(case[0]) == 7:
        right = "five images are attacked and two of them reach the target, so 0.4"
    else:
        right = "each image has its own target: two of three hits are 0.667"
    return f"{right}; you return {got.item():.3g}."


@exercise(
    "04",
    "Hit rate of a targeted attack",
    hints=(
        "An image that belongs to the target class was never attacked: leave it out of the count.",
        "attacked = y != target; return the mean of (predicted == target) "
        "over the attacked images.",
    ),
    inputs=predictions,
    otherwise=count_hits,
    mistakes={
        "images that are a 3 anyway count as hits of target 3. "
        "Leave out those whose true class is the target.": [
            lambda predicted, y, target: (predicted == target).double().mean()
        ],
        "you divide by all images; divide by those that were attacked, "
        "whose true class is not the target.": [
            lambda predicted, y, target: ((predicted == target) & (y != target)).double().mean()
        ],
        "that counts every mistake of the network; "
        "a targeted attack succeeds only where the target is predicted.": [
            lambda predicted, y, target: (predicted != y)[y != target].double().mean()
        ],
        "that is the error rate; a targeted attack succeeds only where the target is predicted.": [
            lambda predicted, y, target: (predicted != y).double().mean()
        ],
        "that is the number of hits; divide by the number of attacked images.": [
            lambda predicted, y, target: (predicted == target)[y != target].sum()
        ],
    },
)
def hit_rate(predicted, y, target):
    return (predicted == target)[y != target].double().mean()
