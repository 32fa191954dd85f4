"""Relevance inside the model: right for any layer, in both formulations, and nothing of the graph is kept."""

import gc
import weakref
from collections import OrderedDict

import pytest
import torch
from support import FORMULATIONS, Fn, Transformer, assert_close, make
from torch import nn

from lxt_compose import AttributionError, Composite, Epsilon, Gamma, Identity, MatchError, attribute, blocks, where

TIGHT = Epsilon(1e-12)
EXACT = Composite(formulation="gradient")


def net():
    """conv, relu in place, conv, flat, linear: the slow way is written out in `slots_of`."""
    torch.manual_seed(0)
    layers = OrderedDict(
        first=nn.Conv2d(2, 3, 3), act=nn.ReLU(inplace=True), second=nn.Conv2d(3, 4, 3), flat=nn.Flatten(),
        head=nn.Linear(16, 3),
    )  # fmt: skip
    return nn.Sequential(layers).double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)


def by_hand(model, x, index):
    """Gradient x activation at every step: what Epsilon gives in a network of ReLUs."""
    values = {"in": x.clone().requires_grad_()}
    values["first"] = model.first(values["in"])
    values["act"] = values["first"].clamp(min=0)
    values["second"] = model.second(values["act"])
    values["head"] = model.head(values["second"].flatten(1))
    slots = torch.autograd.grad(values["head"][:, index].sum(), list(values.values()))
    return {name: (value * slot).detach() for (name, value), slot in zip(values.items(), slots, strict=True)}


@pytest.mark.parametrize("formulation", FORMULATIONS)
class TestLayers:
    def composite(self, formulation):
        return Composite({(nn.Conv2d, nn.Linear): TIGHT}, formulation=formulation)

    def test_outputs_and_inputs(self, formulation):
        model, x = net()
        layers = ["first", "act", "second", "head", "first:input", "second:input", "head:input"]
        latent = attribute(model, x, target=1, composite=self.composite(formulation), layers=layers).latent
        expected = by_hand(model, x, 1)
        assert list(latent) == ["first:input", "first", "act", "second:input", "second", "head:input", "head"]
        for name in ("first", "act", "second", "head"):
            assert_close(latent[name], expected[name])
        assert_close(latent["first:input"], expected["in"])
        assert_close(latent["second:input"], expected["act"])
        assert_close(latent["head:input"], expected["second"].flatten(1))

    def test_before_something_changes_it_in_place(self, formulation):
        """The first layer's output is overwritten with three times its values, and with 0 where it is negative."""
        model = nn.Sequential(nn.Linear(4, 5), Fn(lambda self, x: x.mul_(3).relu_()), nn.Linear(5, 2)).double()
        x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        y = model[0](x)
        (slot,) = torch.autograd.grad(model[2]((3 * y).relu())[:, 0].sum(), y)
        composite = Composite({nn.Linear: TIGHT, torch.mul: TIGHT}, formulation=formulation)
        latent = attribute(model, x, target=0, composite=composite, layers="0").latent
        assert_close(latent["0"], (y * slot).detach())

    @pytest.mark.parametrize("rule", [Gamma(0.3), TIGHT])
    def test_a_layer_with_a_rule_of_its_own(self, formulation, rule):
        """What goes into a layer is what comes out of the one before it, whatever the rule makes of slots between."""
        if formulation == "gradient" and isinstance(rule, Epsilon):
            rule = Epsilon(0.0)
        model, x = net()
        composite = Composite({(nn.Conv2d, nn.Linear): rule}, formulation=formulation)
        latent = attribute(model, x, target=0, composite=composite, layers=["second:input", "act"]).latent
        assert_close(latent["second:input"], latent["act"])

    def test_a_module_that_runs_twice(self, formulation):
        fc = nn.Linear(4, 4).double()
        model = nn.Sequential(fc, nn.ReLU(), fc, nn.Linear(4, 2).double())
        x = torch.randn(3, 4, dtype=torch.float64)
        latent = attribute(
            model, x, target=1, composite=Composite({nn.Linear: TIGHT}, formulation=formulation), layers="0"
        )
        first = fc(x)
        second = fc(first.relu())
        slots = torch.autograd.grad(model[3](second)[:, 1].sum(), (first, second))
        assert list(latent.latent) == ["0", "0#2"]
        assert_close(latent.latent["0"], (first * slots[0]).detach())
        assert_close(latent.latent["0#2"], (second * slots[1]).detach())

    def test_what_relevance_does_not_reach(self, formulation):
        model = Fn(lambda self, x: (self.b(x), self.a(x))[1], a=nn.Linear(3, 2), b=nn.Linear(3, 2)).double()
        x = torch.randn(2, 3, dtype=torch.float64)
        latent = attribute(model, x, target=0, composite=Composite(formulation=formulation), layers=["a", "b"]).latent
        assert latent["b"].tolist() == [[0, 0], [0, 0]]
        assert latent["a"].abs().sum() > 0

    def test_the_output_of_the_whole_model(self, formulation):
        model, x = net()
        found = attribute(model, x, target=2, composite=self.composite(formulation), layers="")
        assert_close(found.latent[""][:, 2], found.output)
        assert found.latent[""][:, :2].abs().max() == 0

    def test_a_tuple_and_keywords(self, formulation):
        lstm = nn.LSTM(3, 4, batch_first=True).double()
        model = Fn(lambda self, x: self.inner(input=x)[0][:, -1], inner=lstm)
        x = torch.randn(2, 5, 3, dtype=torch.float64)
        composite = Composite(formulation=formulation)
        latent = attribute(model, x, target=0, composite=composite, layers=["inner", "inner:input"]).latent
        assert latent["inner"].shape == (2, 5, 4)
        assert latent["inner"][:, :-1].abs().max() == 0
        assert latent["inner:input"].shape == (2, 5, 3)


