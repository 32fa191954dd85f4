"""The conservation check finds what is lost, and where; it tells biases, stabilizers and softmax apart, and leaves."""

from dataclasses import dataclass

import pytest
import torch
from support import FORMULATIONS, ZOO, Fn, assert_close, fingerprint, make
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    AlphaBeta,
    Attention,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    Pass,
    RegistrationError,
    ResidualGamma,
    Rule,
    Uniform,
    WSquare,
    ZBox,
    ZPlus,
    presets,
)
from lxt_compose.autograd.functions import bypass
from lxt_compose.conservation import check_conservation
from lxt_compose.errors import ConservationError


def checked(model, x, composite, start=None, **tolerances):
    """The check, and the gradient slot of the input, for a random relevance (or one slot) of the output."""
    x = x.clone().requires_grad_()
    with composite.register(model) as registration, check_conservation(registration, **tolerances) as check:
        y = model(x)
        y.backward(torch.randn_like(y) if start is None else start)
    return check, x.grad


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ZOO)
def test_the_default_rules_conserve_on_every_model_and_in_every_sample(name, formulation):
    model, x = make(name)
    check, _ = checked(model, x, Composite(formulation=formulation))
    assert len(check.rows) >= 3
    assert all(len(row.entered) == len(x) for row in check.rows)
    assert max(float(row.missing.abs().max()) for row in check.rows) < 1e-12
    assert {"bias", "stabilizer"} <= {kind for row in check.rows for kind in row.absorbed}


RULES = {
    "Epsilon": Epsilon(1e-3),
    "Epsilon, no bias": Epsilon(1e-3, zero_bias=True),
    "Gamma": Gamma(0.5, epsilon=1e-3),
    "AlphaBeta": AlphaBeta(2.0, 1.0, epsilon=1e-3),
    "ZPlus": ZPlus(epsilon=1e-3),
    "ZPlus, no bias": ZPlus(epsilon=1e-3, zero_bias=True),
    "WSquare": WSquare(epsilon=1e-3),
    "Flat": Flat(epsilon=1e-3),
    "ZBox": ZBox(-3.0, 3.0, epsilon=1e-3),
}


def shares_slowly(name, x, weight, bias):
    """Shares of the relevance of one output: each input's, the bias's and the stabilizer's; they add up to 1."""
    c = [(x[i] * weight[i]).item() for i in range(len(x))]
    b = bias.item()
    if "no bias" in name:
        b = 0.0

    def stabilized(total):
        return total + (1e-3 if total >= 0 else -1e-3)

    def split(parts, added):
        total = sum(parts) + added
        return [p / stabilized(total) for p in parts], added / stabilized(total), 1 - total / stabilized(total)

    kind = name.partition(",")[0]
    if kind == "Epsilon":
        return split(c, b)
    if kind == "Gamma":
        sign = 1 if sum(c) + b >= 0 else -1
        more = [1.5 if p * sign > 0 else 1.0 for p in [*c, b]]
        return split([p * m for p, m in zip(c, more[:-1], strict=True)], b * more[-1])
    if kind in ("AlphaBeta", "ZPlus"):
        up = split([max(p, 0) for p in c], max(b, 0))
        if kind == "ZPlus":
            return up
        down = split([min(p, 0) for p in c], min(b, 0))
        return [2 * u - d for u, d in zip(up[0], down[0], strict=True)], 2 * up[1] - down[1], 2 * up[2] - down[2]
    if kind == "WSquare":
        return split([w.item() ** 2 for w in weight], b**2)
    if kind == "Flat":
        return split([1.0] * len(c), 0.0)
    return split([p + 3 * abs(w.item()) for p, w in zip(c, weight, strict=True)], 0.0)


BOTH = [(name, formulation) for name, rule in RULES.items() for formulation in type(rule).formulations]


@pytest.mark.parametrize(("name", "formulation"), BOTH)
def test_bias_and_stabilizer_are_told_apart_as_written_slowly(name, formulation):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    slot = torch.randn(5, 3, dtype=torch.float64)
    start = slot if formulation == "relevance" else slot * layer(x).detach()
    check, _ = checked(layer, x, Composite({"": RULES[name]}, formulation=formulation), slot)
    (row,) = check.rows
    assert_close(row.entered, start.sum(1), 1e-12)
    for sample in range(5):
        found = [shares_slowly(name, x[sample], layer.weight[j], layer.bias[j]) for j in range(3)]
        weighed = list(zip(found, start[sample].tolist(), strict=True))
        assert row.left[sample].item() == pytest.approx(sum(r * sum(share[0]) for share, r in weighed), abs=1e-9)
        bias = row.absorbed.get("bias", torch.zeros(5))[sample].item()
        assert bias == pytest.approx(sum(r * share[1] for share, r in weighed), abs=1e-9)
        stabilizer = row.absorbed["stabilizer"][sample].item()
        assert stabilizer == pytest.approx(sum(r * share[2] for share, r in weighed), abs=1e-9)
        assert abs(stabilizer) > 1e-6


