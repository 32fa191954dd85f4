"""Small models of any architecture of transformers: a configuration with every size cut down, and inputs that fit."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Words = dict[str, Any]


def _sizes(table: str) -> Words:
    """Read a table of `number: name name ...` lines."""
    found: Words = {}
    for line in table.strip().splitlines():
        number, _, names = line.partition(":")
        found |= dict.fromkeys(names.split(), int(number))
    return found


# What sizes are called in configurations, and what they become: a hidden size of 32 in 4 heads of 8, 2 groups of keys.
SIZES = _sizes("""
96: vocab_size char_vocab_size entity_vocab_size num_hash_buckets
32: hidden_size d_model n_embd embed_dim dim model_dim attention_hidden_size word_embed_proj_dim emb_dim
32: pooler_hidden_size embedding_size input_embedding_size cross_attention_hidden_size d_latents projection_dim
32: lru_width entity_emb_size
48: intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size d_inner hidden_dim
48: moe_intermediate_size shared_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size ffn_hidden_dim
48: moe_shared_expert_intermediate_size dense_intermediate_size intermediate_size_mlp
2: num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers
4: num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_self_attention_heads
4: linear_num_value_heads num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts
2: num_key_value_heads num_kv_heads linear_num_key_heads num_cross_attention_heads num_experts_per_tok moe_topk moe_k
2: num_selected_experts num_experts_per_token experts_per_token num_shared_experts n_shared_experts
8: head_dim d_kv attention_head_size v_head_dim qk_nope_head_dim linear_key_head_dim linear_value_head_dim kv_channels
8: mamba_d_head mamba_head_dim global_head_dim qk_rope_head_dim swa_head_dim
12: kv_lora_rank q_lora_rank
1: n_group topk_group num_expert_group first_k_dense_replace num_nextn_predict_layers
64: max_position_embeddings n_positions max_source_positions max_target_positions max_2d_position_embeddings n_ctx
4: sliding_window local_attention attention_chunk_size state_size ssm_state_size mamba_d_state time_step_rank
4: mamba_dt_rank sliding_window_size
8: num_mel_bins relative_attention_num_buckets
32: image_size
8: patch_size
""")
LAYER_TYPES = ("layer_types", "mlp_layer_types", "block_types", "layers_block_type")
TEXT = 7  # how many ids a text has


def shrink(config: transformers.PretrainedConfig, sizes: Words) -> Words:
    """The settings that make a configuration small: every size that it knows, and lists cut to two layers."""
    values = config.to_dict()
    settings: Words = {}
    for name, value in values.items():
        sub = vars(config).get(name)
        if isinstance(sub, transformers.PretrainedConfig):
            settings[name] = {**shrink(sub, sizes), "model_type": sub.model_type}
        elif name in sizes and isinstance(value, int) and not isinstance(value, bool):
            settings[name] = min(value, sizes[name])
        elif name in LAYER_TYPES and isinstance(value, list) and value:
            kinds = list(dict.fromkeys(value))[:2]
            settings[name] = kinds if len(kinds) == 2 else kinds * 2
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            settings[name] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}.get(name, 3)
        elif name.endswith(("dropout", "dropout_prob", "pdrop", "drop_path_rate")) and isinstance(value, float):
            settings[name] = 0.0
    if "kv_lora_rank" in values and "num_key_value_heads" in settings:  # latent attention has a key for each head
        settings["num_key_value_heads"] = settings.get("num_attention_heads", 4)
    return settings


def configuration(model_type: str, overrides: Words) -> transformers.PretrainedConfig:
    """A small configuration of an architecture."""
    default = transformers.AutoConfig.for_model(model_type)
    settings = shrink(default, SIZES)
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            settings[name] = {**settings[name], **value}
        else:
            settings[name] = value
    return transformers.AutoConfig.for_model(model_type, **settings)


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
STAGES: Words = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4}
GEMMA = {
    "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "laurel_rank": 4
}  # fmt: skip
ROC = {"pronunciation_vocab_size": 32, "shape_vocab_size": 32, "pronunciation_embed_dim": 8, "shape_embed_dim": 8}
REFORMER = {
    "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"], "num_hashes": 1,
    "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4, "num_buckets": 2, "feed_forward_size": 40,
}  # fmt: skip
LAST_THREE = {"out_features": ["stage2", "stage3", "stage4"]}
HGNET = {
    "embedding_size": 8, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16], "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [8, 16, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
}  # fmt: skip
BACKBONE = {"model_type": "resnet", **STAGES, "embedding_size": 8, "out_features": ["stage4"]}
DETR = {"backbone_config": BACKBONE, "num_queries": 9}
RT_DETR = {
    "backbone_config": {"model_type": "hgnet_v2", **HGNET, **LAST_THREE},
    "num_queries": 9, "encoder_in_channels": [16, 16, 16], "decoder_in_channels": [32, 32, 32], "hidden_expansion": 0.5,
    "encoder_hidden_dim": 32, "d_model": 32, "num_denoising": 0, "decoder_layers": 2, "head_dim": 8,
}  # fmt: skip
RT_DETR_RESNET = {**RT_DETR, "backbone_config": {**BACKBONE, **LAST_THREE, "model_type": "rt_detr_resnet"}}
SECTIONS = {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}}
# What the names alone do not tell, for architectures whose sizes have to fit together in a way of their own.
OVERRIDES: dict[str, Words] = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "granitemoehybrid": {**MAMBA2, "layer_types": ["mamba", "attention"]},
    "codegen": {"rotary_dim": 4}, "gptj": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": GEMMA, "gemma4": {"text_config": GEMMA}, "gemma4_text": GEMMA,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
        "hunyuan_v1_dense": {"rope_parameters": {**ROPE, "alpha": 1.0}, "head_dim": 8},
    "hunyuan_v1_moe": {"rope_parameters": {**ROPE, "alpha": 1.0}, "head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "ministral": {"rope_parameters": ROPE, "head_dim": 8, "num_key_value_heads": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4, "n_groups": 2,
                   "mamba_num_heads": 8, "mamba_head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]}, "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8}, "roc_bert": ROC,
    "causal:reformer": {**REFORMER, "is_decoder": True}, "sequence:reformer": REFORMER,
    "esm": {"vocab_size": 96, "mask_token_id": 3, "pad_token_id": 0}, "esmc": {"num_key_value_heads": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32, "patch_size": 8},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "mpnet": {"max_position_embeddings": 80, "pad_token_id": 1, "relative_attention_num_buckets": 32},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    "sequence:t5": {"decoder_start_token_id": 0},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 2,
              "attention_hidden_size": 64, "attention_head_dim": 16, "layer_types": ["mamba", "hybrid"] * 3},
    "zamba2": {"num_hidden_layers": 4, "mamba_ngroups": 2, "n_mamba_heads": 8, "mamba_headdim": 8,
               "hybrid_layer_ids": [1, 3], "attention_hidden_size": 64, "attention_head_dim": 16,
               "layer_types": ["mamba", "hybrid"] * 2},
    "xlstm": {"num_heads": 2, "chunk_size": 8, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "rwkv": {"use_cache": False},  # it changes its state in place, which breaks its own gradient
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 2}, "resnet": {**STAGES, "embedding_size": 8},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 4}, "convnext": STAGES, "convnextv2": STAGES,
    "poolformer": {**STAGES, "image_size": 64}, "textnet": {"hidden_sizes": [8, 8, 8, 16, 16], "stem_out_channels": 8},
    "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2]},
    "pvt": {**STAGES, "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2], "image_size": 64},
    "hgnet_v2": HGNET,
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 64},
    "donut-swin": SWIN, "swin": SWIN, "swinv2": SWIN,
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25},
    "deit": {"architectures": ["DeiTForImageClassification"]},
    "levit": {"architectures": ["LevitForImageClassification"], "hidden_sizes": [64, 96, 128], "patch_size": 16,
              "image_size": 64},
    **dict.fromkeys(("detr", "table-transformer", "dab-detr"), DETR),
    "deformable_detr": {"backbone_config": {**BACKBONE, **LAST_THREE}, "num_queries": 9},
    **dict.fromkeys(("d_fine", "deimv2", "pp_doclayout_v3", "pp_doclayout_v4"), RT_DETR),
    "pp_doclayout_v2": {**RT_DETR, "class_thresholds": [0.5, 0.5], "class_order": [0, 1]},
    **dict.fromkeys(("rt_detr", "rt_detr_v2"), RT_DETR_RESNET),
    "wav2vec2-bert": {"vocab_size": 96}, "wav2vec2-conformer": {"vocab_size": 96},
    "audio-spectrogram-transformer": {"num_mel_bins": 16, "max_length": 32},
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "paddleocr_vl"), SECTIONS),
    "yolos": {"image_size": [64, 64], "num_detection_tokens": 10},
    "conditional_detr": DETR, "rf_detr": {"num_queries": 9},
    "image:perceiver": {"architectures": ["PerceiverForImageClassificationLearned"]},
}  # fmt: skip


def inputs_for(name: str, kind: str, model: nn.Module) -> dict[str, Tensor]:
    """Inputs for a model of this kind, without padding."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    if name == "siglip2":  # it takes patches
        patches = torch.randn(1, 16, 3 * config.vision_config.patch_size**2, generator=generator, dtype=torch.float64)
        return {
            "pixel_values": patches, "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]]),
        }  # fmt: skip
    sounds = kind in ("speech", "ctc", "audio") and model.main_input_name != "input_ids"
    if sounds or model.main_input_name in ("input_values", "input_features"):
        return sound_for(kind, model, generator)
    if kind == "detection":
        side = 160 if name == "deformable_detr" else 64
        shape = (1, 3, side, side)
        return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)}
    if kind == "image" and model.main_input_name in ("pixel_values", "inputs"):
        size = getattr(config, "image_size", 32)
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        shape = (1, getattr(config, "num_channels", 3), *sides)
        return {model.main_input_name: torch.randn(shape, generator=generator, dtype=torch.float64)}
    most = getattr(config, "vocab_size", None) or 96
    ids = torch.randint(5, min(most, 90), (1, TEXT), generator=generator)
    ids[0, -1] = 2  # the end of the sequence, where some heads look
    later = {"decoder_input_ids": ids[:, :4].clone()} if kind == "seq2seq" or name == "pop2piano" else {}
    return with_image(model, {"input_ids": ids}) if kind == "image_text" else {"input_ids": ids, **later}


