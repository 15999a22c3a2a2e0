# ruff: noqa: E501 - one call is one line
"""One valid call of everything public, from which wrong ones are made."""

from __future__ import annotations

import functools
import importlib
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

import selkit
from selkit import calibration, embeddings, explain, graph, inference, metrics, report, scores, task

MODULES = ("", "bundle", "calibration", "embeddings", "explain", "graph", "inference", "metrics", "report",
           "scores", "task")  # fmt: skip

RECORDS = frozenset(
    str.split(
        "Bundle Comparison Description ScoreInfo Verification Features Explanation Node Program "
        "Step ValueSpec Graph AcceptedBy AcceptanceEvent Contrast RandomizedResult RoiResult RoiRow "
        "RiskCoverage Emitter RoiTest Quantization"
    )
)
"""Made by selkit and given to users, who do not make them (their methods are called)."""

BASES = frozenset(
    str.split(
        "Hypothesis Region PostProcess KNNScore LogitScore EnsembleLogitScore UncertaintyScore "
        "ClassWiseScore EuclideanClassWiseScore CosineClassWiseScore MaskRule"
    )
)
"""Cannot be made, or are like another one in the table."""


@dataclass(frozen=True)
class Call:
    """A call that works.

    Attributes
    ----------
    name
        For messages; that of the public name comes before the first dot.
    make
        Returns the function and its arguments, made anew.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], dict[str, Any]]]


FOLDER = Path(tempfile.mkdtemp(prefix="selkit-fuzz-"))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = RNG.normal(size=(30, 3)).astype(np.float32)
LABELS = np.arange(40) % 3
IMAGE = RNG.normal(size=(1, 1, 8))
LOSSES = (np.arange(30) % 5 == 0).astype(float)
SCORES = RNG.normal(size=30)
NETWORK = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[N, 3] e, float[N, 2] logits)
    <float[3, 2] w = {1, 2, -1, 0.5, 0.25, 1}> { e = Tanh(x) logits = MatMul(e, w) }"""
)
LINE = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 8] x) => (float[1, 1, 8] y) { y = Relu(x) }'
)


@functools.cache
def roi_test() -> Any:
    return selkit.load(LINE, selkit.BackMeanDiff(threshold=0.5), var=1.0)


@functools.cache
def result() -> Any:
    return roi_test().inference(IMAGE)


@functools.cache
def table() -> Any:
    return roi_test().inference_batch(RNG.normal(size=(4, 1, 8)), fdr=0.1)


def fitted() -> Any:
    return scores.EuclideanScore(2).fit(X=X, Y=Y).calibrate(coverage=0.8)


@functools.cache
def made_bundle() -> Any:
    score = scores.EuclideanScore(2).fit(X=np.tanh(X), Y=np.tanh(Y)).calibrate(coverage=0.8)
    return selkit.export_bundle(NETWORK, path=FOLDER / "b.onnx", score=score, embedding="e")


@functools.cache
def explainer() -> Any:
    return explain.Explainer(NETWORK, X[:8], "logits")


@functools.cache
def explanation() -> Any:
    return explain.Explainer(NETWORK, X[:8], "logits", 0).explain(X[:4])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(x)).relu())


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def loader() -> list[Any]:
    return [(torch.from_numpy(X[:5]), torch.zeros(5, dtype=torch.long))]


def curve() -> Any:
    return metrics.risk_coverage(SCORES, LOSSES)


def sample() -> Any:
    return report.Sample(np.eye(8), score=0.3, selected=True, roi=np.eye(8), p_value=0.01)


def metric() -> Any:
    return metrics.RiskCoverageMetric(coverage=[0.5], n_boot=3)


def pca() -> Any:
    return scores.TensorPCA(2).fit(X)


FIT_ONLY: dict[str, dict[str, Any]] = {
    "GaussianScore": {"X": X, "y": LABELS, "Y": Y},
    "RelativeMahalanobisScore": {"X": X, "y": LABELS, "Y": Y},
    "MahalanobisClassWiseScore": {"X": X, "y": LABELS, "Y": Y, "y_cal": np.arange(30) % 3},
    "ViMScore": {"X": X, "Y": Y},
    "PyODScore": {"X": X, "Y": Y},
}
MADE: dict[str, dict[str, Any]] = {"ViMScore": {"head": nn.Linear(3, 2)}, "PCAScore": {"pca": 0.5}}
DEFAULTS = {"k": 2, "stat": "max", "temperature": 1.0, "task": "multiclass", "per_member": False, "seed": 0,
            "shrinkage": "ledoit-wolf", "one_class": False}  # fmt: skip


