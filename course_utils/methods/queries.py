"""Attacks that only ask the model for its answers: ``square`` sees logits, ``hopskipjump`` labels.

Both ask about one image at a time: step number k of an image is its query number k, and
``on_step(k, x_adv)`` is called after it, so a curve of success over queries comes from there. The
first query is the image itself. An image that needs no more queries rests. Only the look that
``check_input`` takes at the first eight images is not counted.
"""

import math
from collections.abc import Generator
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core.geometry import norm as size_of
from course_utils.core.geometry import per_sample, steepest
from course_utils.core.inputs import (
    Labels,
    Pixels,
    check_count,
    check_input,
    check_like,
    check_share,
    described,
    one_each,
)
from course_utils.core.training import predict
from course_utils.methods.attacks import OnStep, drawn_seed, fooled, keep_better, lead, walk

Image = Float[Tensor, "c h w"]
Queries = Generator[Image, bool, Image]  # yields what it asks about, gets whether that succeeds

# After so many of 10,000 queries the squares lose half of their area, as in the authors' code.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
FIRST_PROBES = 100  # B₀, of the first estimate of the gradient's direction
FIRST_RADIUS = 0.1  # of these probes


def streams(x: Tensor, generator: torch.Generator | None) -> list[np.random.Generator]:
    """A stream of random numbers for each image, by the seed and the image's row."""
    seed = drawn_seed(generator)
    return [np.random.default_rng((seed, row)) for row in range(len(x))]


# --------------------------------------------------------------------------------- by the logits


