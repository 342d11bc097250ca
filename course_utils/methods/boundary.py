"""The nearest wrong answer of the linearised model: one step towards it, and the way to it."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_utils.core.geometry import Norm, check_norm, dual_norm, per_sample, steepest
from course_utils.core.geometry import norm as size_of
from course_utils.core.inputs import (
    Labels,
    Pixels,
    check_count,
    check_input,
    check_labels,
    chunks,
    rows_of,
)
from course_utils.core.training import eval_mode, gradients_on, outputs, predict
from course_utils.methods.attacks import (
    OnStep,
    fooled,
    leaf,
    one_step,
    slope_of,
    succeeded,
    walk,
    with_room,
)


def nearest_boundary(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    norm: Norm = 2,
    softmax: bool = True,
    box: bool = False,
) -> tuple[Pixels, Float[Tensor, "n"]]:
    """The nearest wrong class of the linearised model: its direction, and how far away it is.

    *Learning with Adversary*, Algorithm 1 with Propositions 2.1 and 2.2: class j takes over at
    distance (α_y − α_j) / ‖T_j − T_y‖_*, where α is the softmax output and T its Jacobian. The
    nearest j wins, and the direction is T_j − T_y (the source prints ≤ where its solution needs ≥).
    The distance is negative for an image that is already wrong.
    ``softmax=False`` puts the logits in the place of α: a step of DeepFool.
    ``steepest(direction, norm)`` times the distance is the minimal perturbation of the linearised
    model. It needs one backward pass per class, K − 1 times the cost of a loss gradient. With
    ``box=True`` and L1 only pixels count that have room to move in [0,1].
    """
    check_labels("y", y, x)
    logits, others, leads, slopes = class_slopes(model, x, y)
    wrong = leads < 0
    sizes = leads.abs().log()
    if softmax:
        slopes, sizes = softmax_slopes(logits, y, others, leads, slopes)
    slopes = with_room(slopes, x.detach().flatten(1)[:, None], norm, box)
    lengths = dual_norm(slopes.flatten(0, 1), norm).view_as(leads)
    # log |distance|; without a slope no boundary is in sight
    far = torch.where(lengths > 0, sizes - lengths.log(), torch.inf)
    passed = far.masked_fill(wrong.any(1, keepdim=True), torch.inf)
    nearest = torch.where(wrong & (lengths > 0), -far, passed).argmin(1, keepdim=True)
    distance = torch.where(wrong, -far.exp(), far.exp()).gather(1, nearest).squeeze(1)
    chosen = nearest[:, :, None].expand(-1, 1, slopes.shape[2])
    return slopes.gather(1, chosen).view_as(x), distance


def class_slopes(model: nn.Module, x: Pixels, y: Labels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For all classes k but y: logits, the k, the leads z_y − z_k, and D_k = ∇(z_k − z_y).

    Shapes (N, K), (N, K − 1), (N, K − 1) and (N, K − 1, pixels).
    """
    with gradients_on(), eval_mode(model):
        x = leaf(x)
        y = y.clone()  # a tensor of inference mode could not be part of the graph
        logits = outputs(model, x)
        others = torch.arange(logits.shape[1] - 1, device=x.device).expand(len(x), -1)
        others = others + (others >= y[:, None])
        leads = (logits.gather(1, y[:, None]) - logits).gather(1, others)
        last = leads.shape[1] - 1
        slopes = [-slope_of(leads[:, k], x, retain_graph=k < last) for k in range(last + 1)]
    return logits.detach(), others, leads.detach(), torch.stack(slopes, 1).flatten(2)


