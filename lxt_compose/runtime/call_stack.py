"""The modules that are running in each thread, innermost last, with the context that operations inside them need."""

from __future__ import annotations

import threading
import weakref
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..autograd.marks import Constants
from ..errors import RuleError, place
from ..keys import Binding
from ..rules import OpCall, Rule
from ..torch_internals import Depth, innermost
from .activation_modules import Unit
from .chains import Chain, Conditions
from .decisions import CallSite, Decision
from .observer import Seen
from .softmax_notes import Notes

_LARGEST_CACHE = 1024


class Site:
    """One module of a registered model: its dotted names, its binding if it has one, and where it last ran."""

    __slots__ = (
        "__weakref__", "_contexts", "binding", "calls", "context", "may_be_unit", "module", "names", "path",
        "shadowed_in", "units",
    )  # fmt: skip

    def __init__(
        self, module: nn.Module, names: tuple[str, ...], binding: Binding | None, *, may_be_unit: bool
    ) -> None:
        self.module, self.names, self.path, self.binding = module, names, names[0], binding
        self.may_be_unit = may_be_unit
        self.calls = self.units = 0
        """How often its rule acted, and how often it turned out to be one elementwise function."""
        self.shadowed_in: str | None = None
        """The bound module around it whose rule acted instead; empty for the model itself."""
        self._contexts: list[Context] = []
        self.context = self.context_in(None, None)
        """The context in which it ran last: a recomputed block runs in that of the forward pass."""

    @property
    def label(self) -> str:
        """For errors: ``"'encoder.fc1' (Linear)"``."""
        return f"{place(self.path)} ({type(self.module).__name__})"

    def has_weight_carriers(self) -> bool:
        """Return whether the module runs with weights that carry relevance, as under torch.func.functional_call."""
        inner = bool(self.module._modules)
        weights = self.module.parameters(recurse=inner)
        return any(weight.requires_grad and not isinstance(weight, nn.Parameter) for weight in weights)

    def refuse_later_hook(self) -> NoReturn:
        """Raise an error: a pre-hook that was added after ours has exchanged the module's inputs.

        Raises:
            RuleError: always.
        """
        raise RuleError(
            f"{self.label} has a full backward hook, and a forward pre-hook that was registered after the composite "
            f"exchanges its inputs; register that hook before the composite"
        )

    def context_in(self, inside: str | None, scope: Rule | None, *, keys_inside: bool = False) -> Context:
        """Return the context of the module's operations inside of a bound module `inside` with the rule `scope`."""
        for context in self._contexts:
            if context.inside == inside and context.scope is scope and context.keys_inside == keys_inside:
                return context
        self._contexts.append(Context(self, inside, scope, keys_inside))
        return self._contexts[-1]


class Context:
    """Where operations run: a module, and the rule around it if there is one. Decisions are kept here, by function.

    Attributes:
        inside: the outermost bound module that this one runs inside of (or is); its rule is for all that is in it.
        scope: the rule of that module, if it acts on the operations inside (Norm, SoftmaxTaylor, Gamma, ...).
        keys_inside: whether `scope` is a default, so that the user's keys for functions go before it.
        shadowed_by: the bound module whose rule takes it as one unit, so that nothing inside is touched.
    """

    __slots__ = ("decisions", "inside", "kept", "keys_inside", "path", "scope", "scoped", "shadowed_by", "site")

    def __init__(self, site: Site, inside: str | None, scope: Rule | None, keys_inside: bool) -> None:
        self.site, self.path = site, site.path
        self.inside, self.scope, self.keys_inside = inside, scope, keys_inside
        self.scoped = scope is not None and not keys_inside
        self.shadowed_by = inside if scope is None else None
        self.decisions: dict[CallSite, Decision] = {}
        """What was decided for a call, where nothing else matters."""
        self.kept: dict[Any, Any] = {}
        """By function, what calls came to that come to the same again (`kept_calls.py`)."""

    def keep(self, site: CallSite, made: Decision) -> None:
        """Keep a decision while there is room: numbers among the arguments may differ in each call."""
        if len(self.decisions) >= _LARGEST_CACHE:
            self.decisions.clear()
        self.decisions[site] = made

    @property
    def module(self) -> nn.Module:
        """The module that runs."""
        return self.site.module


