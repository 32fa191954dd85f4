"""Autograd functions that are registered or are keys: function modes see their calls while a composite is active.

``apply`` is replaced on the class, and on the base of all autograd functions, where calls of ``alias = Function.apply``
end that took it earlier.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.autograd import Function
from torch.overrides import handle_torch_function

from ..autograd.saved_values import rescue
from ..autograd.trees import map_tensors, tensors_in
from ..ops import registered
from ..torch_internals import base_of_functions, is_mode_on, looks_up


class Applied:
    """``apply`` of an autograd function, as a function that function modes see.

    Attributes:
        autograd_function: the class.
        users: how many registrations it is seen for.
        marks_dirty: whether it changes inputs in place, and says so by ``ctx.mark_dirty``.
    """

    def __init__(self, function: type[Function]) -> None:
        self.autograd_function: Any = function
        self.users = 0
        self.marks_dirty = any(looks_up("mark_dirty", method) for method in (function.forward, function.setup_context))
        self._apply = function.apply
        self._own = vars(function).get("apply")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function as torch does; what others have saved is spared if it changes its inputs.

        A mode inside of another hands the call on to that one.
        """
        if is_mode_on():
            return handle_torch_function(self, (), *args, **kwargs)
        op = registered(self.autograd_function)
        if op is not None and op.traits.spoils_inputs:
            for tensor in tensors_in((args, kwargs)):
                rescue(tensor)
        _HERE.seen = self.autograd_function
        try:
            return self._on_copies(args, kwargs) if self.marks_dirty else self._apply(*args, **kwargs)
        finally:
            _HERE.seen = None

    def _on_copies(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply the function to copies, and note which of them it has changed and returned."""
        args, kwargs = map_tensors(lambda x: x if isinstance(x, nn.Parameter) else x.clone(), (args, kwargs))
        output = self._apply(*args, **kwargs)
        places = {id(x): place for place, x in enumerate(tensors_in((args, kwargs)))}
        made = [(places.get(id(y)), number, y) for number, y in enumerate(tensors_in(output))]
        _HERE.changed = tuple((place, number) for place, number, y in made if place is not None and y._version)
        return output

    def show(self) -> None:
        """Replace ``apply`` by the function that modes see."""
        self.autograd_function.apply = classmethod(partial(_apply, self))

    def restore(self) -> None:
        """Put ``apply`` back."""
        if self._own is None:
            del self.autograd_function.apply
        else:
            self.autograd_function.apply = self._own


_APPLIED: dict[type[Function], Applied] = {}
_LOCK = threading.Lock()
_ENDED: deque[Applied] = deque()
"""Functions that one registration has stopped using. Python may collect a registration as garbage while this thread
holds the lock; its functions wait here, and the holder of the lock removes them."""


class _Here(threading.local):
    """The function whose call function modes have seen in this thread, until the ``apply`` of the base is reached."""

    seen: type[Function] | None = None
    changed: tuple[tuple[int, int], ...] = ()
    """Tensors that its last call would have changed in place, by their numbers among what it was given and returned."""


_HERE = _Here()


@contextmanager
def seen_by_modes(function: type[Function]) -> Iterator[None]:
    """Have function modes see ``function.apply(...)``, which torch hides from them."""
    with _LOCK:
        if not _APPLIED:
            base_of_functions.apply = classmethod(_apply_in_the_end)
        applied = _APPLIED.setdefault(function, Applied(function))
        applied.users += 1
        if applied.users == 1:
            applied.show()
    _end()
    try:
        yield
    finally:
        _ENDED.append(applied)
        _end()


def _end() -> None:
    """Remove functions that are no longer used; while the table is being changed, leave that to whoever changes it."""
    while _ENDED and _LOCK.acquire(blocking=False):
        try:
            while _ENDED:
                applied = _ENDED.popleft()
                applied.users -= 1
                if not applied.users:
                    del _APPLIED[applied.autograd_function]
                    applied.restore()
            if not _APPLIED and "apply" in vars(base_of_functions):  # else another thread has removed it
                del base_of_functions.apply
        finally:
            _LOCK.release()


def _apply_in_the_end(kind: Any, *args: Any, **kwargs: Any) -> Any:
    applied = _APPLIED.get(kind)
    if applied is None or not is_mode_on():
        return super(base_of_functions, kind).apply(*args, **kwargs)
    if _HERE.seen is kind:
        _HERE.seen = None  # its forward may call it again
        return super(base_of_functions, kind).apply(*args, **kwargs)
    return _seen(applied, *args, **kwargs)


def _apply(applied: Applied, kind: Any, *args: Any, **kwargs: Any) -> Any:
    if kind is not applied.autograd_function:  # a class derived from it
        return super(applied.autograd_function, kind).apply(*args, **kwargs)
    if not is_mode_on():
        return applied(*args, **kwargs)
    return _seen(applied, *args, **kwargs)


def _seen(applied: Applied, *args: Any, **kwargs: Any) -> Any:
    """Call the function such that modes see it, and then change in place what it would have changed.

    So modes see ``x.copy_(f(x))``: rules find what x was, and whoever has saved it keeps that.
    """
    _HERE.changed = ()
    output = handle_torch_function(applied, (), *args, **kwargs)
    changed, _HERE.changed = _HERE.changed, ()
    if not changed:
        return output
    given, results = list(tensors_in((args, kwargs))), list(tensors_in(output))
    back = {id(results[made]): given[place].copy_(results[made]) for place, made in changed}
    return map_tensors(lambda y: back.get(id(y), y), output)
