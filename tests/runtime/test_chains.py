"""A function of one tensor gets the same relevance however it is written: ``R_x = R * (f(x) - f(0)) / f(x)``."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import Fn
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    Composite,
    Epsilon,
    Identity,
    ResidualGamma,
    Stop,
    Uniform,
    check_conservation,
    default_rules,
    presets,
)
from lxt_compose.coverage.rows import Status
from lxt_compose.runtime.chains import Chain

ROOT = math.sqrt(2 / math.pi)
PRESETS = ["attnlrp", "cp_lrp", "relp", "res_lrp"]
FORMULATIONS = ["relevance", "gradient"]

# The first of each is what the others are compared with.
SPELLINGS = {
    "silu": [
        F.silu,
        lambda x: x * torch.sigmoid(x),
        lambda x: x / (1 + torch.exp(-x)),
        lambda x: x * (1 / (1 + (-x).exp())),
        lambda x: torch.sigmoid(x).mul_(x),
        lambda x: x.clone().mul_(x.sigmoid()),
        lambda x: 0.5 * x * (1 + torch.tanh(0.5 * x)),
        lambda x: x * (1 - torch.sigmoid(-x)),
        lambda x: x * x.to(torch.float64).sigmoid().contiguous(),
    ],
    "sigmoid": [
        torch.sigmoid,
        lambda x: 1 / (1 + torch.exp(-x)),
        lambda x: 0.5 * (torch.tanh(x / 2) + 1),
        lambda x: 1 - torch.sigmoid(-x),
        lambda x: torch.exp(x) / (1 + torch.exp(x)),
        lambda x: (1 + torch.exp(-x)).reciprocal(),
        lambda x: (1 + torch.exp(-x)) ** -1,
        lambda x: torch.exp(-F.softplus(-x)),
        lambda x: x.neg().exp_().add_(1).reciprocal_(),
        lambda x: torch.exp(F.logsigmoid(x)),
        lambda x: torch.where(x >= 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x))),
    ],
    "hardsigmoid": [
        F.hardsigmoid,
        lambda x: F.relu6(x + 3) / 6,
        lambda x: (x / 6 + 0.5).clamp(0, 1),
        lambda x: (x + 3).clamp(0, 6) / 6,
        lambda x: F.hardtanh(x + 3, 0, 6) * (1 / 6),
        lambda x: 1 - F.relu6(3 - x) / 6,
        lambda x: x.clone().add_(3).clamp_(0, 6).div_(6),
        lambda x: torch.clamp(x + torch.tensor(3.0), 0, 6) / torch.tensor([6.0], dtype=x.dtype),
        lambda x: torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 6 + 0.5)),
        lambda x: (x / 6 + 0.5).masked_fill(x <= -3, 0.0).masked_fill(x >= 3, 1.0),
    ],
    "hardswish": [
        F.hardswish,
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * (F.relu6(x + 3) / 6),
        lambda x: x * F.hardsigmoid(x),
    ],
    "mish": [
        F.mish,
        lambda x: x * torch.tanh(F.softplus(x)),
        lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        lambda x: x * torch.tanh(torch.log1p(x.exp())),
    ],
    "gelu": [
        F.gelu,
        lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: x * (torch.erf(x * 2**-0.5) + 1) / 2,
    ],
    "gelu_tanh": [
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x * x * x))),
    ],
    "tanh": [
        torch.tanh,
        lambda x: 2 * torch.sigmoid(2 * x) - 1,
        lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        lambda x: (1 - torch.exp(-2 * x)) / (1 + torch.exp(-2 * x)),
        lambda x: 2 / (1 + torch.exp(-2 * x)) - 1,
    ],
    "softplus": [
        F.softplus,
        lambda x: torch.log(1 + torch.exp(x)),
        lambda x: torch.log1p(torch.exp(x)),
        lambda x: -F.logsigmoid(-x),
    ],
    "relu6": [
        F.relu6,
        lambda x: torch.where(x > 6, 6.0, F.relu(x)),
        lambda x: (x * 1).masked_fill_(x > 6, 6.0).relu_(),
        lambda x: x.clone().neg_().neg().clamp_(0, 6),
        lambda x: F.relu(x) - F.relu(x - 6),
        lambda x: x.clamp(0, 6),
    ],
    "selu": [
        F.selu,
        lambda x: (
            1.0507009873554804934193349852946 * torch.where(x > 0, x, 1.6732632423543772848170429916717 * (x.exp() - 1))
        ),
    ],
    "leaky relu of a shift": [
        lambda x: F.leaky_relu(x + 0.5, 0.1),
        lambda x: torch.where(x + 0.5 > 0, x + 0.5, 0.1 * (x + 0.5)),
        lambda x: torch.maximum(x + 0.5, 0.1 * (x + 0.5)),
    ],
    "softsign": [F.softsign, lambda x: x / (1 + x.abs())],
    "elu": [
        F.elu,
        lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
        lambda x: F.relu(x) + torch.clamp(torch.exp(x) - 1, max=0),
    ],
    "square": [torch.square, lambda x: x * x, lambda x: x**2],
    "bell": [lambda x: 1 / (1 + x * x), lambda x: (1 + x**2).reciprocal(), lambda x: (1 + x.square()) ** -1.0],
    "cosine squared": [
        lambda x: torch.cos(x) ** 2,
        lambda x: torch.cos(x) * torch.cos(x),
        lambda x: 1 - torch.sin(x) ** 2,
        lambda x: 0.5 * (1 + torch.cos(2 * x)),
    ],
}


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(6, 7).double(), nn.Linear(7, 3).double(), function

    def forward(self, x):
        return self.b(self.function(2 * self.a(x)))


def explained(model, x, composite):
    """The relevance of x for output 1."""
    leaf, gradient = x.clone().requires_grad_(), composite.formulation == "gradient"
    plain = model(x)
    with composite.register(model) as registration:
        y = model(leaf)
        assert torch.equal(y, plain)
        y[:, 1].backward(torch.ones_like(y[:, 1]) if gradient else y[:, 1].detach())
        assert registration.report().complete
    return x * leaf.grad if gradient else leaf.grad


def assert_same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def draw(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_spellings_agree(place, name, composite):
    first, *others = (explained(place(f), draw(20, 6), composite) for f in SPELLINGS[name])
    for found in others:
        assert_same(found, first)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_function_gets_the_same(name, formulation):
    for preset in PRESETS:
        assert_spellings_agree(Between, name, getattr(presets, preset)(formulation=formulation))


@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_alpha2_beta1", "epsilon_plus_flat"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_also_between_layers_under_other_rules(name, preset):
    assert_spellings_agree(Between, name, getattr(presets, preset)())


class Gate(nn.Module):
    """A function of one half of what a layer makes, times the other half."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(6, 8).double(), nn.Linear(4, 3).double(), function

    def forward(self, x):
        a, b = self.a(x).chunk(2, -1)
        return self.b(a * self.function(b))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", [name for name in SPELLINGS if name not in ("square", "bell", "cosine squared")])
