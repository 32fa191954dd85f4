"""Drop-in functions against the papers' equations, written out index by index in float64."""

import importlib
import inspect
from itertools import product

import pytest
import torch
from support import assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose.autograd import saved_values as saving
from lxt_compose.lxt import functional as R
from lxt_compose.lxt.modules import LinearEpsilon, MultiheadAttentionCP, RMSNormIdentity, SoftmaxDT

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def leaf(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + 100 * len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def relevance(z, *inputs, seed=9):
    """A random relevance of z, and what each input gets of it."""
    given = leaf(*z.shape, seed=seed, dtype=z.dtype).detach()
    return given, torch.autograd.grad(z, inputs, given)


def stab(z, epsilon):
    return z + (epsilon if z >= 0 else -epsilon)


def source(index, shape):
    """The index, in a tensor of `shape`, of what was broadcast to `index`."""
    own = index[len(index) - len(shape) :]
    return tuple(0 if size == 1 else i for i, size in zip(own, shape, strict=True))


def everywhere(shape):
    return product(*map(range, shape))


BROADCASTS = [((3,), (3,)), ((3, 1), (4,)), ((2, 1, 3), (5, 1)), ((), (2, 3)), ((2, 3), (1, 1)), ((1, 4), (3, 1, 4))]


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("alpha", [1, -2.5])
def test_add2_is_the_epsilon_rule_with_broadcasting(shapes, alpha):
    a, b = (leaf(*shape, seed=i) for i, shape in enumerate(shapes))
    z = R.add2(a, b, epsilon=1e-3, alpha=alpha)
    assert torch.equal(z, torch.add(a, b, alpha=alpha))
    given, found = relevance(z, a, b)
    expected = [torch.zeros_like(a), torch.zeros_like(b)]
    for index in everywhere(z.shape):
        terms = [a[source(index, a.shape)], alpha * b[source(index, b.shape)]]
        for one, term, shape in zip(expected, terms, shapes, strict=True):
            one[source(index, shape)] += term.detach() * given[index] / stab(sum(terms).detach(), 1e-3)
    assert_close(found[0], expected[0], 1e-12)
    assert_close(found[1], expected[1], 1e-12)


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
def test_mul2_shares_evenly_and_sums_over_broadcast_dimensions(shapes):
    a, b = (leaf(*shape, seed=i) for i, shape in enumerate(shapes))
    z = R.mul2(a, b)
    assert torch.equal(z, a * b)
    given, found = relevance(z, a, b)
    expected = [torch.zeros_like(a), torch.zeros_like(b)]
    for index in everywhere(z.shape):
        for one, shape in zip(expected, shapes, strict=True):
            one[source(index, shape)] += given[index] / 2
    assert_close(found[0], expected[0], 1e-12)
    assert_close(found[1], expected[1], 1e-12)


@pytest.mark.parametrize("constant", [2.5, 3, "tensor", "broadcast"])
def test_constants_keep_their_share_of_a_sum_and_get_none_of_a_product(constant):
    a = leaf(2, 3)
    shapes = {"tensor": (2, 3), "broadcast": (4, 1, 3)}
    number = leaf(*shapes[constant], seed=1).detach() if constant in shapes else constant
    for one, other in ((a, number), (number, a)):
        z = R.mul2(one, other)
        assert torch.equal(z, one * other)
        given, (found,) = relevance(z, a)
        assert_close(found, given if z.dim() == 2 else given.sum(0), 1e-12)
        z = R.add2(one, other, epsilon=1e-6)
        given, (found,) = relevance(z, a)
        shares = a.detach() * given / (z.detach() + torch.where(z >= 0, 1e-6, -1e-6))
        assert_close(found, shares if z.dim() == 2 else shares.sum(0), 1e-12)


def test_a_tensor_with_itself():
    a = leaf(4)
    for function in (R.add2, R.mul2):
        given, (found,) = relevance(function(a, a), a)
        assert_close(found, given, 1e-6)


MATRICES = [((2, 3), (3, 4)), ((2, 1, 2, 3), (4, 3, 2)), ((5, 2, 3), (3, 2))]
MATMULS = [*MATRICES, ((3,), (3, 2)), ((2, 3), (3,)), ((4,), (4,))]


@pytest.mark.parametrize("shapes", MATMULS, ids=str)
@pytest.mark.parametrize("carriers", ["both", "first", "second"])
def test_matmul_is_the_uniform_epsilon_rule(shapes, carriers):
    a, b = (leaf(*shape, seed=i) for i, shape in enumerate(shapes))
    a, b = (a.detach() if carriers == "second" else a), (b.detach() if carriers == "first" else b)
    z = R.matmul(a, b, epsilon=1e-3)
    assert torch.equal(z, torch.matmul(a, b))
    inputs = [x for x in (a, b) if x.requires_grad]
    given, found = relevance(z, *inputs)
    # as matrices, so that one loop fits all: vectors are rows or columns
    a2, b2 = (a[None] if a.dim() == 1 else a), (b[:, None] if b.dim() == 1 else b)
    batch = torch.broadcast_shapes(a2.shape[:-2], b2.shape[:-2])
    wide = given.reshape(*batch, a2.shape[-2], b2.shape[-1])
    expected = {id(a): torch.zeros_like(a2), id(b): torch.zeros_like(b2)}
    for index in everywhere(wide.shape):
        i, k, batch_index = index[-2], index[-1], index[:-2]
        at_a, at_b = source(batch_index, a2.shape[:-2]), source(batch_index, b2.shape[:-2])
        terms = [(a2[(*at_a, i, j)] * b2[(*at_b, j, k)]).item() for j in range(a2.shape[-1])]
        for j, term in enumerate(terms):
            part = term * wide[index] / (len(inputs) * stab(sum(terms), 1e-3))
            expected[id(a)][(*at_a, i, j)] += part
            expected[id(b)][(*at_b, j, k)] += part
    for x, one in zip(inputs, found, strict=True):
        assert_close(one, expected[id(x)].detach().reshape(x.shape), 1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_linear_epsilon(bias, batch):
    x, weight, offset = leaf(*batch, 4), leaf(3, 4, seed=1), leaf(3, seed=2) if bias else None
    z = R.linear_epsilon(x, weight, offset, epsilon=1e-3)
    assert torch.equal(z, F.linear(x, weight, offset))
    given, (found,) = relevance(z, x)
    expected = torch.zeros_like(x)
    for at in everywhere(batch):
        for j, i in product(range(3), range(4)):
            total = sum(x[(*at, k)] * weight[j, k] for k in range(4)) + (offset[j] if bias else 0)
            expected[(*at, i)] += (x[(*at, i)] * weight[j, i]).detach() * given[(*at, j)] / stab(total.detach(), 1e-3)
    assert_close(found, expected.detach(), 1e-12)


def test_weights_are_constants_and_get_nothing():
    x, weight, bias = leaf(2, 4), leaf(4, 4, seed=1), leaf(4, seed=2)
    norm = leaf(4, seed=3)
    (
        R.linear_epsilon(x, weight, bias) + R.layer_norm(x, norm, bias, 1e-5) + R.rms_norm_identity(x, norm, 1e-5)
    ).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    assert bias.grad is None
    assert norm.grad is None


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3])
def test_softmax_along_any_dimension(dim, temperature):
    x = leaf(2, 3, 4)
    s = R.softmax(x, dim, temperature=temperature)
    torch.testing.assert_close(s, torch.softmax(x / temperature, dim))
    given, (found,) = relevance(s, x)
    expected = torch.zeros_like(x)
    rows = x.detach().movedim(dim, -1), given.movedim(dim, -1), expected.movedim(dim, -1)
    for at in everywhere(rows[0].shape[:-1]):
        row, start, into = (tensor[at] for tensor in rows)
        total = sum(torch.exp(value / temperature) for value in row)
        for i, value in enumerate(row):
            # Taylor expansion of each output j at the input: R_i = sum_j x_i ds_j/dx_i R_j / s_j
            for j in range(len(row)):
                s_i, s_j = torch.exp(value / temperature) / total, torch.exp(row[j] / temperature) / total
                slope = s_j * ((i == j) * 1.0 - s_i) / temperature
                into[i] += value * slope * start[j] / s_j
    assert_close(found, expected, 1e-12)


