"""PNG against Pillow, outlines against every edge of every pixel."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from selkit.report.images import (
    BLUE,
    RED,
    data_address,
    encode_png,
    outline,
    shrink,
    shrink_region,
    signed_png,
    to_bytes,
)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (32, 32), (5, 4, 3)])
def test_png_is_read_back_by_pillow(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    image.verify()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_data_address_holds_the_png():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    head, _, body = data_address(encode_png(pixels)).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == encode_png(pixels)


def test_values_outside_the_range_are_clipped():
    assert to_bytes(np.array([-1.0, 0.0, 0.5, 1.0, 9.0]), 0.0, 1.0).tolist() == [0, 0, 128, 255, 255]


def test_nan_is_dark_and_infinity_clipped():
    assert to_bytes(np.array([np.nan, -np.inf, np.inf]), 0.0, 1.0).tolist() == [0, 0, 255]


def test_signed_numbers_are_blue_and_red_and_clear_where_there_is_nothing():
    values = np.array([[-2.0, 0.0, 1.0, 2.0], [np.nan, np.inf, -1.0, 0.01]])
    pixels = np.asarray(Image.open(io.BytesIO(signed_png(values))).convert("RGBA"))
    assert tuple(pixels[0, 0]) == (*BLUE, 255)
    assert tuple(pixels[0, 3]) == (*RED, 255)
    assert tuple(pixels[0, 2]) == (*RED, 128)
    assert tuple(pixels[1, 2]) == (*BLUE, 128)
    assert pixels[0, 1, 3] == pixels[1, 0, 3] == pixels[1, 1, 3] == pixels[1, 3, 3] == 0
    assert (
        np.asarray(Image.open(io.BytesIO(signed_png(np.zeros((2, 2))))).convert("RGBA"))[..., 3] == 0
    ).all()


@pytest.mark.parametrize("shape", [(7, 5), (6, 6), (9, 4, 3), (1, 10)])
@pytest.mark.parametrize("side", [1, 3, 4, 100])
def test_shrinking_takes_the_mean_over_blocks(shape, side):
    image = np.random.default_rng(0).random(shape)
    step = int(np.ceil(max(shape[:2]) / side))
    expected = [
        [image[r : r + step, c : c + step].mean(axis=(0, 1)) for c in range(0, shape[1], step)]
        for r in range(0, shape[0], step)
    ]
    got = shrink(image, side)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert max(got.shape[:2]) <= side or step == 1


def test_a_shrunken_region_keeps_at_least_what_is_touched():
    region = np.zeros((8, 8), dtype=bool)
    region[0, 0] = True
    assert shrink_region(region, 2).tolist() == [[True, False], [False, False]]
    region[4:, 4:] = True
    assert shrink_region(region, 2).tolist() == [[False, False], [False, True]]


def unit_edges(path: str) -> set[tuple[int, int, str]]:
    """Every edge of length one that a path draws."""
    edges = set()
    for x, y, kind, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", path):
        for step in range(int(length)):
            across = kind == "h"
            edges.add((int(x) + step * across, int(y) + step * (not across), kind))
    return edges


def brute_force_edges(region: np.ndarray) -> set[tuple[int, int, str]]:
    """Every edge between a pixel inside and one outside, one pixel after the other."""
    inside = {(int(r), int(c)) for r, c in np.argwhere(region)}
    edges = set()
    for r, c in inside:
        for (dr, dc), edge in {
            (-1, 0): (c, r, "h"),
            (1, 0): (c, r + 1, "h"),
            (0, -1): (c, r, "v"),
            (0, 1): (c + 1, r, "v"),
        }.items():
            if (r + dr, c + dc) not in inside:
                edges.add(edge)
    return edges


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.booleans()))
def test_outline_draws_exactly_the_border(region):
    path = outline(region)
    assert unit_edges(path) == brute_force_edges(region)
    assert re.fullmatch(r"(M\d+ \d+[hv]\d+)*", path)


def test_the_check_of_outlines_sees_a_missing_edge():
    region = np.ones((2, 2), dtype=bool)
    assert unit_edges("M0 0h2") != brute_force_edges(region)
