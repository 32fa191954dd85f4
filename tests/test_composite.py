"""Composites: keys and values, their errors, what a report says of them, and relevance against explicit oracles."""

import operator
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import CARRIER_STEPS, PIECEWISE_LINEAR, Program, Undefined
from support import (
    FORMULATIONS,
    ZOO,
    Fn,
    Residual,
    assert_close,
    attribute,
    both_formulations,
    cnn,
    exact,
    input_times_gradient,
    label,
    linear,
    make,
    mlp,
    residual,
    transformer,
    x6,
)
from support import (
    Attention as WrittenAttention,
)
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AlphaBeta,
    Attention,
    Composite,
    Epsilon,
    Family,
    Gamma,
    Identity,
    MatchError,
    Norm,
    Pass,
    Rule,
    RuleError,
    SoftmaxTaylor,
    Status,
    Stop,
    UncoveredError,
    Uniform,
    UniformEpsilon,
    ZBox,
    default_rules,
    where,
)


def bound(rules, model):
    """Path -> (rule, key) of the modules that are bound."""
    with Composite(rules).register(model) as registration:
        return {row.path: (row.rule, row.key) for row in registration.report().rows}


def after_forward(rules, model, x, **options):
    with Composite(rules, **options).register(model) as registration:
        model(x.clone().requires_grad_())
        return registration.report()


# ---- keys that match modules ----------------------------------------------------------------------------------------


class MyLinear(nn.Linear):
    pass


