"""Attention and rotary embeddings, by products, a softmax and what moves elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.graph.ops.arithmetic import Add, Mul, Sub
from selkit.graph.ops.base import (
    Composite,
    Decomposition,
    Kind,
    UnsupportedAttribute,
    broadcast,
    register,
)
from selkit.graph.ops.matmul import MatMul
from selkit.graph.ops.parts import (
    concat,
    cut,
    expand,
    ints,
    known_integers,
    real,
    reshape,
    scaled,
    transpose,
)
from selkit.graph.ops.shape import Gather, Where
from selkit.graph.ops.sigmoids import Tanh
from selkit.graph.ops.softmax import Softmax

MASKED = -1e30
"""Score of a key that may not be attended: its share is 0, and differences stay numbers."""


@register("Attention", since=(23, 24, 25))
@dataclass(frozen=True)
class Attention(Composite):
    """Softmax of scaled products of queries and keys, times the values; masks must be constant."""

    OUTPUTS = 4
    NOTE = "a mask that is added may depend on the input"

    is_causal: int = 0
    kv_num_heads: int = 0
    q_num_heads: int = 0
    qk_matmul_output_mode: int = 0
    scale: float | None = None
    softcap: float = 0.0
    softmax_precision: int | None = None  # the program's dtype decides that here
    left_window_size: int = -1
    right_window_size: int = -1

    def __post_init__(self) -> None:
        if self.qk_matmul_output_mode not in range(4):
            raise UnsupportedAttribute(f"qk_matmul_output_mode={self.qk_matmul_output_mode} is not 0 to 3")
        if self.softcap < 0:
            raise UnsupportedAttribute(f"softcap={self.softcap} is negative")
        if min(self.left_window_size, self.right_window_size) < -1:
            raise UnsupportedAttribute("left_window_size and right_window_size must be -1 or more")

    def kind(self, live: Sequence[bool]) -> Kind:
        """Refuse numbers of keys that depend on the model's input."""
        if len(live) > 6 and live[6]:
            raise UnsupportedAttribute("nonpad_kv_seqlen must not depend on the model's input")
        return super().kind(live)

    def decompose(self, build: Decomposition, *inputs: str) -> tuple[str, ...]:
        q, k, v, mask, past_k, past_v = (*inputs, "", "", "")[:6]
        flat = len(build.shapes[0] or ()) == 3
        q, q_shape = self._heads(build, q, build.shapes[0], self.q_num_heads)
        k, k_shape = self._heads(build, k, build.shapes[1], self.kv_num_heads)
        v, v_shape = self._heads(build, v, build.shapes[2], self.kv_num_heads)
        before = 0
        if past_k and past_v:
            before = (build.shapes[4] or ())[2]
            k, v = concat(build, [past_k, k], 2), concat(build, [past_v, v], 2)
        elif past_k or past_v:
            raise UnsupportedAttribute("past_key and past_value must be given together")
        keys = before + k_shape[2]
        present = k, v
        k = self._repeated(build, k, (*k_shape[:2], keys, k_shape[3]), q_shape[1])
        v = self._repeated(build, v, (*v_shape[:2], keys, v_shape[3]), q_shape[1])
        factor = 1 / math.sqrt(q_shape[3]) if self.scale is None else self.scale
        products = scores = build(MatMul(), scaled(build, q, factor), transpose(build, k, (0, 1, 3, 2)))
        if self.softcap:
            scores = scaled(build, build(Tanh(), scaled(build, scores, 1 / self.softcap)), self.softcap)
        capped = scores
        allowed, added = self._mask(build, mask, (q_shape[0], q_shape[2], keys), before)
        if added is not None:
            scores = build(Add(), scores, added)
        biased = scores
        if allowed is not None:
            biased = build(Where(), allowed, scores, real(-math.inf))
            scores = build(Where(), allowed, scores, real(MASKED))
        shares = build(Softmax(-1), scores)
        if allowed is not None and not bool(allowed.any(-1).all()):
            # a query without any key gets zeros
            shares = build(Mul(), shares, allowed.any(-1, keepdim=True).double())
        y = build(MatMul(), shares, v)
        if flat:
            y = transpose(build, y, (0, 2, 1, 3))
            y = reshape(build, y, (q_shape[0], q_shape[2], q_shape[1] * v_shape[3]))
        return y, *present, (products, capped, biased, shares)[self.qk_matmul_output_mode]

    @staticmethod
    def _heads(
        build: Decomposition, x: str, shape: tuple[int, ...] | None, heads: int
    ) -> tuple[str, tuple[int, int, int, int]]:
        """``(batch, heads, positions, size)`` of a value that may have its heads side by side."""
        if shape is not None and len(shape) == 4:
            return x, (shape[0], shape[1], shape[2], shape[3])
        if shape is None or len(shape) != 3 or heads < 1 or shape[2] % heads:
            raise UnsupportedAttribute(f"{heads} heads do not fit an input of shape {shape}")
        batch, length, size = shape[0], shape[1], shape[2] // heads
        x = transpose(build, reshape(build, x, (batch, length, heads, size)), (0, 2, 1, 3))
        return x, (batch, heads, length, size)

    @staticmethod
    def _repeated(build: Decomposition, x: str, shape: tuple[int, ...], heads: int) -> str:
        """Each head of keys or values for all heads of queries in its group."""
        batch, own, *rest = shape
        if own == heads:
            return x
        if heads % own:
            raise UnsupportedAttribute(f"{heads} heads of queries do not share {own} heads of keys evenly")
        x = reshape(build, x, (batch, own, 1, *rest))
        return reshape(build, expand(build, x, (batch, own, heads // own, *rest)), (batch, heads, *rest))

    def _mask(
        self, build: Decomposition, mask: str, sizes: tuple[int, int, int], before: int
    ) -> tuple[Tensor | None, str | Tensor | None]:
        """Which keys each query may attend (``None``: all), and what is added to the scores."""
        batch, queries, keys = sizes
        allowed = torch.ones((1, 1, queries, keys), dtype=torch.bool)
        position = torch.arange(keys)
        offset = torch.full((1, 1, 1, 1), before)
        lengths = known_integers(build, 6)
        if lengths is not None:
            if len(lengths) != batch:
                raise UnsupportedAttribute(f"nonpad_kv_seqlen has {len(lengths)} numbers for {batch} samples")
            count = ints(lengths).reshape(-1, 1, 1, 1)
            allowed, offset = allowed & (position < count), count - queries
        ahead = position - (torch.arange(queries).reshape(-1, 1) + offset)
        if self.is_causal:
            allowed = allowed & (ahead <= 0)
        if self.left_window_size >= 0:
            allowed = allowed & (-ahead <= self.left_window_size)
        if self.right_window_size >= 0:
            allowed = allowed & (ahead <= self.right_window_size)
        added: str | Tensor | None = None
        if mask:
            given, added = self._given(build, mask, keys)
            if given is not None:
                allowed = allowed & given
        return (None if bool(allowed.all()) else allowed), added

    @staticmethod
    def _given(build: Decomposition, mask: str, keys: int) -> tuple[Tensor | None, str | Tensor | None]:
        """What the mask of the model allows, and what it adds."""
        value, shape = build.constants[3], build.shapes[3] or ()
        missing = keys - shape[-1]
        if value is None:
            fill = torch.full((*shape[:-1], missing), MASKED, dtype=torch.float64)
            return None, concat(build, [mask, fill], -1) if missing else mask
        known = value[0].cpu()
        allowed = known if known.dtype == torch.bool else known > -torch.inf
        added = None if known.dtype == torch.bool else known.double().masked_fill(~allowed, 0)
        if missing:
            fill = torch.zeros((*shape[:-1], missing), dtype=torch.bool)
            allowed = torch.cat([allowed, fill], -1)
            added = added if added is None else torch.cat([added, fill.double()], -1)
        if added is not None and not bool(added.any()):
            added = None
        return allowed, added


@register("RotaryEmbedding", since=(23,))
@dataclass(frozen=True)
class RotaryEmbedding(Composite):
    """Pairs of features turned by an angle that grows with the position; the angles must be constant."""

    NOTE = "affine"

    interleaved: int = 0
    num_heads: int = 0
    rotary_embedding_dim: int = 0

    def kind(self, live: Sequence[bool]) -> Kind:
        """Refuse positions that depend on the model's input."""
        if len(live) > 3 and live[3]:
            raise UnsupportedAttribute("position_ids must not depend on the model's input")
        return super().kind(live)

    def decompose(self, build: Decomposition, *inputs: str) -> tuple[str, ...]:
        x, cos, sin, positions = (*inputs, "")[:4]
        shape = build.shapes[0] or ()
        if len(shape) == 4:
            batch, heads, length, size = shape
        else:
            if len(shape) != 3 or self.num_heads < 1 or shape[2] % self.num_heads:
                raise UnsupportedAttribute(f"num_heads={self.num_heads} does not fit an input of {shape}")
            batch, length, heads, size = *shape[:2], self.num_heads, shape[2] // self.num_heads
            x = transpose(build, reshape(build, x, (batch, length, heads, size)), (0, 2, 1, 3))
        turned = self.rotary_embedding_dim or size
        half = turned // 2
        if positions:
            places = build.constants[3]
            if places is None:
                raise UnsupportedAttribute("position_ids must not depend on the model's input")
            cos, sin = (build(Gather(0), value, places[0]) for value in (cos, sin))
            rows = broadcast(places.shape[1:], (1, length))[0]
        else:
            rows = (build.shapes[1] or ())[0]
        cos, sin = (reshape(build, value, (rows, 1, length, half)) for value in (cos, sin))
        first, second = self._pairs(build, x, turned)
        one = build(Sub(), build(Mul(), first, cos), build(Mul(), second, sin))
        two = build(Add(), build(Mul(), first, sin), build(Mul(), second, cos))
        if self.interleaved:
            grown = [reshape(build, value, (batch, heads, length, half, 1)) for value in (one, two)]
            parts = [reshape(build, concat(build, grown, -1), (batch, heads, length, turned))]
        else:
            parts = [one, two]
        if turned < size:
            parts.append(cut(build, x, 3, turned, size))
        y = concat(build, parts, -1)
        if len(shape) == 3:
            y = reshape(build, transpose(build, y, (0, 2, 1, 3)), shape)
        return (y,)

    def _pairs(self, build: Decomposition, x: str, turned: int) -> tuple[str, str]:
        """First and second feature of each pair."""
        if self.interleaved:
            return cut(build, x, 3, 0, turned, step=2), cut(build, x, 3, 1, turned, step=2)
        return cut(build, x, 3, 0, turned // 2), cut(build, x, 3, turned // 2, turned)
