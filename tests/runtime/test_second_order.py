"""Relevance is differentiated by inputs, slots and parameters: ``create_graph=True``."""

import pytest
import torch
from support import Fn, Transformer, assert_close, both_formulations, make, mlp, x6
from torch import nn
from torch.autograd import gradgradcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    MergeBatchNorm,
    Norm,
    Pass,
    Ratio,
    RegistrationError,
    ResidualGamma,
    Stabilizer,
    TaylorDecomposition,
    Uniform,
    ValueAttention,
    WSquare,
    ZBox,
    ZPlus,
    presets,
)  # fmt: skip

SPLIT = [Epsilon(), Epsilon(0.1, zero_bias=True), Epsilon(Stabilizer(0.1)), Gamma(), Gamma(zero_bias=True), AlphaBeta(),
         ZPlus(), WSquare(), Flat(), ZBox(-9.0, 9.0)]  # fmt: skip
LAYERS = (nn.Linear, nn.Conv2d)


def relevance(model, x, composite, *, create_graph, slot=None):
    """The slot of x for the second output, or from a slot."""
    with composite.register(model):
        y = model(x)
        slot = F.one_hot(torch.tensor(1), y.shape[-1]).to(y).expand(y.shape) if slot is None else slot
        return torch.autograd.grad(y, x, slot, create_graph=create_graph)[0]


def assert_differentiated(composite, model, x):
    """Against differences: by the input, by what relevance starts with, and by every parameter."""
    model, x = model.double().eval(), x.double().requires_grad_()
    weight, parameters = torch.randn_like(x), list(model.parameters())

    def loss(create_graph=False):
        y = model(x)
        slot = torch.linspace(-1, 2, y.numel()).to(y).reshape(y.shape)
        return (weight * torch.autograd.grad(y, x, slot, create_graph=create_graph)[0]).square().sum()

    with composite.register(model):
        assert gradgradcheck(model, x, atol=1e-4, rtol=1e-3, fast_mode=True)
        recorded = loss(create_graph=True)
        slopes = [None] * len(parameters)
        if recorded.requires_grad:  # not under Flat, whose relevance depends on nothing but the layer's shape
            slopes = torch.autograd.grad(recorded, parameters, allow_unused=True)
        assert_close(recorded.detach(), loss(), 1e-8)
        for parameter, slope in zip(parameters, slopes, strict=True):
            direction, values = torch.randn_like(parameter), []
            for step in (1e-5, -2e-5):
                with torch.no_grad():
                    parameter.add_(direction, alpha=step)
                values.append(loss())
            with torch.no_grad():
                parameter.add_(direction, alpha=1e-5)
            expected = float(values[0] - values[1]) / 2e-5
            found = 0.0 if slope is None else float((slope * direction).sum())
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def small(name):
    torch.manual_seed(0)
    if name == "convolution":
        layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
        return nn.Sequential(*layers), torch.randn(1, 2, 4, 4)
    if name == "normed":
        layers = [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)]
        return nn.Sequential(*layers).eval(), torch.randn(1, 2, 3, 3)
    if name == "transformer":
        return Transformer(size=4, blocks=1), torch.randn(1, 3, 4)
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), torch.randn(2, 4)


@pytest.mark.parametrize(("rule", "formulation"), [(rule, name) for rule in SPLIT for name in rule.formulations])
def test_every_rule_for_layers_is_differentiated(rule, formulation):
    composite = Composite({LAYERS: rule}, formulation=formulation)
    assert_differentiated(composite, *small("convolution"))
    assert_differentiated(composite, *small("mlp"))


@both_formulations
def test_batch_norm_is_differentiated(formulation):
    assert_differentiated(Composite({nn.Conv2d: Epsilon(0.1)}, formulation=formulation), *small("normed"))


