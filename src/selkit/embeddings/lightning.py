"""What Lightning does for a module before a batch reaches it, where no Trainer runs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

_ready: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # modules that were set up here


def base_of(model: Any) -> type | None:
    """Lightning's class of a module, of either package that has it; ``None`` for other models."""
    for kind in type(model).__mro__:
        if kind.__name__ == "LightningModule" and kind.__module__.startswith(("lightning.", "pytorch_light")):
            return kind
    return None


def overrides(model: Any, hook: str) -> bool:
    """Whether a Lightning module has a hook of its own."""
    base = base_of(model)
    if base is None:
        return False
    return hook in vars(model) or getattr(type(model), hook, None) is not getattr(base, hook, None)


def moved(model: Any, batch: Any) -> Any:
    """A batch as a Lightning module's own hooks hand it on; for other models as it is.

    Parameters
    ----------
    model
        Any.
    batch
        As the loader yields it.
    """
    if not any(overrides(model, hook) for hook in TRANSFER_HOOKS):
        return batch
    batch = model.on_before_batch_transfer(batch, 0)
    batch = model.transfer_batch_to_device(batch, model.device, 0)
    return model.on_after_batch_transfer(batch, 0)


@contextlib.contextmanager
def alone(model: Any) -> Iterator[None]:
    """A Lightning module ready to run without a Trainer that runs.

    A module that no Trainer has had is set up as for a test, once; while the block runs its ``trainer`` is
    one that tests and does nothing, and what it logs goes nowhere.

    Parameters
    ----------
    model
        Any; other models are left alone.
    """
    base = base_of(model)
    if base is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if model._trainer is None:
            if any(overrides(model, hook) for hook in (*TRANSFER_HOOKS, "setup", "configure_model")):
                model.trainer = _idle_trainer(base)
                stack.callback(setattr, model, "trainer", None)
            if model not in _ready:
                _set_up(model)
        stack.enter_context(silent(model))
        yield


@contextlib.contextmanager
def silent(model: nn.Module) -> Iterator[None]:
    """What a model and its parts log inside the block goes nowhere."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if base_of(module) is None:
                continue
            for name in ("log", "log_dict"):
                if name not in vars(module):
                    object.__setattr__(module, name, _nowhere)
                    stack.callback(vars(module).pop, name, None)
        yield


def _set_up(model: Any) -> None:
    modes = [(module, module.training) for module in model.modules()]
    if overrides(model, "setup"):
        model.setup("test")
    if overrides(model, "configure_model"):
        model.configure_model()
    for module, mode in modes:
        module.training = mode
    _ready.add(model)


def is_silenced(module: nn.Module, name: str) -> bool:
    """Whether an attribute is what :func:`silent` put there."""
    return vars(module).get(name) is _nowhere


def _nowhere(*args: Any, **kwargs: Any) -> None:
    """Log nothing: there is no run."""


def _idle_trainer(base: type) -> Any:
    """A Trainer in the state of a test, that runs nothing."""
    package = base.__module__.partition(".core")[0]
    kind = importlib.import_module(package).Trainer
    log = logging.getLogger(f"{package}.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)  # what hardware there is was asked by nobody
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = kind(
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    finally:
        log.setLevel(level)
    trainer.testing = True
    return trainer
