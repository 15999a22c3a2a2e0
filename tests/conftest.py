"""What all tests share: no progress bars, no windows, the same random examples in every run."""

from __future__ import annotations

import os
import signal
import threading

import hypothesis
import pytest
import torch

from selkit.utils import progress

os.environ.setdefault("MPLBACKEND", "Agg")
hypothesis.settings.register_profile("selkit", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("selkit")
progress.disable()
torch.set_num_threads(1)  # tests are small, and several run at once: threads would wait for each other


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same state of torch's global generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _interrupts() -> None:
    """Let SIGINT interrupt, here and in child processes, though a background job of a shell ignores it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
