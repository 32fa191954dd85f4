"""Steps without weights that compute: sums, products, quotients, roots."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .steps import ADDS, ELEMENTWISE, HELD, HOMOGENEOUS, LENGTH, PIECEWISE, WIDTH, plain

# ---- sums ------------------------------------------------------------------------------------------------------------


def _added(a: Tensor, b: Tensor) -> Tensor:
    h = a.clone()
    h += b
    return h


plain(
    "add",
    {
        "a + b": lambda a, b: a + b,
        "torch.add": torch.add,
        "+=": _added,
        "add_": lambda a, b: b.clone().add_(a),
        "sum of a list": lambda a, b: sum([a, b]),
        "stack": lambda a, b: torch.stack([a, b]).sum(0),
        "alpha": lambda a, b: torch.add(a, b * 2, alpha=0.5),
        "cat": lambda a, b: torch.cat([a, b]).unflatten(0, (2, -1)).sum(0),
    },
    PIECEWISE,
    ELEMENTWISE,
    operands=2,
)
plain(
    "subtract",
    {
        "a - b": lambda a, b: a - b,
        "torch.sub": torch.sub,
        "a + (-b)": lambda a, b: a + (-b),
        "-(b - a)": lambda a, b: -(b - a),
        "alpha": lambda a, b: a.add(b, alpha=-1),
        "sub_": lambda a, b: a.clone().sub_(b),
        "rsub": lambda a, b: torch.rsub(b, a),
    },
    PIECEWISE,
    ELEMENTWISE,
    operands=2,
)
plain(
    "interpolation",
    {
        "lerp": lambda a, b: torch.lerp(a, b, 0.25),
        "by hand": lambda a, b: 0.75 * a + b * 0.25,
        "difference": lambda a, b: a + 0.25 * (b - a),
    },
    PIECEWISE,
    ELEMENTWISE,
    operands=2,
)
plain(
    "scale",
    {
        "x * 1.5": lambda x: x * -1.5,
        "1.5 * x": lambda x: -1.5 * x,
        "x / c": lambda x: x / (-2 / 3),
        "mul_": lambda x: x.clone().mul_(-1.5),
        "tensor": lambda x: torch.full((WIDTH,), -1.5, dtype=x.dtype) * x,
        "neg": lambda x: -(x * 1.5),
    },
    PIECEWISE,
    ELEMENTWISE,
)
plain(
    "shift",
    {
        "x + c": lambda x: x + 0.7,
        "c + x": lambda x: 0.7 + x,
        "x - c": lambda x: x - (-0.7),
        "add_": lambda x: x.clone().add_(0.7),
    },
    PIECEWISE,
    ADDS,
    ELEMENTWISE,
)
plain(
    "mean",
    {
        "mean": lambda x: x.mean(-1, keepdim=True).expand_as(x),
        "sum": lambda x: (x.sum(-1, keepdim=True) / WIDTH).repeat(1, 1, WIDTH),
        "pooling": lambda x: F.adaptive_avg_pool1d(x, 1).expand(-1, -1, WIDTH),
        "einsum": lambda x: torch.einsum("ntd->nt", x)[..., None].expand_as(x) / WIDTH,
        "avg_pool1d": lambda x: F.avg_pool1d(x, WIDTH).expand_as(x),
    },
    PIECEWISE,
)
plain(
    "cumulative",
    {
        "cumsum": lambda x: x.cumsum(1),
        "tril": lambda x: torch.ones(LENGTH, LENGTH, dtype=x.dtype).tril() @ x,
        "loop": lambda x: torch.stack([x[:, : i + 1].sum(1) for i in range(LENGTH)], 1),
    },
    PIECEWISE,
)
plain(
    "residual",
    {
        "x + relu": lambda x: x + F.relu(x),
        "relu + x": lambda x: F.relu(x) + x,
        "add_": lambda x: x.clone().add_(F.relu(x)),
    },
    PIECEWISE,
    ELEMENTWISE,
)

# ---- products, quotients, roots --------------------------------------------------------------------------------------

plain(
    "product",
    {
        "a * b": lambda a, b: a * b,
        "b * a": lambda a, b: b * a,
        "torch.mul": torch.mul,
        "mul_": lambda a, b: a.clone().mul_(b),
        "einsum": lambda a, b: torch.einsum("ntd,ntd->ntd", a, b),
        "bmm": lambda a, b: (a[..., None, None] @ b[..., None, None])[..., 0, 0],
    },
    ELEMENTWISE,
    operands=2,
)
plain(
    "product_of_three",
    {
        "(a * b) * c": lambda a, b, c: a * b * c,
        "a * (b * c)": lambda a, b, c: a * (b * c),
        "(a * c) * b": lambda a, b, c: (c * a) * b,
        "einsum": lambda a, b, c: torch.einsum("ntd,ntd,ntd->ntd", a, b, c),
        "scaled between": lambda a, b, c: 2 * (a * b) * (0.5 * c),
    },
    ELEMENTWISE,
    operands=3,
)
plain(
    "square",
    {
        "x * x": lambda x: x * x,
        "** 2": lambda x: x**2,
        "square": lambda x: x.square(),
        "pow": lambda x: torch.pow(x, 2),
        "mul": lambda x: torch.mul(x, x),
    },
    ELEMENTWISE,
)
plain(
    "cube",
    {
        "x * x * x": lambda x: x * x * x,
        "** 3": lambda x: x**3,
        "pow": lambda x: x.pow(3),
        "x * x ** 2": lambda x: x * x**2,
        "square * x": lambda x: x.square() * x,
    },
    ELEMENTWISE,
)
plain(
    "matmul",
    {
        "@": lambda a, b: a @ b.mT @ torch.eye(LENGTH, WIDTH, dtype=a.dtype),
        "matmul": lambda a, b: F.pad(torch.matmul(a, b.transpose(1, 2)), (0, WIDTH - LENGTH)),
        "bmm": lambda a, b: F.pad(torch.bmm(a, b.mT), (0, WIDTH - LENGTH)),
        "einsum": lambda a, b: F.pad(torch.einsum("nid,njd->nij", a, b), (0, WIDTH - LENGTH)),
        "product and sum": lambda a, b: F.pad((a[:, :, None] * b[:, None]).sum(-1), (0, WIDTH - LENGTH)),
    },
    operands=2,
)
plain(
    "quotient",
    {
        "a / d": lambda a, b: a / (b.square() + 1),
        "torch.div": lambda a, b: torch.div(a, b * b + 1),
        "reciprocal": lambda a, b: a * (b.square() + 1).reciprocal(),
        "** -1": lambda a, b: (b**2 + 1) ** -1 * a,
        "1 / d": lambda a, b: a * (1 / (b.square() + 1)),
        "div_": lambda a, b: a.clone().div_(b.square() + 1),
        HELD: lambda a, b: a / (b.detach().square() + 1),
    },
    ELEMENTWISE,
    operands=2,
)
plain(
    "magnitude",
    {
        "sqrt": lambda a, b: (a**2 + b**2).sqrt(),
        "hypot": torch.hypot,
        "norm": lambda a, b: torch.stack([a, b], -1).norm(dim=-1),
        "power": lambda a, b: (a * a + b * b).pow(0.5),
        "complex": lambda a, b: torch.complex(a, b).abs(),
        "hypot_": lambda a, b: a.clone().hypot_(b),
    },
    ELEMENTWISE,
    HOMOGENEOUS,
    operands=2,
)
