"""Describes values by all that decides what they do, for the keys of the cache.

A description is the same in every process and kernel, in any file and at any line. What is
installed (PyTorch, Python) counts by name and version, and so do ``core`` and ``methods``, whose
source a key holds. All else counts by value: the code of functions and classes, what they bind, the
globals they read, and the state of objects. Not seen are files, the environment, and names that
``eval`` or ``globals()`` look up.
"""

import builtins
import copyreg
import dis
import functools
import hashlib
import pickle
import random
import sys
import sysconfig
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from course_utils.core.images import Images

PLAIN = (bool, int, float, complex, str, type(None), type(...), type(NotImplemented))
TORCH_PLAIN = (torch.dtype, torch.layout, torch.memory_format)
# The random streams that a whole process shares. Their state differs from run to run.
STREAMS = (torch.default_generator, random.random.__self__, np.random.rand.__self__)
COVERED = ("course_utils.core", "course_utils.methods")
GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
COUNTERS = ("_abc_impl", "_autograd_function_id")  # of a class; they differ from run to run
STATE = ("_parameters", "_buffers", "_modules")
COMPILED = "_compiled_call_impl"  # what Module.compile leaves; it computes the same
COMPILED_FUNCTION = "_torchdynamo_orig_callable"  # where torch.compile leaves the function
STATIC = 1 << 9  # Py_TPFLAGS_HEAPTYPE, which classes of a compiled program lack


def described(name: str, value) -> bytes:
    """What a cache key hashes of ``value``; ``name`` is for the error message.

    Raises:
        ValueError: something in it cannot be described, and neither it nor what holds it has an
            attribute ``key``, a string that says what it does.
    """
    return Walk().value(name, value)


def refusal(name: str, value) -> ValueError:
    return ValueError(
        f"{name} is {object.__repr__(value)}, which no cache key can describe; "
        "give it a `key` attribute (a string that says what it does), or give one to what holds it."
    )


def joined(kind: str, parts: Iterable[bytes]) -> bytes:
    return f"{kind}(".encode() + b", ".join(parts) + b")"


def digest(content) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


# --- what counts by its name


@functools.cache
def installed(module: str) -> bool:
    """Whether a module is a library's or Python's own, or its source is part of every key."""
    if module in COVERED or module.startswith(tuple(f"{name}." for name in COVERED)):
        return True
    if module == "__main__":
        return False
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_absolute():  # compiled into Python or into a library
        return top in sys.stdlib_module_names or hasattr(sys.modules.get(top), "__version__")
    folders = Path(file).parents
    stdlib = Path(sysconfig.get_path("stdlib"))
    return stdlib in folders or any(
        folder.name in ("site-packages", "dist-packages") for folder in folders
    )


def title(module: str, name: str) -> bytes:
    """How an installed thing is named: by its module, its name and the library's version."""
    library = sys.modules.get(module.partition(".")[0])
    return f"{module}.{name} {getattr(library, '__version__', '')}".encode()


def has_name(module: str | None, name: str, value) -> bool:
    """Whether an installed module has ``value`` under this name."""
    if not isinstance(module, str) or not installed(module):
        return False
    place = sys.modules.get(module)
    for part in name.split("."):
        place = getattr(place, part, None)
    return place is value


def own_key(value) -> str | None:
    """The attribute ``key`` of a value, if it is a string."""
    key = getattr(value, "key", None)
    return key if isinstance(key, str) else None


# --- the globals that code reads


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code itself and that of the functions and classes inside it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from codes_in(part)


def globals_read(function: types.FunctionType) -> dict[str, object]:
    """The globals that a function reads, by name; of a module what is used of it, as ``F.relu``."""
    found = {}
    for code in codes_in(function.__code__):
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for i, step in enumerate(steps):
            if step.opname in GLOBAL:
                value = function.__globals__.get(step.argval, vars(builtins).get(step.argval))
                found |= followed(step.argval, value, steps[i + 1 :])
            elif step.opname == "IMPORT_NAME":
                level = steps[i - 2].argval
                names = steps[i - 1].argval
                found |= imported(step.argval, function.__globals__, names, level)
    return found


