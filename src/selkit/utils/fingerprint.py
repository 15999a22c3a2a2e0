"""A hash of what values are: equal in every process for equal values, refused where that cannot be said.

Arrays count with type, shape and bytes, objects with all that they hold, functions with their code,
constants, defaults, closure and the globals that they read; classes and functions of installed packages
count with name and version.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    UnionType,
)
from typing import Any, GenericAlias, cast  # type: ignore[attr-defined]

import numpy as np
import torch
from scipy import sparse, special

from selkit.errors import InvalidInputError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, type(Ellipsis), PurePath)
_TEXTS = (np.dtype, torch.dtype, torch.device, torch.layout, torch.Size, GenericAlias, UnionType)
_BARE = frozenset(str.split("open eval exec globals vars locals input __import__"))
_READERS = frozenset(
    str.split(
        "open load loadtxt genfromtxt fromfile memmap open_memmap read_text read_bytes read_csv read_parquet "
        "read_excel imread load_file safe_open urlopen environ getenv"
    )
)
"""What returns something that is not said by the code: a function that uses it cannot be pinned down.

The first are names of Python itself: ``model.eval()`` is another. The second count as attributes too.
"""

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_LOOKUPS = (*_GLOBAL, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM")  # of Python's byte code

_BUILDERS = frozenset(
    str.split("__init__ __new__ __post_init__ __getstate__ __setstate__ __reduce__ __del__")
)
"""What is done before or after an object is there: what they leave in it counts by itself."""

_DEPTH = 200  # of values within values


def fingerprint(*values: object) -> str:
    """Return a hash of what values say: of arrays, models, hypotheses, functions and options.

    Parameters
    ----------
    values
        Anything whose content can be found.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    InvalidInputError
        For what cannot be pinned down: an object that hides its state, as an open file or a lock, or a
        function that reads files or runs text as code.

    Examples
    --------
    >>> fingerprint(np.arange(3)) == fingerprint(np.arange(3)) != fingerprint(np.arange(4))
    True
    >>> fingerprint(partial(max, 1)) == fingerprint(partial(max, 2))
    False
    """
    return _Walk().digest(values).hex()[:32]


class _Walk:
    """One way through values, which hashes each of them once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[object, bytes]] = {}  # with the object, so that no identity is used twice
        self._path: list[int] = []

    def digest(self, value: object) -> bytes:
        """Return the hash of a value with its type, so that ``(1, "2")`` and ``("1", 2)`` differ."""
        content = _content(value)
        kind = "ndarray" if isinstance(value, np.memmap) else type(value).__name__  # the same from a file
        return self._of_parts(value) if content is None else _hash(kind, content)

    def _of_parts(self, value: object) -> bytes:
        """Return the hash of what consists of parts; a part that is the whole counts by its distance."""
        known = self._done.get(id(value))
        if known is not None:
            return known[1]
        if id(value) in self._path:
            return _hash("again", str(len(self._path) - self._path.index(id(value))).encode())
        if len(self._path) > _DEPTH:
            raise InvalidInputError(f"a {type(value).__name__} is nested too deeply to be told from others")
        self._path.append(id(value))
        held: Any = value
        if type(value) in (dict, MappingProxyType):
            parts = sorted(self.digest(key) + self.digest(held[key]) for key in held)
        elif type(value) in (set, frozenset):
            parts = sorted(self.digest(part) for part in held)
        else:
            parts = [self.digest(part) for part in _parts(value)]
        self._path.pop()
        found = _hash(type(value).__name__, *parts)
        self._done[id(value)] = value, found
        return found


def _hash(kind: str, *parts: bytes | memoryview) -> bytes:
    state = hashlib.sha256(f"<{kind}>{len(parts)}:".encode())
    for part in parts:
        state.update(part)
    return state.digest()


