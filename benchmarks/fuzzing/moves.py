"""Steps without weights that move elements: selections, pooling, indexing, scattering, views, concatenation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .steps import ELEMENTWISE, LENGTH, PIECEWISE, WIDTH, Draw, Maker, functions, plain, step


def _assigned(a: Tensor, b: Tensor) -> Tensor:
    h = a.clone()
    h[:, 1::2] = b[:, 1::2]
    return h


_EVEN = (torch.arange(LENGTH) % 2 == 0)[:, None]
plain(
    "choose",
    {
        "where": lambda a, b: torch.where(_EVEN, a, b),
        "assignment": _assigned,
        "masks": lambda a, b: a * _EVEN + b * ~_EVEN,
        "masked_fill": lambda a, b: a.masked_fill(~_EVEN, 0.0) + b.masked_fill(_EVEN, 0.0),
        "stack": lambda a, b: torch.stack([(a if i % 2 == 0 else b)[:, i] for i in range(LENGTH)], 1),
        "copy_": lambda a, b: a.clone().index_copy_(1, torch.tensor([1, 3]), b[:, 1::2]),
    },
    PIECEWISE,
    operands=2,
)
plain(
    "larger",
    {
        "maximum": torch.maximum,
        "a.max(b)": lambda a, b: a.max(b),
        "amax": lambda a, b: torch.stack([a, b]).amax(0),
        "where": lambda a, b: torch.where(a > b, a, b),
        "max": lambda a, b: torch.stack([a, b], -1).max(-1).values,
    },
    PIECEWISE,
    ELEMENTWISE,
    operands=2,
)
plain(
    "max_pool",
    {
        "F.max_pool1d": lambda x: F.max_pool1d(x, 2).repeat_interleave(2, -1),
        "amax": lambda x: x.unflatten(-1, (3, 2)).amax(-1).repeat_interleave(2, -1),
        "maximum": lambda x: torch.maximum(x[..., ::2], x[..., 1::2]).repeat_interleave(2, -1),
        "topk": lambda x: x.unflatten(-1, (3, 2)).topk(1, -1).values.expand(-1, -1, -1, 2).flatten(2),
    },
    PIECEWISE,
)
plain(
    "avg_pool",
    {
        "F.avg_pool1d": lambda x: F.avg_pool1d(x, 2).repeat_interleave(2, -1),
        "mean": lambda x: x.unflatten(-1, (3, 2)).mean(-1).repeat_interleave(2, -1),
        "interpolate": lambda x: F.interpolate(x.unflatten(-1, (3, 2)).mean(-1), scale_factor=2),
        "adaptive": lambda x: F.adaptive_avg_pool1d(x, 3).repeat_interleave(2, -1),
    },
    PIECEWISE,
)
_ORDER = torch.tensor([2, 0, 3, 1])
plain(
    "reorder",
    {
        "indexed": lambda x: x[:, _ORDER],
        "list": lambda x: x[:, [2, 0, 3, 1]],
        "index_select": lambda x: x.index_select(1, _ORDER),
        "gather": lambda x: x.gather(1, _ORDER[None, :, None].expand_as(x)),
        "take_along_dim": lambda x: torch.take_along_dim(x, _ORDER[None, :, None], 1),
        "matmul": lambda x: F.one_hot(_ORDER, LENGTH).to(x.dtype) @ x,
        "stack": lambda x: torch.stack([x[:, i] for i in (2, 0, 3, 1)], dim=1),
    },
    PIECEWISE,
)
_TARGET = torch.tensor([0, 1, 1, 3])


def _index(x: Tensor) -> Tensor:
    return _TARGET[None, :, None].expand_as(x)


def _put(x: Tensor) -> Tensor:
    h = torch.zeros_like(x)
    h.transpose(0, 1).index_put_((_TARGET,), x.transpose(0, 1), accumulate=True)
    return h


plain(
    "scatter",
    {
        "index_add": lambda x: torch.zeros_like(x).index_add(1, _TARGET, x),
        "scatter_add": lambda x: torch.zeros_like(x).scatter_add(1, _index(x), x),
        "scatter_reduce": lambda x: torch.zeros_like(x).scatter_reduce(1, _index(x), x, "sum"),
        "index_put_": _put,
        "matmul": lambda x: F.one_hot(_TARGET, LENGTH).to(x.dtype).T @ x,
        "index_add_": lambda x: x.new_zeros(x.shape).index_add_(1, _TARGET, x),
    },
    PIECEWISE,
)
plain(
    "scatter_mean",
    {
        "scatter_reduce": lambda x: torch.zeros_like(x).scatter_reduce(1, _index(x), x, "mean", include_self=False),
        "matmul": lambda x: (F.one_hot(_TARGET, LENGTH).T / torch.tensor([[1.0], [2.0], [1.0], [1.0]])).to(x.dtype) @ x,
        "index_reduce": lambda x: torch.zeros_like(x).index_reduce(1, _TARGET, x, "mean", include_self=False),
    },
    PIECEWISE,
)
plain(
    "views",
    {
        "transpose": lambda x: x.transpose(1, 2).reshape(x.shape),
        "permute": lambda x: x.permute(0, 2, 1).contiguous().view(len(x), LENGTH, WIDTH),
        "movedim": lambda x: x.movedim(-1, 1).flatten(1).unflatten(1, (LENGTH, WIDTH)),
        "einsum": lambda x: torch.einsum("ntd->ndt", x).reshape(x.shape),
        "stack": lambda x: torch.stack(x.unbind(2), 1).reshape(x.shape),
        "cat": lambda x: torch.cat(x.split(1, 2), 1).reshape(x.shape),
    },
    PIECEWISE,
)
plain(
    "shuffle",
    {
        "flip, roll": lambda x: x.flip(1).roll(1, -1),
        "slices": lambda x: torch.cat([x.flip(1)[..., -1:], x.flip(1)[..., :-1]], -1),
    },
    PIECEWISE,
)
plain(
    "fourier",
    {
        "fft": lambda x: torch.fft.fft(x, dim=-1).real,
        "matmul": lambda x: x @ torch.cos(torch.outer(torch.arange(6), torch.arange(6)).to(x.dtype) * torch.pi / 3),
    },
    PIECEWISE,
)


@step(PIECEWISE, operands=2)
def concatenate(draw: Draw) -> dict[str, Maker]:
    w = draw(WIDTH, 2 * WIDTH)

    def filled(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        h = a.new_zeros(*a.shape[:2], 2 * WIDTH)
        h[..., :WIDTH] = a
        h[..., WIDTH:] = b
        return h @ w.T

    return functions(
        {
            "cat": lambda a, b, w: F.linear(torch.cat([a, b], -1), w),
            "concat": lambda a, b, w: F.linear(torch.concat((a, b), 2), w),
            "stack": lambda a, b, w: torch.stack([a, b], 2).flatten(2) @ w.mT,
            "assignment": filled,
            "two products": lambda a, b, w: a @ w[:, :WIDTH].T + b @ w[:, WIDTH:].T,
        },
        w=w,
    )
