"""Multipliers in bands are the same as without, and add up, whatever is appended to what."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from selkit.explain import Explainer, bands, rules
from selkit.explain.assemble import _model, _node, _store, _stored_in
from selkit.explain.bands import Bands, late, plan, total
from selkit.explain.build import build
from selkit.explain.question import Choice
from selkit.explain.scopes import divide
from selkit.graph.model import Graph
from selkit.graph.program import Program
from selkit.graph.symbols import Symbol, Uses
from selkit.graph.tape import Tape

sys.path.insert(0, str(Path(__file__).parent))
import networks

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Appending(nn.Module):
    """Layers that each append features to all before; ``order`` says how, ``end`` what reads all of them."""

    def __init__(
        self, act=nn.ReLU, *, dims=2, norm=True, kernel=3, groups=1, order="list", end="transition", stride=1
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        growth = 4 if groups > 1 else 5
        self.dims, self.order, self.end = dims, order, end
        sizes = [4 + i * (growth + 2 * (order == "constant")) for i in range(5)]

        def layer(size: int, out: int, kernel: int, **more: int) -> nn.Module:
            before = [NORM[dims](size)] if norm else []
            return nn.Sequential(*before, act(), CONV[dims](size, out, kernel, padding=kernel // 2, **more))

        self.stem = CONV[dims](2, 4, 3, padding=1)
        self.layers = nn.ModuleList(layer(size, growth, kernel, groups=groups) for size in sizes[:-1])
        self.transition = layer(sizes[-1], 6, 3 if stride > 1 else 1, stride=stride, groups=groups)
        self.pooled = nn.Sequential(*([NORM[dims](sizes[-1])] if norm else []), act())
        self.split = CONV[dims](sizes[-1], 6, 1, groups=1 if sizes[-1] % 2 else 2)
        self.fork = nn.ModuleList([layer(sizes[-2], growth, 1), layer(sizes[-1], 6, 1)])
        self.head = nn.LazyLinear(3)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2.0)
        self.eval()(points(dims)[:1])

    def _with(self, old: Tensor, new: Tensor) -> Tensor:
        if self.order == "before":
            return torch.cat([new, old], 1)
        if self.order == "constant":
            return torch.cat([old, torch.ones_like(new[:, :2]), new], 1)
        return torch.cat([old, new], 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [value := self.stem(x)]
        for layer in self.layers:
            old = value
            features.append(layer(old))
            # torchvision's way: all are put together again for each layer
            value = torch.cat(features, 1) if self.order == "list" else self._with(old, features[-1])
        ends = {
            "transition": lambda: [self.transition(value)],
            "pooled": lambda: [self.pooled(value)],
            "raw": lambda: [value],
            "both": lambda: [self.transition(value), self.pooled(value)],
            "spread": lambda: [self.transition(value) + value.mean(1, keepdim=True)],
            "split": lambda: [self.transition(value), self.split(value)],
            "fork": lambda: [self.transition(value), self.fork[1](self._with(old, self.fork[0](old)))],
        }
        axes = tuple(range(2, 2 + self.dims))
        return self.head(torch.cat([end.mean(axes) for end in ends[self.end]()], 1))


CASES: dict[str, dict] = {
    "transition": {},
    "pooled": {"end": "pooled"},
    "both": {"end": "both"},
    "raw": {"end": "raw"},
    "spread": {"end": "spread"},
    "appended": {"order": "one", "end": "fork"},
    "with constants": {"order": "constant", "end": "both"},
    "prepended": {"order": "before", "end": "both"},
    "prepended twice": {"order": "before", "end": "fork"},
    "beside a grouped one": {"end": "split"},
    "leaky": {"act": lambda: nn.LeakyReLU(0.2), "end": "both"},
    "sigmoid": {"act": nn.Sigmoid, "kernel": 1},
    "elu": {"act": nn.ELU, "end": "pooled"},
    "relu6 without norm": {"act": nn.ReLU6, "norm": False},
    "relu without norm": {"norm": False, "end": "both"},
    "norm alone": {"act": nn.Identity},
    "pointwise": {"kernel": 1},
    "strided": {"stride": 2},
    "1-D": {"dims": 1, "end": "both", "stride": 2},
    "3-D": {"dims": 3, "end": "both"},
}


def points(dims: int) -> Tensor:
    side = {1: 9, 2: 6, 3: 4}[dims]
    return torch.randn(6, 2, *[side] * dims, generator=torch.Generator().manual_seed(1))


def exported(name: str, *, dynamo: bool = False) -> tuple[nn.Module, bytes, Tensor]:
    model = Appending(**CASES[name])
    x = points(model.dims)
    return model, networks.export(model, x[:1], dynamo=dynamo), x


def compiled(content: bytes, x: Tensor) -> Program:
    graph = Graph.load(content)
    (spec,), (output,) = graph.inputs, graph.outputs
    shapes = {spec.name: (1, *x.shape[1:])}
    return graph.compile(shapes, [output.name], dtype=torch.float32, decompose=rules.in_parts)


def planned(content: bytes, x: Tensor, rows: int = 1) -> tuple[set[int], list[int]]:
    """Widths of bands, and how many channels there are of what comes in bands."""
    program = compiled(content, x)
    found = plan(program, rules.chained(program.steps), rows)
    return set(found.values()), sorted(program.shapes[key][1] for key in found)


def explain(content: bytes, x: Tensor, *, cache: bool = True, chunk: int = 1):
    return Explainer(content, x[2:], target="all", cache=cache, chunk=chunk, threads=1).explain(x[:2])


@pytest.fixture
def cut(monkeypatch):
    """Set the width of bands; ``None`` for no bands."""

    def set_width(width: int | None) -> None:
        monkeypatch.setattr(bands, "BYTES", 2**40 if width is None else 1)
        monkeypatch.setattr(bands, "LEAST", width or 32)

    return set_width


def check_same(found, expected) -> None:
    largest = np.abs(expected.attributions).max()
    assert largest > 1e-3
    np.testing.assert_allclose(found.attributions, expected.attributions, rtol=0, atol=1e-5 * largest)


def check_sums(result, model: nn.Module, x: Tensor) -> None:
    """Every target's sum is that of the network itself, run by torch in float64."""
    with torch.no_grad():
        outputs = model.double()(x.double()).numpy()
    model.float()
    change = (outputs[:2] - outputs[2:].mean(0)).T
    sums = result.attributions.sum(axis=tuple(range(2, result.attributions.ndim)), dtype=np.float64)
    assert sums.shape == change.shape
    np.testing.assert_allclose(sums, change, rtol=0, atol=1e-4 * np.abs(change).max())


