"""Everything that leans on private parts of torch or on Python's call stack, in one place.

Each entry says why it is needed, and what would make it unnecessary. `tests/test_torch_internals.py` has a test for
each: when a new version of torch breaks one, that test names it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, _SingleLevelFunction
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import CheckpointFunction

from ..errors import RegistrationError
from .backward_hooks import HOOKED
from .checkpoints import checkpoint_function_holder as checkpoint_function_holder
from .checkpoints import checkpoint_hook as checkpoint_hook
from .checkpoints import packs_saved_tensors as packs_saved_tensors
from .checkpoints import reentrant_function_holder as reentrant_function_holder
from .modules import buffers_of as buffers_of
from .modules import clear_hooks as clear_hooks
from .modules import eager as eager
from .modules import hooks_of as hooks_of
from .modules import is_compiled as is_compiled
from .modules import pre_hooks_of as pre_hooks_of
from .modules import remove_hooks as remove_hooks
from .modules import run_with_weight as run_with_weight

# ---- function modes --------------------------------------------------------------------------------------------------

modes_off = torch._C.DisableTorchFunction
"""A context in which no function mode sees what runs, for computations of rules.

Unnecessary once `torch.overrides` has a public context that switches off all function modes.
"""

plain_torch_function = torch._C._disabled_torch_function_impl
"""The `__torch_function__` of a subclass of tensor whose operations give plain tensors.

Public in all but its name: the documentation of `torch.Tensor` subclasses uses it.
"""

function_modes = _get_current_function_mode_stack
"""The function modes that are active in this thread, outermost first: an interrupt may leave one there.

Unnecessary once `torch.overrides` lists them publicly.
"""

is_mode_on: Callable[[], bool] = torch._C._is_torch_function_mode_enabled
"""Whether a function mode is active here and not switched off.

Unnecessary once `torch.overrides.has_torch_function(())` answers for modes in all versions.
"""


# ---- compiled code ---------------------------------------------------------------------------------------------------


def _exchange_for_callback() -> Any:
    """Return the callback of the compiler by setting another one: older versions of torch have no getter."""
    callback = torch._C._dynamo.eval_frame.set_eval_frame(None)
    torch._C._dynamo.eval_frame.set_eval_frame(callback)
    return callback


is_compiled_code: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", _exchange_for_callback
)
"""Whether this is called from code that torch.compile runs; called directly, without Python in between."""


def refuse_compiled(what: str) -> None:
    """Raise if this is called from code that torch.compile runs.

    Neither hooks nor function modes are sure to run there. `torch.compiler.is_compiling()` is only true while tracing.

    Raises:
        RegistrationError: the code is compiled.
    """
    if is_compiled_code():
        raise RegistrationError(
            f"{what} runs in compiled code, where rules cannot be relied on; call the model itself rather than "
            f"torch.compile(model), or call it under torch.compiler.set_stance('force_eager')"
        )


# ---- Python's call stack ---------------------------------------------------------------------------------------------
# Forward hooks do not run after a KeyboardInterrupt, not even with always_call=True. So the Python frame of each module
# call is kept: the module runs exactly as long as that frame is on the stack. Unnecessary once torch runs such hooks in
# a `finally` clause.

_MODULE_CALL = nn.Module._call_impl.__code__


def module_call() -> FrameType | None:
    """Return the Python frame of the innermost module call, for a hook of that module."""
    python: FrameType | None = sys._getframe(3)  # where it is, unless torch has changed
    if python is not None and python.f_code is _MODULE_CALL:
        return python
    python = sys._getframe(2)
    while python is not None and python.f_code is not _MODULE_CALL:
        python = python.f_back
    return python


def this_call() -> FrameType:
    """Return the Python frame of the caller."""
    return sys._getframe(1)


class Depth:
    """The depth in Python's call stack at which a frame was found last, where it is looked for first."""

    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 1


def innermost(calls: list[Any], last: Depth) -> Any:
    """Return the last of these calls whose Python frame is still running in this thread; None if there is none.

    Those after it were ended by an interrupt, and are dropped. Every operation runs this, so it calls no functions.

    Args:
        calls: each has its Python frame as `python`.
        last: where the same caller found the frame last; a hint that saves time.
    """
    while calls:
        wanted = calls[-1].python
        try:
            if sys._getframe(last.depth) is wanted:
                return calls[-1]
        except ValueError:  # the stack is not so deep
            pass
        python, depth = sys._getframe(1), 1
        while python is not None and python is not wanted:
            python, depth = python.f_back, depth + 1  # type: ignore[assignment]
        if python is wanted:
            last.depth = depth
            return calls[-1]
        calls.pop()
    return None


