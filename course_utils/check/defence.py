"""Exercises of lecture 13: ``matching_loss`` and ``min_min_step``."""

from functools import partial

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime

AGAINST = "turns the gradients against each other. 1 − cos."
APART = (
    "a cosine for each tensor, so that a small bias counts as much as a large layer. "
    "Join all tensors into one vector first."
)
COMPARED = "tensor is compared; all parameters count. Join them into one vector."
UNSCALED = "⟨a, b⟩ is not divided by ‖a‖ ‖b‖: a longer gradient alone would make the loss fall."
SIGN = "rewards the opposite direction as much as the right one; the sign of the cosine counts."
cosine = partial(F.cosine_similarity, dim=0)


def gradient_inputs():
    """Two similar gradients as tuples, and two opposite ones as lists."""
    draw = partial(torch.randn, generator=runtime.generator(2), dtype=torch.float64)
    a = [0.5 * draw(5, 2, 3), 2 * draw(5), draw(4, 5), 3 * draw(4)]
    b = [0.8 * a[0] + draw(5, 2, 3), draw(5) - 0.2 * a[1], a[2] + draw(4, 5), 0.3 * a[3] + draw(4)]
    return [(tuple(a), tuple(b)), ([2 * v for v in a[1:]], [-w for w in b[1:]])]


def row(tensors):
    return torch.cat([v.flatten() for v in tensors])


def norms(tensors):
    return torch.stack([v.norm() for v in tensors])


def joined(value):
    """A wrong loss: ``value(u, v)`` of the joined vectors."""
    return lambda a, b: value(row(a), row(b))


def of_cosine(value):
    """A wrong loss: ``value(c)`` of their cosine."""
    return joined(lambda u, v: value(cosine(u, v)))


def tensorwise(value):
    """A wrong loss: ``value(cosines)``, one cosine for each tensor."""

    def wrong(a, b):
        return value(torch.stack([joined(cosine)([p], [q]) for p, q in zip(a, b, strict=True)]))

    return wrong


