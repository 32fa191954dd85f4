"""The passes of one attribution: a model under a composite, forward and backward, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..composite import Composite
from ..errors import AttributionError, CompositeError, NotFiniteError
from ..extras import needed
from ..ledger import Ledger
from ..ledger import Recorder as Books
from ..rules import GRADIENT, RELEVANCE, Stop
from ..runtime.registration import Registration
from ..target_module import with_target
from ..torch_internals.traces import is_traced, on_cpu
from .goals import Goals, asked_inside, choose_each
from .heads import said_of
from .inputs import Inputs
from .joining import one_after_the_other
from .latent import Layer, Recorder
from .layer_dims import LayerDims
from .taps import RoundedError, Taps
from .targets import Chosen, called


@contextmanager
def values_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of tensors after the context."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def statistics_kept(model: nn.Module) -> AbstractContextManager[None]:
    """Restore the buffers of modules in train mode, since batch norm updates its statistics in each pass."""
    return values_kept(
        buffer for module in model.modules() if module.training for buffer in module.buffers(recurse=False)
    )


def composite_of(composite: str | Composite) -> Composite:
    """Return the composite, or the preset of this name.

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


class Run:
    """All batches of one call of :func:`attribute`."""

    def __init__(self, model: nn.Module, composite: Composite, given: Inputs, layers: list[Layer]) -> None:
        self.model, self.composite, self.given, self.layers = model, composite, given, layers
        self.as_it_is = composite.picture == "slot"
        self.ledger: Ledger | None = None
        self.reached = False
        """Whether any output depends on the inputs at all."""
        self.ran = "eager"
        """How the model ran: registered, or as one graph."""
        self.classes: int | None = None
        """How many classes there are to choose from."""
        self.register: Callable[[nn.Module], AbstractContextManager[Registration]] = composite.register
        self.make_taps: Callable[[Registration, bool], AbstractContextManager[Any]] = Taps

    def batches(self, goals: Goals, size: int | None, *, progress: bool, ledger: bool) -> list[dict[str, Any]]:
        """Return what was found in each batch, as the arguments that are joined to an Attribution."""
        try:
            return self._all(goals, size, floats=False, progress=progress, ledger=ledger)
        except RoundedError:
            return self._all(goals, size, floats=True, progress=progress, ledger=ledger)

    def _all(
        self, goals: Goals, size: int | None, *, floats: bool, progress: bool, ledger: bool
    ) -> list[dict[str, Any]]:
        parts = []
        with self.at_work(goals, floats=floats) as registration, ExitStack() as stack:
            self.books = stack.enter_context(registration.ledger()) if ledger else None
            batches = self.given.batches(size)
            for part, batch in with_bar(batches, self.given.count) if progress else batches:
                parts.append(self.rows(self.one(batch, goals.part(part))))
            registration.session.tally.forget_unreached(strict=self.composite.strict)
            self.report = registration.report()
            if not self.reached and not any(row.rule == str(Stop()) for row in self.report.rows):
                raise AttributionError(
                    f"what is explained of {type(self.model).__name__} depends on no input by way of recorded "
                    f"operations: the model cuts them off (detach(), torch.no_grad(), .data), so there is no relevance"
                )
            self.ledger = None if self.books is None else self.books.frozen()
        return parts

    def rows(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what :meth:`one` found, as one part of an attribution."""
        dims = self.layer_dims.found()
        return {**one_after_the_other(found, self.given, dims), "dims": dims}

    @contextmanager
    def at_work(self, goals: Goals, *, floats: bool = False) -> Iterator[Registration]:
        """Register the composite, and the taps and recorders of inputs and layers, for these targets."""
        inside = asked_inside(goals, self._ask)
        self.called = self.model if inside is None else with_target(self.model, inside)
        with self.register(self.called) as registration, ExitStack() as stack:
            self.registration = registration
            registration.session.tally.strict = False  # checked when the explained output is known
            self.taps = stack.enter_context(self.make_taps(registration, floats))
            times_value = self.composite.formulation == GRADIENT and not self.as_it_is
            self.layer_dims = LayerDims(self.model, self.given.dims_of_relevance())
            recorder = Recorder(self.layers, registration, self.layer_dims, times_value=times_value)
            self.recorder = stack.enter_context(recorder)
            yield registration

    def one(self, batch: Inputs, goals: Goals) -> list[dict[str, Any]]:
        """Return what was found in one batch for each target.

        One forward pass, and as many backward passes as targets.
        """
        taps, recorder = self.taps, self.recorder
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
            if not is_traced():
                self.check_finite(batch, relevance)
            self.classes = chosen.classes if self.classes is None else self.classes
            found.append({
                "relevance": {name: on_cpu(r) for name, r in relevance.items()},
                "output": on_cpu(chosen.value),
                "target": chosen.target,
                "latent": recorder.found(),
            })  # fmt: skip
        return found

    def _ask(self, function: Callable[[Any], Tensor], output: Any) -> Tensor:
        """Return the value of a target function of the output, computed as a part of the model.

        An error of the function is reported as its own, not as one of the inputs.
        """
        try:
            value = called(function, output, self.count)
            carried = any(x.requires_grad for x in tensors_in(output))
            if carried and not (value.requires_grad or self.registration.session.stack.stopped):
                raise ValueError("what the target function returns does not depend on the model's output")
            return value
        except Exception as error:
            raise _TargetFailed(error) from error

    def _output(self, batch: Inputs, taps: Taps) -> Any:
        """Return the model's output, or the value of the target function of it."""
        self.count = batch.count
        try:
            return taps.call(self.called, batch)
        except _TargetFailed as failed:
            raise failed.error from None

    def _choose(self, batch: Inputs, goals: Goals, output: Any) -> list[Chosen]:
        times_output = self.composite.formulation == RELEVANCE and not self.as_it_is
        if any(goal.function is None for goal in goals.each):
            of_mask = (
                "explained at the one mask token of each sample" if batch.asked_at(self.model) is not None else None
            )
            for note in filter(None, (of_mask, said_of(output, batch.count))):
                self.registration.session.tally.remarks[note] = None
        try:
            return choose_each(goals, output, self.model, batch, times_output=times_output)
        except NotFiniteError as error:
            raise NotFiniteError(self._blame(batch, str(error))) from None

    def _backward(self, chosen: Chosen, taps: Taps, *, keep: bool) -> dict[str, Tensor]:
        """Return the relevance of each input; `keep` the graph for another backward pass."""
        leaves = taps.leaves
        slots: list[Tensor | None] = [None] * len(leaves)
        if chosen.seeds:
            outputs, seeds = zip(*chosen.seeds, strict=True)
            try:
                slots = self.slots(outputs, seeds, leaves, keep=keep)
            except RuntimeError as error:
                if "heckpoint" in str(error):
                    raise AttributionError(
                        "reentrant activation checkpointing cannot be explained; use use_reentrant=False"
                    ) from error
                if isinstance(error, (CompositeError, torch.OutOfMemoryError)):
                    raise
                known = any(word in str(error) for word in ("derivative", "no autograd formula"))
                known |= isinstance(error, NotImplementedError)
                hint = "; give the operation one by register_operation(operation, family, steps=...)" if known else ""
                kind, told = type(self.model).__name__, str(error) or type(error).__name__
                raise AttributionError(f"the backward pass of {kind} failed: {told}{hint}") from error
        self.reached |= any(slot is not None for slot in slots)
        return taps.by_input([self._relevance(leaf, slot) for leaf, slot in zip(leaves, slots, strict=True)])

    def slots(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], leaves: Sequence[Tensor], *, keep: bool
    ) -> list[Tensor | None]:
        """Return the slot of each leaf after a backward pass from these seeds; None where nothing arrives."""
        return list(torch.autograd.grad(outputs, leaves, seeds, allow_unused=True, retain_graph=keep))

    def _relevance(self, leaf: Tensor, slot: Tensor | None) -> Tensor:
        """Return the relevance of a leaf."""
        if slot is None:
            return torch.zeros_like(leaf, requires_grad=False)
        return slot if self.composite.formulation == RELEVANCE or self.as_it_is else leaf.detach() * slot

    def check_finite(self, batch: Inputs, relevance: Mapping[str, Tensor]) -> None:
        """Raise unless all of the relevance is finite.

        Raises:
            NotFiniteError: some is not; the first module is named whose output is not.
        """
        if not all(torch.isfinite(r).all() for r in relevance.values()):
            raise NotFiniteError(self._blame(batch, "the relevance is not finite"))

    def _blame(self, batch: Inputs, message: str) -> str:
        """Return the message, with the first module whose output is not finite."""
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


def with_bar(batches: Any, count: int) -> Any:
    """Yield the batches, with a bar on stderr that counts their samples."""
    tqdm = needed("tqdm", "progress=True needs tqdm: pip install tqdm").tqdm
    with tqdm(total=count, unit="sample", desc="attribute") as bar:
        for part, *batch in batches:
            yield part, *batch
            bar.update(part.stop - part.start)
