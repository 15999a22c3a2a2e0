"""The covariance of the noise: a number, a vector, a matrix, or a stationary kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.signal import fftconvolve

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.arrays import as_tensor
from selkit.utils.boundary import public
from selkit.utils.checks import given

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stationary:
    """Noise whose covariance between two pixels depends on their offset only.

    Attributes
    ----------
    kernel
        Covariance by offset, an array of odd sides over the spatial axes with offset 0 in its middle; it
        is symmetric about it. Channels are independent.
    """

    kernel: ArrayLike

    def __post_init__(self) -> None:
        kernel = as_tensor(self.kernel, "kernel").double().cpu().numpy()
        if any(side % 2 == 0 for side in kernel.shape) or not kernel.size:
            raise InvalidInputError(f"kernel has sides {kernel.shape}; every side must be odd")
        if not np.all(np.isfinite(kernel)) or not np.allclose(kernel, np.flip(kernel)):
            raise InvalidInputError("kernel must be finite and symmetric about its middle")
        if kernel[tuple(side // 2 for side in kernel.shape)] <= 0:
            raise InvalidInputError("kernel must be positive in its middle: that is the variance")
        object.__setattr__(self, "kernel", kernel)

    @public
    def times(self, vector: Array) -> Array:
        """Return the covariance matrix times an image."""
        kernel = np.asarray(self.kernel)
        if kernel.ndim > vector.ndim:
            raise InvalidInputError(
                f"kernel has {kernel.ndim} axes, more than the input's shape {vector.shape}; give "
                "spatial ones"
            )
        kernel = kernel.reshape((1,) * (vector.ndim - kernel.ndim) + kernel.shape)
        return np.asarray(fftconvolve(vector, kernel, mode="same"), dtype=np.float64)


def check_var(var: object) -> None:
    """Refuse, before any image is there, what is no variance of any.

    Raises
    ------
    InvalidTypeError
        For what holds no numbers: text, functions.
    InvalidInputError
        For numbers that are not finite and positive.
    """
    if isinstance(var, Stationary) or _is_sparse(var):
        return
    array = _numbers(var)
    if array.ndim == 2 and array.shape[0] == array.shape[1] and not np.all(array > 0):
        array = array.diagonal()  # a covariance matrix may have other entries of any sign
    check_positive(array)


def check_positive(array: Array) -> None:
    """Refuse variances that are not positive."""
    if not array.size or not np.all(np.isfinite(array)) or not np.all(array > 0):
        raise InvalidInputError("var must be finite and positive everywhere")


def _numbers(var: object) -> Array:
    if callable(var) or isinstance(var, (bool, np.bool_)):
        raise InvalidTypeError(
            f"var must be a number, an array, a matrix or Stationary; got {given(var)}. "
            "A function of the image goes to inference_batch(var=)"
        )
    return np.asarray(as_tensor(var, "var").double().cpu().numpy())


class Covariance:
    """What ``var=`` means: checks it once, and multiplies with it.

    Parameters
    ----------
    var
        A positive number (independent pixels of equal variance), an array of the input's shape (independent
        pixels), a matrix over the flattened input (numpy or scipy.sparse, positive definite), or
        :class:`Stationary`.
    shape
        Shape of the input.
    """

    def __init__(self, var: object, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.size = int(np.prod(shape))
        self._var: Any
        if var is None:
            raise InvalidInputError("var is missing; give the noise variance (a number, vector or matrix)")
        if isinstance(var, Stationary):
            self._var = var
        elif _is_sparse(var):
            matrix: Any = sparse.csr_array(cast(Any, var))
            self._check_matrix(matrix)
            self._var = matrix
        else:
            array = _numbers(var)
            if array.ndim == 2 and array.shape == (self.size, self.size) and self.size > 1:
                self._check_matrix(array)
                self._var = array
            else:
                self._var = self._check_diagonal(array)

    def _check_diagonal(self, array: Array) -> Array:
        if array.size not in (1, self.size):
            raise InvalidInputError(
                f"var has shape {array.shape}; for an input of shape {self.shape} give a number, "
                f"{self.size} numbers, or a matrix of shape ({self.size}, {self.size})"
            )
        check_positive(array)
        return array.reshape(()) if array.size == 1 else array.reshape(self.shape)

    def _check_matrix(self, matrix: Any) -> None:
        if matrix.shape != (self.size, self.size):
            raise InvalidInputError(
                f"var is a matrix of shape {matrix.shape}; an input of shape {self.shape} needs "
                f"({self.size}, {self.size})"
            )
        values = matrix.data if _is_sparse(matrix) else matrix
        if not np.all(np.isfinite(np.asarray(values))):
            raise InvalidInputError("var has values that are not finite")
        skew = abs(matrix - matrix.T).max()
        if skew > 1e-8 * abs(matrix).max():
            raise InvalidInputError(f"var is not symmetric: entries differ by up to {float(skew):.3g}")
        if not _positive_definite(matrix):
            raise InvalidInputError("var is not positive definite; add a little to its diagonal")

    def times(self, eta: Array) -> Array:
        """Return the covariance matrix times ``eta``, in the input's shape."""
        if isinstance(self._var, Stationary):
            return self._var.times(eta)
        if isinstance(self._var, np.ndarray) and self._var.shape in ((), self.shape):
            return self._var * eta
        return np.asarray(self._var @ eta.reshape(-1)).reshape(self.shape)


def _is_sparse(matrix: object) -> bool:
    return bool(sparse.issparse(matrix))


def _positive_definite(matrix: Any) -> bool:
    if _is_sparse(matrix):
        from scipy.sparse.linalg import ArpackError, eigsh

        size = matrix.shape[0]
        if size < 500:
            return _positive_definite(np.asarray(matrix.todense()))
        try:
            solve: Any = eigsh
            smallest = solve(sparse.csc_array(matrix), k=1, sigma=0, which="LM", return_eigenvectors=False)
        except (ArpackError, RuntimeError):
            return False
        return bool(smallest[0] > 0)
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True
