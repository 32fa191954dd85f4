"""What must hold for every model and composite; each breach is a finding, named by its oracle.

    formulations   the relevance and the gradient formulation agree elementwise, where epsilon is next to 0
    ledger         seed = inputs + absorbed, and the ledger's inputs are the sums of the relevance
    constant       nothing is booked as a constant where the model adds none
    zero           a model that depends on its input does not get relevance 0 everywhere
    batch          a sample gets the same relevance alone and in a batch
    spelling       the same function gets the same relevance however it is written
    bounded        the sum of |R| is below 1e6 times the output
    gradient       piecewise affine models get input x gradient
    trace          model, flags and hooks are as before; the forward pass is bit-identical
    merged         merging batch norms gives what the model with merged weights gets
    complete       a complete report means that nothing is booked as uncovered; what is out of sight is named
    attribute      attribute() gives what a registration gives, for each way to pass the inputs; ids get theirs
    crash          nothing raises but what is documented

Elementwise comparisons allow what the relevance itself moves by when the input is changed in its last digits.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lxt_compose import Composite, RuleError, attribute

from .composites import Choice
from .programs import Model, Program, model_of
from .steps import ADDS, HELD, HOMOGENEOUS, MERGED, PIECEWISE, SEEN, SOFTMAX, STEPS, UNSEEN
from .traces import fingerprint

LARGEST = 1e6
TOLERANCE = 1e-6
KEPT = {
    "cp_lrp": ("product", "product_of_three", "matmul", "quotient"),  # it knows gates in products alone, not in einsum
    "relp": ("quotient",),  # where the dividend is a gate, and one over the divisor one more
}
UNMERGED = ("functions", "functional")
"""Spellings of steps with batch norms that are no modules, which stay as they are."""
GATES = ("gate", "swiglu", "mixing_gate", "gate_part", "quotient", "fused_quotient")
"""Steps with a factor, or a divisor, that is no gate, or not held, where what it scales is a constant."""


@dataclass
class Found:
    """The findings on one program, as pairs of oracle and text; how much relevance grew, by formulation."""

    findings: list[tuple[str, str]] = field(default_factory=list)
    growth: float = 0.0
    refused: bool = False

    def add(self, oracle: str, text: str) -> None:
        """Note a finding."""
        self.findings.append((oracle, text))


@dataclass
class Run:
    """What one backward pass gave: logits, relevance of each float input, ledger and report."""

    logits: Tensor
    relevance: dict[str, Tensor]
    ledger: Any
    report: Any

    @property
    def flat(self) -> Tensor:
        """The relevance of all inputs, sample by sample."""
        return torch.cat([r.flatten(1) for r in self.relevance.values()], 1)


def explain(model: nn.Module, tensors: dict[str, Tensor], composite: Composite, *, ledger: bool = False) -> Run:
    """Explain the logits of class 1."""
    leaves = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in tensors.items()}
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    with composite.register(model) as registration:
        if ledger:
            with registration.ledger() as books:
                logits = model(**leaves)
        else:
            books, logits = None, model(**leaves)
        chosen, gradient = logits[:, 1], composite.formulation == "gradient"
        start = torch.ones_like(chosen) if gradient else chosen.detach()
        slots = torch.autograd.grad(chosen, list(wanted.values()), start, allow_unused=True, materialize_grads=True)
        report = registration.report()
        frozen = None if books is None else books.frozen()
    found = {
        name: x.detach() * slot if gradient else slot for (name, x), slot in zip(wanted.items(), slots, strict=True)
    }
    return Run(logits.detach(), found, frozen, report)


def differs(a: Tensor, b: Tensor, moved: Callable[[], Tensor], tolerance: float = TOLERANCE) -> float:
    """By how much more than rounding explains two relevances differ, as a part of the largest; 0 if not at all."""
    size = max(float(b.abs().max()), 1e-12)
    off = float((a - b).abs().max())
    if off <= tolerance * size:
        return 0.0
    return off / size if not off <= 1e4 * float((moved() - b).abs().max()) else 0.0


def nudged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs changed in their last digits."""
    signs = torch.Generator().manual_seed(0)
    return {
        name: x * (1 + 1e-13 * torch.randn(x.shape, generator=signs, dtype=x.dtype)) if x.is_floating_point() else x
        for name, x in tensors.items()
    }


