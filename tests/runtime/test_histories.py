"""Marks of gates: a gate is what it does, however it is written and whichever rule it has."""

import gc
import weakref

import pytest
import torch
from support import Fn, both_formulations, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Identity, Pass, Ratio, SignalTakesAll, Uniform, presets
from lxt_compose.autograd.marks import INPUTS, MARK, Gate, gate_of, history_of


class Own(nn.Sigmoid):
    """A subclass."""


class Hard(nn.Module):
    def forward(self, x):
        return F.relu6(x + 3) / 6


class Net(nn.Module):
    """``gate(x) * y``, for a function or a module of its own."""

    def __init__(self, gate, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.gate = gate

    def forward(self, x, y):
        return self.gate(x) * y


def found(model, composite):
    """The rule of the product, and the relevance of the gate's input."""
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    y = torch.linspace(0.5, 2, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    with composite.register(model) as registration:
        z = model(x, y)
        start = z.detach() if composite.formulation == "relevance" else torch.ones_like(z)
        got = torch.autograd.grad(z, (x, y), start, allow_unused=True)[0]
    rules = [row.rule for row in registration.report().rows if row.target == "mul" and row.status.value != "shadowed"]
    return rules[-1], torch.zeros(2, 3) if got is None else got


SIGMOIDS = {
    "torch.sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "x.sigmoid()": lambda x: x.sigmoid(),
    "sigmoid_": lambda x: x.clone().sigmoid_(),
    "expit": torch.special.expit,
    "nn.Sigmoid": nn.Sigmoid(),
    "a subclass": Own(),
    "a module": Hard(),
    "hardsigmoid": F.hardsigmoid,
    "relu6": lambda x: F.relu6(x + 3) / 6,
    "clamp": lambda x: torch.clamp(x / 6 + 0.5, 0, 1),
    "hardtanh": lambda x: F.hardtanh(x + 3, 0, 6) * (1 / 6),
    "tanh": lambda x: 0.5 * (torch.tanh(x / 2) + 1),
    "tanh, other order": lambda x: torch.tanh(0.5 * x).add(1).div(2),
    "erf": lambda x: (1 + torch.erf(x)) / 2,
    "softsign": lambda x: (F.softsign(x) + 1) / 2,
    "atan": lambda x: torch.atan(x) / torch.pi + 0.5,
    "1 - sigmoid": lambda x: 1 - torch.sigmoid(-x),
    "sigmoid ** 2": lambda x: torch.sigmoid(x) ** 2,
    "sigmoid of relu": lambda x: torch.sigmoid(F.relu(x)),
    "limited": lambda x: torch.sigmoid(x).clamp(0.1, 0.9),
    "moved": lambda x: torch.sigmoid(x.t().reshape(3, 2)).reshape(3, 2).t(),
    "put in": lambda x: torch.zeros(2, 3, dtype=torch.float64).index_put((torch.arange(2),), torch.sigmoid(x)),
}


@pytest.mark.parametrize("name", SIGMOIDS)
@both_formulations
def test_a_sigmoid_is_a_gate_however_it_is_written(name, formulation):
    rule, relevance = found(Net(SIGMOIDS[name]), Composite(formulation=formulation))
    assert rule == "Gated()"
    assert not relevance.any()


def test_a_quotient_is_a_gate_too():
    """By default a divisor is a constant; with a rule it is ``1 / (1 + exp(-x))``, which opens and closes."""
    for gate in (lambda x: 1 / (1 + torch.exp(-x)), lambda x: (1 + torch.exp(-x)).reciprocal()):
        assert not found(Net(gate), Composite())[1].any()
        rule, relevance = found(Net(gate), Composite({torch.div: Identity(), torch.reciprocal: Identity()}))
        assert rule == "Gated()"
        assert not relevance.any()


@pytest.mark.parametrize("scale", [0.01, 1 / 7, 0.5, 1, 3, 8, 40])
def test_a_sigmoid_whose_exponentials_overflow_is_a_gate_at_any_scale(scale):
    """``exp(k x) / (exp(k x) + 1)`` has its limits where neither exponential overflows yet: that depends on k."""
    rule, relevance = found(Net(lambda x: (x * scale).exp() / ((x * scale).exp() + 1)), Composite())
    assert (rule, bool(relevance.any())) == ("Gated()", False)
    assert found(Net(lambda x: (x * scale).exp()), Composite())[0] == "Uniform()"


RULES = [Epsilon(), Ratio(), Pass(), Identity(), Uniform(), Identity(zero_bias=True)]


@pytest.mark.parametrize("rule", [*RULES, lambda x: torch.sigmoid(x)], ids=label)
def test_a_gate_stays_one_under_another_rule(rule):
    assert found(Net(torch.sigmoid), Composite({torch.sigmoid: rule}))[0] == "Gated()"
    if callable(rule):
        return
    for module in (nn.Sigmoid(), Own(), Hard(), nn.Sequential(nn.Linear(3, 3).double(), nn.Sigmoid())):
        assert found(Net(module), Composite({"gate": rule}))[0] == "Gated()", module


def test_a_gate_inside_of_a_module_with_a_rule_is_known_behind_it():
    """Also where it is moved, made in place, or put out among others."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(3, 3).double(), nn.Hardsigmoid(inplace=True)

        def forward(self, x):
            return {"gate": self.act(self.layer(x))[:, :, None].squeeze(-1), "rest": x.relu()}

    for name, rule in (("gate", "Gated()"), ("rest", "Uniform()")):
        two = Two()
        assert found(Net(lambda x, two=two, name=name: two(x)[name], two=two), Composite({"two": Epsilon()}))[0] == rule


SIGNALS = {
    "tanh": torch.tanh,
    "2 sigmoid - 1": lambda x: 2 * torch.sigmoid(2 * x) - 1,
    "sigmoid - 1/2": lambda x: torch.sigmoid(x) - 0.5,
    "silu": F.silu,
    "relu": torch.relu,
    "relu + 1": lambda x: torch.relu(x) + 1,
    "exp": torch.exp,
    "softplus": F.softplus,
    "gauss": lambda x: torch.exp(-(x**2)),
    "cos": torch.cos,
    "softmax": lambda x: x.softmax(-1),
    "two": lambda x: torch.sigmoid(x) + torch.sigmoid(-x / 2),
    "a layer": nn.Sequential(nn.Sigmoid(), nn.Linear(3, 3).double()),
    "a norm": nn.Sequential(nn.Sigmoid(), nn.LayerNorm(3).double()),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_what_is_no_sigmoid_shares(name):
    assert found(Net(SIGNALS[name]), Composite())[0] == "Uniform()"


@pytest.mark.parametrize(
    ("function", "gate"),
    [
        (torch.sigmoid, Gate.OPENS), (F.hardsigmoid, Gate.OPENS), (torch.tanh, Gate.BOUNDED), (F.relu6, Gate.BOUNDED),
        (F.hardtanh, Gate.BOUNDED), (F.softsign, Gate.BOUNDED), (torch.erf, Gate.BOUNDED), (torch.atan, Gate.BOUNDED),
        (torch.relu, Gate.ACTIVATION), (F.gelu, Gate.ACTIVATION), (F.silu, Gate.ACTIVATION), (F.elu, Gate.ACTIVATION),
        (torch.exp, Gate.ACTIVATION), (torch.log1p, Gate.ACTIVATION), (torch.asinh, Gate.ACTIVATION),
        (torch.sin, Gate.ACTIVATION), (torch.logit, Gate.ACTIVATION), (torch.sqrt, Gate.ACTIVATION),
    ],
)  # fmt: skip
def test_gates_are_told_by_limits_and_by_the_value_at_0(function, gate):
    assert gate_of(tuple(function(torch.tensor(INPUTS, dtype=torch.float64)).tolist())) is gate


def test_cp_lrp_takes_the_smallest_gate_of_a_product_for_all_of_it():
    """``(relu(a) * relu(b)) * c`` and ``relu(a) * (relu(b) * c)``: c takes all."""
    a, b, c = (torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for product in (lambda m, a, b, c: (a.relu() * b.relu()) * c, lambda m, a, b, c: a.relu() * (b.relu() * c)):
        with presets.cp_lrp().register(model := Fn(product)):
            z = model(a, b, c)
            got = torch.autograd.grad(z.sum(), (a, b, c), allow_unused=True)
        assert got[0] is None or not got[0].any()
        assert got[1] is None or not got[1].any()
        torch.testing.assert_close(c.detach() * got[2], z.detach())


def test_a_decision_that_is_kept_does_not_hide_a_gate():
    """One place multiplies with a gate in one pass, and with a signal in the next."""

    class Either(nn.Module):
        def forward(self, x, y, gate):
            return (torch.sigmoid(x) if gate else torch.tanh(x)) * y

    model = Either()
    x, y = (torch.rand(3, requires_grad=True) for _ in range(2))
    with Composite().register(model) as registration:
        for gate in (True, False, True, False, False):
            z = model(x, y, gate)
            (got,) = torch.autograd.grad(z, x, z.detach(), allow_unused=True)
            assert gate is (got is None or not got.any())
    calls = {row.rule: row.calls for row in registration.report().rows if row.target == "mul"}
    assert calls == {"Gated()": 2, "Uniform()": 3}


def test_batch_norm_may_be_in_either_mode_at_one_place():
    class Norm(nn.Module):
        def forward(self, x, training):
            return F.batch_norm(x, torch.zeros(3), torch.ones(3), training=training)

    with Composite().register(model := Norm()) as registration:
        for training in (False, True, False):
            model(torch.randn(4, 3, requires_grad=True), training)
    rules = {row.rule for row in registration.report().rows if row.target == "batch_norm"}
    assert rules == {str(Epsilon()), "Norm()"}


def test_a_key_for_the_product_goes_before_gates():
    for rule in (Uniform(), Epsilon(), SignalTakesAll()):
        assert found(Net(torch.sigmoid), Composite({torch.mul: rule}))[0] == str(rule)


def test_layers_with_split_rules_are_no_gates():
    model = Net(lambda x: model.layer(torch.sigmoid(x)), layer=nn.Linear(3, 3).double())
    assert found(model, Composite({nn.Linear: AlphaBeta(2, 1)}))[0] == "Uniform()"


def test_marks_hold_no_tensor_and_values_stay_the_models_own():
    model = Fn(lambda m, x: (torch.sigmoid(x) * x)[:2].tanh())
    x = torch.randn(3, 4, requires_grad=True)
    with Composite().register(model):
        z = model(x)
        assert torch.equal(z, (torch.sigmoid(x) * x)[:2].tanh())
        assert history_of(z).gate is Gate.BOUNDED
        node, held = z.grad_fn, []
        while node is not None:
            held += [value for value in node.metadata.get(MARK, ()) if isinstance(value, torch.Tensor)]
            node = next((source for source, _ in node.next_functions if source is not None), None)
        assert not held
        alive = weakref.ref(z)
        del z
        gc.disable()
        try:
            assert alive() is None
        finally:
            gc.enable()


INLINE = {
    "silu": (F.silu, lambda x: x * torch.sigmoid(x), lambda x: x.sigmoid() * x, lambda x: x / (1 + torch.exp(-x))),
    "gelu": (F.gelu, lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), lambda x: x * (torch.erf(x * 2**-0.5) + 1) / 2),
    "gelu by tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x * x * x))),
    ),
    "hard swish": (F.hardswish, lambda x: x * F.relu6(x + 3) / 6, lambda x: x * F.hardsigmoid(x)),
    "mish": (F.mish, lambda x: x * torch.tanh(F.softplus(x))),
    "squared relu": (lambda x: F.relu(x) ** 2, lambda x: F.relu(x) * F.relu(x), lambda x: x.relu().square()),
    "a copy": (F.silu, lambda x: x * torch.sigmoid(x.clone().contiguous().double())),
    "in place": (F.silu, lambda x: x.clone().mul_(x.sigmoid())),
}


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "relp"])
@pytest.mark.parametrize("name", INLINE)
def test_an_activation_written_out_where_it_is_used_is_the_activation(name, preset):
    """``x * sigmoid(x)`` depends on one signal: that is an activation of x, and no product of a signal and a gate."""
    wanted = [found(Net(function), getattr(presets, preset)())[1] for function in INLINE[name]]
    for other in wanted[1:]:
        torch.testing.assert_close(other, wanted[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x.flip(1) * torch.sigmoid(x),
        lambda x: x * torch.sigmoid(x * torch.arange(1, 4)),
        lambda x: x * x,
    ],
    ids=["moved", "a tensor as a factor", "a square"],
)
def test_other_products_of_a_signal_with_itself_are_signals(gate):
    rule, relevance = found(Net(gate), presets.cp_lrp())
    assert rule == "SignalTakesAll(epsilon=0.0)"
    assert relevance.any()


@both_formulations
@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh], ids=["sigmoid", "tanh"])
def test_a_length_of_gates_is_a_gate_as_their_mean_is(function, formulation):
    """In CP-LRP ``|gate(x)| y`` gives all to y, whichever way the length is written: R_y = z."""
    y = torch.linspace(0.5, 2, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    for length in (
        lambda g: g.norm(dim=-1, keepdim=True),
        lambda g: torch.linalg.vector_norm(g, dim=-1, keepdim=True),
        lambda g: g.square().sum(-1, keepdim=True).sqrt(),
    ):
        model = Net(lambda x, length=length: length(function(x)))
        with presets.cp_lrp(formulation=formulation).register(model):
            z = model(x, y)
            start = z.detach() if formulation == "relevance" else torch.ones_like(z)
            (slot,) = torch.autograd.grad(z, y, start)
        torch.testing.assert_close(slot if formulation == "relevance" else slot * y, z, rtol=1e-5, atol=1e-6)
