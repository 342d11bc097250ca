"""Exercises of lecture 07: two steps, how little is enough, a table's bounds, LWA_Rep's loss."""

import torch
import torch.nn.functional as F

from course_utils.check import answers
from course_utils.check.answers import image_gradient, softmax_twice
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.core.geometry import steepest

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
    level="core",
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
        "that only lowers α_y (it is Adv_Loss). Adv_Alpha goes to one class I: T_I − T_y.": [
            lambda alpha, T, y, eps: scaled(-pick(T, y), eps)
        ],
        "you go to the most probable other class; the nearest one also depends on ‖T_j − T_y‖₂.": [
            towards(power=0)
        ],
        "that is the minimal perturbation, which just reaches the boundary; "
        "the step has length eps.": [towards(lambda r, distance, eps: scaled(r, distance))],
        "divide by ‖T_I − T_y‖₂ and multiply by eps: the step has length eps.": [
            towards(lambda r, distance, eps: eps * r),
        ],
        "one norm over the whole batch: each image's step needs length eps. "
        "norm(dim=1, keepdim=True).": [towards(lambda r, distance, eps: eps * r / r.norm())],
        "you take the predicted class for y; where the model is wrong, that is another one.": [
            lambda alpha, T, y, eps: towards()(alpha, T, alpha.argmax(1), eps)
        ],
    },
)
def adv_alpha_step(alpha, T, y, eps):
    return towards()(alpha, T, y, eps)


def down(change):
    """A wrong step of Adv_Loss: ``change(T_y, eps, norm)``."""
    return lambda T, y, eps, norm: change(pick(T, y), eps, norm)


def lost_sign(slope, eps, norm):
    r = -eps * steepest(slope, norm)
    return r.abs() if norm == 1 else r


def first_largest(slope, eps, norm):
    """In L1 the largest entry of −T_y, not the largest in absolute value."""
    r = F.one_hot((-slope).argmax(1), slope.shape[1]).to(slope)
    return eps * r if norm == 1 else -eps * steepest(slope, norm)


@exercise(
    "07",
    "One step of Adv_Loss, in three norms",
    level="easy",
    hints=(
        "Adv_Loss lowers the probability of y. Row T_y says where that probability grows.",
        "T[torch.arange(len(y)), y] is T_y of every image. Its steepest descent in L2 is "
        "−T_y / ‖T_y‖₂, in L∞ the sign of −T_y, in L1 one coordinate.",
        "In L1: k = T_y.abs().argmax(1); the step is −eps times the sign of T_y at k, 0 elsewhere. "
        "Or in one line for all three: -eps * steepest(T_y, norm).",
    ),
    inputs=lambda: [
        (T, y, eps, norm) for norm in (2, "inf", 1) for _, T, y, eps in probabilities()[:1]
    ],
    otherwise="the step is not the one of size eps, in this norm, that lowers α_y most.",
    mistakes={
        "that is the way up: α_y grows. The source forgets the same minus.": [
            down(lambda slope, eps, norm: eps * steepest(slope, norm))
        ],
        "in L1 the one coordinate moves against the sign of T_y there; yours has lost it.": [
            down(lost_sign)
        ],
        "in L1 the coordinate is that of the largest |T_y|; a positive entry counts too.": [
            down(first_largest)
        ],
        "that is one norm's step; the norm is an argument.": [
            down(lambda slope, eps, norm: -eps * steepest(slope, 2)),
            down(lambda slope, eps, norm: -eps * slope.sign()),
        ],
        "divide by the size of T_y: the step has size eps in its norm.": [
            down(lambda g, eps, norm: -eps * g),
        ],
    },
)
def adv_loss_step(T, y, eps, norm):
    return -eps * steepest(pick(T, y), norm)


def linear_model():
    """Leads of y over five classes, their slopes, and directions along all of which one leads."""
    rng = runtime.generator(5)
    lead = torch.tensor([0.9, 0.2, 0.5, 1.4, 0.7], dtype=torch.float64)
    slopes = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    slopes[1] *= 0.2  # the smallest lead is not the nearest boundary
    directions = F.normalize(torch.randn(40, 6, generator=rng, dtype=torch.float64), dim=1)
    gains = directions @ slopes.T
    mixed = (gains > 0.05).any(1) & (gains < -0.05).any(1)
    return [(lead, slopes, directions[mixed])]


def crossings(gain=lambda slopes, directions: directions @ slopes.T, best=torch.amin, back=True):
    def answer(lead, slopes, directions):
        gains = gain(slopes, directions)
        lengths = lead / gains
        return best(torch.where(gains > 0, lengths, torch.inf) if back else lengths, 1)

    return answer


def of_smallest_lead(lead, slopes, directions):
    j = lead.argmin()
    return lead[j] / (directions @ slopes[j])


@exercise(
    "07",
    "How far until another class leads",
    level="core",
    hints=(
        "After a step t along d, class j has gained t · ⟨T_j − T_y, d⟩. It leads from "
        "t = lead_j / gain_j on. Which classes never lead, and which one comes first?",
        "gains = directions @ slopes.T has shape (M, K − 1). Where a gain is 0 or less, "
        "class j falls back: its length is inf.",
        "return torch.where(gains > 0, lead / gains, torch.inf).amin(1).",
    ),
    inputs=linear_model,
    otherwise="the result is not the smallest lead_j / gain_j over the classes that gain.",
    mistakes={
        "a length is negative: along that direction the class falls back and never leads. "
        "Only gains above 0 count.": [crossings(back=False)],
        "you take |gain|: a class that falls back would lead as well.": [
            crossings(lambda slopes, directions: (directions @ slopes.T).abs())
        ],
        "that is where the last class has overtaken y; one is enough.": [
            crossings(best=lambda t, dim: torch.where(t.isinf(), 0, t).amax(dim))
        ],
        "you follow the class with the smallest lead; another may gain faster.": [of_smallest_lead],
        "that is the distance to the nearest boundary, whatever the direction. "
        "Along d only the part ⟨T_j − T_y, d⟩ counts.": [
            crossings(lambda s, d: s.norm(dim=1).expand(len(d), -1))
        ],
    },
)
def first_crossing(lead, slopes, directions):
    return crossings()(lead, slopes, directions)


