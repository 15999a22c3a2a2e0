"""Equal values have equal fingerprints in every process; others differ, or are refused."""

import collections
import dataclasses
import enum
import functools
import importlib
import io
import math
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import interpolate, stats

from selkit.errors import InvalidInputError
from selkit.utils.fingerprint import fingerprint


class Own:
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "always the same"


def hooked(bias):
    torch.manual_seed(0)
    made = torch.nn.Linear(2, 2)
    made.register_forward_hook(lambda module, given, found: found + bias)
    return made


DIFFERENT = [
    (1, True), (1, 1.0), ("a", b"a"), ((1,), [1]), ({"a": 1}, {"a": 2}), ({1, 2}, {1, 3}), (0.0, -0.0),
    (np.arange(3), np.arange(3.0)), (np.arange(3), torch.arange(3)), (np.zeros((2, 3)), np.zeros((3, 2))),
    (np.ma.masked_array([1.0], [True]), np.ma.masked_array([1.0], [False])),
    (torch.ones(2), torch.ones(2, dtype=torch.bfloat16)), (Own(1), Own(2)), (slice(1), slice(2)),
    (math.sqrt, math.sin), (np.sqrt, np.sin), (np.mean, np.var), (torch.sum, torch.mean),
    (functools.partial(max, 1), functools.partial(max, 2)), (stats.norm(0, 1), stats.norm(0, 2)),
    (np.random.default_rng(0), np.random.default_rng(1)), (hooked(1.0), hooked(2.0)),
    (np.vectorize(lambda x: 1), np.vectorize(lambda x: 2)),
]  # fmt: skip


@pytest.mark.parametrize("pair", DIFFERENT, ids=lambda pair: type(pair[0]).__name__)
def test_different_values_differ(pair):
    first, second = pair
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(first)


class Hidden(Own):
    """Gives pickle less than it holds."""

    def __getstate__(self):
        return {"name": "the same"}


class Single(Own):
    def __reduce__(self):
        return "HIDDEN"


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        return None


class Named(dict):
    value = 1.0


def named(value):
    made = Named(a=1)
    made.value = value
    return made


@dataclasses.dataclass
class Filled:
    size: int

    def __post_init__(self):
        self.rows = [0.0]


def filled(value):
    made = Filled(1)
    made.rows[0] = value
    return made


class Wrapper:
    """A decorator that is an object."""

    def __init__(self, function, scale):
        functools.update_wrapper(self, function)
        self.scale = scale

    def __call__(self, x):
        return self.scale * self.__wrapped__(x)


def wrapped(scale):
    @functools.wraps(np.var)
    def inner(x):
        return scale * np.var(x)

    return inner


def attribute(scale):
    def inner(x):
        return inner.scale * x

    inner.scale = scale
    return inner


def without_gradients(scale):
    @torch.no_grad()
    def inner(x):
        return scale * x

    return inner


def defaults(scale):
    def inner(x, *, by=scale):
        return by * x

    return inner


HIDING = [
    Hidden, Single, Slotted, named, filled, lambda k: Wrapper(len, k),
    wrapped, attribute, without_gradients, defaults, lambda k: collections.defaultdict(lambda: k),
    lambda k: Own(k).__getattribute__, lambda k: [k].__getitem__, lambda k: Own(k).__init__,
    lambda k: functools.cache(lambda x: k * x), lambda k: lambda x: [k * y for y in x],
    lambda k: functools.partial(defaults(k), 2), lambda k: types.MappingProxyType({"a": k}),
    lambda k: enum.Enum("Level", {"A": k}).A, lambda k: collections.Counter({"a": k}),
    lambda k: collections.namedtuple("Pair", "a b")(k, 1), lambda k: collections.deque([k]),
    lambda k: type("Local", (), {"scale": k, "__call__": lambda self, x: self.scale * x})(),
    lambda k: type("Local", (), {"scale": property(lambda self: k)})(),
    lambda k: np.array([Own(k)], dtype=object), lambda k: interpolate.CubicSpline([0, 1, 2], [0, k, 4]),
]  # fmt: skip


