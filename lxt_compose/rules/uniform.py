"""The uniform rule: relevance shared evenly by the inputs of an operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from ..autograd.functions import bypass, shared
from ..autograd.numerics import broadcasts_to
from ..autograd.trees import tensors_in
from ..errors import RuleError, place
from ..ops import Family
from .absorption import STABILIZER
from .again import Again
from .base import GRADIENT, Amount, Call, Rule, only_output
from .scaling import Scaling, again_by_shares
from .uniform_epsilon import UniformEpsilon


@dataclass(frozen=True)
class Uniform(Rule):
    """Each of the n carriers of an operation gets the same part of the relevance.

    ``R_i = R / n``, summed over the dimensions along which carrier i was broadcast.
    In the gradient formulation it knows products ``z = x_1 * ... * x_n``, where it is ``g / n`` before the product's
    own gradient; any other operation needs the relevance formulation, since zero inputs can get relevance.

    By default products take this rule with n counted in factors, so that brackets do not matter: of ``(a b) c`` and
    ``a (b c)`` each factor gets R / 3. ``R_i = R * d_i / sum of all d``, where the degree d_i of carrier i is how many
    factors each of its terms holds. Products add the degrees of the factors that share, powers multiply theirs by the
    exponent. Degrees start anew at 1 where parameters of the model come in (layers, norms with weights), behind a
    softmax, and in a sum of carriers that have different ones; all else keeps them. A key, ``{torch.mul: Uniform()}``,
    knows no degrees: each carrier gets R / n.

    Raises:
        RuleError: a carrier cannot be broadcast to the output's shape, or (gradient) the operation is no product.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.2; that brackets matter in it: arXiv 2510.18810.
    """

    knows_complex: ClassVar[bool] = True
    as_scaling: ClassVar[Scaling] = UniformEpsilon(0.0)
    """The equal rule for products in the gradient formulation; it gives the shares in both formulations."""

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        self.as_scaling.shares_of(call)  # now: the operation may change a carrier in place
        if not self._is_scaled(call):
            return call.carriers[place].detach()
        return self.as_scaling.enter(self._product(call), place)

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if self._is_scaled(call):
            return self.as_scaling.leave(self._product(call), outputs)
        z = only_output(self, call, outputs)
        if call.op is not None and call.op.traits.element_sum is not None:
            raise RuleError(
                f"{self} shares relevance among tensors, but {call.where} multiplies elements; use UniformElements()"
            )
        sharers = [(x, share) for x, share in zip(call.carriers, self.as_scaling.shares_of(call), strict=True) if share]
        for shape in (x.shape for x, _ in sharers):
            if not broadcasts_to(shape, z.shape):
                raise RuleError(
                    f"{self} shares relevance element by element, but {call.where} has an input of shape "
                    f"{tuple(shape)} and an output of shape {tuple(z.shape)}; use UniformEpsilon() or Epsilon()"
                )
        return [_shared([share for _, share in sharers], [x for x, _ in sharers], z)]

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: nothing, but for the stabilizer of complex products."""
        return self.as_scaling.absorbed(call) if self._is_scaled(call) and call.rerun is None else {}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return STABILIZER

    def again(self, call: Call, output: Tensor) -> Again | None:
        """See :meth:`Rule.again`."""
        if not call.relevance:
            return again_by_shares(self.as_scaling, call, output)
        shares, op = self.as_scaling.shares_of(call), call.op
        elementwise = op is not None and op.family is Family.PRODUCT and op.traits.element_sum is None
        return Again(partial(_shared, shares), holds=_are_real) if elementwise and 0 not in shares else None

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: a product with one carrier is linear in it."""
        return not call.relevance and len(call.carriers) == 1 and self._product(call) is call

    def check_module(self, module: nn.Module, path: str, formulation: str) -> None:
        """See :meth:`Rule.check_module`."""
        if formulation == GRADIENT:
            raise RuleError(
                f"{self} on a module ({place(path)}, {type(module).__name__}) needs formulation='relevance', since it "
                f"gives relevance to inputs that are 0; in the gradient formulation use Epsilon() or Pass()"
            )

    def _is_scaled(self, call: Call) -> bool:
        """Return whether the product's own gradient is scaled: in the gradient formulation, and for complex numbers.

        No element of a complex product belongs to one element of a factor. A real factor of such a product is no
        exception, nor is a product in which the only complex factor is a number.
        """
        if not call.relevance:
            return True
        given = (*call.args, *call.kwargs.values())
        return any(isinstance(x, complex) for x in given) or any(x.is_complex() for x in tensors_in(given))

    def _product(self, call: Call) -> Call:
        if call.op is None or not (call.op.multiplies or call.op.held):
            raise RuleError(
                f"{self} in the gradient formulation knows products of tensors only, not {call.where}; "
                f"use formulation='relevance', or UniformEpsilon() or Epsilon()"
            )
        return call


def _shared(shares: list[float], carriers: Sequence[Tensor], z: Tensor, *_: Any) -> Tensor:
    return bypass(partial(shared, [x.shape for x in carriers], shares), z, (), carriers)


def _are_real(carriers: Sequence[Tensor], args: Sequence[Any]) -> bool:
    return not any(isinstance(value, Tensor) and value.is_complex() for value in args)
