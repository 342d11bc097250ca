"""The embedded digits: real handwritten digits that need no network, made from scikit-learn's."""

import math

import torch
from torch.nn.functional import affine_grid, grid_sample

from course_utils.core import runtime
from course_utils.core.images import DIGITS, Images

COPIES = 7  # of each training original
TEST_PER_CLASS = 36
SEED = 1797


def embedded() -> tuple[Images, Images]:
    """Returns ``(train, test)``: 10,059 varied and 360 plain digits of 1×28×28.

    They are enlarged from the 8×8 digits of scikit-learn (Alpaydin & Kaynak 1998).
    """
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    small = pixels.float().view(-1, 1, 8, 8) / 16
    y = labels.long()
    train, test = split_originals(y)
    copies = train.repeat(COPIES)
    # per copy and uniform: turn by up to 10°, shift by up to 2 pixels each way, scale by 0.9 to 1.1
    random = torch.rand(4, len(copies), generator=runtime.generator(SEED)) * 2 - 1
    turn, right, down, scale = random
    varied = place(small[copies], math.radians(10) * turn, 2 * right, 2 * down, 1 + 0.1 * scale)
    none = torch.zeros(len(test))
    plain = place(small[test], none, none, none, none + 1)
    name = "embedded digits"
    return Images(varied, y[copies], DIGITS, name), Images(plain, y[test], DIGITS, name)


def split_originals(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices ``(train, test)`` of originals: 36 of each class to test.

    Copies are made after this split, so that no test digit has a copy in training.
    """
    order = torch.randperm(len(y), generator=runtime.generator(SEED))
    test = torch.cat([order[y[order] == label][:TEST_PER_CLASS] for label in range(10)])
    return order[~torch.isin(order, test)], test


def place(small, turn, right, down, scale) -> torch.Tensor:
    """Returns (N, 1, 28, 28) from (N, 1, 8, 8): digits 20 pixels high as in MNIST, then moved.

    ``turn`` (radians), ``right``, ``down`` (pixels) and ``scale`` are (N,).
    """
    # affine_grid wants the map from large to small; coordinates reach from -1 to 1 in both
    zoom = 28 / (20 * scale)
    cos = zoom * turn.cos()
    sin = zoom * turn.sin()
    right = right / 14
    down = down / 14
    rows = torch.stack(
        [cos, sin, -cos * right - sin * down, -sin, cos, sin * right - cos * down], dim=1
    )
    grid = affine_grid(rows.view(-1, 2, 3), [len(small), 1, 28, 28], align_corners=False)
    large = grid_sample(small, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return (2 * large - 0.5).clamp(0, 1)  # contrast: as few grey pixels as in MNIST (one in eight)
