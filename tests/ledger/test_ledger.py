"""The ledger: it adds up on every kind of model, sees what nobody declared, and changes nothing."""

import gc
import json
import math
import threading
import weakref
from contextlib import nullcontext

import pytest
import torch
from support import FORMULATIONS, ZOO, Fn, cnn, make
from torch import nn
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    RegistrationError,
    Stop,
    Uniform,
    WSquare,
    ZBox,
    ZPlus,
    attribute,
    default_rules,
    first_layer,
    presets,
)
from lxt_compose.ledger import KINDS, Ledger
from lxt_compose.ledger.table import percent

ROUNDING = 1e-10


def explained(model, x, composite, *, ledger=True, index=0):
    """The relevance of x for one output of each sample, the output, and the ledger (None if it is not kept)."""
    x = x.detach().clone().requires_grad_()
    with composite.register(model) as registration, registration.ledger() if ledger else nullcontext() as books:
        y = model(x)[..., index]
        y.backward(y.detach() if composite.formulation == "relevance" else torch.ones_like(y))
    relevance = x.grad if composite.formulation == "relevance" else x.grad * x.detach()
    return relevance, y.detach(), books


def assert_closes(model, x, composite, tolerance=ROUNDING, **options):
    """The ledger of one explanation, after checking that it adds up, for each sample, to what flows anyway."""
    relevance, y, books = explained(model, x, composite, **options)
    assert books.unaccounted < tolerance
    per_sample = y.reshape(len(x), -1).sum(1)
    torch.testing.assert_close(books.seed, per_sample.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(books.inputs, relevance.flatten(1).double().sum(1), rtol=tolerance, atol=tolerance)
    total = books.inputs + sum(books.absorbed.values())
    torch.testing.assert_close(total, books.seed, rtol=tolerance, atol=10 * tolerance)
    return books


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


# ---- it adds up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ZOO)
def test_it_adds_up_and_changes_nothing(name, formulation):
    model, x = make(name)
    composite = Composite(formulation=formulation)
    books = assert_closes(model, x, composite)
    with_ledger = explained(model, x, composite)
    without = explained(model, x, composite, ledger=False)
    assert torch.equal(with_ledger[0], without[0])
    assert torch.equal(with_ledger[1], without[1])
    assert books.check.complete
    assert not books.uncovered
    assert set(books.absorbed) <= set(KINDS)


RULES = {
    "epsilon": {nn.Conv2d: Epsilon(0.1), nn.Linear: Epsilon(0.01)},
    "gamma": {nn.Conv2d: Gamma(0.25), nn.Linear: Epsilon()},
    "alpha_beta": {nn.Conv2d: AlphaBeta(2, 1), nn.Linear: Epsilon()},
    "box": [(first_layer, ZBox(-4, 4)), (nn.Conv2d, ZPlus()), (nn.Linear, Epsilon())],
    "flat": [("0", Flat()), ("3", WSquare()), (nn.ReLU, Identity())],
    "block": {"3": Uniform(), nn.Linear: Epsilon()},
    "whole model": {"": Epsilon()},
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_rules_on_modules(name, inplace):
    torch.manual_seed(0)
    model = cnn(inplace)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    composite = Composite(RULES[name] if name != "block" else {"3": Epsilon(0.5), "4": Identity()})
    books = assert_closes(model, x, composite)
    assert books.check.complete
    assert torch.equal(explained(model, x, composite)[0], explained(model, x, composite, ledger=False)[0])


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_residuals_reuse_and_views_changed_in_place(formulation):
    def forward(self, x):
        h = self.a(x)
        v = h[:, 2:5]
        v += self.c(x)
        h[:, 0] = x[:, 1] * 2
        h.mul_(1.5)
        h.view(-1, 4, 2)[:, 0].relu_()
        z = torch.zeros(len(x), 8, dtype=x.dtype)
        z[:, :4] = h[:, 4:]
        return self.b(self.d(self.d(h + z)))

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(6, 3), d=nn.Linear(8, 8)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    composite = Composite(formulation=formulation)
    assert_closes(model, x, composite)
    assert torch.equal(explained(model, x, composite)[0], explained(model, x, composite, ledger=False)[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_in_other_dtypes_to_their_rounding(dtype, tolerance, formulation):
    model, x = make("transformer")
    _, _, books = explained(model.to(dtype), x.to(dtype), Composite(formulation=formulation))
    assert books.unaccounted < tolerance
    assert books.seed.dtype == torch.float64


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_complex_carriers(formulation):
    def forward(self, x):
        spectrum = torch.fft.rfft(self.a(x), dim=-1)
        return self.b(torch.fft.irfft(spectrum * self.filter, n=8, dim=-1))

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).double()
    model.filter = torch.randn(5, dtype=torch.complex128)
    assert_closes(model, torch.randn(4, 6, dtype=torch.float64), Composite(formulation=formulation), 1e-6)


def test_masked_scores_of_minus_infinity():
    def forward(self, x):
        scores = self.a(x) @ x.transpose(-1, -2)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        return self.b((torch.softmax(scores, -1) @ x).mean(1))

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 3)).double()
    for formulation in FORMULATIONS:
        assert_closes(model, torch.randn(4, 5, 6, dtype=torch.float64), Composite(formulation=formulation))


MASK = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
MASKED = {
    "added": lambda scores_of, x, keys: x @ keys + MASK,
    "subtracted": lambda scores_of, x, keys: x @ keys - MASK.neg(),
    "with the product": lambda scores_of, x, keys: torch.baddbmm(MASK, x, keys),
    "module": lambda scores_of, x, keys: scores_of(x, x, x, attn_mask=MASK)[0] @ keys,
}


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
@pytest.mark.parametrize("way", MASKED)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_masks_of_minus_infinity_that_are_added(formulation, way, epsilon):
    """No relevance arrives at a masked score, so nothing of it is kept."""

    def forward(self, x):
        scores = MASKED[way](self.attention, self.a(x), x.transpose(-1, -2))
        return self.b((torch.softmax(scores, -1) @ x).mean(1))

    torch.manual_seed(0)
    parts = {"attention": nn.MultiheadAttention(6, 2, batch_first=True), "a": nn.Linear(6, 6), "b": nn.Linear(6, 3)}
    model = Fn(forward, **parts).double()
    composite = Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=epsilon))
    assert_closes(model, torch.randn(4, 5, 6, dtype=torch.float64), composite)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_activation_checkpoints(formulation, reentrant):
    model, x = make("residual")

    def run(x):
        for block in model:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x

    model.forward = run
    checkpointed = assert_closes(model, x, Composite(formulation=formulation))
    del model.forward
    plain = assert_closes(model, x, Composite(formulation=formulation))
    assert not checkpointed.uncovered
    assert checkpointed.check.complete
    for kind, amount in plain.absorbed.items():
        torch.testing.assert_close(checkpointed.absorbed.get(kind, torch.zeros(4).double()), amount)


