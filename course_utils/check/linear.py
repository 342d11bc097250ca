"""Exercises of lecture 05: the adversary, its radius, its gradient, ten classes, a certificate.

The score of an image is y(⟨w, x⟩ + b), positive where the model is right.
"""

import torch

from course_utils.check import answers
from course_utils.check.exercise import exercise
from course_utils.core import geometry, runtime

WEIGHTS = (0.5, -1.5, 2.0, -0.25, 1.0)
ZERO_ONE = "2y − 1 turns labels 0 and 1 into −1 and +1; y holds −1 and +1 already."
SAME = (
    "all labels get the same perturbation; what harms an image labelled {} helps one labelled {}. "
    "Where is y?"
)


def weights_and_labels():
    y = torch.tensor([1, -1, -1, 1], dtype=torch.float64)
    return [(torch.tensor(WEIGHTS, dtype=torch.float64), y, 0.2)]


def along(direction, labels=torch.clone):
    """A wrong adversary: −eps · labels(y) · direction(w)."""
    return lambda w, y, eps: -eps * labels(y)[:, None] * direction(w)


def show_drop(case, got, want):
    w, y, eps = case
    delta = got.view(4, 5)
    if delta.abs().max() > eps + 1e-6:
        return f"a pixel moves by {delta.abs().max():.3g}; by eps = {eps} at most is allowed."
    drop, best = -y * (delta @ w), eps * w.abs().sum()
    i = answers.first_difference(drop, best)
    return (
        f"for an image labelled {y[i]:+.0f} the score y(⟨w, x⟩ + b) falls by {drop[i]:.3g}, "
        f"and the worst perturbation takes {best:.3g}."
    )


@exercise(
    "05",
    "The exact adversary of a linear model",
    level="easy",
    hints=(
        "The score y(⟨w, x + δ⟩ + b) falls most when every pixel takes away as much as it can: "
        "look at one pixel, with weight w_i.",
        "Pixel i changes the score by y · w_i · δ_i, and |δ_i| ≤ eps. "
        "So δ_i is eps or −eps, whichever makes y · w_i · δ_i negative.",
        "-eps * y[:, None] * w.sign(): shapes (N, 1) and (pixels,) give (N, pixels).",
    ),
    inputs=weights_and_labels,
    otherwise=show_drop,
    mistakes={
        "that helps the model: every score y(⟨w, x⟩ + b) grows. "
        "The adversary lowers it; a minus is missing.": [along(torch.sign, torch.neg)],
        SAME.format("+1", "−1"): [along(torch.sign, torch.ones_like)],
        SAME.format("−1", "+1"): [along(torch.sign, lambda y: -torch.ones_like(y))],
        "eps is missing: the pixels move by 1.": [lambda w, y, eps: -y[:, None] * w.sign()],
        "that goes along w; in L∞ every pixel may move by eps, also where its weight is small. "
        "Take the sign of w.": [along(torch.clone)],
        "that is the worst case in L2. In L∞ every pixel may move by eps: take the sign of w.": [
            along(lambda w: w / w.norm())
        ],
        ZERO_ONE: [along(torch.sign, lambda y: 2 * y - 1)],
    },
)
def linear_adversary(w, y, eps):
    return -eps * y[:, None] * w.sign()


def linear_models():
    """Images of both labels, some of them wrong from the start."""
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    b = torch.tensor(-0.4, dtype=torch.float64)
    x = 2 * torch.rand(8, 5, generator=runtime.generator(0), dtype=torch.float64)
    y = torch.tensor([1, -1, 1, 1, -1, 1, -1, 1], dtype=torch.float64)
    return w, b, x, y


def over(size, clip=torch.relu, score=lambda w, b, x, y: y * (x @ w + b)):
    """A wrong radius: the clipped score over ``size(w, norm)``."""
    return lambda w, b, x, y, norm: clip(score(w, b, x, y)) / size(w, norm)


def dual(w, norm):
    return geometry.dual_norm(w[None], norm)[0]


