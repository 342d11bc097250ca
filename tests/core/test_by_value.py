"""The key of the cache: the same for the same code in any process, another one for any change."""

import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from functools import partial, wraps

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course_utils.core import by_value, cache, runtime
from course_utils.core.files import ROOT
from course_utils.core.images import Images

# Cells of a notebook: each defines `value`. A pair differs in one thing that decides the result.
HEAD = """
import dataclasses, enum, functools, itertools, math, random, types
import numpy as np, torch
import torch.nn.functional as F
from functools import partial
from torch import nn
"""
CELLS = {
    "body": ["def value(x): return x + 1", "def value(x): return x + 2"],
    "operator": ["def value(x): return x + 1", "def value(x): return x - 1"],
    "constant's type": ["def value(x): return 1", "def value(x): return True"],
    "set": [
        "def value(x): return x in {'a', 'b', 'c'}",
        "def value(x): return x in {'a', 'b', 'd'}",
    ],
    "lambda": ["value = lambda x: x + 1", "value = lambda x: x + 2"],
    "global": ["LAM = 1\ndef value(x): return LAM * x", "LAM = 2\ndef value(x): return LAM * x"],
    "global of a lambda": ["LAM = 1\nvalue = lambda x: LAM", "LAM = 2\nvalue = lambda x: LAM"],
    "global dict": [
        "C = {'a': 1}\ndef value(x): return C['a']",
        "C = {'a': 2}\ndef value(x): return C['a']",
    ],
    "helper": [
        "def h(x): return x\ndef value(x): return h(x)",
        "def h(x): return -x\ndef value(x): return h(x)",
    ],
    "helper's helper": [
        "def g(x): return x\ndef h(x): return g(x)\ndef value(x): return h(x)",
        "def g(x): return -x\ndef h(x): return g(x)\ndef value(x): return h(x)",
    ],
    "circle": [
        "def h(x): return value(x - 1)\ndef value(x): return h(x) if x else 1",
        "def h(x): return value(x - 2)\ndef value(x): return h(x) if x else 1",
    ],
    "global in a nested function": [
        "LAM = 1\ndef value(x): return [LAM * a for a in x], (lambda: LAM)",
        "LAM = 2\ndef value(x): return [LAM * a for a in x], (lambda: LAM)",
    ],
    "closure": [
        "def make(a):\n def inner(x): return a * x\n return inner\nvalue = make(1)",
        "def make(a):\n def inner(x): return a * x\n return inner\nvalue = make(2)",
    ],
    "set qualname": [
        "def make():\n def inner(x): return x\n inner.__qualname__ = 'inner'\n return inner\nvalue = make()",
        "def make():\n def inner(x): return -x\n inner.__qualname__ = 'inner'\n return inner\nvalue = make()",
    ],
    "name of a library's": [
        "@functools.wraps(F.relu)\ndef value(x): return x",
        "@functools.wraps(F.relu)\ndef value(x): return -x",
    ],
    "default": ["def value(x, a=1): return a", "def value(x, a=2): return a"],
    "keyword default": ["def value(x, *, a=1): return a", "def value(x, *, a=2): return a"],
    "default inside": ["def value(x, a=(1, [2])): return a", "def value(x, a=(1, [3])): return a"],
    "attribute of a function": [
        "def value(x): return value.a\nvalue.a = 1",
        "def value(x): return value.a\nvalue.a = 2",
    ],
    "bound method": [
        "class A:\n def __init__(s, a): s.a = a\n def f(s, x): return s.a\nvalue = A(1).f",
        "class A:\n def __init__(s, a): s.a = a\n def f(s, x): return s.a\nvalue = A(2).f",
    ],
    "callable object": [
        "class A:\n def __init__(s, a): s.a = a\n def __call__(s, x): return s.a\nvalue = A(1)",
        "class A:\n def __init__(s, a): s.a = a\n def __call__(s, x): return s.a\nvalue = A(2)",
    ],
    "call of an object": [
        "class A:\n def __call__(s, x): return 1\nvalue = A()",
        "class A:\n def __call__(s, x): return 2\nvalue = A()",
    ],
    "slots": [
        "class A:\n __slots__ = ('a',)\n def __init__(s, a): s.a = a\nvalue = A(1)",
        "class A:\n __slots__ = ('a',)\n def __init__(s, a): s.a = a\nvalue = A(2)",
    ],
    "class attribute": ["class A:\n a = 1\nvalue = A", "class A:\n a = 2\nvalue = A"],
    "class attribute of an object": [
        "class A:\n a = 1\nvalue = A()",
        "class A:\n a = 2\nvalue = A()",
    ],
    "base": [
        "class B:\n a = 1\nclass A(B): pass\nvalue = A()",
        "class B:\n a = 2\nclass A(B): pass\nvalue = A()",
    ],
    "metaclass": [
        "class M(type):\n def __call__(c): return 1\nclass A(metaclass=M): pass\nvalue = A",
        "class M(type):\n def __call__(c): return 2\nclass A(metaclass=M): pass\nvalue = A",
    ],
    "property": [
        "class A:\n @property\n def a(s): return 1\nvalue = A()",
        "class A:\n @property\n def a(s): return 2\nvalue = A()",
    ],
    "cached property": [
        "class A:\n @functools.cached_property\n def a(s): return 1\nvalue = A()",
        "class A:\n @functools.cached_property\n def a(s): return 2\nvalue = A()",
    ],
    "static method": [
        "class A:\n @staticmethod\n def a(): return 1\nvalue = A()",
        "class A:\n @staticmethod\n def a(): return 2\nvalue = A()",
    ],
    "class method": [
        "class A:\n @classmethod\n def a(c): return 1\nvalue = A.a",
        "class A:\n @classmethod\n def a(c): return 2\nvalue = A.a",
    ],
    "dataclass": [
        "@dataclasses.dataclass\nclass A:\n a: int = 1\nvalue = A()",
        "@dataclasses.dataclass\nclass A:\n a: int = 2\nvalue = A()",
    ],
    "enum": [
        "class E(enum.Enum):\n A = 1\nvalue = E.A",
        "class E(enum.Enum):\n A = 2\nvalue = E.A",
    ],
    "partial's argument": [
        "def f(a, x): return a\nvalue = partial(f, 1)",
        "def f(a, x): return a\nvalue = partial(f, 2)",
    ],
    "partial's function": [
        "def f(a, x): return a\nvalue = partial(f, 1)",
        "def f(a, x): return x\nvalue = partial(f, 1)",
    ],
    "partial of a lambda": ["value = partial(lambda a: 1, 1)", "value = partial(lambda a: 2, 1)"],
    "wrapped": [
        "def d(f):\n @functools.wraps(f)\n def g(x): return f(x)\n return g\n@d\ndef value(x): return 1",
        "def d(f):\n @functools.wraps(f)\n def g(x): return f(x)\n return g\n@d\ndef value(x): return 2",
    ],
    "decorator": [
        "def d(f):\n @functools.wraps(f)\n def g(x): return f(x)\n return g\n@d\ndef value(x): return 1",
        "def d(f):\n @functools.wraps(f)\n def g(x): return -f(x)\n return g\n@d\ndef value(x): return 1",
    ],
    "lru_cache": [
        "@functools.lru_cache\ndef value(x): return 1",
        "@functools.lru_cache\ndef value(x): return 2",
    ],
    "no_grad": [
        "@torch.no_grad()\ndef value(x): return 1",
        "@torch.no_grad()\ndef value(x): return 2",
    ],
    "own module": [
        "m = types.ModuleType('m')\nm.LAM = 1\ndef value(x): return m.LAM",
        "m = types.ModuleType('m')\nm.LAM = 2\ndef value(x): return m.LAM",
    ],
    "library's function": ["def value(x): return F.relu(x)", "def value(x): return F.elu(x)"],
    "renamed import": [
        "from math import sin as f\ndef value(x): return f(x)",
        "from math import cos as f\ndef value(x): return f(x)",
    ],
    "replaced function of a library": [
        "math.own = lambda x: 1\ndef value(x): return math.own(x)",
        "math.own = lambda x: 2\ndef value(x): return math.own(x)",
    ],
    "builtin's replacement": [
        "def value(x): return sum(x)",
        "def sum(x): return 0\ndef value(x): return sum(x)",
    ],
    "generator's seed": [
        "g = torch.Generator().manual_seed(1)\ndef value(x): return torch.rand(1, generator=g)",
        "g = torch.Generator().manual_seed(2)\ndef value(x): return torch.rand(1, generator=g)",
    ],
    "NumPy generator's seed": [
        "value = np.random.default_rng(1)",
        "value = np.random.default_rng(2)",
    ],
    "Random's seed": ["value = random.Random(1).random", "value = random.Random(2).random"],
    "global tensor": [
        "W = torch.ones(2)\ndef value(x): return W",
        "W = torch.zeros(2)\ndef value(x): return W",
    ],
    "global array": [
        "W = np.ones(2)\ndef value(x): return W",
        "W = np.zeros(2)\ndef value(x): return W",
    ],
    "global model": [
        "torch.manual_seed(0)\nt = nn.Linear(2, 2)\ndef value(x): return t(x)",
        "torch.manual_seed(1)\nt = nn.Linear(2, 2)\ndef value(x): return t(x)",
    ],
    "layer's attribute": [
        "class Noise(nn.Module):\n def __init__(s, a):\n  super().__init__()\n  s.a = a\n def forward(s, x): return x + s.a\nvalue = Noise(1)",
        "class Noise(nn.Module):\n def __init__(s, a):\n  super().__init__()\n  s.a = a\n def forward(s, x): return x + s.a\nvalue = Noise(2)",
    ],
    "layer's method": [
        "class L(nn.Module):\n def f(s, x): return x\n def forward(s, x): return s.f(x)\nvalue = nn.Sequential(L())",
        "class L(nn.Module):\n def f(s, x): return -x\n def forward(s, x): return s.f(x)\nvalue = nn.Sequential(L())",
    ],
    "layer's global": [
        "LAM = 1\nclass L(nn.Module):\n def forward(s, x): return LAM * x\nvalue = L()",
        "LAM = 2\nclass L(nn.Module):\n def forward(s, x): return LAM * x\nvalue = L()",
    ],
    "layer's base": [
        "class B(nn.Linear):\n def forward(s, x): return x\nclass L(B): pass\ntorch.manual_seed(0)\nvalue = L(1, 1)",
        "class B(nn.Linear):\n def forward(s, x): return -x\nclass L(B): pass\ntorch.manual_seed(0)\nvalue = L(1, 1)",
    ],
    "buffer": [
        "value = nn.Module()\nvalue.register_buffer('b', torch.ones(1), persistent=False)",
        "value = nn.Module()\nvalue.register_buffer('b', torch.zeros(1), persistent=False)",
    ],
    "order of layers": [
        "value = nn.Sequential(nn.ReLU(), nn.Tanh())",
        "value = nn.Sequential(nn.Tanh(), nn.ReLU())",
    ],
    "order of named layers": [
        "from collections import OrderedDict as O\nvalue = nn.Sequential(O(a=nn.ReLU(), b=nn.Tanh()))",
        "from collections import OrderedDict as O\nvalue = nn.Sequential(O(b=nn.Tanh(), a=nn.ReLU()))",
    ],
    "frozen": [
        "value = nn.Linear(1, 1).requires_grad_(False).apply(lambda m: nn.init.ones_(m.weight) and nn.init.ones_(m.bias))",
        "value = nn.Linear(1, 1).requires_grad_(True).apply(lambda m: nn.init.ones_(m.weight) and nn.init.ones_(m.bias))",
    ],
    "dtype": ["value = nn.BatchNorm1d(2)", "value = nn.BatchNorm1d(2).double()"],
    "hook": [
        "value = nn.ReLU()\nvalue.register_forward_hook(lambda m, i, o: o)",
        "value = nn.ReLU()\nvalue.register_forward_hook(lambda m, i, o: -o)",
    ],
    "hook of a tensor": [
        "value = nn.BatchNorm1d(1)\nvalue.weight.register_hook(lambda g: g)",
        "value = nn.BatchNorm1d(1)\nvalue.weight.register_hook(lambda g: -g)",
    ],
    "forward of an object": [
        "value = nn.ReLU()\nvalue.forward = lambda x: x",
        "value = nn.ReLU()\nvalue.forward = lambda x: -x",
    ],
    "parametrization": [
        "from torch.nn.utils import parametrize as p\nclass P(nn.Module):\n def forward(s, x): return x\nvalue = nn.BatchNorm1d(2)\np.register_parametrization(value, 'weight', P())",
        "from torch.nn.utils import parametrize as p\nclass P(nn.Module):\n def forward(s, x): return 2 * x\nvalue = nn.BatchNorm1d(2)\np.register_parametrization(value, 'weight', P())",
    ],
    "tied": [
        "a, b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)\nvalue = nn.Sequential(a, b)",
        "a, b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)\na.weight = b.weight\nvalue = nn.Sequential(a, b)",
    ],
    "function of autograd": [
        "class A(torch.autograd.Function):\n @staticmethod\n def forward(c, x): return x\nvalue = A.apply",
        "class A(torch.autograd.Function):\n @staticmethod\n def forward(c, x): return -x\nvalue = A.apply",
    ],
    "loss with state": [
        "value = nn.CrossEntropyLoss(label_smoothing=0.1)",
        "value = nn.CrossEntropyLoss(label_smoothing=0.2)",
    ],
    "optimizer's global": [
        "LR = 1.0\ndef value(p): return torch.optim.SGD(p, lr=LR)",
        "LR = 2.0\ndef value(p): return torch.optim.SGD(p, lr=LR)",
    ],
    "import inside": [
        "def value(x):\n from math import sin as f\n return f(x)",
        "def value(x):\n from math import cos as f\n return f(x)",
    ],
}
# fmt: off
SAME = {  # what a new kernel, a moved cell or other surroundings must not change
    "stream of random": ["random.seed(1)\ndef value(x): return random.random()", "random.seed(2)\ndef value(x): return random.random()"],
    "imported stream": ["from random import gauss\nrandom.seed(1)\nvalue = gauss", "from random import gauss\nrandom.seed(2)\nvalue = gauss"],
    "stream of NumPy": ["np.random.seed(1)\nf = np.random.rand\ndef value(x): return np.random.rand() + f()",
                        "np.random.seed(2)\nf = np.random.rand\ndef value(x): return np.random.rand() + f()"],
    "stream of PyTorch": ["torch.manual_seed(1)\ng = torch.default_generator\ndef value(x): return torch.rand(1, generator=g)",
                          "torch.manual_seed(2)\ng = torch.default_generator\ndef value(x): return torch.rand(1, generator=g)"],
    "comment": ["def value(x): return x", "# a remark\n\n\ndef value(x):  # and one more\n    return x"],
    "hooks counted": ["value = nn.ReLU()\nvalue.h = value.register_forward_hook(print)",
                      "nn.ReLU().register_forward_hook(print)\nvalue = nn.ReLU()\nvalue.h = value.register_forward_hook(print)"],
    "autograd functions counted": ["class A(torch.autograd.Function): pass\nvalue = A", "class B(torch.autograd.Function): pass\nclass A(torch.autograd.Function): pass\nvalue = A"],
    "other globals": ["a = 1\ndef value(x): return x", "a = 2\ndef value(x): return x"],
    "attribute with the name of a global": ["a = 1\ndef value(x): return x.a", "a = 2\ndef value(x): return x.a"],
    "order of a dict": ["C = {'a': 1, 'b': 2}\ndef value(x): return C", "C = {'b': 2, 'a': 1}\ndef value(x): return C"],
    "compiled": ["value = nn.ReLU()", "value = nn.ReLU()\nvalue._compiled_call_impl = open"],
}
# fmt: on
SCRIPT = """
import json, os, sys, types
from course_utils.core import cache
cells, blank = json.load(sys.stdin), int(sys.argv[1])
keys = []
for number, cell in enumerate(cells):
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    name = f"/tmp/ipykernel_{os.getpid()}/{number}.py"
    exec(compile("\\n" * blank + cell, name, "exec"), vars(module))
    keys.append(cache.key(value=module.value))
json.dump(keys, sys.stdout)
"""


