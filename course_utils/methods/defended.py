"""The networks that lecture 06 examines: the slides' CNN after four trainings at L∞ 0.3.

The lecture calls them by the names in ``RECIPES`` until it has found out how each was trained.
"""

from functools import partial

import torch
from torch import nn

from course_utils.core import models, stored, training
from course_utils.core.images import Images
from course_utils.core.training import Objective, cross_entropy
from course_utils.methods import attacks, objectives

EPS = 0.3
STEPS = 12 * 60_000  # images that each training sees: twelve times MNIST
RECIPES: dict[str, Objective] = {
    "standard": cross_entropy,
    "A": partial(objectives.adversarial, attack=attacks.fgsm, eps=EPS),
    "B": partial(
        objectives.adversarial,
        attack=attacks.pgd,
        eps=EPS,
        steps=7,
        step_size=EPS / 4,
        random_start=True,
    ),
    "penalty": partial(objectives.gradient_penalty, lam=10.0),
}


def trained(images: Images) -> nn.ModuleDict:
    """All four, trained on ``images``: about half an hour on two cores."""
    adam = partial(torch.optim.Adam, lr=2e-3)
    settings = {"batch_size": 64, "optimizer": adam, "schedule": training.triangle}
    epochs = max(1, STEPS // len(images))
    nets = {
        name: training.trained(
            models.slides_cnn, images, objective=objective, epochs=epochs, verbose=False, **settings
        )[0]
        for name, objective in RECIPES.items()
    }
    return nn.ModuleDict(nets)


def save(nets: nn.ModuleDict, source: str) -> None:
    """Keeps them in the package, for ``shipped(source)``."""
    stored.save("defended", source, nets)


def shipped(source: str, device: torch.device | str = "cpu") -> nn.ModuleDict:
    """All four as they come with the course: trained on MNIST, or on the embedded digits.

    Lecture 06 at full scale makes them. Raises ``RuntimeError`` where the file is damaged.
    """
    nets = nn.ModuleDict({name: models.slides_cnn() for name in RECIPES})
    stored.load("defended", source, nets)
    for net in nets.values():
        net.to(memory_format=torch.channels_last)
    return nets.to(device)
