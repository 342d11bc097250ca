"""The MinMax attack and its penalty baseline, which keep the information about an image large.

With ``similar=False`` they make it small: unsupervised adversarial examples. Sources: see
``mutual_information``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.inputs import (
    Labels,
    Pixels,
    between,
    check_ball,
    check_count,
    check_images,
    chunks,
    goal,
    rows_of,
)
from course_utils.core.training import eval_mode, gradients_on, outputs
from course_utils.methods.attacks import gradient, keep_better, lead, warn_of_undecided
from course_utils.methods.mutual_information import Estimator, PerImage

Rows = Int[Tensor, "n"]
Criterion = Callable[[Tensor, Rows], PerImage]  # f of x_adv, these rows of the batch; success: ≤ 0
Similarity = Callable[[Pixels, Pixels], PerImage]  # of x and x_adv


@dataclass
class AttackResult:
    """Each image's best iterate, its similarity, and whether it meets the criterion.

    An image without success holds the iterate closest to it, with information nan.
    """

    x_adv: Pixels
    information: PerImage
    success: Bool[Tensor, "n"]

    @classmethod
    def none(cls, x_adv: Pixels) -> "AttackResult":
        """No success for any image so far."""
        information = x_adv.new_full((len(x_adv),), torch.nan)
        return cls(x_adv, information, information > 0)

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

    The logits must differ by more than rounding can blur (as ``attacks.succeeded`` asks), so that
    the verdict stands in any batch. Warns where logits are too large for any verdict.
    """
    labels, sign, name = goal(y, target)

    def criterion(x_adv, rows):
        logits = outputs(model, x_adv)
        if len(rows) and rows.max() >= len(labels):
            raise ValueError(f"{name} has {len(labels)} labels; give one per image.")
        ahead, blur = lead(logits, labels[rows])
        if (blur > 1).any():  # a common offset: no attack may ever seem to succeed
            warn_of_undecided(ahead, blur)
        return kappa + 1.1 * blur - sign * ahead

    return criterion


def reconstructed(autoencoder: nn.Module, x: Pixels) -> Criterion:
    """f = ‖x − Φ(x_adv)‖² − ‖x − Φ(x)‖²: at most 0 where x_adv gives x back as well as x itself."""

    def error(images, copies):
        return (images - outputs(autoencoder, copies)).square().flatten(1).sum(1)

    with torch.no_grad(), eval_mode(autoencoder):
        own = torch.cat([error(batch, batch) for batch in x.split(1000)])

    def criterion(x_adv, rows):
        return error(x[rows], x_adv) - own[rows]

    return criterion


def closeness(x: Pixels, x_adv: Pixels) -> PerImage:
    """−‖δ‖₂²: a similarity without a critic. With ``similar=False`` it makes L2-UAE."""
    return -(x_adv - x).square().flatten(1).sum(1)


def nothing(x: Pixels, x_adv: Pixels) -> PerImage:
    """0 for every image: the control that leaves the criterion alone to drive the attack."""
    return x.new_zeros(len(x))