def keys_in_a_new_process(seed: int, blank: int) -> dict[str, str]:
    """The key of each cell, as another kernel gives it."""
    pairs = {**CELLS, **SAME}
    cells = [HEAD + cell for pair in pairs.values() for cell in pair]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(blank)],
        input=json.dumps(cells),
        env=os.environ | {"PYTHONHASHSEED": str(seed)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    return {name: found[2 * i : 2 * i + 2] for i, name in enumerate(pairs)}


@pytest.mark.slow
def test_keys_are_the_same_in_two_kernels_and_tell_every_change():
    first = keys_in_a_new_process(seed=1, blank=0)
    second = keys_in_a_new_process(seed=2, blank=7)
    assert {name for name in first if first[name] != second[name]} == set()
    assert {name for name in CELLS if first[name][0] == first[name][1]} == set()
    assert {name for name in SAME if first[name][0] != first[name][1]} == set()


# --- in one process


def test_a_value_has_a_description_of_its_own_and_no_address():
    pair = namedtuple("pair", "a b")
    values = [
        *(0, 0.0, -0.0, False, None, ..., "0", b"0", (0,), [0], {0}, {0: 0}, frozenset([0])),
        *(np.float64(0), np.zeros(1), np.zeros(1, "f4"), torch.float32, torch.device("cpu")),
        *(OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), pair(1, 2), pair(2, 1), range(3)),
        *(F.relu, F.max_pool2d, torch.relu, torch.Tensor.relu, np.sin, np.linalg.norm, sum),
        *(torch.optim.SGD, nn.Linear, nn.ReLU(), nn.ReLU(inplace=True), torch.compile(nn.ReLU())),
        *(nn.CrossEntropyLoss(), torch.compile(half), half, partial(half, x=1)),
    ]
    found = [by_value.described("value", value) for value in values]
    assert len(set(found)) == len(found)
    assert not [part for part in found if b"0x" in part]
    assert found == [by_value.described("value", value) for value in values]


