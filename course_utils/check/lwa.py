"""Exercises of lecture 07: ``adv_alpha_step`` and ``lwa_loss``."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.answers import image_gradient, per_image, softmax_twice
from course_utils.check.exercise import exercise
from course_utils.core import runtime

MISCLASSIFIED = (
    "an image that is already misclassified has a negative distance. "
    "It is the smallest, and the direction stays T_I − T_y."
)


def probabilities():
    """Six images of the predicted class, then the same ones of the second most probable."""
    rng = runtime.generator(3)
    alpha = (1.5 * torch.randn(6, 5, generator=rng, dtype=torch.float64)).softmax(1)
    scale = torch.tensor([0.3, 1.0, 0.5, 0.2, 0.7], dtype=torch.float64)
    T = torch.randn(6, 5, 7, generator=rng, dtype=torch.float64) * scale[:, None]
    T = T - T.mean(1, keepdim=True)  # probabilities sum to 1, so their gradients sum to 0
    return [(alpha, T, y, 0.7) for y in alpha.topk(2).indices.T]


def pick(values, index):
    """The entry (or row) ``index`` of each image."""
    return values[torch.arange(len(index)), index]


def scaled(r, eps):
    return eps * F.normalize(r, dim=1)


def full_step(r, distance, eps):
    return scaled(r, eps)


def towards(change=full_step, choose=torch.argmin, own=torch.inf, power=1):
    """A step ``change(r, distance, eps)``, where r = T_I − T_y and I is the class chosen."""

    def step(alpha, T, y, eps):
        ways = T - pick(T, y)[:, None]
        distances = (pick(alpha, y)[:, None] - alpha) / ways.norm(dim=2) ** power
        chosen = choose(distances.scatter(1, y[:, None], own), 1)
        return change(pick(ways, chosen), pick(distances, chosen)[:, None], eps)

    return step


def show_length(case, got, want):
    alpha, _, y, eps = case
    if not torch.equal(y, alpha.argmax(1)):
        return MISCLASSIFIED
    length = got.view(6, 7).norm(dim=1)
    if (length - eps).abs().max() > 1e-6:
        return (
            f"the steps have lengths {length.min():.3g} to {length.max():.3g}; "
            f"each should have {eps}."
        )
    return (
        "the steps have the right length, but not the direction T_I − T_y with I the nearest class."
    )


@exercise(
    "07",
    "One step of Adv_Alpha",
    hints=(
        "Class j takes over, in the linearised model, at distance (α_y − α_j) / ‖T_j − T_y‖₂. "
        "Which j is nearest, and in which direction?",
        "T[rows, y][:, None] with rows = torch.arange(N) is T_y, ready to be subtracted from T. "
        "At j = y the distance is 0/0: make it +inf.",
        "I = distance.argmin(1); r = (T − T_y)[rows, I]; "
        "return eps * r / r.norm(dim=1, keepdim=True).",
    ),
    inputs=probabilities,
    otherwise=show_length,
    mistakes={
        "a step is nan or zero: class y itself was chosen, at distance 0/0. "
        "Leave it out: distance[rows, y] = torch.inf.": [
            towards(own=0),
            towards(lambda r, distance, eps: eps * r / r.norm(dim=1, keepdim=True), own=0),
        ],
        # Of misclassified images the first of these two is the way back, so they come before it.
        MISCLASSIFIED: [
            towards(lambda r, distance, eps: scaled(distance * r, eps)),
            towards(choose=lambda distances, dim: distances.abs().argmin(dim)),
        ],
        "that is the way back to class y: the direction is T_I − T_y, not T_y − T_I.": [
            towards(lambda r, distance, eps: scaled(-r, eps))
        ],
        "that raises α_I; what matters is the difference α_I − α_y, whose gradient is T_I − T_y.": [
            lambda alpha, T, y, eps: scaled(
                towards(lambda r, distance, eps: r)(alpha, T, y, eps) + pick(T, y), eps
            )
        ],
        "that only lowers α_y (it is Adv_Loss). Adv_Alpha goes to one class I: T_I − T_y.": [
            lambda alpha, T, y, eps: scaled(-pick(T, y), eps)
        ],
        "you go to the most probable other class; the nearest one also depends on ‖T_j − T_y‖₂.": [
            towards(power=0)
        ],
        "that is the class furthest away. Take argmin, and give y itself the distance +inf.": [
            towards(choose=torch.argmax, own=-torch.inf)
        ],
        "the distance divides by the norm ‖T_j − T_y‖₂, not by its square.": [towards(power=2)],
        "that is the minimal perturbation, which just reaches the boundary; "
        "the step has length eps.": [towards(lambda r, distance, eps: scaled(r, distance))],
        "divide by ‖T_I − T_y‖₂ and multiply by eps: the step has length eps.": [
            towards(lambda r, distance, eps: distance * r)
        ],
        "that is T_I − T_y as it is; the step has L2 length eps: divide by its norm.": [
            towards(lambda r, distance, eps: r)
        ],
        "that is eps times T_I − T_y; divide by its norm, so that the step has L2 length eps.": [
            towards(lambda r, distance, eps: eps * r)
        ],
        "eps is missing: the step has length 1.": [towards(lambda r, distance, eps: scaled(r, 1))],
        "one norm over the whole batch: each image's step needs length eps. "
        "norm(dim=1, keepdim=True).": [towards(lambda r, distance, eps: eps * r / r.norm())],
        "that is the sign, the step in L∞; this one has L2 length eps.": [
            towards(lambda r, distance, eps: eps * r.sign())
        ],
        "you take the predicted class for y; where the model is wrong, that is another one.": [
            lambda alpha, T, y, eps: towards()(alpha, T, alpha.argmax(1), eps)
        ],
    },
)
def adv_alpha_step(alpha, T, y, eps):
    return towards()(alpha, T, y, eps)


def unit(g, p=2):
    return g / per_image(g.flatten(1).norm(p, dim=1))


def moved(x, g, c):
    return x + c * unit(g)


def at(images, loss=F.cross_entropy, of=F.cross_entropy):
    """The ``loss`` at ``images(x, g, c)``, where g is the gradient of ``of``, summed."""
    return lambda model, x, y, c: loss(model(images(x, image_gradient(model, x, y, of), c)), y)


perturbed = at(moved)
clean = at(lambda x, g, c: x)


def of_own_label(logits, y, reduction="mean"):
    return F.cross_entropy(logits, logits.argmax(1), reduction=reduction)


def with_clean_label(model, x, y, c):
    g = image_gradient(model, x, y)
    return F.cross_entropy(model(moved(x, g, c)), model(x).argmax(1))


def through_g(model, x, y, c):
    leaf = x.clone().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf, create_graph=True)[0]
    return F.cross_entropy(model(moved(x, g, c)), y)


@exercise(
    "07",
    "Learning with adversary: the loss",
    hints=(
        "Two steps: find the perturbation with the gradient of the loss, "
        "then take the loss there, as if it had come from outside.",
        "g = torch.autograd.grad(F.cross_entropy(model(v), y, reduction='sum'), v)[0] "
        "for v = x.clone().requires_grad_().",
        "length = g.flatten(1).norm(dim=1)[:, None, None, None]; "
        "return F.cross_entropy(model(x + c * g / length), y).",
    ),
    inputs=lambda: answers.one_batch(0.8),
    learns=("model",),
    otherwise=lambda case, got, want: (
        f"for the test images the loss at x + c · g / ‖g‖₂ is {want.item():.4g}; "
        f"you return {got.item():.4g}."
    ),
    mistakes={
        "the step goes down: the loss falls. The adversary climbs: x + c · g / ‖g‖₂.": [
            at(lambda x, g, c: x - c * unit(g))
        ],
        "that is the clean loss; take it at x + c · g / ‖g‖₂.": [clean],
        "the clean loss is mixed in; LWA trains on the perturbed images alone. "
        "(The mix is Goodfellow's method.)": [
            lambda *given: (perturbed(*given) + clean(*given)) / 2
        ],
        "the clean loss is added; LWA trains on the perturbed images alone.": [
            lambda *given: perturbed(*given) + clean(*given)
        ],
        "you clip to [0,1]; a good idea in general, but LWA does not, and c is then no length.": [
            at(lambda x, g, c: moved(x, g, c).clamp(0, 1))
        ],
        "one norm over the whole batch: each image's step needs length c. "
        "flatten(1) keeps the images apart.": [at(lambda x, g, c: x + c * g / g.norm())],
        "that is the sign step, of length c; LWA goes along the gradient itself.": [
            at(lambda x, g, c: moved(x, g.sign(), c))
        ],
        "that is a sign step in L∞; LWA goes along the gradient itself, with L2 length c.": [
            at(lambda x, g, c: x + c * g.sign())
        ],
        "g is not divided by its length: where the model is sure, the step nearly vanishes.": [
            at(lambda x, g, c: x + c * g),
            at(lambda x, g, c: x + c * g / len(x)),
        ],
        "c is missing: the step has length 1.": [at(lambda x, g, c: moved(x, g, 1))],
        "that divides by the largest entry; the step should have L2 length c.": [
            at(lambda x, g, c: x + c * unit(g, torch.inf))
        ],
        "that divides by the L1 norm; the step should have L2 length c.": [
            at(lambda x, g, c: x + c * unit(g, 1))
        ],
        "that divides by the squared norm. Is the root missing?": [
            at(lambda x, g, c: x + c * g / per_image(g.flatten(1).square().sum(1)))
        ],
        "that is the sum over the images; take the mean.": [lambda *given: 6 * perturbed(*given)],
        "the sign is wrong: training minimises what you return. Return the loss itself.": [
            lambda *given: -perturbed(*given)
        ],
        "the gradient is that of the predicted label; the loss is that of the true one, y.": [
            at(moved, of=of_own_label)
        ],
        "the label is the model's own prediction; it must learn the true one, y.": [
            with_clean_label,
            at(moved, of_own_label),
        ],
        answers.SOFTMAX_TWICE: [
            at(moved, of=softmax_twice),
            at(moved, softmax_twice),
            at(moved, softmax_twice, softmax_twice),
        ],
        "that is the loss at the step; add it to x.": [at(lambda x, g, c: c * unit(g))],
        "the number is right, but the gradient of the weights also flows through g. "
        "Hold g fixed: detach it, no create_graph.": [through_g],
    },
)
def lwa_loss(model, x, y, c):
    return perturbed(model, x, y, c)
