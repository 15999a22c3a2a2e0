"""Models that take integers: the real value behind them is tested, explained, and named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import selkit
from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph import Graph
from selkit.graph.entry import find_entry

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(30, 4)).astype(np.float32)
HEAD = RNG.normal(size=(4, 2)).astype(np.float32)


def parse(text: str, **stored: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items())
    return model


def text_model() -> onnx.ModelProto:
    return parse(
        """agraph (int64[N, L] ids) => (float[N, 2] y) {
        u = Unsqueeze(ids, one)  w = Squeeze(u, one)  i = Cast<to=6>(w)  emb = Gather(table, i)
        r = Relu(emb)  m = ReduceMean<axes=[1], keepdims=0>(r)  y = MatMul(m, head) }""",
        table=TABLE,
        head=HEAD,
        one=np.int64([1]),
    )


def byte_model(kind: str = "uint8") -> onnx.ModelProto:
    return parse(f"""agraph ({kind}[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y)
        <float[1, 1, 3, 3] w = {{1, 2, 1, 2, 4, 2, 1, 2, 1}}, float k = {{0.004}}> {{
        f = Cast<to=1>(x)  s = Mul(f, k)  h = Conv<pads=[1, 1, 1, 1]>(s, w)  y = Relu(h) }}""")


def test_the_value_behind_an_embedding_or_a_cast_is_found():
    graph = Graph.load(text_model())
    entry = find_entry(graph, "ids", ["y"])
    assert (entry.value, entry.how, entry.elsewhere, entry.shaped) == ("emb", "embedding", (), False)
    ids = torch.from_numpy(RNG.integers(0, 30, (3, 5)))
    np.testing.assert_array_equal(entry.of(graph, ids).numpy(), TABLE[ids.numpy()])
    entry = find_entry(Graph.load(byte_model()), "x", ["y"])
    assert (entry.value, entry.how) == ("f", "cast")


def test_behind_a_quantized_table_is_what_its_rows_stand_for():
    model = parse(
        """agraph (int64[N, L] ids) => (float[N, L, 4] y) {
        rows = Gather(table, ids)  emb = DequantizeLinear(rows, scale, zero)  y = Relu(emb) }""",
        table=np.arange(120, dtype=np.uint8).reshape(30, 4),
        scale=np.float32(0.5),
        zero=np.uint8(60),
    )
    graph = Graph.load(model)
    entry = find_entry(graph, "ids", ["y"])
    assert (entry.value, entry.how) == ("emb", "embedding")
    assert entry.of(graph, torch.tensor([[2]])).tolist() == [[[-26.0, -25.5, -25.0, -24.5]]]


def test_bytes_are_tested_as_numbers():
    x = RNG.integers(0, 256, (1, 1, 6, 6)).astype(np.uint8)
    real = parse("""agraph (float[1, 1, 6, 6] f) => (float[1, 1, 6, 6] y)
        <float[1, 1, 3, 3] w = {1, 2, 1, 2, 4, 2, 1, 2, 1}, float k = {0.004}> {
        s = Mul(f, k)  h = Conv<pads=[1, 1, 1, 1]>(s, w)  y = Relu(h) }""")
    hypothesis = selkit.BackMeanDiff(threshold=8.0)
    expected = selkit.load(real, hypothesis).inference(x.astype(np.float64), var=900.0)
    test = selkit.load(byte_model(), hypothesis)
    for given in (x, torch.from_numpy(x), x.astype(np.float64)):
        result = test.inference(given, var=900.0)
        assert result.p_value == expected.p_value
        np.testing.assert_array_equal(result.truncated_intervals, expected.truncated_intervals)
        assert result.notes == ("tested is the value 'f', the numbers of the integer input 'x'",)
        assert "the numbers of the integer input 'x'" in str(result)
    randomized = test.inference_randomized(x, var=900.0, noise_var=900.0, seed=0)
    assert 0 < randomized.p_value < 1


def test_token_ids_are_tested_by_their_embedding():
    model = parse(
        """agraph (int64[1, L] ids) => (float[1, L, D] y) {
        emb = Gather(table, ids)  h = MatMul(emb, head)  y = Relu(h) }""",
        table=TABLE,
        head=RNG.normal(size=(4, 4)).astype(np.float32),
    )
    real = parse(
        """agraph (float[1, L, 4] emb) => (float[1, L, D] y) { h = MatMul(emb, head)  y = Relu(h) }""",
        head=numpy_helper.to_array(model.graph.initializer[1]),
    )
    ids = RNG.integers(0, 30, (1, 6))
    hypothesis = selkit.BackMeanDiff(threshold=0.3)
    result = selkit.load(model, hypothesis).inference(ids, var=1.0)
    expected = selkit.load(real, hypothesis).inference(TABLE[ids].astype(np.float64), var=1.0)
    assert result.p_value == expected.p_value
    assert result.notes == ("tested is the value 'emb', the embedding of the integer input 'ids'",)


def test_token_ids_are_explained_by_their_embedding():
    ids, given = RNG.integers(0, 30, (7, 5)), RNG.integers(0, 30, (3, 5))
    explainer = selkit.Explainer(text_model(), given, target=1)
    result = explainer.explain(ids)
    assert result.attributions.shape == (7, 5, 4)
    assert result.notes == ("explained is the value 'emb', the embedding of the integer input 'ids'",)
    np.testing.assert_allclose(result.additivity_error, 0, atol=1e-5)

    def output(ids: np.ndarray) -> np.ndarray:
        return (np.maximum(TABLE[ids], 0).mean(1) @ HEAD)[:, 1]

    np.testing.assert_allclose(result.output, output(ids), rtol=1e-5)
    np.testing.assert_allclose(result.base_value, output(given).mean(), rtol=1e-5)
    np.testing.assert_array_equal(explainer.explain(TABLE[ids]).attributions, result.attributions)
    assert explainer.verify(ids).output_difference < 1e-5


def test_an_exported_explainer_takes_the_value_and_still_says_so(tmp_path):
    ids = RNG.integers(0, 30, (4, 5))
    explainer = selkit.Explainer(text_model(), ids[:2], target=0)
    explainer.export(tmp_path / "e.onnx")
    loaded = selkit.Explainer.load(tmp_path / "e.onnx")
    assert loaded.facts.input == "emb"
    assert loaded.explain(TABLE[ids]).notes == explainer.explain(ids).notes


def test_the_shape_of_the_integers_may_count_besides():
    model = parse(
        """agraph (int64[N, L] ids) => (float[N, 2] y) {
        emb = Gather(table, ids)  s = Shape(ids)  l = Gather(s, one)  f = Cast<to=1>(l)
        m = ReduceSum<keepdims=0>(emb, one)  q = Div(m, f)  y = MatMul(q, head) }""",
        table=TABLE,
        head=HEAD,
        one=np.int64([1]),
    )
    result = selkit.Explainer(model, RNG.integers(0, 30, (2, 5)), target=0).explain(
        RNG.integers(0, 30, (4, 5))
    )
    np.testing.assert_allclose(result.additivity_error, 0, atol=1e-5)
    with pytest.raises(InvalidInputError, match="needs the shape of 'ids'; give integers"):
        selkit.Explainer(model, TABLE[:6].reshape(2, 3, 4), target=0)


SEVERAL = """agraph (int64[N, L] ids) => (float[N, 2] y) {
    a = Gather(table, ids)  b = Gather(other, ids)  c = Add(a, b)
    m = ReduceMean<axes=[1], keepdims=0>(c)  y = MatMul(m, head) }"""


def test_several_values_must_be_named():
    model = parse(SEVERAL, table=TABLE, other=TABLE[::-1].copy(), head=HEAD)
    ids = RNG.integers(0, 30, (2, 5))
    with pytest.raises(
        InvalidInputError, match=r"several .*'a' \(embedding\), 'b' \(embedding\); say .*input="
    ):
        selkit.Explainer(model, ids)
    with pytest.raises(InvalidInputError, match=r"entry is 'c'.*there are \['a', 'b'\]"):
        selkit.load(model, selkit.BackMeanDiff(threshold=0.0), entry="c")
    with pytest.raises(NotAvailableError, match=r"not only through 'a' \(Gather\)"):
        selkit.Explainer(model, ids, input="a")
    assert selkit.load(model, selkit.BackMeanDiff(threshold=0.0), entry="b").tested_name == "b"


def test_masks_made_of_the_integers_are_held_in_tests_and_refused_in_explanations():
    masked = """agraph (int64[1, L] ids) => (float[1, L, 4] y) <int64 pad = {0}, int64[1] last = {-1}> {
        emb = Gather(table, ids)  e = Equal(ids, pad)  n = Not(e)  k = Cast<to=1>(n)  u = Unsqueeze(k, last)
        y = Mul(emb, u) }"""
    ids = np.array([[3, 0, 7, 0, 9]])
    result = selkit.load(parse(masked, table=TABLE), selkit.BackMeanDiff(threshold=0.2)).inference(
        ids, var=1.0
    )
    assert not result.roi[[1, 3]].any()
    flat = parse(
        """agraph (int64[N, L] ids) => (float[N, D] y) <int64 pad = {0}, int64[1] last = {-1}> {
        emb = Gather(table, ids)  e = Equal(ids, pad)  n = Not(e)  k = Cast<to=1>(n)  u = Unsqueeze(k, last)
        m = Mul(emb, u)  y = ReduceMean<axes=[1], keepdims=0>(m) }""",
        table=TABLE,
    )
    with pytest.raises(NotAvailableError, match=r"not only through 'emb' \(Equal\)"):
        selkit.Explainer(flat, ids)


def test_integers_of_which_nothing_real_is_made():
    model = parse("agraph (int64[N, L] ids) => (int64[N, L] y) { y = Add(ids, ids) }")
    with pytest.raises(InvalidInputError, match="no real value is made of it by a table"):
        selkit.load(model, selkit.BackMeanDiff(threshold=0.0))
    real = parse("agraph (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }")
    with pytest.raises(InvalidInputError, match="entry is for integer inputs, but 'x' takes real numbers"):
        selkit.load(real, selkit.BackMeanDiff(threshold=0.0), entry="y")


def test_a_bundle_of_token_ids_decides_as_python(tmp_path):
    from selkit.scores import EuclideanScore

    model, ids = text_model(), RNG.integers(0, 30, (40, 5))
    score = EuclideanScore(k=2).fit(
        model=model,
        loaders={"train": [torch.from_numpy(ids[:20])], "val": [torch.from_numpy(ids[20:])]},
        layer="m",
    )
    score.calibrate(coverage=0.8)
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx")
    found = bundle.run(ids)
    expected = score.score(model=model, loader=[torch.from_numpy(ids)])
    np.testing.assert_allclose(found["score"], expected.numpy(), rtol=1e-5)
