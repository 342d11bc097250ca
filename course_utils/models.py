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
