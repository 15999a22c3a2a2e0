"""Many images: the same numbers as one at a time, however they are distributed; failures stop nothing."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import torch

import selkit
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError, NoHypothesisError
from selkit.inference import BackMeanDiff, Contrast, ReferenceMeanDiff
from selkit.inference.checkpoint import digest
from selkit.inference.multiple import inference_batch
from selkit.inference.table import RoiRow, RoiTable
from selkit.inference.workers import Runner, Work

SMOOTH = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 1, 16] x) => (float[1, 1, 16] y) {
        a = AveragePool<kernel_shape = [3], pads = [1, 1]>(x)
        y = Relu(a)
    }"""
)
"""A moving average: its region is where the image is high, so the naive test is wrong."""


def white(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, 16))


@pytest.fixture
def test() -> selkit.RoiTest:
    return selkit.load(SMOOTH, BackMeanDiff(threshold=0.3), var=1.0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Noise; in image 2 there is no region, and image 4 has a missing value."""
    values = white(9)
    values[2] = -1.0
    values[4, 0, 3] = np.nan
    return values


def check_same(first: RoiTable, second: RoiTable) -> None:
    """All numbers of two tables are the same, but for how long they took."""
    assert len(first) == len(second)
    one, two = first.to_dict(), second.to_dict()
    for name in one:
        if one[name] and isinstance(one[name][0], float) and name != "seconds":
            np.testing.assert_allclose(one[name], two[name], rtol=1e-9, atol=1e-9)
        elif name != "seconds":
            assert one[name] == two[name], name


@pytest.fixture
def expected(test: selkit.RoiTest, images: np.ndarray) -> RoiTable:
    return inference_batch(test, images)


def test_the_comparison_of_tables_finds_differences(expected: RoiTable) -> None:
    row = expected[0]
    for other in (
        [*expected[:-1]],
        [RoiRow(**{**vars(row), "p_value": row.p_value + 1e-6}), *expected[1:]],
        [RoiRow(**{**vars(row), "p_value": np.nan}), *expected[1:]],
        [RoiRow(**{**vars(row), "error": "other"}), *expected[1:]],
    ):
        with pytest.raises(AssertionError):
            check_same(expected, RoiTable(other))


def test_rows_are_those_of_single_tests(test: selkit.RoiTest, images: np.ndarray, expected: RoiTable) -> None:
    for index, row in enumerate(expected):
        assert row.index == index
        if index in (2, 4):
            kind = NoHypothesisError if index == 2 else InvalidInputError
            with pytest.raises(kind) as caught:
                test.inference(images[index])
            assert row.failed
            assert (row.error_type, row.error) == (kind.__name__, str(caught.value))
            assert np.isnan([row.p_value, row.inf_p, row.sup_p, row.stat, row.scale, row.naive_p_value]).all()
            assert (row.roi_size, row.windows, row.exact, row.result) == (0, 0, None, None)
        else:
            result = test.inference(images[index])
            assert not row.failed
            assert row.p_value == pytest.approx(result.p_value, abs=1e-12)
            assert (row.stat, row.scale) == pytest.approx((result.stat, result.scale))
            assert row.naive_p_value == pytest.approx(result.naive_p_value())
            assert row.roi_size == result.roi.sum()
            assert row.seconds > 0
    assert (expected.n_tested, expected.n_failed) == (7, 2)
    assert [row.index for row in expected.failed] == [2, 4]
    assert repr(expected) == "<RoiTable of 9 images: 7 tested, 2 failed>"


def test_options_reach_the_test(test: selkit.RoiTest, images: np.ndarray) -> None:
    table = inference_batch(test, images[:2], 2.0, alternative="less", precision=1e-2, keep="results")
    for row, x in zip(table, images, strict=False):
        one = test.inference(x, 2.0, alternative="less", precision=1e-2)
        assert row.p_value == pytest.approx(one.p_value)
        assert row.result is not None
        np.testing.assert_array_equal(row.result.roi, one.roi)
    assert all(result is not None for result in table.results)


def test_what_images_can_be(test: selkit.RoiTest, images: np.ndarray, expected: RoiTable) -> None:
    def batched() -> Iterator[np.ndarray]:
        yield from images[:, None]

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.as_tensor(images[index])

    for given in (list(images), iter(images), batched(), torch.as_tensor(images), Files()):
        check_same(inference_batch(test, given), expected)
    assert len(inference_batch(test, [])) == 0
    assert inference_batch(test, []).p_values.shape == (0,)


def test_reference_images() -> None:
    test = selkit.load(SMOOTH, ReferenceMeanDiff(threshold=0.3), var=1.0)
    pairs = list(zip(white(4, 1), white(4, 2), strict=True))
    table = inference_batch(test, pairs)
    np.testing.assert_allclose(table.p_values, [test.inference(pair).p_value for pair in pairs])


def test_masks(test: selkit.RoiTest, images: np.ndarray) -> None:
    left = np.arange(16) < 8
    masks = [left, None, ~left]
    chosen = images[[0, 1, 3]]
    each = inference_batch(test, chosen, masks=masks)
    same = inference_batch(test, chosen, mask=left)
    for row, x, mask in zip(each, chosen, masks, strict=True):
        assert row.p_value == pytest.approx(test.inference(x, mask=mask).p_value)
    assert same[0].p_value == each[0].p_value
    assert same[1].stat != each[1].stat
    with pytest.raises(InvalidInputError, match="not both"):
        inference_batch(test, chosen, masks=masks, mask=left)
    with pytest.raises(InvalidInputError, match="there are 2 masks for 3 images"):
        inference_batch(test, chosen, masks=masks[:2])
    with pytest.raises(InvalidInputError, match="masks end before image 2") as caught:
        inference_batch(test, iter(chosen), masks=masks[:2])
    assert len(caught.value.table) == 2  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match=r"more masks than images \(2\)"):
        inference_batch(test, iter(chosen[:2]), masks=masks)


def test_a_variance_for_each_image(test: selkit.RoiTest, images: np.ndarray) -> None:
    chosen = images[[0, 1, 3]]
    table = inference_batch(test, chosen, var=lambda x: float(np.var(x)))
    for row, x in zip(table, chosen, strict=True):
        assert row.p_value == pytest.approx(test.inference(x, float(np.var(x))).p_value)


def test_anything_that_fails_is_a_row(test: selkit.RoiTest, images: np.ndarray) -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                raise OSError("scan0001.tif is truncated")
            return super().__getitem__(index)

    given = Broken([images[0], None, "no image", np.zeros((2, 3)), np.full((1, 16), 1j), None, images[1]])
    table = inference_batch(test, given)
    kinds = [row.error_type for row in table]
    assert kinds == [None, "OSError", "InvalidTypeError", "InvalidInputError", "InvalidTypeError",
                     "InvalidTypeError", None]  # fmt: skip
    assert table[1].error == "scan0001.tif is truncated"
    with pytest.raises(OSError, match="truncated"):
        inference_batch(test, given, on_error="raise")


def test_raising_stops_and_keeps_what_was_computed(test: selkit.RoiTest, images: np.ndarray) -> None:
    with pytest.raises(NoHypothesisError, match="the region is empty") as caught:
        inference_batch(test, images, on_error="raise")
    assert caught.value.__notes__ == ["in image 2"]
    assert [row.index for row in caught.value.table] == [0, 1]  # type: ignore[attr-defined]


def test_an_iterator_that_breaks(test: selkit.RoiTest, images: np.ndarray) -> None:
    def reader() -> Iterator[np.ndarray]:
        yield from images[:2]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        inference_batch(test, reader())
    assert caught.value.table.n_tested == 2  # type: ignore[attr-defined]


def interrupted_at(images: np.ndarray, index: int) -> Any:
    """A sequence that is interrupted, as by Ctrl-C, when this image is read."""

    class Interrupting:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, k: int) -> np.ndarray:
            if k >= len(images):
                raise IndexError(k)
            if k == index:
                os.kill(os.getpid(), signal.SIGINT)
            return images[k]

    return Interrupting()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interrupted_run_goes_on(
    test: selkit.RoiTest, images: np.ndarray, expected: RoiTable, n_jobs: int, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    images = np.concatenate([images, white(11, 5)])
    whole = inference_batch(test, images)
    with pytest.raises(KeyboardInterrupt) as caught:
        inference_batch(test, interrupted_at(images, 16), n_jobs=n_jobs, checkpoint=file)
    partial = caught.value.table  # type: ignore[attr-defined]
    assert 0 < len(partial) < 20
    check_same(partial, RoiTable([whole[row.index] for row in partial]))
    again: list[int] = []

    def variance(x: np.ndarray) -> float:
        again.append(int(np.flatnonzero([np.array_equal(x, y, equal_nan=True) for y in images])[0]))
        return 1.0

    counted = inference_batch(test, images, checkpoint=file)
    check_same(counted, whole)
    second = tmp_path / "counted.jsonl"
    with pytest.raises(KeyboardInterrupt):
        inference_batch(test, interrupted_at(images, 6), variance, checkpoint=second)
    assert again == [0, 1, 2, 3, 4, 5]
    again.clear()
    inference_batch(test, images, variance, checkpoint=second)
    assert again == [2, 4, *range(6, 20)]  # those that failed are tried again


def test_a_checkpoint_of_something_else(test: selkit.RoiTest, images: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    inference_batch(test, images[:4], checkpoint=file)
    other = selkit.load(SMOOTH, BackMeanDiff(threshold=0.31), var=1.0)
    relu = selkit.load(onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 1, 16] x) => (float[1, 1, 16] y) { y = Relu(x) }"""
    ), BackMeanDiff(threshold=0.3), var=1.0)  # fmt: skip
    for call in (
        lambda: inference_batch(other, images, checkpoint=file),
        lambda: inference_batch(relu, images, checkpoint=file),
        lambda: inference_batch(test, images, 2.0, checkpoint=file),
        lambda: inference_batch(test, images, precision=0.01, checkpoint=file),
    ):
        with pytest.raises(InvalidInputError, match="is of another model, hypothesis, variance or other"):
            call()
    with pytest.raises(InvalidInputError, match="image 0 or its mask is not the one"):
        inference_batch(test, images[1:], checkpoint=file)
    # The variance of the test and the same one given are the same run.
    assert inference_batch(test, images[:4], 1.0, checkpoint=file).n_tested == 3