def softmax_slopes(
    logits: Tensor, y: Labels, others: Tensor, leads: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """T_k − T_y and log |α_y − α_k|, both up to one positive factor per class and image.

    T_k − T_y = Σ_j C_kj D_j with C_kj = (α_y − α_k) α_j, but C_kk = α_k (2 α_y + Σ_{j≠y,k} α_j):
    nothing in it cancels. In logarithms, each row divided by its largest entry, nothing underflows
    either, however sure the model is.
    """
    log_alpha = logits.log_softmax(1)
    log_y = log_alpha.gather(1, y[:, None])
    log_k = log_alpha.gather(1, others)
    sizes = torch.maximum(log_y, log_k) + (-torch.expm1(-leads.abs())).log()  # log |α_y − α_k|
    self = torch.eye(leads.shape[1], dtype=torch.bool, device=logits.device)
    rest = log_k[:, None, :].masked_fill(self, -torch.inf).logsumexp(2)
    own = log_k + torch.logaddexp(log_y + math.log(2), rest)
    log_c = torch.where(self, own[:, :, None], sizes[:, :, None] + log_k[:, None, :])
    largest = log_c.amax(2, keepdim=True)
    sign = torch.where((leads < 0)[:, :, None] & ~self, -1, 1)
    return (sign * (log_c - largest).exp()) @ slopes, sizes - largest.squeeze(2)


def adv_alpha(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    eps: float | Tensor,
    norm: Norm = 2,
    box: bool = True,
) -> Pixels:
    """Adv_Alpha of *Learning with Adversary*, section 3.1.2: a step towards the nearest class.

    Of length ``eps`` along ``nearest_boundary`` (Algorithm 1). The source does not clip:
    ``box=False``.
    """
    x, y, _ = check_input(model, x, y, eps=eps, norm=norm)

    def direction(rows: Tensor, now: Tensor) -> Tensor:
        return steepest(nearest_boundary(model, now, y[rows], norm=norm, box=box)[0], norm)

    return one_step(model, x, eps, box, direction)


def deepfool(
    model: nn.Module,
    x: Pixels,
    y: Labels,
    *,
    norm: Norm = 2,
    steps: int = 50,
    overshoot: float = 0.02,
    bisections: int = 12,
    on_step: OnStep | None = None,
) -> Pixels:
    """A small perturbation that changes the class: step to the nearest linearised boundary, repeat.

    Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool" (CVPR 2016), Algorithm 2; Adv_Alpha on the
    logits, iterated. Each step goes too far by the share ``overshoot`` of the whole way, and an
    image rests once it is misclassified. At the end ``bisections`` halvings between the image and
    the point reached shorten its perturbation. An image that is misclassified as it is comes back
    unchanged. One that withstands all ``steps`` comes back as it was last; ``succeeded`` shows it.
    """
    x, y, _ = check_input(model, x, y, steps=steps, overshoot=overshoot)
    check_count("bisections", bisections, 0)
    p = check_norm(norm)
    at_rest = succeeded(model, x, y) if len(x) else y.bool()

    def beyond(rows: Tensor, images: Tensor) -> Tensor:
        """Misclassified with a lead to spare, so that rounding in another batch changes nothing."""
        return fooled(predict(model, images), y[rows], 1, times=2)

    def move(step: int, rows: Tensor, now: Tensor) -> Tensor:
        ahead = nearest_boundary(model, now, y[rows], norm=p, softmax=False, box=True)
        return past_boundary(now, *ahead, size_of(now - x[rows], p), overshoot, p)

    def finished(rows: Tensor, now: Tensor) -> Tensor:
        return at_rest[rows] | beyond(rows, now)

    x_adv = walk(model, x.clone(), steps, move, on_step, finished=finished)
    return shorten(x, x_adv, rows_of(x)[~at_rest], beyond, bisections)


def past_boundary(
    now: Tensor, direction: Tensor, distance: Tensor, walked: Tensor, overshoot: float, p: Norm
) -> Tensor:
    """The step of ``deepfool``: to the boundary, and further by a share of the whole way.

    Where [0,1] cuts a step short, the rest alone would approach the boundary for ever.
    """
    extra = overshoot * (walked + distance.clamp(min=0))
    length = (distance.clamp(min=1e-6) + extra).nan_to_num(0, posinf=0)
    return (now + per_sample(length, now) * steepest(direction, p)).clamp(0, 1)


def shorten(
    x: Tensor, x_adv: Tensor, rows: Tensor, beyond: Callable[[Tensor, Tensor], Tensor], rounds: int
) -> Tensor:
    """Brings those of ``rows`` that are ``beyond`` closer to ``x``, in place; returns ``x_adv``."""
    if len(rows):
        rows = rows[beyond(rows, x_adv[rows])]
    for some in chunks(rows, x):
        x_adv[some] = shortened(x[some], x_adv[some], partial(beyond, some), rounds)
    return x_adv


def shortened(x: Tensor, x_adv: Tensor, beyond: Callable[[Tensor], Tensor], rounds: int) -> Tensor:
    """The shortest perturbation found by bisection between ``x`` and ``x_adv``."""
    delta = x_adv - x

    def reached(share: Tensor) -> Tensor:
        return beyond(x + per_sample(share, delta) * delta)

    start = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    share = per_sample(bisect(reached, start, torch.ones_like(start), rounds), delta)
    return torch.where(share < 1, x + share * delta, x_adv)


def bisect(
    reached: Callable[[Tensor], Bool[Tensor, "n"]], near: Tensor, far: Tensor, rounds: int
) -> Float[Tensor, "n"]:
    """The smallest value found between ``near`` and ``far`` for which ``reached`` is true."""
    for _ in range(rounds):
        middle = (near + far) / 2
        there = reached(middle)
        far = torch.where(there, middle, far)
        near = torch.where(there, near, middle)
    return far