@pytest.mark.parametrize(("name", "dynamo"), [*((name, False) for name in CASES), ("both", True)])
def test_bands_change_nothing_but_rounding(name, dynamo, cut):
    model, content, x = exported(name, dynamo=dynamo)
    cut(None)
    assert planned(content, x) == (set(), [])
    plain = explain(content, x)
    check_sums(plain, model, x)
    for width, cache, chunk in ((3, True, 1), (4, False, 2), (7, True, 2), (16, False, 1)):
        cut(width)
        assert planned(content, x, chunk)[0] == {width}
        found = explain(content, x, cache=cache, chunk=chunk)
        check_same(found, plain)
        check_sums(found, model, x)


def test_the_comparison_fails_where_a_band_is_left_out(cut, monkeypatch):
    model, content, x = exported("transition")
    cut(None)
    plain = explain(content, x)
    cut(4)
    right = Bands.cut

    def without_the_last(self: Bands, start: int, stop: int) -> Bands:
        *kept, last = right(self, start, stop).parts
        return Bands(self.tape, (*kept, last * 0.0))

    monkeypatch.setattr(Bands, "cut", without_the_last)
    wrong = explain(content, x)
    for check in (lambda: check_same(wrong, plain), lambda: check_sums(wrong, model, x)):
        with pytest.raises(AssertionError):
            check()


@pytest.mark.parametrize("name", ["functional", "squeeze_excite", "relu_pool", "elu_average", "grouped"])
def test_no_bands_without_a_chain_or_with_groups(name, cut):
    model = Appending(groups=2) if name == "grouped" else networks.NETWORKS[name]()
    x = points(2) if name == "grouped" else torch.zeros(1, 1, networks.SIDE, networks.SIDE)
    content = networks.export(model, x[:1], dynamo=False)
    cut(3)
    assert planned(content, x) == (set(), [])
    if name == "grouped":
        check_sums(explain(content, x), model, x)


def test_bands_hold_as_many_channels_as_fit(monkeypatch):
    _, content, x = exported("leaky")
    monkeypatch.setattr(bands, "LEAST", 3)
    one = 6 * 6 * 4  # bytes of a channel of one reference
    deep = [14] * 3 + [19] * 3 + [24] * 3  # Concat, norm and activation
    cases = [(7, 1, {6}, [9] * 3), (7, 2, {3}, [9] * 3), (6 - 1e-2, 1, {3}, [9] * 3), (12, 1, {12}, [])]
    for channels, rows, widths, more in cases:
        monkeypatch.setattr(bands, "BYTES", int(channels * one))
        assert planned(content, x, rows) == (widths, more + deep)
    monkeypatch.setattr(bands, "BYTES", 24 * one)  # all channels of the last are one band
    assert planned(content, x) == (set(), [])


