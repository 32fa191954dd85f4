"""Sequences and tables: state spaces, transformers by their parts, nets of differential equations, tabular nets."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Maker, doubly, first, in_double, numbers, spread

IDS = torch.tensor([[1, 4, 3, 2, 7, 5], [1, 2, 5, 6, 3, 3]])
COLUMNS = torch.tensor([[0, 2], [1, 1], [2, 3], [1, 0]])
ROWS = numbers(4, 3)


def last_token(y: Any) -> Tensor:
    """One logit of the last token."""
    return first(y)[:, -1, 3]


def one_of(y: Any) -> Tensor:
    """One number for each sample, from the middle of the output."""
    flat = first(y).flatten(1)
    return flat[:, flat.shape[1] // 2]


def made(build: Callable[[], nn.Module], inputs: Any, goal: Callable[[Any], Tensor] = one_of) -> Maker:
    """A case of a model that a function builds."""

    def make() -> Case:
        torch.manual_seed(0)
        return Case(doubly(in_double(spread(build()))), inputs, goal)

    return make


def _of(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _mamba(**options: Any) -> nn.Module:
    config = _of("mambapy.mamba", "MambaConfig")(d_model=8, n_layers=2, d_state=4, **options)
    return _of("mambapy.mamba", "Mamba")(config)


MAMBAPY = {
    "Mamba, step by step": made(lambda: _mamba(pscan=False), numbers(2, 6, 8)),
    "Mamba, inner norms": made(lambda: _mamba(pscan=False, inner_layernorms=True), numbers(2, 6, 8)),
    "Mamba, parallel scan": made(lambda: _mamba(), numbers(2, 6, 8)),
}


def _decoder(**options: Any) -> Maker:
    def build() -> nn.Module:
        parts = import_module("x_transformers")
        layers = parts.Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **options)
        return parts.TransformerWrapper(num_tokens=9, max_seq_len=8, attn_layers=layers)

    return made(build, IDS, last_token)


X_TRANSFORMERS: dict[str, Maker] = {
    "Decoder": _decoder(),
    "RoPE": _decoder(rotary_pos_emb=True),
    "ALiBi": _decoder(alibi_pos_bias=True),
    "T5 bias": _decoder(rel_pos_bias=True),
    "gated": _decoder(ff_glu=True, ff_swish=True),
    "ReLU squared": _decoder(ff_relu_squared=True),
    "RMSNorm": _decoder(use_rmsnorm=True),
    "ScaleNorm": _decoder(use_scalenorm=True),
    "normalized queries and keys": _decoder(attn_qk_norm=True),
    "talking heads": _decoder(attn_pre_talking_heads=True),
    "gates of values": _decoder(attn_gate_values=True),
    "memories": _decoder(attn_num_mem_kv=2),
    "grouped keys": _decoder(attn_kv_heads=1),
    "sandwich": _decoder(sandwich_norm=True),
}


def _ft(**options: Any) -> nn.Module:
    return _of("rtdl_revisiting_models", "FTTransformer")(
        n_cont_features=3, cat_cardinalities=[3, 4], d_out=2, n_blocks=2, d_block=8, attention_n_heads=2,
        attention_dropout=0.0, ffn_d_hidden=None, ffn_d_hidden_multiplier=2.0, ffn_dropout=0.0, residual_dropout=0.0,
        **options,
    )  # fmt: skip


RTDL: dict[str, Maker] = {
    "MLP": made(
        lambda: _of("rtdl_revisiting_models", "MLP")(d_in=3, d_out=2, n_blocks=2, d_block=8, dropout=0.0), ROWS
    ),
    "ResNet": made(
        lambda: _of("rtdl_revisiting_models", "ResNet")(
            d_in=3, d_out=2, n_blocks=2, d_block=8, d_hidden_multiplier=2.0, dropout1=0.0, dropout2=0.0
        ),
        ROWS,
    ),
    "FTTransformer": made(_ft, (ROWS, COLUMNS)),
}
_SIZES = {"categories": (3, 4), "num_continuous": 3, "dim": 8, "depth": 2, "heads": 2, "dim_head": 4, "dim_out": 2}
TAB_TRANSFORMER: dict[str, Maker] = {
    "TabTransformer": made(
        lambda: _of("tab_transformer_pytorch", "TabTransformer")(mlp_act=nn.ReLU(), **_SIZES), (COLUMNS, ROWS)
    ),
    "FTTransformer": made(lambda: _of("tab_transformer_pytorch", "FTTransformer")(**_SIZES), (COLUMNS, ROWS)),
}
TABM: dict[str, Maker] = {
    kind: made(
        lambda kind=kind: _of("tabm", "TabM").make(
            n_num_features=3, cat_cardinalities=[3, 4], d_out=2, n_blocks=2, d_block=8, k=4, arch_type=kind
        ),
        (ROWS, COLUMNS),
    )
    for kind in ("tabm", "tabm-mini", "tabm-packed")
}
NCPS: dict[str, Maker] = {
    "CfC": made(lambda: _of("ncps.torch", "CfC")(8, 6), numbers(2, 5, 8)),
    "LTC": made(lambda: _of("ncps.torch", "LTC")(8, 6), numbers(2, 5, 8)),
}
PYKAN: dict[str, Maker] = {
    "KAN": made(
        lambda: _of("kan", "KAN")([3, 4, 2], auto_save=False, save_act=False, symbolic_enabled=False), 0.3 * ROWS
    )
}
PERFORMER: dict[str, Maker] = {
    "PerformerLM": made(
        lambda: _of("performer_pytorch", "PerformerLM")(num_tokens=9, max_seq_len=8, dim=16, depth=2, heads=2),
        IDS, last_token,
    ),
}  # fmt: skip
