"""One cache for everything that is trained: its key, its weights, the state of a cut training.

Classifiers, autoencoders and noise generators use it alike. Files are written atomically; a file
that cannot be read is made again, and a folder that cannot be written costs a message only.
"""

import functools
import hashlib
import inspect
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from course_utils.core import files
from course_utils.core.images import Images

PACKAGE = Path(__file__).resolve().parents[1]


def key(**ingredients) -> str:
    """24 hex digits that change with any ingredient and with the code of ``core`` and ``methods``.

    An ingredient is a model (layers, code and weights), images or a tensor (values and kind
    of device), a function (name, source and bound arguments), or anything whose ``repr`` says what
    it is; dicts, lists and tuples of these too.

    Raises:
        ValueError: a function whose name does not say what it does, such as a lambda.
    """
    digest = hashlib.sha256(code())
    for name, value in sorted(ingredients.items()):
        digest.update(f"|{name}=".encode() + described(name, value))
    return digest.hexdigest()[:24]


@functools.cache
def code() -> bytes:
    """Digest of all that trained weights may depend on: the source of ``core`` and ``methods``."""
    digest = hashlib.sha256()
    for folder in ("core", "methods"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


def described(name: str, value) -> bytes:
    """What ``key`` hashes of one ingredient; ``name`` is for the error message."""
    if isinstance(value, nn.Module):
        return described_model(value)
    if isinstance(value, Images):
        return f"{value.fingerprint} {value.x.device.type}".encode()
    if isinstance(value, Tensor):
        about = f"{value.dtype} {tuple(value.shape)} {value.device.type} "
        return about.encode() + value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        pairs = sorted(value.items())
        return b"{" + b", ".join(f"{k!r}: ".encode() + described(name, v) for k, v in pairs) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b", ".join(described(name, v) for v in value) + b"]"
    if callable(value):
        return described_function(name, value)
    return repr(value).encode()


def described_model(model: nn.Module) -> bytes:
    """Layers, the ``forward`` of classes that are not PyTorch's, and all weights and buffers."""
    own = {type(module) for module in model.modules()}
    forwards = sorted(
        source(kind.forward) for kind in own if not kind.__module__.startswith("torch.")
    )
    weights = [
        value.detach().cpu().contiguous().numpy().tobytes() for value in model.state_dict().values()
    ]
    return repr(model).encode() + "".join(forwards).encode() + b"".join(weights)


def described_function(name: str, value: Callable) -> bytes:
    """Name and source, or the function's ``key`` attribute; of a partial also what it binds."""
    if isinstance(value, partial):
        bound = described(name, value.args) + described(name, value.keywords)
        return described_function(name, value.func) + bound
    if own_key := getattr(value, "key", None):
        return own_key.encode()
    title = getattr(value, "__qualname__", "<")
    if "<" in title:
        raise ValueError(
            f"{name} is {value!r}, whose name does not say what it does; "
            "give it a `key` attribute (a string)."
        )
    return (title + source(value)).encode()


def source(value: Callable) -> str:
    """The source of a function; empty where there is none (built in, or typed at a prompt)."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return ""


def path_of(key: str, kind: str = "", suffix: str = ".safetensors") -> Path:
    """Where weights (or with another ``suffix`` the state of a training) of this key lie."""
    return files.cache_dir() / "weights" / f"{kind}{'-' if kind else ''}{key}{suffix}"


def keep(path: Path, content: bytes) -> None:
    """Writes ``content``; a folder that cannot be written costs a message, not the training."""
    try:
        files.write_atomic(path, content)
    except OSError as error:
        print(
            f"What was trained could not be kept in {path.parent} ({error}); "
            "set COURSE_CACHE to a folder that can be written."
        )


def keep_weights(path: Path, model: nn.Module, **metadata: str) -> None:
    """Writes the weights as safetensors with ``metadata``."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    keep(path, safetensors_bytes(state, metadata))


def read_weights(path: Path, model: nn.Module) -> dict[str, str] | None:
    """Loads ``path`` into ``model`` and returns its metadata; None if it is absent or damaged."""
    if not os.path.isfile(path):  # unlike Path.is_file, it says no where a folder may not be read
        return None
    try:
        with safe_open(path, framework="pt") as file:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
            return file.metadata() or {}
    except Exception as error:  # the library raises its own types, and any damage has the same cure
        print(f"The cached weights {path.name} are damaged ({error}); training again.")
        return None


def keep_state(path: Path, state: dict) -> None:
    """Writes the state of a training in one piece."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    keep(path, buffer.getvalue())


def read_state(path: Path, device: torch.device | str = "cpu") -> dict | None:
    """What ``keep_state`` wrote, on ``device``; None if it is absent or damaged."""
    if not os.path.isfile(path):
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the library raises its own types, and any damage has the same cure
        print(f"The checkpoint {path.name} is damaged ({error}); training from the beginning.")
        return None
