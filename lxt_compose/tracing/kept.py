"""Caches of graphs for models, as long as the models live."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")


class Kept(Generic[T]):
    """A cache of the last few objects made for one model, by key.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit, self._made = limit, OrderedDict[Any, T]()

    def get(self, key: Any, make: Callable[[], T], *, good: Callable[[T], bool] = lambda known: True) -> T:
        """Return the object for this key; make it if there is none, or if it is no longer valid."""
        if key in self._made and good(self._made[key]):
            self._made.move_to_end(key)
            return self._made[key]
        made = self._made[key] = make()
        while len(self._made) > self._limit:
            self._made.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._made)


class ByModel(Generic[T]):
    """A cache for each owner and each model, which is dropped with either of them."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Any, WeakKeyDictionary[nn.Module, Kept[T]]] = WeakKeyDictionary()

    def of(self, owner: Any, model: nn.Module) -> Kept[T]:
        """Return the cache."""
        return self._kept.setdefault(owner, WeakKeyDictionary()).setdefault(model, Kept())
