"""Private parts of torch that have to do with full backward hooks on modules.

torch looks at what a module is given after all forward pre-hooks, and at what it puts out after all forward hooks: an
identity (:data:`HOOKED`) goes around each, and its nodes call the hooks of the user. So a pre-hook that exchanges what
goes in comes too early: the user would be told of what is inside.
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
"""The type of its nodes, of which each stands for all tensors that a module was given, or has put out."""

Arguments = tuple[Any, ...]


def has_full_backward_hooks(module: nn.Module) -> bool:
    """Return whether torch puts its identity around what a module is given; those for all modules count.

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
    """Return whether torch puts its identity around these arguments: not if all gradients go in by keyword."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in args)


def late_arguments(exchange: Callable[[Arguments], Arguments]) -> type[Arguments]:
    """Return a type of tuples; those that a pre-hook returns are exchanged after torch has looked at them.

    torch hands on ``type(args)(*tensors)``, as named tuples need it, so the type is asked for what is handed on.
    Unnecessary once a hook can run between torch's own and the module.

    Args:
        exchange: a method, which is held weakly; what it returns is what the module runs on.
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
    """Return the edge that an edge of the autograd graph leads to, past the identities of full backward hooks."""
    while type(node) is HOOKED_NODE:
        node, place = node.next_functions[place]
    return node, place


def behind_hook(edge: tuple[Any, int]) -> tuple[Any, int] | None:
    """Return the edge that the identity of a full backward hook leads to; None for other edges, and where a leaf is."""
    way: tuple[Any, int] = edge[0].next_functions[edge[1]] if type(edge[0]) is HOOKED_NODE else (None, 0)
    return None if way[0] is None or hasattr(way[0], "variable") else way
