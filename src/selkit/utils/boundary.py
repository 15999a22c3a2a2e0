"""Errors at the edge of the library: what an argument of the wrong kind makes other libraries raise.

Public functions check what they know about. Where an argument is of a kind that nobody thought of, some
library far inside fails in its own words; then the arguments are held against their annotations, and the
error names the one that does not fit. Nothing is checked, and nothing costs time, where all goes well; what
a user's own function raises, and what nothing explains, is passed on as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import torch

from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError, SelkitError
from selkit.utils.checks import as_path, given

F = TypeVar("F", bound=Callable[..., Any])

_ARRAYS = re.compile(r"ArrayLike|NDArray|\bTensor\b|\bArray\b|\bFloats\b|\bVector\b")
_SCALAR = re.compile(
    r"(bool|int|float|str)( \| (bool|int|float|str|None))*|Mapping\[.*\]|Sequence\[(str|Sample)\]"
)
_LARGE = 2**63
_TRACED = frozenset({"forward", "extra_repr", "keep"})
"""What torch may trace, or nobody gets wrong."""
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    type(None): "None",
    torch.Tensor: "a torch.Tensor",
}


def public(function: F) -> F:
    """Let a function say which argument is of the wrong kind, where that makes another library fail.

    Examples
    --------
    >>> @public
    ... def half(x: float) -> float:
    ...     return x / 2
    >>> half(3.0)
    1.5
    >>> half("a")
    Traceback (most recent call last):
    ...
    selkit.errors.InvalidTypeError: x must be a number; got 'a'
    """
    signature: list[inspect.Signature] = []

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (SelkitError, OSError):
            raise
        except Exception as error:
            if type(error).__name__ == "UnsupportedAttribute":  # of selkit.graph, found while a model runs
                raise NotAvailableError(f"the model cannot be run on this input: {error}") from error
            if not signature:
                signature.append(inspect.signature(function))
            found = explain(function, signature[0], args, kwargs)
            if found is None:
                raise
            raise found from error

    called.__selkit_public__ = True  # type: ignore[attr-defined]
    return called  # type: ignore[return-value]


def public_methods(kind: type) -> None:
    """Wrap the public methods that a class defines itself; for ``__init_subclass__``."""
    for name, member in list(vars(kind).items()):
        if name != "__init__" and (name.startswith("_") or name in _TRACED):
            continue
        inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if isinstance(inner, types.FunctionType) and not hasattr(inner, "__selkit_public__"):
            wrapped = public(inner)
            setattr(kind, name, type(member)(wrapped) if inner is not member else wrapped)


def checked_fields(kind: type) -> type:
    """Let a dataclass refuse numbers, texts and flags that are not what its fields say.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @checked_fields
    ... @dataclass(frozen=True)
    ... class Filter:
    ...     size: int = 3
    >>> Filter(size="a")
    Traceback (most recent call last):
    ...
    selkit.errors.InvalidTypeError: size must be a whole number; got 'a'
    """
    make = public(kind.__init__)  # type: ignore[misc]

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes the place of that
        make(self, *args, **kwargs)
        for entry in dataclasses.fields(kind):
            if _SCALAR.fullmatch(str(entry.type)):
                known = vars(sys.modules.get(kind.__module__, types))
                found = _misfit(entry.name, getattr(self, entry.name), entry.type, known)
                if found is not None:
                    raise found

    kind.__init__ = __init__  # type: ignore[misc]
    return kind


def explain(
    function: Callable[..., Any], signature: inspect.Signature, args: Any, kwargs: Any
) -> SelkitError | None:
    """The error that names the first argument that does not fit its annotation, or None."""
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return None  # a call with other names or numbers of arguments: Python's own error says it best
    odd = [
        InvalidInputError(f"{name} must be a finite number; got {given(value)}")
        for name, value in bound.items()
        if isinstance(value, (float, np.floating)) and not np.isfinite(value)
    ]
    for name, value in bound.items():
        parameter = signature.parameters[name]
        values = list(value) if parameter.kind is parameter.VAR_POSITIONAL else [value]
        if parameter.kind is parameter.VAR_KEYWORD or parameter.annotation is parameter.empty:
            continue
        for one in values:
            found = _misfit(name, one, parameter.annotation, getattr(function, "__globals__", {}))
            if found is not None:
                return found
    return odd[0] if odd else None


def _misfit(name: str, value: Any, annotation: Any, names: Mapping[str, Any]) -> SelkitError | None:
    text = annotation if isinstance(annotation, str) else str(annotation)
    if _ARRAYS.search(text) and "Callable" not in text and "Mapping" not in text:
        return _array_misfit(name, value, text)
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, dict(names))  # noqa: S307 - the library's own source
        except Exception:  # noqa: BLE001 - a name that only type checkers know
            return None
    try:
        if fits(value, annotation):
            return None
        words = describe(annotation)
    except Exception:  # noqa: BLE001 - an object that even resists being looked at
        words = describe(annotation)
    kind = InvalidInputError if _of_type(value, annotation) else InvalidTypeError
    return kind(f"{name} must be {words}; got {given(value)}")


def _array_misfit(name: str, value: Any, text: str) -> SelkitError | None:
    from selkit.utils.arrays import as_tensor

    optional = value is None and "None" in text
    if optional or (
        isinstance(value, (str, bool, int, float)) and re.search(r"\b(str|bool|int|float|Literal)\b", text)
    ):
        return None
    parts = value if isinstance(value, (list, tuple)) and "Sequence" in text else [value]
    try:
        for part in parts:
            found = as_tensor(part, name)
            if found.is_meta or found.is_complex():
                return InvalidTypeError(f"{name} must hold real numbers in memory; got {given(value)}")
    except SelkitError as error:
        return error
    except Exception:  # noqa: BLE001 - whatever an object of the user does when it is read
        return InvalidTypeError(f"{name} must be an array of numbers; got {given(value)}")
    if re.fullmatch(r"(torch\.)?Tensor( \| None)?", text) and not isinstance(value, torch.Tensor):
        return InvalidTypeError(f"{name} must be a torch.Tensor; got {given(value)}")
    return None


def fits(value: Any, annotation: Any) -> bool:  # noqa: PLR0911 - one line for each kind of annotation
    """Whether a value is what an annotation says; true where that is not known."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in (Any, object, inspect.Parameter.empty) or isinstance(annotation, TypeVar):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if annotation in (bool, int, float):
        return _number_fits(value, annotation)
    if origin is os.PathLike or annotation in (os.PathLike, Path):
        return _is_path(value)
    if origin in (Callable, types.FunctionType) or annotation is Callable:
        return callable(value)
    kind: Any = origin or annotation
    if not isinstance(kind, type):
        return True
    return _is_one(value, kind, inner)