def test_leaves_inside_the_model_are_inputs():
    model, x = make("transformer")
    leaves = {"head.bias": model.head.bias.detach().clone().requires_grad_()}
    composite = Composite(formulation="gradient")
    with composite.register(model) as registration, registration.ledger() as books:
        x = x.clone().requires_grad_()
        y = torch.func.functional_call(model, leaves, (x,))[:, 0]
        y.sum().backward()
    share = float((leaves["head.bias"].grad * leaves["head.bias"].detach()).sum())
    assert books.books.inputs.total == pytest.approx(float((x.grad * x.detach()).sum()) + share, abs=ROUNDING)
    assert books.unaccounted < ROUNDING
    # the bias is of all samples together, so the input's part of one cannot be told: it says so
    assert books.inputs.isnan().all()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_an_input_that_is_put_out_too_is_no_seed(formulation):
    model = Fn(lambda self, x: (torch.relu(x) * 3, x))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with Composite(formulation=formulation).register(model) as registration, registration.ledger() as ledger:
        y, _ = model(x)
        y.backward(torch.ones_like(y) if formulation == "gradient" else y.detach())
    torch.testing.assert_close(ledger.seed, y.detach().sum(1))
    torch.testing.assert_close(ledger.inputs, y.detach().sum(1))
    assert ledger.unaccounted < 1e-9


