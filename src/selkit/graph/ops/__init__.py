"""The operators that selkit knows; importing this package registers them."""

from selkit.graph.ops.activations import Abs, Clip, LeakyRelu, PRelu, Relu
from selkit.graph.ops.arithmetic import Add, Div, Max, Mean, Min, Mul, Neg, Sub, Sum
from selkit.graph.ops.constants import Cast, ConstantOfShape, Dropout, Identity, Literal
from selkit.graph.ops.convolution import Conv, ConvTranspose
from selkit.graph.ops.matmul import Gemm, MatMul
from selkit.graph.ops.normalization import BatchNormalization
from selkit.graph.ops.padding import Pad
from selkit.graph.ops.pooling import AveragePool, GlobalAveragePool, GlobalMaxPool, MaxPool
from selkit.graph.ops.reduction import ReduceMax, ReduceMean, ReduceMin, ReduceSum
from selkit.graph.ops.resize import Resize, Upsample
from selkit.graph.ops.shape import (
    Concat,
    Expand,
    Flatten,
    Gather,
    Reshape,
    Shape,
    Slice,
    Split,
    Squeeze,
    Transpose,
    Unsqueeze,
    Where,
)
from selkit.graph.ops.smooth import Exp, Reciprocal, Sigmoid

__all__ = [
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Div",
    "Dropout",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "Literal",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Shape",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Sum",
    "Transpose",
    "Unsqueeze",
    "Upsample",
    "Where",
]
