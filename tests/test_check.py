"""Every check: the right solution passes, and each typical wrong answer gets its own advice."""

import copy
import json
import math
import random
import re
import socket
import time
import warnings

import pytest
import torch
import torch.nn.functional as F

from course_utils import attacks, check, mutual_information, objectives

torch.set_num_threads(1)

# ------------------------------------------------------------------------------- right answers, as a student writes them


def linf_size(delta):
    return delta.abs().flatten(1).amax(1)


def accuracy(logits, y):
    return (logits.argmax(1) == y).float().mean()


def honest_accuracy(validation, test):
    return test[validation.index(max(validation))]


def descent_step(model, x, target, step_size):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), target, reduction="sum")
    g = torch.autograd.grad(loss, x)[0]
    return (x - step_size * g).detach()


def roughness(x):
    across = x[..., :, 1:] - x[..., :, :-1]
    down = x[..., 1:, :] - x[..., :-1, :]
    return (across**2).sum(dim=(1, 2, 3)) + (down**2).sum(dim=(1, 2, 3))


def max_normalised(g):
    largest = g.abs().amax(dim=(1, 2, 3), keepdim=True)
    return g / torch.where(largest > 0, largest, 1)


def fgsm(model, x, y, eps):
    x = x.clone().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]
    return (x + eps * g.sign()).clamp(0, 1).detach()


def pgd(model, x, y, eps, step_size, steps):
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.clone().requires_grad_()
        g = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)[0]
        delta = (x_adv + step_size * g.sign() - x).clamp(-eps, eps)
        x_adv = (x + delta).clamp(0, 1).detach()
    return x_adv


def targeted_loss(logits, target, x_adv, x, lam):
    return F.cross_entropy(logits, target, reduction="none") + lam * (x_adv - x).abs().mean(dim=(1, 2, 3))


def hit_rate(predicted, y, target):
    attacked = y != target
    return (predicted[attacked] == target[attacked]).float().mean()


def linear_adversary(w, y, eps):
    return -eps * y[:, None] * w.sign()


def robust_logistic(w, b, x, y, eps):
    return F.softplus(-(y * (x @ w + b) - eps * w.abs().sum())).mean()


def adversarial_loss(model, x, y, attack):
    return F.cross_entropy(model(attack(model, x, y)), y)


def gradient_penalty(model, x, y, lam):
    x = x.clone().requires_grad_()
    losses = F.cross_entropy(model(x), y, reduction="none")
    g = torch.autograd.grad(losses.sum(), x, create_graph=True)[0]
    return losses.mean() + lam * (g**2).sum(dim=(1, 2, 3)).mean()


def adv_alpha_step(alpha, T, y, eps):
    rows = torch.arange(len(y))
    towards = T - T[rows, y][:, None]
    distance = (alpha[rows, y][:, None] - alpha) / towards.norm(dim=2)
    distance[rows, y] = torch.inf
    r = towards[rows, distance.argmin(1)]
    return eps * r / r.norm(dim=1, keepdim=True)


def lwa_loss(model, x, y, c):
    g = gradient(model, x, y)
    return F.cross_entropy(model(x + c * g / g.flatten(1).norm(dim=1)[:, None, None, None]), y)


def dv_bound(joint, marginal):
    return joint.mean() - (marginal.logsumexp(0) - math.log(len(marginal)))


def hinge(logits, y):
    own = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (own - other).clamp(min=0)


def dual_step(c, f, t, beta):
    return ((1 - beta / t**0.25) * c + beta * f.clamp(min=0)).clamp(min=0)


def uae_criterion(model, x, x_adv):
    return (x - model(x_adv)).square().flatten(1).sum(1) - (x - model(x)).square().flatten(1).sum(1)


def projected_information(x, x_adv, size):
    return -size / 2 * torch.log(1 - torch.cosine_similarity(x.flatten(1), x_adv.flatten(1)) ** 2)


def matched_epochs(images, augmented, epochs, batch_size):
    steps = epochs * -(-augmented // batch_size)
    return -(-steps // -(-images // batch_size))


def bounded_noise(raw, eps):
    return eps * torch.tanh(raw)


def pseudo_update(model, x_poisoned, y, lr):
    params = dict(model.named_parameters())
    loss = F.cross_entropy(model(x_poisoned), y)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    return {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}


def next_label(y, classes):
    return (y + 1) % classes


def share_poisoned(x, x_poisoned, share, generator):
    places = torch.randperm(len(x), generator=generator)[: round(share * len(x))]
    mixed = x.clone()
    mixed[places] = x_poisoned[places]
    return mixed


def matching_loss(g_poison, g_target):
    a = torch.cat([g.flatten() for g in g_poison])
    b = torch.cat([g.flatten() for g in g_target])
    return 1 - F.cosine_similarity(a, b, dim=0)


def min_min_step(model, x, delta, y, eps, step_size):
    v = (x + delta).requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(model(v), y), v)[0]
    delta = (delta - step_size * g.sign()).clamp(-eps, eps)
    return (x + delta).clamp(0, 1) - x


RIGHT = [
    *(linf_size, accuracy, honest_accuracy, descent_step, roughness, max_normalised, fgsm, pgd, targeted_loss, hit_rate),
    *(linear_adversary, robust_logistic, adversarial_loss, gradient_penalty, adv_alpha_step, lwa_loss),
    *(dv_bound, projected_information, hinge, dual_step, uae_criterion, matched_epochs),
    *(bounded_noise, pseudo_update, next_label, share_poisoned, matching_loss, min_min_step),
]
WITH_A_MODEL = {
    fn.__name__: fn
    for fn in (descent_step, fgsm, pgd, adversarial_loss, gradient_penalty, lwa_loss, uae_criterion, pseudo_update, min_min_step)
}

# Other ways to be right: a check asks for what the function does, not for how.
ALSO_RIGHT = {
    "accuracy": lambda logits, y: sum(int(z.argmax()) == int(label) for z, label in zip(logits, y, strict=True)) / len(y),
    "honest_accuracy": lambda validation, test: torch.tensor(test)[torch.tensor(validation).argmax()],
    "descent_step": lambda model, x, target, step_size: descent_step(model, x, target, step_size).float(),
    "roughness": lambda x: (x.diff(dim=-1) ** 2).flatten(1).sum(1) + (x.diff(dim=-2) ** 2).flatten(1).sum(1),
    "max_normalised": lambda g: (g / g.abs().amax(dim=(1, 2, 3), keepdim=True)).nan_to_num(0),
    "fgsm": lambda model, x, y, eps: x + (x + eps * gradient(model, x, y).sign()).clamp(0, 1) - x,
    "targeted_loss": lambda z, t, a, x, lam: torch.stack(
        [F.cross_entropy(z[i], t[i]) + lam * (a[i] - x[i]).abs().mean() for i in range(len(x))]
    ),
    "hit_rate": lambda predicted, y, target: ((predicted == target) & (y != target)).sum().item() / (y != target).sum().item(),
    "linear_adversary": lambda w, y, eps: torch.stack([torch.where(label * w > 0, -eps, eps) for label in y]),
    "robust_logistic": lambda w, b, x, y, eps: F.binary_cross_entropy_with_logits(x @ w + b - eps * y * w.norm(1), (y + 1) / 2).reshape(
        1
    ),  # numerically stable as well
    "adversarial_loss": lambda model, x, y, attack: objectives.adversarial(attack)(model, x, y),
    "gradient_penalty": lambda model, x, y, lam: objectives.gradient_penalty(lam)(model, x, y),
    "adv_alpha_step": lambda alpha, T, y, eps: torch.stack([one_adv_alpha_step(*row, eps) for row in zip(alpha, T, y, strict=True)]),
    "lwa_loss": lambda model, x, y, c: objectives.lwa(c)(model, x, y),
    "dv_bound": lambda joint, marginal: joint.mean() - (marginal - marginal.max()).exp().mean().log() - marginal.max(),
    "hinge": lambda z, y: torch.stack([(z[i, k] - torch.cat([z[i, :k], z[i, k + 1 :]]).max()).relu() for i, k in enumerate(y)]),
    "dual_step": lambda c, f, t, beta: torch.maximum(c - beta * (c / math.sqrt(math.sqrt(t)) - f.relu()), torch.zeros(())),
    "projected_information": lambda x, x_adv, size: mutual_information.projected_information(x, x_adv, size),
    "matched_epochs": lambda images, augmented, epochs, batch: math.ceil(epochs * math.ceil(augmented / batch) / math.ceil(images / batch)),
    "uae_criterion": lambda model, x, x_adv: (F.mse_loss(model(x_adv), x, reduction="none") - fixed_error(model, x)).sum(dim=(1, 2, 3)),
    "bounded_noise": lambda raw, eps: eps * (2 / (1 + (-2 * raw).exp()) - 1),
    "pseudo_update": lambda model, x, y, lr: functional_update(model, x, y, lr),
    "next_label": lambda y, classes: torch.where(y < classes - 1, y + 1, 0),
    "share_poisoned": lambda x, x_poisoned, share, generator: torch.where(
        (torch.rand(len(x), generator=generator).argsort().argsort() < round(share * len(x)))[:, None, None, None], x_poisoned, x
    ),
    "matching_loss": lambda a, b: 1 - summed_products(a, b) / (summed_products(a, a) * summed_products(b, b)).sqrt(),
    "min_min_step": lambda model, x, delta, y, eps, step: (delta - step * gradient(model, x + delta, y).sign()).clamp(
        torch.clamp(-x, min=-eps), torch.clamp(1 - x, max=eps)
    ),
}


def functional_update(model, x, y, lr):
    """Nothing but ``torch.func``; the present parameters are constants."""

    def loss(params):
        return F.cross_entropy(torch.func.functional_call(model, params, (x,)), y)

    params = {name: p.detach() for name, p in model.named_parameters()}
    return {name: params[name] - lr * g for name, g in torch.func.grad(loss)(params).items()}


def summed_products(a, b):
    return sum((p * q).sum() for p, q in zip(a, b, strict=True))


@torch.no_grad()
def fixed_error(model, x):
    return (model(x) - x) ** 2


def one_adv_alpha_step(alpha, T, y, eps):
    ways = {j: ((alpha[y] - alpha[j]) / (T[j] - T[y]).norm(), T[j] - T[y]) for j in range(len(alpha)) if j != y}
    _, way = min(ways.values(), key=lambda pair: pair[0])
    return eps * way / way.norm()


# ------------------------------------------------------------------------------------------------ typical wrong answers


def gradient(model, x, y, loss=F.cross_entropy):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(model(x), y), x)[0]


def of_softmax(logits, y):
    return F.cross_entropy(logits.softmax(1), y)


def through_the_weights(model, x, y, eps):
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    return (x + eps * x.grad.sign()).clamp(0, 1).detach()


def train_mode(model, x, y, eps):
    model.train()
    return fgsm(model, x, y, eps)


def moves_the_weights(model, x, y, eps):
    with torch.no_grad():
        for p in model.parameters():
            p += eps
    return fgsm(model, x, y, eps)


def in_place(model, x, y, eps):
    return x.add_(eps * gradient(model, x, y).sign()).clamp_(0, 1)


def marks_the_input(model, x, y, eps):
    x.requires_grad_()
    return (x + eps * torch.autograd.grad(F.cross_entropy(model(x), y), x)[0].sign()).clamp(0, 1)


def never_marked(model, x, y, eps):
    return x + eps * torch.autograd.grad(F.cross_entropy(model(x), y), x)[0].sign()


def marked_too_late(model, x, y, eps):
    loss = F.cross_entropy(model(x), y)
    x = x.clone().requires_grad_()
    return x + eps * torch.autograd.grad(loss, x)[0].sign()


def adds_to_a_leaf(model, x, y, eps):
    x = x.clone().requires_grad_()
    x += eps * torch.autograd.grad(F.cross_entropy(model(x), y), x)[0].sign()
    return x


def step(change):
    """A wrong ``descent_step``: ``change(g, step_size, x)`` is what is returned; ``g`` is the summed gradient."""
    return lambda model, x, target, step_size: change(len(x) * gradient(model, x, target), step_size, x)


