"""Running a module once more than the model does, without a trace of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


@contextmanager
def without_effect(module: nn.Module | None) -> Iterator[None]:
    """A context in which what runs changes no buffer of the module: no running statistics, no power iteration."""
    modules = [] if module is None else list(module.modules())
    tables = [(part._buffers, dict(part._buffers)) for part in modules]
    buffers = [b for _, named in tables for b in named.values() if b is not None and not b.is_inference()]
    values = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        for table, named in tables:
            table.update(named)
        for buffer, value in zip(buffers, values, strict=True):
            # Nobody who saved the buffer may be told that it has changed, since it has not.
            with torch.no_grad(), _unsafe_preserve_version_counter(buffer):
                buffer.copy_(value)
