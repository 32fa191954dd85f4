"""The rules for attention operations: what queries, keys and values get."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

from torch import Tensor

from ..ops import Family
from .absorption import BIAS, SOFTMAX, left_over
from .base import Amount, Call
from .scaling import Scaling, again_by_shares, places_of


@dataclass(frozen=True)
class Attention(Scaling):
    """Attention ``O = A V, A = softmax(Q K^T * scale + mask)`` by the rules of its parts, as one operation.

    Uniform epsilon for both products and the Taylor rule for softmax compose to fixed shares of the operation's own
    gradient: ``R_q = 1/4 q * g_q``, ``R_k = 1/4 k * g_k``, ``R_v = 1/2 v * g_v`` with ``g = J^T (R_O / O)``, and 1/2
    for a mask that carries relevance; as a default rule by degree where queries, keys or values are products
    themselves (see :class:`Uniform`). Inputs that are constants leave their share to the others of the same product.
    In the gradient formulation the shares alone remain. On ``multi_head_attention_forward`` the projections inside
    get the rules of linear operations.

    Args:
        epsilon: stabilizer of the output, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Achtibat et al. 2024 (AttnLRP), propositions 3.1 and 3.3.
    """

    again = again_by_shares

    families: ClassVar[frozenset[Family]] = frozenset({Family.ATTENTION})

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: the function that holds its projections too is never run as one."""
        return not _has_parts(call) and super().idle(call)

    def shares(self, call: Call) -> list[float]:
        """Shares by the roles of the carriers, and by their degrees where those count; the weights A have degree 1."""
        return list(_shares(tuple(_roles(call)), tuple(call.degrees)))

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: of s * z, what the expansion of softmax does not hand on by these shares."""
        found = super().absorbed(call)
        if call.rerun is not None:
            found.pop(BIAS, None)
            found[SOFTMAX] = partial(left_over, call, self.shares(call), self.epsilon)
        return found


@dataclass(frozen=True)
class ValueAttention(Scaling):
    """Attention with its weights held constant: all relevance goes to the values, none to queries, keys and masks.

    ``O = A V`` with A constant: ``R_v = v * A^T (R_O / O)``, ``R_q = R_k = R_mask = 0``; in the gradient formulation
    ``g_v = A^T g_O``. A softmax that runs by itself inside a module (or inside ``multi_head_attention_forward``) with
    this rule is held constant too, and the products around it get the rules of linear operations.

    Args:
        epsilon: stabilizer of the output, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Ali et al. 2022 (CP-LRP), section 3.2: the attention-head rule; the same in Jafari et al. 2025 (RelP).
    """

    families: ClassVar[frozenset[Family]] = frozenset({Family.ATTENTION, Family.SOFTMAX})

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: the function that holds its projections too is never run as one."""
        return not _has_parts(call) and super().idle(call)

    def shares(self, call: Call) -> list[float]:
        """Return 1 for values, 0 for all else."""
        if call.op is not None and call.op.family is Family.SOFTMAX:
            return [0.0] * len(call.carriers)
        return [float(role == "value") for role in _roles(call)]

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        return super().leave(call, outputs) if any(self.shares_of(call)) else [z.detach() for z in outputs]


@lru_cache(maxsize=4096)
def _shares(roles: tuple[str, ...], degrees: tuple[float, ...]) -> tuple[float, ...]:
    scores = sum(degree for role, degree in zip(roles, degrees, strict=True) if role in ("query", "key"))
    values = sum(degree for role, degree in zip(roles, degrees, strict=True) if role == "value")
    weights = float(any(role != "value" for role in roles))
    whole = weights + values
    parts = {"value": values / whole, "mask": weights / whole}
    return tuple(
        weights / whole * degree / scores if role in ("query", "key") else parts[role]
        for role, degree in zip(roles, degrees, strict=True)
    )


def _has_parts(call: Call) -> bool:
    return call.op is not None and call.op.traits.has_projections


_ROLES: dict[int | str, str] = {0: "query", 1: "key", 2: "value", 3: "mask", "attn_mask": "mask"}


def _roles(call: Call) -> list[str]:
    return [_ROLES.get(place, str(place)) for place in places_of(call)]
