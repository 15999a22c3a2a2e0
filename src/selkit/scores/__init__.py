"""Scores of how unlike the training data an input is: fit, set a threshold, score, select."""

from __future__ import annotations

from selkit.scores.base import UncertaintyScore
from selkit.scores.classwise import (
    ClassWiseScore,
    CosineClassWiseScore,
    EuclideanClassWiseScore,
    MahalanobisClassWiseScore,
)
from selkit.scores.gaussian import GaussianScore, RelativeMahalanobisScore
from selkit.scores.logits import (
    EnergyScore,
    EnsembleLogitScore,
    EntropyScore,
    LogitScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PredictiveVarianceScore,
    SoftmaxScore,
)
from selkit.scores.neighbors import CosineScore, EuclideanScore, KNNScore, MahalanobisScore
from selkit.scores.pca import PCAScore, TensorPCA
from selkit.scores.pyod import PyODScore
from selkit.scores.random import RandomScore
from selkit.scores.vim import ViMScore

__all__ = [
    "ClassWiseScore",
    "CosineClassWiseScore",
    "CosineScore",
    "EnergyScore",
    "EnsembleLogitScore",
    "EntropyScore",
    "EuclideanClassWiseScore",
    "EuclideanScore",
    "GaussianScore",
    "KNNScore",
    "LogitScore",
    "MahalanobisClassWiseScore",
    "MahalanobisScore",
    "MarginScore",
    "MaxLogitScore",
    "MutualInformationScore",
    "PCAScore",
    "PredictiveVarianceScore",
    "PyODScore",
    "RandomScore",
    "RelativeMahalanobisScore",
    "SoftmaxScore",
    "TensorPCA",
    "UncertaintyScore",
    "ViMScore",
]
