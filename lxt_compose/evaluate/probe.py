"""The explained number for changed inputs, by forward passes in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.axes import BATCH, embedded, kept_dims, place_of, summed
from ..attribution.failures import telling
from ..attribution.goals import Goals, choose_rows, read_targets
from ..attribution.inputs import Inputs, read_inputs
from ..attribution.lookups import Following, FollowingMode
from ..attribution.targets import Chosen

Change = Callable[[Tensor, Tensor], Tensor]
"""Maps values [m, ...] and the indices [m] of passes to other values of the same shape."""


class Probe:
    """A model, its inputs and a target, which stays the same when the inputs are changed.

    Args:
        model: any module.
        inputs: what :func:`attribute` takes, or inputs read before; the first that can carry relevance is changed.
        target: what :func:`attribute` takes, or goals read before; the arg-max is that of the unchanged inputs.
        batch_size: how many forward passes to run at a time; None: as many as there are samples.
        dims: the names of the inputs' dimensions; see :func:`attribute`.
        input: the name of the input that is changed.

    Raises:
        TypeError: the model is no module, or inputs or target are of a wrong kind.
        ValueError: the batch size is below 1, or inputs or target do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        target: Any,
        batch_size: int | None,
        *,
        dims: Any = None,
        input: str | None = None,
    ) -> None:
        if batch_size is not None:
            check_count("batch_size", batch_size)
        self.model = model
        self.given = inputs if isinstance(inputs, Inputs) else read_inputs(model, inputs, dims)
        goals = target if isinstance(target, Goals) else read_targets(target, self.given.count)
        if len(goals) > 1:  # each sample once for each target
            whole = torch.arange(self.given.count).repeat_interleave(len(goals))
            self.given = replace(self.rows(whole, {}, whole), count=len(whole))
        carriers = {**self.given.ids, **self.given.carriers}
        self.name = next(iter(carriers)) if input is None else input
        if self.name not in carriers:
            raise ValueError(f"there is no input {input!r} that could be changed; there are {', '.join(carriers)}")
        self.chosen = input is not None
        self.x = carriers[self.name]
        self.is_ids = self.name in self.given.ids
        self.dims = embedded(self.given.dims[self.name]) if self.is_ids else self.given.dims[self.name]
        """The names of the dimensions of what is changed: of the input, or of the embeddings of its ids."""
        self.size = self.given.count if batch_size is None else batch_size
        if place_of(self.given.dims[self.name], BATCH) is None:
            self.size = 1  # inputs without a batch are changed one way at a time
        self.values, self.goals = self._unchanged(goals)

    def summed(self, relevance: Tensor) -> Tensor:
        """Return relevance of the input, or of the embeddings of its ids, summed over channels and features."""
        return summed(relevance, self.dims, self.name)

    @property
    def mask(self) -> Tensor | None:
        """[n, tokens], 0 for padding; None if the inputs have none."""
        mask, kept = self.given.mask_of(self.name), kept_dims(self.dims)
        sizes = [size for size, dim in zip(self.x.shape, self.dims, strict=False) if dim in kept and dim != BATCH]
        return mask if mask is not None and list(mask.shape) == [self.given.count, *sizes] else None

    def of(self, samples: Tensor, change: Change | None = None, *, embedded: Change | None = None) -> Tensor:
        """Return the explained number of changed samples: [m], on the CPU.

        Args:
            samples: the sample that each of the m passes starts from.
            change: changes the input for a group of passes, given their numbers among the m.
            embedded: changes the embeddings of token ids.
        """
        found = []
        for group in self.groups(len(samples)):
            found.append(self._forward(samples[group], group, change, embedded)[0])
        return torch.cat(found)

    def groups(self, count: int) -> Iterator[Tensor]:
        """Yield the numbers 0, 1, ..., count - 1 in groups of the batch size."""
        for start in range(0, count, self.size):
            yield torch.arange(start, min(start + self.size, count))

    def _unchanged(self, goals: Goals) -> tuple[Tensor, Goals]:
        """Return the values of the unchanged inputs, and the targets with an index for each arg-max."""
        values, targets = [], []
        for group in self.groups(self.given.count):
            value, target = self._forward(group, group, None, None, goals)
            values.append(value)
            targets.append(target)
        each = []
        for turn, goal in enumerate(goals.each):
            if goal.function is None and goal.first is None:
                first = torch.cat([t for target in targets if (t := target[turn]) is not None])[:: len(goals)]
                goal = replace(goal, first=first[:, 0] if first.dim() == 2 else first)
            each.append(goal)
        return torch.cat(values), replace(goals, each=tuple(each))

    def _forward(
        self, samples: Tensor, group: Tensor, change: Change | None, embedded: Change | None, goals: Goals | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        goals = self.goals if goals is None else goals
        given = self.rows(samples, {} if change is None else {self.name: change}, group)
        with torch.no_grad(), ExitStack() as stack:
            if embedded is not None:
                self.embed(stack, given, {self.name: embedded}, group)
            with telling(self.model, given):
                output = self.model(*given.args, **given.kwargs)
            chosen, targets = choose_rows(goals, samples, output, self.model, given)
        return chosen.value.cpu(), targets

    def choose(self, samples: Tensor, output: Any, given: Inputs) -> Chosen:
        """Return the explained number of the model's output for these samples."""
        return choose_rows(self.goals, samples, output, self.model, given)[0]

    def embed(self, stack: ExitStack, given: Inputs, changes: Mapping[str, Change], group: Tensor) -> None:
        """Change all values that are looked up by token ids, input by input, until the stack is closed."""
        ids = {name: given.ids[name] for name in changes}
        listener = _Exchange(self.model, ids, changes, group)
        listener.following = Following(ids, (), listener)
        stack.enter_context(FollowingMode(listener.following))

    def rows(self, samples: Tensor, changes: Mapping[str, Change], group: Tensor) -> Inputs:
        """Return the arguments of a forward pass of these samples, with the changes made, input by input."""
        given = self.given
        wanted = {id(given.all[name]): change for name, change in changes.items()}

        def taken(x: Tensor, batch: int) -> Tensor:
            return x.index_select(batch, samples.to(x.device))

        def called_with(before: Any, after: Any) -> Any:
            change = wanted.get(id(before))
            return after if change is None else change(after, group.to(before.device))

        return given.with_samples(taken, len(samples), called_with).copied()


class _Exchange:
    """Replaces values that are looked up; see :class:`~lxt_compose.attribution.lookups.Listener`."""

    following: Following

    def __init__(
        self, model: nn.Module, ids: Mapping[str, Tensor], changes: Mapping[str, Change], group: Tensor
    ) -> None:
        self._weights = {id(parameter) for parameter in model.parameters()}
        self._ids, self._changes, self._group = ids, changes, group

    def looked_up(self, values: Tensor, origins: Tensor, *, as_numbers: bool) -> Tensor:
        """Return the changed values."""
        for name, change in self._changes.items():
            ids, places = self._ids[name], origins.flatten() - self.following.starts[name]
            own = (places >= 0) & (places < ids.numel())
            if not bool(own.any()):
                continue
            rows, at = values.reshape(origins.numel(), -1), (places[own], _turns(places[own]))
            whole = rows.new_zeros(ids.numel(), int(at[1].max()) + 1, rows.shape[1])
            whole[at] = rows[own]
            whole = change(whole.reshape(*ids.shape, -1), self._group.to(values.device)).reshape(whole.shape)
            rows = rows.clone()
            rows[own] = whole[at]
            values = rows.reshape(values.shape)
        return values

    def carries(self, x: Tensor) -> bool:
        """Return whether a tensor depends on tensors that require grad and are no parameters."""
        if x.grad_fn is None:
            return x.requires_grad and id(x) not in self._weights
        pending: list[Any] = [x.grad_fn]
        met: set[Any] = set()
        while pending:
            node = pending.pop()
            if hasattr(node, "variable") and id(node.variable) not in self._weights:
                return True
            found = {source for source, _ in node.next_functions if source is not None} - met
            met |= found
            pending += found
        return False

    def lost(self, func: Callable[..., Any]) -> None:
        """Change nothing."""

    def left(self, func: Callable[..., Any], *, content: bool) -> None:
        """Change nothing."""


def _turns(places: Tensor) -> Tensor:
    """Return for each entry how often the same value occurred before it."""
    order = places.argsort(stable=True)
    ordered = places[order]
    numbers = torch.arange(len(places), device=places.device)
    is_new = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    return torch.empty_like(places).scatter_(0, order, numbers - torch.where(is_new, numbers, 0).cummax(0).values)


def check_count(name: str, value: Any) -> None:
    """Raise if a value is not a whole number from 1 on.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")
