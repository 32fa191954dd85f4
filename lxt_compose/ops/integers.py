"""What operations do with integers: where each element of a result comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from .families import ACTIVATION, DIVISION, MOVEMENT, PRODUCT, parse
from .lookup import mutates, plain_name
from .traits import Argument


class Effect(Enum):
    """The origin of the elements of a result."""

    MOVES = "elements of the operands, elsewhere"
    AT_PLACE = "from the elements of the operands at their place"
    ROUNDS = "the same, rounded to whole numbers"
    CONVERTS = "the elements of the first operand, as another type or in other memory"
    ONE_HOT = "each integer becomes a row"
    LOOKS_UP = "rows of a table"
    BAGS = "sums of rows of a table"
    EQUALS = "whether two elements are equal"
    FORGETS = "a question about the operands, their shape, or places in them"
    LEAVES = "numbers of Python or arrays of numpy"
    SORTS = "elements of the first operand, and where they were"
    CHOOSES = "one of several elements, and where it was"
    COMBINES = "sums or the like of several elements"


@dataclass(frozen=True, slots=True)
class Integers:
    """What one operation does with integers.

    Attributes:
        effect: where the elements of its result come from.
        values: the arguments whose elements are in the result.
        index: the argument that says where elements are read or written.
        writes: it writes at the index; else it reads there.
    """

    effect: Effect
    values: tuple[Argument, ...] = (Argument(0, "input"),)
    index: Argument | None = None
    writes: bool = False


_VALUES = """
    cat: 0 tensors          stack: 0 tensors        hstack: 0 tensors       vstack: 0 tensors       dstack: 0 tensors
    column_stack: 0 tensors block_diag: 0 1 2 3     cartesian_prod: 0 1 2 3 meshgrid: 0 1 2 3
    broadcast_tensors: 0 1 2 3                      pad: 0 input 3 value    pad_sequence: 0 sequences 2 padding_value
    where: 0 input 1 self 2 other                   masked_fill: 0 input 2 value                    copy: 0 input 1 src
    masked_scatter: 0 input 2 source                scatter: 0 input 3 src 3 value
    index_copy: 0 input 3 source                    index_fill: 0 input 3 value     fill: 0 input 1 value
    setitem: 0 input 2 value                        index_put: 0 input 2 values     fill_diagonal: 0 1
    select_scatter: 0 input 1 src                   slice_scatter: 0 input 1 src
    diagonal_scatter: 0 input 1 src
"""
"""The arguments whose elements are moved, unless it is the first alone."""

_READ_AT = "getitem: 1 indices  index_select: 2 index  gather: 2 index  take: 1 index  take_along_dim: 1 indices"
_WRITTEN_AT = "setitem: 1 indices  index_put: 1 indices  scatter: 2 index  index_fill: 2 index  index_copy: 2 index"
_ADDED_AT = "scatter_add index_add scatter_reduce index_reduce"

_CHOSEN_BY_VALUE = """
    sort msort topk max min amax amin aminmax median nanmedian mode kthvalue cummax cummin max_pool1d max_pool2d
    max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
    max_unpool1d max_unpool2d max_unpool3d to_sparse to_sparse_coo to_sparse_csr to_sparse_csc to_sparse_bsr
    to_sparse_bsc coalesce values sparse_mask view_as_real view_as_complex combinations
"""
_CONVERSIONS = """
    to type type_as float double half bfloat16 long int short char byte clone contiguous cpu cuda xpu tensor as_tensor
    asarray pin_memory as_subclass alias to_dense
"""
_AT_THEIR_PLACE = f"""
    {ACTIVATION} {PRODUCT} {DIVISION} add sub rsub neg positive pow rpow float_power sqrt square floor ceil
    sign sgn floor_divide rfloor_divide maximum minimum fmax fmin nan_to_num heaviside lerp gcd lcm bucketize
    bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift
    __and__ __or__ __xor__ __invert__ __lshift__ __rshift__ __rand__ __ror__ __rxor__ __rlshift__ __rrshift__
    __iand__ __ior__ __ixor__ __ilshift__ __irshift__ searchsorted
"""
_FORGOTTEN = """
    ne lt le gt ge not_equal less less_equal greater greater_equal isin isnan isinf isfinite isclose allclose equal
    logical_and logical_or logical_xor logical_not any all bool nonzero argwhere argmax argmin argsort count_nonzero
    zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty
    new_tensor size __ne__ __lt__ __le__ __gt__ __ge__ __len__ __bool__ __contains__
"""
_LEAVING = "tolist item numpy __array__ __int__ __index__ __float__ __complex__ __format__ __dlpack__"
_CHOOSING = "max min amax amin median nanmedian mode kthvalue cummax cummin"


def _arguments(words: list[str]) -> tuple[Argument, ...]:
    found, position = [], 0
    for word in words:
        if word.isdigit():
            position = int(word)
            found.append(Argument(position, ""))
        else:
            found[-1] = Argument(position, word)
    return tuple(found)


def _rows() -> dict[str, Integers]:
    values = {name: _arguments(words) for name, words in parse(_VALUES).items()}
    read, written = ({n: _arguments(words)[0] for n, words in parse(t).items()} for t in (_READ_AT, _WRITTEN_AT))
    rows = {name: Integers(Effect.FORGETS) for name in _FORGOTTEN.split()}
    rows |= {name: Integers(Effect.LEAVES) for name in _LEAVING.split()}
    for name in MOVEMENT.split():
        index = read.get(name) or written.get(name)
        given = values.get(name, (Argument(0, "input"),))
        rows[name] = Integers(Effect.MOVES, given, index, writes=name in written)
    rows["index_put"] = Integers(Effect.MOVES, values["index_put"], written["index_put"], writes=True)
    for name in _ADDED_AT.split():
        rows[name] = Integers(Effect.COMBINES, (Argument(0, "input"), Argument(3, "src")), Argument(2, "index"), True)
    rows |= {name: Integers(Effect.AT_PLACE) for name in _AT_THEIR_PLACE.split()}
    rows |= {name: Integers(Effect.ROUNDS) for name in ("floor", "ceil", "round", "trunc", "floor_divide")}
    rows |= {name: Integers(Effect.CONVERTS) for name in _CONVERSIONS.split()}
    for name in _CHOSEN_BY_VALUE.split():
        rows.pop(name, None)
    rows |= {name: Integers(Effect.SORTS) for name in ("sort", "topk")}
    rows |= {name: Integers(Effect.CHOOSES) for name in _CHOOSING.split()}
    rows["one_hot"] = Integers(Effect.ONE_HOT)
    rows["embedding"] = Integers(Effect.LOOKS_UP, ())
    rows["embedding_bag"] = Integers(Effect.BAGS, ())
    rows["eq"] = rows["__eq__"] = Integers(Effect.EQUALS)
    return rows


_ROWS = _rows()


def integers_of(func: Callable[..., Any]) -> Integers | None:
    """Return what a function does with integers; None where that is unknown."""
    name = plain_name(func)
    return None if name is None else _ROWS.get(name)


def makes_integers(function: Callable[..., Any], args: Any, kwargs: Any, output: Tensor) -> bool:
    """Return whether a call that was given other numbers has turned or written them into integers.

    A function that moves elements makes no integers of another tensor, whose shape alone it takes (``expand_as``).
    """
    if output.is_floating_point() or output.is_complex() or output.dtype == torch.bool:
        return False
    effect = getattr(integers_of(function), "effect", None)
    return effect is Effect.CONVERTS or (effect is Effect.MOVES and mutates(function, args, kwargs))
