"""Integers have all the relevance of what was looked up by them, wherever and in whatever way a model does that.

The oracle is the same model with one-hot rows as a floating point input, multiplied with the tables; their relevance is
summed over the vocabulary.
"""

import numpy as np
import pytest
import torch
from support import FORMULATIONS, Fn, assert_close, fingerprint
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import AttributionError, Composite, Epsilon, Identity, UncoveredError, attribute, baselines, evaluate

SIZE, WIDTH = 20, 6


def weight(rows=SIZE, width=WIDTH, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(samples=3, length=5, seed=1):
    return torch.randint(2, SIZE, (samples, length), generator=torch.Generator().manual_seed(seed))


def embedding(rows=SIZE, width=WIDTH, seed=0):
    return nn.Embedding.from_pretrained(weight(rows, width, seed), freeze=False)


def model_of(embed, **children):
    """Classifies embeddings [n, tokens, WIDTH], each place by weights of its own, with something between them."""
    torch.manual_seed(0)

    def forward(self, *given):
        x = embed(self, *given)
        x = (x * self.place[: x.shape[1]]).tanh()
        return self.head((x + x.roll(1, 1) * 0.5).mean(1))

    children = {"table": embedding(), "head": nn.Linear(WIDTH, 3).double(), **children}
    model = Fn(forward, **children).eval()
    model.place = torch.rand(12, WIDTH, dtype=torch.float64) + 0.5
    return model


def one_hot(ids, size=SIZE):
    return F.one_hot(ids, size).double()


def scattered(self, ids):
    rows = torch.zeros(*ids.shape, SIZE, dtype=torch.float64)
    rows.scatter_(2, ids[..., None], 1.0)
    return rows @ self.table.weight


def written_one_by_one(self, ids):
    rows = torch.zeros(*ids.shape, SIZE, dtype=torch.float64)
    rows[torch.arange(len(ids))[:, None], torch.arange(ids.shape[1]), ids] = 1
    return rows @ self.table.weight


def filled(self, ids):
    buffer = torch.zeros(ids.shape[1], len(ids), dtype=torch.int32)
    turned = buffer.t()
    turned.copy_(ids)  # and seen in the buffer
    return self.table(buffer).transpose(0, 1)


def unsorted(table, row):
    return table(row.values)[row.indices.argsort()]


WAYS = {
    "nn.Embedding": lambda self, ids: self.table(ids),
    "F.embedding": lambda self, ids: F.embedding(ids, self.table.weight),
    "torch.embedding": lambda self, ids: torch.embedding(self.table.weight, ids),
    "table[ids]": lambda self, ids: self.table.weight[ids],
    "table[None, ids]": lambda self, ids: self.table.weight[None, ids][0],
    "table[:, ids]": lambda self, ids: self.table.weight.T[:, ids].permute(1, 2, 0),
    "table[..., ids, :]": lambda self, ids: self.table.weight[..., ids, :],
    "index_select": lambda self, ids: self.table.weight.index_select(0, ids.flatten()).unflatten(0, ids.shape),
    "index_select, behind": lambda self, ids: (
        self.table.weight.T.index_select(1, ids.flatten()).unflatten(1, ids.shape).permute(1, 2, 0)
    ),
    "gather": lambda self, ids: self.table.weight[None].expand(len(ids), -1, -1).gather(
        1, ids[..., None].expand(-1, -1, WIDTH)
    ),
    "take_along_dim": lambda self, ids: torch.take_along_dim(self.table.weight[None], ids[..., None], 1),
    "take": lambda self, ids: self.table.weight.take(ids[..., None] * WIDTH + torch.arange(WIDTH)),
    "one-hot": lambda self, ids: one_hot(ids) @ self.table.weight,
    "one-hot by ==": lambda self, ids: (ids[..., None] == torch.arange(SIZE)).double() @ self.table.weight,
    "one-hot by where": lambda self, ids: (
        torch.where(torch.arange(SIZE).eq(ids[..., None]), torch.ones(1).double(), 0.0)
        @ self.table.weight
    ),
    "one-hot by scatter_": scattered,
    "one-hot by []=": written_one_by_one,
    "bags of one": lambda self, ids: F.embedding_bag(ids.reshape(-1, 1), self.table.weight, mode="sum").unflatten(
        0, ids.shape
    ),
    "an offset": lambda self, ids: torch.cat([self.table.weight.neg(), self.table.weight])[ids + SIZE],
    "a part of a number": lambda self, ids: self.table((ids + 7 * SIZE) % SIZE),
    "bits": lambda self, ids: self.table((ids << 3 | 5) >> 3 & 31),
    "other numbers": lambda self, ids: self.table.weight.flip(0)[torch.arange(SIZE).flip(0)[ids]],
    "rows of other numbers": lambda self, ids: self.table(torch.arange(SIZE)[:, None].expand(-1, 2)[ids][..., 1]),
    "int32": lambda self, ids: self.table(ids.int()),
    "column by column": lambda self, ids: torch.stack([self.table(ids[:, place]) for place in range(ids.shape[1])], 1),
    "row by row": lambda self, ids: torch.stack([self.table(row) for row in ids]),
    "transposed": lambda self, ids: self.table(ids.t().contiguous()).transpose(0, 1),
    "flat": lambda self, ids: self.table(ids.reshape(-1)).unflatten(0, ids.shape),
    "padded": lambda self, ids: self.table(F.pad(ids, (2, 3), value=1))[:, 2:-3],
    "rolled": lambda self, ids: self.table(ids.roll(1, 1)).roll(-1, 1),
    "with a token in front": lambda self, ids: self.table(torch.cat([torch.ones_like(ids[:, :1]), ids], 1))[:, 1:],
    "sorted": lambda self, ids: torch.stack([unsorted(self.table, row.sort()) for row in ids]),
    "a buffer filled by a view": filled,
    "checkpointed": lambda self, ids: checkpoint(lambda i: self.table(i).clone(), ids, use_reentrant=False),
}  # fmt: skip


def by_one_hot(embed, given, composite, **children):
    """The oracle: ``embed`` is given one-hot rows, of which relevance is summed over the vocabulary."""
    rows = tuple(one_hot(x) for x in given)
    found = attribute(model_of(embed, **children), rows, target=1, composite=composite, dims="batch token feature")
    return found.scores, found.output


both = pytest.mark.parametrize("formulation", FORMULATIONS)


def composite_of(formulation):
    return Composite(formulation=formulation)


@both
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_look_up(way, formulation):
    composite = composite_of(formulation)
    want, output = by_one_hot(lambda self, rows: rows @ self.table.weight, [ids()], composite)
    model = model_of(WAYS[way])
    before = fingerprint(model)
    found = attribute(model, ids(), target=1, composite=composite, ledger=True)
    assert fingerprint(model) == before
    assert torch.equal(found.output, model(ids())[:, 1].detach())
    assert_close(found.output, output)
    assert_close(found.scores, want, 1e-6)
    assert found.report.complete
    assert not found.report.notes
    assert found.relevance.shape[:2] == (3, 5)
    assert found.ledger.unaccounted < 1e-9
    total = float(found.relevance.sum())
    assert float(found.ledger.books.inputs.total) == pytest.approx(total, abs=1e-9)
    cut = attribute(model, ids(), target=1, composite=composite, batch_size=2)
    assert_close(cut.scores, found.scores)


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("bags of one", "checkpointed")])
def test_what_is_removed_is_the_token_that_was_meant(way):
    given = {"ids": ids(2, 4, seed=2)}
    model, plain = model_of(WAYS[way]), model_of(WAYS["nn.Embedding"])
    expected = evaluate.leave_one_out(plain, given["ids"], target=1)
    assert expected.abs().min() > 0
    assert_close(evaluate.leave_one_out(model, given["ids"], target=1), expected)
    for method in (baselines.gradient_x_input, baselines.integrated_gradients):
        assert_close(method(model, given["ids"], target=1), method(plain, given["ids"], target=1))


