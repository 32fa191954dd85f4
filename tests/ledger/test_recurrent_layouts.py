"""Recurrent nets keep the samples of a batch apart: in their sequences, packed or not, and in their last states."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lxt_compose import attribute
from lxt_compose.ledger.layouts import Layout, in_front
from lxt_compose.ledger.recurrent_layouts import after_recurrent

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
LENGTHS = torch.tensor([2, 4])  # as many samples as layers, and not in order


class Reader(nn.Module):
    """A head on the last states and on the sequence of a recurrent net; the net may be given a first state."""

    def __init__(self, kind, *, batch_first=True, packed=False, started=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = KINDS[kind](3, 4, num_layers=2, batch_first=batch_first, **options)
        self.head = nn.Linear(4, 2)
        self.packed, self.started = packed, started

    def forward(self, x, lengths):
        given = x if self.net.batch_first else x.transpose(0, 1)
        start = None
        if self.started:
            start = torch.ones(4 if self.net.bidirectional else 2, len(x), 4, dtype=x.dtype)
            start = (start, start) if isinstance(self.net, nn.LSTM) else start
        if self.packed:
            given = pack_padded_sequence(given, lengths, self.net.batch_first, enforce_sorted=False)
        sequence, state = self.net(given, start)
        if self.packed:
            sequence, _ = pad_packed_sequence(sequence, self.net.batch_first)
        last = state[0] if isinstance(state, tuple) else state
        return self.head(last.sum(0) + sequence.sum(1 if self.net.batch_first else 0)[:, :4])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": False},
        {"bidirectional": True},
        {"packed": True},
        {"packed": True, "bidirectional": True},
        {"packed": True, "batch_first": False},
        {"started": True},
    ],
    ids=str,
)
def test_what_each_sample_keeps_is_what_it_keeps_alone(kind, options):
    model = Reader(kind, **options).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    both = attribute(model, (x, LENGTHS), target=1, ledger=True).ledger
    alone = [
        attribute(model, (x[i : i + 1, : LENGTHS[i]] if model.packed else x[i : i + 1], LENGTHS[i : i + 1]),
                  target=1, ledger=True).ledger
        for i in range(2)
    ]  # fmt: skip
    for name, amount in both.absorbed.items():
        expected = torch.cat([one.absorbed[name] for one in alone])
        torch.testing.assert_close(amount, expected, rtol=1e-8, atol=1e-10)
    assert float(both.absorbed["bias"].abs().sum()) > 0


def test_a_net_that_runs_along_the_samples_keeps_none_apart():
    x, front = torch.randn(3, 5, 4), in_front(3)
    state, weights = torch.zeros(1, 5, 4), ()
    tail = (weights, True, 1, 0.0, False, False)
    outputs = [torch.zeros(3, 5, 4), torch.zeros(1, 5, 4)]
    assert after_recurrent((x, state, *tail, False), [(x, front)], outputs) == [None, None]
    found = after_recurrent((x, state, *tail, True), [(x, front)], outputs)
    assert [layout.dim for layout in found] == [0, 1]


def test_a_packed_sequence_of_mixed_rows_keeps_none_apart():
    x, sizes = torch.randn(3, 4), torch.tensor([2, 1])
    args = (x, sizes, torch.zeros(1, 2, 4), (), True, 1, 0.0, False, False)
    outputs = [torch.zeros(3, 4), torch.zeros(1, 2, 4)]
    sequence, state = after_recurrent(args, [(x, Layout(0, torch.tensor([1, 0, 1])))], outputs)
    assert sequence.owner.tolist() == [1, 0, 1]
    assert (state.dim, state.owner.tolist(), state.plain) == (1, [1, 0], False)
    assert after_recurrent(args, [(x, Layout(0, torch.tensor([1, 0, 0])))], outputs) == [None, None]


def test_an_output_alone_is_told_by_its_shape():
    x, front = torch.randn(2, 2, 4), in_front(2)
    args = (x, torch.zeros(2, 2, 4), (), True, 2, 0.0, False, False, True)
    assert after_recurrent(args, [(x, front)], [torch.zeros(2, 2, 4)]) == [None]  # either
    (found,) = after_recurrent(args, [(x, front)], [torch.zeros(4, 2, 4)])
    assert found.dim == 1
