"""Activation modules are one unit under Identity, whatever they are written with, with finite slopes everywhere."""

import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2CLS, ACT2FN

from lxt_compose import Composite, Epsilon, Identity, Stop, presets
from lxt_compose.coverage.rows import Status

SQRT = math.sqrt(2 / math.pi)


def of_transformers(name):
    """An activation of transformers; the test is skipped where this version has none of that name."""
    if name not in ACT2CLS:
        pytest.skip(f"transformers {transformers.__version__} has no activation {name}")
    return ACT2FN[name]


class Snake(nn.Module):
    """Known to nobody: x + sin(x)^2."""

    def forward(self, x):
        return x + torch.sin(x) ** 2


class ScaledSnake(nn.Module):
    """The same with a parameter of one element."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x):
        return x + torch.sin(self.alpha * x).square() / self.alpha


class Branches(nn.Module):
    """With a comparison, as xIELU has it."""

    def forward(self, x):
        return torch.where(x > 0, x * x, torch.expm1(torch.minimum(x, torch.zeros(()))) - x)


class Written(torch.autograd.Function):
    """An activation with a backward of its own, which no function mode sees."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("its own backward must not run")


class Custom(nn.Module):
    def forward(self, x):
        return Written.apply(x)


UNKNOWN = {kind.__name__: kind for kind in (Snake, ScaledSnake, Branches, Custom)}


def relevance_through(activation, x, composite):
    """R of x for f(x) with a different relevance at each place; the activation stands between two other modules."""
    model = nn.Sequential(nn.Identity(), activation, nn.Identity()).to(x.dtype).eval()
    x = x.clone().requires_grad_()
    start = torch.linspace(1, 2, x.numel(), dtype=x.dtype).view(x.shape)
    with composite.register(model) as registration:
        z = model(x)
        if composite.formulation == "relevance":
            z.backward(start)
            return x.grad, start, registration.report()
        z.backward(start)
    return x.detach() * x.grad, start * z.detach(), registration.report()


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("name", [*ACT2CLS, *UNKNOWN])
def test_relevance_passes_every_activation_of_transformers_and_unknown_ones(name, formulation):
    activation = UNKNOWN[name]() if name in UNKNOWN else ACT2FN[name]
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).view(2, 30)  # no zero among them
    found, expected, report = relevance_through(activation, x, Composite(formulation=formulation))
    f = activation.double()
    at_zero, z = f(torch.zeros_like(x)).detach(), f(x).detach()
    if (at_zero.abs() > 1e-3).any():  # sigmoid, laplace: f(0) is a bias
        expected = torch.where(z == 0, 0, expected * (1 - at_zero / z))
    # xIELU bends at -1e-6, not at 0, so that its slope is exact to that
    torch.testing.assert_close(found, expected, rtol=1e-5 if name == "xielu" else 1e-12, atol=1e-13)
    assert report.complete
    if name != "linear":
        assert [row.status for row in report.rows if row.rule == "Identity()"] == [Status.DEFAULT]


def over(z, x, limit):
    """z / x, and its limit at 0."""
    return torch.where(x == 0, limit, z / torch.where(x == 0, 1.0, x))


