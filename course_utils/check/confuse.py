"""Exercises of lecture 11: what Algorithm 2 is made of, from its noise to its choice of a trial."""

from functools import partial

import torch
import torch.nn.functional as F
from torch.func import functional_call

from course_utils.check import answers
from course_utils.check.answers import NotYet
from course_utils.check.exercise import exercise
from course_utils.core import runtime
from course_utils.methods import confuse


def raw_inputs():
    raw = torch.randn(4, 1, 3, 3, generator=runtime.generator(0), dtype=torch.float64)
    raw[0, 0, 0] = torch.tensor([-4.0, 0.0, 2.5])
    return [(raw, 0.3), (torch.tensor([-1.0, 0.2, 6.0], dtype=torch.float64), 0.05)]


def first_wrong_noise(case, got, want):
    raw, eps = case
    if got.abs().max() > eps + 1e-6:
        reach = f"a pixel moves by {got.abs().max():.3g}, and eps is {eps}."
        return f"{reach} Every pixel may move by eps at most."
    i = answers.first_difference(got, want)
    value = raw.flatten()[i]
    return f"for raw = {value:.3g} and eps = {eps} you return {got[i]:.3g} and not {want[i]:.3g}."


@exercise(
    "11",
    "Noise that cannot leave the ball",
    level="easy",
    hints=(
        "Which smooth function takes any number and gives one between −1 and 1, with both signs? "
        "Its result is then scaled to the ball.",
        "torch.tanh runs from −1 to 1 and has a slope everywhere, so the generator learns at every "
        "pixel. eps stands outside.",
        "return eps * torch.tanh(raw).",
    ),
    inputs=raw_inputs,
    learns=("raw",),
    properties=lambda answer: answer(*raw_inputs()[0]),  # its form, where raw has no graph yet
    otherwise=first_wrong_noise,
    mistakes={
        "nothing happened: raw is returned as it came in.": [lambda raw, eps: raw],
        "beyond the bound clamp has gradient 0, and a pixel that is cut off never comes back. "
        "Use a smooth function.": [
            lambda raw, eps: raw.clamp(-eps, eps),
            lambda raw, eps: eps * raw.clamp(-1, 1),
            lambda raw, eps: raw.tanh().clamp(-eps, eps),
        ],
        "sigmoid runs from 0 to 1, so pixels could only become brighter. "
        "The noise needs both signs: tanh.": [lambda raw, eps: eps * raw.sigmoid()],
        "eps is missing: tanh alone reaches ±1, the whole range of a pixel.": [
            lambda raw, eps: raw.tanh()
        ],
        "eps stands outside: ε · tanh(raw). Then the bound is ε, whatever raw is.": [
            lambda raw, eps: (eps * raw).tanh()
        ],
        "the sign is turned: a positive raw makes the pixel brighter.": [
            lambda raw, eps: -eps * raw.tanh()
        ],
        "that has no bound: where raw is 4 the pixel moves by 4 ε. Put tanh in between.": [
            lambda raw, eps: eps * raw
        ],
        "the sign stays in the ball, but it is flat: the generator would get no gradient. "
        "Use tanh.": [lambda raw, eps: eps * raw.sign()],
    },
)
def bounded_noise(raw, eps):
    return confuse.bounded(raw, eps)


NO_GRAPH = (
    "no graph leads from the loss to these parameters. state_dict() and detach() cut it off, "
    "and no_grad builds none: take dict(model.named_parameters())."
)
SUMMED = (
    "that is the step on the summed loss, N times too long. "
    "Take the mean, as the victim's training does."
)


def update_inputs():
    return [(answers.small_model(), 0.1 + 0.8 * answers.small_images(), torch.arange(6), 0.3)]


def finds_parameters(answer):
    try:
        answer(*update_inputs()[0])
    except RuntimeError as error:
        if "not require grad" not in str(error):
            raise
        raise NotYet(NO_GRAPH) from error


def first_wrong_parameter(case, got, want):
    named = sorted(case[0].named_parameters())  # in the order of the rows
    sizes = [p.numel() for _, p in named]
    for (name, p), ours, right in zip(named, got.split(sizes), want.split(sizes), strict=True):
        if not answers.same(ours, right):
            still = " It has not moved." if answers.same(ours, p.detach().flatten()) else ""
            what = f"{name} is not p − lr · g after one step on the mean cross-entropy"
            return f"{what} at x_poisoned.{still}"


def update(change, loss=F.cross_entropy, create_graph=True):
    """A wrong update: ``change(p, g, lr)`` for every parameter."""

    def wrong(model, x, y, lr):
        params = dict(model.named_parameters())
        value = loss(model(x), y)
        slopes = torch.autograd.grad(value, list(params.values()), create_graph=create_graph)
        pairs = zip(params.items(), slopes, strict=True)
        return {name: change(p, g, lr) for (name, p), g in pairs}

    return wrong


