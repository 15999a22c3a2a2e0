"""Images as text that a page can hold: PNG as a data address, outlines as SVG paths."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHADES_OF_SIGN = 24  # of blue and of red each; more would not be told apart
BLUE, RED = (5, 96, 176), (202, 40, 10)  # told apart with every kind of colour blindness


def to_bytes(image: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low`` to 0 and ``high`` to 255, clipping what lies outside; NaN becomes 0."""
    with np.errstate(over="ignore"):
        scaled = np.rint((np.asarray(image, dtype=np.float64) - low) / (high - low) * 255)
    shown: NDArray[np.uint8] = np.nan_to_num(np.clip(scaled, 0, 255), nan=0).astype(np.uint8)
    return shown


def shrink(image: NDArray[Any], side: int) -> NDArray[np.float64]:
    """The mean over square blocks, so that no side is longer than ``side``.

    Blocks at the lower and right border may be smaller. NaN in a block makes it NaN.
    """
    step = -(-max(image.shape[:2]) // side)
    values = np.asarray(image, dtype=np.float64)
    for axis in (0, 1):
        starts = np.arange(0, values.shape[axis], step)
        counts = np.diff(np.append(starts, values.shape[axis]))
        shape = [-1 if a == axis else 1 for a in range(values.ndim)]
        with np.errstate(invalid="ignore"):
            values = np.add.reduceat(values, starts, axis=axis) / counts.reshape(shape)
    return values


def shrink_region(region: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The blocks of which at least half lies inside; where there is none, every block that is touched."""
    share = shrink(region, side)
    inside = share >= 0.5
    return inside if inside.any() else share > 0


def signed_png(values: NDArray[np.float64]) -> bytes:
    """A PNG of signed numbers: blue below zero, red above, transparent at zero and where they are not finite.

    The colours reach from minus to plus the largest absolute value.
    """
    finite = np.where(np.isfinite(values), values, 0.0)
    top = float(np.abs(finite).max())
    levels = np.rint(finite / top * SHADES_OF_SIGN) if top > 0 else np.zeros_like(finite)
    strength = np.abs(np.arange(-SHADES_OF_SIGN, SHADES_OF_SIGN + 1)) / SHADES_OF_SIGN
    palette = bytes(BLUE) * SHADES_OF_SIGN + bytes(3) + bytes(RED) * SHADES_OF_SIGN
    alpha = np.rint(255 * strength).astype(np.uint8).tobytes()
    return encode_png((levels + SHADES_OF_SIGN).astype(np.uint8), palette, alpha)


def encode_png(pixels: NDArray[np.uint8], palette: bytes = b"", alpha: bytes = b"") -> bytes:
    """Encode grey ``(h, w)`` or colour ``(h, w, 3)`` pixels as PNG (ISO/IEC 15948), 8 bits, no filter.

    With a palette (three bytes for each colour) and the alpha of each colour, pixels are indices into it.
    """
    height, width = pixels.shape[:2]
    kind = 3 if palette else 0 if pixels.ndim == 2 else 2
    rows = pixels.reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + (_chunk(b"PLTE", palette) + _chunk(b"tRNS", alpha) if palette else b"")
        + _chunk(b"IDAT", zlib.compress(lines, 6))
        + _chunk(b"IEND")
    )


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def data_address(png: bytes) -> str:
    """An image as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


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
    across = "".join(f"M{start} {r}h{n}" for r, start, n in _runs(horizontal))
    down = "".join(f"M{c} {start}v{n}" for c, start, n in _runs(vertical.T))
    return across + down


def _runs(lines: NDArray[np.bool_]) -> list[list[int]]:
    """Row, start and length of each run of True, row by row."""
    change = np.diff(np.pad(lines.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(change == 1), np.argwhere(change == -1)
    runs: list[list[int]] = np.column_stack([starts, ends[:, 1] - starts[:, 1]]).tolist()
    return runs
