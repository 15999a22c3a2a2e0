"""DeepSHAP inside the ONNX graph."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from selkit.embeddings.batches import Key
from selkit.errors import FileFormatError, InvalidInputError
from selkit.explain import storage
from selkit.explain.batches import read_batch
from selkit.explain.build import build
from selkit.explain.ends import split
from selkit.explain.facts import Facts
from selkit.explain.heads import ClassAxis, Position, Reduce
from selkit.explain.integers import Behind
from selkit.explain.question import Choice, Inputs, Method, check_outputs
from selkit.explain.result import Explanation
from selkit.explain.targets import Target, for_batch
from selkit.explain.verify import Verification, verify
from selkit.graph.files import Source
from selkit.graph.model import Quantization
from selkit.utils.boundary import public
from selkit.utils.checks import boolean, given, integer
from selkit.utils.progress import track

BLOCK = 16
"""Samples between two looks at the progress bar."""


class Explainer:
    """Attribute a network's output to its input, by one ONNX graph that also predicts.

    DeepLIFT's multipliers, averaged over references (DeepSHAP: Lundberg & Lee 2017, "A Unified Approach to
    Interpreting Model Predictions"; the graph after Zhao et al. 2023, "ONNXExplainer"). For each sample the
    attributions sum to ``f(x) - mean f(references)``. They are Shapley values where the model is linear, and
    close to them elsewhere. Every operator has a rule, or the model is refused: there are no plain gradients.

    Parameters
    ----------
    model
        Path, bytes or ``onnx.ModelProto``; floating inputs with a batch axis of 1 or any size.
    references
        What inputs are compared with: array, tensor or loader of shape ``(R, ...)``
        (:func:`selkit.explain.read_references`); 5 to 20 typical samples are usual,
        :func:`selkit.explain.summarize` chooses some. For several inputs a mapping with an array for each.
    output
        Name of the output to explain; by default the model's first.
    target
        ``"top"`` for each sample's largest output, an index, several indices, or ``"all"``.
    method
        ``"deepshap"``; or ``"integrated_gradients"``, exact for piecewise-linear networks
        (:class:`selkit.explain.IntegratedGradientsExplainer`), or ``"permutation"`` for any other model that
        onnxruntime runs (:class:`selkit.explain.PermutationExplainer`). These are explainers of their own,
        whose further arguments may be given here; they have no graph to export.
    input
        Names of the inputs to explain: by default all. The result of any node may be named, such as that of
        an embedding; then ``x`` and ``references`` are its values. Where the model takes integers (bytes,
        token ids) alone, the value behind their only embedding or Cast is found by itself, made of the
        integers that are given, and named in the result; the exported graph takes that value.
    fixed
        Values of other inputs by name, the same for all samples.
    reduce
        For outputs with positions (maps, sequences): explain each class' ``"max"``, ``"mean"`` or ``"sum"``
        over them.
    position
        Or its value at one: an index, or one for each axis of positions; negative ones count from the end.
    mask
        Which positions are reduced: boolean, of their shape.
    class_axis
        Axis of the classes in such an output, or ``"none"``; by default found from the shapes.
    weights
        Of the references, positive; by default all count alike.
    cache
        Whether the references' activations are stored, which saves a forward pass of every reference for
        each sample, or computed again, which needs less memory and a smaller file. ``"auto"`` stores up to
        an eighth of the free memory, and at most 1 GiB.
    chunk
        How many references are explained at once; more need more memory. ``"auto"`` chooses.
    threads
        Of onnxruntime; by default all cores.
    key
        Position or name of the input in each entry of a loader of references.
    quantization
        For a quantized model: "keep" explains it as it is, where the multiplier of a rounded activation is
        the slope of the chord between sample and reference; "ignore" explains the network without rounding.

    Raises
    ------
    UnsupportedModelError
        If operators have no attribution rule; all of them are listed.
    FileFormatError
        If it is no ONNX model.
    InvalidInputError, InvalidTypeError
        If the references or another argument do not fit the model, or its weights or outputs are not finite.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 1] y)
    ...     <float[2, 1] w = {3, -1}> { h = MatMul(x, w)  y = Relu(h) }''')
    >>> explainer = Explainer(model, np.zeros((1, 2), dtype=np.float32), target=0)
    >>> explainer.explain(np.array([[2.0, 1.0]])).attributions
    array([[ 6., -1.]], dtype=float32)
    """

    _behind: Behind | None = None

    def __new__(cls, *arguments: Any, method: str = "deepshap", **options: Any) -> Any:
        """An explainer of the method that is asked for: another method is another class."""
        if type(method) is str and method == "deepshap":
            return super().__new__(cls)
        return _peer(method)(*arguments, **_accepted(method, options))

    @public
    def __init__(
        self,
        model: Source,
        references: object,
        output: str | None = None,
        target: Target = "top",
        *,
        method: Method = "deepshap",
        input: Inputs = None,  # noqa: A002 - what a model calls it
        fixed: Mapping[str, Any] | None = None,
        reduce: Reduce = None,
        position: Position = None,
        mask: object = None,
        class_axis: ClassAxis = None,
        weights: object = None,
        cache: bool | Literal["auto"] = "auto",
        chunk: int | Literal["auto"] = "auto",
        threads: int | None = None,
        key: Key = None,
        quantization: Quantization = "keep",
        **options: Any,
    ) -> None:
        _accepted(method, options)
        if threads is not None:
            integer(threads, "threads", 1, 2**15)
        self._model: Source | None = model
        self._choice = Choice(output, input, fixed, reduce, position, mask, class_axis, quantization)
        package = build(
            model,
            references,
            target,
            choice=self._choice,
            weights=weights,
            cache=cache,
            chunk=chunk,
            threads=threads,
            key=key,
        )
        self._behind = package.behind
        self._start(storage.settle(package), threads)

    def _start(self, package: storage.Stored, threads: int | None) -> None:
        self._package = package
        try:
            self._session, self._shared = package.session(threads)
        except Exception as error:  # onnxruntime's own errors have no public base class
            raise FileFormatError(f"onnxruntime cannot run the explanation's graph: {error}") from error

    @classmethod
    @public
    def load(cls, path: Source, *, threads: int | None = None) -> Explainer:
        """Load what :meth:`export` wrote.

        Parameters
        ----------
        path
            Of the file, or its content.
        threads
            Of onnxruntime; by default all cores.

        Raises
        ------
        FileFormatError
            If it is no ONNX file, is damaged or was changed, wants files outside its own folder, or is not
            an explainer.
        """
        if threads is not None:
            integer(threads, "threads", 1, 2**15)
        explainer: Explainer = cls.__new__(cls)
        explainer._model = None
        explainer._choice = Choice()
        explainer._start(storage.load(path), threads)
        return explainer

    @property
    def method(self) -> str:
        """``"deepshap"``."""
        return "deepshap"

    @property
    def facts(self) -> Facts:
        """Names, shapes, target and number of references, as the exported file has them."""
        return self._package.facts

    @public
    def explain(self, x: object, target: Target | None = None) -> Explanation:
        """Explain a batch.

        Parameters
        ----------
        x
            Array or tensor of shape ``(N, ...)`` in the model's floating type, any ``N``; for several inputs
            a mapping with an array for each, or a tuple of arrays in their order.
        target
            Other outputs than those that the explainer was made for: an index (or, for several targets,
            any number of indices or ``"all"``), or another one for each sample: ``(N,)``, or ``(T, N)`` for
            several targets, as :attr:`Explanation.target` has them. Arrays and tensors may be given.

        Returns
        -------
        Explanation
            Attributions in the shape of ``x``, with a first axis for the targets if there are several.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If ``x`` has another shape, is empty, or has NaN; if ``target`` is out of range; if the model
            overflows.
        """
        facts = self.facts
        given = x if self._behind is None else self._behind.samples(x)
        batches = read_batch(given, [(part.name, (None, *part.shape), part.dtype) for part in facts.inputs])
        count = len(batches[0])
        chosen, rows = for_batch(target, facts.target, facts.classes, count)
        found = self._run(batches, chosen if target is not None and rows is None else None, rows)
        output, base, targets, *attributions = found
        lead = output.shape
        flat = np.concatenate(
            [np.asarray(a).reshape(*lead, -1).sum(-1, keepdims=True) for a in attributions], -1
        )
        everything = np.concatenate([flat, output[..., None]], axis=-1)
        check_outputs(np.moveaxis(everything, -2, 0), "samples")
        return Explanation(
            split(attributions, facts.inputs),
            base.astype(np.float64),
            output.astype(np.float64),
            targets,
            split(batches, facts.inputs),
            facts.references,
            notes=facts.notes,
        )

    def _run(
        self, batches: Sequence[NDArray[Any]], target: Any, rows: NDArray[np.int64] | None
    ) -> list[NDArray[Any]]:
        """Output, base value, targets and attributions; blocks are of samples with the same targets."""
        facts, count = self.facts, len(batches[0])
        lead = int(isinstance(facts.target, tuple))
        blocks: list[tuple[NDArray[np.int64], Any]] = []
        if rows is None:
            blocks = [(np.arange(s, min(s + BLOCK, count)), target) for s in range(0, count, BLOCK)]
        else:
            for column in np.unique(rows, axis=1).T:
                at = np.flatnonzero((rows == column[:, None]).all(axis=0))
                blocks += [(at[s : s + BLOCK], tuple(column)) for s in range(0, len(at), BLOCK)]
        names = ["output_values", "base_values", "targets", *facts.attributions]
        results = []
        for at, wanted in track(blocks, "explaining", len(blocks)):
            feeds: dict[str, NDArray[Any]] = {
                part.name: batch[at] for part, batch in zip(facts.inputs, batches, strict=True)
            }
            if wanted is not None:
                several = wanted if isinstance(wanted, tuple) else (-1 if wanted == "top" else wanted,)
                feeds["target"] = np.array(several, dtype=np.int64)
            results.append(self._session.run(names, feeds))
        order = np.argsort(np.concatenate([at for at, _ in blocks]), kind="stable")
        joined = [np.concatenate([r[i] for r in results], axis=lead) for i in range(len(names))]
        return [np.take(array, order, axis=lead) for array in joined]

    @property
    def outputs(self) -> int:
        """How many outputs there are to choose a target from."""
        return self.facts.classes

    @public
    def export(self, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
        """Write the graph as one ONNX file that plain onnxruntime runs.

        Its inputs are the model's and, optionally, ``target``: int64, one index (-1 for the largest output),
        or several if the explainer was made for several. Its outputs are the model's, ``attributions``,
        ``base_values`` and ``targets``.

        Parameters
        ----------
        path
            Of the file.
        external
            Whether large values go to a file beside it, ``<path>.<checksum>.data``, which onnxruntime maps;
            by default only beyond 1.5 GiB, because protobuf ends at 2 GiB. That file's name ends with its
            content's checksum, so that a session that has mapped an older one is not disturbed.

        Raises
        ------
        InvalidTypeError
            If an argument is of another type.
        OSError
            If the file cannot be written; what was there stays as it was.
        """
        if external is not None:
            boolean(external, "external")
        self._package.write(path, external=external)

    @public
    def verify(self, x: object) -> Verification:
        """Compare the exported file with this explainer and with the model itself.

        Parameters
        ----------
        x
            A batch, as for :meth:`explain`.

        Returns
        -------
        Verification
            Differences, and the additivity error.
        """
        return verify(self, x, self._model, self._choice)

    def __repr__(self) -> str:
        facts = self.facts
        kept = "stored" if facts.cached else "computed again"
        inputs = ", ".join(f"{part.name}{list(part.shape)}" for part in facts.inputs)
        return (
            f"Explainer({inputs} -> {facts.output}, target={facts.target!r}, "
            f"{facts.references} references, {kept})"
        )


_PEERS = {
    "integrated_gradients": ("selkit.explain.integrated", "IntegratedGradientsExplainer"),
    "permutation": ("selkit.explain.permutation", "PermutationExplainer"),
}
"""The classes of other methods, with the arguments in the same order."""


def _peer(method: object) -> Any:
    if not isinstance(method, str) or method not in _PEERS:
        names = ", ".join(repr(name) for name in ("deepshap", *_PEERS))
        raise InvalidInputError(f"method is {given(method)}; it must be one of {names}")
    module, name = _PEERS[method]
    return getattr(importlib.import_module(module), name)


def _accepted(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if the method has them."""
    made = Explainer.__init__ if method == "deepshap" else _peer(method).__init__
    known = [n for n, p in inspect.signature(made).parameters.items() if p.kind is not p.VAR_KEYWORD]
    for name in options:
        if name not in known:
            listed = ", ".join(k for k in known if k not in ("self", "method"))
            raise InvalidInputError(f"{name} is no argument of method={method!r}; it takes {listed}")
    return options