def half(x):
    return x / 2


def test_tensors_of_any_kind_have_a_description():
    base = torch.tensor([[1.0, 0], [0, 2]])
    with pytest.warns(UserWarning):
        sparse = [base.to_sparse(), (2 * base).to_sparse(), base.to_sparse_csr()]
    tensors = [
        *(base, base.T + 1, base[0], base[:0], base[0, 0], -base, base.bfloat16(), base.half()),
        *(base.bool(), base.to(torch.complex64), base.to(torch.complex64) * 1j, *sparse),
        *(
            base[:1].expand(2, 2),
            base.to("meta"),
            nn.Parameter(base),
            base.clone().requires_grad_(),
        ),
    ]
    found = [by_value.described("value", value) for value in tensors]
    assert len(set(found)) == len(found)
    strided = base.T.contiguous().T
    assert by_value.described("value", strided) == found[0]
    assert cache.key(x=torch.ones(2).conj()) == cache.key(x=torch.ones(2))


def test_a_parameter_with_an_attribute_or_shared_memory_is_another_one():
    first = nn.BatchNorm1d(2)
    marked = nn.BatchNorm1d(2)
    marked.weight.rate = 3
    shared = nn.BatchNorm1d(2)
    shared.bias.data = shared.running_mean
    keys = {cache.key(model=model) for model in (first, marked, shared)}
    assert len(keys) == 3


