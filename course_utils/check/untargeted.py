"""Exercises of lecture 03: ``max_normalised``, ``gain``, ``project_l2``, ``fgsm``, ``pgd``."""

import torch

from course_utils.check import answers
from course_utils.check.answers import NOT_MOVED, NotYet, image_gradient, per_image, step
from course_utils.check.exercise import exercise
from course_utils.core import geometry, runtime
from course_utils.methods import attacks

NAN = "an image whose gradient is zero becomes nan (0/0). It should stay zero."
SIGNED = "the largest entry is meant in absolute value; a negative one can be larger."
NOT_ZERO = "an image whose gradient is zero should stay zero."
FLOOR = (
    "a gradient of size 1e-14 (a confident network) is not scaled to 1. "
    "Is something added to the denominator?"
)


def gradients():
    """Four images: usual, large, tiny, zero."""
    g = torch.randn(4, 1, 5, 5, generator=runtime.generator(0), dtype=torch.float64)
    g *= per_image(torch.tensor([1.0, 10.0, 1e-14, 0.0]))
    g[0, 0, 2, 2] = -4  # the largest in absolute value is negative
    return [(g,)]


def keeps_scale(answer):
    """Judges the tiny and the zero image, whatever is added to the denominator."""
    g = gradients()[0][0]
    got = answer(g)
    if got[3].nan_to_num().any():
        raise NotYet(NOT_ZERO)
    usual = divided(largest)(g[:2])
    if (got[:2] - usual).abs().max() < 0.1 and got[2].abs().max() < 0.99:
        raise NotYet(FLOOR)


def largest(rows):
    return rows.abs().amax(1)


def divided(size):
    """Divides each image by ``size(rows)``, (N,), but not by 0."""

    def answer(g):
        by = size(g.flatten(1))
        return g / per_image(torch.where(by == 0, 1, by))

    return answer


@exercise(
    "03",
    "Normalise by the largest entry",
    level="easy",
    hints=(
        "Each image is divided by its own largest absolute entry: g.abs().flatten(1).amax(1), "
        "shape (N,), brought to (N, 1, 1, 1).",
        "Where the largest entry is exactly 0, leave the zeros: divide by "
        "torch.where(largest > 0, largest, 1). Add nothing to the denominator.",
    ),
    inputs=gradients,
    properties=keeps_scale,
    otherwise="the result is not g divided by its largest absolute entry, image by image.",
    mistakes={
        NAN: [lambda g: g / per_image(largest(g.flatten(1)))],
        NOT_ZERO: [lambda g: torch.where(g == 0, 1, divided(largest)(g))],
        FLOOR: [divided(lambda rows: largest(rows) + 1e-12)],
        "you divide by the largest entry of the whole batch: what happens to one image then "
        "depends on the others.": [lambda g: g / g.abs().max()],
        SIGNED: [
            divided(lambda rows: rows.amax(1)),
            lambda g: g / per_image(g.flatten(1).amax(1)),
        ],
        "that divides by the length (L2); the largest entry should become 1 or −1.": [
            divided(lambda rows: rows.norm(dim=1))
        ],
        "that is the sign: every entry becomes 1 or −1, and only the largest should.": [torch.sign],
    },
)
def max_normalised(g):
    return divided(largest)(g)


def gain_inputs():
    g = gradients()[0][0][:2]
    return [(g, 0.5, norm) for norm in ("inf", 2, 1)]


def sizes(choose):
    """A wrong gain: eps times the size that ``choose`` finds for a norm, among three."""

    def answer(g, eps, norm):
        rows = g.flatten(1)
        return (
            eps
            * {"1": rows.abs().sum(1), "2": rows.norm(dim=1), "inf": largest(rows)}[choose[norm]]
        )

    return answer


DUAL = {"inf": "1", 2: "2", 1: "inf"}


@exercise(
    "03",
    "What a budget buys",
    level="easy",
    hints=(
        "The best step in the ball of a norm gains eps times the dual norm of g.",
        "The dual of L∞ is L1 (the sum of |g|), that of L2 is L2, that of L1 is L∞ (the largest "
        "|g|). Take them over g.flatten(1), along dimension 1.",
    ),
    inputs=gain_inputs,
    otherwise="the result is not eps times the dual norm of each image's gradient.",
    mistakes={
        "that is the norm itself. The gain is eps times the DUAL norm: L1 for L∞, L∞ for L1.": [
            sizes({"inf": "inf", 2: "2", 1: "1"})
        ],
        "eps is missing.": [lambda g, eps, norm: sizes(DUAL)(g, 1.0, norm)],
        "in L∞ every pixel helps, also where its gradient is negative: sum absolute values.": [
            lambda g, eps, norm: eps * g.flatten(1).sum(1)
        ],
        "that is the mean over the pixels; the gain is a sum.": [
            lambda g, eps, norm: eps * g.flatten(1).abs().mean(1)
        ],
    },
)
def gain(g, eps, norm):
    return sizes(DUAL)(g, eps, norm)


