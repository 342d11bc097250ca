"""Learning to Confuse: a network writes noise into training images, so that whatever learns from them is wrong on clean ones.

Feng, Cai and Zhou, "Learning to Confuse: Generating Training Time Adversarial Data with Auto-Encoder" (NeurIPS 2019); *DeepConfuse*. The
paper's bilevel problem: max over ξ of Σ L(f_θ*(x), y), where θ* = argmin over θ of Σ L(f_θ(x + g_ξ(x)), y) and |g_ξ(x)| ≤ ε.
"""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from torch.func import functional_call

from course_utils import runtime, training
from course_utils.attacks import _check_count
from course_utils.data import Images
from course_utils.models import _sequential
from course_utils.poisons import perturbed
from course_utils.second_order import quick_second_derivatives

Weights = dict[str, Tensor]
Pixels = Float[Tensor, "n c h w"]
Labels = Int[Tensor, "n"]


def autoencoder(*widths: int, channels: int = 1, size: int = 28) -> nn.Sequential:
    """The generator: 4×4 convolutions that halve the image, as many transposed ones that double it; batch norm and ReLU between them.

    The paper's description (four of 16, 32, 64, 128 channels; with 28 pixels two fit: ``autoencoder(16, 32)``). The last layer gives raw values,
    ``bounded`` makes noise of them. A ``size`` that cannot be halved so often is a ValueError.
    """
    if not widths or size % 2 ** len(widths):
        raise ValueError(f"size is {size} and widths {widths}; the image is halved once per width, so choose fewer widths or another size.")
    layers, inputs = OrderedDict(), channels
    for i, width in enumerate(widths, start=1):
        layers |= {f"down{i}": nn.Conv2d(inputs, width, 4, 2, 1), f"down{i}_norm": nn.BatchNorm2d(width), f"down{i}_relu": nn.ReLU()}
        inputs = width
    for i, width in enumerate((*reversed(widths[:-1]), channels), start=1):
        layers[f"up{i}"] = nn.ConvTranspose2d(inputs, width, 4, 2, 1)
        if i < len(widths):
            layers |= {f"up{i}_norm": nn.BatchNorm2d(width), f"up{i}_relu": nn.ReLU()}
        inputs = width
    return _sequential(**layers)


