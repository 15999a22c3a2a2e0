"""From records to the page."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.report.cards import make_cards
from selkit.report.plots import SHADES, change_plot, density_plot, risk_coverage_plot
from selkit.report.records import Report
from selkit.report.tables import (
    acceptance_effect,
    adjusted_values,
    curve_rows,
    group_rows,
    metric_rows,
    p_value_counts,
)
from selkit.report.text import change_text, decimal, number, p_text, plain
from selkit.utils.atomic import write_text
from selkit.utils.boundary import public
from selkit.utils.checks import as_path
from selkit.utils.checks import number as check_number

if TYPE_CHECKING:
    import jinja2


@public
def write_report(path: str | Path, report: Report, *, max_megabytes: float = 24.0) -> Path:
    """Write a report as one HTML page that needs nothing else.

    Parameters
    ----------
    path
        The file to write, or a folder (existing, or a name without ``.html``) that gets an ``index.html``.
    report
        What to show.
    max_megabytes
        The page is at most so large. Pictures are reduced until they fit, and the page says to which size.

    Returns
    -------
    Path
        The file that was written.

    Notes
    -----
    A picture of 64 by 64 pixels with its attribution and outlines takes about 8 kB, so 2,000 samples of that
    size make a page of 16 MB. Samples are drawn as they are looked at, 60 at a time.

    Raises
    ------
    InvalidTypeError
        If ``report`` is not a :class:`Report`.
    InvalidInputError
        If the page would be larger than ``max_megabytes``, even with the smallest pictures.

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
    text = render(report, max_megabytes)
    path = as_path(path)
    if path.is_dir() or path.suffix.lower() not in {".html", ".htm"}:
        path = path / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    # names of files may hold what is no character
    write_text(path, text, errors="replace")
    return path


def render(report: Report, max_megabytes: float = 24.0) -> str:
    """The page as text."""
    if not max_megabytes > 0:
        raise InvalidInputError(f"max_megabytes must be above 0, got {max_megabytes}.")
    limit = int(check_number(max_megabytes, "max_megabytes", 0.0, 1e6) * 1e6)
    adjusted = adjusted_values(report)
    # what is no picture takes about as much as this for each sample; the end is checked
    cards, side = make_cards(report, adjusted, max(limit - 60_000 - 2_000 * len(report.samples), limit // 4))
    coverage = sum(s.selected for s in report.samples) / len(report.samples) if report.samples else None
    curve = report.curve()
    subsets, single = metric_rows(report)
    groups = group_rows(report.samples)
    effect = acceptance_effect(report)
    series = score_series(report)
    values = {
        "report": report,
        "cards": cards,
        "side": side,
        "max_megabytes": max_megabytes,
        "groups": groups,
        "numbers": {row.name: number for number, row in enumerate(groups)},
        "outlined": any(card.picture.roi for card in cards),
        "truth": any(card.picture.target for card in cards),
        "attributed": any(card.picture.attribution for card in cards),
        "has_loss": any(s.loss is not None for s in report.samples),
        "coverage": coverage,
        "tested": p_value_counts(report, adjusted),
        "effect": effect,
        "effect_plot": "" if effect is None else change_plot(effect.pairs, report.alpha),
        "metrics": subsets,
        "single": single,
        "curve": "" if curve is None else risk_coverage_plot(curve, report.risk_name, coverage),
        "curve_rows": curve_rows(curve),
        "densities": density_plot(series, report.threshold),
        "legend": [(name, number % SHADES) for number, name in enumerate(series)],
        "version": selkit.__version__,
    }
    text = environment().get_template("page.html").render(**values, **texts())
    size = len(text.encode("utf-8", errors="replace"))
    if size > limit:
        raise InvalidInputError(
            f"the page would have {size / 1e6:.1f} MB, more than max_megabytes={max_megabytes:g}, "
            f"with {len(cards)} samples; show fewer, shorten their details, or give a larger max_megabytes"
        )
    return text


def score_series(report: Report) -> dict[str, NDArray[np.float64]]:
    """Scores to draw by name: those of the report, then those of each kind of sample."""
    series = {name: np.asarray(values, dtype=np.float64) for name, values in report.scores.items()}
    for row in group_rows(report.samples):
        chosen = [s.score for s in report.samples if (s.group or "samples") == row.name]
        name = f"{row.name} (samples)" if row.name in series else row.name
        series[name] = np.asarray(chosen, dtype=np.float64)
    return series


def environment() -> jinja2.Environment:
    """Templates with every value escaped, and the page's ways to write numbers."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("selkit.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {
        "number": number,
        "decimal": decimal,
        "p_value": p_text,
        "change": change_text,
        "plain": plain,
    }
    return made


def texts() -> dict[str, str]:
    """Style and script, and the content security policy that lets these run and nothing else."""
    folder = files("selkit.report") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8").strip() for name in ("style.css", "page.js"))
    allowed = f"style-src {checksum(style)}; script-src {checksum(script)}; img-src data:"
    return {"style": style, "script": script, "policy": f"default-src 'none'; {allowed}"}


def checksum(text: str) -> str:
    """A text as a content security policy names it."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
