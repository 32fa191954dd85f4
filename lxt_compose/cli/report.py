"""The coverage of a model under a preset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attribution import attribute
from ..autograd.trees import tensors_in
from .answer import Answer, Say
from .composite_options import CompositeOptions
from .model_files import Loaded, dummy_inputs, load_model


def report(
    reference: str,
    *,
    say: Say,
    rules: CompositeOptions | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
    every_row: bool = False,
    ledger: bool = False,
    width: int = 100,
) -> Answer:
    """Run a model on random inputs under a preset, and return the coverage report.

    Args:
        reference: a checkpoint folder (weights are not needed), or ``module:factory``.
        say: takes lines about the progress.
        rules: the rules; None is AttnLRP.
        shapes: one for each positional argument of the model, if it is not one of transformers.
        every_row: whether each module and operation has a line of its own.
        ledger: whether to add where relevance went.
        width: columns of the terminal.

    Raises:
        CheckpointError: the model cannot be loaded, or its inputs are unknown.
        ValueError: there is no such preset, or not with these arguments.
    """
    rules = rules or CompositeOptions()
    composite = rules.composite()
    say(f"loading {reference}")
    loaded = load_model(reference, weights=False)
    inputs = _made_up(loaded, shapes)
    if not loaded.trained:
        say("the folder holds no weights: they are random, which changes nothing of the coverage")
    say("running a forward and a backward pass")
    found = attribute(loaded.model, inputs, composite=composite, target=_everything, ledger=ledger)
    head = f"{loaded.name}, preset {rules}, {_described(inputs)}"
    parts = [head, found.report.to_string(every_row=every_row, width=width)]
    data: dict[str, Any] = {
        "model": loaded.name,
        "preset": str(rules),
        "complete": found.report.complete,
        "uncovered": [f"{row.target} in {row.path}" for row in found.report.uncovered],
        "rows": found.report.to_dicts(),
    }
    if found.ledger is not None:
        parts.append(found.ledger.to_string(width=width))
        data["ledger"] = {"unaccounted": found.ledger.unaccounted, "entries": found.ledger.to_dicts()}
    return Answer("\n\n".join(parts), data, found.report.complete)


def _made_up(loaded: Loaded, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Return inputs of these shapes, no two with the same values: x - y should not be 0."""
    if not shapes:
        return dummy_inputs(loaded)
    sizes = [math.prod(shape) for shape in shapes]
    parts = dummy_inputs(loaded, (sum(sizes),)).split(sizes)
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))


def _everything(output: Any) -> Tensor:
    """Return the sum of all outputs, so that relevance passes through all of the model."""
    first = next(tensor for tensor in tensors_in(output) if tensor.is_floating_point())
    return first.flatten(1).sum(1) if first.dim() > 1 else first


def _described(inputs: Any) -> str:
    tensors = [tensor for tensor in tensors_in(inputs) if isinstance(tensor, torch.Tensor)]
    return "input " + ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