def descended(p, g, lr):
    return p - lr * g


def climbed(p, g, lr):
    return p + lr * g


summed = partial(F.cross_entropy, reduction="sum")


@exercise(
    "11",
    "One step of the victim, kept differentiable",
    level="core",
    hints=(
        "The loss is the mean cross-entropy at x_poisoned. Ask for its gradient with respect to "
        "the parameters, and change no parameter.",
        "params = dict(model.named_parameters()); torch.autograd.grad(loss, list(params.values()), "
        "create_graph=True) keeps the way back.",
        "return {name: p - lr * g for (name, p), g in zip(params.items(), grads)}.",
    ),
    inputs=update_inputs,
    learns=("x_poisoned",),
    properties=finds_parameters,
    otherwise=first_wrong_parameter,
    mistakes={
        NO_GRAPH: [torch.no_grad()(update(descended))],
        "the parameters are still where they were: subtract lr times the gradient.": [
            update(lambda p, g, lr: p)
        ],
        "the step goes up: the victim's training descends its loss. Subtract.": [update(climbed)],
        SUMMED: [update(descended, summed)],
        "lr is missing.": [update(lambda p, g, lr: p - g)],
        "you divide by lr; multiply.": [update(lambda p, g, lr: p - g / lr)],
        "those are the gradients; return the parameters after the step, p − lr · g.": [
            update(lambda p, g, lr: g)
        ],
        answers.SOFTMAX_TWICE: [update(descended, answers.softmax_twice)],
        "the numbers are right, but no gradient reaches x_poisoned, so the generator learns "
        "nothing. The step needs its own graph: create_graph=True, and no detach() or no_grad.": [
            update(descended, create_graph=False)
        ],
    },
)
def pseudo_update(model, x_poisoned, y, lr):
    return confuse.pseudo_update(model, dict(model.named_parameters()), x_poisoned, y, lr)


def through(model, x, x_poisoned, y, lr, *, step=F.cross_entropy, end=F.cross_entropy, at=None):
    """The gradient in x_poisoned of ``end`` at x, or at x_poisoned, after a step down ``step``."""
    x_poisoned = x_poisoned.detach().clone().requires_grad_()
    moved = update(descended, step)(model, x_poisoned, y, lr)
    seen = x_poisoned if at == "poisoned" else x
    outcome = end(functional_call(model, moved, (seen,)), y)
    return torch.autograd.grad(outcome, x_poisoned)[0]


def first_order(model, x, x_poisoned, y, lr):
    return answers.image_gradient(model, x_poisoned, y) / len(y)


def without_step(model, x, x_poisoned, y, lr):
    """v is taken at θ and not at θ′."""
    x_poisoned = x_poisoned.detach().clone().requires_grad_()
    weights = list(model.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(model(x_poisoned), y), weights, create_graph=True)
    v = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    product = sum((slope * held).sum() for slope, held in zip(slopes, v, strict=True))
    return -lr * torch.autograd.grad(product, x_poisoned)[0]


def step_inputs():
    x = 0.1 + 0.8 * answers.small_images()
    noise = 0.1 * torch.randn(x.shape, generator=runtime.generator(5), dtype=torch.float64).sign()
    return [(answers.small_model(), x, (x + noise).clamp(0, 1), torch.arange(6), 0.3)]


@exercise(
    "11",
    "What the generator learns from",
    level="hard",
    hints=(
        "Two steps: the weights after a step on x_poisoned, with their graph, as in pseudo_update; "
        "then the loss of these weights on the clean x. Of that loss the gradient is asked for.",
        "torch.func.functional_call(model, moved, (x,)) runs the model with other weights. Or by "
        "the identity: v = ∇ L(f_θ′(x), y), held fixed, then −lr · ∇⟨∇_θ L(f_θ(x̃), y), v⟩.",
        "loss = F.cross_entropy(torch.func.functional_call(model, moved, (x,)), y); "
        "return torch.autograd.grad(loss, x_poisoned)[0], where x_poisoned asked for a gradient.",
    ),
    inputs=step_inputs,
    otherwise="it is not the gradient, in x_poisoned, of the mean cross-entropy on the clean x "
    "after one step on x_poisoned.",
    mistakes={
        "that is what the victim sees now, without any step: the gradient of L(f_θ(x̃), y). "
        "Take the loss after the step, on the clean x.": [first_order],
        "the loss after the step is taken on x_poisoned; the attacker asks how wrong the victim is "
        "on the clean x.": [partial(through, at="poisoned")],
        "v is the gradient at the weights before the step; take it at θ′, after it.": [
            without_step
        ],
        "the sign is turned. θ′ = θ − lr · ∇, so lr stands with a minus; and the gradient itself "
        "is asked for, the ascent comes later.": [lambda *given: -through(*given)],
        "lr is missing in the identity: the step is lr times the gradient.": [
            lambda *given: through(*given) / given[-1]
        ],
        SUMMED: [partial(through, step=summed)],
        "the outcome is summed over the images; take the mean, as in the step.": [
            partial(through, end=summed)
        ],
        answers.SOFTMAX_TWICE: [
            partial(through, step=answers.softmax_twice),
            partial(through, end=answers.softmax_twice),
        ],
        "that is the sign of the gradient; Adam, which follows, wants the gradient itself.": [
            lambda *given: through(*given).sign()
        ],
    },
)
def generator_step(model, x, x_poisoned, y, lr):
    weights = dict(model.named_parameters())
    return confuse.confusion_gradient(model, weights, x, y, x_poisoned, y, lr)[0]


