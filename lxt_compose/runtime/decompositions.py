"""Kernels that are several operations, written out by functions that each have a family of their own.

The model goes on with the kernel's values, and relevance takes the graph of the functions here. The arguments are those
that torch calls the kernel with. An entry in `_KERNELS` takes apart one more kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.functions import NoRelevance
from ..ops import op_of
from . import formulas

State = tuple[Tensor, ...]
"""The state of a recurrent net between two positions: h [samples, hidden], for an LSTM c too."""
Step = Callable[[Tensor, State, Sequence[Tensor]], State]
"""One position of one layer: x [samples, features], the state before it, the layer's weights -> the state after it."""


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Return ``a * sigmoid(b)`` for the halves a, b of the input along `dim`."""
    signal, gate = input.chunk(2, dim)
    return signal * torch.sigmoid(gate)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return the sum over `dim` of the product of both, each over its norm."""
    shape = torch.broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = x1.expand(shape), x2.expand(shape)
    return (F.normalize(x1, dim=dim, eps=eps) * F.normalize(x2, dim=dim, eps=eps)).sum(dim)


def _with_mean(
    spread: Callable[..., Tensor], input: Tensor, dim: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return the variance or the standard deviation, and the mean."""
    dim = kwargs.pop("axis", dim)
    if len(args) > 1:  # unbiased, keepdim
        args, keepdim = args[:1], args[1]
    if isinstance(dim, bool):  # the unbiased of a variance of all elements
        return spread(input, dim), input.mean()
    mean = input.mean() if dim is None and not keepdim else input.mean(dim, keepdim=keepdim)
    return spread(input, dim, *args, keepdim=keepdim, **kwargs), mean


def _lp_pool(
    pool: Callable[..., Tensor],
    dims: int,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Return ``(sum of x ** p) ** (1 / p)`` over windows, the sum as their mean times their size."""
    size = math.prod(kernel_size) if isinstance(kernel_size, (tuple, list)) else kernel_size**dims
    mean = pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    return (mean * size).pow(1.0 / norm_type)


# ---- one position of a recurrent net; its weights are w_ih [gates * hidden, features], w_hh [gates * hidden, hidden],
# and, if there are any, the biases b_ih and b_hh


def _summed(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return ``W_ih x + W_hh h + b_ih + b_hh`` as one layer of both inputs, so that they share one denominator."""
    bias = weights[2] + weights[3] if len(weights) > 3 else None
    return F.linear(torch.cat([x, h], -1), torch.cat([weights[0], weights[1]], 1), bias)


def _lstm_step(x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    h, c = state
    gate_in, forget, signal, gate_out = _summed(x, h, weights).chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(gate_in) * torch.tanh(signal)
    h = torch.sigmoid(gate_out) * torch.tanh(c)
    return (F.linear(h, weights[-1]) if len(weights) in (3, 5) else h), c  # the last one projects


def _gru_step(x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    (h,) = state
    edge = 2 * h.shape[-1]
    gates = [w[:edge] for w in weights]
    reset, update = torch.sigmoid(_summed(x, h, gates)).chunk(2, -1)
    rest = [w[edge:] for w in weights]
    new = torch.tanh(F.linear(x, rest[0], *rest[2:3]) + reset * F.linear(h, rest[1], *rest[3:]))
    return ((1 - update) * new + update * h,)


def _rnn_step(activation: Callable[[Tensor], Tensor], x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    return (activation(_summed(x, state[0], weights)),)


# ---- whole nets: layers, directions, packed sequences


def _direction(
    step: Step, rows: Sequence[Tensor], state: State, weights: Sequence[Tensor]
) -> tuple[list[Tensor], State]:
    """Return one layer in one direction; `rows` holds the samples that have each position, longest first."""
    outputs = []
    for x in rows:
        count, whole = len(x), len(state[0])
        new = step(x, tuple(part[:count] for part in state) if count < whole else state, weights)
        outputs.append(new[0])
        # Samples that have ended, or not begun (from behind), keep their state.
        state = new if count == whole else tuple(torch.cat([a, b[count:]]) for a, b in zip(new, state, strict=True))
    return outputs, state


def _net(
    step: Step,
    rows: Sequence[Tensor],
    starts: Sequence[Tensor],
    params: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
) -> tuple[Sequence[Tensor], list[Tensor]]:
    """Return the outputs of all layers at each position, and the last states of all directions."""
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    ends: list[State] = []
    for layer in range(num_layers):
        ways = []
        for way in range(directions):
            place = layer * directions + way
            weights = params[place * each : (place + 1) * each]
            state = _start(tuple(start[place] for start in starts), rows[0])
            found, end = _direction(step, rows[::-1] if way else rows, state, weights)
            ways.append(found[::-1] if way else found)
            ends.append(end)
        rows = [torch.cat(both, -1) for both in zip(*ways, strict=True)] if bidirectional else ways[0]
    return rows, [torch.stack(parts) for parts in zip(*ends, strict=True)]


def _recurrent(step: Step, input: Tensor, *args: Any, **named: Any) -> tuple[Tensor, ...]:
    """Return a recurrent net, by the arguments that torch calls its kernel with.

    They are: sizes of batches (if packed), first state, weights, has biases, layers, dropout, train, bidirectional, and
    batch first (if not packed). Sizes of batches are known by being integers.

    Raises:
        NotImplementedError: dropout is active, or arguments came by keyword, which no module of torch does.
    """
    if named:
        raise NotImplementedError("its arguments came by keyword")
    packed = isinstance(args[0], Tensor) and not args[0].is_floating_point()
    hx, params, _, num_layers, dropout, train, bidirectional, *rest = args[packed:]
    if dropout and train and num_layers > 1:
        raise NotImplementedError("dropout between its layers is active")
    place = int(rest == [True])
    rows = input.split(args[0].tolist()) if packed else input.unbind(place)
    starts = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    outputs, ends = _net(step, rows, starts, params, num_layers, bidirectional)
    return torch.cat(tuple(outputs)) if packed else torch.stack(tuple(outputs), place), *ends


def _start(hx: Any, input: Tensor) -> State:
    """Return the first state at one place of a net, as carriers, given what that place reads first.

    Whether a gate shares with it must not depend on the other samples of a batch. Constants hang on the input, which
    has the samples where the state has them.
    """
    parts = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    carrier = next((x for x in (input, *parts) if x.requires_grad), None)
    if carrier is None:
        return parts
    return tuple(part if part.requires_grad else NoRelevance.apply(part, carrier) for part in parts)


def _cell(step: Step, input: Tensor, hx: Any, *weights: Tensor | None, **named: Tensor | None) -> Any:
    state = step(input, _start(hx, input), [w for w in (*weights, *named.values()) if w is not None])
    return state if len(state) > 1 else state[0]


_rnn_tanh, _rnn_relu = partial(_rnn_step, torch.tanh), partial(_rnn_step, torch.relu)

_KERNELS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.glu: glu,
    F.cosine_similarity: cosine_similarity,
    torch.var_mean: partial(_with_mean, torch.var),
    torch.std_mean: partial(_with_mean, torch.std),
    F.lp_pool1d: partial(_lp_pool, F.avg_pool1d, 1),
    F.lp_pool2d: partial(_lp_pool, F.avg_pool2d, 2),
    F.lp_pool3d: partial(_lp_pool, F.avg_pool3d, 3),
    torch.xlogy: partial(formulas.times_log, torch.log, 1.0),
    torch.special.xlog1py: partial(formulas.times_log, torch.log1p, 0.0),
    torch.corrcoef: formulas.corrcoef,
    torch.polar: formulas.polar,
    torch.lstm: partial(_recurrent, _lstm_step),
    torch.gru: partial(_recurrent, _gru_step),
    torch.rnn_tanh: partial(_recurrent, _rnn_tanh),
    torch.rnn_relu: partial(_recurrent, _rnn_relu),
    torch.lstm_cell: partial(_cell, _lstm_step),
    torch.gru_cell: partial(_cell, _gru_step),
    torch.rnn_tanh_cell: partial(_cell, _rnn_tanh),
    torch.rnn_relu_cell: partial(_cell, _rnn_relu),
}


def _by_operation() -> dict[str, Callable[..., Any]]:
    """Return the kernels by their operations, so that each is found under all of its names."""
    found = ((op_of(kernel), steps) for kernel, steps in _KERNELS.items())
    return {op.name: steps for op, steps in found if op is not None}


STEPS = _by_operation()
"""The functions that the operations of the composed family are taken apart into."""
