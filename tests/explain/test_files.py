"""Files that are written whole, never under a session that reads them, and believed only if unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from selkit.errors import FileFormatError
from selkit.explain import Explainer, files

sys.path.insert(0, str(Path(__file__).parent))
import networks


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((12, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def content(images) -> bytes:
    torch.manual_seed(0)
    return networks.export(
        networks.NETWORKS["relu_pool"]().eval(), torch.from_numpy(images[:1]), dynamo=False
    )


@pytest.fixture(scope="module")
def two(content, images) -> tuple[Explainer, Explainer]:
    """Two explainers with large values that differ."""
    return tuple(Explainer(content, part, threads=1) for part in (images[2:7], images[7:12]))


def data_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.data"))


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(["attributions"], {"x": x})[0]


@pytest.mark.parametrize("external", [False, True], ids=["one file", "data beside it"])
def test_a_byte_that_is_flipped_is_noticed(external, two, tmp_path):
    """Of 300 bytes anywhere, a seventh used to load and to attribute differently."""
    path = tmp_path / "e.onnx"
    two[0].export(path, external=external)
    rng = np.random.default_rng(0)
    for file in (path, *data_files(tmp_path)):
        original = file.read_bytes()
        places = rng.integers(len(original), size=120)
        for place in (*places.tolist(), *range(len(original) - 40, len(original))):
            changed = bytearray(original)
            changed[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            with pytest.raises(FileFormatError):
                Explainer.load(path, threads=1)
        file.write_bytes(original)
    Explainer.load(path, threads=1)


def test_flipped_bytes_in_memory_and_models_that_were_edited(two, tmp_path):
    two[0].export(tmp_path / "e.onnx")
    whole = (tmp_path / "e.onnx").read_bytes()
    Explainer.load(whole, threads=1)
    Explainer.load(onnx.load(tmp_path / "e.onnx"), threads=1)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    with pytest.raises(FileFormatError):
        Explainer.load(bytes(changed), threads=1)
    model = onnx.load(tmp_path / "e.onnx")
    model.graph.initializer[0].name = "other"
    with pytest.raises(FileFormatError, match=r"not as it was written|lacks"):
        Explainer.load(model, threads=1)
    del model.metadata_props[:]
    model.metadata_props.append(
        onnx.StringStringEntryProto(key=files.KEY, value='{"format": 1, "target": 0}')
    )
    with pytest.raises(FileFormatError, match="format 1"):
        Explainer.load(model)


def test_other_data_never_takes_the_place_of_data_that_is_read(two, images, tmp_path):
    """A session maps its data: were the file overwritten, it would compute with the new one, or crash."""
    path = tmp_path / "e.onnx"
    two[0].export(path, external=True)
    (first,) = data_files(tmp_path)
    session = onnxruntime.InferenceSession(path)
    before = session.run(["attributions"], {"x": images[:2]})[0]
    two[1].export(path, external=True)
    (second,) = data_files(tmp_path)
    assert second != first
    np.testing.assert_array_equal(session.run(["attributions"], {"x": images[:2]})[0], before)
    np.testing.assert_array_equal(run(path, images[:2]), two[1].explain(images[:2]).attributions)


def test_the_same_data_is_not_written_again(two, tmp_path):
    path = tmp_path / "e.onnx"
    two[0].export(path, external=True)
    (data,) = data_files(tmp_path)
    before = data.stat().st_ino
    two[0].export(path, external=True)
    assert data.stat().st_ino == before
    data.write_bytes(data.read_bytes()[:-1])  # damaged: written again
    Explainer.load(two[0]._package.write(tmp_path / "e.onnx", external=True)[0], threads=1)


def test_data_of_others_stays(two, images, tmp_path):
    path = tmp_path / "e.onnx"
    two[0].export(path, external=True)
    (data,) = data_files(tmp_path)
    (tmp_path / "copy.onnx").write_bytes(path.read_bytes())  # names the same data
    fresh = tmp_path / "e.onnx.0123456789abcdef.data"  # of a process that is about to write its graph
    old = tmp_path / "e.onnx.fedcba9876543210.data"  # of one that was killed
    for file in (fresh, old, tmp_path / "e.onnx.txt.data"):
        file.write_bytes(b"data")
    os.utime(old, (time.time() - 2 * files.FRESH,) * 2)
    two[1].export(path, external=True)
    assert data.exists()
    assert fresh.exists()
    assert not old.exists()
    assert (tmp_path / "e.onnx.txt.data").exists()
    np.testing.assert_array_equal(
        run(tmp_path / "copy.onnx", images[:1]), two[0].explain(images[:1]).attributions
    )


FULL = """
import resource, signal, sys
import numpy as np
from selkit.explain import Explainer
explainer = Explainer.load(sys.argv[1], threads=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    explainer.export(sys.argv[2], external=sys.argv[4] == "True")
except OSError as error:
    print("OSError")
"""


@pytest.mark.parametrize(("external", "limit"), [(True, 20_000), (False, 20_000)])
def test_a_full_disk_leaves_what_was_there(external, limit, two, images, tmp_path):
    path, other = tmp_path / "e.onnx", tmp_path / "new.onnx"
    two[0].export(path, external=True)
    two[1].export(other)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    command = [sys.executable, "-c", FULL, str(other), str(path), str(limit), str(external)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "OSError"
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*.part"))
    np.testing.assert_array_equal(run(path, images[:1]), two[0].explain(images[:1]).attributions)


def test_the_checker_itself_notices():
    blank = b"x" + files.CHECKSUM.encode() + b"\x12\x40" + b"0" * 64
    with pytest.raises(FileFormatError, match="not as it was written"):
        files.check(blank, "it")
    with pytest.raises(FileFormatError, match="no checksum"):
        files.check(b"x", "it")
