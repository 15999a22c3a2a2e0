"""Test the regions of many images, on many cores or machines."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference.checkpoint import Checkpoint, digest
from selkit.inference.search import Goal
from selkit.inference.table import RoiRow, RoiTable
from selkit.inference.truncated import check_alternative
from selkit.inference.workers import Item, Runner, Work, distribute
from selkit.utils.arrays import check_fraction
from selkit.utils.boundary import public
from selkit.utils.progress import track

if TYPE_CHECKING:
    from selkit.inference.roi import RoiTest

OnError: TypeAlias = Literal["record", "raise"]
Keep: TypeAlias = Literal["rows", "results"]


@public
def inference_batch(
    test: RoiTest,
    images: Iterable[Any],
    var: Any = None,
    masks: Iterable[Any] | None = None,
    *,
    n_jobs: int | None = None,
    progress: bool = True,
    on_error: OnError = "record",
    keep: Keep = "rows",
    fdr: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> RoiTable:
    """Test the region that a model selects on each of many images.

    Images are distributed by joblib: to the cores of this machine with ``n_jobs``, or to Dask or Ray inside
    ``with joblib.parallel_config(backend="dask"):``. A worker receives the model once, and uses one thread.

    Parameters
    ----------
    test
        From :func:`selkit.load`.
    images
        What :meth:`selkit.RoiTest.inference` takes, one for each test: an array of shape (N, ...), a
        sequence, or any iterable, which is read as far as workers need it. For
        :class:`~selkit.inference.ReferenceMeanDiff` pairs ``(x, reference)``.
    var
        Covariance of the noise of every image, or a function that returns that of the image that it gets.
    masks
        One for each image, None where all pixels may be used; ``mask=`` gives the same to all.
    n_jobs
        How many processes, -1 for all cores. None is 1, or what ``joblib.parallel_config`` says.
    progress
        Show a progress bar, on a terminal.
    on_error
        "record": an image that cannot be tested, or not be read, is a row with NaN as p-value and the
        error's text; "raise": stop at the first.
    keep
        "results" keeps the :class:`~selkit.inference.RoiResult` of each image in its row, a few times the
        image's memory; "rows" keeps the numbers alone.
    fdr
        False discovery rate that :meth:`RoiTable.rejected` is asked for.
    checkpoint
        A file that gets each row as soon as it is known (JSON lines). A later call with the same model,
        images and options leaves out what the file has; images that failed are tried again. Its rows have
        no whole results.
    **options
        As for :meth:`selkit.RoiTest.inference`, the same for all images.

    Returns
    -------
    RoiTable
        A row for each image, in their order.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If the options cannot be used, or ``masks`` are not as many as ``images``.
    FileFormatError
        If ``checkpoint`` is another kind of file, or damaged.
    BaseException
        Whatever stops a run (an interrupt, a worker that dies, an error in reading an iterator) has the
        rows that were computed as ``error.table``.

    Examples
    --------
    >>> import numpy as np, onnx, selkit
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[1, 1, 8] x) => (float[1, 1, 8] y) { y = Relu(x) }''')
    >>> test = selkit.load(model, selkit.BackMeanDiff(threshold=1.0), var=1.0)
    >>> images = np.random.default_rng(0).normal(size=(5, 1, 8))
    >>> table = inference_batch(test, images, fdr=0.1)
    >>> table
    <RoiTable of 5 images: 3 tested, 2 failed>
    >>> table.failed[0].error
    'the region is empty: ...'
    """
    _check(test, on_error, keep, fdr, n_jobs)
    _check_options(test, masks, fdr, options)
    source = _Source(images, masks, raising=on_error == "raise")
    runner = Runner(Work(test, var, options, keep == "results", on_error == "raise"))
    rows: list[RoiRow] = []
    file = None if checkpoint is None else Checkpoint(checkpoint, _key(test, var, options))
    try:
        items = _Items(source, file)
        with contextlib.closing(distribute(runner, items, n_jobs)) as computed:
            done = track(computed, "testing regions", source.total) if progress else computed
            for row, mark in done:
                rows.append(row)
                if file is not None and mark is not None:
                    file.add(row, mark)
        if items.error is not None:
            raise items.error
    except BaseException as error:
        # Whoever catches it finds what was computed.
        error.table = _table(rows, fdr)  # type: ignore[attr-defined]
        raise
    finally:
        if file is not None:
            file.close()
    return _table(rows, fdr)


def _table(rows: list[RoiRow], fdr: float | None) -> RoiTable:
    return RoiTable(sorted(rows, key=lambda row: row.index), fdr=fdr)


class _Source:
    """Images and masks by index; a sequence may fail to give one image and still give the next."""

    def __init__(self, images: Iterable[Any], masks: Iterable[Any] | None, *, raising: bool) -> None:
        given: list[tuple[str, object]] = [("images", images)]
        for name, values in given if masks is None else [*given, ("masks", masks)]:
            several = hasattr(values, "__iter__") or hasattr(values, "__getitem__")
            if isinstance(values, str | bytes | Mapping) or not several:
                raise InvalidTypeError(
                    f"{name} is a {type(values).__name__}; give an array of shape (N, ...), a sequence or an "
                    "iterator with one entry for each test"
                )
            if getattr(values, "ndim", 1) == 0:
                raise InvalidInputError(f"{name} is a single number; give an array of shape (N, ...)")
        self._images, self._masks, self._raising = images, masks, raising
        self.total, count = _length(images), _length(masks)
        if self.total is not None and count is not None and self.total != count:
            raise InvalidInputError(f"there are {count} masks for {self.total} images; give one for each")

    def __iter__(self) -> Iterator[Item]:
        missing = object()
        masks = None if self._masks is None else iter(self._masks)
        index = -1
        for item in self._read():
            index = item.index
            mask = None if masks is None else next(masks, missing)
            if mask is missing:
                raise InvalidInputError(f"masks end before image {index}; give one for each image")
            yield Item(index, item.image, mask, None, item.row)
        if masks is not None and next(masks, missing) is not missing:
            raise InvalidInputError(f"there are more masks than images ({index + 1}); give one for each")

    def _read(self) -> Iterator[Item]:
        images: Any = self._images
        if self.total is None or not hasattr(images, "__getitem__"):
            yield from (Item(index, image) for index, image in enumerate(images))
            return
        for index in range(self.total):
            try:
                item = Item(index, images[index])
            except Exception as error:  # whatever a file reader raises belongs into its row
                if self._raising:
                    raise
                item = Item(index, row=RoiRow.of_error(index, error))
            yield item


def _length(values: object) -> int | None:
    return len(values) if isinstance(values, Sized) else None


class _Items:
    """What is sent to workers; rows that the checkpoint has are not computed again.

    joblib reads it in a thread of its own, where an exception would be lost: it ends here, in ``error``.
    """

    def __init__(self, source: _Source, file: Checkpoint | None) -> None:
        self._source, self._file = source, file
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Item]:
        try:
            for item in self._source:
                if self._file is None or item.row is not None:
                    yield item
                    continue
                mark = digest(item.image, item.mask)
                row = self._file.find(item.index, mark)
                if row is not None:
                    yield Item(item.index, row=row)
                else:
                    yield Item(item.index, item.image, item.mask, mark)
        except Exception as error:  # noqa: BLE001 - raised again by inference_batch, with the table
            self.error = error


def _check(test: RoiTest, on_error: object, keep: object, fdr: object, n_jobs: object) -> None:
    from selkit.inference.roi import RoiTest

    if not isinstance(test, RoiTest):
        raise InvalidTypeError(f"test is a {type(test).__name__}; give what selkit.load returns")
    for name, value, accepted in (("on_error", on_error, get_args(OnError)), ("keep", keep, get_args(Keep))):
        if value not in accepted:
            raise InvalidInputError(f"{name} is {value!r}; it must be one of {', '.join(accepted)}")
    if fdr is not None:
        check_fraction(fdr, "fdr", zero=False, one=False)
    if n_jobs is not None and (not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs == 0):
        raise InvalidInputError(f"n_jobs is {n_jobs!r}; give a number of processes, or -1 for all cores")


def _check_options(test: RoiTest, masks: object, fdr: float | None, options: Mapping[str, Any]) -> None:
    """Refuse at once what would fail for every image."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(test.inference).parameters.items()
        if name not in ("x", "var")
    }
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidInputError(f"there is no option {', '.join(unknown)}; options are {', '.join(known)}")
    if masks is not None and options.get("mask") is not None:
        raise InvalidInputError("give mask (the same for all images) or masks (one for each), not both")
    given = {**known, **options}
    Goal(given["inference_mode"], given["precision"], given["significance_level"])
    check_alternative(given["alternative"])
    if fdr is not None and given["inference_mode"] == "decision":
        raise InvalidInputError(
            "fdr needs p-values, but inference_mode='decision' finds only on which side of "
            "significance_level they are; use inference_mode='parametric'"
        )


def _key(test: RoiTest, var: object, options: Mapping[str, Any]) -> str:
    """Say what is run, for a checkpoint."""
    graph = test.graph
    model = (graph.inputs, graph.outputs, graph.nodes, graph.initializers, graph.opset)
    return digest(
        model, test.hypothesis, test.var if var is None else var, test.seed, options, test.tested_name
    )
