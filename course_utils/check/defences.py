"""Exercises of lecture 06: ``adversarial_loss`` and ``gradient_penalty``."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.answers import NotYet
from course_utils.check.exercise import exercise
from course_utils.methods import attacks, objectives

CLEAN = "that is the clean loss. Give the model what attack(model, x, y) returns."
NEVER = "the attack is never called. x_adv = attack(model, x, y)."
OTHER_LABELS = (
    "the attack gets other labels than y: it then climbs the loss of another class. "
    "attack(model, x, y)."
)
OTHER_IMAGES = "the attack gets other images than x. attack(model, x, y), once."
SUM = "the sum over the images; take the mean"


def attack(model, x, y):
    return attacks.fgsm(model, x, y, eps=0.1)


def calls_attack(answer):
    """Judges what the attack is given."""
    model, x, y, _ = answers.one_batch(attack)[0]
    calls = []

    def recorder(model, images, labels):
        calls.append((images.detach().clone(), labels.clone()))
        return attack(model, images, labels)

    got = answer(model, x, y, recorder)
    calls.pop()  # the right answer calls it too, last
    if not calls:
        clean = F.cross_entropy(model(x), y)
        raise NotYet(CLEAN if answers.same(answers.joined(got), answers.joined(clean)) else NEVER)
    if not all(torch.equal(labels, y) for _, labels in calls):
        raise NotYet(OTHER_LABELS)
    if not all(torch.equal(images, x) for images, _ in calls):
        raise NotYet(OTHER_IMAGES)


def of_losses(join):
    """A wrong loss: ``join(attacked, clean)`` of the two mean cross-entropies."""

    def wrong(model, x, y, attack):
        x_adv = attack(model, x, y)
        return join(F.cross_entropy(model(x_adv), y), F.cross_entropy(model(x), y))

    return wrong


def of_attacked(loss):
    """A wrong loss: ``loss(logits of x_adv, y)``."""
    return lambda model, x, y, attack: loss(model(attack(model, x, y)), y)


def at(images):
    """A wrong loss: the cross-entropy at ``images(model, x, y, attack)``."""
    return lambda model, x, y, attack: F.cross_entropy(model(images(model, x, y, attack)), y)


@exercise(
    "06",
    "The loss of adversarial training",
    hints=(
        "Let the attack move the images, then take the usual loss there, with the true labels.",
        "x_adv = attack(model, x, y); return F.cross_entropy(model(x_adv), y). "
        "The attack's result carries no graph; the loss must.",
    ),
    inputs=lambda: answers.one_batch(attack),
    learns=("model",),
    properties=calls_attack,
    otherwise=lambda case, got, want: (
        f"the mean cross-entropy on the attacked images is {want.item():.4g}; "
        f"you return {got.item():.4g}."
    ),
    mistakes={
        CLEAN: [of_losses(lambda attacked, clean: clean), at(lambda model, x, y, attack: x)],
        "the label is the model's own prediction; it must learn the true one, y.": [
            of_attacked(lambda logits, y: F.cross_entropy(logits, logits.argmax(1))),
            lambda model, x, y, attack: F.cross_entropy(
                model(attack(model, x, y)), model(x).argmax(1)
            ),
        ],
        f"that is {SUM}.": [of_losses(lambda attacked, clean: 6 * attacked)],
        "the sign is wrong: the attack climbs the loss, the training descends it. "
        "Return the loss itself.": [of_losses(lambda attacked, clean: -attacked)],
        "the clean loss is mixed in. That is a method too (Goodfellow's), "
        "but here only the attacked images count.": [
            of_losses(lambda attacked, clean: (attacked + clean) / 2)
        ],
        "the clean loss is added. Here only the attacked images count.": [
            of_losses(lambda attacked, clean: attacked + clean)
        ],
        answers.SOFTMAX_TWICE: [of_attacked(answers.softmax_twice)],
        NEVER: [at(lambda model, x, y, attack: x + 0.1)],
        OTHER_LABELS: [at(lambda model, x, y, attack: attack(model, x, (y + 1) % 10))],
        OTHER_IMAGES: [at(lambda model, x, y, attack: attack(model, attack(model, x, y), y))],
    },
)
def adversarial_loss(model, x, y, attack):
    return F.cross_entropy(model(attack(model, x, y)), y)


L1_NORM = "the penalty is the squared L2 norm, the sum of squares."


def penalised(join, loss=attacks.neg_log_likelihood):
    """A loss: ``join(losses, g, lam)``, where g has one row per image, its own gradient."""

    def answer(model, x, y, lam):
        leaf = x.clone().requires_grad_()
        losses = loss(model(leaf), y)
        g = torch.autograd.grad(losses.sum(), leaf, create_graph=True)[0]
        return join(losses, g.flatten(1), lam)

    return answer


def beside_ce(size):
    """A wrong penalty: ``size(g)``."""
    return penalised(lambda losses, g, lam: losses.mean() + lam * size(g))


def squared(g):
    return g.square().sum(1).mean()


def penalty_alone(losses, g, lam):
    return lam * squared(g)


ce_alone = penalised(lambda losses, g, lam: losses.mean())


def of_weights(factor):
    """The gradient of the weights in place of the images', with the loss ``factor`` times."""

    def wrong(model, x, y, lam):
        loss = F.cross_entropy(model(x), y)
        slopes = torch.autograd.grad(factor * loss, list(model.parameters()), create_graph=True)
        return loss + lam * sum(slope.square().sum() for slope in slopes)

    return wrong


