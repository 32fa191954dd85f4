"""A softmax that a model writes itself gets the relevance of torch.softmax, however it is written."""

import gc
import math
import operator
import weakref

import pytest
import torch
from support import FORMULATIONS, Fn
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import Composite, Epsilon, SoftmaxTaylor, Stop, attribute, check_conservation, default_rules, presets

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def model_of(function):
    return Fn(lambda _, x: function(x))


def over_sum(e, dim=-1):
    return e / e.sum(dim, keepdim=True)


def in_place(z):
    z = z * 1.0
    z.sub_(z.max(-1, keepdim=True).values)
    z.exp_()
    z.div_(z.sum(-1, keepdim=True))
    return z


def divided_in_place(z):
    e = (z - z.amax(-1, True)).exp() * 1.0
    e /= e.sum(-1, True)
    return e


def scattered(z):
    """Every line is a group: sums and maxima by index, as graph libraries have them."""
    index = torch.arange(z.numel() // z.shape[-1]).repeat_interleave(z.shape[-1])
    flat = z.reshape(-1)
    largest = torch.full((len(z) * z.shape[1],), -math.inf, dtype=z.dtype)
    largest = largest.scatter_reduce(0, index, flat.detach(), "amax")
    e = (flat - largest.index_select(0, index)).exp()
    total = torch.zeros_like(largest).scatter_add_(0, index, e) + 1e-16
    return (e / total.index_select(0, index)).reshape(z.shape)


def added_by_index(z):
    index = torch.arange(z.numel() // z.shape[-1]).repeat_interleave(z.shape[-1])
    e = (z.reshape(-1) - z.max()).exp()
    total = torch.zeros(z.numel() // z.shape[-1], dtype=z.dtype).index_add(0, index, e)
    return (e / total[index]).reshape(z.shape)


def moved(z):
    e = (z - z.amax(-1, True)).exp().flatten(0, 1).T
    return over_sum(e, 0).T.unflatten(0, z.shape[:2])


SPELLINGS = {
    "moved": moved,
    "exp / sum": lambda z: over_sum(z.exp()),
    "two exps": lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    "two shifted exps": lambda z: (z - z.max()).exp() / (z - z.max()).exp().sum(-1, keepdim=True),
    "amax": lambda z: over_sum((z - z.amax(-1, keepdim=True)).exp()),
    "max values": lambda z: over_sum((z - z.max(dim=-1, keepdim=True)[0]).exp()),
    "held": lambda z: over_sum((z - z.amax(-1, keepdim=True).detach()).exp()),
    "a number": lambda z: over_sum(torch.exp(z - z.max().item())),
    "plus minus": lambda z: over_sum((z + -z.amax(-1, keepdim=True)).exp()),
    "expanded": lambda z: over_sum((z - z.amax(-1, keepdim=True).expand_as(z)).exp()),
    "torch functions": lambda z: torch.div(torch.exp(z), torch.sum(torch.exp(z), dim=-1, keepdim=True)),
    "sum without its dimension": lambda z: (e := z.exp()) / e.sum(-1)[..., None],
    "unsqueeze, expand": lambda z: (e := z.exp()) / e.sum(-1).unsqueeze(-1).expand_as(e),
    "ones": lambda z: (e := z.exp()) / (e @ torch.ones(z.shape[-1], 1, dtype=z.dtype)),
    "einsum": lambda z: (e := z.exp()) / torch.einsum("nij->ni", e)[..., None],
    "reciprocal": lambda z: (e := (z - z.amax(-1, True)).exp()) * e.sum(-1, True).reciprocal(),
    "1 / sum": lambda z: (1 / (e := z.exp()).sum(-1, True)) * e,
    "** -1": lambda z: (e := z.exp()) * e.sum(-1, True) ** -1,
    "in place": in_place,
    "divided in place": divided_in_place,
    "with an epsilon": lambda z: (e := (z - z.amax(-1, True)).exp()) / (e.sum(-1, True) + 1e-16),
    "epsilon first": lambda z: over_sum((z - z.amax(-1, True)).exp() + 1e-16),
    "with a least sum": lambda z: (e := (z - z.amax(-1, True)).exp()) / e.sum(-1, True).clamp(min=1e-12),
    "exp2": lambda z: over_sum(torch.exp2((z - z.amax(-1, True)) * math.log2(math.e))),
    "2 ** x": lambda z: over_sum(2 ** (z * math.log2(math.e))),
    "pow": lambda z: over_sum(torch.pow(math.e, z - z.amax(-1, True))),
    "transposed": lambda z: over_sum((z.mT - z.mT.amax(-2, True)).exp(), -2).mT,
    "scaled powers": lambda z: over_sum(z.exp() * 3),
    "scatter": scattered,
    "index_add": added_by_index,
}


class Pool(nn.Module):
    """Attention by scores of the tokens themselves, all heads written with one softmax over the last dimension."""

    def __init__(self, softmax):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.score, self.out = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)
        self.softmax = softmax

    def forward(self, x):
        h = self.features(x)
        return self.out((self.softmax(self.score(h).mT) @ h).sum(1))


LINE = {"dim": -1, "keepdim": True}
LOG_SOFTMAXES = {
    "z - log": lambda z: z - z.exp().sum(**LINE).log(),
    "shifted": lambda z: (y := z - z.amax(**LINE)) - y.exp().sum(**LINE).log(),
    "held": lambda z: (y := z - z.amax(**LINE).detach()) - torch.log(torch.sum(torch.exp(y), -1, keepdim=True)),
    "maximum + log": lambda z: z - ((m := z.amax(**LINE)) + (z - m).exp().sum(**LINE).log()),
    "log + held": lambda z: z - ((z - (m := z.amax(**LINE).detach())).exp().sum(**LINE).log() + m),
    "z - logsumexp": lambda z: z - torch.logsumexp(z, -1, keepdim=True),
    "without its dimension": lambda z: z - torch.logsumexp(z, -1)[..., None],
    "in place": lambda z: (y := z * 1.0).sub_(y.logsumexp(-1, True)),
    "log of softmax": lambda z: torch.log(torch.softmax(z, -1)),
    "log of that by hand": lambda z: over_sum((z - z.amax(**LINE)).exp()).log(),
}
SUMS = {
    "log": lambda z: z.exp().sum(**LINE).log(),
    "without its dimension": lambda z: z.exp().sum(-1).log()[..., None],
    "maximum +": lambda z: (m := z.amax(**LINE)) + (z - m).exp().sum(**LINE).log(),
    "+ held": lambda z: (z - (m := z.detach().amax(**LINE))).exp().sum(**LINE).log() + m,
    "+ without its dimension": lambda z: ((z - (m := z.amax(-1))[..., None]).exp().sum(-1).log() + m)[..., None],
    "a number": lambda z: (z - z.max().item()).exp().sum(**LINE).log() + z.max().item(),
}
SPELLINGS |= {
    "exp of z - logsumexp": lambda z: (z - z.logsumexp(-1, True)).exp(),
    "exp of log_softmax": lambda z: F.log_softmax(z, -1).exp(),
    "exp of that by hand": lambda z: LOG_SOFTMAXES["shifted"](z).exp(),
}

X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PRESETS = {name: getattr(presets, name) for name in presets.available()}


def relevances(model, make, x=X):
    """The relevance under a composite in each formulation that it can be in, with whether the report is complete."""
    found = {}
    for formulation in FORMULATIONS:
        try:
            composite = make(formulation=formulation)
            result = attribute(model.double(), x, target=1, composite=composite)
        except Exception as error:
            if "formulation" not in str(error):
                raise
            continue
        found[formulation] = result.relevance, result.report.complete
    return found


def box(**options):
    return presets.epsilon_gamma_box(-3.0, 3.0, **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_spelling_is_torch_softmax_under_every_preset(preset):
    make = box if preset == "epsilon_gamma_box" else PRESETS[preset]
    expected = relevances(Pool(lambda z: z.softmax(-1)), make)
    assert expected
    for name, softmax in SPELLINGS.items():
        if "in place" in name and preset in ("guided_backprop", "deconvnet", "beta_smooth"):
            continue  # the plain gradient of exp needs what was overwritten, in torch too
        torch.testing.assert_close(softmax(X), X.softmax(-1), **TOLERANCE)
        for formulation, (relevance, _) in relevances(Pool(softmax), make).items():
            torch.testing.assert_close(
                relevance, expected[formulation][0], **TOLERANCE, msg=f"{name}, {formulation}: other relevance"
            )


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rule", [None, Stop(), Epsilon(), SoftmaxTaylor()])
def test_a_key_for_softmax_is_one_for_all_spellings(rule, formulation):
    def make(formulation):
        return Composite({} if rule is None else {F.softmax: rule}, formulation=formulation)

    expected = relevances(Pool(lambda z: z.softmax(-1)), make)[formulation][0]
    for softmax in SPELLINGS.values():
        relevance, complete = relevances(Pool(softmax), make)[formulation]
        torch.testing.assert_close(relevance, expected, rtol=1e-7, atol=1e-7 if rule == Epsilon() else 1e-9)
        assert complete


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_values_are_the_models_own(spelling, formulation):
    model = Pool(SPELLINGS[spelling]).double()
    with torch.no_grad():
        expected = model(X)
    with Composite(formulation=formulation).register(model):
        assert torch.equal(model(X.clone().requires_grad_()), expected)


MASK = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(3)) < 0.4
MASK[:, :, 0] = False
BIAS = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
MASKED = {
    "filled": lambda z: over_sum((z.masked_fill(MASK, -math.inf) - z.amax(-1, True)).exp()),
    "its own maximum": lambda z: over_sum(((m := z.masked_fill(MASK, -math.inf)) - m.amax(-1, True)).exp()),
    "filled after the shift": lambda z: over_sum((z - z.amax(-1, True)).masked_fill(MASK, -math.inf).exp()),
    "powers times a mask": lambda z: over_sum((z - z.amax(-1, True)).exp() * ~MASK),
    "masked twice": lambda z: ((e := z.exp()) * (m := (~MASK).double())) / (e * m).sum(-1, True),
    "powers filled": lambda z: over_sum((z - z.amax(-1, True)).exp().masked_fill(MASK, 0)),
    "moved and filled": lambda z: over_sum(
        (z - z.amax(-1, True)).exp().flatten().masked_fill(MASK.flatten(), 0).view_as(z)
    ),
    "where": lambda z: over_sum(torch.where(MASK, 0.0, z.exp())),
}
OTHERS = {
    "temperature": (lambda z: (z / 0.7).softmax(-1), {
        "before": lambda z: over_sum(((y := z / 0.7) - y.amax(-1, True)).exp()),
        "after": lambda z: over_sum(((z - z.amax(-1, True)) / 0.7).exp()),
        "twice": lambda z: over_sum(((z - z.amax(-1, True)) / 1.4 * 2).exp()),
        "a tensor": lambda z: over_sum(((z - z.amax(-1, True)) / torch.full((2, 1), 0.7, dtype=z.dtype)).exp()),
    }),
    "mask": (lambda z: z.masked_fill(MASK, -math.inf).softmax(-1), MASKED),
    "finite mask": (lambda z: z.masked_fill(MASK, -1e9).softmax(-1), {
        "before": lambda z: over_sum(((m := z.masked_fill(MASK, -1e9)) - m.amax(-1, True)).exp()),
    }),
    "bias": (lambda z: (z + BIAS).softmax(-1), {
        "before": lambda z: over_sum(((y := z + BIAS) - y.amax(-1, True)).exp()),
        "none": lambda z: over_sum((z + BIAS).exp()),
    }),
    "two dimensions": (lambda z: z.flatten(1).softmax(-1).view_as(z), {
        "sum": lambda z: (e := (z - z.amax((1, 2), True)).exp()) / e.sum((1, 2), keepdim=True),
    }),
}  # fmt: skip


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "res_lrp", "relp", "epsilon", "gamma_vit"])
@pytest.mark.parametrize("kind", OTHERS)
def test_masks_temperatures_and_biases(kind, preset, formulation):
    known, spellings = OTHERS[kind]
    expected = relevances(Pool(known), PRESETS[preset])[formulation][0]
    for name, softmax in spellings.items():
        torch.testing.assert_close(softmax(BIAS), known(BIAS), **TOLERANCE)
        relevance = relevances(Pool(softmax), PRESETS[preset])[formulation][0]
        torch.testing.assert_close(relevance, expected, **TOLERANCE, msg=f"{name}: other relevance")


