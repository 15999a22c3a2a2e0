from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selkit.errors import InvalidInputError
from selkit.scores import search
from selkit.scores.search import References, nearest


def brute(query: torch.Tensor, reference: torch.Tensor, k: int) -> np.ndarray:
    """The k smallest distances in float64, from all differences."""
    differences = query.double().numpy()[:, None] - reference.double().numpy()
    return np.sort(np.sqrt((differences**2).sum(2)), axis=1)[:, :k]


def check(query: torch.Tensor, reference: torch.Tensor, k: int, rtol: float = 1e-6) -> None:
    distances, index = nearest(query, References.of(reference), k)
    assert distances.shape == index.shape == (len(query), k)
    np.testing.assert_allclose(distances.numpy(), brute(query, reference, k), rtol=rtol, atol=0)
    named = (query[:, None] - reference[index]).double().norm(dim=2)
    np.testing.assert_allclose(distances.numpy(), named.numpy(), rtol=rtol, atol=0)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.fixture(params=["one block", "many blocks", "many blocks, as on an accelerator"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param.endswith("accelerator"):
        monkeypatch.setattr(search, "_merge_on_cpu", search._merge)
    if request.param.startswith("many blocks"):
        monkeypatch.setattr(search, "ROWS", 7)
        monkeypatch.setattr(search, "COLUMNS", 128)
        monkeypatch.setattr(search, "ENTRIES", 7 * 128)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (5, 5), (64, 3), (65, 65), (1000, 10), (700, 40)])
def test_equals_brute_force(count: int, k: int, dtype: torch.dtype) -> None:
    check(torch.randn(20, 6, dtype=dtype), torch.randn(count, 6, dtype=dtype), k)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_sorted_references_take_either_path_of_the_merge(order: str) -> None:
    reference = torch.randn(1500, 4)
    far = reference.norm(dim=1).argsort(descending=order == "descending")
    check(torch.randn(30, 4) * 0.01, reference[far], 6)


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 12),
    st.sampled_from([1.0, 1e3, 1e-3]),
    st.integers(),
)
def test_any_shape_scale_and_repeated_rows(
    count: int, queries: int, width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    reference = torch.randint(-3, 4, (count, width), generator=generator).float() * scale
    query = torch.randn(queries, width, generator=generator) * scale
    check(query, reference, min(count, 5))


def test_near_duplicates_far_from_the_origin_keep_their_digits() -> None:
    reference = torch.randn(2000, 32) + 1000
    query = reference[:50] + 1e-2 * torch.randn(50, 32)
    # the naive formula in float32 is off by more than the distances themselves
    naive = (query.square().sum(1)[:, None] - 2 * query @ reference.T + reference.square().sum(1)).clamp(
        min=0
    )
    wrong = np.abs(naive.amin(1).sqrt().numpy() - brute(query, reference, 1)[:, 0])
    assert wrong.max() > 1
    check(query, reference, 3, rtol=1e-4)
    distances, index = nearest(reference[:50], References.of(reference), 1)
    assert not distances.any()
    assert index[:, 0].tolist() == list(range(50))


def test_queries_whose_float32_search_proves_nothing_are_searched_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = (torch.randn(3000, 8, generator=generator) * 1e-3 + 100).double()
    reference[0] -= 4000  # a far reference draws the centre and the norms away
    small = reference.float()
    query = small[100:160] + 1e-4
    *_, proven = search._search(query, query.double(), References.of(small), 2)
    assert not proven.all()
    check(query, small, 2, rtol=1e-5)


@pytest.mark.parametrize("mode", ["autocast", "matmul precision"])
def test_reduced_precision_elsewhere_does_not_change_distances(mode: str) -> None:
    query, reference = torch.randn(300, 128), torch.randn(3000, 128)
    expected, _ = nearest(query, References.of(reference), 4)
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (query @ reference.T).dtype is torch.bfloat16
            found, _ = nearest(query, References.of(reference), 4)
    else:
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            found, _ = nearest(query, References.of(reference), 4)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


def test_invariant_to_batches_and_permutations() -> None:
    query, reference = torch.randn(100, 16), torch.randn(900, 16)
    whole, index = nearest(query, References.of(reference), 5)
    singles = torch.cat([nearest(row[None], References.of(reference), 5)[0] for row in query])
    assert torch.equal(whole, singles)
    order = torch.randperm(900)
    permuted, moved = nearest(query, References.of(reference[order]), 5)
    assert torch.equal(whole, permuted)
    assert torch.equal(order[moved], index)


def test_refuses_too_many_neighbours_and_overflow() -> None:
    references = References.of(torch.randn(4, 3))
    for k in (0, 5):
        with pytest.raises(
            InvalidInputError, match=f"{k} neighbours are asked for, but there are 4 references"
        ):
            nearest(torch.randn(1, 3), references, k)
    with pytest.raises(InvalidInputError, match=r"query holds numbers so large that their squares overflow"):
        nearest(torch.full((1, 3), 1e30), references, 1)
    with pytest.raises(InvalidInputError, match=r"X holds numbers so large"):
        References.of(torch.full((4, 3), 1e30) * torch.randn(4, 1))


def test_the_check_fails_on_wrong_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    query, reference = torch.randn(10, 4), torch.randn(50, 4)
    right = nearest

    def wrong(query: torch.Tensor, references: References, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        distances, index = right(query, references, k + 1)
        return distances[:, 1:], index[:, 1:]

    monkeypatch.setitem(globals(), "nearest", wrong)
    with pytest.raises(AssertionError):
        check(query, reference, 3)
