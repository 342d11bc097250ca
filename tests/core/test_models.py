"""The networks: shapes, names, sizes."""

from functools import partial

import pytest
import torch
from torch import nn

from course_utils.core import models
from course_utils.core.runtime import generator, seeded

CONFUSED = models.confused_cnn
# Parameters by hand: a convolution has (inputs · k · k + 1) · filters, a dense layer (inputs + 1) · outputs.
# fmt: off
SIZES = {
    "slides_cnn": (models.slides_cnn, 26 * 10 + 251 * 20 + (20 * 16 + 1) * 100 + 101 * 10),
    "lenet": (models.lenet, 26 * 20 + 501 * 50 + (50 * 16 + 1) * 100 + 101 * 10),
    "lenet 500": (partial(models.lenet, 500, 0.5), 26 * 20 + 501 * 50 + (50 * 16 + 1) * 500 + 501 * 10),
    "deep_cnn": (models.deep_cnn, (10 + 73) * 8 + (73 + 145) * 16 + (145 + 289) * 32 + (32 * 9 + 1) * 100 + 101 * 10),
    "madry_cnn": (models.madry_cnn, 26 * 32 + 801 * 64 + (64 * 49 + 1) * 1024 + 1025 * 10),
    "strided_cnn": (models.strided_cnn, 17 * 32 + (16 * 32 + 1) * 64 + (64 * 49 + 1) * 128 + 129 * 10),
    "cw_cnn": (models.cw_cnn, (10 + 289) * 32 + (289 + 577) * 64 + (64 * 16 + 1) * 200 + 201 * 200 + 201 * 10),
    "confused_cnn": (CONFUSED, 432_240),  # as in the paper's code
    "confused_cnn large": (partial(CONFUSED, 40, 1000), 26 * 40 + 80 + 1001 * 100 + 200 + (100 * 16 + 1) * 1000 + 2000 + 1001 * 10 + 20),
    "confused_cnn small": (partial(CONFUSED, 10, 250, batch_norm=False), 26 * 10 + 251 * 25 + (25 * 16 + 1) * 250 + 251 * 10),
    "mlp": (partial(models.mlp, 100), 785 * 100 + 101 * 10),
    "mlp 2": (partial(models.mlp, 30, 20), 785 * 30 + 31 * 20 + 21 * 10),
    "mlp dropout": (partial(models.mlp, 30, 20, dropout=0.5), 785 * 30 + 31 * 20 + 21 * 10),
    "logistic": (models.logistic, 785 * 10),
    "binary_logistic": (models.binary_logistic, 785),
}
TOO_SMALL = {
    models.slides_cnn: 15, models.lenet: 4, models.deep_cnn: 7, models.madry_cnn: 3, models.cw_cnn: 13, CONFUSED: 15,
}
PLAIN = "conv1 relu1 pool1 conv2 relu2 pool2 flat dense1 relu3 dense2"
LAYERS = [
    (models.slides_cnn, PLAIN),
    (models.lenet, "conv1 tanh1 pool1 conv2 tanh2 pool2 flat dense1 tanh3 dropout dense2"),
    (models.madry_cnn, PLAIN),
    (models.strided_cnn, "conv1 relu1 conv2 relu2 flat dense1 relu3 dense2"),
    (models.small_resnet, "crop normalise conv0 norm0 relu0 conv1 norm1 pool1 relu1 block1 conv2 norm2 pool2 relu2 block2 "
        "conv3 norm3 pool3 relu3 block3 mean flat dropout output"),
    (models.deep_cnn, "conv1_1 relu1_1 conv1_2 relu1_2 pool1 conv2_1 relu2_1 conv2_2 relu2_2 pool2 "
        "conv3_1 relu3_1 conv3_2 relu3_2 pool3 flat dense1 relu4 dense2"),
    (models.cw_cnn, "conv1 relu1 conv2 relu2 pool1 conv3 relu3 conv4 relu4 pool2 "
        "flat dense1 relu5 dropout dense2 relu6 dense3"),
    (CONFUSED, "conv1 norm1 relu1 pool1 conv2 norm2 relu2 pool2 flat dense1 norm3 relu3 dense2 norm4"),
    (models.five_conv, " ".join(f"conv{i} norm{i} relu{i} pool{i}" for i in range(1, 6)) + " mean flat output"),
    (partial(models.vgg, 4), "crop normalise conv1_1 relu1_1 conv1_2 relu1_2 conv1_3 relu1_3 pool1 "
        "conv2_1 relu2_1 conv2_2 relu2_2 conv2_3 relu2_3 pool2 flat "
        "dense1 dense1_relu dense1_dropout dense2 dense2_relu dense2_dropout output"),
    (partial(models.mlp, 50, 40), "flat dense1 relu1 dense2 relu2 output"),
    (partial(models.mlp, 50, dropout=0.25), "flat dense1 relu1 dropout output"),
    (partial(models.mlp, 50, 40, dropout=0.25), "flat dense1 relu1 dense2 relu2 dropout output"),
    (models.binary_logistic, "flat output zero_first"),
]
# fmt: on


