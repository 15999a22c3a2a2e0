"""Virtual-logit matching: what the classifier cannot see in an embedding, weighed against its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.utils.arrays import ArrayLike, as_matrix, as_tensor, check_count
from selkit.utils.precision import exact_device


class ViMScore(UncertaintyScore):
    """Virtual-logit matching (Wang et al. 2022, "ViM: Out-of-distribution with virtual-logit matching").

    With the classifier's head ``logits = W x + b``, the origin is moved to where all logits are zero,
    ``o = -pinv(W) b``. The part of ``x - o`` outside the principal space of the references, scaled to the
    logits' size, is one logit more. The score is that virtual logit minus the logits' log-sum-exp, which
    grows with the virtual logit's share of the softmax.

    Parameters
    ----------
    head
        The last layer, ``torch.nn.Linear``, or ``(W, b)`` with shapes ``(C, D)`` and ``(C,)``. Embeddings
        are its inputs.
    n_components
        Size of the principal space; without it 1000 for 2048 or more dimensions, 512 for 768 or more, else
        half of them, as in the authors' code.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> X = torch.randn(100, 4) * torch.tensor([3.0, 2.0, 0.1, 0.1])
    >>> score = ViMScore(torch.nn.Linear(4, 2), n_components=2).fit(X=X)
    >>> far, near = score.score(torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 0.0, 0.0]]))
    >>> bool(far > near)
    True
    """

    unsaved = ("head",)  # its numbers are in the buffers
    buffer_names = ("weight", "bias", "origin", "outside", "alpha")
    weight: Tensor | None
    bias: Tensor | None
    origin: Tensor | None
    outside: Tensor | None
    alpha: Tensor | None
    head: nn.Linear | Sequence[ArrayLike] | None
    n_components: int | None

    def __init__(
        self, head: nn.Linear | Sequence[ArrayLike] | None = None, n_components: int | None = None
    ) -> None:
        super().__init__()
        self.keep(head=head, n_components=n_components)

    def _check_params(self) -> None:
        if self.n_components is not None:
            check_count(self.n_components, "n_components")

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        weight, bias = _head(self.head, X)
        size = self._size(X)
        device = exact_device(X)
        weight, bias = weight.to(device).double(), bias.to(device).double()
        origin = -torch.linalg.pinv(weight) @ bias
        vectors = _directions(X, origin)
        self.weight, self.bias, self.origin = weight, bias, origin
        self.outside = vectors[:, : X.shape[1] - size].contiguous()  # the smallest eigenvalues come first
        lengths, logits = self._parts(X)
        residual, largest = lengths.mean(), logits.amax(1).mean()
        if not float(residual) > 0 or not float(largest) > 0:
            raise InvalidInputError(
                f"ViM cannot match a mean residual of {float(residual):.3g} to a mean largest logit of "
                f"{float(largest):.3g}: both must be positive; lower n_components, or check that head= "
                "belongs to these embeddings"
            )
        self.alpha = largest / residual

    def _size(self, X: Tensor) -> int:
        width = X.shape[1]
        if self.n_components is None:
            return 1000 if width >= 2048 else 512 if width >= 768 else max(1, width // 2)
        size = int(self.n_components)
        if size >= width:
            raise InvalidInputError(f"n_components={size} leaves nothing outside of {width} dimensions")
        return size

    def _parts(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Length of the residual, and the logits."""
        if self.outside is None or self.weight is None or self.bias is None or self.origin is None:
            raise NotFittedError("ViMScore is not fitted yet: call fit(...) first")
        query = query.to(self.origin)  # float64: the origin may be far from the data, and the logits large
        residual = (query - self.origin) @ self.outside
        return torch.linalg.vector_norm(residual, dim=1), query @ self.weight.T + self.bias

    def _score(self, query: Tensor) -> Tensor:
        if self.alpha is None:
            raise NotFittedError("ViMScore is not fitted yet: call fit(...) first")
        residual, logits = self._parts(query)
        return self.alpha * residual - logits.logsumexp(1)


def _directions(X: Tensor, origin: Tensor) -> Tensor:
    """Eigenvectors of the mean of ``(x - o)(x - o)'``, in float64, those of the smallest eigenvalues first."""
    moment = torch.zeros((X.shape[1], X.shape[1]), dtype=torch.float64, device=origin.device)
    for part in torch.split(X, 16384):
        rows = part.to(origin) - origin
        moment += rows.T @ rows
    if not bool(torch.isfinite(moment).all()):
        raise InvalidInputError("X holds numbers so large that their squares overflow; rescale them")
    values, vectors = torch.linalg.eigh(moment / len(X))
    if float(values[-1]) < 1e6 * float(values.median()):
        return vectors
    # far from that origin squares lose the digits that tell the small directions apart: none are made
    triangle = moment.new_zeros((0, X.shape[1]))
    for part in torch.split(X, 16384):
        triangle = torch.linalg.qr(torch.cat([triangle, part.to(origin) - origin]), mode="r").R
    return torch.linalg.svd(triangle).Vh.flip(0).T


def _head(head: nn.Linear | Sequence[ArrayLike] | None, X: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(head, nn.Linear):
        weight = as_matrix(head.weight, "the head's weight")
        given = getattr(head, "bias", None)  # None in a layer without bias
        bias = torch.zeros(len(weight)) if given is None else as_tensor(given, "the head's bias")
    elif isinstance(head, (tuple, list)) and len(head) == 2:
        weight, bias = as_matrix(head[0], "head[0]"), as_tensor(head[1], "head[1]")
    else:
        raise InvalidTypeError(
            f"head must be the model's last torch.nn.Linear, or (W, b); got {type(head).__name__}"
        )
    if weight.shape[1] != X.shape[1] or tuple(bias.shape) != (len(weight),):
        raise InvalidInputError(
            f"head must map embeddings of width {X.shape[1]} to logits: W (C, {X.shape[1]}), b (C,); got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    return weight, bias
