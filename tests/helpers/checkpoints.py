"""Checkpoint folders as a user has them: tiny models with random weights, and tokenizers trained on the spot."""

import pytest
import torch

pytest.importorskip("transformers")

from small_transformers import SMALL
from trained_tokenizers import byte_bpe, sentencepiece, wordpiece
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)


def save_llava(folder):
    """A model that reads an image and a text, with its processor."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
        text_config=LlamaConfig(**{**SMALL, "vocab_size": len(tokenizer)}, bos_token_id=0, eos_token_id=0),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    images = CLIPImageProcessor(size={"height": 28, "width": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    save(LlavaForConditionalGeneration, config, folder)
    processor.save_pretrained(folder)
    return folder


def save(kind, config, folder, tokenizer=None):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():  # larger weights than usual: the answers should differ
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def save_bert(folder, tokenizer=None):
    tokenizer = tokenizer or PreTrainedTokenizerFast(
        tokenizer_object=wordpiece(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    config = BertConfig(
        **{**SMALL, "vocab_size": len(tokenizer)}, pad_token_id=0, max_position_embeddings=40,
        id2label={0: "negative", 1: "neutral", 2: "POSITIVE"}, label2id={"negative": 0, "neutral": 1, "POSITIVE": 2},
    )  # fmt: skip
    return save(BertForSequenceClassification, config, folder, tokenizer)


def save_gpt2(folder):
    names = ["input_ids", "token_type_ids", "attention_mask"]  # GPT-2 would take the types for tokens
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), eos_token="<|endoftext|>", model_input_names=names)
    config = GPT2Config(
        n_layer=3, n_embd=16, n_head=2, vocab_size=len(tokenizer), n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return save(GPT2LMHeadModel, config, folder, tokenizer)


def save_llama(folder):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=sentencepiece(), bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(**{**SMALL, "vocab_size": len(tokenizer)}, num_key_value_heads=1)
    return save(LlamaForCausalLM, config, folder, tokenizer)


def save_vit(folder):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    save(ViTForImageClassification, config, folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
