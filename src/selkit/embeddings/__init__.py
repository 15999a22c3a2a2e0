"""Embeddings and logits from a torch module, a Lightning module or an ONNX model."""

from __future__ import annotations

from selkit.embeddings.batches import input_of, target_of
from selkit.embeddings.extract import Features, extract
from selkit.embeddings.members import Ensemble, MonteCarloDropout
from selkit.embeddings.sources import TorchSource, source_of

__all__ = [
    "Ensemble",
    "Features",
    "MonteCarloDropout",
    "TorchSource",
    "extract",
    "input_of",
    "source_of",
    "target_of",
]
