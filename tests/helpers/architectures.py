"""The architectures of the zoo: tiny configurations, random weights (biases and norms too), and inputs that fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 60
TEXT = 7

DECODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "head_dim": 8,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4, "num_labels": 3,
}  # fmt: skip
TOWERS = {
    "text_config": {**ENCODER, "projection_dim": 16, "projection_size": 32, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": {**VISION, "projection_dim": 16},
    "projection_dim": 16,
}


@dataclass(frozen=True)
class Architecture:
    """How to build one architecture: its name in transformers, the kind of model, what its configuration is told."""

    name: str
    kind: str
    """causal, encoder, seq2seq, speech, image or pair: decides the head of the model and its inputs."""
    config: dict[str, Any] = field(default_factory=dict)
    eager_only: bool = False
    """transformers has no SDPA attention for it."""
    attends: bool = True
    """It has attention at all."""
    pads: bool = True
    """It takes an attention mask."""

    @property
    def text(self) -> bool:
        """Whether the input is a sequence of tokens with an attention mask."""
        return self.kind in ("causal", "encoder", "seq2seq")


def _decoder(name: str, **config: Any) -> Architecture:
    traits = {trait: config.pop(trait) for trait in ("eager_only", "attends", "pads") if trait in config}
    return Architecture(name, "causal", {**DECODER, **config}, **traits)


def _moe(name: str, **config: Any) -> Architecture:
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return _decoder(name, **{**experts, **config})


def _encoder(name: str, **config: Any) -> Architecture:
    traits = {trait: config.pop(trait) for trait in ("eager_only",) if trait in config}
    return Architecture(name, "encoder", {**ENCODER, **config}, **traits)


def _image(name: str, **config: Any) -> Architecture:
    return Architecture(name, "image", {**VISION, **config})


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


_YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "rope_theta": 10000.0,
         "original_max_position_embeddings": 16}  # fmt: skip
_MLA = {"q_lora_rank": 12, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_SEQ2SEQ = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "vocab_size": VOCABULARY,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
            "tie_word_embeddings": False}  # fmt: skip
_FALCON = {**_without(DECODER, "head_dim"), "num_kv_heads": 2, "new_decoder_architecture": True}
_SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 2, "image_size": 16,
         "num_labels": 3}  # fmt: skip
_CONVNEXT = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "patch_size": 2, "image_size": 32,
             "layer_scale_init_value": 0.5, "num_labels": 3}  # fmt: skip

ZOO = {
    architecture.name: architecture
    for architecture in (
        _decoder("llama"),
        _decoder("qwen2"),
        _decoder("qwen3"),
        _moe("qwen3_moe"),
        _decoder("mistral", sliding_window=4),
        _moe("mixtral", sliding_window=4),
        _decoder("gemma2", sliding_window=4, query_pre_attn_scalar=8, eager_only=True),
        _decoder("gemma3_text", sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
        _decoder("gpt2", n_inner=40),
        _decoder("gpt_neox"),
        _decoder("opt", ffn_dim=40, word_embed_proj_dim=32),
        _decoder("bloom", eager_only=True),
        Architecture("falcon", "causal", _FALCON),
        _decoder("phi3"),
        _decoder("olmo2"),
        _moe("deepseek_v3", **_MLA, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1,
             num_key_value_heads=4, head_dim=4),
        _moe("gpt_oss", sliding_window=4, rope_parameters=_YARN, eager_only=True,
             layer_types=["sliding_attention", "full_attention"]),
        _decoder("mamba", state_size=4, time_step_rank=4, attends=False),
        _encoder("bert"),
        _encoder("roberta"),
        _encoder("albert", embedding_size=16),
        _encoder("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4,
                 type_vocab_size=2, eager_only=True, norm_rel_ebd="layer_norm", share_att_key=True),
        _encoder("modernbert", local_attention=4, layer_types=["full_attention", "sliding_attention"],
                 cls_token_id=1, sep_token_id=2),
        _encoder("distilbert", dim=32, hidden_dim=40, n_layers=2, n_heads=4),
        Architecture("t5", "seq2seq", {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4,
                                       "vocab_size": VOCABULARY, "pad_token_id": 0, "tie_word_embeddings": False}),
        Architecture("bart", "seq2seq", {**_SEQ2SEQ, "max_position_embeddings": 32}),
        Architecture("whisper", "speech", {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 6,
                                           "max_target_positions": 16}),
        _image("vit"),
        _image("dinov2", mlp_ratio=2),
        Architecture("swin", "image", _SWIN),
        Architecture("convnext", "image", _CONVNEXT, attends=False),
        Architecture("clip", "pair", TOWERS),
        Architecture("siglip", "pair", TOWERS),
    )
}  # fmt: skip

HEADS = {
    "causal": transformers.AutoModelForCausalLM,
    "encoder": transformers.AutoModelForSequenceClassification,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "speech": transformers.AutoModelForSpeechSeq2Seq,
    "image": transformers.AutoModelForImageClassification,
    "pair": transformers.AutoModel,
}


def build(
    architecture: Architecture,
    *,
    attention: str | None = None,
    experts: str | None = "eager",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> nn.Module:
    """A tiny model in eval mode with random weights; `attention` is "eager", "sdpa" or the architecture's default.

    Experts run one by one unless told otherwise: torch's grouped product knows no float64.

    Raises:
        SkipTest: this version of transformers does not have the architecture, or not this way to run it.
    """
    config = configured(architecture.name, architecture.config)
    head = HEADS[architecture.kind]
    options = {} if attention is None else {"attn_implementation": attention}
    if attention == "sdpa" and not head._model_mapping[type(config)]._supports_sdpa:
        raise lacks(f"{architecture.name} with fused attention")
    if hasattr(transformers.PreTrainedModel, "set_experts_implementation"):
        options |= {} if experts is None else {"experts_implementation": experts}
    elif experts not in (None, "eager"):
        raise lacks(f"experts as {experts}")
    torch.manual_seed(seed)
    model = head.from_config(config, **options)
    randomize(model, seed)
    return model.to(dtype).eval()


def configured(name: str, settings: dict[str, Any]) -> Any:
    """The configuration of an architecture; SkipTest if this version of transformers does not have it."""
    if name not in transformers.CONFIG_MAPPING:
        raise lacks(name)
    return transformers.AutoConfig.for_model(name, **settings)


def lacks(what: str) -> SkipTest:
    return SkipTest(f"transformers {transformers.__version__} has no {what}")


def randomize(model: nn.Module, seed: int, scale: float = 0.1) -> None:
    """Add noise to every parameter, so that no bias is 0 and no norm's weight is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def inputs_of(architecture: Architecture, model: nn.Module, *, batch: int = 1, seed: int = 1) -> dict[str, Tensor]:
    """Inputs without any padding; token ids stay clear of the special ones."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (batch, length), generator=generator)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(model.dtype)

    if architecture.kind in ("causal", "encoder"):
        return {"input_ids": tokens(TEXT)}
    if architecture.kind == "seq2seq":
        return {"input_ids": tokens(TEXT), "decoder_input_ids": tokens(4)}
    if architecture.kind == "speech":
        return {"input_features": noise(8, 12), "decoder_input_ids": tokens(4)}
    size = architecture.config.get("image_size", 16)
    if architecture.kind == "image":
        return {"pixel_values": noise(3, size, size)}
    return {"input_ids": tokens(TEXT), "pixel_values": noise(3, 16, 16)}