@both_formulations
@pytest.mark.parametrize(
    "rules",
    [
        {nn.GELU: Identity(), torch.softmax: ValueAttention()},
        {nn.GELU: Identity(zero_bias=True), nn.LayerNorm: Norm()},
        {nn.GELU: Pass(), torch.add: ResidualGamma(0.5)},
        {nn.GELU: Ratio(), nn.LayerNorm: Epsilon(0.1)},
        {nn.Linear: TaylorDecomposition(), torch.mul: Uniform()},
    ],
    ids=["identity and values", "no bias and norm", "pass and residuals", "ratio and epsilon", "taylor and uniform"],
)
def test_every_rule_for_functions_is_differentiated(rules, formulation):
    assert_differentiated(Composite(rules, formulation=formulation), *small("transformer"))


@pytest.mark.parametrize("name", presets.available())
def test_every_preset_is_differentiated(name):
    options = {"low": -9.0, "high": 9.0} if name == "epsilon_gamma_box" else {}
    images = name not in ("attnlrp", "cp_lrp", "relp", "res_lrp", "gamma_vit")
    assert_differentiated(presets.get(name, **options), *small("convolution" if images else "transformer"))


def test_the_gradient_of_a_loss_on_relevance_inside_and_after_the_context():
    model, x = mlp(), x6().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x, create_graph=True)
    expected = torch.autograd.grad(((g * x) ** 2).sum(), list(model.parameters()), allow_unused=True)
    with Composite(formulation="gradient").register(model):
        (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x, create_graph=True)
        inside = torch.autograd.grad(
            ((g * x) ** 2).sum(), list(model.parameters()), allow_unused=True, retain_graph=True
        )
    after = torch.autograd.grad(((g * x) ** 2).sum(), list(model.parameters()), allow_unused=True)
    for found in (inside, after):
        for one, other in zip(found, expected, strict=True):
            assert (one is None or not one.any()) if other is None else torch.allclose(one, other)


def test_a_loss_of_values_and_of_relevance_is_minimized():
    model, x = small("mlp")
    optimizer, losses, composite = torch.optim.Adam(model.parameters(), lr=0.02), [], Composite({nn.Linear: Gamma()})
    for _ in range(20):
        optimizer.zero_grad()
        with composite.register(model) as registration:
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            (r,) = torch.autograd.grad(y[:, 0].sum(), leaf, create_graph=True)
        loss = F.cross_entropy(model(x), torch.tensor([0, 1])) + r[:, 0].square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert len(registration.session.programs) == 1  # which all registrations share


def test_parameters_are_constants_again_when_the_next_forward_pass_begins():
    model, x = mlp(), x6().requires_grad_()
    with Composite({nn.Linear: Epsilon()}).register(model):
        y = model(x)
        torch.autograd.grad(y, x, y.detach(), create_graph=True)
        assert all(p.requires_grad for p in model.parameters())
        y = model(x)
        assert not any(p.requires_grad for p in model.parameters())
        y.backward(y.detach())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_report_counts_no_run_that_the_user_did_not_ask_for():
    model, x = make("transformer")
    x.requires_grad_()
    with Composite().register(model) as registration:
        y = model(x)
        before = str(registration.report())
        torch.autograd.grad(y, x, y.detach(), create_graph=True, retain_graph=True)
        assert str(registration.report()) == before
        torch.autograd.grad(y, x, y.detach())


def test_one_graph_serves_every_step_and_sees_the_weights_as_they_are():
    model, x = mlp(), x6().requires_grad_()
    with Composite({nn.Linear: ZPlus()}).register(model) as registration:
        for _ in range(2):
            y = model(x)
            (found,) = torch.autograd.grad(y, x, y.detach(), create_graph=True)
            y = model(x)
            (expected,) = torch.autograd.grad(y, x, y.detach())
            assert_close(found.detach(), expected, 1e-10)
            with torch.no_grad():
                model.fc1.weight.mul_(-1.5)
        assert len(registration.session.programs) == 1


