"""The arguments of a model: those that carry relevance, and their batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import map_tensors
from .argument_names import is_graph
from .axes import BATCH, Dims, embedded, find_dims, parse_dims, place_of
from .heads import texts_as_choices
from .structure import advice, distinct, fresh, held_constant, names_of_arguments, read_arguments

# Inputs that say how to read others, such as masks. They are constants, whatever their dtype.
_CONSTANT = re.compile(r"mask|label|bias|cache|length|past_key|edge_index|offsets|(^|\.)(batch|ptr)$")
# Positions, types and sizes: rows looked up by them have their own relevance.
_BESIDE = re.compile(r"position|type_ids|grid_thw|(image|video)_sizes$|spatial_shapes$")
_CONSTANT_FLOAT = re.compile(r"(^|_)(mask|bias|labels?|lens|lengths)$|cache|past_key")
# Edges between nodes, and the graph that each node belongs to.
_OF_GRAPHS = re.compile(r"^(edge_(index|type|label_index)|adj(_t)?|batch|ptr)$")
_MASKS = ("attention_mask", "input_mask", "mask")


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call of the model, and by name those that relevance is wanted of.

    ``carriers`` are floating point tensors, ``ids`` integer tensors that the model embeds, ``beside`` others that it
    may look up too, such as positions; ``mask`` [samples, tokens] tells real tokens (not 0) of the output from padding
    (0), or is None; ``count`` is the number of samples. ``hint`` is what may be wrong with them, for the error if the
    model fails. If the model has an encoder and a decoder (``has_decoder``), ``mask`` is that of the decoder, and
    ``encoder_mask`` the other one. ``dims`` names the
    dimensions of each carrier and of ids, ``said`` is what the user called them and those of layers, ``remarks`` what
    the report is to say of the inputs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    carriers: dict[str, Tensor]
    ids: dict[str, Tensor]
    mask: Tensor | None
    count: int
    hint: str = ""
    beside: dict[str, Tensor] = field(default_factory=dict)
    has_decoder: bool = False
    encoder_mask: Tensor | None = None
    dims: dict[str, Dims] = field(default_factory=dict)
    said: dict[str, Dims] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def all(self) -> dict[str, Tensor]:
        """All inputs that carry relevance, by name."""
        return {**self.carriers, **self.ids, **self.beside}

    def mask_of(self, name: str) -> Tensor | None:
        """Return the mask that tells real tokens of this input from padding."""
        return self.encoder_mask if self.has_decoder and not name.startswith("decoder_") else self.mask

    def asked_at(self, model: nn.Module) -> Tensor | None:
        """Return where the ids are the mask token, if this is a masked language model whose configuration knows it."""
        token, ids = getattr(_config(model), "mask_token_id", None), self.ids.get("input_ids")
        if "MaskedLM" not in type(model).__name__ or not isinstance(token, int) or ids is None or ids.dim() != 2:
            return None
        where: Tensor = ids == token
        return where

    def batches(self, size: int | None) -> Iterator[tuple[slice, Inputs]]:
        """Yield the samples in groups of at most ``size``; every tensor with a dimension of samples is cut.

        That dimension is the batch of an input whose dimensions are known, and the first of any other tensor.

        Raises:
            ValueError: there are no samples.
        """
        if not self.count:
            raise ValueError("the inputs have no samples: the dimension that counts them has size 0")
        step = self.count if size is None else size
        for start in range(0, self.count, step):
            part = slice(start, min(start + step, self.count))
            yield part, self if step >= self.count else self._cut(part)

    def batch_of(self, value: Any) -> int | None:
        """Return the dimension of a tensor that counts samples; None for a tensor that all samples share."""
        if not isinstance(value, Tensor):
            return None
        named = next((name for name, x in self.all.items() if x is value), None)
        if named is None:  # a mask has the samples of its input
            named = next((n for n, x in self.ids.items() if x.shape == value.shape and BATCH not in self.dims[n]), None)
        place = place_of(self.dims[named], BATCH) if named in self.dims else 0
        return place if place is not None and value.dim() > place and value.shape[place] == self.count else None

    def repeated(self, times: int) -> Inputs:
        """Return each sample several times, one after the other."""
        return self.with_samples(lambda x, batch: x.repeat_interleave(times, batch), self.count * times)

    def _cut(self, part: slice) -> Inputs:
        size = part.stop - part.start
        return self.with_samples(lambda x, batch: x.narrow(batch, part.start, size), size)

    def with_samples(
        self,
        change: Callable[[Tensor, int], Tensor],
        count: int,
        called_with: Callable[[Any, Any], Any] = lambda before, after: after,
    ) -> Inputs:
        """Return the inputs with other samples.

        Args:
            change: is given a tensor and the dimension that counts samples.
            count: how many samples it makes.
            called_with: is given an argument before and after the change; what it returns goes into the call.
        """
        pieces: dict[int, Tensor] = {}

        def changed(value: Any) -> Any:
            batch = self.batch_of(value)
            if batch is None:
                return value
            if id(value) not in pieces:
                pieces[id(value)] = change(value, batch)  # the same everywhere
            return pieces[id(value)]

        def argument(value: Any) -> Any:
            return called_with(value, changed(value))

        return replace(
            self,
            args=map_tensors(argument, self.args),
            kwargs=map_tensors(argument, self.kwargs),
            carriers={name: changed(value) for name, value in self.carriers.items()},
            ids={name: changed(value) for name, value in self.ids.items()},
            beside={name: changed(value) for name, value in self.beside.items()},
            mask=changed(self.mask),
            encoder_mask=changed(self.encoder_mask),
            count=count,
        )

    def copied(self) -> Inputs:
        """Return a copy for one forward pass, in which the model may change everything but carriers."""
        memo = {id(x): x for x in self.carriers.values()}

        def copy_of(x: Tensor) -> Tensor:
            return x if x.requires_grad else memo.setdefault(id(x), x.clone())

        args, kwargs = fresh(self.args, copy_of), fresh(self.kwargs, copy_of)
        ids, beside = ({name: copy_of(x) for name, x in of.items()} for of in (self.ids, self.beside))
        return replace(self, args=args, kwargs=kwargs, ids=ids, beside=beside)

    def dims_of_relevance(self) -> dict[str, tuple[torch.Size, Dims]]:
        """Shape and dimensions of the relevance of each input; the number of features of embeddings is unknown."""
        whole = {name: (x.shape, self.dims[name]) for name, x in self.carriers.items()}
        ids = {**self.ids, **self.beside}
        return whole | {n: (torch.Size((*x.shape, 0)), embedded(self.dims[n])) for n, x in ids.items()}

    def described(self) -> str:
        """For errors: shapes, dtypes and devices of what is explained, how many samples that is, and the hint."""
        parts = [f"{name}: {list(x.shape)} {kind_of(x)}" for name, x in (*self.carriers.items(), *self.ids.items())]
        samples = f"{self.count} sample{'s' * (self.count != 1)}, which the first dimension counts"
        return f"{', '.join(parts)} ({samples}{self.hint and '; ' + self.hint})"


def read_inputs(model: nn.Module, inputs: Any, dims: Any = None) -> Inputs:
    """Find out which inputs carry relevance, and the names of their dimensions.

    Args:
        model: any module.
        inputs: as for :func:`attribute`.
        dims: given names of dimensions; see :func:`attribute`.

    Raises:
        TypeError: not a tensor, a tuple or a mapping, or nothing in it can carry relevance; or no module.
        ValueError: there are no samples, or a floating point input is not finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    args, kwargs = distinct(read_arguments(model, inputs))
    named = names_of_arguments(model, args, kwargs)
    tensors = {name: x for name, x in named.items() if isinstance(x, Tensor)}
    filled = {name: x for name, x in tensors.items() if x.numel()} or tensors  # no columns of a kind: no relevance
    carriers = {name: x for name, x in filled.items() if x.is_floating_point() and not _CONSTANT_FLOAT.search(name)}
    integers = {name: x for name, x in filled.items() if is_integer(x) and not _CONSTANT.search(name)}
    if graph := is_graph(named):
        carriers, integers = (
            {name: x for name, x in of.items() if not _OF_GRAPHS.search(name)} for of in (carriers, integers)
        )
    ids = {name: x for name, x in integers.items() if not _BESIDE.search(name)}
    ids = {name: x for name, x in ids.items() if name.endswith("input_ids")} or ids
    beside = {name: x for name, x in integers.items() if name not in ids}
    if not carriers and not ids:
        given = ", ".join(f"{name}: {_kind(value)}" for name, value in named.items()) or "nothing"
        raise TypeError(
            f"no input can carry relevance: a floating point tensor, or integer ids that the model embeds, is needed, "
            f"got {given}{advice(named)}"
        )
    main = next(iter((*ids.values(), *carriers.values())))
    _check(carriers, main)
    last = {name.rpartition(".")[2]: x for name, x in tensors.items()}
    mask = next((last[name] for name in _MASKS if name in last), None)
    wanted = {**ids, **carriers}
    said = parse_dims(dims, wanted)
    apart = {**texts_as_choices(model, wanted), **said}
    known = find_dims(model, {**wanted, **beside}, apart, args, kwargs, graph=graph)
    count = _count(wanted, known)
    found = Inputs(args, kwargs, carriers, ids, mask, count, _hint(model, named, main), beside, dims=known, said=said)
    found = replace(found, remarks=held_constant(named, wanted.values()))
    if _has_decoder(model):
        return replace(found, mask=last.get("decoder_attention_mask"), has_decoder=True, encoder_mask=mask)
    return found