class UNet(nn.Module):
    """The generator of the paper's CIFAR-10 experiment: two 3×3 convolutions at each of four sizes, down by averaging, up by interpolation.

    64 to 512 channels with batch norm and ReLU; each size on the way up also sees that of the way down. 7,788,681 weights for three
    colours, as in the authors' code. Any size divisible by 8.
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        widths = (64, 128, 256, 512)
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(_twice(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Sequential(nn.Conv2d(widths[0], channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Pixels) -> Pixels:
        seen = []
        for i, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if i else x)
            seen.append(x)
        for block, skip in zip(self.up, seen[-2::-1], strict=True):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)], 1))
        return self.out(x)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def digit_generator(channels: int = 1) -> nn.Sequential:
    """The generator of the paper's MNIST code (the paper describes ``autoencoder(16, 32, 64, 128)``): 28×28 pixels to 2×2 of 64 channels and back.

    So it sees the whole digit, and its last batch norm makes the noise strong from the first step. 288,963 weights for grey images.
    """
    layers = OrderedDict(
        down1=nn.Conv2d(channels, 16, 3, 3, 1), norm1=nn.BatchNorm2d(16), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        down2=nn.Conv2d(16, 64, 3, 2, 1), norm2=nn.BatchNorm2d(64), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2, 1),
        up1=nn.ConvTranspose2d(64, 128, 3, 2), norm3=nn.BatchNorm2d(128), relu3=nn.ReLU(),
        up2=nn.ConvTranspose2d(128, 64, 5, 3, 1), norm4=nn.BatchNorm2d(64), relu4=nn.ReLU(),
        up3=nn.ConvTranspose2d(64, channels, 2, 2, 1), norm5=nn.BatchNorm2d(channels),
    )  # fmt: skip
    return _sequential(**layers)


def bounded(raw: Pixels, eps: float) -> Pixels:
    """ε · tanh(raw): noise within ±``eps`` for any raw value, and differentiable everywhere (section 3)."""
    return eps * raw.tanh()


@dataclass(frozen=True)
class Generated:
    """The poison of a generator: what it writes depends on the image alone, so it fits any images of the same size, in any order."""

    generator: nn.Module
    eps: float

    def noise(self, x: Pixels) -> Pixels:
        return bounded(training.predict(self.generator, x), self.eps)

    def __call__(self, images: Images) -> Images:
        return perturbed(images, self.noise(images.x), self.eps)


# ----------------------------------------------------------------------------------------------------------- first order


def head_start(
    generator: nn.Module,
    nets: Sequence[nn.Module],
    images: Images,
    target: Callable[[Labels], Labels],
    *,
    eps: float,
    steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> nn.Module:
    """Trains ``generator`` in place so that trained ``nets``, in turn, see class ``target(y)`` in x + g(x); no training is looked through.

    One network for all the examples of "Adversarial Examples Make Strong Poisons" (Fowl et al., NeurIPS 2021): a victim that finds features of
    class ``target(y)`` in images labelled y learns to call them y. Adam, its rate sinking to nothing. The nets are judged in eval mode and
    left as found. Raises ``ValueError`` for counts below 1 or without a net.
    """
    _check_count("steps", steps, 1)
    _check_count("batch_size", batch_size, 1)
    if not nets:
        raise ValueError("nets is empty; give at least one trained network.")
    adam = torch.optim.Adam(generator.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1, (step + 1) / 100) * (1 - step / steps))
    draw = runtime.generator(seed)
    generator.train()
    with ExitStack() as modes:
        for net in nets:
            modes.enter_context(training.eval_mode(net))
        for step in range(steps):
            rows = torch.randint(len(images), (batch_size,), generator=draw).to(images.x.device)
            x, y = images.x[rows], images.y[rows]
            loss = F.cross_entropy(nets[step % len(nets)]((x + bounded(generator(x), eps)).clamp(0, 1)), target(y))
            slopes = torch.autograd.grad(loss, list(generator.parameters()))  # of the generator alone: the nets get no gradients
            for weight, slope in zip(generator.parameters(), slopes, strict=True):
                weight.grad = slope
            adam.step()
            rate.step()
    return generator.eval()


# --------------------------------------------------------------------------------------------------- the second-order step


def pseudo_update(model: nn.Module, weights: Weights, x: Pixels, y: Labels, lr: float) -> Weights:
    """θ′ = θ − ``lr`` · ∇_θ L(f_θ(x), y), where L is the mean cross-entropy; differentiable in ``x`` and in θ (Algorithm 2, line 7).

    The model keeps its mode; batch norm in train mode updates its running statistics, as in any forward pass.
    """
    loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    return {name: weight - lr * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}


def confusion_gradient(
    model: nn.Module, weights: Weights, x: Pixels, y: Labels, poisoned: Pixels, goal: Labels, lr: float
) -> tuple[Pixels, Tensor]:
    """The gradient of L(f_θ′(x), ``goal``) with respect to the ``poisoned`` images, and that loss; θ′ is ``pseudo_update`` at them.

    By the chain rule it is −lr · ∂⟨∇_θ L(f_θ(x̃), y), v⟩ / ∂x̃ with v = ∇ L(f_θ′(x), goal): only the inner gradient needs a graph, and nothing is
    differentiated with respect to θ twice.
    """
    poisoned = poisoned.detach().requires_grad_()
    with quick_second_derivatives():
        loss = F.cross_entropy(functional_call(model, weights, (poisoned,)), y)
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    outcome, v = _slopes(model, _moved(weights, slopes, lr), x, goal)
    return -lr * torch.autograd.grad(slopes, poisoned, v)[0], outcome


def _slopes(model: nn.Module, weights: Weights, x: Pixels, y: Labels) -> tuple[Tensor, tuple[Tensor, ...]]:
    loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
    return loss.detach(), torch.autograd.grad(loss, list(weights.values()))


def _moved(weights: Weights, slopes: Sequence[Tensor], lr: float) -> Weights:
    """One step of SGD, without a graph."""
    return {name: (w.detach() - lr * g.detach()).requires_grad_() for (name, w), g in zip(weights.items(), slopes, strict=True)}


# ------------------------------------------------------------------------------------------------------------- learning


@dataclass
class Course:
    """What the trials of a learning showed, one entry each: the accuracy of a fresh network after an epoch on the poisoned images.

    ``train`` is its accuracy on the poisoned images it learned from, ``validation`` on clean images it has not seen, both in [0,1] and in eval
    mode; ``outcome`` the mean of L(f_θ′(x), goal) over the trial's steps, in nats.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    outcome: list[float] = field(default_factory=list)


