"""Tiny models of transformers with heads of all kinds, and inputs for them: random weights, float64."""

import pytest
import torch

t = pytest.importorskip("transformers")
import float64_masks  # noqa: E402, F401

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SIZES, "vocab_size": 60}
BOTH = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
SEQ2SEQ = {**BOTH, "vocab_size": 60, "max_position_embeddings": 32}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "eos_token_id": 1,
      "decoder_start_token_id": 0}  # fmt: skip
SPEECH = {**SIZES, "vocab_size": 30, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
          "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
IMAGE = {**SIZES, "image_size": 28, "patch_size": 14}
TOWERS = {"text_config": {**TEXT, "max_position_embeddings": 16, "eos_token_id": 2, "pad_token_id": 1},
          "vision_config": IMAGE}  # fmt: skip
WHISPER = {**BOTH, "vocab_size": 60, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20,
           "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
           "suppress_tokens": [], "begin_suppress_tokens": []}  # fmt: skip
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "out_features": ["stage4"]}


def made(kind, config, seed=0):
    """A model with random weights, larger than usual, and biases."""
    torch.manual_seed(seed)
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def words(*shape):
    return torch.randint(5, 60, shape, generator=torch.Generator().manual_seed(1))


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def bert(head):
    return made(getattr(t, f"BertFor{head}"), t.BertConfig(**TEXT, num_labels=2 if head == "QuestionAnswering" else 5))


def bart(head):
    return made(getattr(t, f"BartFor{head}"), t.BartConfig(**SEQ2SEQ))


def t5(head):
    return made(getattr(t, f"T5For{head}"), t.T5Config(**T5))


def longformer(head):
    config = t.LongformerConfig(**TEXT, attention_window=4, sep_token_id=2)
    return made(getattr(t, f"LongformerFor{head}"), config)


def xlnet(head):
    config = t.XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=32)
    return made(getattr(t, f"XLNetFor{head}"), config)


def wav2vec2(head):
    return made(getattr(t, f"Wav2Vec2For{head}"), t.Wav2Vec2Config(**SPEECH))


def whisper():
    return made(t.WhisperForConditionalGeneration, t.WhisperConfig(**WHISPER))


def spectrogram_transformer():
    config = t.ASTConfig(**SIZES, num_mel_bins=16, max_length=32, patch_size=8, frequency_stride=4, time_stride=4)
    return made(t.ASTForAudioClassification, config)


def detr():
    backbone = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}
    config = t.DetrConfig(**BOTH, **backbone, backbone_config=t.ResNetConfig(**BACKBONE), num_queries=5, num_labels=4)
    return made(t.DetrForObjectDetection, config)


def yolos():
    config = t.YolosConfig(**{**IMAGE, "image_size": [28, 28]}, num_detection_tokens=4, num_labels=3)
    return made(t.YolosForObjectDetection, config)


def segformer():
    config = t.SegformerConfig(num_labels=3, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16],
                               num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16)  # fmt: skip
    return made(t.SegformerForSemanticSegmentation, config)


def masked_vit():
    return made(t.ViTForMaskedImageModeling, t.ViTConfig(**IMAGE))


def clip():
    return made(t.CLIPModel, t.CLIPConfig(**TOWERS, projection_dim=16))


def siglip():
    return made(t.SiglipModel, t.SiglipConfig(**TOWERS))


def owlvit():
    return made(t.OwlViTForObjectDetection, t.OwlViTConfig(**TOWERS, projection_dim=16))


def vilt():
    return made(t.ViltForQuestionAnswering, t.ViltConfig(**{**TEXT, **IMAGE}, num_labels=3))


def llava():
    vision, text = t.CLIPVisionConfig(**IMAGE), t.LlamaConfig(**TEXT)
    config = t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=59, image_seq_length=4)
    return made(t.LlavaForConditionalGeneration, config)


