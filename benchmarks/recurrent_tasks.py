"""Recurrent nets on tasks whose evidence is known, each trained within a minute on one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import evaluate
from lxt_compose.demo.data import load_digits

LENGTH, VALUES, WORDS, DIGITS, COLUMNS = 20, 12, 60, 5, 56


class Written(nn.Module):
    """The LSTM that is given, written by hand: a layer for the input and one for the state."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        features, hidden = lstm.input_size, lstm.hidden_size
        self.of_input, self.of_state = nn.Linear(features, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)
        with torch.no_grad():
            self.of_input.weight.copy_(lstm.weight_ih_l0)
            self.of_input.bias.copy_(lstm.bias_ih_l0 + lstm.bias_hh_l0)
            self.of_state.weight.copy_(lstm.weight_hh_l0)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The states at all positions."""
        h = c = x.new_zeros(len(x), self.of_state.in_features)
        states = []
        for row in x.unbind(1):
            gate, forget, signal, out = (self.of_input(row) + self.of_state(h)).chunk(4, 1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(gate) * torch.tanh(signal)
            h = torch.sigmoid(out) * torch.tanh(c)
            states.append(h)
        return (torch.stack(states, 1),)


@dataclass(frozen=True)
class Task:
    """A trained model, what it is explained on, and how much of the evidence an explanation names.

    ``evidence`` takes scores [n, units] and gives a number for each sample, more is better.
    """

    model: nn.Module
    inputs: Any
    target: Any
    removing: dict[str, Any]
    evidence: Callable[[Tensor], Tensor]
    right: float


class Last(nn.Module):
    """A recurrent net that answers at the last position."""

    def __init__(self, kind: type[nn.Module], features: int, classes: int, words: int = 0, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, features) if words else nn.Identity()
        self.rnn, self.head = kind(features, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or the sum."""
        return self.head(self.rnn(self.embedding(x))[0][:, -1])


Loss = Callable[[nn.Module, Tensor], Tensor]


def fitted(model: nn.Module, loss_of: Loss, count: int, steps: int, batch: int, seed: int) -> nn.Module:
    """A model trained on `count` samples, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.2)
    for _ in range(steps):
        loss = loss_of(model, torch.randint(0, count, (batch,), generator=generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


# ---- a value behind a marker, named at the end ---------------------------------------------------------------------


def marked(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences with a marker, the values behind it, and where it stands."""
    ids = torch.randint(0, VALUES, (count, LENGTH), generator=generator)
    place = torch.randint(0, LENGTH - 1, (count, 1), generator=generator)
    return ids.scatter(1, place, VALUES), ids.gather(1, place + 1)[:, 0], place


def recall(kind: type[nn.Module], seed: int, samples: int) -> Task:
    """Name the value that came behind the marker. Evidence: marker and value are the two tokens on top."""
    torch.manual_seed(seed)
    ids, answers, _ = marked(20000, torch.Generator().manual_seed(seed))
    model = Last(kind, 32, VALUES, VALUES + 1)
    fitted(model, lambda m, rows: F.cross_entropy(m(ids[rows]), answers[rows]), len(ids), 1200, 64, seed)
    x, y, place = marked(samples, torch.Generator().manual_seed(1000 + seed))

    def evidence(scores: Tensor) -> Tensor:
        return (scores.topk(2, 1).indices.sort(1).values == torch.cat([place, place + 1], 1)).all(1).double()

    return Task(model, x, y, {}, evidence, _share_right(model, x, y))


# ---- words for and against ------------------------------------------------------------------------------------------


