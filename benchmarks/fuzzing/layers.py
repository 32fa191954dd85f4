"""Steps with weights: dense layers, convolutions, attention, norms, recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .steps import ADDS, HELD, LENGTH, PIECEWISE, SOFTMAX, WIDTH, Draw, Maker, Wrapped, functions, loaded, step

HEADS = 2


@step(PIECEWISE, ADDS)
def linear(draw: Draw) -> dict[str, Maker]:
    w, b = draw(WIDTH, WIDTH), draw(WIDTH, scale=0.3)
    return {
        "nn.Linear": lambda: loaded(nn.Linear(WIDTH, WIDTH), weight=w, bias=b),
        "Conv1d of size 1": lambda: Wrapped(
            lambda m, x: m.conv(x.mT).mT, conv=loaded(nn.Conv1d(WIDTH, WIDTH, 1), weight=w[:, :, None], bias=b)
        ),
        **functions(
            {
                "F.linear": lambda x, w, b: F.linear(x, w, b),
                "x @ w.T + b": lambda x, w, b: x @ w.T + b,
                "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w.T).unflatten(0, (-1, LENGTH)),
                "einsum": lambda x, w, b: b + torch.einsum("nti,oi->nto", x, w),
                "baddbmm": lambda x, w, b: torch.baddbmm(b, x, w.T.expand(len(x), -1, -1)),
                "product and sum": lambda x, w, b: (x[..., None, :] * w).sum(-1).add_(b),
            },
            w=w,
            b=b,
        ),
    }


@step(PIECEWISE)
def linear_without_bias(draw: Draw) -> dict[str, Maker]:
    w = draw(WIDTH, WIDTH)
    return {
        "nn.Linear": lambda: loaded(nn.Linear(WIDTH, WIDTH, bias=False), weight=w),
        **functions(
            {
                "F.linear": lambda x, w: F.linear(x, w),
                "matmul": lambda x, w: torch.matmul(x, w.mT),
                "tensordot": lambda x, w: torch.tensordot(x, w, dims=([2], [1])),
                "w @ x.mT": lambda x, w: (w @ x.mT).mT,
                "by position": lambda x, w: torch.stack([torch.mm(x[:, i], w.t()) for i in range(LENGTH)], 1),
                "einsum": lambda x, w: torch.einsum("oi,nti->nto", w, x),
            },
            w=w,
        ),
    }


@step(PIECEWISE, ADDS)
def conv1d(draw: Draw) -> dict[str, Maker]:
    w, b = draw(WIDTH, WIDTH, 3, scale=0.3), draw(WIDTH, scale=0.3)

    def unfolded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        windows = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1)
        return torch.einsum("ntik,oik->nto", windows, w) + b

    return {
        "nn.Conv1d": lambda: Wrapped(
            lambda m, x: m.conv(x.mT).mT, conv=loaded(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), weight=w, bias=b)
        ),
        **functions(
            {
                "F.conv1d": lambda x, w, b: F.conv1d(x.transpose(1, 2), w, b, padding=1).transpose(1, 2),
                "same": lambda x, w, b: F.conv1d(x.mT, w, b, padding="same").mT,
                "unfold": unfolded,
            },
            w=w,
            b=b,
        ),
    }


def _convolution(n: int, shape: tuple[int, ...]) -> None:
    kind, function = getattr(nn, f"Conv{n}d"), getattr(F, f"conv{n}d")

    def spellings(draw: Draw) -> dict[str, Maker]:
        w, b = draw(2, 2, *[3] * n, scale=0.4), draw(2, scale=0.3)
        return {
            f"nn.Conv{n}d": lambda: Wrapped(
                lambda m, x: m.conv(x.reshape(len(x), *shape)).reshape(x.shape),
                conv=loaded(kind(2, 2, 3, padding=1), weight=w, bias=b),
            ),
            **functions(
                {
                    f"F.conv{n}d": lambda x, w, b: function(x.reshape(len(x), *shape), w, b, padding=1).view_as(x),
                    "bias after": lambda x, w, b: (
                        function(x.reshape(len(x), *shape), w, padding=1) + b.view(-1, *[1] * n)
                    ).reshape(x.shape),
                },
                w=w,
                b=b,
            ),
        }

    step(PIECEWISE, ADDS, name=f"conv{n}d")(spellings)


_convolution(2, (2, 3, 4))
_convolution(3, (2, 2, 2, 3))


@step(PIECEWISE)
def conv_transpose(draw: Draw) -> dict[str, Maker]:
    w = draw(WIDTH, WIDTH, 3, scale=0.3)
    return {
        "nn.ConvTranspose1d": lambda: Wrapped(
            lambda m, x: m.conv(x.mT).mT,
            conv=loaded(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1, bias=False), weight=w),
        ),
        **functions(
            {
                "F.conv_transpose1d": lambda x, w: F.conv_transpose1d(x.mT, w, padding=1).mT,
                "F.conv1d": lambda x, w: F.conv1d(x.mT, w.transpose(0, 1).flip(2), padding=1).mT,
            },
            w=w,
        ),
    }


@step(operands=2)
def bilinear(draw: Draw) -> dict[str, Maker]:
    w = draw(WIDTH, WIDTH, WIDTH, scale=0.2)
    return {
        "nn.Bilinear": lambda: loaded(nn.Bilinear(WIDTH, WIDTH, WIDTH, bias=False), weight=w),
        **functions(
            {
                "F.bilinear": lambda a, b, w: F.bilinear(a, b, w),
                "einsum": lambda a, b, w: torch.einsum("nti,oij,ntj->nto", a, w, b),
            },
            w=w,
        ),
    }


def _split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    scores = _split(q) @ _split(k).mT * (WIDTH // HEADS) ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), float("-inf"))
    return (torch.softmax(scores, -1) @ _split(v)).transpose(1, 2).flatten(2)


def _held(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return _attend(q.detach(), k.detach(), v, causal=causal)


def _einsum(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, -1)) for x in (q, k, v))
    scores = torch.einsum("nqhd,nkhd->nhqk", q / (WIDTH // HEADS) ** 0.5, k)
    if causal:
        scores = torch.where(torch.ones(LENGTH, LENGTH).tril().bool(), scores, float("-inf"))
    return torch.einsum("nhqk,nkhd->nqhd", F.softmax(scores, dim=-1), v).flatten(2)


def _fused(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(_split(q), _split(k), _split(v), is_causal=causal).transpose(1, 2).flatten(2)


def _attention(name: str, operands: int, *, causal: bool = False) -> None:
    def spellings(draw: Draw) -> dict[str, Maker]:
        w, o = draw(3 * WIDTH, WIDTH), draw(WIDTH, WIDTH)

        def with_(function):
            def run(*given: Tensor, w: Tensor, o: Tensor) -> Tensor:
                q, k, v = w.chunk(3)
                return function(given[0] @ q.T, given[-1] @ k.T, given[-1] @ v.T, causal=causal) @ o.T

            return run

        def module(m: Wrapped, *given: Tensor) -> Tensor:
            mask = torch.ones(LENGTH, LENGTH).triu(1).bool() if causal else None
            return m.attention(given[0], given[-1], given[-1], attn_mask=mask, need_weights=False)[0]

        weights = {"in_proj_weight": w, "out_proj.weight": o}
        return {
            **functions(
                {"softmax": with_(_attend), "einsum": with_(_einsum), "fused": with_(_fused), HELD: with_(_held)},
                w=w,
                o=o,
            ),
            "nn.MultiheadAttention": lambda: Wrapped(
                module, attention=loaded(nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True), **weights)
            ),
        }

    step(SOFTMAX, operands=operands, name=name)(spellings)


_attention("attention", 1)
_attention("causal_attention", 1, causal=True)
_attention("cross_attention", 2)


@step(ADDS)
def mlp(draw: Draw) -> dict[str, Maker]:
    w, b, v = draw(2 * WIDTH, WIDTH), draw(2 * WIDTH, scale=0.3), draw(WIDTH, 2 * WIDTH)

    def block() -> nn.Module:
        weights = {"0.weight": w, "0.bias": b, "2.weight": v}
        return loaded(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH, bias=False)), **weights
        )

    return {
        "nn.Sequential": block,
        "checkpointed": lambda: Wrapped(lambda m, x: checkpoint(m.block, x, use_reentrant=False), block=block()),
        "with dropout": lambda: nn.Sequential(block(), nn.Dropout(0.5)).eval(),
        **functions({"functions": lambda x, w, b, v: F.linear(F.gelu(F.linear(x, w, b)), v)}, w=w, b=b, v=v),
    }


@step(PIECEWISE, ADDS)
def shared(draw: Draw) -> dict[str, Maker]:
    w, b = 1.5 * draw(WIDTH, WIDTH), draw(WIDTH, scale=0.3)

    def layer() -> nn.Module:
        return loaded(nn.Linear(WIDTH, WIDTH), weight=w, bias=b)

    def tied() -> nn.Module:
        first, second = layer(), layer()
        second.weight, second.bias = first.weight, first.bias
        return nn.Sequential(first, nn.ReLU(), second)

    return {
        "twice": lambda: Wrapped(lambda m, x: m.layer(torch.relu(m.layer(x))), layer=layer()),
        "tied weights": tied,
        "F.linear": functions({"": lambda x, w, b: F.linear(F.linear(x, w, b).relu(), w, b)}, w=w, b=b)[""],
    }


@step(ADDS)
def residual_block(draw: Draw) -> dict[str, Maker]:
    w, b = draw(WIDTH, WIDTH), draw(WIDTH, scale=0.3)

    def layer() -> nn.Module:
        return loaded(nn.Linear(WIDTH, WIDTH), weight=w, bias=b)

    return {
        "x + f(x)": lambda: Wrapped(lambda m, x: x + m.layer(x.tanh()), layer=layer()),
        "f(x) += x": lambda: Wrapped(lambda m, x: m.layer(x.tanh()).add_(x), layer=layer()),
        "torch.add": lambda: Wrapped(lambda m, x: torch.add(x, m.layer(torch.tanh(x))), layer=layer()),
        "stack and sum": lambda: Wrapped(lambda m, x: torch.stack([x, m.layer(x.tanh())]).sum(0), layer=layer()),
    }


@step(ADDS)
def positions(draw: Draw) -> dict[str, Maker]:
    table = draw(LENGTH, WIDTH)
    return {
        "nn.Embedding": lambda: Wrapped(
            lambda m, x: x + m.table(torch.arange(LENGTH)), table=loaded(nn.Embedding(LENGTH, WIDTH), weight=table)
        ),
        **functions(
            {
                "parameter": lambda x, table: table + x,
                "F.embedding": lambda x, table: x + F.embedding(torch.arange(LENGTH).expand(len(x), -1), table),
                "indexed": lambda x, table: x.add(table[torch.arange(LENGTH)]),
            },
            table=table,
        ),
    }
