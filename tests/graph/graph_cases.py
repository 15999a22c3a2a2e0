"""One row for each way an operator is used; the conformance tests run over all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NEWEST = 26  # that onnxruntime runs
OLDEST = 7


@cache
def history() -> dict[tuple[str, str], list[int]]:
    """Versions of every operator that may be used."""
    found: dict[tuple[str, str], list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.deprecated:
            found.setdefault((schema.domain, schema.name), []).append(schema.since_version)
    return found


@dataclass(frozen=True, eq=False)
class Case:
    """A node as ONNX text, the shapes of its live inputs, and the values of its constant ones."""

    node: str
    live: dict[str, tuple[int, ...]]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opsets: tuple[int, int] = (OLDEST, NEWEST)
    low: float = -2.0
    high: float = 2.0
    exact: bool = True  # compare with onnxruntime

    @property
    def op_type(self) -> str:
        return onnx.parser.parse_node(self.node).op_type

    @property
    def domain(self) -> str:
        return onnx.parser.parse_node(self.node).domain

    def versions(self) -> Iterator[int]:
        """The first opset of each schema version in range, and the newest."""
        first, last = self.opsets
        starts = {max(since, first) for since in history().get((self.domain, self.op_type), ())}
        reached = {opset for opset in starts | {last} if first <= opset <= last}
        yield from sorted(reached)

    def model(self, opset: int) -> onnx.ModelProto:
        node = onnx.parser.parse_node(self.node)
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.live.items()]
        outputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n]
        stored = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph([node], "case", inputs, outputs, stored)
        versions = [helper.make_opsetid("", opset)]
        if self.domain:
            versions.append(helper.make_opsetid(self.domain, 1))
        model = helper.make_model(graph, opset_imports=versions, ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        for output in model.graph.output:
            if not output.type.tensor_type.elem_type:
                output.type.tensor_type.elem_type = TensorProto.FLOAT
        return model

    def feeds(self, count: int, seed: int = 0) -> dict[str, np.ndarray]:
        """``count`` points, stacked; no two numbers are alike."""
        rng = np.random.default_rng(seed)
        return {
            n: rng.uniform(self.low, self.high, (count, *s)).astype(np.float32) for n, s in self.live.items()
        }


def f(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(sum(shape) + len(shape))
    return rng.uniform(low, high, shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def s(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def case(
    node: str,
    /,
    constants: dict[str, np.ndarray] | None = None,
    *,
    opsets: tuple[int, int] = (OLDEST, NEWEST),
    low: float = -2.0,
    high: float = 2.0,
    exact: bool = True,
    **live: tuple[int, ...],
) -> Case:
    """A row; outputs are named ``y`` unless the text names them."""
    named = re.match(r"\w+(, \w*)* = ", node)
    return Case(node if named else f"y = {node}", live, constants or {}, opsets, low, high, exact)


X4 = (2, 3, 8, 7)

ARITHMETIC = [
    case("Add(x, y0)", x=(1, 3, 4), y0=(3, 1)),
    case("Add(x, c)", {"c": f(4)}, x=(2, 3, 4)),
    case("Add(c, x)", {"c": f(2, 3, 4)}, x=(4,)),
    case("Sub(x, y0)", x=(3, 4), y0=(2, 3, 4)),
    case("Sub(c, x)", {"c": f(3, 1)}, x=(2, 3, 4)),
    case("Sum(x, y0, c)", {"c": f(4)}, opsets=(8, NEWEST), x=(3, 4), y0=(3, 1)),
    case("Mean(x, y0, c)", {"c": f(4)}, opsets=(8, NEWEST), x=(3, 4), y0=(3, 1)),
    case("Neg(x)", x=(2, 3)),
    case("Mul(x, c)", {"c": f(3, 1)}, x=(2, 3, 4)),
    case("Mul(c, x)", {"c": f(2, 3, 4)}, x=(4,)),
    case("Mul(x, y0)", x=(2, 3, 4), y0=(3, 1)),
    case("Div(x, c)", {"c": f(3, 1, low=0.5, high=2)}, x=(2, 3, 4)),
    case("Div(x, y0)", low=0.5, x=(3, 4), y0=(2, 3, 1)),
    case("Div(c, x)", {"c": f(3, 1)}, low=0.5, x=(3, 4)),
    case("Pow(x, c)", {"c": s(2)}, x=(2, 3)),
    case("Pow(x, c)", {"c": f(3, 1) * 0 + 3}, x=(2,)),
    case("Pow(x, c)", {"c": s(0.5)}, low=0.1, x=(2, 3)),
    case("Pow(x, c)", {"c": np.array(-2, dtype=np.int64)}, opsets=(12, NEWEST), low=0.5, x=(2, 3)),
    case("Pow(c, x)", {"c": f(3, 1, low=0.5, high=2)}, x=(2, 3, 4)),
    case("Max(x, y0, c)", {"c": f(4)}, opsets=(8, NEWEST), x=(2, 3, 4), y0=(3, 1)),
    case("Max(x, c)", {"c": s(0.3)}, opsets=(8, NEWEST), x=(2, 3, 4)),
    case("Min(x, y0, c)", {"c": f(4)}, opsets=(8, NEWEST), x=(2, 3, 4), y0=(3, 1)),
    case("Min(x, y0)", x=(3, 4), y0=(3, 4)),
]

ELEMENTWISE = [
    case("Relu(x)", x=(2, 30)),
    case("LeakyRelu(x)", x=(2, 30)),
    case("LeakyRelu<alpha=0.3>(x)", x=(2, 30)),
    case("PRelu(x, c)", {"c": f(3, 1)}, x=(2, 3, 30)),
    case("PRelu(x, c)", {"c": f(1, low=-2)}, x=(2, 30)),
    case("Abs(x)", x=(2, 30)),
    case("Clip<min=-0.5, max=1.0>(x)", opsets=(7, 10), x=(2, 30)),
    case("Clip(x)", opsets=(7, 10), x=(2, 30)),
    case("Clip(x, c, d)", {"c": s(-0.5), "d": s(1)}, opsets=(11, NEWEST), x=(2, 30)),
    case("Clip(x, , d)", {"d": s(0.7)}, opsets=(11, NEWEST), x=(2, 30)),
    case("Clip(x, c)", {"c": s(0)}, opsets=(11, NEWEST), x=(2, 30)),
    case("Clip(x, c, d)", {"c": s(1), "d": s(0.5)}, opsets=(12, NEWEST), x=(2, 30)),
    case("HardSigmoid(x)", low=-4, high=4, x=(2, 30)),
    case("HardSigmoid<alpha=-0.5, beta=0.4>(x)", low=-4, high=4, x=(2, 30)),
    case("ThresholdedRelu<alpha=0.0>(x)", opsets=(10, NEWEST), x=(2, 30)),
    case("ThresholdedRelu(x)", opsets=(10, NEWEST), x=(2, 30)),
    case("Shrink<lambd=0.5, bias=0.5>(x)", opsets=(9, NEWEST), x=(2, 30)),
    case("Shrink<lambd=0.7, bias=0.2>(x)", opsets=(9, NEWEST), x=(2, 30)),
    case("Sigmoid(x)", x=(2, 30)),
    case("Tanh(x)", x=(2, 30)),
    case("Exp(x)", x=(2, 30)),
    case("Log(x)", low=0.1, x=(2, 30)),
    case("Sqrt(x)", low=0.1, x=(2, 30)),
    case("Reciprocal(x)", low=0.3, x=(2, 30)),
    case("Sin(x)", x=(2, 30)),
    case("Cos(x)", x=(2, 30)),
    case("Atan(x)", x=(2, 30)),
    case("Erf(x)", opsets=(9, NEWEST), x=(2, 30)),
    case("Softplus(x)", low=-30, high=30, x=(2, 30)),
    case("Softsign(x)", x=(2, 30)),
    case("Elu(x)", x=(2, 30)),
    case("Elu<alpha=0.5>(x)", x=(2, 30)),
    case("Selu(x)", x=(2, 30)),
    case("Celu<alpha=0.7>(x)", opsets=(12, NEWEST), x=(2, 30)),
    case("HardSwish(x)", opsets=(14, NEWEST), low=-5, high=5, x=(2, 30)),
    case("Swish<alpha=1.3>(x)", opsets=(24, NEWEST), low=-5, high=5, exact=False, x=(2, 30)),
    case("Mish(x)", opsets=(18, NEWEST), low=-5, high=5, x=(2, 30)),
    case("Gelu(x)", opsets=(20, NEWEST), low=-5, high=5, x=(2, 30)),
    case('Gelu<approximate="tanh">(x)', opsets=(20, NEWEST), low=-5, high=5, x=(2, 30)),
]

CONVOLUTION = [
    case("Conv(x, w)", {"w": f(4, 3, 3, 3)}, x=X4),
    case("Conv<pads=[1, 2, 0, 1], strides=[2, 1]>(x, w, b)", {"w": f(4, 3, 3, 2), "b": f(4)}, x=X4),
    case(
        "Conv<pads=[1, 1, 1, 1], group=3, dilations=[2, 1], kernel_shape=[3, 3]>(x, w, b)",
        {"w": f(6, 1, 3, 3), "b": f(6)},
        x=X4,
    ),
    case('Conv<auto_pad="SAME_UPPER", strides=[2, 3]>(x, w)', {"w": f(4, 3, 4, 3)}, x=X4),
    case('Conv<auto_pad="SAME_LOWER", strides=[2, 2]>(x, w)', {"w": f(4, 3, 4, 3)}, x=X4),
    case('Conv<auto_pad="VALID">(x, w)', {"w": f(4, 3, 1, 1)}, x=X4),
    case("Conv<pads=[2, 1], strides=[2]>(x, w, b)", {"w": f(4, 3, 3), "b": f(4)}, x=(2, 3, 9)),
    case("Conv<pads=[1, 0, 1, 1, 2, 0]>(x, w)", {"w": f(2, 2, 2, 3, 2)}, x=(1, 2, 4, 5, 4)),
    case("Conv<pads=[1, 1, 1, 1]>(c, w)", {"c": f(2, 3, 5, 5)}, w=(4, 3, 3, 3)),
    case("Conv(x, w)", x=(1, 2, 5, 5), w=(3, 2, 3, 3)),
    case("Conv(c, w, b)", {"c": f(1, 2, 5, 5), "w": f(3, 2, 3, 3)}, b=(3,)),
    case("ConvTranspose(x, w)", {"w": f(3, 4, 3, 3)}, x=X4),
    case(
        "ConvTranspose<strides=[2, 3], pads=[1, 0, 2, 1], output_padding=[1, 2]>(x, w, b)",
        {"w": f(3, 2, 3, 3), "b": f(2)},
        x=X4,
    ),
    case(
        "ConvTranspose<strides=[2, 2], group=3, dilations=[2, 1]>(x, w, b)",
        {"w": f(3, 2, 3, 2), "b": f(6)},
        x=X4,
    ),
    case("ConvTranspose<strides=[2, 2], output_shape=[15, 13]>(x, w)", {"w": f(3, 2, 3, 3)}, x=X4),
    case(
        'ConvTranspose<strides=[2, 2], output_shape=[15, 12], auto_pad="SAME_UPPER">(x, w)',
        {"w": f(3, 2, 4, 4)},
        x=X4,
    ),
    case('ConvTranspose<strides=[2, 2], auto_pad="SAME_UPPER">(x, w)', {"w": f(3, 2, 3, 5)}, x=X4),
    case('ConvTranspose<strides=[2, 2], auto_pad="SAME_LOWER">(x, w)', {"w": f(3, 2, 3, 5)}, x=X4),
    case('ConvTranspose<strides=[2, 2], auto_pad="VALID">(x, w)', {"w": f(3, 2, 3, 5)}, x=X4),
    case("ConvTranspose<strides=[2], pads=[1, 0]>(x, w)", {"w": f(3, 2, 4)}, x=(2, 3, 6)),
    case("ConvTranspose<strides=[2, 1, 2]>(x, w)", {"w": f(2, 2, 2, 3, 2)}, x=(1, 2, 3, 4, 3)),
]

MATRIX = [
    case("MatMul(x, c)", {"c": f(4, 5)}, x=(3, 4)),
    case("MatMul(x, c)", {"c": f(4, 5)}, x=(2, 3, 4)),
    case("MatMul(x, c)", {"c": f(2, 4, 5)}, x=(3, 4)),
    case("MatMul(c, x)", {"c": f(3, 4)}, x=(2, 4, 5)),
    case("MatMul(x, c)", {"c": f(4)}, x=(3, 4)),
    case("MatMul(x, c)", {"c": f(4, 3)}, x=(4,)),
    case("MatMul(c, x)", {"c": f(4)}, x=(4,)),
    case("MatMul(x, y0)", x=(2, 3, 4), y0=(4, 5)),
    case("MatMul(x, y0)", x=(2, 1, 3, 4), y0=(2, 4, 5)),
    case("MatMul(x, y0)", x=(4,), y0=(4,)),
    case("Gemm(x, b)", {"b": f(4, 5)}, opsets=(11, NEWEST), x=(3, 4)),
    case("Gemm<transB=1, alpha=0.5, beta=2.0>(x, b, c)", {"b": f(5, 4), "c": f(5)}, x=(3, 4)),
    case("Gemm<transA=1>(x, b, c)", {"b": f(4, 5), "c": f(3, 1)}, x=(4, 3)),
    case("Gemm<alpha=-0.5>(a, x, c)", {"a": f(3, 4), "c": s(0.5)}, x=(4, 5)),
    case("Gemm<beta=-2.0>(a, b, x)", {"a": f(3, 4), "b": f(4, 5)}, x=(5,)),
    case("Gemm(x, y0, c)", {"c": f(5)}, x=(3, 4), y0=(4, 5)),
    case('Einsum<equation="bij,jk->bik">(x, c)', {"c": f(4, 5)}, opsets=(12, NEWEST), x=(2, 3, 4)),
    case('Einsum<equation="ij, jk">(c, x)', {"c": f(3, 4)}, opsets=(12, NEWEST), x=(4, 5)),
    case('Einsum<equation="...ij,...jk->...ik">(x, y0)', opsets=(12, NEWEST), x=(2, 3, 4), y0=(2, 4, 5)),
    case('Einsum<equation="ii->i">(x)', opsets=(12, NEWEST), x=(4, 4)),
    case('Einsum<equation="i,j,j->ij">(x, y0, c)', {"c": f(4)}, opsets=(12, NEWEST), x=(3,), y0=(4,)),
]

POOLING = [
    case("MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)", x=X4),
    case("MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)", low=-3, high=-1, x=X4),
    case("MaxPool<kernel_shape=[3, 2], pads=[0, 1, 2, 0], strides=[2, 1]>(x)", low=-3, high=-1, x=X4),
    case("MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)", opsets=(10, NEWEST), x=X4),
    case(
        "MaxPool<kernel_shape=[2, 3], strides=[3, 2], ceil_mode=1, pads=[1, 0, 0, 2]>(x)",
        opsets=(10, NEWEST),
        low=-3,
        high=-1,
        x=X4,
    ),
    case("MaxPool<kernel_shape=[3, 2], dilations=[2, 3]>(x)", opsets=(10, NEWEST), x=X4),
    case(
        "MaxPool<kernel_shape=[3, 2], dilations=[2, 2], pads=[1, 1, 1, 1]>(x)",
        opsets=(10, NEWEST),
        low=-3,
        high=-1,
        x=X4,
    ),
    case('MaxPool<kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER">(x)', low=-3, high=-1, x=X4),
    case('MaxPool<kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER">(x)', low=-3, high=-1, x=X4),
    case("MaxPool<kernel_shape=[3], strides=[2], pads=[1, 0]>(x)", x=(2, 3, 9)),
    case(
        "MaxPool<kernel_shape=[2, 2, 3], strides=[2, 1, 2], pads=[0, 1, 1, 1, 0, 1]>(x)",
        low=-3,
        high=-1,
        x=(1, 2, 4, 5, 6),
    ),
    case("AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(x)", x=X4),
    case("AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)", x=X4),
    case("AveragePool<kernel_shape=[3, 2], pads=[0, 1, 2, 0], strides=[2, 1], count_include_pad=1>(x)", x=X4),
    case("AveragePool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)", opsets=(10, NEWEST), x=X4),
    case(
        "AveragePool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 1], "
        "count_include_pad=1>(x)",
        opsets=(19, NEWEST),
        x=X4,
    ),
    case(
        "AveragePool<kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 0, 0]>(x)", opsets=(19, NEWEST), x=X4
    ),
    case('AveragePool<kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER">(x)', x=X4),
    case("AveragePool<kernel_shape=[3], strides=[2], pads=[1, 0]>(x)", x=(2, 3, 9)),
    case("AveragePool<kernel_shape=[2, 2, 3], strides=[2, 1, 2]>(x)", x=(1, 2, 4, 5, 6)),
    case("GlobalAveragePool(x)", x=X4),
    case("GlobalAveragePool(x)", x=(2, 3, 5)),
    case("GlobalMaxPool(x)", x=X4),
    case("GlobalMaxPool(x)", x=(2, 3, 2, 3, 4)),
]

REDUCTION = [
    one
    for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    for split in (13 if name == "Sum" else 18,)
    for one in (
        case(f"Reduce{name}<axes=[1, -1]>(x)", opsets=(11, split - 1), low=0.1, x=(2, 3, 4)),
        case(f"Reduce{name}<axes=[1], keepdims=0>(x)", opsets=(7, split - 1), low=0.1, x=(2, 3, 4)),
        case(f"Reduce{name}(x)", low=0.1, x=(2, 3)),
        case(f"Reduce{name}<keepdims=0>(x, a)", {"a": i(0, 2)}, opsets=(split, NEWEST), low=0.1, x=(2, 3, 4)),
        case(
            f"Reduce{name}<noop_with_empty_axes=1>(x)", opsets=(split, NEWEST), low=0.1, x=(2, 3), exact=False
        ),
    )
]

NORMALIZATION = [
    case(
        "BatchNormalization(x, s, b, m, v)",
        {"s": f(3), "b": f(3), "m": f(3), "v": f(3, low=0.5, high=2)},
        x=X4,
    ),
    case(
        "BatchNormalization<epsilon=0.01>(x, s, b, m, v)",
        {"s": f(3), "b": f(3), "m": f(3), "v": f(3, low=0.5, high=2)},
        x=(4, 3),
    ),
    case("y, m, d = LayerNormalization<axis=-2>(x, s)", {"s": f(4)}, opsets=(17, NEWEST), x=(2, 3, 4)),
    case(
        "LayerNormalization<axis=1, epsilon=0.01>(x, s, b)",
        {"s": f(3, 4), "b": f(3, 4)},
        opsets=(17, NEWEST),
        x=(2, 3, 4),
    ),
    case("RMSNormalization<axis=-2>(x, s)", {"s": f(4)}, opsets=(23, NEWEST), x=(2, 3, 4)),
    case("InstanceNormalization(x, s, b)", {"s": f(3), "b": f(3)}, x=X4),
    case(
        "GroupNormalization<num_groups=2>(x, s, b)",
        {"s": f(4), "b": f(4)},
        opsets=(21, NEWEST),
        x=(2, 4, 3, 5),
    ),
    case("LRN<size=3, alpha=0.5>(x)", x=(1, 5, 3, 4)),
    case("LRN<size=5, alpha=0.5, beta=0.5, bias=2.0>(x)", x=(2, 6, 3, 2)),
    case("MeanVarianceNormalization(x)", opsets=(9, NEWEST), x=X4),
    case("MeanVarianceNormalization<axes=[1]>(x)", opsets=(9, NEWEST), x=(2, 3, 4), exact=False),
    case("LpNormalization(x)", x=(2, 3, 4)),
    case("LpNormalization<p=1, axis=1>(x)", x=(2, 3, 4)),
    case("Softmax(x)", x=(2, 5)),
    case("Softmax<axis=1>(x)", low=-50, high=50, x=(2, 3, 4)),
    case("Softmax<axis=0>(x)", x=(2, 3)),
    case("LogSoftmax<axis=-1>(x)", opsets=(11, NEWEST), low=-50, high=50, x=(2, 3, 4)),
    case("LogSoftmax<axis=2>(x)", x=(2, 3, 4)),
]

CASES = ARITHMETIC + ELEMENTWISE + CONVOLUTION + MATRIX + POOLING + REDUCTION + NORMALIZATION
