"""Kernels of other libraries: quantized layers, also where they have no backward."""

import copy
import importlib
import sys
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, ZPlus
from lxt_compose.ops import registered
from lxt_compose.runtime.known_libraries import _collisions, _scan, by_identity

FORMULATIONS = ("relevance", "gradient")
LIBRARY = torch.library.Library("quantized_tests", "DEF")
LIBRARY.define("layer(Tensor x, Tensor codes, float scale) -> Tensor")
LIBRARY.impl("layer", lambda x, codes, scale: torch.from_numpy(x.detach().numpy() @ (codes.numpy().T * scale)), "CPU")
layer = torch.ops.quantized_tests.layer


class Codes(torch.Tensor):
    """A weight of integers times a scale, whose kernel has a backward or not."""

    @staticmethod
    def __new__(cls, codes, scale, *, backward):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float64)

    def __init__(self, codes, scale, *, backward):
        self.codes, self.scale, self.backward_known = codes, scale, backward

    def dequantize(self):
        return self.codes.double() * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, *bias = args
            with torch._C.DisableTorchFunctionSubclass():
                out = F.linear(x, weight.dequantize(), *bias)
            return out if weight.backward_known else out.detach()
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale, backward=args[0].backward_known)
        raise NotImplementedError(f"{func} of quantized weights")


def quantized_and_plain(*, backward):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    quantized = copy.deepcopy(plain)
    for place in (0, 2):
        codes = torch.randint(-8, 8, plain[place].weight.shape)
        quantized[place].weight = nn.Parameter(Codes(codes, 0.125, backward=backward), requires_grad=False)
        plain[place].weight = nn.Parameter(codes.double() * 0.125)
    return quantized, plain


def explained(model, composite, x):
    x = x.clone().requires_grad_()
    with composite.register(model) as registration:
        y = model(x)
        y.backward(y.detach() if composite.formulation == "relevance" else torch.ones_like(y))
    return y.detach(), x.grad, registration.report()


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rule", [None, Epsilon(1e-6), Gamma(0.25), ZPlus(), AlphaBeta(2, 1)])
@pytest.mark.parametrize("backward", [True, False])
def test_a_quantized_weight_is_explained_as_the_dequantized_one(backward, rule, formulation):
    quantized, plain = quantized_and_plain(backward=backward)
    composite = Composite({} if rule is None else {nn.Linear: rule}, formulation=formulation)
    x = torch.randn(5, 4, dtype=torch.float64)
    y, relevance, report = explained(quantized, composite, x)
    y_plain, right, _ = explained(plain, composite, x)
    assert report.complete, str(report)
    torch.testing.assert_close(y, y_plain)
    torch.testing.assert_close(relevance, right)


class Kernel(nn.Module):
    def __init__(self, plus=False):
        super().__init__()
        self.register_buffer("codes", torch.randint(-8, 8, (3, 4), generator=torch.Generator().manual_seed(2)).double())
        self.plus = plus

    def forward(self, x):
        z = layer(x, self.codes, 0.125)
        return z + F.linear(x, self.codes) if self.plus else z


