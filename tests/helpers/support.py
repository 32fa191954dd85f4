"""What several test files share: the fingerprint of a model, attribution in both formulations, small models."""

import dataclasses
import re
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

from lxt_compose import Composite, Epsilon, Gamma, Identity, Norm

FORMULATIONS = ("relevance", "gradient")
both_formulations = pytest.mark.parametrize("formulation", FORMULATIONS)
RULES = {nn.Linear: Gamma(), nn.Conv2d: Epsilon(), nn.LayerNorm: Norm(), nn.ReLU: Identity()}


def label(value):
    """The name of a parameter of a test: its text without addresses in memory, which no two processes share."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


# ---- no trace ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Same:
    """Equal to another only if both hold the very same object (which stays alive, so its identity is not reused)."""

    thing: object

    def __eq__(self, other):
        return isinstance(other, Same) and self.thing is other.thing

    def __repr__(self):
        return f"{type(self.thing).__name__}@{id(self.thing):x}"


def fingerprint(model):
    """All of a model, and of this thread, that a registration could leave a trace on; equal before and after."""
    found = {"state_dict": list(model.state_dict()), "modes": len(_get_current_function_mode_stack())}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path, "itself"] = (Same(module), type(module), module.training)
        for name, value in vars(module).items():
            inside = value.items() if isinstance(value, dict) else ()
            found[path, name] = (Same(value), [(key, Same(entry)) for key, entry in inside])
    for path, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        found[path, "tensor"] = (Same(tensor), tensor.requires_grad, Same(tensor.grad), tensor.data_ptr())
        found[path, "hooks"] = len(getattr(tensor, "_backward_hooks", None) or ())
    return found


# ---- attribution ---------------------------------------------------------------------------------------------------


def start_at(y, index=None):
    """One where the explanation starts: at output `index` of the last dimension, or at all outputs."""
    chosen = torch.ones_like(y)
    if index is not None:
        chosen = torch.zeros_like(y)
        chosen[..., index] = 1
    return chosen


def attribute(model, x, composite, index=None, **inputs):
    """The relevance of x for the (sum of the) outputs, in either formulation."""
    x = x.detach().clone().requires_grad_()
    with composite.register(model):
        y = first_tensor(model(x, **inputs))
        slot = start_at(y, index)
        y.backward(slot * y.detach() if composite.formulation == "relevance" else slot)
    return x.grad if composite.formulation == "relevance" else x.detach() * x.grad


def input_times_gradient(model, x, index=None, **inputs):
    """What Epsilon rules give for networks that are piecewise linear and through 0: x * dy/dx."""
    x = x.detach().clone().requires_grad_()
    y = first_tensor(model(x, **inputs))
    (gradient,) = torch.autograd.grad(y, x, start_at(y, index))
    return x.detach() * gradient


def first_tensor(output):
    """The first tensor of a model's output."""
    while not isinstance(output, torch.Tensor):
        if dataclasses.is_dataclass(output) and not isinstance(output, dict):
            output = getattr(output, dataclasses.fields(output)[0].name)
        else:
            output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def assert_close(actual, expected, tolerance=1e-8):
    """Elementwise, with the tolerance relative to the largest element too."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * max(1.0, float(expected.abs().max())))


def exact(formulation="relevance", rules=(), **options):
    """A composite with Epsilon(1e-12) on layers and sums: input x gradient on ReLU networks, in float64."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Bilinear)
    own = [(layers, Epsilon(1e-12)), (torch.add, Epsilon(1e-12)), (torch.sub, Epsilon(1e-12))]
    own += [(f, Epsilon(1e-12)) for f in (torch.neg, torch.sum, torch.mean, F.linear, F.conv2d, F.adaptive_avg_pool2d)]
    return Composite([*rules, *own], formulation=formulation, **options)


# ---- zoo -----------------------------------------------------------------------------------------------------------


class Fn(nn.Module):
    """A module made of a function of the input and of its children, ``function(self, x)``."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Residual(nn.Module):
    """x + fc2(relu(fc1(x))), the smallest block of all networks since 2015."""

    def __init__(self, size=6, inplace=False):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(size, 8), nn.ReLU(inplace), nn.Linear(8, size)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Self-attention written with functions, as most transformers have it."""

    def __init__(self, size=8, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        return self.out((weights @ v).transpose(-2, -3).flatten(-2))


class Transformer(nn.Module):
    """Two pre-norm blocks with GELU, and a head on the mean token."""

    def __init__(self, size=8, blocks=2):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(size),
                    "attention": Attention(size),
                    "norm2": nn.LayerNorm(size),
                    "mlp": nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)),
                }
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(size, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block["attention"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(x.mean(-2))


def mlp():
    return nn.Sequential(OrderedDict(fc1=nn.Linear(6, 8), act=nn.ReLU(), fc2=nn.Linear(8, 3))).double().eval()


def cnn(inplace=False):
    return (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ).double().eval()
    )  # fmt: skip


def residual(inplace=False):
    return nn.Sequential(Residual(inplace=inplace), Residual(inplace=inplace), nn.Linear(6, 3)).double().eval()


def transformer():
    return Transformer().double().eval()


ZOO = {
    "mlp": (mlp, (4, 6)),
    "cnn": (cnn, (2, 2, 8, 8)),
    "residual": (residual, (4, 6)),
    "transformer": (transformer, (2, 5, 8)),
}


def make(name, seed=0):
    """A model of the zoo and an input for it, both in float64."""
    torch.manual_seed(seed)
    build, shape = ZOO[name]
    return build(), torch.randn(*shape, dtype=torch.float64)


# ---- small things ---------------------------------------------------------------------------------------------------


def x6(rows=4, seed=1):
    """Rows of six numbers in float64."""
    return torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(inputs=6, outputs=6):
    return nn.Linear(inputs, outputs).double()


def twice():
    """A custom autograd function that doubles, `Twice`: a new one each time."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, slot):
            return slot * 2

    return Twice


class Bang(Exception):
    pass


def bang(*_, **__):
    raise Bang


def in_threads(functions):
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