@exercise(
    "05",
    "How much an image withstands",
    level="easy",
    hints=(
        "A perturbation of size ε takes ε · ‖w‖_* from the score y(⟨w, x⟩ + b), and not more. "
        "For which ε does it reach 0?",
        "The dual norm of L∞ is the sum of |w|, that of L2 is L2, that of L1 the largest |w|. "
        "Where the score is negative, the answer is 0.",
        "dual = {'inf': w.abs().sum(), 2: w.norm(), 1: w.abs().max()}[norm]; "
        "return (y * (x @ w + b)).clamp(min=0) / dual.",
    ),
    inputs=lambda: [(*linear_models(), norm) for norm in ("inf", 2, 1)],
    otherwise="the result is not the score over the dual norm of w, and 0 where that is negative.",
    mistakes={
        "an image that is wrong already withstands 0, not a negative ε.": [over(dual, torch.clone)],
        "the score is divided by the norm of w itself. The attacker pays in the norm of δ, "
        "the weights are measured in its dual: L1 for L∞, L∞ for L1.": [
            over(lambda w, norm: w.norm(p=float(norm)))
        ],
        "y is missing: images labelled −1 are right where ⟨w, x⟩ + b is negative.": [
            over(dual, score=lambda w, b, x, y: x @ w + b)
        ],
        "b is missing.": [over(dual, score=lambda w, b, x, y: y * (x @ w))],
        "that is the score; it falls by ε · ‖w‖_*, so divide by the dual norm.": [
            over(lambda w, norm: 1)
        ],
    },
)
def withstood_eps(w, b, x, y, norm):
    return over(dual)(w, b, x, y, norm)


def slope(pull, at=-1, share=torch.mean):
    """A wrong gradient: −share of σ(−score at ``at`` · size) · ``pull(x, y, eps · sign(w))``."""

    def answer(w, b, x, y, eps):
        p = torch.sigmoid(-(y * (x @ w + b) + at * eps * w.abs().sum()))
        return -share(p[:, None] * pull(x, y[:, None], eps * w.sign()), dim=0)

    return answer


def danskin(x, y, step):
    return y * x - step


@exercise(
    "05",
    "The gradient of the worst case, by hand",
    level="core",
    hints=(
        "Danskin: hold x + δ* fixed and differentiate Ψ(y(⟨w, x + δ*⟩ + b)) in w.",
        "Ψ'(z) = −σ(−z), at the worst-case score z = y(⟨w, x⟩ + b) − eps · ‖w‖₁; the derivative "
        "of the score in w is y(x + δ*), and y δ* = −eps · sign(w).",
        "p = torch.sigmoid(-z); return -(p[:, None] * (y[:, None] * x - eps * w.sign())).mean(0).",
    ),
    inputs=lambda: [(*linear_models(), 0.3)],
    otherwise="the result is not the mean of −σ(−z) · y(x + δ*), with z the worst-case score.",
    mistakes={
        "that is the gradient at the clean images; take it at x + δ*.": [
            slope(lambda x, y, step: y * x, at=0)
        ],
        "the weights σ(−z) are right, but the images are not moved: y(x + δ*), not y x.": [
            slope(lambda x, y, step: y * x)
        ],
        "the images are moved, but z is the clean score. σ(−z) belongs to the worst case too.": [
            slope(danskin, at=0)
        ],
        "δ* has the wrong sign: y δ* = −eps · sign(w).": [slope(lambda x, y, step: y * x + step)],
        "all images are moved the same way, whatever their label: δ* = −y eps sign(w).": [
            slope(lambda x, y, step: y * (x - step))
        ],
        "the gradient points downhill: Ψ' is negative, so a minus is missing.": [
            lambda *case: -slope(danskin)(*case)
        ],
        "that is the sum over the images; take the mean.": [slope(danskin, share=torch.sum)],
        "Ψ'(z) is −σ(−z), not −σ(z): an image that is safe pulls little.": [
            lambda w, b, x, y, eps: (
                (-danskin(x, y[:, None], eps * w.sign())).mean(0) - slope(danskin)(w, b, x, y, eps)
            )
        ],
    },
)
def worst_case_gradient(w, b, x, y, eps):
    return slope(danskin)(w, b, x, y, eps)