def test_images_count_by_pixels_labels_classes_and_kind_of_device():
    x = torch.rand(2, 1, 2, 2)
    y = torch.tensor([0, 1])
    one = Images(x, y, ("a", "b"), "here")
    others = [Images(x, y.flip(0), ("a", "b"), "here"), Images(x, y, ("a", "b", "c"), "here")]
    assert cache.key(images=one) == cache.key(images=Images(x.clone(), y, ("a", "b"), "there"))
    assert len({cache.key(images=some) for some in (one, *others)}) == 3


def test_what_trains_again_in_one_kernel_gives_the_same_key():
    """A generator that is drawn from has another state; a training does not change the function."""

    def key():
        return cache.key(objective=lambda x, of=half: of(x) + F.relu(x).sum())

    before = key()
    torch.rand(3)
    np.random.rand(3)
    assert key() == before


class Locked:
    def __init__(self):
        self.lock = threading.Lock()


class LockedLayer(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.lock = threading.Lock()


@pytest.mark.parametrize("make", [Locked, LockedLayer])
def test_what_cannot_be_described_is_named_with_its_cure_and_a_key_helps(make):
    with runtime.seeded(0):
        held = make()
    with pytest.raises(ValueError, match="^model.a.0..lock is .*lock.*give it a `key` attribute"):
        cache.key(model={"a": [held]})
    held.key = "first"
    before = cache.key(model={"a": [held]})
    assert cache.key(model={"a": [held]}) == before
    held.key = "second"
    assert cache.key(model={"a": [held]}) != before
    if make is LockedLayer:
        held.key = "first"
        nn.init.ones_(held.weight)
        assert cache.key(model={"a": [held]}) != before


def test_a_key_hides_nothing_that_can_be_described():
    """A layer may have an attribute of this name for reasons of its own."""

    def noise(sigma):
        layer = nn.Identity()
        layer.key = "dense1"
        layer.sigma = sigma
        return layer

    assert cache.key(model=noise(1)) != cache.key(model=noise(2))


def test_files_and_generators_are_refused():
    with open(os.devnull) as file:
        for value in (file, (i for i in ())):
            with pytest.raises(ValueError, match="^value is "):
                cache.key(value=value)


def test_nested_too_deeply():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="deep is nested too deeply"):
        cache.key(deep=deep)


