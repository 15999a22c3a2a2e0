"""What inputs are compared with: references from arrays or loaders, and how to choose a few of many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from selkit.embeddings.batches import Key, input_of
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.arrays import as_tensor
from selkit.utils.boundary import public
from selkit.utils.checks import given, integer

Shape: TypeAlias = tuple[int | None, ...]


def read_array(
    values: object, shape: Shape | None = None, dtype: DTypeLike | None = np.float32, *, name: str = "x"
) -> NDArray[Any]:
    """A batch as an array that the model takes, checked.

    Floating numbers of any width are converted; integers are not, because raw pixels where a model takes
    scaled ones are a usual mistake.

    Parameters
    ----------
    values
        Tensor, array or nested lists of shape ``(N, ...)`` with at least one sample.
    shape
        What the model declares, batch axis included, ``None`` for each free size.
    dtype
        The model's floating type; ``None`` keeps float64 and makes float32 of what is narrower.
    name
        How the argument is called, for messages.

    Returns
    -------
    ndarray
        Of the given dtype, in C order.

    Raises
    ------
    InvalidTypeError
        For what is not an array of floating numbers.
    InvalidInputError
        For another shape, no sample, NaN or infinity.

    Examples
    --------
    >>> read_array([[0.0, 1.0]], (None, 2)).dtype
    dtype('float32')
    """
    array = _floating(values, dtype, name)
    _check_shape(array, shape, name)
    _check_finite(array, name)
    return array


@public
def read_references(
    references: object,
    shape: Shape | None = None,
    dtype: DTypeLike | None = np.float32,
    *,
    key: Key = None,
    name: str = "references",
) -> NDArray[Any]:
    """References as one array that the model takes, checked.

    Parameters
    ----------
    references
        Array, tensor or nested lists of shape ``(R, ...)``; or a loader, data set or any iterable of
        batches or single samples (without ``shape``: batches, or a data set of numbered samples without
        ``__iter__``). An entry may be a tuple, whose first element is taken, or a dictionary
        (see :func:`selkit.embeddings.batches.input_of`).
    shape
        What the model declares, batch axis included, ``None`` for each free size.
    dtype
        The model's floating type, to which others are converted; ``None`` as for :func:`read_array`.
    key
        Position or name of the input in each entry of a loader.
    name
        How the argument is called, for messages.

    Returns
    -------
    ndarray of shape (R, ...)

    Raises
    ------
    InvalidTypeError
        For what are not floating numbers.
    InvalidInputError
        For another shape, no reference, NaN or infinity.

    Examples
    --------
    >>> loader = [(np.zeros((2, 3)), [0, 1]), (np.ones((1, 3)), [1])]
    >>> read_references(loader, (None, 3)).shape
    (3, 3)
    """
    if references is None or isinstance(references, str | bytes | Mapping | Number):
        raise InvalidTypeError(
            f"{name} is a {type(references).__name__}; give an array or tensor of shape (samples, ...), "
            "or a loader of batches"
        )
    if is_array(references):
        return read_array(references, shape, dtype, name=name)
    if not isinstance(references, Iterable) and not hasattr(references, "__getitem__"):
        raise InvalidTypeError(
            f"{name} is a {type(references).__name__}, which cannot be iterated; give an array or tensor of "
            "shape (samples, ...), or a loader of batches"
        )
    parts = list(_batches(references, shape, dtype, key, name))
    if not parts:
        raise InvalidInputError(f"{name} has no sample; give at least one")
    differing = {part.shape[1:] for part in parts}
    if len(differing) > 1:
        raise InvalidInputError(
            f"{name} has samples of different shapes: {sorted(differing)}; bring them to one shape"
        )
    return np.concatenate(parts)


@overload
def summarize(
    references: object, k: int, *, seed: int = 0, key: Key = None, weights: Literal[False] = False
) -> NDArray[Any]: ...


@overload
def summarize(
    references: object, k: int, *, seed: int = 0, key: Key = None, weights: Literal[True]
) -> tuple[NDArray[Any], NDArray[np.float64]]: ...


@public
def summarize(
    references: object, k: int, *, seed: int = 0, key: Key = None, weights: bool = False
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float64]]:
    """Choose ``k`` samples that represent many: one of each cluster that k-means finds.

    They are samples themselves, those nearest to the centers of their clusters, so that a model sees what
    it may see in use; a center is a blend of images. The choice does not depend on the samples' order.

    Parameters
    ----------
    references
        As for :func:`read_references`; all samples are held in memory.
    k
        How many to choose, at most the number of different samples.
    seed
        Of k-means.
    key
        Position or name of the input in each entry of a loader.
    weights
        Whether to return the fraction of the samples in each cluster as well.

    Returns
    -------
    ndarray of shape (k, ...)
        In the order of their first occurrence; float32, or float64 where the samples are.
    ndarray of shape (k,)
        Only if ``weights``; sums to 1.

    Raises
    ------
    InvalidInputError
        If there are fewer different samples than ``k``, or one is NaN or infinite.
    InvalidTypeError
        For what are not floating numbers.

    Examples
    --------
    >>> samples = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [5.3], [5.4]])
    >>> chosen, share = summarize(samples, 2, weights=True)
    >>> chosen.ravel().tolist(), share.tolist()
    ([0.1, 5.2], [0.375, 0.625])
    """
    from sklearn.cluster import KMeans

    integer(k, "k", 1)
    samples = read_references(references, None, None, key=key)
    rows = samples.reshape(len(samples), -1)
    # Sorted and without repetitions, so that neither the order nor ties decide.
    unique, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if k > len(unique):
        raise InvalidInputError(
            f"k is {k}, but references has {len(unique)} different samples (of {len(rows)}); "
            f"give k of at most {len(unique)}, or more samples"
        )
    kmeans = KMeans(k, n_init=4, random_state=integer(seed, "seed", 0, 2**32 - 1))
    labels = kmeans.fit_predict(unique, sample_weight=counts)
    chosen, share = np.empty(k, dtype=np.int64), np.empty(k)
    for cluster in range(k):
        members = np.flatnonzero(labels == cluster)
        distance = ((unique[members] - kmeans.cluster_centers_[cluster]) ** 2).sum(axis=1)
        chosen[cluster] = first[members[distance.argmin()]]
        share[cluster] = counts[members].sum() / len(rows)
    order = np.argsort(chosen)
    picked = samples[chosen[order]]
    return (picked, share[order]) if weights else picked


def _batches(
    references: Any, shape: Shape | None, dtype: DTypeLike | None, key: Key, name: str
) -> Iterator[NDArray[Any]]:
    """The entries of an iterable as checked batches; a single sample gets its axis."""
    if _is_numbers(references):
        yield read_array(references, shape, dtype, name=name)
        return
    singles = not isinstance(references, Iterable)  # a data set with numbered samples
    for number, entry in enumerate(references):
        where = f"{name} (entry {number})"
        array = _floating(entry if _is_numbers(entry) else input_of(entry, key), dtype, where)
        if singles if shape is None else array.ndim == len(shape) - 1:
            array = array[None]
        _check_shape(array, shape, where)
        _check_finite(array, where)
        yield array


def _floating(values: object, dtype: DTypeLike | None, name: str) -> NDArray[Any]:
    """The numbers in the model's type; what is not floating is refused."""
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"dtype must be a type of NumPy; got {given(dtype)}") from error
    tensor = as_tensor(values, name)
    if not tensor.is_floating_point():
        raise InvalidTypeError(
            f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; the model takes "
            f"{np.dtype(dtype or np.float32).name}. Convert it as the model's inputs are, scaling included"
        )
    kind = wanted or np.dtype(np.float64 if tensor.dtype == torch.float64 else np.float32)
    array = (tensor if tensor.dtype == torch.float64 else tensor.float()).cpu().numpy()
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
        return np.ascontiguousarray(array.astype(kind, copy=False)).reshape(array.shape)


