"""Every score: the file's numbers beside Python's, its decisions, and formulas in NumPy."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import onnx
import pytest
import torch
from bundle_models import BIAS, HEAD, linear, members, network, opened, with_outputs

import selkit
from selkit import scores
from selkit.bundle.registry import _EMITS, _REASONS, FAMILIES
from selkit.scores import (
    ClassWiseScore,
    CosineClassWiseScore,
    CosineScore,
    EnergyScore,
    EntropyScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisClassWiseScore,
    MahalanobisScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PCAScore,
    PredictiveVarianceScore,
    RelativeMahalanobisScore,
    SoftmaxScore,
    TensorPCA,
    ViMScore,
)

KERNEL = TensorPCA(4, gamma=0.5, M=64)
EMBEDDING = [
    *[
        kind(k, stat, pca)
        for kind in (EuclideanScore, CosineScore, MahalanobisScore)
        for k, stat, pca in ((1, "max", None), (5, "mean", None), (4, "median", None), (5, "min", 3))
    ],
    EuclideanScore(3, pca=KERNEL),
    GaussianScore(),
    GaussianScore(one_class=True),
    RelativeMahalanobisScore(),
    PCAScore(4),
    PCAScore(KERNEL),
    ViMScore((np.float32(HEAD), np.float32(BIAS)), n_components=6),
]
LOGITS = [
    kind(**options)
    for kind in (EnergyScore, SoftmaxScore, MaxLogitScore, EntropyScore, MarginScore)
    for options in ({}, {"temperature": 2.5}, {"task": "multilabel"}, {"temperature": "fit"})
]


def label(score):
    return repr(score).replace("'", "")[:70]


def run(bundle, x, **more):
    """What the file gives, by onnxruntime alone."""
    runner = opened(bundle.content)
    names = [value.name for value in runner.get_outputs()]
    first = runner.get_inputs()[0].name
    return dict(zip(names, runner.run(names, {first: x, **more}), strict=True))


def agree(found, expected, limit):
    """Scores within 1e-5 of the larger of score and threshold, and the same decisions."""
    score, selected = expected["score"].numpy(), expected["selected"].numpy()
    assert found["score"].dtype == score.dtype
    assert found["score"].shape == score.shape
    assert found["selected"].dtype == bool
    scale = np.maximum(np.abs(score), np.abs(limit)).astype(np.float64)
    assert (np.abs(found["score"] - score.astype(np.float64)) <= 1e-5 * scale).all()
    assert (found["selected"] == selected).all()
    assert (found["selected"] == (found["score"] <= limit)).all()


def check(score, model, parts, path, **options):
    """Write a bundle and compare it on new and on calibration data."""
    bundle = selkit.export_bundle(model, score=score, path=path, **options)
    for part, features in parts:
        agree(run(bundle, part.images), score.select(features(part)), float(score.threshold))
        assert bundle.verify(part.images).ok
    return bundle


def test_every_built_in_score_is_written_or_refused_with_a_reason():
    for family in FAMILIES:
        import_module(family)
    kinds = [getattr(scores, name) for name in scores.__all__]
    abstract = {"UncertaintyScore", "KNNScore", "LogitScore", "EnsembleLogitScore", "PointwiseLogitScore"}
    kinds = [
        kind
        for kind in kinds
        if issubclass(kind, scores.UncertaintyScore)
        and kind.__name__ not in abstract
        and not issubclass(kind, ClassWiseScore)
    ]
    assert len(kinds) >= 15
    for kind in kinds:
        assert kind in _EMITS or any(issubclass(kind, refused) for refused in _REASONS), kind


@pytest.mark.parametrize("score", EMBEDDING, ids=label)
def test_scores_of_embeddings_agree(score, network, fit_on, calibrate_on, judge, tmp_path):
    score.fit(X=fit_on.embedding, y=fit_on.labels, Y=calibrate_on.embedding).calibrate(coverage=0.9)
    runner = opened(with_outputs(network, "embedding"))

    def features(part):
        return torch.from_numpy(runner.run(None, {"x": part.images})[0])

    parts = [(judge, features), (calibrate_on, features)]
    bundle = check(score, network, parts, tmp_path / "b.onnx", embedding="embedding")
    assert 0 < run(bundle, judge.images)["selected"].mean() < 1


@pytest.mark.parametrize("score", LOGITS, ids=label)
def test_scores_of_logits_agree(score, network, fit_on, calibrate_on, judge, tmp_path):
    if score.temperature == "fit":
        wrong = np.where(np.arange(len(fit_on.labels)) % 5, fit_on.labels, 0)  # a best temperature exists
        score.fit(X=fit_on.logits, y=wrong, Y=calibrate_on.logits)
    else:
        score.fit(Y=calibrate_on.logits)
    score.calibrate(coverage=0.8)
    runner = opened(network)

    def features(part):
        return torch.from_numpy(runner.run(None, {"x": part.images})[0])

    check(score, network, [(judge, features), (calibrate_on, features)], tmp_path / "b.onnx")


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize(
    "kind", [MutualInformationScore, PredictiveVarianceScore, EnergyScore, SoftmaxScore, EntropyScore]
)
def test_scores_of_ensembles_agree(kind, task, tmp_path):
    classes = {"multiclass": 4, "binary": 1, "multilabel": 3}[task]
    random = np.random.default_rng(3)
    logits = random.normal(size=(80, classes, 5), scale=2).astype(np.float32)
    options = {} if kind in (MutualInformationScore, PredictiveVarianceScore) else {"per_member": True}
    score = kind(task=task, **options).fit(Y=logits[:40]).calibrate(coverage=0.7)
    bundle = selkit.export_bundle(members(classes, 5), score=score, path=tmp_path / "b.onnx")
    agree(run(bundle, logits), score.select(torch.from_numpy(logits)), float(score.threshold))
    assert bundle.verify(logits).ok


@pytest.mark.parametrize("kind", [EnergyScore, EntropyScore])
@pytest.mark.parametrize("groups", [False, True])
def test_the_sample_that_a_risk_rejects_is_rejected_in_the_file_too(kind, groups, tmp_path):
    """A threshold that keeps a risk lies just below a calibration score, nearer than rounding."""
    random = np.random.default_rng(4)
    logits = random.normal(size=(400, 2), scale=2).astype(np.float32)
    score = kind().fit(Y=logits)
    known = score.calibration_scores
    each = torch.from_numpy(logits).argmax(1) if groups else None
    wrong = (known >= known.sort().values[300]).float()
    score.calibrate(risk=0.2, losses=wrong, groups=each)
    options = {"prediction": "logits"} if groups else {}
    bundle = selkit.export_bundle(linear(2, 2), score=score, path=tmp_path / "b.onnx", **options)
    python = score.select(logits, **({"groups": each} if groups else {}))["selected"].numpy()
    parts = [known[each == c] for c in (0, 1)] if groups else [known]
    limits = score.threshold.reshape(-1).tolist()
    assert all((part > limit).any() for part, limit in zip(parts, limits, strict=True))
    for rows in (logits, logits[::-1]):
        found = run(bundle, np.ascontiguousarray(rows))["selected"]
        assert (found == (python if rows is logits else python[::-1])).all()
    # and logits whose last digits differ, as another runtime would make them
    nudged = run(bundle, logits * np.float32(1 + 2e-7))["selected"]
    assert (nudged == python).all()


@pytest.mark.parametrize("columns", [1, 2])
def test_binary_logits_of_one_or_two_columns_agree(columns, tmp_path):
    logits = np.random.default_rng(4).normal(size=(60, 2), scale=2).astype(np.float32)
    for kind in (EnergyScore, SoftmaxScore, EntropyScore, MarginScore):
        own = logits[:, :columns]
        score = kind(task="binary").fit(Y=own[:30]).calibrate(coverage=0.7)
        bundle = selkit.export_bundle(linear(2, columns), score=score, path=tmp_path / "b.onnx")
        agree(run(bundle, logits), score.select(torch.from_numpy(own.copy())), float(score.threshold))


@pytest.mark.parametrize("prediction", [None, "logits"])
@pytest.mark.parametrize("aggregate", ["max", "mean", "min"])
@pytest.mark.parametrize(
    "kind",
    [EuclideanClassWiseScore, CosineClassWiseScore, MahalanobisClassWiseScore],
    ids=lambda k: k.__name__,
)
def test_class_wise_scores_agree(kind, aggregate, prediction, network, fit_on, calibrate_on, judge, tmp_path):
    score = kind(3, aggregate=aggregate).fit(
        X=fit_on.embedding, y=fit_on.labels, Y=calibrate_on.embedding, y_cal=calibrate_on.labels
    )
    score.calibrate(coverage=0.8)
    path = tmp_path / "b.onnx"
    bundle = selkit.export_bundle(
        network, score=score, path=path, embedding="embedding", prediction=prediction
    )
    model = with_outputs(network, "embedding", "logits")
    for part in (judge, calibrate_on):
        embedding, logits = opened(model).run(None, {"x": part.images})
        query = {"embedding": torch.from_numpy(embedding)}
        if prediction is not None:
            query["prediction"] = torch.from_numpy(logits.argmax(1))
        expected, found = score.select(query), run(bundle, part.images)
        assert (found["selected"] == expected["selected"].numpy()).all()
        np.testing.assert_allclose(found["score"], expected["score"].numpy(), rtol=1e-5, atol=1e-6)
        assert bundle.verify(part.images).ok
    assert bundle.description.score.groups == [0, 1, 2]


@pytest.mark.parametrize("aggregate", ["max", "mean", "min"])
def test_several_predicted_labels_agree(aggregate, fit_on, calibrate_on, judge, network, tmp_path):
    columns = {"max": (0, 1), "mean": (0, 2), "min": (1, 2)}[aggregate]
    y = np.zeros((len(fit_on.labels), 3), dtype=np.int64)
    y[np.arange(len(y)), fit_on.labels] = 1
    y[:, columns[1]] |= y[:, columns[0]]
    y_cal = (calibrate_on.logits > 0).long()
    score = EuclideanClassWiseScore(2, aggregate=aggregate)
    score.fit(X=fit_on.embedding, y=y, Y=calibrate_on.embedding, y_cal=y_cal).calibrate(coverage=0.7)
    bundle = selkit.export_bundle(
        network, score=score, path=tmp_path / "b.onnx", embedding="embedding", prediction="logits"
    )
    model = with_outputs(network, "embedding", "logits")
    embedding, logits = opened(model).run(None, {"x": judge.images})
    made = torch.from_numpy((logits > 0).astype(np.int64))
    assert len({tuple(row) for row in made.tolist()}) > 2
    expected = score.select({"embedding": torch.from_numpy(embedding), "prediction": made})
    found = run(bundle, judge.images)
    assert (found["selected"] == expected["selected"].numpy()).all()
    np.testing.assert_allclose(found["score"], expected["score"].numpy(), rtol=1e-5, atol=1e-6)
    assert bundle.verify(judge.images).ok


def test_thresholds_of_groups_follow_the_prediction(network, fit_on, calibrate_on, judge, tmp_path):
    model = with_outputs(network, "embedding", "logits")
    runner = opened(model)
    y_cal = calibrate_on.logits.argmax(1)
    score = EuclideanScore(2).fit(X=fit_on.embedding, Y=calibrate_on.embedding, y_cal=y_cal)
    score.calibrate(coverage=0.8, groups="label")
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", prediction="logits")
    embedding, logits = runner.run(None, {"x": judge.images})
    expected = score.select(torch.from_numpy(embedding), groups=logits.argmax(1))
    assert (run(bundle, judge.images)["selected"] == expected["selected"].numpy()).all()
    assert bundle.verify(judge.images).ok
    with pytest.raises(selkit.errors.InvalidInputError, match="3 groups: say which value"):
        selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx")


def test_neighbours_equal_brute_force_in_numpy(tmp_path):
    random = np.random.default_rng(5)
    X, query = random.normal(size=(200, 6)), random.normal(size=(40, 6))
    for kind, distances in (
        (EuclideanScore, np.linalg.norm(query[:, None] - X[None], axis=2)),
        (
            CosineScore,
            1 - query @ X.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(X, axis=1)[None],
        ),
    ):
        score = kind(4, "mean").fit(X=X).set_threshold(0.5)
        bundle = selkit.export_bundle(
            linear(6, dtype=onnx.TensorProto.DOUBLE), score=score, path=tmp_path / "b.onnx"
        )
        expected = np.sort(distances, axis=1)[:, :4].mean(1)
        found = run(bundle, query)
        np.testing.assert_allclose(found["score"], expected, rtol=1e-11)
        assert found["score"].dtype == np.float64
        assert (found["selected"] == (expected <= float(score.threshold))).all()


def test_mahalanobis_distances_equal_numpy(tmp_path):
    random = np.random.default_rng(6)
    X = random.normal(size=(300, 4)) @ random.normal(size=(4, 4))
    y = random.integers(0, 3, 300)
    X += 3 * y[:, None]
    query = random.normal(size=(30, 4))
    means = np.stack([X[y == kind].mean(0) for kind in range(3)])
    inverse = np.linalg.inv((X - means[y]).T @ (X - means[y]) / len(X))
    apart = query[:, None] - means[None]
    near = np.einsum("nci,ij,ncj->nc", apart, inverse, apart).min(1)
    whole = np.linalg.inv(np.cov(X.T, bias=True))
    back = np.einsum("ni,ij,nj->n", query - X.mean(0), whole, query - X.mean(0))
    for kind, expected in ((GaussianScore, near), (RelativeMahalanobisScore, near - back)):
        score = kind(shrinkage=0.0).fit(X=X, y=y, Y=X).calibrate(coverage=0.9)
        model = linear(4, dtype=onnx.TensorProto.DOUBLE)
        bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="embedding")
        np.testing.assert_allclose(run(bundle, query)["score"], expected, rtol=1e-9)


@pytest.mark.parametrize("case", ["far from zero", "tight clusters", "duplicates", "tiny", "huge"])
def test_neighbours_survive_cancellation(case, tmp_path):
    random = np.random.default_rng(7)
    X = random.normal(size=(400, 16))
    if case == "far from zero":
        X += 3000
    elif case == "tight clusters":
        X = X * 1e-3 + 100 * random.integers(-5, 5, (400, 1))
    elif case == "duplicates":
        X = np.repeat(X[:20], 20, axis=0)
    else:
        X *= {"tiny": 1e-12, "huge": 1e12}[case]
    X = X.astype(np.float32)
    query = np.concatenate(
        [X[:30], X[30:60] + np.float32(np.abs(X).mean() * 1e-4), X[60:90] * np.float32(0.5)]
    )
    for stat in ("max", "mean"):
        score = EuclideanScore(3, stat).fit(X=X, Y=X[200:]).calibrate(coverage=0.9)
        model = linear(16)
        bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="embedding")
        exact = np.sort(np.linalg.norm(query[:, None].astype(np.float64) - X[None], axis=2), axis=1)[:, :3]
        expected = exact[:, -1] if stat == "max" else exact.mean(1)
        np.testing.assert_allclose(run(bundle, query)["score"], expected, rtol=2e-6, atol=0)
        agree(run(bundle, query), score.select(torch.from_numpy(query)), float(score.threshold))


def test_a_calibration_sample_that_set_the_threshold_is_selected(network, fit_on, calibrate_on, tmp_path):
    runner = opened(with_outputs(network, "embedding"))
    embedding = torch.from_numpy(runner.run(None, {"x": calibrate_on.images})[0])
    for coverage in (0.1, 0.37, 0.6, 0.95):
        for kind in (EuclideanScore(2), MahalanobisScore(3, "mean"), GaussianScore()):
            score = kind.fit(X=fit_on.embedding, y=fit_on.labels, Y=embedding).calibrate(coverage=coverage)
            path = tmp_path / "b.onnx"
            bundle = selkit.export_bundle(network, score=score, path=path, embedding="embedding")
            found = run(bundle, calibrate_on.images)
            assert (found["selected"] == score.select(embedding)["selected"].numpy()).all()
            assert found["selected"].sum() == int((score.calibration_scores <= score.threshold).sum())


def test_the_threshold_can_be_moved(network, fit_on, calibrate_on, judge, tmp_path):
    score = EuclideanScore(2).fit(X=fit_on.embedding, Y=calibrate_on.embedding).calibrate(coverage=0.9)
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", embedding="embedding")
    values = run(bundle, judge.images)["score"]
    for number in (*np.quantile(values, [0.1, 0.5]), values[3], np.inf, -np.inf):
        limit = np.asarray(number, dtype=np.float32)
        found = run(bundle, judge.images, threshold=limit)
        assert (found["selected"] == (values <= limit)).all()
        assert (bundle.run(judge.images, threshold=float(limit))["selected"] == found["selected"]).all()
    stored = {t.name: t for t in onnx.load(bundle.path).graph.initializer}["threshold"]
    assert onnx.numpy_helper.to_array(stored) == score.threshold.numpy()
    assert bundle.verify(judge.images, threshold=float(np.median(values))).ok


@pytest.mark.parametrize(("mode", "takes"), [("optional", 1), ("required", 2), ("fixed", 1)])
def test_the_threshold_is_an_input_as_asked_for(mode, takes, network, calibrate_on, judge, tmp_path):
    score = MarginScore().fit(Y=calibrate_on.logits).calibrate(coverage=0.7)
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", threshold_input=mode)
    runner = opened(bundle.content)
    assert len(runner.get_inputs()) == takes
    assert len(runner.get_overridable_initializers()) == (mode == "optional")
    assert bundle.verify(judge.images).ok
    if mode == "fixed":
        with pytest.raises(selkit.errors.InvalidInputError, match="threshold of this bundle is fixed"):
            bundle.run(judge.images, threshold=1.0)


def test_nan_and_infinity_are_never_selected(network, fit_on, calibrate_on, tmp_path):
    bad = calibrate_on.images[:4].copy()
    bad[0, 0, 2, 2], bad[1, 0, 0, 0], bad[2] = np.nan, np.inf, -np.inf
    for score in [*EMBEDDING[::4], *EMBEDDING[13:], *LOGITS[::4]]:
        logits = score.feature == "logits"
        cal = calibrate_on.logits if logits else calibrate_on.embedding
        X = fit_on.logits if logits else fit_on.embedding
        score.fit(X=X, y=fit_on.labels, Y=cal).set_threshold(1.0)
        options = {} if logits else {"embedding": "embedding"}
        bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", **options)
        assert run(bundle, bad)["selected"].tolist()[:3] == [False] * 3, score
        assert run(bundle, bad)["selected"][3], score


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20, 21])
def test_models_of_all_opsets_agree(opset, fit_on, calibrate_on, judge, tmp_path):
    model = network(opset=opset)
    score = (
        EuclideanScore(3, "mean").fit(X=fit_on.embedding, Y=calibrate_on.embedding).calibrate(coverage=0.9)
    )
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="embedding")
    assert bundle.verify(judge.images).ok
    for kind in (EntropyScore, MarginScore):
        score = kind().fit(Y=calibrate_on.logits).calibrate(coverage=0.9)
        assert selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx").verify(judge.images).ok
    written = onnx.load(bundle.path)
    assert 8 <= written.ir_version <= 10
    assert [entry.domain for entry in written.opset_import] == [""]


def test_half_precision_embeddings_are_scored_as_in_python(tmp_path):
    X = np.random.default_rng(8).normal(size=(100, 5)).astype(np.float16)
    score = EuclideanScore(2).fit(X=X, Y=X[50:]).calibrate(coverage=0.9)
    model = linear(5, dtype=onnx.TensorProto.FLOAT16)
    bundle = selkit.export_bundle(model, score=score, path=tmp_path / "b.onnx", embedding="embedding")
    agree(run(bundle, X), score.select(X), float(score.threshold))


@pytest.mark.parametrize("pool", [None, "mean", "flatten"])
def test_feature_maps_are_pooled_as_in_python(pool, network, data, judge, tmp_path):
    score = EuclideanScore(2).fit(
        model=network,
        loaders={"train": [data.images[:300]], "val": [data.images[300:450]]},
        layer="map",
        pool=pool,
    )
    score.calibrate(coverage=0.9)
    bundle = selkit.export_bundle(
        network, score=score, path=tmp_path / "b.onnx"
    )  # layer and pool are those of fit
    assert bundle.description.score.value == "map"
    assert bundle.verify(judge.images).ok
    expected = score.select(model=network, loader=[judge.images])
    assert (run(bundle, judge.images)["selected"] == expected["selected"].numpy()).all()


def test_a_score_of_your_own_brings_its_nodes(network, calibrate_on, judge, tmp_path):
    class LengthScore(EuclideanScore):
        def _score(self, query):
            return query.norm(dim=1)

    score = LengthScore().fit(X=calibrate_on.embedding, Y=calibrate_on.embedding).calibrate(coverage=0.9)
    with pytest.raises(selkit.errors.NotAvailableError, match="nothing says how it is written"):
        selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", embedding="embedding")

    def to_onnx(g, features):
        return g.op("Sqrt", g.reduce("ReduceSumSquare", g.double(features), [1]))

    score.to_onnx = to_onnx
    bundle = selkit.export_bundle(network, score=score, path=tmp_path / "b.onnx", embedding="embedding")
    assert bundle.verify(judge.images).ok


def test_the_assertion_of_these_tests_can_fail(calibrate_on):
    score = MarginScore().fit(Y=calibrate_on.logits).calibrate(coverage=0.9)
    expected = score.select(calibrate_on.logits)
    right = {name: value.numpy().copy() for name, value in expected.items()}
    agree(right, expected, float(score.threshold))
    for name, change in (("score", 1.001), ("score", np.nan), ("selected", None)):
        wrong = {key: value.copy() for key, value in right.items()}
        wrong[name][3] = ~wrong[name][3] if change is None else wrong[name][3] * np.float32(change)
        with pytest.raises(AssertionError):
            agree(wrong, expected, float(score.threshold))
    with pytest.raises(AssertionError):
        agree({**right, "score": right["score"][:-1]}, expected, float(score.threshold))
