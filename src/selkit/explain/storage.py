"""Explanation graphs in memory and in files: sessions, external data, and what a file must say of itself."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from selkit.errors import FileFormatError
from selkit.graph.files import Source, read
from selkit.utils.atomic import replacing, write_bytes
from selkit.utils.checks import as_path

KEY, DATA, CHECKSUM = "selkit.explainer", "selkit.data", "selkit.checksum"
FORMAT = 2
INLINE_LIMIT = 3 * 2**29
"""Bytes up to which everything is written into one file; protobuf ends at 2 GiB."""
IN_MEMORY = 2**26
"""Bytes up to which a graph is kept in memory; beyond, onnxruntime maps a temporary file."""
PAGE = 4096
LARGE = 2**16
"""Bytes from which a tensor moves to the external file."""
FRESH = 3600
"""Seconds for which a data file that no graph names may belong to a graph that is being written."""


@dataclass(frozen=True)
class Given:
    """An input that is explained.

    Attributes
    ----------
    name
        In the graph.
    shape
        Without the batch axis.
    dtype
        By its name in NumPy.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Facts:
    """What a file says about itself.

    Attributes
    ----------
    inputs
        What is explained.
    output
        Name of the explained model's output.
    classes
        How many outputs there are to choose from.
    target
        ``"top"``, an index, or indices.
    references
        How many there are.
    cached
        Whether the references' activations are stored.
    format
        Version of this description.
    """

    inputs: tuple[Given, ...]
    output: str
    classes: int
    target: Any
    references: int
    cached: bool
    format: int = FORMAT

    @property
    def input(self) -> str:
        """Name of the first input."""
        return self.inputs[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first input, without the batch axis."""
        return self.inputs[0].shape

    @property
    def dtype(self) -> str:
        """Of the first input."""
        return self.inputs[0].dtype

    @property
    def attributions(self) -> tuple[str, ...]:
        """Names of the graph's outputs that are attributions, one for each input."""
        if len(self.inputs) == 1:
            return ("attributions",)
        return tuple(f"attributions.{given.name}" for given in self.inputs)


class Stored(Protocol):
    """Where an explanation's graph is."""

    @property
    def facts(self) -> Facts:
        """What the graph says about itself."""

    def session(self, threads: int | None = None) -> Any:
        """A session, and what must live as long as it."""

    def write(self, path: str | os.PathLike[str], *, external: bool | None = None) -> list[Path]:
        """Write the graph, with its data beside it if it is large (or ``external``); return the files."""


@dataclass(frozen=True, eq=False)
class Package:
    """A graph in memory, and the large values that are kept outside of its protobuf."""

    proto: onnx.ModelProto
    arrays: Mapping[str, NDArray[Any]]
    facts: Facts

    @property
    def size(self) -> int:
        """Bytes of everything."""
        return int(self.proto.ByteSize()) + sum(array.nbytes for array in self.arrays.values())

    def session(self, threads: int | None = None) -> Any:
        """A session that shares the large values."""
        import onnxruntime as ort

        settings = options(threads)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays.values()]
        settings.add_external_initializers(list(self.arrays), values)
        content = self._with_placeholders()
        return ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"]), values

    def _with_placeholders(self) -> bytes:
        """The graph, with names in the place of the large values."""
        initializers = self.proto.graph.initializer
        count = len(initializers)
        for name, array in self.arrays.items():
            initializers.append(_placeholder(name, array, "in-memory", 0))
        content = bytes(self.proto.SerializeToString())
        del initializers[count:]
        return content

    def write(self, path: str | os.PathLike[str], *, external: bool | None = None) -> list[Path]:
        """Write the graph, with its data beside it if it is large (or ``external``); return the files."""
        target = as_path(path)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        if not (self.size > INLINE_LIMIT if external is None else external):
            proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self.arrays.items())
            return _finish(target, proto, self.facts, None)
        parts = []
        for tensor in _tensors(proto.graph):
            if len(tensor.raw_data) >= LARGE:
                parts.append((tensor, numpy_helper.to_array(tensor)))
        parts += [(proto.graph.initializer.add(name=name), array) for name, array in self.arrays.items()]
        digest = _digest(array for _, array in parts)
        data = target.with_name(data_name(target.name, digest))
        offset = 0
        for tensor, array in parts:
            offset = _aligned(offset)
            tensor.CopyFrom(_placeholder(tensor.name, array, data.name, offset))
            offset += array.nbytes
        if not _holds(data, digest):
            with replacing(data) as new, new.open("wb") as file:
                for content in _laid_out(array for _, array in parts):
                    file.write(content)
        return _finish(target, proto, self.facts, data, digest)


@dataclass(frozen=True, eq=False)
class OnDisk:
    """A graph in a file, whose data onnxruntime maps into memory; a temporary folder lives as long as it."""

    path: Path
    facts: Facts
    folder: TemporaryDirectory[str] | None = None

    def session(self, threads: int | None = None) -> Any:
        """A session."""
        import onnxruntime as ort

        return ort.InferenceSession(
            str(self.path), options(threads), providers=["CPUExecutionProvider"]
        ), self.folder

    def write(self, path: str | os.PathLike[str], *, external: bool | None = None) -> list[Path]:
        """Write the graph, with its data beside it if it is large (or ``external``); return the files."""
        target = as_path(path)
        proto = onnx.load(self.path, load_external_data=False)
        moved = [tensor for tensor in _tensors(proto.graph) if tensor.external_data]
        places = {entry.value for t in moved for entry in t.external_data if entry.key == "location"}
        size = sum(file.stat().st_size for file in (self.path, *map(self.path.with_name, places)))
        apart = size > INLINE_LIMIT if external is None else external
        if not apart or len(places) != 1:
            del proto
            whole = onnx.load(self.path)
            _forget(whole)
            if not apart:
                return _finish(target, whole, self.facts, None)
            return Package(whole, {}, self.facts).write(target, external=True)
        source = self.path.with_name(places.pop())
        digest = _digest_of(source)
        copy = target.with_name(data_name(target.name, digest))
        if not _holds(copy, digest):
            with replacing(copy) as new:
                shutil.copyfile(source, new)
        for tensor in moved:
            for entry in tensor.external_data:
                entry.value = copy.name if entry.key == "location" else entry.value
        _forget(proto)
        return _finish(target, proto, self.facts, copy, digest)


