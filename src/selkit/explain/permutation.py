"""Shapley values of any model that onnxruntime runs, trees included, by shap's permutation explainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from selkit.embeddings.batches import Key
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError, MissingExtraError
from selkit.explain.heads import ClassAxis, Head, Position, Reduce, read_head
from selkit.explain.peers import Graphless
from selkit.explain.question import check_outputs
from selkit.explain.references import Shape, read_array, read_references
from selkit.explain.result import Explanation
from selkit.explain.targets import Target, check_target, for_batch, resolved
from selkit.graph.files import Source, read_apart
from selkit.graph.large import open_session
from selkit.graph.tidy import keep
from selkit.utils.boundary import public
from selkit.utils.checks import integer, text
from selkit.utils.progress import track

FLOATS: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
}
ROWS = 4096
"""At most so many rows go through the model at once."""


class PermutationExplainer(Graphless):
    """Shapley values by walking through random orders of the features, forwards and backwards.

    A feature that is not there takes the references' values, and the output is their mean; so the values
    sum to ``f(x) - mean f(references)`` exactly. They are exact for models whose features interact in pairs
    at most, and for others a mean over ``permutations`` orders (Strumbelj & Kononenko 2014, "Explaining
    prediction models and individual predictions with feature contributions"; shap's
    ``PermutationExplainer``). A sample costs ``permutations * (2 * features + 1) * R`` rows of the model: use
    it for tables. Networks go through :class:`selkit.explain.Explainer`, at the cost of a few passes.

    Parameters
    ----------
    model
        Path, bytes or ``onnx.ModelProto``; one floating input ``(N, ...)``, any operators.
    references
        As for :func:`selkit.explain.references.read_references`.
    output
        Name of an output; by default the only floating one, such as a
        classifier's probabilities beside its labels.
    target
        ``"top"`` for each sample's largest output, an index, several, or ``"all"``.
    reduce, position, mask, class_axis
        What becomes of the positions of an output, as for :class:`selkit.explain.Explainer`.
    permutations
        How many orders are walked through.
    seed
        Of the orders; each sample is walked in the same ones, whatever else is in its batch.
    key
        Position or name of the input in each entry of a loader of references.

    Raises
    ------
    MissingExtraError
        If shap is not installed.
    FileFormatError
        If it is no ONNX model, or onnxruntime cannot run it.
    InvalidInputError, InvalidTypeError
        If an argument cannot be used.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 1] y) { y = ReduceProd <axes = [1]> (x) }''')
    >>> explainer = PermutationExplainer(model, np.zeros((1, 2), dtype=np.float32), target=0)
    >>> explainer.explain(np.array([[2.0, 3.0]])).attributions
    array([[3., 3.]])
    """

    METHOD = "permutation"
    WHY = "it runs the model itself, on many inputs"

    @public
    def __init__(
        self,
        model: Source,
        references: object,
        output: str | None = None,
        target: Target = "top",
        *,
        reduce: Reduce = None,
        position: Position = None,
        mask: object = None,
        class_axis: ClassAxis = None,
        permutations: int = 10,
        seed: int = 0,
        key: Key = None,
    ) -> None:
        _shap()
        self._said = {"reduce": reduce, "position": position, "mask": mask, "class_axis": class_axis}
        self._head: Head | None = None
        self.permutations = integer(permutations, "permutations", 1, 2**31)
        self.seed = integer(seed, "seed", 0, 2**32 - 1)
        self._session = _open(model, output)
        self.input, self.shape, self.dtype = _input_of(self._session)
        self.output = _output_of(self._session, output)
        self.references = read_references(references, self.shape, self.dtype, key=key)
        outputs = self.predict(self.references)
        check_outputs(outputs, "references")
        self.mean_output: NDArray[np.float64] = outputs.mean(axis=0)
        self.target = check_target(target, outputs.shape[1])

    @public
    def predict(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The model's output for a checked batch, ``(N, outputs)``; float64."""
        fixed = self._session.get_inputs()[0].shape[0]
        step = fixed if isinstance(fixed, int) else ROWS
        parts = []
        for start in range(0, len(x), step):
            rows = np.ascontiguousarray(x[start : start + step], dtype=self.dtype)
            missing = step - len(rows) if isinstance(fixed, int) else 0
            full = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
            found = np.asarray(self._session.run([self.output], {self.input: full})[0])
            if not found.ndim or len(found) != len(full):
                raise InvalidInputError(
                    f"output {self.output!r} has shape {found.shape} for {len(full)} samples; its first axis "
                    "must be that of the samples. Name another with output=, or add a Reshape to the model"
                )
            parts.append(self._read(found[: len(rows)].astype(np.float64), full))
        return np.concatenate(parts)

    def _read(self, found: NDArray[np.float64], x: NDArray[Any]) -> NDArray[np.float64]:
        """One number for each class of the model's output."""
        if self._head is None:
            self._head = read_head((1, *found.shape[1:]), [(1, *x.shape[1:])], self.output, **self._said)
        return np.asarray(self._head.apply(found.reshape(len(found), *self._head.shape[1:])))

    @public
    def explain(self, x: object, target: Target | None = None) -> Explanation:
        """Explain a batch.

        Parameters
        ----------
        x
            Array or tensor of shape ``(N, ...)``.
        target
            Other outputs than those that the explainer was made for, as for
            :meth:`selkit.explain.Explainer.explain`.

        Returns
        -------
        Explanation
            With ``method="permutation"`` and float64 attributions.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If x does not fit the model, or holds NaN or infinity.
        """
        batch = read_array(x, self.shape, self.dtype)
        if batch.shape[1:] != self.references.shape[1:]:
            raise InvalidInputError(
                f"x has shape {batch.shape}; the references are of shape {self.references.shape}, and must "
                "differ in their number only"
            )
        outputs = self.predict(batch)
        check_outputs(outputs, "samples")
        chosen, rows = for_batch(target, self.target, outputs.shape[1], len(batch))
        several = isinstance(self.target, tuple)
        targets = resolved(chosen, outputs) if rows is None else rows
        values = np.empty((*targets.shape, batch[0].size))
        for row in track(range(len(batch)), "explaining", len(batch)):
            values[:, row] = self._explain_row(batch[row], targets[:, row])
        base = self.mean_output[targets]
        output = np.take_along_axis(outputs, targets.T, axis=1).T
        attributions = values.reshape(*targets.shape, *batch.shape[1:])
        keep = slice(None) if several else 0
        return Explanation(
            attributions[keep],
            base[keep],
            output[keep],
            targets[keep],
            batch,
            len(self.references),
            method="permutation",
        )

    def _explain_row(self, sample: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values of one sample, one row for each target."""
        shap, size, shape = _shap(), sample.size, sample.shape

        def model(rows: NDArray[Any]) -> NDArray[np.float64]:
            return np.ascontiguousarray(self.predict(rows.reshape(-1, *shape))[:, targets])

        background = self.references.reshape(len(self.references), -1)
        with _numpy_random_state():
            masker = shap.maskers.Independent(background, max_samples=len(background))
            explainer = shap.explainers.Permutation(model, masker, seed=self.seed)
            found = explainer(
                sample.reshape(1, -1), max_evals=self.permutations * (2 * size + 1), silent=True
            )
        return np.asarray(found.values, dtype=np.float64).reshape(size, len(targets)).T


def _shap() -> Any:
    try:
        import shap
    except ImportError as error:
        raise MissingExtraError("method='permutation' needs shap: pip install 'selkit[shap]'") from error
    return shap


def _open(model: Source, output: str | None) -> Any:
    import onnxruntime as ort

    proto, arrays = read_apart(model)
    real = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    if any(v.name == output and v.type.tensor_type.elem_type in real for v in proto.graph.output):
        keep(proto, [str(output)])  # nodes that it does not need may be of operators that onnxruntime lacks
    options = ort.SessionOptions()
    options.log_severity_level = 3
    held = {tensor.name for tensor in proto.graph.initializer} & arrays.keys()
    try:
        return open_session(proto, {n: arrays[n] for n in held}, options, ort.get_available_providers())
    except Exception as error:  # onnxruntime's own errors have no public base class
        raise FileFormatError(f"onnxruntime cannot run the model: {error}") from error


def _input_of(session: Any) -> tuple[str, Shape | None, Any]:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InvalidInputError(
            f"the model takes {[entry.name for entry in inputs]}; one input is supported. Join columns to "
            "one array (skl2onnx: initial_types=[('x', FloatTensorType([None, features]))])"
        )
    if inputs[0].type not in FLOATS:
        raise InvalidTypeError(f"the model's input is {inputs[0].type}; it must be one of {list(FLOATS)}")
    shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)
    return inputs[0].name, shape or None, FLOATS[inputs[0].type]


def _output_of(session: Any, name: str | None) -> str:
    kinds = {entry.name: entry.type for entry in session.get_outputs()}
    floating = [str(entry) for entry, kind in kinds.items() if kind in FLOATS]
    if name is not None:
        text(name, "output")
    if name is None and len(floating) == 1:
        return floating[0]
    if name in floating:
        return str(name)
    why = f"output is {name!r}" if name is not None or not floating else "output must be named"
    raise InvalidInputError(
        f"{why}; the model's floating outputs are {floating}, of {list(kinds)}. Choose one of them with "
        "output="
    )


@contextlib.contextmanager
def _numpy_random_state() -> Iterator[None]:
    """Shap seeds NumPy's global generator; the caller's state comes back afterwards."""
    state = np.random.get_state()  # noqa: NPY002 - the one that shap seeds
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002 - see above
