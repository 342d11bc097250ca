"""Victims of a poison that are no neural networks, and the two ways to measure one that is.

DeepConfuse's evaluation never switched its networks to eval mode: their batch normalisation used the statistics of the clean test batch at
hand. Both modes are here, ``"eval"`` and ``"batch"``, since they can differ much.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_utils import models, runtime
from course_utils.attacks import _check_count
from course_utils.data import Images
from course_utils.training import eval_mode

Predict = Callable[[Float[Tensor, "n c h w"]], Int[Tensor, "n"]]
MODES = ("eval", "batch")


def random_forest(images: Images, *, trees: int = 300, seed: int = 0) -> Predict:
    """A random forest on the pixels, fitted; 300 trees as in DeepConfuse's paper (its code grows 100)."""
    from sklearn.ensemble import RandomForestClassifier

    _check_count("trees", trees, 1)
    return _fitted(RandomForestClassifier(n_estimators=trees, random_state=seed), images)


def svm(images: Images, *, gamma: float = 0.01, C: float = 200.0) -> Predict:
    """A support vector machine with kernel exp(−``gamma`` ‖x − x′‖²) on the pixels, fitted; ``C`` = 200 is given only in DeepConfuse's code."""
    from sklearn.svm import SVC

    return _fitted(SVC(kernel="rbf", gamma=gamma, C=C), images)


def linear_svm(images: Images, *, C: float = 0.01) -> nn.Sequential:
    """A linear support vector machine, one class against the rest, as a ``models.logistic`` with its weights, so that attacks and accuracy run on it.

    ``model.output.weight.view(K, *images.x.shape[1:])`` is what DeepConfuse's Figure 10 shows. The loss is the squared hinge; neither paper
    nor code gives ``C``. Its logits are distances to the planes, no log-probabilities.

    Raises:
        ValueError: a class without an image.
    """
    from sklearn.svm import LinearSVC

    missing = sorted(set(range(len(images.classes))) - set(images.y.tolist()))
    if missing or len(images.classes) < 2:
        raise ValueError(f"images show {len(images.classes)} classes, none of {missing}; each of two or more needs an image: draw more.")
    machine = LinearSVC(C=C, dual=False).fit(_pixels(images.x), images.y.cpu().numpy())
    weight, bias = torch.tensor(machine.coef_, dtype=torch.float32), torch.tensor(machine.intercept_, dtype=torch.float32)
    if len(weight) == 1:  # two classes have one plane: its two sides
        weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
    with runtime.seeded(0):  # the first weights, overwritten at once, draw from the global state
        model = models.logistic(weight.shape[1], len(weight))
    model.output.load_state_dict({"weight": weight, "bias": bias})
    return model.to(images.x.device).eval()


def torchvision_network(name: str, classes: int = 10, small: bool = True) -> nn.Module:
    """An untrained network of torchvision: ``"vgg16"``, ``"vgg19"`` (with batch norm), ``"resnet18"``, ``"resnet50"`` or ``"densenet121"``.

    With ``small``, for images of 32 pixels: the first convolution is 3×3 at full resolution without a pooling, VGG ends in one linear layer.
    """
    from torchvision import models as known

    names = {"vgg16": "vgg16_bn", "vgg19": "vgg19_bn", "resnet18": "resnet18", "resnet50": "resnet50", "densenet121": "densenet121"}
    if name not in names:
        raise ValueError(f"name is {name!r}; choose {', '.join(names)}.")
    model = getattr(known, names[name])(num_classes=classes)
    if not small:
        return model
    if name.startswith("vgg"):
        model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, classes)
    elif name.startswith("resnet"):
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    else:
        model.features.conv0, model.features.pool0 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def _pixels(x: Tensor):
    return x.detach().flatten(1).cpu().numpy()


def _fitted(machine, images: Images) -> Predict:
    machine.fit(_pixels(images.x), images.y.cpu().numpy())
    return lambda x: torch.from_numpy(machine.predict(_pixels(x))).to(x.device)


def accuracy_of(predict: Predict, images: Images) -> float:
    """Share of ``images`` that ``predict`` classifies correctly, in [0,1]."""
    return (predict(images.x) == images.y).float().mean().item()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which batch normalisation uses the batch at hand and all else is in eval mode; the running statistics are left as found."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracking = [layer.track_running_stats for layer in layers]
    with eval_mode(model):
        try:
            for layer in layers:
                layer.training, layer.track_running_stats = True, False  # neither read nor written
            yield model
        finally:
            for layer, was in zip(layers, tracking, strict=True):
                layer.track_running_stats = was


def predicted(model: nn.Module, images: Images, mode: str = "eval", batch_size: int = 1000, seed: int = 0) -> Int[Tensor, "n"]:
    """The class that ``model`` gives each image; without gradients, the model left as found.

    ``mode`` ``"eval"`` is what a user of the model sees. ``"batch"`` is DeepConfuse's way: ``batch_statistics``, over shuffled batches of about
    ``batch_size`` images (shuffled, since the statistics of a batch of one class would be others).
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; use 'eval', or 'batch' for batch normalisation by the batch at hand.")
    _check_count("batch_size", batch_size, 1)
    order = torch.randperm(len(images), generator=runtime.generator(seed)).to(images.x.device)
    result = torch.empty_like(images.y)
    with torch.no_grad(), eval_mode(model) if mode == "eval" else batch_statistics(model):
        for rows in order.tensor_split(math.ceil(len(images) / batch_size)):  # all about equal: none of one image
            result[rows] = model(images.x[rows]).argmax(1)
    return result


def accuracy(model: nn.Module, images: Images, mode: str = "eval", batch_size: int = 1000, seed: int = 0) -> float:
    """Share of ``images`` classified correctly, in [0,1], in either mode of ``predicted``."""
    return (predicted(model, images, mode, batch_size, seed) == images.y).float().mean().item()


def hit_rate(
    model: nn.Module, images: Images, target: Int[Tensor, "k"], mode: str = "eval", batch_size: int = 1000, seed: int = 0
) -> float:
    """Share of ``images`` classified as ``target[y]``, in [0,1]; ``target`` names a class for each class, such as ``(torch.arange(10) + 1) % 10``."""
    if target.shape != (len(images.classes),) or target.dtype != torch.int64:
        raise ValueError(
            f"target is {target.dtype}, shape {tuple(target.shape)}; give one class per class: int64, ({len(images.classes)},)."
        )
    return (predicted(model, images, mode, batch_size, seed) == target.to(images.y.device)[images.y]).float().mean().item()
