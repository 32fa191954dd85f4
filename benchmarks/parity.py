"""The same numbers as other libraries where they are right, and a list of where they are not.

    python benchmarks/parity.py [--peers DIR]

Relative errors are ``max |ours - theirs| / max |theirs|`` over several layers and inputs; at most 1e-6 in float64 and
1e-4 in float32, or the last line says so and the exit status is 1. Peers that cannot be imported get dashes.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

import peers
import torch
from measure import keep
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import lxt_compose as ours
from lxt_compose import Composite, Rule, Stabilizer

LIMITS = {torch.float64: 1e-6, torch.float32: 1e-4}
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda **o: nn.Linear(12, 7, **o), (5, 12)),
    "Linear, tokens": (lambda **o: nn.Linear(12, 7, **o), (2, 3, 12)),
    "Conv1d": (lambda **o: nn.Conv1d(4, 6, 3, 2, 1, dilation=2, groups=2, **o), (2, 4, 17)),
    "Conv2d": (lambda **o: nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), **o), (2, 3, 9, 8)),
    "Conv2d, reflect": (lambda **o: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", **o), (2, 3, 6, 6)),
    "Conv3d": (lambda **o: nn.Conv3d(2, 3, 2, padding=1, **o), (2, 2, 4, 3, 4)),
    "ConvTranspose1d": (lambda **o: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, **o), (2, 4, 7)),
    "ConvTranspose2d": (lambda **o: nn.ConvTranspose2d(3, 4, 3, (2, 1), 1, (1, 0), **o), (2, 3, 5, 4)),
    "ConvTranspose3d": (lambda **o: nn.ConvTranspose3d(2, 3, 2, stride=2, **o), (2, 2, 3, 2, 3)),
}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def relevance(function: Callable[..., Tensor], inputs: list[Tensor], r: Tensor) -> list[Tensor]:
    """What flows back to the inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(function(*leaves), leaves, r))


def by_us(module: nn.Module, rules: Any, inputs: list[Tensor], r: Tensor, **options: Any) -> list[Tensor]:
    """The same under a composite."""
    with Composite(rules, **options).register(module):
        return relevance(module, inputs, r)


def by_rule(module: nn.Module, rule: Any, inputs: list[Tensor], r: Tensor) -> list[Tensor]:
    """The same under a rule of Zennit or tdhook, on a copy that has nothing else on it."""
    module = copy.deepcopy(module)
    rule.register(module)
    return relevance(module, inputs, r)


