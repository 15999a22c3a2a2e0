"""DeepSHAP inside the ONNX graph."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from selkit.embeddings.batches import Key
from selkit.errors import FileFormatError, InvalidInputError, NotAvailableError
from selkit.explain import storage
from selkit.explain.build import build
from selkit.explain.permutation import PermutationExplainer, Target, check_target
from selkit.explain.references import read_array
from selkit.explain.result import Explanation
from selkit.explain.verify import Verification, verify
from selkit.graph.files import Source
from selkit.utils.arrays import check_count
from selkit.utils.boundary import public
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
        Path, bytes or ``onnx.ModelProto``; one floating input with a batch axis, any batch size declared.
    references
        What inputs are compared with: array, tensor or loader of shape ``(R, ...)``
        (:func:`selkit.explain.read_references`); 5 to 20 typical samples are usual,
        :func:`selkit.explain.summarize` chooses some.
    output
        Name of the output to explain, of shape ``(N, outputs)``; by default the model's first.
    target
        ``"top"`` for each sample's largest output, an index, several indices, or ``"all"``.
    method
        ``"deepshap"``, or ``"permutation"`` for any other model that onnxruntime runs
        (:class:`selkit.explain.PermutationExplainer`): slower, and nothing to export.
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

    Raises
    ------
    UnsupportedModelError
        If operators have no attribution rule; all of them are listed.
    FileFormatError
        If it is no ONNX model.
    InvalidInputError, InvalidTypeError
        If the references or another argument do not fit the model.

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

    @public
    def __init__(
        self,
        model: Source,
        references: object,
        output: str | None = None,
        target: Target = "top",
        *,
        method: Literal["deepshap", "permutation"] = "deepshap",
        weights: object = None,
        cache: bool | Literal["auto"] = "auto",
        chunk: int | Literal["auto"] = "auto",
        threads: int | None = None,
        key: Key = None,
    ) -> None:
        if method not in ("deepshap", "permutation"):
            raise InvalidInputError(f"method is {method!r}; it must be 'deepshap' or 'permutation'")
        if threads is not None:
            check_count(threads, "threads")
        self._permutation: PermutationExplainer | None = None
        self._package: storage.Stored | None = None
        self._model: Source | None = model
        self.method = method
        if method == "permutation":
            if weights is not None:
                raise InvalidInputError("weights are for method='deepshap'; leave them out")
            self._permutation = PermutationExplainer(model, references, output, target, key=key)
            return
        package = build(
            model,
            references,
            output,
            target,
            weights=weights,
            cache=cache,
            chunk=chunk,
            threads=threads,
            key=key,
        )
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
            If it is no ONNX file, is damaged, wants files outside its own folder, or is not an explainer.
        """
        explainer = cls.__new__(cls)
        explainer._permutation = None
        explainer._model = None
        explainer.method = "deepshap"
        explainer._start(storage.load(path), threads)
        return explainer

    @property
    def facts(self) -> storage.Facts:
        """Names, shape, target and number of references, as the exported file has them."""
        return self._graph("facts").facts

    def _graph(self, what: str) -> storage.Stored:
        if self._package is None:
            raise NotAvailableError(
                f"{what} needs a graph, and method='permutation' has none: it runs the model itself"
            )
        return self._package

    @public
    def explain(self, x: object, target: Target | None = None) -> Explanation:
        """Explain a batch.

        Parameters
        ----------
        x
            Array or tensor of shape ``(N, ...)`` in the model's floating type, any ``N``.
        target
            Other outputs than those that the explainer was made for, as many as these: an index for one
            target per sample, indices (any number) or ``"all"`` for several.

        Returns
        -------
        Explanation
            Attributions in the shape of ``x``, with a first axis for the targets if there are several.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If ``x`` has another shape, is empty, or has NaN; if ``target`` is out of range.
        """
        if self._permutation is not None:
            if target is not None:
                raise NotAvailableError("method='permutation' explains the target that it was made for")
            return self._permutation.explain(x)
        facts = self.facts
        batch = read_array(x, (None, *facts.shape), np.dtype(facts.dtype))
        feeds: dict[str, NDArray[Any]] = {}
        several = isinstance(facts.target, tuple)
        if target is not None:
            feeds["target"] = self._chosen(target, several=several)
        names = [facts.output, "attributions", "base_values", "targets"]
        parts = []
        for start in track(range(0, len(batch), BLOCK), "explaining", -(-len(batch) // BLOCK)):
            block = batch[start : start + BLOCK]
            parts.append(self._session.run(names, {facts.input: block, **feeds}))
        lead = 1 if several else 0
        outputs = np.concatenate([part[0] for part in parts])
        attributions, base, targets = (
            np.concatenate([part[i] for part in parts], axis=lead) for i in (1, 2, 3)
        )
        rows = np.arange(len(batch))
        return Explanation(
            attributions,
            base.astype(np.float64),
            outputs[rows, targets].astype(np.float64),
            targets,
            batch,
            facts.references,
        )

    def _chosen(self, target: Target, *, several: bool) -> NDArray[np.int64]:
        """What to feed for a target."""
        checked = check_target(target, self.outputs)
        if isinstance(checked, tuple) != several:
            made = "several targets" if several else "one target"
            raise InvalidInputError(
                f"target is {target!r}, but this explainer was made for {made} per sample; "
                f"make another one with target={target!r}"
            )
        return np.array(checked if isinstance(checked, tuple) else [-1 if checked == "top" else checked])

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        name = self._graph("outputs").facts.output
        shape = next(entry.shape for entry in self._session.get_outputs() if entry.name == name)
        return int(shape[1])

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
            Whether large values go to a file beside it, ``<path>.data``, which onnxruntime maps into memory;
            by default only beyond 1.5 GiB, because protobuf ends at 2 GiB.

        Raises
        ------
        NotAvailableError
            For ``method="permutation"``.
        """
        self._graph("export").write(path, external=external)

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
        self._graph("verify")
        return verify(self, x, self._model)

    def __repr__(self) -> str:
        if self._package is None:
            return f"Explainer(method={self.method!r})"
        facts = self.facts
        kept = "stored" if facts.cached else "computed again"
        return (
            f"Explainer({facts.input}{list(facts.shape)} -> {facts.output}, target={facts.target!r}, "
            f"{facts.references} references, {kept})"
        )
