"""Products with frozen weights, computed as torch computes them while the weights are trained.

``torch.matmul`` of a batch with a matrix makes one large product of it if the matrix requires grad; if not, and the
batch is not contiguous, a product for each of its items, which rounds differently. So freezing the parameters alone
would change the last bits of a model's values. Here the large product is made for parameters that were frozen.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .gradients import graft

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_BATCH_FIRST = 8  # the last argument of those, for a batch that is not packed

Frozen = dict[int, Tensor]
"""The parameters that a registration froze, by identity."""


def as_trained(function: Callable[..., Any], name: str, frozen: Frozen) -> Callable[..., Any]:
    """The function itself, or for products with weights one with the values that they have with trained weights."""
    if name == "linear":
        return partial(_linear, function, frozen)
    if name == "matmul":
        return partial(_matmul, function, frozen)
    if name in _RECURRENT:
        return partial(_recurrent, function, frozen)
    return function


def _was_trained(weight: Any, frozen: Frozen) -> bool:
    if not isinstance(weight, Tensor) or weight.requires_grad:
        return False
    return id(weight) in frozen or (weight._base is not None and id(weight._base) in frozen)


def _is_scattered(x: Any) -> bool:
    """Whether this is a batch of matrices that is not contiguous: what is contiguous makes one product anyway."""
    return isinstance(x, Tensor) and x.dim() >= 3 and not x.is_contiguous()


def _folded(x: Tensor, matrix: Tensor) -> Tensor:
    product = x.reshape(-1, x.shape[-1]) @ matrix
    return product.view(*x.shape[:-1], *matrix.shape[1:])


def _linear(
    function: Callable[..., Any], frozen: Frozen, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    if not (_is_scattered(input) and weight.dim() == 2 and _was_trained(weight, frozen)):
        return function(input, weight, bias)
    product = _folded(input, weight.t())
    return product if bias is None else product + bias


def _matmul(function: Callable[..., Any], frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
    values = [*args, *kwargs.values()]
    if len(values) == 2 and getattr(function, "__name__", "") != "__rmatmul__":
        first, second = values
        if _is_scattered(first) and _was_trained(second, frozen) and second.dim() in (1, 2):
            return _folded(first, second)
        if _was_trained(first, frozen) and first.dim() == 2 and isinstance(second, Tensor) and second.dim() >= 3:
            return _folded(second.mT, first.t()).mT.contiguous()
    return function(*args, **kwargs)


def _recurrent(function: Callable[..., Any], frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
    """The kernel makes its products itself, so their values come from a run with weights that require grad."""
    output = function(*args, **kwargs)
    if len(args) <= _BATCH_FIRST or not _was_trained(args[2][0], frozen):
        return output
    if (args[0].transpose(0, 1) if args[_BATCH_FIRST] else args[0]).is_contiguous():
        return output
    trained = [weight.detach().requires_grad_(_was_trained(weight, frozen)) for weight in args[2]]
    values = function(*args[:2], trained, *args[3:])
    return tuple(graft(value, way) for value, way in zip(values, output, strict=True))
