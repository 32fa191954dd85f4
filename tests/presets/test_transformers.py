"""The presets for transformers: what each stops and shares, on blocks small enough to write the answer down."""

import pytest
import torch
from support import Fn, assert_close, attribute
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Family, MergeBatchNorm, Stop, Uniform, default_rules, presets
from lxt_compose.coverage.rows import Status

FORMULATIONS = ("gradient", "relevance")


class Gated(nn.Module):
    """``activation(gate) * up``, with what is done to the activation's output before it multiplies."""

    def __init__(self, activation, between=lambda gate: gate):
        super().__init__()
        self.activation, self.between = activation, between

    def forward(self, x):
        gate, up = x.chunk(2, -1)
        return self.between(self.activation(gate)) * up


def shares(model, composite, x):
    """The relevance of the gate's and the signal's half of x, each summed, for R = output; and the output's sum."""
    x = x.clone().requires_grad_()
    with composite.register(model) as registration:
        z = model(x)
        z.backward(z.detach() if composite.formulation == "relevance" else torch.ones_like(z))
    found = x.grad if composite.formulation == "relevance" else x.detach() * x.grad
    assert registration.report().complete
    gate, up = found.chunk(2, -1)
    return float(gate.sum()), float(up.sum()), float(z.detach().sum())


ACTIVATIONS = {
    "silu": F.silu, "sigmoid": torch.sigmoid, "gelu": F.gelu, "relu": F.relu, "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh, "a module": nn.GELU(), "a unit": lambda gate: QUICK(gate),
}  # fmt: skip
BETWEEN = {
    "nothing": lambda gate: gate,
    "a view": lambda gate: gate.view(2, 2, 2).transpose(0, 1).reshape(4, 2).view(2, 4),
    "a factor": lambda gate: 0.5 * gate / 3,
    "a copy": lambda gate: gate.clone().float().double(),
}


