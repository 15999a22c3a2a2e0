"""Tests of regions that are conditioned on acceptance, against onnxruntime and the score on a dense grid."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from coarse import StrongestCell, coarse_test, neighbours, network, noise, run, sureness

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError, NoHypothesisError, NotAcceptedError
from selkit.inference import Acceptance, RoiResult
from selkit.scores import EuclideanScore

MODEL = network()
TEST = coarse_test(MODEL)
KNN = neighbours(MODEL)


def accepted_images(score=KNN, embedding="maxima", count=4, seed=20):
    images = noise(60, seed)
    chosen = score.select(torch.from_numpy(run(MODEL, images)[embedding]))["selected"].numpy()
    return images[chosen][:count], images[~chosen]


IMAGES, REJECTED = accepted_images()


def check_set(result: RoiResult, score, embedding: str) -> int:
    """Compare with the region and the score on a grid; return on how many points acceptance decides."""
    values = np.linspace(-4, 4, 801) * result.scale
    rows = result.searched_intervals
    values = values[((values[:, None] >= rows[:, 0]) & (values[:, None] <= rows[:, 1])).any(1)]
    outputs = run(MODEL, result.image_at(values)[:, 0])
    region = np.stack([StrongestCell().select(cells)[0] for cells in outputs["map"]])
    same = (region == result.roi).all((1, 2))
    found = score.select(torch.from_numpy(outputs[embedding]))
    truth = same & found["selected"].numpy()
    intervals = result.truncated_intervals
    inside = ((values[:, None] >= intervals[:, 0]) & (values[:, None] <= intervals[:, 1])).any(1)
    ends = np.concatenate([intervals.ravel(), result.accepted_by.truncated_intervals.ravel()])
    doubtful = np.abs(values[:, None] - ends).min(1) < 1e-5
    assert (inside == truth)[~doubtful].all()
    alone = result.accepted_by.truncated_intervals
    inside = ((values[:, None] >= alone[:, 0]) & (values[:, None] <= alone[:, 1])).any(1)
    assert (inside == same)[~doubtful].all()
    return int((same & ~truth).sum())


@pytest.mark.parametrize("mode", ["parametric", "exhaustive"])
def test_the_truncation_set_is_where_both_events_hold(mode):
    cut = 0
    for image in IMAGES:
        result = TEST.inference(image, inference_mode=mode, accepted_by=KNN, embedding="maxima")
        assert any(low <= result.stat <= high for low, high in result.truncated_intervals)
        cut += check_set(result, KNN, "maxima")
    assert cut > 50  # acceptance removed something


def test_the_check_fails_without_conditioning():
    image = IMAGES[0]
    right = TEST.inference(image, accepted_by=KNN, embedding="maxima")
    wrong = TEST.inference(image, accepted_by=Acceptance(KNN, "maxima", threshold=1.2 * float(KNN.threshold)))
    check_set(right, KNN, "maxima")
    with pytest.raises(AssertionError):
        check_set(wrong, KNN, "maxima")


def test_bounds_contain_the_p_value_of_the_whole_set():
    for image in IMAGES:
        whole = TEST.inference(image, inference_mode="exhaustive", accepted_by=KNN, embedding="maxima")
        some = TEST.inference(image, precision=0.05, accepted_by=KNN, embedding="maxima")
        assert some.sup_p - some.inf_p < 0.05
        assert some.inf_p - 1e-9 <= whole.p_value <= some.sup_p + 1e-9
        assert some.accepted_by.inf_p - 1e-9 <= whole.accepted_by.p_value <= some.accepted_by.sup_p + 1e-9
        decided = TEST.inference(image, inference_mode="decision", accepted_by=KNN, embedding="maxima")
        assert (decided.sup_p <= 0.05) == (whole.p_value <= 0.05)
        assert decided.sup_p <= 0.05 or decided.inf_p > 0.05


def test_what_is_reported_about_acceptance():
    image = IMAGES[0]
    result = TEST.inference(image, accepted_by=KNN, embedding="maxima")
    alone = TEST.inference(image)
    features = run(MODEL, image[None])["maxima"]
    assert result.accepted_by.score == "EuclideanScore"
    assert result.accepted_by.value == pytest.approx(float(KNN.score(torch.from_numpy(features))), rel=1e-5)
    assert result.accepted_by.threshold == float(KNN.threshold)
    assert result.accepted_by.value <= result.accepted_by.threshold
    assert result.p_value_unconditioned == pytest.approx(alone.p_value, abs=2e-3)
    assert result.p_value_unconditioned == result.accepted_by.p_value != result.p_value
    assert alone.accepted_by is None
    assert alone.p_value_unconditioned == alone.p_value
    everything = TEST.inference(image, accepted_by=Acceptance(KNN, "maxima", threshold=np.inf))
    assert everything.p_value == pytest.approx(alone.p_value, abs=1e-9)


def test_rejected_images_have_no_p_value():
    with pytest.raises(NotAcceptedError, match=r"not accepted: its EuclideanScore is .* above the threshold"):
        TEST.inference(REJECTED[0], accepted_by=KNN, embedding="maxima")
    assert issubclass(NotAcceptedError, NoHypothesisError)
    assert TEST.inference(REJECTED[0]).p_value >= 0


def test_thresholds_just_below_and_above_the_score():
    features = run(MODEL, IMAGES[:1])["maxima"].astype(np.float64)
    limit = float(EuclideanScore(k=1).fit(X=torch.zeros(1, 4, dtype=torch.float64)).score(features))
    exact = EuclideanScore(k=1).fit(X=torch.zeros(1, 4, dtype=torch.float64))
    for nudge in (-1e-3, 1e-3):
        acceptance = Acceptance(exact, "maxima", threshold=limit + nudge)
        if nudge < 0:
            with pytest.raises(NotAcceptedError):
                TEST.inference(IMAGES[0], accepted_by=acceptance)
        else:
            assert TEST.inference(IMAGES[0], accepted_by=acceptance).accepted_by.value < limit + nudge


def test_the_embedding_of_another_model():
    other = network(("maxima",))
    region_only = coarse_test(network(("map",)))
    for accepted in (
        Acceptance(KNN, "maxima", model=other),
        Acceptance(KNN, model=other.SerializeToString()),
    ):
        for image in IMAGES[:2]:
            here = TEST.inference(image, accepted_by=KNN, embedding="maxima")
            there = region_only.inference(image, accepted_by=accepted)
            assert there.p_value == pytest.approx(here.p_value, abs=1e-9)
    two = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 1, 8, 8] x, float[1, 1, 8, 8] w) => (float[1, 1, 8, 8] y) { y = Add(x, w) }
    """)
    with pytest.raises(InvalidInputError, match=r"model of accepted_by takes 2 inputs \(x, w\)"):
        TEST.inference(IMAGES[0], accepted_by=Acceptance(KNN, "y", model=two))


