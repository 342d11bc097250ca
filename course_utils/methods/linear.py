"""Linear models, whose robustness can be computed exactly.

The closed form of the LMU slides ("Adversarial Training Basics", after Kolter and Madry's
tutorial), for two classes and for many, and the robust problem solved to its global optimum.

A linear model here is ``models.logistic`` or ``models.binary_logistic``: its last linear layer is
called ``output``.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core.geometry import Norm, check_norm, dual_norm, steepest
from course_utils.core.images import Images
from course_utils.core.inputs import Labels, check_ball, check_labels, check_precision, check_size
from course_utils.core.training import share

Inputs = Float[Tensor, "n ..."]


def weights(model: nn.Module) -> tuple[Float[Tensor, "k pixels"], Float[Tensor, "k"]]:
    """One row of weights and one bias per class; a binary model has zeros for its first class."""
    layers = [name for name, layer in model.named_children() if not isinstance(layer, nn.Flatten)]
    if layers not in (["output"], ["output", "zero_first"]):
        raise ValueError(
            f"model has the layers {', '.join(layers)}; "
            "the closed form needs models.logistic() or models.binary_logistic()."
        )
    w = model.output.weight
    b = model.output.bias
    if len(layers) == 1:
        return w, b
    return torch.cat([torch.zeros_like(w), w]), torch.cat([torch.zeros_like(b), b])


def worst_margins(
    model: nn.Module, x: Inputs, y: Labels, eps: float, norm: Norm = "inf", *, box: bool = False
) -> Float[Tensor, "n k"]:
    """The largest z_j − z_y that a perturbation of size ``eps`` can reach, for every class j.

    max over ‖δ‖ ≤ eps of ⟨w_j − w_y, x + δ⟩ + b_j − b_y is the margin at x plus
    eps · ‖w_j − w_y‖_*; −inf for y itself. Positive for some j: the image can be misclassified.
    ``box=True`` keeps x + δ in [0,1], for L∞ only, where each pixel has its own interval and the
    answer stays exact.

    Raises:
        ValueError: a model that is not linear, or ``box`` with another norm than L∞.
    """
    check_size("eps", eps, x)
    check_ball(norm, eps)
    p = check_norm(norm)
    if box and p != math.inf:
        raise ValueError(
            f"box is True and norm {norm!r}; "
            'inside the box the closed form holds for norm "inf" only. Use attacks.pgd.'
        )
    check_precision("x", x)
    check_labels("y", y, x)
    w, b = weights(model)
    flat = x.flatten(1)
    logits = flat @ w.T + b
    margins = logits - logits.gather(1, y[:, None])
    between = w[None] - w[:, None]  # between[y, j] = w_j − w_y
    if box:
        gain = gain_in_box(flat, y, eps, between)
    else:
        gain = eps * dual_norm(between.flatten(0, 1), p).view(len(w), len(w))[y]
    return (margins + gain).scatter(1, y[:, None], -torch.inf)


def gain_in_box(flat: Tensor, y: Labels, eps: float, between: Tensor) -> Float[Tensor, "n k"]:
    """The most that δ in L∞ adds to each margin while x + δ stays in [0,1]."""
    up = (flat + eps).clamp(max=1) - flat
    down = (flat - eps).clamp(min=0) - flat
    gain = flat.new_empty(len(flat), len(between))
    for label, slopes in enumerate(between):
        rows = y == label
        gain[rows] = up[rows] @ slopes.clamp(min=0).T + down[rows] @ slopes.clamp(max=0).T
    return gain


def worst_case(
    model: nn.Module, x: Inputs, y: Labels, eps: float, norm: Norm = "inf", *, box: bool = False
) -> Inputs:
    """The images that reach the largest of ``worst_margins``: x + eps · steepest(w_j − w_y).

    With two classes x − y·eps·steepest(w). δ depends on x only by the class that is nearest (and
    with ``box=True`` by the clipping, which is exact in L∞).
    """
    with torch.no_grad():
        nearest = worst_margins(model, x, y, eps, norm, box=box).argmax(1)
        w, _ = weights(model)
        x_adv = x + eps * steepest(w[nearest] - w[y], norm).view_as(x)
        return x_adv.clamp(0, 1) if box else x_adv


def robust_error(
    model: nn.Module, images: Images, eps: float, norm: Norm = "inf", *, box: bool = False
) -> float:
    """Exact share of images that a perturbation of size ``eps`` can misclassify, in [0,1].

    A tie counts as wrong.
    """
    with torch.no_grad():
        worst = worst_margins(model, images.x, images.y, eps, norm, box=box).amax(1)
        return share(worst >= 0)


@dataclass(frozen=True)
class Optimum:
    """The solution of the robust problem: weights (pixels,), bias, and the mean worst-case loss.

    ``bound`` is a number below which no loss lies.
    """

    weight: np.ndarray
    bias: float
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the objective can be from the best possible one."""
        return self.objective - self.bound

    def put_into(self, model: nn.Module) -> nn.Module:
        """Gives a ``binary_logistic`` model these weights."""
        with torch.no_grad():
            model.output.weight.copy_(torch.from_numpy(self.weight)[None])
            model.output.bias.fill_(self.bias)
        return model.eval()


