"""What a canonizer is: it changes a model for as long as a composite is registered."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


class Handle(Protocol):
    """What a canonizer gives back. Two further attributes are optional.

    ``notes``: strings for the report. ``identities``: modules that compute the identity meanwhile, so that relevance
    passes them unchanged where no key of the composite says otherwise.
    """

    def remove(self) -> None:
        """Make the model what it was before; may be called any number of times."""


@runtime_checkable
class Canonizer(Protocol):
    """Anything with ``apply(model) -> handle``; applied when a composite is registered, taken back when it is removed.

    It must not change what the model computes beyond rounding, nor the tree of its modules.
    """

    def apply(self, model: nn.Module) -> Handle:
        """Change the model, all or nothing."""
