"""The rules for gates: products of a signal and of the output of an activation that scales it."""

from dataclasses import dataclass
from typing import ClassVar

from ..autograd.marks import Gate
from .base import Call, Rule
from .scaling import Scaling, addends_of, again_by_shares, shares_among
from .uniform import Uniform
from .uniform_epsilon import UniformEpsilon


def gates_among(call: Call, *kinds: Gate) -> list[bool]:
    """Return for each carrier whether it is a gate, of the first of these kinds under which some carrier is none."""
    added = addends_of(call)
    gates = [Gate.NONE if addend else known.gate for addend, known in zip(added, call.known, strict=True)]
    for kind in kinds:
        found = [gate >= kind for gate in gates]
        if sum(found) < len(added) - sum(added):
            return found
    return [False] * len(added)


@dataclass(frozen=True)
class SignalTakesAll(Scaling):
    """At a product of a signal and a gate all relevance goes to the signal, none to the gate.

    ``z = signal * gate``: ``R_signal = R``, ``R_gate = 0``; in the gradient formulation ``g_signal = gate * g``.
    A gate is a factor that comes out of an activation (``silu(gate) * up``, ``sigmoid(gate) * x``), also after it was
    moved around, scaled, shifted (``1 - sigmoid(gate)``) or multiplied with another gate. Where all factors come out
    of activations, only bounded ones are gates (``tanh(gate) * relu(x)``), and if all are bounded, those that open and
    close (``sigmoid(gate) * tanh(x)``, as in an LSTM): see :class:`~lxt_compose.autograd.marks.Gate`. Where none of the
    factors is a gate, or all are, they share evenly, as under :class:`UniformEpsilon`. With one carrier it is
    :class:`Epsilon`.

    Args:
        epsilon: stabilizer of the product, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Arras et al. 2017, section 3.2 (the gates of an LSTM): all relevance to the signal, none to the gate.
    """

    again = again_by_shares

    knows_complex: ClassVar[bool] = True
    kinds: ClassVar[tuple[Gate, ...]] = (Gate.ACTIVATION, Gate.BOUNDED, Gate.OPENS)
    """The kinds of gates, in order; the next one counts where all carriers are of the one before."""

    def shares(self, call: Call) -> list[float]:
        """Return 1/n for each of the n factors that are no gates, 0 for gates, 1 for what is added."""
        return shares_among(call, [not gate for gate in gates_among(call, *self.kinds)])


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

    again = again_by_shares

    kinds: ClassVar[tuple[Gate, ...]] = (Gate.OPENS,)


@dataclass(frozen=True)
class Gated(Uniform):
    """Each of the n factors of a product gets the same part of the relevance, but a sigmoid gate gets none.

    :class:`Uniform`, except where a factor comes out of a sigmoid (``sigmoid(gate) * x``, ``(1 - sigmoid(gate)) * x``)
    and another does not: the others take all. What a sigmoid would get, ``R / 2``, its input z would get only in part,
    ``R / 2 * (sigmoid(z) - 1/2) / sigmoid(z)``, since sigmoid(0) = 1/2 is a bias (:class:`Identity`): that is
    bounded, but nothing at a gate that is half open. So each gate on the way would take up to half of the relevance
    out, position by position in a recurrent net. Gates with f(0) = 0 (SiLU, GELU, tanh) lose nothing, and share. Where
    the default for products is Uniform, such products take this rule; a key, ``{torch.mul: Uniform()}``, goes before.

    A sigmoid is known by what it does, whichever rule it has: an activation f with a limit on either side, f(0) between
    them and not 0 (``relu6(x + 3) / 6``, ``(tanh(x / 2) + 1) / 2``), also after it was moved, scaled or averaged.

    Raises:
        RuleError: a factor cannot be broadcast to the output's shape, or (gradient) the operation is no product.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.2; for sigmoids Arras et al. 2017, section 3.2.
    """

    as_scaling: ClassVar[Scaling] = GatedEpsilon(0.0)
    again = Uniform.again


def gated_form(rule: Rule | None) -> Rule | None:
    """Return the rule in place of a default for products where one of several factors is a sigmoid gate."""
    if type(rule) is Uniform:
        return Gated()
    return GatedEpsilon(rule.epsilon) if type(rule) is UniformEpsilon else None
