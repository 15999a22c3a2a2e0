from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from selkit.embeddings import TorchSource, extract
from selkit.embeddings.cache import FeatureCache
from selkit.errors import InvalidTypeError
from selkit.scores import EuclideanScore

X, Y = torch.randn(12, 3), torch.arange(12)


class Counting(nn.Module):
    """Counts how often it really runs: in a file, for what it held would be a part of it."""

    def __init__(self, scale: float = 2.0, log: str = "") -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.scale = scale
        self.log_path = log or tempfile.mkstemp()[1]

    def embed(self, x: Tensor) -> Tensor:
        os.truncate(self.log_path, os.stat(self.log_path).st_size + 1)  # noqa: PTH116
        return self.inner(x) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def ran_of(model: Any) -> int:
    return Path(model.log_path).stat().st_size


def batches(data: Tensor = X) -> list[Any]:
    return [(part, Y[:4]) for part in torch.split(data, 4)]


def run(model: Counting, cache: Path, data: Tensor = X, **options: Any) -> tuple[Tensor, int]:
    before = ran_of(model)
    found = extract(model, batches(data), cache=cache, input_key=0, **options).values
    return found, ran_of(model) - before


def test_what_is_cached_is_not_run_again(tmp_path: Path) -> None:
    model = Counting()
    first, ran = run(model, tmp_path / "cache")
    again, none = run(model, tmp_path / "cache")
    assert (ran, none) == (3, 0)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, model.embed(X))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, data: (model.inner.weight.data.add_(1e-6), data)[1],
        lambda model, data: (setattr(model, "scale", 3.0), data)[1],
        lambda model, data: data + 1e-6,
        lambda model, data: data.flip(0),
        lambda model, data: data.double().float() * 1.0001,
    ],
)
def test_what_changed_is_never_read(change: Any, tmp_path: Path) -> None:
    model = Counting()
    run(model, tmp_path)
    data = change(model, X)
    found, ran = run(model, tmp_path, data)
    assert ran == 3
    torch.testing.assert_close(found, model.embed(data))


def test_only_the_changed_batch_runs_and_other_wishes_have_other_files(tmp_path: Path) -> None:
    model = Counting()
    run(model, tmp_path)
    data = X.clone()
    data[5] += 1
    assert run(model, tmp_path, data)[1] == 1
    assert torch.equal(extract(model, batches(), layer="inner", cache=tmp_path).values, model.inner(X))


def test_another_class_with_the_same_weights_is_another_model(tmp_path: Path) -> None:
    class Negated(Counting):
        def embed(self, x: Tensor) -> Tensor:
            return -super().embed(x)

    model = Counting()
    other = Negated(log=model.log_path)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(other, tmp_path)[0], -run(model, tmp_path)[0])


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    model = Counting()
    expected, _ = run(model, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 3
    files[0].write_bytes(b"damaged")
    files[1].write_bytes(files[1].read_bytes()[:20])
    found, ran = run(model, tmp_path)
    assert ran == 2
    assert torch.equal(found, expected)
    assert run(model, tmp_path)[1] == 0


def test_scores_use_it(tmp_path: Path) -> None:
    model = Counting()
    loaders = {"train": batches(), "val": batches(X + 1)}
    score = EuclideanScore().fit(model=model, loaders=loaders, cache=tmp_path, input_key=0)
    ran = ran_of(model)
    again = EuclideanScore().fit(model=model, loaders=loaders, cache=tmp_path, input_key=0)
    assert ran_of(model) == ran
    assert torch.equal(again.calibration_scores, score.calibration_scores)  # type: ignore[arg-type]


def test_batches_of_all_kinds_and_what_has_no_content(tmp_path: Path) -> None:
    model = Counting()
    for batch in ({"image": X, "id": ["a", 1, None, 2.5]}, (X, np.arange(12)), [X, {"n": [Y]}]):
        key = "image" if isinstance(batch, dict) else 0
        first = extract(model, [batch], cache=tmp_path, input_key=key).values
        assert torch.equal(extract(model, [batch], cache=tmp_path, input_key=key).values, first)
    with pytest.raises(InvalidTypeError, match=r"a cache cannot tell what a batch holds: .*generator"):
        extract(model, [(X, (i for i in "ab"))], cache=tmp_path, input_key=0)


GLOBAL = {"scale": 1.0}
SCALE = 2.0


@dataclasses.dataclass
class Settings:
    scale: Any = 1.0

    def read(self) -> Any:
        return self.scale


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


class Holding(Counting):
    """Whose features depend on whatever it holds."""

    def __init__(self, held: Any) -> None:
        super().__init__(1.0)
        self.held = held

    def factor(self) -> Any:
        return self.held

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) * self.factor()


