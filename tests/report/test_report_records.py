"""What a report accepts and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.report import Report, Sample

IMAGE = np.zeros((4, 5))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (4, 5)),
        ((1, 4, 5), (4, 5)),
        ((3, 4, 5), (4, 5, 3)),
        ((4, 5, 3), (4, 5, 3)),
        ((3, 3, 3), (3, 3, 3)),
    ],
)
def test_an_image_may_have_its_channels_first_or_last(shape, expected):
    assert Sample(np.zeros(shape), 0.0, True).image.shape == expected


def test_channels_first_keeps_every_pixel():
    image = np.arange(60.0).reshape(3, 4, 5)
    assert Sample(image, 0.0, True).image[1, 2, 0] == image[0, 1, 2]


def test_tensors_are_accepted():
    sample = Sample(torch.ones(1, 4, 5), 0.0, True, roi=torch.ones(1, 4, 5) > 0)
    assert sample.image.sum() == 20
    assert sample.roi.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool])
def test_every_dtype_of_torch_is_accepted(dtype):
    sample = Sample(torch.ones(4, 5).to(dtype).requires_grad_(dtype.is_floating_point), 0.0, True)
    assert sample.image.sum() == 20


def test_attributions_of_channels_are_added_up():
    values = np.arange(60.0).reshape(3, 4, 5)
    np.testing.assert_array_equal(Sample(IMAGE, 0.0, True, attribution=values).attribution, values.sum(0))
    last = np.moveaxis(values, 0, 2)
    np.testing.assert_array_equal(Sample(IMAGE, 0.0, True, attribution=last).attribution, values.sum(0))
    assert Sample(IMAGE, 0.0, True, attribution=values[None]).attribution.shape == (4, 5)


def test_without_an_image_the_first_array_gives_the_shape():
    assert Sample(None, 0.0, True).shape is None
    assert Sample(None, 0.0, True, roi=np.eye(3)).shape == (3, 3)
    assert Sample(np.zeros((4, 5, 3)), 0.0, True).shape == (4, 5)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"image": np.zeros(4)}, InvalidInputError, r"image must have shape \(h, w\)"),
        ({"image": np.zeros((2, 4, 5))}, InvalidInputError, r"got \(2, 4, 5\)"),
        ({"image": np.zeros((0, 5))}, InvalidInputError, "image must have shape"),
        ({"roi": np.full((4, 5), np.nan)}, InvalidInputError, "roi must be finite, got 20 NaN or inf"),
        ({"attribution": np.zeros((3, 5, 4))}, InvalidInputError, "attribution must have the image's height"),
        ({"attribution": np.zeros(5)}, InvalidInputError, r"attribution must have shape \(h, w\)"),
        ({"image": None, "roi": np.eye(3), "target": np.eye(4)}, InvalidInputError, "height and width"),
        ({"adjusted_p_value": 2}, InvalidInputError, r"adjusted_p_value must be in \[0, 1\]"),
        ({"p_value_without_acceptance": -1}, InvalidInputError, r"p_value_without_acceptance must be in"),
        ({"image": np.full((4, 5), "a")}, InvalidTypeError, "image must hold numbers"),
        ({"roi": np.zeros((5, 4))}, InvalidInputError, "roi must have the image's height and width"),
        ({"target": np.zeros(5)}, InvalidInputError, r"target must have shape \(h, w\), got \(5,\)"),
        ({"p_value": 1.5}, InvalidInputError, r"p_value must be in \[0, 1\]"),
        ({"p_value": float("nan")}, InvalidInputError, r"p_value must be in \[0, 1\]"),
        ({"naive_p_value": -0.1}, InvalidInputError, r"naive_p_value must be in \[0, 1\]"),
    ],
)
def test_a_sample_refuses(kwargs, error, text):
    with pytest.raises(error, match=text):
        Sample(**{"image": IMAGE, "score": 0.0, "selected": True, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"alpha": 0}, InvalidInputError, r"alpha must be in \(0, 1\)"),
        ({"threshold": float("nan")}, InvalidInputError, "threshold is NaN"),
        ({"summary": "one text"}, InvalidTypeError, "summary must be a sequence of paragraphs"),
        ({"guarantees": "one"}, InvalidTypeError, "guarantees must be a sequence of paragraphs"),
        (
            {"adjust": "holm"},
            InvalidInputError,
            "adjust must be one of 'bh', 'by', 'bonferroni', 'none'; got 'holm'",
        ),
        ({"risk_coverage": ([1.0],)}, InvalidInputError, "got 1 arrays"),
        ({"risk_coverage": ([1.0], [0.1], [0.2], [0.3, 0.4])}, InvalidInputError, "of one length"),
        ({"risk_coverage": ([1.0], [0.1], [0.2], [0.1])}, InvalidInputError, "they are an interval"),
        ({"value_range": (1.0, 1.0)}, InvalidInputError, "value_range must be"),
        ({"risk_coverage": ([0.5, 1.0], [0.1])}, InvalidInputError, "two arrays of one length"),
        ({"risk_coverage": ([], [])}, InvalidInputError, "two arrays of one length"),
        ({"risk_coverage": ([1.0, 0.5], [0.1, 0.2])}, InvalidInputError, "must increase from 0 to 1"),
        ({"risk_coverage": ([0.5, 1.0], [np.nan, 0.2])}, InvalidInputError, "must be finite"),
    ],
)
def test_a_report_refuses(kwargs, error, text):
    with pytest.raises(error, match=text):
        Report("title", **kwargs)
