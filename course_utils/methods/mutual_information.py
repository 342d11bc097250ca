"""Mutual information of an image and its perturbed copy, estimated by a trained critic (MINE).

Hsu, Chen, Lu, Liu and Yu, "Adversarial Examples can be Effective Data Augmentation for Unsupervised
Machine Learning" (AAAI 2022), as presented in the LMU seminar slides ("seminar slides" below). Each
of the two images gives K samples, and a critic learns to distinguish true pairs from shuffled ones.
Every image has its own critic, so many critics learn at once.

All random numbers (projections, shuffles, the start of an attack) are the same for every image of a
call: what happens to an image depends on the seed alone, not on the rest of its batch. Information
is in nats.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.core import runtime
from course_utils.core.inputs import Pixels, rows_of
from course_utils.core.training import eval_mode, gradients_on, outputs

# Bytes for critics and samples of a chunk; with more, the allocator costs more than batching saves
MEMORY = 2**28

PerImage = Float[Tensor, "n"]
Samples = Float[Tensor, "n k d"]
Order = Int[Tensor, "k"]
Sampler = Callable[[Tensor, Tensor, torch.Generator], tuple[Samples, Samples]]  # of x and x_adv
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # count -> pairs (u, v), one a row


def dv_bound(
    joint: Float[Tensor, "... k"], marginal: Float[Tensor, "... m"]
) -> Float[Tensor, "..."]:
    """Donsker–Varadhan: mean T(joint) − log mean exp T(marginal) (seminar slides, MINE, line 7).

    At most the mutual information when T sees endless fresh samples.
    """
    return joint.mean(-1) - (marginal.logsumexp(-1) - math.log(marginal.shape[-1]))


def table_information(p: Float[Tensor, "a b"]) -> float:
    """Mutual information of two discrete variables from the table of their joint probabilities."""
    if p.dim() != 2 or (p < 0).any() or abs(p.sum().item() - 1) > 1e-4:
        raise ValueError(
            f"p has shape {tuple(p.shape)}, entries from {p.min():.4g} and sum {p.sum():.4g}; "
            "give a table of probabilities."
        )
    p = p.cpu().double()  # some devices have no float64
    product = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return torch.special.xlogy(p, torch.where(p > 0, p / product, 1)).sum().item()


def gaussian_information(rho: float | Tensor, d: int = 1) -> Tensor:
    """Mutual information of d independent pairs of Gaussians: −d/2 · ln(1 − ``rho``²).

    On the CPU, in float64. ValueError for a correlation outside [−1, 1].
    """
    if isinstance(rho, Tensor):
        rho = rho.cpu()  # some devices have no float64
    rho = torch.as_tensor(rho, dtype=torch.float64)
    if not (rho.abs() <= 1).all():  # written so that NaN fails too
        raise ValueError(f"rho is {rho.tolist()}; give correlations between −1 and 1.")
    return -d / 2 * torch.log1p(-rho.square())


def projected_information(x: Pixels, x_adv: Pixels, size: int = 128) -> PerImage:
    """True information of ``projections`` not standardised: −size/2 · ln(1 − cos²(x, x_adv)).

    A Gaussian matrix turns the two images into ``size`` independent pairs of Gaussians whose
    correlation is the images' cosine. Infinite for parallel images. On the CPU, in float64.
    """
    x = x.flatten(1).cpu().double()
    x_adv = x_adv.flatten(1).cpu().double()
    cosine = F.cosine_similarity(x, x_adv) * (1 + 1e-14)  # parallel images reach 1
    return gaussian_information(cosine.clamp(-1, 1), size)


# -------------------------------------------------------------------------------------- critics


class MLP(nn.Module):
    """T(u, v) with ReLU layers of the given widths; ``inputs`` is d_u + d_v.

    Shapes (…, d_u), (…, d_v) -> (…); leading dimensions broadcast, as in all critics.
    """

    def __init__(self, inputs: int, *widths: int):
        super().__init__()
        layers = [inputs, *widths]
        self.hidden = nn.ModuleList(map(nn.Linear, layers, widths))
        self.out = nn.Linear(layers[-1], 1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(u.shape[:-1], v.shape[:-1])
        h = torch.cat([u.expand(*shape, -1), v.expand(*shape, -1)], -1)
        for layer in self.hidden:
            h = layer(h).relu()
        return self.out(h).squeeze(-1)


class PublishedCritic(nn.Module):
    """The critic of the authors' code for samples of ``d`` numbers (``maps``: √d × √d pixels).

    Two towers without activations (for maps a 2×2 convolution with 16 filters; 512 units; 10),
    summed; ReLU; a weighted sum of the 10. For maps of 26×26 it has 10 million parameters: see
    ``collapsed``.
    """

    def __init__(self, d: int, maps: bool = True):
        super().__init__()
        self.left = published_tower(d, maps)
        self.right = published_tower(d, maps)
        self.out = nn.Linear(10, 1, bias=False)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        left = self.left(u.flatten(0, -2)).unflatten(0, u.shape[:-1])
        right = self.right(v.flatten(0, -2)).unflatten(0, v.shape[:-1])
        return self.out((left + right).relu()).squeeze(-1)


def published_tower(d: int, maps: bool) -> nn.Sequential:
    if not maps:
        return nn.Sequential(nn.Linear(d, 512), nn.Linear(512, 10))
    side = math.isqrt(d)
    if side * side != d or side < 2:
        raise ValueError(f"d is {d}; feature maps must be square, 2×2 or larger.")
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 2),
        nn.Flatten(),
        nn.Linear(16 * (side - 1) ** 2, 512),
        nn.Linear(512, 10),
    )


class Affine(nn.Module):
    """What the published critic computes: T(u, v) = w · ReLU(A u + B v + b)."""

    def __init__(self, d: int, units: int = 10):
        super().__init__()
        self.left = nn.Linear(d, units)
        self.right = nn.Linear(d, units, bias=False)
        self.out = nn.Linear(units, 1, bias=False)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.out((self.left(u) + self.right(v)).relu()).squeeze(-1)


def collapsed(critic: PublishedCritic, d: int) -> Affine:
    """The affine critic that computes the same with a few hundredths of the parameters.

    Its training takes another path.
    """
    affine = Affine(d).to(critic.out.weight)
    basis = torch.eye(d).to(critic.out.weight)
    zero = torch.zeros_like(basis[:1])
    with torch.no_grad():
        left_bias = critic.left(zero)
        right_bias = critic.right(zero)
        affine.left.weight.copy_((critic.left(basis) - left_bias).T)
        affine.right.weight.copy_((critic.right(basis) - right_bias).T)
        affine.left.bias.copy_((left_bias + right_bias)[0])
        affine.out.weight.copy_(critic.out.weight)
    return affine


class Critics:
    """``count`` copies of one critic that learn at once, by Adam ascent on ``dv_bound``.

    Critic i learns from the samples of image i.
    """

    def __init__(self, critic: nn.Module, count: int, lr: float):
        self.critic = copy.deepcopy(critic)
        self.weights = {
            name: weight.detach().expand(count, *weight.shape).clone().requires_grad_()
            for name, weight in critic.named_parameters()
        }
        self.adam = torch.optim.Adam(self.weights.values(), lr=lr)

    def __call__(self, u: Samples, v: Samples) -> Float[Tensor, "n k"]:
        def one(weights, u, v):
            return torch.func.functional_call(self.critic, weights, (u, v))

        return torch.vmap(one)(self.weights, u, v)

    def bound(self, u: Samples, v: Samples, order: Order | None = None) -> PerImage:
        """``dv_bound`` of each image, shuffled by ``order``.

        Without one all K² pairs replace the shuffled ones, and the bound never exceeds log K.
        """
        if order is None:  # critics broadcast, so each sample passes its tower once
            pairs = self(u[:, :, None], v[:, None])
            return dv_bound(pairs.diagonal(dim1=1, dim2=2), pairs.flatten(1))
        values = self(u[:, None], torch.stack([v, v[:, order]], 1))
        return dv_bound(values[:, 0], values[:, 1])

    def learn(self, u: Samples, v: Samples, order: Order | None = None) -> PerImage:
        """Makes one step of Adam; returns the bounds before it."""
        with torch.enable_grad():
            bounds = self.bound(u.detach(), v.detach(), order)
            weights = list(self.weights.values())
            gradients = torch.autograd.grad(-bounds.sum(), weights, materialize_grads=True)
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient
        self.adam.step()
        return bounds.detach()


# ------------------------------------------------------------------------- samples of one image


def feature_maps(model: nn.Sequential, layer: str = "relu1") -> Sampler:
    """K samples are the K channels after ``layer`` (slides: "per-sample MINE via convolution")."""
    names = [name for name, _ in model.named_children()]
    if layer not in names:
        raise ValueError(f"layer is {layer!r}; the model's layers are {', '.join(names)}.")
    front = model[: names.index(layer) + 1]

    def sample(x, x_adv, generator):
        with eval_mode(front):
            u = outputs(front, x)
            v = outputs(front, x_adv)
        if u.dim() != 4:
            raise ValueError(
                f"layer {layer!r} gives shape {tuple(u.shape)}; "
                "samples need feature maps, (N, K, H, W)."
            )
        return u.flatten(2), v.flatten(2)

    return sample


def projections(count: int = 500, size: int = 128, standardise: bool = True) -> Sampler:
    """K = ``count`` samples M_k x of ``size`` numbers: "Gaussian compression".

    M_k is Gaussian with deviation 1/√size, drawn anew each time. ``standardise``, as the authors'
    code does, brings each sample to mean 0 and deviation 1.
    """

    def sample(x, x_adv, generator):
        pixels = x.shape[1:].numel()
        m = torch.randn(pixels, count * size, generator=generator).to(x) / math.sqrt(size)

        def project(images):
            samples = (images.flatten(1) @ m).view(len(images), count, size)
            return F.layer_norm(samples, (size,)) if standardise else samples

        return project(x), project(x_adv)

    return sample


# ------------------------------------------------------------------------------------ estimates


@gradients_on()
def train_critic(
    draw: Draw,
    critic: nn.Module,
    *,
    steps: int = 1500,
    batch: int = 1024,
    lr: float = 1e-3,
    decay: float = 0.99,
    seed: int = 0,
) -> nn.Module:
    """Trains a copy of ``critic`` on ``batch`` fresh pairs a step: MINE.

    Belghazi et al. (ICML 2018), section 3. The gradient of log mean exp T is biased in small
    batches, so its denominator is a running mean with ``decay`` (section 3.2). No pair that belongs
    together is left among the shuffled ones, where it would hold the bound near log ``batch``.
    """
    generator = runtime.generator(seed)
    critic = copy.deepcopy(critic)
    adam = torch.optim.Adam(critic.parameters(), lr=lr)
    average = None
    for _ in range(steps):
        u, v = draw(batch, generator)
        shuffled = critic(u, rolled(v, generator)).logsumexp(0) - math.log(batch)
        new = shuffled.detach()
        if average is None:
            average = new
        else:
            average = torch.logaddexp(average + math.log(decay), new + math.log(1 - decay))
        loss = (shuffled - average).exp() - critic(u, v).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    if steps and not loss.isfinite():
        raise ValueError(f"The critic's loss is {loss.item()}: use a smaller lr (now {lr}).")
    return critic.eval()


def held_out(critic: nn.Module, draw: Draw, *, count: int = 100_000, seed: int = 1) -> float:
    """``dv_bound`` of a trained critic on pairs that it has never seen."""
    generator = runtime.generator(seed)
    u, v = draw(count, generator)
    with torch.no_grad():
        return dv_bound(critic(u, v), critic(u, rolled(v, generator))).item()


def rolled(v: Float[Tensor, "m d"], generator: torch.Generator) -> Float[Tensor, "m d"]:
    """The rows moved on by a random number of places: none stays where it was."""
    places = torch.randint(1, max(2, len(v)), (), generator=generator)
    return v.roll(int(places), 0)


@dataclass(frozen=True)
class Estimator:
    """How an attack estimates information: samples of an image and a critic to start from.

    The critic makes ``steps`` steps of Adam per step of the attack.
    """

    sample: Sampler
    critic: nn.Module
    steps: int = 1
    lr: float = 1e-3

    def chunks(self, x: Tensor, pairs: bool = False) -> tuple[Int[Tensor, "m"], ...]:
        """Rows of ``x`` in parts whose critics and samples (or all pairs) fit into ``MEMORY``."""
        with torch.no_grad():
            samples, _ = self.sample(x[:1], x[:1], runtime.generator(0))
        numbers = 24 * samples.numel() * (samples.shape[1] if pairs else 1)
        # of each weight also the gradient and two moments
        numbers += 4 * sum(weight.numel() for weight in self.critic.parameters())
        return rows_of(x).split(max(1, MEMORY // (4 * numbers)))

    def critics(self, x: Tensor) -> Critics:
        """A fresh critic for every image, in the precision of the images."""
        return Critics(copy.deepcopy(self.critic).to(x), len(x), self.lr)

    def samples(
        self, x: Tensor, x_adv: Tensor, generator: torch.Generator, pairs: bool = False
    ) -> tuple[Samples, Samples, Order | None]:
        """Samples of both images and a shuffle, for ``Critics.bound``."""
        u, v = self.sample(x, x_adv, generator)
        order = torch.randperm(u.shape[1], generator=generator).to(u.device)
        return u, v, None if pairs else order


@gradients_on()
def estimate(
    x: Pixels,
    x_adv: Pixels,
    estimator: Estimator,
    *,
    steps: int,
    pairs: bool = False,
    seed: int = 0,
) -> PerImage:
    """The bound that a fresh critic per image, from the image's own samples, reaches in ``steps``.

    With ``pairs`` it is that of all K² pairs, at most log K; otherwise every step shuffles anew.
    """
    values = []
    for rows in estimator.chunks(x, pairs):
        generator = runtime.generator(seed)
        critics = estimator.critics(x[rows])
        for _ in range(steps):
            critics.learn(*estimator.samples(x[rows], x_adv[rows], generator, pairs))
        with torch.no_grad():
            values.append(critics.bound(*estimator.samples(x[rows], x_adv[rows], generator, pairs)))
    return torch.cat(values)
