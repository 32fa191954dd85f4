"""The interface of canonizers, which change a model for as long as a composite is registered."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


class Handle(Protocol):
    """What ``apply`` of a canonizer returns. Two further attributes are optional.

    ``notes``: strings for the report. ``identities``: modules that compute the identity meanwhile, so that relevance
    passes them unchanged where no key of the composite says otherwise.
    """

    def remove(self) -> None:
        """Restore the model; calling it again does nothing."""


@runtime_checkable
class Canonizer(Protocol):
    """Anything with ``apply(model) -> handle``; applied when a composite is registered, undone when it is removed.

    It must not change what the model computes beyond rounding, nor the tree of its modules.
    """

    def apply(self, model: nn.Module) -> Handle:
        """Change the model, all or nothing."""