class TestKeys:
    def names(self, layers):
        model, x = make("transformer")
        return list(attribute(model, x, composite=EXACT, layers=layers, target=0).latent)

    def test_all_kinds(self):
        assert self.names("blocks.0.mlp") == ["blocks.0.mlp"]
        assert self.names("*.mlp") == ["blocks.0.mlp", "blocks.1.mlp"]
        assert self.names("*.mlp:input") == ["blocks.0.mlp:input", "blocks.1.mlp:input"]
        assert self.names(nn.GELU) == ["blocks.0.mlp.1", "blocks.1.mlp.1"]
        assert self.names((nn.GELU, nn.LayerNorm)) == [
            "blocks.0.norm1", "blocks.0.norm2", "blocks.0.mlp.1", "blocks.1.norm1", "blocks.1.norm2", "blocks.1.mlp.1",
        ]  # fmt: skip
        assert self.names(where(lambda name, module: name.endswith("head"))) == ["head"]
        assert self.names(["head", "head", "h*"]) == ["head"]

    def test_a_glob_passes_over_modules_that_are_never_called(self):
        assert "blocks" not in self.names("*")
        assert "blocks.1.attention.out" in self.names("*")

    @pytest.mark.parametrize(
        ("layers", "error", "message"),
        [
            ("*.mlpp", MatchError, r"no module matches '\*.mlpp' in Transformer; closest:"),
            (["head", "blocks.0.atention"], MatchError, "closest: 'blocks.0.attention'"),
            (nn.Conv2d, MatchError, "Transformer has no module that Conv2d matches"),
            (3, TypeError, "a layer is named by its dotted name, a glob, a module class or where"),
            ([None], TypeError, "got None of type NoneType"),
            ("blocks", AttributionError, r"blocks \(ModuleList\) has no relevance: it did not run in the forward pass"),
        ],
    )
    def test_wrong_ones(self, layers, error, message):
        with pytest.raises(error, match=message):
            self.names(layers)

    def test_inside_a_module_with_a_rule(self):
        model, x = make("transformer")
        composite = Composite({"blocks.0.mlp": Identity()}, formulation="gradient")
        with pytest.raises(
            AttributionError, match=r"blocks.0.mlp.1 \(GELU\) .* inside 'blocks.0.mlp', which has a rule"
        ):
            attribute(model, x, composite=composite, layers="blocks.0.mlp.1")
        found = attribute(model, x, composite=composite, layers="*.mlp.1")
        assert list(found.latent) == ["blocks.1.mlp.1"]

    def test_blocks(self):
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 3)
        assert blocks(model) == ["layers.0", "layers.1", "layers.2"]
        assert blocks(nn.Sequential(model.layers[0], model.layers[1])) == ["0", "1"]
        assert blocks(nn.Sequential(nn.Linear(2, 2))) == []
        assert blocks(make("transformer")[0]) == []  # dictionaries of modules: nobody calls them