def test_circles_end():
    around = [1]
    around.append(around)
    named = {"a": around}
    named["b"] = named
    other = nn.ReLU()
    other.itself = [other]
    assert cache.key(a=around, b=named, c=other) == cache.key(a=around, b=named, c=other)


leaves = st.one_of(
    st.integers(), st.floats(), st.text(max_size=3), st.booleans(), st.none(), st.binary(max_size=3)
)
nests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    max_leaves=6,
)


def of_one_kind(one, other) -> bool:
    """Equality that tells 1, 1.0 and True apart, and NaN from nothing."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(of_one_kind(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(of_one_kind, one, other))
    return repr(one) == repr(other)


@given(nests, nests)
def test_keys_agree_exactly_where_values_do(one, other):
    assert (cache.key(value=one) == cache.key(value=other)) == of_one_kind(one, other)
    assert cache.key(value=lambda: 0, of=one) == cache.key(value=lambda: 0, of=one)


@given(st.sets(st.one_of(st.text(max_size=3), st.integers(), st.tuples(st.text(max_size=1)))))
def test_the_order_of_a_set_and_a_dict_does_not_count(some):
    there = list(some)
    back = there[::-1]
    assert cache.key(value=set(there)) == cache.key(value=set(back))
    assert cache.key(value=dict.fromkeys(there, 1)) == cache.key(value=dict.fromkeys(back, 1))


def test_wrapping_a_library_function_does_not_hide_what_wraps_it():
    @wraps(F.relu)
    def mine(x):
        return -F.relu(x)

    assert cache.key(value=mine) != cache.key(value=F.relu)