def error(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative error."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True))


class Call(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """The function of the inputs."""
        return self.function(*inputs)


def layer_rules() -> list[tuple[Rule, Callable[[Any], Any] | None, Callable[[Any], Any] | None]]:
    """Rules for layers: ours, Zennit's (from its modules), tdhook's."""
    bias = {"zero_params": "bias"}
    return [
        (ours.Epsilon(), lambda z: z.Epsilon(), lambda t: t.EpsilonRule()),
        (ours.Epsilon(zero_bias=True), lambda z: z.Epsilon(**bias), None),
        (ours.Gamma(), lambda z: z.Gamma(), None),
        (ours.Gamma(10.0), lambda z: z.Gamma(10.0), None),
        (ours.AlphaBeta(), lambda z: z.AlphaBeta(), lambda t: t.AlphaBetaRule()),
        (ours.AlphaBeta(3.0, 2.0, zero_bias=True), lambda z: z.AlphaBeta(3.0, 2.0, **bias), None),
        (ours.ZPlus(), lambda z: z.ZPlus(), None),
        (ours.ZBox(-4.0, 5.0), lambda z: z.ZBox(-4.0, 5.0), None),
        (ours.WSquare(), lambda z: z.WSquare(), lambda t: t.WSquareRule()),
        (ours.WSquare(zero_bias=True), lambda z: z.WSquare(**bias), None),
        (ours.Flat(), lambda z: z.Flat(), lambda t: t.FlatRule()),
        (ours.Epsilon(Stabilizer(0.1, clip=True)), lambda z: z.Epsilon(_stabilizer(0.1, clip=True)), None),
        (ours.AlphaBeta(2.0, 1.0, Stabilizer(0.1, norm_scale=True)),
         lambda z: z.AlphaBeta(2.0, 1.0, _stabilizer(0.1, norm_scale=True)), None),
    ]  # fmt: skip


def _stabilizer(*args: Any, **options: Any) -> Any:
    return peers.load("zennit.core").Stabilizer(*args, **options)


def layer_errors(rule: Rule, make: Callable[[Any], Any] | None, library: Any, dtype: torch.dtype) -> float | None:
    """The largest error over all layers, biases and signs of the input."""
    if make is None or library is None:
        return None
    found = []
    for number, (build, shape) in enumerate(LAYERS.values()):
        for bias in (True, False):
            torch.manual_seed(number)
            layer = build(bias=bias).to(dtype).requires_grad_(False)
            for x in (seeded(*shape).to(dtype), seeded(*shape).relu().to(dtype)):
                r = seeded(*layer(x).shape, seed=1).to(dtype) * layer(x)
                found.append(error(by_us(layer, {"": rule}, [x], r), by_rule(layer, make(library), [x], r)))
    return max(found)


def errors_of_lxt(dtype: torch.dtype) -> dict[str, float]:
    """LXT's functions and wrappers against the rules that ops have by default."""
    f, rules = peers.load("lxt.explicit.functional"), peers.load("lxt.explicit.rules")
    if f is None or rules is None:
        return {}
    a, b, w, v = (seeded(*shape, seed=i).to(dtype) for i, shape in enumerate([(2, 3, 4), (2, 3, 4), (4, 4), (4,)]))
    e, c, far = 1e-12, b.mT, v + 20  # far from 0, where the stabilizer that their norm has does not show
    sums = dict.fromkeys([F.linear, torch.add, torch.mean], ours.Epsilon(e))
    products = {torch.matmul: ours.UniformEpsilon(e)}
    cases: list[tuple[str, Any, Any, Any, list[Tensor]]] = [
        ("linear_epsilon", lambda x: f.linear_epsilon(x, w, v, e), lambda x: F.linear(x, w, v), sums, [a]),
        ("add2", lambda x, y: f.add2(x, y, epsilon=e), torch.add, sums, [a, b]),
        ("mul2", f.mul2, torch.mul, {}, [a, b]),
        ("matmul", lambda x, y: f.matmul(x, y, epsilon=e), torch.matmul, products, [a, c]),
        ("softmax", lambda x: f.softmax(x, -1), lambda x: F.softmax(x, -1), {}, [a]),
        ("mean", lambda x: f.mean(x, 1, True, e), lambda x: x.mean(1, keepdim=True), sums, [a]),
        ("layer_norm", lambda x: f.layer_norm(x, v, far, 1e-5), lambda x: F.layer_norm(x, (4,), v, far), {}, [a]),
        (
            "rms_norm_identity",
            lambda x: f.rms_norm_identity(x, v, 1e-5),
            lambda x: F.rms_norm(x, (4,), v, 1e-5),
            {},
            [a],
        ),
        ("normalize", lambda x: f.normalize(x, dim=1), lambda x: F.normalize(x, dim=1), {}, [a]),
        ("EpsilonRule", rules.EpsilonRule(nn.Tanh(), e), torch.tanh, {torch.tanh: ours.Epsilon(e)}, [a]),
        ("UniformEpsilonRule", rules.UniformEpsilonRule(Call(torch.matmul), e), torch.matmul, products, [a, c]),
        ("UniformRule", rules.UniformRule(Call(torch.mul)), torch.mul, {}, [a, b]),
        ("IdentityRule", rules.IdentityRule(nn.GELU()), F.gelu, {}, [a]),
    ]
    found = {}
    for name, theirs, mine, composite, inputs in cases:
        z = mine(*inputs)
        r = seeded(*z.shape, seed=4).to(dtype) * z
        found[name] = error(by_us(Call(mine), composite, inputs, r), relevance(theirs, inputs, r))
    return found


def errors_of_tdhook(dtype: torch.dtype) -> dict[str, float]:
    """tdhook's other rules; those of its norm and its pseudo-identity take gradients, not relevance."""
    t = peers.load("tdhook.attribution.lrp_helpers.rules")
    if t is None:
        return {}
    cases: list[tuple[nn.Module, Any, Any, str]] = [
        (nn.Softmax(-1), t.SoftmaxEpsilonRule(), {}, "relevance"),
        (nn.GELU(), t.PassRule(), {nn.GELU: ours.Pass()}, "relevance"),
        (nn.LayerNorm(4), t.LayerNormRule(), {}, "gradient"),
        (nn.GELU(), t.PseudoIdentityRule(), {nn.GELU: ours.Ratio()}, "gradient"),
    ]
    x, r = seeded(2, 3, 4), seeded(2, 3, 4, seed=1).to(dtype)
    x = (x + 0.5 * x.sign()).to(dtype)  # their ratio has a stabilizer that ours does without
    found = {}
    for module, rule, composite, formulation in cases:
        module = module.to(dtype).requires_grad_(False)
        mine = by_us(module, composite, [x], r, formulation=formulation)
        found[type(rule).__name__] = error([x * g for g in mine], [x * g for g in by_rule(module, rule, [x], r)])
    return found


# Options of Zennit's composites, and of our presets of the same names.
COMPOSITES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon_plus": ({}, {}),
    "epsilon_alpha2_beta1": ({}, {}),
    "epsilon_plus_flat": ({}, {}),
    "epsilon_alpha2_beta1_flat": ({}, {}),
    "epsilon_gamma_box": ({"low": -3.0, "high": 3.0}, {"low": -3.0, "high": 3.0}),
    "excitation_backprop": ({}, {"zero_bias": False}),
    "guided_backprop": ({}, {}),
    "deconvnet": ({}, {}),
    "beta_smooth": ({}, {}),
}


def errors_of_composites(dtype: torch.dtype) -> dict[str, float]:
    """Zennit's composites against the presets of the same names, on a small CNN without batch norms."""
    composites = peers.load("zennit.composites")
    if composites is None:
        return {}
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()]
    parts += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4)]
    model = nn.Sequential(*parts).to(dtype).requires_grad_(False)
    x, found = seeded(2, 3, 10, 10).clamp(-3, 3).to(dtype), {}
    r = model(x) * F.one_hot(torch.tensor([1, 3]), 4)
    for name, (theirs, mine) in COMPOSITES.items():
        theirs = {key: torch.full_like(x, value) for key, value in theirs.items()}
        with composites.COMPOSITES[name](**theirs).context(copy.deepcopy(model)) as twin:
            wanted = relevance(twin, [x], r)
        with ours.presets.get(name, **mine).register(model):
            found[name] = error(relevance(model, [x], r), wanted)
    return found


