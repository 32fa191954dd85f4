"""Rules, immutable values that say how relevance passes through one operation, and calls of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, ClassVar

from torch import Tensor, nn

from ..autograd.marks import History, history_of
from ..autograd.trees import PLAIN, map_tensors, tensors_in
from ..errors import RuleError, place
from ..ops import Family, Op
from .again import Again
from .linear_layers.weight_parts import Parts
from .spelling import written

RELEVANCE = "relevance"
GRADIENT = "gradient"
Amount = Callable[[Tensor], Tensor]
"""From the slot of an output to an amount of its relevance, in the same shape."""
FORMULATIONS = (RELEVANCE, GRADIENT)


@dataclass(slots=True)
class OpCall:
    """One call of one operation: a module with a rule, or a function under the function mode.

    Made once, right before the operation runs. Rules read it, and may keep in it what they need afterwards.
    """

    formulation: str
    label: str
    """For errors: ``"'encoder.fc1' (Linear)"``; if empty, :attr:`where` is made of name and path."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    op: Op | None = None
    module: nn.Module | None = None
    function: Callable[..., Any] | None = None
    carriers: list[Tensor] = field(default_factory=list)
    """The inputs through which relevance flows, as the caller passed them, in order of appearance."""
    inputs: list[Tensor] = field(default_factory=list)
    """What the operation is given in place of the carriers: the same values, behind another autograd graph."""
    values: list[Tensor] = field(default_factory=list)
    """The carriers' values, also after the operation has changed a carrier in place."""
    versions: list[int] = field(default_factory=list)
    parts: Parts | None = None
    """Where the registration keeps parts of weights."""
    kept: Any = None
    """What a rule keeps from :meth:`Rule.enter` to :meth:`Rule.leave`."""
    target: Tensor | None = None
    """The argument that a function writes its result into."""
    given: Any = None
    """The arguments that a module was given, kept where it may change lists and dicts among them."""
    given_tensors: list[int] = field(default_factory=list)
    """The identities of the tensors in :attr:`given` before the module ran."""
    path: str = ""
    """The dotted path of the module that runs."""
    name: str = ""
    """The name of the operation."""
    rule: Rule | None = None
    """The rule that is applied to the call."""
    histories: list[History] = field(default_factory=list)
    """The cache of :attr:`known`, filled before the operation runs, which may change a carrier in place."""
    by_degree: bool = False
    """Whether a factor counts by its degree, the number of factors that it holds itself: so under default rules."""
    shares: list[float] | None = None
    """The share of each carrier, where a rule gives it one."""
    idle: bool | None = None
    """The result of :meth:`Rule.idle`, once it was called."""
    curve: Any = None
    """What is known of the elementwise function, once it was looked up."""
    edges: list[Any] | None = None
    """The edge of the autograd graph that each carrier stands for, where a rule scales what is sent there."""
    output: Tensor | None = None
    """The output of the operation, for :meth:`Rule.absorbed`."""
    rerun: Callable[..., Tensor] | None = None
    """Runs the operation on other carriers; given in a conservation check alone, where time does not matter."""

    @property
    def known(self) -> list[History]:
        """What is known of the history of each carrier."""
        if len(self.histories) != len(self.carriers):
            self.histories = [history_of(x) for x in self.carriers]
        return self.histories

    @property
    def degrees(self) -> list[float]:
        """The number of factors that each carrier counts as where relevance is shared."""
        return [known.degree for known in self.known] if self.by_degree else [1] * len(self.carriers)

    @property
    def where(self) -> str:
        """For errors: ``"'encoder.fc1' (Linear)"`` or ``"add in 'encoder'"``."""
        return self.label or f"{self.name} in {place(self.path)}"

    @property
    def relevance(self) -> bool:
        """Whether slots carry relevance (else: relevance divided by the tensor)."""
        return self.formulation == RELEVANCE

    @property
    def z(self) -> Tensor:
        """The output."""
        assert self.output is not None
        return self.output

    def relevance_in(self, slot: Tensor) -> Tensor:
        """Return the relevance in a slot of the output."""
        return slot if self.relevance else slot * self.z.detach()

    def run_again(self, carriers: Sequence[Tensor], biases: Mapping[str, Tensor] | None = None) -> Tensor:
        """Run the operation on other carriers, and a module with other biases too; needs `rerun`."""
        assert self.rerun is not None
        return self.rerun(carriers, biases)

    def take(self, carriers: list[Tensor]) -> None:
        """Make these the carriers, on which the operation runs as they are."""
        self.carriers, self.inputs, self.values = carriers, list(carriers), list(carriers)
        self.versions = [x._version for x in carriers]

    def only_carrier(self, rule: Rule) -> int:
        """Return the place of the single carrier, for rules that know one input.

        Raises:
            RuleError: there are several.
        """
        if len(self.carriers) != 1:
            raise RuleError(
                f"{rule} passes relevance to one input, but {self.where} got {len(self.carriers)} inputs that carry "
                f"relevance; use Uniform() or Epsilon(), which share it among them"
            )
        return 0


Call = OpCall


def is_carrier(value: Any) -> bool:
    """Return whether relevance flows through this value: a tensor that requires grad."""
    return isinstance(value, Tensor) and value.requires_grad


