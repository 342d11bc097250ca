"""The networks that write noise in *Learning to Confuse*: raw values in the shape of the images.

``confuse.bounded`` makes noise of the raw values. "The paper" is Feng, Cai and Zhou (NeurIPS 2019).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.core.models import sequential


def noise_autoencoder(*widths: int, channels: int = 1, size: int = 28) -> nn.Sequential:
    """The paper's generator: 4×4 convolutions that halve the image, as many that double it again.

    Batch norm and ReLU between them. The paper describes widths 16, 32, 64, 128; 28 pixels allow
    two. Raises ``ValueError`` for a ``size`` that cannot be halved so often.
    """
    if not widths or size % 2 ** len(widths):
        raise ValueError(
            f"size is {size} and widths {widths}; the image is halved once per width, "
            "so choose fewer widths or another size."
        )
    layers = {}
    inputs = channels
    for i, width in enumerate(widths, start=1):
        layers[f"down{i}"] = nn.Conv2d(inputs, width, 4, 2, 1)
        layers[f"down{i}_norm"] = nn.BatchNorm2d(width)
        layers[f"down{i}_relu"] = nn.ReLU()
        inputs = width
    for i, width in enumerate((*reversed(widths[:-1]), channels), start=1):
        layers[f"up{i}"] = nn.ConvTranspose2d(inputs, width, 4, 2, 1)
        if i < len(widths):
            layers[f"up{i}_norm"] = nn.BatchNorm2d(width)
            layers[f"up{i}_relu"] = nn.ReLU()
        inputs = width
    return sequential(**layers)


class UNet(nn.Module):
    """The generator of the paper's CIFAR-10 code: two 3×3 convolutions at each of four sizes.

    64 to 512 channels with batch norm and ReLU, down by averaging, up by interpolation; each size
    on the way up also sees that of the way down. 7,788,681 weights for three colours. The image's
    sides must be divisible by 8.
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        self.down = nn.ModuleList()
        inputs = channels
        for width in (64, 128, 256, 512):
            self.down.append(convolution_pair(inputs, width))
            inputs = width
        self.up = nn.ModuleList()
        for width in (256, 128, 64):
            self.up.append(convolution_pair(inputs + width, width))
            inputs = width
        self.out = nn.Sequential(nn.Conv2d(inputs, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for block in self.down:
            x = block(F.avg_pool2d(x, 2) if seen else x)
            seen.append(x)
        for block, skip in zip(self.up, seen[-2::-1], strict=True):
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([skip, larger], 1))
        return self.out(x)


def convolution_pair(inputs: int, outputs: int) -> nn.Sequential:
    """Two padded 3×3 convolutions, each with batch norm and ReLU."""
    layers = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def digit_generator(channels: int = 1) -> nn.Sequential:
    """The generator of the paper's MNIST code: 28×28 pixels to 2×2 of 64 channels and back.

    It sees the whole digit, and its last batch norm makes the noise strong from the first step.
    288,963 weights for grey images. The paper describes ``noise_autoencoder(16, 32, 64, 128)``.
    """
    return sequential(
        down1=nn.Conv2d(channels, 16, 3, 3, 1),
        norm1=nn.BatchNorm2d(16),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        down2=nn.Conv2d(16, 64, 3, 2, 1),
        norm2=nn.BatchNorm2d(64),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2, 1),
        up1=nn.ConvTranspose2d(64, 128, 3, 2),
        norm3=nn.BatchNorm2d(128),
        relu3=nn.ReLU(),
        up2=nn.ConvTranspose2d(128, 64, 5, 3, 1),
        norm4=nn.BatchNorm2d(64),
        relu4=nn.ReLU(),
        up3=nn.ConvTranspose2d(64, channels, 2, 2, 1),
        norm5=nn.BatchNorm2d(channels),
    )
