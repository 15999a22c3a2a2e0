"""Exact selective inference: is the region that a model points at real?"""

from selkit.inference.acceptance import Acceptance, AcceptanceEvent, AcceptedBy
from selkit.inference.adjust import benjamini_hochberg, benjamini_yekutieli
from selkit.inference.covariance import Stationary
from selkit.inference.hypotheses import (
    BackMeanDiff,
    Contrast,
    Hypothesis,
    NeighborMeanDiff,
    ReferenceMeanDiff,
)
from selkit.inference.multiple import inference_batch
from selkit.inference.noise import estimate_covariance, estimate_stationary, estimate_variance
from selkit.inference.plots import plot_line, plot_p_values, plot_qq, plot_region
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
from selkit.inference.regions import ArgMax, PredictedClass, Region, TopK
from selkit.inference.resizing import Crop, Resize, SelectChannel, Transpose
from selkit.inference.result import RoiResult
from selkit.inference.roi import RoiTest, load
from selkit.inference.shape_rules import Hysteresis, MaskRule, Otsu, Threshold, TwoThresholds
from selkit.inference.table import RoiRow, RoiTable

__all__ = [
    "Abs",
    "Acceptance",
    "AcceptanceEvent",
    "AcceptedBy",
    "ArgMax",
    "AverageFilter",
    "BackMeanDiff",
    "Contrast",
    "Crop",
    "GaussianFilter",
    "Hypothesis",
    "Hysteresis",
    "InputDiff",
    "L1Norm",
    "MaskRule",
    "Neg",
    "NeighborMeanDiff",
    "Otsu",
    "PostProcess",
    "PredictedClass",
    "RandomizedResult",
    "ReferenceMeanDiff",
    "Region",
    "Resize",
    "RoiResult",
    "RoiRow",
    "RoiTable",
    "RoiTest",
    "SelectChannel",
    "Stationary",
    "Threshold",
    "TopK",
    "Transpose",
    "TwoThresholds",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "estimate_covariance",
    "estimate_stationary",
    "estimate_variance",
    "inference_batch",
    "load",
    "plot_line",
    "plot_p_values",
    "plot_qq",
    "plot_region",
]
