"""Scores of how unlike the training data an input is: fit, set a threshold, score, select."""

from __future__ import annotations

from selkit.scores.base import UncertaintyScore
from selkit.scores.logits import EnergyScore, LogitScore
from selkit.scores.neighbors import CosineScore, EuclideanScore, KNNScore, MahalanobisScore
from selkit.scores.pca import PCAScore, TensorPCA

__all__ = [
    "CosineScore",
    "EnergyScore",
    "EuclideanScore",
    "KNNScore",
    "LogitScore",
    "MahalanobisScore",
    "PCAScore",
    "TensorPCA",
    "UncertaintyScore",
]
