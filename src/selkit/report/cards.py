"""Samples as the gallery shows them, small enough for one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selkit.errors import InvalidInputError
from selkit.report.images import (
    data_address,
    encode_png,
    outline,
    shrink,
    shrink_region,
    signed_png,
    to_bytes,
)
from selkit.report.records import Report, Sample
from selkit.report.text import number, p_text

SIDES = (512, 256, 128, 64, 32, 16)  # that pictures are reduced to, until they fit
MOST_VALUES = 4_000_000  # of all images together, from which the range of grey is taken


@dataclass(frozen=True)
class Picture:
    """What can be drawn of a sample, in pixels of the page; an empty text where there is nothing."""

    width: int = 0
    height: int = 0
    image: str = ""
    attribution: str = ""
    roi: str = ""
    target: str = ""

    @property
    def size(self) -> int:
        """Bytes that it takes in the page."""
        return len(self.image) + len(self.attribution) + len(self.roi) + len(self.target)


@dataclass(frozen=True)
class Card:
    """A sample as the gallery shows it."""

    sample: Sample
    name: str
    picture: Picture
    text: str
    adjusted: float | None
    notes: dict[str, str]


def make_cards(report: Report, adjusted: Sequence[float | None], budget: int) -> tuple[list[Card], int]:
    """One card for each sample, all on one scale of grey.

    Parameters
    ----------
    report
        With the samples.
    adjusted
        Their adjusted p-values.
    budget
        Bytes that all pictures may take together.

    Returns
    -------
    list of Card
    int
        The longest side of a picture in pixels; 0 if every one has its own size.

    Raises
    ------
    InvalidInputError
        If even the smallest pictures take more.
    """
    pictures, side = fit_pictures(report, budget)
    cards = []
    for position, (sample, picture) in enumerate(zip(report.samples, pictures, strict=True)):
        name = sample.name or f"sample {position}"
        text = f"{name}: {'selected' if sample.selected else 'rejected'}, score {number(sample.score)}"
        if sample.p_value is not None:
            text += f", p = {p_text(sample.p_value)}"
        if sample.roi is not None:
            text += f", region of {np.count_nonzero(sample.roi)} pixels"
        if sample.image is None:
            text += ", no image"
        cards.append(Card(sample, name, picture, text, adjusted[position], notes_of(sample)))
    return cards, side


def notes_of(sample: Sample) -> dict[str, str]:
    """What must be said about the arrays, and cannot be seen."""
    notes = {}
    for name in ("image", "attribution"):
        values: Any = getattr(sample, name)
        if values is None or values.dtype.kind != "f":
            continue
        finite = np.isfinite(values)
        if not finite.all():
            notes[f"{name} values that are NaN or inf"] = f"{np.count_nonzero(~finite)} of {values.size}"
        if name == "attribution" and finite.any():
            low, high = values[finite].min(), values[finite].max()
            notes["attribution"] = f"from {number(float(low))} to {number(float(high))}"
    return notes


def fit_pictures(report: Report, budget: int) -> tuple[list[Picture], int]:
    """The largest pictures of all samples that fit into a number of bytes, and their longest side."""
    samples = report.samples
    longest = max((max(s.shape) for s in samples if s.shape is not None), default=0)
    if not longest:
        return [Picture()] * len(samples), 0
    low, high = report.value_range or shown_range(samples)
    sides = [longest, *(side for side in SIDES if side < longest)] if longest <= SIDES[0] else list(SIDES)
    for side in sides:
        pictures: list[Picture] = []
        total = 0
        for sample in samples:
            pictures.append(draw(sample, side, low, high))
            total += pictures[-1].size
            if total > budget:
                break
        else:
            return pictures, 0 if side == longest else side
    raise InvalidInputError(
        f"{len(samples)} samples do not fit into the page's {budget / 1e6:.1f} MB, even with pictures of "
        f"{sides[-1]} pixels a side; show fewer samples, or give a larger max_megabytes"
    )


def draw(sample: Sample, side: int, low: float, high: float) -> Picture:
    """The arrays of one sample, reduced to a longest side."""
    if sample.shape is None:
        return Picture()
    step = -(-max(sample.shape) // side)
    height, width = (-(-length // step) for length in sample.shape)
    parts: dict[str, str] = {}
    if sample.image is not None:
        image: Any = sample.image
        parts["image"] = data_address(
            encode_png(to_bytes(shrink(image, side) if step > 1 else image, low, high))
        )
    if sample.attribution is not None:
        values: Any = sample.attribution
        parts["attribution"] = data_address(signed_png(shrink(values, side) if step > 1 else values))
    for name in ("roi", "target"):
        region: Any = getattr(sample, name)
        if region is not None:
            parts[name] = outline(shrink_region(region, side) if step > 1 else region)
    return Picture(width, height, **parts)


def shown_range(samples: Sequence[Sample]) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles of what is finite over all images; never empty."""
    images: list[Any] = [np.asarray(s.image).ravel() for s in samples if s.image is not None]
    step = max(1, sum(image.size for image in images) // MOST_VALUES)
    values = np.concatenate([image[::step] for image in images]).astype(np.float64) if images else np.zeros(1)
    values = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5])) if len(values) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