@exercise(
    "13",
    "Gradients that point the same way",
    hints=(
        "All parameters together have one gradient, one long vector: flatten each tensor and join "
        "them. How do two vectors compare in direction?",
        "The cosine is ⟨a, b⟩ / (‖a‖ ‖b‖): 1 in the same direction, −1 in the opposite one. "
        "A loss should be smallest where it is largest.",
        "a = torch.cat([g.flatten() for g in g_poison]), b likewise; "
        "return 1 - F.cosine_similarity(a, b, dim=0).",
    ),
    inputs=gradient_inputs,
    learns=("g_poison",),
    otherwise=lambda case, got, want: (
        f"for the test gradients, given as {type(case[0]).__name__}s, "
        f"1 − cos is {want.item():.4g}; you return {got.item():.4g}."
    ),
    mistakes={
        f"that is the cosine itself: minimising it {AGAINST}": [joined(cosine)],
        "the direction is right, the number is not: 1 − cos is 0 where the gradients agree.": [
            of_cosine(torch.neg)
        ],
        # This one comes before 1 + cos, which is the same for the opposite gradients.
        f"the absolute value {SIGN}": [of_cosine(lambda c: 1 - c.abs())],
        f"the square {SIGN}": [of_cosine(lambda c: 1 - c**2)],
        f"the sign is turned: minimising cos − 1 {AGAINST}": [of_cosine(lambda c: c - 1)],
        f"the sign is turned: minimising 1 + cos {AGAINST}": [of_cosine(lambda c: 1 + c)],
        "that is the angle; the loss is 1 − cos.": [of_cosine(torch.acos)],
        APART: [
            tensorwise(lambda each: 1 - each.mean()),
            tensorwise(lambda each: (1 - each).sum()),
            tensorwise(lambda each: 1 - each.sum()),
        ],
        f"{APART} And 1 − cos.": [tensorwise(torch.mean), tensorwise(torch.sum)],
        f"only the first {COMPARED}": [tensorwise(lambda each: 1 - each[0])],
        f"only the last {COMPARED}": [tensorwise(lambda each: 1 - each[-1])],
        "that is a distance, and depends on the lengths; "
        "only the direction counts here: 1 − cos.": [
            joined(lambda u, v: (u - v).square().sum()),
            joined(F.mse_loss),
            joined(torch.dist),
            joined(lambda u, v: (u - v).abs().sum()),
        ],
        UNSCALED: [joined(lambda u, v: 1 - u @ v)],
        f"{UNSCALED} And 1 − cos.": [joined(torch.dot), joined(lambda u, v: -u @ v)],
        "only one of the two vectors is normalised: divide by ‖a‖ and by ‖b‖.": [
            joined(lambda u, v: 1 - u @ v / u.norm()),
            joined(lambda u, v: 1 - u @ v / v.norm()),
            joined(lambda u, v: 1 - u @ v / (u @ u)),
            joined(lambda u, v: 1 - u @ v / (v @ v)),
        ],
        "that divides by the squared norms. Is a root missing?": [
            joined(lambda u, v: 1 - u @ v / (u @ u) / (v @ v))
        ],
        "the norm of the joined vector is not the sum of the tensors' norms: add the squares, "
        "then take the root.": [
            lambda a, b: 1 - row(a) @ row(b) / (norms(a) @ norms(b)),
            lambda a, b: 1 - row(a) @ row(b) / norms(a).sum() / norms(b).sum(),
        ],
        "that is a sum over the parameters; 1 − cos is one number already.": [
            joined(lambda u, v: len(u) * (1 - cosine(u, v)))
        ],
        "the number is right, but its gradient is not: numerator and norm must both move with "
        "g_poison. Is something detached?": [
            joined(lambda u, v: 1 - u @ v / (u.norm().detach() * v.norm()))
        ],
    },
)
def matching_loss(g_poison, g_target):
    return 1 - joined(cosine)(g_poison, g_target)


IMAGE = "that is the image; return the noise alone: subtract x again."


def noise_inputs():
    x = answers.small_images()
    draw = torch.rand(x.shape, generator=runtime.generator(1), dtype=torch.float64)
    return [(answers.small_model(), x, fits(x, 0.4 * draw - 0.2, 0.1), torch.arange(6), 0.1, 0.03)]


def fits(x, delta, eps):
    return (x + delta.clamp(-eps, eps)).clamp(0, 1) - x


def descended(x, delta, step, eps):
    return fits(x, delta - step, eps)


def noise(change, at=torch.add, loss=F.cross_entropy, take=torch.sign):
    """A wrong step: ``change(x, delta, step, eps)``; its gradient is taken at ``at(x, delta)``."""

    def wrong(model, x, delta, y, eps, step_size):
        g = answers.image_gradient(model, at(x, delta), y, loss)
        return change(x, delta, step_size * take(g), eps)

    return wrong


minimised = noise(descended)


def leaves_bounds(case, got, want):
    _, x, _, _, eps, _ = case
    image = x.flatten() + got
    if got.abs().max() > eps + 1e-6:
        return f"the noise reaches {got.abs().max():.3g}, and eps is {eps}: clamp delta to ±eps."
    if image.min() < -1e-6 or image.max() > 1 + 1e-6:
        reach = f"x + delta reaches from {image.min():.3g} to {image.max():.3g}"
        return f"{reach}; that is no image. Clip to [0,1]."
    right = "delta − step_size · sign of the gradient at x + delta, clamped."
    return f"the noise stays in its bounds, but it is not {right}"


