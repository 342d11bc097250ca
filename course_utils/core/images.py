"""Labelled images: what data sets give and what training, attacks and figures take."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from course_utils.core import runtime

DIGITS = tuple("0123456789")


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Labelled images, checked once when made.

    ``x``: (N, C, H, W) float32 in [0, 1]; ``y``: (N,) int64, the index of the class.
    ``classes`` names the classes, and ``source`` says in captions where the images come from.
    """

    x: torch.Tensor
    y: torch.Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self):
        check_type(
            "x",
            self.x,
            4,
            torch.float32,
            "a float32 tensor (N, C, H, W), such as pixels.float() / 255",
        )
        check_type(
            "y", self.y, 1, torch.int64, "an int64 tensor (N,) of classes, such as labels.long()"
        )
        if len(self.x) != len(self.y) or self.x.device != self.y.device:
            raise ValueError(
                f"x is {in_words(self.x)} and y is {in_words(self.y)}; "
                "give one label per image, on one device."
            )
        if self.x.numel():
            self.check_range()

    def check_range(self) -> None:
        """Refuses pixels outside [0, 1] and labels that name no class."""
        low, high = (bound.item() for bound in self.x.aminmax())
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise ValueError(
                f"x has values from {low:g} to {high:g}; "
                "bring them into [0, 1], such as by x / 255."
            )
        low, high = (bound.item() for bound in self.y.aminmax())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"y is from {low} to {high}, but classes has {len(self.classes)} names; "
                "give 0 to K-1."
            )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        size = "×".join(str(side) for side in self.x.shape[1:])
        kinds = f"{len(self.classes)} classes"
        return f"Images({len(self)} of {size}, {kinds}, {self.source}, {self.x.device})"

    def __getitem__(self, index) -> "Images":
        """Returns the chosen images as a batch: a slice, an int, ints, or a bool mask (N,)."""
        x = self.x[index]
        y = self.y[index]
        if y.ndim == 0:  # one image
            return replace(self, x=x[None], y=y[None])
        return replace(self, x=x, y=y)

    def to(self, device: torch.device | str) -> "Images":
        """Returns the same images on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def split(self, n: int, seed: int) -> tuple["Images", "Images"]:
        """Returns ``(rest, held_out)``: ``n`` images, drawn by ``seed``, are held out."""
        if not 0 < n < len(self):
            raise ValueError(
                f"n is {n}; hold out between 1 and {len(self) - 1} of these {len(self)} images."
            )
        order = torch.randperm(len(self), generator=runtime.generator(seed)).to(self.x.device)
        return self[order[n:]], self[order[:n]]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any pixel, label or shape, for cache keys."""
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        for tensor in (self.x, self.y):
            if tensor.numel():  # an empty memoryview cannot be cast
                values = tensor.detach().cpu().contiguous().numpy()
                digest.update(memoryview(values).cast("B"))
        return digest.hexdigest()[:12]


def check_type(name: str, value, dimensions: int, dtype: torch.dtype, wanted: str) -> None:
    """Refuses what is no tensor of this type and number of dimensions."""
    tensor = isinstance(value, torch.Tensor)
    if not tensor or value.ndim != dimensions or value.dtype != dtype:
        raise ValueError(f"{name} is {in_words(value)}; give {wanted}.")


def in_words(value) -> str:
    """Returns type, shape and device of a tensor, such as ``float32 (6, 4) on cpu``."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"
