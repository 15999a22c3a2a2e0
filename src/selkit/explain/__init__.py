"""What adds to a model's output: Shapley values inside its ONNX graph, and integrated gradients."""

from selkit.explain.explainer import Explainer
from selkit.explain.integrated import IntegratedGradientsExplainer
from selkit.explain.permutation import PermutationExplainer
from selkit.explain.references import read_references, summarize
from selkit.explain.result import Explanation
from selkit.explain.verify import Verification

__all__ = [
    "Explainer",
    "Explanation",
    "IntegratedGradientsExplainer",
    "PermutationExplainer",
    "Verification",
    "read_references",
    "summarize",
]
