"""From records to the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import selkit
from selkit.errors import InvalidTypeError
from selkit.report.images import data_address, outline, to_bytes
from selkit.report.plots import SHADES, density_plot, risk_coverage_plot
from selkit.report.records import Report, Sample

SUBSETS = ("full", "selected", "rejected")
COUNTS = ("count", "n", "samples")  # names of a metric that is a number of samples


def write_report(path: str | Path, report: Report) -> Path:
    """Write a report as one HTML page that needs nothing else.

    Parameters
    ----------
    path
        The file to write, or a folder (existing, or a name without ``.html``) that gets an ``index.html``.
    report
        What to show.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    InvalidTypeError
        If ``report`` is not a :class:`Report`.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from selkit.report import Report, Sample, write_report
    >>> sample = Sample(np.eye(8), score=0.3, selected=True, roi=np.eye(8), p_value=0.01)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(folder, Report("A run", [sample], threshold=0.5))
    ...     print(page.name, "A run" in page.read_text(encoding="utf-8"))
    index.html True
    """
    if not isinstance(report, Report):
        raise InvalidTypeError(f"report must be a selkit.report.Report, got {type(report).__name__}.")
    path = Path(path)
    if path.is_dir() or path.suffix.lower() not in {".html", ".htm"}:
        path = path / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")
    return path


def render(report: Report) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selkit.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["decimal"] = decimal
    environment.filters["p_value"] = p_text
    cards = make_cards(report)
    groups = group_rows(report.samples)
    series = {name: np.asarray(values) for name, values in report.scores.items()}
    for row in groups:
        chosen = [s.score for s in report.samples if (s.group or "samples") == row.name]
        name = f"{row.name} (samples)" if row.name in series else row.name
        series[name] = np.asarray(chosen, dtype=np.float64)
    coverage = sum(s.selected for s in report.samples) / len(report.samples) if report.samples else None
    curve = report.curve()
    subsets, single = metric_rows(report)
    return environment.get_template("page.html").render(
        report=report,
        cards=cards,
        groups=groups,
        outlined=any(card.roi for card in cards),
        truth=any(card.target for card in cards),
        coverage=coverage,
        tested=p_value_counts(report),
        metrics=subsets,
        single=single,
        curve="" if curve is None else risk_coverage_plot(*curve, report.risk_name, coverage),
        curve_rows=curve_rows(report),
        densities=density_plot(series, report.threshold),
        version=selkit.__version__,
        legend=[(name, number % SHADES) for number, name in enumerate(series)],
    )


def number(value: float | str) -> str:
    """Four significant digits; counts as they are; NaN as a dash."""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.4g}"


def decimal(value: float) -> str:
    """Three decimals, so that a column can be compared; counts and very small or large values as they are."""
    whole = math.isnan(value) or float(value).is_integer()
    return number(value) if whole or not 0.001 <= abs(value) < 1e4 else f"{value:.3f}"


def p_text(value: float | None) -> str:
    """A p-value in text; one too small for a double precision number says so."""
    if value is None:
        return "–"
    if value < 1e-300:
        return "< 1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


@dataclass(frozen=True)
class Card:
    """A sample as the gallery shows it."""

    sample: Sample
    name: str
    source: str
    width: int
    height: int
    roi: str
    target: str
    text: str


def make_cards(report: Report) -> list[Card]:
    """One card for each sample, all on one scale of grey."""
    if not report.samples:
        return []
    low, high = report.value_range or shown_range(report.samples)
    cards = []
    for position, sample in enumerate(report.samples):
        image: NDArray[np.float64] = np.asarray(sample.image)
        name = sample.name or f"sample {position}"
        decision = "selected" if sample.selected else "rejected"
        text = f"{name}: {decision}, score {number(sample.score)}"
        if sample.p_value is not None:
            text += f", p = {p_text(sample.p_value)}"
        if sample.roi is not None:
            text += f", region of {np.count_nonzero(sample.roi)} pixels"
        cards.append(
            Card(
                sample=sample,
                name=name,
                source=data_address(to_bytes(image, low, high)),
                width=image.shape[1],
                height=image.shape[0],
                roi="" if sample.roi is None else outline(np.asarray(sample.roi)),
                target="" if sample.target is None else outline(np.asarray(sample.target)),
                text=text,
            )
        )
    return cards


def shown_range(samples: Sequence[Sample]) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles over all images; never empty."""
    values = np.concatenate([np.asarray(s.image).ravel() for s in samples])
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


@dataclass(frozen=True)
class GroupRow:
    """What was decided about one kind of input."""

    name: str
    total: int
    selected: int

    @property
    def coverage(self) -> float:
        """The share that was selected."""
        return self.selected / self.total


def group_rows(samples: Sequence[Sample]) -> list[GroupRow]:
    """One row for each kind of input, in order of appearance."""
    groups: dict[str, list[bool]] = {}
    for sample in samples:
        groups.setdefault(sample.group or "samples", []).append(bool(sample.selected))
    return [GroupRow(name, len(chosen), sum(chosen)) for name, chosen in groups.items()]


@dataclass(frozen=True)
class PValues:
    """How many regions were tested, and how many p-values are at most alpha."""

    tested: int
    small: int
    naive_small: int | None


def p_value_counts(report: Report) -> PValues | None:
    """Counts over the samples that have a p-value; None if there are none."""
    tested = [s for s in report.samples if s.p_value is not None]
    if not tested:
        return None
    naive = [s.naive_p_value for s in tested if s.naive_p_value is not None]
    return PValues(
        tested=len(tested),
        small=sum(s.p_value <= report.alpha for s in tested if s.p_value is not None),
        naive_small=sum(p <= report.alpha for p in naive) if naive else None,
    )


def metric_rows(report: Report) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Metrics by name and subset, and those that belong to no subset."""
    rows: dict[str, dict[str, float]] = {}
    single: dict[str, float] = {}
    for key, value in report.metrics.items():
        subset, _, name = key.partition("/")
        if subset in SUBSETS and name:
            rows.setdefault(name, {})[subset] = float(value)
        else:
            single[key] = float(value)
    if rows and report.samples and not any(name in COUNTS for name in rows):
        chosen = sum(bool(s.selected) for s in report.samples)
        total = len(report.samples)
        rows["samples"] = {"full": total, "selected": chosen, "rejected": total - chosen}
    return rows, single


def curve_rows(report: Report) -> list[tuple[float, float]]:
    """The risk at a few coverages, for readers who cannot see the plot."""
    curve = report.curve()
    if curve is None:
        return []
    coverage, risk = curve
    at = [c for c in np.arange(1, 11) / 10 if c >= coverage[0] - 1e-12]
    return [(float(c), float(np.interp(c, coverage, risk))) for c in at]
