"""Every way to learn about a line leads to the same truncation set."""

from __future__ import annotations

import numpy as np
import pytest
from roi_networks import Autoencoder, Cam, Unet, export, run, sharpen

import selkit
from selkit.inference import BackMeanDiff, RoiResult, engine, witness

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
