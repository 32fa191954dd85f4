"""Operations that ran under a rule, kept to be run again when their relevance has arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.saved_values import Kept, keep
from ..autograd.trees import map_tensors, tensors_in
from ..canonizers.stand_ins import copy_as_merged
from ..ledger.edge import Edge
from ..ledger.operation import Operation
from ..ledger.rows import by_sample
from ..ops import mutates
from ..rules import RELEVANCE, Call
from ..rules.absorption import is_block
from ..torch_internals import modes_off


class Before:
    """The arguments of an operation before it runs: values of its carriers, and of constants that it may overwrite."""

    def __init__(self, call: Call) -> None:
        self.values = [keep(x) for x in call.carriers]
        changes = call.function is not None and mutates(call.function, call.args, call.kwargs)
        constants = [t for t in tensors_in((call.args, call.kwargs)) if not t.requires_grad] if changes else []
        self.copies = {id(t): t.clone() for t in constants}


@dataclass(eq=False)
class Ran:
    """An operation that ran under a rule, with the values of its inputs and one output."""

    operation: Operation
    """Its rule, op, function and arguments are copied here, since it drops them after the run."""
    formulation: str
    before: Before
    output: Kept
    edge: Edge

    def __post_init__(self) -> None:
        done = self.operation
        self.rule, self.op, self.function = done.rule, done.op, done.function
        self.inputs = [edge for _, edge in done.carriers]
        self._holes = [torch.empty(0) for _ in done.carriers]
        places: dict[int, list[Tensor]] = {}
        for (x, _), hole in zip(done.carriers, self._holes, strict=True):
            places.setdefault(id(x), []).append(hole)  # one tensor may stand in several places

        def emptied(t: Tensor) -> Tensor:
            holes = places.get(id(t))
            if holes is None:
                return self.before.copies.get(id(t), t)
            return holes.pop(0) if len(holes) > 1 else holes[0]

        self._args = map_tensors(emptied, (done.args, done.kwargs))

    @property
    def z(self) -> Tensor:
        """The output."""
        return self.output.value

    @property
    def carriers(self) -> list[Tensor]:
        """The values of the inputs through which relevance flows, as leaves of their own."""
        return [kept.value.detach().requires_grad_() for kept in self.before.values]

    def call(self) -> Call:
        """Return the call that rules take."""
        carriers = self.carriers
        args, kwargs = self.filled(carriers)
        module = self.function if isinstance(self.function, nn.Module) else None
        module = self.twin() if is_block(module) else module
        call = Call(self.formulation, self.operation.path, args, kwargs, self.op, module, self.function, carriers)
        call.path, call.name = self.operation.path, self.operation.name
        call.values = [x.detach() for x in carriers]
        call.output, call.rerun = self.z, self.run
        return call

    def filled(self, carriers: Sequence[Tensor]) -> Any:
        """Return the arguments, positional and by keyword, with these tensors in the places of the carriers."""
        given = {id(hole): x for hole, x in zip(self._holes, carriers, strict=True)}
        return map_tensors(lambda t: given.get(id(t), t), self._args)

    def twin(self) -> nn.Module:
        """Return a copy of the module that has run, without hooks of ours, and with statistics of its own."""
        assert isinstance(self.function, nn.Module)
        return copy_as_merged(self.function)

    def run(self, carriers: Sequence[Tensor], biases: Mapping[str, Tensor] | None = None) -> Tensor:
        """Run the operation on other carriers, and a module with other biases too; return what z becomes."""
        args, kwargs = self.filled(carriers)
        with modes_off():  # this run is no part of the model
            if isinstance(self.function, nn.Module):
                output = torch.func.functional_call(self.twin(), dict(biases or {}), args, kwargs)
            else:
                if mutates(self.function, args, kwargs) or self.op is None or self.op.traits.running_statistics:
                    args, kwargs = map_tensors(torch.clone, (args, kwargs))
                output = self.function(*args, **kwargs)
        return next(t for t in tensors_in(output) if t.shape == self.z.shape and t.dtype == self.z.dtype)

    def by_sample(self, relevance: Tensor) -> Tensor:
        """Amounts of relevance at the output, by sample."""
        return by_sample(relevance.expand(self.z.shape), self.edge.layout, self.edge.samples)

    def relevance(self, slot: Tensor) -> Tensor:
        """Return the relevance in a slot of the output."""
        return slot if self.formulation == RELEVANCE else slot * self.z
