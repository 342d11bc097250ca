"""Exercises of lecture 08: a closed form, a bound and its gap, and what one image's samples say."""

import math

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods import bounds, mutual_information
from course_utils.methods.bounds import entropy

information = mutual_information.projected_information
BITS = "that counts in bits; nats take the natural logarithm, torch.log."


def pairs_of_images():
    x = answers.small_images(5)
    return [(x, (x + 0.7 * answers.small_images(5, seed=1)).clamp(0, 1), 16)]


def centred(x):
    return x - x.mean((1, 2, 3), keepdim=True)


@exercise(
    "08",
    "The information of Gaussian projections, in closed form",
    level="easy",
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
        BITS: [lambda a, b, size: information(a, b, size) / math.log(2)],
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


def critic_values():
    """Usual values; then large and very negative ones, which exp cannot take as they are."""
    values = torch.randn(5, 5, generator=runtime.generator(2), dtype=torch.float64)
    values = 2 * values + 3 * torch.eye(5)
    return [(values,), (values[:4, :4] + 1000,), (values[1:, 1:] - 1000,)]


def less(term, mean=torch.mean):
    """A wrong bound: ``term(values)`` is subtracted from the diagonal."""
    return lambda values: mean(values.diagonal() - term(values))


def log_mean_exp(values, dim=1):
    return values.logsumexp(dim) - math.log(values.shape[dim])


@exercise(
    "08",
    "InfoNCE, a bound from all pairs",
    level="easy",
    hints=(
        "Row i holds the critic's values of u_i with every v_j. How much does the right one, on "
        "the diagonal, stand out of its row?",
        "For each row: its value on the diagonal, minus the log of the mean of exp over the row. "
        "values.logsumexp(1) is the log of the SUM of exp, and does not overflow.",
        "return (values.diagonal() - values.logsumexp(1) + math.log(len(values))).mean().",
    ),
    inputs=critic_values,
    learns=("values",),
    mistakes={
        "exp overflows for critic values like 1000, and log 0 is −inf for −1000. "
        "values.logsumexp(1) knows the way around.": [less(lambda v: v.exp().mean(1).log())],
        "that is the log of the SUM of exp over a row. The mean divides by K: add log K.": [
            less(lambda v: v.logsumexp(1))
        ],
        "log K has the wrong sign: log mean exp is logsumexp − log K.": [
            less(lambda v: v.logsumexp(1) + math.log(len(v)))
        ],
        "the mean of exp runs over columns; each u_i is a row: logsumexp(1).": [
            less(lambda v: log_mean_exp(v, 0))
        ],
        "the log of the mean runs over all pairs at once; InfoNCE takes it row by row.": [
            less(lambda v: v.flatten().logsumexp(0) - 2 * math.log(len(v)))
        ],
        "take the mean over the rows, not their sum.": [less(log_mean_exp, torch.sum)],
        "the log is inside the mean, where it undoes exp. First exp, then the mean, then log.": [
            less(lambda v: v.mean(1))
        ],
        "the sign is turned: that is the loss that an optimiser descends.": [
            lambda v: -bounds.infonce_bound(v)
        ],
        BITS: [lambda v: bounds.infonce_bound(v) / math.log(2)],
    },
)
def infonce_bound(values):
    return bounds.infonce_bound(values)


def table_and_critic():
    rng = runtime.generator(4)
    p = torch.rand(3, 4, generator=rng, dtype=torch.float64) + 0.1
    return [(p / p.sum(), 2 * torch.randn(3, 4, generator=rng, dtype=torch.float64))]


def by_critic(p, T):
    """q: the independent distribution, tilted by the critic."""
    q = p.sum(1, keepdim=True) * p.sum(0) * T.exp()
    return q / q.sum()


def divergence(p, q):
    return (p * (p / q).log()).sum()


@exercise(
    "08",
    "The gap of the bound is a KL divergence",
    level="core",
    hints=(
        "First the two marginals: p.sum(1) and p.sum(0). Their product is the table of "
        "independent variables.",
        "q = p.sum(1, keepdim=True) * p.sum(0) * T.exp(), then q / q.sum(). "
        "KL(p ‖ q) is the sum of p · ln(p / q).",
        "return (p * (p / q).log()).sum().",
    ),
    inputs=table_and_critic,
    mistakes={
        "q must add up to 1: divide by its sum, which is Z.": [
            lambda p, T: divergence(p, p.sum(1, keepdim=True) * p.sum(0) * T.exp())
        ],
        "that is KL(q ‖ p); the gap is KL(p ‖ q), with p in front.": [
            lambda p, T: divergence(by_critic(p, T), p)
        ],
        "that is the bound itself; the gap is what it lacks.": [
            lambda p, T: (p * T).sum() - (p.sum(1, keepdim=True) * p.sum(0) * T.exp()).sum().log()
        ],
        "that is the mutual information; the critic does not appear.": [
            lambda p, T: divergence(p, p.sum(1, keepdim=True) * p.sum(0))
        ],
        "q is made from the independent table p(u) p(v), not from p itself.": [
            lambda p, T: divergence(p, p * T.exp() / (p * T.exp()).sum())
        ],
        "the critic enters as e^T: T.exp().": [
            lambda p, T: divergence(p, by_critic(p, (T - T.min() + 1).log()))
        ],
        "the sign is turned: a KL divergence is never negative.": [
            lambda p, T: -divergence(p, by_critic(p, T))
        ],
        BITS: [lambda p, T: divergence(p, by_critic(p, T)) / math.log(2)],
    },
)
def kl_gap(p, T):
    return divergence(p, by_critic(p, T))


def values_and_shuffles():
    joint = torch.tensor([1.5, -0.2, 2.3, 0.9, 3.1, 0.4], dtype=torch.float64)
    orders = torch.tensor([[1, 0, 2, 3, 5, 4], [0, 2, 3, 1, 5, 4], [1, 2, 3, 4, 5, 0]])
    return [(joint, order) for order in orders]


def capped(best=torch.amax, log=math.log, none=torch.inf, mean=torch.mean):
    """The right cap, or a wrong one."""

    def answer(joint, order):
        stays = order == torch.arange(len(order))
        if not stays.any():
            return joint.new_tensor(none)
        return log(len(order)) + mean(joint) - best(joint[stays])

    return answer


@exercise(
    "08",
    "What a shuffle with fixed points can show at most",
    level="core",
    hints=(
        "order[k] == k marks the samples that stay in place. If none does, nothing limits the "
        "bound: torch.inf.",
        "One fixed point alone makes the mean of exp T at least exp(T_k)/K. "
        "Put that into mean T − log mean exp T. Which fixed point limits most?",
        "fixed = order == torch.arange(len(order)); "
        "return math.log(len(order)) + joint.mean() - joint[fixed].max(), or torch.inf.",
    ),
    inputs=values_and_shuffles,
    mistakes={
        "without a fixed point nothing limits the bound: return torch.tensor(torch.inf).": [
            lambda joint, order: capped(none=math.log(len(order)))(joint, order),
            capped(none=0.0),
        ],
        "every fixed point is a limit, and the lowest one counts: subtract the LARGEST T_k.": [
            capped(torch.amin)
        ],
        "every fixed point is a limit of its own; the mean over them is none.": [
            capped(torch.mean)
        ],
        "ln K is only the middle of it: add mean T − max T over the fixed points.": [
            lambda joint, order: capped(mean=lambda z: 0, best=lambda z: 0 * z.sum())(joint, order)
        ],
        "the mean runs over all K pairs that belong together, not over the fixed ones.": [
            lambda joint, order: (
                capped()(joint, order)
                - joint.mean()
                + joint[order == torch.arange(len(order))].mean()
            )
        ],
        BITS: [capped(log=math.log2)],
        "ln K is missing: a mean over K divides by K.": [capped(log=lambda k: 0)],
    },
)
def shuffle_cap(joint, order):
    return bounds.shuffle_cap(joint, order)


def reported():
    rng = runtime.generator(6)
    copy, other = 3 * torch.randn(2, 7, 5, generator=rng, dtype=torch.float64)
    copy[2, 1] += 30  # the largest difference of all, but no lie
    return [(copy, other)]


def place_of(values):
    """The row and the column of the largest entry."""
    place = values.argmax()
    return torch.stack([place // values.shape[1], place % values.shape[1]])


@exercise(
    "08",
    "Catch a critic that rates another image above the copy",
    level="core",
    hints=(
        "The lie is other − copy, for each shuffle (row) and each image (column). "
        "Where is it largest?",
        "lies.argmax() counts through the rows: row = place // columns, column = place % columns.",
        "place = (other - copy).argmax(); "
        "return torch.stack([place // copy.shape[1], place % copy.shape[1]]).",
    ),
    inputs=reported,
    otherwise=lambda case, got, want: (
        f"the largest lie is at shuffle {int(want[0])}, image {int(want[1])}; "
        f"you return {got.tolist()}."
    ),
    mistakes={
        "that is where the copy exceeds the other image most: no lie at all.": [
            lambda copy, other: place_of(copy - other)
        ],
        "that is where the other image has its largest value; compare it with the copy there.": [
            lambda copy, other: place_of(other)
        ],
        "first the shuffle (row), then the image (column).": [
            lambda copy, other: place_of(other - copy).flip(0)
        ],
        "rows and columns are mixed up: divide by the number of columns, shape[1].": [
            lambda copy, other: torch.stack(
                [(other - copy).argmax() // len(copy), (other - copy).argmax() % len(copy)]
            )
        ],
    },
)
def lying_shuffle(copy, other):
    return place_of(other - copy)


def maps():
    """Different rows; then some equal ones in both, at different places; then one map for all."""
    u = torch.arange(12.0, dtype=torch.float64).view(6, 2)
    v = torch.arange(18.0, dtype=torch.float64).view(6, 3).flip(0)
    u_equal, v_equal = u.clone(), v.clone()
    u_equal[[1, 2]] = u[0]
    v_equal[2], v_equal[5] = v[1], v[4]
    return [(u, v), (u_equal, v_equal), (0 * u, v_equal)]


@exercise(
    "08",
    "The truth for the maps of one image, equal ones among them",
    level="hard",
    hints=(
        "I(u, v) = H(u) + H(v) − H(u, v), and each is the entropy of a table that one can count: "
        "how many of the K rows are equal?",
        "rows.unique(dim=0, return_counts=True)[1] / len(rows) holds the probabilities. "
        "For H(u, v) put the rows side by side: torch.cat([u, v], 1).",
        "p = rows.unique(dim=0, return_counts=True)[1] / len(rows); entropy −(p · p.log()).sum(); "
        "return entropy(u) + entropy(v) − entropy(torch.cat([u, v], 1)).",
    ),
    inputs=maps,
    mistakes={
        "that holds where all maps differ; here some are equal, and say less.": [
            lambda u, v: torch.tensor(math.log(len(u)))
        ],
        "that is what u alone says about k; v may say less.": [lambda u, v: entropy(u)],
        "that is what v alone says about k; u may say less.": [lambda u, v: entropy(v)],
        "that is H(u, v), what both together say; information is H(u) + H(v) − H(u, v).": [
            lambda u, v: entropy(torch.cat([u, v], 1))
        ],
        "H(u, v) is missing: subtract what both together say.": [
            lambda u, v: entropy(u) + entropy(v)
        ],
        "the log of the number of different rows would be right if each came equally often; "
        "weigh them by how often they come.": [
            lambda u, v: torch.tensor(
                math.log(len(u.unique(dim=0)))
                + math.log(len(v.unique(dim=0)))
                - math.log(len(torch.cat([u, v], 1).unique(dim=0)))
            )
        ],
        BITS: [lambda u, v: bounds.index_information(u, v) / math.log(2)],
    },
)
def index_information(u, v):
    return bounds.index_information(u, v)
