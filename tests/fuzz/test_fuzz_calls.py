"""No exception of another library reaches the user, whatever is handed in."""

from __future__ import annotations

import collections
import inspect
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests

from fuzz_calls import Call, calls, public
from fuzz_values import TookTooLongError, allowed, limits, wrong_values

TIMES = int(os.environ.get("SELKIT_FUZZ", "1"))
COUNT = 2000 * TIMES
SEED = int(os.environ.get("SELKIT_FUZZ_SEED", "20"))
CALLS = calls()


def test_everything_public_is_in_the_table():
    assert public() - {call.name.partition(".")[0] for call in CALLS} == set()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_the_calls_work_as_they_are(call):
    if call.name in ("from_test", "iter_predictions", "read_predictions"):
        pytest.skip("needs a run of a Trainer; what is wrong about arguments is seen before")
    function, arguments = call.make()
    function(**arguments)


def mutated(call: Call, random: np.random.Generator) -> tuple[Any, dict[str, Any], str]:
    """The call with one or two arguments replaced."""
    function, arguments = call.make()
    known = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    names = list(dict.fromkeys([*arguments, *known]))
    said = []
    for name in (
        random.choice(names, size=min(len(names), 1 + (random.random() < 0.3)), replace=False)
        if names
        else ()
    ):
        values = wrong_values()
        arguments[str(name)] = value = values[int(random.integers(len(values)))]
        text = repr(value) if not callable(value) else getattr(value, "__name__", type(value).__name__)
        said.append(f"{name}={text[:80]}")
    return function, arguments, f"{call.name}({', '.join(said)})"


def outcome(function: Any, arguments: dict[str, Any]) -> str | None:
    """What went wrong: an exception that users should not see, and where it began."""
    try:
        with limits(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            function(**arguments)
    except (Exception, TookTooLongError) as error:  # noqa: BLE001 - it is what is looked for
        if allowed(error):
            return None
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/selkit/" in f.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return f"{type(error).__name__} at {where}: {str(error).splitlines()[0][:150] if str(error) else ''}"
    return None


def test_wrong_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some texts are taken for names of files
    random = np.random.default_rng(SEED)
    failures: dict[str, list[str]] = collections.defaultdict(list)
    for call in CALLS:
        if call.name == "PyODScore.fit":  # the first import takes longer than a call may
            function, arguments = call.make()
            function(**arguments)
    for number in range(COUNT):
        call = CALLS[number % len(CALLS)]
        function, arguments, said = mutated(call, random)
        problem = outcome(function, arguments)
        plots = sys.modules.get("matplotlib.pyplot")
        if plots is not None:
            plots.close("all")
        if problem is not None:
            failures[problem].append(said)
    listed = "\n".join(
        f"{problem}\n    {' | '.join(texts[:3])}" for problem, texts in sorted(failures.items())
    )
    assert not failures, f"{sum(map(len, failures.values()))} of {COUNT} calls:\n{listed}"
