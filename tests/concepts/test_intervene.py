"""Interventions: what they change, that all else is bit-identical, under `generate` and rules, and without a trace."""

import pytest
import torch
from small_transformers import gpt2, ids, llama
from support import Fn, Transformer, assert_close, fingerprint, make
from torch import nn
from torch.utils.checkpoint import checkpoint

from lxt_compose import Composite, RegistrationError, attribute
from lxt_compose.concepts import Dictionary, ablate, effect, patch, record, steer

ONCE = {"use_reentrant": False}


class TestSteer:
    def test_by_hand(self):
        model, x = make("mlp")
        hidden = torch.relu(model.fc1(x))
        expected = hidden.clone()
        expected[:, 2] = 3 * hidden[:, 2] + 0.5
        expected[:, 5] = 3 * hidden[:, 5] + 0.5
        before, plain = fingerprint(model), model(x)
        with steer(model, "act[2, 5]", scale=3.0, add=0.5) as intervention:
            assert torch.equal(model(x), model.fc2(expected))
            assert repr(intervention) == "<Intervention on Sequential (active): act[2, 5] become 3.0 * x + 0.5>"
        assert fingerprint(model) == before
        assert torch.equal(model(x), plain)

    def test_a_vector_along_the_residual_stream_at_one_token(self):
        model, x = make("transformer")
        vector = torch.randn(8, dtype=torch.float64)
        seen = record(model, x, "blocks.0.mlp.2")["blocks.0.mlp.2"][0]
        with steer(model, "blocks.0.mlp.2@-1", add=vector):
            after = record(model, x, ["blocks.0.mlp.2", "head"])["blocks.0.mlp.2"][0]
        assert torch.equal(after[:, :-1], seen[:, :-1])
        assert_close(after[:, -1], seen[:, -1] + vector)

    def test_several_at_once_act_in_turn(self):
        model, x = make("mlp")
        with steer(model, "act[1]", add=1.0), steer(model, "act[1]", scale=2.0):
            both = model(x)
        with steer(model, "act[1]", scale=2.0, add=2.0):
            assert_close(both.detach(), model(x).detach())

    def test_channels_before_they_are_changed_in_place(self):
        model, x = make("cnn")
        torch_inplace = nn.Sequential(*[nn.ReLU(inplace=True) if isinstance(m, nn.ReLU) else m for m in model])
        first = model[0](x)
        first[:, 3, 2:4] = -1.0
        with ablate(torch_inplace, "0[3]@2:4", to=-1.0):
            assert torch.equal(torch_inplace(x), model[1:](first))

    def test_a_direction_and_a_feature(self):
        model, x = make("mlp")
        hidden = torch.relu(model.fc1(x))
        direction = torch.randn(8, dtype=torch.float64)
        along = (hidden @ direction) / direction.square().sum()
        with ablate(model, Dictionary("act", direction)):
            assert_close(model(x), model.fc2(hidden - along[:, None] * direction))
        with torch.no_grad():
            encoder, decoder = nn.Linear(8, 20).double(), nn.Linear(20, 8).double()
            codes = torch.relu(encoder(hidden))
            with steer(model, Dictionary("act", (nn.Sequential(encoder, nn.ReLU()), decoder))[4], add=2.0):
                assert_close(model(x), model.fc2(hidden + 2.0 * decoder.weight[:, 4]))
            with steer(model, Dictionary("act", (nn.Sequential(encoder, nn.ReLU()), decoder)), scale=0.0):
                assert_close(model(x), model.fc2(hidden - codes @ decoder.weight.T))


class TestAblate:
    def test_heads_by_hand(self):
        model, x = make("transformer")
        plain = Transformer().double()
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():  # a head without values puts out nothing
            plain.blocks[1]["attention"].qkv.weight[16 + 4 :] = 0
            plain.blocks[1]["attention"].qkv.bias[16 + 4 :] = 0
        for units in ("blocks.1.attention:heads[1]", "blocks.1.attention.heads[-1]", "blocks.1.attention:value[1]"):
            with ablate(model, units):
                assert_close(model(x), plain(x))

    def test_grouped_queries(self):
        model = llama()  # two heads of queries, one of keys and values
        x = ids()
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            with ablate(model, "model.layers.0.self_attn:value[0]"):
                one = model(x).logits
            with ablate(model, "model.layers.0.self_attn:heads"):
                assert_close(model(x).logits, one)
            with (
                pytest.raises(IndexError, match=r"there is no 1 in the units of model.layers.0.self_attn:value"),
                ablate(model, "model.layers.0.self_attn:value[1]"),
            ):
                model(x)

    def test_means(self):
        model, x = make("transformer")
        seen = record(model, x, "blocks.0.norm2")["blocks.0.norm2"][0]
        with ablate(model, "blocks.0.norm2[0:4]", to="mean"):
            after = record(model, x, "blocks.0.norm2")["blocks.0.norm2"][0]
        assert torch.equal(after[..., 4:], seen[..., 4:])
        assert_close(after[..., :4], seen[..., :4].mean((0, 1)).expand(2, 5, 4))

    def test_each_to_its_own(self):
        model, x = make("mlp")
        with ablate(model, "act[3, 1]", to=torch.tensor([30.0, 10.0])):
            after = record(model, x, "act")["act"][0]
        assert after[0, 1] == 10
        assert after[0, 3] == 30
        with (
            pytest.raises(ValueError, match=r"act\[3, 1\] are 2 units of act, but the tensor .* shape \[3\]"),
            ablate(model, "act[3, 1]", to=torch.zeros(3)),
        ):
            model(x)


