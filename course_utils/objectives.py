"""Objectives: what a training minimises. Each factory gives an ``objective(model, x, y) -> scalar loss`` for ``training.fit``.

What a factory is given becomes part of the objective (``functools.partial``), so that the weight cache can tell two objectives apart.
``training.cross_entropy`` is the plain one.
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course_utils import attacks, linear, runtime
from course_utils.geometry import Norm, check_norm, steepest
from course_utils.training import Objective, cross_entropy, eval_mode

Loss = Float[Tensor, ""]


def adversarial(attack: Callable[..., Tensor], *, clean: float = 0.0, **settings) -> Objective:
    """Cross-entropy on what ``attack(model, x, y, **settings)`` makes of the batch, mixed with ``clean`` times that on the batch itself.

    The min–max problem min_θ Σ max_δ ℓ(f(x + δ), y) by Danskin's theorem: find δ*, hold it, take the gradient there (the LMU slides;
    Madry et al., section 2.1). The attack sees the model in eval mode. Every batch draws new random starts.

    Raises:
        ValueError: ``clean`` outside [0, 1].
    """
    if not 0 <= clean <= 1:
        raise ValueError(f"clean is {clean!r}; give the share of the clean loss, between 0 and 1.")
    return partial(_adversarial, attack=partial(attack, **settings), clean=clean)


def _adversarial(model: nn.Module, x: Tensor, y: Tensor, *, attack: Callable, clean: float) -> Loss:
    if "generator" in inspect.signature(attack).parameters:
        attack = partial(attack, generator=runtime.generator(int(torch.randint(2**31, ()))))  # from the state that fit has seeded
    loss = (1 - clean) * cross_entropy(model, attack(model, x, y).detach(), y)
    return loss + clean * cross_entropy(model, x, y) if clean else loss


def goodfellow(c: float) -> Objective:
    """The mean of the clean loss and the loss after a sign step, here of L2 length ``c`` (*Learning with Adversary*, "Goodfellow's method").

    Goodfellow, Shlens and Szegedy, section 6, with α = 0.5; they fix the step in L∞.
    """
    return adversarial(attacks.adv_loss_sign, clean=0.5, eps=c, box=False)


def lwa(c: float, attack: Callable[..., Tensor] = attacks.adv_loss) -> Objective:
    """*Learning with Adversary*, Algorithm 2: the loss on x + r* alone, ‖r*‖₂ = ``c``, where r* is one step of ``attack``. Not clipped."""
    return adversarial(attack, eps=c, box=False)


def lwa_rep(layer: str, c: float, norm: Norm = 2) -> Objective:
    """*Learning with Adversary*, Algorithm 3: the perturbation r*, ‖r*‖ = ``c``, is added to the output of ``layer``, and both parts learn.

    ``layer`` names a child of the model, an ``nn.Sequential``: all layers up to and including it make the representation.
    """
    return partial(_lwa_rep, layer=layer, c=c, norm=check_norm(norm))


def _lwa_rep(model: nn.Sequential, x: Tensor, y: Tensor, *, layer: str, c: float, norm: Norm) -> Loss:
    names = [name for name, _ in model.named_children()]
    if layer not in names:
        raise ValueError(f"layer is {layer!r}; the model's layers are {', '.join(names)}.")
    cut = names.index(layer) + 1
    representation = model[:cut](x)
    head = model[cut:]
    with eval_mode(model):
        g = attacks.loss_gradient(head, representation, y)
    return cross_entropy(head, representation + c * steepest(g, norm), y)


def gradient_penalty(lam: float) -> Objective:
    """Cross-entropy + ``lam`` · ‖∂ℓ/∂x‖₂², the mean over the batch of each image's own (Wang's slides, "Gradient Regularization").

    The gradient of a gradient: about three times the cost of plain training.
    """
    return partial(_gradient_penalty, lam=lam)


def _gradient_penalty(model: nn.Module, x: Tensor, y: Tensor, *, lam: float) -> Loss:
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(model(x), y, reduction="none")
    g = torch.autograd.grad(losses.sum(), x, create_graph=True)[0]
    return losses.mean() + lam * g.flatten(1).square().sum(1).mean()


def robust_logistic(eps: float, norm: Norm = "inf") -> Objective:
    """The exact worst-case loss of a linear model over ‖δ‖ ≤ ``eps``: for two classes Ψ(y(⟨w, x⟩ + b) − eps · ‖w‖_*), Ψ(z) = log(1 + e^−z).

    The LMU slides, "Linear models" (one of them prints x + δ where x is meant). With more than two classes an upper bound: every wrong class
    gets a worst case of its own.
    """
    return partial(_robust_logistic, eps=eps, norm=check_norm(norm))


def _robust_logistic(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: Norm) -> Loss:
    worst = linear.worst_margins(model, x, y, eps, norm)  # −inf for y itself
    return F.softplus(worst.logsumexp(1)).mean()
