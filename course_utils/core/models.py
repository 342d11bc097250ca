"""The classifiers of the course: functions that return an ``nn.Sequential`` of named layers.

Every model takes images in [0,1], shape (N, C, H, W), and gives logits, shape (N, classes). A
normalisation is a layer of the model, so that ε always means pixels.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

Layers = dict[str, nn.Module]


def sequential(**layers: nn.Module) -> nn.Sequential:
    """An ``nn.Sequential`` of named layers."""
    return nn.Sequential(OrderedDict(layers))


def add_flat(body: Layers, channels: int, size: int) -> int:
    """Adds the layer ``flat`` and returns its outputs per image; ValueError for a small ``size``.

    Runs in eval mode, so that batch norm takes no statistics.
    """
    body["flat"] = nn.Flatten()
    features = sequential(**body).eval()
    try:
        with torch.no_grad():
            return features(torch.zeros(1, channels, size, size)).numel()
    except RuntimeError as error:
        raise ValueError(
            f"size is {size}; the network's convolutions and pools need larger images."
        ) from error
    finally:
        features.train()


# --- convolutional classifiers


def two_convolutions(
    filters: tuple[int, int],
    hidden: int,
    channels: int,
    size: int,
    classes: int,
    *,
    activation: type[nn.Module] = nn.ReLU,
    padding: int = 0,
    dropout: float | None = None,
) -> nn.Sequential:
    """Twice a 5×5 convolution, ``activation`` and 2×2 max pooling, then ``hidden`` units."""
    name = activation.__name__.lower()
    body = {}
    inputs = channels
    for i, width in enumerate(filters, start=1):
        body[f"conv{i}"] = nn.Conv2d(inputs, width, 5, padding=padding)
        body[f"{name}{i}"] = activation()
        body[f"pool{i}"] = nn.MaxPool2d(2)
        inputs = width
    body["dense1"] = nn.Linear(add_flat(body, channels, size), hidden)
    body[f"{name}3"] = activation()
    if dropout is not None:
        body["dropout"] = nn.Dropout(dropout)
    return sequential(**body, dense2=nn.Linear(hidden, classes))


def slides_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """The CNN of Wang's slides ("CNN for MNIST"): 10 and 20 filters, ReLU, 100 units."""
    return two_convolutions((10, 20), 100, channels, size, classes)


def lenet(
    hidden: int = 100, dropout: float = 0.0, channels: int = 1, size: int = 28, classes: int = 10
) -> nn.Sequential:
    """The LeNet of *Learning with Adversary* (its MNIST_LeNet code): 20 and 50 filters, tanh."""
    return two_convolutions(
        (20, 50), hidden, channels, size, classes, activation=nn.Tanh, dropout=dropout
    )


def madry_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """The network of Madry et al. (ICLR 2018) for MNIST: 32 and 64 filters, 1,024 units."""
    return two_convolutions((32, 64), 1024, channels, size, classes, padding=2)


def strided_cnn(
    hidden: int = 128, channels: int = 1, size: int = 28, classes: int = 10
) -> nn.Sequential:
    """Two 4×4 convolutions with stride 2 and no pooling: 32 and 64 filters, ``hidden`` units.

    Twice as wide as the network of Wong and Kolter, "Provable defenses" (ICML 2018). It costs a
    third of ``madry_cnn``, which makes long adversarial trainings possible on a CPU.
    """
    body = {}
    inputs = channels
    for i, width in enumerate((32, 64), start=1):
        body[f"conv{i}"] = nn.Conv2d(inputs, width, 4, stride=2, padding=1)
        body[f"relu{i}"] = nn.ReLU()
        inputs = width
    body["dense1"] = nn.Linear(add_flat(body, channels, size), hidden)
    return sequential(**body, relu3=nn.ReLU(), dense2=nn.Linear(hidden, classes))


def add_blocks(
    body: Layers,
    inputs: int,
    widths: tuple[int, ...],
    layers: int,
    *,
    padding: int = 1,
    pool: int = 2,
    number: str = "{block}_{layer}",
) -> None:
    """Adds a block per width: ``layers`` 3×3 convolutions with ReLU, then max pooling by 2.

    ``pool`` is the side of the pooling window, ``number`` the end of the layers' names.
    """
    for block, width in enumerate(widths, start=1):
        for layer in range(1, layers + 1):
            end = number.format(block=block, layer=layer, count=layers * (block - 1) + layer)
            body[f"conv{end}"] = nn.Conv2d(inputs, width, 3, padding=padding)
            body[f"relu{end}"] = nn.ReLU()
            inputs = width
        body[f"pool{block}"] = nn.MaxPool2d(pool, 2)


def deep_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """A deeper CNN: three blocks of two convolutions (8, 16, 32 filters), 100 units."""
    body = {}
    add_blocks(body, channels, (8, 16, 32), layers=2)
    body["dense1"] = nn.Linear(add_flat(body, channels, size), 100)
    return sequential(**body, relu4=nn.ReLU(), dense2=nn.Linear(100, classes))


