"""Drop-ins as values of a composite: the rules of the same equations, and LXT's names for rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..autograd.functions import graft
from ..autograd.numerics import EPSILON
from ..autograd.trees import tensors_in
from ..errors import RuleError, place
from ..rules.attention import ValueAttention
from ..rules.base import RELEVANCE, Call, Rule
from ..rules.epsilon import Epsilon
from ..rules.identity import Identity
from ..rules.norm import Norm
from ..rules.passing import Pass
from ..rules.softmax import SoftmaxTaylor
from ..rules.stop import Stop
from ..rules.taylor_decomposition import Distribution, Reference, TaylorDecomposition
from ..rules.uniform import Uniform
from ..rules.uniform_epsilon import UniformEpsilon
from ..torch_internals import modes_off
from . import functional, modules
from .drop_in import SMALL


@dataclass(frozen=True)
class EpsilonRule(Epsilon):
    """:class:`Epsilon` by the name, and with the stabilizer, that it has in LXT."""

    epsilon: float = SMALL


@dataclass(frozen=True)
class IdentityRule(Identity):
    """:class:`Identity` by the name that it has in LXT, where all relevance passes, also that of f(0)."""

    zero_bias: bool = True


UniformRule = Uniform
UniformEpsilonRule = UniformEpsilon
StopRelevanceRule = Stop


def TaylorDecompositionRule(
    ref: Reference | Sequence[Reference] = 0.0, bias: bool = False, distribute_bias: Distribution | None = None
) -> TaylorDecomposition:
    """Return :class:`TaylorDecomposition` by the name, and with the arguments, that it has in LXT.

    Args:
        ref: the reference point, or one for each input; None is the input itself.
        bias: whether the bias's part is distributed.
        distribute_bias: how (see :class:`TaylorDecomposition`); by default evenly.
    """
    return TaylorDecomposition(ref, distribute_bias if bias and distribute_bias is not None else bias)


def _add2(inplace: bool = False, epsilon: float = SMALL) -> Rule:
    return Epsilon(epsilon)


def _mul2(inplace: bool = False) -> Rule:
    return Uniform()


def _matmul(inplace: bool = False, epsilon: float = SMALL) -> Rule:
    return UniformEpsilon(epsilon)


def _softmax(dtype: Any = None, inplace: bool = False) -> Rule:
    return SoftmaxTaylor()


def _linear(epsilon: float = EPSILON) -> Rule:
    return Epsilon(epsilon)


# What each drop-in stands for, as a function of the options that it may be given by functools.partial.
_RULES: dict[Any, Callable[..., Rule]] = {
    functional.linear_epsilon: _linear,
    functional.add2: _add2,
    functional.mul2: _mul2,
    functional.matmul: _matmul,
    functional.softmax: _softmax,
    functional.mean: _linear,
    functional.layer_norm: Norm,
    functional.rms_norm_identity: Pass,
    functional.normalize: Pass,
    functional.identity: lambda fn=None: IdentityRule(),
    functional.stop_relevance: lambda fn=None: Stop(),
    functional.epsilon_lrp: lambda fn=None, epsilon=SMALL: Epsilon(epsilon),
    modules.LinearEpsilon: _linear,
    modules.SoftmaxDT: _softmax,
    modules.RMSNormIdentity: Pass,
    modules.LayerNormEpsilon: Norm,
    modules.MultiheadAttentionCP: ValueAttention,
    TaylorDecompositionRule: TaylorDecompositionRule,
}


def rule_of(value: Any) -> Any:
    """Return the rule of a drop-in that is a value in a composite; any other value unchanged.

    A drop-in can be given options by ``functools.partial(add2, epsilon=1e-3)``. A class of modules with ``from_torch``
    that is not of this library becomes a :class:`DropIn`.

    Raises:
        TypeError: the options are not those of the drop-in, or change what it computes.
    """
    target, args, options = value, (), {}
    if isinstance(value, partial):
        target, args, options = value.func, value.args, value.keywords
    if isinstance(target, type) and issubclass(target, Rule):
        return _made(target, args, options)
    try:
        known = _RULES.get(target)
    except TypeError:  # a value of a wrong kind, which cannot be hashed
        return value
    if known is not None:
        try:
            return known(*args, **options)
        except TypeError as error:
            raise TypeError(f"{value!r} as a value of a composite: {error}") from None
    if isinstance(target, type) and issubclass(target, nn.Module) and hasattr(target, "from_torch"):
        return DropIn(partial(target.from_torch, *args, **options) if args or options else target.from_torch)
    return value


def _made(kind: type[Rule], args: Sequence[Any], options: Mapping[str, Any]) -> Rule:
    try:
        return kind(*args, **options)
    except TypeError as error:
        needed = [name for name, p in inspect.signature(kind).parameters.items() if p.default is p.empty]
        written = f"{kind.__name__}({', '.join(needed)})"
        raise TypeError(f"{kind.__name__} as a value of a composite: {error}; write {written} with values") from None


@dataclass(frozen=True)
class DropIn(Rule):
    """Run a module's forward once more by a drop-in built from it, whose backward passes relevance.

    The model keeps its own module and its own output values, which those of the drop-in must equal.

    Args:
        build: a function of the module that gives its drop-in, whose backward passes relevance; called at each forward.

    Raises:
        RuleError: the formulation is not relevance, the drop-in cannot be built, or it computes other values.
    """

    formulations: ClassVar[tuple[str, ...]] = (RELEVANCE,)

    build: Callable[[nn.Module], nn.Module]

    def __str__(self) -> str:
        owner = getattr(getattr(self.build, "func", self.build), "__self__", self.build)
        return f"DropIn({getattr(owner, '__name__', owner)})"

    def check_module(self, module: nn.Module, path: str, formulation: str) -> None:
        """See :meth:`Rule.check_module`."""
        try:
            self.build(module)
        except Exception as error:
            raise RuleError(f"{self} cannot be built from {place(path)} ({type(module).__name__}): {error}") from error

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        assert call.module is not None
        if [x._version for x in call.carriers] != call.versions:
            raise RuleError(f"{self} runs {call.where} once more, but it has changed its input in place")
        # The drop-in's calls are no operations of the model.
        with modes_off():
            result = self.build(call.module)(*call.args, **call.kwargs)
        found = list({id(t): t for t in tensors_in(result) if t.is_floating_point() or t.is_complex()}.values())
        if len(found) != len(outputs) or not all(map(_equal, found, outputs)):
            raise RuleError(f"{self} computes other values than {call.where}, so it does not explain it")
        return [graft(z, t) for z, t in zip(outputs, found, strict=True)]


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Return whether two outputs are equal up to the order of sums."""
    if found.shape != expected.shape:
        return False
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(found.detach().to(expected.dtype), expected.detach(), tolerance, tolerance, equal_nan=True)
