"""Several inputs at once, values behind an embedding, and inputs that stay as they are."""

from __future__ import annotations

import io
import itertools
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.explain import Explainer

sys.path.insert(0, str(Path(__file__).parent))

METHODS = ("deepshap", "integrated_gradients")


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)


class Both(nn.Module):
    """An image and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.table, self.head = nn.Linear(4, 5), nn.Linear(3 * 16 + 5, 3)

    def forward(self, image, table):
        features = [torch.relu(self.conv(image)).flatten(1), torch.relu(self.table(table))]
        return self.head(torch.relu(torch.cat(features, 1)))


def export(model: nn.Module, example: tuple, names: list[str], *, dynamo: bool) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            made = torch.onnx.export(model.eval(), example, dynamo=True, verbose=False, input_names=names)
            return made.model_proto.SerializeToString()
        buffer = io.BytesIO()
        torch.onnx.export(model.eval(), example, buffer, dynamo=False, input_names=names, opset_version=17)
    return buffer.getvalue()


@pytest.fixture(scope="module", params=[False, True], ids=["torchscript", "dynamo"])
def both(request) -> tuple[bytes, nn.Module, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = {
        "image": rng.standard_normal((6, 1, 6, 6)).astype(np.float32),
        "table": rng.standard_normal((6, 4)).astype(np.float32),
    }
    model = Both()
    example = tuple(torch.from_numpy(value[:1]) for value in data.values())
    return export(model, example, list(data), dynamo=request.param), model, data


def rows(data: dict, *at: slice) -> dict:
    return {name: value[at[0]] for name, value in data.items()}


@pytest.mark.parametrize("method", METHODS)
def test_attributions_of_all_inputs_sum_to_the_change(method, both, tmp_path):
    content, model, data = both
    explainer = Explainer(content, rows(data, slice(3, 6)), target=[0, 2], method=method)
    x = rows(data, slice(0, 3))
    found = explainer.explain(x)
    outputs = model(*map(torch.from_numpy, data.values())).detach().double().numpy()
    np.testing.assert_allclose(found.output, outputs[:3, [0, 2]].T, atol=1e-5)
    np.testing.assert_allclose(found.base_value[:, 0], outputs[3:, [0, 2]].mean(0), atol=1e-5)
    assert {name: part.shape for name, part in found.attributions.items()} == {
        "image": (2, 3, 1, 6, 6),
        "table": (2, 3, 4),
    }
    total = found.attributions["image"].sum((2, 3, 4)) + found.attributions["table"].sum(2)
    np.testing.assert_allclose(total, found.output - found.base_value, atol=1e-5)
    assert np.abs(found.additivity_error).max() < (1e-5 if method == "deepshap" else 1e-12)
    in_order = explainer.explain(tuple(x.values()))
    np.testing.assert_array_equal(in_order.attributions["table"], found.attributions["table"])
    assert found[1].attributions["image"].shape == (2, 1, 1, 6, 6)
    assert found.for_target(2).for_input("table").attributions.shape == (3, 4)
    assert len(found.summary()) == 6
    assert "'table': (4,)" in str(found)


@pytest.mark.parametrize("method", METHODS)
def test_one_of_them_with_the_other_fixed(method, both):
    """As the model of one input that has the other one built in."""
    content, model, data = both
    table = data["table"][:1]
    found = Explainer(
        content, data["image"][3:], target=1, method=method, input="image", fixed={"table": table}
    ).explain(data["image"][:2])

    def alone(image):
        stack = torch.from_numpy(image)
        return model(stack, torch.from_numpy(table).expand(len(stack), -1)).detach().double().numpy()[:, 1]

    np.testing.assert_allclose(found.output, alone(data["image"][:2]), atol=1e-5)
    np.testing.assert_allclose(found.base_value, alone(data["image"][3:]).mean(), atol=1e-5)
    assert np.abs(found.additivity_error).max() < 1e-5


def test_a_product_of_two_inputs_is_shared_as_shapley_shares_it():
    """Exact Shapley values by all orders of the two inputs' entries, which interact in pairs only."""
    model = parse(
        "agraph (float[N, 2] a, double[N, 2] b) => (double[N, 2] y) { d = Cast <to = 11> (a)  y = Mul(d, b) }"
    )
    a, b = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    found = Explainer(model, {"a": a[:, ::-1].copy(), "b": b - 1}, target=0).explain({"a": a, "b": b})

    def value(present: frozenset) -> float:
        return (a[0, 0] if "a" in present else a[0, 1]) * (b[0, 0] if "b" in present else b[0, 0] - 1)

    for name in ("a", "b"):
        shapley = sum(
            value(frozenset(order[: order.index(name) + 1])) - value(frozenset(order[: order.index(name)]))
            for order in itertools.permutations("ab")
        ) / math.factorial(2)
        np.testing.assert_allclose(found.attributions[name][0], [shapley, 0], atol=1e-12)
    assert found.attributions["a"].dtype == np.float64
    assert found.x["a"].dtype == np.float32


