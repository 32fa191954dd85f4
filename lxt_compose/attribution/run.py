"""From a model and an input to an answer: the one function that most users need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..composite import Composite
from ..errors import AttributionError, CompositeError, NotFiniteError
from ..ledger import Ledger
from ..ledger import Recorder as Books
from ..rules import GRADIENT, RELEVANCE, Stop
from ..target_module import with_target
from .axes import check_names
from .goals import Goals, asked_inside, choose_each, read_targets
from .inputs import Inputs, read_inputs
from .joining import joined, one_after_the_other
from .latent import Layer, Recorder, find_layers
from .layer_dims import LayerDims
from .result import Attribution
from .taps import RoundedError, Taps
from .targets import Chosen, called


def attribute(
    model: nn.Module,
    inputs: Any,
    *,
    target: Any = None,
    dims: Any = None,
    composite: str | Composite = "attnlrp",
    layers: Any = (),
    ledger: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Attribution:
    """The relevance of each part of the inputs for one output of the model, sample by sample.

    Args:
        model: any module, in ``eval()`` mode; afterwards it is as before, whatever happens.
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
            dictionary by names (``{"cat": 281, "dog": 207}``). The result then has one row for each sample and target,
            those of a sample one after the other; it costs one forward pass, and a backward pass for each target.
        dims: what the dimensions of the inputs are: ``"batch channel time"``, a tuple of such names, or a mapping from
            inputs (and layers) to them. Mostly it is known, from the names of inputs as transformers has them or from
            the first layer that an input meets; what needs to know it and does not raises, and lists the names.
            Without ``batch`` the input is that of one sample (``"node feature"``).
        composite: the name of a preset, or a :class:`Composite`.
        layers: modules whose outputs are wanted too: names, globs (``*`` matches dots too), classes, ``where(...)``;
            with ``:input`` at its end a name stands for what goes in. See :func:`blocks` for the residual stream.
        ledger: whether to keep the books of where the relevance went; costs at most three gradients, more only where
            a gradient is a few milliseconds of Python's own work.
        batch_size: how many samples to run at a time; None is all at once. Results do not depend on it.
        progress: whether to show a bar on stderr.

    Returns:
        The :class:`Attribution`; its tensors are on the CPU, whatever the device of the model.

    Raises:
        TypeError: model, inputs, target or layers are of a wrong kind.
        ValueError: an index is out of range, a shape does not fit, an input is not finite, a preset is unknown.
        NotFiniteError: the forward or the backward pass gave NaN or infinite values; the module is named.
        AttributionError: the model failed on the inputs, or cannot be explained with them.
        MatchError: a layer's name, or a name in the composite, matches no module.
    """
    _check(model, batch_size)
    with torch.inference_mode(False), torch.enable_grad(), values_kept(_statistics(model)):
        given = read_inputs(model, inputs, dims)
        goals = read_targets(target, given.count)
        watched = find_layers(model, layers)
        check_names(given.said, [*given.dims, *(layer.name for layer in watched)])
        run = _Run(model, composite_of(composite), given, watched)
        parts = run.batches(goals, batch_size, progress=progress, ledger=ledger)
    return Attribution(**joined(parts, given, run.report, goals.names, ledger=run.ledger))


def _check(model: Any, batch_size: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"attribute() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be None or a whole number from 1 on, got {batch_size!r}")


@contextmanager
def values_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put the values of tensors back as they were."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    """The buffers of modules in train mode: batch norm counts what it sees there."""
    return (buffer for module in model.modules() if module.training for buffer in module.buffers(recurse=False))


def composite_of(composite: str | Composite) -> Composite:
    """The composite, or the preset of this name.

    Raises:
        TypeError: it is neither.
        ValueError: there is no such preset.
    """
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str):
        raise TypeError(f"composite must be a Composite or the name of a preset, got {type(composite).__name__}")
    from .. import presets

    return presets.get(composite)


class _TargetFailed(CompositeError):
    """The target function raised an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Run:
    """All batches of one call of :func:`attribute`."""

    def __init__(self, model: nn.Module, composite: Composite, given: Inputs, layers: list[Layer]) -> None:
        self.model, self.composite, self.given, self.layers = model, composite, given, layers
        self.as_it_is = composite.picture == "slot"
        self.ledger: Ledger | None = None
        self.reached = False
        """Whether any output depends on the inputs at all."""

    def batches(self, goals: Goals, size: int | None, *, progress: bool, ledger: bool) -> list[dict[str, Any]]:
        """What was found in each batch, as the arguments that an Attribution is joined from."""
        try:
            return self._all(goals, size, floats=False, progress=progress, ledger=ledger)
        except RoundedError:
            return self._all(goals, size, floats=True, progress=progress, ledger=ledger)

    def _all(
        self, goals: Goals, size: int | None, *, floats: bool, progress: bool, ledger: bool
    ) -> list[dict[str, Any]]:
        parts = []
        inside = asked_inside(goals, self._ask)
        self.called = self.model if inside is None else with_target(self.model, inside)
        with self.composite.register(self.called) as registration, ExitStack() as stack:
            self.registration, tally = registration, registration.session.tally
            tally.strict = False  # until it is known what lies between the explained output and the inputs
            self.books = stack.enter_context(registration.ledger()) if ledger else None
            taps = stack.enter_context(Taps(registration, floats=floats))
            times_value = self.composite.formulation == GRADIENT and not self.as_it_is
            layer_dims = LayerDims(self.model, self.given.dims_of_relevance())
            recorder = stack.enter_context(Recorder(self.layers, registration, layer_dims, times_value=times_value))
            batches = self.given.batches(size)
            for part, batch in _with_bar(batches, self.given.count) if progress else batches:
                found = self._one(batch, goals.part(part), taps, recorder)
                parts.append({**one_after_the_other(found, self.given, layer_dims.found()), "dims": layer_dims.found()})
            tally.forget_unreached(strict=self.composite.strict)
            self.report = registration.report()
            if not self.reached and not any(row.rule == str(Stop()) for row in self.report.rows):
                raise AttributionError(
                    f"what is explained of {type(self.model).__name__} depends on no input by way of recorded "
                    f"operations: the model cuts them off (detach(), torch.no_grad(), .data), so there is no relevance"
                )
            self.ledger = None if self.books is None else self.books.frozen()
        return parts

    def _one(self, batch: Inputs, goals: Goals, taps: Taps, recorder: Recorder) -> list[dict[str, Any]]:
        """What was found in one batch for each target: one forward pass, and as many backward passes as targets."""
        recorder.start()
        try:
            output = self._output(batch, taps)
        finally:
            recorder.stop()
        each, found = self._choose(batch, goals, output), []
        for turn, chosen in enumerate(each):
            if turn:
                recorder.again()
                if isinstance(self.registration.session.observer, Books):
                    self.registration.session.observer.turn()
            relevance = self._backward(chosen, taps, keep=turn < len(each) - 1)
            if not all(torch.isfinite(r).all() for r in relevance.values()):
                raise NotFiniteError(self._blame(batch, "the relevance is not finite"))
            found.append({
                "relevance": {name: r.cpu() for name, r in relevance.items()},
                "output": chosen.value.cpu(),
                "target": chosen.target,
                "latent": recorder.found(),
            })  # fmt: skip
        return found

    def _ask(self, function: Callable[[Any], Tensor], output: Any) -> Tensor:
        """What a target function makes of the output, as a part of the model; the inputs are not blamed of errors."""
        try:
            value = called(function, output, self.count)
            carried = any(x.requires_grad for x in tensors_in(output))
            if carried and not (value.requires_grad or self.registration.session.stack.stopped):
                raise ValueError("what the target function returns does not depend on the model's output")
            return value
        except Exception as error:
            raise _TargetFailed(error) from error

    def _output(self, batch: Inputs, taps: Taps) -> Any:
        """What the model answers, or what the target function makes of it."""
        self.count = batch.count
        try:
            return taps.call(self.called, batch)
        except _TargetFailed as failed:
            raise failed.error from None

    def _choose(self, batch: Inputs, goals: Goals, output: Any) -> list[Chosen]:
        times_output = self.composite.formulation == RELEVANCE and not self.as_it_is
        if batch.asked_at(self.model) is not None and any(goal.function is None for goal in goals.each):
            note = "explained at the one mask token of each sample"
            self.registration.session.tally.remarks[note] = None
        try:
            return choose_each(goals, output, self.model, batch, times_output=times_output)
        except NotFiniteError as error:
            raise NotFiniteError(self._blame(batch, str(error))) from None

    def _backward(self, chosen: Chosen, taps: Taps, *, keep: bool) -> dict[str, Tensor]:
        """The relevance of each input; `keep` the graph for another backward pass."""
        leaves = taps.leaves
        slots: list[Tensor | None] = [None] * len(leaves)
        if chosen.seeds:
            outputs, seeds = zip(*chosen.seeds, strict=True)
            try:
                slots = list(torch.autograd.grad(outputs, leaves, seeds, allow_unused=True, retain_graph=keep))
            except RuntimeError as error:
                if "heckpoint" in str(error):
                    raise AttributionError(
                        "reentrant activation checkpointing cannot be explained; use use_reentrant=False"
                    ) from error
                raise
        self.reached |= any(slot is not None for slot in slots)
        return taps.by_input([self._relevance(leaf, slot) for leaf, slot in zip(leaves, slots, strict=True)])

    def _relevance(self, leaf: Tensor, slot: Tensor | None) -> Tensor:
        """The relevance of a leaf."""
        if slot is None:
            return torch.zeros_like(leaf, requires_grad=False)
        return slot if self.composite.formulation == RELEVANCE or self.as_it_is else leaf.detach() * slot

    def _blame(self, batch: Inputs, message: str) -> str:
        """The message, with the first module whose output is not finite."""
        first: list[str] = []

        def look(name: str, module: nn.Module) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                found = [t for t in tensors_in(output) if t.is_floating_point()]
                if not first and not all(torch.isfinite(t).all() for t in found):
                    first.append(f"{name!r} ({type(module).__name__})" if name else type(module).__name__)

            return hook

        with ExitStack() as stack, torch.no_grad():
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_hook(look(name, module)).remove)
            batch = batch.copied()
            self.model(*batch.args, **batch.kwargs)
        if first:
            return f"{message}; the first module that put out NaN or infinite values is {first[0]}"
        return f"{message}; all modules put out finite values, so it came up on the way back: try float32 or bfloat16"


def _with_bar(batches: Any, count: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from None
    with tqdm(total=count, unit="sample", desc="attribute") as bar:
        for part, batch in batches:
            yield part, batch
            bar.update(part.stop - part.start)
