"""Convolutions in double precision equal torch's, whatever their strides, pads, dilations and groups."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops import kernels
from selkit.graph.ops.base import UnsupportedAttribute
from selkit.graph.ops.convolution import Conv, ConvTranspose

CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


class Draw:
    """A convolution drawn at random: every attribute, 1 to 3 axes, grids of one place and more."""

    def __init__(self, seed: int) -> None:
        pick = random.Random(seed).choice  # noqa: S311 - no secret
        torch.manual_seed(seed)
        self.dims = pick((1, 2, 3))
        axes = range(self.dims)
        self.group, self.inputs, self.results = pick((1, 2, 3, 5)), pick((1, 1, 2)), pick((1, 1, 2))
        self.grid = [pick((1, 2, 3, 5, 7)) for _ in axes]
        self.kernel = [pick((1, 2, 3, 5)) for _ in axes]
        self.strides = tuple(pick((1, 1, 2, 3)) for _ in axes)
        self.dilations = tuple(pick((1, 1, 2)) for _ in axes)
        self.before, self.after = [pick((0, 1, 2)) for _ in axes], [pick((0, 1, 2)) for _ in axes]
        channels = self.group * self.inputs
        self.x = torch.randn(pick((1, 2, 6)), 1, channels, *self.grid, dtype=torch.float64)
        self.b = (
            torch.randn(1, self.group * self.results, dtype=torch.float64) if pick((True, False)) else None
        )

    def weights(self, first: int, second: int) -> Tensor:
        return torch.randn(1, first, second, *self.kernel, dtype=torch.float64)

    @property
    def bias(self) -> Tensor | None:
        return None if self.b is None else self.b[0]

    def fits(self) -> bool:
        axes = zip(self.grid, self.before, self.after, self.kernel, self.dilations, strict=True)
        return all(n + first + last > (k - 1) * d for n, first, last, k, d in axes)


def check(mine: Tensor, truth: Tensor) -> None:
    assert mine.shape == truth.shape
    torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [kernels.BLOCK, 40])
def test_convolutions_equal_those_of_torch(block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)  # small: images and channels come in parts
    monkeypatch.setattr(kernels, "CACHE", kernels.CACHE if block > 40 else 500)
    seen = set()
    for seed in range(220):
        case = Draw(seed)
        if not case.fits():
            continue
        w = case.weights(case.group * case.results, case.inputs)
        operator = Conv(
            strides=case.strides,
            pads=(*case.before, *case.after),
            dilations=case.dilations,
            group=case.group,
        )
        (y,) = operator.forward(case.x, w, case.b)
        sides = [n for pair in zip(case.before[::-1], case.after[::-1], strict=True) for n in pair]
        padded = functional.pad(case.x[:, 0], sides)
        truth = CONV[case.dims - 1](padded, w[0], case.bias, case.strides, 0, case.dilations, case.group)
        check(y[:, 0], truth)
        seen.add((case.dims, case.group > 1, case.inputs > 1, max(case.strides) > 1))
    assert len(seen) >= 20


def test_transposed_convolutions_equal_those_of_torch():
    seen = set()
    for seed in range(160):
        case = Draw(seed)
        w = case.weights(case.group * case.inputs, case.results)
        operator = ConvTranspose(strides=case.strides, dilations=case.dilations, group=case.group)
        (y,) = operator.forward(case.x, w, case.b)
        truth = TRANSPOSED[case.dims - 1](
            case.x[:, 0], w[0], case.bias, case.strides, 0, 0, case.group, case.dilations
        )
        check(y[:, 0], truth)
        seen.add((case.dims, case.group > 1, case.inputs > 1, max(case.strides) > 1))
    assert len(seen) >= 20


@pytest.mark.parametrize("transposed", [False, True])
def test_shapes_without_data_are_those_of_the_results(transposed):
    told = 0
    for seed in range(120):
        case = Draw(seed)
        fits = case.fits() or transposed
        first, second = case.group * case.inputs, case.results
        named = {"strides": case.strides, "dilations": case.dilations, "group": case.group}
        if transposed:
            operator, w = ConvTranspose(**named), case.weights(first, second)
        else:
            operator = Conv(pads=(*case.before, *case.after), **named)
            w = case.weights(case.group * second, case.inputs)
        if not fits:
            with pytest.raises(UnsupportedAttribute, match="does not fit"):
                operator.outline(case.x, w, case.b)
            continue
        (outline,) = operator.outline(case.x.to("meta"), w, case.b)
        (y,) = operator.forward(case.x, w, case.b)
        assert (outline.shape, outline.dtype, outline.device.type) == (y.shape, y.dtype, "meta")
        assert operator.outline(case.x[:, :, 1:], w, case.b) is None  # forward says what is wrong
        told += 1
    assert told > 60


def test_a_wrong_element_is_seen():
    x, w = torch.randn(3, 1, 4, 6, 6, dtype=torch.float64), torch.randn(1, 4, 1, 3, 3, dtype=torch.float64)
    (y,) = Conv(pads=(1, 1, 1, 1), group=4).forward(x, w)
    truth = functional.conv2d(x[:, 0], w[0], padding=1, groups=4)
    truth[1, 2, 3, 4] += 1e-9
    with pytest.raises(AssertionError):
        check(y[:, 0], truth)


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("side", [2, 4, 9])
def test_the_order_of_axes_in_memory_does_not_matter(group, side):
    """A network with channels last transposes first: what comes has its channels together."""
    x = torch.randn(3, 1, side, side, 6, dtype=torch.float64).permute(0, 1, 4, 2, 3)
    assert not x.is_contiguous()
    w = torch.randn(1, 6, 6 // group, 3, 3, dtype=torch.float64)
    back = torch.randn(1, 6, 6 // group, 4, 4, dtype=torch.float64)
    for stride in (1, 2):
        (y,) = Conv(pads=(1, 1, 1, 1), strides=(stride, stride), group=group).forward(x, w)
        check(y[:, 0], functional.conv2d(x[:, 0].contiguous(), w[0], None, stride, 1, 1, group))
        (y,) = ConvTranspose(strides=(stride, stride), group=group).forward(x, back)
        check(y[:, 0], functional.conv_transpose2d(x[:, 0].contiguous(), back[0], None, stride, 0, 0, group))


@pytest.mark.parametrize("side", [3, 12])
def test_infinite_values_stay_where_the_windows_are_that_see_them(side):
    """On 3 x 3 places a channel is multiplied by a matrix, where 0 times infinity would spread."""
    x = torch.randn(2, 1, 2, side, side, dtype=torch.float64)
    x[0, 0, 1, 0, 0] = torch.inf
    w = torch.rand(1, 2, 1, 3, 3, dtype=torch.float64)
    (y,) = Conv(pads=(1, 1, 1, 1), group=2).forward(x, w)
    truth = functional.conv2d(x[:, 0], w[0], padding=1, groups=2)
    assert torch.equal(torch.isinf(y[:, 0]), torch.isinf(truth))
    assert not torch.isnan(y).any()


@pytest.mark.parametrize("group", [1, 2, 6])
def test_a_batch_equals_its_singles(group):
    x = torch.randn(7, 1, 6, 4, 4, dtype=torch.float64)
    w = torch.randn(1, 6, 6 // group, 3, 3, dtype=torch.float64)
    operator = Conv(pads=(1, 1, 1, 1), group=group)
    (together,) = operator.forward(x, w)
    for place in range(7):
        check(together[place], operator.forward(x[place : place + 1], w)[0][0])
