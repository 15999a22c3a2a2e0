"""Where a function of one variable is at most zero on [0, 1], for many functions at once.

Quadratics are solved in closed form. A difference of two convex functions is bounded on an interval by
tangents and chords, which are exact to second order; halving what the bounds leave open isolates the roots,
and where the slope surely keeps its sign a root is found to machine precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from selkit.inference.acceptance.spans import Floats, Index, Mask, Spans, covered

EPS = float(np.finfo(np.float64).eps)

Parts = Callable[[Floats, Index], tuple[Floats, Floats, Floats, Floats]]
"""At places ``t`` of rows: a convex function, its slope, the convex one to subtract, and its slope."""


def quadratic_below(row: Index, a: Floats, b: Floats, c: Floats, count: int) -> Spans:
    """Where ``a t^2 + b t + c <= 0``.

    Parameters
    ----------
    row, a, b, c
        One quadratic for each entry, of shape (M,).
    count
        How many rows there are.

    Returns
    -------
    Spans
        Up to two intervals for each entry; entries of one row are not merged.

    Examples
    --------
    >>> one = np.ones(1)
    >>> found = quadratic_below(np.array([0]), one, -one, 0.1875 * one, 1)
    >>> found.low.tolist(), found.high.tolist()
    ([0.25], [0.75])
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Scaled, so that squares neither overflow nor vanish.
        size = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.abs(c))
        scale = np.where(size > 0, size, 1.0)
        a, b, c = a / scale, b / scale, c / scale
        inner = b * b - 4 * a * c
        # The root that loses no digits, and the other one from the product of both.
        q = -0.5 * (b + np.copysign(np.sqrt(np.maximum(inner, 0.0)), b))
        far, near = q / a, c / q
        low, high = np.fmin(far, near), np.fmax(far, near)
        linear = a == 0
        root = -c / b
    never = inner < 0
    nothing, everything = np.full(len(a), np.inf), np.full(len(a), -np.inf)
    always = ((a < 0) & never) | (linear & (b == 0) & (c <= 0))
    up = (a > 0) & ~never
    down = (a < 0) & ~never
    rising, falling = linear & (b > 0), linear & (b < 0)
    first_low = np.select(
        [always, up, down, rising, falling], [everything, low, everything, everything, root], nothing
    )
    first_high = np.select(
        [always, up, down, rising, falling], [nothing, high, low, root, nothing], everything
    )
    second_low, second_high = np.where(down, high, nothing), np.where(down, nothing, everything)
    return Spans.of(
        np.concatenate([row, row]),
        np.concatenate([first_low, second_low]),
        np.concatenate([first_high, second_high]),
        count,
    )


def difference_below(parts: Parts, count: int) -> Spans:
    """Where the difference of two convex functions is at most zero.

    Parameters
    ----------
    parts
        The two functions and their slopes (any subgradient at a kink).
    count
        How many rows there are.

    Returns
    -------
    Spans
        Sorted, disjoint within each row.

    Examples
    --------
    >>> def parts(t, row):
    ...     return t**2, 2 * t, 0.25 + 0 * t, 0 * t
    >>> found = difference_below(parts, 1)
    >>> found.low.tolist(), found.high.tolist()
    ([0.0], [0.5])
    """
    if not count:
        return Spans.where(np.zeros(0, dtype=bool))
    row = np.arange(count, dtype=np.int64)
    left, right = np.zeros(count), np.ones(count)
    at_left, at_right = parts(left, row), parts(right, row)
    found: list[tuple[Index, Floats, Floats]] = []
    while len(row):
        inside, outside, single = _judge(left, right, at_left, at_right)
        found.append((row[inside], left[inside], right[inside]))
        if bool(single.any()):
            first, last = ((at[0] - at[2])[single] for at in (at_left, at_right))
            found.append(_root(parts, row[single], left[single], right[single], (first, last)))
        rest = ~(inside | outside | single)
        row, left, right = row[rest], left[rest], right[rest]
        if not len(row):
            break
        at_left, at_right = _take(at_left, rest), _take(at_right, rest)
        middle = (left + right) / 2
        at_middle = parts(middle, row)
        row = np.concatenate([row, row])
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        at_left, at_right = _join(at_left, at_middle), _join(at_middle, at_right)
    rows, low, high = (np.concatenate(values) for values in zip(*found, strict=True))
    return covered(Spans.of(rows, low, high, count))