@gradients_on()
def minmax(
    model: nn.Module,
    criterion: Criterion,
    x: Pixels,
    *,
    estimator: Estimator | Similarity,
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
    ``estimator`` may also be a function of x and x_adv that takes the place of information, such
    as ``closeness`` or ``nothing``.

    ``model``, by which ``criterion`` judges, is held in eval mode. The slides start at δ = 0, the
    authors' code at random within ±``start``, as here (Glorot's limit for 28×28).

    Raises:
        ValueError: images outside [0,1], negative sizes or c, β outside [0, 1].
    """
    check_images("x", x)
    check_count("steps", steps, 0)
    sign = 1 if similar else -1
    weights = checked_weights(x, c, eps=eps, step_size=step_size, start=start, beta=beta)
    check_ball("inf", eps)
    if c is not None:
        beta = 0
    found = []
    with eval_mode(model):
        for rows in estimator.chunks(x) if isinstance(estimator, Estimator) else parts(x):
            search = Search(criterion, x[rows].detach(), rows, estimator, eps, sign)
            x_adv = search.begin(start if steps else 0, seed)
            search.run(x_adv, weights[rows], beta, steps, step_size, on_step)
            found.append(search.best)
    return joined(found)


def parts(x: Pixels) -> tuple[Rows, ...]:
    """Rows of ``x`` that fit into memory together; a single part for an empty batch."""
    return chunks(rows_of(x), x) or (rows_of(x),)


def joined(found: list[AttackResult]) -> AttackResult:
    """The results of several parts of a batch as one."""
    return AttackResult(
        torch.cat([part.x_adv for part in found]),
        torch.cat([part.information for part in found]),
        torch.cat([part.success for part in found]),
    )


def check_sizes(**sizes: float) -> None:
    """Refuses negative and infinite sizes, and a beta above 1."""
    for name, value in sizes.items():
        if not between(value, 0, 1 if name == "beta" else sys.float_info.max):
            raise ValueError(
                f"{name} is {value!r}; give a finite number of 0 or more (beta at most 1)."
            )


def speckle(x: Pixels, generator: torch.Generator) -> Pixels:
    """Noise within ±1 for one image: every image of a batch starts with the same."""
    return 2 * torch.rand(x.shape[1:], generator=generator).to(x) - 1


def checked_weights(x: Pixels, c: float | Tensor | None, **sizes: float) -> PerImage:
    """Returns ``c`` of each image, 0 where none is given; refuses bad c and sizes."""
    check_sizes(**sizes)
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
    estimator: Estimator | Similarity
    eps: float
    sign: int

    @property
    def learns(self) -> bool:
        """Whether critics estimate the similarity, and not a formula."""
        return isinstance(self.estimator, Estimator)

    def begin(self, size: float, seed: int) -> Pixels:
        """The first iterate: every image with the same noise within ±``size``."""
        self.generator = runtime.generator(seed)
        if self.learns:
            self.critics = self.estimator.critics(self.x)
        x_adv = self.within(self.x + size * speckle(self.x, self.generator))
        self.best = AttackResult.none(x_adv)
        # f of the iterate closest to success
        self.least = torch.full_like(self.best.information, torch.inf)
        return x_adv

    def run(
        self,
        x_adv: Pixels,
        weight: PerImage,
        beta: float,
        steps: int,
        step_size: float,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        """Takes ``steps`` steps from ``x_adv``; ``weight`` is c, which ``beta`` 0 keeps fixed."""
        for t in range(1, steps + 1):
            x_adv = self.within(x_adv - step_size * self.slope(x_adv, weight))
            f, information = self.judge(x_adv)
            weight = (1 - beta / t**0.25) * weight + beta * f.relu()
            if on_step is not None:
                on_step(Step(t, self.rows, x_adv.clone(), information, f, weight))

    def within(self, x_adv: Pixels) -> Pixels:
        """Brings ``x_adv`` into the ball and the box, and leaves what lies inside as it is.

        With ``geometry.project`` of x_adv − x, adding x again would round that too.
        """
        return x_adv.clamp(self.x - self.eps, self.x + self.eps).clamp(0, 1)

    def similarity(self, x_adv: Pixels) -> PerImage:
        """The bound of each image's critic, or what stands in its place."""
        if not self.learns:
            return self.estimator(self.x, x_adv)
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
        if self.learns:
            for _ in range(self.estimator.steps):
                self.critics.learn(*self.estimator.samples(self.x, x_adv, self.generator))
        f = self.criterion(x_adv, self.rows)
        information = self.similarity(x_adv)
        success = f <= 0
        if self.learns and self.sign < 0:
            success &= information > 0
        self.best.keep(AttackResult(x_adv, information, success), self.sign, f < self.least)
        self.least = torch.minimum(self.least, f)
        return f, information


@gradients_on()
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
    best = AttackResult.none(x.detach().clone())
    for attempt in range(rounds):
        new = minmax(model, criterion, x, c=now, **settings)
        best.keep(new, sign, closer=attempt == 0)
        upper = torch.where(new.success, now, upper)
        lower = torch.where(new.success, lower, now)
        now = torch.where(upper.isinf(), lower * 10, (lower + upper) / 2)
    return best


def ssim(a: Pixels, b: Pixels) -> PerImage:
    """Structural similarity of images in [0,1], 1 for equal ones.

    Wang et al. 2004: 11×11 Gaussian window of deviation 1.5.

    Raises:
        ValueError: images of different shapes, or of fewer than 11 pixels a side.
    """
    if a.shape != b.shape or a.dim() != 4 or min(a.shape[2:]) < 11:
        raise ValueError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; "
            "give images of one shape, (N, C, H, W), with 11 pixels or more a side."
        )
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
