"""Names of the dimensions of inputs and layers, and how they are found.

Names come from the user (``dims=``), or from the names that transformers gives to inputs, or from the first layers that
an input meets; tables [n, features] and images [n, channels, height, width] of nets for images need none of these.
Nowhere else is the meaning of a dimension taken from its position.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..ops.dimensions import SPATIAL
from .argument_names import BATCH as BATCH
from .argument_names import IMAGE, SEQUENCE, by_argument_name
from .argument_names import UNKNOWN as UNKNOWN
from .argument_names import Dims as Dims
from .axis_flow import AxisFlow, follow
from .structure import fresh

SUMMED = ("channel", "feature", "mel")
"""Dimensions that scores sum over: they describe a place."""
PLACES = (
    "time", "token", "height", "width", "depth", "frame", "node", "edge", "instance", "image", "patch", "frequency",
    "column", "choice", "sequence", "codebook", "query", "head", "group",
)  # fmt: skip
"""Dimensions whose places have a score each."""
NAMES = (BATCH, *SUMMED, *PLACES)

_EXAMPLES = "'batch token feature', 'batch channel time', 'batch channel height width', 'node feature'"


def parse_dims(dims: Any, inputs: Iterable[str]) -> dict[str, Dims]:
    """Return the names of dimensions as a user writes them, by the names of inputs and layers.

    Args:
        dims: a string such as ``"batch channel time"``, a tuple of names, or a mapping of them by inputs' names. A
            string or a tuple is meant for all inputs.
        inputs: the names of the inputs.

    Raises:
        TypeError: it is of a wrong kind.
        ValueError: a name is unknown, or given to two dimensions where only one can have it.
    """
    if dims is None:
        return {}
    if isinstance(dims, Mapping):
        return {name: _parsed(value) for name, value in dims.items()}
    return dict.fromkeys(inputs, _parsed(dims))


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise if dimensions are given for something that is neither an input nor a layer.

    Raises:
        ValueError: they are.
    """
    strange = [name for name in given if name.partition("#")[0] not in known]
    if strange:
        raise ValueError(f"dims names {strange[0]!r}, but what is explained is {', '.join(known)}")


def _parsed(dims: Any) -> Dims:
    given = dims.replace(",", " ").split() if isinstance(dims, str) else dims
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"dims must be a string such as 'batch channel time' or a tuple of names, got {dims!r}")
    for name in given:
        if name not in NAMES:
            raise ValueError(f"there is no dimension called {name!r}; dims= knows {', '.join(NAMES)}")
    if given.count(BATCH) > 1:
        raise ValueError(f"dims names the batch twice: {dims!r}")
    return tuple(given)


