"""Conditional relevance: right against masks written by hand, and what the conditions of a place add up to."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_transformers import bert, gpt2, ids, llama
from support import Attention, Fn, Transformer, assert_close, both_formulations, exact, fingerprint, make
from torch import nn

from lxt_compose import AttributionError, Composite, Epsilon, Gamma, MatchError, Norm, attribute
from lxt_compose.concepts import Dictionary, conditional

TIGHT = Composite({(nn.Conv2d, nn.Linear): Epsilon(1e-12)})


def net(inplace=True):
    torch.manual_seed(0)
    layers = OrderedDict(
        conv1=nn.Conv2d(2, 3, 3), act1=nn.ReLU(inplace), conv2=nn.Conv2d(3, 4, 3), act2=nn.ReLU(inplace),
        flat=nn.Flatten(), head=nn.Linear(16, 3),
    )  # fmt: skip
    return nn.Sequential(layers).double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)


def by_gradients(model, x, index, masks):
    """Gradient x input (Epsilon in a network of ReLUs), each layer's gradient times a mask."""
    x = x.clone().requires_grad_()
    h = x
    for name, module in model.named_children():
        h = nn.functional.relu(h) if isinstance(module, nn.ReLU) else module(h)
        if name in masks:
            h.register_hook(lambda slot, mask=masks[name]: slot * mask)
    h[:, index].sum().backward()
    return x.detach() * x.grad


def channels(*on, count):
    mask = torch.zeros(count, dtype=torch.float64)
    mask[list(on)] = 1
    return mask[:, None, None]


@pytest.mark.parametrize("only", [True, False])
@both_formulations
class TestAgainstMasksByHand:
    def assert_masked(self, formulation, only, conditions, masks):
        model, x = net()
        composite = Composite({(nn.Conv2d, nn.Linear): Epsilon(1e-12)}, formulation=formulation)
        before = fingerprint(model)
        found = conditional(model, x, conditions, target=1, composite=composite, only=only)
        assert fingerprint(model) == before
        rows = found.relevance.unflatten(0, (2, len(conditions)))
        for number, mask in enumerate(masks):
            expected = by_gradients(model, x, 1, mask)
            assert float(expected.abs().max()) > 0
            assert_close(rows[:, number], expected)

    def test_channels(self, formulation, only):
        masks = [{"conv2": channels(0, count=4)}, {"conv2": channels(1, 2, 3, count=4)}]
        self.assert_masked(formulation, only, ["conv2[0]", "conv2[1:]"], masks)

    def test_before_something_changes_it_in_place(self, formulation, only):
        masks = [{"conv1": channels(0, 2, count=3)}, {"act1": channels(1, count=3)}]
        self.assert_masked(formulation, only, ["conv1[0, 2]", "act1[1]"], masks)

    def test_sets_in_several_layers(self, formulation, only):
        masks = [
            {"conv1": channels(0, count=3), "conv2": channels(1, 2, count=4)},
            {"conv1": channels(1, 2, count=3), "conv2": channels(3, count=4)},
            {"conv2": channels(1, 2, count=4)},
        ]
        conditions = [("conv1[0]", "conv2[1]", "conv2[2]"), ("conv2[3]", "conv1[1:3]"), "conv2[1,2]"]
        self.assert_masked(formulation, only, conditions, masks)

    def test_places(self, formulation, only):
        mask = torch.zeros(3, 4, 4, dtype=torch.float64)
        mask[2, 0:2, 3] = 1
        everywhere = torch.zeros(3, 4, 4, dtype=torch.float64)
        everywhere[:, 3] = 1
        self.assert_masked(formulation, only, ["conv1[2]@0:2,-1", "conv1@-1"], [{"conv1": mask}, {"conv1": everywhere}])

    def test_inputs_of_a_layer(self, formulation, only):
        model, x = net()
        composite = Composite({(nn.Conv2d, nn.Linear): Epsilon(1e-12)}, formulation=formulation)
        found = conditional(model, x, "head:input[0:4]", target=1, composite=composite, only=only)
        assert_close(found.relevance, by_gradients(model, x, 1, {"act2": channels(0, count=4)}))


