"""Norms that torch differentiates wrongly for some memory layouts: relevance is that of the formula in all of them."""

import itertools

import pytest
import torch
from support import assert_close, both_formulations
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon
from lxt_compose.ops import op_of
from lxt_compose.rules import default_rules
from lxt_compose.runtime.norm_gradients import with_right_gradient

CHANNELS = 6
SPACES = {1: (3,), 2: (3, 4), 3: (3, 4, 5)}
AS_IT_IS, TOKENS, LAST = "as it is", "tokens", "channels last"


def moved(y, how):
    """The channels last, by one of the ways in which models write it."""
    if how == TOKENS:
        return y.flatten(2).transpose(1, 2)
    return y.movedim(1, -1) if how == LAST else y


def laid_out(x, layout):
    """The same values, with the strides that tokens have when they are made an image, or those of channels last."""
    if layout == TOKENS:
        return x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, x.shape[2:])
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if layout == LAST and x.dim() in formats else x


class Net(nn.Module):
    def __init__(self, dims, how):
        super().__init__()
        self.norm, self.how = getattr(nn, f"BatchNorm{dims}d")(CHANNELS), how
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.head = nn.Linear(CHANNELS, 3, bias=False)
        positions = torch.Size(SPACES[dims])
        self.shares = torch.rand((positions.numel(), 1) if how == TOKENS else (*positions, 1), dtype=torch.float64)

    def forward(self, x):
        y = moved(self.norm(x), self.how)
        if self.how == AS_IT_IS:
            return self.head((y * self.shares.movedim(-1, 0)).flatten(2).sum(2))
        return self.head((y * self.shares).flatten(1, -2).sum(1))


def oracle(net, x, slot):
    """``R_x = x * a * share * W^T R / z`` for the batch norm ``a x + b``, a weighted sum, and the layer W."""
    norm = net.norm
    a = norm.weight / (norm.running_var + norm.eps).sqrt() * (slot @ net.head.weight)
    return x * a.reshape(*a.shape, *[1] * (x.dim() - 2)) * net.shares.reshape(x.shape[2:])


@both_formulations
@pytest.mark.parametrize("keyed", [False, True], ids=["default", "key"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [AS_IT_IS, TOKENS, LAST])
@pytest.mark.parametrize(("dims", "how"), itertools.product(SPACES, [AS_IT_IS, TOKENS, LAST]))
def test_batch_norm_is_an_affine_map_per_channel_in_any_layout(dims, how, layout, batch, keyed, formulation):
    torch.manual_seed(0)
    net = Net(dims, how).double().eval()
    x = laid_out(torch.randn(batch, CHANNELS, *SPACES[dims], dtype=torch.float64), layout)
    plain, given = net(x).detach(), x.clone(memory_format=torch.preserve_format).requires_grad_()
    assert given.stride() == x.stride()
    keys = {nn.modules.batchnorm._BatchNorm: Epsilon(0.0)} if keyed else {}
    keys[nn.Linear] = Epsilon(0.0)
    with Composite(keys, formulation=formulation, defaults=default_rules(formulation, 0.0)).register(net):
        y = net(given)
        slot = torch.randn(y.shape, dtype=torch.float64)
        y.backward(slot * y.detach() if formulation == "relevance" else slot)
    assert torch.equal(y.detach(), plain)
    found = given.grad if formulation == "relevance" else x * given.grad
    assert_close(found, oracle(net, x, slot).detach(), 1e-9)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", [AS_IT_IS, TOKENS, LAST])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "group_norm"])
def test_gradients_inside_a_module_with_a_rule_are_those_of_a_batch_of_two(name, layout, train):
    class Block(nn.Module):
        def forward(self, x):
            y = (
                F.group_norm(x, 2, weight)
                if name == "group_norm"
                else getattr(F, name)(x, mean, var, weight, None, train)
            )
            return (moved(y, TOKENS) * shares).sum(1)

    torch.manual_seed(0)
    mean, var, weight = (torch.rand(CHANNELS, dtype=torch.float64) + 0.5 for _ in range(3))
    shares = torch.rand(12, 1, dtype=torch.float64)
    x = torch.randn(1, CHANNELS, 3, 4, dtype=torch.float64)
    found = []
    for repeats in (1, 2):  # twice the same sample: statistics do not change
        many = laid_out(x.repeat(repeats, 1, 1, 1), layout if repeats == 1 else AS_IT_IS).requires_grad_()
        block = Block()
        with Composite({Block: Epsilon(0.0)}, formulation="gradient").register(block):
            y = block(many)
            y.backward(torch.arange(CHANNELS, dtype=torch.float64).sin().expand(y.shape))
        found.append(many.grad[:1])
    assert_close(found[0], found[1], 1e-9)


def test_what_is_no_such_norm_is_left_alone():
    assert with_right_gradient(F.layer_norm, op_of(F.layer_norm)) is F.layer_norm


def test_a_batch_that_is_expanded_and_several_gradients_at_once():
    torch.manual_seed(0)
    mean, var = torch.zeros(CHANNELS, dtype=torch.float64), torch.rand(CHANNELS, dtype=torch.float64) + 0.5
    x = torch.randn(1, CHANNELS, 3, 4, dtype=torch.float64, requires_grad=True)
    norm = with_right_gradient(F.batch_norm, op_of(F.batch_norm))
    slots = torch.randn(5, 2, 12, CHANNELS, dtype=torch.float64)
    z = moved(norm(x.expand(2, -1, -1, -1), mean, var), TOKENS)
    expected = torch.stack([torch.autograd.grad(z, x, slot, retain_graph=True)[0] for slot in slots])
    a = (var + 1e-5).rsqrt()
    assert_close(expected, (slots.sum(1, keepdim=True) * a).transpose(2, 3).unflatten(3, (3, 4)), 1e-12)
    assert_close(torch.autograd.grad(z, x, slots, is_grads_batched=True)[0], expected, 1e-12)
