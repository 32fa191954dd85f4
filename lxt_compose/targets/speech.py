"""Targets of speech recognition by CTC: what is emitted, in which frames, and at what time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from .places import Target, called, inside, named


@dataclass(frozen=True)
class Emission:
    """A symbol that CTC emits: frames ``first`` to ``last``, both included, in which it is the arg-max."""

    symbol: int
    first: int
    last: int


def emissions(logits: Tensor, blank: int) -> list[Emission]:
    """Return what the best path emits: the arg-max of each frame, repeats merged, blanks dropped.

    Args:
        logits: of one sample, [frames, symbols].
        blank: the number of the blank, for Wav2Vec2 ``model.config.pad_token_id``.

    Source: Graves et al. 2006 (best path decoding, section 3.2).
    """
    found: list[Emission] = []
    path = logits.detach().argmax(-1).tolist()
    for place, symbol in enumerate(path):
        if place and path[place - 1] == symbol and symbol != blank:
            found[-1] = Emission(symbol, found[-1].first, place)
        elif symbol != blank:
            found.append(Emission(symbol, place, place))
    return found


def emission(number: int, blank: int) -> Target:
    """Return the target for a symbol that CTC emits: the sum of its logit over the frames that emit it.

    For one sample at a time, as each has emissions of its own.

    Args:
        number: which of :func:`emissions`; negative ones count from the end.
        blank: the number of the blank, for Wav2Vec2 ``model.config.pad_token_id``.
    """

    def target(output: Any) -> Tensor:
        logits = named(output, ("logits",), "emission", dims=(3,))
        if len(logits) != 1:
            raise ValueError(f"emission() is for one sample, as each has its own emissions; there are {len(logits)}")
        found = emissions(logits[0], blank)
        if not found:
            raise ValueError("nothing is emitted: the blank is the arg-max of each frame; explain a frame, frame(...)")
        one = found[inside(number, len(found), "emission")]
        return logits[:, one.first : one.last + 1, one.symbol].sum(1)

    return called(target, f"emission {number}")


def seconds_of(frame: int, strides: Sequence[int], sampling_rate: int = 16_000) -> float:
    """Return the time at which a frame begins, in seconds.

    Args:
        frame: its number.
        strides: of the convolutions before it, for Wav2Vec2 ``model.config.conv_stride``.
        sampling_rate: of the wave, in samples a second.
    """
    return frame * prod(strides) / sampling_rate
