"""Where embeddings and logits come from: a torch module, one of its layers, or a value of an ONNX graph."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from selkit.embeddings.batches import rows_of, to_device
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.boundary import public

Want: TypeAlias = Literal["embedding", "logits"]
Pool: TypeAlias = Literal["mean", "flatten", "tokens"] | Callable[[Tensor], Tensor] | None

Identity: TypeAlias = tuple[nn.Module | bytes, tuple[Any, ...]]


@runtime_checkable
class Source(Protocol):
    """Turns what a model takes into features, one row a sample."""

    def __call__(self, inputs: Any) -> Tensor:
        """Features of one batch, with one row for each sample."""
        ...

    @property
    def identity(self) -> Identity:
        """The model (or its bytes) and everything else that the features depend on, for a cache."""
        ...

    def running(self) -> contextlib.AbstractContextManager[None]:
        """The model in evaluation mode while the block runs, and as it was afterwards."""
        ...


def pooled(features: Tensor, pool: Pool) -> Tensor:
    """One vector for each sample from a layer's output.

    Parameters
    ----------
    features
        ``(N, D)`` is left alone; ``(N, C, H, W)`` and deeper are feature maps, channels first;
        ``(N, T, D)`` may be tokens or a one-dimensional feature map, which only the user knows.
    pool
        ``"mean"`` over all axes behind the second (the default for feature maps), ``"tokens"`` for the mean
        over the second axis, ``"flatten"``, or a function from the output to ``(N, D)``.

    Returns
    -------
    Tensor
        Shape ``(N, D)``.

    Raises
    ------
    InvalidInputError
        If the shape leaves open what is meant, or the result is not a matrix.
    """
    if callable(pool):
        features = pool(features)
    elif features.ndim > 2 or pool is not None:
        if pool is None and features.ndim == 3:
            raise InvalidInputError(
                f"features of shape {tuple(features.shape)} may be tokens or channels; say pool='tokens' "
                "(mean over the second axis), pool='mean' (over the last), pool='flatten', or a function"
            )
        if pool == "tokens":
            features = features.mean(1)
        if pool == "flatten":
            features = features.flatten(1)
        elif pool in ("mean", None, "tokens"):
            features = features.flatten(2).mean(2) if features.ndim > 2 else features
        else:
            raise InvalidInputError(f"pool must be 'mean', 'tokens', 'flatten' or a function; got {pool!r}")
    if features.ndim != 2:
        raise InvalidInputError(
            f"an embedding must have shape (samples, features); the model gave {tuple(features.shape)}"
        )
    return features


class TorchSource:
    """Features of a torch or Lightning module.

    Parameters
    ----------
    model
        Any module.
    want
        ``"embedding"``: ``model.embed(x)``. ``"logits"``: ``model.logits(x)``, or ``model(x)`` where
        there is no such method.
    layer
        Take the output of this submodule, such as ``"encoder.layer4"``, by a forward hook instead.
    pool
        See :func:`pooled`.

    Raises
    ------
    InvalidInputError
        If there is no such layer, or the model has no ``embed`` and no layer is named.
    """

    @public
    def __init__(
        self, model: nn.Module, want: Want = "embedding", *, layer: str | None = None, pool: Pool = None
    ) -> None:
        self.model, self.want, self.layer, self.pool = model, want, layer, pool
        self._call: Callable[[Any], Any] = model
        if layer is not None:
            self._layer: nn.Module = _find_layer(model, layer)
        elif want == "embedding":
            if not callable(getattr(model, "embed", None)):
                raise InvalidInputError(
                    f"{type(model).__name__} has no embed(x) method; give it one, or name a layer whose "
                    "output is the embedding: layer='encoder.layer4' (see model.named_modules())"
                )
            self._call = model.embed  # type: ignore[assignment]
        elif callable(getattr(model, "logits", None)):
            self._call = model.logits  # type: ignore[assignment]

    @property
    def identity(self) -> Identity:
        """What the features depend on."""
        return self.model, (self.want, self.layer, self.pool)

    @property
    def device(self) -> torch.device | None:
        """Where the model's first parameter or buffer is, if it has any."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode inside the block; each submodule's mode is put back afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def __call__(self, inputs: Any) -> Tensor:
        """Features of one batch; shape ``(N, D)``, or whatever the model calls its logits."""
        inputs = to_device(inputs, self.device)
        with torch.no_grad():
            features = self._hooked(inputs) if self.layer is not None else self._call(inputs)
        if not isinstance(features, Tensor):
            raise InvalidTypeError(
                f"{type(self.model).__name__} gave {type(features).__name__} where {self.want} are expected; "
                "a tensor with one row for each sample is needed"
            )
        return pooled(features, self.pool) if self.want == "embedding" else features

    def _hooked(self, inputs: Any) -> Any:
        caught: list[Any] = []
        handle = self._layer.register_forward_hook(lambda _module, _args, output: caught.append(output))
        try:
            self.model(inputs)
        finally:
            handle.remove()
        if len(caught) != 1:
            raise InvalidInputError(
                f"layer {self.layer!r} ran {len(caught)} times in one forward pass; "
                "name a layer that runs once"
            )
        output = caught[0]
        return output[0] if isinstance(output, (tuple, list)) and len(output) == 1 else output


def _find_layer(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if layer in modules:
        found: nn.Module = modules[layer]
        return found
    near = difflib.get_close_matches(layer, modules, n=5, cutoff=0.3) or list(modules)[1:6]
    raise InvalidInputError(
        f"{type(model).__name__} has no layer {layer!r}; near it are {near}. "
        "model.named_modules() lists all of them"
    )


@public
def source_of(model: Any, want: Want = "embedding", *, layer: str | None = None, pool: Pool = None) -> Source:
    """The source that fits a model: a torch module, or an ONNX file, model or bytes; a source is its own.

    Raises
    ------
    InvalidTypeError
        If the model is neither.
    """
    if isinstance(model, nn.Module):
        return TorchSource(model, want, layer=layer, pool=pool)
    if isinstance(model, Source):
        return model
    if isinstance(model, (str, Path, bytes)) or hasattr(model, "SerializeToString"):
        from selkit.embeddings.onnx import OnnxSource

        return OnnxSource(model, want, layer=layer, pool=pool)
    raise InvalidTypeError(
        f"model must be a torch.nn.Module, or an ONNX model (path, bytes or ModelProto); "
        f"got {type(model).__name__}"
    )


def check_rows(features: Tensor, inputs: Any) -> None:
    """Refuse features that do not have one row for each input.

    Raises
    ------
    InvalidInputError
        If the numbers differ.
    """
    rows = rows_of(inputs)
    if features.ndim == 0 or (rows is not None and features.shape[0] != rows):
        raise InvalidInputError(
            f"the model gave features of shape {tuple(features.shape)} for {rows} samples; "
            "one row for each sample is needed"
        )


def run(source: Source, inputs: Any, *, training: bool) -> Tensor:
    """Features of one batch, checked; a model in training is switched to evaluation meanwhile."""
    if training:
        with source.running():
            features = source(inputs)
    else:
        features = source(inputs)
    check_rows(features, inputs)
    return features
