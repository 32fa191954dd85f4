"""Rules for anything but layers against the papers' equations, elementwise in float64, in both formulations."""

import math

import oracles
import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    Composite,
    Epsilon,
    Identity,
    Norm,
    Pass,
    Ratio,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    ResidualGamma,
    RuleError,
    SoftmaxTaylor,
    Stop,
    TaylorDecomposition,
    Uniform,
    UniformEpsilon,
    ZPlus,
)
from lxt_compose.rules import Rule


def tensor(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def relevance(function, inputs, rules, r=None, formulation="relevance", **options):
    """The relevance of each input for the relevance r of the output (R = z * 1 if it is left out)."""
    model = function if isinstance(function, nn.Module) else Fn(lambda _, *xs: function(*xs))
    wanted = model(*inputs)
    leaves = [x.detach().clone().requires_grad_() if x.requires_grad else x for x in inputs]
    if isinstance(rules, Rule):
        rules = {"": rules}
    with Composite(rules, formulation=formulation, **options).register(model):
        z = model(*leaves)
        assert torch.equal(z, wanted)
        r = z.detach() if r is None else r
        z.backward(r if formulation == "relevance" else r / z.detach())
    pairs = [(x.detach(), x.grad) for x in leaves if x.requires_grad]
    return [g if formulation == "relevance" or g is None else x * g for x, g in pairs]


def carrier(*shape, seed=0):
    return tensor(*shape, seed=seed).requires_grad_()


def both(function, inputs, rules, r=None, tolerance=1e-8, **options):
    """The relevance, which must come out the same in both formulations for R = z * g."""
    found, other = (relevance(function, inputs, rules, r, form, **options) for form in FORMULATIONS)
    for a, b in zip(found, other, strict=True):
        assert_close(a, b, tolerance)
    return found


# ---- scaling -------------------------------------------------------------------------------------------------------


def test_epsilon_on_any_block():
    """``R_i = x_i sum_j J_ji R_j / z_j`` for a block with everything in it."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    x = carrier(1, 4)
    r = torch.randn(1, 3, dtype=torch.float64)
    assert_close(both(block, [x], Epsilon(1e-3), r)[0], oracles.epsilon_of(block, x, r, 1e-3))


def test_epsilon_shares_a_sum_by_what_is_added():
    a, b = carrier(3, 4), carrier(3, 4, seed=1)
    r = tensor(3, 4, seed=2)
    for function, sign in ((torch.add, 1), (torch.sub, -1)):
        found = both(function, [a, b], {function: Epsilon(1e-9)}, r)
        total = a.detach() + sign * b.detach()
        assert_close(found[0], a.detach() / total * r, 1e-5)
        assert_close(found[1], sign * b.detach() / total * r, 1e-5)


def test_trap_3_the_parts_of_a_sum_get_their_own_share():
    a, b = carrier(5), carrier(5, seed=1)
    found = relevance(lambda a, b: a + b, [a, b], {}, (a + b).detach())
    assert_close(found[0], a.detach(), 1e-5)
    assert_close(found[1], b.detach(), 1e-5)


def test_trap_25_relevance_is_summed_over_broadcast_dimensions():
    a, b, r = carrier(3, 1), carrier(4), tensor(3, 4)
    total = a.detach() + b.detach()
    found = both(torch.add, [a, b], {torch.add: Epsilon(0.0)}, r)
    assert_close(found[0], (a.detach() / total * r).sum(1, keepdim=True))
    assert_close(found[1], (b.detach() / total * r).sum(0))
    found = both(torch.mul, [a, b], {}, r)
    assert_close(found[0], r.sum(1, keepdim=True) / 2)
    assert_close(found[1], r.sum(0) / 2)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_uniform_epsilon(formulation):
    a, b, r = carrier(3, 4), carrier(4, 2), tensor(3, 2, seed=3)
    wanted = oracles.matmul_uniform_epsilon(a.detach(), b.detach(), r, 1e-2)
    for function in (torch.matmul, torch.mm, lambda a, b: torch.einsum("ij,jk->ik", a, b)):
        rules = dict.fromkeys([torch.matmul, torch.mm, torch.einsum], UniformEpsilon(1e-2))
        found = relevance(function, [a, b], rules, r, formulation)
        for x, y in zip(found, wanted, strict=True):
            assert_close(x, y)


def test_uniform_epsilon_of_three_factors_of_one_and_with_a_bias():
    a, b, c, r = carrier(3, 4), carrier(4, 2), carrier(2, 3), tensor(3, 3)
    rule = {torch.einsum: UniformEpsilon(0.0), torch.matmul: UniformEpsilon(0.0), torch.addmm: UniformEpsilon(0.0)}
    found = both(lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), [a, b, c], rule, r)
    z = (a @ b @ c).detach()
    for x, leaf, g in zip(found, [a, b, c], torch.autograd.grad(a @ b @ c, [a, b, c], r / z), strict=True):
        assert_close(x, leaf.detach() * g / 3)
    one = both(lambda a, b: a @ b, [a, b.detach()], rule, r[:, :2])[0]
    z = (a @ b).detach()
    assert_close(one, a.detach() * ((r[:, :2] / z) @ b.detach().T))
    bias = carrier(2)
    found = both(torch.addmm, [bias, a, b], rule, r[:, :2])
    z = (bias + a @ b).detach()
    assert_close(found[0], (bias.detach() / z * r[:, :2]).sum(0))
    assert_close(found[1], a.detach() * ((r[:, :2] / z) @ b.detach().T) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-6])
def test_trap_18_the_stabilizer_is_signed_and_never_0(dtype, epsilon):
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    for rows in ([1.0, 1.0], [0.0, 0.0], [1.0, 1.0 + 2 * torch.finfo(dtype).eps]):
        x = torch.tensor([rows], dtype=dtype, requires_grad=True)
        with Epsilon(epsilon).register(layer):
            layer(x).backward(torch.ones(1, 1, dtype=dtype))
        assert torch.isfinite(x.grad).all()
    info = torch.finfo(dtype)
    e = max(epsilon, info.tiny) if epsilon else info.resolution
    x = torch.tensor([[1.0, 1.0]], dtype=dtype, requires_grad=True)
    with Epsilon(epsilon).register(layer):
        layer(x).backward(torch.full((1, 1), e, dtype=dtype))
    assert torch.equal(x.grad, torch.tensor([[1.0, -1.0]], dtype=dtype))


# ---- bypass --------------------------------------------------------------------------------------------------------


def test_uniform():
    a, b, c, r = carrier(3, 4), carrier(4, seed=1), carrier(1, seed=2), tensor(3, 4)
    found = both(lambda a, b, c: (a * b) * c, [a, b, c], {torch.mul: Uniform()}, r)
    assert_close(found[2], (r / 2).sum().reshape(1))
    assert_close(found[0], r / 4)
    assert_close(found[1], (r / 4).sum(0))
    assert_close(relevance(nn.Bilinear(4, 4, 4).double(), [a, tensor(3, 4)], Uniform(), r)[0], r)
    with pytest.raises(RuleError, match=r"input of shape \(3, 4\) and an output of shape \(4, 3\).*UniformEpsilon"):
        relevance(lambda a: a.T, [a], Uniform())
    with pytest.raises(RuleError, match=r"on a module .* needs formulation='relevance'"):
        Composite({nn.ReLU: Uniform()}, formulation="gradient").register(nn.ReLU())


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


ELEMENTWISE = [
    F.relu, F.gelu, F.silu, torch.tanh, F.softsign, F.mish, F.hardswish, F.elu, F.selu, F.leaky_relu, F.hardtanh,
    torch.sin, torch.erf, torch.expm1, torch.sigmoid, F.softplus, torch.exp, torch.cos, gelu_tanh,
]  # fmt: skip


@pytest.mark.parametrize("rule", [Identity(zero_bias=True), Ratio()], ids=str)
@pytest.mark.parametrize("function", ELEMENTWISE, ids=lambda function: function.__name__)
def test_identity_and_ratio(function, rule):
    """``R_x = R_z``; in the gradient formulation ``g f(x) / x``; the two rules agree where nothing is 0."""
    x = torch.cat([tensor(40) * 3, torch.tensor([1e-3, -1e-3, 30.0, -30.0], dtype=torch.float64)]).requires_grad_()
    z = function(x.detach())
    r = torch.randn(44, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * z
    alive, key = z != 0, {F.gelu if function is gelu_tanh else function: rule}
    for formulation in FORMULATIONS:
        leaf = x.detach().clone().requires_grad_()
        with Composite(key, formulation=formulation).register(model := Fn(lambda _, x: function(x))):
            model(leaf).backward(r if formulation == "relevance" else torch.where(alive, r / z, 0))
        found = leaf.grad if formulation == "relevance" else leaf.grad * x.detach()
        assert_close(found[alive], r[alive], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", ELEMENTWISE, ids=lambda function: function.__name__)
def test_trap_20_identity_at_zero(function, dtype):
    """f(x) / x near 0 and far from it: finite, and the limit where f(0) = 0."""
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 4, 1e-10, -1e-10, 1e-4, -1e-4, 20.0, -20.0], dtype=dtype)
    key = F.gelu if function is gelu_tanh else function
    leaf = x.clone().requires_grad_()
    with Composite({key: Identity()}, formulation="gradient").register(model := Fn(lambda _, x: function(x))):
        model(leaf).sum().backward()
    # e^20 / 20 is more than fp16 holds
    assert torch.isfinite(leaf.grad[:-2]).all() or function is torch.exp
    limits = {F.silu: 0.5, F.gelu: 0.5, gelu_tanh: 0.5, torch.erf: 2 / math.sqrt(math.pi)}
    limits |= dict.fromkeys([torch.tanh, F.softsign, torch.sin, torch.expm1, F.elu], 1.0)
    if function in limits:
        assert abs(float(leaf.grad[0]) - limits[function]) < 1e-2


def test_ratio_gives_and_passes_nothing_at_zero():
    """What is special about it: in both formulations a zero neither has relevance nor passes it on."""
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    r = torch.ones(3, dtype=torch.float64)
    assert_close(relevance(F.relu, [x], {F.relu: Ratio()}, r)[0], torch.tensor([0.0, 0.0, 1.0]).double(), 1e-10)
    assert_close(relevance(F.relu, [x], {F.relu: Identity()}, r)[0], r)
    found = relevance(torch.sigmoid, [x], {torch.sigmoid: Ratio()}, r)[0]
    assert_close(found, torch.tensor([1.0, 0.0, 1.0]).double(), 1e-10)
    with pytest.raises(RuleError, match="passes relevance to one input"):
        relevance(torch.mul, [x, x], {torch.mul: Ratio()})


def test_pass_and_stop():
    x, r = carrier(3, 4), tensor(3, 4)
    norm = nn.LayerNorm(4).double()
    assert_close(both(norm, [x], Pass(), r, 1e-6)[0], r, 1e-6)
    assert_close(relevance(nn.Flatten(0), [x], Pass(), r.flatten())[0], r)
    with pytest.raises(RuleError, match="element by element"):
        relevance(nn.Linear(4, 2).double(), [x], Pass())
    a, b = carrier(3, 4), carrier(3, 4, seed=1)
    rules = {torch.tanh: Stop(), torch.add: Epsilon(0.0)}
    for formulation in FORMULATIONS:
        found = relevance(lambda a, b: a + torch.tanh(b), [a, b], rules, r, formulation)
        total = a.detach() + torch.tanh(b.detach())
        assert_close(found[0], a.detach() / total * r)
        assert found[1] is None


# ---- softmax and norms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_trap_23_softmax_sums_over_its_own_dimension(dim):
    x, r = carrier(2, 3, 4), tensor(2, 3, 4, seed=1)
    wanted = oracles.softmax_taylor(x.detach(), r, dim)
    for function in (lambda x: x.softmax(dim), lambda x: F.softmax(x, dim=dim), nn.Softmax(dim)):
        assert_close(both(function, [x], {F.softmax: SoftmaxTaylor()}, r)[0], wanted)
    assert_close(both(lambda x: F.softmin(x, dim), [x], {}, r)[0], oracles.softmax_taylor(-x.detach(), r, dim))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_softmax_without_a_dimension_takes_that_of_torch(dims):
    x = tensor(2, 3, 2, 3)[(0,) * (4 - dims)].clone().requires_grad_()
    r = torch.randn_like(x)
    dim = 0 if dims in (1, 3) else 1
    assert torch.equal(F.softmax(x), F.softmax(x, dim))
    assert_close(both(lambda x: F.softmax(x), [x], {}, r)[0], oracles.softmax_taylor(x.detach(), r, dim))


def test_trap_23_masked_inputs_get_nothing():
    """-inf gets 0; a column that is masked throughout neither gives nor gets, and spoils nobody else's numbers."""
    x = tensor(4, 3)
    x[0, 1] = x[2, 2] = float("-inf")
    r = tensor(4, 3, seed=1)
    wanted = oracles.softmax_taylor(x, r, 0)
    for formulation in FORMULATIONS:
        leaf = x.clone().requires_grad_()
        with Composite(formulation=formulation).register(model := Fn(lambda _, x: torch.softmax(x, 0))):
            s = model(leaf)
            s.backward(r if formulation == "relevance" else torch.where(s == 0, 0, r / s.detach()))
        found = leaf.grad if formulation == "relevance" else torch.where(x.isinf(), 0, x * leaf.grad)
        kept = torch.where(torch.softmax(x, 0) == 0, 0, r)
        assert_close(found, wanted if formulation == "relevance" else oracles.softmax_taylor(x, kept, 0), 1e-8)
    x[:, 1] = float("-inf")
    leaf = x.clone().requires_grad_()
    with Composite(formulation="gradient").register(model := Fn(lambda _, x: torch.softmax(x, 0))):
        model(leaf).backward(torch.ones(4, 3, dtype=torch.float64))
    assert torch.equal(leaf.grad[:, 1], torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(leaf.grad).all()


def test_log_softmax_and_logsumexp():
    x, r = carrier(3, 4), tensor(3, 4, seed=1)
    for function, given in ((lambda x: F.log_softmax(x, 1), r), (lambda x: torch.logsumexp(x, 1), tensor(3))):
        assert_close(both(function, [x], {}, given)[0], oracles.epsilon_of(function, x, given, 0.0))


def scaled(x, statistic, weight=1.0, bias=0.0, mean=None):
    """The normalization with its statistic of today: affine in what it is given."""
    return lambda u: (u if mean is None else u - mean(u)) / statistic * weight + bias


def sigma(x, dims, eps=1e-5):
    return (x.var(dims, correction=0, keepdim=True) + eps).sqrt()


W, B = tensor(4, seed=7), tensor(4, seed=8)
X = tensor(2, 4, 3)
NORMS = {
    "layer_norm": (lambda x: F.layer_norm(x.mT, (4,), W, B).mT, lambda x: lambda u: scaled(
        x, sigma(x, 1), W[:, None], B[:, None], lambda u: u.mean(1, keepdim=True))(u)),
    "layer_norm of two dimensions": (lambda x: F.layer_norm(x, (4, 3)), lambda x: scaled(
        x, sigma(x, (1, 2)), mean=lambda u: u.mean((1, 2), keepdim=True))),
    "rms_norm": (lambda x: F.rms_norm(x.mT, (4,), W, 1e-5).mT, lambda x: scaled(
        x, (x.square().mean(1, keepdim=True) + 1e-5).sqrt(), W[:, None])),
    "group_norm": (lambda x: F.group_norm(x, 2, W, B), lambda x: lambda u: (
        (u.reshape(2, 2, 6) - u.reshape(2, 2, 6).mean(2, keepdim=True)) / sigma(x.reshape(2, 2, 6), 2)
    ).reshape(2, 4, 3) * W[:, None] + B[:, None]),
    "instance_norm": (lambda x: F.instance_norm(x, weight=W, bias=B), lambda x: scaled(
        x, sigma(x, 2), W[:, None], B[:, None], lambda u: u.mean(2, keepdim=True))),
    "batch_norm, training": (lambda x: F.batch_norm(x, None, None, W, B, training=True), lambda x: scaled(
        x, sigma(x, (0, 2)), W[:, None], B[:, None], lambda u: u.mean((0, 2), keepdim=True))),
    "normalize": (lambda x: F.normalize(x, dim=1), lambda x: scaled(x, x.norm(dim=1, keepdim=True))),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2, 0.1), lambda x: scaled(
        x, x / F.local_response_norm(x, 2, 0.1))),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms_hold_their_statistic(name):
    function, frozen = NORMS[name]
    r = tensor(2, 4, 3, seed=5)
    found = both(function, [X.clone().requires_grad_()], {}, r, 1e-4)[0]
    assert_close(found, oracles.norm(frozen(X), X, r), 1e-7)


def test_norm_on_a_module_written_by_hand():
    def rms(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * 2.0

    x, r = carrier(3, 4), tensor(3, 4, seed=5)
    found = both(rms, [x], Norm(), r, 1e-4)[0]
    fixed = torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + 1e-6) * 2.0
    assert_close(found, oracles.norm(lambda u: u * fixed, x.detach(), r), 1e-5)


# ---- sums of two streams -------------------------------------------------------------------------------------------

SUMS = {
    "a + b": (lambda a, b: a + b, torch.add, 1, 1),
    "in place": (lambda a, b: a.clone().add_(b), torch.add, 1, 1),
    "alpha": (lambda a, b: torch.add(a, b, alpha=2), torch.add, 1, 2),
    "a - b": (lambda a, b: a - b, torch.sub, 1, -1),
    "keywords the other way round": (lambda a, b: torch.sub(other=b, input=a, alpha=3), torch.sub, 1, -3),
    "rsub": (lambda a, b: torch.rsub(a, b, alpha=3), torch.sub, -3, 1),
}


@pytest.mark.parametrize("gamma", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("name", SUMS)
def test_residual_gamma(name, gamma):
    function, key, first, second = SUMS[name]
    a, b, r = carrier(3, 4), carrier(3, 4, seed=1), tensor(3, 4, seed=2)
    wanted = oracles.residual_gamma(first * a.detach(), second * b.detach(), r, gamma)
    found = both(function, [a, b], {key: ResidualGamma(gamma)}, r, 1e-10)
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, 1e-12)
    assert_close(found[0] + found[1], r, 1e-12)
    found = relevance(function, [a, a], {key: ResidualGamma(gamma)}, r)
    assert_close(sum(found), r, 1e-12)


def test_residual_gamma_broadcasts_cancels_and_falls_back():
    a, b, r = carrier(3, 1), carrier(4), tensor(3, 4)
    wide = a.detach().expand(3, 4), b.detach().expand(3, 4)
    wanted = oracles.residual_gamma(*wide, r, 1.0)
    found = both(torch.add, [a, b], {torch.add: ResidualGamma()}, r, 1e-10)
    assert_close(found[0], wanted[0].sum(1, keepdim=True), 1e-12)
    assert_close(found[1], wanted[1].sum(0), 1e-12)
    a = torch.tensor([1.0, -1.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([-1.0, 1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    found = relevance(torch.add, [a, b], {torch.add: ResidualGamma(0.5)}, torch.ones(4, dtype=torch.float64))
    assert_close(found[0], torch.tensor([3.0, -2.0, 0.5, 1.0]).double(), 1e-12)
    assert_close(found[1], torch.tensor([-2.0, 3.0, 0.5, 0.0]).double(), 1e-12)
    # with a constant it is Epsilon, and on a block it takes the sums inside
    x, r = carrier(3, 4), tensor(3, 4, seed=1)
    constant = tensor(3, 4, seed=2)
    wanted = x.detach() / (x.detach() + constant) * r
    assert_close(both(torch.add, [x, constant], {torch.add: ResidualGamma()}, r, 1e-4)[0], wanted, 1e-4)
    block = lambda x: x + torch.tanh(x)  # noqa: E731
    assert_close(both(block, [x], ResidualGamma(), r)[0], both(block, [x], {torch.add: ResidualGamma()}, r)[0])


# ---- Taylor decomposition and ReLU ---------------------------------------------------------------------------------


def curved(x):
    return torch.tanh(x @ torch.arange(12, dtype=torch.float64).reshape(4, 3).cos()) + 0.5


REFERENCES = {
    "0": (0.0, torch.zeros_like),
    "0.3": (0.3, lambda x: torch.full_like(x, 0.3)),
    "tensor": (tensor(4, seed=3), lambda x: tensor(4, seed=3)),
    "half": (lambda x: x / 2, lambda x: x / 2),
    "itself": (None, lambda x: x),
}


@pytest.mark.parametrize(("reference", "point_of"), REFERENCES.values(), ids=REFERENCES)
def test_taylor_decomposition(reference, point_of):
    """``R_i = x_i sum_j J_ji(x~) R_j / f_j(x)``, and with the bias ``b_j = f_j(x~) - sum_i J_ji(x~) x~_i`` shared."""
    x, r = carrier(2, 4), tensor(2, 3, seed=4)
    module = Fn(lambda _, x: curved(x))
    for formulation in FORMULATIONS:
        found = relevance(module, [x], TaylorDecomposition(reference, epsilon=1e-9), r, formulation)[0]
        for i in range(2):
            point = point_of(x.detach()[i])
            jacobian, at_point = oracles.jacobian(curved, point)
            share = r[i] / curved(x.detach()[i])
            assert_close(found[i], x.detach()[i] * (share @ jacobian), 1e-6)
            bias = at_point - jacobian @ point
            if formulation == "relevance":
                whole = relevance(module, [x], TaylorDecomposition(reference, True, 1e-9), r)[0]
                assert_close(whole[i], x.detach()[i] * (share @ jacobian) + (share * bias).sum() / 4, 1e-6)


def test_taylor_decomposition_of_several_inputs_and_other_shares():
    a, b, r = carrier(2, 3), carrier(2, 3, seed=1), tensor(2, 3, seed=2)
    function = lambda a, b: torch.exp(a) * b + 1  # noqa: E731
    given = []

    def to_the_second(relevance, inputs):
        given.append(relevance)
        return torch.zeros_like(inputs[0]), relevance

    found = relevance(Fn(lambda _, *xs: function(*xs)), [a, b], TaylorDecomposition(0.0, to_the_second, 1e-9), r)
    share = r / function(a, b).detach()
    # at 0: d/da = b e^a = 0, d/db = e^a = 1, f = 1
    assert_close(found[0], torch.zeros(2, 3).double(), 1e-6)
    assert_close(found[1], b.detach() * share + share, 1e-6)
    assert_close(given[0], share, 1e-6)
    found = relevance(torch.exp, [a], {torch.exp: TaylorDecomposition()}, r)[0]
    assert_close(found, a.detach() * r / a.detach().exp(), 1e-5)
    with pytest.raises(RuleError, match="needs formulation='relevance'"):
        Composite({"": TaylorDecomposition(bias=True)}, formulation="gradient").register(nn.Linear(2, 2))
    found = relevance(Fn(lambda _, *xs: function(*xs)), [a, b], TaylorDecomposition((0.5, b.detach()), epsilon=1e-9), r)
    # at (1/2, b): d/da = b e^(1/2), d/db = e^(1/2)
    assert_close(found[0], a.detach() * b.detach() * math.exp(0.5) * share, 1e-6)
    assert_close(found[1], b.detach() * math.exp(0.5) * share, 1e-6)
    with pytest.raises(RuleError, match=r"TaylorDecomposition has 2 references, but exp in .* has 1 inputs"):
        relevance(torch.exp, [a], {torch.exp: TaylorDecomposition([0.0, 1.0])}, r)
    with pytest.raises(TypeError, match="bias must be True, False or a function"):
        TaylorDecomposition(bias="even")


@pytest.mark.parametrize("rule", [TaylorDecomposition(), ZPlus(), Epsilon(zero_bias=True)], ids=str)
def test_what_a_rule_runs_once_more_leaves_no_statistics(rule):
    norm, plain = (nn.BatchNorm1d(3).double().requires_grad_(False) for _ in range(2))
    x = carrier(4, 3)
    plain(x)
    with Composite({nn.BatchNorm1d: rule}).register(norm):
        if isinstance(rule, TaylorDecomposition):
            norm(x).sum().backward()
        else:
            with pytest.raises(RuleError, match=r"the model itself .* is (no such layer|not)"):
                norm(x)
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, plain.running_mean)
    assert torch.equal(norm.running_var, plain.running_var)


def test_rules_that_change_relu_gradients():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for rule, start, wanted in (
        (ReLUDeconvNet(), [1.0, -1.0, 1.0, 1.0, -1.0], [1.0, 0.0, 1.0, 1.0, 0.0]),
        (ReLUGuidedBackprop(), [1.0, -1.0, 1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 1.0, 0.0]),
        (ReLUBetaSmooth(2.0), [1.0] * 5, [1 / (1 + math.exp(-2 * value)) for value in (-2, -1, 0, 1, 2)]),
    ):
        for model, key in ((nn.ReLU(), nn.ReLU), (nn.Sequential(nn.ReLU()), ""), (Fn(lambda _, x: F.relu(x)), F.relu)):
            with Composite({key: rule}, formulation="gradient").register(model):
                z = model(x)
                assert torch.equal(z, x.relu())
                (found,) = torch.autograd.grad(z, x, torch.tensor(start).double())
            assert_close(found, torch.tensor(wanted, dtype=torch.float64), 1e-12)
        with pytest.raises(RuleError, match="needs formulation='gradient', not 'relevance'"):
            Composite({nn.ReLU: rule}).register(nn.ReLU())
        with pytest.raises(RuleError, match="fits ReLU only"):
            Composite({nn.GELU: rule}, formulation="gradient").register(nn.GELU())
    with pytest.raises(ValueError, match="beta must be above 0"):
        ReLUBetaSmooth(0.0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Epsilon(-1e-6), r"epsilon must be finite and in \[0, inf\]"), (lambda: UniformEpsilon(-1.0), "epsilon"),
    (lambda: ResidualGamma(0.0), r"gamma must be above 0.*Epsilon\(\)"), (lambda: ResidualGamma(-1.0), r"in \[0, in"),
    (lambda: TaylorDecomposition(float("nan")), "reference must be finite"),
    (lambda: TaylorDecomposition(epsilon=-1.0), "epsilon must be"),
])  # fmt: skip
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
