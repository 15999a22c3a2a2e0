"""What an explainer's file says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from selkit.errors import FileFormatError

FORMAT = 2


@dataclass(frozen=True)
class Given:
    """An input that is explained.

    Attributes
    ----------
    name
        In the graph.
    shape
        Without the batch axis.
    dtype
        By its name in NumPy.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Facts:
    """What a file says about itself.

    Attributes
    ----------
    inputs
        What is explained.
    output
        Name of the explained model's output.
    classes
        How many outputs there are to choose from.
    target
        ``"top"``, an index, or indices.
    references
        How many there are.
    cached
        Whether the references' activations are stored.
    notes
        What is computed otherwise than the model's file says, as sentences.
    format
        Version of this description.
    """

    inputs: tuple[Given, ...]
    output: str
    classes: int
    target: Any
    references: int
    cached: bool
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def input(self) -> str:
        """Name of the first input."""
        return self.inputs[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first input, without the batch axis."""
        return self.inputs[0].shape

    @property
    def dtype(self) -> str:
        """Of the first input."""
        return self.inputs[0].dtype

    @property
    def attributions(self) -> tuple[str, ...]:
        """Names of the graph's outputs that are attributions, one for each input."""
        if len(self.inputs) == 1:
            return ("attributions",)
        return tuple(f"attributions.{given.name}" for given in self.inputs)


def read_facts(text: str, where: str) -> Facts:
    """What a file says about itself, checked."""
    try:
        values = json.loads(text)
        version = values.pop("format")
        if type(version) is not int or version != FORMAT:
            raise FileFormatError(
                f"{where} is an explainer of format {version!r}; this version reads {FORMAT}: export it "
                "again with this version of selkit, or read it with the one that wrote it"
            )
        target = values.pop("target")
        inputs = tuple(
            Given(str(name), tuple(int(side) for side in shape), np.dtype(dtype).name)
            for name, shape, dtype in (
                (entry["name"], entry["shape"], entry["dtype"]) for entry in values.pop("inputs")
            )
        )
        if not inputs:
            raise FileFormatError(f"{where} describes itself in a way that cannot be read: it has no inputs")
        notes = tuple(str(note) for note in values.pop("notes", ()))
        return Facts(
            **values, notes=notes, inputs=inputs, target=tuple(target) if isinstance(target, list) else target
        )
    except FileFormatError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise FileFormatError(f"{where} describes itself in a way that cannot be read: {error}") from error