def find_dims(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    given: Mapping[str, Dims],
    args: Any = (),
    kwargs: Any = None,
    *,
    graph: bool = False,
) -> dict[str, Dims]:
    """Return the names of the dimensions of each input; token ids have none for the features of their embeddings.

    The model runs only if names are missing, on copies, and only until its layers have named all dimensions.

    Args:
        model: the model.
        inputs: the inputs by the names of their arguments.
        given: the names that the user gave.
        args: the arguments of the model.
        kwargs: its keyword arguments.
        graph: whether they are nodes and edges of a graph.

    Raises:
        ValueError: the user named more or fewer dimensions than an input has.
    """
    found: dict[str, Dims] = {}
    for name, x in inputs.items():
        known = given.get(name) or by_argument_name(name, x, model, graph=graph) or _by_convention(x, model)
        if known:
            found[name] = _fitting(name, x, known)
    asked = {name: x for name, x in inputs.items() if name not in found}
    if asked:
        batch_second = any(getattr(module, "batch_first", True) is False for module in model.modules())
        copies = {id(x): x.detach().clone() for x in tensors_in((args, kwargs))}  # a model may change them in place
        flow = AxisFlow({name: copies[id(x)] for name, x in asked.items() if id(x) in copies}, every_name=batch_second)
        args, kwargs = fresh((args, kwargs or {}), lambda x: copies.get(id(x), x))
        raised = follow(lambda: model(*args, **kwargs), flow)
        told = {name: completed([dim.name for dim in dims]) for name, dims in flow.dims.items()}
        unknown = [name for name, dims in told.items() if UNKNOWN in dims]
        if raised is not None and unknown:
            warnings.warn(
                f"what the dimensions of {', '.join(unknown)} are was not found: the forward pass without gradients "
                f"that tells them raised {type(raised).__name__}: {_first_line(raised)}; pass attribute(..., dims=)",
                stacklevel=2,
            )
        found |= told
    return {name: found.get(name) or completed([None] * x.dim()) for name, x in inputs.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _fitting(name: str, x: Tensor, dims: Dims) -> Dims:
    """Return the names, without that of the features for ids, which have none."""
    if len(dims) == x.dim():
        return dims
    if not x.is_floating_point() and len(dims) == x.dim() + 1 and dims[-1] in SUMMED:
        return dims[:-1]
    raise ValueError(f"dims names {len(dims)} dimensions, {' '.join(dims)!r}, but {name} has the shape {list(x.shape)}")


def embedded(dims: Dims) -> Dims:
    """Return the dimensions of the embeddings of ids."""
    return (*dims, "feature")


# ---- by what layers say ----------------------------------------------------------------------------------------------


def completed(names: Sequence[str | None]) -> Dims:
    """Return names for all dimensions, of which layers have named some."""
    found = list(names)
    if found and found[0] is None and BATCH not in found:
        found[0] = BATCH
    missing = [place for place, name in enumerate(found) if name is None]
    if "height" in found:
        fitting: Sequence[str] = ("frame",) * len(missing)
    elif "time" in found:
        fitting = ("channel",) * len(missing)
    elif "feature" in found or "channel" in found:
        fitting = SPATIAL.get(len(missing), ()) if len(missing) > 1 else ("token",)
    else:
        fitting = ()
    found = [*found]
    for place, name in zip(missing, fitting, strict=False):
        found[place] = name
    return tuple(name or UNKNOWN for name in found)


def _by_convention(x: Tensor, model: nn.Module) -> Dims | None:
    """Return the names for tables, and for images in torch's order."""
    if x.dim() < 3:
        return (BATCH, "feature")[: x.dim()]
    channels_last = x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
    of_images = any(isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) for module in model.modules())
    of_volumes = any(isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) for module in model.modules())
    if x.dim() == 4 and not channels_last and not of_volumes and (of_images or x.shape[1] in (1, 3)):
        return IMAGE
    return None


def before_they_were_kept(n: int) -> Dims:
    """Return the dimensions of relevance that was made without their names, as by version 0.1: sequences and images."""
    return (BATCH, "feature")[:n] if n < 3 else {3: SEQUENCE, 4: IMAGE}.get(n, (BATCH, *[UNKNOWN] * (n - 1)))


# ---- what follows from them ------------------------------------------------------------------------------------------


def place_of(dims: Dims, name: str) -> int | None:
    """Return where a dimension is, or None."""
    return dims.index(name) if name in dims else None


def unit_place(dims: Dims) -> int:
    """Return the position of the dimension of units: the one that scores sum over, else the last."""
    return next((place for place, dim in enumerate(dims) if dim in SUMMED), len(dims) - 1)


def check_known(name: str, dims: Dims, shape: Sequence[int]) -> None:
    """Raise if a dimension has no known name.

    Raises:
        ValueError: it is not.
    """
    if UNKNOWN in dims:
        raise ValueError(
            f"it is not known what the dimensions of {name}, of shape {list(shape)}, are: pass attribute(..., "
            f"dims=), such as {_EXAMPLES}; the names are {', '.join(NAMES)}"
        )


def summed(relevance: Tensor, dims: Dims, name: str = "the relevance") -> Tensor:
    """Return relevance summed over channels and features: one number for each place of each sample, samples first.

    A table, which has no places, keeps its features.

    Raises:
        ValueError: it is not known what the dimensions are.
    """
    check_known(name, dims, relevance.shape)
    kept = kept_dims(dims)
    gone = [place for place, dim in enumerate(dims) if dim not in kept]
    found = total(relevance, gone) if gone else relevance
    batch = place_of(tuple(dim for dim in dims if dim in kept), BATCH)
    return found.movedim(batch, 0) if batch else found


def kept_dims(dims: Dims) -> Dims:
    """Return the dimensions of scores, the batch first."""
    places = tuple(dim for dim in dims if dim not in SUMMED and dim != BATCH)
    return (BATCH,) * (BATCH in dims) + (places or tuple(dim for dim in dims if dim != BATCH))


def total(relevance: Tensor, dim: int | list[int]) -> Tensor:
    """Return a sum; half precision is added up in float32."""
    short = relevance.dtype in (torch.float16, torch.bfloat16)
    return relevance.sum(dim, dtype=torch.float32 if short else None)
