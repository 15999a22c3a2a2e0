"""explain: attributions with a closed form, their sums, broken samples and interrupted runs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from selkit.cli import explain as room
from selkit.cli.tables import read_rows

LINEAR = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[N, 3] x) => (float[N, 2] y)
    <float[3, 2] w = {1, 2, -1, 0, 3, -2}> { y = MatMul(x, w) }"""
WEIGHTS = np.array([[1, 2], [-1, 0], [3, -2]])


@pytest.fixture
def linear(tmp_path):
    """A linear model, references and inputs: the attributions are known."""
    random = np.random.default_rng(0)
    onnx.save(onnx.parser.parse_model(LINEAR), tmp_path / "m.onnx")
    np.save(tmp_path / "r.npy", random.normal(size=(4, 3)).astype(np.float32))
    np.save(tmp_path / "x.npy", random.normal(size=(11, 3)).astype(np.float32))
    return tmp_path


def run(selkit, folder, *more):
    return selkit("explain", folder / "m.onnx", folder / "x.npy", "--references", folder / "r.npy",
                  "-o", folder / "a.npy", *more)  # fmt: skip


def expected(folder, target: int) -> np.ndarray:
    x, references = np.load(folder / "x.npy"), np.load(folder / "r.npy")
    return (x - references.mean(0)) * WEIGHTS[:, target]


@pytest.mark.parametrize(
    ("method", "chunk"),
    [("deepshap", 1), ("deepshap", 4), ("deepshap", 100), ("permutation", 6), ("integrated_gradients", 6)],
)
def test_attributions_of_a_linear_model(selkit, linear, chunk, method):
    if method == "permutation":
        pytest.importorskip("shap")
    ended = run(selkit, linear, "--target", "1", "--chunk", chunk, "--method", method, "--json")
    assert ended.code == 0, ended.err
    np.testing.assert_allclose(np.load(linear / "a.npy"), expected(linear, 1), atol=1e-5)
    assert (ended.json["explained"], ended.json["failed"]) == (11, 0)
    assert ended.json["largest_relative_error"] < 1e-4


def test_several_targets_and_the_table(selkit, linear):
    assert run(selkit, linear, "--target", "0,1", "--chunk", "4", "--table", linear / "t.csv").code == 0
    found = np.load(linear / "a.npy")
    for place in (0, 1):
        np.testing.assert_allclose(found[place], expected(linear, place), atol=1e-5)
    rows = read_rows(linear / "t.csv")
    assert [(row["index"], row["target"]) for row in rows] == [(k, t) for k in range(11) for t in (0, 1)]
    outputs = np.load(linear / "x.npy") @ WEIGHTS
    np.testing.assert_allclose([row["output"] for row in rows], outputs.reshape(-1), rtol=1e-4, atol=1e-5)
    sums = np.moveaxis(found, 0, 1).reshape(22, 3).sum(1)
    np.testing.assert_allclose([row["positive"] + row["negative"] for row in rows], sums, atol=1e-5)


def test_the_largest_output_is_the_default(selkit, models, tmp_path):
    random = np.random.default_rng(1)
    np.save(tmp_path / "x.npy", random.normal(size=(7, 1, 6, 6)).astype(np.float32))
    np.save(tmp_path / "r.npy", random.normal(size=(30, 1, 6, 6)).astype(np.float32))
    ended = selkit("explain", models["classifier"], tmp_path / "x.npy", "--references", tmp_path / "r.npy",
                   "--output-name", "logits", "--summarize", "3", "-o", tmp_path / "a.npy",
                   "--table", tmp_path / "t.jsonl", "--fail-above-error", "1e-3")  # fmt: skip
    assert ended.code == 0
    x = np.load(tmp_path / "x.npy")
    logits = ort.InferenceSession(models["classifier"]).run(["logits"], {"x": x})[0]
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [row["target"] for row in rows] == logits.argmax(1).tolist()
    differences = logits.max(1) - [row["base_value"] for row in rows]
    np.testing.assert_allclose(np.load(tmp_path / "a.npy").sum((1, 2, 3)), differences, atol=1e-4)


