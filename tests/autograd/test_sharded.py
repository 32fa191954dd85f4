"""Tensors that several processes hold together, and what is none."""

import sys
from types import ModuleType

import torch

from lxt_compose.autograd.sharded import added_up, is_sharded, whole


def test_a_library_without_its_tensors_knows_none(monkeypatch):
    """Torch 2.4 has a package of this name, but DTensor is not in it."""
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", ModuleType("torch.distributed.tensor"))
    x = torch.ones(2)
    assert not is_sharded(x)
    assert added_up(x) is x
    assert whole(x) is x