@pytest.mark.parametrize("name", ["Gamma", "AlphaBeta", "ZPlus", "WSquare", "Flat", "ZBox"])
@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ConvTranspose1d(2, 3, 3, 2)])
def test_split_rules_on_convolutions(layer, name):
    torch.manual_seed(0)
    layer = layer.double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64) if isinstance(layer, nn.Conv2d) else torch.randn(2, 2, 5).double()
    check, _ = checked(layer, x, Composite({"": RULES[name]}))
    (row,) = check.rows
    assert row.missing.abs().max() < 1e-12


# ---- rules that do not conserve --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halving(Rule):
    """Hands on half of the relevance, of one sample only if so told."""

    sample: int | None = None

    def enter(self, call, place):
        return call.carriers[place].detach()

    def leave(self, call, outputs):
        def back(slot):
            slot = slot.clone()
            slot[... if self.sample is None else self.sample] /= 2
            return (slot,)

        return [bypass(back, outputs[0], (), call.carriers)]


@dataclass(frozen=True)
class Mixing(Halving):
    """Hands on all relevance, to the wrong samples: the sum over the batch conserves."""

    def leave(self, call, outputs):
        return [bypass(lambda slot: (slot.flip(0),), outputs[0], (), call.carriers)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh())).double()


def test_a_violation_names_module_rule_sample_in_and_out():
    x, start = torch.randn(3, 4).double(), torch.tensor([[1.0], [2.0], [3.0]]).double().expand(3, 4) / 4
    composite = Composite({"2.1": Halving(1)})
    message = r"Tanh in '2.1' under Halving\(sample=1\), sample 1: in 2, out 1, missing 1"
    with pytest.raises(ConservationError, match=message) as raised:
        checked(net(), x, composite, start)
    ((row, sample),) = raised.value.violations
    assert (row.path, row.name, row.rule, sample) == ("2.1", "Tanh", "Halving(sample=1)", 1)
    assert_close(row.missing, torch.tensor([0.0, 1.0, 0.0]).double(), 1e-12)


def test_relevance_that_goes_to_the_wrong_sample_is_found_although_the_sum_conserves():
    x, start = torch.randn(2, 4).double(), torch.tensor([[1.0], [2.0]]).double().expand(2, 4)
    with pytest.raises(ConservationError, match=r"Tanh in '2\.1' under Mixing") as raised:
        checked(net(), x, Composite({"2.1": Mixing()}), start)
    rows = [row for row, _ in raised.value.violations]
    assert abs(float(rows[0].missing.sum())) < 1e-12
    assert {row.path for row in rows} == {"2.1"}


def test_every_call_of_a_module_is_looked_at():
    layer = nn.Linear(4, 4).double()
    act = nn.Tanh()
    model = Fn(lambda m, x: m.act(m.layer(m.act(m.layer(x)))), layer=layer, act=act)
    with pytest.raises(ConservationError) as raised:
        checked(model, torch.randn(1, 4).double(), Composite({"act": Halving(), "layer": Epsilon()}))
    assert [row.path for row, _ in raised.value.violations] == ["act", "act"]


def test_long_lists_are_cut():
    with pytest.raises(ConservationError, match=r"and 5 more$"):
        checked(net(), torch.randn(10, 4).double(), Composite({"2.1": Halving()}))


def test_a_product_that_gives_all_to_each_factor_creates_relevance():
    model = Fn(lambda m, x: x * m.layer(x), layer=nn.Linear(3, 3)).double()
    with pytest.raises(ConservationError, match=r"mul in the model itself under Epsilon"):
        checked(model, torch.randn(2, 3).double(), Composite({torch.mul: Epsilon()}))
    checked(model, torch.randn(2, 3).double(), Composite({torch.mul: Uniform()}))


def test_tolerances():
    x, composite = torch.randn(2, 4).double(), Composite({"2.1": Halving()})
    checked(net(), x, composite, rtol=0.51)
    checked(net(), x, composite, torch.full((2, 4), 1e-9).double())
    with pytest.raises(ConservationError):
        checked(net(), x, composite, torch.full((2, 4), 1e-9).double(), atol=1e-12)


def test_the_tolerance_of_a_sample_is_its_own():
    start = torch.tensor([[1e6], [1.0]]).double().expand(2, 4)
    with pytest.raises(ConservationError, match=r"Halving\(sample=1\), sample 1: in 4, out 2"):
        checked(net(), torch.randn(2, 4).double(), Composite({"2.1": Halving(1)}), start)


