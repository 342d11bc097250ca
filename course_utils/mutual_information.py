"""Mutual information by a trained critic (MINE), and the attacks built on it.

Hsu, Chen, Lu, Liu and Yu, "Adversarial Examples can be Effective Data Augmentation for Unsupervised Machine Learning" (AAAI 2022), as presented
in the LMU seminar slides ("seminar slides" below). One image is compared with its perturbed copy: K samples are made of each, and a critic of
their own learns to tell the pairs that belong together from shuffled ones. Every image has its own critic, so many critics learn at once.

All random numbers (projections, shuffles, the start of an attack) are the same for every image of a call: what happens to an image depends on
the seed alone, not on its batch mates, and a large batch can be worked through in chunks. Information is in nats.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_utils import runtime
from course_utils.attacks import Images, Labels, _check_count, _check_images, _goal
from course_utils.training import eval_mode

MEMORY = 2**28  # bytes that critics and samples of one chunk may take; with more, the allocator costs more than batching saves

Samples = Float[Tensor, "n k d"]
Sampler = Callable[[Tensor, Tensor, torch.Generator], tuple[Samples, Samples]]  # (x, x_adv, generator) -> K samples of each image
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # (count, generator) -> pairs (u, v), one per row
Criterion = Callable[[Tensor, Tensor], Float[Tensor, "n"]]  # (x_adv, rows of the batch they are) -> f, at most 0 where the attack succeeded


def dv_bound(joint: Float[Tensor, "... k"], marginal: Float[Tensor, "... m"]) -> Float[Tensor, "..."]:
    """Donsker–Varadhan: mean T(joint) − log mean exp T(marginal), at most the mutual information when T meets endless fresh samples.

    Seminar slides, "MINE Algorithm", line 7.
    """
    return joint.mean(-1) - (marginal.logsumexp(-1) - math.log(marginal.shape[-1]))


def table_information(p: Float[Tensor, "a b"]) -> float:
    """Mutual information of two discrete variables from the table of their joint probabilities."""
    if p.dim() != 2 or (p < 0).any() or abs(p.sum().item() - 1) > 1e-4:
        raise ValueError(f"p has shape {tuple(p.shape)}, entries from {p.min():.4g} and sum {p.sum():.4g}; give a table of probabilities.")
    p = p.double()
    product = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return torch.special.xlogy(p, torch.where(p > 0, p / product, 1)).sum().item()


def gaussian_information(rho: float | Tensor, d: int = 1) -> Tensor:
    """Mutual information of d independent pairs of Gaussians with correlation ``rho``: −d/2 · ln(1 − ρ²)."""
    return -d / 2 * torch.log1p(-torch.as_tensor(rho, dtype=torch.float64).square())


def projected_information(x: Images, x_adv: Images, size: int = 128) -> Float[Tensor, "n"]:
    """The true mutual information of ``projections`` of an image and its copy that are not standardised: −size/2 · ln(1 − cos²(x, x_adv)).

    The rows of a Gaussian matrix turn the two images into ``size`` independent pairs of Gaussians whose correlation is the cosine between the
    images; so the value knows nothing of the images but their angle. Infinite for parallel images.
    """
    x, x_adv = x.flatten(1).double(), x_adv.flatten(1).double()
    cosine = F.cosine_similarity(x, x_adv) * (1 + 1e-14)  # else rounding keeps parallel images apart
    return gaussian_information(cosine.clamp(-1, 1), size)


# -------------------------------------------------------------------------------------------------------------- critics


class MLP(nn.Module):
    """T(u, v) with ReLU layers of the given widths on (u, v): (…, d_u), (…, d_v) -> (…), leading dimensions broadcast, as in all critics."""

    def __init__(self, inputs: int, *widths: int):
        super().__init__()
        layers = [inputs, *widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(layers, layers[1:], strict=False))
        self.out = nn.Linear(layers[-1], 1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(u.shape[:-1], v.shape[:-1])
        h = torch.cat([z.expand(*shape, -1) for z in (u, v)], -1)
        for layer in self.hidden:
            h = layer(h).relu()
        return self.out(h).squeeze(-1)


class Published(nn.Module):
    """The critic of the authors' code for samples of ``d`` numbers, or of ``d`` = side · side numbers where ``maps`` says they are feature maps.

    Two towers without any activation (for maps a 2×2 convolution with 16 filters and 512 units, else 512 units; then 10), summed; ReLU; a sum
    of the 10 with weights. Some 10 million parameters for maps of 26×26: see ``collapsed``.
    """

    def __init__(self, d: int, maps: bool = True):
        super().__init__()
        self.left, self.right = (self._tower(d, maps) for _ in range(2))
        self.out = nn.Linear(10, 1, bias=False)

    @staticmethod
    def _tower(d: int, maps: bool) -> nn.Sequential:
        if not maps:
            return nn.Sequential(nn.Linear(d, 512), nn.Linear(512, 10))
        side = math.isqrt(d)
        if side * side != d or side < 2:
            raise ValueError(f"d is {d}; feature maps must be square, 2×2 or larger.")
        image = nn.Unflatten(1, (1, side, side))
        return nn.Sequential(image, nn.Conv2d(1, 16, 2), nn.Flatten(), nn.Linear(16 * (side - 1) ** 2, 512), nn.Linear(512, 10))

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        towers = (tower(z.flatten(0, -2)).unflatten(0, z.shape[:-1]) for tower, z in ((self.left, u), (self.right, v)))
        return self.out(sum(towers).relu()).squeeze(-1)


class Affine(nn.Module):
    """What the published critic computes: T(u, v) = w · ReLU(A u + B v + b), as its towers are affine maps."""

    def __init__(self, d: int, units: int = 10):
        super().__init__()
        self.left, self.right = nn.Linear(d, units), nn.Linear(d, units, bias=False)
        self.out = nn.Linear(units, 1, bias=False)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.out((self.left(u) + self.right(v)).relu()).squeeze(-1)


def collapsed(critic: Published, d: int) -> Affine:
    """The affine critic that computes what ``critic`` does, with a few hundredths of its parameters. Its training takes another path."""
    affine = Affine(d).to(critic.out.weight)
    basis = torch.eye(d).to(critic.out.weight)
    with torch.no_grad():
        biases = {}
        for name in ("left", "right"):
            tower = getattr(critic, name)
            biases[name] = tower(torch.zeros_like(basis[:1]))
            getattr(affine, name).weight.copy_((tower(basis) - biases[name]).T)
        affine.left.bias.copy_((biases["left"] + biases["right"])[0])
        affine.out.weight.copy_(critic.out.weight)
    return affine


class Critics:
    """``count`` copies of one critic that learn side by side, critic i from the samples of image i, by Adam ascent on ``dv_bound``."""

    def __init__(self, critic: nn.Module, count: int, lr: float):
        self.critic = copy.deepcopy(critic)
        self.weights = {n: p.detach().expand(count, *p.shape).clone().requires_grad_() for n, p in critic.named_parameters()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=lr)

    def __call__(self, u: Samples, v: Samples) -> Float[Tensor, "n k"]:
        return torch.vmap(lambda w, u, v: torch.func.functional_call(self.critic, w, (u, v)))(self.weights, u, v)

    def bound(self, u: Samples, v: Samples, order: Int[Tensor, "k"] | None = None) -> Float[Tensor, "n"]:
        """``dv_bound`` of each image; shuffled samples are v in the given ``order``, without one all K² pairs, which never exceeds log K."""
        if order is None:
            pairs = self(u[:, :, None], v[:, None])  # critics broadcast, so each sample passes its tower once
            return dv_bound(pairs.diagonal(dim1=1, dim2=2), pairs.flatten(1))
        values = self(u[:, None], torch.stack([v, v[:, order]], 1))
        return dv_bound(values[:, 0], values[:, 1])

    def learn(self, u: Samples, v: Samples, order: Int[Tensor, "k"] | None = None) -> Float[Tensor, "n"]:
        """One step of Adam; returns the bounds before it."""
        with torch.enable_grad():
            bounds = self.bound(u.detach(), v.detach(), order)
            gradients = torch.autograd.grad(-bounds.sum(), list(self.weights.values()))
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient
        self.adam.step()
        return bounds.detach()


# -------------------------------------------------------------------------------------------------- samples of one image


def feature_maps(model: nn.Sequential, layer: str = "relu1") -> Sampler:
    """K samples are the K channels that ``model`` shows after ``layer``, flattened: the seminar slides' "per-sample MINE via convolution"."""
    names = [name for name, _ in model.named_children()]
    if layer not in names:
        raise ValueError(f"layer is {layer!r}; the model's layers are {', '.join(names)}.")
    front = model[: names.index(layer) + 1]

    def sample(x: Tensor, x_adv: Tensor, generator: torch.Generator) -> tuple[Samples, Samples]:
        with eval_mode(front):
            u, v = front(x), front(x_adv)
        if u.dim() != 4:
            raise ValueError(f"layer {layer!r} gives shape {tuple(u.shape)}; samples need feature maps, (N, K, H, W).")
        return u.flatten(2), v.flatten(2)

    return sample