def _texts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Words 0 to 4 speak for class 0, 5 to 9 for class 1, all others for none; the majority decides."""
    ids = torch.randint(10, WORDS, (count, LENGTH), generator=generator)
    answers = torch.randint(0, 2, (count,), generator=generator)
    against = torch.randint(0, 3, (count,), generator=generator)
    order = torch.rand(count, LENGTH, generator=generator).argsort(1)
    which = torch.arange(LENGTH)[None].expand(count, -1)
    side = torch.where(which < against[:, None], 1 - answers[:, None], answers[:, None])
    words = torch.randint(0, 5, (count, LENGTH), generator=generator) + 5 * side
    said = torch.where(which < 2 * against[:, None] + 1, words, ids)
    return torch.empty_like(ids).scatter_(1, order, said), answers


def keywords(kind: type[nn.Module], seed: int, samples: int) -> Task:
    """Which class do most of the words speak for? Evidence: correlation with +1 for, -1 against, 0 for all others."""
    torch.manual_seed(seed)
    ids, answers = _texts(20000, torch.Generator().manual_seed(seed))
    model = Last(kind, 32, 2, WORDS)
    fitted(model, lambda m, rows: F.cross_entropy(m(ids[rows]), answers[rows]), len(ids), 600, 64, seed)
    x, y = _texts(samples, torch.Generator().manual_seed(1000 + seed))
    speaks = torch.where(x < 5, 1.0, torch.where(x < 10, -1.0, 0.0)) * torch.where(y[:, None] == 0, 1.0, -1.0)
    return Task(model, x, y, {}, _correlates(speaks), _share_right(model, x, y))


# ---- two numbers among many, added (Hochreiter and Schmidhuber 1997; explained in Arras et al. 2019) -----------------


def _numbers(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    numbers = 2 * torch.rand(count, LENGTH, generator=generator) - 1
    marked = torch.rand(count, LENGTH, generator=generator).argsort(1) < 2
    return torch.stack([numbers, marked.float()], -1), (numbers * marked).sum(1)


def adding(kind: type[nn.Module], seed: int, samples: int) -> Task:
    """Add the two numbers that are marked. Evidence: correlation with the numbers, 0 for those without a mark."""
    torch.manual_seed(seed)
    x, y = _numbers(20000, torch.Generator().manual_seed(seed))
    model = Last(kind, 2, 1, hidden=32)
    fitted(model, lambda m, rows: F.mse_loss(m(x[rows])[:, 0], y[rows]), len(x), 1500, 64, seed)
    x, y = _numbers(samples, torch.Generator().manual_seed(1000 + seed))
    with torch.no_grad():
        right = float(((model(x)[:, 0] - y).abs() < 0.1).double().mean())
    return Task(model, x, 0, {}, _correlates(x[..., 0] * x[..., 1]), right)


# ---- lines of digits, read by a CNN and a BiLSTM ---------------------------------------------------------------------


class Reader(nn.Module):
    """Lines of digits [n, 1, 8, COLUMNS] to the logit of a class (0 is none, then the digits) at one place of each."""

    def __init__(self, kind: type[nn.Module], hidden: int = 48) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.rnn, self.head = kind(32, hidden, bidirectional=True, batch_first=True), nn.Linear(2 * hidden, 11)

    def all(self, x: Tensor) -> Tensor:
        """Logits of all classes at all places, [n, COLUMNS / 2, 11]."""
        return self.head(self.rnn(self.conv(x)[:, :, 0].transpose(1, 2))[0])

    def forward(self, x: Tensor, label_place: Tensor, label: Tensor) -> Tensor:
        """The logit of one class at one place of each line, [n]."""
        return self.all(x)[torch.arange(len(x)), label_place, label]


def _lines(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Lines of digits at random places, their digits and where each begins."""
    picks = torch.randint(0, len(images), (count, DIGITS), generator=generator)
    gaps = torch.randint(0, COLUMNS - 8 * DIGITS + 1, (count, DIGITS), generator=generator).sort(1).values
    starts = gaps + 8 * torch.arange(DIGITS)
    columns = (starts[..., None] + torch.arange(8)).flatten(1)
    ink = images[picks, 0].permute(0, 2, 1, 3).flatten(2)  # [count, 8, DIGITS * 8]
    lines = torch.zeros(count, 8, COLUMNS).scatter_(2, columns[:, None].expand(-1, 8, -1), ink)
    return lines[:, None], labels[picks], starts


def reader(kind: type[nn.Module], seed: int, samples: int) -> Task:
    """Read a line of digits. Evidence: the share of positive relevance on the digit that is named, by columns."""
    torch.manual_seed(seed)
    data = load_digits()
    lines, said, _ = _lines(data.train_images, data.train_labels, 3000, torch.Generator().manual_seed(seed))
    model = Reader(kind)

    def loss(m: nn.Module, rows: Tensor) -> Tensor:
        found = m.all(lines[rows]).log_softmax(-1).transpose(0, 1)  # type: ignore[operator]
        return F.ctc_loss(found, said[rows] + 1, [len(found)] * len(rows), [DIGITS] * len(rows))

    fitted(model, loss, len(lines), 1200, 32, seed)
    test = _lines(data.test_images, data.test_labels, samples, torch.Generator().manual_seed(1000 + seed))
    return _explained(model, *test)


def _explained(model: nn.Module, lines: Tensor, said: Tensor, starts: Tensor) -> Task:
    """All digits of the lines that are read right, each where its logit is the largest of its run."""
    with torch.no_grad():
        best = model.all(lines).argmax(2)  # type: ignore[operator]
    rows, places = [], []
    for row, classes in enumerate(best.tolist()):
        begins = [t for t, c in enumerate(classes) if c and (t == 0 or classes[t - 1] != c)]
        if [classes[t] - 1 for t in begins] == said[row].tolist():
            rows.append(row)
            places.append(begins)
    place, label, start = torch.tensor(places).flatten(), said[rows].flatten() + 1, starts[rows].flatten()
    columns = torch.arange(COLUMNS // 2) * 2
    inside = (columns >= start[:, None]) & (columns < start[:, None] + 8)

    def evidence(scores: Tensor) -> Tensor:
        positive = scores.clamp(min=0)
        return (positive * inside).sum(1) / positive.sum(1)

    x = lines[rows].repeat_interleave(DIGITS, 0)
    return Task(model, (x, place, label), lambda y: y, {"patch": (8, 2)}, evidence, len(rows) / len(lines))


def _share_right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def _correlates(truth: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores: evaluate.correlation(scores, truth, kind="pearson")