def settle(package: Package) -> Stored:
    """Keep a large graph in a temporary file instead of in memory."""
    if package.size <= IN_MEMORY:
        return package
    folder = TemporaryDirectory(prefix="selkit-")
    path = Path(folder.name) / "explainer.onnx"
    package.write(path, external=True)
    return OnDisk(path, package.facts, folder)


def options(threads: int | None = None) -> Any:
    """Settings of a session."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    return settings


def _placeholder(name: str, array: NDArray[Any], location: str, offset: int) -> TensorProto:
    tensor = TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return tensor


def _aligned(offset: int) -> int:
    return -(-offset // PAGE) * PAGE  # so that it can be mapped into memory


def _laid_out(arrays: Iterable[NDArray[Any]]) -> Iterator[memoryview | bytes]:
    """The content of a data file, piece by piece."""
    offset = 0
    for array in arrays:
        yield bytes(_aligned(offset) - offset)
        yield np.ascontiguousarray(array).data
        offset = _aligned(offset) + array.nbytes


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for content in _laid_out(arrays):
        found.update(content)
    return found.hexdigest()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(path: Path, digest: str) -> bool:
    """Whether a file is there already, whole: then a session may have mapped it, and it stays."""
    return path.is_file() and _digest_of(path) == digest


def data_name(name: str, digest: str) -> str:
    """What the data file of a graph is called: other data has another name, so nothing is overwritten."""
    return f"{name}.{digest[:16]}.data"


def _forget(proto: onnx.ModelProto) -> None:
    """Drop what a file says about itself, to say it anew."""
    for index in range(len(proto.metadata_props) - 1, -1, -1):
        if proto.metadata_props[index].key in (KEY, DATA, CHECKSUM):
            del proto.metadata_props[index]


def _finish(
    target: Path, proto: onnx.ModelProto, facts: Facts, data: Path | None, digest: str = ""
) -> list[Path]:
    """Write the graph, whose data file lies there already; then remove data files that nobody needs."""
    told = {KEY: json.dumps(asdict(facts)), CHECKSUM: "0" * 64}
    if data is not None:
        told = {DATA: digest, **told}
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


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def load(source: Source) -> Stored:
    """Read a file that :meth:`Package.write` wrote.

    Raises
    ------
    FileFormatError
        If it is no ONNX model, is damaged, wants files outside its folder, or is not an explainer.
    """
    proto = read(source)
    where = str(source) if isinstance(source, str | os.PathLike) else "the given model"
    told = {entry.key: entry.value for entry in proto.metadata_props}
    if KEY not in told:
        raise FileFormatError(
            f"{where} is an ONNX model, but not an explainer; make one with "
            "selkit.Explainer(model, references).export(path)"
        )
    facts = _read_facts(told[KEY], where)
    if isinstance(source, str | os.PathLike):
        check(Path(source).read_bytes(), where)
        _check_data(Path(source), told.get(DATA))
    else:
        check(source.SerializeToString() if isinstance(source, onnx.ModelProto) else bytes(source), where)
    made = {facts.output, *facts.attributions, "base_values", "targets", "output_values"}
    missing = made - {o.name for o in proto.graph.output}
    missing |= {given.name for given in facts.inputs} - {i.name for i in proto.graph.input}
    if missing:
        raise FileFormatError(f"{where} lacks what an explainer has: {', '.join(sorted(missing))}")
    if isinstance(source, str | os.PathLike):
        return OnDisk(Path(source), facts)
    _forget(proto)
    arrays = {}
    for index in range(len(proto.graph.initializer) - 1, -1, -1):
        tensor = proto.graph.initializer[index]
        if len(tensor.raw_data) >= LARGE:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
            del proto.graph.initializer[index]
    return Package(proto, arrays, facts)


def _check_data(path: Path, digest: str | None) -> None:
    """Refuse a data file that is not as it was written."""
    proto = onnx.load(path, load_external_data=False)
    places = {e.value for t in _tensors(proto.graph) for e in t.external_data if e.key == "location"}
    for place in places:
        if _digest_of(path.with_name(place)) != digest:
            raise FileFormatError(
                f"{place} beside {path} is not as it was written; export the explainer again"
            )


def _read_facts(text: str, where: str) -> Facts:
    """What a file says about itself, checked."""
    try:
        values = json.loads(text)
        version = values.pop("format")
        if type(version) is not int or version != FORMAT:
            raise FileFormatError(
                f"{where} is an explainer of format {version!r}; this version reads {FORMAT}: export it "
                "again with this version of selkit, or read it with the one that wrote it"
            )
        target = values.pop("target")
        inputs = tuple(
            Given(str(name), tuple(int(side) for side in shape), np.dtype(dtype).name)
            for name, shape, dtype in (
                (entry["name"], entry["shape"], entry["dtype"]) for entry in values.pop("inputs")
            )
        )
        if not inputs:
            raise FileFormatError(f"{where} describes itself in a way that cannot be read: it has no inputs")
        return Facts(**values, inputs=inputs, target=tuple(target) if isinstance(target, list) else target)
    except FileFormatError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise FileFormatError(f"{where} describes itself in a way that cannot be read: {error}") from error