def test_more_references_at_once_where_there_are_bands_and_activations_are_stored(cut):
    _, content, x = exported("transition")

    def rows(cache: bool | str) -> int:
        package = build(
            content,
            x[:1].repeat(10, 1, 1, 1),
            0,
            choice=Choice(),
            weights=None,
            cache=cache,
            chunk="auto",
            threads=1,
            key=None,
        )
        return next(array.shape[1] for name, array in package.arrays.items() if "reference" in name)

    assert [rows(True), rows(False)] == [2, 2]
    cut(4)
    assert [rows(True), rows("auto"), rows(False)] == [5, 5, 2]


def run(tape: Tape, end: Symbol, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The value of a symbol, by onnxruntime."""
    info = [helper.make_tensor_value_info(name, 1, value.shape) for name, value in feeds.items()]
    output = helper.make_tensor_value_info(end.name, 1, None)
    model = _model(helper.make_graph([_node(node) for node in tape.nodes], "tape", info, [output]))
    for name, value in _stored_in(tape.nodes).items():
        _store(model.graph, value, name)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([end.name], feeds)[0]


THREE, FOUR, UNEVEN, ONES = (3, 3, 3, 2), (4, 4, 3), (1, 2, 5, 3), (1,) * 11


@pytest.mark.parametrize("same", [(1, 1, 2), (1, 11, 1)], ids=["for all channels", "everywhere"])
@pytest.mark.parametrize("cuts", [(THREE,), (THREE, FOUR), (THREE, UNEVEN), (FOUR, ONES)])
def test_a_sum_does_not_depend_on_the_order_and_the_cuts(cuts, same):
    rng = np.random.default_rng(0)
    tape = Tape(torch.float32)
    shapes = [(1, 11, 2), same, *[(1, 11, 2)] * len(cuts)]
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    feeds = {"whole": values[0], "same": values[1]}
    parts: list[Symbol | Bands] = [tape.source(n, v.shape, Uses.TARGET) for n, v in feeds.items()]
    for number, (cut, value) in enumerate(zip(cuts, values[2:], strict=True)):
        pieces = np.split(value, np.cumsum(cut)[:-1], 1)
        named = {f"{number}.{index}": piece for index, piece in enumerate(pieces)}
        feeds.update(named)
        parts.append(Bands(tape, tuple(tape.source(n, v.shape, Uses.TARGET) for n, v in named.items())))
    for order in itertools.permutations(parts):
        found = total(order)
        assert isinstance(found, Bands)
        assert tuple(last - first for first, last in found.ends) in cuts
        np.testing.assert_allclose(run(tape, found.whole(), feeds), sum(values), atol=2e-6)
    some = parts[-1].cut(2, 7).whole() * 1.0
    np.testing.assert_array_equal(run(tape, some, feeds), values[-1][:, 2:7])
    assert total([]) is None
    assert total(parts[:1]) is parts[0]


def check_order(nodes) -> None:
    """Whatever a node of these makes is made before it is read."""
    made = {value.name: place for place, node in enumerate(nodes) for value in node.outputs}
    for place, node in enumerate(nodes):
        assert all(value is None or made.get(value.name, -1) < place for value in node.inputs)


def test_sums_come_right_before_their_first_reader():
    tape = Tape(torch.float32)
    x, y = (tape.source(name, (1, 2), Uses.TARGET) for name in "xy")
    inner = x + y
    unread = y + 2.0
    outer = inner + 1.0
    far, near = x.exp(), y.exp()
    read, again = outer * far, outer * near
    last = unread + again
    ordered = late(tape.nodes)
    names = [node.outputs[0].name for node in ordered]
    assert names == [value.name for value in (far, near, inner, outer, read, again, unread, last)]
    check_order(ordered)
    with pytest.raises(AssertionError):
        check_order(ordered[::-1])
    assert late(ordered) == ordered


def test_thousands_of_sums_in_a_row():
    tape = Tape(torch.float32)
    value = tape.source("x", (1, 2), Uses.TARGET)
    for _ in range(3000):
        value = value + 1.0
    value.exp()
    assert late(tape.nodes) == tape.nodes


@pytest.mark.parametrize("cache", [True, False])
def test_the_nodes_of_an_explanation_stay_in_a_valid_order(cache, cut, monkeypatch):
    _, content, x = exported("both")
    cut(4)
    recipe = rules.write(compiled(content, x), 2, 17, ahead=cache)
    after = divide(recipe, cache=cache).nodes["chunk"]
    monkeypatch.setattr("selkit.explain.scopes.late", list)
    before = divide(recipe, cache=cache).nodes["chunk"]
    assert sorted(map(id, after)) == sorted(map(id, before))
    assert [node for node in after if node.op != "Add"] == [node for node in before if node.op != "Add"]
    assert after != before
    check_order(after)
    for place, node in enumerate(after):
        if node.op == "Add":  # only other sums are between it and its first reader
            rest = after[place + 1 :]
            first = next((i for i, other in enumerate(rest) if node.outputs[0] in other.inputs), len(rest))
            assert all(other.op == "Add" for other in rest[:first])