def projections(count: int = 500, size: int = 128, standardise: bool = True) -> Sampler:
    """K = ``count`` samples M_k x of ``size`` numbers, M_k Gaussian with deviation 1/√size, drawn anew each time: "Gaussian compression".

    The authors' code brings each sample to mean 0 and deviation 1: ``standardise``.
    """

    def sample(x: Tensor, x_adv: Tensor, generator: torch.Generator) -> tuple[Samples, Samples]:
        pixels = x.shape[1:].numel()
        m = torch.randn(pixels, count * size, generator=generator).to(x) / math.sqrt(size)
        u, v = ((z.flatten(1) @ m).view(len(z), count, size) for z in (x, x_adv))
        if standardise:
            u, v = (F.layer_norm(z, (size,)) for z in (u, v))
        return u, v

    return sample


# -------------------------------------------------------------------------------------------------------------- estimates


def mine(
    draw: Draw, critic: nn.Module, *, steps: int = 1500, batch: int = 1024, lr: float = 1e-3, decay: float = 0.99, seed: int = 0
) -> nn.Module:
    """A copy of ``critic`` trained on ``batch`` fresh pairs a step: MINE as Belghazi et al. (ICML 2018) wrote it, section 3.

    The gradient of log mean exp T is biased in small batches; its denominator is a running mean with ``decay`` (their section 3.2).
    """
    generator, critic, average = runtime.generator(seed), copy.deepcopy(critic), None
    adam = torch.optim.Adam(critic.parameters(), lr=lr)
    for _ in range(steps):
        u, v = draw(batch, generator)
        shuffled = critic(u, v[torch.randperm(batch, generator=generator)]).logsumexp(0) - math.log(batch)
        new = shuffled.detach()
        average = new if average is None else torch.logaddexp(average + math.log(decay), new + math.log(1 - decay))
        loss = (shuffled - average).exp() - critic(u, v).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return critic.eval()


