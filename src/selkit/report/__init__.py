"""One self-contained HTML page about a run: what was decided, how well, and every sample to look at.

The page needs no network and no server, works in light and dark, with the keyboard, and prints. Its input are
plain records (:class:`Report`, :class:`Sample`), so that it can be written from anything.
"""

from __future__ import annotations

from selkit.report.page import write_report
from selkit.report.records import Report, Sample

__all__ = ["Report", "Sample", "write_report"]
