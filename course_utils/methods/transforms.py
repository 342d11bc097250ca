"""What happens to an image between attacker and network: defences, poses, light.

Each function takes (N, C, H, W) in [0,1] and gives the same. ``rounded``, ``jpeg`` and
``bit_depth`` have no useful gradient; ``wrappers.straight_through`` lends them one.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.core.inputs import Pixels, check_count, check_images, check_share, check_size

Transform = Callable[[Tensor], Tensor]


def rounded(x: Pixels) -> Pixels:
    """The nearest grey levels: what an image file of 8 bits can hold."""
    return (x * 255).round() / 255


def jpeg(x: Pixels, quality: int = 75) -> Pixels:
    """The images after JPEG at ``quality`` 1 to 95, by Pillow: colours at half the resolution.

    Raises:
        ValueError: another quality, or images with neither one nor three channels.
    """
    from PIL import Image

    check_images("x", x)
    check_count("quality", quality, 1)
    if quality > 95 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"quality is {quality} and x has {x.shape[1]} channels; "
            "give a quality from 1 to 95, and grey or colour images."
        )
    result = []
    for levels in (x.detach() * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(levels.squeeze(-1) if x.shape[1] == 1 else levels).save(
            file, format="JPEG", quality=quality
        )
        with Image.open(file) as image:
            result.append(np.atleast_3d(np.asarray(image)))
    read = torch.from_numpy(np.stack(result)).permute(0, 3, 1, 2)
    return read.to(x) / 255


def bit_depth(x: Pixels, bits: int = 4) -> Pixels:
    """The images with 2^bits levels of each colour; Xu, Evans and Qi 2018, section III-A."""
    check_count("bits", bits, 1)
    steps = 2**bits - 1
    return (x * steps).round() / steps


def blur(x: Pixels, sigma: float = 1.0) -> Pixels:
    """The images after a Gaussian blur of ``sigma`` pixels; the border is reflected.

    Raises:
        ValueError: a negative ``sigma``, or one of more than a third of the image's side.
    """
    check_size("sigma", sigma, x)
    if not sigma:
        return x
    reach = math.ceil(3 * sigma)
    if reach >= min(x.shape[2:]):
        raise ValueError(
            f"sigma is {sigma}; give at most {(min(x.shape[2:]) - 1) // 3}, "
            "a third of the image's side."
        )
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, [reach] * 4, mode="reflect")
    across = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=x.shape[1]).clamp(0, 1)


def rescale(x: Pixels, factor: float = 0.5) -> Pixels:
    """The images made smaller by ``factor`` in [0,1] and brought back to their size."""
    check_share("factor", factor, "the side to keep")
    small = [max(1, round(factor * side)) for side in x.shape[2:]]
    options = {"mode": "bilinear", "antialias": True}
    return F.interpolate(F.interpolate(x, size=small, **options), size=x.shape[2:], **options)


def posed(
    x: Pixels,
    turn: float = 0.0,
    scale: float = 1.0,
    across: float = 0.0,
    down: float = 0.0,
    light: float = 1.0,
) -> Pixels:
    """The pictures as prints on grey: turned, scaled, moved, and in another light.

    ``turn`` in radians, counter-clockwise; ``across`` and ``down`` are shares of the width and
    the height. Values are interpolated, so that gradients flow.
    """
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    tall = x.shape[2] / x.shape[3]
    # where the result's pixels come from, in coordinates from −1 to 1 along each side
    back = [
        [cos, -sin * tall, -2 * (across * cos - down * sin * tall)],
        [sin / tall, cos, -2 * (across * sin / tall + down * cos)],
    ]
    grid = F.affine_grid(x.new_tensor([back] * len(x)), list(x.shape), align_corners=False)
    return light * (F.grid_sample(x - 0.5, grid, align_corners=False) + 0.5)


def random_pose(
    generator: torch.Generator,
    *,
    turn: float = 0.5,
    scale: float = 0.2,
    shift: float = 0.1,
    light: float = 0.0,
) -> Transform:
    """A ``posed`` with values drawn evenly from ±``turn`` radians, 1 ± ``scale``, ±``shift``, …

    All images of a batch get the same pose. ``light`` darkens by up to this share: a brighter one
    would leave [0,1].
    """
    drawn = 2 * torch.rand(5, generator=generator, dtype=torch.float64) - 1
    angle, size, across, down, dark = drawn.tolist()
    values = {
        "turn": turn * angle,
        "scale": 1 + scale * size,
        "across": shift * across,
        "down": shift * down,
        "light": 1 - light * (1 + dark) / 2,
    }
    return lambda x: posed(x, **values)
