"""A bundle where neither selkit nor torch is: with onnxruntime and NumPy only, and in JavaScript."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import selkit
from selkit.explain.explainer import Explainer
from selkit.inference import Abs, BackMeanDiff, GaussianFilter
from selkit.scores import (
    EnergyScore,
    EntropyScore,
    EuclideanClassWiseScore,
    MahalanobisScore,
    PCAScore,
    TensorPCA,
)

WEB = (
    "1.22.0"  # of onnxruntime-web; onnxruntime-node fetches its binaries from elsewhere when it is installed
)
INSTALL_SECONDS = 240


@pytest.fixture(scope="module")
def scores(fit_on, calibrate_on):
    """One score of every kind of node that bundles use."""
    fitted = [
        score.fit(X=fit_on.embedding, y=fit_on.labels, Y=calibrate_on.embedding, y_cal=calibrate_on.labels)
        for score in (
            MahalanobisScore(3, "median"),
            PCAScore(TensorPCA(3, gamma=0.5, M=32)),
            EuclideanClassWiseScore(2, aggregate="mean"),
        )
    ]
    fitted += [kind.fit(Y=calibrate_on.logits) for kind in (EnergyScore(temperature=2.0), EntropyScore())]
    fitted += [EnergyScore(task="multilabel").fit(Y=calibrate_on.logits)]
    return [score.calibrate(coverage=0.8) for score in fitted]


@pytest.fixture
def files(scores, network, judge, tmp_path):
    """Bundles with regions, one with an explanation, the inputs, and what Python says of each."""
    np.save(tmp_path / "x.npy", judge.images[:7])
    roi = BackMeanDiff(threshold=1.0, o_idx=1, post_process=[Abs(), GaussianFilter(3)])
    model = mapped(network)
    for number, score in enumerate(scores):
        options = {} if score.feature == "logits" else {"embedding": "embedding"}
        if number == len(scores) - 1:
            options["explainer"] = Explainer(model, judge.images[7:10])
        bundle = selkit.export_bundle(
            model, score=score, roi=roi, path=tmp_path / f"{number}.onnx", **options
        )
        assert bundle.verify(judge.images[:7]).ok
        found = bundle.run(judge.images[:7])
        assert found["roi"].any()
        np.savez(tmp_path / f"{number}.npz", **found)
    return tmp_path


def mapped(network):
    """The network with a second output, the mean of its feature map."""
    from onnx import TensorProto, helper

    model = type(network)()
    model.CopyFrom(network)
    model.graph.node.append(helper.make_node("ReduceMean", ["map"], ["heat"], axes=[1], keepdims=1))
    model.graph.output.append(helper.make_tensor_value_info("heat", TensorProto.FLOAT, ("N", 1, 8, 8)))
    return model


PLAIN = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "selkit", "onnx", "scipy", "sklearn", "lightning"):
            raise ImportError(f"{name} is not in this environment")

sys.meta_path.insert(0, Refuse())
import numpy as np
import onnxruntime as ort

folder, count = sys.argv[1], int(sys.argv[2])
x = np.load(f"{folder}/x.npy")
for number in range(count):
    session = ort.InferenceSession(f"{folder}/{number}.onnx")
    names = [output.name for output in session.get_outputs()]
    expected = np.load(f"{folder}/{number}.npz")
    for batch in (slice(0, 1), slice(0, 7)):
        found = dict(zip(names, session.run(None, {"x": x[batch]})))
        for name in names:
            wanted = expected[name][batch]
            assert found[name].shape == wanted.shape, (name, found[name].shape)
            if wanted.dtype == bool:
                assert (found[name] == wanted).all(), name
            else:
                assert np.allclose(found[name], wanted, rtol=1e-5, atol=1e-6), name
    none = session.run(["selected"], {"x": x, "threshold": np.full_like(THRESHOLD(session), -np.inf)})[0]
    assert not none.any()
print("agree", sorted({module.split(".")[0] for module in sys.modules} & {"torch", "selkit", "onnx"}))
""".replace("THRESHOLD(session)", "np.zeros(session.get_overridable_initializers()[0].shape, np.float32)")


