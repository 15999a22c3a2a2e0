"""Test images in other threads, processes or machines."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import pickle
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from selkit.inference.table import RoiRow
from selkit.inference.threads import threads

if TYPE_CHECKING:
    from selkit.inference.roi import RoiTest


@dataclass(frozen=True)
class Item:
    """One image on its way to a worker; where ``row`` is known already, there is nothing to do.

    ``mark`` is the image's digest where the row shall be written to a checkpoint.
    """

    index: int
    image: Any = None
    mask: Any = None
    mark: str | None = None
    row: RoiRow | None = None


@dataclass(frozen=True)
class Work:
    """What a worker needs to know besides the image."""

    test: RoiTest
    var: Any
    options: Mapping[str, Any]
    keep: bool
    raising: bool


class Runner:
    """Tests images; sent to another process as bytes that are read only once there.

    joblib shares the bytes between processes where they are large, Dask sends them to each worker once.
    """

    def __init__(self, work: Work, *, remote: bool = False) -> None:
        self._work, self._remote = work, remote
        self._here = threading.local()
        self._here.test = work.test

    @functools.cached_property
    def _packed(self) -> tuple[str, NDArray[np.uint8]]:
        # Own hypotheses are often classes of a notebook, which plain pickle cannot send.
        content = pickle.dumps(joblib.wrap_non_picklable_objects(self._work, keep_wrapper=False))
        return hashlib.sha256(content).hexdigest(), np.frombuffer(content, dtype=np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, self._packed

    def __sizeof__(self) -> int:
        # Dask asks for it: large objects are sent once, small ones with every task.
        return object.__sizeof__(self) + self._packed[1].nbytes

    def run(self, item: Item) -> tuple[RoiRow, str | None]:
        """Return the row of an image, and its digest if the row is new."""
        if item.row is not None:
            return item.row, None
        work, start = self._work, time.perf_counter()
        if not hasattr(self._here, "test"):
            # A test remembers the program of the last shape, so each thread has its own.
            self._here.test = copy.copy(work.test)
        try:
            # there is a worker for every core already
            with threads(1) if self._remote else contextlib.nullcontext():
                image = _writable(item.image)
                var = work.var(image) if callable(work.var) else work.var
                masked = {} if item.mask is None else {"mask": _writable(item.mask)}
                result = self._here.test.inference(image, var, **masked, **work.options)
                row = RoiRow.of(item.index, result, time.perf_counter() - start, keep=work.keep)
        except Exception as error:  # one image must not stop the others: its row says why
            if work.raising:
                error.add_note(f"in image {item.index}")
                raise
            row = RoiRow.of_error(item.index, error, time.perf_counter() - start)
        return row, item.mark


_received: dict[str, Runner] = {}


def _unpack(key: str, content: NDArray[np.uint8]) -> Runner:
    """Return the runner that was packed, the same one for all images that this process gets."""
    runner = _received.get(key)
    if runner is None:
        _received.clear()  # models are large: one is kept
        runner = Runner(pickle.loads(content.tobytes()), remote=True)  # noqa: S301 - from our own process
        _received[key] = runner
    return runner


def _run(runner: Runner, item: Item) -> tuple[RoiRow, str | None]:
    return runner.run(item)


def _writable(value: Any) -> Any:
    """Copy arrays that joblib maps from a file, which torch cannot take as they are."""
    if isinstance(value, list | tuple):
        return type(value)(_writable(part) for part in value) if type(value) in (list, tuple) else value
    return value.copy() if isinstance(value, np.ndarray) and not value.flags.writeable else value


def distribute(
    runner: Runner, items: Iterable[Item], n_jobs: int | None
) -> Generator[tuple[RoiRow, str | None]]:
    """Yield rows as they are computed, in any order."""
    tasks = (joblib.delayed(_run)(runner, item) for item in items)
    try:
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    except ValueError:
        # Ray's and multiprocessing's backends return whole lists only, so they get one block after another.
        block = 8 * joblib.effective_n_jobs(n_jobs)
        while some := list(itertools.islice(tasks, block)):
            yield from joblib.Parallel(n_jobs=n_jobs)(some)
        return
    yield from parallel(tasks)
