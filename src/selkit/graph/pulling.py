"""From multipliers of an operator's outputs to multipliers of its inputs, by the rules of DeepLIFT.

A multiplier says how much of a difference between sample and reference an entry passes on: with multipliers
``m`` of the inputs, ``sum(m * (x - r))`` is the same before and after an operator, which makes attributions
additive (Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences").
A multiplier may have size 1 along an axis on which it is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import Kind, Operator, UnsupportedAttribute, broadcast
from selkit.graph.symbols import Shape, Symbol, Uses, where
from selkit.graph.tape import Tape

Pulled = tuple[Symbol | None, ...]

LOWEST = -1e30
"""What stands for minus infinity."""
TYPICAL, NEAR, FAR = 2.0**36, 2.0**12, 2.0**62
"""What a Relu's typical input is scaled to, and from and up to where inputs are told apart."""


class Pull:
    """One step, with its values at the sample and at the references.

    Attributes
    ----------
    tape
        To write on.
    x, r
        The inputs at the sample and at the references; the same symbol for a constant.
    y, yr
        The outputs.
    grads
        Multipliers of the outputs; ``None`` for one that does not count.
    live
        For each input, whether it depends on the model's input.
    kind
        What the operator is for these live inputs.
    places
        Where a maximum over windows is, at both points.
    scale
        Factors for the channels of the multipliers of a convolution's input, of an operator before it.
    """

    def __init__(
        self,
        tape: Tape,
        *,
        x: Sequence[Symbol | None],
        r: Sequence[Symbol | None],
        y: Sequence[Symbol],
        yr: Sequence[Symbol],
        grads: Sequence[Symbol | None],
        live: Sequence[bool],
        kind: Kind,
    ) -> None:
        self.tape = tape
        self.x: tuple[Any, ...] = tuple(x)
        self.r: tuple[Any, ...] = tuple(r)
        self.y = tuple(y)
        self.yr = tuple(yr)
        self.grads = tuple(grads)
        self.live = tuple(live)
        self.kind = kind
        self.places: tuple[Symbol, ...] = ()
        self.scale: Tensor | None = None

    @property
    def grad(self) -> Symbol:
        """Multiplier of the first output."""
        grad = self.grads[0]
        if grad is None:
            raise UnsupportedAttribute("only its further outputs are used, which cannot be explained")
        return grad

    @property
    def full(self) -> Symbol:
        """Multiplier of the first output, in that output's shape."""
        return self.tape.expand(self.grad, self.y[0].shape)

    def constant(self, index: int) -> Tensor:
        """The value of an input that must be constant."""
        value = self.x[index].value if self.x[index] is not None else None
        if value is None:
            raise UnsupportedAttribute(f"its input {index} must not depend on the model's input")
        return torch.as_tensor(value)

    def only(self, index: int, grad: Symbol | None) -> Pulled:
        """The multiplier of one input alone."""
        return tuple(grad if i == index else None for i in range(len(self.x)))

    def each(self, *grads: Symbol | None) -> Pulled:
        """One multiplier for each live input, brought to the shape of the input it belongs to."""
        return tuple(
            self.collect(grad, self.x[i].shape) if alive and grad is not None else None
            for i, (grad, alive) in enumerate(zip(grads, self.live, strict=True))
        )

    def middle(self, index: int) -> Symbol:
        """The mean of an input at the sample and at the references."""
        x: Symbol = self.x[index]
        return (x + self.r[index]) * 0.5 if self.live[index] else x

    def factor(self, index: int) -> Symbol:
        """The multiplier of one of two factors: the mean of the other one, halved where that is smallest."""
        shape, other = self.x[index].shape, 1 - index
        if not self.live[other]:
            return self.collect(self.grad * self.x[other], shape)
        both = self.x[other] + self.r[other]
        if math.prod(both.shape) <= math.prod(shape):
            return self.collect(self.grad * (both * 0.5), shape)
        return self.collect(self.grad * both, shape) * 0.5

    def collect(self, grad: Symbol, shape: Shape, full: Shape | None = None) -> Symbol:
        """Sum a multiplier over the axes on which an input of ``shape`` was repeated to ``full``."""
        full = self.y[0].shape if full is None else full
        lead = len(full) - len(shape)
        axes, times = [], 1
        for axis, size in enumerate(full):
            if size != 1 and (axis < lead or shape[axis - lead] == 1):
                if grad.shape[axis] == 1:
                    times *= size
                else:
                    axes.append(axis)
        total = self.tape.sum(grad, axes)
        if times != 1:
            total = total * float(times)
        return self.tape.reshape(total, total.shape[lead:]) if lead else total

    def relu(self, x: Symbol, r: Symbol) -> Symbol:
        """The multiplier of ``max(x, 0)``, exact and without a guard.

        ``[x > 0] + r / (|x| + |r|)``, cut to ``[0, 1]``: no difference of nearly equal numbers, 1 or 0 where
        the signs agree, and the gradient where ``x`` equals ``r``. With ``q = r / |x|`` the quotient is
        ``q / (1 + |q|)``, Softsign, so that only three nodes read two values for every reference.
        """
        ratio = r * x.abs().maximum(self.least).reciprocal()
        if self.tape.dtype == torch.float32:
            share = self.tape.op("Softsign", ratio, shape=ratio.shape)
            above = self.tape.op("HardSigmoid", x, shape=x.shape, alpha=1 / self.least, beta=0.0)
        else:
            share, above = ratio / (ratio.abs() + 1.0), self.number(x > 0.0)
        cut = above + share
        return self.tape.op("Clip", cut, self.tape.lift(0.0), self.tape.lift(1.0), shape=cut.shape)

    def odds(self, x: Symbol, r: Symbol) -> Symbol:
        """The multiplier of ``max(x, 0)`` in three nodes for every reference, one of which reads two values.

        With ``s(x) = x`` for ``x > 0``, else ``1 / |x|``, in units so small that nearly all inputs are large,
        ``s(x) s(r)`` is ``x / |r|`` for mixed signs, else nearly infinity or 0: the odds of both shares.
        ``s(r)`` can be stored. Inputs below 6e-8 of a typical reference's count as if they were that large.
        """
        tape, unit = self.tape, self.tape.unit(r) * TYPICAL
        strengths = []
        for value in (x * unit, r * unit):
            up, down = (
                tape.op("Clip", value, *ends, shape=value.shape) for ends in ((0.0, FAR), (-FAR, -NEAR))
            )
            strengths.append(up - down.reciprocal())  # the second is lost in rounding where the first counts
        both = strengths[0] * strengths[1]
        return tape.op("Softsign", both, shape=both.shape)

    def slopes(self, x: Symbol, r: Symbol, y: Symbol, yr: Symbol, *, first: Any, second: Any) -> Symbol:
        """``(y - yr) / (x - r)``, and what the derivatives at ``x`` say where ``x`` and ``r`` are close.

        A smooth blend, which threads better than a condition. With ``d = x - r``, the chord is
        ``f' - f'' d / 2 + f''' d^2 / 6``, and this is its mean with its first two terms, with the weights
        ``d^2`` and ``e^2``: wrong by at most ``e^2 f''' / 6``, and the rounding of ``y`` is enlarged by at
        most ``1 / (2 e)``.
        """
        d = x - r
        weight = self.width * self.width
        bent = y - second * (weight / 2)
        blend: Symbol = ((bent - yr) * d + first * weight) / (d * d + weight)
        return blend

    @property
    def least(self) -> float:
        """What denominators that may be 0 are raised to."""
        return 1e-20 if self.tape.dtype == torch.float32 else 1e-40

    def slopes_of_exp(self, x: Symbol, r: Symbol, y: Symbol, yr: Symbol) -> Symbol:
        """The multiplier of ``y = exp(x)``."""
        return self.slopes(x, r, y, yr, first=y, second=y)

    @property
    def width(self) -> float:
        """Difference below which the derivative is used."""
        return 1e-3 if self.tape.dtype == torch.float32 else 1e-6

    def shares(self, axes: Sequence[int]) -> tuple[Symbol, Symbol, Symbol]:
        """The logarithm of the sum of exponentials over axes, at both points, and its multipliers.

        It is a logarithm of a sum of exponentials around the larger of both results: ``log``, a sum and
        ``exp``, each by its own rule.
        """
        totals = []
        # attention masks are -inf, and the difference of two is not a number
        self.x, self.r = ((value[0].maximum(LOWEST), *value[1:]) for value in (self.x, self.r))
        for value in (self.x[0], self.r[0]):
            shape = tuple(1 if i in axes else s for i, s in enumerate(value.shape))
            totals.append(self.tape.op("ReduceLogSumExp", value, self.tape.lift(list(axes)), shape=shape))
        total, total_r = totals
        center = total.maximum(total_r)
        slopes = []
        for x, r in ((self.x[0] - center, self.r[0] - center), (total - center, total_r - center)):
            slopes.append(self.slopes_of_exp(x, r, x.exp(), r.exp()))
        # log is the inverse of exp: its multiplier is one over that of exp
        return total, total_r, slopes[0] / slopes[1]

    def rescale(self, operator: Any) -> Pulled:
        """A smooth operator of one live input by the rescale rule."""
        x, r = self.x[0], self.r[0]
        slope = self.slopes(
            x, r, self.y[0], self.yr[0], first=operator.derivative(x), second=operator.second(x)
        )
        return self.only(0, self.grad * slope)

    def pieces(self, knots: Sequence[Any], slopes: Sequence[Any]) -> Pulled:
        """A continuous piecewise-linear operator: ``slopes[i]`` holds before ``knots[i]``.

        The function is a line and one bend for each knot, and each bend is a Relu.
        """
        x, r = self.x[0], self.r[0]
        total: Any = slopes[0]
        plain = all(isinstance(slope, float) for slope in slopes) and list(slopes) == [0.0, 1.0]
        fast = self.tape.ahead and self.tape.dtype == torch.float32 and r.uses == Uses.REFERENCE
        rule = self.odds if plain and fast and x.ndim > 1 else self.relu
        for knot, before, after in zip(knots, slopes[:-1], slopes[1:], strict=True):
            place = None if isinstance(knot, int | float) and knot == 0 else self._parameter(knot)
            change = after - before
            bend = rule(x, r) if place is None else rule(x - place, r - place)
            if not (isinstance(change, float) and change == 1):
                bend = bend * self._parameter(change)
            total = bend if isinstance(total, float) and total == 0 else bend + self._parameter(total)
        total = total if isinstance(total, Symbol) else self.tape.lift(total)
        return self.only(0, self.grad * total)

    def number(self, value: Symbol) -> Symbol:
        """0 or 1 for a condition."""
        return where(value, 1.0, 0.0)

    def share(self, index: int) -> Symbol:
        """How much of a condition holds: at both points, at one, or at none."""
        at_x = self.number(self.x[index])
        return (at_x + self.number(self.r[index])) * 0.5 if self.live[index] else at_x

    def bends(self, operator: Any) -> Pulled:
        """A piecewise-linear operator, by its knots and the slopes between them."""
        constants = [None if i is None else i.value.double().unsqueeze(0) for i in self.x[1:]]
        sample = torch.zeros((1,) * (self.x[0].ndim + 1), dtype=torch.float64)
        knots = sorted({float(knot) for knot in operator.knots(sample, *constants)})
        inner = [(a + b) / 2 for a, b in pairwise(knots)]
        near = [*inner, knots[-1] + 1] if knots else [0.0]
        gaps = [min(1.0, (b - a) / 4) for a, b in pairwise(knots)]
        starts = [knots[0] - 2, *near] if knots else near
        steps = torch.tensor([1.0, *gaps, 1.0] if knots else [1.0], dtype=torch.float64)
        points = torch.tensor(starts, dtype=torch.float64)
        shape = (1, *(1,) * (self.x[0].ndim - 1), -1) if self.x[0].ndim else (-1,)
        ends = torch.stack([points, points + steps], 1).reshape(shape)
        values = operator.forward(ends, *constants)[0].reshape(-1, 2)
        slopes = ((values[:, 1] - values[:, 0]) / steps).tolist()
        return self.only(0, self.pieces(knots, slopes)[0])

    def _parameter(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.tape.stored(value.to(self.tape.dtype)) if value.numel() > 1 else float(value)
        return value

    def extremes(self, op: str) -> Pulled:
        """Maximum or minimum of several inputs, two at a time."""
        shape, tape = self.y[0].shape, self.tape

        def best(a: Symbol, b: Symbol) -> Symbol:
            return tape.op(op, a, b, shape=broadcast(a.shape, b.shape))

        pairs = []
        x, r = self.x[0], self.r[0]
        for other, before in zip(self.x[1:], self.r[1:], strict=True):
            pairs.append((x, r, other, before))
            x, r = best(x, other), best(r, before)
        grad, grads = self.grad, []
        for x, r, other, before in reversed(pairs):
            new, old = best(x, other), best(r, before)
            mixed, mixed_r = best(x, before), best(r, other)
            share = ((new - mixed_r) + (mixed - old)) * 0.5
            other_share = ((new - mixed) + (mixed_r - old)) * 0.5
            grads.append(grad * self.over(other_share, other - before))
            grad = grad * self.over(share, x - r)
        grads.append(grad)
        return self.each(*(tape.expand(g, shape) for g in reversed(grads)))

    @staticmethod
    def over(part: Symbol, whole: Symbol) -> Symbol:
        """``part / whole``, 0 where both are 0."""
        return part / where(whole.abs() > 0.0, whole, 1.0)

    def winners(self) -> Symbol:
        """A maximum over windows: the change goes to where the larger of both maxima is."""
        tape, x, r = self.tape, self.x[0], self.r[0]
        y, yr = self.y[0], self.yr[0]
        size, count = math.prod(x.shape[1:]), math.prod(y.shape[1:])
        place, place_r = (tape.reshape(self.places[i], (1, count)) for i in (0, 1))
        y, yr, grad = (tape.reshape(value, (1, count)) for value in (y, yr, self.full))
        to = where(y > yr, place, place_r)
        change = tape.reshape(x - r, (1, size))
        chosen = tape.op("GatherElements", change, to, shape=(1, count), axis=1)
        moved = (y - yr).abs() / chosen.abs().maximum(self.least) * grad
        zeros = tape.op("Expand", tape.lift(0.0), tape.lift((tape.rows, size)), shape=(1, size))
        spread = tape.op("ScatterElements", zeros, to, moved, shape=(1, size), axis=1, reduction="add")
        return tape.reshape(spread, x.shape)

    def extreme_of(self, axes: Sequence[int], sign: int, grad: Symbol | None = None) -> Symbol:
        """A maximum (minimum) over whole axes; what several attain is shared."""
        tape, x, r = self.tape, self.x[0], self.r[0]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
        grad = self.grad if grad is None else grad
        y, yr = tape.reshape(self.y[0], kept), tape.reshape(self.yr[0], kept)
        shares = []
        for value, best in ((x, y), (r, yr)):
            hit = tape.op("Equal", value, best, shape=value.shape, dtype=torch.bool)
            mask = where(hit, 1.0, 0.0)
            shares.append(mask / tape.sum(mask, list(axes)))
        chosen = where(y > yr if sign > 0 else y < yr, *shares)
        moved: Symbol = grad * (y - yr).abs() * chosen / (x - r).abs().maximum(self.least)
        return moved

    def jump(self) -> Pulled:
        """An elementwise operator that may jump: ``(y - yr) / (x - r)``, 0 where ``x`` equals ``r``."""
        slope = self.over(self.y[0] - self.yr[0], self.x[0] - self.r[0])
        return self.only(0, self.grad * slope)

    def moved(self, operator: Operator) -> Pulled:
        """An operator that only moves, repeats and leaves out elements, by a table of where they went."""
        count = 1  # 0 stands for elements of constants and of padding
        marked: list[Tensor | None] = []
        for value, alive in zip(self.x, self.live, strict=True):
            if value is None:
                marked.append(None)
            elif alive:
                size = math.prod(value.shape)
                ids = torch.arange(count, count + size, dtype=torch.float64)
                marked.append(ids.reshape(1, *value.shape))
                count += size
            else:
                real = value.value.is_floating_point()
                known = torch.zeros(value.shape, dtype=torch.float64) if real else value.value
                marked.append(known.unsqueeze(0))
        results = operator.forward(*marked)
        used = [(g, t) for g, t in zip(self.grads, results, strict=False) if g is not None]
        table = torch.cat([result.reshape(-1) for _, result in used]).round().long()
        flat = [self._flat(self.tape.expand(grad, tuple(result.shape[1:]))) for grad, result in used]
        gathered = self._gather(flat, table, count - 1)
        grads: list[Symbol | None] = []
        start = 0
        for value, alive in zip(self.x, self.live, strict=True):
            if not alive:
                grads.append(None)
                continue
            size = math.prod(value.shape)
            part = self.tape.slice(gathered, 1, start, start + size)
            grads.append(self.tape.reshape(part, value.shape))
            start += size
        return tuple(grads)

    def _flat(self, value: Symbol) -> Symbol:
        return self.tape.reshape(value, (1, math.prod(value.shape)))

    def _gather(self, flat: Sequence[Symbol], table: Tensor, count: int) -> Symbol:
        """Sum the multipliers of everything that an element became; row 0 of the padded source is zero."""
        order = torch.argsort(table, stable=True)
        ids = table[order]
        order = order[ids > 0]
        ids = ids[ids > 0] - 1
        times = torch.bincount(ids, minlength=count)
        most = int(times.max()) if len(times) else 0
        if most == 0:
            return self.tape.lift(torch.zeros((1, count), dtype=self.tape.dtype))
        place = torch.arange(len(ids)) - (times.cumsum(0) - times)[ids]
        index = torch.zeros((count, most), dtype=torch.int64)
        index[ids, place] = order + 1
        zero = self.tape.lift(torch.zeros((1, 1), dtype=self.tape.dtype))
        source = self.tape.concat([zero, *flat], 1)
        if most == 1:
            return self.tape.op("Gather", source, index[:, 0], shape=(1, count), axis=1)
        picked = self.tape.op("Gather", source, index, shape=(1, count, most), axis=1)
        return self.tape.sum(picked, [2], keepdims=False)
