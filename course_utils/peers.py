"""Attacks by others, to judge ours and the course's defences by. They come with the development dependencies only (``make test`` installs them)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.training import eval_mode


def autoattack(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"], *, eps: float, batch_size: int = 500
) -> Float[Tensor, "n c h w"]:
    """AutoAttack in L∞, its standard version, by torchattacks: APGD on two losses, FAB and Square (Croce and Hein, ICML 2020). Slow.

    Raises:
        ImportError: torchattacks is not installed.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(
            "AutoAttack comes from torchattacks, which is not installed: pip install --no-deps torchattacks requests."
        ) from error
    with eval_mode(model), torch.random.fork_rng():
        attack = torchattacks.AutoAttack(model, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0)
        return torch.cat([attack(images, labels) for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)]).detach()