def test_a_model_that_mixes_samples_counts_as_one():
    torch.manual_seed(0)
    model = Fn(lambda self, x: self.a(x - x.mean(0)).mean(0), a=nn.Linear(6, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    with Composite().register(model) as registration, registration.ledger() as books:
        y = model(x)[0]
        y.backward(y.detach())
    assert books.seed.shape == (1,)
    assert float(books.seed) == pytest.approx(float(y.detach()))
    assert books.unaccounted < ROUNDING


def test_everything_stopped():
    model, x = make("mlp")
    books = assert_closes(model, x, Composite({nn.Linear: Stop()}))
    assert float(books.inputs.abs().max()) == 0


# ---- what is absorbed, told apart ------------------------------------------------------------------------------------


def test_the_bias_of_a_layer_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    books = assert_closes(model, x, Composite({nn.Linear: Epsilon(0.2)}))
    with torch.no_grad():
        z1 = model[0](x)
        h = z1.relu()
        z2 = model[2](h)[:, 0]
        bias2 = z2 * model[2].bias[0] / (z2 + 0.2 * z2.sign())
        lost2 = z2 * 0.2 / (z2.abs() + 0.2)
        r1 = h * model[2].weight[0] * (z2 / (z2 + 0.2 * z2.sign()))[:, None]
        bias1 = (r1 * model[0].bias / (z1 + 0.2 * z1.sign())).sum(1)
        lost1 = (r1 * 0.2 / (z1.abs() + 0.2)).sum(1)
    by_place = {entry.path: entry.absorbed for entry in books.entries if entry.name == "Linear"}
    for path, bias, lost in (("2", bias2, lost2 * z2.sign() * z2.sign()), ("0", bias1, lost1)):
        torch.testing.assert_close(by_place[path]["bias"].by_sample, bias)
        torch.testing.assert_close(by_place[path]["stabilizer"].by_sample, lost)


SPLITS = [Gamma(0.3), Gamma(0.0), AlphaBeta(2, 1), ZPlus(), WSquare()]


@pytest.mark.parametrize("rule", SPLITS, ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_the_bias_under_rules_that_split(rule, signed):
    """The bias as one more input, of value 1 and with the bias for its weights, gets what the ledger books as bias."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    x = x if signed else x.abs()
    wider = nn.Linear(7, 4, bias=False).double()
    with torch.no_grad():
        wider.weight.copy_(torch.cat([layer.weight, layer.bias[:, None]], 1))
    as_input, _, _ = explained(wider, torch.cat([x, torch.ones(5, 1)], 1).double(), Composite({nn.Linear: rule}))
    books = assert_closes(layer, x, Composite({nn.Linear: rule}))
    torch.testing.assert_close(books.absorbed["bias"], as_input[:, -1])
    assert float(books.absorbed["stabilizer"].abs().max()) < 1e-3
    torch.testing.assert_close(books.inputs, as_input[:, :-1].sum(1))


def test_a_layer_of_ones_own_under_a_rule_that_splits():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return (x[:, None] * self.weight).sum(-1) + self.bias

    torch.manual_seed(0)
    own, layer = Own().double(), nn.Linear(6, 4).double()
    layer.load_state_dict(own.state_dict())
    x = torch.randn(5, 6, dtype=torch.float64)
    for rule in SPLITS:
        books = assert_closes(own, x, Composite({Own: rule}))
        known = assert_closes(layer, x, Composite({nn.Linear: rule}))
        assert [entry.name for entry in books.entries] == ["Own"]
        for kind in ("bias", "stabilizer"):
            torch.testing.assert_close(books.absorbed[kind], known.absorbed[kind])


def test_a_bias_that_does_not_count_absorbs_nothing():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    for rule in (Epsilon(zero_bias=True), Gamma(zero_bias=True), ZPlus(zero_bias=True), ZBox(-5, 5), Flat()):
        books = assert_closes(layer, x, Composite({nn.Linear: rule}))
        assert float(books.absorbed.get("bias", torch.zeros(1)).abs().max()) == 0, rule
        assert float(books.absorbed["stabilizer"].abs().max()) < 1e-3


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_softmax_by_hand(formulation):
    torch.manual_seed(0)
    model = Fn(lambda self, x: torch.softmax(x, -1) @ self.v)
    model.v = torch.randn(6, 3, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    books = assert_closes(model, x, Composite(formulation=formulation), 1e-5)
    s = torch.softmax(x, -1)
    r = s * model.v[:, 0]
    sink = r.sum(1) - (x * (r - s * r.sum(1, keepdim=True))).sum(1)
    torch.testing.assert_close(books.absorbed["softmax"], sink, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_norms_by_hand(formulation):
    torch.manual_seed(0)
    norm, batch = nn.LayerNorm(6), nn.BatchNorm1d(6)
    for layer in (norm, batch):
        nn.init.normal_(layer.weight, 1.0)
        nn.init.normal_(layer.bias)
    batch.running_mean.normal_()
    batch.running_var.uniform_(0.5, 2)
    model = nn.Sequential(norm, batch).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    books = assert_closes(model, x, Composite(formulation=formulation), 1e-4)
    with torch.no_grad():
        h = norm(x)
        z = batch(h)[:, 0]
        mean = batch.running_mean[0] * batch.weight[0] / (batch.running_var[0] + batch.eps).sqrt()
        r = z - batch.bias[0] + mean
        bias = r / h[:, 0] * norm.bias[0]
    entries = {entry.path: entry.absorbed for entry in books.entries}
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(entries["1"]["bias"].by_sample, batch.bias[0].detach().expand(4), **close)
    torch.testing.assert_close(entries["1"]["norm"].by_sample, -mean.detach().expand(4), **close)
    torch.testing.assert_close(entries["0"]["bias"].by_sample, bias, **close)
    torch.testing.assert_close(entries["0"]["norm"].by_sample, torch.zeros(4).double(), **close)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_constants_that_are_added_or_put_in(formulation):
    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        return (x + self.position)[:, :2].sum(1)

    torch.manual_seed(0)
    model = Fn(forward)
    model.token, model.position = torch.randn(1, 1, 4).double(), torch.randn(4, 4).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    books = assert_closes(model, x, Composite(formulation=formulation), 1e-4)
    entries = {entry.name: entry.absorbed["constant"].by_sample for entry in books.entries}
    torch.testing.assert_close(entries["cat"], model.token[0, 0, 0].expand(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entries["add"], model.position[:2, 0].sum().expand(2), rtol=1e-4, atol=1e-4)


def test_modules_add_up_what_is_inside():
    model, x = make("residual")
    books = assert_closes(model, x, Composite(formulation="gradient"))
    modules = {module.path: module for module in books.modules}
    torch.testing.assert_close(modules[""].entered.by_sample, books.seed)
    torch.testing.assert_close(modules[""].left.by_sample, books.inputs)
    inside = sum(e.lost.by_sample for e in books.entries if e.path == "0" or e.path.startswith("0."))
    torch.testing.assert_close(modules["0"].absorbed.by_sample, inside)
    torch.testing.assert_close(modules["0"].left.by_sample, books.inputs)
    torch.testing.assert_close(modules["0"].entered.by_sample, modules["1"].left.by_sample)


# ---- per sample ------------------------------------------------------------------------------------------------------


def sequence_first(self, x):
    x, _ = self.attention(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), need_weights=False)
    return self.head(x.sum(0))


def tokens_of_all(self, x):
    rows = x.reshape(-1, x.shape[-1])
    chosen = (rows[:, 0] > 0).nonzero()[:, 0]
    out = torch.zeros_like(rows)
    out.index_add_(0, chosen, torch.relu(self.expert(rows[chosen])))
    return self.head(out.view(x.shape).mean(1))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("forward", [sequence_first, tokens_of_all])
def test_each_sample_is_as_alone_wherever_the_batch_dimension_went(forward, formulation):
    torch.manual_seed(0)
    parts = {"attention": nn.MultiheadAttention(8, 2), "expert": nn.Linear(8, 8), "head": nn.Linear(8, 3)}
    model = Fn(forward, **parts).double().eval()
    x = torch.randn(4, 4, 8, dtype=torch.float64)  # as many tokens as samples: sizes alone tell nothing
    books = assert_closes(model, x, Composite(formulation=formulation))
    for sample in range(4):
        alone = assert_closes(model, x[sample : sample + 1], Composite(formulation=formulation))
        entries = {(e.path, e.name): e for e in alone.entries}
        for entry in books.entries:
            assert not entry.lost.shared
            expected = float(entries[entry.path, entry.name].lost.by_sample)
            assert float(entry.lost.by_sample[sample]) == pytest.approx(expected, abs=ROUNDING), entry


def test_forward_passes_add_their_samples():
    model, x = make("mlp")
    together = assert_closes(model, x, Composite())
    x = x.clone().requires_grad_()
    with Composite().register(model) as registration, registration.ledger() as books:
        for part in x.split(3):
            y = model(part)[:, 0]
            y.backward(y.detach())
    assert books.seed.shape == (4,)
    assert books.unaccounted < ROUNDING
    for kind, amount in together.absorbed.items():
        torch.testing.assert_close(books.absorbed[kind], amount)


def test_with_attribute_in_batches():
    model, x = make("transformer")
    whole = attribute(model, x, target=1, ledger=True)
    parts = attribute(model, x, target=1, ledger=True, batch_size=1)
    for found in (whole, parts):
        assert found.ledger.unaccounted < ROUNDING
        torch.testing.assert_close(found.ledger.seed, found.output)
        torch.testing.assert_close(found.ledger.inputs, found.scores.sum(1))
    for kind, amount in whole.ledger.absorbed.items():
        torch.testing.assert_close(parts.ledger.absorbed[kind], amount)


def test_several_backward_passes_add_up():
    model, x = make("mlp")
    x = x.clone().requires_grad_()
    with Composite(formulation="gradient").register(model) as registration, registration.ledger() as books:
        y = model(x)
        y[:, 0].sum().backward(retain_graph=True)
        y[:, 1].sum().backward()
    torch.testing.assert_close(books.seed, (y[:, 0] + y[:, 1]).detach())
    assert books.unaccounted < ROUNDING


def test_two_threads_keep_their_own_books():
    models = [make("transformer", seed) for seed in (0, 1)]
    alone = [assert_closes(model, x, Composite(formulation="gradient")) for model, x in models]
    found = [None, None]

    def work(place):
        found[place] = assert_closes(*models[place], Composite(formulation="gradient"))

    threads = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        for kind, amount in one.absorbed.items():
            torch.testing.assert_close(other.absorbed[kind], amount)


# ---- what nobody declared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_custom_autograd_function_is_weighed(place, formulation):
    def forward(self, x):
        x = self.a(Swish.apply(x) if place == "first" else x)
        x = self.b(Swish.apply(x) if place == "middle" else torch.relu(x))
        return Swish.apply(x) if place == "last" else x

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    books = assert_closes(model, x, Composite(formulation=formulation))
    (row,) = books.uncovered
    assert (row.name, row.status) == ("Swish.apply", "uncovered")
    assert list(row.absorbed) == ["uncovered"]
    if place == "last":
        torch.testing.assert_close(row.entered.by_sample, books.seed)
        with torch.no_grad():
            z = model.b(torch.relu(model.a(x)))[:, 0]
            s = torch.sigmoid(z)
            slope = s + z * s * (1 - s)
        given = Swish.apply(z) * slope if formulation == "relevance" else z * slope
        torch.testing.assert_close(row.left.by_sample, given)
    assert not books.check.complete
    (found,) = books.check.rows
    assert (found.name, found.why) == ("Swish.apply", "custom autograd function")
    assert "% of the relevance passes through it (no rule covers it)" in str(books)
    assert "Swish.apply" in str(books.check)


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Softplus, nn.LogSigmoid, nn.Hardsigmoid])
@pytest.mark.parametrize("keyed", [False, True], ids=["default", "key"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_what_an_activation_is_at_zero_is_booked_as_its_bias(formulation, keyed, kind):
    """For the last one in the net this is ``w f(0)``, summed over the units."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(8, 8), kind(), nn.Linear(8, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    books = assert_closes(model, x, Composite({kind: Identity()} if keyed else {}, formulation=formulation))
    assert set(books.absorbed) <= {"bias", "stabilizer"}
    (row,) = [entry for entry in books.entries if entry.path == "3"]
    with torch.no_grad():
        expected = (model[4].weight[0] * kind()(torch.zeros(8).double())).sum()
    torch.testing.assert_close(row.absorbed["bias"].by_sample, expected.expand(4), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.1234, "12.3 %"),
        (-0.0001, "0.0 %"),
        (999.9994, "99999.9 %"),
        (999.9996, "1.0e+05 %"),
        (-1746254422471463928068025.0, "-1.7e+26 %"),
        (math.inf, "inf %"),
        (math.nan, "-"),
    ],
)
def test_percentages_stay_short(share, text):
    assert percent(share) == text


def test_what_no_mode_sees_is_unaccounted():
    scripted = torch.jit.script(_scripted)
    torch.manual_seed(0)
    model = Fn(lambda self, x: self.b(scripted(self.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    _, _, books = explained(model, x, Composite(formulation="gradient"))
    (row,) = books.uncovered
    assert row.status == "unseen"
    assert books.unaccounted == pytest.approx(float(row.lost.by_sample.abs().max()))
    assert books.unaccounted > 1e-3
    assert not books.check.complete
    assert "nothing saw it run" in str(books)


def test_what_runs_with_overrides_disabled_is_found_by_both():
    def forward(self, x):
        h = self.a(x)
        with torch._C.DisableTorchFunction():
            h = torch.tanh(h) * torch.sigmoid(h)
        return self.b(h)

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).double()
    _, _, books = explained(model, torch.randn(4, 6, dtype=torch.float64), Composite(formulation="gradient"))
    (row,) = books.uncovered
    assert set(row.name.split(", ")) == {"TanhBackward0", "SigmoidBackward0", "MulBackward0"}
    assert {found.name for found in books.check.rows} == {"TanhBackward0", "SigmoidBackward0", "MulBackward0"}
    assert {found.path for found in books.check.rows} == {"b"}
    assert books.check.nodes == len(books.check.rows) + 2  # and two layers


ONE = torch.ones((), dtype=torch.float64)


def _scripted(x):
    return x * torch.sigmoid(x)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_an_uncovered_operation_is_weighed(formulation):
    torch.manual_seed(0)
    model = Fn(lambda self, x: self.b(torch.atan2(self.a(x), ONE)), a=nn.Linear(6, 4), b=nn.Linear(4, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    books = assert_closes(model, x, Composite(formulation=formulation))
    (row,) = books.uncovered
    assert (row.name, row.path) == ("atan2", "")
    with torch.no_grad():
        z = model.b(torch.atan2(model.a(x), ONE))[:, 0]
        entering = z - model.b.bias[0]
    torch.testing.assert_close(row.entered.by_sample, entering, rtol=1e-4, atol=1e-4)
    assert books.share(row.entered) == pytest.approx(float((entering * z.sign()).sum() / z.abs().sum()), rel=1e-3)
    assert not books.check.complete
    assert books.check.rows[0].why == "uncovered"


def test_without_defaults_every_operation_is_uncovered():
    model, x = make("transformer")
    books = assert_closes(model, x, Composite(formulation="gradient", defaults=False))
    assert {"softmax", "layer_norm", "gelu"} <= {entry.name for entry in books.uncovered}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("place", ["of a function", "by a hook"])
def test_a_slot_that_is_written_over_is_read_as_it_arrived(place, formulation):
    """Somebody doubles the relevance on its way, in place or in a new tensor: the books are the same."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return doubled[0](gradient)

    def forward(self, x):
        h = torch.relu(self.a(x))
        if place == "by a hook":
            h.register_hook(doubled[0])
        else:
            h = Double.apply(h)
        return self.b(h)

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).double()
    x, found, doubled = torch.randn(4, 6, dtype=torch.float64), [], [lambda slot: slot * 2, lambda slot: slot.mul_(2)]
    for _ in range(2):
        doubled.reverse()
        relevance, _, books = explained(model, x, Composite(formulation=formulation))
        torch.testing.assert_close(books.inputs, relevance.sum(1))
        found.append(books.to_dict())
    assert found[0] == found[1]


# ---- no trace, no cost -----------------------------------------------------------------------------------------------


def test_only_one_ledger_at_a_time_and_none_afterwards():
    model, x = make("mlp")
    with Composite().register(model) as registration:
        with registration.ledger(), pytest.raises(RegistrationError, match="leave its with block first"):
            registration.ledger().__enter__()
        with registration.ledger() as books:
            pass
        y = model(x.requires_grad_())[:, 0]
        y.backward(y.detach())
    assert not books.entries
    assert not books.modules
    assert books.unaccounted == 0


def test_the_backward_pass_may_come_after_the_context():
    model, x = make("transformer")
    inside = assert_closes(model, x, Composite())
    x = x.clone().requires_grad_()
    with Composite().register(model) as registration, registration.ledger() as books:
        y = model(x)[:, 0]
    y.backward(y.detach())
    assert books.to_dicts() == inside.to_dicts()


def test_no_graph_is_kept_alive():
    model, x = make("transformer")
    x.requires_grad_()
    with Composite(formulation="gradient").register(model) as registration, registration.ledger() as books:
        inner = []
        handle = model.blocks[0]["mlp"].register_forward_hook(lambda m, i, o: inner.append(weakref.ref(o)))
        y = model(x)[:, 0]
        y.sum().backward()
        handle.remove()
        root = weakref.ref(y)
        del y
    assert books.unaccounted < ROUNDING
    gc.collect()
    assert root() is None
    assert inner[0]() is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_ledger_of_many_batches_holds_no_tensor_of_the_model(formulation, fails):
    """After each pass, no more is alive than small sums; what an error left behind goes with the next pass."""
    model, x = make("transformer")
    x = x.repeat(20, 1, 1).requires_grad_()  # activations have 40 * 5 * 8 numbers, sums 41

    def large():
        return sum(isinstance(t, torch.Tensor) and t.numel() >= 1600 for t in gc.get_objects())

    gc.collect()
    alive, others = [], large() - 1  # other tests may have left some; x counts
    handle = model.head.register_forward_hook(lambda *_: 1 / 0) if fails else None
    with Composite(formulation=formulation).register(model) as registration, registration.ledger() as books:
        for _ in range(4):
            with pytest.raises(ZeroDivisionError) if fails else nullcontext():
                y = model(x)[:, 0]
                y.backward(y.detach())
            y = None
            gc.collect()
            alive.append(large() - others)
    if handle is not None:
        handle.remove()
    assert alive[0] == alive[1] == alive[2] == alive[3]
    assert len(books.seed) == 160
    assert fails or alive[0] == 1


def test_a_backward_pass_for_one_of_two_inputs_is_noted():
    model = Fn(lambda self, x, z: self.a(x) + self.b(z), a=nn.Linear(6, 3), b=nn.Linear(6, 3)).double()
    x, z = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with Composite().register(model) as registration:
        with registration.ledger() as half:
            y = model(x, z)[:, 0]
            torch.autograd.grad(y, x, y.detach())
        with registration.ledger() as both:
            y = model(x, z)[:, 0]
            torch.autograd.grad(y, (x, z), y.detach())
    assert "1 paths of the backward pass were not taken" in str(half)
    assert "not taken" not in str(both)


def test_an_error_in_the_model_leaves_the_books_usable():
    def forward(self, x):
        h = self.a(x)
        if self.fails:
            raise KeyError("on purpose")
        return h

    model = Fn(forward, a=nn.Linear(6, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    with Composite().register(model) as registration, registration.ledger() as books:
        model.fails = True
        with pytest.raises(KeyError):
            model(x)
        model.fails = False
        y = model(x)[:, 0]
        y.backward(y.detach())
    assert books.unaccounted < ROUNDING
    assert books.seed.abs().sum() > 0


# ---- data and table --------------------------------------------------------------------------------------------------


def test_it_is_the_same_ledger_after_json():
    model, x = make("transformer")
    books = assert_closes(model, x, Composite(formulation="gradient"))
    back = Ledger.from_dict(json.loads(json.dumps(books.to_dict())))
    assert str(back) == str(books)
    assert back.unaccounted == books.unaccounted
    assert back.to_dicts() == books.to_dicts()
    assert str(back.check) == str(books.check)


def test_the_table():
    model, x = make("transformer")
    books = assert_closes(model, x, Composite(formulation="gradient"))
    text = str(books)
    assert max(map(len, text.splitlines())) <= 100
    shares = [abs(line.share) for line in books.lines()]
    assert shares == sorted(shares, reverse=True)
    assert "blocks.{0,1}.attention" in text
    total = books.share(books.books.inputs) + sum(line.share for line in books.lines())
    assert total == pytest.approx(1)
    assert f"unaccounted: {books.unaccounted:.1e}" in " ".join(text.split())
    assert books.to_string(rows=None).count("\n") > text.count("\n")


def test_html_is_escaped():
    class Evil(nn.Module):
        def forward(self, x):
            return torch.atan2(x, ONE)

    model = nn.Sequential(nn.Linear(6, 8)).double()
    model.add_module("<script>alert(1)</script>", Evil())
    _, _, books = explained(model, torch.randn(4, 6, dtype=torch.float64), Composite())
    html = books._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_what_rules_have_stopped_is_no_constant_where_it_comes_in_again(formulation):
    """A softmax that CP-LRP holds constant came from an input: its share of a layer belongs to the rule."""

    def forward(self, x):
        s = torch.softmax(x, -1) * 2.0
        return self.b(torch.cat([s, x], -1))

    torch.manual_seed(0)
    model = Fn(forward, b=nn.Linear(12, 3, bias=False)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    _, _, books = explained(model, x, presets.cp_lrp(formulation=formulation))
    assert books.unaccounted < 1e-9
    assert "constant" not in books.absorbed or books.absorbed["constant"].abs().max() < 1e-9
    assert books.absorbed["rule"].abs().max() > 1e-3


WRITTEN = {
    "set": lambda h, s: h.__setitem__((..., slice(6)), s),
    "copied": lambda h, s: h[..., :6].copy_(s),
    "added": lambda h, s: h.narrow(-1, 0, 6).add_(s),
    "put": lambda h, s: h.index_copy_(-1, torch.arange(6), s),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("how", WRITTEN)
def test_what_rules_have_stopped_may_be_written_into_a_constant(how, formulation):
    def forward(self, x):
        h = torch.zeros(4, 12, dtype=x.dtype)
        WRITTEN[how](h, torch.softmax(x, -1))
        h[..., 6:] = x
        return self.b(h)

    torch.manual_seed(0)
    model = Fn(forward, b=nn.Linear(12, 3, bias=False)).double()
    _, _, books = explained(model, torch.randn(4, 6, dtype=torch.float64), presets.cp_lrp(formulation=formulation))
    assert books.unaccounted < 1e-9
    assert "constant" not in books.absorbed or books.absorbed["constant"].abs().max() < 1e-9
    assert books.absorbed["rule"].abs().max() > 1e-3


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_slots_of_changed_views_may_lie_in_memory_in_another_order(formulation):
    """What is concatenated gets a part of a larger slot: the stabilizer's share is read at the right places."""

    def forward(self, x):
        h = torch.zeros_like(x)
        h.transpose(0, 1).index_add_(0, torch.tensor([0, 1, 1]), x.transpose(0, 1))
        return self.b(torch.cat([h, x], -1)).sum(1)

    torch.manual_seed(0)
    model = Fn(forward, b=nn.Linear(12, 3, bias=False)).double()
    _, _, books = explained(model, torch.randn(4, 3, 6, dtype=torch.float64), Composite(formulation=formulation))
    assert all(amount.abs().max() < 1e-4 for amount in books.absorbed.values())
