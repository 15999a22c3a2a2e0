"""Every exception that selkit raises on purpose, in one place.

Each also is the built-in exception that fits (``ValueError``, ``TypeError``, ...), so that code which
catches those keeps working.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SelkitError(Exception):
    """Base of all errors that selkit raises on purpose."""


class InvalidInputError(SelkitError, ValueError):
    """An argument has a value that cannot be used: NaN, an empty set, a wrong shape or range."""


class NotFiniteError(InvalidInputError):
    """A model's result for these inputs is NaN or infinite, although the inputs are not."""


class InvalidTypeError(SelkitError, TypeError):
    """An argument is of a type or dtype that cannot be used."""


class NotFittedError(SelkitError, RuntimeError):
    """Something is used before ``fit``, ``set_threshold`` or ``calibrate`` made it usable."""


class MissingExtraError(SelkitError, ImportError):
    """An optional dependency is needed; the message says which extra installs it."""


class FileFormatError(SelkitError, ValueError):
    """A file is not what it should be: damaged, foreign, or written by an unknown version."""


class NoGuaranteeError(SelkitError, ValueError):
    """No threshold can promise what was asked for with the data at hand."""


class NoHypothesisError(SelkitError, ValueError):
    """The observed region leaves nothing to test: it is empty, or nothing remains to compare it with."""


class NotAcceptedError(NoHypothesisError):
    """A p-value given acceptance is asked for, but the score rejects the input."""


class NotAvailableError(SelkitError, ValueError):
    """A documented combination that cannot exist, with the reason and what to do instead."""


@dataclass(frozen=True)
class UnsupportedNode:
    """One node of a model that selkit cannot run, and why.

    Attributes
    ----------
    name, op_type, domain
        The node's name (may be empty), operator and domain.
    opset
        Version of the domain that the model imports.
    reason
        What is missing, and what is supported instead.
    internal
        Whether selkit failed here, where the model is not to blame.
    """

    name: str
    op_type: str
    domain: str
    opset: int
    reason: str
    internal: bool = False

    def __str__(self) -> str:
        where = f"{self.op_type} (opset {self.opset}{f', domain {self.domain}' if self.domain else ''})"
        return f"{self.name or '<unnamed>'}: {where}: {self.reason}"


class InternalError(SelkitError, RuntimeError):
    """selkit itself failed at a node of a model: the model is not to blame, and a report is welcome."""


class UnsupportedModelError(SelkitError, ValueError):
    """An ONNX model has nodes that selkit cannot run; all of them are listed.

    Attributes
    ----------
    nodes
        One :class:`UnsupportedNode` for each.
    """

    def __init__(self, nodes: Sequence[UnsupportedNode], what: str = "run this model") -> None:
        self.nodes = tuple(nodes)
        lines = "\n".join(f"  - {node}" for node in self.nodes)
        super().__init__(
            f"selkit cannot {what}: {len(self.nodes)} node(s) are not supported.\n{lines}\n"
            "The supported operators are listed in the documentation under 'Supported operators'."
        )