@pytest.mark.parametrize("name", MASKED)
def test_masked_terms_get_nothing_even_where_relevance_arrives_at_them(name):
    results = []
    for softmax in (lambda z: z.masked_fill(MASK, -math.inf).softmax(-1), MASKED[name]):
        x = BIAS.clone().requires_grad_()
        with Composite().register(model_of(softmax)) as registration:
            registration.model(x).backward(torch.arange(20.0).view_as(x).double())
        results.append(x.grad)
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)
    assert not results[1][MASK].any()


class Readout(nn.Module):
    """A pool with weights of either sign."""

    def __init__(self, weights):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.score, self.out = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)
        self.weights = weights

    def forward(self, x):
        h = self.features(x)
        return self.out(h.mean(1) + (self.weights(self.score(h).mT).expand(-1, 2, 5) @ h).sum(1))


COMPOSITES = {name: PRESETS[name] for name in ("attnlrp", "cp_lrp", "res_lrp", "relp", "epsilon", "epsilon_plus")} | {
    "keys": lambda formulation: Composite(
        {torch.logsumexp: Stop(), F.log_softmax: Stop(), F.softmax: Stop()}, formulation=formulation
    )
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("kind", ["log_softmax", "logsumexp"])
def test_logarithms(kind, composite):
    known, spellings = {
        "log_softmax": (lambda z: z.log_softmax(-1), LOG_SOFTMAXES),
        "logsumexp": (lambda z: z.logsumexp(-1, keepdim=True), SUMS),
    }[kind]
    expected = relevances(Readout(known), COMPOSITES[composite])
    for name, spelling in spellings.items():
        torch.testing.assert_close(spelling(BIAS), known(BIAS), **TOLERANCE)
        for formulation, (relevance, complete) in relevances(Readout(spelling), COMPOSITES[composite]).items():
            torch.testing.assert_close(relevance, expected[formulation][0], **TOLERANCE, msg=f"{name}: other relevance")
            assert complete


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_ledger_and_check_know_logarithms(formulation):
    for spelling in (*LOG_SOFTMAXES.values(), *SUMS.values()):
        model, x = Readout(spelling).double(), X.clone().requires_grad_()
        composite = Composite(formulation=formulation)
        with composite.register(model) as registration, check_conservation(registration):
            y = model(x)
            y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
        books = attribute(model, X, target=1, composite=composite, ledger=True).ledger
        assert books.unaccounted < 1e-9


class Heads(nn.Module):
    """Self-attention with two heads, by a softmax that is given."""

    def __init__(self, softmax):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.softmax = nn.Linear(4, 12), nn.Linear(4, 3), softmax

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = self.softmax(q @ k.mT / 2**0.5) @ v
        return self.out(mixed.transpose(1, 2).flatten(2)).sum(1)


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "relp", "epsilon_plus"])
def test_attention_by_hand(preset):
    expected = relevances(Heads(lambda z: z.softmax(-1)), PRESETS[preset])
    for name in ("amax", "held", "with an epsilon", "reciprocal"):
        found = relevances(Heads(SPELLINGS[name]), PRESETS[preset])
        for formulation, (relevance, complete) in found.items():
            torch.testing.assert_close(relevance, expected[formulation][0], **TOLERANCE)
            assert complete


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 4, 1, 3], [0, 0, 0, 1, 1, 2, 2, 3, 4, 4]])


