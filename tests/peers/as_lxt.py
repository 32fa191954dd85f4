"""LXT's tests on lxt_compose: its explicit functions, modules, rules and composite, by our drop-ins of their names."""

import inspect
import sys
import types
from functools import wraps

import torch
from torch import nn

from lxt_compose import Composite, Epsilon, Identity, Uniform, UniformEpsilon, functional, modules

UNMAPPED = {}


def runs(function):
    """Dtypes and seeds, since its tests draw their numbers without a seed; those of whole layers are slow."""
    seeds = 1 if function.__module__.endswith("test_modules") else 10
    return [(dtype, seed) for dtype in (torch.float32, torch.float64) for seed in range(seeds)]


def prepare():
    """Nothing is needed."""


def patch(module):
    """Nothing in its test files is exchanged."""


class Attention(nn.Module):
    """Our attention with the attributes by which LXT's holds its weights."""

    def __init__(self, attention):
        super().__init__()
        self.attention = modules.MultiheadAttentionCP.from_torch(attention)
        self.num_heads, self.out_proj = attention.num_heads, attention.out_proj
        self.head_dim = attention.embed_dim // attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.q_proj_weight, self.k_proj_weight, _ = weights
        self.bias_q, self.bias_k, _ = biases
        self.v_proj = types.SimpleNamespace(weight=weights[2], bias=biases[2])

    def forward(self, *inputs, **options):
        return self.attention(*inputs, **options)


class Wrapped(nn.Module):
    """A function or module under a rule; LXT's rules are modules around it."""

    def __init__(self, rule, function):
        super().__init__()
        self.called = Called(function)
        self.registration = rule.register(self.called)

    def forward(self, *inputs):
        return self.called(*inputs)


class Called(nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def _wrapper(rule):
    return lambda function, *arguments: Wrapped(rule(*arguments), function)


def _slow_layer_norm(x, weight, bias, epsilon):
    """A layer norm made of our drop-ins, its standard deviation a constant."""
    mean = functional.mean(x, -1, True)
    centered = functional.add2(x, functional.mul2(mean, -1))
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    deviation = (variance + epsilon).sqrt().detach()
    return functional.add2(functional.mul2(functional.mul2(centered, 1 / deviation), weight), bias)


def _mask(mask, query):
    """A mask of the dtype of the query, -inf where a boolean mask is True."""
    return mask.to(query.dtype) if mask.is_floating_point() else torch.zeros_like(query).masked_fill(mask, -torch.inf)


class _EpsilonFunction:
    """What LXT calls as an autograd function."""

    @staticmethod
    def apply(function, epsilon, *inputs):
        return functional.epsilon_lrp(function, epsilon, *inputs)


class _Projection(nn.Linear):
    """The projections of LXT's attention have classes of their own; in ours Epsilon is their rule anyway."""


def _composite(rules):
    return Composite({key: rule for key, rule in rules.items() if key is not _Projection})


def _unsigned(function):
    """The drop-in with LXT's stabilizer ``z + epsilon``, which is 0 at z = -epsilon; for matmul ``2 z + epsilon``."""
    signature, factors = inspect.signature(function), 2 if function is functional.matmul else 1

    @wraps(function)
    def called(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        epsilon = given.arguments["epsilon"] / factors
        given.arguments["epsilon"] = lambda z: z + epsilon
        return function(*given.args, **given.kwargs)

    return called


def _old_softmax(input, dim, dtype=None, inplace=False):
    """The order of arguments for which test_softmax is written."""
    return functional.softmax(input, dim, dtype, inplace=inplace)


def install(conventions):
    """Put modules of LXT's names into ``sys.modules``."""
    functions = {name: getattr(functional, name) for name in functional.__all__}
    if conventions:
        stabilized = {n for n, f in functions.items() if "epsilon" in inspect.signature(f).parameters} - {"epsilon_lrp"}
        functions |= {name: _unsigned(functions[name]) for name in stabilized} | {"softmax": _old_softmax}
    classes = [modules.LinearEpsilon, modules.SoftmaxDT, modules.RMSNormIdentity, modules.LayerNormEpsilon]
    built = dict.fromkeys(classes, lambda module, kind: kind.from_torch(module))
    built[Attention] = lambda module, kind: kind(module)
    _module("functional", **functions, _layer_norm_slower=_slow_layer_norm)
    _module(
        "modules", **{kind.__name__: kind for kind in classes}, MultiheadAttention_CP=Attention,
        INIT_MODULE_MAPPING=built, LinearInProjection=_Projection, LinearOutProjection=_Projection,
    )  # fmt: skip
    _module(
        "rules", epsilon_lrp_fn=_EpsilonFunction, EpsilonRule=_wrapper(Epsilon), UniformRule=_wrapper(Uniform),
        UniformEpsilonRule=_wrapper(UniformEpsilon), IdentityRule=_wrapper(Identity),
    )  # fmt: skip
    _module("special", _prepare_attn_mask=_mask)
    _module("core", Composite=_composite)


def _module(name, **content):
    for parent in ("lxt", "lxt.explicit"):
        sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
    module = types.ModuleType(f"lxt.explicit.{name}")
    vars(module).update(content)
    sys.modules[module.__name__] = module
    setattr(sys.modules["lxt.explicit"], name, module)
    sys.modules["lxt"].explicit = sys.modules["lxt.explicit"]
