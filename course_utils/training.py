"""Training classifiers: one loop for every lecture, and a cache of what it trained.

A defence is another ``objective``, never another loop.
"""

import hashlib
import inspect
import io
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from course_utils import models, runtime
from course_utils.data import Images

CHECKPOINT_EVERY = 60  # seconds
SOURCES = ("models", "training", "geometry", "attacks", "linear", "objectives")  # what trained weights may depend on

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> scalar loss


def cross_entropy(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """The usual objective: mean cross-entropy of the batch."""
    return F.cross_entropy(model(x), y)


def rmsprop(parameters) -> torch.optim.Optimizer:
    """RMSprop with the defaults of Keras, which the slides use (lr 0.001, ρ 0.9, ε 1e-7)."""
    return torch.optim.RMSprop(parameters, lr=1e-3, alpha=0.9, eps=1e-7)


@dataclass
class History:
    """What one training showed, one entry per epoch; accuracies are in [0,1], measured after the epoch in eval mode.

    ``loss`` is the mean objective over the epoch's batches; ``train`` the accuracy on the first 10,000 training images; ``validation`` the
    accuracy on the validation images, empty when none were given; ``seconds`` the time of the epoch without these measurements.
    """

    loss: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def last_line(self, epochs: int) -> str:
        line = f"epoch {len(self.loss)}/{epochs}  loss {self.loss[-1]:.4f}  train {self.train[-1]:.2%}"
        if self.validation:
            line += f"  validation {self.validation[-1]:.2%}"
        return line + f"  ({self.seconds[-1]:.1f} s)"


class eval_mode:
    """Context in which ``model`` is in eval mode; on leaving, every submodule gets back the train/eval flag it had."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> nn.Module:
        self.flags = [(module, module.training) for module in self.model.modules()]
        return self.model.eval()

    def __exit__(self, *_):
        for module, flag in self.flags:
            module.training = flag


def predict(model: nn.Module, x: Float[Tensor, "n c h w"], batch_size: int = 1000) -> Float[Tensor, "n k"]:
    """Logits in eval mode without gradients, in batches; the model is left as found."""
    with torch.no_grad(), eval_mode(model):
        return torch.cat([model(batch) for batch in x.split(batch_size)])


def accuracy(model: nn.Module, images: Images) -> float:
    """Share of ``images`` classified correctly, in [0,1]."""
    return (predict(model, images.x).argmax(1) == images.y).float().mean().item()


def fit(
    model: nn.Module,
    images: Images,
    *,
    objective: Objective = cross_entropy,
    epochs: int = 3,
    batch_size: int = 128,
    optimizer: Callable[..., torch.optim.Optimizer] = rmsprop,
    schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    validation: Images | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    checkpoint: Path | None = None,
    verbose: bool = True,
) -> History:
    """Trains ``model`` in place on ``images`` and returns the history.

    The images lie in memory as one tensor, so a batch is one indexing operation: no workers, no collation. ``seed`` fixes the order of
    the batches; for dropout and the like the global generator is seeded inside a fork and given back as found. ``on_epoch(epoch, model)`` is
    called after every epoch (1, 2, …). ``schedule(t)`` multiplies the learning rate when the share t of all steps is done, 0 ≤ t < 1. A
    training of minutes leaves its state in the file ``checkpoint`` between epochs and, called again, goes on from there. The model is left
    in eval mode.

    Raises:
        ValueError: no epochs, an empty batch, or images on another device than the model.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs is {epochs} and batch_size {batch_size}; both must be 1 or more.")
    device = next(model.parameters()).device
    if images.x.device != device:
        raise ValueError(f"images are on {images.x.device} and the model on {device}; move one: images.to({str(device)!r}).")
    model.to(memory_format=torch.channels_last)  # a fifth faster on CPUs; the numbers mean the same
    steps = optimizer(model.parameters())
    total_steps = epochs * math.ceil(len(images) / batch_size)
    rates = schedule and torch.optim.lr_scheduler.LambdaLR(steps, lambda done: schedule(done / total_steps))
    order = runtime.generator(seed)
    sample = images[: min(len(images), 10_000)]
    with runtime.seeded(seed):  # for dropout and the like
        history = _resume(checkpoint, model, steps, rates, order) if checkpoint else History()
        saved = time.perf_counter()
        for epoch in range(len(history.loss) + 1, epochs + 1):
            started = time.perf_counter()
            model.train()
            total = torch.zeros((), device=device)
            for rows in torch.randperm(len(images), generator=order).to(device).split(batch_size):
                loss = objective(model, images.x[rows], images.y[rows])
                steps.zero_grad(set_to_none=True)
                loss.backward()
                steps.step()
                if rates:
                    rates.step()
                total += loss.detach() * len(rows)
            history.loss.append(total.item() / len(images))
            history.seconds.append(time.perf_counter() - started)
            history.train.append(accuracy(model, sample))
            if validation is not None:
                history.validation.append(accuracy(model, validation))
            if verbose:
                print(history.last_line(epochs), flush=True)
            if on_epoch is not None:
                on_epoch(epoch, model)
            if checkpoint and time.perf_counter() - saved > CHECKPOINT_EVERY and epoch < epochs:
                _save(checkpoint, model, steps, rates, order, history)
                saved = time.perf_counter()
    model.eval()
    return history


def late_drop(t: float) -> float:
    """Schedule: the full learning rate for two thirds of the training, then a tenth of it."""
    return 1.0 if t < 2 / 3 else 0.1


def triangle(t: float) -> float:
    """Schedule: the learning rate climbs from nothing to its full value in the first fifth of the training and sinks to nothing until the end."""
    return t / 0.2 if t < 0.2 else (1 - t) / 0.8


def _save(path: Path, model: nn.Module, steps, rates, order: torch.Generator, history: History) -> None:
    """All that the next epoch depends on, in one file."""
    state = {"model": model.state_dict(), "optimizer": steps.state_dict(), "steps": rates and rates.last_epoch}
    state |= {"order": order.get_state(), "random": torch.get_rng_state(), "history": asdict(history)}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    keep_state(path, state)


def keep_state(path: Path, state: dict) -> None:
    """Writes the state of a training in one piece; a folder that cannot be written costs a message, not the training."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        runtime.write_atomic(path, buffer.getvalue())
    except OSError as error:
        print(f"The state of this training could not be kept in {path.parent} ({error}); set COURSE_CACHE to a folder that can be written.")


def read_state(path: Path, device: torch.device | str = "cpu") -> dict | None:
    """What ``keep_state`` left, on ``device``; None when there is nothing, or nothing that can be read."""
    if not os.path.isfile(path):  # unlike Path.is_file, it says no where a folder may not be read
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the library raises its own types, and any damage has the same cure
        print(f"The checkpoint {path.name} is damaged ({error}); training from the beginning.")
        return None


def _resume(path: Path, model: nn.Module, steps, rates, order: torch.Generator) -> History:
    """Takes up what ``_save`` left; an empty history when there is nothing."""
    state = read_state(path)
    if state is None:
        return History()
    model.load_state_dict(state["model"])
    steps.load_state_dict(state["optimizer"])
    if rates:
        rates.last_epoch = state["steps"]
    order.set_state(state["order"])
    torch.set_rng_state(state["random"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    return History(**state["history"])


def trained(build: Callable[[], nn.Module], images: Images, *, seed: int = 0, **settings) -> tuple[nn.Module, History]:
    """``fit`` on a freshly built model, or the weights that an earlier call with the same ingredients left in the cache.

    ``build`` makes the model (``models.slides_cnn``, or a lambda); ``seed`` fixes its first weights and the order of the batches;
    ``settings`` go to ``fit``. The cache key is made of everything the weights depend on: the model's layers, the images, the seed, the
    settings, the kind of device, and the source of the modules ``SOURCES`` and of the caller's own objective or layers, so that changed code
    never meets old weights. A damaged file is trained again, a training that was cut goes on at its last checkpoint.

    Raises:
        ValueError: an objective or optimizer that cannot be named in a key (a lambda; give it a ``key`` attribute), or ``on_epoch``.
    """
    if settings.get("on_epoch"):
        raise ValueError("on_epoch is given, but weights from the cache pass no epochs; call fit, which always trains.")
    device = images.x.device
    with runtime.seeded(seed):
        model = build().to(device)
    path = runtime.cache_dir() / "weights" / f"{_key(model, images, seed, settings)}.safetensors"
    history = _read_weights(path, model)
    if history is None:
        checkpoint = path.with_suffix(".checkpoint")
        history = fit(model, images, seed=seed, checkpoint=checkpoint, **settings)
        keep_weights(path, model, history=json.dumps(asdict(history)))
        with suppress(OSError):  # a folder that could not be written
            checkpoint.unlink(missing_ok=True)
    elif settings.get("verbose", True):
        print(f"weights from the cache; last epoch: {history.last_line(len(history.loss))}")
    return model.to(memory_format=torch.channels_last).eval(), history


def slides_network(train: Images, validation: Images, seed: int = 0, *, verbose: bool = False) -> tuple[nn.Module, History]:
    """The network that lecture 01 trains and the later ones attack: the slides' CNN by the slides' recipe (fewer epochs at quick scale).

    As on the slides, ``validation`` is the test set; it is looked at, never chosen by.
    """
    build = partial(models.slides_cnn, channels=train.x.shape[1], size=train.x.shape[2], classes=len(train.classes))
    return trained(build, train, seed=seed, epochs=runtime.pick(quick=3, full=10), validation=validation, verbose=verbose)


def keep_weights(path: Path, model: nn.Module, **metadata: str) -> None:
    """Writes the weights as safetensors with ``metadata``; a folder that cannot be written costs a message, not the training."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        runtime.write_atomic(path, safetensors_bytes(state, metadata))
    except OSError as error:
        print(f"The trained weights could not be kept in {path.parent} ({error}); set COURSE_CACHE to a folder that can be written.")


def _read_weights(path: Path, model: nn.Module) -> History | None:
    """Loads ``path`` into ``model`` and returns its history; None when it is absent or damaged."""
    if not os.path.isfile(path):  # unlike Path.exists, it says no where a folder may not be read
        return None
    try:
        with safe_open(path, framework="pt") as file:
            history = History(**json.loads(file.metadata()["history"]))
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
        return history
    except Exception as error:  # the library raises its own types, and any damage has the same cure
        print(f"The cached weights {path.name} are damaged ({error}); training again.")
        return None


def _key(model: nn.Module, images: Images, seed: int, settings: dict) -> str:
    """Hash of all that determines the trained weights."""
    settings = {"objective": cross_entropy, "optimizer": rmsprop, **settings}
    settings.pop("verbose", None)
    validation = settings.pop("validation", None)
    settings = {name: _name(name, value) if callable(value) else value for name, value in sorted(settings.items())}
    parts = [repr(model), images.fingerprint, validation.fingerprint if validation else "", images.x.device.type, seed, settings]
    parts += sorted({_source(type(module).forward) for module in model.modules() if not type(module).__module__.startswith("torch.")})
    digest = hashlib.sha256(repr(parts).encode())
    for module in SOURCES:
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    for parameter in model.parameters():  # the first weights, whatever a `build` of the caller's own did to them
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


def _name(setting: str, value: Callable) -> str:
    """What a function is called and its source, or its ``key``; for a partial also what it was given: all that says what it does."""
    if isinstance(value, partial):
        given = [*enumerate(value.args), *sorted(value.keywords.items())]
        return f"{_name(setting, value.func)}{[(word, _name(setting, v) if callable(v) else v) for word, v in given]}"
    if key := getattr(value, "key", None):
        return key
    name = getattr(value, "__qualname__", "<")
    if "<" in name:
        raise ValueError(f"{setting} is {value!r}, whose name does not say what it does; give it a `key` attribute (a string).")
    return name + _source(value)


def _source(value: Callable) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # built in, or typed at a prompt
        return ""