class GraphAttention(nn.Module):
    """One layer of graph attention over the edges, or over all pairs with a mask."""

    def __init__(self, *, dense):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.source, self.target = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        self.out, self.dense = nn.Linear(6, 3), dense

    def forward(self, x):
        h = self.embed(x)
        a, b = self.source(h), self.target(h)
        source, target = EDGES
        if self.dense:
            pairs = torch.full((5, 5), -math.inf, dtype=x.dtype).index_put((target, source), torch.zeros(10).double())
            scores = F.leaky_relu(b + a.mT, 0.2) + pairs
            return self.out(scores.softmax(-1) @ h)
        scores = F.leaky_relu(a[source] + b[target], 0.2)[:, 0]
        largest = torch.full((5,), -math.inf, dtype=x.dtype).scatter_reduce(0, target, scores.detach(), "amax")
        e = (scores - largest[target]).exp()
        weights = e / (e.new_zeros(5).scatter_add_(0, target, e) + 1e-16)[target]
        mixed = torch.zeros_like(h).index_add(0, target, weights[:, None] * h[source])
        return self.out(mixed)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp"])
def test_graph_attention_is_masked_attention(preset, formulation):
    """In the gradient formulation, where sums have no stabilizers, and the masked pairs have no relevance."""
    found = []
    for dense in (True, False):
        x = X[0].clone().requires_grad_()
        model = GraphAttention(dense=dense).double()
        with PRESETS[preset](formulation=formulation).register(model) as registration:
            y = model(x)
            y.backward(torch.ones_like(y) if formulation == "gradient" else y.detach())
        assert registration.report().complete
        found.append(x.grad if formulation == "relevance" else x * x.grad)
    tolerance = TOLERANCE if formulation == "gradient" else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found[1], found[0], **tolerance)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_report_names_it_and_the_ledger_closes(formulation):
    def explained(softmax):
        composite = Composite(formulation=formulation)
        return attribute(Pool(softmax).double(), X, target=1, composite=composite, ledger=True)

    expected = explained(lambda z: z.softmax(-1)).ledger.absorbed["softmax"]
    for name in ("amax", "held", "two exps", "** -1", "in place", "exp2", "scatter", "moved"):
        result = explained(SPELLINGS[name])
        assert "softmax (by hand)" in [row["target"] for row in result.report.to_dicts()], name
        assert result.report.complete
        books = result.ledger
        assert books.unaccounted < 1e-10, name
        torch.testing.assert_close(books.inputs + sum(books.absorbed.values()), books.seed, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(books.absorbed["softmax"], expected, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_it_conserves_what_softmax_conserves(formulation):
    for name in ("amax", "held", "two exps", "** -1", "in place", "exp2", "scatter"):
        model, x = Pool(SPELLINGS[name]).double(), X.clone().requires_grad_()
        with Composite(formulation=formulation).register(model) as registration, check_conservation(registration):
            y = model(x)
            y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
        assert x.grad.isfinite().all(), name


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("key", [torch.exp, torch.div, operator.truediv])
def test_keys_for_exp_and_for_the_division_go_first(key, formulation):
    model, x = Pool(SPELLINGS["amax"]).double(), X.clone().requires_grad_()
    with Composite({key: Stop()}, formulation=formulation).register(model) as registration:
        model(x)
    names = [row["target"] for row in registration.report().to_dicts()]
    assert "softmax (by hand)" not in names


NO_SOFTMAX = {
    "another exponent": lambda z: (z * 2).exp() / z.exp().sum(-1, True),
    "another dimension": lambda z: (e := z[..., :2].exp()) / e.sum(-1),
    "sums so far": lambda z: (e := z.exp()) / e.cumsum(-1),
    "a logistic function": lambda z: (e := z.exp()) / (1 + e),
    "the largest": lambda z: (e := z.exp()) / e.amax(-1, True),
    "another group": lambda z: (e := z.exp()) / e.sum(-1, True).roll(1, 1),
    "masked above": lambda z: (e := z.exp()) * ~MASK / e.sum(-1, True),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_what_is_no_softmax_is_not_taken_for_one(name, formulation):
    model, x = model_of(NO_SOFTMAX[name]), BIAS.clone().requires_grad_()
    with Composite(formulation=formulation).register(model) as registration:
        y = model(x)
        y.sum().backward()
    assert "softmax (by hand)" not in [row["target"] for row in registration.report().to_dicts()]
    assert x.grad.abs().max() < 100


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_shift_that_is_not_the_same_for_all_terms_stays_a_part_of_the_scores(formulation):
    def make(formulation):
        return presets.attnlrp(formulation=formulation)

    expected = relevances(Pool(lambda z: (z - BIAS).softmax(-1)), make)[formulation][0]
    found = relevances(Pool(lambda z: over_sum((z - BIAS).exp())), make)[formulation][0]
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_nothing_is_kept_after_the_forward_pass_but_what_the_graph_holds(formulation):
    seen = []

    class Noted(nn.Module):
        def forward(self, x):
            z = x * 2
            seen.append(weakref.ref(z))
            return over_sum((z - z.detach().amax(-1, True)).exp())

    model, x = Noted(), torch.randn(3, 4, requires_grad=True)
    with Composite(formulation=formulation).register(model) as registration:
        gc.disable()
        try:
            y = model(x)
            notes = registration.session.stack.notes
            assert not notes.active
            assert notes.of(y) is None
            assert seen[0]() is None
            node = weakref.ref(y.grad_fn)
            del y
            assert node() is None  # no circle keeps the graph
        finally:
            gc.enable()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_inside_a_checkpoint(formulation):
    class Checkpointed(Pool):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    def make(formulation):
        return presets.attnlrp(formulation=formulation)

    expected = relevances(Pool(lambda z: z.softmax(-1)), make)[formulation][0]
    found, complete = relevances(Around(Pool(SPELLINGS["amax"])), make)[formulation]
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert complete


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype):
    tolerance = 5e-2 if dtype is not torch.float32 else 1e-5
    for formulation in FORMULATIONS:
        results = []
        for softmax in (lambda z: z.softmax(-1), SPELLINGS["amax"], SPELLINGS["held"]):
            model, x = model_of(softmax), BIAS.to(dtype).requires_grad_()
            with Composite(formulation=formulation).register(model):
                y = model(x)
                y.backward(torch.ones_like(y) * torch.arange(5))
            results.append(x.grad)
        for found in results[1:]:
            torch.testing.assert_close(found, results[0], rtol=tolerance, atol=tolerance)


LINES = torch.tensor([[True], [False]])


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_lines_that_are_masked_in_full(formulation):
    results = []
    for softmax in (lambda z: z.softmax(-1), SPELLINGS["amax"]):
        model = model_of(lambda z, softmax=softmax: softmax(z.masked_fill(LINES, -math.inf)).nan_to_num(0))
        x = BIAS.clone().requires_grad_()
        with Composite(formulation=formulation).register(model):
            y = model(x)
            y.sum().backward()
        assert x.grad.isfinite().all()
        results.append(x.grad)
    torch.testing.assert_close(*results)


SCORES_TWICE = {
    "exp of z - logsumexp": lambda z: (z - z.logsumexp(-1, keepdim=True)).exp(),
    "z - log of sum of exp": lambda z: z - z.exp().sum(-1, keepdim=True).log(),
    "exp of log of softmax": lambda z: (z.exp() / z.exp().sum(-1, keepdim=True)).log().exp(),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", SCORES_TWICE)
def test_books_hold_scores_that_are_used_twice_once(name, formulation):
    weight, x = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model = Fn(lambda _, x: SCORES_TWICE[name](x @ weight) @ weight)
    with presets.attnlrp(formulation=formulation).register(model) as registration, registration.ledger() as ledger:
        y = model(x).sum()
        y.backward(y.detach() if formulation == "relevance" else None)
    absorbed = sum(ledger.absorbed.values())
    torch.testing.assert_close(ledger.inputs + absorbed, ledger.seed)
    constant = ledger.absorbed.get("constant", torch.zeros(1))
    assert float(constant.abs().max()) < 1e-9


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_constant_over_one_and_a_power_is_no_softmax(formulation):
    constant, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model = Fn(lambda _, x: constant / (1 + (-x).exp()))
    with Composite(formulation=formulation).register(model) as registration:
        model(x)
    assert "by hand" not in str(registration.report())


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("scores", [torch.exp, lambda x: x.softmax(-1), lambda x: x.logsumexp(-1).expand(4, 4) * x])
def test_scores_may_be_powers_themselves(scores, formulation):
    """The shift before a softmax of what is noted as powers, or as a softmax, is passed by like any other."""
    shifts = {
        "none": lambda z: z.softmax(-1),
        "its maximum": lambda z: over_sum((z - z.amax(-1, True)).exp()),
        "the same, held": lambda z: over_sum((z - z.amax(-1, True).detach()).exp()),
        "the largest of all": lambda z: over_sum((z - z.max().detach()).exp()),
        "a number": lambda z: over_sum((z - 0.5).exp()),
    }
    x, found = torch.linspace(-1, 2, 16).double().reshape(4, 4).flip(0).roll(1, 1), {}
    for name, softmax in shifts.items():
        leaf = x.clone().requires_grad_()
        composite = Composite(formulation=formulation, defaults=default_rules(formulation, 1e-12))
        model = model_of(lambda x, f=softmax: (f(scores(x)) * x).sum(-1))
        with composite.register(model):
            z = model(leaf)
            start = z.detach() if formulation == "relevance" else torch.ones_like(z)
            (found[name],) = torch.autograd.grad(z, leaf, start)
    for name, slot in found.items():
        torch.testing.assert_close(slot, found["none"], rtol=1e-6, atol=1e-8, msg=name)


def divided_later(how, z, v):
    """Attention that divides by the sum of the powers after the product with the values."""
    e = z.exp()
    if how == "shifted":
        e = (z - z.amax(-1, keepdim=True)).exp()
    if how == "masked":
        e = e * torch.ones(z.shape[-2:]).tril()
    if how == "computed twice":
        return (e @ v) / z.exp().sum(-1, keepdim=True)
    if how == "einsum":
        return torch.einsum("nij,njd->nid", e, v) / e.sum(-1)[..., None]
    if how == "reciprocal":
        return torch.bmm(e, v) * e.sum(-1, keepdim=True).reciprocal()
    return e @ v / e.sum(-1, keepdim=True)


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "relp"])
@pytest.mark.parametrize("how", ["plain", "shifted", "masked", "computed twice", "einsum", "reciprocal"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_sum_may_divide_what_was_made_of_the_powers(how, formulation, preset):
    """``(e v) / sum of e`` is ``softmax v``: values are the model's own, relevance that of torch.softmax."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(6, 6, bias=False).double() for name in "qkv"}
    mask = torch.ones(4, 4).tril().log() if how == "masked" else torch.zeros(4, 4)

    def scores(self, x):
        return self.q(x) @ self.k(x).mT

    models = (
        Fn(lambda self, x: torch.softmax(scores(self, x) + mask, -1) @ self.v(x), **layers),
        Fn(lambda self, x: divided_later(how, scores(self, x), self.v(x)), **layers),
    )
    x, found = torch.randn(3, 4, 6).double(), []
    for model in models:
        leaf, value = x.clone().requires_grad_(), model(x)
        composite = getattr(presets, preset)(formulation=formulation)
        with composite.register(model) as registration, registration.ledger() as books:
            z = model(leaf)
            assert torch.equal(z, value)
            start = z.detach() if formulation == "relevance" else torch.ones_like(z)
            found += torch.autograd.grad(z, leaf, start)
        assert registration.report().complete
        assert books.unaccounted < 1e-8
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, v: z.exp() @ v / z.exp().sum(-2, keepdim=True).mT,  # of other terms
        lambda z, v: z.exp() @ v / (2 * z).exp().sum(-1, keepdim=True),
    ],
    ids=["another dimension", "other powers"],
)
def test_a_product_with_powers_over_another_sum_is_no_softmax(function):
    x = torch.linspace(-1, 1, 16).double().reshape(1, 4, 4).requires_grad_()
    model = model_of(lambda x: function(x, x * 2))
    with Composite(formulation="gradient").register(model) as registration:
        model(x)
        assert not any("by hand" in row.target for row in registration.report().rows)
