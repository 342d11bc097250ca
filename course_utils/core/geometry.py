"""The geometry of a norm in three functions: ``dual_norm``, ``steepest`` and ``project``.

Every attack and defence of the course stands on them. All are batched: the first dimension counts
samples, and no sample's result depends on another's. A norm is 1, 2 or "inf" (``math.inf`` too).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Norm = int | float | str


def check_norm(norm: Norm) -> float:
    """1.0, 2.0 or inf; anything else is a ``ValueError``."""
    value = math.inf if norm == "inf" else norm
    if isinstance(value, str) or value not in (1, 2, math.inf):
        raise ValueError(f'norm is {norm!r}; use 1, 2 or "inf".')
    return float(value)


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` (a number, or one per sample) in a shape, (N, 1, …) or (), that fits ``like``."""
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value.reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value


def norm(v: Float[Tensor, "n ..."], p: Norm) -> Float[Tensor, "n"]:
    """‖v‖_p of every sample; accurate also where a plain sum of squares underflows, as at 1e-30."""
    flat = v.flatten(1)
    p = check_norm(p)
    largest = flat.abs().amax(1)
    if p == math.inf:
        return largest
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest.sign() * scale * torch.linalg.vector_norm(flat / scale[:, None], p, dim=1)


def dual_norm(g: Float[Tensor, "n ..."], p: Norm) -> Float[Tensor, "n"]:
    """max ⟨g, r⟩ over ‖r‖_p ≤ 1: ‖g‖_q with 1/p + 1/q = 1, so L1 for "inf", L2 for 2, L∞ for 1."""
    return norm(g, {1.0: math.inf, 2.0: 2, math.inf: 1}[check_norm(p)])


def steepest(g: Float[Tensor, "n ..."], p: Norm) -> Float[Tensor, "n ..."]:
    """The maximiser of ⟨g, r⟩ over ‖r‖_p ≤ 1, so that ⟨g, steepest(g, p)⟩ = dual_norm(g, p).

    L∞: the sign of g. L2: g / ‖g‖₂. L1: the one coordinate where |g| is largest (the first of
    several), with its sign. A zero gradient gives zero. Nothing is added to a denominator: a
    gradient of 1e-14 gives a full step.
    """
    p = check_norm(p)
    if p == math.inf:
        return g.sign()
    flat = g.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    if p == 2:
        scaled = flat / torch.where(largest > 0, largest, 1)
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        return (scaled / torch.where(length > 0, length, 1)).view_as(g)
    where = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, where, flat.gather(1, where).sign()).view_as(g)


def project(
    delta: Float[Tensor, "n ..."], eps: float | Float[Tensor, "n"], p: Norm
) -> Float[Tensor, "n ..."]:
    """The nearest point (in L2) of the ball ‖δ‖_p ≤ eps; ``eps`` is one radius or one per sample.

    L1 follows Duchi et al., "Efficient projections onto the l1-ball" (ICML 2008), figure 1.
    """
    p = check_norm(p)
    radius = per_sample(eps, delta)
    if not (radius >= 0).all():  # written so that NaN fails too
        raise ValueError(f"eps is {float(radius.min())}; a radius must be 0 or more.")
    if p == math.inf:
        return torch.minimum(torch.maximum(delta, -radius), radius)
    length = per_sample(norm(delta, p), delta)
    if p == 2:
        outside = length > radius
        return delta * torch.where(outside, radius / torch.where(outside, length, 1), 1)
    # L1: shrink every coordinate by the theta that leaves exactly the radius.
    sizes, _ = delta.flatten(1).abs().sort(dim=1, descending=True)
    excess = sizes.cumsum(1) - radius.reshape(-1, 1)
    count = torch.arange(1, sizes.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    kept = (sizes * count > excess).sum(1, keepdim=True).clamp(min=1)
    theta = per_sample((excess.gather(1, kept - 1) / kept).squeeze(1), delta)
    return torch.where(length > radius, delta.sign() * (delta.abs() - theta).clamp(min=0), delta)