def _is_one(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    """Whether a value is an instance of a class, and its parts of theirs."""
    if isinstance(value, str) and kind in (Sequence, Collection, Iterable):
        return False
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:  # protocols and typed dictionaries cannot be asked
        return True
    if kind in (Sequence, list, set, frozenset) and inner:
        return all(fits(one, inner[0]) for one in value)
    if kind is Mapping and len(inner) == 2:
        return all(fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items())
    return True


def _number_fits(value: Any, annotation: type) -> bool:
    if (
        isinstance(value, (np.ndarray, torch.Tensor))
        and value.ndim == 0
        and not getattr(value, "is_meta", False)
    ):
        value = value.item()
    if annotation is bool or isinstance(value, (bool, np.bool_)):
        return annotation is bool and isinstance(value, (bool, np.bool_))
    if annotation is int:
        return isinstance(value, (int, np.integer)) and abs(int(value)) < _LARGE
    return isinstance(value, (int, float, np.integer, np.floating)) and _as_float(value) is not None


def _as_float(value: Any) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def _is_path(value: Any) -> bool:
    try:
        as_path(value)
    except SelkitError:
        return False
    return True


def _of_type(value: Any, annotation: Any) -> bool:
    """Whether it is the value that does not fit, rather than its type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_of_type(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) for one in inner)
    if annotation in (int, float):
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return annotation is str and isinstance(value, str)


def describe(annotation: Any) -> str:
    """What an annotation accepts, in words.

    Examples
    --------
    >>> describe(int | None), describe(Literal["a", "b"]), describe(Sequence[float])
    ('a whole number or None', "one of 'a', 'b'", 'a sequence, each a number')
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(one) for one in inner))
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(repr(one) for one in inner)
    if annotation is None or annotation in _WORDS:
        return _WORDS[type(None) if annotation is None else annotation]
    if origin is os.PathLike or annotation in (os.PathLike, Path):
        return "a path"
    kind = origin or annotation
    if kind in (Sequence, list, Iterable, Collection):
        what = "an iterable" if kind is Iterable else "a sequence"
        return f"{what}, each {describe(inner[0])}" if inner else what
    if kind is Mapping:
        return "a mapping"
    if kind is Callable:
        return "a function"
    module = str(getattr(kind, "__module__", "")).partition(".")[0]
    return f"an instance of {module}.{kind.__name__}" if isinstance(kind, type) else str(kind)


__all__ = ["checked_fields", "public", "public_methods"]
