"""Conformance: every row of the table, for every meaning of an operator."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from graph_cases import CASES as NUMBER_CASES
from graph_cases import Case
from graph_cases_parts import CASES as PART_CASES
from graph_cases_quantized import CASES as QUANTIZED_CASES
from graph_cases_shape import CASES as SHAPE_CASES
from torch import Tensor

from selkit.graph import Graph, Program
from selkit.graph.ops import base
from selkit.graph.ops.base import Kind, Maximum, PiecewiseLinear

ALL = NUMBER_CASES + SHAPE_CASES + PART_CASES + QUANTIZED_CASES
IDS = [f"{index}-{one.node.split('=', 1)[1].strip()}" for index, one in enumerate(ALL)]
every_case = pytest.mark.parametrize("one", ALL, ids=IDS)


def program(one: Case, opset: int | None = None, **options) -> Program:
    newest = max(one.versions()) if opset is None else opset
    return Graph.load(one.model(newest)).compile(one.live, **options)


def points(one: Case, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value).to(dtype) for name, value in one.feeds(count, seed).items()}


def arguments(made: Program, values: dict[str, Tensor]) -> list[Tensor | None]:
    """Inputs of a program's only step."""
    (step,) = made.steps
    known = {**made.constants, **values}
    return [known[name] if name else None for name in step.inputs]


def cases_of(*kinds: Kind) -> list:
    """Rows that compile to one step of one of these kinds."""
    chosen = []
    for one, name in zip(ALL, IDS, strict=True):
        made = program(one)
        if len(made.steps) == 1 and made.steps[0].kind in kinds:
            chosen.append(pytest.param(one, id=name))
    return chosen


