"""Learning to Confuse: a network writes noise into training images, to ruin what learns from them.

Feng, Cai and Zhou, "Learning to Confuse: Generating Training Time Adversarial Data with
Auto-Encoder" (NeurIPS 2019); *DeepConfuse*. The paper's bilevel problem: max over ξ of
Σ L(f_θ*(x), y), where θ* = argmin over θ of Σ L(f_θ(x + g_ξ(x)), y) and |g_ξ(x)| ≤ ε.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from course_utils.core import cache, runtime, stored, training
from course_utils.core.generators import digit_generator, noise_autoencoder
from course_utils.core.images import Images
from course_utils.core.inputs import Labels, Pixels, check_count, check_eps, first_outputs
from course_utils.methods.double_backward import quick_second_derivatives
from course_utils.methods.poisons import perturbed

Weights = dict[str, Tensor]
Target = Callable[[Labels], Labels]


def bounded(raw: Pixels, eps: float) -> Pixels:
    """ε · tanh(raw): noise within ±``eps``, differentiable everywhere (section 3)."""
    return eps * raw.tanh()


@dataclass(frozen=True)
class Generated:
    """The poison of a generator. Its noise depends on the image alone, so it fits any images."""

    generator: nn.Module
    eps: float

    def noise(self, x: Pixels) -> Pixels:
        return bounded(training.predict(self.generator, x), self.eps)

    def __call__(self, images: Images) -> Images:
        return perturbed(images, self.noise(images.x), self.eps)


# --- first order


@training.gradients_on()
def head_start(
    generator: nn.Module,
    nets: Sequence[nn.Module],
    images: Images,
    target: Target,
    *,
    eps: float,
    steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> nn.Module:
    """Trains ``generator`` in place so that each of ``nets`` sees class ``target(y)`` in x + g(x).

    "Adversarial Examples Make Strong Poisons" (Fowl et al., NeurIPS 2021) with one network for all
    examples: a victim that finds features of class ``target(y)`` in images labelled y learns to
    call them y. No gradient goes through a training. Adam, its rate falling to zero; the nets take
    turns, are judged in eval mode and left as found. Raises ``ValueError`` for counts below 1 or
    without a net.
    """
    check_count("steps", steps, 1)
    check_count("batch_size", batch_size, 1)
    check_eps(eps)
    if not nets:
        raise ValueError("nets is empty; give at least one trained network.")
    check_generator(generator, images)
    weights = [weight for weight in generator.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, partial(rise_and_fall, steps))
    draw = runtime.generator(seed)
    generator.train()
    with ExitStack() as modes:
        for net in nets:
            modes.enter_context(training.eval_mode(net))
        for step in range(steps):
            rows = torch.randint(len(images), (batch_size,), generator=draw).to(images.x.device)
            x = images.x[rows]
            net = nets[step % len(nets)]
            logits = training.outputs(net, (x + bounded(generator(x), eps)).clamp(0, 1))
            loss = F.cross_entropy(logits, target(images.y[rows]))
            # By hand, so that the nets get no gradients.
            slopes = torch.autograd.grad(loss, weights, materialize_grads=True)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            adam.step()
            rate.step()
    return generator.eval()


def rise_and_fall(steps: int, step: int) -> float:
    """What multiplies the rate: from 0 to 1 in 100 steps, and to 0 at the end."""
    return min(1, (step + 1) / 100) * (1 - step / steps)


# --- the second-order step


def slopes_at(
    model: nn.Module, weights: Weights, x: Pixels, y: Labels, create_graph: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The mean cross-entropy L(f_θ(x), y) and ∇_θ L, for θ = ``weights``."""
    loss = loss_at(model, weights, x, y)
    return loss.detach(), slopes_of(loss, weights, create_graph)


def loss_at(model: nn.Module, weights: Weights, x: Pixels, y: Labels) -> Tensor:
    """The mean cross-entropy L(f_θ(x), y) for θ = ``weights``."""
    logits = training.checked_outputs(functional_call(model, weights, (x.clone(),)), x)
    return F.cross_entropy(logits, y)


