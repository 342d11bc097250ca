"""The networks: shapes, names, sizes."""

from functools import partial

import pytest
import torch

from course_utils import models
from course_utils.runtime import generator

# Parameters by hand: a convolution has (inputs · k · k + 1) · filters, a dense layer (inputs + 1) · outputs.
SIZES = {
    "slides_cnn": (models.slides_cnn, 26 * 10 + (250 + 1) * 20 + (20 * 4 * 4 + 1) * 100 + 101 * 10),
    "lenet": (models.lenet, 26 * 20 + (500 + 1) * 50 + (50 * 4 * 4 + 1) * 100 + 101 * 10),
    "lenet 500": (partial(models.lenet, 500, 0.5), 26 * 20 + (500 + 1) * 50 + (50 * 4 * 4 + 1) * 500 + 501 * 10),
    "deep_cnn": (models.deep_cnn, 10 * 8 + 73 * 8 + 73 * 16 + 145 * 16 + 145 * 32 + 289 * 32 + (32 * 3 * 3 + 1) * 100 + 101 * 10),
    "madry_cnn": (models.madry_cnn, 26 * 32 + (800 + 1) * 64 + (64 * 7 * 7 + 1) * 1024 + 1025 * 10),
    "cw_cnn": (models.cw_cnn, 10 * 32 + 289 * 32 + 289 * 64 + 577 * 64 + (64 * 4 * 4 + 1) * 200 + 201 * 200 + 201 * 10),
    "confused_cnn": (models.confused_cnn, 26 * 20 + 40 + 501 * 50 + 100 + (50 * 4 * 4 + 1) * 500 + 1000 + 501 * 10 + 20),
    "confused_cnn large": (
        partial(models.confused_cnn, 40, 1000),
        26 * 40 + 80 + 1001 * 100 + 200 + (100 * 4 * 4 + 1) * 1000 + 2000 + 1001 * 10 + 20,
    ),
    "confused_cnn small": (
        partial(models.confused_cnn, 10, 250, batch_norm=False),
        26 * 10 + 251 * 25 + (25 * 4 * 4 + 1) * 250 + 251 * 10,
    ),
    "mlp": (partial(models.mlp, 100), 785 * 100 + 101 * 10),
    "mlp 2": (partial(models.mlp, 30, 20), 785 * 30 + 31 * 20 + 21 * 10),
    "mlp dropout": (partial(models.mlp, 30, 20, dropout=0.5), 785 * 30 + 31 * 20 + 21 * 10),
    "logistic": (models.logistic, 785 * 10),
    "binary_logistic": (models.binary_logistic, 785),
}


@pytest.mark.parametrize(("build", "parameters"), SIZES.values(), ids=SIZES.keys())
def test_shape_and_number_of_parameters(build, parameters):
    model = build()
    classes = 2 if build is models.binary_logistic else 10
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_slides_cnn_is_the_slides_cnn():
    model = models.slides_cnn()
    assert model.conv1.weight.shape == (10, 1, 5, 5)  # lecture 01 draws these
    assert model.conv2.weight.shape == (20, 10, 5, 5)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("build", [models.slides_cnn, models.lenet, models.deep_cnn, models.madry_cnn, models.cw_cnn, models.confused_cnn])
@pytest.mark.parametrize("size", [28, 32, 48])
def test_other_channels_sizes_and_classes(build, size):
    model = build(channels=3, size=size, classes=7)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("build", [partial(models.mlp, 20), models.logistic])
def test_dense_networks_take_any_shape_of_that_many_pixels(build):
    model = build(pixels=3 * 32 * 32, classes=4)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("build", [build for build, _ in SIZES.values()], ids=SIZES.keys())
def test_logits_not_probabilities(build):
    torch.manual_seed(0)
    logits = build().eval()(torch.rand(20, 1, 28, 28, generator=generator(0)))
    assert (logits < 0).any()
    assert not torch.allclose(logits.sum(1), torch.ones(20), atol=0.01)


def test_zero_first():
    z = torch.tensor([[1.5], [-2.0]], requires_grad=True)
    logits = models.ZeroFirst()(z)
    assert logits.tolist() == [[0, 1.5], [0, -2.0]]
    torch.testing.assert_close(logits.softmax(1)[:, 1], torch.sigmoid(z[:, 0]))  # logistic regression as it should be
    logits[:, 1].sum().backward()
    assert z.grad.tolist() == [[1], [1]]


