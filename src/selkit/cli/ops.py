"""``selkit ops``: which operators of a model are supported, and how."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.cli.uses import Use
    from selkit.graph import Graph
    from selkit.graph.model import Node
    from selkit.graph.ops.base import Kind, Operator

NO_RULE = "no rule"

EXAMPLES = """\
  selkit ops model.onnx
  selkit ops model.onnx --shape 1,3,64,64 --json
  selkit ops
"""


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "ops",
        summary="list which operators of a model are supported, and how",
        text="For each operator: what kind of function it is, how a test follows it along a line (exact: the "
        "truncation set is exact; refined: it is bracketed to the asked precision), and how many nodes there "
        "are. For each output: what it can be used for, and the call that tests a region of it. Exit code 4 "
        "if a node is not supported. Without a model: all supported operators.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", nargs="?", metavar="MODEL.onnx")
    parser.add_argument(
        "--shape", type=shape, metavar="1,C,H,W", help="of the input, where the model leaves sizes open"
    )
    parser.add_argument("--output-index", type=int, metavar="I", help="only this output (default: all)")


def shape(text: str) -> tuple[int, ...]:
    """Parse sizes with commas between them.

    Examples
    --------
    >>> shape("1,3,64,64")
    (1, 3, 64, 64)
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise ArgumentTypeError(f"{text!r} is no shape such as 1,3,64,64")
    return found


@dataclass(frozen=True)
class Line:
    """What is to be said about the nodes of one operator that are of one kind.

    Attributes
    ----------
    operator, nodes
        Name, and how many there are.
    supported
        Whether selkit can run it.
    kind, line, attribution
        What kind of function it is, how it is followed, and its rule for an explanation.
    reason
        What is missing.
    """

    operator: str
    nodes: int
    supported: bool
    kind: str = ""
    line: str = ""
    attribution: str = ""
    reason: str = ""


def run(options: Namespace, console: Console) -> Exit:
    """Look at the model's nodes and print a table."""
    if options.model is None:
        return _all(console)
    from selkit.graph import Graph

    graph = Graph.load(options.model, ())
    names = _asked(graph, options.output_index)
    possible = [name for name in names if not graph.obstacles([name])]
    if not possible:
        lines = _unsupported(graph, names)
        verdict, found = "this model cannot be tested: nodes are not supported", []
    else:
        lines = _supported(graph, possible)
        found = _uses(graph, options)
        verdict = "\n".join(one if isinstance(one, str) else one.text() for one in found)
        if any(line.attribution == NO_RULE for line in lines):
            verdict += "\nthe model cannot be explained by its graph; say --method permutation"
    bad = sum(line.nodes for line in lines if not line.supported)
    console.out(table(lines))
    console.out(f"\n{verdict}")
    console.result(
        {
            "command": "ops",
            "model": options.model,
            "supported": not bad,
            "verdict": verdict,
            "operators": [asdict(line) for line in lines],
            "outputs": [asdict(one) for one in found if not isinstance(one, str)],
        }
    )
    return Exit.CHECK_FAILED if bad else Exit.OK


def _asked(graph: Graph, index: int | None) -> list[str]:
    """Names of the outputs that are meant."""
    if index is None:
        return [spec.name for spec in graph.outputs]
    if not 0 <= index < len(graph.outputs):
        raise InvalidInputError(f"--output-index is {index}; the model has {len(graph.outputs)} output(s)")
    return [graph.outputs[index].name]


def _all(console: Console) -> Exit:
    from selkit.graph.ops.table import supported_operators

    rows = supported_operators()
    width = max(len(row.name) for row in rows)
    for row in rows:
        console.out(f"{row.name:{width}}  {row.kind:16}  {row.line}")
    console.result({"command": "ops", "operators": [asdict(row) for row in rows]})
    return Exit.OK


def _supported(graph: Graph, outputs: Sequence[str]) -> list[Line]:
    """Count the nodes that outputs need, by operator and by the kind that they have where they stand."""
    from selkit.graph.ops.table import LINE

    counts: dict[tuple[str, Kind, str], int] = {}
    for node, kind in _kinds(graph, outputs):
        key = node.op_type, kind, attribution(node.operator, kind)
        counts[key] = counts.get(key, 0) + 1
    return [
        Line(name, count, supported=True, kind=kind.value, line=LINE[kind], attribution=rule)
        for (name, kind, rule), count in sorted(
            counts.items(), key=lambda item: (item[0][0], item[0][1].value, item[0][2])
        )
    ]