SLOPES = {
    "gelu": lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_python": lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * (1 + torch.tanh(SQRT * (x + 0.044715 * x**3))),
    "gelu_fast": lambda x: 0.5 * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "gelu_accurate": lambda x: 0.5 * (1 + torch.tanh(SQRT * (x + 0.044715 * x**3))),
    "gelu_pytorch_tanh": lambda x: 0.5 * (1 + torch.tanh(SQRT * (x + 0.044715 * x**3))),
    "gelu_python_tanh": lambda x: 0.5 * (1 + torch.tanh(SQRT * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: 1 / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: 1 / (1 + torch.exp(-x)),
    "swish": lambda x: 1 / (1 + torch.exp(-x)),
    "mish": lambda x: torch.tanh(torch.log1p(torch.exp(x))),
    "relu": lambda x: (x > 0).double(),
    "relu2": lambda x: x.clamp(min=0),
    "linear": torch.ones_like,
    "tanh": lambda x: over(torch.tanh(x), x, 1.0),
    "leaky_relu": lambda x: torch.where(x > 0, torch.ones_like(x), 0.01),
    "relu6": lambda x: over(x.clamp(0, 6), x, 1.0),  # torch runs it as hardtanh
    "hardswish": lambda x: (x + 3).clamp(0, 6) / 6,
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_in_closed_form_also_at_zero(name):
    x = torch.tensor([-30.0, -8.0, -2.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 0.5, 2.0, 8.0, 30.0], dtype=torch.float64)
    model = nn.Sequential(of_transformers(name), nn.Identity()).double()
    leaf = x.clone().requires_grad_()
    with Composite(formulation="gradient").register(model):
        model(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, SLOPES[name](x), rtol=2e-7, atol=1e-12)


def test_slope_of_xielu():
    activation = of_transformers("xielu").double()
    x = torch.tensor([-8.0, -2.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.5, 8.0], dtype=torch.float64)
    rising, falling = F.softplus(activation.alpha_p), 0.5 + F.softplus(activation.alpha_n)
    expected = torch.where(x > 0, rising * x, falling * (over(torch.expm1(x), x, 1.0) - 1)) + 0.5
    leaf = x.clone().requires_grad_()
    with Composite(formulation="gradient").register(nn.Sequential(activation)) as registration:
        registration.model(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*ACT2CLS, *UNKNOWN])
def test_slopes_are_finite_in_every_precision(name, dtype):
    activation = UNKNOWN[name]() if name in UNKNOWN else ACT2FN[name]
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([[0.0, -0.0, tiny, -tiny, 1e-10, -1e-10, 1e-4, -1e-4, 8.0, -8.0]], dtype=dtype)
    model = nn.Sequential(activation, nn.Identity()).to(dtype).eval()
    x.requires_grad_()
    with Composite(formulation="gradient").register(model):
        z = model(x)
        z.backward(torch.ones_like(z))
    assert torch.isfinite(x.grad).all()


def test_the_steps_of_gelu_alone_give_the_same_since_one_plus_tanh_is_a_gate():
    x = torch.linspace(-3, 3, 30, dtype=torch.float64)
    found, expected, _ = relevance_through(ACT2FN["gelu_new"], x.clone(), Composite(formulation="gradient"))
    torch.testing.assert_close(found, expected)

    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(2, 2)  # with weights, so no unit

        def forward(self, x):
            return 0.5 * x * (1.0 + torch.tanh(SQRT * (x + 0.044715 * torch.pow(x, 3.0))))

    steps, _, report = relevance_through(Inline(), x.clone(), Composite(formulation="gradient"))
    torch.testing.assert_close(steps, expected)
    assert "tanh" in {row.target for row in report.rows}


def test_a_unit_is_one_row_with_all_its_names():
    model = nn.ModuleDict({"a": ACT2FN["gelu_new"]})
    model["b"] = model["a"]
    model.forward = lambda x: model["a"](x) + model["b"](2 * x)
    x = torch.randn(3, requires_grad=True)
    with Composite(formulation="gradient").register(model) as registration:
        model(x)
    (row,) = [row for row in registration.report().rows if row.kind == "module"]
    assert (row.path, row.aliases, row.target, row.rule) == ("a", ("b",), "NewGELUActivation", "Identity()")
    assert (row.calls, row.status, row.key) == (2, Status.DEFAULT, "")


class HardSigmoid(nn.Module):
    """As published with MobileNetV3; the child works in place."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class HardSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigmoid = HardSigmoid()

    def forward(self, x):
        return x * self.sigmoid(x)


class OwnHardSwish(HardSwish):
    """A subclass."""


class Mish(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Softplus(), nn.Tanh()

    def forward(self, x):
        return x * self.outer(self.inner(x))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Twice(nn.Module):
    """A child that is called twice, once on its own output."""

    def __init__(self):
        super().__init__()
        self.act = Lambda(lambda x: torch.tanh(x) / 2)

    def forward(self, x):
        return x * (self.act(self.act(x)) + 0.5)


NESTED = {
    "hard sigmoid": (HardSigmoid, nn.Hardsigmoid),
    "hard swish": (HardSwish, nn.Hardswish),
    "a subclass": (OwnHardSwish, nn.Hardswish),
    "mish": (Mish, nn.Mish),
    "a function in a child": (lambda: Lambda(Lambda(lambda x: 0.5 * (torch.tanh(x / 2) + 1))), nn.Sigmoid),
    "twice": (Twice, lambda: Lambda(lambda x: x * (torch.tanh(torch.tanh(x) / 2) / 2 + 0.5))),
}


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("name", NESTED)
def test_an_activation_made_of_modules_is_the_function_that_it_is(name, formulation):
    x = torch.linspace(-5, 5, 60, dtype=torch.float64).view(2, 30)
    own, torchs = (relevance_through(make(), x, Composite(formulation=formulation)) for make in NESTED[name])
    torch.testing.assert_close(own[0], torchs[0], rtol=1e-10, atol=1e-12)
    assert own[2].complete
    assert [row.path for row in own[2].rows if row.rule == "Identity()"] == ["1"] or name == "a function in a child"


class Excite(nn.Module):
    """Squeeze and excitation, with a gate of one's own."""

    def __init__(self, gate):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.gate = nn.Linear(6, 6), gate

    def forward(self, x):
        return x * self.gate(self.layer(x.mean((2, 3))))[:, :, None, None]


GATES = {
    "hard sigmoid": (HardSigmoid, nn.Hardsigmoid),
    "by tanh": (lambda: Lambda(lambda x: 0.5 * (torch.tanh(x / 2) + 1)), nn.Sigmoid),
    "by exp": (lambda: Lambda(lambda x: 1 / (1 + torch.exp(-x))), nn.Sigmoid),
    "tanh by sigmoid": (lambda: Lambda(lambda x: 2 * torch.sigmoid(2 * x) - 1), nn.Tanh),
}


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "relp", "res_lrp", "epsilon_plus"])
@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_is_a_unit_is_the_gate_that_it_is(name, preset):
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    own, torchs = (relevance_through(Excite(make()), x, getattr(presets, preset)())[0] for make in GATES[name])
    torch.testing.assert_close(own, torchs, rtol=1e-9, atol=1e-12)


