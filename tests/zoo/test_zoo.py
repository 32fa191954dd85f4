"""Every architecture of the zoo under the presets, with no rule written for any of them."""

import contextlib
import functools
import inspect

import pytest
import torch
import transformers
from architectures import ZOO, build, inputs_of
from closing import KeepDouble, close, sinking_rules, sources_of
from support import fingerprint

from lxt_compose import presets

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

EVERY = pytest.mark.parametrize("name", ZOO)
CAUSAL = pytest.mark.parametrize("name", [name for name, each in ZOO.items() if each.kind == "causal"])
BOTH_ATTENTIONS = pytest.mark.parametrize(
    "name", [name for name, each in ZOO.items() if each.attends and not each.eager_only]
)


@functools.cache
def model_of(name, attention="eager", seed=0):
    return build(ZOO[name], attention=attention, seed=seed)


@functools.cache
def sources(name):
    model = model_of(name)
    with KeepDouble():
        return sources_of(model, inputs_of(ZOO[name], model))


def logit_of(output, sample=0, position=-1):
    """One logit of one sample; a causal model gives one for each position."""
    if "logits" in output:
        logits = output.logits[sample]
        return logits[position, 1] if logits.dim() > 1 else logits[1]
    return output.logits_per_text[sample, sample]


def embedded(name, model, inputs):
    """The inputs with token ids replaced by their embeddings, where the architecture takes these."""
    if ZOO[name].kind in ("pair", "image"):
        return dict(inputs)
    embed = model.get_input_embeddings()
    for ids, embeddings in (("input_ids", "inputs_embeds"), ("decoder_input_ids", "decoder_inputs_embeds")):
        if ids in inputs:
            table = embed if ids == "input_ids" or ZOO[name].kind != "speech" else model.model.decoder.embed_tokens
            inputs = {**inputs, embeddings: table(inputs[ids]).detach()}
            del inputs[ids]
    return inputs


