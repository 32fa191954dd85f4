"""For the zoo: versions of transformers that make masks in torch's default dtype make them in float64, like the models."""

import pytest
import torch
import transformers


@pytest.fixture(autouse=True)
def _masks_in_float64():
    """A mask for float64 made in float32 overflows there: OPT, BART and CLIP would not run, registered or not."""
    before = torch.get_default_dtype()
    if not hasattr(transformers, "masking_utils"):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