def slopes_of(loss: Tensor, weights: Weights, create_graph: bool) -> tuple[Tensor, ...]:
    """The gradient of ``loss`` in each of the weights; zeros where the model leaves some out."""
    wanted = list(weights.values())
    return torch.autograd.grad(loss, wanted, create_graph=create_graph, materialize_grads=True)


def pseudo_update(model: nn.Module, weights: Weights, x: Pixels, y: Labels, lr: float) -> Weights:
    """θ′ = θ − ``lr`` · ∇_θ L(f_θ(x), y), differentiable in ``x`` and in θ (Algorithm 2, line 7).

    L is the mean cross-entropy. The model keeps its mode; batch norm in train mode updates its
    running statistics, as in any forward pass.
    """
    _, slopes = slopes_at(model, weights, x, y, create_graph=True)
    moved = {}
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        moved[name] = weight - lr * slope
    return moved


def sgd_step(weights: Weights, slopes: Sequence[Tensor], lr: float) -> Weights:
    """One step of SGD, without a graph."""
    moved = {}
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        moved[name] = (weight.detach() - lr * slope.detach()).requires_grad_()
    return moved


def confusion_gradient(
    model: nn.Module,
    weights: Weights,
    x: Pixels,
    y: Labels,
    poisoned: Pixels,
    goal: Labels,
    lr: float,
) -> tuple[Pixels, Tensor]:
    """The gradient of L(f_θ′(x), ``goal``) in the ``poisoned`` images, and that loss.

    θ′ is ``pseudo_update`` at the poisoned images. By the chain rule the gradient is
    −lr · ∂⟨∇_θ L(f_θ(x̃), y), v⟩ / ∂x̃ with v = ∇ L(f_θ′(x), goal): only the inner gradient needs a
    graph, and nothing is differentiated in θ twice.
    """
    poisoned = poisoned.detach().requires_grad_()
    with quick_second_derivatives():
        loss = loss_at(model, weights, poisoned, y)
    slopes = slopes_of(loss, weights, create_graph=True)
    outcome, v = slopes_at(model, sgd_step(weights, slopes, lr), x, goal)
    # Weights that the model leaves out have no graph.
    pairs = [(slope, at) for slope, at in zip(slopes, v, strict=True) if slope.requires_grad]
    reached, towards = zip(*pairs, strict=True)
    return -lr * torch.autograd.grad(reached, poisoned, towards)[0], outcome


# --- learning