def holding(read: Any, held: Any) -> Holding:
    """A module whose factor is ``read(held)``, by a class of its own."""
    return type("Held", (Holding,), {"factor": lambda self: read(self.held)})(held)


def closing_over(value: Any) -> Any:
    return lambda: value


def with_default(value: Any) -> Any:
    return lambda scale=value: scale


def named(scale: float, /) -> float:
    return scale


CHANGES: dict[str, tuple[Any, Any, Any]] = {
    "list": (lambda h: h[0], [1.0], lambda h: h.__setitem__(0, 3.0)),
    "nested": (lambda h: h[0]["a"][1], [{"a": [0, 1.0]}], lambda h: h[0]["a"].__setitem__(1, 3.0)),
    "dict": (lambda h: h["a"], {"a": 1.0}, lambda h: h.update(a=3.0)),
    "array": (lambda h: float(h[1]), np.ones(3), lambda h: h.__setitem__(1, 3.0)),
    "mask": (
        lambda h: float(h.sum()),
        np.ma.masked_array([1.0, 2.0], mask=[False, True]),
        lambda h: setattr(h, "mask", [False, False]),
    ),
    "tensor": (lambda h: h[1], torch.ones(3), lambda h: h.__setitem__(1, 3.0)),
    "large tensor": (lambda h: h[1], torch.ones(2**16), lambda h: h.__setitem__(1, 3.0)),
    "dataclass": (lambda h: h.scale, Settings(), lambda h: setattr(h, "scale", 3.0)),
    "dataclass, inside": (lambda h: h.scale[0], Settings([1.0]), lambda h: h.scale.__setitem__(0, 3.0)),
    "namespace": (lambda h: h.scale, types.SimpleNamespace(scale=1.0), lambda h: setattr(h, "scale", 3.0)),
    "slots": (lambda h: h.scale, Slotted(1.0), lambda h: setattr(h, "scale", 3.0)),
    "set": (lambda h: float(sum(h)), {1.0}, lambda h: h.add(2.0)),
    "deque": (lambda h: h[0], collections.deque([1.0]), lambda h: h.appendleft(3.0)),
}


@pytest.mark.parametrize("kind", [*CHANGES])
def test_all_that_a_module_holds_counts(kind: str, tmp_path: Path) -> None:
    read, held, change = CHANGES[kind]
    model = holding(read, copy.deepcopy(held))
    first, ran = run(model, tmp_path)
    assert (ran, run(model, tmp_path)[1]) == (3, 0)
    change(model.held)
    found, ran = run(model, tmp_path)
    assert ran == 3
    torch.testing.assert_close(found, model.embed(X))
    assert not torch.equal(found, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: 1.0, lambda: 3.0),
        (closing_over(1.0), closing_over(3.0)),
        (closing_over([1.0]), closing_over([3.0])),
        (with_default(1.0), with_default(3.0)),
        (functools.partial(named, 1.0), functools.partial(named, 3.0)),
        (Settings(1.0).read, Settings(3.0).read),
        (closing_over(closing_over(1.0)), closing_over(closing_over(3.0))),
    ],
)
def test_functions_count_with_code_closure_and_defaults(first: Any, second: Any, tmp_path: Path) -> None:
    def value(function: Any) -> Any:
        found = function()
        return found() if callable(found) else found[0] if isinstance(found, list) else found

    model = holding(value, first)
    before, _ = run(model, tmp_path)
    model.held = second
    found, ran = run(model, tmp_path)
    assert ran == 3
    torch.testing.assert_close(found, before * 3)


