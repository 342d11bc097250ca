"""The same attack as in foolbox and torchattacks: same model, same start, same steps, nothing stopped early.

Our attacks climb the margin, the peers cross-entropy: the same direction, so the same images, as long as the arithmetic can tell. On a
confident model cross-entropy's float32 gradient is rounded away (the softmax becomes 0 or 1), and the constants that the peers add to
the gradient's length, 1e-10 and 1e-12, outweigh what is left. There the comparison is made in float64 and without such a constant.
"""

import copy
from dataclasses import replace

import pytest
import torch

from course_utils import data, models
from course_utils.attacks import deepfool, fgsm, pgd, succeeded
from course_utils.geometry import norm
from course_utils.training import fit, predict

foolbox = pytest.importorskip("foolbox")
torchattacks = pytest.importorskip("torchattacks")

SIZES = {"inf": 0.05, 2: 1.0}
STEPS = 10
pytestmark = [pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"), pytest.mark.filterwarnings("ignore:.*:FutureWarning")]


def interior(images):
    """In [0.3, 0.7], where no step meets the end of the box. The noise breaks ties: in an even background, which pixel a max pooling
    passes its gradient to is left to rounding."""
    noise = torch.rand(images.x.shape, generator=torch.Generator().manual_seed(0))
    return replace(images, x=0.3 + 0.35 * images.x + 0.05 * noise)


@pytest.fixture(scope="module")
def victim():
    """The slides' CNN after a short training on the embedded digits, and 200 test images with their labels."""
    train, test = (interior(images) for images in data.load("digits"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.slides_cnn()
    fit(model, train[:3000], epochs=3, verbose=False)
    return model, test.x[:200], test.y[:200]


def by_torchattacks(model, x, labels, to_target, p, steps):
    settings = dict(eps=SIZES[p], alpha=stride(SIZES[p], steps), steps=steps, random_start=False)
    if p == 2:
        floor = {"eps_for_division": 0} if x.dtype == torch.float64 else {}
        attack = torchattacks.PGDL2(model, **settings, **floor)
    else:
        attack = torchattacks.FGSM(model, eps=SIZES[p]) if steps == 1 else torchattacks.PGD(model, **settings)
    if to_target:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, labels)


def by_foolbox(model, x, labels, to_target, p, steps):
    kind = foolbox.attacks.LinfPGD if p == "inf" else foolbox.attacks.L2PGD  # its FGSM is this with one step, but untargeted only
    attack = kind(abs_stepsize=stride(SIZES[p], steps), steps=steps, random_start=False)
    criterion = foolbox.criteria.TargetedMisclassification if to_target else foolbox.criteria.Misclassification
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return attack.run(wrapped, x, criterion(labels), epsilon=SIZES[p])  # run() is the attack itself; calling it would stop early


def stride(eps, steps):
    return eps if steps == 1 else 2.5 * eps / steps


def ours(model, x, labels, to_target, p, steps):
    labels = {"target": labels} if to_target else {"y": labels}
    if steps == 1:
        return fgsm(model, x, **labels, eps=SIZES[p], norm=p)
    return pgd(model, x, **labels, eps=SIZES[p], norm=p, steps=steps)


def agreement(model, mine, theirs):
    """Share of images equal to 1e-5, and share of equal verdicts."""
    same = (mine - theirs).abs().flatten(1).amax(1) <= 1e-5
    verdicts = predict(model, mine).argmax(1) == predict(model, theirs).argmax(1)
    return same.double().mean().item(), verdicts.double().mean().item()


every_peer = pytest.mark.parametrize("theirs", [by_torchattacks, by_foolbox])


def compare(model, x, labels, theirs, p, steps, to_target):
    mine = ours(model, x, labels, to_target, p, steps)
    same, verdicts = agreement(model, mine, theirs(model, x, labels, to_target, p, steps))
    assert same >= 0.98 and verdicts == 1, f"{same:.1%} of the images and {verdicts:.1%} of the verdicts agree"
    return mine


@pytest.mark.parametrize("to_target", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("steps", [1, STEPS], ids=["fgsm", "pgd"])
@pytest.mark.parametrize("p", SIZES)
@every_peer
def test_parity_in_float32(victim, theirs, p, steps, to_target):
    model, x, y = victim
    labels = (y + 1) % 10 if to_target else y
    mine = compare(model, x, labels, theirs, p, steps, to_target)
    assert 0 < mine.min() and mine.max() < 1  # interior indeed
    changed = predict(model, mine).argmax(1) != predict(model, x).argmax(1)
    assert changed.double().mean() > 0.1  # the attack does something that could differ


def confident(model, factor):
    """A float64 copy with logits ``factor`` times as large: the same decisions, made with great certainty."""
    model = copy.deepcopy(model).double()
    for parameter in model.dense2.parameters():
        parameter.data *= factor
    return model


@pytest.mark.parametrize("to_target", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("p", SIZES)
@every_peer
def test_parity_on_a_confident_model_in_float64(victim, theirs, p, to_target):
    model, x, y = victim
    x, y = x[:100].double(), y[:100]
    compare(confident(model, 10), x, (y + 1) % 10 if to_target else y, theirs, p, STEPS, to_target)


@every_peer
def test_a_confident_model_that_the_peers_find_robust_in_float32_falls_to_us_as_in_float64(victim, theirs):
    model, x, y = victim
    x, y, certain = x[:100], y[:100], confident(model, 100)
    falls = lambda model, x_adv: (predict(model, x_adv).argmax(1) != y).double().mean()  # noqa: E731
    truth = falls(certain, ours(certain, x.double(), y, False, 2, STEPS))
    certain = certain.float()
    assert abs(falls(certain, ours(certain, x, y, False, 2, STEPS)) - truth) <= 0.02
    assert falls(certain, theirs(certain, x, y, False, 2, STEPS)) < truth - 0.3


# --------------------------------------------------------------------------------------------------------------- DeepFool


def deepfool_by_foolbox(model, x, y):
    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, overshoot=0.02, loss="logits")
    return attack.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, foolbox.criteria.Misclassification(y))


def deepfool_by_torchattacks(model, x, y):
    return torchattacks.DeepFool(model, steps=50, overshoot=0.02)(x, y)


def truly(model, x_adv, y):
    """Misclassified in its batch, alone and in float64."""
    together = predict(model, x_adv).argmax(1)
    alone = predict(model, x_adv, batch_size=1).argmax(1)
    exact = predict(copy.deepcopy(model).double(), x_adv.double()).argmax(1)
    return (together != y) & (alone != y) & (exact != y)


@pytest.mark.parametrize("edge", [False, True], ids=["interior", "black background"])
@pytest.mark.parametrize("theirs", [deepfool_by_foolbox, deepfool_by_torchattacks])
def test_deepfool_is_true_and_not_farther_than_the_peers(victim, theirs, edge):
    model, x, y = victim
    x, y = x[:40], y[:40]
    if edge:  # where [0,1] cuts steps short
        x = ((x - 0.35) / 0.35).clamp(0, 1)
        y = predict(model, x).argmax(1)
    mine, other = deepfool(model, x, y), theirs(model, x, y)
    assert torch.equal(truly(model, mine, y), succeeded(model, mine, y))  # never a success that is none
    assert truly(model, mine, y).all()
    both = truly(model, other, y) & (predict(model, x).argmax(1) == y)
    assert both.sum() >= 8  # torchattacks stops 1e-6 short of most boundaries
    distances = [norm(x_adv - x, 2)[both] for x_adv in (mine, other)]
    assert distances[0].median() <= distances[1].median()
    assert distances[0].median() > 0.5 * distances[1].median()  # the same attack, not another problem
