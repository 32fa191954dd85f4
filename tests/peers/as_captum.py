"""Captum's tests of LRP on lxt_compose: ``module.rule`` becomes a key of a composite."""

import importlib
import sys

import torch

import lxt_compose as ours
from lxt_compose import Composite

UNMAPPED = {"test_futures_not_implemented"}


def prepare():
    """Import the parts of Captum that its tests of LRP name."""
    for name in ("captum.attr", "captum.attr._utils.lrp_rules"):
        importlib.import_module(name)


def patch(module):
    """Nothing in its test files is exchanged."""


class PropagationRule:
    """A rule as Captum's are written on a module."""

    def __init__(self, rule):
        self.ours = rule


class EpsilonRule(PropagationRule):
    def __init__(self, epsilon=1e-9):
        super().__init__(ours.Epsilon(epsilon))


class GammaRule(PropagationRule):
    def __init__(self, gamma=0.25, set_bias_to_zero=False):
        super().__init__(ours.Gamma(gamma, 1e-9, zero_bias=set_bias_to_zero))


class Alpha1Beta0Rule(PropagationRule):
    def __init__(self, set_bias_to_zero=False):
        super().__init__(ours.ZPlus(1e-9, zero_bias=set_bias_to_zero))


class IdentityRule(PropagationRule):
    def __init__(self):
        super().__init__(ours.Pass())


class LRP:
    """Our relevance, with the arguments of Captum's class and its stabilizer, 1e-9."""

    def __init__(self, model):
        self.model = model
        for name, module in model.named_modules():
            if not isinstance(getattr(module, "rule", EpsilonRule()), PropagationRule):
                raise TypeError(f"{name}.rule is no rule: {module.rule!r}")

    def _composite(self):
        named = [(name, part.rule.ours) for name, part in self.model.named_modules() if hasattr(part, "rule")]
        return Composite(named, defaults=ours.default_rules("relevance") | {ours.Family.LINEAR: ours.Epsilon(1e-9)})

    def attribute(self, inputs, target=None, additional_forward_args=None, return_convergence_delta=False):
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        carriers = [x.detach().clone().requires_grad_() for x in given]
        more = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
        more = () if additional_forward_args is None else more
        with self._composite().register(self.model):
            output = self.model(*carriers, *more)
            chosen = output if target is None else output[:, target]
            found = torch.autograd.grad(chosen, [*carriers, *self._layers()], chosen.detach(), allow_unused=True)
        start = chosen.detach().reshape(len(chosen), -1).sum(1)
        return self._answer(inputs, found, start, return_convergence_delta)

    def _layers(self):
        return []

    def _answer(self, inputs, found, start, return_convergence_delta):
        delta = start - sum(r.reshape(len(r), -1).sum(1) for r in found)
        relevance = tuple(found) if isinstance(inputs, tuple) else found[0]
        return (relevance, delta) if return_convergence_delta else relevance


class LayerLRP(LRP):
    """The relevance of what goes into a layer, or of what it puts out."""

    def __init__(self, model, layer):
        super().__init__(model)
        self.layer, self.seen = layer, {}

    def _see(self, module, given):
        self.seen[module] = given[0] if isinstance(given, tuple) else given

    def _layers(self):
        chosen = self.layer if isinstance(self.layer, list) else [self.layer]
        return [self.seen[layer] for layer in chosen]

    def attribute(self, *args, attribute_to_layer_input=False, **options):
        chosen = self.layer if isinstance(self.layer, list) else [self.layer]
        handles = []
        for layer in chosen:
            # Before our own hook, which exchanges what goes in; and after it, at what the rest of the model uses.
            if attribute_to_layer_input:
                handles.append(layer.register_forward_pre_hook(self._see, prepend=True))
            else:
                handles.append(layer.register_forward_hook(lambda module, _, output: self._see(module, output)))
        try:
            return super().attribute(*args, **options)
        finally:
            for handle in handles:
                handle.remove()

    def _answer(self, inputs, found, start, return_convergence_delta):
        count = len(inputs) if isinstance(inputs, tuple) else 1
        relevance = found[count:]
        deltas = [start - r.reshape(len(r), -1).sum(1) for r in relevance]
        if not isinstance(self.layer, list):
            relevance, deltas = relevance[0], deltas[0]
        return (relevance, deltas) if return_convergence_delta else relevance


def install(conventions):
    """Exchange Captum's classes, wherever its modules name them."""
    exchanged = {"LRP": LRP, "LayerLRP": LayerLRP, "EpsilonRule": EpsilonRule, "GammaRule": GammaRule}
    exchanged |= {"Alpha1_Beta0_Rule": Alpha1Beta0Rule, "IdentityRule": IdentityRule}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "captum":
            vars(module).update({key: value for key, value in exchanged.items() if key in vars(module)})