def held_out(critic: nn.Module, draw: Draw, *, count: int = 100_000, seed: int = 1) -> float:
    """``dv_bound`` of a trained critic on pairs that it has never seen."""
    generator = runtime.generator(seed)
    u, v = draw(count, generator)
    with torch.no_grad():
        return dv_bound(critic(u, v), critic(u, v[torch.randperm(count, generator=generator)])).item()


@dataclass(frozen=True)
class Mine:
    """How an attack estimates information: samples of each image, a critic to start from, and its training (Adam) per step of the attack."""

    sample: Sampler
    critic: nn.Module
    steps: int = 1
    lr: float = 1e-3

    def chunks(self, x: Tensor, pairs: bool = False) -> Iterator[Tensor]:
        """Rows of ``x``, so many at a time that critics (weights, gradients, two moments) and samples (or all pairs) fit into ``MEMORY``."""
        with torch.no_grad():
            samples = self.sample(x[:1], x[:1], runtime.generator(0))[0]
        numbers = 4 * sum(p.numel() for p in self.critic.parameters()) + 24 * samples.numel() * (samples.shape[1] if pairs else 1)
        return iter(torch.arange(len(x), device=x.device).split(max(1, MEMORY // (4 * numbers))))


def estimate(x: Images, x_adv: Images, mine: Mine, *, steps: int, pairs: bool = False, seed: int = 0) -> Float[Tensor, "n"]:
    """The bound that a fresh critic per image reaches in ``steps`` steps, (N,): an image's own K samples are all that it sees.

    With ``pairs`` the K² pairs stand for the shuffled samples: the value never exceeds log K. Otherwise every step shuffles anew.
    """
    values = []
    for rows in mine.chunks(x, pairs):
        generator, critics = runtime.generator(seed), Critics(copy.deepcopy(mine.critic).to(x), len(rows), mine.lr)
        for _ in range(steps):
            u, v, order = _samples(mine, x[rows], x_adv[rows], generator)
            critics.learn(u, v, None if pairs else order)
        with torch.no_grad():
            u, v, order = _samples(mine, x[rows], x_adv[rows], generator)
            values.append(critics.bound(u, v, None if pairs else order))
    return torch.cat(values)


def _samples(mine: Mine, x: Tensor, x_adv: Tensor, generator: torch.Generator) -> tuple[Samples, Samples, Tensor]:
    u, v = mine.sample(x, x_adv, generator)
    return u, v, torch.randperm(u.shape[1], generator=generator).to(u.device)


# ---------------------------------------------------------------------------------------------------------------- attacks


@dataclass
class Found:
    """What an attack found, image by image: the best iterate, its similarity, and whether it meets the criterion.

    An image without success holds the iterate closest to it, with information nan.
    """

    x_adv: Images
    information: Float[Tensor, "n"]
    success: Bool[Tensor, "n"]


@dataclass
class Step:
    """What ``on_step`` sees after every step of a chunk of the batch, one entry per image: see ``minmax``."""

    step: int
    rows: Int[Tensor, "n"]
    x_adv: Images
    information: Float[Tensor, "n"]
    criterion: Float[Tensor, "n"]
    c: Float[Tensor, "n"]


def misclassified(model: nn.Module, y: Labels | None = None, target: Labels | None = None, kappa: float = 0.0) -> Criterion:
    """f = z_y − max_{j≠y} z_j + κ, or max_{j≠t} z_j − z_t + κ with a target: at most 0 where the model is fooled.

    The logits must differ by more than float32 could blur (as ``attacks.succeeded`` asks), so that the verdict stands in any batch.
    """
    labels, sign, _ = _goal(y, target)

    def criterion(x_adv: Tensor, rows: Tensor) -> Tensor:
        logits = model(x_adv)
        own = logits.gather(1, labels[rows, None]).squeeze(1)
        other = logits.scatter(1, labels[rows, None], -torch.inf).amax(1)
        return sign * (own - other) + kappa + 1.1e-5 * (1 + logits.detach().abs().amax(1))

    return criterion


def reconstructed(autoencoder: nn.Module, x: Images) -> Criterion:
    """f = ‖x − Φ(x_adv)‖² − ‖x − Φ(x)‖²: at most 0 where the perturbed copy gives the original back at least as well as the original does."""
    with torch.no_grad(), eval_mode(autoencoder):
        own = torch.cat([(batch - autoencoder(batch)).square().flatten(1).sum(1) for batch in x.split(1000)])
    return lambda x_adv, rows: (x[rows] - autoencoder(x_adv)).square().flatten(1).sum(1) - own[rows]


def minmax(
    model: nn.Module,
    criterion: Criterion,
    x: Images,
    *,
    mine: Mine | None,
    eps: float = 1.0,
    steps: int = 1000,
    step_size: float = 0.01,
    beta: float = 0.1,
    c: float | Tensor | None = None,
    similar: bool = True,
    start: float = 0.086,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Found:
    """The MinMax attack (seminar slides, Algorithm 1): min over δ, max over c ≥ 0 of c · f⁺(x + δ) − I(x, x + δ).

    Plain gradient steps on δ; then δ into [−``eps``, ``eps``] and x + δ into [0,1]; then ``mine.steps`` steps of each image's critic; then the
    dual variable, c ← (1 − ``beta``/t^¼) c + ``beta`` f⁺. Kept is the iterate with the largest information among those with f ≤ 0. With
    ``similar=False`` information is made small instead (unsupervised adversarial examples), and only positive values count, as in the authors'
    code. ``mine=None`` puts −‖δ‖₂² in the place of information (L2-UAE).

    ``model`` is what ``criterion`` judges by; it is held in eval mode. The slides start at δ = 0, the authors'
    code at random within ±``start`` (Glorot's limit for 28×28), which is the default here. A given ``c`` (a number, or one per image) stays fixed.

    Raises:
        ValueError: images outside [0,1], negative sizes or c, β outside [0, 1].
    """
    _check_images("x", x)
    _check_count("steps", steps, 0)
    for name, value in (("eps", eps), ("step_size", step_size), ("start", start), ("beta", beta)):
        if not 0 <= value < math.inf or (name == "beta" and value > 1):
            raise ValueError(f"{name} is {value!r}; give a finite number of 0 or more (beta at most 1).")
    given = None if c is None else torch.as_tensor(c).to(x)
    if given is not None and (given.shape not in ((), x.shape[:1]) or not ((given >= 0) & given.isfinite()).all()):
        raise ValueError(f"c is {given.tolist()}; give a finite number of 0 or more, or one for each of the {len(x)} images.")
    found = [], [], []
    with eval_mode(model):
        for rows in mine.chunks(x) if mine else [torch.arange(len(x), device=x.device)]:
            fixed = None if given is None else given.expand(len(x))[rows]
            for parts, part in zip(
                found,
                _minmax(criterion, x[rows].detach(), rows, mine, eps, steps, step_size, beta, fixed, similar, start, seed, on_step),
                strict=True,
            ):
                parts.append(part)
    return Found(*map(torch.cat, found))


def _minmax(criterion, x, rows, mine, eps, steps, step_size, beta, c, similar, start, seed, on_step):
    sign = 1 if similar else -1
    generator = runtime.generator(seed)
    critics = mine and Critics(copy.deepcopy(mine.critic).to(x), len(x), mine.lr)

    def box(x_adv: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)

    def similarity(x_adv: Tensor) -> Tensor:
        if mine is None:
            return -(x_adv - x).square().flatten(1).sum(1)
        u, v, order = _samples(mine, x, x_adv, generator)
        return critics.bound(u, v, order)

    def slope(x_adv: Tensor, weight: Tensor) -> Tensor:
        with torch.enable_grad():
            x_adv = x_adv.requires_grad_()
            value = weight * criterion(x_adv, rows).relu() - sign * similarity(x_adv)
            return torch.autograd.grad(value.sum(), x_adv)[0]

    fixed = c is not None
    c = c if fixed else x.new_zeros(len(x))
    x_adv = box(x + start * (2 * torch.rand(x.shape[1:], generator=generator).to(x) - 1)) if steps else x
    best, least = x_adv.clone(), x.new_full((len(x),), torch.inf)
    information, success = x.new_full((len(x),), torch.nan), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for t in range(1, steps + 1):
        x_adv = box(x_adv - step_size * slope(x_adv, c)).detach()
        with torch.no_grad():
            for _ in range(mine.steps if mine else 0):
                critics.learn(*_samples(mine, x, x_adv, generator))
            f, now = criterion(x_adv, rows), similarity(x_adv)
        if not fixed:
            c = (1 - beta / t**0.25) * c + beta * f.relu()
        valid = (f <= 0) & ((now > 0) | similar | (mine is None))
        better = torch.where(valid, ~success | (sign * now > sign * information), ~success & (f < least))
        best[better], least = x_adv[better], torch.minimum(least, f)
        information = torch.where(valid & better, now, information)
        success |= valid
        if on_step is not None:
            on_step(Step(t, rows, x_adv.clone(), now, f, c))
    return best, information, success


def penalty(model: nn.Module, criterion: Criterion, x: Images, *, rounds: int = 9, c: float = 1e-3, **settings) -> Found:
    """The penalty baseline: ``minmax`` with c held fixed, and a search for c image by image, as in the authors' code.

    c grows tenfold until an attack succeeds, and the interval between failure and success is then halved; ``rounds`` attacks in all. Each image
    keeps its success with the largest information (the smallest with ``similar=False``). ``settings`` go to ``minmax``.
    """
    _check_images("x", x)
    _check_count("rounds", rounds, 1)
    lower, upper = x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)
    now, best, sign = x.new_full((len(x),), c), None, 1 if settings.get("similar", True) else -1
    for _ in range(rounds):
        new = minmax(model, criterion, x, c=now, **settings)
        if best is None:
            best = new
        else:
            better = new.success & (~best.success | (sign * new.information > sign * best.information))
            best.x_adv[better], best.information[better] = new.x_adv[better], new.information[better]
            best.success = best.success | new.success
        upper, lower = torch.where(new.success, now, upper), torch.where(new.success, lower, now)
        now = torch.where(upper.isinf(), lower * 10, (lower + upper) / 2)
    return best


def ssim(a: Images, b: Images) -> Float[Tensor, "n"]:
    """Structural similarity of images in [0,1], 1 for equal ones (Wang et al. 2004: 11×11 Gaussian window of deviation 1.5)."""
    ticks = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    line = torch.softmax(-ticks.square() / (2 * 1.5**2), 0)
    window = (line[:, None] * line).expand(a.shape[1], 1, 11, 11)
    mean = lambda z: F.conv2d(z, window, groups=a.shape[1])  # noqa: E731
    m, n = mean(a), mean(b)
    variance_a, variance_b, covariance = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
    c1, c2 = 0.01**2, 0.03**2
    quality = (2 * m * n + c1) * (2 * covariance + c2) / ((m * m + n * n + c1) * (variance_a + variance_b + c2))
    return quality.flatten(1).mean(1)
