"""Read an ONNX file that nobody vouches for: every claim is checked before memory is taken for it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from selkit.errors import FileFormatError, InvalidTypeError
from selkit.graph import large
from selkit.graph.large import Arrays
from selkit.graph.tidy import cut_maps, tidy

Source: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"
"""What a model can be loaded from: a path, a file's content, or a parsed model."""


def read(source: Source) -> onnx.ModelProto:
    """Parse a model, inline its local functions, check and read its tensors, and open impossible axes.

    Parameters
    ----------
    source
        Path, bytes or ``onnx.ModelProto``.

    Returns
    -------
    onnx.ModelProto
        With all tensor data in memory; a given ``ModelProto`` is not changed.

    Raises
    ------
    FileFormatError
        If it is no ONNX model, is damaged, or claims data that is not there or not its own.
    InvalidTypeError
        If ``source`` is of another type.
    """
    return _read(source, None)


def read_apart(source: Source) -> tuple[onnx.ModelProto, Arrays]:
    """As :func:`read`, for computing: the values of other files come beside the model, maps are cut off.

    Such a model may be larger than what protobuf can write. In the place of the list of dictionaries that
    ``ZipMap`` makes is the array of probabilities.

    Parameters
    ----------
    source
        Path, bytes or ``onnx.ModelProto``.

    Returns
    -------
    model
        With names in the place of these values.
    arrays
        The values by name.

    Raises
    ------
    FileFormatError, InvalidTypeError
        As for :func:`read`.
    """
    arrays: Arrays = {}
    model = _read(source, arrays)
    cut_maps(model)
    return model, arrays


def _read(source: Source, arrays: Arrays | None) -> onnx.ModelProto:
    model, where, folder = _open(source)
    if not model.HasField("graph") or not model.graph.output:
        raise FileFormatError(f"{where} has no graph with outputs, so it is not an ONNX model")
    if not model.opset_import:
        raise FileFormatError(f"{where} does not say which opset it uses (opset_import is empty)")
    for name in _names(model.graph):
        if not isinstance(name, str):
            raise FileFormatError(f"{where}: the name {name!r} is no text; damaged file")
    for tensor in model.graph.initializer:
        outside = tensor.data_location == TensorProto.EXTERNAL
        if arrays is not None and outside and large.whole(tensor.data_type):
            _hold(tensor, folder, where, arrays)
        else:
            _check_tensor(tensor, folder, where)
    for tensor in _inner_tensors(model):
        _check_tensor(tensor, folder, where)
    return tidy(_inline(model, where))


def _open(source: Source) -> tuple[onnx.ModelProto, str, Path | None]:
    """A model as it is given, what messages call it, and its folder."""
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model, "the model", None
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(bytes(source), "the given bytes"), "the given bytes", None
    if not isinstance(source, str | os.PathLike):
        raise InvalidTypeError(
            f"model is a {type(source).__name__}; expected a path, bytes or an onnx.ModelProto"
        )
    path = Path(source)
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder; expected an ONNX file")
    if not path.exists():
        raise FileFormatError(f"{path} does not exist; expected the path of an ONNX file")
    return _parse(path.read_bytes(), f"{path}"), f"{path}", path.parent


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    if not content:
        raise FileFormatError(f"{where}: empty; expected an ONNX model")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise FileFormatError(f"{where}: not an ONNX model, or truncated ({error})") from error
    return model


