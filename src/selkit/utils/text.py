"""Numbers in messages and titles."""

from __future__ import annotations

SMALLEST_P = 1e-300
"""Below this, masses on both sides of a statistic are no longer told apart in double precision."""


def p_text(value: float, digits: int = 4) -> str:
    """A p-value with its digits; one that is too small to be told says so.

    Examples
    --------
    >>> p_text(0.0123456), p_text(2e-304)
    ('0.01235', 'below 1e-300')
    """
    return f"below {SMALLEST_P:g}" if value < SMALLEST_P else f"{value:.{digits}g}"
