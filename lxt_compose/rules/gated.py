"""The rules for gates: products of a signal and of the output of an activation that scales it."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ..autograd.functions import Bypass, Rebind, RelevanceFunction, shared_evenly
from ..ops.traits import TRAITS
from .base import Call
from .identity import _less_bias, _passed_on, _sloped, _through_ratio
from .scaling import Scaling, addends_of
from .uniform import Uniform

# What opens and shuts between 0 and 1 ...
_SIGMOIDS = frozenset(name for name, traits in TRAITS.items() if traits.limits == (0, 1))
# ... and what is bounded at all.
_BOUNDED = frozenset(name for name, traits in TRAITS.items() if traits.limits is not None)


Kind = frozenset[str] | None
"""Names of activations; None for any."""


def gates_among(call: Call, *kinds: Kind) -> list[bool]:
    """For each carrier, whether it is a gate: a factor out of an activation of the first kind that leaves a signal."""
    added = addends_of(call)
    behind = ["" if addend else activation_behind(x) for addend, x in zip(added, call.carriers, strict=True)]
    for kind in kinds:
        gates = [bool(name) and (kind is None or name in kind) for name in behind]
        if sum(gates) < len(added) - sum(added):
            return gates
    return [False] * len(added)


def has_sigmoid_gate(factors: list[Tensor]) -> bool:
    """Whether some factors of a product come out of sigmoids, and others do not."""
    return 0 < sum(activation_behind(x) in _SIGMOIDS for x in factors) < len(factors)


@dataclass(frozen=True)
class SignalTakesAll(Scaling):
    """At a product of a signal and a gate all relevance goes to the signal, none to the gate.

    ``z = signal * gate``: ``R_signal = R``, ``R_gate = 0``; in the gradient formulation ``g_signal = gate * g``.
    A gate is a factor that comes out of an activation (``silu(gate) * up``, ``sigmoid(gate) * x``), also after it was
    moved around, scaled, shifted (``1 - sigmoid(gate)``) or multiplied with another gate. Where all factors come out
    of activations, only bounded ones are gates (``tanh(gate) * relu(x)``), and if all are bounded, sigmoids
    (``sigmoid(gate) * tanh(x)``, as in an LSTM). Where none of the factors is a gate, or all are, they share evenly, as
    under :class:`UniformEpsilon`. With one carrier it is :class:`Epsilon`.

    Args:
        epsilon: stabilizer of the product, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Arras et al. 2017, section 3.2 (the gates of an LSTM): all relevance to the signal, none to the gate.
    """

    knows_complex: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = (None, _BOUNDED, _SIGMOIDS)
    """What is taken for a gate; the next kind where the one before would leave no signal."""

    def shares(self, call: Call) -> list[float]:
        """1/n for each of the n factors that are no gates, 0 for gates, 1 for what is added."""
        added, gates = addends_of(call), gates_among(call, *self.kinds)
        signals = len(added) - sum(added) - sum(gates)
        return [1.0 if addend else 0.0 if gate else 1.0 / signals for addend, gate in zip(added, gates, strict=True)]


@dataclass(frozen=True)
class GatedEpsilon(SignalTakesAll):
    """:class:`Gated` for a product that is summed, or that something is added to: a sigmoid gate gets none.

    As :class:`UniformEpsilon` for the other factors: ``O = sigmoid(S) V``: ``R_V = V * (sigmoid(S)^T (R_O / O))``.
    Where the default for contractions is UniformEpsilon, such products take this rule.

    Args:
        epsilon: stabilizer, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: as for :class:`Gated`.
    """

    kinds: ClassVar[tuple[Kind, ...]] = (_SIGMOIDS,)


@dataclass(frozen=True)
class Gated(Uniform):
    """Each of the n factors of a product gets the same part of the relevance, but a sigmoid gate gets none.

    :class:`Uniform`, except where a factor comes out of a sigmoid (``sigmoid(gate) * x``, ``(1 - sigmoid(gate)) * x``)
    and another does not: the others take all. What a sigmoid would get, ``R / 2``, its input z would get only in part,
    ``R / 2 * (sigmoid(z) - 1/2) / sigmoid(z)``, since sigmoid(0) = 1/2 is a bias (:class:`Identity`): that is
    bounded, but nothing at a gate that is half open. So each gate on the way would take up to half of the relevance
    out, position by position in a recurrent net. Gates with f(0) = 0 (SiLU, GELU, tanh) lose nothing, and share. Where
    the default for products is Uniform, such products take this rule; a key, ``{torch.mul: Uniform()}``, goes before.

    Raises:
        RuleError: a factor cannot be broadcast to the output's shape, or (gradient) the operation is no product.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.2; for sigmoids Arras et al. 2017, section 3.2.
    """

    as_scaling: ClassVar[Scaling] = GatedEpsilon(0.0)

    def sharers(self, call: Call) -> list[Tensor]:
        """The factors that are no sigmoids; all, if all are."""
        return [x for x, gate in zip(call.carriers, gates_among(call, _SIGMOIDS), strict=True) if not gate]


# Autograd nodes of the functions whose own gradient is f(x) / x, where the identity rule leaves no node of its own ...
_OWN_SLOPE = frozenset("Relu LeakyRelu Abs Prelu RreluWithNoise Clamp ClampMin ClampMax".split())
# ... and of those that move or scale a gate without making it anything else.
_PASSED = frozenset(
    """
    View UnsafeView Reshape ReshapeAlias Unsqueeze Squeeze Expand Permute Transpose T Mt Slice Select Split
    SplitWithSizes Unbind Narrow AsStrided Alias Clone ToCopy Index IndexSelect Gather Repeat Flip Roll Mul Div Neg