def _inline(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Replace calls of functions that the model defines by their bodies."""
    if not model.functions:
        return model
    from onnx import inliner

    _check_calls(model, where)
    try:
        return inliner.inline_local_functions(model)
    # the C++ inliner raises whatever its checks raise
    except Exception as error:
        raise FileFormatError(f"{where}: its local functions cannot be inlined ({error})") from error


MOST_NODES, MOST_BYTES = 200_000, 2**28
"""What a model may have after its local functions have taken the place of their calls."""


def _check_calls(model: onnx.ModelProto, where: str) -> None:
    """Refuse functions that call themselves, or whose bodies multiply beyond any real model.

    A function that calls another one twice, which calls another one twice, is small in the file only.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    open_calls: set[tuple[str, str]] = set()

    def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            yield node
            for attribute in node.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    waiting.extend(graph.node)

    def size(nodes: Iterable[onnx.NodeProto]) -> tuple[int, int]:
        count = content = 0
        for node in nodes_of(nodes):
            key = (node.domain, node.op_type)
            more = called(key) if key in functions else (1, node.ByteSize())
            count, content = count + more[0], content + more[1]
        return count, content

    def called(key: tuple[str, str]) -> tuple[int, int]:
        if key in open_calls or len(open_calls) > 200:
            raise FileFormatError(
                f"{where}: its local function {key[1]!r} calls itself, or calls nest too deeply"
            )
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = size(functions[key].node)
            open_calls.remove(key)
        return sizes[key]

    count, content = size(model.graph.node)
    if count > MOST_NODES or content > MOST_BYTES + model.ByteSize():
        raise FileFormatError(
            f"{where}: its local functions call each other so often that it would have {count} nodes and "
            f"{content} bytes; at most {MOST_NODES} nodes and {MOST_BYTES} more bytes are read"
        )


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    """Every name that is used later; protobuf gives bytes for what is no text."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _inner_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor in a model, those in attributes and subgraphs included, but its own initializers."""
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    graphs: list[onnx.GraphProto] = []
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            if attribute.type == onnx.AttributeProto.GRAPH:
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


_BITS: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT16: 16,
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.BOOL: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.UINT32: 32,
    TensorProto.INT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.INT64: 64,
}


def _check_tensor(tensor: TensorProto, folder: Path | None, where: str) -> None:
    """Refuse a tensor whose data is not as long as its shape says; read external data."""
    name = f"{where}: tensor {tensor.name!r} of shape {list(tensor.dims)}"
    if any(size < 0 for size in tensor.dims):
        raise FileFormatError(f"{name} has a negative size")
    bits = _BITS.get(tensor.data_type)
    count = math.prod(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        _read_external(tensor, folder, name)
    if tensor.HasField("raw_data"):
        if bits is not None and len(tensor.raw_data) != -(-count * bits // 8):
            raise FileFormatError(f"{name} has {len(tensor.raw_data)} bytes of data; damaged or hostile file")
        return
    if bits is None:
        return  # no type that selkit reads: refused when it is converted
    given = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    wide = tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    packed = bits == 4
    expected = 2 * count if wide else -(-count // 2) if packed else count
    if given != expected:
        raise FileFormatError(f"{name} has {given} values of data; damaged or hostile file")


def _hold(tensor: TensorProto, folder: Path | None, where: str, arrays: Arrays) -> None:
    """Read external data into an array, and leave a name in the model."""
    name = f"{where}: tensor {tensor.name!r} of shape {list(tensor.dims)}"
    if any(size < 0 for size in tensor.dims):
        raise FileFormatError(f"{name} has a negative size")
    path, offset, length = _place(tensor, folder, name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = math.prod(tensor.dims)
    if length != count * dtype.itemsize:
        raise FileFormatError(f"{name} has {length} bytes of data; damaged or hostile file")
    if tensor.name in arrays:
        raise FileFormatError(f"the initializer {tensor.name!r} is defined twice")
    values = np.fromfile(path, dtype=dtype, count=count, offset=offset).reshape(tuple(tensor.dims))
    arrays[tensor.name] = values
    tensor.CopyFrom(large.placeholder(tensor.name, tensor.data_type, values))


def _read_external(tensor: TensorProto, folder: Path | None, name: str) -> None:
    """Read data kept in another file into the model."""
    path, offset, length = _place(tensor, folder, name)
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def _place(tensor: TensorProto, folder: Path | None, name: str) -> tuple[Path, int, int]:
    """File, offset and length of external data, which must lie in the model's own folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise FileFormatError(
            f"{name} keeps its data in the file {location!r}; load the model from its path, "
            "or read the data in with onnx.load first"
        )
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or not path.is_relative_to(root) or path == root:
        raise FileFormatError(f"{name} points at {location!r}, outside the model's folder; refused")
    if not path.is_file():
        raise FileFormatError(f"{name} keeps its data in {location!r}, which does not exist beside the model")
    size = path.stat().st_size
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
    except ValueError as error:
        raise FileFormatError(f"{name} has an external offset or length that is no number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise FileFormatError(
            f"{name} claims bytes {offset} to {offset + length} of {location!r} ({size} bytes)"
        )
    return path, offset, length