def test_other_kinds_of_tests():
    image = IMAGES[0]
    options = {"accepted_by": KNN, "embedding": "maxima"}
    [component] = TEST.inference_components(image, **options)
    assert component.p_value == pytest.approx(TEST.inference(image, **options).p_value, abs=1e-9)
    narrow = TEST.inference(image, inference_mode="over_conditioning", **options)
    assert narrow.accepted_by.value < float(KNN.threshold)
    check_set(narrow, KNN, "maxima")
    less = TEST.inference(image, alternative="less", null_value=0.3, **options)
    assert 0 <= less.p_value <= 1
    for seed in range(20):
        try:
            found = TEST.inference_randomized(image, 1.0, noise_var=0.1, seed=seed, **options)
        except NotAcceptedError:  # the noisy image is the one that is judged
            continue
        assert 0 <= found.p_value <= 1
        assert found.selection.accepted_by.value <= float(KNN.threshold)
        break
    else:
        pytest.fail("no noisy image was accepted")


def test_many_images(tmp_path):
    images = np.concatenate([IMAGES[:2], REJECTED[:1]])
    options = {"accepted_by": KNN, "embedding": "maxima", "progress": False}
    table = TEST.inference_batch(images, **options)
    assert [row.error_type for row in table] == [None, None, "NotAcceptedError"]
    one = TEST.inference(images[0], accepted_by=KNN, embedding="maxima")
    assert table[0].p_value == pytest.approx(one.p_value, abs=1e-9)
    assert table[0].p_value_unconditioned == pytest.approx(one.p_value_unconditioned, abs=1e-9)
    assert table[0].score == pytest.approx(one.accepted_by.value)
    assert np.isnan(TEST.inference_batch(images[:1], progress=False)[0].score)
    several = TEST.inference_batch(images, n_jobs=2, **options)
    assert np.allclose(several.p_values, table.p_values, equal_nan=True)
    path = tmp_path / "rows.jsonl"
    first = TEST.inference_batch(images, checkpoint=path, **options)
    again = TEST.inference_batch(images, checkpoint=path, **options)
    assert [row.score for row in again][:2] == [row.score for row in first][:2]
    other = neighbours(MODEL, 0.6)
    with pytest.raises(InvalidInputError, match="of another model, hypothesis, variance or other options"):
        TEST.inference_batch(images, checkpoint=path, **{**options, "accepted_by": other})


