"""Activation checkpointing changes no relevance."""

import pytest
import torch
from exact_models import inputs
from support import FORMULATIONS, Residual, assert_close, attribute, fingerprint, label
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, Norm, Pass, Uniform


class Checkpointed(nn.Module):
    """Two residual blocks, in activation checkpoints or not."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = Residual(6, inplace=True), Residual(6), nn.Linear(6, 3)
        self.norm, self.reentrant = nn.LayerNorm(6), reentrant
        self.double()

    def forward(self, x):
        for block in (self.first, self.norm, self.second):
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(F.gelu(x))


CHECKPOINT_RULES = [
    {},
    {nn.Linear: Gamma()},
    {"first": Epsilon(), nn.LayerNorm: Norm(), nn.Linear: AlphaBeta()},
    {"": Epsilon()},
    {nn.ReLU: Pass(), "second": Uniform()},
    {torch.add: Uniform(), nn.LayerNorm: Pass()},
]


CHECKPOINT_CASES = [
    (rules, formulation)
    for rules in CHECKPOINT_RULES
    for formulation in FORMULATIONS
    # Uniform on modules and sums needs the relevance formulation.
    if formulation == "relevance" or not any(isinstance(rule, Uniform) for rule in rules.values())
]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("rules", "formulation"), CHECKPOINT_CASES, ids=label)
def test_activation_checkpointing_changes_no_relevance(rules, reentrant, formulation):
    """The rules are in force when a checkpointed block is recomputed: with checkpoints as without, elementwise."""
    composite, x = Composite(rules, formulation=formulation), inputs(4, 6)
    model = Checkpointed(reentrant)
    before = fingerprint(model)
    assert_close(attribute(model, x, composite, 0), attribute(Checkpointed(None), x, composite, 0), 1e-12)
    assert fingerprint(model) == before
