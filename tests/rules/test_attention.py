"""Attention as one operation against its parts, one after another: every form of both functions that compute it."""

import math

import oracles
import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import Attention, Composite, Epsilon

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 2, 3, 4, 2


def tensor(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + 100 * math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def qkv(key_heads=HEADS):
    keys = (BATCH, key_heads, KEYS, WIDTH)
    return tensor(BATCH, HEADS, QUERIES, WIDTH), tensor(*keys, seed=1), tensor(*keys, seed=2)


BOOL = torch.tensor([[True, True, False, True], [True, False, False, True], [False, True, True, True]])
FLOAT = tensor(QUERIES, KEYS, seed=3)
CAUSAL = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()


def as_added(allowed):
    return torch.where(allowed, 0.0, float("-inf")).double()


# What the function is given, and what that comes to: the scale, and what is added to the scores.
FORMS = {
    "plain": ({}, None, None),
    "bool mask": ({"attn_mask": BOOL}, None, as_added(BOOL)),
    "float mask": ({"attn_mask": FLOAT}, None, FLOAT),
    "mask of -inf": ({"attn_mask": as_added(BOOL)}, None, as_added(BOOL)),
    "mask for each head": ({"attn_mask": FLOAT.expand(BATCH, HEADS, QUERIES, KEYS)}, None, FLOAT),
    "causal": ({"is_causal": True}, None, as_added(CAUSAL)),
    "scale": ({"scale": 0.3}, 0.3, None),
    "scale and mask": ({"scale": 0.3, "attn_mask": FLOAT}, 0.3, FLOAT),
    "no dropout": ({"dropout_p": 0.0}, None, None),
    "grouped queries": ({"enable_gqa": True}, None, None),
    "grouped queries, causal": ({"enable_gqa": True, "is_causal": True}, None, as_added(CAUSAL)),
}


def by_heads(q, k, v, r, scale, mask):
    """The oracle for each batch and head; keys and values that heads share get the sum of what they get there."""
    found = [torch.zeros_like(x) for x in (q, k, v)]
    each = q.shape[1] // k.shape[1]
    for b in range(BATCH):
        for h in range(HEADS):
            places = (b, h), (b, h // each), (b, h // each)
            inputs = [x[place] for x, place in zip((q, k, v), places, strict=True)]
            parts = oracles.attention(*inputs, r[b, h], scale=scale or WIDTH**-0.5, mask=mask)
            for total, place, part in zip(found, places, parts, strict=True):
                total[place] += part
    return found


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_scaled_dot_product_attention(form, formulation):
    given, scale, mask = FORMS[form]
    if "enable_gqa" in given and "enable_gqa" not in (F.scaled_dot_product_attention.__doc__ or ""):
        pytest.skip(f"torch {torch.__version__} has no grouped queries")
    inputs = qkv(1 if "grouped" in form else HEADS)
    r = tensor(BATCH, HEADS, QUERIES, WIDTH, seed=4)
    plain = F.scaled_dot_product_attention(*inputs, **given)
    wanted = by_heads(*inputs, r, scale, mask)
    calls = (
        lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, **given),
        lambda _, q, k, v: F.scaled_dot_product_attention(value=v, key=k, query=q, **given),
    )
    for call in calls:
        leaves = [x.clone().requires_grad_() for x in inputs]
        rules = {F.scaled_dot_product_attention: Attention(0.0)}
        with Composite(rules, formulation=formulation).register(model := Fn(call)):
            o = model(*leaves)
            assert torch.equal(o, plain)
            o.backward(r if formulation == "relevance" else r / o.detach())
        for leaf, expected in zip(leaves, wanted, strict=True):
            assert_close(leaf.grad if formulation == "relevance" else leaf.grad * leaf.detach(), expected, 1e-8)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_mask_that_carries_relevance_gets_its_share_of_the_scores(formulation):
    """Position biases that are learned, or made of what carries: scores = q k scale + mask, each by what it adds."""
    q, k, v = qkv()
    mask, r = tensor(BATCH, HEADS, QUERIES, KEYS, seed=5), tensor(BATCH, HEADS, QUERIES, WIDTH, seed=4)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, mask)]
    with Composite({F.scaled_dot_product_attention: Attention(0.0)}, formulation=formulation).register(
        model := Fn(lambda _, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m))
    ):
        o = model(*leaves)
        o.backward(r if formulation == "relevance" else r / o.detach())
    for b in range(BATCH):
        for h in range(HEADS):
            raw = q[b, h] @ k[b, h].T * WIDTH**-0.5
            scores = raw + mask[b, h]
            r_weights, _ = oracles.matmul_uniform_epsilon(torch.softmax(scores, 1), v[b, h], r[b, h], 0.0)
            wanted = oracles.softmax_taylor(scores, r_weights, 1) * mask[b, h] / scores
            found = leaves[3].grad[b, h] * (1 if formulation == "relevance" else mask[b, h])
            assert_close(found, wanted, 1e-8)