def names(model) -> str:
    return " ".join(name for name, _ in model.named_children())


def kinds(model) -> str:
    return " ".join(type(layer).__name__ for layer in model)


@pytest.mark.parametrize(("build", "parameters"), SIZES.values(), ids=SIZES.keys())
def test_shape_and_number_of_parameters_and_logits_not_probabilities(build, parameters):
    with seeded(0):
        model = build().eval()
    logits = model(torch.rand(20, 1, 28, 28, generator=generator(0)))
    assert logits.shape == (20, 2 if build is models.binary_logistic else 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (logits < 0).any()
    assert not torch.allclose(logits.sum(1), torch.ones(20), atol=0.01)


@pytest.mark.parametrize(("build", "expected"), LAYERS)
def test_layers_have_the_names_that_weights_in_files_have(build, expected):
    assert names(build()) == expected


def test_the_slides_cnn_is_the_slides_cnn():
    model = models.slides_cnn()
    assert model.conv1.weight.shape == (10, 1, 5, 5)  # lecture 01 draws these
    assert model.conv2.weight.shape == (20, 10, 5, 5)
    assert kinds(model) == 2 * "Conv2d ReLU MaxPool2d " + "Flatten Linear ReLU Linear"


@pytest.mark.parametrize("build", TOO_SMALL)
@pytest.mark.parametrize("size", [28, 32, 48])
def test_other_channels_sizes_and_classes(build, size):
    model = build(channels=3, size=size, classes=7)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(("build", "size"), TOO_SMALL.items())
def test_too_small_images_are_refused(build, size):
    with pytest.raises(ValueError, match=f"size is {size};.*larger images"):
        build(size=size)
    assert build(size=16)(torch.rand(2, 1, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("build", [partial(models.mlp, 20), models.logistic])
def test_dense_networks_take_any_shape_of_that_many_pixels(build):
    model = build(pixels=3 * 32 * 32, classes=4)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_zero_first():
    z = torch.tensor([[1.5], [-2.0]], requires_grad=True)
    logits = models.ZeroFirst()(z)
    assert logits.tolist() == [[0, 1.5], [0, -2.0]]
    # logistic regression as it should be
    torch.testing.assert_close(logits.softmax(1)[:, 1], torch.sigmoid(z[:, 0]))
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
    x = torch.rand(200, 1, 28, 28, generator=generator(0))
    alive = model[:-2](x) > 0
    with seeded(0):
        assert (model[:-1](x)[alive] == 0).double().mean() == pytest.approx(0.25, abs=0.03)


def test_the_network_of_madry_keeps_the_size_in_its_convolutions():
    model = models.madry_cnn()
    sizes = model.conv1.out_channels, model.conv2.out_channels, model.dense1.out_features
    assert sizes == (32, 64, 1024)
    assert model[:6](torch.rand(1, 1, 28, 28)).shape == (1, 64, 7, 7)


def test_the_network_that_is_confused_is_that_of_the_papers_code():
    model = CONFUSED()
    head = "Flatten Linear BatchNorm1d ReLU Linear BatchNorm1d"
    assert kinds(model) == 2 * "Conv2d BatchNorm2d ReLU AvgPool2d " + head
    assert model.training and all(layer.training for layer in model)
    # finding the size left no trace
    assert model.norm1.num_batches_tracked == model.norm2.num_batches_tracked == 0
    # the logits are normalised, too
    assert model(torch.rand(6, 1, 28, 28)).mean(0).abs().max() < 1e-5


def test_the_network_that_is_confused_without_batch_norm():
    model = CONFUSED(batch_norm=False)
    assert not list(model.buffers())
    assert names(model) == names(CONFUSED())
    x = torch.rand(6, 1, 28, 28)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))  # the other images do not matter


def test_the_network_of_the_photographs_is_that_of_the_papers_code():
    model = models.five_conv(classes=2)
    assert sum(weight.numel() for weight in model.parameters()) == 389_634
    assert all(layer.training for layer in model) and model.norm1.num_batches_tracked == 0
    assert model(torch.rand(2, 3, 50, 50)).shape == (2, 2)  # what the poolings leave is averaged
    with pytest.raises(ValueError, match="size is 31;.*larger images"):
        models.five_conv(size=31)


def test_crop_and_flip_in_training_is_a_random_crop_of_each_image():
    x = torch.arange(2 * 6 * 5, dtype=torch.float32).reshape(1, 2, 6, 5).expand(400, -1, -1, -1)
    layer = models.CropAndFlip(4).train()
    with seeded(0):
        crops = layer(x)
    places = [(top, left) for top in range(3) for left in range(2)]
    windows = [x[0, :, top : top + 4, left : left + 4] for top, left in places]
    windows += [window.flip(2) for window in windows]
    counts = [sum(torch.equal(crop, window) for crop in crops) for window in windows]
    assert sum(counts) == 400 and min(counts) > 15 and max(counts) < 60  # 33 of each expected
    assert torch.equal(layer.eval()(x), x[:, :, 1:5, 0:4])
    assert repr(layer) == "CropAndFlip(4)"


def test_the_vgg_is_that_of_the_authors_code():
    model = models.vgg().eval()
    convolutions, dense, dropouts, pools = (
        [layer for layer in model if isinstance(layer, kind)]
        for kind in (nn.Conv2d, nn.Linear, nn.Dropout, nn.MaxPool2d)
    )
    assert [layer.out_channels for layer in convolutions] == [128] * 3 + [256] * 3
    assert [layer.out_features for layer in dense] == [2048, 2048, 10]
    assert [layer.p for layer in dropouts] == [0.5, 0.5]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(3, 2)] * 2
    assert model.normalise(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    small = models.vgg(4, 0.0, channels=1, size=28, crop=24)
    assert small(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(ValueError, match="crop is 33 and size 32"):
        models.vgg(4, crop=33)


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "resnet18", "resnet50", "densenet121"])
def test_networks_of_torchvision_fit_small_and_large_images(name):
    with torch.device("meta"):
        small, large = (models.torchvision_network(name, 7, small) for small in (True, False))
        assert small(torch.empty(2, 3, 32, 32)).shape == (2, 7)
    first = next(layer for layer in small.modules() if isinstance(layer, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in small.modules())
    assert repr(large) != repr(small)


def test_a_network_that_torchvision_does_not_have():
    with pytest.raises(ValueError, match="name is 'alexnet'; choose vgg16"):
        models.torchvision_network("alexnet")


@pytest.mark.parametrize("widths", [(), (0,), (10, -1)])
def test_an_mlp_needs_widths(widths):
    with pytest.raises(ValueError, match=r"widths is .*use logistic\(\)"):
        models.mlp(*widths)


def test_a_residual_block_adds_its_input_and_the_network_has_nine_layers():
    model = models.small_resnet(4).eval()
    x = torch.rand(2, 8, 6, 6, generator=generator(0))
    with torch.no_grad():
        inner = torch.nn.Sequential(*model.block1)(x)
        assert torch.equal(model.block1(x), torch.relu(x + inner))
        assert model(torch.rand(3, 3, 32, 32, generator=generator(1))).shape == (3, 10)
    assert kinds(model.modules()).split().count("Conv2d") == 1 + 3 * 3
    with pytest.raises(ValueError, match="crop is 40 and size 32"):
        models.small_resnet(crop=40)
