"""Poisons that aim at single answers and leave the rest of the model as it is.

For contrast with ``poisons``, which aim at the whole model.
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from course_utils.core.images import Images
from course_utils.core.inputs import Pixels, check_count, check_eps
from course_utils.core.training import eval_mode, outputs
from course_utils.methods.attacks import step_length
from course_utils.methods.poisons import descend, drawn_rows


def triggered(x: Pixels, side: int = 3) -> Pixels:
    """``x`` with a white square of ``side`` pixels in the lower right corner, one pixel inside."""
    check_count("side", side, 1)
    if side >= min(x.shape[2:]):
        raise ValueError(f"side is {side}; give less than the image's side, {min(x.shape[2:])}.")
    stamped = x.clone()
    stamped[:, :, -side - 1 : -1, -side - 1 : -1] = 1
    return stamped


def backdoored(
    images: Images, target: int, *, share: float, side: int = 3, seed: int = 0
) -> Images:
    """``images`` in which a random ``share`` carries the trigger and the label ``target``.

    Gu, Dolan-Gavitt and Garg, "BadNets" (2017, arXiv 1708.06733), section 4: a pattern of bright
    pixels near the corner, single target. Raises ``ValueError`` for a ``share`` outside [0,1] and
    for a ``target`` that is no class.
    """
    if not 0 <= target < len(images.classes):
        raise ValueError(f"target is {target}; choose 0 to {len(images.classes) - 1}.")
    rows = drawn_rows(images, share, seed)
    x, y = images.x.clone(), images.y.clone()
    x[rows] = triggered(images.x[rows], side)
    y[rows] = target
    return replace(images, x=x, y=y)


def feature_collision(
    features: nn.Module, base: Pixels, victim: Pixels, *, eps: float, steps: int = 40
) -> Pixels:
    """Images within ``eps`` of ``base`` whose features come near those of the one image ``victim``.

    Shafahi et al., "Poison Frogs!" (NeurIPS 2018), Algorithm 1, with a bound in L∞ in place of
    their penalty β‖x − b‖²: a few such images, under their true label, move the decision of a model
    that trains a new last layer on these ``features``. Sign steps of 2.5·eps/steps.
    """
    check_eps(eps)
    check_count("steps", steps, 1)
    with eval_mode(features):
        wanted = outputs(features, victim).flatten(1).detach()

        def gap(x: Pixels) -> Float[Tensor, "n"]:
            return (outputs(features, x).flatten(1) - wanted).square().sum(1)

        return descend(gap, base, base, eps, steps, step_length(None, eps, steps))