@pytest.mark.parametrize("rules", [{}, {Kernel: Epsilon()}])
@pytest.mark.parametrize("plus", [False, True])
def test_an_operator_without_a_backward_is_uncovered_wherever_it_runs(rules, plus):
    x = torch.randn(2, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        *_, report = explained(Kernel(plus), Composite(rules), x)
    assert not report.complete, str(report)
    assert "its kernel has no backward" in str(report)


def test_a_weight_is_found_by_what_its_kernel_makes_of_the_identity():
    weight, bias, x = (torch.randn(*size, dtype=torch.float64) for size in ((3, 500), (3,), (2, 7, 500)))
    torch.testing.assert_close(by_identity(F.linear, x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(by_identity(F.linear, x, weight), F.linear(x, weight))


def test_a_dynamically_quantized_layer_of_torch_is_explained_as_the_dequantized_one():
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if not engines:
        pytest.skip("this build of torch has no quantized kernels")
    torch.backends.quantized.engine = engines[-1]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, dtype=torch.qint8)
    for place in (0, 2):
        plain[place].weight.data = quantized[place].weight().dequantize()
    x = torch.randn(5, 16)
    y, gradient, report = explained(quantized, Composite(formulation="gradient"), x)
    assert torch.equal(y, quantized(x).detach())
    assert report.complete, str(report)
    torch.testing.assert_close(gradient, explained(plain, Composite(formulation="gradient"), x)[1])
    x = x.requires_grad_()
    with Composite(formulation="relevance").register(quantized):
        (relevance,) = torch.autograd.grad(quantized(x), x, y)  # R = y, so that R / y = 1 as for the gradient
    torch.testing.assert_close(relevance, x.detach() * gradient, rtol=1e-3, atol=1e-4)


def test_a_masked_softmax_with_a_gradient_of_its_own_is_a_softmax(monkeypatch):
    class XSoftmax(torch.autograd.Function):  # as transformers had it for DeBERTa
        @staticmethod
        def forward(ctx, x, mask, dim):
            y = x.masked_fill(mask == 0, float("-inf")).softmax(dim).nan_to_num()
            ctx.save_for_backward(y)
            ctx.dim = dim
            return y

        @staticmethod
        def backward(ctx, slot):
            (y,) = ctx.saved_tensors
            return y * (slot - (slot * y).sum(ctx.dim, keepdim=True)), None, None

    module = types.ModuleType("transformers.models.deberta.modeling_deberta")
    module.XSoftmax, XSoftmax.__module__, XSoftmax.__qualname__ = XSoftmax, module.__name__, "XSoftmax"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    mask, values = torch.ones(4, 4).tril(), torch.randn(4, 3, dtype=torch.float64)

    class Net(nn.Module):
        def __init__(self, softmax):
            super().__init__()
            self.softmax = softmax

        def forward(self, x):
            return self.softmax(x) @ values

    x = torch.randn(4, 4, dtype=torch.float64)
    for formulation in FORMULATIONS:
        composite = Composite(formulation=formulation)
        y, slot, report = explained(Net(lambda x: XSoftmax.apply(x, mask, -1)), composite, x)
        plain = Net(lambda x: torch.softmax(x.masked_fill(mask == 0, float("-inf")), -1))
        y_plain, right, _ = explained(plain, composite, x)
        assert report.complete, str(report)
        torch.testing.assert_close(y, y_plain)
        torch.testing.assert_close(slot, right)


@pytest.mark.parametrize(
    ("model", "name"),
    [("yoso", "YosoCumulation"), ("recurrent_gemma", "SqrtBoundDerivative"), ("sew_d", "XSoftmax")],
)
def test_autograd_functions_of_transformers_are_known_by_the_names_they_have(model, name):
    pytest.importorskip("transformers")
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    op = registered(getattr(module, name))
    assert op is not None
    assert op.steps is not None


def test_steps_of_hashed_attention_compute_what_the_function_does():
    module = pytest.importorskip("transformers.models.yoso.modeling_yoso")
    q, k = (F.normalize(torch.randn(2, 5, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    v, mask = torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).double()
    given = (mask, mask, q, k, v, {"hash_code_len": 3})
    assert torch.equal(_collisions(*given), module.YosoCumulation.apply(*given))


class PScan(torch.autograd.Function):
    """A scan with a gradient of its own, as mambapy has it: ``h_t = a_t h_(t-1) + x_t``."""

    __module__ = "mambapy.pscan"

    @staticmethod
    def forward(ctx, a, x):
        h = _scan(a, x)
        ctx.save_for_backward(a, h)
        return h.clone()

    @staticmethod
    def backward(ctx, slot):
        a, h = ctx.saved_tensors
        back = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
        found = _reversed(back, slot)
        return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1) * found, found


def _reversed(decay, slot):
    """The slot of x: ``g_t = slot_t + a_(t+1) g_(t+1)``."""
    found = [slot[:, -1]]
    for t in range(slot.shape[1] - 2, -1, -1):
        found.insert(0, slot[:, t] + decay[:, t] * found[0])
    return torch.stack(found, 1)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("chosen", [False, True])
def test_a_scan_with_a_gradient_of_its_own_is_its_steps(chosen, formulation, monkeypatch):
    """Also where the input chooses how much is kept."""
    module = types.ModuleType(PScan.__module__)
    module.PScan = PScan
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Net(nn.Module):
        def __init__(self, scan):
            super().__init__()
            torch.manual_seed(0)
            self.scan, self.read, self.keep = scan, nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            a = torch.exp(-F.softplus(self.keep(x))) if chosen else torch.full((2, 5, 4), 0.7, dtype=x.dtype)
            return self.scan(a, self.read(x))[:, -1].sum(1)

    x = torch.randn(2, 5, 3, dtype=torch.float64)
    y, slot, report = explained(Net(PScan.apply).double(), Composite(formulation=formulation), x)
    y_plain, right, _ = explained(Net(_scan).double(), Composite(formulation=formulation), x)
    assert report.complete, str(report)
    torch.testing.assert_close(y, y_plain)
    torch.testing.assert_close(slot, right)
