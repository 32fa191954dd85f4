"""Pipelines of transformers: their model, and the inputs that their preprocessing makes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def unpacked(model: Any, inputs: Any) -> tuple[Any, Any]:
    """Return a model and its inputs: for a pipeline its model and that model's tensors, else both unchanged.

    Args:
        model: a pipeline of transformers, or a module.
        inputs: what it is called with; a list for a pipeline is several samples, texts of several lengths are padded.

    Raises:
        ValueError: the pipeline makes several inputs of one, a text has no tokens, or there are no inputs.
    """
    if isinstance(model, nn.Module) or not isinstance(getattr(model, "model", None), nn.Module):
        return model, inputs
    each = list(inputs) if isinstance(inputs, list) else [inputs]
    if not each:
        raise ValueError(f"{type(model).__name__} is given no inputs: a list without samples")
    parts = [_tensors_of(model, one) for one in each]
    if len(parts) == 1:
        return model.model, parts[0]
    if "input_ids" in parts[0]:
        texts = [{name: x[0] for name, x in part.items()} for part in parts]
        return model.model, dict(model.tokenizer.pad(texts, return_tensors="pt"))
    return model.model, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _tensors_of(pipeline: Any, one: Any) -> dict[str, Tensor]:
    """Return the tensors that the model takes of one preprocessed input, on the model's device."""
    made = pipeline.preprocess(one, **getattr(pipeline, "_preprocess_params", {}))
    pieces = [made] if isinstance(made, Mapping) else list(made)
    if len(pieces) != 1:
        raise ValueError(
            f"{type(pipeline).__name__} makes {len(pieces)} inputs of one (windows of a long text, or a pair for each "
            f"label): choose one, attribute(pipeline.model, list(pipeline.preprocess(...))[0])"
        )
    ids = pieces[0].get("input_ids")
    if isinstance(ids, Tensor) and not ids.numel():
        raise ValueError("the text has no tokens")
    known = inspect.signature(pipeline.model.forward).parameters
    device = next((p.device for p in pipeline.model.parameters()), torch.device("cpu"))
    return {name: x.to(device) for name, x in pieces[0].items() if isinstance(x, Tensor) and name in known}
