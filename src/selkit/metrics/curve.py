"""The risk-coverage curve of a selective predictor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.metrics import blocks
from selkit.utils.boundary import public
from selkit.utils.checks import integer, number
from selkit.utils.figures import axes, lone_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RiskType: TypeAlias = Literal["selective", "generalized"]

_COLORS = {"empirical": "#1b9e77", "reference": "#7570b3", "excess": "#d95f02"}


def check_risk_type(risk: str) -> RiskType:
    """The argument ``risk``, if it is one of the two kinds."""
    if risk == "selective":
        return "selective"
    if risk == "generalized":
        return "generalized"
    raise InvalidInputError(
        f"risk must be 'selective' (mean loss of the accepted samples) or 'generalized' (their summed loss "
        f"over the number of all samples); got {risk!r}"
    )


def _fraction(value: float, name: str) -> float:
    if isinstance(value, bool) or not 0 < float(value) <= 1:
        raise InvalidInputError(f"{name} must lie in (0, 1]; got {value!r}")
    return float(value)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What accepting every sample with ``score <= threshold`` costs, for each threshold.

    Made by :func:`risk_coverage` or :meth:`RiskCoverageMetric.get_curve`. Samples of one score are one
    point of the curve, because no threshold separates them; areas take the expectation over their
    order (formulas in ``selkit/metrics/blocks.py``), so the order of rows never matters.

    Attributes
    ----------
    threshold
        The distinct scores, ascending, ``(M,)``.
    accepted
        How many samples have a score up to each threshold, int64, ``(M,)``.
    loss_sum
        The sum of their losses, float64, ``(M,)``.
    best_accepted, best_loss_sum
        The same for the best possible score, the loss itself: one entry per distinct loss.
    risk_type
        Which risk :attr:`risk`, :attr:`reference` and :attr:`excess` are.
    loss_range
        Smallest and largest loss of a sample.
    binned
        Whether scores were rounded into bins. Points of the curve are exact then too; areas may
        differ from the exact ones by at most :attr:`aurc_error` and :attr:`augrc_error`.
    """

    threshold: Tensor
    accepted: Tensor
    loss_sum: Tensor
    best_accepted: Tensor
    best_loss_sum: Tensor
    risk_type: RiskType = "selective"
    loss_range: tuple[float, float] = (0.0, 1.0)
    binned: bool = False

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.accepted[-1])

    def __len__(self) -> int:
        return len(self.threshold)

    def __repr__(self) -> str:
        return (
            f"RiskCoverage(n={self.n}, points={len(self)}, aurc={float(self.aurc):.4g}, "
            f"excess_aurc={float(self.excess_aurc):.4g}, augrc={float(self.augrc):.4g})"
        )

    # -- the curve ---------------------------------------------------------------------------------

    @cached_property
    def coverage(self) -> Tensor:
        """Fraction of samples accepted at each threshold, float64, ``(M,)``."""
        return self.accepted.double() / self.n

    @cached_property
    def selective_risk(self) -> Tensor:
        """Mean loss of the accepted samples, float64, ``(M,)``."""
        return self.loss_sum / self.accepted

    @cached_property
    def generalized_risk(self) -> Tensor:
        """Loss of the accepted samples over the number of all samples, float64, ``(M,)``."""
        return self.loss_sum / self.n

    @property
    def risk(self) -> Tensor:
        """The risk of :attr:`risk_type` at each threshold."""
        return self.selective_risk if self.risk_type == "selective" else self.generalized_risk

    @cached_property
    def reference(self) -> Tensor:
        """The risk of the best possible score at the same coverages, ``(M,)``."""
        return self._risk_of(self.best_accepted, self.best_loss_sum, self.accepted.double())

    @cached_property
    def excess(self) -> Tensor:
        """:attr:`risk` minus :attr:`reference`, ``(M,)``."""
        return self.risk - self.reference

    @public
    def expected_risk(self, coverage: Tensor) -> Tensor:
        """Risk of accepting a given fraction of the samples, tied ones in a random order.

        Parameters
        ----------
        coverage
            Fractions in (0, 1], any shape.

        Returns
        -------
        Tensor
            float64, of the same shape.
        """
        return self._risk_of(
            self.accepted, self.loss_sum, coverage.to(self.accepted.device).double() * self.n
        )

    def _risk_of(self, accepted: Tensor, loss_sum: Tensor, at: Tensor) -> Tensor:
        """Expected losses are linear inside a block; interpolate the sums, then divide."""
        knots = torch.nn.functional.pad(accepted.double(), (1, 0))
        sums = torch.nn.functional.pad(loss_sum, (1, 0))
        right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
        width = knots[right] - knots[right - 1]
        part = ((at - knots[right - 1]) / width).clamp(0, 1)
        total = torch.lerp(sums[right - 1], sums[right], part)
        return total / (at if self.risk_type == "selective" else self.n)

    # -- single numbers ----------------------------------------------------------------------------

    @cached_property
    def aurc(self) -> Tensor:
        """Area under the risk-coverage curve: the mean selective risk over all coverages."""
        return blocks.aurc(self.accepted, self.loss_sum)

    @cached_property
    def aurc_reference(self) -> Tensor:
        """AURC of the best possible score."""
        return blocks.aurc(self.best_accepted, self.best_loss_sum)

    @property
    def excess_aurc(self) -> Tensor:
        """AURC above that of the best possible score."""
        return (self.aurc - self.aurc_reference).clamp(min=0)

    @cached_property
    def augrc(self) -> Tensor:
        """Area under the generalized risk-coverage curve (Traub et al. 2024)."""
        return blocks.augrc(self.accepted, self.loss_sum)

    @cached_property
    def augrc_reference(self) -> Tensor:
        """AUGRC of the best possible score."""
        return blocks.augrc(self.best_accepted, self.best_loss_sum)

    @property
    def excess_augrc(self) -> Tensor:
        """AUGRC above that of the best possible score."""
        return (self.augrc - self.augrc_reference).clamp(min=0)

    @cached_property
    def _slack(self) -> tuple[Tensor, Tensor]:
        if not self.binned:
            zero = torch.zeros((), dtype=torch.float64, device=self.loss_sum.device)
            return zero, zero
        return blocks.aurc_slack(_steps(self.accepted.double()), _steps(self.loss_sum), *self.loss_range)

    @property
    def aurc_error(self) -> Tensor:
        """How far binning can have moved :attr:`aurc`, at most; zero for exact curves."""
        return self._slack[0]

    @property
    def augrc_error(self) -> Tensor:
        """How far binning can have moved :attr:`augrc`, at most; zero for exact curves."""
        return self._slack[1]

    @property
    def auc_empirical(self) -> Tensor:
        """The area under :attr:`risk`: AURC for selective risk, AUGRC for generalized risk."""
        return self.aurc if self.risk_type == "selective" else self.augrc

    @property
    def auc_reference(self) -> Tensor:
        """The area under :attr:`reference`."""
        return self.aurc_reference if self.risk_type == "selective" else self.augrc_reference

    @property
    def auc_excess(self) -> Tensor:
        """The area under :attr:`excess`."""
        return self.excess_aurc if self.risk_type == "selective" else self.excess_augrc

    @public
    def index_at_coverage(self, coverage: float) -> int:
        """Position of the lowest threshold that accepts at least this fraction.

        Raises
        ------
        InvalidInputError
            If ``coverage`` is not in (0, 1].
        """
        wanted = _fraction(coverage, "coverage") * self.n
        needed = max(1, math.ceil(wanted - 1e-9 * self.n))  # 0.7 * 10 is 7, not 8
        return int(torch.searchsorted(self.accepted, needed))

    @public
    def risk_at_coverage(self, coverage: float) -> Tensor:
        """Selective risk at the lowest threshold that accepts at least this fraction.

        Parameters
        ----------
        coverage
            In (0, 1].

        Returns
        -------
        Tensor
            float64 scalar: a risk that a threshold really has, whatever the ties.

        Raises
        ------
        InvalidInputError
            If ``coverage`` is not in (0, 1].
        """
        return self.selective_risk[self.index_at_coverage(coverage)]

    @public
    def coverage_at_risk(self, risk: float) -> Tensor:
        """The largest coverage whose selective risk is at most ``risk``.

        Parameters
        ----------
        risk
            A finite mean loss.

        Returns
        -------
        Tensor
            float64 scalar; 1 if everything may be accepted, 0 if no threshold reaches the risk, because
            accepting nothing costs nothing.

        Raises
        ------
        InvalidInputError
            If ``risk`` is NaN or infinite.
        """
        risk = number(risk, "risk")
        slack = 4e-16 * (self.loss_sum.abs() + self.accepted)  # sums carry the rounding of their order
        good = self.loss_sum <= risk * self.accepted + slack
        return torch.where(good, self.coverage, 0.0).max()

    @public
    def plot(
        self,
        empirical: bool = True,
        reference: bool = True,
        excess: bool = True,
        digits: int = 4,
        *,
        ax: Any = None,
        max_points: int = 2000,
    ) -> Figure:
        """Draw the curves, with the areas that the curve reports in the legend.

        Parameters
        ----------
        empirical, reference, excess
            Which curves to draw.
        digits
            Decimals of the areas.
        ax
            Matplotlib axes to draw into, instead of a new figure.
        max_points
            Curves with more points are drawn at this many, evenly spaced in coverage.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        InvalidInputError
            If no curve is asked for.
        MissingExtraError
            If matplotlib is not installed.
        """
        wanted = {"empirical": empirical, "reference": reference, "excess": excess}
        if not any(wanted.values()):
            raise InvalidInputError("nothing to plot: set one of empirical, reference, excess to True")
        integer(digits, "digits", 0, 17)
        integer(max_points, "max_points", 2)
        if ax is None:
            ax = lone_axes()
        ax = axes(ax)
        at = self._plot_coverages(max_points)
        mine = self.expected_risk(at)
        best = self._risk_of(self.best_accepted, self.best_loss_sum, at * self.n)
        curves = {"empirical": mine, "reference": best, "excess": mine - best}
        areas = {"empirical": self.auc_empirical, "reference": self.auc_reference, "excess": self.auc_excess}
        for name, values in curves.items():
            if wanted[name]:
                label = f"{name}: {float(areas[name]):.{digits}f}"
                ax.plot(
                    at.cpu().numpy(), values.cpu().numpy(), label=label, color=_COLORS[name], linewidth=1.8
                )
        ax.set_xlabel("coverage")
        ax.set_ylabel(f"{self.risk_type} risk")
        ax.set_xlim(0, 1)
        ax.legend(title="AURC" if self.risk_type == "selective" else "AUGRC", frameon=False)
        ax.grid(visible=True, alpha=0.3)
        figure: Figure = ax.figure
        return figure

    def _plot_coverages(self, max_points: int) -> Tensor:
        """Every number of samples if there are few, else evenly spaced ones."""
        n = self.n
        points = min(n, max(2, max_points))
        return torch.linspace(1, n, points, dtype=torch.float64, device=self.loss_sum.device).round() / n


def _steps(cumulative: Tensor) -> Tensor:
    return torch.diff(cumulative, prepend=cumulative.new_zeros(1))
