"""References from anything that holds samples, and the few that stand for many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.explain.references import read_array, read_references, summarize

SAMPLES = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
SHAPE = (None, 2, 3)


def dataset() -> TensorDataset:
    return TensorDataset(torch.from_numpy(SAMPLES), torch.arange(7))


SOURCES = {
    "array": SAMPLES,
    "float64": SAMPLES.astype(np.float64),
    "tensor that wants a gradient": torch.from_numpy(SAMPLES).requires_grad_(),
    "reversed memory": SAMPLES[::-1].copy()[::-1],
    "nested lists": SAMPLES.tolist(),
    "list of samples": list(SAMPLES),
    "list of batches": [SAMPLES[:4], SAMPLES[4:]],
    "list of batches and labels": [(SAMPLES[:4], [0] * 4), [SAMPLES[4:], [1] * 3]],
    "generator": (SAMPLES[i : i + 2] for i in range(0, 7, 2)),
    "loader": DataLoader(dataset(), batch_size=3),
    "data set": dataset(),
    "dictionaries": [{"image": SAMPLES[:5], "label": 0}, {"image": SAMPLES[5:], "label": 0}],
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_gives_the_samples(source):
    read = read_references(source, SHAPE)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, SAMPLES)


def test_a_key_names_the_input_of_a_loader():
    loader = [{"a": SAMPLES, "b": np.zeros(7)}]
    np.testing.assert_array_equal(read_references(loader, SHAPE, key="a"), SAMPLES)
    with pytest.raises(InvalidInputError, match="input_key"):
        read_references(loader, SHAPE)


def test_types_are_those_of_the_model():
    assert read_references(SAMPLES, SHAPE, np.float64).dtype == np.float64
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    assert read_array(half, (None, 3), np.float16).dtype == np.float16
    assert read_array(half, None, None).dtype == np.float32
    assert read_array(np.ones((2, 3)), None, None).dtype == np.float64
    with pytest.raises(InvalidInputError, match=r"infinite values \(as float16\) in 1 of 2 samples"):
        read_array(np.array([[1.0], [1e6]]), (None, 1), np.float16)


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        (None, InvalidTypeError, "references is a NoneType; give an array or tensor"),
        ("train", InvalidTypeError, "references is a str"),
        (3.0, InvalidTypeError, "references is a float"),
        pytest.param(object(), InvalidTypeError, "cannot be iterated", id="an object"),
        ({"x": SAMPLES}, InvalidTypeError, "references is a dict"),
        (SAMPLES > 0, InvalidTypeError, "dtype bool; the model takes float32"),
        ((SAMPLES * 100).astype(np.uint8), InvalidTypeError, "dtype uint8.*scaling included"),
        ([SAMPLES.astype(np.int64)], InvalidTypeError, r"references \(entry 0\) has dtype int64"),
        (SAMPLES.astype(complex), InvalidTypeError, "complex"),
        (np.array([["a"]]), InvalidTypeError, "numbers"),
        ([], InvalidInputError, "references has no sample"),
        pytest.param(iter(()), InvalidInputError, "references has no sample", id="an empty iterator"),
        (SAMPLES[:0], InvalidInputError, r"references is empty, of shape \(0, 2, 3\)"),
        ([SAMPLES[:0]], InvalidInputError, r"references \(entry 0\) is empty"),
        (SAMPLES[0], InvalidInputError, r"shape \(2, 3\), without an axis for samples"),
        (SAMPLES[:, :, :2], InvalidInputError, r"shape \(7, 2, 2\); the model takes \(samples, 2, 3\)"),
        ([SAMPLES, SAMPLES[:, :1]], InvalidInputError, r"references \(entry 1\) has shape \(7, 1, 3\)"),
        (np.where(SAMPLES > 2, np.nan, SAMPLES), InvalidInputError, "NaN or infinite values"),
        ([[[1.0, 2.0, 3.0], [1.0]]], InvalidInputError, "one array"),
    ],
    ids=str,
)
def test_what_cannot_be_references_is_refused(references, error, message):
    given = np.full_like(SAMPLES, np.nan) if message.startswith("NaN") else references
    with pytest.raises(error, match=message):
        read_references(given, SHAPE)


def test_free_sizes_must_agree_between_batches():
    assert read_references([np.ones((1, 4, 3))], (None, None, 3)).shape == (1, 4, 3)
    with pytest.raises(InvalidInputError, match="different shapes"):
        read_references([np.ones((1, 4, 3)), np.ones((1, 5, 3))], (None, None, 3))


def test_the_first_bad_sample_is_named():
    bad = SAMPLES.copy()
    bad[4, 0, 0] = np.inf
    with pytest.raises(InvalidInputError, match="in 1 of 7 samples, first in sample 4"):
        read_references(bad, SHAPE)


def clouds() -> np.ndarray:
    """Three clouds of 5, 10 and 25 samples, far from each other."""
    rng = np.random.default_rng(1)
    centers = np.repeat([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], [5, 10, 25], axis=0)
    return (centers + rng.normal(size=centers.shape)).astype(np.float32)


def test_representatives_are_the_samples_nearest_to_the_means_of_their_clouds():
    samples = clouds()
    chosen, share = summarize(samples, 3, weights=True)
    expected = [
        cloud[np.linalg.norm(cloud - cloud.mean(0), axis=1).argmin()] for cloud in np.split(samples, [5, 15])
    ]
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_allclose(share, [5 / 40, 10 / 40, 25 / 40])
    np.testing.assert_array_equal(summarize(samples, 3), chosen)


def test_representatives_do_not_depend_on_order_or_source():
    samples = np.random.default_rng(2).normal(size=(60, 4)).astype(np.float32)
    shuffled = samples[np.random.default_rng(3).permutation(60)]
    loader = DataLoader(TensorDataset(torch.from_numpy(shuffled)), batch_size=7)
    expected = {row.tobytes() for row in summarize(samples, 5, seed=1)}
    assert len(expected) == 5
    assert {row.tobytes() for row in summarize(shuffled, 5, seed=1)} == expected
    assert {row.tobytes() for row in summarize(loader, 5, seed=1)} == expected


def test_repeated_samples_weigh_but_are_chosen_once():
    samples = np.array([[0.0], [0.0], [0.0], [1.0]])
    chosen, share = summarize(samples, 2, weights=True)
    assert chosen.tolist() == [[0.0], [1.0]]
    assert share.tolist() == [0.75, 0.25]
    with pytest.raises(InvalidInputError, match=r"k is 3, but references has 2 different samples \(of 4\)"):
        summarize(samples, 3)


def test_images_keep_their_shape_and_type():
    images = np.random.default_rng(4).normal(size=(9, 1, 4, 4))
    assert summarize(images, 2).shape == (2, 1, 4, 4)
    assert summarize(images, 2).dtype == np.float64
    assert summarize(dataset(), 2).shape == (2, 2, 3)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_k_must_be_a_positive_number(k):
    with pytest.raises((InvalidInputError, InvalidTypeError), match="k must be a whole number"):
        summarize(SAMPLES, k)
