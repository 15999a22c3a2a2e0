"""The page's plots, as SVG that takes its colours from the page's style: sharp, small, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selkit.report.records import Curve

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 16, 52
MOST_POINTS = 500  # of a drawn curve; more than there are pixels helps nobody
GRID = 512  # points at which a density is evaluated
SPAN_OF_LOG = 30.0  # positive scores that span more than this factor get a logarithmic axis
SHADES = 6  # different line styles in the page's style sheet

LARGEST = 1e300
"""What an axis can reach: ticks beyond are no numbers any more."""


@dataclass(frozen=True)
class Scale:
    """Maps values from ``[low, high]`` to pixels from ``start`` to ``end``, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: ArrayLike) -> Floats:
        """The pixels of some values."""
        x, low, high = (np.log10(v) if self.log else np.asarray(v) for v in (values, self.low, self.high))
        return np.asarray(self.start + (x - low) / (high - low) * (self.end - self.start), dtype=np.float64)

    def ticks(self) -> list[float]:
        """Round values inside the range, about five of them."""
        if self.log:
            powers = range(int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high))) + 1)
            every = [m * 10.0**k for k in powers for m in (1, 2, 5) if self.low <= m * 10.0**k <= self.high]
            return every if len(every) <= 7 else [v for v in every if f"{v:e}".startswith("1.0")]
        if not self.high - self.low < LARGEST:
            return [self.low, self.high]
        step = _nice((self.high - self.low) / 5)
        first = np.ceil(self.low / step - 1e-9)
        count = int(np.floor(self.high / step + 1e-9) - first) + 1
        return [float(v) for v in (first + np.arange(count)) * step]


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``step``."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9)))


def widen(low: float, high: float) -> tuple[float, float]:
    """A range that is never empty."""
    low, high = max(low, -LARGEST), min(high, LARGEST)
    if high > low and (high - low) > 1e-12 * max(abs(low), abs(high)):
        return low, high
    more = max(0.5, 1e-3 * max(abs(low), abs(high)))
    return low - more, high + more


def risk_coverage_plot(curve: Curve, name: str, chosen: float | None) -> str:
    """Risk against coverage, with a mark at the coverage of the threshold that was used.

    Parameters
    ----------
    curve
        With an interval, which is drawn as a band, or without.
    name
        What the risk is.
    chosen
        Coverage to mark, or None.
    """
    coverage, risk = curve.coverage, curve.risk
    ends = [part for part in (risk, curve.lower, curve.upper) if part is not None]
    top = max(0.0, *(float(part.max()) for part in ends))
    bottom = min(0.0, *(float(part.min()) for part in ends))
    x = Scale(0, 1, LEFT, WIDTH - RIGHT)
    y = Scale(*widen(bottom, top * 1.05), HEIGHT - BOTTOM, TOP)
    keep = np.unique(np.linspace(0, len(coverage) - 1, MOST_POINTS).round().astype(int))
    parts = [_frame(x, y, "coverage (share of inputs that are accepted)", name)]
    if curve.lower is not None and curve.upper is not None:
        there, back = x(coverage[keep]), x(coverage[keep][::-1])
        band = _path(there, y(curve.upper[keep])) + _path(back, y(curve.lower[keep][::-1])).replace("M", "L")
        parts.append(f'<path class="area band s0" d="{band}Z"/>')
    parts.append(f'<path class="line s0" d="{_path(x(coverage[keep]), y(risk[keep]))}"/>')
    label = (
        f"{name} against coverage: {risk[0]:.3g} at {coverage[0]:.0%}, {risk[-1]:.3g} at {coverage[-1]:.0%}."
    )
    if chosen is not None and coverage[0] <= chosen <= 1:
        at = float(np.interp(chosen, coverage, risk))
        parts.append(_vertical(x, chosen, "threshold"))
        parts.append(f'<circle class="mark" cx="{float(x(chosen)):.1f}" cy="{float(y(at)):.1f}" r="5"/>')
        label += f" At the threshold, coverage is {chosen:.0%} and {name} is {at:.3g}."
    if curve.lower is not None and curve.upper is not None:
        label += (
            f" The interval at {coverage[-1]:.0%} is from {curve.lower[-1]:.3g} to {curve.upper[-1]:.3g}."
        )
    return _svg(parts, label)