def test_masked_inputs_get_0_also_where_all_is_masked():
    x = leaf(3, 3).detach()
    x[0, 1] = x[2, :] = -torch.inf
    x.requires_grad_()
    for dim in (0, 1):
        _, (found,) = relevance(R.softmax(x, dim), x)
        assert torch.isfinite(found).all()
        assert (found[x.isinf()] == 0).all()
    kept = x[1:2, :].detach().requires_grad_()
    _, (expected,) = relevance(R.softmax(kept, 1), kept)
    _, (found,) = relevance(R.softmax(torch.cat([kept, x[2:].detach()]), 1)[:1], kept)
    assert_close(found, expected, 1e-12)


def test_softmax_to_another_dtype():
    x = leaf(2, 4, dtype=torch.float16)
    s = R.softmax(x, -1, dtype=torch.float32)
    assert s.dtype == torch.float32
    _, (found,) = relevance(s, x)
    assert found.dtype == torch.float16
    _, (expected,) = relevance(R.softmax(x.double(), -1), x)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("keep", [{"keep_dim": True}, {"keepdim": True}, {"keep_dim": False}, {}])
@pytest.mark.parametrize("dim", [0, 1, -1, (0, 2), (-1, 1), None])
def test_mean_over_any_dimensions(dim, keep):
    x = leaf(2, 3, 4)
    z = R.mean(x, dim, epsilon=1e-3, **keep)
    assert_close(z.detach(), x.detach().mean(dim, **({"keepdim": True} if any(keep.values()) else {})), 1e-14)
    given, (found,) = relevance(z, x)
    dims = {d % 3 for d in ((dim,) if isinstance(dim, int) else dim or range(3))}
    kept = [1 if d in dims else size for d, size in enumerate(x.shape)]
    count = torch.Size(x.shape[d] for d in dims).numel()
    start, expected = given.reshape(kept), torch.zeros_like(x)
    for index in everywhere(kept):
        members = [at for at in everywhere(x.shape) if all(d in dims or at[d] == index[d] for d in range(3))]
        average = sum(x[at].item() for at in members) / count
        for at in members:
            expected[at] = x[at].item() / count * start[index] / stab(average, 1e-3)
    assert_close(found, expected.detach(), 1e-12)


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_layer_norm(shape, affine):
    x = leaf(2, 3, 4)
    weight = None if affine == "none" else leaf(*shape, seed=1)
    bias = leaf(*shape, seed=2) if affine == "both" else None
    z = R.layer_norm(x, weight, bias, 0.1, normalized_shape=shape)
    assert torch.equal(z, F.layer_norm(x, shape, weight, bias, 0.1))
    given, (found,) = relevance(z, x)
    flat, count = x.detach().reshape(-1, torch.Size(shape).numel()), torch.Size(shape).numel()
    starts, expected = given.reshape(flat.shape), torch.zeros_like(flat)
    for n, row in enumerate(flat):
        average = sum(row) / count
        sigma = (sum((value - average) ** 2 for value in row) / count + 0.1) ** 0.5  # a constant
        for j in range(count):
            w = 1.0 if weight is None else weight.flatten()[j].item()
            b = 0.0 if bias is None else bias.flatten()[j].item()
            total = (row[j] - average) / sigma * w + b
            for i in range(count):
                contribution = row[i] * ((i == j) * 1.0 - 1 / count) / sigma * w
                expected[n, i] += contribution * starts[n, j] / stab(total, 1e-15)
    assert_close(found, expected.reshape(x.shape), 1e-9)


