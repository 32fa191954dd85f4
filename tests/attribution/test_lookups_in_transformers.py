"""Where models of transformers look their ids up: transposed, padded to a window, and again for a decoder."""

import pytest
import torch
from support import FORMULATIONS, assert_close
from torch.nn import functional as F

from lxt_compose import Composite, attribute

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def made(kind, config):
    torch.manual_seed(0)
    model = kind(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def bart(kind=transformers.BartForSequenceClassification, config=transformers.BartConfig, **options):
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 50}
    small |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32}
    return made(kind, config(num_labels=3, **small, **options))


def t5():
    config = transformers.T5Config(
        d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=50, decoder_start_token_id=0, num_labels=3
    )
    return made(transformers.T5ForSequenceClassification, config)


def mbart():
    return bart(transformers.MBartForSequenceClassification, transformers.MBartConfig)


def both_look_ups(model, ids, composite, choose):
    """The slow way: relevance of what the encoder and the decoder look up, by hooks, each with its ids."""
    leaves = []

    def leaf(module, args, output):
        leaves.append((args[0].clone(), output.detach().requires_grad_()))
        return leaves[-1][1].clone()

    base = model.base_model  # heads have no get_encoder of their own before transformers 5
    tables = {base.get_encoder().embed_tokens, base.get_decoder().embed_tokens}
    hooks = [table.register_forward_hook(leaf) for table in tables]
    with composite.register(model):
        y = choose(model(input_ids=ids))
        y.backward(None if y.dim() == 0 else y.detach())
    for hook in hooks:
        hook.remove()
    return [(i, e.grad * (e if composite.formulation == "gradient" else 1)) for i, e in leaves]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("build", [bart, t5, mbart])
def test_decoder_ids_that_are_made_of_the_ids(build, formulation):
    model, composite = build(), Composite(formulation=formulation)
    ids = torch.tensor([[7, 11, 23, 31, 2 if build is not t5 else 1], [4, 5, 9, 8, 2 if build is not t5 else 1]])
    found = attribute(model, {"input_ids": ids}, target=1, composite=composite, ledger=True)

    def choose(output):
        y = output.logits[:, 1]
        return y.sum() if formulation == "gradient" else y

    (first, of_encoder), (second, of_decoder) = both_look_ups(model, ids, composite, choose)
    assert torch.equal(first, ids)
    assert torch.equal(second[:, 1:], ids[:, :-1])
    want = of_encoder.sum(-1).detach()
    want[:, :-1] += of_decoder.sum(-1)[:, 1:].detach()
    if build is mbart:  # whose decoder begins with the last token
        want[:, -1] += of_decoder.sum(-1)[:, 0].detach()
    assert_close(found.scores, want)
    assert found.report.complete
    assert found.ledger.unaccounted < 1e-8
    assert float(found.ledger.books.inputs.total) == pytest.approx(float(want.sum()), abs=1e-9)


def test_xlnet_embeds_its_ids_transposed():
    config = transformers.XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    model = made(transformers.XLNetForSequenceClassification, config)
    ids = torch.randint(5, 50, (3, 3))
    ids = torch.maximum(ids, ids.t())  # nothing in the values tells that they were
    together = attribute(model, {"input_ids": ids}, target=1)
    alone = [attribute(model, {"input_ids": ids[i : i + 1]}, target=1).relevance for i in range(3)]
    assert_close(together.relevance, torch.cat(alone))
    assert together.scores.shape == (3, 3)


def test_longformer_pads_to_its_window():
    config = transformers.LongformerConfig(attention_window=8, max_position_embeddings=40, pad_token_id=1, **SMALL)
    model = made(transformers.LongformerForSequenceClassification, config)
    ids = torch.randint(5, 50, (2, 11))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = attribute(model, given, target=1)
    padded = {"input_ids": F.pad(ids, (0, 5), value=1), "attention_mask": F.pad(torch.ones_like(ids), (0, 5))}
    assert found.relevance.shape == (2, 11, 16)
    assert_close(found.relevance, attribute(model, padded, target=1).relevance[:, :11])


def test_choices_are_embedded_one_after_the_other():
    model = made(transformers.BertForMultipleChoice, transformers.BertConfig(**SMALL))
    ids = torch.randint(5, 50, (2, 3, 4))
    found = attribute(model, {"input_ids": ids}, target=1)
    assert found.dims == {"input_ids": ("batch", "choice", "token", "feature")}
    assert found.relevance.shape == (2, 3, 4, 16)
    assert found.scores[:, [0, 2]].abs().max() == 0  # each choice has a logit of its own
    assert found.scores[:, 1].abs().min() > 0


def test_token_types_of_a_tokenizer_have_a_relevance_of_their_own():
    model = made(transformers.BertForSequenceClassification, transformers.BertConfig(**SMALL))
    ids = torch.randint(5, 50, (2, 4))
    kinds = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    found = attribute(model, {"input_ids": ids, "token_type_ids": kinds}, target=1, ledger=True)
    assert found.scores.shape == (2, 4)
    assert found.beside["token_type_ids"].shape == (2, 4, 16)
    without = attribute(model, {"input_ids": ids, "token_type_ids": kinds}, target=1)
    assert_close(found.relevance, without.relevance)
    total = sum(float(r.sum()) for r in found.relevances.values())
    assert float(found.ledger.books.inputs.total) == pytest.approx(total, abs=1e-9)