@exercise(
    "13",
    "One step of error-minimising noise",
    hints=(
        "It is a PGD step the other way: the noise makes the training loss SMALLER, so that the "
        "victim finds nothing left to learn.",
        "Gradient of the cross-entropy at x + delta, with respect to the image; "
        "delta - step_size * g.sign(), clamped to ±eps.",
        "delta = (delta - step_size * g.sign()).clamp(-eps, eps); "
        "return (x + delta).clamp(0, 1) - x. The noise, not the image.",
    ),
    inputs=noise_inputs,
    otherwise=leaves_bounds,
    mistakes={
        "delta comes back as it went in. Is the step subtracted, and is the result returned?": [
            noise(lambda x, d, s, eps: d)
        ],
        "the step goes up: that is the noise of an adversary. "
        "Error-MINIMISING noise subtracts step · sign of the gradient.": [
            noise(lambda x, d, s, eps: fits(x, d + s, eps)),
            noise(lambda x, d, s, eps: (d + s).clamp(-eps, eps)),
            noise(lambda x, d, s, eps: d + s),
        ],
        "nothing brings delta back: clamp it to ±eps, and x + delta to [0,1].": [
            noise(lambda x, d, s, eps: d - s)
        ],
        "x + delta leaves [0,1]; such pixels do not exist, and a file would cut them off. "
        "delta = (x + delta).clamp(0, 1) - x.": [
            noise(lambda x, d, s, eps: (d - s).clamp(-eps, eps))
        ],
        IMAGE: [noise(lambda x, *rest: x + descended(x, *rest))],
        f"{IMAGE} And clamp x + delta to [0,1].": [
            noise(lambda x, d, s, eps: x + (d - s).clamp(-eps, eps))
        ],
        f"{IMAGE} And clamp delta to ±eps.": [noise(lambda x, d, s, eps: (x + d - s).clamp(0, 1))],
        f"{IMAGE} And clamp, to ±eps and to [0,1].": [noise(lambda x, d, s, eps: x + d - s)],
        "the noise so far is forgotten: the step starts from delta, not from 0.": [
            noise(lambda x, d, s, eps: fits(x, -s, eps))
        ],
        "that is the step alone; add it to delta, then clamp.": [noise(lambda x, d, s, eps: -s)],
        "the gradient is taken at x; take it where the victim looks, at x + delta.": [
            noise(descended, at=lambda x, delta: x)
        ],
        "the gradient is taken at delta alone; the model sees x + delta.": [
            noise(descended, at=lambda x, delta: delta)
        ],
        "that is the gradient itself; the step goes along its sign.": [
            noise(descended, take=torch.clone),
            noise(descended, take=lambda g: g / len(g)),
        ],
        "step_size is missing: every pixel jumps to the bound.": [
            noise(lambda x, d, s, eps: fits(x, d - s.sign(), eps))
        ],
        "that is a step of eps; step_size is smaller.": [
            noise(lambda x, d, s, eps: fits(x, d - eps * s.sign(), eps))
        ],
        "eps and step_size are exchanged.": [
            lambda model, x, d, y, eps, step_size: minimised(model, x, d, y, step_size, eps)
        ],
        "delta is clamped to ±step_size; the bound is eps.": [
            noise(lambda x, d, s, eps: fits(x, d - s, s.abs().max()))
        ],
        "the negative half of the noise is lost: clamp to −eps … eps.": [
            noise(lambda x, d, s, eps: fits(x, (d - s).clamp(min=0), eps))
        ],
        answers.SOFTMAX_TWICE: [noise(descended, loss=answers.softmax_twice)],
        "the gradient is that of the predicted label; "
        "the noise makes the label of the data easy, y.": [
            lambda model, x, d, y, *rest: minimised(model, x, d, model(x + d).argmax(1), *rest)
        ],
        "that pulls towards the next class; error-minimising noise makes the label of the data "
        "easy, y itself.": [
            lambda model, x, d, y, *rest: minimised(model, x, d, (y + 1) % 10, *rest)
        ],
    },
)
def min_min_step(model, x, delta, y, eps, step_size):
    return minimised(model, x, delta, y, eps, step_size)
