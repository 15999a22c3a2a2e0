"""What a node may have: onnx's schemas, and stand-ins for the operators that onnx does not define."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import onnx
from onnx import AttributeProto
from onnx.defs import OpSchema

from selkit.graph.ops.base import Operator, UnsupportedAttribute, find

_TYPES: Mapping[str, int] = {
    "int": AttributeProto.INT,
    "float": AttributeProto.FLOAT,
    "str": AttributeProto.STRING,
    "tuple[int, ...]": AttributeProto.INTS,
    "tuple[float, ...]": AttributeProto.FLOATS,
    "tuple[str, ...]": AttributeProto.STRINGS,
}


@dataclass(frozen=True)
class StandIn:
    """The schema of an operator that onnxruntime defines, from its class; it has one version."""

    operator: type[Operator]
    since_version: int = 1

    @property
    def min_input(self) -> int:
        """Fewest inputs."""
        return self.operator.INPUTS[0]

    @property
    def max_input(self) -> int:
        """Most inputs."""
        return self.operator.INPUTS[1]

    @property
    def inputs(self) -> list[Any]:
        """Which inputs may be left out."""
        kinds = OpSchema.FormalParameterOption
        return [
            SimpleNamespace(
                name=f"input {place}", option=kinds.Single if place < self.min_input else kinds.Optional
            )
            for place in range(self.max_input)
        ]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes and their types, as the class's fields say."""
        fields = dataclasses.fields(self.operator)  # type: ignore[arg-type]
        kinds = {field.name: _TYPES[str(field.type).removesuffix(" | None")] for field in fields}
        return {name: SimpleNamespace(type=SimpleNamespace(value=kind)) for name, kind in kinds.items()}


def schema_of(name: str, version: int, domain: str) -> OpSchema | StandIn:
    """The schema of an operator in a version of its domain.

    Raises
    ------
    UnsupportedAttribute
        If the operator does not exist there, or must not be used any more.
    """
    try:
        schema = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError as error:
        own = find(name, 1, domain)
        if own is None:
            raise UnsupportedAttribute("this operator does not exist in this opset") from error
        return StandIn(own.operator)
    if schema.deprecated and find(name, schema.since_version, domain) is None:
        raise UnsupportedAttribute("this operator is deprecated in this opset")
    return schema
