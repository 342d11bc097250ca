"""AutoAttack, to compare our attacks and defences with.

It needs torchattacks, which ``make test`` installs.
"""

import torch
from torch import nn

from course_utils.core.inputs import Labels, Pixels
from course_utils.core.training import eval_mode


def autoattack(
    model: nn.Module, x: Pixels, y: Labels, *, eps: float, batch_size: int = 500
) -> Pixels:
    """AutoAttack in L∞, its standard version, by torchattacks. Slow.

    APGD on two losses, FAB and Square (Croce and Hein, ICML 2020).

    Raises:
        ImportError: torchattacks is not installed.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(
            "AutoAttack comes from torchattacks, which is not installed: "
            "pip install --no-deps torchattacks requests."
        ) from error
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    with eval_mode(model), torch.random.fork_rng():
        attack = torchattacks.AutoAttack(
            model, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0
        )
        return torch.cat([attack(images, labels) for images, labels in batches]).detach()