def test_every_spelling_is_the_same_gate(name, formulation):
    for preset in PRESETS:
        assert_spellings_agree(Gate, name, getattr(presets, preset)(formulation=formulation))


# ---- any function ----------------------------------------------------------------------------------------------------

UNARY = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp(-x^2)": lambda x: torch.exp(-x.square()),
    "relu6(x + 3)": lambda x: F.relu6(x + 3),
    "cos": torch.cos,
    "softplus": F.softplus,
    "1 - x": lambda x: 1 - x,
    "x + 0.3": lambda x: x + 0.3,
    "-x / 2": lambda x: -x / 2,
    "gelu": F.gelu,
    "1 / (1 + x^2)": lambda x: 1 / (1 + x * x),
    "clamp": lambda x: x.clamp(-1, 2),
    "leaky_relu": F.leaky_relu,
}
BINARY = {
    "*": torch.mul,
    "+": torch.add,
    "-": torch.sub,
    "/ (1 + x^2)": lambda x, y: x / (1 + y * y),
    "max": torch.maximum,
}
EXPRESSIONS = st.recursive(
    st.just("x"),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), inner), st.tuples(st.sampled_from(sorted(BINARY)), inner, inner)
    ),
    max_leaves=4,
)


def over_output(function, x):
    """The relevance of x in the gradient formulation, for R = 1 at each output."""
    leaf = x.clone().requires_grad_()
    with presets.attnlrp().register(Fn(lambda self, x: function(x), weight=nn.Linear(2, 2))) as registration:
        y = registration.model(leaf * 1.0)
        y.backward(1 / y.detach())
    return x * leaf.grad


