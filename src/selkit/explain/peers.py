"""What methods share that run the model itself: no graph, so nothing to export."""

from __future__ import annotations

import os
from typing import ClassVar, NoReturn

from selkit.errors import NotAvailableError


class Graphless:
    """An explainer that is no ONNX graph, and says so where one is needed."""

    METHOD: ClassVar[str]
    WHY: ClassVar[str]
    """Why there is no graph."""

    @property
    def method(self) -> str:
        """Its name in :class:`selkit.explain.Explainer`."""
        return self.METHOD

    def _refuse(self, what: str) -> NoReturn:
        raise NotAvailableError(
            f"{what} needs a graph, and method={self.METHOD!r} has none: {self.WHY}. Use method='deepshap' "
            "for a file that explains itself"
        )

    def export(self, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
        """Refuse: there is no graph to write.

        Raises
        ------
        NotAvailableError
            Always.
        """
        self._refuse("export")

    def verify(self, x: object) -> None:
        """Refuse: there is no graph to compare with.

        Raises
        ------
        NotAvailableError
            Always.
        """
        self._refuse("verify")

    @property
    def facts(self) -> NoReturn:
        """Refuse: there is no graph to tell about."""
        self._refuse("facts")
