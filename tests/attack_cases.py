"""The attacks with settings to test them at, and the tiny networks and images to test them on."""

import pytest
import torch
from torch import nn

from course_utils import attacks, models
from course_utils.attacks import (
    adv_alpha,
    adv_loss,
    adv_loss_sign,
    deepfool,
    fake_image,
    fgsm,
    pgd,
    succeeded,
    swapped_bce,
    targeted,
    untargeted,
)

CASES = {
    "fake_image": (fake_image, dict(steps=4, box=True, smoothness=0.01)),
    "untargeted": (untargeted, dict(steps=4)),
    "untargeted, early stop": (untargeted, dict(steps=6, early_stop=True)),
    "targeted l1": (targeted, dict(steps=6, lam=1.0)),
    "targeted l2": (targeted, dict(steps=6, lam=1.0, distance="l2", loss=swapped_bce)),
}
SIZES = {"inf": 0.1, 2: 0.6, 1: 2.0}  # radii at which some of the images below fall and some stand
for p, size in SIZES.items():
    CASES |= {
        f"fgsm {p}": (fgsm, dict(eps=size, norm=p)),
        f"fgsm {p} to a target": (fgsm, dict(eps=size, norm=p, to_target=True)),
        f"pgd {p}": (pgd, dict(eps=size, norm=p, steps=5)),
        f"pgd {p} to a target": (pgd, dict(eps=size, norm=p, steps=5, to_target=True)),
        f"pgd {p} from random starts": (pgd, dict(eps=size, norm=p, steps=4, restarts=3, random_start=True)),
        f"pgd {p}, early stop": (pgd, dict(eps=size, norm=p, steps=6, restarts=2, early_stop=True)),
        f"adv_loss {p}": (adv_loss, dict(eps=size, norm=p)),
        f"adv_alpha {p}": (adv_alpha, dict(eps=size, norm=p)),
        f"deepfool {p}": (deepfool, dict(norm=p, steps=5, bisections=3)),
    }
CASES["adv_loss_sign"] = (adv_loss_sign, dict(eps=SIZES[2]))
ONE_STEP = ("fgsm", "adv_")
BALLS = [name for name in CASES if name.startswith((*ONE_STEP, "pgd"))]
STEPPED = [name for name in CASES if not name.startswith(ONE_STEP)]
every_attack = pytest.mark.parametrize("case", CASES)
every_ball = pytest.mark.parametrize("case", BALLS)
every_norm = pytest.mark.parametrize("p", SIZES)


def run(case, model, x, y, **changes):
    """The attack called ``case`` with its usual settings."""
    attack, settings = CASES[case]
    settings = settings | changes
    if settings.pop("to_target", False):
        return attack(model, x, target=(y + 1) % 4, **settings)
    return attack(model, x, y, **settings)


def won(case, model, x_adv, y):
    """Which images the attack called ``case`` brought where it wanted them."""
    if "target" in case and "un" not in case:
        return succeeded(model, x_adv, target=y if case.startswith("targeted") else (y + 1) % 4)
    return succeeded(model, x_adv, target=y) if case == "fake_image" else succeeded(model, x_adv, y)


def build(kind="mlp", classes=4, scale=1.0, dtype=torch.float32):
    """A random network on 1×4×4 images; ``scale`` multiplies its logits: a large one makes it confident."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "mlp":
            model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, classes))
        else:  # every layer that train mode changes, and flags that differ
            body = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten()]
            model = nn.Sequential(*body, nn.Sequential(nn.Dropout(0.5), nn.Linear(48, classes)))
            model[1].running_mean.normal_()
            model.train()
            model[2].eval(), model[5][0].eval()
    for parameter in model[-1].parameters():
        parameter.data *= 4 * scale
    return model.to(dtype)


def linear(kind):
    """A linear model in float64 and the gradient w of its margin for label 0."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = (models.binary_logistic(16) if kind == "binary" else models.logistic(16, 2)).double()
    weight = model.output.weight.detach()
    return model, (weight[0] if kind == "binary" else weight[1] - weight[0])


def batch(n=8, seed=0, dtype=torch.float32, model=None):
    """Images with pixels at 0 and 1 among them, and the classes ``model`` sees in them."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.3 * torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64) - 0.15).clamp(0, 1).to(dtype)
    y = attacks.predict(model or build(dtype=dtype), x).argmax(1)
    return x, y


def same_pixels(a, b, share=1.0):
    assert a.shape == b.shape
    assert (a - b).abs().flatten(1).amax(1).le(1e-5).double().mean() >= share
