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

from selkit.errors import InvalidInputError

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

_ready: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # modules that were set up here


def base_of(model: Any, name: str = "LightningModule") -> type | None:
    """Lightning's class of a module, of either package that has it; ``None`` for other models."""
    for kind in type(model).__mro__:
        if kind.__name__ == name and kind.__module__.startswith(("lightning.", "pytorch_light")):
            return kind
    return None


def overrides(model: Any, hook: str) -> bool:
    """Whether a Lightning module or DataModule has a hook of its own."""
    base = base_of(model) or base_of(model, "LightningDataModule")
    if base is None:
        return False
    return hook in vars(model) or getattr(type(model), hook, None) is not getattr(base, hook, None)


class FromDataModule:
    """A loader of a DataModule, whose hooks its batches pass through.

    Parameters
    ----------
    datamodule
        Set up.
    loader
        One of its loaders.
    """

    def __init__(self, datamodule: Any, loader: Any) -> None:
        self.datamodule, self.loader = datamodule, loader

    def __iter__(self) -> Iterator[Any]:
        with _with_trainer(self.datamodule):
            yield from self.loader

    def __len__(self) -> int:
        return len(self.loader)


def loaders_of(loaders: Any) -> Any:
    """The loaders of a DataModule for ``train`` and ``val``; other things as they are.

    Raises
    ------
    InvalidInputError
        If it has several loaders for one of them.
    """
    if base_of(loaders, "LightningDataModule") is None:
        return loaders
    found = {}
    if loaders.trainer is None:  # no Trainer has set it up
        with _with_trainer(loaders):
            loaders.prepare_data()
            loaders.setup("fit")
    for part in ("train", "val"):
        if not overrides(loaders, f"{part}_dataloader"):
            continue
        loader = getattr(loaders, f"{part}_dataloader")()
        if isinstance(loader, (list, tuple, dict)):
            raise InvalidInputError(
                f"{type(loaders).__name__}.{part}_dataloader() gives {len(loader)} loaders; say which one is "
                "meant, loaders={'train': ..., 'val': ...}"
            )
        found[part] = FromDataModule(loaders, loader)
    return found


@contextlib.contextmanager
def _with_trainer(datamodule: Any) -> Iterator[None]:
    """A Trainer that tests and does nothing, where a DataModule has none and may ask for it."""
    base = base_of(datamodule, "LightningDataModule")
    if datamodule.trainer is not None or base is None:
        yield
        return
    datamodule.trainer = _idle_trainer(base)
    try:
        yield
    finally:
        datamodule.trainer = None


def moved(model: Any, batch: Any, datamodule: Any = None) -> Any:
    """A batch as a Lightning module's own hooks hand it on; for other models as it is.

    Parameters
    ----------
    model
        Any.
    batch
        As the loader yields it.
    datamodule
        Where the loader comes from; its hooks go before those of the model, as in a Trainer.
    """
    for hook in TRANSFER_HOOKS:
        owner = datamodule if overrides(datamodule, hook) else model
        if owner is not datamodule and not any(overrides(model, each) for each in TRANSFER_HOOKS):
            continue
        place = () if hook != "transfer_batch_to_device" else (_device_of(model),)
        batch = getattr(owner, hook)(batch, *place, 0)
    return batch


def _device_of(model: Any) -> Any:
    found = getattr(model, "device", None)
    if found is None and isinstance(model, nn.Module):
        found = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    return "cpu" if found is None else found


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
