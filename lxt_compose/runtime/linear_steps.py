"""Operations that are linear in one argument, kept to be run again on other numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import Argument, Elements, Elementwise, Family, LayerKind, Op, mutates
from ..torch_internals import modes_off

Place = int | str
_DIM, _KEEPDIM = Argument(1, "dim"), Argument(2, "keepdim")


class Step:
    """The linear part of one operation, in the argument through which relevance flows; the others are constants."""

    __slots__ = ("args", "family", "function", "kwargs", "op", "place", "writes")

    def __init__(self, op: Op, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> None:
        self.op, self.function, self.place = op, function, place
        self.family = op.family_of_call(args, kwargs)
        self.writes = writes = mutates(function, args, kwargs)

        def held(at: Place, value: Any) -> Any:
            if at == place or not isinstance(value, Tensor):
                return None if at == place else value
            # The values that are written over do not count: the linear part starts from zeros.
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

    def filled(self, v: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments, with v in its place."""
        args = [v if at == self.place else value for at, value in enumerate(self.args)]
        return args, {name: v if name == self.place else value for name, value in self.kwargs.items()}

    def _run(self, v: Tensor) -> Tensor:
        args, kwargs = self.filled(v)
        if self.writes:
            args[0] = args[0].to(v.dtype, copy=True)
        result: Tensor = self.function(*args, **kwargs)
        return result

    def same(self, other: Step) -> bool:
        """Return whether both do the same to the same constants."""
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
    def moves(self) -> bool:
        """Whether it moves elements."""
        return self.family is Family.MOVEMENT and self.op.traits.elementwise is not Elementwise.NONLINEAR

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
        """Return whether it is a sum along dimensions that are kept."""
        first, *others = self.steps
        return (
            not others and first.op.traits.layer is LayerKind.AVERAGE and _KEEPDIM.of(first.args, first.kwargs) is True
        )

    def is_along(self, dim: int, x: Tensor) -> bool:
        """Return whether it is a sum along this dimension of x, which is kept."""
        first = self.steps[0]
        given = _DIM.of(first.args, first.kwargs)
        given = given[0] if isinstance(given, (tuple, list)) and len(given) == 1 else given
        sums = first.op.traits.layer is LayerKind.AVERAGE and isinstance(given, int)
        return self.is_plain() and sums and given % x.dim() == dim % x.dim()

    def in_groups(self, like: Tensor) -> bool:
        """Return whether each place gets the sum over a group that it belongs to, tried on two sets of numbers.

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


class Grouped(Total):
    """A sum over groups in another shape than its terms have, taken back to their places: ``J^T T(v)``, T(v) = J v.

    That is the sum of its group for each term, if each belongs to one group with a weight of 1, ``J^T 1 = 1``.
    """

    __slots__ = ()

    @classmethod
    def of(cls, total: Total, like: Tensor) -> Grouped | None:
        """Return a sum at the places of its terms; None if some are in no group or in several."""
        found = cls(total.steps)
        back = found._back(like, torch.ones_like)
        return found if bool((back == 1).all()) else None

    def is_plain(self) -> bool:
        """See :meth:`Total.is_plain`."""
        return False

    def __call__(self, v: Tensor) -> Tensor:
        """Return the sums of v, each at the places of its terms."""
        return self._back(v, torch.Tensor.detach)

    def _back(self, v: Tensor, of_sums: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad(), modes_off():
            v = v.detach().requires_grad_()
            summed = super().__call__(v)
            return torch.autograd.grad(summed, v, of_sums(summed))[0]


def _numbers(like: Tensor, step: int, size: int) -> Tensor:
    """Return numbers between 0 and 1 without a short period."""
    dtype = like.dtype if like.dtype is torch.float64 else torch.float32
    places = torch.arange(like.numel(), device=like.device)
    return ((places * step) % size).to(dtype).div_(size).view(like.shape)
