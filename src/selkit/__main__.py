"""``python -m selkit`` is the ``selkit`` command."""

from __future__ import annotations

import sys

from selkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
