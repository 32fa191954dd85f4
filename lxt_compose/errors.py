"""The errors of lxt_compose; each says what, where, what was given and what to do."""

from collections.abc import Sequence


def place(path: str) -> str:
    """Return how a message names a module: by its dotted path in quotes, or as the model itself."""
    return repr(path) if path else "the model itself"


class CompositeError(RuntimeError):
    """Base of all errors of this library that are not about a wrong type or value of an argument."""


class MatchError(CompositeError):
    """A name in a composite matches no module of the model."""


class RegistrationError(CompositeError):
    """A composite cannot be registered on this model, or the registration cannot be used this way."""


class RuleError(CompositeError):
    """A rule does not fit the operation or module that it was assigned to."""


class UncoveredError(CompositeError):
    """With ``strict=True``: relevance passes through an operation that no rule covers."""


class AttributionError(CompositeError):
    """A model cannot be explained with these inputs, or this part of it has no relevance of its own."""


class NotFiniteError(AttributionError):
    """What should be explained, or a relevance, is NaN or infinite."""


class TraceError(CompositeError):
    """A model cannot be written down as a graph, or the graph does not fit what it is called with."""


class ConservationError(CompositeError):
    """Relevance was lost or created at a rule; `violations` are the calls and samples where it was."""

    def __init__(self, message: str, violations: Sequence[tuple[object, int]] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)
