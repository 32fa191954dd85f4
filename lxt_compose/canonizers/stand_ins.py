"""Stand-ins: values that a module finds in place of its own parameters, buffers and settings, which do not change.

A canonized module finds other values under their names in its own ``__dict__``, where Python looks first. Copies and
pickles of the model find the original ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..torch_internals import plain_torch_function


class StandIn(Tensor):
    """A tensor that a module finds in place of its own; copies and pickles of it are the module's own."""

    __torch_function__ = plain_torch_function  # type: ignore[assignment]
    stands_in = True
    original: Tensor | None
    unhooked: Tensor | None
    """The value to use where no hook changes the input of the module."""

    @staticmethod
    def of(value: Tensor, original: Tensor | None, unhooked: Tensor | None = None) -> StandIn:
        """Return `value` as a stand-in for `original`."""
        stand_in: StandIn = Tensor._make_subclass(StandIn, value)
        stand_in.original, stand_in.unhooked = original, unhooked
        return stand_in

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _itself, (self.original,)


class NoPadding(tuple[int, ...]):
    """Zeros that a layer finds in place of its padding; copies and pickles of it are the layer's own padding."""

    stands_in = True
    original: Any

    @staticmethod
    def of(original: Any, dims: int) -> NoPadding:
        """Return as many zeros as a stand-in for `original`."""
        zeros = NoPadding((0,) * dims)
        zeros.original = original
        return zeros

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.original,)


def _itself(value: Any) -> Any:
    return value


def drop_stand_ins(module: nn.Module, *_: Any) -> None:
    """Remove the stand-ins from a module; a copy of a merged model has a hook that does so."""
    for name in [*module._parameters, *module._buffers]:
        module.__dict__.pop(name, None)


def copy_as_merged(module: nn.Module) -> nn.Module:
    """Return a deep copy that computes what the module does now, with merged values as its own parameters and buffers.

    Hooks of canonizers do not run in the copy: those of the module have changed its inputs already.
    """
    twin = copy.deepcopy(module)
    for given, copied in zip(module.modules(), twin.modules(), strict=True):
        for name, value in vars(given).items():
            if isinstance(value, StandIn):
                copied.__dict__.pop(name, None)
                _put(copied, name, value if given is module or value.unhooked is None else value.unhooked)
            elif isinstance(value, NoPadding) and given is module:
                copied.__dict__[name] = tuple(value)
    return twin


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    plain = value.detach().as_subclass(Tensor)
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(plain, requires_grad=False)
    else:
        module._buffers[name] = plain


class StandInHook:
    """A hook of a pair; in copies and pickles of the model it only removes the stand-ins from ``__dict__``.

    Args:
        function: is called with the arguments of the hook, without the module.
        note: why no other canonizer can merge the module.
    """

    stands_in = True

    def __init__(self, function: Callable[..., Any], note: str = "") -> None:
        self.function, self.note = function, note

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Call the function."""
        return self.function(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (drop_stand_ins,)