""".split()
)
# What makes a gate of bounded ones, but of an activation at large (relu(x) + 1, the sum of several) a signal as well.
_MADE = frozenset(
    """
    Add Sub Rsub Mean Sum Topk Sort MaskedFill Where ConstantPadNd Scatter Amax Max MaxPool2DWithIndices AvgPool2D
    UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D
    UpsampleTrilinear3D Cat Stack
""".split()
)
# What joins several: of gates, it is one.
_JOINS = frozenset({"Mul", "Cat", "Stack", "Where"})
_IDENTITIES = (_less_bias, _passed_on, _sloped, _through_ratio)
_FURTHEST = 16


def activation_behind(x: Tensor) -> str:
    """The name of the activation that a carrier came out of, if it was only moved, scaled or shifted; else empty."""
    return _behind(x.grad_fn, _FURTHEST)


def _behind(node: Any, steps: int) -> str:
    known: frozenset[str] | None = None  # which activations still make a gate, after what was passed; None: any
    for left in range(steps, 0, -1):
        if node is None:
            return ""
        function = getattr(type(node), "_forward_cls", None)
        kind = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        handed_on = node.slots.func if function is Bypass and isinstance(node.slots, partial) else None
        if handed_on in _IDENTITIES:
            return _if_known(str(node.slots.args[0]), known, node, left)
        if function is None and kind in _OWN_SLOPE:
            return _if_known(kind.lower(), known, node, left)
        if function is None:
            if kind not in _PASSED and kind not in _MADE:
                return ""
            known = _BOUNDED if kind in _MADE else known
        elif not issubclass(function, RelevanceFunction) or (function is Bypass and handed_on is not shared_evenly):
            return ""
        sources = [source for source, _ in node.next_functions if source is not None]
        if function is Rebind:
            sources = sources[-1:]  # the result of an in-place operation; before it comes what was overwritten
        if len(sources) != 1:
            joins = function is Bypass or kind in _JOINS
            names = [_behind(source, left - 1) for source in sources] if joins else []
            return max(names, key=lambda name: name not in _SIGMOIDS) if names and _BOUNDED.issuperset(names) else ""
        node = sources[0]
    return ""


def _if_known(name: str, known: frozenset[str] | None, node: Any, left: int) -> str:
    """The name of an activation, if it is one of those; a sigmoid that it only limits stays one."""
    if name.startswith("clamp"):
        before = [_behind(source, left - 1) for source, _ in node.next_functions]
        name = next((other for other in before if other in _SIGMOIDS), name)
    return name if known is None or name in known else ""
