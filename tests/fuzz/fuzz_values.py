# ruff: noqa: E501 - a table
"""What nobody should hand in, and limits on what a call may do with it."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from selkit.errors import SelkitError

SECONDS = 5
MEMORY = 2**30
"""What a call may take at most; memory beyond what the process has already."""


class Opaque:
    """An object that nothing is known about."""


def wrong_values() -> list[Any]:
    """A fresh list: some of these are used up or changed by who gets them."""
    return [
        None, True, "", "text", "0.5", b"bytes", 0, -1, 1, 3, 2**31, 2**63, 10**400, -(10**400),
        0.0, -0.0, 0.5, 1.5, -2.0, 1e-320, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), 1 + 2j,
        np.float32("nan"), np.int64(-5), np.uint8(3), np.bool_(True), np.datetime64("2020-01-01"), np.str_("a"),
        [], (), {}, set(), [None], ["a", "b"], [[1.0, 2.0], [3.0]], [float("nan")], {"a": 1}, {1: "a"}, [[]],
        range(4), iter([1, 2]), slice(1, 2), lambda *a, **k: None, Opaque(), Opaque, print, Ellipsis,
        SimpleNamespace(a=1), Path("no/such/file"), Path(), "/", "no\0path", "/no/such/folder/file",
        np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(()), np.full((4, 3), np.nan),
        np.full((2, 2), np.inf), np.array(["a", "b"]), np.array([None, 1], dtype=object), np.ones((2, 3)) * 1j,
        np.zeros((1,) * 12), np.full(5, 1e308), np.full((6, 3), 2**62), np.ones((2, 3), dtype=np.float16),
        np.ma.masked_array([1.0, 2.0], [True, False]), np.zeros(3, dtype="datetime64[s]"), np.ones((40, 3)),
        np.zeros(2, dtype=[("a", "f4")]), np.array([True, False]), np.arange(6.0).reshape(2, 3)[::-1],
        torch.zeros(0), torch.full((3,), float("nan")), torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.complex64), torch.ones(2, 2, 2, 2),
        torch.ones(3, requires_grad=True), torch.tensor(5), torch.zeros(3, device="meta"),
        torch.nn.Linear(3, 2), torch.float16, np.dtype("f4"), "cuda:7", "mean", "all", "fit", -1e-9,
    ]  # fmt: skip


class TookTooLongError(BaseException):
    """A call did not end in time."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """End what takes too long or too much memory by an exception in this process."""

    def late(number: int, frame: object) -> None:
        raise TookTooLongError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, late), signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process: other work on the machine does not count
    signal.setitimer(signal.ITIMER_REAL, 60 * SECONDS)  # for what waits without working
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


def allowed(error: BaseException) -> bool:
    """Whether a user may see this: an error of selkit, or what the operating system says of a file."""
    if isinstance(error, SelkitError):
        return True
    return isinstance(error, OSError) and type(error).__module__ == "builtins"
