"""The number that is explained, of inputs that were changed: forward passes alone, in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.arrangement import arrangement_of
from ..attribution.axes import embedded, summed
from ..attribution.inputs import Inputs, read_inputs, telling
from ..attribution.taps import find_embeddings, orders_of
from ..attribution.targets import Goal, choose, read_target

Change = Callable[[Tensor, Tensor], Tensor]
"""From values [m, ...] and the indices [m] of what was asked for to other values of the same shape."""


class Probe:
    """A model, its inputs and a target that stays the same whatever is done to the inputs.

    Args:
        model: any module.
        inputs: what :func:`attribute` takes; the first input that can carry relevance is the one that is changed.
        target: what :func:`attribute` takes; the arg-max is that of the unchanged inputs.
        batch_size: how many forward passes to run at a time; None: as many as there are samples.

    Raises:
        TypeError: the model is no module, or inputs or target are of a wrong kind.
        ValueError: the batch size is below 1, or inputs or target do not fit.
    """

    def __init__(self, model: nn.Module, inputs: Any, target: Any, batch_size: int | None) -> None:
        if batch_size is not None:
            check_count("batch_size", batch_size)
        self.model = model
        self.given = read_inputs(model, inputs)
        carriers = {**self.given.ids, **self.given.carriers}
        self.name, self.x = next(iter(carriers.items()))
        self.is_ids = self.name in self.given.ids
        self.size = self.given.count if batch_size is None else batch_size
        self._embeddings = find_embeddings(model, self.given).modules if self.is_ids else []
        goal = read_target(target, self.given.count)
        self.values, self.goal = self._unchanged(goal)

    def summed(self, relevance: Tensor) -> Tensor:
        """Relevance of the input, or of the embeddings of its ids, summed over channels and features."""
        dims = self.given.dims[self.name]
        return summed(relevance, embedded(dims) if self.is_ids else dims, self.name)

    @property
    def mask(self) -> Tensor | None:
        """[n, tokens], 0 for padding; None if the inputs have none."""
        mask = self.given.mask_of(self.name)
        return mask if mask is not None and mask.shape == self.x.shape[:2] else None

    def of(self, samples: Tensor, change: Change | None = None, *, embedded: Change | None = None) -> Tensor:
        """The explained number of changed samples: [m], on the CPU.

        Args:
            samples: which sample each of the m passes starts from.
            change: what is done to the input, for a group of passes, given their numbers among the m.
            embedded: what is done to the embeddings of token ids.
        """
        found = []
        for group in self.groups(len(samples)):
            found.append(self._forward(samples[group], group, change, embedded)[0])
        return torch.cat(found)

    def groups(self, count: int) -> Iterator[Tensor]:
        """The numbers 0, 1, ..., count - 1 in groups of the batch size."""
        for start in range(0, count, self.size):
            yield torch.arange(start, min(start + self.size, count))

    def _unchanged(self, goal: Goal) -> tuple[Tensor, Goal]:
        values, targets = [], []
        for group in self.groups(self.given.count):
            value, target = self._forward(group, group, None, None, goal)
            values.append(value)
            targets.append(target)
        if goal.function is not None or goal.first is not None:
            return torch.cat(values), goal
        first = torch.cat([t for t in targets if t is not None])
        first = first[:, 0] if first.dim() == 2 else first
        return torch.cat(values), replace(goal, first=first)

    def _forward(
        self, samples: Tensor, group: Tensor, change: Change | None, embedded: Change | None, goal: Goal | None = None
    ) -> tuple[Tensor, Tensor | None]:
        goal = self.goal if goal is None else goal
        given = self.rows(samples, change, group)
        with torch.no_grad(), ExitStack() as stack:
            if embedded is not None:
                self.embed(stack, given, embedded, group)
            with telling(self.model, given):
                output = self.model(*given.args, **given.kwargs)
            rows = rows_of_goal(goal, samples)
            chosen = choose(rows, output, self.model, count=len(samples), mask=given.mask, times_output=False)
        return chosen.value.cpu(), chosen.target

    def embed(self, stack: ExitStack, given: Inputs, change: Change, group: Tensor) -> None:
        """Have the embeddings of the token ids changed, until the stack is closed."""
        ids, order = given.ids[self.name], orders_of(self.model, given).get(self.name)

        def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
            embedded = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            found = None if embedded is None else arrangement_of(embedded, ids, order, exact=True)
            if found is None:
                return None  # positions, or the ids of a decoder
            return found.put(output, change(found.of_ids(output), group.to(output.device)))

        for module in self._embeddings:
            stack.callback(module.register_forward_hook(exchange, with_kwargs=True).remove)

    def rows(self, samples: Tensor, change: Change | None, group: Tensor) -> Inputs:
        """The arguments of a forward pass of these samples, with the change made."""
        given = self.given

        def rows(value: Any, change: Change | None = change) -> Any:
            if not (isinstance(value, Tensor) and value.dim() and value.shape[0] == given.count):
                return value
            taken = value[samples.to(value.device)]
            return change(taken, group.to(value.device)) if value is self.x and change is not None else taken

        return replace(
            given,
            args=tuple(map(rows, given.args)),
            kwargs={name: rows(value) for name, value in given.kwargs.items()},
            ids={name: rows(value, None) for name, value in given.ids.items()},
            mask=rows(given.mask),
            encoder_mask=rows(given.encoder_mask),
            count=len(samples),
        )


def check_count(name: str, value: Any) -> None:
    """Raise if a value is no whole number from 1 on.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")


def rows_of_goal(goal: Goal, samples: Tensor) -> Goal:
    """The target of these samples."""

    def rows(index: Tensor | None) -> Tensor | None:
        return None if index is None else index[samples]

    return replace(goal, first=rows(goal.first), second=rows(goal.second))
