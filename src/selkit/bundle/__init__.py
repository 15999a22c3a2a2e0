"""One ONNX file: prediction, score, decision, region and attribution, for wherever onnxruntime runs."""

from __future__ import annotations

from selkit.bundle.description import Description, ScoreInfo
from selkit.bundle.emitter import Emitter
from selkit.bundle.export import export_bundle
from selkit.bundle.loaded import Bundle, load_bundle
from selkit.bundle.verification import Comparison, Verification

__all__ = [
    "Bundle",
    "Comparison",
    "Description",
    "Emitter",
    "ScoreInfo",
    "Verification",
    "export_bundle",
    "load_bundle",
]
