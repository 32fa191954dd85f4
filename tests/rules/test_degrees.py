"""Products share by degree: how the factors are put in brackets does not matter."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Fn, both_formulations
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Uniform, UniformEpsilon, default_rules, presets

N, T, D = 2, 4, 3


def factors(count, *shape):
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5 for _ in range(count)]


def composite(formulation, rules=(), **options):
    """Without stabilizers, so that the formulations agree to the last digits."""
    return Composite(rules, formulation=formulation, defaults=default_rules(formulation, epsilon=0.0), **options)


def relevance(function, values, how, **parts):
    """The relevance of each of the values for the sum of the outputs; what has none gets zeros."""
    values = [x.clone().requires_grad_() for x in values]
    model = Fn(lambda m, *values: function(*values), **parts).double()
    plain = function(*values)
    with how.register(model) as registration:
        z = model(*values)
        assert torch.equal(z, plain)
        start = z.detach() if how.formulation == "relevance" else torch.ones_like(z)
        found = torch.autograd.grad(z, values, start, allow_unused=True)
    assert registration.report().complete
    found = [torch.zeros_like(x) if got is None else got for x, got in zip(values, found, strict=True)]
    return [got if how.formulation == "relevance" else x.detach() * got for x, got in zip(values, found, strict=True)]


def assert_same(first, second, tolerance=1e-12):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


BRACKETS = {
    "(ab)c": lambda a, b, c, d: (a * b) * c,
    "a(bc)": lambda a, b, c, d: a * (b * c),
    "b(ca)": lambda a, b, c, d: b * (c * a),
    "in place": lambda a, b, c, d: a.clone().mul_(b).mul_(c),
    "moved": lambda a, b, c, d: a * (b * c).t().reshape(3, 2).t().contiguous(),
    "scaled": lambda a, b, c, d: 2 * a * (-(b * c) / 4) * -2,
    "masked": lambda a, b, c, d: a * ((b * c) * torch.ones(3, dtype=b.dtype)),
    "joined": lambda a, b, c, d: a * torch.cat([b * c, b * c])[:2],
    "einsum": lambda a, b, c, d: torch.einsum("ij,ij,ij->ij", a, b, c),
    "halves": lambda a, b, c, d: a * (0.5 * b * c + b * c / 2),
    "of all": lambda a, b, c, d: torch.stack([a, b, c]).prod(0),
}


@pytest.mark.parametrize("name", BRACKETS)
@both_formulations
def test_each_of_three_factors_gets_a_third(name, formulation):
    values = factors(4, 2, 3)
    whole = values[0] * values[1] * values[2]
    assert_same(relevance(BRACKETS[name], values, composite(formulation)), [whole / 3] * 3 + [0 * whole])


def trees(places):
    """All ways to put factors in brackets."""
    if len(places) == 1:
        yield places[0]
    for cut in range(1, len(places)):
        yield from itertools.product(trees(places[:cut]), trees(places[cut:]))


def product_of(tree, values):
    return values[tree] if isinstance(tree, int) else product_of(tree[0], values) * product_of(tree[1], values)


@given(st.permutations(range(5)), st.integers(0, 13), st.sampled_from(["gradient", "relevance"]))
@settings(max_examples=20, deadline=None)
def test_a_product_of_n_gives_each_its_nth_part_however_it_is_bracketed(order, which, formulation):
    tree = list(trees(tuple(order)))[which]
    values = factors(5, 2, 3)
    found = relevance(lambda *values: product_of(tree, values), values, composite(formulation))
    assert_same(found, [torch.stack(values).prod(0) / 5] * 5)


CHAINS = {
    "(QK)V": lambda q, k, v: (q @ k.mT) @ v,
    "Q(KV)": lambda q, k, v: q @ (k.mT @ v),
    "einsum": lambda q, k, v: torch.einsum("nik,njk,njd->nid", q, k, v),
    "einsum, twice": lambda q, k, v: torch.einsum("nik,nkd->nid", q, torch.einsum("njk,njd->nkd", k, v)),
    "by hand": lambda q, k, v: (q[:, :, None, :, None] * (k[..., None] * v[:, :, None])[:, None]).sum((2, 3)),
    "bmm": lambda q, k, v: torch.bmm(q, torch.bmm(k.transpose(1, 2), v)),
    "with ones": lambda q, k, v: (q @ k.mT) @ torch.eye(T, dtype=q.dtype) @ v,
    "recurrent": lambda q, k, v: q @ sum(k[:, i, :, None] * v[:, i, None, :] for i in range(T)),
}


@pytest.mark.parametrize("name", CHAINS)
@both_formulations
def test_linear_attention_is_one_product_of_queries_keys_and_values(name, formulation):
    values = factors(3, N, T, D)
    found = relevance(CHAINS[name], values, composite(formulation))
    q, k, v = values
    each = torch.einsum("nik,njk,njd->nijkd", q, k, v) / 3  # slow: all terms of the sum
    assert_same(found, [each.sum((2, 4)), each.sum((1, 4)), each.sum((1, 3))])


def causal(q, k, v):
    mask = torch.ones(T, T, dtype=q.dtype).tril()
    return ((q @ k.mT) * mask) @ v


def running(q, k, v):
    state = torch.zeros(N, D, D, dtype=q.dtype)
    rows = []
    for i in range(T):
        state = state + k[:, i, :, None] * v[:, i, None, :]
        rows.append((q[:, i, None] @ state)[:, 0])
    return torch.stack(rows, 1)


def cumulated(q, k, v):
    return (q[:, :, None] @ (k[..., None] * v[:, :, None]).cumsum(1))[:, :, 0]


@both_formulations
def test_causal_linear_attention_as_a_product_a_recurrence_and_a_running_sum(formulation):
    values = factors(3, N, T, D)
    found = [relevance(f, values, composite(formulation)) for f in (causal, running, cumulated)]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    torch.testing.assert_close(sum(part.sum() for part in found[0]), causal(*values).sum())


SAME = {
    "a square": (lambda a, b: a**2 * b, lambda a, b: a * a * b),
    "a cube": (lambda a, b: a.pow(3) * b, lambda a, b: a * (b * a.square())),
    "a root": (lambda a, b: (a * a).sqrt() * b, lambda a, b: a.abs() * b),
    "a mean": (lambda a, b: (a * b).mean(0, keepdim=True) * a, lambda a, b: (a * b).sum(0, True) * a / 2),
    "weights of 1": (lambda a, b: (a * b).sum(1, True) * b, lambda a, b: (a * b) @ torch.ones(3, 1).double() * b),
    "relu": (lambda a, b: F.relu(a * b) * b, lambda a, b: (a * b).clamp(min=0) * b),
    "silu": (lambda a, b: F.silu(a * b) * b, lambda a, b: (a * b) * torch.sigmoid(a * b) * b),
    "norm": (lambda a, b: F.rms_norm(a * b, (3,)) * b, lambda a, b: a * b * (a * b).square().mean(1, True).rsqrt() * b),
    "length": (lambda a, b: (a * b).norm(dim=1, keepdim=True) * b, lambda a, b: ((a * b) ** 2).sum(1, True).sqrt() * b),
    "length of unlike": (lambda a, b: torch.hypot(a * b, a) * b, lambda a, b: ((a * b) ** 2 + a**2).sqrt() * b),
    "modulus of unlike": (lambda a, b: torch.complex(a * b, a).abs() * b, lambda a, b: torch.hypot(a * b, a) * b),
    "cosine": (
        lambda a, b: F.cosine_similarity(a * b, a, 1)[:, None] * b,
        lambda a, b: (F.normalize(a * b, dim=1) * F.normalize(a, dim=1)).sum(1, True) * b,
    ),
    "largest": (lambda a, b: (a * b).amax(1, True) * b, lambda a, b: (a * b).sort(1).values[:, -1:] * b),
    "sums": (lambda a, b: (a * b + a * b) * b, lambda a, b: torch.stack([a * b, a * b]).sum(0) * b),
    "sums of unlike": (lambda a, b: (a + a * b) * b, lambda a, b: torch.cat([a[None], (a * b)[None]]).sum(0) * b),
    "constants": (lambda a, b: (a * b + 0) * b, lambda a, b: (a * b) * b),
}


@pytest.mark.parametrize("name", SAME)
@both_formulations
def test_equal_functions_get_equal_relevance(name, formulation):
    values = factors(2, 2, 3)
    found = [relevance(f, values, composite(formulation)) for f in SAME[name]]
    assert_same(*found, 1e-6 if name in ("norm", "length") else 1e-10)


@both_formulations
def test_a_sum_has_the_least_degree_of_its_terms(formulation):
    """``(a b c + a b) c`` has two factors at least in each term: a third for the last factor, two for the sum."""
    a, b, c = values = factors(3, 2, 3)
    found = relevance(lambda a, b, c: (a * b * c + a * b) * c, values, composite(formulation))
    three, two = a * b * c * c * 2 / 3, a * b * c * 2 / 3  # what each term of the sum gets
    assert_same(found, [three / 3 + two / 2, three / 3 + two / 2, three / 3 + (three + two) / 2])


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp"])
@both_formulations
def test_the_modulus_of_what_activations_make_is_a_length_and_no_gate(preset, formulation):
    """``|silu(a) + i silu(b)| c``: half for c, and for the parts of z as ``x^2 / z^2``."""
    a, b, c = values = factors(3, 2, 3)
    z = torch.hypot(F.silu(a), F.silu(b))
    expected = [F.silu(a) ** 2 / z * c / 2, F.silu(b) ** 2 / z * c / 2, z * c / 2]
    for length in (lambda a, b: torch.complex(a, b).abs(), torch.hypot, lambda a, b: (a**2 + b**2).sqrt()):
        how = getattr(presets, preset)(formulation=formulation)
        found = relevance(lambda a, b, c, f=length: f(F.silu(a), F.silu(b)) * c, values, how)
        assert_same(found, expected, 1e-5)  # stabilizers of the relevance formulation


class Squared(nn.Module):
    def forward(self, x):
        return x.relu() * x.relu()


class Mish(nn.Module):
    def forward(self, x):
        return x * torch.tanh(F.softplus(x))


@pytest.mark.parametrize(("unit", "same"), [(Squared(), lambda x: F.relu(x) ** 2), (Mish(), F.mish)], ids=["x^2", "x"])
def test_an_activation_that_is_a_module_counts_as_the_function_does(unit, same):
    values = factors(2, 2, 3)
    found = [relevance(lambda a, b, f=f: f(a) * b, values, composite("gradient"), unit=unit) for f in (unit, same)]
    assert_same(*found, 1e-9)


FRESH = {
    "a layer": nn.Linear(3, 3, bias=False),
    "a layer with a bias": nn.Linear(3, 3),
    "a norm with weights": nn.LayerNorm(3),
    "a softmax": nn.Softmax(-1),
}


@pytest.mark.parametrize("name", FRESH)
@pytest.mark.parametrize("trained", [True, False])
def test_degrees_start_anew_behind_layers_norms_and_softmax(name, trained):
    """The last factor gets half, whether or not the parameters are trained."""
    layer = FRESH[name].double().requires_grad_(trained)
    found = relevance(lambda a, b, c: layer(a * b) * c, factors(3, 2, 3), composite("gradient"), layer=layer)
    torch.testing.assert_close(found[2], (layer(factors(3, 2, 3)[0] * factors(3, 2, 3)[1]) * factors(3, 2, 3)[2]) / 2)


@pytest.mark.parametrize("fused", [True, False])
@both_formulations
def test_attention_weights_count_as_one_factor(fused, formulation):
    def attention(q, k, v, g):
        if fused:
            return F.scaled_dot_product_attention(q, k * g, v * g)
        return F.softmax(q @ (k * g).mT / D**0.5, -1) @ (v * g)

    values = factors(4, N, T, D)
    found = relevance(attention, values, composite(formulation))
    expected = values[2] * torch.einsum(
        "nij,nid->njd", F.softmax(values[0] @ (values[1] * values[3]).mT / D**0.5, -1), torch.ones(N, T, D).double()
    )
    torch.testing.assert_close(found[2], expected * values[3] / 3)  # the weights, v and g: a third each
    assert_same(found, relevance(attention, values, composite("gradient")), 1e-9)


def test_fused_attention_is_that_by_hand():
    values = factors(3, N, T, D)
    fused = relevance(lambda q, k, v: F.scaled_dot_product_attention(q * q, k, v * v), values, composite("gradient"))
    by_hand = relevance(lambda q, k, v: F.softmax((q * q) @ k.mT / D**0.5, -1) @ (v * v), values, composite("gradient"))
    assert_same(fused, by_hand, 1e-9)


@pytest.mark.parametrize("preset", ["attnlrp", "relp", "res_lrp", "cp_lrp"])
def test_gates_take_no_part_however_they_are_bracketed(preset):
    """``sigmoid(a) b c``: the gate gets none, b and c half each."""
    values = factors(3, 2, 3)
    half = torch.sigmoid(values[0]) * values[1] * values[2] / 2
    for function in (
        lambda a, b, c: torch.sigmoid(a) * b * c,
        lambda a, b, c: torch.sigmoid(a) * (b * c),
        lambda a, b, c: b * (torch.sigmoid(a) * c),
    ):
        assert_same(relevance(function, values, getattr(presets, preset)()), [0 * half, half, half])


def test_keys_and_drop_ins_know_no_degrees():
    from lxt_compose.lxt import functional as R

    values = factors(3, 2, 3)
    whole = values[0] * values[1] * values[2]
    literal = [whole / 4, whole / 4, whole / 2]
    for rule in (Uniform(), UniformEpsilon(0.0)):
        assert_same(relevance(lambda a, b, c: a * b * c, values, composite("gradient", {torch.mul: rule})), literal)
    model = Fn(lambda m, a, b, c: R.mul2(R.mul2(a, b), c))
    points = [x.clone().requires_grad_() for x in values]
    with composite("relevance").register(model):
        z = model(*points)
        assert_same(torch.autograd.grad(z, points, z.detach()), literal)


@both_formulations
def test_the_ledger_closes_over_products_of_products(formulation):
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.out((m.a(x) * m.b(x)) * torch.sigmoid(x) * x), a=nn.Linear(3, 3), b=nn.Linear(3, 3),
               out=nn.Linear(3, 1)).double()  # fmt: skip
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with composite(formulation).register(model) as registration, registration.ledger() as ledger:
        z = model(x)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    assert ledger.unaccounted < 1e-9
    torch.testing.assert_close(ledger.seed, ledger.inputs + sum(ledger.absorbed.values()))


def test_degrees_of_a_thousand_squares_are_still_numbers():
    def function(a, b):
        for _ in range(1100):
            a = a * a
        return a * b

    found = relevance(function, [torch.ones(2).double(), torch.ones(2).double()], composite("gradient"))
    torch.testing.assert_close(found[0], torch.ones(2).double())
