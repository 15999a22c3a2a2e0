"""Features on disk, under names that say what they were made of: what changed has another name."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from selkit.embeddings.identity import identity_of
from selkit.embeddings.sources import Identity
from selkit.errors import InvalidTypeError, SelkitError
from selkit.utils.atomic import UNFINISHED, _host, alive, write_bytes
from selkit.utils.checks import as_path
from selkit.utils.fingerprint import fingerprint

_FORMAT = "selkit-features-2"


class FeatureCache:
    """One file for each batch, named by the content of model and batch.

    A model is everything that it holds (see :func:`selkit.embeddings.identity.identity_of`); a batch is all
    its tensors and values, so that data set, transform and order count as far as they decide it. A lookup
    therefore costs reading the data, but not running the model. Every file carries a checksum; one that is
    damaged is like a missing one: it is made anew.

    Parameters
    ----------
    directory
        Made where it does not exist. What killed processes left unfinished is removed.
    identity
        Of a source: the module or bytes, and what else the features depend on.

    Raises
    ------
    InvalidTypeError
        If they depend on what cannot be told from others, such as an open file.
    """

    def __init__(self, directory: str | Path, identity: Identity) -> None:
        self.directory = as_path(directory, "cache")
        self._identity = identity
        self._model = identity_of(identity)
        self._quick = identity_of(identity, quick=True)
        self._open = True
        self._written: list[Path] = []
        self.directory.mkdir(parents=True, exist_ok=True)
        _sweep(self.directory)

    def key(self, batch: Any) -> str:
        """Name of the features of one batch.

        Raises
        ------
        InvalidTypeError
            If the batch holds what cannot be told from others.
        """
        try:
            return fingerprint(self._model, batch)
        except (SelkitError, RecursionError) as error:
            raise InvalidTypeError(
                f"a cache cannot tell what a batch holds: {error}; let the loader yield tensors, arrays and "
                "plain values, or give no cache="
            ) from error

    def get(self, key: str) -> Tensor | None:
        """Features of a batch by its name, if they are there and whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = (self.directory / f"{key}.safetensors").read_bytes()
            features = load(content)["features"]
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None
        # the whole file is compared: no byte of it is outside of the checksum
        return features if content == _file(key, features) else None

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of a batch, if the model is still what it was; a file is whole or not there.

        Warns
        -----
        UserWarning
            If the model changed while it ran: then what it gives depends on what it saw before.
        """
        if self._open and identity_of(self._identity, quick=True) != self._quick:
            self._give_up()
        if self._open:
            path = self.directory / f"{key}.safetensors"
            write_bytes(path, _file(key, features))
            self._written.append(path)

    def close(self) -> None:
        """Keep nothing of this run if the model is not what it was, weights and all.

        Warns
        -----
        UserWarning
            As for :meth:`put`.
        """
        if self._open and self._written and identity_of(self._identity) != self._model:
            self._give_up()

    def _give_up(self) -> None:
        self._open = False
        for path in self._written:
            path.unlink(missing_ok=True)
        warnings.warn(
            f"nothing is kept in the cache: {type(self._identity[0]).__name__} changes while it runs, so "
            "what it makes of a batch may depend on what it saw before. The features are right; to keep "
            "them, let the model hold nothing that counts or collects",
            stacklevel=2,
        )


def _file(key: str, features: Tensor) -> bytes:
    """The content of a file, the same for the same features."""
    from safetensors.torch import save

    features = features.detach().contiguous()
    tensors = {"features": features}
    digest = hashlib.sha256(key.encode() + save(tensors)).hexdigest()
    return save(tensors, metadata={"selkit": f"{_FORMAT} {key} {digest}"})


def _sweep(directory: Path) -> None:
    """Remove what dead processes of this machine have left unfinished."""
    pattern = re.compile(rf"\.[0-9a-f]+\.safetensors\.{_host()}-(\d+)-\w+{re.escape(UNFINISHED)}")
    for path in directory.glob(f".*{UNFINISHED}"):
        found = pattern.fullmatch(path.name)
        if found and not alive(int(found[1])):
            path.unlink(missing_ok=True)
