"""Arrays from files: the same as NumPy reads, a chunk at a time, and nothing that could run code."""

from __future__ import annotations

import csv
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from selkit.cli.inputs import open_array, read_vector
from selkit.cli.tables import read_rows, write_rows
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(23, 3, 2)).astype(np.float32)


def save(kind: str, path, array) -> str:
    if kind == "npy":
        np.save(path / "a.npy", array)
        return str(path / "a.npy")
    if kind == "fortran npy":
        np.save(path / "a.npy", np.asfortranarray(array))
        return str(path / "a.npy")
    (np.savez if kind == "npz" else np.savez_compressed)(path / "a.npz", one=array, two=array[:2])
    return f"{path / 'a.npz'}:one"


KINDS = ["npy", "fortran npy", "npz", "compressed npz"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_chunks_are_the_array(tmp_path, array, kind, size):
    samples = open_array(save(kind, tmp_path, array))
    assert len(samples) == 23
    chunks = list(samples.chunks(size))
    assert [chunk.start for chunk in chunks] == list(range(0, 23, size))
    assert sum(chunk.size for chunk in chunks) == 23
    np.testing.assert_array_equal(np.concatenate([chunk.load().values for chunk in chunks]), array)
    np.testing.assert_array_equal(np.stack(list(samples)), array)


def test_marks_say_the_content_and_not_the_file(tmp_path, array):
    marks = {
        kind: [chunk.mark for chunk in open_array(save(kind, tmp_path, array)).chunks(10)] for kind in KINDS
    }
    assert len({tuple(found) for found in marks.values()}) == 1
    array[12, 0, 0] += 1
    changed = [chunk.mark for chunk in open_array(save("npy", tmp_path, array)).chunks(10)]
    assert [a == b for a, b in zip(changed, marks["npy"], strict=True)] == [True, False, True]


@pytest.mark.parametrize("kind", ["npy", "compressed npz"])
def test_memory_is_that_of_a_chunk(tmp_path, kind):
    array = np.zeros((4000, 1000), np.float32)  # 16 MB
    samples = open_array(save(kind, tmp_path, array))
    tracemalloc.start()
    for chunk in samples.chunks(100):
        chunk.load()
    peak = tracemalloc.get_traced_memory()[1]
    everything = np.stack([chunk.load().values for chunk in samples.chunks(4000)])
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6 < everything.nbytes < whole  # the measure sees a whole array


def test_pickle_is_refused(tmp_path):
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(FileFormatError, match="could run code"):
            open_array(str(tmp_path / name))
    (tmp_path / "b.npy").write_bytes(b"\x80\x04N.")
    with pytest.raises(FileFormatError, match=r"b\.npy is not an array in \.npy format"):
        open_array(str(tmp_path / "b.npy"))


def test_damaged_files_are_refused(tmp_path, array):
    whole = tmp_path / "a.npy"
    np.save(whole, array)
    content = whole.read_bytes()
    for name, cut, text in (
        ("short", content[:-4], "shorter than its header says"),
        ("header", content[:20], r"is not an array in \.npy format"),
        ("empty", b"", r"is not an array in \.npy format"),
    ):
        (tmp_path / f"{name}.npy").write_bytes(cut)
        with pytest.raises(FileFormatError, match=text):
            open_array(str(tmp_path / f"{name}.npy"))
    (tmp_path / "a.npz").write_bytes(b"PK nonsense")
    with pytest.raises(FileFormatError, match=r"a\.npz is not a readable \.npz file"):
        open_array(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "c.npz", a=array)
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    with pytest.raises(FileFormatError, match=r"is not an array in \.npy format"):
        open_array(str(tmp_path / "c.npy"))


def packed(path, content: bytes) -> str:
    with zipfile.ZipFile(path / "p.npz", "w") as archive:
        archive.writestr("a.npy", content)
    return str(path / "p.npz")


def test_a_packed_array_that_lies_about_its_size(tmp_path, array):
    file = io.BytesIO()
    np.save(file, array)
    for content in (file.getvalue()[:-4], file.getvalue() + b"more"):
        with pytest.raises(FileFormatError, match=r"its header says .*: damaged file"):
            open_array(packed(tmp_path, content))
    with pytest.raises(FileFormatError, match=r"is not an array in \.npy format"):
        open_array(packed(tmp_path, b"nothing of the kind"))


def test_a_packed_array_by_columns_is_refused(tmp_path, array):
    np.savez(tmp_path / "a.npz", a=np.asfortranarray(array))
    with pytest.raises(FileFormatError, match="stored column by column"):
        open_array(str(tmp_path / "a.npz"))


def test_names_in_a_packed_file(tmp_path, array):
    save("npz", tmp_path, array)
    path = str(tmp_path / "a.npz")
    with pytest.raises(InvalidInputError, match=r"say which array, as .*a\.npz:NAME; it has: one, two"):
        open_array(path)
    with pytest.raises(InvalidInputError, match="there is no array 'three'"):
        open_array(f"{path}:three")
    assert len(open_array(f"{path}:two")) == 2


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (np.zeros((0, 3)), InvalidInputError, r"is empty: its shape is \(0, 3\)"),
        (np.array(1.0), InvalidInputError, "is a single number"),
        (np.array(["a", "b"]), InvalidTypeError, "real numbers of at most 64 bits"),
        (np.zeros(3, complex), InvalidTypeError, "has dtype complex128"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_that_are_no_samples(tmp_path, kind, values, error, text):
    if kind == "npy":
        np.save(tmp_path / "a.npy", values)
    else:
        np.savez(tmp_path / "a.npz", a=values)
    with pytest.raises(error, match=text):
        open_array(str(tmp_path / f"a.{kind}"))


def test_vectors(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(4.0))
    (tmp_path / "v.txt").write_text("0\n1\n2\n3\n")
    for name in ("v.npy", "v.txt"):
        found = read_vector(str(tmp_path / name), "labels", 4)
        assert found.tolist() == [0, 1, 2, 3]
        assert found.dtype == np.int64
    (tmp_path / "w.txt").write_text("0.5\n1\n")
    assert read_vector(str(tmp_path / "w.txt"), "losses", 2).tolist() == [0.5, 1.0]
    with pytest.raises(InvalidInputError, match=r"labels: .* has shape \(2,\); one number for each of 3"):
        read_vector(str(tmp_path / "w.txt"), "labels", 3)
    (tmp_path / "x.txt").write_text("one\n")
    with pytest.raises(FileFormatError, match="one number in each line"):
        read_vector(str(tmp_path / "x.txt"), "labels", 1)


@pytest.mark.parametrize(
    "name", ["=1+1.png", "+a", "-a.png", "@a", "\ta", "'=a", "''-a", "plain.png", "'plain"]
)
def test_names_are_no_formulas_in_a_spreadsheet(name, tmp_path):
    rows = [{"index": 0, "name": name, "score": -1.5, "error": name}]
    write_rows(tmp_path / "t.csv", list(rows[0]), rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        (found,) = csv.DictReader(file)
    assert not found["name"].startswith(("=", "+", "-", "@", "\t"))
    assert found["score"] == "-1.5"
    assert read_rows(tmp_path / "t.csv") == rows