def learn(
    images: Images,
    validation: Images,
    *,
    build: Callable[[], nn.Module],
    eps: float,
    trials: int,
    steps: int,
    generator: Callable[[], nn.Module] | None = None,
    target: Callable[[Labels], Labels] | None = None,
    batch_size: int = 64,
    lr_f: float = 0.01,
    lr_g: float = 1e-4,
    store: bool = False,
    start: Weights | None = None,
    seed: int = 0,
    on_trial: Callable[[int, Generated, Course], None] | None = None,
) -> tuple[Generated, Course]:
    """Trains a generator and returns the poison of the best trial, by clean ``validation`` accuracy, with the course of all trials.

    Algorithm 2 of the paper. A trial draws ``steps`` batches, and at each: the generator ascends L(f_θ′(x), y) through the classifier's
    pseudo-update, or with ``target`` descends L(f_θ′(x), target(y)) (the label-specific version: the paper says "line 10", meaning line 8);
    then the classifier, made by ``build``, takes the same step on noise of the generator as it was before the trial. ``store=True`` is
    Algorithm 1: the same, but the whole trajectory of the classifier is kept and replayed, at the price of its memory.
    ``generator`` makes the network that writes the noise (default: ``autoencoder(16, 32)``), ``start`` are weights for it to begin with. The
    paper's MNIST code: ``lr_f`` 0.01 (SGD), ``lr_g`` 1e-4 (Adam), a thousand trials of 938 steps; with few steps larger rates do more.

    The state is kept in the weight cache after every trial: a learning that was cut goes on, one that is done is read. Every trial seeds
    itself, so the result does not depend on where it was cut. ``on_trial(trial, poison, course)`` is called after each; its poison lives on and
    changes with the next trial. Raises ``ValueError`` for counts below 1 and for a ``target`` that is a lambda, which no key can name.
    """
    for name, count in (("trials", trials), ("steps", steps), ("batch_size", batch_size)):
        _check_count(name, count, 1)
    device, channels, size = images.x.device, images.x.shape[1], images.x.shape[2]
    with runtime.seeded(seed):
        generator, model = generator().to(device) if generator else autoencoder(16, 32, channels=channels, size=size).to(device), build()
    if start is not None:
        generator.load_state_dict(start)
    begin = hashlib.sha256(b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in generator.state_dict().values())).hexdigest()
    optimizer = torch.optim.Adam(generator.parameters(), lr=lr_g, fused=device.type != "mps")
    course, best, done = Course(), copy.deepcopy(generator.state_dict()), 0
    goal = target and training._name("target", target)
    settings = (repr(generator), begin, repr(model), eps, trials, steps, goal, batch_size, lr_f, lr_g, store, seed)
    path = _state_path(images, validation, settings)
    if state := training.read_state(path, device):
        generator.load_state_dict(state["generator"])
        optimizer.load_state_dict(state["optimizer"])
        course, best = Course(**state["course"]), state["best"]
        done = len(course.validation)
    for trial in range(done + 1, trials + 1):
        with runtime.seeded(1000 * seed + trial):
            outcome = _trial(generator, optimizer, build().to(device), images, eps, steps, target, batch_size, lr_f, store)
            poison = Generated(generator.eval(), eps)
            victim, poisoned = build().to(device), poison(images)
            training.fit(victim, poisoned, epochs=1, batch_size=batch_size, optimizer=scratch, seed=trial, verbose=False)
        course.outcome.append(outcome)
        course.train.append(training.accuracy(victim, poisoned))
        course.validation.append(training.accuracy(victim, validation))
        if course.validation[-1] == min(course.validation):
            best = copy.deepcopy(generator.state_dict())
        training.keep_state(
            path, {"generator": generator.state_dict(), "optimizer": optimizer.state_dict(), "course": asdict(course), "best": best}
        )
        if on_trial is not None:
            on_trial(trial, poison, course)
    generator.load_state_dict(best)
    return Generated(generator.eval(), eps), course