def test_constants_leave_their_share_to_the_other_factor():
    q, k, v = qkv()
    r = tensor(BATCH, HEADS, QUERIES, WIDTH, seed=4)
    full = by_heads(q, k, v, r, None, None)
    for carries, factors in (((0, 1), (2, 2)), ((2,), (2,)), ((0,), (4,)), ((0, 2), (2, 1)), ((0, 1, 2), (1, 1, 1))):
        leaves = [x.clone().requires_grad_(place in carries) for place, x in enumerate((q, k, v))]
        with Composite({F.scaled_dot_product_attention: Attention(0.0)}).register(
            model := Fn(lambda _, *x: F.scaled_dot_product_attention(*x))
        ):
            model(*leaves).backward(r)
        for place, factor in zip(carries, factors, strict=True):
            assert_close(leaves[place].grad, factor * full[place], 1e-8)


# ---- multi-head attention --------------------------------------------------------------------------------------------

EMBED = 4


def multi_head(**options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(EMBED, HEADS, batch_first=True, **options).double().eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)  # they start at 0, where mistakes do not show
    return module


def weights_of(module):
    if module.in_proj_weight is not None:
        matrices = module.in_proj_weight.chunk(3)
    else:
        matrices = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return [*zip(matrices, biases, strict=True), (module.out_proj.weight, module.out_proj.bias)]


