"""How modules and operations are called: inputs and outputs of all kinds, sharing, nesting, changes in place."""

import pytest
import torch
from support import (
    FORMULATIONS,
    RULES,
    Fn,
    Residual,
    assert_close,
    attribute,
    both_formulations,
    cnn,
    exact,
    fingerprint,
    input_times_gradient,
    linear,
    x6,
)
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, RuleError, Status, Stop, UncoveredError

# ---- inputs, sharing, nesting ----------------------------------------------------------------------------------------


@both_formulations
def test_keyword_inputs_and_constants(formulation):
    """Carriers among positions, keywords and containers; constants, None and numbers stay the very same objects."""
    seen = []

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(), linear()

        def forward(self, pair, *, scale, mask=None, extra=None):
            seen.append((pair[1], scale, mask, extra["other"]))
            return (torch.relu(self.a(pair[0])) + self.b(extra["x"])) * scale * mask

    mask = torch.rand(6).double()
    other = torch.ones(2)

    def forward(self, x):
        return self.block((x, other), scale=2.0, mask=mask, extra={"x": x * 2.0, "other": other})

    model = Fn(forward, block=Block())
    for rules in ([], [("block", Epsilon(1e-12))], [("", Epsilon(1e-12))]):
        found = attribute(model, x6(), exact(formulation, rules), 0)
        assert_close(found, input_times_gradient(model, x6(), 0))
    assert all(pair is other and m is mask and o is other and s == 2.0 for pair, s, m, o in seen)


@both_formulations
def test_several_inputs(formulation):
    """A model of several inputs: each gets its own relevance."""
    layer = nn.Bilinear(6, 6, 3).double()
    model = Fn(lambda self, a, b, c: self.pair(a, b) + self.single(c), pair=layer, single=linear(6, 3))
    a, b, c = (x6(seed=seed).requires_grad_() for seed in (1, 2, 3))
    z = model(a, b, c)
    gradients = torch.autograd.grad(z, (a, b, c), torch.ones_like(z))
    expected = [t.detach() * g for t, g in zip((a, b, c), gradients, strict=True)]
    with exact(formulation).register(model):
        z = model(a, b, c)
        found = torch.autograd.grad(z, (a, b, c), z.detach() if formulation == "relevance" else torch.ones_like(z))
    if formulation == "gradient":
        found = [t.detach() * g for t, g in zip((a, b, c), found, strict=True)]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@both_formulations
def test_nested_bound_modules_the_outermost_wins(formulation):
    """A bound block is one unit: bindings and function keys inside are shadowed, and the report says by what."""
    model = Fn(lambda self, x: self.block(x) + self.block.fc1(x)[..., :6], block=Residual(6).double())
    rules = {"block": Epsilon(1e-12), nn.Linear: Gamma(), F.relu: Stop()}
    with Composite(rules, formulation=formulation).register(model) as registration:
        model.block(x6().requires_grad_())
        model(x6().requires_grad_())
        rows = {(row.path, row.target): row for row in registration.report().rows}
    assert rows["block", "Residual"].status is Status.RULED
    assert (rows["block.fc2", "Linear"].status, rows["block.fc2", "Linear"].note) == (Status.SHADOWED, "inside block")
    assert rows["block.fc1", "Linear"].status is Status.RULED  # it was called from outside of the block too
    assert (rows["block.act", "relu"].status, rows["block.act", "relu"].note) == (Status.SHADOWED, "inside block")
    assert rows["block.act", "relu"].key == "F.relu"

    rules = {"0": Epsilon(1e-12), nn.Linear: Gamma(), F.relu: Stop()}
    found = attribute(nn.Sequential(model.block), x6(), Composite(rules, formulation=formulation))
    assert_close(found, input_times_gradient(model.block, x6()))


def test_a_rule_for_the_operations_inside_shadows_what_is_bound_inside():
    """Norm, Gamma and their like act on operations inside a module: what is bound or keyed inside is shadowed too."""
    model = Fn(lambda self, x: self.block(x), block=nn.Sequential(linear(), nn.Sequential(nn.ReLU(), linear())))
    rules = {nn.Sequential: Gamma(), nn.Linear: Stop(), F.linear: Stop(), F.gelu: Stop()}
    expected = attribute(model, x6(), Composite({nn.Linear: Gamma()}))
    with Composite(rules).register(model) as registration:
        x = x6().requires_grad_()
        y = model(x)
        y.backward(y.detach())
        report = registration.report()
    assert_close(x.grad, expected)
    rows = {(row.path, row.target): row for row in report.rows}
    inside = {row.status for (path, _), row in rows.items() if path in ("block.0", "block.1", "block.1.1")}
    assert inside == {Status.SHADOWED}
    assert rows["block", "Sequential"].status is Status.RULED
    assert rows["block.0", "linear"].note == "inside block"
    assert report.unmatched == ("F.gelu",)


