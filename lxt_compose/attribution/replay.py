"""Look-ups of integers, recorded in one forward pass and repeated in another that is traced as a graph.

Following integers is a computation on the origin of each element, which runs once, on values. Its result (which
function calls looked values up, and where in the inputs each row came from) holds for all inputs of the same shape,
since a graph has the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..autograd.trees import map_tensors
from ..errors import TraceError
from ..ops import display_name
from ..runtime.registration import Registration
from ..torch_internals import modes_off
from .inputs import Inputs
from .lookups import Following
from .taps import Taps

Call = tuple[Any, int]
"""A function, and the number of its calls so far: calls of other functions do not shift it."""


@dataclass(frozen=True)
class Owned:
    """The part of some looked up values that comes from one input.

    ``rows`` are their places among the values, ``places`` those in the input; None if these are all, in order.
    """

    name: str
    rows: Tensor | None
    places: Tensor | None


@dataclass(frozen=True)
class Lookup:
    """Values that were looked up by one call. ``constant`` marks those that come from no input, if there are some."""

    owned: tuple[Owned, ...]
    constant: Tensor | None
    depth: int
    """The number of dimensions of the values without the features."""
    as_numbers: bool


@dataclass
class Lookups:
    """The look-ups of one forward pass; ``shapes`` are those of the inputs."""

    shapes: dict[str, torch.Size] = field(default_factory=dict)
    calls: dict[Call, Lookup] = field(default_factory=dict)

    @property
    def in_order(self) -> bool:
        """Whether each look-up is that of a whole input, in order, so that it holds for inputs of any shape."""
        return all(
            lookup.constant is None and len(lookup.owned) == 1 and lookup.owned[0].rows is None
            for lookup in self.calls.values()
        )


class _Calls:
    """Numbers the calls of each function."""

    def __init__(self) -> None:
        self._count: dict[Any, int] = {}

    def next(self, func: Any) -> Call:
        """Return the key of the next call of a function."""
        self._count[func] = self._count.get(func, 0) + 1
        return func, self._count[func]


class _Numbered(Following):
    """Follows integers, and counts calls."""

    at: Call = (None, 0)
    plain = True
    """Whether the values that are looked up are the output of the running call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls = _Calls()

    def run(self, call: Callable[..., Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See :meth:`Following.run`."""
        at = self.calls.next(func)

        def called(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            output = call(func, args, kwargs)
            self.at = at  # not the number of a call within
            return output

        return super().run(called, func, args, kwargs)

    def _made(self, known: Any, func: Callable[..., Any], args: Any, kwargs: Any, output: Any) -> Any:
        self.plain = isinstance(output, Tensor)
        return super()._made(known, func, args, kwargs, output)

    def _changed(self, known: Any, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.plain = False
        super()._changed(known, func, args, kwargs)

    def _bag(self, call: Callable[..., Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.plain = False
        return super()._bag(call, func, args, kwargs)


class NotingTaps(Taps):
    """Taps that record the look-ups of the last forward pass.

    Raises:
        TraceError: values were looked up by a call that cannot be repeated.
    """

    following_kind: ClassVar[type[Following]] = _Numbered

    def __init__(self, registration: Registration, floats: bool = False) -> None:
        if floats:
            raise TraceError("the model looks something up by floating point inputs that it rounds")
        super().__init__(registration, floats)
        self.lookups = Lookups()

    def call(self, model: nn.Module, batch: Inputs) -> Any:
        """See :meth:`Taps.call`."""
        self.lookups = Lookups({name: x.shape for name, x in {**batch.ids, **batch.beside}.items()})
        return super().call(model, batch)

    def looked_up(self, values: Tensor, origins: Tensor, *, as_numbers: bool) -> Tensor:
        """See :meth:`Taps.looked_up`."""
        found = super().looked_up(values, origins, as_numbers=as_numbers)
        following = self._following
        assert isinstance(following, _Numbered)
        if self._open:
            if not following.plain:
                raise TraceError("integers are looked up in bags, or written into other tensors in place")
            flat, owned = origins.flatten(), []
            for name, shape in self.lookups.shapes.items():
                start, count = following.starts[name], shape.numel()
                mine = (flat >= start) & (flat < start + count)
                if bool(mine.any()):
                    rows, places = mine.nonzero()[:, 0], flat[mine] - start
                    whole = origins.shape == shape and torch.equal(places, torch.arange(count, device=places.device))
                    owned.append(Owned(name, None if whole else rows, None if whole else places))
            constant = origins <= 0
            mask = constant if bool(constant.any()) else None
            self.lookups.calls[following.at] = Lookup(tuple(owned), mask, origins.dim(), as_numbers)
        return found


class ReplayTaps:
    """Makes carriers of the model's inputs, as :class:`Taps`, with look-ups that were recorded before."""

    def __init__(self, registration: Registration, lookups: Lookups) -> None:
        self._session, self._lookups = registration.session, lookups

    def __enter__(self) -> ReplayTaps:
        self._session.inputs_alone = True
        return self

    def __exit__(self, *_: object) -> None:
        self._session.following, self._session.inputs_alone = None, False

    def call(self, model: nn.Module, batch: Inputs) -> Any:
        """See :meth:`Taps.call`."""
        batch = batch.copied()
        self._carriers = {name: x.detach().requires_grad_() for name, x in batch.carriers.items()}
        self._ids, self._found = {**batch.ids, **batch.beside}, list[tuple[Lookup, Tensor]]()
        exchanged = {id(batch.carriers[name]): x.clone() for name, x in self._carriers.items()}
        args, kwargs = map_tensors(lambda x: exchanged.get(id(x), x), (batch.args, batch.kwargs))
        self._calls = _Calls()
        self._session.following = self if self._lookups.calls else None
        output = model(*args, **kwargs)
        if len(self._found) != len(self._lookups.calls):
            raise TraceError("the model looked up its integers otherwise than before")
        return output

    @property
    def leaves(self) -> list[Tensor]:
        """See :meth:`Taps.leaves`."""
        return [*self._carriers.values(), *(values for _, values in self._found)]

    def run(self, call: Callable[..., Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function, as :meth:`Following.run`."""
        lookup = self._lookups.calls.get(self._calls.next(func))
        output = call(func, args, kwargs)
        if lookup is None:
            return output
        if not isinstance(output, Tensor):
            raise TraceError(f"{display_name(func)} looked up something else than before")
        with modes_off():
            leaf = output.detach().requires_grad_()
            self._found.append((lookup, leaf))
            if lookup.constant is None:
                return leaf.clone()
            constant = lookup.constant.reshape(*lookup.constant.shape, *[1] * (output.dim() - lookup.depth))
            return torch.where(constant, output, leaf)

    def by_input(self, relevance: Sequence[Tensor]) -> dict[str, Tensor]:
        """See :meth:`Taps.by_input`."""
        count = len(self._carriers)
        found = dict(zip(self._carriers, relevance[:count], strict=True))
        looked_up = list(zip((lookup for lookup, _ in self._found), relevance[count:], strict=True))
        for name, ids in self._ids.items():
            own = [(lookup, owned, r) for lookup, r in looked_up for owned in lookup.owned if owned.name == name]
            if own:
                found[name] = _summed([(owned, _rows(lookup, r)) for lookup, owned, r in own], ids)
                if found[name].shape[-1] == 1 and all(lookup.as_numbers for lookup, *_ in own):
                    found[name] = found[name].reshape(ids.shape)
        return found


def _rows(lookup: Lookup, relevance: Tensor) -> Tensor:
    """Return the relevance of looked up values, one row for each."""
    return relevance.reshape(*relevance.shape[: lookup.depth], -1).flatten(0, lookup.depth - 1)


def _summed(own: Sequence[tuple[Owned, Tensor]], ids: Tensor) -> Tensor:
    """Return the relevance of integers from that of all values that were looked up by them: [*shape, features]."""
    features = max(rows.shape[1] for _, rows in own)
    if len(own) == 1 and own[0][0].rows is None:
        return own[0][1].reshape(*ids.shape, features)
    total = own[0][1].new_zeros(ids.numel(), features)
    for owned, rows in own:
        if owned.rows is None or owned.places is None:
            total[:, : rows.shape[1]] += rows.to(total)
        else:
            total[:, : rows.shape[1]].index_add_(0, owned.places, rows[owned.rows].to(total))
    return total.reshape(*ids.shape, features)
