"""What split rules keep and when they let go: parts of weights, saved tensors, work done piece by piece."""

import gc
import threading
import weakref

import pytest
import torch
from support import Fn, assert_close
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, Identity, WSquare, ZBox, ZPlus
from lxt_compose.rules.linear_layers import layer as layers
from lxt_compose.rules.linear_layers.weight_parts import Parts, absolute, positive, whole

RULES = [Epsilon(), Gamma(), AlphaBeta(), ZPlus(), ZBox(-50.0, 50.0), WSquare(), Flat()]


def net(inplace=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(3, 4, 3), nn.ReLU(inplace)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).double().eval()


def image():
    return torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attribute(model, x, rule, r=None, **options):
    x = x.clone().requires_grad_()
    with Composite({(nn.Linear, nn.Conv2d): rule, nn.ReLU: Identity()}, **options).register(model):
        y = model(x)
        y.backward(y.detach() if r is None else r)
    return x.grad


# ---- parts of weights ------------------------------------------------------------------------------------------------


def test_parts_are_made_once_and_let_go_on_removal():
    model, x = net(), image().requires_grad_()
    registration = Composite({(nn.Linear, nn.Conv2d): Gamma()}).register(model)
    parts = registration.session.parts

    def explain():
        y = model(x)
        y.backward(y.detach())
        return parts.get(model[0].weight, absolute, torch.float64), len(parts)

    first, count = explain()
    assert explain() == (first, count)
    assert count >= 3
    gone = weakref.ref(first)
    registration.remove()
    del first
    gc.collect()
    assert gone() is None
    assert len(parts) == 0


def test_backward_after_removal_computes_parts_without_keeping_them():
    model, x = net(), image()
    expected = attribute(model, x, AlphaBeta())
    leaf = x.clone().requires_grad_()
    registration = Composite({(nn.Linear, nn.Conv2d): AlphaBeta(), nn.ReLU: Identity()}).register(model)
    y = model(leaf)
    registration.remove()
    y.backward(y.detach())
    assert torch.equal(leaf.grad, expected)
    assert len(registration.session.parts) == 0


def changed_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(-2)


def replaced(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * -2, requires_grad=False)


def given_other_data(layer):
    layer.weight.data = layer.weight.data * -2


@pytest.mark.parametrize("change", [changed_in_place, replaced, given_other_data])
def test_parts_follow_a_weight_that_changes(change):
    torch.manual_seed(2)
    layer, other = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    other.load_state_dict(layer.state_dict())
    change(other)
    x = torch.randn(4, 3, dtype=torch.float64)

    def explain(module):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(y.detach())
        return leaf.grad

    with Gamma().register(other):
        expected = explain(other)
    with Gamma().register(layer):
        explain(layer)
        change(layer)
        assert torch.equal(explain(layer), expected)


def test_a_weight_changed_before_backward_is_an_error():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    with Gamma().register(layer):
        y = layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        with pytest.raises(RuntimeError, match="was changed in place between the forward and the backward pass"):
            y.sum().backward()


def test_parts_of_passing_weights_go_with_them():
    parts = Parts()
    weight = torch.randn(3, 3)
    first = parts.get(weight, positive, torch.float32)
    assert parts.get(weight, positive, torch.float32) is first
    assert parts.get(weight, whole, torch.float32) is weight
    assert parts.get(weight, positive, torch.float64) is not first
    assert len(parts) == 2
    del weight
    gc.collect()
    assert len(parts) == 0


def test_threads_share_parts():
    model, x = net(), image()
    expected = attribute(model, x, AlphaBeta())
    found = {}

    def explain(number):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        found[number] = torch.autograd.grad(y, leaf, y.detach())[0]

    with Composite({(nn.Linear, nn.Conv2d): AlphaBeta(), nn.ReLU: Identity()}).register(model):
        threads = [threading.Thread(target=explain, args=(number,)) for number in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert all(torch.equal(found[number], expected) for number in range(4))


# ---- saved tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_values_saved_before_an_in_place_activation(rule):
    assert torch.equal(attribute(net(inplace=True), image(), rule), attribute(net(), image(), rule))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_layer_used_twice_is_two_layers_with_one_weight(rule):
    torch.manual_seed(3)
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    twin = nn.Linear(3, 3).double()
    twin.load_state_dict(layer.state_dict())
    twice, two = Fn(lambda self, x: self.layer(self.layer(x)), layer=layer), nn.Sequential(layer, twin)
    found = attribute(twice, x, rule)
    assert torch.equal(found, attribute(two, x, rule))
    assert torch.equal(found, attribute(layer, x, rule, attribute(layer, layer(x).detach(), rule)))  # one by one


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_checkpointed_layers(rule, reentrant):
    model, x = net(), image()
    first, last = model[:4], model[4:]
    block = Fn(lambda self, x: self.last(checkpoint(self.first, x, use_reentrant=reentrant)), first=first, last=last)
    assert_close(attribute(block, x, rule), attribute(net(), x, rule), 1e-12)


def test_backward_twice_with_a_retained_graph():
    model, x = net(), image().requires_grad_()
    with Composite({(nn.Linear, nn.Conv2d): AlphaBeta(), nn.ReLU: Identity()}).register(model):
        y = model(x)
        first = torch.autograd.grad(y, x, y.detach(), retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(y, x, y.detach())[0], first)


@pytest.mark.parametrize(("rule", "formulation"), [(Epsilon(0.0), "gradient"), (Gamma(), "relevance")], ids=str)
def test_relevance_is_linear_in_what_it_starts_with(rule, formulation):
    """So its derivative to that is relevance again."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    start = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    with rule.register(layer, formulation=formulation):
        (g,) = torch.autograd.grad(layer(x), x, start, create_graph=True)
        (back,) = torch.autograd.grad(g.sum(), start)
    assert_close((back * start).sum().detach(), g.sum().detach(), 1e-10)


# ---- piece by piece ------------------------------------------------------------------------------------------------


def in_each_formulation(*rules):
    return [(rule, formulation) for rule in rules for formulation in rule.formulations]


@pytest.mark.parametrize(("rule", "formulation"), in_each_formulation(*RULES), ids=str)
def test_pieces_of_a_batch_give_the_same(monkeypatch, rule, formulation):
    model, x = net(), image()[:, :, :, :].repeat(3, 1, 1, 1)[:11]
    expected = attribute(model, x, rule, formulation=formulation)
    seen = []
    original = layers.in_pieces

    def counted(layer, function, *tensors):
        return original(layer, lambda *piece: seen.append(len(piece[0])) or function(*piece), *tensors)

    monkeypatch.setattr(layers, "_PIECE", 4 * 3 * 16 * 8)  # four samples of the largest tensor in this net
    for module in ("split", "epsilon"):
        monkeypatch.setattr(f"lxt_compose.rules.{module}.in_pieces", counted)
    assert_close(attribute(model, x, rule, formulation=formulation), expected, 1e-12)
    if formulation == "relevance" and rule.__class__ not in (WSquare, Flat):
        assert {4, 3} <= set(seen)


@pytest.mark.parametrize(
    ("rule", "formulation"),
    in_each_formulation(*RULES, Epsilon(zero_bias=True), AlphaBeta(zero_bias=True), Gamma(0.0)),
    ids=str,
)
def test_several_slots_at_a_time(rule, formulation):
    starts = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 4, 3) - 0.5
    for given in (image(), image().abs()):
        x = given.requires_grad_()
        with Composite({(nn.Linear, nn.Conv2d): rule}, formulation=formulation).register(model := net()):
            y = model(x)
            (together,) = torch.autograd.grad(y, x, starts, is_grads_batched=True, retain_graph=True)
            each = [torch.autograd.grad(y, x, start, retain_graph=True)[0] for start in starts]
        assert_close(together, torch.stack(each), 1e-9)


def test_autocast_and_mixed_dtypes():
    """Under autocast inputs and outputs are narrower than weights; the relevance is that of full precision, nearly.

    Epsilon divides by the output in the dtype that it has, so it is compared with a stabilizer of 0.01, bfloat16's.
    """
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = 10 * torch.randn(4, 8)
    for rule in RULES:
        expected = attribute(model, x, Epsilon(0.01) if isinstance(rule, Epsilon) else rule)
        with torch.autocast("cpu", torch.bfloat16):
            found = attribute(model, x, rule)
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_functions_that_make_their_weights_on_the_fly():
    """Weight norm and the like: a new tensor each time, of which nothing is kept."""
    torch.manual_seed(5)
    plain = nn.Linear(3, 2).double()
    model = Fn(lambda self, x: F.linear(x, self.layer.weight * 2, self.layer.bias), layer=plain)
    doubled = nn.Linear(3, 2).double()
    doubled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        doubled.weight.mul_(2)
    x = torch.randn(4, 3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    with Composite({F.linear: Gamma()}).register(model) as registration:
        y = model(leaf)
        y.backward(y.detach())
        del y
        gc.collect()
        assert len(registration.session.parts) == 0
    assert torch.equal(leaf.grad, attribute(doubled, x, Gamma()))
