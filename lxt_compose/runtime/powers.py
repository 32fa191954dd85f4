"""What is noted of a softmax that a model writes itself: its exponents, and what is linear in the powers after them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Share
from ..autograd.nodes import Edge, edge_of
from ..autograd.saved_values import Kept, keep
from ..ops import Argument, Elements, Elementwise, Family, LayerKind, Op, mutates
from ..rules import GRADIENT
from ..torch_internals import modes_off

Place = int | str
_KEEPDIM = Argument(2, "keepdim")
_RECIPROCAL = -1


class Step:
    """The linear part of one operation, in the argument through which relevance flows; the others are constants."""

    __slots__ = ("args", "family", "function", "kwargs", "op", "place")

    def __init__(self, op: Op, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> None:
        self.op, self.function, self.place = op, function, place
        self.family = op.family_of_call(args, kwargs)
        writes = mutates(function, args, kwargs)

        def held(at: Place, value: Any) -> Any:
            if at == place or not isinstance(value, Tensor):
                return None if at == place else value
            # What is written into is no longer what it was; the linear part starts from zeros.
            return torch.zeros_like(value) if writes and at == 0 else value.detach()

        self.args = tuple(held(at, value) for at, value in enumerate(args))
        self.kwargs = {name: held(name, value) for name, value in kwargs.items()}

    def __call__(self, v: Tensor) -> Tensor:
        """Return the linear part at v."""
        if self.op.traits.signs is not None or self.op.traits.clips:
            return v  # a number that is added, or a least value
        found = self._run(v)
        constant = self.op.traits.elementwise is Elementwise.AFFINE or self.place != 0
        return found - self._run(torch.zeros_like(v)) if constant else found

    def _run(self, v: Tensor) -> Tensor:
        args = [v if at == self.place else value for at, value in enumerate(self.args)]
        kwargs = {name: v if name == self.place else value for name, value in self.kwargs.items()}
        if mutates(self.function, args, kwargs):
            args[0] = args[0].to(v.dtype, copy=True)
        result: Tensor = self.function(*args, **kwargs)
        return result

    def same(self, other: Step) -> bool:
        """Whether both do the same to the same constants."""
        mine, others = [*self.args, *self.kwargs.items()], [*other.args, *other.kwargs.items()]
        return (
            self.op is other.op
            and self.place == other.place
            and len(mine) == len(others)
            and all(map(_is_same, mine, others))
        )

    @property
    def sums(self) -> bool:
        """Whether it adds elements up."""
        averages = self.op.traits.elements is Elements.AVERAGED and self.family is Family.LINEAR
        return averages or self.family is Family.CONTRACTION

    @property
    def scales(self) -> bool:
        """Whether it multiplies with a constant, or divides by one."""
        if self.family is Family.DIVISION:
            return self.place not in self.op.held
        return self.family is Family.PRODUCT and self.op.multiplies and not self.op.addends

    @property
    def weighs(self) -> bool:
        """Whether each element stays where it is."""
        traits = self.op.traits
        return traits.elementwise is Elementwise.AFFINE or traits.elements is Elements.SAME_PLACE or self.scales


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape
    return bool(a == b)


class Total:
    """The sum over the terms of each softmax, taken back to the places of the terms."""

    __slots__ = ("steps",)

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps

    def __call__(self, v: Tensor) -> Tensor:
        """Return the sums of v."""
        with modes_off():
            for step in self.steps:
                v = step(v)
        return v

    def is_plain(self) -> bool:
        """Whether it is a sum along dimensions that are kept."""
        first, *others = self.steps
        return (
            not others and first.op.traits.layer is LayerKind.AVERAGE and _KEEPDIM.of(first.args, first.kwargs) is True
        )

    def in_groups(self, like: Tensor) -> bool:
        """Whether each place gets the sum over a group of places that it belongs to, tried on two sets of numbers.

        Such sums are symmetric, ``v . T(u) = u . T(v)``, and repeat themselves: ``T(T(u) / T(1)) = T(u)``.
        """
        if self.is_plain():
            return True
        try:
            with torch.no_grad():
                u, v = (_numbers(like, step, size) for step, size in ((7919, 10007), (104729, 10009)))
                summed, other, count = (self(given).expand_as(like) for given in (u, v, torch.ones_like(u)))
                again = self(summed / count).expand_as(like)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        symmetric = torch.isclose((v * summed).sum(), (u * other).sum(), rtol=1e-5)
        return bool(symmetric & torch.isclose(again, summed, rtol=1e-4, atol=1e-6).all())


def _numbers(like: Tensor, step: int, size: int) -> Tensor:
    """Numbers between 0 and 1 that do not repeat themselves soon."""
    dtype = like.dtype if like.dtype is torch.float64 else torch.float32
    places = torch.arange(like.numel(), device=like.device)
    return ((places * step) % size).to(dtype).div_(size).view(like.shape)


class Shifted:
    """A tensor that something was subtracted from: the way back to it, its values, and the steps after that."""

    __slots__ = ("steps", "value", "way")

    def __init__(self, way: Tensor, value: Kept, steps: tuple[Step, ...] = ()) -> None:
        self.way, self.value, self.steps = way, value, steps

    def then(self, step: Step) -> Shifted | None:
        """Return the same after it was scaled, or masked; None if it is no longer known."""
        if step.op.traits.elementwise is Elementwise.AFFINE and step.op.traits.signs is None:
            return self
        return Shifted(self.way, self.value, (*self.steps, step)) if step.scales else None


class Exponents:
    """What a number was raised to the power of: the way back to it, and its values times the logarithm of the base."""

    __slots__ = ("_gradient", "_value", "edge", "rate", "shifted", "way")

    def __init__(self, z: Tensor, rate: float, formulation: str, shifted: Shifted | None) -> None:
        self.edge, self.rate, self.shifted = edge_of(z), rate, shifted
        self._gradient = formulation == GRADIENT
        self.way: Tensor = Share.apply(z, rate if self._gradient else 1.0)
        self._value: Kept = keep(z)

    @property
    def value(self) -> Tensor:
        """The exponents to the base e."""
        return self._value.value if self.rate == 1 else self._value.value * self.rate

    def same(self, other: Exponents) -> bool:
        """Whether both are the same tensor, or were computed twice from the same."""
        if self.rate != other.rate:
            return False
        mine, others = self._value.value, other._value.value
        return self.edge == other.edge or (mine.shape == others.shape and torch.equal(mine, others))

    def without_shift(self, total: Total) -> tuple[Tensor, Tensor]:
        """Return the scores and the way back to them: before the shift, if that is the same for all terms of a sum."""
        z = self.value
        if self.shifted is not None:
            scaled, way = Total(self.shifted.steps), self.shifted.way
            x = scaled(self.shifted.value.value) * self.rate
            if x.shape == z.shape and _is_constant(x, z, total):
                way = scaled(way) * self.rate if self._gradient else way  # relevance passes a factor unchanged
                return x.masked_fill(z.isinf(), -math.inf), way
        return z, self.way


def _is_constant(x: Tensor, z: Tensor, total: Total) -> bool:
    """Whether ``x - z`` is the same for all terms of each sum, up to rounding; masked terms aside."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    shift = x.to(dtype) - z.to(dtype)
    seen = shift.isfinite()
    shift, size = shift.masked_fill(~seen, 0), x.masked_fill(~seen, 0).abs().amax() if x.numel() else x.sum()
    mean = total(shift) / total(seen.to(dtype)).clamp(min=1)
    allowed = (4 * torch.finfo(x.dtype).eps + 256 * torch.finfo(dtype).eps) * (size + mean.abs().amax())
    return bool(((shift - mean).abs().masked_fill(~seen, 0) <= allowed).all())


