"""Progress of long work: shown on a terminal only, and switched off with one call.

Examples
--------
>>> from selkit.utils import progress
>>> progress.disable()
>>> list(progress.track(range(3), "counting"))
[0, 1, 2]
>>> progress.enable()
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

_enabled = True


def disable() -> None:
    """Show no progress bars in this process from now on."""
    global _enabled  # noqa: PLW0603 - one switch for the whole process is what users ask for
    _enabled = False


def enable() -> None:
    """Show progress bars again (on a terminal or in a notebook)."""
    global _enabled  # noqa: PLW0603 - see disable
    _enabled = True


def is_enabled() -> bool:
    """Whether a bar would be shown now: not disabled, and standard error is a terminal."""
    return _enabled and sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Show no progress bars inside a ``with`` block."""
    global _enabled  # noqa: PLW0603 - see disable
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar that vanishes when it is done.

    Parameters
    ----------
    items
        What to iterate over.
    description
        Shown in front of the bar.
    total
        Number of items where ``items`` has no length.
    """
    yield from tqdm(items, desc=description, total=total, disable=not is_enabled(), leave=False)
