"""The page's tables and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selkit.report.records import Curve, Report, Sample

SUBSETS = ("full", "selected", "rejected")
COUNTS = ("count", "n", "samples")  # names of a metric that is a number of samples


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


def adjusted_values(report: Report) -> list[float | None]:
    """Adjusted p-values of the samples: those that they bring, else computed from their p-values."""
    given = [s.adjusted_p_value for s in report.samples]
    if any(value is not None for value in given):
        return given
    if report.adjust == "none" or all(s.p_value is None for s in report.samples):
        return [None] * len(given)
    from selkit.inference.adjust import adjusted_p_values

    p_values = [np.nan if s.p_value is None else s.p_value for s in report.samples]
    return [None if np.isnan(p) else float(p) for p in adjusted_p_values(p_values, report.adjust)]


@dataclass(frozen=True)
class PValues:
    """How many regions were tested, and how many p-values of each kind are at most alpha."""

    tested: int
    small: int
    adjusted_small: int | None
    naive_small: int | None


def p_value_counts(report: Report, adjusted: Sequence[float | None]) -> PValues | None:
    """Counts over the samples that have a p-value; None if there are none."""
    tested = [s for s in report.samples if s.p_value is not None]
    if not tested:
        return None
    return PValues(
        tested=len(tested),
        small=sum(s.p_value <= report.alpha for s in tested if s.p_value is not None),
        adjusted_small=_at_most(list(adjusted), report.alpha),
        naive_small=_at_most([s.naive_p_value for s in tested], report.alpha),
    )


def _at_most(values: Sequence[float | None], alpha: float) -> int | None:
    known = [value for value in values if value is not None]
    return sum(value <= alpha for value in known) if known else None


@dataclass(frozen=True)
class AcceptanceEffect:
    """What conditioning p-values on acceptance changed.

    Attributes
    ----------
    pairs
        p-values without and with it.
    small_without, small_with
        How many are at most alpha.
    crossed
        How many lie on different sides of alpha.
    mean, largest
        Of the absolute change.
    """

    pairs: list[tuple[float, float]]
    small_without: int
    small_with: int
    crossed: int
    mean: float
    largest: float


def acceptance_effect(report: Report) -> AcceptanceEffect | None:
    """Over the samples that have both p-values; None if there are none."""
    pairs = [
        (s.p_value_without_acceptance, s.p_value)
        for s in report.samples
        if s.p_value is not None and s.p_value_without_acceptance is not None
    ]
    if not pairs:
        return None
    values = np.asarray(pairs)
    small = values <= report.alpha
    change = np.abs(values[:, 1] - values[:, 0])
    return AcceptanceEffect(
        pairs=pairs,
        small_without=int(small[:, 0].sum()),
        small_with=int(small[:, 1].sum()),
        crossed=int((small[:, 0] != small[:, 1]).sum()),
        mean=float(change.mean()),
        largest=float(change.max()),
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


def curve_rows(curve: Curve | None) -> list[list[float]]:
    """Coverage, risk and perhaps its interval at a few coverages, for readers who cannot see the plot."""
    if curve is None:
        return []
    columns = [c for c in (curve.risk, curve.lower, curve.upper) if c is not None]
    at = [c for c in np.arange(1, 11) / 10 if c >= curve.coverage[0] - 1e-12]
    return [[float(c), *(float(np.interp(c, curve.coverage, column)) for column in columns)] for c in at]
