"""Steps that models write with changes in place: to parts and views, of constants, by several operations in a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .steps import ELEMENTWISE, LENGTH, OFFSET, PIECEWISE, WIDTH, plain

HALF = WIDTH // 2


def _changed(change: Callable[..., object]) -> Callable[..., Tensor]:
    """Return a function that gives a copy of its first operand, changed in place."""

    def run(x: Tensor, *others: Tensor) -> Tensor:
        h = x.clone()
        change(h, *others)
        return h

    return run


def _add_slice(h: Tensor) -> None:
    h[:, 1::2] += h[:, ::2]


def _set_slice(h: Tensor) -> None:
    h[:, 1::2] = h[:, 1::2] + h[:, ::2]


_EVEN, _ODD = torch.arange(0, LENGTH, 2), torch.arange(1, LENGTH, 2)
plain(
    "add_to_rows",
    {
        "stack": lambda x: torch.stack([x[:, ::2], x[:, 1::2] + x[:, ::2]], 2).flatten(1, 2),
        "+= of a slice": _changed(_add_slice),
        "slice set": _changed(_set_slice),
        "add_ to a view": _changed(lambda h: h.unflatten(1, (-1, 2)).select(2, 1).add_(h[:, ::2])),
        "index_add_": _changed(lambda h: h.index_add_(1, _ODD, h[:, _EVEN])),
        "pad": lambda x: x + F.pad(x[:, ::2, None], (0, 0, 1, 0)).flatten(1, 2),
        "scatter_add_": _changed(
            lambda h: h.scatter_add_(1, _ODD[None, :, None].expand_as(h[:, ::2]), h[:, ::2].clone())
        ),
        "matmul": lambda x: (torch.eye(LENGTH) + torch.diag(torch.tensor([1.0, 0, 1]), -1)).to(x.dtype) @ x,
    },
    PIECEWISE,
)


def _scale_slice(h: Tensor) -> None:
    h[..., :HALF] *= 2


plain(
    "scale_part",
    {
        "cat": lambda x: torch.cat([x[..., :HALF] * 2, x[..., HALF:]], -1),
        "*= of a slice": _changed(_scale_slice),
        "mul_ of a view": _changed(lambda h: h.narrow(-1, 0, HALF).mul_(2)),
        "mul_ of a slice": _changed(lambda h: h[..., :HALF].mul_(2)),
        "tensor": lambda x: x * torch.tensor([2.0] * HALF + [1.0] * HALF, dtype=x.dtype),
        "add_": _changed(lambda h: h[..., :HALF].add_(h[..., :HALF].clone())),
    },
    PIECEWISE,
)
plain(
    "relu_part",
    {
        "cat": lambda x: torch.cat([F.relu(x[..., :HALF]), x[..., HALF:]], -1),
        "relu_": _changed(lambda h: h[..., :HALF].relu_()),
        "F.relu": _changed(lambda h: F.relu(h[..., :HALF], inplace=True)),
        "clamp_": _changed(lambda h: h.narrow(-1, 0, HALF).clamp_(min=0)),
        "set": _changed(lambda h: h.__setitem__((..., slice(HALF)), h[..., :HALF].relu())),
    },
    PIECEWISE,
)
plain(
    "gate_part",
    {
        "cat": lambda x: torch.cat([x[..., :HALF] * torch.sigmoid(x[..., HALF:]), x[..., HALF:]], -1),
        "mul_": _changed(lambda h: h[..., :HALF].mul_(h[..., HALF:].sigmoid())),
        "set": _changed(lambda h: h.__setitem__((..., slice(HALF)), h[..., :HALF] * h[..., HALF:].sigmoid())),
        "div_": _changed(lambda h: h[..., :HALF].div_(1 + (-h[..., HALF:]).exp())),
    },
)
plain(
    "zero_row",
    {
        "masked_fill": lambda x: x.masked_fill((torch.arange(LENGTH) == 0)[:, None], 0.0),
        "product": lambda x: x * (torch.arange(LENGTH) > 0)[:, None],
        "pad": lambda x: F.pad(x[:, 1:], (0, 0, 1, 0)),
        "set": _changed(lambda h: h.__setitem__((slice(None), 0), 0.0)),
        "zero_": _changed(lambda h: h[:, 0].zero_()),
        "fill_": _changed(lambda h: h.select(1, 0).fill_(0.0)),
        "index_fill_": _changed(lambda h: h.index_fill_(1, torch.tensor([0]), 0.0)),
        "mul_": _changed(lambda h: h[:, 0].mul_(0)),
    },
    PIECEWISE,
)


def _summed(parts: list[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part
    return total


plain(
    "accumulate",
    {
        "sum": lambda a, b, c: a + b + c,
        "into zeros": lambda a, b, c: _summed([a, b, c]),
        "stack": lambda a, b, c: torch.stack([a, b, c]).sum(0),
        "add_": lambda a, b, c: a.clone().add_(b).add_(c),
        "einsum": lambda a, b, c: torch.einsum("kntd->ntd", torch.stack([c, a, b])),
    },
    PIECEWISE,
    ELEMENTWISE,
    operands=3,
)
plain(
    "fused_product",
    {
        "a + b c / 2": lambda a, b, c: a + 0.5 * b * c,
        "addcmul": lambda a, b, c: torch.addcmul(a, b, c, value=0.5),
        "addcmul_": lambda a, b, c: a.clone().addcmul_(b, c, value=0.5),
        "+=": _changed(lambda h, b, c: h.add_(b * c, alpha=0.5)),
    },
    ELEMENTWISE,
    operands=3,
)
plain(
    "fused_quotient",
    {
        "a + b / d": lambda a, b, c: a + b / (c.square() + 1),
        "addcdiv": lambda a, b, c: torch.addcdiv(a, b, c.square() + 1),
        "addcdiv_": lambda a, b, c: a.clone().addcdiv_(b, c * c + 1),
    },
    ELEMENTWISE,
    operands=3,
)


def _steps_in_place(h: Tensor) -> None:
    h.sub_(0.5).mul_(0.25).tanh_().add_(1).div_(2)


plain(
    "in_a_row",
    {
        "out of place": lambda x: (torch.tanh((x - 0.5) / 4) + 1) / 2,
        "in place": _changed(_steps_in_place),
        "sigmoid": lambda x: torch.sigmoid(x / 2 - 0.25),
        "sigmoid_": _changed(lambda h: h.sub_(0.5).mul_(0.5).sigmoid_()),
    },
    OFFSET,
    ELEMENTWISE,
)
