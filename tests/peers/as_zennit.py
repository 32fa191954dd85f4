"""Zennit's tests on lxt_compose: its rules, stabilizers, module types, composites and canonizers by ours.

Its composites keep their own tables of types and rules; what registers them is our :class:`Composite`.
"""

import copy
import importlib
import inspect
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from stand_ins import stand_in_for_torchvision
from torch import nn

import lxt_compose as ours
from lxt_compose import Composite, Epsilon, MergeBatchNorm, Rule, Stabilizer, first_layer, kinds
from lxt_compose.autograd.functions import bypass
from lxt_compose.autograd.numerics import stabilize

MACHINERY = "test_basic_hook_copy test_basic_hook_custom test_basic_hook_default test_collect_leaves_dummy \
test_collect_leaves_no_children test_composite_context test_composite_empty test_composite_inactive \
test_expand_non_tensor test_expand_shape_invalid test_expand_shapes test_hook_active test_hook_copy test_hook_grad \
test_hook_grad_grad test_hook_kwargs test_hook_no_grad test_hook_tuple test_identity test_param_mod \
test_param_mod_ensure test_param_mod_ensure_unknown_type test_param_mod_required_missing \
test_removable_handle_deleted test_uncompress test_zero_bias test_attribute_canonizer test_composite_canonizer \
test_base_canonizer_cooperative_apply"
ATTRIBUTORS = "test_gradient_attributor_grad test_gradient_attributor_inactive test_gradient_attributor_output_fn \
test_gradient_attributor_output_fn_precedence test_integrated_gradients_path test_integrated_gradients_single \
test_integrated_gradients_single_grad test_occlusion_disjunct test_occlusion_single \
test_occlusion_stride_window_typecheck test_smooth_grad_distribution test_smooth_grad_single \
test_smooth_grad_single_grad"
UNMAPPED = {*MACHINERY.split(), *ATTRIBUTORS.split()}
ACTIVE = []
"""Registrations that are on now."""


def prepare():
    """Make Zennit importable, and import all of it that names our objects."""
    stand_in_for_torchvision()
    for name in ("core", "types", "rules", "composites", "canonizers", "attribution"):
        importlib.import_module(f"zennit.{name}")


def _zero_bias(zero_params):
    return "bias" in ([zero_params] if isinstance(zero_params, str) else zero_params or [])


def _rule(make, name):
    """A function of the name and the arguments of Zennit's rule."""

    def build(*args, zero_params=None, **options):
        if "stabilizer" in options:
            options["epsilon"] = options.pop("stabilizer")
        if "beta_smooth" in options:
            options["beta"] = options.pop("beta_smooth")
        if _zero_bias(zero_params) and "zero_bias" in inspect.signature(make).parameters:
            options["zero_bias"] = True
        return make(*args, **options)

    build.__name__ = name
    return build


class StabilizerOf(Stabilizer):
    """Our stabilizer; what else is taken as an epsilon, any rule checks."""

    @classmethod
    def ensure(cls, value):
        given = Epsilon(value).epsilon
        return given if callable(given) else cls(epsilon=given)


def _stabilized(input, epsilon=1e-6, clip=False, norm_scale=False, dim=None):
    return Stabilizer(epsilon, clip, norm_scale, dim)(input)


@dataclass(frozen=True)
class Hook(Rule):
    """A rule made of a `backward` as Zennit's hooks have; only what its tests need as entries of composites."""

    def backward(self, module, grad_input, grad_output):
        raise NotImplementedError

    def enter(self, call, place):
        return call.carriers[place].detach()

    def leave(self, call, outputs):
        return [bypass(lambda slot: (self.backward(None, slot, slot),), outputs[0], (), call.carriers)]


@dataclass(frozen=True)
class GammaBySignWithBias(ours.Gamma):
    """Zennit's gamma rule where the bias is left out: the sign s is still that of the output with the bias.

    ``R_i = sum_j (c_ij + gamma c_ij^s) / (z_j + gamma z_j^s) R_j`` with z and z^s without the bias.
    """

    families = frozenset()  # on the module, and not on the operation in it

    def leave(self, call, outputs):
        back = partial(self._by_parts, call.module, outputs[0].detach().sign())
        return [bypass(back, outputs[0], (call.values[0].detach(),), call.carriers)]

    def _by_parts(self, module, sign, slot, x):
        whole, size = _without_bias(module, lambda w: w), _without_bias(module, torch.abs)
        half, x, positive = self.gamma / 2, x.clone().requires_grad_(), x.abs().requires_grad_()
        with torch.enable_grad():
            z, total = whole(x), size(positive)
        v = sign.abs() * slot / stabilize((1 + half) * z + half * sign * total, self.epsilon).detach()
        plain, extra = torch.autograd.grad((z, total), (x, positive), ((1 + half) * v, half * sign * v))
        return (plain * x.detach() + extra * positive.detach(),)


