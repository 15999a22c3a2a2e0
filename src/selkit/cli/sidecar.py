"""What a score's file cannot say: which model and which images it was fitted on, as JSON beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import selkit
from selkit.cli.console import plain
from selkit.cli.features import file_digest
from selkit.errors import FileFormatError, InvalidInputError
from selkit.utils.atomic import write_text
from selkit.utils.checks import given


@dataclass(frozen=True)
class Sidecar:
    """How a score was made.

    Attributes
    ----------
    score, references, calibration
        Name of the score's class, and how many samples were used for what.
    threshold, guarantee
        The threshold (several for groups; ``"inf"`` where all is accepted), and what it promises.
    model_sha256
        Of the ONNX file that computed the features, or None.
    images
        How image files were read, or None.
    score_sha256
        Of the score's file.
    selkit
        Version.
    """

    score: str
    references: int
    calibration: int
    threshold: list[float | str]
    guarantee: str
    model_sha256: str | None
    images: dict[str, Any] | None
    score_sha256: str
    selkit: str = selkit.__version__

    def write(self, score: Path) -> Path:
        """Write it beside the score's file, and return where."""
        path = beside(score)
        write_text(path, json.dumps(plain(asdict(self)), indent=2, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, score: Path) -> Sidecar | None:
        """That of a score's file; None for a score that was saved without one.

        Raises
        ------
        FileFormatError
            If it is damaged.
        InvalidInputError
            If it belongs to another file.
        """
        if not score.name:  # a folder such as "." or "/", which whoever reads the score will refuse
            return None
        path = beside(score)
        if not path.exists():
            return None
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise FileFormatError(f"{path} does not describe a score: {error}") from error
        if found.images is not None and not _describes_images(found.images):
            raise FileFormatError(f"{path} does not say how images were read: {given(found.images)}")
        if found.score_sha256 != file_digest(score):
            raise InvalidInputError(
                f"{path} describes another file than {score}; move it away, or fit the score again"
            )
        return found

    def check_model(self, model: str | None) -> None:
        """Refuse another model than the one that the score was fitted with.

        Raises
        ------
        InvalidInputError
            For another model, one too many or none.
        """
        if self.model_sha256 is None and model is not None:
            raise InvalidInputError("--model is given, but the score was fitted on features without a model")
        if self.model_sha256 is not None and model is None:
            raise InvalidInputError("the score was fitted through a model; say which: --model model.onnx")
        if model is not None and file_digest(model) != self.model_sha256:
            raise InvalidInputError(f"{model} is not the model that the score was fitted with")


def beside(score: Path) -> Path:
    """``score.json`` for ``score.safetensors``."""
    return score.with_suffix(".json")


def _describes_images(value: object) -> bool:
    """Whether it may be what the options of images were."""
    texts = {"color": ("gray", "rgb"), "scale": ("unit", "none"), "layout": ("chw", "hwc")}
    numbers = {"resize": int, "mean": (int, float), "std": (int, float)}
    if not isinstance(value, dict) or not set(value) <= {*texts, *numbers}:
        return False
    return all(
        one is None
        or (one in texts[name] if name in texts else _numbers(one, numbers[name], name == "resize"))
        for name, one in value.items()
    )


def _numbers(value: object, kind: Any, is_size: bool) -> bool:
    if not isinstance(value, list) or not all(isinstance(one, kind) and abs(one) < 1e9 for one in value):
        return False
    return not is_size or (len(value) == 2 and min(value) > 0)
