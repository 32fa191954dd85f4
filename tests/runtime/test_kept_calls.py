"""Calls that are what they were before: relevance, report and marks are those of calls that are looked at each time."""

import pytest
import torch
from fast_ways import calls_kept, keep_nothing
from support import Fn
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import Composite, Identity, check_conservation, presets
from lxt_compose.autograd.marks import history_of

W, V = torch.randn(6, 6), torch.randn(6)


def made_of(forward):
    """A model that computes this of an input and the number of the pass."""
    return Fn(lambda _, x, n=0: forward(x, n), unused=nn.Linear(2, 2))


@pytest.fixture
def kept(monkeypatch):
    """The names of the functions of which it was kept what they come to."""
    return calls_kept(monkeypatch)


def passes(forward, composite, count=4):
    """Gradients, outputs, their histories and the report of several passes through one registered model."""
    found = []
    with composite.register(made_of(forward)) as registration:
        model = registration.session.model
        for n in range(count):
            torch.manual_seed(n)
            x = torch.randn(3, 6, requires_grad=True)
            y = model(x, n)
            history = history_of(y)
            y.backward(y.detach() if composite.formulation == "relevance" else torch.ones_like(y))
            found.append((x.grad, y.detach(), history))
    return found, registration.report().to_string()


SAME = {
    "silu": lambda x, n: F.silu(x @ W),
    "pow": lambda x, n: (x @ W).pow(2),
    "neg": lambda x, n: -(x @ W),
    "layer_norm": lambda x, n: F.layer_norm(x @ W, (6,), V, V),
    "rms": lambda x, n: x * torch.rsqrt((x @ W).pow(2).mean(-1, keepdim=True) + 1e-6),
    "product": lambda x, n: F.silu(x @ W) * (x @ W.t()),
    "attention": lambda x, n: F.scaled_dot_product_attention((x @ W)[None], (x @ W.t())[None], x[None] * 2).sum(0),
    "relu": lambda x, n: torch.relu(x @ W),
    "linear": lambda x, n: F.linear(x, W, V),
    "residual": lambda x, n: x @ W + F.linear(x, W),
    "joined": lambda x, n: torch.cat([x @ W, x], 1)[:, 2:8],
    "several outputs": lambda x, n: sum(torch.split(x @ W, 3, -1)),
    "a number": lambda x, n: -((x @ W) + 2.0) * 0.5,
    "steps of different kinds": lambda x, n: (
        (F.silu(x @ W).t() @ (x @ W).t().mT).t().sum(1, keepdim=True) + x[:, :3].sum()
    ),
}
OTHER = {
    "a gate": lambda x, n: F.silu(torch.sigmoid(x @ W) if n % 2 else x @ W) * (x @ W),
    "a product": lambda x, n: torch.tanh((x @ W) * (x @ W.t()) if n % 2 else x @ W) * (x @ W),
    "a step of a chain": lambda x, n: F.silu((x @ W).exp() if n % 2 else x @ W) + (x @ W),
    "a function of one tensor": lambda x, n: (y := x @ W) * (torch.sigmoid(y) if n % 2 else x @ W.t()),
    "twice the same": lambda x, n: (y := x @ W) * (y if n % 2 else x @ W.t()),
    "another dtype": lambda x, n: F.silu((x @ W).double() if n % 2 else x @ W).float(),
    "another exponent": lambda x, n: (x @ W).abs().pow(2 + n),
    "another weight": lambda x, n: F.layer_norm(x @ W, (6,), V + n, None),
    "another size": lambda x, n: F.layer_norm((x @ W).view(3, 2, 3), (3,) if n % 2 else (2, 3)).sum(1),
    "another shape": lambda x, n: torch.tanh((x @ W)[:, : n + 1]),
    "a change in place": lambda x, n: F.silu(x @ W, inplace=n % 2 == 1),
    "a constant": lambda x, n: F.silu((x.detach() if n % 2 else x) @ W) * x,
    "a comparison": lambda x, n: torch.where(x > 0, F.silu(x), 0.0) if n % 2 else F.silu(x),
    "a mask": lambda x, n: F.scaled_dot_product_attention(
        (x @ W)[None], x[None] * 2, x[None], attn_mask=(x @ x.t())[None] if n % 2 else torch.ones(1, 3, 3)
    ).sum(0),
    "a view": lambda x, n: F.silu((x @ W).t() if n % 2 else x @ W).sum(0, keepdim=True),
    "a leaf": lambda x, n: F.silu(x if n % 2 else x * 2),
    "a leaf and a function of it": lambda x, n: (x if n % 2 else x @ W) + F.silu(x),
    "a copy": lambda x, n: (y := torch.exp(x @ W)).to(y.dtype if n % 2 else torch.float64).float().log1p(),
    "a tensor of one number": lambda x, n: F.silu(x @ W) * (torch.full((1, 6), 2.0) if n % 2 else V),
    "an expanded number": lambda x, n: (x @ W) * (V[:1].expand(6) if n % 2 else V),
    "an exponent for each": lambda x, n: (x @ W).abs().pow(V.abs() if n % 2 else V.abs() + 2),
    "a sparse factor": lambda x, n: torch.mm(torch.eye(3).to_sparse() if n % 2 else torch.eye(3), x @ W),
    "a scale after a shift": lambda x, n: (
        (z := (x @ W - x.amax(-1, True)) * (2.0 if n % 2 else V)).exp() / z.exp().sum(-1, True)
    ),
}  # fmt: skip
COMPOSITES = {
    "gradient": lambda: Composite(formulation="gradient"),
    "relevance": lambda: Composite(),
    "cp_lrp": presets.cp_lrp,
    "relp": presets.relp,
    "keys": lambda: Composite({F.silu: Identity(zero_bias=True)}, formulation="gradient"),
}


