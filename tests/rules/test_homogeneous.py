"""Lengths, roots and spreads pass relevance; they are statistics only where something is divided by them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Fn, assert_close, attribute
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    Composite,
    Epsilon,
    Family,
    Homogeneous,
    Identity,
    Norm,
    RuleError,
    check_conservation,
    default_rules,
)
from lxt_compose import attribute as explain
from lxt_compose.ops import op_of

FORMULATIONS = ("relevance", "gradient")
THREE = torch.tensor([3.0], dtype=torch.float64)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exact(formulation, **options):
    return Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=0.0), strict=True, **options)


# Homogeneous of degree 1: relevance is gradient times input, element by element, and adds up to the output.
OF_DEGREE_ONE = {
    "GeM": lambda x: (x.clamp(min=0) ** 3).mean(-1) ** (1 / 3),
    "GeM with a tensor": lambda x: x.abs().pow(THREE).mean(-1).pow(1.0 / THREE),
    "magnitude": lambda x: (x[..., :4] ** 2 + x[..., 4:] ** 2).sqrt(),
    "magnitude, square": lambda x: torch.sqrt(torch.square(x[..., :4]) + x[..., 4:].square()),
    "hypot": lambda x: torch.hypot(x[..., :4], x[..., 4:]),
    "length": lambda x: x.norm(dim=-1),
    "length, linalg": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "norm, linalg": lambda x: torch.linalg.norm(x),
    "norm 1": lambda x: torch.norm(x, p=1, dim=-1),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3, dim=-1),
    "norm 1/2": lambda x: torch.linalg.vector_norm(x, 0.5, dim=-1),
    "largest": lambda x: torch.linalg.vector_norm(x, torch.inf, dim=-1),
    "frobenius": lambda x: torch.linalg.matrix_norm(x),
    "nuclear": lambda x: torch.linalg.matrix_norm(x, "nuc"),
    "std": lambda x: x.std(-1),
    "std, biased": lambda x: torch.std(x, dim=(1, 2), correction=0),
    "std by hand": lambda x: (x.var(-1, correction=0) + 0.0).sqrt(),
    "std by hand, centered": lambda x: (x - x.mean(-1, keepdim=True)).pow(2).mean(-1).sqrt(),
    "root mean square": lambda x: x.square().mean(-1) ** 0.5,
    "lp_pool1d": lambda x: F.lp_pool1d(x.abs(), 2.0, 3, 2),
    "lp_pool2d": lambda x: F.lp_pool2d(x.abs(), 3.0, (2, 3), stride=2, ceil_mode=True),
    "modulus": lambda x: torch.complex(x[..., :4], x[..., 4:]).abs(),
    "modulus of a spectrum": lambda x: torch.fft.rfft(x, dim=-1).abs(),
    "modulus, a view": lambda x: torch.view_as_complex(x.reshape(3, 5, 4, 2)).abs(),
    "distances of all pairs": lambda x: torch.cdist(x, x.flip(-1) + x.roll(1, 1), p=3.0),
    "distances within": lambda x: F.pdist(x[0], 2.0),
    "distance": lambda x: torch.dist(x, x.flip(-1) * 2),
    "distances of pairs": lambda x: F.pairwise_distance(x[:2], x[1:].flip(-1), p=1.0, eps=0.0),
    "geometric mean of two": lambda x: (x[..., :4].abs() * x[..., 4:].abs()).sqrt(),
}  # fmt: skip


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", OF_DEGREE_ONE)
def test_functions_of_degree_one_are_gradient_times_input(name, formulation):
    f, x = OF_DEGREE_ONE[name], draw(3, 5, 8)
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    weight = draw(*y.shape, seed=1)
    (expected,) = torch.autograd.grad((y * weight).sum(), leaf)
    model = Fn(lambda self, x: f(x) * weight)
    found = attribute(model, x, exact(formulation))
    assert_close(found, expected * x, 1e-7)
    assert_close(found.sum(), (y * weight).sum().detach(), 1e-7)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_other_degrees_keep_all_relevance_too(formulation):
    x = draw(3, 5, 8)
    for f in (lambda x: x.var(-1), lambda x: torch.var_mean(x, -1)[0], lambda x: x.norm(dim=-1).pow(1.5)):
        found = attribute(Fn(lambda self, x, f=f: f(x)), x, exact(formulation))
        assert_close(found.sum(-1), f(x), 1e-7)
    centered = x - x.mean(-1, keepdim=True)
    share = x * centered / centered.square().sum(-1, keepdim=True)
    assert_close(attribute(Fn(lambda self, x: x.var(-1)), x, exact(formulation)), share * x.var(-1, keepdim=True), 1e-7)
    for f in (lambda x: x.abs().sqrt(), lambda x: torch.sign(x) * x.abs().sqrt(), lambda x: x.abs() ** 0.3):
        found = attribute(Fn(lambda self, x, f=f: f(x)), x, exact(formulation))  # a power passes all
        assert_close(found, f(x), 1e-7)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_power_of_a_constant_is_an_exponential_function(formulation):
    x = draw(3, 4)
    for f in (lambda x: 2**x, lambda x: torch.pow(2.0, x), lambda x: torch.tensor(2.0).double() ** x):
        assert_close(attribute(Fn(lambda self, x, f=f: f(x)), x, exact(formulation)), 2**x - 1, 1e-8)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_covariance_is_of_degree_two_and_a_power_of_a_matrix_of_its_exponent(formulation):
    """Each of the p factors of a product gets the same part."""
    x, weight = draw(4, 4), draw(4, 4, seed=1)
    centered = x - x.mean(1, keepdim=True)
    expected = x * ((weight + weight.T) @ centered / 3) / 2
    found = attribute(Fn(lambda self, x: torch.cov(x) * weight), x, exact(formulation))
    assert_close(found, expected, 1e-7)
    for n in (1, 2, 5):
        power = Fn(lambda self, x, n=n: torch.linalg.matrix_power(x, n) * weight)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(power(leaf).sum(), leaf)
        assert_close(attribute(power, x, exact(formulation)), gradient * x / n, 1e-7)
    with Composite(formulation=formulation).register(Fn(lambda self, x: torch.matrix_power(x, -1))) as registration:
        registration.model(x.clone().requires_grad_())
        assert [row.note for row in registration.report().uncovered] == [op_of(torch.linalg.inv).reason]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("function", [torch.cdist, F.pairwise_distance])
def test_a_point_that_is_a_constant_keeps_its_share_of_a_distance(function, formulation):
    """``R_i = R x_i (x_i - c_i) / |x - c|^2``, and the rest is booked as constant."""
    x, c = draw(6, 3), draw(6, 3, seed=1)
    each = torch.einsum("ij,ij->i", x - c, x - c)[:, None]
    model = Fn(lambda self, x: function(x, c).diagonal() if function is torch.cdist else function(x, c, eps=0.0))
    y = model(x)
    assert_close(attribute(model, x, exact(formulation)), y[:, None] * x * (x - c) / each, 1e-7)
    leaf = x.clone().requires_grad_()
    with exact(formulation).register(model) as registration, check_conservation(registration, rtol=1e-7) as check:
        model(leaf).backward(y if formulation == "relevance" else torch.ones_like(y))
    assert check.rows[0].absorbed["constant"].any()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_distances_to_prototypes_are_booked_by_sample(formulation):
    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.points = nn.Linear(4, 3), nn.Parameter(torch.randn(5, 3))

        def forward(self, x):
            return torch.cdist(self.layer(x), self.points)

    torch.manual_seed(0)
    model, x = Prototypes().double(), draw(6, 4)
    result = explain(model, x, target=2, composite=exact(formulation), ledger=True)
    assert result.report.complete
    assert result.ledger.unaccounted < 1e-9
    absorbed = sum(result.ledger.absorbed.values())
    assert_close(result.relevance.sum(1) + absorbed, result.output, 1e-7)
    mixed = Fn(lambda self, x: torch.cdist(x * 2, x * 3)[:, 0])
    assert explain(mixed, x, composite=exact(formulation), target=None, ledger=True).ledger.unaccounted < 1e-9


@pytest.mark.parametrize(
    "count",
    [
        lambda x: torch.dist(x, x * 2, 0),
        lambda x: torch.cdist(x, x * 2, p=0.0),
        lambda x: F.pairwise_distance(x, x * 2, p=0.0, eps=0.0),
        lambda x: F.pdist(x, 0.0),
        lambda x: x.norm(0, dim=-1),
        lambda x: torch.norm(x, p=0, dim=-1),
        lambda x: torch.linalg.norm(x, 0, -1),
        lambda x: torch.linalg.vector_norm(x, ord=0, dim=-1),
    ],
)
def test_the_number_of_elements_that_differ_is_a_statistic(count):
    x = draw(4, 3)
    model = Fn(lambda self, x: count(x).sum() * 0 + x.sum(-1))
    with Composite().register(model) as registration:
        registration.model(x.clone().requires_grad_())
    assert "Stop()" in {row.rule for row in registration.report().rows}
    assert_close(attribute(model, x, exact("relevance")), x)


# ---- where they divide, they are statistics -------------------------------------------------------------------------

NORMALIZATIONS = {
    "over a root": lambda x, v: x / torch.sqrt(v),
    "over a power": lambda x, v: x / v**0.5,
    "div": lambda x, v: torch.div(x, v.sqrt()),
    "times rsqrt": lambda x, v: x * torch.rsqrt(v),
    "times a reciprocal": lambda x, v: x * v.sqrt().reciprocal(),
    "times one over": lambda x, v: x * (1 / v.sqrt()),
    "times a negative power": lambda x, v: x * v.pow(-0.5),
    "times a power of a power": lambda x, v: x * v.sqrt() ** -1,
    "times a negative power, a tensor": lambda x, v: x * v ** torch.tensor(-0.5).double(),
    "addcdiv": lambda x, v: torch.addcdiv(torch.zeros_like(v), x, v.sqrt()),
    "in place": lambda x, v: (x * 1).div_(v.sqrt()),
}
SPREADS = {
    "mean of squares": lambda x: x.pow(2).mean(-1, keepdim=True),
    "var": lambda x: x.var(-1, keepdim=True),
    "std": lambda x: x.std(-1, keepdim=True) ** 2,
    "norm": lambda x: x.norm(dim=-1, keepdim=True).square(),
    "hypot": lambda x: torch.hypot(x[..., :1], x[..., 1:2]) ** 2,
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalizations_by_hand_hold_their_statistic(name, spread, formulation):
    """Element by element ``R_x = R``: the statistic takes nothing."""
    x, weight = draw(3, 6), draw(6, seed=1)
    model = Fn(lambda self, x: NORMALIZATIONS[name](x, SPREADS[spread](x) + 1e-5) * weight)
    assert_close(attribute(model, x, exact(formulation)), model(x), 1e-7)


def test_norms_of_torch_are_as_they_were():
    x = draw(3, 6)
    for f in (lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)):
        assert_close(attribute(Fn(lambda self, x, f=f: f(x)), x, exact("relevance")), f(x), 1e-7)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_inside_a_module_under_norm_lengths_are_held(formulation):
    class Scaled(nn.Module):
        def forward(self, x):
            return x * (x.norm(dim=-1, keepdim=True) * 0 + 2) / x.std(-1, keepdim=True)

    x = draw(3, 6)
    model = nn.Sequential(Scaled())
    composite = Composite({Scaled: Norm()}, formulation=formulation, defaults=default_rules(formulation, epsilon=0.0))
    assert_close(attribute(model, x, composite), model(x), 1e-7)


# ---- the rule --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    power=st.floats(0.25, 5),
    root=st.floats(0.25, 4),
    scale=st.sampled_from([1e-4, 1, 1e4]),
)
def test_power_means_lose_nothing(seed, power, root, scale):
    """``R_i = R x_i^p / sum x^p``, whatever the root: in both formulations."""
    x = draw(4, 5, seed=seed).abs() * scale + 1e-9 * scale
    model = Fn(lambda self, x: x.pow(power).mean(-1).pow(root))
    y = model(x)
    expected = y[:, None] * x**power / (x**power).sum(-1, keepdim=True)
    found = attribute(model, x, exact("gradient"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


LACKING = ("modulus", "GeM with", "norm 1/2", "distances")  # torch has no such kernels in half precision


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", [name for name in OF_DEGREE_ONE if name not in ("nuclear", "modulus of a spectrum")])
def test_zeros_are_finite(name, formulation, dtype):
    """Lengths have no derivative at 0."""
    if dtype in (torch.float16, torch.bfloat16) and name.startswith(LACKING):
        dtype = torch.float32
    x = draw(3, 5, 8)
    x[0], x[1, :, ::2] = 0, 0
    x = x.to(dtype).requires_grad_()
    f = OF_DEGREE_ONE[name]
    with Composite(formulation=formulation).register(Fn(lambda self, x: f(x))) as registration:
        y = registration.model(x)
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_constant_operand_keeps_its_share(formulation):
    x, c = draw(3, 4), draw(4, seed=1)
    model = Fn(lambda self, x: torch.hypot(x, c))
    assert_close(attribute(model, x, exact(formulation)), x**2 / model(x), 1e-8)
    leaf = x.clone().requires_grad_()
    with exact(formulation).register(model) as registration, check_conservation(registration) as check:
        model(leaf).sum().backward()
    (row,) = check.rows
    assert row.absorbed["constant"].any()


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_pooling_nets_add_up_to_the_output(formulation):
    """Where a root was a part of the net only, its share was lost without a word."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 6, 3, padding=1, bias=False), nn.Linear(24, 3, bias=False)
            self.p = nn.Parameter(torch.tensor([3.0]))

        def forward(self, x):
            h = self.conv(x)
            gem = h.clamp(min=0).pow(self.p).mean(-1).pow(1.0 / self.p)
            return self.head(torch.cat([h.mean(-1), h.std(-1), h.norm(dim=-1), gem], -1))

    torch.manual_seed(0)
    model, x = Net().double(), draw(4, 2, 9)
    result = explain(model, x, target=1, composite=exact(formulation), ledger=True)
    assert_close(result.relevance.sum((1, 2)), result.output, 1e-7)
    assert result.report.complete
    assert result.ledger.unaccounted < 1e-9
    rules = {row.target: row.rule for row in result.report.rows}
    assert rules["std"].startswith("Homogeneous(")
    assert rules["pow"] == "Identity()"


