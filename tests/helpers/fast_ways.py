"""Which calls took one of the ways that need less than to look at the whole call."""

from lxt_compose.runtime import function_mode
from lxt_compose.runtime.plain_calls import MISSED


def calls_of(monkeypatch, way):
    """The names of the operations that run by this function of the function mode, as they run."""
    names, run = [], getattr(function_mode, way)

    def noting(session, stack, how, frame, info, *given):
        output = run(session, stack, how, frame, info, *given)
        if output is not MISSED:
            names.append(info.op.name)
        return output

    monkeypatch.setattr(function_mode, way, noting)
    return names
