"""Image files as arrays: every choice is an option, and what no option decides is refused."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from selkit.cli.images import ImageOptions, ImageSamples, open_samples
from selkit.errors import FileFormatError, InvalidInputError, MissingExtraError

RANDOM = np.random.default_rng(0)


def picture(*shape: int, dtype=np.uint8) -> np.ndarray:
    return RANDOM.integers(0, np.iinfo(dtype).max, size=shape, dtype=dtype, endpoint=True)


def read(path, **options) -> np.ndarray:
    return np.stack(list(open_samples(str(path), ImageOptions(**options))))


def test_gray_and_rgb_are_divided_by_their_largest_value(tmp_path):
    gray, deep, color = picture(5, 4), picture(5, 4, dtype=np.uint16), picture(5, 4, 3)
    for name, pixels in (("gray", gray), ("deep", deep), ("color", color)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert read(tmp_path / "gray.png").dtype == np.float32
    np.testing.assert_allclose(read(tmp_path / "gray.png"), gray[None, None] / 255, rtol=1e-6)
    np.testing.assert_allclose(read(tmp_path / "deep.png"), deep[None, None] / 65535, rtol=1e-6)
    np.testing.assert_allclose(read(tmp_path / "color.png"), np.moveaxis(color, 2, 0)[None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(read(tmp_path / "deep.png", scale="none"), deep[None, None])
    np.testing.assert_allclose(read(tmp_path / "color.png", layout="hwc"), color[None] / 255, rtol=1e-6)


def test_mean_and_std_by_channel(tmp_path):
    color = picture(5, 4, 3)
    Image.fromarray(color).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png", mean=(0.1, 0.2, 0.3), std=(2.0,))
    expected = (color / 255 - np.array([0.1, 0.2, 0.3])) / 2.0
    np.testing.assert_allclose(found[0], np.moveaxis(expected, 2, 0), rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidInputError, match="--mean has 2 numbers; images have 3"):
        read(tmp_path / "a.png", mean=(0.1, 0.2))
    with pytest.raises(InvalidInputError, match="--std has a zero"):
        ImageOptions(std=(0.0,))


def test_conversion_of_colors(tmp_path):
    color, gray = picture(5, 4, 3), picture(5, 4)
    Image.fromarray(color).save(tmp_path / "color.png")
    Image.fromarray(gray).save(tmp_path / "gray.png")
    luma = color @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow documents
    assert np.abs(read(tmp_path / "color.png", color="gray")[0, 0] * 255 - luma).max() <= 1
    np.testing.assert_allclose(
        read(tmp_path / "gray.png", color="rgb")[0], np.stack([gray] * 3) / 255, rtol=1e-6
    )


def test_resizing_keeps_a_constant_and_halves_by_means(tmp_path):
    Image.fromarray(np.full((6, 8), 51, np.uint8)).save(tmp_path / "flat.png")
    found = read(tmp_path / "flat.png", resize=(3, 5))
    assert found.shape == (1, 1, 3, 5)
    np.testing.assert_allclose(found, 0.2, rtol=1e-6)
    ramp = np.tile(np.arange(0, 80, 10, dtype=np.uint8), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    inside = read(tmp_path / "ramp.png", resize=(2, 4), scale="none")[0, 0, :, 1:-1]
    np.testing.assert_allclose(inside, np.tile([25.0, 45.0], (2, 1)), rtol=1e-6)


def test_folders_are_read_in_the_order_of_their_names(tmp_path):
    pixels = {name: picture(3, 3) for name in ("b/1.png", "a.png", "b/0.bmp")}
    (tmp_path / "b").mkdir()
    for name, values in pixels.items():
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    samples = ImageSamples.open(tmp_path, ImageOptions())
    names = [samples.name(k) for k in range(3)]
    assert names == ["a.png", "b/0.bmp", "b/1.png"]
    np.testing.assert_allclose(read(tmp_path), np.stack([pixels[n][None] for n in names]) / 255, rtol=1e-6)


def test_names_that_are_no_text_can_be_written(tmp_path):
    try:
        Image.fromarray(picture(3, 3)).save(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))
    except OSError:
        pytest.skip("this file system has names of text only")
    assert ImageSamples.open(tmp_path, ImageOptions()).name(0) == "a\ufffd.png"


def test_mixed_sizes_and_colors_need_an_option(tmp_path):
    Image.fromarray(picture(3, 4)).save(tmp_path / "a.png")
    Image.fromarray(picture(5, 4)).save(tmp_path / "b.png")
    with pytest.raises(InvalidInputError, match=r"sizes: \(3, 4\) in .*a.png, \(5, 4\) in .*; say --resize"):
        read(tmp_path)
    assert read(tmp_path, resize=(4, 4)).shape == (2, 1, 4, 4)
    Image.fromarray(picture(3, 4, 3)).save(tmp_path / "b.png")
    with pytest.raises(InvalidInputError, match=r"colors: gray in .*, rgb in .*; say --color"):
        read(tmp_path)
    assert read(tmp_path, color="rgb").shape == (2, 3, 3, 4)
    assert read(tmp_path, color="gray").shape == (2, 1, 3, 4)


def test_palettes_and_transparency_need_an_option(tmp_path):
    for mode in ("P", "RGBA", "CMYK"):
        Image.fromarray(picture(3, 4, 3)).convert(mode).save(tmp_path / "a.tif")
        with pytest.raises(InvalidInputError, match=rf"mode {mode}\); say --color gray or rgb"):
            read(tmp_path / "a.tif")
        assert read(tmp_path / "a.tif", color="rgb").shape == (1, 3, 3, 4)


def test_what_cannot_be_converted_is_refused(tmp_path):
    Image.fromarray(picture(3, 4, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(FileFormatError, match="more than 8 bits in one channel; --color rgb"):
        read(tmp_path / "deep.png", color="rgb")
    Image.fromarray(np.zeros((3, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(FileFormatError, match="pixels of type float32, whose largest value is not known"):
        read(tmp_path / "float.tif")
    assert read(tmp_path / "float.tif", scale="none").shape == (1, 1, 3, 4)
    frames = [Image.fromarray(picture(3, 4)) for _ in range(2)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(FileFormatError, match="has 2 frames; one is needed"):
        read(tmp_path / "stack.tif")


def deep_png(color: int, channels: int) -> bytes:
    """A PNG file of 3 by 2 pixels with 16 bits in each channel, written by hand."""

    def part(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    lines = b"".join(b"\0" + bytes(range(6 * channels)) for _ in range(2))
    head = struct.pack(">IIBBBBB", 3, 2, 16, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")
    )


def test_channels_that_pillow_would_cut_to_bytes_are_refused(tmp_path):
    path = tmp_path / "deep.png"
    for color, channels in ((2, 3), (6, 4)):
        path.write_bytes(deep_png(color, channels))
        with pytest.raises(FileFormatError, match="several channels of 16 bits, of which Pillow reads 8"):
            read(path, color="rgb")
    path.write_bytes(deep_png(0, 1))
    expected = np.tile(np.frombuffer(bytes(range(6)), ">u2"), (2, 1)).astype(np.float32)
    np.testing.assert_array_equal(read(path, scale="none")[0, 0], expected)


def test_a_broken_image_is_a_reason_and_not_the_end(tmp_path):
    for name in ("a.png", "c.png"):
        Image.fromarray(picture(30, 40)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "d.png").write_bytes(b"nothing")
    samples = ImageSamples.open(tmp_path, ImageOptions())
    (chunk,) = samples.chunks(10)
    loaded = chunk.load()
    assert loaded.good == (0, 2)
    assert loaded.values.shape == (2, 1, 30, 40)
    assert sorted(loaded.bad) == [1, 3]
    assert all("is not a readable image" in reason for reason in loaded.bad.values())
    with pytest.raises(FileFormatError, match=r"b\.png is not a readable image"):
        _ = samples[1]


def test_marks_change_with_content_name_and_options(tmp_path):
    def mark(**options) -> str:
        (chunk,) = ImageSamples.open(tmp_path, ImageOptions(**options)).chunks(10)
        return chunk.mark

    Image.fromarray(picture(3, 4)).save(tmp_path / "a.png")
    first = mark()
    assert mark() == first != mark(scale="none")
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert mark() != first
    (tmp_path / "b.png").rename(tmp_path / "a.png")
    Image.fromarray(picture(3, 4)).save(tmp_path / "a.png")
    assert mark() != first


def test_other_files_and_empty_folders(tmp_path):
    with pytest.raises(InvalidInputError, match=r"has no images; looked for \.png"):
        open_samples(str(tmp_path), ImageOptions())
    with pytest.raises(FileNotFoundError):
        open_samples(str(tmp_path / "no"), ImageOptions())
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(FileFormatError, match="is of an unknown kind; give a"):
        open_samples(str(tmp_path / "a.txt"), ImageOptions())


def test_without_pillow_the_error_names_the_extra(tmp_path, monkeypatch):
    Image.fromarray(picture(3, 4)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selkit\[images\]'"):
        read(tmp_path)


def test_options_of_a_score_hold_and_are_not_contradicted():
    given = {"color": None, "scale": None, "resize": None, "mean": None, "std": None, "layout": None}
    known = ImageOptions(color="gray", resize=(4, 5)).to_dict()
    assert ImageOptions.of(Namespace(**given), known) == ImageOptions(color="gray", resize=(4, 5))
    # what comes back from JSON has lists
    assert ImageOptions.of(Namespace(**given), {**known, "resize": [4, 5]}).resize == (4, 5)
    with pytest.raises(InvalidInputError, match=r"--color is rgb, but the score was fitted on .* gray"):
        ImageOptions.of(Namespace(**{**given, "color": "rgb"}), known)
    assert ImageOptions.of(Namespace(**given)) == ImageOptions()
