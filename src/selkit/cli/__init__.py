"""The ``selkit`` command: fit, select, test, explain, bundle, report, demo, ops.

Examples
--------
>>> from selkit.cli import main
>>> main(["--version"])
selkit ...
0
"""

from __future__ import annotations

from selkit.cli.app import main

__all__ = ["main"]