def examine(program: Program, choice: Choice, *, spellings: int = 2) -> Found:
    """Put one program under one composite to all tests."""
    found = Found()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            runs = {f: _examine_one(program, choice, f, found) for f in choice.formulations}
            first = choice.formulations[0]
            if not program.has(UNSEEN):
                _compare(program, choice, first, runs, found, spellings)
                _through_attribute(program, choice, runs[first], found)
        except RuleError:  # a rule that was put on what it is not for says so
            found.refused = True
        except Exception as error:  # whatever is raised is a finding
            found.add("crash", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return found


def _examine_one(program: Program, choice: Choice, formulation: str, found: Found) -> Run:
    """One formulation: trace, ledger, bounds."""
    model, tensors, composite = Model(program), program.tensors(), choice.make(formulation)
    leaves = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in tensors.items()}
    plain = model(**leaves).detach()
    before = fingerprint(model)
    run = explain(model, tensors, composite, ledger=True)
    changed = [str(key) for key, value in fingerprint(model).items() if before.get(key) != value]
    if changed:
        found.add("trace", f"{formulation}: changed: {', '.join(changed[:4])}")
    if not torch.equal(plain, run.logits) and not choice.merges:
        found.add("trace", f"{formulation}: forward values differ by {float((plain - run.logits).abs().max()):.1e}")
    size = float(run.flat.abs().sum() / run.logits[:, 1].abs().sum())
    found.growth = max(found.growth, size)
    if not size < LARGEST:
        found.add("bounded", f"{formulation}: sum |R| is {size:.1e} times the output")
    if size == 0 and not _may_be_zero(program, choice) and _by_what_passes(program, choice).abs().max() > 1e-6:
        found.add("zero", f"{formulation}: all relevance is 0, the output is {run.logits[:, 1].tolist()}")
    _check_books(program, choice, formulation, run, found)
    return run


def _stops_softmax(program: Program, choice: Choice) -> bool:
    return choice.text in ("cp_lrp", "relp") and program.has(SOFTMAX)


def _may_be_zero(program: Program, choice: Choice) -> bool:
    """Where there may be no positive contributions, or nothing but gates of a constant."""
    one_sign = "AlphaBeta" in choice.text or "Plus" in choice.text or "plus" in choice.text or "alpha2" in choice.text
    return one_sign or choice.text == "excitation_backprop" or bool(program.ids)


def _by_what_passes(program: Program, choice: Choice) -> Tensor:
    """Input times the gradient of the model in which divisors are constants, and softmax too where a preset says so."""
    stops = _stops_softmax(program, choice)
    held = {line.name for line in program.lines if stops or SOFTMAX not in STEPS[line.name].traits}
    return _input_times_gradient(program, held)


def _check_books(program: Program, choice: Choice, formulation: str, run: Run, found: Found) -> None:
    """The ledger closes, agrees with the relevance, and hides nothing; what is out of sight is named, or right."""
    if program.has(UNSEEN):
        if run.report.complete and not (choice.merges or choice.serves_zeros):
            seen = explain(Model(program, SEEN), program.tensors(), choice.make(formulation))
            off = differs(run.flat, seen.flat, lambda: seen.flat)
            if off:
                found.add(
                    "complete", f"{formulation}: the report is complete, but what is out of sight is off by {off}"
                )
        return
    ledger, chosen = run.ledger, run.logits[:, 1]
    sums = run.flat.sum(1)
    scale = float(chosen.abs().max() + run.flat.abs().sum(1).max())
    scale += sum(float(e.entered.total.__abs__()) for e in ledger.entries) * 1e-3
    limit = 1e-8 * scale
    absorbed = sum(ledger.absorbed.values(), torch.zeros_like(ledger.seed))
    gap, apart = ledger.seed - ledger.inputs - absorbed, len(ledger.seed) == len(chosen)
    for name, booked, right in (("seed", ledger.seed, chosen), ("inputs", ledger.inputs, sums)):
        off = booked - right if apart else booked.sum() - right.sum()
        if float(off.abs().max()) > limit:  # it is NaN where samples cannot be told apart, as documented
            found.add("ledger", f"{formulation}: {name} {booked.tolist()}, but relevance is {right.tolist()}")
    if float(gap.abs().max()) > limit or not ledger.unaccounted <= limit:
        found.add("ledger", f"{formulation}: unaccounted {ledger.unaccounted:.2e} of {float(chosen.abs().max()):.2e}")
    if run.report.complete and not ledger.check.complete:
        found.add("complete", f"{formulation}: the report is complete, the graph check is not: {ledger.check.rows[:2]}")
    uncovered = ledger.absorbed.get("uncovered")
    if run.report.complete and uncovered is not None and float(uncovered.abs().max()) > limit:
        found.add("complete", f"{formulation}: complete, but uncovered absorbs {uncovered.tolist()}")
    if not run.report.complete and not (program.ids or float(run.flat.abs().max()) == 0):
        rows = sorted({f"{row.target} ({row.status.value})" for row in run.report.uncovered})
        found.add("complete", f"{formulation}: not covered: {', '.join(rows) or run.report.notes}")
    # a rule that gives relevance to zeros gives it to those too that padding and masks put in
    entries = [e for e in ledger.entries if not (choice.serves_zeros and e.status == "exact")]
    amounts = [e.absorbed["constant"] for e in entries if "constant" in e.absorbed]
    constant = max((abs(a.total) if a.shared else float(a.by_sample.abs().max()) for a in amounts), default=0.0)
    if not (program.has(ADDS) or program.ids) and not constant <= limit:
        found.add("constant", f"{formulation}: nothing is added, but constants absorb {constant:.2e}")


