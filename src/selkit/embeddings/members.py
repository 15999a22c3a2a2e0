"""Several predictions of one input: ensembles, and a model whose dropout stays on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from selkit.embeddings.sources import TorchSource
from selkit.errors import InvalidInputError
from selkit.utils.arrays import check_count
from selkit.utils.boundary import public
from selkit.utils.checks import seed as check_seed


class Ensemble(nn.Module):
    """The logits of several models side by side, for scores that compare members.

    Parameters
    ----------
    models
        At least two modules with ``logits(x)``, or whose output is the logits.

    Examples
    --------
    >>> import torch
    >>> Ensemble([torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]).logits(torch.zeros(5, 4)).shape
    torch.Size([5, 3, 2])
    """

    @public
    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(models) < 2:
            raise InvalidInputError(f"an ensemble has at least 2 members; got {len(models)}")
        self.models = nn.ModuleList(models)

    def logits(self, x: Any) -> Tensor:
        """Logits ``(N, C, M)``."""
        return torch.stack([TorchSource(model, "logits")(x) for model in self.models], dim=-1)

    def forward(self, x: Any) -> Tensor:
        """The members' mean probability."""
        return self.logits(x).softmax(1).mean(-1)


class MonteCarloDropout(nn.Module):
    """A model that is run several times with its dropout on, all else in evaluation mode (Gal & Ghahramani
    2016, "Dropout as a Bayesian approximation").

    Parameters
    ----------
    model
        A module with dropout layers.
    members
        Number of draws.
    seed
        The draws of every batch start from it, so that the same batch gives the same logits; the global
        random state stays as it was.

    Raises
    ------
    InvalidInputError
        If the model has no dropout layer: all draws would be equal.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))
    >>> MonteCarloDropout(model, members=8).logits(torch.ones(5, 4)).shape
    torch.Size([5, 3, 8])
    """

    @public
    def __init__(self, model: nn.Module, members: int = 20, seed: int = 0) -> None:
        super().__init__()
        check_count(members, "members", 2)
        if not any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules()):
            raise InvalidInputError(f"{type(model).__name__} has no dropout layer: all draws would be equal")
        self.model, self.members, self.seed = model, members, check_seed(seed)

    def logits(self, x: Any) -> Tensor:
        """Logits ``(N, C, M)``."""
        source = TorchSource(self.model, "logits")
        device = source.device or torch.device("cpu")
        devices = [device] if device.type == "cuda" else []
        with source.running(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            for module in self.model.modules():
                if isinstance(module, _DropoutNd):
                    module.train()
            return torch.stack([source(x) for _ in range(self.members)], dim=-1)

    def forward(self, x: Any) -> Tensor:
        """The draws' mean probability."""
        return self.logits(x).softmax(1).mean(-1)
