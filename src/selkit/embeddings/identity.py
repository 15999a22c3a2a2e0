"""What a model is, as far as its features depend on it: one hash that changes with everything it holds."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from selkit.embeddings.lightning import is_silenced
from selkit.embeddings.sources import Identity
from selkit.errors import InvalidInputError, InvalidTypeError, SelkitError
from selkit.utils.fingerprint import fingerprint

# of these no feature depends: the mode is always that of evaluation, hooks of gradients and of states do not
# run, and Lightning keeps its own accounts
_APART = frozenset(
    str.split(
        "training _modules _parameters _buffers _compiled_call_impl _backward_hooks _backward_pre_hooks "
        "_is_full_backward_hook _state_dict_hooks _state_dict_pre_hooks _load_state_dict_pre_hooks "
        "_load_state_dict_post_hooks _non_persistent_buffers_set _trainer _fabric _fabric_optimizers "
        "_fx_name _current_fx_name _param_requires_grad_state _metric_attributes _compiler_ctx _device_mesh "
        "_device _dtype _jit_is_scripting _hparams_initial _log_hyperparams _example_input_array "
        "_automatic_optimization _strict_loading prepare_data_per_node "
        "allow_zero_length_dataloader_with_multiple_devices _flat_weights _flat_weight_refs"
    )
)
_LARGE = 2**14  # entries of a tensor that is not read again at every batch
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def identity_of(source: Identity, *, quick: bool = False) -> str:
    """A hash of a model and of what else its features depend on.

    Everything counts that a module holds: tensors, arrays, lists, objects, functions with their code, closure
    and the globals that they read, hooks, and the code of its own class. So do the versions of packages, and
    what torch is told about precision. What a function finds in files or in the environment cannot be seen.

    Parameters
    ----------
    source
        A module, or the bytes of one, and options.
    quick
        Take large parameters and buffers by where they are and how often they were written to, which says
        in this process whether they changed.

    Raises
    ------
    InvalidTypeError
        If something cannot be told from others; the message says what.
    """
    model, options = source
    settings = (
        "features 2",
        torch.__version__,
        str(torch.get_default_dtype()),
        torch.get_float32_matmul_precision(),
        [torch.is_autocast_enabled(), str(torch.get_autocast_dtype("cpu"))],
    )
    try:
        parts = list(_parts(model, quick=quick)) if isinstance(model, nn.Module) else [("bytes", model)]
        return fingerprint(settings, options, parts)
    except (SelkitError, RecursionError) as error:
        raise InvalidTypeError(
            f"a cache must know all that a model's features depend on, but of {type(model).__name__} "
            f"{error}. Hold plain values, tensors, arrays or functions of your own there, or give no cache="
        ) from error


def _parts(model: nn.Module, *, quick: bool) -> Iterator[tuple[str, Any]]:
    """Names and values of everything in a module."""
    yield "hooks of all modules", [list(getattr(modules, f"_global{name}", {}).values()) for name in _HOOKS]
    for name, module in model.named_modules(remove_duplicate=False):
        yield f"{name}: ", _class(module)
        for key in _HOOKS:
            yield f"{name}: {key}", list(getattr(module, key, {}).values())
        if isinstance(module, torch.jit.ScriptModule):
            yield f"{name}: script", _script(module)
            continue
        made = isinstance(module, torch.fx.GraphModule) or hasattr(module, "_orig_mod")
        for key, value in () if made else sorted(vars(module).items()):
            if key not in _APART and not key.startswith("_forward_") and not is_silenced(module, key):
                yield f"{name}: {key}", value
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                raise InvalidInputError(f"{name}.{key} has no values yet; run the model once")
            yield f"{name}: {key}", _quick(tensor) if quick and isinstance(tensor, Tensor) else tensor


def _quick(tensor: Tensor) -> Any:
    if tensor.numel() <= _LARGE or tensor.is_inference():
        return tensor
    return [tensor.data_ptr(), tensor._version, str(tensor.dtype), tuple(tensor.shape)]


def _class(module: nn.Module) -> Any:
    """What the class of a module does; that of traced graphs is made for one object, and is its code."""
    code = getattr(module, "code", None)
    if isinstance(module, torch.fx.GraphModule):
        return ["graph", code]
    return "compiled" if hasattr(module, "_orig_mod") else type(module)


def _script(module: torch.jit.ScriptModule) -> list[tuple[str, bytes]]:
    """The files of a scripted module, whose state only torch can read."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return [(entry.partition("/")[2], archive.read(entry)) for entry in sorted(archive.namelist())]
