"""Sentences, tables and sound: sentence-transformers, TabNet, and what else is small."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Maker, in_double, numbers, spread

IDS = torch.tensor([[3, 9, 14, 7, 2], [5, 11, 8, 2, 0]])
TOKENS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


class _Encoder(nn.Module):
    """A small BERT that takes and gives a dictionary, as the first module of sentence-transformers does."""

    def __init__(self) -> None:
        super().__init__()
        config = import_module("transformers").BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
        self.bert = import_module("transformers").BertModel(config)

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add the embeddings of tokens."""
        states = self.bert(features["input_ids"], features["attention_mask"]).last_hidden_state
        return {**features, "token_embeddings": states}


def _sentences(mode: str, *, normalize: bool = True, dense: bool = False) -> Maker:
    def make() -> Case:
        library = import_module("sentence_transformers")
        parts = import_module("sentence_transformers.models")
        modules = [_Encoder(), parts.Pooling(16, pooling_mode=mode)]
        modules += [parts.Dense(16, 8)] * dense + [parts.Normalize()] * normalize
        model = library.SentenceTransformer(modules=modules, device="cpu")
        return Case(spread(model), (TOKENS,), lambda y: y["sentence_embedding"][:, 1])

    return make


SENTENCES: dict[str, Maker] = {
    f"SentenceTransformer, {mode}": _sentences(mode, dense=mode == "mean")
    for mode in ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
}


def _tabnet(mask: str, name: str = "TabNet") -> Maker:
    def make() -> Case:
        library = import_module("pytorch_tabnet.tab_network")
        groups = torch.eye(6)
        options = {
            "input_dim": 6,
            "n_d": 4,
            "n_a": 4,
            "n_steps": 3,
            "mask_type": mask,
            "group_attention_matrix": groups,
        }
        model = getattr(library, name)(output_dim=3, **options)
        return Case(in_double(spread(model)), numbers(4, 6), lambda y: y[0][:, 1])

    return make


TABLES: dict[str, Maker] = {f"TabNet, {mask}": _tabnet(mask) for mask in ("sparsemax", "entmax")}
