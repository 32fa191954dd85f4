"""AttnLRP on GPT-2 equals an implementation that was written out from the paper, in both formulations."""

import math

import explicit_attnlrp as explicit
import pytest
import torch
import transformers
from architectures import randomize

from lxt_compose import presets

LAYERS, WIDTH, HEADS, LENGTH = 2, 16, 2, 5
SIZE = WIDTH // HEADS


def gpt2(attention="eager"):
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=24, vocab_size=11, n_positions=16, bos_token_id=0,
        eos_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    randomize(model, 5)
    return model


def gelu_new(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relevance_of(weights, x, token):
    """The logit of the last token, and the relevance of its embeddings and of the positions, from the weights alone."""

    def affine(name):
        return weights[f"transformer.{name}.weight"], weights[f"transformer.{name}.bias"]

    def run(name, value):
        weight, bias = affine(name)
        return value @ weight + bias  # a Conv1D of GPT-2: its weight lies the other way round

    def back(name, value, relevance):
        weight, bias = affine(name)
        return explicit.linear(value, weight.T, bias, relevance)

    def norm(name, value):
        weight, bias = affine(name)
        centerd = value - value.mean(-1, keepdim=True)
        return centerd / (centerd.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def norm_back(name, value, relevance):
        return explicit.layer_norm(value, *affine(name), 1e-5, relevance)

    def heads(value):
        return value.view(LENGTH, HEADS, SIZE).transpose(0, 1)

    def merged(value):
        return value.transpose(0, 1).reshape(LENGTH, WIDTH)

    def block(i, x):
        name, mask, scale = f"h.{i}", explicit.causal_mask(LENGTH), SIZE**-0.5
        normed = norm(f"{name}.ln_1", x)
        q, k, v = (heads(each) for each in run(f"{name}.attn.c_attn", normed).split(WIDTH, -1))
        weights = (torch.einsum("hjd,hid->hji", q, k) * scale + mask).softmax(-1)
        mixed = merged(weights @ v)
        attended = run(f"{name}.attn.c_proj", mixed)
        middle = x + attended
        normed_middle = norm(f"{name}.ln_2", middle)
        inner = run(f"{name}.mlp.c_fc", normed_middle)
        active = gelu_new(inner)
        fed = run(f"{name}.mlp.c_proj", active)

        def handed_back(relevance):
            on_middle, on_fed = explicit.add(middle, fed, relevance)
            on_inner = back(f"{name}.mlp.c_proj", active, on_fed)  # the activation passes it (eq. 9)
            on_normed = back(f"{name}.mlp.c_fc", normed_middle, on_inner)
            on_middle = on_middle + norm_back(f"{name}.ln_2", middle, on_normed)
            on_x, on_attended = explicit.add(x, attended, on_middle)
            on_mixed = heads(back(f"{name}.attn.c_proj", mixed, on_attended))
            on_qkv = torch.cat([merged(on) for on in explicit.attention(q, k, v, scale, mask, on_mixed)], -1)
            return on_x + norm_back(f"{name}.ln_1", x, back(f"{name}.attn.c_attn", normed, on_qkv))

        return middle + fed, handed_back

    positions = weights["transformer.wpe.weight"][:LENGTH]
    stream, backs = x + positions, []
    for i in range(LAYERS):
        stream, handed_back = block(i, stream)
        backs.append(handed_back)
    last = norm("ln_f", stream)
    head = weights["lm_head.weight"]
    logits = last @ head.T
    start = torch.zeros_like(logits)
    start[-1, token] = logits[-1, token]
    relevance = norm_back("ln_f", stream, explicit.linear(last, head, None, start))
    for handed_back in reversed(backs):
        relevance = handed_back(relevance)
    return logits[-1, token], *explicit.add(x, positions, relevance)


@pytest.mark.parametrize("formulation", ["gradient", "relevance"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2_equals_the_paper(formulation, attention):
    model = gpt2(attention)
    tokens = model.get_input_embeddings()(torch.tensor([[3, 1, 4, 1, 5]])).detach().requires_grad_()
    table = model.transformer.wpe.weight.detach().clone().requires_grad_()
    expected_logit, on_tokens, on_positions = relevance_of(dict(model.state_dict()), tokens.detach()[0], 7)
    with presets.attnlrp(formulation=formulation).register(model):
        leaves = {"transformer.wpe.weight": table}
        logit = torch.func.functional_call(model, leaves, (), {"inputs_embeds": tokens}).logits[0, -1, 7]
        logit.backward(logit.detach() if formulation == "relevance" else None)
    assert float((logit.detach() - expected_logit).abs()) < 1e-12
    found, positions = tokens.grad, table.grad
    if formulation == "gradient":
        found, positions = tokens.detach() * found, table.detach() * positions
    explicit.assert_near(found[0], on_tokens, 1e-9)
    explicit.assert_near(positions[:LENGTH], on_positions, 1e-9)
    assert not positions[LENGTH:].any()