class Quick(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


QUICK = Quick()


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_cp_lrp_gives_nothing_to_gates_and_the_others_half(name, between, formulation):
    model = Gated(ACTIVATIONS[name], BETWEEN[between])
    model.unit = QUICK  # a part of the model, so that it is seen
    x = torch.linspace(0.5, 2, 16, dtype=torch.float64).view(2, 8)
    gate, up, total = shares(model, presets.cp_lrp(formulation=formulation), x)
    assert gate == 0
    assert up == pytest.approx(total, rel=1e-9)
    for preset in (presets.attnlrp, presets.relp):
        gate, up, total = shares(model, preset(formulation=formulation), x)
        part = 0 if name == "sigmoid" else total / 2
        assert (gate, up) == (pytest.approx(part, rel=1e-6), pytest.approx(total - part, rel=1e-6))
        gate, up, total = shares(model, preset({torch.mul: Uniform()}, formulation=formulation), x)
        half = total / 2
        if name == "sigmoid":  # half of its half stays in sigmoid(0) = 1/2
            half -= float(BETWEEN[between](torch.full((2, 4), 0.5).double()).mul(x[:, 4:]).sum()) / 2
        assert (gate, up) == (pytest.approx(half, rel=1e-6), pytest.approx(total / 2, rel=1e-6))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("both", [lambda x: x, F.silu], ids=["no gate", "two gates"])
def test_without_one_gate_the_factors_share_evenly(both, formulation):
    class Product(nn.Module):
        def forward(self, x):
            a, b = (both(half) for half in x.chunk(2, -1))
            return a * b

    x = torch.linspace(0.5, 2, 8, dtype=torch.float64).view(1, 8)
    a, b, total = shares(Product(), presets.cp_lrp(formulation=formulation), x)
    assert (a, b) == (pytest.approx(total / 2), pytest.approx(total / 2))


def test_an_activation_behind_a_layer_is_no_gate():
    """Hidden units are activations too: what a layer makes of them is a signal again."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False).double()

        def forward(self, x):
            a, b = x.chunk(2, -1)
            return self.layer(F.gelu(a)) * b

    torch.manual_seed(0)
    a, b, total = shares(Product(), presets.cp_lrp(), torch.linspace(0.5, 2, 8, dtype=torch.float64).view(1, 8))
    assert (a, b) == (pytest.approx(total / 2), pytest.approx(total / 2))


class SelfAttention(nn.Module):
    """Queries, keys and values are inputs of their own, so that each has its own relevance."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, q, k, v):
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = torch.full((q.shape[-2],) * 2, -torch.inf, dtype=q.dtype).triu(1)
        return F.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask, -1) @ v


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("preset", ["cp_lrp", "relp"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_queries_and_keys_get_nothing(fused, preset, formulation):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    with presets.get(preset, formulation=formulation).register(model := SelfAttention(fused)):
        z = model(*tensors)
        start = z.detach() if formulation == "relevance" else torch.ones_like(z)
        found = torch.autograd.grad(z, tensors, start, allow_unused=True)
    assert found[0] is None or not found[0].any()
    assert found[1] is None or not found[1].any()
    values = found[2] if formulation == "relevance" else tensors[2].detach() * found[2]
    torch.testing.assert_close(values.sum(), z.detach().sum())


@pytest.mark.parametrize("need_weights", [False, True])
def test_queries_and_keys_of_multihead_attention_get_nothing(need_weights):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, bias=False).double().eval()
    q, k, v = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    with presets.cp_lrp().register(model) as registration:
        z = model(q, k, v, need_weights=need_weights)[0]
        found = torch.autograd.grad(z.sum(), (q, k, v), allow_unused=True)
    assert registration.report().complete
    assert all(slot is None or not slot.any() for slot in found[:2])
    torch.testing.assert_close((v.detach() * found[2]).sum(), z.detach().sum())


def test_keys_of_the_user_go_before_the_table():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    for preset in presets.TRANSFORMERS:
        with presets.get(preset, rules={F.softmax: Stop(), "0": Epsilon(0.0)}).register(model) as registration:
            model(x)
        rows = {row.target: (row.rule, row.status) for row in registration.report().rows}
        assert rows["softmax"] == ("Stop()", Status.RULED)
        assert rows["Linear"][1] is Status.RULED


def test_a_table_of_defaults():
    model = nn.Softmax(-1)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    table = default_rules("gradient") | {Family.SOFTMAX: Stop()}
    with Composite(formulation="gradient", defaults=table).register(model) as registration:
        model(x).sum().backward()
    assert not x.grad.any()
    assert [row.rule for row in registration.report().rows] == ["Stop()"]
    del table[Family.SOFTMAX]
    with Composite(formulation="gradient", defaults=table).register(model) as registration:
        model(x)
    assert [row.target for row in registration.report().uncovered] == ["softmax"]


@pytest.mark.parametrize("name", presets.available())
def test_every_preset_takes_the_options_of_a_composite(name):
    needed = {"low": -1.0, "high": 1.0} if name == "epsilon_gamma_box" else {}
    composite = presets.get(name, canonizers=[MergeBatchNorm()], strict=True, **needed)
    assert composite.strict
    assert composite.canonizers == (MergeBatchNorm(),)
    assert presets.find(name) is getattr(presets, name)


def test_errors():
    with pytest.raises(ValueError, match="no preset is called 'atnlrp'; closest: attnlrp"):
        presets.get("atnlrp")
    with pytest.raises(
        TypeError, match=r"'epsilon_gamma_box' needs high: presets.get\('epsilon_gamma_box', high=...\)"
    ):
        presets.get("epsilon_gamma_box", low=-1.0)
    with pytest.raises(TypeError, match="'res_lrp' has no argument 'gama'; it has rules, gamma, formulation, defaults"):
        presets.get("res_lrp", gama=0.5)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        presets.res_lrp(gamma=0.0)
    with pytest.raises(ValueError, match="formulation must be one of relevance, gradient"):
        presets.attnlrp(formulation="other")
    with pytest.raises(TypeError, match=r"takes families such as Family.SOFTMAX as keys, got 'softmax1'"):
        Composite(defaults={"softmax1": Stop()})
    with pytest.raises(TypeError, match=r"the default for .* must be a rule"):
        Composite(defaults={Family.SOFTMAX: 1})
    with pytest.raises(TypeError, match="must be True, False or a mapping"):
        Composite(defaults=[Stop()])
    assert set(presets.TRANSFORMERS) <= set(presets.available())


GATES = {
    "the rest": lambda g, s: (1 - torch.sigmoid(g)) * s,
    "the rest, of relu": lambda g, s: (1 - torch.sigmoid(g)) * s.relu(),
    "the rest, of tanh": lambda g, s: (1 - torch.sigmoid(g)) * torch.tanh(s),
    "shifted": lambda g, s: (torch.sigmoid(g) + 1) * F.gelu(s),
    "hard": lambda g, s: F.relu6(g + 3) / 6 * s.relu(),
    "tanh": lambda g, s: (torch.tanh(g / 2) + 1) / 2 * s.relu(),
    "mean": lambda g, s: torch.sigmoid(g).mean(1, keepdim=True) * s.relu(),
    "enlarged": lambda g, s: F.interpolate(torch.sigmoid(g)[:, None, :3], size=6)[:, 0] * s.relu(),
    "two": lambda g, s: torch.sigmoid(g) * torch.sigmoid(g.flip(1)) * s,
    "lerp": lambda g, s: torch.lerp(s, s.flip(1), torch.sigmoid(g)),
    "glu": lambda g, s: F.glu(torch.cat([s, g], 1)),
    "added to": lambda g, s: torch.addcmul(s.flip(1), torch.sigmoid(g), s),
    "largest": lambda g, s: torch.sigmoid(g).topk(1, -1).values * s,
    "masked": lambda g, s: torch.sigmoid(g).masked_fill(torch.arange(6) < 2, 0.0) * s.relu(),
    "chosen": lambda g, s: torch.where(torch.arange(6) < 2, 0.0, torch.sigmoid(g)) * s,
    "joined": lambda g, s: torch.cat([torch.sigmoid(g), torch.sigmoid(g)], 1)[:, :6] * s,
    "turned": lambda g, s: torch.sigmoid(g).flip(1).roll(1, 1) * s,
    "padded": lambda g, s: F.pad(torch.sigmoid(g)[:, :4], (1, 1)) * s,
    "clamped": lambda g, s: torch.sigmoid(g).clamp(0.1, 0.9) * s.relu(),
    "sum": lambda g, s: torch.sigmoid(g).sum(1, keepdim=True) * s,
    "einsum": lambda g, s: torch.einsum("bi,bi->bi", torch.sigmoid(g), s),
    "matmul": lambda g, s: torch.sigmoid(g)[:, :, None] @ s[:, None, :],
}


def assert_gate_is_constant(name, composite):
    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=torch.float64)
    parts = {"gate": nn.Linear(6, 6).double(), "signal": nn.Linear(6, 6).double()}
    model = Fn(lambda self, x: GATES[name](self.gate(x), self.signal(x)), **parts)
    constant = Fn(lambda self, x: GATES[name](self.gate(x).detach(), self.signal(x)), **parts)
    assert_close(attribute(model, x, composite), attribute(constant, x, composite), 1e-6)