MODULES = {
    "packed": {},
    "no bias": {"bias": False},
    "separate projections": {"kdim": 3, "vdim": 5},
    "rows of bias": {"add_bias_kv": True},
    "a row of zeros": {"add_zero_attn": True},
    "all of it": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 3, "vdim": 5},
}
IGNORED = torch.tensor([[False, False, True, False], [False, True, False, False]])
CALLS = {
    "plain": {},
    "weights": {"need_weights": True},
    "weights of each head": {"need_weights": True, "average_attn_weights": False},
    "bool mask": {"attn_mask": ~BOOL},
    "float mask": {"attn_mask": FLOAT},
    "float mask and weights": {"attn_mask": FLOAT, "need_weights": True},
    "keys ignored": {"key_padding_mask": IGNORED},
    "keys ignored, masked, weights": {"key_padding_mask": IGNORED, "attn_mask": ~BOOL, "need_weights": True},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", MODULES)
def test_multi_head_attention(options, call):
    """Every form of module and call: projections, heads and output one operation after another."""
    module = multi_head(**MODULES[options])
    given = {"need_weights": False, **CALLS[call]}
    query = tensor(BATCH, QUERIES, EMBED)
    key, value = tensor(BATCH, KEYS, module.kdim, seed=1), tensor(BATCH, KEYS, module.vdim, seed=2)
    r = tensor(BATCH, QUERIES, EMBED, seed=3)
    plain = module(query, key, value, **given)[0]
    mask = given.get("attn_mask")
    mask = as_added(~mask) if mask is not None and mask.dtype == torch.bool else mask
    extra = () if module.bias_k is None else (module.bias_k[0], module.bias_v[0])
    for formulation in FORMULATIONS:
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        with Composite(formulation=formulation).register(module):
            out = module(*leaves, **given)[0]
            out.backward(r if formulation == "relevance" else r / out.detach())
        assert torch.equal(out, plain)
        for b in range(BATCH):
            ignored = IGNORED[b] if "key_padding_mask" in given else None
            wanted = oracles.multi_head(
                (query[b], key[b], value[b]), weights_of(module), r[b], heads=HEADS, mask=mask, ignored=ignored,
                extra=extra, zero=module.add_zero_attn,
            )  # fmt: skip
            for leaf, expected in zip(leaves, wanted, strict=True):
                found = leaf.grad[b] if formulation == "relevance" else leaf.grad[b] * leaf.detach()[b]
                # in the relevance formulation each of the parts has its stabilizer
                assert_close(found, expected, 1e-8 if formulation == "gradient" else 1e-2)


def test_self_attention_adds_up_and_the_module_that_is_never_called_is_told():
    """out_proj hands its weight on and is not run as a module."""
    module, x, r = multi_head(), tensor(BATCH, QUERIES, EMBED), tensor(BATCH, QUERIES, EMBED, seed=3)
    leaf = x.clone().requires_grad_()
    with Composite({nn.Linear: Epsilon()}, formulation="gradient").register(module) as registration:
        out = module(leaf, leaf, leaf, need_weights=False)[0]
        out.backward(r / out.detach())
    assert any("out_proj" in row.path for row in registration.report().not_executed)
    for b in range(BATCH):
        wanted = oracles.multi_head((x[b],) * 3, weights_of(module), r[b], heads=HEADS)
        assert_close(leaf.grad[b] * x[b], sum(wanted), 1e-8)


@pytest.mark.parametrize("need_weights", [True, False])
def test_static_keys_and_values(need_weights):
    """Given from outside, after their projection: constants, which leave all to the queries (or to the values)."""
    module, x = multi_head(), tensor(1, QUERIES, EMBED)
    static = tensor(HEADS, KEYS, EMBED // HEADS, seed=6)
    r = tensor(QUERIES, EMBED, seed=3)
    (wq, bq), _, (wv, bv), out = weights_of(module)

    def call(query, key, value, **given):
        return F.multi_head_attention_forward(
            query, key, value, EMBED, HEADS, module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0,
            *out, training=False, need_weights=need_weights, **given,
        )[0]  # fmt: skip

    other = tensor(KEYS, 1, EMBED, seed=7)
    for names in (("static_k", "static_v"), ("static_k",)):
        given = dict.fromkeys(names, static)
        query, value = x[0].unsqueeze(1).requires_grad_(), other.clone().requires_grad_()
        model = Fn(lambda _, q, v, given=given: call(q, other, v, **given))
        plain = model(query, value).detach()
        with Composite(formulation="gradient").register(model):
            z = model(query, value)
            assert torch.equal(z, plain)
            found = torch.autograd.grad(z, [query, value], r.unsqueeze(1) / z.detach(), allow_unused=True)
        q = (x[0] @ wq.T + bq).unflatten(1, (HEADS, -1)).transpose(0, 1)
        v = static if "static_v" in names else (other[:, 0] @ wv.T + bv).unflatten(1, (HEADS, -1)).transpose(0, 1)
        scale = q.shape[-1] ** -0.5
        mixed = torch.cat([torch.softmax(scale * a @ k.T, 1) @ c for a, k, c in zip(q, static, v, strict=True)], 1)
        r_mixed = oracles.linear(mixed, *out, r).unflatten(1, (HEADS, -1)).transpose(0, 1)
        parts = [oracles.attention(a, k, c, g, scale=scale) for a, k, c, g in zip(q, static, v, r_mixed, strict=True)]
        factor = 4 if "static_v" in names else 2  # the share of a constant goes to the other factor
        r_q = factor * torch.cat([part[0] for part in parts], 1)
        assert_close(found[0][:, 0] * x[0], oracles.linear(x[0], wq, bq, r_q), 1e-8)
        if "static_v" in names:
            assert found[1] is None or not found[1].any()
        else:
            r_v = torch.cat([part[2] for part in parts], 1)
            assert_close(found[1][:, 0] * other[:, 0], oracles.linear(other[:, 0], wv, bv, r_v), 1e-8)
