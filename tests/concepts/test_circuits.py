"""Circuits: estimates and exact patching against loops by hand, and a transformer whose circuit is written into it."""

import pytest
import torch
from small_transformers import gpt2, ids, llama
from support import assert_close, fingerprint, make
from torch import nn

from lxt_compose import AttributionError, Composite, attribute
from lxt_compose.concepts import attribute_nodes, circuit_graph, edges, faithfulness, patch, patch_nodes, record


def pair(name="transformer"):
    model, x = make(name)
    return model, x, torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


class TestAttribution:
    def test_gradients_by_hand(self):
        """(a_corrupted - a_clean) * dm/da, at the neurons of an MLP."""
        model, x, other = pair("mlp")
        hidden, corrupted = torch.relu(model.fc1(x)), torch.relu(model.fc1(other))
        weight = model.fc2.weight
        expected = (corrupted - hidden) * (weight[1] - weight[0])
        found = attribute_nodes(model, x, other, "act", target=(1, 0), method="gradient")
        assert [node.name for node in found.nodes[:2]] == ["act[0]", "act[1]"]
        assert_close(found.values, expected.detach())

    def test_coefficients_of_relevance_by_hand(self):
        """At the input of the head they are its weights; below they are those that x.grad is under the rules."""
        model, x, other = pair()
        place = "blocks.0.mlp.1"
        found = attribute_nodes(model, x, other, place, target=2, per="both")
        clean, changed = (record(model, given, place)[place][0] for given in (x, other))
        kept = []
        handle = model.blocks[0]["mlp"][1].register_forward_hook(
            lambda m, a, out: out.register_hook(kept.append) and None
        )
        attribute(model, x, target=2, composite="relp")
        handle.remove()
        by_hand = ((changed - clean) * kept[0]).transpose(1, 2)  # [batch, units, tokens]
        assert_close(found.values, by_hand.flatten(1))
        assert found.nodes[1].name == "blocks.0.mlp.1[0]@1"
        units = attribute_nodes(model, x, other, place, target=2, per="unit")
        tokens = attribute_nodes(model, x, other, place, target=2, per="place")
        whole = attribute_nodes(model, x, other, place, target=2, per="whole")
        assert_close(units.values, by_hand.sum(2))
        assert_close(tokens.values, by_hand.sum(1))
        assert_close(whole.values[:, 0], by_hand.sum((1, 2)))

    def test_what_does_not_fit(self):
        model, x, other = pair("mlp")
        with pytest.raises(ValueError, match="per must be one of whole, unit, place, both, got 'head'"):
            attribute_nodes(model, x, other, "act", target=0, per="head")
        with pytest.raises(ValueError, match="coefficients are those of the gradient formulation"):
            attribute_nodes(model, x, other, "act", target=0, method=Composite())
        with pytest.raises(
            ValueError, match=r"act has the shape \[4, 8\] on the clean inputs and \[3, 8\] on the corr"
        ):
            attribute_nodes(model, x, other[:3], "act", target=0)
        with pytest.raises(ValueError, match="one target for each sample"):
            patch_nodes(model, x, other, "act", target={"a": 0, "b": 1})


