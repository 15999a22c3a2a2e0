"""ops: what a model's operators are, whether its p-values are exact, and an exit code for what is missing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import selkit as library
from selkit.graph.ops.table import supported_operators


def save(tmp_path, body: str, shape: str = "1, 4", opsets: str = '"" : 17'):
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: [{opsets}]>
        agraph (float[{shape}] x) => (float[{shape}] y) {{ {body} }}""")
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_kinds_are_those_at_their_place(selkit, tmp_path):
    path = save(
        tmp_path,
        "r = Relu(x) two = Constant<value_float = 2.0>() a = Mul(r, two) b = Mul(a, r) y = Add(b, b)",
    )
    ended = selkit("ops", path, "--json")
    found = {(op["operator"], op["kind"]): op["nodes"] for op in ended.json["operators"]}
    assert found == {
        ("Add", "affine"): 1,
        ("Constant", "constant"): 1,
        ("Mul", "affine"): 1,  # by a constant
        ("Mul", "product"): 1,  # of two values that depend on the input
        ("Relu", "piecewise linear"): 1,
    }
    assert (ended.code, ended.json["supported"]) == (0, True)
    text = selkit("ops", path).out
    assert text.splitlines()[0].split() == ["operator", "nodes", "kind", "along", "a", "line", "attribution"]
    assert "bracketed" in text


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("y = Relu(x)", "are exact"),
        ("r = Relu(x) y = Sigmoid(r)", "are exact"),  # undone at the end
        ("s = Tanh(x) t = Neg(s) y = Abs(t)", "are bracketed"),
        ("y = Sign(x)", "cannot be tested"),
    ],
)
def test_whether_p_values_are_exact(selkit, tmp_path, body, verdict):
    ended = selkit("ops", save(tmp_path, body))
    assert ended.code == 0
    assert verdict in ended.out


def test_open_sizes_need_a_shape(selkit, tmp_path):
    path = save(tmp_path, "y = Relu(x)", shape="N, C")
    assert "say --shape" in selkit("ops", path).out
    assert "are exact" in selkit("ops", path, "--shape", "1,4").out
    assert "cannot be tested at this shape" in selkit("ops", path, "--shape", "1,4,4").out
    assert "--output-index is 4; the model has 1" in selkit("ops", path, "--output-index", "4").complaint


def test_what_is_not_supported_is_listed_and_fails(selkit, tmp_path):
    path = save(tmp_path, "r = Relu(x) z = own.Blur(r) y = own.Blur(z)", opsets='"" : 17, "own" : 1')
    ended = selkit("ops", path, "--json")
    assert ended.code == 4
    assert [(op["operator"], op["nodes"], op["supported"]) for op in ended.json["operators"]] == [
        ("Blur", 2, False),
        ("Relu", 1, True),
    ]
    assert "not supported" in ended.json["operators"][0]["reason"]
    printed = selkit("ops", path)
    assert (printed.code, printed.err) == (4, "")
    assert "Blur      2      no  this operator is not supported" in printed.out


def test_without_a_model_it_is_the_table_of_the_registry(selkit):
    names = [row.name for row in supported_operators()]
    assert [line.split()[0] for line in selkit("ops").out.splitlines()] == names
    assert [op["name"] for op in selkit("ops", "--json").json["operators"]] == names


def test_what_is_no_model(selkit, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model at all")
    ended = selkit("ops", tmp_path / "m.onnx")
    assert ended.code == 1
    assert "m.onnx" in ended.complaint


HEATS = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1, 1, 12, 12] x) => (float[1, 2, 6, 6] heat, float[1, 5] logits, float[1, 1, 12, 12] full,
                                   int64[1, 5] order, float[1, 4] fixed, float[1, 3, 1, 1] pooled)
