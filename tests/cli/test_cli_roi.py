"""test: the library's own p-values, adjusted, with broken images, kept across interrupts."""

from __future__ import annotations

import csv
import json
import signal

import numpy as np
import onnx
import pytest
from scipy.stats import false_discovery_control

import selkit as package
from selkit.inference import Abs, GaussianFilter, InputDiff, TopK

from .conftest import stop_after  # isort: skip


@pytest.fixture
def images(tmp_path):
    values = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
    values[:4, :, 2:5, 2:5] += 3
    np.save(tmp_path / "images.npy", values)
    return tmp_path / "images.npy"


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) if row[name] not in ("", None) else np.nan for row in rows])


def test_p_values_are_those_of_the_library_and_adjusted_by_scipy(selkit, models, images, tmp_path):
    out = tmp_path / "t.csv"
    more = ["--threshold", "0.4", "--var", "1", "--alpha", "0.65", "-o", out, "--json"]
    ended = selkit("test", models["average"], images, *more)
    assert ended.code == 0
    test = package.load(models["average"], package.BackMeanDiff(threshold=0.4), var=1.0)
    expected = [test.inference(image) for image in np.load(images)]
    rows = read_csv(out)
    for name in ("p_value", "inf_p", "sup_p", "stat", "scale"):
        np.testing.assert_array_equal(column(rows, name), [getattr(result, name) for result in expected])
    np.testing.assert_array_equal(column(rows, "naive_p_value"), [r.naive_p_value() for r in expected])
    np.testing.assert_array_equal(column(rows, "roi_size"), [r.roi.sum() for r in expected])
    adjusted = false_discovery_control([r.p_value for r in expected])
    np.testing.assert_allclose(column(rows, "adjusted_p_value"), adjusted)
    assert [row["rejected"] for row in rows] == ["true" if p <= 0.65 else "false" for p in adjusted]
    assert 12 > ended.json["rejected"] == (adjusted <= 0.65).sum() > 0
    assert (ended.json["tested"], ended.json["failed"], ended.json["exact"]) == (12, 0, True)


def test_adjustments_and_levels(selkit, models, images):
    def run(*more: str) -> list[dict]:
        return selkit("test", models["average"], images, "--top", "9", "--var", "1", "--json", *more).json[
            "rows"
        ]

    p = column(run(), "p_value")
    np.testing.assert_array_equal(column(run("--adjust", "none"), "adjusted_p_value"), p)
    np.testing.assert_allclose(
        column(run("--adjust", "bonferroni"), "adjusted_p_value"), np.minimum(12 * p, 1)
    )
    np.testing.assert_allclose(
        column(run("--adjust", "by"), "adjusted_p_value"), false_discovery_control(p, method="by")
    )
    rows = run("--adjust", "none", "--alpha", "0.5")
    assert [row["rejected"] for row in rows] == (p <= 0.5).tolist()
    decided = run("--mode", "decision", "--alpha", "0.5")
    assert [row["rejected"] for row in decided] == (p <= 0.5).tolist()
    assert all(row["sup_p"] <= 0.5 or row["inf_p"] > 0.5 for row in decided)
    greater = column(run("--alternative", "greater"), "p_value")
    assert np.abs(greater - p).max() > 0.1


def test_hypotheses_and_steps(selkit, models, images, tmp_path):
    arrays = np.load(images)
    common = ["test", models["average"], images, "--var", "1", "--json", "--adjust", "none"]
    cases = {
        ("--threshold", "0.5", "--use-norm"): package.BackMeanDiff(threshold=0.5, use_norm=True),
        ("--threshold", "1", "--post", "input-diff", "--post", "abs"): package.BackMeanDiff(
            threshold=1.0, post_process=[InputDiff(), Abs()]
        ),
        ("--threshold", "0.2", "--post", "gaussian:3:0.8"): package.BackMeanDiff(
            threshold=0.2, post_process=GaussianFilter(3, 0.8)
        ),
        ("--top", "6", "--hypothesis", "neighborhood", "--neighborhood", "2"): package.NeighborMeanDiff(
            region=TopK(6), neighborhood_range=2
        ),
    }
    for more, hypothesis in cases.items():
        test = package.load(models["average"], hypothesis, var=1.0)
        expected = [test.inference(image).p_value for image in arrays[:4]]
        assert column(selkit(*common, *more).json["rows"], "p_value")[:4].tolist() == expected
    one, each = arrays[:1] * 0, np.roll(arrays, 1, axis=0)
    for reference in (one, each):
        np.save(tmp_path / "r.npy", reference)
        rows = selkit(
            *common, "--top", "6", "--hypothesis", "reference", "--reference", tmp_path / "r.npy"
        ).json["rows"]
        test = package.load(models["average"], package.inference.ReferenceMeanDiff(region=TopK(6)), var=1.0)
        pairs = zip(arrays, np.array(np.broadcast_to(reference, arrays.shape)), strict=True)
        assert column(rows, "p_value").tolist() == [test.inference(pair).p_value for pair in pairs]