def test_onnxruntime_and_numpy_are_enough(files, scores):
    command = [sys.executable, "-c", PLAIN, str(files), str(len(scores))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "agree []"


def test_the_hook_of_this_test_refuses_what_it_should():
    code = PLAIN.split("import numpy")[0] + "import selkit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "selkit is not in this environment" in done.stderr


@pytest.fixture(scope="module")
def node_modules(request) -> Path:
    """onnxruntime-web, installed once and kept in pytest's cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = Path(str(request.config.cache.mkdir(f"onnxruntime-web-{WEB}")))
    if not (folder / "node_modules" / "onnxruntime-web").is_dir():
        (folder / "package.json").write_text('{"private": true}')
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"onnxruntime-web@{WEB}"]
        try:
            done = subprocess.run(
                install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install onnxruntime-web in {INSTALL_SECONDS} seconds")
        if done.returncode:
            pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip()[-200:]}")
    return folder


SCRIPT = """
import fs from 'fs';
import * as ort from 'onnxruntime-web';

ort.env.logLevel = 'fatal';
ort.env.wasm.numThreads = 1;
const {files, x, side, threshold} = JSON.parse(fs.readFileSync(process.argv[2]));
const results = [];
for (const file of files) {
  const session = await ort.InferenceSession.create(fs.readFileSync(file));
  const own = [];
  for (const rows of [1, 7]) {
    const values = Float32Array.from(x.slice(0, rows * side * side));
    const feeds = {x: new ort.Tensor('float32', values, [rows, 1, side, side])};
    if (session.inputNames.includes('threshold')) {
      feeds.threshold = new ort.Tensor('float32', Float32Array.from([threshold]), []);
    }
    const found = await session.run(feeds);
    const plain = ([name, tensor]) => [name, Array.from(tensor.data)];
    own.push(Object.fromEntries(Object.entries(found).map(plain)));
  }
  results.push(own);
}
fs.writeFileSync(process.argv[3], JSON.stringify(results));
"""


def in_javascript(node_modules, folder, names, x, threshold=0.0):
    script = node_modules / "run.mjs"  # beside node_modules, where imports are looked for
    script.write_text(SCRIPT)
    given = {"files": [str(name) for name in names], "x": x.ravel().tolist(), "side": x.shape[-1]}
    (folder / "given.json").write_text(json.dumps({**given, "threshold": threshold}))
    command = ["node", str(script), str(folder / "given.json"), str(folder / "found.json")]
    environment = {**os.environ, "NODE_OPTIONS": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=node_modules, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "found.json").read_text())


def test_javascript_decides_the_same(files, scores, node_modules):
    x = np.load(files / "x.npy")
    names = [files / f"{number}.onnx" for number in range(len(scores))]
    for number, runs in enumerate(in_javascript(node_modules, files, names, x)):
        expected = np.load(files / f"{number}.npz")
        for rows, found in zip((1, 7), runs, strict=True):
            assert sorted(found) == sorted(expected.files)
            for name, values in found.items():
                wanted = expected[name][:rows].ravel()
                if wanted.dtype == bool:
                    assert np.array_equal(np.asarray(values, dtype=bool), wanted), (number, name)
                else:
                    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


def test_the_threshold_moves_in_javascript_where_it_is_required(files, scores, network, judge, node_modules):
    score, path = scores[0], files / "required.onnx"
    bundle = selkit.export_bundle(
        network, score=score, path=path, embedding="embedding", threshold_input="required"
    )
    x = np.load(files / "x.npy")
    values = bundle.run(x)["score"]
    limit = float(np.median(values))
    ((_, found),) = in_javascript(node_modules, files, [path], x, threshold=limit)
    assert np.array_equal(np.asarray(found["selected"], dtype=bool), values <= np.float32(limit))
    assert 0 < sum(found["selected"]) < 7
