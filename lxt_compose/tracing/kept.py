"""Graphs that are kept for models, as long as those live."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")


class Kept(Generic[T]):
    """The last few things that were made for one model, by what they were made for.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit, self._made = limit, OrderedDict[Any, T]()

    def get(self, key: Any, make: Callable[[], T], *, good: Callable[[T], bool] = lambda known: True) -> T:
        """Return what was made for this key, or make it, also if what there is is not good any longer."""
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
    """For each owner and each model, what is kept for them; it goes when either of them goes."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Any, WeakKeyDictionary[nn.Module, Kept[T]]] = WeakKeyDictionary()

    def of(self, owner: Any, model: nn.Module) -> Kept[T]:
        """Return what is kept."""
        return self._kept.setdefault(owner, WeakKeyDictionary()).setdefault(model, Kept())
