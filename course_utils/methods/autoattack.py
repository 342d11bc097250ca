"""AutoAttack, to compare our attacks and defences with.

It needs torchattacks, which ``make test`` installs.
"""

import math

import torch
from torch import nn

from course_utils.core.geometry import Norm, check_norm
from course_utils.core.inputs import Labels, Pixels, check_input
from course_utils.core.training import eval_mode, gradients_on, outputs, predict

NAMES = {math.inf: "Linf", 2.0: "L2"}  # of the norms, in torchattacks


class Guarded(nn.Module):
    """A model whose calls all go through ``outputs``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Pixels):
        return outputs(self.model, x)


def autoattack(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float,
    norm: Norm = "inf",
    batch_size: int = 500,
) -> Pixels:
    """AutoAttack in L∞ or L2, its standard version, by torchattacks. Slow; stays in [0,1].

    APGD on two losses, FAB and Square (Croce and Hein, ICML 2020).

    Raises:
        ImportError: torchattacks is not installed.
        ValueError: bad input, L1, or fewer than four classes: one of the losses compares four
            logits.
    """
    x, y, _ = check_input(model, x, y, eps=eps, norm=norm)
    name = NAMES.get(check_norm(norm))
    if name is None:
        raise ValueError(f'norm is {norm!r}; AutoAttack takes 2 or "inf".')
    classes = predict(model, x[:1]).shape[1]
    if classes < 4:
        raise ValueError(
            f"model has {classes} classes; AutoAttack's DLR loss needs four or more. "
            "Use attacks.pgd."
        )
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(
            "AutoAttack comes from torchattacks, which is not installed: "
            "pip install --no-deps torchattacks requests."
        ) from error
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    with eval_mode(model), torch.random.fork_rng(), gradients_on():
        attack = torchattacks.AutoAttack(
            Guarded(model),
            norm=name,
            eps=eps,
            version="standard",
            n_classes=classes,
            seed=0,
        )
        return torch.cat([attack(images, labels) for images, labels in batches]).detach()
