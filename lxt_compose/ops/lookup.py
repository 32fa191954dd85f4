"""Finding the operation of a callable: by its owner, and its name without prefixes, underscores and dunders."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from .aliases import ALIASES, PYTHON_OPERATORS
from .families import Op, build_ops, parse
from .registry import is_autograd_function, registered

# The modules that hold torch's functions, and how they are written. Functions elsewhere are not torch's.
_PLACES = {
    "torch": "torch",
    "torch.functional": "torch",
    "torch.nn.functional": "F",
    "torch._C._nn": "F",
    "torch._C._special": "torch.special",
    "torch._C._linalg": "torch.linalg",
    "torch._C._fft": "torch.fft",
    "torch._C._sparse": "torch.sparse",
    "torch.sparse": "torch.sparse",
    "torch._lobpcg": "torch",
    "torch._lowrank": "torch",
    "torch._tensor": "Tensor",
    "torch._ops.aten": "torch.ops.aten",
    "_operator": "operator",
    "builtins": "builtins",
}
_PREFIXES = ("special_", "linalg_", "fft_", "_sparse_", "unsafe_", "native_", "_")
_SUFFIXES = ("_copy", "_")
_GETTERS = frozenset("T mT H mH real imag".split())
_IN_PLACE_DUNDERS = frozenset(
    f"__i{name}__" for name in "add sub mul div truediv floordiv mod pow and or xor lshift rshift".split()
) | {"__setitem__", "__delitem__"}
_IN_PLACE_OPERATORS = frozenset(name.strip("_") for name in _IN_PLACE_DUNDERS)
_FLAGS_ONLY = frozenset({"requires_grad_", "detach_", "share_memory_"})  # these change no value and no shape

_OPS = build_ops()
_NAMES = _OPS | {alias: _OPS[name] for name, aliases in parse(ALIASES).items() for alias in aliases}
_PYTHON = {alias: _OPS[name] for name, aliases in parse(PYTHON_OPERATORS).items() for alias in aliases}
# Functions of the same name that do something else, or take their arguments in another order.
_SPECIAL = {("F", "unfold"): _OPS["im2col"]} | {
    (place, name): _OPS[f"native_{name}"]
    for place in ("torch", "torch.ops.aten")
    for name in ("batch_norm", "instance_norm")
}


def _getter(func: Callable[..., Any]) -> str | None:
    """Return the name of the attribute that `func` reads or writes: `torch.Tensor.T.__get__` -> "T"."""
    if getattr(func, "__name__", "") not in ("__get__", "__set__", "__delete__"):
        return None
    return str(getattr(func.__self__, "__name__", "?"))  # type: ignore[attr-defined]


def _place_and_name(func: Callable[..., Any]) -> tuple[str, str] | None:
    """Return the module of torch or Python that holds a function, as written, and its name there; None for others."""
    name = getattr(func, "__name__", None)
    if isinstance(func, type) or not isinstance(name, str):
        return None
    owner = getattr(func, "__objclass__", None)
    if owner is not None:  # methods written in C have no module
        return ("Tensor", name) if isinstance(owner, type) and issubclass(torch.Tensor, owner) else None
    place = _PLACES.get(getattr(func, "__module__", None) or "")
    if place == "builtins" and func not in (abs, pow):
        return None
    if place == "torch.ops.aten":
        name = name.split(".")[0]  # an overload is called "add.Tensor"
    return None if place is None else (place, name)


def _is_dunder(name: str) -> bool:
    return len(name) > 4 and name.startswith("__") and name.endswith("__")


def op_named(name: str) -> Op | None:
    """Return the operation that torch knows by this plain name ("add_", "special_expit", "as_strided"), or None."""
    return _look_up(name)


def _look_up(name: str) -> Op | None:
    """Look a name up, without prefixes and underscores until the table has it."""
    if name in _NAMES:
        return _NAMES[name]
    plainer = [name.removeprefix(prefix) for prefix in _PREFIXES] + [name.removesuffix(suffix) for suffix in _SUFFIXES]
    return next((op for shorter in plainer if shorter != name and (op := _look_up(shorter))), None)


def op_of(func: Callable[..., Any]) -> Op | None:
    """Return the operation that `func` is, or None.

    `func` is whatever a TorchFunctionMode receives or a user names: a function of torch, a method or an operator of
    `torch.Tensor`, a function of `operator`, an overload of `torch.ops.aten`, or the getter of an attribute
    (`Tensor.T.__get__`). None says that it cannot carry relevance (it reads metadata, compares, returns integers, makes
    new tensors, detaches) or that it is not a function of torch: a custom operator gives None although its output may
    require grad. Some things depend on the call: div with a rounding_mode is piecewise constant, and batch_norm and the
    dropouts do something else in train mode.
    """
    if (own := registered(func)) is not None:
        return own
    attribute = _getter(func)
    if attribute is not None:
        return _OPS[attribute] if attribute in _GETTERS and func.__name__ == "__get__" else None
    place_and_name = _place_and_name(func)
    if place_and_name is None:
        return None
    place, name = place_and_name
    if place in ("operator", "builtins") or _is_dunder(name):
        return _PYTHON.get(name.strip("_"))
    return _SPECIAL.get((place, name)) or _look_up(name)


_FORWARD = {"rsub": "sub", "rdiv": "div", "rpow": "pow", "rremainder": "remainder", "rfloor_divide": "floor_divide"}


def is_reversed(op: Op) -> bool:
    """Return whether the first two operands stand in reverse order, as in ``rsub``."""
    return op.name in _FORWARD


def forward_name(op: Op) -> str:
    """Return the name of an operation, or of the one that it is the reverse of."""
    return _FORWARD.get(op.name, op.name)


def same_op(a: Op, b: Op) -> bool:
    """Return whether both match the same key: a reversed operator matches that of its forward form."""
    return _FORWARD.get(a.name, a.name) == _FORWARD.get(b.name, b.name)


@lru_cache(maxsize=4096)
def _position(func: Callable[..., Any], name: str) -> int | None:
    """Return the position of an argument of a Python function; in functions of C these are keywords."""
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except (TypeError, ValueError):
        return None
    for position, parameter in enumerate(parameters):
        if parameter.name == name and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            return position
    return None


@lru_cache(maxsize=4096)
def _positions(func: Callable[..., Any]) -> tuple[tuple[str, int], ...]:
    """Return the positions of the arguments by which a Python function changes a tensor in place."""
    places = ((name, _position(func, name)) for name in ("inplace", "out"))
    return tuple((name, place) for name, place in places if place is not None)


@lru_cache(maxsize=4096)
def _mutates_by_name(func: Callable[..., Any]) -> bool:
    attribute = _getter(func)
    if attribute is not None:
        return func.__name__ == "__set__" and attribute in ("data", "real", "imag")
    name = str(getattr(func, "__name__", "")).split(".")[0]
    if getattr(func, "__module__", None) == "_operator":
        return name in _IN_PLACE_OPERATORS
    if _is_dunder(name):
        return name in _IN_PLACE_DUNDERS
    return name.endswith("_") and name not in _FLAGS_ONLY


def can_mutate(func: Callable[..., Any]) -> bool:
    """Return whether a call without keyword arguments may change a tensor in place.

    Other functions only do with `inplace=` or `out=`.
    """
    return _mutates_by_name(func) or bool(_positions(func))


def mutates(func: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """Return whether this call changes its first tensor argument, or the tensor given as `out`, in place.

    By name (`relu_`, `__iadd__`, `__setitem__`), or by `inplace=True` or `out=`, given by keyword or by position.
    """
    if _mutates_by_name(func):
        return True
    given = {name: args[place] for name, place in _positions(func) if place < len(args)}
    given = {**given, **kwargs} if kwargs else given
    return bool(given.get("inplace")) or given.get("out") is not None


def plain_name(func: Callable[..., Any]) -> str | None:
    """Return the name of an operation, also of one that carries no relevance ("eq", "one_hot", "__and__"), or None.

    None for getters of attributes, and for functions that are not torch's.
    """
    op = op_of(func)
    if op is not None:
        return op.name
    place_and_name = None if _getter(func) is not None else _place_and_name(func)
    if place_and_name is None:
        return None
    name = place_and_name[1]
    return name if _is_dunder(name) else name.strip("_")


def display_name(func: Callable[..., Any]) -> str:
    """Return `func` as a user would write it: "torch.add", "F.gelu", "Tensor.add_", "Tensor.T", "operator.add"."""
    attribute = _getter(func)
    if attribute is not None:
        return f"Tensor.{attribute}"
    func = getattr(func, "autograd_function", func)
    if is_autograd_function(func):
        return f"{func.__name__}.apply"
    place_and_name = _place_and_name(func)
    if place_and_name is None:
        name = str(getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or type(func).__qualname__)
        module = getattr(func, "__module__", None)
        if str(getattr(type(func), "__module__", "")) == "torch._ops":  # an operator of an extension
            return f"torch.ops.{func}".removesuffix(".default")
        return f"{module}.{name}" if isinstance(module, str) and module != "builtins" else name
    place, name = place_and_name
    if place == "builtins":
        return name
    if place.startswith("torch."):  # torch.special.expit has the name special_expit
        name = name.removeprefix("_").removeprefix(place.rpartition(".")[2] + "_")
    public = {"_threshold": "threshold", "log_sigmoid": "logsigmoid"}.get(name, name)
    if place == "F" and not hasattr(torch.nn.functional, public):
        return f"torch._C._nn.{name}"
    return f"{place}.{public}"
