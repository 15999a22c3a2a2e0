"""The attribution in the file: additive, as the explainer says, beside score and region."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from bundle_models import network, opened
from onnx import TensorProto, helper

import selkit
from selkit.bundle.emitter import Emitter
from selkit.bundle.merging import merge
from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.explain.explainer import Explainer
from selkit.scores import MarginScore


@pytest.fixture(scope="module")
def score(calibrate_on):
    return MarginScore().fit(Y=calibrate_on.logits).calibrate(coverage=0.8)


@pytest.mark.parametrize("target", ["top", 1, [0, 2]], ids=str)
def test_the_attribution_is_additive_and_that_of_the_explainer(target, score, data, judge, tmp_path):
    model, references, x = network(), data.images[:4], judge.images[:7]
    explainer = Explainer(model, references, target=target)
    bundle = selkit.export_bundle(model, score=score, explainer=explainer, path=tmp_path / "b.onnx")
    assert bundle.outputs == ["logits", "score", "selected", "attribution"]
    for rows in (1, 7):
        found = opened(bundle.content).run(["attribution"], {"x": x[:rows]})[0]
        logits, base = (opened(model).run(["logits"], {"x": some})[0] for some in (x[:rows], references))
        gain = logits - base.mean(0)
        if target == "top":
            expected = gain[np.arange(rows), logits.argmax(1)]
            assert found.shape == (rows, 1, 8, 8)
        else:
            expected = gain[:, target]
            assert found.shape == (rows, *(() if target == 1 else (2,)), 1, 8, 8)
        total = found.reshape(*expected.shape, -1).sum(-1)
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)
    verification = bundle.verify(x)
    assert verification.ok
    assert verification["attribution"].largest < 1e-5
    assert bundle.description.explainer["references"] == 4
    assert selkit.load_bundle(bundle.path).verify(x, explainer=explainer).ok


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_models_of_other_opsets_are_brought_to_that_of_the_explanation(opset, score, data, judge, tmp_path):
    model = network(opset=opset)
    explainer = Explainer(model, data.images[:4])
    bundle = selkit.export_bundle(model, score=score, explainer=explainer, path=tmp_path / "b.onnx")
    assert bundle.verify(judge.images[:7]).ok
    assert onnx.load(bundle.path).opset_import[0].version >= 20


def test_a_newer_opset_than_the_explanation_is_refused(score, data, tmp_path):
    model = network(opset=22)
    explainer = Explainer(network(opset=20), data.images[:4])
    with pytest.raises(NotAvailableError, match="opset 22, the explainer's graph 20"):
        selkit.export_bundle(model, score=score, explainer=explainer, path=tmp_path / "b.onnx")


def test_the_explained_target_can_be_moved_and_renamed(data, judge, tmp_path):
    model = network()
    explainer = Explainer(model, data.images[:4])
    names = {"target": "which", "attribution": "shap"}
    bundle = selkit.export_bundle(model, explainer=explainer, path=tmp_path / "b.onnx", names=names)
    x = judge.images[:5]
    for place in range(3):
        (found,) = opened(bundle.content).run(["shap"], {"x": x, "which": np.array([place])})
        np.testing.assert_allclose(found, explainer.explain(x, place).attributions, rtol=1e-5, atol=1e-6)
    assert bundle.verify(x).ok


def test_everything_goes_into_one_file(network, score, data, judge, tmp_path):
    model = type(network)()
    model.CopyFrom(network)
    model.graph.node.append(helper.make_node("ReduceMean", ["map"], ["heat"], axes=[1], keepdims=1))
    model.graph.output.append(helper.make_tensor_value_info("heat", TensorProto.FLOAT, ("N", 1, 8, 8)))
    bundle = selkit.export_bundle(
        model,
        score=score,
        roi=selkit.load(model, selkit.BackMeanDiff(threshold=0.5, o_idx=1)),
        explainer=Explainer(network, data.images[:4]),
        path=tmp_path / "b.onnx",
    )
    assert bundle.outputs == ["logits", "heat", "score", "selected", "score_map", "roi", "attribution"]
    verification = bundle.verify(judge.images[:7])
    assert verification.ok
    assert {one.name for one in verification.comparisons} >= set(bundle.outputs)


def test_explainers_that_cannot_go_in(network, data, tmp_path):
    path = tmp_path / "b.onnx"
    with pytest.raises(InvalidTypeError, match=r"explainer is a str, which cannot be written as a graph"):
        selkit.export_bundle(network, explainer="shap", path=path)
    other = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] z) => (float[N, 2] y) { y = Relu(z) }'
    )
    explainer = Explainer(other, np.zeros((1, 2), dtype=np.float32), target=0)
    with pytest.raises(InvalidInputError, match=r"takes the inputs \['z'\]; the model has \['x'\]"):
        selkit.export_bundle(network, explainer=explainer, path=path)


def test_an_explainer_without_a_graph_is_refused(network, data, tmp_path):
    pytest.importorskip("shap")
    explainer = Explainer(network, data.images[:4], method="permutation")
    with pytest.raises(NotAvailableError, match="needs a graph"):
        selkit.export_bundle(network, explainer=explainer, path=tmp_path / "b.onnx")


def test_graphs_inside_nodes_keep_their_meaning():
    other = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> {
      start = Neg(w)
      h = Mul(x, w)
      last, y = Scan<num_scan_inputs=1, body = body (float[3] s, float[3] row) => (float[3] t, float[3] u) {
        p = Add(s, row)
        u = Mul(p, w)
        t = Identity(p)
      }>(start, h)
    }""")
    onnx.checker.check_model(other)
    # the model uses the same names for other things
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] p) '
        "<float[3] row = {5, 5, 5}> { w = Mul(x, row) s = Add(w, row) p = Sub(s, row) }"
    )
    g = Emitter(model)
    g.output(merge(g, other, "other")["y"], "merged", TensorProto.FLOAT, ["N", 3])
    onnx.checker.check_model(model)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    found = opened(model).run(["merged", "p"], {"x": x})
    np.testing.assert_allclose(found[0], opened(other).run(["y"], {"x": x})[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], 5 * x, rtol=1e-5)
