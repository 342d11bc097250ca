"""Exercises of lecture 04: an objective, a rate, a lead, a control, and the attack's loop."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods.attacks import (
    gradient,
    mean_absolute,
    mean_square,
    neg_log_likelihood,
)


def objective_inputs():
    logits = torch.randn(4, 10, generator=runtime.generator(0), dtype=torch.float64)
    x_adv = answers.small_images(4, seed=1)
    return [(logits, torch.tensor([1, 5, 0, 9]), x_adv, answers.small_images(4), 30.0)]


def add_up(join, loss=neg_log_likelihood, size=torch.abs):
    """An objective: ``join(losses, sizes, lam)``, where sizes has one row of pixels per image."""

    def answer(logits, target, x_adv, x, lam):
        return join(loss(logits, target), size(x_adv - x).flatten(1), lam)

    return answer


def as_asked(losses, sizes, lam):
    return losses + lam * sizes.mean(1)


@exercise(
    "04",
    "The targeted objective",
    level="core",
    hints=(
        "Two terms per image: the cross-entropy of the target, "
        "and lam times the mean absolute difference.",
        "F.cross_entropy(logits, target, reduction='none') "
        "+ lam * (x_adv - x).abs().flatten(1).mean(1).",
    ),
    inputs=objective_inputs,
    otherwise=(
        "the value is not cross-entropy of the target + lam · mean |x_adv − x|, image by image."
    ),
    mistakes={
        "λ is missing: the distance counts lam times.": [
            add_up(lambda losses, sizes, lam: losses + sizes.mean(1))
        ],
        "λ is at the wrong term: the distance counts lam times, the cross-entropy once.": [
            add_up(lambda losses, sizes, lam: lam * losses + sizes.mean(1))
        ],
        "the cross-entropy of the target is missing.": [
            add_up(lambda losses, sizes, lam: lam * sizes.mean(1))
        ],
        "the distance is missing.": [add_up(lambda losses, sizes, lam: losses)],
        "that is the sum over the pixels; the slides take the mean, and λ = 30 belongs to it.": [
            add_up(lambda losses, sizes, lam: losses + lam * sizes.sum(1))
        ],
        "the distance has the wrong sign: minimising would drive x_adv away from x.": [
            add_up(lambda losses, sizes, lam: losses - lam * sizes.mean(1))
        ],
        "the cross-entropy has the wrong sign: minimising it must make the target likely.": [
            add_up(lambda losses, sizes, lam: lam * sizes.mean(1) - losses)
        ],
        "without absolute values, pixels that go up and down cancel.": [
            add_up(as_asked, size=torch.clone)
        ],
        "that is the mean square; this exercise asks for the absolute difference.": [
            add_up(as_asked, size=torch.square)
        ],
        "the cross-entropy is averaged over the batch; reduction='none' keeps one per image.": [
            add_up(as_asked, F.cross_entropy)
        ],
        "the distance is averaged over the batch too; flatten(1) and mean(1) keep one per image.": [
            add_up(lambda losses, sizes, lam: losses + lam * sizes.mean())
        ],
        answers.SOFTMAX_TWICE: [
            add_up(as_asked, lambda logits, target: neg_log_likelihood(logits.softmax(1), target))
        ],
    },
)
def targeted_loss(logits, target, x_adv, x, lam):
    return neg_log_likelihood(logits, target) + lam * (x_adv - x).abs().flatten(1).mean(1)


def predictions():
    """Seven images with one target, two of them of its class; three with a target each."""
    predicted = torch.tensor([3, 3, 3, 7, 2, 3, 0])
    y = torch.tensor([3, 3, 1, 1, 2, 0, 0])
    return [
        (predicted, y, torch.full((7,), 3)),
        (torch.tensor([1, 2, 5]), torch.tensor([0, 0, 5]), torch.tensor([1, 2, 3])),
    ]


def count_hits(case, got, want):
    if len(case[0]) == 7:
        right = "five images are attacked and two of them reach the target, so 0.4"
    else:
        right = "each image has its own target: two of three hits are 0.667"
    return f"{right}; you return {got.item():.3g}."


@exercise(
    "04",
    "Hit rate of a targeted attack",
    level="easy",
    hints=(
        "An image that belongs to the target class was never attacked: leave it out of the count.",
        "attacked = y != target; return the mean of (predicted == target) "
        "over the attacked images.",
    ),
    inputs=predictions,
    otherwise=count_hits,
    mistakes={
        "images that are a 3 anyway count as hits of target 3. "
        "Leave out those whose true class is the target.": [
            lambda predicted, y, target: (predicted == target).double().mean()
        ],
        "you divide by all images; divide by those that were attacked, "
        "whose true class is not the target.": [
            lambda predicted, y, target: ((predicted == target) & (y != target)).double().mean()
        ],
        "that counts every mistake of the network; "
        "a targeted attack succeeds only where the target is predicted.": [
            lambda predicted, y, target: (predicted != y)[y != target].double().mean()
        ],
        "that is the error rate; a targeted attack succeeds only where the target is predicted.": [
            lambda predicted, y, target: (predicted != y).double().mean()
        ],
        "that is the number of hits; divide by the number of attacked images.": [
            lambda predicted, y, target: (predicted == target)[y != target].sum()
        ],
    },
)
def hit_rate(predicted, y, target):
    return (predicted == target)[y != target].double().mean()


def leads_and_kappas():
    """Targets that lead, that trail, and that tie; two values of kappa."""
    logits = torch.tensor(
        [[3.0, 1.0, 0.5], [1.0, 2.0, 4.0], [0.0, -1.0, -3.0], [2.0, 2.0, 1.0]],
        dtype=torch.float64,
    )
    target = torch.tensor([0, 1, 2, 1])
    return [(logits, target, kappa) for kappa in (0.0, 1.5)]


def lead_of_others(logits, target):
    own = logits.gather(1, target[:, None]).squeeze(1)
    return logits.scatter(1, target[:, None], -torch.inf).amax(1) - own


@exercise(
    "04",
    "What is missing to a lead",
    level="core",
    hints=(
        "Per image: the largest logit of the OTHER classes, minus the target's, plus kappa; "
        "nothing is missing where that is negative.",
        "Put −inf at the target before amax(1): logits.scatter(1, target[:, None], -torch.inf).",
    ),
    inputs=leads_and_kappas,
    otherwise="the result is not max(max of the other logits − target's logit + kappa, 0).",
    mistakes={
        "it goes below 0: once the lead is there, nothing is missing. clamp(min=0).": [
            lambda logits, target, kappa: lead_of_others(logits, target) + kappa
        ],
        "kappa is missing: the target must lead by that much.": [
            lambda logits, target, kappa: lead_of_others(logits, target).clamp(min=0)
        ],
        "kappa has the wrong sign: a larger one asks for more.": [
            lambda logits, target, kappa: (lead_of_others(logits, target) - kappa).clamp(min=0)
        ],
        "the target itself is among the others: its logit hides by how much it leads.": [
            lambda logits, target, kappa: (
                logits.amax(1) - logits.gather(1, target[:, None]).squeeze(1) + kappa
            ).clamp(min=0)
        ],
        "the difference is the wrong way round: it is positive where the target trails.": [
            lambda logits, target, kappa: (kappa - lead_of_others(logits, target)).clamp(min=0)
        ],
        "these are probabilities. Leave out the softmax: its flatness is the trouble.": [
            lambda logits, target, kappa: (lead_of_others(logits.softmax(1), target) + kappa).clamp(
                min=0
            )
        ],
    },
)
def lead_missing(logits, target, kappa):
    return (lead_of_others(logits, target) + kappa).clamp(min=0)


def changed_images():
    x = answers.small_images(3)
    x_adv = answers.small_images(3, seed=1)
    order = torch.randperm(x[0].numel(), generator=runtime.generator(5))
    return [(x, x_adv, order)]


def shuffled(x, change, order):
    return (x + change.flatten(1)[:, order].view_as(x)).clamp(0, 1)


@exercise(
    "04",
    "A control of the same size",
    level="core",
    hints=(
        "The change is x_adv − x. Flatten it, take its pixels in the given order, and add it to x.",
        "delta = (x_adv - x).flatten(1)[:, order]; return (x + delta.view_as(x)).clamp(0, 1).",
    ),
    inputs=changed_images,
    otherwise="the result is not x plus the change at the places that order gives, in [0,1].",
    mistakes={
        "that shuffles the whole image. Only the change moves; x stays where it is.": [
            lambda x, x_adv, order: x_adv.flatten(1)[:, order].view_as(x)
        ],
        "that is no image: clip to [0,1].": [
            lambda x, x_adv, order: x + (x_adv - x).flatten(1)[:, order].view_as(x)
        ],
        "that is the attack itself, not a control: the change is not moved.": [
            lambda x, x_adv, order: x_adv
        ],
        "that is the change alone. Add it to x.": [
            lambda x, x_adv, order: (x_adv - x).flatten(1)[:, order].view_as(x)
        ],
        "absolute values lose the signs of the change.": [
            lambda x, x_adv, order: shuffled(x, (x_adv - x).abs(), order)
        ],
        "the change has the wrong sign: it is x_adv − x.": [
            lambda x, x_adv, order: shuffled(x, x - x_adv, order)
        ],
    },
)
def shuffled_change(x, x_adv, order):
    return shuffled(x, x_adv - x, order)


def walk_inputs():
    return [(answers.small_model(), answers.small_images(), torch.arange(6), 3.0, 0.5, 8)]


def descend(move, far=mean_absolute, sign=1, extra=0, start=None):
    """A loop of descent: ``move(x_adv, step, x)`` gives the next images."""

    def answer(model, x, target, lam, step_size, steps):
        def objective(v):
            return neg_log_likelihood(model(v), target) + lam * far(v - x)

        x_adv = x
        for _ in range(steps + extra):
            slope, _ = gradient(objective, x_adv if start is None else x)
            x_adv = move(x_adv, sign * step_size * slope, x)
        return x_adv.detach()

    return answer


def clipped(x_adv, step, x):
    return (x_adv - step).clamp(0, 1)


@exercise(
    "04",
    "The targeted attack",
    level="hard",
    hints=(
        "A loop: loss at the present x_adv, its gradient in x_adv, a step against it, clip.",
        "leaf = x_adv.clone().requires_grad_(); the distance is "
        "(leaf - x).abs().flatten(1).mean(1).",
        "torch.autograd.grad(loss.sum(), leaf)[0]: a sum gives each image its own gradient.",
    ),
    inputs=walk_inputs,
    otherwise=(
        "the walk is not steps times: x_adv − step_size · gradient of (cross-entropy of the target "
        "+ lam · mean |x_adv − x|), clipped."
    ),
    mistakes={
        "you climb: the loss of the target must fall. Subtract the gradient.": [
            descend(clipped, sign=-1)
        ],
        "that is no image. Clip to [0,1] after every step.": [
            descend(lambda x_adv, step, x: x_adv - step)
        ],
        "every step uses the gradient at x. Take it at the present x_adv.": [
            descend(clipped, start="x")
        ],
        "each step starts from x again. Continue from x_adv.": [
            descend(lambda x_adv, step, x: clipped(x, step, x))
        ],
        "the distance is missing.": [descend(clipped, far=lambda delta: 0 * mean_absolute(delta))],
        "the distance is a sum over the pixels; the slides take the mean.": [
            descend(clipped, far=lambda delta: delta.abs().flatten(1).sum(1))
        ],
        "the distance is the mean square; the slides' is the mean absolute difference.": [
            descend(clipped, far=mean_square)
        ],
        "one step too few: range(steps) counts from 0.": [descend(clipped, extra=-1)],
        "the loss is averaged over the batch, so each step is N times too short. Use the sum.": [
            lambda model, x, target, lam, size, steps: descend(clipped)(
                model, x, target, lam, size / len(x), steps
            )
        ],
    },
)
def targeted_attack(model, x, target, lam, step_size, steps):
    return descend(clipped)(model, x, target, lam, step_size, steps)
