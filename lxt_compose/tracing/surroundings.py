"""The Python values that a graph was written down with: attributes of modules, globals, closures, and what they hold.

A graph has them as constants, or has other operations for others, so it is valid as long as they are what they were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..torch_internals.code_reads import cells_of, functions_in, is_fixed, is_opaque, looked_up, names_in

_MOST = 20_000
"""The most values that are compared."""
_LARGE = 1024
"""The most entries of a container whose entries are compared; a larger one is the same and has as many."""
_OWN = frozenset({*vars(nn.Module()), "forward"})
"""The attributes that every module has; :class:`ModelState` compares them."""
_FLAT: tuple[type, ...] = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_SAID = (bool, int, float, str)
_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__")

Read = Callable[[Any], Any]


class Surroundings:
    """The Python values that the code of a model may read, at one time, to be compared with a later one.

    They are the attributes of its modules that are no modules, parameters, buffers or hooks; the globals, closures,
    defaults and class attributes that its functions name; and what is inside of these: containers, objects with
    attributes, arrays, functions. What belongs to torch, to Python's own library and to this one is taken as fixed, and
    attributes that the model's own code sets while it runs are left out. The values of tensors do not count.

    Args:
        model: the model.
        others: functions and objects beside it, such as a target function.
    """

    def __init__(self, model: nn.Module, others: Iterable[Any] = ()) -> None:
        self._places: list[tuple[Read, Any, Any, str]] = []
        """Single values: a function that reads one, what it is called with, what it gave, and words for it."""
        self._containers: list[tuple[Any, int, str]] = []
        """Containers, how many entries they had, and words for them."""
        self._set: list[tuple[Read, str, Any, str]] = []
        """Attributes that the model's own code sets: what reads one, its name, its value, and words for it."""
        self._met: dict[Any, Any] = {}
        self._written: dict[type, set[str]] = {}
        self._followed: set[int] = set()
        """The files of the model's classes, whose functions are followed if they are of an installed package too."""
        for name, module in model.named_modules():
            self._module(module, f"{name!r} ({type(module).__name__})" if name else type(module).__name__)
        for other in others:
            self._object(other, f"what {getattr(other, '__name__', type(other).__name__)} holds")
        self._met.clear()
        self._prepare()
        self.settle()

    def _prepare(self) -> None:
        self._pairs = [(read, key) for read, key, _, _ in self._places]
        self._values = [value for _, _, value, _ in self._places]
        self._sized, self._sizes = [each for each, _, _ in self._containers], [size for _, size, _ in self._containers]

    def change(self) -> str:
        """Return what has changed, in words; empty if nothing has."""
        if [*map(len, self._sized)] == self._sizes and all(map(is_, [f(key) for f, key in self._pairs], self._values)):
            return ""
        _, _, said = next(self._changed(), (None, None, ""))
        return said

    def settle(self) -> list[str]:
        """Leave out what has changed by the model's own doing; return which of it are numbers or text."""
        changed = list(self._changed())
        gone = {id(entry) for entry, _, _ in changed}
        moving = [said for _, value, said in changed if type(value) in _SAID]
        for read, name, before, said in self._set:
            if type(before) in _SAID and type(now := read(name)) in _SAID and now != before:
                moving.append(said)
        self._places = [place for place in self._places if id(place) not in gone]
        self._containers = [each for each in self._containers if id(each) not in gone]
        self._prepare()
        return moving

    def _changed(self) -> Iterator[tuple[Any, Any, str]]:
        """Yield what has changed: its entry, what is there now, and words for it."""
        short = set()
        for each in self._containers:
            container, size, said = each
            if len(container) != size:
                short.add(id(container))
                yield each, container, said
        for number, place in enumerate(self._places):
            read, key, before, said = place
            if id(getattr(read, "__self__", None)) in short and isinstance(key, int):
                continue  # there may be no such entry of a list any more
            now = read(key)
            if now is not before and not _alike(now, before):
                yield place, now, said
            self._values[number] = now if _alike(now, before) else before  # for a comparison by identity the next time

    # ---- what there is -----------------------------------------------------------------------------------------------

    def _module(self, module: nn.Module, said: str) -> None:
        self._met[id(module)] = module
        kind, own = type(module), vars(module)
        if kind not in self._written:
            self._written[kind] = written = set[str]()
            for owner in kind.__mro__:
                if "forward" in vars(owner) and not is_opaque(owner):
                    self._followed.add(id(sys.modules.get(owner.__module__)))
                    self._single(vars(owner).get, "forward", f"'forward' of {owner.__name__}", kind, written)
        hidden = own.keys() & {*own["_parameters"], *own["_buffers"]}  # by what canonizers put in their place
        for name in own.keys() - _OWN - hidden:
            if name in self._written[kind]:
                self._set.append((own.get, name, own[name], f"attribute {name!r} of {said}"))
            else:
                self._single(own.get, name, f"attribute {name!r} of {said}")
        if not self._written[kind]:
            self._containers.append((own, len(own) - len(hidden), f"an attribute of {said}"))

    def _single(
        self, read: Read, key: Any, said: str, kind: type | None = None, written: set[str] | None = None
    ) -> None:
        """Note one value, and what it holds."""
        if len(self._places) >= _MOST:
            return
        value = read(key)
        if getattr(type(value), "stands_in", False):
            value = value.original
        if isinstance(value, nn.Module):  # the model among them would be kept alive
            self._places.append((partial(_is_still, read, ref(value)), key, True, said))
        else:
            self._places.append((read, key, value, said))
        self._object(value, said, kind, written)

    def _object(self, value: Any, said: str, kind: type | None = None, written: set[str] | None = None) -> None:
        """Note what a value holds."""
        if isinstance(value, (*_FLAT, Tensor, ModuleType)) or id(value) in self._met:
            return
        self._met[id(value)] = value
        if isinstance(value, nn.Module):
            self._module(value, said)
        elif isinstance(value, tuple):
            for each in value:
                self._object(each, said)
        elif isinstance(value, (dict, list)):
            self._container(value, said)
        elif isinstance(value, (set, frozenset)):
            self._places.append((_frozen, value, frozenset(value), said))
        elif isinstance(value, MethodType):
            self._object(value.__self__, said)
            self._object(value.__func__, said, type(value.__self__))
        elif isinstance(value, partial):
            for part in (value.func, value.args, value.keywords):
                self._object(part, said)
        elif hasattr(value, "tobytes"):
            self._places.append((_bytes, value, value.tobytes(), said))
        elif isinstance(value, type):
            self._class(value, said)
        else:
            self._functions(value, said, kind, set() if written is None else written)

    def _container(self, value: Any, said: str) -> None:
        self._containers.append((value, len(value), said))
        if len(value) <= _LARGE:
            read = _reader(value)
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                self._single(read, key, said)

    def _class(self, kind: type, said: str) -> None:
        """Note what a class that is used as a namespace holds."""
        if not is_fixed(kind) and not issubclass(kind, nn.Module):
            for name in [name for name in vars(kind) if not name.startswith("__")]:
                self._single(vars(kind).get, name, f"{name!r} of {kind.__name__}", kind)

    def _functions(self, value: Any, said: str, kind: type | None, written: set[str]) -> None:
        """Note what a function, or what stands for one, or another object holds."""
        found = list(functions_in(value))
        for function in found:
            self._function(function, said, kind, written)
        own = getattr(value, "__dict__", None)
        if not found and not is_opaque(type(value)) and isinstance(own, dict):
            self._container(own, said)
            if callable(value):
                self._object(MethodType(type(value).__call__, value), said)

    def _function(self, function: FunctionType, said: str, kind: type | None, written: set[str]) -> None:
        known = id(function), kind
        own = id(sys.modules.get(function.__module__)) in self._followed
        if known in self._met or (is_fixed(function) and not own):
            return
        self._met[known] = function
        names = names_in(function)
        written |= names.stored
        for name in _FUNCTIONS:
            if getattr(function, name) is not None:
                self._single(partial(_of_function, ref(function)), name, said)
        for place, _ in enumerate(cells_of(function)):
            self._single(partial(_in_closure, ref(function)), place, said)
        for namespace, name in looked_up(function, kind):
            if (id(namespace), name) not in self._met:
                self._met[id(namespace), name] = namespace
                self._single(namespace.get, name, f"{name!r}, which {function.__qualname__} reads", kind, written)


def _reader(container: Any) -> Read:
    """Return a function that reads an entry as it stands, also of a class that looks entries up in its own way."""
    base, name = (dict, "get") if isinstance(container, dict) else (type(container), "__getitem__")
    if getattr(type(container), name) is getattr(base, name):
        reader: Read = getattr(container, name)
        return reader
    return partial(getattr(base, name), container)


def _of_function(function: Any, name: str) -> Any:
    alive = function()
    return None if alive is None else getattr(alive, name)


def _in_closure(function: Any, place: int) -> Any:
    alive = function()
    return None if alive is None else cells_of(alive)[place]


def _is_still(read: Read, module: Any, key: Any) -> bool:
    return read(key) is module()


def _frozen(value: Any) -> Any:
    return frozenset(value)


def _bytes(value: Any) -> bytes:
    return bytes(value.tobytes())


def _alike(value: Any, before: Any) -> bool:
    if value is before:
        return True
    if type(value) is not type(before):
        return False
    if isinstance(value, tuple):
        return len(value) == len(before) and all(map(_alike, value, before))
    return isinstance(value, (*_FLAT, frozenset)) and bool(value == before)
