"""torch's attention kernel, whose projections are never called as modules."""

import pytest
import torch
from exact_models import both_formulations, inputs
from support import Fn, assert_close, attribute
from torch import nn

from lxt_compose import Composite, Gamma, Status


def test_a_module_that_is_never_called_is_reported():
    """``nn.MultiheadAttention.out_proj`` is never called (its weight is): not executed, and attention is one op."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = Fn(lambda self, x: self.attention(x, x, x)[0], attention=attention)
    with Composite({nn.Linear: Gamma()}).register(model) as registration:
        model(inputs(2, 3, 8).requires_grad_())
        report = registration.report()
    assert [(row.path, row.status) for row in report.not_executed] == [("attention.out_proj", Status.NOT_EXECUTED)]
    assert report.complete
    assert "multi_head_attention_forward" in {row.target for row in report.rows if row.kind == "op"}


class WrittenOut(nn.Module):
    """nn.MultiheadAttention in modules and functions, from its definition."""

    def __init__(self, attention):
        super().__init__()
        self.heads, size = attention.num_heads, attention.embed_dim
        self.q, self.k, self.v, self.out = (nn.Linear(size, size).double() for _ in range(4))
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        with torch.no_grad():
            for layer, weight, bias in zip((self.q, self.k, self.v), weights, biases, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            self.out.load_state_dict(attention.out_proj.state_dict())

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for layer in (self.q, self.k, self.v))
        weights = (q / q.shape[-1] ** 0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.out((weights @ v).transpose(-2, -3).flatten(-2))


@both_formulations
@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_is_one_operation(formulation, need_weights):
    """``F.multi_head_attention_forward`` does not re-enter the mode without end, and equals attention written out."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = Fn(lambda self, x: self.attention(x, x, x, need_weights=need_weights)[0], attention=attention)
    x = inputs(2, 3, 8)
    composite = Composite(formulation=formulation)
    assert_close(attribute(model, x, composite, 0), attribute(WrittenOut(attention), x, composite, 0), 1e-4)
