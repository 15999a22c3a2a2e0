"""Integers as onnxruntime computes them, or an error: nothing may end the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import selkit
from selkit.errors import UnsupportedModelError
from selkit.graph import Graph

LEAST = np.iinfo(np.int64).min
LEAST_32 = np.iinfo(np.int32).min


def model_of(op: str, *values: np.ndarray, stored: bool, opset: int = 18, **attributes) -> onnx.ModelProto:
    names = [f"v{place}" for place in range(len(values))]
    node = helper.make_node(op, names, ["y"], **attributes)
    named = dict(zip(names, values, strict=True))
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in named.items()
    ]
    kept = [numpy_helper.from_array(value, name) for name, value in named.items()]
    output = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node], op, [] if stored else inputs, [output], kept if stored else [])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def ours(op: str, *values: np.ndarray, **attributes) -> list:
    program = Graph.load(model_of(op, *values, stored=True, **attributes)).compile({})
    return program.constants["y"][0].tolist()


REAL = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 300.7, -1.5, 3e9], np.float32)
SAME = [
    ("Pow", (np.array([2, 0, 1, -1, 3]), np.array([-1, -1, -1, -3, -2])), {}),
    ("Pow", (np.array([3, -7]), np.array([60, 25])), {}),
    ("Pow", (np.array([2, 0]), np.array([0.5, -1.0], np.float32)), {}),
    ("Pow", (np.array([7, -2], np.int32), np.array([3, 40], np.int32)), {}),
    ("Abs", (np.array([LEAST, -3]),), {}),
    ("Neg", (np.array([LEAST, -3]),), {}),
    ("Mul", (np.array([LEAST, 2**40]), np.array([-1, 2**40])), {}),
    ("Mod", (np.array([LEAST, -7]), np.array([-1, 3])), {"fmod": 1}),
    ("Mod", (np.array([-128, 7], np.int8), np.array([-1, -3], np.int8)), {}),
    ("Div", (np.array([-7, 7]), np.array([2, -2])), {}),
    ("Div", (np.array([200, 7], np.uint8), np.array([3, 2], np.uint8)), {}),
    ("Cast", (REAL,), {"to": TensorProto.INT64}),
    ("Cast", (REAL,), {"to": TensorProto.INT32}),
    ("Cast", (REAL[5:],), {"to": TensorProto.UINT32}),
    ("Cast", (np.array([300, -1, 2**40]),), {"to": TensorProto.UINT8}),
    ("Cast", (np.array([300, -1, 2**40]),), {"to": TensorProto.UINT16}),
    ("Cast", (np.array([300, -1, 2**40]),), {"to": TensorProto.UINT32}),
    ("Cast", (np.array([300, -1, 2**40]),), {"to": TensorProto.INT32}),
    ("ReduceMean", (np.array([-3, -4], np.int32),), {}),
    ("ReduceMean", (np.array([[3, 4], [7, 0]]),), {"keepdims": 0}),
]


@pytest.mark.parametrize(("op", "values", "attributes"), SAME)
def test_integers_are_what_onnxruntime_makes_of_them(op, values, attributes, onnxruntime_of):
    model = model_of(op, *values, stored=False, **attributes)
    feeds = {f"v{place}": value[None] for place, value in enumerate(values)}
    assert ours(op, *values, **attributes) == onnxruntime_of(model, feeds)["y"][0].tolist()


REFUSED = [
    ("Div", (np.array([LEAST, 7]), np.array([-1, 2])), "divides -9223372036854775808"),
    ("Div", (np.array([LEAST_32], np.int32), np.array([-1], np.int32)), "divides -2147483648"),
    ("Div", (np.array([5]), np.array([0])), "Zero"),
    ("Mod", (np.array([5]), np.array([0])), "Zero"),
    ("Mul", (np.array([2**63], np.uint64), np.array([1], np.uint64)), "2\\*\\*63"),
]


@pytest.mark.parametrize(("op", "values", "reason"), REFUSED)
def test_integers_without_a_result_are_refused(op, values, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        ours(op, *values)


def test_casts_beyond_an_unsigned_type_are_refused():
    for value, kind in ((np.nan, TensorProto.UINT32), (-1.0, TensorProto.UINT64), (1e30, TensorProto.UINT16)):
        with pytest.raises(UnsupportedModelError, match="casts"):
            ours("Cast", np.array([value], np.float32), to=kind)


TRAPS = """
import numpy as np, torch
from selkit.errors import SelkitError
from test_integers import ours
ends = [np.iinfo(np.int32).min, np.iinfo(np.int64).min, -1, 0, 2**62]
for kind in (np.int32, np.int64):
    few = [np.array([value], np.int64).astype(kind) for value in ends]
    for op in ("Div", "Mod", "Pow", "Mul"):
        for a in few:
            for b in few:
                try:
                    ours(op, a, b)
                except SelkitError:
                    pass
    for op, more in (("Abs", {}), ("Neg", {}), ("Sign", {}), ("ReduceMean", {}), ("Cast", {"to": 13})):
        for a in few:
            try:
                ours(op, a, **more)
            except SelkitError:
                pass
print("alive")
"""


def test_no_integers_end_the_interpreter(request):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRAPS],
        capture_output=True,
        text=True,
        cwd=request.path.parent,
        env={**os.environ, "PYTHONPATH": str(Path(selkit.__file__).parents[1])},
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "alive"), result.stderr[-500:]
