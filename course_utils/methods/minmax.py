"""The MinMax attack and its penalty baseline, which keep the information about an image large.

With ``similar=False`` they make it small: unsupervised adversarial examples. Sources: see
``mutual_information``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.inputs import Labels, Pixels, check_count, check_images, goal, rows_of
from course_utils.core.training import eval_mode
from course_utils.methods.attacks import gradient, keep_better
from course_utils.methods.mutual_information import Estimator, PerImage

Rows = Int[Tensor, "n"]
Criterion = Callable[[Tensor, Rows], PerImage]  # f of x_adv, these rows of the batch; success: ≤ 0


@dataclass
class AttackResult:
    """Each image's best iterate, its similarity, and whether it meets the criterion.

    An image without success holds the iterate closest to it, with information nan.
    """

    x_adv: Pixels
    information: PerImage
    success: Bool[Tensor, "n"]

    def keep(self, new: "AttackResult", sign: int, closer: Tensor | bool = False) -> None:
        """Takes from ``new``, in place, the images that are better there.

        Success is better than failure, then more information (less with ``sign`` −1); among
        failures the one that is ``closer``.
        """
        more = sign * new.information > sign * self.information
        better = torch.where(new.success, ~self.success | more, ~self.success & closer)
        keep_better(better, (self.x_adv, new.x_adv))
        keep_better(better & new.success, (self.information, new.information))
        self.success |= new.success


@dataclass
class Step:
    """What ``on_step`` sees after every step of a chunk of the batch, one entry per image."""

    step: int
    rows: Rows
    x_adv: Pixels
    information: PerImage
    criterion: PerImage
    c: PerImage


def misclassified(
    model: nn.Module, y: Labels | None = None, target: Labels | None = None, kappa: float = 0.0
) -> Criterion:
    """f = z_y − max_{j≠y} z_j + κ, or max_{j≠t} z_j − z_t + κ with a target: fooled if at most 0.

    The logits must differ by more than float32 could blur (as ``attacks.succeeded`` asks), so that
    the verdict stands in any batch.
    """
    labels, sign, _ = goal(y, target)

    def criterion(x_adv, rows):
        logits = model(x_adv)
        own = logits.gather(1, labels[rows, None]).squeeze(1)
        other = logits.scatter(1, labels[rows, None], -torch.inf).amax(1)
        return sign * (own - other) + kappa + 1.1e-5 * (1 + logits.detach().abs().amax(1))

    return criterion


def reconstructed(autoencoder: nn.Module, x: Pixels) -> Criterion:
    """f = ‖x − Φ(x_adv)‖² − ‖x − Φ(x)‖²: at most 0 where x_adv gives x back as well as x itself."""

    def error(images, copies):
        return (images - autoencoder(copies)).square().flatten(1).sum(1)

    with torch.no_grad(), eval_mode(autoencoder):
        own = torch.cat([error(batch, batch) for batch in x.split(1000)])

    def criterion(x_adv, rows):
        return error(x[rows], x_adv) - own[rows]

    return criterion


def minmax(
    model: nn.Module,
    criterion: Criterion,
    x: Pixels,
    *,
    estimator: Estimator | None,
    eps: float = 1.0,
    steps: int = 1000,
    step_size: float = 0.01,
    beta: float = 0.1,
    c: float | Tensor | None = None,
    similar: bool = True,
    start: float = 0.086,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> AttackResult:
    """Seminar slides, Algorithm 1: min over δ, max over c ≥ 0 of c · f⁺(x + δ) − I(x, x + δ).

    A gradient step on δ; δ into [−``eps``, ``eps``] and x + δ into [0,1]; ``estimator.steps`` steps
    of each image's critic; then c ← (1 − ``beta``/t^¼) c + ``beta`` f⁺, or a given ``c`` (a number,
    or one per image) stays fixed. Keeps the iterate with the largest information among those with
    f ≤ 0; with ``similar=False`` the smallest positive one, as in the authors' code.
    ``estimator=None`` puts −‖δ‖₂² in the place of information (L2-UAE).

    ``model``, by which ``criterion`` judges, is held in eval mode. The slides start at δ = 0, the
    authors' code at random within ±``start``, as here (Glorot's limit for 28×28).

    Raises:
        ValueError: images outside [0,1], negative sizes or c, β outside [0, 1].
    """
    check_images("x", x)
    check_count("steps", steps, 0)
    sign = 1 if similar else -1
    weights = checked_weights(x, c, eps=eps, step_size=step_size, start=start, beta=beta)
    found = []
    with eval_mode(model):
        for rows in [rows_of(x)] if estimator is None else estimator.chunks(x):
            search = Search(criterion, x[rows].detach(), rows, estimator, eps, sign)
            x_adv = search.begin(start if steps else 0, seed)
            weight = weights[rows]
            for t in range(1, steps + 1):
                x_adv = search.within(x_adv - step_size * search.slope(x_adv, weight))
                f, information = search.judge(x_adv)
                if c is None:
                    weight = (1 - beta / t**0.25) * weight + beta * f.relu()
                if on_step is not None:
                    on_step(Step(t, rows, x_adv.clone(), information, f, weight))
            found.append(search.best)
    return AttackResult(
        torch.cat([best.x_adv for best in found]),
        torch.cat([best.information for best in found]),
        torch.cat([best.success for best in found]),
    )


def checked_weights(x: Pixels, c: float | Tensor | None, **sizes: float) -> PerImage:
    """Returns ``c`` of each image, 0 where none is given; refuses bad c and sizes."""
    for name, value in sizes.items():
        if not 0 <= value < math.inf or (name == "beta" and value > 1):
            raise ValueError(
                f"{name} is {value!r}; give a finite number of 0 or more (beta at most 1)."
            )
    c = torch.as_tensor(0.0 if c is None else c).to(x)
    if c.shape not in ((), x.shape[:1]) or not ((c >= 0) & c.isfinite()).all():
        raise ValueError(
            f"c is {c.tolist()}; "
            f"give a finite number of 0 or more, or one for each of the {len(x)} images."
        )
    return c.expand(len(x))


@dataclass
class Search:
    """``minmax`` on a chunk of the batch, with its critics and the best iterates so far."""

    criterion: Criterion
    x: Pixels
    rows: Rows
    estimator: Estimator | None
    eps: float
    sign: int

    def begin(self, size: float, seed: int) -> Pixels:
        """The first iterate: every image with the same noise within ±``size``."""
        self.generator = runtime.generator(seed)
        if self.estimator:
            self.critics = self.estimator.critics(self.x)
        noise = 2 * torch.rand(self.x.shape[1:], generator=self.generator).to(self.x) - 1
        x_adv = self.within(self.x + size * noise)
        none = self.x.new_full((len(self.x),), torch.nan)
        self.best = AttackResult(x_adv, none, none > 0)
        self.least = torch.full_like(none, torch.inf)  # f of the iterate closest to success
        return x_adv

    def within(self, x_adv: Pixels) -> Pixels:
        """Brings ``x_adv`` into the ball and the box, and leaves what lies inside as it is.

        With ``geometry.project`` of x_adv − x, adding x again would round that too.
        """
        return x_adv.clamp(self.x - self.eps, self.x + self.eps).clamp(0, 1)

    def similarity(self, x_adv: Pixels) -> PerImage:
        """The bound of each image's critic, or −‖δ‖₂²."""
        if self.estimator is None:
            return -(x_adv - self.x).square().flatten(1).sum(1)
        return self.critics.bound(*self.estimator.samples(self.x, x_adv, self.generator))

    def slope(self, x_adv: Pixels, weight: PerImage) -> Pixels:
        """Gradient of what δ minimises: c · f⁺ − I, or + I with ``sign`` −1."""

        def objective(x_adv):
            failure = self.criterion(x_adv, self.rows).relu()
            return weight * failure - self.sign * self.similarity(x_adv)

        return gradient(objective, x_adv)[0]

    @torch.no_grad()
    def judge(self, x_adv: Pixels) -> tuple[PerImage, PerImage]:
        """Trains the critics on ``x_adv`` and keeps it where it is better; returns f and I."""
        if self.estimator:
            for _ in range(self.estimator.steps):
                self.critics.learn(*self.estimator.samples(self.x, x_adv, self.generator))
        f = self.criterion(x_adv, self.rows)
        information = self.similarity(x_adv)
        success = f <= 0
        if self.estimator and self.sign < 0:
            success &= information > 0
        self.best.keep(AttackResult(x_adv, information, success), self.sign, f < self.least)
        self.least = torch.minimum(self.least, f)
        return f, information


