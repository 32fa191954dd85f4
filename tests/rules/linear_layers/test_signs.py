"""Signs in graphs: what is proven holds for any data, what is not proven is not claimed."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose.ops.signs import sign_of
from lxt_compose.rules.linear_layers.branches import is_nonnegative, without_choices
from lxt_compose.rules.linear_layers.signs import is_never_negative

NOT_NEGATIVE = {
    "relu": F.relu, "relu6": F.relu6, "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(-1), "exp": torch.exp,
    "abs": torch.abs, "square": torch.square, "x ** 2": lambda x: x**2, "x ** 4": lambda x: x**4,
    "x * x": lambda x: x * x, "softplus": F.softplus, "hardsigmoid": F.hardsigmoid, "norm": lambda x: x.norm(dim=-1),
    "var": lambda x: x.var(-1), "std": lambda x: x.std(-1), "clamp": lambda x: x.clamp(0.5, 2),
    "mask": lambda x: (x > 0).to(x.dtype), "detached": lambda x: x.relu().detach(), "cosh": torch.cosh,
    "max pool": lambda x: F.max_pool2d(x.relu(), 2), "avg pool": lambda x: F.avg_pool2d(x.relu(), 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x.relu(), 2), "mean": lambda x: x.relu().mean(-1),
    "sum": lambda x: x.exp().sum(1), "sum of two": lambda x: x.relu() + x.abs() * 2,
    "cat": lambda x: torch.cat([x.relu(), x.sigmoid()], 1), "max": lambda x: torch.maximum(x.relu(), x.abs()),
    "product": lambda x: x.relu() * x.sigmoid(), "matrices": lambda x: x.relu() @ x.abs().mT,
    "pad": lambda x: F.pad(x.relu(), (1, 1)), "reflect": lambda x: F.pad(x.relu(), (1, 1, 1, 1), mode="reflect"),
    "moves": lambda x: x.relu().mT.reshape(3, -1)[:, 1:].flip(0), "largest": lambda x: x.relu().max(-1).values,
    "index": lambda x: x.relu()[torch.tensor([1, 0])], "zeros": lambda x: torch.zeros_like(x),
    "where": lambda x: torch.where(x > 0, x.relu(), x.abs()),
    "upsample": lambda x: F.interpolate(x.relu(), scale_factor=2),
    "linear": lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bilinear"), "silu": lambda x: F.silu(x.relu()),
    "gelu": lambda x: F.gelu(x.relu()), "tanh": lambda x: x.relu().tanh(), "sqrt": lambda x: x.relu().sqrt(),
    "in place": lambda x: F.relu_(x.clone()), "in place, by identity": lambda x: (y := x.clone(), F.relu_(y))[0],
    "added in place": lambda x: x.relu().add_(x.abs()), "seen through a view": lambda x: x.relu().view(-1)[2:],
    "by another name": lambda x: (y := x.clone(), v := y.detach(), F.relu_(y.detach()), v.detach())[3],
    "a view of it": lambda x: (y := x.clone(), v := y[0], F.relu_(y.detach()), v * 2)[3],
    "changed and rectified": lambda x: (y := x.relu(), y.sub_(1), F.relu_(y))[0],
    "double": lambda x: x.relu().to(torch.float64).float(), "dropout": lambda x: F.dropout(x.relu(), 0.5, False),
}  # fmt: skip
UNKNOWN = {
    "input": lambda x: x * 1, "difference": lambda x: x.relu() - x.abs(), "negated": lambda x: -x.relu(),
    "scaled": lambda x: x.relu() * -1.0,
    "shifted": lambda x: x.relu() + -0.1, "alpha": lambda x: torch.add(x.relu(), x.abs(), alpha=-1),
    "quotient": lambda x: 1 / (x.relu() * -0.0).abs().neg(), "x ** 3": lambda x: x**3, "gelu": F.gelu,
    "silu": F.silu, "log": lambda x: x.exp().log(), "pad": lambda x: F.pad(x.relu(), (1, 1), value=-1.0),
    "cat": lambda x: torch.cat([x.relu(), x], 1), "clamp": lambda x: x.clamp(-0.5, 2), "layer": lambda x: x.relu() @ W,
    "upside down": lambda x: x.clamp(0, -1), "cubic": lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bicubic"),
    "changed in place": lambda x: (y := x.relu(), y.sub_(1))[0],
    "changed through a view": lambda x: (y := x.relu(), y[0].sub_(1))[0],
    "a view of what was changed": lambda x: (y := torch.zeros_like(x), y.view(-1), y.sub_(1))[1].view(x.shape),
    "written into": lambda x: torch.zeros_like(x).copy_(x), "filled": lambda x: x.relu().fill_(-1.0),
    "part rectified": lambda x: (y := x.clone(), F.relu_(y[0]))[0], "power": lambda x: x.relu() ** -1.0,
    "bits": lambda x: x.relu().view(torch.int32).view(torch.float32), "integers": lambda x: x.relu().long().float(),
    "more than was rectified": lambda x: (
        y := x.clone(), v := y[0], w := v.as_strided(x.shape, x.stride()), F.relu_(v), w * 2
    )[4],
    "beyond a view": lambda x: x.clone()[0].relu_().as_strided(x.shape, x.stride()),
    "rsqrt": lambda x: x.relu().rsqrt(),
}  # fmt: skip
W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


def values():
    """Numbers of both signs, and what is no ordinary number."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-45, 3e38])
    return [x, x.abs().neg(), torch.cat([special, x.flatten()[:88]]).reshape(x.shape)]