def trial_inputs():
    xi, theta, *batches = torch.linspace(-1, 2, 18, dtype=torch.float64).view(6, 3)

    def move_victim(theta, xi, batch):
        return 0.7 * theta + 0.2 * xi * batch

    def move_generator(xi, theta, batch):
        return xi + 0.3 * (theta - xi).tanh() * batch

    return [(xi, theta, batches, move_victim, move_generator)]


def in_turn(xi, theta, batches, move_victim, move_generator):
    for batch in batches:
        xi = move_generator(xi, theta, batch)
        theta = move_victim(theta, xi, batch)
    return xi


def trial_by(xi, theta, batches, move_victim, move_generator, *, victim_first=False, keep=True):
    """The copy's way through a trial; ``keep=False`` lets it begin at ξ at every batch."""
    learner = xi
    for batch in batches:
        stepped = move_victim(theta, xi, batch)
        learner = move_generator(learner if keep else xi, stepped if victim_first else theta, batch)
        theta = stepped
    return learner


def victim_after(xi, theta, batches, move_victim, move_generator):
    for batch in batches:
        theta = move_victim(theta, xi, batch)
    return theta


@exercise(
    "11",
    "One trial, decoupled",
    level="core",
    hints=(
        "Two generators are at work: ξ, which stands still and feeds the victim, and a copy, which "
        "learns from every state of the victim. The copy comes back.",
        "Lines 3 to 7: first the copy learns from θ as it is now, then the victim takes its step "
        "on the noise of ξ.",
        "learner = xi; for batch in batches: learner = move_generator(learner, theta, batch); "
        "theta = move_victim(theta, xi, batch); return learner.",
    ),
    inputs=trial_inputs,
    otherwise="it is not ξ′ after lines 3 to 7 of Algorithm 2.",
    mistakes={
        "the victim takes its step on the noise of the generator that learns: the two chase each "
        "other. Feed it the noise of ξ, which stands still.": [in_turn],
        "the victim moves before the generator has seen it: line 6 comes before line 7.": [
            partial(trial_by, victim_first=True)
        ],
        "the copy begins at ξ again at every batch; let it go on from where it is.": [
            partial(trial_by, keep=False)
        ],
        "the generator has not moved: return the copy that has learned.": [lambda *given: given[0]],
        "that is the victim; return the generator.": [victim_after],
        "that is one batch; go through all of them.": [
            lambda xi, theta, batches, *steps: trial_by(xi, theta, batches[:1], *steps)
        ],
    },
)
def one_trial(xi, theta, batches, move_victim, move_generator):
    return trial_by(xi, theta, batches, move_victim, move_generator)


def measured_trials():
    validation = torch.tensor([0.95, 0.44, 0.31, 0.12, 0.18, 0.15], dtype=torch.float64)
    return [(validation, torch.tensor([0.96, 0.41, 0.29, 0.16, 0.11, 0.20], dtype=torch.float64))]


@exercise(
    "11",
    "Choose first, then measure",
    level="easy",
    hints=(
        "The choice and the number need different images. Which of the two sets chooses?",
        "The attacker wants the lowest accuracy: validation.argmin() is his trial.",
        "return test[validation.argmin()].",
    ),
    inputs=measured_trials,
    otherwise="it is not the test accuracy of the trial with the lowest validation accuracy.",
    mistakes={
        "that is the lowest test accuracy: the test images have chosen the trial by which they are "
        "judged. Let the validation images choose.": [lambda validation, test: test.min()],
        "that is the number by which the trial was chosen, and partly luck; report another: that "
        "of the test images.": [lambda validation, test: validation.min()],
        "the attacker wants a low accuracy: argmin.": [
            lambda validation, test: test[validation.argmax()]
        ],
        "that is the last trial, not the chosen one.": [lambda validation, test: test[-1]],
        "that is the number of the trial; its test accuracy is asked for.": [
            lambda validation, test: validation.argmin().double()
        ],
        "the test images choose, and the validation images judge: the other way round.": [
            lambda validation, test: validation[test.argmin()]
        ],
    },
)
def accuracy_of_chosen(validation, test):
    return test[validation.argmin()]
