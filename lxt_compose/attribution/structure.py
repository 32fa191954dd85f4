"""The arguments of a model in any structure: names for the tensors in them, and copies for each pass."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..autograd.trees import PLAIN, contents, map_tensors, tensors_in
from ..errors import AttributionError
from ..torch_internals import pre_hooks_of

_CACHE = re.compile(r"cache|past_key|memory|state")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def read_arguments(model: nn.Module, inputs: Any) -> Arguments:
    """Return the arguments of the model's call.

    Arrays of numpy become tensors, floats those of the model's dtype.

    Args:
        model: the model.
        inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments. A mapping or a list may also be the
            one argument of a model that takes no keywords of such names, or no such list of arguments.

    Raises:
        TypeError: it is something else.
        AttributionError: the model has no argument of a name.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    if _is_array(inputs):
        return (_tensors(inputs, dtype),), {}
    if isinstance(inputs, tuple):
        return tuple(_tensors(value, dtype) for value in inputs), {}
    if isinstance(inputs, Mapping):
        whole = _tensors(dict(inputs), dtype)
        if _takes(model, (), whole):
            return (), whole
        if _takes(model, (whole,), {}):
            return (whole,), {}
        _check_names(model, whole)
        return (), whole
    several = _tensors(inputs, dtype) if isinstance(inputs, list) else []
    if _holds_tensors(several):
        return (tuple(several), {}) if len(several) > 1 and _takes(model, tuple(several), {}) else ((several,), {})
    if contents(inputs) is not None and _holds_tensors(inputs):
        return (inputs,), {}
    raise TypeError(
        f"inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments (what a tokenizer returns), "
        f"with tensors, or lists, dictionaries and dataclasses of them; got {type(inputs).__name__}"
    )


def distinct(arguments: Arguments) -> Arguments:
    """Return the arguments, with two tensors for one that is given twice, so that each has its own relevance."""
    met: set[int] = set()

    def another(x: Tensor) -> Tensor:
        if id(x) in met:
            return x.detach()
        met.add(id(x))
        return x

    found: Arguments = map_tensors(another, arguments)
    return found


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "__array__") and hasattr(value, "shape")


def _readable(array: Any) -> Any:
    """Return an array as torch can read it: one that was flipped, or has another order of bytes, as a copy."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.copy() if any(stride < 0 for stride in array.strides) else array


def _tensors(tree: Any, dtype: torch.dtype) -> Any:
    """Return the arguments with tensors for arrays of numpy, and plain dictionaries for other mappings."""
    if _is_array(tree):
        found = torch.as_tensor(_readable(tree))
        return found.to(dtype) if found.is_floating_point() else found
    if isinstance(tree, PackedSequence):
        raise TypeError(
            "a PackedSequence has no dimension that counts samples; give a model that packs itself the padded tensor "
            "[samples, time, features]"
        )
    if type(tree) in (list, tuple):
        return type(tree)(_tensors(value, dtype) for value in tree)
    if isinstance(tree, Mapping) and (type(tree) is dict or not isinstance(tree, dict)):
        return {key: _tensors(value, dtype) for key, value in tree.items()}
    return tree


def _takes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def takes_any(model: nn.Module) -> bool:
    """Return whether the model takes arguments of any name, at least by a hook that may change their names."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds or bool(list(pre_hooks_of(model)))