def signed(change):
    """A wrong ``fgsm``: ``change(g, eps, x)`` is what is returned."""
    return lambda model, x, y, eps: change(gradient(model, x, y), eps, x)


def loop(
    *, up=1, take=torch.sign, from_x=False, once=False, centre="x", box=True, start=0.0, extra=0, returns_early=False, at_the_end=False
):
    """A ``pgd`` with one thing wrong."""

    def wrong_pgd(model, x, y, eps, step_size, steps):
        x_adv = (x + start * torch.randn_like(x)).clamp(0, 1)
        g = gradient(model, x, y)
        for _ in range(steps + extra):
            now = x if from_x else x_adv
            g = g if once else gradient(model, now, y)
            moved = now + up * step_size * take(g)
            around = {"x": x, "last": x_adv, None: None}[centre]
            if around is not None and not at_the_end:
                moved = around + (moved - around).clamp(-eps, eps)
            x_adv = moved.clamp(0, 1) if box else moved
            if returns_early:
                return x_adv
        return (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1) if at_the_end else x_adv

    return wrong_pgd


def distances(x_adv, x):
    return (x_adv - x).abs().flatten(1)


def ce(logits, target):
    return F.cross_entropy(logits, target, reduction="none")


def changes_the_list(validation, test):
    best = max(validation)
    test.sort()
    return test[validation.index(best)]


def psi(z):
    return F.softplus(-z)


def robust(change):
    """A wrong ``robust_logistic``: ``change(w, b, x, y, eps, margin)`` is what is returned."""
    return lambda w, b, x, y, eps: change(w, b, x, y, eps, y * (x @ w + b))


def backward_first(w, b, x, y, eps):
    robust_logistic(w, b, x, y, eps).backward()
    return robust_logistic(w, b, x, y, eps)


def softmax_ce(logits, target):
    return ce(logits.softmax(1), target)


def penalised(change, loss=ce, **settings):
    """A wrong ``gradient_penalty``: ``change(losses, g, lam)`` is what is returned; ``g`` is (N, pixels), each image's own gradient."""

    def wrong_penalty(model, x, y, lam):
        x = x.clone().requires_grad_()
        losses = loss(model(x), y)
        g = torch.autograd.grad(losses.sum(), x, **(settings or {"create_graph": True}))[0]
        return change(losses, g.flatten(1), lam)

    return wrong_penalty


def through_backward(model, x, y, lam):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    return loss + lam * x.grad.square().sum() * len(x)


def of_the_weights(reduction):
    def wrong_penalty(model, x, y, lam):
        loss = F.cross_entropy(model(x), y, reduction=reduction)
        g = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return F.cross_entropy(model(x), y) + lam * sum(p.square().sum() for p in g)

    return wrong_penalty


def attacked(change):
    """A wrong ``adversarial_loss``: ``change(model, x_adv, x, y)`` is what is returned."""
    return lambda model, x, y, attack: change(model, attack(model, x, y), x, y)


def without_a_graph(model, x, y, attack):
    with torch.no_grad():
        return F.cross_entropy(model(attack(model, x, y)), y)


def alpha_step(change=lambda r, distance, eps: eps * F.normalize(r, dim=1), *, take=torch.argmin, own=torch.inf, power=1, spoil=None):
    """A wrong ``adv_alpha_step``: another class I, or another use of r = T_I − T_y and its distance."""

    def wrong_step(alpha, T, y, eps):
        if spoil:
            alpha, y = spoil(alpha, y)
        rows = torch.arange(len(y))
        towards = T - T[rows, y][:, None]
        distance = (alpha[rows, y][:, None] - alpha) / towards.norm(dim=2) ** power
        if own is not None:
            distance[rows, y] = own
        nearest = take(distance, 1)
        return change(towards[rows, nearest], distance[rows, nearest][:, None], eps)

    return wrong_step


def by_probability(alpha, T, y, eps):
    other = alpha.scatter(1, y[:, None], -1).argmax(1)
    rows = torch.arange(len(y))
    return eps * F.normalize(T[rows, other] - T[rows, y], dim=1)


def without_own(alpha, T, y, eps):
    r = adv_alpha_step(alpha, T, y, eps)
    rows = torch.arange(len(y))
    towards = F.normalize(T - T[rows, y][:, None], dim=2)
    return eps * F.normalize(T[rows, (towards * r[:, None]).sum(2).argmax(1)], dim=1)


def paper_s_r(alpha, T, y, eps):
    """Normalises r_I itself, whose sign turns where the image is misclassified."""
    return alpha_step(lambda r, distance, eps: eps * F.normalize(distance * r, dim=1))(alpha, T, y, eps)


def subtracts_in_place(alpha, T, y, eps):
    T -= T[torch.arange(len(y)), y][:, None]
    return adv_alpha_step(alpha, T, y, eps)


def each(norms):
    return norms[:, None, None, None]


def lwa(step, loss=F.cross_entropy):
    """A wrong ``lwa_loss``: the loss at x + ``step(g, c)``."""
    return lambda model, x, y, c: loss(model(x + step(gradient(model, x, y), c)), y)


def unit(g):
    return g / each(g.flatten(1).norm(dim=1))


def lwa_mixed(share, of_clean):
    return lambda model, x, y, c: share * lwa_loss(model, x, y, c) + of_clean * F.cross_entropy(model(x), y)


def lwa_with(own, loss=F.cross_entropy):
    """LWA with the gradient ``own(model, x, y)``, and the loss ``loss(logits, y)``."""
    return lambda model, x, y, c: loss(model(x + c * unit(own(model, x, y))), y)


def lwa_clipped(model, x, y, c):
    return F.cross_entropy(model((x + c * unit(gradient(model, x, y))).clamp(0, 1)), y)


def lwa_of_prediction(model, x, y, c):
    return F.cross_entropy(model(x + c * unit(gradient(model, x, y))), model(x).argmax(1))


def lwa_through_g(model, x, y, c):
    x = x.clone().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(model(x), y), x, create_graph=True)[0]
    return F.cross_entropy(model(x + c * unit(g)), y)


def lwa_backward(model, x, y, c):
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y).backward()
    return F.cross_entropy(model(x + c * unit(leaf.grad)), y)


def frozen(fn):
    """The right number of ``fn`` without a gradient for the output layer."""

    def without_the_output_layer(model, *arguments):
        model.output.requires_grad_(False)
        try:
            return fn(model, *arguments)
        finally:
            model.output.requires_grad_(True)

    return without_the_output_layer


def lme(v):
    return v.logsumexp(0) - math.log(len(v))


def leads(logits, y, instead=-torch.inf):
    """z_y − max_{j≠y} z_j, before it is clipped."""
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], instead).amax(1)


def own_logit(logits, y):
    return logits.gather(1, y[:, None])[:, 0]


def hinge_in_place(logits, y):
    rows = torch.arange(len(y))
    own = logits[rows, y]
    logits[rows, y] = -torch.inf
    return (own - logits.amax(1)).clamp(min=0)


def dual(decay, rise=lambda f, t, beta: beta * f.relu()):
    """A ``dual_step`` with another decay or another rise."""
    return lambda c, f, t, beta: (decay(t, beta) * c + rise(f, t, beta)).clamp(min=0)


def slow(t, beta):
    return 1 - beta / t**0.25


def dual_in_place(c, f, t, beta):
    c *= 1 - beta / t**0.25
    c += beta * f.relu()
    return c.relu()


def squares(v):
    return v.square().flatten(1).sum(1)


def uae(change):
    """A wrong ``uae_criterion``: ``change(x, x_adv, a, b)`` is what is returned; a = Φ(x_adv), b = Φ(x)."""
    return lambda model, x, x_adv: change(x, x_adv, model(x_adv), model(x))


def uae_backward(model, x, x_adv):
    f = uae_criterion(model, x, x_adv)
    f.sum().backward(retain_graph=True)
    return f


def hyperbolic_in_place(raw, eps):
    return raw.tanh_().mul_(eps)


def update(change=lambda p, g, lr, n: p - lr * g, *, loss=F.cross_entropy, label=lambda logits, y: y, **settings):
    """A wrong ``pseudo_update``: ``change(p, g, lr, n)`` for every parameter; n is the number of images."""

    def wrong_update(model, x, y, lr):
        params, logits = dict(model.named_parameters()), model(x)
        grads = torch.autograd.grad(loss(logits, label(logits, y)), list(params.values()), **(settings or {"create_graph": True}))
        return {name: change(p, g, lr, len(x)) for (name, p), g in zip(params.items(), grads, strict=True)}

    return wrong_update


def by_optimizer(model, x, y, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return dict(model.named_parameters())


def on_a_copy(model, x, y, lr):
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=lr)
    F.cross_entropy(twin(x.detach()), y).backward()
    optimizer.step()
    return dict(twin.named_parameters())


def writes_into_the_model(model, x, y, lr):
    params = pseudo_update(model, x, y, lr)
    model.load_state_dict(params)
    return params


def backward_and_grad(model, x, y, lr):
    with warnings.catch_warnings(action="ignore"):  # PyTorch advises against it too
        F.cross_entropy(model(x), y).backward(create_graph=True)
    return {name: p - lr * p.grad for name, p in model.named_parameters()}


def backward_and_tidy(model, x, y, lr):
    params = backward_and_grad(model, x, y, lr)
    model.zero_grad()
    return params


def state_dict_update(model, x, y, lr):
    params = model.state_dict()
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(params.values()), create_graph=True)
    return {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}


def used_up(model, x, y, lr):
    params = pseudo_update(model, x, y, lr)
    torch.autograd.grad(sum(p.sum() for p in params.values()), list(model.parameters()))
    return params


def loss_of_a_copy(model, x, y, lr):
    loss = F.cross_entropy(copy.deepcopy(model)(x), y)
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def refuses_gradients(p):
    def refuse(_):
        raise RuntimeError("another reason")

    p = 1 * p
    p.register_hook(refuse)
    return p


def changed_entry(name, change):
    """The right update, with one entry of the dict changed."""
    return lambda *arguments: {key: change(p) if key == name else p for key, p in pseudo_update(*arguments).items()}


def next_in_place(y, classes):
    y += 1
    return y % classes


def places(choose, count=lambda share, n: round(share * n)):
    """A ``share_poisoned`` that draws its places by ``choose(n, k, generator)``."""

    def mixed(x, x_poisoned, share, generator):
        chosen = choose(len(x), count(share, len(x)), generator)
        out = x.clone()
        out[chosen] = x_poisoned[chosen]
        return out

    return mixed


def drawn(n, k, generator):
    return torch.randperm(n, generator=generator)[:k]


def seeded_again(n, k, generator):
    return drawn(n, k, generator.manual_seed(0))


def seed_only(n, k, generator):
    return drawn(n, k, torch.Generator().manual_seed(generator.initial_seed()))


def rearranged(order):
    """Right images, in another order."""
    return lambda x, x_poisoned, share, generator: share_poisoned(x, x_poisoned, share, generator)[order(len(x))]


def poisoned_first(x, x_poisoned, share, generator):
    order, k = torch.randperm(len(x), generator=generator), round(share * len(x))
    return torch.cat([x_poisoned[order[:k]], x[order[k:]]])


def other_ones_place(x, x_poisoned, share, generator):
    chosen = drawn(len(x), round(share * len(x)), generator)
    out = x.clone()
    out[chosen] = x_poisoned[: len(chosen)]
    return out


def mixed_in_place(x, x_poisoned, share, generator):
    chosen = drawn(len(x), round(share * len(x)), generator)
    x[chosen] = x_poisoned[chosen]
    return x


def by_pixel(x, x_poisoned, share, generator):
    return torch.where(torch.rand(x.shape, generator=generator) < share, x_poisoned, x)


def joined(change):
    """A wrong ``matching_loss``: ``change(u, v)`` of the joined vectors is what is returned."""
    return lambda a, b: change(torch.cat([g.flatten() for g in a]), torch.cat([g.flatten() for g in b]))