def test_damaged_checkpoints(test: selkit.RoiTest, images: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = inference_batch(test, images, checkpoint=file)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 10
    for line in lines:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for cut in (len(content) - 5, len(content) - len(lines[-1]), len(lines[0]) - 3, 0):
        file.write_bytes(content[:cut])
        check_same(inference_batch(test, images, checkpoint=file), whole)
        assert b"}{" not in file.read_bytes()
    for bad, message in (
        (b"index,p_value\n0,0.5\n", "line 1, is not JSON"),
        (b'{"some": "json"}\n', "is no checkpoint of selkit"),
        (b"[1, 2]\n", "is not a JSON object"),
        (b"no line break", "is no checkpoint of selkit"),
        (lines[0].replace(b'"version": 2', b'"version": 9'), "has version 9"),
        (lines[0] + b"half a li\n" + lines[2], "line 2, is not JSON"),
        (lines[0] + b'{"index": 1}\n', "line 2, was changed or damaged"),
        (lines[0] + re.sub(rb'"p_value": [0-9.e-]+', b'"p_value": 7.0', lines[1]), "line 2, was changed"),
        (lines[0] + b"[" * 100_000 + b"\n", "line 2, is not JSON"),
    ):
        file.write_bytes(bad)
        with pytest.raises(FileFormatError, match=message):
            inference_batch(test, images, checkpoint=file)
        assert file.read_bytes() == bad  # what cannot be read is not overwritten


def test_digests_tell_values_apart(images: np.ndarray) -> None:
    values = [
        1, 1.0, "1", None, True, (1,), [1], {"a": 1}, {"a": 2}, images, images[0], images.astype(np.float32),
        BackMeanDiff(0.5), BackMeanDiff(0.5, use_norm=True), ReferenceMeanDiff(0.5), np.mean, np.median,
        selkit.inference.Stationary(np.eye(1)), selkit.inference.Stationary(np.eye(1) * 2),
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(torch.as_tensor(images)) != digest(images)


class OwnHypothesis(BackMeanDiff):
    """Weights the region twice: a hypothesis that selkit does not know."""

    def contrast(self, roi: np.ndarray, usable: np.ndarray, shape: tuple[int, ...]) -> Contrast:
        known = super().contrast(roi, usable, shape)
        return Contrast(2.0 * known.eta, known.compared)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_backends(images: np.ndarray, backend: str) -> None:
    test = selkit.load(SMOOTH, OwnHypothesis(threshold=0.3), var=1.0)
    expected = inference_batch(test, images, keep="results")
    with warnings.catch_warnings(), joblib.parallel_config(backend=backend):
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        table = inference_batch(test, images, n_jobs=2, keep="results")
    check_same(table, expected)
    for mine, theirs in zip(table.results, expected.results, strict=True):
        if theirs is not None:
            assert mine is not None
            np.testing.assert_allclose(mine.truncated_intervals, theirs.truncated_intervals, atol=1e-9)
            assert mine.confidence_interval() == pytest.approx(theirs.confidence_interval(), abs=1e-6)


def threads(x: np.ndarray) -> float:
    """As a variance, so that the scale of the contrast says how many threads a worker had."""
    return float(torch.get_num_threads())


def test_workers_use_one_thread_and_this_process_keeps_its_own(test: selkit.RoiTest) -> None:
    images = white(4, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        here = inference_batch(test, images, threads)
        there = inference_batch(test, images, threads, n_jobs=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    one = [test.inference(x, 1.0).scale for x in images]
    np.testing.assert_allclose([row.scale for row in there], one)
    np.testing.assert_allclose([row.scale for row in here], np.sqrt(3.0) * np.array(one))


def test_a_worker_reads_the_model_once(test: selkit.RoiTest, images: np.ndarray) -> None:
    test.inference(images[0])  # a program was compiled: it must not stand in the way
    runner = Runner(Work(test, None, {}, False, False))
    sent = pickle.dumps(runner)
    first, second = pickle.loads(sent), pickle.loads(sent)
    assert first is second
    assert first is not runner
    assert runner.__sizeof__() > 0.5 * len(sent)  # Dask decides by it how to send the model


def test_dask(test: selkit.RoiTest, images: np.ndarray) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    expected = inference_batch(test, images)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        check_same(inference_batch(test, images), expected)
        # What a worker that cannot read an image says is found in its row here.
        assert inference_batch(test, iter(images[:3])).failed[0].error_type == "NoHypothesisError"


Change = Callable[[selkit.RoiTest, np.ndarray], object]
BAD: dict[str, tuple[Change, type[Exception], str]] = {
    "test": (lambda t, x: inference_batch(SMOOTH, x), InvalidTypeError, "what selkit.load returns"),
    "text": (lambda t, x: inference_batch(t, "images"), InvalidTypeError, "images is a str"),
    "number": (lambda t, x: inference_batch(t, 3), InvalidTypeError, "images is a int"),
    "scalar": (lambda t, x: inference_batch(t, np.array(3.0)), InvalidInputError, "a single number"),
    "mapping": (lambda t, x: inference_batch(t, {"a": x[0]}), InvalidTypeError, "images is a dict"),
    "masks": (lambda t, x: inference_batch(t, x, masks=5), InvalidTypeError, "masks is a int"),
    "on_error": (lambda t, x: inference_batch(t, x, on_error="skip"), InvalidInputError, "record, raise"),
    "keep": (lambda t, x: inference_batch(t, x, keep="all"), InvalidInputError, "rows, results"),
    "n_jobs": (lambda t, x: inference_batch(t, x, n_jobs=0), InvalidInputError, "n_jobs is 0"),
    "float jobs": (lambda t, x: inference_batch(t, x, n_jobs=1.5), InvalidInputError, "n_jobs is 1.5"),
    "fdr": (lambda t, x: inference_batch(t, x, fdr=5), InvalidInputError, "fdr must be a fraction"),
    "option": (lambda t, x: inference_batch(t, x, thresh=1), InvalidInputError, "no option thresh; options"),
    "mode": (lambda t, x: inference_batch(t, x, inference_mode="fast"), InvalidInputError, "inference_mode"),
    "side": (lambda t, x: inference_batch(t, x, alternative="up"), InvalidInputError, "alternative is 'up'"),
    "decision": (
        lambda t, x: inference_batch(t, x, inference_mode="decision", fdr=0.1),
        InvalidInputError,
        "fdr needs p-values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_refused_at_once(test: selkit.RoiTest, images: np.ndarray, name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call(test, images)


def test_tables() -> None:
    rows = [RoiRow(index=k, p_value=p, sup_p=p + 0.01) for k, p in enumerate([0.001, 0.3, 0.004, 0.02])]
    rows.append(RoiRow(index=4, error_type="NoHypothesisError", error="the region is empty"))
    table = RoiTable(rows, fdr=0.05)
    np.testing.assert_array_equal(table.p_values, [0.001, 0.3, 0.004, 0.02, np.nan])
    assert table.rejected().tolist() == [True, False, True, True, False]
    assert table.rejected(0.05, "by").tolist() == [True, False, True, False, False]
    assert table.rejected(0.05, "bonferroni").tolist() == [True, False, True, False, False]
    assert table.rejected(0.01, "none").tolist() == [True, False, True, False, False]
    assert table.rejected(values="sup_p").tolist() == [True, False, True, True, False]
    assert table.rejected(0.02, values="sup_p").tolist() == [False] * 5
    np.testing.assert_allclose(table.adjusted("bonferroni"), [0.004, 1.0, 0.016, 0.08, np.nan])
    part = table[1:3]
    assert isinstance(part, RoiTable)
    assert [row.index for row in part] == [1, 2]
    assert part.fdr == 0.05
    assert table[-1].failed
    columns = table.to_dict()
    assert columns["rejected"] == [True, False, True, True, False]
    assert columns["error"][-1] == "the region is empty"
    assert {len(column) for column in columns.values()} == {5}
    assert "adjusted_p_value" not in RoiTable(rows).to_dict()
    with pytest.raises(InvalidInputError, match="alpha is missing"):
        RoiTable(rows).rejected()
    with pytest.raises(InvalidInputError, match="values is 'naive'"):
        table.rejected(values="naive")  # type: ignore[arg-type]


def test_data_frames(expected: RoiTable) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = expected.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    np.testing.assert_array_equal(frame["p_value"], expected.p_values)
    assert frame["error_type"].isna().tolist() == [not row.failed for row in expected]
    assert list(frame.columns) == list(expected.to_dict())


def check_rate(proportions: list[float], level: float) -> None:
    """The mean of false discovery proportions is at most the level, within three standard errors."""
    values = np.array(proportions)
    assert len(values) > 1
    assert values.mean() <= level + 3 * values.std() / np.sqrt(len(values))


def test_false_discoveries_stay_below_their_rate() -> None:
    """Half of the images have a strong signal; naive p-values discover too much in the other half."""
    test = selkit.load(SMOOTH, BackMeanDiff(threshold=0.8), var=1.0)
    level, rounds, count = 0.2, 24, 16
    signal_ = np.zeros(16)
    signal_[4:8] = 4.0
    proportions: dict[str, list[float]] = {"selective": [], "naive": []}
    power = []
    for k in range(rounds):
        real = np.arange(count) < count // 2
        images = white(count, 100 + k) + real[:, None, None] * signal_
        table = inference_batch(test, images, precision=5e-3, fdr=level)
        # The true contrast is zero where there is no signal, whatever the region.
        found = {
            "selective": table.rejected(),
            "naive": RoiTable([RoiRow(index=row.index, p_value=row.naive_p_value) for row in table]).rejected(
                level
            ),
        }
        for name, flags in found.items():
            proportions[name].append((flags & ~real).sum() / max(flags.sum(), 1))
        power.append(found["selective"][real].mean())
    check_rate(proportions["selective"], level / 2)  # of the tested hypotheses at most half are true
    with pytest.raises(AssertionError):
        check_rate(proportions["naive"], level / 2)
    assert np.mean(power) > 0.6
