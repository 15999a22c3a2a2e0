"""Any model that onnxruntime runs: trees against Shapley values by enumeration."""

from __future__ import annotations

import math
import sys
from itertools import combinations

import numpy as np
import onnx
import pytest
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError, MissingExtraError
from selkit.explain.permutation import PermutationExplainer, check_target

FEATURES = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, FEATURES)).astype(np.float32)
REFERENCES, QUERIES = X[:5], X[100:103]


def exact(model, sample, references):
    """Shapley values over all subsets of features; absent ones take the references' values."""
    size = len(sample)

    def value(present):
        mixed = references.copy()
        mixed[:, list(present)] = sample[list(present)]
        return model(mixed).mean(0)

    values = []
    for feature in range(size):
        others = [f for f in range(size) if f != feature]
        values.append(
            sum(
                math.factorial(count)
                * math.factorial(size - count - 1)
                / math.factorial(size)
                * (value((*subset, feature)) - value(subset))
                for count in range(size)
                for subset in combinations(others, count)
            )
        )
    return np.array(values)


def to_onnx(model, **settings):
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    return convert_sklearn(
        model,
        initial_types=[("x", FloatTensorType([None, FEATURES]))],
        target_opset=17,
        options={id(model): settings},
    )


@pytest.fixture(scope="module")
def regressor():
    y = X[:, 0] * X[:, 1] + np.abs(X[:, 2]) + X[:, 3]
    return GradientBoostingRegressor(n_estimators=10, max_depth=2, random_state=0).fit(X, y)


@pytest.fixture(scope="module")
def classifier():
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] * X[:, 2] > 0)
    return RandomForestClassifier(n_estimators=5, max_depth=4, random_state=0).fit(X, y)


@pytest.fixture(scope="module")
def probabilities(classifier):
    return to_onnx(classifier, zipmap=False)


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {text}')


def test_trees_of_depth_two_are_exact_in_one_order(regressor):
    explainer = PermutationExplainer(to_onnx(regressor), REFERENCES, target=0, permutations=1)
    explanation = explainer.explain(QUERIES)
    expected = [exact(regressor.predict, sample, REFERENCES) for sample in QUERIES]
    np.testing.assert_allclose(explanation.attributions, expected, atol=2e-6)
    np.testing.assert_allclose(explanation.output, regressor.predict(QUERIES), rtol=1e-5)
    np.testing.assert_allclose(explanation.base_value, regressor.predict(REFERENCES).mean(), rtol=1e-5)
    assert np.abs(explanation.additivity_error).max() < 1e-12
    assert (explanation.method, explanation.references) == ("permutation", 5)


def test_deeper_trees_come_near_with_more_orders_and_sum_always(classifier, probabilities):
    expected = np.array([exact(classifier.predict_proba, sample, REFERENCES) for sample in QUERIES])
    errors = []
    for permutations in (1, 60):
        explainer = PermutationExplainer(probabilities, REFERENCES, target="all", permutations=permutations)
        explanation = explainer.explain(QUERIES)
        assert np.abs(explanation.additivity_error).max() < 1e-12
        errors.append(np.abs(explanation.attributions - np.moveaxis(expected, -1, 0)).max())
    assert errors[1] < 0.01 < errors[0]


def test_the_top_class_is_each_samples_own(classifier, probabilities):
    top = PermutationExplainer(probabilities, REFERENCES).explain(X[100:112])
    everything = PermutationExplainer(probabilities, REFERENCES, target="all").explain(X[100:112])
    classes = classifier.predict_proba(X[100:112]).argmax(1)
    assert len(set(classes)) > 1
    np.testing.assert_array_equal(top.target, classes)
    np.testing.assert_allclose(top.attributions, everything.attributions[classes, np.arange(12)], atol=1e-12)
    assert top.attributions.shape == (12, FEATURES)
    assert everything.attributions.shape == (3, 12, FEATURES)


def test_a_sample_does_not_depend_on_its_batch_nor_on_numpys_state(probabilities):
    explainer = PermutationExplainer(probabilities, REFERENCES, target=[2, 0], permutations=1)
    np.random.seed(3)  # noqa: NPY002 - what shap would change
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - see above
    together = explainer.explain(QUERIES)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002 - see above
    for row in range(len(QUERIES)):
        alone = explainer.explain(QUERIES[row : row + 1])
        np.testing.assert_array_equal(alone.attributions[:, 0], together.attributions[:, row])
        np.testing.assert_array_equal(alone.target[:, 0], [2, 0])


def test_the_seed_chooses_the_orders(probabilities):
    found = [
        PermutationExplainer(probabilities, REFERENCES, target=0, permutations=1, seed=seed).explain(QUERIES)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0].attributions, found[1].attributions)
    assert not np.array_equal(found[0].attributions, found[2].attributions)