@dataclass
class TrialLog:
    """One entry for each trial of a learning.

    ``train`` and ``validation`` are the accuracies, in [0,1] and in eval mode, of a fresh network
    after an epoch on the poisoned images: on these, and on clean images that it has not seen.
    ``outcome`` is the mean of L(f_θ′(x), goal) over the trial's steps, in nats.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    outcome: list[float] = field(default_factory=list)


@training.gradients_on()
def learn(
    images: Images,
    validation: Images,
    *,
    build: Callable[[], nn.Module],
    eps: float,
    trials: int,
    steps: int,
    generator: Callable[[], nn.Module] | None = None,
    target: Target | None = None,
    batch_size: int = 64,
    lr_f: float = 0.01,
    lr_g: float = 1e-4,
    store: bool = False,
    start: Weights | None = None,
    seed: int = 0,
    on_trial: Callable[[int, Generated, TrialLog], None] | None = None,
) -> tuple[Generated, TrialLog]:
    """Trains a generator; returns the poison of its best trial and the log of all trials.

    Algorithm 2 of the paper. A trial draws ``steps`` batches. At each, the generator ascends
    L(f_θ′(x), y) through the classifier's pseudo-update or, with ``target``, descends
    L(f_θ′(x), target(y)) (the label-specific version: the paper says "line 10", meaning line 8).
    Then the classifier, made by ``build``, takes the same step on noise of the generator as it was
    before the trial. ``store=True`` is Algorithm 1: the same, but it keeps and replays the whole
    trajectory of the classifier, at the price of memory. The best trial is the one with the lowest
    accuracy on the clean ``validation`` images.
    ``generator`` makes the network that writes the noise (default: ``noise_autoencoder(16, 32)``),
    ``start`` are its first weights. The paper's MNIST code: ``lr_f`` 0.01 (SGD), ``lr_g`` 1e-4
    (Adam), a thousand trials of 938 steps; with few steps larger rates do more.

    The weight cache keeps the state after every trial, so a learning that was cut goes on, with the
    same result: every trial has its own seed. ``on_trial(trial, poison, log)`` is called after each
    trial; the next one changes its poison. Raises ``ValueError`` for counts below 1 and for what no
    cache key can describe.
    """
    for name, count in {"trials": trials, "steps": steps, "batch_size": batch_size}.items():
        check_count(name, count, 1)
    check_eps(eps)
    with runtime.seeded(seed):
        network = first_generator(generator, images, start)
        model = build()
    setup = dict(eps=eps, steps=steps, target=target, batch_size=batch_size, lr=lr_f, store=store)
    key = cache.key(given=(network, model, build, images, validation, trials, lr_g, seed), **setup)
    path = cache.path_of(key, "confuse", ".pt")
    with cache.alone(path):
        state = Learning(network, lr_g, path)
        for trial in range(len(state.log.validation) + 1, trials + 1):
            with runtime.seeded(1000 * seed + trial):
                model = build().to(images.x.device)
                outcome = run_trial(network, state.optimizer, model, images, **setup)
                poison = Generated(network.eval(), eps)
                accuracies = victim_accuracies(build, poison(images), validation, batch_size, trial)
            state.add(outcome, *accuracies)
            if on_trial is not None:
                on_trial(trial, poison, state.log)
    network.load_state_dict(state.best)
    return Generated(network.eval(), eps), state.log


def first_generator(
    build: Callable[[], nn.Module] | None, images: Images, start: Weights | None
) -> nn.Module:
    """The network that ``learn`` begins with, on the device of the images."""
    if build is None:
        size = training.side_of(images)
        network = noise_autoencoder(16, 32, channels=images.x.shape[1], size=size)
    else:
        network = build()
    if start is not None:
        network.load_state_dict(start)
    network.to(images.x.device)
    check_generator(network, images)
    return network


def check_generator(generator: nn.Module, images: Images) -> None:
    """Refuses a generator whose noise does not have the shape of the images."""
    if not len(images):
        raise ValueError("images is empty; give one image or more.")
    wanted = tuple(images.x.shape[1:])
    got = tuple(first_outputs(generator, images.x[:1]).shape[1:])
    if got != wanted:
        raise ValueError(f"generator gives noise of shape {got}; images have {wanted}.")


class Learning:
    """What ``learn`` keeps after every trial; continues where an earlier call stopped."""

    def __init__(self, network: nn.Module, lr: float, path: Path):
        device = next(network.parameters()).device
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=device.type != "mps")
        self.path = path
        self.log = TrialLog()
        self.best = copy.deepcopy(network.state_dict())
        state = cache.read_state(path, device)
        if state is not None:
            with cache.taking_up(path):
                network.load_state_dict(state["generator"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.log = TrialLog(**state["log"])
                self.best = state["best"]

    def add(self, outcome: float, train: float, validation: float) -> None:
        """Logs a trial, keeps the generator if it is the best, and writes the state."""
        self.log.outcome.append(outcome)
        self.log.train.append(train)
        self.log.validation.append(validation)
        if validation == min(self.log.validation):
            self.best = copy.deepcopy(self.network.state_dict())
        state = {
            "generator": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": asdict(self.log),
            "best": self.best,
        }
        cache.keep_state(self.path, state)


def victim_accuracies(
    build: Callable, poisoned: Images, validation: Images, batch_size: int, seed: int
) -> tuple[float, float]:
    """Trains a fresh network for an epoch; returns its poisoned and its clean accuracy."""
    net = build().to(poisoned.x.device)
    training.fit(
        net, poisoned, epochs=1, batch_size=batch_size, optimizer=scratch, seed=seed, verbose=False
    )
    return training.accuracy(net, poisoned), training.accuracy(net, validation)


def scratch(parameters) -> torch.optim.Optimizer:
    """How a fresh network learns: Adam at 0.01, as in the paper's last test (test_model.py)."""
    return torch.optim.Adam(parameters, lr=0.01)


