"""Active dropout is warned about, and inputs that carry nothing are refused."""

import warnings

import pytest
import torch
from exact_models import inputs, linear
from support import Fn, fingerprint, label, mlp
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Pass, RegistrationError

DROPOUTS = {
    "module": lambda: (nn.Sequential(linear(), nn.Dropout(0.5)), "'1'"),
    "function": lambda: (Fn(lambda self, x: F.dropout(x, 0.5, self.training)), "the model itself"),
    "attention": lambda: (
        Fn(lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
        "the model itself",
    ),
    "multi-head": lambda: (
        Fn(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2, dropout=0.5).double()),
        "'a'",
    ),
}


@pytest.mark.parametrize(
    "rules", [{}, {"": Epsilon()}, {nn.Dropout: Pass(), nn.MultiheadAttention: Epsilon()}], ids=label
)
@pytest.mark.parametrize("kind", DROPOUTS)
def test_active_dropout_is_warned_about_once_by_name(kind, rules):
    """Dropout in train mode makes relevance random: warned about, once, with the module's path; not so in eval mode."""
    model, name = DROPOUTS[kind]()
    with warnings.catch_warnings(record=True) as caught, Composite(rules).register(model.train()):
        warnings.simplefilter("always")
        for _ in range(3):
            model(inputs(3, 4, 6).requires_grad_())
    assert [str(w.message).split(",")[0] for w in caught] == [f"dropout is active in {name}"]
    if kind != "attention":  # there the rate is the caller's affair, and eval mode changes nothing
        with warnings.catch_warnings(), Composite(rules).register(model.eval()):
            warnings.simplefilter("error")
            model(inputs(3, 4, 6).requires_grad_())


def test_inputs_that_cannot_carry_are_refused():
    """Clear errors that say what to do: nothing requires grad, integer inputs, inference mode."""
    model = mlp()
    embedding = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3))
    before = fingerprint(model), fingerprint(embedding)
    with Composite().register(model), Composite().register(embedding):
        with pytest.raises(RegistrationError, match=r"no input of Sequential requires grad.*call x.requires_grad_\(\)"):
            model(inputs(4, 6))
        with pytest.raises(RegistrationError, match=r"token ids cannot: pass their embeddings, e.g. inputs_embeds="):
            embedding(torch.arange(4))
        with torch.inference_mode(), pytest.raises(RegistrationError, match="called in inference mode"):
            model(inputs(4, 6))
        with torch.inference_mode():
            made_there = inputs(4, 6)
        with pytest.raises(RegistrationError, match="with a tensor made there; call it outside"):
            model(made_there)
    assert (fingerprint(model), fingerprint(embedding)) == before
