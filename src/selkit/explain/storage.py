"""Explanation graphs in memory and in files: sessions, external data, and what a file must say of itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
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

KEY = "selkit.explainer"
FORMAT = 1
INLINE_LIMIT = 3 * 2**29
"""Bytes up to which everything is written into one file; protobuf ends at 2 GiB."""
IN_MEMORY = 2**26
"""Bytes up to which a graph is kept in memory; beyond, onnxruntime maps a temporary file."""
PAGE = 4096
LARGE = 2**16
"""Bytes from which a tensor moves to the external file."""


@dataclass(frozen=True)
class Facts:
    """What a file says about itself.

    Attributes
    ----------
    input, output
        Names of the explained model's input and output.
    shape
        Of the input, without the batch axis.
    dtype
        Of the input.
    target
        ``"top"``, an index, or indices.
    references
        How many there are.
    cached
        Whether the references' activations are stored.
    format
        Version of this description.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    target: Any
    references: int
    cached: bool
    format: int = FORMAT


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
        target = Path(path)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        proto.metadata_props.append(
            onnx.StringStringEntryProto(key=KEY, value=json.dumps(asdict(self.facts)))
        )
        if not (self.size > INLINE_LIMIT if external is None else external):
            proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self.arrays.items())
            target.write_bytes(proto.SerializeToString())
            return [target]
        data = target.with_name(target.name + ".data")
        with data.open("wb") as file:
            for tensor in _tensors(proto.graph):
                if len(tensor.raw_data) >= LARGE:
                    array = numpy_helper.to_array(tensor)
                    tensor.CopyFrom(_append(file, data.name, tensor.name, array))
            for name, array in self.arrays.items():
                proto.graph.initializer.append(_append(file, data.name, name, array))
        target.write_bytes(proto.SerializeToString())
        return [target, data]


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
        target = Path(path)
        proto = onnx.load(self.path, load_external_data=False)
        moved = [tensor for tensor in _tensors(proto.graph) if tensor.external_data]
        places = {entry.value for t in moved for entry in t.external_data if entry.key == "location"}
        size = sum(file.stat().st_size for file in (self.path, *map(self.path.with_name, places)))
        apart = size > INLINE_LIMIT if external is None else external
        if not apart or len(places) != 1:
            del proto
            whole = onnx.load(self.path)
            if not apart:
                target.write_bytes(whole.SerializeToString())
                return [target]
            del whole.metadata_props[:]
            return Package(whole, {}, self.facts).write(target, external=True)
        copy = target.with_name(target.name + ".data")
        shutil.copyfile(self.path.with_name(places.pop()), copy)
        for tensor in moved:
            for entry in tensor.external_data:
                entry.value = copy.name if entry.key == "location" else entry.value
        target.write_bytes(proto.SerializeToString())
        return [target, copy]


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


def _append(file: Any, location: str, name: str, array: NDArray[Any]) -> TensorProto:
    offset = -(-file.tell() // PAGE) * PAGE  # so that it can be mapped into memory
    file.seek(offset)
    file.write(np.ascontiguousarray(array).data)
    return _placeholder(name, array, location, offset)


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
    text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
    if text is None:
        raise FileFormatError(
            f"{where} is an ONNX model, but not an explainer; make one with "
            "selkit.Explainer(model, references).export(path)"
        )
    try:
        values = json.loads(text)
        if values.get("format") != FORMAT:
            raise FileFormatError(
                f"{where} is an explainer of format {values.get('format')}; this version reads {FORMAT}: "
                "update selkit, or export it again"
            )
        target = values.pop("target")
        facts = Facts(
            **{**values, "shape": tuple(map(int, values["shape"]))},
            target=tuple(target) if isinstance(target, list) else target,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{where} describes itself in a way that cannot be read: {error}") from error
    missing = {facts.output, "attributions", "base_values", "targets"} - {o.name for o in proto.graph.output}
    if missing or not any(value.name == facts.input for value in proto.graph.input):
        raise FileFormatError(
            f"{where} lacks what an explainer has: {', '.join(sorted(missing)) or facts.input}"
        )
    if isinstance(source, str | os.PathLike):
        return OnDisk(Path(source), facts)
    del proto.metadata_props[:]
    arrays = {}
    for index in range(len(proto.graph.initializer) - 1, -1, -1):
        tensor = proto.graph.initializer[index]
        if len(tensor.raw_data) >= LARGE:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
            del proto.graph.initializer[index]
    return Package(proto, arrays, facts)
