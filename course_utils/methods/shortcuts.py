"""Noise that is a shortcut by construction, and ways to find a shortcut and to take it out.

A **shortcut** is a part of the training images that tells the class without the object. No network
is trained to make these poisons.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.core import runtime
from course_utils.core.images import Images
from course_utils.core.inputs import Labels, Pixels, check_count, check_eps
from course_utils.core.training import gradients_on
from course_utils.methods.poisons import SampleWise, perturbed

SPREAD = 0.4  # deviation of a patch from its class, in units of the distance of the class from 0


def separable_noise(images: Images, *, eps: float, patch: int = 4, seed: int = 0) -> SampleWise:
    """Linearly separable noise: patches of ``patch`` × ``patch`` equal pixels within ±``eps``.

    Yu, Zhang, Chen, Yin and Liu, "Availability Attacks Create Shortcuts" (KDD 2022): each class has
    a random sign for every patch and colour, each image its own deviation from it, and the values
    fill the patches. They take patches of 8 and a bound in L2 on 32×32 photographs; here values
    beyond ±``eps`` are cut.

    Raises:
        ValueError: ``eps`` outside [0, 1], or a ``patch`` below 1.
    """
    check_eps(eps)
    check_count("patch", patch, 1)
    channels, height, width = images.x.shape[1:]
    shape = (channels, -(-height // patch), -(-width // patch))
    draw = runtime.generator(seed)
    signs = torch.randint(2, (len(images.classes), *shape), generator=draw) * 2.0 - 1
    values = signs[images.y.cpu()] + SPREAD * torch.randn(len(images), *shape, generator=draw)
    filled = values.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :height, :width]
    return SampleWise(images, eps * filled.clamp(-1, 1).to(images.x), eps)


@dataclass(frozen=True, eq=False)
class OnePixel:
    """A poison that gives one pixel of every image of class k the colour ``colours[k]``.

    ``places`` (K, 2) are rows and columns, ``colours`` (K, C) lie in [0,1]. The pixel may change by
    1, so no smaller eps bounds this poison; in L0 it is as small as a change can be.
    """

    places: Int[Tensor, "k 2"]
    colours: Float[Tensor, "k c"]

    def __call__(self, images: Images) -> Images:
        if len(self.places) != len(images.classes):
            raise ValueError(
                f"images have {len(images.classes)} classes, but there are pixels for "
                f"{len(self.places)}; give one per class."
            )
        x = images.x.clone()
        row, column = self.places.to(x.device)[images.y].T
        x[torch.arange(len(x), device=x.device), :, row, column] = self.colours.to(x)[images.y]
        return perturbed(images, x - images.x, 1.0)


def one_pixel(images: Images, *, seed: int = 0) -> OnePixel:
    """The one-pixel shortcut: for each class the pixel that it changes most, and most evenly.

    Wu, Chen, Xie and Huang, "One-Pixel Shortcut" (ICLR 2023): of all places and colours with
    channels 0 or 1, the one whose change has the largest mean over the class divided by its
    deviation. Classes choose in turn, each a place that none before it has; ``seed`` decides ties,
    which the empty border of digits has many of.

    Raises:
        ValueError: a class without an image, or more classes than pixels.
    """
    channels, height, width = images.x.shape[1:]
    colours = torch.tensor(list(itertools.product((0.0, 1.0), repeat=channels)))
    missing = sorted(set(range(len(images.classes))) - set(images.y.tolist()))
    if missing or len(images.classes) > height * width:
        raise ValueError(
            f"images show {len(images.classes)} classes on {height * width} pixels, none of "
            f"{missing}; each class needs an image and a pixel of its own."
        )
    ties = torch.rand(len(colours), height * width, generator=runtime.generator(seed))
    taken = torch.zeros(height * width, dtype=torch.bool)
    places, chosen = [], []
    for k in range(len(images.classes)):
        own = images.x[images.y == k].cpu().flatten(2)
        scores = torch.stack([evenness(own, colour) for colour in colours])
        scores[:, taken] = -1
        best = (scores == scores.max()).float() * (1 + ties)
        colour, pixel = divmod(best.argmax().item(), height * width)
        taken[pixel] = True
        places.append(divmod(pixel, width))
        chosen.append(colours[colour])
    return OnePixel(torch.tensor(places), torch.stack(chosen))


def evenness(x: Float[Tensor, "n c p"], colour: Float[Tensor, "c"]) -> Float[Tensor, "p"]:
    """Mean over the images of the change to ``colour``, divided by its deviation."""
    change = (x - colour[:, None]).abs().mean(1)
    return change.mean(0) / change.std(0, correction=0).clamp(min=1e-6)


@gradients_on()
def linear_weights(
    features: Float[Tensor, "n d"], y: Labels, classes: int, *, decay: float = 1e-3
) -> Float[Tensor, "k e"]:
    """Multinomial logistic regression by L-BFGS: weights (K, d + 1), the last column the bias.

    ``decay`` · ‖W‖² / 2 is added to the mean cross-entropy, so that separable data have a solution.
    """
    joined = F.pad(features.detach().flatten(1), (0, 1), value=1.0)
    weights = joined.new_zeros(classes, joined.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(joined @ weights.T, y) + decay / 2 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weights.detach()


def separable(noise: Pixels, y: Labels, classes: int, *, seed: int = 0) -> Bool[Tensor, "m"]:
    """For each noise of one half: whether a linear model of the other half tells its class.

    The test of Yu et al. (KDD 2022) fits and judges the same noise. With fewer images than pixels
    any noise passes that, even one without a class in it; so halves, drawn by ``seed``.

    Raises:
        ValueError: fewer than two images.
    """
    check_count("number of images", len(noise), 2)
    order = torch.randperm(len(noise), generator=runtime.generator(seed)).to(noise.device)
    fitted, judged = order.tensor_split(2)
    flat = noise.detach().flatten(1)
    scale = flat.abs().max().clamp(min=1e-12)  # so that decay means the same for any eps
    weights = linear_weights(flat[fitted] / scale, y[fitted], classes)
    scores = F.pad(flat[judged] / scale, (0, 1), value=1.0) @ weights.T
    return scores.argmax(1) == y[judged]


def linear_directions(images: Images) -> Float[Tensor, "d k"]:
    """An orthonormal basis of what a linear model of ``images`` looks at, for ``without``.

    Orthogonal projection: Sandoval-Segura, Singla, Geiping, Goldblum and Goldstein, "What Can We
    Learn from Unlearnable Datasets?" (NeurIPS 2023), Algorithm 1. Their model is fitted by SGD.
    """
    weights = linear_weights(images.x, images.y, len(images.classes))[:, :-1]
    return torch.linalg.qr(weights.T)[0]


def without(directions: Float[Tensor, "d k"], x: Pixels) -> Pixels:
    """``x`` less its part along orthonormal ``directions``: x − QQᵀx. May leave [0,1]."""
    flat = x.flatten(1)
    return (flat - flat @ directions @ directions.T).view_as(x)
