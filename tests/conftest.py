"""For all tests: seeds, no function mode that is left behind in the thread, and `--cases`, which runs some of them."""

from collections import defaultdict

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
    from some_cases import chosen

    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = {id(item) for each in cases.values() for item in chosen(each, most)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


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