@pytest.mark.parametrize("activation", [torch.relu, F.leaky_relu, torch.abs])
def test_functions_of_one_activation_are_one_function(activation):
    """In the gradient formulation its input is not kept, and is gone here: what they share is its output."""

    def function(x):
        z = activation(x.flip(0))
        return (1 - z) / (1 + z * z)

    x = draw(40)
    torch.testing.assert_close(
        over_output(function, x), ((function(x) - 1) / function(x)).flip(0), rtol=1e-9, atol=1e-9
    )


def test_an_input_that_has_changed_since_is_not_what_activations_share():
    def function(x):
        x = x * 1.0
        first, second = torch.relu(x), torch.relu(x)
        x.add_(1.0)
        return (1 - first) / (1 + second * second)

    x = draw(40)
    z = torch.relu(x)
    torch.testing.assert_close(over_output(function, x), -z / (1 - z), rtol=1e-9, atol=1e-9)  # the divisor is constant


def value_of(expression, x):
    if expression == "x":
        return x
    name, *operands = expression
    values = [value_of(operand, x) for operand in operands]
    return UNARY[name](*values) if len(values) == 1 else BINARY[name](*values)


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS, st.sampled_from(FORMULATIONS))
@example(("max", "x", ("1 / (1 + x^2)", ("-", "x", "x"))), "relevance")
@example(("/ (1 + x^2)", ("1 - x", ("leaky_relu", "x")), ("leaky_relu", "x")), "gradient")
def test_any_expression_in_one_tensor_is_one_function(expression, formulation):
    """Element by element: R_x = R * (f(x) - f(0)) / f(x), with nothing known but f."""
    x = draw(40)
    z, at_zero = value_of(expression, x), value_of(expression, torch.zeros_like(x))
    expected = (z - at_zero) / z
    leaf = x.clone().requires_grad_()
    model = Fn(lambda self, x: value_of(expression, x), weight=nn.Linear(2, 2))
    with presets.attnlrp(formulation=formulation).register(model):
        y = model(leaf * 1.0)
        if y.requires_grad:
            y.backward(torch.ones_like(y) if formulation == "relevance" else 1 / y.detach())
    found = torch.zeros_like(x) if leaf.grad is None else leaf.grad if formulation == "relevance" else x * leaf.grad
    kept = (z.abs() > 1e-3) & (expected.abs() < 1e4)
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-5)


# ---- what goes before, and what is none ------------------------------------------------------------------------------


def rows(composite, function, x=None):
    model = Between(function)
    with composite.register(model) as registration:
        model(draw(4, 6).requires_grad_())
    return {(row.target, row.rule, row.status) for row in registration.report().rows}


def test_a_key_goes_first():
    found = rows(Composite({torch.mul: Uniform()}), lambda x: x * torch.sigmoid(x))
    assert ("mul", "Uniform()", Status.RULED) in found
    found = rows(Composite({torch.sigmoid: Epsilon()}), lambda x: 1 - torch.sigmoid(x))
    assert ("rsub", "Epsilon(epsilon=1e-06)", Status.DEFAULT) in found


def test_the_report_names_the_rule_for_functions():
    found = rows(Composite(), lambda x: x * F.relu6(x + 3) / 6)
    assert ("relu6", "Identity()", Status.DEFAULT) in found
    assert ("rdiv", "Identity()", Status.DEFAULT) in rows(Composite(), lambda x: 1 / (1 + torch.exp(-x)))


def test_a_rule_for_sums_of_streams_leaves_functions_alone():
    sums = Composite({torch.add: ResidualGamma()}, formulation="gradient")
    x = draw(20, 6)
    assert_same(explained(Between(SPELLINGS["gelu_tanh"][1]), x, sums), explained(Between(F.gelu), x, sums), 1e-2)
    assert ("add", "ResidualGamma(gamma=1.0)", Status.RULED) in rows(sums, lambda x: x + F.softmax(x, -1))


