"""Private parts of torch for full backward hooks on modules.

torch puts an identity (:data:`HOOKED`) around the inputs of a module after all forward pre-hooks, and around its
outputs after all forward hooks; the nodes of the identities call the user's hooks. So a pre-hook that exchanges inputs
runs too early: the user's hooks would see what is inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.nn.modules._functions import BackwardHookFunction

HOOKED = BackwardHookFunction
"""The autograd function of full backward hooks on modules: an identity."""

HOOKED_NODE: Any = BackwardHookFunction._backward_cls
"""The type of its nodes, each of which stands for all inputs, or all outputs, of a module."""

Arguments = tuple[Any, ...]


def has_full_backward_hooks(module: nn.Module) -> bool:
    """Return whether torch puts its identity around the inputs of a module; hooks for all modules count.

    Unnecessary once torch lists the backward hooks of a module publicly.
    """
    if not (
        module._backward_hooks
        or module._backward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    ):
        return False
    return bool(module._get_backward_hooks()[0] or module._get_backward_pre_hooks())


def are_looked_at(args: Sequence[Any]) -> bool:
    """Return whether torch puts its identity around these arguments; it does not for keyword arguments."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in args)


def late_arguments(exchange: Callable[[Arguments], Arguments]) -> type[Arguments]:
    """Return a type of tuples for a pre-hook's result, which is exchanged after torch's identity was put around it.

    torch hands on ``type(args)(*tensors)``, as named tuples need it, so the type decides what is handed on. Unnecessary
    once a hook can run between torch's own and the module.

    Args:
        exchange: a method, held weakly, that returns the arguments that the module runs on.
    """
    method = weakref.WeakMethod(exchange)

    class LateArguments(tuple[Any, ...]):
        """The arguments of a module."""

        __slots__ = ()

        def __new__(cls, *args: Any) -> Any:
            now = method()
            return tuple(args) if now is None else now(args)

    return LateArguments


def past_hooks(node: Any, place: int) -> tuple[Any, int]:
    """Return the edge behind the identities of full backward hooks."""
    while type(node) is HOOKED_NODE:
        node, place = node.next_functions[place]
    return node, place


def behind_hook(edge: tuple[Any, int]) -> tuple[Any, int] | None:
    """Return the edge behind the identity of a full backward hook; None for other edges, and at a leaf."""
    way: tuple[Any, int] = edge[0].next_functions[edge[1]] if type(edge[0]) is HOOKED_NODE else (None, 0)
    return None if way[0] is None or hasattr(way[0], "variable") else way
