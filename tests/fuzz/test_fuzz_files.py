"""Damaged, foreign and absurd files end in an error of selkit, soon, and the interpreter goes on."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests

import fuzz_calls
from fuzz_values import TookTooLongError, allowed, limits

import selkit
from selkit import embeddings
from selkit.cli.images import ImageOptions, open_samples
from selkit.cli.sidecar import Sidecar
from selkit.cli.tables import read_rows, write_rows
from selkit.errors import FileFormatError, SelkitError
from selkit.graph import Graph
from selkit.inference import inference_batch

TIMES = int(os.environ.get("SELKIT_FUZZ", "1"))
SEED = int(os.environ.get("SELKIT_FUZZ_SEED", "30"))
COUNT = 500 * TIMES
ROWS = [{"index": k, "name": f"{k}.png", "score": 0.5 * k, "error": None} for k in range(4)]


def read_all(path: Path) -> None:
    """Read every sample of an array, an archive or a picture."""
    for chunk in open_samples(str(path), ImageOptions()).chunks(128):
        chunk.load()


def resume(path: Path) -> None:
    inference_batch(fuzz_calls.roi_test(), fuzz_calls.RNG.normal(size=(0, 1, 8)), 1.0, checkpoint=path)


def extracted(folder: Path) -> Path:
    """Features with a cache, and its only file."""
    embeddings.extract(fuzz_calls.net(), fuzz_calls.loader(), layer="body", cache=folder)
    (file,) = folder.glob("*.safetensors")
    return file


def cached(path: Path) -> None:
    folder = path.parent / "cached"
    extracted(folder).write_bytes(path.read_bytes())
    extracted(folder)


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    return file.getvalue()


def array_file(*, packed: bool) -> bytes:
    file = io.BytesIO()
    if packed:
        np.savez_compressed(file, x=fuzz_calls.X)
    else:
        np.save(file, fuzz_calls.X)
    return file.getvalue()


def written(write: Callable[[Path], object], name: str) -> bytes:
    path = fuzz_calls.FOLDER / name
    write(path)
    return path.read_bytes()


def features(path: Path) -> None:
    path.write_bytes(extracted(path.parent / "cached").read_bytes())


def rows_of_a_run(path: Path) -> None:
    path.unlink(missing_ok=True)
    inference_batch(fuzz_calls.roi_test(), fuzz_calls.RNG.normal(size=(3, 1, 8)), 1.0, checkpoint=path)


FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[1, 1, 8] x) => (float[1, 1, 8] y) { h = own.twice(x) y = Relu(h) }
<domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }"""

KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "score.safetensors": (
        lambda: written(fuzz_calls.fitted().save, "score.safetensors"),
        selkit.scores.EuclideanScore.load,
    ),
    "bundle.onnx": (lambda: fuzz_calls.made_bundle().content, selkit.load_bundle),
    "model.onnx": (fuzz_calls.NETWORK.SerializeToString, Graph.load),
    "functions.onnx": (lambda: onnx.parser.parse_model(FUNCTIONS).SerializeToString(), Graph.load),
    "explainer.onnx": (lambda: fuzz_calls.exported().read_bytes(), selkit.Explainer.load),
    "array.npy": (lambda: array_file(packed=False), read_all),
    "array.npz": (lambda: array_file(packed=True), read_all),
    "image.png": (picture, read_all),
    "table.csv": (lambda: written(lambda p: write_rows(p, list(ROWS[0]), ROWS), "t.csv"), read_rows),
    "table.json": (lambda: written(lambda p: write_rows(p, list(ROWS[0]), ROWS), "t.json"), read_rows),
    "checkpoint.jsonl": (lambda: written(rows_of_a_run, "run.jsonl"), resume),
    "features.safetensors": (lambda: written(features, "features.st"), cached),
    "beside.json": (lambda: json.dumps({"score": "a", "references": 3}).encode(), Sidecar.read),
}


@functools.cache
def content_of(kind: str) -> bytes:
    return KINDS[kind][0]()


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The content with a few bytes changed, cut, doubled or filled in."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(changed) + 1))
        length = int(random.integers(1, 40))
        how = random.integers(6)
        if how == 0 and place < len(changed):
            changed[place] ^= 1 << int(random.integers(8))
        elif how == 1:
            del changed[place:]
        elif how == 2:
            changed[place:place] = random.bytes(length)
        elif how == 3:
            del changed[place : place + length]
        elif how == 4:
            changed[place : place + length] = b"\xff" * length
        else:
            changed[place:place] = changed[place : place + length]
    return bytes(changed)


def problem_of(kind: str, path: Path) -> str | None:
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind][1](path)
    except (Exception, TookTooLongError) as error:  # noqa: BLE001 - it is what is looked for
        return None if allowed(error) else f"{kind}: {type(error).__name__}: {str(error)[:200]}"
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_read_as_they_are(kind, tmp_path):
    path = tmp_path / kind
    path.write_bytes(content_of(kind))
    if kind != "beside.json":
        KINDS[kind][1](path)


def test_damaged_files(tmp_path):
    random = np.random.default_rng(SEED)
    failures: dict[str, int] = collections.Counter()
    for number in range(COUNT):
        kind = list(KINDS)[number % len(KINDS)]
        path = tmp_path / kind
        path.write_bytes(damaged(content_of(kind), random))
        found = problem_of(kind, path)
        if found is not None:
            failures[found] += 1
    assert not failures, "\n".join(f"{count} x {text}" for text, count in failures.items())


# files that somebody wrote on purpose


