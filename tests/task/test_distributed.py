"""One process and two give the same numbers, although the sampler repeats rows for two."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed_run.py")


def same(first, second) -> bool:
    """Whether two structures hold the same numbers, to the last bit; NaN equals NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return (
            first.shape == second.shape
            and first.dtype == second.dtype
            and torch.equal(first.nan_to_num(-7), second.nan_to_num(-7))
        )
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    return type(first) is type(second) and first == second


def test_same_fails_on_what_differs():
    number = torch.tensor([1.0, torch.nan])
    assert same({"a": [number, 2.0]}, {"a": [number.clone(), 2.0]})
    for other in (number + 1e-7, number[:1], number.double(), torch.tensor([1.0, 0.0])):
        assert not same(number, other)
    assert not same({"a": 1.0}, {"b": 1.0})
    assert not same([1.0], [1.0, 1.0])
    assert not same(1.0, 2.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    runs = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(processes), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for processes in (1, 2)
    ]
    texts = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(texts)[-3000:]
    return [torch.load(directory / f"found{processes}.pt", weights_only=False) for processes in (1, 2)]


def test_logged_numbers_are_the_same(found):
    one, two = found
    assert same(one["logged"], two["logged"])
    assert same(one["validated"], two["validated"])
    assert same(one["logged"], one["validated"])
    assert one["logged"][0]["full/count"] == 28
    assert one["logged"][0]["full/count/dataloader_idx_1"] == 7


def test_all_results_are_the_same(found):
    assert same(found[0]["results"], found[1]["results"])
    assert 0 < found[0]["results"]["rejected/count"] < 28
    assert "rc/aurc_lower" in found[0]["results"]


def test_outputs_hold_each_sample_once_in_order(found):
    one, two = found
    assert same(one["outputs"], two["outputs"])
    for outputs, rows in zip(two["outputs"], (21, 7), strict=True):
        assert outputs["index"].tolist() == list(range(rows))


def test_predictions_on_disk_are_the_same(found):
    one, two = found
    assert same(one["predicted"], two["predicted"])
    assert len(two["predicted"][0]["score"]) == 21
    assert same(two["predicted"][1]["score"], two["outputs"][1]["score"])


def test_tensors_of_several_shapes_are_gathered(found):
    expected = [
        [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)],
        [torch.zeros(0, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)],
        [torch.ones(1, 2), torch.full((3, 1), 2.0)],
        [torch.tensor(1.5), torch.tensor(2.5)],
        [torch.tensor([True]), torch.tensor([False, True])],
        [torch.zeros(0), torch.zeros(0)],
        [torch.ones(1).double(), torch.ones(1).double() / 3],
    ]
    assert same(found[1]["gathered"], expected)


def test_repeated_rows_would_have_changed_the_numbers(found):
    """The naive evaluation: two processes with 11 rows each, the first row twice."""
    outputs = found[1]["outputs"][0]
    wrong = ((outputs["predictions"] > 0.5).long() != outputs["target"]).float()
    repeated = torch.cat([wrong, wrong[:1]])
    accuracy = found[1]["results"]["full/BinaryAccuracy/dataloader_idx_0"]
    assert float(1 - wrong.mean()) == pytest.approx(float(accuracy))
    assert float(1 - repeated.mean()) != pytest.approx(float(accuracy), abs=1e-3)