def test_without_the_identity_rule_each_step_has_its_own():
    table = {**presets.attnlrp().defaults}
    for family, rule in table.items():
        if rule == Identity():
            table[family] = Identity(zero_bias=True)
    found = rows(Composite(defaults=table, formulation="gradient"), lambda x: 1 - torch.sigmoid(x))
    assert not [row for row in found if row[0] == "rsub" and row[1].startswith("Identity")]


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_statistic_is_none(formulation):
    """What is divided by is held, whatever is added to it; also where a number is divided by it first."""
    x = draw(20, 7)
    for function in (
        lambda x: x / (x.std(-1, keepdim=True) + 1e-5),
        lambda x: x * (1 / (x.std(-1, keepdim=True) + 1e-5)),
        lambda x: x * (x.var(-1, keepdim=True) + 1e-5).rsqrt(),
        lambda x: x * (x.std(-1, keepdim=True) ** 2 + 1e-5).rsqrt(),
        lambda x: x * (1 / x.norm(dim=-1, keepdim=True).clamp(min=1e-5)),
    ):
        leaf, model = x.clone().requires_grad_(), Fn(lambda self, x, f=function: f(x), weight=nn.Linear(2, 2))
        with presets.attnlrp(formulation=formulation).register(model):
            y = model(leaf)
            y.backward(torch.ones_like(y) if formulation == "gradient" else y.detach())
        assert_same(x * leaf.grad if formulation == "gradient" else leaf.grad, y.detach(), 1e-7)


def test_a_function_of_two_tensors_is_none():
    x = draw(6, 6)
    for preset in PRESETS:
        composite = getattr(presets, preset)()
        two = explained(Between(lambda x: x * torch.tanh(x.flip(-1))), x, composite)
        one = explained(Between(lambda x: x * torch.tanh(x)), x, composite)
        assert (two - one).abs().max() > 1e-3


# ---- bookkeeping -----------------------------------------------------------------------------------------------------

CHAINS = [SPELLINGS[name][place] for name, place in (("silu", 3), ("hardsigmoid", 1), ("tanh", 2), ("sigmoid", 8))]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("function", CHAINS)
def test_the_ledger_closes_and_the_check_passes(function, formulation):
    model, x = Between(function), draw(5, 6).requires_grad_()
    with Composite(formulation=formulation).register(model) as registration:
        with registration.ledger() as ledger:
            y = model(x)
            y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
        torch.testing.assert_close(ledger.seed, ledger.inputs + sum(ledger.absorbed.values()))
        assert ledger.unaccounted < 1e-9
        assert ledger.check.complete
        with check_conservation(registration):
            y = model(x)
            y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))


def test_what_f_is_at_zero_is_booked_as_a_bias():
    function = CHAINS[1]
    x = draw(5, 7).requires_grad_()
    model = Fn(lambda self, x: function(x), weight=nn.Linear(2, 2))
    with Composite(formulation="gradient").register(model) as registration, registration.ledger() as ledger:
        y = model(x)
        y.sum().backward()
    expected = torch.where(y == 0, 0.0, 0.5).double().sum(1)
    torch.testing.assert_close(ledger.absorbed["bias"], expected)


def test_nothing_is_kept_when_the_forward_pass_is_over():
    kept = []

    def function(x):
        u = x + 3
        kept.append(weakref.ref(x))
        return F.relu6(u) / 6

    gc.collect()
    gc.disable()
    try:
        with Composite(formulation="gradient").register(Between(function)) as registration:
            y = registration.model(draw(4, 6).requires_grad_())
            assert kept[0]() is None
            del y
    finally:
        gc.enable()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_checkpoints_change_nothing(formulation, reentrant):
    class Checkpointed(Between):
        def forward(self, x):
            h = 2 * self.a(x)
            return self.b(checkpoint(self.function, h, use_reentrant=reentrant))

    class Block(nn.Module):
        def forward(self, x):
            return x * F.relu6(x + 3) / 6

    x, block = draw(5, 6), Block()
    block.weight = nn.Parameter(torch.ones(2))  # no unit
    composite = Composite(formulation=formulation)
    assert_same(explained(Checkpointed(block), x, composite), explained(Between(block), x, composite))


