"""Steps that pool: lengths, deviations, distances, generalized means, sums weighted by a softmax; graph attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .activations import SOFTMAXES
from .steps import ADDS, HELD, HOMOGENEOUS, LENGTH, SOFTMAX, WIDTH, Draw, Maker, functions, plain, step

plain(
    "length",
    {
        "norm": lambda x: x.norm(dim=-1, keepdim=True).expand_as(x),
        "sqrt": lambda x: x.square().sum(-1, keepdim=True).sqrt().expand_as(x),
        "power": lambda x: ((x * x).sum(-1, keepdim=True) ** 0.5).expand_as(x),
        "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True).expand_as(x),
        "linalg.norm": lambda x: torch.linalg.norm(x, dim=-1, keepdim=True).expand_as(x),
    },
    HOMOGENEOUS,
)
plain(
    "length_of_order_3",
    {
        "vector_norm": lambda x: torch.linalg.vector_norm(x, 3, 1, True).expand_as(x),
        "norm": lambda x: x.norm(3, 1, keepdim=True).expand_as(x),
        "powers": lambda x: (x.abs() ** 3).sum(1, keepdim=True).pow(1 / 3).expand_as(x),
        "cubes": lambda x: ((y := x.abs()) * y * y).sum(1, keepdim=True).pow(1 / 3).expand_as(x),
    },
    HOMOGENEOUS,
)
plain(
    "length_of_order_1",
    {
        "norm": lambda x: x.norm(1, -1, keepdim=True).expand_as(x),
        "abs": lambda x: x.abs().sum(-1, keepdim=True).expand_as(x),
        "vector_norm": lambda x: torch.linalg.vector_norm(x, 1, -1, True).expand_as(x),
    },
    HOMOGENEOUS,
)
plain(
    "deviation",
    {
        "std": lambda x: x.std(-1, keepdim=True).expand_as(x),
        "var": lambda x: x.var(-1, keepdim=True).sqrt().expand_as(x),
        "std_mean": lambda x: torch.std_mean(x, -1, keepdim=True)[0].expand_as(x),
        "by hand": lambda x: ((x - x.mean(-1, True)).square().sum(-1, keepdim=True) / (WIDTH - 1)).sqrt().expand_as(x),
    },
    HOMOGENEOUS,
)
plain(
    "deviation_over_positions",
    {
        "std": lambda x: x.std(1, unbiased=False, keepdim=True).expand_as(x),
        "var": lambda x: x.var(1, correction=0, keepdim=True).sqrt().expand_as(x),
        "by hand": lambda x: (x - x.mean(1, True)).pow(2).mean(1, keepdim=True).pow(0.5).expand_as(x),
        "length": lambda x: (x - x.mean(1, True)).norm(dim=1, keepdim=True).expand_as(x) / LENGTH**0.5,
    },
    HOMOGENEOUS,
)
plain(
    "root_mean_square",
    {
        "mean": lambda x: x.square().mean(1, keepdim=True).sqrt().expand_as(x),
        "** 0.5": lambda x: ((x * x).mean(1, keepdim=True) ** 0.5).expand_as(x),
        "length": lambda x: (x.norm(dim=1, keepdim=True) / LENGTH**0.5).expand_as(x),
        "pooling": lambda x: F.avg_pool1d(x.mT.square(), LENGTH).sqrt().mT.expand_as(x),
        "lp_pool": lambda x: F.lp_pool1d(x.mT, 2.0, LENGTH).mT.expand_as(x) / LENGTH**0.5,
    },
    HOMOGENEOUS,
)
plain(
    "generalized_mean",
    {
        "**": lambda x: ((x.abs() ** 3).mean(1, keepdim=True) ** (1 / 3)).expand_as(x),
        "pow": lambda x: x.abs().pow(3).mean(1, keepdim=True).pow(1 / 3).expand_as(x),
        "length": lambda x: (torch.linalg.vector_norm(x, 3, 1, True) / LENGTH ** (1 / 3)).expand_as(x),
        "pooling": lambda x: F.avg_pool1d(x.abs().pow(3).mT, LENGTH).pow(1 / 3).mT.expand_as(x),
    },
    HOMOGENEOUS,
)
plain(
    "distance",
    {
        "norm": lambda a, b: (a - b).norm(dim=-1, keepdim=True).expand_as(a),
        "sqrt": lambda a, b: (a - b).square().sum(-1, keepdim=True).sqrt().expand_as(a),
        "pairwise_distance": lambda a, b: F.pairwise_distance(a, b, eps=0.0, keepdim=True).expand_as(a),
        "cdist": lambda a, b: torch.cdist(a[:, :, None], b[:, :, None])[..., 0].expand_as(a),
    },
    HOMOGENEOUS,
    operands=2,
)
plain(
    "variance",
    {
        "var": lambda x: x.var(-1, keepdim=True).expand_as(x),
        "var_mean": lambda x: torch.var_mean(x, -1, keepdim=True)[0].expand_as(x),
        "by hand": lambda x: ((x - x.mean(-1, True)) ** 2).sum(-1, keepdim=True).expand_as(x) / (WIDTH - 1),
        "squared": lambda x: x.std(-1, keepdim=True).square().expand_as(x),
    },
)
plain(
    "cosine",
    {
        "cosine_similarity": lambda a, b: F.cosine_similarity(a, b, -1)[..., None].expand_as(a),
        "normalize": lambda a, b: (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1, keepdim=True).expand_as(a),
        "quotients": lambda a, b: (
            ((a / a.norm(dim=-1, keepdim=True)) * (b / b.norm(dim=-1, keepdim=True))).sum(-1, True).expand_as(a)
        ),
    },
    operands=2,
)

# ---- by softmax ------------------------------------------------------------------------------------------------------


def _less_largest(x: Tensor) -> Tensor:
    largest = x.amax(1, keepdim=True).detach()
    return (largest + (x - largest).exp().sum(1, keepdim=True).log()).expand_as(x)


plain(
    "log_sum",
    {
        "logsumexp": lambda x: torch.logsumexp(x, 1, keepdim=True).expand_as(x),
        "by hand": lambda x: x.exp().sum(1, keepdim=True).log().expand_as(x),
        "largest subtracted": _less_largest,
        HELD: lambda x: x.detach().logsumexp(1, keepdim=True).expand_as(x),
    },
    SOFTMAX,
    ADDS,
)


def _spread(x: Tensor) -> Tensor:
    e = (x.mT - x.mT.amax(-1, keepdim=True)).exp()
    return ((e * x.mT).sum(-1, keepdim=True) / e.sum(-1, keepdim=True)).mT.expand_as(x)


plain(
    "softmax_pooling",
    {
        **{
            name: lambda x, s=softmax: (s(x.mT) * x.mT).sum(-1)[:, None].expand_as(x)
            for name, softmax in SOFTMAXES.items()
        },
        "divided last": _spread,
        HELD: lambda x: (x.detach().softmax(1) * x).sum(1, keepdim=True).expand_as(x),
    },
    SOFTMAX,
)

_FROM = torch.tensor([0, 1, 2, 3, 0, 2, 1, 3, 2])
_TO = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
_EDGES = torch.zeros(LENGTH, LENGTH, dtype=torch.bool).index_put((_TO, _FROM), torch.tensor(True))
Weights = Callable[[Tensor], Tensor]


def _scores(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """One score for each edge."""
    return F.leaky_relu((x @ w)[:, _TO] + (x @ v)[:, _FROM])


def _aggregated(x: Tensor, weights: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(1, _TO, weights[..., None] * x[:, _FROM])


def _over_edges(total: Weights, largest: Weights) -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        s = _scores(x, w, v)
        e = (s - largest(s)).exp()
        return _aggregated(x, e / total(e))

    return run


def _zeros(e: Tensor) -> Tensor:
    return e.new_zeros(len(e), LENGTH)


def _largest_of_each(s: Tensor) -> Tensor:
    found = torch.full((len(s), LENGTH), float("-inf"), dtype=s.dtype)
    return found.scatter_reduce(1, _TO.expand_as(s), s.detach(), "amax")[:, _TO]


def _dense(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    scores = F.leaky_relu((x @ w)[:, :, None] + (x @ v)[:, None])
    return scores.masked_fill(~_EDGES, float("-inf")).softmax(-1) @ x


def _held(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    scores = F.leaky_relu((x @ w)[:, :, None] + (x @ v)[:, None])
    return scores.masked_fill(~_EDGES, float("-inf")).softmax(-1).detach() @ x


def _masked_powers(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    e = F.leaky_relu((x @ w)[:, :, None] + (x @ v)[:, None]).exp() * _EDGES
    return (e / e.sum(-1, keepdim=True)) @ x


def _divided_last(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    e = F.leaky_relu((x @ w)[:, :, None] + (x @ v)[:, None]).exp() * _EDGES
    return (e @ x) / e.sum(-1, keepdim=True)


@step(SOFTMAX)
def graph_attention(draw: Draw) -> dict[str, Maker]:
    w, v = draw(WIDTH), draw(WIDTH)
    return functions(
        {
            "dense": _dense,
            "powers times mask": _masked_powers,
            "divided last": _divided_last,
            "index_add": _over_edges(lambda e: _zeros(e).index_add(1, _TO, e)[:, _TO], lambda s: s.max()),
            "scatter_add": _over_edges(
                lambda e: _zeros(e).scatter_add(1, _TO.expand_as(e), e).gather(1, _TO.expand_as(e)), _largest_of_each
            ),
            "scatter_reduce": _over_edges(
                lambda e: _zeros(e).scatter_reduce(1, _TO.expand_as(e), e, "sum").index_select(1, _TO),
                lambda s: s.amax(1, keepdim=True),
            ),
            "index_add_": _over_edges(lambda e: _zeros(e).index_add_(1, _TO, e)[:, _TO] + 1e-16, _largest_of_each),
            "matmul": _over_edges(lambda e: e @ F.one_hot(_TO).to(e.dtype) @ F.one_hot(_TO).to(e.dtype).T, lambda s: 0),
            HELD: _held,
        },
        w=w,
        v=v,
    )
