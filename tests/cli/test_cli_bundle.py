"""bundle: one file that decides as select does, compared with Python on request."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest


@pytest.fixture
def fitted(selkit, models, tmp_path):
    """A score fitted through the classifier, and new inputs."""
    random = np.random.default_rng(2)
    for name, size in (("train", 50), ("calibration", 40), ("new", 30)):
        np.save(tmp_path / f"{name}.npy", random.normal(size=(size, 1, 6, 6)).astype(np.float32))
    ended = selkit("fit", tmp_path / "train.npy", "--calibration", tmp_path / "calibration.npy", "--model",
                   models["classifier"], "--layer", "embedding", "--score", "euclidean", "-p", "k=3",
                   "--coverage", "0.7", "-o", tmp_path / "s.safetensors")  # fmt: skip
    assert ended.code == 0
    return tmp_path


def test_the_file_decides_as_select_does(selkit, fitted, models):
    ended = selkit("bundle", models["classifier"], "--score", fitted / "s.safetensors", "-o",
                   fitted / "b.onnx", "--verify", fitted / "new.npy", "--chunk", "7", "--json")  # fmt: skip
    assert ended.code == 0
    assert ended.json["verified"] is True
    assert ended.json["outputs"] == ["embedding", "logits", "score", "selected"]
    x = np.load(fitted / "new.npy")
    score, selected = ort.InferenceSession(fitted / "b.onnx").run(["score", "selected"], {"x": x})
    rows = selkit("select", fitted / "s.safetensors", fitted / "new.npy", "--model", models["classifier"],
                  "--json").json["rows"]  # fmt: skip
    assert selected.tolist() == [row["selected"] for row in rows]
    assert 0 < selected.sum() < 30
    np.testing.assert_allclose(score, [row["score"] for row in rows], rtol=1e-5)


def test_a_region(selkit, fitted, models):
    ended = selkit("bundle", models["average"], "--roi-threshold", "0.3", "--roi-post", "abs", "-o",
                   fitted / "b.onnx", "--json")  # fmt: skip
    assert ended.json["outputs"] == ["y", "score_map", "roi"]


def test_an_explanation(selkit, fitted, models):
    np.save(fitted / "r.npy", np.load(fitted / "train.npy")[:4])
    explain = ["--explain-references", fitted / "r.npy", "--explain-output", "logits", "--target", "1"]
    more = ["-o", fitted / "b.onnx", "--verify", fitted / "new.npy", "--json"]
    ended = selkit("bundle", models["classifier"], *explain, *more)
    assert ended.code == 0, ended.err
    assert ended.json["outputs"] == ["embedding", "logits", "attribution"]
    assert ended.json["verified"] is True
    x = np.load(fitted / "new.npy")
    found, logits = ort.InferenceSession(fitted / "b.onnx").run(["attribution", "logits"], {"x": x})
    base = ort.InferenceSession(models["classifier"]).run(["logits"], {"x": np.load(fitted / "r.npy")})[0]
    np.testing.assert_allclose(found.sum((1, 2, 3)), logits[:, 1] - base[:, 1].mean(), atol=1e-4)


def test_a_file_that_differs_fails(selkit, fitted, models, monkeypatch):
    """Verification sees a threshold that was moved after the file was written."""
    from selkit.bundle import Bundle
    from selkit.scores import UncertaintyScore

    own = Bundle.verify

    def verify(self, x, **options):
        moved = UncertaintyScore.load(fitted / "s.safetensors")
        moved.threshold = moved.threshold * 0.5
        return own(self, x, score=moved, **options)

    monkeypatch.setattr(Bundle, "verify", verify)
    ended = selkit("bundle", models["classifier"], "--score", fitted / "s.safetensors", "-o",
                   fitted / "b.onnx", "--verify", fitted / "new.npy", "--chunk", "8", "--json")  # fmt: skip
    assert ended.code == 4
    assert ended.json["verified"] is False
    (selected,) = [one for one in ended.json["comparisons"] if one["name"] == "selected"]
    assert selected["differ"]
    assert max(selected["differ"]) >= 8  # positions are those among all samples


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ([], "nothing to put into the bundle"),
        (["--embedding", "e"], "--embedding needs --score"),
        (["--target", "1"], "need --explain-references"),
        (["--roi-use-norm"], "options of a region need --roi-threshold"),
        (["--score", "no.safetensors"], "no.safetensors"),
        (["--roi-threshold", "1", "--roi-output-index", "9"], "o_idx is 9"),
        (["--roi-threshold", "1", "--verify", "no.npy"], "no.npy: No such file"),
    ],
)
def test_wrong_options_are_one_line(selkit, models, tmp_path, monkeypatch, more, text):
    monkeypatch.chdir(tmp_path)
    ended = selkit("bundle", models["classifier"], *more, "-o", "b.onnx")
    assert (ended.code, ended.out) == (1, "")
    assert text in ended.complaint
    assert not list(tmp_path.iterdir())


def test_the_model_is_that_of_the_score_and_is_not_overwritten(selkit, fitted, models):
    ended = selkit("bundle", models["average"], "--score", fitted / "s.safetensors", "-o", fitted / "b.onnx")
    assert "is not the model that the score was fitted with" in ended.complaint
    content = models["classifier"].read_bytes()
    model = models["classifier"]
    ended = selkit("bundle", model, "--score", fitted / "s.safetensors", "-o", model)
    assert "is the model itself" in ended.complaint
    assert models["classifier"].read_bytes() == content