def test_globals_modules_hooks_and_classes_count(tmp_path: Path, monkeypatch: Any) -> None:
    model = holding(lambda held: GLOBAL["scale"] * SCALE / 2, None)
    first, _ = run(model, tmp_path)
    assert run(model, tmp_path)[1] == 0
    monkeypatch.setitem(GLOBAL, "scale", 3.0)
    torch.testing.assert_close(run(model, tmp_path)[0], first * 3)
    monkeypatch.setitem(GLOBAL, "scale", 1.0)
    monkeypatch.setitem(globals(), "SCALE", 4.0)
    torch.testing.assert_close(run(model, tmp_path)[0], first * 2)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert run(model, tmp_path)[1] == 0
    handle = model.inner.register_forward_hook(lambda module, args, output: output * 5)
    torch.testing.assert_close(run(model, tmp_path)[0], first * 5)
    handle.remove()
    handle = model.inner.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    assert not torch.equal(run(model, tmp_path)[0], first)
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: output * 7 if isinstance(module, nn.Linear) else output
    )
    torch.testing.assert_close(run(model, tmp_path)[0], first * 7)
    handle.remove()
    assert torch.equal(run(model, tmp_path)[0], first)
    monkeypatch.setattr(Holding, "factor", lambda self: 2.0)
    plain = Holding(None)
    plain.load_state_dict(model.state_dict())
    run(plain, tmp_path)
    monkeypatch.setattr(Holding, "factor", lambda self: 3.0)
    torch.testing.assert_close(run(plain, tmp_path)[0], first * 3)


def test_pool_functions_count_too(tmp_path: Path) -> None:
    model = Counting()
    for scale in (1.0, 2.0):
        found = extract(model, [X], layer="inner", cache=tmp_path, pool=lambda f: f * scale).values  # noqa: B023
        torch.testing.assert_close(found, model.inner(X).detach() * scale)


@pytest.mark.parametrize("held", [lambda: (i for i in "ab"), threading.Lock])
def test_what_cannot_be_pinned_down_is_refused(held: Any, tmp_path: Path) -> None:
    model = holding(lambda h: 1.0, held())
    with pytest.raises(
        InvalidTypeError, match=r"a cache must know all .* cannot be told from others.*no cache="
    ):
        run(model, tmp_path)


def test_a_model_that_changes_while_it_runs_is_never_kept(tmp_path: Path) -> None:
    class Collecting(Counting):
        def embed(self, x: Tensor) -> Tensor:
            self.scale += 1
            return super().embed(x)

    for quiet in (0, 1):
        model = Collecting(float(quiet))
        with pytest.warns(
            UserWarning, match="nothing is kept in the cache: Collecting changes while it runs"
        ):
            found, _ = run(model, tmp_path)
        factors = torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(4)[:, None] + quiet
        torch.testing.assert_close(found, model.inner(X).detach() * factors)
        assert not [*tmp_path.iterdir()]


def test_lightning_modules_with_metrics_and_hyperparameters(tmp_path: Path) -> None:
    class Module(LightningModule):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.inner, self.lstm = nn.Linear(3, 2), nn.LSTM(3, 2)
            self.test_metrics = MulticlassAccuracy(3)

        def embed(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.hparams["scale"]

    model = Module(2.0)
    first = extract(model, [X], cache=tmp_path).values
    files = sorted(tmp_path.iterdir())
    assert torch.equal(extract(model, [X], cache=tmp_path).values, first)
    assert sorted(tmp_path.iterdir()) == files
    model.hparams["scale"] = 4.0
    torch.testing.assert_close(extract(model, [X], cache=tmp_path).values, first * 2)


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_traced_modules(tmp_path: Path) -> None:
    for make in (torch.jit.script, torch.fx.symbolic_trace, lambda m: torch.compile(m, backend="eager")):
        model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        made: Any = make(model)
        found = extract(made, [X], "logits", cache=tmp_path).values
        torch.testing.assert_close(found, model(X).detach())
        count = len([*tmp_path.iterdir()])
        assert torch.equal(extract(made, [X], "logits", cache=tmp_path).values, found)
        assert len([*tmp_path.iterdir()]) == count
        with torch.no_grad():
            next(iter(made.parameters())).add_(1)
        changed = extract(made, [X], "logits", cache=tmp_path).values
        torch.testing.assert_close(changed, made(X).detach())
        assert not torch.equal(changed, found)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    model = Counting()
    cache = FeatureCache(tmp_path, TorchSource(model).identity)
    cache.put("a1", X[:2])
    path = tmp_path / "a1.safetensors"
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in (1, 128):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            assert cache.get("a1") is None, (at, bit)
    path.write_bytes(content[:-1])
    assert cache.get("a1") is None
    path.write_bytes(content)
    assert torch.equal(cache.get("a1"), X[:2])  # type: ignore[arg-type]
    path.rename(tmp_path / "a2.safetensors")
    assert cache.get("a2") is None  # of another batch


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, selkit.utils.atomic as atomic\n"
        "with atomic.replacing(sys.argv[1]) as new:\n"
        "    new.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "ab12.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    other = tmp_path / ".notes.part"
    other.touch()
    run(Counting(), tmp_path)
    assert other.exists()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".part"] + [".safetensors"] * 3
