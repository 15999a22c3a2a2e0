"""fit and select: the library's own scores and decisions, kept across interrupts, with broken samples."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from selkit import scores
from selkit.cli.fit import SCORES
from selkit.scores import EuclideanScore, UncertaintyScore

from .conftest import stop_after  # isort: skip


@pytest.fixture
def fitted(selkit, data, tmp_path):
    path = tmp_path / "score.safetensors"
    ended = selkit(
        "fit", data["train"], "--calibration", data["calibration"], "--score", "euclidean",
        "-p", "k=3", "-p", "stat=mean", "--coverage", "0.8", "-o", path,
    )  # fmt: skip
    assert ended.code == 0
    return path


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def distances(data, k: int = 3) -> dict[str, np.ndarray]:
    """The mean distance to the k nearest references, by scipy."""
    train = np.load(data["train"])
    return {
        name: np.sort(cdist(np.load(data[name]), train), axis=1)[:, :k].mean(1)
        for name in ("calibration", "new")
    }


def test_scores_and_decisions_are_those_of_the_formula(selkit, fitted, data, tmp_path):
    ended = selkit("select", fitted, data["new"], "-o", tmp_path / "d.csv", "--json")
    known = distances(data)
    threshold = np.sort(known["calibration"])[int(np.ceil(41 * 0.8)) - 1]  # split conformal, M = 40
    rows = read_csv(tmp_path / "d.csv")
    np.testing.assert_allclose([float(row["score"]) for row in rows], known["new"], rtol=1e-5)
    selected = known["new"] <= threshold * (1 + 1e-9)
    assert [row["selected"] == "true" for row in rows] == selected.tolist()
    assert [int(row["index"]) for row in rows] == list(range(25))
    assert (ended.code, ended.json["selected"], ended.json["samples"]) == (0, selected.sum(), 25)
    assert ended.json["coverage"] == pytest.approx(selected.mean())
    assert ended.json["threshold"] == pytest.approx([threshold], rel=1e-5)


def test_the_file_is_that_of_the_library(fitted, data):
    score = UncertaintyScore.load(fitted)
    same = EuclideanScore(k=3, stat="mean").fit(X=np.load(data["train"]), Y=np.load(data["calibration"]))
    same.calibrate(coverage=0.8)
    assert (score.k, score.stat) == (3, "mean")
    query = torch.from_numpy(np.load(data["new"]))
    assert torch.equal(score.score(query), same.score(query))
    assert torch.equal(score.threshold, same.threshold)
    side = json.loads(fitted.with_suffix(".json").read_text())
    assert side["guarantee"] == "accepts a new sample with probability at least 0.8 (split conformal)"
    assert (side["score"], side["references"], side["calibration"]) == ("EuclideanScore", 60, 40)


def test_every_score_has_a_name_or_a_reason():
    left = {"PyODScore", "ViMScore", "ClassWiseScore", "UncertaintyScore", "TensorPCA", "KNNScore"}
    left |= {"LogitScore", "EnsembleLogitScore"}
    assert set(scores.__all__) - set(SCORES.values()) == left


@pytest.mark.parametrize("name", SCORES)
def test_every_score_fits_and_selects_as_in_python(selkit, tmp_path, name):
    random = np.random.default_rng(3)
    ensemble = name in ("mutual-information", "predictive-variance")
    shape = (3, 4) if ensemble else (4,)
    for part, size in (("train", 40), ("cal", 30), ("new", 10)):
        np.save(tmp_path / f"{part}.npy", random.normal(size=(size, *shape)))
    labels = np.arange(40) % 2
    np.save(tmp_path / "y.npy", labels)
    np.save(tmp_path / "y_cal.npy", labels[:30])
    given: dict[str, object] = {}
    extra: list[object] = ["-p", "pca=2"] if name == "pca" else []
    if "classwise" in name or name in ("gaussian", "relative-mahalanobis"):
        extra = ["--labels", tmp_path / "y.npy", "--calibration-labels", tmp_path / "y_cal.npy"]
        given = {"y": labels, "y_cal": labels[:30]}
    path = tmp_path / "s.safetensors"
    ended = selkit("fit", tmp_path / "train.npy", "--calibration", tmp_path / "cal.npy", "--score", name,
                   *extra, "--quantile", "0.7", "-o", path)  # fmt: skip
    assert ended.code == 0, ended.err
    assert selkit("select", path, tmp_path / "new.npy", "-o", tmp_path / "d.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    arrays = {part: np.load(tmp_path / f"{part}.npy") for part in ("train", "cal", "new")}
    same = getattr(scores, SCORES[name])(**({"pca": 2} if name == "pca" else {})).fit(
        X=arrays["train"], Y=arrays["cal"], **given
    )
    decision = same.set_threshold(q=0.7).select(arrays["new"])
    assert [row["score"] for row in rows] == decision["score"].double().tolist()
    assert [row["selected"] for row in rows] == decision["selected"].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunk_does_not_matter(selkit, fitted, data, tmp_path, chunk):
    selkit("select", fitted, data["new"], "-o", tmp_path / "d.csv", "--chunk", chunk, "--conformal-p-values")
    rows = read_csv(tmp_path / "d.csv")
    known = distances(data)
    counts = (known["calibration"][None] >= known["new"][:, None] * (1 - 1e-9)).sum(1)
    np.testing.assert_allclose([float(row["conformal_p_value"]) for row in rows], (1 + counts) / 41)
    np.testing.assert_allclose([float(row["score"]) for row in rows], known["new"], rtol=1e-5)


def test_formats_say_the_same(selkit, fitted, data, tmp_path):
    printed = selkit("select", fitted, data["new"], "--quiet")
    assert printed.err == ""
    for kind in ("csv", "json", "jsonl"):
        assert selkit("select", fitted, data["new"], "-o", tmp_path / f"d.{kind}").code == 0
    assert (tmp_path / "d.csv").read_text() == printed.out
    rows = json.loads((tmp_path / "d.json").read_text())
    assert rows == [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert rows == selkit("select", fitted, data["new"], "--json").json["rows"]
    assert [row["score"] for row in rows] == [float(row["score"]) for row in read_csv(tmp_path / "d.csv")]
    assert not list(tmp_path.glob("*.partial"))


def test_broken_samples_are_not_selected_and_have_a_reason(selkit, fitted, data, tmp_path):
    values = np.load(data["new"])
    values[[3, 20]] = [[np.nan], [np.inf]]
    np.save(data["new"], values)
    ended = selkit("select", fitted, data["new"], "-o", tmp_path / "d.csv", "--chunk", "8", "--json")
    assert (ended.code, ended.json["failed"]) == (3, 2)
    rows = read_csv(tmp_path / "d.csv")
    assert [k for k, row in enumerate(rows) if row["error"]] == [3, 20]
    assert rows[3] == {
        "index": "3",
        "name": "",
        "score": "",
        "selected": "false",
        "error": "it has NaN or infinity",
    }
    whole = distances({**data})["new"]
    kept = [k for k in range(25) if k not in (3, 20)]
    np.testing.assert_allclose([float(rows[k]["score"]) for k in kept], whole[kept], rtol=1e-5)


def test_every_sample_may_be_broken(selkit, fitted, data, tmp_path):
    np.save(data["new"], np.full((4, 5), np.nan, np.float32))
    ended = selkit("select", fitted, data["new"], "--json")
    assert (ended.code, ended.json["failed"], ended.json["coverage"]) == (3, 4, 0.0)


def test_coverage_can_fail_a_pipeline(selkit, fitted, data):
    assert selkit("select", fitted, data["new"], "--fail-below-coverage", "0.1").code == 0
    ended = selkit("select", fitted, data["new"], "--fail-below-coverage", "1", "--quiet", "--json")
    assert ended.code == 4
    assert ended.complaint.endswith("below 1")
    assert ended.json["coverage"] < 1  # standard output is JSON alone


def test_another_threshold(selkit, fitted, data):
    rows = selkit("select", fitted, data["new"], "--threshold", "1.5", "--json").json["rows"]
    assert [row["selected"] for row in rows] == [row["score"] <= 1.5 for row in rows]
    assert 0 < sum(row["selected"] for row in rows) < 25


def test_risk_and_groups(selkit, data, tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "loss.npy", (random.random(40) < 0.05).astype(float))
    common = ["fit", data["train"], "--calibration", data["calibration"], "--score", "euclidean"]
    ended = selkit(
        *common,
        "--risk",
        "0.3",
        "--losses",
        tmp_path / "loss.npy",
        "-o",
        tmp_path / "r.safetensors",
        "--json",
    )
    assert ended.code == 0
    same = EuclideanScore().fit(X=np.load(data["train"]), Y=np.load(data["calibration"]))
    same.calibrate(risk=0.3, losses=np.load(tmp_path / "loss.npy"))
    assert [float(value) for value in ended.json["threshold"]] == [float(same.threshold)]
    np.savetxt(tmp_path / "g.txt", np.arange(40) % 2, fmt="%d")
    np.savetxt(tmp_path / "new.txt", np.arange(25) % 2, fmt="%d")
    path = tmp_path / "g.safetensors"
    assert selkit(*common, "--coverage", "0.8", "--groups", tmp_path / "g.txt", "-o", path).code == 0
    rows = selkit("select", path, data["new"], "--groups", tmp_path / "new.txt", "--json").json["rows"]
    same.calibrate(coverage=0.8, groups=np.arange(40) % 2)
    decision = same.select(np.load(data["new"]), groups=np.arange(25) % 2)
    assert [row["selected"] for row in rows] == decision["selected"].tolist()
    ended = selkit("select", path, data["new"])
    assert ended.code == 1
    assert "group" in ended.complaint


@pytest.fixture
def pictures(tmp_path):
    """Three folders of small images."""
    random = np.random.default_rng(5)
    for name, size in (("train", 30), ("calibration", 20), ("new", 9)):
        (tmp_path / name).mkdir()
        for k in range(size):
            pixels = random.integers(0, 256, size=(6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k:02d}.png")
    return tmp_path


def fit_pictures(selkit, folder, models, *more):
    return selkit(
        "fit", folder / "train", "--calibration", folder / "calibration", "--model", models["classifier"],
        "--layer", "embedding", "--score", "euclidean", "--coverage", "0.8", "-o", folder / "s.safetensors",
        *more,
    )  # fmt: skip


def test_images_through_a_model(selkit, pictures, models):
    assert fit_pictures(selkit, pictures, models, "--mean", "0.5", "--std", "0.25", "--chunk", "7").code == 0
    # how images are read is remembered
    ended = selkit(
        "select", pictures / "s.safetensors", pictures / "new", "--model", models["classifier"], "--json"
    )
    session = ort.InferenceSession(models["classifier"])

    def embed(name: str) -> np.ndarray:
        files = sorted((pictures / name).iterdir())
        pixels = np.stack([np.asarray(Image.open(file), np.float32)[None] / 255 for file in files])
        return session.run(["embedding"], {"x": (pixels - 0.5) / 0.25})[0]

    expected = cdist(embed("new"), embed("train")).min(1)
    rows = ended.json["rows"]
    np.testing.assert_allclose([row["score"] for row in rows], expected, rtol=1e-4)
    assert [row["name"] for row in rows] == [f"{k:02d}.png" for k in range(9)]


def test_a_score_knows_its_model_and_its_images(selkit, pictures, models, tmp_path):
    fit_pictures(selkit, pictures, models, "--color", "gray")
    score, new, model = pictures / "s.safetensors", pictures / "new", models["classifier"]
    assert "say which: --model" in selkit("select", score, new).complaint
    other = tmp_path / "other.onnx"
    other.write_bytes(models["average"].read_bytes())
    assert (
        "is not the model that the score was fitted with"
        in selkit("select", score, new, "--model", other).complaint
    )
    ended = selkit("select", score, new, "--model", model, "--scale", "none")
    assert "--scale is none, but the score was fitted on images read with unit" in ended.complaint
    (new / "03.png").write_bytes(b"broken")
    ended = selkit("select", score, new, "--model", model, "--json")
    assert ended.code == 3
    assert [row["name"] for row in ended.json["rows"] if row["error"]] == ["03.png"]
    (pictures / "train" / "03.png").write_bytes(b"broken")
    ended = fit_pictures(selkit, pictures, models)
    assert ended.code == 1
    assert "03.png is not a readable image" in ended.complaint


def test_a_score_saved_from_python(selkit, data, tmp_path):
    path = tmp_path / "own.safetensors"
    EuclideanScore(k=2).fit(X=np.load(data["train"])).save(path)
    assert "own.safetensors has no threshold; say" in selkit("select", path, data["new"]).complaint
    assert selkit("select", path, data["new"], "--threshold", "1").code == 0
    ended = selkit("select", path, data["new"], "--threshold", "1", "--conformal-p-values")
    assert "needs a score that was fitted with --calibration" in ended.complaint


def test_a_sidecar_of_another_file_is_refused(selkit, fitted, data):
    fitted.with_suffix(".json").write_text("{}")
    assert "does not describe a score" in selkit("select", fitted, data["new"]).complaint
    score = UncertaintyScore.load(fitted).set_threshold(q=0.1)
    selkit("fit", data["train"], "--score", "cosine", "--quantile", "0.5", "-o", fitted)
    score.save(fitted)
    assert "describes another file" in selkit("select", fitted, data["new"]).complaint


def wrong(tmp_path, data) -> dict[str, tuple[list[object], str]]:
    """Command lines with a bad input, and what is said about it."""
    fit = ["fit", data["train"], "--score", "euclidean", "-o", tmp_path / "s.safetensors"]
    (tmp_path / "bad.npy").write_text("no array")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "narrow.npy", np.zeros((9, 3), np.float32))
    np.save(tmp_path / "nan.npy", np.full((9, 5), np.nan, np.float32))
    (tmp_path / "no.onnx").write_text("no model")
    missing, nan, narrow = tmp_path / "missing.npy", tmp_path / "nan.npy", tmp_path / "narrow.npy"
    more = ["--calibration", data["calibration"], "--coverage", "0.9"]
    return {
        "missing": (["fit", missing, *fit[2:], "--quantile", "1"], "missing.npy: No such file or directory"),
        "no array": (["fit", tmp_path / "bad.npy", *fit[2:], "--quantile", "1"], "is not an array in .npy"),
        "pickle": (["fit", tmp_path / "pickle.npy", *fit[2:], "--quantile", "1"], "which could run code"),
        "nan": (["fit", nan, *fit[2:], "--quantile", "1"], "nan.npy has NaN or infinity in 9 of 9 samples"),
        "width": ([*fit, "--calibration", narrow, "--coverage", "0.5"], "X and Y must have the same width"),
        "few": ([*fit, "--calibration", data["calibration"], "--coverage", "0.999"], "needs at least 999"),
        "no calibration": ([*fit, "--coverage", "0.9"], "--coverage needs --calibration"),
        "parameter": ([*fit, *more, "-p", "j=1"], "has no parameter 'j'; it has: k, stat, pca, index"),
        "value": ([*fit, *more, "-p", "k=0"], "k must be"),
        "losses": ([*fit, *more[:2], "--risk", "0.1"], "--risk and --losses belong together"),
        "layer": ([*fit, *more, "--layer", "a"], "--layer and --pool need --model"),
        "no model": ([*fit, *more, "--model", tmp_path / "no.onnx"], "no.onnx is not an ONNX model"),
        "suffix": ([*fit[:-1], tmp_path / "s.bin", *more], "the name must end with one of .safetensors"),
        "folder": ([*fit[:-1], tmp_path / "no" / "s.safetensors", *more], "no: No such folder"),
        "score": (["select", data["new"], data["new"]], "is not a readable safetensors file"),
        "no score": (["select", tmp_path / "no.safetensors", data["new"]], "no.safetensors"),
    }  # fmt: skip


WRONG = ["missing", "no array", "pickle", "nan", "width", "few", "no calibration", "parameter", "value",
         "losses", "layer", "no model", "suffix", "folder", "score", "no score"]  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(selkit, data, tmp_path, case):
    arguments, text = wrong(tmp_path, data)[case]
    before = sorted(tmp_path.iterdir())
    ended = selkit(*arguments)
    assert (ended.code, ended.out) == (1, "")
    assert text in ended.complaint
    assert sorted(tmp_path.iterdir()) == before


def test_queries_of_another_width(selkit, fitted, tmp_path):
    np.save(tmp_path / "narrow.npy", np.zeros((9, 3), np.float32))
    ended = selkit("select", fitted, tmp_path / "narrow.npy")
    assert ended.code == 1
    assert "query has 3 features, but EuclideanScore was fitted on 5" in ended.complaint


def test_images_need_a_model(selkit, pictures):
    ended = selkit(
        "fit", pictures / "train", "--score", "euclidean", "--quantile", "1", "-o", pictures / "s.safetensors"
    )
    assert "a score judges embeddings or logits: say which model" in ended.complaint


def test_an_unwritable_output_is_found_before_the_work(selkit, fitted, data, tmp_path):
    (tmp_path / "d.csv").mkdir()
    assert "Is a directory" in selkit("select", fitted, data["new"], "-o", tmp_path / "d.csv").complaint
    assert (
        "must end with one of .csv"
        in selkit("select", fitted, data["new"], "-o", tmp_path / "d.txt").complaint
    )


@pytest.fixture
def many(tmp_path):
    path = tmp_path / "many.npy"
    np.save(path, np.random.default_rng(7).normal(size=(40_000, 5)).astype(np.float32))
    return path


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_run_goes_on(selkit, fitted, data, many, tmp_path, number, code):
    out, partial = tmp_path / "d.csv", tmp_path / "d.csv.partial"
    arguments = ["select", fitted, many, "-o", out, "--chunk", "100"]
    ended = stop_after(10, partial, number, *arguments)
    assert ended.code == code
    assert not out.exists()
    done = (partial.read_bytes().count(b"\n") - 1) * 100
    assert 0 < done < 40_000
    if number != signal.SIGKILL:
        assert f"{done} of 40000 samples are kept in {partial}: run it again to go on" in ended.complaint
    again = selkit(*arguments)
    assert again.code == 0
    assert f"continuing after {done} of 40000 samples" in again.err
    assert not partial.exists()
    rows = read_csv(out)
    assert [int(row["index"]) for row in rows] == list(range(40_000))
    found = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(found, distances({**data, "new": many})["new"], rtol=1e-5)


def test_an_interrupted_run_goes_on_with_the_same_samples_only(selkit, fitted, data, tmp_path, monkeypatch):
    from selkit.cli.select import Judge

    out, partial = tmp_path / "d.csv", tmp_path / "d.csv.partial"
    own, calls = Judge.rows, []

    def rows(self, chunk, samples):
        calls.append(chunk.start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(self, chunk, samples)

    monkeypatch.setattr(Judge, "rows", rows)
    arguments = ["select", fitted, data["new"], "-o", out, "--chunk", "5"]
    ended = selkit(*arguments)
    assert ended.code == 130
    assert "interrupted; 10 of 25 samples are kept" in ended.complaint
    with partial.open("ab") as file:
        file.write(b'{"start": 10, "ma')  # as if killed in the middle of a line
    assert (
        "of an interrupted run with another score, model or other options"
        in selkit(*arguments[:-1], "6").complaint
    )
    values = np.load(data["new"])
    changed = values.copy()
    changed[7] += 1
    np.save(data["new"], changed)
    assert "samples from 5 on are not those of the interrupted run" in selkit(*arguments).complaint
    np.save(data["new"], values)
    calls[:] = [None] * 3
    assert selkit(*arguments).code == 0
    assert calls[3:] == [10, 15, 20]
    np.testing.assert_allclose(
        [float(row["score"]) for row in read_csv(out)], distances(data)["new"], rtol=1e-5
    )


def test_memory_does_not_grow_with_the_samples(selkit, fitted, tmp_path):
    """What Python allocates; the array is mapped from its file."""

    def peak(size: int) -> int:
        np.save(tmp_path / "x.npy", np.zeros((size, 5), np.float32))
        tracemalloc.start()
        assert (
            selkit("select", fitted, tmp_path / "x.npy", "-o", tmp_path / "d.csv", "--chunk", "500").code == 0
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(500)  # imports and caches
    few, many = peak(2_000), peak(20_000)
    # 18,000 more rows as dictionaries would be some 5 MB
    assert many - few < 5e5


def test_restart_forgets(selkit, fitted, data, tmp_path):
    partial = tmp_path / "d.csv.partial"
    partial.write_text("nothing of ours\n")
    arguments = ["select", fitted, data["new"], "-o", tmp_path / "d.csv"]
    assert "is not JSON" in selkit(*arguments).complaint
    assert partial.read_text() == "nothing of ours\n"
    assert selkit(*arguments, "--restart").code == 0


@pytest.mark.parametrize("images", [3, "a", [1], True, {"resize": "a"}, {"mean": [None]}, {"other": 1}])
def test_a_sidecar_that_says_nonsense_of_images(selkit, fitted, data, images):
    path = fitted.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": images}))
    ended = selkit("select", fitted, data["new"])
    assert ended.code == 1
    assert "does not say how images were read" in ended.complaint


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_folder_is_no_score(selkit, data, name):
    ended = selkit("select", name, data["new"])
    assert ended.code == 1
    assert "fault of selkit" not in ended.complaint


def test_a_null_character_is_a_wrong_command_line(selkit, data):
    assert selkit("select", "a\0b", data["new"]).code == 2


def test_a_full_disk_names_the_file(selkit, fitted, data, tmp_path):
    """The size that a file may have is limited; what was done before is kept, and the run goes on."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); "
        "from selkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["select", str(fitted), str(data["new"]), "-o", str(tmp_path / "full.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "full.csv" in done.stderr
    assert not (tmp_path / "full.csv").exists()
    assert selkit(*arguments).code == 0