def test_gamma_rule_by_hand():
    """The rule written out for a linear layer, its relevance masked, and the rule of the layer before."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.rand(2, 5, generator=generator, dtype=torch.float64)

    def gamma(w, a, z, r):
        """R_i = sum_j a_i (w_ij + g w_ij^+) / sum_k a_k (w_kj + g w_kj^+) R_j for z_j > 0, else with w^-; a >= 0."""
        out = torch.zeros_like(a)
        for j in range(len(z)):
            part = w[j].clamp(min=0) if z[j] > 0 else w[j].clamp(max=0)
            share = a * (w[j] + 0.25 * part)
            out += share / share.sum() * r[j]
        return out

    hidden, rows = torch.relu(model[0](x)), []
    for n in range(2):
        start = torch.zeros(3, dtype=torch.float64)
        start[2] = model(x)[n, 2]
        inside = gamma(model[2].weight.detach(), hidden[n].detach(), model(x)[n].detach(), start.detach())
        masked = inside * torch.tensor([1, 0, 1, 0], dtype=torch.float64)
        rows.append(gamma(model[0].weight.detach(), x[n], model[0](x)[n].detach(), masked))
    found = conditional(model, x, "1[0,2]", target=2, composite=Composite({nn.Linear: Gamma(0.25, 1e-14)}))
    assert_close(found.relevance, torch.stack(rows))


def test_relevance_that_goes_around_is_left_out_or_kept():
    """x + f(x): around f goes the skip connection, whose relevance stays with only=False."""
    torch.manual_seed(0)
    block = Fn(lambda self, x: x + self.f(x), f=nn.Linear(4, 4, bias=False))
    model = nn.Sequential(block, nn.Linear(4, 2, bias=False)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    weight, slot = block.f.weight.detach(), model[1].weight.detach()[0]
    inside = x * ((slot * torch.tensor([0, 1, 0, 0])) @ weight)
    found = conditional(model, x, "0.f[1]", target=0, composite=exact())
    assert_close(found.relevance, inside)
    kept = conditional(model, x, "0.f[1]", target=0, composite=exact(), only=False)
    assert_close(kept.relevance, inside + x * slot)


class Seen(Attention):
    """The attention of the helpers, with heads of their own for keys, which keeps what it computes."""

    def forward(self, x):
        self.seen = {}
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        self.seen |= {"query": q, "key": k, "value": v}
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        self.seen["heads"] = weights @ v
        return self.out(self.seen["heads"].transpose(-2, -3).flatten(-2))


@pytest.mark.parametrize("side", ["query", "key", "value", "heads"])
@both_formulations
def test_heads_by_hand(side, formulation):
    """The slot at the queries (keys, ...), masked, and passed on from there alone."""
    torch.manual_seed(0)
    model = Transformer().double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block["attention"].__class__ = Seen
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    composite = Composite({(nn.Linear,): Epsilon(1e-12)}, formulation=formulation)
    leaf = x.clone().requires_grad_()
    with composite.register(model):
        y = model(leaf)
        seed = torch.zeros_like(y)
        seed[:, 1] = y[:, 1].detach() if formulation == "relevance" else 1
        tensor = model.blocks[1]["attention"].seen[side]
        (slot,) = torch.autograd.grad(y, tensor, seed, retain_graph=True)
        mask = torch.zeros_like(slot)
        mask[:, 1] = 1
        (expected,) = torch.autograd.grad(tensor, leaf, slot * mask)
    for block in model.blocks:
        block["attention"].__class__ = Attention
    found = conditional(model, x, f"blocks.1.attention:{side}[1]", target=1, composite=composite)
    assert float(expected.abs().max()) > 1e-6
    assert_close(found.relevance, expected if formulation == "relevance" else expected * x)


@pytest.mark.parametrize(
    ("build", "attention", "projection"),
    [
        (llama, "model.layers.1.self_attn", "model.layers.1.self_attn.o_proj"),
        (gpt2, "transformer.h.0.attn", "transformer.h.0.attn.c_proj"),
        (bert, "bert.encoder.layer.0.attention", "bert.encoder.layer.0.attention.output.dense"),
    ],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_heads_of_language_models_are_parts_of_what_their_projection_takes_in(
    build, attention, projection, implementation
):
    model, given = build(), {"input_ids": ids(2, 5)}
    model.set_attn_implementation(implementation)
    heads = conditional(model, given, [f"{attention}:heads[{head}]" for head in range(2)], target=1)
    parts = conditional(model, given, [f"{projection}:input[{8 * head}:{8 * head + 8}]" for head in range(2)], target=1)
    assert float(heads.relevance.abs().max()) > 1e-4
    assert_close(heads.relevance, parts.relevance)


class TestSums:
    """Relevance is linear in what flows back: conditions that split the units of a place split its relevance."""

    @pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "transformer"])
    @both_formulations
    def test_all_units_of_a_layer(self, name, formulation):
        model, x = make(name)
        layer, count = {"mlp": ("fc1", 8), "cnn": ("3", 4), "residual": ("0", 6), "transformer": ("blocks.0.norm2", 8)}[
            name
        ]
        rules = {} if formulation == "gradient" else {(nn.Linear, nn.Conv2d): Gamma(), nn.LayerNorm: Norm()}
        composite = Composite(rules, formulation=formulation)
        found = conditional(model, x, [f"{layer}[{unit}]" for unit in range(count)], composite=composite, target=0)
        whole = conditional(model, x, layer, composite=composite, target=0).relevance
        assert_close(found.relevance.unflatten(0, (len(x), count)).sum(1), whole)
        if name != "transformer":  # nothing goes around
            assert_close(whole, attribute(model, x, target=0, composite=composite).relevance)

    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 3))
    def test_any_partition(self, parts, rows):
        model, x = net()
        texts = [", ".join(str(u) for u in range(4) if parts[u] == part) for part in sorted(set(parts))]
        conditions = [(f"conv2[{text}]", f"conv1@0:{rows}") for text in texts] + [f"conv1@{rows}:"]
        composite = Composite({nn.Conv2d: Gamma()}, formulation="gradient", defaults=True)
        found = conditional(model, x, conditions, target=1, composite=composite, batch_size=5)
        assert_close(
            found.relevance.unflatten(0, (2, len(texts) + 1)).sum(1),
            attribute(model, x, target=1, composite=composite).relevance,
        )

    def test_conservation_under_conditions(self):
        """Without biases, what is passed on is what the units had."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
        x = torch.randn(3, 6, dtype=torch.float64)
        found = conditional(model, x, ["1[0:2]", "1[2:]"], target=0, composite=TIGHT, layers="1")
        units = attribute(model, x, target=0, composite=TIGHT, layers="1").latent["1"]
        expected = torch.stack([units[:, :2].sum(1), units[:, 2:].sum(1)], 1).flatten()
        assert_close(found.relevance.sum(1), expected)
        assert_close(found.latent["1"].sum(1), expected)