SIGMOIDS = sorted(set(GATES) - {"hard", "tanh"})


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", SIGMOIDS)
def test_a_sigmoid_gate_is_a_constant_by_default(name, formulation):
    assert_gate_is_constant(name, presets.attnlrp(formulation=formulation, strict=True))


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a.relu() * b.relu(),
        lambda a, b: F.silu(a) * b,
        lambda a, b: torch.tanh(a) * torch.tanh(b),
        lambda a, b: a.softmax(-1) * b,
        lambda a, b: a.relu().mean(1, keepdim=True) * b,
        lambda a, b: torch.sigmoid(a) * torch.sigmoid(b),
    ],
    ids=["relu", "silu", "tanh", "softmax", "mean", "two sigmoids"],
)
def test_other_products_are_shared_evenly_by_default(product):
    model = Fn(lambda self, x: product(self.a(x), self.b(x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    with presets.attnlrp().register(model) as registration:
        model(torch.randn(3, 6, requires_grad=True))
    assert {row.rule for row in registration.report().rows if row.target == "mul"} == {str(Uniform())}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", sorted(set(GATES) - {"einsum", "matmul"}))
def test_cp_lrp_knows_gates_in_many_ways_of_writing_them(name, formulation):
    assert_gate_is_constant(name, presets.cp_lrp(formulation=formulation, strict=True))
