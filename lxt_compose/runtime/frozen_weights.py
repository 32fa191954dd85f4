"""Products with frozen weights, computed as torch computes them while the weights are trained.

``torch.matmul`` of a batch with a matrix makes one large product of it if the matrix requires grad; if not, and the
batch is not contiguous, a product for each of its items, which rounds differently. Attention takes another kernel for a
mask that requires grad. So freezing the parameters alone would change the last bits of a model's values. Here the
kernel is that for weights that are trained, be they parameters that were frozen or what was computed from them.
"""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..autograd.functions import graft
from ..ops import Argument, LayerKind, Op
from ..rules.linear_layers.weight_parts import dequantized, is_quantized

_UNQUANTIZED = (Tensor, nn.Parameter)
_BATCH_FIRST = 8  # the last argument of a recurrent net, for a batch that is not packed


class Frozen:
    """Tensors that would require grad if the parameters were not frozen: the parameters, and results of these alone."""

    def __init__(self) -> None:
        self._parameters: dict[int, Tensor] = {}
        self._computed: dict[int, weakref.ref[Tensor]] = {}

    def add(self, parameter: Tensor) -> None:
        """Note a parameter that was frozen."""
        self._parameters[id(parameter)] = parameter

    def note(self, x: Tensor) -> None:
        """Note a tensor that was computed from parameters before they were frozen."""
        key = id(x)
        self._computed[key] = weakref.ref(x, lambda _: self._computed.pop(key, None))

    def follow(self, given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """Note that an operation without carriers has run: its output would require grad if an input would."""
        if self._parameters and any(x in self for x in given):
            for x in made:
                if x.is_floating_point():
                    self.note(x)

    def __contains__(self, x: Tensor) -> bool:
        if x.requires_grad:
            return False
        return self._knows(x) or (x._base is not None and self._knows(x._base))

    def _knows(self, x: Tensor) -> bool:
        return id(x) in self._parameters or id(x) in self._computed


def as_trained(function: Callable[..., Any], op: Op | None, frozen: Frozen) -> Callable[..., Any]:
    """Return the function, or for products with weights one that has the values of trained weights."""
    if op is None:
        return function
    if op.traits.folds_batch:
        return partial(_linear if op.traits.layer is LayerKind.LINEAR else _matmul, function, frozen)
    if op.traits.mask is not None:
        return partial(_masked, function, op.traits.mask, frozen)
    if op.traits.recurrent:
        return partial(_recurrent, function, frozen)
    return function


def _was_trained(weight: Any, frozen: Frozen) -> bool:
    return isinstance(weight, Tensor) and weight in frozen


def _twice(function: Callable[..., Any], frozen: Frozen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function twice, and return the values with weights that require grad, on the graph with frozen weights."""

    def trained(value: Any) -> Any:
        return value.detach().requires_grad_() if _was_trained(value, frozen) else value

    values = function(*map(trained, args), **{name: trained(value) for name, value in kwargs.items()})
    return graft(values, function(*args, **kwargs))


def _is_scattered(x: Any) -> bool:
    """Return whether this is a batch of matrices that is not contiguous; a contiguous one makes one product anyway."""
    return isinstance(x, Tensor) and x.dim() >= 3 and not x.is_contiguous()


def _folded(x: Tensor, matrix: Tensor) -> Tensor:
    product = x.reshape(-1, x.shape[-1]) @ matrix
    return product.view(*x.shape[:-1], *matrix.shape[1:])


def _linear(
    function: Callable[..., Any], frozen: Frozen, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    if type(weight) in _UNQUANTIZED and input.is_contiguous():
        return function(input, weight, bias)
    if is_quantized(weight):
        return _quantized(function, input, weight, bias)
    if not (_is_scattered(input) and _was_trained(weight, frozen)):
        return function(input, weight, bias)
    if weight.dim() != 2:
        return _twice(function, frozen, (input, weight, bias), {})
    product = _folded(input, weight.t())
    return product if bias is None else product + bias


def _quantized(function: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the values of a kernel for quantized weights; if it has no graph, on that of the dequantized weight."""
    output: Tensor = function(input, weight, bias)
    if output.requires_grad or not input.requires_grad:
        return output
    return graft(output, function(input, dequantized(weight).to(input.dtype), bias))


def _matmul(function: Callable[..., Any], frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
    values = [*args, *kwargs.values()]
    if len(values) == 2 and getattr(function, "__name__", "") != "__rmatmul__":
        first, second = values
        if _is_scattered(first) and _was_trained(second, frozen):
            return _folded(first, second) if second.dim() in (1, 2) else _twice(function, frozen, args, kwargs)
        if _was_trained(first, frozen) and isinstance(second, Tensor) and second.dim() >= 3:
            if first.dim() == 2:
                return _folded(second.mT, first.t()).mT.contiguous()
            return _twice(function, frozen, args, kwargs)
    return function(*args, **kwargs)


def _masked(function: Callable[..., Any], mask: Argument, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
    trained = _was_trained(mask.of(args, kwargs), frozen)
    return _twice(function, frozen, args, kwargs) if trained else function(*args, **kwargs)


def _recurrent(function: Callable[..., Any], frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
    """Return the values of a recurrent kernel, whose products are its own, with weights that require grad."""
    output = function(*args, **kwargs)
    if len(args) <= _BATCH_FIRST or not _was_trained(args[2][0], frozen):
        return output
    if (args[0].transpose(0, 1) if args[_BATCH_FIRST] else args[0]).is_contiguous():
        return output
    trained = [weight.detach().requires_grad_(_was_trained(weight, frozen)) for weight in args[2]]
    values = function(*args[:2], trained, *args[3:])
    return tuple(graft(value, way) for value, way in zip(values, output, strict=True))
