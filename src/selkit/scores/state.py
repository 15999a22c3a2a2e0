"""State of a fitted object: buffers of shapes that only fitting knows, saved as data and never as code."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.utils.atomic import replacing
from selkit.utils.boundary import public_methods
from selkit.utils.checks import as_path, boolean, given

FORMAT = 2  # raised when a file of this version could no longer be read


def _checking(kind: type, make: Callable[..., None]) -> Callable[..., None]:
    """A constructor that checks parameters when the outermost one of an object is done."""

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes the place of that
        make(self, *args, **kwargs)
        if next(base for base in type(self).__mro__ if "__init__" in vars(base)) is kind:
            self._check_params()

    return __init__


class Stateful(nn.Module):
    """A module that is configured by constructor parameters and fitted into buffers.

    Buffers named in ``buffer_names`` start as ``None`` and take any shape; everything that makes a fitted
    object is in its ``state_dict``. Parameters are read and set as in scikit-learn.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ()
    unsaved: ClassVar[tuple[str, ...]] = ()  # parameters that a file does without
    _kinds: ClassVar[dict[str, type[Stateful]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Stateful._kinds[cls.__name__] = cls
        public_methods(cls)
        if "__init__" in vars(cls):
            cls.__init__ = _checking(cls, cls.__init__)  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        for name in self._all_buffer_names():
            self.register_buffer(name, None)

    @classmethod
    def _all_buffer_names(cls) -> list[str]:
        return [name for kind in reversed(cls.__mro__) for name in vars(kind).get("buffer_names", ())]

    def keep(self, **params: Any) -> None:
        """Store constructor parameters as they came: a module among them does not become a submodule."""
        for name, value in params.items():
            object.__setattr__(self, name, value)

    # parameters, as scikit-learn reads them

    @classmethod
    def _param_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters; with ``deep`` also those of a parameter that has some, ``a__b``."""
        params = {name: getattr(self, name) for name in self._param_names()}
        if deep:
            for name, value in list(params.items()):
                if isinstance(value, Stateful) or (
                    hasattr(value, "get_params") and not isinstance(value, type)
                ):
                    params |= {f"{name}__{inner}": v for inner, v in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set constructor parameters; it does not fit anew.

        Raises
        ------
        InvalidInputError
            For a name that is no parameter, or a value that it cannot have; nothing is set then.
        """
        before = {name: getattr(self, name) for name in self._param_names()}
        try:
            for name, value in params.items():
                own, _, inner = name.partition("__")
                if own not in before:
                    raise InvalidInputError(
                        f"{type(self).__name__} has no parameter {own!r}; it has {self._param_names()}"
                    )
                if not inner:
                    self.keep(**{own: value})
                elif hasattr(getattr(self, own), "set_params"):
                    getattr(self, own).set_params(**{inner: value})
                else:
                    raise InvalidInputError(
                        f"{own} is {given(getattr(self, own))}, which has no parameter {inner!r}"
                    )
            self._check_params()
        except Exception:
            self.keep(**before)
            raise
        return self

    def _check_params(self) -> None:
        """Raise for a parameter that has a value it cannot have.

        Done by the constructor, and, as a parameter can be set later, by ``fit``, ``set_params`` and ``load``.
        """

    def extra_repr(self) -> str:
        """The parameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self.get_params(deep=False).items())

    # torch's state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as every module does, but keep the digits: ``half()`` around a score does not reach it."""

        def keep(tensor: Tensor) -> Tensor:
            try:
                moved = fn(tensor)
            except TypeError:
                if tensor.dtype is not torch.float64:
                    raise
                return tensor  # Apple's accelerator has no float64: it stays where it is
            narrower = moved.is_floating_point() and moved.element_size() < tensor.element_size()
            return tensor.to(moved.device) if narrower else moved

        made: Self = super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return made

    def _rebuild(self, keys: list[str]) -> None:
        """Make the submodules that fitting would have made, for a state with these keys."""

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        *args: Any,
    ) -> None:
        device = next((b.device for b in self.buffers()), None)
        own = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        for name in self._all_buffer_names():
            value = state_dict.get(prefix + name)
            # a buffer takes the shape of what is loaded, and becomes None where nothing is
            # and one layout: another one would be another kernel, with other last digits
            kept = None if value is None else value.detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, None if kept is None else kept.to(device))
        self._rebuild(own)
        super()._load_from_state_dict(state_dict, prefix, *args)

    # files

    def _spec(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "params": {
                name: _encode(value)
                for name, value in self.get_params(deep=False).items()
                if name not in self.unsaved
            },
            "extra": self._extra(),
        }

    def _extra(self) -> dict[str, Any]:
        """What belongs to the state besides tensors, as plain JSON values."""
        return {}

    def _set_extra(self, extra: dict[str, Any]) -> None:
        """Take back what ``_extra`` gave."""

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, whose header holds the parameters as JSON.

        The file is written whole or not at all, with a checksum over all that decides: parameters,
        references, thresholds and what they promise.

        Parameters
        ----------
        path
            File to write; an existing one is replaced.

        Raises
        ------
        InvalidTypeError
            If ``path`` is not a path, or something cannot be saved.
        OSError
            If the file cannot be written: no such folder, a full disk.
        """
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        spec = self._spec() | {"format": FORMAT}
        header = json.dumps(spec | {"sha256": _digest(tensors, spec)})
        with replacing(path) as new:
            save_file(tensors, str(new), metadata={"selkit": header})

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False, **objects: Any) -> Self:
        """Read what :meth:`save` wrote; scores are identical to those before.

        Parameters
        ----------
        path
            The file.
        trust
            Also run code that the file may contain (a pickled PyOD detector). Only for files that you
            made yourself.
        objects
            Constructor parameters that no file can hold, such as functions.

        Returns
        -------
        Self
            On the CPU, fitted and with its threshold.

        Raises
        ------
        FileFormatError
            For a damaged or foreign file, another class, or a newer format.
        """
        tensors, spec = _read(as_path(path))
        made = _build(spec, trust=boolean(trust, "trust"), objects=objects, where=str(path))
        if not isinstance(made, cls):
            raise FileFormatError(
                f"{path} holds a {type(made).__name__}, not a {cls.__name__}; "
                f"load it with {type(made).__name__}.load"
            )
        try:
            made.load_state_dict(tensors)
        except RuntimeError as error:
            raise FileFormatError(f"{path} does not fit {type(made).__name__}: {error}") from error
        made._loaded(trust)
        return made

    def _loaded(self, trust: bool) -> None:
        """Finish loading, after the tensors are there."""


def _digest(tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> str:
    """Checksum of all that a file holds."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (FileNotFoundError, IsADirectoryError):
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        spec = json.loads(metadata["selkit"])
        version, digest = spec["format"], spec.pop("sha256")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise FileFormatError(
            f"{path} is a safetensors file, but selkit did not write it: "
            "its header has no valid 'selkit' entry"
        ) from None
    if type(version) is not int or version != FORMAT:
        older = type(version) is int and 0 < version < FORMAT
        raise FileFormatError(
            f"{path} has format {given(version)}; this selkit reads format {FORMAT}"
            + (
                ". It was written before the checksum covered parameters and thresholds and before scores "
                "were computed in float64: fit again, and save"
                if older
                else ""
            )
        )
    if digest != _digest(tensors, spec):
        raise FileFormatError(f"{path} is damaged: its checksum does not match its content")
    return tensors, spec


