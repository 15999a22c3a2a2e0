"""Every way to learn about a line leads to the same truncation set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from roi_networks import Autoencoder, Cam, Unet, export, run, sharpen
from torch import nn

import selkit
from selkit.inference import BackMeanDiff, RoiResult, engine, witness
from selkit.inference.bounds import Band
from selkit.inference.events import SignEvent

NETWORKS = {"cam": Cam, "unet": lambda: Unet(4), "autoencoder": lambda: Autoencoder(2, 1, 4)}

WAYS = {
    "at once, in double precision": {"DIRECT": 1e12},
    "followed in single precision": {"DIRECT": 0.0, "SMALL": 1e12, "SURVEYS": 1},
    "followed window by window": {"DIRECT": 0.0, "SMALL": 0.0, "WORTH": 1e9, "patches": 0.0},
    "by bounds": {"DIRECT": 0.0, "SMALL": 0.0, "WORTH": 1e-9},
    "by single elements": {"DIRECT": 0.0, "SMALL": 0.0, "WORTH": 1e9, "patches": 1e9},
    "in small stacks": {"DIRECT": 0.0, "SMALL": 0.0, "WORTH": 1e9, "CACHE": 1, "patches": 1e9},
}


def infer(
    way: str, name: str, monkeypatch: pytest.MonkeyPatch, seed: int, **options: object
) -> tuple[RoiResult, list[int]]:
    """Test one noise image in one way; also how many pieces each single element took."""
    used: list[int] = []
    exclude = witness.Witnesses.exclude

    def counted(self: witness.Witnesses, windows: np.ndarray) -> np.ndarray:
        found = exclude(self, windows)
        used.append(len(found))
        return found

    monkeypatch.setattr(witness.Witnesses, "exclude", counted)
    for constant, value in WAYS[way].items():
        room, name_there = (witness, "WORTH") if constant == "patches" else (engine, constant)
        monkeypatch.setattr(room, name_there, value)
    model = export(sharpen(NETWORKS[name](), seed, 2.0), (1, 1, 12, 12))
    x = np.random.default_rng(seed).normal(size=(1, 1, 12, 12))
    threshold = float(np.quantile(run(model, x), 0.8))
    return selkit.load(model, BackMeanDiff(threshold), var=1.0).inference(x, **options), used


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("at once")])
def test_all_ways_agree(way: str, name: str, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        expected, _ = infer("at once, in double precision", name, patch, seed, inference_mode="exhaustive")
    with pytest.MonkeyPatch.context() as patch:
        found, _ = infer(way, name, patch, seed, inference_mode="exhaustive")
    np.testing.assert_allclose(found.truncated_intervals, expected.truncated_intervals, atol=1e-9)
    assert found.p_value == pytest.approx(expected.p_value, abs=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        quick, _ = infer(way, name, patch, seed)
    assert quick.inf_p <= expected.p_value + 1e-12
    assert expected.p_value <= quick.sup_p + 1e-12
    assert quick.sup_p - quick.inf_p < 1e-3


def test_single_elements_are_used() -> None:
    with pytest.MonkeyPatch.context() as patch:
        result, used = infer("by single elements", "unet", patch, 0, inference_mode="exhaustive")
    assert sum(used) > 0
    assert result.windows > 0


def test_what_overflows_in_single_precision_is_left_to_double(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        *[nn.Conv2d(3, 3, 1, bias=False) for _ in range(2)],  # to about 1e40: infinite in single precision
        nn.ReLU(),
        *[nn.Conv2d(3, 3, 1, bias=False) for _ in range(2)],
        nn.Conv2d(3, 1, 3, padding=1),
    )
    sharpen(network, 0, 2.0)
    with torch.no_grad():
        for place, scale in ((2, 1e20), (3, 1e20), (5, 1e-20), (6, 1e-20)):
            network[place].weight *= scale
    model, x = export(network, (1, 1, 8, 8)), np.random.default_rng(0).normal(size=(1, 1, 8, 8))
    with torch.no_grad():  # onnxruntime works in single precision
        level = float(network.double()(torch.as_tensor(x)).quantile(0.8))
    test = selkit.load(model, BackMeanDiff(level), var=1.0)
    expected = test.inference(x, inference_mode="exhaustive")
    monkeypatch.setattr(engine, "DIRECT", 0.0)
    found = test.inference(x, inference_mode="exhaustive")
    np.testing.assert_allclose(found.truncated_intervals, expected.truncated_intervals, atol=1e-9)


def test_bounds_that_overflow_include_nothing() -> None:
    event = SignEvent("y", torch.tensor([0, 1]), torch.tensor([True, True]))
    windows = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    one, nothing = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert len(event.settle_bands({"y": Band(one, one, nothing, nothing)}, windows).included) == 1
    broken = torch.tensor([[1.0, torch.nan]], dtype=torch.float64)
    for band in (Band(broken, one, nothing, nothing), Band(one, one, nothing, broken)):
        assert len(event.settle_bands({"y": band}, windows).included) == 0
