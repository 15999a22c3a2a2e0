"""An ONNX model as selkit sees it: loaded, checked, and run over stacks of points."""

from selkit.graph.model import Graph, Node, Quantization, ValueSpec
from selkit.graph.program import Program, Step

__all__ = ["Graph", "Node", "Program", "Quantization", "Step", "ValueSpec"]
