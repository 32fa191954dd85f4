"""What cannot carry relevance, or cannot be seen: a clear error, or a row in the report that says so."""

import pytest
import torch
from support import (
    FORMULATIONS,
    RULES,
    Fn,
    assert_close,
    attribute,
    both_formulations,
    exact,
    fingerprint,
    input_times_gradient,
    linear,
    mlp,
    x6,
)
from torch import nn

from lxt_compose import Composite, Epsilon, Gamma, RegistrationError, RuleError, Stop, UncoveredError
from lxt_compose.ops import op_of


def test_no_grad_is_plain(model):
    """Under no_grad no rule acts, nothing is counted, nothing is complained about."""
    plain = model(x6())
    with Composite({nn.Linear: Stop()}).register(model) as registration, torch.no_grad():
        assert torch.equal(model(x6()), plain)
        assert torch.equal(model(x6().requires_grad_()), plain)
        assert {row.calls for row in registration.report().rows} == {0}


def test_a_script_module_is_refused(model):
    traced = torch.jit.trace(nn.Linear(6, 3).double(), x6())
    names = {traced: "TopLevelTracedModule|Linear", nn.Sequential(linear(), traced): "'1' in Sequential"}
    for other, name in names.items():
        with pytest.raises(RegistrationError, match=f"({name}).* is a TorchScript module.*use the original"):
            Composite().register(other)


def test_all_relevance_is_stopped(model):
    """backward() works, and x gets zeros, of its own shape and dtype."""
    for formulation in FORMULATIONS:
        for rules in ({"": Stop()}, {nn.Linear: Stop()}, {"2": Stop()}, {torch.add: Stop(), nn.LayerNorm: Stop()}):
            found = attribute(model, x6(), Composite(rules, formulation=formulation))
            assert torch.equal(found, torch.zeros_like(found))
    rounding = nn.Sequential(Fn(lambda self, x: x.floor()))
    assert attribute(rounding, x6(), Composite()).count_nonzero() == 0


def test_a_model_that_differentiates_inside_its_forward(model):
    """Energies and forces: rules would change the values, so it is refused; a rule on the whole module is right."""

    def force(self, x):
        return torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)[0]

    model = Fn(lambda self, x: self.force(x * 1.0), force=Fn(force, energy=linear()))
    before = fingerprint(model)
    with pytest.raises(RegistrationError, match=r"autograd.grad inside the forward pass, in 'force'.*\{'force': Eps"):
        attribute(model, x6(), Composite())
    assert fingerprint(model) == before
    plain = model(x6().requires_grad_())
    with Composite({"force": Epsilon()}).register(model):
        assert torch.equal(model(x6().requires_grad_()), plain)
    found = attribute(model, x6(), exact(rules={"force": Epsilon(1e-12)}.items()), 0)
    assert_close(found, input_times_gradient(model, x6(), 0))


def test_integer_output_and_no_output(model):
    """A model that returns labels, or nothing, is none of our business as long as relevance went in."""
    with Composite({nn.Linear: Gamma()}).register(Fn(lambda self, x: self.m(x).argmax(-1), m=model)) as registration:
        assert registration.model(x6().requires_grad_()).dtype is torch.int64
    with Composite().register(Fn(lambda self, x: None)) as registration:
        assert registration.model(x6().requires_grad_()) is None


def test_lazy_modules_that_are_not_initialized_are_refused():
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU())
    with pytest.raises(
        RegistrationError, match=r"'0' in Sequential has parameters that are not initialized.*run a forw"
    ):
        Composite().register(model)
    model(x6().float())
    Composite({nn.Linear: Gamma()}).register(model).remove()


@torch.jit.script
def scripted(x):
    return x * torch.sigmoid(x)


def without_overrides(x):
    with torch._C.DisableTorchFunction():
        return torch.tanh(x)


OUT_OF_SIGHT = {
    "TorchScript": scripted,
    "vmap": torch.vmap(lambda row: torch.tanh(row) * row),
    "disabled overrides": without_overrides,
    "jacobian": lambda x: torch.func.jacrev(torch.tanh)(x[0]),
}


@both_formulations
@pytest.mark.parametrize("name", OUT_OF_SIGHT)
def test_operations_out_of_sight_are_uncovered(name, formulation):
    """What no function mode sees, or no rule can be used in, is reported; values stay, and the gradient passes."""
    model = Fn(lambda self, x: self.layer(OUT_OF_SIGHT[name](self.layer(x))), layer=linear())
    plain = model(x6().requires_grad_())
    with Composite(formulation=formulation).register(model) as registration:
        for _ in range(3):  # TorchScript takes another way after the first calls
            assert torch.equal(model(x6().requires_grad_()), plain)
        report = registration.report()
    assert not report.complete
    with pytest.raises(UncoveredError):
        attribute(model, x6(), Composite(formulation=formulation, strict=True))
    around = Fn(lambda self, x: self.inner(x), inner=model)
    found = attribute(around, x6(), exact(formulation, [("inner", Epsilon(1e-12))], strict=True), 0)
    assert_close(found, input_times_gradient(around, x6(), 0))


