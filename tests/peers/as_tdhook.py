"""tdhook's tests of LRP on lxt_compose: its rules by ours, so that its mappers and its LRP register ours too."""

import importlib
import sys
from dataclasses import dataclass
from functools import partial

from stand_ins import stand_in_for_torchvision

import lxt_compose as ours
from lxt_compose.autograd.numerics import stabilize
from lxt_compose.rules.slopes import Slope

# Its own machinery (the exchanged `forward`, its programs, keys and handles), and a rule for one fused projection, for
# which ours has none: there ValueAttention goes on the attention as a whole.
UNMAPPED = {
    "test_register_unregister", "test_lrp_rules_are_reported_and_restored_by_the_bound_program",
    "test_lrp_out_keys_match_use_inputs_contract", "test_lrp_rule_registration_rolls_back_after_mapper_failure",
    "test_removable_rule_handle_module_none", "test_raise_for_unconserved_rel_factory_error_handling",
    "test_restore_module_unprepared", "test_ahqkv_rule", "test_ignore_rule_preserves_gradients",
}  # fmt: skip
RULES = "tdhook.attribution.lrp_helpers.rules"


def prepare():
    """Make Zennit importable, whose rules the tests compare with."""
    stand_in_for_torchvision()
    importlib.import_module(RULES)


def patch(module):
    """Nothing in its test files is exchanged."""


class Registrable:
    """One of our rules with tdhook's way to register it."""

    def __init__(self, rule, formulation="relevance"):
        self.rule, self.formulation, self.registrations = rule, formulation, {}

    def register(self, module):
        self.registrations[module] = self.rule.register(module, formulation=self.formulation)
        return self.registrations[module]

    def unregister(self, module):
        self.registrations.pop(module).remove()


def _made(make, formulation="relevance"):
    def build(*args, **options):
        if "stabilizer" in options:
            options["epsilon"] = options.pop("stabilizer")
        return Registrable(make(*args, **options), formulation)

    return build


@dataclass(frozen=True)
class StabilizedRatio(ours.Pass):
    """tdhook's pseudo-identity divides by ``x + e sign(x)`` with an e of its own, also where x is far from 0."""

    epsilon: float = 1e-6

    def slope(self, call, x, z):
        return Slope(partial(_ratio, self.epsilon), (x, z))


def _ratio(epsilon, x, z):
    return z / stabilize(x, epsilon)


def install(conventions):
    """Exchange tdhook's rules, wherever its modules name them."""
    pseudo = StabilizedRatio if conventions else lambda epsilon: ours.Ratio()
    exchanged = {
        "EpsilonRule": _made(ours.Epsilon), "UniformEpsilonRule": _made(ours.UniformEpsilon),
        "UniformRule": _made(ours.Uniform), "StopRule": _made(ours.Stop), "PassRule": _made(ours.Pass),
        "WSquareRule": _made(ours.WSquare), "FlatRule": _made(ours.Flat), "AlphaBetaRule": _made(ours.AlphaBeta),
        "SoftmaxEpsilonRule": _made(lambda epsilon: ours.SoftmaxTaylor()),
        "LayerNormRule": _made(ours.Norm, "gradient"), "PseudoIdentityRule": _made(pseudo, "gradient"),
        "stabilize": stabilize,
    }  # fmt: skip
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "tdhook":
            vars(module).update({key: value for key, value in exchanged.items() if key in vars(module)})
