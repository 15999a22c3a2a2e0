"""``selkit ops``: which operators of a model are supported, and how."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.graph import Graph
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
        "are. Exit code 4 if a node is not supported. Without a model: all supported operators.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", nargs="?", metavar="MODEL.onnx")
    parser.add_argument(
        "--shape", type=shape, metavar="1,C,H,W", help="of the input, where the model leaves sizes open"
    )
    parser.add_argument("--output-index", type=int, default=0, metavar="I", help="the score map (default: 0)")


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
    from selkit.errors import UnsupportedModelError
    from selkit.graph import Graph

    try:
        graph = Graph.load(options.model)
    except UnsupportedModelError as error:
        lines = _unsupported(options.model, error)
        verdict = "this model cannot be tested: nodes are not supported"
    else:
        lines = _supported(graph)
        verdict = _verdict(graph, options.shape, options.output_index)
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
        }
    )
    return Exit.CHECK_FAILED if bad else Exit.OK


def _all(console: Console) -> Exit:
    from selkit.graph.ops.table import supported_operators

    rows = supported_operators()
    width = max(len(row.name) for row in rows)
    for row in rows:
        console.out(f"{row.name:{width}}  {row.kind:16}  {row.line}")
    console.result({"command": "ops", "operators": [asdict(row) for row in rows]})
    return Exit.OK


def _supported(graph: Graph) -> list[Line]:
    """Count nodes by operator and by the kind that they have where they stand."""
    from selkit.graph.ops.base import Kind
    from selkit.graph.ops.table import LINE

    live = {spec.name for spec in graph.inputs}
    counts: dict[tuple[str, Kind, str], int] = {}
    for node in graph.nodes:
        kind = node.operator.kind([name in live for name in node.inputs])
        if kind is not Kind.CONSTANT:
            live.update(node.outputs)
        key = node.op_type, kind, attribution(node.operator, kind)
        counts[key] = counts.get(key, 0) + 1
    return [
        Line(name, count, supported=True, kind=kind.value, line=LINE[kind], attribution=rule)
        for (name, kind, rule), count in sorted(
            counts.items(), key=lambda item: (item[0][0], item[0][1].value, item[0][2])
        )
    ]


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


def _unsupported(model: str, error: Any) -> list[Line]:
    """The nodes that are not supported with their reasons, and a count of the others."""
    from selkit.graph.files import read

    reasons: dict[tuple[str, str], int] = {}
    for node in error.nodes:
        key = node.op_type, node.reason
        reasons[key] = reasons.get(key, 0) + 1
    left: dict[str, int] = {}
    for node in read(model).graph.node:
        left[node.op_type] = left.get(node.op_type, 0) + 1
    for (name, _), count in reasons.items():
        left[name] = left.get(name, 0) - count
    bad = [Line(name, count, supported=False, reason=reason) for (name, reason), count in reasons.items()]
    return [*bad, *(Line(name, count, supported=True) for name, count in sorted(left.items()) if count > 0)]


def _verdict(graph: Graph, given: Sequence[int] | None, output: int) -> str:
    """Whether p-values of regions of this model are exact, as far as can be said without a hypothesis."""
    from selkit.errors import NotAvailableError, SelkitError
    from selkit.inference import BackMeanDiff
    from selkit.inference.score_map import build_score_map, is_piecewise_linear
    from selkit.inference.tail import split

    if len(graph.inputs) != 1:
        return "the model has several inputs: say by a test whether p-values are exact"
    (spec,) = graph.inputs
    declared = spec.shape
    if not 0 <= output < len(graph.outputs):
        raise InvalidInputError(f"--output-index is {output}; the model has {len(graph.outputs)} output(s)")
    sizes = given
    if sizes is None and declared is not None:
        known = [1 if place == 0 else size for place, size in enumerate(declared)]
        sizes = None if None in known else [int(size or 1) for size in known]
    if sizes is None:
        return f"whether p-values are exact depends on the input's shape ({declared}): say --shape"
    try:
        program = graph.compile({spec.name: tuple(sizes)}, [graph.outputs[output].name], decompose=True)
        maps = build_score_map(program, BackMeanDiff(threshold=0.5), spec.name)
    except NotAvailableError as error:
        return f"regions by a threshold cannot be tested: {error}"
    except SelkitError as error:
        return f"the model cannot be tested at this shape: {error}"
    if is_piecewise_linear(split(maps.margins)[0]):
        return "p-values of regions by a threshold are exact: what is smooth, if anything, is a light end"
    return "p-values of regions by a threshold are bracketed: smooth operators before it are bounded"


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
