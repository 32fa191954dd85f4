"""Teacher-forced passes of a sequence, and the relevance of its tokens for many numbers of the output at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.goals import Goals
from ..attribution.inputs import Inputs
from ..attribution.logits import logits_of
from ..attribution.run import Run
from ..attribution.targets import Goal
from ..composite import Composite
from ..coverage.report import CoverageReport
from ..errors import AttributionError, NotFiniteError
from ..ledger import Ledger
from ..ledger import Recorder as Books
from ..rules import RELEVANCE
from .inside import Inside, Layers
from .memory import rows_that_fit
from .starts import Numbers, Start, Watch

LOGIT, LOG_PROBABILITY = "logit", "log_probability"
QUANTITIES = (LOGIT, LOG_PROBABILITY)


@dataclass(frozen=True)
class Wanted:
    """The numbers of one sequence that are explained.

    There is one number for each of K places: the logit or the log-probability of ``tokens[k]`` at ``positions[k]``,
    all different. ``weights`` [rows, K] say what is explained in each row: a sum of these numbers. Where they are no
    logits of places, ``pick`` makes them of the output, [K], with the logits [K, classes] that they were taken from.
    """

    positions: Tensor
    tokens: Tensor
    weights: Tensor
    quantity: str = LOGIT
    pick: Callable[[Any], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Found:
    """The results of one pass. ``scores`` holds [rows, tokens] by the names of the inputs, on the CPU.

    ``values`` [K] are the numbers, ``logits`` [K, classes] those of all tokens at the same places. ``ran`` says how the
    passes ran.
    """

    scores: dict[str, Tensor]
    values: Tensor
    logits: Tensor
    report: CoverageReport
    ledger: Ledger | None
    ran: str
    layers: Layers | None = None


class Forced(Run):
    """Explains many numbers of the output for one sequence.

    One forward pass, and backward passes of many cotangents each.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        given: Inputs,
        wanted: Wanted,
        cells: Mapping[str, Callable[[Tensor], Tensor]],
        inside: Inside | None = None,
    ) -> None:
        super().__init__(model, composite, given, [])
        self.wanted, self.cells, self.inside = wanted, cells, inside

    def find(self, chunk: int | None, budget: int | None, *, ledger: bool) -> Found:
        """Return the relevance of each token, row by row.

        Args:
            chunk: how many rows to run at a time; None is as many as fit into the budget.
            budget: bytes that the cotangents of a chunk may take; None is what :func:`rows_that_fit` takes.
            ledger: whether to record a ledger; then rows run one by one.

        Raises:
            NotFiniteError: the output or the relevance is not finite.
            AttributionError: the model failed, or cannot be explained with such inputs.
        """
        with (
            Watch(self.model) as watch,
            self.at_work(Goals((Goal(function=self._values),))) as registration,
            registration.ledger() if ledger else nullcontext() as books,
        ):
            with self.inside or nullcontext():
                values = self._output(self.given, self.taps)
            if not torch.isfinite(values).all():
                raise NotFiniteError(
                    self._blame(self.given, f"what is to be explained is not finite: {_shown(values)}")
                )
            if not values.requires_grad:
                raise AttributionError(self._why_nothing())
            if chunk is None:
                chunk = rows_that_fit(self.model, self.given, values, budget)
            rows, ran = (
                self._row_by_row(values, "a ledger reads one row at a time")
                if ledger
                else self._batched(watch, values, chunk)
            )
            registration.session.tally.forget_unreached(strict=self.composite.strict)
            report = registration.report()
            kept = None if books is None else books.frozen()
        layers = None if self.inside is None else self.inside.gathered(rows)
        scores = {name: torch.stack([row[name] for row in rows]) for name in self.given.all if name in rows[0]}
        return Found(scores, values.detach().cpu(), self._logits, report, kept, ran, layers)

    def _why_nothing(self) -> str:
        name = type(self.model).__name__
        if self.wanted.quantity == LOG_PROBABILITY:
            return (
                f"the composite stops relevance at the softmax, so no log-probability of {name} can be explained; "
                f"explain logits (of='logit'), or take another composite, such as 'attnlrp'"
            )
        return f"the logits of {name} depend on no input by way of recorded operations"

    # ---- the numbers -------------------------------------------------------------------------------------------------

    def _ask(self, function: Callable[[Any], Tensor], output: Any) -> Tensor:
        """Return the function's values for the output: several numbers, for the one sample."""
        return function(output)

    def _values(self, output: Any) -> Tensor:
        """Return the numbers that are explained, [K]; it runs under the rules, as a part of the model."""
        if self.wanted.pick is not None:
            values, logits = self.wanted.pick(output)
            self._logits = logits.detach().float().cpu()
            return values
        logits = logits_of(output)
        # Some models give the logits of the last positions alone.
        read = int(next(iter(self.given.ids.values())).shape[-1]) if self.given.ids else 0
        first = logits.shape[1] if self.given.has_decoder or not read else read
        places = (self.wanted.positions - (first - logits.shape[1])).to(logits.device)
        tokens = self.wanted.tokens.to(logits.device)
        self._places, self._length = places, logits.shape[1]
        self._logits = logits.detach()[0, places].float().cpu()
        if self.wanted.quantity == LOGIT:
            return logits[0, places, tokens]
        return logits[0, places].log_softmax(-1)[torch.arange(len(tokens), device=logits.device), tokens]

    # ---- backward passes ---------------------------------------------------------------------------------------------

    def _starts(self, values: Tensor) -> Tensor:
        """Return the slots that each row starts with at the numbers, [rows, K]."""
        weights = self.wanted.weights.to(values)
        return weights * values.detach() if self.composite.formulation == RELEVANCE else weights

    def _row_by_row(self, values: Tensor, why: str) -> tuple[list[dict[str, Tensor]], str]:
        """Return the scores of each row, from a backward pass each."""
        rows, starts = [], self._starts(values)
        for turn, start in enumerate(starts):
            if turn and isinstance(self.registration.session.observer, Books):
                self.registration.session.observer.turn()
            rows.append(self._scores(self._grads((values,), (start,), batched=False)))
        return rows, f"row by row: {why}"

    def _batched(self, watch: Watch, values: Tensor, chunk: int) -> tuple[list[dict[str, Tensor]], str]:
        """Return the scores of each row, from backward passes of several rows each.

        The first row is also computed alone. If the two differ, or an operation cannot take several cotangents, rows
        run in another way.
        """
        starts = self._starts(values)
        if len(starts) == 1 or chunk == 1:
            return self._row_by_row(values, "one row at a time was asked for" if len(starts) > 1 else "there is one")
        alone, why = self._scores(self._grads((values,), (starts[0],), batched=False)), ""
        for begin in self._begin(watch, values, starts):
            try:
                rows = self._in_chunks(begin, chunk, alone)
            except RuntimeError as error:  # an operation without a batching rule
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                why = str(error).strip().splitlines()[0][:200]
                continue
            if rows is not None:
                return rows, f"{min(chunk, len(starts))} rows at a time"
            why = "several rows at a time gave other relevance"
        return self._row_by_row(values, why)

    def _begin(self, watch: Watch, values: Tensor, starts: Tensor) -> Iterator[Start]:
        """Yield where backward passes can begin: inside the last block, before the head, at the numbers themselves."""
        if self.wanted.pick is None:
            ones = values.detach() if self.composite.formulation == RELEVANCE else torch.ones_like(values)
            numbers = Numbers(values, ones, self.wanted.weights.to(values))
            if self.inside is None and not self.given.has_decoder:
                yield from watch.in_last_block(numbers, self.wanted.positions.to(values.device))
            yield from watch.at_head(numbers, self._places, self._length)
        yield Start((values,), lambda part: (starts[part],))

    def _in_chunks(self, begin: Start, chunk: int, alone: dict[str, Tensor]) -> list[dict[str, Tensor]] | None:
        """Return the scores of all rows, a chunk at a time; None if the first row differs from it alone."""
        rows: list[dict[str, Tensor]] = []
        while len(rows) < len(self.wanted.weights):
            part = slice(len(rows), len(rows) + chunk)
            try:
                grads = self._grads(begin.tensors, begin.seeds(part), batched=True)
            except torch.OutOfMemoryError:
                if chunk == 1:
                    raise
                chunk = (chunk + 1) // 2
                continue
            rows += [self._scores(each) for each in zip(*grads, strict=True)]
            if part.start == 0 and not all(alike(rows[0][name], alone[name]) for name in alone):
                return None
        return rows

    @property
    def _read_at(self) -> list[Tensor]:
        """The tensors at which relevance is read: carriers of the inputs, and tensors inside the model."""
        return [*self.taps.leaves, *(self.inside.tensors if self.inside is not None else ())]

    def _grads(self, at: Sequence[Tensor], seeds: Sequence[Tensor], *, batched: bool) -> Sequence[Tensor]:
        """Return the slot of each leaf; for several rows at a time if batched."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*batching rule.*")
            found = torch.autograd.grad(
                at, self._read_at, seeds, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        count = (len(seeds[0]),) if batched else ()
        self.reached |= any(slot is not None for slot in found)
        return [
            x.new_zeros(*count, *x.shape) if slot is None else slot
            for slot, x in zip(found, self._read_at, strict=True)
        ]

    def _scores(self, slots: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the relevance of each token and place, by the names of the inputs, summed over features.

        Raises:
            NotFiniteError: some is not finite.
        """
        leaves = self.taps.leaves
        relevance = self.taps.by_input([self._relevance(leaf, slot) for leaf, slot in zip(leaves, slots, strict=False)])
        self.check_finite(self.given, relevance)
        found = {name: self._on_places(name, r).detach().cpu() for name, r in relevance.items()}
        if self.inside is None:
            return found
        return found | self.inside.relevance(slots[len(leaves) :], times_value=self.composite.formulation != RELEVANCE)

    def _on_places(self, name: str, relevance: Tensor) -> Tensor:
        """Return the relevance of the places of an input, [places]."""
        if name in self.cells:
            return self.cells[name](relevance)
        return (relevance if relevance.dim() == len(self.given.dims[name]) else relevance.sum(-1)).flatten()


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two computations of the same relevance agree, up to rounding."""
    scale = float(b.abs().max()) + float(b.abs().mean()) + 1e-30
    return bool((a - b).abs().max() <= torch.finfo(b.dtype).eps ** 0.5 * scale)


def _shown(values: Tensor) -> list[float]:
    return [float(value) for value in values.detach().flatten()[:5]]