class TestJudge:
    @pytest.mark.parametrize("batch_size", [4, 7, 256])
    def test_one_node_at_a_time(self, batch_size):
        model, x, other = pair()
        names = ["blocks.0.attention:heads", "blocks.1.mlp.1[0:3]"]
        before = fingerprint(model)
        found = patch_nodes(model, x, other, names, target=1, per="both", batch_size=batch_size)
        assert fingerprint(model) == before
        assert len(found.nodes) == 2 * 5 + 3 * 5
        values = record(model, other, ["blocks.0.attention:heads", "blocks.1.mlp.1"])
        for number in (0, 3, 9, 10, 24):
            with patch(model, found.nodes[number].name, values):
                expected = model(x)[:, 1]
            assert_close(found.values[:, number], (expected - model(x)[:, 1]).detach())

    def test_the_arg_max_is_that_of_the_clean_input(self):
        model, x, other = pair("mlp")
        clean = model(x)
        found = patch_nodes(model, x, other, "act", target=None, per="whole")
        answer = clean.argmax(1, keepdim=True)
        assert_close(found.values[:, 0], (model(other) - clean).gather(1, answer)[:, 0].detach())

    def test_relevance_is_exact_in_a_linear_model(self):
        """Without activations, estimates and measurements are one, for both methods."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)).double()
        x, other = torch.randn(2, 3, 5, dtype=torch.float64)
        measured = patch_nodes(model, x, other, ["0", "1"], target=(0, 2))
        for method in ("relp", "gradient"):
            assert_close(
                attribute_nodes(model, x, other, ["0", "1"], target=(0, 2), method=method).values, measured.values
            )
            assert measured.correlation(attribute_nodes(model, x, other, ["0", "1"], target=(0, 2))) == pytest.approx(1)

    def test_effects_of_different_nodes_together(self):
        model, x, other = pair("mlp")
        one, two = (patch_nodes(model, x, other, name, target=1) for name in ("fc1", "act"))
        both = one + two
        assert both.nodes == one.nodes + two.nodes
        assert torch.equal(both.values[:, :8], one.values)
        with pytest.raises(ValueError, match="correlations are between effects of the same nodes"):
            both.correlation(one)

    def test_a_place_that_is_not_met(self):
        model, x, other = pair()
        with pytest.raises(AttributionError, match=r"blocks.0.mlp:heads \(Sequential\): no attention was seen in it"):
            patch_nodes(model, x, other, "blocks.0.mlp:heads", target=1)

    def test_language_models(self):
        for model, names in (
            (llama(), ["model.layers.*.self_attn:heads", "model.layers.0.mlp"]),
            (gpt2(), ["transformer.h.*.attn:heads", "transformer.h.0.mlp"]),
        ):
            clean, corrupted = ids(2, 5, seed=1), ids(2, 5, seed=2)
            found = patch_nodes(model, {"input_ids": clean}, {"input_ids": corrupted}, names, target=(3, 4), per="both")
            guess = attribute_nodes(
                model, {"input_ids": clean}, {"input_ids": corrupted}, names, target=(3, 4), per="both"
            )
            assert len(found.nodes) == 2 * 2 * 5 + 16 * 5
            assert found.nodes == guess.nodes
            assert -1 <= found.correlation(guess) <= 1


class Copies(nn.Module):
    """A transformer without norms whose circuit is written by hand: head 0 of the first layer copies the token before.

    Its stream has 2 * SIZE features: what a token is, and what the token before it is. Head 1 looks at positions too,
    but its values are 0. The MLP of the first layer reads the second half (neurons 0 to SIZE - 1) or the first half,
    which the head does not look at. The logits at a token are the token before it.
    """

    SIZE, LENGTH = 5, 6

    def __init__(self):
        super().__init__()
        size = self.SIZE
        self.embed = nn.Embedding(size, 2 * size)
        self.attention = nn.Module()
        self.attention = HandMade(size, self.LENGTH)
        self.up, self.act, self.down = (
            nn.Linear(2 * size, 2 * size, bias=False),
            nn.ReLU(),
            nn.Linear(2 * size, 2 * size, bias=False),
        )
        self.head = nn.Linear(2 * size, size, bias=False)
        eye, nil = torch.eye(size), torch.zeros(size, size)
        with torch.no_grad():
            self.embed.weight.copy_(torch.cat([eye, nil], 1))
            self.up.weight.copy_(torch.cat([torch.cat([nil, eye], 1), torch.cat([eye, nil], 1)]))
            self.down.weight.copy_(torch.cat([torch.cat([nil, 0.1 * eye], 1), torch.cat([eye, nil], 1)]))
            self.head.weight.copy_(torch.cat([nil, eye], 1))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x + self.attention(x)
        x = x + self.down(self.act(self.up(x)))
        return self.head(x)[:, -1]


class HandMade(nn.Module):
    """Two heads: one attends to the position before and copies, the other attends evenly and puts out nothing."""

    def __init__(self, size, length):
        super().__init__()
        self.size = size
        before = torch.full((length, length), -1e4)
        before[range(1, length), range(length - 1)] = 0
        before[0, 0] = 0
        self.register_buffer("scores", torch.stack([before, torch.zeros(length, length)]))
        self.value = nn.Linear(2 * size, 2 * size, bias=False)
        self.out = nn.Linear(2 * size, 2 * size, bias=False)
        eye, nil = torch.eye(size), torch.zeros(size, size)
        with torch.no_grad():
            self.value.weight.copy_(torch.cat([torch.cat([eye, nil], 1), torch.cat([nil, nil], 1)]))
            self.out.weight.copy_(torch.cat([torch.cat([nil, nil], 1), torch.cat([eye, nil], 1)]))

    def forward(self, x):
        v = self.value(x).unflatten(-1, (2, self.size)).transpose(1, 2)
        weights = torch.softmax(self.scores.expand(len(x), -1, -1, -1), -1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TestACircuitThatIsKnown:
    @pytest.fixture
    def task(self):
        torch.manual_seed(0)
        model = Copies().double().eval()
        clean = torch.randint(0, model.SIZE, (6, model.LENGTH))
        corrupted = (clean + torch.randint(1, model.SIZE, clean.shape)) % model.SIZE
        answer = clean[:, -2]
        assert torch.equal(model(clean).argmax(1), answer)
        target = torch.stack([answer, corrupted[:, -2]], 1)
        return model, clean, corrupted, target

    def test_it_is_found_without_an_error(self, task):
        """All nodes of the circuit before all others (AUROC 1), for estimates and measurements."""
        model, clean, corrupted, target = task
        names = ["attention:heads", "act", "up:input"]
        for find in (attribute_nodes, patch_nodes):
            found = find(model, clean, corrupted, names, target=target, per="both")
            size = model.SIZE
            for node, effect in zip(found.nodes, found.values.abs().sum(0).tolist(), strict=True):
                last, unit = node.at == (model.LENGTH - 1,), node.unit
                in_circuit = (
                    last
                    and {"attention:heads": unit == 0, "act": unit < size, "up:input": unit >= size}[node.place.name]
                )
                assert (effect > 0.05) == in_circuit, node.name

    def test_faithfulness(self, task):
        model, clean, corrupted, target = task
        effects = patch_nodes(model, clean, corrupted, "attention:heads", target=target, per="both")
        assert effects.ranked()[0].name == "attention:heads[0]@5"
        curve = faithfulness(model, clean, corrupted, effects, target=target, counts=[0, 1, len(effects.nodes)])
        assert_close(curve, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))

    def test_edges_sum_to_their_node(self, task):
        model, clean, _, target = task
        found = edges(model, clean, "act", "attention:heads", target=target[:, 0])
        measured = attribute(model, clean, target=target[:, 0], layers="act").latent["act"].sum(1)
        assert_close(found.values.sum(2), measured * (torch.arange(10) < 5))  # the others have no relevance
        assert not found.values[..., 1].any()  # the head without values

    def test_graph(self, task, tmp_path):
        networkx = pytest.importorskip("networkx")
        model, clean, corrupted, target = task
        effects = attribute_nodes(model, clean, corrupted, ["attention:heads", "act"], target=target)
        found = edges(model, clean, "act", "attention:heads", target=target[:, 0])
        made = circuit_graph(effects, [found], least=1e-9)
        graph = made.networkx()
        assert set(graph.predecessors("act[2]")) <= {"attention:heads[0]"}
        assert graph.nodes["attention:heads[0]"]["value"] == pytest.approx(float(effects.mean[0]))
        read = networkx.read_graphml(made.save(tmp_path / "circuit.graphml"))
        assert set(read.edges) == set(graph.edges)
        assert made.places == ["attention:heads", "act"]
