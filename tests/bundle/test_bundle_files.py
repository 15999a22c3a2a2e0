"""What a bundle says about itself, what is refused, and what verify() finds."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from bundle_models import linear, network, with_outputs
from onnx import TensorProto, helper, numpy_helper

import selkit
from selkit.bundle.emitter import Emitter
from selkit.bundle.merging import merge
from selkit.bundle.registry import emit_score
from selkit.bundle.seal import seal
from selkit.bundle.verification import compare, compare_flags
from selkit.errors import (
    FileFormatError,
    InvalidInputError,
    InvalidTypeError,
    NotAvailableError,
    NotFittedError,
    UnsupportedModelError,
)
from selkit.inference import BackMeanDiff
from selkit.scores import (
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MarginScore,
    PyODScore,
    RandomScore,
)


@pytest.fixture(scope="module")
def score(fit_on, calibrate_on):
    fitted = EuclideanScore(3).fit(X=fit_on.embedding, Y=calibrate_on.embedding)
    return fitted.calibrate(coverage=0.9)


@pytest.fixture
def bundle(score, network, tmp_path):
    return selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", embedding="embedding")


# what it says


def test_the_metadata_say_what_was_decided_and_on_what(bundle, score):
    found = {entry.key: entry.value for entry in onnx.load(bundle.path).metadata_props}
    assert found["selkit.score"] == "EuclideanScore"
    assert found["selkit.version"] == selkit.__version__
    assert found["selkit.calibration_size"] == "150"
    assert float(found["selkit.threshold"]) == float(score.threshold)
    assert found["selkit.guarantee"] == score.guarantee["text"]
    assert "probability at least 0.9 " in found["selkit.guarantee"]
    assert found["selkit.outputs"] == "logits, score, selected"
    info = json.loads(found["selkit.bundle"])["score"]
    assert info["promised"]["coverage"] == 0.9
    assert (info["parameters"]["k"], info["references"], info["value"]) == (3, 300, "embedding")
    loaded = selkit.load_bundle(bundle.path).description
    assert loaded == bundle.description
    assert loaded.threshold == "threshold"


def test_a_guarantee_in_your_own_words(network, calibrate_on, tmp_path):
    score = MarginScore().fit(Y=calibrate_on.logits)
    losses = np.arange(len(calibrate_on.labels)) % 50 == 0
    score.calibrate(risk=0.1, losses=losses.astype(float))
    words = "at most 10 % of what is accepted is wrong, with 95 % confidence"
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", guarantee=words)
    assert {e.key: e.value for e in onnx.load(bundle.path).metadata_props}["selkit.guarantee"] == words


def test_a_score_that_remembers_its_promise_is_believed(network, calibrate_on, tmp_path):
    class Remembering(MarginScore):
        guarantee: ClassVar = {"text": "keeps the risk below 0.1", "risk": 0.1, "confidence": 0.95}

        def to_onnx(self, g, features):
            return emit_score(g, MarginScore(), features)

    score = Remembering().fit(Y=calibrate_on.logits).set_threshold(0.9)
    info = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx").description.score
    assert info.guarantee == "keeps the risk below 0.1"
    assert info.promised == {"risk": 0.1, "confidence": 0.95}
    Remembering.guarantee = {"text": "covers 0.9", "coverage": 0.9}
    info = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx").description.score
    assert (info.guarantee, info.promised) == ("covers 0.9", {"coverage": 0.9})


@pytest.mark.parametrize("how", ["ties", "other scores", "quantile", "by hand"])
def test_the_promise_is_quoted_from_the_score(network, calibrate_on, tmp_path, how):
    score = MarginScore().fit(Y=calibrate_on.logits)
    other = np.repeat(np.arange(10.0), 15)  # many ties: the rank says more than was asked for
    if how == "ties":
        score.calibrate(coverage=0.85, scores=other)
    elif how == "other scores":
        score.calibrate(coverage=0.9, scores=np.random.default_rng(0).normal(size=40))
    elif how == "quantile":
        score.set_threshold(0.9, scores=other)
    else:
        score.calibrate(coverage=0.9)
        score.promise = None
    info = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx").description.score
    if how == "by hand":
        assert info.guarantee.startswith("none known")
        assert info.promised == {}
    else:
        told = dict(score.guarantee)
        assert info.guarantee == told.pop("text")
        assert info.promised == told
        assert ("nothing" in info.guarantee) == (how == "quantile")


def test_an_infinite_threshold_survives_the_metadata(network, calibrate_on, judge, tmp_path):
    score = MarginScore().fit(Y=calibrate_on.logits).calibrate(coverage=0.999, otherwise="accept_all")
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx")
    assert selkit.load_bundle(bundle.path).description.score.threshold == np.inf
    assert bundle.run(judge.images)["selected"].all()
    losses = np.ones(len(calibrate_on.labels))
    score.calibrate(risk=0.01, losses=losses, otherwise="accept_nothing")
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx")
    assert not bundle.run(judge.images)["selected"].any()
    assert bundle.verify(judge.images).ok


def test_the_model_keeps_its_outputs_names_and_metadata(score, network, judge, tmp_path):
    model = with_outputs(network, "logits", "map")
    model.metadata_props.add(key="author", value="someone")
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="embedding")
    assert bundle.outputs == ["logits", "map", "score", "selected"]
    assert [v.name for v in model.graph.output] == ["logits", "map"]  # the given model is as it was
    assert ("author", "someone") in {(e.key, e.value) for e in onnx.load(bundle.path).metadata_props}
    assert bundle.inputs == ["x"]
    assert "threshold=" in repr(bundle)
    from bundle_models import opened

    for name, value in zip(
        ["logits", "map"], opened(model).run(["logits", "map"], {"x": judge.images}), strict=True
    ):
        np.testing.assert_array_equal(bundle.run(judge.images)[name], value)


# running and verifying


def test_inputs_by_name_in_order_or_as_they_are(bundle, judge):
    plain = bundle.run(judge.images)["score"]
    for given in (
        {"x": judge.images},
        [judge.images],
        torch.from_numpy(judge.images),
        judge.images.astype(float),
    ):
        np.testing.assert_array_equal(bundle.run(given)["score"], plain)
    for given, match in (
        ({"y": judge.images}, r"takes the inputs \['x'\]"),
        ([judge.images] * 2, r"takes the inputs \['x'\]"),
        (judge.images[0], "takes numbers of shape"),
        (judge.images[:, :, :4], "onnxruntime cannot run these inputs"),
        (judge.images[:0], "empty"),
        (np.full((2, 1, 8, 8), "a"), "takes numbers of shape"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            bundle.run(given)
    with pytest.raises(InvalidInputError, match=r"threshold has shape \(2,\)"):
        bundle.run(judge.images, threshold=[1.0, 2.0])


def test_a_fixed_batch_is_run_in_pieces(score, judge, tmp_path):
    bundle = selkit.export_bundle(
        network(batch=3), score=score, path=tmp_path / "b.onnx", embedding="embedding"
    )
    free = selkit.export_bundle(network(), score=score, path=tmp_path / "c.onnx", embedding="embedding")
    x = judge.images[:12]
    np.testing.assert_allclose(bundle.run(x)["score"], free.run(x)["score"], rtol=1e-5)
    assert bundle.verify(x).ok
    with pytest.raises(InvalidInputError, match="batches of 3; got 10"):
        bundle.run(judge.images[:10])


def test_several_inputs_reach_the_model(calibrate_on, tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] a, float[N, 3] b) => (float[N, 3] logits) '
        "{ logits = Sub(a, b) }"
    )
    score = MarginScore().fit(Y=calibrate_on.logits).calibrate(coverage=0.8)
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx")
    a, b = np.random.default_rng(0).normal(size=(2, 20, 3)).astype(np.float32)
    expected = score.select(torch.from_numpy(a - b))
    for given in ([a, b], {"b": b, "a": a}):
        assert (bundle.run(given)["selected"] == expected["selected"].numpy()).all()
    assert bundle.verify([a, b]).ok


def test_verify_says_what_differs(bundle, score, network, judge, fit_on, calibrate_on):
    right = bundle.verify(judge.images)
    assert right.ok
    assert right["score"].largest < 1e-6
    assert "the file agrees with Python" in str(right)
    other = EuclideanScore(1).fit(X=fit_on.embedding, Y=calibrate_on.embedding).calibrate(coverage=0.9)
    wrong = bundle.verify(judge.images, score=other)
    assert not wrong
    assert wrong["score"].differ
    assert "samples DIFFER" in str(wrong)
    moved = EuclideanScore(3).fit(X=fit_on.embedding, Y=calibrate_on.embedding).calibrate(coverage=0.4)
    decisions = bundle.verify(judge.images, score=moved)
    expected = moved.select(torch.from_numpy(with_embedding(network, judge.images)))["selected"].numpy()
    assert decisions["selected"].differ == tuple(
        np.flatnonzero(bundle.run(judge.images)["selected"] != expected)
    )
    changed = onnx.load(bundle.path)
    weight = next(t for t in changed.graph.initializer if t.name == "bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, "bias"))
    other_model = selkit.load_bundle(seal(changed.SerializeToString())).verify(judge.images, model=network)
    assert other_model["logits"].differ
    with pytest.raises(InvalidInputError, match="'none' was not compared; compared were"):
        right["none"]
    with pytest.raises(
        InvalidInputError, match="score is a GaussianScore; the bundle holds a EuclideanScore"
    ):
        bundle.verify(judge.images, score=GaussianScore(one_class=True).fit(X=fit_on.embedding))


def with_embedding(model, images):
    from bundle_models import opened

    return opened(with_outputs(model, "embedding")).run(None, {"x": images})[0]


def test_a_loaded_bundle_is_compared_with_what_is_given(bundle, score, judge, tmp_path):
    loaded = selkit.load_bundle(bundle.path)
    assert loaded.verify(judge.images, score=score).ok
    with pytest.raises(InvalidInputError, match="nothing to compare the bundle with"):
        loaded.verify(judge.images)
    score.save(tmp_path / "score.safetensors")
    again = EuclideanScore.load(tmp_path / "score.safetensors")
    assert selkit.load_bundle(bundle.path.read_bytes()).verify(judge.images, score=again).ok


def test_the_comparisons_can_fail():
    base = np.asarray([1.0, 2.0, 3.0], dtype=np.float32)
    assert compare("a", base, base, 1.0, 1e-5).ok
    assert compare("a", np.float32([1.0, 2.0, np.nan]), base, 1.0, 1e-5).differ == (2,)
    assert compare("a", np.float32([1.0, 2.1, 3.0]), base, 1.0, 1e-5).differ == (1,)
    assert compare("a", base[:2], base, 1.0, 1e-5).differ
    assert compare("a", np.float32([np.inf]), np.float32([np.inf]), 1.0, 1e-5).ok
    assert compare("a", np.float32([np.inf]), np.float32([1.0]), 1.0, 1e-5).differ == (0,)
    flags = np.asarray([True, False])
    assert compare_flags("a", flags, flags).ok
    assert compare_flags("a", ~flags, flags).differ == (0, 1)
    assert compare_flags("a", ~flags, flags, np.asarray([True, False])).differ == (1,)
    assert compare_flags("a", flags.astype(int), flags).differ


# what is refused


def test_nothing_asked_for_and_wrong_types(network, score, tmp_path):
    path = tmp_path / "b.onnx"
    for options, error, match in (
        ({}, InvalidInputError, "nothing to put into the bundle"),
        ({"score": EuclideanScore}, InvalidTypeError, "score is a"),
        ({"score": score, "threshold_input": "some"}, InvalidInputError, "threshold_input must be one of"),
        (
            {"score": score, "max_references": 10},
            InvalidInputError,
            "needs 300 references .* max_references is 10",
        ),
        ({"score": score, "max_references": 0}, InvalidInputError, "max_references must be a whole number"),
        ({"explainer": object()}, InvalidTypeError, "explainer is a object"),
        ({"score": score, "names": {"wrong": "a"}}, InvalidInputError, "names may rename"),
        ({"score": score, "pool": "most"}, InvalidInputError, "pool must be 'mean', 'tokens' or 'flatten'"),
        ({"score": score, "pool": lambda x: x}, NotAvailableError, "pool is a function"),
        ({"score": score, "prediction": "logits"}, InvalidInputError, "has one threshold"),
        (
            {"score": score, "prediction": "no"},
            InvalidInputError,
            "prediction='no': the model has no such value",
        ),
    ):
        with pytest.raises(error, match=match):
            selkit.export_bundle(network, path=path, embedding="embedding", **options)
    with pytest.raises(InvalidTypeError, match="model is a int"):
        selkit.export_bundle(3, score=score, path=path)
    assert not path.exists()


def test_scores_that_are_not_ready(network, fit_on, calibrate_on, tmp_path):
    options = {"path": tmp_path / "b.onnx", "embedding": "embedding"}
    with pytest.raises(NotFittedError, match="EuclideanScore is not fitted yet"):
        selkit.export_bundle(network, score=EuclideanScore(), **options)
    with pytest.raises(NotFittedError, match="EuclideanScore has no threshold yet"):
        selkit.export_bundle(network, score=EuclideanScore().fit(X=fit_on.embedding), **options)


def test_scores_that_cannot_go_in_say_why(network, fit_on, calibrate_on, tmp_path):
    from pyod.models.knn import KNN

    options = {"path": tmp_path / "b.onnx", "embedding": "embedding"}
    detector = PyODScore(KNN()).fit(X=fit_on.embedding, Y=calibrate_on.embedding).set_threshold(0.9)
    with pytest.raises(
        NotAvailableError, match="PyODScore cannot go into a bundle: a PyOD detector is Python"
    ):
        selkit.export_bundle(network, score=detector, **options)
    with pytest.raises(NotAvailableError, match="RandomScore cannot go into a bundle: it draws from"):
        selkit.export_bundle(network, score=RandomScore().set_threshold(0.9), **options)


def test_approximate_neighbours_are_refused(network, fit_on, calibrate_on, tmp_path):
    pytest.importorskip("faiss")
    with pytest.warns(UserWarning, match="searches approximately"):
        score = EuclideanScore(index="faiss").fit(X=fit_on.embedding, Y=calibrate_on.embedding)
    with pytest.raises(NotAvailableError, match="searches approximately"):
        selkit.export_bundle(
            network, score=score.set_threshold(0.9), path=tmp_path / "b.onnx", embedding="embedding"
        )


def test_references_in_a_file_go_in(network, fit_on, calibrate_on, judge, tmp_path):
    array = np.memmap(tmp_path / "x.dat", dtype=np.float32, mode="w+", shape=(300, 12))
    array[:] = fit_on.embedding.numpy()
    array.flush()
    score = EuclideanScore(2).fit(X=array, Y=calibrate_on.embedding).calibrate(coverage=0.9)
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", embedding="embedding")
    assert bundle.verify(judge.images).ok


def test_the_embedding_is_found_by_name_or_asked_for(score, network, tmp_path):
    path = tmp_path / "b.onnx"
    with pytest.raises(
        InvalidInputError, match=r"say embedding=.*logits.*values of width 12 are .*'embedding "
    ):
        selkit.export_bundle(network, score=score, path=path)
    with pytest.raises(
        InvalidInputError, match=r"embedding='embeding': the model has no such value; near .*'embedding'"
    ):
        selkit.export_bundle(network, score=score, path=path, embedding="embeding")
    with pytest.raises(InvalidInputError, match="embeddings of width 3, but EuclideanScore was fitted on 12"):
        selkit.export_bundle(network, score=score, path=path, embedding="logits")
    by_name = selkit.export_bundle(with_outputs(network, "logits", "embedding"), score=score, path=path)
    assert by_name.description.score.value == "embedding"
    by_width = selkit.export_bundle(with_outputs(network, "logits", "pool"), score=score, path=path)
    assert by_width.description.score.value == "pool"
    only = selkit.export_bundle(with_outputs(network, "embedding"), score=score, path=path)
    assert only.description.score.value == "embedding"


def test_the_models_input_can_be_what_is_scored(tmp_path):
    X = np.random.default_rng(1).normal(size=(80, 5)).astype(np.float32)
    score = EuclideanScore(2).fit(X=X[:40], Y=X[40:]).calibrate(coverage=0.8)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5] x) => (float[N, 5] y) { y = Exp(x) }'
    )
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="x")
    assert (bundle.run(X)["selected"] == score.select(X)["selected"].numpy()).all()
    assert bundle.verify(X).ok


def test_models_of_scikit_learn_go_in(tmp_path):
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.ensemble import RandomForestClassifier

    X = np.random.default_rng(2).normal(size=(90, 4)).astype(np.float32)
    forest = RandomForestClassifier(5, random_state=0).fit(X, X[:, 0] > 0)
    score = EuclideanScore(2).fit(X=X[:60], Y=X[60:]).calibrate(coverage=0.8)
    for maps in (False, True):  # with maps, an output is a list of dictionaries
        model = skl2onnx.to_onnx(
            forest, X[:1], options={"zipmap": maps}, target_opset={"": 17, "ai.onnx.ml": 3}
        )
        bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="X")
        assert bundle.verify(X).ok
        assert (bundle.run(X)["selected"] == score.select(X)["selected"].numpy()).all()


def test_logits_of_another_width_are_refused(network, tmp_path):
    score = MarginScore().fit(Y=np.random.default_rng(0).normal(size=(50, 7))).calibrate(coverage=0.5)
    with pytest.raises(InvalidInputError, match="MarginScore takes 7 classes; say which value"):
        selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx")
    with pytest.raises(InvalidInputError, match="which multiclass logits without members cannot have"):
        selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", embedding="map")


def test_tokens_or_channels_must_be_said(score, tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5, 12] x) => (float[N, 5, 12] embedding) '
        "{ embedding = Relu(x) }"
    )
    path = tmp_path / "b.onnx"
    with pytest.raises(InvalidInputError, match="may be tokens or channels; say pool='tokens'"):
        selkit.export_bundle(model, score=score, path=path)
    bundle = selkit.export_bundle(model, score=score, path=path, pool="tokens")
    x = np.random.default_rng(0).normal(size=(9, 5, 12)).astype(np.float32)
    assert bundle.verify(x).ok
    expected = score.score(np.maximum(x, 0).mean(1))
    np.testing.assert_allclose(bundle.run(x)["score"], expected, rtol=1e-5)


def test_names_that_are_taken_must_be_changed(score, network, judge, tmp_path):
    model = renamed(network, {"embedding": "score", "h1": "threshold"})
    path = tmp_path / "b.onnx"
    with pytest.raises(
        InvalidInputError, match=r"called \['score', 'threshold'\] already.*names=\{'threshold'"
    ):
        selkit.export_bundle(model, score=score, path=path, embedding="score")
    names = {"score": "uncertainty", "threshold": "limit"}
    bundle = selkit.export_bundle(model, score=score, path=path, embedding="score", names=names)
    assert bundle.outputs == ["logits", "uncertainty", "selected"]
    assert bundle.verify(judge.images).ok
    assert bundle.run(judge.images, threshold=np.inf)["selected"].all()
    with pytest.raises(InvalidInputError, match="already"):
        selkit.export_bundle(
            model, score=score, path=path, embedding="score", names={**names, "selected": "limit"}
        )


def renamed(model, names):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = names.get(name, name)
    return copy


def test_classes_without_references_are_refused(network, fit_on, calibrate_on, tmp_path):
    seen, known = fit_on.labels < 2, calibrate_on.labels < 2
    score = EuclideanClassWiseScore().fit(
        X=fit_on.embedding[seen],
        y=fit_on.labels[seen],
        Y=calibrate_on.embedding[known],
        y_cal=calibrate_on.labels[known],
    )
    score.calibrate(coverage=0.8)
    options = {"path": tmp_path / "b.onnx", "embedding": "embedding", "score": score}
    with pytest.raises(NotAvailableError, match=r"one of 3 classes, but \[2\] have no references"):
        selkit.export_bundle(network, prediction="logits", **options)
    with pytest.raises(InvalidInputError, match=r"must name logits of shape \(samples, classes\)"):
        selkit.export_bundle(network, prediction="map", **options)
    assert selkit.export_bundle(network, **options).description.score.groups == [0, 1]


def test_paths_that_cannot_be_written(score, network, tmp_path):
    for path, match in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "b.onnx", "lies in no existing folder"),
        (tmp_path / ("b" * 300), "cannot be written"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            selkit.export_bundle(network, score=score, path=path, embedding="embedding")
    assert list(tmp_path.iterdir()) == []


def test_operators_that_are_not_standard_are_refused(score, tmp_path):
    model = linear(12)
    model.graph.node.append(helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "cut.onnx", embedding="embedding")
    assert "Gelu" not in {node.op_type for node in onnx.load_from_string(bundle.content).graph.node}
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    with pytest.raises(UnsupportedModelError, match="not a standard operator"):
        selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx")


# files that nobody vouches for


def test_files_that_are_no_bundles(network, bundle, tmp_path):
    onnx.save(network, tmp_path / "plain.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    content = bundle.content
    for given, match in (
        (tmp_path / "plain.onnx", "is an ONNX model, but no bundle"),
        (tmp_path / "text.onnx", "not an ONNX model"),
        (tmp_path / "empty.onnx", "empty"),
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path, "is a folder"),
        (content[: len(content) // 2], "not an ONNX model, or truncated|has no graph"),
    ):
        with pytest.raises(FileFormatError, match=match):
            selkit.load_bundle(given)
    with pytest.raises(InvalidTypeError, match="path is a ModelProto"):
        selkit.load_bundle(network)


def changed(bundle, how):
    model = onnx.ModelProto()
    model.ParseFromString(bundle.content)
    how(model)
    return seal(model.SerializeToString())


def entry(model):
    return next(entry for entry in model.metadata_props if entry.key == "selkit.bundle")


def test_bundles_that_were_changed(bundle):
    def metadata(**changes):
        def how(model):
            entry(model).value = json.dumps(json.loads(entry(model).value) | changes)

        return how

    def damaged(model):
        entry(model).value = entry(model).value[:-5]

    def without(model):
        del model.graph.output[-1]

    def foreign(model):
        model.graph.node.add(op_type="Gelu", domain="com.microsoft", input=["x"], output=["z"])
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def outside(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")

    def huge(model):
        model.graph.initializer[0].dims[0] = 2**40

    for how, match in (
        (metadata(format=99), "is a bundle of format 99"),
        (metadata(format=2.0), "is a bundle of format 2.0"),
        (metadata(format=True), "is a bundle of format True"),
        (metadata(predictions=["no"]), r"its metadata name \['no'\], which the graph does not have"),
        (metadata(threshold="limit"), "'limit'"),
        (metadata(score=None), "name a score"),
        (metadata(score={"name": 3}), "is incomplete"),
        (metadata(outputs=None), "is incomplete"),
        (metadata(more=1), "is incomplete"),
        (damaged, "is damaged"),
        (without, "which the graph does not have"),
        (foreign, "a bundle has standard operators only"),
        (outside, "keeps its data in the file"),
        (huge, "bytes of data; damaged or hostile"),
    ):
        with pytest.raises(FileFormatError, match=match):
            selkit.load_bundle(changed(bundle, how))


def test_a_graph_that_does_not_run_is_refused(bundle):
    def broken(model):
        model.graph.node[0].op_type = "NoSuchOperator"

    with pytest.raises(FileFormatError, match="does not run in onnxruntime"):
        selkit.load_bundle(changed(bundle, broken))


def test_every_flipped_byte_is_noticed(bundle):
    random = np.random.default_rng(0)
    for place in random.integers(0, len(bundle.content), 300):
        content = bytearray(bundle.content)
        content[place] ^= 1 << int(random.integers(8))
        with pytest.raises(FileFormatError):
            selkit.load_bundle(bytes(content))


def test_a_file_that_another_program_saved(bundle):
    model = onnx.ModelProto()
    model.ParseFromString(bundle.content)
    model.producer_name = "another"
    with pytest.raises(FileFormatError, match="its checksum does not fit; export it again"):
        selkit.load_bundle(model.SerializeToString())
    kept = [entry for entry in model.metadata_props if entry.key != "selkit.sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    with pytest.raises(FileFormatError, match="has no checksum"):
        selkit.load_bundle(model.SerializeToString())


@pytest.mark.parametrize("threshold", ["a", None, np.nan, [1.0, np.nan], {"a": 1}, lambda x: x])
def test_thresholds_that_are_no_numbers(bundle, judge, threshold):
    if threshold is None:
        assert bundle.run(judge.images, threshold=None)
        return
    with pytest.raises((InvalidTypeError, InvalidInputError), match="threshold"):
        bundle.run(judge.images, threshold=threshold)


TANH = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] e, float[N, 3] logits) {
    e = Tanh(x)
    zero = Constant<value_ints = [0]>()
    three = Constant<value_ints = [3]>()
    one = Constant<value_ints = [1]>()
    logits = Slice(x, zero, three, one)
}"""


