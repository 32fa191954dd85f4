"""Tiny models of transformers for tests: random weights, float64, nothing is fetched."""

import pytest
import torch

pytest.importorskip("transformers")

import float64_masks  # noqa: F401
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60}


def _made(kind, config):
    torch.manual_seed(0)
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than usual, and no zeros: nothing may cancel by accident
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def bert(**options):
    return _made(BertForSequenceClassification, BertConfig(**SMALL, num_labels=3, pad_token_id=0, **options))


def masked_bert():
    return _made(BertForMaskedLM, BertConfig(**SMALL, pad_token_id=0))


def llama(**options):
    return _made(LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=1, pad_token_id=0, **options))


def gpt2():
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=60, n_positions=32, bos_token_id=0, eos_token_id=0)
    return _made(GPT2LMHeadModel, config)


def t5():
    config = T5Config(d_model=16, d_kv=8, num_layers=2, num_heads=2, d_ff=24, vocab_size=60, decoder_start_token_id=0)
    return _made(T5ForConditionalGeneration, config)


class Ahead(torch.nn.Module):
    """A language model that is none: some places read the mean of all tokens, those after them too."""

    def __init__(self, places=slice(None)):
        super().__init__()
        self.table, self.head, self.places = torch.nn.Embedding(60, 8), torch.nn.Linear(8, 60), places

    def forward(self, input_ids):
        x = self.table(input_ids)
        looks = torch.zeros(1, x.shape[1], 1, dtype=x.dtype)
        looks[:, self.places] = 1
        return self.head(x + looks * x.mean(1, keepdim=True))


def ids(samples=3, length=6, seed=1):
    return torch.randint(2, 60, (samples, length), generator=torch.Generator().manual_seed(seed))
