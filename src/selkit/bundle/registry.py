"""Which function writes which score: one entry for each family, in the file of that family."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from selkit.bundle.emitter import Emitter
from selkit.errors import NotAvailableError
from selkit.scores.base import UncertaintyScore

Emit: TypeAlias = Callable[[Emitter, Any, str], str]

FAMILIES = ("selkit.bundle.logits", "selkit.bundle.neighbors")  # register when they are imported
_EMITS: dict[type[UncertaintyScore], Emit] = {}
_REASONS: dict[type[UncertaintyScore], str] = {}


def emits(*kinds: type[UncertaintyScore]) -> Callable[[Emit], Emit]:
    """Register a function for scores of exactly these classes: a subclass may compute something else.

    The function is given where to append, the fitted score and the name of the features (``(N, D)`` for
    embeddings), in the type that the score sees in Python; it returns the name of the scores, float64,
    ``(N,)``.
    """

    def register(function: Emit) -> Emit:
        for kind in kinds:
            if kind in _EMITS:
                raise TypeError(f"{kind.__name__} is registered twice")
            _EMITS[kind] = function
        return function

    return register


def refuses(kind: type[UncertaintyScore], reason: str) -> None:
    """Say why scores of a class cannot be written."""
    _REASONS[kind] = reason


def emit_score(g: Emitter, score: UncertaintyScore, features: str) -> str:
    """Append a score, and return the name of its values, float64, ``(N,)``.

    A score of your own brings a method ``to_onnx(g, features)`` that does this.

    Raises
    ------
    NotAvailableError
        If the score cannot be written with ONNX' operators, with the reason.
    """
    own = getattr(score, "to_onnx", None)
    if callable(own):
        return str(own(g, features))
    for family in FAMILIES:
        import_module(family)
    if type(score) in _EMITS:
        return _EMITS[type(score)](g, score, features)
    for kind, reason in _REASONS.items():
        if isinstance(score, kind):
            raise NotAvailableError(f"{type(score).__name__} cannot go into a bundle: {reason}")
    raise NotAvailableError(
        f"{type(score).__name__} cannot go into a bundle: nothing says how it is written with ONNX' "
        "operators. "
        "Give it a method to_onnx(g, features) that appends them and returns the name of the scores"
    )