def square(
    model: nn.Module,
    x: Pixels,
    y: Labels | None = None,
    *,
    target: Labels | None = None,
    eps: float | Tensor,
    queries: int = 1000,
    share: float = 0.8,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Pixels:
    """Random search in ‖x_adv − x‖∞ ≤ ``eps``: squares at +ε or −ε, kept where they help.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
    search" (ECCV 2020), Algorithms 1 and 2. The second query is of vertical stripes, one sign per
    column and channel. Each later one changes a square at a random place, one sign per channel, and
    is kept if the lead of the best other class over ``y`` grows, or that of ``target`` over all
    others. A square that would change nothing takes the opposite signs, so that no query is wasted.
    The first square covers the ``share`` of the image. The paper takes 0.05 for usual networks and
    0.8 for robust ones, at 10,000 queries; with a tenth of them 0.8 does better on usual ones too.
    The schedule of the later squares is scaled to ``queries``.

    An image rests once it succeeds; one that succeeds as it is comes back unchanged. ``eps`` is a
    number, or one per image.

    Raises:
        ValueError: bad input, or images without rows and columns.
    """
    x, labels, sign = check_input(model, x, y, target, eps=eps, norm="inf")
    check_count("queries", queries, 0)
    check_share("share", share, "the image that the first square covers")
    if x.dim() != 4:
        raise ValueError(f"x is {described(x)}; squares need images, shape (N, C, H, W).")
    proposals = Squares(x, one_each(eps, x), streams(x, generator))
    best = torch.full_like(proposals.radius, -torch.inf)
    won = torch.zeros_like(labels, dtype=torch.bool)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        tried = now if step == 1 else proposals.stripes(rows)
        if step > 2:
            tried = proposals.squares(rows, now, side_of(x, share, step / queries))
        logits = predict(model, tried)
        won[rows] = fooled(logits, labels[rows], sign, times=2)  # so that no rounding changes it
        reached = sign * lead(logits, labels[rows])[0]
        better = won[rows] | (reached > best[rows]) | (step == 2)  # the stripes in any case
        best[rows] = torch.where(better, reached.to(best), best[rows])
        return torch.where(better[:, None, None, None], tried, now)

    return walk(model, x.clone(), queries, move, on_step, finished=lambda rows, _: won[rows])


def side_of(x: Tensor, share: float, spent: float) -> int:
    """The squares' side once the share ``spent`` of the queries is used."""
    rows, columns = x.shape[2:]
    area = share * rows * columns / 2 ** sum(10_000 * spent > limit for limit in HALVINGS)
    return min(max(round(math.sqrt(area)), 1), rows, columns)


class Squares:
    """What the Square Attack tries next, drawn from each image's own stream."""

    def __init__(self, x: Tensor, radius: Tensor, draws: list[np.random.Generator]):
        self.x = x
        self.radius = radius
        self.draws = draws

    def uniform(self, rows: Tensor, *shape: int) -> Tensor:
        """Numbers in [0, 1) for each of the ``rows``."""
        drawn = [self.draws[row].random(shape, dtype=np.float32) for row in rows.tolist()]
        return torch.from_numpy(np.stack(drawn)).to(self.x)

    def corner(self, rows: Tensor, signs: Tensor) -> Tensor:
        """The images with every pixel at the end of its ball that its sign says, in [0,1]."""
        return (self.x[rows] + per_sample(self.radius[rows], self.x) * signs).clamp(0, 1)

    def stripes(self, rows: Tensor) -> Tensor:
        """Vertical stripes one pixel wide."""
        channels, _, columns = self.x.shape[1:]
        return self.corner(rows, sign_of(self.uniform(rows, channels, 1, columns)))

    def squares(self, rows: Tensor, now: Tensor, side: int) -> Tensor:
        """The images ``now`` with one new square each."""
        channels, height, width = self.x.shape[1:]
        drawn = self.uniform(rows, 2 + channels, 1, 1)
        inside = between(drawn[:, :1], side, height).mT & between(drawn[:, 1:2], side, width)
        signs = sign_of(drawn[:, 2:])
        tried = torch.where(inside, self.corner(rows, signs), now)
        same = (tried == now).flatten(1).all(1)
        opposite = torch.where(inside, self.corner(rows, -signs), now)
        keep_better(same, (tried, opposite))
        return tried


def sign_of(uniform: Tensor) -> Tensor:
    """+1 or −1 for numbers in [0, 1)."""
    return torch.where(uniform < 0.5, 1.0, -1.0).to(uniform)


def between(uniform: Tensor, side: int, size: int) -> Tensor:
    """Which of ``size`` places lie in a window of length ``side`` whose begin is drawn."""
    begin = (uniform * (size - side + 1)).floor()
    places = torch.arange(size, device=uniform.device)
    return (places >= begin) & (places < begin + side)


# ---------------------------------------------------------------------------------- by the label


def hopskipjump(
    model: nn.Module,
    x: Pixels,
    y: Labels | None = None,
    *,
    target: Labels | None = None,
    start: Pixels | None = None,
    queries: int = 1000,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Pixels:
    """The nearest image (L2) that succeeds, found with one bit per query: does this one succeed?

    Chen, Jordan and Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack" (S&P
    2020), Algorithm 2. ``start`` holds an image for each of ``x`` that succeeds already, such as a
    photograph of the target class; without a target it may be left out, and noise is tried. See
    ``hop`` for the steps. A tie that rounding could turn counts as no success.

    Each image comes back as the nearest one asked about that succeeds. An image that succeeds as it
    is comes back unchanged, and so does one for which nothing was found: ``succeeded`` tells the
    two apart. ``on_step`` sees the nearest so far.

    Raises:
        ValueError: bad input, or a target without ``start``.
    """
    x, labels, sign = check_input(model, x, y, target)
    check_count("queries", queries, 0)
    if start is not None:
        start = check_like("start", start, x).detach()
    elif target is not None:
        raise ValueError(
            "start is None; noise hardly ever looks like a target: give images of the shape of x "
            "which the model sees as target."
        )
    starts = [None] * len(x) if start is None else start
    searches = [hop(*one) for one in zip(x, starts, streams(x, generator), strict=True)]
    asked = x.clone()  # the next query of each image, which is first the image itself
    for search in searches:
        next(search)
    length = torch.full_like(x.flatten(1)[:, 0], torch.inf)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        tried = asked[rows]
        won = fooled(predict(model, tried), labels[rows], sign, times=2)
        far = size_of(tried - x[rows], 2)
        better = won & (far < length[rows])
        length[rows[better]] = far[better]
        keep_better(better, (now, tried))
        for row, answer in zip(rows.tolist(), won.tolist(), strict=True):
            asked[row] = searches[row].send(answer)
        return now

    return walk(
        model, x.clone(), queries, move, on_step, finished=lambda rows, _: length[rows] == 0
    )


def hop(x: Image, start: Image | None, stream: np.random.Generator) -> Queries:
    """HopSkipJump's endless search for one image.

    Asks about ``x`` and about ``start``, then about mixtures of x and noise until one succeeds.
    Then over and over: bisects the way to x, estimates the boundary's normal there, and goes along
    it by the longest step that succeeds, of at most ‖x_t − x‖/√t.
    """
    yield x
    outside = uniform(x, stream) if start is None else start
    while not (yield outside):
        outside = mixed(x, uniform(x, stream), stream.random())
    for t in count(1):
        edge = yield from bisected(x, outside)
        distance = float(torch.linalg.vector_norm(edge - x))
        radius = FIRST_RADIUS if t == 1 else distance / x.numel()
        normal = yield from estimated(edge, radius, int(FIRST_PROBES * math.sqrt(t)), stream)
        outside = yield from leapt(edge, normal, distance / math.sqrt(t))


def uniform(x: Image, stream: np.random.Generator) -> Image:
    """An image of uniform noise."""
    return torch.from_numpy(stream.random(x.shape, dtype=np.float32)).to(x)


def mixed(x: Image, other: Image, share: float) -> Image:
    """The mixture of two images that has the ``share`` of the other."""
    return x.lerp(other, share).clamp(0, 1)


def halvings(x: Image) -> int:
    """How many halvings make a length smaller than the share d^(−3/2), for d pixels."""
    return math.ceil(1.5 * math.log2(x.numel()))


def bisected(x: Image, outside: Image) -> Queries:
    """The image between ``x`` and ``outside``, which succeeds, just behind the boundary."""
    low, high, edge = 0.0, 1.0, outside
    for _ in range(halvings(x)):
        middle = (low + high) / 2
        tried = mixed(x, outside, middle)
        if (yield tried):
            high, edge = middle, tried
        else:
            low = middle
    return edge


def estimated(edge: Image, radius: float, probes: int, stream: np.random.Generator) -> Queries:
    """The boundary's normal at ``edge``, of length 1, from ``probes`` at the distance ``radius``.

    The mean of random directions, each times +1 or −1 as it succeeds or not. The mean of these
    signs is subtracted first, unless all agree: that lowers the variance where most do.
    """
    total, signed = torch.zeros_like(edge), torch.zeros_like(edge)
    successes = 0
    for _ in range(probes):
        noise = torch.from_numpy(stream.standard_normal(edge.shape, dtype=np.float32)).to(edge)
        tried = (edge + radius * steepest(noise[None], 2)[0]).clamp(0, 1)
        won = yield tried
        successes += won
        total += tried - edge
        signed += (tried - edge) if won else (edge - tried)
    if 0 < successes < probes:
        signed -= (2 * successes / probes - 1) * total
    return steepest(signed[None], 2)[0]


def leapt(edge: Image, normal: Image, stride: float) -> Queries:
    """The image one step along ``normal``, of ``stride`` or of the first half of it to succeed."""
    for halving in range(halvings(edge)):
        tried = (edge + stride / 2**halving * normal).clamp(0, 1)
        if (yield tried):
            return tried
    return edge