def test_variance_and_mask(selkit, models, images, tmp_path):
    arrays, random = np.load(images), np.random.default_rng(9)
    noise = random.normal(scale=1.5, size=(50, 1, 8, 8))
    per_pixel = random.uniform(0.5, 2, size=(1, 8, 8))
    mask = np.zeros((8, 8), np.uint8)
    mask[1:6] = 1
    for name, values in (("noise", noise), ("var", per_pixel), ("mask", mask)):
        np.save(tmp_path / f"{name}.npy", values)
    test = package.load(models["average"], package.BackMeanDiff(threshold=0.1))
    cases = {
        ("--var-from", tmp_path / "noise.npy"): {"var": float(np.var(noise, ddof=1))},
        ("--var", tmp_path / "var.npy"): {"var": per_pixel},
        ("--var", "2", "--mask", tmp_path / "mask.npy"): {"var": 2.0, "mask": mask},
    }
    for more, options in cases.items():
        rows = selkit("test", models["average"], images, "--threshold", "0.1", "--json", *more).json["rows"]
        expected = [test.inference(image, **options).p_value for image in arrays]
        np.testing.assert_allclose(column(rows, "p_value"), expected, rtol=1e-10)


def test_regions_are_written(selkit, models, images, tmp_path):
    path = tmp_path / "regions.npy"
    selkit("test", models["average"], images, "--threshold", "0.3", "--var", "1", "--regions", path)
    test = package.load(models["average"], package.BackMeanDiff(threshold=0.3), var=1.0)
    expected = np.stack([np.squeeze(test.select(image).roi) for image in np.load(images)])
    assert expected.any((1, 2)).any()
    np.testing.assert_array_equal(np.load(path), expected)
    assert np.load(path).dtype == np.uint8


def test_an_image_without_a_region_is_a_row_without_p_value(selkit, models, images, tmp_path):
    values = np.load(images)
    values[2] = np.nan
    np.save(images, values)
    ended = selkit("test", models["average"], images, "--threshold", "1.5", "--var", "1", "--regions",
                   tmp_path / "r.npy", "-o", tmp_path / "t.jsonl")  # fmt: skip
    assert ended.code == 3
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows[2]["error_type"] == "InvalidInputError"
    assert "NaN" in rows[2]["error"]
    empty = [row for row in rows if row["error_type"] == "NoHypothesisError"]
    assert empty
    assert all(row["p_value"] is None and row["rejected"] is None for row in [*empty, rows[2]])
    tested = [row["p_value"] for row in rows if row["p_value"] is not None]
    adjusted = [row["adjusted_p_value"] for row in rows if row["p_value"] is not None]
    np.testing.assert_allclose(adjusted, false_discovery_control(tested))  # of those that were tested alone
    assert not np.load(tmp_path / "r.npy")[[row["index"] for row in [*empty, rows[2]]]].any()


def test_packed_images(selkit, models, images, tmp_path):
    np.savez_compressed(tmp_path / "images.npz", x=np.load(images))
    common = ["test", models["average"], "--top", "6", "--var", "1", "--json", "--adjust", "none"]
    one = selkit(*common[:2], images, *common[2:]).json["rows"]
    rows = selkit(*common[:2], tmp_path / "images.npz", *common[2:]).json["rows"]
    assert column(rows, "p_value").tolist() == column(one, "p_value").tolist()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--threshold", "nan"], "threshold is nan; it must be finite"),
        (["--threshold", "1", "--var", "-1"], "--var is -1; a variance is a positive number"),
        (["--threshold", "1", "--var", "no.npy"], "no.npy: No such file or directory"),
        (["--threshold", "1", "--mode", "decision", "--adjust", "bh"], "finds no p-values to adjust"),
        (["--threshold", "1", "--hypothesis", "reference"], "and --reference FILE belong together"),
        (["--threshold", "1", "--output-index", "3"], "o_idx is 3; the model's outputs are 0: y"),
        (["--threshold", "1", "--n-jobs", "0"], "n_jobs is 0"),
        (["--threshold", "1", "--precision", "0"], "precision"),
        (["--threshold", "1", "--mask", "images"], "mask has values other than 0 and 1"),
        (["--threshold", "1", "-o", "t.txt"], "the name must end with one of .csv"),
        (["--threshold", "1", "--regions", "r.csv"], "the name must end with one of .npy"),
        (["--threshold", "1", "-o", "no/t.csv"], "no: No such folder"),
    ],
)
def test_wrong_options_are_one_line(selkit, models, images, tmp_path, monkeypatch, more, text):
    monkeypatch.chdir(tmp_path)
    more = [str(images) if word == "images" else word for word in more]
    variance = [] if "--var" in more else ["--var", "1"]
    before = sorted(tmp_path.iterdir())
    ended = selkit("test", models["average"], images, *more, *variance)
    assert (ended.code, ended.out) == (1, "")
    assert text in ended.complaint
    assert sorted(tmp_path.iterdir()) == before


