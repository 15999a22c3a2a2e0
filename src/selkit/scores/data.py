"""What ``fit`` is given, in any of its forms, as checked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from selkit.embeddings.extract import extract
from selkit.embeddings.sources import Want
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.arrays import as_labels, as_tensor
from selkit.utils.checks import integer

FEATURES = ("embedding", "embeddings", "logit", "logits")
LABELS = ("label", "labels", "prediction")


class AsGiven(nn.Module):
    """A model for loaders whose batches are features already."""

    def forward(self, x: Tensor) -> Tensor:
        """The batch itself."""
        return x

    embed = logits = forward


@dataclass(frozen=True)
class Given:
    """References, their labels, the calibration set and its labels, as the user gave them."""

    X: Any = None
    y: Any = None
    Y: Any = None
    y_cal: Any = None


@dataclass
class FitData:
    """The same, as tensors of which nothing is missing that was given."""

    X: Tensor | None = None
    y: Tensor | None = None
    Y: Tensor | None = None
    y_cal: Tensor | None = None


def only_one(**named: Any) -> Any:
    """The one of several names for an argument that was used.

    Raises
    ------
    InvalidInputError
        If several were.
    """
    used = [name for name, value in named.items() if value is not None]
    if len(used) > 1:
        raise InvalidInputError(f"{used[0]}= and {used[1]}= are two names for one argument; give one of them")
    return named[used[0]] if used else None


def unpacked(values: Any, name: str, feature: Want) -> tuple[Any, Any]:
    """Features and labels of an argument that may be a mapping such as ``{"embedding": ..., "label": ...}``.

    Raises
    ------
    InvalidInputError
        If a mapping does not say which entry holds the features.
    """
    if not isinstance(values, Mapping):
        return values, None
    found = [key for key in FEATURES if key in values]
    if len(found) > 1:
        found = [key for key in found if key.startswith(feature.removesuffix("s"))]
    if len(found) != 1:
        raise InvalidInputError(
            f"{name} is a mapping with the keys {list(values)}; one of {list(FEATURES)} is needed"
        )
    labels = only_one(**{key: values[key] for key in LABELS[:2] if key in values})
    return values[found[0]], values.get("prediction") if labels is None else labels


def from_loaders(
    given: Given, model: Any, loaders: Any, feature: Want, *, labels: bool, options: dict[str, Any]
) -> Given:
    """Run a model over ``{"train": ..., "val": ...}``.

    Raises
    ------
    InvalidInputError
        If only one of model and loaders is given, precomputed features too, or other loaders.
    """
    if model is None or loaders is None:
        raise InvalidInputError("model= and loaders= belong together: loaders={'train': ..., 'val': ...}")
    if given.X is not None or given.Y is not None:
        raise InvalidInputError("give either X= and Y=, or model= and loaders=, not both")
    if not isinstance(loaders, Mapping):
        raise InvalidTypeError(
            "loaders must be a mapping such as {'train': ..., 'val': ...}, or a LightningDataModule; "
            f"got {type(loaders).__name__}"
        )
    if set(loaders) - {"train", "val"} or not loaders:
        raise InvalidInputError(f"loaders may hold 'train' and 'val'; got {list(loaders)}")
    values: dict[str, Any] = {}
    targets: dict[str, Any] = {"train": given.y, "val": given.y_cal}
    for part, loader in loaders.items():
        found = extract(model, loader, feature, labels=labels and targets[part] is None, **options)
        values[part] = found.values
        targets[part] = found.labels if targets[part] is None else targets[part]
    return Given(values.get("train"), targets["train"], values.get("val"), targets["val"])


def checked(
    given: Given, feature: Want, references: Callable[[Any], Tensor], others: Callable[[Any, str], Tensor]
) -> FitData:
    """Tensors of one width, with labels of the right length.

    Raises
    ------
    InvalidInputError
        For what cannot be used; the message names the argument.
    """
    X, y_in = unpacked(given.X, "X", feature)
    Y, y_cal_in = unpacked(given.Y, "Y", feature)
    data = FitData()
    data.X = None if X is None else references(X)
    data.Y = None if Y is None else others(Y, "Y")
    if data.X is not None and data.Y is not None and data.X.shape[1:] != data.Y.shape[1:]:
        raise InvalidInputError(
            f"X and Y must have the same width; got {tuple(data.X.shape)} and {tuple(data.Y.shape)}"
        )
    data.y = _labels(only_one(y=given.y, **{"X['label']": y_in}), "y", data.X)
    data.y_cal = _labels(only_one(y_cal=given.y_cal, **{"Y['label']": y_cal_in}), "y_cal", data.Y)
    return data


def without_ignored(data: FitData, ignore_index: int | None) -> FitData:
    """The samples that have a label, for scores that learn from labels.

    Raises
    ------
    InvalidInputError
        If no reference has one.
    """
    if ignore_index is None:
        return data
    value = integer(ignore_index, "ignore_index", -(2**63), 2**63 - 1)
    return FitData(*_labelled(data.X, data.y, value), *_labelled(data.Y, data.y_cal, value))


def _labelled(
    rows: Tensor | None, labels: Tensor | None, ignored: int
) -> tuple[Tensor | None, Tensor | None]:
    if not isinstance(rows, Tensor) or labels is None or labels.ndim != 1:
        return rows, labels
    known = labels != ignored
    if bool(known.all()):
        return rows, labels
    if not bool(known.any()):
        raise InvalidInputError(
            f"all labels of the references are {ignored}, which means that they have none; give "
            "ignore_index=None if it is a class"
        )
    return rows[known.to(rows.device)], labels[known]


def _labels(values: Any, name: str, rows: Tensor | None) -> Tensor | None:
    if values is None or rows is None:
        return None
    tensor = as_tensor(values, name)
    if tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[1] == rows.shape[1]:
        raise InvalidInputError(
            f"{name} must hold labels; got a matrix like X. Calibration embeddings are given by name: Y="
        )
    return as_labels(values, name, rows.shape[0])
