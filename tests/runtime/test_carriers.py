"""Any tensor can be a carrier: weights, biases and tables given as leaves, latent tensors, and any target."""

import pytest
import torch
import transformers
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lxt_compose import Composite, Norm, RuleError, presets
from lxt_compose.autograd.trees import tensors_in

FORMULATIONS = ("relevance", "gradient")


def relevance_of(model, leaves, x, formulation, start=None):
    """The relevance of x and of each leaf, by name, for all outputs at once."""
    x = x.detach().clone().requires_grad_()
    leaves = {name: value.detach().clone().requires_grad_() for name, value in leaves.items()}
    with Composite(formulation=formulation).register(model) as registration:
        z = functional_call(model, leaves, (x,))
        start = torch.ones_like(z) if start is None else start
        z.backward(start * z.detach() if formulation == "relevance" else start)
    tensors = {"x": x, **leaves}
    relevance = {
        name: tensor.grad if formulation == "relevance" else tensor.detach() * tensor.grad
        for name, tensor in tensors.items()
    }
    assert registration.report().complete
    return relevance, z.detach()


def tensors(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_weight_and_bias_of_a_linear_layer(formulation):
    """Proposition 3.3 for ``z_j = sum_i w_ji x_i + b_j``: half of each term for w and x, and b in full."""
    model = nn.Linear(3, 4).double()
    (x,) = tensors((5, 3))
    found, z = relevance_of(model, dict(model.named_parameters()), x, formulation)
    terms = x[:, None, :] * model.weight.detach()[None]  # sample, output, input; R_j = z_j, so R_j / z_j = 1
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if formulation == "relevance" else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found["x"], terms.sum(1) / 2, **tolerance)
    torch.testing.assert_close(found["weight"], terms.sum(0) / 2, **tolerance)
    torch.testing.assert_close(found["bias"], model.bias.detach() * 5, **tolerance)
    total = sum(float(each.sum()) for each in found.values())
    assert total == pytest.approx(float(z.sum()), rel=1e-4 if formulation == "relevance" else 1e-12)


NORMS = {
    "layer_norm": (lambda: nn.LayerNorm(6), (4, 6)),
    "layer_norm over two dimensions": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "rms_norm": (lambda: nn.RMSNorm(6, eps=1e-5), (4, 6)),
    "group_norm": (lambda: nn.GroupNorm(2, 6), (3, 6, 5)),
    "instance_norm": (lambda: nn.InstanceNorm1d(6, affine=True), (3, 6, 5)),
    "batch_norm while training": (lambda: nn.BatchNorm1d(6, momentum=0.0).train(), (7, 6)),
}


def normalized(model, x):
    """x, centerd and divided by its statistic: the norm without weight and bias."""
    bare = {name: torch.full_like(p, float(name == "weight")) for name, p in model.named_parameters()}
    return functional_call(model, bare, (x,)).detach()


GIVEN = [(name, given) for name in NORMS for given in (("bias",), ("weight",), ("weight", "bias"))]


@pytest.mark.parametrize(("name", "given"), [each for each in GIVEN if each != ("rms_norm", ("bias",))])  # it has none
def test_weight_and_bias_of_a_norm(name, given):
    """``z = n w + b`` with n the normalized input: ``R_w = R_n = n w R / z``, half each; ``R_b = b R / z``."""
    build, shape = NORMS[name]
    model = build().double()
    nn.init.normal_(model.weight, 1, 0.3)
    leaves = {key: value for key, value in model.named_parameters() if key in given}
    if getattr(model, "bias", None) is not None:
        nn.init.normal_(model.bias, 0, 0.3)
    x, start = tensors(shape, shape)
    found, _ = relevance_of(model, leaves, x, "gradient", start)
    weight = model.weight.detach()
    share = 0.5 if "weight" in given else 1.0
    parts = normalized(model, x) * expanded(weight, x) * start
    if "weight" in given:
        expected = (parts * share).sum(dims_of(weight, x)).reshape(weight.shape)
        torch.testing.assert_close(found["weight"], expected, rtol=1e-10, atol=1e-12)
    if "bias" in leaves:
        bias = model.bias.detach()
        expected = (expanded(bias, x) * start).sum(dims_of(bias, x)).reshape(bias.shape)
        torch.testing.assert_close(found["bias"], expected, rtol=1e-10, atol=1e-12)
    # The input alone: the same with its share, which needs only that half is half.
    alone, _ = relevance_of(model, {}, x, "gradient", start)
    torch.testing.assert_close(found["x"], alone["x"] * share, rtol=1e-10, atol=1e-12)
    # Conservation, where no bias is left out (a norm gives relevance of sum(n w) to its input).
    assert float(alone["x"].sum()) == pytest.approx(float(parts.sum()), rel=1e-9)


