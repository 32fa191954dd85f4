"""Compiled models run eagerly, or are refused."""

import pytest
import torch
from exact_models import inputs
from support import Fn, assert_close, attribute, fingerprint, mlp
from torch import nn

from lxt_compose import Composite, Gamma, RegistrationError


@pytest.mark.parametrize("how", ["wrapped", "method", "part"])
def test_compiled_models_run_eagerly_while_registered(how):
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
def test_compiled_models_are_refused_where_torch_cannot_run_them_eagerly(how, monkeypatch):
    """Versions of torch before 2.6 have no stance."""
    monkeypatch.delattr(torch.compiler, "set_stance")
    model = mlp()
    compiled = torch.compile(model, backend="eager") if how == "wrapped" else model
    if how == "method":
        model.compile(backend="eager")
    with pytest.raises(RegistrationError, match=r"is compiled, .* register on the model before"):
        Composite().register(compiled)


def test_code_compiled_around_a_registered_model_is_refused():
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


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_functions_that_are_compiled_inside_a_model_run_eagerly_under_rules(formulation):
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 6).double()

        @torch.compile(backend=backend)
        def scale(self, x):
            return x.tanh() * 2 + x

        def forward(self, x):
            return self.net(self.scale(self.net(x)))

    model, x, composite = Scaled(), inputs(4, 6), Composite(formulation=formulation)
    plain = Fn(lambda self, x: self.net((y := self.net(x)).tanh() * 2 + y), net=model.net)
    with composite.register(model) as registration:
        model(x.clone().requires_grad_())
        assert registration.report().complete
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.zeros(1, 5, dtype=torch.float64))
    assert_close(attribute(model, x, composite, 1), attribute(plain, x, composite, 1), 1e-6)
    assert not graphs
    model(x)
    assert graphs  # it is compiled again, as it was