def calls_twice(depth: int) -> bytes:
    """Local functions each of which calls the next one twice: two to the power of the depth, when inlined."""
    bodies = "\n".join(
        f'<domain: "own", opset_import: ["" : 17, "own" : 1]> f{k} (a) => (b) '
        f"{{ c = own.f{k + 1}(a) b = own.f{k + 1}(c) }}"
        for k in range(depth)
    )
    last = f'<domain: "own", opset_import: ["" : 17]> f{depth} (a) => (b) {{ b = Relu(a) }}'
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[1, 1, 8] x) => (float[1, 1, 8] y) '
        f"{{ y = own.f0(x) }}\n{bodies}\n{last}"
    )
    return onnx.parser.parse_model(text).SerializeToString()


def calls_itself() -> bytes:
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[1, 1, 8] x) => (float[1, 1, 8] y) { y = own.f(x) }
        <domain: "own", opset_import: ["" : 17, "own" : 1]> f (a) => (b) { b = own.f(a) }"""
    ).SerializeToString()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(content: bytes, *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as packed:
        packed.writestr("x.npy", content)
    return file.getvalue()


def large_sample(side: int) -> bytes:
    """An archive of a megabyte with one large sample."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("x.npy", "w") as member,
    ):
        member.write(header(f"(1, {side}, {side})"))
        block = bytes(4 * side)
        for _ in range(side):
            member.write(block)
    return file.getvalue()


def large_picture(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    start = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def broken_stream() -> bytes:
    content = bytearray(archive(header("(3, 3)") + bytes(36)))
    place = content.index(b"x.npy") + 5
    content[place : place + 4] = b"\xff\xff\xff\xff"
    return bytes(content)


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "functions that call each other twice": ("model.onnx", lambda: calls_twice(20)),
    "functions that call each other twice, deeper": ("model.onnx", lambda: calls_twice(150)),
    "a function that calls itself": ("model.onnx", calls_itself),
    "nested json in a table": ("table.json", lambda: b"[" * 200_000),
    "nested json beside a score": ("beside.json", lambda: b'{"a":' * 200_000),
    "nested json in a checkpoint": ("checkpoint.jsonl", lambda: b"[" * 200_000 + b"\n"),
    "a negative side": ("array.npy", lambda: header("(-1, 3)") + bytes(36)),
    "a negative side, packed": ("array.npz", lambda: archive(header("(-1, 3)") + bytes(36))),
    "a huge side": ("array.npy", lambda: header("(10000000000000000000, 3)") + bytes(36)),
    "a huge product": ("array.npz", lambda: archive(header("(1, 4294967296, 4294967296)") + bytes(36))),
    "text as a side": ("array.npy", lambda: header("('a', 3)") + bytes(36)),
    "an open bracket": ("array.npy", lambda: header("(3, (((((3)") + bytes(36)),
    "an open text, packed": ("array.npz", lambda: archive(header("(3, '''") + bytes(36))),
    "a foreign dtype": ("array.npy", lambda: header("(3, 3)", "[('a', 'O')]") + bytes(36)),
    "a damaged stream": ("array.npz", broken_stream),
    "one sample of 300 MiB": ("array.npz", lambda: large_sample(9_000)),
    "a picture of 13,000 x 13,000": ("image.png", lambda: large_picture(13_000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    kind, make = HOSTILE[name]
    path = tmp_path / kind
    path.write_bytes(make())
    if kind == "image.png":  # a picture that cannot be read is a row of its own
        with limits():
            (chunk,) = open_samples(str(path), ImageOptions()).chunks(128)
            loaded = chunk.load()
        assert "at most" in loaded.bad[0]
    else:
        with limits(), pytest.raises((SelkitError,)) as caught:
            KINDS[kind][1](path)
        assert " at 0x" not in str(caught.value)


def test_a_broken_picture_says_the_same_twice(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"no picture")
    texts = []
    for _ in range(2):
        (chunk,) = open_samples(str(path), ImageOptions()).chunks(8)
        texts.append(chunk.load().bad[0])
        _ = bytearray(10_000)  # another object at another address
    assert texts[0] == texts[1]
    assert " at 0x" not in texts[0]


def division(operator: str, by: int) -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 1, 8] x) => (float[1, 1, 8] y)
    <int64[1] a = {{-9223372036854775808}}, int64[1] b = {{{by}}}> {{
        q = {operator}(a, b)
        f = Cast<to = 1>(q)
        y = Add(x, f)
    }}"""


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("by", [-1, 0])
def test_divisions_that_processors_refuse(operator, by):
    """SIGFPE ends an interpreter: another one tries it."""
    code = """
        import sys, onnx
        from selkit.errors import SelkitError
        from selkit.graph import Graph
        try:
            Graph.load(onnx.parser.parse_model(sys.argv[1])).compile({"x": (1, 1, 8)})
        except SelkitError as error:
            print("refused", type(error).__name__)
        print("alive")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), division(operator, by)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.endswith("alive\n")


def test_a_flipped_byte_of_a_bundle_is_noticed():
    random = np.random.default_rng(1)
    content = content_of("bundle.onnx")
    for place in random.integers(0, len(content), 100):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        with pytest.raises(FileFormatError):
            selkit.load_bundle(bytes(changed))


def test_what_ends_in_an_error_can_fail():
    """The suite would notice an exception of another library, and one that takes too long."""

    def slow() -> Any:
        with limits():
            while True:
                pass

    assert not allowed(ValueError("of another library"))
    assert allowed(FileFormatError("of selkit"))
    with pytest.raises(TookTooLongError):
        slow()
