"""Convolutions in double precision on the CPU, where torch's own are slow.

Torch unfolds every image and calls one matrix product for each image and each group. That is slow where
groups are many (depthwise convolutions), and where images are small (each product reads all weights for a
few places). Here, in the same arithmetic and chosen by measuring:

- elements of a kernel that see nothing but padding are left out;
- depthwise convolutions are sums of shifted products, a few at a time so that they stay in the cache; on
  grids of a few places they are one small matrix for each channel;
- other grouped ones unfold once and multiply all groups together;
- dense ones on few places multiply the places of all images at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops.windows import Windows

CACHE = 2**20
"""Bytes of unfolded input for each thread that are convolved at once."""

BLOCK = 2**17
"""Elements of which shifted products are taken at once: they drown the overhead and fit into the cache."""

TINY = 2**10
"""Places of the input times places of the result up to which a channel's convolution is a matrix."""

FEW = 16
"""Places of the result up to which those of all images are multiplied at once."""

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def slow(x: Tensor) -> bool:
    """Whether torch has no kernels of its own for such values."""
    own = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return x.is_cpu and (x.dtype == torch.float64 or (x.dtype == torch.float32 and not own))


def convolve(x: Tensor, w: Tensor, b: Tensor | None, placed: Windows, group: int) -> Tensor:
    """Convolve a batch.

    Parameters
    ----------
    x, w, b
        Batch, weights and bias, as torch's convolutions take them.
    placed
        Where the windows lie.
    group
        Number of groups of channels.
    """
    keep, begin, end = _trim(placed)
    w = w[(slice(None), slice(None), *keep)]
    taps, places = math.prod(w.shape[2:]), math.prod(placed.sizes)
    unfolded = x.element_size() * x.shape[1] * taps * places
    count = max(1, torch.get_num_threads() * (CACHE // max(unfolded, 1)))
    together = group == 1 and places <= FEW and len(x) > 1
    if group == 1 and not together:
        padding: Sequence[int] = begin
        if begin != end or min(begin) < 0:
            x, padding = _padded(x, begin, end), (0,) * len(begin)
        function = CONV[w.ndim - 2]
        return _in_parts(
            x,
            len(x) if taps == 1 else count,
            lambda part: function(part, w, b, placed.strides, padding, placed.dilations),
        )
    if together or w.shape[1] > 1:
        return _in_parts(_padded(x, begin, end), count, lambda part: _unfolded(part, w, b, placed, group))
    if math.prod(x.shape[2:]) * places <= TINY and taps > 1:
        y = _by_matrices(x, w, b, placed, begin)
        if not bool(y.sum().isnan()):  # a matrix carries infinite values to places that do not see them
            return y
    each = w.shape[0] // group
    factors = w.reshape(group, each, taps).unbind(2)
    starts = [
        tuple(element * dilation for element, dilation in zip(tap, placed.dilations, strict=True))
        for tap in itertools.product(*map(range, w.shape[2:]))
    ]
    y = _shifted(x, (begin, end), list(zip(starts, factors, strict=True)), placed.sizes, placed.strides)
    y = y if b is None else y.add_(b.reshape(group, each, *(1,) * (y.ndim - 3)))
    return y.flatten(1, 2)


def transpose(
    x: Tensor, w: Tensor, full: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Tensor:
    """Stamp the weights of each channel at each place of a batch: a depthwise transposed convolution.

    The places of the result that are a stride apart are a convolution with stride 1, by every so many
    elements of the kernel.

    Parameters
    ----------
    x, w
        Batch and weights, as torch's transposed convolutions take them.
    full
        Spatial sizes of the result.
    strides, dilations
        One for each spatial axis.
    """
    channels, each, kernel = *w.shape[:2], w.shape[2:]
    y = x.new_zeros(len(x), channels, each, *full)
    for phase in itertools.product(*map(range, strides)):
        axes = list(zip(phase, strides, dilations, kernel, strict=True))
        elements = [[e for e in range(k) if e * d % s == r] for r, s, d, k in axes]
        sizes = [max(0, -(-(size - r) // s)) for size, r, s in zip(full, phase, strides, strict=True)]
        if not all(elements) or not all(sizes):
            continue
        shifts = [[(e * d - r) // s for e in seen] for seen, (r, s, d, _) in zip(elements, axes, strict=True)]
        most = [max(shift) for shift in shifts]
        after = [
            max(0, size - min(shift) - length)
            for size, shift, length in zip(sizes, shifts, x.shape[2:], strict=True)
        ]
        taps = [
            (tuple(m - shift for m, shift in zip(most, tap, strict=True)), _element(w, element))
            for tap, element in zip(itertools.product(*shifts), itertools.product(*elements), strict=True)
        ]
        place = tuple(slice(r, None, s) for r, s in zip(phase, strides, strict=True))
        part = _shifted(x, (most, after), taps, sizes, (1,) * len(sizes))
        y[(slice(None), slice(None), slice(None), *place)] = part
    return y.flatten(1, 2)


@lru_cache(maxsize=1024)
def _trim(placed: Windows) -> tuple[tuple[slice, ...], tuple[int, ...], tuple[int, ...]]:
    """Elements of the kernel that see more than padding, and the padding for them (below 0: cut)."""
    keep, begin, end = [], [], []
    for axis, length in enumerate(placed.grid):
        stride, dilation = placed.strides[axis], placed.dilations[axis]
        seen = []
        for element in range(placed.kernel[axis]):
            start = element * dilation - placed.begin[axis]
            nearest = max(0, -(start // stride))
            if nearest < placed.sizes[axis] and start + nearest * stride < length:
                seen.append(element)
        low, high = (seen[0], seen[-1] + 1) if seen else (0, placed.kernel[axis])
        keep.append(slice(low, high))
        begin.append(placed.begin[axis] - low * dilation)
        last = placed.end[axis] - (placed.kernel[axis] - high) * dilation
        if begin[axis] >= 0 and 0 <= begin[axis] - last < stride:
            last = begin[axis]  # what makes no other window: the same padding at both ends spares a copy
        end.append(0 if -stride < last < 0 else last)
    return tuple(keep), tuple(begin), tuple(end)


def _padded(x: Tensor, begin: Sequence[int], end: Sequence[int]) -> Tensor:
    sides = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return functional.pad(x, sides) if any(sides) else x


def _in_parts(x: Tensor, count: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to ``count`` images at a time."""
    if count >= len(x):
        return function(x)
    first = function(x[:count])
    y = first.new_empty((len(x), *first.shape[1:]))
    y[:count] = first
    for start in range(count, len(x), count):
        y[start : start + count] = function(x[start : start + count])
    return y


def _unfolded(x: Tensor, w: Tensor, b: Tensor | None, placed: Windows, group: int) -> Tensor:
    """Unfold a padded batch, and multiply the places of all images at once, group by group."""
    count, kernel, sizes = len(x), tuple(w.shape[2:]), placed.sizes
    own, channel, *axes = x.stride()
    seen = x.as_strided(
        (x.shape[1], *kernel, count, *sizes),
        (
            channel,
            *(step * dilation for step, dilation in zip(axes, placed.dilations, strict=True)),
            own,
            *(step * stride for step, stride in zip(axes, placed.strides, strict=True)),
        ),
    )
    columns = seen.reshape(group, x.shape[1] // group * math.prod(kernel), count * math.prod(sizes))
    y = torch.bmm(w.reshape(group, -1, columns.shape[1]), columns)
    if b is not None:
        y += b.reshape(group, -1, 1)
    return y.reshape(-1, count, *sizes).transpose(0, 1).contiguous()


def _by_matrices(x: Tensor, w: Tensor, b: Tensor | None, placed: Windows, begin: tuple[int, ...]) -> Tensor:
    """Convolve each channel of a batch by the matrix from its places to those of the result."""
    channels, each = x.shape[1], w.shape[0] // x.shape[1]
    index = _matrix(placed, tuple(w.shape[2:]), begin)
    padded = functional.pad(w.reshape(channels, each, -1), (1, 0))
    matrices = padded.index_select(2, index.reshape(-1)).reshape(channels, each, *index.shape)
    y = torch.bmm(x.flatten(2).transpose(0, 1), matrices.transpose(1, 2).flatten(2))
    if b is not None:
        y += b.reshape(channels, 1, each, 1).expand(-1, -1, -1, index.shape[1]).reshape(channels, 1, -1)
    return y.transpose(0, 1).reshape(len(x), channels * each, *placed.sizes)


@lru_cache(maxsize=256)
def _matrix(placed: Windows, kernel: tuple[int, ...], begin: tuple[int, ...]) -> Tensor:
    """For each place of the input and of the result the kernel's element between them, plus 1; or 0."""
    index = torch.zeros(math.prod(placed.grid), math.prod(placed.sizes), dtype=torch.int64)
    axes = list(zip(placed.grid, placed.strides, placed.dilations, begin, strict=True))
    for result, window in enumerate(itertools.product(*map(range, placed.sizes))):
        for element, tap in enumerate(itertools.product(*map(range, kernel)), start=1):
            source = 0
            for (length, stride, dilation, first), place, at in zip(axes, window, tap, strict=True):
                here = place * stride + at * dilation - first
                source = source * length + here if source >= 0 and 0 <= here < length else -1
            if source >= 0:
                index[source, result] = element
    return index


def _shifted(
    x: Tensor,
    padding: tuple[Sequence[int], Sequence[int]],
    taps: Sequence[tuple[tuple[int, ...], Tensor]],
    sizes: Sequence[int],
    strides: Sequence[int],
) -> Tensor:
    """Add up products of each channel's shifted grid with a factor, (images, channels, factors, *sizes).

    Parameters
    ----------
    x, padding
        Batch, and what to pad it with in front and behind.
    taps
        For each shift the place in the padded grid that the result's first place sees, and the factors, of
        shape (channels, results of one channel).
    sizes, strides
        Of the result, and how far apart the places are that its places see.
    """
    channels, each = taps[0][1].shape
    dims = len(sizes)
    y = x.new_empty(len(x), channels, each, *sizes)
    padded = [sum(three) for three in zip(x.shape[2:], *padding, strict=True)]
    # places a stride apart are laid side by side: then a shift is one run of numbers, some of no use
    grid = [-(-length // stride) for length, stride in zip(padded, strides, strict=True)]
    before, after = padding
    after = [e + n * s - p for e, n, s, p in zip(after, grid, strides, padded, strict=True)]
    steps = [math.prod(grid[axis + 1 :]) for axis in range(dims)]
    run = 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    shifts = []
    for start, _ in taps:
        phase = 0
        for place, stride in zip(start, strides, strict=True):
            phase = phase * stride + place % stride
        inner = sum(p // stride * step for p, stride, step in zip(start, strides, steps, strict=True))
        shifts.append(phase * math.prod(grid) + inner)
    apart = [side for pair in zip(grid, strides, strict=True) for side in pair]
    order = (0, 1, *range(3, 2 * dims + 2, 2), *range(2, 2 * dims + 2, 2))
    weights = [factor.reshape(channels, each, 1) for _, factor in taps]
    size = math.prod(padded) * each
    for part in _blocks(len(x), channels * size):
        for band in _blocks(channels, len(x[part]) * size):
            seen, target = _padded(x[part, band], before, after), y[part, band]
            if max(strides) > 1:
                seen = seen.reshape(*seen.shape[:2], *apart).permute(order)
            seen = seen.flatten(2).contiguous().unsqueeze(2)  # runs, whatever the order of the batch's axes
            first = seen[..., shifts[0] : shifts[0] + run]
            if torch.is_grad_enabled() and (x.requires_grad or weights[0].requires_grad):
                total = (first * weights[0][band]).contiguous()  # out= has no gradient
            else:
                total = torch.mul(first, weights[0][band], out=seen.new_empty(*target.shape[:3], run))
            for shift, weight in zip(shifts[1:], weights[1:], strict=True):
                total.addcmul_(seen[..., shift : shift + run], weight[band])
            target.copy_(total.as_strided(target.shape, (*total.stride()[:3], *steps)))
    return y


def _element(w: Tensor, place: Sequence[int]) -> Tensor:
    """One element of the kernel of each pair of channels."""
    for at in place:
        w = w.select(2, at)
    return w


def _blocks(count: int, each: int) -> Iterator[slice]:
    """Parts of ``count`` rows of ``each`` elements that are worked on at once."""
    step = max(1, BLOCK // max(each, 1))
    for start in range(0, count, step):
        yield slice(start, start + step)
