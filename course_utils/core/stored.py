"""Trained networks that come with the course: one file for MNIST, one for the embedded digits.

A lecture at full scale makes them; at quick scale it loads what was made.
"""

from pathlib import Path

from safetensors import safe_open
from torch import nn

from course_utils.core import cache

FOLDER = cache.PACKAGE / "pretrained"


def path_of(name: str, source: str) -> Path:
    """Where the network ``name`` for images with this ``source`` lies."""
    return FOLDER / f"{name}-{'mnist' if source == 'MNIST' else 'digits'}.safetensors"


def save(name: str, source: str, model: nn.Module, **facts: str) -> Path:
    """Keeps the weights of ``model``, and ``facts`` about it, in the package."""
    path = path_of(name, source)
    cache.keep_weights(path, model, **facts)
    return path


def load(name: str, source: str, model: nn.Module) -> dict[str, str]:
    """Fills ``model`` with the weights that ``save`` kept, in eval mode; returns the facts.

    Raises:
        RuntimeError: the file is missing, damaged, or of another network.
    """
    path = path_of(name, source)
    try:
        with safe_open(path, framework="pt") as file:
            model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
            facts = file.metadata() or {}
    except Exception as error:  # any damage has the same cure
        raise RuntimeError(
            f"{path} is missing or damaged ({error}); install the course again, "
            "or run the lecture that makes it at full scale."
        ) from error
    model.eval()
    return facts
