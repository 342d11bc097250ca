"""Lower bounds on mutual information beside Donsker and Varadhan's, and what limits them.

All take a critic's values on pairs. ``mutual_information`` has the bound that the attacks use, and
the critics.
"""

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.training import gradients_on
from course_utils.methods.mutual_information import Draw, dv_bound

Joint = Float[Tensor, "... k"]
Marginal = Float[Tensor, "... m"]
AllPairs = Float[Tensor, "... k k"]  # T(u_i, v_j); those that belong together on the diagonal
Values = Float[Tensor, "..."]


def nwj_bound(joint: Joint, marginal: Marginal) -> Values:
    """Nguyen, Wainwright, Jordan: mean T(joint) − mean exp(T(marginal) − 1).

    "Estimating divergence functionals and the likelihood ratio" (2010). Without bias on any number
    of pairs; the best critic is the log ratio of densities plus 1.
    """
    return joint.mean(-1) - (marginal - 1).exp().mean(-1)


def infonce_bound(values: AllPairs) -> Values:
    """InfoNCE: the mean over i of T(u_i, v_i) − log mean over j of exp T(u_i, v_j).

    Van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding" (2018).
    Never above log K.
    """
    k = values.shape[-1]
    return (values.diagonal(dim1=-2, dim2=-1) - (values.logsumexp(-1) - math.log(k))).mean(-1)


def apart(values: AllPairs) -> tuple[Joint, Marginal]:
    """The values of the K pairs that belong together, and of the K(K − 1) others."""
    k = values.shape[-1]
    if values.dim() < 2 or values.shape[-2] != k or k < 2:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; give the critic's values on all pairs, "
            "(…, K, K), of two samples or more."
        )
    others = ~torch.eye(k, dtype=torch.bool, device=values.device)
    return values.diagonal(dim1=-2, dim2=-1), values[..., others]


def dv_of_all(values: AllPairs) -> Values:
    """``dv_bound`` with all pairs of other samples as the shuffled ones."""
    return dv_bound(*apart(values))


def nwj_of_all(values: AllPairs) -> Values:
    """``nwj_bound`` with all pairs of other samples as the shuffled ones."""
    return nwj_bound(*apart(values))


def shuffle_cap(joint: Joint, order: Int[Tensor, "k"]) -> Values:
    """The most that ``dv_bound`` can show after this shuffle, whatever the shuffled pairs score.

    A fixed point k leaves a pair that belongs together among the shuffled ones, so their mean of
    exp T is at least exp(T_k)/K, and the bound at most log K + mean T − T_k: log K + mean T − max T
    over the fixed points. Infinite without a fixed point.
    """
    fixed = order == torch.arange(len(order), device=order.device)
    if not fixed.any():
        return joint.new_full(joint.shape[:-1], torch.inf)
    return math.log(len(order)) + joint.mean(-1) - joint[..., fixed].amax(-1)


def entropy(rows: Float[Tensor, "k d"]) -> Tensor:
    """Entropy in nats of a row drawn with equal odds; equal rows count as one value."""
    p = rows.unique(dim=0, return_counts=True)[1] / len(rows)
    return -(p * p.log()).sum()


def index_information(u: Float[Tensor, "k d"], v: Float[Tensor, "k e"]) -> float:
    """Exact information in nats of the pair (u_k, v_k) when k is drawn from 1 … K with equal odds.

    log K where the rows of u differ from each other and those of v too, whatever they are.
    """
    if u.dim() != 2 or v.dim() != 2 or len(u) != len(v):
        raise ValueError(
            f"u has shape {tuple(u.shape)} and v {tuple(v.shape)}; give K rows of each."
        )
    return (entropy(u) + entropy(v) - entropy(torch.cat([u, v], 1))).item()


class Separable(nn.Module):
    """T(u, v) = ⟨f(u), g(v)⟩ with two networks of one hidden layer: all K² pairs for K passes."""

    def __init__(self, d_u: int, d_v: int, hidden: int = 128, features: int = 32):
        super().__init__()
        self.left = tower(d_u, hidden, features)
        self.right = tower(d_v, hidden, features)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.left(u) * self.right(v)).sum(-1)


def tower(inputs: int, hidden: int, features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, features))


@gradients_on()
def climb(
    draw: Draw,
    critic: nn.Module,
    bound: Callable[[AllPairs], Tensor],
    *,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> tuple[nn.Module, list[float]]:
    """A copy of ``critic`` after Adam ascent on ``bound`` of all pairs of each batch.

    Returns it with the bound of every batch, before its step.
    """
    generator = runtime.generator(seed)
    critic = copy.deepcopy(critic)
    adam = torch.optim.Adam(critic.parameters(), lr=lr)
    found = []
    for _ in range(steps):
        u, v = draw(batch, generator)
        value = bound(critic(u[:, None], v[None]))
        adam.zero_grad()
        (-value).backward()
        adam.step()
        found.append(value.item())
    return critic.eval(), found
