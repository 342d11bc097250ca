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
EPOCHS = 12
LEAST = 300_000  # images that a training sees, so that a small set is seen more often
FEW = 20_000  # images, below which B needs a mild start


def by_pgd(eps: float) -> Objective:
    """PGD training within ``eps``."""
    inner = {"eps": eps, "steps": 7, "step_size": eps / 4, "random_start": True}
    return partial(objectives.adversarial, attack=attacks.pgd, **inner)


RECIPES: dict[str, Objective] = {
    "standard": cross_entropy,
    "A": partial(objectives.adversarial, attack=attacks.fgsm, eps=EPS),
    "B": by_pgd(EPS),
    "penalty": partial(objectives.gradient_penalty, lam=10.0),
}


def settings(images: Images) -> dict:
    """What the four trainings have in common: the settings of ``training.fit``."""
    return {
        "epochs": max(EPOCHS, LEAST // len(images)),
        "batch_size": 64,
        "optimizer": partial(torch.optim.Adam, lr=2e-3),
        "schedule": training.triangle,
        "verbose": False,
    }


def mild_start(images: Images) -> nn.Module:
    """Weights that five epochs at half the radius left; from scratch B stays at chance here."""
    own = settings(images) | {"epochs": 5, "schedule": None}
    return training.trained(models.slides_cnn, images, objective=by_pgd(EPS / 2), **own)[0]


def trained(images: Images) -> nn.ModuleDict:
    """All four, trained on ``images``; takes tens of minutes on a core."""
    nets = {}
    for name, objective in RECIPES.items():
        mild = name == "B" and len(images) < FEW
        build = partial(mild_start, images) if mild else models.slides_cnn
        nets[name], _ = training.trained(build, images, objective=objective, **settings(images))
    return nn.ModuleDict(nets)


def larger(images: Images, seed: int = 0) -> nn.Module:
    """``models.strided_cnn`` with 512 units after PGD training a little past ``EPS``, at 0.33.

    Twice as long as the four, with larger batches and a smaller rate; about an hour on a core.
    """
    adam = partial(torch.optim.Adam, lr=1e-3)
    own = settings(images) | {"batch_size": 128, "optimizer": adam, "verbose": True}
    own["epochs"] *= 2
    build = partial(models.strided_cnn, 512)
    return training.trained(build, images, seed=seed, objective=by_pgd(0.33), **own)[0]


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