def table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    """Print a table of what is text already."""
    print(f"\n{title}\n{tabulate(rows, heads, disable_numparse=True)}", flush=True)
    keep({"title": title, "headers": heads, "rows": rows})


def main() -> int:
    """Print the tables; 1 if an error is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    from wrong import probes  # it needs the path

    libraries = peers.load("zennit.rules"), peers.load("tdhook.attribution.lrp_helpers.rules")
    above, rows = 0, []
    for rule, *makes in layer_rules():
        cells = [layer_errors(rule, m, lib, d) for m, lib in zip(makes, libraries, strict=True) for d in LIMITS]
        limits = [*LIMITS.values()] * len(libraries)
        above += sum(cell is not None and cell > limit for cell, limit in zip(cells, limits, strict=True))
        rows.append([str(rule), *("-" if cell is None else f"{cell:.1e}" for cell in cells)])
    heads = [f"{name}, {kind}" for name in ("Zennit", "tdhook") for kind in ("fp64", "fp32")]
    title = f"rules for layers, relative error over {len(LAYERS)} layers, bias on and off, inputs signed and not"
    table(title, ["rule", *heads], rows)
    rows = []
    for library, errors in (("LXT", errors_of_lxt), ("tdhook", errors_of_tdhook), ("Zennit", errors_of_composites)):
        each = [errors(dtype) for dtype in LIMITS]
        above += sum(
            value > limit for found, limit in zip(each, LIMITS.values(), strict=True) for value in found.values()
        )
        rows += [[library, name, *(f"{found[name]:.1e}" for found in each)] for name in each[0]]
    table("functions, other rules and composites, relative error", ["library", "name", "fp64", "fp32"], rows)
    table("where they are wrong", ["library", "input", "right", "theirs", "ours"], probes())
    print(f"\n{above} above the limits (1e-6 in float64, 1e-4 in float32)")
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