def with_image(model: nn.Module, text: Words) -> Words:
    """The text with an image in front, if the model takes one as it is; as many tokens stand for it as it asks for."""
    config = model.config
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None) or 3
    size = getattr(getattr(config, "vision_config", None), "image_size", 32)
    side, count = (size[0] if isinstance(size, (list, tuple)) else size), 1
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _ in range(2):
        ids = torch.cat([torch.full((1, count), token), text["input_ids"]], 1)
        try:
            with torch.no_grad():
                model(input_ids=ids, pixel_values=image)
            return {"input_ids": ids, "pixel_values": image}
        except Exception as error:  # of whatever kind: most say how many features there are
            found = re.search(r"features:? (\d+)", " ".join(str(error).split()))
            count = int(found[1]) if found else 1
    return text


def sound_for(kind: str, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs for a model of speech: a wave, or frames with as many features as it takes."""
    config = model.config
    inner = getattr(config, "encoder_config", None) or getattr(config, "audio_config", None) or config
    if config.model_type == "audio-spectrogram-transformer":
        shape: tuple[int, ...] = (1, config.max_length, config.num_mel_bins)
    elif model.main_input_name == "input_values":
        shape = (1, 4000)
    else:
        names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_size", "num_bins")
        features = next((getattr(c, n) for c in (inner, config) for n in names if getattr(c, n, None)), 80)
        most = 2 * getattr(inner, "max_source_positions", 32)
        first = type(model).__name__.startswith(("Whisper", "Voxtral", "Qwen2Audio", "GlmAsr"))
        shape = (1, features, most) if first else (1, 64, features)
    made = {model.main_input_name: torch.randn(shape, generator=generator, dtype=torch.float64)}
    if kind == "speech":
        made["decoder_input_ids"] = torch.tensor([[3, 7, 11]])
    return made
