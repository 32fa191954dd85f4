"""Ctrl-C at any time: one line, and the exit code of an interrupt."""

import signal
import subprocess
import sys
import time

import pytest


def heard():
    """Have a process told of interrupts; a shell has those that it starts in the background ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_an_interrupt_while_torch_is_imported(seconds):
    command = subprocess.Popen(
        [sys.executable, "-m", "lxt_compose", "demo", "--no-progress", "--retrain", "--out", "/dev/null/nowhere"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    time.sleep(seconds)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130
    assert said.strip() == "lxt-compose: interrupted"


def test_a_program_that_imports_the_package_keeps_its_own_interrupts():
    code = "import signal, lxt_compose; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=heard)
    assert run.stdout == "True\n"