def bounds(low=None, high=None):
    """The right bounds, or wrong ones from the accuracies (M, K)."""

    def answer(accuracy):
        lower = (1 - (1 - accuracy).sum(1)).clamp(min=0) if low is None else low(accuracy)
        upper = accuracy.amin(1) if high is None else high(accuracy)
        return torch.stack([lower, upper], 1)

    return answer


@exercise(
    "07",
    "Read a robustness table: what is left under all attacks together",
    level="easy",
    hints=(
        "An image counts only if the network is right under every attack. "
        "Can more images be left than under the strongest attack alone?",
        "The fewest are left where no image is lost twice: then the losses 1 − accuracy add up. "
        "A share is never below 0.",
        "low = (1 - (1 - accuracy).sum(1)).clamp(min=0); high = accuracy.amin(1); "
        "return torch.stack([low, high], 1).",
    ),
    inputs=lambda: [
        (torch.tensor([[0.96, 0.9, 0.85], [0.9, 0.4, 0.3], [0.99, 0.98, 0.99]]).double(),)
    ],
    otherwise="a pair is not (lowest, highest) share of images that may withstand all attacks.",
    mistakes={
        "the pairs should be (lowest, highest); yours are the other way round.": [
            lambda accuracy: bounds()(accuracy).flip(1)
        ],
        "a share is below 0: where the losses add up to more than 1, nothing need be left.": [
            bounds(low=lambda a: 1 - (1 - a).sum(1))
        ],
        "the product would hold if the attacks failed independently; "
        "at worst no image is lost twice, and the losses add up.": [
            bounds(low=lambda a: a.prod(1))
        ],
        "the lowest accuracy is the highest that can be left; at worst fewer are.": [
            bounds(low=lambda a: a.amin(1))
        ],
        "the highest accuracy belongs to the weakest attack; all of them together leave at most "
        "what the strongest leaves.": [bounds(high=lambda a: a.amax(1))],
        "a mean over attacks says nothing about one image under all of them.": [
            bounds(high=lambda a: a.mean(1))
        ],
    },
)
def union_bounds(accuracy):
    return bounds()(accuracy)


def unit(g, p=2):
    return g / g.norm(p, dim=1, keepdim=True)


def rep(moved=lambda h, g, c: h + c * unit(g), loss=F.cross_entropy, of=None):
    """The ``loss`` at ``moved(h, g, c)``, where g is the gradient of ``of``, summed, at h."""

    def answer(model, x, y, c, cut):
        h = model[:cut](x)
        return loss(model[cut:](moved(h, image_gradient(model[cut:], h, y, of), c)), y)

    return answer


right_rep, clean = rep(), rep(lambda h, g, c: h)


def of_the_pixels(model, x, y, c, cut):
    g = image_gradient(model, x, y).flatten(1)
    return F.cross_entropy(model(x + (c * unit(g)).view_as(x)), y)


def through_g(model, x, y, c, cut):
    h = model[:cut](x)
    g = torch.autograd.grad(F.cross_entropy(model[cut:](h), y), h, create_graph=True)[0]
    return F.cross_entropy(model[cut:](h + c * unit(g)), y)


@exercise(
    "07",
    "LWA_Rep: the loss of Algorithm 3",
    level="hard",
    hints=(
        "Let h = model[:cut](x). Find the gradient of the loss with respect to h, hold it, "
        "and take the loss of model[cut:] at h + r. Both parts have to learn.",
        "The gradient needs a leaf of its own: v = h.detach().requires_grad_(), "
        "g = torch.autograd.grad(F.cross_entropy(model[cut:](v), y, reduction='sum'), v)[0].",
        "return F.cross_entropy(model[cut:](h + c * g / g.norm(dim=1, keepdim=True)), y), "
        "with h itself, so that a gradient reaches the lower part.",
    ),
    inputs=lambda: answers.one_batch(0.8, 3),
    learns=("model",),
    otherwise=lambda case, got, want: (
        f"for the test images the loss at h + c · g / ‖g‖₂ is {want.item():.4g}; "
        f"you return {got.item():.4g}."
    ),
    mistakes={
        "the number is right, but the lower part does not learn: a detach() cuts it off. "
        "Only the perturbation is held fixed.": [rep(lambda h, g, c: h.detach() + c * unit(g))],
        "the number is right, but the gradient of the weights also flows through g. "
        "Hold g fixed: detach it, no create_graph.": [through_g],
        "you perturb the image; Algorithm 3 perturbs its representation, model[:cut](x).": [
            of_the_pixels
        ],
        "the step goes down: the loss falls. The adversary climbs: h + c · g / ‖g‖₂.": [
            rep(lambda h, g, c: h - c * unit(g))
        ],
        "that is the clean loss; take it at h + c · g / ‖g‖₂.": [clean],
        "one norm over the whole batch: each image's step needs length c. "
        "norm(dim=1, keepdim=True).": [rep(lambda h, g, c: h + c * g / g.norm())],
        "g is not divided by its length, so the step is not c long.": [
            rep(lambda h, g, c: h + c * g),
        ],
        answers.SOFTMAX_TWICE: [rep(of=softmax_twice), rep(loss=softmax_twice)],
    },
)
def lwa_rep_loss(model, x, y, c, cut):
    return right_rep(model, x, y, c, cut)
