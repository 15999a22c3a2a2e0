"""Matrix products in the precision of their inputs, whatever was switched on for speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, TF32 or bfloat16 for float32 products inside the block.

    ``torch.set_float32_matmul_precision("medium")`` and Lightning's ``precision="bf16-mixed"`` would
    otherwise leave two or three digits of a distance.
    """
    with contextlib.ExitStack() as stack:
        if torch.amp.autocast_mode.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        products: list[Any] = [getattr(torch.backends, name) for name in ("cuda", "mkldnn")]
        found: list[Any] = [getattr(backend, "matmul", None) for backend in products]
        named = [product for product in found if hasattr(product, "fp32_precision")]
        for backend in named:
            if backend.fp32_precision != "ieee":
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        if not named and torch.get_float32_matmul_precision() != "highest":  # torch before 2.9
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield


def exact_device(tensor: Tensor) -> torch.device:
    """Where float64 work on a tensor can be done: its device, except Apple's, which has no float64."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device
