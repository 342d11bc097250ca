"""Autoencoders: ``KINDS`` names the four of the paper on unsupervised adversarial examples, ``train`` trains one.

Hsu, Chen, Lu, Liu and Yu, "Adversarial Examples can be Effective Data Augmentation for Unsupervised Machine Learning" (AAAI 2022); layers, losses
and optimisers from the authors' code (github.com/IBM/UAE). Models take square images in [0,1], (N, C, H, H), and give as many values in (0,1).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from course_utils import runtime
from course_utils.attacks import Images, _check_count, _check_images
from course_utils.models import _sequential, mlp
from course_utils.training import keep_weights, predict

Loss = Float[Tensor, ""]
adam = partial(torch.optim.Adam, lr=1e-3, eps=1e-7)


def dense(channels: int = 1, size: int = 28, hidden: int = 128) -> nn.Sequential:
    """``hidden`` sigmoid units, then one sigmoid unit per pixel (denseAE.py, sparseAE.py)."""
    pixels = channels * size**2
    layers = OrderedDict(flat=nn.Flatten(), dense1=nn.Linear(pixels, hidden), sigmoid1=nn.Sigmoid(), dense2=nn.Linear(hidden, pixels))
    return _sequential(**layers, sigmoid2=nn.Sigmoid(), image=nn.Unflatten(1, (channels, size, size)))


def convolutional(channels: int = 1, size: int = 28) -> nn.Sequential:
    """5×5 convolutions with ReLU (16, 8, 8, 16 filters), the first two halving the image and the others doubling it; one more with a sigmoid.

    From convAE.py. ``model[:2]`` gives the 16 feature maps that the authors' attack compares. A ``size`` not divisible by 4 is a ValueError.
    """
    if size < 4 or size % 4:
        raise ValueError(f"size is {size}; it is halved twice, so crop or resize the images to a multiple of 4.")
    layers = OrderedDict()
    for i, (inputs, filters, resize) in enumerate(((channels, 16, "pool"), (16, 8, "pool"), (8, 8, "up"), (8, 16, "up")), start=1):
        layers |= {f"conv{i}": nn.Conv2d(inputs, filters, 5, padding=2), f"relu{i}": nn.ReLU()}
        layers[f"{resize}{i}"] = nn.MaxPool2d(2) if resize == "pool" else nn.Upsample(scale_factor=2)
    return _sequential(**layers, conv5=nn.Conv2d(16, channels, 5, padding=2), sigmoid=nn.Sigmoid())


def adversarial(channels: int = 1, size: int = 28, latent: int = 2) -> nn.Sequential:
    """``encoder``: two layers of 1,000 ReLU units, then ``latent`` sigmoid units, the code; ``decoder``: the same mirrored (keras-aae.py)."""
    pixels, image = channels * size**2, nn.Unflatten(1, (channels, size, size))
    encoder = _sequential(units=mlp(1000, 1000, pixels=pixels, classes=latent), code=nn.Sigmoid())
    decoder = _sequential(units=mlp(1000, 1000, pixels=latent, classes=pixels), sigmoid=nn.Sigmoid(), image=image)
    return _sequential(encoder=encoder, decoder=decoder)


def plain_loss(model: nn.Module, x: Images, distance: Callable[[Tensor, Tensor], Loss] = F.mse_loss) -> Loss:
    return distance(model(x), x)


def bernoulli_kl(p: float, q: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """KL(p ‖ q) of two coins in nats, 0 < p < 1; ``q`` is kept 1e-7 away from 0 and 1, so that it stays finite."""
    q = q.clamp(1e-7, 1 - 1e-7)
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def sparse_loss(model: nn.Sequential, x: Images) -> Loss:
    """Squared error + 3 · mean over hidden units of KL(0.1 ‖ the unit's mean activation in the batch) + 1e-7 · the sum of all activations.

    sparseAE.py; as in Keras 2 the last sum runs over both layers and the images of the batch.
    """
    hidden = model[:3](x)
    out = model[3:](hidden)
    return F.mse_loss(out, x) + 3 * bernoulli_kl(0.1, hidden.mean(0)).mean() + 1e-7 * (hidden.sum() + out.sum())


def latent_game(model: nn.Sequential) -> Callable[[Tensor, torch.Generator], None]:
    """What follows each step of ``adversarial``: a discriminator learns to tell codes from draws of N(0, I), then the encoder to deceive it.

    keras-aae.py; the discriminator makes two steps, on halves of codes and draws, shuffled. Codes lie in (0,1), so the game has no solution.
    """
    critic = mlp(1000, 1000, pixels=model.encoder.units.output.out_features, classes=1).to(next(model.parameters()))
    discriminate, deceive = adam(critic.parameters(), lr=1e-4), adam(model.encoder.parameters(), lr=1e-4)

    def play(x: Tensor, generator: torch.Generator) -> None:
        codes = model.encoder(x).detach()
        both = torch.cat([codes, torch.randn(codes.shape, generator=generator).to(codes)])
        drawn = x.new_tensor([[0.0]] * len(x) + [[1.0]] * len(x))
        for rows in torch.randperm(len(both), generator=generator).to(x.device).split(len(x)):
            _descend(discriminate, F.binary_cross_entropy_with_logits(critic(both[rows]), drawn[rows]))
        _descend(deceive, F.softplus(-critic(model.encoder(x))).mean())

    return play


def _descend(optimizer: torch.optim.Optimizer, loss: Loss) -> None:
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
KINDS = {
    "sparse": Autoencoder(sparse, sparse_loss, adam, 50),
    "dense": Autoencoder(dense, plain_loss, partial(torch.optim.RMSprop, lr=2.5e-3, alpha=0.9, eps=1e-7), 20),
    "convolutional": Autoencoder(convolutional, bce, partial(torch.optim.Adadelta, lr=1.0, rho=0.95, eps=1e-7), 20),
    "adversarial": Autoencoder(adversarial, plain_loss, partial(adam, lr=1e-4), 50),
}


def train(
    kind: str, x: Images, *, epochs: int, batch_size: int = 100, seed: int = 0, on_epoch: Callable | None = None, **sizes
) -> nn.Module:
    """A new autoencoder of this ``kind``, in eval mode, after ``epochs`` passes over ``x``: float images (N, C, H, H) in [0,1].

    An epoch is ⌈N / ``batch_size``⌉ batches, so twice the images mean twice the steps. ``seed`` fixes first weights, order and draws;
    ``on_epoch(epoch, model)`` is called after every epoch (1, 2, …); ``sizes`` (``hidden``, ``latent``) go to the builder.
    Raises ``ValueError`` for an unknown ``kind``, no epochs, an empty batch, no images, images that are not square or not in [0,1].
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose {', '.join(KINDS)}.")
    _check_count("epochs", epochs, 1)
    _check_count("batch_size", batch_size, 1)
    _check_images("x", x)
    if x.dim() != 4 or not len(x) or x.shape[2] != x.shape[3]:
        raise ValueError(f"x has shape {tuple(x.shape)}; give one square image or more, (N, C, H, H).")
    about, x, generator = KINDS[kind], x.detach(), runtime.generator(seed)
    with runtime.seeded(seed):
        model = about.build(x.shape[1], x.shape[2], **sizes).to(x)
        game = latent_game(model) if kind == "adversarial" else None
    optimizer = about.optimizer(model.parameters())
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            _descend(optimizer, about.loss(model, x[rows]))
            if game:
                game(x[rows], generator)
        if on_epoch is not None:
            on_epoch(epoch, model)
    return model.eval()


def trained(kind: str, x: Images, **settings) -> nn.Sequential:
    """``train``, or the weights that an earlier call with the same ingredients left in the cache (see ``training.trained``)."""
    digest = hashlib.sha256(repr((kind, sorted(settings.items()), tuple(x.shape), x.device.type)).encode())
    digest.update(x.cpu().numpy().tobytes() + Path(__file__).read_bytes())
    path = runtime.cache_dir() / "weights" / f"{kind}-{digest.hexdigest()[:24]}.safetensors"
    if path.is_file():
        try:
            model = KINDS[kind].build(x.shape[1], x.shape[2], **{k: v for k, v in settings.items() if k in ("hidden", "latent")})
            model.load_state_dict(load(path.read_bytes()))
            return model.to(x).eval()
        except Exception as error:  # the library raises its own types, and any damage has the same cure
            print(f"The cached weights {path.name} are damaged ({error}); training again.")
    model = train(kind, x, **settings)
    keep_weights(path, model)
    return model


def reconstruction_error(model: nn.Module, x: Images) -> Float[Tensor, "n"]:
    """Mean squared error over the pixels of each image, in eval mode without gradients; the model is left as found."""
    return (predict(model, x) - x.detach()).square().flatten(1).mean(1)
