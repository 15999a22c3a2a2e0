"""Branches and loops that are decided when a model is compiled, beside onnxruntime."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from selkit.errors import FileFormatError, UnsupportedModelError
from selkit.graph import Graph


def parse(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def agree(model: onnx.ModelProto | bytes, feeds: dict[str, np.ndarray], live: list[str], onnxruntime_of):
    """Compile with ``live`` inputs, the others constant, and compare with onnxruntime at each point."""
    graph = Graph.load(model)
    constants = {
        name: torch.from_numpy(np.asarray(value[0])) for name, value in feeds.items() if name not in live
    }
    shapes = {name: feeds[name].shape[1:] for name in live}
    made = graph.compile(shapes, live=live, constants=constants)
    actual = made.run({name: torch.from_numpy(feeds[name]).double() for name in live})
    count = len(next(iter(feeds.values())))
    expected = onnxruntime_of(
        model, {name: np.repeat(v[:1], count, 0) if name not in live else v for name, v in feeds.items()}
    )
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        np.testing.assert_allclose(actual[name].numpy(), value, rtol=1e-5, atol=1e-5)
    return made


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BY_SHAPE = """agraph (float[N, L] x) => (float[M, K] y)
    <int64 one = {1}, int64 six = {6}, float[2] pad = {1, 2}> {
        s = Shape(x)  l = Gather(s, one)  c = Less(l, six)  h = Relu(x)
        y = If(c) <
            then_branch = short () => (float[P, Q] t) { a = Neg(h)  t = Mul(a, a) },
            else_branch = long () => (float[P, Q] t) <float[1] w = {3}> { a = Mul(h, w)  t = Transpose(a) }
        >
    }"""


@pytest.mark.parametrize("length", [4, 8])
def test_a_branch_is_taken_by_the_shape(length: int, onnxruntime_of):
    made = agree(parse(BY_SHAPE), {"x": numbers(3, 2, length)}, ["x"], onnxruntime_of)
    names = [type(step.operator).__name__ for step in made.steps]
    assert names == (["Relu", "Neg", "Mul"] if length == 4 else ["Relu", "Mul", "Transpose"])


BY_INPUT = """agraph (float[1, 4] x, int64 sr) => (float y)
    <int64 wide = {16000}> {
        c = Equal(sr, wide)
        y = If(c) <
            then_branch = a () => (float[P] t) <int64[1] s = {-1}> { t = Reshape(x, s) },
            else_branch = b () => (float[P, Q] t) {
                n = Not(c)
                t = If(n) <then_branch = c1 () => (float[P, Q] u) { u = Abs(x) },
                           else_branch = c2 () => (float[P, Q] u) { u = Neg(x) }>
            }
        >
    }"""


@pytest.mark.parametrize(("rate", "shape"), [(16000, (4,)), (8000, (1, 4))])
def test_a_branch_is_taken_by_an_input_that_is_held(rate: int, shape: tuple[int, ...], onnxruntime_of):
    feeds = {"x": numbers(3, 1, 4), "sr": np.array([rate])}
    made = agree(parse(BY_INPUT), feeds, ["x"], onnxruntime_of)
    assert made.shapes["y"] == shape  # branches may differ in rank
    # real numbers, as tests hand them over, become what the model wants
    held = {"sr": torch.tensor(float(rate), dtype=torch.float64)}
    assert Graph.load(parse(BY_INPUT)).compile({"x": (1, 4)}, live=["x"], constants=held).shapes["y"] == shape


def test_an_unknown_condition_says_what_to_do():
    model = parse("""agraph (float[1, 4] x) => (float[P, Q] y) <float zero = {0}> {
        m = ReduceMax<keepdims=0>(x)  c = Greater(m, zero)
        [gate] y = If(c) <then_branch = a () => (float[P, Q] t) { t = Neg(x) },
                          else_branch = b () => (float[P, Q] t) { t = Abs(x) }> }""")
    with pytest.raises(
        UnsupportedModelError, match=r"gate: If .*condition 'c' depends on the values"
    ) as caught:
        Graph.load(model).compile({"x": (1, 4)})
    assert "as a constant, or export the model for one branch" in str(caught.value)


def test_what_only_the_other_branch_needs_stands_in_nobodys_way(onnxruntime_of):
    model = parse("""agraph (float[4, 4] x) => (float[P, Q] y) <bool no = {0}> {
        d = Det(x)
        y = If(no) <then_branch = a () => (float[P, Q] t) { e = Hardmax(x)  t = Add(e, d) },
                    else_branch = b () => (float[P, Q] t) { t = Abs(x) }> }""")
    agree(model, {"x": numbers(2, 4, 4)}, ["x"], onnxruntime_of)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(True), "no"))
    with pytest.raises(UnsupportedModelError, match=r"(?s)2 node.*Det.*Hardmax"):
        Graph.load(model).compile({"x": (4, 4)})


def test_a_branch_may_be_a_value_outside(onnxruntime_of):
    model = parse("""agraph (float[1, 4] x) => (float[P, Q] y, float[P, Q] z) <bool yes = {1}> {
        h = Relu(x)
        y = If(yes) <then_branch = a () => (float[P, Q] h) { }, else_branch = b () => (float[P, Q] h) { }>
        z = If(yes) <then_branch = c () => (float[P, Q] v) <float[1, 4] v = {1, 2, 3, 4}> { },
                     else_branch = d () => (float[P, Q] h) { }> }""")
    graph = Graph.load(model)
    made = graph.compile({"x": (1, 4)})
    x = torch.from_numpy(numbers(2, 1, 4)).double()
    assert torch.equal(made.run({"x": x})["y"], x.relu())
    assert made.run({"x": x})["z"][1].tolist() == [[1, 2, 3, 4]]


def loop(
    steps: int | None, body: str, outer: str = "", scans: str = "", **inputs: np.ndarray
) -> onnx.ModelProto:
    return parse(f"""agraph (float[1, 4] x) => (float[P, Q] y{scans and ", float[P, Q, R] s"})
        <int64 n = {{{steps or 0}}}, bool go = {{1}}> {{ {outer}
        y{scans and ", s"} = Loop({"n" if steps is not None else ""}, go, x) <body = b
            (int64 i, bool c, float[P, Q] h) => (bool c2, float[P, Q] h2{scans and ", float[P, Q] t"})
            {{ {body} }}> }}""")


def test_a_loop_of_known_length_is_unrolled(onnxruntime_of):
    body = "c2 = Identity(c)  f = Cast<to=1>(i)  g = Add(h, f)  a = Relu(g)  h2 = Sub(a, k)  t = Neg(h2)"
    model = loop(3, body, "k = Abs(x)", scans="s")
    made = agree(model, {"x": numbers(3, 1, 4)}, ["x"], onnxruntime_of)
    assert sum(type(step.operator).__name__ == "Relu" for step in made.steps) == 3


def test_a_loop_ends_by_its_condition(onnxruntime_of):
    body = "f = Constant<value_int=4>()  c2 = Less(i, f)  h2 = Add(h, h)"
    agree(loop(None, body), {"x": numbers(2, 1, 4)}, ["x"], onnxruntime_of)
    agree(loop(3, body), {"x": numbers(2, 1, 4)}, ["x"], onnxruntime_of)
    agree(loop(0, body), {"x": numbers(2, 1, 4)}, ["x"], onnxruntime_of)


@pytest.mark.parametrize(
    ("steps", "body", "text"),
    [
        (10**6, "c2 = Identity(c)  h2 = Neg(h)", "unrolled, it has over 5000 nodes"),
        (None, "c2 = Identity(c)  h2 = Neg(h)", "unrolled, it has over 5000 nodes"),
        (
            3,
            "m = ReduceMax<keepdims=0>(h)  c2 = Cast<to=9>(m)  h2 = Neg(h)",
            "condition to go on '.*' depends on",
        ),
        (3, "c2 = Identity(c)  h2 = Det(h)", "Det"),
    ],
)
def test_a_loop_that_cannot_be_unrolled_says_why(steps: int | None, body: str, text: str):
    with pytest.raises(UnsupportedModelError, match=text):
        Graph.load(loop(steps, body)).compile({"x": (1, 4)})


def test_a_scan_is_unrolled_in_both_directions(onnxruntime_of):
    model = parse("""agraph (float[2] a, float[3, 2] x) => (float[2] y, float[2, 3] s) {
        y, s = Scan<num_scan_inputs=1, scan_input_directions=[1], scan_output_axes=[1],
            scan_output_directions=[1],
            body = b (float[2] h, float[2] e) => (float[2] h2, float[2] t) {
                g = Relu(h)  h2 = Add(g, e)  t = Neg(h2) }>(a, x) }""")
    agree(model, {"a": numbers(3, 2), "x": numbers(3, 3, 2, seed=1)}, ["a", "x"], onnxruntime_of)


def test_names_are_checked_in_subgraphs():
    with pytest.raises(FileFormatError, match="nodes read values that nothing defines: nothing"):
        Graph.load(loop(2, "c2 = Identity(c)  h2 = Add(h, nothing)"))


def test_random_nodes_in_steps_differ_and_are_fixed_by_the_seed():
    made = Graph.load(
        loop(2, "c2 = Identity(c)  r = RandomNormalLike(h)  h2 = Add(h, r)  t = Identity(r)", scans="s")
    )
    first, again = (
        made.compile({"x": (1, 4)}, seed=3).run({"x": torch.zeros(1, 1, 4).double()}) for _ in "ab"
    )
    assert torch.equal(first["s"], again["s"])
    assert not torch.equal(first["s"][0, 0], first["s"][0, 1])


class Gate(torch.nn.Module):
    """A module whose path depends on the size of its input, and one that loops over it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 5:
            x = x[:, :5] * 2
        else:
            x = x.abs()
        for _ in range(x.shape[0] + 1):
            x = torch.relu(x - 0.1)
        return x


