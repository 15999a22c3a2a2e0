"""ONNX' own test of each operator as a network: attributions sum to the change of the output."""

from __future__ import annotations

import re
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from selkit.explain import Explainer
from selkit.graph.ops import base
from selkit.graph.ops.base import Kind, Operator

OLDEST = 13  # before it, axes were attributes: the operators are the same ones
MOST = 20000
REFUSED = {
    r"test_(argmax|argmin|greater|less)_.*|test_(greater|less)(_equal)?": "it jumps between whole numbers",
    r"test_(batchnorm|training_dropout).*": "training",
    r"test_pow.*": "different exponents, or both live",
    r"test_(mod|range|maxpool_with_argmax|causal_conv).*": "not supported in this form",
    r"test_scatternd_(max|min|multiply).*|test_scatter_elements_with_reduction_m.*": "reductions none, add",
    r"test_attention_4d_softcap_neginf_mask.*": "a mask of infinities that is explained itself",
    r"test_einsum_batch_diagonal": "a diagonal",
    r"test_dequantizelinear_blocked.*": "a live scale for each block",
    r"test_qlinearmatmul_.*_float32": "a scale of the result that is explained itself",
    r"test_quantizelinear_(e4m3fn|e5m2|u?int2|float4e2m1)": "types that only stored values have",
    r"test_(cast|castlike)_.*": "number types, or infinite values",
    r"test_(shape|size|constant|nonzero|eyelike|slice_start_out|isinf|isnan|random).*": "nothing to explain",
}


def cases() -> list:
    from onnx.backend.test.loader import load_model_tests

    claimed = {entry.name for entry in base.registrations()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    chosen = []
    for one in found:
        nodes = one.model.graph.node
        known = all(node.op_type in claimed and not node.domain for node in nodes)
        if known and one.model.opset_import[0].version >= OLDEST and "_expanded" not in one.name:
            lives = ["first", "all"][: min(len(floating(one)), most_live(nodes[0].op_type), 2)]
            chosen.extend(pytest.param(one, live, id=f"{one.name}-{live}") for live in lives)
    return chosen


def most_live(name: str) -> int:
    """How many inputs may depend on the model's input."""
    if name in ("Conv", "ConvTranspose"):
        return 1
    limits = [entry.operator.LIVE for entry in base.registrations() if entry.name == name]
    return min(99 if limit is None else limit for limit in limits)


def floating(one) -> dict[str, np.ndarray]:
    inputs, _ = one.data_sets[0]
    values = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in inputs]
    named = zip((v.name for v in one.model.graph.input), values, strict=True)
    return {
        name: value
        for name, value in named
        if isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float64) and value.size
    }


def network(one, live: dict[str, np.ndarray]) -> onnx.ModelProto:
    """One row of numbers in and out; the live inputs are parts of the row, the others are stored."""
    graph = one.model.graph
    inputs, _ = one.data_sets[0]
    sizes = [value.size for value in live.values()]
    stored = [numpy_helper.from_array(np.array(sizes, np.int64), "sizes.in")]
    parts = [f"part.{name}" for name in live]
    nodes = [helper.make_node("Split", ["row.in", "sizes.in"], parts, axis=1)]
    for (name, value), part in zip(live.items(), parts, strict=True):
        stored.append(numpy_helper.from_array(np.array(value.shape, np.int64), f"shape.{name}"))
        nodes.append(helper.make_node("Reshape", [part, f"shape.{name}"], [name]))
    for spec, value in zip(graph.input, inputs, strict=True):
        if spec.name not in live:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(
                value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))
            )
            tensor.name = spec.name
            stored.append(tensor)
    stored.append(numpy_helper.from_array(np.array([1, -1], np.int64), "flat.out"))
    nodes += [*graph.node, helper.make_node("Reshape", [graph.output[0].name, "flat.out"], ["row.out"])]
    kind = helper.np_dtype_to_tensor_dtype(next(iter(live.values())).dtype)
    made = helper.make_graph(
        nodes,
        one.name,
        [helper.make_tensor_value_info("row.in", kind, [1, sum(sizes)])],
        [helper.make_tensor_value_info("row.out", kind, None)],
        [*graph.initializer, *stored],
    )
    return helper.make_model(made, opset_imports=one.model.opset_import, ir_version=10)


def near(values: np.ndarray, seed: int) -> np.ndarray:
    """Numbers like the case's own: positive ones stay positive."""
    rng = np.random.default_rng(seed)
    shift = 0.0 if (values > 0).all() else 0.3 * rng.standard_normal(values.shape)
    return (values * (1 + 0.3 * rng.uniform(-1, 1, values.shape)) + shift).astype(values.dtype)


def outputs_of(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray | None:
    """What onnxruntime says, if it knows the operator."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        results = [session.run(None, {"row.in": row[None]})[0] for row in rows]
    except Exception:  # noqa: BLE001 - onnxruntime's own errors have no public base class
        return None
    return np.concatenate(results).astype(np.float64)


ALL = cases()
SKIPPED = re.compile("|".join(f"({pattern})-(first|all)$" for pattern in REFUSED))
RUN = [param for param in ALL if not SKIPPED.match(param.id)]


@pytest.mark.parametrize(("one", "which"), RUN)
def test_attributions_sum_to_the_change_of_the_output(one, which):
    values = floating(one)
    live = values if which == "all" else dict(list(values.items())[:1])
    if sum(value.size for value in live.values()) > MOST or len({v.dtype for v in live.values()}) > 1:
        pytest.skip("large, or of mixed precision")
    model = network(one, live)
    row = np.concatenate([value.ravel() for value in live.values()])
    references, x = (np.stack([near(row, seed) for seed in seeds]) for seeds in ((0, 1, 2), (3, 4)))
    probe = Explainer(model, references, target=0, threads=1)
    targets = list(range(0, probe.outputs, max(1, probe.outputs // 5)))
    result = Explainer(model, references, target=targets, threads=1).explain(x)
    scale = np.abs(result.attributions).sum(axis=-1) + np.abs(result.output) + np.abs(result.base_value)
    assert (np.abs(result.additivity_error) <= 1e-5 * np.maximum(scale, 1e-12)).all()
    expected, base_value = outputs_of(model, x), outputs_of(model, references)
    if expected is not None:
        np.testing.assert_allclose(result.output, expected.T[targets], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.base_value[:, 0], base_value.mean(0)[targets], rtol=1e-4, atol=1e-5)


def test_most_cases_are_run_and_every_reason_counts():
    assert len(RUN) > 450
    unused = [p for p in REFUSED if not any(re.match(f"({p})-(first|all)$", param.id) for param in ALL)]
    assert not unused


def test_every_operator_that_may_be_live_has_a_rule():
    silent = {
        entry.name
        for entry in base.registrations()
        if entry.operator.pull is Operator.pull and entry.operator.KIND not in (Kind.COMPOSITE, Kind.CONSTANT)
    }
    assert silent == {"ArgMax", "ArgMin", "Equal", "Mod", "Xor"}