def cw_cnn(
    width: int = 32, hidden: int = 200, channels: int = 1, size: int = 28, classes: int = 10
) -> nn.Sequential:
    """The classifier of the MinMax attack's code, after Carlini and Wagner (2017, Table 1).

    Two convolutions of ``width`` filters without padding, two of twice as many, then two layers of
    ``hidden`` units with dropout between them. 32 and 200 for MNIST, 64 and 256 for CIFAR-10.
    """
    body = {}
    add_blocks(body, channels, (width, 2 * width), layers=2, padding=0, number="{count}")
    body["dense1"] = nn.Linear(add_flat(body, channels, size), hidden)
    body["relu5"] = nn.ReLU()
    body["dropout"] = nn.Dropout(0.5)
    body["dense2"] = nn.Linear(hidden, hidden)
    return sequential(**body, relu6=nn.ReLU(), dense3=nn.Linear(hidden, classes))


def confused_cnn(
    width: int = 20,
    hidden: int = 500,
    batch_norm: bool = True,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
) -> nn.Sequential:
    """The classifier of *Learning to Confuse*'s MNIST code.

    Two 5×5 convolutions (``width`` and 2.5 · ``width`` filters) with average pooling, then
    ``hidden`` units. Batch norm follows every layer, the logits too; ``batch_norm=False`` leaves
    it out. The paper's large network doubles ``width`` and ``hidden``, its small one halves them.
    """

    def norm(layer: type[nn.Module], units: int) -> nn.Module:
        return layer(units) if batch_norm else nn.Identity()

    body = {}
    inputs = channels
    for i, filters in enumerate((width, 5 * width // 2), start=1):
        body[f"conv{i}"] = nn.Conv2d(inputs, filters, 5)
        body[f"norm{i}"] = norm(nn.BatchNorm2d, filters)
        body[f"relu{i}"] = nn.ReLU()
        body[f"pool{i}"] = nn.AvgPool2d(2)
        inputs = filters
    body["dense1"] = nn.Linear(add_flat(body, channels, size), hidden)
    body["norm3"] = norm(nn.BatchNorm1d, hidden)
    body["relu3"] = nn.ReLU()
    body["dense2"] = nn.Linear(hidden, classes)
    return sequential(**body, norm4=norm(nn.BatchNorm1d, classes))


def five_conv(channels: int = 3, size: int = 32, classes: int = 10) -> nn.Sequential:
    """*Learning to Confuse*'s network for photographs of at least 32 pixels.

    Five 3×3 convolutions (32, 64, 128, 128, 128 filters) with batch norm, ReLU and pooling; the
    rest is averaged. As in its ImageNet code, with 389,634 weights for two classes.
    """
    body = {}
    inputs = channels
    for i, filters in enumerate((32, 64, 128, 128, 128), start=1):
        body[f"conv{i}"] = nn.Conv2d(inputs, filters, 3, padding=1)
        body[f"norm{i}"] = nn.BatchNorm2d(filters)
        body[f"relu{i}"] = nn.ReLU()
        body[f"pool{i}"] = nn.MaxPool2d(2)
        inputs = filters
    body["mean"] = nn.AdaptiveAvgPool2d(1)
    body["output"] = nn.Linear(add_flat(body, channels, size), classes)
    return sequential(**body)


class CropAndFlip(nn.Module):
    """In training a random crop of ``size`` pixels of each image, half of them mirrored.

    In eval mode the middle. (N, C, H, W) in and out. This is the augmentation of CIFAR-10; as a
    layer it leaves the whole image to attacks and objectives.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        return str(self.size)

    def forward(self, x: Tensor) -> Tensor:
        room_y = x.shape[2] - self.size
        room_x = x.shape[3] - self.size
        if not self.training:
            top = room_y // 2
            left = room_x // 2
            return x[:, :, top : top + self.size, left : left + self.size]
        ticks = torch.arange(self.size)
        rows = torch.randint(room_y + 1, (len(x), 1)) + ticks
        left = torch.randint(room_x + 1, (len(x), 1))
        columns = left + torch.where(torch.rand(len(x), 1) < 0.5, ticks, ticks.flip(0))
        images = torch.arange(len(x))[:, None, None].to(x.device)
        rows = rows[:, :, None].to(x.device)
        columns = columns[:, None].to(x.device)
        return x[images, :, rows, columns].permute(0, 3, 1, 2)


class Normalise(nn.Module):
    """Brings images in [0,1] to [−1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def vgg(
    width: int = 128,
    dropout: float = 0.5,
    channels: int = 3,
    size: int = 32,
    crop: int = 28,
    classes: int = 10,
) -> nn.Sequential:
    """The CIFAR-10 network of *Learning with a Strong Adversary* (its CIFAR_VGG code).

    On random crops of ``crop`` pixels: three convolutions of ``width`` filters, three of twice as
    many, each three with a 3×3 max pooling, then two layers of 16 · ``width`` units with dropout.
    """
    if crop > size:
        raise ValueError(f"crop is {crop} and size {size}; a crop is no larger than the image.")
    body = {"normalise": Normalise()}
    add_blocks(body, channels, (width, 2 * width), layers=3, pool=3)
    hidden = 16 * width
    inputs = add_flat(body, channels, crop)
    for layer in ("dense1", "dense2"):
        body[layer] = nn.Linear(inputs, hidden)
        body[f"{layer}_relu"] = nn.ReLU()
        body[f"{layer}_dropout"] = nn.Dropout(dropout)
        inputs = hidden
    return sequential(crop=CropAndFlip(crop), **body, output=nn.Linear(hidden, classes))


class Residual(nn.Sequential):
    """Adds what its layers make of x to x, then ReLU (He et al., CVPR 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + super().forward(x))


def convolved(inputs: int, filters: int) -> Layers:
    """A 3×3 convolution that keeps the size, and batch norm."""
    return {
        "conv": nn.Conv2d(inputs, filters, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(filters),
    }


def small_resnet(
    width: int = 16,
    dropout: float = 0.0,
    channels: int = 3,
    size: int = 32,
    crop: int = 28,
    classes: int = 10,
) -> nn.Sequential:
    """A residual network of nine layers for CIFAR-10 that learns on a CPU.

    On random crops of ``crop`` pixels, some mirrored: ``width`` filters, then three stages of 2, 4
    and 8 times as many. A stage is a convolution with max pooling and a residual block of two.
    """
    if crop > size:
        raise ValueError(f"crop is {crop} and size {size}; a crop is no larger than the image.")
    body = {"normalise": Normalise()}
    body |= {f"{name}0": layer for name, layer in convolved(channels, width).items()}
    body["relu0"] = nn.ReLU()
    inputs = width
    for stage, filters in enumerate((2 * width, 4 * width, 8 * width), start=1):
        body |= {f"{name}{stage}": layer for name, layer in convolved(inputs, filters).items()}
        body[f"pool{stage}"] = nn.MaxPool2d(2)
        body[f"relu{stage}"] = nn.ReLU()
        first, second = (sequential(**convolved(filters, filters)) for _ in range(2))
        body[f"block{stage}"] = Residual(first, nn.ReLU(), second)
        inputs = filters
    body["mean"] = nn.AdaptiveAvgPool2d(1)
    inputs = add_flat(body, channels, crop)
    body["dropout"] = nn.Dropout(dropout)
    return sequential(crop=CropAndFlip(crop), **body, output=nn.Linear(inputs, classes))


def torchvision_network(name: str, classes: int = 10, small: bool = True) -> nn.Module:
    """An untrained network of torchvision for colour images.

    ``name`` is ``"vgg16"``, ``"vgg19"`` (with batch norm), ``"resnet18"``, ``"resnet50"`` or
    ``"densenet121"``. ``small`` fits it to 32 pixels: the first convolution is 3×3 without stride
    and pooling, VGG ends in one linear layer.
    """
    from torchvision import models as known

    names = ("vgg16", "vgg19", "resnet18", "resnet50", "densenet121")
    if name not in names:
        raise ValueError(f"name is {name!r}; choose {', '.join(names)}.")
    is_vgg = name.startswith("vgg")
    model = getattr(known, f"{name}_bn" if is_vgg else name)(num_classes=classes)
    if not small:
        return model
    if is_vgg:
        model.avgpool = nn.Identity()
        model.classifier = nn.Linear(512, classes)
        return model
    first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if name.startswith("resnet"):
        model.conv1 = first
        model.maxpool = nn.Identity()
    else:
        model.features.conv0 = first
        model.features.pool0 = nn.Identity()
    return model


# --- dense classifiers


def mlp(*widths: int, dropout: float = 0.0, pixels: int = 784, classes: int = 10) -> nn.Sequential:
    """A perceptron with ReLU and hidden layers of these widths: ``mlp(100)``, ``mlp(1000, 1000)``.

    ``dropout`` is the share of the last hidden layer's units that each training step leaves out.
    """
    if not widths or min(widths) < 1:
        raise ValueError(
            f"widths is {widths}; name at least one hidden layer of one unit or more, "
            "or use logistic()."
        )
    layers = {"flat": nn.Flatten()}
    inputs = pixels
    for i, width in enumerate(widths, start=1):
        layers[f"dense{i}"] = nn.Linear(inputs, width)
        layers[f"relu{i}"] = nn.ReLU()
        inputs = width
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return sequential(**layers, output=nn.Linear(inputs, classes))


def logistic(pixels: int = 784, classes: int = 10) -> nn.Sequential:
    """Multinomial logistic regression: one linear layer."""
    return sequential(flat=nn.Flatten(), output=nn.Linear(pixels, classes))


class ZeroFirst(nn.Module):
    """Turns one logit z, shape (N, 1), into the logits (0, z) of two classes, as attacks need."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z), z], dim=1)


def binary_logistic(pixels: int = 784) -> nn.Sequential:
    """Binary logistic regression with one logit z = ⟨w, x⟩ + b, presented as logits (0, z)."""
    return sequential(flat=nn.Flatten(), output=nn.Linear(pixels, 1), zero_first=ZeroFirst())
