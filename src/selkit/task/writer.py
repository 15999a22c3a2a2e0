"""Predictions on disk, for runs whose predictions do not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.task.outputs import Columns, join, take
from selkit.task.rows import named_samples, refusal, warn_of_orders, why_unknown
from selkit.utils.atomic import write_bytes
from selkit.utils.boundary import public
from selkit.utils.checks import as_path, boolean, integer

FORMAT = "selkit-predictions-1"


class PredictionWriter(BasePredictionWriter):
    """Write predictions to safetensors files while they are made.

    Use it with ``trainer.predict(task, loader, return_predictions=False)``; then memory holds one part at a
    time. Every process writes its own parts; :func:`read_predictions` puts them together. Each row is kept
    with the position of its sample in the data set, whatever sampler the loader has, and with ``id`` where
    the predictions have one (``id_key=`` of :class:`selkit.SelectiveInferenceTask`).

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
        When a run starts and the directory holds predictions, or when a loader does not say which samples
        its rows are and the predictions have no ``id``.
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
        self.directory = as_path(directory, "directory")
        self.part_bytes, self.overwrite = (
            integer(part_bytes, "part_bytes", 1),
            boolean(overwrite, "overwrite"),
        )
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
        position = (self._seen + torch.arange(rows)) * trainer.world_size + trainer.global_rank
        loader = pytree.tree_leaves(trainer.predict_dataloaders)[dataloader_idx]
        index, why = _samples(loader, batch_indices, position)
        if index is None and "id" not in columns:
            raise refusal(str(why))
        self._seen += rows
        columns = {"position" if index is None else "index": position if index is None else index, **columns}
        if self._pending and _layout(columns) != _layout(self._pending[0]):
            self._flush(trainer.global_rank)
        self._pending.append(columns)
        self._bytes += sum(map(_bytes_of, columns.values()))
        if self._bytes >= self.part_bytes:
            self._flush(trainer.global_rank)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        self._flush(trainer.global_rank)
        trainer.strategy.barrier("selkit: wrote all predictions")  # a reader in one process sees all parts
        if trainer.world_size > 1:
            warn_of_orders(pytree.tree_leaves(trainer.predict_dataloaders))

    def _flush(self, rank: int) -> None:
        if not self._pending:
            return
        from safetensors.torch import save

        name = f"loader{self._loader}-rank{rank}-part{self._parts:06d}.safetensors"
        joined = join(self._pending)
        tensors = {key: value.contiguous() for key, value in joined.items() if isinstance(value, Tensor)}
        texts = [key for key, value in joined.items() if not isinstance(value, Tensor)]
        tensors |= {key: _as_bytes(joined[key]) for key in texts}
        tags = {"format": FORMAT, "loader": str(self._loader)} | (
            {"texts": json.dumps(texts)} if texts else {}
        )
        write_bytes(self.directory / name, save(tensors, metadata=tags))
        self._pending, self._bytes, self._parts = [], 0, self._parts + 1


def _samples(loader: Any, batch_indices: Any, position: Tensor) -> tuple[Tensor | None, str | None]:
    """Positions in the data set of the rows of a batch, or why they are not known."""
    why = why_unknown(loader)
    if why is not None:
        return None, why
    if batch_indices:
        return named_samples(batch_indices, len(position))
    kept_order = not isinstance(loader, DataLoader) or loader.batch_sampler is None
    if kept_order or isinstance(loader.dataset, IterableDataset):
        return position, None  # rows are dealt to processes in turn
    return None, "Lightning does not tell which samples a batch is made of"


def _bytes_of(value: Any) -> int:
    return int(value.nbytes) if isinstance(value, Tensor) else sum(map(len, value))


def _as_bytes(texts: list[str]) -> Tensor:
    """Texts as one column of bytes: JSON, which knows where each ends."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def _columns(prediction: Any) -> dict[str, Tensor]:
    """The columns of a batch, checked and on the CPU."""
    if not isinstance(prediction, Mapping) or not prediction:
        raise InvalidTypeError(
            f"predictions must be a dictionary of tensors, as those of SelectiveInferenceTask; "
            f"got {type(prediction).__name__}"
        )
    prediction = dict(prediction)
    wrong = [name for name, value in prediction.items() if not (_is_texts(value) or _has_rows(value))]
    if wrong:
        raise InvalidTypeError(
            "only tensors with one row for each sample, and lists of texts, can be written; not so in the "
            f"predictions: {', '.join(wrong)}. Let forward return a tensor"
        )
    if len({len(value) for value in prediction.values()}) != 1:
        shapes = {name: tuple(getattr(value, "shape", (len(value),))) for name, value in prediction.items()}
        raise InvalidInputError(f"predictions must have one row for each sample; got {shapes}")
    return {
        name: value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in prediction.items()
    }


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _layout(columns: Columns) -> dict[str, Any]:
    return {
        name: (value.shape[1:], value.dtype) if isinstance(value, Tensor) else "texts"
        for name, value in columns.items()
    }


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
        ``index`` (``position`` where only ``id`` tells samples from each other) and the columns of the
        predictions; in no particular order.

    Raises
    ------
    FileFormatError
        If a file is damaged or was not written by :class:`PredictionWriter`.
    InvalidInputError
        If there are no predictions of this loader.
    """
    from safetensors import SafetensorError, safe_open

    directory, loader = as_path(directory, "directory"), integer(loader, "loader", 0)
    paths = [path for path in _files(directory) if path.name.startswith(f"loader{loader}-")]
    if not paths:
        raise InvalidInputError(f"{directory} holds no predictions of loader {loader}")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                tags = file.metadata() or {}
                columns: Columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise FileFormatError(f"{path} is damaged or no safetensors file: {error}") from error
        kind = tags.get("format")
        if kind != FORMAT or not ({"index"} <= set(columns) or {"position", "id"} <= set(columns)):
            raise FileFormatError(f"{path} was not written by PredictionWriter: its format is {kind!r}")
        try:
            texts = json.loads(tags.get("texts", "[]"))
            columns |= {name: json.loads(bytes(columns[name].tolist())) for name in texts}
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path} is damaged: its texts cannot be read ({error})") from error
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
        predicted the same sample or a sampler drew it twice; lists where rows differ in shape, and of
        texts. Where only ``id`` tells samples from each other there is no ``index``, and the order is that
        of the loader.

    Raises
    ------
    FileFormatError, InvalidInputError
        As for :func:`iter_predictions`.
    """
    columns = join(list(iter_predictions(directory, loader)))
    if "index" not in columns:
        columns = take(columns, torch.argsort(columns.pop("position"), stable=True))
        ids = columns["id"].tolist() if isinstance(columns["id"], Tensor) else columns["id"]
        places = {name: place for place, name in reversed(list(enumerate(ids)))}
        return take(columns, torch.tensor(sorted(places.values()), dtype=torch.int64))
    order = torch.argsort(columns["index"], stable=True)
    index = columns["index"][order]
    first = torch.ones(len(index), dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    return take(columns, order[first])
