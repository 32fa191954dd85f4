"""Keys of a composite, and the modules that they match."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import MatchError
from .lxt.rules import rule_of
from .ops import Op, display_name, function_of_apply, is_autograd_function, op_of, same_op
from .rules import Rule

Predicate = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Where:
    """A key made of a predicate on a module's dotted name and the module; see :func:`where`."""

    predicate: Predicate

    def __str__(self) -> str:
        return f"where({getattr(self.predicate, '__name__', repr(self.predicate))})"

    __repr__ = __str__


def where(predicate: Predicate) -> Where:
    """Return a key that matches the modules for which ``predicate(name, module)`` is true.

    Args:
        predicate: a function of the dotted name ("" for the model itself) and the module.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(predicate):
        raise TypeError(f"where() takes a function of (name, module), got {predicate!r}")
    return Where(predicate)


@dataclass(frozen=True)
class FirstLayer:
    """The kind of the key :data:`first_layer`."""

    def __str__(self) -> str:
        return "first_layer"


first_layer = FirstLayer()
"""A key: the first layer with weights (linear or convolution) that relevance reaches from the input in a forward pass.

Not the first that was registered: it is found anew in each forward pass. Only rules for such layers fit (ZBox, Flat,
WSquare, Gamma, ...).
"""


@dataclass(frozen=True)
class Assignment:
    """One entry of a composite: a key and its rule, or a function in place of one."""

    key: Any
    rule: Rule | None
    replacement: Callable[..., Any] | None = None
    op: Op | None = None
    """The operation, where the key is a function."""

    @property
    def of_function(self) -> bool:
        """Whether the key is a function rather than something that matches modules."""
        return not isinstance(self.key, (str, Where, FirstLayer, tuple))

    @property
    def of_module(self) -> bool:
        """Whether the key matches modules when the composite is registered."""
        return isinstance(self.key, (str, Where, tuple))

    @property
    def shown(self) -> Rule | str:
        """The rule, or the name of the function that stands in place of one."""
        return self.rule or ("" if self.replacement is None else display_name(self.replacement))

    def __str__(self) -> str:
        return _describe(self.key)

    @property
    def own_code(self) -> Iterator[Any]:
        """The functions and rules in it that are not this library's, whose behavior may change."""
        if isinstance(self.key, Where):
            yield self.key.predicate
        if self.replacement is not None:
            yield self.replacement
        if self.rule is not None and type(self.rule).__module__.partition(".")[0] != __name__.partition(".")[0]:
            yield self.rule

    def matches(self, names: tuple[str, ...], module: nn.Module) -> bool:
        """Return whether the key matches this module under one of its dotted names."""
        if isinstance(self.key, tuple):
            return isinstance(module, self.key)
        if isinstance(self.key, str):
            return any(fnmatch.fnmatchcase(name, self.key) for name in names)
        if isinstance(self.key, Where):
            return any(bool(self.key.predicate(name, module)) for name in names)
        return False

    def serves(self, function: Callable[..., Any], op: Op | None) -> bool:
        """Return whether the key is this function, or another name of the same operation."""
        if not self.of_function:
            return False
        if self.key in (
            function,
            getattr(function, "overloadpacket", None),
            getattr(function, "autograd_function", None),
        ):
            return True
        return op is not None and self.op is not None and same_op(self.op, op)


def _describe(key: Any) -> str:
    if isinstance(key, str):
        return repr(key)
    if isinstance(key, tuple):
        return ", ".join(kind.__name__ for kind in key)
    return str(key) if isinstance(key, (Where, FirstLayer)) else display_name(key)


def assignments(rules: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> tuple[Assignment, ...]:
    """Check keys and values, and return them as assignments.

    Raises:
        TypeError: a key or a value is of a wrong kind.
    """
    pairs = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
    result = []
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"a composite takes a mapping or pairs (key, rule), got the entry {pair!r}")
        result.append(_assignment(*pair))
    return tuple(result)


def _assignment(key: Any, value: Any) -> Assignment:
    key = _checked_key(key)
    of_function = not isinstance(key, (str, Where, FirstLayer, tuple))
    rule, replacement = _checked_value(key, value, of_function)
    return Assignment(key, rule, replacement, op_of(key) if of_function else None)


def _checked_key(key: Any) -> Any:
    key = function_of_apply(getattr(key, "_opoverload", key))  # an operator made with torch.library.custom_op
    if isinstance(key, (str, Where, FirstLayer)):
        return key
    kinds = key if isinstance(key, tuple) else (key,)
    if kinds and all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds):
        return kinds
    if is_autograd_function(key):
        return key
    if callable(key) and not isinstance(key, (type, nn.Module)):
        if op_of(key) is not None or _is_torch_function(key):
            return key
        raise TypeError(
            f"the key {display_name(key)} is not a torch function that can carry relevance; keys are module classes, "
            f"names, torch functions, first_layer and where(lambda name, module: ...)"
        )
    raise TypeError(
        f"a key must be a module class or a tuple of them, a name or glob, a torch function, or where(...), got "
        f"{key!r} of type {type(key).__name__}"
    )


def _is_torch_function(key: Any) -> bool:
    """Return whether torch dispatches a function that no family has: an operator of an extension library."""
    return (getattr(type(key), "__module__", "") or "").startswith("torch._ops")


def _checked_value(key: Any, value: Any, of_function: bool) -> tuple[Rule | None, Callable[..., Any] | None]:
    value = rule_of(value)
    if isinstance(value, Rule):
        return value, None
    if inspect.isclass(value) and issubclass(value, Rule):
        return value(), None
    if of_function and callable(value) and not inspect.isclass(value):
        return None, value
    allowed = "a rule, a rule class, or a function with the same signature" if of_function else "a rule or a rule class"
    given = f"{value!r} of type {type(value).__name__}"
    raise TypeError(f"the value for the key {_describe(key)} must be {allowed}, got {given}")


@dataclass(frozen=True)
class Binding:
    """One module, with its dotted names, matched to one rule by one key."""

    names: tuple[str, ...]
    module: nn.Module
    assignment: Assignment


def names_of(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Return each module of the model with all its dotted names: a module that is mounted twice has two."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(mounted) for module, mounted in names.items()}


def match(
    entries: tuple[Assignment, ...], names: Mapping[nn.Module, tuple[str, ...]], model: nn.Module
) -> tuple[dict[nn.Module, Binding], tuple[str, ...]]:
    """Return the bindings, and the keys that match no module; the first key in the order written wins.

    Raises:
        MatchError: a name matches no module; the error names the closest.
    """
    bindings: dict[nn.Module, Binding] = {}
    unmatched = []
    for entry in entries:
        if not entry.of_module:
            continue
        # an exact name goes before a glob
        matched = [(module, mounted) for module, mounted in names.items() if entry.key in mounted]
        if not matched:
            matched = [(module, mounted) for module, mounted in names.items() if entry.matches(mounted, module)]
        if not matched and isinstance(entry.key, str):
            raise MatchError(_no_such_name(entry.key, names, model))
        if not matched:
            unmatched.append(str(entry))
        for module, mounted in matched:
            bindings.setdefault(module, Binding(mounted, module, entry))
    return bindings, tuple(unmatched)


def _no_such_name(key: str, names: Mapping[nn.Module, tuple[str, ...]], model: nn.Module) -> str:
    known = [name for mounted in names.values() for name in mounted if name]
    closest = difflib.get_close_matches(key, known, n=3, cutoff=0.0)
    hint = f"; closest: {', '.join(map(repr, closest))}" if closest else "; it has no submodules"
    return f"no module matches {key!r} in {type(model).__name__}{hint}"
