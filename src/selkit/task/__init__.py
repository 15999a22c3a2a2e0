"""Lightning test, validation and prediction of a model that may abstain.

>>> from selkit.task import SelectiveInferenceTask
"""

from __future__ import annotations

from selkit.task.wrapper import SelectiveInferenceTask
from selkit.task.writer import PredictionWriter, iter_predictions, read_predictions

__all__ = ["PredictionWriter", "SelectiveInferenceTask", "iter_predictions", "read_predictions"]