class TestNeurons:
    @pytest.fixture
    def found(self):
        model, x = make("transformer")
        return attribute(model, x, composite=EXACT, layers=["*.mlp.1", "blocks.0.attention.out:input"], target=1)

    def test_the_most_relevant(self, found):
        expected = []
        for layer, relevance in found.latent.items():
            for unit in range(relevance.shape[-1]):
                total = sum(float(relevance[n, t, unit]) for n in range(2) for t in range(5)) / 2
                expected.append((layer, unit, total))
        expected.sort(key=lambda entry: -abs(entry[2]))
        top = found.neurons(7)
        assert [(n.layer, n.unit) for n in top] == [entry[:2] for entry in expected[:7]]
        assert [n.relevance for n in top] == pytest.approx([entry[2] for entry in expected[:7]])
        of_layer = sum(abs(value) for layer, _, value in expected if layer == top[0].layer)
        assert top[0].share == pytest.approx(top[0].relevance / of_layer)

    def test_of_one_layer_or_sample(self, found):
        (layer, relevance), *_ = found.latent.items()
        top = found.neurons(3, layer=layer, sample=-1)
        units = relevance[1].sum(0)
        assert [n.unit for n in top] == units.abs().topk(3).indices.tolist()
        assert len(found.neurons(1000)) == 2 * 16 + 8
        with pytest.raises(
            KeyError, match=r"no relevance of 'head' was recorded; layers: blocks\.0\.attention\.out:input, "
        ):
            found.neurons(layer="head")

    def test_channels_of_images(self):
        model, x = make("cnn")
        found = attribute(model, x, composite=EXACT, layers="0")
        expected = found.latent["0"].sum((0, 2, 3)) / 2
        assert {n.unit: n.relevance for n in found.neurons(4)} == pytest.approx(dict(enumerate(expected.tolist())))

    def test_without_layers(self):
        model, x = make("cnn")
        with pytest.raises(ValueError, match="no layers were recorded: attribute"):
            attribute(model, x, composite=EXACT).neurons()

    def test_heads(self, found):
        layer = "blocks.0.attention.out:input"
        heads = found.heads(layer, 2)
        assert heads.shape == (2, 5, 2)
        assert_close(heads[..., 1], found.latent[layer][..., 4:].sum(-1))
        with pytest.raises(ValueError, match="has 8 features, which 3 heads cannot share"):
            found.heads(layer, 3)


class TestTrace:
    def test_layers_by_tokens(self):
        model, x = make("transformer")
        found = attribute(model, x, composite=EXACT, layers=["*.norm1", "head"], target=0)
        names, scores = found.trace(1)
        assert names == ["x", "blocks.0.norm1", "blocks.1.norm1"]
        for row, relevance in zip(scores, (found.relevance, *found.latent.values()), strict=False):
            assert_close(row, relevance[1].sum(-1))

    def test_cannot_be(self):
        model, x = make("transformer")
        with pytest.raises(ValueError, match="no layer with one position per token was recorded"):
            attribute(model, x, composite=EXACT, layers="head").trace()
        model, x = make("cnn")
        with pytest.raises(ValueError, match=r"trace\(\) is for sequences, but input has the shape"):
            attribute(model, x, composite=EXACT, layers="0").trace()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_no_graph_is_kept(formulation):
    model, x = make("transformer")
    alive = []

    def watch(module, args, output):
        alive.append(weakref.ref(output))
        alive.append(weakref.ref(output.grad_fn))

    handle = model.blocks[0]["mlp"][1].register_forward_hook(watch)
    found = attribute(model, x, composite=Composite(formulation=formulation), layers="*")
    handle.remove()
    gc.collect()
    assert len(alive) == 2
    assert all(ref() is None for ref in alive)
    assert not any(relevance.requires_grad for relevance in found.latent.values())


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_checkpointed_blocks(formulation):
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    plain = Transformer().double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = plain.blocks, plain.head

        def forward(self, x):
            for block in self.blocks:
                x = x + checkpoint(block["attention"], block["norm1"](x), use_reentrant=self.reentrant)
                x = x + checkpoint(block["mlp"], block["norm2"](x), use_reentrant=self.reentrant)
            return self.head(x.mean(-2))

    saving = Saving()
    layers, composite = ["*.mlp", "*.mlp.1", "*.out:input"], Composite(formulation=formulation)
    expected = attribute(plain, x, composite=composite, layers=layers)
    saving.reentrant = False
    found = attribute(saving, x, composite=composite, layers=layers)
    assert_close(found.relevance, expected.relevance)
    assert list(found.latent) == list(expected.latent)
    for name, relevance in expected.latent.items():
        assert_close(found.latent[name], relevance)
    saving.reentrant = True
    with pytest.raises(AttributionError, match="use use_reentrant=False"):
        attribute(saving, x, composite=composite)
