"""Presets for recurrent nets: AttnLRP, whose rule for gates is that of Arras et al. 2017, with a small gamma."""

from __future__ import annotations

from typing import Any

from ..composite import Composite
from .images import Rules, gamma_vit


def gamma_rnn(linear_gamma: float = 0.03, conv_gamma: float = 0.25, rules: Rules = (), **options: Any) -> Composite:
    """LRP for LSTMs, GRUs and readers of images: gates get nothing, and layers a small :class:`Gamma`.

    A sigmoid gate gets nothing and the signal it multiplies gets everything (:class:`Gated`), tanh takes
    :class:`Identity`, and the memory is shared in proportion: LRP-all of Arras et al., which is the default table.
    Where the terms of a layer of input and state cancel, position after position, relevance grows with the length of
    the sequence; a small gamma limits that. A large one hides what speaks against the answer. The rule is that of
    ``F.linear``, so it holds in nn.LSTM, nn.GRU, nn.RNN, their cells, and in cells written by hand.

    Args:
        linear_gamma: gamma of dense layers, those inside of recurrent nets too, >= 0.
        conv_gamma: gamma of convolutions, >= 0.
        rules: keys and rules of your own, which go before the preset's.
        options: further arguments of :class:`Composite`, such as `formulation`.

    Raises:
        ValueError: a gamma is negative.

    Source: gates: Arras et al. 2017 and 2019 (LRP-all); gamma: Montavon et al. 2019; that it helps here, and which, was
    measured: ``benchmarks/recurrent.py``.
    """
    return gamma_vit(conv_gamma, linear_gamma, rules, **options)
