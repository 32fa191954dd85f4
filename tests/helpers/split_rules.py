"""Layers, split rules and their dense oracles."""

import oracles
import torch
from torch import nn

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

# All that a layer can be given: stride, dilation, groups, padding in all modes, output padding, no batch, many batches.
LAYERS = {
    "linear": (lambda **o: nn.Linear(5, 4, **o), (3, 5)),
    "linear, one sample": (lambda **o: nn.Linear(5, 4, **o), (5,)),
    "linear, three batch dimensions": (lambda **o: nn.Linear(3, 2, **o), (2, 1, 3, 3)),
    "conv1d, groups, dilation": (lambda **o: nn.Conv1d(4, 6, 3, 2, 1, dilation=2, groups=2, **o), (2, 4, 11)),
    "conv2d, uneven": (lambda **o: nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0), **o), (2, 2, 6, 5)),
    "conv2d, no batch": (lambda **o: nn.Conv2d(2, 3, 3, **o), (2, 6, 5)),
    "conv2d, depthwise": (lambda **o: nn.Conv2d(3, 6, 2, groups=3, **o), (2, 3, 4, 4)),
    "conv2d, same": (lambda **o: nn.Conv2d(2, 3, 3, padding="same", **o), (2, 2, 5, 4)),
    "conv2d, same, even kernel": (lambda **o: nn.Conv2d(2, 3, 4, padding="same", **o), (2, 2, 5, 4)),
    "conv2d, valid": (lambda **o: nn.Conv2d(2, 3, 3, padding="valid", **o), (2, 2, 5, 4)),
    "conv2d, reflect": (lambda **o: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", **o), (2, 2, 5, 4)),
    "conv1d, circular": (lambda **o: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", **o), (2, 2, 6)),
    "conv3d, replicate": (lambda **o: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate", **o), (1, 1, 3, 3, 2)),
    "conv3d": (lambda **o: nn.Conv3d(2, 2, 2, padding=1, stride=2, **o), (2, 2, 4, 3, 4)),
    "transpose1d, all arguments": (
        lambda **o: nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2, **o),
        (2, 4, 5),
    ),
    "transpose2d, uneven": (lambda **o: nn.ConvTranspose2d(2, 3, 3, (2, 1), 1, (1, 0), **o), (2, 2, 4, 3)),
    "transpose2d, no batch": (lambda **o: nn.ConvTranspose2d(2, 3, 3, **o), (2, 4, 3)),
    "transpose3d": (lambda **o: nn.ConvTranspose3d(2, 2, 2, stride=2, **o), (1, 2, 2, 2, 3)),
}


RULES = [
    (Epsilon(), oracles.epsilon()),
    (Epsilon(0.1), oracles.epsilon(0.1)),
    (Epsilon(zero_bias=True), oracles.epsilon(bias=0)),
    (Gamma(), oracles.gamma(0.25)),
    (Gamma(100.0), oracles.gamma(100.0)),
    (Gamma(0.0), oracles.epsilon()),
    (Gamma(0.5, zero_bias=True), oracles.gamma(0.5, bias=0)),
    (AlphaBeta(), oracles.alpha_beta(2.0, 1.0)),
    (AlphaBeta(3.5, 2.5, zero_bias=True), oracles.alpha_beta(3.5, 2.5, bias=0)),
    (ZPlus(), oracles.zplus()),
    (ZPlus(zero_bias=True), oracles.zplus(bias=0)),
    (ZBox(-2.0, 3.0), oracles.zbox(-2.0, 3.0)),
    (WSquare(), oracles.wsquare()),
    (WSquare(zero_bias=True), oracles.wsquare(bias=0)),
    (Flat(), oracles.flat()),
]


def layer_and_input(name, kind="signed", seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    make, shape = LAYERS[name]
    layer, x = make(**options).to(dtype).requires_grad_(False), torch.randn(shape, dtype=dtype)
    if kind != "signed":
        x = x.relu()
    if kind == "zero rows":
        x.reshape(-1)[: max(1, x.numel() // 2)] = 0
    return layer, x


def relevance(model, x, rule, r, formulation="relevance", key=None):
    """The relevance of x for the relevance r of the output, which comes out unchanged."""
    expected = model(x)
    x = x.clone().requires_grad_()
    composite = Composite({nn.Module if key is None else key: rule}, formulation=formulation)
    with composite.register(model):
        z = model(x)
        assert torch.equal(z, expected)
        z.backward(r if formulation == "relevance" else r / z.detach())
    return x.grad if formulation == "relevance" else x.grad * x.detach()


def expected_relevance(layer, x, r, rule, dense=None):
    """By the oracle, each sample by itself."""
    dense = dense_of(layer, x) if dense is None else dense
    if isinstance(layer, nn.Linear):
        rows = zip(x.reshape(-1, x.shape[-1]), r.reshape(-1, r.shape[-1]), strict=True)
        return torch.stack([dense.relevance(rule, *row) for row in rows]).reshape(x.shape)
    if x.dim() < layer.weight.dim():
        return dense.relevance(rule, x, r)
    return torch.cat([dense.relevance(rule, x[i : i + 1], r[i : i + 1]) for i in range(len(x))])


def dense_of(layer, x):
    if isinstance(layer, nn.Linear):
        return oracles.Dense(layer, x.shape[-1:])
    return oracles.Dense(layer, x.shape if x.dim() < layer.weight.dim() else (1, *x.shape[1:]))
