"""Training classifiers: one loop for every lecture, and a cache of what it trained.

A defence is another ``objective``, never another loop.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_utils.core import cache, files, models, runtime
from course_utils.core.images import Images

CHECKPOINT_EVERY = 60  # seconds
SMALL = 28 * 28  # numbers in a digit

NO_GRADIENT = (
    "No gradient reaches the images, so no attack can follow it. "
    "Look for no_grad, detach, argmax or NumPy in the model."
)

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> scalar loss


def cross_entropy(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"]
) -> Float[Tensor, ""]:
    """The usual objective: mean cross-entropy of the batch."""
    return F.cross_entropy(outputs(model, x), y)


def rmsprop(parameters) -> torch.optim.Optimizer:
    """RMSprop with the defaults of Keras, which the slides use (lr 0.001, ρ 0.9, ε 1e-7)."""
    return torch.optim.RMSprop(parameters, lr=1e-3, alpha=0.9, eps=1e-7)


@dataclass
class History:
    """What one training showed, one entry per epoch; accuracies are in [0,1], in eval mode.

    ``loss`` is the mean objective over the epoch's batches; ``train`` the accuracy on the first
    10,000 training images after the epoch. ``validation`` is that on the validation images, empty
    when none were given. ``seconds`` is the time of the epoch without these measurements.
    """

    loss: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def last_line(self, epochs: int) -> str:
        line = (
            f"epoch {len(self.loss)}/{epochs}  loss {self.loss[-1]:.4f}  train {self.train[-1]:.2%}"
        )
        if self.validation:
            line += f"  validation {self.validation[-1]:.2%}"
        return line + f"  ({self.seconds[-1]:.1f} s)"


class eval_mode:
    """Context with ``model`` in eval mode; afterwards every submodule has the flag it had.

    Raises:
        ValueError: ``model`` is no ``nn.Module``.
    """

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model is a {type(model).__name__}; give an nn.Module. "
                "A function becomes one when a forward calls it."
            )
        self.model = model

    def __enter__(self) -> nn.Module:
        self.flags = [(module, module.training) for module in self.model.modules()]
        return self.model.eval()

    def __exit__(self, *_):
        for module, flag in self.flags:
            module.training = flag


@contextmanager
def gradients_on() -> Iterator[None]:
    """Context, or decorator, in which gradients exist, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def outputs(model: nn.Module, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """What ``model`` gives for ``x`` in its present mode; all calls of a model go through here.

    The model gets a copy: one that normalises in place would change the caller's images.

    Raises:
        ValueError: the model gives no tensor, not one row per image, NaN or +inf. (−inf is the
            logit of a class that cannot be.)
    """
    return checked_outputs(model(x.clone()), x)


def checked_outputs(result, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """``result``, if it can be what a model gives for ``x``; see ``outputs``."""
    if not isinstance(result, Tensor):
        raise ValueError(
            f"model gives a {type(result).__name__}; wrap it in a model that gives the logits "
            "alone, such as result[0] or result['logits']."
        )
    if result.dim() < 2 or len(result) != len(x):
        raise ValueError(
            f"model gives shape {tuple(result.shape)} for {len(x)} images; "
            "it must give one row per image, (N, K), also for a single image."
        )
    if x.requires_grad and torch.is_grad_enabled() and not result.requires_grad:
        raise ValueError(NO_GRADIENT)
    if not (result < torch.inf).all():  # written so that NaN fails too
        raise ValueError(
            "model gives NaN or infinite numbers: has its training diverged? "
            "Train it anew with smaller steps; nothing can be said about this one."
        )
    return result


def predict(
    model: nn.Module, x: Float[Tensor, "n c h w"], batch_size: int = 1000
) -> Float[Tensor, "n k"]:
    """``outputs`` in eval mode without gradients, in batches; the model is left as found."""
    with torch.no_grad(), eval_mode(model):
        return torch.cat([outputs(model, batch) for batch in x.split(at_once(x, batch_size))])


def at_once(x: Float[Tensor, "n ..."], images: int) -> int:
    """How many images like ``x`` take the memory of ``images`` digits; no more than these."""
    return max(1, images * SMALL // max(SMALL, x.shape[1:].numel()))


def share(hits: Tensor) -> float:
    """The share of entries that are true, in [0,1]; ValueError without entries."""
    if not hits.numel():
        raise ValueError("There are no images, so no share can be measured; give one or more.")
    return hits.float().mean().item()


def accuracy(model: nn.Module, images: Images) -> float:
    """Share of ``images`` classified correctly, in [0,1].

    Raises:
        ValueError: no images, or a model that gives NaN.
    """
    return share(predict(model, images.x).argmax(1) == images.y)


def batches(rows: Int[Tensor, "n"], size: int) -> list[Int[Tensor, "m"]]:
    """``rows`` in batches of ``size``; a last one of one image joins the batch before it.

    Batch norm cannot learn from one image.
    """
    parts = list(rows.split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        single = parts.pop()
        parts[-1] = torch.cat([parts[-1], single])
    return parts


class Run:
    """The state of one training: all that its next epoch depends on."""

    def __init__(self, model: nn.Module, optimizer: Callable, schedule, total: int, seed: int):
        self.model = model
        self.optimizer = optimizer(model.parameters())
        self.rates = None
        if schedule:
            share = partial(share_done, schedule, total)
            self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        self.order = runtime.generator(seed)
        self.history = History()

    def epoch(self, images: Images, objective: Objective, batch_size: int) -> None:
        """One pass over the images; adds its loss and seconds to the history."""
        started = time.perf_counter()
        self.model.train()
        total = torch.zeros((), device=images.x.device)
        order = torch.randperm(len(images), generator=self.order).to(images.x.device)
        for rows in batches(order, batch_size):
            loss = objective(self.model, images.x[rows], images.y[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.rates:
                self.rates.step()
            total += loss.detach() * len(rows)
        if total.isnan():
            raise ValueError(
                f"The loss of epoch {len(self.history.loss) + 1} is NaN: the training has "
                "diverged. Use a smaller learning rate, or look for 0/0 in the objective."
            )
        self.history.loss.append(total.item() / len(images))
        self.history.seconds.append(time.perf_counter() - started)

    def measure(self, sample: Images, validation: Images | None) -> None:
        """Adds the accuracies to the history."""
        self.history.train.append(accuracy(self.model, sample))
        if validation is not None:
            self.history.validation.append(accuracy(self.model, validation))

    def save(self, path: Path) -> None:
        """Writes the whole state to one file."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.rates and self.rates.last_epoch,
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
            "history": asdict(self.history),
        }
        if not runtime.trouble("cuda"):
            state["cuda"] = torch.cuda.get_rng_state_all()
        cache.keep_state(path, state)

    def resume(self, path: Path) -> None:
        """Takes up what ``save`` wrote; where there is nothing, the training starts anew."""
        state = cache.read_state(path)
        if state is None:
            return
        with cache.taking_up(path):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.rates:
                self.rates.last_epoch = state["steps"]
            self.order.set_state(state["order"])
            torch.set_rng_state(state["random"])
            if "cuda" in state:
                torch.cuda.set_rng_state_all(state["cuda"])
            self.history = History(**state["history"])


def share_done(schedule: Callable[[float], float], total: int, done: int) -> float:
    """What multiplies the learning rate after ``done`` of ``total`` steps."""
    return schedule(done / total)


@gradients_on()
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

    The images lie in memory as one tensor, so a batch is one indexing operation: no workers, no
    collation. ``seed`` fixes the order of the batches; the global generator, for dropout and the
    like, is seeded inside a fork and given back as found. ``on_epoch(epoch, model)`` is called
    after every epoch (1, 2, …). ``schedule(t)`` multiplies the learning rate when the share t of
    all steps is done, 0 ≤ t < 1. A training of minutes leaves its state in the file ``checkpoint``
    between epochs; called again, it goes on from there. The model is left in eval mode.

    Raises:
        ValueError: no epochs, no images, an empty batch, images on another device than the model, a
            model without parameters to train, or a training that diverges (NaN).
    """
    check_training(model, images, epochs, batch_size)
    model.to(memory_format=torch.channels_last)  # a fifth faster on CPUs; the numbers mean the same
    total = epochs * len(batches(torch.arange(len(images)), batch_size))
    run = Run(model, optimizer, schedule, total, seed)
    sample = images[: min(len(images), 10_000)]
    with runtime.seeded(seed):
        if checkpoint:
            run.resume(checkpoint)
        saved = time.perf_counter()
        for epoch in range(len(run.history.loss) + 1, epochs + 1):
            run.epoch(images, objective, batch_size)
            run.measure(sample, validation)
            if verbose:
                files.say(run.history.last_line(epochs))
            if on_epoch is not None:
                on_epoch(epoch, model)
            if checkpoint and time.perf_counter() - saved > CHECKPOINT_EVERY and epoch < epochs:
                run.save(checkpoint)
                saved = time.perf_counter()
    model.eval()
    return run.history


def check_training(model: nn.Module, images: Images, epochs: int, batch_size: int) -> None:
    """Refuses what ``fit`` cannot train with."""
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs is {epochs} and batch_size {batch_size}; both must be 1 or more.")
    if not len(images):
        raise ValueError("images is empty; give one image or more.")
    fill_lazy_layers(model, images)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError("model has no parameters to train: it has none at all, or all are frozen.")
    if min(batch_size, len(images)) == 1 and has_layer(model, nn.BatchNorm1d):
        raise ValueError(
            "A batch has one image, from which batch norm cannot learn; "
            "give two images or more and batch_size 2 or more."
        )
    device = learning[0].device
    if images.x.device != device:
        raise ValueError(
            f"images are on {images.x.device} and the model on {device}; "
            f"move one: images.to({str(device)!r})."
        )


def has_layer(model: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer of this kind is part of the model."""
    return any(isinstance(module, kind) for module in model.modules())


def fill_lazy_layers(model: nn.Module, images: Images) -> None:
    """Gives lazy layers their shapes, by a look at one image."""
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        predict(model, images.x[:1])


def late_drop(t: float) -> float:
    """Schedule: the full learning rate for two thirds of the training, then a tenth of it."""
    return 1.0 if t < 2 / 3 else 0.1


def triangle(t: float) -> float:
    """Schedule: the learning rate rises from 0 in the first fifth, then falls to 0 at the end."""
    return t / 0.2 if t < 0.2 else (1 - t) / 0.8


@gradients_on()
def trained(
    build: Callable[[], nn.Module], images: Images, *, seed: int = 0, **settings
) -> tuple[nn.Module, History]:
    """``fit`` on a freshly built model, or the weights that an earlier such call left in the cache.

    ``build`` makes the model (``models.slides_cnn``, or a lambda). ``seed`` fixes its first weights
    and the order of the batches; ``settings`` go to ``fit``. The cache key covers everything the
    weights depend on (``cache.key``): the model with its classes and first weights, the images, the
    seed, the settings, the kind of device, the source of ``core`` and ``methods``, and the caller's
    own objective, optimizer and schedule (lambdas too) with the globals they read. One that changes
    a global at each call gets a ``key`` attribute. A damaged file is trained again. A training that
    was cut goes on at its last checkpoint. Where two processes ask for the same weights, one
    trains and the other waits. Weights that cannot be kept cost a message.

    Raises:
        ValueError: a setting or a model that no key can describe, as it holds a lock or an open
            file (give it a ``key`` attribute), or ``on_epoch``.
    """
    if settings.get("on_epoch"):
        raise ValueError(
            "on_epoch is given, but weights from the cache pass no epochs; "
            "call fit, which always trains."
        )
    with runtime.seeded(seed):
        model = build().to(images.x.device)
        fill_lazy_layers(model, images)
    defaults = {"objective": cross_entropy, "optimizer": rmsprop, "validation": None}
    ingredients = defaults | settings
    verbose = ingredients.pop("verbose", True)
    path = cache.path_of(cache.key(model=model, images=images, seed=seed, **ingredients))
    with cache.alone(path):
        history = read_history(path, model)
        if history is None:
            checkpoint = path.with_suffix(".checkpoint")
            history = fit(model, images, seed=seed, checkpoint=checkpoint, **settings)
            cache.keep_weights(path, model, history=json.dumps(asdict(history)))
            with suppress(OSError):  # a folder that cannot be written
                checkpoint.unlink(missing_ok=True)
        elif verbose:
            line = history.last_line(len(history.loss))
            files.say(f"weights from the cache; last epoch: {line}")
    return model.to(memory_format=torch.channels_last).eval(), history


def read_history(path: Path, model: nn.Module) -> History | None:
    """Loads cached weights into ``model`` and returns their history; None if there are none."""

    def history_in(metadata: dict[str, str]) -> History:
        return History(**json.loads(metadata["history"]))

    return cache.read_weights(path, model, history_in)


def side_of(images: Images) -> int:
    """The side of square images, in pixels; ValueError for others."""
    height, width = images.x.shape[2:]
    if height != width:
        raise ValueError(
            f"images are {height}×{width}, but this network takes square ones; cut or pad them."
        )
    return height


def slides_network(
    train: Images, validation: Images, seed: int = 0, *, verbose: bool = False
) -> tuple[nn.Module, History]:
    """The network that lecture 01 trains and the later ones attack: the slides' CNN and recipe.

    With fewer epochs at quick scale. As on the slides, ``validation`` is the test set; it is looked
    at, never chosen by.
    """
    channels = train.x.shape[1]
    size = side_of(train)
    build = partial(models.slides_cnn, channels=channels, size=size, classes=len(train.classes))
    epochs = runtime.pick(quick=3, full=10)
    return trained(build, train, seed=seed, epochs=epochs, validation=validation, verbose=verbose)