def find_carriers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the carriers among the arguments of a call, also inside containers."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                found.append(value)
        elif type(value) in PLAIN:  # what most arguments are that are no tensors
            continue
        else:
            found += [tensor for tensor in tensors_in(value) if tensor.requires_grad]
    return found


def exchange(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with its inputs in the places of the carriers."""
    if all(map(is_, call.inputs, call.carriers)):
        return call.args, call.kwargs
    inputs = iter(call.inputs)

    def swap(tensor: Tensor) -> Tensor:
        return next(inputs) if tensor.requires_grad else tensor

    given: list[Any] = []
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, Tensor):
            given.append(next(inputs) if value.requires_grad else value)
        else:
            given.append(value if type(value) in PLAIN else map_tensors(swap, value))
    count = len(call.args)
    return tuple(given[:count]), dict(zip(call.kwargs, given[count:], strict=True))


register_alone: list[Callable[[Rule, nn.Module, str], Any]] = []
"""The function behind :meth:`Rule.register`. The file `composite` adds it, since rules cannot import what imports
them."""


@dataclass(frozen=True)
class Rule:
    """Base of all rules: a frozen dataclass, comparable and printable; the state of one call is in its :class:`OpCall`.

    A subclass gives :meth:`enter` and :meth:`leave`, which wrap what goes into an operation and what comes out
    of it. Neither may change a value: forward results stay bit-identical to the model's own.
    """

    formulations: ClassVar[tuple[str, ...]] = FORMULATIONS
    """The formulations in which the rule works; the first is named in the error for another one."""
    knows_complex: ClassVar[bool] = False
    families: ClassVar[frozenset[Family]] = frozenset()
    """The families of operations that the rule serves; empty if all. On a module it acts on such operations inside."""
    shares_streams: ClassVar[bool] = False
    """Whether the rule is for operations on several tensors. It gives way to the rule for functions where the
    operation is a step of a function of one tensor."""

    def check_formulation(self, formulation: str) -> None:
        """Raise :class:`RuleError` if the rule does not work in this formulation."""
        if formulation not in self.formulations:
            raise RuleError(
                f"{self} needs formulation={self.formulations[0]!r}, not {formulation!r}, which the composite has; "
                f"change that, or take another rule, such as Epsilon()"
            )

    def check_module(self, module: nn.Module, path: str, formulation: str) -> None:
        """Raise :class:`RuleError` if the rule cannot serve this module in this formulation."""

    def enter(self, call: Call, place: int) -> Tensor:
        """Return what the operation gets instead of carrier number `place`."""
        raise NotImplementedError(f"{type(self).__name__} needs a method enter(call, place), which gives a tensor")

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs that the rest of the model uses, wrapped such that relevance flows back by the rule."""
        raise NotImplementedError(f"{type(self).__name__} needs a method leave(call, outputs), which gives a list")

    def absorbed(self, call: OpCall) -> dict[str, Amount]:
        """Return what the rule keeps of the relevance of ``call.output``, by kind, from its own equation.

        The conservation check compares the relevance that arrives with the sum of what is handed on and these amounts;
        the ledger books them. By default a rule hands everything on and keeps nothing. Each amount is a function of the
        output's slot; ``call.relevance_in(slot)`` is the relevance in it.

        Args:
            call: the call, after it has run, with the values of its carriers and its output. In a check it can be run
                again (:meth:`OpCall.run_again`); in a ledger, where ``call.rerun`` is None, kinds that need that are
                left out, and the ledger books what is missing under the kind of :meth:`rest`.
        """
        return {}

    def rest(self, call: OpCall) -> str:
        """Return the kind under which a ledger books what the operation keeps beyond :meth:`absorbed`."""
        return "rule"

    def register(self, module: nn.Module, *, formulation: str = RELEVANCE) -> Any:
        """Register this rule alone on one module: shorthand for a composite with that one binding.

        Args:
            module: the module, as a model of its own.
            formulation: see :class:`Composite`.

        Returns:
            The `Registration`, a context manager and a handle with ``remove()`` and ``report()``.
        """
        return register_alone[0](self, module, formulation)

    def serves(self, op: Op, carriers: int) -> bool:
        """Return whether a rule on a module is applied to this operation inside it, with this number of carriers."""
        return op.family in self.families

    def takes_whole(self, module: nn.Module) -> bool:
        """Return whether the rule takes this module as one operation if it serves none of the operations inside."""
        return False

    def __str__(self) -> str:
        """Return the rule as one would write it.

        Arguments that are seldom given are left out at their defaults.
        """
        return written(self)

    def idle(self, call: Call) -> bool:
        """Return whether the rule gives the operation's own gradient, so that nothing has to be done."""
        return False

    def again(self, call: Call, output: Tensor) -> Again | None:
        """Return what the rule does to all calls of this form, on carriers of which the same is known.

        None, the default, if :meth:`enter` and :meth:`leave` have to be asked each time. It is not inherited.

        Args:
            call: such a call, which has run.
            output: its output, as :meth:`leave` gave it.
        """
        return None


def only_output(rule: Rule, call: Call, outputs: list[Tensor]) -> Tensor:
    """Return the single output of a call, for rules that know one.

    Raises:
        RuleError: there are several, or none.
    """
    if len(outputs) != 1:
        raise RuleError(
            f"{rule} knows operations with one output, but {call.where} has {len(outputs)}; "
            f"use Epsilon(), which takes any number, or put rules on the parts inside"
        )
    return outputs[0]