def scratch(parameters) -> torch.optim.Optimizer:
    """How a trial's fresh network learns: Adam at 0.01, as in the paper's last test (test_model.py)."""
    return torch.optim.Adam(parameters, lr=0.01)


def _trial(
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    images: Images,
    eps: float,
    steps: int,
    target: Callable[[Labels], Labels] | None,
    batch_size: int,
    lr: float,
    store: bool,
) -> float:
    """One trial: ``steps`` steps of a fresh ``model``, and as many of the generator. Returns the mean outcome."""
    generator.to(memory_format=torch.channels_last).train()  # as training.fit does: cheaper convolutions on CPUs
    sign = 1 if target else -1
    model.to(memory_format=torch.channels_last).train()
    rows = torch.cat([torch.randperm(len(images)) for _ in range(-(-steps * batch_size // len(images)))])[: steps * batch_size]
    weights = {name: weight.detach().requires_grad_() for name, weight in model.named_parameters()}
    outcomes, trajectory = [], []

    def confuse(weights: Weights, x: Pixels, y: Labels) -> None:
        poisoned = (x + bounded(generator(x), eps)).clamp(0, 1)
        gradient, outcome = confusion_gradient(model, weights, x, y, poisoned, target(y) if target else y, lr)
        optimizer.zero_grad()
        poisoned.backward(sign * gradient)
        optimizer.step()
        outcomes.append(outcome)

    rows = rows.to(images.x.device)
    noise = Generated(generator, eps).noise(images.x[rows])  # for the classifier's own steps: it stays the same throughout the trial
    for batch, still in zip(rows.split(batch_size), noise.split(batch_size), strict=True):
        x, y = images.x[batch].to(memory_format=torch.channels_last), images.y[batch]
        trajectory.append((weights, x, y)) if store else confuse(weights, x, y)
        weights = _moved(weights, _slopes(model, weights, (x + still).clamp(0, 1), y)[1], lr)
    for moment in trajectory:
        confuse(*moment)
    return torch.stack(outcomes).mean().item()


def _state_path(images: Images, validation: Images, settings: tuple) -> Path:
    parts = (images.fingerprint, validation.fingerprint, images.x.device.type, settings)
    digest = hashlib.sha256(repr(parts).encode() + Path(__file__).read_bytes())
    return runtime.cache_dir() / "weights" / f"confuse-{digest.hexdigest()[:24]}.pt"


# --------------------------------------------------------------------------------------------- the generator that comes with us


def save(poison: Generated, data: str) -> Path:
    """Keeps a learned ``digit_generator`` with the package, for ``shipped(data)``; ``data`` is the ``source`` of its images."""
    path = _shipped_path(data)
    training.keep_weights(path, poison.generator, eps=str(poison.eps))
    return path


def shipped(data: str, device: torch.device | str = "cpu") -> Generated:
    """A ``digit_generator`` that learned long, at ε = 0.3, to make victims see class y + 1; for 28×28 grey images.

    ``data`` is the ``source`` of the images: one was trained on MNIST, and one on the embedded digits, which serves all else. Lecture 11 at full
    scale makes them, from the first 20,000 images of ``train.split(len(train) // 12, seed=0)[0]``; on other images they do less (lecture 12).
    """
    generator = digit_generator()
    with safe_open(_shipped_path(data), framework="pt") as file:
        generator.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        eps = float(file.metadata()["eps"])
    return Generated(generator.to(device).eval(), eps)


def _shipped_path(data: str) -> Path:
    return Path(__file__).with_name(f"confuse-{'mnist' if data == 'MNIST' else 'digits'}.safetensors")
