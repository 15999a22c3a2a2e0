"""Equal values have equal fingerprints in every process; others differ, or are refused."""

import functools
import math
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from scipy import stats

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
