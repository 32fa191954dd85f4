"""Extra runs of a module that leave no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ...torch_internals import buffers_of, preserve_version


@contextmanager
def without_effect(module: nn.Module | None) -> Iterator[None]:
    """Restore the buffers of the module after the context, which running statistics and power iterations change."""
    tables = [] if module is None else [(table, dict(table)) for table in buffers_of(module)]
    buffers = [b for _, named in tables for b in named.values() if b is not None and not b.is_inference()]
    values = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        for table, named in tables:
            table.update(named)
        for buffer, value in zip(buffers, values, strict=True):
            # The values are the same afterwards, so tensors that autograd has saved must not count as changed.
            with torch.no_grad(), preserve_version(buffer):
                buffer.copy_(value)
