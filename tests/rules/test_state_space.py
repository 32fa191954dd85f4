"""Selective state spaces: the default is MambaLRP, against the paper's own recipe of stopped gradients."""

import sys

import pytest
import torch
import transformers
from architectures import configured, lacks, randomize
from closing import KeepDouble
from torch.nn import functional as F

from lxt_compose import presets

COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 13, "expand": 2, "conv_kernel": 3, "pad_token_id": 0,
          "bos_token_id": 1, "eos_token_id": 2, "residual_in_fp32": False}  # fmt: skip
CONFIGS = {
    "mamba": {**COMMON, "state_size": 4, "time_step_rank": 3},
    "falcon_mamba": {**COMMON, "state_size": 4, "time_step_rank": 3},
    "mamba2": {**COMMON, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 3},
    "jamba": {
        "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 13, "mamba_d_state": 4, "mamba_d_conv": 3,
        "mamba_dt_rank": 3, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 8, "attn_layer_offset": 7,
        "expert_layer_period": 8, "expert_layer_offset": 7, "use_mamba_kernels": False,
    },
    "bamba": {
        "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 13, "mamba_d_state": 4, "mamba_n_heads": 4,
        "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_expand": 2, "mamba_d_conv": 3, "mamba_chunk_size": 3,
        "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1, "attn_layer_indices": [],
    },
}  # fmt: skip


def build(name):
    config = configured(name, CONFIGS[name])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, 7)
    return model.double().eval()


def inputs(model):
    return model.get_input_embeddings()(torch.tensor([[3, 1, 4, 1, 5, 9, 2]])).detach()


def explain(model, x):
    x = x.clone().requires_grad_()
    logit = model(inputs_embeds=x, use_cache=False).logits[0, -1, 5]
    logit.backward()
    return float(logit.detach()), x.detach() * x.grad


def half(product):
    """The half rule of section 4.3: the value of a gated product, half of its gradient."""
    return 0.5 * product + 0.5 * product.detach()


def silu(x):
    """Section 4.1: SiLU with its sigmoid constant."""
    return x * x.sigmoid().detach()


def mamba_scan(hidden_states, dt, A, B, C, D, z, delta_bias, **_):
    """Section 4.2: the recurrence of Mamba, written step by step, with constant A_t, B_t and C_t."""
    delta = F.softplus(dt + delta_bias[..., None])
    state, outputs = torch.zeros(*hidden_states.shape[:2], A.shape[-1], dtype=torch.float64), []
    for t in range(hidden_states.shape[-1]):
        a = torch.exp(A * delta[:, :, t, None]).detach()
        b = (delta[:, :, t, None] * B[:, None, :, t]).detach()
        state = a * state + b * hidden_states[:, :, t, None]
        outputs.append((state * C[:, None, :, t].detach()).sum(-1))
    y = torch.stack(outputs, -1) + hidden_states * D[None, :, None]
    return half(y * silu(z))


def mamba2_scan(hidden_states, dt, A, B, C, D, dt_bias, **_):
    """The same for Mamba-2: one decay for each head, groups of heads share B and C. The gate comes with the norm."""
    batch, length, heads, size = hidden_states.shape
    delta = F.softplus(dt + dt_bias).detach()
    b, c = (each.repeat_interleave(heads // each.shape[2], 2).detach() for each in (B, C))
    state, outputs = torch.zeros(batch, heads, size, b.shape[-1], dtype=torch.float64), []
    for t in range(length):
        decay = torch.exp(A * delta[:, t])
        entering = delta[:, t, :, None] * hidden_states[:, t]
        state = decay[..., None, None] * state + entering[..., None] * b[:, t, :, None, :]
        outputs.append((state * c[:, t, :, None, :]).sum(-1) + D[:, None] * hidden_states[:, t])
    return torch.stack(outputs, 1)


def stopped_norm(self, hidden_states, gate=None):
    """A norm with its statistic constant, after the gate if it has one."""
    if gate is not None:
        hidden_states = half(hidden_states * silu(gate))
    eps, weight = getattr(self, "variance_epsilon", 1e-6), getattr(self, "weight", 1.0)
    groups = hidden_states.unflatten(-1, (-1, getattr(self, "group_size", hidden_states.shape[-1])))
    scale = torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps).detach()
    return weight * (groups * scale).flatten(-2)


def convolution(hidden_states, weight, bias, activation=None, **_):
    """The causal convolution and its SiLU."""
    length, width = hidden_states.shape[-1], weight.shape[-1]
    y = F.conv1d(hidden_states, weight[:, None], bias, padding=width - 1, groups=weight.shape[0])[..., :length]
    return silu(y) if activation is not None else y


def recipe(monkeypatch, model):
    """Make the model's own file compute what the paper's recipe computes: the same values, other gradients."""
    module = sys.modules[type(model).__module__]
    if not {"mamba_selective_scan", "mamba2_chunk_scan"} & vars(module).keys():
        raise lacks("scan of its own to replace")
    if hasattr(module, "mamba_selective_scan"):
        monkeypatch.setattr(module, "mamba_selective_scan", mamba_scan)
    if hasattr(module, "mamba2_chunk_scan"):
        monkeypatch.setattr(module, "mamba2_chunk_scan", mamba2_scan)
    monkeypatch.setattr(module, "causal_conv1d_fn", convolution)
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and "RMSNorm" in kind.__name__:
            monkeypatch.setattr(kind, "forward", stopped_norm)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_default_is_mamba_lrp(name, monkeypatch):
    model = build(name)
    x = inputs(model)
    with KeepDouble():
        logit, plain = explain(model, x)
        with presets.attnlrp().register(model) as registration:
            same, found = explain(model, x)
        with monkeypatch.context() as patch:
            recipe(patch, model)
            value, expected = explain(model, x)
    assert registration.report().complete
    assert same == logit
    assert abs(value - logit) < 1e-9
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    assert float((plain - expected).abs().max()) > 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_selection_is_stopped_and_reported(name):
    model = build(name)
    with presets.attnlrp().register(model) as registration:
        explain(model, inputs(model))
    report = registration.report()
    assert report.complete
    rows = {(row.target, row.rule, str(row.status)) for row in report.rows}
    assert ("split", "StateSpace()", "default") in rows
    assert ("softplus", "StateSpace()", "default") in rows
    softplus = [row for row in report.rows if row.target == "softplus"]
    assert len(softplus) == 2  # one for each layer


@pytest.mark.parametrize("name", CONFIGS)
def test_both_formulations(name):
    model = build(name)
    x = inputs(model)
    with KeepDouble():
        with presets.attnlrp().register(model):
            _, expected = explain(model, x)
        leaf = x.clone().requires_grad_()
        with presets.attnlrp(formulation="relevance").register(model):
            logit = model(inputs_embeds=leaf, use_cache=False).logits[0, -1, 5]
            logit.backward(logit.detach())
    assert float((leaf.grad - expected).abs().max()) < 1e-7 * float(expected.abs().max())


def test_a_split_elsewhere_passes_relevance():
    """Three parts of which the last two have one size are queries, keys and values too, where no state space is."""

    class Attends(torch.nn.Module):
        def forward(self, x):
            q, k, v = x.split([4, 2, 2], -1)
            return q.sum() + 2 * k.sum() + 3 * v.sum()

    x = torch.ones(3, 8, dtype=torch.float64, requires_grad=True)
    model = Attends()
    with presets.attnlrp().register(model):
        model(x).backward()
    assert x.grad[0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
