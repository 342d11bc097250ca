"""The networks that write noise: names, sizes, shapes."""

import pytest
import torch

from course_utils.core import runtime
from course_utils.core.generators import UNet, digit_generator, noise_autoencoder


def test_the_autoencoder_is_the_papers():
    names = [name for name, _ in noise_autoencoder(16, 32).named_children()]
    down = ["down1", "down1_norm", "down1_relu", "down2", "down2_norm", "down2_relu"]
    assert names == [*down, "up1", "up1_norm", "up1_relu", "up2"]
    deep = noise_autoencoder(16, 32, 64, 128, channels=3, size=32)
    assert deep(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert [deep.get_submodule(f"down{i}").out_channels for i in (1, 2, 3, 4)] == [16, 32, 64, 128]
    assert [deep.get_submodule(f"up{i}").out_channels for i in (1, 2, 3, 4)] == [64, 32, 16, 3]


@pytest.mark.parametrize(
    ("build", "weights"),
    [
        # a convolution has (inputs · 16 + 1) · filters, a norm two per filter
        (
            lambda: noise_autoencoder(16, 32),
            17 * 16 + 32 + 257 * 32 + 64 + (512 * 16 + 16) + 32 + 257,
        ),
        # 346,659 with the biases of the authors' code
        (lambda: noise_autoencoder(16, 32, 64, 128, channels=3, size=32), range(340_000, 352_000)),
        (UNet, 7_788_681),
        (digit_generator, 288_963),
    ],
)
def test_numbers_of_weights(build, weights):
    count = sum(weight.numel() for weight in build().parameters())
    assert count == weights or (isinstance(weights, range) and count in weights)


@pytest.mark.parametrize(
    ("build", "channels", "size"),
    [
        (lambda: noise_autoencoder(4, 6, size=16), 1, 16),
        (lambda: noise_autoencoder(4, 6), 1, 28),
        (UNet, 3, 16),
        (lambda: UNet(1), 1, 24),
        (digit_generator, 1, 28),
        (lambda: digit_generator(3), 3, 28),
    ],
)
def test_images_go_in_and_noise_of_both_signs_comes_out(build, channels, size):
    with runtime.seeded(0):
        x = torch.rand(5, channels, size, size)
        raw = build()(x)
    assert raw.shape == x.shape and (raw > 0).any() and (raw < 0).any()


def test_a_unet_joins_what_it_saw_at_each_size_on_the_way_down():
    net, seen = UNet(1).eval(), []
    for block in (*net.down, *net.up):
        block.register_forward_hook(lambda block, given, made: seen.append((given[0], made)))
    net(torch.rand(1, 1, 16, 16))
    assert [made.shape[1:] for _, made in seen] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (256, 4, 4), (128, 8, 8), (64, 16, 16)
    ]  # fmt: skip
    for up, down in ((4, 2), (5, 1), (6, 0)):
        skip = seen[down][1]
        assert torch.equal(seen[up][0][:, : skip.shape[1]], skip)


@pytest.mark.parametrize(("widths", "size"), [((), 28), ((4, 4, 4), 28), ((4,), 7), ((4, 4), 30)])
def test_a_size_that_cannot_be_halved_is_refused(widths, size):
    with pytest.raises(ValueError, match=f"size is {size} and widths .*halved"):
        noise_autoencoder(*widths, size=size)
