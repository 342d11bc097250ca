"""Linear models, whose robustness can be computed exactly.

The closed form of the LMU slides ("Adversarial Training Basics", after Kolter and Madry's tutorial), for two classes and for many, and the
robust problem solved to its global optimum with a certificate.

A linear model here is ``models.logistic`` or ``models.binary_logistic``: its last linear layer is called ``output``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.data import Images
from course_utils.geometry import Norm, check_norm, dual_norm, steepest


def weights(model: nn.Module) -> tuple[Float[Tensor, "k pixels"], Float[Tensor, "k"]]:
    """One row of weights and one bias per class; a binary model has zeros for its first class."""
    layers = [name for name, layer in model.named_children() if not isinstance(layer, nn.Flatten)]
    if layers[:1] != ["output"] or layers[1:] not in ([], ["zero_first"]):
        raise ValueError(f"model has the layers {', '.join(layers)}; the closed form needs models.logistic() or models.binary_logistic().")
    w, b = model.output.weight, model.output.bias
    return (w, b) if len(layers) == 1 else (torch.cat([torch.zeros_like(w), w]), torch.cat([torch.zeros_like(b), b]))


def worst_margins(
    model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, "n"], eps: float, norm: Norm = "inf", *, box: bool = False
) -> Float[Tensor, "n k"]:
    """The largest z_j − z_y that a perturbation of size ``eps`` can reach, for every class j; −inf for y itself.

    max over ‖δ‖ ≤ eps of ⟨w_j − w_y, x + δ⟩ + b_j − b_y is the margin at x plus eps · ‖w_j − w_y‖_*. Positive for some j: the image can be
    misclassified, exactly. ``box=True`` keeps x + δ in [0,1], for L∞ only, where each pixel has its own interval and the answer stays exact.

    Raises:
        ValueError: a model that is not linear, or ``box`` with another norm than L∞.
    """
    p = check_norm(norm)
    if box and p != float("inf"):
        raise ValueError(f'box is True and norm {norm!r}; inside the box the closed form holds for norm "inf" only. Use attacks.pgd.')
    w, b = weights(model)
    flat = x.flatten(1)
    logits = flat @ w.T + b
    margins = logits - logits.gather(1, y[:, None])
    between = w[None] - w[:, None]  # between[y, j] = w_j − w_y
    if box:
        up, down = (flat + eps).clamp(max=1) - flat, (flat - eps).clamp(min=0) - flat
        gain = torch.empty_like(margins)
        for label in range(len(w)):
            rows = y == label
            gain[rows] = up[rows] @ between[label].clamp(min=0).T + down[rows] @ between[label].clamp(max=0).T
    else:
        gain = eps * dual_norm(between.flatten(0, 1), p).view(len(w), len(w))[y]
    return (margins + gain).scatter(1, y[:, None], -torch.inf)


def worst_case(
    model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, "n"], eps: float, norm: Norm = "inf", *, box: bool = False
) -> Float[Tensor, "n ..."]:
    """The images that reach the largest of ``worst_margins``: x + eps · steepest(w_j − w_y), for two classes x − y·eps·steepest(w).

    It does not depend on x but for the class it goes to (and, with ``box=True``, the clipping, which is exact in L∞).
    """
    with torch.no_grad():
        nearest = worst_margins(model, x, y, eps, norm, box=box).argmax(1)
        w, _ = weights(model)
        x_adv = x + eps * steepest(w[nearest] - w[y], norm).view_as(x)
        return x_adv.clamp(0, 1) if box else x_adv


def robust_error(model: nn.Module, images: Images, eps: float, norm: Norm = "inf", *, box: bool = False) -> float:
    """Exact share of ``images`` that some perturbation of size ``eps`` brings to be misclassified, in [0,1]. A tie counts as wrong."""
    with torch.no_grad():
        return (worst_margins(model, images.x, images.y, eps, norm, box=box).amax(1) >= 0).float().mean().item()


@dataclass(frozen=True)
class Optimum:
    """The solution of the robust problem: weights (pixels,), bias, the mean worst-case loss reached, and a bound below which none can go."""

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
    """The global minimum over (w, b) of the mean of Ψ(y(⟨w, x⟩ + b) − eps · ‖w‖₁), two classes, L∞, with a certificate.

    With w = u − v and u, v ≥ 0 the norm is the sum of u + v, so the problem is smooth with bounds: L-BFGS-B in float64. The certificate is the dual
    problem: Ψ(z) = max over p in [0,1] of H(p) − p·z, H the binary entropy in nats, so any p with Σ p_i y_i = 0 and ‖Σ p_i y_i x_i‖_∞ ≤ eps · Σ p_i
    shows that no (w, b) does better than the mean of H(p_i).

    Raises:
        ValueError: images of other than two classes, or an ``eps`` that is not positive (separable classes then have no optimum).
    """
    from scipy.special import xlogy

    if set(images.y.tolist()) != {0, 1}:
        raise ValueError(f"images have the labels {sorted(set(images.y.tolist()))}; give two classes labelled 0 and 1, some of each.")
    if not eps > 0:
        raise ValueError(f"eps is {eps!r}; give a number above 0.")
    x = images.x.flatten(1).double().cpu().numpy()
    y = 2.0 * images.y.cpu().numpy() - 1
    weight, bias, objective, _ = _minimise(x, y, eps)
    # The p of the optimum lies on the edge of its constraints; the p of a slightly smaller eps lies inside them.
    _, _, _, p = _minimise(x, y, eps * (1 - 3e-5))
    positive, negative = p[y > 0].sum(), p[y < 0].sum()
    p = p * np.where(y > 0, min(1, negative / positive), min(1, positive / negative))
    feasible = np.abs((p * y) @ x).max() <= eps * p.sum()
    bound = float(-(xlogy(p, p) + xlogy(1 - p, 1 - p)).mean()) if feasible else 0.0  # no loss is below 0
    return Optimum(weight, bias, objective, bound)


def _minimise(x: np.ndarray, y: np.ndarray, eps: float) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Weights, bias, objective, and p = σ(−margin) of every image."""
    from scipy.optimize import minimize
    from scipy.special import expit

    pixels = x.shape[1]

    def margins(variables: np.ndarray) -> np.ndarray:
        u, v, b = variables[:pixels], variables[pixels:-1], variables[-1]
        return y * (x @ (u - v) + b) - eps * (u.sum() + v.sum())

    def value_and_gradient(variables: np.ndarray) -> tuple[float, np.ndarray]:
        m = margins(variables)
        p = expit(-m)
        towards, size = (p * y) @ x / len(x), eps * p.mean()
        return np.logaddexp(0, -m).mean(), np.concatenate([size - towards, size + towards, [-(p * y).mean()]])

    bounds = [(0, None)] * (2 * pixels) + [(None, None)]
    settings = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    start, reached = np.zeros(2 * pixels + 1), np.inf
    while True:  # it can stall short of the optimum; begun afresh where it stopped, it goes on
        found = minimize(value_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B", options=settings)
        if not found.fun < reached - 1e-12:
            break
        start, reached = found.x, found.fun
    return found.x[:pixels] - found.x[pixels:-1], float(found.x[-1]), float(found.fun), expit(-margins(found.x))
