"""Discoveries over a test set: against scipy, by hand, and on two processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import DiscoveryMetric, discoveries

nan = math.nan


def draw(rows: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(rows) < 0.2, rng.random(rows) * 1e-3, rng.random(rows))
    selected = rng.random(rows) < 0.7
    tested = selected & (rng.random(rows) < 0.9)
    return torch.from_numpy(np.where(tested, p, nan)), torch.from_numpy(selected)


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_scipy(seed):
    p, selected = draw(seed=seed)
    known = p[~p.isnan()].numpy()
    found = int((false_discovery_control(known) <= 0.1).sum())
    assert found > 5
    metric = DiscoveryMetric(fdr=0.1, alpha=0.03, prefix="x/")
    for rows in torch.split(torch.arange(len(p)), 17):
        metric.update(p[rows], selected[rows])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == {
        "x/coverage": pytest.approx(float(selected.double().mean())),
        "x/tested": len(known),
        "x/rejection_rate": pytest.approx(float((known <= 0.03).mean())),
        "x/discoveries": found,
        "x/mean_discoveries": pytest.approx(found / len(p)),
    }
    flags = discoveries(p, 0.1)
    assert int(flags.sum()) == found
    assert not flags[p.isnan()].any()
    order = torch.randperm(len(p))
    assert torch.equal(discoveries(p[order], 0.1), flags[order])


def test_nothing_accepted_and_nothing_at_all():
    metric = DiscoveryMetric()
    metric.update(torch.full((3,), nan), torch.zeros(3, dtype=torch.bool))
    values = metric.compute()
    assert values["coverage"] == 0
    assert values["discoveries"] == values["tested"] == values["mean_discoveries"] == 0
    assert values["rejection_rate"].isnan()
    metric.reset()
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert metric.compute()["coverage"].isnan()
    assert not discoveries(torch.full((2,), nan)).any()


def test_what_does_not_fit_is_refused():
    metric = DiscoveryMetric()
    yes = torch.ones(2, dtype=torch.bool)
    with pytest.raises(InvalidInputError, match=r"1 rejected sample\(s\) have a p-value"):
        metric.update(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
    for wrong in ([1.5, 0.1], [-0.1, 0.1], [torch.inf, 0.1]):
        with pytest.raises(InvalidInputError, match=r"must lie in \[0, 1\]"):
            metric.update(torch.tensor(wrong), yes)
    with pytest.raises(InvalidInputError, match=r"shapes \(3,\) and \(2,\)"):
        metric.update(torch.rand(3), yes)
    with pytest.raises(InvalidTypeError, match=r"selected must be boolean; got torch\.int64"):
        metric.update(torch.rand(2), yes.long())
    with pytest.raises(InvalidTypeError, match="p_value must be a tensor; got list"):
        metric.update([0.5, 0.5], yes)
    with pytest.raises(InvalidInputError, match=r"fdr must be a number in \(0, 1\); got 1"):
        DiscoveryMetric(fdr=1)
    assert float(metric.total) == 0


SCRIPT = """
import sys, torch
import torch.distributed as dist
from selkit.metrics import DiscoveryMetric

rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
data = torch.load(f"{path}/data.pt")
metric = DiscoveryMetric(fdr=0.1)
metric.half()  # states keep their dtypes
if rank == 0 or sys.argv[3] == "both":
    metric.update(data["p"][rank::2], data["selected"][rank::2])
else:  # a process that accepts nothing
    metric.update(torch.full((4,), torch.nan), torch.zeros(4, dtype=torch.bool))
torch.save(metric.compute(), f"{path}/found{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("who", ["both", "first"])
def test_two_processes_give_the_numbers_of_one(tmp_path, who):
    p, selected = draw(31)
    torch.save({"p": p, "selected": selected}, tmp_path / "data.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path), who],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    alone = DiscoveryMetric(fdr=0.1)
    if who == "both":
        alone.update(p, selected)
    else:
        alone.update(p[::2], selected[::2])
        alone.update(torch.full((4,), nan), torch.zeros(4, dtype=torch.bool))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found{rank}.pt")
        assert found.keys() == alone.compute().keys()
        for name, value in alone.compute().items():
            assert torch.equal(found[name], value)
