"""Programs: random graphs of steps, as data that can be printed, shortened, spelled otherwise, and made a model."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import activations, arithmetic, in_place, layers, merging, moves, norms, pooling, unseen  # noqa: F401 - they enter their steps
from .steps import ADDS, ELEMENTWISE, LENGTH, OFFSET, PIECEWISE, STEPS, WIDTH, Draw, Function

SAMPLES, CLASSES, WORDS = 3, 3, 20
CALLS = ("positional", "keywords", "dict", "list")
IDS = ("", "one table", "a table for each column", "looked up by a function")
APART = {
    "magnitude": ("norm", "complex"), "distance": ("cdist",), "root_mean_square": ("pooling", "lp_pool"),
    "gate": ("F.glu", "quotient"), "gate_part": ("div_",), "mixing_gate": ("difference", "lerp"),
}  # fmt: skip
"""Spellings apart where an operand is not 0 where its source is: lengths that join or transpose parts before they
square, which ends a chain; and gates that say what the signal is (a divisor is held, what is joined or subtracted from
is a signal), where a product of two gates has none."""
BY_GATES = ("quotient", "silu", "hardswish", "mish", "gelu", "gelu_tanh")
"""Activations that some spellings write as a product with a gate; of a gate that would be one of two gates."""
NORMS = ("layer_norm", "group_norm", "instance_norm")
_LARGEST, _SATURATES, _SPREAD = 1e3, 30.0, 1e-6


@dataclass(frozen=True)
class Line:
    """One step of a program: values are counted from the first input on."""

    name: str
    spelling: str
    operands: tuple[int, ...]
    seed: int

    def __str__(self) -> str:
        return f"{self.name}[{self.spelling}]({', '.join(map(str, self.operands))})"


@dataclass(frozen=True)
class Program:
    """Inputs, lines, and how the model is called; the last value, averaged over positions, makes the logits.

    ``ids`` says how integer ids are looked up that come as one more input after the `inputs` of floating point.
    """

    inputs: int
    lines: tuple[Line, ...]
    seed: int
    call: str = "positional"
    ids: str = ""

    def __str__(self) -> str:
        start = f"{self.inputs} inputs{self.ids and ' and ids, ' + self.ids}, {self.call}: "
        return start + "; ".join(f"v{self.values + i} = {line}" for i, line in enumerate(self.lines))

    @property
    def values(self) -> int:
        """How many values there are before the first line."""
        return self.inputs + bool(self.ids)

    def to_json(self) -> str:
        """The program in one line."""
        lines = [[line.name, line.spelling, line.operands, line.seed] for line in self.lines]
        return json.dumps([self.inputs, lines, self.seed, self.call, self.ids])

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Read what :meth:`to_json` wrote."""
        inputs, lines, seed, call, ids = json.loads(text)
        return cls(inputs, tuple(Line(n, s, tuple(o), d) for n, s, o, d in lines), seed, call, ids)

    def has(self, trait: str) -> bool:
        """Whether a step has this trait."""
        return any(trait in STEPS[line.name].traits for line in self.lines)

    def all_have(self, trait: str) -> bool:
        """Whether all steps have this trait."""
        return all(trait in STEPS[line.name].traits for line in self.lines)

    def sources(self) -> list[int]:
        """Of which value each value is an elementwise function."""
        found = list(range(self.values))
        for number, line in enumerate(self.lines, self.values):
            same = {found[operand] for operand in line.operands}
            alone = len(same) == 1 and ELEMENTWISE in STEPS[line.name].traits
            found.append(same.pop() if alone else number)
        return found

    def spelled(self, generator: random.Random, keep: Iterable[str] = ()) -> Program:
        """The same function in other spellings, but for the steps to keep.

        Steps with several operands that are functions of one value are kept: some spellings are such a function, and
        others (a contraction, a sum over a stack) are not seen to be one. So are functions of a log-softmax, whose
        powers are a softmax and no longer a step. Of what is not 0 where its source is, some spellings are told apart
        (`APART`).
        """
        sources, away, gates = self.sources(), self.away(), self.away(PIECEWISE, "unit_length")

        def kept(line: Line) -> bool:
            own = [sources[operand] for operand in line.operands]
            elementwise = ELEMENTWISE in STEPS[line.name].traits
            of_logarithm = any(self.made_by(operand) == "log_softmax" for operand in line.operands)
            of_gate = line.name in BY_GATES and any(away[operand] for operand in line.operands)
            return line.name in keep or of_gate or (elementwise and (len(set(own)) < len(own) or of_logarithm))

        def spelling(line: Line) -> str:
            known = sorted(STEPS[line.name].spellings(Draw(line.seed)))
            told = gates if "gate" in line.name else away  # a gate stays one where it is moved or scaled
            apart = APART.get(line.name, ()) if any(told[operand] for operand in line.operands) else ()
            return generator.choice([name for name in known if (name in apart) == (line.spelling in apart)])

        lines = [line if kept(line) else replace(line, spelling=spelling(line)) for line in self.lines]
        return replace(self, lines=tuple(lines))

    def made_by(self, value: int) -> str:
        """The name of the step that made a value; empty for inputs."""
        return self.lines[value - self.values].name if value >= self.values else ""

    def away(self, *through: str) -> list[bool]:
        """Which values are elementwise functions of another value that are not 0 where that is, or may be.

        Args:
            through: traits or names of steps that leave a value what it is, although they are not elementwise.
        """
        found = [False] * self.values
        for line in self.lines:
            traits = STEPS[line.name].traits
            offset = OFFSET in traits or ADDS in traits or line.name == "quotient"
            passes = not {ELEMENTWISE, *through}.isdisjoint({*traits, line.name})
            behind = passes and any(found[operand] for operand in line.operands)
            found.append(behind or (ELEMENTWISE in traits and offset))
        return found

    def without(self, place: int) -> Program:
        """The program less one line: what used its value takes its first operand instead."""
        dropped, gone = self.lines[place], self.values + place

        def moved(operand: int) -> int:
            operand = dropped.operands[0] if operand == gone else operand
            return operand - (operand > gone)

        lines = [
            replace(line, operands=tuple(map(moved, line.operands)))
            for number, line in enumerate(self.lines)
            if number != place
        ]
        return replace(self, lines=tuple(lines))

    def tensors(self) -> dict[str, Tensor]:
        """Inputs by name."""
        draw = Draw(self.seed)
        given = {f"x{i}": draw(SAMPLES, LENGTH, WIDTH, scale=1.0) for i in range(self.inputs)}
        if self.ids:
            given["input_ids"] = torch.randint(0, WORDS, (SAMPLES, LENGTH), generator=draw.generator)
        return given

    def arguments(self, tensors: dict[str, Tensor]) -> Any:
        """The tensors as :func:`lxt_compose.attribute` takes them for this way of calling."""
        if self.call == "keywords" or (self.call == "positional" and self.ids):
            return dict(tensors)
        if self.call == "positional":
            return tuple(tensors.values())
        return {"batch": dict(tensors) if self.call == "dict" else list(tensors.values())}


