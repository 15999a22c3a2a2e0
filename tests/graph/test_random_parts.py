"""Generated attributes of operators that are made of others: what onnxruntime runs, selkit runs too."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from test_random_attributes import compare, numbers

some = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
GATES = {"RNN": (1, 1), "GRU": (3, 2), "LSTM": (4, 3)}
ACTIVATIONS = (
    "Relu",
    "Tanh",
    "Sigmoid",
    "Softsign",
    "Softplus",
    "LeakyRelu",
    "HardSigmoid",
    "Elu",
)


@some
@given(data=st.data(), name=st.sampled_from(list(GATES)))
def test_recurrent_layers(data, name: str):
    gates, functions = GATES[name]
    direction = data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    both = 2 if direction == "bidirectional" else 1
    length, batch, inputs, hidden = (data.draw(st.integers(1, high)) for high in (5, 3, 3, 3))
    names, stored = ["x", "w", "r"], {}
    # small weights: unbounded gates multiply from step to step, and single precision overflows
    stored["w"] = 0.3 * numbers(both, gates * hidden, inputs, seed=1)
    stored["r"] = 0.3 * numbers(both, gates * hidden, hidden, seed=2)
    optional = {
        "b": 0.3 * numbers(both, 2 * gates * hidden, seed=3),
        "n": np.array(data.draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch)), np.int32),
        "h": numbers(both, batch, hidden, seed=4),
    }
    if name == "LSTM":
        optional |= {"c": numbers(both, batch, hidden, seed=5), "p": numbers(both, 3 * hidden, seed=6)}
    for key, value in optional.items():
        given = data.draw(st.booleans())
        names.append(key if given else "")
        stored |= {key: value} if given else {}
    attributes = {"hidden_size": hidden, "direction": direction}
    if data.draw(st.booleans()):
        attributes["activations"] = [data.draw(st.sampled_from(ACTIVATIONS)) for _ in range(both * functions)]
    if data.draw(st.booleans()):
        attributes["clip"] = 0.8
    if name == "GRU":
        attributes["linear_before_reset"] = data.draw(st.integers(0, 1))
    node = helper.make_node(name, names, ["y"], **attributes)
    compare(node, numbers(2, length, batch, inputs), data.draw(st.sampled_from([7, 14, 22])), **stored)


@some
@given(
    mode=st.sampled_from(["linear", "nearest", "cubic"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    corners=st.integers(0, 1),
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    reach=st.sampled_from([1.0, 1.5, 4.0]),
    seed=st.integers(0, 99),
)
def test_grids(mode, padding, corners, batch, size, reach, seed):
    grid = np.random.default_rng(seed).uniform(-reach, reach, (batch, 3, 2, 2)).astype(np.float32)
    node = helper.make_node(
        "GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding, align_corners=corners
    )
    compare(node, numbers(2, batch, 2, *size), 22, g=grid)


@some
@given(
    data=st.data(),
    name=st.sampled_from(["GatherElements", "ScatterElements"]),
    reduction=st.sampled_from(["none", "add"]),
)
def test_elements_by_index(data, name: str, reduction: str):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    part = [data.draw(st.integers(1, size)) for size in shape]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if reduction == "none" and name == "ScatterElements":
        # each place once: which of several writers wins is not said
        order = np.argsort(rng.random(shape), axis=axis)
        index = order[tuple(slice(0, size) for size in part)]
    else:
        index = rng.integers(-shape[axis], shape[axis], part)
    if name == "GatherElements":
        node, more = helper.make_node(name, ["x", "i"], ["y"], axis=axis), {}
    else:
        node = helper.make_node(name, ["x", "i", "u"], ["y"], axis=axis, reduction=reduction)
        more = {"u": numbers(*part, seed=7)}
    compare(node, numbers(2, *shape), 18, i=index.astype(np.int64), **more)


@some
@given(data=st.data(), batch=st.integers(0, 2), opset=st.sampled_from([12, 13]))
def test_slices_by_index(data, batch: int, opset: int):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=batch + 1, max_size=4))
    depth = data.draw(st.integers(1, len(shape) - batch))
    outer = [*shape[:batch], data.draw(st.integers(1, 3))]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    limits = np.array(shape[batch : batch + depth])
    index = rng.integers(-limits, limits, (*outer, depth))
    node = helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=batch)
    compare(node, numbers(2, *shape), opset, i=index)


@some
@given(data=st.data(), largest=st.integers(0, 1))
def test_largest_elements(data, largest: int):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    node = helper.make_node("TopK", ["x", "k"], ["y", "j"], axis=axis, largest=largest)
    compare(node, numbers(2, *shape), 11, k=np.array([k]))


@some
@given(
    data=st.data(),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    causal=st.integers(0, 1),
    masked=st.sampled_from(["no", "bool", "float"]),
    softcap=st.sampled_from([0.0, 1.5]),
    scale=st.sampled_from([None, 0.3]),
)
def test_attention(data, heads, causal, masked, softcap, scale):
    own, shared = heads
    queries, keys, size, wide = (data.draw(st.integers(1, 4)) for _ in range(4))
    stored = {"k": numbers(2, keys, shared * size, seed=1), "v": numbers(2, keys, shared * wide, seed=2)}
    names = ["x", "k", "v"]
    if masked != "no":
        allowed = np.random.default_rng(data.draw(st.integers(0, 99))).random((queries, keys)) < 0.7
        allowed[:, 0] = True
        added = np.where(allowed, numbers(queries, keys, seed=3), -np.inf).astype(np.float32)
        stored["m"] = allowed if masked == "bool" else added
        names.append("m")
    attributes = {"q_num_heads": own, "kv_num_heads": shared, "is_causal": causal, "softcap": softcap}
    if scale is not None:
        attributes["scale"] = scale
    node = helper.make_node("Attention", names, ["y"], **attributes)
    compare(node, numbers(2, 2, queries, own * size), 23, **stored)