def _compare(program: Program, choice: Choice, first: str, runs: dict[str, Run], found: Found, spellings: int) -> None:
    """Other formulation, other spellings, one by one, plain gradient."""
    tensors, base = program.tensors(), runs[first].flat

    def moved(formulation: str = first) -> Tensor:
        return explain(Model(program), nudged(tensors), choice.make(formulation)).flat

    if len(runs) == 2:
        off = differs(
            runs["relevance"].flat, base, lambda: moved("relevance") - runs["relevance"].flat + base, choice.tolerance
        )
        if off:
            found.add("formulations", f"relevance and gradient differ by {off:.1e} of the largest")
    single = {name: x[:1] for name, x in tensors.items()}
    off = differs(explain(Model(program), single, choice.make(first)).flat, base[:1], lambda: moved()[:1])
    if off:
        found.add("batch", f"{first}: sample 0 alone differs by {off:.1e} from sample 0 of {len(base)}")
    norms = [line for line in program.lines if line.spelling in UNMERGED]
    if choice.merges and not norms and not any("not merged" in note for note in runs[first].report.notes):
        off = differs(explain(Model(program, MERGED), tensors, choice.unmerged(first)).flat, base, moved)
        if off:
            found.add("merged", f"{first}: differs by {off:.1e} from the model with merged weights")
    if choice.is_gradient and _is_gradient(program):
        wanted = _input_times_gradient(program)
        off = differs(wanted, base, moved)
        if off and wanted.isfinite().all():  # a length of 0 has no gradient
            found.add("gradient", f"{first}: differs by {off:.1e} from input x gradient")
    generator = random.Random(program.seed)
    # a gate of a constant is an activation like any other
    gates = any(line.name in GATES for line in program.lines) and (program.ids or _stops_softmax(program, choice))
    for _ in range(spellings if choice.by_function and not gates else 0):
        other = program.spelled(generator, KEPT.get(choice.text, ()))
        run = explain(Model(other), tensors, choice.make(first))
        if not torch.allclose(run.logits, runs[first].logits, 1e-9, 1e-9):
            continue  # another function: a quotient of lengths that are 0
        off = differs(run.flat, base, moved)
        if off:
            found.add("spelling", f"{first}: differs by {off:.1e} from {other}")
            break


def _is_gradient(program: Program) -> bool:
    """Return whether a program is made of steps whose relevance is input x gradient."""
    known = [STEPS[line.name].traits for line in program.lines]
    lengths = any(HOMOGENEOUS in traits for traits in known)
    return all(traits & {PIECEWISE, HOMOGENEOUS} for traits in known) and not (lengths and any(program.away()))


def _input_times_gradient(program: Program, held: Collection[str] = ()) -> Tensor:
    leaves = {name: x.requires_grad_(x.is_floating_point()) for name, x in program.tensors().items()}
    wanted = [x for x in leaves.values() if x.requires_grad]
    logit = Model(program, HELD, held)(**leaves)[:, 1].sum()
    if not logit.requires_grad:
        return torch.zeros(1, 1)
    gradients = torch.autograd.grad(logit, wanted, allow_unused=True, materialize_grads=True)
    return torch.cat([(x.detach() * g).flatten(1) for x, g in zip(wanted, gradients, strict=True)], 1)


def _through_attribute(program: Program, choice: Choice, run: Run, found: Found) -> None:
    """``attribute()`` with the inputs as the program passes them; integer ids must get their relevance."""
    composite = choice.make(choice.formulations[0])
    model, tensors = model_of(program), program.tensors()
    result = attribute(model, program.arguments(tensors), target=1, composite=composite, ledger=True)
    got = list(result.relevances.items())
    floats = [(name, r) for name, r in got if not name.endswith("input_ids")]
    if len(got) != len(tensors):
        if not any("input_ids" in note for note in result.report.notes):
            found.add("attribute", f"inputs {list(tensors)}, relevance of {[name for name, _ in got]}, and no note")
        return
    flat = torch.cat([r.flatten(1) for _, r in floats], 1)
    picture = composite.picture == "slot"
    if (
        not picture
        and not program.ids
        and not (flat - run.flat).abs().max() <= 1e-9 * max(1.0, float(run.flat.abs().max()))
    ):
        found.add("attribute", f"differs from the registration by {float((flat - run.flat).abs().max()):.1e}")
    sums = sum(r.flatten(1).sum(1) for _, r in got)
    limit = 1e-8 * float(sum(r.abs().sum() for _, r in got) + result.output.abs().max())
    booked = result.ledger.inputs
    apart = len(booked) == len(sums)
    if float((booked - sums if apart else booked.sum() - sums.sum()).abs().max()) > limit:
        found.add("attribute", f"the ledger's inputs {result.ledger.inputs.tolist()}, relevance {sums.tolist()}")
    constant = result.ledger.absorbed.get("constant")
    if program.ids and not program.has(ADDS) and constant is not None and float(constant.abs().max()) > limit:
        found.add("attribute", f"ids are inputs, but constants absorb {constant.tolist()}")
