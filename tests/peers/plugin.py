"""A pytest plugin that has a peer's own tests run on lxt_compose, and writes down what became of each.

``pytest -p plugin --peer lxt --outcomes FILE tests/...``; `run_suites.py` does it for all peers.
"""

import importlib
import json
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    """Options of this plugin."""
    group = parser.getgroup("peers")
    group.addoption("--peer", help="the adapter: as_NAME.py")
    group.addoption("--outcomes", help="the file that outcomes are written to")
    group.addoption("--conventions", action="store_true", help="take the peer's conventions where ours differ")
    group.addoption("--on-itself", action="store_true", help="run the peer's tests on the peer's own code")


def _adapter(config):
    return importlib.import_module(f"as_{config.getoption('--peer')}")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Put our objects in the place of the peer's, before any of its tests are imported."""
    options = early_config.known_args_namespace
    adapter = importlib.import_module(f"as_{options.peer}")
    adapter.prepare()
    if not options.on_itself:
        adapter.install(options.conventions)


def pytest_configure(config):
    """Write outcomes, in the process that sees all of them."""
    if config.getoption("--outcomes") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")), "outcomes")


def pytest_generate_tests(metafunc):
    """Repeat the tests of a peer that draws numbers without a seed."""
    adapter = _adapter(metafunc.config)
    if hasattr(adapter, "runs"):
        runs = adapter.runs(metafunc.function)
        metafunc.parametrize("_run", runs, indirect=True, ids=[f"{str(d)[6:]}-{seed}" for d, seed in runs])


@pytest.fixture(autouse=True)
def _run(request):
    if not hasattr(request, "param"):
        yield
        return
    dtype, seed = request.param
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(seed)
    yield
    torch.set_default_dtype(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what is of the peer's own machinery, which no object of ours stands for."""
    adapter = _adapter(config)
    left_out = [item for item in items if item.originalname in adapter.UNMAPPED]
    items[:] = [item for item in items if item.originalname not in adapter.UNMAPPED]
    config.hook.pytest_deselected(items=left_out)
    if not config.getoption("--on-itself"):
        for module in {item.module for item in items}:
            adapter.patch(module)


class Outcomes:
    """What became of each test: passed, failed or skipped, with the last line of its error."""

    def __init__(self, path):
        self.path, self.found = Path(path), {}

    def pytest_runtest_logreport(self, report):
        """One phase of one test."""
        if report.outcome != "passed" or report.when == "call":
            error = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr or ""))
            self.found[report.nodeid] = {"outcome": report.outcome, "error": error.splitlines()[0] if error else ""}

    def pytest_collectreport(self, report):
        """A file that cannot be imported."""
        if report.failed:
            self.found[report.nodeid or "collection"] = {"outcome": "failed", "error": str(report.longrepr)[-500:]}

    def pytest_sessionfinish(self):
        """Write the file."""
        self.path.write_text(json.dumps(self.found))
