"""Other ways to use autograd: twice, with hooks, in other dtypes, with parameters of the caller's."""

import pytest
import torch
from support import (
    RULES,
    ZOO,
    assert_close,
    attribute,
    both_formulations,
    exact,
    fingerprint,
    in_threads,
    label,
    make,
    mlp,
    residual,
    transformer,
    x6,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import Composite, Epsilon, Gamma, Norm, RuleError, SoftmaxTaylor, functional


@both_formulations
@pytest.mark.parametrize("name", ZOO)
def test_backward_twice(name, formulation):
    """retain_graph=True: the second backward gives the same; a backward that is recorded gives it too."""
    model, x = make(name)
    model.requires_grad_(False)
    with Composite({nn.Linear: Epsilon(), nn.LayerNorm: Norm()}, formulation=formulation).register(model):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        found = [torch.autograd.grad(y, leaf, y.detach(), retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(found[0], found[1])
        (recorded,) = torch.autograd.grad(y, leaf, y.detach(), create_graph=True)
        assert_close(recorded.detach(), found[0], 1e-10)


def test_a_rule_on_its_own_that_cannot_be_differentiated_raises():
    """Drop-ins outside of a registration: what their backward saved has no history."""
    x = torch.randn(3, 4, requires_grad=True)
    z = functional.softmax(x, -1)
    with pytest.raises(RuleError, match="create_graph=True: relevance cannot be differentiated here"):
        torch.autograd.grad(z, x, z.detach(), create_graph=True)


@both_formulations
def test_retained_gradients_and_hooks_of_the_users(formulation):
    """retain_grad on a tensor inside gives its relevance; the user's hooks see what the rest of the model sees."""
    model, kept = residual(), {}

    def keep(module, args, output):
        output.retain_grad()
        kept["output"] = output
        return output * 1.0

    def keep_slot(module, inside, outside):
        kept["slot"] = outside

    handles = [model[0].fc1.register_forward_hook(keep), model[1].register_full_backward_hook(keep_slot)]
    x = x6().requires_grad_()
    z = model(x)
    z.backward(torch.ones_like(z))
    expected = kept["output"].detach() * kept["output"].grad
    with exact(formulation, strict=True).register(model):
        z = model(x)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    h = kept["output"]
    assert_close(h.grad if formulation == "relevance" else h.grad * h.detach(), expected)
    assert kept["slot"][0].shape == (4, 6)
    for handle in handles:
        handle.remove()


def test_functional_call_with_parameters_as_leaves():
    """Parameters that the caller passes himself and that require grad are carriers; those that do not are constants."""
    model, x = mlp(), x6()
    constants = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    composite = Composite({nn.Linear: Gamma()})
    expected, before = attribute(model, x, composite), fingerprint(model)
    with composite.register(model):
        leaf = x.clone().requires_grad_()
        z = torch.func.functional_call(model, constants, leaf)
        z.backward(z.detach())
    assert_close(leaf.grad, expected)
    leaves = {name: value.clone().requires_grad_() for name, value in constants.items()}
    with Composite(formulation="gradient").register(model):
        leaf = x.clone().requires_grad_()
        z = torch.func.functional_call(model, leaves, leaf)
        z.backward(torch.ones_like(z))
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves.values())
    assert fingerprint(model) == before


@both_formulations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=label)
@pytest.mark.parametrize("name", ZOO)
def test_dtypes(name, dtype, formulation):
    """In half precision too: values bit-identical, relevance finite, of the input's dtype, and near that of float64."""
    model, x = make(name)
    model.to(dtype)
    x = x.to(dtype)
    plain = model(x)
    composite = Composite({nn.Linear: Epsilon(), nn.LayerNorm: Norm()}, formulation=formulation)
    with composite.register(model):
        assert torch.equal(model(x.clone().requires_grad_()), plain)
    found = attribute(model, x, composite, 0)
    assert found.dtype is dtype
    assert torch.isfinite(found).all()
    if dtype is torch.float32:
        expected = attribute(model.double(), x.double(), composite, 0)
        assert_close(found.double(), expected, 1e-2)


@both_formulations
@pytest.mark.parametrize("name", ZOO)
def test_autocast(name, formulation):
    """Under autocast the values are those of the model under autocast, and relevance has the dtype of x."""
    model, x = make(name)
    model.float()
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
    composite = Composite(RULES, formulation=formulation)
    with composite.register(model) as registration, torch.autocast("cpu", torch.bfloat16):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        assert torch.equal(y, plain)
        assert registration.report().complete
    y.backward(torch.ones_like(y))
    assert leaf.grad.dtype is torch.float32
    assert torch.isfinite(leaf.grad).all()


def test_softmax_and_attention_under_hooks_and_threads():
    """A transformer with everything at once: checkpointed, in bfloat16, in two threads."""
    model, x = transformer().to(torch.bfloat16), torch.randn(2, 5, 8).bfloat16()
    rules = {nn.Linear: Epsilon(), nn.LayerNorm: Norm(), F.softmax: SoftmaxTaylor()}
    composite = Composite(rules, formulation="gradient")
    expected = attribute(model, x, composite)
    with composite.register(model):

        def run():
            leaf = x.clone().requires_grad_()
            y = checkpoint(model, leaf, use_reentrant=False)
            y.backward(torch.ones_like(y))
            assert torch.equal(x * leaf.grad, expected)

        in_threads([run, run])
