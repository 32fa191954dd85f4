"""Relevance inside the model, row by row: what attribute() finds in each layer, and of the values of heads."""

import pytest
import torch
from small_transformers import gpt2, ids, llama, t5

from lxt_compose import AttributionError, Composite, attribute, attribute_generation, blocks

PROMPT, ANSWER = ids(1, 5), (13, 4, 14, 22)
WHOLE = torch.cat([PROMPT[0], torch.tensor(ANSWER)])
EXACT = 1e-10


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"composite": Composite()}, {"ledger": True}], ids=str)
def test_layers_are_those_of_single_targets(make, options):
    model = make()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, layers=True, **options)
    assert answer.layers.names == tuple(blocks(model))
    composite = options.get("composite", "attnlrp")
    for row, token in enumerate(ANSWER):
        place = 5 + row
        found = attribute(model, WHOLE[None, :place], target=token, layers=blocks(model), composite=composite)
        assert (answer.relevance[row, :place] - found.scores[0]).abs().max() < EXACT
        for layer, name in enumerate(answer.layers.names):
            tokens = answer.layers.tokens[row, layer]
            assert (tokens[:place] - found.latent[name][0].sum(-1)).abs().max() < EXACT
            assert not tokens[place:].any()


def test_values_of_heads():
    model = gpt2()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, layers=True)
    found = attribute(
        model, WHOLE[None, :-1], target=lambda o: o.logits[:, -1, ANSWER[-1]], layers="transformer.h.*.attn.c_attn"
    )
    for layer in range(2):
        values = found.latent[f"transformer.h.{layer}.attn.c_attn"][0][:, 32:]  # queries, keys, values
        assert (answer.layers.heads[-1, layer] - values.unflatten(1, (2, 8)).sum(-1).T).abs().max() < EXACT


def test_an_encoder_and_a_decoder():
    (answer,) = attribute_generation(t5(), PROMPT, ANSWER, layers=True)
    assert answer.layers.names == ("decoder.block.0", "decoder.block.1")
    assert answer.layers.tokens.shape == (4, 2, 4)
    assert answer.layers.heads.shape == (4, 2, 2, 4)


def test_nothing_is_kept_that_was_not_asked_for_and_nothing_is_left_behind():
    model = llama()
    assert attribute_generation(model, PROMPT, ANSWER)[0].layers is None
    attribute_generation(model, PROMPT, ANSWER, layers=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class OneLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(60, 8), torch.nn.Linear(8, 60)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


def test_errors():
    with pytest.raises(AttributionError, match="OneLayer has no repeated blocks, so it has no layers to look into"):
        attribute_generation(OneLayer().double(), PROMPT, ANSWER, layers=True)
    with pytest.raises(ValueError, match="traced=True is for the relevance of inputs; layers=True runs registered"):
        attribute_generation(gpt2(), PROMPT, ANSWER, layers=True, traced=True)
