"""What a bundle says about itself: one JSON text in the file's metadata, and the same as an object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from selkit.errors import FileFormatError
from selkit.scores.base import UncertaintyScore

FORMAT = 2  # raised when a file of this version could no longer be read
KEY = "selkit.bundle"


@dataclass(frozen=True)
class ScoreInfo:
    """Which score decides, and what its threshold promises.

    Attributes
    ----------
    name, parameters
        Class and constructor parameters of the score.
    value
        The value of the model that it looks at.
    pool
        How that becomes one vector for each sample; ``None`` where it is one.
    prediction
        The logits from which a group or class follows, if any.
    references
        Number of references in the file.
    threshold
        The calibrated one, or one for each group or class.
    groups
        Which groups or classes those are.
    calibration_size
        Number of calibration scores; ``None`` if they were not kept.
    guarantee
        What the threshold promises, in words.
    promised
        The same as numbers: ``coverage``, or ``risk`` and ``confidence``, as far as known.
    """

    name: str
    parameters: dict[str, Any]
    value: str
    pool: str | None
    prediction: str | None
    references: int
    threshold: float | list[float]
    groups: list[int]
    calibration_size: int | None
    guarantee: str
    promised: dict[str, Any]


@dataclass(frozen=True)
class Description:
    """What a bundle holds.

    Attributes
    ----------
    version
        Of selkit, when it was written.
    predictions
        The model's own outputs.
    outputs
        What was added: ``"score"``, ``"selected"``, ``"score_map"``, ``"roi"``, ``"attribution"`` as far as
        there, each with its name in the file.
    threshold
        Name of the threshold's input; ``None`` without a score.
    threshold_input
        ``"optional"``, ``"required"`` or ``"fixed"``.
    score
        Which score; ``None`` without one.
    roi
        Which hypothesis; ``None`` without one.
    explainer
        Which explanation; ``None`` without one.
    """

    version: str
    predictions: list[str]
    outputs: dict[str, str]
    threshold: str | None = None
    threshold_input: str | None = None
    score: ScoreInfo | None = None
    roi: dict[str, Any] | None = None
    explainer: dict[str, Any] | None = None
    format: int = field(default=FORMAT)

    def write(self, model: onnx.ModelProto) -> None:
        """Put it into a model's metadata, as JSON and the most asked parts as plain text."""
        plain = {KEY: json.dumps(_safe(asdict(self)), allow_nan=False), "selkit.version": self.version}
        plain["selkit.outputs"] = ", ".join([*self.predictions, *self.outputs.values()])
        if self.score is not None:
            plain |= {
                "selkit.score": self.score.name,
                "selkit.guarantee": self.score.guarantee,
                "selkit.calibration_size": str(self.score.calibration_size),
                "selkit.threshold": json.dumps(_safe(self.score.threshold)),
            }
        kept = [entry for entry in model.metadata_props if not entry.key.startswith("selkit.")]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        for key, value in plain.items():
            model.metadata_props.add(key=key, value=value)

    @classmethod
    def read(cls, model: onnx.ModelProto, where: str) -> Description:
        """What a model's metadata say.

        Raises
        ------
        FileFormatError
            If selkit did not write them, or a newer one did.
        """
        found = {entry.key: entry.value for entry in model.metadata_props}
        if KEY not in found:
            raise FileFormatError(
                f"{where} is an ONNX model, but no bundle: its metadata have no entry {KEY!r}; "
                "selkit.export_bundle writes one"
            )
        try:
            content = json.loads(found[KEY])
            version = content["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileFormatError(f"{where}: the metadata entry {KEY!r} is damaged ({error})") from error
        if version != FORMAT or type(version) is not int:  # 2.0 and true are not what selkit writes
            raise FileFormatError(
                f"{where} is a bundle of format {version!r}; this selkit reads format {FORMAT}: "
                "export it again"
            )
        try:
            made = cls(
                **(content | {"score": None if content["score"] is None else _score_info(content["score"])})
            )
            made.check(model, where)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{where}: the metadata entry {KEY!r} is incomplete ({error})") from error
        return made

    def check(self, model: onnx.ModelProto, where: str) -> None:
        """Refuse a file whose graph is not what its metadata say.

        Raises
        ------
        FileFormatError
            Naming what is missing.
        """
        outputs, inputs = (
            {value.name for value in values} for values in (model.graph.output, model.graph.input)
        )
        missing = {*self.predictions, *self.outputs.values()} - outputs
        if self.threshold is not None and self.threshold_input != "fixed":
            missing |= {self.threshold} - inputs
        if missing or (self.score is not None) != ("score" in self.outputs):
            raise FileFormatError(
                f"{where}: its metadata name {sorted(missing) or 'a score'}, which the graph does not "
                "have; it was "
                "changed after it was written"
            )


def _score_info(content: Mapping[str, Any]) -> ScoreInfo:
    threshold = content["threshold"]
    values = [float(value) for value in threshold] if isinstance(threshold, list) else float(threshold)
    return ScoreInfo(**{**content, "threshold": values})


def _safe(value: Any) -> Any:
    """Numbers that JSON does not have, as text that ``float`` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _safe(item) for key, item in value.items()}
    return [_safe(item) for item in value] if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """A parameter as JSON has it: objects by their own text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def guarantee_of(score: UncertaintyScore) -> tuple[str, dict[str, Any]]:
    """What a score's threshold promises, in words and as numbers: quoted from the score, never computed anew.

    A score remembers how its threshold was set in ``guarantee``, a mapping with ``"text"`` and numbers.
    """
    told = getattr(score, "guarantee", None)
    known: dict[str, Any] = plain(dict(told)) if isinstance(told, Mapping) else {}
    text = known.pop("text", None)
    return str(text or "none known: the score does not remember how its threshold was set"), known
