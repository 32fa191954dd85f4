"""Which calls came to what such calls came to before."""

from lxt_compose.runtime.kept_calls import MISSED, KeptCalls


def calls_kept(monkeypatch):
    """The names of the operations that run by what is kept, as they run."""
    names, run = [], KeptCalls.run

    def noting(self, stack, frame, calls, *given):
        output = run(self, stack, frame, calls, *given)
        if output is not MISSED:
            names.append(calls.info.op.name)
        return output

    monkeypatch.setattr(KeptCalls, "run", noting)
    return names


def keep_nothing(monkeypatch):
    """Look at each call."""
    monkeypatch.setattr(KeptCalls, "run", lambda *_: MISSED)
