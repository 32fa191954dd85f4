"""Relevance of weights, conserved in each layer; scores for pruning, and pruning that leaves no trace."""

import pytest
import torch
from small_transformers import gpt2, ids
from support import assert_close, fingerprint, make
from torch import nn

from lxt_compose import AttributionError, Composite, Gamma, MatchError, attribute
from lxt_compose.concepts import prune, pruning_scores, weight_relevance

GRADIENT = Composite(formulation="gradient")


class TestRelevance:
    def test_by_hand(self):
        """R_w_ij = sum over samples of x_i w_ij g_j, with the gradients of a net of ReLUs as g."""
        model, x = make("mlp")
        found = weight_relevance(model, x.split(3), target=1, composite=GRADIENT)
        hidden = torch.relu(model.fc1(x)).detach()
        out, inner = model.fc2.weight.detach(), model.fc1.weight.detach()
        expected = torch.zeros(3, 8, dtype=torch.float64)
        expected[1] = (hidden * out[1]).sum(0)
        assert_close(found.total["fc2.weight"], expected)
        first = torch.zeros(8, 6, dtype=torch.float64)
        for n in range(len(x)):
            for j in range(8):
                for i in range(6):
                    first[j, i] += x[n, i] * inner[j, i] * (hidden[n, j] > 0) * out[1, j]
        assert_close(found.total["fc1.weight"], first)
        assert found.count == 4

    @pytest.mark.parametrize("name", ["cnn", "transformer", "residual"])
    def test_conserved_in_each_layer(self, name):
        """What all weights of a layer have is what its outputs have, less the biases' shares."""
        model, x = make(name)
        found = weight_relevance(model, [x], target=0, composite=GRADIENT)
        layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert sorted(found.total) == sorted(f"{layer}.weight" for layer in layers)
        slots = {}
        handles = [
            model.get_submodule(layer).register_forward_hook(
                lambda m, a, out, layer=layer: out.register_hook(lambda slot: slots.__setitem__(layer, slot)) and None
            )
            for layer in layers
        ]
        latent = attribute(model, x, target=0, composite=GRADIENT, layers=layers).latent
        for handle in handles:
            handle.remove()
        for layer in layers:
            bias = model.get_submodule(layer).bias
            dim = 1 if isinstance(model.get_submodule(layer), nn.Conv2d) else -1
            share = (slots[layer].movedim(dim, -1) * bias).sum()
            assert_close(found.total[f"{layer}.weight"].sum(), (latent[layer].sum() - share).detach())
            assert found.passed[f"{layer}.weight"] == pytest.approx(float(latent[layer].sum()))

    @pytest.mark.parametrize("aggregate", ["absolute", "norm"])
    @pytest.mark.parametrize("kind", ["linear", "convolution"])
    def test_aggregates_by_hand(self, aggregate, kind):
        """Contributions one by one: of each sample and place, its input times the weight times what flows back."""
        torch.manual_seed(3)
        first = nn.Linear(3, 2) if kind == "linear" else nn.Conv1d(1, 2, 3, stride=2)
        model = nn.Sequential(first, nn.Flatten(), nn.Tanh(), nn.Linear(2 if kind == "linear" else 4, 2)).double()
        x = torch.randn(5, 3, dtype=torch.float64) if kind == "linear" else torch.randn(5, 1, 5, dtype=torch.float64)
        z = first(x).requires_grad_()
        with GRADIENT.register(model[1:]):
            (slot,) = torch.autograd.grad(model[1:](z)[:, 1].sum(), z)
        weight = first.weight.detach().reshape(2, 3)
        expected = torch.zeros(2, 3, dtype=torch.float64)
        for n in range(5):
            for place in range(1 if kind == "linear" else 2):
                seen = x[n] if kind == "linear" else x[n, 0, 2 * place : 2 * place + 3]
                g = slot[n] if kind == "linear" else slot[n, :, place]
                for j in range(2):
                    for i in range(3):
                        c = seen[i] * weight[j, i] * g[j]
                        expected[j, i] += c.abs() if aggregate == "absolute" else c.square()
        expected = expected.sqrt() if aggregate == "norm" else expected
        found = weight_relevance(model, x.split(2), "0", target=1, composite=GRADIENT, aggregate=aggregate)
        assert_close(found.total["0.weight"], expected.reshape(first.weight.shape).detach())
        assert aggregate in repr(found)
        assert "0.weight" in found._repr_html_()

    def test_batches_add_up(self):
        model, x = make("transformer")
        whole = weight_relevance(model, [x], "blocks.*.mlp.?", target=0)
        parts = weight_relevance(model, x.split(1), "blocks.*.mlp.?", target=0)
        assert list(whole.total) == [f"blocks.{b}.mlp.{n}.weight" for b in (0, 1) for n in (0, 2)]
        for name, total in whole.total.items():
            assert_close(parts.total[name], total)

    def test_layers_of_other_makes(self):
        """GPT-2's Conv1D, which has its weights the other way round."""
        model = gpt2()
        found = weight_relevance(model, [{"input_ids": ids()}], "transformer.h.0.*", target=3)
        assert found.total["transformer.h.0.mlp.c_fc.weight"].shape == (16, 64)
        assert not any("ln" in name for name in found.total)

    def test_a_layer_that_runs_twice(self):
        layer = nn.Linear(4, 4, bias=False).double()
        model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4, dtype=torch.float64)
        found = weight_relevance(model, [x], "0", target=1, composite=GRADIENT)
        latent = attribute(model, x, target=1, composite=GRADIENT, layers="0").latent
        assert_close(found.total["0.weight"].sum(), latent["0"].sum() + latent["0#2"].sum())

    def test_no_trace(self):
        model, x = make("cnn")
        before = fingerprint(model)
        weight_relevance(model, [x], target=0)
        assert fingerprint(model) == before

    def test_errors(self):
        model, x = make("mlp")
        with pytest.raises(ValueError, match="weights have relevance in the gradient formulation"):
            weight_relevance(model, [x], composite=Composite())
        with pytest.raises(AttributionError, match=r"fc1 has the rule Gamma\(.*\), whose contributions are not those"):
            weight_relevance(model, [x], composite=Composite({"fc1": Gamma()}, formulation="gradient"))
        with pytest.raises(MatchError, match="no module that 'act' matches is linear in a weight"):
            weight_relevance(model, [x], "act")
        with pytest.raises(ValueError, match="there were no batches"):
            weight_relevance(model, [])
        with pytest.raises(ValueError, match="by sum, absolute, norm, got aggregate='mean'"):
            weight_relevance(model, [x], aggregate="mean")


