"""Adapters of PEFT: merged and unmerged they have one relevance, and the ledger tells how much came through them."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="peft is not installed")

from lxt_compose import Composite, Ledger, attribute  # noqa: E402
from lxt_compose.rules.defaults import default_rules  # noqa: E402

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])
WHERE, LAYERS = ["q_proj", "v_proj", "down_proj"], {"task_type": "CAUSAL_LM"}
MERGED = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=WHERE, init_lora_weights=False, lora_dropout=0.1, **LAYERS),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=WHERE, init_lora_weights=False, **LAYERS),
    "adalora": lambda: peft.AdaLoraConfig(total_step=9, target_modules=WHERE, init_lora_weights=False, **LAYERS),
    "ia3": lambda: peft.IA3Config(
        target_modules=WHERE, feedforward_modules=["down_proj"], init_ia3_weights=False, **LAYERS
    ),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=WHERE, init_weights=False, **LAYERS),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=WHERE, init_weights=False, **LAYERS),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=WHERE, init_weights=False, **LAYERS),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"], init_weights=False, **LAYERS),
    "lora of embeddings": lambda: peft.LoraConfig(
        r=4, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False, **LAYERS
    ),
}
PROMPTS = {
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **LAYERS),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **LAYERS),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **LAYERS),
}


def adapted(config):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=32, initializer_range=0.5)
    )
    model = peft.get_peft_model(model, config()).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3" in name or "prompt" in name:
                parameter.add_(torch.randn_like(parameter))
    return model


def explained(model, formulation, **options):
    table = default_rules(formulation, 1e-13 if formulation == "relevance" else 0.0)
    composite = Composite(formulation=formulation, defaults=table)
    return attribute(model, {"input_ids": IDS}, composite=composite, target=5, **options)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("kind", MERGED)
def test_merged_and_unmerged_adapters_have_one_relevance(kind, formulation):
    model = adapted(MERGED[kind])
    found = explained(model, formulation, ledger=True)
    plain = explained(copy.deepcopy(model).merge_and_unload().double().eval(), formulation)
    assert found.report.complete, str(found.report)
    assert found.ledger.unaccounted < 1e-9
    torch.testing.assert_close(found.output, plain.output)
    scores = found.scores, plain.scores  # of embeddings, the features are others
    torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-6 * float(plain.scores.abs().max()))
    if "embeddings" not in kind:
        largest = float(plain.relevance.abs().max())
        torch.testing.assert_close(found.relevance, plain.relevance, rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_learned_prompts_get_their_share_as_constants(kind, formulation):
    found = explained(adapted(PROMPTS[kind]), formulation, ledger=True)
    assert found.report.complete, str(found.report)
    assert found.relevance.shape == (1, 6, 16)
    assert found.ledger.unaccounted < 1e-9
    assert float(found.ledger.absorbed["constant"].abs()) > 1e-6


def test_the_ledger_tells_what_came_through_an_adapter():
    ledger = explained(adapted(MERGED["lora"]), "gradient", ledger=True).ledger
    modules = {module.path: module for module in ledger.modules}
    assert len(ledger.adapters) == 6
    for found in ledger.adapters:
        inside = modules[f"{found.path}.lora_B.default"].entered  # an independent count: times a number, then added
        torch.testing.assert_close(found.through.per_sample, inside.per_sample)
        assert abs(found.through.total) > 1e-6
    assert "adapter" in str(ledger)
    assert "adapted" in ledger.to_string(width=150)
    kept = Ledger.from_dict(ledger.to_dict())
    assert [found.through.total for found in kept.adapters] == [found.through.total for found in ledger.adapters]


def test_a_disabled_adapter_lets_nothing_through():
    model = adapted(MERGED["lora"])
    with model.disable_adapter():
        ledger = explained(model, "gradient", ledger=True).ledger
    assert all(found.through.total == pytest.approx(0.0, abs=1e-12) for found in ledger.adapters)


def test_a_model_without_adapters_has_no_row_of_them():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
    ledger = attribute(model, torch.randn(2, 3), target=0, ledger=True).ledger
    assert ledger.adapters == ()
    assert "adapter" not in str(ledger)
