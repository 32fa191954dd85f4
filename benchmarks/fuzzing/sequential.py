"""Sequential models under the composites of another library, where that one is right."""

from __future__ import annotations

import copy
import functools
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus, first_layer

from .oracles import Found, differs

sys.path.append(str(Path(__file__).resolve().parent.parent))

CONVOLUTIONS, SIZE = (nn.Conv1d, nn.Conv2d, nn.Conv3d), 8


@functools.cache
def zennit() -> Any:
    """Zennit's modules, or None where it is not installed."""
    import peers

    parts = [peers.load(f"zennit.{part}") for part in ("rules", "composites", "types")]
    return None if None in parts else parts


def random_model(generator: random.Random) -> tuple[nn.Module, Tensor]:
    """A convolutional or a dense network, each layer used once, with ReLU or GELU; and inputs."""
    torch.manual_seed(generator.randrange(10**6))
    act = generator.choice([nn.ReLU, nn.ReLU, nn.GELU, nn.LeakyReLU])
    layers: list[nn.Module] = []
    if generator.random() < 0.3:
        for _ in range(generator.randint(1, 3)):
            layers += [nn.Linear(SIZE, SIZE, bias=generator.random() < 0.7), act()]
        return nn.Sequential(*layers, nn.Linear(SIZE, 3)).double().eval(), torch.randn(3, SIZE).double()
    n = generator.choice([1, 2, 2, 3])
    conv, channels = getattr(nn, f"Conv{n}d"), 2
    for _ in range(generator.randint(1, 3)):
        layers += [conv(channels, 4, 3, padding=1, bias=generator.random() < 0.7), act()]
        channels = 4
    if generator.random() < 0.7:
        layers.append(getattr(nn, generator.choice(["MaxPool", "AvgPool"]) + f"{n}d")(2))
        layers += [conv(4, 4, 3, padding=1), act()]
    layers += [getattr(nn, f"AdaptiveAvgPool{n}d")(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).double().eval(), torch.randn(3, 2, *[SIZE] * n).double()


def examine_sequential(seed: int) -> Found:
    """The same rules in both libraries, elementwise."""
    found, generator = Found(), random.Random(seed)
    model, x = random_model(generator)
    e = 1e-9
    pairs = {
        "Epsilon": (Epsilon(e), lambda r: r.Epsilon(e)),
        "Gamma": (Gamma(0.25), lambda r: r.Gamma(0.25)),
        "AlphaBeta": (AlphaBeta(2.0, 1.0), lambda r: r.AlphaBeta(2.0, 1.0)),
        "ZPlus": (ZPlus(), lambda r: r.ZPlus()),
    }
    firsts = {
        "": (None, lambda r: None),
        "Flat": (Flat(), lambda r: r.Flat()),
        "WSquare": (WSquare(), lambda r: r.WSquare()),
        "ZBox": (ZBox(-9.0, 9.0), lambda r: r.ZBox(-9.0, 9.0)),
    }
    conv, dense, first = (
        generator.choice(sorted(pairs)),
        generator.choice(sorted(pairs)),
        generator.choice(sorted(firsts)),
    )
    rules: list[Any] = [] if not first else [(first_layer, firsts[first][0])]
    rules += [(CONVOLUTIONS, pairs[conv][0]), (nn.Linear, pairs[dense][0])]

    def ours(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        with Composite(rules, formulation="relevance").register(model):
            y = model(leaf)
            (relevance,) = torch.autograd.grad(y[:, 1], leaf, y[:, 1].detach())
        return relevance

    try:
        mine = ours(x)
    except Exception as error:
        found.add("crash", f"{type(error).__name__}: {error}")
        return found
    logits = model(x)[:, 1].detach()
    found.growth = float(mine.abs().sum() / logits.abs().sum())
    if zennit() is None:
        return found
    theirs = _by_zennit(model, x, pairs[conv][1], pairs[dense][1], firsts[first][1])
    off = differs(mine, theirs, lambda: ours(x * (1 + 1e-12)) - mine + theirs)
    if off > 1e-4:  # their stabilizers are not ours
        found.add(
            "peer", f"convolutions {conv}, dense {dense}, first {first or 'as the others'}: off by {off:.1e}, {model}"
        )
    return found


def _by_zennit(model: nn.Module, x: Tensor, conv: Any, dense: Any, first: Any) -> Tensor:
    rules, composites, types = zennit()
    model = copy.deepcopy(model)
    layers = [(types.Activation, rules.Pass()), (types.AvgPool, rules.Norm())]
    layers += [(types.Convolution, conv(rules)), (types.Linear, dense(rules))]
    kind = composites.SpecialFirstLayerMapComposite
    start = first(rules)
    composite = composites.LayerMapComposite(layers) if start is None else kind(layers, [(types.Linear, start)])
    leaf = x.clone().requires_grad_()
    with composite.context(model) as registered:
        y = registered(leaf)
        (relevance,) = torch.autograd.grad(y[:, 1], leaf, y[:, 1].detach())
    return relevance