def test_layer_norm_takes_its_shape_from_the_weight():
    x, weight = leaf(2, 3, 4), leaf(3, 4, seed=1)
    assert torch.equal(R.layer_norm(x, weight, None, 1e-5), F.layer_norm(x, (3, 4), weight, None, 1e-5))
    assert torch.equal(R.layer_norm(x, None, None, 1e-5), F.layer_norm(x, (4,), None, None, 1e-5))


@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_identity(weighted):
    x, weight = leaf(2, 3, 4), leaf(4, seed=1) if weighted else None
    z = R.rms_norm_identity(x, weight, 0.1)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * (1 if weight is None else weight)
    assert_close(z.detach(), expected.detach(), 1e-14)
    given, (found,) = relevance(z, x)
    assert torch.equal(found, given)


@pytest.mark.parametrize(("p", "dim"), [(2.0, 1), (1.0, 0), (3.0, -1), (2.0, (0, 2))])
def test_normalize(p, dim):
    x = leaf(2, 3, 4)
    z = R.normalize(x, p, dim)
    assert torch.equal(z, F.normalize(x, p, dim))
    given, (found,) = relevance(z, x)
    assert torch.equal(found, given)


def test_normalize_refuses_out():
    with pytest.raises(ValueError, match=r"normalize\(\) takes no out="):
        R.normalize(leaf(2, 3), out=torch.empty(2, 3))


