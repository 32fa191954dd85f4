"""The state of a model that a trace depends on: its modules, their mode and hooks, its tensors, what its code reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import is_, itemgetter
from typing import Any

from torch import nn

from ..torch_internals.ambient import ambient, difference
from ..torch_internals.traces import tables_of
from .surroundings import Surroundings

State = tuple[Any, ...]
_TRAINING = itemgetter("training")


class ModelState:
    """The state of a model at one time, to be compared with a later one.

    Values of weights do not count: a graph computes with the tensors themselves. Of other values that its code may
    read, such as attributes, see :class:`Surroundings`. It holds no reference to the model itself.

    Args:
        model: the model.
        others: functions and objects beside it whose values count too, such as a target function.
    """

    def __init__(self, model: nn.Module, others: Iterable[Any] = ()) -> None:
        self.moving: tuple[str, ...] = ()
        """The numbers and texts that the model itself sets to other values in each call, in words."""
        self._read(model, others)

    def _read(self, model: nn.Module, others: Iterable[Any]) -> None:
        self._surroundings, self._ambient = Surroundings(model, others), ambient()
        named = list(model.named_modules())
        self._names = [f"{name!r} ({type(module).__name__})" for name, module in named]
        self._names[0] = f"the model ({type(model).__name__})"
        modules = [module for _, module in named]
        self._owned = [vars(module) for module in modules]
        self._training = [module.training for module in modules]
        self._forwards = [*map(dict.get, self._owned, repeat("forward"))]
        tables = [(place, kind, table) for place, each in enumerate(modules) for kind, table in tables_of(each)]
        self._hooked = [table for _, kind, table in tables if "hooks" in kind]
        self._hooks_then = [*map(_foreign, self._hooked)]
        owning = [table for _, kind, table in tables if "hooks" not in kind]
        self._entries = [(table, dict(table)) for table in owning if table]
        self._owning = [table for table, _ in self._entries]
        self._sizes = [*map(len, self._owning)]
        self._keys = [*chain.from_iterable(self._owning)]
        self._values = [*chain.from_iterable(map(dict.values, self._owning))]
        self._empty = [table for table in owning if not table]
        self._owners = {id(table): (place, kind) for place, kind, table in tables}

    def change(self) -> str:
        """Return what has changed, in words; empty if nothing has."""
        training = [*map(_TRAINING, self._owned)]
        if training != self._training:
            return self._mode(training)
        if not all(map(is_, map(dict.get, self._owned, repeat("forward")), self._forwards)):
            return "the forward of a module was exchanged"
        if not self._owns_the_same():
            for table, before in self._entries:
                if not _same(table, before):
                    return self._exchanged(table, before)
        if any(self._empty):
            return f"{self._where(next(filter(None, self._empty)))} were added or taken away"
        if any(self._hooked) or any(self._hooks_then):
            for table, hooks in zip(self._hooked, self._hooks_then, strict=True):
                if _foreign(table) != hooks:
                    return f"{self._where(table)} were put on or taken off"
        if changed := self._surroundings.change():
            return f"{changed} is another now; set it back"
        changed = difference(self._ambient)
        return changed and f"{changed}; set it back"

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelState:
        """Return the same state, to be told which model the copy is about."""
        return copy.copy(self)

    def follow(self, model: nn.Module, others: Iterable[Any]) -> None:
        """Compare a copy of the model from now on, unless the model has changed already."""
        if not self.change():
            self._read(model, others)

    def settle(self) -> None:
        """Take what the model has set itself, in a call since, as no part of its state."""
        self.moving = tuple(dict.fromkeys((*self.moving, *self._surroundings.settle())))

    def _owns_the_same(self) -> bool:
        """Return whether all tables have the very same values in the same order, by loops in C alone."""
        if [*map(len, self._owning)] != self._sizes or [*chain.from_iterable(self._owning)] != self._keys:
            return False
        return all(map(is_, chain.from_iterable(map(dict.values, self._owning)), self._values))

    def _exchanged(self, table: dict[str, Any], before: dict[str, Any]) -> str:
        if len(table) != len(before):
            return f"{self._where(table)} were added or taken away"
        name = next(name for name, value in before.items() if table.get(name, self) is not value)
        return f"{self._where(table)} were exchanged ({name})"

    def where(self, tensor: Any) -> str:
        """Return the name of a tensor of the model, in words."""
        places = (
            f"{name!r} among the {self._where(table)}"
            for table, entries in self._entries
            for name, value in entries.items()
            if value is tensor
        )
        return next(places, f"a tensor of shape {list(tensor.shape)}")

    @staticmethod
    def key(model: nn.Module) -> State:
        """Return the state as a key for look-ups, which is valid while the model's modules and tensors live.

        Hooks of a registration do not count.
        """

        def owned(module: nn.Module) -> Iterator[Any]:
            for kind, table in tables_of(module):
                yield None
                if "hooks" not in kind:
                    yield from table
                yield from (id(value) for value in table.values() if not _is_ours(value))

        modules = model.modules()
        each = ((id(one), one.training, id(vars(one).get("forward")), *owned(one)) for one in modules)
        return (*ambient(), *each)

    def _mode(self, training: list[bool]) -> str:
        pairs = zip(training, self._training, strict=True)
        place = next(place for place, (now, was) in enumerate(pairs) if now is not was)
        now, then = ("train", "eval") if training[place] else ("eval", "train")
        return f"{self._names[place]} is in {now} mode now; call model.{then}() first"

    def _where(self, table: Any) -> str:
        place, kind = self._owners[id(table)]
        return f"{kind} of {self._names[place]}"


def _same(table: dict[str, Any], before: dict[str, Any]) -> bool:
    """Return whether a table has the very same values under the same names, in whatever order."""
    return len(table) == len(before) and all(table.get(name, table) is value for name, value in before.items())


def _is_ours(hook: Any) -> bool:
    """Return whether this is a hook of a registration, which has a session, or of its canonizers."""
    return hasattr(hook, "session") or getattr(type(hook), "stands_in", False)


def _foreign(table: dict[Any, Any]) -> list[Any]:
    return [hook for hook in table.values() if not _is_ours(hook)]
