"""The four autoencoders (``KINDS``) of the paper on unsupervised adversarial examples.

Hsu, Chen, Lu, Liu and Yu, "Adversarial Examples can be Effective Data Augmentation for Unsupervised
Machine Learning" (AAAI 2022); layers, losses and optimisers from the authors' code
(github.com/IBM/UAE). Models take square images in [0,1], (N, C, H, H), and give as many values in
(0,1).
"""

import copy
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core import cache, runtime, stored
from course_utils.core.inputs import Pixels, check_count, check_images
from course_utils.core.models import mlp, sequential
from course_utils.core.training import gradients_on, outputs, predict

Loss = Float[Tensor, ""]
adam = partial(torch.optim.Adam, lr=1e-3, eps=1e-7, fused=True)  # a third of the time


def dense(channels: int = 1, size: int = 28, hidden: int = 128) -> nn.Sequential:
    """``hidden`` sigmoid units, then one sigmoid unit per pixel (denseAE.py, sparseAE.py)."""
    pixels = channels * size**2
    return sequential(
        flat=nn.Flatten(),
        dense1=nn.Linear(pixels, hidden),
        sigmoid1=nn.Sigmoid(),
        dense2=nn.Linear(hidden, pixels),
        sigmoid2=nn.Sigmoid(),
        image=nn.Unflatten(1, (channels, size, size)),
    )


def convolutional(channels: int = 1, size: int = 28) -> nn.Sequential:
    """Five 5×5 convolutions (16, 8, 8, 16 filters with ReLU, then a sigmoid), from convAE.py.

    The first two halve the image and the next two double it. ``model[:2]`` gives the 16 feature
    maps that the authors' attack compares. A ``size`` not divisible by 4 is a ValueError.
    """
    if size < 4 or size % 4:
        raise ValueError(
            f"size is {size}; it is halved twice, so crop or resize the images to a multiple of 4."
        )
    layers = {}
    inputs = channels
    for i, filters in enumerate((16, 8, 8, 16), start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, filters, 5, padding=2)
        layers[f"relu{i}"] = nn.ReLU()
        if i <= 2:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        else:
            layers[f"up{i}"] = nn.Upsample(scale_factor=2)
        inputs = filters
    return sequential(**layers, conv5=nn.Conv2d(16, channels, 5, padding=2), sigmoid=nn.Sigmoid())


def adversarial_autoencoder(channels: int = 1, size: int = 28, latent: int = 2) -> nn.Sequential:
    """``encoder``: two layers of 1,000 ReLU units, then ``latent`` sigmoid units, the code.

    ``decoder``: the same mirrored (keras-aae.py).
    """
    pixels = channels * size**2
    encoder = sequential(units=mlp(1000, 1000, pixels=pixels, classes=latent), code=nn.Sigmoid())
    decoder = sequential(
        units=mlp(1000, 1000, pixels=latent, classes=pixels),
        sigmoid=nn.Sigmoid(),
        image=nn.Unflatten(1, (channels, size, size)),
    )
    return sequential(encoder=encoder, decoder=decoder)


def plain_loss(
    model: nn.Module, x: Pixels, distance: Callable[[Tensor, Tensor], Loss] = F.mse_loss
) -> Loss:
    return distance(outputs(model, x), x)