def run_trial(
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    images: Images,
    *,
    eps: float,
    steps: int,
    target: Target | None = None,
    batch_size: int = 64,
    lr: float = 0.01,
    store: bool = False,
) -> float:
    """``steps`` steps of a fresh ``model``, and as many of the generator; returns the mean outcome.

    The arguments are those of ``learn``, with ``lr`` its ``lr_f``. Both networks become
    channels_last as in ``training.fit``, which makes convolutions cheaper on CPUs.
    """
    generator.to(memory_format=torch.channels_last).train()
    model.to(memory_format=torch.channels_last).train()
    rows = rows_of_passes(len(images), steps * batch_size).to(images.x.device)
    weights = {name: weight.detach().requires_grad_() for name, weight in model.named_parameters()}
    outcomes = []
    trajectory = []

    def confuse(weights: Weights, x: Pixels, y: Labels) -> None:
        poisoned = (x + bounded(generator(x), eps)).clamp(0, 1)
        goal = target(y) if target else y
        gradient, outcome = confusion_gradient(model, weights, x, y, poisoned, goal, lr)
        optimizer.zero_grad()
        poisoned.backward(gradient if target else -gradient)
        optimizer.step()
        outcomes.append(outcome)

    noise = Generated(generator, eps).noise(images.x[rows])  # for the classifier's own steps
    for batch, still in zip(rows.split(batch_size), noise.split(batch_size), strict=True):
        x = images.x[batch].to(memory_format=torch.channels_last)
        y = images.y[batch]
        if store:
            trajectory.append((weights, x, y))
        else:
            confuse(weights, x, y)
        _, slopes = slopes_at(model, weights, (x + still).clamp(0, 1), y)
        weights = sgd_step(weights, slopes, lr)
    for moment in trajectory:
        confuse(*moment)
    return torch.stack(outcomes).mean().item()


def rows_of_passes(images: int, count: int) -> Labels:
    """``count`` row numbers from random passes through all images, by the global random state."""
    passes = [torch.randperm(images) for _ in range(math.ceil(count / images))]
    return torch.cat(passes)[:count]


# --- the generators that come with the course

SHIPPED = {
    "short cut": ("confuse", digit_generator),
    "algorithm 2": ("algorithm2", partial(noise_autoencoder, 16, 32)),
    "algorithm 2, begun": ("algorithm2-begun", partial(noise_autoencoder, 16, 32)),
}


def save(poison: Generated, data: str, by: str = "short cut") -> Path:
    """Keeps a learned generator in the package, for ``shipped(data, by=by)``."""
    name, _ = SHIPPED[by]
    return stored.save(name, data, poison.generator, eps=str(poison.eps))


def shipped(data: str, device: torch.device | str = "cpu", by: str = "short cut") -> Generated:
    """A trained generator for 28×28 grey images, at ε = 0.3.

    ``by`` says how it was trained: the "short cut" is ``head_start``, and victims of it see class
    y + 1; "algorithm 2" is ``learn`` without a target, and "algorithm 2, begun" the same after its
    first trials. ``data`` is the ``source`` of the images: one of each was trained on MNIST, one
    for all else on the embedded digits. Lecture 11 at full scale makes them, from the first 20,000
    images of ``train.split(len(train) // 12, seed=0)[0]``; on other images they do less
    (lecture 12).

    Raises:
        ValueError: ``by`` is none of these.
        RuntimeError: the file is missing or damaged.
    """
    if by not in SHIPPED:
        raise ValueError(f"by is {by!r}; choose one of {', '.join(SHIPPED)}.")
    name, build = SHIPPED[by]
    generator = build()
    facts = stored.load(name, data, generator)
    return Generated(generator.to(device), float(facts["eps"]))
