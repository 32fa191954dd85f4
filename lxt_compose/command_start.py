"""Handling of Ctrl-C while a command still imports torch: one line and an exit code, no traceback.

This file is imported before everything else of the package. In other programs it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

_INTERRUPTED = 130


def is_command() -> bool:
    """Return whether this process is `lxt-compose` or `python -m lxt_compose`, and its command has not begun."""
    if not sys.argv or sys.argv[0] != "-m":
        return bool(sys.argv) and Path(sys.argv[0]).stem == "lxt-compose"
    return "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == [__package__]


def quit_quietly() -> None:
    """End the command at once on an interrupt, until :func:`begin` is called."""
    if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def begin() -> None:
    """Let the command handle interrupts itself from now on."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"lxt-compose: interrupted\n")
    os._exit(_INTERRUPTED)


quit_quietly()