def _check_shape(array: NDArray[Any], shape: Shape | None, name: str) -> None:
    if array.ndim < (2 if shape is None else 1) or (shape is not None and array.ndim == len(shape) - 1):
        raise InvalidInputError(
            f"{name} has shape {array.shape}, without an axis for samples; "
            "give one sample with a first axis of length 1, as value[None]"
        )
    if shape is not None:
        fits = array.ndim == len(shape) and all(
            side is None or side == got for side, got in zip(shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join(["samples", *("any" if side is None else str(side) for side in shape[1:])])
            raise InvalidInputError(
                f"{name} has shape {array.shape}; the model takes ({wanted}). Bring it to that shape"
            )
    if not array.size:
        raise InvalidInputError(f"{name} is empty, of shape {array.shape}; give at least one sample")


def _check_finite(array: NDArray[Any], name: str) -> None:
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if bad.any():
        raise InvalidInputError(
            f"{name} has NaN or infinite values (as {array.dtype}) in {int(bad.sum())} of {len(array)} "
            f"samples, first in sample {int(bad.argmax())}; remove these samples or mend what made them"
        )


def is_array(value: object) -> bool:
    """Whether this is an array or tensor of any library."""
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _is_numbers(value: object) -> bool:
    """Whether these are nested lists or tuples of plain numbers."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, Number)
