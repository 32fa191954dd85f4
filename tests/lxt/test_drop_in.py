"""Drop-ins inside a registered model: operations that have their rule already, in both formulations."""

import pytest
import torch
from support import Fn, assert_close, both_formulations
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    Composite,
    Epsilon,
    Gamma,
    Identity,
    RuleError,
    Stop,
    WSquare,
    check_conservation,
    first_layer,
    presets,
)
from lxt_compose.lxt import functional as R
from lxt_compose.lxt import modules as M

torch.manual_seed(0)
WEIGHT, OTHER = torch.randn(4, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
X = torch.randn(2, 3, 4, dtype=torch.float64)


def block(x):
    return torch.tanh(x @ WEIGHT) + x


FUNCTIONS = {
    "linear_epsilon": lambda x: R.linear_epsilon(x, WEIGHT, WEIGHT[0], 1e-3),
    "linear_epsilon, a weight that is trained": lambda x: R.linear_epsilon(x, nn.Parameter(WEIGHT), epsilon=1e-3),
    "add2": lambda x: R.add2(x, x.flip(-1), epsilon=1e-3, alpha=0.5),
    "add2, a constant": lambda x: R.add2(OTHER, x, epsilon=1e-3),
    "mul2": lambda x: R.mul2(x, x[:, :1]),
    "mul2, a number": lambda x: R.mul2(x, 2.5),
    "matmul": lambda x: R.matmul(x, x.mT, epsilon=1e-3),
    "matmul, a constant": lambda x: R.matmul(x, WEIGHT, epsilon=1e-3),
    "softmax": lambda x: R.softmax(x, 1),
    "softmax, in float32 at a temperature": lambda x: R.softmax(x, -1, torch.float32, temperature=2.0),
    "mean": lambda x: R.mean(x, (0, -1), epsilon=1e-3),
    "layer_norm": lambda x: R.layer_norm(x, WEIGHT[0], WEIGHT[1], 1e-2),
    "rms_norm_identity": lambda x: R.rms_norm_identity(x, WEIGHT[0], 1e-2),
    "rms_norm_identity, no weight": lambda x: R.rms_norm_identity(x, None, 1e-2),
    "normalize": lambda x: R.normalize(x, 2.0, -1),
    "identity": lambda x: R.identity(F.gelu, x),
    "identity, of a module": lambda x: R.identity(nn.SiLU(), x),
    "epsilon_lrp": lambda x: R.epsilon_lrp(block, 1e-3, x),
    "epsilon_lrp, of several inputs": lambda x: R.epsilon_lrp(torch.bmm, 1e-3, x, x.mT),
    "stop_relevance": lambda x: R.mul2(x, R.stop_relevance(lambda t: t.square().sum(-1, keepdim=True), x)),
}
MODULES = {
    "LinearEpsilon": lambda: M.LinearEpsilon(4, 3),
    "SoftmaxDT": lambda: M.SoftmaxDT(-1, temperature=0.5),
    "RMSNormIdentity": lambda: M.RMSNormIdentity(4),
    "LayerNormEpsilon": lambda: M.LayerNormEpsilon(4),
    "MultiheadAttentionCP": lambda: M.MultiheadAttentionCP(4, 2, batch_first=True, epsilon=1e-3),
}


def test_each_drop_in_is_among_these():
    assert {name.split(",")[0] for name in FUNCTIONS} == set(R.__all__)
    assert {getattr(M, name) for name in M.__all__} == {getattr(M, name) for name in MODULES}


class Attends(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x.flip(1), x)[0]


def build(name):
    """A model that is one drop-in."""
    if name in FUNCTIONS:
        return Fn(lambda self, x: FUNCTIONS[name](x))
    module = MODULES[name]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return Attends(module) if name == "MultiheadAttentionCP" else nn.Sequential(module)


def start_of(z):
    return torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(3))


def alone(model, x=X):
    x = x.clone().requires_grad_()
    z = model(x)
    z.backward(start_of(z))
    return z.detach(), x.grad


def under(model, composite, x=X):
    """Output and relevance of the registered model, in whichever formulation, and its report."""
    x = x.clone().requires_grad_()
    with composite.register(model) as registration:
        z = model(x)
        gradient = composite.formulation == "gradient"
        z.backward(start_of(z) / z.detach() if gradient else start_of(z))
    return z.detach(), x.grad * x.detach() if gradient else x.grad, registration.report()


