"""One photograph under attack, for lectures that show digits otherwise; without the extra, stored.

The stored picture is that of lecture 00, saved from its executed notebook.
"""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from course_utils.core import cache, files, photos, pictures
from course_utils.core.training import predict
from course_utils.lesson import plots

STORED = cache.PACKAGE / "pretrained" / "photograph.png"
MOST = 50  # times that a change is enlarged


def attacked(
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor], target: int | None = None
) -> tuple[Figure, str]:
    """Draws a cat, the change that ``attack`` makes, enlarged, and the result, with the answers.

    ``attack(model, x, labels)`` gets the network, the image (1, 3, 224, 224) and ``target``, or
    without one what the network sees. Returns the figure and its alternative text. Where the extra
    ``photos`` is missing it says so, and shows the stored picture.
    """
    if photos.missing():
        files.say(f"{photos.missing()}\nUntil then this is the stored picture of lecture 00.")
        return (
            stored(),
            "Stored: a cat, fifty times a change, and the result, a gibbon.",
        )
    model = photos.classifier()
    images = photos.load_photos()[0]
    labels = images.y if target is None else torch.tensor([target])
    x_adv = attack(model, images.x, labels)
    delta = x_adv - images.x
    largest = float(delta.abs().max())
    times = MOST if largest == 0 else max(1, min(MOST, int(0.5 / largest)))  # nothing is clipped
    p = predict(model, torch.cat([images.x, x_adv])).softmax(1)
    before, after = (f"{images.classes[row.argmax()]}\n{row.max():.0%}" for row in p)
    change = f"{times} × the change\nat most {255 * largest:.0f} of 255"
    row = torch.cat([images.x, (0.5 + times * delta).clamp(0, 1), x_adv])
    fig = plots.images(row, [before, change, after], columns=3, size=2.3)
    return fig, f"A cat, {change}, and the result: {before}, then {after}.".replace("\n", ", ")


def stored() -> Figure:
    """The stored picture as a figure."""
    image, _ = pictures.read(STORED, None, grayscale=False)
    fig, ax = plots.subplots(width=image.shape[2] / 100, height=image.shape[1] / 100)
    plots.draw_image(ax, image)
    return fig
