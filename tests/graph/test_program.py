"""Compiling, running, extending and fusing programs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from selkit.errors import InternalError, InvalidInputError, InvalidTypeError, UnsupportedModelError
from selkit.graph import Graph, Program, ops
from selkit.graph.ops.base import Kind

HEAD = '<ir_version: 8, opset_import: ["" : 20]>'


def graph(body: str, signature: str = "(float[N, 4] x) => (float[N, 4] y)", stored: str = "") -> Graph:
    stored = f"<{stored}>" if stored else ""
    return Graph.load(onnx.parser.parse_model(f"{HEAD} agraph {signature} {stored} {{ {body} }}"))


def names(program: Program) -> list[str]:
    return [type(step.operator).__name__ for step in program.steps]


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_a_graph_says_what_it_has():
    made = graph("y = Add(x, w)", stored="float[1] w = {2.0}")
    assert made.inputs[0].name == "x"
    assert made.inputs[0].shape == (None, 4)
    assert made.inputs[0].dtype == torch.float32
    assert made.outputs[0].name == "y"
    assert dict(made.opset) == {"": 20}
    assert made.initializers["w"].tolist() == [2.0]
    assert repr(made) == "Graph(x -> y, 1 nodes, opset 20)"
    with pytest.raises(TypeError):
        made.initializers["w"] = torch.zeros(1)  # type: ignore[index]


def test_initializers_that_are_inputs_too_are_no_inputs():
    made = onnx.parser.parse_model(
        f"{HEAD} agraph (float[4] x, float[1] w) => (float[4] y) {{ y = Add(x, w) }}"
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "w"))
    assert [spec.name for spec in Graph.load(made).inputs] == ["x"]


def test_inner_values_can_be_outputs_and_inputs():
    made = graph("a = Neg(x)  b = Exp(a)  y = Add(a, b)")
    program = made.compile({"x": (1, 4)}, outputs=["b", "a"])
    assert program.outputs == ("b", "a")
    assert names(program) == ["Neg", "Exp"]
    values = x(3, 1, 4)
    torch.testing.assert_close(program.run({"x": values})["b"], (-values).exp())
    from_inside = made.compile({"a": (1, 4)}, live=["a"])
    assert dict(from_inside.inputs) == {"a": (1, 4)}
    torch.testing.assert_close(from_inside.run({"a": values})["y"], values + values.exp())


def test_steps_say_what_is_live_and_when_a_value_can_go():
    program = graph("a = Mul(x, w)  b = Relu(a)  y = Mul(a, b)", stored="float[4] w = {1.,2.,3.,4.}").compile(
        {"x": (1, 4)}
    )
    assert [step.kind for step in program.steps] == [Kind.AFFINE, Kind.PIECEWISE_LINEAR, Kind.PRODUCT]
    assert [step.live for step in program.steps] == [(True, False), (True,), (True, True)]
    assert [step.release for step in program.steps] == [("x",), (), ("a", "b")]
    assert set(program.constants) == {"w"}
    assert program.constants["w"].shape == (1, 4)
    assert program.constants["w"].dtype == torch.float64
    assert program.shapes["b"] == (1, 4)


def test_several_inputs_run_together_or_are_fixed():
    made = graph("y = Sub(x, z)", "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y)")
    left, right = x(3, 1, 4), x(3, 1, 4)
    both = made.compile({"x": (1, 4), "z": (1, 4)})
    torch.testing.assert_close(both.run({"x": left, "z": right})["y"], left - right)
    fixed = made.compile({"x": (1, 4)}, constants={"z": right[0]})
    torch.testing.assert_close(fixed.run({"x": left})["y"], left - right[:1])
    with pytest.raises(InvalidInputError, match=r"input\(s\) z are neither live nor given in constants"):
        made.compile({"x": (1, 4)}, live=["x"])


def test_constants_may_replace_inner_values():
    made = graph("a = RandomNormalLike(x)  y = Add(x, a)")
    program = made.compile({"x": (1, 4)}, constants={"a": torch.full((1, 4), 2.0)})
    assert program.run({"x": torch.zeros(1, 1, 4).double()})["y"].tolist() == [[[2.0] * 4]]


def test_random_numbers_are_fixed_by_the_seed():
    made = graph(
        "a = RandomNormalLike(x)  b = RandomUniformLike<low=5.0, high=6.0>(x)  c = Add(a, b)  y = Add(x, c)"
    )

    def noise(seed: int, outputs: list[str] | None = None, size: int = 4) -> torch.Tensor:
        program = made.compile({"x": (1, size)}, outputs, seed=seed)
        return next(iter(program.run({"x": torch.zeros(2, 1, size).double()}).values()))

    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(2))
    assert torch.equal(noise(1)[0], noise(1)[1])  # the same for all points of a stack
    normal, uniform = noise(3, ["a"]), noise(3, ["b"])
    torch.testing.assert_close(normal + uniform, noise(3))  # whatever else is computed
    assert not torch.equal(normal, uniform - 5)
    assert float(uniform.min()) >= 5
    assert float(uniform.max()) <= 6
    body = "y = RandomNormalLike<mean=1.0, scale=2.0>(x)"
    large = graph(body, "(float[N] x) => (float[N] y)").compile({"x": (20000,)}, seed=0)
    sample = large.run({"x": torch.zeros(1, 20000).double()})["y"]
    assert abs(float(sample.mean()) - 1) < 0.06
    assert abs(float(sample.std()) - 2) < 0.04
    with pytest.raises(InvalidInputError, match=r"draws random numbers .* pass a seed to fix them"):
        made.compile({"x": (1, 4)})


def test_a_seed_in_the_model_is_used_and_can_be_replaced():
    made = graph("a = RandomNormal<shape=[1, 4], seed=7.0>()  y = Add(x, a)")
    first, second = made.compile({"x": (1, 4)}), made.compile({"x": (1, 4)})
    other = made.compile({"x": (1, 4)}, seed=0)
    point = {"x": torch.zeros(1, 1, 4).double()}
    assert torch.equal(first.run(point)["y"], second.run(point)["y"])
    assert not torch.equal(first.run(point)["y"], other.run(point)["y"])


def test_what_does_nothing_vanishes():
    body = """a = Identity(x)  b = Dropout(a)  c = Cast<to=11>(b)  s = Shape(x)  d = Reshape(c, s)
        e = Expand(d, s)  f = Transpose<perm=[0, 1]>(e)  g = Neg(f)  y = Identity(g)"""
    program = graph(body).compile({"x": (1, 4)})
    assert names(program) == ["Neg"]
    assert program.steps[0].inputs == ("x",)
    assert program.steps[0].outputs == ("y",)


def test_outputs_keep_their_names():
    program = graph("a = Neg(x)  b = Identity(a)  y = Identity(a)  z = Identity(x)").compile(
        {"x": (1, 4)}, outputs=["a", "b", "y", "z", "x"]
    )
    values = x(2, 1, 4)
    results = program.run({"x": values})
    assert list(results) == ["a", "b", "y", "z", "x"]
    for name, expected in {"a": -values, "b": -values, "y": -values, "z": values, "x": values}.items():
        assert torch.equal(results[name], expected)


def test_outputs_that_depend_on_nothing_are_expanded():
    program = graph("y = Constant<value_floats=[1.0, 2.0]>()").compile({"x": (1, 4)})
    assert program.steps == ()
    result = program.run({} if not program.inputs else {"x": x(3, 1, 4)})["y"]
    assert result.shape[1:] == (2,)


def test_shape_arithmetic_rounds_as_the_model_does():
    # 5 * float32(1.4) is 7 in float32 and below it in float64
    body = """s = Shape(x)  f = Cast<to=1>(s)  k = Constant<value_floats=[1.0, 1.4]>()  g = Mul(f, k)
        h = Floor(g)  i = Cast<to=7>(h)  y = Expand(w, i)"""
    program = graph(body, "(float[N, 5] x) => (float y)", "float w = {1.0}").compile({"x": (1, 5)})
    assert program.shapes["y"] == (1, 7)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shapes": {}}, "shapes has no shape for 'x'"),
        ({"shapes": {"x": (1, 5)}}, r"shapes: 'x' has shape \(1, 5\), but the model wants \(\?, 4\)"),
        ({"shapes": {"x": (4,)}}, r"but the model wants \(\?, 4\)"),
        ({"shapes": {"x": (-1, 4)}}, "may not be negative"),
        ({"shapes": {"x": (2**40, 4)}}, "elements over"),
        ({"shapes": {"z": (1, 4)}}, r"shapes: the model has no value\(s\) z"),
        ({"shapes": {"x": (1, 4)}, "outputs": ["q"]}, r"outputs: the model has no value\(s\) q"),
        ({"shapes": {"x": (1, 4)}, "outputs": []}, "outputs is empty"),
        ({"shapes": {"x": (1, 4)}, "live": ["q"]}, r"live: the model has no value\(s\) q"),
        (
            {"shapes": {"x": (1, 4)}, "constants": {"q": torch.ones(1)}},
            r"constants: the model has no value\(s\) q",
        ),
    ],
)
def test_wrong_names_and_shapes_are_refused(options: dict, text: str):
    with pytest.raises(InvalidInputError, match=text):
        graph("y = Neg(x)").compile(**options)


def test_a_fault_of_an_operator_is_no_refusal_of_the_model(monkeypatch):
    def broken(self, *inputs):
        raise KeyError("x")

    monkeypatch.setattr(type(graph("y = Relu(x)").nodes[0].operator), "forward", broken)
    monkeypatch.setattr(type(graph("y = Relu(x)").nodes[0].operator), "outline", broken)
    with pytest.raises(InternalError, match=r"error of selkit.*first: Relu.*KeyError"):
        graph("[first] y = Relu(x)").compile({"x": (1, 4)})


def test_shapes_that_do_not_fit_are_reported_with_their_node():
    made = graph(
        "[first] a = MatMul(x, w)  [second] b = Reshape(x, s)  y = Add(a, b)",
        stored="float[3,1] w = {1.,2.,3.}, int64[1] s = {3}",
    )
    with pytest.raises(UnsupportedModelError) as caught:
        made.compile({"x": (1, 4)})
    assert [node.name for node in caught.value.nodes] == ["first", "second"]
    assert "its inputs have the shapes (1, 4), (3, 1)" in caught.value.nodes[0].reason


@pytest.mark.parametrize(
    "body",
    [
        "y = NonZero(x)",
        "a = ReduceMax<keepdims=0>(x)  z = Constant<value_float=0.0>()  y = Range(z, a, a)",
        "a = Cast<to=7>(x)  b = Reshape(a, f)  y = ConstantOfShape(b)",
    ],
)
def test_operators_on_constants_refuse_what_is_live(body: str):
    made = graph(body, "(float[1, 4] x) => (float y)", "int64[1] f = {-1}")
    with pytest.raises(UnsupportedModelError, match="must not depend on the model's input"):
        made.compile({"x": (1, 4)})


def test_parameters_must_not_depend_on_the_input():
    made = graph("i = Cast<to=7>(x)  y = Gather(x, i)")
    with pytest.raises(
        UnsupportedModelError, match=r"its input 1 \(i\) must not depend on the model's input"
    ):
        made.compile({"x": (1, 4)})


def test_run_checks_what_it_is_given():
    program = graph("y = Neg(x)").compile({"x": (1, 4)})
    for wrong, text in (
        ({}, "inputs are \\[\\]; expected \\['x'\\]"),
        ({"x": x(1, 4)}, r"has shape \(1, 4\); expected \('S', 1, 4\)"),
        ({"x": x(2, 1, 5)}, r"has shape \(2, 1, 5\)"),
    ):
        with pytest.raises(InvalidInputError, match=text):
            program.run(wrong)
    with pytest.raises(InvalidTypeError, match=r"input 'x' is torch.float32 .* works in torch.float64"):
        program.run({"x": x(2, 1, 4).float()})
    two = graph("y = Sub(x, z)", "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y)")
    with pytest.raises(InvalidInputError, match=r"stacks of different lengths: \[2, 3\]"):
        two.compile({"x": (1, 4), "z": (1, 4)}).run({"x": x(2, 1, 4), "z": x(3, 1, 4)})


def test_nan_and_infinity_pass_through_and_stay_in_their_slice():
    program = graph("a = Relu(x)  y = Add(a, x)").compile({"x": (1, 4)})
    values = x(3, 1, 4)
    expected = program.run({"x": values})["y"]
    broken = values.clone()
    broken[1, 0, 2], broken[1, 0, 3] = torch.nan, torch.inf
    result = program.run({"x": broken})["y"]
    assert torch.equal(result[[0, 2]], expected[[0, 2]])
    assert torch.isnan(result[1, 0, 2])
    assert torch.isinf(result[1, 0, 3])


def test_an_empty_stack_gives_empty_outputs():
    program = graph("a = Relu(x)  y = Add(a, x)").compile({"x": (1, 4)})
    assert program.run({"x": x(0, 1, 4)})["y"].shape == (0, 1, 4)


def test_programs_can_be_extended_and_pruned():
    program = graph("h = Relu(x)  y = Neg(h)").compile({"x": (1, 4)})
    longer, difference = program.extend(ops.Sub(), ["y", "x"])
    longer, size = longer.extend(ops.Abs(), [difference])
    longer, scaled = longer.extend(ops.Mul(), [size, torch.tensor([2.0])], prefix="scaled")
    assert (difference, size, scaled) == ("post_1", "post_2", "scaled_1")
    values = x(3, 1, 4)
    expected = 2 * (-values.relu() - values).abs()
    results = longer.run({"x": values})
    assert list(results) == ["y", "post_1", "post_2", "scaled_1"]
    torch.testing.assert_close(results[scaled], expected)
    final = longer.prune([scaled])
    assert final.outputs == (scaled,)
    torch.testing.assert_close(final.run({"x": values})[scaled], expected)
    assert [step.release for step in final.steps][-3:] == [("x", "y"), ("post_1",), ("post_2",)]
    assert names(final.prune(["y"])) == ["Relu", "Neg"]
    assert names(program) == ["Relu", "Neg"]  # unchanged


def test_extending_checks_names_and_shapes():
    program = graph("y = Neg(x)").compile({"x": (1, 4)})
    with pytest.raises(InvalidInputError, match="the program has no value 'q'"):
        program.extend(ops.Abs(), ["q"])
    with pytest.raises(InvalidInputError, match=r"post: .* \(its inputs have the shapes \(1, 4\), \(3,\)\)"):
        program.extend(ops.Add(), ["y", torch.ones(3)])
    with pytest.raises(InvalidInputError, match=r"the program has no value\(s\) q"):
        program.prune(["q"])


def test_programs_change_their_dtype():
    program = graph(
        "a = Reshape(x, s)  y = Mul(a, w)", stored="float[1] w = {0.1}, int64[2] s = {2, 2}"
    ).compile({"x": (1, 4)})
    short = program.to(torch.float32)
    assert short.constants["w"].dtype == torch.float32
    assert short.constants["s"].dtype == torch.int64
    assert short.run({"x": x(2, 1, 4).float()})["y"].dtype == torch.float32
    assert program.constants["w"].dtype == torch.float64
    # the model's number is float32's 0.1
    assert float(program.constants["w"]) == float(np.float32(0.1))


def test_normalization_joins_the_convolution_before_it():
    stored = ", ".join(f"float[{size}] {name}" for name, size in (("s", 6), ("b", 6), ("m", 6), ("v", 6)))
    rng = np.random.default_rng(0)
    for text, weights in (
        ("Conv<group=2, pads=[1, 1, 0, 0]>(x, w)", (6, 2, 3, 3)),
        ("Conv(x, w, s)", (6, 4, 1, 1)),
        ("ConvTranspose<group=2, strides=[2, 2]>(x, w, s)", (4, 3, 2, 2)),
    ):
        body = f"a = {text}  c = BatchNormalization(a, s, b, m, v)  d = Mul(c, f)  y = Add(d, g)"
        made = onnx.parser.parse_model(
            f"{HEAD} agraph (float[1, 4, 5, 5] x) => (float y) <{stored}> {{ {body} }}"
        )
        del made.graph.value_info[:]
        shapes = {"w": weights, **dict.fromkeys("sbmv", (6,)), "f": (6, 1, 1), "g": ()}
        for name, shape in shapes.items():
            value = rng.uniform(0.5, 1, shape).astype(np.float32)
            made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        loaded = Graph.load(made)
        whole = loaded.compile({"x": (1, 4, 5, 5)})
        split = loaded.compile({"x": (1, 4, 5, 5)}, outputs=["a", "c", "d", "y"])
        assert len(whole.steps) == 1
        assert len(split.steps) == 4
        values = {"x": x(3, 1, 4, 5, 5)}
        torch.testing.assert_close(whole.run(values)["y"], split.run(values)["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("a = Sigmoid(x)  y = Mul(x, a)", "Swish"),
        ("a = Sigmoid(x)  y = Mul(a, x)", "Swish"),
        ("a = Softplus(x)  b = Tanh(a)  y = Mul(x, b)", "Mish"),
        ("a = HardSigmoid<alpha=0.16666667>(x)  y = Mul(x, a)", "HardSwish"),
        ("a = Div(x, r)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)", "Gelu"),
        ("a = Div(x, r)  b = Erf(a)  c = Add(one, b)  h = Mul(half, x)  y = Mul(h, c)", "Gelu"),
        ("a = Mul(x, q)  b = Erf(a)  c = Add(b, one)  h = Mul(x, c)  y = Mul(half, h)", "Gelu"),
    ],
)
def test_exported_activations_become_one_smooth_step(body: str, name: str):
    numbers = {"r": 2**0.5, "q": 0.5**0.5, "one": 1.0, "half": 0.5}
    stored = ", ".join(f"float {name} = {{{value}}}" for name, value in numbers.items())
    loaded = graph(body, stored=stored)
    program = loaded.compile({"x": (1, 4)})
    assert names(program) == [name]
    inner = [node.outputs[0] for node in loaded.nodes]
    parts = loaded.compile({"x": (1, 4)}, outputs=inner)
    values = {"x": 3 * x(5, 1, 4)}
    torch.testing.assert_close(program.run(values)["y"], parts.run(values)["y"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "body",
    [
        "a = Sigmoid(x)  n = Neg(x)  y = Mul(n, a)",
        "a = HardSigmoid(x)  y = Mul(x, a)",
        "a = Div(x, half)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)",
        "a = Div(x, r)  b = Erf(a)  c = Add(b, half)  d = Mul(x, c)  y = Mul(d, half)",
        "a = Div(x, r)  b = Erf(a)  c = Add(b, one)  y = Mul(x, c)",
    ],
)
def test_what_only_looks_like_an_activation_stays(body: str):
    stored = "float r = {1.4142135623730951}, float one = {1.0}, float half = {0.5}"
    loaded = graph(body, stored=stored)
    assert len(loaded.compile({"x": (1, 4)}).steps) == len(loaded.nodes)


def test_pairs_of_transposes_cancel_or_join():
    signature = "(float[2, 3, 4] x) => (float y)"
    pair = graph("a = Transpose<perm=[2, 0, 1]>(x)  b = Transpose<perm=[1, 2, 0]>(a)  y = Neg(b)", signature)
    assert names(pair.compile({"x": (2, 3, 4)})) == ["Neg"]
    joined = graph("a = Transpose<perm=[2, 0, 1]>(x)  y = Transpose<perm=[2, 0, 1]>(a)", signature)
    program = joined.compile({"x": (2, 3, 4)})
    values = x(2, 2, 3, 4)
    assert len(program.steps) == 1
    assert torch.equal(program.run({"x": values})["y"], values.permute(0, 2, 3, 1))
    back = graph("a = Transpose<perm=[2, 0, 1]>(x)  y = Transpose<perm=[1, 2, 0]>(a)", signature)
    assert torch.equal(back.compile({"x": (2, 3, 4)}).run({"x": values})["y"], values)


def test_values_read_elsewhere_are_not_joined():
    body = "a = Conv(x, w)  c = Mul(a, s)  y = Add(c, a)"
    made = onnx.parser.parse_model(f"{HEAD} agraph (float[1, 2, 3, 3] x) => (float y) {{ {body} }}")
    for name, shape in (("w", (2, 2, 1, 1)), ("s", (1,))):
        value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    assert names(Graph.load(made).compile({"x": (1, 2, 3, 3)})) == ["Conv", "Mul", "Add"]


def test_decomposed_programs_have_no_composites():
    program = graph("a = Softmax(x)  y = LogSoftmax(a)").compile({"x": (1, 4)}, decompose=True)
    assert all(step.kind is not Kind.COMPOSITE for step in program.steps)
    values = 300 * x(3, 1, 4)
    result = program.run({"x": values})["y"]
    torch.testing.assert_close(result, values.softmax(-1).log_softmax(-1))