class Model(nn.Module):
    """A program as a module in float64; inputs are positional or keywords.

    Args:
        program: the program.
        instead: what stands for the steps that have it: :data:`HELD`, :data:`MERGED` or :data:`SEEN`.
        names: for these steps alone.
    """

    def __init__(self, program: Program, instead: str = "", names: Collection[str] | None = None) -> None:
        super().__init__()
        self.lines, self.inputs = program.lines, program.inputs
        draw = Draw(program.seed + 1)
        self.tables = nn.ModuleList()
        self.by_function = program.ids == "looked up by a function"
        for _ in range({"": 0, "a table for each column": LENGTH}.get(program.ids, 1)):
            self.tables.append(nn.Embedding(WORDS, WIDTH, _weight=draw(WORDS, WIDTH, scale=1.0)))
        makers = [
            STEPS[line.name].maker(
                Draw(line.seed), line.spelling, instead if names is None or line.name in names else ""
            )
            for line in program.lines
        ]
        self.steps = nn.ModuleList(make() for make in makers)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False, dtype=torch.float64)
        self.head.weight.data.copy_(draw(CLASSES, WIDTH))
        self.eval()

    def forward(
        self,
        x0: Tensor,
        x1: Tensor | None = None,
        x2: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [samples, classes]."""
        return self.head(self.values(x0, x1, x2, input_ids)[-1].mean(1))

    def values(self, x0: Tensor | None, x1: Tensor | None, x2: Tensor | None, input_ids: Tensor | None) -> list[Tensor]:
        """Inputs and what each line makes."""
        values = [x0, x1, x2][: self.inputs]  # which a symbolic trace can follow
        if self.tables:
            values.append(self.looked_up(input_ids))
        for line, step in zip(self.lines, self.steps, strict=True):
            operands = [values[place] for place in line.operands]
            values.append(step.run(*operands) if isinstance(step, Function) else step(*operands))
        return values

    def looked_up(self, ids: Tensor) -> Tensor:
        """The rows of ids."""
        if self.by_function:
            return nn.functional.embedding(ids, self.tables[0].weight)
        if len(self.tables) == 1:
            return self.tables[0](ids)
        return torch.stack([table(ids[:, column]) for column, table in enumerate(self.tables)], 1)


class TakesOne(nn.Module):
    """A model whose only argument is a dict or a list of its inputs."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, batch: Any) -> Tensor:
        """Logits."""
        given = batch if isinstance(batch, dict) else dict(zip(self.names, batch, strict=True))
        return self.model(**given)


def model_of(program: Program) -> nn.Module:
    """The model, called as the program says."""
    model = Model(program)
    return TakesOne(model, program.tensors()) if program.call in ("dict", "list") else model


def random_program(seed: int, *, steps: Iterable[str] | None = None) -> Program:
    """A program of 2 to 8 lines and what joins loose ends; all inputs are used, and values stay moderate.

    Args:
        seed: what it is made from.
        steps: the names of the steps to choose from; by default, in turn, all, those that add nothing, and the
            piecewise affine ones.
    """
    generator = random.Random(seed)
    kind = generator.choice(["all", "all", "nothing added", "piecewise"])
    known = sorted(STEPS if steps is None else steps)
    if kind == "nothing added":
        known = [name for name in known if ADDS not in STEPS[name].traits] or known
    elif kind == "piecewise":
        known = [name for name in known if PIECEWISE in STEPS[name].traits] or known
    while True:
        program = _drawn(generator, known)
        if _is_moderate(program):
            return program


def _drawn(generator: random.Random, known: list[str]) -> Program:
    inputs = generator.choice([1, 1, 1, 2, 3])
    ids = generator.choice(IDS) if generator.random() < 0.2 else ""
    call = generator.choice(CALLS) if generator.random() < 0.4 else "positional"
    values = inputs + bool(ids)
    loose, lines = list(range(values)), []

    def add(name: str) -> None:
        operands = []
        for _ in range(STEPS[name].operands):
            fresh = [value for value in loose if value not in operands]
            others = [value for value in range(values + len(lines)) if value not in operands] or operands
            operands.append(generator.choice(fresh if fresh and generator.random() < 0.75 else others))
        seed = generator.randrange(10**6)
        spelling = generator.choice(sorted(STEPS[name].spellings(Draw(seed))))
        loose[:] = [value for value in loose if value not in operands] + [values + len(lines)]
        lines.append(Line(name, spelling, tuple(operands), seed))

    for _ in range(generator.randint(2, 8)):
        add(generator.choice(known))
    joining = [name for name in ("add", "concatenate", "subtract", "larger") if name in known] or ["add"]
    while len(loose) > 1:
        add(generator.choice(joining))
    return Program(inputs, tuple(lines), generator.randrange(10**6), call, ids)


def _is_moderate(program: Program) -> bool:
    """Return whether logits are of a moderate size, and activations do not saturate to the last bit.

    ``1 + tanh(x)`` is exactly 0 for x below -20, where ``sigmoid(2 x)`` is not, and an output of 0 passes nothing on.
    What norms make of numbers that are all the same is rounding.
    """
    model, given = Model(program), program.tensors()
    with torch.no_grad():
        values = model.values(given["x0"], given.get("x1"), given.get("x2"), given.get("input_ids"))
        logits = model(**given)
    bent = [line for line in program.lines if ELEMENTWISE in (t := STEPS[line.name].traits) and PIECEWISE not in t]
    if any(float(values[operand].abs().max()) > _SATURATES for line in bent for operand in line.operands):
        return False
    for line in program.lines:
        x = values[line.operands[0]]
        if line.name in NORMS and min(float(x.var(-1).min()), float(x.var(1).min())) < _SPREAD:
            return False
    return (
        bool(logits.isfinite().all())
        and float(logits[:, 1].abs().min()) > 1e-3
        and float(logits.abs().max()) < _LARGEST
    )
