"""Operations that change a tensor in place: nodes that saved it keep a copy, and steps run on a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..autograd.saved_values import rescue
from ..autograd.trees import map_tensors
from ..ops import mutates
from .decisions import written
from .execution import keep_values
from .policy import FunctionInfo
from .session import Session


def before_change(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Have all nodes that saved a tensor which is about to be changed in place keep a copy."""
    for tensor in written(args, kwargs):
        rescue(tensor)
        for frame in session.stack.frames:
            for call in (frame.call, frame.whole):
                if call is not None:
                    keep_values(call, tensor)


def changes(info: FunctionInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call of a function changes a tensor in place."""
    if not (info.can_mutate or "out" in kwargs or "inplace" in kwargs):
        return False
    return mutates(info.function, args, kwargs)


def on_copy(target: Tensor, steps: Callable[..., Any]) -> Callable[..., Any]:
    """Return the steps on a copy of what is changed in place; the function mode sees the copy being made."""

    def run_steps(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_tensors(lambda x: x.clone() if x is target else x, (args, kwargs))
        return steps(*args, **kwargs)

    return run_steps
