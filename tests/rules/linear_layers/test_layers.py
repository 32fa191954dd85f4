"""Split rules on every kind of layer against dense oracles, elementwise in float64 and float32."""

import functools

import oracles
import pytest
import torch
from split_rules import LAYERS, RULES, dense_of, expected_relevance, layer_and_input, relevance
from support import Fn, assert_close, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import Epsilon, Flat, WSquare

IDS = [str(rule) for rule, _ in RULES]


@functools.cache
def known_dense(name, bias):
    """The matrix of a layer of the table; the same for float32, which its weights were drawn in."""
    return dense_of(*layer_and_input(name, bias=bias))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("rule", "oracle"), RULES, ids=IDS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, rule, oracle):
    """Signed inputs and rows of zeros among them; float64 elementwise, float32 within 1e-4."""
    for kind in ("signed", "non-negative", "zero rows"):
        for bias in (True, False):
            layer, x = layer_and_input(name, kind, bias=bias)
            z = layer(x)
            for r in (torch.randn_like(z), torch.randn_like(z) * z.relu()):
                wanted = expected_relevance(layer, x, r, oracle, known_dense(name, bias))
                assert_close(relevance(layer, x, rule, r), wanted, 1e-9)
    layer, x = layer_and_input(name, bias=True, dtype=torch.float32)
    r = torch.rand_like(layer(x)) * layer(x)
    found, wanted = relevance(layer, x, rule, r), expected_relevance(layer, x, r, oracle, known_dense(name, True))
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rule", [r for r, _ in RULES if "gradient" in r.formulations], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_relevance_is_input_times_gradient(name, rule):
    """``relevance(R = z * g) == x * gradient(g)``."""
    for kind in ("signed", "non-negative"):
        layer, x = layer_and_input(name, kind)
        z = layer(x)
        r = torch.randn_like(z) * z
        assert_close(relevance(layer, x, rule, r, "gradient"), relevance(layer, x, rule, r), 1e-10)


FUNCTIONS = {
    "linear": (F.linear, (3, 5), {"weight": (4, 5), "bias": (4,)}, {}),
    "conv1d": (F.conv1d, (2, 4, 9), {"weight": (2, 2, 3), "bias": (2,)}, {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": (F.conv2d, (2, 2, 5, 5), {"weight": (3, 2, 3, 2), "bias": (3,)}, {"dilation": (1, 2)}),
    "conv3d": (F.conv3d, (1, 1, 3, 3, 3), {"weight": (2, 1, 2, 2, 2), "bias": (2,)}, {"padding": (1, 0, 1)}),
    "conv_transpose1d": (F.conv_transpose1d, (2, 2, 4), {"weight": (2, 3, 3), "bias": (3,)}, {"stride": 2}),
    "conv_transpose2d": (
        F.conv_transpose2d, (1, 2, 3, 3), {"weight": (2, 2, 3, 3), "bias": (2,)},
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    "conv_transpose3d": (F.conv_transpose3d, (1, 2, 2, 2, 2), {"weight": (2, 1, 2, 2, 2), "bias": (1,)}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "oracle"), RULES, ids=IDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_keys(name, rule, oracle):
    """The same through ``F.linear`` and ``F.conv*`` as keys, however the arguments are given."""
    function, shape, sizes, options = FUNCTIONS[name]
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    given = {key: torch.randn(size, dtype=torch.float64) for key, size in sizes.items()}
    r = torch.randn_like(function(x, **given, **options))
    dense = oracles.Dense.of_function(lambda x, w, b: function(x, w, b, **options), x[:1].shape, *given.values())
    wanted = torch.cat([dense.relevance(oracle, x[i : i + 1], r[i : i + 1]) for i in range(len(x))])
    forms = [
        lambda _, x: function(x, given["weight"], given["bias"], **options),
        lambda _, x: function(input=x, bias=given["bias"], weight=given["weight"], **options),
        lambda _, x: function(x, **given, **options),
    ]
    for form in forms:
        assert_close(relevance(Fn(form), x, rule, r, key=function), wanted, 1e-9)


def batch_norm():
    layer = nn.BatchNorm2d(2).double().eval()
    with torch.no_grad():
        layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2), layer.weight.normal_(), layer.bias.normal_()
    return layer


OTHERS = {
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
    "adaptive_avg_pool": lambda: nn.AdaptiveAvgPool2d(2),
    "batch_norm": batch_norm,
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "zero_pad": lambda: nn.ZeroPad2d(1),
    "mean": lambda: Fn(lambda _, x: x.mean(-1)),
    "sum": lambda: Fn(lambda _, x: x.sum((1, 3), keepdim=True)),
}


@pytest.mark.parametrize(
    ("rule", "oracle"), [(r, o) for r, o in RULES if not isinstance(r, (Flat, Epsilon))], ids=label
)
@pytest.mark.parametrize("name", OTHERS)
def test_other_linear_layers(name, rule, oracle):
    """Pooling, eval batch norm and such are layers as well; what only moves relevance moves it."""
    torch.manual_seed(5)
    layer = OTHERS[name]()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    r = torch.randn_like(layer(x))
    dense = oracles.Dense(layer, x.shape)
    wanted = dense.relevance(oracle, x, r)
    if name == "zero_pad":
        wanted = (r.flatten() @ dense.weight).reshape(x.shape)  # exact, whatever the rule
    # The square of an average is small beside the stabilizer; the rule knows that all weights of a pool are equal.
    assert_close(relevance(layer, x, rule, r), wanted, 1e-4 if "pool" in name and isinstance(rule, WSquare) else 1e-9)
