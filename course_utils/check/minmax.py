"""Exercises of lecture 09: the criterion, both steps of the algorithm, a search, an ablation."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import runtime


def logits_and_labels():
    """Three right, two wrong; in row 2 all other logits are negative, in row 4 all are."""
    rows = [
        [3.2, 1.1, 0.4, -0.6],
        [0.3, 0.9, 2.1, -1.0],
        [-2.0, -1.5, 1.4, -0.8],
        [-0.2, 1.7, -1.3, 1.2],
        [-3.0, -1.1, -2.2, -0.7],
    ]
    return [(torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0]))]


def own(z, y):
    return z.gather(1, y[:, None])[:, 0]


def lead(z, y, instead=-torch.inf):
    """z_y − max_{j≠y} z_j, not yet clipped; ``instead`` is put in the place of z_y."""
    return own(z, y) - z.scatter(1, y[:, None], instead).amax(1)


def rival(other):
    """A wrong f⁺: ``other(z, y)`` in the place of the largest other logit."""
    return lambda z, y: (own(z, y) - other(z, y)).relu()


def show_row(case, got, want):
    i = answers.first_difference(got, want)
    row = ", ".join(f"{z:.3g}" for z in case[0][i])
    return (
        f"for logits {row} and the true class {case[1][i]} "
        f"you return {got[i]:.3g} and not {want[i]:.3g}."
    )


@exercise(
    "09",
    "The criterion of an untargeted attack",
    level="easy",
    hints=(
        "How far is the logit of the true class above the best of the OTHERS? "
        "Where it is not above, the attack has succeeded: 0.",
        "z_y is logits.gather(1, y[:, None])[:, 0]. For the others, put −inf in the place of z_y: "
        "logits.scatter(1, y[:, None], -torch.inf).",
        "other = logits.scatter(1, y[:, None], -torch.inf).amax(1); "
        "return (z_y - other).clamp(min=0).",
    ),
    inputs=logits_and_labels,
    learns=("logits",),
    otherwise=show_row,
    mistakes={
        "there is nan: 0 · inf, or inf − inf. "
        "Put −inf only in the place of z_y, with scatter, where or an index.": [
            rival(lambda z, y: (z - torch.inf * F.one_hot(y, 4)).amax(1))
        ],
        "never positive: either the maximum runs over all classes, y itself among them, "
        "or clamp cuts the wrong side. It is clamp(min=0).": [
            rival(lambda z, y: z.amax(1)),
            lambda z, y: own(z, y) - z.amax(1),
        ],
        "where the attack has succeeded you return a negative number; f⁺ = max(0, f) is 0 there.": [
            lead
        ],
        "the sign is turned: f is positive as long as the true class leads, z_y − max_{j≠y} z_j. "
        "And f⁺ = max(0, f).": [lambda z, y: (-lead(z, y)).relu(), lambda z, y: -lead(z, y)],
        "z_y was set to 0, not left out, and where all other logits are negative 0 is the maximum. "
        "Set it to −inf.": [lambda z, y: lead(z, y, 0).relu(), lambda z, y: lead(z, y, 0)],
        "those are probabilities, after the softmax. This criterion compares the logits.": [
            lambda z, y: lead(z.softmax(1), y).relu(),
            lambda z, y: lead(z.softmax(1), y),
        ],
        "that is the lead of the predicted class; f is the lead of the true one, y. "
        "They differ where the model is wrong.": [lambda z, y: lead(z, z.argmax(1))],
        "that is the hinge loss of a training, max(0, 1 − margin). "
        "The attack wants the margin itself: max(0, f).": [lambda z, y: (1 - lead(z, y)).relu()],
        "that is the logit of y alone; subtract the largest of the others.": [
            own,
            rival(lambda z, y: 0),
        ],
        "that is the mean over the batch; every image has its own f⁺.": [
            lambda z, y: lead(z, y).relu().mean().expand(5),
            lambda z, y: lead(z, y).mean().relu().expand(5),
        ],
    },
)
def hinge(logits, y):
    return lead(logits, y).relu()


DECAY_MISSING = "c never forgets: the decay (1 − β / t^{1/4}) is missing."


def dual_inputs():
    c = torch.tensor([0.5, 2.0, 1.5, 0.0, 0.8, 3.0], dtype=torch.float64)
    f = torch.tensor([1.2, -0.7, 0.0, 0.9, -3.0, 0.4], dtype=torch.float64)
    return [(c, f, 10, 0.3), (c, f, 1, 1.5)]  # at β = 1.5 the decay is negative


def slow(t, beta):
    return 1 - beta / t**0.25


def decay(factor):
    """A wrong step: ``factor(t, beta)`` in the place of the decay."""
    return lambda c, f, t, beta: (factor(t, beta) * c + beta * f.relu()).relu()


def rise(term):
    """A wrong step: ``term(f, t, beta)`` in the place of β f⁺."""
    return lambda c, f, t, beta: (slow(t, beta) * c + term(f, t, beta)).relu()


def show_step(case, got, want):
    c, f, t, beta = case
    i = answers.first_difference(got, want)
    return (
        f"for c = {c[i]:.3g}, f = {f[i]:.3g}, t = {t} and beta = {beta} "
        f"the next c is {want[i]:.4g}; you return {got[i]:.4g}."
    )


@exercise(
    "09",
    "The update of the dual variable",
    level="core",
    hints=(
        "c forgets a little, (1 − β / t^{1/4}) c, and grows by β f⁺ as long as the attack has not "
        "succeeded. It never becomes negative.",
        "f⁺ is f.clamp(min=0); t^{1/4} is t ** 0.25. The second clamp is around the whole sum.",
        "((1 - beta / t**0.25) * c + beta * f.clamp(min=0)).clamp(min=0).",
    ),
    inputs=dual_inputs,
    otherwise=show_step,
    mistakes={
        # For β = 1.5 these three may give the same as mistakes below, so they come first.
        "a c becomes negative: the projection onto c ≥ 0 is missing, "
        "max(0, …) around the whole sum.": [
            lambda c, f, t, beta: slow(t, beta) * c + beta * f.relu()
        ],
        "for β = 1.5 you clip the decay at 0. "
        "The projection is around the whole sum: max(0, decay · c + β f⁺).": [
            decay(lambda t, beta: max(0, slow(t, beta)))
        ],
        "for β = 1.5 an absolute value turns a negative number into a large c. "
        "The projection onto c ≥ 0 is max(0, …).": [
            lambda c, f, t, beta: (slow(t, beta) * c + beta * f.relu()).abs(),
            decay(lambda t, beta: abs(slow(t, beta))),
        ],
        "nothing changed: c is returned as it came in.": [lambda c, f, t, beta: c],
        DECAY_MISSING: [decay(lambda t, beta: 1)],
        f"{DECAY_MISSING} And f must be clipped: f⁺ = max(0, f).": [
            lambda c, f, t, beta: c + beta * f,
            lambda c, f, t, beta: (c + beta * f).relu(),
        ],
        "f is negative where the attack has succeeded, and pulls c below what the decay alone "
        "gives. Use f⁺ = max(0, f).": [
            rise(lambda f, t, beta: beta * f),
            lambda c, f, t, beta: slow(t, beta) * c + beta * f,
        ],
        "β / t dies out too fast; the decay has β / t^{1/4}, t ** 0.25.": [
            decay(lambda t, beta: 1 - beta / t)
        ],
        "t is missing in the decay, β / t^{1/4}. (In Python 1 // 4 is 0, and t ** 0 is 1.)": [
            decay(lambda t, beta: 1 - beta)
        ],
        "Python reads t**1/4 and t**1//4 as (t ** 1) divided by 4. Write t ** 0.25.": [
            decay(lambda t, beta: 1 - beta / (t / 4)),
            decay(lambda t, beta: 1 - beta / (t // 4)),
        ],
        "that is the square root of t; the decay takes the fourth root, t ** 0.25.": [
            decay(lambda t, beta: 1 - beta / t**0.5)
        ],
        "β is missing before f⁺.": [rise(lambda f, t, beta: f.relu())],
        "the decay multiplies f⁺ too; it belongs to c alone.": [
            lambda c, f, t, beta: slow(t, beta) * (c + beta * f.relu())
        ],
        "c falls where the attack has not succeeded; it must grow there: + β f⁺, "
        "with f⁺ = max(0, f).": [
            rise(lambda f, t, beta: -beta * f.relu()),
            lambda c, f, t, beta: slow(t, beta) * c - beta * f.relu(),
            rise(lambda f, t, beta: -beta * f),
        ],
        "only the decay is there; + β f⁺ is missing.": [rise(lambda f, t, beta: 0)],
    },
)
def dual_step(c, f, t, beta):
    return ((1 - beta / t**0.25) * c + beta * f.clamp(min=0)).clamp(min=0)


def one_ablation():
    first, second = torch.rand(2, 8, generator=runtime.generator(5), dtype=torch.float64)
    usable = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [1, 0, 0, 1, 1, 0, 1, 1]]).bool()
    return [(first, 2 * second, usable)]


@exercise(
    "09",
    "Read an ablation on the same images",
    level="easy",
    hints=(
        "Take the difference image by image, and only where both attacks can be compared.",
        "usable.all(0) is true where both are; index with it.",
        "return (with_it - without)[usable.all(0)].mean().",
    ),
    inputs=one_ablation,
    mistakes={
        "each mean runs over its own images; a pair needs both: usable.all(0).": [
            lambda a, b, ok: a[ok[0]].mean() - b[ok[1]].mean()
        ],
        "the images that cannot be compared are in the mean.": [lambda a, b, ok: (a - b).mean()],
        "an image counts only if it is usable in BOTH: all, not any.": [
            lambda a, b, ok: (a - b)[ok.any(0)].mean()
        ],
        "they are set to 0 and still counted; leave them out.": [
            lambda a, b, ok: ((a - b) * ok.all(0)).mean()
        ],
        "the sign is turned: with_it − without.": [lambda a, b, ok: (b - a)[ok.all(0)].mean()],
        "the mean, not the sum.": [lambda a, b, ok: (a - b)[ok.all(0)].sum()],
    },
)
def control_gap(with_it, without, usable):
    return (with_it - without)[usable.all(0)].mean()


def primal_inputs():
    x = answers.small_images(4)
    rng = runtime.generator(7)
    slope_f, slope_I = torch.randn(2, *x.shape, generator=rng, dtype=torch.float64)
    f = torch.tensor([0.7, -0.2, 1.5, 0.3], dtype=torch.float64)
    c = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    x_adv = (x + 0.1 * slope_I.sign()).clamp(0, 1)
    return [(x, x_adv, f, slope_f, slope_I, c, 0.2, 0.3)]


def moved(direction, box=lambda z: z.clamp(0, 1), ball=lambda d, eps: d.clamp(-eps, eps)):
    """A step against ``direction(f, slope_f, slope_I, c)``, into the ball and the box."""

    def step(x, x_adv, f, slope_f, slope_I, c, alpha, eps):
        new = x_adv - alpha * direction(f, slope_f, slope_I, answers.per_image(c))
        return box(x + ball(new - x, eps))

    return step


def downhill(f, slope_f, slope_I, c):
    return answers.per_image(f > 0) * c * slope_f - slope_I


@exercise(
    "09",
    "The step of the image",
    level="core",
    hints=(
        "F = c f⁺ − I goes down: x_adv − α ∇F. Where f ≤ 0 the slope of f⁺ is 0.",
        "∇F = (c * (f > 0))[:, None, None, None] * slope_f - slope_I. "
        "ε limits the distance from x, not the step.",
        "delta = x_adv - alpha * slope - x; return (x + delta.clamp(-eps, eps)).clamp(0, 1).",
    ),
    inputs=primal_inputs,
    mistakes={
        "where the attack has succeeded, f ≤ 0, f⁺ has no slope: c * (f > 0).": [
            moved(lambda f, a, b, c: c * a - b)
        ],
        "F subtracts I, and the step goes down F: x_adv − α (c ∇f⁺ − ∇I).": [
            moved(lambda f, a, b, c: answers.per_image(f > 0) * c * a + b),
            moved(lambda f, a, b, c: -downhill(f, a, b, c)),
        ],
        "the gradient of c f⁺ is c ∇f; the value f itself does not multiply it.": [
            moved(lambda f, a, b, c: c * answers.per_image(f.relu()) * a - b)
        ],
        "the price c is missing before the gradient of f.": [
            moved(lambda f, a, b, c: answers.per_image(f > 0) * a - b)
        ],
        "there is no sign here: Algorithm 1 takes plain gradients.": [
            moved(lambda *given: downhill(*given).sign())
        ],
        "ε is missing: clip x_adv − x to [−ε, ε].": [moved(downhill, ball=lambda d, eps: d)],
        "pixels must stay in [0,1]: clip the image at the end.": [moved(downhill, lambda z: z)],
        "ε limits the distance from x, not the length of this step.": [
            lambda x, x_adv, f, a, b, c, alpha, eps: (
                x_adv + (-alpha * downhill(f, a, b, answers.per_image(c))).clamp(-eps, eps)
            ).clamp(0, 1)
        ],
        "that is the step of the information alone; c f⁺ is missing.": [
            moved(lambda f, a, b, c: -b)
        ],
    },
)
def primal_step(x, x_adv, f, slope_f, slope_I, c, alpha, eps):
    return moved(downhill)(x, x_adv, f, slope_f, slope_I, c, alpha, eps)


def a_round():
    lower = torch.tensor([0.0, 0.0, 0.1, 0.1, 0.4], dtype=torch.float64)
    upper = torch.tensor([torch.inf, torch.inf, 1.0, 1.0, torch.inf], dtype=torch.float64)
    c = torch.tensor([1e-3, 1e-3, 0.55, 0.55, 4.0], dtype=torch.float64)
    return [(lower, upper, c, torch.tensor([True, False, True, False, False]))]


def searched(growth=10, turn=False):
    """The right search, or a wrong one."""

    def answer(lower, upper, c, success):
        if turn:
            success = ~success
        upper, lower = torch.where(success, c, upper), torch.where(success, lower, c)
        new = torch.where(upper.isinf(), growth * c, (lower + upper) / 2)
        return torch.stack([lower, upper, new])

    return answer


@exercise(
    "09",
    "The search for the price, many images at once",
    level="hard",
    hints=(
        "A success says that c is enough: it becomes upper. A failure says that it is not: lower.",
        "upper = torch.where(success, c, upper); lower = torch.where(success, lower, c). "
        "With the new upper: still inf?",
        "torch.stack([lower, upper, torch.where(upper.isinf(), 10 * c, (lower + upper) / 2)]).",
    ),
    inputs=a_round,
    mistakes={
        "after a success c is an upper limit, after a failure a lower one; yours are swapped.": [
            searched(turn=True)
        ],
        "until one c succeeds, the next is ten times c.": [searched(2)],
        "the limits of this round count for the next c, not those of the last one.": [
            lambda lower, upper, c, success: torch.cat(
                [
                    searched()(lower, upper, c, success)[:2],
                    torch.where(upper.isinf(), 10 * c, (lower + upper) / 2)[None],
                ]
            )
        ],
    },
)
def weight_search(lower, upper, c, success):
    return searched()(lower, upper, c, success)