def class_models():
    generator = runtime.generator(4)
    W = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    b = -W.sum(1) / 2
    x = torch.rand(60, 6, generator=generator, dtype=torch.float64)
    y = (x @ W.T + b).argmax(1)
    y[::10] = (y[::10] + 1) % 4  # some are wrong from the start
    return [(W, b, x, y, 0.12)]


def verdict(gain, judge=lambda worst: worst.amax(1) >= 0):
    """A wrong verdict: ``judge`` of the margins z_j − z_y plus eps · ``gain(w_j, w_y)``."""

    def answer(W, b, x, y, eps):
        z = x @ W.T + b
        worst = z - z.gather(1, y[:, None]) + eps * gain(W[None], W[y][:, None])
        return judge(worst.scatter(1, y[:, None], -torch.inf))

    return answer


def apart(w, own):
    return (w - own).abs().sum(-1)


def runner_up(W, b, x, y, eps):
    second = (x @ W.T + b).scatter(1, y[:, None], -torch.inf).argmax(1)
    worst = (x * (W[second] - W[y])).sum(1) + b[second] - b[y] + eps * apart(W[second], W[y])
    return worst >= 0


@exercise(
    "05",
    "The exact error with many classes",
    level="core",
    hints=(
        "An image can be misclassified just when SOME wrong class j can overtake y. "
        "Ask each class separately; how much can δ add to z_j − z_y?",
        "z_j − z_y = ⟨w_j − w_y, x⟩ + b_j − b_y, so δ adds eps · ‖w_j − w_y‖₁ at most.",
        "Make the tensor (N, K) of these worst margins, leave out j = y, and ask "
        "worst.amax(1) >= 0.",
    ),
    inputs=class_models,
    otherwise="some images get the wrong verdict: is max over j ≠ y of "
    "z_j − z_y + eps · ‖w_j − w_y‖₁ at least 0?",
    mistakes={
        "those are the mistakes without an attack.": [verdict(lambda w, own: 0)],
        "class y itself is among the classes, and its margin is always 0. Leave it out.": [
            lambda W, b, x, y, eps: torch.ones(len(x), dtype=torch.bool)
        ],
        "you tell who withstands; asked is who can be misclassified.": [
            verdict(apart, lambda worst: worst.amax(1) < 0)
        ],
        "δ moves z_j and z_y together: the norm is that of the difference w_j − w_y.": [
            verdict(lambda w, own: w.abs().sum(2)),
            verdict(lambda w, own: w.abs().sum(2) + own.abs().sum(2)),
        ],
        "that is the L2 norm of w_j − w_y. For an L∞ attacker it is L1.": [
            verdict(lambda w, own: (w - own).norm(dim=2))
        ],
        "you ask only the class that is second before the attack; another one may be easier "
        "to reach.": [runner_up],
        "that adds the classes up, as the bound of the loss does. One class is enough: the "
        "largest decides.": [verdict(apart, lambda worst: worst.logsumexp(1) >= 0)],
    },
)
def exact_errors(W, b, x, y, eps):
    return verdict(apart)(W, b, x, y, eps)


def certificates():
    """Feasible, twice; unbalanced; too large in a pixel; feasible with p of 0 and 1; p above 1."""
    double = {"dtype": torch.float64}
    y = torch.tensor([1, -1, 1, -1, 1, -1], **double)
    x = torch.rand(6, 5, generator=runtime.generator(0), **double)
    x[1::2] = x[::2]
    gap = torch.tensor([0.6, -0.55, 0.5, 0.4, -0.5], **double)
    near, far = x.clone(), x.clone()
    near[0] += gap  # Σ p y x = p₀ · gap where p is alike in each pair
    far[0] -= 2 * gap
    half = torch.tensor([0.5, 0.5, 0.25, 0.25, 0.125, 0.125], **double)
    unlike = torch.tensor([0.5, 0.5, 0.25, 0.125, 0.125, 0.125], **double)
    ends = torch.tensor([1, 1, 0.75, 0.75, 0, 0], **double)
    above = torch.tensor([0.5, 0.5, 1.25, 1.25, 0.5, 0.5], **double)
    cases = [(near, 0.31, half), (near, 0.25, half), (near, 0.5, unlike), (far, 0.33, half)]
    cases += [(near, 0.25, ends), (near, 0.5, above)]
    return [(x, y, eps, p) for x, eps, p in cases]


