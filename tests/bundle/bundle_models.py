"""Models and images for the tests of bundles."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SIDE, KINDS, WIDTH = 8, 3, 12
# about the least squares from embeddings of images to their labels, so that logits say something
HEAD = (
    (1.5, -4.5, 1.1, 0.9, -1.9, -1.5, 1.5, 3.8, 0.5, -3.8, -1.0, -1.1),
    (0.2, 2.7, -3.2, 0.9, 2.1, -0.5, 1.4, -2.9, -1.1, 0.0, 1.2, 2.2),
    (-1.7, 1.8, 2.1, -1.8, -0.2, 2.0, -2.8, -0.9, 0.5, 3.8, -0.2, -1.1),
)
BIAS = (-0.5, 0.0, 0.5)


def opened(model: onnx.ModelProto | bytes) -> ort.InferenceSession:
    """A session with one thread: several tests run at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model if isinstance(model, bytes) else model.SerializeToString(), options)


def stored(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def network(opset: int = 17, dtype: type = np.float32, batch: int | str = "N") -> onnx.ModelProto:
    """Two convolutions, an embedding (an inner value) and logits (the output)."""
    random = np.random.default_rng(0)
    weights = [
        stored("w1", random.normal(size=(6, 1, 3, 3), scale=0.6).astype(dtype)),
        stored("w2", random.normal(size=(WIDTH, 6, 3, 3), scale=0.3).astype(dtype)),
        stored("b2", random.normal(size=WIDTH, scale=0.1).astype(dtype)),
        stored("head", np.asarray(HEAD, dtype=dtype)),
        stored("bias", np.asarray(BIAS, dtype=dtype)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["h1"]),
        helper.make_node("Conv", ["h1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "head", "bias"], ["logits"], transB=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, (batch, 1, SIDE, SIDE))],
        [helper.make_tensor_value_info("logits", kind, (batch, KINDS))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes in three directions with noise, and which direction."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, KINDS, count)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    patterns = np.stack([np.sin(across), np.sin(down), np.sin(across + down)]).astype(np.float32)
    size = random.uniform(0.5, 1.5, (count, 1, 1, 1)).astype(np.float32)
    noise = random.normal(scale=0.3, size=(count, 1, SIDE, SIDE)).astype(np.float32)
    return patterns[labels][:, None] * size + noise, labels


def with_outputs(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """A copy that gives these values, inner ones too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    known |= {value.name: value for value in model.graph.output}
    chosen = [known[name] for name in names]
    del copy.graph.output[:]
    copy.graph.output.extend(chosen)
    return copy


def linear(width: int, outputs: int = 2, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """An embedding that is the input itself, and logits that are its first columns."""
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["embedding"]),
            helper.make_node("Gather", ["x", "first"], ["logits"], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info("x", dtype, ("N", width))],
        [
            helper.make_tensor_value_info("embedding", dtype, ("N", width)),
            helper.make_tensor_value_info("logits", dtype, ("N", outputs)),
        ],
        [stored("first", np.arange(outputs, dtype=np.int64))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def members(classes: int, count: int) -> onnx.ModelProto:
    """Logits of an ensemble, (N, classes, members), which are the input."""
    shape = ("N", classes, count)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["logits"])],
        "members",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
