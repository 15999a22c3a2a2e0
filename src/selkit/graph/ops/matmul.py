"""Matrix products."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import (
    Kind,
    Operator,
    Product,
    UnsupportedAttribute,
    align,
    blank,
    broadcast,
    register,
)


@register("MatMul", since=(1, 9, 13))
@dataclass(frozen=True)
class MatMul(Product):
    """Matrix product as :func:`numpy.matmul`."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        if a.dtype != b.dtype:
            # constants may be as precise as the model's weights, or more
            common = torch.promote_types(a.dtype, b.dtype)
            a, b = a.to(common), b.to(common)
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

    def outline(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...] | None:
        if min(a.ndim, b.ndim) < 3 or a.dtype != b.dtype or a.shape[-1] != b.shape[-2]:
            return None
        try:
            front = broadcast(a.shape[1:-2], b.shape[1:-2])
        except ValueError:
            return None
        return (blank(a, (a.shape[0], *front, a.shape[-2], b.shape[-1])),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Each factor by the other's mean, transposed."""
        tape, (a, b) = pull.tape, pull.x
        left = (1, a.shape[0]) if a.ndim == 1 else a.shape
        right = (b.shape[0], 1) if b.ndim == 1 else b.shape
        full = (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])
        grad = tape.reshape(pull.full, full)
        results: list[Any] = []
        for i, shape in enumerate((left, right)):
            if not pull.live[i]:
                results.append(None)
                continue
            other = tape.transposed(tape.reshape(pull.middle(1 - i), (right, left)[i]))
            product = tape.matmul(grad, other) if i == 0 else tape.matmul(other, grad)
            results.append(tape.reshape(pull.collect(product, shape, product.shape), pull.x[i].shape))
        return tuple(results)

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

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Each factor by the other's mean, transposed."""
        tape, grad = pull.tape, pull.grad
        results: list[Any] = [None] * len(pull.x)
        if pull.live[0]:
            b = pull.middle(1)
            given = (grad, b) if not self.transA else (b, grad)
            flags = (0, 1 - self.transB) if not self.transA else (self.transB, 1)
            results[0] = self._product(pull, given, flags, 0)
        if pull.live[1]:
            a = pull.middle(0)
            given = (a, grad) if not self.transB else (grad, a)
            flags = (1 - self.transA, 0) if not self.transB else (1, self.transA)
            results[1] = self._product(pull, given, flags, 1)
        if len(pull.x) > 2 and pull.live[2]:
            results[2] = pull.collect(grad if self.beta == 1 else grad * self.beta, pull.x[2].shape)
        return tuple(
            tape.expand(g, x.shape) if g is not None else None for g, x in zip(results, pull.x, strict=True)
        )

    def _product(self, pull: Any, given: Sequence[Any], flags: Sequence[int], index: int) -> Any:
        full = [pull.tape.expand(value, pull.y[0].shape) if value is pull.grad else value for value in given]
        return pull.tape.op(
            "Gemm", *full, shape=pull.x[index].shape, alpha=self.alpha, transA=flags[0], transB=flags[1]
        )

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

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The sum over the other indices, with the mean of another live factor."""
        terms, result = self._explicit([value.shape for value in pull.x])
        grads: list[Any] = []
        for i, alive in enumerate(pull.live):
            if not alive:
                grads.append(None)
                continue
            others = [j for j in range(len(terms)) if j != i]
            known = set(result).union(*(terms[j] for j in others))
            kept = "".join(letter for letter in terms[i] if letter in known)
            if len(set(terms[i])) < len(terms[i]):
                raise UnsupportedAttribute(f"equation={self.equation!r} takes a diagonal")
            equation = f"{','.join([result, *(terms[j] for j in others)])}->{kept}"
            sizes = dict(zip(terms[i], pull.x[i].shape, strict=True))
            factors = [pull.full, *(pull.middle(j) for j in others)]
            grad = pull.tape.op("Einsum", *factors, shape=tuple(sizes[k] for k in kept), equation=equation)
            kept_shape = tuple(sizes[k] if k in known else 1 for k in terms[i])
            grads.append(pull.tape.expand(pull.tape.reshape(grad, kept_shape), pull.x[i].shape))
        return tuple(grads)

    def _explicit(self, shapes: Sequence[tuple[int, ...]]) -> tuple[list[str], str]:
        """Subscripts with letters in the place of an ellipsis."""
        terms, result = self._terms()
        free = [letter for letter in string.ascii_letters if letter not in self.equation]
        hidden = {
            shape[len(before) : len(shape) - len(term) + len(before) + 3]
            for shape, term in zip(shapes, terms, strict=True)
            if "..." in term
            for before in [term.partition("...")[0]]
        }
        if len(hidden) > 1:
            raise UnsupportedAttribute(f"equation={self.equation!r} broadcasts shapes {sorted(hidden)}")
        letters = "".join(free[: len(hidden.pop())]) if hidden else ""
        return [term.replace("...", letters) for term in terms], result.replace("...", letters)

    def _terms(self) -> tuple[list[str], str]:
        """Subscripts of the inputs and of the result, which may be implied."""
        left, arrow, right = self.equation.replace(" ", "").partition("->")
        terms = left.split(",")
        if not arrow:
            letters = sorted(set(left) - {",", "."})
            right = "".join(letter for letter in letters if left.count(letter) == 1)
            right = f"...{right}" if "..." in left else right
        return terms, right
