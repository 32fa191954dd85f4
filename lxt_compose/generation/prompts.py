"""Prompts: texts, chats and ids, as one sequence of tokens for each sample, without padding."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

TEMPLATE = "template"
"""The role of tokens that a chat template adds around the messages."""
_CACHES = ("past_key_values", "past_key_value", "cache_params", "encoder_outputs", "past_buckets_states", "mems")
_TOKENS = ("input_ids", "attention_mask", "decoder_input_ids")
_IGNORED = ("token_type_ids",)
"""Left out where there is text alone, and where the model does not take them."""
_UNREAD = ("labels", "decoder_attention_mask", "return_dict", "use_cache")


@dataclass(frozen=True)
class Prompt:
    """One sample. ``roles`` gives the role of each token of a chat, or ``"template"``; empty without a chat.

    ``start`` are the first ids of the decoder of a model with an encoder; ``given`` the other inputs: images, sounds,
    and inputs that say how to read them. Where a sound is the only input of an encoder, there are no ids.
    """

    ids: tuple[int, ...]
    text: str | None = None
    roles: tuple[str, ...] = ()
    start: tuple[int, ...] = ()
    given: Mapping[str, Tensor] = field(default_factory=dict)


def read_prompts(model: nn.Module, prompt: Any, tokenizer: Any) -> list[Prompt]:
    """Return the samples that a prompt stands for.

    Args:
        model: the model, with or without an encoder.
        prompt: a text, a chat (a list of messages with ``role`` and ``content``), ids, what a tokenizer returns, or
            several of them.
        tokenizer: makes ids of texts; None where ids are given.

    Raises:
        TypeError: the prompt is of a wrong kind, or is a text without a tokenizer.
        ValueError: a sample has no tokens, there is a cache, or padding is at the right.
    """
    found = _read(prompt, tokenizer)
    if not found:
        raise ValueError("the prompt has no samples")
    for number, one in enumerate(found):
        if not one.ids and not one.given:
            raise ValueError(f"sample {number} of the prompt has no tokens")
    start = _decoder_start(model)
    if not start and not all(one.ids for one in found):
        raise ValueError(f"{type(model).__name__} has no encoder, so its prompt needs input_ids")
    taken = inspect.signature(model.forward).parameters
    return [replace(one, start=one.start or start, given=_taken(one.given, taken)) for one in found]


def _taken(given: Mapping[str, Tensor], taken: Container[str]) -> dict[str, Tensor]:
    """Return the inputs without those that a model may do without, if it does not take them."""
    return {name: x for name, x in given.items() if name not in _IGNORED or name in taken}


def _read(prompt: Any, tokenizer: Any) -> list[Prompt]:
    if isinstance(prompt, str):
        return [_of_text(prompt, tokenizer)]
    if isinstance(prompt, Mapping) and not _is_message(prompt):
        return _of_mapping(prompt)
    if isinstance(prompt, Tensor) or hasattr(prompt, "__array__"):
        return _of_tensor(torch.as_tensor(prompt), None)
    if isinstance(prompt, Sequence) and len(prompt):
        first = prompt[0]
        if _is_message(first):
            return [_of_chat(prompt, tokenizer)]
        if isinstance(first, int) and not isinstance(first, bool):
            return _of_tensor(torch.tensor(list(prompt)), None)
        if isinstance(first, str) or (isinstance(first, Sequence) and len(first)):
            return [one for each in prompt for one in _read(each, tokenizer)]
    raise TypeError(
        f"a prompt is a text, a chat [{{'role': ..., 'content': ...}}], token ids, what a tokenizer returns, or a list "
        f"of these, got {type(prompt).__name__}"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def need(tokenizer: Any, what: str) -> Any:
    """Return the tokenizer.

    Raises:
        TypeError: there is none.
    """
    if tokenizer is None:
        raise TypeError(f"{what} needs a tokenizer: pass tokenizer=, or give token ids")
    return tokenizer


def _of_text(text: str, tokenizer: Any) -> Prompt:
    return Prompt(tuple(need(tokenizer, "a text as the prompt")(text)["input_ids"]), text)


def _of_tensor(ids: Tensor, mask: Tensor | None) -> list[Prompt]:
    if ids.dim() == 1:
        ids, mask = ids[None], None if mask is None else mask[None]
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"token ids are integers [samples, tokens], got {ids.dtype} of shape {list(ids.shape)}")
    if mask is None:
        return [Prompt(tuple(row)) for row in ids.tolist()]
    if mask.shape != ids.shape:
        raise ValueError(f"the attention mask has shape {list(mask.shape)}, but the ids {list(ids.shape)}")
    return [
        Prompt(tuple(token for token, real in zip(*pair, strict=True) if real))
        for pair in zip(ids.tolist(), (mask != 0).tolist(), strict=True)
    ]


def _of_mapping(prompt: Mapping[str, Any]) -> list[Prompt]:
    refuse_caches(prompt)
    known = {name: _tensor(value) for name, value in prompt.items() if value is not None and name not in _UNREAD}
    others = {name: x for name, x in known.items() if name not in (*_TOKENS, *_IGNORED) and isinstance(x, Tensor)}
    ids, mask, start = (known.get(name) for name in _TOKENS)
    if not any(x.is_floating_point() for x in others.values()):
        if others or ids is None:
            raise TypeError(
                f"a prompt as a mapping holds input_ids, got {', '.join(map(str, prompt)) or 'nothing'}; other inputs "
                f"are images and sounds that the model reads beside or instead of them, as its processor returns them"
            )
        found = _of_tensor(ids, mask)
    else:
        found = [_with_others(ids, mask, {**{n: x for n, x in known.items() if n in _IGNORED}, **others})]
    if start is None:
        return found
    rows = start.tolist() if start.dim() == 2 else [start.tolist()] * len(found)
    return [replace(one, start=tuple(row)) for one, row in zip(found, rows, strict=True)]


def _with_others(ids: Tensor | None, mask: Tensor | None, others: Mapping[str, Tensor]) -> Prompt:
    """Return the one sample of a prompt with images or sounds; inputs for each token are cut to the real ones."""
    if ids is None:
        return Prompt((), given=others if mask is None else {**others, "attention_mask": mask})
    ids = ids[None] if ids.dim() == 1 else ids
    if len(ids) != 1:
        raise ValueError(
            f"a prompt with images or sounds is one sample, but input_ids has {len(ids)} rows; explain one at a time"
        )
    (prompt,) = _of_tensor(ids, mask)
    real = torch.ones_like(ids[0], dtype=torch.bool) if mask is None else mask.reshape(-1) != 0
    kept = {name: x[:, real] if of_tokens(x, ids.shape[1]) else x for name, x in others.items()}
    return replace(prompt, given=kept)


def of_tokens(x: Tensor, count: int) -> bool:
    """Return whether a tensor has an entry for each of this number of tokens."""
    return x.dim() == 2 and x.shape == (1, count) and not x.is_floating_point()


def _tensor(value: Any) -> Any:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def refuse_caches(given: Mapping[str, Any]) -> None:
    """Raise if there is a cache among the inputs.

    Raises:
        ValueError: there is one.
    """
    for name in _CACHES:
        if given.get(name) is not None:
            raise ValueError(
                f"{name} was given, but what is in a cache was computed outside of the rules, so that tokens behind it "
                f"could get no relevance; give the whole prompt instead, without a cache"
            )


def _decoder_start(model: nn.Module) -> tuple[int, ...]:
    """Return the first ids of a decoder; empty for a model without an encoder.

    Raises:
        ValueError: the configuration does not give them.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return ()
    places = (getattr(model, "generation_config", None), config)
    for place in places:
        token = getattr(place, "decoder_start_token_id", None)
        if isinstance(token, int):
            return (token,)
    raise ValueError(
        f"the configuration of {type(model).__name__} has no decoder_start_token_id; give decoder_input_ids too"
    )


# ---- chats -----------------------------------------------------------------------------------------------------------


def _of_chat(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> Prompt:
    """Return a chat as the tokenizer's template writes it, with the role of each token."""
    if getattr(need(tokenizer, "a chat"), "chat_template", None) is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, so it is not known how to write messages down; set "
            f"tokenizer.chat_template, or give the text"
        )
    text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(getattr(tokenizer, "is_fast", 0)))
    ids = tuple(encoded["input_ids"])
    spans = _said(text, messages)
    offsets = encoded.get("offset_mapping") or [(0, 0)] * len(ids)
    roles = tuple(_role_of(offset, spans) for offset in offsets)
    return Prompt(ids, text, roles)


def _said(text: str, messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """Return the position of each message in the text of a chat: from, to, role."""
    spans, at = [], 0
    for message in messages:
        content = str(message["content"]).strip()
        found = text.find(content, at) if content else -1
        if found >= 0:
            at = found + len(content)
            spans.append((found, at, str(message["role"])))
    return spans


def _role_of(offset: tuple[int, int], spans: Sequence[tuple[int, int, str]]) -> str:
    first, last = offset
    for start, stop, role in spans:
        if first < stop and last > start:
            return role
    return TEMPLATE
