"""Transforms of images against oracles: Pillow, SciPy, and what a pose does to a spot of light."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.testing import assert_close

from course_utils.core.runtime import generator
from course_utils.methods import transforms
from course_utils.methods.transforms import (
    bit_depth,
    blur,
    jpeg,
    posed,
    random_pose,
    rescale,
    rounded,
)

f64 = torch.float64


def noise(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=generator(0), dtype=dtype)


def extremes(*shape):
    """White, black, and a mixture of both, where rounding may leave [0,1]."""
    mixed = (noise(*shape) > 0.5).float()
    return torch.cat([torch.ones(shape), torch.zeros(shape), mixed])


ALL = {
    "rounded": rounded,
    "jpeg": jpeg,
    "bit_depth": bit_depth,
    "blur": blur,
    "rescale": rescale,
    "posed": lambda x: posed(x, turn=0.4, scale=0.9, across=0.05, down=-0.1, light=0.8),
}
WITHOUT_GRADIENT = ("rounded", "jpeg", "bit_depth")
every_transform = pytest.mark.parametrize("name", ALL)


@every_transform
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_range_stay(name, channels):
    x = extremes(2, channels, 16, 20)
    before = x.clone()
    result = ALL[name](x)
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    assert 0 <= result.min() and result.max() <= 1
    assert torch.equal(x, before)
    assert not torch.equal(result, x) or name in ("rounded", "bit_depth")


@every_transform
def test_an_image_does_not_depend_on_its_batch(name):
    x = noise(3, 3, 16, 16)
    alone = torch.cat([ALL[name](one) for one in x.split(1)])
    assert_close(ALL[name](x), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in ALL if name not in WITHOUT_GRADIENT])
def test_gradients_are_those_of_finite_differences(name):
    x = noise(1, 1, 5, 4, dtype=f64).requires_grad_()
    assert torch.autograd.gradcheck(ALL[name], x)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_rounding_has_no_useful_gradient(name):
    x = noise(1, 3, 8, 8).requires_grad_()
    result = ALL[name](x)
    if result.requires_grad:
        assert not torch.autograd.grad(result.sum(), x)[0].any()


# --- grey levels, JPEG


def test_rounded_gives_the_nearest_grey_level():
    levels = torch.arange(256).float().view(1, 1, 16, 16)
    assert_close(rounded((levels + 0.4).clamp(max=255) / 255), levels / 255, atol=0, rtol=0)
    assert_close(rounded((levels - 0.4).clamp(min=0) / 255), levels / 255, atol=0, rtol=0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bit_depth_gives_the_nearest_of_its_levels(bits):
    x = torch.linspace(0, 1, 10_000, dtype=f64).view(1, 1, 100, 100)
    levels = torch.arange(2**bits, dtype=f64) / (2**bits - 1)
    nearest = levels[(x[..., None] - levels).abs().argmin(-1)]
    off = (bit_depth(x, bits) - nearest).abs()
    assert off.max() < 1e-12
    assert len(bit_depth(x, bits).unique()) == 2**bits


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 30, 75, 95])
def test_jpeg_is_what_a_file_of_pillow_holds(channels, quality, tmp_path):
    x = noise(2, channels, 24, 17)
    result = jpeg(x, quality)
    for image, ours in zip(x, result, strict=True):
        levels = (255 * image.numpy()).round().astype(np.uint8).transpose(1, 2, 0)
        how = {"quality": quality} | ({"subsampling": "4:2:0"} if channels == 3 else {})
        Image.fromarray(levels.squeeze()).save(tmp_path / "a.jpg", **how)
        theirs = np.atleast_3d(Image.open(tmp_path / "a.jpg")).transpose(2, 0, 1)
        assert torch.equal((255 * ours).round(), torch.tensor(theirs).float())


def test_jpeg_keeps_a_graph_and_the_precision_out():
    x = noise(1, 3, 8, 8, dtype=f64).requires_grad_()
    assert jpeg(x).dtype == f64 and not jpeg(x).requires_grad


# --- blur and scale


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_scipys(sigma):
    x = noise(1, 3, 20, 30, dtype=f64)
    reach = math.ceil(3 * sigma)
    theirs = gaussian_filter(x.numpy(), sigma, mode="mirror", axes=(2, 3), radius=reach)
    assert_close(blur(x, sigma), torch.tensor(theirs))


def test_blur_spreads_a_spot_and_keeps_its_light_and_what_is_even():
    spot = torch.zeros(1, 1, 15, 15)
    spot[..., 7, 7] = 1
    spread = blur(spot, 1.5)
    assert spread.max() < 0.1 and spread.sum().item() == pytest.approx(1, abs=1e-6)
    assert_close(spread, spread.transpose(2, 3))
    even = torch.full((1, 3, 9, 9), 0.3)
    assert_close(blur(even, 2.0), even, atol=1e-6, rtol=0)
    assert torch.equal(blur(spot, 0), spot)


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.6])
def test_rescale_is_pillows(factor):
    x = noise(1, 1, 20, 30)
    height, width = round(20 * factor), round(30 * factor)
    small = Image.fromarray(x[0, 0].numpy()).resize((width, height), Image.Resampling.BILINEAR)
    theirs = np.array(small.resize((30, 20), Image.Resampling.BILINEAR))
    assert_close(rescale(x, factor)[0, 0], torch.tensor(theirs), atol=1e-5, rtol=0)


def test_rescale_keeps_one_pixel_at_least():
    x = noise(1, 3, 8, 8)
    assert_close(rescale(x, 0.01), x.mean((2, 3), keepdim=True).expand_as(x), atol=0.2, rtol=0)
    assert len(rescale(x, 0.01)[0, 0].unique()) == 1


# --- poses


def test_the_pose_of_rest_changes_nothing():
    x = noise(2, 3, 15, 16)
    assert_close(posed(x), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_a_turn_is_counter_clockwise(quarters):
    x = noise(2, 3, 12, 12)
    turned = posed(x, turn=quarters * math.pi / 2)
    assert_close(turned, x.rot90(quarters, (2, 3)), atol=1e-5, rtol=0)


def test_a_picture_moves_right_and_down_by_shares_of_its_side_and_leaves_grey():
    x = noise(2, 3, 10, 20)
    moved = posed(x, across=0.1, down=0.3)
    assert_close(moved[..., 3:, 2:], x[..., :7, :18], atol=1e-5, rtol=0)
    grey = torch.cat([moved[..., :3, :].flatten(), moved[..., :2].flatten()])
    assert_close(grey, torch.full_like(grey, 0.5), atol=1e-5, rtol=0)


def test_a_larger_picture_shows_its_middle():
    x = noise(1, 3, 15, 15)
    large = posed(x, scale=2)
    assert_close(large[..., 1::2, 1::2], x[..., 4:11, 4:11], atol=1e-5, rtol=0)


def test_a_smaller_picture_has_a_grey_border():
    x = noise(1, 3, 16, 16)
    small = posed(x, scale=0.5)
    halved = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    framed = torch.nn.functional.pad(halved, [4] * 4, value=0.5)
    assert_close(small, framed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(40, 40), (30, 60)])
def test_a_pose_turns_then_scales_then_moves(shape):
    """A spot of light at v from the middle lands at scale · R v + shift."""
    height, width = shape
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down = down - (height - 1) / 2
    across = across - (width - 1) / 2
    spot = 0.5 + 0.5 * torch.exp(-((across - 7) ** 2 + (down + 2) ** 2) / 8)
    turn, scale = 0.6, 1.2
    light = posed(spot[None, None], turn, scale, across=0.1, down=-0.05)[0, 0] - 0.5
    seen = [(light * axis).sum() / light.sum() for axis in (across, down)]
    cos, sin = math.cos(turn), math.sin(turn)
    # down grows downwards, so counter-clockwise takes what is on the right upwards
    expected = [
        scale * (cos * 7 + sin * -2) + 0.1 * width,
        scale * (-sin * 7 + cos * -2) - 0.05 * height,
    ]
    assert seen == pytest.approx(expected, abs=0.1)
    assert light.sum() == pytest.approx(scale**2 * (spot - 0.5).sum().item(), rel=0.02)


def test_light_multiplies():
    x = noise(1, 3, 8, 8)
    assert_close(posed(x, light=0.5), x / 2, atol=1e-6, rtol=0)


# --- random poses


@pytest.fixture
def poses(monkeypatch):
    """Many poses' values by name, as ``random_pose`` hands them to ``posed``."""

    def many(count, generator, **spans):
        seen = []
        monkeypatch.setattr(transforms, "posed", lambda x, **values: seen.append(values))
        for _ in range(count):
            random_pose(generator, **spans)(None)
        return {
            name: torch.tensor([values[name] for values in seen], dtype=f64) for name in seen[0]
        }

    return many


