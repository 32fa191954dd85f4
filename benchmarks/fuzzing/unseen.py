"""Steps of which a part is out of sight, or has no backward: the report must name them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .steps import SEEN, UNSEEN, WIDTH, Draw, Maker, Wrapped, functions, loaded, plain, step


class Halved(torch.autograd.Function):
    """A custom autograd function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """``x / 2``."""
        return x / 2

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> Tensor:
        """Its gradient."""
        return slot / 2


@torch.jit.script
def _scripted(x: Tensor) -> Tensor:
    return torch.relu(x) / 2


plain(
    "custom_function",
    {"apply": Halved.apply, "in a sum": lambda x: 0.5 * Halved.apply(x) + 0.25 * x, SEEN: lambda x: x / 2},
    UNSEEN,
)
plain("scripted", {"relu": lambda x: _scripted(x), SEEN: lambda x: torch.relu(x) / 2}, UNSEEN)
plain("vectorized", {"vmap": torch.vmap(lambda x: torch.tanh(x) * x), SEEN: lambda x: torch.tanh(x) * x}, UNSEEN)


class NoGradient(Tensor):
    """A weight whose products come from a kernel without a backward."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer for ``F.linear`` and ``matmul``."""
        if func in (F.linear, Tensor.matmul, Tensor.__matmul__):
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                return func(args[0].detach().contiguous(), args[1].as_subclass(Tensor), *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})


@step(UNSEEN)
def kernel_without_backward(draw: Draw) -> dict[str, Maker]:
    w = draw(WIDTH, WIDTH)

    def layer() -> nn.Module:
        made = loaded(nn.Linear(WIDTH, WIDTH, bias=False), weight=w)
        made.weight = nn.Parameter(w.clone().as_subclass(NoGradient), requires_grad=False)
        return made

    def plain_layer() -> nn.Module:
        return loaded(nn.Linear(WIDTH, WIDTH, bias=False), weight=w)

    return {
        "residual": lambda: Wrapped(lambda m, x: x + m.layer(x), layer=layer()),
        SEEN: lambda: Wrapped(lambda m, x: x + m.layer(x), layer=plain_layer()),
    }


@step(UNSEEN)
def recomputed(draw: Draw) -> dict[str, Maker]:
    """A part that the model runs without gradients, beside one with."""
    w = draw(WIDTH, WIDTH)

    def run(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.tanh(x @ w)
        return x + y

    return functions({"no_grad": run, SEEN: lambda x, w: x + torch.tanh(x @ w).detach()}, w=w)