def penalty(
    model: nn.Module,
    criterion: Criterion,
    x: Pixels,
    *,
    rounds: int = 9,
    c: float = 1e-3,
    **settings,
) -> AttackResult:
    """The penalty baseline: ``minmax`` with fixed c, searched image by image (authors' code).

    In ``rounds`` attacks, c grows tenfold until one succeeds; then the interval between failure and
    success is halved. Keeps each image's success with the largest information (the smallest with
    ``similar=False``). ``settings`` go to ``minmax``.
    """
    check_images("x", x)
    check_count("rounds", rounds, 1)
    sign = 1 if settings.get("similar", True) else -1
    lower = x.new_zeros(len(x))
    upper = x.new_full((len(x),), torch.inf)
    now = x.new_full((len(x),), c)
    best = None
    for _ in range(rounds):
        new = minmax(model, criterion, x, c=now, **settings)
        if best is None:
            best = new
        else:
            best.keep(new, sign)
        upper = torch.where(new.success, now, upper)
        lower = torch.where(new.success, lower, now)
        now = torch.where(upper.isinf(), lower * 10, (lower + upper) / 2)
    return best


def ssim(a: Pixels, b: Pixels) -> PerImage:
    """Structural similarity of images in [0,1], 1 for equal ones.

    Wang et al. 2004: 11×11 Gaussian window of deviation 1.5.
    """
    ticks = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    line = torch.softmax(-ticks.square() / (2 * 1.5**2), 0)
    window = (line[:, None] * line).expand(a.shape[1], 1, 11, 11)

    def mean(z):
        return F.conv2d(z, window, groups=a.shape[1])

    m = mean(a)
    n = mean(b)
    variance_a = mean(a * a) - m * m
    variance_b = mean(b * b) - n * n
    covariance = mean(a * b) - m * n
    c1 = 0.01**2
    c2 = 0.03**2
    shared = (2 * m * n + c1) * (2 * covariance + c2)
    total = (m * m + n * n + c1) * (variance_a + variance_b + c2)
    return (shared / total).flatten(1).mean(1)
