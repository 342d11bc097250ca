"""An adversarial patch: a small picture that wins wherever it lies, on any photograph."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core import cache, photos, pictures
from course_utils.core.inputs import (
    Pixels,
    check_classes,
    check_count,
    check_images,
    described,
    first_outputs,
)
from course_utils.core.training import eval_mode, gradients_on, outputs
from course_utils.methods.transforms import Transform

Patch = Float[Tensor, "c h w"]
SHIPPED = cache.PACKAGE / "pretrained" / "toaster-patch.png"
Place = tuple[int, int]  # row and column of the upper left corner


def paste(x: Pixels, patch: Patch, row: int, column: int) -> Pixels:
    """The images with the patch on them, its upper left corner at (``row``, ``column``).

    Raises:
        ValueError: the patch does not fit there.
    """
    height, width = patch.shape[1:]
    rows, columns = x.shape[2] - height, x.shape[3] - width
    if not (0 <= row <= rows and 0 <= column <= columns):
        raise ValueError(
            f"A patch of {height}×{width} at row {row}, column {column} leaves an image of "
            f"{x.shape[2]}×{x.shape[3]}; give a row from 0 to {rows} and a column to {columns}."
        )
    # one padded canvas and a mask, so that the gradient reaches the patch
    around = (column, columns - column, row, rows - row)
    mask = F.pad(torch.ones_like(patch[:1]), around)
    return x * (1 - mask) + F.pad(patch, around)


def random_place(x: Pixels, patch: Patch, generator: torch.Generator) -> Place:
    """A place for the patch on the images, each as likely as any other."""
    rooms = (x.shape[2] - patch.shape[1], x.shape[3] - patch.shape[2])
    row, column = (int(torch.randint(room + 1, (1,), generator=generator)) for room in rooms)
    return row, column


def check_task(model: nn.Module, x: Pixels, target: int, side: int) -> None:
    """Refuses what are no images, a patch that does not fit on them, and an unknown class."""
    check_images("x", x)
    if x.dim() != 4 or not len(x):
        raise ValueError(f"x is {described(x)}; give one image or more, shape (N, C, H, W).")
    check_count("side", side, 1)
    if side > min(x.shape[2:]):
        raise ValueError(f"side is {side}; give at most {min(x.shape[2:])}, the images' side.")
    check_classes(first_outputs(model, x[:1]), "target", torch.tensor([target]))


def scattered(x: Pixels, patch: Patch, count: int, generator: torch.Generator) -> Pixels:
    """``count`` images, drawn at random, with the patch at a random place on each."""
    some = x[torch.randperm(len(x), generator=generator)[:count].to(x.device)]
    return torch.cat(
        [paste(one, patch, *random_place(one, patch, generator)) for one in some.split(1)]
    )


def train_patch(
    model: nn.Module,
    x: Pixels,
    target: int,
    *,
    side: int = 64,
    steps: int = 500,
    step_size: float = 0.05,
    batch: int = 8,
    draw: Callable[[torch.Generator], Transform] | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, Patch, float], None] | None = None,
) -> Patch:
    """A patch (C, side, side) in [0,1] that makes photographs look like ``target``.

    Brown, Mané, Roy, Abadi and Gilmer, "Adversarial Patch" (2017), equation (1): Adam on the mean
    −log p of the target over ``batch`` of the images ``x`` at a time, at random places. With
    ``draw``, every second step sees the whole picture through a random transform, such as
    ``transforms.random_pose``. ``on_step(step, patch, loss)`` is called after every step.

    Raises:
        ValueError: no images in [0,1], a patch larger than they are, a class that the model does
            not know, or a wrong count.
    """
    check_task(model, x, target, side)
    check_count("batch", batch, 1)
    check_count("steps", steps, 0)
    generator = generator or torch.Generator().manual_seed(0)
    with gradients_on(), eval_mode(model):
        patch = x.new_full((x.shape[1], side, side), 0.5).requires_grad_()
        adam = torch.optim.Adam([patch], lr=step_size)
        for step in range(1, steps + 1):
            views = scattered(x, patch, batch, generator)
            if draw is not None and step % 2:
                views = draw(generator)(views)
            labels = torch.full((len(views),), target, device=x.device)
            loss = F.cross_entropy(outputs(model, views), labels)
            patch.grad = torch.autograd.grad(loss, patch)[0]
            adam.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
            if on_step is not None:
                on_step(step, patch.detach().clone(), loss.item())
    return patch.detach()


def trained(model: nn.Module, x: Pixels, target: int, **settings) -> Patch:
    """``train_patch``, or what an earlier such call left in the cache."""
    path = cache.path_of(cache.key(model=model, x=x, target=target, **settings), "patch", ".pt")
    with cache.alone(path):
        state = cache.read_state(path, x.device)
        if state is None:
            state = {"patch": train_patch(model, x, target, **settings)}
            cache.keep_state(path, state)
    return state["patch"]


def shipped() -> Patch:
    """The patch (3, 64, 64) towards "toaster" that comes with the course, ready to print.

    Lecture 14 at full scale makes it, against lite0, on 12 photographs of ``photos.labelled()``.

    Raises:
        ValueError: the file is missing or damaged.
    """
    return pictures.read(SHIPPED, None, grayscale=False)[0]


def save(patch: Patch) -> None:
    """Keeps a patch in the package, for ``shipped``."""
    photos.save(SHIPPED, patch)