def coin(p, log=torch.log):
    """The entropy of each coin; 0 · log 0 is 0."""
    return -sum(torch.where(q == 0, 0, q * log(torch.where(q == 0, 1, q))) for q in (p, 1 - p))


def in_box(p):
    return p.min() >= 0 and p.max() <= 1


def balanced(y, p):
    return (p * y).sum().abs() <= 1e-9


def largest(v):
    return v.abs().max()


def fits(x, y, eps, p, size=largest):
    return size((p * y) @ x) <= eps * p.sum() + 1e-9


def bound(allowed, value=lambda p: coin(p).mean()):
    """A wrong certificate: ``value(p)`` where p is ``allowed``, else 0."""
    return lambda x, y, eps, p: value(p) if allowed(x, y, eps, p) else torch.zeros_like(p[0])


def feasible(x, y, eps, p):
    return in_box(p) and balanced(y, p) and fits(x, y, eps, p)


def other(size, scale=lambda eps, p: eps):
    """A wrong verdict on p: another ``size`` than L∞, or another ``scale`` of eps."""
    return bound(
        lambda x, y, eps, p: in_box(p) and balanced(y, p) and fits(x, y, scale(eps, p), p, size)
    )


@exercise(
    "05",
    "Certify a bound",
    level="hard",
    hints=(
        "First judge p: all entries in [0,1]; Σ p_i y_i = 0; and no pixel of Σ p_i y_i x_i is "
        "larger than eps · Σ p_i in absolute value. If one fails, return 0.",
        "The bound is the mean of H(p_i) = −p log p − (1 − p) log(1 − p), with 0 · log 0 = 0: "
        "torch.special.entr(q) is −q log q, and 0 at q = 0.",
        "fits = ((p * y) @ x).abs().max() <= eps * p.sum() + 1e-9; "
        "the bound is (torch.special.entr(p) + torch.special.entr(1 - p)).mean().",
    ),
    inputs=certificates,
    otherwise="the result is neither the mean entropy of a p that is feasible, nor 0 for another.",
    mistakes={
        "you certify a p outside [0,1]; the maximum of H(p) − p z is over [0,1].": [
            bound(lambda x, y, eps, p: balanced(y, p) and fits(x, y, eps, p))
        ],
        "you certify a p whose Σ p_i y_i x_i is too large in some pixel: a large weight there "
        "undercuts the bound. Is it taken in absolute value?": [
            bound(lambda x, y, eps, p: in_box(p) and balanced(y, p)),
            other(torch.max),
        ],
        "you certify a p whose Σ p_i y_i is not 0: a large b then undercuts the bound.": [
            bound(lambda x, y, eps, p: True),
            bound(lambda x, y, eps, p: in_box(p) and fits(x, y, eps, p)),
        ],
        "the bound on Σ p_i y_i x_i is eps · Σ p_i, not eps: you refuse a p that proves "
        "something.": [other(largest, lambda eps, p: eps / p.sum())],
        "Hölder pairs ‖w‖₁ with the L∞ norm of Σ p_i y_i x_i; you take a larger one, and refuse "
        "a p that proves something.": [other(torch.norm), other(lambda v: v.abs().sum())],
        "that is the sum over the images; the loss is a mean.": [
            bound(feasible, lambda p: coin(p).sum())
        ],
        "the entropy is in nats, with the natural logarithm, as Ψ is.": [
            bound(feasible, lambda p: coin(p, torch.log2).mean())
        ],
        "0 · log 0 is nan in floating point, and 0 in an entropy: torch.special.entr.": [
            bound(feasible, lambda p: -(p * p.log() + (1 - p) * (1 - p).log()).mean())
        ],
    },
)
def certified_bound(x, y, eps, p):
    return bound(feasible)(x, y, eps, p)
