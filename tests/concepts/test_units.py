"""Names of units: what can be written, and which tensors they lead to on models that are made in different ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import Transformer, assert_close, fingerprint, make
from torch import nn
from torch.nn import functional as F

from lxt_compose import MatchError, where
from lxt_compose.concepts import Dictionary, find_units
from lxt_compose.concepts.keys import indices, read_key
from lxt_compose.concepts.units import Layout
from lxt_compose.concepts.visits import Visits


class TestKeys:
    @pytest.mark.parametrize(
        ("text", "pattern", "side", "call", "index", "at"),
        [
            ("layer.3.mlp.act[17]", "layer.3.mlp.act", "", None, (17,), None),
            ("*.attn:heads[2]@-1", "*.attn", "heads", None, (2,), (-1,)),
            ("b.[01].fc:input#2[0:8:2, -1]@1:,3", "b.[01].fc", "input", 2, (slice(0, 8, 2), -1), (slice(1, None), 3)),
            ("layers.3@5", "layers.3", "", None, None, (5,)),
            ("conv[*]@*,0", "conv", "", None, None, (slice(None), 0)),
            ("conv[:]", "conv", "", None, None, None),
        ],
    )  # fmt: skip
    def test_parts(self, text, pattern, side, call, index, at):
        key = read_key(text)
        assert (key.pattern, key.side, key.call, key.index, key.at) == (pattern, side, call, index, at)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "names no units"),
            ("a.mlp[3", "a ']' is missing"),
            ("a.mlp3]", "a '\\[' is missing"),
            ("a:middle[1]", "there is no side 'middle'"),
            ("a[x]", "'x' is neither a number nor a range"),
            ("a#0", "counted from 1 on"),
            ("a[1:2:0]", "step of '1:2:0' must be at least 1"),
        ],
    )
    def test_what_cannot_be_read(self, text, message):
        with pytest.raises(ValueError, match=message):
            read_key(text)

    @given(st.integers(1, 9), st.integers(-12, 12), st.integers(-12, 12), st.integers(1, 3))
    def test_ranges_are_those_of_python(self, size, start, stop, step):
        key = read_key(f"a[{start}:{stop}:{step}]")
        assert indices(key.index, size, "it") == list(range(size))[start:stop:step]

    def test_each_number_once_and_in_range(self):
        assert indices((2, slice(1, 4), -1), 4, "it") == [2, 1, 3]
        with pytest.raises(IndexError, match="there is no -5 in it: there are 4, from 0 to 3"):
            indices((-5,), 4, "it")


class TestFinding:
    def test_globs_classes_and_predicates(self):
        model, _ = make("transformer")
        assert [str(u) for u in find_units(model, "blocks.*.mlp.1[3]")] == ["blocks.0.mlp.1[3]", "blocks.1.mlp.1[3]"]
        assert [u.place.name for u in find_units(model, nn.GELU)] == ["blocks.0.mlp.1", "blocks.1.mlp.1"]
        assert [u.place.name for u in find_units(model, where(lambda name, _: name == "head"))] == ["head"]
        assert [str(u) for u in find_units(model, ["head[1:]", "blocks.0@-1"])] == ["head[1:]", "blocks.0@-1"]

    def test_heads_may_follow_a_dot_unless_a_module_is_called_so(self):
        model, _ = make("transformer")
        assert [str(u) for u in find_units(model, "*.attention.heads[1]")] == [
            "blocks.0.attention:heads[1]", "blocks.1.attention:heads[1]",
        ]  # fmt: skip
        own = nn.ModuleDict({"heads": nn.Linear(2, 2)})
        assert find_units(own, "heads[1]")[0].place.side == ""
        with pytest.raises(MatchError, match=r"no module matches 'nothing'"):
            find_units(model, "nothing.heads[1]")

    def test_wrong_kinds(self):
        model, _ = make("mlp")
        with pytest.raises(TypeError, match="a layer is named by"):
            find_units(model, 3.5)
        with pytest.raises(ValueError, match="no units were given"):
            find_units(model, [])
        with pytest.raises(TypeError, match="a module with encode"):
            Dictionary("fc1", 3)
        with pytest.raises(ValueError, match="names units; those of a dictionary follow it"):
            Dictionary("fc1[3]", torch.eye(8))
        with pytest.raises(KeyError, match="no unit of the dictionary at 'fc1' is called 'b'"):
            Dictionary("fc1", torch.eye(8), names=["a", *"cdefghi"])["b"]


def seen_at(model, run, *keys):
    """The tensors at places, and what their dimensions are, in one run of the model."""
    found = {}
    units = find_units(model, keys)
    before = fingerprint(model)
    with Visits(
        model, [u.place for u in units], lambda visit: found.setdefault(visit.place.name, visit) and None
    ) as visits:
        output = run(model)
        layouts = {name: visits.layout(visit) for name, visit in found.items()}
    assert fingerprint(model) == before
    return output, {name: (visit.tensor, layouts[name]) for name, visit in found.items()}


class Grouped(nn.Module):
    """Queries in 4 heads, keys and values in 2, from one fused layer; repeated, or left to the function."""

    def __init__(self, repeat):
        super().__init__()
        self.qkv, self.out, self.repeat = nn.Linear(8, 16), nn.Linear(8, 8), repeat
        self.kept = [None]
        if repeat:
            self.num_key_value_groups = 2

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (8, 2)).transpose(1, 2)
        q, k, v = parts.split((4, 2, 2), 1)
        self.kept[0] = k.detach()
        if self.repeat:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


SIDES = ("query", "key", "value", "heads")


class TestHeads:
    @pytest.mark.parametrize("repeat", [True, False])
    def test_grouped_queries_from_a_fused_layer(self, repeat):
        model, x = Grouped(repeat).double(), torch.randn(3, 5, 8, dtype=torch.float64)
        output, found = seen_at(model, lambda m: m(x), *(f"*:{side}" for side in SIDES))
        assert torch.equal(output, model(x))
        assert [found[f":{side}"][1].units for side in SIDES] == [4, 2, 2, 4]
        keys, layout = found[":key"]
        mask = find_units(model, "*:key[1]")[0].mask(layout).expand(keys.shape)
        own = model.kept[0][:, 1:].repeat_interleave(2 if repeat else 1, 1)
        assert torch.equal(keys[mask].sort().values, own.flatten().sort().values)

    @pytest.mark.parametrize("need_weights", [False, True])
    def test_multihead_attention_of_torch(self, need_weights):
        model = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
        x = torch.randn(3, 5, 8, dtype=torch.float64)

        def run(m):
            return m(x, x, x, need_weights=need_weights)[0]

        if need_weights:  # its products are of [batch * heads, tokens, features]
            assert seen_at(model, run, "*:heads")[1] == {}
            return
        output, found = seen_at(model, run, *(f"*:{side}" for side in SIDES))
        query = F.linear(x, model.in_proj_weight[:8], model.in_proj_bias[:8]).unflatten(-1, (2, 4)).transpose(1, 2)
        assert_close(found[":query"][0].detach(), query.detach())
        heads = found[":heads"][0].transpose(1, 2).flatten(2)
        assert_close(model.out_proj(heads).detach(), output.detach())

    def test_transformer_layer_in_eval_mode(self):
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        with torch.no_grad():
            _, found = seen_at(model, lambda m: m(x), "self_attn.heads", "linear1[3]")
        assert found["self_attn:heads"][0].shape == (3, 2, 5, 4)
        assert found["linear1"][1].dims == ("batch", "token", "feature")

    def test_products_that_are_written_out(self):
        model = Transformer().double()
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        _, found = seen_at(model, lambda m: m(x), *(f"blocks.0.attention:{side}" for side in SIDES))
        query, key, value = (found[f"blocks.0.attention:{side}"][0] for side in SIDES[:3])
        weights = torch.softmax(query @ key * query.shape[-1] ** -0.5, -1)
        assert_close(weights @ value, found["blocks.0.attention:heads"][0])
        assert found["blocks.0.attention:key"][1].dims == ("batch", "head", "feature", "token")

    def test_an_error_leaves_nothing_on_the_thread(self):
        model = Transformer().double()
        before = fingerprint(model)
        units = find_units(model, "blocks.0.attention:heads")
        with Visits(model, [u.place for u in units], lambda visit: None), pytest.raises(RuntimeError):
            model(torch.randn(3, 5, 7, dtype=torch.float64))
        assert fingerprint(model) == before


def test_relevance_of_units_sums_copies_and_the_features_of_heads():
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    found = Layout.of("it", x.shape, ("batch", "head", "token", "feature"), 2).per_unit(x)
    assert_close(found, (x[:, ::2] + x[:, 1::2]).sum(-1))
    images = Layout.of("it", x.shape, ("batch", "channel", "height", "width"))
    assert torch.equal(images.per_unit(x), x)
    tokens = Layout.of("it", torch.Size((3, 5, 4)), ("batch", "token", "feature"))
    assert torch.equal(tokens.per_unit(x[..., 0].transpose(1, 2)), x[..., 0])