def change_plot(pairs: Sequence[tuple[float, float]], alpha: float) -> str:
    """Each p-value conditioned on acceptance against the same without.

    Parameters
    ----------
    pairs
        p-values without and with conditioning on acceptance.
    alpha
        Drawn as a line on both axes.
    """
    values = np.asarray(pairs, dtype=np.float64)
    x = Scale(0, 1, LEFT, WIDTH - RIGHT)
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, "p-value without acceptance", "conditioned on acceptance")]
    parts.append(f'<path class="diagonal" d="{_path(x([0.0, 1.0]), y([0.0, 1.0]))}"/>')
    low, high = float(y(alpha)), float(x(alpha))
    parts.append(
        f'<path class="threshold" d="M{LEFT} {low:.1f}H{WIDTH - RIGHT}M{high:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
    )
    # one path for all points: a page with thousands of circles is slow
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x(values[:, 0]), y(values[:, 1]), strict=True))
    parts.append(f'<path class="dots" d="{dots}"/>')
    change = np.abs(values[:, 1] - values[:, 0])
    return _svg(
        parts,
        f"{len(values)} p-values with and without conditioning on acceptance: "
        f"they differ by {change.mean():.3g} on average and by at most {change.max():.3g}.",
    )


def density_plot(series: Mapping[str, Floats], threshold: float | None) -> str:
    """A density of each set of scores, and the threshold.

    Parameters
    ----------
    series
        Scores by name; values that are not finite are left out.
    threshold
        Drawn as a vertical line, or None.
    """
    finite = {name: v[np.isfinite(v)] for name, v in series.items()}
    finite = {name: v for name, v in finite.items() if len(v)}
    if not finite:
        return ""
    shown = np.concatenate(list(finite.values()))
    if threshold is not None and np.isfinite(threshold):
        shown = np.append(shown, threshold)
    low, high = float(shown.min()), float(shown.max())
    log = low > 0 and high / low > SPAN_OF_LOG
    low, high = (low / 1.3, high * 1.3) if log else _margin(*widen(low, high))
    x = Scale(low, high, LEFT, WIDTH - RIGHT, log)
    curves = {name: density(np.log10(v) if log else v, *x_range(x)) for name, v in finite.items()}
    y = Scale(0, 1.05 * max(float(c.max()) for c in curves.values()), HEIGHT - BOTTOM, TOP)
    parts = [
        _frame(x, y, f"score{' (logarithmic)' if log else ''}: higher is less like the training data", "")
    ]
    pixels = np.linspace(LEFT, WIDTH - RIGHT, GRID)
    for number, name in enumerate(series):
        if name in curves:
            line = _path(pixels, y(curves[name]))
            base = f"L{WIDTH - RIGHT} {HEIGHT - BOTTOM}L{LEFT} {HEIGHT - BOTTOM}Z"
            style = f"s{number % SHADES}"
            parts.append(
                f'<path class="area {style}" d="{line}{base}"/><path class="line {style}" d="{line}"/>'
            )
    label = "Density of the scores of " + ", ".join(
        f"{name} (median {np.median(v):.3g})" for name, v in finite.items()
    )
    if threshold is not None and np.isfinite(threshold):
        parts.append(_vertical(x, threshold, f"threshold {threshold:.3g}"))
        label += f"; the threshold is {threshold:.3g}"
    return _svg(parts, label + ".")


def x_range(scale: Scale) -> tuple[float, float]:
    """The ends of a scale in the units in which it is linear."""
    return (float(np.log10(scale.low)), float(np.log10(scale.high))) if scale.log else (scale.low, scale.high)


def _margin(low: float, high: float) -> tuple[float, float]:
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def density(values: Floats, low: float, high: float) -> Floats:
    """A Gaussian kernel density on 512 points from ``low`` to ``high``, with Silverman's bandwidth.

    The values are first sorted into bins, so that the cost does not grow with their number.
    """
    step = (high - low) / (GRID - 1)
    spread = min(float(values.std()), float(np.subtract(*np.percentile(values, [75, 25]))) / 1.34 or np.inf)
    bandwidth = max(0.9 * spread * len(values) ** -0.2, 2 * step)
    edges = np.linspace(low - step / 2, high + step / 2, GRID + 1)
    counts = np.histogram(values, edges)[0] / len(values)
    offsets = np.arange(-GRID + 1, GRID) * step
    kernel = np.exp(-0.5 * (offsets / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    return np.asarray(np.convolve(counts, kernel)[GRID - 1 : 2 * GRID - 1], dtype=np.float64)


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _vertical(x: Scale, value: float, text: str) -> str:
    at = float(x(value))
    side, anchor = (at - 6, "end") if at > (LEFT + WIDTH - RIGHT) / 2 else (at + 6, "start")
    return (
        f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="note" x="{side:.1f}" y="{TOP + 12}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _frame(x: Scale, y: Scale, x_name: str, y_name: str) -> str:
    """Grid lines, tick labels and axis names; an axis without a name has no ticks."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in x.ticks():
        at = float(x(value))
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{value:.3g}</text>')
    for value in y.ticks() if y_name else ():
        at = float(y(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
    )
    if y_name:
        turn = f"translate(15 {(TOP + bottom) / 2}) rotate(-90)"
        parts.append(f'<text class="name" transform="{turn}" text-anchor="middle">{escape(y_name)}</text>')
    return "".join(parts)


def _svg(parts: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )
