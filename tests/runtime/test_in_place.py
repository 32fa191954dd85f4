"""Operations in place: values that were saved, the caller's relevance, leaves."""

import pytest
import torch
from exact_models import both_formulations, inputs, linear
from support import Fn, Residual, assert_close, attribute, cnn, fingerprint, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, Identity, ZPlus

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
def test_in_place_operations_keep_saved_values(name, bound, formulation):
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
def test_the_callers_relevance_is_not_overwritten(formulation):
    """What is passed to backward() is the caller's, and stays as it is."""
    model = cnn(inplace=True)
    x = inputs(2, 2, 8, 8).requires_grad_()
    with Composite({nn.Conv2d: Gamma()}, formulation=formulation).register(model):
        y = model(x)
        start = torch.ones_like(y)
        y.backward(start)
    assert torch.equal(start, torch.ones_like(y))
    for rules in ({nn.Conv2d: Gamma()}, {}):
        pair = [attribute(cnn_of(flag), inputs(2, 2, 8, 8), Composite(rules)) for flag in (False, True)]
        assert_close(pair[1], pair[0])


SLOTS = [
    {}, {nn.Linear: Epsilon()}, {(nn.Linear, nn.LayerNorm): Epsilon(), torch.softmax: Epsilon()}, {nn.Linear: Gamma()},
    {nn.Linear: AlphaBeta(), torch.mul: Epsilon()}, {nn.Linear: ZPlus()}, {"inner": Epsilon()}, {nn.GELU: Epsilon()},
]  # fmt: skip


@both_formulations
@pytest.mark.parametrize("rules", SLOTS, ids=label)
def test_no_slot_is_overwritten(rules, formulation):
    """A slot that a hook on a tensor has seen is the same when all has flowed; the caller's goes to each operation."""
    steps = [
        nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6), Fn(lambda _, x: x * torch.softmax(x, -1)), Residual(6),
        Fn(lambda _, x: x @ x.mT + x.sum(-1, keepdim=True)), nn.Sigmoid(),
    ]  # fmt: skip
    noted = []

    def note(_, args, output):
        output.register_hook(lambda slot: noted.append((slot, slot.clone())))

    torch.manual_seed(0)
    for count in range(1, len(steps) + 1):
        model = Fn(lambda self, x: self.inner(x), inner=nn.Sequential(*steps[:count]).double())
        with Composite(rules, formulation=formulation).register(model):
            handles = [step.register_forward_hook(note) for step in steps[:count]]
            y = model(inputs(2, 6, 6).requires_grad_())
            start = torch.ones_like(y)
            y.backward(start)
            for handle in handles:
                handle.remove()
        assert torch.equal(start, torch.ones_like(y))
    assert noted
    for slot, before in noted:
        assert torch.equal(slot, before)


def cnn_of(inplace):
    torch.manual_seed(3)
    return cnn(inplace)


@pytest.mark.parametrize("rules", [{}, {"": Epsilon()}, {nn.ReLU: Identity()}], ids=label)
def test_a_leaf_that_is_changed_in_place_is_refused(rules):
    """As in PyTorch itself; the message says what to do."""
    model = nn.Sequential(nn.ReLU(inplace=True))
    before = fingerprint(model)
    with (
        pytest.raises(RuntimeError, match="changes in place a leaf tensor that requires grad; give the model a copy"),
        Composite(rules).register(model),
    ):
        model(inputs(4, 6).requires_grad_())
    assert fingerprint(model) == before
