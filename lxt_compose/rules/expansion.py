"""Expansion of elementwise functions without a closed form, at 0 or at another point where they are finite.

The function is evaluated there once, in float64 on the CPU, by torch's own kernel or by a copy of the module, so that
neither the model's state nor its values change.
"""

import copy
import math
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd.trees import map_tensors, tensors_in
from ..torch_internals import clear_hooks, modes_off
from ..torch_internals.readings import note_readings, values_of
from ..torch_internals.traces import example_shape, is_traced

POINTS = (0.0, 1.0, 0.5)
"""Points of expansion: the first at which f is finite (for logarithms that is 1, for logit 1/2)."""
_STEP = 1e-5


class Expansion(NamedTuple):
    """f(a) and f'(a) at a point a: numbers, or tensors where f has parameters for each channel."""

    at: float
    value: Any
    slope: Any

    @property
    def has_bias(self) -> bool:
        """Whether f is no line through 0 at its point: f(a) is not 0, or a is not."""
        return self.at != 0 or isinstance(self.value, Tensor) or self.value != 0


def _expand(f: Callable[[Tensor], Tensor], like: Tensor) -> Expansion | None:
    """Expand f at the first of `POINTS` at which it is finite; None if it has no finite slope there."""
    with torch.no_grad(), modes_off():
        for at in POINTS:
            points = [torch.full_like(like, at + step) for step in (0, _STEP / 100, _STEP, 2 * _STEP)]
            value, nearest, near, far = (f(point).detach() for point in points)
            slope = (4 * near - far - 3 * value) / (2 * _STEP)
            if not bool((value.isfinite() & slope.isfinite()).all()):
                continue
            nearest = (nearest - value) / (_STEP / 100)
            smooth = bool(((nearest - slope).abs() <= 1e-3 + 1e-2 * slope.abs()).all())
            # A root has no finite slope: sqrt(|x|) at 0, acosh at 1. If that is the bias's, a bounded one is taken.
            return Expansion(at, value, slope) if smooth or (at == 0 and bool(value.any())) else None
    return None


def _simplified(expansion: Expansion | None, device: torch.device, dtype: torch.dtype) -> Expansion | None:
    """Return the expansion with numbers in place of tensors whose elements are all equal."""
    if expansion is None or expansion.value.numel() == 0:
        return None
    at, value, slope = expansion
    if bool((value == value.flatten()[0]).all()) and torch.allclose(slope, slope.flatten()[0], 1e-6, 1e-6):
        return Expansion(at, float(value.flatten()[0]), float(slope.flatten()[0]))
    return Expansion(at, value.to(device, dtype), slope.to(device, dtype))


# ---- functions -------------------------------------------------------------------------------------------------------


def expand_function(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor
) -> Expansion | None:
    """Return the expansion of a function of torch in its only carrier, x; None if it cannot be evaluated."""
    kwargs = {name: value for name, value in kwargs.items() if name != "out"}
    if constants := [tensor for tensor in tensors_in((args, kwargs)) if not tensor.requires_grad]:
        note_readings(constants)
        return _expand_call(function, args, kwargs, torch.zeros(x.shape, dtype=torch.float64), x)
    places = (*(_CARRIER if _is_carrier(value) else value for value in args),)
    named = tuple((name, _CARRIER if _is_carrier(value) else value) for name, value in sorted(kwargs.items()))
    try:
        return _expand_cached(function, places, named)
    except TypeError:  # an argument that cannot be hashed
        return _expand_call(function, args, kwargs, torch.zeros((), dtype=torch.float64), x)


class _Carrier:
    """A stand-in for the carrier among arguments that are otherwise hashable."""


_CARRIER = _Carrier()


def _is_carrier(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


@lru_cache(maxsize=1024)
def _expand_cached(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]
) -> Expansion | None:
    stand_in = torch.zeros((), dtype=torch.float64, requires_grad=True)
    given = tuple(stand_in if value is _CARRIER else value for value in args)
    named = {name: stand_in if value is _CARRIER else value for name, value in kwargs}
    return _expand_call(function, given, named, stand_in.detach(), stand_in)