def followed(path: str, value, steps: list[dis.Instruction]) -> dict[str, object]:
    """``{path: value}``, followed from a module to what the next steps take out of it."""
    library = False
    for step in steps:
        if not isinstance(value, types.ModuleType) or step.opname not in ATTRIBUTE:
            break
        library = installed(value.__name__)
        value = getattr(value, step.argval, None)
        path += f".{step.argval}"
    return {path: path if library and is_theirs(value) else value}


def imported(path: str, names: dict, wanted: tuple | None, level: int) -> dict[str, object]:
    """What an ``import`` inside a function gives."""
    try:
        module = __import__(path, names, None, wanted or (), level)
    except ImportError:
        return {path: None}
    found = {}
    for name in wanted or ():
        value = getattr(module, name, None)
        theirs = installed(module.__name__) and is_theirs(value)
        found[f"{path}.{name}"] = f"{path}.{name}" if theirs else value
    return found or {path: module}


def is_theirs(value) -> bool:
    """Whether what an installed module holds is the library's own, not put there by a person."""
    if isinstance(value, types.FunctionType):
        return installed(value.__globals__.get("__name__", "__main__"))
    kind = value if isinstance(value, type) else type(value)
    return type(value) not in PLAIN and installed(kind.__module__)


# --- the description


class Walk:
    """One description. It numbers what it meets, for what it meets again, also in a circle."""

    def __init__(self):
        self.met = {}  # identity -> (number, value), as a value that is gone leaves its identity
        self.around = {}  # identity -> depth, of the lists, dicts and sets around the present value

    def value(self, name: str, value) -> bytes:
        """The description of anything; ``name`` says where it was found."""
        kind = type(value)
        if kind in PLAIN or isinstance(value, TORCH_PLAIN):
            return repr(value).encode()
        if kind in (bytes, bytearray):
            return joined("bytes", [digest(value)])
        if kind in CONTAINERS:
            return self.container(name, value)
        for number, stream in enumerate(STREAMS):
            if value is stream:
                return f"stream {number}".encode()
        if id(value) in self.met:
            return f"again {self.met[id(value)][0]}".encode()
        self.met[id(value)] = (len(self.met), value)
        if isinstance(value, types.FunctionType | functools.partial) and own_key(value) is not None:
            return f"key {value.key!r}".encode()
        if isinstance(value, nn.Module):
            return self.module(name, value)
        return self.or_key(value, functools.partial(self.object, name, value))

    def or_key(self, value, describe: Callable[[], bytes]) -> bytes:
        """What ``describe`` gives; the attribute ``key`` where that fails."""
        before = len(self.met)
        try:
            return describe()
        except (ValueError, RecursionError):
            if own_key(value) is None:
                raise
            while len(self.met) > before:
                self.met.popitem()
            return f"key {value.key!r}".encode()

    def object(self, name: str, value) -> bytes:
        """The description of what is neither plain, a container nor a module of PyTorch."""
        for kinds, describe in KINDS:
            if isinstance(value, kinds):
                return describe(self, name, value)
        return self.reduced(name, value)

    def apart(self, name: str, value) -> bytes:
        """A description that leaves no trace, for what has no order."""
        walk = Walk()
        walk.met = dict(self.met)
        walk.around = dict(self.around)
        return walk.value(name, value)

    def container(self, name: str, value) -> bytes:
        if id(value) in self.around:
            return f"around {self.around[id(value)]}".encode()
        self.around[id(value)] = len(self.around)
        try:
            if isinstance(value, set | frozenset):
                parts = sorted(self.apart(name, part) for part in value)
            elif isinstance(value, list | tuple):
                parts = [self.value(f"{name}[{i}]", part) for i, part in enumerate(value)]
            else:
                parts = self.pairs(name, value)
            return joined(CONTAINERS[type(value)], parts)
        finally:
            del self.around[id(value)]

    def pairs(self, name: str, value) -> list[bytes]:
        """The entries of a dict, sorted by key unless the dict is an ordered one."""
        keys = [(self.apart(name, key), key) for key in value]
        if not isinstance(value, OrderedDict):
            keys.sort(key=lambda pair: pair[0])
        return [key + b": " + self.value(f"{name}.{at}", value[at]) for key, at in keys]

    def each(self, name: str, *values) -> list[bytes]:
        return [self.value(name, value) for value in values]

    # functions and classes

    def function(self, name: str, value: types.FunctionType) -> bytes:
        """By name, or else its code, its defaults, what it binds and the globals it reads."""
        if COMPILED_FUNCTION in vars(value):
            return joined("compiled", self.each(name, vars(value)[COMPILED_FUNCTION]))
        home = value.__globals__.get("__name__")
        if has_name(home, value.__qualname__, value):
            return title(home, value.__qualname__)
        bound = {}
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                bound[variable] = cell.cell_contents
            except ValueError:  # not yet bound
                bound[variable] = None
        given = (value.__defaults__, value.__kwdefaults__, vars(value))
        parts = [self.code(name, value.__code__), *self.each(name, *given)]
        return joined("function", [*parts, *self.each(name, bound, globals_read(value))])

    def code(self, name: str, code: types.CodeType) -> bytes:
        """The instructions and constants, without file and line."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        parts = [repr((code.co_name, counts, names)).encode()]
        parts += [digest(code.co_code), digest(code.co_exceptiontable)]
        for part in code.co_consts:
            inner = isinstance(part, types.CodeType)
            parts.append(self.code(name, part) if inner else self.value(name, part))
        return joined("code", parts)

    def cls(self, name: str, value: type) -> bytes:
        """By name, or else the bases and all methods and attributes."""
        if not value.__flags__ & STATIC or has_name(value.__module__, value.__qualname__, value):
            return title(value.__module__, value.__qualname__)
        parts = [repr(value.__name__).encode(), *self.each(name, type(value), *value.__bases__)]
        for attribute, member in sorted(vars(value).items()):
            if counts_in_class(attribute, member):
                described = self.value(f"{name}.{attribute}", member)
                parts.append(attribute.encode() + b"=" + described)
        return joined("class", parts)

    def python_module(self, name: str, value: types.ModuleType) -> bytes:
        if installed(value.__name__):
            return title(value.__name__, "")
        inside = {at: part for at, part in vars(value).items() if not at.startswith("__")}
        return joined("file", [repr(value.__name__).encode(), self.value(name, inside)])

    def builtin(self, name: str, value: types.BuiltinFunctionType) -> bytes:
        """A function of a compiled library, or a method of such an object."""
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return title(value.__module__ or "", value.__qualname__)
        return joined("method", [value.__name__.encode(), self.value(name, owner)])

    def descriptor(self, name: str, value) -> bytes:
        """A method, property and the like: what it consists of."""
        parts = [getattr(value, part, None) for part in DESCRIPTOR_PARTS]
        return joined(type(value).__name__, self.each(name, *parts))

    # objects

    def reduced(self, name: str, value) -> bytes:
        """Any other object: what pickle would keep of it."""
        reducer = copyreg.dispatch_table.get(type(value))
        try:
            parts = reducer(value) if reducer else value.__reduce_ex__(4)
            if isinstance(parts, str):
                home = pickle.whichmodule(value, parts)
        except Exception as error:  # an object may raise what it likes
            raise refusal(name, value) from error
        if not isinstance(parts, str):
            make, given, *rest = parts
            rest = [list(part) if isinstance(part, Iterator) else part for part in rest]
            if len(rest) > 2 and rest[2] is not None:
                rest[2] = dict(rest[2])
            state = rest[0] if rest else None
            inside = self.each(name, make, given, state, *rest[1:])
            return joined("object", inside)
        if has_name(home, parts, value):
            return title(home, parts)
        if getattr(value, "__wrapped__", None) is None:
            raise refusal(name, value)
        return joined("wrapped", self.each(name, type(value), value.__wrapped__))

    def weak(self, name: str, value: weakref.ref) -> bytes:
        return joined("weak", self.each(name, value()))

    def handle(self, name: str, value: RemovableHandle) -> bytes:
        """What ``register_hook`` returns; the hook itself is described where it acts."""
        return b"handle"

    def images(self, name: str, value: Images) -> bytes:
        return f"{value.fingerprint} {value.classes!r} {value.x.device.type}".encode()

    def tensor(self, name: str, value: Tensor) -> bytes:
        """Type, kind of device, values, attributes, hooks, and whose memory it shares."""
        hooks = [value._backward_hooks, getattr(value, "_post_accumulate_grad_hooks", None)]
        called = [list((some or {}).values()) for some in hooks]
        parts = self.each(name, type(value), vars(value), called)
        try:
            parts += values_of(value.detach())
            memory = None if value.layout != torch.strided else value.untyped_storage()
        except (RuntimeError, TypeError, ValueError) as error:  # not filled, nested, ...
            raise refusal(name, value) from error
        if memory is not None and memory.data_ptr():
            shared = self.met.setdefault(("memory", memory.data_ptr()), (len(self.met), memory))
            parts.append(repr(shared[0]).encode())
        return joined("tensor", [repr(value.requires_grad).encode(), *parts])

    def module(self, name: str, value: nn.Module) -> bytes:
        """Tensors and layers in their order; class, attributes and hooks, or else its ``key``."""
        if "_orig_mod" in value._modules:  # of torch.compile
            return joined("compiled", self.each(name, value._orig_mod))
        rest = self.or_key(value, functools.partial(self.attributes, name, value))
        state = [OrderedDict(getattr(value, part)) for part in STATE]
        return joined("module", [rest, *self.each(name, *state)])

    def attributes(self, name: str, value: nn.Module) -> bytes:
        """The class of a layer and all its attributes but tensors and layers."""
        inside = {at: part for at, part in vars(value).items() if at not in (*STATE, COMPILED)}
        hooks = {at: part for at, part in inside.items() if is_hooks(at, part)}
        numbers = sorted({number for part in hooks.values() for number in part})
        for at, part in hooks.items():  # PyTorch counts hooks in the whole process
            inside[at] = {numbers.index(number): hook for number, hook in part.items()}
        return joined("layer", self.each(name, type(value), inside))


def counts_in_class(attribute: str, member) -> bool:
    """Whether an attribute of a class decides what it does, and does not say where it stands."""
    if attribute in COUNTERS or attribute.startswith("__annot"):
        return False
    special = attribute.startswith("__") and attribute.endswith("__")
    if not special:
        return True
    acts = callable(member) or hasattr(member, "__get__")
    return acts and not isinstance(member, types.GetSetDescriptorType)


def is_hooks(attribute: str, part) -> bool:
    """Whether an attribute of a layer holds hooks by their numbers."""
    is_dict = isinstance(part, dict) and "_hooks" in attribute
    return is_dict and all(isinstance(number, int) for number in part)


def values_of(tensor: Tensor) -> list[bytes]:
    """Type, shape and kind of device of a tensor, and its values in the order of its indices."""
    about = (tensor.dtype, tuple(tensor.shape), tensor.device.type, tensor.layout)
    if tensor.is_quantized:
        parts = [tensor.int_repr(), tensor.dequantize()]
    elif tensor.device.type == "meta":
        parts = []
    else:
        parts = [tensor if tensor.layout == torch.strided else tensor.to_dense()]
    return [repr(about).encode(), *[digest(bytes_of(part)) for part in parts]]


def bytes_of(tensor: Tensor) -> np.ndarray:
    values = tensor.as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()
    return values.reshape(-1).view(torch.uint8).numpy()


DESCRIPTOR_PARTS = ("__func__", "__self__", "fget", "fset", "fdel", "func")
CONTAINERS = {
    tuple: "tuple",
    list: "list",
    set: "set",
    frozenset: "frozenset",
    dict: "dict",
    OrderedDict: "ordered",
    types.MappingProxyType: "dict",
}
DESCRIPTORS = (types.MethodType, staticmethod, classmethod, property, functools.cached_property)
KINDS = (
    (Images, Walk.images),
    (Tensor, Walk.tensor),
    (RemovableHandle, Walk.handle),
    (types.ModuleType, Walk.python_module),
    (type, Walk.cls),
    (types.FunctionType, Walk.function),
    (types.BuiltinFunctionType, Walk.builtin),
    (DESCRIPTORS, Walk.descriptor),
    (weakref.ref, Walk.weak),
)