def pyod() -> Any:
    from pyod.models.hbos import HBOS

    return HBOS()


def score_calls(name: str) -> list[Call]:
    kind = getattr(scores, name)
    known = inspect.signature(kind).parameters
    options = {key: value for key, value in DEFAULTS.items() if key in known} | MADE.get(name, {})
    if name == "PyODScore":
        options["detector"] = pyod()
    logits = issubclass(kind, (scores.LogitScore, scores.EnsembleLogitScore))
    ensemble = issubclass(kind, scores.EnsembleLogitScore)
    cal = np.stack([Y, Y + 1], axis=2) if ensemble else Y
    given = {"Y": cal} if logits or name == "RandomScore" else FIT_ONLY.get(name, {"X": X, "Y": Y})

    @functools.cache
    def ready() -> Any:
        return kind(**options).fit(**given)

    def set_up() -> Any:
        return kind(**options)

    def calibrated() -> Any:
        import copy

        return copy.deepcopy(ready())

    query = np.stack([X[:6], X[:6] + 1], axis=2) if ensemble else X[:6]
    path = FOLDER / f"{name}.safetensors"

    def saved() -> Path:
        ready().save(path)
        return path

    limit = {"coverage": 0.5}
    return [
        Call(f"{name}", lambda: (kind, dict(options))),
        Call(f"{name}.fit", lambda: (set_up().fit, dict(given))),
        Call(f"{name}.score", lambda: (ready().score, {"query": query})),
        Call(f"{name}.set_params", lambda: (set_up().set_params, dict(options))),
        Call(f"{name}.calibrate", lambda: (calibrated().calibrate, dict(limit))),
        Call(f"{name}.set_threshold", lambda: (calibrated().set_threshold, {"q": 0.5})),
        Call(f"{name}.select", lambda: (calibrated().calibrate(**limit).select, {"query": query})),
        Call(f"{name}.predict", lambda: (calibrated().calibrate(**limit).predict, {"X": query})),
        Call(f"{name}.pvalues", lambda: (ready().pvalues, {"query": query})),
        Call(f"{name}.flag", lambda: (ready().flag, {"query": query, "fdr": 0.1})),
        Call(f"{name}.save", lambda: (ready().save, {"path": path})),
        Call(f"{name}.load", lambda: (kind.load, {"path": saved(), "trust": True})),
    ]


STEPS: dict[str, dict[str, Any]] = {
    "Crop": {"start": 0, "stop": None}, "Resize": {"mode": "linear", "size": None}, "SelectChannel": {"index": 0},
    "Transpose": {"perm": (0, 1, 2)},
}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "Threshold": {"value": 0.5, "steps": ()}, "TwoThresholds": {"low": 0.2, "high": 0.5, "steps": ()},
    "Hysteresis": {"low": 0.2, "high": 0.5, "connectivity": 1, "steps": ()}, "Otsu": {"steps": ()},
}  # fmt: skip