class TestEpsilonLrp:
    def test_it_is_input_times_jacobian_for_any_function(self):
        x, y, constant = leaf(3), leaf(3, seed=1), leaf(3, seed=2).detach()

        def function(a, b, c, scale):
            return torch.stack([a.prod() * b[0], (a * b * c).sum() * scale, torch.tanh(a[1]) + c[0]])

        z = R.epsilon_lrp(function, 1e-3, x, y, constant, 2.0)
        assert torch.equal(z, function(x, y, constant, 2.0))
        given, found = relevance(z, x, y)
        step, expected = 1e-6, [torch.zeros(3, dtype=torch.float64) for _ in range(2)]
        values = [x.detach(), y.detach(), constant, 2.0]
        for which, i in product(range(2), range(3)):
            up, down = ([v.clone() if isinstance(v, torch.Tensor) else v for v in values] for _ in range(2))
            up[which][i] += step
            down[which][i] -= step
            slope = (function(*up) - function(*down)) / (2 * step)
            for j in range(3):
                expected[which][i] += values[which][i] * slope[j] * given[j] / stab(z[j].item(), 1e-3)
        assert_close(found[0], expected[0], 1e-6)
        assert_close(found[1], expected[1], 1e-6)

    def test_several_outputs_in_a_container(self):
        x = leaf(4)
        outputs = R.epsilon_lrp(lambda t: {"twice": 2 * t, "rest": (t.detach(), 7)}, 0.0, x)
        assert outputs["rest"][1] == 7
        assert not outputs["rest"][0].requires_grad
        given, (found,) = relevance(outputs["twice"], x)
        assert_close(found, given, 1e-12)

    def test_parameters_of_the_function_get_nothing(self):
        layer, x = nn.Linear(4, 3).double(), leaf(2, 4)
        R.epsilon_lrp(layer, 1e-6, x).sum().backward()
        assert layer.weight.grad is None
        assert layer.bias.grad is None
        (expected,) = torch.autograd.grad(R.linear_epsilon(x, layer.weight, layer.bias).sum(), x)
        assert_close(x.grad, expected, 1e-12)

    def test_backward_can_run_twice(self):
        x = leaf(4)
        z = R.epsilon_lrp(lambda t: t**2, 1e-6, x).sum()
        first = torch.autograd.grad(z, x, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(z, x)[0], first)

    def test_an_input_that_does_not_matter(self):
        x, y = leaf(3), leaf(3, seed=1)
        z = R.epsilon_lrp(lambda a, b: 2 * a, 1e-6, x, y)
        z.sum().backward()
        assert y.grad is None or (y.grad == 0).all()
        assert x.grad.abs().sum() > 0