KEYS = {
    "class": (nn.Linear, ["0.fc1", "0.fc2", "1.fc1", "1.fc2", "2"]),
    "subclass": (MyLinear, ["2"]),
    "base class": (nn.Module, ["", "0", "0.act", "0.fc1", "0.fc2", "1", "1.act", "1.fc1", "1.fc2", "2"]),
    "tuple": ((nn.ReLU, MyLinear), ["0.act", "1.act", "2"]),
    "own class": (Residual, ["0", "1"]),
    "name": ("1.fc2", ["1.fc2"]),
    "glob": ("?.fc*", ["0.fc1", "0.fc2", "1.fc1", "1.fc2"]),
    "glob across dots": ("0*", ["0", "0.act", "0.fc1", "0.fc2"]),
    "glob with a set": ("[01].fc[!1]", ["0.fc2", "1.fc2"]),
    "the model itself": ("", [""]),
    "all": ("*", ["", "0", "0.act", "0.fc1", "0.fc2", "1", "1.act", "1.fc1", "1.fc2", "2"]),
    "where": (where(lambda name, module: getattr(module, "out_features", 0) == 8), ["0.fc1", "1.fc1"]),
    "where by name": (where(lambda name, module: name.startswith("1.")), ["1.act", "1.fc1", "1.fc2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_keys_for_modules(name):
    key, expected = KEYS[name]
    model = nn.Sequential(Residual(6), Residual(6), MyLinear(6, 3))
    assert sorted(bound({key: Pass()}, model)) == expected
    assert sorted(bound([(key, Pass)], model)) == expected


def test_the_first_key_in_the_order_written_wins():
    model = nn.Sequential(Residual(6), MyLinear(6, 3))
    one = bound([("0.fc1", Gamma(1.0)), (nn.Linear, Gamma(2.0)), (MyLinear, Gamma(3.0)), ("*.fc?", Gamma(4.0))], model)
    expected = {"0.fc1": Gamma(1.0), "0.fc2": Gamma(2.0), "1": Gamma(2.0)}
    assert {path: rule for path, (rule, _) in one.items()} == {path: str(rule) for path, rule in expected.items()}
    assert {key for _, key in one.values()} == {"'0.fc1'", "Linear"}
    two = bound([(MyLinear, Gamma(3.0)), (nn.Linear, Gamma(2.0))], model)
    assert two["1"][1] == "MyLinear"


def test_a_name_with_special_characters_is_taken_literally_first():
    """A module may have a name that looks like a glob."""
    model = nn.Module()
    model.add_module("a[0]", nn.Linear(2, 2))
    model.add_module("a0", nn.Linear(2, 2))
    model.add_module("b0", nn.Linear(2, 2))
    assert sorted(bound({"a[0]": Epsilon()}, model)) == ["a[0]"]
    assert sorted(bound({"?[0]": Epsilon()}, model)) == ["a0", "b0"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("0.fc3", "no module matches '0.fc3' in Sequential; closest: '0.fc"),
        ("1.*.weight", r"no module matches '1.\*.weight' in Sequential; closest: "),
        ("residual", "no module matches 'residual' in Sequential; closest: "),
    ],
)
def test_names_that_match_nothing_raise_with_the_closest(key, message):
    model = nn.Sequential(Residual(6), MyLinear(6, 3))
    with pytest.raises(MatchError, match=message):
        Composite({nn.Linear: Epsilon(), key: Epsilon()}).register(model)
    with pytest.raises(MatchError, match="no module matches 'fc' in Linear; it has no submodules"):
        Composite({"fc": Epsilon()}).register(nn.Linear(2, 2))


def test_an_error_in_a_predicate_is_the_users():
    with pytest.raises(ZeroDivisionError):
        Composite({where(lambda name, module: 1 / 0): Epsilon()}).register(mlp())


# ---- keys that are functions ----------------------------------------------------------------------------------------


def iadd(a, b):
    a = a.clone()
    a += b
    return a


ADDITIONS = {
    "+": lambda a, b: a + b, "+=": iadd, "reversed": lambda a, b: a.__radd__(b), "torch.add": torch.add,
    "operator.add": operator.add, "operator.iadd": lambda a, b: operator.iadd(a.clone(), b),
    "Tensor.add": lambda a, b: a.add(b), "Tensor.add_": lambda a, b: a.clone().add_(b),
    "alpha": lambda a, b: torch.add(a, b, alpha=1), "aten": torch.ops.aten.add.Tensor,
}  # fmt: skip
ADDITION_KEYS = [torch.add, operator.add, operator.iadd, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__]
ADDITION_KEYS += [torch.Tensor.__iadd__, torch.Tensor.__radd__, torch.ops.aten.add.Tensor]


@pytest.mark.parametrize("key", ADDITION_KEYS, ids=label)
@pytest.mark.parametrize("name", ADDITIONS)
def test_a_function_stands_for_all_names_of_its_operation(name, key):
    """torch.add covers +, +=, operator.add, Tensor.add_ and the rest, whichever of them is the key."""
    model = Fn(lambda self, x: ADDITIONS[name](self.layer(x), x), layer=linear())
    report = after_forward({key: Uniform()}, model, x6())
    (row,) = [row for row in report.rows if row.rule == "Uniform()"]
    assert (row.kind, row.target, row.calls, row.status) == ("op", "add", 1, Status.RULED)
    assert report.unmatched == ()
    z = model(x6()).detach()
    assert_close(attribute(model, x6(), Composite({key: Uniform(), nn.Linear: Pass()})), z)


ALIASES = [
    (torch.matmul, [lambda a, b: a @ b.mT, lambda a, b: torch.matmul(a, b.mT), lambda a, b: a.matmul(b.mT)]),
    (F.softmax, [lambda a, b: a.softmax(-1), lambda a, b: torch.softmax(a, -1), lambda a, b: nn.Softmax(-1)(a)]),
    (torch.mul, [lambda a, b: a * b, lambda a, b: a.multiply(b), lambda a, b: a.clone().mul_(b), operator.mul]),
    (torch.sub, [lambda a, b: a - b, lambda a, b: 1 - a, lambda a, b: a.subtract(b), lambda a, b: a.clone().sub_(b)]),
    (torch.div, [lambda a, b: a / b.exp(), lambda a, b: a.true_divide(2.0), lambda a, b: 1 / (a.exp())]),
    (
        F.relu,
        [lambda a, b: a.relu(), torch.relu_ and (lambda a, b: a.clone().relu_()), lambda a, b: nn.ReLU(True)(a + 0)],
    ),
    (torch.sigmoid, [lambda a, b: a.sigmoid(), lambda a, b: torch.special.expit(a), lambda a, b: nn.Sigmoid()(a)]),
    (torch.cat, [lambda a, b: torch.cat([a, b]), lambda a, b: torch.concat([a, b])]),
    (torch.Tensor.__getitem__, [lambda a, b: a[0], operator.itemgetter(0) and (lambda a, b: operator.getitem(a, 1))]),
    (F.layer_norm, [lambda a, b: nn.LayerNorm(6).double()(a), lambda a, b: torch.layer_norm(a, (6,))]),
    (F.linear, [lambda a, b: linear()(a), lambda a, b: F.linear(a, torch.ones(2, 6).double())]),
    (F.gelu, [lambda a, b: nn.GELU("tanh")(a), lambda a, b: torch._C._nn.gelu(a)]),
]


@pytest.mark.parametrize(("key", "calls"), ALIASES, ids=lambda value: getattr(value, "__name__", ""))
def test_more_functions_and_their_other_names(key, calls):
    """Also of those that have a module, and of movements."""
    for call in calls:
        model = Fn(lambda self, x, call=call: call(x, x.flip(0)))
        with Composite({key: Stop()}).register(model) as registration:
            model(x6().requires_grad_())
            assert registration.report().unmatched == ()
            assert "Stop()" in {row.rule for row in registration.report().rows if row.status is Status.RULED}


def test_function_keys_do_not_serve_modules_and_vice_versa():
    """A class is never a function's key: nn.ReLU binds modules, F.relu calls; the module's rule stands before."""
    model = nn.Sequential(linear(), nn.ReLU(), Fn(lambda self, x: F.relu(x)))
    report = after_forward({nn.ReLU: Pass(), F.relu: Identity()}, model, x6())
    statuses = {(row.kind, row.path): (row.rule, row.status) for row in report.rows if "elu" in row.target.lower()}
    assert statuses == {
        ("module", "1"): ("Pass()", Status.RULED),
        ("op", "1"): ("Identity()", Status.SHADOWED),
        ("op", "2"): ("Identity()", Status.RULED),
    }


def test_the_first_function_key_wins():
    model = Fn(lambda self, x: x + x.flip(0))
    report = after_forward([(operator.add, Epsilon(0.5)), (torch.add, Epsilon(0.25))], model, x6())
    assert [row.rule for row in report.rows if row.target == "add"] == [str(Epsilon(0.5))]
    assert report.unmatched == ("torch.add",)


# ---- values ---------------------------------------------------------------------------------------------------------


def test_a_rule_class_stands_for_its_default_arguments():
    for rule in (Epsilon, Gamma, AlphaBeta, Pass, Stop, UniformEpsilon):
        assert bound({"fc1": rule}, mlp()) == bound({"fc1": rule()}, mlp())
    assert Composite({nn.Linear: Epsilon}).assignments == Composite([(nn.Linear, Epsilon())]).assignments


def test_rules_are_values():
    """Comparable, printable, hashable; a composite can be used for any number of models, at the same time."""
    assert Gamma(0.5) == Gamma(0.5) != Gamma(0.25)
    assert len({Epsilon(), Epsilon(1e-6), Epsilon(1e-3)}) == 2
    assert eval(repr(AlphaBeta(3.0, 2.0))) == AlphaBeta(3.0, 2.0)
    with pytest.raises(AttributeError):
        Epsilon().epsilon = 1.0
    composite, models = Composite({nn.Linear: Gamma()}), [mlp(), mlp()]
    expected = [attribute(model, x6(), composite) for model in models]
    with composite.register(models[0]), composite.register(models[1]):
        for model, relevance in zip(models, expected, strict=True):
            x = x6().requires_grad_()
            y = model(x)
            y.backward(y.detach())
            assert torch.equal(x.grad, relevance)


def halves(a, b, *, alpha=1):
    """A replacement for addition whose gradient is not addition's own."""
    return torch.add(a, b.detach(), alpha=alpha)


@both_formulations
def test_a_plain_function_replaces_a_function(formulation):
    """It is called with the same arguments, for all names of the operation; the report shows its name."""
    for add in (lambda a, b: a + b, lambda a, b: a.add(b), operator.add):
        model = Fn(lambda self, x, add=add: add(self.layer(x), x), layer=linear())
        report = after_forward({torch.add: halves}, model, x6(), formulation=formulation)
        (row,) = [row for row in report.rows if row.target == "add"]
        assert (row.rule.rpartition(".")[2], row.key, row.status) == ("halves", "torch.add", Status.RULED)
        found = attribute(model, x6(), Composite({torch.add: halves, nn.Linear: Stop()}, formulation=formulation))
        assert found.count_nonzero() == 0


def test_a_replacement_for_a_reversed_operator_gets_its_operands_in_order():
    seen = []

    def sub(a, b):
        seen.append((a, b))
        return torch.sub(torch.as_tensor(a), b)

    model = Fn(lambda self, x: 1 - self.layer(x), layer=linear())
    plain = model(x6())
    with Composite({torch.sub: sub}).register(model):
        assert torch.equal(model(x6().requires_grad_()), plain)
    assert seen[0][0] == 1


IN_PLACE = {
    "add_": lambda h, x: h.add_(x),
    "iadd": lambda h, x: h.__iadd__(x),
    "view": lambda h, x: h[1:3].add_(x[:2]),
    "constant": lambda h, x: h.copy_(torch.zeros_like(x).add_(h)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_replacement_for_an_operation_in_place(name):
    """What the function returns is written into the tensor, as the operation itself would have done."""

    def forward(self, x):
        h = self.layer(x)
        IN_PLACE[name](h, x)
        return self.layer(h)

    model = Fn(forward, layer=linear())
    plain = model(x6())
    composite = Composite({torch.add: lambda a, b, alpha=1: torch.add(a, b, alpha=alpha)}, formulation="gradient")
    with composite.register(model):
        assert torch.equal(model(x6().requires_grad_()), plain)
    assert_close(attribute(model, x6(), composite, 0), input_times_gradient(model, x6(), 0))


def test_a_function_of_the_extension_of_somebody():
    """A custom operator is uncovered without a key; a key may be the operator, its packet or an overload."""

    @torch.library.custom_op("lxt_compose_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_autograd(lambda ctx, slot: slot * 2)
    model = Fn(lambda self, x: double(x) + 1.0)
    report = after_forward({}, model, x6())
    assert [row.target for row in report.uncovered] == ["torch.ops.lxt_compose_test.double"]
    packet = torch.ops.lxt_compose_test.double
    for key in (double, packet, packet.default):
        report = after_forward({key: Epsilon(1e-12)}, model, x6(), strict=True)
        assert report.complete
        assert report.unmatched == ()


# ---- errors at construction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [3, None, 1.5, b"fc1", [nn.Linear], (nn.Linear, int), (), int, object(), nn.Linear(1, 1), torch.ones(1)],
    ids=label,
)  # fmt: skip
def test_keys_of_a_wrong_kind(key):
    rules = [(key, Epsilon())]
    with pytest.raises(
        TypeError, match=r"a key must be a module class or a tuple of them, a name or glob, a torch fun"
    ):
        Composite(rules)


@pytest.mark.parametrize(
    "key", [torch.zeros, len, lambda x: x, torch.Tensor.size, torch.argmax, print, torch.equal], ids=label
)
def test_functions_that_cannot_be_keys(key):
    with pytest.raises(
        TypeError, match="is not a torch function that can carry relevance; keys are module classes, names"
    ):
        Composite({key: Epsilon()})


@pytest.mark.parametrize("value", [1e-6, "Epsilon", None, int, nn.ReLU, [Epsilon()], len], ids=label)
def test_values_of_a_wrong_kind(value):
    with pytest.raises(TypeError, match=r"the value for the key Linear must be a rule or a rule class, got"):
        Composite({nn.Linear: value})
    if value is not len:
        with pytest.raises(TypeError, match=r"must be a rule, a rule class, .*or a function"):
            Composite({torch.add: value})


def test_other_arguments_of_a_wrong_kind():
    with pytest.raises(ValueError, match="formulation must be one of relevance, gradient, got 'both'"):
        Composite(formulation="both")
    for rules in ([nn.Linear], [(nn.Linear,)], ["ab"], [(nn.Linear, Epsilon(), 1)]):
        with pytest.raises(TypeError, match=r"a composite takes a mapping or pairs \(key, rule\), got the entry"):
            Composite(rules)
    with pytest.raises(TypeError, match=r"where\(\) takes a function of \(name, module\), got 'fc1'"):
        where("fc1")


@pytest.mark.parametrize(
    ("make_rule", "message"),
    [
        (lambda: Epsilon(-1.0), r"epsilon must be finite and in \[0, inf\), got -1.0"),
        (lambda: Epsilon(float("nan")), "epsilon must be finite"),
        (lambda: Gamma(-0.1), r"gamma must be finite and in \[0, inf\), got -0.1"),
        (lambda: Gamma(float("inf")), "gamma must be finite"),
        (lambda: AlphaBeta(1.0, 1.0), "alpha - beta must be 1"),
        (lambda: AlphaBeta(0.0, -1.0), r"beta must be finite and in \[0, inf\), got -1.0"),
    ],
)
def test_parameters_of_rules_out_of_range(make_rule, message):
    with pytest.raises(ValueError, match=message):
        make_rule()
    with pytest.raises(TypeError, match="must be a number"):
        Gamma("0.25")


def test_rules_for_operations_that_are_not_inside_raise_in_forward():
    for rule, families in (
        (Norm(), "homogeneous, normalization, statistic"),
        (SoftmaxTaylor(), "softmax"),
        (Attention(), "attention"),
    ):
        with pytest.raises(RuleError, match=rf"acts on operations of the families {families}, but none ran in 'fc1'"):
            attribute(mlp(), x6(), Composite({"fc1": rule}))


def test_rules_that_do_not_fit_raise_at_register():
    with pytest.raises(RuleError, match=r"Gamma\(.*\) fits .*'act' \(ReLU\).*; use Identity\(\) for an activation"):
        Composite({"act": Gamma()}).register(mlp())
    with pytest.raises(RuleError, match=r"Uniform\(\) on a module \('fc1', Linear\) needs formulation='relevance'"):
        Composite({"fc1": Uniform()}, formulation="gradient").register(mlp())


# ---- repr -----------------------------------------------------------------------------------------------------------


def test_repr_tells_everything():
    composite = Composite(
        {
            nn.Linear: Gamma(0.5),
            (nn.ReLU, nn.GELU): Identity,
            "fc?": Stop(),
            torch.add: Epsilon(),
            operator.mul: halves,
        },
        formulation="gradient",
        defaults=False,
        strict=True,
    )
    rules = (
        r"Linear: Gamma\(gamma=0.5\), ReLU, GELU: Identity\(\), 'fc\?': Stop\(\), torch.add: Epsilon\(epsilon=1e-06\)"
    )
    rest = r"operator.mul: \S*halves}, formulation='gradient', defaults=False, strict=True\)"
    assert re.fullmatch(rf"Composite\({{{rules}, {rest}", repr(composite))
    assert repr(Composite()) == "Composite({}, formulation='relevance', defaults=True, strict=False)"


def test_repr_of_a_table_tells_what_is_changed_in_the_standard_one():
    table = default_rules("gradient")
    shown = repr(Composite(formulation="gradient", defaults={**table, Family.SOFTMAX: Stop()}))
    assert "defaults=default_rules('gradient') | {Family.SOFTMAX: Stop()}, strict" in shown
    assert "defaults=True" in repr(Composite(formulation="gradient", defaults=dict(table)))
    assert "defaults={Family.LINEAR: Epsilon(epsilon=0.0)}" in repr(Composite(defaults={Family.LINEAR: Epsilon(0.0)}))


def test_a_rule_class_that_needs_arguments():
    with pytest.raises(TypeError, match=r"ZBox as a value of a composite: .*; write ZBox\(low, high\) with values"):
        Composite({nn.Conv2d: ZBox})


# ---- reports --------------------------------------------------------------------------------------------------------


def test_what_matched_nothing_is_listed():
    """A class, a tuple, a predicate and a function that match nothing do not raise: the report lists them."""
    rules = {
        nn.Conv2d: Gamma(),
        (nn.GELU, nn.SiLU): Identity(),
        torch.cumsum: Epsilon(),
        F.softmax: Stop(),
        torch.relu: Pass(),
    }
    rules[where(lambda name, module: False)] = Epsilon()
    with Composite(rules).register(mlp()) as registration:
        before = registration.report()
        assert before.unmatched[:2] == ("Conv2d", "GELU, SiLU")
        assert "torch.cumsum" not in before.unmatched  # nobody can know before a forward pass
        registration.model(x6().requires_grad_())
        unmatched = registration.report().unmatched
    assert set(unmatched) == {"Conv2d", "GELU, SiLU", "torch.cumsum", "F.softmax", "where(<lambda>)"}


def test_strict_names_path_op_and_what_to_do():
    model = nn.Sequential(linear(), Fn(lambda self, x: torch.atan2(x, torch.ones_like(x))))
    with pytest.raises(
        UncoveredError,
        match=r"atan2 in '1' carries relevance, but no rule covers it.*\{'1': Epsilon\(\)\}.*strict=False",
    ):
        attribute(model, x6(), Composite(strict=True))
    for rules in ({torch.atan2: Epsilon()}, {"1": Epsilon()}, {Fn: Pass()}):
        attribute(model, x6(), Composite(rules, strict=True))
    with pytest.raises(UncoveredError, match="linear in '0' carries relevance"):
        attribute(model, x6(), Composite(strict=True, defaults=False))


@both_formulations
def test_without_defaults_only_the_keys_given(formulation):
    """The plain gradient passes what has no key, and the report says so; movements are exact all the same."""
    model = nn.Sequential(linear(), nn.GELU(), nn.Flatten(), linear())
    composite = Composite({nn.Linear: Epsilon(1e-12)}, defaults=False, formulation=formulation)
    with composite.register(model) as registration:
        model(x6().requires_grad_())
        report = registration.report()
    assert [row.target for row in report.uncovered] == ["gelu"]
    assert {row.target for row in report.rows if row.status is Status.EXACT} == {"flatten"}

    x = x6()
    with torch.no_grad():
        h = model[0](x)
        g = F.gelu(h)
        slot = torch.ones_like(x) @ model[3].weight  # R / g of the last layer's input, by its rule
        if formulation == "relevance":
            slot = slot * g
        slot = torch.autograd.functional.vjp(F.gelu, h, slot)[1]  # GELU's own gradient, of whatever is in the slot
        if formulation == "relevance":
            slot = slot / h
        expected = x * (slot @ model[0].weight)
    assert_close(attribute(model, x, composite), expected, 1e-6)


def test_defaults_in_both_formulations_agree():
    """The same relevance, whichever formulation; for the tables' own stabilizers differ, up to these."""
    for name in ZOO:
        model, x = make(name)
        found = [attribute(model, x, Composite(formulation=formulation), 0) for formulation in FORMULATIONS]
        assert_close(found[0], found[1], 2e-3)


# ---- oracles --------------------------------------------------------------------------------------------------------


def reuse(self, x):
    return self.b(F.relu(self.a(F.relu(self.a(x)))) + self.a(x))


def branches(self, x):
    return self.c(torch.cat([F.relu(self.a(x)), self.b(x) - x], -1))


def dense(self, x):
    h = torch.cat([x, F.relu(self.a(x))], -1)
    return self.d(torch.cat([h, F.relu(self.c(h))], -1))


def views(self, x):
    h = self.a(x).view(2, 2, 6).transpose(0, 1).flip(-1).relu().reshape(4, 6) + x
    return self.e(h[:, ::2])


def of(function):
    return lambda: Fn(function, a=linear(), b=linear(), c=linear(12), d=linear(18, 3), e=linear(3))


def pooled():
    layers = nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 2), nn.Flatten(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def one_layer_thrice():
    layer = linear()
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)


NETWORKS = {
    "mlp": (mlp, (4, 6)),
    "cnn": (cnn, (2, 2, 8, 8)),
    "pooling": (pooled, (2, 2, 8)),
    "residuals": (residual, (4, 6)),
    "residuals in place": (lambda: residual(inplace=True), (4, 6)),
    "reuse": (of(reuse), (4, 6)),
    "shared": (one_layer_thrice, (4, 6)),
    "branches": (of(branches), (4, 6)),
    "dense": (of(dense), (4, 6)),
    "views": (of(views), (4, 6)),
}


@both_formulations
@pytest.mark.parametrize("name", NETWORKS)
def test_epsilon_on_relu_networks_is_input_times_gradient(name, formulation):
    """Epsilon(1e-12) on networks of ReLU, with residuals, reuse and branches: elementwise, in float64."""
    build, shape = NETWORKS[name]
    model, x = build(), torch.randn(*shape, dtype=torch.float64)
    expected = input_times_gradient(model, x, 0)
    assert_close(attribute(model, x, exact(formulation), 0), expected)
    assert_close(attribute(model, x, exact(formulation, [(nn.Sequential, Epsilon(1e-12))]), 0), expected)
    assert_close(attribute(model, x, exact(formulation, [("", Epsilon(1e-12))]), 0), expected)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_networks_against_an_explicit_oracle(data):
    """Random graphs of operations: values bit-identical, and relevance that of the rules' equations, written out."""
    steps = data.draw(
        st.lists(st.tuples(st.sampled_from(CARRIER_STEPS), st.integers(0, 20), st.integers(0, 20)), max_size=10)
    )
    program, x = Program(steps), x6()
    plain = program(x)
    for formulation, epsilon, tolerance in (("relevance", 1e-6, 1e-8), ("gradient", 0.0, 1e-6)):
        with Composite(formulation=formulation, strict=True).register(program):
            assert torch.equal(program(x.clone().requires_grad_()), plain)
        try:
            expected = program.relevance(x, epsilon)
        except Undefined:
            continue
        assert_close(attribute(program, x, Composite(formulation=formulation)), expected, tolerance)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECEWISE_LINEAR), st.integers(0, 20), st.integers(0, 20)), max_size=10))
