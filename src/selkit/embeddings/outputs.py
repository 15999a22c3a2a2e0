"""What a model gives, in any of the forms that libraries use, as one tensor with a row for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from selkit.errors import InvalidTypeError

NAMES = {"embedding": ("embedding", "embeddings", "pooler_output"), "logits": ("logits", "logit")}


def tensor_of(output: Any, want: Literal["embedding", "logits"], model: str) -> Tensor:
    """The tensor that is meant in what a model gave.

    Parameters
    ----------
    output
        A tensor; or a mapping or object with an entry of the usual name (``logits``; ``embedding``,
        ``pooler_output``) or with only one tensor, such as HuggingFace's ``ModelOutput``.
    want
        What it is for.
    model
        How the model is called, for messages.

    Raises
    ------
    InvalidTypeError
        For anything else.
    """
    while isinstance(output, (tuple, list)) and len(output) == 1 and not isinstance(output, Mapping):
        output = output[0]
    if isinstance(output, Tensor):
        return output
    for name in NAMES[want]:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    kind = type(output).__name__
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        kind += f" with {list(output)}"
    elif isinstance(output, (tuple, list)):
        kind += f" of {', '.join(type(part).__name__ for part in output)}"
    what = "an embedding is" if want == "embedding" else "logits are"
    advice = (
        "pool= may be a function that takes the output apart, such as pool=lambda output: output[0][:, -1]"
        if want == "embedding"
        else "let the model return the logits, or name a layer whose output they are: layer="
    )
    raise InvalidTypeError(
        f"{model} gave {kind} where {what} expected; a tensor with one row for each sample is needed. "
        f"{advice}"
    )


def one_row(values: Tensor, rows: int | None) -> Tensor:
    """The values of a batch of one sample, whose first axis a ``squeeze()`` may have taken away."""
    if rows == 1 and (values.ndim == 0 or values.shape[0] != 1):
        return values.unsqueeze(0)
    return values