class TestIdentityAndStop:
    @pytest.mark.parametrize("function", [torch.sigmoid, nn.GELU(), lambda x: x.reshape(-1)], ids=["f", "m", "view"])
    def test_identity(self, function):
        x = leaf(2, 3)
        z = R.identity(function, x)
        assert torch.equal(z, function(x))
        given, (found,) = relevance(z, x)
        assert torch.equal(found, given.reshape(2, 3))

    def test_identity_refuses_another_number_of_elements(self):
        with pytest.raises(ValueError, match=r"another number of elements than the 6 .*; use epsilon_lrp\(\)"):
            R.identity(lambda x: x.sum(1), leaf(2, 3))

    @pytest.mark.parametrize("function", [R.identity, R.stop_relevance])
    def test_functions_that_work_in_place_are_refused(self, function):
        with pytest.raises(RuntimeError, match="changes its input in place"):
            function(nn.ReLU(inplace=True), leaf(2, 3) * 1)

    def test_stop_relevance(self):
        x = leaf(3)
        stopped = R.stop_relevance(lambda t: (t * 2, "kept"), x)
        assert stopped[1] == "kept"
        assert torch.equal(stopped[0], 2 * x)
        # what is stopped is a constant to the functions after it
        given, (found,) = relevance(R.mul2(x, stopped[0]), x)
        assert torch.equal(found, given)


CALLS = {
    "linear_epsilon": lambda x: R.linear_epsilon(x, torch.zeros_like(x)),
    "add2": lambda x: R.add2(x, -x.detach()),
    "mul2": lambda x: R.mul2(x, x),
    "matmul": lambda x: R.matmul(x, torch.zeros_like(x).T),
    "softmax": lambda x: R.softmax(x, 0),
    "mean": lambda x: R.mean(x, -1, False),
    "layer_norm": lambda x: R.layer_norm(x, None, None, 0.0 if x.dtype == torch.float64 else 1e-5),
    "rms_norm_identity": lambda x: R.rms_norm_identity(x, None, 1e-5),
    "normalize": lambda x: R.normalize(x),
    "epsilon_lrp": lambda x: R.epsilon_lrp(torch.relu, 1e-8, x),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_finite_at_zeros_in_every_dtype(name, dtype):
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 1e-4], [3.0, 2.0, 1.0]], dtype=dtype, requires_grad=True)
    z = CALLS[name](x)
    assert z.dtype == dtype
    keep = torch.isfinite(z)  # a row of zeros over its standard deviation 0 is not a number in torch either
    given = torch.where(keep, torch.ones_like(z), torch.zeros_like(z))
    (found,) = torch.autograd.grad(z, x, given)
    assert found.dtype == dtype
    assert torch.isfinite(found[keep.reshape(3, -1).all(1)]).all()


@pytest.mark.parametrize("name", CALLS)
def test_without_carriers_they_are_plain_functions(name):
    x = leaf(3, 3).detach()
    assert not CALLS[name](x).requires_grad
    with torch.no_grad():
        assert not CALLS[name](leaf(3, 3)).requires_grad