def _content(value: Any) -> bytes | memoryview | None:
    """The bytes of a value that is its own content; None for what consists of parts."""
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        return f"{value.dtype.str}{value.tobytes().hex()}".encode()
    if isinstance(value, torch.Tensor):
        raw = (value if value.layout is torch.strided else value.to_dense()).detach().cpu().contiguous()
        said = f"{raw.dtype}{tuple(raw.shape)}".encode()
        return said + (raw.reshape(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        mask = getattr(value, "mask", None)
        said = f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        return said if mask is None else said + np.ascontiguousarray(np.ma.getmaskarray(value)).tobytes()
    plain = isinstance(value, _PLAIN) and type(value).__module__ in ("builtins", "pathlib", "pathlib._local")
    if plain or isinstance(value, _TEXTS):
        return repr(value).encode("utf-8", errors="surrogatepass")
    return None


def _parts(value: Any) -> Iterable[object]:  # noqa: PLR0911 - one line for each kind of value
    if type(value) in (list, tuple) or isinstance(value, np.ndarray):
        return list(value)
    if sparse.issparse(value):
        matrix: Any = sparse.csr_array(value)  # type: ignore[call-overload]
        return matrix.shape, matrix.data, matrix.indices, matrix.indptr
    if isinstance(value, CodeType):
        return _code_parts(value)
    if isinstance(value, enum.Enum):
        return [type(value).__qualname__, value.name, value.value]
    if isinstance(value, ModuleType):
        return [value.__name__, getattr(value, "__version__", None)]
    if isinstance(value, (type, _Made)):
        return _class_parts(value)
    if callable(value):
        found = _callable_parts(value)
        if found is not None:
            return found
    if isinstance(value, torch.nn.Module):
        return _module_parts(value)
    if dataclasses.is_dataclass(value) and type(value).__module__.partition(".")[0] == "selkit":
        fields = [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
        return [type(value), *fields]
    return _object_parts(value)


def _code_parts(code: CodeType) -> list[object]:
    """What a piece of code does, wherever it stands."""
    found = _unsaid(code)
    if found:
        raise InvalidInputError(
            f"the function {code.co_name!r} cannot be told from others, because it uses {found[0]!r}: what "
            "it returns is not said by its code; read before, and give the function what was read"
        )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return [code.co_code, *names, *counts, *code.co_consts]


def _unsaid(code: CodeType) -> list[str]:
    """What code uses that is not said by it."""
    found: set[str] = set()
    for step in dis.get_instructions(code):
        known = _BARE | _READERS if step.opname in _GLOBAL else _READERS
        if step.opname in _LOOKUPS and step.argval in known:
            found.add(str(step.argval))
    return sorted(found)


def _callable_parts(value: Any) -> Iterable[object] | None:
    """The parts of functions; None for objects that can be called."""
    if type(value) is partial:
        return value.func, value.args, value.keywords, vars(value)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, FunctionType):
        return _function_parts(value)
    owner = getattr(value, "__self__", None)
    bound = isinstance(value, (BuiltinFunctionType, MethodWrapperType))
    if bound and owner is not None and not isinstance(owner, ModuleType):
        return owner, value.__name__
    if isinstance(value, np.ufunc):
        return _ufunc_parts(value)
    if isinstance(value, BuiltinFunctionType) or type(value).__name__ in _C_FUNCTIONS:
        return _named(value)
    if isinstance(value, _CACHED):
        return [value.__wrapped__]
    inner = getattr(value, "py_func", None) if _installed(type(value).__module__) else None  # of numba
    return None if inner is None else [inner]


_CACHED = type(cache(len))


def _ufunc_parts(value: np.ufunc) -> list[object]:
    """A ufunc by its name, where that leads to it: others are made from functions that they hide."""
    for home in (np, special):
        if getattr(home, value.__name__, None) is value:
            return [home.__name__, value.__name__, home is np and np.__version__]
    raise InvalidInputError(
        f"the ufunc {value.__name__!r} cannot be told from others; give the function that it was made from"
    )


_C_FUNCTIONS = frozenset(
    str.split(
        "wrapper_descriptor method_descriptor classmethod_descriptor getset_descriptor "
        "member_descriptor _ArrayFunctionDispatcher cython_function_or_method fused_cython_function "
        "function_or_method"
    )
)


def _function_parts(function: FunctionType) -> list[object]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            cells.append("empty")
    code = function.__code__
    kept = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
    given = [function.__defaults__, function.__kwdefaults__, cells, kept]
    home = str(function.__globals__.get("__name__") or "")  # __module__ may be that of a wrapped function
    if _installed(home):
        return [*_named(function, home), code.co_qualname, code.co_firstlineno, *given]
    return [code, *given, *_read(code, function.__globals__)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _read(code: CodeType, names: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Every global value that code reads, and every module that it imports."""
    for one in _codes(code):
        found: list[tuple[str, object]] = []
        texts = [text for text in one.co_consts if isinstance(text, str)]  # names for getattr
        for step in dis.get_instructions(one):
            if step.opname in _GLOBAL and step.argval in names:
                found.append((str(step.argval), names[step.argval]))
            if step.opname == "IMPORT_NAME":
                package = str(names.get("__package__") or "")
                try:
                    found.append((str(step.argval), importlib.import_module(str(step.argval), package)))
                except ImportError:
                    found.append((str(step.argval), None))
        for name, value in found:
            yield name, value
            if isinstance(value, ModuleType):
                yield from _of_module(value, (*one.co_names, *texts), name)


def _of_module(
    module: ModuleType, names: Iterable[str], where: str, depth: int = 3
) -> Iterator[tuple[str, object]]:
    """What code may read of a module that is not installed: its names count, not those of packages."""
    if _installed(module.__name__):
        return
    for name in names:
        if name in vars(module):
            value = vars(module)[name]
            yield f"{where}.{name}", value
            if isinstance(value, ModuleType) and depth:
                yield from _of_module(value, names, f"{where}.{name}", depth - 1)


_OF_CLASS = frozenset(
    str.split(
        "__dict__ __weakref__ __module__ __doc__ __qualname__ __firstlineno__ __static_attributes__ "
        "__annotations__ __abstractmethods__ _abc_impl __match_args__ __dataclass_fields__ "
        "__dataclass_params__ __parameters__ __orig_bases__ __annotate_func__ __annotations_cache__"
    )
)


class _Made:
    """The class of an object that is there: how it was made does not matter any more."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


@lru_cache(maxsize=512)
def _made(kind: Any) -> _Made:
    return _Made(kind)  # one for each class, so that each is looked at once


def _class_parts(value: type | _Made) -> list[object]:
    """A class by name and version where it is installed, else by what it and its bases define."""
    kind: type = value.kind if isinstance(value, _Made) else value
    if _installed(kind.__module__):
        return _named(kind)
    parts: list[object] = []
    for base in kind.__mro__:
        parts.append(base.__qualname__ if base is kind or not _installed(base.__module__) else base)
        members = [] if _installed(base.__module__) else sorted(vars(base).items())
        for name, member in members:
            skipped = name in _OF_CLASS or type(member).__name__ in ("getset_descriptor", "member_descriptor")
            if skipped or (isinstance(value, _Made) and _makes(kind, name, member)):
                continue
            parts += [name, _behind(member)]
    return parts


def _behind(member: Any) -> object:
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    return (member.fget, member.fset) if isinstance(member, property) else member


def _makes(kind: type, name: str, member: object) -> bool:
    """Whether a member only makes objects: no other method of the class speaks of it."""
    if name in _BUILDERS:
        return True
    others = [
        code
        for base in kind.__mro__
        for other, one in vars(base).items()
        if other not in _BUILDERS and isinstance(getattr(one, "__func__", one), FunctionType)
        for code in _codes(getattr(one, "__func__", one).__code__)
    ]
    return isinstance(member, classmethod) and not any(name in code.co_names for code in others)


def _module_parts(module: torch.nn.Module) -> list[object]:
    """A network with its tensors, settings, parts and hooks.

    Scores and steps of selkit itself remember what they have looked up: they count with parameters and state.
    """
    if type(module).__module__.partition(".")[0] == "selkit":
        settings: object = getattr(module, "get_params", dict)()
        threshold = getattr(module, "threshold", None)
        return [_made(cast(Any, type(module))), repr(module), threshold, settings, module.state_dict()]
    state = {
        # hooks are numbered by a counter of the process
        name: list(value.values()) if isinstance(value, Mapping) and "_hooks" in name else value
        for name, value in vars(module).items()
        if name != "training" or module.training
    }
    return [_made(cast(Any, type(module))), state]


def _object_parts(value: object) -> list[object]:
    """What pickle would keep of an object, without the bytes that it would write."""
    try:
        kept = value.__reduce_ex__(4)
    # an object of another library may raise what it likes here
    except Exception as error:
        raise InvalidInputError(
            f"a value of type {type(value).__name__} cannot be told from others ({error}); give numbers, "
            "arrays, or functions of them"
        ) from error
    kind = _made(cast(Any, type(value)))
    if isinstance(kept, str):
        return [kind, kept, *_attributes(value)]
    items = [list(part) if part is not None else None for part in kept[3:5]]
    given = [kind if part is type(value) else part for part in kept[1]]
    return [kind, kept[0], *given, kept[2] if len(kept) > 2 else None, *items, *_attributes(value)]


def _attributes(value: object) -> list[object]:
    """What an object of the user's own class holds: what it gives to pickle may leave something out."""
    if _installed(type(value).__module__):
        return []
    slots = [
        (name, member.__get__(value))
        for kind in type(value).__mro__
        if not _installed(kind.__module__)
        for name, member in vars(kind).items()
        if isinstance(member, MemberDescriptorType) and hasattr(value, name)
    ]
    return [getattr(value, "__dict__", None), *slots]


def _named(value: Any, home: str = "") -> list[object]:
    """A function or class of an installed package: its name, and the package's version."""
    home = home or str(getattr(value, "__module__", "") or "")
    package = sys.modules.get(home.partition(".")[0])
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    version = None if home.startswith("selkit") else getattr(package, "__version__", None)
    return [home, str(name), version]


@cache
def _libraries() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(path).resolve() for name in names if (path := sysconfig.get_paths().get(name)))


def _installed(name: str | None) -> bool:
    """Whether a module comes with Python, from a package that is installed, or from selkit itself."""
    if not name or name == "__main__":
        return False
    if name.partition(".")[0] in ("selkit", "builtins"):
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name in sys.builtin_module_names or name.partition(".")[0] in sys.stdlib_module_names
    return any(Path(file).resolve().is_relative_to(folder) for folder in _libraries())


__all__ = ["fingerprint"]
