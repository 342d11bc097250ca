"""Exercises of lecture 10: ``uae_criterion`` and ``matched_epochs``."""

import math

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods import autoencoders

ORIGINAL = (
    "the target is x_adv in the first term. "
    "What counts is how well the ORIGINAL comes back: ‖x − Φ(x_adv)‖²."
)
PIXELS = "that is the mean over the pixels; the criterion sums the squares."


def moved_images():
    with runtime.seeded(0):
        model = autoencoders.dense(size=8, hidden=16).double().eval()
    with torch.no_grad():
        model.dense1.weight *= 4
        model.dense2.weight *= 4
    x = answers.small_images()
    return [(model, x, (x + 0.6 * answers.small_images(seed=1) - 0.3).clamp(0, 1))]


def total(v):
    return v.square().flatten(1).sum(1)


def wrong(f):
    """A wrong criterion: ``f(x, v, a, b)``, where v = x_adv, a = Φ(x_adv) and b = Φ(x)."""
    return lambda model, x, x_adv: f(x, x_adv, model(x_adv), model(x))


def changed(change):
    """A wrong criterion: ``change(f)`` of the right one, f."""
    return lambda *arguments: change(uae_criterion.right(*arguments))


@exercise(
    "10",
    "The criterion of an unsupervised adversarial example",
    hints=(
        "Does the autoencoder give the ORIGINAL back from x_adv at least as well as from x itself? "
        "The target is x in both terms.",
        "(x - model(x_adv)).square() holds one number per pixel. "
        "flatten(1).sum(1) adds those of one image.",
        "Subtract the same with model(x). No detach() and no no_grad around model(x_adv): "
        "the attack needs the gradient there.",
    ),
    inputs=moved_images,
    learns=("x_adv",),
    mistakes={
        ORIGINAL: [wrong(lambda x, v, a, b: total(v - a) - total(x - b))],
        "the target is x_adv in both terms; it is the original x in both.": [
            wrong(lambda x, v, a, b: total(v - a) - total(v - b))
        ],
        "the target of the second term is x_adv; it is the original x in both.": [
            wrong(lambda x, v, a, b: total(x - a) - total(v - b))
        ],
        "x and x_adv are swapped: the target is x in both terms, and Φ(x_adv) comes first.": [
            wrong(lambda x, v, a, b: total(v - b) - total(v - a))
        ],
        "that is how well x_adv comes back. "
        "The target is the original x, and ‖x − Φ(x)‖² is subtracted.": [
            wrong(lambda x, v, a, b: total(v - a))
        ],
        "the sign is turned: f is at most 0 where x_adv gives x back at least as well as x does.": [
            changed(torch.neg)
        ],
        PIXELS: [changed(lambda f: f / 64)],
        f"{PIXELS} And the sign is turned.": [changed(lambda f: -f / 64)],
        f"{ORIGINAL} And the squares are summed over the pixels, not averaged.": [
            wrong(lambda x, v, a, b: (total(v - a) - total(x - b)) / 64)
        ],
        "the second term is missing: subtract ‖x − Φ(x)‖², how well x itself comes back.": [
            wrong(lambda x, v, a, b: total(x - a))
        ],
        "the first term is missing: ‖x − Φ(x_adv)‖².": [wrong(lambda x, v, a, b: total(x - b))],
        "the terms are added; subtract the second.": [
            wrong(lambda x, v, a, b: total(x - a) + total(x - b))
        ],
        "that is f⁺; here the criterion f itself is asked for, "
        "negative where the attack has succeeded.": [changed(torch.relu)],
        "those are the norms; the criterion takes their squares, without the root.": [
            wrong(lambda x, v, a, b: total(x - a).sqrt() - total(x - b).sqrt())
        ],
        "those are absolute differences; the criterion squares them.": [
            wrong(lambda x, v, a, b: ((x - a).abs() - (x - b).abs()).flatten(1).sum(1))
        ],
        "that compares the two reconstructions; each is compared with x, "
        "and then they are subtracted.": [wrong(lambda x, v, a, b: total(b - a))],
        "that is the size of the perturbation; the autoencoder is missing.": [
            wrong(lambda x, v, a, b: total(x - v))
        ],
        "that is the mean over the batch; every image has its own f.": [
            changed(lambda f: f.mean().expand(6))
        ],
        "that is the sum over the batch; every image has its own f.": [
            changed(lambda f: f.sum().expand(6))
        ],
        "the second term is averaged over the batch; every image has its own.": [
            wrong(lambda x, v, a, b: total(x - a) - total(x - b).mean())
        ],
        "the first term is averaged over the batch; every image has its own.": [
            wrong(lambda x, v, a, b: total(x - a).mean() - total(x - b))
        ],
    },
)
def uae_criterion(model, x, x_adv):
    return total(x - model(x_adv)) - total(x - model(x))


def training_sets():
    """Images, images with their augmentation, epochs, batch size."""
    return [
        (100, 200, 10, 50),
        (100, 250, 7, 40),
        (130, 260, 10, 100),
        (90, 270, 3, 100),
        (2000, 2000, 20, 100),
        (150, 160, 5, 50),
    ]


def counted(batches, rounded):
    """A wrong number: ``batches`` rounds the batches of one epoch, ``rounded`` the result."""
    return lambda images, augmented, epochs, size: rounded(
        epochs * batches(augmented / size) / batches(images / size)
    )


@exercise(
    "10",
    "Epochs that take as many steps",
    hints=(
        "An epoch has one step per batch, and the last batch may be smaller. "
        "Count the steps of the augmented training first.",
        "Steps: epochs · ⌈augmented / batch_size⌉. "
        "Divide by the steps of one epoch on the original images, and round up.",
        "steps = epochs * -(-augmented // batch_size); "
        "return -(-steps // -(-images // batch_size)).",
    ),
    inputs=training_sets,
    otherwise=lambda case, got, want: (
        f"for {case} it is {want.item():g}; you return {got.item():g}."
    ),
    mistakes={
        "the same number of epochs means more steps on the larger set; "
        "the steps are what must match.": [lambda images, augmented, epochs, size: epochs],
        "epochs are whole numbers: round up, so that no step is missing.": [
            counted(math.ceil, float),
            counted(float, float),
        ],
        "that is the ratio of the images, but the last batch of an epoch is a step too, "
        "however small.": [counted(float, math.ceil)],
        "one too few: round up both times, a smaller last batch is a step too.": [
            counted(math.ceil, math.floor)
        ],
    },
)
def matched_epochs(images, augmented, epochs, batch_size):
    steps = epochs * math.ceil(augmented / batch_size)
    return math.ceil(steps / math.ceil(images / batch_size))
