"""Where embeddings and logits come from: a torch module, one of its layers, or a value of an ONNX graph."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from selkit.embeddings.batches import Keywords, rows_of, to_device
from selkit.embeddings.outputs import one_row, tensor_of
from selkit.embeddings.reading import MODEL_ERRORS
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.boundary import public
from selkit.utils.checks import given

Want: TypeAlias = Literal["embedding", "logits"]
Pool: TypeAlias = Literal["mean", "flatten", "tokens"] | Callable[[Any], Tensor] | None

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
        if not isinstance(features, Tensor):
            raise InvalidTypeError(f"pool must give a tensor (samples, features); it gave {given(features)}")
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
        there is no such method. A submodule of that name is a part of the model, not a method: a head
        ``model.logits`` must give what ``model(x)`` gives.
    layer
        Take the output of this submodule, such as ``"encoder.layer4"``, by a forward hook instead; ``""``
        is the model itself.
    pool
        See :func:`pooled`; a function is given the output as it is, also a tuple.

    Raises
    ------
    InvalidInputError
        If there is no such layer, the model has no ``embed`` and no layer is named, or ``logits`` takes
        features.
    """

    @public
    def __init__(
        self, model: nn.Module, want: Want = "embedding", *, layer: str | None = None, pool: Pool = None
    ) -> None:
        self.model, self.want, self.layer, self.pool = model, want, layer, pool
        self.function: Callable[[Any], Any] = model
        self._head: nn.Module | None = None
        name = type(_original(model)).__name__
        if layer is not None:
            self._layer: nn.Module = _find_layer(model, layer)
            return
        part = getattr(model, "embed" if want == "embedding" else "logits", None)
        if want == "embedding":
            if isinstance(part, nn.Module):
                raise InvalidInputError(
                    f"{name}.embed is a submodule ({type(part).__name__}), not a method embed(x) that takes "
                    "the model's input; say layer='embed' for its output, name another layer, or rename it "
                    "and write the method"
                )
            if not callable(part):
                raise InvalidInputError(
                    f"{name} has no embed(x) method; give it one, or name a layer whose "
                    "output is the embedding: layer='encoder.layer4' (see model.named_modules())"
                )
            self.function = part
        elif isinstance(part, nn.Module):
            self._head = part
        elif callable(part):
            _refuse_features(model, part, name)
            self.function = part

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
        name = type(_original(self.model)).__name__
        with torch.no_grad():
            if self.layer is not None:
                output = self._hooked(inputs)
            elif self._head is not None:
                output = self._checked_by_head(inputs, self._head, name)
            else:
                output = self._called(inputs, name)
        if self.want == "logits":
            return one_row(tensor_of(output, "logits", name), rows_of(inputs))
        if not callable(self.pool):
            output = one_row(tensor_of(output, "embedding", name), rows_of(inputs))
        return pooled(output, self.pool)

    def _called(self, inputs: Any, name: str) -> Any:
        try:
            return call(self.function, inputs)
        except torch.OutOfMemoryError:
            raise
        except MODEL_ERRORS as error:
            if self.function is self.model or self.want != "logits":
                raise
            raise InvalidInputError(
                f"{name}.logits(x) failed on the model's input: {error}. A method of this name is called "
                "with what the model takes; if yours takes features, rename it, or say layer= with the name "
                "of the layer whose output the logits are (layer='' for the model's own output)"
            ) from error

    def _checked_by_head(self, inputs: Any, head: nn.Module, name: str) -> Any:
        """The model's output, if it is that of its head."""
        output, caught = _caught(self.model, head, inputs)
        if len(caught) == 1 and _same(
            tensor_of(output, "logits", name), tensor_of(caught[0], "logits", name)
        ):
            return output
        why = "runs and gives something else" if caught else "does not run"
        raise InvalidInputError(
            f"it is unclear what the logits of {name} are: {name}.logits is a submodule "
            f"({type(head).__name__}), which {why} when the model is called. Say layer='logits' for its "
            "output, layer='' for the model's own, or name another layer"
        )

    def _hooked(self, inputs: Any) -> Any:
        output, caught = _caught(self.model, self._layer, inputs)
        if self.layer == "":
            return output
        if len(caught) != 1:
            raise InvalidInputError(
                f"layer {self.layer!r} ran {len(caught)} times in one forward pass; "
                "name a layer that runs once"
            )
        return caught[0]


def call(function: Callable[..., Any], inputs: Any) -> Any:
    """A model's answer to inputs, or to arguments by name."""
    return function(**inputs) if isinstance(inputs, Keywords) else function(inputs)


def _caught(model: nn.Module, layer: nn.Module, inputs: Any) -> tuple[Any, list[Any]]:
    """A model's output, and the outputs of one of its layers on the way."""
    caught: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _args, output: caught.append(output))
    try:
        with _uncompiled(model):
            return call(_original(model), inputs), caught
    finally:
        handle.remove()


@contextlib.contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Compiled code of a model and its parts put aside: it does not see a hook that came later."""
    calls = [(m, m._compiled_call_impl) for m in model.modules() if getattr(m, "_compiled_call_impl", None)]
    compiled = calls or any(hasattr(module, "_orig_mod") for module in model.modules())
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    with contextlib.ExitStack() as stack:
        for module, compiled_call in calls:
            stack.callback(setattr, module, "_compiled_call_impl", compiled_call)
            module._compiled_call_impl = None
        if compiled and stance is not None:
            stack.enter_context(stance("force_eager"))
        yield


def _original(model: nn.Module) -> nn.Module:
    """The module behind a compiled one."""
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model._orig_mod  # type: ignore[assignment]
    return model


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs hold the same numbers, whatever axes of length 1 they have."""
    first, second = first.reshape(-1), second.reshape(-1)
    if first.shape != second.shape:
        return False
    return first is second or bool(((first == second) | (first.isnan() & second.isnan())).all())


_FEATURE_NAMES = frozenset(
    str.split("feature features feat feats hidden hidden_state hidden_states embedding embeddings")
)


def _first_argument(function: Any) -> str | None:
    try:
        return next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return None


def _refuse_features(model: nn.Module, logits: Any, name: str) -> None:
    """Refuse a method ``logits(features)``, which other libraries have: it takes no input of the model."""
    argument = _first_argument(logits)
    if argument in _FEATURE_NAMES and argument != _first_argument(_original(model).forward):
        raise InvalidInputError(
            f"{name}.logits({argument}) takes features by the name of its argument, but a method of this "
            "name is called with the model's input; rename it, or say layer= with the name of the layer "
            "whose output the logits are (layer='' for the model's own output)"
        )


def _find_layer(model: nn.Module, layer: str) -> nn.Module:
    if not isinstance(layer, str):
        raise InvalidTypeError(f"layer must be the name of a submodule (str); got {given(layer)}")
    modules = dict(model.named_modules())
    plain = {name.replace("_orig_mod.", ""): module for name, module in modules.items()}
    found: nn.Module | None = modules.get(layer, plain.get(layer))
    if found is not None:
        return _original(found)
    near = difflib.get_close_matches(layer, plain, n=5, cutoff=0.3) or list(plain)[1:6]
    raise InvalidInputError(
        f"{type(_original(model)).__name__} has no layer {layer!r}; near it are {near}. "
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
