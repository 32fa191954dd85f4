"""The zoo's ledgers close: for every architecture of transformers in the zoo, under every preset for transformers."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from lxt_compose import presets

pytest.importorskip("transformers")
from architectures import VOCABULARY, ZOO, build, inputs_of

PRESETS = ("attnlrp", "cp_lrp", "res_lrp")
ROUNDING = 1e-8


def as_leaf(module, args, output):
    """A hook: what comes out of an embedding of tokens is an input."""
    return output.detach().requires_grad_()


def ledger_of(model, inputs, composite):
    """The ledger of one number of each sample's output, and whether the report is complete."""
    given = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in inputs.items()}
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding) and len(module.weight) == VOCABULARY:
                stack.callback(module.register_forward_hook(as_leaf).remove)
        registration = stack.enter_context(composite.register(model))
        with registration.ledger() as books:
            output = model(**given)
            scores = output.logits if "logits" in output else output.logits_per_image
            scores.flatten(1)[:, -1].sum().backward()
        return books.frozen(), registration.report().complete


@pytest.mark.parametrize("name", ZOO)
def test_the_ledger_closes(name):
    architecture = ZOO[name]
    model = build(architecture)
    inputs = inputs_of(architecture, model, batch=2)
    for preset in PRESETS:
        books, complete = ledger_of(model, inputs, presets.get(preset))
        assert books.unaccounted < ROUNDING, preset
        assert float(books.seed.abs().max()) > 1e-3
        absorbed = [amount.total for entry in books.books.entries for amount in entry.absorbed.values()]
        total = books.books.inputs.total + sum(absorbed)
        assert total == pytest.approx(books.books.seed.total, abs=ROUNDING)
        assert not any(entry.status == "unseen" for entry in books.entries)
        assert complete == (not books.uncovered) == books.check.complete
        assert ("softmax" in kinds_of(books)) == (preset != "cp_lrp" and has_attention(books)), preset


def kinds_of(books):
    """Kinds that absorb more than rounding errors."""
    return {kind for kind, amount in books.absorbed.items() if float(amount.abs().max()) > ROUNDING}


def has_attention(books):
    """Whether relevance met a softmax, in attention or in a router of experts."""
    return any("softmax" in entry.absorbed for entry in books.entries)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "bert", "deberta-v2", "vit", "swin"])
def test_each_sample_is_as_alone(name):
    architecture = ZOO[name]
    model = build(architecture)
    inputs = inputs_of(architecture, model, batch=3)
    books, _ = ledger_of(model, inputs, presets.attnlrp())
    for sample in range(3):
        one = {key: value[sample : sample + 1] for key, value in inputs.items()}
        alone, _ = ledger_of(model, one, presets.attnlrp())
        assert float(books.inputs[sample]) == pytest.approx(float(alone.inputs), abs=ROUNDING)
        expected = {(e.path, e.name, e.rule): e.lost.total for e in alone.entries}
        for entry in books.entries:
            assert not entry.lost.shared, entry
            found = float(entry.lost.by_sample[sample])
            assert found == pytest.approx(expected.get((entry.path, entry.name, entry.rule), 0.0), abs=ROUNDING), entry


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_biases_and_positions_absorb_is_what_they_get_as_leaves(name):
    """With every added parameter a leaf, its relevance is ``t * t.grad``; the ledger books the same as absorbed."""
    architecture = ZOO[name]
    model = build(architecture)
    ids = inputs_of(architecture, model, batch=1)["input_ids"]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    biases = {
        key: value.detach().clone().requires_grad_()
        for key, value in model.named_parameters()
        if key.endswith(("bias", "wpe.weight")) or "position_embeddings" in key or "token_type" in key
    }
    composite = presets.attnlrp()
    with composite.register(model):
        output = torch.func.functional_call(model, biases, (), {"inputs_embeds": embedded})
        output.logits.flatten(1)[0, -1].backward()
    leaves = sum(float((leaf * leaf.grad).sum().detach()) for leaf in biases.values() if leaf.grad is not None)
    embedded = embedded.detach().requires_grad_()
    with composite.register(model) as registration, registration.ledger() as books:
        model(inputs_embeds=embedded).logits.flatten(1)[0, -1].backward()
    absorbed = {kind: float(amount) for kind, amount in books.absorbed.items()}
    told = absorbed["bias"] + absorbed.get("constant", 0.0) + absorbed.get("norm", 0.0)
    assert told == pytest.approx(leaves, abs=ROUNDING)
    assert abs(leaves) > 1e-2
    assert float(books.inputs) == pytest.approx(float((embedded * embedded.grad).sum().detach()), abs=ROUNDING)