def looks_up(name: str, method: Callable[..., Any]) -> bool:
    """Return whether the code of a method looks up an attribute of this name: ``ctx.mark_dirty``.

    What a context was told cannot be read before the call, and afterwards values are gone. Unnecessary once
    `torch.autograd.Function` says that it changes inputs.
    """
    return name in getattr(getattr(inspect.unwrap(method), "__code__", None), "co_names", ())


def custom_function() -> Any:
    """Return the context of the autograd function, or reentrant checkpoint, whose forward runs here unrecorded.

    The context is the node of the call, if autograd records that. Unnecessary once function modes see
    `torch.autograd.Function`.
    """
    python: FrameType | None = sys._getframe(1)
    while python is not None:
        first = python.f_code.co_varnames[:1] if python.f_code.co_argcount else ()
        if first and isinstance(context := python.f_locals.get(first[0]), FunctionCtx):
            return context
        python = python.f_back
    return None


# ---- the autograd graph ----------------------------------------------------------------------------------------------

apply_alone: Any = vars(torch._C._FunctionBase)["apply"]
"""``apply`` of an autograd function without what `torch.func` needs, which costs as much again in Python.

Unnecessary once `torch.autograd.Function.apply` costs nothing where no transform is under way.
"""

base_of_functions: Any = _SingleLevelFunction
"""The class in which every call of ``apply`` of an autograd function ends, also of one taken from its class before.

Unnecessary once function modes see calls of autograd functions.
"""

TRANSPARENT = (HOOKED, CheckpointFunction)
"""torch's autograd functions that are identities, or whose operations are seen when they are recomputed."""

next_node_number: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""The number that the next autograd node of this thread gets. Numbers grow in the order in which nodes are made.

Unnecessary once nodes have a public number.
"""

preserve_version = _unsafe_preserve_version_counter
"""A context in which changes of a tensor do not count, for changes that restore its values in the end."""

_NO_BACKWARD = -1


def node_number(node: Any) -> int:
    """Return the number of an autograd node."""
    number: int = node._sequence_nr()
    return number


def in_backward() -> bool:
    """Return whether a backward pass runs in this thread, so that operations are recomputed by a checkpoint."""
    return bool(torch._C._current_graph_task_id() != _NO_BACKWARD)


def exchange_saved(node: Any, place: int, pack: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor that a node has saved by ``pack(tensor)``, unless it was freed."""
    try:
        saved = node._raw_saved_tensors[place]
    except RuntimeError:
        return  # its backward has run already and freed what it had saved
    saved.register_hooks(pack, lambda kept: kept)


def layer_norm_rstd(z: Tensor) -> Tensor | None:
    """Return ``1 / sigma`` that torch's layer norm has saved for its backward; None if `z` is not its output.

    Unnecessary once `torch.native_layer_norm` is what every backend runs for `F.layer_norm`.
    """
    return getattr(z.grad_fn, "_saved_result2", None) if type(z.grad_fn).__name__ == _LAYER_NORM else None


_LAYER_NORM = "NativeLayerNormBackward0"


def storage_of(tensor: Tensor) -> int:
    """Return an identity of the memory behind a tensor; views of one another have the same."""
    if tensor.layout is not torch.strided:  # a sparse tensor has no such memory, and no views
        return id(tensor)
    try:
        return _storage_address(tensor)
    except RuntimeError:  # inside of vmap it stands for many tensors, and is not saved
        return id(tensor)


_storage_address: Callable[[Tensor], int] = getattr(
    torch._C, "_storage_address", lambda tensor: tensor.untyped_storage()._cdata
)
"""The address of the memory behind a tensor, three times as fast as by way of a storage object.

Unnecessary once that way is as fast.
"""


# ---- torch.func ------------------------------------------------------------------------------------------------------


in_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""Whether a transform of torch.func (grad, vmap, ...) is under way, in which autograd functions need more.

Called directly, without Python in between, since every operation calls it. Unnecessary once torch has a public function
for it.
"""


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor stands for several inside of vmap, as slots do under ``is_grads_batched=True``."""
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor))
