"""Functions recorded once on fixed memory and replayed: CUDA graphs, which one call launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[], Sequence[Tensor]]
Recorded = tuple[Callable[[], None], Sequence[Tensor]]
"""A function that replays another one, and the tensors that the results are written into."""


class FixedMemory:
    """Runs a function by replaying it: inputs are copied into its memory, and results out of it.

    Args:
        run: the function; it takes values that are kept from call to call, and then inputs.
        kept: how many of the first are kept. They are read where they are; if they are other tensors in a later call,
            the function is recorded anew.
        record: runs a function, and returns a function that replays it, with the results.
    """

    def __init__(self, run: Callable[..., Sequence[Tensor]], kept: int, record: Callable[[Function], Recorded]) -> None:
        self._run, self._count, self._record = run, kept, record
        self._kept: Sequence[Tensor] = ()
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._results: Sequence[Tensor] = ()

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the results as tensors of their own."""
        kept, inputs = tensors[: self._count], tensors[self._count :]
        if self._replay is None or any(a is not b for a, b in zip(kept, self._kept, strict=True)):
            self._kept, self._inputs = kept, [x.clone() for x in inputs]
            self._replay, self._results = self._record(lambda: self._run(*self._kept, *self._inputs))
        for place, x in zip(self._inputs, inputs, strict=True):
            place.copy_(x)
        self._replay()
        return [result.clone() for result in self._results]


def record_on_gpu(function: Function) -> Recorded:
    """Record a function as a CUDA graph; it runs three times first, since libraries choose their kernels then.

    Args:
        function: works on the same memory in each call, and reads no values of tensors.

    Raises:
        RuntimeError: something in it cannot be recorded, or there is no GPU.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results
