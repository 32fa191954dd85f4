"""AttnLRP written out operation by operation, straight from the paper: slow, explicit relevances, float64, no autograd.

Each operation is a pair: what it computes, and how the relevance of its output is handed to its inputs.
Source: Achtibat et al. 2024 (AttnLRP), sections 3.1 to 3.3: eq. 8 (epsilon, here with epsilon = 0), eq. 9 (identity),
propositions 3.1 (softmax), 3.2 (uniform), 3.3 (matrix products), 3.4 (norms).
"""

import torch


def shares(contributions, outputs, relevance):
    """R of each contribution: ``c / z * R`` where z is not 0."""
    return contributions * torch.where(outputs == 0, 0.0, relevance / torch.where(outputs == 0, 1.0, outputs))


def linear(x, weight, bias, relevance):
    """Eq. 8: ``R_i = sum_j x_i w_ji R_j / z_j``, z with its bias."""
    z = torch.einsum("...i,ji->...j", x, weight) + (0 if bias is None else bias)
    return x * torch.einsum("...j,ji->...i", shares(torch.ones_like(z), z, relevance), weight)


def add(a, b, relevance):
    """Eq. 8 for a sum: ``R_a = a / (a + b) R``."""
    return shares(a, a + b, relevance), shares(b, a + b, relevance)


def product(relevance):
    """Proposition 3.2: both factors of an elementwise product get the same."""
    return relevance / 2, relevance / 2


def matmul(a, b, relevance):
    """Proposition 3.3: ``R_A_ji = sum_p A_ji V_ip R_jp / (2 O_jp)`` for ``O_jp = sum_i A_ji V_ip``; likewise for V."""
    output = torch.einsum("...ji,...ip->...jp", a, b)
    each = torch.einsum("...ji,...ip->...jip", a, b)
    parts = shares(each, output.unsqueeze(-2).expand_as(each), relevance.unsqueeze(-2).expand_as(each)) / 2
    return parts.sum(-1), parts.sum(-3)


def softmax(x, relevance):
    """Proposition 3.1: ``R_i = x_i (R_i - s_i sum_j R_j)``; what is masked (-inf) gets 0."""
    s = x.softmax(-1)
    return torch.where(x.isinf(), 0.0, x.nan_to_num(neginf=0.0) * (relevance - s * relevance.sum(-1, keepdim=True)))


def layer_norm(x, weight, bias, eps, relevance):
    """Proposition 3.4: scaling by 1 / sigma and by the weight passes R; centering and the bias are linear."""
    centerd = x - x.mean(-1, keepdim=True)
    scale = weight / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
    z = centerd * scale + bias
    passed = shares(centerd * scale, z, relevance)
    size = x.shape[-1]
    centering = torch.eye(size, dtype=x.dtype) - 1 / size
    return linear(x, centering, None, passed)


def attention(q, k, v, scale, mask, relevance):
    """Softmax attention of one head: relevance of queries, keys and values. mask: 0 or -inf, added to the scores."""
    scores = torch.einsum("...jd,...id->...ji", q, k) * scale + mask
    weights = scores.softmax(-1)
    relevance_weights, relevance_v = matmul(weights, v, relevance)
    relevance_scores = softmax(scores, relevance_weights)
    relevance_q, relevance_k = matmul(q, k.transpose(-1, -2), torch.where(mask.isinf(), 0.0, relevance_scores))
    return relevance_q, relevance_k.transpose(-1, -2), relevance_v


def causal_mask(length):
    """-inf above the diagonal."""
    return torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)


def assert_near(relevance, expected, tolerance):
    """Elementwise, relative to the largest relevance."""
    assert relevance.shape == expected.shape
    assert float((relevance - expected).abs().max()) <= tolerance * float(expected.abs().max())