def qwen2_vl():
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2,
              "spatial_merge_size": 2}  # fmt: skip
    config = t.Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rotary, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=vision, image_token_id=59, vision_start_token_id=58, vision_end_token_id=57, video_token_id=56,
    )  # fmt: skip
    return made(t.Qwen2VLForConditionalGeneration, config)


def moonshine():
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder")
             for name, n in (("num_hidden_layers", 1), ("num_attention_heads", 2))}  # fmt: skip
    config = t.MoonshineConfig(vocab_size=60, hidden_size=16, intermediate_size=32, **sizes)
    return made(t.MoonshineForConditionalGeneration, config)


def qwen2_audio():
    sound = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16,
             "max_source_positions": 20}  # fmt: skip
    config = t.Qwen2AudioConfig(
        audio_config=sound, text_config={**TEXT, "num_key_value_heads": 2}, audio_token_index=59, audio_token_id=59
    )
    return made(t.Qwen2AudioForConditionalGeneration, config)


def looked_at(*shape):
    """Ids with four tokens in them that stand for an image."""
    found = words(*shape).clamp(max=58)
    found[..., 2:6] = 59
    return found


def video():
    return made(t.VideoMAEForVideoClassification, t.VideoMAEConfig(**IMAGE, num_frames=4))


SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2,
        "out_features": [f"stage{number}" for number in range(1, 5)]}  # fmt: skip


def maskformer():
    decoder = t.DetrConfig(**{**BOTH, "d_model": 32}, num_queries=3, use_timm_backbone=False, backbone=None,
                           backbone_config=t.ResNetConfig(**BACKBONE))  # fmt: skip
    config = t.MaskFormerConfig(
        backbone_config=t.SwinConfig(**SWIN), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32,
        num_labels=3,
    )  # fmt: skip
    return made(t.MaskFormerForInstanceSegmentation, config)


def mask2former():
    config = t.Mask2FormerConfig(
        backbone_config=t.SwinConfig(**SWIN), feature_size=32, mask_feature_size=32, hidden_dim=32, num_queries=3,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        num_labels=3,
    )  # fmt: skip
    return made(t.Mask2FormerForUniversalSegmentation, config)


def oneformer():
    text = {"width": 32, "context_length": 8, "vocab_size": 60, "num_layers": 1, "n_ctx": 2, "proj_layers": 1}
    config = t.OneFormerConfig(
        backbone_config=t.SwinConfig(**SWIN), hidden_dim=32, conv_dim=32, mask_dim=32, num_queries=5, task_seq_len=8,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        query_dec_layers=1, num_labels=3, num_classes=3, **{f"text_encoder_{name}": n for name, n in text.items()},
    )  # fmt: skip
    return made(t.OneFormerForUniversalSegmentation, config)


def dpt(task):
    config = t.DPTConfig(
        **{**IMAGE, "num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8, num_labels=3,
    )  # fmt: skip
    return made(getattr(t, f"DPTFor{task}"), config)


def timesformer():
    return made(t.TimesformerForVideoClassification, t.TimesformerConfig(**IMAGE, num_frames=4))


def vivit():
    config = t.VivitConfig(**IMAGE, num_frames=4, tubelet_size=[2, 14, 14])
    return made(t.VivitForVideoClassification, config)


def video_llava():
    config = t.VideoLlavaConfig(
        vision_config=t.CLIPVisionConfig(**IMAGE), text_config=t.LlamaConfig(**TEXT), image_token_index=59,
        video_token_index=58, image_seq_length=4, video_seq_length=16,
    )  # fmt: skip
    return made(t.VideoLlavaForConditionalGeneration, config)


def gemma3():
    text = {**TEXT, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
    config = t.Gemma3Config(
        text_config=text, vision_config=t.SiglipVisionConfig(**{**IMAGE, "patch_size": 7}).to_dict(),
        mm_tokens_per_image=4, image_token_index=59, boi_token_index=57, eoi_token_index=58,
    )  # fmt: skip
    return made(t.Gemma3ForConditionalGeneration, config)
