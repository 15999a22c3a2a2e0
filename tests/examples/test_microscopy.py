"""The demo, in full: what its report says is what must be true."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import microscopy

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[microscopy.Findings, str]:
    folder = tmp_path_factory.mktemp("demo")
    found = microscopy.main(["--output", str(folder)])
    return found, (folder / "index.html").read_text(encoding="utf-8")


def test_foreign_patches_are_rejected_far_more_often(demo):
    found, page = demo
    assert found.rejected(nuclei=True) <= 0.25
    assert found.rejected(nuclei=False) >= 0.9
    assert f"{found.rejected(nuclei=False):.1%}" in page


def test_decisions_are_scores_against_the_threshold(demo):
    found, _ = demo
    score, selected = (torch.as_tensor(found.outputs[name]) for name in ("score", "selected"))
    assert torch.equal(selected, score <= found.threshold)
    assert found.threshold == pytest.approx(float(np.quantile(found.calibration.double(), 0.9)), rel=1e-6)
    by_kind = [bool(s) for s, kind in zip(selected, found.kinds, strict=True) if kind == "nuclei"]
    assert found.rejected(nuclei=True) == pytest.approx(1 - sum(by_kind) / 64)


def test_dice_is_better_on_what_is_selected(demo):
    found, page = demo
    predicted = np.asarray(found.outputs["predictions"]) > 0.5
    truth = np.asarray(found.outputs["target"]) > 0
    selected = np.asarray(found.outputs["selected"])

    def dice(rows: np.ndarray) -> float:
        both = (predicted[rows] & truth[rows]).sum()
        return 2 * both / (predicted[rows].sum() + truth[rows].sum())

    for name, rows in {"full": selected | True, "selected": selected, "rejected": ~selected}.items():
        assert found.metrics[f"{name}/Dice"] == pytest.approx(dice(rows), rel=1e-5)
        assert f"{found.metrics[f'{name}/Dice']:.3f}" in page
        assert found.metrics[f"{name}/count"] == rows.sum()
    assert found.metrics["selected/Dice"] > 0.9
    assert found.metrics["rejected/Dice"] < found.metrics["selected/Dice"] - 0.3


def test_p_values_are_small_for_clearly_visible_nuclei(demo):
    found, _ = demo
    results = [result for result in found.outputs["roi_result"] if result is not None]
    p_values = np.array([result.p_value for result in results])
    assert len(results) >= 40
    assert ((p_values >= 0) & (p_values <= 1)).all()
    assert np.median(p_values) < 0.001
    assert np.mean(p_values <= 0.05) >= 0.7
    rejected = ~np.asarray(found.outputs["selected"])
    assert all(result is None for result, no in zip(found.outputs["roi_result"], rejected, strict=True) if no)


def test_the_page_shows_every_query(demo):
    found, page = demo
    assert page.count("<noscript data-decision=") == len(found.kinds) == 128
    tested = sum(result is not None for result in found.outputs["roi_result"])
    assert f"of {tested} tested" in page
