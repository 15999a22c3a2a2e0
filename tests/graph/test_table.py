"""The table in the documentation is what the registry says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from selkit.graph.ops import base
from selkit.graph.ops.base import Kind, Operator, UnsupportedAttribute, find, register, versions
from selkit.graph.ops.table import LINE, markdown, supported_operators

PROMISED = """
    Add AveragePool BatchNormalization Concat Constant ConstantOfShape Conv ConvTranspose Div Equal Exp
    EyeLike Flatten Gemm GlobalAveragePool Greater LeakyRelu MatMul MaxPool Mul RandomNormalLike
    Reciprocal ReduceSum Relu Reshape Resize Shape Sigmoid Slice Softmax Split Squeeze Sub Transpose
    Unsqueeze Abs Cast Clip Dropout Expand Gather GlobalMaxPool HardSigmoid HardSwish Identity
    InstanceNormalization LayerNormalization LogSoftmax Max Min Neg Pad Pow PRelu ReduceL2 ReduceMax
    ReduceMean ReduceMin SpaceToDepth DepthToSpace Sqrt Tanh Gelu Erf Elu Selu Softplus Upsample Where
    Einsum
"""


def test_every_promised_operator_is_there():
    rows = {row.name: row for row in supported_operators()}
    assert set(PROMISED.split()) <= set(rows)
    assert rows["MaxPool"].versions == (1, 8, 10, 11, 12, 22)
    assert rows["Relu"].line == "exact"
    assert "inference mode only" in rows["BatchNormalization"].what
    assert all(row.what and row.versions for row in rows.values())
    assert set(LINE) == set(Kind)


def test_every_schema_version_from_opset_7_to_26_is_covered():
    import onnx

    for name in {row.name for row in supported_operators()}:
        history = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == name and not s.domain]
        in_use = {
            onnx.defs.get_schema(name, opset, "").since_version
            for opset in range(7, 27)
            if any(schema.since_version <= opset for schema in history)
        }
        needed = {s.since_version for s in history if s.since_version in in_use and not s.deprecated}
        missing = needed - set(versions(name))
        assert not missing, name


def test_the_table_is_markdown():
    text = markdown()
    lines = text.strip().splitlines()
    assert lines[0].startswith("| operator | schema versions | kind |")
    assert len(lines) == len(supported_operators()) + 2
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "selkit.graph.ops.table"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == text


def test_an_operator_is_registered_once():
    with pytest.raises(ValueError, match="Relu of domain '' since 14 is registered twice"):
        register("Relu", since=(14,))(Operator)
    assert find("Relu", 15) is None


def test_operators_say_what_they_lack():
    lacking = base.Affine()
    for call in (
        lacking.forward,
        lambda: lacking.spread((True,)),
        lambda: base.PiecewiseLinear().knots(),
        lambda: base.Maximum().argmax(),
        lambda: base.Composite().decompose(None),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="does not define"):
            call()


def test_sizes_are_limited():
    base.check_size((10, 20))
    with pytest.raises(UnsupportedAttribute, match="would have over"):
        base.check_size((2**20, 2**20))
    with pytest.raises(UnsupportedAttribute, match="would have the shape"):
        base.check_size((-1,))