@both_formulations
@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_relevance_in_a_registered_model_is_that_of_the_drop_in_alone(name, formulation):
    model = build(name)
    before, expected = alone(model)
    for defaults in (True, False):
        if not defaults and name.startswith(("add2", "matmul", "epsilon_lrp", "stop")):
            continue  # other operations are in these
        values, found, report = under(model, Composite(formulation=formulation, defaults=defaults))
        assert torch.equal(values, before)
        assert_close(found, expected, 1e-5 if "float32" in name else 1e-9)
        assert report.complete
        rows = [row for row in report.rows if row.note == "drop-in"]
        assert rows
        assert all(str(row.status) == "ruled" and not row.key for row in rows)
        assert name.split(",")[0] in {row.target for row in rows} or name in MODULES


PRESETS = {name: {"low": -3.0, "high": 3.0} if name == "epsilon_gamma_box" else {} for name in presets.available()}


@both_formulations
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_rules_a_drop_in_again(preset, formulation):
    try:
        composite = presets.get(preset, **PRESETS[preset], formulation=formulation)
        composite.register(nn.Linear(2, 2)).remove()
    except (RuleError, TypeError):  # the preset knows one formulation
        composite = presets.get(preset, **PRESETS[preset])
    first = any(entry.key is first_layer for entry in composite.assignments)
    for name in FUNCTIONS:
        if first and name.startswith(("linear", "matmul", "epsilon_lrp, of")):
            continue  # the key for the first layer takes it
        model = build(name)
        before, expected = alone(model)
        values, found, report = under(model, composite)
        assert torch.equal(values, before)
        if name not in (
            "add2",
            "stop_relevance",
            "epsilon_lrp, of several inputs",
        ):  # x.flip, x.mT have rules of the preset
            assert_close(found, expected, 1e-5 if "float32" in name else 1e-9)
        assert report.complete


@both_formulations
@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_the_ledger_and_the_conservation_check_know_drop_ins(name, formulation):
    model, x = build(name), X.clone().requires_grad_()
    composite = Composite(formulation=formulation)
    with composite.register(model) as registration, registration.ledger() as ledger:
        model(x).sum().backward()
    assert not ledger.uncovered
    assert ledger.unaccounted < (1e-5 if "float32" in name else 1e-9)
    if name.startswith("epsilon_lrp"):
        return  # the epsilon rule does not conserve on what is not linear, and the check says so
    with composite.register(model) as registration:
        tolerances = {"atol": 1e-5} if "float32" in name else {}
        with check_conservation(registration, **tolerances) as check:
            model(x).sum().backward()
    assert check.rows


def test_what_the_bias_and_the_stabilizer_of_a_drop_in_keep_is_told_apart():
    model = Fn(lambda self, x: R.linear_epsilon(x, torch.ones(1, 2), torch.tensor([3.0]), epsilon=1.0))
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    with Composite().register(model) as registration, registration.ledger() as ledger:
        model(x).backward(torch.tensor([[7.0]]))
    # z = 1 + 2 + 3 = 6, s = 7 / (6 + 1) = 1: inputs get 1 and 2, the bias keeps 3, the stabilizer 1
    assert x.grad.tolist() == [[1.0, 2.0]]
    assert {kind: amount.tolist() for kind, amount in ledger.absorbed.items()} == {"bias": [3.0], "stabilizer": [1.0]}