class TestPruning:
    def test_wanda_by_hand(self):
        model, x = make("mlp")
        found = pruning_scores(model, x.split(3), by="wanda")
        hidden = torch.relu(model.fc1(x)).detach()
        assert_close(found["fc1.weight"], model.fc1.weight.detach().abs() * x.norm(dim=0))
        assert_close(found["fc2.weight"], model.fc2.weight.detach().abs() * hidden.norm(dim=0))

    def test_wanda_of_a_convolution(self):
        torch.manual_seed(0)
        model, x = nn.Conv2d(2, 3, 2, bias=False).double(), torch.randn(4, 2, 3, 3, dtype=torch.float64)
        patches = nn.functional.unfold(x, 2).transpose(1, 2).flatten(0, 1)  # [places, 8]
        expected = model.weight.detach().abs() * patches.norm(dim=0).reshape(2, 2, 2)
        assert_close(pruning_scores(model, [x], by="wanda")["weight"], expected)

    @pytest.mark.parametrize("within", ["model", "layer", "row"])
    def test_least_scores_go(self, within):
        model, x = make("mlp")
        scores = pruning_scores(model, [x], by="magnitude")
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        before = fingerprint(model)
        with prune(model, scores, 0.5, within=within) as pruned:
            assert pruned.sparsity == pytest.approx(0.5)
            zeros = {name: model.get_parameter(name) == 0 for name in scores}
        groups = {
            "model": [
                (torch.cat([s.flatten() for s in scores.values()]), torch.cat([z.flatten() for z in zeros.values()]))
            ],
            "layer": [(scores[name].flatten(), zeros[name].flatten()) for name in scores],
            "row": [(row, zero) for name in scores for row, zero in zip(scores[name], zeros[name], strict=True)],
        }[within]
        for score, zero in groups:
            assert int(zero.sum()) == len(zero) // 2
            assert score[zero].max() <= score[~zero].min()
        assert fingerprint(model) == before
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, kept[name])

    def test_what_is_not_relevant_changes_nothing(self):
        """Half of the hidden neurons are cut off from the output: their weights have no relevance, and go first."""
        model, x = make("mlp")
        with torch.no_grad():
            model.fc2.weight[:, ::2] = 0
        answers = model(x)
        with prune(model, pruning_scores(model, [x], "fc1", target=None, composite=GRADIENT), 0.5):
            assert_close(model(x).detach(), answers.detach())
            assert int((model.fc1.weight == 0).sum()) == 24

    def test_weights_that_are_tied(self):
        """GPT-2's head is its table of tokens: one tensor with two names."""
        model = gpt2()
        before = fingerprint(model)
        with prune(model, pruning_scores(model, [], "lm_head", by="magnitude"), 0.25):
            assert int((model.transformer.wte.weight == 0).sum()) == 60 * 16 // 4
        assert fingerprint(model) == before

    def test_random_is_seeded_and_others_are_named(self):
        model, x = make("mlp")
        one, two, other = (pruning_scores(model, [x], by="random", seed=seed)["fc1.weight"] for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        with pytest.raises(ValueError, match="got by='size'"):
            pruning_scores(model, [x], by="size")
        with pytest.raises(ValueError, match="got within='column'"):
            prune(model, {"fc1.weight": one}, 0.5, within="column")
        with pytest.raises(ValueError, match="a share from 0 to 1, got 50"):
            prune(model, {"fc1.weight": one}, 50)
        with pytest.raises(MatchError, match=r"fc3.weight is no parameter of Sequential"):
            prune(model, {"fc3.weight": one}, 0.5)