@pytest.mark.parametrize("kind", ["one", "groups", "classes"])
def test_calibration_inputs_agree(kind, tmp_path):
    """Scores on the threshold, computed once by NumPy and once by onnxruntime."""
    model, snapped = onnx.parser.parse_model(TANH), 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        y = np.arange(300) % 3
        x = (np.eye(4)[y] + 0.4 * random.normal(size=(300, 4))).astype(np.float32)
        e, predicted = np.tanh(x), x[:, :3].argmax(1)
        if kind == "classes":
            score = EuclideanClassWiseScore(2).fit(X=e[:150], y=y[:150], Y=e[150:], y_cal=predicted[150:])
            score.calibrate(coverage=0.8)
        else:
            score = EuclideanScore(3).fit(X=e[:150], Y=e[150:])
            score.calibrate(coverage=0.8, groups=predicted[150:] if kind == "groups" else None)
        options = {} if kind == "one" else {"prediction": "logits"}
        bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="e", **options)
        found = bundle.verify(x[150:])
        assert found.ok, f"{seed}: {found}"
        limits = np.atleast_1d(score.threshold.numpy())
        snapped += int(np.isin(bundle.run(x[150:])["score"], limits).sum())
    assert snapped >= 6  # samples on the threshold were among them


# merging graphs