def dims_of(parameter, x):
    """The dimensions of x along which a parameter of a norm is broadcast."""
    if parameter.dim() > 1 or x.shape[-1] == parameter.numel() != x.shape[1]:
        return tuple(range(x.dim() - parameter.dim()))
    place = 1 if x.shape[1] == parameter.numel() else x.dim() - 1
    return tuple(i for i in range(x.dim()) if i != place)


def expanded(parameter, x):
    kept = [1] * x.dim()
    for dim in set(range(x.dim())) - set(dims_of(parameter, x)):
        kept[dim] = x.shape[dim]
    return parameter.reshape(kept)


@pytest.mark.parametrize("name", NORMS)
def test_norms_in_both_formulations(name):
    build, shape = NORMS[name]
    model = build().double()
    nn.init.normal_(model.weight, 1, 0.3)
    x, start = tensors(shape, shape)
    leaves = dict(model.named_parameters())
    gradient, _ = relevance_of(model, leaves, x, "gradient", start)
    relevance, _ = relevance_of(model, leaves, x, "relevance", start)
    for key, value in gradient.items():
        torch.testing.assert_close(relevance[key], value, rtol=1e-8, atol=1e-10)


def test_a_running_mean_is_no_carrier_of_the_rule():
    model = nn.InstanceNorm1d(3, affine=True, track_running_stats=True).double().eval()
    leaves = {"running_mean": model.running_mean.clone().requires_grad_()}
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    composite = Composite({F.instance_norm: Norm()}, formulation="gradient")
    with composite.register(model), pytest.raises(RuleError, match="the input, the weight and the bias as carriers"):
        functional_call(model, leaves, (x,))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_weights_alone(formulation):
    """With a constant input the weights take all: ``R_w = w * x * R / z``."""
    model = nn.Linear(3, 4, bias=False).double()
    weight = model.weight.detach().clone().requires_grad_()
    (x,) = tensors((1, 3))
    with Composite(formulation=formulation).register(model):
        z = functional_call(model, {"weight": weight}, (x,))
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    found = weight.grad if formulation == "relevance" else weight.detach() * weight.grad
    torch.testing.assert_close(found, weight.detach() * x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_solution_of_linear_equations_is_linear_in_its_right_hand_side(formulation):
    """``X = L^-1 B``: as in a division, what divides is held constant: ``R_B = B * L^-T (R_X / X)``, ``R_L = 0``."""

    class Solve(nn.Module):
        def forward(self, x):
            lower = torch.eye(4, dtype=x.dtype) + x[:4].tril(-1)
            return torch.linalg.solve_triangular(lower, x[4:], upper=False, unitriangular=True)

    (x,) = tensors((8, 4))
    found, z = relevance_of(Solve(), {}, x, formulation)
    inverse = torch.linalg.inv(torch.eye(4, dtype=x.dtype) + x[:4].tril(-1))
    expected = torch.cat([torch.zeros(4, 4, dtype=x.dtype), x[4:] * inverse.T.sum(1, keepdim=True)])
    torch.testing.assert_close(found["x"], expected, rtol=1e-4, atol=1e-4)
    assert float(found["x"].sum()) == pytest.approx(float(z.sum()), rel=1e-4)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_row_of_a_table_that_is_reserved_for_padding(formulation):
    """Its own gradient is 0, but its relevance is not."""
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 2, bias=False)).double()
    nn.init.normal_(model[0].weight)
    table = model[0].weight.detach().clone().requires_grad_()
    ids = torch.tensor([[1, 4, 1]])
    with Composite(formulation=formulation).register(model) as registration:
        z = functional_call(model, {"0.weight": table}, (ids,))
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    found = table.grad if formulation == "relevance" else table.detach() * table.grad
    each = table.detach()[ids[0]] * model[1].weight.detach().sum(0)
    expected = torch.zeros_like(table).index_add(0, ids[0], each).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert ("embedding", "Lookup()") in {(row.target, row.rule) for row in registration.report().rows}


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=19, n_positions=12)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).double().eval()