def deltas():
    """Four perturbations: outside the ball, inside, zero, far outside."""
    delta = torch.randn(4, 1, 5, 5, generator=runtime.generator(3), dtype=torch.float64)
    return [(delta * per_image(torch.tensor([1.0, 0.05, 0.0, 10.0])), 2.0)]


def scaled_by(factor):
    """A wrong projection: delta times ``factor(length, eps)``, one number per image."""
    return lambda delta, eps: delta * per_image(factor(delta.flatten(1).norm(dim=1), eps))


@exercise(
    "03",
    "Project onto the L2 ball",
    level="core",
    hints=(
        "Inside the ball nothing changes. Outside, keep the direction and shorten to length eps.",
        "length = delta.flatten(1).norm(dim=1)[:, None, None, None]; the factor is eps / length "
        "where length > eps, else 1.",
    ),
    inputs=deltas,
    otherwise="the result is not the nearest point of the ball: delta · min(1, eps / length).",
    mistakes={
        "a perturbation inside the ball is stretched to its surface. It should stay.": [
            scaled_by(lambda length, eps: eps / torch.where(length > 0, length, 1))
        ],
        "an image without a change becomes nan (0/0). It should stay zero.": [
            scaled_by(lambda length, eps: eps / length)
        ],
        "that clips every pixel to ±eps, which is the projection onto the L∞ ball.": [
            lambda delta, eps: delta.clamp(-eps, eps)
        ],
        "the length is taken over the whole batch; each image has its own.": [
            lambda delta, eps: delta * min(1, eps / delta.norm().item())
        ],
        "that has length 1 and not eps.": [
            scaled_by(lambda length, eps: torch.where(length > eps, 1 / length, 1))
        ],
        "the length is a root: you divide by the squared length.": [
            scaled_by(lambda length, eps: torch.where(length > eps, eps / length.square(), 1))
        ],
    },
)
def project_l2(delta, eps):
    return geometry.project(delta, eps, 2)


DOWN = "the loss of the true label falls. An untargeted attack climbs: add the step."
NO_IMAGE = "that is no image. Clip to [0,1] after every step."
TOO_FAR = "Every pixel may move by eps at most."
NO_SIGN = (
    "some pixels move by less than eps although there is room: "
    "use the sign of the gradient, not the gradient."
)


def one_step_inputs():
    return [(answers.small_model(), answers.small_images(), torch.arange(6), 0.1)]


@torch.no_grad()
def climbs_in_box(model, x, x_adv, y):
    """Judges what holds for any attack; returns how far each pixel moves."""
    if torch.equal(x_adv, x):
        raise NotYet(NOT_MOVED)
    losses = [attacks.neg_log_likelihood(model(images), y) for images in (x, x_adv)]
    if (losses[1] < losses[0]).all():
        raise NotYet(DOWN)
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise NotYet(f"x_adv reaches from {x_adv.min():.3g} to {x_adv.max():.3g}; {NO_IMAGE}")
    return (x_adv - x).abs()


def is_full_step(answer):
    model, x, y, eps = one_step_inputs()[0]
    size = climbs_in_box(model, x, answer(model, x, y, eps).to(x), y)
    if size.max() > eps + 1e-6:
        raise NotYet(f"a pixel moved by {size.max():.3g}, and eps is {eps}. {TOO_FAR}")
    if size[(x > eps) & (x < 1 - eps)].min() < eps * 0.99:
        raise NotYet(NO_SIGN)


def climbed(x, g, eps):
    return (x + eps * g.sign()).clamp(0, 1)


@exercise(
    "03",
    "The fast gradient sign method",
    level="core",
    hints=(
        "Take the gradient of the cross-entropy of the true label with respect to the image, "
        "and keep only its sign.",
        "g = torch.autograd.grad(F.cross_entropy(model(x), y, reduction='sum'), x)[0], "
        "for x that requires a gradient.",
        "x_adv = (x + eps * g.sign()).clamp(0, 1), detached.",
    ),
    inputs=one_step_inputs,
    properties=is_full_step,
    otherwise=(
        "the signs are not those of the cross-entropy's gradient at x. "
        "Is the gradient taken of the right loss, with the right label?"
    ),
    mistakes={
        NOT_MOVED: [step(lambda x, g, eps: x)],
        DOWN: [step(lambda x, g, eps: climbed(x, -g, eps))],
        NO_IMAGE: [step(lambda x, g, eps: x + eps * g.sign())],
        TOO_FAR: [step(lambda x, g, eps: climbed(x, g, 1))],
        NO_SIGN: [step(lambda x, g, eps: (x + eps * g).clamp(0, 1))],
        answers.SOFTMAX_TWICE: [step(climbed, answers.softmax_twice)],
        "the gradient is that of the predicted label. "
        "The attack climbs the loss of the true one, y.": [
            lambda model, x, y, eps: attacks.fgsm(model, x, model(x).argmax(1), eps=eps)
        ],
    },
)
def fgsm(model, x, y, eps):
    return attacks.fgsm(model, x, y, eps=eps)