def relevance_of(model, inputs, composite, pick=logit_of):
    """The relevance of every floating point input for one logit, and the report."""
    given = {
        key: value.detach().clone().requires_grad_() if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    with composite.register(model) as registration:
        logit = pick(model(**given))
        logit.backward(logit.detach() if composite.formulation == "relevance" else None)
    found = {}
    for key, value in given.items():
        if value.is_floating_point():
            found[key] = value.grad if composite.formulation == "relevance" else value.detach() * value.grad
    return found, registration.report()


def assert_same(found, expected, tolerance=1e-10):
    """Equal relative to the largest relevance of each input."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(float(value.abs().max()), 1e-3)
        assert float((found[key] - value).abs().max()) <= tolerance * scale, key


@EVERY
@pytest.mark.parametrize("preset", presets.TRANSFORMERS)
@pytest.mark.every_case(preset=("attnlrp", "cp_lrp"))
def test_complete_bit_identical_and_without_a_trace(name, preset):
    model, twin = model_of(name), model_of(name, seed=1)
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    with torch.no_grad():
        plain = model(**inputs)
    before, twins = fingerprint(model), input_times_gradient(twin, inputs)
    given = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    with presets.get(preset).register(model) as registration:
        output = model(**given)
        logit_of(output).backward()
        assert_same(input_times_gradient(twin, inputs), twins, 0.0)
    for key, value in plain.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, output[key].detach()), key
    assert fingerprint(model) == before
    assert registration.report().complete, str(registration.report())


def input_times_gradient(model, inputs):
    given = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    logit_of(model(**given)).backward()
    return {key: value.detach() * value.grad for key, value in given.items() if value.is_floating_point()}


@EVERY
def test_cp_lrp_closes(name):
    model = model_of(name)
    with KeepDouble(), presets.cp_lrp().register(model):
        found = close(model, inputs_of(ZOO[name], model), sources(name), logit_of)
    assert abs(found.logit) > 1e-3
    assert found.gap < 1e-8


@EVERY
def test_attnlrp_closes_once_the_softmax_sink_is_added(name):
    model, absorbed = model_of(name), []
    with KeepDouble(), presets.attnlrp(sinking_rules(absorbed)).register(model):
        found = close(model, inputs_of(ZOO[name], model), sources(name), logit_of, absorbed)
    assert bool(absorbed) == ZOO[name].attends
    assert found.gap < 1e-8
    if ZOO[name].attends:
        assert abs(found.sink) > 1e-8  # else the test would show nothing


@BOTH_ATTENTIONS
@pytest.mark.parametrize("preset", presets.TRANSFORMERS)
def test_eager_and_sdpa_are_the_same(name, preset):
    eager, fused = model_of(name, "eager"), model_of(name, "sdpa")
    fused.load_state_dict(eager.state_dict())  # some draw their parameters in another order
    inputs = embedded(name, eager, inputs_of(ZOO[name], eager))
    with KeepDouble():
        expected, _ = relevance_of(eager, inputs, presets.get(preset))
        found, report = relevance_of(fused, inputs, presets.get(preset))
    assert report.complete
    assert "scaled_dot_product_attention" in {row.target for row in report.rows}
    assert_same(found, expected)


@EVERY
@pytest.mark.parametrize("preset", presets.TRANSFORMERS)
def test_both_formulations_are_the_same(name, preset):
    model = model_of(name)
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    with KeepDouble():
        expected, _ = relevance_of(model, inputs, presets.get(preset))
        found, report = relevance_of(model, inputs, presets.get(preset, formulation="relevance"))
    assert report.complete
    assert_same(found, expected, 1e-7)


@EVERY
def test_a_batch_is_its_samples_one_by_one(name):
    model = model_of(name)
    inputs = embedded(name, model, inputs_of(ZOO[name], model, batch=3))
    with KeepDouble():
        together, _ = relevance_of(
            model, inputs, presets.attnlrp(), lambda output: sum(logit_of(output, sample) for sample in range(3))
        )
        for sample in range(3):
            alone = {key: value[sample : sample + 1] for key, value in inputs.items()}
            found, _ = relevance_of(model, alone, presets.attnlrp())
            assert_same({key: value[sample : sample + 1] for key, value in together.items()}, found)


def padded(name, model, inputs, side, count=3):
    """The inputs with `count` tokens of noise added that the attention mask hides."""
    embeddings = inputs["inputs_embeds"]
    noise = torch.randn(1, count, embeddings.shape[-1], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    hidden, seen = torch.zeros(1, count, dtype=torch.long), torch.ones(embeddings.shape[:2], dtype=torch.long)
    parts, mask = ([embeddings, noise], [seen, hidden]) if side == "right" else ([noise, embeddings], [hidden, seen])
    result = {**inputs, "inputs_embeds": torch.cat(parts, 1), "attention_mask": torch.cat(mask, 1)}
    if side == "left" and "position_ids" in inspect.signature(type(model).forward).parameters:
        result["position_ids"] = (result["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return result


SIDES = [
    (name, side)
    for name, each in ZOO.items()
    for side in ("left", "right")
    # Else its first token is the one that is read, or its positions count from the left.
    if each.text and each.pads and (side == "right" or each.kind == "causal")
]


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_padding_changes_nothing(name, side):
    model = model_of(name)
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    length = inputs["inputs_embeds"].shape[1]
    last = -1 if side == "left" or ZOO[name].kind != "causal" else length - 1
    with KeepDouble():
        expected, _ = relevance_of(model, inputs, presets.attnlrp())
        found, _ = relevance_of(
            model, padded(name, model, inputs, side), presets.attnlrp(), lambda output: logit_of(output, position=last)
        )
    tokens = found["inputs_embeds"]
    kept, hidden = (tokens[:, :length], tokens[:, length:]) if side == "right" else (tokens[:, 3:], tokens[:, :3])
    assert_same({**found, "inputs_embeds": kept}, expected, 1e-9)
    assert not hidden.any()


ATTENTIONS = [
    (name, attention)
    for name, each in ZOO.items()
    for attention in ("eager", "sdpa")
    # transformers has no SDPA for some
    if each.kind == "causal" and (attention == "eager" or (each.attends and not each.eager_only))
]


@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp"])
def test_future_tokens_get_nothing(name, attention, preset):
    model = model_of(name, attention)
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    found, _ = relevance_of(model, inputs, presets.get(preset), lambda output: logit_of(output, position=3))
    tokens = found["inputs_embeds"][0]
    assert not tokens[4:].any()
    assert tokens[:4].abs().sum(-1).all()


@CAUSAL
def test_a_cache_changes_nothing(name):
    model = model_of(name)
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    with KeepDouble():
        found = [relevance_of(model, {**inputs}, presets.attnlrp())[0] for _ in range(2)]
        with torch_default(model, use_cache=False):
            without, _ = relevance_of(model, inputs, presets.attnlrp())
    assert_same(found[0], found[1], 0.0)
    assert_same(found[0], without)


@contextlib.contextmanager
def torch_default(model, **settings):
    """Other settings in a model's configuration, for a while."""
    before = {key: getattr(model.config, key) for key in settings}
    for key, value in settings.items():
        setattr(model.config, key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            setattr(model.config, key, value)