def test_images_of_another_shape_are_wrong_input_and_not_failures(selkit, models, tmp_path):
    np.save(tmp_path / "i.npy", np.zeros((3, 1, 9, 9)))
    ended = selkit(
        "test",
        models["average"],
        tmp_path / "i.npy",
        "--threshold",
        "1",
        "--var",
        "1",
        "-o",
        tmp_path / "t.csv",
    )
    assert ended.code == 1
    assert "no image could be tested; the first: x has shape (1, 1, 9, 9)" in ended.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["i.npy"]


def test_an_unknown_operator(selkit, images, tmp_path):
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[1, 1, 8, 8] x) => (float[1, 1, 8, 8] y) { z = own.Blur(x) y = Relu(z) }""")
    onnx.save(model, tmp_path / "m.onnx")
    ended = selkit("test", tmp_path / "m.onnx", images, "--threshold", "1", "--var", "1")
    assert ended.code == 1
    assert "Blur (opset 1, domain own): this operator is not supported" in ended.complaint


def test_p_values_given_acceptance(selkit, models, tmp_path):
    """Only accepted images are tested, and their p-values are those of inference(accepted_by=score)."""
    from selkit.inference import Acceptance
    from selkit.scores import UncertaintyScore

    random = np.random.default_rng(4)
    for name, size in (("train", 40), ("cal", 40), ("new", 14)):
        np.save(tmp_path / f"{name}.npy", random.normal(size=(size, 1, 6, 6)).astype(np.float32))
    score, model = tmp_path / "s.safetensors", models["classifier"]
    selkit("fit", tmp_path / "train.npy", "--calibration", tmp_path / "cal.npy", "--score", "euclidean",
           "--model", model, "--layer", "embedding", "--coverage", "0.6", "-o", score)  # fmt: skip
    body = """
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y) {
            y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x) }"""
    onnx.save(onnx.parser.parse_model(body), tmp_path / "map.onnx")
    more = ["--threshold", "0.2", "--var", "1", "--json", "--accepted-by", score]
    ended = selkit("test", tmp_path / "map.onnx", tmp_path / "new.npy", *more, "--score-model", model)
    assert ended.code == 0, ended.err
    rows = ended.json["rows"]
    chosen = selkit("select", score, tmp_path / "new.npy", "--model", model, "--json").json["rows"]
    accepted = [row["selected"] for row in chosen]
    assert 0 < sum(accepted) < 14
    assert [row["p_value"] is not None for row in rows] == accepted
    assert ended.json["not_accepted"] == 14 - sum(accepted)
    assert all(row["given_acceptance"] for row in rows)
    test = package.load(tmp_path / "map.onnx", package.BackMeanDiff(threshold=0.2), var=1.0)
    by = Acceptance(UncertaintyScore.load(score), model=model)
    for image, row in zip(np.load(tmp_path / "new.npy"), rows, strict=True):
        if row["p_value"] is not None:
            assert row["p_value"] == test.inference(image, accepted_by=by).p_value
    ended = selkit("test", tmp_path / "map.onnx", tmp_path / "new.npy", *more)
    assert "is not the model that the score was fitted with" in ended.complaint
    ended = selkit("test", model, tmp_path / "new.npy", *more[:-2], "--embedding", "e")
    assert "--embedding and --score-model need --accepted-by" in ended.complaint


DEEP = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 1, 12, 12] x) => (float[1, 1, 12, 12] y) {
        a = Conv <pads = [2, 2, 2, 2]> (x, w)
        r = Relu(a)
        y = Conv <pads = [2, 2, 2, 2]> (r, v)
    }"""


