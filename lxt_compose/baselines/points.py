"""Gradients of the explained number at points of one's choice: at the input, beside it, or on the way to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.inputs import Inputs, telling
from ..attribution.targets import choose
from ..errors import AttributionError
from ..evaluate.probe import Probe, rows_of_goal

Place = Callable[[Tensor], Tensor]
"""From values [m, ...] of an input (of the embeddings, for token ids) to the point where the gradient is wanted."""


class Points(Probe):
    """A :class:`Probe` that gives gradients too."""

    def gradients(self, place: Place) -> list[tuple[Tensor, Tensor]]:
        """Points and the gradients there, for each batch, on the CPU."""
        found = []
        for _, leaf, outputs, seeds in self.passes(place):
            (gradient,) = torch.autograd.grad(outputs, leaf, seeds)
            found.append((leaf.detach().cpu(), gradient.cpu()))
        return found

    def starts(self) -> list[Tensor]:
        """The input itself, or its embeddings, for each batch, on the CPU."""
        return [leaf.detach().cpu() for _, leaf, _, _ in self.passes(lambda x: x)]

    def passes(
        self, place: Place, around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[tuple[Inputs, Tensor, list[Tensor], list[Tensor]]]:
        """For each batch: what was given, the point as a leaf, the outputs that are explained, and their gradients.

        Args:
            place: where the model is run.
            around: a context for the forward pass.

        Raises:
            AttributionError: the model failed, or its outputs do not depend on its inputs.
        """
        for group in self.groups(self.given.count):
            leaves: list[Tensor] = []

            def moved(values: Tensor, _: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
                leaves.append(place(values.detach()).detach().requires_grad_())
                return leaves[-1].clone()  # a model may change its input in place

            with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
                given = self.rows(group, None if self.is_ids else moved, group)
                if self.is_ids:
                    self.embed(stack, given, moved, group)
                with telling(self.model, given), around():
                    output = self.model(*given.args, **given.kwargs)
                goal = rows_of_goal(self.goal, group)
                chosen = choose(goal, output, self.model, count=len(group), mask=given.mask, times_output=False)
                if not chosen.seeds:
                    raise AttributionError(
                        f"no output of {type(self.model).__name__} depends on its inputs: the model cuts them off "
                        f"(detach(), torch.no_grad()), so there is no gradient"
                    )
                outputs, seeds = (list(each) for each in zip(*chosen.seeds, strict=True))
                yield given, leaves[0], outputs, seeds


def points_of(model: nn.Module, inputs: Any, target: Any, batch_size: int | None) -> Points:
    """The points of these inputs."""
    with torch.inference_mode(False):
        return Points(model, inputs, target, batch_size)