def _count(inputs: dict[str, Tensor], dims: dict[str, Dims]) -> int:
    """Return the number of samples: the batch of the first input that has one; 1 if none does."""
    places = {name: place_of(dims[name], BATCH) for name in inputs}
    return next((inputs[name].shape[place] for name, place in places.items() if place is not None), 1)


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _has_decoder(model: nn.Module) -> bool:
    return bool(getattr(_config(model), "is_encoder_decoder", False))


def _hint(model: nn.Module, named: dict[str, Any], main: Tensor) -> str:
    """Return a hint at what may be wrong with the inputs if the model fails on them."""
    if _has_decoder(model) and not any(name.startswith("decoder_input") for name in named):
        return "an encoder with a decoder needs decoder_input_ids too: what it has said so far, or its start token"
    images = any(isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) for module in model.modules())
    if images and main.is_floating_point() and main.dim() < 4:
        return "an image [channels, height, width] is given as a batch, image[None]; several as torch.stack(images)"
    return ""


def pair(size: Any) -> tuple[int, int]:
    """Return height and width of a patch, given as one number or two.

    Raises:
        TypeError: it is something else.
    """
    found = (size, size) if isinstance(size, int) else size
    if isinstance(found, (tuple, list)) and len(found) == 2:
        height, width = found
        if all(isinstance(side, int) and not isinstance(side, bool) for side in found):
            return height, width
    raise TypeError(f"the size of a patch is a whole number or (height, width), got {size!r}")