def bernoulli_kl(p: float, q: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """KL(p ‖ q) of two coins in nats, 0 < p < 1.

    ``q`` is kept 1e-7 away from 0 and 1, so that it stays finite.
    """
    q = q.clamp(1e-7, 1 - 1e-7)
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def sparse_loss(model: nn.Sequential, x: Pixels) -> Loss:
    """Squared error + 3 · mean over hidden units of KL(0.1 ‖ mean activation) + 1e-7 · activations.

    sparseAE.py. The mean is over the batch. As in Keras 2, the last term sums over both layers and
    all images of the batch.
    """
    hidden = model[:3](x)
    out = model[3:](hidden)
    sparsity = bernoulli_kl(0.1, hidden.mean(0)).mean()
    return F.mse_loss(out, x) + 3 * sparsity + 1e-7 * (hidden.sum() + out.sum())


def latent_game(model: nn.Sequential) -> Callable[[Tensor, torch.Generator], None]:
    """What follows each step of the adversarial autoencoder (keras-aae.py).

    A discriminator learns to distinguish codes from draws of N(0, I), in two steps on shuffled
    halves; then the encoder learns to deceive it. Codes lie in (0,1), so the game has no solution.
    """
    critic = mlp(1000, 1000, pixels=model.encoder.units.output.out_features, classes=1)
    critic = critic.to(next(model.parameters()))
    discriminate = adam(critic.parameters(), lr=1e-4)
    deceive = adam(model.encoder.parameters(), lr=1e-4)

    def play(x: Tensor, generator: torch.Generator) -> None:
        codes = model.encoder(x).detach()
        both = torch.cat([codes, torch.randn(codes.shape, generator=generator).to(codes)])
        drawn = x.new_tensor([[0.0]] * len(x) + [[1.0]] * len(x))
        for rows in torch.randperm(len(both), generator=generator).to(x.device).split(len(x)):
            loss = F.binary_cross_entropy_with_logits(critic(both[rows]), drawn[rows])
            take_step(discriminate, loss)
        take_step(deceive, F.softplus(-critic(model.encoder(x))).mean())

    return play


def take_step(optimizer: torch.optim.Optimizer, loss: Loss) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Autoencoder(NamedTuple):  # a network and its published training on 60,000 digits
    build: Callable[..., nn.Sequential]
    loss: Callable[[nn.Module, Tensor], Loss]
    optimizer: Callable[..., torch.optim.Optimizer]
    epochs: int


sparse = dense  # they differ in the loss
bce = partial(plain_loss, distance=F.binary_cross_entropy)
rmsprop = partial(torch.optim.RMSprop, lr=2.5e-3, alpha=0.9, eps=1e-7)
adadelta = partial(torch.optim.Adadelta, lr=1.0, rho=0.95, eps=1e-7)
slow_adam = partial(adam, lr=1e-4)
KINDS = {
    "sparse": Autoencoder(sparse, sparse_loss, adam, 50),
    "dense": Autoencoder(dense, plain_loss, rmsprop, 20),
    "convolutional": Autoencoder(convolutional, bce, adadelta, 20),
    "adversarial": Autoencoder(adversarial_autoencoder, plain_loss, slow_adam, 50),
}


@gradients_on()
def train(
    kind: str,
    x: Pixels,
    *,
    epochs: int,
    batch_size: int = 100,
    seed: int = 0,
    on_epoch: Callable | None = None,
    **sizes,
) -> nn.Module:
    """Trains a new autoencoder of this ``kind`` on square images in [0,1]; returns it in eval mode.

    An epoch is ⌈N / ``batch_size``⌉ batches, so twice the images mean twice the steps. ``seed``
    fixes first weights, order and draws. ``on_epoch(epoch, model)`` is called after every epoch
    (1, 2, …). ``sizes`` (``hidden``, ``latent``) go to the builder.

    Raises:
        ValueError: an unknown ``kind``, no epochs, an empty batch, no images, images that are not
            square or not in [0,1].
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose {', '.join(KINDS)}.")
    check_count("epochs", epochs, 1)
    check_count("batch_size", batch_size, 1)
    check_images("x", x)
    if x.dim() != 4 or not len(x) or x.shape[2] != x.shape[3]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; give one square image or more, (N, C, H, H)."
        )
    recipe = KINDS[kind]
    x = x.detach()
    generator = runtime.generator(seed)
    with runtime.seeded(seed):
        model = recipe.build(x.shape[1], x.shape[2], **sizes).to(x)
        model.to(memory_format=torch.channels_last)  # convolutions take little more than half
        game = latent_game(model) if kind == "adversarial" else None
    optimizer = recipe.optimizer(model.parameters())
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            take_step(optimizer, recipe.loss(model, x[rows]))
            if game:
                game(x[rows], generator)
        if on_epoch is not None:
            on_epoch(epoch, model)
    return model.to(memory_format=torch.contiguous_format).eval()  # as the cache gives it back


def trained_autoencoder(kind: str, x: Pixels, **settings) -> nn.Sequential:
    """``train``, or the cached weights of an earlier call with the same ingredients.

    Raises:
        ValueError: as ``train``, and for ``on_epoch``.
    """
    if settings.get("on_epoch"):
        raise ValueError(
            "on_epoch is given, but weights from the cache pass no epochs; "
            "call train, which always trains."
        )
    path = cache.path_of(cache.key(kind=kind, x=x, settings=settings), kind)
    with cache.alone(path):
        if kind in KINDS and os.path.isfile(path):
            sizes = {name: settings[name] for name in ("hidden", "latent") if name in settings}
            with runtime.seeded(0):  # the caller's random state stays, as in training
                model = KINDS[kind].build(x.shape[1], x.shape[2], **sizes).to(x)
            if cache.read_weights(path, model) is not None:
                return model.eval()
        model = train(kind, x, **settings)
        cache.keep_weights(path, model)
        return model


def reconstruction_error(model: nn.Module, x: Pixels) -> Float[Tensor, "n"]:
    """Mean squared error of each image, in eval mode without gradients."""
    return (predict(model, x) - x.detach()).square().flatten(1).mean(1)


SHIPPED = ("sparse", "dense", "convolutional")  # the adversarial one has 4 million weights


def save(models: dict[str, nn.Sequential], source: str) -> None:
    """Keeps those in ``SHIPPED`` in the package, in half precision, for ``shipped(source)``."""
    nets = nn.ModuleDict({kind: models[kind] for kind in SHIPPED})
    stored.save("autoencoders", source, copy.deepcopy(nets).half())


def shipped(source: str, device: torch.device | str = "cpu") -> dict[str, nn.Sequential]:
    """Those in ``SHIPPED`` as they come with the course: trained on MNIST, or on the digits.

    Lecture 10 at full scale makes them. Raises ``RuntimeError`` where the file is damaged.
    """
    nets = nn.ModuleDict({kind: KINDS[kind].build() for kind in SHIPPED})
    stored.load("autoencoders", source, nets)
    return {kind: nets[kind].to(device) for kind in SHIPPED}