_PLAIN = (str, int, float, bool, type(None))


def _encode(value: Any) -> Any:
    """A parameter as JSON; callables and other objects are left out and must be given to load()."""
    if isinstance(value, Stateful):
        return {"stateful": value._spec()}
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, _PLAIN):
        return {"float": repr(value)} if isinstance(value, float) and not np.isfinite(value) else value
    if isinstance(value, (tuple, list)) and all(isinstance(item, _PLAIN) for item in value):
        kept = [_encode(item) for item in value]
        return {"tuple": kept} if isinstance(value, tuple) else kept
    return {"object": f"{type(value).__module__}.{type(value).__name__}"}


def _decode(value: Any, name: str, *, trust: bool, where: str) -> Any:
    if isinstance(value, list):
        return [_decode(item, name, trust=trust, where=where) for item in value]
    if not isinstance(value, dict):
        return value
    if "stateful" in value:
        return _build(value["stateful"], trust=trust, objects={}, where=where)
    if "tuple" in value:
        return tuple(_decode(item, name, trust=trust, where=where) for item in value["tuple"])
    if "float" in value:
        return float(value["float"])
    raise InvalidTypeError(
        f"parameter {name!r} of {where} is a {value.get('object')}, which a file cannot hold; "
        f"give it to load: load(path, {name}=...)"
    )


def _build(spec: Mapping[str, Any], *, trust: bool, objects: Mapping[str, Any], where: str) -> Stateful:
    """A score or projection without its tensors.

    Raises
    ------
    FileFormatError
        For a description that is incomplete, unknown, or of something that cannot be.
    """
    try:
        kind, params, extra = str(spec["class"]), dict(spec["params"]), dict(spec["extra"])
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(f"{where} has an incomplete description of what it holds") from None
    if kind not in Stateful._kinds:
        raise FileFormatError(
            f"{where} holds a {kind}, which is not known here; import the module that defines it first"
        )
    cls = Stateful._kinds[kind]
    given = {
        name: objects[name] if name in objects else _decode(value, name, trust=trust, where=where)
        for name, value in params.items()
    }
    try:
        made = cls(**given)
        made._set_extra(extra)
    except (InvalidInputError, InvalidTypeError) as error:
        raise FileFormatError(f"{where} holds a {kind} that cannot be: {error}") from error
    except TypeError as error:
        raise FileFormatError(f"{where} does not fit this version of {kind}: {error}") from error
    return made


public_methods(Stateful)  # subclasses are wrapped when they are made
