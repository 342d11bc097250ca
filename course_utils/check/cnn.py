"""Exercises of lecture 01: ``accuracy`` and ``honest_accuracy``."""

import torch

from course_utils.check.exercise import exercise


def logits_and_labels():
    """Three of four images right, then all of them."""
    rows = [[2, 1, 0, 0.1], [0, 3, 1, 0.3], [5, 4, 6, 0.2], [1, 0.5, 0.2, 0.1]]
    logits = torch.tensor(rows)
    return [(logits, torch.tensor([0, 1, 0, 0])), (logits, logits.argmax(1))]


def count_right(case, got, want):
    logits, y = case
    right = int((logits.argmax(1) == y).sum())
    return (
        f"{right} of the {len(y)} images are right, so the accuracy is {want.item():.3g}; "
        f"you return {got.item():.3g}. Is argmax over the classes, dimension 1?"
    )


@exercise(
    "01",
    "Accuracy from logits",
    hints=(
        "The predicted class is where the logits are largest: argmax over the classes, "
        "which are dimension 1.",
        "(logits.argmax(1) == y) is a tensor of True and False; .float().mean() counts the share "
        "of True.",
    ),
    inputs=logits_and_labels,
    otherwise=count_right,
    mistakes={
        "that is the number of hits; divide by the number of images.": [
            lambda logits, y: (logits.argmax(1) == y).sum()
        ],
        "that is a percentage; the course gives accuracies in [0,1].": [
            lambda logits, y: 100 * (logits.argmax(1) == y).float().mean()
        ],
        "that is the error rate; accuracy is the share that is right.": [
            lambda logits, y: (logits.argmax(1) != y).float().mean()
        ],
        "not one image counts as right. Is argmax over the classes, dimension 1, and compared "
        "image by image?": [
            lambda logits, y: (logits.argmax(0) == y).float().mean(),
            lambda logits, y: (logits.argmax() == y).float().mean(),
            lambda logits, y: (logits.argmax(1) == y).all(),
        ],
    },
)
def accuracy(logits, y):
    return (logits.argmax(1) == y).float().mean()


def epochs():
    return [
        ([0.970, 0.985, 0.981, 0.983], [0.970, 0.980, 0.988, 0.984]),
        ([0.9, 0.8, 0.95], [0.99, 0.7, 0.91]),
    ]


def show_epochs(case, got, want):
    validation, test = (", ".join(map(str, values)) for values in case)
    return (
        f"for validation {validation} and test {test} the answer is {want.item():.4g}; "
        f"you return {got.item():.4g}."
    )


@exercise(
    "01",
    "Choose by validation, report on test",
    hints=(
        "Two lists, one number per epoch. Which epoch would you keep if you were not allowed to "
        "look at the test set?",
        "Find the epoch with the highest validation accuracy, and return the test accuracy of "
        "that epoch, whatever it is.",
    ),
    inputs=epochs,
    otherwise=show_epochs,
    mistakes={
        "that is the best test accuracy: choosing by it makes the test set part of the training. "
        "Choose by validation.": [lambda validation, test: max(test)],
        "that is the validation accuracy of the chosen epoch: it was used for choosing, "
        "so it flatters. Report test.": [lambda validation, test: max(validation)],
        "you choose by test and report validation; it is the other way round.": [
            lambda validation, test: validation[test.index(max(test))]
        ],
        "that is the last epoch; the one with the best validation accuracy is the second.": [
            lambda validation, test: test[-1]
        ],
        "that is the index of the epoch; return the test accuracy there.": [
            lambda validation, test: validation.index(max(validation))
        ],
    },
)
def honest_accuracy(validation, test):
    return test[validation.index(max(validation))]
