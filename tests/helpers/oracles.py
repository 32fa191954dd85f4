"""The rules as their papers have them, written slowly: dense float64 matrices of contributions, element by element.

Nothing here knows the library. A layer is taken apart by feeding it unit vectors; what is compared is every element.
"""

import copy
import itertools

import torch
from torch import nn

STABILIZER = 1e-6


def signed(z, epsilon=STABILIZER):
    """z, moved away from 0 by epsilon; 0 counts as positive."""
    return z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z)


# ---- layers as matrices --------------------------------------------------------------------------------------------


def matrix_of(function, shape):
    """The matrix and the offset of an affine function of a tensor of this shape, one unit vector at a time."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        offset = function(torch.zeros(shape, dtype=torch.float64))
        units = torch.eye(size, dtype=torch.float64)
        columns = [(function(units[i].reshape(shape)) - offset).flatten() for i in range(size)]
    return torch.stack(columns, 1), offset.flatten()


class Dense:
    """A layer of one sample as ``z_j = sum_i x_i W_ji + b_j``; rules take x, and R at its output, both flat.

    Padding by other values than zeros is a layer of its own (it copies inputs), which only moves relevance back.
    """

    def __init__(self, layer, shape):
        layer = copy.deepcopy(layer).double()
        self.padding = None
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            mode, sides, given = layer.padding_mode, layer._reversed_padding_repeated_twice, shape
            self.padding, _ = matrix_of(lambda x: nn.functional.pad(x, sides, mode=mode), shape)
            layer.padding_mode, layer.padding = "zeros", (0,) * (len(sides) // 2)
            shape = nn.functional.pad(torch.zeros(given), sides, mode=mode).shape
        self.weight, self.bias = matrix_of(layer, shape)
        ones = copy.deepcopy(layer)
        for name, parameter in ones.named_parameters():
            parameter.data.fill_(float(name == "weight"))
        self.fed, _ = matrix_of(ones, shape)

    @classmethod
    def of_function(cls, function, shape, weight, bias):
        """The same for a function of input, weight and bias."""
        dense = cls.__new__(cls)
        dense.padding = None
        dense.weight, dense.bias = matrix_of(lambda x: function(x, weight, bias), shape)
        dense.fed, _ = matrix_of(lambda x: function(x, torch.ones_like(weight), None), shape)
        return dense

    def relevance(self, rule, x, r):
        """The relevance of x by ``rule(contributions, bias, r, ...)``."""
        flat = x.flatten().double()
        flat = flat if self.padding is None else self.padding @ flat
        found = rule(self, flat, r.flatten().double())
        found = found if self.padding is None else found @ self.padding
        return found.reshape(x.shape)


# ---- rules for layers: c[j, i] = x_i W_ji --------------------------------------------------------------------------


def shared(contributions, totals, r):
    """``R_i = sum_j contributions_ji / totals_j R_j``."""
    return (contributions / totals[:, None] * r[:, None]).sum(0)


def epsilon(value=STABILIZER, *, bias=1):
    def rule(dense, x, r):
        c = dense.weight * x
        return shared(c, signed(c.sum(1) + bias * dense.bias, value), r)

    return rule


def gamma(value, *, bias=1, stabilize=signed):
    """Contributions, and the bias, that have the sign of z weigh 1 + gamma."""

    def rule(dense, x, r):
        c, b = dense.weight * x, bias * dense.bias
        z = c.sum(1) + b
        sign = torch.where(z >= 0, 1.0, -1.0).to(z)
        weighted = c + value * torch.where(c * sign[:, None] > 0, c, 0)
        total = z + value * (torch.where(c * sign[:, None] > 0, c, 0).sum(1) + torch.where(b * sign > 0, b, 0))
        return shared(weighted, stabilize(total), r)

    return rule


def alpha_beta(alpha, beta, *, bias=1, stabilize=signed):
    """The positive part of the bias is one more positive contribution, its negative part one more negative one."""

    def rule(dense, x, r):
        c, b = dense.weight * x, bias * dense.bias
        above, below = c.clamp(min=0), c.clamp(max=0)
        found = alpha * shared(above, stabilize(above.sum(1) + b.clamp(min=0)), r)
        if beta:
            found = found - beta * shared(below, stabilize(below.sum(1) + b.clamp(max=0)), r)
        return found

    return rule


def zplus(**options):
    return alpha_beta(1.0, 0.0, **options)


def zbox(low, high):
    """`low` and `high`: numbers, or tensors of the size of one flat sample."""

    def rule(dense, x, r):
        w = dense.weight
        c = w * x - w.clamp(min=0) * low - w.clamp(max=0) * high
        return shared(c, signed(c.sum(1)), r)

    return rule


def wsquare(*, bias=1):
    def rule(dense, x, r):
        squares = dense.weight**2
        return shared(squares, signed(squares.sum(1) + bias * dense.bias**2), r)

    return rule


def flat():
    def rule(dense, x, r):
        return shared(dense.fed, signed(dense.fed.sum(1)), r)

    return rule


# ---- any operation -------------------------------------------------------------------------------------------------


def jacobian(function, x):
    """The matrix ``d z_j / d x_i``, one output after another, and z."""
    x = x.detach().clone().requires_grad_()
    z = function(x)
    rows = [torch.autograd.grad(z.flatten()[j], x, retain_graph=True)[0].flatten() for j in range(z.numel())]
    return torch.stack(rows), z.detach().flatten()


def epsilon_of(function, x, r, value=STABILIZER):
    """``R_i = x_i sum_j J_ji R_j / z_j`` for any function."""
    j, z = jacobian(function, x)
    return shared(j * x.detach().flatten(), signed(z, value), r.flatten()).reshape(x.shape)


def softmax_taylor(x, r, dim):
    """``R_i = x_i (R_i - s_i sum_j R_j)``, element by element."""
    found = torch.zeros_like(x)
    s = torch.softmax(x, dim)
    for place in itertools.product(*(range(size) for size in x.shape)):
        line = [*place]
        total = 0.0
        for k in range(x.shape[dim]):
            line[dim] = k
            total += r[tuple(line)]
        if x[place] != float("-inf"):
            found[place] = x[place] * (r[place] - s[place] * total)
    return found


def matmul_uniform_epsilon(a, b, r, value):
    """AttnLRP proposition 3.3, for two matrices: ``R_a = 1/2 a_ij sum_k b_jk R_ik / o_ik``."""
    o = signed(a @ b, value)
    r_a, r_b = torch.zeros_like(a), torch.zeros_like(b)
    for i, j, k in itertools.product(range(a.shape[0]), range(a.shape[1]), range(b.shape[1])):
        part = 0.5 * a[i, j] * b[j, k] * r[i, k] / o[i, k] if o[i, k] else 0.0  # a row of zeros: nothing to share
        r_a[i, j] += part
        r_b[j, k] += part
    return r_a, r_b


def residual_gamma(a, b, r, value):
    """``R_a = w_a a / (w_a a + w_b b) R`` with ``w = 1 + gamma`` for an operand that has the sign of the sum."""
    r_a, r_b = torch.zeros_like(r), torch.zeros_like(r)
    for place in itertools.product(*(range(size) for size in r.shape)):
        p, q = a[place], b[place]
        positive = p + q >= 0
        w_p = 1 + value * float((p >= 0) == positive)
        w_q = 1 + value * float((q >= 0) == positive)
        total = w_p * p + w_q * q
        shares = (w_p * p / total, w_q * q / total) if total else (0.5, 0.5)
        r_a[place], r_b[place] = shares[0] * r[place], shares[1] * r[place]
    return r_a, r_b


# ---- normalization -------------------------------------------------------------------------------------------------


def norm(frozen, x, r):
    """The epsilon rule for a normalization whose statistic does not move: `frozen` is affine in its argument."""
    weight, offset = matrix_of(frozen, x.shape)
    c = weight * x.flatten()
    return shared(c, c.sum(1) + offset, r.flatten()).reshape(x.shape)


# ---- attention -----------------------------------------------------------------------------------------------------


def attention(q, k, v, r, *, scale, mask=None):
    """One head, one operation after another: both products, the sum with a mask, softmax; without stabilizers."""
    raw = scale * q @ k.T
    scores = raw if mask is None else raw + mask
    r_weights, r_v = matmul_uniform_epsilon(torch.softmax(scores, 1), v, r, 0.0)
    r_scores = softmax_taylor(scores, r_weights, 1)
    r_raw = torch.where(scores.isinf() | (scores == 0), 0, r_scores * raw / scores)
    r_q, r_k = matmul_uniform_epsilon(q, k.T, r_raw, 0.0)
    return r_q, r_k.T, r_v


def linear(x, weight, bias, r):
    """The epsilon rule without a stabilizer for the rows of a matrix."""
    rows = []
    for sample, given in zip(x, r, strict=True):
        c = weight * sample
        rows.append(shared(c, c.sum(1) + (0 if bias is None else bias), given))
    return torch.stack(rows)


def multi_head(inputs, weights, r, *, heads, mask=None, ignored=None, extra=(), zero=False):
    """Multi-head attention of one sample, by its parts: projections, heads, output projection.

    Args:
        inputs: query, key and value, (length, width) each.
        weights: pairs of weight and bias of the projections of the three and of the output.
        r: the relevance of the output, (length, width).
        heads: their number.
        mask: added to the scores, (queries, keys).
        ignored: keys that are masked for all queries.
        extra: a row that is appended to the keys and one for the values.
        zero: whether a row of zeros is appended to both after that.
    """
    q, k, v = (x @ w.T + (0 if b is None else b) for x, (w, b) in zip(inputs, weights[:3], strict=True))
    own = len(k)
    if extra:
        k, v = torch.cat([k, extra[0]]), torch.cat([v, extra[1]])
    if zero:
        k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
    total = torch.zeros(len(q), len(k), dtype=q.dtype)
    if mask is not None:
        total[:, :own] += mask
    if ignored is not None:
        total[:, :own] += torch.where(ignored, float("-inf"), 0.0)
    split = [x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q, k, v)]
    scale = split[0].shape[-1] ** -0.5
    mixed = torch.cat([torch.softmax(scale * a @ b.T + total, 1) @ c for a, b, c in zip(*split, strict=True)], 1)
    r_mixed = linear(mixed, *weights[3], r).unflatten(1, (heads, -1)).transpose(0, 1)
    parts = [attention(*x, scale=scale, mask=total) for x in zip(*split, r_mixed, strict=True)]
    joined = [torch.cat(part, 1) for part in zip(*parts, strict=True)]
    joined = [joined[0], joined[1][:own], joined[2][:own]]
    return [linear(x, *pair, given) for x, pair, given in zip(inputs, weights[:3], joined, strict=True)]
