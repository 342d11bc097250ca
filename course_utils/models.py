"""The networks of the course: functions that return an ``nn.Sequential`` of named layers.

Every model takes images in [0,1], shape (N, C, H, W), and gives logits, shape (N, classes). A normalisation, where one is wanted, is a
layer of the model, so that an ε always means pixels.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def _sequential(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _flat_size(features: nn.Sequential, channels: int, size: int) -> int:
    """Length of the flattened features of one image; refuses images too small for the network."""
    try:
        with torch.no_grad():
            return features(torch.zeros(1, channels, size, size)).numel()
    except RuntimeError as error:
        raise ValueError(f"size is {size}; the network's convolutions and pools need larger images.") from error


def slides_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """The CNN of Wang's slides ("CNN for MNIST"): two 5×5 convolutions (10, 20 filters), each with ReLU and 2×2 max pooling, then 100 units."""
    body = OrderedDict(
        conv1=nn.Conv2d(channels, 10, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(10, 20, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flat=nn.Flatten(),
    )
    flat = _flat_size(nn.Sequential(body), channels, size)
    return _sequential(**body, dense1=nn.Linear(flat, 100), relu3=nn.ReLU(), dense2=nn.Linear(100, classes))


def lenet(hidden: int = 100, dropout: float = 0.0, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """The LeNet of *Learning with Adversary* (its MNIST_LeNet code): 5×5 convolutions (20, 50 filters), tanh, 2×2 max pooling, ``hidden`` tanh units."""
    body = OrderedDict(
        conv1=nn.Conv2d(channels, 20, 5),
        tanh1=nn.Tanh(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        tanh2=nn.Tanh(),
        pool2=nn.MaxPool2d(2),
        flat=nn.Flatten(),
    )
    flat = _flat_size(nn.Sequential(body), channels, size)
    return _sequential(
        **body, dense1=nn.Linear(flat, hidden), tanh3=nn.Tanh(), dropout=nn.Dropout(dropout), dense2=nn.Linear(hidden, classes)
    )


def deep_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """A deeper CNN: six 3×3 convolutions (8, 8, 16, 16, 32, 32 filters) with ReLU, three 2×2 poolings, 100 units."""
    body = OrderedDict()
    inputs = channels
    for block, filters in enumerate((8, 16, 32), start=1):
        for layer in (1, 2):
            body[f"conv{block}_{layer}"] = nn.Conv2d(inputs, filters, 3, padding=1)
            body[f"relu{block}_{layer}"] = nn.ReLU()
            inputs = filters
        body[f"pool{block}"] = nn.MaxPool2d(2)
    body["flat"] = nn.Flatten()
    flat = _flat_size(nn.Sequential(body), channels, size)
    return _sequential(**body, dense1=nn.Linear(flat, 100), relu4=nn.ReLU(), dense2=nn.Linear(100, classes))


def madry_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """The network of Madry et al. (ICLR 2018) for MNIST: two 5×5 convolutions (32, 64 filters) with 2×2 max pooling, then 1,024 units."""
    body = OrderedDict(
        conv1=nn.Conv2d(channels, 32, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 64, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flat=nn.Flatten(),
    )
    flat = _flat_size(nn.Sequential(body), channels, size)
    return _sequential(**body, dense1=nn.Linear(flat, 1024), relu3=nn.ReLU(), dense2=nn.Linear(1024, classes))


def cw_cnn(width: int = 32, hidden: int = 200, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """The classifier of the MinMax attack's code, after Carlini and Wagner (2017, Table 1): 3×3 convolutions, no padding, two and two.

    ``width`` filters, then twice as many, 2×2 max pooling after each two, two layers of ``hidden`` units with dropout between them. 32 and 200
    for MNIST, 64 and 256 for CIFAR-10.
    """
    body = OrderedDict()
    inputs = channels
    for block, filters in enumerate((width, 2 * width), start=1):
        for layer in (2 * block - 1, 2 * block):
            body[f"conv{layer}"] = nn.Conv2d(inputs, filters, 3)
            body[f"relu{layer}"] = nn.ReLU()
            inputs = filters
        body[f"pool{block}"] = nn.MaxPool2d(2)
    body["flat"] = nn.Flatten()
    flat = _flat_size(nn.Sequential(body), channels, size)
    head = dict(dense1=nn.Linear(flat, hidden), relu5=nn.ReLU(), dropout=nn.Dropout(0.5), dense2=nn.Linear(hidden, hidden), relu6=nn.ReLU())
    return _sequential(**body, **head, dense3=nn.Linear(hidden, classes))


def confused_cnn(
    width: int = 20, hidden: int = 500, batch_norm: bool = True, channels: int = 1, size: int = 28, classes: int = 10
) -> nn.Sequential:
    """The classifier of *Learning to Confuse*'s MNIST code: two 5×5 convolutions (``width``, 2.5 · ``width`` filters), average pooling, ``hidden`` units.

    Batch norm stands after every layer, the logits included; ``batch_norm=False`` leaves it out. The paper's large network doubles ``width``
    and ``hidden``, its small one halves them.
    """

    def norm(layer: nn.Module, units: int) -> nn.Module:
        return layer(units) if batch_norm else nn.Identity()

    wide = 5 * width // 2
    body = OrderedDict(
        conv1=nn.Conv2d(channels, width, 5),
        norm1=norm(nn.BatchNorm2d, width),
        relu1=nn.ReLU(),
        pool1=nn.AvgPool2d(2),
        conv2=nn.Conv2d(width, wide, 5),
        norm2=norm(nn.BatchNorm2d, wide),
        relu2=nn.ReLU(),
        pool2=nn.AvgPool2d(2),
        flat=nn.Flatten(),
    )
    flat = _flat_size(nn.Sequential(body).eval(), channels, size)
    head = dict(dense1=nn.Linear(flat, hidden), norm3=norm(nn.BatchNorm1d, hidden), relu3=nn.ReLU(), dense2=nn.Linear(hidden, classes))
    return _sequential(**body, **head, norm4=norm(nn.BatchNorm1d, classes)).train()


def five_conv(channels: int = 3, size: int = 32, classes: int = 10) -> nn.Sequential:
    """*Learning to Confuse*'s network for photographs: five 3×3 convolutions (32, 64, 128, 128, 128 filters) with batch norm, ReLU and pooling.

    As in its ImageNet code, where 389,634 weights tell two classes apart; what the poolings leave is averaged. At least 32 pixels.
    """
    body, inputs = OrderedDict(), channels
    for i, filters in enumerate((32, 64, 128, 128, 128), start=1):
        body |= {f"conv{i}": nn.Conv2d(inputs, filters, 3, padding=1), f"norm{i}": nn.BatchNorm2d(filters)}
        body |= {f"relu{i}": nn.ReLU(), f"pool{i}": nn.MaxPool2d(2)}
        inputs = filters
    body |= {"mean": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    _flat_size(nn.Sequential(body).eval(), channels, size)
    return _sequential(**body, output=nn.Linear(inputs, classes)).train()


class CropAndFlip(nn.Module):
    """In training a random crop of ``size`` pixels of every image, half of them mirrored; in eval mode the middle. (N, C, H, W) in and out.

    The augmentation of CIFAR-10 as a layer, so that attacks and objectives meet the whole image.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        return str(self.size)

    def forward(self, x: Tensor) -> Tensor:
        room_y, room_x = x.shape[2] - self.size, x.shape[3] - self.size
        if not self.training:
            return x[:, :, room_y // 2 : room_y // 2 + self.size, room_x // 2 : room_x // 2 + self.size]
        ticks = torch.arange(self.size)
        rows = torch.randint(room_y + 1, (len(x), 1)) + ticks
        columns = torch.randint(room_x + 1, (len(x), 1)) + torch.where(torch.rand(len(x), 1) < 0.5, ticks, ticks.flip(0))
        images = torch.arange(len(x))[:, None, None]
        return x[images.to(x.device), :, rows[:, :, None].to(x.device), columns[:, None].to(x.device)].permute(0, 3, 1, 2)


class Normalise(nn.Module):
    """Brings images in [0,1] to (−1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def vgg(width: int = 128, dropout: float = 0.5, channels: int = 3, size: int = 32, crop: int = 28, classes: int = 10) -> nn.Sequential:
    """The CIFAR-10 network of *Learning with a Strong Adversary* (its CIFAR_VGG code), on random crops of ``crop`` pixels.

    Three 3×3 convolutions of ``width`` filters and three of twice as many, each three with a 3×3 max pooling by 2, then two layers of 16 · ``width``
    units with ``dropout``.
    """
    if crop > size:
        raise ValueError(f"crop is {crop} and size {size}; a crop is no larger than the image.")
    body = OrderedDict(normalise=Normalise())
    inputs = channels
    for block, filters in enumerate((width, 2 * width), start=1):
        for layer in (1, 2, 3):
            body[f"conv{block}_{layer}"] = nn.Conv2d(inputs, filters, 3, padding=1)
            body[f"relu{block}_{layer}"] = nn.ReLU()
            inputs = filters
        body[f"pool{block}"] = nn.MaxPool2d(3, 2)
    body["flat"] = nn.Flatten()
    hidden = 16 * width
    flat = _flat_size(nn.Sequential(body), channels, crop)
    for layer, units in (("dense1", flat), ("dense2", hidden)):
        body |= {layer: nn.Linear(units, hidden), f"{layer}_relu": nn.ReLU(), f"{layer}_dropout": nn.Dropout(dropout)}
    return _sequential(crop=CropAndFlip(crop), **body, output=nn.Linear(hidden, classes))


def mlp(*widths: int, dropout: float = 0.0, pixels: int = 784, classes: int = 10) -> nn.Sequential:
    """A multi-layer perceptron with ReLU and hidden layers of the given widths: ``mlp(100)``, ``mlp(1000, 1000)``.

    ``dropout`` is the share of the last hidden layer's units that each training step leaves out.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths is {widths}; name at least one hidden layer of one unit or more, or use logistic().")
    layers = OrderedDict(flat=nn.Flatten())
    inputs = pixels
    for i, width in enumerate(widths, start=1):
        layers[f"dense{i}"] = nn.Linear(inputs, width)
        layers[f"relu{i}"] = nn.ReLU()
        inputs = width
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return _sequential(**layers, output=nn.Linear(inputs, classes))


def logistic(pixels: int = 784, classes: int = 10) -> nn.Sequential:
    """Multinomial logistic regression: one linear layer."""
    return _sequential(flat=nn.Flatten(), output=nn.Linear(pixels, classes))


class ZeroFirst(nn.Module):
    """Turns one logit z, shape (N, 1), into the logits (0, z) of two classes, so that every attack runs on a binary model."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z), z], dim=1)


def binary_logistic(pixels: int = 784) -> nn.Sequential:
    """Binary logistic regression with one logit z = ⟨w, x⟩ + b, presented as logits (0, z)."""
    return _sequential(flat=nn.Flatten(), output=nn.Linear(pixels, 1), zero_first=ZeroFirst())
