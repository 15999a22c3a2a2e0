"""Lightning test, validation and prediction of a model that may abstain.

>>> from selkit.task import SelectiveInferenceTask
"""

from __future__ import annotations

from selkit.task.wrapper import SelectiveInferenceTask

__all__ = ["SelectiveInferenceTask"]
