from __future__ import annotations

import numpy as np
import pytest
import torch

from selkit.errors import InvalidInputError
from selkit.scores import EuclideanScore

X, Y = torch.randn(50, 3), torch.randn(80, 3)


def test_areas_are_one_and_the_line_is_the_threshold() -> None:
    pytest.importorskip("matplotlib")
    score = EuclideanScore().fit(X=X, Y=Y).set_threshold(0.9)
    axes = score.plot(score.score(Y * 3), bins=20)
    known, asked = axes.patches
    for drawn, values in ((known, score.score(Y)), (asked, score.score(Y * 3))):
        heights, edges = drawn.get_data().values, drawn.get_data().edges
        assert np.isclose((heights * np.diff(edges)).sum(), 1)
        expected = np.histogram(values.numpy(), edges, density=True)[0]
        np.testing.assert_allclose(heights, expected)
    assert [line.get_xdata()[0] for line in axes.lines] == [float(score.threshold)]  # type: ignore[arg-type]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["calibration", "query"]
    same = EuclideanScore().fit(X=X).plot(Y[:, 0], ax=axes)
    assert same is axes


def test_nothing_to_draw_is_refused() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InvalidInputError, match="there is nothing to draw"):
        EuclideanScore().fit(X=X).plot()
    with pytest.raises(InvalidInputError, match="bins must be a whole number"):
        EuclideanScore().fit(X=X, Y=Y).plot(bins=0)