@pytest.fixture
def slow(tmp_path):
    """A model and images that take some milliseconds each."""
    random = np.random.default_rng(3)
    model = onnx.parser.parse_model(DEEP)
    for name, shape in (("w", (4, 1, 5, 5)), ("v", (1, 4, 5, 5))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        )
    onnx.save(model, tmp_path / "deep.onnx")
    np.save(tmp_path / "many.npy", random.normal(size=(30, 1, 12, 12)))
    return tmp_path / "deep.onnx", tmp_path / "many.npy"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_run_goes_on(selkit, slow, tmp_path, number, code):
    out, partial = tmp_path / "t.csv", tmp_path / "t.csv.partial"
    arguments = ["test", *slow, "--top", "12", "--var", "1", "-o", out]
    ended = stop_after(4, partial, number, *arguments)
    assert ended.code == code
    assert not out.exists()
    lines = partial.read_bytes().splitlines()
    assert 4 <= len(lines) < 30
    if number == signal.SIGINT:
        assert "of 30 images are kept in" in ended.complaint
    kept = {row["index"]: row["seconds"] for row in map(json.loads, lines[1:])}
    again = selkit(*arguments)
    assert again.code == 0
    assert f"continuing the run in {partial}" in again.err
    rows = read_csv(out)
    assert [float(rows[index]["seconds"]) for index in kept] == list(kept.values())  # not computed again
    assert len(rows) == 30
    assert not np.isnan(column(rows, "p_value")).any()
    assert not partial.exists()


HEATMAPS = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 8, 8, 1] x) => (float[1, 4, 4, 2] y)
    <float[2, 1, 3, 3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2}>
    { f = Transpose<perm = [0, 3, 1, 2]>(x)
      c = Conv<pads = [1, 1, 1, 1]>(f, w)
      inner = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
      y = Transpose<perm = [0, 2, 3, 1]>(inner) }"""


def test_small_maps_clean_up_and_axes(selkit, images, tmp_path):
    from selkit.inference import Hysteresis, Otsu, SelectChannel, Threshold, TwoThresholds

    onnx.save(onnx.parser.parse_model(HEATMAPS), tmp_path / "heat.onnx")
    values = np.moveaxis(np.load(images), 1, -1)
    np.save(tmp_path / "last.npy", values)
    small = ["--channel", "1", "--map-resize", "linear"]
    load = {"channel": 1, "resize": "linear"}
    cleaned = Threshold(1.5).close(1.5).remove_small(3).fill_holes()
    cases = [
        (
            [
                "--threshold",
                "1.5",
                "--clean",
                "close:1.5",
                "--clean",
                "remove-small:3",
                "--clean",
                "fill-holes",
            ],
            package.BackMeanDiff(region=cleaned),
        ),
        (["--otsu", "--clean", "largest"], package.BackMeanDiff(region=Otsu().largest_component())),
        (["--hysteresis", "1", "2", "--axes", "NHWC"], package.BackMeanDiff(region=Hysteresis(1, 2))),
        (["--two-thresholds", "1", "2"], package.BackMeanDiff(region=TwoThresholds(1, 2))),
    ]
    for options, hypothesis in cases:
        more = [*options, *small, "--var", "1", "--mode", "decision", "--adjust", "none", "--json"]
        ended = selkit("test", tmp_path / "heat.onnx", tmp_path / "last.npy", *more)
        test = package.load(str(tmp_path / "heat.onnx"), hypothesis, var=1.0, **load)
        expected = [test.inference(image[None], inference_mode="decision").sup_p for image in values[:3]]
        np.testing.assert_allclose(column(ended.json["rows"][:3], "sup_p"), expected)
    more = ["--threshold", "1.5", "--score-map", "inner", "--post", "channel:1", "--post", "resize-nearest"]
    ended = selkit("test", tmp_path / "heat.onnx", tmp_path / "last.npy", *more, "--var", "1", "--json")
    steps = [SelectChannel(1), package.inference.Resize("nearest")]
    inner = package.BackMeanDiff(1.5, score_map="inner", post_process=steps)
    result = package.load(str(tmp_path / "heat.onnx"), inner, var=1.0).inference(values[0][None])
    assert float(ended.json["rows"][0]["p_value"]) == result.p_value


def test_clean_up_that_makes_no_sense(selkit, models, images):
    ended = selkit("test", models["average"], images, "--top", "3", "--clean", "largest", "--var", "1")
    assert ended.code == 1
    assert "--clean needs a threshold" in ended.err
    ended = selkit("test", models["average"], images, "--threshold", "0", "--clean", "shrink", "--var", "1")
    assert ended.code == 2
    assert "remove-small:PIXELS" in ended.err