def softmax_losses(logits, y):
    return answers.softmax_twice(logits, y, "none")


def show_terms(case, got, want):
    want = want.item()
    ce = ce_alone(*case).item()
    terms = f"{want:.4g} ({ce:.4g} + lam · {(want - ce) / case[3]:.4g})"
    return f"for the test images the loss is {terms}; you return {got.item():.4g}."


@exercise(
    "06",
    "Penalise the gradient of the loss",
    hints=(
        "Each image has its own loss ℓ and its own gradient ∂ℓ/∂x. "
        "The penalty is its squared L2 norm, averaged over the images.",
        "x = x.clone().requires_grad_(); losses = F.cross_entropy(model(x), y, reduction='none'); "
        "differentiate losses.sum(), not the mean.",
        "torch.autograd.grad(losses.sum(), x, create_graph=True)[0]: "
        "only with create_graph can the weights learn from the gradient.",
        "losses.mean() + lam * g.flatten(1).square().sum(1).mean().",
    ),
    inputs=lambda: answers.one_batch(0.3),
    learns=("model",),
    otherwise=show_terms,
    mistakes={
        "the penalty is missing.": [ce_alone],
        "the cross-entropy itself is missing.": [penalised(penalty_alone)],
        "λ is missing: the penalty counts lam times.": [
            penalised(lambda losses, g, lam: losses.mean() + squared(g))
        ],
        "λ is at the wrong term: the penalty counts lam times, the cross-entropy once.": [
            penalised(lambda losses, g, lam: lam * losses.mean() + squared(g))
        ],
        "the penalty has the wrong sign: minimising would make the gradient large.": [
            beside_ce(lambda g: -squared(g))
        ],
        "the norm is not squared.": [beside_ce(lambda g: g.norm(dim=1).mean())],
        "the gradient is that of the mean loss: each image's is N times too small, "
        "its square N² times. Differentiate losses.sum().": [
            beside_ce(lambda g: squared(g / 6)),
            beside_ce(lambda g: (g / 6).square().sum()),
        ],
        f"the penalty is {SUM}, as of the cross-entropy.": [beside_ce(lambda g: g.square().sum())],
        "that is the mean over the pixels too; "
        "the squared norm of one image is a sum over its pixels.": [
            beside_ce(lambda g: g.square().mean())
        ],
        f"that is the L1 norm; {L1_NORM}": [beside_ce(lambda g: g.abs().sum(1).mean())],
        f"that is the L1 norm, squared; {L1_NORM}": [
            beside_ce(lambda g: g.abs().sum(1).square().mean())
        ],
        "that is one norm over the whole batch, not squared. flatten(1) keeps the images apart.": [
            beside_ce(torch.norm)
        ],
        f"the cross-entropy is {SUM}.": [
            penalised(lambda losses, g, lam: losses.sum() + lam * squared(g))
        ],
        "both terms are sums over the images; take the mean.": [
            penalised(lambda losses, g, lam: losses.sum() + lam * g.square().sum())
        ],
        "that is the gradient of the weights; the penalty takes the one of the images, ∂ℓ/∂x.": [
            of_weights(1),
            of_weights(6),
        ],
        answers.SOFTMAX_TWICE: [
            penalised(lambda losses, g, lam: losses.mean() + lam * squared(g), softmax_losses),
            lambda *given: ce_alone(*given) + penalised(penalty_alone, softmax_losses)(*given),
        ],
        "the number is right, but the weights learn nothing from the penalty: "
        "its gradient is a constant. create_graph=True.": [
            beside_ce(lambda g: squared(g.detach()))
        ],
        "the number is right, but its gradient is not: the weights must learn from both terms. "
        "Is something detached?": [
            penalised(lambda losses, g, lam: losses.mean().detach() + lam * squared(g))
        ],
    },
)
def gradient_penalty(model, x, y, lam):
    return objectives.gradient_penalty(model, x, y, lam=lam)
