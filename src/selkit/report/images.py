"""Images as text that a page can hold: PNG as a data address, outlines as SVG paths."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def to_bytes(image: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low`` to 0 and ``high`` to 255, clipping what lies outside."""
    scaled = (image - low) / (high - low) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode grey ``(h, w)`` or colour ``(h, w, 3)`` pixels as PNG (ISO/IEC 15948), 8 bits, no filter."""
    height, width = pixels.shape[:2]
    kind = 0 if pixels.ndim == 2 else 2
    rows = pixels.reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(lines, 9))
        + _chunk(b"IEND")
    )


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def data_address(pixels: NDArray[np.uint8]) -> str:
    """The image as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")


def outline(region: NDArray[np.bool_]) -> str:
    """The border of a region along the edges of its pixels, as an SVG path in units of pixels.

    Examples
    --------
    >>> outline(np.array([[False, True]]))
    'M1 0h1M1 1h1M1 0v1M2 0v1'
    """
    padded = np.pad(region, 1)
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (h + 1, w): an edge above row r
    vertical = padded[1:-1, 1:] != padded[1:-1, :-1]  # (h, w + 1): an edge left of column c
    across = [f"M{start} {r}h{n}" for r, line in enumerate(horizontal) for start, n in _runs(line)]
    down = [f"M{c} {start}v{n}" for c, line in enumerate(vertical.T) for start, n in _runs(line)]
    return "".join(across + down)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and length of each run of True."""
    change = np.diff(np.pad(line.astype(np.int8), 1))
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    return [(int(s), int(e - s)) for s, e in zip(starts, ends, strict=True)]