def test_what_is_not_finite_is_a_violation():
    @dataclass(frozen=True)
    class Broken(Halving):
        def leave(self, call, outputs):
            return [bypass(lambda slot: (slot / 0,), outputs[0], (), call.carriers)]

    with pytest.raises(ConservationError, match=r"not conserved:\n  Tanh in '2\.1' under Broken"):
        checked(net(), torch.randn(2, 4).double(), Composite({"2.1": Broken()}))


def test_a_rule_of_ones_own_tells_what_it_keeps():
    @dataclass(frozen=True)
    class Honest(Halving):
        def absorbed(self, call):
            return {"half": lambda slot: call.relevance_in(slot) / 2}

    check, _ = checked(net(), torch.randn(2, 4).double(), Composite({"2.1": Honest()}))
    kept = next(row for row in check.rows if row.path == "2.1").absorbed
    assert list(kept) == ["half"]


# ---- blocks, attention, operations with constants --------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(4, 6), nn.Linear(6, 4), act

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_biases_inside_a_block_under_one_rule(formulation):
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(nn.ReLU())).double(), torch.randn(3, 4).double()
    before = fingerprint(model)
    check, _ = checked(model, x, Composite({Block: Epsilon(1e-9)}, formulation=formulation))
    (row,) = check.rows
    # a piecewise linear block is x dz/dx + sum of b dz/db
    assert row.absorbed["bias"].abs().min() > 1e-3
    assert row.missing.abs().max() < 1e-8
    assert fingerprint(model) == before


def test_a_block_that_is_not_piecewise_linear_does_not_conserve_under_epsilon():
    torch.manual_seed(0)
    model = nn.Sequential(Block(nn.GELU())).double()
    with pytest.raises(ConservationError, match=r"Block in '0' under Epsilon"):
        checked(model, torch.randn(3, 4).double(), Composite({Block: Epsilon()}))


def attend(m, x):
    heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    out = F.scaled_dot_product_attention(heads, heads * 2, m.value(x).unflatten(-1, (2, -1)).transpose(1, 2), mask)
    return out.transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_attention_as_one_operation(formulation):
    torch.manual_seed(0)
    model, x = Fn(attend, value=nn.Linear(4, 4)).double(), torch.randn(3, 5, 4).double()
    check, _ = checked(model, x, Composite(formulation=formulation))
    row = next(row for row in check.rows if row.name == "scaled_dot_product_attention")
    assert row.rule.startswith("Attention")
    assert row.absorbed["softmax"].abs().min() > 1e-3
    wrong = Composite({F.scaled_dot_product_attention: Epsilon()}, formulation=formulation)
    with pytest.raises(ConservationError, match="scaled_dot_product_attention in the model itself under Epsilon"):
        checked(model, x, wrong)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rule", [Attention(), presets.cp_lrp], ids=["Attention", "CP-LRP"])
def test_multi_head_attention(formulation, rule):
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.mha(x, x, x)[0], mha=nn.MultiheadAttention(4, 2, batch_first=True)).double().eval()
    composite = rule(formulation=formulation) if callable(rule) else Composite({"mha": rule}, formulation=formulation)
    check, _ = checked(model, torch.randn(3, 5, 4).double(), composite)
    assert {"linear"} <= {row.name for row in check.rows}


def routed(m, x):
    """Constants that are overwritten, added, subtracted from, and shared."""
    out = torch.zeros(4, *x.shape[1:], dtype=x.dtype)
    out.index_add_(0, torch.tensor([0, 1, 1]), x[:3])
    out += m.table
    return (3.0 - out) * 2 + torch.addmm(m.table[0], out, m.weight)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_operations_with_constants(formulation):
    torch.manual_seed(0)
    model = Fn(routed).double()
    model.register_buffer("table", torch.randn(4, 4).double())
    model.register_buffer("weight", torch.randn(4, 4).double())
    check, _ = checked(model, torch.randn(4, 4).double(), Composite(formulation=formulation))
    kept = {
        row.name: float(row.absorbed[kind].abs().sum())
        for row in check.rows
        for kind in ("bias", "constant")
        if kind in row.absorbed
    }
    assert kept["index_add"] == 0
    assert min(kept[name] for name in ("rsub", "addmm")) > 1e-3


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_activations_that_are_not_0_at_0_lose_what_no_input_can_explain(formulation):
    x = torch.tensor([[0.0, 1e-20, -1.0], [0.5, 0.0, 3.0]]).double()
    check, _ = checked(Fn(lambda m, x: torch.sigmoid(x)), x, Composite(formulation=formulation))
    (row,) = check.rows
    assert row.absorbed["bias"].any()
    plain = Composite({torch.sigmoid: Identity(zero_bias=True)}, formulation=formulation)
    check, _ = checked(Fn(lambda m, x: torch.sigmoid(x)), x, plain)
    (row,) = check.rows
    assert ("stabilizer" in row.absorbed) == (formulation == "gradient")


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rule", [Identity(), Pass(), ResidualGamma(0.5)], ids=str)
def test_other_rules(rule, formulation):
    torch.manual_seed(0)
    sums = isinstance(rule, ResidualGamma)
    model = Fn(lambda m, x: x + 2 * x.flip(-1) if sums else F.silu(x) + 1)
    key = torch.add if sums else F.silu
    check, _ = checked(model, torch.randn(3, 4).double(), Composite({key: rule}, formulation=formulation))
    assert check.rows
    if sums:  # with a constant as the other operand
        model = Fn(lambda m, x: x + 1.5)
        check, _ = checked(model, torch.randn(3, 4).double(), Composite({key: rule}, formulation=formulation))
        assert check.rows


