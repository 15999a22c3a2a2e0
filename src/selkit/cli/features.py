"""What a score takes, from the samples that a user has: as they are, or through an ONNX model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selkit.cli.images import ImageSamples
from selkit.cli.inputs import Samples
from selkit.errors import FileFormatError, InvalidInputError

if TYPE_CHECKING:
    from selkit.embeddings.onnx import OnnxSource
    from selkit.scores import UncertaintyScore


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def onnx_source(score: UncertaintyScore, model: str, layer: str | None, pool: str | None) -> OnnxSource:
    """The values of a model that a score judges."""
    from selkit.embeddings.onnx import OnnxSource

    chosen: Any = pool
    return OnnxSource(model, score.feature, layer=layer, pool=chosen)


def load_score(path: str) -> UncertaintyScore:
    """A fitted score from its file; no code in it is run."""
    from selkit.scores import UncertaintyScore

    return UncertaintyScore.load(path)


def need_model(samples: Samples, model: str | None) -> None:
    """Refuse images without a model.

    Raises
    ------
    InvalidInputError
        A score judges what a model makes of an image.
    """
    if model is None and isinstance(samples, ImageSamples):
        raise InvalidInputError(
            f"{samples.where} has images, but a score judges embeddings or logits: say which model computes "
            "them, --model model.onnx"
        )


class Batches:
    """The samples as a loader; one that cannot be read is an error.

    Parameters
    ----------
    samples
        What to load.
    size
        Of a batch.
    """

    def __init__(self, samples: Samples, size: int) -> None:
        self._samples, self._size = samples, size

    def __len__(self) -> int:
        return math.ceil(len(self._samples) / self._size)

    def __iter__(self) -> Iterator[Any]:
        from selkit.utils.arrays import as_tensor

        for chunk in self._samples.chunks(self._size):
            loaded = chunk.load()
            if loaded.bad:
                raise FileFormatError(next(iter(loaded.bad.values())))
            check_rows_finite(loaded.values, chunk.start, self._samples.where)
            yield as_tensor(loaded.values, self._samples.where)


def check_rows_finite(values: NDArray[Any], start: int, where: str) -> None:
    """Refuse NaN and infinity, and say where they are.

    Raises
    ------
    InvalidInputError
        If there are some.
    """
    fine = finite_rows(values)
    if not fine.all():
        raise InvalidInputError(
            f"{where} has NaN or infinity in {int((~fine).sum())} of {len(fine)} samples from {start} on; "
            f"the first is sample {start + int(np.flatnonzero(~fine)[0])}"
        )


def finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which samples are finite throughout, shape ``(n,)``."""
    if values.dtype.kind != "f" or not values.size:
        return np.ones(len(values), dtype=bool)
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(1))


def features_of(samples: Samples, source: OnnxSource | None, size: int) -> Any:
    """All features of the samples, one row for each: what a score is fitted on."""
    import torch

    from selkit.embeddings import extract

    batches = Batches(samples, size)
    if source is None:
        return torch.cat(list(batches))
    return extract(source, batches, source.want).values