def test_a_key_for_a_module_inside_goes_first():
    model = nn.Sequential(nn.Linear(3, 3), HardSwish()).double()
    with Composite({nn.ReLU6: Stop()}, formulation="gradient").register(model) as registration:
        model(torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    rows = {(row.path, row.target, row.status) for row in registration.report().rows if row.path.startswith("1")}
    assert ("1.sigmoid.relu", "ReLU6", Status.RULED) in rows
    assert ("1", "mul", Status.DEFAULT) in rows


def test_a_unit_inside_a_unit_is_counted_with_it_alone():
    model = nn.Sequential(nn.Linear(3, 3), HardSwish()).double()
    with Composite().register(model) as registration:
        for _ in range(2):
            model(torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    rows = [(row.path, row.target, row.calls) for row in registration.report().rows if row.path.startswith("1")]
    assert rows == [("1", "HardSwish", 2)]


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_the_ledger_closes_over_units_inside_units(formulation):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 6, 3), HardSwish(), Excite(HardSigmoid()), nn.Flatten(), nn.Linear(96, 1)
    ).double()
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    with Composite(formulation=formulation).register(model) as registration, registration.ledger() as ledger:
        y = model(x)
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    torch.testing.assert_close(ledger.seed, ledger.inputs + sum(ledger.absorbed.values()))
    assert ledger.unaccounted < 1e-9
    assert ledger.check.complete


class Affine(nn.Module):
    def forward(self, x):
        return 2 * x + 1


class Bias(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.relu(x + self.bias)


class Normalized(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True))


class Mixing(nn.Module):
    def forward(self, x):
        return torch.tanh(x) * x.flip(-1)


class Two(nn.Module):
    def forward(self, x, y):
        return torch.tanh(x) * y


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(torch.sigmoid(x))


@pytest.mark.parametrize("kind", [Affine, Bias, Normalized, Mixing, InPlace])
def test_what_is_no_elementwise_nonlinearity_of_its_input_is_no_unit(kind):
    model = nn.Sequential(nn.Identity(), kind()).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with Composite(formulation="gradient").register(model) as registration:
        model(x * 1.0)
    assert not [row for row in registration.report().rows if row.kind == "module"]
    assert registration.report().rows


def test_two_inputs_are_no_unit():
    x, y = (torch.randn(3, requires_grad=True) for _ in range(2))
    with Composite(formulation="gradient").register(model := Two()) as registration:
        model(x, y)
    assert {row.target for row in registration.report().rows} == {"tanh", "mul"}


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_a_squared_relu_in_a_model_is_a_signal(formulation):
    """Not all that is squared is a statistic: relevance must not end there."""

    class Feed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.down(torch.relu(self.up(x)).pow(2))

    torch.manual_seed(0)
    model = Feed().double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with Composite(formulation=formulation).register(model):
        y = model(x)
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    found = x.grad if formulation == "relevance" else x.detach() * x.grad
    torch.testing.assert_close(found.sum(-1), y.detach().sum(-1), rtol=1e-4, atol=1e-5)


def test_keys_of_the_user_go_first():
    model = nn.Sequential(nn.Linear(3, 3), ACT2FN["gelu"], ACT2FN["gelu_new"]).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def rows(rules):
        with Composite(rules, formulation="gradient").register(model) as registration:
            model(x)
        return {(row.target, row.rule, row.status) for row in registration.report().rows}

    named = rows({"2": Epsilon(0.0), transformers.activations.GELUActivation: Stop()})
    assert ("NewGELUActivation", "Epsilon(epsilon=0.0)", Status.RULED) in named
    assert ("GELUActivation", "Stop()", Status.RULED) in named
    # a module that is one operation answers to the key of that operation; a unit of several takes them all
    functions = rows({F.gelu: Epsilon(0.0), torch.tanh: Stop()})
    assert ("gelu", "Epsilon(epsilon=0.0)", Status.RULED) in functions
    assert ("NewGELUActivation", "Identity()", Status.DEFAULT) in functions
    assert ("tanh", "Stop()", Status.SHADOWED) in functions


def test_without_defaults_there_are_no_units():
    model = nn.Sequential(ACT2FN["gelu_new"])
    with Composite(formulation="gradient", defaults=False).register(model) as registration:
        model(torch.randn(3, requires_grad=True))
    assert not registration.report().complete
    assert "tanh" in {row.target for row in registration.report().uncovered}


@pytest.mark.parametrize("name", ["gelu_new", "quick_gelu", "laplace", "xielu"])
def test_identity_on_the_module_is_the_same(name):
    x = torch.linspace(-4, 4, 40)
    activation = of_transformers(name).float()
    default, _, _ = relevance_through(activation, x, Composite(formulation="gradient"))
    composite = Composite({type(activation): Identity()}, formulation="gradient")
    assert torch.equal(default, relevance_through(activation, x, composite)[0])