def test_a_tensor_that_is_changed_in_place_is_another_one():
    def function(x):
        x = x * 1
        gate = torch.sigmoid(x)
        x.add_(x.flip(-1))  # no function of what the gate is one of
        return x * gate

    def other(x):
        return (x + x.flip(-1)) * torch.sigmoid(x)

    x = draw(6, 6)
    for formulation in FORMULATIONS:
        composite = Composite(formulation=formulation)
        assert_same(explained(Between(function), x, composite), explained(Between(other), x, composite))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_modules_in_a_chain_are_steps_of_it(formulation):
    class Act(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    gate = {"by hand": Act(lambda x: torch.clamp(x + 3, 0, 6) / 6), "torch's": nn.Hardsigmoid()}
    plus = {"by hand": Act(lambda x: torch.log(1 + torch.exp(x))), "torch's": nn.Softplus()}
    flat = {"by hand": Act(lambda x: 2 * torch.sigmoid(2 * x) - 1), "torch's": nn.Tanh()}
    x, composite = draw(20, 6), Composite(formulation=formulation)
    for g in gate.values():
        assert_same(
            explained(Between(lambda x, g=g: x * g(x)), x, composite), explained(Between(F.hardswish), x, composite)
        )
    for p in plus.values():
        for f in flat.values():
            found = explained(Between(lambda x, p=p, f=f: x * f(p(x))), x, composite)
            assert_same(found, explained(Between(F.mish), x, composite))


def test_a_step_that_stops_is_none():
    assert ("sign", "Stop()", Status.DEFAULT) in rows(Composite(), lambda x: x * torch.sign(x))
    with Composite({torch.sigmoid: Stop()}).register(Between(lambda x: x * torch.sigmoid(x))) as registration:
        registration.model(draw(4, 6).requires_grad_())
    assert registration.report().complete


def test_a_copy_that_is_the_tensor_itself_keeps_no_node_alive():
    """``x.to(dtype)`` returns x itself; a mark of x on its own node would keep the whole graph for good."""
    layer, x = nn.Linear(3, 3).double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    model = Fn(lambda _, x: torch.tanh((x @ layer.weight.detach()).to(x.dtype)))
    gc.collect()
    before = sum(type(kept) is Chain for kept in gc.get_objects())  # those of other tests
    with Composite(formulation="gradient").register(model):
        for _ in range(3):
            torch.autograd.grad(model(x).sum(), x)
        gc.collect()
        assert sum(type(kept) is Chain for kept in gc.get_objects()) <= before


OF_ONE_NUMBER = {
    "zeros": (lambda x: torch.maximum(x.sigmoid() - 0.2, torch.zeros_like(x)), lambda x: (x.sigmoid() - 0.2).clamp(0)),
    "ones": (lambda x: (torch.ones_like(x) - x.sigmoid()).log(), lambda x: (1 - x.sigmoid()).log()),
    "full": (lambda x: F.relu6(x + x.new_full(x.shape, 3.0)) / 6, lambda x: F.relu6(x + 3) / 6),
    "full, first": (lambda x: F.silu(torch.full((4,), -1.5) * (x + 0.7)), lambda x: F.silu((x + 0.7) * -1.5)),
    "expanded": (lambda x: F.relu6(x + torch.tensor(3.0).expand(4)) / 6, lambda x: F.relu6(x + 3) / 6),
}


@pytest.mark.parametrize("name", OF_ONE_NUMBER)
def test_a_tensor_of_one_number_is_that_number(name):
    x = torch.linspace(-2, 2, 12).double().reshape(3, 4)
    found = []
    for function in OF_ONE_NUMBER[name]:
        leaf, model = x.clone().requires_grad_(), Fn(lambda self, x, f=function: f(x), weight=nn.Linear(1, 2))
        with Composite(formulation="gradient").register(model):
            found += torch.autograd.grad(model(leaf).sum(), leaf)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_a_tensor_of_one_number_that_was_changed_is_none():
    def function(self, x):
        shift = torch.zeros_like(x)
        shift[:, 0] = 3.0
        return F.relu6(x + shift) / 6

    x = torch.linspace(-2, 2, 12).double().reshape(3, 4).requires_grad_()
    model = Fn(function, weight=nn.Linear(1, 2))
    with Composite(formulation="gradient").register(model):
        (slot,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(slot[:, 0], torch.full((3,), 1 / 6).double())  # each step by itself: all linear here


def test_terms_that_cancel_are_handed_no_more_than_their_sum():
    """``x - x`` is 0: what reaches it passes to x as it is, and no share of it is divided by 0."""
    x = torch.linspace(-2, 2, 12).double().reshape(3, 4).requires_grad_()
    model = Fn(lambda self, x: x + (-x), weight=nn.Linear(1, 2))
    with Composite(defaults=default_rules("relevance", 1e-12)).register(model):
        (relevance,) = torch.autograd.grad(model(x), x, torch.ones(3, 4).double())
    torch.testing.assert_close(relevance, torch.ones(3, 4).double())
