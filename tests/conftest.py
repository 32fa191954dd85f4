"""For all tests: seeds, no function mode that is left behind in the thread, and `--cases`, which runs some of them."""

from collections import defaultdict
from zlib import crc32

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack


def pytest_addoption(parser):
    parser.addoption("--cases", type=int, metavar="N", help="N cases of each test at most")


def pytest_collection_modifyitems(config, items):
    most = config.getoption("--cases")
    if most is None:
        return
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = {id(item) for each in cases.values() for item in chosen(each, most)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def chosen(cases, most):
    """As many of the cases of a test, always the same; of one marked `every_case`, those that the mark names."""
    mark = cases[0].get_closest_marker("every_case")
    if mark is not None:
        wanted = mark.kwargs.items()
        return [case for case in cases if all(case.callspec.params[name] in values for name, values in wanted)]
    first, most = crc32(cases[0].nodeid.partition("[")[0].encode()), min(most, len(cases))
    return [cases[(first + step * len(cases) // most) % len(cases)] for step in range(most)]


@pytest.fixture(autouse=True)
def _nothing_is_left_on_the_thread():
    torch.manual_seed(0)
    yield
    left = _get_current_function_mode_stack()
    while _get_current_function_mode_stack():
        torch.overrides._pop_mode()
    assert left == []


@pytest.fixture
def model():
    """A small model: a residual with ReLU, a normalization, a layer."""
    from support import Residual

    torch.manual_seed(0)
    return nn.Sequential(Residual(6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