def test_a_second_graph_shares_what_both_compute(network, judge):
    from bundle_models import opened

    other = renamed(network, {name: f"own_{name}" for name in ("c1", "h1", "c2", "map", "pool", "logits")})
    for tensor in other.graph.initializer:
        tensor.name = f"weight_{tensor.name}"
    for node in other.graph.node:
        for place, name in enumerate(node.input):
            if name in {"w1", "w2", "b2", "head", "bias"}:
                node.input[place] = f"weight_{name}"
    other.graph.node.append(helper.make_node("Softmax", ["own_logits"], ["attribution"], axis=1))
    del other.graph.output[:]
    other.graph.output.append(helper.make_tensor_value_info("attribution", TensorProto.FLOAT, ("N", 3)))
    model = onnx.ModelProto()
    model.CopyFrom(network)
    g = Emitter(model)
    made = merge(g, other, "explainer")["attribution"]
    g.output(made, "attribution", TensorProto.FLOAT, ["N", 3])
    assert [node.op_type for node in model.graph.node] == [
        *[node.op_type for node in network.graph.node],
        "Softmax",
        "Identity",
    ]
    assert len(model.graph.initializer) == len(network.graph.initializer)
    expected = opened(other).run(None, {"x": judge.images})[0]
    np.testing.assert_array_equal(opened(model).run(["attribution"], {"x": judge.images})[0], expected)


def test_random_nodes_and_other_attributes_are_not_shared(network):
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,1,8,8] x) => (float[N,1,8,8] y) '
        "{ a = LeakyRelu<alpha=0.1>(x) b = RandomNormalLike(x) y = Add(a, b) }"
    )
    model, other = onnx.parser.parse_model(text), onnx.parser.parse_model(text.replace("0.1", "0.2"))
    g = Emitter(model)
    merge(g, other, "explainer")
    assert len(model.graph.node) == 6
    with pytest.raises(InvalidInputError, match=r"takes the inputs \['x'\]; the model has \['z'\]"):
        merge(Emitter(onnx.parser.parse_model(text.replace(" x)", " z)").replace("(x)", "(z)"))), other, "it")


def test_the_region_and_the_score_need_no_explainer(network, tmp_path):
    roi = BackMeanDiff(threshold=0.1, o_idx=0)
    with pytest.raises(InvalidInputError, match="which matches neither"):
        selkit.export_bundle(network, roi=roi, path=tmp_path / "b.onnx")
