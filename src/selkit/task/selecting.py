"""Decisions about a batch whose numbers may not all be usable, in a precision of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selkit.errors import NotFiniteError
from selkit.scores.data import FEATURES
from selkit.utils.precision import full_precision

_HALF = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def usual_precision() -> Iterator[None]:
    """New tensors in single precision where a Trainer with ``precision="bf16-true"`` makes them half ones."""
    before = torch.get_default_dtype()
    if before not in _HALF:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def widened(value: Any) -> Any:
    """Half precision as float32, which loses nothing; other things as they are."""
    if isinstance(value, Tensor) and value.dtype in _HALF:
        return value.float()
    return value


@contextlib.contextmanager
def single_precision(model: nn.Module) -> Iterator[None]:
    """A model of half precision in single precision inside the block, and no autocast: rounding has no event."""
    before = numbers_of(model)
    named = {part: vars(part)["_dtype"] for part in model.modules() if "_dtype" in vars(part)}  # Lightning's
    halves = [t for tensors in before.values() for t in tensors.values() if t.dtype in _HALF]
    device = halves[0].device if halves else next((p.device for p in model.parameters()), torch.device("cpu"))
    with full_precision(device), usual_precision():
        try:
            if halves:
                model.float()
            yield
        finally:
            if halves:
                keep_dtypes(model, before)
                for part, dtype in named.items():
                    vars(part)["_dtype"] = dtype


def keep_dtypes(module: nn.Module, before: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Put back the numbers of a module whose dtype was changed, on the device where they are now.

    Parameters
    ----------
    module
        The module.
    before
        What :func:`numbers_of` gave.
    """
    for part in module.modules():
        for name, old in before.get(id(part), {}).items():
            now = getattr(part, name)
            if isinstance(now, Tensor) and now.dtype != old.dtype:
                kept = old.to(now.device)
                if isinstance(now, nn.Parameter):
                    now.data = kept
                else:
                    setattr(part, name, kept)


def numbers_of(module: nn.Module) -> dict[int, dict[str, Tensor]]:
    """The floating tensors of a module and its parts."""
    return {
        id(part): {
            name: tensor.data
            for name, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None and tensor.is_floating_point()
        }
        for part in module.modules()
    }


def not_finite(features: Any) -> Tensor | None:
    """Which rows of features hold NaN or infinity, ``(N,)``; ``None`` if none does."""
    if isinstance(features, Mapping):
        bad = [not_finite(features[name]) for name in FEATURES if name in features]
        found = [rows for rows in bad if rows is not None]
        return torch.stack(found).any(0) if found else None
    if not isinstance(features, Tensor) or not features.is_floating_point() or not features.ndim:
        return None
    rows = ~torch.isfinite(features.detach()).reshape(len(features), -1).all(1)
    return rows if bool(rows.any()) else None


def select(score: Any, features: Any, groups: Any = None) -> dict[str, Tensor]:
    """What a score selects of a batch; rows that are not finite, or whose score overflows, are rejected.

    Their score is infinite.

    Parameters
    ----------
    score
        Has ``select``.
    features
        Embeddings or logits, or a mapping with them.
    groups
        Group of each sample, or ``None``.

    Returns
    -------
    dict
        ``score`` and ``selected``; where a row is not finite, also ``finite``, boolean.
    """
    bad = not_finite(features)
    with usual_precision():
        try:
            return _selection(score, features, groups) if bad is None else _but(bad, score, features, groups)
        except NotFiniteError:
            return _but(_unusable(bad, score, features, groups), score, features, groups)


def _but(bad: Tensor, score: Any, features: Any, groups: Any) -> dict[str, Tensor]:
    """What a score selects of a batch without some rows, which are rejected."""
    good = (~bad).nonzero()[:, 0]
    values = torch.full(bad.shape, torch.inf, device=bad.device)
    selected = torch.zeros_like(bad)
    if len(good):
        found = _selection(score, _rows(features, good, len(bad)), _rows(groups, good, len(bad)))
        values = values.to(found["score"])
        values[good.to(values.device)] = found["score"]
        selected = selected.to(values.device)
        selected[good.to(values.device)] = found["selected"]
    return {"score": values, "selected": selected, "finite": ~bad.to(values.device)}


def _unusable(bad: Tensor | None, score: Any, features: Any, groups: Any) -> Tensor:
    """Which rows are not finite, or have a score that overflows; that shows one by one."""
    if bad is None:
        bad = torch.zeros(_count(features), dtype=torch.bool)
    found = bad.clone()
    for row in (~bad).nonzero()[:, 0]:
        one = row[None]
        try:
            _selection(score, _rows(features, one, len(bad)), _rows(groups, one, len(bad)))
        except NotFiniteError:
            found[row] = True
    return found


def _count(features: Any) -> int:
    if isinstance(features, Mapping):
        return next(len(features[name]) for name in FEATURES if name in features)
    return len(features)


def _selection(score: Any, features: Any, groups: Any) -> dict[str, Tensor]:
    options = {} if groups is None else {"groups": groups}
    found: dict[str, Tensor] = score.select(features, **options)
    return found


def _rows(value: Any, index: Tensor, count: int) -> Any:
    """Some rows of what has one for each sample."""
    if isinstance(value, Mapping):
        return {name: _rows(part, index, count) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        return value[index.to(value.device)]
    if hasattr(value, "shape") and len(value.shape) and len(value) == count:
        return value[index.cpu().numpy()]
    if isinstance(value, (list, tuple)) and len(value) == count:
        return [value[i] for i in index.tolist()]
    return value
