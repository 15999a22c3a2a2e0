"""The results of many images, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from selkit.errors import InvalidInputError, MissingExtraError
from selkit.inference.adjust import Flags, Floats, Method, adjusted_p_values, rejected
from selkit.inference.result import RoiResult
from selkit.utils.arrays import check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import instance

if TYPE_CHECKING:
    import pandas as pd

Which: TypeAlias = Literal["p_value", "sup_p"]


@dataclass(frozen=True, kw_only=True)
class RoiRow:
    """What was found on one image.

    Attributes
    ----------
    index
        Position of the image among those that were given, from 0.
    p_value, inf_p, sup_p, stat, scale
        As in :class:`selkit.inference.RoiResult`; NaN where the image could not be tested.
    naive_p_value
        That of a test that ignores the selection.
    score, p_value_unconditioned
        Where the p-value is conditioned on acceptance: the image's score, and what the p-value would be
        without; else NaN and the p-value itself.
    roi_size
        Number of pixels in the region; 0 where the image could not be tested.
    windows
        How many windows of the line were looked at.
    exact
        Whether the truncation set is exact; None where the image could not be tested.
    seconds
        How long it took.
    error_type, error
        Name of the exception and its text where the image could not be tested, else None.
    result
        The whole result, where it was asked for with ``keep="results"``.
    """

    index: int
    p_value: float = np.nan
    inf_p: float = np.nan
    sup_p: float = np.nan
    stat: float = np.nan
    scale: float = np.nan
    naive_p_value: float = np.nan
    score: float = np.nan
    p_value_unconditioned: float = np.nan
    roi_size: int = 0
    windows: int = 0
    exact: bool | None = None
    seconds: float = np.nan
    error_type: str | None = None
    error: str | None = None
    result: RoiResult | None = field(default=None, repr=False, compare=False)

    @property
    def failed(self) -> bool:
        """Whether the image could not be tested."""
        return self.error_type is not None

    @classmethod
    @public
    def of(cls, index: int, result: RoiResult, seconds: float, *, keep: bool) -> RoiRow:
        """Return the row of a result; the result itself is dropped unless ``keep``."""
        return cls(
            index=index,
            p_value=float(result.p_value),
            inf_p=float(result.inf_p),
            sup_p=float(result.sup_p),
            stat=float(result.stat),
            scale=float(result.scale),
            naive_p_value=float(result.naive_p_value()),
            score=np.nan if result.accepted_by is None else float(result.accepted_by.value),
            p_value_unconditioned=float(result.p_value_unconditioned),
            roi_size=int(result.roi.sum()),
            windows=int(result.windows),
            exact=bool(result.exact),
            seconds=seconds,
            result=result if keep else None,
        )

    @classmethod
    @public
    def of_error(cls, index: int, error: Exception, seconds: float = np.nan) -> RoiRow:
        """Return the row of an image that could not be tested."""
        return cls(index=index, seconds=seconds, error_type=type(error).__name__, error=str(error))


COLUMNS = tuple(entry.name for entry in fields(RoiRow) if entry.name != "result")


class RoiTable(Sequence[RoiRow]):
    """The rows of :func:`selkit.inference.inference_batch`, in the order of the images.

    Parameters
    ----------
    rows
        One for each image, those that failed included.
    fdr
        False discovery rate at which :meth:`rejected` rejects unless told otherwise.

    Examples
    --------
    >>> rows = [RoiRow(index=k, p_value=p, sup_p=p) for k, p in enumerate([0.001, 0.3, 0.02])]
    >>> table = RoiTable([*rows, RoiRow(index=3, error_type="NoHypothesisError", error="it is empty")])
    >>> table
    <RoiTable of 4 images: 3 tested, 1 failed>
    >>> table.rejected(alpha=0.05)
    array([ True, False,  True, False])
    """

    @public
    def __init__(self, rows: Sequence[RoiRow], *, fdr: float | None = None) -> None:
        for row in rows:
            instance(row, "rows", RoiRow, "a sequence of RoiRow")
        self._rows: tuple[RoiRow, ...] = tuple(rows)
        self.fdr = None if fdr is None else check_fraction(fdr, "fdr", zero=False, one=False)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> RoiRow: ...

    @overload
    def __getitem__(self, index: slice) -> RoiTable: ...

    def __getitem__(self, index: int | slice) -> RoiRow | RoiTable:
        if isinstance(index, slice):
            return RoiTable(self._rows[index], fdr=self.fdr)
        return self._rows[index]

    def __repr__(self) -> str:
        return f"<RoiTable of {len(self)} images: {self.n_tested} tested, {self.n_failed} failed>"

    @property
    def n_tested(self) -> int:
        """How many images were tested."""
        return len(self) - self.n_failed

    @property
    def n_failed(self) -> int:
        """How many images could not be tested."""
        return len(self.failed)

    @property
    def failed(self) -> tuple[RoiRow, ...]:
        """The rows of images that could not be tested."""
        return tuple(row for row in self._rows if row.failed)

    @property
    def results(self) -> tuple[RoiResult | None, ...]:
        """The whole results, None where they were not kept."""
        return tuple(row.result for row in self._rows)

    @property
    def p_values(self) -> NDArray[np.float64]:
        """The selective p-values, of shape (N,); NaN for images that failed."""
        return np.array([row.p_value for row in self._rows], dtype=np.float64)

    @public
    def adjusted(self, method: Method = "bh", *, values: Which = "p_value") -> Floats:
        """P-values adjusted for the number of images that were tested.

        Parameters
        ----------
        method
            See :func:`selkit.inference.adjust.adjusted_p_values`.
        values
            See :meth:`rejected`.

        Returns
        -------
        ndarray of shape (N,), float64
            NaN for images that failed.
        """
        return adjusted_p_values(self._values(values), method)

    @public
    def rejected(
        self, alpha: float | None = None, method: Method = "bh", *, values: Which = "p_value"
    ) -> Flags:
        """In which images the region is real, at a level for all of them together.

        Images that failed are not rejected and not counted: they were not tested.

        Parameters
        ----------
        alpha
            False discovery rate for "bh" and "by", probability of any false rejection for "bonferroni",
            level of each test for "none". By default ``fdr`` of the table.
        method
            See :func:`selkit.inference.adjust.adjusted_p_values`.
        values
            "p_value", or "sup_p" for the upper bounds: with N images a p-value counts from about alpha / N
            on, which may be less than the precision that p-values were computed to; with the bounds the
            level holds whatever the precision.

        Returns
        -------
        ndarray of shape (N,), bool

        Raises
        ------
        InvalidInputError
            If no level is known.
        """
        level = self.fdr if alpha is None else alpha
        if level is None:
            raise InvalidInputError("alpha is missing; give a level, such as alpha=0.05")
        return rejected(self._values(values), level, method)

    def to_dict(self) -> dict[str, list[Any]]:
        """The table as columns, without whole results; with ``fdr`` also what it rejects.

        Returns
        -------
        dict
            Lists of length N by the names of the fields of :class:`RoiRow`.
        """
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in self._rows] for name in COLUMNS}
        if self.fdr is not None:
            columns["adjusted_p_value"] = self.adjusted().tolist()
            columns["rejected"] = self.rejected().tolist()
        return columns

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame, with the columns of :meth:`to_dict`.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError(
                "a data frame needs pandas; install it with: pip install pandas"
            ) from error
        return pd.DataFrame(self.to_dict())

    def _values(self, which: Which) -> NDArray[np.float64]:
        if which not in get_args(Which):
            raise InvalidInputError(f"values is {which!r}; it must be 'p_value' or 'sup_p'")
        return np.array([getattr(row, which) for row in self._rows], dtype=np.float64)
