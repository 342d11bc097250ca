"""Exercises of lecture 10: the criterion, the cut, two projections, and equal training."""

import math

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods import autoencoders, unsupervised

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
    level="easy",
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
    level="core",
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


@exercise(
    "10",
    "How far cut noise brightens a black pixel",
    level="core",
    hints=(
        "A black pixel becomes max(0, σz). Half of the draws are cut to 0; "
        "what is the mean over all of them?",
        "E max(0, σz) = σ ∫₀^∞ z φ(z) dz, and z φ(z) is the derivative of −φ(z).",
        "σ φ(0) = σ / √(2π): sigma / (2 * torch.pi) ** 0.5.",
    ),
    inputs=lambda: [(0.01,), (0.001,), (0.2,)],
    otherwise=lambda case, got, want: (
        f"for sigma = {case[0]} it is {want.item():.5f}; you return {got.item():.5f}. "
        "Draw some and take the mean."
    ),
    mistakes={
        "the noise has mean 0, but not what is left after the cut: only the bright half is.": [
            lambda sigma: 0 * sigma
        ],
        "that is E |σz|, the mean of the bright half alone; the other half of the draws gives 0.": [
            lambda sigma: sigma * math.sqrt(2 / math.pi)
        ],
        "that is the standard deviation; the mean of max(0, σz) is smaller.": [lambda sigma: sigma],
        "half of the draws are cut, but the mean of the other half is not σ.": [
            lambda sigma: sigma / 2
        ],
        "that is φ(0) alone; it grows with σ.": [lambda sigma: 1 / math.sqrt(2 * math.pi)],
    },
)
def brightening(sigma):
    return sigma / math.sqrt(2 * math.pi)


def changes_and_layer():
    """Rows of different lengths, neither orthogonal nor independent: the last is a sum of two."""
    rng = runtime.generator(3)
    delta, weight = (torch.randn(n, 12, generator=rng, dtype=torch.float64) for n in (5, 4))
    weight *= torch.tensor([0.3, 1.0, 2.0, 1.0], dtype=torch.float64)[:, None]
    return [(delta, weight), (delta, torch.cat([weight, weight[:1] + weight[1:2]]))]


@exercise(
    "10",
    "What a linear layer does not see",
    level="core",
    hints=(
        "W unseen = 0. Split δ into a part made of the rows of W and the rest; return the rest.",
        "The rows are neither orthogonal nor of length 1, so Wᵀ W δ is not the seen part. "
        "W⁺ W δ is, with W⁺ = torch.linalg.pinv(W).",
        "Images are rows here: delta - delta @ (torch.linalg.pinv(weight) @ weight).T.",
    ),
    inputs=changes_and_layer,
    mistakes={
        "that is what the layer sees; subtract it from δ.": [
            lambda delta, weight: delta - unsupervised.unseen(delta, weight)
        ],
        "the rows of W are not orthonormal, so δ − WᵀWδ is no projection: "
        "put the pseudoinverse in the place of the first Wᵀ.": [
            lambda delta, weight: delta - delta @ weight.T @ weight
        ],
        "with rows of length 1 that is right only if they are orthogonal; use the pseudoinverse.": [
            lambda delta, weight: (
                delta
                - delta
                @ torch.nn.functional.normalize(weight, dim=1).T
                @ torch.nn.functional.normalize(weight, dim=1)
            )
        ],
    },
)
def unseen(delta, weight):
    return unsupervised.unseen(delta, weight)


def directions_and_slopes():
    """One goes uphill steeply, one gently, one downhill, one level."""
    rng = runtime.generator(5)
    away, slope = (torch.randn(4, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    away[0] = away[0].abs() * slope[0].sign()
    away[1] = away[0] + 0.1 * slope[1]
    away[1] *= (away[1] * slope[1]).sum().sign()
    away[2] = -slope[2] + 0.3 * away[2]
    away[3] -= (away[3] @ slope[3]) / (slope[3] @ slope[3]) * slope[3]
    return [(away, slope)]


def tangential(uphill=lambda d: d.clamp(min=0), length=lambda s: (s * s).sum(1)):
    """A wrong rest: ``uphill`` of ⟨away, slope⟩, over ``length`` of the slope."""
    return lambda away, slope: (
        away - (uphill((away * slope).sum(1)) / length(slope))[:, None] * slope
    )


@exercise(
    "10",
    "A step that does not raise f",
    level="hard",
    hints=(
        "To first order a step raises f by ⟨away, slope⟩. "
        "Where that is positive, subtract the part along the slope; where not, leave all.",
        "The part of a along s is ⟨a, s⟩ / ⟨s, s⟩ · s. Each row has its own ⟨a, s⟩.",
        "uphill = (away * slope).sum(1, keepdim=True).clamp(min=0); "
        "return away - uphill / slope.square().sum(1, keepdim=True) * slope.",
    ),
    inputs=directions_and_slopes,
    mistakes={
        "a step that lowers f may keep that part: clamp ⟨away, slope⟩ to 0 or more.": [
            tangential(uphill=lambda d: d)
        ],
        "the sign is turned: you remove the part that LOWERS f.": [
            tangential(uphill=lambda d: d.clamp(max=0))
        ],
        "divide by ⟨s, s⟩, the square of the length: s / ‖s‖ comes twice.": [
            tangential(length=lambda s: s.norm(dim=1))
        ],
        "divide by ⟨s, s⟩: the slope has no length of 1.": [
            tangential(length=lambda s: torch.ones_like(s[:, 0]))
        ],
        "that is the part along the slope; the rest is asked for.": [
            lambda away, slope: away - tangential()(away, slope)
        ],
        "each image has its own ⟨away, slope⟩: sum over its pixels, not over the batch.": [
            lambda away, slope: (
                away - (away * slope).sum().clamp(min=0) / (slope * slope).sum() * slope
            )
        ],
        "that is length 1, but the length is chosen elsewhere.": [
            lambda away, slope: torch.nn.functional.normalize(tangential()(away, slope), dim=1)
        ],
    },
)
def tangent(away, slope):
    return tangential()(away, slope)
