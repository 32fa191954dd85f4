"""The tensor of a model's output that holds one number for each class, and the position that is explained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..torch_internals.traces import is_traced, on_cpu
from .heads import choices_at, choices_of, is_embedding, joint

# Models of transformers whose last position predicts the next token; other heads answer at each position.
_CAUSAL = re.compile(r"CausalLM|(?<!With)LMHeadModel|DoubleHeads|ConditionalGeneration|Seq2SeqLM|ImageTextToText")


def logits_of(output: Any) -> Tensor:
    """Return the tensor of a model's output that holds one number for each class.

    Raises:
        TypeError: there is none, or it is not clear which of several it is.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    found = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    if not found:
        raise TypeError(f"the model returned no floating point tensor but {type(output).__name__}")
    if (isinstance(output, Mapping) and len(found) > 1) or is_embedding(output):
        names = ", ".join(map(str, output)) if isinstance(output, Mapping) else ""
        raise TypeError(
            f"the model's output {type(output).__name__}({names}) has no logits, so it is not clear what to explain; "
            f"pass target= {choices_of(output)}"
        )
    return found[0]


def per_class(
    output: Any,
    model: nn.Module,
    count: int,
    mask: Tensor | None,
    asked_at: Tensor | None = None,
    *,
    alone: bool = False,
) -> Tensor:
    """Return the numbers to choose a class from, [n, classes].

    Args:
        output: of the model.
        model: the model.
        count: the number of samples.
        mask: their real tokens.
        asked_at: the mask tokens of a masked language model.
        alone: whether the inputs are one sample without a dimension for it: so may be the output.

    Raises:
        TypeError: there are none.
        ValueError: the output has several places, and it is not clear which is meant.
    """
    together = joint(output, count)
    if together is not None:
        return together
    logits = logits_of(output)
    if logits.layout is not torch.strided:
        logits = logits.to_dense()
    if alone and logits.dim() == 1:
        return logits[None]
    kind, shape = type(model).__name__, list(logits.shape)
    if logits.dim() == 0 or shape[0] != count:
        raise ValueError(
            f"the output of {kind} has shape {shape}, but the first dimension should count {count} samples; if the "
            f"inputs are one sample without a dimension for it, name theirs: dims='feature'"
        )
    if logits.dim() == 1:
        return logits[:, None]
    one_place = logits.dim() == 2 and "PreTraining" not in kind  # ELECTRA's says of each token whether it was replaced
    if one_place:
        return logits
    if logits.dim() == 3 and asked_at is not None and bool((asked_at.sum(1) == 1).all()):
        return logits[asked_at.to(logits.device)]
    if logits.dim() != 3 or not _answers_last(model):
        raise ValueError(
            f"the output of {kind} has shape {shape}: an index alone does not say which place of it is meant (token, "
            f"frame, query or pixel), and so there is no default; pass target= (of lxt_compose.targets, or a function "
            f"of the output) {choices_at(output, logits, model)}{_of_masks(model, asked_at)}"
        )
    return logits[torch.arange(count, device=logits.device), last_real(mask, count, shape[1]).to(logits.device)]


def _of_masks(model: nn.Module, asked_at: Tensor | None) -> str:
    """Return why a masked language model has no default target."""
    if asked_at is not None:
        return f" (the samples have {', '.join(map(str, asked_at.sum(1).tolist()))} mask tokens, not one each)"
    known = "MaskedLM" in type(model).__name__
    return " (or set model.config.mask_token_id: the place of a single mask token is the default)" if known else ""


def _answers_last(model: nn.Module) -> bool:
    """Return whether the last position of a model's output is its answer: a causal language model."""
    if hasattr(getattr(model, "config", None), "model_type"):
        return bool(_CAUSAL.search(type(model).__name__))
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def last_real(mask: Tensor | None, count: int, length: int) -> Tensor:
    """Return the position of the last token of each sample that is no padding; the padding may be left or right.

    Raises:
        ValueError: the mask is of another length than the output, or masks a whole sample.
    """
    last = torch.full((count,), length - 1)
    if mask is None or mask.dim() != 2:
        return last
    real = on_cpu(mask.detach()) != 0
    if not is_traced() and not real.any(1).all():
        raise ValueError("the attention mask leaves a sample without any token")
    positions = real.shape[1] - 1 - real.flip(1).long().argmax(1)
    if real.shape[1] == length:
        return positions
    if bool((positions == real.shape[1] - 1).all()):
        return last
    raise ValueError(f"the attention mask has {real.shape[1]} positions, but the output {length}")