class TestRulesAroundADropIn:
    """A module with a rule is one unit: nothing inside it is touched, and no drop-in acts in it."""

    @both_formulations
    @pytest.mark.parametrize("name", [n for n in FUNCTIONS if not n.startswith(("rms", "normalize", "softmax, in"))])
    def test_a_rule_for_the_whole_module_sees_the_plain_function(self, name, formulation):
        plain = {
            "linear_epsilon": lambda x: F.linear(x, WEIGHT, WEIGHT[0]),
            "linear_epsilon, a weight that is trained": lambda x: F.linear(x, WEIGHT),
            "add2": lambda x: x + 0.5 * x.flip(-1),
            "add2, a constant": lambda x: OTHER + x,
            "mul2": lambda x: x * x[:, :1],
            "mul2, a number": lambda x: x * 2.5,
            "matmul": lambda x: x @ x.mT,
            "matmul, a constant": lambda x: x @ WEIGHT,
            "softmax": lambda x: torch.softmax(x, 1),
            "mean": lambda x: x.mean((0, -1)),
            "layer_norm": lambda x: F.layer_norm(x, (4,), WEIGHT[0], WEIGHT[1], 1e-2),
            "identity": F.gelu,
            "identity, of a module": F.silu,
            "epsilon_lrp": block,
            "epsilon_lrp, of several inputs": lambda x: x @ x.mT,
            "stop_relevance": lambda x: x * x.square().sum(-1, keepdim=True),
        }[name]
        composite = Composite({"0": Epsilon(1e-3)}, formulation=formulation)
        _, expected, _ = under(nn.Sequential(Fn(lambda self, x: plain(x))), composite)
        _, found, report = under(nn.Sequential(build(name)), composite)
        assert_close(found, expected, 1e-9)
        assert report.complete
        assert not [row for row in report.rows if row.note == "drop-in"]

    @both_formulations
    def test_a_key_for_a_module_that_is_a_drop_in_goes_before_its_own_rule(self, formulation):
        layer = M.LinearEpsilon(4, 3).double()
        plain = nn.Linear(4, 3).double()
        plain.load_state_dict(layer.state_dict())
        composite = Composite({nn.Linear: Gamma(0.5)}, formulation=formulation)
        _, expected, _ = under(nn.Sequential(plain), composite)
        _, found, report = under(nn.Sequential(layer), composite)
        assert_close(found, expected, 1e-12)
        assert [str(row.rule) for row in report.rows] == [str(Gamma(0.5))]

    def test_the_key_for_the_first_layer_takes_a_drop_in_that_is_one(self):
        first, second = M.LinearEpsilon(4, 4).double(), M.LinearEpsilon(4, 3).double()
        _, found, _ = under(nn.Sequential(first, second), Composite({first_layer: WSquare()}))
        _, expected, report = under(nn.Sequential(first, second), Composite({"0": WSquare()}))
        assert_close(found, expected, 1e-12)
        assert [row.note for row in report.rows if row.path == "1"] == ["drop-in"]

    def test_a_key_for_a_function_does_not_reach_into_a_drop_in(self):
        _, expected = alone(build("mul2"))
        _, found, report = under(build("mul2"), Composite({torch.mul: Stop()}))
        assert_close(found, expected, 1e-12)
        assert list(report.unmatched) == ["torch.mul"]


class Inner(nn.Module):
    """A block with modules, and drop-ins, inside a drop-in."""

    def __init__(self):
        super().__init__()
        self.up, self.act = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x):
        return R.mul2(self.act(self.up(x)), x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return R.epsilon_lrp(self.inner, 1e-3, x)


@both_formulations
def test_modules_that_a_drop_in_takes_as_one_function_are_shadowed(formulation):
    model = Outer().double()
    _, found, report = under(model, Composite({nn.Linear: Gamma(), nn.Tanh: Identity()}, formulation=formulation))
    x = X.clone().requires_grad_()
    z = torch.tanh(model.inner.up(x)) * x
    (slope,) = torch.autograd.grad(z, x, start_of(z) / (z + 1e-3 * z.sign()).detach())
    assert_close(found, x.detach() * slope, 1e-9)
    assert {row.path: str(row.status) for row in report.rows} == {
        "": "ruled", "inner.up": "shadowed", "inner.act": "shadowed"
    }  # fmt: skip
    assert_close(alone(model)[1], found, 1e-9)


@both_formulations
def test_a_function_in_place_of_a_rule_may_call_drop_ins(formulation):
    replaced = {torch.mul: lambda a, b: R.mul2(a, b), torch.matmul: lambda a, b: R.matmul(a, b, epsilon=1e-3)}
    model = Fn(lambda self, x: (x * x[:, :1]) @ x.mT)
    drop_ins = Fn(lambda self, x: R.matmul(R.mul2(x, x[:, :1]), x.mT, epsilon=1e-3))
    _, found, _ = under(model, Composite(replaced, formulation=formulation))
    assert_close(found, alone(drop_ins)[1], 1e-9)


@both_formulations
@pytest.mark.parametrize("reentrant", [True, False])
def test_in_an_activation_checkpoint(formulation, reentrant):
    model = nn.Sequential(M.LinearEpsilon(4, 4), M.RMSNormIdentity(4), M.SoftmaxDT(-1)).double()
    checkpointed = Fn(lambda self, x: checkpoint(self.model, x, use_reentrant=reentrant), model=model)
    _, found, report = under(checkpointed, Composite(formulation=formulation))
    assert_close(found, alone(model)[1], 1e-9)
    assert report.complete


def test_a_module_made_of_drop_ins_is_no_activation():
    model = nn.Sequential(Fn(lambda self, x: R.mul2(x, torch.sigmoid(x))))
    z, found, report = under(model, Composite({torch.sigmoid: Stop()}))
    assert_close(found, start_of(z), 1e-12)
    assert {row.target for row in report.rows} == {"mul2", "sigmoid"}


def test_other_function_modes_leave_them_alone():
    class Nothing(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    for name in FUNCTIONS:
        model = build(name)
        _, expected = alone(model)
        with Nothing(), torch.device("cpu"):
            assert_close(alone(model)[1], expected, 1e-12)
