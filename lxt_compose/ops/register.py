"""Registration of operations that torch does not have."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from .families import Family, Op
from .lookup import display_name, op_of
from .registry import function_of_apply, is_autograd_function, is_operator, registered, store
from .traits import NO_TRAITS, Argument, Traits


def register(
    function: Callable[..., Any] | str,
    family: Family,
    *,
    traits: Traits = NO_TRAITS,
    name: str = "",
    steps: Callable[..., Any] | None = None,
    held: Iterable[int | str] = (),
    bias: tuple[int, str] | None = None,
) -> Op:
    """Register an operation that torch does not have in a family: it then has that family's default rule.

    It can be a key, and has its place in report, ledger and conservation check. Of a subclass of
    :class:`torch.autograd.Function` the calls ``function.apply(...)`` are seen while a composite is registered, also
    through an ``apply`` that was taken from the class before. A second registration of the same function replaces the
    first.

    Args:
        function: the operation: ``torch.ops.<library>.<name>``, what ``torch.library.custom_op`` made, or a subclass
            of :class:`torch.autograd.Function`; or the dotted name of one, if its library may not be there.
        family: what kind of operation it is: ``Family.LINEAR``, ``Family.MOVEMENT`` (also for an identity),
            ``Family.ACTIVATION`` (elementwise), ...
        traits: what else is known of it.
        name: how the report calls it; by default as a user would write it.
        steps: a function of the same arguments that computes the same with operations of torch, for example for a
            kernel without a backward. Relevance goes through these, under their rules; values stay the operation's.
        held: arguments, by position and by keyword, that the default rule holds constant, such as where to sample an
            image: the others get all relevance.
        bias: the argument that is added to the result of the others, by position and keyword; it keeps its share.

    Returns:
        The operation.

    Raises:
        TypeError: the function cannot be called, or the family is no :class:`Family`.
        ValueError: the function is one of torch, whose family is known.
    """
    function = getattr(function, "_opoverload", function)  # what torch.library.custom_op makes
    function = function_of_apply(function)
    held = [held] if isinstance(held, (int, str)) else list(held)
    _check(function, family, held, bias)
    multiplies = family in (Family.PRODUCT, Family.CONTRACTION)
    if bias is not None:
        traits = replace(traits, bias=Argument(*bias))
    added: frozenset[int | str] = frozenset(bias or ())
    op = Op(name or _default_name(function), family, added, frozenset(held), multiplies, traits, steps=steps)
    store(function, op)
    return op


def _check(function: Any, family: Any, held: list[Any], bias: Any) -> None:
    if not (callable(function) or isinstance(function, str)) or not isinstance(family, Family):
        raise TypeError(
            f"register_operation() takes a function and a Family, such as Family.LINEAR; "
            f"got {function!r} and {family!r}"
        )
    if not _is_seen(function):
        raise TypeError(
            f"register_operation() takes torch.ops.<library>.<name>, what torch.library.custom_op made, a subclass of "
            f"torch.autograd.Function, or the dotted name of one; calls of {function!r} are not seen, but those of "
            f"what it calls are"
        )
    if bias is not None and not (isinstance(bias, tuple) and list(map(type, bias)) == [int, str]):
        raise TypeError(f"bias is the argument's position and keyword, such as bias=(2, 'bias'), got {bias!r}")
    if not {int, str} >= set(map(type, held)):
        raise TypeError(f"held are positions and keywords of arguments, such as held=(1, 'mask'), got {held!r}")
    if callable(function) and registered(function) is None and op_of(function) is not None:
        raise ValueError(f"{display_name(function)} is an operation of torch, whose family is known: bind it by a key")


def _is_seen(function: Any) -> bool:
    """Return whether calls may be seen by function modes, or are made to be."""
    if isinstance(function, str) or is_autograd_function(function) or is_operator(function):
        return True
    if op_of(function) is not None:
        return True
    if not inspect.isfunction(function):
        return False
    used = inspect.getclosurevars(function)
    return "handle_torch_function" in used.globals or "handle_torch_function" in used.unbound


def _default_name(function: Any) -> str:
    if isinstance(function, str):
        return function if function.startswith("torch.ops.") else f"{function.rpartition('.')[2]}.apply"
    return f"{function.__name__}.apply" if is_autograd_function(function) else display_name(function)