def made(kind: Any, options: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    return kind, dict(options)


def used(kind: Any, options: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A step on the way from the output to the score map."""
    return lambda **k: selkit.load(
        LINE, selkit.BackMeanDiff(0.5, post_process=(kind(**k),))).inference(IMAGE, 1.0), dict(options)  # fmt: skip


def ruled(kind: Any, options: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A rule that makes the region."""
    return lambda **k: selkit.load(
        LINE, selkit.BackMeanDiff(region=kind(**k))).inference(IMAGE, 1.0), dict(options)  # fmt: skip


def _inference() -> list[Call]:
    t = roi_test
    images = RNG.normal(size=(3, 1, 8))
    mode = {"inference_mode": "parametric", "alternative": "two-sided", "null_value": 0.0, "precision": 1e-3,
            "significance_level": 0.05}  # fmt: skip
    hypothesis = {"threshold": 0.5, "i_idx": 0, "o_idx": 0, "post_process": (), "use_norm": False}
    return [
        Call("load", lambda: (selkit.load, {"model": LINE, "hypothesis": selkit.BackMeanDiff(0.5), "var": 1.0,
                                            "seed": 0, "device": "cpu"})),
        Call("RoiTest.inference", lambda: (t().inference, {"x": IMAGE, "var": 1.0, "mask": None, **mode})),
        Call("RoiTest.inference_components", lambda: (t().inference_components, {"x": IMAGE, "var": 1.0, **mode})),
        Call("RoiTest.inference_randomized", lambda: (t().inference_randomized, {
            "x": IMAGE, "var": 1.0, "noise_var": 0.5, "seed": 0})),
        Call("RoiTest.select", lambda: (t().select, {"x": IMAGE, "mask": None})),
        Call("inference_batch", lambda: (inference.inference_batch, {
            "test": t(), "images": images, "var": 1.0, "masks": None, "n_jobs": 1, "progress": False,
            "on_error": "raise", "keep": "rows", "fdr": 0.1, "checkpoint": None})),
        Call("inference_batch.checkpoint", lambda: (inference.inference_batch, {
            "test": t(), "images": images, "var": 1.0, "checkpoint": FOLDER / "rows.jsonl"})),
        *(Call(name, functools.partial(lambda kind: (kind, dict(hypothesis)), getattr(inference, name)))
          for name in ("BackMeanDiff", "NeighborMeanDiff", "ReferenceMeanDiff")),
        Call("BackMeanDiff.used", lambda: (
            lambda **k: selkit.load(LINE, selkit.BackMeanDiff(**k)).inference(IMAGE, 1.0), dict(hypothesis))),
        Call("NeighborMeanDiff.used", lambda: (
            lambda **k: selkit.load(LINE, selkit.NeighborMeanDiff(**k)).inference(IMAGE, 1.0),
            {**hypothesis, "neighborhood_range": 1})),
        Call("GaussianFilter", lambda: (inference.GaussianFilter, {"kernel_size": 3, "sigma": 1.0})),
        Call("AverageFilter", lambda: (inference.AverageFilter, {"kernel_size": 3})),
        *(Call(name, functools.partial(lambda kind: (kind, {}), getattr(inference, name)))
          for name in ("Abs", "Neg", "L1Norm", "InputDiff")),
        *(Call(f"{name}{end}", functools.partial(used if end else made, getattr(inference, name), options))
          for name, options in STEPS.items() for end in ("", ".used")),
        *(Call(f"{name}{end}", functools.partial(ruled if end else made, getattr(inference, name), options))
          for name, options in RULES.items() for end in ("", ".used")),
        Call("ArgMax", lambda: (inference.ArgMax, {"index": 1})),
        Call("TopK", lambda: (inference.TopK, {"k": 2})),
        Call("TopK.used", lambda: (lambda k: selkit.load(
            LINE, selkit.BackMeanDiff(region=inference.TopK(k))).inference(IMAGE, 1.0), {"k": 2})),
        Call("PredictedClass", lambda: (inference.PredictedClass, {"logits": "y", "rule": 0.5})),
        Call("Acceptance", lambda: (inference.Acceptance, {"score": fitted(), "embedding": "x", "threshold": 1.0})),
        Call("Stationary", lambda: (inference.Stationary, {"kernel": np.array([0.1, 1.0, 0.1])})),
        Call("RoiTable", lambda: (inference.RoiTable, {"rows": list(table()), "fdr": 0.1})),
        Call("RoiTable.rejected", lambda: (table().rejected, {"alpha": 0.1, "method": "bh", "values": "p_value"})),
        Call("RoiTable.adjusted", lambda: (table().adjusted, {"method": "bh", "values": "p_value"})),
        Call("RoiResult.confidence_interval", lambda: (result().confidence_interval, {"confidence": 0.9})),
        Call("RoiResult.estimate", lambda: (result().estimate, {"method": "median"})),
        Call("RoiResult.image_at", lambda: (result().image_at, {"values": [0.0, 1.0]})),
        Call("RoiResult.bonferroni_p_value", lambda: (
            result().bonferroni_p_value, {"log_num_comparisons": 3.0})),
        *(Call(name, functools.partial(lambda f: (f, {"p_values": [0.1, 0.5], "alpha": 0.1}),
                                       getattr(inference, name)))
          for name in ("benjamini_hochberg", "benjamini_yekutieli")),
        Call("estimate_variance", lambda: (inference.estimate_variance, {
            "images": X, "background": None, "method": "moments", "per_pixel": False, "rank": 1})),
        Call("estimate_stationary", lambda: (inference.estimate_stationary, {
            "noise_images": RNG.normal(size=(5, 9, 9)), "radius": 1, "rank": 2, "mean": 0.0})),
        Call("estimate_covariance", lambda: (inference.estimate_covariance, {
            "noise_images": X, "shrinkage": "oas", "mean": None})),
        Call("plot_line", lambda: (inference.plot_line, {"result": result(), "points": 50})),
        Call("plot_p_values", lambda: (inference.plot_p_values, {"p": [0.1, 0.4], "bins": 4})),
        Call("plot_qq", lambda: (inference.plot_qq, {"p": [0.1, 0.4], "confidence": 0.9})),
        Call("plot_region", lambda: (inference.plot_region, {"image": IMAGE, "result": result(), "channel": 0})),
    ]  # fmt: skip


def _bundles() -> list[Call]:
    score = scores.EuclideanScore(2).fit(X=np.tanh(X), Y=np.tanh(Y)).calibrate(coverage=0.8)
    return [
        Call("export_bundle", lambda: (selkit.export_bundle, {
            "model": NETWORK, "path": FOLDER / "c.onnx", "score": score, "roi": None, "explainer": None,
            "embedding": "e", "pool": None, "prediction": None, "guarantee": None, "names": None,
            "threshold_input": "optional", "max_references": 1000})),
        Call("export_bundle.roi", lambda: (selkit.export_bundle, {
            "model": LINE, "path": FOLDER / "d.onnx", "roi": roi_test()})),
        Call("load_bundle", lambda: (selkit.load_bundle, {"path": made_bundle().path})),
        Call("Bundle.run", lambda: (made_bundle().run, {"x": X[:3], "threshold": None})),
        Call("Bundle.verify", lambda: (made_bundle().verify, {"x": X[:3], "rtol": 1e-5})),
        Call("Graph.load", lambda: (graph.Graph.load, {"model": LINE})),
        Call("Graph.compile", lambda: (graph.Graph.load(LINE).compile, {"shapes": {"x": (1, 1, 8)}})),
    ]  # fmt: skip


def _abstention() -> list[Call]:
    pair = {"score": SCORES, "loss": LOSSES}
    boot = {"coverage": [0.5], "at_risk": [0.1], "n_boot": 5, "confidence": 0.9, "seed": 0}
    preds, target = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    maps, masks = torch.rand(4, 1, 5, 5), torch.ones(4, 1, 5, 5)

    def updated() -> Any:
        found = metric()
        found.update(torch.from_numpy(SCORES), torch.from_numpy(LOSSES))
        return found

    return [
        Call("benjamini_hochberg.calibration", lambda: (
            calibration.benjamini_hochberg, {"pvalues": [0.1, 0.4], "fdr": 0.1})),
        *(Call(name, functools.partial(
            lambda f: (f, {"mean": 0.1, "count": 20, "risk": 0.2}), getattr(calibration, name)))
          for name in ("binomial_pvalue", "hoeffding_bentkus_pvalue")),
        Call("conformal_pvalues", lambda: (
            calibration.conformal_pvalues, {"calibration": SCORES, "scores": SCORES[:3]})),
        Call("conformal_threshold", lambda: (
            calibration.conformal_threshold, {"scores": SCORES, "coverage": 0.8, "otherwise": "raise"})),
        Call("quantile_threshold", lambda: (
            calibration.quantile_threshold, {"scores": SCORES, "q": 0.5, "method": "linear"})),
        Call("risk_threshold", lambda: (calibration.risk_threshold, {
            "scores": SCORES, "losses": LOSSES, "risk": 0.5, "confidence": 0.9, "method": "ltt",
            "otherwise": "raise"})),
        Call("cross_val_scores", lambda: (calibration.cross_val_scores, {
            "estimator": scores.EuclideanScore(1), "X": X, "y": None, "cv": 2, "groups": None})),
        *(Call(name, functools.partial(lambda f: (f, dict(pair)), getattr(metrics, name)))
          for name in ("aurc", "augrc", "excess_aurc")),
        Call("risk_coverage", lambda: (metrics.risk_coverage, {**pair, "risk": "selective"})),
        Call("coverage_at_risk", lambda: (metrics.coverage_at_risk, {**pair, "risk": 0.1})),
        Call("risk_at_coverage", lambda: (metrics.risk_at_coverage, {**pair, "coverage": 0.5})),
        Call("bootstrap_risk_coverage", lambda: (metrics.bootstrap_risk_coverage, {**pair, **boot})),
        Call("discoveries", lambda: (metrics.discoveries, {"p_value": torch.tensor([0.01, 0.5]), "fdr": 0.1})),
        *(Call(name, functools.partial(lambda f: (f, {"preds": preds, "target": preds + 1}),
                                       getattr(metrics, name)))
          for name in ("absolute_error", "squared_error")),
        Call("zero_one_loss", lambda: (metrics.zero_one_loss, {"preds": preds, "target": target})),
        Call("dice_loss", lambda: (metrics.dice_loss, {"preds": maps, "target": masks})),
        *(Call(f"RiskCoverage.{name}", functools.partial(
            lambda n, k: (getattr(curve(), n), dict(k)), name, known))
          for name, known in (("coverage_at_risk", {"risk": 0.1}), ("risk_at_coverage", {"coverage": 0.5}),
                              ("expected_risk", {"coverage": torch.tensor([0.5])}), ("plot", {"digits": 2, "max_points": 9}))
          if list(inspect.signature(getattr(metrics.RiskCoverage, name)).parameters)[1] in (*known, "empirical")),
        Call("RiskCoverageMetric", lambda: (metrics.RiskCoverageMetric, {
            "risk": "selective", "coverage": [0.5], "at_risk": [0.1], "bins": None, "n_boot": 2,
            "confidence": 0.9, "seed": 0, "prefix": ""})),
        Call("RiskCoverageMetric.update", lambda: (
            metric().update, {"score": torch.from_numpy(SCORES), "loss": torch.from_numpy(LOSSES)})),
        Call("RiskCoverageMetric.plot", lambda: (updated().plot, {})),
        Call("DiscoveryMetric", lambda: (metrics.DiscoveryMetric, {"fdr": 0.1, "alpha": 0.05, "prefix": ""})),
        Call("DiscoveryMetric.update", lambda: (metrics.DiscoveryMetric().update, {
            "p_value": torch.tensor([0.1, torch.nan]), "selected": torch.tensor([True, False])})),
        Call("SelectiveMetric", lambda: (metrics.SelectiveMetric, {"base": accuracy(), "activation": None})),
        Call("SelectiveMetric.update", lambda: (metrics.SelectiveMetric(accuracy()).update, {
            "preds": preds, "target": target, "selected": torch.ones(4, dtype=torch.bool)})),
        Call("TensorPCA", lambda: (scores.TensorPCA, {"n_components": 2, "mean_center": True, "seed": 0})),
        Call("TensorPCA.fit", lambda: (scores.TensorPCA(2).fit, {"X": X})),
        *(Call(f"TensorPCA.{name}", functools.partial(lambda n: (getattr(pca(), n), {"X": X[:3]}), name))
          for name in ("transform", "reconstruct", "fit_transform")),
    ]  # fmt: skip


def accuracy() -> Any:
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(3)


def _models() -> list[Call]:
    writer = FOLDER / "predictions"
    return [
        Call("Ensemble", lambda: (embeddings.Ensemble, {"models": [net(), net()]})),
        Call("MonteCarloDropout", lambda: (
            embeddings.MonteCarloDropout, {"model": net(), "members": 2, "seed": 0})),
        Call("TorchSource", lambda: (embeddings.TorchSource, {
            "model": net(), "want": "embedding", "layer": "body", "pool": None})),
        Call("extract", lambda: (embeddings.extract, {
            "model": net(), "loader": loader(), "want": "embedding", "layer": "body", "pool": None,
            "input_key": 0, "target_key": 1, "labels": True, "cache": FOLDER / "cache"})),
        Call("source_of", lambda: (embeddings.source_of, {
            "model": net(), "want": "logits", "layer": None, "pool": None})),
        *(Call(name, functools.partial(lambda f: (f, {"batch": loader()[0], "key": 0}),
                                       getattr(embeddings, name)))
          for name in ("input_of", "target_of")),
        Call("Explainer", lambda: (explain.Explainer, {
            "model": NETWORK, "references": X[:8], "output": "logits", "target": "top", "method": "deepshap",
            "weights": None, "cache": "auto", "chunk": "auto"})),
        Call("Explainer.explain", lambda: (explainer().explain, {"x": X[:2]})),
        Call("Explainer.export", lambda: (explainer().export, {"path": FOLDER / "e.onnx"})),
        Call("Explainer.verify", lambda: (explainer().verify, {"x": X[:2]})),
        Call("Explainer.load", lambda: (explain.Explainer.load, {"path": exported()})),
        Call("IntegratedGradientsExplainer", lambda: (explain.IntegratedGradientsExplainer, {
            "model": NETWORK, "references": X[:4], "output": "logits", "target": 0, "weights": None,
            "tolerance": 1e-6, "budget": 200})),
        Call("Explanation.for_target", lambda: (explanation().for_target, {"target": 0})),
        Call("Explanation.plot", lambda: (explanation().plot, {})),
        Call("PermutationExplainer", lambda: (explain.PermutationExplainer, {
            "model": NETWORK, "references": X[:4], "output": "logits", "target": 0, "permutations": 2, "seed": 0})),
        Call("read_references", lambda: (explain.read_references, {"references": X, "name": "references"})),
        Call("summarize", lambda: (explain.summarize, {"references": X, "k": 3, "seed": 0, "weights": False})),
        Call("Curve", lambda: (report.Curve, {"coverage": np.array([0.5, 1.0]), "risk": np.array([0.1, 0.2])})),
        Call("Sample", lambda: (report.Sample, {
            "image": np.eye(8), "score": 0.3, "selected": True, "name": "a", "group": "", "roi": np.eye(8),
            "p_value": 0.1})),
        Call("Report", lambda: (report.Report, {
            "title": "t", "samples": [sample()], "threshold": 0.5, "summary": ["a"], "facts": {"a": 1.0}})),
        Call("write_report", lambda: (report.write_report, {
            "path": FOLDER / "r.html", "report": report.Report("t", [sample()]), "max_megabytes": 1.0})),
        Call("Report.written", lambda: (
            lambda **k: report.write_report(FOLDER / "r.html", report.Report(**k)),
            {"title": "t", "samples": [sample()], "threshold": 0.5, "metrics": {"a": 1.0}})),
        Call("risk_coverage_interval", lambda: (report.risk_coverage_interval, {
            "score": SCORES, "loss": LOSSES, "points": 5, "n_boot": 5, "confidence": 0.9, "seed": 0})),
        Call("from_test", lambda: (report.from_test, {"task": tested(), "title": "t"})),
        Call("SelectiveInferenceTask", lambda: (task.SelectiveInferenceTask, {
            "task": net(), "score": scores.SoftmaxScore().fit(Y=Y).calibrate(coverage=0.5), "input_key": None,
            "target_key": None, "acc_test_outputs": False, "metrics": None, "loss": None})),
        Call("PredictionWriter", lambda: (task.PredictionWriter, {
            "directory": writer, "part_bytes": 1000, "overwrite": True})),
        *(Call(name, functools.partial(lambda f: (lambda **k: list(f(**k)), {"directory": FOLDER, "loader": 0}),
                                       getattr(task, name)))
          for name in ("iter_predictions", "read_predictions")),
    ]  # fmt: skip


@functools.cache
def exported() -> Path:
    explainer().export(FOLDER / "f.onnx")
    return FOLDER / "f.onnx"


@functools.cache
def tested() -> Any:
    return task.SelectiveInferenceTask(net(), scores.SoftmaxScore().fit(Y=Y).calibrate(coverage=0.5))


def calls() -> list[Call]:
    """Every call of the table."""
    names = [name for name in scores.__all__ if name not in BASES | {"TensorPCA"}]
    each = [call for name in names for call in score_calls(name)]
    return [*_inference(), *_bundles(), *_abstention(), *_models(), *each]


def public() -> set[str]:
    """Every public name that can be called."""
    found = set()
    for name in MODULES:
        module = importlib.import_module(f"selkit.{name}" if name else "selkit")
        for one in module.__all__:
            if callable(getattr(module, one)):
                found.add(one)
    return found - RECORDS - BASES
