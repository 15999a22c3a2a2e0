"""Embeddings together with what the model predicts from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selkit.embeddings.sources import Identity, Pool, TorchSource
from selkit.errors import InvalidInputError, NotAvailableError
from selkit.utils.arrays import as_floating


class WithPrediction:
    """A source whose rows are an embedding, followed by the predicted class (or a 0/1 entry for each label).

    Parameters
    ----------
    model
        A torch module with ``logits(x)``, or whose output is the logits.
    labels
        Number of labels that stand alone, each predicted where its logit is positive; ``None`` for classes
        that compete.
    layer, pool
        Where embeddings come from; see :class:`selkit.embeddings.TorchSource`.

    Raises
    ------
    NotAvailableError
        For an ONNX model.
    """

    def __init__(
        self, model: Any, *, labels: int | None, layer: str | None = None, pool: Pool = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise NotAvailableError(
                "embeddings and predictions together need a torch module; with an ONNX model extract both "
                "and give {'embedding': ..., 'prediction': ...}"
            )
        self._labels = labels
        self._embed = TorchSource(model, "embedding", layer=layer, pool=pool)
        self._logits = TorchSource(model, "logits")

    @property
    def identity(self) -> Identity:
        """What the features depend on."""
        model, options = self._embed.identity
        return model, (*options, "prediction", self._labels)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode inside the block."""
        with self._embed.running():
            yield

    def __call__(self, inputs: Any) -> Tensor:
        """Embedding and prediction side by side, ``(N, D + 1)`` or ``(N, D + C)``."""
        embedding = as_floating(self._embed(inputs), "the embedding")
        logits = self._logits(inputs)
        logits = logits[:, None] if logits.ndim == 1 else logits
        if logits.ndim != 2 or len(logits) != len(embedding) or self._labels not in (None, logits.shape[1]):
            raise InvalidInputError(
                f"predictions need logits of shape ({len(embedding)}, {self._labels or 'classes'}); "
                f"the model gave {tuple(logits.shape)}"
            )
        if self._labels is not None or logits.shape[1] == 1:
            predicted = logits > 0
        else:
            predicted = logits.argmax(1, keepdim=True)
        return torch.cat([embedding, predicted.to(embedding)], 1)

    def split(self, features: Tensor) -> dict[str, Tensor]:
        """``{"embedding": ..., "prediction": ...}`` from rows that this source made."""
        columns = self._labels or 1
        predicted = features[:, -columns:].long()
        return {
            "embedding": features[:, :-columns],
            "prediction": predicted[:, 0] if self._labels is None else predicted,
        }