def test_the_file_has_an_output_for_each_input(both, tmp_path):
    content, _, data = both
    explainer = Explainer(content, rows(data, slice(3, 6)), target=0, threads=1)
    explainer.export(tmp_path / "e.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
    x = rows(data, slice(0, 3))
    image, table = session.run(["attributions.image", "attributions.table"], x)
    expected = explainer.explain(x).attributions
    np.testing.assert_array_equal(image, expected["image"])
    np.testing.assert_array_equal(table, expected["table"])
    loaded = Explainer.load(tmp_path / "e.onnx", threads=1)
    np.testing.assert_array_equal(loaded.explain(x).attributions["table"], table)
    found = explainer.verify(x)
    assert (found.output_difference or 0) < 1e-5
    assert found.batch_difference == found.file_difference == 0
    assert "image[1, 6, 6], table[4]" in repr(loaded)


def test_references_from_a_loader_of_tuples_or_mappings(both):
    content, _, data = both
    x = rows(data, slice(0, 2))
    whole = Explainer(content, rows(data, slice(2, 6)), target=0, threads=1).explain(x)
    batches = [rows(data, slice(2, 4)), rows(data, slice(4, 6))]
    for loader in (batches, [tuple(batch.values()) for batch in batches], iter(batches)):
        again = Explainer(content, loader, target=0, threads=1).explain(x)
        np.testing.assert_array_equal(again.attributions["image"], whole.attributions["image"])


class Words(nn.Module):
    """Token ids, an embedding, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(torch.relu(self.layer(self.embedding(ids))).mean(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_the_value_behind_an_embedding(dynamo, method):
    torch.manual_seed(0)
    model = Words().eval()
    ids = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(0))
    content = export(model, (ids[:1],), ["ids"], dynamo=dynamo)
    gather = next(node for node in onnx.load_from_string(content).graph.node if node.op_type == "Gather")
    vectors = model.embedding(ids).detach().numpy()
    found = Explainer(content, vectors[2:], target=1, method=method, input=gather.output[0]).explain(
        vectors[:2]
    )
    outputs = model(ids).detach().double().numpy()[:, 1]
    np.testing.assert_allclose(found.output, outputs[:2], atol=1e-5)
    np.testing.assert_allclose(found.base_value, outputs[2:].mean(), atol=1e-5)
    assert np.abs(found.additivity_error).max() < (1e-5 if method == "deepshap" else 1e-12)
    assert found.attributions.shape == (2, 5, 6)
    by_ids = Explainer(content, ids[2:], target=1, method=method).explain(ids[:2])
    np.testing.assert_allclose(by_ids.attributions, found.attributions, rtol=1e-6, atol=1e-9)
    assert "the embedding of the integer input 'ids'" in by_ids.notes[0]


TWO = parse(
    "agraph (float[N, 2] a, float[N, 3] b) => (float[N, 2] y) "
    "{ s = ReduceSum <keepdims = 1> (b)  y = Add(a, s) }"
)
A, B = np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("references", "options", "text"),
    [
        (A, {}, "mapping with an array for each"),
        ({"a": A}, {}, "explained inputs are a, b"),
        ({"a": A, "c": B}, {}, "explained inputs are a, b"),
        ({"a": A, "b": B[:1]}, {}, "different numbers of samples"),
        ({"a": A, "b": A}, {}, r"references\['b'\] has shape"),
        ({"a": A, "b": None}, {}, r"references\['b'\]"),
        ("text", {}, "mapping"),
        (None, {}, "mapping"),
        ([], {}, "no sample"),
        (A, {"input": "c"}, "input is 'c', which is no value"),
        (A, {"input": []}, "list of names"),
        (A, {"input": 3}, "list of names"),
        (A, {"input": ["a", "a"]}, "twice"),
        (A, {"input": ["a", 3]}, "input must be text"),
        (A, {"fixed": {"c": B}}, "fixed names 'c'"),
        (A, {"fixed": 3}, "fixed must be a mapping"),
        (A, {"fixed": {"b": np.full((1, 3), np.nan)}}, "NaN or infinite"),
        (A, {"fixed": {"b": np.zeros((1, 4))}}, "has shape"),
        (A, {"fixed": {"b": np.zeros((1, 3), int)}}, "takes float32"),
        (A, {"fixed": {"b": B[:1], "a": A[:1]}}, "all inputs of the model are fixed"),
        (A, {"input": "a"}, "neither live nor given"),
    ],
)
def test_what_does_not_fit_is_refused(references, options, text):
    with pytest.raises((InvalidInputError, InvalidTypeError), match=text):
        Explainer(TWO, references, **options)
