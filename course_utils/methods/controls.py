"""Controls of a perturbation: changes of the same size in other places, to tell size from aim.

A network may fail on a changed image because the change is large, not because it is well aimed. A
control keeps the sizes |x_adv − x| and gives up the aim; ``sizes`` prints both beside each other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from course_utils.core import runtime
from course_utils.core.inputs import Pixels, check_images, check_like


def moved(x: Pixels, x_adv: Pixels, *, seed: int = 0) -> Pixels:
    """The sizes of an image's change, all of them, at random other places.

    Each pixel changes away from its nearer end of [0,1], so that clipping takes nothing; a size
    above 0.5 goes to a random pixel that has room for it. So the change is equally large in every
    norm, up to rounding. ``seed`` fixes the places, which differ from image to image.

    Raises:
        ValueError: no images in [0,1], or two batches that do not fit.
    """
    flat, size = x.flatten(1), changes(x, x_adv).flatten(1)
    drawn = torch.rand(flat.shape, generator=runtime.generator(seed)).to(x.device)
    room = torch.maximum(flat, 1 - flat)
    largest_first = size.argsort(1, descending=True)
    places = drawn.argsort(1)
    crowded = int((size > 0.5).sum(1).max()) if len(x) else 0
    for k in range(crowded):  # the largest choose first; who comes later has more places to go
        need = size.gather(1, largest_first[:, k : k + 1])
        there = room.gather(1, places[:, k:]) >= need
        swap = k + there.int().argmax(1, keepdim=True)
        here = places[:, k : k + 1].clone()
        places[:, k : k + 1] = places.gather(1, swap)
        places.scatter_(1, swap, here)
    elsewhere = torch.zeros_like(size).scatter(1, places, size.gather(1, largest_first))
    return away(x, elsewhere.view_as(x))


def turned(x: Pixels, x_adv: Pixels) -> Pixels:
    """The sizes of an image's change turned by 180°, which keeps their pattern.

    A size that has no room where it comes to lie is cut; ``sizes`` tells how much is lost.

    Raises:
        ValueError: no images in [0,1], or two batches that do not fit.
    """
    return away(x, changes(x, x_adv).flip(-1, -2))


def sizes(x: Pixels, changed: Mapping[str, Pixels]) -> str:
    """One line per entry of ``changed``: mean |δ|, mean L2 norm and largest |δ|, to be printed."""
    width = max(map(len, changed), default=0)
    lines = []
    for name, other in changed.items():
        size = changes(x, other)
        lines.append(
            f"{name:<{width}}  mean |δ| {size.mean():.4f}   "
            f"L2 {size.flatten(1).norm(dim=1).mean():.3f}   largest {size.max():.3f}"
        )
    return "\n".join(lines)


def changes(x: Pixels, x_adv: Pixels) -> Tensor:
    """|x_adv − x|, of two batches of images in [0,1]."""
    check_images("x", x)
    check_like("x_adv", x_adv, x)
    return (x_adv - x).detach().abs()


def away(x: Pixels, size: Tensor) -> Pixels:
    """Changes each pixel by its size, away from the nearer end of [0,1]."""
    return (x + torch.where(x < 0.5, size, -size)).clamp(0, 1)