def proven(function, x, mode="real"):
    found = []

    def watched(x):
        y = function(x)
        found.append(is_never_negative(y))
        return y

    make_fx(watched, tracing_mode=mode)(x)
    return found[0]


@pytest.mark.parametrize("mode", ["real", "symbolic"])
@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_what_is_never_negative_is_known(name, mode):
    if mode == "symbolic" and name in ("moves", "index", "linear"):
        pytest.skip("sizes that are numbers, and what is taken apart into differences")
    assert proven(NOT_NEGATIVE[name], values()[0].clone(), mode)


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_it_is_not_for_any_data(name):
    for x in values():
        assert not (NOT_NEGATIVE[name](x.clone()) < 0).any()


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_be_negative_is_not_claimed(name):
    assert not proven(UNKNOWN[name], values()[0].clone())


def test_inputs_and_weights_are_not_known():
    assert not proven(lambda x: x, torch.rand(3))
    assert not is_never_negative(torch.rand(3))  # outside of a trace


ALWAYS = [name for name in dir(torch.ops.aten) if sign_of(name).always and hasattr(torch, name)]


@pytest.mark.parametrize("name", ALWAYS)
def test_operations_that_are_said_to_put_out_no_negative_number_do_not(name):
    function = getattr(torch, name)
    for x in values():
        for dtype in (torch.float32, torch.float64):
            try:
                found = function(x.to(dtype).clone())
            except (TypeError, RuntimeError):  # it takes more arguments
                continue
            assert not (found < 0).any()


KEPT = [name for name in dir(torch) if not name.endswith("_") and sign_of(name).kept and callable(getattr(torch, name))]


@pytest.mark.parametrize("name", KEPT)
def test_operations_that_are_said_to_keep_the_sign_do(name):
    function = getattr(torch, name)
    x = torch.cat([values()[0].abs().flatten(), torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45])])
    for given in (x, x[:96].reshape(12, 8), values()[0].abs()):
        for args in ((given,), (given, given), (given, given, given), ([given, given],), (given, 0), (given, 2)):
            try:
                found = function(*args)
            except Exception:  # of whatever kind: it takes other arguments
                continue
            each = found if isinstance(found, (list, tuple)) else [found]
            assert not any((one < 0).any() for one in each if isinstance(one, torch.Tensor) and one.is_floating_point())


def test_nan_is_not_negative_and_asks_for_no_other_way():
    for x, said in ((torch.tensor([1.0, float("nan")]), True), (torch.tensor([-1.0, float("nan")]), False),
                    (torch.tensor([-0.0, 0.0]), True), (torch.tensor([]), True)):  # fmt: skip
        assert is_nonnegative(x) is said
        assert bool(make_fx(lambda x: is_nonnegative(x) + torch.zeros(()))(x)(x)) is said


def test_a_graph_to_be_differentiated_assumes_nothing():
    def asked(x):
        with without_choices():
            found.append(is_nonnegative(x.relu()))
        found.append(is_nonnegative(x.relu()))
        return x * 1

    found = []
    make_fx(asked)(torch.randn(3))
    assert isinstance(found[0], torch.Tensor)
    assert found[1] is True
