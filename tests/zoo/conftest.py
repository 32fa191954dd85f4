"""For the zoo: what older versions of transformers cannot do, registered or not."""

import pytest
import torch
import transformers

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
IN_PLACE = "adds to its embeddings in place, which cannot be leaves then"
FLOAT32 = "adds up its experts in the dtype of its router, float32, so it runs in no other"
CACHE = "is told a position with a filled cache"
LIMITS = (
    ("deberta-v2", (4, 50), "complete both_formulations batch_is padding ledger_closes sample_is", IN_PLACE),
    ("convnext", (4, 57), "ledger_closes", "computes norms in float32"),
    ("deepseek_v3", (5, 0), "complete future_tokens half_precision ledger_closes", FLOAT32),
    ("bloom", (5, 0), "gradient_checkpointing", "has an activation of its own for training"),
    ("gemma2", (4, 50), "filled_cache", CACHE),
    ("mamba", (5, 1), "filled_cache", CACHE),
)
"""An architecture, the version from which it can, parts of the names of tests, and the reason."""


@pytest.fixture(autouse=True)
def _limits_of_this_version(request):
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    for limited, since, tests, reason in LIMITS:
        if name == limited and since > VERSION and any(part in request.node.name for part in tests.split()):
            pytest.skip(f"{name} of transformers {transformers.__version__} {reason}")


@pytest.fixture(autouse=True, scope="module")
def _masks_in_float64():
    """Have masks made in float64 where that takes torch's default dtype: in float32, what is for float64 overflows."""
    before = torch.get_default_dtype()
    if VERSION < (5, 0):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
