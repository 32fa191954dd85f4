"""Parts of a weight (its positive part, its absolute values, ...), computed once while the weight stays the same."""

import threading
from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...torch_internals.traces import is_traced

Part = Callable[[Tensor], Tensor]
_Made = tuple[tuple[int, int, torch.dtype], Tensor]


def whole(weight: Tensor) -> Tensor:
    """Return W itself."""
    return weight


def positive(weight: Tensor) -> Tensor:
    """Return ``max(W, 0)``."""
    return weight.clamp(min=0)


def negative(weight: Tensor) -> Tensor:
    """Return ``min(W, 0)``."""
    return weight.clamp(max=0)


def absolute(weight: Tensor) -> Tensor:
    """Return ``|W|``."""
    return weight.abs()


def square(weight: Tensor) -> Tensor:
    """Return ``W * W``."""
    return weight.square()


def ones(weight: Tensor) -> Tensor:
    """Return 1 for every weight."""
    return torch.ones_like(weight)


def is_quantized(weight: Tensor) -> bool:
    """Return whether a weight is of a class that holds it quantized, and can dequantize it."""
    return getattr(type(weight), "dequantize", Tensor.dequantize) is not Tensor.dequantize


def dequantized(weight: Tensor) -> Tensor:
    """Return the weight as numbers."""
    return weight.dequantize() if is_quantized(weight) else weight


def of_sparse(weight: Tensor, part: Part) -> Tensor:
    """Return the part of a sparse weight; it is sparse too, unless the part of 0 is not 0."""
    if part(weight.new_zeros(1, layout=torch.strided)).any():
        return part(weight.to_dense())
    if weight.layout is torch.sparse_coo:
        weight = weight.coalesce()
        return torch.sparse_coo_tensor(weight.indices(), part(weight.values()), weight.shape, is_coalesced=True)
    by_rows = weight.layout in (torch.sparse_csr, torch.sparse_bsr)
    index = (weight.crow_indices(), weight.col_indices()) if by_rows else (weight.ccol_indices(), weight.row_indices())
    return torch.sparse_compressed_tensor(*index, part(weight.values()), weight.shape, layout=weight.layout)


def mean_of_rows(weight: Tensor) -> Tensor:
    """Return a sparse matrix with each row divided by the number of its entries.

    Products with it are those with ``reduce="mean"``.
    """
    weight = weight.to_sparse_coo().coalesce()
    rows = weight.indices()[0]
    counts = torch.bincount(rows, minlength=weight.shape[0])
    values = weight.values() / counts[rows]
    return torch.sparse_coo_tensor(weight.indices(), values, weight.shape, is_coalesced=True)


class Parts:
    """The parts of weights that the rules of one registration use, computed once.

    They are kept until :meth:`close` (or until the weight is gone) and made anew when the weight is another tensor,
    was changed in place or got other memory. A change through ``weight.data`` in the same memory cannot be seen;
    PyTorch's own check of saved tensors does not see it either.
    """

    def __init__(self) -> None:
        self._kept: MutableMapping[Tensor, dict[tuple[Part, torch.dtype], _Made]] = WeakIdKeyDictionary()
        self._lock = threading.Lock()
        self.keeping = True
        """Whether parts are kept: not where weights exist only while they are used."""

    def get(self, weight: Tensor, part: Part, dtype: torch.dtype) -> Tensor:
        """Return the part of this weight in this dtype."""
        if is_quantized(weight):  # not kept: that would be what quantization saves
            with torch.no_grad():
                return part(dequantized(weight).to(dtype))
        if part is whole and dtype == weight.dtype:
            return weight
        sparse = weight.layout is not torch.strided  # it has no memory of its own to tell a change by
        if sparse or is_traced() or not self.keeping:  # where traced, it belongs to the graph
            return self._made(weight, part, dtype)
        stamp = (weight._version, weight.data_ptr(), weight.dtype)
        with self._lock:
            kept = self._kept.get(weight, {}).get((part, dtype))
        if kept is not None and kept[0] == stamp:
            return kept[1]
        made = self._made(weight, part, dtype)
        with self._lock:
            if self.keeping:
                self._kept.setdefault(weight, {})[part, dtype] = (stamp, made)
        return made

    @staticmethod
    def _made(weight: Tensor, part: Part, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            weight = weight.to(dtype)
            return part(weight) if weight.layout is torch.strided else of_sparse(weight, part)

    def close(self) -> None:
        """Drop all parts, and keep none from now on: later ones are computed each time."""
        with self._lock:
            self.keeping = False
            self._kept.clear()

    def __len__(self) -> int:
        return sum(len(parts) for parts in self._kept.values())


class Given(Parts):
    """Parts of one weight that were computed before; there are no others."""

    def __init__(self, made: Mapping[Part, Tensor]) -> None:
        super().__init__()
        self._given = made

    def get(self, weight: Tensor, part: Part, dtype: torch.dtype) -> Tensor:
        """See :meth:`Parts.get`."""
        return self._given[part]
