"""What a rule does to calls that are alike gives what asking it each time gives."""

import pytest
import torch
from support import Fn, assert_close
from torch import nn
from under_rules import carrier

from lxt_compose import Composite, Identity, Stop, Uniform, UniformEpsilon
from lxt_compose.rules.base import OpCall


def test_a_stopped_call_gives_a_constant_again():
    x = carrier(3)
    call = OpCall(formulation="gradient", label="here", args=(x,), kwargs={})
    call.take([x])
    z = torch.tanh(x)
    found = Stop().again(call, z).leave([x], z, (x,), {})
    assert not found.requires_grad
    assert torch.equal(found, z)


CALLS = {
    "identity": (lambda x, y: torch.tanh(x), {torch.tanh: Identity()}, lambda x, y: torch.tanh(x) / x),
    "uniform": (torch.mul, {torch.mul: Uniform()}, lambda x, y: y / 2),
    "uniform epsilon": (
        lambda x, y: x @ y.T,
        {torch.matmul: UniformEpsilon(0.0)},
        lambda x, y: y.sum(0).expand(3, 3) / 2,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_third_call_is_as_the_first(name):
    function, rules, wanted = CALLS[name]
    model = Fn(lambda _, x, y: function(x, y))
    with Composite(rules, formulation="gradient").register(model):
        for seed in range(3):
            x, y = carrier(3, 3, seed=seed), carrier(3, 3, seed=seed + 5)
            model(x, y).sum().backward()
            assert_close(x.grad, wanted(x.detach(), y.detach()))


def test_a_layer_has_the_weight_that_it_has_now():
    model, x = nn.Sequential(nn.Linear(3, 2, dtype=torch.float64)), carrier(4, 3)
    with Composite().register(model):
        for change in (lambda weight: None, lambda weight: weight.mul_(2), lambda weight: None):
            with torch.no_grad():
                change(model[0].weight)
            for _ in range(2):
                x.grad = None
                z = model(x)
                z.backward(z.detach())
                assert torch.allclose(x.grad, x * (torch.ones_like(z) @ model[0].weight), atol=1e-4)
            model[0].weight = nn.Parameter(torch.ones(2, 3, dtype=x.dtype), requires_grad=False)
