"""Matrix products."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.graph.ops.base import Kind, Operator, Product, UnsupportedAttribute, align, register


@register("MatMul", since=(1, 9, 13))
@dataclass(frozen=True)
class MatMul(Product):
    """Matrix product as :func:`numpy.matmul`."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        row, column = a.ndim == 2, b.ndim == 2
        a = a.unsqueeze(-2) if row else a
        b = b.unsqueeze(-1) if column else b
        if b.shape[0] == 1 and b.ndim == 3:
            # one matrix for all: a single product instead of a batch of them
            y = torch.matmul(a, b[0])
        else:
            y = torch.matmul(*align(a, b))
        y = y.squeeze(-1) if column else y
        return (y.squeeze(-1 if column else -2) if row else y,)

    def spread(self, live: Sequence[bool], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return self.forward(a.abs(), b.abs())


@register("Gemm", since=(7, 9, 11, 13))
@dataclass(frozen=True)
class Gemm(Operator):
    """``alpha A B + beta C``; bilinear in ``A`` and ``B``, affine in ``C``."""

    KIND = Kind.AFFINE
    NOTE = "a product if both factors are live"

    alpha: float = 1.0
    beta: float = 1.0
    transA: int = 0  # noqa: N815 - ONNX' name
    transB: int = 0  # noqa: N815 - ONNX' name

    def kind(self, live: Sequence[bool]) -> Kind:
        """``PRODUCT`` if both factors are live, else ``AFFINE``."""
        return Kind.PRODUCT if live[0] and live[1] else super().kind(live)

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        a = a.mT if self.transA else a
        b = b.mT if self.transB else b
        y = torch.matmul(a, b[0] if b.shape[0] == 1 else b)
        y = y if self.alpha == 1 else y * self.alpha
        if c is None:
            return (y,)
        c, y = align(c, y)
        return (y + (c if self.beta == 1 else c * self.beta),)

    def spread(
        self, live: Sequence[bool], a: Tensor, b: Tensor, c: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Radii go through the absolute factor, as :meth:`Affine.spread`."""
        a = a.abs() if live[0] or live[1] else torch.zeros_like(a)
        positive = Gemm(abs(self.alpha), abs(self.beta), self.transA, self.transB)
        return positive.forward(a, b.abs(), c if c is not None and live[2] else None)


@register("Einsum", since=(12, 28))
@dataclass(frozen=True)
class Einsum(Product):
    """Einstein summation."""

    NOTE = "affine with one live input, a product with two"

    equation: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z.,\s]*(->[A-Za-z.\s]*)?", self.equation):
            raise UnsupportedAttribute(f"equation={self.equation!r} is not understood")

    def kind(self, live: Sequence[bool]) -> Kind:
        if sum(live) > 2:
            raise UnsupportedAttribute(
                f"{sum(live)} inputs depend on the model's input; at most 2 are supported"
            )
        return super().kind(live)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        terms, result = self._terms()
        stack = next(letter for letter in string.ascii_letters if letter not in self.equation)
        stacked = [value.shape[0] > 1 for value in inputs]
        if not any(stacked):
            stacked = [True] * len(inputs)
        values = [value if many else value[0] for value, many in zip(inputs, stacked, strict=True)]
        marked = [stack + term if many else term for term, many in zip(terms, stacked, strict=True)]
        return (torch.einsum(f"{','.join(marked)}->{stack}{result}", *values),)

    def spread(self, live: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.forward(*[value.abs() for value in inputs])

    def _terms(self) -> tuple[list[str], str]:
        """Subscripts of the inputs and of the result, which may be implied."""
        left, arrow, right = self.equation.replace(" ", "").partition("->")
        terms = left.split(",")
        if not arrow:
            letters = sorted(set(left) - {",", "."})
            right = "".join(letter for letter in letters if left.count(letter) == 1)
            right = f"...{right}" if "..." in left else right
        return terms, right
