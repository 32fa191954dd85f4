"""Autograd functions that are registered or are keys: function modes see their calls while a composite is active."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.autograd import Function
from torch.overrides import handle_torch_function

from ..torch_internals import is_mode_on


class Applied:
    """``apply`` of an autograd function, as a function that function modes see.

    Attributes:
        autograd_function: the class.
        users: how many registrations it is seen for.
    """

    def __init__(self, function: type[Function]) -> None:
        self.autograd_function: Any = function
        self.users = 0
        self._apply = function.apply
        self._own = vars(function).get("apply")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function as torch does."""
        return self._apply(*args, **kwargs)

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


@contextmanager
def seen_by_modes(function: type[Function]) -> Iterator[None]:
    """Have function modes see ``function.apply(...)``, which torch hides from them."""
    with _LOCK:
        applied = _APPLIED.setdefault(function, Applied(function))
        applied.users += 1
        if applied.users == 1:
            applied.show()
    try:
        yield
    finally:
        with _LOCK:
            applied.users -= 1
            if not applied.users:
                del _APPLIED[function]
                applied.restore()


def _apply(applied: Applied, kind: Any, *args: Any, **kwargs: Any) -> Any:
    if kind is not applied.autograd_function:  # a class derived from it
        return super(applied.autograd_function, kind).apply(*args, **kwargs)
    if not is_mode_on():
        return applied(*args, **kwargs)
    return handle_torch_function(applied, (), *args, **kwargs)
