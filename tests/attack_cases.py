"""The attacks with settings to test them at, and the tiny networks and images to test them on."""

import pytest
import torch
from torch import nn

from course_utils.core import data, models
from course_utils.core.runtime import generator, seeded
from course_utils.core.training import fit, gradients_on, predict
from course_utils.methods import attacks
from course_utils.methods.attacks import adv_loss, adv_loss_sign, fgsm, pgd, succeeded, targeted
from course_utils.methods.boundary import adv_alpha, deepfool
from course_utils.methods.carlini_wagner import carlini_wagner
from course_utils.methods.minimum_norm import fmn
from course_utils.methods.queries import hopskipjump, square

f64 = torch.float64


def square_in_steps(model, x, y=None, *, steps, norm="inf", **settings):
    """Square Attack with the names that the other attacks' settings have."""
    return square(model, x, y, queries=steps, **settings)


def hopskipjump_in_steps(model, x, y=None, *, target=None, steps, **settings):
    """HopSkipJump; to a target from images that ``build()`` sees as it."""
    start = None if target is None else seen_as(target).to(x)
    return hopskipjump(model, x, y, target=target, start=start, queries=steps, **settings)


def seen_as(target):
    """Images that ``build()`` sees as ``target``."""
    with gradients_on():
        grey, target = torch.full((len(target), 1, 4, 4), 0.5), target.clone()
        return pgd(build(), grey, target=target, eps=0.5, step_size=0.1, random_start=True)


CASES = {
    "fake_image": (attacks.fake_image, dict(steps=4, box=True, smoothness=0.01)),
    "untargeted": (attacks.untargeted, dict(steps=4)),
    "untargeted, early stop": (attacks.untargeted, dict(steps=6, early_stop=True)),
    "targeted l1": (targeted, dict(steps=6, lam=1.0)),
    "targeted l2": (targeted, dict(steps=6, lam=1.0, distance="l2", loss=attacks.swapped_bce)),
}
SIZES = {"inf": 0.1, 2: 0.6, 1: 2.0}  # radii at which some of the images below fall and some stand
for p, size in SIZES.items():
    ball = dict(eps=size, norm=p)
    CASES |= {
        f"fgsm {p}": (fgsm, ball),
        f"fgsm {p} to a target": (fgsm, ball | dict(to_target=True)),
        f"pgd {p}": (pgd, ball | dict(steps=5)),
        f"pgd {p} to a target": (pgd, ball | dict(steps=5, to_target=True)),
        f"pgd {p} from random starts": (pgd, ball | dict(steps=4, restarts=3, random_start=True)),
        f"pgd {p}, early stop": (pgd, ball | dict(steps=6, restarts=2, early_stop=True)),
        f"adv_loss {p}": (adv_loss, ball),
        f"adv_alpha {p}": (adv_alpha, ball),
        f"deepfool {p}": (deepfool, dict(norm=p, steps=5, bisections=3)),
        f"fmn {p}": (fmn, dict(norm=p, steps=8)),
        f"fmn {p} to a target": (fmn, dict(norm=p, steps=8, to_target=True)),
    }
CASES["adv_loss_sign"] = (adv_loss_sign, dict(eps=SIZES[2]))
CW = dict(steps=6, rounds=4, first_constant=0.1)
CASES["carlini_wagner"] = (carlini_wagner, CW)
CASES["carlini_wagner to a target"] = (carlini_wagner, CW | dict(kappa=1.0, to_target=True))
SQUARE = dict(eps=SIZES["inf"], norm="inf", steps=30)
CASES["square inf, random"] = (square_in_steps, SQUARE)
CASES["square inf to a target, random"] = (square_in_steps, SQUARE | dict(to_target=True))
CASES["hopskipjump, random"] = (hopskipjump_in_steps, dict(steps=120))
CASES["hopskipjump to a target, random"] = (hopskipjump_in_steps, dict(steps=120, to_target=True))
ONE_STEP = ("fgsm", "adv_")
BY_GRADIENT = [name for name in CASES if not name.startswith(("square", "hopskipjump"))]
BALLS = [name for name in CASES if name.startswith((*ONE_STEP, "pgd", "square"))]
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
    with seeded(1):
        if kind == "mlp":
            body = [nn.Flatten(), nn.Linear(16, 24), nn.Tanh()]
            model = nn.Sequential(*body, nn.Linear(24, classes))
        else:  # every layer that train mode changes, and flags that differ
            body = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5)]
            head = nn.Sequential(nn.Dropout(0.5), nn.Linear(48, classes))
            model = nn.Sequential(*body, nn.Flatten(), head)
            model[1].running_mean.normal_()
            model.train()
            model[2].eval(), model[5][0].eval()
    for parameter in model[-1].parameters():
        parameter.data *= 4 * scale
    return model.to(dtype)


def trained_on_digits():
    """The slides' CNN after a short training on the embedded digits, and the test images it gets right."""
    train, test = data.load("digits")
    with seeded(0):
        model = models.slides_cnn()
    fit(model, train[:3000], epochs=3, verbose=False)
    return model.eval(), test[predict(model, test.x).argmax(1) == test.y]


def linear(kind):
    """A linear model in float64 and the gradient w of its margin for label 0."""
    with seeded(3):
        model = models.binary_logistic(16) if kind == "binary" else models.logistic(16, 2)
    weight = model.double().output.weight.detach()
    return model, (weight[0] if kind == "binary" else weight[1] - weight[0])


def batch(n=8, seed=0, dtype=torch.float32, model=None):
    """Images with pixels at 0 and 1 among them, and the classes ``model`` sees in them."""
    x = 1.3 * torch.rand(n, 1, 4, 4, generator=generator(seed), dtype=f64) - 0.15
    x = x.clamp(0, 1).to(dtype)
    return x, attacks.predict(model or build(dtype=dtype), x).argmax(1)


def network_and_batch(n=8, dtype=torch.float32, **settings):
    """A network by ``build``, and ``n`` images with the classes that it sees in them."""
    model = build(dtype=dtype, **settings)
    return model, *batch(n, dtype=dtype, model=model)


def one_by_one(function, *arrays):
    """What ``function`` gives for every image alone, joined."""
    return torch.cat([function(*one) for one in zip(*(a.split(1) for a in arrays), strict=True)])


def same_pixels(a, b, share=1.0):
    assert a.shape == b.shape
    assert (a - b).abs().flatten(1).amax(1).le(1e-5).double().mean() >= share