def test_any_shape_and_a_fixed_batch():
    model = parsed(
        """(float[3, 2, 2] x) => (float[3, 1] y) {
        flat = Flatten <axis = 1> (x)
        y = ReduceL2 <axes = [1]> (flat) }"""
    )
    x = RNG.normal(size=(4, 2, 2))
    explainer = PermutationExplainer(model, np.zeros((1, 2, 2)), target=0, permutations=100)
    explanation = explainer.explain(x)
    assert explanation.attributions.shape == x.shape
    for row in range(4):
        expected = exact(lambda rows: np.linalg.norm(rows, axis=1), x[row].ravel(), np.zeros((1, 4)))
        np.testing.assert_allclose(explanation.attributions[row].ravel(), expected, atol=0.02)


def test_features_that_equal_the_references_get_nothing(regressor):
    explanation = PermutationExplainer(to_onnx(regressor), REFERENCES[:1]).explain(REFERENCES[:1])
    np.testing.assert_array_equal(explanation.attributions, np.zeros((1, FEATURES)))


def test_more_references_than_shap_keeps_by_default(regressor):
    explanation = PermutationExplainer(to_onnx(regressor), X[:150], target=0, permutations=1).explain(
        QUERIES[:1]
    )
    np.testing.assert_allclose(explanation.base_value, regressor.predict(X[:150]).mean(), rtol=1e-5)
    assert np.abs(explanation.additivity_error).max() < 1e-6


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, r"target is 3, and the model has 3 output\(s\).*an index from 0 to 2"),
        (-1, "target is -1"),
        (1.0, "target is 1.0"),
        (True, "target is True"),
        (None, "target is None"),
        ([0, 3], "target is 3"),
        ([], "name at least one output"),
        ([1, 1], "each only once"),
        ("best", "target is 'best'; it must be 'top', 'all'"),
    ],
)
def test_targets_out_of_range_are_refused(target, message):
    with pytest.raises(InvalidInputError, match=message):
        check_target(target, 3)


@pytest.mark.parametrize(
    ("target", "expected"), [("top", "top"), ("all", (0, 1, 2)), (np.int64(2), 2), (np.array([2, 0]), (2, 0))]
)
def test_targets_are_read(target, expected):
    assert check_target(target, 3) == expected


def test_outputs_must_be_clear(classifier, probabilities):
    named, plain = (
        PermutationExplainer(m, REFERENCES).explain(QUERIES) for m in (to_onnx(classifier), probabilities)
    )
    np.testing.assert_array_equal(named.attributions, plain.attributions)  # without the names of the classes
    with pytest.raises(InvalidInputError, match=r"output is 'label'.*are \['probabilities'\]"):
        PermutationExplainer(probabilities, REFERENCES, output="label")
    two = parsed("(float[N, 4] x) => (float[N, 4] a, float[N, 4] b) { a = Relu(x) b = Neg(x) }")
    with pytest.raises(InvalidInputError, match=r"output must be named.*\['a', 'b'\]"):
        PermutationExplainer(two, REFERENCES)
    explanation = PermutationExplainer(two, REFERENCES, output="b", target=2).explain(QUERIES)
    np.testing.assert_allclose(
        explanation.attributions[:, 2], REFERENCES[:, 2].mean() - QUERIES[:, 2], atol=1e-6
    )
    total = parsed("(float[N, 4] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }")
    with pytest.raises(InvalidInputError, match=r"output 'y' has shape \(\) for 5 samples"):
        PermutationExplainer(total, REFERENCES)


def test_models_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(FileFormatError):
        PermutationExplainer(path, REFERENCES)
    with pytest.raises(FileFormatError, match="onnxruntime cannot run the model"):
        PermutationExplainer(parsed("(float[N, 4] x) => (float[N, 4] y) { y = Unknown(x) }"), REFERENCES)
    with pytest.raises(InvalidInputError, match=r"takes \['a', 'b'\]; one input"):
        PermutationExplainer(parsed("(float[N, 4] a, float[N, 4] b) => (float[N, 4] y) { y = Add(a, b) }"), X)
    with pytest.raises(InvalidTypeError, match=r"input is tensor\(int64\)"):
        PermutationExplainer(parsed("(int64[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }"), X)


def test_bad_arrays_are_refused(probabilities):
    with pytest.raises(InvalidInputError, match=r"references has shape \(200, 3\); the model takes"):
        PermutationExplainer(probabilities, X[:, :3])
    explainer = PermutationExplainer(probabilities, REFERENCES)
    with pytest.raises(InvalidInputError, match="x has NaN"):
        explainer.explain(np.full((1, 4), np.nan))
    with pytest.raises(InvalidTypeError, match="x has dtype int64"):
        explainer.explain(np.ones((1, 4), dtype=np.int64))
    free = parsed("(float[N, M] x) => (float[N, M] y) { y = Neg(x) }")
    with pytest.raises(InvalidInputError, match="must differ in their number only"):
        PermutationExplainer(free, REFERENCES).explain(X[:1, :2])


def test_without_shap_the_extra_is_named(monkeypatch, probabilities):
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selkit\[shap\]'"):
        PermutationExplainer(probabilities, REFERENCES)