def _kinds(graph: Graph, outputs: Sequence[str]) -> Iterator[tuple[Node, Kind]]:
    """Each node that outputs need with the kind that it has where it stands."""
    from selkit.graph.nodes import needed
    from selkit.graph.ops.base import Kind

    live = {spec.name for spec in graph.inputs}
    for index in needed(graph.nodes, outputs, certain=True):
        node = graph.nodes[index]
        kind = node.operator.kind([name in live for name in node.inputs])
        if kind is not Kind.CONSTANT:
            live.update(node.outputs)
        yield node, kind


def attribution(operator: Operator, kind: Kind) -> str:
    """How an explanation goes through an operator."""
    from selkit.explain.rules import has_rule
    from selkit.graph.ops.base import Composite, Kind

    words = {
        Kind.AFFINE: "transpose",
        Kind.PIECEWISE_LINEAR: "rescale rule",
        Kind.SMOOTH: "rescale rule",
        Kind.PRODUCT: "averaged product",
    }
    if kind is Kind.CONSTANT:
        return "no contribution"
    if has_rule(operator):
        return words.get(kind, "rule of its own")
    return "as its parts" if isinstance(operator, Composite) else NO_RULE


def _unsupported(graph: Graph, outputs: Sequence[str]) -> list[Line]:
    """The nodes that are not supported with their reasons, and a count of the others that outputs need."""
    from selkit.graph.nodes import needed

    reasons: dict[tuple[str, str], int] = {}
    for problem in graph.obstacles(outputs):
        key = problem.op_type, problem.reason
        reasons[key] = reasons.get(key, 0) + 1
    left: dict[str, int] = {}
    for index in needed(graph.nodes, outputs, certain=True):
        name = graph.nodes[index].op_type
        left[name] = left.get(name, 0) + 1
    for (name, _), count in reasons.items():
        left[name] = left.get(name, 0) - count
    bad = [Line(name, count, supported=False, reason=reason) for (name, reason), count in reasons.items()]
    return [*bad, *(Line(name, count, supported=True) for name, count in sorted(left.items()) if count > 0)]


def _uses(graph: Graph, options: Namespace) -> list[Use | str]:
    """What the outputs can be used for, or one sentence on why that cannot be said."""
    import torch

    from selkit.cli.uses import Asked, silent, use

    index = options.output_index
    if not graph.inputs:
        return ["the model has no input"]
    sizes = [_known(spec.shape) for spec in graph.inputs]
    first = options.shape or sizes[0]
    if first is None:
        declared = graph.inputs[0].shape
        return [f"what its outputs can be used for depends on the input's shape ({declared}): say --shape"]
    others = {}
    for spec, shape in zip(graph.inputs[1:], sizes[1:], strict=True):
        if shape is None:
            return [f"what its outputs can be used for depends on the shape of its input {spec.name!r}"]
        others[spec.name] = torch.zeros(shape, dtype=spec.dtype)
    names = [spec.name for spec in graph.outputs if not graph.obstacles([spec.name])]
    kinds = _kinds(graph, names)
    unruled = [node.outputs[0] for node, kind in kinds if attribution(node.operator, kind) == NO_RULE]
    asked = Asked(graph, options.model, tuple(first), others, silent(graph, unruled))
    return [use(asked, place) for place in range(len(graph.outputs)) if index in (None, place)]


def _known(declared: Sequence[int | None] | None) -> tuple[int, ...] | None:
    """A declared shape, with a batch of one where that is open; ``None`` if another size is open."""
    if declared is None:
        return None
    sizes = [1 if place == 0 else size for place, size in enumerate(declared)]
    return None if None in sizes else tuple(size or 1 for size in sizes)


def table(lines: Sequence[Line]) -> str:
    """The lines in columns."""
    heads = ("operator", "nodes", "", "kind", "along a line", "attribution")
    cells = [
        (
            line.operator,
            str(line.nodes),
            "ok" if line.supported else "no",
            line.kind or line.reason,
            line.line,
            line.attribution,
        )
        for line in lines
    ]
    widths = [max(len(row[place]) for row in [heads, *cells]) for place in range(len(heads) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip()
        for row in [heads, *cells]
    )
