"""Selective prediction and selective inference for neural networks, each with a guarantee.

The names below are imported when they are first used, so that ``import selkit`` costs little.

Examples
--------
>>> import selkit
>>> selkit.scores.__name__
'selkit.scores'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selkit import (
        bundle,
        calibration,
        embeddings,
        errors,
        explain,
        graph,
        inference,
        metrics,
        report,
        scores,
        utils,
    )
    from selkit.bundle import export_bundle, load_bundle
    from selkit.explain import Explainer
    from selkit.inference import BackMeanDiff, NeighborMeanDiff, RoiTest, load
    from selkit.metrics import RiskCoverage, RiskCoverageMetric, SelectiveMetric
    from selkit.report import write_report
    from selkit.task import SelectiveInferenceTask

__version__ = "0.1.0"

__all__ = [
    "BackMeanDiff",
    "Explainer",
    "NeighborMeanDiff",
    "RiskCoverage",
    "RiskCoverageMetric",
    "RoiTest",
    "SelectiveInferenceTask",
    "SelectiveMetric",
    "__version__",
    "bundle",
    "calibration",
    "embeddings",
    "errors",
    "explain",
    "export_bundle",
    "graph",
    "inference",
    "load",
    "load_bundle",
    "metrics",
    "report",
    "scores",
    "utils",
    "write_report",
]

_MODULES = frozenset(
    {
        "bundle",
        "calibration",
        "embeddings",
        "errors",
        "explain",
        "graph",
        "inference",
        "metrics",
        "report",
        "scores",
        "utils",
    }
)
_HOMES = {
    "BackMeanDiff": "selkit.inference",
    "Explainer": "selkit.explain",
    "NeighborMeanDiff": "selkit.inference",
    "RiskCoverage": "selkit.metrics",
    "RiskCoverageMetric": "selkit.metrics",
    "RoiTest": "selkit.inference",
    "SelectiveInferenceTask": "selkit.task",
    "SelectiveMetric": "selkit.metrics",
    "export_bundle": "selkit.bundle",
    "load": "selkit.inference",
    "load_bundle": "selkit.bundle",
    "write_report": "selkit.report",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"selkit.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # found without this function from now on
        return value
    raise AttributeError(f"module 'selkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