def convex_optimum(images: Images, eps: float) -> Optimum:
    """The global minimum over (w, b) of the mean of Ψ(y(⟨w, x⟩ + b) − eps · ‖w‖₁), with a proof.

    Two classes, L∞. With w = u − v and u, v ≥ 0 the norm is the sum of u + v, so the problem is
    smooth with bounds: L-BFGS-B in float64. The proof is the dual problem:
    Ψ(z) = max over p in [0,1] of H(p) − p·z, H the binary entropy in nats. So any p with
    Σ p_i y_i = 0 and ‖Σ p_i y_i x_i‖_∞ ≤ eps · Σ p_i shows that no (w, b) does better than the mean
    of H(p_i).

    Raises:
        ValueError: images of other than two classes, or an ``eps`` that is not positive (separable
            classes then have no optimum).
    """
    from scipy.special import xlogy

    labels = set(images.y.tolist())
    if labels != {0, 1}:
        raise ValueError(
            f"images have the labels {sorted(labels)}; "
            "give two classes labelled 0 and 1, some of each."
        )
    if not eps > 0:
        raise ValueError(f"eps is {eps!r}; give a number above 0.")
    x = images.x.flatten(1).cpu().double().numpy()  # some devices have no float64
    y = 2.0 * images.y.cpu().numpy() - 1
    weight, bias, objective, _ = minimise(x, y, eps)
    # The p of the optimum lies on the edge of its constraints, that of a smaller eps inside them.
    _, _, _, p = minimise(x, y, eps * (1 - 3e-5))
    positive = p[y > 0].sum()
    negative = p[y < 0].sum()
    p = p * np.where(y > 0, min(1, negative / positive), min(1, positive / negative))
    bound = 0.0  # no loss is below 0
    if np.abs((p * y) @ x).max() <= eps * p.sum():
        bound = float(-(xlogy(p, p) + xlogy(1 - p, 1 - p)).mean())
    return Optimum(weight, bias, objective, bound)


def minimise(
    x: np.ndarray, y: np.ndarray, eps: float
) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Weights, bias, objective, and p = σ(−margin) of every image."""
    from scipy.optimize import minimize
    from scipy.special import expit

    pixels = x.shape[1]

    def margins(variables):
        u = variables[:pixels]
        v = variables[pixels:-1]
        return y * (x @ (u - v) + variables[-1]) - eps * (u.sum() + v.sum())

    def value_and_gradient(variables):
        m = margins(variables)
        p = expit(-m)
        towards = (p * y) @ x / len(x)
        size = eps * p.mean()
        gradient = np.concatenate([size - towards, size + towards, [-(p * y).mean()]])
        return np.logaddexp(0, -m).mean(), gradient

    bounds = [(0, None)] * (2 * pixels) + [(None, None)]
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    search = {"jac": True, "bounds": bounds, "method": "L-BFGS-B", "options": options}
    found = minimize(value_and_gradient, np.zeros(2 * pixels + 1), **search)
    reached = np.inf
    while found.fun < reached - 1e-12:  # it can stop too early; a new start there takes it further
        reached = found.fun
        found = minimize(value_and_gradient, found.x, **search)
    weight = found.x[:pixels] - found.x[pixels:-1]
    return weight, float(found.x[-1]), float(found.fun), expit(-margins(found.x))