RANDOM = "two runs differ. This exercise starts at x itself, not at a random point."
NOT_BACK = "Nothing brings x_adv back into the ball."
LAST_BALL = "Project onto the ball around x, not around the last iterate."
TOO_FEW = "with steps=1 nothing moves: the loop makes one step too few. range(steps) counts from 0."
NOT_FGSM = (
    "one step of step_size should be FGSM with eps = step_size, and it is not. "
    "Is the sign taken, of the gradient for y?"
)
ONE_STEP = (
    "no pixel moves further than one step. "
    "Does each step start from x_adv, and is the `return` behind the loop?"
)


def loop_inputs():
    return [(*one_step_inputs()[0], 0.03, 8)]


def stays_in_ball(answer):
    """Judges where the attack goes, then its single steps."""
    model, x, y, eps, step_size, steps = loop_inputs()[0]
    x_adv = answer(model, x, y, eps, step_size, steps)
    if x_adv.isnan().any():
        return  # the comparison of values says so
    if not torch.equal(x_adv, answer(model, x, y, eps, step_size, steps)):
        raise NotYet(RANDOM)
    size = climbs_in_box(model, x, x_adv.to(x), y).max()
    if size > eps + 1e-6:
        long_step = answer(model, x, y, eps, 3 * eps, 1) - x
        advice = NOT_BACK if long_step.abs().max() > eps + 1e-6 else LAST_BALL
        raise NotYet(f"a pixel is {size:.3g} away from x, and eps is {eps}. {advice}")
    once = answer(model, x, y, eps, step_size, 1).to(x)
    if torch.equal(once, x):
        raise NotYet(TOO_FEW)
    if not answers.same(once, attacks.fgsm(model, x, y, eps=step_size)):
        raise NotYet(NOT_FGSM)
    if size <= step_size + 1e-6:
        raise NotYet(ONE_STEP)


def loop(move, extra=0, noise=0, take=torch.sign):
    """A wrong attack: steps ``move(x, x_adv, change, eps)``, where change is not yet projected."""

    def wrong(model, x, y, eps, step_size, steps):
        x_adv = (x + noise * torch.randn_like(x)).clamp(0, 1)
        for _ in range(steps + extra):
            x_adv = move(x, x_adv, step_size * take(image_gradient(model, x_adv, y)), eps)
        return x_adv

    return wrong


def moved(x, x_adv, change, eps):
    return (x + (x_adv + change - x).clamp(-eps, eps)).clamp(0, 1)


@exercise(
    "03",
    "Projected gradient descent in L∞",
    level="hard",
    hints=(
        "A loop of FGSM steps of step_size; after each, come back into the ball around the "
        "ORIGINAL x, then into [0,1].",
        "delta = (x_adv + step_size * g.sign() - x).clamp(-eps, eps); "
        "x_adv = (x + delta).clamp(0, 1).",
        "The gradient must be taken anew in each step, at the current x_adv.",
    ),
    inputs=loop_inputs,
    properties=stays_in_ball,
    otherwise=(
        "the first step is right and the rest is not. "
        "Are gradient (at x_adv), projection and clipping all inside the loop?"
    ),
    mistakes={
        NOT_MOVED: [loop(lambda x, x_adv, change, eps: x)],
        RANDOM: [loop(moved, noise=0.01)],
        DOWN: [loop(lambda x, x_adv, change, eps: moved(x, x_adv, -change, eps))],
        NOT_BACK: [loop(lambda x, x_adv, change, eps: (x_adv + change).clamp(0, 1))],
        LAST_BALL: [loop(lambda x, x_adv, change, eps: moved(x_adv, x_adv, change, eps))],
        NO_IMAGE: [loop(lambda x, x_adv, change, eps: x + (x_adv + change - x).clamp(-eps, eps))],
        TOO_FEW: [loop(moved, extra=-1)],
        NOT_FGSM: [loop(moved, extra=1), loop(moved, take=torch.clone)],
        ONE_STEP: [
            loop(lambda x, x_adv, change, eps: moved(x, x, change, eps)),
            lambda model, x, y, eps, size, steps: fgsm.right(model, x, y, size),
        ],
        "every step goes the same way. Take the gradient inside the loop, at the current x_adv.": [
            lambda model, x, y, eps, size, steps: fgsm.right(model, x, y, min(eps, steps * size))
        ],
    },
)
def pgd(model, x, y, eps, step_size, steps):
    return attacks.pgd(model, x, y, eps=eps, step_size=step_size, steps=steps)