@pytest.mark.parametrize("name", SAME | OTHER)
@pytest.mark.parametrize("of", COMPOSITES)
def test_all_is_as_where_each_call_is_looked_at(name, of, monkeypatch):
    forward = (SAME | OTHER)[name]
    found, report = passes(forward, COMPOSITES[of]())
    keep_nothing(monkeypatch)
    expected, whole = passes(forward, COMPOSITES[of]())
    for mine, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine[:2], other[:2], strict=True))
        assert mine[2] == other[2]
    assert report == whole


@pytest.mark.parametrize("name", SAME)
def test_what_comes_to_the_same_is_kept(name, kept):
    passes(SAME[name], Composite(formulation="gradient"), count=3)
    assert len(kept) >= 2


@pytest.mark.parametrize("formulation", ["gradient", "relevance"])
def test_layers_of_products_are_looked_at_for_parameters(formulation, monkeypatch):
    model = Fn(
        lambda self, x, n: F.linear((x @ W) * (x @ W.t()), self.layer.weight if n % 2 else W) * x, layer=nn.Linear(6, 6)
    )

    def run():
        with Composite(formulation=formulation).register(model):
            found = []
            for n in (0, 1, 0, 1):
                x = torch.randn(3, 6, generator=torch.Generator().manual_seed(n)).requires_grad_()
                y = model(x, n)
                found += torch.autograd.grad(y, x, torch.ones_like(y))
        return found

    found = run()
    keep_nothing(monkeypatch)
    assert all(map(torch.equal, found, run()))


def test_a_rule_of_the_users_is_asked_each_time():
    class Twice(Identity):
        """Identity that counts how often it is asked."""

        asked = 0

        def leave(self, call, outputs):
            Twice.asked += 1
            return super().leave(call, outputs)

    passes(SAME["silu"], Composite({F.silu: Twice()}, formulation="gradient"), count=3)
    assert Twice.asked == 3


def test_an_observer_sees_all(kept):
    with Composite(formulation="gradient").register(made_of(SAME["silu"])) as registration:
        model = registration.session.model
        for _ in range(2):
            model(torch.randn(3, 6, requires_grad=True))
        assert kept == ["matmul", "silu"]
        with check_conservation(registration):
            model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert kept == ["matmul", "silu"]


SURROUNDINGS = {
    "packed": lambda model, x: _packed(model, x),
    "checkpointed": lambda model, x: checkpoint(model, x, use_reentrant=False),
}


def _packed(model, x):
    with torch.autograd.graph.save_on_cpu():
        return model(x)


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_where_more_than_autograd_records_each_call_of_a_rule_is_looked_at(around, kept):
    model = made_of(SAME["silu"])
    with Composite(formulation="gradient").register(model):
        for _ in range(3):
            SURROUNDINGS[around](model, torch.randn(3, 6, requires_grad=True)).sum().backward()
        assert "silu" not in kept
        model(torch.randn(3, 6, requires_grad=True))
        model(torch.randn(3, 6, requires_grad=True))
    assert kept.count("silu") == 1
