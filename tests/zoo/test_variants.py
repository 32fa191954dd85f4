"""The same architectures run in other ways: checkpointing, experts, caches, half precision, quantized layers."""

import copy
import warnings

import pytest
import torch
import transformers
from architectures import VOCABULARY, ZOO, build, inputs_of
from closing import KeepDouble
from test_zoo import assert_same, embedded, logit_of, relevance_of

from lxt_compose import Composite, presets

transformers.logging.set_verbosity_error()

DROPOUTS = """hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout activation_dropout resid_pdrop
    attn_pdrop embd_pdrop dropout_rate hidden_dropout classifier_dropout drop_path_rate pooler_dropout
    classifier_dropout_prob seq_classif_dropout layerdrop encoder_layerdrop decoder_layerdrop""".split()
CHECKPOINTED = "llama gpt2 mixtral gemma3_text bloom mamba bert t5 bart vit swin".split()
CHECKPOINT_CASES = [
    (name, reentrant, preset)
    for name in CHECKPOINTED
    for reentrant in (False, True)
    for preset in ("attnlrp", "res_lrp")  # the latter has a rule for the residuals of a block itself
    # All outputs of a reentrant checkpoint require grad, so T5's position bias takes its share of a sum there.
    if (name, reentrant, preset) != ("t5", True, "res_lrp")
]
EXPERTS = ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"]
DECODERS = [name for name, each in ZOO.items() if each.kind == "causal"]


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*", "ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(("name", "reentrant", "preset"), CHECKPOINT_CASES)
def test_gradient_checkpointing_changes_nothing(name, reentrant, preset):
    model = build(ZOO[name], attention="eager")
    for key, value in {**dict.fromkeys(DROPOUTS, 0.0), "use_cache": False}.items():
        if getattr(model.config, key, None):
            setattr(model.config, key, value)
    model = type(model)(model.config).double()
    model.load_state_dict(build(ZOO[name], attention="eager").state_dict())
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    expected, plain_report = relevance_of(model.eval(), inputs, presets.get(preset))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()  # transformers checkpoints while training only
    ran = counted(model)
    found, report = relevance_of(model, inputs, presets.get(preset))
    assert ran
    assert_same(found, expected, 1e-12)
    assert report.complete, str(report)
    plain, checkpointed = ({(row.path, row.target, row.rule) for row in each.rows} for each in (plain_report, report))
    assert {row for row in plain if row[1] != "dropout"} <= checkpointed


def counted(model):
    """A list that grows with each block that is checkpointed, so that a test that never checkpoints is seen."""
    ran = []
    for module in model.modules():
        run = getattr(module, "_gradient_checkpointing_func", None)
        if run is not None:
            module._gradient_checkpointing_func = lambda *args, run=run: (ran.append(1), run(*args))[1]
    return ran


@pytest.mark.parametrize("preset", presets.TRANSFORMERS)
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_one_by_one_and_batched_are_the_same(name, preset):
    models = [build(ZOO[name], attention="eager", experts=experts) for experts in ("eager", "batched_mm")]
    inputs = embedded(name, models[0], inputs_of(ZOO[name], models[0]))
    with KeepDouble():
        (expected, _), (found, report) = (relevance_of(model, inputs, presets.get(preset)) for model in models)
    assert report.complete
    assert_same(found, expected)


@pytest.mark.parametrize("name", EXPERTS)
def test_grouped_experts_are_the_same_in_float32(name):
    """Torch's grouped product knows no float64."""
    models = [build(ZOO[name], attention="eager", experts=e, dtype=torch.float32) for e in ("eager", "grouped_mm")]
    inputs = embedded(name, models[0], inputs_of(ZOO[name], models[0]))
    (expected, _), (found, report) = (relevance_of(model, inputs, presets.attnlrp()) for model in models)
    assert report.complete, str(report)
    assert {row.target for row in report.rows} & {"grouped_mm"}
    assert_same(found, expected, 1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_a_filled_cache_is_a_constant(name):
    """The last tokens are explained given the first, whose keys and values (or states) carry nothing."""
    model = build(ZOO[name], attention="eager")
    inputs = embedded(name, model, inputs_of(ZOO[name], model))
    with KeepDouble(), torch.no_grad():
        whole = model(**inputs).logits[0, -1, 1]
        filled = model(inputs_embeds=inputs["inputs_embeds"][:, :-1], use_cache=True)
    key = "cache_params" if name == "mamba" else "past_key_values"
    last = inputs["inputs_embeds"][:, -1:].clone().requires_grad_()
    with KeepDouble(), presets.cp_lrp().register(model) as registration:
        logit = model(inputs_embeds=last, use_cache=True, **{key: filled[key]}).logits[0, -1, 1]
        logit.backward()
    assert float((logit.detach() - whole).abs()) < 1e-9
    assert registration.report().complete
    assert last.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DECODERS)
def test_half_precision_ranks_tokens_as_float32_does(name, dtype):
    exact = build(ZOO[name], attention="eager", dtype=torch.float32)
    ids = torch.randint(3, VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(0))
    embeddings = {"inputs_embeds": exact.get_input_embeddings()(ids).detach()}
    expected, _ = relevance_of(exact, embeddings, presets.attnlrp(), lambda output: logit_of(output))
    lower = build(ZOO[name], attention="eager", dtype=dtype)
    embeddings = {"inputs_embeds": embeddings["inputs_embeds"].to(dtype)}
    found, _ = relevance_of(lower, embeddings, presets.attnlrp(), lambda output: logit_of(output))
    tokens = [each["inputs_embeds"].float().sum(-1).flatten() for each in (found, expected)]
    assert torch.isfinite(found["inputs_embeds"]).all()
    ranks = torch.stack([each.argsort().argsort().double() for each in tokens])
    assert float(torch.corrcoef(ranks)[0, 1]) >= 0.99


def test_quantized_layers_are_explained_as_dequantized_ones():
    """Torch's int8 kernels have no backward: relevance takes that of the weights that the kernels hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(ZOO["llama"], attention="eager", dtype=torch.float32)
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
    inputs = embedded("llama", model, inputs_of(ZOO["llama"], model))
    leaf = inputs["inputs_embeds"].requires_grad_()
    with Composite(formulation="gradient").register(quantized) as registration:
        logits = quantized(inputs_embeds=leaf).logits
        (gradient,) = torch.autograd.grad(logits[..., 3].sum(), leaf)
    report = registration.report()
    assert report.complete, str(report)
    assert any("linear_dynamic" in row.target for row in report.rows)
    assert gradient.abs().min(-1).values.max() > 0
