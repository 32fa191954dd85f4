"""AttnLRP on Llama equals an implementation that was written out from the paper, in both formulations."""

import explicit_attnlrp as explicit
import pytest
import torch
import transformers
from architectures import randomize
from closing import KeepDouble

from lxt_compose import presets

LAYERS, WIDTH, HEADS, GROUPS, LENGTH = 2, 24, 4, 2, 6
SIZE = WIDTH // HEADS


def llama(attention="eager"):
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=36, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, vocab_size=11, rms_norm_eps=1e-5, max_position_embeddings=32,
        rope_theta=100.0, attn_implementation=attention,
        attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).double().eval()
    randomize(model, 3)
    return model


def rotation(length):
    """The rotary map of each position, as a matrix: ``z = q cos + rotate_half(q) sin``."""
    frequencies = 1 / 100.0 ** (torch.arange(0, SIZE, 2).float() / SIZE)  # the model keeps them in float32
    angles = torch.arange(length)[:, None] * frequencies.double()
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    half = SIZE // 2
    turn = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    turn[:half, half:], turn[half:, :half] = -torch.eye(half), torch.eye(half)
    return torch.diag_embed(cos) + sin[:, :, None] * turn


class Explicit:
    """Llama and AttnLRP for it, from its weights alone."""

    def __init__(self, weights):
        self.weights = weights

    def w(self, layer, name):
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def b(self, layer, name):
        return self.weights[f"model.layers.{layer}.{name}.bias"]

    def run(self, layer, name, x):
        return x @ self.w(layer, name).T + self.b(layer, name)

    def back(self, layer, name, x, relevance):
        return explicit.linear(x, self.w(layer, name), self.b(layer, name), relevance)

    @staticmethod
    def norm(x, weight):
        # its relevance passes unchanged (proposition 3.4)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    @staticmethod
    def heads(x, count):
        return x.view(LENGTH, count, SIZE).transpose(0, 1)

    @staticmethod
    def merged(x):
        return x.transpose(0, 1).reshape(LENGTH, -1)

    def block(self, layer, x):
        """The output of a block, and the function that hands its relevance back."""
        turn, mask, scale = rotation(LENGTH), explicit.causal_mask(LENGTH), SIZE**-0.5
        normed = self.norm(x, self.w(layer, "input_layernorm"))
        q, k, v = (
            self.heads(self.run(layer, f"self_attn.{name}_proj", normed), count)
            for name, count in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))
        )
        turned_q, turned_k = (torch.einsum("hld,led->hle", each, turn) for each in (q, k))
        repeats = HEADS // GROUPS
        many_k, many_v = turned_k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
        scores = torch.einsum("hjd,hid->hji", turned_q, many_k) * scale + mask
        mixed = self.merged(scores.softmax(-1) @ many_v)
        attended = self.run(layer, "self_attn.o_proj", mixed)
        middle = x + attended
        normed_middle = self.norm(middle, self.w(layer, "post_attention_layernorm"))
        gate, up = self.run(layer, "mlp.gate_proj", normed_middle), self.run(layer, "mlp.up_proj", normed_middle)
        gated = gate * gate.sigmoid() * up
        output = middle + self.run(layer, "mlp.down_proj", gated)

        def back(relevance):
            on_middle, on_mlp = explicit.add(middle, output - middle, relevance)
            on_gate, on_up = explicit.product(self.back(layer, "mlp.down_proj", gated, on_mlp))
            on_middle = on_middle + self.back(layer, "mlp.gate_proj", normed_middle, on_gate)
            on_middle = on_middle + self.back(layer, "mlp.up_proj", normed_middle, on_up)
            on_x, on_attended = explicit.add(x, attended, on_middle)
            on_mixed = self.heads(self.back(layer, "self_attn.o_proj", mixed, on_attended), HEADS)
            on_q, on_k, on_v = explicit.attention(turned_q, many_k, many_v, scale, mask, on_mixed)
            on_k, on_v = (each.view(GROUPS, repeats, LENGTH, SIZE).sum(1) for each in (on_k, on_v))
            on_q, on_k = (
                torch.stack([explicit.linear(each[:, t], turn[t], None, on[:, t]) for t in range(LENGTH)], 1)
                for each, on in ((q, on_q), (k, on_k))
            )
            for name, on in (("q", on_q), ("k", on_k), ("v", on_v)):
                on_x = on_x + self.back(layer, f"self_attn.{name}_proj", normed, self.merged(on))
            return on_x

        return output, back

    def relevance(self, x, position, token):
        """The logit, and the relevance of the embeddings for it."""
        backs = []
        for layer in range(LAYERS):
            x, back = self.block(layer, x)
            backs.append(back)
        last = self.norm(x, self.weights["model.norm.weight"])
        head = self.weights["lm_head.weight"]
        logits = last @ head.T
        start = torch.zeros_like(logits)
        start[position, token] = logits[position, token]
        relevance = explicit.linear(last, head, None, start)
        for back in reversed(backs):
            relevance = back(relevance)
        return logits[position, token], relevance


@pytest.fixture(scope="module")
def case():
    model = llama()
    x = model.get_input_embeddings()(torch.tensor([[3, 1, 4, 1, 5, 9]])).detach()
    return model, x, *Explicit(dict(model.state_dict())).relevance(x[0], 4, 2)


@pytest.mark.parametrize("formulation", ["gradient", "relevance"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama_equals_the_paper(case, formulation, attention):
    model, x, expected_logit, expected = case
    x = x.clone().requires_grad_()
    model = llama(attention)
    with KeepDouble(), presets.attnlrp(formulation=formulation).register(model):
        logit = model(inputs_embeds=x).logits[0, 4, 2]
        logit.backward(logit.detach() if formulation == "relevance" else None)
    assert float((logit.detach() - expected_logit).abs()) < 1e-12
    found = x.grad if formulation == "relevance" else x.detach() * x.grad
    explicit.assert_near(found[0], expected, 1e-9)


def test_llama_as_it_is_rounds_its_norms_to_float32(case):
    model, x, _, expected = case
    x = x.clone().requires_grad_()
    with presets.attnlrp().register(model):
        model(inputs_embeds=x).logits[0, 4, 2].backward()
    explicit.assert_near((x.detach() * x.grad)[0], expected, 1e-6)


def test_gradient_times_input_is_another_thing(case):
    model, x, _, expected = case
    x = x.clone().requires_grad_()
    model(inputs_embeds=x).logits[0, 4, 2].backward()
    with pytest.raises(AssertionError):
        explicit.assert_near((x.detach() * x.grad)[0], expected, 1e-2)