class Powers:
    """What is linear in the powers of a number: steps after them; `inverse` if it is one over that."""

    __slots__ = ("exponents", "inverse", "steps")

    def __init__(self, exponents: Exponents, steps: tuple[Step, ...] = (), *, inverse: bool = False) -> None:
        self.exponents, self.steps, self.inverse = exponents, steps, inverse

    def then(self, step: Step) -> Powers | None:
        """Return the same after one more step; None if it is no longer known."""
        op = step.op
        known = step.family is Family.MOVEMENT and op.traits.elementwise is not Elementwise.NONLINEAR
        if not known and not self.inverse:
            known = step.sums or step.scales or (_takes_numbers(step) and (op.traits.clips or _adds(step)))
        return Powers(self.exponents, (*self.steps, step), inverse=self.inverse) if known else None

    def total_in(self, whole: Powers) -> Total | None:
        """Return how `whole`, which these are to be divided by, sums them up; None if it does not."""
        mine, count = self.steps, len(self.steps)
        if self.inverse or not self.exponents.same(whole.exponents) or len(whole.steps) <= count:
            return None
        if not all(step.weighs for step in mine) or not all(map(Step.same, mine, whole.steps)):
            return None
        total = Total(whole.steps[count:])
        return total if any(step.sums for step in total.steps) else None

    def masked(self) -> Tensor | None:
        """Where a mask after the powers has made them 0; None if there is none."""
        if not self.steps:
            return None
        weight = Total(self.steps)(torch.ones_like(self.exponents.value))
        return weight == 0


def _takes_numbers(step: Step) -> bool:
    """Whether its constants are the same everywhere, such as the epsilon of a denominator."""
    constants = (*step.args, *step.kwargs.values())
    return all(not isinstance(value, Tensor) or value.numel() == 1 for value in constants)


def _adds(step: Step) -> bool:
    signs = step.op.traits.signs
    return signs is not None and isinstance(step.place, int) and signs[step.place] == 1


Note = Powers | Shifted


class Notes:
    """What was noted of tensors, by their edges of the autograd graph; of constants, by the tensors themselves."""

    __slots__ = ("_of_carriers", "_of_constants")

    def __init__(self) -> None:
        self._of_carriers: dict[Edge, Note] = {}
        self._of_constants: dict[tuple[int, int], tuple[Tensor, Note]] = {}

    def __bool__(self) -> bool:
        return bool(self._of_carriers)

    def of(self, x: Any) -> Note | None:
        """Return what was noted of an argument of a call."""
        if not isinstance(x, Tensor):
            return None
        if x.requires_grad:
            return self._of_carriers.get(edge_of(x))
        return self._of_constants.get((id(x), x._version), (None, None))[1]

    def enter(self, output: Any, what: Note | None) -> None:
        """Note something of the output of a call."""
        if what is None or not isinstance(output, Tensor):
            return
        if output.requires_grad:
            self._of_carriers.setdefault(edge_of(output), what)  # what moves nothing may give its very input
        elif isinstance(what, Powers) and what.inverse:  # a divisor, which is held constant
            self._of_constants[id(output), output._version] = output, what

    def clear(self) -> None:
        """Forget all notes."""
        self._of_carriers.clear()
        self._of_constants.clear()
