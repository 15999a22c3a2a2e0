"""demo: the commands on a small example, and what it is to show."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from selkit.cli.tables import read_rows


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo, with its standard output."""
    import contextlib
    import io

    from selkit.cli import main

    folder = tmp_path_factory.mktemp("demo")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["demo", "-o", str(folder), "--images", "100"])
    assert code == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


def test_it_writes_what_it_says(demo):
    folder, out, err = demo
    assert f"report: {folder / 'report.html'}" in out
    assert "Digits in noise" in (folder / "report.html").read_text(encoding="utf-8")
    for command in ("fit", "select", "test", "bundle", "report"):
        assert f"\n$ selkit {command} " in err


def test_what_is_foreign_is_rejected_and_noise_is_no_discovery(demo):
    folder, _, _ = demo
    decisions, tests = read_rows(folder / "decisions.csv"), read_rows(folder / "tests.csv")
    digits, noise, foreign = decisions[:40], decisions[40:80], decisions[80:]
    assert sum(row["selected"] for row in foreign) <= 1
    # each is accepted with probability about 0.9, calibrated on 200
    assert sum(row["selected"] for row in digits + noise) >= binom.ppf(1e-4, 80, 0.85)
    assert [row["p_value"] is not None for row in tests] == [row["selected"] for row in decisions]
    signal, null = (
        [row for row in part if row["p_value"] is not None] for part in (tests[:40], tests[40:80])
    )
    assert sum(row["p_value"] <= 0.05 for row in null) <= binom.ppf(1 - 1e-4, len(null), 0.05)
    assert sum(row["naive_p_value"] <= 0.05 for row in null) > binom.ppf(1 - 1e-4, len(null), 0.05)
    assert sum(row["p_value"] <= 0.05 for row in signal) > binom.ppf(1 - 1e-4, len(signal), 0.05)


def test_its_commands_can_be_run_again(demo, selkit):
    import shlex

    _, _, err = demo
    lines = [line.removeprefix("$ selkit ") for line in err.splitlines() if line.startswith("$ selkit ")]
    assert [selkit(*shlex.split(line), "--quiet").code for line in lines[-2:]] == [0, 0]


def test_json(selkit, tmp_path):
    ended = selkit("demo", "-o", tmp_path / "demo", "--images", "10", "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert {kind: found["images"] for kind, found in ended.json["kinds"].items()} == {
        "digit": 4,
        "noise": 4,
        "foreign": 2,
    }