def test_random_poses_fill_their_bounds_evenly(poses):
    values = poses(1000, generator(0), turn=0.4, scale=0.3, shift=0.2, light=0.5)
    bounds = {
        "turn": (-0.4, 0.4),
        "scale": (0.7, 1.3),
        "across": (-0.2, 0.2),
        "down": (-0.2, 0.2),
        "light": (0.5, 1.0),
    }
    assert set(values) == set(bounds)
    for name, (low, high) in bounds.items():
        assert low <= values[name].min() and values[name].max() <= high
        tenths = torch.histc((values[name] - low) / (high - low), 10, 0, 1)
        assert ((tenths - 100) ** 2 / 100).sum() < 33.7  # χ² with 9 degrees: p = 0.0001
    drawn = torch.stack(list(values.values()))
    assert drawn.corrcoef().triu(1).abs().max() < 0.15  # each value has a draw of its own


def test_light_is_full_and_nothing_moves_unless_asked_for(poses):
    values = poses(5, generator(0), turn=0, scale=0, shift=0)
    rest = {"turn": 0, "scale": 1, "across": 0, "down": 0, "light": 1}
    assert {name: value.unique().tolist() for name, value in values.items()} == {
        name: [value] for name, value in rest.items()
    }


def test_a_generator_decides_the_pose_once_for_the_whole_batch():
    x = noise(1, 3, 12, 12).expand(3, -1, -1, -1)
    pose = random_pose(generator(3), light=0.4)
    first = pose(x)
    assert torch.equal(pose(x), first)  # the pose is drawn once
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    assert torch.equal(random_pose(generator(3), light=0.4)(x), first)
    state = torch.get_rng_state()
    stream = generator(3)
    views = [random_pose(stream, light=0.4)(x) for _ in range(2)]
    assert torch.equal(views[0], first) and not torch.equal(views[1], first)
    assert torch.equal(torch.get_rng_state(), state)


# --- bad input

X = torch.full((1, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jpeg(X, 0), "quality is 0"),
        (lambda: jpeg(X, 96), "quality is 96.*from 1 to 95"),
        (lambda: jpeg(X, 75.5), "quality is 75.5"),
        (lambda: jpeg(X[:, :2]), "x has 2 channels.*grey or colour"),
        (lambda: jpeg(255 * X), r"x reaches from 127.5.*scale images to \[0,1\]"),
        (lambda: bit_depth(X, 0), "bits is 0"),
        (lambda: bit_depth(X, 2.5), "bits is 2.5"),
        (lambda: blur(X, -1.0), "sigma is -1.0"),
        (lambda: blur(X, math.nan), "sigma is nan"),
        (lambda: blur(X, 3.0), "sigma is 3.0.*at most 2, a third"),
        (lambda: rescale(X, -0.5), "factor is -0.5.*between 0 and 1"),
        (lambda: rescale(X, 1.5), "factor is 1.5.*between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