def assert_close(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray, tolerance: float) -> None:
    """Same shape and the same values, relative to the largest one; NaN is never right."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert np.isfinite(actual).all()
    assert np.isfinite(expected).all()
    assert float(np.abs(actual - expected).max(initial=0)) <= tolerance * scale


def test_the_shared_assertion_fails_on_wrong_values():
    right = torch.tensor([1.0, 2.0])
    assert_close(right, right.clone(), 1e-12)
    for wrong in ([1.0, 2.1], [1.0, torch.nan], [1.0], [[1.0, 2.0]]):
        with pytest.raises(AssertionError):
            assert_close(torch.tensor(wrong), right, 1e-3)


def test_every_operator_has_a_row():
    named = {(one.domain, one.op_type) for one in ALL}
    random = {("", f"Random{kind}{like}") for kind in ("Normal", "Uniform") for like in ("", "Like")}
    assert {(entry.domain, entry.name) for entry in base.registrations()} - named == random


@every_case
def test_equals_onnxruntime_in_every_version(one: Case, onnxruntime_of):
    feeds = one.feeds(2)
    for opset in one.versions():
        model = one.model(opset)
        made = program(one, opset)
        actual = made.run({name: torch.from_numpy(value).double() for name, value in feeds.items()})
        if one.exact:
            for name, expected in onnxruntime_of(model, feeds).items():
                assert_close(actual[name], expected[: len(actual[name])], 3e-5)


@every_case
def test_a_stack_equals_its_singles_and_float32_is_close(one: Case):
    made = program(one)
    values = points(one, 4)
    together = made.run(values)
    if not one.live:
        return
    for k in range(4):
        alone = made.run({name: value[k : k + 1] for name, value in values.items()})
        for name in made.outputs:
            assert_close(together[name][k : k + 1], alone[name], 1e-12)
    short = made.to(torch.float32).run(points(one, 4, dtype=torch.float32))
    for name in made.outputs:
        if together[name].dtype == torch.float64:
            assert short[name].dtype == torch.float32
            assert_close(short[name], together[name], 1e-4)


@pytest.mark.parametrize("one", cases_of(Kind.AFFINE))
def test_affine_operators_commute_with_interpolation(one: Case):
    made = program(one)
    start, end = points(one, 3, 1), points(one, 3, 2)
    weight = torch.tensor([-1.5, 0.3, 0.8], dtype=torch.float64)

    def blend(a: Tensor, b: Tensor) -> Tensor:
        t = weight.reshape(-1, *(1,) * (a.ndim - 1))
        return (1 - t) * a + t * b

    first, last = made.run(start), made.run(end)
    between = made.run({name: blend(start[name], end[name]) for name in start})
    for name in made.outputs:
        assert_close(between[name], blend(first[name], last[name]), 1e-11)


@pytest.mark.parametrize("one", cases_of(Kind.AFFINE))
def test_the_spread_of_affine_operators_holds_and_is_attained(one: Case):
    made = program(one)
    (step,) = made.steps
    center = points(one, 1)
    radius = {name: torch.rand_like(value) for name, value in center.items()}
    spread = step.operator.spread(step.live, *arguments(made, radius))
    exact = made.run(center)
    signs = {name: torch.randint(0, 2, (64, *value.shape[1:])) * 2.0 - 1 for name, value in center.items()}
    moved = made.run({name: center[name] + radius[name] * signs[name] for name in center})
    for name, bound in zip(step.outputs, spread, strict=False):
        if name not in made.outputs:
            continue
        change = (moved[name] - exact[name]).abs()
        assert bound.shape == exact[name].shape
        assert bool((change <= bound + 1e-12).all())
        for index in {0, bound.numel() // 2, bound.numel() - 1}:
            worst = attain(made, center, radius, name, index)
            torch.testing.assert_close(worst, bound.reshape(-1)[index], rtol=1e-9, atol=1e-12)


def attain(made: Program, center: dict, radius: dict, name: str, index: int) -> Tensor:
    """Largest change of one output element, by moving every input to the side that its gradient asks for."""
    leaves = {key: value.clone().requires_grad_() for key, value in center.items()}
    output = made.run(leaves)[name].reshape(-1)[index]
    grads = [torch.zeros_like(v) for v in leaves.values()]
    if output.requires_grad:
        found = torch.autograd.grad(output, list(leaves.values()), allow_unused=True)
        grads = [zero if grad is None else grad for zero, grad in zip(grads, found, strict=True)]
    pairs = zip(center, grads, strict=True)
    moved = {key: center[key] + radius[key] * grad.sign() for key, grad in pairs}
    return (made.run(moved)[name].reshape(-1)[index] - output).detach().abs()


@pytest.mark.parametrize("one", cases_of(Kind.PIECEWISE_LINEAR))
def test_piecewise_linear_operators_bend_at_their_knots_alone(one: Case):
    made = program(one)
    (step,) = made.steps
    assert isinstance(step.operator, PiecewiseLinear)
    (name,) = one.live
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    x = grid.reshape(-1, *(1,) * len(one.live[name])).expand(-1, *one.live[name])
    y = made.run({name: x})[made.outputs[0]]
    bend = (y[2:] - 2 * y[1:-1] + y[:-2]).abs() > 1e-9
    knots = step.operator.knots(*arguments(made, {name: x}))
    width = float(grid[1] - grid[0])
    values = [torch.as_tensor(knot, dtype=torch.float64).expand(bend.shape) for knot in knots]
    near = [(x[1:-1] - knot).abs() <= width * 1.001 for knot in values]
    close = torch.stack(near).any(0) if near else torch.zeros_like(bend)
    assert not bool((bend & ~close).any())
    assert all(bool((a <= b).all()) for a, b in itertools.pairwise(values))
    # continuous: no step is larger than the steepest slope allows
    assert float((y[1:] - y[:-1]).abs().max()) <= 3 * width


@pytest.mark.parametrize("one", cases_of(Kind.MAXIMUM))
def test_maxima_are_what_their_winner_has(one: Case):
    made = program(one)
    (step,) = made.steps
    operator = step.operator
    assert isinstance(operator, Maximum)
    values = arguments(made, points(one, 5))
    best = operator.forward(*values)[0]
    index = operator.argmax(*values)
    assert index.dtype == torch.int64
    assert index.shape == best.shape
    assert torch.equal(operator.pick(index, *values), best)
    others = arguments(made, points(one, 5, seed=7))
    picked = operator.pick(index, *others)
    assert bool((operator.sign * (operator.forward(*others)[0] - picked) >= 0).all())
    first = {name: value[:1] for name, value in points(one, 5).items()}
    assert torch.equal(operator.pick(index, *arguments(made, first))[:1], best[:1])


@pytest.mark.parametrize("one", cases_of(Kind.COMPOSITE))
def test_composites_are_made_of_simpler_operators(one: Case):
    values = points(one, 3)
    whole, parts = program(one), program(one, decompose=True)
    assert all(step.kind is not Kind.COMPOSITE for step in parts.steps)
    expected, actual = whole.run(values), parts.run(values)
    assert parts.outputs == whole.outputs
    for name in whole.outputs:
        assert_close(actual[name], expected[name], 1e-10)


@pytest.mark.parametrize("one", cases_of(Kind.STEP))
def test_operators_that_jump_take_few_values_or_jump(one: Case):
    made = program(one)
    (name,) = one.live
    shape = (4001, *one.live[name])
    ramp = torch.linspace(-5, 5, 4001, dtype=torch.float64).reshape(-1, *(1,) * len(one.live[name]))
    x = ramp.expand(shape) + torch.linspace(0, 1, ramp[0].numel() or 1).double()
    if one.op_type.startswith("Arg"):
        x = points(one, 4001)[name]
    y = made.run({name: x})[made.outputs[0]].double()
    few = len(torch.unique(y)) <= 16
    jumps = float((y[1:] - y[:-1]).abs().max()) > 100 * float(ramp[1] - ramp[0])
    assert few or jumps


def test_a_live_condition_jumps():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[3] x) => (float[3] y) { a = Exp(x)  c = Greater(x, a)  y = Where(c, x, a) }""")
    made = Graph.load(model).compile({"x": (3,)})
    assert [step.kind for step in made.steps] == [Kind.SMOOTH, Kind.STEP, Kind.STEP]
