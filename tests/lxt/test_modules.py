"""Drop-in modules: the values of torch's modules, their own parameters, and the relevance of the functions."""

import copy
from itertools import product

import pytest
import torch
from support import assert_close
from torch import nn

from lxt_compose.lxt import functional as R
from lxt_compose.lxt.modules import (
    LayerNormEpsilon,
    LinearEpsilon,
    MultiheadAttention_CP,
    MultiheadAttentionCP,
    RMSNormIdentity,
    SoftmaxDT,
)

torch.manual_seed(0)


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def randomized(module):
    """Weights that are no ones and zeros."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


def relevance(z, *inputs):
    given = torch.randn_like(z)
    return given, torch.autograd.grad(z, inputs, given, retain_graph=True)


MODULES = {
    "linear": (LinearEpsilon, lambda: nn.Linear(4, 3), lambda m, x: R.linear_epsilon(x, m.weight, m.bias)),
    "linear, no bias": (LinearEpsilon, lambda: nn.Linear(4, 3, False), lambda m, x: R.linear_epsilon(x, m.weight)),
    "softmax": (SoftmaxDT, lambda: nn.Softmax(1), lambda m, x: R.softmax(x, 1)),
    "layer norm": (LayerNormEpsilon, lambda: nn.LayerNorm(4, 0.1), lambda m, x: R.layer_norm(x, m.weight, m.bias, 0.1)),
    "layer norm, no bias": (
        LayerNormEpsilon,
        lambda: nn.LayerNorm(4, bias=False),
        lambda m, x: R.layer_norm(x, m.weight, None, 1e-5),
    ),
    "layer norm, two dims": (
        LayerNormEpsilon,
        lambda: nn.LayerNorm((3, 4), elementwise_affine=False),
        lambda m, x: R.layer_norm(x, None, None, 1e-5, normalized_shape=(3, 4)),
    ),
    "rms norm": (RMSNormIdentity, lambda: nn.RMSNorm(4, 0.1), lambda m, x: R.rms_norm_identity(x, m.weight, 0.1)),
    "rms norm, no weight": (
        RMSNormIdentity,
        lambda: nn.RMSNorm(4, 0.1, elementwise_affine=False),
        lambda m, x: R.rms_norm_identity(x, None, 0.1),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_values_are_torchs_and_relevance_is_the_functions(name):
    kind, build, function = MODULES[name]
    module, x = randomized(build()), leaf(2, 3, 4)
    drop_in = kind.from_torch(module)
    torch.testing.assert_close(drop_in(x), module(x), rtol=1e-14, atol=1e-14)
    given, (found,) = relevance(drop_in(x), x)
    (expected,) = torch.autograd.grad(function(module, x), x, given)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", MODULES)
def test_parameters_and_mode_are_shared_and_the_module_is_untouched(name):
    kind, build, _ = MODULES[name]
    module = build().eval()
    before = dict(vars(module))
    drop_in = kind.from_torch(module)
    assert [n for n, _ in drop_in.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert all(a is b for a, b in zip(drop_in.parameters(), module.parameters(), strict=True))
    assert drop_in.state_dict().keys() == module.state_dict().keys()
    assert not drop_in.training
    assert vars(module) == before


@pytest.mark.parametrize("kind", [LinearEpsilon, SoftmaxDT, RMSNormIdentity, LayerNormEpsilon, MultiheadAttentionCP])
def test_another_kind_of_module_is_refused(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.from_torch takes an? .*, got Conv2d"):
        kind.from_torch(nn.Conv2d(1, 1, 1))


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_layers_that_compute_something_else_are_refused():
    with pytest.raises(TypeError, match=r"LinearEpsilon.from_torch computes .*, but Doubled has a forward of its own"):
        LinearEpsilon.from_torch(Doubled(2, 2))
    with pytest.raises(TypeError, match=r"LinearEpsilon.from_torch shares parameters, but those of .* are computed"):
        LinearEpsilon.from_torch(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def test_softmax_without_a_dimension_is_refused():
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Softmax with a dim"):
        SoftmaxDT.from_torch(nn.Softmax())


def test_they_can_be_made_directly():
    assert LinearEpsilon(3, 2, epsilon=0.5)(leaf(1, 3).float()).shape == (1, 2)
    assert SoftmaxDT(-1, temperature=2.0)(leaf(1, 3)).sum().item() == pytest.approx(1)
    assert RMSNormIdentity(3)(leaf(1, 3).float()).shape == (1, 3)
    x = leaf(2, 3).float()
    assert torch.equal(LayerNormEpsilon(3)(x), nn.LayerNorm(3)(x))


def test_epsilon_of_the_linear_layer_is_used():
    x = leaf(2, 3)
    layer = LinearEpsilon.from_torch(randomized(nn.Linear(3, 2)), epsilon=10.0)
    given, (found,) = relevance(layer(x), x)
    (expected,) = torch.autograd.grad(R.linear_epsilon(x, layer.weight, layer.bias, 10.0), x, given)
    assert torch.equal(found, expected)


class HandWrittenNorm(nn.Module):
    """As transformers write it; `plus` is Gemma's."""

    def __init__(self, size, plus=0.0):
        super().__init__()
        self.weight, self.variance_epsilon, self.plus = nn.Parameter(torch.randn(size)), 1e-3, plus

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return (self.weight + self.plus) * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def test_a_norm_written_by_hand():
    module, x = HandWrittenNorm(4).double(), leaf(2, 4)
    drop_in = RMSNormIdentity.from_torch(module)
    assert_close(drop_in(x).detach(), module(x).detach(), 1e-14)
    given, (found,) = relevance(drop_in(x), x)
    assert torch.equal(found, given)