@pytest.mark.parametrize("length", [4, 8])
def test_what_torch_script_writes(length: int, onnxruntime_of):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.jit.script(Gate()),
            (torch.zeros(1, 8),),
            file,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n", 1: "l"}},
            dynamo=False,
        )
    model = onnx.load_from_string(file.getvalue())
    assert {"If", "Loop"} <= {node.op_type for node in model.graph.node}
    agree(file.getvalue(), {"x": numbers(3, 2, length)}, ["x"], onnxruntime_of)


NODE_CASES = ("test_if", "test_loop11", "test_scan9_sum", "test_range_float_type_positive_delta_expanded")


@pytest.mark.parametrize("name", NODE_CASES)
def test_onnx_says_the_same(name: str):
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = next(case for case in load_model_tests(kind="node") if case.name == name)
    graph = Graph.load(one.model)
    for inputs, outputs in one.data_sets:
        given = {
            spec.name: torch.from_numpy(np.asarray(v)) for spec, v in zip(graph.inputs, inputs, strict=True)
        }
        results = graph.compile({}, live=[], constants=given).run({})
        for spec, expected in zip(graph.outputs, outputs, strict=True):
            np.testing.assert_allclose(results[spec.name][0].numpy(), np.asarray(expected), rtol=1e-6)


def test_a_graph_with_branches_can_be_pickled():
    import pickle

    graph = pickle.loads(pickle.dumps(Graph.load(parse(BY_SHAPE))))
    assert graph.compile({"x": (2, 8)}).shapes["y"] == (8, 2)
