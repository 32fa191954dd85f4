"""Masks of older versions of transformers in float64: imported by what builds their models in it.

Before transformers 5, a mask is filled in torch's default dtype first, where the least number of float64 overflows.
"""

import torch
import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    from transformers.modeling_attn_mask_utils import AttentionMaskConverter

    make = AttentionMaskConverter._make_causal_mask

    def in_its_own_dtype(shape, dtype, *args, **kwargs):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return make(shape, dtype, *args, **kwargs)
        finally:
            torch.set_default_dtype(before)

    AttentionMaskConverter._make_causal_mask = staticmethod(in_its_own_dtype)
