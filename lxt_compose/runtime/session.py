"""The state of one registration: running modules, counts, the observer, parts of weights.

Hooks and function mode hold no state of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..autograd import saved_values
from ..autograd.functions import AllStopped
from ..autograd.marks import mark_seen
from ..autograd.sharded import comes_and_goes, is_distributed
from ..autograd.trees import map_tensors, tensors_in
from ..coverage.tally import Tally
from ..errors import RegistrationError
from ..keys import Assignment
from ..rules import default_rules, find_carriers
from ..rules.defaults import Table
from ..rules.linear_layers.trial import without_effect
from ..rules.linear_layers.weight_parts import Parts
from ..target_module import explained
from ..torch_internals import function_modes, in_backward, next_node_number
from ..tracing import Kept, Written
from .call_stack import CallStack, Frame, Site, Threads
from .eager_functions import EAGER_FUNCTIONS
from .freezing import freeze_sharded
from .observer import Following, Observer
from .policy import Policy
from .second_order import Pass, recorded
from .unseen import made_since, unreached


class Session:
    """What a registration knows while it is active.

    Attributes:
        threads: the modules that are running in each thread.
        policy: what the composite says.
        tally: what has run.
        observer: who watches: a ledger or a conservation check.
        following: what follows the integers that the model was given, if anything does.
        rounded: is told of functions that turn carriers into a tensor without gradients.
        parts: the parts of weights that rules have made.
        mode: the function mode, which is active while a module runs.
        active: whether the registration has not been removed.
        installed: what takes hooks off the model again, and restores its flags.
        frozen: the parameters that would require grad if the composite were not there.
        programs: the graphs by which relevance is differentiated.
        inputs_alone: whether relevance is wanted of what the model is given, and of no other leaf.
        has_strangers: whether leaves that the model does not hold as its own were made constants.
        merged: whether canonizers have put other weights in the place of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        entries: tuple[Assignment, ...],
        formulation: str,
        defaults: bool | Table,
        *,
        strict: bool,
    ) -> None:
        self.model, self.entries, self.formulation = model, entries, formulation
        self.name = type(explained(model)).__name__
        table = default_rules(formulation) if isinstance(defaults, bool) else defaults
        self.tally = Tally(strict=strict)
        self.policy = Policy(entries, formulation, table, defaults is not False, self.tally)
        self.threads, self.parts = Threads(), Parts()
        self.observer: Observer | None = None
        self.following: Following | None = None
        self.steps_checked: set[tuple[Any, str]] = set()
        self.rounded: Callable[[Any, Any, Any, Tensor], None] | None = None
        self.mode = TorchFunctionMode()
        self.active, self.installed = True, ExitStack()
        self.frozen: list[nn.Parameter] = []
        self.inputs_alone = self.has_strangers = False
        self.programs = Kept[Written]()
        self.sites: list[Site] = []
        self.merged = self._thawed = self._quiet = False
        self._first_sites: set[Site] = set()

    @property
    def stack(self) -> CallStack:
        """The modules that are running in this thread."""
        return self.threads.stack

    def enter(self, site: Site, python: FrameType | None, checkpoint: Any, args: Any, kwargs: Any) -> Frame:
        """Put an outermost module on the call stack of this thread, and activate the function mode."""
        frame = Frame(site.context, python, checkpoint, owner=True)
        if not in_backward():
            frame.context, frame.alone = site.context_in(None, None), site.module is not self.model
            site.context = frame.context
        # else it is recomputed for its backward, on its own, but the same rule is in force as in the forward pass
        self.stack.frames.append(frame)
        self.begin(args, kwargs)
        if frame.alone:
            self.check_between()
        return frame

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Activate the function mode, innermost, for an outermost module that begins in this thread.

        Raises:
            RegistrationError: nothing can be recorded, since inference mode is on; or another composite is at work.
        """
        stack = self.stack
        stack.start()
        saved_values.prune()
        if torch.is_inference_mode_enabled() or any(t.is_inference() for t in tensors_in((args, kwargs))):
            raise RegistrationError(
                f"relevance needs a recorded forward pass, but {self.name} was called in inference "
                f"mode or with a tensor made there; call it outside torch.inference_mode(), with inputs made outside"
            )
        modes = function_modes()
        for mode in modes:
            other = getattr(mode, "session", None)
            if isinstance(other, Session) and other is not self and other.stack.innermost() is not None:
                raise RegistrationError(
                    f"{self.name} is called inside {other.name}, and "
                    f"both have a composite, which would act twice; remove one, or register on the outer model alone"
                )
        self._freeze_again()
        if is_distributed():
            self.frozen += freeze_sharded(self.model, self.policy, self.installed)
            self.parts.keeping &= not any(map(comes_and_goes, self.model.modules()))
        self.tally.executed = True
        stack.began = next_node_number()
        stack.root_inputs, stack.root_args = find_carriers(args, kwargs), (args, kwargs)
        if self.mode not in modes:  # an interrupt may have left it there
            self.mode.__enter__()
        stack.eager = stack.eager or EAGER_FUNCTIONS.begin()
        if self.observer is not None:
            self.observer.start(args, kwargs)

    def end(self) -> None:
        """Deactivate the function mode after the outermost module in this thread."""
        if function_modes()[-1:] == [self.mode]:
            self.mode.__exit__(None, None, None)
        if self.stack.eager:
            self.stack.eager = False
            EAGER_FUNCTIONS.end()
        self.stack.start()
        self.stack.ended = next_node_number()

    def remove(self) -> None:
        """Take everything off the model; during a forward pass too, and after an interrupt."""
        self.active = False
        self.installed.close()
        self.parts.close()
        self.abandon()

    def abandon(self) -> None:
        """Drop the state of a forward pass whose hooks were skipped by an error, as under a compiler."""
        self.stack.frames.clear()
        self.end()

    def check_between(self) -> None:
        """Count the operations that ran between the outermost module that ended last and the one that begins."""
        stack = self.stack
        if stack.ended is None:
            return
        for x in stack.root_inputs:
            for name in made_since(x, stack.ended):
                self.tally.uncovered("", name, "run between parts of the model that were called on their own")
        mark_seen(stack.root_inputs)

    def hold(self, leaf: Tensor) -> bool:
        """Make a leaf a constant until the composite is removed, and return whether it was not known yet."""
        self.installed.callback(leaf.requires_grad_, True)
        leaf.requires_grad_(False)
        is_new = not self.policy.is_learned(leaf)
        self.has_strangers |= is_new
        self.policy.frozen.add(leaf)
        return is_new

    def thaw(self) -> None:
        """Let the parameters require grad again, until the next forward pass begins."""
        self._thawed = True
        for parameter in self.frozen:
            parameter.requires_grad_(True)

    def _freeze_again(self) -> None:
        if self._thawed:
            self._thawed = False
            for parameter in self.frozen:
                parameter.requires_grad_(False)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Run the model in this context frozen and under its rules, with nothing counted or kept."""
        counted = [(site, site.calls, site.units, site.shadowed_in, site.context) for site in self.sites]
        observer, self.observer, self._quiet = self.observer, None, True
        self._freeze_again()
        try:
            with self.tally.undone(), torch.random.fork_rng(devices=[]), without_effect(self.model):
                yield
        finally:
            self.observer, self._quiet = observer, False
            for site, calls, units, shadowed_in, context in counted:
                site.calls, site.units, site.shadowed_in, site.context = calls, units, shadowed_in, context

    def takes_first_layer(self, site: Site, other: Assignment | None) -> bool:
        """Return whether a layer here is the first that relevance reaches, and its key goes before `other`."""
        key, stack = self.policy.first_layer, self.stack
        if key is None or (other is not None and self.entries.index(other) < self.entries.index(key)):
            return False
        if stack.frames[0].site.module is not self.model:  # but a block of it, recomputed for its backward
            return site in self._first_sites
        if not stack.first_layer_met:
            self._first_sites.add(site)
        return not stack.first_layer_met

    def finish(self, module: nn.Module, output: Any) -> Any:
        """Return the output of an outermost module; one that rules cut off from every input still has a backward.

        Raises:
            RegistrationError: nothing in the whole forward pass required grad.
        """
        stack = self.stack
        for name, path in unreached(stack.functions, output) if stack.functions else ():
            self.tally.cut[f"{name} in {path or '(model)'}"] = None
        outputs = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        if module is not self.model or not torch.is_grad_enabled() or any(t.requires_grad for t in outputs):
            return output
        if not (stack.carriers_met or stack.root_inputs):
            raise RegistrationError(
                f"no relevance can flow: no input of {self.name} requires grad, and nothing inside "
                f"does; call x.requires_grad_() on a floating point input before the forward pass (integer inputs such "
                f"as token ids cannot: pass their embeddings, e.g. inputs_embeds=)"
            )
        if not ((stack.stopped or not self.tally.cut) and stack.root_inputs and outputs):
            return output
        self._warn_all_stopped()
        first, inputs = outputs[0], stack.root_inputs

        def with_backward(tensor: Tensor) -> Tensor:
            result: Tensor = AllStopped.apply(tensor, *inputs) if tensor is first else tensor
            return result

        return map_tensors(with_backward, output)

    def differentiable(self, module: nn.Module, output: Any) -> Any:
        """Return the output of an outermost module, such that its relevance can be differentiated."""
        if self._quiet or not torch.is_grad_enabled() or in_backward():
            return output
        return recorded(Pass.of(self, module, self.stack.root_args, self.stack.root_inputs), output)

    def _warn_all_stopped(self) -> None:
        if self.tally.all_stopped:
            return
        self.tally.all_stopped = True
        warnings.warn(
            f"no input of {self.name} gets any relevance: all of it ends at rules that stop it, or at operands that "
            f"are held constant; {self.tally.remedy_for_stops() or 'see the report'}",
            stacklevel=2,
        )
