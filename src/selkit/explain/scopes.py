"""Which scope of an explanation's graph computes what: all, a sample, a target, or a chunk of references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from selkit.explain.bands import late
from selkit.explain.rules import Recipe
from selkit.graph.symbols import Symbol, Uses
from selkit.graph.tape import Written

WEIGHT, SUM = "selkit.weight", "selkit.sum"
MAIN, SAMPLE, TARGET, CHUNK, STORED = "main", "sample", "target", "chunk", "references"


@dataclass(frozen=True)
class Parts:
    """Where every node goes.

    Attributes
    ----------
    nodes
        By scope, in order.
    stored
        Values of the references that are kept instead of being computed again.
    """

    recipe: Recipe
    nodes: Mapping[str, Sequence[Written]]
    stored: tuple[Symbol, ...]
    total: Symbol
    weight: Symbol


def divide(recipe: Recipe, *, cache: bool) -> Parts:
    """Say which scope computes what; with ``cache``, what needs the references alone is computed ahead."""
    tape = recipe.tape
    ndim = recipe.x.ndim
    weight = tape.source(WEIGHT, (1,) * ndim, Uses.REFERENCE)
    part = recipe.multipliers * ((recipe.x - recipe.reference) * weight)
    if tape.rows > 1:
        part = tape.op("ReduceSum", part, tape.lift([0]), shape=recipe.x.shape, keepdims=1)
    before = tape.source(SUM, recipe.x.shape, Uses.TARGET | Uses.REFERENCE)
    total = tape.op("Add", before, part, shape=recipe.x.shape)
    maker = {out.name: node for node in tape.nodes for out in node.outputs}
    needed = reached([total, recipe.output, recipe.raw], maker)
    groups: dict[str, list[Written]] = {name: [] for name in (MAIN, SAMPLE, TARGET, CHUNK, STORED)}
    crossing: dict[str, Symbol] = {}
    for node in tape.nodes:
        if id(node) not in needed:
            continue
        scope = scope_of(node.uses, cache=cache)
        if scope == STORED:
            continue
        groups[scope].append(node)
        for value in node.inputs:
            if scope == CHUNK and value is not None and cache and value.uses == Uses.REFERENCE:
                crossing[value.name] = value
    sources = {recipe.reference.name, weight.name}
    stored = tuple(value for name, value in crossing.items() if name not in sources)
    ahead = reached([*stored, recipe.output_reference], maker)
    groups[STORED] = [node for node in tape.nodes if id(node) in ahead]
    groups[CHUNK] = late(groups[CHUNK])
    return Parts(recipe, groups, stored, total, weight)


def scope_of(uses: Uses, *, cache: bool) -> str:
    """The outermost scope that knows all of this."""
    if uses & Uses.REFERENCE:
        return STORED if cache and uses == Uses.REFERENCE else CHUNK
    if uses & Uses.TARGET:
        return TARGET
    return SAMPLE if uses & Uses.SAMPLE else MAIN


def reached(ends: Iterable[Symbol], maker: Mapping[str, Written]) -> set[int]:
    """The nodes that make some values."""
    seen: set[int] = set()
    open_ = [end.name for end in ends]
    while open_:
        node = maker.get(open_.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            open_.extend(value.name for value in node.inputs if value is not None)
    return seen
