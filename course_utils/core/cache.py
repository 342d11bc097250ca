"""One cache for everything that is trained: its key, its weights, the state of a cut training.

Classifiers, autoencoders and noise generators use it alike. Files are written atomically; a file
that cannot be read is made again, and a folder that cannot be written costs a message only.
"""

import copy
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import nn

from course_utils.core import by_value, files

T = TypeVar("T")
WAIT_SECONDS = 60  # before a process says that it waits for another
PACKAGE = Path(__file__).resolve().parents[1]


def key(**ingredients) -> str:
    """24 hex digits that change with any ingredient and with the code of ``core`` and ``methods``.

    Everything counts by value (``core/by_value.py``): models with their classes, attributes and
    hooks, images, tensors, functions (lambdas too) with the globals they read, objects, and dicts,
    lists and tuples of these. PyTorch counts by its version, devices by their kind. The default
    dtype and autocast count too. A function, or what cannot be described, may have an attribute
    ``key``, a string that then stands for it.

    Raises:
        ValueError: an ingredient holds something that cannot be described, such as a lock or an
            open file.
    """
    walk = by_value.Walk()
    digest = hashlib.sha256(code() + surroundings())
    for name, value in sorted(ingredients.items()):
        try:
            digest.update(f"|{name}=".encode() + walk.value(name, value))
        except RecursionError as error:
            raise ValueError(
                f"{name} is nested too deeply for a cache key; give it a `key` attribute."
            ) from error
    return digest.hexdigest()[:24]


@functools.cache
def code() -> bytes:
    """Digest of all that trained weights may depend on: the source of ``core`` and ``methods``."""
    digest = hashlib.sha256()
    for folder in ("core", "methods"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


def surroundings() -> bytes:
    """What PyTorch is set to, as far as the same code gives other weights with it."""
    casts = [(kind, torch.is_autocast_enabled(kind)) for kind in ("cpu", "cuda", "mps")]
    return f"{torch.__version__} {torch.get_default_dtype()} {casts}".encode()


def path_of(key: str, kind: str = "", suffix: str = ".safetensors") -> Path:
    """Where weights (or with another ``suffix`` the state of a training) of this key lie."""
    return files.cache_dir() / "weights" / f"{kind}{'-' if kind else ''}{key}{suffix}"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Context for one process, and one thread of it, per file: others wait, then find the file.

    Where no lock can be had (a folder that cannot be written, a file system without locks) nobody
    waits: the same is trained twice, which costs time only.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.parent.with_name("locks") / f"{path.name}.lock")
    try:
        os.makedirs(os.path.dirname(lock.lock_file), exist_ok=True)
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        files.say(
            f"Another process has been making {path.name} for {WAIT_SECONDS} s or more; waiting "
            "for it. Interrupt this one, or end the other."
        )
        lock.acquire()
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def keep(path: Path, content: Callable[[], bytes]) -> None:
    """Writes what ``content`` gives. Any failure costs a message, not what was trained."""
    try:
        files.write_atomic(path, content())
    except OSError as error:
        files.say(
            f"What was trained could not be kept in {path.parent} ({error}); "
            "set COURSE_CACHE to a folder that can be written."
        )
    except Exception as error:  # each library raises its own
        files.say(
            f"What was trained could not be kept ({error}); the next call trains it again. "
            "A model whose state_dict has plain tensors only can be kept."
        )


def keep_weights(path: Path, model: nn.Module, **metadata: str) -> None:
    """Writes the weights as safetensors with ``metadata``; shared tensors are written twice."""

    def content() -> bytes:
        state = {}
        for name, value in model.state_dict().items():
            state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return safetensors_bytes(state, metadata)

    keep(path, content)


def read_weights(path: Path, model: nn.Module, read: Callable[[dict[str, str]], T] = dict):
    """Loads ``path`` into ``model`` and returns what ``read`` makes of its metadata.

    Returns None, and leaves the model as it was, where the file is absent or damaged.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, it says no where a folder may not be read
        return None
    own_memory(model)
    before = copy.deepcopy(model.state_dict())
    try:
        with safe_open(path, framework="pt") as file:
            found = read(file.metadata() or {})
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
            return found
    except Exception as error:  # the library raises its own types, and any damage has the same cure
        files.say(f"The cached weights {path.name} are damaged ({error}); training again.")
        model.load_state_dict(before)
        return None


def own_memory(model: nn.Module) -> None:
    """Gives each entry of an expanded buffer memory of its own, as nothing can be loaded else."""
    for module in model.modules():
        for name, value in module.named_buffers(recurse=False):
            if value.layout == torch.strided and 0 in value.stride():
                setattr(module, name, value.clone(memory_format=torch.contiguous_format))


def keep_state(path: Path, state: dict) -> None:
    """Writes the state of a training in one piece."""

    def content() -> bytes:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    keep(path, content)


@contextmanager
def taking_up(path: Path) -> Iterator[None]:
    """Context in which a state of another training is a ``ValueError`` that names its file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds the state of another training ({error}); delete it or name another file."
        ) from error


def read_state(path: Path, device: torch.device | str = "cpu") -> dict | None:
    """What ``keep_state`` wrote, on ``device``; None if it is absent or damaged."""
    if not os.path.isfile(path):
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the library raises its own types, and any damage has the same cure
        files.say(f"The checkpoint {path.name} is damaged ({error}); training from the beginning.")
        return None