def test_random_relu_networks_are_input_times_gradient(steps):
    program, x = Program(steps), x6()
    for formulation in FORMULATIONS:
        assert_close(attribute(program, x, exact(formulation)), input_times_gradient(program, x), 1e-6)


def test_the_oracle_is_not_the_library():
    """The oracle differs from input x gradient where the rules do: what it is compared with says something."""
    program, x = Program([("mul", 1, 0), ("softmax", 2, 0), ("norm", 3, 0)]), x6()
    gap = (program.relevance(x, 0.0) - input_times_gradient(program, x)).abs().max()
    assert gap > 1e-2


@both_formulations
def test_a_whole_transformer_by_its_parts(formulation):
    """Keys for each part of a transformer give the default table's relevance: they are the same rules."""
    model, x = transformer(), torch.randn(2, 5, 8, dtype=torch.float64)
    epsilon = 1e-6 if formulation == "relevance" else 0.0
    rules = {
        nn.Linear: Epsilon(epsilon), nn.LayerNorm: Norm(), nn.GELU: Identity(), torch.matmul: UniformEpsilon(epsilon),
        torch.softmax: SoftmaxTaylor(), torch.add: Epsilon(epsilon), torch.mean: Epsilon(epsilon),
    }  # fmt: skip
    keyed = Composite({**rules, torch.mul: Identity()}, formulation=formulation)
    with keyed.register(model) as registration:
        model(x.clone().requires_grad_())
        report = registration.report()
    assert {row.status for row in report.rows if row.status is not Status.EXACT} == {Status.RULED}
    assert report.unmatched == ()
    assert_close(attribute(model, x, keyed), attribute(model, x, Composite(formulation=formulation)), 1e-9)


def test_attention_as_one_operation_is_attention_by_its_parts():
    """scaled_dot_product_attention equals the same written with matmul and softmax."""

    class Fused(WrittenAttention):
        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))

    written, fused, x = WrittenAttention().double(), Fused().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    fused.load_state_dict(written.state_dict())
    assert_close(
        attribute(fused, x, Composite(formulation="gradient")), attribute(written, x, Composite(formulation="gradient"))
    )
    stopped = Composite({F.scaled_dot_product_attention: Stop()})
    assert attribute(fused, x, stopped).count_nonzero() == 0
    assert isinstance(Attention(), Rule)