@both_formulations
def test_a_module_with_many_uses(formulation):
    """One layer used thrice, shared by two parents under two names, with inputs that need no grad as well."""
    shared = linear()
    model = Fn(
        lambda self, x: self.left(self.right(x)) + self.left(self.shared(x)) + self.shared(torch.ones_like(x)),
        left=nn.Sequential(shared, nn.ReLU()), right=nn.Sequential(nn.ReLU(), shared), shared=shared,
    )  # fmt: skip
    for rules in ([], [(nn.Linear, Epsilon(1e-12))], [("right", Epsilon(1e-12)), ("shared", Epsilon(1e-12))]):
        found = attribute(model, x6(), exact(formulation, rules), 0)
        assert_close(found, input_times_gradient(model, x6(), 0))


@both_formulations
def test_packed_sequences(formulation):
    """A tuple with a constructor of its own, in and out of a bound module."""

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [4, 2], batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.memory(packed)[0], batch_first=True)[0]

    model, x = Fn(forward, memory=nn.LSTM(6, 5, batch_first=True).double()), x6(8).view(2, 4, 6)
    found = attribute(model, x, exact(formulation, [("memory", Epsilon(1e-12))], strict=True), 0)
    assert_close(found, input_times_gradient(model, x, 0))


@both_formulations
def test_outputs_that_are_repeated_or_are_inputs(formulation):
    """The same tensor twice stays the same tensor; inputs, detached and integer tensors may be among the outputs."""

    def block(self, x):
        h = self.layer(x)
        return h, h, x, h.detach(), h.argmax()

    def forward(self, x):
        first, second, given, detached, label = self.block(x)
        assert first is second
        assert not detached.requires_grad
        assert label.dtype is torch.int64
        return first + second + given + detached

    model = Fn(forward, block=Fn(block, layer=linear()))
    found = attribute(model, x6(), exact(formulation, [("block", Epsilon(1e-12))]), 0)
    assert_close(found, input_times_gradient(model, x6(), 0))


class Opaque:
    def __init__(self, tensor):
        self.tensor = tensor


def test_a_bound_module_whose_output_hides_its_tensors():
    """An object that is no container of tensors: a clear error, not a wrong result."""
    model = Fn(lambda self, x: self.block(x).tensor, block=Fn(lambda self, x: Opaque(x.tanh())))
    before = fingerprint(model)
    with (
        pytest.raises(RuleError, match=r"finds no tensor in the output of 'block' \(Fn\), which is of type Opaque"),
        Composite({"block": Epsilon()}).register(model),
    ):
        model(x6().requires_grad_())
    assert fingerprint(model) == before
    attribute(model, x6(), Composite(strict=True))  # without a rule of its own it is no problem at all


def test_a_bound_module_whose_input_hides_its_tensors():
    """Relevance that enters by other ways than the arguments is reported as uncovered."""
    model = Fn(lambda self, x: self.block(Opaque(x)), block=Fn(lambda self, o: o.tensor.tanh()))
    with Composite({"block": Epsilon()}).register(model) as registration:
        model(x6().requires_grad_())
        assert [(row.path, row.target) for row in registration.report().uncovered] == [("block", "Fn")]
    with pytest.raises(UncoveredError, match="Fn in 'block' carries relevance"):
        attribute(model, x6(), Composite({"block": Epsilon()}, strict=True))


# ---- in place --------------------------------------------------------------------------------------------------------


def statement(change):
    """A function that changes h in place and does not use what the change returns."""

    def function(self, x):
        h = self.first(x)
        keep = h * 1.0
        change(self, h, x)
        return self.second(h) + self.second(keep)

    return function


CHANGES = {
    "iadd of a slice": lambda self, h, x: h[:, 1:3].__iadd__(x[:, :2]),
    "setitem": lambda self, h, x: h.__setitem__((slice(None), 0), x[:, 5]),
    "setitem of a scaled self": lambda self, h, x: h.__setitem__(0, h[1] * 2.0),
    "transposed": lambda self, h, x: h.t().mul_(0.5),
    "row": lambda self, h, x: h[0].relu_(),
    "diagonal": lambda self, h, x: h.diagonal().add_(x[:, 0]),
    "index_put": lambda self, h, x: h.__setitem__(torch.tensor([0, 2]), x[:2]),
    "masked": lambda self, h, x: h.__setitem__(h < 0, 0.0),
    "zero and refill": lambda self, h, x: h.zero_().add_(x),
    "self": lambda self, h, x: h.add_(h),
    "bound block": lambda self, h, x: self.block(h),
    "bound block on a view": lambda self, h, x: self.block(h[1:3]),
    "bound block, twice": lambda self, h, x: self.block(self.block(h)),
    "bound block, given it twice": lambda self, h, x: self.pair(h, h),
    "module": lambda self, h, x: self.relu(h),
    "module on a view": lambda self, h, x: self.relu(h.view(2, 2, 6)),
    "into a constant": lambda self, h, x: h.copy_(torch.zeros_like(h).add_(h, alpha=2.0)),
}