@pytest.mark.parametrize("make", HIDING, ids=range(len(HIDING)))
def test_every_place_where_a_number_can_be(make):
    assert fingerprint(make(1.0)) != fingerprint(make(4.0))
    assert fingerprint(make(1.0)) == fingerprint(make(1.0))


class Teacher(torch.nn.Module):
    """As people write them: reads its weights once, and looks at nothing else afterwards."""

    def __init__(self, scale):
        super().__init__()
        self.body = torch.nn.Linear(2, 2)
        self.weights = np.load(io.BytesIO(stored(scale)))

    @classmethod
    def from_file(cls, path):
        return cls(float(open(path).read()))  # noqa: PTH123

    def forward(self, x):
        self.body.eval()
        vars = globals = x  # noqa: A001 - local names that are called like those of Python
        return self.body(vars) + globals


def stored(scale):
    file = io.BytesIO()
    np.save(file, np.full(3, scale))
    return file.getvalue()


def test_what_a_model_read_when_it_was_made_counts_by_its_state():
    torch.manual_seed(0)
    first = Teacher(1.0)
    torch.manual_seed(0)
    second = Teacher(2.0)
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(second)


class ReadsLater(Teacher):
    def forward(self, x):
        return x + self.from_file("scale.txt")


class FromFile:
    def __init__(self, path):
        self.value = np.load(path)


def reads(x):
    return x * FromFile("scale.npy").value


@pytest.mark.parametrize(
    "value",
    [
        lambda x: open("f").read(),  # noqa: PTH123, SIM115 - what is refused
        lambda x: np.load("f"), lambda x: x * Path("f").read_bytes()[0], reads,
        lambda x: eval("x"),  # noqa: S307 - what is refused
        lambda x: globals()["scale"], lambda x: [np.fromfile(n) for n in "ab"],
        np.frompyfunc(lambda x: 1.0, 1, 1),
    ],
    ids=range(8),
)  # fmt: skip
def test_functions_that_read_what_their_code_does_not_say_are_refused(value):
    with pytest.raises(InvalidInputError, match="cannot be told from others"):
        fingerprint(value)


def test_a_model_that_reads_files_when_it_runs_is_refused():
    with pytest.raises(InvalidInputError, match="'open'"):
        fingerprint(ReadsLater(1.0))


def test_a_name_that_is_given_as_text(tmp_path, monkeypatch):
    (tmp_path / "own_settings.py").write_text("scale = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = importlib.import_module("own_settings")

    def inner(x):
        return x * getattr(own, "scale")  # noqa: B009, F821 - as people write it where the name is computed

    made = types.FunctionType(inner.__code__, {"own": settings, "__name__": "__main__"})
    first = fingerprint(made)
    settings.scale = 4.0
    assert fingerprint(made) != first


def test_attributes_are_no_globals():
    """A global value that is called like an attribute does not count."""
    code = (lambda x: x.data).__code__
    found = {fingerprint(types.FunctionType(code, {"data": value})) for value in (1, 2, threading.Lock())}
    assert len(found) == 1


def test_values_that_contain_themselves():
    one, two = [1], [2]
    one.append(one)
    two.append(two)
    assert fingerprint(one) != fingerprint(two)


def test_order_counts_where_it_means_something():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


@pytest.mark.parametrize(
    "value", [threading.Lock(), (x for x in ()), sys.stdout], ids=["lock", "generator", "file"]
)
def test_what_hides_its_state_is_refused(value):
    with pytest.raises(InvalidInputError, match="cannot be told from others"):
        fingerprint(value)


def test_another_process_finds_the_same(tmp_path):
    (tmp_path / "given.py").write_text(
        textwrap.dedent("""
            import numpy as np, torch
            from selkit.utils.fingerprint import fingerprint
            SCALE = {"a": 1.0, "b": {3, 1, 2}}
            class Noise:
                power = 2
                def __init__(self, k): self.k = k
                def __call__(self, x): return helper(x) ** self.power * self.k
            def helper(x): return float(np.var(x)) * SCALE["a"]
            print(fingerprint(Noise(3), helper, torch.nn.Linear, {"x", "y"}, lambda x: [i for i in (1, 2)]))
        """)
    )
    runs = [
        subprocess.run(
            [sys.executable, tmp_path / "given.py"], capture_output=True, text=True, check=True, env=None
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != ""
