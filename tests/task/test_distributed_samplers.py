"""Two processes know their samples as one does, under every sampler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_samplers import KINDS
from sampler_cases import ROWS

SCRIPT = Path(__file__).with_name("distributed_samplers.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("samplers")
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


def test_every_row_is_the_sample_that_its_index_names(found):
    for processes in found:
        for outputs in (*processes["outputs"], *processes["predicted"]):
            torch.testing.assert_close(outputs["score"], outputs["index"] * 2**0.5)
            assert torch.equal(outputs["predictions"], outputs["index"] % 2)
            assert outputs["id"] == [f"name {i}" for i in outputs["index"]]


def test_two_processes_have_the_samples_of_one(found):
    one, two = ([outputs["index"].tolist() for outputs in processes["outputs"]] for processes in found)
    named = dict(zip(KINDS, zip(one, two, strict=True), strict=True))
    for kind in ("in order", "shuffled", "batches"):
        assert named[kind][0] == named[kind][1] == list(range(ROWS))
    assert named["subset"][0] == named["subset"][1] == list(range(5, 15))
    assert len(named["weighted"][1]) == 30


def test_processes_without_a_common_seed_are_told_that_samples_are_missing(found):
    assert [processes["said"] for processes in found] == [[0, 0, 0], [0, 1, 0]]
