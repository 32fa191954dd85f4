"""A registration leaves nothing behind: modules, flags, copies, gradients of parameters, other models."""

import copy

import pytest
import torch
from exact_models import both_formulations, inputs, linear
from support import Fn, Same, assert_close, attribute, fingerprint, input_times_gradient, mlp, transformer
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Gamma, Identity, Norm, RegistrationError, Stop


def test_remove_restores_modules_and_flags():
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


def test_registering_the_same_composite_twice_raises():
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


def test_a_second_rule_and_a_second_remove_do_no_harm():
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


def test_a_deep_copy_of_a_registered_model_runs_on_its_own_weights():
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


def test_the_rule_stays_for_the_second_call_and_goes_after_an_exception():
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
    with Composite({nn.Linear: Gamma()}).register(broken):
        with pytest.raises(RuntimeError, match="invalid for input"):
            broken(inputs(4, 6).requires_grad_())
        assert fingerprint(broken)["modes"] == 0  # nor while the composite stays


@both_formulations
def test_parameters_never_see_relevance(formulation):
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


def test_other_models_of_the_same_class_are_untouched():
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
