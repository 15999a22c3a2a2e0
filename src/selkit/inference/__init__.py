"""Exact selective inference: is the region that a model points at real?"""

from selkit.inference.covariance import Stationary
from selkit.inference.hypotheses import (
    BackMeanDiff,
    Contrast,
    Hypothesis,
    NeighborMeanDiff,
    ReferenceMeanDiff,
)
from selkit.inference.postprocess import (
    Abs,
    AverageFilter,
    GaussianFilter,
    InputDiff,
    L1Norm,
    Neg,
    PostProcess,
)
from selkit.inference.randomized import RandomizedResult
from selkit.inference.regions import ArgMax, Region, TopK
from selkit.inference.result import RoiResult
from selkit.inference.roi import RoiTest, load

__all__ = [
    "Abs",
    "ArgMax",
    "AverageFilter",
    "BackMeanDiff",
    "Contrast",
    "GaussianFilter",
    "Hypothesis",
    "InputDiff",
    "L1Norm",
    "Neg",
    "NeighborMeanDiff",
    "PostProcess",
    "RandomizedResult",
    "ReferenceMeanDiff",
    "Region",
    "RoiResult",
    "RoiTest",
    "Stationary",
    "TopK",
    "load",
]
