"""Distances to neighbours, to Gaussians and outside principal components, as ONNX nodes.

The k nearest references are found by products in float64, whose rounding is far below the differences
that float32 data can have; the distances of a few more candidates are then computed anew as sums of squared
differences, as the search in Python does.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from selkit.bundle.emitter import Array, Emitter, as_array
from selkit.bundle.registry import emits, refuses
from selkit.errors import NotAvailableError, NotFittedError
from selkit.scores.cluster import DaskRows
from selkit.scores.covariance import Whitening
from selkit.scores.gaussian import GaussianScore, RelativeMahalanobisScore
from selkit.scores.neighbors import CosineScore, EuclideanScore, KNNScore, MahalanobisScore
from selkit.scores.pca import PCAScore, TensorPCA
from selkit.scores.pyod import PyODScore
from selkit.scores.random import RandomScore
from selkit.scores.search import SPARE
from selkit.scores.vim import ViMScore

refuses(
    PyODScore,
    "a PyOD detector is Python code, which ONNX cannot hold. Use a score of selkit.scores, such as "
    "EuclideanScore, or keep this one in Python beside the model",
)
refuses(
    RandomScore,
    "it draws from a random generator whose state ONNX cannot keep, so the file would decide differently at "
    "every run. It is a baseline for comparisons; bundle the score that it was compared with",
)


def nearest(g: Emitter, query: str, references: Array, k: int) -> str:
    """Distances to the k nearest rows, ascending, float64, ``(N, k)``.

    Parameters
    ----------
    g
        Where to append.
    query
        Rows in float64.
    references
        Shape ``(M, D)``, float32 or float64.
    k
        At most ``M``.
    """
    exact = references.astype(np.float64)
    center = exact.mean(0)
    exact -= center
    stored = g.constant(references)
    wide = stored if references.dtype == np.float64 else g.cast(stored, np.float64)
    middle = g.constant(center)
    shifted = g.op("Sub", query, middle)
    norms = g.constant(np.square(exact).sum(1))
    products = g.op("Gemm", shifted, g.op("Sub", wide, middle), norms, alpha=-2.0, transB=1)
    _, candidates = g.top(products, min(len(references), k + SPARE), largest=False)
    rows = g.cast(g.op("Gather", stored, candidates, axis=0), np.float64)
    ahead = g.op("Unsqueeze", query, np.asarray([1], dtype=np.int64))
    difference = g.op("Sub", rows, ahead)
    distances = g.op("Sqrt", g.reduce("ReduceSumSquare", difference, [2]))
    return g.top(distances, k, largest=False)[0]


def project(g: Emitter, pca: TensorPCA, query: str) -> tuple[str, str]:
    """What ``TensorPCA`` makes of rows: centred features, and the components, both float64."""
    components, mean = pca._fitted()
    found = g.double(query)
    if pca.frequencies is not None and pca.phases is not None:
        # the cosine of float64 has no kernel in every onnxruntime; the sine has
        phases = as_array(pca.phases).astype(np.float64) + math.pi / 2
        angles = g.op("Add", g.op("MatMul", found, g.double(pca.frequencies)), g.constant(phases))
        found = g.op("Mul", g.op("Sin", angles), g.number(math.sqrt(2 / len(pca.phases))))
    return g.op("Sub", found, g.double(mean)), g.double(components)


def transform(g: Emitter, pca: TensorPCA, query: str) -> str:
    """Coordinates along principal components, float64."""
    centred, components = project(g, pca, query)
    return g.op("MatMul", centred, g.op("Transpose", components, perm=[1, 0]))


def whitened(g: Emitter, white: Whitening, center: Tensor | None, query: str) -> str:
    """Rows, less a center, where the covariance of the references is the identity; all float64."""
    if center is None:
        raise NotFittedError("the score is not fitted yet: call fit(...) first")
    centred = g.op("Sub", query, g.double(center))
    inside = g.op("MatMul", centred, g.double(white.matrix))
    if white.stretch is None or white.rest is None:
        return inside
    back = g.op("Transpose", g.double(white.matrix), perm=[1, 0])
    more = g.op("MatMul", g.op("Mul", inside, g.double(white.stretch)), back)
    return g.op("Add", g.op("Mul", centred, g.number(float(white.rest))), more)


@emits(EuclideanScore, CosineScore, MahalanobisScore)
def neighbors(g: Emitter, score: KNNScore, features: str) -> str:
    """Append the statistic of the distances to the k nearest references."""
    references = _references(g, score)
    inside = g.double(features if score.projection is None else transform(g, score.projection, features))
    if isinstance(score, MahalanobisScore):
        inside = whitened(g, score.whitener(), score.mean, inside)
    elif isinstance(score, CosineScore):
        inside = _unit(g, inside, float(np.finfo(np.float64).tiny))
    distances = nearest(g, inside, references, score.k)
    if isinstance(score, CosineScore):
        half = g.op("Mul", g.op("Mul", distances, distances), g.number(0.5))
        size = g.reduce("ReduceMax", g.op("Abs", inside), [1], keepdims=True)
        none = g.op("Equal", size, g.number(0.0))
        distances = g.op("Where", none, g.number(1.0), half)
    if score.stat == "mean":
        return g.reduce("ReduceMean", distances, [1])
    place = {"max": score.k - 1, "min": 0, "median": (score.k - 1) // 2}[score.stat]
    return g.op("Gather", distances, np.asarray(place, dtype=np.int64), axis=1)


def _references(g: Emitter, score: KNNScore) -> Array:
    if isinstance(score._outside, DaskRows):
        raise NotAvailableError(
            f"{type(score).__name__} has its references in a Dask array, which a file cannot hold; fit on "
            "those that are to go in, X=array[:100_000].compute()"
        )
    if score.graph is not None:
        raise NotAvailableError(
            f"{type(score).__name__} searches approximately (index='faiss'), and a bundle exactly, so they "
            "could decide differently; fit with index='exact'"
        )
    rows = score._references().rows
    g.count_references(rows.shape[0])
    return as_array(rows.block(0, rows.shape[0]))


def _unit(g: Emitter, rows: str, tiny: float) -> str:
    """Rows of length one; rows of zeros stay."""
    least = g.number(tiny)
    size = g.reduce("ReduceMax", g.op("Abs", rows), [1], keepdims=True)
    scaled = g.op("Div", rows, g.op("Max", size, least))
    length = g.op("Sqrt", g.reduce("ReduceSumSquare", scaled, [1], keepdims=True))
    return g.op("Div", scaled, g.op("Max", length, least))


@emits(GaussianScore)
def gaussian(g: Emitter, score: GaussianScore, features: str) -> str:
    """Append the squared Mahalanobis distance to the nearest class mean."""
    if score.center is None or score.means is None:
        raise NotFittedError(f"{type(score).__name__} is not fitted yet: call fit(...) first")
    inside = whitened(g, score.whitener(), score.center, g.double(features))
    distance = g.op(
        "Gather", nearest(g, inside, as_array(score.means), 1), np.asarray(0, dtype=np.int64), axis=1
    )
    return g.op("Mul", distance, distance)


@emits(RelativeMahalanobisScore)
def relative(g: Emitter, score: RelativeMahalanobisScore, features: str) -> str:
    """Append the distance to the nearest class mean minus that to one Gaussian for all."""
    return g.op("Sub", gaussian(g, score, features), gaussian(g, score.background, features))


@emits(PCAScore)
def principal(g: Emitter, score: PCAScore, features: str) -> str:
    """Append the error of reconstruction from the principal components."""
    if score.projection is None:
        raise NotFittedError("PCAScore is not fitted yet: call fit(...) first")
    centred, components = project(g, score.projection, features)
    inside = g.op("MatMul", centred, g.op("Transpose", components, perm=[1, 0]))
    rest = g.op("Sub", centred, g.op("MatMul", inside, components))
    return g.op("Sqrt", g.reduce("ReduceSumSquare", rest, [1]))


@emits(ViMScore)
def virtual_logit(g: Emitter, score: ViMScore, features: str) -> str:
    """Append the virtual logit minus the log-sum-exp of the logits."""
    if (
        score.alpha is None
        or score.outside is None
        or score.weight is None
        or score.bias is None
        or score.origin is None
    ):
        raise NotFittedError("ViMScore is not fitted yet: call fit(...) first")
    query = g.double(features)
    residual = g.op("MatMul", g.op("Sub", query, g.double(score.origin)), g.double(score.outside))
    length = g.op("Sqrt", g.reduce("ReduceSumSquare", residual, [1]))
    logits = g.op("Gemm", query, g.double(score.weight), g.double(score.bias), transB=1)
    virtual = g.op("Mul", length, g.double(score.alpha))
    return g.op("Sub", virtual, g.reduce("ReduceLogSumExp", logits, [1]))
