"""Shapley values of a model's output, computed inside its ONNX graph."""

from selkit.explain.references import read_references, summarize
from selkit.explain.result import Explanation

__all__ = ["Explanation", "read_references", "summarize"]
