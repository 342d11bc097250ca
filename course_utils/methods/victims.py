"""Victims of a poison that are not neural networks, and two ways to measure those that are.

DeepConfuse's evaluation never switched its networks to eval mode: their batch norm used the
statistics of the clean test batch. Both modes are here, ``"eval"`` and ``"batch"``, since they can
differ much.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core import models, runtime
from course_utils.core.images import Images
from course_utils.core.inputs import Labels, Pixels, check_count
from course_utils.core.training import eval_mode, has_layer, outputs, share

Predict = Callable[[Pixels], Labels]
BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def random_forest(images: Images, *, trees: int = 300, seed: int = 0) -> Predict:
    """A random forest on the pixels; 300 trees as in DeepConfuse's paper (its code grows 100)."""
    from sklearn.ensemble import RandomForestClassifier

    check_count("trees", trees, 1)
    return fitted(RandomForestClassifier(n_estimators=trees, random_state=seed), images)


def forest_importance(images: Images, *, trees: int = 100, seed: int = 0) -> Float[Tensor, "c h w"]:
    """How much each pixel helps a random forest to tell the classes; sums to 1.

    The mean decrease of Gini impurity, on the training images.
    """
    from sklearn.ensemble import RandomForestClassifier

    check_count("trees", trees, 1)
    forest = RandomForestClassifier(n_estimators=trees, random_state=seed)
    forest.fit(flat(images.x), images.y.cpu().numpy())
    return torch.from_numpy(forest.feature_importances_).float().view(images.x.shape[1:])


def svm(images: Images, *, gamma: float = 0.01, C: float = 200.0) -> Predict:
    """A support vector machine with kernel exp(−``gamma`` ‖x − x′‖²) on the pixels.

    Only DeepConfuse's code gives ``C``.
    """
    from sklearn.svm import SVC

    return fitted(SVC(kernel="rbf", gamma=gamma, C=C), images)


def linear_svm(images: Images, *, C: float = 0.01) -> nn.Sequential:
    """A linear support vector machine, one class against the rest, as a ``models.logistic``.

    So attacks and accuracy run on it, and ``model.output.weight.view(K, *images.x.shape[1:])`` is
    what DeepConfuse's Figure 10 shows. The loss is the squared hinge; neither paper nor code gives
    ``C``. Its logits are distances to the planes, not log-probabilities.

    Raises:
        ValueError: a class without an image.
    """
    from sklearn.svm import LinearSVC

    missing = sorted(set(range(len(images.classes))) - set(images.y.tolist()))
    if missing or len(images.classes) < 2:
        raise ValueError(
            f"images show {len(images.classes)} classes, none of {missing}; "
            "each of two or more needs an image: draw more."
        )
    machine = LinearSVC(C=C, dual=False).fit(flat(images.x), images.y.cpu().numpy())
    weight = torch.tensor(machine.coef_, dtype=torch.float32)
    bias = torch.tensor(machine.intercept_, dtype=torch.float32)
    if len(weight) == 1:  # two classes have one plane: its two sides
        weight = torch.cat([-weight, weight])
        bias = torch.cat([-bias, bias])
    with runtime.seeded(0):  # the first weights would draw from the global state
        model = models.logistic(weight.shape[1], len(weight))
    model.output.load_state_dict({"weight": weight, "bias": bias})
    return model.to(images.x.device).eval()


def flat(x: Pixels):
    """The images as a NumPy array (N, pixels)."""
    return x.detach().flatten(1).cpu().numpy()


def fitted(machine, images: Images) -> Predict:
    """Fits a classifier of scikit-learn to the pixels and returns its prediction."""
    machine.fit(flat(images.x), images.y.cpu().numpy())

    def predict(x: Pixels) -> Labels:
        return torch.from_numpy(machine.predict(flat(x))).to(x.device)

    return predict


def accuracy_of(predict: Predict, images: Images) -> float:
    """Share of ``images`` that ``predict`` classifies correctly, in [0,1]."""
    return share(predict(images.x) == images.y)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which batch norm uses the batch at hand and all else is in eval mode.

    The running statistics stay as they are.
    """
    layers = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    tracking = [layer.track_running_stats for layer in layers]
    with eval_mode(model):
        try:
            for layer in layers:
                layer.training = True
                layer.track_running_stats = False  # neither read nor written
            yield model
        finally:
            for layer, was in zip(layers, tracking, strict=True):
                layer.track_running_stats = was


MODES = {"eval": eval_mode, "batch": batch_statistics}


def predicted(
    model: nn.Module, images: Images, mode: str = "eval", batch_size: int = 1000, seed: int = 0
) -> Labels:
    """The class that ``model`` gives each image, without gradients; leaves the model as found.

    ``mode`` ``"eval"`` is what a user of the model sees. ``"batch"`` is DeepConfuse's way:
    ``batch_statistics`` over batches of about ``batch_size`` images, shuffled, since a batch of one
    class has other statistics.
    """
    if mode not in MODES:
        raise ValueError(
            f"mode is {mode!r}; use 'eval', or 'batch' for batch norm by the batch at hand."
        )
    check_count("batch_size", batch_size, 1)
    if not len(images):
        raise ValueError("images is empty; give one image or more.")
    order = torch.randperm(len(images), generator=runtime.generator(seed)).to(images.x.device)
    result = torch.empty_like(images.y)
    parts = math.ceil(len(images) / batch_size)
    if mode == "batch" and len(images) // parts < 2 and has_layer(model, nn.BatchNorm1d):
        raise ValueError(
            "A batch has one image, which has no statistics; give two images or more and "
            "batch_size 2 or more."
        )
    with torch.no_grad(), MODES[mode](model):
        for rows in order.tensor_split(parts):  # all about equal: no batch of one image
            result[rows] = outputs(model, images.x[rows]).argmax(1)
    return result


def accuracy_in_mode(
    model: nn.Module, images: Images, mode: str = "eval", batch_size: int = 1000, seed: int = 0
) -> float:
    """Share of ``images`` classified correctly, in [0,1], in either mode of ``predicted``."""
    return share(predicted(model, images, mode, batch_size, seed) == images.y)


def hit_rate(
    model: nn.Module,
    images: Images,
    target: Labels,
    mode: str = "eval",
    batch_size: int = 1000,
    seed: int = 0,
) -> float:
    """Share of ``images`` classified as ``target[y]``, in [0,1], in either mode of ``predicted``.

    ``target`` names a class for each class, such as ``(torch.arange(10) + 1) % 10``.
    """
    classes = len(images.classes)
    if target.shape != (classes,) or target.dtype != torch.int64:
        raise ValueError(
            f"target is {target.dtype}, shape {tuple(target.shape)}; "
            f"give one class per class: int64, ({classes},)."
        )
    wanted = target.to(images.y.device)[images.y]
    return share(predicted(model, images, mode, batch_size, seed) == wanted)
