"""What the p-values of a task are conditioned on besides the region: that the score accepted the sample."""

from __future__ import annotations

import dataclasses
import io
import warnings
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from selkit.embeddings.sources import source_of
from selkit.errors import InvalidTypeError, NotAvailableError
from selkit.inference import Acceptance, RoiTest
from selkit.scores import ClassWiseScore, RandomScore, UncertaintyScore
from selkit.task.selecting import single_precision, widened

Conditioning = Acceptance | Literal["score"] | None


class _Features(nn.Module):
    """What a score is given, as a module that can be exported."""

    def __init__(self, score: UncertaintyScore, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        where = {name: score._where[name] for name in ("layer", "pool")}
        self.sources = [source_of(model, score.feature, **where)]
        if isinstance(score, ClassWiseScore):
            self.sources.append(source_of(model, "logits"))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The embedding or logits; for class-wise scores with the logits of the predicted class."""
        return tuple(source(x) for source in self.sources)


def exported(score: UncertaintyScore, model: nn.Module, x: Tensor) -> Acceptance:
    """Export the part of a torch model that a score looks at, in single precision at least.

    Parameters
    ----------
    score
        Fitted.
    model
        With what the score needs: ``embed(x)``, ``logits(x)`` or the layer that it was fitted with.
    x
        One sample with its batch axis.

    Raises
    ------
    NotAvailableError
        If torch cannot export it.
    """
    features = _Features(score, model)
    names = ["features", "logits"][: len(features.sources)]
    buffer: Any = io.BytesIO()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), single_precision(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                features,
                (widened(x.detach().clone()),),
                buffer,
                dynamo=False,
                opset_version=17,
                input_names=["x"],
                output_names=names,
            )
    except Exception as error:
        raise NotAvailableError(
            f"the part of {type(model).__name__} that {type(score).__name__} looks at cannot be exported to "
            f"ONNX ({error}), so p-values cannot be conditioned on acceptance. Say where it is in an ONNX "
            "model, accepted_by=selkit.inference.Acceptance(score, embedding=..., model=...), or leave "
            "acceptance out with accepted_by=None: then p-values of accepted samples are not valid"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    proto = onnx.load_from_string(buffer.getvalue())
    return Acceptance(score, "features", proto, prediction="logits" if len(names) > 1 else None)


class Conditions:
    """Makes, for each sample of a batch, what its test is conditioned on.

    Parameters
    ----------
    given
        As :class:`selkit.SelectiveInferenceTask` is given it.
    score, model
        Those of the task.
    extracts
        Whether the model's features come from ``extract(batch)``.
    """

    def __init__(self, given: Conditioning, score: nn.Module, model: nn.Module, *, extracts: bool) -> None:
        if given is not None and given != "score" and not isinstance(given, Acceptance):
            raise InvalidTypeError(
                f"accepted_by must be 'score', a selkit.inference.Acceptance or None; got {given!r}"
            )
        self.given, self.score, self.model, self.extracts = given, score, model, extracts
        self._exported: tuple[tuple[int, ...], Acceptance] | None = None

    def of(self, test: Any, x: Tensor, scores: Tensor, groups: Any) -> list[Acceptance] | None:
        """What the test of each sample is conditioned on.

        Parameters
        ----------
        test
            The region test.
        x, scores, groups
            Of the batch.
        """
        score = self.score
        if self.given is None or not isinstance(test, RoiTest) or isinstance(score, RandomScore):
            return None  # a test of another kind has no such argument, and random numbers tell nothing
        if not isinstance(score, UncertaintyScore):
            return None
        acceptance = self._acceptance(score, x) if self.given == "score" else self.given
        if groups is None or isinstance(score, ClassWiseScore) or not isinstance(acceptance, Acceptance):
            return [acceptance] * len(x)
        limits = score._threshold_for(scores, groups).tolist()
        return [dataclasses.replace(acceptance, threshold=limit) for limit in limits]

    def _acceptance(self, score: UncertaintyScore, x: Tensor) -> Acceptance:
        shape = tuple(x.shape[1:])
        if self._exported is None or self._exported[0] != shape:
            if self.extracts:
                raise NotAvailableError(
                    f"{type(self.model).__name__}.extract(batch) cannot be exported to ONNX, so p-values "
                    "cannot be conditioned on acceptance by themselves. Say where the score's features are "
                    "in an ONNX model, accepted_by=selkit.inference.Acceptance(score, embedding=..., "
                    "model=...), or leave acceptance out with accepted_by=None: then p-values of accepted "
                    "samples are not valid"
                )
            self._exported = shape, exported(score, self.model, x[:1])
        return self._exported[1]