@both_formulations
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name, formulation):
    """In-place operations in all positions, on tensors, on views of them, by modules with and without rules."""
    parts = {
        "first": linear(),
        "second": linear(),
        "relu": nn.ReLU(inplace=True),
        "block": nn.Sequential(nn.ReLU(inplace=True), linear()),
        "pair": Fn(lambda self, a, b: a.mul_(-2.0).add_(b)),
    }
    model = Fn(statement(CHANGES[name]), **parts)
    expected = input_times_gradient(model, x6(), 0)
    blocks = [("block", Epsilon(1e-12)), ("pair", Epsilon(1e-12))]
    for rules in ([], blocks, [*blocks, (nn.ReLU, Epsilon(1e-12))]):
        assert_close(attribute(model, x6(), exact(formulation, rules), 0), expected)
    plain = model(x6())
    with exact(formulation, blocks).register(model):
        assert torch.equal(model(x6().requires_grad_()), plain)


CONSTANTS = {
    "add_": lambda c, h: c.add_(h),
    "sub_": lambda c, h: c.sub_(h, alpha=0.5),
    "mul_": lambda c, h: c.add_(1.0).mul_(h),
    "index_add_": lambda c, h: c.index_add_(0, torch.tensor([0, 1, 1, 3]), h),
    "scatter_add_": lambda c, h: c.scatter_add_(0, torch.zeros(4, 6, dtype=torch.int64), h),
    "slice": lambda c, h: c[1:3].add_(h[1:3]),
    "slice of a slice": lambda c, h: c[1:][:, 2:4].add_(h[1:, 2:4]),
    "twice": lambda c, h: c.add_(h).add_(h),
    "setitem": lambda c, h: c.__setitem__(1, h[1]),
    "copy_": lambda c, h: c.copy_(h),
    "addcmul_": lambda c, h: c.addcmul_(h, torch.full_like(h, 0.5)),
    "baddbmm_": lambda c, h: c[None].baddbmm_(h[None, :, :4], torch.ones(1, 4, 6, dtype=h.dtype)),
    "lerp_": lambda c, h: c.lerp_(h, 0.5),
    "masked_scatter_": lambda c, h: c.masked_scatter_(torch.ones_like(c, dtype=torch.bool), h),
}


@both_formulations
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_that_relevance_is_written_into(name, formulation):
    """A buffer of zeros that results are gathered in, by statements: it becomes a carrier, with a rule."""

    def gather(self, x):
        c = torch.zeros(4, 6, dtype=x.dtype)
        CONSTANTS[name](c, self.first(x))
        return self.second(c) + x

    model = Fn(gather, first=linear(), second=linear())
    functions = (torch.Tensor.index_add_, torch.Tensor.scatter_add_, torch.Tensor.addcmul_, torch.baddbmm, torch.lerp)
    rules = [(function, Epsilon(1e-12)) for function in functions]
    assert_close(attribute(model, x6(), exact(formulation, rules), 0), input_times_gradient(model, x6(), 0))


def test_the_output_of_a_bound_module_can_be_changed_in_place_and_reused(model):
    """As without rules: ``F.relu_(layer(x))`` after a layer whose values a rule keeps for its backward."""
    for formulation in FORMULATIONS:
        for rule in (Epsilon(1e-12), Gamma(), AlphaBeta()):
            composite = Composite({nn.Linear: rule, torch.add: Epsilon(1e-12)}, formulation=formulation)
            one = Fn(lambda self, x: self.second(F.relu_(self.first(x))), first=linear(), second=linear())
            two = Fn(lambda self, x: self.second(F.relu(self.first(x))), first=one.first, second=one.second)
            assert_close(attribute(one, x6(), composite), attribute(two, x6(), composite), 1e-12)


def test_parts_called_one_by_one():
    """Modules of a registered model that the caller calls himself: rules act; the report says what it cannot see."""
    model = cnn(inplace=True)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    expected = attribute(model, x, Composite(RULES))
    with Composite(RULES).register(model) as registration:
        leaf = h = x.clone().requires_grad_()
        for layer in model:
            h = layer(h)
        h.backward(h.detach())
        assert_close(leaf.grad, expected, 1e-12)
        (note,) = registration.report().notes
    assert note.startswith("called on their own, so operations between them were not seen: {0..")
