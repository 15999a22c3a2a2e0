"""Scores of how unlike the training data an input is: fit, set a threshold, score, select."""

from __future__ import annotations

from selkit.scores.base import UncertaintyScore
from selkit.scores.logits import EnergyScore, LogitScore
from selkit.scores.neighbors import EuclideanScore, KNNScore

__all__ = ["EnergyScore", "EuclideanScore", "KNNScore", "LogitScore", "UncertaintyScore"]
