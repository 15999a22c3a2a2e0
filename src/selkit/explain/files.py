"""An explainer's files: data beside the graph, called by its checksum, and a checksum of the graph."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from selkit.errors import FileFormatError
from selkit.explain.facts import Facts
from selkit.utils.atomic import write_bytes

KEY, DATA, CHECKSUM = "selkit.explainer", "selkit.data", "selkit.checksum"
PAGE = 4096
FRESH = 3600
"""Seconds for which a data file that no graph names may belong to a graph that is being written."""


def placeholder(name: str, array: NDArray[Any], location: str, offset: int) -> TensorProto:
    """A tensor whose data is elsewhere."""
    tensor = TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return tensor


def aligned(offset: int) -> int:
    """The next place for a value."""
    return -(-offset // PAGE) * PAGE  # so that it can be mapped into memory


def laid_out(arrays: Iterable[NDArray[Any]]) -> Iterator[memoryview | bytes]:
    """The content of a data file, piece by piece."""
    offset = 0
    for array in arrays:
        yield bytes(aligned(offset) - offset)
        yield np.ascontiguousarray(array).data
        offset = aligned(offset) + array.nbytes


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """Checksum of a data file that is not written yet."""
    found = hashlib.sha256()
    for content in laid_out(arrays):
        found.update(content)
    return found.hexdigest()


def digest_of(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(path: Path, checksum: str) -> bool:
    """Whether a file is there already, whole: then a session may have mapped it, and it stays."""
    return path.is_file() and digest_of(path) == checksum


def data_name(name: str, checksum: str) -> str:
    """What the data file of a graph is called: other data has another name, so nothing is overwritten."""
    return f"{name}.{checksum[:16]}.data"


def forget(proto: onnx.ModelProto) -> None:
    """Drop what a file says about itself, to say it anew."""
    for index in range(len(proto.metadata_props) - 1, -1, -1):
        if proto.metadata_props[index].key in (KEY, DATA, CHECKSUM):
            del proto.metadata_props[index]


def finish(
    target: Path, proto: onnx.ModelProto, facts: Facts, data: Path | None, checksum: str = ""
) -> list[Path]:
    """Write the graph, whose data file lies there already; then remove data files that nobody needs."""
    told = {KEY: json.dumps(asdict(facts)), CHECKSUM: "0" * 64}
    if data is not None:
        told = {DATA: checksum, **told}
    for key, value in told.items():
        proto.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    content = proto.SerializeToString()
    place = _place(content)
    if place is None:
        raise RuntimeError("a graph's checksum is not where it was written")
    content = content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + 64 :]
    old = {path: _names(target, path.name) for path in _data_files(target) if path != data}
    write_bytes(target, content)
    for path, named in old.items():
        _remove(path, target, named=named)
    return [target] if data is None else [target, data]


def _place(content: bytes) -> int | None:
    """Where the checksum is: behind its key, in protobuf's bytes for a text of 64 characters."""
    mark = CHECKSUM.encode() + b"\x12\x40"
    found = content.rfind(mark)
    return None if found < 0 or found + len(mark) + 64 > len(content) else found + len(mark)


def check(content: bytes, where: str) -> None:
    """Refuse a graph of which a single byte is not as it was written.

    Raises
    ------
    FileFormatError
        If the checksum is missing or another one.
    """
    place = _place(content)
    if place is None:
        raise FileFormatError(
            f"{where} has no checksum: it is damaged, or was written by an older version; export it again"
        )
    found = hashlib.sha256(content[:place])
    found.update(b"0" * 64)
    found.update(content[place + 64 :])
    if found.hexdigest().encode() != content[place : place + 64]:
        raise FileFormatError(f"{where} is not as it was written (its checksum differs); export it again")


def _data_files(target: Path) -> set[Path]:
    """Data files that were made for a graph of this name."""
    pattern = re.compile(re.escape(target.name) + r"(\.[0-9a-f]{16})?\.data")
    if not target.parent.is_dir():
        return set()
    return {path for path in target.parent.iterdir() if pattern.fullmatch(path.name)}


def _names(graph: Path, data: str) -> bool:
    """Whether a graph's bytes name a data file."""
    if not graph.is_file() or not graph.stat().st_size:
        return False
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(data.encode()) >= 0


def _remove(path: Path, target: Path, *, named: bool) -> None:
    """Remove a data file that the graph before named, unless another one does; a session keeps its map."""
    try:
        if not named and time.time() - path.stat().st_mtime < FRESH:
            return  # perhaps of a process that is about to write its graph
        if not any(_names(other, path.name) for other in target.parent.glob("*.onnx")):
            path.unlink()
    except OSError:
        return  # in use, or gone: it does no harm


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every stored value, those of inner graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors(attribute.g)


def check_data(path: Path, checksum: str | None) -> None:
    """Refuse a data file that is not as it was written."""
    proto = onnx.load(path, load_external_data=False)
    places = {e.value for t in tensors(proto.graph) for e in t.external_data if e.key == "location"}
    for place in places:
        if digest_of(path.with_name(place)) != checksum:
            raise FileFormatError(
                f"{place} beside {path} is not as it was written; export the explainer again"
            )
