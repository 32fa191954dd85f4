"""Norm: the statistic is held constant, weight and bias are a layer."""

import oracles
import pytest
import torch
from support import assert_close
from torch.nn import functional as F
from under_rules import both, carrier, tensor

from lxt_compose import Norm


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
    "renorm": (lambda x: torch.renorm(x, 2.0, 0, 1.5), lambda x: scaled(x, x / torch.renorm(x, 2.0, 0, 1.5))),
    "renorm_": (lambda x: (x * 1).renorm_(1.0, -1, 2.0), lambda x: scaled(x, x / torch.renorm(x, 1.0, 2, 2.0))),
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
