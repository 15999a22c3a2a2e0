"""Predictions on disk, for runs whose predictions do not fit into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.task.outputs import Columns, join, take
from selkit.utils.boundary import public
from selkit.utils.checks import as_path

FORMAT = "selkit-predictions-1"


class PredictionWriter(BasePredictionWriter):
    """Write predictions to safetensors files while they are made.

    Use it with ``trainer.predict(task, loader, return_predictions=False)``; then memory holds one part at a
    time. Every process writes its own parts; :func:`read_predictions` puts them together.

    Parameters
    ----------
    directory
        Made if it is not there.
    part_bytes
        A part is written when its tensors reach this size.
    overwrite
        Delete the parts of an earlier run; otherwise they are an error.

    Raises
    ------
    InvalidInputError
        When a run starts and the directory holds predictions.
    InvalidTypeError
        If the model predicts what is not a tensor with one row for each sample.

    Examples
    --------
    >>> PredictionWriter("predictions").directory.name
    'predictions'
    """

    @public
    def __init__(
        self, directory: str | Path, *, part_bytes: int = 64 * 2**20, overwrite: bool = False
    ) -> None:
        super().__init__(write_interval="batch")
        if part_bytes < 1:
            raise InvalidInputError(f"part_bytes must be at least 1; got {part_bytes}")
        self.directory = Path(directory)
        self.part_bytes, self.overwrite = part_bytes, overwrite
        self._pending: list[Columns] = []
        self._bytes = self._parts = self._seen = self._loader = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the directory ready, before any process writes."""
        self._pending, self._bytes, self._parts, self._seen, self._loader = [], 0, 0, 0, 0
        self.directory.mkdir(parents=True, exist_ok=True)
        old = _files(self.directory)
        trainer.strategy.barrier("selkit: looked for earlier predictions")
        if old and not self.overwrite:
            raise InvalidInputError(
                f"{self.directory} holds predictions of an earlier run ({old[0].name}, ...); choose another "
                "directory, or pass overwrite=True to delete them"
            )
        if trainer.is_global_zero:
            for path in old:
                path.unlink()
        trainer.strategy.barrier("selkit: deleted earlier predictions")

    def write_on_batch_end(  # noqa: PLR0917 - Lightning fixes the signature
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep a batch, and write a part when it is large enough."""
        if dataloader_idx != self._loader:
            self._flush(trainer.global_rank)
            self._loader, self._seen = dataloader_idx, 0
        columns = _columns(prediction)
        rows = len(next(iter(columns.values())))
        if batch_indices is not None and len(batch_indices) == rows:
            index = torch.tensor(batch_indices, dtype=torch.int64)
        else:  # an iterable data set has no numbers; rows are dealt to processes in turn
            index = (self._seen + torch.arange(rows)) * trainer.world_size + trainer.global_rank
        self._seen += rows
        columns = {"index": index, **columns}
        if self._pending and _layout(columns) != _layout(self._pending[0]):
            self._flush(trainer.global_rank)
        self._pending.append(columns)
        self._bytes += sum(value.nbytes for value in columns.values())
        if self._bytes >= self.part_bytes:
            self._flush(trainer.global_rank)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        self._flush(trainer.global_rank)
        trainer.strategy.barrier("selkit: wrote all predictions")  # a reader in one process sees all parts

    def _flush(self, rank: int) -> None:
        if not self._pending:
            return
        from safetensors.torch import save_file

        name = f"loader{self._loader}-rank{rank}-part{self._parts:06d}.safetensors"
        tensors = {key: value.contiguous() for key, value in join(self._pending).items()}
        unfinished = self.directory / f".{name}.tmp"
        save_file(tensors, unfinished, metadata={"format": FORMAT, "loader": str(self._loader)})
        os.replace(unfinished, self.directory / name)  # noqa: PTH105 - replaces atomically
        self._pending, self._bytes, self._parts = [], 0, self._parts + 1


def _columns(prediction: Any) -> dict[str, Tensor]:
    """The columns of a batch, checked and on the CPU."""
    if not isinstance(prediction, Mapping) or not prediction:
        raise InvalidTypeError(
            f"predictions must be a dictionary of tensors, as those of SelectiveInferenceTask; "
            f"got {type(prediction).__name__}"
        )
    wrong = [name for name, value in prediction.items() if not isinstance(value, Tensor) or not value.ndim]
    if wrong:
        raise InvalidTypeError(
            "only tensors with one row for each sample can be written; not so in the predictions: "
            f"{', '.join(wrong)}. Let forward return a tensor"
        )
    if len({len(value) for value in prediction.values()}) != 1:
        shapes = {name: tuple(value.shape) for name, value in prediction.items()}
        raise InvalidInputError(f"predictions must have one row for each sample; got {shapes}")
    return {name: value.detach().cpu() for name, value in prediction.items()}


def _layout(columns: Columns) -> dict[str, Any]:
    return {name: (value.shape[1:], value.dtype) for name, value in columns.items()}


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("loader*-rank*-part*.safetensors"))


@public
def iter_predictions(directory: str | Path, loader: int = 0) -> Iterator[Columns]:
    """The written parts of one loader, one after the other.

    Parameters
    ----------
    directory
        As given to :class:`PredictionWriter`.
    loader
        Position of the loader.

    Yields
    ------
    dict of str to Tensor
        ``index`` and the columns of the predictions; in no particular order.

    Raises
    ------
    FileFormatError
        If a file is damaged or was not written by :class:`PredictionWriter`.
    InvalidInputError
        If there are no predictions of this loader.
    """
    from safetensors import SafetensorError, safe_open

    paths = [
        path for path in _files(as_path(directory, "directory")) if path.name.startswith(f"loader{loader}-")
    ]
    if not paths:
        raise InvalidInputError(f"{directory} holds no predictions of loader {loader}")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                kind = (file.metadata() or {}).get("format")
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise FileFormatError(f"{path} is damaged or no safetensors file: {error}") from error
        if kind != FORMAT or "index" not in columns:
            raise FileFormatError(f"{path} was not written by PredictionWriter: its format is {kind!r}")
        yield columns


@public
def read_predictions(directory: str | Path, loader: int = 0) -> Columns:
    """All predictions of one loader, in the order of its data set.

    Parameters
    ----------
    directory, loader
        As for :func:`iter_predictions`, which needs less memory.

    Returns
    -------
    dict of str to Tensor
        ``index`` and the columns of the predictions, one row for each index, also where several processes
        predicted the same sample; lists where rows differ in shape.

    Raises
    ------
    FileFormatError, InvalidInputError
        As for :func:`iter_predictions`.
    """
    columns = join(list(iter_predictions(directory, loader)))
    order = torch.argsort(columns["index"], stable=True)
    index = columns["index"][order]
    first = torch.ones(len(index), dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    return take(columns, order[first])