# ---- several look-ups of one input -----------------------------------------------------------------------------------


def shifted_as_bart_does(ids, start=1, pad=0):
    shifted = ids.new_zeros(ids.shape)
    shifted[:, 1:] = ids[:, :-1].clone()
    shifted[:, 0] = start
    shifted.masked_fill_(shifted == -100, pad)
    return shifted


def shifted_as_mbart_does(ids, pad=0):
    """The last token comes first."""
    shifted = ids.clone()
    shifted.masked_fill_(shifted == -100, pad)
    last = (shifted.ne(pad).sum(1) - 1).unsqueeze(-1)
    first = shifted.gather(1, last).squeeze()
    shifted[:, 1:] = shifted[:, :-1].clone()
    shifted[:, 0] = first
    return shifted


SHIFTS = {
    "roll": (lambda ids: ids.roll(1, 1), lambda rows: rows.roll(1, 1)),
    "cat": (
        lambda ids: torch.cat([torch.full_like(ids[:, :1], 3), ids[:, :-1]], 1),
        lambda rows: torch.cat([one_hot(torch.full_like(rows[:, :1, 0], 3).long()), rows[:, :-1]], 1),
    ),
    "BART": (
        shifted_as_bart_does,
        lambda rows: torch.cat([one_hot(torch.full_like(rows[:, :1, 0], 1).long()), rows[:, :-1]], 1),
    ),
    "mBART": (shifted_as_mbart_does, lambda rows: torch.cat([rows[:, -1:], rows[:, :-1]], 1)),
    "the same again": (lambda ids: ids, lambda rows: rows),
    "reversed": (lambda ids: ids.flip(1), lambda rows: rows.flip(1)),
    "masked": (
        lambda ids: ids.masked_fill(ids > 9, 4),
        lambda rows: torch.where(rows[..., 10:].any(-1, keepdim=True), one_hot(torch.tensor(4)), rows),
    ),
    "where": (
        lambda ids: torch.where(ids % 2 == 0, ids, 7),
        lambda rows: torch.where(rows[..., 1::2].any(-1, keepdim=True), one_hot(torch.tensor(7)), rows),
    ),
}


