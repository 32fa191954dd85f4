"""Forecasts of pytorch-forecasting, made of a small random data set of two series with covariates of all kinds."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .case import Case, Maker, in_double, spread

STEPS = 30
PLAIN = {"static_categoricals": [], "time_varying_known_categoricals": [], "time_varying_known_reals": []}
"""No covariates: N-BEATS takes none."""


@cache
def _frame() -> Any:
    """Two series, a known number, and a day of the week."""
    drawn = torch.randn(2, 2 * STEPS, generator=torch.Generator().manual_seed(0))
    return import_module("pandas").DataFrame({
        "t": [*range(STEPS)] * 2, "series": ["a"] * STEPS + ["b"] * STEPS, "y": drawn[0].numpy() + 5,
        "price": drawn[1].numpy(), "day": [str(step % 7) for step in range(STEPS)] * 2,
    })  # fmt: skip


def data_set(**options: Any) -> Any:
    """A data set whose encoder sees 8 steps and whose decoder says 3."""
    chosen = {
        "time_idx": "t", "target": "y", "group_ids": ["series"], "max_encoder_length": 8, "max_prediction_length": 3,
        "time_varying_unknown_reals": ["y"], "time_varying_known_reals": ["price", "t"],
        "static_categoricals": ["series"], "time_varying_known_categoricals": ["day"],
    }  # fmt: skip
    return import_module("pytorch_forecasting").TimeSeriesDataSet(_frame(), **chosen | options)


def _forecast(y: Any) -> Tensor:
    """The second step: its middle quantile, or the middle parameter of its distribution."""
    return y["prediction"][:, 1, y["prediction"].shape[-1] // 2]


def _made(name: str, data: dict[str, Any] | None = None, **options: Any) -> Maker:
    def make() -> Case:
        torch.manual_seed(0)
        known = data_set(**data or {})
        model = getattr(import_module("pytorch_forecasting"), name).from_dataset(known, **options)
        batch, _ = next(iter(known.to_dataloader(train=False, batch_size=2)))
        given = {key: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for key, x in batch.items()}
        return Case(in_double(spread(model)), (given,), _forecast)

    return make


FORECASTS: dict[str, Maker] = {
    "TemporalFusionTransformer": _made(
        "TemporalFusionTransformer", {"add_relative_time_idx": True}, hidden_size=8, attention_head_size=2
    ),
    "DeepAR, LSTM": _made("DeepAR", hidden_size=8, rnn_layers=2),
    "DeepAR, GRU": _made("DeepAR", cell_type="GRU", hidden_size=8, rnn_layers=2),
    "RecurrentNetwork": _made("RecurrentNetwork", hidden_size=8),
    "NBeats": _made("NBeats", PLAIN, widths=[16, 16]),
    "NBeatsKAN": _made("NBeatsKAN", PLAIN, widths=[16, 16]),
    "NHiTS": _made("NHiTS", hidden_size=16),
    "TiDEModel": _made("TiDEModel", hidden_size=8),
    "DecoderMLP": _made("DecoderMLP", hidden_size=8),
}
