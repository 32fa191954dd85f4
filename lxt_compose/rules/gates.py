"""The rule for gates: products of a signal and of the output of an activation that scales it."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ..gradients import Bypass, Rebind, RelevanceFunction, shared_evenly
from .base import Call
from .bypass import _passed_on, _sloped, _through_ratio
from .scaling import Scaling, addends_of


@dataclass(frozen=True)
class SignalTakesAll(Scaling):
    """At a product of a signal and a gate all relevance goes to the signal, none to the gate.

    ``z = signal * gate``: ``R_signal = R``, ``R_gate = 0``; in the gradient formulation ``g_signal = gate * g``.
    A gate is a factor that comes out of an activation (``silu(gate) * up``, ``sigmoid(gate) * x``), also after it was
    moved around or scaled. Where all factors come out of activations, only those of a sigmoid are gates
    (``sigmoid(gate) * tanh(x)``, as in an LSTM). Where none of the factors is a gate, or all are, they share evenly, as
    under :class:`UniformEpsilon`. With one carrier it is :class:`Epsilon`.

    Args:
        epsilon: stabiliser of the product, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Arras et al. 2017, section 3.2 (the gates of an LSTM): all relevance to the signal, none to the gate.
    """

    knows_complex: ClassVar[bool] = True

    def shares(self, call: Call) -> list[float]:
        """1/n for each of the n factors that are no gates, 0 for gates, 1 for what is added."""
        added = addends_of(call)
        behind = ["" if addend else activation_behind(x) for addend, x in zip(added, call.carriers, strict=True)]
        factors = len(added) - sum(added)
        for gates in ([bool(name) for name in behind], [name in _SQUASHING for name in behind]):
            signals = factors - sum(gates)
            if signals:
                break
        else:
            gates, signals = [False] * len(added), factors
        return [1.0 if addend else 0.0 if gate else 1.0 / signals for addend, gate in zip(added, gates, strict=True)]


# Autograd nodes of the functions whose own gradient is f(x) / x, where the identity rule leaves no node of its own ...
_OWN_SLOPE = frozenset("Relu LeakyRelu Abs Prelu RreluWithNoise Clamp ClampMin ClampMax".split())
# ... and of those that move or scale a gate without making it anything else.
_PASSED = frozenset(
    """
    View UnsafeView Reshape ReshapeAlias Unsqueeze Squeeze Expand Permute Transpose T Mt Slice Select Split
    SplitWithSizes Unbind Narrow AsStrided Alias Clone ToCopy Index IndexSelect Gather Repeat Mul Div Neg
""".split()
)
_IDENTITIES = (_passed_on, _sloped, _through_ratio)
# What opens and shuts between 0 and 1.
_SQUASHING = frozenset({"sigmoid", "hardsigmoid"})
_FURTHEST = 16


def activation_behind(x: Tensor) -> str:
    """The name of the activation that a carrier came out of, if it was only moved or scaled since; else empty."""
    node: Any = x.grad_fn
    for _ in range(_FURTHEST):
        if node is None:
            return ""
        function = getattr(type(node), "_forward_cls", None)
        if function is Bypass:
            handed_on = node.slots.func if isinstance(node.slots, partial) else None
            if handed_on is not shared_evenly:
                return str(node.slots.args[0]) if handed_on in _IDENTITIES else ""
        elif function is None:
            kind = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
            if kind in _OWN_SLOPE:
                return kind.lower()
            if kind not in _PASSED:
                return ""
        elif not issubclass(function, RelevanceFunction):
            return ""
        sources = [source for source, _ in node.next_functions if source is not None]
        if function is Rebind:
            sources = sources[-1:]  # the result of an in-place operation; before it comes what was overwritten
        if len(sources) != 1:
            return ""
        node = sources[0]
    return ""