def _gamma(gamma=0.25, epsilon=1e-6, zero_bias=False):
    return (GammaBySignWithBias if zero_bias else ours.Gamma)(gamma, epsilon, zero_bias)


def _without_bias(module, part):
    """The layer with a part of its weight and no bias."""
    changed = copy.deepcopy(module)
    changed.weight = nn.Parameter(part(module.weight.detach()), requires_grad=False)
    changed.bias = None
    return changed


class Merge:
    """One merged batch norm, or all of a model."""

    def __init__(self, name_map=None):
        self.pairs = None if name_map is None else [(layer, norm) for layers, norm in name_map for layer in layers]

    def register(self, layers, norm):
        self.handle = MergeBatchNorm([("0", "1")]).apply(nn.Sequential(*layers, norm))

    def remove(self):
        self.handle.remove()

    def apply(self, model):
        return [MergeBatchNorm(self.pairs).apply(model)]


def _entries(composite):
    """The keys and rules of one of Zennit's composites."""
    if hasattr(composite, "composites"):
        return [entry for part in composite.composites for entry in _entries(part)]
    if hasattr(composite, "name_map"):
        return [(name, rule) for names, rule in composite.name_map for name in names]
    first = getattr(composite, "first_map", [])
    special = [(first_layer, rule) for types, rule in first if issubclass(nn.Conv2d, _classes(types))][:1]
    return special + [(types, rule) for types, rule in getattr(composite, "layer_map", []) if types]


def _classes(types):
    return types if isinstance(types, tuple) else (types,)


def _register(self, module):
    self.handles = [Composite(_entries(self), formulation=_formulation(_entries(self))).register(module)]
    ACTIVE.extend(self.handles)


def _formulation(entries):
    kinds_of_rule = [set(rule.formulations) for _, rule in entries]
    return "relevance" if all("relevance" in known for known in kinds_of_rule) else "gradient"


def _remove(self):
    for registration in self.handles:
        registration.remove()
        ACTIVE.remove(registration)
    self.handles = []


@contextmanager
def _context(self, module):
    _register(self, module)
    try:
        yield module
    finally:
        _remove(self)


def _is_ruled(module, rule):
    """Whether the registered model has run this module under this rule."""
    (registration,) = ACTIVE
    if not registration.report().executed:
        registration.model(torch.randn(2, 3, 16, 16, requires_grad=True))
    names = [name for name, found in registration.model.named_modules() if found is module]
    rows = registration.report().rows
    return any(row.rule == str(rule) and row.path in names and row.calls for row in rows)


def patch(module):
    """Zennit finds its own hooks on a module; ours are asked which rule it ran under."""
    if hasattr(module, "check_hook_registered"):
        module.check_hook_registered = _is_ruled


def install(conventions):
    """Exchange Zennit's objects, wherever its modules name them."""
    gamma = _gamma if conventions else ours.Gamma
    made = {name: getattr(ours, name) for name in "Epsilon ZPlus AlphaBeta ZBox WSquare Flat Pass".split()}
    made |= {name: getattr(ours, name) for name in "ReLUDeconvNet ReLUGuidedBackprop ReLUBetaSmooth".split()}
    made |= {"Gamma": gamma, "Norm": Epsilon}
    exchanged = {name: _rule(make, name) for name, make in made.items()}
    exchanged |= {"Stabilizer": StabilizerOf, "stabilize": _stabilized, "Hook": Hook}
    exchanged |= {"Convolution": kinds.CONVOLUTIONS, "Linear": kinds.LAYERS, "BatchNorm": kinds.BATCH_NORMS}
    exchanged |= {"AvgPool": kinds.AVERAGE_POOLS, "Activation": kinds.ACTIVATIONS}
    exchanged |= {"SequentialMergeBatchNorm": Merge, "NamedMergeBatchNorm": Merge}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "zennit":
            vars(module).update({key: value for key, value in exchanged.items() if key in vars(module)})
    base = sys.modules["zennit.core"].Composite
    base.register, base.remove, base.context = _register, _remove, _context
    Rule.copy = lambda self: self
    Rule.register = _register_rule(Rule.register)


def _register_rule(register):
    """Rules that know one formulation are registered in it; Zennit's hooks have none to tell."""
    return lambda rule, module: partial(register, rule, module)(formulation=rule.formulations[0])