def test_dictionary_by_hand():
    """A sparse autoencoder on the output of a layer: relevance of one feature is its code times its decoder's slot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    encoder, decoder = nn.Linear(6, 10).double(), nn.Linear(10, 6).double()
    dictionary = Dictionary("1", (nn.Sequential(encoder, nn.ReLU()), decoder))
    x = torch.randn(4, 5, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    hidden = torch.relu(model[0](leaf))
    slot = model[2].weight[2] @ decoder.weight  # of each feature
    codes = torch.relu(encoder(hidden))
    mask = torch.zeros(10, dtype=torch.float64)
    mask[3:7] = 1
    (gradient,) = torch.autograd.grad((codes * (slot * mask).detach()).sum(), leaf)
    composite = Composite(formulation="gradient")
    found = conditional(model, x, [dictionary[3:7], dictionary[0]], target=2, composite=composite)
    assert_close(found.relevance[::2], x * gradient)
    assert all(p.requires_grad for p in (*encoder.parameters(), *decoder.parameters()))
    hidden_away = Dictionary("1", (lambda x: torch.relu(encoder(x)), decoder))
    same = conditional(model, x, hidden_away[0], target=2, composite=composite)  # its weights get no share either
    assert_close(same.relevance, found.relevance[1::2])


def test_directions_that_span_the_space_add_up_to_all():
    model, x = make("transformer")
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    directions = Dictionary("blocks.0.norm2", basis)
    composite = Composite(formulation="gradient")
    found = conditional(model, x, [directions[i] for i in range(8)], target=0, composite=composite)
    whole = conditional(model, x, "blocks.0.norm2", target=0, composite=composite)
    assert_close(found.relevance.unflatten(0, (2, 8)).sum(1), whole.relevance)


def test_rows_and_names():
    model, x = net()
    found = conditional(
        model, x, {"edge": "conv1[0]", "corner": ("conv2[1]", "conv1[2]")}, composite=TIGHT, layers="conv1"
    )
    assert found.target_names == ("edge", "corner")
    assert len(found) == 4
    assert found.relevance.shape == (4, 2, 6, 6)
    assert found.latent["conv1"].shape == (4, 3, 4, 4)
    assert not found.latent["conv1"][::2, 1:].any()  # held back, but for the unit
    assert [neuron.unit for neuron in found.neurons(1, layer="conv1", sample=3)] == [2]
    for number, condition in enumerate(["conv1[0]", ("conv2[1]", "conv1[2]")]):
        alone = conditional(model, x, condition, composite=TIGHT)
        assert alone.target_names == ()
        assert_close(found.relevance[number::2], alone.relevance)


def test_batches_change_nothing():
    model, x = net()
    conditions = ["conv1[0]", "conv2[1]", ("conv2[1]", "conv1[2]"), "conv1[1:]"]
    whole = conditional(model, x, conditions, target=[0, 2], composite=TIGHT)
    for size in (1, 3):
        assert_close(
            conditional(model, x, conditions, target=[0, 2], composite=TIGHT, batch_size=size).relevance,
            whole.relevance,
        )


class TestErrors:
    def test_which(self):
        model, x = net()
        with pytest.raises(IndexError, match=r"there is no 4 in the units of conv2: there are 4, from 0 to 3"):
            conditional(model, x, "conv2[4]")
        with pytest.raises(IndexError, match=r"there is no 9 in dimension 'height' of conv1"):
            conditional(model, x, "conv1@9")
        with pytest.raises(ValueError, match=r"gives 3 places, but conv1 has dimensions: height width"):
            conditional(model, x, "conv1@1,1,1")
        with pytest.raises(MatchError, match="no module matches 'conv7'"):
            conditional(model, x, "conv7[0]")
        with pytest.raises(ValueError, match="one target for each sample"):
            conditional(model, x, "conv1[0]", target={"a": 0, "b": 1})
        with pytest.raises(ValueError, match="no conditions were given"):
            conditional(model, x, [])

    def test_no_attention(self):
        model, x = make("transformer")
        with pytest.raises(AttributionError, match=r"blocks.0.mlp:heads \(Sequential\): no attention was seen in it"):
            conditional(model, x, "blocks.0.mlp:heads[0]")

    def test_inside_a_module_with_a_rule(self):
        model, x = make("residual")
        with pytest.raises(AttributionError, match=r"0.fc1 has no relevance: it is inside '0', which has a rule"):
            conditional(model, x, "0.fc1[0]", composite=Composite({"0": Epsilon()}))

    def test_ran_twice(self):
        layer = nn.Linear(4, 4).double()
        model = nn.Sequential(layer, nn.ReLU(), layer)
        x = torch.randn(2, 4, dtype=torch.float64)
        with pytest.raises(AttributionError, match=r"0 \(Linear\) ran 2 times .* 0#1 to 0#2"):
            conditional(model, x, "0[1]", composite=TIGHT)
        found = conditional(model, x, [f"0#1[{unit}]" for unit in range(4)], composite=TIGHT, target=0)
        assert_close(
            found.relevance.unflatten(0, (2, 4)).sum(1), attribute(model, x, composite=TIGHT, target=0).relevance
        )
        with pytest.raises(AttributionError, match=r"did not run a 3. time"):
            conditional(model, x, "0#3[1]", composite=TIGHT)
