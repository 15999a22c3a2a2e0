"""Numbers as the page writes them."""

from __future__ import annotations

import math


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


def change_text(value: float | None) -> str:
    """A difference of two p-values, with its sign."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:+.3f}" if abs(value) >= 0.0005 else f"{value:+.0e}"


def plain(value: float | None) -> str:
    """A number as a script reads it; empty if there is none."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(float(value))
