"""A small network with a written-out graph, images of three kinds, and what the network makes of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests

import bundle_models


@dataclass(frozen=True)
class Data:
    """Images, and embeddings and logits of them by onnxruntime alone."""

    images: np.ndarray
    labels: np.ndarray
    embedding: torch.Tensor
    logits: torch.Tensor

    def part(self, where: slice) -> Data:
        return Data(self.images[where], self.labels[where], self.embedding[where], self.logits[where])


@pytest.fixture(scope="session")
def network() -> onnx.ModelProto:
    return bundle_models.network()


@pytest.fixture(scope="session")
def data(network: onnx.ModelProto) -> Data:
    images, labels = bundle_models.images(600, seed=1)
    runner = bundle_models.opened(bundle_models.with_outputs(network, "embedding", "logits"))
    embedding, logits = runner.run(["embedding", "logits"], {"x": images})
    return Data(images, labels, torch.from_numpy(embedding), torch.from_numpy(logits))


@pytest.fixture(scope="session")
def fit_on(data: Data) -> Data:
    return data.part(slice(0, 300))


@pytest.fixture(scope="session")
def calibrate_on(data: Data) -> Data:
    return data.part(slice(300, 450))


@pytest.fixture(scope="session")
def judge(data: Data) -> Data:
    """New images, half of them far from what the scores were fitted on."""
    part = data.part(slice(450, 600))
    images = part.images.copy()
    images[::2] *= 2.5
    return Data(images, part.labels, part.embedding, part.logits)
