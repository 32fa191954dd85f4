"""Products of the elements of one tensor, and reductions whose argument says in which way they reduce."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FORMULATIONS, Fn, assert_close, attribute, both_formulations
from torch import nn

from lxt_compose import (
    Composite,
    Epsilon,
    Family,
    RuleError,
    SignalTakesAll,
    Uniform,
    UniformElements,
    check_conservation,
    default_rules,
)
from lxt_compose import attribute as explain
from lxt_compose.coverage.rows import Status

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce|segment_reduce")
TARGETS = torch.tensor([0, 1, 1, 3, 0, 3, 3])
INDEX = TARGETS[:, None].expand(7, 2)
LENGTHS = torch.tensor([2, 3, 0, 2])
SEGMENTS = torch.repeat_interleave(torch.arange(4), LENGTHS)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(formulation, **options):
    return Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=0.0), strict=True, **options)


def target(x, base):
    """What is reduced into: ones, or the first rows of x, which carry relevance too."""
    return x.new_ones(5, 2) if base == "constant" else x[:5] * 1


def scattered(way, base, include_self, in_place):
    def f(x):
        reduce = "scatter_reduce_" if in_place else "scatter_reduce"
        return getattr(target(x, base), reduce)(0, INDEX, x, way, include_self=include_self)

    return f


def indexed(way, base, include_self, in_place):
    def f(x):
        reduce = "index_reduce_" if in_place else "index_reduce"
        return getattr(target(x, base), reduce)(0, TARGETS, x, way, include_self=include_self)

    return f


def reduced(way, base, include_self):
    """For each element of the output: the rows of x that it is made of, and whether a constant is among them."""
    sets = []
    for k in range(5):
        rows = (k == TARGETS).nonzero().flatten().tolist()
        own = include_self or not rows
        sets.append(([*rows, k] if own and base == "carrier" else rows, own and base == "constant"))
    return sets


def oracle(way, sets, x, r):
    """The relevance of x, element by element, from sets of rows and the relevance of the outputs."""
    found = torch.zeros_like(x)
    for (rows, constant), k in zip(sets, range(len(sets)), strict=True):
        for column in range(x.shape[1]):
            values = [float(x[i, column]) for i in rows]
            everything = values + [1.0] * constant
            if not everything:
                continue
            if way in ("sum", "mean"):
                shares = [value / sum(everything) for value in values]
            elif way == "prod":
                shares = [1 / len(values) for _ in values]
            else:
                best = max(everything) if way in ("amax", "max") else min(everything)
                shares = [float(value == best) / everything.count(best) for value in values]
            for i, share in zip(rows, shares, strict=True):
                found[i, column] += share * r[k, column]
    return found


WAYS = [(scattered, way) for way in ("sum", "mean", "amax", "amin", "prod")]
WAYS += [(indexed, way) for way in ("mean", "amax", "amin", "prod")]


@both_formulations
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("base", ["constant", "carrier"])
@pytest.mark.parametrize(("make", "way"), WAYS)
def test_reductions_into_a_tensor(way, base, include_self, in_place, make, formulation):
    f, x, weight = make(way, base, include_self, in_place), draw(7, 2), draw(5, 2, seed=1)
    expected = oracle(way, reduced(way, base, include_self), x, f(x) * weight)
    assert_close(attribute(Fn(lambda self, x: f(x) * weight), x, exact(formulation)), expected)


@both_formulations
@pytest.mark.parametrize("way", ["sum", "mean", "max", "min", "prod"])
def test_reductions_of_segments(way, formulation):
    def f(x):
        return torch.segment_reduce(x, way, lengths=LENGTHS, initial={"prod": 1, "max": -9, "min": 9}.get(way, 0))

    x, weight = draw(7, 2), draw(4, 2, seed=1)
    sets = [((k == SEGMENTS).nonzero().flatten().tolist(), False) for k in range(4)]
    expected = oracle(way, sets, x, f(x) * weight)
    assert_close(attribute(Fn(lambda self, x: f(x) * weight), x, exact(formulation)), expected)


PRODUCTS = {
    "prod": (lambda x: x.prod(0), lambda k: range(7)),
    "prod, kept": (lambda x: torch.prod(x, dim=0, keepdim=True)[0], lambda k: range(7)),
    "cumprod": (lambda x: x.cumprod(0)[k_of_cumprod], lambda k: range(k_of_cumprod + 1)),
    "cumprod_": (lambda x: (x * 1).cumprod_(0)[k_of_cumprod], lambda k: range(k_of_cumprod + 1)),
}
k_of_cumprod = 4


@both_formulations
@pytest.mark.parametrize("name", PRODUCTS)
def test_elements_share_evenly(name, formulation):
    f, rows = PRODUCTS[name]
    x = draw(7, 2)
    expected = torch.zeros_like(x)
    for i in rows(0):
        expected[i] = f(x) / len(rows(0))
    assert_close(attribute(Fn(lambda self, x: f(x)), x, exact(formulation)), expected)


@both_formulations
def test_all_running_products_add_up(formulation):
    x = draw(4, 6)
    expected = torch.zeros_like(x)
    for i, k in itertools.product(range(6), range(6)):
        if i <= k:
            expected[:, i] += x[:, : k + 1].prod(1) / (k + 1)
    assert_close(attribute(Fn(lambda self, x: x.cumprod(-1)), x, exact(formulation)), expected)


@both_formulations
def test_the_product_of_all_elements_is_that_of_two_factors(formulation):
    a, b = draw(3, 4), draw(3, 4, seed=1)
    x = torch.stack([a, b], 1)
    by_elements = attribute(Fn(lambda self, x: x.prod(1)), x, exact(formulation))
    by_factors = attribute(Fn(lambda self, x: x[:, 0] * x[:, 1]), x, exact(formulation))
    assert_close(by_elements, by_factors)


def test_zeros_divide_nothing():
    """In the gradient formulation the slot of an element is the product of the others: exact where some are 0."""
    x = torch.tensor([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [0.0, 1.0, 2.0]], dtype=torch.float64).requires_grad_()
    for f in (lambda x: x.prod(-1), lambda x: x.cumprod(-1)[:, -1]):
        x.grad = None
        with exact("gradient").register(Fn(lambda self, x, f=f: f(x))) as registration:
            registration.model(x).sum().backward()
        expected = torch.tensor([[0.0, 6.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]).double() / 3
        assert_close(x.grad, expected)
    leaf = x.detach().clone().requires_grad_()
    with exact("relevance").register(Fn(lambda self, x: x.prod(-1))) as registration:
        registration.model(leaf).backward(torch.tensor([3.0, 6.0, -3.0]).double())
    assert_close(leaf.grad, torch.tensor([[1.0], [2.0], [-1.0]]).double().expand(3, 3))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), zeros=st.booleans())
def test_both_formulations_agree(seed, n, zeros):
    x = draw(5, n, seed=seed)
    if zeros:
        x[x.abs() < 0.5] = 0
    index = torch.randint(0, 4, (5,), generator=torch.Generator().manual_seed(seed))
    for f in (
        lambda x: x.prod(1),
        lambda x: x.cumprod(1),
        lambda x: x.new_ones(4, n).scatter_reduce(0, index[:, None].expand_as(x), x, "prod"),
    ):
        found = [attribute(Fn(lambda self, x, f=f: f(x)), x, exact(formulation)) for formulation in FORMULATIONS]
        assert_close(*found)


@both_formulations
@pytest.mark.parametrize("way", ["sum", "mean", "amax", "prod"])
def test_ledgers_close_and_samples_are_told_apart(way, formulation):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x).movedim(1, 0)
            index = torch.tensor([0, 1, 1, 2, 0])[:, None, None].expand_as(h)
            pooled = h.new_ones(3, *h.shape[1:]).scatter_reduce_(0, index, h, way)
            return self.b(pooled.movedim(0, 1)).sum(1)

    torch.manual_seed(0)
    model, x = Pooled().double(), draw(4, 5, 3)
    result = explain(model, x, target=1, composite=exact(formulation), ledger=True)
    assert result.report.complete
    assert result.ledger.unaccounted < 1e-9
    absorbed = sum(result.ledger.absorbed.values())
    assert_close(result.ledger.inputs, result.relevance.sum((1, 2)))
    assert_close(absorbed, result.output - result.relevance.sum((1, 2)), 1e-7)
    for i in range(4):
        alone = explain(model, x[i : i + 1], target=1, composite=exact(formulation))
        assert_close(result.relevance[i : i + 1], alone.relevance)


@both_formulations
def test_what_a_rule_keeps_is_its_own_word(formulation):
    """Elements of constants alone keep their relevance; nothing else does."""

    def f(x):
        return torch.ones(5, 2, dtype=x.dtype).mul(3).scatter_reduce(0, INDEX, x.tanh(), "prod")

    x = draw(7, 2).requires_grad_()
    with (
        exact(formulation).register(Fn(lambda self, x: f(x))) as registration,
        check_conservation(registration) as check,
    ):
        y = registration.model(x)
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    (row,) = [row for row in check.rows if row.name == "scatter_reduce"]
    assert float(row.absorbed["constant"].sum()) == pytest.approx(12.0)  # rows 2 and 4 of two columns


def test_selections_are_exact_and_the_rest_has_a_rule():
    x = draw(7, 2).requires_grad_()
    found = {}
    for way in ("sum", "mean", "amax", "amin", "prod"):
        with Composite().register(
            Fn(lambda self, x, way=way: scattered(way, "carrier", True, False)(x))
        ) as registration:
            registration.model(x)
        (row,) = [row for row in registration.report().rows if row.target == "scatter_reduce"]
        found[way] = row.status, row.rule
    epsilon = str(Epsilon())
    assert found == {
        "sum": (Status.DEFAULT, epsilon),
        "mean": (Status.DEFAULT, epsilon),
        "amax": (Status.EXACT, ""),
        "amin": (Status.EXACT, ""),
        "prod": (Status.DEFAULT, "UniformElements()"),
    }


def test_two_ways_at_one_place_take_two_rules():
    model = Fn(lambda self, x: sum(scattered(way, "constant", True, False)(x) for way in ("sum", "amax", "prod")))
    x = draw(7, 2).requires_grad_()
    with Composite().register(model) as registration:
        registration.model(x)
        registration.model(x)
    rules = {row.rule: row.calls for row in registration.report().rows if row.target == "scatter_reduce"}
    assert rules == {str(Epsilon()): 2, "": 2, "UniformElements()": 2}


def test_the_table_of_defaults_decides_whether_products_have_a_rule():
    x = draw(7, 2).requires_grad_()
    model = Fn(lambda self, x: x.prod(0))
    for table, expected in (({Family.PRODUCT: SignalTakesAll(0.0)}, True), ({Family.LINEAR: Epsilon()}, False)):
        with Composite(defaults=table).register(model) as registration:
            registration.model(x)
        assert registration.report().complete is expected


@both_formulations
def test_rules_for_products_name_each_other(formulation):
    x = draw(7, 2)
    model = Fn(lambda self, x: x.cumprod(0))
    with pytest.raises(RuleError, match=r"cumprod in .* use UniformElements\(\)|knows products of tensors only"):
        attribute(model, x, Composite({torch.cumprod: Uniform()}, formulation=formulation))
    with pytest.raises(RuleError, match=r"knows products of the elements of one tensor.*tanh in .*use Uniform\(\)"):
        attribute(Fn(lambda self, x: x.tanh()), x, Composite({torch.tanh: UniformElements()}, formulation=formulation))
    keyed = attribute(model, x, Composite({torch.cumprod: UniformElements()}, formulation=formulation, defaults=False))
    assert_close(keyed, attribute(model, x, exact(formulation)))


def test_complex_products_are_named():
    x = draw(3, 4).requires_grad_()
    with Composite().register(Fn(lambda self, x: torch.complex(x, x).prod(-1).abs())) as registration:
        registration.model(x)
    assert [row.target for row in registration.report().uncovered] == ["prod"]
