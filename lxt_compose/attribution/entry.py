"""The function `attribute`, which most users need: from a model and an input to relevance."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..composite import Composite
from .axes import check_names
from .goals import Goals, read_targets
from .graphs import Graphs, batches
from .inputs import Inputs, read_inputs
from .joining import joined
from .latent import Layer, find_layers
from .pipelines import unpacked
from .result import Attribution
from .run import Run, composite_of, statistics_kept


def attribute(
    model: nn.Module | Any,
    inputs: Any,
    *,
    target: Any = None,
    dims: Any = None,
    composite: str | Composite = "attnlrp",
    layers: Any = (),
    ledger: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    traced: bool | str = False,
) -> Attribution:
    """Return the relevance of each part of the inputs for one output of the model, sample by sample.

    Args:
        model: any module in ``eval()`` mode, which is left as it was; or a pipeline of transformers and what it takes.
        inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments, such as what a tokenizer returns;
            arrays of numpy too. Arguments may be lists and dictionaries of tensors, whose parts have names such as
            ``xs[0]`` and ``batch.input_ids``. Caches and lists that a model fills are copied for each pass.
            The first dimension counts samples. Floating point inputs carry relevance; integers do by all that the model
            looks up by them, in whatever tables, or computes with them; masks and labels pass through.
        target: what is explained. None: the arg-max of the class logits, at the last real token if the output is
            [samples, positions, classes]. An index; a list or an integer tensor with one per sample; a pair ``(a, b)``
            for the difference a - b, ``(a, "others")`` for a less the mean of all others; pairs per sample as a list or
            an integer tensor [samples, 2]; a function of the model's output that returns a tensor [samples].
            Several targets: a list of them for a single sample (``[281, 207]``), or for any number of samples a
            dictionary by names (``{"cat": 281, "dog": 207}``): a row for each sample and target, sample by sample.
        dims: what the dimensions of the inputs are: ``"batch channel time"``, a tuple of such names, or a mapping from
            inputs (and layers) to them. Mostly it is known, from the names of inputs or the first layer that they meet;
            what needs to know it and does not raises. Without ``batch`` the input is one sample (``"node feature"``).
        composite: the name of a preset, or a :class:`Composite`.
        layers: modules whose outputs are wanted too: names, globs (``*`` matches dots too), classes, ``where(...)``;
            with ``:input`` at its end a name stands for the input. See :func:`blocks` for the residual stream.
        ledger: whether to record where the relevance went; costs at most three gradients, or Python's time.
        batch_size: how many samples to run at a time; None is all at once. Results do not depend on it.
        progress: whether to show a bar on stderr.
        traced: whether to run as one graph (:meth:`Composite.trace`), with the same numbers. ``"auto"``: from the
            second of similar calls on, where possible; ``result.ran`` says which. True: at once, or raise.

    Returns:
        The `Attribution`; its tensors are on the CPU, whatever the device of the model.

    Raises:
        TypeError: model, inputs, target or layers are of a wrong kind.
        ValueError: an index is out of range, a shape does not fit, an input is not finite, a preset is unknown.
        NotFiniteError: the forward or the backward pass gave NaN or infinite values; the module is named.
        AttributionError: the model failed on the inputs, or cannot be explained with them.
        MatchError: a layer's name, or a name in the composite, matches no module.
        TraceError: ``traced=True``, and the model cannot be written down as one graph.
    """
    model, inputs = unpacked(model, inputs)
    _check(model, batch_size, traced)
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        given, goals, watched = read(model, inputs, target, dims, layers)
        run = Run(model, composite_of(composite), given, watched)
        graphs = Graphs(run, composite, always=traced is True) if traced else None
        return explained(run, graphs, goals, batch_size, progress=progress, ledger=ledger)


def explained(
    run: Run, graphs: Graphs | None, goals: Goals, size: int | None, *, progress: bool = False, ledger: bool = False
) -> Attribution:
    """Return the attribution of inputs and targets that were read before."""
    parts = batches(run, graphs, goals, size, progress=progress, ledger=ledger)
    return Attribution(**joined(parts, run.given, run.report, goals.names, ledger=run.ledger), ran=run.ran)


def read(model: nn.Module, inputs: Any, target: Any, dims: Any, layers: Any) -> tuple[Inputs, Goals, list[Layer]]:
    """Return what is explained: inputs, targets and layers; arguments and errors as for :func:`attribute`."""
    given = read_inputs(model, inputs, dims)
    watched = find_layers(model, layers)
    check_names(given.said, [*given.dims, *(layer.name for layer in watched)])
    return given, read_targets(target, given.count), watched


def _check(model: Any, batch_size: Any, traced: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"attribute() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be None or a whole number from 1 on, got {batch_size!r}")
    check_traced(traced)


def check_traced(traced: Any) -> None:
    """Raise unless it is said whether to run as one graph.

    Raises:
        ValueError: it is not False, "auto" or True.
    """
    if not isinstance(traced, bool) and traced != "auto":
        raise ValueError(f"traced must be False, 'auto' or True, got {traced!r}")