@pytest.mark.parametrize("name", ["linear_epsilon", "add2", "matmul", "softmax", "mean", "layer_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near_double(name, dtype):
    wide = leaf(4, 4).detach().abs() + 0.5  # positive, so that sums do not cancel
    functions = {
        "linear_epsilon": lambda x: R.linear_epsilon(x, x.detach()),
        "add2": lambda x: R.add2(x, x.detach() + 1),
        "matmul": lambda x: R.matmul(x, x.T),
        "softmax": lambda x: R.softmax(x, -1),
        "mean": lambda x: R.mean(x, -1),
        "layer_norm": lambda x: R.layer_norm(x, None, torch.full((4,), 3.0, dtype=x.dtype), 1e-5),
    }
    found = []
    for kind in (dtype, torch.float64):
        x = wide.to(dtype).to(kind).requires_grad_()
        z = functions[name](x)
        found.append(torch.autograd.grad(z, x, torch.ones_like(z))[0].double())
    distance = (found[0] - found[1]).abs().max() / found[1].abs().max()
    # the stabilizer is at least the dtype's resolution (1e-2 for bfloat16), the sums are rounded to its eps
    assert distance < 8 * max(torch.finfo(dtype).eps, torch.finfo(dtype).resolution)


def test_what_is_noted_about_saved_tensors_does_not_pile_up():
    x = leaf(3, 3)
    for _ in range(1500):
        R.add2(R.matmul(x, x), R.mean(x, 0)).sum().backward()
    assert len(list(saving._threads.notes)) < 5000


def test_a_result_that_is_changed_in_place_is_an_error_of_torch_and_no_wrong_relevance():
    x = leaf(2, 4)
    z = R.linear_epsilon(x, leaf(3, 4, seed=1))
    z.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


class TestNumbersAndFlags:
    """True and False are no numbers, numbers are no flags: an argument of another version's order is an error."""

    @pytest.mark.parametrize("temperature", [False, True, "1", None])
    def test_a_temperature_that_is_no_number(self, temperature):
        for make in (lambda: R.softmax(leaf(2, 3), -1, None, temperature), lambda: SoftmaxDT(-1, None, temperature)):
            with pytest.raises(TypeError, match="temperature must be a number, got"):
                make()

    @pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan"), float("inf")])
    def test_a_temperature_that_is_not_positive(self, temperature):
        for make in (lambda: R.softmax(leaf(2, 3), -1, None, temperature), lambda: SoftmaxDT(-1, None, temperature)):
            with pytest.raises(ValueError, match="temperature must be"):
                make()

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda x: R.add2(x, x, 1e-6), "inplace"),
            (lambda x: R.mul2(x, x, 1), "inplace"),
            (lambda x: R.matmul(x, x, 1e-6), "inplace"),
            (lambda x: R.softmax(x, -1, None, 1.0, 2.0), "inplace"),
            (lambda x: R.mean(x, -1, 1e-6), "keep_dim"),
            (lambda x: R.mean(x, -1, keepdim=1), "keep_dim"),
            (lambda x: SoftmaxDT(-1, None, 1.0, 0), "inplace"),
        ],
    )
    def test_numbers_are_no_flags(self, call, name):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
            call(leaf(3, 3))

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda x, e: R.linear_epsilon(x, x, None, e), "epsilon"),
            (lambda x, e: R.add2(x, x, False, e), "epsilon"),
            (lambda x, e: R.add2(x, x, alpha=e), "alpha"),
            (lambda x, e: R.matmul(x, x, False, e), "epsilon"),
            (lambda x, e: R.mean(x, -1, False, e), "epsilon"),
            (lambda x, e: R.layer_norm(x, None, None, e), "variance_epsilon"),
            (lambda x, e: R.rms_norm_identity(x, None, e), "variance_epsilon"),
            (lambda x, e: R.normalize(x, e), "p"),
            (lambda x, e: R.normalize(x, 2.0, 1, e), "eps"),
            (lambda x, e: R.epsilon_lrp(torch.tanh, e, x), "epsilon"),
            (lambda x, e: LinearEpsilon(3, 3, epsilon=e), "epsilon"),
            (lambda x, e: RMSNormIdentity(3, e), "eps"),
            (lambda x, e: MultiheadAttentionCP(4, 2, epsilon=e), "epsilon"),
        ],
    )
    def test_flags_are_no_numbers(self, call, name):
        for flag in (True, False):
            with pytest.raises(TypeError, match=f"{name} must be a number, got {flag}"):
                call(leaf(3, 3), flag)

    def test_norms_of_any_order(self):
        x = leaf(2, 3)
        assert torch.equal(R.normalize(x, float("inf"), 1), F.normalize(x, float("inf"), 1))


def test_the_public_paths_export_what_they_define_and_nothing_else():
    for name in ("functional", "modules", "kinds"):
        public = importlib.import_module(f"lxt_compose.{name}")
        names = {n for n in vars(public) if not n.startswith("_")}
        assert names == set(public.__all__), name
        assert not any(inspect.ismodule(getattr(public, n)) for n in names)
