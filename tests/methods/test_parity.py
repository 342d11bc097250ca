"""The same attack as in foolbox and torchattacks: same model, same start, same steps, nothing stopped early.

Our attacks climb the margin, the peers cross-entropy: the same direction, so the same images, as long as the arithmetic can tell. On a
confident model cross-entropy's float32 gradient is rounded away (the softmax becomes 0 or 1), and the constants that the peers add to
the gradient's length, 1e-10 and 1e-12, outweigh what is left. There the comparison is made in float64 and without such a constant.
"""

import copy
from dataclasses import replace

import pytest
import torch

from course_utils.core import data, models
from course_utils.core.geometry import norm
from course_utils.core.runtime import generator, seeded
from course_utils.core.training import fit, predict
from course_utils.methods.attacks import fgsm, lead, pgd, succeeded
from course_utils.methods.boundary import deepfool
from course_utils.methods.minimum_norm import fmn

foolbox = pytest.importorskip("foolbox")
torchattacks = pytest.importorskip("torchattacks")

SIZES = {"inf": 0.05, 2: 1.0}
STEPS = 10
kinds = ("DeprecationWarning", "FutureWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*:{kind}") for kind in kinds]
either_goal = pytest.mark.parametrize("to_target", [False, True], ids=["untargeted", "targeted"])


def interior(images):
    """In [0.3, 0.7], where no step meets the end of the box. The noise breaks ties: in an even background, which pixel a max pooling
    passes its gradient to is left to rounding."""
    noise = torch.rand(images.x.shape, generator=generator(0))
    return replace(images, x=0.3 + 0.35 * images.x + 0.05 * noise)


@pytest.fixture(scope="module")
def victim():
    """The slides' CNN after a short training on the embedded digits, and 200 test images with their labels."""
    train, test = (interior(images) for images in data.load("digits"))
    with seeded(0):
        model = models.slides_cnn()
    fit(model, train[:3000], epochs=3, verbose=False)
    return model, test.x[:200], test.y[:200]


def by_torchattacks(model, x, labels, to_target, p, steps):
    settings = dict(eps=SIZES[p], alpha=stride(SIZES[p], steps), steps=steps, random_start=False)
    if p == 2:
        floor = {"eps_for_division": 0} if x.dtype == torch.float64 else {}
        attack = torchattacks.PGDL2(model, **settings, **floor)
    elif steps == 1:
        attack = torchattacks.FGSM(model, eps=SIZES[p])
    else:
        attack = torchattacks.PGD(model, **settings)
    if to_target:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, labels)


def run_of_foolbox(attack, model, x, labels, to_target=False, **settings):
    goals = foolbox.criteria
    goal = (goals.TargetedMisclassification if to_target else goals.Misclassification)(labels)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    # run() is the attack itself; calling it would stop early
    return attack.run(wrapped, x, goal, **settings)


def by_foolbox(model, x, labels, to_target, p, steps):
    # its FGSM is this with one step, but untargeted only
    kind = foolbox.attacks.LinfPGD if p == "inf" else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=stride(SIZES[p], steps), steps=steps, random_start=False)
    return run_of_foolbox(attack, model, x, labels, to_target, epsilon=SIZES[p])


def stride(eps, steps):
    return eps if steps == 1 else 2.5 * eps / steps


def ours(model, x, labels, to_target, p, steps):
    settings = {"target" if to_target else "y": labels, "eps": SIZES[p], "norm": p}
    return fgsm(model, x, **settings) if steps == 1 else pgd(model, x, **settings, steps=steps)


every_peer = pytest.mark.parametrize("theirs", [by_torchattacks, by_foolbox])


def compare(model, x, y, theirs, p, steps, to_target):
    labels = (y + 1) % 10 if to_target else y
    mine, other = (attack(model, x, labels, to_target, p, steps) for attack in (ours, theirs))
    same = (mine - other).abs().flatten(1).amax(1) <= 1e-5
    assert same.double().mean() >= 0.98
    assert torch.equal(predict(model, mine).argmax(1), predict(model, other).argmax(1))
    return mine


@either_goal
@pytest.mark.parametrize("steps", [1, STEPS], ids=["fgsm", "pgd"])
@pytest.mark.parametrize("p", SIZES)
@every_peer
def test_parity_in_float32(victim, theirs, p, steps, to_target):
    model, x, y = victim
    mine = compare(model, x, y, theirs, p, steps, to_target)
    assert 0 < mine.min() and mine.max() < 1  # interior indeed
    changed = predict(model, mine).argmax(1) != predict(model, x).argmax(1)
    assert changed.double().mean() > 0.1  # the attack does something that could differ


