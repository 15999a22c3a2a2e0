"""Explanation graphs in memory and in files: their sessions, and how they are written and read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from selkit.errors import FileFormatError
from selkit.explain import files
from selkit.explain.facts import Facts, read_facts
from selkit.graph.files import Source, read
from selkit.utils.atomic import replacing
from selkit.utils.checks import as_path

INLINE_LIMIT = 3 * 2**29
"""Bytes up to which everything is written into one file; protobuf ends at 2 GiB."""
IN_MEMORY = 2**26
"""Bytes up to which a graph is kept in memory; beyond, onnxruntime maps a temporary file."""
LARGE = 2**16
"""Bytes from which a tensor moves to the external file."""


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
    """A graph in memory, and the large values that are kept outside of its protobuf.

    Attributes
    ----------
    proto, arrays, facts
        The graph, the values, and what the graph says about itself.
    behind
        What makes the graph's input of the integers that the model takes.
    """

    proto: onnx.ModelProto
    arrays: Mapping[str, NDArray[Any]]
    facts: Facts
    behind: Any = None

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
            initializers.append(files.placeholder(name, array, "in-memory", 0))
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
            return files.finish(target, proto, self.facts, None)
        large = [tensor for tensor in files.tensors(proto.graph) if len(tensor.raw_data) >= LARGE]
        parts = [(tensor, numpy_helper.to_array(tensor)) for tensor in large]
        parts += [(proto.graph.initializer.add(name=name), array) for name, array in self.arrays.items()]
        checksum = files.digest(array for _, array in parts)
        data = target.with_name(files.data_name(target.name, checksum))
        offset = 0
        for tensor, array in parts:
            offset = files.aligned(offset)
            tensor.CopyFrom(files.placeholder(tensor.name, array, data.name, offset))
            offset += array.nbytes
        if not files.holds(data, checksum):
            with replacing(data) as new, new.open("wb") as file:
                for content in files.laid_out(array for _, array in parts):
                    file.write(content)
        return files.finish(target, proto, self.facts, data, checksum)


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
        moved = [tensor for tensor in files.tensors(proto.graph) if tensor.external_data]
        places = {entry.value for t in moved for entry in t.external_data if entry.key == "location"}
        size = sum(file.stat().st_size for file in (self.path, *map(self.path.with_name, places)))
        apart = size > INLINE_LIMIT if external is None else external
        if not apart or len(places) != 1:
            del proto
            whole = onnx.load(self.path)
            files.forget(whole)
            if not apart:
                return files.finish(target, whole, self.facts, None)
            return Package(whole, {}, self.facts).write(target, external=True)
        source = self.path.with_name(places.pop())
        checksum = files.digest_of(source)
        copy = target.with_name(files.data_name(target.name, checksum))
        if not files.holds(copy, checksum):
            with replacing(copy) as new:
                shutil.copyfile(source, new)
        for tensor in moved:
            for entry in tensor.external_data:
                entry.value = copy.name if entry.key == "location" else entry.value
        files.forget(proto)
        return files.finish(target, proto, self.facts, copy, checksum)


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
    if files.KEY not in told:
        raise FileFormatError(
            f"{where} is an ONNX model, but not an explainer; make one with "
            "selkit.Explainer(model, references).export(path)"
        )
    facts = read_facts(told[files.KEY], where)
    if isinstance(source, str | os.PathLike):
        files.check(Path(source).read_bytes(), where)
        files.check_data(Path(source), told.get(files.DATA))
    else:
        files.check(
            source.SerializeToString() if isinstance(source, onnx.ModelProto) else bytes(source), where
        )
    made = {facts.output, *facts.attributions, "base_values", "targets", "output_values"}
    missing = made - {o.name for o in proto.graph.output}
    missing |= {given.name for given in facts.inputs} - {i.name for i in proto.graph.input}
    if missing:
        raise FileFormatError(f"{where} lacks what an explainer has: {', '.join(sorted(missing))}")
    if isinstance(source, str | os.PathLike):
        return OnDisk(Path(source), facts)
    files.forget(proto)
    arrays = {}
    for index in range(len(proto.graph.initializer) - 1, -1, -1):
        tensor = proto.graph.initializer[index]
        if len(tensor.raw_data) >= LARGE:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
            del proto.graph.initializer[index]
    return Package(proto, arrays, facts)
