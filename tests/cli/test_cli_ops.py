"""ops: what a model's operators are, whether its p-values are exact, and an exit code for what is missing."""

from __future__ import annotations

import onnx
import pytest

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
    assert "bracketed" in text.splitlines()[-1]


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