@pytest.mark.parametrize("build", [models.lenet, partial(models.mlp, 50, 40)])
def test_dropout_is_off_unless_asked_for(build):
    x = torch.rand(4, 1, 28, 28)
    plain, dropping = build().train(), build(dropout=0.5).train()
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), dropping(x))


def test_an_mlp_drops_units_of_its_last_hidden_layer_only():
    model = models.mlp(50, 40, dropout=0.25).train()
    assert [name for name, _ in model.named_children()] == ["flat", "dense1", "relu1", "dense2", "relu2", "dropout", "output"]
    x = torch.rand(200, 1, 28, 28, generator=generator(0))
    alive = model[:-2](x) > 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert (model[:-1](x)[alive] == 0).double().mean() == pytest.approx(0.25, abs=0.03)
    assert [name for name, _ in models.mlp(50).named_children()] == ["flat", "dense1", "relu1", "output"]  # as its cached weights know it


def test_the_network_of_madry_is_that_of_the_issue():
    model = models.madry_cnn()
    assert (model.conv1.out_channels, model.conv2.out_channels, model.dense1.out_features) == (32, 64, 1024)
    assert model[:6](torch.rand(1, 1, 28, 28)).shape == (1, 64, 7, 7)


def test_the_network_that_is_confused_is_that_of_the_papers_code():
    model = models.confused_cnn()
    assert sum(p.numel() for p in model.parameters()) == 432_240  # papers.md §1.5
    kinds = [type(layer).__name__ for layer in model]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d"]
    assert kinds == [*block, *block, "Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert model.training and all(layer.training for layer in model)
    assert all(norm.num_batches_tracked == 0 for norm in (model.norm1, model.norm2))  # finding the size left no trace
    assert model(torch.rand(6, 1, 28, 28)).mean(0).abs().max() < 1e-5  # the logits are normalised, too


def test_the_network_that_is_confused_without_batch_norm():
    model = models.confused_cnn(batch_norm=False)
    assert not list(model.buffers())
    assert [name for name, _ in model.named_children()] == [name for name, _ in models.confused_cnn().named_children()]
    x = torch.rand(6, 1, 28, 28)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))  # an image's logits do not depend on its company


def test_crop_and_flip_in_training_is_a_random_crop_of_each_image():
    x = torch.arange(2 * 6 * 5, dtype=torch.float32).reshape(1, 2, 6, 5).expand(400, -1, -1, -1)
    layer = models.CropAndFlip(4).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crops = layer(x)
    windows = {}
    for top in range(3):
        for left in range(2):
            window = x[0, :, top : top + 4, left : left + 4]
            windows |= {(top, left, False): window, (top, left, True): window.flip(2)}
    found = [next(place for place, window in windows.items() if torch.equal(crop, window)) for crop in crops]
    counts = [found.count(place) for place in windows]
    assert min(counts) > 15 and max(counts) < 60  # 33 of each expected
    assert torch.equal(layer.eval()(x), x[:, :, 1:5, 0:4])


def test_the_vgg_is_that_of_the_authors_code():
    model = models.vgg().eval()
    assert [layer.out_channels for layer in model if isinstance(layer, torch.nn.Conv2d)] == [128] * 3 + [256] * 3
    assert [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)] == [2048, 2048, 10]
    assert sum(isinstance(layer, torch.nn.Dropout) for layer in model) == 2
    assert model.normalise(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    small = models.vgg(4, 0.0, channels=1, size=28, crop=24)
    assert small(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(ValueError, match="crop is 33 and size 32"):
        models.vgg(4, crop=33)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (models.slides_cnn, 15),
        (models.lenet, 4),
        (models.deep_cnn, 7),
        (models.madry_cnn, 3),
        (models.cw_cnn, 13),
        (models.confused_cnn, 15),
    ],
)
def test_too_small_images_are_refused(build, size):
    with pytest.raises(ValueError, match=f"size is {size};.*larger images"):
        build(size=size)
    assert build(size=16)(torch.rand(2, 1, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("widths", [(), (0,), (10, -1)])
def test_an_mlp_needs_widths(widths):
    with pytest.raises(ValueError, match=r"widths is .*use logistic\(\)"):
        models.mlp(*widths)