@both
@pytest.mark.parametrize("shift", SHIFTS)
def test_ids_that_are_looked_up_again_elsewhere(shift, formulation):
    composite, (of_ids, of_rows) = composite_of(formulation), SHIFTS[shift]
    other = {"other": embedding(seed=5)}

    def embed(self, ids):
        return self.table(ids) * self.other(of_ids(ids)).cos()

    def by_rows(self, rows):
        return (rows @ self.table.weight) * (of_rows(rows) @ self.other.weight).cos()

    want, output = by_one_hot(by_rows, [ids()], composite, **other)
    found = attribute(model_of(embed, **other), ids(), target=1, composite=composite, ledger=True)
    assert_close(found.output, output)
    assert_close(found.scores, want, 1e-6)
    assert found.report.complete
    assert float(found.ledger.books.inputs.total) == pytest.approx(float(found.relevance.sum()), rel=1e-9)
    cut = attribute(model_of(embed, **other), ids(), target=1, composite=composite, batch_size=1)
    if shift != "mBART":  # where torch's squeeze() takes the samples too if there is but one
        assert_close(cut.scores, found.scores)


@both
def test_constants_among_what_is_looked_up_keep_their_relevance_apart(formulation):
    composite = composite_of(formulation)
    model = model_of(lambda self, ids: self.table(shifted_as_bart_does(ids)))
    found = attribute(model, ids(), target=1, composite=composite, ledger=True)
    assert found.scores[:, -1].abs().max() == 0  # which nothing looks up
    assert found.scores[:, :-1].abs().min() > 0
    start = float(found.output.sum() - found.scores.sum() - found.ledger.absorbed["bias"].sum())
    assert float(found.ledger.absorbed["constant"].sum()) == pytest.approx(start, abs=1e-5)
    assert abs(start) > 1e-3


