"""Steps that normalize, and recurrent layers; by modules, by functions, and written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .steps import ADDS, LENGTH, OFFSET, PIECEWISE, WIDTH, Draw, Maker, Wrapped, functions, loaded, plain, step

EPS = 1e-5


@step(ADDS)
def layer_norm(draw: Draw) -> dict[str, Maker]:
    w, b = draw.positive(WIDTH), draw(WIDTH, scale=0.3)

    def standardized(x: Tensor, deviation: Callable[[Tensor], Tensor]) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return centered / deviation(centered)

    return {
        "nn.LayerNorm": lambda: loaded(nn.LayerNorm(WIDTH), weight=w, bias=b),
        **functions(
            {
                "F.layer_norm": lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b),
                "var": lambda x, w, b: (x - x.mean(-1, True)) / (x.var(-1, False, True) + EPS).sqrt() * w + b,
                "rsqrt": lambda x, w, b: (
                    (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + EPS) * w + b
                ),
                "squares": lambda x, w, b: w * standardized(x, lambda c: (c.pow(2).mean(-1, True) + EPS).sqrt()) + b,
                "power": lambda x, w, b: w * standardized(x, lambda c: ((c * c).mean(-1, True) + EPS) ** 0.5) + b,
            },
            w=w,
            b=b,
        ),
    }


@step()
def rms_norm(draw: Draw) -> dict[str, Maker]:
    w = draw.positive(WIDTH)
    return {
        "nn.RMSNorm": lambda: loaded(nn.RMSNorm(WIDTH, EPS), weight=w),
        **functions(
            {
                "F.rms_norm": lambda x, w: F.rms_norm(x, (WIDTH,), w, EPS),
                "rsqrt": lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)),
                "sqrt": lambda x, w: w * x / torch.sqrt((x**2).mean(-1, keepdim=True) + EPS),
                "square": lambda x, w: x / (x.square().mean(-1, keepdim=True) + EPS).pow(0.5) * w,
                "power": lambda x, w: x * ((x * x).mean(-1, keepdim=True) + EPS) ** -0.5 * w,
                "reciprocal": lambda x, w: x * (x.square().mean(-1, keepdim=True) + EPS).sqrt().reciprocal() * w,
            },
            w=w,
        ),
    }


plain(
    "unit_length",
    {
        "F.normalize": lambda x: F.normalize(x, dim=-1),
        "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
        "vector_norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        "squares": lambda x: x / x.square().sum(-1, keepdim=True).sqrt(),
        "rsqrt": lambda x: x * x.pow(2).sum(-1, keepdim=True).rsqrt(),
    },
)


@step(ADDS)
def group_norm(draw: Draw) -> dict[str, Maker]:
    w, b = draw.positive(WIDTH), draw(WIDTH, scale=0.3)

    def by_hand(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        groups = x.mT.reshape(len(x), 2, -1)
        mean, var = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
        return ((groups - mean) / torch.sqrt(var + EPS)).view(len(x), WIDTH, LENGTH).mT * w + b

    return {
        "nn.GroupNorm": lambda: Wrapped(
            lambda m, x: m.norm(x.mT).mT, norm=loaded(nn.GroupNorm(2, WIDTH), weight=w, bias=b)
        ),
        **functions({"F.group_norm": lambda x, w, b: F.group_norm(x.mT, 2, w, b).mT, "by hand": by_hand}, w=w, b=b),
    }


plain(
    "instance_norm",
    {
        "F.instance_norm": lambda x: F.instance_norm(x.mT).mT,
        "by hand": lambda x: (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + EPS).sqrt(),
    },
)


@step(PIECEWISE, ADDS)
def batch_norm(draw: Draw) -> dict[str, Maker]:
    w, b, mean, var = draw.positive(WIDTH), draw(WIDTH, scale=0.3), draw(WIDTH, scale=0.3), draw.positive(WIDTH)
    state = {"weight": w, "bias": b, "running_mean": mean, "running_var": var}
    return {
        "nn.BatchNorm1d": lambda: Wrapped(lambda m, x: m.norm(x.mT).mT, norm=loaded(nn.BatchNorm1d(WIDTH), **state)),
        **functions(
            {
                "F.batch_norm": lambda x, w, b, mean, var: F.batch_norm(x.mT, mean, var, w, b).mT,
                "by hand": lambda x, w, b, mean, var: (x - mean) / torch.sqrt(var + EPS) * w + b,
            },
            w=w,
            b=b,
            mean=mean,
            var=var,
        ),
    }


# ---- recurrent layers ------------------------------------------------------------------------------------------------


def _lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (F.linear(x, w, b) + F.linear(h, u)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Tensor:
    (r, z, n), (hr, hz, hn) = F.linear(x, w, b).chunk(3, 1), F.linear(h, u).chunk(3, 1)
    r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
    return (1 - z) * torch.tanh(n + r * hn) + z * h


def _over_time(x: Tensor, advance: Callable[..., tuple[Tensor, ...]], states: int) -> Tensor:
    state, outputs = tuple(x.new_zeros(len(x), WIDTH) for _ in range(states)), []
    for position in x.unbind(1):
        state = advance(position, *state)
        outputs.append(state[0])
    return torch.stack(outputs, 1)


def _recurrent(name: str, gates: int, states: int, kind: type, cell: type, written: Callable[..., object]) -> None:
    def spellings(draw: Draw) -> dict[str, Maker]:
        w, u, b = draw(gates * WIDTH, WIDTH), draw(gates * WIDTH, WIDTH), draw(gates * WIDTH, scale=0.3)
        none = torch.zeros_like(b)

        def advance(result: object) -> tuple[Tensor, ...]:
            return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]

        def by_cell(m: Wrapped, x: Tensor) -> Tensor:
            return _over_time(x, lambda p, *s: advance(m.cell(p, s if states > 1 else s[0])), states)

        def by_hand(x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Tensor:
            return _over_time(x, lambda p, *s: advance(written(p, *s, w, u, b)), states)

        layer = {"weight_ih_l0": w, "weight_hh_l0": u, "bias_ih_l0": b, "bias_hh_l0": none}
        single = {key.removesuffix("_l0"): value for key, value in layer.items()}
        return {
            "layer": lambda: Wrapped(
                lambda m, x: m.layer(x)[0], layer=loaded(kind(WIDTH, WIDTH, batch_first=True), **layer)
            ),
            "cell": lambda: Wrapped(by_cell, cell=loaded(cell(WIDTH, WIDTH), **single)),
            **functions({"by hand": by_hand}, w=w, u=u, b=b),
        }

    step(ADDS, OFFSET, name=name)(spellings)


_recurrent("lstm", 4, 2, nn.LSTM, nn.LSTMCell, _lstm)
_recurrent("gru", 3, 1, nn.GRU, nn.GRUCell, _gru)
_recurrent("rnn", 1, 1, nn.RNN, nn.RNNCell, lambda x, h, w, u, b: torch.tanh(F.linear(x, w, b) + F.linear(h, u)))
