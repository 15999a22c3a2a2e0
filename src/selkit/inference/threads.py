"""How many threads a test is worth.

Torch's threads meet after every operation. Where an operation is short, and above all where others use the
processor too, each waits longer for the others than it works: then one thread is faster than two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from selkit.graph.program import Program
from selkit.inference.crop import work

HEAVY = 5e7
"""Multiplications in a step, of all points of a stack, from which more than one thread pays."""


def useful(program: Program, points: int) -> int:
    """How many threads pay for stacks of this many points: all that torch may use, or one."""
    if torch.get_num_threads() == 1 or not program.steps:
        return 1
    each = work(program.steps, program) * points / len(program.steps)
    return torch.get_num_threads() if each >= HEAVY else 1


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use this many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