@both
def test_a_table_for_each_column(formulation):
    composite = composite_of(formulation)
    columns = torch.stack([torch.arange(4) % 3, torch.arange(4) % 2, torch.tensor([6, 0, 3, 6])], 1)
    sizes, widths = (3, 2, 7), (2, 1, 3)
    tables = nn.ModuleList(embedding(size, width) for size, width in zip(sizes, widths, strict=True))

    def embed(self, x_cat, x_num):
        return torch.cat([*(table(x_cat[:, i]) for i, table in enumerate(self.tables)), x_num], 1)[:, None]

    def by_rows(self, x_cat, x_num):
        parts = x_cat.split(sizes, 1)
        return torch.cat([*(r @ t.weight for r, t in zip(parts, self.tables, strict=True)), x_num], 1)[:, None]

    head = nn.Linear(WIDTH + 2, 3).double()
    for model in (
        first := model_of(embed, tables=tables, head=head),
        second := model_of(by_rows, tables=tables, head=head),
    ):
        model.place = torch.ones(1, WIDTH + 2, dtype=torch.float64)
    numbers = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = torch.cat([one_hot(columns[:, i], size) for i, size in enumerate(sizes)], 1)
    want = attribute(second, (rows, numbers), target=1, composite=composite)
    found = attribute(first, (columns, numbers), target=1, composite=composite, dims={"args0": "batch column"})
    by_column = torch.stack([part.sum(1) for part in want.relevance["args0"].split(sizes, 1)], 1)
    assert_close(found.scores["args0"], by_column, 1e-6)
    assert_close(found.relevance["args1"], want.relevance["args1"], 1e-6)
    assert found.relevance["args0"].shape == (4, 3, 3)  # as many features as the widest table has
    assert found.report.complete