class Frame:
    """One module call that is under way in this thread.

    Attributes:
        python: Python's frame of the module call: it is on the stack for exactly as long as the module runs.
        checkpoint: the activation checkpoint that records the call, if there is one.
        owner: whether this call brought the function mode in, and takes it out again.
        alone: whether the module was called on its own, not by the model and not by a recomputation.
        in_force: whether the module is bound and its own rule acts.
        late: what the module is given by keyword, if it begins after torch's full backward hooks on it.
        served: whether an operation that the rule in scope serves has run.
        others: whether more than that one has run, moves aside.
        call: the call that a rule for the whole module was applied to.
        whole: the module as one call, for a rule that takes it so if it is made of operations that it does not serve.
        unit: what is known of the module so far, if it may turn out to be one elementwise function.
        part_of: the unit, the module itself or one around it, that what runs in the module is a step of.
        seen: the operation that an observer was shown, if there is one and the module is taken as one unit.
    """

    alone = in_force = served = others = False
    late: dict[str, Any] | None = None
    call: OpCall | None = None
    whole: OpCall | None = None
    unit: Unit | None = None
    part_of: Unit | None = None
    seen: Seen | None = None

    def __init__(self, context: Context, python: FrameType | None, checkpoint: Any, *, owner: bool = False) -> None:
        self.context, self.python, self.checkpoint, self.owner = context, python, checkpoint, owner

    @property
    def site(self) -> Site:
        """The module that runs."""
        return self.context.site

    @property
    def path(self) -> str:
        """The dotted path of the module."""
        return self.context.path

    def within(self, context: Context) -> Frame:
        """Return a frame for what an operation of this module is made of, in another context."""
        inner = Frame(context, self.python, self.checkpoint, owner=False)
        inner.served, inner.others, inner.part_of = self.served, self.others, self.part_of
        return inner


class Threads(threading.local):
    """The call stack of each thread. Looking up a thread's stack is slow, so callers keep what they got."""

    def __init__(self) -> None:
        self.stack = CallStack()

    @property
    def conditions(self) -> Conditions:
        """The comparisons that have run in this thread."""
        return self.stack.conditions


class CallStack:
    """The modules that are running in one thread, and the state of the forward pass of the outermost."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.constants = Constants()
        """What is known of tensors that rules took out of the graph."""
        self.ended: int | None = None
        """The number of the autograd node that came next when the last outermost module had ended."""
        self.seen: Seen | None = None
        """The operation that an observer watches now."""
        self.chains: list[weakref.ref[Chain]] = []
        """Chains that keep a tensor alive until the outermost module ends, or until nothing holds them."""
        self.conditions = Conditions()
        """Comparisons that functions of one tensor may choose by."""
        self.notes = Notes()
        """What was noted of tensors that may become a softmax."""
        self.eager = False
        """Whether compiled functions run eagerly until the outermost module ends."""
        self.start()

    def innermost(self) -> Frame | None:
        """Return the innermost running module, and drop those whose hooks were skipped by an interrupt."""
        found: Frame | None = innermost(self.frames, Depth())
        return found

    def start(self) -> None:
        """Reset the state of a forward pass; called when an outermost module begins."""
        self.constants.clear()
        self.conditions.clear()
        for reference in self.chains:
            if (chain := reference()) is not None:
                chain.let_go()
        self.chains.clear()
        self.last: Any = None
        """What the operation put out that ran last, if it was marked at once."""
        self.carriers_met = False
        self.recorded = torch.is_grad_enabled()
        self.first_layer_met = False
        self.stopped = False
        self.root_inputs: list[Tensor] = []
        self.root_args: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self.notes.clear()
        self.functions: dict[Any, tuple[str, dict[Any, Any]]] = {}
        """Custom autograd functions that were given carriers: their nodes, where they ran, and what the nodes hold."""
        self.began = 0
        """The number of the first autograd node that the outermost module could make."""