@pytest.mark.parametrize("kind", ["layer", "group", "instance", "batch", "rms", "normalize"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_normalizations_and_their_biases(kind, formulation):
    torch.manual_seed(0)
    module = {
        "layer": nn.LayerNorm(4), "group": nn.GroupNorm(2, 4), "instance": nn.InstanceNorm1d(4, affine=True),
        "batch": nn.BatchNorm1d(4), "rms": nn.RMSNorm(4), "normalize": Fn(lambda m, x: F.normalize(x, dim=-1)),
    }[kind]  # fmt: skip
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    if kind == "batch":
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
    model = nn.Sequential(module).double().eval()
    check, _ = checked(model, torch.randn(3, 4, 4).double(), Composite(formulation=formulation))
    (row,) = check.rows
    assert row.missing.abs().max() < 1e-10
    assert (row.absorbed["bias"].abs().max() > 1e-3) == (kind not in ("rms", "normalize"))


# ---- no trace, and use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ZOO)
def test_values_and_relevance_are_those_without_and_nothing_is_left(name, formulation):
    model, x = make(name)
    composite, start = Composite(formulation=formulation), torch.ones_like(model(x))
    before = fingerprint(model)
    state = torch.get_rng_state()
    _, found = checked(model, x, composite, start)
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(model) == before
    plain = x.clone().requires_grad_()
    with composite.register(model) as registration:
        with check_conservation(registration):
            y = model(plain)
            (watched,) = torch.autograd.grad(y, plain, start)
        z = model(plain)
        (alone,) = torch.autograd.grad(z, plain, start)
    assert torch.equal(y, z)
    assert torch.equal(watched, alone)
    assert torch.equal(found, alone)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant):
    model, x = make("mlp")
    wrapped = Fn(lambda m, x: checkpoint(m.model, x, use_reentrant=reentrant), model=model)
    check, _ = checked(wrapped, x, Composite())
    assert {"linear", "relu"} <= {row.name for row in check.rows}
    with pytest.raises(ConservationError, match=r"relu in 'model\.act' under Halving"):
        checked(wrapped, x, Composite({torch.relu: Halving()}))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_in_less_precision(dtype, rtol):
    model, x = make("cnn")
    check, _ = checked(model.to(dtype), x.to(dtype), presets.epsilon_plus(), rtol=rtol)
    assert check.rows


def test_an_error_of_the_model_comes_through_and_the_check_is_off_again():
    model, x = make("mlp")
    with Composite().register(model) as registration:
        with pytest.raises(ZeroDivisionError), check_conservation(registration):
            raise ZeroDivisionError
        with check_conservation(registration):
            model(x.requires_grad_()).sum().backward()


def test_a_check_within_a_check_and_one_of_nothing_are_refused():
    model, x = make("mlp")
    with Composite().register(model) as registration:
        with check_conservation(registration):
            with pytest.raises(RegistrationError, match="watched already"), check_conservation(registration):
                pass
            model(x.requires_grad_()).sum().backward()
        with pytest.raises(RegistrationError, match="nothing was checked"), check_conservation(registration):
            model(x)


def test_the_table_names_what_is_kept_and_what_is_not_conserved():
    model, x = net(), torch.randn(2, 4).double().requires_grad_()
    with Composite({"2.1": Halving(), "0": Gamma()}).register(model) as registration:
        try:
            with check_conservation(registration) as check:
                model(x).sum().backward()
        except ConservationError:
            pass
    lines = str(check).splitlines()
    assert lines[0].split() == ["where", "what", "rule", "in", "out", "bias", "stabilizer", "missing,", "at", "most"]
    assert [line.split()[0] for line in lines if "NOT CONSERVED" in line] == ["2.1"]
