"""The task's p-values are conditioned on the acceptance that decided whether they were computed."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pyod.models.knn import KNN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAccuracy

import selkit
from selkit.errors import InvalidTypeError, NotAvailableError
from selkit.inference import Acceptance, TopK
from selkit.scores import (
    EnergyScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    PyODScore,
    RandomScore,
)
from selkit.task import SelectiveInferenceTask

SIDE = 4
REGION = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { y = LeakyRelu(x) }
"""


class Model(LightningModule):
    """A convolution whose channel maxima are the embedding."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GELU() if smooth else nn.ReLU())
        self.head = nn.Linear(3, 2)
        self.test_metrics = BinaryAccuracy()

    def embed(self, x):
        return self.conv(x).amax((2, 3))

    def logits(self, x):
        return self.head(self.embed(x))

    def forward(self, x):
        return self.logits(x).softmax(1)[:, 1]


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def features(model: Model, count: int, seed: int) -> torch.Tensor:
    with torch.no_grad():
        return model.embed(images(count, seed))


def region_test() -> selkit.RoiTest:
    hypothesis = selkit.BackMeanDiff(region=TopK(1))
    return selkit.load(onnx.parser.parse_model(REGION), hypothesis, var=1.0)


def neighbours(model: Model, q: float = 0.6) -> EuclideanScore:
    return EuclideanScore(k=3).fit(X=features(model, 60, 1), Y=features(model, 60, 2)).set_threshold(q=q)


def evaluated(
    task: SelectiveInferenceTask, x: torch.Tensor, *columns: torch.Tensor
) -> dict[str, torch.Tensor]:
    target = torch.zeros(len(x), dtype=torch.long)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.test(task, DataLoader(TensorDataset(x, target, *columns), batch_size=5), verbose=False)
    assert task.test_outputs is not None
    return task.test_outputs[0]


def exported(model: Model, method: str = "embed") -> onnx.ModelProto:
    """The embedding, exported by the test itself."""
    weight, bias = (part.detach() for part in model.conv[0].parameters())
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("ReduceMax", ["r"], ["e"], axes=[2, 3], keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        method,
        [onnx.helper.make_tensor_value_info("x", 1, [1, 1, SIDE, SIDE])],
        [onnx.helper.make_tensor_value_info("e", 1, [1, 3])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w"), onnx.numpy_helper.from_array(bias.numpy(), "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_p_values_are_those_given_acceptance():
    model, x = Model(), images(14, 3)
    score, test = neighbours(model), region_test()
    outputs = evaluated(SelectiveInferenceTask(model, score, test, acc_test_outputs=True), x)
    acceptance = Acceptance(score, "e", model=exported(model))
    moved = 0.0
    for i, chosen in enumerate(outputs["selected"].tolist()):
        if not chosen:
            assert outputs["p_value"][i].isnan()
            assert outputs["roi_reason"][i] == "rejected"
            continue
        alone = test.inference(x[i], accepted_by=acceptance)
        assert float(outputs["p_value"][i]) == pytest.approx(alone.p_value, abs=1e-5)
        assert float(outputs["p_value_unconditioned"][i]) == pytest.approx(
            alone.p_value_unconditioned, abs=1e-5
        )
        assert outputs["roi_result"][i].accepted_by.value == pytest.approx(
            float(outputs["score"][i]), rel=1e-4
        )
        moved = max(moved, abs(alone.p_value - alone.p_value_unconditioned))
    assert 4 <= int(outputs["selected"].sum()) < len(x)
    assert moved > 0.01
    given = evaluated(
        SelectiveInferenceTask(model, score, test, acc_test_outputs=True, accepted_by=acceptance), x
    )
    assert torch.allclose(given["p_value"], outputs["p_value"], atol=1e-5, equal_nan=True)
    without = SelectiveInferenceTask(model, score, test, acc_test_outputs=True, accepted_by=None)
    plain = evaluated(without, x)
    assert torch.allclose(plain["p_value"], outputs["p_value_unconditioned"], atol=2e-3, equal_nan=True)
    assert not torch.allclose(plain["p_value"], outputs["p_value"], atol=0.01, equal_nan=True)


def test_training_modes_and_predictions_are_left_alone():
    model, x = Model(), images(6, 3)
    model.train()
    task = SelectiveInferenceTask(model, neighbours(model), region_test(), acc_test_outputs=True)
    outputs = evaluated(task, x)
    assert model.training
    assert model.conv.training
    found = task.predict_step((x, torch.zeros(len(x))), 0)
    assert torch.allclose(found["p_value"], outputs["p_value"], equal_nan=True)


def test_discoveries_over_the_set_are_reported():
    model, x = Model(), images(14, 3)
    x[:5, :, 1, 1] += 8.0
    score = EuclideanScore(k=3).fit(X=features(model, 60, 1)).set_threshold(q=0.9, scores=[100.0])
    task = SelectiveInferenceTask(model, score, region_test(), acc_test_outputs=True)
    outputs = evaluated(task, x)
    from scipy.stats import false_discovery_control

    found = int((false_discovery_control(outputs["p_value"].numpy()) <= 0.05).sum())
    assert found >= 3
    assert float(task.results["roi/discoveries"]) == found
    assert float(task.results["roi/mean_discoveries"]) == pytest.approx(found / len(x))


def test_scores_of_logits_of_classes_and_of_groups():
    model, x = Model(), images(10, 4)
    with torch.no_grad():
        logits = model.logits(images(60, 2))
    energy = EnergyScore().fit(X=logits).set_threshold(q=0.7)
    outputs = evaluated(SelectiveInferenceTask(model, energy, region_test(), acc_test_outputs=True), x)
    assert int((~outputs["p_value"].isnan()).sum()) == int(outputs["selected"].sum()) > 3
    labels = logits.argmax(1)
    classes = EuclideanClassWiseScore(k=2).fit(
        X=features(model, 60, 2), y=torch.arange(60) % 2, Y=features(model, 60, 2), y_cal=labels
    )
    classes.set_threshold(q=0.8)
    outputs = evaluated(SelectiveInferenceTask(model, classes, region_test(), acc_test_outputs=True), x)
    assert int((~outputs["p_value"].isnan()).sum()) == int(outputs["selected"].sum()) > 3
    groups = torch.arange(len(x)) % 2
    score = EuclideanScore(k=3).fit(X=features(model, 60, 1), Y=features(model, 60, 2))
    score.calibrate(coverage=0.6, groups=np.arange(60) % 2)
    task = SelectiveInferenceTask(model, score, region_test(), acc_test_outputs=True, group_key=2)
    outputs = evaluated(task, x, groups)
    limits = dict(zip(score.threshold_groups.tolist(), score.threshold.tolist(), strict=True))
    chosen = [found for found in outputs["roi_result"] if found is not None]
    places = [i for i, found in enumerate(outputs["roi_result"]) if found is not None]
    assert len(chosen) > 2
    assert [found.accepted_by.threshold for found in chosen] == [limits[i % 2] for i in places]


def test_random_scores_and_tests_of_other_kinds_need_no_conditioning():
    model, x = Model(), images(6, 4)
    random = RandomScore(seed=1).set_threshold(q=0.9)
    outputs = evaluated(SelectiveInferenceTask(model, random, region_test(), acc_test_outputs=True), x)
    chosen = [found for found in outputs["roi_result"] if found is not None]
    assert chosen
    assert all(found.accepted_by is None for found in chosen)

    class Half:
        def inference(self, x):
            class Found:
                p_value, roi, score_map = 0.5, None, None

                def naive_p_value(self):
                    return 0.4

            return Found()

    outputs = evaluated(SelectiveInferenceTask(model, neighbours(model), Half(), acc_test_outputs=True), x)
    assert outputs["p_value"].nan_to_num(0.5).eq(0.5).all()
    assert torch.equal(outputs["p_value_unconditioned"].isnan(), outputs["p_value"].isnan())


def test_what_cannot_be_conditioned_on_is_said():
    model, x = Model(), images(4, 4)
    detector = PyODScore(KNN()).fit(X=features(model, 60, 1), Y=features(model, 60, 2)).set_threshold(q=1.0)
    with pytest.raises(NotAvailableError, match="PyOD detector is an arbitrary program"):
        evaluated(SelectiveInferenceTask(model, detector, region_test(), acc_test_outputs=True), x)
    outputs = evaluated(
        SelectiveInferenceTask(model, detector, region_test(), acc_test_outputs=True, accepted_by=None), x
    )
    assert not outputs["p_value"].isnan().all()
    smooth = Model(smooth=True)
    with pytest.raises(NotAvailableError, match=r"not piecewise linear in the input: .*(Erf|Gelu)"):
        evaluated(
            SelectiveInferenceTask(smooth, neighbours(smooth, 1.0), region_test(), acc_test_outputs=True), x
        )

    class Strange(Model):
        def embed(self, x):
            return torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].mT)[:, :3]

    strange = Strange()
    score = EuclideanScore(k=1).fit(X=torch.zeros(1, 3)).set_threshold(q=1.0, scores=[100.0])
    with pytest.raises(NotAvailableError, match=r"Strange that EuclideanScore looks at cannot be exported"):
        evaluated(
            SelectiveInferenceTask(
                strange, score, region_test(), acc_test_outputs=True, metrics=BinaryAccuracy()
            ),
            x,
        )

    class Extracting(Model):
        def extract(self, batch):
            return {"prediction": self(batch[0]), "embedding": self.embed(batch[0]), "label": batch[1]}

    extracting = Extracting()
    with pytest.raises(NotAvailableError, match=r"Extracting\.extract\(batch\) cannot be exported"):
        evaluated(
            SelectiveInferenceTask(
                extracting, neighbours(extracting, 1.0), region_test(), acc_test_outputs=True
            ),
            x,
        )
    with pytest.raises(InvalidTypeError, match=r"accepted_by must be .score., a selkit"):
        SelectiveInferenceTask(model, neighbours(model), region_test(), accepted_by="yes")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed", "64-true"])
def test_half_precision_is_conditioned_on_the_event_of_single_precision(precision):
    half = torch.float16 if precision.startswith("16") else torch.bfloat16
    model = Model().to(half).float()  # what casting rounds is rounded already
    x = images(24, 3).to(half).float()
    score = neighbours(model)
    found = []
    for each in (precision, "32-true"):
        task = SelectiveInferenceTask(model, score, region_test(), acc_test_outputs=True)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer = Trainer(
            precision=each,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = TensorDataset(x, torch.zeros(len(x), dtype=torch.long))
            trainer.test(task, DataLoader(data, batch_size=5), verbose=False)
        found.append(task.test_outputs[0])
        assert all(torch.equal(before[name], t.to(before[name])) for name, t in model.state_dict().items())
        model.float()
    half_found, single = (outputs["p_value"] for outputs in found)
    both = ~half_found.isnan() & ~single.isnan()
    assert int(both.sum()) >= 8
    torch.testing.assert_close(half_found[both], single[both], atol=1e-5, rtol=0)
    differ = found[0]["selected"] & half_found.isnan()
    assert all("is not accepted" in found[0]["roi_reason"][i] for i in differ.nonzero()[:, 0].tolist())