def _expand_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor, x: Tensor
) -> Expansion | None:
    """Expand a call of a function; constant tensors among its arguments are moved to the device of the evaluation."""

    def at(point: Tensor) -> Tensor:
        def given(tensor: Tensor) -> Tensor:
            return point if tensor.requires_grad else tensor.detach().to(point.device, point.dtype)

        result: Tensor = function(*map_tensors(given, args), **map_tensors(given, kwargs))
        return result

    with values_of():
        try:
            return _simplified(_expand(at, like), x.device, x.dtype)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None


# ---- modules ---------------------------------------------------------------------------------------------------------

_powers: weakref.WeakKeyDictionary[nn.Module, tuple[Any, int]] = weakref.WeakKeyDictionary()


def power_of_module(module: nn.Module) -> int:
    """Return p where an elementwise module grows as ``x ** p`` (squared ReLU: 2); 1 if p is no whole number."""
    signature, known = _signature(module), _powers.get(module)
    if known is None or known[0] != signature:
        with values_of():
            known = _powers[module] = signature, _power(module)
    return known[1]


def _signature(module: nn.Module) -> Any:
    """Return a signature that changes when a module may have become another function."""
    tensors = [*module.parameters(), *module.buffers()]
    note_readings(tensors)
    return [(t.data_ptr(), t._version) for t in tensors], module.extra_repr()


def _power(module: nn.Module) -> int:
    try:
        twin = copy.deepcopy(module).to("cpu", torch.float64).eval()
        clear_hooks(twin)  # those of the user would run once more
        with torch.no_grad(), modes_off():
            values = twin(torch.tensor([1e20, 1e40], dtype=torch.float64)).abs().log10()
        power = float(values[1] - values[0]) / 20
    except Exception:  # a user's module may raise anything: it cannot be evaluated by itself
        return 1
    whole = math.isfinite(power) and power >= 1 and abs(power - round(power)) < 1e-6
    return round(power) if whole else 1


_of_modules: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Expansion | None]] = weakref.WeakKeyDictionary()


def expand_module(module: nn.Module, x: Tensor, z: Tensor) -> Expansion | None:
    """Return the expansion of a module that gave z for x, if it is an elementwise function; else None.

    The module is evaluated again when its parameters or buffers have changed, and, if it has values for each channel,
    when the shape has.
    """
    signature, known = (*_signature(module), x.dtype, x.device), _of_modules.get(module)
    if known is not None and known[0][:-1] == signature:
        found = known[1]
        if found is None or not isinstance(found.value, Tensor) or known[0][-1] == x.shape:
            return found
    shape, given = example_shape(x), None if is_traced() else (x.detach(), z.detach())
    with values_of():
        found = _evaluate(module, x, shape, given)
    _of_modules[module] = ((*signature, shape), found)
    return found


def _evaluate(module: nn.Module, x: Tensor, shape: torch.Size, given: tuple[Tensor, Tensor] | None) -> Expansion | None:
    try:
        twin = copy.deepcopy(module).to("cpu", torch.float64).eval()
        clear_hooks(twin)  # those of the user would run once more
        like = torch.zeros(shape, dtype=torch.float64)
        expansion = _expand(twin, like)
        if expansion is None or expansion.value.shape != like.shape:
            return None
        inputs, outputs = _tried(twin, like) if given is None else [t.to("cpu", torch.float64) for t in given]
        if not _is_elementwise(twin, expansion, inputs, outputs.reshape(shape), torch.finfo(x.dtype).eps ** 0.5):
            return None
        return _simplified(expansion, x.device, x.dtype)
    except Exception:  # a user's module may raise anything: it cannot be evaluated by itself
        return None


def _tried(twin: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of a module for numbers between -2 and 2: in a trace its own input has no values."""
    with torch.no_grad(), modes_off():
        inputs = torch.linspace(-2, 2, like.numel(), dtype=like.dtype).view_as(like)
        return inputs, twin(inputs)


def _is_elementwise(twin: nn.Module, expansion: Expansion, x: Tensor, z: Tensor, tolerance: float) -> bool:
    """Return whether setting every other element to the point of expansion changes those of the output alone."""
    changed = (torch.arange(x.numel()) % 2 == 0).view(x.shape)
    expected = torch.where(changed, expansion.value, z)
    with torch.no_grad(), modes_off():
        found = twin(torch.where(changed, expansion.at, x))
    return torch.allclose(found, expected, tolerance, tolerance, equal_nan=True)
