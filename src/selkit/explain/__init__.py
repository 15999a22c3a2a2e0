"""Shapley values of a model's output, computed inside its ONNX graph."""

from selkit.explain.explainer import Explainer
from selkit.explain.permutation import PermutationExplainer
from selkit.explain.references import read_references, summarize
from selkit.explain.result import Explanation
from selkit.explain.verify import Verification

__all__ = [
    "Explainer",
    "Explanation",
    "PermutationExplainer",
    "Verification",
    "read_references",
    "summarize",
]
