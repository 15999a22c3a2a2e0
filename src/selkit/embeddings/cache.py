"""Features on disk, under names that say what they were made of: what changed has another name."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selkit.embeddings.sources import Identity
from selkit.errors import InvalidTypeError
from selkit.utils.atomic import write_bytes
from selkit.utils.checks import as_path

_PLAIN = (str, int, float, bool, bytes, type(None))


class FeatureCache:
    """One file for each batch, named by the content of model and batch.

    A model is its parameters and buffers, the plain attributes of its modules, and their source where
    Python can show it; a batch is all its tensors and plain values. A lookup therefore costs reading the
    data, but not running the model.

    Parameters
    ----------
    directory
        Made where it does not exist.
    identity
        Of a source: the module or bytes, and what else the features depend on.

    Raises
    ------
    InvalidTypeError
        If they depend on a function, whose behaviour has no name.
    """

    def __init__(self, directory: str | Path, identity: Identity) -> None:
        model, options = identity
        if any(callable(option) for option in options):
            raise InvalidTypeError(
                "a cache cannot tell what a function does: give pool= by name, or no cache="
            )
        self.directory = as_path(directory, "cache")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._model = hashlib.sha256(f"selkit 1 {torch.__version__} {options!r}".encode())
        if isinstance(model, nn.Module):
            _add_module(self._model, model)
        else:
            self._model.update(model)

    def key(self, batch: Any) -> str:
        """Name of the features of one batch."""
        digest = self._model.copy()
        _add(digest, batch)
        return digest.hexdigest()

    def get(self, key: str) -> Tensor | None:
        """Features of a batch by its name, if they are there and whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.directory / f"{key}.safetensors")["features"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None  # a damaged file is like a missing one: it is made anew

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of a batch; another process never sees half a file."""
        from safetensors.torch import save

        write_bytes(self.directory / f"{key}.safetensors", save({"features": features.contiguous()}))


def _add_module(digest: Any, model: nn.Module) -> None:
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__module__}.{type(module).__qualname__};".encode())
        if not type(module).__module__.startswith("torch."):
            with contextlib.suppress(OSError, TypeError):
                digest.update(inspect.getsource(type(module)).encode())
        for attribute, value in sorted(vars(module).items()):
            if isinstance(value, _PLAIN) and attribute != "training":
                digest.update(f"{attribute}={value!r};".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode())
        _add(digest, tensor)


def _add(digest: Any, value: Any) -> None:
    """Take content and structure of a value into a digest."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous()
        digest.update(f"tensor {raw.dtype} {tuple(raw.shape)};".encode())
        digest.update(raw.reshape(-1).view(torch.uint8).numpy().data if raw.numel() else b"")
    elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
        digest.update(f"array {value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for name, part in value.items():
            digest.update(repr(name).encode())
            _add(digest, part)
    elif isinstance(value, (list, tuple)):
        digest.update(f"sequence {len(value)};".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, _PLAIN):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise InvalidTypeError(
            f"a cache cannot tell what a {type(value).__name__} in a batch holds; let the loader yield "
            "tensors, arrays and plain values, or give no cache="
        )
