"""Exercises of lecture 06.

``robust_share``, ``tangent_rise``, ``blind``, ``gradient_penalty``, ``pgd_training_loss``.
"""

from functools import partial

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.answers import image_gradient
from course_utils.check.exercise import exercise
from course_utils.methods import attacks, objectives
from course_utils.methods.wrappers import Through

SUM = "the sum over the images; take the mean"


def verdicts():
    """Three judges of eight images; each finds something of its own."""
    rows = ("11111110", "10111101", "11010111")
    return [(torch.tensor([[mark == "1" for mark in row] for row in rows]),)]


@exercise(
    "06",
    "One number for several judges",
    level="easy",
    hints=(
        "An image is robust only if it is right after every attack. "
        "First decide that image by image, then take the share.",
        "right.all(0) tells it for each image; .float().mean() is the share.",
    ),
    inputs=verdicts,
    mistakes={
        "that is the mean over all judges and images. An attacker chooses the best attack for "
        "each image: one success is enough.": [lambda right: right.float().mean()],
        "that is the accuracy under the strongest single attack. Another attack fools images "
        "that this one misses: decide image by image.": [lambda right: right.float().mean(1).min()],
        "an image counts as soon as one judge leaves it right; it must be right after all.": [
            lambda right: right.any(0).float().mean()
        ],
        "that is the share of images that some attack fools.": [
            lambda right: 1 - right.all(0).float().mean()
        ],
    },
)
def robust_share(right):
    return right.all(0).float().mean()


def sized(norm, times=lambda eps: eps, gradient=image_gradient):
    """A wrong rise: eps times another ``norm`` of the rows of the gradient."""
    return lambda model, x, y, eps: times(eps) * norm(gradient(model, x, y).flatten(1))


@exercise(
    "06",
    "What the tangent says",
    level="core",
    hints=(
        "Along its tangent the loss of one image grows by ⟨g, δ⟩. "
        "Which δ with |δ_i| ≤ eps makes that largest, and how large? (Lecture 05.)",
        "The dual norm of L∞ is L1: eps · Σ_i |g_i|, for each image by itself.",
        "g = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction='sum'), leaf)[0]; "
        "eps * g.flatten(1).abs().sum(1).",
    ),
    inputs=lambda: answers.one_batch(0.1),
    mistakes={
        "that is the L2 norm of the gradient. Where each pixel may move by eps, "
        "all |g_i| count: the L1 norm.": [sized(lambda g: g.norm(dim=1))],
        "that is the largest entry: what an attacker who moves one pixel gains.": [
            sized(lambda g: g.abs().amax(1))
        ],
        "without absolute values, pixels of both signs cancel.": [sized(lambda g: g.sum(1))],
        "eps is missing.": [sized(lambda g: g.abs().sum(1), lambda eps: 1)],
        "the gradient is that of the mean loss, six times too small. "
        "Differentiate the sum of the losses.": [sized(lambda g: g.abs().sum(1) / 6)],
        "that is the whole loss at the end; asked is by how much it grows.": [
            lambda model, x, y, eps: (
                tangent_rise.right(model, x, y, eps) + attacks.neg_log_likelihood(model(x), y)
            )
        ],
        "that is the true loss after one step, minus that before. "
        "The tangent needs no second look at the model.": [
            lambda model, x, y, eps: (
                attacks.neg_log_likelihood(model(x + eps * image_gradient(model, x, y).sign()), y)
                - attacks.neg_log_likelihood(model(x), y)
            )
        ],
        answers.SOFTMAX_TWICE: [
            sized(
                lambda g: g.abs().sum(1),
                gradient=partial(image_gradient, loss=answers.softmax_twice),
            )
        ],
    },
)
def tangent_rise(model, x, y, eps):
    return eps * image_gradient(model, x, y).flatten(1).abs().sum(1)


def loss_after(move):
    """The images whose loss is no larger at ``move(x, sign of the gradient, h)``."""

    def answer(model, x, y, h):
        moved = move(x, image_gradient(model, x, y).sign(), h)
        with torch.no_grad():
            loss = attacks.neg_log_likelihood
            return loss(model(moved), y) <= loss(model(x), y)

    return answer


def rounded(x):
    return (3 * x).round() / 3


def mirrored(x):
    return x.flip(-1)


def sighted_and_blind():
    """A usual model, one with the gradient of another image, and one that rounds its input."""
    usual, x, y = answers.one_batch()[0]
    models = (usual, Through(usual, mirrored, approximate=True), Through(usual, rounded))
    return [(model.eval(), x, y, 0.01) for model in models]


uphill = loss_after(lambda x, sign, h: x + h * sign)