class TestPatch:
    def test_everything_between_gives_the_other_answer(self):
        model, x = make("transformer")
        other = torch.randn_like(x)
        values = record(model, other, ["blocks.0.norm1:input", "blocks.*.attention:heads"])
        with patch(model, "blocks.0.norm1:input", values):
            one = model(x)
        assert not torch.equal(one, model(x))
        values = record(model, other, "head:input")
        with patch(model, "head:input", values):
            assert torch.equal(model(x), model(other))

    def test_one_token_of_one_head(self):
        model, x = make("transformer")
        values = record(model, torch.randn_like(x), "blocks.0.attention:heads")
        mine = record(model, x, "blocks.0.attention:heads")["blocks.0.attention:heads"][0]
        with patch(model, "blocks.0.attention:heads[1]@2", values):
            after = record(model, x, "blocks.0.attention:heads")["blocks.0.attention:heads"][0]
        mine[:, 1, 2] = values["blocks.0.attention:heads"][0][:, 1, 2]
        assert torch.equal(after, mine)

    def test_errors(self):
        model, x = make("mlp")
        with pytest.raises(KeyError, match="no values of act were recorded; there are fc1"):
            patch(model, "act", record(model, x, "fc1"))
        with (
            pytest.raises(ValueError, match=r"call 1 of fc1 has the shape \[2, 8\], but recorded were \[4, 8\]"),
            patch(model, "fc1", record(model, x, "fc1")),
        ):
            model(x[:2])


def test_under_generate_with_a_cache():
    """A token that is made likely at every step is what comes out, with and without a cache."""
    model, x = gpt2(), ids(2, 4)
    before = fingerprint(model)
    add = 50 * model.lm_head.weight[17].detach()
    for use_cache in (True, False):
        with steer(model, "transformer.ln_f", add=add):
            made = model.generate(x, max_new_tokens=5, do_sample=False, use_cache=use_cache, pad_token_id=0)
        assert made[:, 4:].eq(17).all()
        with ablate(model, "transformer.h.*.attn:heads@3"):  # in the prompt alone, later calls have one token
            ablated = model.generate(x, max_new_tokens=2, do_sample=False, use_cache=use_cache, pad_token_id=0)
        assert ablated.shape == (2, 6)
    assert fingerprint(model) == before


def test_relevance_of_a_model_that_is_steered():
    """Rules see the change: gradient x input of the net with the change written into it."""
    model, x = make("mlp")
    with torch.no_grad():
        for parameter in (model.fc1.bias, model.fc2.bias):
            parameter.zero_()
    composite = Composite(formulation="gradient")
    with ablate(model, "act[0:3]"):
        found = attribute(model, x, target=1, composite=composite)
    with torch.no_grad():
        model.fc2.weight[:, 0:3] = 0
    assert_close(found.relevance, attribute(model, x, target=1, composite=composite).relevance)
    assert found.report.complete


def test_effect_on_logits():
    model, x = make("mlp")
    found = effect(model, x, "act[4]")
    hidden = torch.relu(model.fc1(x)).detach()
    assert_close(found.change, -hidden[:, 4:5] * model.fc2.weight.detach()[:, 4])
    assert found.top(1)[0][0] == int(found.change.mean(0).abs().argmax())
    assert str(found).startswith("<Effect on 4 samples: the answer changes in")
    language, prompt = llama(), ids()
    assert effect(language, {"input_ids": prompt}, "model.layers.1.mlp.act_fn[3]").before.shape == (3, 60)


def test_with_activation_checkpoints():
    """What is recomputed for the backward pass is changed alike."""
    block = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    plain = Fn(lambda self, x: self.block(self.block(x)), block=block)
    saving = Fn(lambda self, x: checkpoint(self.block, checkpoint(self.block, x, **ONCE), **ONCE), block=block)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gradients = []
    for model in (plain, saving):
        with steer(model, "block.1[2]", scale=3.0, add=0.5):
            gradients.append(torch.autograd.grad(model(x).square().sum(), x)[0])
    assert torch.equal(*gradients)
    with ablate(saving, "block.1#2[2]"):
        y = saving(x).sum()
        with pytest.raises(RegistrationError, match=r"block.1#2 is recomputed by activation checkpointing"):
            y.backward()


class TestNothingInSilence:
    def test_what_never_ran(self):
        model = nn.Sequential(nn.Linear(4, 4))
        model.add_module("spare", nn.Identity())
        model.forward = lambda x: model[0](x)
        with (
            pytest.warns(UserWarning, match=r"nothing was changed at spare \(Identity\) has no units: it did not run"),
            ablate(model, "spare[0]"),
        ):
            model(torch.zeros(2, 4))

    def test_after_it_was_removed(self):
        model, x = make("mlp")
        intervention = ablate(model, "act[0]")
        assert not record(model, x, "act")["act"][0][:, 0].any()
        intervention.remove()
        intervention.remove()
        assert record(model, x, "act")["act"][0][:, 0].any()
        with pytest.raises(RegistrationError, match="this intervention was removed"):
            intervention.__enter__()
        assert "removed" in repr(intervention)

    def test_errors_leave_no_trace(self):
        model, x = make("transformer")
        before = fingerprint(model)
        with (
            pytest.raises(IndexError, match=r"there is no 7 in the units of blocks.0.attention:heads"),
            ablate(model, "blocks.0.attention:heads[7]"),
        ):
            model(x)
        with pytest.raises(RuntimeError), ablate(model, ["blocks.0.attention:heads[1]", "head[0]"]):
            model(x[..., :3])
        assert fingerprint(model) == before
        with pytest.raises(ValueError, match="got to='median'"):
            ablate(model, "head", to="median")