JOINS = {
    "cat": lambda x, rows: torch.cat([x, rows], 1),
    "column_stack": lambda x, rows: torch.column_stack([x, rows]),
    "hstack": lambda x, rows: torch.hstack((rows, x)),
    "stack": lambda x, rows: torch.stack([x, rows]).flatten(0, 0).sum(0) @ torch.ones(4, 8, dtype=torch.float64),
    "where": lambda x, rows: torch.where(x > 0, x, rows) @ torch.ones(4, 8, dtype=torch.float64),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("way", JOINS)
def test_one_hot_rows_of_integers_that_are_joined_with_numbers(way, formulation):
    """Nets for tables join them as they are, and leave it to torch to make numbers of them."""

    class Table(nn.Module):
        def __init__(self, turn):
            super().__init__()
            torch.manual_seed(0)
            self.turn, self.head = turn, nn.Linear(8, 3).double()

        def forward(self, values, columns):
            return self.head(JOINS[way](values, self.turn(F.one_hot(columns, 4)))).tanh()

    given = {"values": torch.randn(3, 4, dtype=torch.float64), "columns": torch.tensor([2, 0, 3])}
    options = {"target": 1, "composite": Composite(formulation=formulation), "dims": {"columns": "batch"}}
    found = attribute(Table(lambda rows: rows), given, **options)
    want = attribute(Table(torch.Tensor.double), given, **options)
    assert found.report.complete
    assert torch.equal(found.output, want.output)
    assert float(found.relevance["columns"].abs().sum()) > 0
    for name, relevance in want.relevance.items():
        assert_close(found.relevance[name], relevance, 1e-9)


def test_columns_in_one_table_with_offsets():
    columns = torch.tensor([[0, 1, 4], [2, 0, 3]])
    model = model_of(lambda self, ids: self.table(ids + torch.tensor([0, 3, 5])))
    found = attribute(model, columns, target=1, dims="batch column")
    plain = attribute(model_of(WAYS["nn.Embedding"]), columns + torch.tensor([0, 3, 5]), target=1)
    assert_close(found.relevance, plain.relevance)


@both
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("form", ["rows", "offsets", "padding"])
def test_bags(mode, form, formulation):
    composite = composite_of(formulation)
    options = {"mode": mode, "padding_idx": 0 if form == "padding" else None}
    given = ids(3, 4)
    if form == "padding":
        given[1, 2:] = 0
    bags = Fn(lambda self, i: self.head(self.bag(i).tanh()), bag=None, head=nn.Linear(WIDTH, 3).double())
    bags.bag = nn.EmbeddingBag.from_pretrained(weight(), freeze=False, **options)
    plain = Fn(None, head=bags.head)
    if form == "offsets":
        bags.function = lambda self, i: self.head(self.bag(i.flatten(), torch.arange(3) * 4).tanh())

    def by_rows(self, rows):
        real = rows[..., 1:].any(-1, keepdim=True) if form == "padding" else torch.ones_like(rows[..., :1], dtype=bool)
        x = rows @ weight()
        if mode == "max":
            return self.head(x.masked_fill(~real, -torch.inf).amax(1).tanh())
        x = x.masked_fill(~real, 0).sum(1)
        return self.head((x / real.sum(1) if mode == "mean" else x).tanh())

    plain.function = by_rows
    want = attribute(plain, one_hot(given), target=1, composite=composite, dims="batch token feature")
    found = attribute(bags, given, target=1, composite=composite, ledger=True)
    assert torch.equal(found.output, bags(given)[:, 1].detach())
    assert_close(found.scores, want.scores, 1e-6)
    assert found.report.complete
    assert found.ledger.unaccounted < 1e-9


@both
@pytest.mark.parametrize("rounding", ["long", "round", "floor"])
def test_columns_of_numbers_that_are_rounded_and_looked_up(rounding, formulation):
    composite, sizes = composite_of(formulation), (5, 7)
    tables = nn.ModuleList([embedding(5, 3), embedding(7, 4)])
    columns = torch.stack([torch.arange(6) % 5, (torch.arange(6) * 3) % 7], 1)
    numbers = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    passes = []

    def integers(x):
        if rounding == "long":
            return x[:, :2].long()
        return (x[:, :2].round() if rounding == "round" else (x[:, :2] + 0.25).floor()).to(torch.int64)

    def forward(self, x):
        passes.append(len(x))
        ids = integers(x)
        return self.head(torch.cat([*(table(ids[:, i]) for i, table in enumerate(self.tables)), x[:, 2:]], 1).tanh())

    def by_rows(self, a, b, x):
        return self.head(torch.cat([a @ self.tables[0].weight, b @ self.tables[1].weight, x], 1).tanh())

    children = {"tables": tables, "head": nn.Linear(9, 3).double()}
    rows = [one_hot(columns[:, i], size) for i, size in enumerate(sizes)]
    want = attribute(Fn(by_rows, **children), (*rows, numbers), target=1, composite=composite).relevance
    want = torch.cat([want["args0"].sum(1, True), want["args1"].sum(1, True), want["args2"]], 1)
    given = torch.cat([columns.double(), numbers], 1)
    found = attribute(Fn(forward, **children), given, target=1, composite=composite, ledger=True, batch_size=4)
    assert_close(found.relevance, want, 1e-6)
    assert found.report.complete
    assert found.ledger.unaccounted < 1e-9
    assert passes == [4, 4, 2]  # the first of them to find that out


@both
def test_integers_that_a_model_computes_with(formulation):
    composite = composite_of(formulation)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    model = Fn(lambda self, x: self.net(x.double() / 7), net=net)
    given = torch.randint(0, 255, (3, 4), dtype=torch.uint8)
    want = attribute(Fn(lambda self, x: self.net(x / 7), net=net), given.double(), target=0, composite=composite)
    found = attribute(model, given, target=0, composite=composite, dims="batch feature")
    assert_close(found.relevance, want.relevance)
    assert found.dims == {"args0": ("batch", "feature")}


def test_positions_and_kinds_of_tokens_have_a_relevance_beside():
    def embed(self, input_ids, token_type_ids=None, position_ids=None):
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        places = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        places = self.places(places) * places.double()[..., None].sin()  # of the numbers themselves: a constant
        return self.table(input_ids) + self.kinds(kinds) + places

    def model():
        return model_of(embed, kinds=embedding(2, seed=6), places=embedding(9, seed=7))

    kinds, places = torch.tensor([[0, 0, 1, 1, 1]]).repeat(3, 1), torch.arange(5)[None]
    plain = attribute(model(), (ids(), kinds), target=1, ledger=True)
    given = {"input_ids": ids(), "token_type_ids": kinds, "position_ids": places}
    wrapped = model()
    wrapped.forward = lambda input_ids, token_type_ids, position_ids: wrapped.function(
        wrapped, input_ids, token_type_ids, position_ids
    )
    found = attribute(wrapped, given, target=1, ledger=True)
    assert isinstance(found.relevance, torch.Tensor)
    assert list(found.relevances) == ["input_ids", "token_type_ids", "position_ids"]
    assert {name: list(r.shape) for name, r in found.beside.items()} == {
        "token_type_ids": [3, 5, WIDTH], "position_ids": [1, 5, WIDTH],
    }  # fmt: skip
    assert_close(found.scores, plain.scores["args0"])
    assert_close(found.beside["token_type_ids"], plain.relevance["args1"])
    whole = sum(float(r.sum()) for r in found.relevances.values())
    assert float(found.ledger.books.inputs.total) == pytest.approx(whole, rel=1e-9)
    assert found.ledger.unaccounted < 1e-9
    cut = attribute(wrapped, given, target=1, batch_size=2)
    assert_close(cut.beside["position_ids"], found.beside["position_ids"])


def test_a_tensor_that_is_given_twice_is_two_inputs():
    model = model_of(lambda self, a, b: self.table(a) * self.table(b).cos())
    same = ids()
    found = attribute(model, (same, same), target=1)
    apart = attribute(model, (same, same.clone()), target=1)
    for name, r in apart.relevance.items():
        assert_close(found.relevance[name], r)


# ---- what cannot be followed is named --------------------------------------------------------------------------------

LOST = {
    "sums of ids": (lambda self, ids: self.table(ids) + self.table(ids.cumsum(1) % SIZE), "embedding"),
    "pairs of ids": (lambda self, ids: self.table(ids) + self.table((ids + 3 * ids.roll(1, 1)) % SIZE), "embedding"),
    "without repeats": (
        lambda self, ids: self.table(ids) + (lambda u: self.table(u[0])[u[1]])(ids.unique(return_inverse=True)),
        "embedding",
    ),
    "counts": (
        lambda self, ids: (
            self.table(ids) + torch.stack([torch.bincount(r, minlength=WIDTH)[:WIDTH] for r in ids])[:, None] * 0.1
        ),
        "mul",
    ),
    "rounded sums": (
        lambda self, ids: self.table(ids) + self.table((self.table(ids).sum(-1).cosh()).long() % SIZE),
        "embedding",
    ),
    "a number beside a carrier": (lambda self, ids: self.table(ids) * ids[..., None], "mul"),
}


@pytest.mark.parametrize("what", LOST)
def test_what_cannot_be_followed_is_named(what):
    embed, op = LOST[what]
    found = attribute(model_of(embed), ids(), target=1)
    assert not found.report.complete
    assert any(op in row.target for row in found.report.uncovered)
    assert "made of integers of an input" in found.report.to_string(width=400)
    with pytest.raises(UncoveredError, match=op):
        attribute(model_of(embed), ids(), target=1, composite=Composite(strict=True))


FORGOTTEN = {
    "a mask": lambda self, ids: self.table(ids) * (ids != 3)[..., None].double(),
    "the last place": lambda self, ids: self.table(ids) + self.places(ids.argmax(1))[:, None],
    "how many": lambda self, ids: self.table(ids) * (ids > 2).sum(1, keepdim=True).double()[..., None] / 5,
    "shapes": lambda self, ids: self.table(ids) + self.places(torch.zeros_like(ids)) + ids.new_ones(1, 1, 1).double(),
    "multiplied with 0": lambda self, ids: self.table(ids) + self.table(ids * 0),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_is_asked_about_ids_is_a_constant(what):
    places = {"places": embedding(9, seed=7)}
    found = attribute(model_of(FORGOTTEN[what], **places), ids(), target=1)
    assert found.report.complete
    assert found.relevance.shape == (3, 5, WIDTH)


def test_an_input_that_nothing_is_made_of_is_noted():
    model = model_of(lambda self, a, b: self.table(a) * (b > 3)[..., None])
    found = attribute(model, (ids(), ids(seed=2)), target=1)
    assert list(found.relevances) == ["args0"]
    assert found.report.complete
    assert any("args1 was looked up nowhere" in note for note in found.report.notes)


def test_a_rule_around_a_look_up():
    inner = Fn(lambda self, i: F.embedding(i, self.table.weight).tanh(), table=embedding())
    model = model_of(lambda self, ids: self.inner(ids), inner=inner)
    with pytest.raises(AttributionError, match="is looked up inside 'inner', which has Identity"):
        attribute(model, ids(), target=1, composite=Composite({"inner": Identity()}))
    want = attribute(model_of(WAYS["nn.Embedding"]), ids(), target=1, composite=Composite())
    for key in ("table", nn.Embedding):
        found = attribute(model_of(WAYS["nn.Embedding"]), ids(), target=1, composite=Composite({key: Epsilon()}))
        assert_close(found.relevance, want.relevance)


def test_images_of_bytes_are_images():
    torch.manual_seed(0)
    children = {"conv": nn.Conv2d(3, 4, 3).double(), "head": nn.Linear(4, 2).double()}
    model = Fn(lambda self, x: self.head(self.conv(x.double() / 255).relu().mean((2, 3))), **children)
    image = torch.randint(0, 255, (2, 3, 6, 6), dtype=torch.uint8)
    found = attribute(model, image, target=1)
    assert found.dims == {"args0": ("batch", "channel", "height", "width")}
    assert found.scores.shape == (2, 6, 6)
    plain = Fn(lambda self, x: self.head(self.conv(x / 255).relu().mean((2, 3))), **children)
    assert_close(found.relevance, attribute(plain, image.double(), target=1).relevance)


# ---- what becomes numbers of Python ----------------------------------------------------------------------------------


class ByNumbers(nn.Module):
    """Embeds ids, and does something with them in Python."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.function = nn.Embedding(20, 6), nn.Linear(6, 3, bias=False), function
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(20))
        self.rows = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")

    def forward(self, input_ids):
        return self.head(self.table(input_ids).mean(1) + self.function(self, input_ids))


LEAVING = {
    "a list": lambda m, ids: torch.stack([m.table.weight[row].mean(0) for row in ids.tolist()]),
    "an int": lambda m, ids: m.table.weight[int(ids[0, 0])],
    "an item": lambda m, ids: m.table.weight[ids[0, 0].item()],
    "a tensor of a list": lambda m, ids: m.table(torch.tensor(ids.tolist())).mean(1),
    "an array": lambda m, ids: torch.from_numpy(m.rows[ids.numpy()]).mean(1),
    "numpy takes it": lambda m, ids: torch.from_numpy(m.rows[np.asarray(ids)]).mean(1),
    "one by one": lambda m, ids: torch.stack([m.table.weight[int(first)] for first in ids[:, 0]]),
    "a module": lambda m, ids: m.layers[int(ids[0, 0])](m.table(ids)).mean(1),
    "a number": lambda m, ids: float(ids[0, 0]) * m.table.weight[0],
    "a sum": lambda m, ids: m.table.weight[int(ids.sum()) % 20],
    "text": lambda m, ids: m.layers[int(f"{ids[0, 0]}")](m.table(ids)).mean(1),
    "shared memory": lambda m, ids: m.table.weight[torch.from_dlpack(ids)].mean(1),
}
ASKED = {
    "the largest": lambda m, ids: 0.0 if ids.max().item() < 20 else 1.0,
    "equal": lambda m, ids: 0.0 if not bool((ids == -1).any()) else 1.0,
    "how many": lambda m, ids: m.table(ids)[:, : int((ids != 0).sum(1).max())].mean(1),
    "where": lambda m, ids: m.table(ids)[torch.arange(2), (ids == ids[:, :1]).int().argmax(1).tolist()],
    "a comparison": lambda m, ids: 0.0 if ids[0, 0] == 3 else m.table(ids).mean(1),
    "a text": lambda m, ids: 0.0 * len(str(ids)),
}


@pytest.mark.parametrize("name", LEAVING)
def test_ids_that_leave_torch_are_named_and_the_report_is_not_complete(name):
    report = attribute(ByNumbers(LEAVING[name]), torch.tensor([[5, 17, 3, 2], [1, 9, 3, 5]]), target=1).report
    assert not report.complete
    assert any("numbers of Python" in row.note for row in report.uncovered)


@pytest.mark.parametrize("name", ASKED)
def test_questions_about_ids_leave_a_report_complete(name):
    report = attribute(ByNumbers(ASKED[name]), torch.tensor([[5, 17, 3, 2], [1, 9, 3, 5]]), target=1).report
    assert report.complete


def test_numbers_that_say_where_something_is_may_leave():
    model = ByNumbers(None)
    model.forward = lambda input_ids, position_ids: model.head(model.table(input_ids)[:, position_ids.tolist()].mean(1))
    given = {"input_ids": torch.tensor([[5, 17, 3, 2], [1, 9, 3, 5]]), "position_ids": torch.arange(4)}
    assert attribute(model, given, target=1).report.complete


def written_by(copy):
    def integers(x):
        found = torch.zeros(x.shape, dtype=torch.int32)
        if copy:
            found.copy_(8 * x)
        else:
            found[:, 1:] = 8 * x[:, 1:]
        return found

    return integers


@both
@pytest.mark.parametrize(
    "integers",
    [lambda x: (8 * x).to(torch.int32), lambda x: (8 * x).round().to(torch.int8), written_by(True), written_by(False)],
    ids=["converted", "rounded", "copied", "set"],
)
def test_numbers_that_become_integers_and_numbers_again_are_uncovered(integers, formulation):
    """As in products of 8 bits: part of the relevance is gone, which a report must say."""
    model = Fn(lambda self, x: self.net(x + integers(self.net(x)).double() / 8), net=nn.Linear(4, 4).double())
    composite, x = composite_of(formulation), torch.randn(3, 4, dtype=torch.float64)
    assert not attribute(model, x, target=0, composite=composite).report.complete
    with composite.register(model) as registration:
        registration.model(x.requires_grad_())
    notes = " ".join(registration.report().notes)
    assert "makes integers of numbers that carry relevance: what is computed of those is a constant" in notes


@both
@pytest.mark.parametrize(
    "shaped",
    [lambda i, z: i.expand_as(z), lambda i, z: torch.broadcast_tensors(i, z)[0], lambda i, z: i.expand(z.shape)],
    ids=["expanded as", "broadcast", "expanded"],
)
def test_an_index_that_takes_the_shape_of_numbers_is_not_made_of_them(shaped, formulation):
    index = torch.tensor([0, 1, 0, 1])[:, None]
    net = nn.Linear(4, 4).double()
    model = Fn(
        lambda self, x: self.net(x).new_zeros(2, 4).scatter_add(0, shaped(index, self.net(x)), self.net(x)), net=net
    )
    composite, x = composite_of(formulation), torch.randn(4, 4, dtype=torch.float64)
    result = attribute(model, x, target=lambda y: y.sum()[None], composite=composite, dims="node feature")
    assert result.report.complete
    assert not any("makes integers" in note for note in result.report.notes)