def tensorwise(change):
    """A wrong ``matching_loss``: ``change(cosines)``, one for each tensor."""
    return lambda a, b: change(torch.stack([F.cosine_similarity(p.flatten(), q.flatten(), dim=0) for p, q in zip(a, b, strict=True)]))


def cos(u, v):
    return F.cosine_similarity(u, v, dim=0)


def normalises_in_place(g_poison, g_target):
    loss = matching_loss(g_poison, g_target)
    for g in g_poison:
        g /= g.norm()
    return loss


def empties_the_list(g_poison, g_target):
    loss = matching_loss(g_poison, g_target)
    if isinstance(g_target, list):
        g_target.pop()
    return loss


def noise(change, at=lambda x, delta: x + delta, label=lambda model, v, y: y, loss=F.cross_entropy):
    """A wrong ``min_min_step``: ``change(x, delta, g, eps, step_size)`` is what is returned; ``g`` is the gradient at ``at(x, delta)``."""

    def wrong_step(model, x, delta, y, eps, step_size):
        v = at(x, delta)
        return change(x, delta, gradient(model, v, label(model, v, y), loss), eps, step_size)

    return wrong_step


def fits(x, delta, eps):
    return (x + delta.clamp(-eps, eps)).clamp(0, 1) - x


def minimised(x, delta, g, eps, step_size):
    return fits(x, delta - step_size * g.sign(), eps)


def noise_through_backward(model, x, delta, y, eps, step_size):
    v = (x + delta).requires_grad_()
    F.cross_entropy(model(v), y).backward()
    return minimised(x, delta, v.grad, eps, step_size)


def victim_moves_too(model, x, delta, y, eps, step_size):
    result = min_min_step(model, x, delta, y, eps, step_size)
    by_optimizer(model, x + result, y, step_size)
    model.zero_grad()
    return result


def noise_in_train_mode(model, *arguments):
    model.train()
    return min_min_step(model, *arguments)


def delta_in_place(model, x, delta, y, eps, step_size):
    delta -= step_size * gradient(model, x + delta, y).sign()
    return fits(x, delta, eps)


def marks_delta(model, x, delta, y, eps, step_size):
    delta.requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)[0]
    return minimised(x, delta, g, eps, step_size)


