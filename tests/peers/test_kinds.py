"""The calculations by hand behind `kinds.py`: each peer's formula and ours, on the numbers that a kind names."""

import pytest
import torch
from torch import nn

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    Ratio,
    RegistrationError,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    RuleError,
    SoftmaxTaylor,
    functional,
)


def relevance(model, rules, x, r, **options):
    x = x.clone().requires_grad_()
    with Composite(rules, **options).register(model):
        model(x).backward(r)
    return x.grad


def layer(weights, bias):
    made = nn.Linear(len(weights), 1).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor([weights]))
        made.bias.fill_(bias)
    return made


def test_unsigned_stabilizer():
    e = 2.0**-20
    a, b = torch.tensor([1.0], requires_grad=True), torch.tensor([-1 - e], requires_grad=True)
    functional.add2(a, b, epsilon=e).backward(torch.ones(1))
    assert (1 / (a + b + e)).item() == torch.inf
    assert a.grad.item() == pytest.approx(-1 / (2 * e))


def test_argument_order():
    x = torch.randn(3)
    assert torch.softmax(x / False, -1).isnan().all()
    with pytest.raises(TypeError, match="temperature must be a number, got False"):
        functional.softmax(x, -1, torch.float32, False)


def test_gamma_without_bias():
    x, r, gamma, e = torch.ones(1, 2).double(), torch.ones(1, 1).double(), 0.25, 1e-6
    found = relevance(layer([5.0, -4.0], -2.0), {nn.Linear: Gamma(gamma, e, zero_bias=True)}, x, r)
    # The sum without bias is 1: positive contributions weigh 1 + gamma.
    torch.testing.assert_close(found, torch.tensor([[5 * 1.25, -4.0]]).double() / (2.25 + e))
    # The sum with bias is -1: Zennit has the negative one weigh more, and 5 - 5 is nothing.
    zennit = torch.tensor([5.0, -4 * 1.25]).double()
    assert (zennit / (zennit.sum() + e)).tolist() == pytest.approx([5e6, -5e6])


@pytest.mark.parametrize("rule", [ReLUDeconvNet(), ReLUGuidedBackprop()])
def test_relu_rules_elsewhere(rule):
    x = torch.tensor([1.0], requires_grad=True)
    torch.tanh(x).backward(torch.ones(1))
    assert x.grad.item() == pytest.approx(0.42, abs=1e-3)  # deconvnet on tanh: max(1, 0) = 1
    with pytest.raises(RuleError, match="fits ReLU only"):
        rule.register(nn.Tanh(), formulation="gradient")


def test_two_units_at_once():
    one = layer([1.0, 1.0], 0.0)
    x, z = torch.tensor([[1.0, 2.0]]).double(), 3.0
    for unit, wanted in ((6.0, 3.0), (6.0 / z, 1.0)):
        found = relevance(one, {nn.Linear: Flat()}, x, torch.tensor([[unit]]).double())
        torch.testing.assert_close(found, torch.full((1, 2), wanted).double(), rtol=1e-5, atol=0)
    composite = Composite({nn.ReLU: ReLUGuidedBackprop(), nn.Linear: Flat()})
    with pytest.raises(RuleError, match="needs formulation='gradient', not 'relevance'"):
        composite.register(nn.Sequential(one, nn.ReLU()))
    with pytest.raises(RuleError, match="needs formulation='relevance', not 'gradient'"):
        Composite({nn.Linear: Flat(), nn.ReLU: ReLUGuidedBackprop()}, formulation="gradient").register(one)


def test_rounding():
    # A sum of products near 1 is off by half a unit in its last place, 2**-24; at z = 1e-3 that moves 1 / z by 0.06.
    assert abs(1 / 1e-3 - 1 / (1e-3 + 2.0**-24)) == pytest.approx(0.06, abs=1e-3)


def test_inputs_without_grad():
    with Composite({nn.Linear: Pass()}).register(nn.Linear(2, 2)) as registration:
        with pytest.raises(RegistrationError, match="no relevance can flow"):
            registration.model(torch.randn(2))
        registration.model(torch.randn(2, requires_grad=True))


def test_error_texts():
    with pytest.raises(ValueError, match="alpha must be finite and in"):
        AlphaBeta(-1.0, 1.0)


def test_softmax_rule_on_a_layer():
    one = layer([1.0], 0.0)
    x, r = torch.tensor([[3.0]]).double(), torch.tensor([[3.0]]).double()
    assert (x * (r - one(x) * r.sum(-1, keepdim=True))).item() == -18
    with pytest.raises(RuleError, match="acts on operations of the families softmax, but none ran"):
        relevance(one, {nn.Linear: SoftmaxTaylor()}, x, r)


def test_pseudo_identity():
    x = torch.tensor([[0.005]]).double()
    assert (x / (x + 1e-6)).item() == pytest.approx(0.9998, abs=1e-6)
    found = relevance(layer([1.0], 0.0), {nn.Linear: Ratio()}, x, torch.ones(1, 1).double(), formulation="gradient")
    assert found.item() == pytest.approx(1.0, abs=1e-9)


def test_other_activations():
    x = torch.tensor([[0.5, -2.0]]).double()
    composite = Composite()
    with composite.register(nn.Sequential(layer([1.0, 2.0], 0.0), nn.Sigmoid())) as registration:
        registration.model(x.requires_grad_()).sum().backward()
    assert registration.report().complete


def test_sum_of_two_inputs():
    one, two = nn.Linear(3, 4), nn.Linear(4, 1)
    with torch.no_grad():
        one.weight.fill_(1.0)
        one.bias.copy_(torch.tensor([-10.0, 1.0, 1.0, 1.0]))
        two.weight.fill_(1.0)
        two.bias.fill_(-1.0)

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(one, nn.ReLU(), two)

        def forward(self, x, y):
            return self.layers(x + y)

    x, y = (torch.tensor([[1.0, 2.0, 3.0]]).mul(k).requires_grad_() for k in (1.0, 3.0))
    with Composite().register(Adds()) as registration:
        z = registration.model(x, y)
        z.backward(z.detach())
    assert z.item() == 88
    torch.testing.assert_close(x.grad, torch.tensor([[4.0, 8.0, 12.0]]))
    torch.testing.assert_close(y.grad, torch.tensor([[12.0, 24.0, 36.0]]))


def test_sum_with_zero():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    added = nn.Sequential(Add(), nn.Linear(3, 2))
    found = relevance(added, {nn.Linear: Epsilon(1e-9)}, x, added[1](x).detach())
    expected = relevance(added[1], {nn.Linear: Epsilon(1e-9)}, x, added[1](x).detach())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Add(nn.Module):
    def forward(self, x):
        return x + 0


def test_module_twice():
    one = layer([2.0], 0.0)
    twice = nn.Sequential(one, one)
    found = relevance(twice, {nn.Linear: Epsilon(1e-12)}, torch.ones(1, 1).double(), torch.full((1, 1), 4.0).double())
    assert found.item() == pytest.approx(4.0)