@both_formulations
def test_sparse_tensors(formulation):
    """Constants that are sparse are constants; on sparse carriers rules that need one are uncovered."""
    graph = torch.eye(4, dtype=torch.float64).to_sparse()
    constant = Fn(lambda self, x: self.layer(torch.sparse.mm(graph, x)).relu_() + torch.mm(graph, x), layer=linear())
    rules = [(torch.mm, Epsilon(1e-12)), (torch.sparse.mm, Epsilon(1e-12))]
    composite = exact(formulation, rules, strict=True)
    assert_close(attribute(constant, x6(), composite, 0), input_times_gradient(constant, x6(), 0))
    carrier = Fn(lambda self, x: self.layer((self.layer(x).to_sparse() * 2.0).to_dense()), layer=linear())
    with Composite(formulation=formulation).register(carrier) as registration:
        carrier(x6().requires_grad_()).sum().backward()
        uncovered = [(row.target, row.note) for row in registration.report().uncovered]
    assert uncovered == ([("mul", "on sparse tensors")] if formulation == "relevance" else [])


def test_what_is_seen_is_not_taken_for_out_of_sight(model):
    """Hooks on gradients, views of changed tensors, rules, exceptions that the model catches: nothing is reported."""

    def forward(self, x):
        h = self.model[0](x) * 1.0
        view = h.view(2, 12)
        h.mul_(2.0)
        assert view.grad_fn is not None  # made anew by reading it
        try:
            h @ h
        except RuntimeError:
            h = h + view.view(4, 6)
        return self.model[2](self.model[1](h))

    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
    outer = Fn(forward, model=model)
    for rules in ({}, RULES, {"model.0": Epsilon()}):
        with Composite(rules, strict=True).register(outer) as registration:
            outer(x6().requires_grad_() * 1.0)
            assert registration.report().complete


def test_a_registered_model_within_another_is_refused():
    """Where the inner one is no submodule of the outer one both would act on each operation."""
    inner = mlp()
    outer = Fn(lambda self, x: inner(x * 2.0))
    before = fingerprint(inner), fingerprint(outer)
    with Composite().register(inner), Composite().register(outer):
        with pytest.raises(RegistrationError, match="Sequential is called inside Fn, and both have a composite"):
            outer(x6().requires_grad_())
        inner(outer.function(outer, x6().requires_grad_())[..., :1] * x6().requires_grad_())
    assert (fingerprint(inner), fingerprint(outer)) == before


class Collecting(nn.Module):
    """Hands tensors on by a list that it was given."""

    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, x, kept):
        kept.append(self.layer(x))
        return kept[-1] * 2.0


def test_a_bound_module_that_puts_tensors_into_a_list_it_was_given():
    """Its rule cannot see where they go: refused, rather than losing them. Without a rule of its own all is well."""

    def forward(self, x):
        kept = []
        x = self.second(self.first(x, kept), kept)
        return sum(kept) + x

    model = Fn(forward, first=Collecting(), second=Collecting())
    plain = model(x6())
    with pytest.raises(RuleError, match=r"'first' \(Collecting\) changes a list or dict that it was given"):
        attribute(model, x6(), Composite({Collecting: Epsilon()}))
    with Composite().register(model):
        assert torch.equal(model(x6().requires_grad_()), plain)
    assert_close(attribute(model, x6(), exact(), 0), input_times_gradient(model, x6(), 0))


@both_formulations
def test_the_report_says_why_an_operation_is_uncovered(formulation):
    model = Fn(lambda self, x: torch.linalg.inv(torch.atan2(x, x * x).T @ x))
    with Composite(formulation=formulation).register(model) as registration:
        model(x6().requires_grad_())
        report = registration.report()
    reasons = {row.target: row.note for row in report.uncovered}
    assert reasons == {"atan2": op_of(torch.atan2).reason, "inv": op_of(torch.linalg.inv).reason}
    for text in (report.to_string(width=200), report.to_markdown(), report._repr_html_()):
        assert "uncovered inv: a factorization, an inverse" in text


def test_a_constant_that_takes_the_shape_or_the_dtype_of_a_carrier_is_no_gap():
    constant = torch.ones(6)
    model = Fn(lambda self, x: x * constant.type_as(x) + constant.to(x).expand_as(x))
    with Composite(strict=True).register(model) as registration:
        model(torch.randn(2, 6, dtype=torch.float64, requires_grad=True))
        assert registration.report().complete