def test_a_sum_that_is_missed_fails_where_that_was_asked_for(selkit, linear):
    ended = run(selkit, linear, "--fail-above-error", "-1")
    assert ended.code == 4
    assert "attributions miss their sum by" in ended.complaint


def test_broken_samples_have_nan_and_a_reason(selkit, linear):
    x = np.load(linear / "x.npy")
    x[[2, 9]] = np.nan
    np.save(linear / "x.npy", x)
    ended = run(selkit, linear, "--target", "0", "--chunk", "3", "--table", linear / "t.jsonl", "--json")
    assert (ended.code, ended.json["failed"]) == (3, 2)
    found = np.load(linear / "a.npy")
    assert np.isnan(found).all(1).nonzero()[0].tolist() == [2, 9]
    np.testing.assert_allclose(found, expected(linear, 0), atol=1e-5)
    rows = [json.loads(line) for line in (linear / "t.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows if row["error"] == "it has NaN or infinity"] == [2, 9]


def test_an_interrupted_run_goes_on(selkit, linear, monkeypatch):
    own, calls = room.rows_of, []

    def rows_of(*given):
        calls.append(given[1].start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(*given)

    monkeypatch.setattr(room, "rows_of", rows_of)
    arguments = ["--target", "1", "--chunk", "4"]
    ended = run(selkit, linear, *arguments)
    assert ended.code == 130
    assert not (linear / "a.npy").exists()
    assert "say --restart to forget it" in run(selkit, linear, "--target", "0", "--chunk", "4").complaint
    np.save(linear / "r.npy", np.load(linear / "r.npy") + 1)
    assert "say --restart to forget it" in run(selkit, linear, *arguments).complaint
    np.save(linear / "r.npy", np.load(linear / "r.npy") - 1)
    # float32: what was added is not quite taken away again
    assert "say --restart" in run(selkit, linear, *arguments).complaint
    calls.clear()
    assert run(selkit, linear, *arguments, "--restart").code == 130
    calls[:] = [None] * 3
    assert run(selkit, linear, *arguments).code == 0
    assert calls[3:] == [8]
    np.testing.assert_allclose(np.load(linear / "a.npy"), expected(linear, 1), atol=1e-5)
    assert not list(linear.glob("*.partial*"))


def test_the_exported_file_explains_by_itself(selkit, linear):
    assert run(selkit, linear, "--target", "1", "--export", linear / "e.onnx").code == 0
    session = ort.InferenceSession(linear / "e.onnx")
    found = session.run(["attributions"], {"x": np.load(linear / "x.npy")})[0]
    np.testing.assert_allclose(found, expected(linear, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--target", "7"], "target"),
        (["--output-name", "z"], "z"),
        (["--summarize", "99"], "k "),
        (["--table", "t.txt"], "must end with one of .csv"),
        (["--export", "t.txt"], "must end with one of .onnx"),
        (["--method", "permutation", "--export", "e.onnx"], "needs a graph"),
    ],
)
def test_wrong_options_are_one_line(selkit, linear, monkeypatch, more, text):
    monkeypatch.chdir(linear)
    before = sorted(linear.iterdir())
    ended = run(selkit, linear, *more)
    assert (ended.code, ended.out) == (1, "")
    assert text in ended.complaint
    assert sorted(linear.iterdir()) == before


def test_a_wrong_target_is_a_wrong_command_line(selkit, linear):
    assert "'first' is no target: top, all, 3 or 0,3" in run(selkit, linear, "--target", "first").err


def test_inputs_of_another_shape(selkit, linear):
    np.save(linear / "x.npy", np.zeros((3, 4), np.float32))
    ended = run(selkit, linear)
    assert ended.code == 1
    assert "shape" in ended.complaint
