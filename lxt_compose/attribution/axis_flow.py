"""Following dimensions through a forward pass, so that names from the first layers hold for the inputs.

Each dimension of an input is one object, which keeps its name once it has one. Operations that move elements hand it on
in any order, so ``nn.Conv1d`` names the dimensions of an input that was transposed before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..autograd.trees import map_tensors, tensors_in
from ..ops import Family, mutates, op_of
from ..ops.dimensions import dimensions_of, new_dimensions
from ..torch_internals import modes_off

_PRIMES = (1009, 2213, 3691, 5077, 6947, 8513, 9973)
"""Sizes that stay different after padding, windows and strides."""


class Dimension:
    """One dimension of a tensor, and of all tensors that it was moved to."""

    __slots__ = ("name",)

    def __init__(self, name: str | None = None) -> None:
        self.name = name


class _Enough(Exception):
    """Raised when all dimensions are known, to end the forward pass; if a model catches it, the pass goes on."""


class AxisFlow(TorchFunctionMode):
    """A function mode that follows the dimensions of some tensors through all functions of torch that run.

    Args:
        inputs: the tensors, by any name.
        every_name: whether all dimensions of an input must have been named; else one name is enough.
        patient: whether to see the whole forward pass, also when all inputs are known.
    """

    def __init__(self, inputs: Mapping[str, Tensor], *, every_name: bool = False, patient: bool = False) -> None:
        super().__init__()
        self._every_name = every_name
        self.dims = {name: [Dimension() for _ in x.shape] for name, x in inputs.items()}
        self.ids = {name for name, x in inputs.items() if not x.is_floating_point()}
        self._embedded: set[str] = set()
        self.patient = patient
        self._known: dict[int, tuple[ref[Tensor], list[Dimension]]] = {}
        for name, x in inputs.items():
            self._note(x, self.dims[name])

    def of(self, tensor: Tensor) -> list[Dimension] | None:
        """Return the dimensions of a tensor that was seen, or None."""
        kept, dims = self._known.get(id(tensor), (None, None))
        return dims if kept is not None and kept() is tensor else None

    def _note(self, tensor: Tensor, dims: list[Dimension]) -> None:
        self._known[id(tensor)] = (ref(tensor), dims)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        with modes_off():
            given = {id(x): x for x in tensors_in((args, kwargs))}.values()
            known = [(x, dims) for x in given if (dims := self.of(x)) is not None]
            if known:
                for tensor, dims in zip(tensors_in(out), self._after(func, args, kwargs, known, out), strict=False):
                    if dims is not None:
                        self._note(tensor, dims)
                if not self.patient and self.told():
                    self.patient = True
                    raise _Enough
        return out

    def told(self) -> bool:
        """Return whether a layer has named each floating point input, and ids were embedded."""
        enough = all if self._every_name else any
        told = all(enough(dim.name for dim in dims) for name, dims in self.dims.items() if name not in self.ids)
        return told and self.ids <= self._embedded

    def _after(
        self, func: Any, args: Any, kwargs: Any, known: list[tuple[Tensor, list[Dimension]]], out: Any
    ) -> Iterable[list[Dimension] | None]:
        """Return the dimensions of each output."""
        op, outputs = op_of(func), list(tensors_in(out))
        (x, dims), *others = known
        if op is not None and op.traits.lookup:
            self._embedded |= {name for name in self.ids if not {*map(id, dims)}.isdisjoint(map(id, self.dims[name]))}
            return [[*dims, Dimension("feature")]]
        first = next(iter(tensors_in(args)), None)
        one = op is not None and x is first and not (others and op.family is Family.CONTRACTION)
        names = dimensions_of(op, x, args, kwargs) if op is not None and one else None
        if op is not None and names is not None:
            for dim, name in zip(dims, names, strict=True):
                dim.name = dim.name or name
            fresh = new_dimensions(op, names)
            after = [Dimension(dim.name or names[i]) if i in fresh else dim for i, dim in enumerate(dims)]
            return [after if y.dim() == len(after) else None for y in outputs[:1]]
        return [self._elsewhere(func, args, kwargs, known, place, y) for place, y in enumerate(outputs)]

    def _elsewhere(
        self, func: Any, args: Any, kwargs: Any, known: list[tuple[Tensor, list[Dimension]]], place: int, y: Tensor
    ) -> list[Dimension] | None:
        """Return the dimensions of one output of an operation that names none."""
        op, (x, dims) = op_of(func), known[0]
        same = next((dims for x, dims in known if x.shape == y.shape), None)
        if same is not None and op is not None and op.family is not Family.MOVEMENT:
            return same
        moved = None if mutates(func, args, kwargs) else _moved(func, args, kwargs, x, dims)
        if moved is not None and place < len(moved) and len(moved[place]) == y.dim():
            return moved[place]
        return same or _kept(y, x, dims)


def _moved(func: Any, args: Any, kwargs: Any, x: Tensor, dims: list[Dimension]) -> list[list[Dimension]] | None:
    """Return the dimensions after an operation that moves elements, by running it on distinct sizes."""
    if x.dim() > len(_PRIMES):
        return None
    stand_in = torch.empty(_PRIMES[: x.dim()], device="meta", dtype=x.dtype)

    def exchanged(tensor: Tensor) -> Tensor:
        return stand_in if tensor is x else tensor

    try:
        out = func(*map_tensors(exchanged, args), **map_tensors(exchanged, kwargs))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):  # the sizes do not fit other arguments
        return None
    return [_by_size(y.shape, dims) for y in tensors_in(out)]


def _by_size(found: Sequence[int], dims: list[Dimension]) -> list[Dimension]:
    """Return the dimension for each size.

    A new size belongs to a dimension that was resized, if their number is the same as before; else to a new one.
    """
    by_size = dict(zip(_PRIMES, dims, strict=False))
    gone = [dim for size, dim in by_size.items() if size not in found]
    resized = iter(gone if len(found) == len(dims) else ())
    return [by_size.get(size) or next(resized, None) or Dimension() for size in found]


def _kept(y: Tensor, x: Tensor, dims: list[Dimension]) -> list[Dimension] | None:
    """Return the dimensions after an operation that cannot be run: those, first and last, whose sizes stay the same."""
    if y.dim() == x.dim():
        return dims
    front = 0
    while front < min(x.dim(), y.dim()) and x.shape[front] == y.shape[front]:
        front += 1
    back = 0
    while back < min(x.dim(), y.dim()) - front and x.shape[-1 - back] == y.shape[-1 - back]:
        back += 1
    between = [Dimension() for _ in range(y.dim() - front - back)]
    return [*dims[:front], *between, *dims[len(dims) - back :]]


def follow(call: Callable[[], Any], flow: AxisFlow) -> Exception | None:
    """Run a forward pass, without gradients, until the dimensions are known.

    Returns:
        The error that the model raised, if any: it may need the gradients that are off here.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            with flow:
                call()
        except _Enough:
            pass
        except Exception as error:  # of the model's own code, which may raise anything
            return error
    return None