def confident(model, factor):
    """A float64 copy with logits ``factor`` times as large: the same decisions, made with great
    certainty."""
    model = copy.deepcopy(model).double()
    for parameter in model.dense2.parameters():
        parameter.data *= factor
    return model


@either_goal
@pytest.mark.parametrize("p", SIZES)
@every_peer
def test_parity_on_a_confident_model_in_float64(victim, theirs, p, to_target):
    model, x, y = victim
    x, y = x[:100], y[:100]
    # the label leads by 20 at most: float32 can round 1 - p away beyond 16, float64 only beyond 36
    factor = 20 / -lead(predict(model, x), y)[0].min()
    compare(confident(model, factor), x.double(), y, theirs, p, STEPS, to_target)


@every_peer
def test_a_confident_model_that_the_peers_find_robust_in_float32_falls_to_us_as_in_float64(
    victim, theirs
):
    model, x, y = victim
    x, y, certain = x[:100], y[:100], confident(model, 100)
    falls = lambda model, x_adv: (predict(model, x_adv).argmax(1) != y).double().mean()  # noqa: E731
    truth = falls(certain, ours(certain, x.double(), y, False, 2, STEPS))
    certain = certain.float()
    assert abs(falls(certain, ours(certain, x, y, False, 2, STEPS)) - truth) <= 0.02
    assert falls(certain, theirs(certain, x, y, False, 2, STEPS)) < truth - 0.3


# --- DeepFool


def deepfool_by_foolbox(model, x, y):
    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, overshoot=0.02, loss="logits")
    return run_of_foolbox(attack, model, x, y)


def deepfool_by_torchattacks(model, x, y):
    return torchattacks.DeepFool(model, steps=50, overshoot=0.02)(x, y)


def truly(model, x_adv, y):
    """Misclassified in its batch, alone and in float64."""
    together = predict(model, x_adv).argmax(1)
    alone = predict(model, x_adv, batch_size=1).argmax(1)
    exact = predict(copy.deepcopy(model).double(), x_adv.double()).argmax(1)
    return (together != y) & (alone != y) & (exact != y)


@pytest.mark.slow
@pytest.mark.parametrize("edge", [False, True], ids=["interior", "black background"])
@pytest.mark.parametrize("theirs", [deepfool_by_foolbox, deepfool_by_torchattacks])
def test_deepfool_is_true_and_not_farther_than_the_peers(victim, theirs, edge):
    model, x, y = victim
    x, y = x[:40], y[:40]
    if edge:  # where [0,1] cuts steps short
        x = ((x - 0.35) / 0.35).clamp(0, 1)
        y = predict(model, x).argmax(1)
    mine, other = deepfool(model, x, y), theirs(model, x, y)
    assert truly(model, mine, y).all() and succeeded(model, mine, y).all()
    both = truly(model, other, y) & (predict(model, x).argmax(1) == y)
    assert both.sum() >= 8  # torchattacks stops 1e-6 short of most boundaries
    ours_off, theirs_off = (norm(x_adv - x, 2)[both].median() for x_adv in (mine, other))
    # the same attack, not another problem
    assert 0.5 * theirs_off < ours_off <= theirs_off


# --- minimum norm

MINIMUM_NORM = {
    "inf": foolbox.attacks.LInfFMNAttack(steps=100),
    2: foolbox.attacks.DDNAttack(steps=100),
    1: foolbox.attacks.L1FMNAttack(steps=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("p", MINIMUM_NORM)
def test_fmn_is_true_and_not_farther_than_the_peers_in_a_hundred_steps(victim, p):
    model, x, y = victim
    x, y = x[:100], y[:100]
    mine = fmn(model, x, y, norm=p)
    assert truly(model, mine, y).all() and succeeded(model, mine, y).all()
    other = run_of_foolbox(MINIMUM_NORM[p], model, x, y)
    both = truly(model, other, y)  # some of theirs end at the boundary
    ours_off, theirs_off = (norm(x_adv - x, p)[both].median() for x_adv in (mine, other))
    assert 0.85 * theirs_off < ours_off <= (1.1 if p == 1 else 1.01) * theirs_off
