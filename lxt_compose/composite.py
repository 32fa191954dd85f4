"""The composite: which rule for which module, name or function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .canonizers.base import Canonizer
from .keys import assignments
from .rules import FORMULATIONS, RELEVANCE, Rule
from .rules.base import register_alone
from .rules.defaults import Table, check_table, default_rules
from .runtime.registration import Registration
from .tracing import ByModel, Written, trace_with

PICTURES = ("relevance", "slot")


_programs = ByModel[Written]()
"""The graphs by which relevance is differentiated; they serve every registration of a composite on a model."""


class Composite:
    """Rules for a model, assigned by keys; the first key in the order written that matches wins.

    Args:
        rules: a mapping, or pairs, from key to rule. Keys: a module class or a tuple of them (subclasses match); a
            string, the exact dotted name of a module or a glob (``*`` matches dots too); a torch function, which
            stands for all names of the same operation (``torch.add``: ``+``, ``+=``, ``Tensor.add_``, ...);
            :func:`where`. Values: a rule, or a rule class (default arguments); for a function also a plain
            function with the same signature that replaces it.
        formulation: ``"relevance"``: what flows back is relevance R, ``x.grad`` is the relevance of the input;
            ``"gradient"``: it is R / tensor, ``x * x.grad`` is the relevance. The latter costs what a gradient costs.
        defaults: whether operations without a key take the default rule of their family; else they are uncovered. Or
            the table of these rules itself, such as ``default_rules("gradient") | {Family.SOFTMAX: Stop()}``; families
            that it lacks are uncovered.
        strict: whether an uncovered operation that carries relevance raises in the forward pass.
        canonizers: changes of the model while the composite is registered, such as :class:`MergeBatchNorm`; in order.
        picture: what :func:`attribute` shows. ``"relevance"``, in the unit of the output; or ``"slot"``: ``x.grad`` as
            it is, from a start of 1, for methods whose picture is a gradient or a probability.

    Raises:
        TypeError: a key or value is of a wrong kind.
        ValueError: the formulation or the picture is unknown.
    """

    def __init__(
        self,
        rules: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (),
        *,
        formulation: str = RELEVANCE,
        defaults: bool | Table = True,
        strict: bool = False,
        canonizers: Iterable[Canonizer] = (),
        picture: str = "relevance",
    ) -> None:
        for name, value, known in (("formulation", formulation, FORMULATIONS), ("picture", picture, PICTURES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.assignments = assignments(rules)
        if not isinstance(defaults, bool):
            check_table(defaults)
        self.formulation, self.defaults, self.strict, self.picture = formulation, defaults, strict, picture
        if isinstance(canonizers, Canonizer) or not isinstance(canonizers, Iterable):
            raise TypeError(f"canonizers must be a list, such as [MergeBatchNorm()], got {canonizers!r}")
        self.canonizers = tuple(canonizers)
        for canonizer in self.canonizers:
            if isinstance(canonizer, (type, nn.Module)) or not isinstance(canonizer, Canonizer):
                raise TypeError(f"a canonizer is an object with apply(model): MergeBatchNorm(), say; got {canonizer!r}")

    def register(self, model: nn.Module) -> Registration:
        """Put the rules on a model, all or nothing, until ``remove()`` or the end of the ``with`` block.

        Args:
            model: any module; nothing of it is replaced, and nothing is left behind on removal.

        Raises:
            MatchError: a name matches no module; the error names the closest.
            RuleError: a rule does not fit the module it is bound to.
            RegistrationError: the model is compiled, or has a registration already.
        """
        registration = Registration(
            model,
            self.assignments,
            self.formulation,
            defaults=self.defaults,
            strict=self.strict,
            canonizers=self.canonizers,
            programs=_programs.of(self, model) if isinstance(model, nn.Module) else None,
        )
        registration.composite = self
        return registration

    def trace(self, model: nn.Module, example: Any, **options: Any) -> Any:
        """Trace the attribution of a model as one graph: forward pass, relevance and output.

        The graph is called like a function, and runs without hooks, modes and registrations, with the model's own
        weights, for inputs like the example::

            traced = composite.trace(model, images, target=3)
            traced(other_images, target=7).relevance

        Args:
            model: any module, in ``eval()`` mode.
            example: inputs as for :func:`attribute`.
            **options: ``target``, ``dims`` and ``layers`` as for :func:`attribute`; calls may have other targets of the
                same kind. ``dynamic``: True if batch and sequence may be of any size, or the names of such
                dimensions; where there is no graph for all sizes, one is made for each that is met. ``differentiable``:
                whether what comes out can be differentiated, by inputs and parameters.

        Returns:
            The `TracedAttribution`, with the coverage report of the example.

        Raises:
            TraceError: the model cannot be written down as one graph.
        """
        return trace_with[0](self, model, example, **options)

    def __repr__(self) -> str:
        rules = ", ".join(f"{entry}: {entry.shown}" for entry in self.assignments)
        canonizers = f", canonizers={self.canonizers}" if self.canonizers else ""
        return (
            f"Composite({{{rules}}}, formulation={self.formulation!r}, defaults={self._shown_defaults()}, "
            f"strict={self.strict}{canonizers})"
        )

    def _shown_defaults(self) -> str:
        """Return a table as one would write it: as a difference from the standard one if it lacks no family of that."""
        if isinstance(self.defaults, bool):
            return str(self.defaults)
        standard = default_rules(self.formulation)
        whole = standard.keys() <= self.defaults.keys()
        changed = [(key, rule) for key, rule in self.defaults.items() if not whole or rule != standard[key]]
        shown = "{" + ", ".join(f"{key!s}: {rule}" for key, rule in changed) + "}"
        return shown if not whole else f"default_rules({self.formulation!r}) | {shown}" if changed else "True"


def _register_alone(rule: Rule, module: nn.Module, formulation: str) -> Registration:
    return Composite({"": rule}, formulation=formulation).register(module)


register_alone.append(_register_alone)