<float[2, 1, 3, 3] w = {0.3,-0.2,0.1,0.4,0.9,0.2,-0.3,0.1,0.2,-0.3,0.2,0.1,0.4,-0.9,0.2,0.3,0.1,0.2},
 float[3, 2, 1, 1] v = {0.5, 0.2, -0.3, 0.4, 0.1, 0.7}, float[144, 5] m, float[1, 4] four>
{
    heat = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)
    flat = Flatten(x)
    scores = MatMul(flat, m)
    logits = Softmax(scores)
    bent = Relu(x)
    full = Sigmoid(bent)
    order = Cast<to = 7>(logits)
    fixed = Identity(four)
    each = Conv(heat, v)
    pooled = GlobalAveragePool(each)
}"""


@pytest.fixture
def heats(tmp_path):
    model = onnx.parser.parse_model(HEATS)
    generator = np.random.default_rng(0)
    for name, shape in (("m", (144, 5)), ("four", (1, 4))):
        kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
        del model.graph.initializer[:]
        values = generator.normal(size=shape).astype(np.float32)
        model.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(values, name)])
    onnx.save(model, tmp_path / "heats.onnx")
    return tmp_path / "heats.onnx"


def test_each_output_is_offered_for_what_it_can_be_used_for_and_nothing_else(selkit, heats):
    found = {use["output"]: use for use in selkit("ops", heats, "--json").json["outputs"]}
    kinds = ("score_map", "class_scores", "embedding", "explanation")
    assert {name: [kind for kind in kinds if use[kind]] for name, use in found.items()} == {
        "heat": ["score_map", "embedding", "explanation"],
        "logits": ["class_scores", "embedding", "explanation"],
        "full": ["score_map", "embedding", "explanation"],
        "order": [],
        "fixed": [],
        "pooled": ["class_scores", "embedding", "explanation"],
    }
    assert {name: use["p_values"] for name, use in found.items() if use["p_values"]} == {
        "heat": "exact",
        "full": "exact",
    }
    assert "probabilities" in found["logits"]["class_scores"]
    references = np.random.default_rng(1).normal(size=(2, 1, 12, 12)).astype(np.float32)
    for name, told in (("heat", {"reduce": "mean"}), ("full", {"reduce": "mean"}), ("pooled", {})):
        assert found[name]["explanation"].endswith("say reduce='mean'") == bool(told)
        explained = library.Explainer(heats, references, output=name, threads=1, **told).explain(references)
        assert np.abs(explained.additivity_error).max() < 1e-5
    assert "channel=0, resize='linear'" in found["heat"]["call"]
    assert "channel" not in found["full"]["call"]
    assert "int64" in found["order"]["reason"]
    assert "does not depend" in found["fixed"]["reason"]
    text = selkit("ops", heats).out
    assert text.count("are exact") == 2
    one = selkit("ops", heats, "--output-index", "1")
    assert "are exact" not in one.out
    assert [
        use["output"] for use in selkit("ops", heats, "--output-index", "1", "--json").json["outputs"]
    ] == ["logits"]


def test_the_call_that_is_advised_works_as_it_is(selkit, heats):
    x = np.random.default_rng(1).normal(size=(1, 1, 12, 12))
    tried = 0
    for use in selkit("ops", heats, "--json").json["outputs"]:
        if use["call"]:
            result = eval(use["call"], {"selkit": library, "x": x})  # noqa: S307 - our own words
            assert 0 < result.p_value < 1
            assert result.exact == (use["p_values"] == "exact")
            assert use["call"] in selkit("ops", heats).out
            tried += 1
    assert tried == 2


def test_a_model_of_a_thousand_nodes_is_told_of(selkit, tmp_path):
    """Large images would make torch import its compiler, or run the model, to find shapes."""
    layers = []
    for place in range(333):
        source = "x" if place == 0 else f"s{place - 1}"
        layers.append(f"c{place} = Conv<pads = [1, 1, 1, 1]>({source}, w)  r{place} = Relu(c{place})")
        layers.append(f"s{place} = Add(r{place}, {source})")
    body = " ".join([*layers, "y = Sigmoid(s332)"])
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 8, 256, 256] x) => (float[1, 8, 256, 256] y) <float[8, 8, 3, 3] w> {{ {body} }}""")
    weights = (0.1 * np.random.default_rng(0).normal(size=(8, 8, 3, 3))).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "long.onnx")
    threads = torch.get_num_threads()
    ended = selkit("ops", tmp_path / "long.onnx", "--json")
    assert torch.get_num_threads() == threads
    assert sum(op["nodes"] for op in ended.json["operators"]) == 1000
    assert ended.json["outputs"][0]["p_values"] == "exact"
