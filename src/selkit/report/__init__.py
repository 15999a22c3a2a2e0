"""One self-contained HTML page about a run: what was decided, how well, and every sample to look at.

The page needs no network and no server, works in light and dark, with the keyboard, and prints. Its input are
plain records (:class:`Report`, :class:`Sample`), so that it can be written from anything.
"""

from __future__ import annotations

from selkit.report.curve import risk_coverage_interval
from selkit.report.from_test import from_test
from selkit.report.page import write_report
from selkit.report.records import Curve, Report, Sample

__all__ = ["Curve", "Report", "Sample", "from_test", "risk_coverage_interval", "write_report"]
