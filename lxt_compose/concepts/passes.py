"""Forward and backward passes under a composite that catch the tensors at places inside the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..attribution.goals import Goals
from ..attribution.inputs import Inputs
from ..attribution.latent import Layer
from ..attribution.run import Run
from ..composite import Composite
from ..errors import AttributionError
from ..rules import GRADIENT
from ..runtime.registration import Registration
from .units import Layout, Place, Units
from .visits import Visit, Visits


@dataclass(eq=False)
class Caught:
    """A tensor that was caught at a place.

    ``edge`` is its edge in the autograd graph, None if it is a constant; ``value`` a copy without a graph.
    """

    visit: Visit
    edge: GradientEdge | None
    value: Tensor | None


class PlacesRun(Run):
    """Batches of an attribution that catch the tensors at some places.

    Args:
        model: the model.
        composite: the rules.
        given: the inputs.
        layers: modules whose relevance is recorded too.
        units: the units at the places.
        values: whether the values of the tensors are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        given: Inputs,
        layers: list[Layer],
        units: Sequence[Units],
        *,
        values: bool = False,
    ) -> None:
        super().__init__(model, composite, given, layers)
        self.units, self._values = list(units), values
        self.places = list(dict.fromkeys(each.place for each in self.units))
        self.caught: list[Caught] = []
        self.arrived: dict[Caught, Tensor] = {}
        self.start = self.end = 0
        """The rows of this batch among all."""
        self._open = False
        self.register = self._registered

    @contextmanager
    def _registered(self, model: nn.Module) -> Iterator[Registration]:
        with self.composite.register(model) as registration:
            self._registration = registration
            visits = Visits(self.model, self.places, self._look, differentiable=True, dims=self.given.said)
            with visits as self.visits:
                yield registration

    def one(self, batch: Inputs, goals: Goals) -> list[dict[str, Any]]:
        """See :meth:`Run.one`."""
        self.caught, self._open = [], True
        self.start, self.end = self.end, self.end + batch.count
        return super().one(batch, goals)

    def _output(self, batch: Inputs, taps: Any) -> Any:
        try:
            return super()._output(batch, taps)
        finally:
            self._open = False

    def _look(self, visit: Visit) -> None:
        if not self._open:
            return
        frames = self._registration.session.stack.frames
        around = frames[-1].context.shadowed_by if frames else None
        if around is not None:
            raise AttributionError(
                f"{visit.place.name} has no relevance: it is inside {around or 'the model itself'!r}, which has a rule "
                f"as a whole"
            )
        x = visit.tensor
        edge = get_gradient_edge(x) if x.requires_grad else None
        value = x.detach().clone() if self._values else None
        # The tensor itself would keep the graph alive, and the model may go on to change it in place.
        visit.tensor = x.detach()
        caught = Caught(visit, edge, value)
        self.caught.append(caught)
        self.caught_now(caught, x)

    def caught_now(self, caught: Caught, x: Tensor) -> None:
        """Do more with a tensor that was just caught, before the model uses it."""

    def arrivals(
        self,
        outputs: Sequence[Any],
        seeds: Sequence[Tensor],
        leaves: Sequence[Tensor],
        places: Collection[Place],
        *,
        keep: bool,
    ) -> list[Tensor | None]:
        """Return the slots of the leaves, and keep those of the places in ``arrived``."""
        caught = [each for each in self.caught if each.visit.place in places]
        edges = [each for each in caught if each.edge is not None]
        wanted: list[Any] = [*leaves, *(each.edge for each in edges)]
        found = torch.autograd.grad(outputs, wanted, seeds, allow_unused=True, retain_graph=keep)
        self.arrived = {each: torch.zeros_like(each.visit.tensor) for each in caught}
        for each, slot in zip(edges, found[len(leaves) :], strict=True):
            if slot is not None:
                self.arrived[each] = slot.detach()
        return list(found[: len(leaves)])

    def relevance_at(self, place: Place) -> Tensor:
        """Return the relevance of the tensor at a place that is passed once, from its slot."""
        caught = self.once(place)
        if not self.times_value:
            return self.arrived[caught]
        assert caught.value is not None
        return self.arrived[caught] * caught.value

    def layout(self, caught: Caught) -> Layout:
        """Return the layout of a caught tensor."""
        return self.visits.layout(caught.visit)

    def at(self, place: Place) -> list[Caught]:
        """Return the tensors caught at a place in this batch, in order.

        Raises:
            AttributionError: there are none.
        """
        found = [caught for caught in self.caught if caught.visit.place == place]
        if not found:
            raise AttributionError(missing(place))
        return found

    def once(self, place: Place) -> Caught:
        """Return the tensor caught at a place that is passed once.

        Raises:
            AttributionError: the place was passed never, or several times.
        """
        found = self.at(place)
        if len(found) > 1:
            raise AttributionError(
                f"{place.name} ({type(place.module).__name__}) ran {len(found)} times in the forward pass: say which "
                f"call is meant, {place.name}#1 to {place.name}#{len(found)}"
            )
        return found[0]

    @property
    def times_value(self) -> bool:
        """Whether relevance is the slot times the tensor."""
        return self.composite.formulation == GRADIENT and not self.as_it_is


def missing(place: Place) -> str:
    """Return the reason why nothing was caught at a place, for errors."""
    kind = f"{place.name} ({type(place.module).__name__})"
    if place.side in ("", "input"):
        call = "" if place.call is None else f" a {place.call}. time"
        return f"{kind} has no units: it did not run{call} in the forward pass, or holds no floating point tensor"
    return (
        f"{kind}: no attention was seen in it. Heads are taken at scaled_dot_product_attention, at "
        f"multi_head_attention_forward, and at products [batch, heads, ...] around a softmax; for others name the "
        f"projections (q_proj, o_proj:input) and their neurons"
    )


def select_rows(masks: Sequence[Tensor], rows: Tensor, layout: Layout) -> Tensor:
    """Return a mask for a tensor whose batch holds rows of several conditions.

    Args:
        masks: where relevance may pass, for each condition.
        rows: the number of the condition of each row.
        layout: of the tensor; its batch may hold several parts of each row (windows, patches).

    Raises:
        AttributionError: it is unknown which part of the tensor belongs to which row.
    """
    if len(masks) == 1:
        return masks[0]
    batch = layout.batch
    if batch is None or layout.shape[batch] % len(rows):
        raise AttributionError(
            f"a tensor of shape {list(layout.shape)} does not count {len(rows)} rows in its dimension of samples, so "
            f"it cannot be told which condition is for which part of it; pass batch_size=1"
        )
    stacked = torch.stack(torch.broadcast_tensors(*masks)).squeeze(batch + 1)
    each = rows.repeat_interleave(layout.shape[batch] // len(rows))
    return stacked[each.to(stacked.device)].movedim(0, batch)
