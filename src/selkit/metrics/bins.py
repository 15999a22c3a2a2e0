"""Bins for numbers of unknown range: a float32 cut to its first bits, which keeps the order.

The bits of a float32, read as an integer with the negative half mirrored, are in the order of the
numbers. Their first ``b`` bits give ``2**b`` bins that cover all numbers, with a width relative to the
numbers in them: 20 bits are sign, exponent and 11 bits of mantissa, a relative width of ``2**-11``.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 10, 26


def bin_of(values: Tensor, bits: int) -> Tensor:
    """Bin of each number, in order of the numbers.

    Parameters
    ----------
    values
        Real numbers, no NaN; rounded to float32.
    bits
        Binary logarithm of the number of bins.

    Returns
    -------
    Tensor
        int64 in ``[0, 2**bits)``, of the same shape.

    Examples
    --------
    >>> bin_of(torch.tensor([-1.0, 0.0, 1.0, 2.0]), bits=10)
    tensor([257, 512, 766, 768])
    """
    raw = (values.float() + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(raw < 0, -(raw & 0x7FFFFFFF) - 1, raw)
    return (ordered >> (32 - bits)) + (1 << (bits - 1))


def upper_edge(index: Tensor, bits: int) -> Tensor:
    """The largest float32 of each bin: the threshold that accepts all of the bin and no more.

    Parameters
    ----------
    index
        Bins, int64.
    bits
        As for :func:`bin_of`.

    Returns
    -------
    Tensor
        float32, of the same shape; infinity for bins that hold it.
    """
    ordered = ((index - (1 << (bits - 1)) + 1) << (32 - bits)) - 1
    raw = torch.where(ordered < 0, (-ordered - 1) | 0x80000000, ordered)
    edge = torch.where(raw > 0x7FFFFFFF, raw - (1 << 32), raw).to(torch.int32).view(torch.float32)
    return torch.where(edge.isnan(), torch.where(ordered < 0, -torch.inf, torch.inf), edge)
