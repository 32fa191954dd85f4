"""Traps: where libraries of this kind go wrong. A test for each, named by its number and told in its docstring."""

import copy
import dataclasses
import warnings
from collections import OrderedDict, namedtuple
from functools import partial

import pytest
import torch
from support import (
    FORMULATIONS,
    Fn,
    Residual,
    Same,
    assert_close,
    attribute,
    cnn,
    exact,
    fingerprint,
    input_times_gradient,
    label,
    mlp,
    residual,
    start_at,
    transformer,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    AlphaBeta,
    Attention,
    Composite,
    Epsilon,
    Gamma,
    Identity,
    MatchError,
    Norm,
    Pass,
    RegistrationError,
    SoftmaxTaylor,
    Status,
    Stop,
    Uniform,
)

both_formulations = pytest.mark.parametrize("formulation", FORMULATIONS)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def linear(inputs=6, outputs=6, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).double()


def inputs(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_is_input_times_gradient(model, x, formulation, rules=(), index=0):
    assert_close(attribute(model, x, exact(formulation, rules), index), input_times_gradient(model, x, index))


# ---- 1-3: reuse, residuals, sums -----------------------------------------------------------------------------------


@both_formulations
def test_trap_01_a_module_called_twice(formulation):
    """A module that is called twice in one forward pass keeps the state of each call apart."""
    model = Fn(lambda self, x: self.layer(self.layer(x)), layer=linear())
    assert_is_input_times_gradient(model, inputs(4, 6), formulation)


@both_formulations
@pytest.mark.parametrize("join", [lambda a, x: a + x, lambda a, x: x + a, torch.add, lambda a, x: a.add_(x)])
def test_trap_02_a_plain_residual(formulation, join):
    """A plain residual ``a(x) + x`` does not return twice the relevance."""
    model = Fn(lambda self, x: join(self.a(x), x), a=linear())
    assert_is_input_times_gradient(model, inputs(4, 6), formulation)
    assert_is_input_times_gradient(residual(), inputs(4, 6), formulation)


@both_formulations
def test_trap_03_a_sum_of_two_inputs(formulation):
    """``R_a = a`` and ``R_b = b`` for ``R = a + b``: each input gets its own contribution, not both the same."""
    a, b = inputs(4, 6).requires_grad_(), inputs(4, 6, seed=2).requires_grad_()
    with exact(formulation).register(Fn(lambda self, a, b: a + b)) as registration:
        z = registration.model(a, b)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    found = (a.grad, b.grad) if formulation == "relevance" else (a.detach() * a.grad, b.detach() * b.grad)
    assert_close(found[0], a.detach(), 1e-6)
    assert_close(found[1], b.detach(), 1e-6)


# ---- 4-8: names, removal, registering twice, copies ----------------------------------------------------------------


def test_trap_04_names_as_keys():
    """Exact names and globs are keys; a name that matches nothing raises, and tells the closest."""
    model = mlp()
    for key, bound in (("fc1", ["fc1"]), ("fc?", ["fc1", "fc2"]), ("f*", ["fc1", "fc2"]), ("", [""])):
        with Composite({key: Epsilon()}).register(model) as registration:
            assert [row.path for row in registration.report().rows] == bound
    before = fingerprint(model)
    with pytest.raises(MatchError, match=r"no module matches 'fc3' in Sequential; closest: 'fc[12]'"):
        Composite({"fc3": Epsilon()}).register(model)
    assert fingerprint(model) == before


def test_trap_05_remove_restores_modules_and_flags():
    """After remove() every submodule is the one that was there, and every ``requires_grad`` is what it was."""
    model = transformer()
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    modules = [Same(module) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    registration = Composite({nn.Linear: Gamma(), nn.LayerNorm: Norm(), nn.GELU: Identity()}).register(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model(inputs(2, 5, 8).requires_grad_()).sum().backward()
    registration.remove()
    assert [Same(module) for module in model.modules()] == modules
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_trap_06_registering_twice():
    """A second registration raises instead of wrapping twice; the keys of the state_dict never change."""
    model = mlp()
    keys, composite = list(model.state_dict()), Composite({nn.Linear: Epsilon()})
    with composite.register(model):
        assert list(model.state_dict()) == keys
        with pytest.raises(RegistrationError, match=r"Sequential has a composite registered already; call remove\(\)"):
            composite.register(model)
        x = inputs(4, 6).requires_grad_()
        y = model(x)
        y.backward(y.detach())
    assert_close(x.grad, attribute(model, inputs(4, 6), composite))


def test_trap_07_two_rules_double_remove_and_dict():
    """Two rules on one module: the first wins, no recursion. remove() twice is fine, and ``__dict__`` is untouched."""
    model = mlp()
    before = [dict(vars(module)) for module in model.modules()]
    registration = Composite([("fc1", Stop()), (nn.Linear, Epsilon())]).register(model)
    assert "forward" not in vars(model.fc1)
    x = inputs(4, 6).requires_grad_()
    model(x).sum().backward()
    assert x.grad.count_nonzero() == 0
    registration.remove()
    registration.remove()
    assert [dict(vars(module)) for module in model.modules()] == before


def test_trap_08_a_deep_copy_of_a_registered_model():
    """A deep copy made while registered runs on its own weights."""
    model = mlp()
    with Composite({nn.Linear: Epsilon()}).register(model):
        double = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in double.parameters():
                parameter.zero_()
        assert double(inputs(4, 6)).count_nonzero() == 0
        assert model(inputs(4, 6).requires_grad_()).count_nonzero() > 0
    assert all(parameter.requires_grad for parameter in double.parameters())


# ---- 9-11: inputs and outputs of all kinds -------------------------------------------------------------------------


@both_formulations
def test_trap_09_keyword_inputs_only(formulation):
    """Relevance reaches x in ``layer(input=x)``."""
    model = Fn(lambda self, x: self.layer(input=F.relu(input=x)), layer=linear())
    assert_is_input_times_gradient(model, inputs(4, 6), formulation)


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Plain:
    first: torch.Tensor
    second: torch.Tensor
    other: str = "kept"


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: torch.Tensor
    second: torch.Tensor


OUTPUTS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"first": a, "second": b},
    "ordered dict": lambda a, b: OrderedDict(first=a, second=b),
    "named tuple": Pair,
    "dataclass": Plain,
    "frozen dataclass": Frozen,
    "nested": lambda a, b: ({"first": [a]}, (Plain(b, b.detach()), None, "text", 3)),
}


def leaves(tree):
    """The tensors in a container, by a walk written independently of the library."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, dict):
        tree = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, (list, tuple)) else []


def skeleton(tree):
    """The types in a container, and all in it that is no tensor."""
    if isinstance(tree, torch.Tensor):
        return "tensor"
    if dataclasses.is_dataclass(tree) and not isinstance(tree, dict):
        return type(tree), [skeleton(getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        return type(tree), [(key, skeleton(value)) for key, value in tree.items()]
    return (type(tree), [skeleton(part) for part in tree]) if isinstance(tree, (list, tuple)) else tree


@both_formulations
@pytest.mark.parametrize("kind", OUTPUTS)
def test_trap_10_outputs_in_containers(kind, formulation):
    """All tensors of an output are wrapped, in containers of the same types; each carries its own relevance."""
    pack = OUTPUTS[kind]
    block = Fn(lambda self, x: pack(self.a(x), self.b(x)), a=linear(seed=3), b=linear(seed=4))
    model = Fn(lambda self, x: sum(leaves(self.block(x)), torch.zeros(6, dtype=torch.float64)), block=block)
    x, kept = inputs(4, 6), []
    block.register_forward_hook(lambda module, args, output: kept.append(output))
    assert_is_input_times_gradient(model, x, formulation, [("block", Epsilon(1e-12))])
    with_rule = kept[0]
    block(x.requires_grad_())
    assert skeleton(with_rule) == skeleton(kept[-1])
    assert all(map(torch.equal, leaves(with_rule), leaves(kept[-1])))


def test_trap_10_a_model_output_of_transformers():
    """A ModelOutput stays one, with its attributes; its tensors carry relevance."""
    outputs = pytest.importorskip("transformers.modeling_outputs")
    kind = outputs.BaseModelOutputWithPooling
    block = Fn(lambda self, x: kind(last_hidden_state=self.a(x), pooler_output=self.b(x)), a=linear(), b=linear(seed=4))
    model = Fn(lambda self, x: self.block(x).last_hidden_state + self.block(x)[1], block=block)
    x, kept = inputs(4, 6), []
    block.register_forward_hook(lambda module, args, output: kept.append(output))
    for formulation in FORMULATIONS:
        assert_is_input_times_gradient(model, x, formulation, [("block", Epsilon(1e-12))])
    assert type(kept[0]) is kind
    assert kept[0].pooler_output is kept[0]["pooler_output"]
    assert kept[0].to_tuple()[1] is kept[0].pooler_output


@both_formulations
def test_trap_10_lstm_as_one_unit(formulation):
    """An LSTM returns a tuple in a tuple; as one unit under Epsilon it is R = x * J^T (R / z)."""
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 5, batch_first=True).double()
    model = Fn(lambda self, x: self.lstm(x)[0][:, 0] + self.lstm(x)[1][1][0], lstm=lstm)
    x = inputs(2, 3, 4)
    found = attribute(model, x, exact(formulation, {"lstm": Epsilon(1e-12)}.items()), 0)
    assert_close(found, input_times_gradient(model, x, 0))


@both_formulations
@pytest.mark.parametrize("constant", [0, 1])
def test_trap_11_one_input_is_a_constant(formulation, constant):
    """``Bilinear(x, constant)``: the constant is left alone, x gets all."""
    torch.manual_seed(0)
    other, layer = inputs(4, 6, seed=5), nn.Bilinear(6, 6, 3).double()
    model = Fn(lambda self, x: self.layer(*((other, x) if constant == 0 else (x, other))), layer=layer)
    x = inputs(4, 6)
    assert_is_input_times_gradient(model, x, formulation)
    assert_close(attribute(model, x, Composite({nn.Bilinear: Epsilon(1e-12)}, formulation=formulation), 0),
                 input_times_gradient(model, x, 0))  # fmt: skip


# ---- 12-15: calls, hooks that never fire, compiled models ----------------------------------------------------------


def test_trap_12_the_rule_stays_for_the_second_call_and_goes_after_an_exception():
    """A rule acts on every call, not on the first alone; an exception in the model leaves nothing behind."""
    model = mlp()
    before = fingerprint(model)
    with Composite({"fc1": Stop()}).register(model):
        for _ in range(3):
            x = inputs(4, 6).requires_grad_()
            model(x).sum().backward()
            assert x.grad.count_nonzero() == 0
    assert fingerprint(model) == before

    broken = Fn(lambda self, x: self.layer(x).reshape(-1, 7), layer=linear())
    before = fingerprint(broken)
    with pytest.raises(RuntimeError, match="invalid for input"), Composite({nn.Linear: Gamma()}).register(broken):
        broken(inputs(4, 6).requires_grad_())
    assert fingerprint(broken) == before


def test_trap_13_a_module_that_is_never_called():
    """``nn.MultiheadAttention.out_proj`` is never called (its weight is): not executed, and attention is one op."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = Fn(lambda self, x: self.attention(x, x, x)[0], attention=attention)
    with Composite({nn.Linear: Gamma()}).register(model) as registration:
        model(inputs(2, 3, 8).requires_grad_())
        report = registration.report()
    assert [(row.path, row.status) for row in report.not_executed] == [("attention.out_proj", Status.NOT_EXECUTED)]
    assert report.complete
    assert "multi_head_attention_forward" in {row.target for row in report.rows if row.kind == "op"}


class WrittenOut(nn.Module):
    """nn.MultiheadAttention in modules and functions, from its definition."""

    def __init__(self, attention):
        super().__init__()
        self.heads, size = attention.num_heads, attention.embed_dim
        self.q, self.k, self.v, self.out = (nn.Linear(size, size).double() for _ in range(4))
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        with torch.no_grad():
            for layer, weight, bias in zip((self.q, self.k, self.v), weights, biases, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            self.out.load_state_dict(attention.out_proj.state_dict())

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for layer in (self.q, self.k, self.v))
        weights = (q / q.shape[-1] ** 0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.out((weights @ v).transpose(-2, -3).flatten(-2))


@both_formulations
@pytest.mark.parametrize("need_weights", [True, False])
def test_trap_14_multi_head_attention_is_one_op(formulation, need_weights):
    """``F.multi_head_attention_forward`` does not re-enter the mode without end, and equals attention written out."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = Fn(lambda self, x: self.attention(x, x, x, need_weights=need_weights)[0], attention=attention)
    x = inputs(2, 3, 8)
    composite = Composite(formulation=formulation)
    assert_close(attribute(model, x, composite, 0), attribute(WrittenOut(attention), x, composite, 0), 1e-4)


@pytest.mark.parametrize("how", ["wrapped", "method", "part"])
def test_trap_15_compiled_models_run_eagerly_while_registered(how):
    """torch.compile does not see hooks that are added later: the compiled parts run eagerly, and the report says so."""
    model, x = mlp(), inputs(4, 6).requires_grad_()
    with Composite().register(model):
        y = model(x)
        expected = torch.autograd.grad(y, x, y.detach())[0]
    compiled = torch.compile(model, backend="eager") if how == "wrapped" else model
    if how == "method":
        model.compile(backend="eager")
    elif how == "part":
        model.fc1.compile(backend="eager")
    before = compiled(x)
    with Composite().register(compiled) as registration:
        y = compiled(x)
        assert torch.equal(torch.autograd.grad(y, x, y.detach())[0], expected)
        assert registration.report().complete
        assert "compiled, but run eagerly while registered" in registration.report().notes[0]
    assert torch.equal(compiled(x), before)


@pytest.mark.parametrize("how", ["wrapped", "method"])
def test_trap_15_compiled_models_are_refused_where_torch_cannot_run_them_eagerly(how, monkeypatch):
    """Versions of torch before 2.6 have no stance."""
    monkeypatch.delattr(torch.compiler, "set_stance")
    model = mlp()
    compiled = torch.compile(model, backend="eager") if how == "wrapped" else model
    if how == "method":
        model.compile(backend="eager")
    with pytest.raises(RegistrationError, match=r"is compiled, .* register on the model before"):
        Composite().register(compiled)


def test_trap_15_code_compiled_around_a_registered_model_is_refused():
    """A registered model called from compiled code raises too, instead of running without rules."""
    pytest.importorskip("torch._dynamo")
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    x = inputs(4, 6).requires_grad_()
    compiled(x)  # compiled before the rules came
    before, composite = fingerprint(model), Composite({nn.Linear: Gamma()})
    with composite.register(model):
        with pytest.raises(RegistrationError, match=r"^the model itself runs in compiled code"):
            compiled(x)
        with torch.compiler.set_stance("force_eager"):
            y = compiled(x)
        y.backward(y.detach())
    assert fingerprint(model) == before
    assert_close(x.grad, attribute(model, inputs(4, 6), composite))
    torch._dynamo.reset()


# ---- 16-20: numbers ------------------------------------------------------------------------------------------------


@both_formulations
@pytest.mark.parametrize(("alpha", "beta", "expected"), [(1.0, 0.0, (-1.0, 0.0)), (2.0, 1.0, (-2.0, 0.5))])
def test_trap_16_the_bias_counts_once_in_alpha_beta(alpha, beta, expected, formulation):
    """W = (1, -1), b = -1, x = (1, 1): for R = -1 AlphaBeta gives (-1, 0) with 1, 0 and (-2, 1/2) with 2, 1."""
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.fill_(-1.0)
    composite = Composite({nn.Linear: AlphaBeta(alpha, beta)}, formulation=formulation)
    found = attribute(layer, torch.ones(1, 2).double(), composite)
    assert_close(found, torch.tensor([expected]).double(), 1e-5)


@both_formulations
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_trap_17_inputs_are_split_as_well_as_weights(alpha, formulation):
    """Positive contributions are ``(x w)+``, from negative inputs with negative weights too."""
    layer, x, beta = linear(), inputs(5, 6), alpha - 1
    contributions = x[:, None, :] * layer.weight.detach()
    bias = layer.bias.detach()
    positive, negative = contributions.clamp(min=0), contributions.clamp(max=0)
    z = layer(x).detach()
    share = alpha * positive / (positive.sum(-1) + bias.clamp(min=0) + 1e-6)[..., None]
    share = share - beta * negative / (negative.sum(-1) + bias.clamp(max=0) - 1e-6)[..., None]
    expected = (share * z[..., None]).sum(1)
    found = attribute(layer, x, Composite({nn.Linear: AlphaBeta(alpha, beta)}, formulation=formulation))
    assert_close(found, expected)


@both_formulations
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("rule", [Epsilon(1e-12), Epsilon(0.0), Gamma(), AlphaBeta(), Attention(1e-12)], ids=label)
def test_trap_18_the_stabilizer_is_signed_and_survives_every_dtype(rule, dtype, formulation):
    """w = (1, -1), x = (1, 1) and z near -e are finite: sign(0) = +1, and e is at least the dtype's resolution."""
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    key = "" if isinstance(rule, (Epsilon, Gamma, AlphaBeta)) else F.linear
    for other in (1.0, 1.0 + 1e-6, 1.0 + 1e-8, 1 + 1e-2, 1 + 1e-3):
        x = torch.tensor([[1.0, other]], dtype=dtype, requires_grad=True)
        with Composite({key: rule}, formulation=formulation).register(layer):
            z = layer(x)
            z.backward(torch.ones_like(z))
        assert torch.isfinite(x.grad).all()


@both_formulations
@pytest.mark.parametrize("rule", [Epsilon(), Gamma(), AlphaBeta(), AlphaBeta(1.0, 0.0), Pass()], ids=label)
def test_trap_19_rows_of_zeros(rule, formulation):
    """Where x is 0, or a whole row of it (after ReLU), relevance is finite, and 0 but for rules that hand R on."""
    layer = linear()
    with torch.no_grad():
        layer.bias.zero_()
    x = inputs(4, 6)
    x[1] = 0
    x[2:, ::2] = 0
    found = attribute(layer, x, Composite({nn.Linear: rule}, formulation=formulation))
    assert torch.isfinite(found).all()
    if not isinstance(rule, Pass):
        assert found[x == 0].count_nonzero() == 0


ACTIVATIONS = {
    "silu": (F.silu, 0.5), "gelu": (F.gelu, 0.5), "mish": (F.mish, 0.6), "tanh": (torch.tanh, 1.0), "elu": (F.elu, 1.0),
    "hardswish": (F.hardswish, 0.5), "softsign": (F.softsign, 1.0), "erf": (torch.erf, 2 / torch.pi**0.5),
    "sin": (torch.sin, 1.0), "expm1": (torch.expm1, 1.0),
    "gelu tanh": (partial(F.gelu, approximate="tanh"), 0.5),
}  # fmt: skip


SLOPES = [(name, dtype) for name in ACTIVATIONS for dtype in DTYPES]


# torch's own erf of small numbers is 0 in bfloat16, and so is its quotient
@pytest.mark.parametrize(("name", "dtype"), [each for each in SLOPES if each != ("erf", torch.bfloat16)], ids=label)
def test_trap_20_the_slope_of_identity_at_zero(name, dtype):
    """f(x) / x at 0 is the limit, 1/2 for SiLU, and near 0 it does not blow up."""
    function, limit = ACTIVATIONS[name]
    x = torch.tensor([0.0, -0.0, 1e-10, -1e-10, 1e-7, -1e-4], dtype=dtype, requires_grad=True)
    with Composite(formulation="gradient").register(Fn(lambda self, x: function(x))) as registration:
        z = registration.model(x)
        z.backward(torch.ones_like(z))
    expected = torch.full_like(x, limit)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=max(2e-4, 4 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("function", [torch.sigmoid, F.softplus, torch.exp, torch.cos, torch.cosh])
def test_trap_20_functions_that_are_not_zero_at_zero(function, dtype):
    """f(0) != 0 (sigmoid, softplus): its share of the relevance stays in the bias, so that 0 gets none of it."""
    for formulation in FORMULATIONS:
        x = torch.tensor([0.0, -0.0, 1e-10, -1e-10, 0.5, -2.0], dtype=dtype, requires_grad=True)
        with Composite(formulation=formulation).register(Fn(lambda self, x: function(x))) as registration:
            z = registration.model(x)
            z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
        found = x.grad if formulation == "relevance" else x.grad * x.detach()
        passed = (z - function(torch.zeros((), dtype=dtype))).detach()
        torch.testing.assert_close(found, passed, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
        assert float(x.grad.abs().max()) < 4


# ---- 21: names -----------------------------------------------------------------------------------------------------


@both_formulations
def test_trap_21_a_module_mounted_under_two_names(formulation):
    """``named_modules()`` hides the second name: here both match, and both are listed."""
    layer = linear()
    model = Fn(lambda self, x: self.second(self.first(x)), first=layer, second=layer)
    for key in ("first", "second", "s*"):
        with Composite({key: Epsilon()}, formulation=formulation).register(model) as registration:
            (row,) = registration.report().rows
            assert (row.path, *row.aliases) == ("first", "second")
    assert_is_input_times_gradient(model, inputs(4, 6), formulation, {"second": Epsilon(1e-12)}.items())


# ---- 23: softmax ---------------------------------------------------------------------------------------------------


@both_formulations
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("how", ["function", "method", "module", "torch"])
def test_trap_23_softmax_over_any_dimension(dim, how, formulation):
    """``R_x = x (R - s sum R)`` with the sum over the softmax's own dimension."""
    softmax = {
        "function": lambda self, x: F.softmax(x, dim),
        "method": lambda self, x: x.softmax(dim=dim),
        "module": lambda self, x: self.m(x),
        "torch": lambda self, x: torch.softmax(x, dim),
    }[how]
    model, x = Fn(softmax, m=nn.Softmax(dim)), inputs(3, 4, 5)
    s = x.softmax(dim)
    relevance = start_at(s, 1) * s
    expected = x * (relevance - s * relevance.sum(dim, keepdim=True))
    for rules in ({}, {F.softmax: SoftmaxTaylor()}, {nn.Softmax: SoftmaxTaylor()} if how == "module" else {}):
        assert_close(attribute(model, x, Composite(rules, formulation=formulation), 1), expected)


@both_formulations
def test_trap_23_masked_scores(formulation):
    """Inputs of -inf get 0, and a fully masked column gives no NaN where the rest is finite."""
    mask = torch.zeros(2, 4, 5, dtype=torch.float64)
    mask[0, :, 2:] = -torch.inf
    mask[1, :, 4] = -torch.inf
    model, x = Fn(lambda self, x: F.softmax(x + mask, 1)), inputs(2, 4, 5)
    allowed = mask == 0
    z = torch.where(allowed, (x + mask).softmax(1), 0)
    relevance = torch.zeros_like(z)
    relevance[:, 1] = z[:, 1]
    expected = torch.where(allowed, x * (relevance - z * relevance.sum(1, keepdim=True)), 0)
    leaf = x.clone().requires_grad_()
    with Composite(formulation=formulation).register(model):
        y = model(leaf)
        slot = torch.zeros_like(y)
        slot[:, 1] = y[:, 1].detach() if formulation == "relevance" else 1
        y.backward(torch.where(allowed, slot, 0))
    found = leaf.grad if formulation == "relevance" else x * leaf.grad
    assert_close(found[allowed], expected[allowed], 1e-5)
    assert found[~allowed].count_nonzero() == 0


# ---- 24-25: in place, broadcasting ---------------------------------------------------------------------------------


IN_PLACE = {
    "relu": (lambda h, x: h.relu_(), lambda h, x: h.relu()),
    "functional": (lambda h, x: F.relu(h, inplace=True), lambda h, x: F.relu(h)),
    "module": (lambda h, x: nn.ReLU(inplace=True)(h), lambda h, x: nn.ReLU()(h)),
    "iadd": (lambda h, x: h.__iadd__(x), lambda h, x: h + x),
    "add_": (lambda h, x: h.add_(x), lambda h, x: h + x),
    "sub_": (lambda h, x: h.sub_(x), lambda h, x: h - x),
    "mul_ by a constant": (lambda h, x: h.mul_(2.0), lambda h, x: h * 2.0),
    "mul_": (lambda h, x: h.mul_(x), lambda h, x: h * x),
    "div_": (lambda h, x: h.div_(x.exp()), lambda h, x: h / x.exp()),
    "gelu": (lambda h, x: F.silu(h, inplace=True), lambda h, x: F.silu(h)),
    "tanh_": (lambda h, x: h.tanh_(), lambda h, x: h.tanh()),
    "setitem": (lambda h, x: h.__setitem__((..., 0), x[..., 1]), lambda h, x: torch.cat([x[:, 1:2], h[:, 1:]], -1)),
    "masked_fill_": (lambda h, x: h.masked_fill_(h < 0, 0.5), lambda h, x: h.masked_fill(h < 0, 0.5)),
    "reciprocal_": (lambda h, x: h.reciprocal_(), lambda h, x: h.reciprocal()),
    "square_": (lambda h, x: h.square_(), lambda h, x: h.square()),
    "copy_": (lambda h, x: h.copy_(x), lambda h, x: x.clone()),
    "view of it": (lambda h, x: h.view(2, 2, 6)[:, 0].relu_(), lambda h, x: torch.where(_even_rows(h), h.relu(), h)),
}


def _even_rows(h):
    return torch.arange(len(h))[:, None] % 2 == 0


@both_formulations
@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("name", IN_PLACE)
def test_trap_24_in_place_operations(name, bound, formulation):
    """In-place functions and flags spoil neither saved tensors nor the caller's relevance: as if out of place."""
    in_place, plain = IN_PLACE[name]

    def changed(self, x):
        h = self.first(x)
        in_place(h, x)  # what it returns is not used: h itself must have changed, for relevance too
        return self.second(h) + self.first(x)

    def unchanged(self, x):
        return self.second(plain(self.first(x), x)) + self.first(x)

    first, second, x = linear(), linear(seed=7), inputs(4, 6)
    composite = Composite({nn.Linear: Epsilon(1e-9)} if bound else {}, formulation=formulation)
    found, expected = (attribute(Fn(f, first=first, second=second), x, composite) for f in (changed, unchanged))
    assert_close(found, expected)


@both_formulations
def test_trap_24_the_callers_relevance_is_not_overwritten(formulation):
    """What is passed to backward() is the caller's, and stays as it is; so are retained gradients inside."""
    model = cnn(inplace=True)
    x, kept = inputs(2, 2, 8, 8).requires_grad_(), []
    model[0].register_forward_hook(lambda module, args, output: kept.append(output))
    with Composite({nn.Conv2d: Gamma()}, formulation=formulation).register(model):
        y = model(x)
        start = torch.ones_like(y)
        y.backward(start)
    assert torch.equal(start, torch.ones_like(y))
    for rules in ({nn.Conv2d: Gamma()}, {}):
        pair = [attribute(cnn_of(flag), inputs(2, 2, 8, 8), Composite(rules)) for flag in (False, True)]
        assert_close(pair[1], pair[0])


def cnn_of(inplace):
    torch.manual_seed(3)
    return cnn(inplace)


@pytest.mark.parametrize("rules", [{}, {"": Epsilon()}, {nn.ReLU: Identity()}], ids=label)
def test_trap_24_a_leaf_that_is_changed_in_place_is_refused(rules):
    """As in PyTorch itself; the message says what to do."""
    model = nn.Sequential(nn.ReLU(inplace=True))
    before = fingerprint(model)
    with (
        pytest.raises(RuntimeError, match="changes in place a leaf tensor that requires grad; give the model a copy"),
        Composite(rules).register(model),
    ):
        model(inputs(4, 6).requires_grad_())
    assert fingerprint(model) == before


@both_formulations
@pytest.mark.parametrize("operation", ["add", "mul", "sub", "matmul"])
def test_trap_25_broadcasting(operation, formulation):
    """R is reduced to the input's shape: ``a[3, 1] + b[4]`` and ``a * b``."""
    a, b = inputs(3, 1).requires_grad_(), inputs(4, seed=2).requires_grad_()
    with exact(formulation).register(Fn(lambda self, a, b: getattr(torch, operation)(a, b[None]))) as registration:
        z = registration.model(a, b)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    found = [t.grad if formulation == "relevance" else t.grad * t.detach() for t in (a, b)]
    a, b = a.detach(), b.detach()
    if operation == "add":
        expected = (a * 4)[..., :1], b * 3
    elif operation == "sub":
        expected = a * 4, -b * 3
    else:  # a product of two: each factor gets half of the relevance of each product that it is part of
        expected = (a * b).sum(1, keepdim=True) / 2, (a * b).sum(0) / 2
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-5)


# ---- 26-32 ---------------------------------------------------------------------------------------------------------


@both_formulations
def test_trap_26_parameters_never_see_relevance(formulation):
    """``.grad`` of every parameter is unchanged by attribution, and a training step after it is the one before it."""
    x, target = inputs(8, 6), torch.arange(8) % 3

    def step(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    torch.manual_seed(0)
    explained = mlp()
    plain = copy.deepcopy(explained)
    F.cross_entropy(explained(x), target).backward()
    F.cross_entropy(plain(x), target).backward()
    grads = [parameter.grad.clone() for parameter in explained.parameters()]
    attribute(explained, x, Composite({nn.Linear: Gamma()}, formulation=formulation))
    assert all(map(torch.equal, grads, [parameter.grad for parameter in explained.parameters()]))
    assert all(map(torch.equal, step(explained), step(plain)))


class Checkpointed(nn.Module):
    """Two residual blocks, in activation checkpoints or not."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = Residual(6, inplace=True), Residual(6), nn.Linear(6, 3)
        self.norm, self.reentrant = nn.LayerNorm(6), reentrant
        self.double()

    def forward(self, x):
        for block in (self.first, self.norm, self.second):
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(F.gelu(x))


CHECKPOINT_RULES = [
    {},
    {nn.Linear: Gamma()},
    {"first": Epsilon(), nn.LayerNorm: Norm(), nn.Linear: AlphaBeta()},
    {"": Epsilon()},
    {nn.ReLU: Pass(), "second": Uniform()},
    {torch.add: Uniform(), nn.LayerNorm: Pass()},
]


CHECKPOINT_CASES = [
    (rules, formulation)
    for rules in CHECKPOINT_RULES
    for formulation in FORMULATIONS
    # Uniform on modules and sums needs the relevance formulation.
    if formulation == "relevance" or not any(isinstance(rule, Uniform) for rule in rules.values())
]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("rules", "formulation"), CHECKPOINT_CASES, ids=label)
def test_trap_27_activation_checkpointing(rules, reentrant, formulation):
    """The rules are in force when a checkpointed block is recomputed: with checkpoints as without, elementwise."""
    composite, x = Composite(rules, formulation=formulation), inputs(4, 6)
    model = Checkpointed(reentrant)
    before = fingerprint(model)
    assert_close(attribute(model, x, composite, 0), attribute(Checkpointed(None), x, composite, 0), 1e-12)
    assert fingerprint(model) == before


def test_trap_29_other_models_of_the_same_class_are_untouched():
    """Nothing is patched: a second model of the same class is as it was, and a model built before works."""
    built_before, other = transformer(), transformer()
    x = inputs(2, 5, 8)
    expected, forward = input_times_gradient(other, x), type(other).forward
    prints = fingerprint(other)
    with Composite({nn.Linear: Gamma()}).register(built_before):
        assert_close(input_times_gradient(other, x), expected, 0)
        assert fingerprint(other) == prints
        assert type(other).forward is forward
    assert torch.isfinite(attribute(built_before, x, Composite())).all()


DROPOUTS = {
    "module": lambda: (nn.Sequential(linear(), nn.Dropout(0.5)), "'1'"),
    "function": lambda: (Fn(lambda self, x: F.dropout(x, 0.5, self.training)), "the model itself"),
    "attention": lambda: (
        Fn(lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
        "the model itself",
    ),
    "multi-head": lambda: (
        Fn(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2, dropout=0.5).double()),
        "'a'",
    ),
}


@pytest.mark.parametrize(
    "rules", [{}, {"": Epsilon()}, {nn.Dropout: Pass(), nn.MultiheadAttention: Epsilon()}], ids=label
)
@pytest.mark.parametrize("kind", DROPOUTS)
def test_trap_30_active_dropout_is_warned_about_once_by_name(kind, rules):
    """Dropout in train mode makes relevance random: warned about, once, with the module's path; not so in eval mode."""
    model, name = DROPOUTS[kind]()
    with warnings.catch_warnings(record=True) as caught, Composite(rules).register(model.train()):
        warnings.simplefilter("always")
        for _ in range(3):
            model(inputs(3, 4, 6).requires_grad_())
    assert [str(w.message).split(",")[0] for w in caught] == [f"dropout is active in {name}"]
    if kind != "attention":  # there the rate is the caller's affair, and eval mode changes nothing
        with warnings.catch_warnings(), Composite(rules).register(model.eval()):
            warnings.simplefilter("error")
            model(inputs(3, 4, 6).requires_grad_())


def test_trap_31_nothing_requires_grad():
    """Clear errors that say what to do: nothing requires grad, integer inputs, inference mode."""
    model = mlp()
    embedding = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3))
    before = fingerprint(model), fingerprint(embedding)
    with Composite().register(model), Composite().register(embedding):
        with pytest.raises(RegistrationError, match=r"no input of Sequential requires grad.*call x.requires_grad_\(\)"):
            model(inputs(4, 6))
        with pytest.raises(RegistrationError, match=r"token ids cannot: pass their embeddings, e.g. inputs_embeds="):
            embedding(torch.arange(4))
        with torch.inference_mode(), pytest.raises(RegistrationError, match="called in inference mode"):
            model(inputs(4, 6))
        with torch.inference_mode():
            made_there = inputs(4, 6)
        with pytest.raises(RegistrationError, match="with a tensor made there; call it outside"):
            model(made_there)
    assert (fingerprint(model), fingerprint(embedding)) == before


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


CUSTOM = {
    "inside": Fn(lambda self, x: Doubled.apply(x) + 1.0),
    "at the end": Fn(lambda self, x: Doubled.apply(x)),
    "in a child": nn.Sequential(Fn(lambda self, x: Doubled.apply(x)), nn.ReLU()),
    "in place after": Fn(lambda self, x: Doubled.apply(x).relu_()),
}


@both_formulations
@pytest.mark.parametrize("where", CUSTOM)
def test_trap_32_custom_autograd_functions_are_reported(where, formulation):
    """``Function.apply`` passes the function mode by: it is found and reported as uncovered all the same."""
    model = CUSTOM[where]
    with Composite(formulation=formulation).register(model) as registration:
        model(inputs(4, 6).requires_grad_() * 1.0)
        report = registration.report()
    assert not report.complete
    assert [(row.target, row.note) for row in report.uncovered] == [("Doubled.apply", "custom autograd function")]


@both_formulations
def test_trap_32_a_rule_around_a_custom_function_covers_it(formulation):
    """Inside a module with a rule of its own a custom function is part of that module; the caller's are not ours."""
    for epsilon in (0.0, 1e-6):
        model = nn.Sequential(Fn(lambda self, x: Doubled.apply(x)), nn.ReLU())
        with Composite({"0": Epsilon(epsilon)}, formulation=formulation, strict=True).register(model) as registration:
            Doubled.apply(model(Doubled.apply(inputs(4, 6).requires_grad_())))
            assert registration.report().complete
