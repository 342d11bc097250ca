"""Exercises of lecture 08: ``dv_bound`` and ``projected_information``."""

import math

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.methods import mutual_information

bound = mutual_information.dv_bound
information = mutual_information.projected_information


def critic_values():
    """Usual values, large ones, very negative ones; the number of samples changes too."""
    joint = torch.tensor([1.5, -0.2, 2.3, 0.9, 3.1, 0.4], dtype=torch.float64)
    marginal = torch.tensor([-1.2, 0.7, 0.1, -2.5, 1.6, -0.4], dtype=torch.float64)
    return [
        (joint, marginal),
        (joint[:4].clone(), marginal[:4] + 1000),
        (joint[:5].clone(), marginal[:5] - 1000),
    ]


def second_term(term):
    """A wrong bound: ``term(marginal)`` is subtracted from the mean over joint."""
    return lambda a, b: a.mean() - term(b)


def log_mean_exp(v):
    return v.logsumexp(0) - math.log(len(v))


def shifted(v, by):
    """Log mean exp of values that are made smaller by ``by`` before exp."""
    return (v - by).exp().mean().log()


@exercise(
    "08",
    "The Donsker–Varadhan bound",
    hints=(
        "Two terms: the mean of the critic on joint samples, minus the log of the mean of exp of "
        "the critic on shuffled ones.",
        "exp(1000) overflows. torch.logsumexp(v, 0) is log of the SUM of exp, and does not; "
        "a mean is the sum divided by K.",
        "joint.mean() - (marginal.logsumexp(0) - math.log(len(marginal))).",
    ),
    inputs=critic_values,
    learns=("joint", "marginal"),
    otherwise=lambda case, got, want: (
        f"for {len(case[0])} samples with critic values around {case[1][0]:.0f} "
        f"the bound is {want.item():.4g} nats; you return {got.item():.4g}."
    ),
    mistakes={
        # These two come first: with the large values, others give inf as well.
        "for critic values like −1000 every exp is 0, and log 0 is −inf. torch.logsumexp knows "
        "the way around.": [second_term(lambda v: shifted(v, v.relu().max()) + v.relu().max())],
        "for critic values like 1000 exp overflows. torch.logsumexp knows the way around.": [
            second_term(lambda v: shifted(v, 0))
        ],
        "that is the log of the SUM of exp. The mean divides by K first: "
        "subtract log K from logsumexp.": [second_term(lambda v: v.logsumexp(0))],
        "log K has the wrong sign: log mean exp is logsumexp − log K.": [
            second_term(lambda v: v.logsumexp(0) + math.log(len(v)))
        ],
        "the log is inside the mean, where it undoes exp: that is mean(marginal). "
        "First exp, then the mean, then log.": [second_term(torch.mean)],
        "the log is missing: log of the mean of exp(marginal).": [
            second_term(lambda v: v.exp().mean())
        ],
        "that is another bound (of the f-divergences). "
        "Donsker–Varadhan takes the log of the mean of exp.": [
            second_term(lambda v: (v - 1).exp().mean())
        ],
        "the sign is turned: that is what an optimiser would descend. "
        "The bound itself is mean(joint) − log mean exp(marginal).": [lambda a, b: -bound(a, b)],
        "the second term is subtracted: a critic that is large everywhere must gain nothing.": [
            second_term(lambda v: -log_mean_exp(v))
        ],
        "the arguments are swapped: the plain mean is over joint, exp over marginal.": [
            lambda a, b: bound(b, a)
        ],
        "that counts in bits, with the logarithm to base 2; "
        "nats take the natural one, torch.log.": [
            lambda a, b: bound(a, b) / math.log(2),
            second_term(lambda v: log_mean_exp(v) / math.log(2)),
        ],
        "exp and log are in both terms; the joint one is a plain mean.": [
            lambda a, b: log_mean_exp(a) - log_mean_exp(b)
        ],
        "the first term is a sum over the samples; take the mean.": [
            lambda a, b: a.sum() - log_mean_exp(b)
        ],
        "only the joint term is there; the shuffled samples are missing.": [lambda a, b: a.mean()],
        "only the shuffled term is there; mean(joint) is missing.": [lambda a, b: -log_mean_exp(b)],
        "the largest value was subtracted before exp, so that nothing overflows; "
        "add it again after log.": [second_term(lambda v: shifted(v, v.max()))],
    },
)
def dv_bound(joint, marginal):
    return bound(joint, marginal)


def pairs_of_images():
    x = answers.small_images(5)
    return [(x, (x + 0.7 * answers.small_images(5, seed=1)).clamp(0, 1), 16)]


def centred(x):
    return x - x.mean((1, 2, 3), keepdim=True)


@exercise(
    "08",
    "The information of Gaussian projections, in closed form",
    hints=(
        "Each projected coordinate is a pair of Gaussians whose correlation is the cosine between "
        "the two images; the coordinates are independent.",
        "One pair of correlation ρ has −½ ln(1 − ρ²) nats, ``size`` independent ones have "
        "``size`` times that.",
        "cosine = torch.cosine_similarity(x.flatten(1), x_adv.flatten(1)); "
        "return -size / 2 * torch.log(1 - cosine**2).",
    ),
    inputs=pairs_of_images,
    mistakes={
        "the sign is turned: the logarithm is negative, and information is not.": [
            lambda a, b, size: -information(a, b, size)
        ],
        "that is one coordinate; ``size`` independent ones have ``size`` times as much.": [
            lambda a, b, size: information(a, b, 1)
        ],
        "one pair of Gaussians has −½ ln(1 − ρ²): the ½ is missing.": [
            lambda a, b, size: 2 * information(a, b, size)
        ],
        "the correlation enters squared: 1 − ρ².": [
            lambda a, b, size: (
                -size / 2 * torch.log(1 - torch.cosine_similarity(a.flatten(1), b.flatten(1)))
            )
        ],
        "that counts in bits; nats take the natural logarithm, torch.log.": [
            lambda a, b, size: information(a, b, size) / math.log(2)
        ],
        "that is the correlation of the pixels. The projections keep the mean: "
        "take the cosine of the images as they are.": [
            lambda a, b, size: information(centred(a), centred(b), size)
        ],
        "the cosine runs over the whole batch; each image has one of its own: flatten(1).": [
            lambda a, b, size: information(a[None], b[None], size).expand(len(a))
        ],
        "the number of coordinates is ``size``, not the number of pixels.": [
            lambda a, b, size: information(a, b, a[0].numel())
        ],
    },
)
def projected_information(x, x_adv, size):
    return information(x, x_adv, size)