def _check_names(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Raise for an argument that the model does not have.

    Raises:
        AttributionError: there is one.
    """
    known = inspect.signature(model.forward).parameters
    for name in given:
        if name not in known and not takes_any(model):
            raise AttributionError(f"{type(model).__name__}: {no_argument(model, name)}")


def no_argument(model: nn.Module, name: Any) -> str:
    """Return that the model has no argument of this name, and the closest one that it has."""
    known = list(inspect.signature(model.forward).parameters)
    close = get_close_matches(str(name), known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
    return f"forward() has no argument {name!r}; {meant}"


def names_of_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of the arguments by names: ``x``, ``xs[0]``, ``batch.input_ids``.

    Of a model that takes one dictionary, the names are those in it.
    """
    if len(args) == 1 and not kwargs and isinstance(args[0], dict):
        return dict(_named("", args[0]))
    return {
        name: value
        for whole, tree in {**_positional(model, args), **kwargs}.items()
        for name, value in _named(whole, tree)
    }


def _named(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    inside = contents(tree)
    if inside is not None and (type(tree) is dict or _holds_tensors(tree)):
        for key, value in inside.items():
            yield from _named(f"{name}.{key}" if name else key, value)
    elif isinstance(tree, (list, tuple)) and any(_holds_tensors(value) for value in tree):
        for place, value in enumerate(tree):
            yield from _named(f"{name or 'input'}[{place}]", value)
    else:
        yield name, tree


def held_constant(named: Mapping[str, Any], carried: Iterable[Tensor]) -> tuple[str, ...]:
    """Return remarks on numbers among the inputs that are constants, which users may not expect.

    Those are floating point tensors named like biases, labels, lengths and caches, and those in objects of unknown
    classes. Masks and caches in objects are not mentioned.

    Args:
        named: the contents of the arguments by name.
        carried: the tensors that relevance is wanted of.
    """
    inputs, said = set(map(id, carried)), []
    for name, value in named.items():
        if isinstance(value, Tensor):
            if value.is_floating_point() and id(value) not in inputs and "mask" not in name:
                said.append(
                    f"{name} is held constant: by its name it is a bias, a label, a cache, or tells of lengths or edges"
                )
        elif type(value) not in PLAIN and contents(value) is None and not _CACHE.search(name):
            inside = vars(value).values() if hasattr(value, "__dict__") and not callable(value) else ()
            if any(isinstance(x, Tensor) and x.is_floating_point() for x in inside):
                kind = type(value).__name__
                said.append(f"tensors in {name} are held constant; register_container({kind}, vars) makes them inputs")
    return tuple(said)


def advice(named: dict[str, Any]) -> str:
    """Return advice for inputs that hold nothing that could carry relevance."""
    values = named.values()
    if any(isinstance(x, Tensor) and x.is_complex() for x in values):
        return "; give complex numbers as their parts, torch.view_as_real(x)"
    if any(isinstance(x, (list, str)) for x in values):
        return "; let the tokenizer make tensors: return_tensors='pt'"
    kinds = [type(x).__name__ for x in values if not isinstance(x, Tensor) and type(x) not in PLAIN]
    return f"; register_container({kinds[0]}, ...) tells what is in a container of your own" if kinds else ""


def _holds_tensors(tree: Any) -> bool:
    return next(tensors_in(tree), None) is not None


def _positional(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments by the names that they have in the model's forward."""
    try:
        names = list(inspect.signature(model.forward).bind_partial(*args).arguments.items())
    except (TypeError, ValueError):  # too many arguments, or no signature: the model itself will raise
        names = []
    found: dict[str, Any] = {}
    for name, value in names:
        if value is not None and isinstance(value, tuple) and all(any(v is a for a in args) for v in value):
            found.update({f"{name}{index}": v for index, v in enumerate(value)})  # *inputs
        else:
            found[name] = value
    return found or {f"input{index}": value for index, value in enumerate(args)}


def fresh(tree: Any, exchange: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    """Return a copy for one forward pass, since a model may fill a given cache or list. Tensors are exchanged.

    Raises:
        AttributionError: an object cannot be copied.
    """
    if isinstance(tree, Tensor):
        return exchange(tree)
    if type(tree) in PLAIN or isinstance(tree, (type, nn.Module)) or callable(tree):
        return tree
    if isinstance(tree, tuple):
        items = [fresh(value, exchange) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, list):
        return [fresh(value, exchange) for value in tree]
    if isinstance(tree, dict):
        found = copy.copy(tree)
        for key, value in tree.items():
            found[key] = fresh(value, exchange)
        return found
    try:
        return copy.deepcopy(tree, {id(x): exchange(x) for x in tensors_in(tree)})
    except Exception as error:
        raise AttributionError(
            f"an input of type {type(tree).__name__} may be changed by the model, so each pass needs a copy of it, but "
            f"it cannot be copied ({error}); make it under torch.no_grad(), or leave it out"
        ) from error