# exercise -> [(a distinctive part of the advice, the wrong answer)]
WRONG = {
    "linf_size": [
        ("one number for the whole batch", lambda d: d.abs().max()),
        ("one number for the whole batch", lambda d: d.abs().max().item()),
        ("the sign got in the way", lambda d: d.flatten(1).amax(1)),
        ("the mean absolute change", lambda d: d.abs().flatten(1).mean(1)),
        ("the L2 norm", lambda d: d.flatten(1).norm(dim=1)),
        ("take .values", lambda d: d.abs().flatten(1).max(1)),
        ("has shape (3, 1) and should have (3,)", lambda d: d.abs().flatten(1).amax(1, keepdim=True)),
        ("has shape (3, 2)", lambda d: d.abs().amax(dim=(2, 3))),
        ("is a list", lambda d: [float(v.abs().max()) for v in d]),
        ("pixels 0.1, -0.5, 0.2, 0 you return 0.8 and not 0.5", lambda d: d.abs().flatten(1).sum(1)),
        ("pixels 0.3, 0.1, -0.2, 0.25 you return 0.5 and not 0.3", lambda d: d.abs().max().expand(3)),
        ("changed its input", lambda d: d.abs_().flatten(1).amax(1)),
        ("has shape (3, 2, 1, 2)", lambda d: d),
        ("you return 1 and not 0.5", lambda d: torch.ones(3)),
    ],
    "accuracy": [
        ("the number of hits", lambda z, y: (z.argmax(1) == y).sum()),
        ("a percentage", lambda z, y: 100 * (z.argmax(1) == y).float().mean()),
        ("the error rate", lambda z, y: (z.argmax(1) != y).float().mean()),
        ("not one image counts", lambda z, y: (z.argmax(0) == y).float().mean()),
        ("not one image counts", lambda z, y: (z.argmax() == y).float().mean()),
        ("not one image counts", lambda z, y: (z.argmax(1) == y).all()),
        ("return one number between 0 and 1, not Tensor", lambda z, y: (z.argmax(1) == y).float()),
        ("accuracy is 1; you return 0.75", lambda z, y: 0.75),
        ("you return 0.5", lambda z, y: 0.5),
        ("not Tensor", lambda z, y: z),
    ],
    "honest_accuracy": [
        ("the best test accuracy", lambda v, t: max(t)),
        ("it flatters", lambda v, t: max(v)),
        ("the other way round", lambda v, t: v[t.index(max(t))]),
        ("the last epoch", lambda v, t: t[-1]),
        ("the index of the epoch", lambda v, t: v.index(max(v))),
        ("not tuple", lambda v, t: (v.index(max(v)), t[1])),
        ("you return 0.98049", lambda v, t: sum(t) / len(t)),
        ("the answer is 0.91", lambda v, t: 0.980),
        ("the answer is 0.91", lambda v, t: t[1]),
        ("changed its input", changes_the_list),
    ],
    "descent_step": [
        ("you climb", step(lambda g, s, x: x + s * g)),
        ("averages over the batch", step(lambda g, s, x: x - s * g / len(x))),
        ("a step along the sign", step(lambda g, s, x: x - s * g.sign())),
        ("you clip", step(lambda g, s, x: (x - s * g).clamp(0, 1))),
        ("step_size is missing", step(lambda g, s, x: x - g)),
        ("add it to x", step(lambda g, s, x: -s * g)),
        ("applies the softmax itself", lambda m, x, t, s: x - s * len(x) * gradient(m, x, t, of_softmax)),
        ("applies the softmax itself", lambda m, x, t, s: x - s * gradient(m, x, t, of_softmax)),
        ("is not x − step_size", lambda m, x, t, s: descent_step(m, x, (t + 1) % 10, s)),
        ("x_adv equals x", step(lambda g, s, x: x)),
        ("is not x − step_size", step(lambda g, s, x: torch.zeros_like(x))),
    ],
    "roughness": [
        ("only one direction", lambda x: x.diff(dim=-1).square().flatten(1).sum(1)),
        ("only one direction", lambda x: x.diff(dim=-2).square().flatten(1).sum(1)),
        ("absolute differences", lambda x: x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)),
        ("the mean over the pixels", lambda x: x.diff(dim=-1).square().flatten(1).mean(1) + x.diff(dim=-2).square().flatten(1).mean(1)),
        ("the square root", lambda x: roughness(x).sqrt()),
        ("wraps around", lambda x: ((x - x.roll(1, -1)) ** 2 + (x - x.roll(1, -2)) ** 2).flatten(1).sum(1)),
        ("one number for the whole batch", lambda x: roughness(x).sum()),
        ("for the first test image you return", lambda x: x.flatten(1).var(1)),
        ("for the first test image you return", lambda x: torch.ones(3)),
        ("has shape (3, 1, 8, 8)", lambda x: x),
    ],
    "max_normalised": [
        ("becomes nan", lambda g: g / g.abs().amax(dim=(1, 2, 3), keepdim=True)),
        ("the whole batch", lambda g: g / g.abs().max()),
        ("added to the denominator", lambda g: g / (g.abs().amax(dim=(1, 2, 3), keepdim=True) + 1e-12)),
        ("added to the denominator", lambda g: g / (g.abs().amax(dim=(1, 2, 3), keepdim=True) + 1e-3)),
        ("added to the denominator", lambda g: g / g.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)),
        ("a negative one can be larger", lambda g: (g / g.amax(dim=(1, 2, 3), keepdim=True)).nan_to_num(0)),
        ("divides by the length", lambda g: F.normalize(g.flatten(1), dim=1, eps=0).nan_to_num(0).view_as(g)),
        ("that is the sign", lambda g: g.sign()),
        ("image by image", lambda g: (g / g.abs().amax(dim=3, keepdim=True)).nan_to_num(0)),
        ("should stay zero", lambda g: torch.where(g == 0, 1.0, max_normalised(g))),
        ("image by image", lambda g: g),
        ("not scaled to 1", lambda g: g / g.abs().flatten(1).amax(1)[:, None, None, None].clamp(min=1e-10)),
        ("image by image", lambda g: torch.zeros_like(g)),
        ("changed its input", lambda g: g.div_(g.abs().amax(dim=(1, 2, 3), keepdim=True)).nan_to_num_(0)),
    ],
    "fgsm": [
        ("the step goes down", signed(lambda g, eps, x: (x - eps * g.sign()).clamp(0, 1))),
        ("Clip to [0,1]", signed(lambda g, eps, x: x + eps * g.sign())),
        ("eps at most", signed(lambda g, eps, x: (x + g.sign()).clamp(0, 1))),
        ("use the sign of the gradient", signed(lambda g, eps, x: (x + eps * g).clamp(0, 1))),
        ("use the sign of the gradient", signed(lambda g, eps, x: (x + eps * max_normalised(g)).clamp(0, 1))),
        ("applies the softmax itself", lambda m, x, y, eps: (x + eps * gradient(m, x, y, of_softmax).sign()).clamp(0, 1)),
        ("that of the predicted label", lambda m, x, y, eps: fgsm(m, x, m(x).argmax(1), eps)),
        ("the right loss", lambda m, x, y, eps: fgsm(m, x, (y + 1) % 10, eps)),
        ("the right loss", lambda m, x, y, eps: (x + eps * gradient(m, x, y, F.nll_loss).sign()).clamp(0, 1)),
        (".grad is filled", through_the_weights),
        ("now in train mode", train_mode),
        ("weights have changed", moves_the_weights),
        ("changed its input", in_place),
        ("switched requires_grad on", marks_the_input),
        ("must ask for a gradient before", never_marked),
        ("from the very tensor", marked_too_late),
        ("in place of x +=", adds_to_a_leaf),
        ("holds nan or inf", signed(lambda g, eps, x: x + eps * 0 * g / 0)),
        ("has shape (1, 8, 8)", signed(lambda g, eps, x: (x + eps * g.sign()).clamp(0, 1)[0])),
        ("x_adv is a tuple", signed(lambda g, eps, x: ((x + eps * g.sign()).clamp(0, 1), g))),
        ("x_adv equals x", signed(lambda g, eps, x: x)),
        ("eps at most", signed(lambda g, eps, x: torch.zeros_like(x))),
    ],
    "pgd": [
        ("the steps go down", loop(up=-1)),
        ("Nothing brings x_adv back", loop(centre=None)),
        ("not around the last iterate", loop(centre="last")),
        ("clip to [0,1] in every step", loop(box=False)),
        ("Is the sign taken", loop(take=lambda g: g)),
        ("Is the sign taken", loop(take=max_normalised)),
        ("Is the sign taken", loop(extra=1)),
        ("one step too few", loop(extra=-1)),
        ("no pixel moves further than one step", loop(from_x=True)),
        ("`return` behind the loop", loop(returns_early=True)),
        ("inside the loop, at the current x_adv", loop(once=True)),
        ("projection and clipping all inside the loop", loop(at_the_end=True)),
        ("not at a random point", loop(start=0.01)),
        ("Is the sign taken, of the gradient for y", lambda m, x, y, eps, s, n: pgd(m, x, (y + 1) % 10, eps, s, n)),
        (".grad is filled", lambda m, x, y, eps, s, n: through_the_weights(m, x, y, s)),
        ("now in train mode", lambda m, x, y, eps, s, n: train_mode(m, x, y, s)),
        ("changed its input", lambda m, x, y, eps, s, n: in_place(m, x, y, s)),
        ("x_adv equals x", lambda m, x, y, eps, s, n: x),
        ("away from x", lambda m, x, y, eps, s, n: torch.zeros_like(x)),
        ("no pixel moves further than one step", lambda m, x, y, eps, s, n: fgsm(m, x, y, s)),
        ("is not. Is the sign taken", lambda m, x, y, eps, s, n: fgsm(m, x, y, eps)),
    ],
    "targeted_loss": [
        ("λ is missing", lambda z, t, a, x, lam: ce(z, t) + distances(a, x).mean(1)),
        ("λ is at the wrong term", lambda z, t, a, x, lam: lam * ce(z, t) + distances(a, x).mean(1)),
        ("the cross-entropy of the target is missing", lambda z, t, a, x, lam: lam * distances(a, x).mean(1)),
        ("the distance is missing", lambda z, t, a, x, lam: ce(z, t)),
        ("the sum over the pixels", lambda z, t, a, x, lam: ce(z, t) + lam * distances(a, x).sum(1)),
        ("the distance has the wrong sign", lambda z, t, a, x, lam: ce(z, t) - lam * distances(a, x).mean(1)),
        ("the cross-entropy has the wrong sign", lambda z, t, a, x, lam: -ce(z, t) + lam * distances(a, x).mean(1)),
        ("cancel", lambda z, t, a, x, lam: ce(z, t) + lam * (a - x).flatten(1).mean(1)),
        ("the mean square", lambda z, t, a, x, lam: ce(z, t) + lam * distances(a, x).square().mean(1)),
        ("the cross-entropy is averaged", lambda z, t, a, x, lam: F.cross_entropy(z, t) + lam * distances(a, x).mean(1)),
        ("the distance is averaged", lambda z, t, a, x, lam: ce(z, t) + lam * distances(a, x).mean()),
        ("applies the softmax itself", lambda z, t, a, x, lam: ce(z.softmax(1), t) + lam * distances(a, x).mean(1)),
        ("one number for the whole batch", lambda z, t, a, x, lam: F.cross_entropy(z, t) + lam * distances(a, x).mean()),
        ("has shape (4, 64)", lambda z, t, a, x, lam: ce(z, t)[:, None] + lam * distances(a, x)),
        ("changed its input", lambda z, t, a, x, lam: ce(z, t) + lam * a.sub_(x).abs().flatten(1).mean(1)),
        ("the value is not", lambda z, t, a, x, lam: ce(z, t) + lam * distances(a, x).amax(1)),
        ("the value is not", lambda z, t, a, x, lam: torch.ones(4)),
        ("has shape (4, 1, 8, 8)", lambda z, t, a, x, lam: a),
    ],
    "hit_rate": [
        ("a 3 anyway", lambda p, y, t: (p == t).float().mean()),
        ("you divide by all images", lambda p, y, t: ((p == t) & (y != t)).float().mean()),
        ("every mistake", lambda p, y, t: (p != y)[y != t].float().mean()),
        ("the error rate", lambda p, y, t: (p != y).float().mean()),
        ("the number of hits", lambda p, y, t: ((p == t) & (y != t)).sum()),
        ("each image has its own target", lambda p, y, t: hit_rate(p, y, t[:1].expand(len(y)))),
        ("each image has its own target", lambda p, y, t: 0.4),
        ("not Tensor", lambda p, y, t: p),
        ("you return 0.5", lambda p, y, t: 0.5),
    ],
    "linear_adversary": [
        ("a minus is missing", lambda w, y, eps: eps * y[:, None] * w.sign()),
        ("Where is y?", lambda w, y, eps: (-eps * w.sign()).expand(len(y), -1)),
        ("Where is y?", lambda w, y, eps: (eps * w.sign()).expand(len(y), -1)),
        ("one perturbation for the whole batch", lambda w, y, eps: -eps * w.sign()),
        ("eps is missing", lambda w, y, eps: -y[:, None] * w.sign()),
        ("Take the sign of w", lambda w, y, eps: -eps * y[:, None] * w),
        ("the worst case in L2", lambda w, y, eps: -eps * y[:, None] * w / w.norm()),
        ("only the pixel with the largest weight", lambda w, y, eps: -eps * y[:, None] * w / w.abs().max()),
        ("2y − 1 turns", lambda w, y, eps: -eps * (2 * y[:, None] - 1) * w.sign()),
        ("left alone", lambda w, y, eps: -eps * y[:, None].clamp(min=0) * w.sign()),
        ("has shape (5, 4) and should have (4, 5)", lambda w, y, eps: -eps * torch.outer(w.sign(), y)),
        ("fits rows of pixels as v[:, None]", lambda w, y, eps: -eps * y * w.sign()),
        ("Every pixel may move by eps at most", lambda w, y, eps: -2 * eps * y[:, None] * w.sign()),
        (
            "labelled +1 the margin y(⟨w, x⟩ + b) falls by 0.35, and the worst perturbation takes 1.05",
            lambda w, y, eps: -eps * y[:, None] * w.abs().sign(),
        ),
        ("falls by 0, and", lambda w, y, eps: torch.zeros(4, 5)),
        ("holds nan or inf", lambda w, y, eps: -eps * y[:, None] * w / (w - w)),
        ("delta is a list", lambda w, y, eps: [-eps * label * w.sign() for label in y]),
        ("changed its input", lambda w, y, eps: -eps * y[:, None] * w.sign_()),
    ],
    "robust_logistic": [
        ("the clean loss", robust(lambda w, b, x, y, eps, m: psi(m).mean())),
        ("the norm has the wrong sign", robust(lambda w, b, x, y, eps, m: psi(m + eps * w.abs().sum()).mean())),
        ("L1 regularisation", robust(lambda w, b, x, y, eps, m: psi(m).mean() + eps * w.abs().sum())),
        ("eps is missing", robust(lambda w, b, x, y, eps, m: psi(m - w.abs().sum()).mean())),
        ("the L2 norm of w", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.norm()).mean())),
        ("the L∞ norm of w", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().max()).mean())),
        ("weights of both signs cancel", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.sum()).mean())),
        ("the mean of |w_i|", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().mean()).mean())),
        ("y multiplies the norm too", robust(lambda w, b, x, y, eps, m: psi(y * (x @ w + b - eps * w.abs().sum())).mean())),
        ("the sum over the images", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().sum()).sum())),
        ("you have exp(+z)", robust(lambda w, b, x, y, eps, m: F.softplus(m - eps * w.abs().sum()).mean())),
        ("b is missing", robust(lambda w, b, x, y, eps, m: psi(y * (x @ w) - eps * w.abs().sum()).mean())),
        ("Ψ is missing", robust(lambda w, b, x, y, eps, m: (m - eps * w.abs().sum()).mean())),
        ("2y − 1 turns", robust(lambda w, b, x, y, eps, m: psi((2 * y - 1) * (x @ w + b) - eps * w.abs().sum()).mean())),
        ("every image with every label", robust(lambda w, b, x, y, eps, m: psi(y * (x @ w[:, None] + b) - eps * w.abs().sum()).mean())),
        ("exp overflows", robust(lambda w, b, x, y, eps, m: torch.log(1 + torch.exp(eps * w.abs().sum() - m)).mean())),
        ("exp overflows", robust(lambda w, b, x, y, eps, m: -torch.log(torch.sigmoid(m - eps * w.abs().sum())).mean())),
        ("exp overflows", robust(lambda w, b, x, y, eps, m: torch.exp(eps * w.abs().sum() - m).clamp(max=1e6).log1p().mean())),
        ("the norm is a constant", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.detach().abs().sum()).mean())),
        ("the norm is a constant", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().sum().item()).mean())),
        ("does not reach w and b", robust(lambda w, b, x, y, eps, m: psi(y * (x @ w + b.item()) - eps * w.abs().sum()).mean())),
        ("no gradient reaches the weights", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().sum()).mean().detach())),
        ("you return a plain number", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().sum()).mean().item())),
        ("has shape (6,) and should be one number", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.abs().sum()))),
        ("for the test images you return", robust(lambda w, b, x, y, eps, m: psi(m - eps * w.square().sum()).mean())),
        ("the loss is nan", robust(lambda w, b, x, y, eps, m: torch.log(m).mean())),
        ("not list", robust(lambda w, b, x, y, eps, m: [psi(m)])),
        ("w.grad is filled", backward_first),
    ],
    "adversarial_loss": [
        ("the clean loss. Give", lambda model, x, y, attack: F.cross_entropy(model(x), y)),
        ("the clean loss. Give", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x), y))),
        ("the model's own prediction", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv), model(x).argmax(1)))),
        ("the model's own prediction", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv), model(x_adv).argmax(1)))),
        ("the sum over the images", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv), y, reduction="sum"))),
        ("the sign is wrong", attacked(lambda model, x_adv, x, y: -F.cross_entropy(model(x_adv), y))),
        ("is mixed in", attacked(lambda model, x_adv, x, y: (F.cross_entropy(model(x_adv), y) + F.cross_entropy(model(x), y)) / 2)),
        ("is mixed in", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(torch.cat([x, x_adv])), torch.cat([y, y])))),
        ("the clean loss is added", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv), y) + F.cross_entropy(model(x), y))),
        ("applies the softmax itself", attacked(lambda model, x_adv, x, y: of_softmax(model(x_adv), y))),
        ("other labels than y", lambda model, x, y, attack: F.cross_entropy(model(attack(model, x, model(x).argmax(1))), y)),
        ("other labels than y", lambda model, x, y, attack: F.cross_entropy(model(attack(model, x, (y + 1) % 10)), y)),
        ("other images than x", lambda model, x, y, attack: F.cross_entropy(model(attack(model, attack(model, x, y), y)), y)),
        ("never called", lambda model, x, y, attack: F.cross_entropy(model(x + 0.1), y)),
        ("on the attacked images is", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv), y.flip(0)))),
        ("on the attacked images is", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv - x), y))),
        ("no gradient reaches the weights", without_a_graph),
        ("no gradient reaches the weights", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv).detach(), y))),
        ("you return a plain number", attacked(lambda model, x_adv, x, y: F.cross_entropy(model(x_adv), y).item())),
        ("has shape (6,) and should be one number", attacked(lambda model, x_adv, x, y: ce(model(x_adv), y))),
        ("has shape (6, 1, 8, 8)", attacked(lambda model, x_adv, x, y: x_adv)),
        ("Is something detached", frozen(adversarial_loss)),
    ],
    "gradient_penalty": [
        ("the penalty is missing", penalised(lambda losses, g, lam: losses.mean())),
        ("the cross-entropy itself is missing", penalised(lambda losses, g, lam: lam * g.square().sum(1).mean())),
        ("λ is missing", penalised(lambda losses, g, lam: losses.mean() + g.square().sum(1).mean())),
        ("λ is at the wrong term", penalised(lambda losses, g, lam: lam * losses.mean() + g.square().sum(1).mean())),
        ("the penalty has the wrong sign", penalised(lambda losses, g, lam: losses.mean() - lam * g.square().sum(1).mean())),
        ("the norm is not squared", penalised(lambda losses, g, lam: losses.mean() + lam * g.norm(dim=1).mean())),
        ("the gradient is that of the mean loss", penalised(lambda losses, g, lam: losses.mean() + lam * (g / 6).square().sum(1).mean())),
        ("the gradient is that of the mean loss", penalised(lambda losses, g, lam: losses.mean() + lam * (g / 6).square().sum())),
        ("the penalty is the sum over the images", penalised(lambda losses, g, lam: losses.mean() + lam * g.square().sum())),
        ("the mean over the pixels too", penalised(lambda losses, g, lam: losses.mean() + lam * g.square().mean())),
        ("that is the L1 norm; ", penalised(lambda losses, g, lam: losses.mean() + lam * g.abs().sum(1).mean())),
        ("that is the L1 norm, squared", penalised(lambda losses, g, lam: losses.mean() + lam * g.abs().sum(1).square().mean())),
        ("one norm over the whole batch", penalised(lambda losses, g, lam: losses.mean() + lam * g.norm())),
        ("the cross-entropy is the sum", penalised(lambda losses, g, lam: losses.sum() + lam * g.square().sum(1).mean())),
        ("both terms are sums", penalised(lambda losses, g, lam: losses.sum() + lam * g.square().sum())),
        ("the gradient of the weights", of_the_weights("mean")),
        ("the gradient of the weights", of_the_weights("sum")),
        ("applies the softmax itself", penalised(lambda losses, g, lam: losses.mean() + lam * g.square().sum(1).mean(), softmax_ce)),
        (
            "learn nothing from the penalty",
            penalised(lambda losses, g, lam: losses.mean() + lam * g.square().sum(1).mean(), retain_graph=True),
        ),
        ("learn nothing from the penalty", penalised(lambda losses, g, lam: losses.mean() + lam * g.detach().square().sum(1).mean())),
        ("used up its graph", penalised(lambda losses, g, lam: losses.mean() + lam * g.square().sum(1).mean(), create_graph=False)),
        ("must learn from both terms", penalised(lambda losses, g, lam: losses.mean().detach() + lam * g.square().sum(1).mean())),
        ("no gradient reaches the weights", penalised(lambda losses, g, lam: (losses.mean() + lam * g.square().sum(1).mean()).detach())),
        ("you return a plain number", penalised(lambda losses, g, lam: (losses.mean() + lam * g.square().sum(1).mean()).item())),
        ("has shape (6,) and should be one number", penalised(lambda losses, g, lam: losses + lam * g.square().sum(1))),
        ("for the test images the loss is", penalised(lambda losses, g, lam: losses.mean() + lam / 2 * g.square().sum(1).mean())),
        ("for the test images the loss is", lambda model, x, y, lam: gradient_penalty(model, x, y.flip(0), lam)),
        (".grad is filled", through_backward),
        ("must ask for a gradient before", lambda model, x, y, lam: torch.autograd.grad(F.cross_entropy(model(x), y), x)[0].norm()),
    ],
    "adv_alpha_step": [
        ("a step is nan or zero", alpha_step(own=None)),
        ("a step is nan or zero", alpha_step(own=0)),
        ("a step is nan or zero", alpha_step(lambda r, distance, eps: eps * r / r.norm(dim=1, keepdim=True), own=None)),
        ("the way back to class y", alpha_step(lambda r, distance, eps: -eps * F.normalize(r, dim=1))),
        ("that raises α_I", without_own),
        ("that only lowers α_y", lambda alpha, T, y, eps: -eps * F.normalize(T[torch.arange(len(y)), y], dim=1)),
        ("the most probable other class", by_probability),
        ("the most probable other class", alpha_step(power=0)),
        ("the class furthest away", alpha_step(take=torch.argmax, own=-torch.inf)),
        ("not by its square", alpha_step(power=2)),
        ("the minimal perturbation", alpha_step(lambda r, distance, eps: distance * F.normalize(r, dim=1))),
        ("the step has length eps", alpha_step(lambda r, distance, eps: distance * r)),
        ("T_I − T_y as it is", alpha_step(lambda r, distance, eps: r)),
        ("that is eps times", alpha_step(lambda r, distance, eps: eps * r)),
        ("eps is missing", alpha_step(lambda r, distance, eps: F.normalize(r, dim=1))),
        ("one norm over the whole batch", alpha_step(lambda r, distance, eps: eps * r / r.norm())),
        ("that is the sign", alpha_step(lambda r, distance, eps: eps * r.sign())),
        ("the steps have lengths 1.4 to 1.4", alpha_step(lambda r, distance, eps: 2 * eps * F.normalize(r, dim=1))),
        ("not the direction", alpha_step(lambda r, distance, eps: eps * F.normalize(r.flip(1), dim=1))),
        ("for y; where the model is wrong", alpha_step(spoil=lambda alpha, y: (alpha, alpha.argmax(1)))),
        ("already misclassified", paper_s_r),
        ("already misclassified", alpha_step(take=lambda distance, dim: distance.abs().argmin(dim))),
        ("has shape (6, 5, 7)", lambda alpha, T, y, eps: T),
        ("changed its input", subtracts_in_place),
    ],
    "lwa_loss": [
        ("the step goes down", lwa(lambda g, c: -c * unit(g))),
        ("the clean loss; take it", lwa(lambda g, c: 0 * g)),
        ("is mixed in", lwa_mixed(0.5, 0.5)),
        ("the clean loss is added", lwa_mixed(1, 1)),
        ("you clip", lwa_clipped),
        ("one norm over the whole batch", lwa(lambda g, c: c * g / g.norm())),
        ("the sign step, of length c", lwa(lambda g, c: c * unit(g.sign()))),
        ("a sign step in L∞", lwa(lambda g, c: c * g.sign())),
        ("not divided by its length", lwa(lambda g, c: c * len(g) * g)),
        ("not divided by its length", lwa(lambda g, c: c * g)),
        ("c is missing", lwa(lambda g, c: unit(g))),
        ("divides by the largest entry", lwa(lambda g, c: c * max_normalised(g))),
        ("divides by the L1 norm", lwa(lambda g, c: c * g / each(g.flatten(1).abs().sum(1)))),
        ("divides by the squared norm", lwa(lambda g, c: c * g * len(g) / each((len(g) * g).flatten(1).square().sum(1)))),
        ("the sum over the images", lwa_mixed(6, 0)),
        ("the sign is wrong", lwa_mixed(-1, 0)),
        ("the gradient is that of the predicted label", lwa_with(lambda model, x, y: gradient(model, x, model(x).argmax(1)))),
        ("the model's own prediction", lwa_of_prediction),
        ("applies the softmax itself", lwa_with(lambda model, x, y: gradient(model, x, y, of_softmax))),
        ("applies the softmax itself", lwa_with(gradient, of_softmax)),
        ("applies the softmax itself", lwa_with(lambda model, x, y: gradient(model, x, y, of_softmax), of_softmax)),
        ("add it to x", lambda model, x, y, c: F.cross_entropy(model(c * unit(gradient(model, x, y))), y)),
        ("the loss at x + c", lwa_with(lambda model, x, y: gradient(model, x, y.flip(0)))),
        ("also flows through g", lwa_through_g),
        ("at a fixed perturbation", frozen(lwa_loss)),
        ("no gradient reaches the weights", lambda *arguments: lwa_loss(*arguments).detach()),
        ("you return a plain number", lambda *arguments: lwa_loss(*arguments).item()),
        ("has shape (6,) and should be one number", lwa(lambda g, c: c * unit(g), ce)),
        ("fits rows of pixels as v[:, None]", lwa(lambda g, c: c * g / g.flatten(1).norm(dim=1))),
        (".grad is filled", lwa_backward),
        ("must ask for a gradient before", lambda model, x, y, c: torch.autograd.grad(F.cross_entropy(model(x), y), x)[0].norm()),
        ("the loss at x + c", lambda model, x, y, c: F.cross_entropy(model(attacks.fgsm(model, x, y, eps=c)), y)),
    ],
    "dv_bound": [
        ("the log of the SUM of exp", lambda a, b: a.mean() - b.logsumexp(0)),
        ("the log of the SUM of exp", lambda a, b: a.mean() - b.exp().sum().log()),
        ("log K has the wrong sign", lambda a, b: a.mean() - b.logsumexp(0) - math.log(len(b))),
        ("the log is inside the mean", lambda a, b: a.mean() - b.exp().log().mean()),
        ("the log is inside the mean", lambda a, b: a.mean() - b.mean()),
        ("the log is missing", lambda a, b: a.mean() - b.exp().mean()),
        ("another bound", lambda a, b: a.mean() - (b - 1).exp().mean()),
        ("the sign is turned", lambda a, b: -dv_bound(a, b)),
        ("the second term is subtracted", lambda a, b: a.mean() + lme(b)),
        ("the arguments are swapped", lambda a, b: dv_bound(b, a)),
        ("counts in bits", lambda a, b: dv_bound(a, b) / math.log(2)),
        ("counts in bits", lambda a, b: a.mean() - b.exp().mean().log2()),
        ("exp and log are in both terms", lambda a, b: lme(a) - lme(b)),
        ("a sum over the samples", lambda a, b: a.sum() - lme(b)),
        ("only the joint term", lambda a, b: a.mean()),
        ("only the shuffled term", lambda a, b: -lme(b)),
        ("add it again after log", lambda a, b: a.mean() - (b - b.max()).exp().mean().log()),
        ("1000 exp overflows", lambda a, b: a.mean() - b.exp().mean().log()),
        ("1000 exp overflows", lambda a, b: a.mean() - b.logsumexp(0).exp().div(len(b)).log()),
        ("−1000 every exp is 0", lambda a, b: a.mean() - (b - b.relu().max()).exp().mean().log() - b.relu().max()),
        ("for 4 samples with critic values around 999", lambda a, b: a.mean() - b.logsumexp(0) + math.log(6)),
        ("for 4 samples with critic values around 999", lambda a, b: a.mean() - b.clamp(max=80).exp().mean().log()),
        ("for 5 samples with critic values around -1001", lambda a, b: a.mean() - lme(b.clamp(min=-80))),
        ("no gradient reaches the weights", lambda a, b: dv_bound(a, b).detach()),
        ("Is something detached", lambda a, b: dv_bound(a, b.detach())),
        ("Is something detached", lambda a, b: dv_bound(a.detach(), b)),
        ("you return a plain number", lambda a, b: dv_bound(a, b).item()),
        ("has shape (6,) and should be one number", lambda a, b: a - lme(b)),
        ("not list", lambda a, b: [dv_bound(a, b)]),
        ("for the test values the bound is", lambda a, b: a.max() - lme(b)),
        ("changed its input", lambda a, b: a.mean() - b.exp_().mean().log()),
    ],
    "projected_information": [
        ("sign is turned", lambda x, x_adv, size: -projected_information(x, x_adv, size)),
        ("one coordinate", lambda x, x_adv, size: projected_information(x, x_adv, 1)),
        ("the ½ is missing", lambda x, x_adv, size: 2 * projected_information(x, x_adv, size)),
        ("enters squared", lambda x, x_adv, size: -size / 2 * torch.log(1 - torch.cosine_similarity(x.flatten(1), x_adv.flatten(1)))),
        ("counts in bits", lambda x, x_adv, size: projected_information(x, x_adv, size) / math.log(2)),
        (
            "correlation of the pixels",
            lambda x, x_adv, size: projected_information(*(z - z.mean((1, 2, 3), keepdim=True) for z in (x, x_adv)), size),
        ),
        ("whole batch", lambda x, x_adv, size: projected_information(x.reshape(1, -1), x_adv.reshape(1, -1), size).expand(len(x))),
        ("not the number of pixels", lambda x, x_adv, size: projected_information(x, x_adv, x[0].numel())),
        ("you return", lambda x, x_adv, size: projected_information(x, x_adv, size) + 0.1),
        ("shape", lambda x, x_adv, size: projected_information(x, x_adv, size).mean()),
    ],
    "hinge": [
        ("y itself among them", lambda z, y: (own_logit(z, y) - z.amax(1)).clamp(min=0)),
        ("never positive", lambda z, y: own_logit(z, y) - z.amax(1)),
        ("cuts the wrong side", lambda z, y: leads(z, y).clamp(max=0)),
        ("the sign is turned", lambda z, y: z.amax(1) - own_logit(z, y)),
        ("f⁺ = max(0, f) is 0 there", leads),
        ("the sign is turned", lambda z, y: (-leads(z, y)).relu()),
        ("And f⁺ = max(0, f)", lambda z, y: -leads(z, y)),
        ("set to 0, not left out", lambda z, y: leads(z, y, 0).relu()),
        ("set to 0, not left out", lambda z, y: (own_logit(z, y) - (z * (1 - F.one_hot(y, 4))).amax(1)).relu()),
        ("those are probabilities", lambda z, y: hinge(z.softmax(1), y)),
        ("those are probabilities", lambda z, y: leads(z.softmax(1), y)),
        ("the lead of the predicted class", lambda z, y: hinge(z, z.argmax(1))),
        ("the smallest of the others", lambda z, y: (own_logit(z, y) - z.scatter(1, y[:, None], torch.inf).amin(1)).relu()),
        ("the mean of the others", lambda z, y: (own_logit(z, y) - (z.sum(1) - own_logit(z, y)) / 3).relu()),
        ("the hinge loss of a training", lambda z, y: (1 - leads(z, y)).relu()),
        ("cut off at 1", lambda z, y: leads(z, y).clamp(0, 1)),
        ("the logit of y alone", own_logit),
        ("the logit of y alone", lambda z, y: own_logit(z, y).relu()),
        ("one number for the whole batch", lambda z, y: hinge(z, y).mean()),
        ("one number for the whole batch", lambda z, y: hinge(z, y).sum().item()),
        ("the mean over the batch", lambda z, y: hinge(z, y).mean().expand(len(y))),
        ("the mean over the batch", lambda z, y: leads(z, y).mean().relu().expand(len(y))),
        ("there is nan", lambda z, y: (own_logit(z, y) - (z - torch.inf * F.one_hot(y, 4)).amax(1)).relu()),
        ("take .values", lambda z, y: z.scatter(1, y[:, None], -torch.inf).max(1)),
        ("has shape (5, 1) and should have (5,)", lambda z, y: hinge(z, y)[:, None]),
        ("has shape (5, 4)", lambda z, y: z),
        ("changed its input", hinge_in_place),
        ("no gradient reaches the logits", lambda z, y: hinge(z.detach(), y)),
        ("must both move", lambda z, y: (own_logit(z, y) - z.detach().scatter(1, y[:, None], -torch.inf).amax(1)).relu()),
        ("for logits 3.2, 1.1, 0.4, -0.6 and the true class 0 you return 4.2 and not 2.1", lambda z, y: 2 * hinge(z, y)),
        ("for logits -3, -1.1, -2.2, -0.7 and the true class 0", lambda z, y: hinge(z, y) + (y == 0) * (z[:, 0] < 0)),
    ],
    "dual_step": [
        ("nothing changed", lambda c, f, t, beta: c),
        ("c never forgets: the decay (1 − β / t^{1/4}) is missing.\n", dual(lambda t, beta: 1)),
        ("is missing. And f must be clipped", dual(lambda t, beta: 1, lambda f, t, beta: beta * f)),
        ("is missing. And f must be clipped", lambda c, f, t, beta: c + beta * f),
        ("below what the decay alone gives", dual(slow, lambda f, t, beta: beta * f)),
        ("below what the decay alone gives", lambda c, f, t, beta: slow(t, beta) * c + beta * f),
        ("β / t dies out too fast", dual(lambda t, beta: 1 - beta / t)),
        ("t is missing in the decay", dual(lambda t, beta: 1 - beta)),
        ("t is missing in the decay", dual(lambda t, beta: 1 - beta / t ** (1 // 4))),
        ("reads t**1//4 as", dual(lambda t, beta: 1 - beta / (t**1 // 4))),
        ("reads t**1/4 as", dual(lambda t, beta: 1 - beta / (t**1 / 4))),
        ("the square root of t", dual(lambda t, beta: 1 - beta / t**0.5)),
        ("the fourth power of t", dual(lambda t, beta: 1 - beta / t**4)),
        ("t^{1/4} divides β", dual(lambda t, beta: 1 - beta * t**0.25)),
        ("the brackets", dual(lambda t, beta: (1 - beta) / t**0.25)),
        ("the power belongs to t alone", dual(lambda t, beta: (1 - beta / t) ** 0.25)),
        ("β is missing in the decay", dual(lambda t, beta: 1 - 1 / t**0.25)),
        ("counts from 1 already", dual(lambda t, beta: slow(t + 1, beta))),
        ("the decay has the wrong sign", dual(lambda t, beta: 1 + beta / t**0.25)),
        ("β is missing before f⁺", dual(slow, lambda f, t, beta: f.relu())),
        ("with the full β", dual(slow, lambda f, t, beta: beta / t**0.25 * f.relu())),
        ("the decay multiplies f⁺ too", lambda c, f, t, beta: slow(t, beta) * (c + beta * f.relu())),
        ("it must grow there: + β f⁺.", dual(slow, lambda f, t, beta: -beta * f.relu())),
        ("it must grow there: + β f⁺.", lambda c, f, t, beta: slow(t, beta) * c - beta * f.relu()),
        ("it must grow there: + β f⁺, with", dual(slow, lambda f, t, beta: -beta * f)),
        ("only the decay is there", dual(slow, lambda f, t, beta: 0)),
        ("the absolute value of f", dual(slow, lambda f, t, beta: beta * f.abs())),
        ("averaged over the batch", dual(slow, lambda f, t, beta: beta * f.relu().mean())),
        ("the projection onto c ≥ 0 is missing", lambda c, f, t, beta: slow(t, beta) * c + beta * f.relu()),
        ("you clip the decay at 0", dual(lambda t, beta: max(0, slow(t, beta)))),
        ("you clip the decay at 0", lambda c, f, t, beta: (slow(t, beta) * c).relu() + beta * f.relu()),
        ("an absolute value", lambda c, f, t, beta: (slow(t, beta) * c + beta * f.relu()).abs()),
        ("an absolute value", lambda c, f, t, beta: (slow(t, beta) * c).abs() + beta * f.relu()),
        (
            "for c = 0, f = 0.9, t = 10 and beta = 0.3 the next c is 0.27; you return 0.",
            lambda c, f, t, beta: dual_step(c, f, t, beta).where(c > 0, 0.0),
        ),
        ("for β = 1.5 and t = 1 the next c is", lambda c, f, t, beta: dual_step(c, f, t, min(beta, 1))),
        ("changed its input", dual_in_place),
        ("one number for the whole batch", lambda c, f, t, beta: dual_step(c, f, t, beta).mean()),
        ("has shape (6, 6)", lambda c, f, t, beta: slow(t, beta) * c[:, None] + beta * f.relu()),
        ("c is a list", lambda c, f, t, beta: dual_step(c, f, t, beta).tolist()),
    ],
    "uae_criterion": [
        ("the target is x_adv in the first term", uae(lambda x, x_adv, a, b: squares(x_adv - a) - squares(x - b))),
        ("the target is x_adv in both terms", uae(lambda x, x_adv, a, b: squares(x_adv - a) - squares(x_adv - b))),
        ("the target of the second term", uae(lambda x, x_adv, a, b: squares(x - a) - squares(x_adv - b))),
        ("x and x_adv are swapped", lambda model, x, x_adv: uae_criterion(model, x_adv, x)),
        ("how well x_adv comes back", uae(lambda x, x_adv, a, b: squares(x_adv - a))),
        ("the sign is turned: f", uae(lambda x, x_adv, a, b: squares(x - b) - squares(x - a))),
        ("the mean over the pixels", uae(lambda x, x_adv, a, b: (x - a).square().mean((1, 2, 3)) - (x - b).square().mean((1, 2, 3)))),
        ("And the sign is turned", uae(lambda x, x_adv, a, b: (x - b).square().mean((1, 2, 3)) - (x - a).square().mean((1, 2, 3)))),
        ("not averaged", uae(lambda x, x_adv, a, b: (x_adv - a).square().mean((1, 2, 3)) - (x - b).square().mean((1, 2, 3)))),
        ("the second term is missing", uae(lambda x, x_adv, a, b: squares(x - a))),
        ("the first term is missing", uae(lambda x, x_adv, a, b: squares(x - b))),
        ("the terms are added", uae(lambda x, x_adv, a, b: squares(x - a) + squares(x - b))),
        ("that is f⁺", lambda *arguments: uae_criterion(*arguments).relu()),
        ("those are the norms", uae(lambda x, x_adv, a, b: squares(x - a).sqrt() - squares(x - b).sqrt())),
        ("absolute differences", uae(lambda x, x_adv, a, b: distances(a, x).sum(1) - distances(b, x).sum(1))),
        ("compares the two reconstructions", uae(lambda x, x_adv, a, b: squares(a - b))),
        ("the autoencoder is missing", uae(lambda x, x_adv, a, b: squares(x - x_adv))),
        ("one number for the whole batch", lambda *arguments: uae_criterion(*arguments).sum()),
        ("one number for the whole batch", uae(lambda x, x_adv, a, b: F.mse_loss(a, x) - F.mse_loss(b, x))),
        ("the mean over the batch", lambda *arguments: uae_criterion(*arguments).mean().expand(6)),
        ("the sum over the batch", lambda *arguments: uae_criterion(*arguments).sum().expand(6)),
        ("the second term is averaged", uae(lambda x, x_adv, a, b: squares(x - a) - squares(x - b).mean())),
        ("the first term is averaged", uae(lambda x, x_adv, a, b: squares(x - a).mean() - squares(x - b))),
        ("no gradient reaches x_adv", lambda model, x, x_adv: uae_criterion(model, x, x_adv.detach())),
        ("no gradient reaches x_adv", lambda *arguments: uae_criterion(*arguments).detach()),
        ("no gradient reaches x_adv", torch.no_grad()(uae_criterion)),
        ("no gradient reaches x_adv", uae(lambda x, x_adv, a, b: squares(x - a).detach() - squares(x - b))),
        ("is not that of ‖x − Φ(x_adv)‖²", lambda model, x, x_adv: uae_criterion(model, x, (x_adv + x_adv.detach()) / 2)),
        ("for the first test image", uae(lambda x, x_adv, a, b: (squares(x - a) - squares(x - b)) / 2)),
        ("has shape (6, 1, 8, 8)", uae(lambda x, x_adv, a, b: (x - a).square() - (x - b).square())),
        (".grad is filled", uae_backward),
        ("in place of x +=", lambda model, x, x_adv: squares(x - model(x_adv.clamp_(0, 1)))),
    ],
    "matched_epochs": [
        ("the steps are what must match", lambda n, m, epochs, batch: epochs),
        ("round up, so that no step", lambda n, m, epochs, batch: epochs * math.ceil(m / batch) / math.ceil(n / batch)),
        ("however small", lambda n, m, epochs, batch: math.ceil(epochs * m / n)),
        ("one too few", lambda n, m, epochs, batch: epochs * -(-m // batch) // -(-n // batch)),
        ("it is 20", lambda n, m, epochs, batch: epochs * -(-m // batch)),
        ("whole number", lambda n, m, epochs, batch: str(epochs)),
    ],
    "bounded_noise": [
        ("nothing happened", lambda raw, eps: raw),
        ("beyond the bound clamp has gradient 0", lambda raw, eps: raw.clamp(-eps, eps)),
        ("beyond the bound clamp has gradient 0", lambda raw, eps: eps * F.hardtanh(raw)),
        ("beyond the bound clamp has gradient 0", lambda raw, eps: raw.tanh().clamp(-eps, eps)),
        ("only become brighter. The noise needs both signs", lambda raw, eps: eps * raw.sigmoid()),
        ("and eps is missing", lambda raw, eps: raw.sigmoid()),
        ("within ±½", lambda raw, eps: raw.sigmoid() - 0.5),
        ("only ε/2", lambda raw, eps: eps * (raw.sigmoid() - 0.5)),
        ("ε · tanh(raw / 2)", lambda raw, eps: eps * (2 * raw.sigmoid() - 1)),
        ("eps is missing: tanh alone", lambda raw, eps: raw.tanh()),
        ("eps stands outside: ε · tanh(raw)", lambda raw, eps: torch.tanh(eps * raw)),
        ("eps is there twice", lambda raw, eps: eps * torch.tanh(eps * raw)),
        ("almost a sign", lambda raw, eps: eps * torch.tanh(raw / eps)),
        ("you divide by eps", lambda raw, eps: raw.tanh() / eps),
        ("the sign is turned", lambda raw, eps: -eps * raw.tanh()),
        ("that has no bound", lambda raw, eps: eps * raw),
        ("but it is flat", lambda raw, eps: eps * raw.sign()),
        ("the largest entry of the batch", lambda raw, eps: eps * raw / raw.abs().max()),
        ("a pixel moves by 0.6, and eps is 0.3", lambda raw, eps: 2 * eps * (raw / 2).tanh().round()),
        ("for raw = -4 and eps = 0.3 you return -0.24 and not -0.3", lambda raw, eps: eps * F.softsign(raw)),
        ("Is eps written as a number?", lambda raw, eps: 0.3 * raw.tanh()),
        ("has shape (4, 9)", lambda raw, eps: eps * raw.tanh().flatten(1)),
        ("has shape (1, 3, 3)", lambda raw, eps: eps * raw.tanh().mean(0)),
        ("is a ndarray", lambda raw, eps: eps * raw.tanh().numpy()),
        ("changed its input", hyperbolic_in_place),
        ("no gradient reaches raw", lambda raw, eps: eps * raw.detach().tanh()),
        ("no gradient reaches raw", torch.no_grad()(bounded_noise)),
        ("no gradient reaches raw", lambda raw, eps: eps * torch.tanh(raw.data)),
        ("is not that of ε · tanh(raw)", lambda raw, eps: raw + (eps * raw.tanh() - raw).detach()),
        ("holds nan", lambda raw, eps: eps * (raw / 0).tanh() * 0 / 0),
    ],
    "pseudo_update": [
        ("still where they were", update(lambda p, g, lr, n: 1 * p)),
        ("still where they were", lambda model, *_: dict(model.named_parameters())),
        ("the step goes up", update(lambda p, g, lr, n: p + lr * g)),
        ("N times too long", update(loss=lambda z, y: F.cross_entropy(z, y, reduction="sum"))),
        ("And the sign is wrong", update(lambda p, g, lr, n: p + lr * n * g)),
        ("lr is missing", update(lambda p, g, lr, n: p - g)),
        ("you divide by lr", update(lambda p, g, lr, n: p - g / lr)),
        ("those are the gradients", update(lambda p, g, lr, n: g)),
        ("add it to the parameters", update(lambda p, g, lr, n: -lr * g)),
        ("subtract it from the parameters", update(lambda p, g, lr, n: lr * g)),
        ("a step along the sign", update(lambda p, g, lr, n: p - lr * g.sign())),
        ("applies the softmax itself", update(loss=of_softmax)),
        ("the model's own prediction", update(label=lambda logits, y: logits.argmax(1))),
        ("output.bias is not p − lr · g", changed_entry("output.bias", lambda p: p + 1)),
        ("dense1.weight is not p − lr · g", update(label=lambda logits, y: (y + 1) % 10)),
        (
            "It has not moved",
            lambda model, *arguments: {**pseudo_update(model, *arguments), "dense1.bias": model.dense1.bias},
        ),
        ("no gradient reaches x_poisoned", update(retain_graph=True)),
        ("no gradient reaches x_poisoned", update(lambda p, g, lr, n: p - lr * g.detach())),
        ("no gradient reaches x_poisoned", update(lambda p, g, lr, n: (p - lr * g).detach())),
        ("no gradient reaches x_poisoned", lambda model, x, y, lr: pseudo_update(model, x.detach(), y, lr)),
        ("no gradient reaches x_poisoned", on_a_copy),
        ("only part of the gradient", changed_entry("output.bias", torch.Tensor.detach)),
        ("only part of the gradient", changed_entry("dense1.weight", torch.Tensor.detach)),
        ("the graph is used up", used_up),
        ("raises RuntimeError: another reason", changed_entry("output.bias", refuses_gradients)),
        ("from the very tensor whose gradient you ask for", loss_of_a_copy),
        ("weights have changed. The step is only worked out", by_optimizer),
        ("weights have changed. The step is only worked out", writes_into_the_model),
        (".grad is filled: loss.backward() reaches them too. torch.autograd.grad(loss, params, create_graph=True)", backward_and_grad),
        ("filled the generator's .grad too", backward_and_tidy),
        ("take dict(model.named_parameters())", state_dict_update),
        ("take dict(model.named_parameters())", torch.no_grad()(pseudo_update)),
        ("you return a list; return a dict", lambda *arguments: list(pseudo_update(*arguments).values())),
        ("you return a tuple; return a dict", lambda *arguments: tuple(pseudo_update(*arguments).items())),
        ("you return a Sequential", lambda model, *_: torch.nn.Sequential(copy.deepcopy(model))),
        ("You return 0, 1, 2, 3", lambda *arguments: dict(enumerate(pseudo_update(*arguments).values()))),
        ("You return none", lambda *_: {}),
        ("output.bias should be a tensor of shape (10,); yours is ()", changed_entry("output.bias", torch.Tensor.sum)),
        ("output.bias should be a tensor of shape (10,); yours is list", changed_entry("output.bias", torch.Tensor.tolist)),
        ("changed its input", lambda model, x, y, lr: pseudo_update(model, x.mul_(0.9), y, lr)),
    ],
    "next_label": [
        ("nothing changed", lambda y, classes: y),
        ("there is no class 10", lambda y, classes: y + 1),
        ("Look at the brackets", lambda y, classes: y + 1 % classes),
        ("the last class keeps its label", lambda y, classes: (y + 1).clamp(max=classes - 1)),
        ("the class before", lambda y, classes: (y - 1) % classes),
        ("and from the last to 0", lambda y, classes: y - 1),
        ("there is no class 10", lambda y, classes: y % classes + 1),
        ("the mirror image", lambda y, classes: classes - 1 - y),
        ("along the batch", lambda y, classes: y.roll(1)),
        ("along the batch", lambda y, classes: y.roll(-1)),
        ("the remainder is of classes − 1", lambda y, classes: (y + 1) % (classes - 1)),
        ("there is no class 10", lambda y, classes: (y + 1) % (classes + 1)),
        ("that counts ten classes, and here there are 4", lambda y, classes: (y + 1) % 10),
        ("guessed from the labels of this batch", lambda y, classes: (y + 1) % (y.max() + 1)),
        ("guessed from the labels of this batch", lambda y, classes: (y + 1) % len(y.unique()) if classes < 10 else (y + 1) % 10),
        ("changed its input", next_in_place),
        ("changed its input", lambda y, classes: y.add_(1).remainder_(classes)),
        ("the labels are float32", lambda y, classes: (y + 1.0) % classes),
        ("the labels are int32", lambda y, classes: ((y + 1) % classes).int()),
        ("those are one-hot rows", lambda y, classes: F.one_hot((y + 1) % classes, classes)),
        ("has shape (7, 1)", lambda y, classes: ((y + 1) % classes)[:, None]),
        ("is a list", lambda y, classes: [(label + 1) % classes for label in y.tolist()]),
        ("with 10 classes, label 3 becomes 4; you return 5", lambda y, classes: (y + 2) % classes),
        ("with 4 classes, label 2 becomes 3; you return 4", lambda y, classes: (y + 1) % classes + (classes == 4) * (y == 2)),
    ],
    "share_poisoned": [
        ("you always take the first 8", places(lambda n, k, generator: torch.arange(k))),
        ("you always take the first 8", places(lambda n, k, generator: torch.randperm(k, generator=generator))),
        ("you always take the last 8", places(lambda n, k, generator: torch.arange(n - k, n))),
        ("whatever the generator", places(seeded_again)),
        ("whatever the generator", places(lambda n, k, generator: torch.linspace(0, n - 1, k).long())),
        ("whatever the generator", places(lambda n, k, generator: drawn(n, k, torch.Generator().manual_seed(0)))),
        ("the chance comes from elsewhere", places(lambda n, k, generator: torch.randperm(n)[:k])),
        ("the chance comes from elsewhere", places(lambda n, k, generator: random.sample(range(n), k))),
        ("only its seed is read", places(seed_only)),
        ("always lie side by side", places(lambda n, k, g: (torch.arange(k) + torch.randint(n, (1,), generator=g)) % n)),
        ("image 19 was never chosen", places(lambda n, k, g: drawn(n - (k < n), k, g))),
        ("a coin for each image", places(lambda n, k, g: torch.rand(n, generator=g) < k / n)),
        ("a coin for each image", places(lambda n, k, g: torch.rand(n) < k / n)),
        ("a place is drawn twice", places(lambda n, k, g: torch.randint(n, (k,), generator=g))),
        ("round to 8, where int() and // cut off", places(drawn, lambda share, n: int(share * n))),
        ("round(share · N) is 7; you poison 8", places(drawn, lambda share, n: math.ceil(share * n))),
        ("round(share · N) is 0; you poison 20", places(lambda n, k, g: torch.randperm(n, generator=g)[-k:])),
        ("round(share · N) is 20; you poison 19", places(drawn, lambda share, n: min(round(share * n), n - 1))),
        ("no image is poisoned", lambda x, *_: x),
        ("all images are poisoned", lambda x, x_poisoned, *_: x_poisoned),
        ("the other way round", lambda x, x_poisoned, share, generator: share_poisoned(x_poisoned, x, share, generator)),
        ("10 of 20 images are poisoned", places(drawn, lambda share, n: n // 2)),
        ("not each is at its place", rearranged(lambda n: torch.arange(n).flip(0))),
        ("not each is at its place", poisoned_first),
        ("not each is at its place", other_ones_place),
        ("20 images came in and 8 come out", lambda x, p, share, g: p[drawn(len(x), round(share * len(x)), g)]),
        ("20 images came in and 28 come out", lambda x, p, share, g: torch.cat([x, p[drawn(len(x), round(share * len(x)), g)]])),
        ("row 0 is neither", lambda x, x_poisoned, share, generator: (1 - share) * x + share * x_poisoned),
        ("no pixel is mixed", by_pixel),
        ("row 3 is neither x[3]", lambda *arguments: torch.cat([share_poisoned(*arguments)[:3], torch.full((17, 1, 8, 8), 0.5).double()])),
        ("changed its input", mixed_in_place),
        ("is a tuple", lambda *arguments: (share_poisoned(*arguments), 8)),
        ("is a list", lambda *arguments: list(share_poisoned(*arguments))),
        ("has shape (20, 64)", lambda *arguments: share_poisoned(*arguments).flatten(1)),
        ("has shape (8, 64)", lambda x, x_poisoned, *_: x_poisoned[:8].flatten(1)),
    ],
    "matching_loss": [
        ("that is the cosine itself", joined(cos)),
        ("the direction is right, the number is not", joined(lambda u, v: -cos(u, v))),
        ("minimising cos − 1", joined(lambda u, v: cos(u, v) - 1)),
        ("minimising 1 + cos", joined(lambda u, v: 1 + cos(u, v))),
        ("a cosine for each tensor", tensorwise(lambda each: 1 - each.mean())),
        ("a cosine for each tensor", tensorwise(lambda each: (1 - each).sum())),
        ("a cosine for each tensor", tensorwise(lambda each: 1 - each.sum())),
        ("into one vector first. And 1 − cos", tensorwise(torch.mean)),
        ("into one vector first. And 1 − cos", tensorwise(torch.sum)),
        ("only the first tensor", tensorwise(lambda each: 1 - each[0])),
        ("only the last tensor", tensorwise(lambda each: 1 - each[-1])),
        ("that is a distance", joined(lambda u, v: (u - v).square().sum())),
        ("that is a distance", joined(F.mse_loss)),
        ("that is a distance", joined(lambda u, v: (u - v).norm())),
        ("that is a distance", joined(lambda u, v: (u - v).abs().sum())),
        ("is not divided by ‖a‖ ‖b‖", joined(lambda u, v: 1 - u @ v)),
        ("make the loss fall. And 1 − cos", joined(torch.dot)),
        ("make the loss fall. And 1 − cos", joined(lambda u, v: -(u @ v))),
        ("only one of the two", joined(lambda u, v: 1 - u @ v / u.norm())),
        ("only one of the two", joined(lambda u, v: 1 - u @ v / v.norm())),
        ("only one of the two", joined(lambda u, v: 1 - u @ v / u.norm() ** 2)),
        ("only one of the two", joined(lambda u, v: 1 - u @ v / v.norm() ** 2)),
        ("Is a root missing?", joined(lambda u, v: 1 - u @ v / (u @ u) / (v @ v))),
        (
            "not the sum of the tensors' norms",
            lambda a, b: 1 - summed_products(a, b) / sum(p.norm() * q.norm() for p, q in zip(a, b, strict=True)),
        ),
        (
            "not the sum of the tensors' norms",
            lambda a, b: 1 - summed_products(a, b) / (sum(p.norm() for p in a) * sum(q.norm() for q in b)),
        ),
        ("the absolute value rewards", joined(lambda u, v: 1 - cos(u, v).abs())),
        ("the square rewards", joined(lambda u, v: 1 - cos(u, v) ** 2)),
        ("that is the angle", joined(lambda u, v: cos(u, v).acos())),
        ("a sum over the parameters", joined(lambda u, v: len(u) * (1 - cos(u, v)))),
        ("for the test gradients 1 − cos is", joined(lambda u, v: (1 - cos(u, v)) / 2)),
        ("1 − cos is 2; you return 1", joined(lambda u, v: 1 - cos(u, v).relu())),
        ("given as lists, 1 − cos is 0; you return", lambda a, b: matching_loss(a, b) + isinstance(b, list)),
        ("return one number for all parameters", lambda a, b: [1 - cos(p.flatten(), q.flatten()) for p, q in zip(a, b, strict=True)]),
        ("return one number for all parameters", tensorwise(lambda each: 1 - each)),
        ("return one number for all parameters", lambda a, b: 1 - F.cosine_similarity(a[0], b[0])),
        ("you return a plain number", lambda a, b: matching_loss(a, b).item()),
        ("no gradient reaches g_poison", lambda a, b: matching_loss(a, b).detach()),
        ("no gradient reaches g_poison", torch.no_grad()(matching_loss)),
        ("no gradient reaches g_poison", lambda a, b: matching_loss([p.detach() for p in a], b)),
        ("must both move", joined(lambda u, v: 1 - u @ v / (u.norm().detach() * v.norm()))),
        ("must both move", lambda a, b: matching_loss([*a[:-1], a[-1].detach()], b)),
        ("changed its input", normalises_in_place),
        ("changed the length of a list", empties_the_list),
    ],
    "min_min_step": [
        ("delta comes back as it went in", lambda model, x, delta, y, eps, step_size: delta.clone()),
        ("the noise of an adversary", noise(lambda x, d, g, eps, s: fits(x, d + s * g.sign(), eps))),
        ("the noise of an adversary", noise(lambda x, d, g, eps, s: (d + s * g.sign()).clamp(-eps, eps))),
        ("the noise of an adversary", noise(lambda x, d, g, eps, s: d + s * g.sign())),
        ("nothing brings delta back", noise(lambda x, d, g, eps, s: d - s * g.sign())),
        ("and eps is 0.1: clamp delta to ±eps", noise(lambda x, d, g, eps, s: (x + d - s * g.sign()).clamp(0, 1) - x)),
        ("x + delta leaves [0,1]", noise(lambda x, d, g, eps, s: (d - s * g.sign()).clamp(-eps, eps))),
        ("that is the image; return the noise", noise(lambda x, d, g, eps, s: x + minimised(x, d, g, eps, s))),
        ("And clamp x + delta to [0,1]", noise(lambda x, d, g, eps, s: x + (d - s * g.sign()).clamp(-eps, eps))),
        ("And clamp delta to ±eps", noise(lambda x, d, g, eps, s: (x + d - s * g.sign()).clamp(0, 1))),
        ("And clamp, to ±eps and to [0,1]", noise(lambda x, d, g, eps, s: x + d - s * g.sign())),
        ("the noise so far is forgotten", noise(lambda x, d, g, eps, s: fits(x, -s * g.sign(), eps))),
        ("that is the step alone", noise(lambda x, d, g, eps, s: -s * g.sign())),
        ("the gradient is taken at x;", noise(minimised, at=lambda x, delta: x)),
        ("the gradient is taken at delta alone", noise(minimised, at=lambda x, delta: delta)),
        ("that is the gradient itself", noise(lambda x, d, g, eps, s: fits(x, d - s * g, eps))),
        ("that is the gradient itself", noise(lambda x, d, g, eps, s: fits(x, d - s * len(x) * g, eps))),
        ("step_size is missing", noise(lambda x, d, g, eps, s: fits(x, d - g.sign(), eps))),
        ("that is a step of eps", noise(lambda x, d, g, eps, s: fits(x, d - eps * g.sign(), eps))),
        ("eps and step_size are exchanged", noise(lambda x, d, g, eps, s: minimised(x, d, g, s, eps))),
        ("clamped to ±step_size", noise(lambda x, d, g, eps, s: fits(x, d - s * g.sign(), s))),
        ("the negative half of the noise", noise(lambda x, d, g, eps, s: fits(x, (d - s * g.sign()).clamp(min=0), eps))),
        ("applies the softmax itself", noise(minimised, loss=of_softmax)),
        ("the predicted label", noise(minimised, label=lambda model, v, y: model(v).argmax(1))),
        ("pulls towards the next class", noise(minimised, label=lambda model, v, y: (y + 1) % 10)),
        ("the noise reaches 0.2, and eps is 0.1", noise(lambda x, d, g, eps, s: torch.full_like(x, 2 * eps))),
        ("x + delta reaches from 0.1 to 1.1", noise(lambda x, d, g, eps, s: torch.full_like(x, eps))),
        ("x + delta reaches from -0.1", noise(lambda x, d, g, eps, s: torch.full_like(x, -eps))),
        ("stays in its bounds, but", noise(lambda x, d, g, eps, s: fits(x, d - 2 * s * g.sign(), eps))),
        ("stays in its bounds, but", noise(lambda x, d, g, eps, s: torch.zeros_like(x))),
        (".grad is filled", noise_through_backward),
        ("weights have changed", victim_moves_too),
        ("now in train mode", noise_in_train_mode),
        ("changed its input", delta_in_place),
        ("switched requires_grad on", marks_delta),
        ("has shape (1, 8, 8)", lambda *arguments: min_min_step(*arguments).mean(0)),
        ("delta is a tuple", lambda model, x, *rest: (min_min_step(model, x, *rest), x)),
    ],
}


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """No student's own progress is touched."""
    monkeypatch.setenv("COURSE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def say(capsys):
    """Runs a check and returns what it prints."""

    def run(name, fn):
        getattr(check, name)(fn)
        return capsys.readouterr().out

    return run


def test_every_exercise_is_tested_here():
    names = [fn.__name__ for fn in RIGHT]
    assert names == list(check.EXERCISES) == list(WRONG)


@pytest.mark.parametrize("fn", RIGHT, ids=lambda fn: fn.__name__)
def test_right_answer_passes_and_is_remembered(fn, say):
    assert say(fn.__name__, fn).startswith(f"● {fn.__name__}: right. ")
    assert set(check.solved()) == {fn.__name__}


@pytest.mark.parametrize("name", ALSO_RIGHT)
def test_other_ways_to_be_right(name, say):
    assert say(name, ALSO_RIGHT[name]).startswith("● ")


@pytest.mark.parametrize(
    ("name", "phrase", "fn"),
    [pytest.param(name, phrase, fn, id=f"{name}-{phrase}") for name, cases in WRONG.items() for phrase, fn in cases],
)
def test_wrong_answer_gets_its_advice(name, phrase, fn, say):
    said = say(name, fn)
    assert said.startswith(f"○ {name}: ")
    assert phrase in said
    assert check.solved() == {}


@pytest.mark.parametrize("name", WITH_A_MODEL)
@pytest.mark.parametrize(
    ("spoil", "phrase"),
    [
        (lambda model, x: model.train(), "now in train mode"),
        (lambda model, x: model.output.bias.data.add_(1), "weights have changed"),
        (lambda model, x: model(x).sum().backward(), ".grad is filled"),
        (lambda model, x: x.mul_(0.5), "changed its input"),
        (lambda model, x: x.requires_grad_(), "switched requires_grad on"),
    ],
    ids=["train", "weights", "grad", "input", "flag"],
)
def test_model_and_input_are_left_as_found(name, spoil, phrase, say):
    def spoiling(model, x, *rest):
        result = WITH_A_MODEL[name](model, x, *rest)
        spoil(model, x)
        return result

    if name == "pseudo_update" and "requires_grad" in phrase:  # its images come from a generator and carry a graph already
        phrase = "● "
    assert phrase in say(name, spoiling)


@pytest.mark.parametrize("name", check.EXERCISES)
def test_stub_none_and_errors(name, say):
    def stub(*_):
        raise NotImplementedError

    def broken(*_):
        raise KeyError("oops")

    assert "not attempted yet" in say(name, stub)
    assert "returns None. Is the `return` missing?" in say(name, lambda *_: None)
    assert "your function raises KeyError: 'oops'" in say(name, broken)
    assert "takes 0 positional arguments" in say(name, lambda: None)
    assert "give the function itself" in say(name, None)
    assert "give the function itself" in say(name, torch.zeros(2))


@pytest.mark.parametrize("fn", RIGHT, ids=lambda fn: fn.__name__)
def test_constants_and_other_types_are_wrong(fn, say):
    for value in (0, 0.75, 0.98, 0.4, True, float("nan"), "text", [], {}, torch.zeros(()), torch.tensor([]), torch.zeros(3), torch.ones(4)):
        assert say(fn.__name__, lambda *_, value=value: value).startswith("○ ")
    assert say(fn.__name__, lambda *arguments: arguments[0]).startswith("○ ")


@pytest.mark.parametrize("fn", RIGHT, ids=lambda fn: fn.__name__)
def test_quick_offline_and_without_a_trace(fn, say, monkeypatch):
    def refuse(*_):
        raise AssertionError("a check needs no network")

    def random_and_right(*arguments):
        torch.manual_seed(1)
        torch.rand(3)
        return fn(*arguments)

    monkeypatch.setattr(socket, "socket", refuse)
    before, started = torch.get_rng_state(), time.thread_time()  # of this thread, whatever else the machine is doing
    assert say(fn.__name__, random_and_right).startswith("● ")
    assert time.thread_time() - started < 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_check_gives_the_same_verdict_under_any_global_seed(say):
    for seed in range(3):
        torch.manual_seed(seed)
        assert say("pgd", pgd).startswith("● ")
        assert "at the current x_adv" in say("pgd", loop(once=True))


def test_a_solution_does_not_count_as_progress(say, state):
    def fgsm_solution(*arguments):
        return fgsm(*arguments)

    assert say("fgsm", fgsm_solution).startswith("● ")
    assert check.solved() == {}
    assert not state.exists()


def test_progress_keeps_the_first_day(say, state):
    state.mkdir()
    (state / "progress.json").write_text('{"fgsm": "2020-01-01"}')
    say("fgsm", fgsm)
    say("pgd", pgd)
    done = json.loads((state / "progress.json").read_text())
    assert done["fgsm"] == "2020-01-01"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", done["pgd"])


@pytest.mark.parametrize("damage", [b"", b'{"fgsm": ', b"[1, 2]", b"3", b"null", b"\xff\xfe\x00"])
def test_a_damaged_progress_file_is_started_anew(damage, say, state):
    state.mkdir()
    (state / "progress.json").write_bytes(damage)
    check.progress()
    assert say("fgsm", fgsm).splitlines()[-1].startswith("● ")
    assert set(check.solved()) == {"fgsm"}


def test_progress_that_cannot_be_kept_is_said(say, state, monkeypatch):
    state.write_text("a file stands where the folder should be")
    said = say("fgsm", fgsm)
    assert said.startswith("● fgsm")
    assert "could not be kept" in said
    assert "COURSE_STATE" in said
    check.progress()


def test_progress_shows_the_ladder(say, capsys):
    say("fgsm", fgsm)
    check.progress()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(check.EXERCISES) + 1
    assert [line.split()[2] for line in lines[:-1]] == list(check.EXERCISES)
    assert [line.split()[2] for line in lines if line.startswith("●")] == ["fgsm"]
    assert lines[-1] == f"1 of {len(check.EXERCISES)} solved"
    lectures = [line.split()[1] for line in lines[:-1]]
    assert lectures == sorted(lectures)


def test_hints_come_in_levels(capsys):
    count = len(check.EXERCISES["fgsm"].hints)
    said = []
    for level in range(count + 2):
        check.hint("fgsm", level)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]  # below the first is the first
    assert said[1].startswith(f"Hint 1 of {count}: ")
    assert 'check.hint("fgsm", 2)' in said[1]
    assert "last hint" in said[count]
    assert said[count] == said[count + 1]
    assert len(set(said[1:-1])) == count


@pytest.mark.parametrize("item", check.EXERCISES.values(), ids=lambda item: item.name)
def test_every_exercise_has_hints(item):
    assert item.hints
    assert all(text.strip() for text in item.hints)


def test_an_unknown_exercise_has_no_hint():
    with pytest.raises(ValueError, match="name is 'nothing'; the exercises are linf_size"):
        check.hint("nothing")