def test_the_event_follows_a_score_that_changes():
    image = IMAGES[0]
    score = neighbours(MODEL, 0.9)
    before = TEST.inference(image, accepted_by=score, embedding="maxima").p_value
    score.set_threshold(q=0.6)
    after = TEST.inference(image, accepted_by=score, embedding="maxima")
    assert after.accepted_by.threshold == float(score.threshold)
    fresh = coarse_test(MODEL).inference(image, accepted_by=score, embedding="maxima")
    assert after.p_value == fresh.p_value != before
    score.fit(X=run(MODEL, noise(50, 9))["maxima"], Y=run(MODEL, noise(50, 10))["maxima"])
    score.set_threshold(q=1.0)
    refitted = TEST.inference(image, accepted_by=score, embedding="maxima")
    fresh = coarse_test(MODEL).inference(image, accepted_by=score, embedding="maxima")
    assert refitted.p_value == fresh.p_value


def test_arguments_that_do_not_fit():
    image = IMAGES[0]
    with pytest.raises(InvalidTypeError, match="accepted_by is a float; give a fitted score"):
        TEST.inference(image, accepted_by=0.5, embedding="maxima")
    with pytest.raises(InvalidInputError, match="embedding= belongs to accepted_by="):
        TEST.inference(image, embedding="maxima")
    with pytest.raises(InvalidInputError, match="not twice"):
        TEST.inference(image, accepted_by=Acceptance(KNN, "maxima"), embedding="maxima")
    with pytest.raises(InvalidInputError, match="has 1 features"):
        TEST.inference(image, accepted_by=KNN, embedding="top")


def test_a_pair_with_a_reference():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 1, 8] x) => (float[1, 1, 8] y, float[1, 8] e) { y = Relu(x)  e = Flatten(x) }
    """)
    hypothesis = selkit.inference.ReferenceMeanDiff(threshold=0.5)
    score = EuclideanScore(k=1).fit(X=torch.zeros(1, 8))
    draw = np.random.default_rng(0)
    x, reference = draw.normal(size=(2, 1, 1, 8))
    result = selkit.load(model, hypothesis, var=1.0).inference(
        (x, reference), accepted_by=Acceptance(score, "e", threshold=float(np.linalg.norm(x)) + 0.1)
    )
    moved = result.image_at(result.truncated_intervals.ravel())
    assert np.linalg.norm(moved.reshape(len(moved), -1), axis=1).max() <= np.linalg.norm(x) + 0.1 + 1e-9
    assert sureness(MODEL).threshold is not None