@exercise(
    "06",
    "Does the gradient point uphill?",
    level="core",
    hints=(
        "Take a small step along the sign of each image's gradient and look at its loss again. "
        "A gradient that tells the truth raises it.",
        "An image whose loss is the same as before counts too: its gradient says nothing.",
        "F.cross_entropy(…, reduction='none') before and after the step; return after <= before.",
    ),
    inputs=sighted_and_blind,
    otherwise="for some images the loss does not grow, or grows, and you say otherwise. "
    "Compare each image's own loss at x + h · sign(g) with that at x.",
    mistakes={
        "an image whose loss stays the same is blind too: not larger means <=.": [
            lambda model, x, y, h: (
                uphill(model, x, y, h)
                & (model(x + h * image_gradient(model, x, y).sign()) != model(x)).any(1)
            )
        ],
        "that marks the images whose gradient is in order, or the step goes downhill.": [
            lambda *given: ~uphill(*given),
            loss_after(lambda x, sign, h: x - h * sign),
        ],
        "that asks whether the gradient is zero; one that is not zero can be wrong as well.": [
            lambda model, x, y, h: ~image_gradient(model, x, y).flatten(1).any(1)
        ],
    },
)
def blind(model, x, y, h):
    return uphill(model, x, y, h)


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
    level="core",
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
        f"that is the L1 norm; {L1_NORM}": [beside_ce(lambda g: g.abs().sum(1).mean())],
        "that is one norm over the whole batch, not squared. flatten(1) keeps the images apart.": [
            beside_ce(torch.norm)
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
    },
)
def gradient_penalty(model, x, y, lam):
    return objectives.gradient_penalty(model, x, y, lam=lam)


def walked(move=torch.sign, keep=lambda x, v, eps: (x + (v - x).clamp(-eps, eps)).clamp(0, 1)):
    """PGD by hand, right or wrong: steps along ``move(gradient)``, brought back by ``keep``."""

    def attack(model, x, y, eps, steps, step_size):
        v = x
        for _ in range(steps):
            v = keep(x, v + step_size * move(image_gradient(model, v, y)), eps)
        return v

    return attack


def trained_on(attack, loss=F.cross_entropy):
    """A wrong training loss: ``loss(logits, y)`` at the images of another ``attack``."""
    return lambda model, x, y, *budget: loss(model(attack(model, x, y, *budget)), y)


pgd = walked()


@exercise(
    "06",
    "One step of PGD training",
    level="hard",
    hints=(
        "First the attacker: from x, `steps` times a step of step_size along the sign of the "
        "gradient, back to within eps of x, back to [0,1]. Then the usual loss, at the last point.",
        "The attacker's images carry no graph: take each gradient with torch.autograd.grad at a "
        "fresh leaf, v.detach().requires_grad_(). Only the last loss has one, for the weights.",
        "v = (x + (v + step_size * g.sign() - x).clamp(-eps, eps)).clamp(0, 1); "
        "at the end F.cross_entropy(model(v), y).",
    ),
    inputs=lambda: answers.one_batch(0.2, 5, 0.08),
    learns=("model",),
    otherwise=lambda case, got, want: (
        f"the mean cross-entropy at the attacked images is {want.item():.4g}; "
        f"you return {got.item():.4g}."
    ),
    mistakes={
        "that is the clean loss. The model learns from the attacked images.": [
            trained_on(lambda model, x, *_: x)
        ],
        "that is one step; the attacker takes `steps`.": [
            trained_on(lambda *given: pgd(*given[:3], given[3], 1, given[5])),
            trained_on(lambda *given: pgd(*given[:3], given[3], 1, given[3])),
        ],
        "nothing brings the image back to within eps of x.": [
            trained_on(walked(keep=lambda x, v, eps: v.clamp(0, 1))),
            trained_on(walked(keep=lambda x, v, eps: v)),
        ],
        "the pixels leave [0,1].": [
            trained_on(walked(keep=lambda x, v, eps: x + (v - x).clamp(-eps, eps)))
        ],
        "the attacker goes downhill; it raises the loss.": [
            trained_on(walked(lambda g: -g.sign()))
        ],
        "the label is the model's own prediction; it must learn the true one, y.": [
            trained_on(pgd, lambda logits, y: F.cross_entropy(logits, logits.argmax(1)))
        ],
        f"that is {SUM}.": [trained_on(pgd, partial(F.cross_entropy, reduction="sum"))],
        "the sign is wrong: the attack climbs the loss, the training descends it.": [
            trained_on(pgd, lambda logits, y: -F.cross_entropy(logits, y))
        ],
        "the clean loss is mixed in. That is Goodfellow's method; here only the attacked count.": [
            lambda *given: (
                0.5 * trained_on(pgd)(*given) + 0.5 * F.cross_entropy(given[0](given[1]), given[2])
            )
        ],
        answers.SOFTMAX_TWICE: [trained_on(pgd, answers.softmax_twice)],
    },
)
def pgd_training_loss(model, x, y, eps, steps, step_size):
    x_adv = attacks.pgd(model, x, y, eps=eps, steps=steps, step_size=step_size)
    return F.cross_entropy(model(x_adv), y)