def explain(model, ids, leaves, target, preset=presets.attnlrp):
    """t * t.grad of each leaf for ``target(logits of the last token)``."""
    leaves = {name: dict(model.named_parameters())[name].detach().clone().requires_grad_() for name in leaves}
    with preset().register(model):
        logits = functional_call(model, leaves, (ids,), {"use_cache": False}, tie_weights=False).logits[0, -1]
        target(logits).backward()
    return {name: leaf.detach() * leaf.grad for name, leaf in leaves.items()}


EMBEDDINGS = ("transformer.wte.weight", "transformer.wpe.weight")


def test_contrastive_targets_are_the_difference_of_their_explanations():
    """Rules are linear in the relevance that comes in, so any linear target is just another start of backward."""
    model, ids = gpt2(), torch.tensor([[3, 7, 7, 2]])
    one, other = (explain(model, ids, EMBEDDINGS, lambda logits, i=i: logits[i]) for i in (5, 11))
    contrast = explain(model, ids, EMBEDDINGS, lambda logits: logits[5] - logits[11])
    mean = explain(model, ids, EMBEDDINGS, lambda logits: logits.mean())
    against_mean = explain(model, ids, EMBEDDINGS, lambda logits: logits[5] - logits.mean())
    for name in EMBEDDINGS:
        torch.testing.assert_close(contrast[name], one[name] - other[name])
        torch.testing.assert_close(against_mean[name], one[name] - mean[name])
        assert contrast[name].abs().max() > 0


def test_several_targets_from_one_forward_pass():
    model, ids = gpt2(), torch.tensor([[3, 7, 7, 2]])
    table = model.transformer.wte.weight.detach().clone().requires_grad_()
    with presets.attnlrp().register(model):
        leaves = {"transformer.wte.weight": table}
        logits = functional_call(model, leaves, (ids,), {"use_cache": False}, tie_weights=False).logits[0, -1]
        each = [torch.autograd.grad(logits[i], table, retain_graph=True)[0] * table.detach() for i in (5, 11)]
        starts = torch.zeros(2, len(logits), dtype=logits.dtype)
        starts[0, 5] = starts[1, 11] = 1
        together = torch.autograd.grad(logits, table, starts, is_grads_batched=True)[0] * table.detach()
    for i, target in enumerate((5, 11)):
        alone = explain(model, ids, EMBEDDINGS[:1], lambda logits, i=target: logits[i])[EMBEDDINGS[0]]
        torch.testing.assert_close(each[i], alone)
        torch.testing.assert_close(together[i], alone)


def test_latent_tensors_carry_relevance_too():
    """The relevance of a hidden state is ``h * h.grad``, and in CP-LRP a residual stream conserves it up to biases."""
    model, ids = gpt2(), torch.tensor([[3, 7, 7, 2]])
    kept = []
    with presets.cp_lrp().register(model):
        handle = model.transformer.h[1].register_forward_hook(
            lambda module, args, output: kept.extend(tensors_in(output)) or kept[0].retain_grad()
        )
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        logit = model(inputs_embeds=x).logits[0, -1, 4]
        logit.backward()
        handle.remove()
    # a new model has no biases above the last block
    assert float((kept[0].detach() * kept[0].grad).sum()) == pytest.approx(float(logit.detach()), rel=1e-9)