def is_integer(x: Tensor) -> bool:
    """Return whether the tensor can hold ids."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def kind_of(x: Tensor) -> str:
    """Return dtype and device, such as "float32 on cpu"."""
    return f"{str(x.dtype).removeprefix('torch.')} on {x.device}"


def _kind(value: Any) -> str:
    return f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def _check(carriers: dict[str, Tensor], main: Tensor) -> None:
    for name, x in carriers.items():
        if x.is_nested:
            raise ValueError(
                f"the input {name} is a nested tensor; give it as torch.nested.to_padded_tensor({name}, 0.0)"
            )
    if main.dim() == 0 or main.shape[0] == 0:
        raise ValueError(f"the first dimension of the inputs counts samples, got a tensor of shape {list(main.shape)}")
    if not main.numel():
        raise ValueError(f"the input has no elements, shape {list(main.shape)}: a text without tokens, say")
    for name, x in carriers.items():
        if x.is_meta:
            raise ValueError(f"the input {name} is on the meta device: it has no values")
        if x.layout != torch.strided:
            raise ValueError(f"the input {name} is sparse; give it as {name}.to_dense()")
        if not torch.isfinite(x if x.dtype.itemsize > 1 else x.float()).all():
            raise ValueError(f"the input {name} holds values that are not finite (NaN or infinite)")