def test_several_slots_at_a_time_and_several_outputs():
    model = Fn(lambda m, x: (m.a(x), m.b(x).relu()), a=nn.Linear(6, 2), b=nn.Linear(6, 3)).double()
    x = x6().requires_grad_()
    with Composite({nn.Linear: Gamma()}).register(model):
        y, z = model(x)
        (one,) = torch.autograd.grad((y.sum() + 2 * z.sum()), x, create_graph=True, retain_graph=True)
        slots = torch.eye(8, dtype=torch.float64).reshape(8, 4, 2)
        (several,) = torch.autograd.grad(y, x, slots, is_grads_batched=True, create_graph=True, retain_graph=True)
        (other,) = torch.autograd.grad(y.sum() + 2 * z.sum(), x, retain_graph=True)
        assert_close(one.detach(), other, 1e-10)
        assert_close(several.sum(0).detach(), torch.autograd.grad(y.sum(), x)[0], 1e-10)


def refused(match, model, x, composite=None, run=None, act=None):
    """The reason why a backward pass cannot be recorded, when `act` was done after the forward pass."""
    composite = Composite({nn.Linear: Epsilon()}) if composite is None else composite
    with composite.register(model) as registration:
        y = (run or model)(x).sum()
        if act is not None:
            act(registration)
        with pytest.raises(RegistrationError, match=rf"create_graph=True: the relevance of .* cannot be.*{match}"):
            torch.autograd.grad(y, x, create_graph=True)


def test_what_cannot_be_differentiated_is_refused_with_the_reason():
    model, x = mlp(), x6().requires_grad_()
    refused("the composite has been removed", model, x, act=lambda registration: registration.remove())
    refused("an input was changed in place", model, x, act=lambda _: x.detach().add_(1))
    refused("random numbers", nn.Sequential(nn.Linear(6, 3), nn.Dropout()).double(), x)
    normed = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).double()
    refused("changes its buffers", normed, x)
    assert normed[1].num_batches_tracked == 1
    refused("canonizers", normed.eval(), x, Composite(canonizers=[MergeBatchNorm()]))
    decided = Fn(lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x), a=nn.Linear(6, 2)).double()
    refused("cannot be written down as one graph", decided, x)
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    call = lambda x: torch.func.functional_call(model, weights, (x,))  # noqa: E731
    refused(r"a tensor of shape \[.*\] carries relevance that is no argument", model, x, run=call)
    cached = Fn(lambda m, x, cache: m.a(x), a=nn.Linear(6, 2)).double()
    refused("an argument of type object", cached, x, run=lambda x: cached(x, object()))


def test_activation_checkpoints_are_differentiated_too():
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    model = Fn(lambda m, x: m.head(checkpoint(m.block, x, use_reentrant=False)), block=block, head=nn.Linear(6, 2))
    plain = Fn(lambda m, x: m.head(m.block(x)), block=block, head=model.head)
    x = x6().requires_grad_()
    found = [
        torch.autograd.grad(
            relevance(each.double(), x, Composite(), create_graph=True).square().sum(), block[0].weight
        )[0]
        for each in (model, plain)
    ]
    assert torch.allclose(*found)


@both_formulations
def test_functions_that_are_written_out(formulation):
    for function in (lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))), lambda x: F.relu6(x + 3) / 6):
        model = Fn(lambda self, x, f=function: self.b(f(self.a(x))), a=nn.Linear(6, 7), b=nn.Linear(7, 3))
        assert_differentiated(Composite(formulation=formulation), model, x6()[:3])


def test_a_start_that_hangs_on_the_pass_is_refused():
    model, x = mlp(), x6().requires_grad_()
    with Composite({nn.Linear: Epsilon()}).register(model):
        y = model(x)
        with pytest.raises(RegistrationError, match="starts with a function of what the registered model put out"):
            torch.autograd.grad(y, x, 2 * y, create_graph=True)
        torch.autograd.grad(y, x, 2 * y.detach(), create_graph=True)


@pytest.mark.parametrize("function", [F.silu, F.mish])
def test_activations_that_keep_their_gradient(function):
    model = Fn(lambda self, x: self.b(function(self.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 3))
    assert_differentiated(Composite(defaults=False, formulation="gradient"), model, x6()[:2])