def test_a_norm_that_computes_something_else_is_refused():
    with pytest.raises(TypeError, match="HandWrittenNorm is no plain RMSNorm: RMSNormIdentity computes other values"):
        RMSNormIdentity.from_torch(HandWrittenNorm(4, plus=1.0))


# ---- attention -----------------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 5, "vdim": 6},
    "extra sources": {"add_bias_kv": True, "add_zero_attn": True},
}


def attention(options):
    module = randomized(nn.MultiheadAttention(4, 2, **options)).eval()
    shapes = [(3, 2, 4), (5, 2, options.get("kdim", 4)), (5, 2, options.get("vdim", 4))]
    if options.get("batch_first"):
        shapes = [(b, a, c) for a, b, c in shapes]
    return module, [leaf(*shape) for shape in shapes]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "float, per head"])
def test_attention_computes_what_torch_does(name, masks):
    module, inputs = attention(OPTIONS[name])
    given = {}
    if masks == "padding":
        given["key_padding_mask"] = torch.tensor([[False] * 5, [False, False, True, True, False]])
    if masks == "causal":
        given["attn_mask"] = torch.ones(3, 5, dtype=torch.bool).triu(1)
    if masks == "float, per head":
        given["attn_mask"] = torch.randn(4, 3, 5, dtype=torch.float64)
    drop_in = MultiheadAttentionCP.from_torch(module)
    for wanted in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        expected, weights = module(*inputs, **given, **wanted)
        found, found_weights = drop_in(*inputs, **given, **wanted)
        assert_close(found.detach(), expected.detach(), 1e-12)
        assert (weights is None) == (found_weights is None)
        if weights is not None:
            assert_close(found_weights.detach(), weights.detach(), 1e-12)


def test_attention_without_a_batch():
    module, _ = attention({})
    inputs = [leaf(3, 4), leaf(5, 4), leaf(5, 4)]
    expected, _ = module(*inputs)
    found, _ = MultiheadAttentionCP.from_torch(module)(*inputs)
    assert_close(found.detach(), expected.detach(), 1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_relevance_of_attention_goes_to_the_values_alone(name):
    """Three epsilon rules in a row: output projection, weighted sum, projection of the values; written out."""
    module, (query, key, value) = attention(OPTIONS[name])
    drop_in = MultiheadAttentionCP.from_torch(module, epsilon=1e-3)
    output, _ = drop_in(query, key, value)
    given = torch.randn_like(output)
    found = torch.autograd.grad(output, (query, key, value), given, allow_unused=True)
    assert found[0] is None
    assert found[1] is None
    _, weights = module(query, key, value, average_attn_weights=False)
    first = module.batch_first
    v, start = (tensor if first else tensor.transpose(0, 1) for tensor in (value.detach(), given))
    w_v = module.in_proj_weight[8:] if module.in_proj_weight is not None else module.v_proj_weight
    b_v = torch.zeros(4) if module.in_proj_bias is None else module.in_proj_bias[8:]
    b_o = torch.zeros(4) if module.out_proj.bias is None else module.out_proj.bias
    expected = torch.zeros_like(v)
    with torch.no_grad():
        for n in range(2):
            projected = v[n] @ w_v.T + b_v
            extra = [] if module.bias_v is None else [module.bias_v.reshape(1, 4), torch.zeros(1, 4)]
            sources = torch.cat([projected, *extra])
            heads = [weights[n, h] @ sources[:, 2 * h : 2 * h + 2] for h in range(2)]
            context = torch.cat(heads, -1)
            out = context @ module.out_proj.weight.T + b_o
            r_context, r_sources = torch.zeros_like(context), torch.zeros_like(sources)
            for t, o, c in product(range(3), range(4), range(4)):
                share = context[t, c] * module.out_proj.weight[o, c] / stab(out[t, o])
                r_context[t, c] += share * start[n, t, o]
            for t, s, c in product(range(3), range(len(sources)), range(4)):
                r_sources[s, c] += weights[n, c // 2, t, s] * sources[s, c] / stab(context[t, c]) * r_context[t, c]
            for s, c, i in product(range(5), range(4), range(v.shape[-1])):
                expected[n, s, i] += v[n, s, i] * w_v[c, i] / stab(projected[s, c]) * r_sources[s, c]
    assert_close(found[2] if first else found[2].transpose(0, 1), expected, 1e-9)


def stab(z):
    return z + (1e-3 if z >= 0 else -1e-3)


def test_attention_shares_its_parameters():
    module, _ = attention({"add_bias_kv": True})
    drop_in = MultiheadAttentionCP.from_torch(module)
    own, other = dict(drop_in.named_parameters()), dict(module.named_parameters())
    assert own.keys() == other.keys()
    assert all(own[name] is other[name] for name in own)
    assert MultiheadAttention_CP is MultiheadAttentionCP


def test_copies_work_on_their_own_weights():
    layer = LinearEpsilon.from_torch(nn.Linear(3, 2))
    twin = copy.deepcopy(layer)
    nn.init.zeros_(twin.weight)
    nn.init.zeros_(twin.bias)
    x = leaf(1, 3).float()
    assert (twin(x) == 0).all()
    assert (layer(x) != 0).any()