_Values = tuple[Floats, Floats, Floats, Floats]


def _take(values: _Values, mask: Mask) -> _Values:
    g, dg, h, dh = values
    return g[mask], dg[mask], h[mask], dh[mask]


def _join(first: _Values, second: _Values) -> _Values:
    g, dg, h, dh = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    return g, dg, h, dh


def _judge(left: Floats, right: Floats, at_left: _Values, at_right: _Values) -> tuple[Mask, Mask, Mask]:
    """Which intervals lie inside, which outside, and which have exactly one root."""
    g0, dg0, h0, dh0 = at_left
    g1, dg1, h1, dh1 = at_right
    f0, f1, width = g0 - h0, g1 - h1, right - left
    lower = np.minimum(np.minimum(f0, f1), _tangents_above_chord(width, (g0, dg0, g1, dg1), (h0, h1)))
    upper = np.maximum(np.maximum(f0, f1), -_tangents_above_chord(width, (h0, dh0, h1, dh1), (g0, g1)))
    steady = (dg0 - dh1 >= 0) | (dg1 - dh0 <= 0)
    below = (f0 <= 0) & (f1 <= 0)
    above = (f0 > 0) & (f1 > 0)
    # Where bounds differ by no more than rounding, or the interval cannot be halved, the ends decide.
    noise = 8 * EPS * (np.abs(g0) + np.abs(g1) + np.abs(h0) + np.abs(h1))
    done = steady | (upper - lower <= noise) | (width <= 4 * EPS)
    inside = (upper <= 0) | (below & done)
    outside = ~inside & ((lower > 0) | (above & done))
    return inside, outside, done & ~inside & ~outside


def _tangents_above_chord(width: Floats, convex: _Values, other: tuple[Floats, Floats]) -> Floats:
    """Smallest distance of the tangents of one convex function above the chord of another.

    It is attained at an end, which the caller knows, or where the two tangents meet.
    """
    (g0, dg0, g1, dg1), (h0, h1) = convex, other
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (g1 - g0 - dg1 * width) / ((dg0 - dg1) * width)
    place = np.clip(np.nan_to_num(place, nan=0.5), 0.0, 1.0)
    # Rounding may put the meeting point a little off: the lower of both tangents is still a bound there.
    tangent = np.minimum(g0 + dg0 * width * place, g1 - dg1 * width * (1 - place))
    return np.asarray(tangent - (h0 + (h1 - h0) * place))


def _root(
    parts: Parts, row: Index, left: Floats, right: Floats, ends: tuple[Floats, Floats]
) -> tuple[Index, Floats, Floats]:
    """The part of each interval that is at most zero, where the function passes zero once."""
    first, last = ends
    falling = first > 0
    root = np.empty(len(row))
    active, low, high = np.arange(len(row)), left, right
    with np.errstate(divide="ignore", invalid="ignore"):
        guess = left + (right - left) * first / (first - last)
    for step in range(100):
        # Newton's steps converge fast, halving surely.
        inner = (guess > low) & (guess < high) & (step % 4 != 3)
        place = np.where(inner, guess, (low + high) / 2)
        g, dg, h, dh = parts(place, row[active])
        f = g - h
        before = (f > 0) == falling[active]
        low, high = np.where(before, place, low), np.where(before, high, place)
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = place - f / (dg - dh)
        close = np.abs(guess - place) <= 2 * EPS * np.maximum(np.abs(place), 1e-3)
        done = close | (f == 0) | (high - low <= 2 * EPS) | (step == 99)
        root[active[done]] = np.where(close, np.clip(guess, low, high), place)[done]
        rest = ~done
        active, low, high, guess = active[rest], low[rest], high[rest], guess[rest]
        if not len(active):
            break
    return row, np.where(falling, root, left), np.where(falling, right, root)