def test_degrees():
    x = draw(3, 4)
    cubes = nn.Sequential(Fn(lambda self, x: x.norm(dim=-1) ** 3))
    for rule in (Homogeneous(0.0, degree=3), Epsilon(0.0)):
        factor = 1 if isinstance(rule, Homogeneous) else 3
        assert_close(attribute(cubes, x, Composite({"0": rule})).sum(-1), factor * cubes(x))
    assert str(Homogeneous(degree=2.0)) == "Homogeneous(epsilon=1e-06, degree=2.0)"
    with pytest.raises(ValueError, match="degree must be above 0"):
        Homogeneous(degree=0)
    with pytest.raises(ValueError, match="degree must be finite"):
        Homogeneous(degree=-1.0)


def test_what_is_asked_for_is_done():
    """A key, or the family in a table of defaults."""
    x = draw(3, 4)
    model = Fn(lambda self, x: x.norm(dim=-1, keepdim=True) + x)
    keyed = Composite({torch.norm: Identity()})
    with keyed.register(model) as registration, pytest.raises(RuleError, match="passes relevance element by element"):
        registration.model(x.clone().requires_grad_())
    table = {**default_rules("relevance", epsilon=0.0), Family.HOMOGENEOUS: Homogeneous(1.0)}
    damped = attribute(model, x, Composite(defaults=table))
    assert (damped - attribute(model, x, exact("relevance"))).abs().max() > 1e-3
