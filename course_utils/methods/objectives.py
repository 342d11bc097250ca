"""Objectives: what a training minimises, ``objective(model, x, y, *, …) -> scalar loss``.

``training.fit`` calls ``objective(model, x, y)``, so bind the rest with ``functools.partial``:
``partial(objectives.gradient_penalty, lam=1.0)``. The weight cache tells two of them apart by what
they bind. ``training.cross_entropy`` is the plain one.
"""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.geometry import Norm, dual_norm, per_sample, steepest
from course_utils.core.geometry import norm as size_of
from course_utils.core.inputs import Labels, Pixels, check_choice, check_share
from course_utils.core.training import cross_entropy, eval_mode, outputs
from course_utils.methods import attacks, linear

Loss = Float[Tensor, ""]


def adversarial(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    attack: Callable[..., Tensor],
    clean: float = 0.0,
    **settings,
) -> Loss:
    """Cross-entropy on ``attack(model, x, y, **settings)``, mixed with ``clean`` times that on x.

    The min–max problem min_θ Σ max_δ ℓ(f(x + δ), y) by Danskin's theorem: find δ*, hold it, take
    the gradient there (the LMU slides; Madry et al., section 2.1). The attack sees the model in
    eval mode. Every batch draws new random starts.

    Raises:
        ValueError: ``clean`` outside [0, 1].
    """
    check_share("clean", clean, "the clean loss")
    if "generator" in inspect.signature(attack).parameters:
        seed = int(torch.randint(2**31, ()))  # from the state that fit has seeded
        settings = {"generator": runtime.generator(seed), **settings}
    loss = (1 - clean) * cross_entropy(model, attack(model, x, y, **settings).detach(), y)
    return loss + clean * cross_entropy(model, x, y) if clean else loss


def goodfellow(model: nn.Module, x: Pixels, y: Labels, *, c: float) -> Loss:
    """The mean of the clean loss and the loss after a sign step, here of L2 length ``c``.

    "Goodfellow's method" in *Learning with Adversary*; Goodfellow, Shlens and Szegedy, section 6,
    with α = 0.5. They fix the step in L∞.
    """
    sign = attacks.adv_loss_sign
    return adversarial(model, x, y, attack=sign, clean=0.5, eps=c, box=False)


def lwa(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    c: float,
    attack: Callable[..., Tensor] = attacks.adv_loss,
) -> Loss:
    """*Learning with Adversary*, Algorithm 2: the loss on x + r* alone, ‖r*‖₂ = ``c``, unclipped.

    r* is one step of ``attack``.
    """
    return adversarial(model, x, y, attack=attack, eps=c, box=False)


def lwa_rep(
    model: nn.Sequential,
    x: Pixels,
    y: Labels,
    *,
    layer: str,
    c: float,
    norm: Norm = 2,
    relative: bool = False,
) -> Loss:
    """*Learning with Adversary*, Algorithm 3: r*, ‖r*‖ = ``c``, is added to a representation.

    That is the output of ``layer``, a child of the model; all layers up to and including it make
    the representation, and both parts learn. With ``relative`` the length is ``c`` times the norm
    of each image's representation, held fixed, as in the authors' code for CIFAR-10 (0.25).

    Raises:
        ValueError: a layer that the model does not have.
    """
    names = [name for name, _ in model.named_children()]
    cut = names.index(check_choice("layer", layer, names)) + 1
    representation = outputs(model[:cut], x)
    head = model[cut:]
    with eval_mode(model):
        g = attacks.loss_gradient(head, representation, y)
    size = size_of(representation.detach(), norm) if relative else 1.0
    r = c * per_sample(size, representation) * steepest(g, norm)
    return cross_entropy(head, representation + r, y)


def gradient_penalty(
    model: nn.Module, x: Pixels, y: Labels, *, lam: float, norm: Norm | None = None
) -> Loss:
    """Cross-entropy + ``lam`` · ‖∂ℓ/∂x‖₂², the mean over the batch of each image's own.

    Wang's slides, "Gradient Regularization". With a ``norm`` the penalty is ``lam`` · ‖∂ℓ/∂x‖_*,
    the dual norm: what the linearised loss gains within ‖δ‖ ≤ ``lam``. The gradient of a gradient
    costs about three times as much as plain training.
    """
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(outputs(model, x), y, reduction="none")
    g = torch.autograd.grad(losses.sum(), x, create_graph=True)[0]
    size = g.flatten(1).square().sum(1) if norm is None else dual_norm(g, norm)
    return losses.mean() + lam * size.mean()


def robust_logistic(
    model: nn.Module, x: Pixels, y: Labels, *, eps: float, norm: Norm = "inf"
) -> Loss:
    """The exact worst-case loss of a linear model over ‖δ‖ ≤ ``eps``.

    For two classes Ψ(y(⟨w, x⟩ + b) − eps · ‖w‖_*) with Ψ(z) = log(1 + e^−z): the LMU slides,
    "Linear models" (one of them prints x + δ where x is meant). With more than two classes an upper
    bound, because every wrong class gets a worst case of its own.
    """
    worst = linear.worst_margins(model, x, y, eps, norm)  # −inf for y itself
    return F.softplus(worst.logsumexp(1)).mean()
